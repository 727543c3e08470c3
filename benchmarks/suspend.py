#!/usr/bin/env python3
"""What ycluster adds to a suspend of the Debian guest, and what it saves: ratios within one run, nothing is asserted.

usage: benchmarks/suspend.py [ROUNDS]

Each round suspends one and the same guest by `ycluster suspend` and goes on by `ycluster start`, which returns once one can
log in; then by the bare steps: QMP's stop, migrate through `zstd -1` and quit, and a QEMU that reads it again. The boot to
compare with is one `ycluster start` of the same disk. The size of the file is compared with what the guest says it uses.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable

from lifecycle import NAME, ROOT, Bench, pid_of, until_banner, until_ended


def took(step: Callable[[], object]) -> float:
    began = time.monotonic()
    step()
    return time.monotonic() - began


class Suspends(Bench):
    """The steps with nothing of ours between them and QEMU."""

    @property
    def memory(self) -> Path:
        return self.work / "bare.memory"

    def ask(self, *commands: tuple[str, dict[str, Any]], until: str = "") -> None:
        """Commands on one connection; then query-migrate until its status is `until`."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.cache / f"{NAME}.qmp"))
            stream = sock.makefile("rw")
            stream.readline()

            def one(command: str, arguments: dict[str, Any]) -> Any:
                print(
                    json.dumps({"execute": command, "arguments": arguments}),
                    file=stream,
                    flush=True,
                )
                while True:
                    answer = json.loads(stream.readline())
                    if "event" not in answer:
                        return answer["return"]

            for command, arguments in (("qmp_capabilities", {}), *commands):
                one(command, arguments)
            while until and one("query-migrate", {}).get("status") != until:
                time.sleep(0.02)

    def bare_suspend(self) -> None:
        pid = pid_of(f"guest={NAME}\0")
        uri = f"exec:zstd -q -1 -T0 -f -o {self.memory}"
        fast = {"max-bandwidth": 1 << 40}
        self.ask(
            ("stop", {}),
            ("migrate-set-parameters", fast),
            ("migrate", {"uri": uri}),
            until="completed",
        )
        self.ask(("quit", {}))
        until_ended(pid)

    def bare_start(self) -> None:
        incoming = ["-incoming", f"exec:zstd -q -d -c {self.memory}"]
        starting = subprocess.Popen([*self.argv, *incoming], cwd=self.cache, env=self.env)
        starting.wait()
        self.ask(until="completed")
        self.ask(("cont", {}))
        until_banner(self.port, starting)

    def used(self) -> int:
        """Bytes that the guest says it uses, its caches and tmpfs included."""
        argv = [*self.program, "ssh", "-c", str(self.work), "--", "cat /proc/meminfo"]
        told = subprocess.run(argv, env=self.env, check=True, stdout=subprocess.PIPE, text=True)
        facts = dict(line.split(":") for line in told.stdout.splitlines())
        total, free = (int(facts[name].split()[0]) << 10 for name in ("MemTotal", "MemFree"))
        return total - free


def main() -> None:
    if os.getuid() == 0 and "YCLUSTER_BENCH" not in os.environ:
        os.environ["YCLUSTER_BENCH"] = "in a namespace"
        place = str(ROOT / "tests" / "e2e" / "in-namespace.sh")
        words = ["unshare", "--mount", "--propagation", "private", place, sys.executable]
        os.execvp("unshare", [*words, *sys.argv])
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    image = subprocess.run(
        [ROOT / "scripts" / "build-guest-image.sh"], stdout=subprocess.PIPE, text=True, check=True
    )
    with tempfile.TemporaryDirectory(prefix="ycb.") as work:
        bench = Suspends(Path(work), image.stdout.strip())
        boot = took(lambda: bench.run("start"))
        print(f"boot {boot:.2f} s", file=sys.stderr)
        found: dict[str, list[float]] = {}
        sizes = []
        for number in range(rounds):
            used = bench.used()
            times = {"suspend": took(lambda: bench.run("suspend"))}
            sizes.append((bench.cache / f"{NAME}.memory").stat().st_size / used)
            times["start"] = took(lambda: bench.run("start"))
            times["bare suspend"] = took(bench.bare_suspend)
            times["bare start"] = took(bench.bare_start)
            for name, seconds in times.items():
                found.setdefault(name, []).append(seconds)
            shown = "   ".join(f"{name} {seconds:.2f} s" for name, seconds in times.items())
            print(f"round {number + 1}: {shown}", file=sys.stderr)
        bench.run("teardown")
    middle = {name: statistics.median(seconds) for name, seconds in found.items()}
    print(f"suspend over the bare steps     {middle['suspend'] / middle['bare suspend']:.2f}")
    print(f"start over its boot             {middle['start'] / boot:.3f}")
    print(f"start over the bare steps       {middle['start'] / middle['bare start']:.2f}")
    print(f"memory file over memory in use  {statistics.median(sizes):.2f}")


if __name__ == "__main__":
    main()
