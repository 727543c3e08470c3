"""For tests of faults: a guest of 512 bytes that obeys the power button, clusters that run it, and strace to do harm."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

from conftest import Cluster, need, wait_for

GREETING = b"the obedient guest is up\r\n"

# Real mode, loaded at 0000:7C00. The ports are those of q35's power management as SeaBIOS places it: 0x600 is its
# status, 0x602 what of it is enabled, 0x604 its control.
ASSEMBLY = """
    FA      | cli
    31C0    | xor  ax, ax
    8ED8    | mov  ds, ax
    8ED0    | mov  ss, ax
    BC007C  | mov  sp, 0x7C00
    FC      | cld
    BE347C  | mov  si, 0x7C34         ; the greeting: it stands right behind the code
    BAF803  | mov  dx, 0x3F8          ; COM1
    AC      | print: lodsb
    84C0    | test al, al
    7403    | jz   button
    EE      | out  dx, al
    EBF8    | jmp  print
    BA0206  | button: mov dx, 0x602
    B80001  | mov  ax, 0x100          ; without this bit a press isn't noted
    EF      | out  dx, ax
    BA0006  | again: mov dx, 0x600
    FB      | wait: sti
    F4      | hlt                     ; the BIOS's clock ticks 18 times a second
    ED      | in   ax, dx
    F6C401  | test ah, 1              ; pressed?
    74F8    | jz   wait
    BA0406  | mov  dx, 0x604
    B80020  | mov  ax, 0x2000         ; sleep enable, sleep type 0: off
    EF      | out  dx, ax
    EBEC    | jmp  again
"""


def obedient_image(path: Path) -> Path:
    """A disk whose boot sector says that it is up, and powers off when the power button is pressed."""
    code = bytes.fromhex("".join(line.split("|")[0] for line in ASSEMBLY.splitlines()))
    assert len(code) == 0x34
    with path.open("wb") as file:
        file.write((code + GREETING + b"\0").ljust(510, b"\0") + b"\x55\xaa")
        file.truncate(1 << 20)
    return path


def up(cluster: Cluster) -> bool:
    """Whether the guest has come to where it heeds the power button."""
    with contextlib.suppress(FileNotFoundError):
        return GREETING in cluster.file("-console.log").read_bytes()
    return False


def boot(cluster: Cluster, verb: str = "provision") -> Cluster:
    """Provision or start it; the verb waits for an ssh that never comes, so it is killed once the guest is up."""
    with contextlib.suppress(FileNotFoundError):
        cluster.file("-console.log").unlink()
    waiting = cluster.program.spawn(verb, "-c", cluster.directory, YCLUSTER_TIMER="watcher")
    try:
        wait_for("QEMU", cluster.qemu)
        wait_for("the sidecar of a running VM", lambda: cluster.sidecar().get("ranWith"))
        wait_for("the guest", lambda: up(cluster))
    finally:
        waiting.kill()
        _, told = waiting.communicate()
        print(told)
    return cluster


def strace(*words: object) -> list[str]:
    """The words before a command that has it run under strace, quietly, children included."""
    need(shutil.which("strace"), "strace is not installed")
    return ["strace", "-f", "-qq", "-o", "/dev/null", *map(str, words)]


def watchers(cluster: Cluster) -> list[int]:
    """The pids of this cluster's watchers, found without ycluster's help."""
    wanted = f"lifetime\0watch\0--state\0{cluster.file('.json')}\0".encode()
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if re.fullmatch("[0-9]+", entry.name) and wanted in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def unwatch(cluster: Cluster) -> None:
    """Kill its watcher, which would be the first to see that the cluster is due."""
    for pid in watchers(cluster):
        os.kill(pid, signal.SIGKILL)
    wait_for("the end of the watcher", lambda: not watchers(cluster))


def ours(cluster: Cluster) -> list[str]:
    """The names of every file of this cluster's in its cacheDir, hidden ones included."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(cluster.cache) if cluster.name in name)
    return []


def forget(cluster: Cluster) -> None:
    """Tear it down, and see that nothing is left."""
    done = subprocess.run(
        [str(cluster.program.path), "teardown", "-c", str(cluster.directory)],
        env=cluster.program.environ(), text=True, capture_output=True, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert cluster.qemu() == [] and ours(cluster) == []
