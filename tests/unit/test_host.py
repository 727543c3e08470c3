"""Section 4: the door to other programs, the real ones."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from unit_support import Clocked

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
