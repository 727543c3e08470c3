#!/usr/bin/env python3
"""What a run of dist/ycluster costs, next to Python itself and to others of its kind; and what each cluster adds.

python3 benchmarks/startup.py [ROUNDS]     after ./build_zipapp.sh

Prints; asserts nothing. Times are the least of the rounds, which take turns; memory is the peak resident set. The
reference is `python3 -c 'import argparse, json, subprocess'` in the same interpreter; ycluster runs warm, its compiled
code kept. The others (virsh, kubectl, gcloud) are measured where they are installed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import ycluster

ROOT = Path(ycluster.__file__).parent
PYTHON, PROGRAM = sys.executable, str(ROOT / "dist" / "ycluster")


# A parent of its own, and a small one: a process starts with the peak of the one that forked it.
LEAN = """
import os, sys, time
null = os.open(os.devnull, os.O_RDWR)
began = time.perf_counter()
pid = os.fork()
if not pid:
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.execvp(sys.argv[1], sys.argv[1:])
_, status, used = os.wait4(pid, 0)
print(time.perf_counter() - began, used.ru_maxrss, status)
"""


def measured(argv: list[str], home: Path) -> tuple[float, int]:
    """Seconds and KiB of one run."""
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "LC_ALL": "C.UTF-8"}
    lean = subprocess.run(
        [PYTHON, "-I", "-S", "-c", LEAN, *argv], env=env, check=True, capture_output=True, text=True
    )
    seconds, kib, status = lean.stdout.split()
    assert status == "0", argv
    return float(seconds), int(kib)


def with_clusters(home: Path, count: int) -> Path:
    cache = home / ".cache" / "y-cluster-qemu"
    cache.mkdir(parents=True)
    for i in range(count):
        (cache / f"c{i}.qcow2").write_bytes(ycluster.QCOW2)  # or doctor would tell that it is gone
        ycluster.save_state(
            ycluster.State(name=f"c{i}", context=f"c{i}", cache_dir=str(cache), lifetime="8h")
        )
    return home


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 20
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        config = work / "config"
        config.mkdir()
        (config / "y-cluster-provision.yaml").write_text("name: demo\nlifetime: {maxRun: 8h}\n")
        homes = {count: with_clusters(work / str(count), count) for count in (1, 10, 100, 1000)}
        reference = "python3 -c 'import argparse, json, subprocess'"
        runs = {
            reference: [PYTHON, "-c", "import argparse, json, subprocess"],
            "ycluster lifetime status": [PYTHON, PROGRAM, "lifetime", "status"],
            "ycluster lifetime gcp-flags -c DIR": [
                PYTHON,
                PROGRAM,
                "lifetime",
                "gcp-flags",
                "-c",
                str(config),
            ],
            "virsh list --all": ["virsh", "-c", "test:///default", "list", "--all"],
            "kubectl config get-contexts": ["kubectl", "config", "get-contexts"],
            "gcloud --version": ["gcloud", "--version"],
        }
        runs = {what: argv for what, argv in runs.items() if shutil.which(argv[0])}
        found = {
            what: [measured(argv, homes[1]) for _ in range(2)][2:] for what, argv in runs.items()
        }  # warm
        for _ in range(rounds):
            for what, argv in runs.items():
                found[what].append(measured(argv, homes[1]))
        least = {
            what: (min(s for s, _ in each), min(kib for _, kib in each))
            for what, each in found.items()
        }
        base, base_kib = least[reference]
        print(f"{'':42} {'ms':>8} {'ratio':>7} {'MiB':>7} {'above':>7}")
        for what, (seconds, kib) in least.items():
            above = (kib - base_kib) / 1024
            print(
                f"{what[:42]:42} {seconds * 1e3:8.1f} {seconds / base:7.2f} {kib / 1024:7.1f} {above:+7.1f}"
            )
        for verb in (["list"], ["list", "-o", "json"], ["lifetime", "reap", "--all"], ["doctor"]):
            took = {
                n: min(measured([PYTHON, PROGRAM, *verb], home)[0] for _ in range(3))
                for n, home in homes.items()
            }
            each = ", ".join(
                f"{n}: {(took[n] - took[1]) / (n - 1) * 1e3:.3f}" for n in (10, 100, 1000)
            )
            print(f"{' '.join(verb)}: milliseconds that each of so many clusters adds: {each}")


if __name__ == "__main__":
    main()
