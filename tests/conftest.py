"""A bound for every test: one that hangs fails, and shows where it stood."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from _pytest.outcomes import OutcomeException

UNIT, E2E = 110.0, 3600.0  # seconds; e2e tests boot VMs
GIVEN = os.environ.get("YCLUSTER_TEST_BOUND")  # in their place; a test may clear the environment
GRACE = 10.0  # seconds that a teardown has in any case
AGAIN = 5.0  # seconds until an alarm that was swallowed comes again
UNTIL = pytest.StashKey[float]()


class Hangs(OutcomeException):
    """A failure to pytest. No `except Exception` takes it, nor does Hypothesis, to try again."""


def bound(path: Path) -> float:
    """The seconds that a test of this file may take, with its setup and its teardown."""
    return float(GIVEN or (E2E if Path(__file__).parent / "e2e" in path.parents else UNIT))


@contextlib.contextmanager
def bounded(item: pytest.Item, seconds: float) -> Iterator[None]:
    def hangs(signum: int, frame: FrameType | None) -> None:
        stood = "".join(traceback.format_stack(frame, 8))
        raise Hangs(f"{item.nodeid} is not done after {bound(item.path):g} s; it stood at\n{stood}")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001), AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    item.stash[UNTIL] = time.monotonic() + bound(item.path)
    with bounded(item, bound(item.path)):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with bounded(item, item.stash[UNTIL] - time.monotonic()):
        return (yield)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with bounded(item, max(item.stash[UNTIL] - time.monotonic(), min(GRACE, bound(item.path)))):
        return (yield)
