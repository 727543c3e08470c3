from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from unit_support import Cli, Clocked, Live, Memory, Processes

import ycluster

settings.register_profile("unit", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# The same tests with fewer random examples: `tests/run.sh matrix`, after one Python has tried them all.
settings.register_profile("quick", settings.get_profile("unit"), max_examples=20)
settings.load_profile(os.environ.get("YCLUSTER_EXAMPLES", "unit"))
# A lane of tests/run.sh, which is in the background, ignores these, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def _no_vms_of_other_lanes(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """`list` names every VM of this user whose files are lost, and other lanes' tests have such VMs."""
    ours, find = tmp_path_factory.getbasetemp(), ycluster.lost_vms
    monkeypatch.setattr(
        ycluster,
        "lost_vms",
        lambda: ((pid, lost) for pid, lost in find() if ours in lost.cache_dir.parents),
    )


@pytest.fixture(autouse=True)
def _no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this host's KVM can do: its trial, which may take seconds, is not held anew in every test's home."""

    def fails(host: ycluster.Host) -> None:
        raise ycluster.PrerequisiteError("KVM has no trial in a unit test")

    monkeypatch.setattr(ycluster, "try_kvm", fails)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A HOME of the test's own."""
    path = tmp_path / "home"
    path.mkdir()
    return path


@pytest.fixture
def cache(home: Path) -> Path:
    """The default cacheDir in it, empty."""
    path = home / ".local" / "share" / "ycluster"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def host(home: Path) -> Clocked:
    return Clocked(home)


@pytest.fixture
def cli(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
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
def timer(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """The only timer there is, in memory."""
    memory = Memory("memory", [])
    monkeypatch.setattr(ycluster, "TIMERS", (memory,))
    return memory


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Starts real processes, and ends those that are left."""
    with Processes() as started:
        yield started


@pytest.fixture
def live(
    host: Clocked,
    cache: Path,
    timer: Memory,
    processes: Processes,
    monkeypatch: pytest.MonkeyPatch,
) -> Live:
    """A cluster that does not run yet."""
    one = Live(host, cache, timer, processes)
    monkeypatch.setattr(ycluster, "launch", one.launch)
    monkeypatch.setattr(ycluster.Host, "tell_terminals", lambda self, text: None)
    return one
