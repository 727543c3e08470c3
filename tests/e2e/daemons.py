"""A user manager and an atd that run for as long as a block lasts; benchmarks/ use them, too, so there's no pytest here."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable


class Missing(Exception):
    """A part that this host lacks, and that can't be started here."""


def wait_for(what: str, ready: Callable[[], Any], timeout: float = 600) -> Any:
    """Poll until `ready` gives something true; the bound is generous, since machines are shared and noisy."""
    until = time.monotonic() + timeout
    while True:
        got = ready()
        if got:
            return got
        assert time.monotonic() < until, f"waited {timeout} s in vain for {what}"
        time.sleep(0.2)


@contextlib.contextmanager
def daemon(name: str, ready: Callable[[], bool], *argv: object) -> Iterator[None]:
    """A daemon that runs, and answers, for as long as the block lasts."""
    process = subprocess.Popen(
        [str(word) for word in argv], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_for(name, ready, 60)
        yield
    finally:
        process.terminate()
        process.wait(60)


@contextlib.contextmanager
def user_manager() -> Iterator[None]:
    """A systemd that runs this user's timers: the session's own, or one started here (FACTS: as root, in a /run)."""

    def answers() -> bool:
        asked = subprocess.run(
            ["systemctl", "--user", "show", "--property=Version"], capture_output=True
        )
        return asked.returncode == 0

    if not shutil.which("systemd-run") or not os.environ.get("XDG_RUNTIME_DIR"):
        raise Missing("no systemd, or no XDG_RUNTIME_DIR")
    if answers():
        yield
        return
    systemd = Path("/lib/systemd/systemd")
    if not systemd.exists() or not os.path.isdir("/run/systemd/system"):
        raise Missing("no systemd user manager answers, and none can be had")
    with daemon("the user manager", answers, systemd, "--user"):
        yield


@contextlib.contextmanager
def atd() -> Iterator[None]:
    """A running atd that serves our spool: the host's, or one started here. Other lanes of `tests/run.sh` have their own."""

    def runs() -> bool:
        return (
            subprocess.run(
                ["pgrep", "-F", "/run/atd.pid", "-x", "atd"], capture_output=True
            ).returncode
            == 0
        )

    if not shutil.which("at"):
        raise Missing("at is not installed")
    if runs():
        yield
        return
    if os.geteuid() != 0 or not Path("/usr/sbin/atd").exists():
        raise Missing("atd does not run, and only root can start one")
    with daemon("atd", runs, "/usr/sbin/atd", "-f"):
        yield
