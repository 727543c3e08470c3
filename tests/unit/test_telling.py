"""What people see and hear: warnings, the log of events, the look of `list`, doctor."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from unit_support import (
    ALONE,
    NOW,
    Cli,
    Clocked,
    Memory,
    Processes,
    events,
    folded,
    made,
    missing,
    stand_in,
    told,
    wait_for,
    with_disk,
)

import ycluster
from ycluster import ArmedTimer, Files, Reaped, State

SOON = int(NOW) + 600
FAR_AHEAD = ycluster.parse_time("2100-01-01T00:00:00Z")


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What goes to the user's terminals, which are not to be troubled by a test."""
    lines: list[str] = []
    monkeypatch.setattr(ycluster.Host, "tell_terminals", lambda self, text: lines.append(text))
    return lines


def warned(cache: Path, **fields: Any) -> State:
    return made(
        cache, **{"expires_at": SOON, "started_at": int(NOW) - 3600, "warn": "10m", **fields}
    )


# --- warned before


def test_a_warning_tells_terminals_the_log_and_a_command_and_only_once(
    host: Clocked, home: Path, cache: Path, tmp_path: Path, timer: Memory, said: list[str]
) -> None:
    state = warned(cache, on_warn=f"env | grep ^YCLUSTER_ | sort >>'{tmp_path}/told'")
    for _ in range(3):
        ycluster.reap(host, state.files, by="hand")
    assert len(said) == 1
    facts = "demo will be stopped", "10m", "2025-11-22", "`ycluster lifetime extend 2h --name demo`"
    assert missing(said[0], *facts) == []
    assert (tmp_path / "told").read_text().splitlines() == [
        "YCLUSTER_CAUSE=maxRun", "YCLUSTER_CONTEXT=local", f"YCLUSTER_EXPIRES_AT={ycluster.format_time(SOON)}", "YCLUSTER_NAME=demo",
        "YCLUSTER_ON_EXPIRY=stop", "YCLUSTER_REMAINING_SECONDS=600", f"YCLUSTER_STATE={state.files.sidecar}",
    ]  # fmt: skip
    assert [event["event"] for event in events(home)] == ["armed", "warned"]
    saved = ycluster.load_state(state.files)
    assert saved.expires_at == SOON and saved.timer and saved.timer.deadline == SOON


def test_a_command_that_fails_or_hangs_is_said_and_harms_nothing(
    host: Clocked, cache: Path, timer: Memory, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    state = warned(cache, on_warn="echo broken >&2; exit 3")
    ycluster.reap(host, state.files, by="hand")
    log = host.log.getvalue()
    assert missing(log, "warning: demo:", "lifetime.onWarn", "exit 3", "broken") == []
    assert ycluster.load_state(state.files).warned == SOON


def test_what_a_command_leaves_in_the_background_is_not_waited_for(
    host: Clocked, cache: Path, tmp_path: Path, timer: Memory, said: list[str]
) -> None:
    """And it can still write when the command has ended: a closed pipe would kill it. (28)"""
    os.mkfifo(tmp_path / "goes-on")
    child = f"read line <'{tmp_path}/goes-on'; echo still; echo \"$line\" >'{tmp_path}/wrote'"
    state = warned(cache, on_warn=f"({child}) & echo broken; exit 3")
    ycluster.reap(host, state.files, by="hand")
    assert missing(host.log.getvalue(), "lifetime.onWarn", "exit 3", "broken") == []
    (tmp_path / "goes-on").write_text("after\n")
    wait_for("line of the child", lambda: (tmp_path / "wrote").exists())


def test_a_command_has_no_more_time_than_is_left(
    host: Clocked, cache: Path, timer: Memory, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[float] = []

    def run(self: ycluster.Host, argv: list[str], *, timeout: float, **options: Any) -> object:
        given.append(timeout)
        return subprocess.CompletedProcess(argv, 0, "", "")

    monkeypatch.setattr(ycluster.Host, "run", run)
    monkeypatch.setattr(ycluster.Host, "which", lambda self, program: None)
    for left in (600, 7, 0.2):
        state = warned(cache, on_warn="true", expires_at=int(NOW) + 600)
        host.time = NOW + 600 - left
        ycluster._warn(host, state, ycluster.decide(state, host.clock()))
    assert given == [60.0, 7.0, 1.0]


def tell_alone(host: Clocked, follower: int, text: str) -> None:
    """Tell this terminal, and not those of the tests beside this one."""
    mine, takes_messages = Path(os.ttyname(follower)), ycluster._takes_messages
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ycluster, "_takes_messages", lambda path: path == mine and takes_messages(path)
        )
        host.tell_terminals(text)


def test_the_users_own_terminals_are_told_if_they_take_messages(host: Clocked) -> None:
    heard = {}
    for mode in (0o620, 0o600):
        leader, follower = pty.openpty()
        os.fchmod(follower, mode)
        tell_alone(host, follower, "time is up")
        os.set_blocking(leader, False)
        try:
            heard[mode] = os.read(leader, 65536)  # other tests may tell it more
        except BlockingIOError:
            heard[mode] = b""
        os.close(leader)
        os.close(follower)
    assert b"time is up" in heard[0o620] and heard[0o600] == b""


def test_a_terminal_that_was_halted_halts_nobody(host: Clocked) -> None:
    leader, follower = pty.openpty()
    os.fchmod(follower, 0o620)
    try:
        for _ in range(200):  # more than its buffer takes
            tell_alone(host, follower, "x" * 100)
    finally:
        os.close(leader)
        os.close(follower)


def test_the_config_says_when_and_how(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "y-cluster-provision.yaml"
    text = "lifetime: {maxRun: 8h, warn: 5m, onWarn: 'say ${NAME:-you}', maxTotal: 24h}\n"
    config = ycluster.read_config(text, path)
    assert isinstance(config, ycluster.QemuConfig)
    state = ycluster.state_from_config(config, cache)
    assert (state.warn, state.on_warn, state.max_total) == ("5m", "say ${NAME:-you}", "24h")


# --- told afterwards


def test_every_step_of_a_life_is_in_the_log_of_events(
    cli: Cli, home: Path, cache: Path, timer: Memory, said: list[str]
) -> None:
    state = made(cache, expires_at=FAR_AHEAD, started_at=1)
    cli("lifetime", "arm")
    cli("lifetime", "extend", "1h")
    ycluster.save_state(
        ycluster.replace(ycluster.load_state(state.files), expires_at=1_600_000_000)
    )
    cli("lifetime", "reap")
    told = events(home)
    assert [event["event"] for event in told] == ["armed", "armed", "extended", "armed", "reaped"]
    assert {(event["name"], event["cacheDir"]) for event in told} == {("demo", str(cache))}
    assert (told[2]["seconds"], told[2]["expiresAt"]) == (
        3600,
        ycluster.format_time(FAR_AHEAD + 3600),
    )
    assert {name: told[-1][name] for name in ("action", "by", "how")} == {
        "action": "stop",
        "by": "hand",
        "how": "was not running",
    }
    assert told[-1]["late"] > 10**8
    assert (home / ".local/state/ycluster/events.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_reap_that_fails_is_in_the_log_too(
    host: Clocked, home: Path, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(host: Clocked, state: State) -> str:
        raise ycluster.YclusterError("immortal")

    monkeypatch.setitem(ycluster.END_BY, "stop", refuse)
    told: list[str] = []
    monkeypatch.setattr(ycluster.Host, "tell_terminals", lambda self, text: told.append(text))
    # A look of before has found it held, and after the hold it had its grace.
    state = made(cache, expires_at=int(NOW), retry_at=int(NOW) - 5)
    for _ in range(2):
        with pytest.raises(ycluster.YclusterError):
            ycluster.reap(host, state.files, by="at")
        host.time += 3600
    [once] = told  # on the user's terminals
    assert missing(once, "demo", "immortal", "again at") == []
    assert events(home)[-1] | {"at": ""} == {
        "at": "", "event": "failed", "name": "demo", "cacheDir": str(cache), "action": "stop", "by": "at", "error": "immortal",
    }  # fmt: skip


def test_a_full_log_makes_way_and_one_is_kept(host: Clocked, home: Path, cache: Path) -> None:
    state, log = made(cache), home / ".local/state/ycluster/events.jsonl"
    log.parent.mkdir(parents=True)
    for _ in range(2):
        log.write_text("x" * (ycluster.EVENTS_SIZE + 1))
        ycluster.log_event(host, state, "started")
        assert [event["event"] for event in events(home)] == ["started"]
    assert sorted(path.name for path in log.parent.iterdir()) == ["events.1.jsonl", "events.jsonl"]


def test_a_log_that_can_not_be_written_keeps_nothing_from_happening(
    host: Clocked, home: Path, cache: Path
) -> None:
    (home / ".local/state").write_text("no directory")
    ycluster.log_event(host, made(cache), "started")


def test_the_next_command_says_what_has_happened(cli: Cli, cache: Path) -> None:
    made(cache, reaped=Reaped(int(NOW), "stop", "systemd", "guest-shutdown"))
    for verb in ("ssh", "pause", "resume", "stop", "lifetime extend 1h"):
        ran = cli(*verb.split())
        facts = "stopped 2025-11-22", "8h budget", "(systemd: guest-shutdown)"
        assert missing(ran.err, *facts) == [], verb
    assert missing(cli("ssh").err, "`ycluster start") == []


# --- extend


def test_the_next_command_says_what_became_of_a_cluster_that_was_torn_down(
    cli: Cli, cache: Path, home: Path, tmp_path: Path, timer: Memory
) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text("name: demo\n")
    state = made(cache, expires_at=int(NOW), on_expiry="teardown", ending="teardown")
    assert cli("lifetime", "reap", "--name", "demo").code == 0 and not state.files.sidecar.exists()
    fate = r"\bdemo: torn down 20\d\d-\d\d-\d\d .* 8h .*\(hand: was not running\)"
    for words in (
        ["start"],
        ["start", "--name", "demo"],
        ["start", "-c", tmp_path],
        ["teardown", "-c", tmp_path],
        ["list"],
    ):
        assert re.search(fate, folded(cli(*words).err)), words
    made(cache, "other")
    assert re.search(fate, folded(cli("start", "--name", "demo").err))
    assert not re.search(fate, folded(cli("start", "--name", "third").err))
    with (home / ".local/state/ycluster/events.jsonl").open(
        "a"
    ) as log:  # it was made anew, and then torn down by hand
        log.write(json.dumps({"event": "started", "name": "demo", "cacheDir": str(cache)}) + "\n")
    assert missing(cli("start", "--name", "demo").err, "torn down")


def test_what_never_ran_in_its_budget_is_not_said_to_be_torn_down(
    cli: Cli, cache: Path, timer: Memory
) -> None:
    state = made(cache, expires_at=int(NOW), on_expiry="teardown", image="x", started_at=1)
    state.files.disk.touch()
    assert cli("lifetime", "reap", "--name", "demo").code == 0 and state.files.disk.exists()
    assert "expired: it was off already" in re.sub(" +", " ", cli("status").out)
    assert cli("teardown", "--name", "demo").code == 0 and missing(cli("list").err, "torn down")


def test_a_log_of_events_that_is_rubbish_keeps_nothing_from_being_said(
    cli: Cli, home: Path
) -> None:
    log = home / ".local/state/ycluster/events.jsonl"
    log.parent.mkdir(parents=True)
    reaped = {
        "at": "2026-01-01T00:00:00Z",
        "event": "reaped",
        "name": "demo",
        "cacheDir": "/c",
        "action": "teardown",
        "by": "at",
    }
    whole = json.dumps({**reaped, "how": "guest-shutdown", "maxRun": "8h"}).encode()
    for rubbish in (
        b"",
        b"\xff",
        b"{",
        b"[]",
        b"3",
        b"[" * 100000,
        whole[:40],
        json.dumps(reaped).encode(),
    ):
        log.write_bytes(rubbish + b"\n")
        ran = cli("stop", "--name", "demo")
        told(ran, 4, "demo")
        assert missing(ran.err, "torn down")
        log.write_bytes(whole + b"\n" + rubbish + b"\n")
        ran = cli("stop", "--name", "demo")
        assert missing(ran.err, "demo: torn down 2026-01-01") == [], rubbish


def test_of_two_clusters_of_one_name_each_has_its_own_fate(
    cli: Cli, home: Path, tmp_path: Path
) -> None:
    log = home / ".local/state/ycluster/events.jsonl"
    log.parent.mkdir(parents=True)
    config = tmp_path / "y-cluster-provision.yaml"
    gone = {
        "at": "2026-01-01T00:00:00Z",
        "event": "reaped",
        "name": "demo",
        "action": "teardown",
        "by": "at",
        "how": "SIGTERM",
    }
    for place in ("here", "there"):
        events = [
            {**gone, "maxRun": "8h", "cacheDir": f"{home}/here"},
            {"event": "started", "name": "demo", "cacheDir": f"{home}/there"},
        ]
        log.write_text("".join(json.dumps(event) + "\n" for event in events))
        config.write_text(f"name: demo\ncacheDir: {home}/{place}\n")
        ran = cli("start", "-c", tmp_path)
        assert missing(ran.err, "torn down") == ["torn down"] * (place != "here")
    assert missing(cli("start", "--context", "prod").err, "torn down")


@pytest.mark.parametrize("more", ["1h", "--from-now 800000h", "--until 2100-01-01T01:00:00Z"])
def test_a_dry_run_says_what_would_be_and_changes_nothing(
    cli: Cli, cache: Path, timer: Memory, more: str
) -> None:
    state = made(cache, expires_at=FAR_AHEAD)
    before = state.files.sidecar.read_bytes()
    ran = cli("lifetime", "extend", *more.split(), "--dry-run")
    assert ran.code == 0 and missing(ran.out, "demo: would be extended") == []
    assert state.files.sidecar.read_bytes() == before and timer.standing == {}
    ran = cli("lifetime", "extend", *more.split())
    assert ran.code == 0 and missing(ran.out, "demo: extended") == []
    after = ycluster.load_state(state.files)
    assert (
        after.expires_at
        and after.expires_at >= FAR_AHEAD + 3600
        and list(timer.standing.values()) == [after.expires_at]
    )


def test_what_would_be_no_extension_is_none(cli: Cli, cache: Path, timer: Memory) -> None:
    state = made(cache, expires_at=FAR_AHEAD)
    for more in ("--from-now 1h", "--until 18:00"):
        ran = cli("lifetime", "extend", *more.split())
        assert missing(ran.out, "demo: its deadline") == missing(ran.err, "2100-01-01") == []
        assert ycluster.load_state(state.files).expires_at == FAR_AHEAD


@pytest.mark.parametrize(
    "more",
    [
        "1h --until 18:00",
        "--from-now 1h --until 18:00",
        "--until 25:00",
        "--from-now 0s",
        "--dry-run",
        "--until=",
    ],
)
def test_extend_wants_exactly_one_way_of_saying_it(cli: Cli, cache: Path, more: str) -> None:
    state = made(cache, expires_at=FAR_AHEAD)
    ran = cli("lifetime", "extend", *more.split())
    assert (ran.code, ran.out) == (2, "") and ycluster.load_state(state.files) == state


def test_set_makes_the_deadline_earlier_and_arms_what_was_disarmed(
    cli: Cli, cache: Path, timer: Memory
) -> None:
    state = made(cache, expires_at=FAR_AHEAD)
    assert cli("lifetime", "disarm").code == 0
    assert cli("lifetime", "set", "10m", "--dry-run").code == 0 and timer.standing == {}
    told(cli("lifetime", "set", "10m"), 0, "demo: set", "earlier")
    after = ycluster.load_state(state.files)
    assert after.expires_at and 0 < after.expires_at - time.time() <= 601 and not after.disarmed
    assert list(timer.standing.values()) == [after.expires_at]
    told(cli("lifetime", "set", "--until", "2100-01-01T00:00:00Z"), 0, "later", "2100-01-01")
    assert list(timer.standing.values()) == [4102444800]


@pytest.mark.parametrize("more", ["", "--until 2020-01-01T00:00:00Z", "0s", "1h --until 18:00"])
def test_set_wants_one_moment_to_come(cli: Cli, cache: Path, timer: Memory, more: str) -> None:
    state = made(cache, expires_at=FAR_AHEAD)
    assert cli("lifetime", "set", *more.split()).code == 2
    assert ycluster.load_state(state.files) == state and timer.standing == {}


# --- how it looks


def on_terminal(
    argv: list[str], home: Path, width: int, code: int | None = 0, **environ: str
) -> str:
    """What a command shows on a terminal of that width; it ends with the code, if one is given."""
    leader, follower = pty.openpty()
    subprocess.run(["stty", "cols", str(width)], stdin=follower, check=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "TERM": "xterm", **environ}
    process = subprocess.Popen(argv, stdin=follower, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    shown = b""
    try:
        while chunk := os.read(leader, 65536):
            shown += chunk
    except OSError:  # the other end is closed
        pass
    os.close(leader)
    assert process.wait() == code or code is None, shown
    return shown.decode().replace("\r\n", "\n")


# Without the VMs of other lanes' tests whose files are lost, which `list` would name first.
LIST = [sys.executable, str(ALONE), "list"]


def test_list_has_bars_and_colours_on_a_terminal_and_none_elsewhere(
    home: Path, cache: Path
) -> None:
    with_disk(cache, "late", expires_at=1_700_000_000, started_at=1_600_000_000)
    with_disk(cache, "other", expires_at=FAR_AHEAD, started_at=1)
    with_disk(cache, "unarmed")
    shown = on_terminal(LIST, home, 250)
    assert re.search(
        r"^\x1b\[31mlate +stopped +\.{10} +OVERDUE [0-9dhms ]+ .*\x1b\[m$", shown, re.MULTILINE
    )
    assert re.search(r"^\x1b\[2mother +stopped +#{6}\.{4} +\d+d .*\x1b\[m$", shown, re.MULTILINE), (
        "of 1970 to 2100"
    )
    assert re.search(r"^\x1b\[2munarmed +stopped +- ", shown, re.MULTILINE) and shown.startswith(
        "NAME "
    )
    plain = [on_terminal(LIST, home, 250, NO_COLOR="1"), on_terminal(LIST, home, 250, TERM="dumb")]
    assert plain == [re.sub(r"\x1b\[\d*m", "", shown)] * 2
    piped = subprocess.run(LIST, env={"HOME": str(home)}, capture_output=True, text=True).stdout
    assert "\x1b" not in piped and "#" not in piped and "OVERDUE" in piped


def test_list_tells_what_nothing_will_end(
    cli: Cli, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No budget is not as no VM, and a deadline without a timer not as one with it. (20.15)"""
    made(cache, "armed", expires_at=FAR_AHEAD)
    assert cli("lifetime", "arm", "--name", "armed").code == 0
    made(cache, "lost", expires_at=FAR_AHEAD, timers=(ArmedTimer("memory", "gone", FAR_AHEAD),))
    made(cache, "bare", lifetime="")
    made(cache, "off", expires_at=FAR_AHEAD, timers=(ArmedTimer("none", "", FAR_AHEAD),))

    def left(state: str) -> dict[str, str]:
        monkeypatch.setattr(ycluster, "vm_status", lambda host, files: state)
        rows = [re.split(r"  +", line) for line in cli("list").out.splitlines()]
        return {row[0]: row[2] for row in rows[1:]}

    running = left("running")
    assert (running["bare"], running["off"]) == ("no limit", "disarmed")
    assert running["lost"] == f"{running['armed']} (NO TIMER)"
    assert [left(state)["bare"] for state in ("paused", "stopped")] == ["no limit", "-"]
    shown = json.loads(cli("list", "-o", "json").out)["clusters"]
    assert {one["name"]: one["armed"] for one in shown} == {
        "armed": True,
        "bare": False,
        "lost": False,
        "off": False,
    }
    assert "(NO TIMER)" in cli("status", "--name", "lost").out


def test_list_names_what_can_not_be_read(cli: Cli, cache: Path, home: Path) -> None:
    """Also where that is all there is; to programs by a warning, as its fields are unknown. (25)"""
    (cache / "broken.json").write_text("{")
    ran = cli("list")
    assert [line.split()[:2] for line in ran.out.splitlines()[1:]] == [["broken", "unreadable"]]
    assert "no clusters" not in ran.err and missing(ran.err, f"{cache}/broken.json:") == []
    made(cache, "other", context="other")
    assert [row[:2] for row in listed(home, 250)][-2:] == [
        ["broken", "unreadable"],
        ["other", "stopped"],
    ]
    shown = json.loads(cli("list", "-o", "json").out)
    assert [one["name"] for one in shown["clusters"]] == ["other"]


def test_the_default_context_is_not_said_to_have_been_typed(cli: Cli, cache: Path) -> None:
    """(25)"""
    for name in ("a", "b"):
        made(cache, name, context=name)
    told(cli("start"), 4, "the default context, local;", "--name a", "--name b")
    told(cli("start", "--context", "prod"), 4, "with the context prod;")


def test_the_ssh_command_can_be_printed(cli: Cli, cache: Path, tmp_path: Path) -> None:
    """For a shell, which runs what `ssh` would; nothing is run, and the cluster may be off. (25)"""
    state = made(cache, "my-dev", ssh_port=2299)
    assert missing(cli("status").out, "ycluster ssh my-dev") == []
    assert "IdentityFile" not in cli("status").out
    for words, command in (
        ([], []),
        (["my-dev"], []),
        (["--name", "my-dev", "--", "echo", "a b"], ["echo 'a b'"]),
    ):
        ran = cli("ssh", "--print", *words)
        assert (ran.code, ran.err, len(ran.out.splitlines())) == (0, "", 1)
        assert shlex.split(ran.out) == ycluster.ssh_argv(state, *command)


@pytest.fixture
def bootable(cache: Path, monkeypatch: pytest.MonkeyPatch) -> State:
    """A cluster that has expired, on a host on which nothing can be armed."""
    monkeypatch.setattr(ycluster.Host, "which", lambda self, program: "/bin/true")
    monkeypatch.setattr(ycluster, "TIMERS", (Memory("memory", [], unusable="no daemon"),))
    fields = {"image": "/i", "started_at": 5, "ssh_port": 0, "reaped": ended()}
    state = made(cache, **fields)
    state.files.disk.touch()
    return state


@pytest.mark.parametrize("suspended", [False, True])
def test_a_start_that_is_refused_forgets_nothing(
    cli: Cli, bootable: State, suspended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For want of a timer; and no deadline is said to be saved, as none is. (25)"""
    if suspended:
        bootable.files.memory.touch()
        kept = ycluster.Suspended(int(NOW), packed="", digest="", fits={})
        ycluster.save_state(ycluster.replace(bootable, suspended=kept))
        monkeypatch.setattr(ycluster, "memory_fault", lambda host, state: "")
    before = ycluster.load_state(bootable.files)
    ran = cli("start")
    told(ran, 5, "no timer can be armed", "memory: no daemon", "YCLUSTER_TIMER")
    assert missing(ran.err, "is saved") == ["is saved"]
    after = ycluster.load_state(bootable.files)
    assert (after.reaped, after.started_at) == (before.reaped, before.started_at)
    assert (after.expires_at, after.suspended is not None) == (None, suspended)


def test_a_resume_that_is_refused_forgets_nothing(
    cli: Cli, bootable: State, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(25)"""
    stand_in(processes, bootable.files)
    monkeypatch.setattr(ycluster, "vm_status", lambda host, files: "paused")
    paused = ycluster.save_state(ycluster.replace(bootable, reaped=ended(action="pause")))
    told(cli("resume"), 5, "no timer can be armed")
    assert ycluster.load_state(paused.files) == paused
    assert re.search("(?m)^state: +paused 35m ago by its budget$", cli("status").out)


def test_a_teardown_is_told_of_when_the_log_has_just_become_full(
    host: Clocked, home: Path, cache: Path, timer: Memory, cli: Cli
) -> None:
    state = made(cache, expires_at=int(NOW) - 5, on_expiry="teardown", ending="teardown")
    ycluster.reap(host, state.files, by="hand")
    assert "torn down" in cli("status", "--name", "demo").err
    log = home / ".local/state/ycluster/events.jsonl"
    log.rename(log.with_name("events.1.jsonl"))
    assert "torn down" in cli("status", "--name", "demo").err


def test_watch_all_says_what_it_watches_whenever_that_changes(
    host: Clocked, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(25)"""

    class Enough(Exception):
        pass

    def another(cache_dir: Path) -> Path:
        cache_dir.mkdir(mode=0o700, parents=True)
        return cache_dir

    steps = iter(
        [
            lambda: made(cache, "a", expires_at=SOON, started_at=1),
            lambda: made(cache, "b", context="b"),
            lambda: made(another(host.sibling_home()), "a", expires_at=SOON + 9, started_at=1),
            lambda: None,
            lambda: None,
            lambda: setattr(host, "time", SOON + 1),
        ]
    )

    def sleep(seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            raise Enough
        step()

    monkeypatch.setattr(host, "sleep", sleep)
    with pytest.raises(Enough):
        ycluster.watch_all(host)
    lines = [line for line in host.log.getvalue().splitlines() if "watching" in line]
    until = ycluster.local_time(SOON)
    assert [line.partition(" watching ")[2] for line in lines] == [
        "0 clusters; no deadline is set",
        f"1 cluster; the next deadline is that of a, at {until}",
        f"2 clusters; the next deadline is that of a, at {until}",
        f"3 clusters; the next deadline is that of a, at {until}",
        f"3 clusters; the next deadline is that of a, at {ycluster.local_time(SOON + 9)}",
    ]


def ended(**fields: Any) -> Reaped:
    """An expiry of 35 minutes ago."""
    values = {"action": "stop", "by": "systemd", "how": "guest-shutdown", **fields}
    return Reaped(at=int(time.time()) - 35 * 60 - 5, **values)


def listed(home: Path, width: int) -> list[list[str]]:
    """The rows of `list` on a terminal of that width, in which nothing wraps, as their cells."""
    lines = on_terminal(LIST, home, width, NO_COLOR="1").splitlines()
    assert width < 20 or all(len(line) <= width for line in lines), lines
    return [re.split("  +", line) for line in lines]


@pytest.mark.parametrize(
    "width, headings",
    [
        (40, "NAME STATE LEFT"),
        (80, "NAME STATE LEFT ON_EXPIRY SSH PORTS"),
        (105, "NAME STATE LEFT ON_EXPIRY SSH PORTS CACHEDIR"),
        (120, "NAME STATE LEFT CONTEXT ON_EXPIRY SSH PORTS CACHEDIR"),
        (250, "NAME STATE LEFT CONTEXT ON_EXPIRY SSH PORTS CACHEDIR"),
    ],
)
def test_a_narrow_terminal_shows_what_matters_most_and_wraps_nothing(
    width: int, headings: str
) -> None:
    """The time bar and CONTEXT go first, LEFT and STATE never. (25)"""
    with tempfile.TemporaryDirectory(prefix="y", dir="/tmp") as short:
        cache = Path(short, ".local/share/ycluster")
        cache.mkdir(parents=True)
        with_disk(cache, "dev", context="another-context", reaped=ended())
        now = int(time.time())
        with_disk(cache, "old", expires_at=now - 3600, started_at=now - 36000)
        head, dev, old = listed(Path(short), width)
    assert [word.replace(" ", "_") for word in head] == headings.split()
    assert dev[:3] == ["dev", "stopped", "35m ago by its budget"]
    bar = [".........."] * (width == 250)
    assert old[: 2 + len(bar)] == ["old", "stopped", *bar]
    assert old[2 + len(bar)].startswith("OVERDUE 1h")


@pytest.mark.parametrize("width", [60, 40, 20, 1])
def test_where_even_left_and_state_do_not_fit_the_widest_column_is_cut(
    home: Path, cache: Path, width: int
) -> None:
    """(25)"""
    name = "dev" if width == 1 else "a-cluster-" * 5
    with_disk(cache, name, expires_at=FAR_AHEAD, started_at=1)
    head, row = listed(home, width)
    assert head == ["NAME", "STATE", "LEFT"] and len(row) == 3
    assert name.startswith(row[0].rstrip(".")) and (row[1] == "stopped" or width < 40)


def test_list_leaves_out_a_context_that_says_nothing_and_only_for_people(
    home: Path, cache: Path, cli: Cli
) -> None:
    """(25)"""
    with_disk(cache, "a", context="a")
    with_disk(cache, "b", context="b")
    assert "CONTEXT" not in listed(home, 250)[0] and "CONTEXT" in cli("list").out
    with_disk(cache, "c", context="d")
    assert "CONTEXT" in listed(home, 250)[0]


@pytest.mark.parametrize(
    "reaped, words",
    [
        ({}, "stopped 35m ago by its budget"),
        ({"cause": "maxIdle"}, "stopped 35m ago, unused for 30m"),
        ({"how": "was not running"}, "stopped"),
        ({"action": "pause"}, "stopped"),
    ],
    ids=["its budget", "unused", "it was off", "it was paused, and stopped by hand"],
)
def test_what_has_ended_says_how_long_ago_and_why(
    cli: Cli, cache: Path, reaped: dict[str, str], words: str
) -> None:
    """(25)"""
    made(cache, max_idle="30m", reaped=ended(**reaped))
    assert re.search(rf"(?m)^state: +{words}$", cli("status").out)
    row = re.split("  +", cli("list").out.splitlines()[1])
    assert " ".join(row[1:3]) == (words if " " in words else f"{words} -")


RED, YELLOW = r"\x1b\[31m", r"\x1b\[33m"


@pytest.mark.parametrize(
    "verb, fields, line",
    [
        ("status", {"expires_at": 1_700_000_000}, RED + r"deadline: .*OVERDUE"),
        ("lifetime status", {"expires_at": 1_700_000_000}, RED + r"deadline: .*OVERDUE"),
        ("lifetime status", {"expires_at": FAR_AHEAD}, RED + r"timer: +NONE"),
        ("status", {"expires_at": SOON, "retry_at": SOON}, RED + r"retry: "),
        ("doctor", {"expires_at": FAR_AHEAD}, RED + r"failure +demo "),
        ("doctor", {"data_disk": "nobodys"}, YELLOW + r"warning +disk "),
    ],
)
def test_what_needs_the_users_eye_is_coloured_on_a_terminal_alone(
    home: Path, cache: Path, verb: str, fields: dict[str, Any], line: str
) -> None:
    """(25)"""
    made(cache, **fields)
    if verb == "doctor":
        (cache / "nobodys.qcow2").touch()
    argv = [*LIST[:-1], *verb.split()]
    coloured = [
        shown for shown in on_terminal(argv, home, 250, code=None).splitlines() if "\x1b" in shown
    ]
    assert any(re.match(rf"{line}.*\x1b\[m$", shown) for shown in coloured), coloured
    assert all(shown.startswith("\x1b") for shown in coloured)
    assert "\x1b" not in on_terminal(argv, home, 250, code=None, NO_COLOR="1")
    env = {"HOME": str(home), "PATH": os.environ["PATH"]}
    assert "\x1b" not in subprocess.run(argv, env=env, capture_output=True, text=True).stdout


def test_status_marks_a_run_without_a_limit(cache: Path, processes: Processes, home: Path) -> None:
    """(25)"""
    state = made(cache, lifetime="", started_at=1)
    stand_in(processes, state.files)
    for verb, head in (("status", "lifetime:"), ("list", "demo")):
        shown = on_terminal([*LIST[:-1], verb], home, 250)
        assert re.search(rf"(?m)^{YELLOW}{head} .*no (budget|limit)", shown), shown


def test_status_says_how_to_get_at_it(cli: Cli, cache: Path) -> None:
    forwards = (ycluster.PortForward(80, 8080), ycluster.PortForward(6443, 6443))
    made(
        cache,
        expires_at=FAR_AHEAD,
        started_at=1,
        warn="10m",
        port_forwards=forwards,
        kubeconfig="/home/me/k config",
    )
    out = cli("status").out
    assert re.search(r"^ports: +8080->80 6443$", out, re.MULTILINE)
    assert re.search(
        r"^kubectl: +kubectl --kubeconfig '/home/me/k config' --context local get nodes$",
        out,
        re.MULTILINE,
    )
    assert re.search(r"^warning: +2099-12-31 23:50:00 UTC$", out, re.MULTILINE)
    assert json.loads(cli("status", "-o", "json").out)["warnsAt"] == "2099-12-31T23:50:00Z"


# --- doctor


def findings(cli: Cli) -> tuple[int, dict[str, dict[str, str]]]:
    ran = cli("doctor", "-o", "json")
    shown = json.loads(ran.out)
    assert shown["version"] == 1
    assert {tuple(finding) for finding in shown["findings"]} == {
        ("name", "level", "text", "remedy")
    }
    return ran.code, {finding["name"]: finding for finding in shown["findings"]}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch, processes: Processes) -> None:
    """No KVM to try; and of the processes only this test's: the same tests run beside it, on other Pythons."""
    every = ycluster.pids
    monkeypatch.setattr(ycluster, "try_kvm", lambda host: None)
    monkeypatch.setattr(
        ycluster,
        "pids",
        lambda: [process.pid for process in processes.started if process.pid in every()],
    )


def test_doctor_looks_at_the_host_and_changes_nothing(cli: Cli, home: Path, quick: None) -> None:
    code, found = findings(cli)
    assert set(found) >= {
        "vm",
        "kvm",
        "systemd",
        "at",
        "libguestfs",
        "host kernel",
        "kubectl",
        "gcloud",
        "clock",
        "clusters",
    }
    assert (code, found["clusters"]["level"]) == (
        5 if found["vm"]["level"] == "failure" else 0,
        "ok",
    )
    assert list(home.iterdir()) == []
    lines = cli("doctor").out.splitlines()
    assert [line.split()[1] for line in lines if not line.startswith(" ")][:2] == ["vm", "kvm"]


def test_doctor_names_what_is_missing_and_how_to_get_it(
    cli: Cli, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ycluster.Host, "which", lambda self, program: None)
    code, found = findings(cli)
    assert (
        code == 5
        and found["vm"]["level"] == "failure"
        and "apt-get install" in found["vm"]["remedy"]
    )
    assert found["kubectl"] == {
        "name": "kubectl", "level": "warning", "text": "missing: kubectl", "remedy": "sudo apt-get install kubernetes-client",
    }  # fmt: skip
    assert "    sudo apt-get install openssh-client qemu-system-x86 qemu-utils" in cli("doctor").out


@pytest.mark.usefixtures(quick.__name__)
def test_what_doctor_cannot_look_into_hides_no_other_finding(
    cli: Cli, cache: Path, processes: Processes, timer: Memory
) -> None:
    """It ended with an error of its own, and told nothing at all."""
    away = with_disk(cache, "away").files
    held = ycluster.try_flock(away.vm_lock)  # as another container's QEMU does
    assert held is not None
    with_disk(cache, "unguarded", expires_at=FAR_AHEAD)
    stand_in(processes, with_disk(cache, "endless", started_at=1).files)
    code, found = findings(cli)
    os.close(held)
    assert {found[name]["level"] for name in ("away", "unguarded", "endless")} == {"failure"}
    assert "can't be seen" in found["away"]["text"] and code == 5
    assert "no deadline" in found["endless"]["text"]


def test_doctor_finds_what_is_left_over(
    cli: Cli,
    cache: Path,
    quick: None,
    timer: Memory,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ycluster, "TIMERS", (ycluster.SystemdTimer(), timer))
    with_disk(cache, "unguarded", expires_at=FAR_AHEAD)
    off = (ArmedTimer("none", "", FAR_AHEAD),)
    with_disk(cache, "disarmed", expires_at=FAR_AHEAD, timers=off)
    (cache / "broken.json").write_text("{")
    gone = Files(cache, "gone")
    gone.vm_lock.touch()
    pid = processes.start("", "-pidfile", str(gone.pidfile)).pid
    units = {name: f"argv[]=python3 x.ycluster.py lifetime reap --state {cache}/{name}.json --by systemd ;"
             for name in ("gone", "unguarded", "broken")}  # fmt: skip

    def attempt(host: ycluster.Host, argv: list[str], *, timeout: float) -> str:
        if "list-units" in argv:
            return "".join(
                f"ycluster-reap-{name}.timer loaded\n\n" for name in (*units, "somebodys")
            )
        return units.get(argv[-1].rpartition("-")[2], "")

    monkeypatch.setattr(ycluster.Host, "attempt", attempt)
    code, found = findings(cli)
    assert code == 5 and not {"disarmed", "clusters"} & set(found)
    assert (found["unguarded"]["level"], found["unguarded"]["remedy"]) == (
        "failure",
        "ycluster lifetime arm --name unguarded",
    )
    assert found["broken"]["level"] == "failure" and "JSON" in found["broken"]["text"]
    remedy = f"ycluster stop --state {gone.sidecar}"  # which shuts its guest down
    assert (found["vm"]["text"].split()[0], found["vm"]["remedy"]) == ("gone", remedy)
    assert str(pid) in found["vm"]["text"]
    # Not that of a sidecar which is there, and can't be read: it may guard.
    stale = "ycluster-reap-gone.timer ycluster-reap-unguarded.timer"
    assert found["timers"]["remedy"] == f"systemctl --user stop {stale}"


def test_doctor_takes_no_disk_that_may_hold_data_for_a_leftover(
    cli: Cli, cache: Path, tmp_path: Path, quick: None
) -> None:
    """A dataDisk of any cluster, wherever it lies; none at all while a state can't be read. (20.24)"""
    (tmp_path / "link.qcow2").symlink_to(cache / "linked.qcow2")
    made(cache, "a", data_disk=str(cache / "data.qcow2"))
    made(cache, "b", data_disk=str(tmp_path / "link.qcow2"))
    for name in ("a", "data", "linked", "nobody's"):
        (cache / f"{name}.qcow2").touch()
    found = json.loads(cli("doctor", "-o", "json").out)["findings"]
    [disk] = [finding for finding in found if finding["name"] == "disk"]
    assert disk["text"].startswith(f"{cache}/nobody's.qcow2:")
    nobodys = shlex.quote(f"{cache}/nobody's.qcow2")
    assert disk["remedy"].split("   ")[0] == f"ycluster import {nobodys} -c DIR"
    (cache / "broken.json").write_text("{")
    assert "disk" not in findings(cli)[1]


def test_no_remedy_of_doctors_removes_what_may_hold_data(
    cli: Cli, cache: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agents run remedies as they stand. (20.24)"""
    made(cache, "a")
    (cache / "nobodys.qcow2").touch()
    full = os.statvfs_result((4096, 4096, 100, 1, 1, 100, 1, 1, 0, 255))
    monkeypatch.setattr("ycluster.os.statvfs", lambda place: full)
    _, first = findings(cli)
    (cache / "broken.json").write_text("{")
    _, second = findings(cli)
    assert {"room", "disk"} <= set(first) and "broken" in second
    for finding in [*first.values(), *second.values()]:
        words = set(re.findall(r"[a-z]+", finding["remedy"]))
        assert not words & {"teardown", "rm", "remove", "delete", "kill"}, finding


def test_doctor_passes_by_a_vm_whose_files_it_cannot_see(
    cli: Cli, tmp_path: Path, quick: None, processes: Processes
) -> None:
    """As another user's, behind a directory that is closed to us; here by a name that no file can have, since root sees all."""
    processes.start("", "-pidfile", str(tmp_path / ("x" * 300 + ".pid")))
    assert findings(cli)[1]["clusters"]["level"] == "ok"


def test_doctor_tells_who_has_the_port_of_a_stopped_cluster(
    cli: Cli, cache: Path, quick: None, processes: Processes
) -> None:
    code = "import socket; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); open(sys.argv[1], 'w').write(str(s.getsockname()[1]))"
    processes.start("import sys; " + code, str(cache / "port"))
    port = int((cache / "port").read_text())
    with_disk(cache, ssh_port=port)
    _, found = findings(cli)
    assert found["demo"]["level"] == "warning"
    assert missing(found["demo"]["text"], f"port {port}: python") == []


def test_every_verb_has_an_example(cli: Cli) -> None:
    """From the parser's own words, so that none is forgotten."""
    verbs = re.findall(r"^    ([a-z][-a-z]+) ", cli("--help").out, re.MULTILINE)
    inner = {"lifetime", "config"} & set(verbs)
    words = [(verb,) for verb in verbs if verb not in inner]
    words += [
        (verb, name)
        for verb in sorted(inner)
        for name in re.findall(r"^    ([a-z][-a-z]+) ", cli(verb, "--help").out, re.MULTILINE)
    ]
    assert {"provision", "doctor"} <= set(verbs) and ("lifetime", "extend") in words
    for argv in words:
        assert re.search(
            rf"example:\s.*ycluster\s+{' '.join(argv)}", cli(*argv, "--help").out.replace("\n", " ")
        ), argv


# --- for scripts that are written for the sibling


@pytest.mark.parametrize(
    "left, remaining", [(3600, "1h0m0s"), (0, "EXPIRED (0s ago)"), (-90, "EXPIRED (1m30s ago)")]
)
def test_the_deadline_is_shown_in_the_lines_of_the_sibling_too(left: int, remaining: str) -> None:
    """(28)"""
    state = State(name="demo", cache_dir="/c", lifetime="8h", expires_at=int(NOW) + left)
    lines = ycluster._lines_for_scripts(state, NOW + 0.5)
    assert [line.cells for line in lines] == [
        ("maxRun:", "8h"),
        ("onExpiry:", "stop"),
        ("expiresAt:", ycluster.format_time(int(NOW) + left)),
        ("remaining:", remaining),
    ]


def test_lifetime_status_has_these_lines_at_their_start(cli: Cli, cache: Path) -> None:
    """(28)"""
    made(cache, expires_at=FAR_AHEAD)
    lines = [line.split() for line in cli("lifetime", "status", "demo").out.splitlines()]
    assert ["expiresAt:", "2100-01-01T00:00:00Z"] in lines and ["maxRun:", "8h"] in lines


def test_a_cluster_is_found_where_the_sibling_was_told_to_keep_it(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(28)"""
    (tmp_path / "theirs").mkdir(mode=0o700)
    made(tmp_path / "theirs", "b")
    assert cli("list", "-q").out == ""
    monkeypatch.setenv("Y_CLUSTER_QEMU_CACHE_DIR", str(tmp_path / "theirs"))
    assert cli("-v", "list", "-q").out == cli("list", "-q", "-v").out == "b\n"


def test_a_new_cluster_is_kept_where_the_sibling_is_told_to(host: Clocked, cache: Path) -> None:
    theirs = host.home() / "theirs"
    assert ycluster.default_cache_dir(host, "new") == cache
    host.environ["Y_CLUSTER_QEMU_CACHE_DIR"] = str(theirs)
    assert ycluster.default_cache_dir(host, "new") == theirs
    made(cache, "old")
    assert ycluster.default_cache_dir(host, "old") == theirs, "else their teardown would end ours"
    del host.environ["Y_CLUSTER_QEMU_CACHE_DIR"]
    assert ycluster.default_cache_dir(host, "old") == cache, "where it is"


@pytest.mark.parametrize("made_by", ["default", "variable"])
def test_a_cluster_that_is_elsewhere_by_now_is_not_told_as_none(
    cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_by: str
) -> None:
    """`teardown -c` said "nothing", and exited with 0. Which is meant is not guessed. (26.8)"""
    theirs, name = tmp_path / "theirs", "Y_CLUSTER_QEMU_CACHE_DIR"
    theirs.mkdir(mode=0o700)
    place = cache if made_by == "default" else theirs
    made(place, "envt")
    ycluster.remember_cache_dir(Clocked(Path(os.environ["HOME"])), place)
    config = tmp_path / "y-cluster-provision.yaml"
    config.write_text("name: envt\nlifetime: {maxRun: 8h}\n")
    if made_by == "default":
        monkeypatch.setenv(name, str(theirs))
    for verb in ("teardown", "stop", "status", "start", "lifetime arm"):
        ran = cli(*verb.split(), "-c", tmp_path)
        if made_by == "default":
            told(ran, 4, "elsewhere there is one of this name", f"--state {place}/envt.json")
        elif verb == "teardown":  # of a folder that another config may name
            assert ran.code == 0 and missing(ran.err, "elsewhere", f"--state {place}/envt") == []
        else:
            assert ran.code == 4 and missing(ran.err, f"--state {place}/envt.json") == []
    if made_by == "default":
        (theirs / "envt.lock").touch()
        assert cli("teardown", "-c", tmp_path).code == 0, "there is something of it here"
    config.write_text(f"name: envt\ncacheDir: {tmp_path}/own\n")
    assert cli("teardown", "-c", tmp_path).code == 0, "it says where it is"
    assert (place / "envt.json").exists()


def test_no_cluster_is_ended_by_the_default_name_of_an_empty_config(
    cli: Cli, cache: Path, tmp_path: Path
) -> None:
    """A file that was cut off is empty, too."""
    made(cache, "y-cluster")
    config = tmp_path / "y-cluster-provision.yaml"
    for content in (b"", b"\n", b"# mine\n---\n", b"{}\n"):
        config.write_bytes(content)
        for verb in ("teardown", "stop"):
            told(cli(verb, "-c", tmp_path), 3, "has no key in it", "--name")
        ran = cli("config", "check", "-c", tmp_path)
        assert ran.code == 0 and missing(ran.err, "has no key in it") == []
    assert (cache / "y-cluster.json").exists()


def test_nobody_is_to_close_a_folder_that_all_share(cli: Cli, tmp_path: Path) -> None:
    """`chmod go-w /tmp` would break the host."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    config = tmp_path / "y-cluster-provision.yaml"
    config.write_text(f"name: demo\ncacheDir: {shared}\n")
    ran = cli("config", "check", "-c", tmp_path)
    told(ran, 3, f"{config}:2:11: cacheDir: ", f"{shared}/ycluster-")
    assert "chmod" not in ran.err


def test_clusters_of_one_name_are_told_apart_by_words_that_work(
    cli: Cli, cache: Path, tmp_path: Path
) -> None:
    """A config need not be there any more, so no `-c` helps. (26.7)"""
    other = tmp_path / "an other"
    other.mkdir(mode=0o700)
    for place in (cache, other):
        made(place, "twin")
        (place / "twin.qcow2").touch()
    ycluster.remember_cache_dir(Clocked(Path(os.environ["HOME"])), other)
    for argv in (("status", "twin"), ("lifetime", "status", "--name", "twin"), ("teardown",)):
        err = cli(*argv).err
        ways = re.findall(r"(--state .*\.json'?)   # in ", err, re.MULTILINE)
        assert len(ways) == 2, err
        for way, place in zip(ways, sorted((cache, other))):
            shown = json.loads(cli("status", *shlex.split(way), "-o", "json").out)
            assert shown["name"] == "twin" and Path(shown["cacheDir"]).samefile(place)
    for way in ways:
        assert cli("teardown", *shlex.split(way)).code == 0
    assert not any((place / "twin.qcow2").exists() for place in (cache, other))
