"""Real parts for the e2e tests: dist/ycluster copied out of the tree, a Debian guest, a user manager, an atd."""

from __future__ import annotations

import calendar
import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Callable

import daemons
import pytest
from daemons import wait_for as wait_for

ROOT = Path(__file__).resolve().parents[2]
# `tests/run.sh &` ignores SIGINT, and so would all that the tests start, even what they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def need(present: object, reason: str) -> None:
    """Skip on a laptop, fail in CI: there a missing part would hide what it was to prove."""
    if not present:
        if os.environ.get("CI") == "true":
            pytest.fail(f"missing in CI: {reason}")
        pytest.skip(reason)


def block(page: str, heading: str, language: str = "sh") -> str:
    """The first block of a language under a heading."""
    found = re.search(
        rf"^#+ {heading}\n.*?^```{language}\n(.*?)^```",
        (ROOT / page).read_text(),
        re.MULTILINE | re.DOTALL,
    )
    assert found, heading
    return found[1]


def moment(text: str) -> int:
    """Seconds since the epoch. What is asserted of deadlines compares two of them: how long a boot takes is not known."""
    return calendar.timegm(time.strptime(text, "%Y-%m-%dT%H:%M:%SZ"))


@dataclass
class Program:
    """dist/ycluster as somebody else's machine has it: copied, in a home of its own, with a bare environment."""

    path: Path
    home: Path
    env: dict[str, str] = field(default_factory=dict)

    def environ(self, **extra: str) -> dict[str, str]:
        bare = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(self.home)}
        if os.environ.get("XDG_RUNTIME_DIR"):
            bare["XDG_RUNTIME_DIR"] = os.environ["XDG_RUNTIME_DIR"]
        return {**bare, **self.env, **extra}

    def run(
        self, *argv: object, code: int | None = 0, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        words = [str(self.path), *map(str, argv)]
        done = subprocess.run(
            words, cwd="/", env=self.environ(**extra), text=True, capture_output=True, timeout=900, stdin=subprocess.DEVNULL
        )  # fmt: skip
        told = f"{' '.join(words)}\n--- stdout\n{done.stdout}--- stderr\n{done.stderr}"
        print(told)
        assert code is None or done.returncode == code, (
            f"exit {done.returncode}, expected {code}: {told}"
        )
        assert "Traceback" not in done.stderr
        return done

    def spawn(self, *argv: object, **extra: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.path), *map(str, argv)], cwd="/", env=self.environ(**extra), text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip


def is_locked_now(file: IO[str]) -> bool:
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


@dataclass
class Cluster:
    """A cluster under test, named by its config directory."""

    program: Program
    directory: Path
    cache: Path
    name: str

    def run(
        self, *argv: object, code: int | None = 0, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        words = list(argv)
        at = words.index("--") if "--" in words else len(words)
        return self.program.run(*words[:at], "-c", self.directory, *words[at:], code=code, **extra)

    def status(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.run("status", "-o", "json").stdout)
        return shown

    def guard(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.run("lifetime", "status", "-o", "json").stdout)
        return shown["enforcement"]

    def file(self, suffix: str) -> Path:
        return self.cache / f"{self.name}{suffix}"

    def sidecar(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads(self.file(".json").read_text())
        return read

    def events(self) -> list[dict[str, Any]]:
        """What has become of the cluster, by the log of events."""
        log = self.program.home / ".local/state/ycluster/events.jsonl"
        found = [json.loads(line) for line in log.read_text().splitlines()]
        return [event for event in found if event["name"] == self.name]

    def happened(self) -> list[str]:
        """The same, in a word each."""
        return [event["event"] for event in self.events()]

    def set_deadline(self, seconds: float, **fields: Any) -> None:
        """Write a near deadline into the sidecar; no verb shortens one.

        Under the lock, as a verb would: a timer of before may have read the sidecar, and be about to write it.
        And into its copy: of the two the later start counts.
        """
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
        beside = self.file(".edited")
        with self.file(".lock").open("a") as lock:
            wait_for("the lock", lambda: is_locked_now(lock))
            for path in (self.file(".ycluster.state"), self.file(".json")):
                saved = json.loads(path.read_text())
                beside.write_text(json.dumps({**saved, "expiresAt": moment, **fields}))
                beside.replace(path)

    def qemu(self) -> list[int]:
        """The pids of QEMUs that run this cluster, found without ycluster's help."""
        wanted = f"-pidfile\0{self.file('.pid')}\0".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found


def guest(cluster: Cluster, command: str) -> str:
    """What a command in the guest prints, without the blanks around it."""
    return cluster.run("ssh", "--", command).stdout.strip()


def booting(cluster: Cluster) -> subprocess.Popen[str]:
    """A provision that waits for a guest which will never answer."""
    provision = cluster.program.spawn(
        "provision", "-c", cluster.directory, YCLUSTER_TIMER="watcher"
    )
    wait_for("QEMU", cluster.qemu)
    wait_for("the sidecar of a running VM", lambda: cluster.sidecar().get("machine"))
    return provision


def running(cluster: Cluster) -> Cluster:
    provision = booting(cluster)
    provision.kill()
    provision.wait()
    return cluster


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workshop")


@pytest.fixture(scope="session")
def program(workshop: Path) -> Program:
    built = ROOT / "dist" / "ycluster"
    assert built.is_file(), "tests/run.sh builds it"
    copy = workshop / "bin" / "ycluster"
    copy.parent.mkdir()
    shutil.copy(built, copy)
    home = workshop / "home"
    home.mkdir()
    return Program(copy, home)


@pytest.fixture(scope="session")
def guest_image() -> Path:
    """The Debian guest, built once and cached by its own script."""
    need(shutil.which("qemu-system-x86_64"), "qemu-system-x86_64 is not installed")
    built = subprocess.run(
        [ROOT / "scripts" / "build-guest-image.sh"], stdout=subprocess.PIPE, text=True
    )
    need(built.returncode == 0, "scripts/build-guest-image.sh can't build the guest here")
    return Path(built.stdout.strip())


# xor ax,ax; mov ds,ax; mov ss,ax; mov sp,7C00h; mov si,7D00h
# say: lodsb; test al,al; jz end; mov ah,0Eh; mov bx,7; int 10h; jmp say; end: hlt; jmp end
_BOOT_SECTOR = bytes.fromhex("31c08ed88ed0bc007cbe007dac84c07409b40ebb0700cd10ebf2f4ebfd")


def saying(image: Path, said: bytes) -> Path:
    """A disk of which the boot sector says this, and no more."""
    sector = bytearray(_BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa")
    sector[0x100 : 0x100 + len(said)] = said
    image.write_bytes(sector + bytes((64 << 20) - 512))
    return image


@pytest.fixture(scope="session")
def blank_image(workshop: Path) -> Path:
    """A disk with nothing on it but that: a machine that runs, and never answers."""
    return saying(workshop / "blank.img", b"Nothing to do\r\n")


@pytest.fixture(scope="session")
def panicking_image(workshop: Path) -> Path:
    """A boot sector that panics as a kernel does."""
    panic = b"---[ end Kernel panic - not syncing: IO-APIC + timer doesn't work! ]---\r\n"
    return saying(workshop / "panicking.img", panic)


@pytest.fixture(scope="module")
def new_cluster(program: Program, workshop: Path) -> Iterator[Callable[..., Cluster]]:
    """Makes the config of a cluster; what runs at the module's end is killed: an emulated guest costs half a CPU."""
    made: list[Cluster] = []

    def make(name: str, image: Path, max_run: str = "1h", on_expiry: str = "stop") -> Cluster:
        directory = workshop / f"config-{name}"
        cache = workshop / f"cache of {name}, with a comma"
        directory.mkdir()
        (directory / "y-cluster-provision.yaml").write_text(
            f"""\
# a comment, and every value that the tests need
name: {name}
context: {name}
memory: 1024
cpus: "2"
cpuModel: qemu64  # a sixth less work than max, where it is emulated; quickstart has the default
diskSize: 4G
sshPort: 0
portForwards: []
cacheDir: "{cache}"
image: {image}
k3s: {{install: none}}
lifetime:
  maxRun: {max_run}
  warn: "0"
  onExpiry: {on_expiry}
"""
        )
        made.append(Cluster(program, directory, cache, name))
        return made[-1]

    yield make
    for cluster in made:
        for pid in cluster.qemu():
            os.kill(pid, 9)


@pytest.fixture(scope="module")
def woken(new_cluster: Callable[..., Cluster], guest_image: Path) -> Callable[..., Cluster]:
    """Makes clusters of one Debian that was booted and suspended: each goes on in seconds, a boot takes a minute.

    For tests that are not about booting; `edit` changes its config. It is kept beside the image, and made anew where it goes on no more.
    """
    kept = guest_image.with_suffix(".booted")
    booted = functools.lru_cache(lambda: new_cluster("booted", guest_image))

    def boot() -> None:
        first = booted()
        first.run("provision", YCLUSTER_TIMER="watcher")
        first.run("suspend")
        shutil.rmtree(kept, ignore_errors=True)
        part = kept.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", first.cache, part], check=True)
        part.rename(kept)
        first.run("teardown")

    def copy(made: Cluster) -> None:
        shutil.rmtree(made.cache, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", kept, made.cache], check=True)
        for path in made.cache.glob("booted*"):
            path.rename(made.file(path.name.removeprefix("booted")))
        for path in made.cache.glob("*.ycluster.*"):
            path.unlink()  # what its timers ran
        hosts = made.file("-known_hosts")
        hosts.write_text(hosts.read_text().replace("booted", made.name))
        now = {"name": made.name, "context": made.name, "cacheDir": str(made.cache)}
        made.file(".json").write_text(json.dumps({**made.sidecar(), **now}))

    def wake(name: str, edit: Callable[[str], str] = str, **environ: str) -> Cluster:
        made = new_cluster(name, guest_image)
        config = made.directory / "y-cluster-provision.yaml"
        config.write_text(edit(config.read_text()))
        with open(kept.with_suffix(".booted.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for fresh in (not kept.exists(), True):
                if fresh:
                    boot()
                copy(made)
                if made.run("start", code=None, **environ).returncode == 0:
                    return made
        raise AssertionError("a guest that was just booted does not go on")

    return wake


@contextlib.contextmanager
def needed(part: contextlib.AbstractContextManager[None]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(part)
        except daemons.Missing as missing:
            need(False, str(missing))
        yield


@pytest.fixture(scope="session")
def user_manager() -> Iterator[None]:
    with needed(daemons.user_manager()):
        yield


@pytest.fixture(scope="session")
def atd() -> Iterator[None]:
    with needed(daemons.atd()):
        yield
