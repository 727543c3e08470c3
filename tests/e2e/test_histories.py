"""A few of the random histories; `random_histories.py` runs as many as are wanted, of any seed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_no_vm_outlives_its_deadline_whatever_happens(user_manager: None, atd: None) -> None:
    """By a fixed seed, so that it is the same each time but for the machine's timing. (21.5)"""
    script = Path(__file__).with_name("random_histories.py")
    argv = [sys.executable, script, "--count", "6", "--at-once", "3", "--seed", "5"]
    done = subprocess.run(argv, text=True, capture_output=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0
