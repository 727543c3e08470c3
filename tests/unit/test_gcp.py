"""Section 11: the flags by which Compute Engine deletes an instance by itself."""

from __future__ import annotations

import io
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_support import LAUNCHER, NOW, PROGRAM, Cli, Ran, missing, refused, told, tree

from ycluster import (
    ConfigError,
    format_duration,
    format_time,
    gcp_flags,
    gcp_lifetime,
    parse_duration,
    parse_time,
)

DELETE = "--instance-termination-action=DELETE"


@pytest.mark.parametrize(
    "max_run, seconds",
    [
        ("30s", 30), ("8h", 28800), ("1h30m", 5400), ("90m", 5400), ("2880h", 10368000), ("29.5s", 30), ("30.000000001s", 31),
        ("2879h59m59.1s", 10368000),
    ],
)  # fmt: skip
def test_the_budget_is_given_in_whole_seconds_rounded_up(max_run: str, seconds: int) -> None:
    assert gcp_flags(max_run) == [f"--max-run-duration={seconds}s", DELETE]


@pytest.mark.parametrize("max_run", ["", "0"])
def test_no_budget_is_no_flag(max_run: str) -> None:
    assert gcp_flags(max_run) == []


@pytest.mark.parametrize("max_run", ["1ns", "29s", "2880h0m0.000000001s", "2881h", "1000000h"])
def test_what_compute_engine_would_refuse_is_refused(max_run: str) -> None:
    with refused(ConfigError, max_run, "30 s", "120 days"):
        gcp_flags(max_run)


@given(st.integers(29 * 10**9 + 1, 120 * 86400 * 10**9))
def test_an_instance_never_ends_before_its_budget(nanoseconds: int) -> None:
    limit, action = gcp_flags(format_duration(nanoseconds))
    seconds = int(limit[len("--max-run-duration=") : -1])
    assert action == DELETE and 0 <= seconds * 10**9 - nanoseconds < 10**9


@pytest.mark.parametrize("provider", ["qemu", "docker", "multipass"])
@pytest.mark.parametrize(
    "max_run, form, out",
    [
        ("8h", "shell", f"--max-run-duration=28800s {DELETE}\n"),
        ("8h", "lines", f"--max-run-duration=28800s\n{DELETE}\n"),
        ("0", "shell", ""),
        ("0", "lines", ""),
    ],
)
def test_stdout_is_the_flags_and_nothing_else(
    cli: Cli, tmp_path: Path, provider: str, max_run: str, form: str, out: str
) -> None:
    config = {"provider": provider, "lifetime": {"maxRun": max_run}}
    (tmp_path / "y-cluster-provision.json").write_text(json.dumps(config))
    assert cli("lifetime", "gcp-flags", "-c", tmp_path, "-o", form, "--quiet") == (0, out, "")


def test_the_shell_form_is_the_default_and_json_a_list(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text("lifetime: {maxRun: 45s}\n")
    flags = ["--max-run-duration=45s", DELETE]
    assert cli("lifetime", "gcp-flags", "-c", tmp_path).out == f"{shlex.join(flags)}\n"
    assert json.loads(cli("lifetime", "gcp-flags", "-c", tmp_path, "-o", "json").out) == flags
    (tmp_path / "y-cluster-provision.yaml").write_text("")
    assert cli("lifetime", "gcp-flags", "-c", tmp_path, "-o", "json").out == "[]\n"


@pytest.mark.parametrize("max_run", ["29s", "2881h"])
def test_a_refusal_names_the_file_and_the_remedy(cli: Cli, tmp_path: Path, max_run: str) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text(f"lifetime: {{maxRun: {max_run}}}\n")
    ran = cli("lifetime", "gcp-flags", "-c", tmp_path)
    told(ran, 3, f"{tmp_path}/y-cluster-provision.yaml: lifetime.maxRun {max_run}")
    assert missing(ran.err, "30 s", "120 days", "2880h", "gcloud") == []


def test_gcp_flags_need_no_path_no_home_and_leave_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text("lifetime: {maxRun: 8h}\n")
    before = tree(tmp_path)
    words = [sys.executable, "-B", str(PROGRAM), "lifetime", "gcp-flags", "-c", "."]
    done = subprocess.run(words, env={}, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"--max-run-duration=28800s {DELETE}\n")
    assert tree(tmp_path) == before


# --- what may still hurt


RESTART, ON_EXPIRY, DATA_DISK = "--no-restart-on-failure", "lifetime.onExpiry", "auto-delete=no"
BUDGET = "NOTHING will delete"


@pytest.mark.parametrize(
    "config, warned",
    [
        ("lifetime: {maxRun: 8h}", {RESTART, ON_EXPIRY}),  # locally it would be stopped (20.15)
        ("lifetime: {maxRun: 8h, onExpiry: stop}", {RESTART, ON_EXPIRY}),
        ("lifetime: {maxRun: 8h, onExpiry: pause}", {RESTART, ON_EXPIRY}),
        ("lifetime: {maxRun: 8h, onExpiry: teardown}", {RESTART}),
        ("lifetime: {maxRun: 8h, onExpiry: teardown}\ndataDisk: data.qcow2", {RESTART, DATA_DISK}),
        ("provider: docker\nlifetime: {maxRun: 8h, onExpiry: pause}", {RESTART, ON_EXPIRY}),
        ("lifetime: {onExpiry: pause}\ndataDisk: data.qcow2", {BUDGET}),
        ("lifetime: {maxRun: 0}", {BUDGET}),
        ("dataDisk: data.qcow2", {BUDGET}),
    ],
)
@pytest.mark.parametrize("form", ["shell", "lines", "json"])
def test_a_warning_is_one_line_on_stderr_and_only_where_it_applies(
    cli: Cli, tmp_path: Path, config: str, warned: set[str], form: str
) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text(config + "\n")
    loud = cli("lifetime", "gcp-flags", "-c", tmp_path, "-o", form)
    lines = loud.err.splitlines()
    every = (RESTART, ON_EXPIRY, DATA_DISK, BUDGET)
    assert {word for word in every if word in loud.err} == warned
    assert len(lines) == len(warned)
    assert all(line.split()[:2] == ["ycluster:", "warning:"] for line in lines)
    assert cli("lifetime", "gcp-flags", "-c", tmp_path, "-o", form, "--quiet") == (0, loud.out, "")
    assert "warning" not in loud.out


@pytest.mark.parametrize("config", ["", "lifetime: {maxRun: '0'}", "lifetime: {onExpiry: stop}"])
def test_a_budget_can_be_required(cli: Cli, tmp_path: Path, config: str) -> None:
    """In `gcloud ... $(...)` what is not there looks healthy. (20.15)"""
    file = tmp_path / "y-cluster-provision.yaml"
    file.write_text(config + "\n")
    without = cli("lifetime", "gcp-flags", "-c", tmp_path)
    assert (without.code, without.out.strip(), BUDGET in without.err) == (0, "", True)
    told(cli("lifetime", "gcp-flags", "--require-budget", "-c", tmp_path), 3, file, "maxRun")
    file.write_text("lifetime: {maxRun: 8h}\n")
    ran = cli("lifetime", "gcp-flags", "--require-budget", "-c", tmp_path, "--quiet")
    assert ran == (0, f"--max-run-duration=28800s {DELETE}\n", "")


def test_each_warning_says_the_word_that_settles_it_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text(
        "lifetime: {maxRun: 8h, onExpiry: stop}\ndataDisk: d.qcow2\n"
    )
    lines = cli("lifetime", "gcp-flags", "-c", tmp_path).err.splitlines()
    assert len(lines) == 3
    words = [line[line.index("--quiet=") :].rstrip(")") for line in lines]
    for word, line in zip(words, lines):
        left = cli("lifetime", "gcp-flags", "-c", tmp_path, word).err.splitlines()
        assert left == [other for other in lines if other != line]
    assert cli("lifetime", "gcp-flags", "-c", tmp_path, *words).err == ""


# --- gcp-status


STARTED = "2026-03-01T02:00:00.250-08:00"


def described(**fields: Any) -> dict[str, Any]:
    """An instance as gcloud prints it: int64 as text, times with the zone's offset."""
    return {
        "kind": "compute#instance",
        "name": "vm",
        "zone": "https://www.googleapis.com/compute/v1/projects/p/zones/europe-north1-a",
        "status": "RUNNING",
        "lastStartTimestamp": STARTED,
        "scheduling": {
            "maxRunDuration": {"seconds": "28800"},
            "instanceTerminationAction": "DELETE",
        },
        **fields,
    }


def shown(now: float = NOW, **fields: Any) -> dict[str, Any]:
    return gcp_lifetime(json.dumps(described(**fields)), now)


def test_the_deadline_is_the_last_start_and_the_budget_and_never_early() -> None:
    assert shown(parse_minute("17:59:01")) == {
        "name": "vm", "zone": "europe-north1-a", "state": "running", "maxRun": "8h0m0s", "terminationTime": "",
        "onExpiry": "delete", "startedAt": "2026-03-01T10:00:01Z", "expiresAt": "2026-03-01T18:00:01Z",
        "remainingSeconds": 60,
    }  # fmt: skip


def parse_minute(clock: str) -> int:
    return parse_time(f"2026-03-01T{clock}Z")


@pytest.mark.parametrize(
    "limit, max_run, ends",
    [
        ({"seconds": 28800}, "8h0m0s", "18:00:01"),
        ({"seconds": "90", "nanos": 500000000}, "1m30.5s", "10:01:32"),
        ({"seconds": "30", "nanos": 1}, "30.000000001s", "10:00:32"),
    ],
)
def test_a_budget_may_be_text_or_number_with_nanoseconds(
    limit: Any, max_run: str, ends: str
) -> None:
    found = shown(scheduling={"maxRunDuration": limit, "instanceTerminationAction": "STOP"})
    assert (found["maxRun"], found["onExpiry"], found["expiresAt"]) == (
        max_run,
        "stop",
        f"2026-03-01T{ends}Z",
    )


def test_the_moment_that_compute_engine_names_goes_before_a_reckoning() -> None:
    status = {"scheduling": {"terminationTimestamp": "2026-03-01T12:00:00Z"}}
    assert shown(resourceStatus=status)["expiresAt"] == "2026-03-01T12:00:00Z"
    fixed = {"terminationTime": "2026-03-02T12:00:00Z", "instanceTerminationAction": "STOP"}
    found = shown(scheduling=fixed)
    assert (found["maxRun"], found["expiresAt"], found["onExpiry"]) == (
        "",
        "2026-03-02T12:00:00Z",
        "stop",
    )
    assert shown(scheduling=fixed, resourceStatus=status)["expiresAt"] == "2026-03-01T12:00:00Z"


@pytest.mark.parametrize(
    "state", ["TERMINATED", "STOPPED", "SUSPENDED", "STAGING", "PROVISIONING", "STOPPING"]
)
def test_nothing_counts_while_nothing_runs(state: str) -> None:
    found = shown(status=state)
    assert (found["state"], found["expiresAt"], found["remainingSeconds"]) == (
        state.lower(),
        "",
        None,
    )
    assert found["maxRun"] == "8h0m0s"


@given(st.integers(30 * 10**9, 120 * 86400 * 10**9))
def test_what_gcp_flags_asks_for_is_what_gcp_status_shows(nanoseconds: int) -> None:
    [limit, action] = gcp_flags(format_duration(nanoseconds))
    seconds = limit[len("--max-run-duration=") : -1]
    plan = {
        "maxRunDuration": {"seconds": seconds},
        "instanceTerminationAction": action.partition("=")[2],
    }
    found = shown(scheduling=plan)
    assert (
        0 <= parse_duration(found["maxRun"]) - nanoseconds < 10**9 and found["onExpiry"] == "delete"
    )
    assert found["expiresAt"] == format_time(parse_minute("10:00:01") + int(seconds))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def ask(cli: Cli, monkeypatch: pytest.MonkeyPatch, data: bytes, *argv: str) -> Ran:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return cli("lifetime", "gcp-status", *argv)


def rows(out: str) -> dict[str, str]:
    return {
        name: value.strip()
        for name, _, value in (line.strip().partition(":") for line in out.splitlines())
    }


@pytest.mark.parametrize("argv", [(), ("-",)])
@pytest.mark.parametrize("wrap", [False, True], ids=["describe", "list"])
def test_the_summary_is_that_of_lifetime_status(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, argv: tuple[str, ...], wrap: bool
) -> None:
    made = described(lastStartTimestamp="2020-01-01T00:00:00Z")
    ran = ask(cli, monkeypatch, json.dumps([made] if wrap else made).encode(), *argv)
    found = rows(ran.out)
    assert (ran.code, ran.err) == (0, "")
    assert list(found) == ["instance", "state", "lifetime", "deadline"]
    assert found["instance"] == "vm (zone europe-north1-a)"
    assert (found["state"], found["lifetime"]) == ("running", "8h0m0s from each start, then delete")
    assert found["deadline"].startswith("2020-01-0") and "(OVERDUE " in found["deadline"]


@pytest.mark.parametrize(
    "fields, line",
    [
        ({"status": "TERMINATED"}, "deadline:  no deadline while it is terminated"),
        (
            {"scheduling": {"terminationTime": "2099-01-01T00:00:00Z"}},
            "until 2099-01-01T00:00:00Z, then stop",
        ),
        ({"scheduling": {"automaticRestart": True}}, "NOTHING deletes it"),
        (
            {"scheduling": {}, "status": "TERMINATED"},
            "--require-budget -c DIR) && gcloud compute instances set-scheduling vm --zone=europe-north1-a $flags",
        ),
    ],
)
def test_the_summary_says_what_ends_it(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], line: str
) -> None:
    ran = ask(cli, monkeypatch, json.dumps(described(**fields)).encode())
    assert ran.code == 0 and line in ran.out
    assert ("deadline:" in ran.out) != ("NOTHING" in ran.out)


def test_status_as_json_has_a_version_and_a_type_for_each_key(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = json.loads(ask(cli, monkeypatch, json.dumps(described()).encode(), "-o", "json").out)
    bare = {"name": "vm", "status": "PROVISIONING", "scheduling": {}}
    nothing = json.loads(ask(cli, monkeypatch, json.dumps(bare).encode(), "-o", "json").out)
    assert running["version"] == nothing["version"] == 1 and list(running) == list(nothing)
    assert (nothing["startedAt"], nothing["expiresAt"], nothing["remainingSeconds"]) == (
        "",
        "",
        None,
    )


@pytest.mark.parametrize(
    "data, word",
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"ERROR: (gcloud.compute.instances.describe)", "JSON"),
        (b"\xff\xfe\xfa", "JSON"),
        (b"[" * 100000, "JSON"),
        (b"[]", "JSON"),
        (b"[{}, {}]", "JSON"),
        (b"null", "JSON"),
        (b'"vm"', "JSON"),
        (b'{"kind": "compute#disk", "name": "vm", "status": "READY"}', "compute#disk"),
        (b'{"name": "vm", "status": "RUNNING"}', "'scheduling'"),
        (
            json.dumps(described(scheduling={"maxRunDuration": {"seconds": "lots"}})).encode(),
            "lots",
        ),
        (
            json.dumps(described(scheduling={"maxRunDuration": {"seconds": "9" * 30}})).encode(),
            "JSON",
        ),
        (
            json.dumps(
                described(scheduling={"maxRunDuration": {"seconds": "-" + "9" * 30}})
            ).encode(),
            "JSON",
        ),
        (json.dumps(described(lastStartTimestamp="yesterday")).encode(), "yesterday"),
        (json.dumps(described(lastStartTimestamp=None)).encode(), "JSON"),
        (json.dumps(described(scheduling=[])).encode(), "JSON"),
        (json.dumps(described(resourceStatus=7)).encode(), "JSON"),
    ],
)
def test_what_is_no_instance_is_refused_with_the_pipe_that_works(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, data: bytes, word: str
) -> None:
    ran = ask(cli, monkeypatch, data)
    told(ran, 1, word, "--format=json | ycluster lifetime gcp-status")
    assert len(ran.err.splitlines()) == 2


@pytest.mark.parametrize("stdin", [Terminal(), None], ids=["terminal", "closed"])
def test_a_terminal_is_not_read(cli: Cli, monkeypatch: pytest.MonkeyPatch, stdin: Any) -> None:
    monkeypatch.setattr(sys, "stdin", stdin)
    ran = cli("lifetime", "gcp-status")
    told(ran, 2, "INSTANCE")


@pytest.mark.parametrize("argv", [["--zone", "z"], ["-", "--project", "p"], ["vm", "vm-2"]])
def test_what_names_no_instance_is_a_usage_error(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, argv: list[str]
) -> None:
    ran = ask(cli, monkeypatch, json.dumps(described()).encode(), *argv)
    assert (ran.code, ran.out) == (2, "")


def fake_gcloud(where: Path, script: str) -> str:
    """A PATH with a gcloud that misbehaves; it keeps its arguments, NUL-separated, and its environment."""
    program = where / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\0" "$@" >"{where}/argv"\nenv >"{where}/env"\n{script}\n'
    )
    program.chmod(0o755)
    return f"{program.parent}:/usr/bin:/bin"


def test_gcloud_is_asked_for_the_instance_with_the_environment_of_its_user(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", fake_gcloud(tmp_path, f"echo '{json.dumps(described())}'"))
    monkeypatch.setenv("CLOUDSDK_CORE_ACCOUNT", "me@example.com")
    ran = cli("lifetime", "gcp-status", "my-vm", "--zone", "z-a", "--project=p")
    assert ran.code == 0 and "8h0m0s" in ran.out
    argv = (tmp_path / "argv").read_text().split("\0")[:-1]
    assert argv == [
        "compute",
        "instances",
        "describe",
        "my-vm",
        "--format=json",
        "--zone=z-a",
        "--project=p",
    ]
    assert "CLOUDSDK_CORE_ACCOUNT=me@example.com" in (tmp_path / "env").read_text()


@pytest.mark.parametrize(
    "script, code, word",
    [
        (
            "echo 'ERROR: HTTPError 404: The resource vm was not found' >&2; exit 1",
            4,
            "my-vm",
        ),
        (
            "echo 'ERROR: Underspecified resource [my-vm]. Specify the [--zone] flag.' >&2; exit 1",
            1,
            "--zone",
        ),
        (
            "echo 'ERROR: (gcloud.compute.instances.describe) could not parse resource []' >&2; exit 1",
            1,
            "could not parse resource []",
        ),
        ("echo nonsense", 1, "JSON"),
        ("exit 0", 1, "empty"),
        ("kill -9 $$", 1, "exit -9"),
    ],
    ids=["gone", "no zone", "no name", "garbage", "silence", "killed"],
)
def test_a_gcloud_that_fails_is_told_in_a_few_lines(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, code: int, word: str
) -> None:
    monkeypatch.setenv("PATH", fake_gcloud(tmp_path, script))
    ran = cli("lifetime", "gcp-status", "my-vm")
    told(ran, code, word, lines=3)


def test_without_gcloud_the_status_says_what_to_do(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    ran = cli("lifetime", "gcp-status", "my-vm")
    told(ran, 5, "gcloud", "--format=json | ycluster lifetime gcp-status")


# --- the wrapper, as far as it goes without gcloud (the rest is in tests/e2e/test_gcp.py)


@pytest.fixture
def wrap(tmp_path: Path) -> Any:
    """examples/gcp/create-appliance.sh with this ycluster, and a gcloud that must not be called."""
    path = fake_gcloud(tmp_path, "exit 99")
    program = tmp_path / "bin" / "ycluster"
    program.write_text(
        f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -B {shlex.quote(str(LAUNCHER))} "$@"\n'
    )
    program.chmod(0o755)
    for name, budget in (("12h", "12h"), ("none", "0"), ("year", "8760h")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "y-cluster-provision.yaml").write_text(
            f'lifetime: {{maxRun: "{budget}", onExpiry: teardown}}\n'
        )

    def run(command: str, gcloud: str = "") -> Ran:
        if gcloud:
            (tmp_path / "bin" / "gcloud").write_text(f"#!/bin/sh\n{gcloud}\n")
        words = [PROGRAM.parent / "examples" / "gcp" / "create-appliance.sh", *shlex.split(command)]
        done = subprocess.run(
            words, cwd=tmp_path, env={"PATH": path}, capture_output=True, text=True
        )
        assert not (tmp_path / "argv").exists(), "gcloud was called"
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


def test_a_dry_run_prints_one_command_and_calls_nothing(wrap: Any) -> None:
    ran = wrap(
        "-n -c 12h --zone z-a --project p --data-disk d --label a=b vm -- --metadata='k=v w'"
    )
    assert (
        ran.code == 0
        and "it would be deleted 43200s after its start" in ran.err
        and "warning" not in ran.err
    )
    assert shlex.split(ran.out) == [
        "gcloud", "compute", "instances", "create", "vm", "--zone=z-a", "--project=p",
        "--machine-type=e2-standard-4", "--image-project=debian-cloud", "--image-family=debian-12",
        "--disk=name=d,device-name=data,mode=rw,boot=no,auto-delete=no",
        "--labels=created-by=ycluster,a=b,max-run=43200s",
        "--max-run-duration=43200s",
        DELETE,
        "--no-restart-on-failure",
        "--metadata=k=v w",
    ]  # fmt: skip


def test_an_image_of_ones_own_is_named_alone(wrap: Any) -> None:
    """A family beside it, as by default, was refused by gcloud."""
    for words, wanted in (
        ("--image dev-1", ["--image=dev-1"]),
        ("--image dev-1 --image-project p", ["--image=dev-1", "--image-project=p"]),
    ):
        ran = wrap(f"-n -c 12h --zone z-a {words} vm")
        shown = [word for word in shlex.split(ran.out) if word.startswith("--image")]
        assert (ran.code, shown) == (0, wanted)


def test_an_instance_whose_end_can_t_be_looked_up_was_created_all_the_same(wrap: Any) -> None:
    ran = wrap(
        "-c 12h --zone z-a vm", gcloud='[ "$3" = create ] || { echo "no permission" >&2; exit 1; }'
    )
    told(ran, 0, "no permission", "vm was created", "43200s")


def test_an_instance_that_is_not_created_has_no_end(wrap: Any) -> None:
    ran = wrap("-c 12h --zone z-a vm", gcloud="echo quota >&2; exit 3")
    assert (ran.code, ran.out, ran.err) == (3, "", "quota\n")


def test_the_wrapper_makes_nothing_that_nothing_would_delete(wrap: Any) -> None:
    """Not even as a dry run. (20.15)"""
    for more in ("--dry-run", ""):
        told(wrap(f"-c none --zone z-a {more} vm"), 3, "lifetime.maxRun is not set")


@pytest.mark.parametrize(
    "command, code, word",
    [
        ("-c 12h --zone z-a 'my vm'", 2, "NAME 'my vm'"),
        ("-c 12h --zone z-a vm,other", 2, "NAME"),
        ("-c 12h --zone z-a Vm", 2, "NAME"),
        ("-c 12h --zone z-a ''", 2, "NAME is missing"),
        ("-c 12h --zone z-a", 2, "NAME is missing"),
        ("-c 12h --zone z-a vm other", 2, "one NAME only"),
        ("-c 12h --zone 'z a' vm", 2, "--zone"),
        ("-c 12h vm", 2, "--zone is missing"),
        ("--zone z-a vm", 2, "-c DIR is missing"),
        ("vm --zone z-a -c", 2, "-c needs a value"),
        ("-c 12h --zone z-a --data-disk 'd,auto-delete=yes' vm", 2, "--data-disk"),
        ("-c 12h --zone z-a --label 'a=b c' vm", 2, "--label"),
        ("-c 12h --zone z-a --max-run 1h vm", 2, "--max-run: no such option"),
        ("-c nowhere --zone z-a vm", 3, "/nowhere:"),
        ("-c bin --zone z-a vm", 3, "/bin: no y-cluster-provision.yaml"),
        ("-c year --zone z-a vm", 3, "maxRun 8760h"),
    ],
)
def test_the_wrapper_refuses_before_anything_is_created(
    wrap: Any, command: str, code: int, word: str
) -> None:
    ran = wrap(command)
    told(ran, code, word)
