from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from unit_support import Cli, Clocked, Processes

settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unit")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A HOME of the test's own."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def cache(home: Path) -> Path:
    """The default cacheDir in it, empty."""
    path = home / ".cache" / "y-cluster-qemu"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def host(home: Path) -> Clocked:
    return Clocked(home)


@pytest.fixture
def cli(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Cli]:
    """`ycluster ARGS` in this process, with a minimal environment; what `main` sets for a process is put back."""
    for name in set(os.environ) - {"PATH"}:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTSTP)
    handlers, umask = [signal.getsignal(number) for number in signals], os.umask(0o022)
    yield Cli(capsys)
    os.umask(umask)
    for number, handler in zip(signals, handlers):
        signal.signal(number, handler)


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Starts real processes, and ends those that are left."""
    with Processes() as started:
        yield started
