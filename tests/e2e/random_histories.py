"""Random histories on real QEMU, systemd and atd: verbs, crashes, several at once, full disks, and files that move or go.

    tests/e2e/random_histories.py [--count N] [--seed S] [--at-once N] [--only I]     with dist/ycluster, as `tests/run.sh e2e` runs it

Whatever happens, no VM is alive a minute after its deadline (one that is to be suspended stands still while its lock is held), there
is never a second QEMU, nothing ends in a traceback, and a disk goes only by a teardown that could read its sidecar. A history is named by its seed and its number, and is the same each time,
but for what the machine's timing makes of it. Prints what happened in those that failed; its exit status says whether any did.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable

import daemons
from conftest import ROOT, Cluster, Program
from sabotage import obedient_image, watchers

LATE = 60.0  # seconds after its deadline that a VM may be alive
LADDER = 15.0  # as many more where its files are gone, and with them the monitor: this guest has no ssh to ask instead
CONFIG = """\
name: {name}
context: {name}
memory: 64
cpus: 1
cpuModel: qemu64
accel: tcg
sshPort: 0
portForwards: []
cacheDir: "{cache}"
image: {image}
k3s: {{install: none}}
lifetime:
  maxRun: {max_run}s
  warn: "{warn}"
  onExpiry: {on_expiry}
"""
# What a person, a script or a crash does. `start`, `provision` and a `resume` of what is suspended wait for an ssh that never comes,
# and are killed.
VERBS = (
    "pause", "resume", "stop", "start", "provision", "lifetime extend 5s", "lifetime set 25s", "lifetime arm",
    "lifetime reap", "lifetime reap --all", "lifetime status", "list", "doctor", "suspend", "suspend",
    "start --discard-memory", "stop --discard-memory",
)  # fmt: skip
CALLS = ("fsync", "rename", "openat", "flock", "unlink", "link", "ftruncate")
ERRORS = ("ENOSPC", "EIO", "EACCES", "EINTR")


@dataclass
class History:
    """One cluster in a home of its own, and what became of it."""

    seed: int
    number: int
    place: Path
    image: Path
    told: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    deadline: float = 0.0  # the last that could be read, in seconds since the epoch
    on_expiry: str = "stop"
    damaged: bool = False  # its files were moved, removed or spoilt: what is in them counts no more
    torn_down: bool = False
    holders: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed} {self.number}")
        self.began = time.time()
        home = self.place / "home"
        home.mkdir(parents=True)
        cache = self.place / self.random.choice(["cache", "a cache, with a comma"])
        directory = self.place / "config"
        directory.mkdir()
        self.on_expiry = self.random.choice(["stop", "suspend", "teardown"])
        backend = self.random.choice(["systemd", "at", "watcher", "auto"])
        program = Program(ROOT / "dist" / "ycluster", home, {"YCLUSTER_TIMER": backend})
        self.cluster = Cluster(program, directory, cache, f"h{self.number}")
        config = CONFIG.format(
            name=self.cluster.name, cache=cache, image=self.image, on_expiry=self.on_expiry,
            max_run=self.random.randint(25, 45), warn=self.random.choice(["0", "10s"]),
        )  # fmt: skip
        (directory / "y-cluster-provision.yaml").write_text(config)
        self.say(f"timer {backend}, then {self.on_expiry}")

    def say(self, text: str) -> None:
        self.told.append(f"{time.time() - self.began:6.1f} {text}")

    def fault(self, text: str) -> None:
        self.say(f"FAULT: {text}")
        self.faults.append(text)

    # --- what is done

    def spawn(self, verb: str, *before: str) -> subprocess.Popen[str]:
        argv = [*before, str(self.cluster.program.path), *verb.split()]
        if verb not in ("list", "doctor", "lifetime reap --all"):
            argv += ["-c", str(self.cluster.directory)]
        return subprocess.Popen(
            argv, cwd="/", env=self.cluster.program.environ(), text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def ended(self, verb: str, process: subprocess.Popen[str], within: float) -> None:
        """Wait for a verb. One that boots waits without end, and is killed some seconds after it has started QEMU."""
        boots = verb.split()[0] in ("start", "provision", "resume")  # the last of what is suspended
        until = time.monotonic() + within
        while boots and process.poll() is None and time.monotonic() < until:
            if self.cluster.qemu():
                break
            time.sleep(0.1)
        try:
            _, told = process.communicate(timeout=4 if boots else within)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            _, told = process.communicate()
            if not boots:
                self.fault(f"{verb} is not done after {within} s")
        self.say(f"{verb}: exit {process.returncode}: {' / '.join(told.splitlines())[-400:]}")
        # Python's own start-up has no better word for a file that can't be opened.
        starts = "frozen getpath" in told or "Fatal Python error: init" in told
        if ("Traceback" in told and not starts) or "internal error" in told:
            self.fault(f"{verb}: {told}")

    def verb(self) -> None:
        verb = self.random.choice(VERBS)
        self.ended(verb, self.spawn(verb), 150)

    def killed(self) -> None:
        verb = self.random.choice(VERBS)
        process = self.spawn(verb)
        after = self.random.uniform(0, 0.7)
        time.sleep(after)  # a random moment is what is wanted
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self.ended(f"{verb}, killed after {after:.2f} s", process, 150)

    def at_once(self) -> None:
        verbs = self.random.choices(VERBS, k=self.random.randint(2, 3))
        for verb, process in [(verb, self.spawn(verb)) for verb in verbs]:
            self.ended(verb, process, 150)

    def failing(self) -> None:
        verb, call = self.random.choice(VERBS), self.random.choice(CALLS)
        when = self.random.randint(1, 40 if call == "openat" else 6)
        what = f"inject={call}:error={self.random.choice(ERRORS)}:when={when}"
        quiet = ("strace", "-qq", "-o", "/dev/null", f"--trace={call}", "-e", what)
        self.say(f"{verb} under {what}")
        self.ended(verb, self.spawn(verb, *quiet), 150)

    def full_disk(self) -> None:
        verb, most = self.random.choice(VERBS), self.random.choice([0, 4096, 65536])
        self.say(f"{verb} with files of at most {most} bytes")
        self.ended(verb, self.spawn(verb, "prlimit", f"--fsize={most}"), 150)

    def held_lock(self) -> None:
        """A holder that hangs, awake, over the deadline."""
        if self.damaged or not self.cluster.cache.is_dir():
            return
        lock = str(self.cluster.file(".lock"))
        self.say("its lock is held until long after its deadline")
        self.look()
        self.holders.append(
            subprocess.Popen(["flock", lock, "sleep", "300"], start_new_session=True)
        )

    def stopped_watcher(self) -> None:
        self.harmed_watcher(signal.SIGSTOP)

    def killed_watcher(self) -> None:
        self.harmed_watcher(signal.SIGKILL)

    def harmed_watcher(self, sign: signal.Signals) -> None:
        if self.damaged or self.holders:
            return  # two faults at a time, of which each takes away what makes up for the other
        for pid in watchers(self.cluster):
            self.say(f"its watcher {pid} is sent {sign.name}; then a verb looks after it")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        self.ended("lifetime arm", self.spawn("lifetime arm"), 150)

    def spoilt(self) -> None:
        """Once: its files are moved, removed or overwritten under the running VM."""
        if self.damaged or not self.cluster.file(".json").exists():
            return
        self.look()
        self.damaged = True
        cache, sidecar = self.cluster.cache, self.cluster.file(".json")
        ways: dict[str, Callable[[], Any]] = {
            "cacheDir moved": lambda: cache.rename(self.place / "elsewhere"),
            "cacheDir removed": lambda: shutil.rmtree(cache, ignore_errors=True),
            "sidecar removed": sidecar.unlink,
            "sidecar emptied": lambda: os.truncate(sidecar, 0),
            "sidecar cut": lambda: os.truncate(sidecar, sidecar.stat().st_size // 2),
            "sidecar a directory": lambda: (sidecar.unlink(), sidecar.mkdir()),
            "pidfile and lock of the VM removed": lambda: [
                path.unlink() for path in cache.glob(f"{self.cluster.name}.*") if path.suffix in (".pid", ".lock")
            ],
            "home removed": lambda: shutil.rmtree(self.cluster.program.home, ignore_errors=True),
        }  # fmt: skip
        way = self.random.choice(list(ways))
        self.say(way)
        with contextlib.suppress(OSError):  # a verb's own change may come between
            ways[way]()

    # --- what has to hold

    def look(self) -> None:
        """Read the deadline where it can be; no second QEMU, ever."""
        if len(self.cluster.qemu()) > 1:
            time.sleep(2)  # a launcher may live a moment longer than its fork
            if len(self.cluster.qemu()) > 1:
                self.fault("two QEMUs")
        if self.damaged:
            return
        try:
            sidecar = self.cluster.sidecar()
        except FileNotFoundError:
            return
        except ValueError as error:
            self.fault(f"the sidecar can't be read: {error}")
            return
        if sidecar.get("expiresAt"):
            moment = datetime.datetime.fromisoformat(sidecar["expiresAt"].replace("Z", "+00:00"))
            self.deadline = moment.timestamp()
        elif self.cluster.qemu():
            time.sleep(2)  # it may have been on its way out
            if self.cluster.qemu() and not self.cluster.sidecar().get("expiresAt"):
                self.fault("a VM runs without a deadline")

    def run(self) -> History:
        try:
            self.ended("provision", self.spawn("provision"), 150)
            self.look()
            steps = [
                self.verb, self.verb, self.killed, self.at_once, self.failing, self.full_disk,
                self.held_lock, self.stopped_watcher, self.killed_watcher, self.spoilt,
            ]  # fmt: skip
            for step in self.random.choices(steps, k=self.random.randint(2, 6)):
                step()
                self.look()
                if self.holders:
                    break  # each further verb would only wait for the lock
            self.see_it_end()
        except Exception as error:
            self.fault(f"{type(error).__name__}: {error}")
        finally:
            self.clean()
        return self

    def see_it_end(self) -> None:
        """Until QEMU has ended: by its deadline, which a verb under way may still put off, and a minute."""
        ran = bool(self.cluster.qemu())
        late = LATE + (LADDER if self.damaged else 0)
        while self.cluster.qemu():
            if time.time() > max(self.deadline, self.began) + late:
                self.look()  # a verb that was killed may have given it more
                if self.holders and self.on_expiry == "suspend":
                    self.see_it_stand_still()
                    return
            if time.time() > max(self.deadline, self.began) + late:
                self.fault(f"alive {time.time() - self.deadline:.0f} s after its deadline")
                return
            time.sleep(0.5)
        self.say(
            f"ended {time.time() - self.deadline:.0f} s after its deadline" if ran else "is off"
        )
        disk = self.cluster.file(".qcow2")
        is_kept = not self.damaged and self.on_expiry != "teardown"
        if is_kept and self.deadline and not disk.exists():
            self.fault("its disk is gone")

    def see_it_stand_still(self) -> None:
        """What is in its memory waits for the lock."""
        shown, _ = self.spawn("status -o json").communicate(timeout=60)
        if json.loads(shown)["state"] != "paused":
            self.fault("its lock is held, and it does not stand still")

    def clean(self) -> None:
        for holder in self.holders:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(holder.pid, signal.SIGKILL)
            holder.wait()
        for pid in [*watchers(self.cluster), *self.cluster.qemu()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        log = self.cluster.file(".reap.log")
        if self.faults and log.is_file():
            self.told += [f"  reap.log: {line}" for line in log.read_text().splitlines()[-12:]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--only", type=int, help="the number of the one to run, and to tell all of")
    options = parser.parse_args()
    numbers = range(options.count) if options.only is None else [options.only]
    failed = 0
    with contextlib.ExitStack() as stack:
        stack.enter_context(daemons.user_manager())
        stack.enter_context(daemons.atd())
        workshop = Path(tempfile.mkdtemp(prefix="histories-"))
        # What a timer still writes there keeps nobody.
        stack.callback(shutil.rmtree, workshop, ignore_errors=True)
        image = obedient_image(workshop / "obedient.img")
        pool = stack.enter_context(ThreadPoolExecutor(options.at_once))
        made = (History(options.seed, number, workshop / str(number), image) for number in numbers)
        for history in pool.map(History.run, made):
            if history.faults or options.only is not None:
                failed += bool(history.faults)
                print(f"--- --seed {options.seed} --only {history.number}", *history.told, sep="\n")
            shutil.rmtree(history.place, ignore_errors=True)
    print(f"{len(numbers)} histories of seed {options.seed}: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
