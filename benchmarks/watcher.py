#!/usr/bin/env python3
"""What the watcher costs that stands beside every VM: its memory, and its share of a CPU; and what a look at its use costs.

python3 benchmarks/watcher.py [SECONDS]

Prints; asserts nothing. Wanted: less than 12 MiB of its own, and less than 0.05 % of a CPU, also with `maxIdle: 6m`, which
looks once a minute, as often as it gets. The VM is a QEMU without a guest: the watcher looks at its process, its monitor, its
files and its deadline. Memory is its share (PSS: what several processes have in common is divided among them, and what only it
reads counts whole), then what it has written to, which is its own, then all that is resident. The reference is a Python that
sleeps.
"""

from __future__ import annotations

import io
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import ycluster

SLEEPS = "import time; time.sleep(100000)"
NO_GUEST = (
    "-machine",
    "none",
    "-S",
    "-display",
    "none",
    "-monitor",
    "none",
    "-netdev",
    "user,id=net",
)


def memory(pid: int) -> tuple[float, float, float]:
    """MiB: its share, what no other process has, and the resident set."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8")
    kib = {name: int(number) for name, number in re.findall(r"(\w+): +(\d+) kB", text)}
    own = kib["Private_Dirty"]
    return kib["Pss"] / 1024, own / 1024, kib["Rss"] / 1024


def cpu(pid: int) -> float:
    """Seconds that a process has run for, to the nanosecond where the kernel counts them."""
    return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="utf-8").split()[0]) / 1e9


def line(name: str, pid: int, share: str = "") -> None:
    mib, own, resident = memory(pid)
    print(f"{name:28} {mib:7.1f} {own:7.1f} {resident:9.1f} {share:>11}")


def cpu_of(*argv: str) -> float:
    """Seconds of CPU that a program takes, with all that it starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def watched(home: str, max_idle: str, seconds: float) -> None:
    """Arm a watcher beside a VM, and show what it takes."""
    cache = Path(home, f"cache{max_idle}")
    cache.mkdir(mode=0o700)
    environ = {"HOME": home, "PATH": os.environ["PATH"], "YCLUSTER_TIMER": "watcher"}
    host = ycluster.Host(environ, ycluster.Output(io.StringIO(), sys.stderr))
    state = ycluster.State("demo", str(cache), lifetime="8h", max_idle=max_idle)
    files = state.files
    qmp = f"unix:{files.qmp},server=on,wait=off"
    argv = [ycluster.QEMU, *NO_GUEST, "-qmp", qmp, "-pidfile", str(files.pidfile)]
    with subprocess.Popen(argv) as vm:
        try:
            host.wait_for(files.pidfile.exists, timeout=30)
            with ycluster.cluster_lock(host, files):
                ycluster.arm_timers(host, ycluster.anchored(state, host.clock()))
            watcher = ycluster.lock_holder(files.watch_lock)
            assert watcher is not None
            time.sleep(1)  # it has loaded all that it needs, and looked once
            before = cpu(watcher)
            time.sleep(seconds)
            used = (cpu(watcher) - before) / seconds
            line(f"watcher, maxIdle: {max_idle or 'none'}", watcher, f"{100 * used:.3f}")
            if max_idle:
                argv = ycluster.timer_argv(files, "benchmark", "reap")
                bare = min(cpu_of(sys.executable, "-c", "pass") for _ in range(5))
                reap = min(cpu_of(*argv) for _ in range(5))
                print(
                    f"\na reap by a timer's own process takes {reap / bare:.1f} times the CPU of `python3 -c pass`"
                )
        finally:
            vm.kill()  # with which the watcher ends, at its next look
            time.sleep(ycluster.WATCH_INTERVAL + 1)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 185.0
    print(f"{'':28} {'MiB':>7} {'own':>7} {'resident':>9} {'% of a CPU':>11}")
    with subprocess.Popen([sys.executable, "-I", "-S", "-c", SLEEPS]) as idle:
        time.sleep(1)
        line("a Python that sleeps", idle.pid)
        idle.kill()
    with tempfile.TemporaryDirectory() as home:
        watched(home, "", seconds)
        watched(home, "6m", seconds)


if __name__ == "__main__":
    main()
