#!/usr/bin/env python3
"""What the watcher costs that stands beside every VM: its memory, and its share of a CPU.

python3 benchmarks/watcher.py [SECONDS]

Prints; asserts nothing. Wanted: less than 15 MiB, and less than 0.05 % of a CPU. A process that sleeps stands in for
the VM, as the watcher looks at its pid, its files and its deadline, and not at its guest. Memory is its share (PSS:
what several processes have in common is divided among them), then what is its own alone, then all that is resident.
The reference is a Python that sleeps.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import ycluster

SLEEPS = "import time; time.sleep(100000)"


def memory(pid: int) -> tuple[float, float, float]:
    """MiB: its share, what no other process has, and the resident set."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    kib = {name: int(number) for name, number in re.findall(r"(\w+): +(\d+) kB", text)}
    own = kib["Private_Clean"] + kib["Private_Dirty"]
    return kib["Pss"] / 1024, own / 1024, kib["Rss"] / 1024


def cpu(pid: int) -> float:
    """Seconds that a process has run for, to the nanosecond where the kernel counts them."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()[0]) / 1e9


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with tempfile.TemporaryDirectory() as home:
        cache = Path(home, "cache")
        cache.mkdir(mode=0o700)
        environ = {"HOME": home, "PATH": os.environ["PATH"], "YCLUSTER_TIMER": "watcher"}
        host = ycluster.Host(environ, ycluster.Output(io.StringIO(), sys.stderr))
        state = ycluster.State(
            "demo", str(cache), lifetime="8h", expires_at=int(time.time()) + 28800
        )
        argv = [sys.executable, "-I", "-S", "-c", SLEEPS, "-pidfile", str(state.files.pidfile)]
        with subprocess.Popen(argv) as vm:
            try:
                state.files.pidfile.write_text(str(vm.pid))
                with ycluster.cluster_lock(host, state.files):
                    ycluster.arm_timers(host, state)
                watcher = ycluster.lock_holder(state.files.watch_lock)
                assert watcher is not None
                time.sleep(1)  # it has loaded all that it needs, and looked once
                before = cpu(watcher)
                time.sleep(seconds)
                used = (cpu(watcher) - before) / seconds
                print(f"{'':24} {'MiB':>7} {'own':>7} {'resident':>9} {'% of a CPU':>11}")
                for name, pid, share in (
                    ("watcher", watcher, f"{100 * used:11.3f}"),
                    ("a Python that sleeps", vm.pid, ""),
                ):
                    mib, own, resident = memory(pid)
                    print(f"{name:24} {mib:7.1f} {own:7.1f} {resident:9.1f} {share}")
            finally:
                vm.kill()  # with which the watcher ends, at its next look
                time.sleep(ycluster.WATCH_INTERVAL + 1)


if __name__ == "__main__":
    main()
