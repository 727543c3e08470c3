"""Section 4: the door to other programs, the real ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from unit_support import PROGRAM, Clocked

import ycluster
from ycluster import Host


@pytest.fixture
def real(home: Path) -> Host:
    """A host whose clock is the real one."""
    return Host({"HOME": str(home), "PATH": os.environ["PATH"]}, Clocked(home).output)


def test_a_program_that_takes_too_long_is_killed_and_told(real: Host, tmp_path: Path) -> None:
    late = tmp_path / "late"
    with pytest.raises(ycluster.TimedOut):
        real.run(["sh", "-c", 'sleep 5; : >"$0"', str(late)], timeout=0.2)
    assert not late.exists()


def test_a_program_that_fails_is_an_error_unless_its_caller_looks_itself(real: Host) -> None:
    for code in (1, 2, 255):
        with pytest.raises(ycluster.ProgramFailed) as caught:
            real.run(["sh", "-c", f"exit {code}"], timeout=60)
        assert caught.value.returncode == code
        assert real.run(["sh", "-c", f"exit {code}"], timeout=60, check=False).returncode == code
    assert real.attempt(["sh", "-c", "echo half; exit 1"], timeout=60) is None


def test_what_outlives_a_command_is_not_killed_by_the_limit_of_its_shell(tmp_path: Path) -> None:
    """QEMU and its watcher inherit `ulimit -t`; one of a login shell killed them in mid-work. (25)"""
    code = f"""
import sys; sys.path.insert(0, {str(PROGRAM.parent)!r})
import io, ycluster
host = ycluster.Host({{"PATH": "/usr/bin:/bin"}}, ycluster.Output(io.StringIO(), io.StringIO()))
print(host.cpu_limit(), flush=True)
with host.cpu_limit_lifted():
    print(host.run(["sh", "-c", "ulimit -St"], timeout=60).stdout, flush=True)
host.spawn(["sh", "-c", "ulimit -St"], ycluster.Path({str(tmp_path / "log")!r}))
host.attend(["sh", "-c", "ulimit -St"], {{}})
"""
    # The user's own command has its limit.
    limits = {
        "ulimit -St 60": "None unlimited 60 unlimited",
        "ulimit -St 60; ulimit -Ht 600": "600 600 60 600",
    }
    for limit, left in limits.items():
        (tmp_path / "log").unlink(missing_ok=True)
        argv = ["sh", "-c", f'{limit}; exec "$0" -c "$1"', sys.executable, code]
        said = subprocess.run(argv, text=True, capture_output=True, check=True).stdout
        until = time.monotonic() + 60
        while not (shown := read(tmp_path / "log")) and time.monotonic() < until:
            time.sleep(0.02)
        assert f"{said}{shown}".split() == left.split()


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


QEMU_ARGV = ["qemu-system-x86_64", "-blockdev", '{"driver": "qcow2", "x": {"y": 1}}', "-S"]
LOCKED = 'Failed to get "write" lock\nIs another process using the image [l.qcow2]?\n'


@pytest.mark.parametrize(
    "argv, written, kept, dropped, remedy",
    [
        (
            ["gcloud", "compute"],
            "WARNING: old\nERROR: (gcloud.compute) You do not currently have an active account selected.\n"
            "Please run:\n\n  $ gcloud auth login\n\nto obtain new credentials.\n\nIf you have\nlogged in\n",
            "(gcloud.compute) You do not currently have an active account selected.; Please run:; $ gcloud auth login",
            "WARNING",
            "",
        ),
        (
            ["tar", "-xf", "x.tar"],
            "tar: x.tar: Cannot open: No such file\ntar: Error is not recoverable: exiting now\n",
            "tar: x.tar: Cannot open: No such file",
            "recoverable",
            "",
        ),
        (
            ["ssh", "x"],
            "@@@@@@@@\n@  WARNING: UNPROTECTED  @\n@@@@@@@@\nPermissions 0644 for 'k' are too open.\n",
            "(exit 1): Permissions 0644 for 'k' are too open.",
            "@",
            "",
        ),
        (
            QEMU_ARGV,
            f"qemu-system-x86_64: -blockdev {QEMU_ARGV[2]}: Could not open backing file\n",
            "qemu-system-x86_64: Could not open backing file",
            "driver",
            "",
        ),
        (["qemu-img", "info"], f"qemu-img: Could not open 'l': {LOCKED}", 'get "write" lock', "\n", "fuser"),
        (QEMU_ARGV, "cannot set up guest memory 'pc.ram': Cannot allocate memory", "pc.ram", "\n", "`memory`"),
        (QEMU_ARGV, "qemu-system-x86_64: unable to find CPU model 'foo'", "foo", "\n", "-cpu help"),
    ],
    ids=["gcloud", "tar", "ssh", "QEMU", "a lock", "memory", "a CPU"],
)  # fmt: skip
def test_of_what_a_program_writes_the_lines_that_matter_are_kept_with_a_known_way_out(
    argv: list[str], written: str, kept: str, dropped: str, remedy: str
) -> None:
    error = ycluster.ProgramFailed(argv, 1, written)
    assert kept in str(error) and dropped not in str(error)
    assert remedy in error.hint and bool(error.hint) is bool(remedy)
    assert error.stderr == written


@pytest.mark.parametrize(
    "script, status", [("exit 3", 3), ("kill -TERM $$", 143), ("kill -KILL $$", 137)]
)
def test_a_program_on_the_terminal_gives_its_status_as_a_shell_would(
    real: Host, script: str, status: int
) -> None:
    before = signal.getsignal(signal.SIGTSTP)
    try:
        assert real.interactive(["sh", "-c", script]) == status
    finally:
        signal.signal(signal.SIGTSTP, before)


def test_the_users_manager_is_found_where_no_session_names_it(
    real: Host,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """cron, at, sudo and `ssh -T` set no XDG_RUNTIME_DIR."""
    runtime = f"/run/user/{os.getuid()}"
    monkeypatch.setattr("ycluster.os.path.isdir", lambda path: path == runtime)
    assert real.child_env()["XDG_RUNTIME_DIR"] == runtime
