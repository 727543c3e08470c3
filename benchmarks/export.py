#!/usr/bin/env python3
"""What `export --format gcp-tar` costs over the plain pipeline, in time and in the disk that it takes on the way.

python3 benchmarks/export.py [ROUNDS]

Prints; asserts nothing. The disk is a 20 GiB overlay on the Debian guest of scripts/build-guest-image.sh, with 200 MiB of
its own that do not compress. The plain pipeline: qemu-img convert to a raw file, `tar --format=oldgnu -Scz` of that.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import ycluster

ROOT = Path(ycluster.__file__).parent

PLAIN = 'qemu-img convert -O raw "$1" "$2/disk.raw" && cd "$2" && tar --format=oldgnu -Sczf x.tar.gz disk.raw && rm disk.raw'


def allocated(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except FileNotFoundError:
                continue
    return total


def measured(argv: list[str], folder: Path, env: dict[str, str]) -> tuple[float, int]:
    """Seconds, and the most bytes that ever were allocated below the folder."""
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak.append(allocated(folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.monotonic()
    try:
        subprocess.run(
            argv, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
    finally:
        seconds = time.monotonic() - began
        done.set()
        watcher.join()
    return seconds, max(peak)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    built = subprocess.run(
        [ROOT / "scripts" / "build-guest-image.sh"], check=True, text=True, stdout=subprocess.PIPE
    )
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        env = {"HOME": name, "PATH": os.environ["PATH"]}
        cache = home / ".cache" / "y-cluster-qemu"
        cache.mkdir(parents=True)
        state = ycluster.State(
            name="demo", cache_dir=str(cache), image="file:///x", started_at=1, prepared="done"
        )
        ycluster.save_state(state)
        argv = [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-b",
            built.stdout.strip(),
            "-F",
            "qcow2",
        ]
        subprocess.run([*argv, state.files.disk, "20G"], check=True)
        (home / "noise").write_bytes(os.urandom(200 << 20))
        write = f"write -q -s {home / 'noise'} 10G 200M"
        subprocess.run(["qemu-io", "-c", write, state.files.disk], check=True)
        (home / "noise").unlink()
        figures: dict[str, list[tuple[float, int]]] = {"plain pipeline": [], "ycluster export": []}
        for turn in range(rounds):
            for what, found in figures.items():
                work = home / f"{what} {turn}"
                work.mkdir()
                ours = [
                    sys.executable,
                    str(ROOT / "ycluster.py"),
                    "export",
                    str(work / "b"),
                    "--format",
                    "gcp-tar",
                ]
                plain = ["sh", "-c", PLAIN, "-", str(state.files.disk), str(work)]
                found.append(measured(plain if what == "plain pipeline" else ours, work, env))
        base = [median(column) for column in zip(*figures["plain pipeline"])]
        result = min(path.stat().st_size for path in home.rglob("*.tar.gz"))
        for what, found in figures.items():
            seconds, peak = (median(column) for column in zip(*found))
            aside = peak - result
            ratios = f"time {seconds / base[0]:.3f}, peak disk {peak / base[1]:.3f}, beside the result {aside / (base[1] - result):.3f}"
            print(
                f"{what:16} {seconds:7.2f} s  {peak / 2**20:7.0f} MiB   {ratios} of the plain pipeline's"
            )


if __name__ == "__main__":
    main()
