"""Section 13: which process is the VM. Real processes stand in for QEMU."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from unit_support import Clocked, Processes

import ycluster
from ycluster import Files, Vm, find_vm, stop_vm

IGNORE_TERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"


@pytest.fixture
def files(cache: Path) -> Files:
    return Files(cache, "demo")


def qemu(processes: Processes, files: Files, code: str = "", *, pidfile: str = "") -> subprocess.Popen[bytes]:
    """A process with QEMU's identity: our -pidfile in its argv, and its pid in that file."""
    process = processes.start(code, "-name", "demo", "-pidfile", pidfile or str(files.pidfile), "-daemonize")
    files.pidfile.write_text(f"{process.pid}\n")
    return process


def found(files: Files) -> int | None:
    with find_vm(files) as vm:
        return vm.pid if vm else None


def state_letter(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


# --- find_vm


def test_the_process_with_our_pidfile_is_the_vm(files: Files, processes: Processes) -> None:
    process = qemu(processes, files)
    assert found(files) == process.pid and ycluster.running(files)


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


def test_a_foreign_process_in_the_pidfile_is_never_taken_for_the_vm(files: Files, processes: Processes) -> None:
    innocent = processes.start("")
    files.pidfile.write_text(f"{innocent.pid}\n")
    assert found(files) is None


@pytest.mark.parametrize("other", ["/elsewhere/demo.pid", "demo2.pid", "demo.pid.bak"])
def test_the_vm_of_another_cluster_is_not_ours(files: Files, processes: Processes, other: str) -> None:
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
    [b"", b"\n", b"junk", b"-1", b"0", b"1", b"99999999999999", b"\xff\xfe", "\u0661\u0662".encode(), b"12 34"],
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


def test_finding_leaves_no_descriptor_open(files: Files, processes: Processes) -> None:
    qemu(processes, files)
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(5):
        found(files)
    files.pidfile.write_text("1")
    found(files)
    assert sorted(os.listdir("/proc/self/fd")) == before


# --- vm_status, pause, resume


def test_status_follows_the_process(files: Files, processes: Processes, host: Clocked) -> None:
    assert ycluster.vm_status(host, files) == "stopped"
    process = qemu(processes, files)
    assert ycluster.vm_status(host, files) == "running"
    with find_vm(files) as vm:
        assert vm and ycluster.pause_vm(host, files, vm) == "SIGSTOP"
    os.waitpid(process.pid, os.WUNTRACED)
    assert ycluster.vm_status(host, files) == "paused" and state_letter(process.pid) == "T"
    with find_vm(files) as vm:
        assert vm
        ycluster.resume_vm(host, files, vm)
    os.waitpid(process.pid, os.WCONTINUED)
    assert ycluster.vm_status(host, files) == "running"


def test_a_monitor_that_does_not_answer_is_unresponsive(files: Files, processes: Processes, host: Clocked) -> None:
    qemu(processes, files)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(files.qmp))
    assert ycluster.vm_status(host, files) == "unresponsive"


# --- stop_vm


def stopped_by(host: Clocked, files: Files, process: subprocess.Popen[bytes], ssh: object = None) -> tuple[str, int]:
    """The rung that ended it, and its exit status."""
    with find_vm(files) as vm:
        assert vm
        rung = stop_vm(host, files, vm, ssh or (lambda: None))  # type: ignore[arg-type]
    return rung, process.wait(10)


class Impatient(Clocked):
    """A second of waiting seems a minute: the rungs of the ladder come quickly."""

    def monotonic(self) -> float:
        return os.times().elapsed * 60


@pytest.fixture
def impatient(home: Path) -> Clocked:
    return Impatient(home)


def test_a_vm_with_no_monitor_is_powered_off_by_ssh(files: Files, processes: Processes, impatient: Clocked) -> None:
    process = qemu(processes, files)
    assert stopped_by(impatient, files, process, process.kill)[0] == "ssh poweroff"
    assert not files.pidfile.exists()


@pytest.mark.parametrize(
    "frozen, error",
    [(False, ycluster.ProgramFailed(["ssh"], 255, "no route")), (True, OSError(errno.ENOENT, "ssh"))],
    ids=["awake", "frozen"],
)
def test_a_rung_that_fails_leads_to_the_next(
    files: Files, processes: Processes, impatient: Clocked, frozen: bool, error: Exception
) -> None:
    def ssh() -> None:
        raise error

    process = qemu(processes, files)
    if frozen:
        process.send_signal(signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
    assert stopped_by(impatient, files, process, ssh) == ("SIGTERM", -signal.SIGTERM)
    assert "ssh poweroff did not end it" in impatient.log.getvalue()


def test_a_vm_that_ignores_sigterm_is_killed(files: Files, processes: Processes, impatient: Clocked) -> None:
    process = qemu(processes, files, IGNORE_TERM)
    assert stopped_by(impatient, files, process) == ("SIGKILL", -signal.SIGKILL)


def test_a_vm_that_has_ended_meanwhile_needs_no_rung(files: Files, processes: Processes, host: Clocked) -> None:
    process = qemu(processes, files)
    with find_vm(files) as vm:
        assert vm
        process.kill()
        process.wait()
        assert stop_vm(host, files, vm, lambda: None) == "guest-shutdown"


def test_no_signal_ever_reaches_a_process_that_is_not_the_vm(
    files: Files, processes: Processes, impatient: Clocked
) -> None:
    """The pidfile comes to name an innocent process between the look and the stop."""
    process, innocent = qemu(processes, files), processes.start("")
    with find_vm(files) as vm:
        assert vm
        files.pidfile.write_text(str(innocent.pid))
        assert stop_vm(impatient, files, Vm(innocent.pid, vm.pidfd), lambda: None) == "SIGTERM"
    assert process.wait(10) == -signal.SIGTERM
    assert innocent.poll() is None and state_letter(innocent.pid) in "SR"


def test_halting_a_cluster_whose_pidfile_names_an_innocent_process_does_nothing(
    files: Files, processes: Processes, host: Clocked
) -> None:
    innocent = processes.start("")
    files.pidfile.write_text(str(innocent.pid))
    ycluster.save_state(ycluster.State(name="demo", cache_dir=str(files.cache_dir), lifetime="1h", expires_at=1))
    ycluster.reap(host, files, by="test")
    assert innocent.poll() is None and ycluster.load_state(files).expires_at is None
