"""tests/conftest.py: no test hangs the run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
HANGS = """\
import time
import pytest
from hypothesis import given, settings, strategies as st

def sleeps():
    time.sleep(60)  # HERE

@pytest.fixture
def slow_to_come():
    sleeps()

@pytest.fixture
def slow_to_go():
    yield
    sleeps()

def test_that_hangs():
    sleeps()

def test_that_swallows_what_it_can():
    while True:
        try:
            sleeps()
        except Exception:
            pass

def test_that_swallows_everything_once():
    try:
        sleeps()
    except BaseException:
        sleeps()

@settings(deadline=None, database=None)
@given(st.integers())
def test_of_a_property(number):
    sleeps()

def test_whose_setup_hangs(slow_to_come):
    pass

def test_whose_teardown_hangs(slow_to_go):
    pass

def test_after_them():
    time.sleep(0.01)
"""


def test_a_test_that_hangs_fails_and_shows_where_it_stood(tmp_path: Path) -> None:
    (tmp_path / "test_tiny.py").write_text(HANGS)
    conftest = (TESTS / "conftest.py").read_text()
    (tmp_path / "conftest.py").write_text(re.sub(r"(?m)^AGAIN = .*$", "AGAIN = 0.5", conftest))
    pytest_once = [sys.executable, "-B", "-m", "pytest", "-p", "no:cacheprovider"]
    argv = [*pytest_once, "-q", "-rA", "test_tiny.py"]
    env = {**os.environ, "YCLUSTER_TEST_BOUND": "2"}
    ran = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=100)
    ends = re.findall(r"^(PASSED|FAILED|ERROR) test_tiny\.py::(\w+)", ran.stdout, re.MULTILINE)
    assert {name: end for end, name in sorted(ends, reverse=True)} == {
        "test_that_hangs": "FAILED",
        "test_that_swallows_what_it_can": "FAILED",
        "test_that_swallows_everything_once": "FAILED",
        "test_of_a_property": "FAILED",
        "test_whose_setup_hangs": "ERROR",
        "test_whose_teardown_hangs": "ERROR",
        "test_after_them": "PASSED",
    }, ran.stdout
    for end, name in ends:
        if end != "PASSED":
            assert re.search(rf"Hangs: test_tiny\.py::{name} .*(?:\n.*)+?# HERE", ran.stdout), name


def test_the_bound_is_under_two_minutes_and_longer_where_vms_boot(
    request: pytest.FixtureRequest,
) -> None:
    hooks = request.config.pluginmanager.get_plugin(str(TESTS / "conftest.py"))
    assert hooks is not None, "it is loaded for this test as well"
    if hooks.GIVEN is None:
        assert hooks.bound(Path(__file__)) + hooks.GRACE <= 120
        assert hooks.bound(TESTS / "e2e" / "test_disks.py") == 3600
    before, signum = signal.getitimer(signal.ITIMER_REAL), signal.getsignal(signal.SIGALRM)
    assert 0 < before[0] <= hooks.bound(Path(__file__)) and before[1] > 0 and callable(signum)
