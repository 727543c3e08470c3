#!/usr/bin/env python3
"""What ycluster adds to a boot and to a shutdown of the Debian guest: ratios within one run, nothing is asserted.

usage: benchmarks/lifecycle.py [ROUNDS]

Each round boots one and the same disk in turn by `ycluster start`, by a bare QEMU with the same flags, and by `virsh start`
(libvirt of the distribution, the same devices), and shuts it down by `ycluster stop`, by the bare ACPI power button, and by
`virsh shutdown`. A boot lasts from the start of the command to the SSH banner, a shutdown from the start of the command
to the end of QEMU. Without libvirt (libvirt-daemon-system, libvirt-clients) its column is left out.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable
from xml.sax.saxutils import quoteattr

ROOT = Path(__file__).resolve().parents[1]
NAME = "bench"
PATIENCE = 600.0  # seconds for anything at all


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def pid_of(word: str) -> int:
    """The QEMU with a word in its argv, once it is there."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                argv = (entry / "cmdline").read_bytes()
                if argv.startswith(b"/usr/bin/qemu") and word.encode() in argv:
                    return int(entry.name)
        time.sleep(0.01)
    raise SystemExit(f"no QEMU with {word}")


def until_banner(port: int, starting: subprocess.Popen[bytes]) -> None:
    """What wait_ready does, without ycluster: connect until an SSH server speaks."""
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until and not starting.poll():
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", port), timeout=2) as sock,
        ):
            sock.settimeout(2)
            if sock.recv(4) == b"SSH-":
                return
        time.sleep(0.02)
    raise SystemExit("no SSH banner")


def until_ended(pid: int) -> None:
    poll = select.poll()
    with contextlib.suppress(ProcessLookupError):
        poll.register(os.pidfd_open(pid), select.POLLIN)
        if not poll.poll(PATIENCE * 1000):
            raise SystemExit(f"QEMU (pid {pid}) does not end")


def press_power_button(qmp: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(qmp))
        stream = sock.makefile("rw")
        for command in ("qmp_capabilities", "system_powerdown"):
            stream.readline()
            stream.write(json.dumps({"execute": command}) + "\n")
            stream.flush()
        stream.readline()


class Bench:
    def __init__(self, work: Path, image: str) -> None:
        self.work, self.cache, self.port = work, work / "cache", free_port()
        self.env = {
            **os.environ,
            "HOME": str(work),
            "YCLUSTER_TIMER": "watcher",
            "XDG_RUNTIME_DIR": str(work),
        }
        self.env.pop("XDG_CONFIG_HOME", None)
        program = ROOT / "dist" / "ycluster"
        self.program = (
            [str(program)] if program.exists() else [sys.executable, str(ROOT / "ycluster.py")]
        )
        (work / "y-cluster-provision.yaml").write_text(
            f"name: {NAME}\nmemory: 1024\ncpus: 2\nsshPort: {self.port}\nportForwards: []\ncacheDir: cache\n"
            f"image: {image}\nk3s: {{install: none}}\nlifetime: {{maxRun: 4h}}\n"
        )
        self.run("provision")
        self.argv = Path(f"/proc/{pid_of('guest=' + NAME)}/cmdline").read_text().split("\0")[:-1]
        self.run("stop")
        (work / "virsh.xml").write_text(self.domain())

    def run(self, *verb: str) -> None:
        subprocess.run(
            [*self.program, *verb, "-c", self.work],
            env=self.env,
            check=True,
            stderr=subprocess.DEVNULL,
        )

    def after(self, option: str) -> str:
        return self.argv[self.argv.index(option) + 1]

    def domain(self) -> str:
        """The same machine for libvirt: its devices are handed through, so that nothing but libvirt differs."""
        words = list(zip(self.argv, self.argv[1:]))
        keep = ("-blockdev", "-device", "-netdev")
        args = [word for pair in words if pair[0] in keep for word in pair]
        args += [
            "-chardev",
            f"file,id=out,path={self.work / 'virsh-console.log'}",
            "-serial",
            "chardev:out",
        ]
        kind = "kvm" if self.after("-accel") == "kvm" else "qemu"
        cpu = "host-passthrough" if kind == "kvm" else "maximum"
        machine = self.after("-machine").split(",")[0]
        return f"""\
<domain type='{kind}' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
<name>{NAME}-virsh</name><memory unit='MiB'>1024</memory><vcpu>2</vcpu>
<os><type arch='x86_64' machine='{machine}'>hvm</type></os><features><acpi/></features><cpu mode='{cpu}'/>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<controller type='usb' model='none'/><memballoon model='none'/></devices>
<qemu:commandline>{"".join(f"<qemu:arg value={quoteattr(word)}/>" for word in args)}</qemu:commandline></domain>
"""

    def settle(self) -> None:
        """Until cloud-init is through, so that every shutdown begins in the same state."""
        argv = [
            "ssh",
            "-F",
            "/dev/null",
            "-i",
            str(self.cache / f"{NAME}-ssh"),
            "-p",
            str(self.port),
            "-o",
            "BatchMode=yes",
        ]
        argv += [
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ]
        wait = "until [ -e /run/cloud-init/result.json ]; do sleep 0.2; done; systemctl is-system-running --wait"
        while (
            subprocess.run([*argv, "ystack@127.0.0.1", wait], stdout=subprocess.DEVNULL).returncode
            == 255
        ):
            time.sleep(0.5)

    def measure(
        self, word: str, start: list[str], stop: Callable[[], object]
    ) -> tuple[float, float]:
        """Seconds of a boot and of a shutdown; what starts it may go on for longer than to the banner."""
        began = time.monotonic()
        starting = subprocess.Popen(start, cwd=self.cache, env=self.env, stderr=subprocess.DEVNULL)
        until_banner(self.port, starting)
        boot = time.monotonic() - began
        starting.wait()
        self.settle()
        pid = pid_of(word)
        began = time.monotonic()
        stop()
        until_ended(pid)
        return boot, time.monotonic() - began

    def ycluster(self) -> tuple[float, float]:
        start = [*self.program, "start", "-c", str(self.work)]
        return self.measure(f"guest={NAME}\0", start, lambda: self.run("stop"))

    def bare(self) -> tuple[float, float]:
        return self.measure(
            f"guest={NAME}\0", self.argv, lambda: press_power_button(self.cache / f"{NAME}.qmp")
        )

    def libvirt(self) -> tuple[float, float]:
        virsh = ["virsh", "-q", "-c", "qemu:///session" if os.getuid() else "qemu:///system"]
        subprocess.run([*virsh, "define", self.work / "virsh.xml"], env=self.env, check=True)
        start, stop = ([*virsh, verb, f"{NAME}-virsh"] for verb in ("start", "shutdown"))
        took = self.measure(
            f"guest={NAME}-virsh", start, lambda: subprocess.run(stop, env=self.env, check=True)
        )
        subprocess.run([*virsh, "undefine", f"{NAME}-virsh"], env=self.env, check=True)
        return took


@contextlib.contextmanager
def libvirt_of_our_own(work: Path) -> Iterator[None]:
    """root has no session daemon: in a /run of our own, the system's, which runs QEMU as we do, without cgroups."""
    if os.getuid() or not shutil.which("libvirtd"):
        yield
        return
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/libvirt"], check=True)
    conf = 'user = "root"\ngroup = "root"\nsecurity_driver = "none"\ncgroup_controllers = []\nnamespaces = []\n'
    conf += 'stdio_handler = "file"\n'
    Path("/etc/libvirt/qemu.conf").write_text(conf)
    daemon = subprocess.Popen(
        ["libvirtd"], stdout=subprocess.DEVNULL, stderr=(work / "libvirtd.log").open("w")
    )
    try:
        until = time.monotonic() + 60
        while not Path("/run/libvirt/libvirt-sock").exists() and time.monotonic() < until:
            time.sleep(0.1)
        yield
    finally:
        daemon.terminate()
        daemon.wait()


def main() -> None:
    if os.getuid() == 0 and "YCLUSTER_BENCH" not in os.environ:
        os.environ["YCLUSTER_BENCH"] = "in a namespace"
        unshare = [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            str(ROOT / "tests" / "e2e" / "in-namespace.sh"),
        ]
        os.execvp("unshare", [*unshare, sys.executable, *sys.argv])
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    image = subprocess.run(
        [ROOT / "scripts" / "build-guest-image.sh"], stdout=subprocess.PIPE, text=True, check=True
    )
    with tempfile.TemporaryDirectory(prefix="ycb.") as work, libvirt_of_our_own(Path(work)):
        bench = Bench(Path(work), image.stdout.strip())
        ways = {"bare QEMU": bench.bare, "ycluster": bench.ycluster}
        if shutil.which("virsh") and shutil.which("libvirtd"):
            ways["virsh"] = bench.libvirt
        found: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for number in range(rounds):
            for way, measure in ways.items():
                found[way].append(measure())
                boot, stop = found[way][-1]
                print(
                    f"round {number + 1}: {way:10} boot {boot:6.2f} s   shutdown {stop:5.2f} s",
                    file=sys.stderr,
                )
        bench.run("teardown")
    print(
        f"median of {rounds} rounds   start to SSH banner   over bare   stop to QEMU's end   over bare"
    )
    base = [statistics.median(values) for values in zip(*found["bare QEMU"])]
    for way, measured in found.items():
        boot, stop = (statistics.median(values) for values in zip(*measured))
        print(
            f"{way:18} {boot:17.2f} s {boot / base[0]:16.3f} {stop:17.2f} s {stop / base[1]:14.3f}"
        )


if __name__ == "__main__":
    main()
