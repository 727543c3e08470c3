"""What README.md and docs/ say is so: commands, JSON shapes, exit codes. What the commands do is run in tests/e2e."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from test_gcp import described
from unit_support import NOW, PROGRAM, Cli, Clocked, Memory, events, held, made

import ycluster
from ycluster import Hold, Host, Idle, Output, PortForward

ROOT = PROGRAM.parent
sys.path.insert(0, str(ROOT / "scripts"))
import reference  # noqa: E402  # type: ignore[import-not-found]

PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]
LATER = int(NOW) + 4000


def commands(page: Path) -> list[str]:
    """Every ycluster command on a page: in a block of shell, in the text, or as a heading."""
    text = re.sub(r"-\$(\$|\w+)", "-1", page.read_text())  # job-$CI_JOB_ID
    blocks = re.findall(r"^```(?:sh|yml)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [
        line
        for block in blocks
        for line in re.sub(r"<<'(\w+)'\n.*?^\1$", "", block, flags=re.M | re.S).splitlines()
    ]
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", rest)]
    spans += re.findall(r"^#+ (.*)$", rest, re.MULTILINE)
    asked = r"(?:^|[(;&|]\s*|\s)ycluster ([a-z][^#;&|)]*)"
    found = [match[1] for line in lines for match in re.finditer(asked, line.split(" #")[0])]
    return found + [
        match[1] for span in spans if (match := re.fullmatch(r"ycluster ([a-z].*)", span))
    ]


def test_whoever_pastes_one_block_makes_no_instance_without_a_limit() -> None:
    """`$flags` of another block is empty in a new shell, or where that block failed."""
    found = 0
    for page in PAGES:
        for block in re.findall(r"^```sh\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
            for create in re.finditer("instances create .*", block):
                before = block[: create.start()].replace("&&\n", "&& ").splitlines()[-1]
                assert "flags=$(ycluster lifetime gcp-flags --require-budget" in before, page.name
                assert "&&" in before and "$flags" in create[0]
                found += 1
    assert found >= 3


def test_every_command_in_the_docs_is_one_that_the_program_takes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    every = [(page.name, command) for page in PAGES for command in commands(page)]
    assert len(every) > 40 and {page for page, _ in every} >= {
        "README.md",
        "json.md",
        "ci.md",
        "developer.md",
    }
    whole = 0
    for page, command in every:
        words = shlex.split(command)
        try:
            assert ycluster.full_parser().parse_args(words).path, (page, command)
            whole += 1
        except SystemExit:  # a verb that is spoken of without all that it wants
            with pytest.raises(SystemExit) as ended:
                ycluster.full_parser().parse_args([*words, "--help"])
            helped = capsys.readouterr().out
            assert ended.value.code == 0 and all(
                word in helped for word in words if word[0] == "-"
            ), (page, command)
    assert whole > 30


def test_every_config_in_the_docs_is_good(tmp_path: Path) -> None:
    pages = [page.read_text() for page in PAGES]
    blocks = [
        block
        for text in pages
        for block in re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]
    blocks += [
        block
        for text in pages
        for block in re.findall(r"<<'YAML'\n(.*?)^YAML", text, re.MULTILINE | re.DOTALL)
    ]
    assert len(blocks) >= 5
    for block in blocks:
        ycluster.read_config(block, tmp_path / "y-cluster-provision.yaml")


def shape(value: object) -> object:
    """The names in a JSON value, and the sorts of its values."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value[:1]]
    return type(value).__name__


def documented(heading: str) -> Any:
    """The JSON under a heading of docs/json.md."""
    text = (
        (ROOT / "docs" / "json.md")
        .read_text()
        .partition(f"\n## {heading}\n")[2]
        .partition("\n## ")[0]
    )
    block = re.search(r"^```json\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert block, heading
    return json.loads(block[1])


def test_the_json_of_clusters_is_as_documented(cli: Cli, cache: Path, timer: Memory) -> None:
    ahead = ycluster.parse_time("2100-01-01T00:00:00Z")
    mine, began = os.getpid(), ycluster.process_start(os.getpid())
    boot = Host({}, Output(io.StringIO(), io.StringIO())).boot_id()
    made(
        cache,
        expires_at=ahead,
        port_forwards=(PortForward(80, 8080),),
        max_idle="30m",
        idle=Idle(used=ahead, seen=ahead, next=ahead, by="", cpu=1, connections=0, percent=3),
        holds=(
            Hold(mine, began, boot, since=ahead, until=ahead, command="make test", undo="hold"),
        ),
    )
    cli("lifetime", "arm")
    listed = json.loads(cli("list", "-o", "json").out)
    assert shape(listed) == shape(documented("ycluster list -o json"))
    one = {"version": 1, **listed["clusters"][0]}
    assert shape(json.loads(cli("status", "-o", "json").out)) == shape(one)
    guarded = json.loads(cli("lifetime", "status", "-o", "json").out)
    assert shape(guarded.pop("enforcement")) == shape(
        documented("ycluster lifetime status -o json")
    )
    assert shape(guarded) == shape(one)


def test_the_json_of_an_expiry_is_as_documented(cli: Cli, cache: Path) -> None:
    made(cache, reaped=ycluster.Reaped(int(NOW), "stop", "systemd", "guest-shutdown", "maxRun"))
    [reaped] = [
        cluster["reaped"] for cluster in json.loads(cli("list", "-o", "json").out)["clusters"]
    ]
    said = re.search(r"- `reaped`: (.*?)\n- ", (ROOT / "docs" / "json.md").read_text(), re.DOTALL)
    assert said and {name for name in re.findall(r"`(\w+)`", said[1]) if name in reaped} == set(
        reaped
    )


def test_the_json_of_the_cloud_is_as_documented(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shape({"version": 1, **ycluster.gcp_lifetime(json.dumps(described()), NOW)}) == shape(
        documented("ycluster lifetime gcp-status -o json")
    )
    (tmp_path / "y-cluster-provision.yaml").write_text(
        "lifetime: {maxRun: 8h, onExpiry: teardown}\n"
    )
    printed = cli("lifetime", "gcp-flags", "--quiet", "-o", "json", "-c", tmp_path).out
    assert json.loads(printed) == documented("ycluster lifetime gcp-flags -o json")


def test_the_json_of_doctor_is_as_documented(cli: Cli) -> None:
    assert shape(json.loads(cli("doctor", "-o", "json").out)) == shape(
        documented("ycluster doctor -o json")
    )


class Mute:
    """A monitor that takes every command."""

    def execute(self, command: str) -> None:
        pass


def with_memory(host: Clocked, state: ycluster.State, qmp: object) -> ycluster.Suspended:
    state.files.memory.write_text("what ran in it")
    return ycluster.Suspended(at=int(NOW), packed="", digest="", fits={})


def test_the_log_of_events_is_as_documented(
    host: Clocked, home: Path, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(host: Clocked, state: ycluster.State) -> str:
        raise ycluster.YclusterError("QEMU is alive")

    monkeypatch.setattr(ycluster.Host, "tell_terminals", lambda self, text: None)
    monkeypatch.setattr(
        ycluster, "launch", lambda host, state: ycluster.replace(state, ran_with="kvm")
    )
    state = ycluster._boot(host, made(cache, lifetime="1h", warn="10m", max_idle="20h"))
    host.time += 900
    ycluster.reap(host, state.files, by="memory")
    with monkeypatch.context() as runs:
        runs.setattr(ycluster, "vm_status", lambda host, files: "running")
        held(host, state.files)
    host.time += 900
    ycluster.reap(host, state.files, by="memory")
    monkeypatch.setattr(ycluster, "process_start", lambda pid: 0)
    monkeypatch.setattr(ycluster, "write_memory", with_memory)
    monkeypatch.setattr(ycluster, "memory_fits", lambda *known: {})
    monkeypatch.setattr(ycluster, "_check_room", lambda host, files, vm: None)
    monkeypatch.setattr(ycluster, "standing_still", lambda *args: contextlib.nullcontext(Mute()))
    state.files.qmp.touch()
    ycluster._discard_memory(host, ycluster._suspend(host, state, ycluster.Vm(1, -1)))
    host.time += 1300
    ycluster.reap(host, state.files, by="memory")
    ycluster.extend(host, state.files, ycluster.HowFar(by=10**9))
    ycluster.set_deadline(host, state.files, ycluster.HowFar(from_now=501 * 10**9))
    host.time += 1000
    with monkeypatch.context() as broken, pytest.raises(ycluster.YclusterError):
        broken.setitem(ycluster.END_BY, "stop", refuse)
        ycluster.reap(host, state.files, by="memory")
    host.time += 1000
    ycluster.reap(host, state.files, by="memory")
    log = events(home)
    block = (ROOT / "docs" / "json.md").read_text().partition("```jsonl\n")[2].partition("```")[0]
    said = {line["event"]: shape(line) for line in map(json.loads, block.splitlines())}
    assert {line["event"]: shape(line) for line in log} == said


def test_the_exit_codes_in_the_readme_are_those_of_the_program() -> None:
    table = (ROOT / "README.md").read_text().partition("| Exit code |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| ([0-9, ]+) \|", table, re.MULTILINE)
    assert [int(code) for row in listed for code in row.split(",")] == list(ycluster.EXIT_CODES)
    doc = (ycluster.__doc__ or "").partition("Exit codes:")[2]
    own = [code for code in ycluster.EXIT_CODES if code not in (125, 126, 127)]
    assert [int(code) for code in re.findall(r"\b(\d+) [a-z]", doc)] == own


def test_the_reference_of_the_config_is_of_its_keys() -> None:
    """`scripts/reference.py config` refreshes it."""
    page = (ROOT / "docs" / "config.md").read_text()
    assert page == reference.with_tables(page)
    for name in ycluster.keys_of(ycluster.QemuConfig):
        assert f"| `{ycluster.camel_case(name)}`" in page
    for key in ("maxIdle", "bindAddress", "guestAddress", "install"):
        assert f"| `{key}`" in page, "of a section"


def test_the_manual_page_has_every_verb_and_option_and_nothing_that_roff_would_obey() -> None:
    page = reference.man_page()
    for path in ycluster.VERBS:
        assert f'.SS "{path}"'.replace("-", "\\-") in page
        for item in ycluster.arguments_of(path):
            for name in item.names if item.is_option and not item.is_hidden else ():
                assert name.replace("-", "\\-") in page, (path, name)
    macros = {line.split()[0] for line in page.splitlines() if line.startswith((".", "'"))}
    assert macros == {".TH", ".SH", ".SS", ".TP", ".PP", ".B", ".I", ".BR"}
    groff = shutil.which("groff")
    if groff:
        argv = [groff, "-man", "-Tutf8", "-ww", "-P-c"]
        done = subprocess.run(argv, input=page, text=True, capture_output=True, check=True)
        assert done.stderr == "" and "of `run` and `lifetime hold`" in done.stdout


def test_every_page_is_in_the_index_and_every_link_leads_somewhere() -> None:
    index = (ROOT / "README.md").read_text()
    for page in PAGES:
        text = page.read_text()
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
            if "://" not in target:
                assert (page.parent / target).exists(), (page.name, target)
        if page.parent.name == "docs" and page.name != "faults.md":
            assert f"(docs/{page.name})" in index, page.name
    assert "docs/faults.md" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_recording_is_of_commands_that_exist_and_of_a_cluster_that_expired() -> None:
    assert "(docs/recording.svg)" in (ROOT / "README.md").read_text()
    texts = [
        text.text or ""
        for text in ElementTree.parse(ROOT / "docs" / "recording.svg").iter()
        if text.tag.endswith("}text")
    ]
    typed = [text[len("$ ycluster ") :] for text in texts if text.startswith("$ ycluster ")]
    assert len(typed) >= 7 and all(
        ycluster.full_parser().parse_args(shlex.split(command)).path for command in typed
    )
    assert any("suspended" in text for text in texts)
    went_on = [text for text in texts if re.fullmatch("[0-9]+ sleep 3600", text)]
    assert len(went_on) == 2 and len(set(went_on)) == 1, "the same process, before and after"
