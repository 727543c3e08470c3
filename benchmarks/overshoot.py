#!/usr/bin/env python3
"""How long after its deadline a VM gets the first act of its reap, for each timer, next to what the timer itself costs.

python3 benchmarks/overshoot.py [RUNS]

Prints; asserts nothing. The VM is a process that writes down when its SIGCONT comes: every stop begins with one. Needs a
user manager and an atd; in a container as root it starts its own, and a part that can't be had is left out with a line.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "e2e"))
import daemons

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60  # seconds past a deadline after which it counts as lost
STAND_IN = """\
import os, signal, sys, time
def record(*args):
    moment = time.time()
    with open(sys.argv[1], "w") as file:
        file.write(str(moment))
    os._exit(0)
signal.signal(signal.SIGCONT, record)
while True:
    signal.pause()
"""
SLEEPER = "import sys, time; time.sleep(float(sys.argv[2]) - time.time()); open(sys.argv[1], 'w').write(str(time.time()))"


class Subject(NamedTuple):
    due: int  # seconds past a whole minute; no two at the same moment, except for at(1)'s, which knows minutes alone
    part: str  # what it needs of this host
    backend: str = ""  # the timer of a reap; without one it is bare
    floor: str = ""  # the bare one that it is compared with


SUBJECTS = {
    "a bare at(1) job": Subject(0, "at"),
    "reap by at, due on the minute": Subject(0, "at", "at", "a bare at(1) job"),
    "a bare process that sleeps": Subject(6, ""),
    "reap by the watcher": Subject(10, "", "watcher", "a bare process that sleeps"),
    "a bare systemd-run --on-calendar": Subject(15, "systemd"),
    "reap by systemd": Subject(20, "systemd", "systemd", "a bare systemd-run --on-calendar"),
    "reap by at, due 25 s past it": Subject(25, "at", "at", "a bare process that sleeps"),
}


class Lab:
    """A HOME of its own, the stand-ins in it, and what they wrote down."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.cache = home / ".cache" / "y-cluster-qemu"
        self.cache.mkdir(parents=True)
        self.processes: list[subprocess.Popen[bytes]] = []
        self.clusters: list[str] = []

    def environ(self, **extra: str) -> dict[str, str]:
        kept = {
            name: os.environ[name] for name in ("PATH", "XDG_RUNTIME_DIR") if name in os.environ
        }
        return {**kept, "HOME": str(self.home), "LC_ALL": "C.UTF-8", **extra}

    def run(self, *argv: str, text: str = "", **extra: str) -> None:
        subprocess.run(
            argv, input=text.encode(), env=self.environ(**extra), cwd="/", stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, timeout=60, check=True,
        )  # fmt: skip

    def ycluster(self, *argv: str, **extra: str) -> None:
        self.run(sys.executable, "-I", "-S", str(ROOT / "ycluster.py"), *argv, **extra)

    def spawn(self, *argv: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", *map(str, argv)], cwd="/", env=self.environ()
        )
        self.processes.append(process)
        return process

    def cluster(self, name: str, backend: str, deadline: int, record: Path) -> None:
        """A stand-in for a running VM, and its timer."""
        pidfile = self.cache / f"{name}.pid"
        pidfile.write_text(str(self.spawn(STAND_IN, record, "-pidfile", pidfile).pid))
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(deadline))
        sidecar = {
            "version": 1,
            "name": name,
            "lifetime": "1h",
            "onExpiry": "stop",
            "expiresAt": moment,
        }
        (self.cache / f"{name}.json").write_text(json.dumps(sidecar))
        self.clusters.append(name)
        self.ycluster("lifetime", "arm", "--name", name, YCLUSTER_TIMER=backend)

    def begin(self, subject: Subject, name: str, deadline: int, record: Path) -> None:
        if subject.backend:
            self.cluster(name, subject.backend, deadline, record)
        elif subject.part == "at":
            minute = time.strftime("%Y%m%d%H%M", time.gmtime(deadline))
            self.run(
                "at",
                "-q",
                "c",
                "-t",
                minute,
                text=f"date +%s.%N >{record}",
                TZ="UTC0",
                SHELL="/bin/sh",
            )
        elif subject.part == "systemd":
            moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(deadline))
            self.run(
                "systemd-run", "--user", "--quiet", "--collect", f"--on-calendar={moment}",
                "--timer-property=AccuracySec=1s", "/bin/sh", "-c", f"date +%s.%N >{record}",
            )  # fmt: skip
        else:
            self.spawn(SLEEPER, record, deadline)

    def close(self) -> None:
        for name in self.clusters:
            with contextlib.suppress(subprocess.SubprocessError):
                self.ycluster("teardown", "--name", name)
        for process in self.processes:
            process.kill()
            process.wait()


def one_run(lab: Lab, number: int, subjects: list[str]) -> dict[str, float]:
    """The overshoot of each subject in seconds; one that doesn't come is left out. Takes a minute and a half at most."""
    minute = (int(time.time()) // 60 + 1) * 60
    if minute - time.time() < 15:  # what it takes to arm them all, on a slow machine
        minute += 60
    waiting = {}
    for index, subject in enumerate(subjects):
        record = lab.home / f"{number}-{index}"
        deadline = minute + SUBJECTS[subject].due
        try:
            lab.begin(SUBJECTS[subject], f"run{number}-{index}", deadline, record)
            waiting[subject] = (deadline, record)
        except subprocess.CalledProcessError as error:
            print(f"  {subject}: {error.stderr.decode().strip()}", flush=True)
    late = {}
    while waiting and time.time() < minute + 30 + PATIENCE:
        time.sleep(0.5)
        for subject, (deadline, record) in list(waiting.items()):
            with contextlib.suppress(OSError, ValueError):
                late[subject] = float(record.read_text()) - deadline
                del waiting[subject]
    for subject in waiting:
        print(f"  {subject}: nothing came within {PATIENCE} s", flush=True)
    return late


@contextlib.contextmanager
def parts() -> Iterator[list[str]]:
    """The subjects for which this host has, or gets, the part."""
    subjects = list(SUBJECTS)
    with contextlib.ExitStack() as stack:
        for part, daemon in (("systemd", daemons.user_manager()), ("at", daemons.atd())):
            try:
                stack.enter_context(daemon)
            except daemons.Missing as missing:
                print(f"left out: {part}: {missing}")
                subjects = [name for name in subjects if SUBJECTS[name].part != part]
        yield subjects


def measure(runs: int) -> None:
    with (
        tempfile.TemporaryDirectory() as home,
        parts() as subjects,
        contextlib.closing(Lab(Path(home))) as lab,
    ):
        late = []
        for number in range(1, runs + 1):
            print(f"run {number} of {runs}", flush=True)
            late.append(one_run(lab, number, subjects))
    print(f"{'seconds past the deadline':<34} median   worst   over its floor (median)")
    for subject in subjects:
        seen = [run[subject] for run in late if subject in run]
        if not seen:
            continue
        floor = SUBJECTS[subject].floor
        over = [run[subject] - run[floor] for run in late if subject in run and floor in run]
        line = f"{subject:<34} {median(seen):6.3f}  {max(seen):6.3f}"
        print(line + (f"   {median(over):+.3f} over {floor}" if over else ""))


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    contained = os.geteuid() == 0 and not os.path.isdir("/run/systemd/system")
    if contained and shutil.which("unshare"):
        wrapped = ["unshare", "--mount", "--propagation", "private"]
        if subprocess.run([*wrapped, "true"], capture_output=True).returncode == 0:
            inside = str(ROOT / "tests" / "e2e" / "in-namespace.sh")
            os.execvp(
                wrapped[0], [*wrapped, inside, sys.executable, os.path.abspath(__file__), str(runs)]
            )
    measure(runs)


if __name__ == "__main__":
    main()
