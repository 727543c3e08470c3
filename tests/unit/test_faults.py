"""Faults from outside, through the command line: what is broken, odd, stale or foreign, and what is promised all the same."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import pytest
import test_histories
from unit_support import (
    GIVES_WAY,
    IMPORTS,
    LAUNCHER,
    NOW,
    PROGRAM,
    Cli,
    Clocked,
    Memory,
    Processes,
    Ran,
    events,
    folded,
    made,
    missing,
    stand_in,
    told,
    tree,
    wait_for,
)

import ycluster
from ycluster import ArmedTimer, Files, Host, PortForward, Reaped, State, YclusterError

LONG_AGO = ycluster.parse_time("2020-01-01T00:00:00Z")
FAR_AHEAD = ycluster.parse_time("2100-01-01T00:00:00Z")


def enough(host: Host, seconds: float) -> None:
    """In the place of the first sleep of what would wait for hours."""
    raise ycluster.Interrupted("enough")


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """The power doesn't fail here, and hundreds of saves take their time."""
    monkeypatch.setattr("ycluster.os.fsync", lambda fd: None)


@pytest.fixture
def no_qemu(monkeypatch: pytest.MonkeyPatch) -> None:
    """provision and start do everything but fetch an image, run QEMU and wait for it."""
    monkeypatch.setattr(Host, "need", lambda self, programs: None)
    monkeypatch.setattr(ycluster, "fetch_image", lambda *args: Path("/image"))
    monkeypatch.setattr(
        ycluster,
        "make_disk",
        lambda host, state, image: ycluster.write_file(state.files.disk, b"disk"),
    )
    monkeypatch.setattr(ycluster, "_check_ports", lambda host, state: None)
    monkeypatch.setattr(ycluster, "launch", lambda host, state: state)
    monkeypatch.setattr(ycluster, "wait_ready", lambda *args, **options: None)


@pytest.fixture
def no_watcher_left(tmp_path: Path) -> Iterator[None]:
    """Kills, in the end, whatever runs a private copy below tmp_path."""
    yield
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().split(b"\0")
            if any(
                word.startswith(os.fsencode(tmp_path)) and word.endswith(b".ycluster.py")
                for word in words
            ):
                os.kill(int(path.parent.name), signal.SIGKILL)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], Path]]:
    """What would be started as a process of its own, and is not: argv and log."""
    found: list[tuple[list[str], Path]] = []
    monkeypatch.setattr(Host, "spawn", lambda self, argv, log: found.append(([*argv], log)))
    return found


@pytest.fixture
def schedulers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH with a systemd and an at(1) that take everything and do nothing: `argv`, `env` and `stdin` keep what
    they were given, NUL-separated."""
    path = tmp_path / "schedulers"
    path.mkdir()
    keep = f'#!/bin/sh\nprintf \'%s\\0\' "$0" "$@" >>{path}/argv\n/usr/bin/env -0 >>{path}/env\n'
    answers = {
        "systemd-run": "",
        "systemctl": "echo SubState=waiting",
        "loginctl": "echo yes",
        "at": f"[ $1 != -c ] || exec /bin/cat {path}/stdin\n/bin/cat >{path}/stdin; echo job 7 at noon >&2",
        "atq": "printf '7\\tnoon\\n'",
        "atrm": "",
    }
    for name, answer in answers.items():
        (path / name).write_text(keep + answer + "\n")
        (path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.setattr(ycluster.AtTimer, "daemon_runs", True)
    return path


# --- a sidecar that can't be read: refused by name with a remedy, and no obstacle to the others

FULL = ycluster.encode_state(
    State(
        name="demo", cache_dir="/c", lifetime="8h", expires_at=FAR_AHEAD, started_at=LONG_AGO, retry_at=FAR_AHEAD,
        port_forwards=(PortForward(host=6443, guest=6443),), k3s={"Version": "v1", "Install": "none"}, image="/i",
        auto_ports=(22,), timers=(ArmedTimer("at", "7", FAR_AHEAD),), reaped=Reaped(LONG_AGO, "pause", "at", "QMP stop"),
        extra={"theirs": [1, {"a": "\u00e9"}]},
    )
).rstrip()  # fmt: skip


def altered(**fields: Any) -> str:
    return json.dumps({**json.loads(FULL), **fields})


TEXTS = {
    "empty": "",
    "blank": " \n",
    "BOM": "\ufeff" + FULL,
    "UTF-16": FULL.encode("utf-16"),
    "Latin-1": FULL.encode().replace(b"v1", b"\xe9"),
    "NULs": bytes(len(FULL)),
    "10 MB of junk": b"junk" * 2_500_000,
    "10 MB of brackets": b"[" * 10_000_000,
    "1 MB in a field": altered(expiresAt="9" * 1_000_000),
    "1 MB in its version": altered(version="9" * 1_000_000),
    "two of them": FULL + FULL,
    "another's": altered(name="other"),
    "version 2": altered(version=2),
    "no version": json.dumps(
        {key: value for key, value in json.loads(FULL).items() if key != "version"}
    ),
    "wrong types": altered(portForwards={"Host": 1}, timer=[], k3s="v1", sshPort=22),
    "year 9999": altered(expiresAt="9999-12-31T23:59:59Z"),
    "year 0": altered(expiresAt="0000-01-01T00:00:00Z"),
    "negative": altered(expiresAt="-2026-11-22T12:00:00Z"),
    "before 1970": altered(expiresAt="1969-12-31T23:59:59Z"),
    "no zone": altered(expiresAt="2026-11-22T12:00:00"),
    "a number": altered(expiresAt=1763800000),
    "a huge number": altered(expiresAt=10**400),
    "NaN": altered(expiresAt=float("nan")),
    "never": altered(expiresAt="never"),
}
PLACED: dict[str, Callable[[Path], object]] = {
    "a directory": lambda path: (path / "inside").mkdir(parents=True),
    "unreadable": lambda path: path.symlink_to("/proc/self/mem"),  # an I/O error, for root, too
    "a loop of links": lambda path: path.symlink_to(path),
    "a dangling link": lambda path: path.symlink_to("/nonexistent/demo.json"),
}
BAD = [*TEXTS, *PLACED]


def spoil(path: Path, bad: str) -> None:
    if bad in PLACED:
        PLACED[bad](path)
    else:
        text = TEXTS[bad]
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def test_a_sidecar_that_is_cut_off_anywhere_is_refused(cache: Path) -> None:
    files = Files(cache, "demo")
    for length in range(len(FULL)):
        with pytest.raises(ycluster.StateError) as caught:
            ycluster.decode_state(FULL[:length], files.sidecar)
        assert str(files.sidecar) in str(caught.value) and str(files.sidecar) in caught.value.hint
    assert ycluster.decode_state(FULL, files.sidecar).extra == {"theirs": [1, {"a": "\u00e9"}]}


@pytest.mark.parametrize(
    "verb", ["status", "stop", "teardown demo", "lifetime reap", "lifetime extend 1h"]
)
@pytest.mark.parametrize("part", [0.01, 0.2, 0.5, 0.8, 0.99])
def test_a_verb_refuses_a_sidecar_that_is_cut_off(
    cli: Cli, cache: Path, verb: str, part: float
) -> None:
    sidecar = Files(cache, "demo").sidecar
    sidecar.write_text(FULL[: int(len(FULL) * part)])
    before = tree(cache)
    told(cli(*verb.split()), 4, sidecar, "JSON", "move it away")
    assert {**tree(cache), "demo.lock": None} == {**before, "demo.lock": None}


@pytest.mark.parametrize("bad", BAD)
def test_a_sidecar_that_cannot_be_read_is_refused_by_name_with_a_remedy(
    cli: Cli, cache: Path, bad: str
) -> None:
    sidecar = Files(cache, "demo").sidecar
    spoil(sidecar, bad)
    before = tree(cache)
    for argv in (
        "status --name demo",
        "stop --name demo",
        "teardown demo",
        f"lifetime reap --state {sidecar}",
    ):
        ran = cli(*argv.split())
        told(ran, 4, sidecar)
        lines = [line for line in ran.err.splitlines() if "warning: " not in line]
        assert 2 <= len(lines) <= 3 and lines[1].startswith("  "), (
            "what went wrong, and below it what to do"
        )
    assert {**tree(cache), "demo.lock": None} == {**before, "demo.lock": None}


@pytest.mark.parametrize("bad", BAD)
def test_a_bad_sidecar_hides_no_other_and_keeps_nothing_from_reaping_it(
    cli: Cli, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch, started: list[tuple[list[str], Path]], bad: str
) -> None:  # fmt: skip
    monkeypatch.setattr(Host, "sleep", enough)
    sidecar = Files(cache, "demo").sidecar
    spoil(sidecar, bad)
    made(cache, "other")
    for how, code in (
        ("lifetime reap --all", 1),
        ("resume --name other", 1),
        ("lifetime watch --all", 130),
    ):
        others = [made(cache, name, expires_at=LONG_AGO) for name in ("a", "z")]
        told(cli(*how.split()), code, sidecar)
        deadlines = [ycluster.load_state(state.files).expires_at for state in others]
        if "resume" in how:  # which has it done
            assert [log for _, log in started] == [state.files.log for state in others]
        else:
            assert deadlines == [None, None], how
    ran = cli("list", "-o", "json")
    assert [cluster["name"] for cluster in json.loads(ran.out)["clusters"]] == ["a", "other", "z"]
    told(Ran(ran.code, "", ran.err), 0, sidecar)


class Buggy(Memory):
    def armed(self, host: Host, files: Files, timer: ArmedTimer) -> bool:
        if files.name == "b":
            raise LookupError("a bug")
        return super().armed(host, files, timer)


@pytest.mark.parametrize("fault", ["a lock that leads nowhere", "a bug"])
def test_whatever_is_wrong_with_one_cluster_keeps_no_other_from_being_reaped(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    monkeypatch.setattr(Host, "sleep", enough)
    monkeypatch.setattr(ycluster, "TIMERS", (Buggy("memory", []),))
    deadline = FAR_AHEAD if fault == "a bug" else LONG_AGO
    armed = (ArmedTimer("memory", "1", deadline),)
    bad = made(cache, "b", expires_at=deadline, timers=armed, timer_choice="watcher")
    if fault != "a bug":
        bad.files.lock.symlink_to(cache / "nowhere" / "lock")
    made(cache, "other")
    for how, code in (
        ("lifetime reap --all", 1),
        ("resume --name other", 1),
        ("lifetime watch --all", 130),
    ):
        others = [
            made(cache, name, expires_at=LONG_AGO, timer_choice="watcher") for name in ("a", "z")
        ]
        told(cli(*how.split()), code, "b: ")
        for state in others:  # the next command has them reaped, the others do it themselves
            wait_for(how, lambda state=state: not ycluster.load_state(state.files).expires_at)
            wait_for("its end", lambda state=state: not ycluster.flock_held(state.files.lock))
    assert ycluster.load_state(bad.files) == bad


# --- another at work meanwhile


def test_the_next_command_leaves_a_busy_cluster_to_whoever_works_on_it(
    host: Clocked, cache: Path, timer: Memory, started: list[tuple[list[str], Path]]
) -> None:
    """Or commands in a row would pile up processes that wait for one lock. (20.18)"""
    busy, own, other = [made(cache, name, expires_at=int(NOW) - 5) for name in ("busy", "own", "z")]
    lock = ycluster.try_flock(busy.files.lock)
    assert lock is not None
    ycluster.hand_over(host, spare=own.files)
    os.close(lock)
    assert [log for _, log in started] == [other.files.log] and host.time == NOW
    ycluster.hand_over(host, spare=own.files)
    assert [log for _, log in started[1:]] == [busy.files.log, other.files.log]


def test_who_makes_a_cluster_has_others_reaped_too(
    cli: Cli, cache: Path, tmp_path: Path, no_qemu: None, timer: Memory, started: list[tuple[list[str], Path]]
) -> None:  # fmt: skip
    (tmp_path / "y-cluster-provision.yaml").write_text(
        "name: demo\ncontext: own\nk3s: {install: none}\n"
    )
    other = made(cache, "other", expires_at=LONG_AGO)
    assert cli("provision", "-c", tmp_path).code == 0
    assert [log for _, log in started] == [other.files.log]


def test_what_is_handed_over_is_not_what_the_verb_shows(
    host: Clocked, cache: Path, timer: Memory, started: list[object]
) -> None:
    """`stop -o json` of one whose state can't be read showed the other."""
    made(cache, expires_at=int(NOW) - 5)
    ycluster.hand_over(host, spare=Files(cache, "own"))
    assert len(started) == 1 and host.worked_on is None


def test_nothing_is_left_in_the_folder_of_a_cluster_that_is_torn_down_meanwhile(
    host: Clocked,
    cache: Path,
    timer: Memory,
    started: list[object],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its copy of the program stood in the way of the next provision of its name."""
    made(cache, expires_at=int(NOW) - 5)
    needs_reap = ycluster._needs_reap

    def torn_down(host: Host, state: State) -> bool:
        due = needs_reap(host, state)
        ycluster.teardown(host, state.files)
        return due

    monkeypatch.setattr(ycluster, "_needs_reap", torn_down)
    ycluster.hand_over(host, spare=Files(cache, "own"))
    assert started == [] and [path.name for path in cache.iterdir()] == []


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"expires_at": int(NOW) - 5, "on_expiry": "pause"}, "pause is overdue"),
        ({"expires_at": int(NOW) + 60, "warn": "10m"}, "warned"),
        ({"expires_at": FAR_AHEAD}, "no timer"),
    ],
)
def test_what_is_handed_over_is_said_with_the_place_of_its_log(
    host: Clocked, cache: Path, timer: Memory, started: list[tuple[list[str], Path]], fields: dict[str, Any], words: str
) -> None:  # fmt: skip
    """A warning's command, which may take a minute, holds nobody else up either. (20.23)"""
    state = made(cache, **fields)
    ycluster.hand_over(host, spare=Files(cache, "own"))
    [(argv, log)] = started
    assert missing(host.log.getvalue(), "demo:", words, log) == [] and log == state.files.log
    assert str(state.files.launcher) in argv and str(state.files.sidecar) in argv
    assert state.files.program.exists() and ycluster.load_state(state.files) == state


def test_a_reap_that_is_handed_over_needs_no_log_and_no_new_copy(
    host: Clocked, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its disk is full, or read-only; whether it is reaped does not depend on that. (20.18)"""
    state = made(cache, expires_at=int(NOW) - 5)
    ran = cache / "ran"
    state.files.launcher.write_text(f": >'{ran}'")  # that of an older copy
    state.files.log.mkdir()

    def full(host: Host, files: Files) -> None:
        raise OSError(28, "No space left on device")

    spawn, logs = Host.spawn, []

    def noted(self: Host, argv: list[str], log: Path) -> subprocess.Popen[bytes]:
        logs.append(log)
        return spawn(self, argv, log)

    monkeypatch.setattr(ycluster, "install_program", full)
    monkeypatch.setattr(Host, "spawn", noted)
    ycluster.hand_over(host, spare=Files(cache, "own"))
    wait_for("the reap", ran.exists)
    assert len(logs) == 1 and "warning" not in host.log.getvalue()
    state.files.launcher.unlink()
    ycluster.hand_over(host, spare=Files(cache, "own"))
    assert len(logs) == 1 and missing(host.log.getvalue(), "warning: demo:", "No space") == []


def test_watching_all_waits_for_no_cluster_that_is_busy(
    host: Clocked, cache: Path, timer: Memory
) -> None:
    busy, other = [made(cache, name, expires_at=int(NOW) - 5) for name in ("busy", "other")]
    lock = ycluster.try_flock(busy.files.lock)
    assert lock is not None
    assert ycluster.sweep(host, by="watch --all") == ["busy"] and host.time < NOW + 1
    assert ycluster.load_state(other.files).reaped is not None
    # Whoever asks for all of them has the patience that they would have for one.
    assert ycluster.sweep(host, by="hand", every=True) == ["busy"]
    assert host.time >= NOW + ycluster.LOCK_TIMEOUT
    assert ycluster.load_state(busy.files) == busy
    os.close(lock)


@pytest.mark.parametrize("every", [False, True], ids=["watch --all", "reap --all"])
def test_a_lock_that_is_held_without_end_keeps_no_vm_from_its_end_and_no_other_waiting(
    host: Clocked, cache: Path, timer: Memory, processes: Processes, every: bool
) -> None:
    """Where nothing else would end it: cron runs `reap --all`, or `watch --all` is the only timer. (21.2.2)"""
    states = [made(cache, name, expires_at=int(NOW) - 5) for name in ("busy", "other")]
    vms = [stand_in(processes, state.files) for state in states]
    lock = ycluster.try_flock(states[0].files.lock)
    assert lock is not None
    ended = []
    halt = ycluster._halt

    def halts(host: Host, state: State) -> str:
        ended.append((state.name, host.now() - NOW))
        return halt(host, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ycluster, "_halt", halts)
        patch.setitem(vars(ycluster)["END_BY"], "stop", halts)
        assert ycluster.sweep(host, by="x", every=every) == ["busy"]
        ycluster.sweep(host, by="x")  # it is ended once
    os.close(lock)
    assert [vm.wait(60) for vm in vms] == [0, 0]
    (first, at), (second, later) = ended
    assert (first, second) == ("other", "busy") and at < 1 and later < 30
    assert ycluster.load_state(states[0].files) == states[0]


@pytest.mark.parametrize("how", ["by its timer", "by reap --all", "by watch --all"])
def test_a_lock_that_cannot_be_had_keeps_no_vm_from_its_end(
    host: Clocked, cache: Path, timer: Memory, processes: Processes, how: str
) -> None:
    """Its file is a folder, or what `sudo` left behind. (21.2.2)"""
    state = made(cache, expires_at=int(NOW) - 5)
    vm = stand_in(processes, state.files)
    state.files.lock.mkdir()
    if how == "by its timer":
        with pytest.raises(YclusterError, match="demo.lock"):
            ycluster.reap_in_time(host, state.files, by="systemd", patience=1.0)
    else:
        assert ycluster.sweep(host, by="x", every=how == "by reap --all") == ["demo"]
    assert vm.wait(60) == 0
    assert ycluster.load_state(state.files) == state


@pytest.mark.parametrize(
    "verb, expires",
    [
        ("lifetime reap", FAR_AHEAD),
        ("lifetime extend 1h", FAR_AHEAD + 3600),
        ("lifetime disarm", FAR_AHEAD),
        ("stop", None),
    ],
)
def test_a_verb_goes_by_what_was_written_while_it_waited_for_the_lock(
    cli: Cli, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch, verb: str,
    expires: int | None,
) -> None:  # fmt: skip
    state = made(cache, expires_at=LONG_AGO)
    with os.fdopen(ycluster.try_flock(state.files.lock) or -1) as held:

        def meanwhile(host: Host, seconds: float) -> None:
            made(cache, expires_at=FAR_AHEAD, context="new")
            held.close()

        monkeypatch.setattr(Host, "sleep", meanwhile)
        assert cli(*verb.split()).code == 0
    after = ycluster.load_state(state.files)
    assert (after.context, after.expires_at, after.reaped) == ("new", expires, None)


@pytest.mark.parametrize("verb", ["stop", "lifetime reap", "lifetime extend 1h", "lifetime disarm"])
def test_a_cluster_that_is_torn_down_while_a_verb_waits_for_its_lock_stays_gone(
    cli: Cli, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    files = made(cache, expires_at=FAR_AHEAD).files
    with os.fdopen(ycluster.try_flock(files.lock) or -1) as held:

        def meanwhile(host: Host, seconds: float) -> None:
            files.sidecar.unlink()
            files.copy.unlink()
            held.close()

        monkeypatch.setattr(Host, "sleep", meanwhile)
        told(cli(*verb.split()), 4, "demo")
    assert tree(cache) == {}


# --- contexts and places of any spelling

CONTEXTS = [
    "local", "Local", "a b", "a  b", " a b", "%h", "%%h", "$HOME", "${HOME}", "$$HOME", "it's", "its", 'say "a"', "back\\slash",
    "back\\\\slash", "caf\u00e9", "cafe\u0301", "\u65e5\u672c", "x" * 300, "x" * 299, "*", "x-", "name=c0", "a/b", "a:b",
]  # fmt: skip
ODD = 'a b%h $HOME ${HOME} $$ it\'s "x" back\\slash \\n `id` \u00e9 \u65e5 *;&|<>#~ -n=1'
PLACES = [
    ODD,
    "$HOME",
    "${x}",
    "$$",
    "%",
    "'",
    '"',
    "\\",
    ";",
    "new\nline",
    "\t",
    " ",
    "-",
    "caf\u00e9",
    "cafe\u0301",
]


def spelling(text: str) -> str:
    return ascii(text)[1:-1] if len(text) < 50 else f"{len(text)} characters"


@pytest.fixture
def crowd(cache: Path, tmp_path: Path, host: Clocked) -> Callable[[], dict[str, object]]:
    """A stopped cluster c0, c1, ... for each of CONTEXTS, with a deadline, in two places; gives their trees."""
    odd = tmp_path / ODD.replace("/", "")
    odd.mkdir()
    ycluster.remember_cache_dir(host, odd)
    for number, context in enumerate(CONTEXTS):
        made(
            (cache, odd)[number % 2],
            f"c{number}",
            context=context,
            expires_at=FAR_AHEAD,
            started_at=LONG_AGO,
        )
    return lambda: {**tree(cache), **tree(odd)}


def test_a_context_of_any_spelling_names_its_cluster_and_no_other(
    cli: Cli, crowd: Callable[[], dict[str, object]]
) -> None:
    before = crowd()
    for number, context in enumerate(CONTEXTS):
        assert (
            json.loads(cli("status", "-o", "json", "--context=" + context).out)["name"]
            == f"c{number}"
        )
    assert crowd() == before


@pytest.mark.parametrize(
    "verb, code",
    [
        ("status", 0), ("lifetime status", 0), ("lifetime reap", 0), ("lifetime extend 1h", 0), ("lifetime disarm", 0),
        ("lifetime arm", 0), ("pause", 1), ("resume", 1), ("ssh", 1), ("start", 4), ("stop", 0), ("teardown", 0),
        ("lifetime watch", 130),
    ],
)  # fmt: skip
@pytest.mark.parametrize("context", ["${HOME}", "x" * 300], ids=["signs", "long"])
def test_every_verb_acts_on_the_cluster_of_a_context_and_on_no_other(
    cli: Cli, crowd: Callable[[], dict[str, object]], timer: Memory, monkeypatch: pytest.MonkeyPatch, verb: str, code: int, context: str
) -> None:  # fmt: skip
    monkeypatch.setattr(Host, "which", lambda self, program: "/bin/true")
    monkeypatch.setattr(Host, "sleep", enough)
    if verb in (
        "start",
        "stop",
        "resume",
    ):  # these arm what has lost its timer elsewhere; here nothing has
        cli("lifetime", "reap", "--all")
    mine, before = f"c{CONTEXTS.index(context)}", crowd()
    ran = cli(*verb.split(), "--context=" + context)
    assert ran.code == code and "Traceback" not in ran.err, ran
    after = crowd()
    changed = {name for name in {*before, *after} if before.get(name) != after.get(name)}
    assert {re.split(r"[.-]", name)[0] for name in changed} <= {mine}
    acts = verb in (
        "lifetime reap",
        "lifetime extend 1h",
        "lifetime disarm",
        "lifetime arm",
        "stop",
        "teardown",
    )
    assert acts is (f"{mine}.json" in changed)
    assert re.search(rf"\b{mine}\b", ran.out + ran.err) or acts or "watch" in verb


@pytest.mark.parametrize("words", [["--context"], ["--name"], ["-c"], []], ids=str)
def test_an_empty_name_is_not_taken_for_the_only_cluster(
    cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    """`ycluster teardown "$UNSET"`; nor is it the config of the current directory. (20.2)"""
    state = made(cache, context="prod")
    (tmp_path / "y-cluster-provision.yaml").write_text("name: demo\n")
    monkeypatch.chdir(tmp_path)
    told(cli("teardown", *words, ""), 2, "empty")
    assert state.files.sidecar.exists()


@pytest.mark.parametrize("place", PLACES, ids=spelling)
def test_the_words_of_an_at_job_arrive_as_they_are(
    schedulers: Path, home: Path, tmp_path: Path, place: str
) -> None:
    arrives_by_at(schedulers, home, tmp_path / place)


def test_a_place_that_is_no_unicode_arrives_by_at_as_it_is(
    schedulers: Path, home: Path, tmp_path: Path
) -> None:
    arrives_by_at(schedulers, home, tmp_path / "latin-\udce9")


def stub_of(files: Files) -> Path:
    """In the place of a launcher: it writes down its arguments."""
    files.launcher.write_text('#!/bin/sh\nprintf "%s\\0" "$@" >"$0.argv"; echo said\n')
    return files.launcher


def arrives_by_at(schedulers: Path, home: Path, place: Path) -> None:
    """The job runs under /bin/sh as atd would run it."""
    place.mkdir()
    host, files = (
        Host({"HOME": str(home), "PATH": str(schedulers)}, Clocked(home).output),
        Files(place, "demo"),
    )
    stub = stub_of(files)
    assert ycluster.AtTimer().arm(host, files, FAR_AHEAD) == "7"
    for log in ("kept", "a folder", "a FIFO", "a link"):
        Path(f"{stub}.argv").unlink(missing_ok=True)
        subprocess.run(
            ["/bin/sh", "-s"],
            input=(schedulers / "stdin").read_bytes(),
            cwd="/",
            env={},
            timeout=30,
            umask=0,
        )
        argv = Path(f"{stub}.argv").read_bytes().split(b"\0")[:-1]
        wanted = ["lifetime", "reap", "--wait", "120s", "--state", str(files.sidecar), "--by", "at"]
        assert [os.fsdecode(word) for word in argv] == wanted, log
        if log == "kept":
            assert files.log.read_text() == "said\n" and files.log.stat().st_mode & 0o777 == 0o600
            files.log.unlink()
            files.log.mkdir()  # a log that can't be written must not keep the reap from running
        elif log == "a folder":
            files.log.rmdir()
            os.mkfifo(files.log)
        elif log == "a FIFO":
            files.log.unlink()
            files.log.symlink_to(place / "theirs")
    assert not (place / "theirs").exists()


def as_systemd_runs(word: str) -> str:
    """systemd.service(5), COMMAND LINES, for words that come over the bus: variables are replaced, `$$` is one `$`."""
    return re.sub(
        r"\$(\$|\{\w*\}|\w*)", lambda match: "$" if match[0] == "$$" else "(a variable)", word
    )


def as_systemd_reads_again(word: str) -> str:
    """At a daemon-reload systemd 252 reads its own file of a transient unit, in which it has put a backslash before
    each of these, and takes it for one (tried for all of ASCII: no other character suffers)."""
    return re.sub(r"[$;]", r"\\\g<0>", word)


@pytest.mark.parametrize("reloaded", [False, True], ids=["", "after a daemon-reload"])
@pytest.mark.parametrize("place", PLACES, ids=spelling)
def test_the_words_of_a_systemd_timer_arrive_as_they_are(
    schedulers: Path, home: Path, tmp_path: Path, place: str, reloaded: bool
) -> None:
    (tmp_path / place).mkdir()
    host = Host({"HOME": str(home), "PATH": str(schedulers)}, Clocked(home).output)
    files = Files(tmp_path / place, "demo")
    stub = stub_of(files)
    try:
        argv = systemd_job(host, schedulers, files)
    except ycluster.YclusterError:
        assert set(place) & set("$;")  # refused, so that the next best timer is taken
        return
    command = [as_systemd_reads_again(word) if reloaded else word for word in argv[-3:]]
    subprocess.run([as_systemd_runs(word) for word in command], cwd="/", env={}, check=True)
    arrived = Path(f"{stub}.argv").read_bytes().split(b"\0")[:-1]
    wanted = ["lifetime", "reap", "--state", str(files.sidecar), "--by", "systemd"]
    assert [os.fsdecode(word) for word in arrived] == wanted
    assert argv[0] == "--user" and all(option.startswith("--") for option in argv[:-3])


def systemd_job(host: Host, schedulers: Path, files: Files) -> list[str]:
    """The arguments of systemd-run: the last three are what its timer runs."""
    ycluster.SystemdTimer().arm(host, files, FAR_AHEAD)
    words = [os.fsdecode(word) for word in (schedulers / "argv").read_bytes().split(b"\0")]
    return words[1 : words.index(str(schedulers / "systemctl"))]


def runs(job: str) -> bool:
    """Whether what a timer starts is run."""
    env = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(["/bin/sh", "-s"], input=job, text=True, cwd="/", env=env)
    return done.returncode == 0


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make another user's files")
@pytest.mark.parametrize(
    "remade", ["a folder", "a link to their folder", "not at all", "but others may write to it"]
)
def test_a_timer_runs_nothing_of_a_folder_that_another_user_has_made_again(
    schedulers: Path, home: Path, tmp_path: Path, remade: str
) -> None:
    """In /tmp, where a user has removed the folder while a timer was armed. (21.3)"""
    host, place = Host({"PATH": str(schedulers)}, Clocked(home).output), tmp_path / "demo"
    files = Files(place, "demo")
    place.mkdir()
    stub_of(files)
    jobs = [systemd_job(host, schedulers, files)[-1]]
    ycluster.AtTimer().arm(host, files, FAR_AHEAD)
    jobs.append((schedulers / "stdin").read_text())
    for job in jobs:
        assert runs(job)
        Path(f"{files.launcher}.argv").unlink()  # so it runs, as long as the folder is ours
    files.log.unlink()
    theirs = place.rename(tmp_path / "theirs")
    if remade in ("a folder", "but others may write to it"):
        theirs.rename(place)
        theirs = place
    elif remade == "a link to their folder":
        place.symlink_to(theirs)
    if remade == "but others may write to it":
        theirs.chmod(0o770)
    else:
        os.chown(theirs, 1000, 1000)
    for job in jobs:
        assert not runs(job)
    assert [path.name for path in theirs.iterdir()] == [files.launcher.name]


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make another user's files")
@pytest.mark.parametrize("owner", [0, 1000, 1001])
def test_a_timer_of_root_runs_in_the_folder_of_the_user_whose_home_it_has(
    schedulers: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int
) -> None:
    """As in a container: all that root makes there belongs to that user. (25)"""
    os.chown(home, 1000, 1000)
    monkeypatch.setenv("HOME", str(home))
    host, files = Host({"PATH": str(schedulers)}, Clocked(home).output), Files(tmp_path, "demo")
    stub_of(files)
    job = systemd_job(host, schedulers, files)[-1]
    os.chown(tmp_path, owner, owner)
    assert runs(job) is (owner in (0, 1000))


def test_what_a_timer_has_started_runs_the_copy_of_the_folder_that_it_looked_at(
    host: Clocked, cache: Path, tmp_path: Path
) -> None:
    """And not of what has taken its place by then. (21.3)"""
    files = Files(cache, "demo")
    ycluster.install_program(host, files)
    kept = cache.rename(tmp_path / "kept")
    cache.mkdir()
    files.program.write_text("print('theirs')")
    ran = subprocess.run(
        ["/bin/sh", f"./{files.launcher.name}", "--version"],
        text=True,
        capture_output=True,
        cwd=kept,
    )
    assert (ran.returncode, ran.stdout.split()[0]) == (0, "ycluster")
    (kept / files.program.name).write_text("raise SystemExit(3)")
    assert subprocess.run(["/bin/sh", f"./{files.launcher.name}"], cwd=kept).returncode == 3
    assert (kept / files.timer_failed.name).exists() and not files.timer_failed.exists()


@pytest.mark.parametrize(
    "one, other",
    [
        ("a b", "a-b"),
        ("a.b", "a-b"),
        ("%", "$"),
        ("caf\u00e9", "cafe\u0301"),
        ("A", "a"),
        ("x", "x "),
        (ODD, ODD + "'"),
    ],
    ids=["space", "dot", "signs", "composed", "case", "trailing", "odd"],
)
def test_places_that_look_alike_have_guards_of_their_own_and_never_reap_one_another(
    cli: Cli,
    schedulers: Path,
    home: Path,
    tmp_path: Path,
    processes: Processes,
    one: str,
    other: str,
) -> None:
    host, states, units, jobs, vms = (
        Host({"HOME": str(home), "PATH": str(schedulers)}, Clocked(home).output),
        [],
        [],
        [],
        [],
    )
    for place, deadline in ((one, LONG_AGO), (other, FAR_AHEAD)):
        (tmp_path / place).mkdir()
        state = made(
            tmp_path / place, expires_at=deadline, timers=(ArmedTimer("systemd", "old", deadline),)
        )
        ycluster.remember_cache_dir(host, tmp_path / place)
        ycluster.install_program(host, state.files)
        units.append(ycluster.unit_name(state.files, 5, "ab12"))
        ycluster.AtTimer().arm(host, state.files, FAR_AHEAD)
        jobs.append((schedulers / "stdin").read_bytes())
        vms.append(stand_in(processes, state.files))
        states.append(state)
    assert len({*units}) == len({*jobs}) == len(ycluster.discover(host)) == 2
    told(
        cli("teardown", "--name", "demo"),
        4,
        "2 clusters",
        "demo",
        *(state.cache_dir for state in states),
    )
    ran = cli(*ycluster.timer_argv(states[0].files, "systemd", "reap")[2:])
    assert ran.code == 0 and vms[0].wait(60) == 0
    assert ycluster.load_state(states[0].files).expires_at is None
    assert cli("lifetime", "reap", "--state", states[1].files.sidecar).code == 0
    assert vms[1].poll() is None and ycluster.load_state(states[1].files).expires_at == FAR_AHEAD
    assert states[0].files.program != states[1].files.program and states[1].files.program.exists()


def test_a_verb_spares_its_own_cluster_and_reaps_the_one_of_the_same_name_elsewhere(
    cli: Cli, cache: Path, host: Clocked, tmp_path: Path, timer: Memory
) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text(
        "name: demo\ncacheDir: .\nk3s: {install: none}\n"
    )
    ycluster.remember_cache_dir(host, tmp_path)
    elsewhere = made(cache, expires_at=LONG_AGO, timer_choice="watcher")
    own = made(tmp_path, expires_at=LONG_AGO)
    assert cli("resume", "-c", tmp_path).code == 1  # it is stopped
    wait_for("the reap", lambda: ycluster.load_state(elsewhere.files).reaped)
    assert ycluster.load_state(own.files).expires_at == LONG_AGO


def test_a_provision_whose_state_cannot_be_saved_leaves_no_copy_of_it(
    cli: Cli,
    cache: Path,
    tmp_path: Path,
    no_qemu: None,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The copy is written first, and the disk is full after it. (20.4)"""
    (tmp_path / "y-cluster-provision.yaml").write_text("name: demo\nk3s: {install: none}\n")
    write_file = ycluster.write_file

    def full(path: Path, data: bytes, **options: int) -> None:
        if path.name == "demo.json":
            raise OSError(28, "No space left on device", str(path))
        write_file(path, data, **options)

    monkeypatch.setattr(ycluster, "write_file", full)
    told(cli("provision", "-c", tmp_path), 1, "No space left")
    assert [name for name in tree(cache) if "demo" in name] == []


@pytest.mark.parametrize(
    "verb, code",
    [("start", 0), ("stop", 0), ("resume", 1), ("provision", 0), ("lifetime extend 1h", 0)],
)
def test_no_verb_but_a_reap_tears_its_own_cluster_down_because_it_is_overdue(
    cli: Cli, home: Path, cache: Path, tmp_path: Path, no_qemu: None, timer: Memory, verb: str, code: int
) -> None:  # fmt: skip
    """Whoever starts a cluster wants it."""
    lifetime = "lifetime: {maxRun: 8h, onExpiry: teardown}"
    (tmp_path / "y-cluster-provision.yaml").write_text(
        f"name: demo\nk3s: {{install: none}}\n{lifetime}\n"
    )
    overdue = {"expires_at": LONG_AGO, "on_expiry": "teardown", "ran_with": "tcg"}
    files = made(cache, **overdue).files
    files.disk.write_text("mine")
    before = time.time()
    assert cli(*verb.split(), "-c", tmp_path).code == code
    assert files.disk.read_text() == "mine"
    after = ycluster.load_state(files)
    if verb in ("start", "provision", "lifetime extend 1h"):
        assert after.expires_at is not None and after.expires_at > before
    assert after.reaped is None
    log = home / ".local/state/ycluster/events.jsonl"  # a start forgets what came before it
    assert not log.exists() or '"reaped"' not in log.read_text()


@pytest.mark.parametrize("none", ["", "0"])
@pytest.mark.parametrize("verb", ["lifetime reap", "lifetime reap --all", "stop"])
def test_a_deadline_without_a_budget_is_none(
    cli: Cli, cache: Path, timer: Memory, none: str, verb: str
) -> None:
    """A budget that was taken away by the sibling leaves its last deadline in the file. (20.16)"""
    old = made(cache, expires_at=LONG_AGO, on_expiry="teardown", ending="teardown")
    text = json.loads(old.files.sidecar.read_text())
    old.files.sidecar.write_text(json.dumps({**text, "lifetime": none}))
    old.files.disk.write_text("mine")
    assert cli(*verb.split()).code in (0, 1) and old.files.disk.read_text() == "mine"
    after = ycluster.load_state(old.files)
    assert (after.expires_at, after.reaped) == (None, None) and timer.standing == {}
    (shown,) = json.loads(cli("list", "-o", "json").out)["clusters"]
    assert (shown["expiresAt"], shown["remainingSeconds"]) == ("", None)


# --- secrets


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")

# --- what a reap and the next command owe


def test_a_second_try_stands_before_the_first_and_only_a_success_takes_it_away(
    cli: Cli, cache: Path, timer: Memory, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = made(cache, expires_at=LONG_AGO, on_expiry="teardown")
    stand_in(processes, state.files)

    def stubborn(
        host: Host, files: Files, vm: object, ssh: object, may_cut_off: Callable[[], bool]
    ) -> str:
        assert may_cut_off()
        seen.append(ycluster.load_state(state.files).retry_at)
        assert [*timer.standing.values()] == [seen[-1]]
        raise ycluster.YclusterError("QEMU is alive")

    seen: list[int | None] = []
    monkeypatch.setattr(ycluster, "stop_vm", stubborn)
    assert cli("lifetime", "reap").code == 1 and len(seen) == 1
    assert seen[0] is not None and time.time() < seen[0] <= time.time() + 900
    assert [*timer.standing.values()] == seen == [ycluster.load_state(state.files).retry_at]


@pytest.mark.parametrize("unexpected", [False, True])
def test_where_no_second_try_can_be_armed_the_first_is_made_all_the_same(
    cli: Cli,
    cache: Path,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    unexpected: bool,
) -> None:
    """Whatever error it is, a broken archive's among them. (20.22)"""
    monkeypatch.setattr(ycluster, "TIMERS", (Memory("none", [], unusable="no daemon"),))

    def broken(host: Host, files: Files) -> None:
        raise ImportError("can't read the archive")

    if unexpected:
        monkeypatch.setattr(ycluster, "install_program", broken)
    state = made(cache, expires_at=LONG_AGO)
    process = stand_in(processes, state.files)
    assert cli("lifetime", "reap").code == 0 and process.wait(60) == 0
    assert ycluster.load_state(state.files).reaped is not None


def test_the_next_command_arms_what_has_lost_its_timer_and_reaps_what_has_outlived_it(
    cli: Cli, cache: Path, timer: Memory, no_watcher_left: None
) -> None:
    lost = made(cache, "lost", expires_at=FAR_AHEAD, timer_choice="watcher")
    stands = ArmedTimer("memory", "still", LONG_AGO)
    slept = made(cache, "slept", expires_at=LONG_AGO, timers=(stands,), timer_choice="watcher")
    timer.standing["still"] = LONG_AGO  # as at(1) has it on a host that was suspended
    made(cache, "third")
    assert cli("resume", "--name", "third").code == 1  # it is stopped
    wait_for("the reap", lambda: ycluster.load_state(slept.files).reaped)
    wait_for("the timer", lambda: ycluster.load_state(lost.files).timer)
    armed = ycluster.load_state(lost.files).timer
    assert armed and (armed.backend, armed.deadline) == ("watcher", FAR_AHEAD)
    assert ycluster.flock_held(lost.files.watch_lock)


def test_a_timer_that_came_early_is_armed_anew(cli: Cli, cache: Path, timer: Memory) -> None:
    """atq lists a job for as long as it runs."""
    state = made(cache, expires_at=FAR_AHEAD)
    assert cli("lifetime", "arm").code == 0
    armed = []
    for by in ("memory", "hand"):
        assert cli("lifetime", "reap", "--by", by).code == 0
        armed.append(ycluster.load_state(state.files).timer)
        assert armed[-1] and timer.standing == {armed[-1].id: FAR_AHEAD}
    assert armed[0] == armed[1] and "cancel memory-0 while memory-1 is saved" in timer.log


def test_what_is_disarmed_stays_so_when_extended(cli: Cli, cache: Path, timer: Memory) -> None:
    state = made(cache, expires_at=FAR_AHEAD)
    assert cli("lifetime", "disarm").code == 0 and cli("lifetime", "extend", "1h").code == 0
    after = ycluster.load_state(state.files)
    assert after.disarmed and after.expires_at == FAR_AHEAD + 3600 and timer.standing == {}


def test_an_extension_that_no_timer_can_follow_is_saved_told_and_in_the_log(
    cli: Cli, cache: Path, timer: Memory, home: Path
) -> None:
    state = made(cache, expires_at=FAR_AHEAD)
    timer.reason = "no daemon"
    answer = cli("lifetime", "extend", "1h")
    assert answer.code == 5 and "no daemon" in answer.err
    assert ycluster.load_state(state.files).expires_at == FAR_AHEAD + 3600
    assert [(event["event"], event["seconds"]) for event in events(home)] == [("extended", 3600)]


def test_status_counts_on_no_timer_that_is_gone(cli: Cli, cache: Path, timer: Memory) -> None:
    made(cache, expires_at=FAR_AHEAD)
    assert cli("lifetime", "arm").code == 0
    guarded = cli("lifetime", "status").out
    timer.standing.clear()
    unguarded = cli("lifetime", "status").out
    assert "NONE" not in guarded and "NONE" in unguarded
    assert json.loads(cli("lifetime", "status", "-o", "json").out)["enforcement"]["armed"] is False


def test_whoever_is_warned_can_extend_from_there(
    cli: Cli,
    cache: Path,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Host, "tell_terminals", lambda self, text: None)
    command = f"flock -n '{Files(cache, 'demo').lock}' touch '{cache}/free'"
    now = int(time.time())
    made(cache, expires_at=now + 300, started_at=now - 3600, warn="10m", on_warn=command)
    assert cli("lifetime", "reap").code == 0
    assert (cache / "free").exists()


# --- provision, and secrets

needs_keygen = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="no ssh-keygen")


@needs_keygen
@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077], ids=oct)
def test_every_verb_leaves_files_and_directories_private(
    cli: Cli, home: Path, tmp_path: Path, processes: Processes, no_qemu: None, no_watcher_left: None,
    monkeypatch: pytest.MonkeyPatch, umask: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("YCLUSTER_TIMER", "watcher")
    conf = tmp_path / "conf"
    conf.mkdir()
    cache = tmp_path / "new" / "cache"
    (conf / "y-cluster-provision.yaml").write_text(
        f"name: demo\ncacheDir: {cache}\nk3s: {{install: none}}\nlifetime: {{maxRun: 8h}}\n"
    )
    verbs = [
        f"provision -c {conf}",
        "list",
        "status",
        "pause",
        "resume",
        "stop",
        "start",
        "teardown demo --keep-disk",
    ]
    verbs[3:3] = [
        "lifetime " + verb
        for verb in ("status", "extend 1h", "disarm", "arm", "reap", "reap --all")
    ]
    seen: set[str] = set()
    for verb in verbs:
        os.umask(umask)
        ran = cli(*verb.split())
        assert ran.code == 0, ran
        if verb == verbs[0]:
            stand_in(processes, Files(cache, "demo"), "")
            Files(cache, "demo").pidfile.chmod(0o600)  # that one the test has made
            monkeypatch.setattr(
                ycluster,
                "stop_vm",
                lambda host, files, vm, ssh, may_cut_off: os.kill(vm.pid, signal.SIGKILL) or "x",
            )
            monkeypatch.setattr(
                ycluster, "find_vm", waits_for_the_dead(ycluster.find_vm, processes)
            )
        for path in [cache.parent, cache, *cache.rglob("*"), *home.rglob("*")]:
            if not path.is_symlink():
                mode = path.stat().st_mode & 0o777
                public = path.name.endswith(".pub")  # ssh-keygen makes it 0644 less the umask
                assert mode == (0o700 if path.is_dir() else 0o600) or public, (
                    f"{path} is {mode:o} after {verb}"
                )
            seen.add(path.name)
    kept = {
        "demo.json",
        "demo.lock",
        "demo.ycluster.py",
        "demo.reap.log",
        "demo.watch.lock",
        "demo-ssh",
        "demo-seed",
    }
    assert kept <= seen


DEMO = """\
name: demo
cacheDir: cache
k3s: {install: none}
portForwards: []
sshPort: 0
lifetime: {maxRun: 8h, warn: '0'}
"""


@needs_keygen
def test_a_provision_keeps_what_its_config_says_and_no_credential(
    cli: Cli, tmp_path: Path, no_qemu: None, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    auth = "registries: {mirrors: {docker.io: }, configs: {r.example: {auth: {identitytoken: '${TOKEN}'}}}}\n"
    text = DEMO.replace("none", "script") + "dataDisk: data.qcow2\nguest: {proxy: host}\n" + auth
    text = text.replace("portForwards: []", "portForwards: [{host: '6443', guest: '6443'}]")
    (tmp_path / "y-cluster-provision.yaml").write_text(text)
    monkeypatch.setenv("TOKEN", "hush")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hush@p.example:1")
    for name in ("check_data_disk", "make_data_disk"):
        monkeypatch.setattr(ycluster, name, lambda *args: None)
    monkeypatch.setattr(ycluster, "can_merge", lambda *args: False)
    monkeypatch.setattr(ycluster, "merge_kubeconfig", lambda host, state: state)
    assert cli("provision", "-c", tmp_path).code == 0
    files = Files(tmp_path / "cache", "demo")
    state = ycluster.load_state(files)
    assert (state.lifetime, state.auto_ports) == ("8h", (22,))
    assert state.data_disk == str(tmp_path / "data.qcow2")
    assert list(timer.standing.values()) == [state.expires_at] and state.expires_at is not None
    every = [path for path in files.cache_dir.rglob("*") if path.is_file()]
    holds = [path for path in every if b"hush" in path.read_bytes()]
    assert holds == [files.seed / "user-data"], "filled in for the guest, and nowhere else"
    seed = json.loads(holds[0].read_text().partition("\n")[2])
    assert "HTTPS_PROXY=http://me:hush@p.example:1\n" in seed["bootcmd"][0]
    (registries,) = [
        file for file in seed["write_files"] if file["path"].endswith("registries.yaml")
    ]
    auth_of = {"r.example": {"auth": {"identity_token": "hush"}}}
    assert json.loads(registries["content"]) == {"mirrors": {"docker.io": None}, "configs": auth_of}
    (shown,) = json.loads(cli("list", "-o", "json").out)["clusters"]
    assert shown["name"] == "demo", "it is seen where no config names its place"


@needs_keygen
def test_registries_that_a_plain_vm_ignores_are_not_in_its_seed(
    cli: Cli, tmp_path: Path, no_qemu: None, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ "registries: ignored", it said, and their password was in the guest. (21.4.5)"""
    auth = "registries: {configs: {r.example: {auth: {username: '${UNSET}', password: hush}}}}\n"
    (tmp_path / "y-cluster-provision.yaml").write_text(DEMO + auth)
    assert cli("config", "check", "-c", tmp_path).code == 0, "a variable of theirs is not missed"
    ran = cli("provision", "-c", tmp_path)
    assert ran.code == 0 and missing(ran.err, "registries: ignored") == []
    every = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not [path for path in every if b"hush" in path.read_bytes()]
    assert b"registries" not in (Files(tmp_path / "cache", "demo").seed / "user-data").read_bytes()


PASSWORDS = """\
name: demo
cacheDir: cache
image: https://me:hush@image.invalid/a.img
k3s: {install: script, source: "https://hush:hush@k3s.invalid/x"}
lifetime: {maxRun: 8h}
registries: {mirrors: {a: {endpoint: ["http://me:hush@mirror.invalid"]}}}
"""


@needs_keygen
def test_the_password_of_a_url_is_used_and_neither_shown_nor_stored(
    cli: Cli, tmp_path: Path, no_qemu: None, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In no message, state file, log of events, or disk but the guest's. (20.10)"""
    (tmp_path / "y-cluster-provision.yaml").write_text(PASSWORDS)
    used: list[str] = []

    def fetch(host: Host, config: ycluster.QemuConfig, cache_dir: Path) -> Path:
        used.append(config.image)
        host.output.debug(f"curl {config.image}")
        return Path("/image")

    def wait(host: Host, state: State, **options: object) -> None:
        used.append(state.k3s["Source"])
        ycluster.log_event(host, state, "failed", error=f"{state.image}: no route")
        raise YclusterError(f"{state.k3s['Source']}: no route", hint=state.image)

    monkeypatch.setattr(ycluster, "fetch_image", fetch)
    monkeypatch.setattr(ycluster, "wait_ready", wait)
    ran = cli("provision", "--verbose", "-c", tmp_path)
    urls = ("https://***@k3s.invalid/x: no route", "https://***@image.invalid/a.img")
    assert (ran.code, ran.out, missing(ran.err, *urls)) == (1, "", [])
    assert "Traceback" in ran.err and "hush" not in ran.err
    assert used == ["https://me:hush@image.invalid/a.img", "https://hush:hush@k3s.invalid/x"]
    state = ycluster.load_state(Files(tmp_path / "cache", "demo"))
    assert (state.image, state.k3s["Source"]) == (
        "https://image.invalid/a.img",
        "https://k3s.invalid/x",
    )
    every = [path for path in tmp_path.rglob("*") if path.is_file()]
    holds = {path.name for path in every if b"hush" in path.read_bytes()}
    assert holds == {"y-cluster-provision.yaml", "user-data"}
    shown = json.loads(cli("config", "show", "-c", tmp_path).out)
    assert "hush" not in str(shown) and shown["image"] == "https://***@image.invalid/a.img"


@pytest.mark.parametrize(
    "url",
    ["https://me:hu/sh@a.invalid/x", "ftp://me:hush@a.invalid/x", "https://[me:hush@a.invalid/x"],
)
def test_a_url_that_is_refused_is_shown_without_its_password(
    cli: Cli, tmp_path: Path, url: str
) -> None:
    """A slash in it would otherwise be taken for the end of the host. (20.10)"""
    (tmp_path / "y-cluster-provision.yaml").write_text(f"image: '{url}'\n")
    told(cli("config", "check", "-c", tmp_path), 3, "image:")
    assert not re.search("hu/?sh", cli("config", "check", "-c", tmp_path).err)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


HOSTILE = "a\x1b[2J\x1b]0;t\x07\x00\r\x7f\x9bb\tc\u00e4\r\nd"
HARMLESS = "a\\x1b[2J\\x1b]0;t\\x07\\x00\\x0d\\x7f\\x9bb\tc\u00e4\nd"


def test_no_control_character_of_others_reaches_the_terminal() -> None:
    """Whatever way a text takes out, it is cleaned; our own colours and live line work. (21.4.4)"""
    out, err = Terminal(), Terminal()
    output = ycluster.Output(out, err, verbose=True, colours=True)
    output.data(HOSTILE)
    output.data(HOSTILE, "31")
    assert out.getvalue() == f"{HARMLESS}\n\x1b[31m{HARMLESS}\x1b[m\n"
    output.say(HOSTILE)
    output.warn(HOSTILE)
    output.warn_once(HOSTILE)
    output.debug(HOSTILE)
    output.error(ycluster.YclusterError(HOSTILE, hint=HOSTILE))
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", err.getvalue())
    output.draw(HOSTILE)
    assert err.getvalue().rpartition("\r\x1b[K")[2] == HARMLESS[: ycluster.columns() - 1]


def test_data_as_json_is_what_it_was_when_read_again() -> None:
    """Its escapes are JSON's own. (21.4.4)"""
    out = io.StringIO()
    ycluster.Output(out, io.StringIO()).data(ycluster.to_json({"name": HOSTILE}))
    assert json.loads(out.getvalue()) == {"name": HOSTILE}


def test_a_long_word_in_a_message_with_a_url_takes_no_time() -> None:
    """It is not looked at from each of its characters: that took minutes. (21.4.6)"""
    text = "image: a://" + "a" * 250_000
    assert ycluster.masked(text) == text
    assert ycluster.masked("a" * 99 + "://u:p@host") == "a" * 99 + "://***@host"


def test_the_live_line_hides_a_password_that_it_would_cut_in_two() -> None:
    """Masked first, cut off then. (20.10)"""
    written = io.StringIO()
    output = ycluster.Output(io.StringIO(), written)
    output.live = True
    output.draw("x" * 60 + " https://me:hush-hush-hush-hush@a.invalid/")
    assert "***" in written.getvalue() and "hush" not in written.getvalue()


@needs_keygen
@pytest.mark.parametrize("runs", [False, True], ids=["before its VM ran", "after its VM ran"])
def test_a_provision_that_fails_leaves_nothing_or_a_vm_with_its_disk_and_its_guard(
    cli: Cli,
    tmp_path: Path,
    no_qemu: None,
    timer: Memory,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
    runs: bool,
) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text(DEMO)
    files = Files(tmp_path / "cache", "demo")

    def launch(host: Host, state: State) -> State:
        saved = ycluster.load_state(files)
        assert [*timer.standing.values()] == [saved.expires_at], "guarded before it runs"
        if runs:
            stand_in(processes, files)
        raise ycluster.Interrupted("interrupted")

    monkeypatch.setattr(ycluster, "launch", launch)
    assert cli("provision", "-c", tmp_path).code == 130
    if not runs:
        assert timer.standing == {} and list(files.cache_dir.iterdir()) == []
        return
    state = ycluster.load_state(files)
    assert files.disk.exists() and state.expires_at is not None
    assert [*timer.standing.values()] == [state.expires_at]


@needs_keygen
@pytest.mark.parametrize("verb", ["provision", "start"])
def test_a_boot_saves_its_deadline_before_a_timer_is_armed_and_what_qemu_chose_after_it_runs(
    cli: Cli,
    tmp_path: Path,
    no_qemu: None,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text(DEMO)
    files = Files(tmp_path / "cache", "demo")
    if verb == "start":
        assert cli("provision", "-c", tmp_path).code == cli("stop", "--name", "demo").code == 0
    arm, saved = Memory.arm, []

    def arms(self: Memory, host: Host, files: Files, deadline: int) -> str:
        saved.append(ycluster.load_state(files).expires_at == deadline)
        return arm(self, host, files, deadline)

    def launch(host: Host, state: State) -> State:
        saved.append([*timer.standing.values()] == [ycluster.load_state(files).expires_at])
        return ycluster.replace(state, ssh_port=40315, ran_with="tcg", machine="pc-q35-7.2")

    monkeypatch.setattr(Memory, "arm", arms)
    monkeypatch.setattr(ycluster, "launch", launch)
    assert cli(verb, "-c", tmp_path).code == 0 and saved == [True, True]
    state = ycluster.load_state(files)
    assert (state.ssh_port, state.ran_with, state.machine) == (40315, "tcg", "pc-q35-7.2")


@needs_keygen
def test_a_provision_that_is_killed_while_it_makes_the_disk_is_known(
    cli: Cli, tmp_path: Path, no_qemu: None, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text(DEMO)
    seen: list[Files] = []
    look = lambda host, *args: seen.extend(ycluster.discover(host))  # noqa: E731
    monkeypatch.setattr(ycluster, "make_disk", look)
    assert cli("provision", "-c", tmp_path).code == 0
    assert seen == [Files(tmp_path / "cache", "demo")]


@pytest.mark.parametrize("taken", ["port", "context"])
def test_a_port_or_a_context_that_is_taken_is_told_before_anything_is_made(
    cli: Cli,
    cache: Path,
    tmp_path: Path,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
    taken: str,
) -> None:
    made(cache, "other", context="theirs" if taken == "context" else "local")
    monkeypatch.setattr(Host, "need", lambda self, programs: None)
    monkeypatch.setattr(ycluster, "fetch_image", lambda *args: pytest.fail("an image is fetched"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if taken == "port" else 0
        text = DEMO.replace("sshPort: 0", f"sshPort: {port}\ncontext: theirs")
        (tmp_path / "y-cluster-provision.yaml").write_text(text)
        assert cli("provision", "-c", tmp_path).code == {"port": 5, "context": 3}[taken]
    assert not (tmp_path / "cache").exists()


@needs_keygen
def test_of_two_provisions_at_once_one_alone_gets_the_context(
    cli: Cli, tmp_path: Path, no_qemu: None, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is made while the first, whose check has passed, fetches its image. (20.25)"""
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        text = DEMO.replace("name: demo", f"name: {name}\ncontext: mine")
        (tmp_path / name / "y-cluster-provision.yaml").write_text(text)
    codes: list[int] = []

    def fetch_image(*args: object) -> Path:
        monkeypatch.setattr(ycluster, "fetch_image", lambda *args: Path("/image"))
        codes.append(cli("provision", "-c", tmp_path / "second").code)
        return Path("/image")

    monkeypatch.setattr(ycluster, "fetch_image", fetch_image)
    ran = cli("provision", "-c", tmp_path / "first")
    assert (codes, ran.code) == ([0], 3) and missing(ran.err, "'mine'", "second") == []
    assert not Files(tmp_path / "first" / "cache", "first").sidecar.exists()
    assert tree(tmp_path / "first" / "cache") == {}


@needs_keygen
def test_a_context_is_claimed_under_a_lock_of_the_user(
    cli: Cli, home: Path, tmp_path: Path, no_qemu: None, timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What two provisions check and save at the same moment comes one after the other. (20.25)"""
    (tmp_path / "y-cluster-provision.yaml").write_text(DEMO)
    lock = home / ".local" / "state" / "ycluster" / "claims.lock"
    lock.parent.mkdir(parents=True)
    held = ycluster.try_flock(lock)
    assert held is not None
    seen: list[bool] = []

    def sleep(self: Host, seconds: float) -> None:
        if not seen:
            os.close(held)
        seen.append(Files(tmp_path / "cache", "demo").sidecar.exists())

    monkeypatch.setattr(Host, "sleep", sleep)
    assert cli("provision", "-c", tmp_path).code == 0
    assert seen[0] is False and ycluster.load_state(Files(tmp_path / "cache", "demo"))
    assert not ycluster.flock_held(lock)


def test_a_port_whose_connections_have_just_ended_can_be_had(
    cli: Cli, tmp_path: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a stop, where those of ssh stay in TIME_WAIT for a minute."""

    def gets_as_far_as_that(*args: object) -> None:
        raise ycluster.Interrupted("the ports are checked")

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        accepted, _ = server.accept()
    accepted.close()  # who closes first is the one that waits
    assert client.recv(1) == b""
    client.close()
    with socket.socket() as plain, pytest.raises(OSError, match="in use"):
        plain.bind(("127.0.0.1", port))
    monkeypatch.setattr(Host, "need", lambda self, programs: None)
    monkeypatch.setattr(ycluster, "fetch_image", gets_as_far_as_that)
    text = DEMO.replace("sshPort: 0", f"sshPort: {port}")
    (tmp_path / "y-cluster-provision.yaml").write_text(text)
    assert cli("provision", "-c", tmp_path).code == 130


def waits_for_the_dead(find_vm: Callable[..., Any], processes: Processes) -> Callable[..., Any]:
    """QEMU is nobody's child; a stand-in that was killed is a zombie until its parent, the test, asks for it."""

    def waits(host: Host, files: Files) -> Any:
        for process in processes.started:
            process.poll()
        return find_vm(host, files)

    return waits


@pytest.mark.parametrize("backend", ["systemd", "at", "watcher"])
def test_no_secret_gets_into_a_timer_a_log_or_a_sidecar(
    cli: Cli, cache: Path, home: Path, schedulers: Path, no_watcher_left: None, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:  # fmt: skip
    monkeypatch.setenv("YCLUSTER_TIMER", backend)
    for name in (
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "SSH_AUTH_SOCK",
        "http_proxy",
        "LS_COLORS",
        "PYTHONPATH",
    ):
        monkeypatch.setenv(name, "hush-hush")
    state = made(cache, expires_at=FAR_AHEAD)
    for key in (state.files.ssh_key, state.files.host_key):
        key.write_text("PRIVATE hush-hush KEY")
    argv, seen = ["--verbose", "lifetime"], ""
    for verb in ("arm", "status", "reap", "extend 1h", "reap --all", "disarm"):
        ran = cli(*argv, *verb.split())
        assert ran.code == 0, ran
        seen += ran.out + ran.err
        for environ in Path("/proc").glob(
            "[0-9]*/environ"
        ):  # of the watcher, and of whatever else runs the copy
            with contextlib.suppress(OSError):
                if os.fsencode(state.files.program) in (environ.parent / "cmdline").read_bytes():
                    seen += os.fsdecode(environ.read_bytes()) + " a watcher"
    written = [
        path
        for path in [*schedulers.glob("*"), *cache.glob("*")]
        if not path.name.endswith(("-ssh", "-hostkey"))
    ]
    assert state.files.program in written and state.files.sidecar in written
    seen += "".join(os.fsdecode(path.read_bytes()) for path in written)
    used = {"systemd": "--on-calendar", "at": "exec ", "watcher": " a watcher"}
    assert used[backend] in seen and "hush-hush" not in seen


# --- hosts with nothing: real processes, as timers start them

BARE: dict[str, dict[str, str]] = {
    "env -i": {},
    "a systemd service": {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LANG": "C.UTF-8",
    },
    "no usable HOME and an empty PATH": {"HOME": "/nonexistent", "PATH": "", "LC_ALL": "C"},
}


@pytest.mark.parametrize("bare", BARE)
def test_looking_and_reaping_need_no_environment_and_no_working_directory(
    tmp_path: Path, processes: Processes, no_watcher_left: None, bare: str
) -> None:
    gone = tmp_path / "gone"
    state = made(tmp_path, expires_at=LONG_AGO)
    (tmp_path / "y-cluster-provision.yaml").write_text(
        f"name: demo\ncacheDir: {tmp_path}\nk3s: {{install: none}}\n"
    )
    process = stand_in(processes, state.files)
    python = [sys.executable, "-I", "-S", str(LAUNCHER)]
    gone.mkdir()
    script = 'cd "$1" && /bin/rmdir "$1" && shift && "$@" status -o json -c "$conf" && exec "$@" lifetime reap --state "$state"'
    environ = {
        **BARE[bare],
        "YCLUSTER_TIMER": "watcher",
        "conf": str(tmp_path),
        "state": str(state.files.sidecar),
    }
    done = subprocess.run(
        ["/bin/sh", "-c", script, "sh", str(gone), *python],
        env=environ,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert json.loads(done.stdout)["state"] == "running" and not gone.exists()
    assert process.wait(60) == 0
    reaped = ycluster.load_state(state.files).reaped
    assert reaped and reaped.action == "stop" and reaped.how != "was not running"


# --- the private copy


def test_a_timer_does_its_work_whatever_becomes_of_the_program_that_armed_it(
    tmp_path: Path, schedulers: Path
) -> None:
    program = tmp_path / "bin" / "ycluster.py"
    program.parent.mkdir()
    shutil.copy(PROGRAM, program)
    cache = tmp_path / ".local" / "share" / "ycluster"
    cache.mkdir(parents=True)
    state = made(cache, expires_at=FAR_AHEAD)
    environ = {"HOME": str(tmp_path), "PATH": str(schedulers), "YCLUSTER_TIMER": "systemd"}
    subprocess.run(
        [sys.executable, str(program), "lifetime", "arm"],
        env=environ,
        check=True,
        capture_output=True,
    )
    words = (schedulers / "argv").read_bytes().decode().split("\0")
    command = words[words.index("/bin/sh") :][:3]
    fates: dict[str, Callable[[], object]] = {
        "moved": lambda: program.rename(tmp_path / "elsewhere.py"),
        "replaced": lambda: program.write_text("raise SystemExit('another version')"),
        "deleted": lambda: shutil.rmtree(program.parent),
    }
    for fate, befall in fates.items():
        befall()
        done = subprocess.run(command, env=environ, capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, f"{fate}: {done.stderr}"
        assert missing(done.stderr, "demo:", "due in") == [], f"{fate}: {done.stderr}"
    assert ycluster.load_state(state.files).expires_at == FAR_AHEAD


def test_a_private_copy_that_is_gone_is_told_of_in_the_log(cli: Cli, cache: Path, schedulers: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("YCLUSTER_TIMER", "at")
    state = made(cache, expires_at=FAR_AHEAD)
    assert cli("lifetime", "arm").code == 0
    state.files.program.unlink()
    job = (schedulers / "stdin").read_bytes()
    done = subprocess.run(["/bin/sh"], input=job, cwd="/", env={}, capture_output=True, timeout=30)
    assert done.returncode != 0 and state.files.program.name in state.files.log.read_text()


@pytest.mark.parametrize("backend", ["systemd", "at"])
def test_status_does_not_count_on_a_timer_whose_program_is_gone(
    cli: Cli, cache: Path, schedulers: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    monkeypatch.setenv("YCLUSTER_TIMER", backend)
    state = made(cache, expires_at=FAR_AHEAD)
    assert cli("lifetime", "arm").code == 0
    assert json.loads(cli("lifetime", "status", "-o", "json").out)["enforcement"]["armed"] is True
    state.files.program.unlink()
    assert json.loads(cli("lifetime", "status", "-o", "json").out)["enforcement"]["armed"] is False


@pytest.mark.parametrize(
    "verb", ["lifetime arm", "lifetime extend 1h", "lifetime reap", "lifetime reap --all", "resume"]
)
def test_the_next_command_brings_a_private_copy_back(
    cli: Cli,
    cache: Path,
    processes: Processes,
    schedulers: Path,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
) -> None:
    monkeypatch.setenv("YCLUSTER_TIMER", "at")
    state = made(cache, expires_at=FAR_AHEAD)
    assert cli("lifetime", "arm").code == 0
    state.files.program.unlink()
    stand_in(processes, state.files)
    assert cli(*verb.split()).code == 0
    assert state.files.program.exists()


# --- what a VM has left behind


@pytest.mark.parametrize(
    "verb, code",
    [
        ("status", 0),
        ("stop", 0),
        ("pause", 1),
        ("resume", 1),
        ("lifetime reap", 0),
        ("ssh", 1),
        ("teardown demo", 0),
    ],
)
def test_what_a_reboot_leaves_behind_is_no_vm_and_whoever_has_its_pid_is_left_alone(
    cli: Cli,
    cache: Path,
    processes: Processes,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    code: int,
) -> None:
    """A pidfile with a recycled pid, a socket that nobody answers, a lock that nobody holds."""
    innocent = processes.start(GIVES_WAY, "-name", "demo", str(Files(cache, "demo").pidfile))
    state = made(cache, expires_at=LONG_AGO, started_at=LONG_AGO)
    state.files.pidfile.write_text(f"{innocent.pid}\n")
    state.files.vm_lock.touch()
    monkeypatch.chdir(cache)  # a socket's path may have 107 bytes
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(state.files.qmp.name)
    ran = cli(*verb.split())
    seen = folded(ran.out + ran.err)
    assert ran.code == code and re.search("not running|stopped|torn down", seen), ran
    time.sleep(0.02)
    assert innocent.poll() is None
    assert (
        state.files.qmp.exists()
        is state.files.pidfile.exists()
        is (verb not in ("stop", "lifetime reap", "teardown demo"))
    )


# --- budgets


@pytest.mark.parametrize(
    "halts, due, fresh",
    [("reap", 0, True), ("pause", 5, True), ("pause", -60, False)],
    ids=[
        "paused by its expiry",
        "paused by hand and its deadline gone by",
        "paused by hand and in time",
    ],
)
def test_resume_gives_a_fresh_budget_where_the_old_one_is_used_up_and_only_there(
    halts: str, due: int, fresh: bool
) -> None:
    history = test_histories.Histories()
    history.begin(actions=("pause", "stop"), runs=("1h", ""))
    try:
        first = history.states()["a"].expires_at
        assert first is not None
        if halts == "pause":
            history.halt("a", None, "pause")
        history.host.time = float(first + due)
        if halts == "reap":
            history.reaping("a", None)
            assert (
                history.world.vms[history.files["a"]] == "paused"
                and history.states()["a"].expires_at is None
            )
        history.host.time += 5
        history.wake("a", None, "resume")
        after = history.states()["a"]
        assert history.world.vms[history.files["a"]] == "running"
        assert after.expires_at == (int(history.host.now()) + 3600 if fresh else first)
        assert after.timer and after.timer.deadline == after.expires_at
        history.guarded("a")
    finally:
        history.teardown()


# --- teardown takes what is the cluster's own


@pytest.mark.parametrize("by", ["hand", "expiry", "hand, and its disk is kept"])
def test_teardown_leaves_what_is_not_the_clusters_own(
    cli: Cli, cache: Path, tmp_path: Path, timer: Memory, by: str
) -> None:
    state = made(
        cache,
        expires_at=LONG_AGO,
        on_expiry="teardown",
        ending="teardown",  # it found the VM running, and was cut off after it had stopped it
        data_disk=str(cache / "demo-data.qcow2"),
    )
    files = state.files
    keep = "kept" in by
    theirs = [
        "images/0123abcd", "images/.lock", "demo-data.qcow2", "demo.x.json", "demo.x.qcow2", "demo.x.pid", "demo-2-ssh",
        "demo-2.qcow2", "demo-2-seed/user-data", "demo-2.ycluster.py", "demo-2.reap.log", "demo2.json", "xdemo.json",
        "demo/file", "demo-files/file", "demo.d/file", "demo-ssh.bak",
        ".demo-2.json.0a1b2c3d.tmp", ".demo.x.json.0a1b2c3d.tmp", ".demo", "demo", "x/demo.json",
    ]  # fmt: skip
    outside = tmp_path / "outside"
    for place in [
        *(cache / name for name in theirs),
        outside / "data.qcow2",
        outside / "disk",
        outside / "dir" / "file",
    ]:
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            place.write_text("mine")
    made(cache, "demo-2", expires_at=FAR_AHEAD)
    before = {**tree(cache), **tree(outside)}
    del before["demo.json"], before["demo.ycluster.state"]
    files.disk.symlink_to(outside / "disk")
    files.seed.symlink_to(outside / "dir")
    files.console.symlink_to(outside / "dir" / "file")
    files.ssh_key.write_text("key")
    for name in ("demo.json", "demo.ycluster.py", "demo-known_hosts"):
        (cache / f".{name}.0a1b2c3d.tmp").write_text("left by a crash")
    for path in files.disposable():
        path.touch()
    ran = cli(
        *(["lifetime", "reap"] if by == "expiry" else ["teardown"]),
        "--name",
        "demo",
        *["--keep-disk"][: int(keep)],
    )
    assert ran.code == 0, ran
    after = {**tree(cache), **tree(outside)}
    for name in ("demo.qcow2", "demo-ssh"):
        assert (after.pop(name, None) is not None) is keep
    after.pop("demo.lock", None)
    assert {name: after.get(name) for name in before} == before and set(after) == set(before)


ERASES = """
import os, sys, ycluster

class Timer(ycluster.Timer):
    name, launches = "stub", False
    arm = lambda self, host, files, deadline: "2"
    armed = lambda self, host, files, timer: True
    cancel = lambda self, host, files, timer: print("timer", timer.id)

ycluster.TIMERS = (Timer(),)

def removes(event, args):
    if event == "os.remove" and os.path.lexists(args[0]):
        print(os.path.basename(args[0]))

sys.addaudithook(removes)
sys.exit(ycluster.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("verb, last", [("teardown demo", "1"), ("lifetime reap", "2")])
def test_what_an_expiry_needs_goes_last_in_a_teardown(
    home: Path, cache: Path, verb: str, last: str
) -> None:  # fmt: skip
    """One that is cut off leaves a cluster that is known, with a timer that goes on with it."""
    armed = ArmedTimer("stub", "1", LONG_AGO)
    fields = {
        "expires_at": LONG_AGO,
        "on_expiry": "teardown",
        "ending": "teardown",
        "timers": (armed,),
    }
    files = made(cache, **fields).files
    for path in (files.disk, files.ssh_key, files.console, files.program, files.launcher):
        path.touch()
    argv = [sys.executable, "-c", ERASES, *verb.split()]
    env = {"HOME": str(home), **IMPORTS}
    ran = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    *before, timer, program, launcher, copy, sidecar, lock = ran.stdout.splitlines()
    assert {"demo.qcow2", "demo-ssh", "demo-console.log"} <= set(before)
    assert (timer, program) == (f"timer {last}", "demo.ycluster.py")
    assert (launcher, copy) == ("demo.ycluster.sh", "demo.ycluster.state")
    assert (sidecar, lock) == ("demo.json", "demo.lock") and tree(cache) == {}


def test_a_vm_whose_sidecar_is_gone_is_stopped_by_a_teardown_and_its_disk_stays(
    cli: Cli, cache: Path, tmp_path: Path, processes: Processes
) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text("name: demo\nk3s: {install: none}\n")
    files = Files(cache, "demo")
    process = stand_in(processes, files)
    mine = (files.disk, files.ssh_key, files.console, files.kubeconfig)
    for path in mine:
        path.write_text("mine")
    assert cli("teardown", "-c", tmp_path).code == 0
    assert process.wait(60) == 0
    assert set(cache.iterdir()) == set(mine)


def test_a_teardown_by_the_copy_of_a_state_alone_leaves_the_disk(
    cli: Cli, cache: Path, processes: Processes
) -> None:
    """The copy says that the names are the cluster's; it may be of an earlier one than the disk."""
    files = made(cache).files
    process = stand_in(processes, files)
    for path in (files.disk, files.ssh_key, files.console):
        path.write_text("of a cluster")
    files.sidecar.unlink()
    assert cli("teardown", "--state", files.sidecar).code == 0
    assert process.wait(60) == 0
    assert set(cache.iterdir()) == {files.disk, files.ssh_key}


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
@needs_keygen
@pytest.mark.parametrize("name", ["demo-seed", "demo-ssh", "demo-console.log"])
def test_provision_never_takes_away_a_directory_that_is_not_its_own(
    cli: Cli, tmp_path: Path, no_qemu: None, timer: Memory, name: str
) -> None:
    """With `cacheDir: .` a cluster's files lie among a project's own."""
    (tmp_path / "y-cluster-provision.yaml").write_text(
        "name: demo\ncacheDir: .\nk3s: {install: none}\n"
    )
    (tmp_path / name).mkdir()
    (tmp_path / name / "months of work").write_text("mine")
    cli("provision", "-c", tmp_path)
    cli("teardown", "-c", tmp_path)
    assert (tmp_path / name / "months of work").exists()


def test_an_extension_counts_from_when_it_is_asked_for_and_not_from_when_it_gets_the_lock(
    host: Clocked, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = made(cache, expires_at=int(NOW) + 60, started_at=int(NOW))
    held = ycluster.try_flock(state.files.lock)
    assert held is not None

    def sleep(seconds: float) -> None:
        if host.time == NOW:
            os.close(held)
        host.time += 100

    monkeypatch.setattr(host, "sleep", sleep)
    ycluster.extend(host, state.files, ycluster.HowFar(from_now=3600 * 10**9))
    assert host.time > NOW and ycluster.load_state(state.files).expires_at == int(NOW) + 3600
