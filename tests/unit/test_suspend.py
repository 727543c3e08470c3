"""Suspend, as far as no real QEMU is needed: what fits, what QEMU's own words prove, what a failure leaves. See e2e/test_suspend.py."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
from unit_support import (
    NOW,
    Cli,
    Clocked,
    Memory,
    Processes,
    made,
    monitor,
    stand_in,
    told,
    with_disk,
)

import ycluster
from ycluster import Clock, Files, Host, HowFar, Output, State, Suspended, YclusterError, replace

HERE = Host({}, Output(io.StringIO(), io.StringIO()))  # this machine, with a clock that runs
KEPT = Suspended(at=int(NOW), packed="", digest="", fits={})


def qemu(
    processes: Processes, files: Files, guest: str, migration: str = "none", *more: str
) -> subprocess.Popen[bytes]:
    words = ["-name", "demo", "-pidfile", str(files.pidfile), *more]
    process = processes.start(monitor(guest, migration, 'what == "quit"'), *words)
    files.pidfile.write_text(f"{process.pid}\n")
    return process


def asked(files: Files) -> list[str]:
    """What a monitor was asked, but for the greeting."""
    words = (files.cache_dir / "asked").read_text().split()
    return [word for word in words if word != "qmp_capabilities"]


# --- what a memory file fits


@pytest.mark.parametrize(
    "what, was, now, fits",
    [
        ("QEMU", "7.2.22", "7.2.22", True),
        ("QEMU", "7.2.22", "7.2.23", True),
        ("QEMU", "7.2.22", "10.0.2", True),
        ("QEMU", "7.2.22", "7.2.9", False),
        ("CPU of this host", "Xeon sse avx", "Xeon avx sse new", True),
        ("CPU of this host", "Xeon sse avx", "Xeon sse", False),
        ("CPU of this host", "Xeon sse", "Epyc sse", False),
        ("disk", "100 1", "100 1", True),
        ("disk", "100 1", "100 2", False),
    ],
)
def test_a_memory_goes_with_a_later_qemu_and_a_cpu_that_lacks_nothing(
    what: str, was: str, now: str, fits: bool
) -> None:
    assert ycluster.misfits({what: was}, {what: now}) == ([] if fits else [what])
    assert ycluster.misfits({}, {what: now}) == ycluster.misfits({what: was}, {}) == [what]


def test_what_a_suspended_cluster_takes_from_an_edited_config_is_its_network(cache: Path) -> None:
    """Its ports may be taken by now; its machine is in the file."""
    text = "name: demo\nmemory: 8192\nsshPort: 2300\nlifetime: {maxRun: 4h}\n"
    path = cache / "y-cluster-provision.yaml"
    path.write_text(text)
    state = State(
        name="demo", cache_dir=str(cache), image="/i", memory="1024", lifetime="8h", suspended=KEPT
    )
    config = ycluster.load_config(path.parent)
    assert isinstance(config, ycluster.QemuConfig)
    clock = Clock(now=NOW, boot_id="b", booted=9.0)
    changed, lines = ycluster.reconfigured(state, config, clock, runs=False)
    assert (changed.ssh_port, changed.lifetime, changed.memory) == (2300, "4h", "1024")
    assert [line for line in lines if line.startswith("memory")] == [
        "memory: 1024 -> 8192 takes a stop and a start"
    ]


def test_a_deadline_of_a_vm_that_stands_still_beside_its_memory_can_be_moved(cache: Path) -> None:
    clock = Clock(now=NOW, boot_id="b", booted=9.0)
    state = State(name="demo", cache_dir=str(cache), lifetime="8h", suspended=KEPT)
    with pytest.raises(YclusterError, match="suspended"):
        ycluster.moved(state, HowFar(by=10**9), clock)
    ends = replace(state, expires_at=int(NOW) + 60, started_at=int(NOW))
    assert ycluster.moved(ends, HowFar(by=10**9), clock).expires_at == int(NOW) + 61


# --- what QEMU says


def test_on_a_read_only_disk_what_stood_still_is_ended_all_the_same(
    cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pidfile that stays there was told as a failure of the end."""
    state = made(cache, suspended=KEPT)
    state.files.memory.write_text("what ran in it")
    vm = qemu(processes, state.files, "postmigrate")

    def read_only(path: Path) -> bool:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(ycluster, "remove", read_only)
    ycluster._end_still(HERE, state)
    assert vm.wait(60) == 0


@pytest.mark.parametrize(
    "guest, more, proven",
    [
        ("postmigrate", (), True),
        ("inmigrate", ("-incoming", "defer"), True),
        ("paused", ("-incoming", "defer"), True),
        ("io-error", ("-incoming", "defer"), True),
        ("paused", (), False),
        ("io-error", (), False),
        ("running", ("-incoming", "defer"), False),
    ],
)
def test_only_qemu_proves_that_nothing_was_executed(
    cache: Path, processes: Processes, guest: str, more: tuple[str, ...], proven: bool
) -> None:
    """A file that is out of date must not be loaded, and a VM that has the only memory not be ended."""
    state = made(cache, suspended=KEPT)
    files = state.files
    files.memory.write_text("what ran in it")
    vm = qemu(processes, files, guest, "none", *more)
    settled = ycluster._settled(HERE, state)
    assert files.memory.exists() is proven
    assert (settled.suspended is not None) is proven
    assert ycluster.load_state(files) == settled
    if proven:
        assert vm.wait(60) == 0 and asked(files)[-1] == "quit"
    else:
        assert vm.poll() is None and "quit" not in asked(files) and "cont" not in asked(files)


@pytest.mark.parametrize("guest, loads", [("paused", True), ("io-error", True), ("running", False)])
def test_the_memory_of_a_guest_without_room_is_loaded(
    cache: Path, processes: Processes, guest: str, loads: bool
) -> None:
    """It stands still; `cont` has it write again what had no room. (25)"""
    state = made(cache)
    qemu(processes, state.files, guest)
    expected = contextlib.nullcontext() if loads else pytest.raises(YclusterError, match=guest)
    with ycluster.Qmp.connect(state.files.qmp, HERE.monotonic, timeout=5.0) as qmp, expected:
        ycluster._load(HERE, qmp, state)


def test_a_vm_without_a_monitor_has_run(cache: Path, processes: Processes) -> None:
    """The sibling has booted the disk; its pause is a SIGSTOP."""
    state = made(cache, suspended=KEPT)
    state.files.memory.write_text("what ran in it")
    vm = stand_in(processes, state.files, "")
    vm.send_signal(signal.SIGSTOP)
    assert ycluster._settled(HERE, state).suspended is None
    assert vm.poll() is None and not state.files.memory.exists()


def test_a_guest_that_sleeps_by_its_own_will_is_not_called_suspended(
    cache: Path, processes: Processes
) -> None:
    files = made(cache).files
    qemu(processes, files, "suspended")
    assert ycluster.vm_status(HERE, files) == "asleep"


@pytest.mark.parametrize("guest", ["suspended", "guest-panicked"])
def test_a_guest_whose_memory_could_not_be_loaded_again_is_not_suspended(
    cache: Path, processes: Processes, guest: str
) -> None:
    state = made(cache)
    vm = qemu(processes, state.files, guest)
    with pytest.raises(YclusterError, match=guest):
        ycluster._suspend(HERE, state, ycluster.Vm(vm.pid, os.pidfd_open(vm.pid)))
    assert asked(state.files) == ["query-status"] and vm.poll() is None


@pytest.mark.parametrize(
    "guest, then",
    [
        ("running", ["query-status", "stop", "query-migrate", "migrate_cancel", "query-migrate", "cont"]),
        ("paused", ["query-status", "stop", "query-migrate", "migrate_cancel", "query-migrate"]),
        ("postmigrate", ["query-status", "cont", "stop", "query-migrate", "migrate_cancel", "query-migrate", "cont"]),
        ("io-error", ["query-status", "cont", "stop", "query-migrate", "migrate_cancel", "query-migrate", "cont"]),
    ],
)  # fmt: skip
def test_a_suspend_that_fails_ends_its_migration_before_the_guest_goes_on(
    cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch, guest: str, then: list[str]
) -> None:
    """QEMU would stop the guest when it is through."""

    def fails(host: Host, state: State, qmp: ycluster.Qmp) -> Suspended:
        state.files.memory_part.touch()
        raise OSError(errno.ENOSPC, "no room")

    monkeypatch.setattr(ycluster, "write_memory", fails)
    state = made(cache)
    vm = qemu(processes, state.files, guest, "active")
    with pytest.raises(OSError, match="no room"):
        ycluster._suspend(HERE, state, ycluster.Vm(vm.pid, os.pidfd_open(vm.pid)))
    assert asked(state.files) == then
    assert not state.files.memory_part.exists() and ycluster.load_state(state.files) == state


def test_a_migration_that_was_left_alone_is_ended(cache: Path, processes: Processes) -> None:
    state = made(cache)
    state.files.memory_part.touch()
    qemu(processes, state.files, "running", "active")
    assert ycluster._settled(HERE, state) == state
    assert asked(state.files) == ["query-migrate", "migrate_cancel", "query-migrate"]
    assert not state.files.memory_part.exists()


def test_a_suspend_leaves_a_vm_without_a_monitor_as_it_is(
    cli: Cli, cache: Path, processes: Processes, timer: Memory
) -> None:
    """The sibling's, which its expiry has frozen: nothing would end it if it were woken."""
    state = made(cache)
    vm = stand_in(processes, state.files, "")
    vm.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, vm.pid, os.WSTOPPED | os.WNOWAIT)
    told(cli("suspend", "--name", "demo"), 1, "no monitor")
    assert ycluster.process_stat(vm.pid)[1] == "T"


# --- an expiry


def test_nothing_keeps_an_expiry_from_ending_the_vm(
    host: Clocked,
    cache: Path,
    timer: Memory,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that became read-only: even a file that is not there can't be removed."""
    state = made(cache, expires_at=int(NOW) - 5)
    vm = stand_in(processes, state.files)

    def read_only(path: Path) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(ycluster, "remove", read_only)
        ycluster.reap(host, state.files, by="memory")
    assert vm.wait(60) == 0


def test_an_expiry_that_finds_nothing_to_suspend_says_so(
    host: Clocked, cache: Path, timer: Memory
) -> None:
    state = made(cache, expires_at=int(NOW) - 5, on_expiry="suspend")
    ycluster.reap(host, state.files, by="memory")
    reaped = ycluster.load_state(state.files).reaped
    assert reaped and (reaped.action, reaped.how) == ("stop", "was not running")


# --- the programs beside it


@pytest.mark.parametrize("script", ["echo no room >&2; exit 3", "kill -9 $$"])
def test_the_program_that_failed_first_is_the_cause(script: str) -> None:
    host = Host(dict(os.environ), Output(io.StringIO(), io.StringIO()))

    def beside() -> Any:
        with host.beside(["sh", "-c", script], stdin=os.open("/dev/null", os.O_RDONLY)) as pipe:
            while pipe.read(1):
                pass
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            raise YclusterError("a broken pipe")

    with pytest.raises(ycluster.ProgramFailed):
        beside()


# --- what would cost a memory


def suspended(cache: Path, **fields: Any) -> State:
    """A cluster with what ran in it in a file."""
    state = with_disk(cache, started_at=int(NOW), image="/i", suspended=KEPT, **fields)
    state.files.memory.write_text("what ran in it")
    return state


@pytest.mark.parametrize(
    "verb",
    [
        "stop",
        "resume",
        "start",
        "suspend",
        "pause",
        "lifetime reap",
        "lifetime disarm",
        "lifetime arm",
    ],
)
def test_a_state_that_came_back_from_before_the_suspend_costs_no_memory(
    cli: Cli, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """Whatever verb came first removed it, in silence."""
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    before = with_disk(cache, started_at=int(NOW), image="/i", expires_at=int(NOW) + 10**8)
    yesterday = before.files.sidecar.read_bytes()
    state = suspended(cache, ran_with="kvm")
    state.files.sidecar.write_bytes(yesterday)
    ran = cli(*verb.split(), "demo")
    assert "older than what was saved last" in ran.err
    cli("stop", "demo")
    assert state.files.memory.exists()
    assert ycluster.load_state(state.files) == state, "the machine that it fits, too"
    assert cli("stop", "demo", "--discard-memory").code == 0 and not state.files.memory.exists()


def test_a_memory_that_no_state_knows_of_goes(cli: Cli, cache: Path, timer: Memory) -> None:
    """It is of before the last start, and would be the ruin of the disk."""
    state = suspended(cache)
    ycluster.save_state(replace(state, suspended=None))
    assert cli("stop", "demo").code == 0 and not state.files.memory.exists()


@pytest.mark.parametrize("why, code", [("usage", 2), ("disk", 4), ("port", 5)])
def test_a_start_that_is_refused_has_discarded_nothing(
    cli: Cli, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch, why: str, code: int
) -> None:
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if why == "port" else 0
        state = suspended(cache, max_total="12h", ssh_port=port)
        if why == "disk":
            state.files.disk.unlink()
        budget = ["--max-run", "20h"] if why == "usage" else []
        assert cli("start", "demo", "--discard-memory", *budget).code == code
    assert state.files.memory.exists() and ycluster.load_state(state.files).suspended == KEPT


def test_a_guest_that_had_just_been_suspended_is_not_torn_down_at_its_deadline(
    host: Clocked, cache: Path, timer: Memory, processes: Processes
) -> None:
    """Its suspend was killed after the state had been saved; its QEMU was taken for a VM that runs."""
    due = {"expires_at": int(NOW) - 5, "boot_id": host.boot_id(), "on_expiry": "teardown"}
    state = suspended(cache, **due, booted_at=round(host.clock().booted))
    vm = qemu(processes, state.files, "postmigrate")
    ycluster.reap(host, state.files, by="memory")
    after = ycluster.load_state(state.files)
    assert vm.wait(60) is not None and state.files.memory.exists() and state.files.disk.exists()
    assert after.suspended and after.suspended.at == KEPT.at and after.expires_at is None


def test_a_teardown_that_keeps_the_disk_alone_says_what_that_is(cli: Cli, cache: Path) -> None:
    state = suspended(cache)
    told(cli("teardown", "demo", "--keep-disk"), 0, "after a power cut", state.files.disk)
