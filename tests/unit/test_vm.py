"""Section 13: which process is the VM. Real processes stand in for QEMU."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from unit_support import (
    LAUNCHER,
    Cli,
    Clocked,
    Memory,
    Processes,
    made,
    missing,
    monitor,
    refused,
    stand_in,
    told,
)

import ycluster
from ycluster import Files, Host, Output, Vm, YclusterError, find_vm, stop_vm

HERE = Host({}, Output(io.StringIO(), io.StringIO()))  # this machine, with a clock that runs
TERM_IS_KEPT = """
import signal
signal.signal(signal.SIGTERM, lambda *args: print("SIGTERM", file=open("asked", "a"), flush=True))
"""
GOES_AT_CONT = "import os, signal; signal.signal(signal.SIGCONT, lambda *args: os._exit(0))"
IGNORE_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


# A guest that runs goes when its button is pressed; one that is deaf to it; a QEMU that ends when it is told to.
MONITOR = monitor(ends_at='what == "system_powerdown" and guest["status"] == "running"')
DEAF = monitor()
QUITS = monitor(ends_at='what == "quit"')


@pytest.fixture
def files(cache: Path) -> Files:
    return Files(cache, "demo")


def qemu(
    processes: Processes,
    files: Files,
    code: str = "",
    *,
    pidfile: str = "",
    fds: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """A process with QEMU's identity: our -pidfile in its argv, and its pid in that file."""
    words = ["-name", "demo", "-pidfile", pidfile or str(files.pidfile), "-daemonize"]
    monitor = ("-chardev", ycluster.monitor_option(files))
    process = processes.start(code, *words, *monitor, pass_fds=fds)
    files.pidfile.write_text(f"{process.pid}\n")
    return process


def found(files: Files) -> int | None:
    with find_vm(HERE, files) as vm:
        return vm.pid if vm else None


def state_letter(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


def changes(process: subprocess.Popen[bytes], how: int) -> bool:
    """Whether it is stopped, or goes on, before long."""
    until = time.monotonic() + 10
    while not os.waitpid(process.pid, how | os.WNOHANG)[0]:
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


# --- find_vm


def test_the_process_with_our_pidfile_is_the_vm(files: Files, processes: Processes) -> None:
    process = qemu(processes, files)
    assert found(files) == process.pid and ycluster.running(HERE, files)


def test_a_vm_that_has_ended_is_not_found(files: Files, processes: Processes) -> None:
    process = qemu(processes, files)
    process.kill()
    process.wait()
    assert found(files) is None


def test_a_vm_that_is_a_zombie_has_ended(files: Files, processes: Processes) -> None:
    process = qemu(processes, files)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert found(files) is None


def test_a_vm_that_ends_while_it_is_looked_for_is_not_found(
    files: Files, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pid, and a signal to it, would be for whoever gets the number next."""
    process, pidfd_open = qemu(processes, files), ycluster.pidfd_open

    def just_in_time(pid: int) -> int:
        pidfd = pidfd_open(pid)
        process.kill()
        process.wait()
        return pidfd

    before = sorted(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(ycluster, "pidfd_open", just_in_time)
    assert found(files) is None and sorted(os.listdir("/proc/self/fd")) == before


def test_a_foreign_process_in_the_pidfile_is_never_taken_for_the_vm(
    files: Files, processes: Processes
) -> None:
    innocent = processes.start("")
    files.pidfile.write_text(f"{innocent.pid}\n")
    assert found(files) is None


@pytest.mark.parametrize("other", ["/elsewhere/demo.pid", "demo2.pid", "demo.pid.bak"])
def test_the_vm_of_another_cluster_is_not_ours(
    files: Files, processes: Processes, other: str
) -> None:
    qemu(processes, files, pidfile=str(files.cache_dir / other))
    assert found(files) is None


def test_the_vm_is_known_by_another_spelling_of_its_directory(
    files: Files, processes: Processes, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(files.cache_dir)
    process = qemu(processes, files, pidfile=str(tmp_path / "link" / "demo.pid"))
    assert found(files) == process.pid


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"junk",
        b"-1",
        b"0",
        b"1",
        b"99999999999999",
        b"\xff\xfe",
        "\u0661\u0662".encode(),
        b"12 34",
    ],
)
def test_a_garbage_pidfile_names_no_process(files: Files, content: bytes) -> None:
    files.pidfile.write_bytes(content)
    assert found(files) is None


@pytest.mark.parametrize("left", [None, b"4194303\n", b"junk"], ids=["lost", "stale", "garbage"])
def test_a_vm_whose_pidfile_is_lost_is_found_by_its_lock(
    files: Files, processes: Processes, left: bytes | None
) -> None:
    fd = ycluster.try_flock(files.vm_lock)
    assert fd is not None
    process = processes.start("", "-pidfile", str(files.pidfile), pass_fds=[fd])
    os.close(fd)
    if left is not None:
        files.pidfile.write_bytes(left)
    assert found(files) == process.pid


def test_a_vm_whose_pidfile_and_lock_are_gone_is_found_by_its_argv(
    files: Files, processes: Processes, host: Clocked, timer: Memory
) -> None:
    """`rm dev.pid dev.vm.lock`: a teardown stops it before its disk goes. (21.1.2)"""
    made(files.cache_dir)
    files.disk.touch()
    process = qemu(processes, files, MONITOR)
    files.pidfile.unlink()
    assert ycluster.vm_status(host, files) == "running"
    ycluster.teardown(host, files)
    assert process.wait(60) == 0 and not files.disk.exists()


def test_a_vm_whose_folder_was_moved_is_found_by_its_lock(
    files: Files, processes: Processes, cli: Cli, timer: Memory, tmp_path: Path
) -> None:
    """Stop, reap and teardown work from the new place, and doctor takes it for no lost VM. (21.1.1)"""
    made(files.cache_dir)
    fd = ycluster.try_flock(files.vm_lock)
    assert fd is not None
    process = qemu(processes, files, MONITOR, fds=[fd])
    os.close(fd)
    moved = Files(tmp_path / "moved", "demo")
    files.cache_dir.rename(moved.cache_dir)
    assert found(moved) == process.pid
    findings = json.loads(cli("doctor", "-o", "json").out)["findings"]
    (finding,) = [one for one in findings if str(process.pid) in one["text"]]
    assert finding["remedy"] == f"ycluster stop --state {moved.sidecar}"
    assert cli("lifetime", "reap", "--state", moved.sidecar).code == 0  # now the index has it
    findings = json.loads(cli("doctor", "-o", "json").out)["findings"]
    assert [one["text"] for one in findings if str(process.pid) in one["text"]] == []
    assert cli("stop", "--name", "demo").code == 0 and process.wait(60) == 0


def test_a_pid_that_comes_to_mean_another_process_during_the_look_is_not_the_vm(
    files: Files, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, innocent = qemu(processes, files), processes.start("")
    real = ycluster.pidfd_open

    def comes_too_late(pid: int) -> int:
        process.kill()
        process.wait()
        return real(innocent.pid)

    monkeypatch.setattr(ycluster, "pidfd_open", comes_too_late)
    assert found(files) is None


def test_finding_leaves_no_descriptor_open(files: Files, processes: Processes) -> None:
    qemu(processes, files)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        found(files)
    files.pidfile.write_text("1")
    found(files)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_vm_that_does_not_tell_its_ports_is_not_left_running(
    host: Clocked, files: Files, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = made(files.cache_dir, accel="tcg", machine="q35", auto_ports=(22,))
    started: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(
        ycluster, "_spawn_qemu", lambda *args: started.append(qemu(processes, files))
    )
    with pytest.raises(ycluster.QmpError):
        ycluster.launch(host, state)
    assert [process.wait(60) for process in started] == [-signal.SIGKILL]


# --- vm_status, pause, resume


def test_status_follows_the_process(files: Files, processes: Processes, host: Clocked) -> None:
    assert ycluster.vm_status(host, files) == "stopped"
    process = qemu(processes, files)
    assert ycluster.vm_status(host, files) == "running"
    with find_vm(HERE, files) as vm:
        assert vm and ycluster.pause_vm(host, files, vm) == "SIGSTOP"
    assert changes(process, os.WUNTRACED)
    assert ycluster.vm_status(host, files) == "paused" and state_letter(process.pid) == "T"
    with find_vm(HERE, files) as vm:
        assert vm
        ycluster.resume_vm(host, files, vm)
    assert changes(process, os.WCONTINUED)
    assert ycluster.vm_status(host, files) == "running"


def test_a_guest_is_paused_by_its_monitor_and_goes_on(
    files: Files,
    processes: Processes,
    host: Clocked,
) -> None:
    process = qemu(processes, files, MONITOR)
    with find_vm(HERE, files) as vm:
        assert vm and ycluster.pause_vm(host, files, vm) == "QMP stop"
        assert ycluster.vm_status(host, files) == "paused" and state_letter(process.pid) != "T"
        ycluster.resume_vm(host, files, vm)
    assert ycluster.vm_status(host, files) == "running"


def test_a_guest_is_not_woken_before_a_timer_guards_it(
    files: Files, processes: Processes, host: Clocked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ycluster, "TIMERS", (Memory("none", [], unusable="no daemon"),))
    qemu(processes, files, MONITOR)
    made(files.cache_dir)
    with find_vm(HERE, files) as vm:
        assert vm and ycluster.pause_vm(host, files, vm)
    with pytest.raises(ycluster.PrerequisiteError):
        ycluster.resume(host, ycluster.Selector(state_file=files.sidecar))
    assert ycluster.vm_status(host, files) == "paused"


def test_a_monitor_that_does_not_answer_is_unresponsive(
    files: Files, processes: Processes, host: Clocked
) -> None:
    qemu(processes, files)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(files.qmp))
    assert ycluster.vm_status(host, files) == "unresponsive"


@pytest.mark.parametrize("answer", ["{}", "null", "[]", '"x"', '{"status": 1}'])
def test_a_monitor_with_an_odd_answer_is_unresponsive(
    files: Files, processes: Processes, host: Clocked, answer: str
) -> None:
    """And no internal error, which would empty the whole list. (21.4.3)"""
    qemu(processes, files)
    greeting = b'{"QMP": {}}\n{"return": {}, "id": 1}\n'
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(files.qmp))
        server.listen()

        def serve() -> None:
            client, _ = server.accept()
            with client:
                client.sendall(greeting + f'{{"return": {answer}, "id": 2}}\n'.encode())
                while client.recv(1000):
                    pass

        monitor = threading.Thread(target=serve)
        monitor.start()
        assert ycluster.vm_status(host, files) == "unresponsive"
        monitor.join()


# --- stop_vm


def stopped_by(
    host: ycluster.Host, files: Files, process: subprocess.Popen[bytes], ssh: object = None
) -> tuple[str, int]:
    """The rung that ended it, and its exit status."""
    with find_vm(HERE, files) as vm:
        assert vm
        rung = stop_vm(host, files, vm, ssh or (lambda: None), lambda: False)  # type: ignore[arg-type]
    return rung, process.wait(60)


class Impatient(Clocked):
    """Time passes where QEMU is looked at in vain, and there alone: the rungs of the ladder come
    quickly, and a slow machine costs none of them its time."""

    deaf_to: frozenset[int] = frozenset()  # the signals that do not end it
    is_doomed = False  # It has got one that does.


@pytest.fixture
def impatient(home: Path, monkeypatch: pytest.MonkeyPatch) -> Impatient:
    host, exited, send = Impatient(home), ycluster.exited, ycluster.send_signal

    def looks(pidfd: int, timeout: float) -> bool:
        if exited(pidfd, 60 if host.is_doomed and timeout > 0 else timeout / 25):
            return True
        host.time += max(0.0, timeout)
        return False

    def sends(pidfd: int, signum: int) -> None:
        send(pidfd, signum)
        host.is_doomed |= signum in {signal.SIGTERM, signal.SIGKILL} - host.deaf_to

    monkeypatch.setattr(ycluster, "exited", looks)
    monkeypatch.setattr(ycluster, "send_signal", sends)
    monkeypatch.setattr(ycluster, "POWERDOWN_TIMEOUT", 10.0)
    return host


def test_a_paused_guest_is_woken_so_that_it_can_shut_down(
    files: Files,
    processes: Processes,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killing QEMU instead would drop what the guest wrote last."""
    monkeypatch.setattr(ycluster, "POWERDOWN_TIMEOUT", 3.0)
    host = ycluster.Host({}, Clocked(home).output)  # in real time
    process = qemu(processes, files, MONITOR)
    with find_vm(HERE, files) as vm:
        assert vm and ycluster.pause_vm(host, files, vm)
    assert stopped_by(host, files, process, process.kill) == ("guest-shutdown", 0)
    assert (files.cache_dir / "asked").read_text().split()[-2:] == ["cont", "system_powerdown"]


def test_a_vm_that_nothing_ends_is_an_error(
    files: Files, processes: Processes, impatient: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu(processes, files)
    monkeypatch.setattr(ycluster, "send_signal", lambda pidfd, signum: None)
    with find_vm(HERE, files) as vm, pytest.raises(YclusterError):
        assert vm
        stop_vm(impatient, files, vm, lambda: None, lambda: False)


def test_a_vm_with_no_monitor_is_powered_off_by_ssh(
    files: Files, processes: Processes, impatient: Impatient
) -> None:
    process = qemu(processes, files)
    assert stopped_by(impatient, files, process, process.kill)[0] == "ssh poweroff"


@pytest.mark.parametrize(
    "frozen, error",
    [
        (False, ycluster.ProgramFailed(["ssh"], 255, "no route")),
        (True, OSError(errno.ENOENT, "ssh")),
    ],
    ids=["awake", "frozen"],
)
def test_a_rung_that_fails_leads_to_the_next(
    files: Files, processes: Processes, impatient: Impatient, frozen: bool, error: Exception
) -> None:
    def ssh() -> None:
        raise error

    process = qemu(processes, files)
    if frozen:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
    assert stopped_by(impatient, files, process, ssh) == ("SIGTERM", -signal.SIGTERM)
    assert missing(impatient.log.getvalue(), "warning: demo: ssh poweroff") == []


# A guest that stands still for want of room, and gets none; and one that gets some after a while.
FULL = monitor("io-error", ends_at='what == "quit"').replace(
    '{"stop": "paused", "cont": "running"}', "{}"
)
# As it shuts down, it wants to write what has no room at first.
FREED = MONITOR.replace(
    '"cont": "running"',
    '"cont": "running", "system_powerdown": '
    'guest["status"] if open("asked").read().count("power") > 1 else "io-error"',
)


def test_a_guest_without_room_is_not_cut_off_before_it_has_written(
    files: Files, processes: Processes, impatient: Impatient
) -> None:
    """What it has in memory alone would be lost, of files that it has closed. (25)"""
    process = qemu(processes, files, FULL)
    files.disk.touch()
    assert ycluster.vm_status(HERE, files) == "io-error"
    with refused(YclusterError, "room", "shut down") as caught:
        stopped_by(impatient, files, process)
    assert missing(caught.value.hint, "prune", f"`kill {process.pid}`") == []
    assert process.poll() is None and "quit" not in (files.cache_dir / "asked").read_text()
    with find_vm(HERE, files) as vm:
        assert vm and stop_vm(impatient, files, vm, lambda: None, lambda: True) == "QMP quit"


def test_a_guest_without_room_whose_disk_was_removed_can_be_stopped(
    files: Files, processes: Processes, impatient: Impatient
) -> None:
    """To make room; it comes once QEMU has closed it."""
    process = qemu(processes, files, FULL)
    assert ycluster._halt(impatient, made(files.cache_dir)) == "QMP quit"
    assert process.wait(60) == 0


def late(code: str, seconds: float, when: str) -> str:
    """A monitor that answers so late, when that is true, what it is asked of the guest's state."""
    line = 'what = request["execute"]'
    wait = f"what == 'query-status' and {when} and time.sleep({seconds})"
    return code.replace(line, f"{line}\n                import time; {wait}")


def test_a_guest_that_had_no_room_and_answers_no_more_is_not_cut_off(
    files: Files, processes: Processes, impatient: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ycluster, "ANSWER_TIMEOUT", 0.2)
    process = qemu(processes, files, late(FULL, 0.5, "open('asked').read().count('cont')"))
    with refused(YclusterError, "room"):
        stopped_by(impatient, files, process)
    assert process.poll() is None and "quit" not in (files.cache_dir / "asked").read_text()


def test_before_a_guest_is_cut_off_its_monitor_has_long_to_say_that_it_has_no_room(
    files: Files, processes: Processes, impatient: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any other look has two seconds. It shut down, and then had none."""
    monkeypatch.setattr(ycluster, "ANSWER_TIMEOUT", 600.0)
    is_late = files.cache_dir / "late"
    code = late(FREED.replace("> 1", "> 99"), 3.0, "os.path.exists('late')")
    process = qemu(processes, files, code)
    with refused(YclusterError, "room"):
        stopped_by(impatient, files, process, is_late.touch)
    assert process.poll() is None and "quit" not in (files.cache_dir / "asked").read_text()


def test_a_teardown_cuts_no_guest_off_from_a_disk_that_stays(
    files: Files, processes: Processes, impatient: Impatient, timer: Memory, tmp_path: Path
) -> None:
    """A data disk, one that another builds on, one that no state claims, one that is to be kept. (25)"""
    process = qemu(processes, files, FULL)
    files.disk.touch()
    with refused(YclusterError, "room"):
        ycluster.teardown(impatient, files)
    # A data disk that has another name by now, or whose file server is away, stays, too.
    state = made(files.cache_dir, data_disk=str(tmp_path / "data.qcow2"))
    for boot_disk_is_there in (True, False):
        if not boot_disk_is_there:
            files.disk.unlink()
        for end in (ycluster.END_BY["teardown"], ycluster._halt):
            with refused(YclusterError, "room"):
                end(impatient, state)
        with refused(YclusterError, "room"):
            ycluster.teardown(impatient, files)
    made(files.cache_dir)
    files.disk.touch()
    with refused(YclusterError, "room"):
        ycluster.teardown(impatient, files, keep_disk=True)
    assert process.poll() is None
    ycluster.teardown(impatient, files)  # what it has not written goes with its disk
    assert process.wait(60) == 0 and not files.disk.exists()


def test_a_guest_without_room_whose_state_and_disk_are_lost_can_be_stopped(
    files: Files, processes: Processes, impatient: Impatient, timer: Memory
) -> None:
    process = qemu(processes, files, FULL)
    files.sidecar.write_text("rubbish")
    ycluster.stop(impatient, files)
    assert process.wait(60) == 0


@pytest.mark.parametrize("action", ["stop", "teardown"])
def test_no_disk_is_looked_for_before_a_vm_is_stopped(
    host: Clocked,
    cache: Path,
    processes: Processes,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
    action: str,
) -> None:
    """One on a file server that is away would keep the VM running, or block."""
    away = str(cache / "away/data.qcow2")
    ends = int(host.now()) - 5
    state = made(cache, expires_at=ends, on_expiry=action, ending=action, data_disk=away)
    vm = stand_in(processes, state.files)
    stat = Path.stat

    def looked(path: Path, **options: bool) -> os.stat_result:
        if str(path) == away and vm.poll() is None:
            raise OSError(errno.ENOTCONN, "Transport endpoint is not connected", away)
        return stat(path, **options)

    monkeypatch.setattr(Path, "stat", looked)
    ycluster.reap(host, state.files, by="hand")
    assert vm.wait(60) is not None


def test_a_guest_that_soon_has_no_room_again_has_not_been_resumed(
    cli: Cli, files: Files, processes: Processes, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs for a moment, until it comes to its write again."""
    line = 'what = request["execute"]'
    again = "if os.path.exists('a while later'): guest['status'] = 'io-error'"
    code = monitor("io-error").replace(line, f"{line}\n                {again}")
    qemu(processes, files, code)
    monkeypatch.setattr(Host, "sleep", lambda *_: (files.cache_dir / "a while later").touch())
    before = made(files.cache_dir, started_at=1, expires_at=int(time.time()) - 5)
    told(cli("resume"), 1, "room")
    assert ycluster.load_state(files).expires_at == before.expires_at


def test_a_failed_resume_leaves_disarmed_what_was(
    cli: Cli, files: Files, processes: Processes, timer: Memory
) -> None:
    """Its deadline had passed, and the next reap would have torn it down."""
    process = qemu(processes, files, FULL)
    files.disk.touch()
    past = int(time.time()) - 100
    made(files.cache_dir, started_at=1, expires_at=past, on_expiry="teardown")
    assert cli("lifetime", "disarm").code == 0
    told(cli("resume"), 1, "room")
    assert ycluster.load_state(files).disarmed
    assert cli("lifetime", "reap").code == 0
    assert process.poll() is None and files.disk.exists()


def test_a_cluster_whose_vm_does_not_answer_is_not_busy_with_the_verb_that_asks(
    host: Clocked, files: Files, processes: Processes, home: Path
) -> None:
    qemu(processes, files)
    files.qmp.touch()
    with ycluster.cluster_lock(host, files):
        assert ycluster.vm_status(host, files) == "unresponsive"
        other = Host({"HOME": str(home)}, host.output)
        assert ycluster.vm_status(other, files) == "busy"


def test_a_pause_waits_for_a_stop_that_is_under_way_without_the_lock(
    host: Clocked,
    files: Files,
    processes: Processes,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """QEMU was stopped in the middle of its guest's shutdown, and then killed."""
    qemu(processes, files, MONITOR)
    made(files.cache_dir, expires_at=int(host.now()) + 60)
    seen = []

    def paused(host: Host, files: Files, vm: object) -> str:
        seen.append(ycluster.flock_held(files.stop_lock))
        return "QMP stop"

    monkeypatch.setattr(ycluster, "pause_vm", paused)
    ycluster.pause(host, files)
    assert seen == [True]


@pytest.mark.parametrize("disarmed", [False, True])
def test_a_resume_whose_monitor_does_not_answer_since_keeps_what_ends_it(
    cli: Cli,
    files: Files,
    processes: Processes,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
    disarmed: bool,
) -> None:
    """The guest runs: without its new deadline it would run for ever."""
    line = 'what = request["execute"]'
    deaf = f"{line}\n                if what == 'query-status' and 'cont' in open('asked').read():"
    qemu(processes, files, monitor("paused").replace(line, f"{deaf} import time; time.sleep(99)"))
    monkeypatch.setattr(ycluster, "ANSWER_TIMEOUT", 0.5)
    now = int(time.time())
    if disarmed:
        made(files.cache_dir, started_at=1, expires_at=now + 5000)
        assert cli("lifetime", "disarm").code == 0
    else:
        made(files.cache_dir, started_at=1, reaped=ycluster.Reaped(now, "pause", "at", "QMP stop"))
    told(cli("resume"), 1, "monitor", "`ycluster status demo`")
    after = ycluster.load_state(files)
    assert after.disarmed == disarmed
    if not disarmed:
        assert after.expires_at and after.expires_at >= now + 8 * 3600 and timer.standing


@pytest.mark.parametrize("action, ends", [("stop", False), ("suspend", False), ("teardown", True)])
def test_an_expiry_waits_until_there_is_room_unless_the_disk_goes_anyway(
    files: Files, processes: Processes, impatient: Impatient, timer: Memory, action: str, ends: bool
) -> None:
    """It is tried again; the guest uses no CPU meanwhile. (25)"""
    process = qemu(processes, files, FULL)
    files.disk.touch()
    made(files.cache_dir, started_at=1, expires_at=int(impatient.now()) - 1, on_expiry=action)
    if ends:
        ycluster.reap(impatient, files, by="memory")
        assert process.wait(60) == 0 and not files.disk.exists()
        return
    with refused(YclusterError, "again at", "room"):
        ycluster.reap(impatient, files, by="memory")
    after = ycluster.load_state(files)
    assert process.poll() is None and after.retry_at and timer.standing


def test_a_guest_that_gets_room_while_it_is_stopped_shuts_down(
    files: Files, processes: Processes, impatient: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ycluster, "POWERDOWN_TIMEOUT", 100.0)
    process = qemu(processes, files, FREED)
    assert stopped_by(impatient, files, process)[0] == "guest-shutdown"


def test_a_guest_without_room_can_be_paused(
    files: Files, processes: Processes, host: Clocked
) -> None:
    qemu(processes, files, monitor("io-error"))
    with find_vm(HERE, files) as vm:
        assert vm and ycluster.pause_vm(host, files, vm) == "QMP stop"
    assert ycluster.vm_status(host, files) == "paused"


def test_what_a_guest_without_room_needs_is_told(
    cli: Cli, files: Files, processes: Processes, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its state is a word of QEMU's; `start` would say that it runs. (25)"""
    monkeypatch.setattr(ycluster.Host, "which", lambda self, program: None)
    qemu(processes, files, FULL)
    files.disk.touch()
    now = int(time.time())
    made(files.cache_dir, started_at=1, expires_at=now - 1, retry_at=now + 999)
    assert missing(cli("status").out, "io-error", "room", "`ycluster resume --name demo`") == []
    before = ycluster.load_state(files)
    told(cli("resume"), 1, "room")
    after = ycluster.load_state(files)
    assert (after.expires_at, after.started_at) == (before.expires_at, before.started_at)
    assert after.timers and timer.standing, "and no fresh budget"
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    for verb in ("start", "ssh"):
        told(cli(verb), 1, "io-error", "`ycluster resume --name demo`", "room")
    monkeypatch.setattr(os, "statvfs", lambda path: os.statvfs_result([0] * 10))
    with find_vm(HERE, files) as vm, refused(YclusterError, "MiB left") as caught:
        assert vm
        ycluster._check_room(HERE, files, vm)
    assert "stop" not in caught.value.hint, "which is refused, too"
    [finding] = ycluster._without_room(HERE, ycluster.load_state(files))
    assert "room" in finding.text and "resume --name demo" in finding.remedy


def test_a_vm_that_ignores_sigterm_is_killed(
    files: Files, processes: Processes, impatient: Impatient
) -> None:
    impatient.deaf_to = frozenset({signal.SIGTERM})
    process = qemu(processes, files, IGNORE_TERM)
    assert stopped_by(impatient, files, process) == ("SIGKILL", -signal.SIGKILL)


def test_a_vm_that_has_ended_meanwhile_needs_no_rung(
    files: Files, processes: Processes, host: Clocked
) -> None:
    process = qemu(processes, files)
    with find_vm(HERE, files) as vm:
        assert vm
        process.kill()
        process.wait()
        assert stop_vm(host, files, vm, lambda: None, lambda: False) == "guest-shutdown"


def test_a_vm_is_asked_to_end_ever_less_gently(
    files: Files, processes: Processes, impatient: Impatient
) -> None:
    impatient.deaf_to = frozenset({signal.SIGTERM})
    asked = files.cache_dir / "asked"
    process = qemu(processes, files, TERM_IS_KEPT + DEAF)

    def ssh() -> None:
        with asked.open("a") as file:
            print("ssh", file=file)

    assert stopped_by(impatient, files, process, ssh) == ("SIGKILL", -signal.SIGKILL)
    steps = ["system_powerdown", "ssh", "quit", "SIGTERM"]
    words = asked.read_text().split()
    assert sorted(steps, key=words.index) == steps


@pytest.mark.parametrize(
    "code, ssh, clean",
    [
        (MONITOR, "", True),
        ("", "kill $(cat demo.pid)", True),
        (QUITS, "", False),
        ("", "", False),
        (IGNORE_TERM, "", False),
    ],
    ids=["guest-shutdown", "ssh poweroff", "QMP quit", "SIGTERM", "SIGKILL"],
)
def test_only_a_guest_that_shut_down_by_itself_is_prepared_for_export(
    files: Files,
    processes: Processes,
    impatient: Impatient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    code: str,
    ssh: str,
    clean: bool,
) -> None:
    monkeypatch.setattr(ycluster, "check_host_kernel", lambda host: None)
    scripts = {
        "ssh": f'cd {files.cache_dir}; case "$*" in *poweroff) {ssh or ":"};; esac',
        "virt-customize": f": >{tmp_path}/customized",
        "guestfish": "",
        "zerofree": "",
    }
    for name, script in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    if code == IGNORE_TERM:
        impatient.deaf_to = frozenset({signal.SIGTERM})
    impatient.environ["PATH"] = f"{tmp_path}:{os.environ['PATH']}"
    made(files.cache_dir, image="/image", started_at=1)
    files.disk.touch()
    qemu(processes, files, code)
    with contextlib.nullcontext() if clean else pytest.raises(YclusterError):
        ycluster.prepare_export(impatient, files)
    assert ycluster.load_state(files).prepared == ("done" if clean else "")
    assert (tmp_path / "customized").exists() is clean


def test_no_signal_ever_reaches_a_process_that_is_not_the_vm(
    files: Files, processes: Processes, impatient: Impatient
) -> None:
    """The pidfile comes to name an innocent process between the look and the stop."""
    process, innocent = qemu(processes, files), processes.start("")
    with find_vm(HERE, files) as vm:
        assert vm
        files.pidfile.write_text(str(innocent.pid))
        other = Vm(innocent.pid, vm.pidfd)
        assert stop_vm(impatient, files, other, lambda: None, lambda: False) == "SIGTERM"
    assert process.wait(60) == -signal.SIGTERM
    assert innocent.poll() is None and state_letter(innocent.pid) in "SR"


def test_halting_a_cluster_whose_pidfile_names_an_innocent_process_does_nothing(
    files: Files, processes: Processes, host: Clocked
) -> None:
    innocent = processes.start("")
    files.pidfile.write_text(str(innocent.pid))
    ycluster.save_state(
        ycluster.State(name="demo", cache_dir=str(files.cache_dir), lifetime="1h", expires_at=1)
    )
    ycluster.reap(host, files, by="test")
    assert innocent.poll() is None and ycluster.load_state(files).expires_at is None


# --- what must not be mistaken


def test_a_python_without_pidfds_of_its_own_signals_by_them_all_the_same(
    files: Files, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "pidfd_open")
    monkeypatch.delattr(signal, "pidfd_send_signal")
    process = qemu(processes, files)
    with find_vm(HERE, files) as vm:
        assert vm is not None and vm.pid == process.pid
        ycluster.send_signal(vm.pidfd, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with pytest.raises(ProcessLookupError):
        ycluster.pidfd_open(process.pid)


def test_list_looks_through_all_processes_once_however_many_clusters_there_are(
    cli: Cli, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each without a pidfile took a look of its own, as one whose pidfile is lost may run."""
    for number in range(20):
        made(cache, f"c{number}")
    files = Files(cache, "c7")
    qemu(processes, files)
    files.pidfile.unlink(missing_ok=True)
    looks, pids = [], ycluster.pids
    monkeypatch.setattr(ycluster, "pids", lambda: looks.append(1) or pids())
    shown = {
        one["name"]: one["state"] for one in json.loads(cli("list", "-o", "json").out)["clusters"]
    }
    assert shown.pop("c7") not in ("stopped", "unseen") and set(shown.values()) == {"stopped"}
    assert len(looks) <= 2  # the other: VMs of which the state file is lost


@pytest.mark.parametrize("gone", ["its folder", "its state file"])
def test_a_vm_whose_files_are_gone_is_found_by_its_argv(
    cli: Cli,
    home: Path,
    tmp_path: Path,
    processes: Processes,
    gone: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """doctor and list name it, and a provision of its name, wherever that would be, is refused. (20.12, 21)"""
    monkeypatch.setattr(Host, "need", lambda self, programs: None)
    files = Files(home / ".cache" / "y-cluster-qemu", "demo")
    files.cache_dir.mkdir(parents=True)
    made(files.cache_dir)
    process = qemu(processes, files)
    other = qemu(processes, Files(tmp_path, "other"))  # of another name: no obstacle
    made(tmp_path, "other")
    if gone == "its folder":
        shutil.rmtree(files.cache_dir)
    else:
        for path in files.cache_dir.iterdir():
            path.unlink()
    assert found(files) == process.pid
    # Other programs of the user's run VMs of theirs with pidfiles, too.
    theirs = processes.start("", "-name", "vm,process=vm", "-pidfile", str(tmp_path / "vm.pid"))
    lost = list(ycluster.lost_vms())
    assert (process.pid, files) in lost and not {theirs.pid, other.pid} & {pid for pid, _ in lost}
    findings = json.loads(cli("doctor", "-o", "json").out)["findings"]
    named = [one for one in findings if str(process.pid) in one["text"]]
    assert [one["level"] for one in named] == ["failure"]
    remedy = shlex.join(["ycluster", "stop", "--state", str(files.sidecar)])
    assert [one["remedy"] for one in named] == [remedy]
    assert not missing(cli("list").err, f"warning: demo runs (pid {process.pid})", remedy)
    config = tmp_path / "config"
    config.mkdir()
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "elsewhere"))
    text = "name: demo\nk3s: {install: none}\nsshPort: 0\n"
    (config / "y-cluster-provision.yaml").write_text(text)
    told(cli("provision", "-c", config), 1, "demo", process.pid)
    assert not (tmp_path / "elsewhere").exists() and process.poll() is None


@pytest.mark.parametrize("lost", ["its state file", "what is in it"])
def test_a_vm_whose_state_is_lost_is_shut_down_by_its_monitor(
    cli: Cli, files: Files, processes: Processes, timer: Memory, lost: str
) -> None:
    """The remedy of doctor's: the power button, and no signal that its guest does not see. (21.1.1)"""
    made(files.cache_dir)
    files.disk.touch()
    process = qemu(processes, files, MONITOR + TERM_IS_KEPT)
    if lost == "its state file":
        files.sidecar.unlink()
        files.copy.unlink()
    else:
        files.sidecar.write_text("rubbish")
        told(cli("status", "--name", "demo"), 4, "ycluster stop --state", files.sidecar)
    assert cli("stop", "--state", files.sidecar).code == 0
    assert process.wait(60) == 0 and files.disk.exists()
    asked = (files.cache_dir / "asked").read_text().split()
    assert asked[-1] == "system_powerdown" and "SIGTERM" not in asked
    assert cli("stop", "--state", files.sidecar).code == 4  # then there is nothing to stop


@pytest.mark.parametrize("ready", [True, False], ids=["its watcher", "a watcher that would end"])
def test_a_vm_whose_folder_is_gone_is_shut_down_by_its_watcher(
    cli: Cli, files: Files, processes: Processes, timer: Memory, ready: bool
) -> None:
    """That can log in to the guest; one of an earlier version, which would end, is let be. (21.1.1)"""
    made(files.cache_dir)
    process = qemu(processes, files, "" if ready else GOES_AT_CONT)
    code = "import os, signal, sys\n"
    if ready:
        kill = f"lambda *args: os.kill({process.pid}, signal.SIGTERM)"
        code += f"signal.signal(signal.SIGUSR1, {kill})"
    words = ["lifetime", "watch", "--state", str(files.sidecar), "--by", "watcher"]
    watcher = processes.start(code, *words)
    shutil.rmtree(files.cache_dir)
    assert cli("stop", "--state", files.sidecar).code == 0
    assert process.wait(60) == (-signal.SIGTERM if ready else 0) and watcher.poll() is None


def test_a_vm_without_a_state_whose_folder_was_moved_is_shut_down_by_its_monitor(
    cli: Cli, files: Files, processes: Processes, timer: Memory, tmp_path: Path
) -> None:
    """QEMU's own lock tells where its socket is now. (21.1.1)"""
    files.cache_dir.mkdir(exist_ok=True)
    fd = ycluster.try_flock(files.vm_lock)
    assert fd is not None
    process = qemu(processes, files, MONITOR, fds=[fd])
    os.close(fd)
    files.cache_dir.rename(tmp_path / "moved")
    assert cli("stop", "--state", files.sidecar).code == 0 and process.wait(60) == 0
    assert (tmp_path / "moved" / "asked").read_text().split()[-1] == "system_powerdown"


def test_a_vm_out_of_sight_is_not_taken_for_stopped(
    host: Clocked, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another container's QEMU holds the lock: nothing may be concluded, and nothing removed."""
    state = made(
        files.cache_dir, expires_at=int(host.now()) - 5, on_expiry="teardown", ran_with="kvm"
    )
    files.disk.write_text("data")
    held = ycluster.try_flock(files.vm_lock)
    assert held is not None
    try:
        assert ycluster.vm_status(host, files) == "unseen"
        for act in (
            lambda: ycluster.stop(host, files),
            lambda: ycluster.teardown(host, files),
            lambda: ycluster.reap(host, files, by="hand"),
        ):
            with refused(YclusterError, "demo", "can't be seen"):
                act()
            assert files.disk.exists() and ycluster.load_state(files).expires_at == state.expires_at
    finally:
        os.close(held)


def test_stop_goes_on_until_no_process_of_the_cluster_is_left(
    files: Files, processes: Processes, impatient: Impatient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU's launcher has the same argv as the daemon that it leaves behind."""
    state = made(files.cache_dir)
    launcher, daemon = qemu(processes, files), qemu(processes, files)
    files.pidfile.write_text(str(launcher.pid))
    lock = os.open(files.vm_lock, os.O_RDWR | os.O_CREAT)
    os.close(lock)
    monkeypatch.setattr(
        ycluster, "flock_held", lambda path: path == files.vm_lock and daemon.poll() is None
    )
    monkeypatch.setattr(
        impatient,
        "run",
        lambda *args, **kw: (launcher if launcher.poll() is None else daemon).kill(),
    )
    ycluster.stop(impatient, state.files)
    assert launcher.wait(60) and daemon.wait(60) and not files.pidfile.exists()


@pytest.mark.parametrize("ran_with", ["", "tcg"])
@pytest.mark.parametrize("ending, kept", [("", True), ("teardown", False)])
def test_an_expiry_tears_nothing_down_that_it_finds_stopped(
    host: Clocked, files: Files, timer: Memory, ran_with: str, ending: str, kept: bool
) -> None:
    """What has stopped costs nothing to run. A teardown of ours that was cut off after it had
    stopped the VM goes on, though. (20.1)"""
    overdue = {"expires_at": int(host.now()) - 5, "on_expiry": "teardown"}
    made(files.cache_dir, **overdue, ran_with=ran_with, ending=ending)
    files.disk.write_text("data")
    ycluster.reap(host, files, by="hand")
    assert files.disk.exists() is kept and files.sidecar.exists() is kept
    if kept:
        after = ycluster.load_state(files)
        assert after.expires_at is None and after.timer is None
        assert after.reaped and after.reaped.action == "stop"


def test_a_teardown_that_fails_to_stop_the_vm_is_remembered_as_one_that_found_it(
    impatient: Impatient,
    files: Files,
    processes: Processes,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its second try tears down what the first has stopped. A verb that gives the cluster another
    end makes it forget. (20.1)"""
    overdue = {"expires_at": int(impatient.now()) - 5, "on_expiry": "teardown"}
    state = made(files.cache_dir, **overdue)
    files.disk.write_text("data")
    process = qemu(processes, files)

    def cut_off(*args: object) -> str:
        process.kill()
        process.wait()
        raise YclusterError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(ycluster, "stop_vm", cut_off)
        with pytest.raises(YclusterError):
            ycluster.reap(impatient, files, by="hand")
    half = ycluster.load_state(files)
    assert half.ending == "teardown" and half.retry_at and files.disk.exists()
    for other in (ycluster.stopped(half), ycluster.anchored(half, impatient.clock())):
        assert other.ending == ""
    assert state.ending == ""
    impatient.time = half.retry_at + 1
    ycluster.reap(impatient, files, by="hand")
    assert not files.disk.exists() and not files.sidecar.exists()


def test_a_better_timer_is_taken_when_one_arms_again(
    host: Clocked, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Memory(ycluster.Timer):
        launches = False

        def __init__(self, name: str) -> None:
            self.name, self.cancelled = name, []  # type: ignore[var-annotated]

        def arm(self, host: ycluster.Host, files: Files, deadline: int) -> str:
            return self.name

        def armed(self, host: ycluster.Host, files: Files, timer: ycluster.ArmedTimer) -> bool:
            return True

        def cancel(self, host: ycluster.Host, files: Files, timer: ycluster.ArmedTimer) -> None:
            self.cancelled.append(timer.id)

    best, worse = Memory("best"), Memory("worse")
    monkeypatch.setattr(ycluster, "TIMERS", (best, worse))
    ends = int(host.now()) + 60
    made(files.cache_dir, expires_at=ends, timers=(ycluster.ArmedTimer("worse", "old", ends),))
    ycluster.arm(host, ycluster.Selector(state_file=files.sidecar))
    assert ycluster.load_state(files).timer == ycluster.ArmedTimer("best", "best", ends)
    assert worse.cancelled == ["old"]


def test_a_host_without_a_home_still_finds_the_clusters_of_its_index(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(cache)
    host = Clocked(tmp_path, XDG_STATE_HOME=str(tmp_path / "state"))
    ycluster.remember_cache_dir(host, cache)
    monkeypatch.setattr(
        host, "home", lambda: (_ for _ in ()).throw(ycluster.PrerequisiteError("no home directory"))
    )
    assert ycluster.discover(host) == [Files(cache.resolve(), "demo")]


def test_resume_wakes_a_guest_that_stopped_by_itself_and_gives_it_a_deadline(
    host: Clocked, files: Files, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU stops a guest whose host disk is full (io-error), and says so by that name."""
    qemu(processes, files)
    made(files.cache_dir)
    woken: list[int] = []
    monkeypatch.setattr(
        ycluster, "vm_status", lambda host, files, **_: "running" if woken else "io-error"
    )
    monkeypatch.setattr(ycluster, "resume_vm", lambda host, files, vm: woken.append(vm.pid))
    monkeypatch.setattr(
        ycluster, "arm_timers", lambda host, state, *args, **kw: ycluster.save_state(state)
    )
    began = int(host.now())
    ycluster.resume(host, ycluster.Selector(state_file=files.sidecar))
    assert len(woken) == 1 and ycluster.load_state(files).expires_at == began + 8 * 3600


def test_a_resume_sets_the_clock_of_the_guest_once_the_lock_is_free(
    host: Clocked,
    files: Files,
    processes: Processes,
    timer: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As late as the pause was long, it would fail at certificates and leases. (20.20)"""
    qemu(processes, files, MONITOR)
    made(files.cache_dir, lifetime="")
    seen: list[object] = []

    def set_clock(host: Host, state: ycluster.State) -> None:
        seen.extend((ycluster.vm_status(host, files), ycluster.flock_held(files.lock)))

    monkeypatch.setattr(ycluster, "set_guest_clock", set_clock)
    ycluster.resume(host, ycluster.Selector(state_file=files.sidecar))
    assert seen == [], "it did not stand still"
    ycluster.pause(host, files)
    ycluster.resume(host, ycluster.Selector(state_file=files.sidecar))
    assert seen == ["running", False]


def test_resume_fails_where_the_guest_does_not_go_on(
    host: Clocked, files: Files, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    qemu(processes, files)
    made(files.cache_dir, lifetime="")
    monkeypatch.setattr(ycluster, "vm_status", lambda host, files, **_: "internal-error")
    monkeypatch.setattr(ycluster, "resume_vm", lambda host, files, vm: None)
    with refused(YclusterError, "demo", "internal-error"):
        ycluster.resume(host, ycluster.Selector(state_file=files.sidecar))


def test_a_verb_cannot_be_put_to_sleep_with_a_lock_in_its_hand(
    files: Files, tmp_path: Path, processes: Processes
) -> None:
    ends = ycluster.parse_time("2999-01-01T00:00:00Z")
    made(files.cache_dir, expires_at=ends, timers=(ycluster.ArmedTimer("watcher", "watch", ends),))
    argv = [
        str(LAUNCHER),
        "lifetime",
        "watch",
        "--state",
        str(files.sidecar),
        "--by",
        "watcher",
    ]
    process = subprocess.Popen([sys.executable, *argv], env={"HOME": str(tmp_path)})
    try:
        until = time.monotonic() + 60
        while not ycluster.flock_held(files.watch_lock):
            assert time.monotonic() < until
            time.sleep(0.02)  # a look takes the lock for a moment
        [ignored] = [
            line.split()[1]
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
            if line.startswith("SigIgn:")
        ]
        assert int(ignored, 16) >> (signal.SIGTSTP - 1) & 1
    finally:
        process.kill()
        process.wait()
