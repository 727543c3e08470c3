#!/usr/bin/env python3
"""ycluster: dev clusters that expire on their own.

A dev cluster left running after its task is finished is pure cost. Every cluster here gets a wall-clock budget
(`lifetime.maxRun`), counted from each start. A local QEMU cluster is stopped, paused or torn down by a timer on its own host that
fires `ycluster lifetime reap`; a cloud appliance is deleted by the cloud, by the flags that `lifetime gcp-flags` prints.

How it flows: file -> `Config` -> `State` -> a pure decision or argv -> one effect. What decides is pure and
takes the time as an argument; what acts is small. A verb loads under the lock, decides, and acts.

The map: each section uses only what stands above it.
   1 constants          names, pins and bounds; `Record`, what every value here is
   2 errors             one exception a kind; each carries its exit code and a remedy
   3 output             stdout carries data; progress, warnings and errors go to stderr
   4 host effects       `Host`: clock, environment, programs, files, locks. Nothing else touches them
   5 durations          Go's time.ParseDuration and Duration.String, and times for people
   6 YAML subset        `parse_yaml`: strict, every value with its line and column
   7 config and schema  `key()` declares a key of `Config`, once for everything; `load_config`; `schema_for`
   8 state sidecar      `State` <-> <cacheDir>/<name>.json; `Files`, what a cluster owns on disk; `discover`
   9 lifetime decisions `decide`, `anchored`, `extended`, `retry_delay`: pure
  10 timers             systemd --user, at(1) and the watcher behind one `Timer`; `arm_timer`
  11 gcloud flags       `gcp_flags`, `gcp_warnings`, and `gcp_lifetime` of an instance: pure
  12 QMP                `Qmp`, the client of QEMU's monitor
  13 VM process         `find_vm`: is it running, under which pid, is it really ours; `stop_vm`, the ladder
  14 QEMU machine       `qemu_argv`: pure; `launch`; `kvm_works`: where it stands its trial
  15 guest              the cloud-init seed, keys, ssh, `wait_ready`
  16 k3s                `fetch_k3s`, a release on the host; `k3s_stages`, into the guest until it is Ready
  17 kubeconfig         `check_context`, one cluster a context; `merge_kubeconfig`, `forget_kubeconfig`
  18 disk images        `fetch_image`, the overlay on it, the data disk, bundles; the kernel that libguestfs boots
  19 commands           one function a verb; `reap` and `sweep`, which carry an expiry out
  20 CLI                argv -> command -> exit code

Exit codes: 0 done, 1 failed, 2 usage, 3 invalid config, 4 no such cluster or unreadable state, 5 a host
prerequisite is missing, 6 not implemented for this provider, 7 timed out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import pwd
import re
import select
import shlex
import signal
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from functools import partial
from pathlib import Path
from types import SimpleNamespace

TYPE_CHECKING = False  # typing takes longer to import than a verb may take to start
if TYPE_CHECKING:
    import subprocess
    from typing import IO, Any, Callable, NoReturn, TypeAlias, TypeVar, dataclass_transform

    AnyRecord = TypeVar("AnyRecord", bound="Record")
else:

    def dataclass_transform(**options):
        return lambda cls: cls


# === 1 constants =====================================================================================

VERSION = "0.1.0"

CONFIG_NAMES = ("y-cluster-provision.yaml", "y-cluster-provision.json")
PROVIDERS = ("qemu", "docker", "multipass")
PAST = {"stop": "stopped", "pause": "paused", "teardown": "torn down"}
ACTIONS = tuple(PAST)
K3S_VERSION = "v1.35.6+k3s1"

# A dated release has a fixed digest; the undated /release/ URL has none. They vanish after some months.
DEFAULT_IMAGE = "https://cloud-images.ubuntu.com/releases/noble/release-20260705/ubuntu-24.04-server-cloudimg-amd64.img"
DEFAULT_IMAGE_SHA256 = "ffe6203da54deeb6db5d2a98a83f9ec8e55f149d3f7ba622e1abe5fa966ee3d6"

QEMU = "qemu-system-x86_64"
DATA_LABEL, DATA_DIR = (
    "y-cluster-data",
    "/data/yolean",
)  # the data disk's volume, and where the guest mounts it
BIND_ADDRESS = "127.0.0.1"  # a forward on every interface would publish ssh to the network
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# GCE's bounds for max-run-duration (cloud.google.com/compute/docs/instances/limit-vm-runtime).
GCP_MIN_SECONDS, GCP_MAX_SECONDS = 30, 120 * 86400
GCP_PIPE = "gcloud compute instances describe NAME --format=json | ycluster lifetime gcp-status"

READY_TIMEOUT = 600.0  # seconds; a cold first boot without KVM takes one to five minutes
LOCK_TIMEOUT = (
    300.0  # seconds; longer than the whole stop ladder, so that a waiting verb gets its turn
)
POWERDOWN_TIMEOUT = (
    100.0  # seconds for the guest to shut down; its systemd gives a service 90 s to end
)
WATCH_INTERVAL = 5.0  # seconds between looks of the watcher: what a suspend may cost in lateness
AT_EARLY = 120.0  # seconds; at(1) drops seconds, so its job may come up to a minute early and waits
CLOCK_STEP = 30.0  # seconds that the wall clock may be set by before deadlines are moved along
NOTICE_TIMEOUT = 60.0  # seconds that onWarn may take
EVENTS_SIZE = 1 << 20  # bytes of the log of events, until it makes way for a new one
SLEEPER = (
    5.0  # seconds of waiting for a lock before a holder that was put to sleep (SIGSTOP) is woken
)

REQUIRED = object()  # in the place of the default of a key


@dataclass_transform(frozen_default=True)
class Record(SimpleNamespace):
    """A frozen value: its fields are what its class annotates, with their defaults, or with what has one as its `default`.
    dataclasses do the same by inspect and a compiler, which takes longer than most verbs."""

    fields: Mapping[str, Any] = {}  # of the class: names and defaults; `...` where there is none

    def __init_subclass__(cls) -> None:
        names, own = vars(cls).get("__annotations__", {}), vars(cls).items()
        given = {
            name: value
            for name, value in own
            if name in names and getattr(value, "default", 0) is not REQUIRED
        }
        defaults = {name: getattr(value, "default", value) for name, value in given.items()}
        cls.fields = {**cls.fields, **dict.fromkeys(names, ...), **defaults}

    def __init__(self, *values: Any, **named: Any) -> None:
        own = vars(self)
        own.update(self.fields)
        own.update(zip(self.fields, values), **named)
        if len(values) > len(self.fields) or len(own) > len(self.fields) or ... in own.values():
            raise TypeError(
                f"{type(self).__name__} has the fields {', '.join(self.fields)}, not {values} {named}"
            )

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(
            f"{name}: a {type(self).__name__} does not change; `replace` makes another"
        )

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(vars(self).values()))


def replace(record: AnyRecord, **changes: Any) -> AnyRecord:
    """The same but for some fields."""
    return type(record)(**{**vars(record), **changes})


# === 2 errors ========================================================================================
class YclusterError(Exception):
    """Something a user can be told: what went wrong, where, and in `hint` what to do next."""

    exit_code = 1

    def __init_subclass__(cls, code: int = 1) -> None:
        cls.exit_code = code

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


# fmt: off
class UsageError(YclusterError, code=2):
    """The command line asks for something that has no meaning."""

class ConfigError(YclusterError, code=3):
    """The config file is missing, unreadable or wrong."""

class StateError(YclusterError, code=4):
    """No such cluster, or its sidecar can't be read."""

class PrerequisiteError(YclusterError, code=5):
    """The host lacks a program, a permission or a free port."""

class NotImplementedYet(YclusterError, code=6):
    """Valid, but this version or this provider doesn't do it."""

class TimedOut(YclusterError, code=7):
    """Something bounded took longer than its bound."""

class Busy(TimedOut, code=7):
    """Another ycluster holds the cluster's lock."""
# fmt: on


class ProgramFailed(YclusterError):
    """A program that ycluster ran ended badly; `argv` can be pasted into a shell, `stderr` is what it said."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str) -> None:
        last = [line.strip() for line in stderr.splitlines() if line.strip()][-3:]
        super().__init__(
            f"{Path(argv[0]).name} failed (exit {returncode}): {'; '.join(last) or 'it said nothing'}"
        )
        self.argv, self.returncode, self.stderr = tuple(argv), returncode, stderr


class Interrupted(BaseException):
    """Ctrl-C or a termination signal. No `except` for a mere failure may take it for one and go on."""

    exit_code = 130


# === 3 output ========================================================================================
class Output:
    """Where words go. stdout is for data alone; everything a person reads on the way goes to stderr."""

    def __init__(
        self, stdout: IO[str], stderr: IO[str], *, verbose: bool = False, colours: bool = False
    ) -> None:
        self.stdout, self.stderr, self.verbose = stdout, stderr, verbose
        self.live, self.shown, self.colours = (
            stderr.isatty(),
            stdout.isatty(),
            colours and stdout.isatty(),
        )

    def data(self, text: str, colour: str = "") -> None:
        text = f"\x1b[{colour}m{text}\x1b[m" if colour and self.colours else text
        self.stdout.write(text if text.endswith("\n") or not text else text + "\n")
        self.stdout.flush()

    def say(self, text: str, end: str = "\n") -> None:
        # A reader that went away (a closed terminal, `| head`) must not undo the work being reported.
        with contextlib.suppress(OSError, ValueError):
            self.stderr.write(text + end)
            self.stderr.flush()

    def warn(self, text: str) -> None:
        self.say("ycluster: warning: " + text)

    def debug(self, text: str) -> None:
        if self.verbose:
            self.say("+ " + text)

    def error(self, error: YclusterError) -> None:
        self.say(f"ycluster: {error}")
        for line in error.hint.splitlines():
            self.say("  " + line)

    def draw(self, text: str) -> None:
        """Redraw the live line; an empty text wipes it. Nothing where stderr is no terminal."""
        if self.live:
            self.say("\r\x1b[K" + text[: columns() - 1], end="")


class Steps:
    """Progress of a long job in named, timed stages: a live line on a terminal, plain lines elsewhere."""

    HEARTBEAT = 15.0  # seconds between plain lines, so that a log shows life without filling up

    def __init__(self, output: Output, monotonic: Callable[[], float]) -> None:
        self.output, self.monotonic, self.began = output, monotonic, monotonic()
        self.beat = self.began - self.HEARTBEAT + 2  # the first plain line comes soon

    def waiting(self, what: str) -> None:
        """Call as often as you like while waiting for `what`."""
        if (now := self.monotonic()) - self.beat >= (0.2 if self.output.live else self.HEARTBEAT):
            self.beat = now
            (self.output.draw if self.output.live else self.output.say)(
                f"  {what} ... {now - self.began:.0f} s"
            )

    def done(self, what: str) -> None:
        self.output.draw("")
        self.beat = self.monotonic()
        self.output.say(f"  {what} ({self.monotonic() - self.began:.1f} s)")


def columns(fd: int = 2) -> int:
    """The width of the terminal, or 80. (shutil knows it as well, and loads three decompressors.)"""
    with contextlib.suppress(OSError):
        return os.get_terminal_size(fd).columns or 80
    return 80


def table(rows: Sequence[Sequence[str]], width: int = 1 << 20) -> str:
    """Left-aligned columns, two spaces apart: as many as fit into the width, the first in any case."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    while len(widths) > 1 and sum(widths) + 2 * len(widths) - 2 > width:
        widths.pop()
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


# In ASCII: what no terminal and no file can hold (half a surrogate pair) survives as an escape.
to_json = partial(json.dumps, indent=2)


# === 4 host effects ==================================================================================
class Clock(Record):
    """One look at the time: `now`, and when this boot began by the wall clock, which moves when that is set."""

    now: float
    booted: float
    boot_id: str


class Host:
    """This machine and this user: the clock, the environment, other programs. The only door to them."""

    def __init__(self, environ: Mapping[str, str], output: Output) -> None:
        self.environ, self.output = dict(environ), output

    now = staticmethod(time.time)  # seconds since the epoch, UTC: the time that is stored
    monotonic = staticmethod(time.monotonic)  # the one that is waited on

    uptime = staticmethod(
        lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    )  # seconds, suspends included; nobody can set it

    def clock(self) -> Clock:
        now = self.now()
        return Clock(now, now - self.uptime(), self.boot_id())

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def boot_id(self) -> str:
        """The kernel's id of this boot; empty where there is none."""
        with contextlib.suppress(OSError):
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return ""

    def user(self) -> str:
        with contextlib.suppress(KeyError):
            return pwd.getpwuid(os.getuid()).pw_name
        return str(os.getuid())

    def home(self) -> Path:
        """$HOME, else the account's home: a timer or a container may have no HOME at all."""
        if (named := self.environ.get("HOME", "")).startswith("/"):
            return Path(named)
        with contextlib.suppress(KeyError):
            return Path(pwd.getpwuid(os.getuid()).pw_dir)
        why = f"no home directory: HOME is unset and uid {os.getuid()} has no account"
        raise PrerequisiteError(why, hint="set HOME, or cacheDir in the config")

    def cache_home(self) -> Path:
        return self.home() / ".cache" / "y-cluster-qemu"

    def state_home(self) -> Path:
        """Where this user's index of cache directories is kept (XDG base directory specification)."""
        named = self.environ.get("XDG_STATE_HOME", "")
        return (
            Path(named) if named.startswith("/") else self.home() / ".local" / "state"
        ) / "ycluster"

    def child_env(self, extra: Mapping[str, str] = {}) -> dict[str, str]:
        """The whole environment of a child. Named variables only: at(1) would write secrets to disk."""
        env = {
            "PATH": self.environ.get("PATH") or DEFAULT_PATH,
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
        }
        if os.path.isdir(
            runtime := f"/run/user/{os.getuid()}"
        ):  # ssh -T, sudo, cron and at don't set the variable
            env["XDG_RUNTIME_DIR"] = runtime
        kept = (
            "HOME",
            "USER",
            "LOGNAME",
            "TMPDIR",
            "XDG_STATE_HOME",
            "XDG_RUNTIME_DIR",
            "DBUS_SESSION_BUS_ADDRESS",
        )
        return {
            **env,
            **{name: self.environ[name] for name in kept if self.environ.get(name)},
            **extra,
        }

    def which(self, program: str) -> str | None:
        import shutil

        return shutil.which(program, path=self.child_env()["PATH"] + ":/usr/sbin:/sbin")

    def need(self, programs: Mapping[str, str]) -> None:
        """Raise unless every program (name -> Debian package) is on PATH."""
        if missing := [name for name in programs if not self.which(name)]:
            packages = " ".join(sorted({programs[name] for name in missing}))
            raise PrerequisiteError(
                f"missing: {', '.join(missing)}", hint=f"sudo apt-get install {packages}"
            )

    def run(
        self, argv: Sequence[str], *, timeout: float, check: bool = True, stdin: str | None = None,
        cwd: Path | None = None, env: Mapping[str, str] | None = None, pass_fds: Sequence[int] = (),
        waiting: Callable[[], object] = lambda: None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a program to its end, at most `timeout` seconds, with `waiting` called meanwhile. Raises PrerequisiteError when
        it isn't there, TimedOut past the bound (it is killed), ProgramFailed when it exits with anything but 0 (`check`)."""
        import subprocess

        self.output.debug(shlex.join(argv))
        if (program := self.which(argv[0])) is None:
            raise PrerequisiteError(f"{argv[0]}: no such program on PATH")
        until = self.monotonic() + timeout
        with subprocess.Popen(
            [program, *argv[1:]], stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8", errors="surrogateescape",  # as paths are
            cwd=cwd or "/", env=dict(self.child_env() if env is None else env), pass_fds=pass_fds,
        ) as process:  # fmt: skip
            output = None
            try:
                while output is None and self.monotonic() < until:
                    waiting()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        output = process.communicate(
                            stdin, timeout=min(0.5, until - self.monotonic())
                        )
                    stdin = None  # it has been handed over
            finally:
                if output is None:
                    process.kill()
        if output is None:
            raise TimedOut(f"{argv[0]} gave no answer within {timeout:.0f} s: {shlex.join(argv)}")
        done = subprocess.CompletedProcess(tuple(argv), process.returncode, *output)
        if check and done.returncode != 0:
            raise ProgramFailed(argv, done.returncode, done.stderr or done.stdout)
        return done

    def attempt(self, argv: Sequence[str], *, timeout: float) -> str | None:
        """What a program says; None for every kind of failure: it means "no"."""
        with contextlib.suppress(YclusterError, OSError):
            return self.run(argv, timeout=timeout).stdout
        return None

    def spawn(self, argv: Sequence[str], log: Path) -> None:
        """Start a program that outlives this one: a session of its own, cwd /, its output appended to `log`."""
        import subprocess

        self.output.debug(shlex.join(argv) + " &")
        with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as to:
            subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=to, stderr=to, cwd="/", env=self.child_env(), start_new_session=True
            )  # fmt: skip

    def interactive(self, argv: Sequence[str]) -> int:
        """Run a program on this terminal and return its exit status."""
        import subprocess

        self.output.debug(shlex.join(argv))
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        terminal = {"TERM": self.environ["TERM"]} if self.environ.get("TERM") else {}
        status = subprocess.call(argv, env=self.child_env(terminal))
        return 128 - status if status < 0 else status

    def tell_terminals(self, text: str) -> None:
        """Write to this user's terminals that take messages, mesg(1). wall(1) would write to everybody's."""
        for name in Path("/dev/pts").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (found := name.stat()).st_uid == os.getuid() and found.st_mode & 0o020:
                    # One that was halted by Ctrl-S must not halt us.
                    with descriptor(
                        os.open(name, os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK)
                    ) as terminal:
                        os.write(terminal, f"\r\n{text}\r\n".encode())

    def program_source(self) -> bytes:
        """This very module, wherever it was loaded from (a plain file, shiv's cache, a zip)."""
        return bytes(globals()["__loader__"].get_data(__file__))

    def interpreter(self) -> str:
        """The Python that a timer can rely on: not that of a virtual environment that may be deleted."""
        found = sys.executable or "/usr/bin/python3"
        return os.path.realpath(found) if sys.prefix != sys.base_prefix else os.path.abspath(found)


def _syscall(number: int, *arguments: int | None) -> int:
    """For Pythons that were built without a wrapper; these two numbers are the same on every architecture."""
    import ctypes

    result: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def pidfd_open(pid: int) -> int:
    """A descriptor of a process, which can't come to mean another one (Linux 5.3)."""
    return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else _syscall(434, pid, 0)


def send_signal(pidfd: int, signum: int) -> None:
    """Signal the process of a pidfd; OSError when it has ended."""
    send: Callable[..., object] = getattr(signal, "pidfd_send_signal", partial(_syscall, 424))
    send(pidfd, signum, None, 0)


def pids() -> list[int]:
    """Every process that can be seen."""
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def process_stat(process: int | Path) -> tuple[str, str]:
    """A process's name, by its pid or pidfile, and the kernel's letter for its state (T: stopped); empty once it is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int(process.read_text(encoding="ascii")) if isinstance(process, Path) else process
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return stat[stat.index("(") + 1 : stat.rindex(")")], stat[stat.rindex(")") :].split()[1]
    return "", ""


@contextlib.contextmanager
def descriptor(fd: int) -> Iterator[int]:
    """A file descriptor that is closed with the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def sha256_of(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` whole or not at all: write beside it, fsync, rename, fsync the directory."""
    beside = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException as error:
        if isinstance(error, OSError):
            error.filename = error.filename or str(path)  # a full disk has no name of its own
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    with descriptor(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)) as directory:
        os.fsync(directory)


def remove(path: Path) -> bool:
    """Remove a file or a directory of ours; False when there was none."""
    with contextlib.suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            import shutil

            shutil.rmtree(path)
        else:
            path.unlink()
        return True
    return False


def try_flock(path: Path, *, shared: bool = False) -> int | None:
    """A descriptor that holds the lock on `path` (created if needed), or None while another holds it."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:
        if not path.exists():
            raise
        fd = os.open(
            path, os.O_RDONLY
        )  # the disk has become read-only; its VM is to be stopped all the same
    with descriptor(fd), contextlib.suppress(BlockingIOError, FileNotFoundError):
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        # Whoever held it before may have removed the file: a lock on a nameless file guards nothing.
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return os.dup(fd)  # which has the lock as well
    return None


def take_flock(host: Host, path: Path, *, timeout: float, what: str = "") -> int | None:
    """`try_flock` for up to `timeout` seconds: a mere look holds it for a moment, too. With `what`, its holder is woken."""
    steps, looked = Steps(host.output, host.monotonic), host.monotonic()
    until = looked + timeout
    while (fd := try_flock(path)) is None and host.monotonic() < until:
        if what:
            steps.waiting(f"waiting: another ycluster works on {what}")
            if host.monotonic() - looked > SLEEPER:
                looked = host.monotonic()
                wake_holder(path)
        host.sleep(0.02)
    return fd


def flock_held(path: Path) -> bool:
    """Whether somebody holds an exclusive lock on `path`. Looks by a shared lock of its own."""
    if path.exists() and (fd := try_flock(path, shared=True)) is not None:
        os.close(fd)
        return False
    return path.exists()


def wake_holder(path: Path) -> None:
    """Let whoever has the lock file open and was put to sleep go on: asleep, it would keep the reaper out for ever."""
    for pid in [pid for pid in pids() if process_stat(pid)[1] == "T"]:
        with contextlib.suppress(OSError), descriptor(pidfd_open(pid)) as pidfd:
            if any(fd.exists() and fd.samefile(path) for fd in Path(f"/proc/{pid}/fd").iterdir()):
                send_signal(pidfd, signal.SIGCONT)


@contextlib.contextmanager
def locked(host: Host, path: Path, *, timeout: float, guards: Path | None = None) -> Iterator[None]:
    """Hold the lock file `path`, which goes with the file that it guards; raises Busy after `timeout` seconds."""
    if (fd := take_flock(host, path, timeout=timeout, what=path.stem)) is None:
        raise Busy(f"{path.stem}: another ycluster works on it", hint=f"`fuser {path}` names it")
    with descriptor(fd):
        try:
            yield
        finally:
            if guards and not guards.exists():
                remove(path)


def download(host: Host, url: str, part: Path, hint: str, wanted: str = "", by: str = "") -> str:
    """Copy what a URL names to `part`, which may hold its beginning already; returns its SHA-256. Raises PrerequisiteError
    where it can't be had, ConfigError where the digest is not the one that is `wanted`, `by` telling who says so."""
    import http.client
    import urllib.request

    have = (
        part.stat().st_size if wanted and part.exists() else 0
    )  # with no digest nobody could tell whether the rest fits
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as source:
            _copy(
                host,
                source,
                part,
                have if getattr(source, "status", 0) == 206 else 0,
                url.rpartition("/")[2],
            )
        digest = host.run(["sha256sum", "--", str(part)], timeout=3600).stdout.lstrip("\\")[:64]
    except (OSError, ValueError, http.client.HTTPException) as error:
        code = getattr(error, "code", 0)
        if not wanted:
            remove(part)
        if code in (404, 410):
            gone = "there is no such release, or no more (dated images vanish after some months)"
            hint = f"{gone}: choose another, with its digest; or\n{hint}"
        if code != 416 or not have:
            raise PrerequisiteError(
                f"{url}: {getattr(error, 'reason', None) or error}", hint=hint
            ) from None
        digest = ""  # there is nothing behind what we have, so it is something else
    if wanted not in ("", digest):
        remove(part)
        if have:  # it may be its beginning that is wrong
            return download(host, url, part, hint, wanted, by)
        changed = "one of them is wrong, or the file has been changed"
        raise ConfigError(f"{url}: its SHA-256 is {digest}, and {by} says {wanted}", hint=changed)
    return digest


def _copy(host: Host, source: Any, part: Path, have: int, what: str) -> None:
    """Copy an answer behind the first `have` bytes of a file; OSError where it is cut off. Blocks of zeros stay holes."""
    length, steps = (
        int(source.headers.get("Content-Length") or 0),
        Steps(host.output, host.monotonic),
    )
    total = have + length if length else 0
    with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b") as file:
        file.truncate(have)
        file.seek(have)
        while block := source.read(1 << 20):
            if block.count(0) == len(block):
                file.seek(len(block), os.SEEK_CUR)
            else:
                file.write(block)
            steps.waiting(f"fetching {what}: {file.tell() >> 20} of {total >> 20 or '?'} MiB")
        file.truncate()
        file.flush()
        os.fsync(file.fileno())
        if total and file.tell() != total:
            raise OSError(f"cut off after {file.tell()} of {total} bytes")
        steps.done(f"{what} of {file.tell() >> 20} MiB")


# === 5 durations =====================================================================================
# Both of Unicode's are taken: the micro sign and the Greek mu.
_UNITS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,
    "\u03bcs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_TERM = r"(?s)(?=.)([0-9]*)(\.[0-9]*)?([^.0-9]*)"  # a text, like every pattern here: `re` compiles it at its first use


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration such as `8h`, `1h30m`, `1.5s` (golang.org/pkg/time#ParseDuration). Raises ValueError
    with Go's own words. Go computes a fraction in float64; so does this."""
    invalid = ValueError(f'invalid duration "{text}"')
    sign, rest = (text[0], text[1:]) if text[:1] in ("-", "+") else ("+", text)
    if rest == "0":
        return 0
    if not rest:
        raise invalid
    total = 0
    for whole, fraction, unit in re.findall(_TERM, rest):
        digits = whole.lstrip("0") or "0"
        if (not whole and len(fraction) < 2) or len(digits) > 19 or int(digits) > 1 << 63:
            raise invalid
        if not unit:
            raise ValueError(f'missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise ValueError(f'unknown unit "{unit}" in duration "{text}"')
        value, scale = 0, 1.0
        for digit in fraction[1:]:  # Go drops the digits that would overflow an int64
            if value * 10 + int(digit) > 1 << 63:
                break
            value, scale = value * 10 + int(digit), scale * 10
        total += int(digits) * _UNITS[unit] + int(float(value) * (float(_UNITS[unit]) / scale))
        if total > 1 << 63:
            raise invalid
    if total == 1 << 63 and sign == "+":
        raise invalid
    return -total if sign == "-" else total


def budget(text: str) -> int | None:
    """Nanoseconds of a `maxRun` text, None where it says that there is no budget."""
    return None if text in ("", "0") else parse_duration(text)


def format_duration(nanoseconds: int) -> str:
    """A duration as Go prints it: `1h30m0s`, `1.5s`, `20ms`, `0s`."""
    sign, left = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    unit = (
        "s"
        if left >= 10**9 or not left
        else "ms"
        if left >= 10**6
        else "\u00b5s"
        if left >= 10**3
        else "ns"
    )
    minutes, rest = divmod(left, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    number = f"{rest / _UNITS[unit]:.9f}".rstrip("0").rstrip(".")  # exact: eleven digits at most
    return f"{sign}{head}{number}{unit}"


def in_words(seconds: float) -> str:
    """A span for people, two units at most: `3h 12m`, `45s`, `2d 4h`."""
    left = int(abs(seconds))
    parts = [
        (left // 86400, "d"),
        (left // 3600 % 24, "h"),
        (left // 60 % 60, "m"),
        (left % 60, "s"),
    ]
    return " ".join([f"{n}{unit}" for n, unit in parts if n][:2]) or "0s"


_LATEST = 32503679999  # 2999-12-31T23:59:59Z, in seconds since the epoch
_RFC3339 = r"(?a)(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|z|[+-]\d\d:[0-5]\d)"


def parse_time(text: str) -> int:
    """Seconds since the epoch of an RFC 3339 time, a fraction rounded up. Raises ValueError."""
    if (match := re.fullmatch(_RFC3339, text)) is None:
        raise ValueError(f"{text!r} is no RFC 3339 time")
    date, clock, fraction, zone = match.groups()
    moment = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    whole = int(moment.timestamp()) + (1 if fraction and fraction.strip("0") else 0)
    if not 0 <= whole <= _LATEST:
        raise ValueError(f"{text!r} is before 1970 or after 2999")
    return whole


def format_time(seconds: float) -> str:
    """An RFC 3339 time in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def local_time(seconds: float) -> str:
    """A time for people, in the zone of this host."""
    return (
        datetime.fromtimestamp(seconds, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    )


def parse_until(text: str, now: float) -> int:
    """Seconds since the epoch of the next moment at which a clock here shows HH:MM, or of an RFC 3339 time. ValueError."""
    if (match := re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", text, re.ASCII)) is None:
        return parse_time(text)
    shown = datetime.fromtimestamp(now).replace(
        hour=int(match[1]), minute=int(match[2]), second=0, microsecond=0
    )
    return int((shown if shown.timestamp() > now else shown + timedelta(days=1)).timestamp())


# === 6 YAML subset ================================================================================
# The part of YAML 1.2.2 that configs are written in; all of JSON is in it. A document gets the
# value that every reader of the core schema gives it, or is refused with file:line:column and a
# remedy. Sections and [numbers] of grammar rules are those of https://yaml.org/spec/1.2.2/.
# A reading function takes the source and the position where something starts, and returns the
# position after it (block functions: that of the next token) and what it read. Each character is
# looked at a bounded number of times.

# --- source and errors

YamlValue: TypeAlias = "None | bool | int | float | str | list[Node] | dict[str, Node]"
_Read: TypeAlias = "tuple[int, Node]"  # the position after what was read, and what was read

_MAX_TEXT = (
    256 * 1024
)  # characters; a config has a few thousand, and reading each takes microseconds
_MAX_DEPTH = 100  # collections around a value; each takes two or three Python frames
_MAX_KEY = 1024  # characters of an implicit key, section 7.4.2
_MAX_NUMBER = 640  # characters; with PYTHONINTMAXSTRDIGITS at its lowest, int() takes no more

# A character that is not c-printable [1], or a byte order mark, or U+0085, U+2028 or U+2029, which
# end a line in YAML 1.1 alone. It takes long to compile; ASCII text needs only the first.
_FORBIDDEN_ASCII = r"[^\t\n -~]"
_FORBIDDEN = "[^\t\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]"
# Blanks: s-white [33], on one line or on several.
_BLANKS = r"[ \t]*"
_BLANK_LINES = r"[ \t\n]*"
# Blanks, line ends and comments up to a token, section 6.6. A comment has a blank or a line's start
# before its "#".
_TO_TOKEN = r"(?:[ \t\n]+|(?<![^ \t\n])#[^\n]*)*"
# The line that starts or ends a document, sections 9.1.2 and 9.1.3; even in a scalar, [206].
_MARKER = r"(?m)^(?:---|\.\.\.)(?![^ \t\n])"


class Node(Record):
    """One parsed value and where it starts: 1-based line and column, in characters.

    `source` is the text of a plain scalar with its line ends folded ("8192" for 8192, "" for a
    missing value), else None. In a mapping a value has the position of its key, too; elsewhere
    0, 0.
    """

    value: YamlValue
    line: int
    column: int
    source: str | None = None
    key_line: int = 0
    key_column: int = 0


class _YamlSource(Record):
    r"""A text without byte order mark whose line ends are all "\n", and where its lines start."""

    text: str
    file: str
    line_starts: tuple[int, ...]

    def place(self, pos: int) -> tuple[int, int]:
        """Return the 1-based line and column of pos."""
        line = bisect_right(self.line_starts, pos)
        column = pos - self.line_start(pos) + 1
        return line, column

    def line_start(self, pos: int) -> int:
        """Return where the line of pos starts."""
        line = bisect_right(self.line_starts, pos)
        return self.line_starts[line - 1]

    def indent(self, pos: int) -> int:
        """Return the 0-based column of pos; at the text's end -1, which ends every collection."""
        if self.at_end(pos):
            return -1
        return pos - self.line_start(pos)

    def at_end(self, pos: int) -> bool:
        """Whether the text ends at pos."""
        return pos == len(self.text)

    def at(self, pos: int, chars: str) -> bool:
        """Whether one of these characters is at pos."""
        return pos < len(self.text) and self.text[pos] in chars

    def match(self, pattern: str, pos: int) -> re.Match[str] | None:
        """Match the pattern at pos."""
        compiled = re.compile(pattern)
        return compiled.match(self.text, pos)

    def skip(self, pattern: str, pos: int) -> int:
        """Return the position after what the pattern matches at pos; pos if it does not match."""
        match = self.match(pattern, pos)
        if match is None:
            return pos
        return match.end()

    def node(
        self,
        pos: int,
        value: YamlValue,
        source: str | None = None,
    ) -> Node:
        """Make the node of a value that starts at pos."""
        line, column = self.place(pos)
        return Node(value, line, column, source)

    def error(
        self,
        pos: int,
        message: str,
        hint: str,
    ) -> ConfigError:
        """Make the error that names pos and shows the text there."""
        line, column = self.place(pos)
        message = f"{self.file}:{line}:{column}: {message}"
        excerpt = self.text[pos : pos + 30]
        first_line = excerpt.split("\n")[0]
        if first_line:
            message = f"{message}: {first_line!r}"
        return ConfigError(message, hint=hint)


def _refuse_tab(src: _YamlSource, start: int, end: int) -> None:
    """Refuse a tab from start to end: how far it indents is not defined (section 6.1)."""
    tab = src.text.find("\t", start, end)
    if tab >= 0:
        message = "a tab in the indentation"
        hint = "indent with spaces"
        raise src.error(tab, message, hint)


def _refuse_tab_before(src: _YamlSource, start: int, pos: int) -> None:
    """Refuse a tab before pos, on its line and not before start."""
    line_start = src.line_start(pos)
    indentation = max(start, line_start)
    _refuse_tab(src, indentation, pos)


def _check_depth(src: _YamlSource, pos: int, depth: int) -> None:
    if depth > _MAX_DEPTH:
        message = f"more than {_MAX_DEPTH} levels of nesting"
        hint = "nest less deeply"
        raise src.error(pos, message, hint)


# --- scalars

# The first character of a plain scalar, ns-plain-first [126]: not an indicator, except "-", "?" and
# ":" with text right after them. Inside of [] and {} libyaml takes a "?" for the sign of a key.
_PLAIN_FIRST = r"""[^-?:,\[\]{}#&*!|>'"%@`]|[-?:](?=[^ \t\n])"""
_FLOW_PLAIN_FIRST = r"""[^-?:,\[\]{}#&*!|>'"%@`]|[-:](?=[^ \t\n,\[\]{}])"""
# The text of a plain scalar on one line, nb-ns-plain-in-line [132]: it goes on up to a ":" with no
# text right after it, a "#" after a blank, and inside of [] and {} an indicator of these.
_PLAIN_LINE = r"(?:[ \t]*(?:[^ \t\n:#]|:(?=[^ \t\n])|(?<=[^ \t\n])#))+"
_FLOW_PLAIN_LINE = r"(?:[ \t]*(?:[^ \t\n:#,\[\]{}]|:(?=[^ \t\n,\[\]{}])|(?<=[^ \t\n])#))+"
# Quoted scalars, c-double-quoted [109] and c-single-quoted [120], over any number of lines.
_DOUBLE_QUOTED = r'(?s)"([^"\\]*(?:\\.[^"\\]*)*)"'
_SINGLE_QUOTED = r"'([^']*(?:''[^']*)*)'(?!')"
# A line end in a scalar, with the blanks before it and all that is blank after it: s-flow-folded
# [74]. Blanks elsewhere match as well: each is looked at once, not again from each one before it.
_LINE_END = r"[ \t]*\n[ \t\n]*|[ \t]+"
# In double quotes also an escape, c-ns-esc-char [62]: two of \u are a surrogate pair of JSON, and a
# line end that is escaped takes the blanks after it along, s-double-escaped [112].
_ESCAPE_OR_LINE_END = (
    r"(?:\\u[dD][89abAB][0-9a-fA-F]{2})?\\u[0-9a-fA-F]{4}"
    r"|\\x[0-9a-fA-F]{2}|\\U[0-9a-fA-F]{8}|\\\n[ \t\n]*|\\.|" + _LINE_END
)
_ESCAPED = {  # section 5.7, [42] to [58]
    "0": "\0",
    "a": "\a",
    "b": "\b",
    "t": "\t",
    "\t": "\t",
    "n": "\n",
    "v": "\v",
    "f": "\f",
    "r": "\r",
    "e": "\x1b",
    " ": " ",
    '"': '"',
    "/": "/",
    "\\": "\\",
    "N": "\x85",
    "_": "\xa0",
    "L": "\u2028",
    "P": "\u2029",
}

# The core schema, section 10.3.2: words and their values, and the patterns of numbers.
_INFINITY = float("inf")
_NAN = float("nan")
_WORDS: Mapping[str, YamlValue] = {
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
    ".inf": _INFINITY,
    ".Inf": _INFINITY,
    ".INF": _INFINITY,
    "+.inf": _INFINITY,
    "+.Inf": _INFINITY,
    "+.INF": _INFINITY,
    "-.inf": -_INFINITY,
    "-.Inf": -_INFINITY,
    "-.INF": -_INFINITY,
    ".nan": _NAN,
    ".NaN": _NAN,
    ".NAN": _NAN,
}
_INT = r"[-+]?[0-9]+|0x[0-9a-fA-F]+"
_FLOAT = r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
# A number as JSON writes it: RFC 8259, section 6. All of JSON is read, even where YAML 1.1
# differs: 1e3 is a text there.
_JSON_NUMBER = r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"

# What YAML 1.1 (https://yaml.org/type/), or libraries that mix both versions, read in another way:
# words, and numbers of these forms.
_YES_OR_NO = ("y", "Y", "yes", "Yes", "YES", "n", "N", "no", "No", "NO")
_ON_OR_OFF = ("on", "On", "ON", "off", "Off", "OFF")
_AMBIGUOUS_WORDS = ("=", *_YES_OR_NO, *_ON_OR_OFF)
_AMBIGUOUS_NUMBER = "|".join(
    (
        r"[-+]?0[0-9_]+",  # octal in YAML 1.1: 012
        r"[-+]?0o[0-7_]+",  # octal in YAML 1.2: 0o12
        r"[-+]?0b[01_]+",  # binary in YAML 1.1: 0b11
        r"[-+]?0[BOX][0-9a-fA-F_]+",  # with a capital letter, for Go: 0X1F
        r"[-+]0x[0-9a-fA-F_]+",  # hexadecimal with a sign: -0x1F
        r"0x[0-9a-fA-F]*_[0-9a-fA-F_]*",  # hexadecimal with underscores: 0x_ff
        # Decimal with an underscore that is not the first, and a digit: 1_000.5
        r"(?=[^_]+_)(?=[^0-9]*[0-9])[-+]?[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9_]+)?",
        r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][0-9]+",  # an exponent without sign: 1.5e3
        r"[-+]?[0-9]+[eE][-+][0-9]+",  # an exponent without a point before it: +1e+3
        r"[-+]\.[0-9]+(?:[eE][-+]?[0-9]+)?",  # a sign and a point: -.5, which is a text to PyYAML
        r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+",  # base 60: 1:30
        r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*",  # base 60 with a fraction: 1:30.5
        # A date, maybe with a time: 2001-12-14 21:59:43.10 -5
        r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}"
        r"(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{1,2}:[0-9]{1,2}(?:\.[0-9]*)?"
        r"(?:[ \t]*(?:Z|[-+][0-9]{1,2}(?::[0-9]{2})?))?)?",
    )
)
# What _INT, _FLOAT and _AMBIGUOUS_NUMBER match starts with a character of the first, and has none
# that is not in the second.
_NUMBER_START = "-+.0123456789"
_NUMERIC = "0123456789-+._:abcdefABCDEFoOxXTtZ \t"

_REFUSED_FIRST = (  # what a plain scalar may not start with: characters, why, a remedy
    ("&*", "anchors and aliases are not supported", "write the value out where it is needed"),
    ("!", "tags are not supported", "leave the tag out"),
    ("%", "directives are not supported", "leave the line out"),
    ("?:", "explicit and empty keys are not supported", "write 'key: value'"),
    ("-", "a list can't start here", "start it on a line of its own"),
    ("#", "a comment needs a space before its '#'", "put a space there"),
    ("[{", "only a string can be a key", "quote it"),
    (",]}", "no value before this character", "write a value, null for none"),
    ("|>@`", "no value can start with this character here", "remove it"),
)


class _ScalarContext(Record):
    """The patterns of a plain scalar, which has fewer characters inside of [] and {}."""

    first: str
    line: str


_IN_BLOCK = _ScalarContext(_PLAIN_FIRST, _PLAIN_LINE)
_IN_FLOW = _ScalarContext(_FLOW_PLAIN_FIRST, _FLOW_PLAIN_LINE)


def _scalar(
    src: _YamlSource,
    pos: int,
    indent: int,
    context: _ScalarContext,
) -> _Read:
    """Read the plain or quoted scalar at pos: section 7.3.

    It may go on in further lines, which are indented by more than `indent` spaces.
    """
    if src.at(pos, "\"'"):
        end = _quoted_end(src, pos)
        _check_further_lines(src, pos, end, indent)
        text = _quoted_text(src, pos, end)
        node = src.node(pos, text)
        return end, node
    end = _plain_end(src, pos, indent, context)
    _check_further_lines(src, pos, end, indent)
    source = _fold_lines(src.text[pos:end])
    value = _resolve_plain(src, pos, source)
    node = src.node(pos, value, source)
    return end, node


def _plain_end(
    src: _YamlSource,
    pos: int,
    indent: int,
    context: _ScalarContext,
) -> int:
    """Find where the plain scalar at pos ends: section 7.3.3. A comment ends it, too."""
    end = _plain_line_end(src, pos, context)
    while True:
        next_line = src.skip(_BLANK_LINES, end)
        if src.indent(next_line) <= indent:
            return end
        next_end = src.skip(context.line, next_line)
        if next_end == next_line:
            return end
        end = next_end


def _plain_line_end(src: _YamlSource, pos: int, context: _ScalarContext) -> int:
    """Find where the first line of the plain scalar at pos ends, without the blanks after it."""
    if not src.match(context.first, pos):
        raise _refused_start(src, pos)
    return src.skip(context.line, pos)


def _refused_start(src: _YamlSource, pos: int) -> ConfigError:
    """Tell why no plain scalar starts at pos, where there is an indicator."""
    rows = [row for row in _REFUSED_FIRST if src.at(pos, row[0])]
    _, message, remedy = rows[0]
    hint = f"{remedy}; a text that starts like this needs quotes"
    return src.error(pos, message, hint)


def _quoted_end(src: _YamlSource, pos: int) -> int:
    """Find the position after the closing quote of the scalar at pos."""
    quote = src.text[pos]
    pattern = _DOUBLE_QUOTED
    if quote == "'":
        pattern = _SINGLE_QUOTED
    end = src.skip(pattern, pos)
    if end == pos:
        message = "nothing closes this quote"
        hint = f"add the closing {quote}"
        raise src.error(pos, message, hint)
    return end


def _check_further_lines(
    src: _YamlSource,
    start: int,
    end: int,
    indent: int,
) -> None:
    """Refuse a line of the scalar from start to end, but for its first, that is not indented."""
    line_end = src.text.find("\n", start, end)
    while line_end >= 0:
        pos = src.skip(_BLANK_LINES, line_end)
        _refuse_tab(src, line_end, pos)
        if src.indent(pos) <= indent:
            message = "not indented, but inside of quotes"
            hint = f"start the line with {indent + 1} or more spaces, or close the quote above it"
            raise src.error(pos, message, hint)
        line_end = src.text.find("\n", pos, end)


def _quoted_text(src: _YamlSource, pos: int, end: int) -> str:
    """Return the text of the quoted scalar from pos to end: sections 7.3.1 and 7.3.2."""
    start = pos + 1
    raw = src.text[start : end - 1]
    if src.at(pos, "'"):
        folded = _fold_lines(raw)
        return folded.replace("''", "'")

    def replacement(match: re.Match[str]) -> str:
        piece = match.group()
        if piece.startswith("\\"):
            piece_pos = start + match.start()
            return _unescape(src, piece_pos, piece)
        return _fold(match)

    return re.sub(_ESCAPE_OR_LINE_END, replacement, raw)


def _fold_lines(text: str) -> str:
    """Return the text with its line ends folded: section 6.5."""
    if "\n" not in text:
        return text
    return re.sub(_LINE_END, _fold, text)


def _fold(match: re.Match[str]) -> str:
    """Fold what _LINE_END matches: a line end is a space, of several the first is dropped."""
    blanks = match.group()
    line_ends = blanks.count("\n")
    if line_ends == 0:
        return blanks
    if line_ends == 1:
        return " "
    return "\n" * (line_ends - 1)


def _unescape(src: _YamlSource, pos: int, escape: str) -> str:
    """Return the character of the escape at pos: section 5.7, and JSON's surrogate pairs."""
    if escape[1] == "\n":
        empty_lines = escape.count("\n") - 1
        return "\n" * empty_lines
    if escape[1] in _ESCAPED:
        return _ESCAPED[escape[1]]
    if len(escape) == 2:
        message = "unknown escape"
        hint = "write \\\\ for a backslash, or use single quotes"
        raise src.error(pos, message, hint)
    # Python knows \x, \u and \U as well. UTF-16 makes one character of a surrogate pair, and has
    # no place for half of one.
    try:
        text = escape.encode().decode("unicode_escape")
        units = text.encode("utf-16", "surrogatepass")
        return units.decode("utf-16")
    except UnicodeError:
        message = "no character has this number"
        hint = "write the character itself"
        raise src.error(pos, message, hint) from None


def _resolve_plain(src: _YamlSource, pos: int, text: str) -> YamlValue:
    """Return the value of the plain scalar at pos by the core schema, if readers agree on it."""
    if text in _WORDS:
        return _WORDS[text]
    if text == "<<":
        message = "merge keys are not supported"
        hint = "write the merged entries out"
        raise src.error(pos, message, hint)
    if _is_ambiguous(text):
        message = "readers of YAML read this differently"
        hint = f'quote it if it is a text: "{text}"; else write true, false or a decimal number'
        raise src.error(pos, message, hint)
    if _is_number(text):
        return _plain_number(src, pos, text)
    return text


def _is_ambiguous(text: str) -> bool:
    """Whether some readers give this plain scalar another value than the core schema does."""
    if text in _AMBIGUOUS_WORDS:
        return True
    if not _may_be_number(text) or re.fullmatch(_JSON_NUMBER, text):
        return False
    return re.fullmatch(_AMBIGUOUS_NUMBER, text) is not None


def _may_be_number(text: str) -> bool:
    """Whether the patterns of numbers need a look: most texts have other characters."""
    other_chars = text.strip(_NUMERIC)
    return text[0] in _NUMBER_START and not other_chars


def _is_number(text: str) -> bool:
    if not _may_be_number(text):
        return False
    number = re.fullmatch(_INT, text) or re.fullmatch(_FLOAT, text)
    return number is not None


def _plain_number(src: _YamlSource, pos: int, text: str) -> int | float:
    """Return the number that is at pos."""
    if len(text) > _MAX_NUMBER:
        message = f"a number of more than {_MAX_NUMBER} characters"
        hint = "quote it"
        raise src.error(pos, message, hint)
    if text.startswith("0x"):
        return int(text, 16)
    if re.fullmatch(_INT, text):
        return int(text)
    return float(text)


# --- blocks

# The "-" of an entry in a block sequence, [184].
_DASH = r"-(?![^ \t\n])"
# The ":" after a key, [193] and [195].
_COLON = r":(?![^ \t\n])"
# The header of a block scalar up to the end of its line, and all that is blank below it: section
# 8.1.1. Digits, which tell the indentation, are not supported.
_BLOCK_HEADER = r"[|>]([-+]?)(?:[ \t]+(?:#.*)?)?(?:\n|\Z)([ \n]*)"
# In a folded block, a line end between lines that start with no blank: section 8.1.3.
_BLOCK_LINE_END = r"(?m)^([^ \t\n].*)\n(\n*)(?=[^ \t\n])"


def _block_node(
    src: _YamlSource,
    start: int,
    indent: int,
    depth: int,
    parent: str,
) -> _Read:
    """Read the value after an indicator that ends at start, up to the token after it: section 8.2.

    The indicator `parent` is "-", ":", or "" for the document's start. It belongs to a collection
    that starts in column `indent`, -1 for the document.
    """
    pos = _next_token(src, start)
    is_entry = src.match(_DASH, pos) is not None
    least = indent + 1
    if is_entry and parent == ":":
        least = indent  # a sequence may line up with its key: seq-space [201]
    if src.indent(pos) < least:
        missing = src.node(start, None, "")
        return pos, missing
    _check_depth(src, pos, depth)
    may_nest = parent == "-" or src.line_start(pos) >= start
    if may_nest and is_entry:
        _refuse_tab_before(src, start, pos)
        end, node = _block_sequence(src, pos, depth)
    elif may_nest and _is_key(src, pos):
        _refuse_tab_before(src, start, pos)
        end, node = _block_mapping(src, pos, depth)
    elif src.at(pos, "|>"):
        end, node = _block_scalar(src, pos, indent)
    else:
        end, node = _flow_in_block(src, pos, indent, depth)
    if src.indent(end) > indent:
        message = "the indentation matches nothing above"
        hint = "line it up with an entry above; a comment or a closing quote ends a text"
        raise src.error(end, message, hint)
    return end, node


def _next_token(src: _YamlSource, start: int) -> int:
    """Find the token at or after start. If it is the first on its line, only spaces indent it."""
    pos = src.skip(_TO_TOKEN, start)
    starts_line = src.line_start(pos) >= start
    if starts_line and not src.at_end(pos):
        _refuse_tab_before(src, start, pos)
    return pos


def _flow_in_block(
    src: _YamlSource,
    pos: int,
    indent: int,
    depth: int,
) -> _Read:
    """Read the scalar or flow collection at pos, up to the token after it on another line."""
    end, node = _flow_node(src, pos, indent, depth, _IN_BLOCK)
    token = _next_token(src, end)
    line_start = src.line_start(token)
    if src.at_end(token) or line_start >= end:
        return token, node
    is_plain = node.source is not None
    if is_plain and src.at(token, ":") and line_start > pos:
        key = src.skip(_BLANKS, line_start)
        message = "a key in the middle of a text"
        hint = "line it up with the key above it (':' ends a key), or quote the whole text"
        raise src.error(key, message, hint)
    message = "text after the end of a value"
    hint = (
        "quote the whole value; a comment needs a space before its '#', "
        "a nested mapping a line of its own"
    )
    raise src.error(token, message, hint)


def _block_sequence(src: _YamlSource, first: int, depth: int) -> _Read:
    """Read the block sequence at first, up to the token after it: section 8.2.1."""
    items: list[Node] = []
    indent = src.indent(first)
    inner_depth = depth + 1
    pos = first
    while src.indent(pos) == indent and src.match(_DASH, pos):
        after_dash = pos + 1
        pos, item = _block_node(src, after_dash, indent, inner_depth, "-")
        items.append(item)
    node = src.node(first, items)
    return pos, node


def _block_mapping(src: _YamlSource, first: int, depth: int) -> _Read:
    """Read the block mapping at first, up to the token after it: section 8.2.2."""
    entries: dict[str, Node] = {}
    indent = src.indent(first)
    inner_depth = depth + 1
    pos = first
    while src.indent(pos) == indent:
        key_pos = pos
        after_colon, key = _read_key(src, key_pos, _IN_BLOCK)
        pos, value = _block_node(src, after_colon, indent, inner_depth, ":")
        _add_entry(src, entries, key_pos, key, value)
    node = src.node(first, entries)
    return pos, node


def _add_entry(
    src: _YamlSource,
    entries: dict[str, Node],
    pos: int,
    key: str,
    value: Node,
) -> None:
    """Add the entry whose key is at pos. Keys are unique: section 3.2.1.3."""
    if key in entries:
        first = entries[key]
        message = f"duplicate key, first in line {first.key_line}, column {first.key_column}"
        hint = "keep one of the two"
        raise src.error(pos, message, hint)
    line, column = src.place(pos)
    entries[key] = replace(value, key_line=line, key_column=column)


def _is_key(src: _YamlSource, pos: int) -> bool:
    """Whether what is at pos has the colon of a key after it."""
    if src.at(pos, "[{|>"):
        return False
    end = _key_end(src, pos, _IN_BLOCK)
    return src.at(end, ":")


def _key_end(src: _YamlSource, pos: int, context: _ScalarContext) -> int:
    """Find the position after the key at pos and its blanks, where the colon should be."""
    if src.at(pos, "\"'"):
        end = _quoted_end(src, pos)
        return src.skip(_BLANKS, end)
    end = _plain_line_end(src, pos, context)
    return src.skip(_BLANKS, end)


def _read_key(src: _YamlSource, pos: int, context: _ScalarContext) -> tuple[int, str]:
    """Read the key at pos and its colon: section 7.4.2 [193]."""
    colon = _key_colon(src, pos, context)
    _, node = _scalar(src, pos, -1, context)
    is_quoted = node.source is None
    needs_space = context is _IN_BLOCK or not is_quoted
    if needs_space and not src.match(_COLON, colon):
        message = "no space after the ':' of a key"
        hint = "write 'key: value'"
        raise src.error(colon, message, hint)
    if not isinstance(node.value, str):
        message = "a key that is not a string"
        hint = f'quote it: "{node.source}"'
        raise src.error(pos, message, hint)
    return colon + 1, node.value


def _key_colon(src: _YamlSource, pos: int, context: _ScalarContext) -> int:
    """Find the colon of the key at pos, which is on one line and not too long."""
    colon = _key_end(src, pos, context)
    if not src.at(colon, ":"):
        message = "no 'key: value' here"
        hint = "write the key, a colon and a space on one line"
        raise src.error(pos, message, hint)
    if "\n" in src.text[pos:colon]:
        message = "a key of more than one line"
        hint = "write it on one line"
        raise src.error(pos, message, hint)
    if colon - pos > _MAX_KEY:
        message = f"a key of more than {_MAX_KEY} characters"
        hint = "shorten it"
        raise src.error(pos, message, hint)
    return colon


def _block_scalar(src: _YamlSource, first: int, indent: int) -> _Read:
    """Read the literal or folded scalar at first, up to the token after it: section 8.1."""
    header = src.match(_BLOCK_HEADER, first)
    if not header:
        message = "not the header of a block scalar"
        hint = "start the text on the next line, indented, without a digit; or quote it"
        raise src.error(first, message, hint)
    chomping = header[1]
    start = header.start(2)
    width = _content_indent(src, header, indent)
    end = _content_end(src, start, width)
    ends_line = src.at(end - 1, "\n")
    if not ends_line and chomping != "-":
        message = "the file ends within a line of a block scalar; readers differ on that"
        hint = "end the last line, or write '-' after the '|' or '>'"
        raise src.error(end, message, hint)
    _refuse_tab(src, end, end + 1)  # neither a blank line (section 8.1.2) nor part of the text
    lines = src.text[start:end].split("\n")
    text = "\n".join(line[width:] for line in lines)
    is_folded = src.at(first, ">")
    value = _chomp(text, chomping, is_folded)
    node = src.node(first, value)
    token = _next_token(src, end)
    return token, node


def _content_indent(src: _YamlSource, header: re.Match[str], indent: int) -> int:
    """Find how far the first line of text in a block scalar is indented: section 8.1.1.1."""
    blank_lines = header[2].split("\n")
    content = header.end()
    width = max(src.indent(content), indent + 1)
    widest = max(len(line) for line in blank_lines)
    if widest > width:
        message = "a blank line below is indented further than the first line of text"
        hint = "remove the spaces of the blank line"
        raise src.error(header.start(2), message, hint)
    if width == 0:
        message = "readers differ on a block scalar without indentation"
        hint = "indent the text"
        raise src.error(content, message, hint)
    return width


def _content_end(src: _YamlSource, start: int, width: int) -> int:
    """Find the first line from start on that has text and is indented by less than width."""
    less_indented = rf"\n {{0,{width - 1}}}[^ \n]"
    line_end = start - 1
    match = re.compile(less_indented).search(src.text, line_end)
    if not match:
        return len(src.text)
    return match.start() + 1


def _chomp(text: str, chomping: str, is_folded: bool) -> str:
    """Return the value of a block scalar's text: sections 8.1.1.2 and 8.1.3."""
    body = text.rstrip("\n")
    line_ends = text[len(body) :]
    if is_folded:
        body = re.sub(_BLOCK_LINE_END, _fold_block_line, body)
    if chomping == "+":
        return body + line_ends
    if chomping == "-" or not body:
        return body
    return body + "\n"


def _fold_block_line(match: re.Match[str]) -> str:
    """Fold what _BLOCK_LINE_END matches: a line, its end, and the empty lines after it."""
    line, empty_lines = match.groups()
    if not empty_lines:
        return f"{line} "
    return f"{line}{empty_lines}"


# --- flow


def _flow_node(
    src: _YamlSource,
    pos: int,
    indent: int,
    depth: int,
    context: _ScalarContext,
) -> _Read:
    """Read the flow collection or scalar at pos: section 7.5.

    `indent` is the column of the block collection around it, -1 if there is none. Further lines
    are indented by more.
    """
    _check_depth(src, pos, depth)
    if src.at(pos, "["):
        return _flow_sequence(src, pos, indent, depth)
    if src.at(pos, "{"):
        return _flow_mapping(src, pos, indent, depth)
    return _scalar(src, pos, indent, context)


def _flow_sequence(
    src: _YamlSource,
    first: int,
    indent: int,
    depth: int,
) -> _Read:
    """Read the sequence whose "[" is at first: section 7.4.1."""
    items: list[Node] = []
    inside = first + 1
    inner_depth = depth + 1
    pos = _flow_token(src, first, inside, indent)
    while not src.at(pos, "]"):
        pos, item = _flow_node(src, pos, indent, inner_depth, _IN_FLOW)
        items.append(item)
        pos = _flow_comma(src, first, pos, indent)
    node = src.node(first, items)
    return pos + 1, node


def _flow_mapping(
    src: _YamlSource,
    first: int,
    indent: int,
    depth: int,
) -> _Read:
    """Read the mapping whose "{" is at first: section 7.4.2."""
    entries: dict[str, Node] = {}
    inside = first + 1
    inner_depth = depth + 1
    pos = _flow_token(src, first, inside, indent)
    while not src.at(pos, "}"):
        key_pos = pos
        after_colon, key = _read_key(src, key_pos, _IN_FLOW)
        pos = _flow_token(src, first, after_colon, indent)
        value = src.node(after_colon, None, "")
        if not src.at(pos, ",}"):
            pos, value = _flow_node(src, pos, indent, inner_depth, _IN_FLOW)
        _add_entry(src, entries, key_pos, key, value)
        pos = _flow_comma(src, first, pos, indent)
    node = src.node(first, entries)
    return pos + 1, node


def _flow_comma(
    src: _YamlSource,
    first: int,
    pos: int,
    indent: int,
) -> int:
    """Find the token after the comma of an entry that ends at pos, or the closing bracket."""
    pos = _flow_token(src, first, pos, indent)
    if src.at(pos, ","):
        return _flow_token(src, first, pos + 1, indent)
    opening = src.text[first]
    brackets = opening + src.text[pos]
    if brackets not in ("[]", "{}"):
        line, _ = src.place(first)
        message = f"neither a comma nor the end of the {opening} of line {line}"
        hint = "put ', ' between entries; write a pair in a list as [{key: value}]"
        raise src.error(pos, message, hint)
    return pos


def _flow_token(
    src: _YamlSource,
    first: int,
    pos: int,
    indent: int,
) -> int:
    """Find the token at or after pos, within the bracket at first."""
    token = src.skip(_TO_TOKEN, pos)
    if src.at_end(token):
        message = "nothing closes this bracket"
        hint = "add the closing bracket"
        raise src.error(first, message, hint)
    least = indent + 1
    if src.at(token, "]}"):
        # It may line up with its key. Section 7.4 forbids that, but libyaml and others take it.
        least = indent
    line_start = src.line_start(token)
    if line_start > pos and not src.text.startswith(" " * least, line_start):
        line, _ = src.place(first)
        message = f"not indented, but within what starts in line {line}"
        hint = f"start the line with {indent + 1} or more spaces, or close what is open above it"
        raise src.error(token, message, hint)
    return token


# --- the document


def parse_yaml(text: str, file: str) -> Node:
    """Read one document; `file` only names it in errors. An empty document is Node(None).

    Raises ConfigError: "file:line:column: what is wrong", and in its hint what to write instead.
    """
    src = _yaml_source(text, file)
    _check_characters(src)
    start, end = _document_bounds(src)
    document = src.text[:end]
    src = replace(src, text=document)
    _, root = _block_node(src, start, indent=-1, depth=0, parent="")
    return root


def _yaml_source(text: str, file: str) -> _YamlSource:
    """Return the text with one kind of line end, if it is not too long."""
    text = text.removeprefix("\ufeff")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if len(text) > _MAX_TEXT:
        src = _YamlSource(text, file, (0,))
        message = f"more than {_MAX_TEXT} characters"
        hint = "this is not a config; name the right file"
        raise src.error(0, message, hint)
    line_starts = [match.end() for match in re.finditer(r"\n", text)]
    return _YamlSource(text, file, (0, *line_starts))


def _check_characters(src: _YamlSource) -> None:
    """Refuse a character that may not be in a document: section 5.1."""
    pattern = _FORBIDDEN
    if src.text.isascii():
        pattern = _FORBIDDEN_ASCII
    match = re.search(pattern, src.text)
    if match:
        code = ord(match.group())
        message = f"the character U+{code:04X} is not allowed here"
        hint = f'remove it, or write "\\u{code:04x}" in double quotes'
        raise src.error(match.start(), message, hint)


def _document_bounds(src: _YamlSource) -> tuple[int, int]:
    """Find where the document starts, after a "---" if there is one, and ends: section 9.1."""
    first = src.skip(_TO_TOKEN, 0)
    if src.at(first, "%"):
        raise _refused_start(src, first)
    start = 0
    markers = [match.start() for match in re.finditer(_MARKER, src.text)]
    if markers and markers[0] == first and src.at(first, "-"):
        start = first + len("---")
        markers.pop(0)
    if not markers:
        return start, len(src.text)
    end = markers[0]
    rest = end
    if src.at(end, "."):
        rest = src.skip(_TO_TOKEN, end + len("..."))
    if rest < len(src.text):
        message = "a second document starts here"
        hint = "keep one document in the file; indent a '---' or '...' that is part of a text"
        raise src.error(rest, message, hint)
    return start, end


# === 7 config and schema =============================================================================
class Item(Record):
    """A node of the config and the path that leads to it. `wrong` collects all that is wrong: line, column, what."""

    node: Node
    path: str
    base: Path  # where relative paths start
    wrong: list[tuple[int, int, str]]

    def refuse(self, line: int, column: int, step: str, why: object) -> None:
        """Something is wrong with what is a step below: a `.key`, an `[index]`, or nothing for this item itself."""
        path = self.path + step
        self.wrong.append((line, column, f"{path.lstrip('.') if path else 'the config'}: {why}"))

    def read(self, kind: Kind, node: Node, step: str) -> Any:
        """The value of a node below; None where something is wrong with it."""
        try:
            return kind.parse(replace(self, node=node, path=self.path + step))
        except ValueError as error:
            self.refuse(node.line, node.column, step, error)
        return None

    def entries(self, kinds: Mapping[str, Kind]) -> dict[str, Any]:
        """The values of a mapping. A key with nothing behind it keeps its default."""
        values: dict[str, Any] = {}
        for name, child in self.value().items():
            if name not in kinds:
                self.refuse(
                    child.key_line,
                    child.key_column,
                    f".{name}",
                    f"no such key{_nearest(name, list(kinds))}",
                )
            elif child.value is not None:
                values[name] = self.read(kinds[name], child, f".{name}")
        return values

    def value(self, sort: type = dict, wanted: str = "a mapping of keys to values") -> Any:
        """The node's own value; ValueError unless it is of this sort."""
        if not isinstance(self.node.value, sort):
            names = {
                dict: "a mapping",
                list: "a list",
                bool: "a boolean",
                type(None): "nothing",
                str: "a string",
            }
            raise ValueError(f"wants {wanted}, not {names.get(type(self.node.value), 'a number')}")
        return self.node.value

    def text(self, variables: bool = False) -> str:
        """A string. A plain number is taken as it is written: the sibling wants `memory: "8192"` quoted."""
        text = str(
            self.node.source
            if type(self.node.value) in (int, float)
            else self.value(str, "a string")
        )
        if "${" in text and not variables:
            raise ValueError("${...} is substituted in registries, and nowhere else")
        if re.search(r"\$\{(?![A-Za-z_][A-Za-z0-9_]*\})", text):
            raise ValueError("${ wants the name of a variable and a }")
        return text

    def file(self, text: str) -> Path:
        """A path; a relative one starts at the config file's directory, `~` at home."""
        if "\0" in text or "\n" in text:
            raise ValueError("a path has no line break and no NUL")
        return Path(os.path.abspath(self.base / os.path.expanduser(text)))

    def image(self) -> str:
        """A URL, made of a path where it is one."""
        import urllib.parse

        if re.fullmatch(r"https?://[^\x00-\x20]*", text := self.text()):
            return text
        if not text:
            raise ValueError("wants a URL or a path of a cloud image")
        if re.match(r"(?!file:///)[A-Za-z][A-Za-z0-9+.-]*://", text):
            raise ValueError(f"{text!r} is not an https, http or file:/// URL")
        return self.file(
            urllib.parse.unquote(text[7:]) if text.startswith("file:///") else text
        ).as_uri()


class Kind(Record):
    """How a value is written: `parse` reads an Item, or a sidecar's value (ValueError says what is wrong); `show` undoes it."""

    parse: Callable[[Any], Any]
    schema: Mapping[str, Any] = {}
    show: Callable[[Any], Any] = lambda value: value
    default: Any = REQUIRED


def key(kind: Kind, doc: str = "", default: Any = REQUIRED) -> Any:
    """Declare one key of the config, or of the sidecar, as a field of a Record, spelt in camelCase in the file. Nothing
    else knows of it: reading, defaults, validation, `config show` and the schemas all come from here."""
    shown = {} if default is REQUIRED else {"default": kind.show(default)}
    return replace(kind, schema={"description": doc, **shown, **kind.schema}, default=default)


def keys_of(cls: Any) -> dict[str, Kind]:
    """The keys that a Record declares, by the names of its fields."""
    return {name: kind for name in cls.fields if isinstance(kind := getattr(cls, name, None), Kind)}


def _camel(attr: str) -> str:
    return re.sub("_(.)", lambda match: match[1].upper(), attr)


def section(cls: Any) -> Kind:
    """The kind of a mapping whose keys a Record declares; keys that it doesn't have are refused."""
    attrs = {_camel(attr): attr for attr in keys_of(cls)}
    kinds = dict(zip(attrs, keys_of(cls).values()))
    required = [name for name, kind in kinds.items() if kind.default is REQUIRED]

    def parse(item: Item) -> Any:
        values = item.entries(kinds)
        for name in set(required).difference(values):
            item.refuse(item.node.line, item.node.column, f".{name}", "is missing")
        return cls(**{attrs[name]: values.get(name) for name in (*required, *values)})

    schema = {**shape(kinds).schema, **({"required": required} if required else {})}
    return Kind(
        parse,
        schema,
        lambda value: {
            name: kind.show(getattr(value, attrs[name])) for name, kind in kinds.items()
        },
    )


def shape(kinds: Mapping[str, Kind]) -> Kind:
    """The kind of a mapping that is handed on as it is, once each of its keys has been checked."""
    properties = {name: kind.schema for name, kind in kinds.items()}
    schema = {"type": "object", "additionalProperties": False, "properties": properties}
    return Kind(lambda item: item.entries(kinds), schema, dict)


def map_of(kind: Kind) -> Kind:
    """The kind of a mapping with keys of the user's own."""
    schema = {"type": "object", "additionalProperties": kind.schema}
    return Kind(lambda item: item.entries(dict.fromkeys(item.value(), kind)), schema, dict)


def list_of(kind: Kind) -> Kind:
    """The kind of a list, read as a tuple."""

    def parse(item: Item) -> Any:
        return tuple(
            item.read(kind, node, f"[{index}]")
            for index, node in enumerate(item.value(list, "a list"))
        )

    return Kind(
        parse,
        {"type": "array", "items": kind.schema},
        lambda values: [kind.show(value) for value in values],
    )


def _nearest(word: str, choices: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _checked(
    right: Callable[[Any], object], wrong: str, value: Any, near: Sequence[str] = ()
) -> Any:
    """The value, where it is right; else ValueError says what is wrong: the value stands for a {}."""
    if not right(value):
        raise ValueError(wrong.format(value) + (_nearest(value, near) if near else ""))
    return value


def _text(
    right: Callable[[str], object], wrong: str, near: Sequence[str] = (), **schema: Any
) -> Kind:
    """The kind of a string that stays as it is."""
    return Kind(
        lambda item: _checked(right, wrong, item.text(), near), {"type": "string", **schema}
    )


def _pattern(pattern: str, wanted: str) -> Kind:
    return _text(
        partial(re.fullmatch, pattern, flags=re.ASCII),
        f"{{!r}} is not {wanted}",
        pattern=f"^(?:{pattern})$",
    )


def _choice(*choices: str) -> Kind:
    return _text(
        choices.__contains__, f"{{!r}} is none of {', '.join(choices)}", choices, enum=list(choices)
    )


def _number(low: int, high: int, unit: str) -> Kind:
    """A whole number, quoted or not, shown as the string that the sibling wants. Where 0 will do, so does nothing."""
    digits = "[0-9]+" if low else "[0-9]*"
    wrong = f"{{!r}} is not a whole number from {low} to {high} ({unit})"
    text = _text(
        lambda text: len(text) < 10
        and re.fullmatch(digits, text)
        and low <= int(text or 0) <= high,
        wrong,
    )
    schema = {
        "anyOf": [
            {"type": "string", "pattern": f"^{digits}$"},
            {"type": "integer", "minimum": low, "maximum": high},
        ]
    }
    return Kind(lambda item: int(text.parse(item) or 0), schema, str)


# fmt: off
_STRING = Kind(Item.text, {"type": "string"})
_ENV = Kind(lambda item: item.text(variables=True), {"type": "string"})  # filled in when it is used: no secret is kept
_COMMAND = Kind(lambda item: item.value(str, "a string"), {"type": "string"})
_BOOL = Kind(lambda item: item.value(bool, "true or false"), {"type": "boolean"})
_SIZE = _pattern(r"[1-9][0-9]{0,9}[KMGTkmgt]?", "a size such as 20G")
_DURATION = _text(
    lambda text: (span := budget(text)) is None or span > 0, '"{}" must be positive; "0" switches it off',
    pattern=r"^(|0|\+?((\d+(\.\d*)?|\.\d+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h))+)$",
)
_PATH = Kind(lambda item: item.file(text) if (text := item.text()) else None, {"type": "string"}, lambda path: str(path or ""))
_HOST_PORT = _number(0, 65535, "a TCP port; empty or 0: QEMU chooses")
_REQUESTS = shape({"cpu": _STRING, "memory": _STRING})
_GATEWAY = shape({"skip": _BOOL, "className": _STRING, "resources": shape({"controller": _REQUESTS, "proxy": _REQUESTS})})
_STORAGE = shape({"path": _STRING, "pathPattern": _STRING, "reclaimPolicy": _choice("Retain", "Delete")})
_REGISTRIES = shape({
    "mirrors": map_of(shape({"endpoint": list_of(_ENV), "rewrite": map_of(_STRING)})),
    "configs": map_of(shape({
        "auth": shape({"username": _ENV, "password": _ENV, "auth": _ENV, "identitytoken": _ENV}),
        "tls": shape({"cert_file": _STRING, "key_file": _STRING, "ca_file": _STRING, "insecure_skip_verify": _BOOL}),
    })),
})


class PortForward(Record):
    """A TCP port of the host that leads to one of the guest."""

    guest: int = key(_number(1, 65535, "a TCP port"), "Guest port.")
    host: int = key(_HOST_PORT, "Host port. Empty or 0: QEMU chooses a free one.", 0)

class K3s(Record):
    """Which k3s, and how it comes into the guest."""

    version: str = key(_pattern(r"v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?\+k3s[0-9]+", "a k3s release such as v1.35.6+k3s1"), "The k3s release.", K3S_VERSION)
    install: str = key(_choice("airgap", "script", "none"), "airgap: the host hands k3s to the guest; script: the guest fetches it; none: a plain VM.", "airgap")
    source: str = key(Kind(lambda item: item.text() and re.sub("(?<=[^:/])/+$", "", item.image()), {"type": "string"}), "A base URL or a folder with the release's files, for mirrors.", "")

class Lifetime(Record):
    """The budget, and what happens at its end. Durations are Go's, as text."""

    max_run: str = key(_DURATION, "Wall-clock budget from each start, as a Go duration (8h, 90m, 1h30m). Empty or \"0\": none.", "")
    on_expiry: str = key(_choice(*ACTIONS), "What a local cluster's timer does at the deadline.", "stop")
    warn: str = key(_DURATION, "How long before the deadline to warn; not where the budget is no longer. \"0\": never.", "10m")
    on_warn: str = key(_COMMAND, "A shell command to run at that moment, with YCLUSTER_NAME and other facts in its environment.", "")
    max_total: str = key(_DURATION, "What no extension passes, counted from the start, as a Go duration. Empty or \"0\": none.", "")

class Network(Record):
    """How the VM is attached. Only user mode is implemented here; tap is the sibling's."""

    mode: str = key(_choice("user", "tap"), "user: forwarded ports, no host set-up; tap: a tap device of the operator's (y-cluster only).", "user")
    bind_address: str = key(_pattern(r"(|(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(?:\.(?!$)|$)){4})", "an IPv4 address"), "IPv4 address that the forwarded ports listen on; 0.0.0.0 is every interface.", "127.0.0.1")
    ifname: str = key(_STRING, "Tap mode only.", "")
    guest_address: str = key(_STRING, "Tap mode only.", "")
    gateway: str = key(_STRING, "Tap mode only.", "")
    dns: tuple[str, ...] = key(list_of(_STRING), "Tap mode only.", ())

class Config(Record):
    """A checked config, defaults filled: the keys that are common to every provider."""

    provider: str = key(_choice(*PROVIDERS), "What runs the cluster.", "qemu")
    name: str = key(_pattern(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "a DNS label: a-z, 0-9 and inner dashes, 63 at most"), "The cluster's name: its files, its host name, its kubeconfig cluster.", "y-cluster")
    context: str = key(_pattern(r"[^\x00-\x1f\x7f]{1,300}", "a context name"), "The kubeconfig context.", "local")
    memory: int = key(_number(64, 16777216, "MB"), "Memory of the VM in MB.", 8192)
    cpus: int = key(_number(1, 512, "virtual CPUs"), "Virtual CPUs.", 4)
    k3s: K3s = key(section(K3s), "The Kubernetes inside.", K3s())
    port_forwards: tuple[PortForward, ...] = key(list_of(section(PortForward)), "TCP ports that lead into the guest. An empty list means the default, or none at all with k3s.install: none.", tuple(PortForward(port, port) for port in (6443, 80, 443)))
    registries: Mapping[str, Any] = key(_REGISTRIES, "Content of k3s's registries.yaml; ${VAR} is substituted in endpoints and credentials.", {})
    gateway: Mapping[str, Any] = key(_GATEWAY, "For y-cluster's bundled gateway; ycluster leaves it alone.", {})
    storage: Mapping[str, Any] = key(_STORAGE, "For y-cluster's bundled storage class; ycluster leaves it alone.", {})
    lifetime: Lifetime = key(section(Lifetime), "How long the cluster may run, and what happens then.", Lifetime())
    file: Path = Path()

class QemuConfig(Config):
    """The keys of `provider: qemu`."""

    disk_size: str = key(_SIZE, "Size of the boot disk.", "20G")
    ssh_port: int = key(_HOST_PORT, "Host port for ssh. Empty or 0: QEMU chooses a free one.", 2222)
    cache_dir: Path | None = key(_PATH, "Where disks, keys and state are kept. Empty: ~/.cache/y-cluster-qemu.", None)
    data_disk: Path | None = key(_PATH, "An external qcow2 that every teardown keeps, mounted at /data/yolean.", None)
    data_disk_size: str = key(_SIZE, "Size of a new data disk.", "10G")
    network: Network = key(section(Network), "How the VM is attached to the host's network.", Network())
    image: str = key(Kind(Item.image, {"type": "string"}), "URL or path of a cloud image (cloud-init, sshd, BIOS boot).", DEFAULT_IMAGE)
    image_sha256: str = key(_pattern(r"([0-9a-f]{64})?", "a SHA-256 in lower-case hex"), "The image's digest; it is refused when it differs.", "")
    accel: str = key(_choice("auto", "kvm", "tcg"), "auto: KVM where a VM really runs with it, else TCG.", "auto")
    cpu_model: str = key(_pattern(r"[-_.,=+A-Za-z0-9]*", "a QEMU CPU model"), "QEMU's -cpu. Empty: host with KVM, max with TCG.", "")
    ssh_user: str = key(_pattern(r"[a-z_][-a-z0-9_]{0,31}", "a user name"), "The login that cloud-init makes.", "ystack")

class _MultipassK3s(K3s):
    install: str = key(_choice("airgap", "script", "none"), "How k3s comes into the guest.", "script")

class MultipassConfig(Config):
    k3s: K3s = key(section(_MultipassK3s), "The Kubernetes inside.", _MultipassK3s())
    port_forwards: tuple[PortForward, ...] = key(list_of(section(PortForward)), "Multipass's guests have addresses of their own.", ())
    image: str = key(_STRING, "Multipass image alias.", "24.04")
# fmt: on

CONFIGS = {"common": Config, "qemu": QemuConfig, "docker": Config, "multipass": MultipassConfig}
KINDS = {which: section(cls) for which, cls in CONFIGS.items()}


def load_config(directory: Path) -> Config:
    """Read and check the config of a directory. ConfigError lists ALL problems, each with file:line:column."""
    path = Path(os.path.abspath(directory))
    try:
        names = (
            [path] if path.is_file() else [path / name for name in CONFIG_NAMES]
        )  # the file itself may be named
        found = [name for name in names if name.is_file()]
        if len(found) > 1:
            raise ConfigError(
                f"{path}: both {found[0].name} and {found[1].name}", hint="keep one of them"
            )
        if not found:
            what = "no such directory" if not path.is_dir() else f"no {CONFIG_NAMES[0]} in it"
            raise ConfigError(
                f"{path}: {what}", hint="-c wants the directory that holds the config"
            )
        path = found[0]
        return read_config(path.read_bytes().decode("utf-8"), path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:  # a path that is too long, a directory that is closed to us
        raise ConfigError(f"{path}: {error.strerror}") from None


def read_config(text: str, path: Path) -> Config:
    """`load_config` of text that is already in memory; `path` names it and anchors relative paths."""
    root = parse_yaml(text, str(path))
    keys: Any = {} if root.value is None else root.value
    named = keys.get("provider") if isinstance(keys, dict) else None
    provider = str(named.value) if named and named.value in PROVIDERS else "qemu"
    item = Item(root, "", path.parent, [])
    config: Config = item.read(KINDS[provider], replace(root, value=keys), "")
    if not item.wrong:
        config = replace(config, file=path)
        if not config.port_forwards and config.k3s.install != "none":
            config = replace(config, port_forwards=config.fields["port_forwards"])
        if (
            isinstance(config, QemuConfig)
            and config.image == DEFAULT_IMAGE
            and not config.image_sha256
        ):
            config = replace(config, image_sha256=DEFAULT_IMAGE_SHA256)
    if not item.wrong and isinstance(
        config, QemuConfig
    ):  # rules between keys, where each alone is right
        at = keys.get("portForwards", root)
        hosts = [forward.host for forward in config.port_forwards if forward.host]
        guests = [forward.guest for forward in config.port_forwards]
        rules = {f"host port {port} is forwarded twice": hosts.count(port) < 2 for port in hosts}
        rules[f"host port {config.ssh_port} is sshPort's already"] = config.ssh_port not in hosts
        rules["guest port 22 is sshPort's business"] = 22 not in guests
        rules["guest port 6443 is missing; kubectl would not reach k3s"] = (
            6443 in guests or config.k3s.install == "none"
        )
        for text, kept in rules.items():
            if not kept:
                item.refuse(at.line, at.column, ".portForwards", text)
    if item.wrong:
        lines = [f"{path}:{line}:{column}: {text}" for line, column, text in sorted(item.wrong)]
        head = f"{len(lines)} problems in {path.name}\n" if len(lines) > 1 else ""
        raise ConfigError(
            head + "\n".join(lines), hint=f"`ycluster schema {provider}` describes every key"
        )
    return config


def left_alone(config: Config) -> list[str]:
    """What the config asks for, and this version does nothing about: a warning for each."""
    said = [
        f"{name}: y-cluster's business, ignored here"
        for name in ("gateway", "storage")
        if getattr(config, name)
    ]
    if config.registries and config.k3s.install == "none":
        said.append("registries: ignored, there is no k3s in a plain VM")
    return said


def expand_variables(value: Any, environ: Mapping[str, str], path: str = "registries") -> Any:
    """The value with its ${VAR} filled in; ConfigError names a variable that is not set."""
    if isinstance(value, Mapping):
        return {
            name: expand_variables(item, environ, f"{path}.{name}") for name, item in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [
            expand_variables(item, environ, f"{path}[{index}]") for index, item in enumerate(value)
        ]
    if not isinstance(value, str):
        return value
    try:
        return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", lambda match: environ[match[1]], value)
    except KeyError as error:
        raise ConfigError(
            f"{path}: the variable {error.args[0]} is not set", hint="export it, or leave it out"
        ) from None


def show_config(config: Config) -> Any:
    """The effective config as in the file, defaults filled."""
    return KINDS[config.provider].show(config)


def schema_for(which: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a provider's config, or of the keys that are `common` to all."""
    keys = dict(KINDS[which].schema["properties"])
    if which in PROVIDERS:  # which are read by one kind of key, but each has a schema of its own
        keys["provider"] = {**keys["provider"], "default": which, "enum": [which]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"{CONFIG_NAMES[0]} ({which})",
        "description": "Generated by `ycluster schema --write`; not by hand.", **KINDS[which].schema, "properties": keys,
    }  # fmt: skip


# === 8 state sidecar =================================================================================
class Files(Record):
    """What a cluster owns on disk: everything under its cacheDir that begins with its name."""

    cache_dir: Path
    name: str

    def _at(self, suffix: str) -> Path:
        return self.cache_dir / (self.name + suffix)

    sidecar = property(lambda self: self._at(".json"))
    lock = property(lambda self: self._at(".lock"))  # held while the sidecar or the VM changes
    disk = property(lambda self: self._at(".qcow2"))
    pidfile = property(lambda self: self._at(".pid"))  # its path in QEMU's argv is QEMU's identity
    vm_lock = property(
        lambda self: self._at(".vm.lock")
    )  # held by QEMU itself for as long as it lives
    qmp = property(lambda self: self._at(".qmp"))
    console = property(lambda self: self._at("-console.log"))
    seed = property(lambda self: self._at("-seed"))
    ssh_key = property(lambda self: self._at("-ssh"))
    ssh_pub = property(lambda self: self._at("-ssh.pub"))
    host_key = property(lambda self: self._at("-hostkey"))
    host_pub = property(lambda self: self._at("-hostkey.pub"))
    known_hosts = property(lambda self: self._at("-known_hosts"))
    program = property(lambda self: self._at(".ycluster.py"))  # what its timers run
    watch_lock = property(lambda self: self._at(".watch.lock"))  # held by the watcher
    log = property(lambda self: self._at(".reap.log"))  # what its timers said
    kubeconfig = property(lambda self: self._at("-kubeconfig"))
    certificates = property(
        lambda self: self._at("-certificates")
    )  # a folder, for kubectl to embed them from
    incoming = property(lambda self: self._at(".import"))  # a folder, while a disk is imported

    def disposable(self) -> list[Path]:
        """What goes with the cluster, besides its disk and key, its sidecar and the program of its timers."""
        return [
            self.pidfile, self.qmp, self.vm_lock, self.watch_lock, self.console, self.seed, self.host_key, self.host_pub, self.known_hosts,
            self.log, self.incoming, self.kubeconfig, self.certificates, *map(self._at, ("-seed.img", "-cloud-init.yaml", "-meta-data.yaml")),
            *(tmp for path in (self.sidecar, self.program, self.known_hosts) for tmp in self.cache_dir.glob(f".{path.name}.????????.tmp")),
        ]  # fmt: skip


# A sidecar holds strings, and lists and objects of strings.
_str = partial(_checked, lambda value: isinstance(value, str), "is no string")
_dict_of = partial(_checked, lambda value: isinstance(value, dict), "is no object")
_list_of = partial(_checked, lambda value: isinstance(value, list), "is no list")
_port = partial(
    _checked,
    lambda text: len(text) < 6 and not text.strip("0123456789") and int(text or 0) < 65536,
    "is no port",
)
_action = partial(_checked, ("", *ACTIONS).__contains__, f"is none of {', '.join(ACTIONS)}")


def _tuple_of(kind: Kind) -> Kind:
    """The kind of a list in a sidecar, read as a tuple."""
    return Kind(
        lambda value: tuple(map(kind.parse, _list_of(value))),
        show=lambda values: list(map(kind.show, values)),
    )


def _record(cls: Any, **kinds: Kind) -> Kind:
    """The kind of an object that holds the fields of a Record. The sibling writes Host for `host`."""

    def parse(value: Any) -> Any:
        return cls(
            **{
                name.lower(): kind.parse(_dict_of(value).get(name, ""))
                for name, kind in kinds.items()
            }
        )

    return Kind(
        parse,
        show=lambda value: value
        and {name: kinds[name].show(getattr(value, name.lower())) for name in kinds},
    )


class ArmedTimer(Record):
    """The timer that guards a cluster, as its backend knows it. Backend `none`: the user has disarmed it."""

    backend: str
    id: str
    deadline: int  # seconds since the epoch: when it fires
    warning: str = ""  # the id of a second one, which fires to warn


class Reaped(Record):
    """The last expiry that was carried out: when, what was done, what fired it and how the VM ended."""

    at: int
    action: str
    by: str
    how: str


_TEXT = Kind(_str)
_BUDGET = Kind(lambda value: (_str(value), budget(value))[0])
_PORT = Kind(lambda value: int(_port(_str(value)) or 0), show=str)
_ACTION = Kind(lambda value: _action(value) or "stop")  # unset is stop, as in the sibling
_MOMENT = Kind(lambda value: parse_time(_str(value)), show=format_time)
_UNSET = ("", "0001-01-01T00:00:00Z")  # Go writes its zero time for none
_TIME = Kind(
    lambda v: None if _str(v) in _UNSET else parse_time(v),
    show=lambda v: "" if v is None else format_time(v),
)
_REAPED = _record(
    Reaped, at=_MOMENT, action=Kind(lambda value: _ACTION.parse(_str(value))), by=_TEXT, how=_TEXT
)
_encode_time, _encode_record = _TIME.show, _REAPED.show


class State(Record):
    """The sidecar; what is no `key` is a string. `extra` holds the fields unknown here; they are written back as they were."""

    name: str
    cache_dir: str
    context: str = "local"
    disk_size: str = "20G"
    memory: str = "8192"  # MB
    cpus: str = "4"
    ssh_port: int = key(_PORT, default=2222)
    port_forwards: tuple[PortForward, ...] = key(
        _tuple_of(_record(PortForward, Host=_PORT, Guest=_PORT)), default=()
    )
    bind_address: str = BIND_ADDRESS
    k3s: Mapping[str, Any] = key(Kind(_dict_of), default={})
    kubeconfig: str = ""  # the file of the user's that knows of it
    lifetime: str = key(_BUDGET, default="")  # a Go duration; "" or "0": no budget
    on_expiry: str = key(_ACTION, default="stop")
    warn: str = key(_BUDGET, default="")  # a Go duration before the deadline; "" or "0": no warning
    on_warn: str = ""  # a shell command
    max_total: str = key(_BUDGET, default="")  # a Go duration from the start; "" or "0": no cap
    expires_at: int | None = key(_TIME, default=None)  # seconds since the epoch
    started_at: int | None = key(_TIME, default=None)  # None: never started
    retry_at: int | None = key(_TIME, default=None)  # an expiry is under way
    warned: int | None = key(_TIME, default=None)  # the deadline of which the user has been warned
    image: str = ""
    imported: str = ""  # the disk that `import` took the boot disk from
    prepared: str = ""  # `live` or `done`: how far `prepare-export` has come since the last boot
    data_disk: str = ""
    ssh_user: str = "ystack"
    accel: str = "auto"  # what was asked for
    ran_with: str = ""  # what the last start found to work
    cpu_model: str = ""
    machine: str = ""
    boot_id: str = ""  # the boot in which the deadline was set
    booted_at: int | None = key(_TIME, default=None)  # by the clock of then
    auto_ports: tuple[int, ...] = key(
        _tuple_of(_PORT), default=()
    )  # of the guest, with a new port of the host at each start
    timer: ArmedTimer | None = key(
        _record(ArmedTimer, backend=_TEXT, id=_TEXT, deadline=_MOMENT, warning=_TEXT), default=None
    )
    reaped: Reaped | None = key(_REAPED, default=None)
    extra: Mapping[str, Any] = {}

    @property
    def files(self) -> Files:
        return Files(Path(self.cache_dir), self.name)

    @property
    def has_k3s(self) -> bool:
        return self.k3s.get("Install", "none") not in ("", "none") and any(
            f.guest == 6443 for f in self.port_forwards
        )

    @property
    def disarmed(self) -> bool:
        return self.timer is not None and self.timer.backend == "none"

    @property
    def dial_address(self) -> str:
        """Where this host reaches the forwarded ports."""
        return BIND_ADDRESS if self.bind_address == "0.0.0.0" else self.bind_address


_STORED = {_camel(name): (name, kind) for name, kind in (dict.fromkeys(State.fields, _TEXT) | keys_of(State)).items() if name != "extra"}  # fmt: skip


def _unreadable(path: Path, why: object) -> StateError:
    hint = f"mend or remove {path}; a VM that may still run is found by `pgrep -af {path.stem}.pid`"
    return StateError(f"{path}: {why!s:.200}", hint=hint)


def decode_state(text: str, path: Path) -> State:
    """The state in a sidecar's text; StateError names the file, the field and the way out."""
    what = "not JSON:"
    values: dict[str, Any] = {}
    try:
        data = json.loads(text)
        if not isinstance(data, dict):
            raise _unreadable(path, "not a JSON object")
        if (version := data.pop("version", None)) != 1:
            why = f"{path}: version {version!r:.40}, and this ycluster knows version 1"
            raise StateError(why, hint="use the ycluster that wrote it")
        for what, (name, kind) in _STORED.items():
            if (value := data.get(what)) is not None:
                values[name] = kind.parse(value)
    except (ValueError, OverflowError, RecursionError) as error:
        raise _unreadable(path, f"{what} {error}") from None
    if values.get("name") != path.stem:
        raise _unreadable(path, f"it names the cluster {values.get('name')!r}")
    # Where the file lies is where its neighbours are; the directory may have been moved or linked.
    values["cache_dir"] = str(path.parent)
    return State(
        extra={name: value for name, value in data.items() if name not in _STORED}, **values
    )


def encode_state(state: State) -> str:
    """The sidecar's text, ASCII, without what is empty by default; the inverse of `decode_state`."""
    data: dict[str, Any] = {"version": 1}
    for name, (attr, kind) in _STORED.items():
        value = getattr(state, attr)
        if value not in (None, "", ()) or State.fields[attr] or name == "portForwards":
            data[name] = kind.show(value)
    return to_json({**data, **state.extra}) + "\n"


def load_state(files: Files) -> State:
    """The cluster's state; StateError when there is no such cluster or its sidecar is unreadable."""
    if not os.path.lexists(files.sidecar):
        raise StateError(
            f"no cluster {files.name} in {files.cache_dir}",
            hint="`ycluster list` shows those there are",
        )
    if not files.sidecar.is_file():  # a pipe would be waited for
        raise _unreadable(files.sidecar, "it is no file, or a link that leads to none")
    try:
        return decode_state(files.sidecar.read_text(encoding="utf-8"), files.sidecar)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(files.sidecar, getattr(error, "strerror", "") or error) from None


def save_state(state: State) -> State:
    """Write the sidecar, whole or not at all. Only under the cluster's lock."""
    write_file(state.files.sidecar, encode_state(state).encode("ascii"))
    return state


def state_from_config(config: QemuConfig, cache_dir: Path) -> State:
    """The state of a cluster that is about to be made. What both have under one name is of the same kind, but for some."""
    same = {
        name: value
        for name, value in {**vars(config.lifetime), **vars(config)}.items()
        if name in State.fields
    }
    ports = [*config.port_forwards, PortForward(host=config.ssh_port, guest=22)]
    return replace(
        State(**same), cache_dir=str(cache_dir), memory=str(config.memory), cpus=str(config.cpus), lifetime=config.lifetime.max_run,
        k3s={"Version": config.k3s.version, "Install": config.k3s.install, "Source": config.k3s.source},
        bind_address=config.network.bind_address or BIND_ADDRESS, data_disk=str(config.data_disk or ""),
        auto_ports=tuple(forward.guest for forward in ports if forward.host == 0),
    )  # fmt: skip


def remember_cache_dir(host: Host, cache_dir: Path) -> None:
    """Link to a cacheDir from the user's index. One link a directory, named by a hash: no lock, never half there."""
    try:
        index = host.state_home() / "cachedirs"
        index.mkdir(mode=0o700, parents=True, exist_ok=True)
        (index / sha256_of(os.fsencode(cache_dir))[:16]).symlink_to(cache_dir)
    except FileExistsError:
        pass
    except (OSError, YclusterError) as error:
        host.output.warn(f"{error}: `list` will not see the clusters in {cache_dir}")


def log_event(host: Host, state: State, event: str, **facts: object) -> None:
    """Add a line of JSON to the user's log of events, best effort. A full log makes way for a new one."""
    told = {
        "at": format_time(host.now()),
        "event": event,
        "name": state.name,
        "cacheDir": state.cache_dir,
        **facts,
    }
    with contextlib.suppress(OSError, YclusterError):
        log = host.state_home() / "events.jsonl"
        log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if log.exists() and log.stat().st_size > EVENTS_SIZE:
            log.replace(log.with_name("events.1.jsonl"))
        with descriptor(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)) as fd:
            os.write(
                fd, json.dumps(told).encode() + b"\n"
            )  # in one go, so that lines of two never mix


def discover(host: Host) -> list[Files]:
    """The clusters in the default cacheDir and in the indexed ones, by name then place; no sidecar is read here."""
    places: list[Path] = []
    with contextlib.suppress(YclusterError):  # a host may have no home
        places.append(host.cache_home())
    with contextlib.suppress(OSError, YclusterError):
        places += sorted((host.state_home() / "cachedirs").iterdir())
    found: set[Files] = set()
    for place in places:
        with contextlib.suppress(OSError, RuntimeError):  # a dangling link, or a loop of them
            real = place.resolve()
            found |= {
                Files(real, path.stem)
                for path in real.glob("*.json")
                if not path.stem.startswith(".")
            }
    return sorted(found, key=lambda files: (files.name, str(files.cache_dir)))


# === 9 lifetime decisions ============================================================================
class Decision(Record):
    """What `reap` has to do: `nothing`, `rearm`, `warn`, or one of ACTIONS, and why."""

    do: str
    why: str


def adjusted(state: State, clock: Clock) -> State:
    """The state by the clock of now. Where the wall clock was set since the deadline was, the deadline moves along:
    the budget is an amount of time, and the time since boot, which nobody can set, tells. After a reboot nothing does."""
    if state.boot_id != clock.boot_id or state.booted_at is None:
        return state
    if abs(step := round(clock.booted - state.booted_at)) < CLOCK_STEP:
        return state
    moments = {
        name: getattr(state, name)
        for name in ("booted_at", "started_at", "retry_at", "warned", "expires_at")
    }
    return replace(
        state,
        **{name: min(max(0, at + step), _LATEST) for name, at in moments.items() if at is not None},
    )


def decide(state: State, clock: Clock) -> Decision:
    """The whole of reap's judgement on an adjusted state. A timer may be stale, early or late: only the sidecar counts.
    Nothing is torn down on the word of a clock that can't be checked: after a reboot teardown is only a stop."""
    if state.disarmed:
        return Decision("nothing", "disarmed by hand; `ycluster lifetime arm` arms it again")
    if state.expires_at is None:
        return Decision(
            "nothing", "not armed" if budget(state.lifetime) else "it has no lifetime budget"
        )
    if clock.now < state.expires_at:
        do = "warn" if warn_time(state) <= clock.now else "rearm"
        return Decision(do, f"due in {in_words(state.expires_at - clock.now)}")
    why = f"due since {in_words(clock.now - state.expires_at)}"
    if state.on_expiry == "teardown" and state.boot_id not in ("", clock.boot_id):
        return Decision(
            "stop",
            f"{why} by a clock that may be wrong, the host was rebooted: no teardown, its disk stays",
        )
    return Decision(state.on_expiry, why)


def due_time(state: State) -> float:
    """When to act: at the deadline, or when an action that failed is due again."""
    if state.expires_at is None or state.disarmed:
        return float("inf")
    return max(state.expires_at, state.retry_at or 0)


def warn_time(state: State) -> float:
    """When to tell the user that the deadline comes: once a deadline, and not where the whole budget is that short."""
    lead = budget(state.warn)
    if (
        lead is None
        or state.expires_at is None
        or state.disarmed
        or state.retry_at
        or state.warned == state.expires_at
    ):
        return float("inf")
    moment = state.expires_at - -(-lead // 10**9)
    return moment if moment > (state.started_at or 0) else float("inf")


def wake_time(state: State) -> float:
    """When to look into it next."""
    return min(due_time(state), warn_time(state))


def anchored(state: State, clock: Clock) -> State:
    """The state of a VM that starts now: a fresh budget, counted from here."""
    nanoseconds, expires = budget(state.lifetime), None
    if nanoseconds is not None:
        seconds, parts = clock.now.as_integer_ratio()  # exact, and rounded up: never early
        expires = -(-(seconds * 10**9 + nanoseconds * parts) // (parts * 10**9))
    timer = (
        None if state.disarmed else state.timer
    )  # what stood guard before is still to be taken away
    return replace(
        state, started_at=int(clock.now), expires_at=expires, retry_at=None, boot_id=clock.boot_id,
        booted_at=round(clock.booted), timer=timer, reaped=None, warned=None, ran_with="", prepared="",
    )  # fmt: skip


def stopped(state: State) -> State:
    """The state of a VM that no longer runs: nothing counts. Its timer is still to be taken away."""
    return replace(state, expires_at=None, retry_at=None)


def past(state: State) -> str:
    """What its expiry did to a cluster, as the end of a sentence; empty where there was none."""
    if (reaped := state.reaped) is None:
        return ""
    return f": {PAST[reaped.action]} {local_time(reaped.at)} by its {state.lifetime} budget ({reaped.by}: {reaped.how})"


def extended(state: State, nanoseconds: int, clock: Clock, *, until: int | None = None) -> State:
    """The deadline pushed out, never back: from where it is, or from now where it has passed already; or to `until`, seconds
    since the epoch. Raises YclusterError where nothing counts, and past the cap."""
    if state.expires_at is None:
        why = f"{state.name}: no deadline is counting, so there is none to extend{past(state)}"
        raise YclusterError(
            why, hint="`ycluster start` gives a fresh budget; lifetime.maxRun in the config sets it"
        )
    later = max(state.expires_at, int(clock.now)) + -(-nanoseconds // 10**9)
    expires = later if until is None else max(state.expires_at, until)
    if expires > clock.now + 100 * 365 * 86400:
        raise UsageError(
            "that is more than a hundred years from now",
            hint="`ycluster lifetime disarm` means never",
        )
    cap = (state.started_at or int(clock.now)) + -(-(budget(state.max_total) or 0) // 10**9)
    if budget(state.max_total) is not None and expires > max(cap, state.expires_at):
        why = f"{state.name}: no extension passes lifetime.maxTotal, {state.max_total} from the start: {local_time(cap)}"
        raise YclusterError(
            why, hint=f"up to there: `ycluster lifetime extend --until {format_time(cap)}`"
        )
    state = replace(
        state,
        expires_at=expires,
        retry_at=None,
        boot_id=clock.boot_id,
        booted_at=round(clock.booted),
    )
    return (
        replace(state, warned=expires) if warn_time(state) <= clock.now else state
    )  # whoever extends knows


def retry_delay(late: float) -> float:
    """Seconds until an action that failed, or was killed, is tried again: half of its lateness, 1 to 15 min."""
    return min(max(late / 2, 60.0), 900.0)


# === 10 timers =======================================================================================
def timer_argv(host: Host, files: Files, backend: str, *verb: str) -> list[str]:
    """What a timer runs: the private copy, by absolute paths, in an isolated Python with no site-packages."""
    program = [host.interpreter(), "-I", "-S", str(files.program)]
    return [*program, "lifetime", *verb, "--state", str(files.sidecar), "--by", backend]


def install_program(host: Host, files: Files) -> None:
    """Keep a copy of this program beside the sidecar: moving, upgrading or deleting ours loses no reap."""
    source = host.program_source()
    if not files.program.exists() or files.program.read_bytes() != source:
        write_file(files.program, source)


def unit_name(files: Files, deadline: int, nonce: str) -> str:
    """A transient unit's name: with a hash of the place, a deadline and a nonce, as no name may be used while it runs."""
    place = sha256_of(os.fsencode(files.sidecar))[:8]
    name = re.sub(r"[^A-Za-z0-9:_.-]", "-", files.name)[
        :100
    ]  # the sibling's names may hold anything
    return f"ycluster-reap-{name}-{place}-{deadline}-{nonce}"


class SystemdTimer:
    """A transient timer of the user's systemd, on calendar time: it catches up after a suspend."""

    name = "systemd"
    survives: Mapping[str, str] = {
        "logout": "yes: lingering is on", "suspend": "yes: it fires when the host wakes",
        "reboot": "not needed: the VM ends with the host", "clock": "yes: it fires when the clock is set, too",
    }  # fmt: skip

    def check(self, host: Host) -> None:
        if not host.which("systemd-run") or not host.which("systemctl"):
            raise PrerequisiteError("systemd-run is not installed")
        if host.attempt(["systemctl", "--user", "show", "--property=Version"], timeout=30) is None:
            raise PrerequisiteError("no systemd user manager answers")
        lingers = ["loginctl", "show-user", str(os.getuid()), "--property=Linger", "--value"]
        kept = Path("/var/lib/systemd/linger", host.user()).exists()
        if not kept and (host.attempt(lingers, timeout=30) or "").strip() != "yes":
            why = (
                f"{host.user()} does not linger: its systemd ends at the last logout, a VM does not"
            )
            raise PrerequisiteError(why, hint="loginctl enable-linger")

    def arm(self, host: Host, files: Files, deadline: int) -> str:
        command = timer_argv(host, files, self.name, "reap")
        if re.search(r"[$;]", "".join(command)):
            raise YclusterError(
                "systemd misreads a path with $ or ; in it, after its next daemon-reload at the latest"
            )
        unit = unit_name(files, deadline, os.urandom(2).hex())
        # A calendar time that has passed by the time systemd reads it never fires.
        moment = max(deadline, int(host.now()) + 3)
        argv = [
            "systemd-run", "--user", "--quiet", "--collect",
            f"--unit={unit}", f"--description=expiry of the ycluster cluster {files.name}",
            f"--on-calendar={datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M:%S} UTC",
            "--on-clock-change", "--timer-property=AccuracySec=1s", "--timer-property=RemainAfterElapse=no",
            "--property=KillMode=process",  # what a reap re-arms must outlive its service
            *(f"--setenv={name}={value}" for name, value in host.child_env().items()), *command,
        ]  # fmt: skip
        host.run(argv, timeout=30)
        if not self._waits(host, unit):
            raise YclusterError(f"systemd took {unit}.timer and has no time for it to fire")
        return unit

    def _waits(self, host: Host, unit: str) -> bool:
        # One that has fired goes on waiting for the clock to be set, without a time.
        argv = [
            "systemctl",
            "--user",
            "show",
            f"{unit}.timer",
            "--property=NextElapseUSecRealtime",
            "--value",
        ]
        return (host.attempt(argv, timeout=30) or "").strip() not in ("", "n/a")

    def armed(self, host: Host, files: Files, timer: ArmedTimer) -> bool:
        return files.program.exists() and self._waits(
            host, timer.id
        )  # without its program it fires in vain

    def cancel(self, host: Host, files: Files, timer: ArmedTimer) -> None:
        host.run(["systemctl", "--user", "stop", f"{timer.id}.timer"], timeout=30, check=False)


class AtTimer:
    """at(1). It drops seconds: the job comes up to a minute early and waits the rest out itself."""

    name = "at"
    survives: Mapping[str, str] = {
        "logout": "yes", "suspend": "yes: it fires when the host wakes", "reboot": "yes",
        "clock": "forward; set back, it fires that much later, unless a command comes by before",
    }  # fmt: skip
    QUEUE = "c"  # the later the letter, the lower the priority
    # By this file at(1) finds its daemon: with none it warns, exits 0 and never runs the job. Another atd has another spool.
    daemon_runs = property(lambda self: process_stat(Path("/run/atd.pid"))[0] == "atd")

    def check(self, host: Host) -> None:
        host.need({"at": "at"})
        if not self.daemon_runs:
            raise PrerequisiteError("atd is not running", hint="sudo service atd start")
        if host.attempt(["atq"], timeout=30) is None:
            raise PrerequisiteError("at does not let this user in (at.allow, at.deny)")

    def arm(self, host: Host, files: Files, deadline: int) -> str:
        command = shlex.join(
            timer_argv(host, files, self.name, "reap", "--wait", f"{AT_EARLY:.0f}s")
        )
        log = shlex.quote(str(files.log))
        # A log that can't be written must not keep the reap from running.
        job = f"umask 077\ntrue >>{log} && exec {command} >>{log} 2>&1\nexec {command} >/dev/null 2>&1\n"
        argv = [
            "at",
            "-q",
            self.QUEUE,
            "-t",
            f"{datetime.fromtimestamp(deadline, timezone.utc):%Y%m%d%H%M}",
        ]
        answer = host.run(
            argv,
            timeout=30,
            stdin=job,
            cwd=Path("/"),
            env=host.child_env({"TZ": "UTC0", "SHELL": "/bin/sh"}),
        )
        if (found := re.search(r"^job ([0-9]+) at ", answer.stderr, re.MULTILINE)) is None:
            raise YclusterError(f"at did not say which job it made: {answer.stderr.strip()}")
        return found.group(1)

    def armed(self, host: Host, files: Files, timer: ArmedTimer) -> bool:
        # Not only our queue: while a job runs, atq lists it under `=`; at the moment when it is renamed a look may miss it.
        looks = (host.attempt(["atq"], timeout=30) or "" for _ in range(2))
        return (
            files.program.exists()
            and self.daemon_runs
            and any(f"\n{timer.id}\t" in f"\n{look}" for look in looks)
        )

    def cancel(self, host: Host, files: Files, timer: ArmedTimer) -> None:
        host.run(["atrm", timer.id], timeout=30, check=False)


class WatcherTimer:
    """`lifetime watch` as a detached process of our own: it shares the VM's fate and needs nothing."""

    name = "watcher"
    survives: Mapping[str, str] = {
        "logout": "as the VM does: they end or go on together", "suspend": "yes: it looks at the clock every few seconds",
        "reboot": "not needed: the VM ends with the host", "clock": "yes: it goes by the time since boot",
    }  # fmt: skip

    def check(self, host: Host) -> None:
        """It can always be had."""

    def arm(self, host: Host, files: Files, deadline: int) -> str:
        if not flock_held(files.watch_lock):
            host.spawn(timer_argv(host, files, self.name, "watch"), files.log)
            give_up = host.monotonic() + 30
            while not flock_held(files.watch_lock):
                if host.monotonic() > give_up:
                    raise TimedOut(f"the watcher did not come up; see {files.log}")
                host.sleep(0.02)
        return "watch"

    def armed(self, host: Host, files: Files, timer: ArmedTimer) -> bool:
        return flock_held(files.watch_lock)

    def cancel(self, host: Host, files: Files, timer: ArmedTimer) -> None:
        """It reads the sidecar at every look, and leaves when it is no longer named there."""


# A way to have `ycluster lifetime reap` run at a time; what `arm` returns is the backend's own name for that arming.
Timer: TypeAlias = "SystemdTimer | AtTimer | WatcherTimer"
TIMERS: tuple[Timer, ...] = (SystemdTimer(), AtTimer(), WatcherTimer())  # best first


def timers_for(host: Host) -> tuple[Timer, ...]:
    """All of them, or the one that YCLUSTER_TIMER names."""
    wanted = host.environ.get("YCLUSTER_TIMER", "")
    if not (chosen := tuple(timer for timer in TIMERS if wanted in ("", timer.name))):
        raise UsageError(
            f"YCLUSTER_TIMER={wanted}: it is none of {', '.join(timer.name for timer in TIMERS)}"
        )
    return chosen


def timer_named(name: str) -> Timer | None:
    return next((timer for timer in TIMERS if timer.name == name), None)


def is_armed(host: Host, state: State) -> bool:
    """Whether the timer that the sidecar names really is there."""
    armed = state.timer
    return any(
        armed and timer.name == armed.backend and timer.armed(host, state.files, armed)
        for timer in TIMERS
    )


def arm_timer(host: Host, state: State, *, fired: bool = False) -> State:
    """Have the reap fire at the deadline, and at the warning before it, by the best timer that works, and save which one that
    is; under the cluster's lock. One that is there already stays, unless it is the one that has `fired` and runs us."""
    if due_time(state) == float("inf"):
        return disarm_timer(host, state, None)
    deadline, warning = int(due_time(state)), warn_time(state)
    old, chosen = state.timer, timers_for(host)
    if (
        old
        and old.deadline == deadline
        and timer_named(old.backend) in chosen
        and not fired
        and is_armed(host, state)
    ):
        return save_state(state)
    install_program(host, state.files)
    refused: list[str] = []
    for backend in chosen:
        try:
            backend.check(host)
            mark = ArmedTimer(backend.name, backend.arm(host, state.files, deadline), deadline)
            if (
                host.now() < warning < deadline
            ):  # one more, which the deadline's own does not depend on
                mark = replace(mark, warning=backend.arm(host, state.files, int(warning)))
            log_event(host, state, "armed", by=backend.name, deadline=format_time(deadline))
            return disarm_timer(host, state, mark)
        except (YclusterError, OSError) as error:
            if not isinstance(error, PrerequisiteError):
                host.output.warn(f"timer {backend.name}: {error}")
            refused.append(f"{backend.name}: {error}")
    save_state(replace(state, timer=None))
    why = f"{state.name}: no timer can be armed; its deadline is saved, and nothing fires it ({'; '.join(refused)})"
    hint = (
        "have `ycluster lifetime reap --all` run by a scheduler of yours, or unset YCLUSTER_TIMER"
    )
    raise PrerequisiteError(why, hint=hint)


def disarm_timer(host: Host, state: State, mark: ArmedTimer | None) -> State:
    """Save the state with `mark` in the place of its timer, and only then take that one away."""
    saved = save_state(replace(state, timer=mark))
    cancel_timer(host, state.files, state.timer)
    return saved


def cancel_timer(host: Host, files: Files, old: ArmedTimer | None) -> None:
    """Best effort: a timer that is left over does no harm, since reap decides afresh."""
    if old and (backend := timer_named(old.backend)):
        for ident in filter(None, (old.id, old.warning)):
            with contextlib.suppress(YclusterError, OSError):
                backend.cancel(host, files, replace(old, id=ident))


# === 11 gcloud flags =================================================================================
def gcp_flags(max_run: str, where: str = "lifetime.maxRun") -> list[str]:
    """Flags of `gcloud compute instances create` by which GCE itself deletes the instance; none without a budget. A fraction
    of a second is rounded up. Raises ConfigError outside GCE's bounds, 30 s to 120 days, which gcloud does not check."""
    if (nanoseconds := budget(max_run)) is None:
        return []
    seconds = -(-nanoseconds // 10**9)
    if not GCP_MIN_SECONDS <= seconds <= GCP_MAX_SECONDS:
        why = f"{where} {max_run} is {seconds} s; Compute Engine takes 30 s to 120 days (2880h)"
        raise ConfigError(
            why, hint="choose a budget within them; gcloud itself would let it through"
        )
    return [f"--max-run-duration={seconds}s", "--instance-termination-action=DELETE"]


def gcp_warnings(config: Config, on_expiry: object) -> dict[str, str]:
    """What may still hurt, by the word that `--quiet` takes once it is settled; `on_expiry` is what the file says."""
    said = {
        "restart": "a restart after a host error begins a new budget, unless you add --no-restart-on-failure"
    }
    if on_expiry not in (None, "teardown"):
        said["onExpiry"] = (
            f"lifetime.onExpiry: {on_expiry} is ignored in the cloud, the instance is deleted"
        )
    if getattr(config, "data_disk", None):
        said["dataDisk"] = (
            "a data disk is deleted with the instance, unless its --disk has auto-delete=no"
        )
    return said


def gcp_lifetime(text: str | bytes, now: float) -> dict[str, Any]:
    """What `gcp-status` shows of the instance in the JSON that gcloud printed. Raises ValueError and its like."""
    found = json.loads(text)
    [made] = found if isinstance(found, list) else [found]
    if made.get("kind", "compute#instance") != "compute#instance":
        raise ValueError(f"it is a {made['kind']}")
    plan, started, expires = made["scheduling"], made.get("lastStartTimestamp"), None
    limit, until = plan.get("maxRunDuration"), plan.get("terminationTime")
    nanoseconds = int(limit["seconds"]) * 10**9 + int(limit.get("nanos", 0)) if limit else 0
    if made["status"] == "RUNNING":
        # Compute Engine's own reckoning goes first: it counts from the last entry into RUNNING, a resume too.
        known = (
            made.get("resourceStatus", {}).get("scheduling", {}).get("terminationTimestamp")
            or until
        )
        if known or limit:
            expires = parse_time(known) if known else parse_time(started) + -(-nanoseconds // 10**9)
    return {
        "name": made["name"], "zone": made.get("zone", "").rpartition("/")[2], "state": made["status"].lower(),
        "maxRun": format_duration(nanoseconds) if limit else "", "terminationTime": until or "",
        "onExpiry": plan.get("instanceTerminationAction", "STOP").lower(),
        "startedAt": _encode_time(parse_time(started)) if started else "", "expiresAt": _encode_time(expires),
        "remainingSeconds": None if expires is None else int(expires - now),
    }  # fmt: skip


# === 12 QMP ==========================================================================================
class QmpError(YclusterError):
    """QEMU's monitor refused a command, said nothing in time, or hung up."""


class Qmp:
    """A client of QEMU's monitor (docs/interop/qmp-spec), which serves one at a time. Every read has a deadline."""

    def __init__(self, sock: Any, monotonic: Callable[[], float]) -> None:
        self.sock, self.monotonic = sock, monotonic
        self.buffer, self.serial = b"", 0

    @classmethod
    @contextlib.contextmanager
    def connect(
        cls, path: Path, monotonic: Callable[[], float], *, timeout: float
    ) -> Iterator[Qmp]:
        """Connect and negotiate. The directory is reached by a descriptor: a socket path is 107 bytes at most."""
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            qmp = cls(sock, monotonic)
            try:
                sock.settimeout(timeout)
                with descriptor(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)) as directory:
                    sock.connect(f"/proc/self/fd/{directory}/{path.name}")
                if "QMP" not in qmp._message(monotonic() + timeout):
                    raise QmpError("no QMP greeting")
                qmp.execute("qmp_capabilities", timeout=timeout)
            except (OSError, YclusterError) as error:
                raise QmpError(f"{path}: QEMU's monitor does not answer: {error}") from None
            yield qmp

    def execute(
        self, command: str, arguments: Mapping[str, Any] = {}, *, timeout: float = 5.0
    ) -> Any:
        """Run a command and return its `return`; QmpError when it is refused or `timeout` seconds pass."""
        self.serial += 1
        request = {
            "execute": command,
            "id": self.serial,
            **({"arguments": arguments} if arguments else {}),
        }
        until = self.monotonic() + timeout
        try:
            self.sock.settimeout(timeout)
            self.sock.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{command}: {error}") from None
        while (message := self._message(until)).get("id") != self.serial:
            pass  # an event, or the answer to what was given up
        if "error" in message:
            why = message["error"]
            raise QmpError(f"{command}: {why.get('desc', why) if isinstance(why, dict) else why}")
        return message.get("return")

    def _message(self, until: float) -> dict[str, Any]:
        """The next message; end of file (or a reset, which QEMU's exit may look like) is an error."""
        while b"\n" not in self.buffer:
            try:
                self.sock.settimeout(max(0.001, until - self.monotonic()))
                chunk = self.sock.recv(65536)
            except OSError as error:  # that of a timeout has no errno
                raise QmpError(
                    f"connection lost: {error.strerror}" if error.errno else "no answer in time"
                ) from None
            if not chunk:
                raise QmpError("QEMU closed the connection")
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(message := json.loads(line), dict):
                return message
        raise QmpError(f"not a QMP message: {line[:80]!r}")


# === 13 VM process ===================================================================================
class Vm(Record):
    """A running QEMU that is known to be ours. `pidfd` can't come to mean another process; close it."""

    pid: int
    pidfd: int


@contextlib.contextmanager
def find_vm(files: Files) -> Iterator[Vm | None]:
    """The cluster's QEMU, or None when it doesn't run. "Not found" is not "not running": raises YclusterError while QEMU's
    lock is held and no QEMU can be seen (another container's?), rather than let a disk be pulled from it."""
    for _ in range(100):  # it may just be coming, or going
        if (vm := _look_for_vm(files)) is not None or not flock_held(files.vm_lock):
            break
        select.select([], [], [], 0.05)
    else:
        hint = f"`fuser {files.vm_lock}` where it was started (another container?) names it"
        raise YclusterError(f"{files.name}: its QEMU runs, and can't be seen from here", hint=hint)
    with contextlib.nullcontext() if vm is None else descriptor(vm.pidfd):
        yield vm


def _look_for_vm(files: Files) -> Vm | None:
    named: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        named.append(int(files.pidfile.read_text(encoding="ascii")))
    for pid in named + (pids() if flock_held(files.vm_lock) else []):
        if _runs_with_pidfile(pid, files.pidfile):
            with contextlib.suppress(ProcessLookupError):
                pidfd = pidfd_open(pid)
                # Only now can the number not come to mean another process, so ask again.
                if _runs_with_pidfile(pid, files.pidfile) and not _exited(pidfd, 0):
                    return Vm(pid, pidfd)
                os.close(pidfd)
    return None


def pidfiles(pid: int) -> list[str]:
    """The pidfiles that a process's argv names, as that of QEMU does, started by the sibling, too."""
    with contextlib.suppress(OSError):
        argv = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
        return [path for word, path in zip(argv, argv[1:]) if word == "-pidfile"]
    return []


def _runs_with_pidfile(pid: int, pidfile: Path) -> bool:
    """Whether it is ours: any number may be in a pidfile. Its directory may be spelt otherwise there (a link, a relative path)."""
    return os.path.realpath(pidfile) in map(os.path.realpath, pidfiles(pid))


def _exited(pidfd: int, timeout: float) -> bool:
    """Whether the process ends within `timeout` seconds; the kernel tells at once, nothing is polled."""
    return bool(select.select([pidfd], [], [], max(0.0, timeout))[0])


def ask_qemu(
    host: Host,
    files: Files,
    command: str,
    arguments: Mapping[str, Any] = {},
    *,
    timeout: float = 5.0,
) -> Any:
    """What QEMU's monitor returns for one command; raises QmpError."""
    with Qmp.connect(files.qmp, host.monotonic, timeout=timeout) as qmp:
        return qmp.execute(command, arguments)


def running(files: Files) -> bool:
    with find_vm(files) as vm:
        return vm is not None


def vm_status(host: Host, files: Files) -> str:
    """`running`, `paused`, `stopped`, another run state of QEMU's, `busy` while another ycluster talks to it,
    `unresponsive`, or `unseen` where it runs out of our sight."""
    with contextlib.suppress(YclusterError), find_vm(files) as vm:
        if vm is None:
            return "stopped"
        if process_stat(vm.pid)[1] == "T":
            return "paused"
        if not files.qmp.exists():
            return "running"  # started by the sibling, which has no monitor
        with contextlib.suppress(QmpError):
            return str(ask_qemu(host, files, "query-status", timeout=2.0)["status"])
        if _exited(vm.pidfd, 0):
            return "stopped"
        return "busy" if flock_held(files.lock) else "unresponsive"
    return "unseen"


def pause_vm(host: Host, files: Files, vm: Vm) -> str:
    """Freeze the guest's CPUs, its memory kept; returns how it was done."""
    if vm_status(host, files) == "paused":
        return "was paused"
    with contextlib.suppress(QmpError):
        ask_qemu(host, files, "stop")
        return "QMP stop"
    send_signal(vm.pidfd, signal.SIGSTOP)  # no monitor, or none that answers: the sibling's way
    return "SIGSTOP"


def resume_vm(host: Host, files: Files, vm: Vm) -> None:
    """Undo both kinds of pause: ours, and the sibling's SIGSTOP."""
    send_signal(vm.pidfd, signal.SIGCONT)
    if files.qmp.exists():
        ask_qemu(host, files, "cont")


def stop_vm(host: Host, files: Files, vm: Vm, ssh_poweroff: Callable[[], object]) -> str:
    """Power the guest off, gently first (killing QEMU drops what the guest wrote last), and return the rung that did it.
    Bounded: under three minutes. Raises YclusterError when QEMU outlives even SIGKILL."""
    steps = Steps(host.output, host.monotonic)
    with contextlib.suppress(OSError):
        send_signal(vm.pidfd, signal.SIGCONT)  # a frozen QEMU would ignore every rung
    rungs: tuple[tuple[str, Callable[[], object], float], ...] = (
        ("guest-shutdown", lambda: _powerdown(host, files, vm, steps), 0.0),
        ("ssh poweroff", ssh_poweroff, 20.0),
        ("QMP quit", lambda: ask_qemu(host, files, "quit"), 10.0),
        ("SIGTERM", lambda: send_signal(vm.pidfd, signal.SIGTERM), 10.0),
        ("SIGKILL", lambda: send_signal(vm.pidfd, signal.SIGKILL), 10.0),
    )
    for rung, act, patience in rungs:
        began = host.monotonic()
        with contextlib.suppress(YclusterError, OSError):
            act()
        until = host.monotonic() + patience
        while (
            not (ended := _exited(vm.pidfd, min(0.5, until - host.monotonic())))
            and host.monotonic() < until
        ):
            steps.waiting(f"{rung}: waiting for QEMU to end")
        if ended:
            steps.done(f"{files.name} is off by {rung}")
            return rung
        host.output.warn(f"{files.name}: {rung} did not end it in {host.monotonic() - began:.0f} s")
    raise YclusterError(
        f"{files.name}: QEMU (pid {vm.pid}) is alive after SIGKILL",
        hint="look into the kernel's log",
    )


def _powerdown(host: Host, files: Files, vm: Vm, steps: Steps) -> None:
    """Press the ACPI power button until the guest goes; one that is still booting misses the first press."""
    with Qmp.connect(files.qmp, host.monotonic, timeout=5.0) as qmp:
        with contextlib.suppress(QmpError):
            qmp.execute("cont")  # a paused guest can't see the button
        until = host.monotonic() + POWERDOWN_TIMEOUT
        while host.monotonic() < until:
            qmp.execute("system_powerdown")
            for _ in range(6):  # half seconds until the next press
                if _exited(vm.pidfd, 0.5):
                    return
                steps.waiting("guest-shutdown: waiting for the guest to power off")


# === 14 QEMU machine =================================================================================
# A boot sector that counts down from a hundred million, a tenth of a second for a CPU, and ends QEMU by its debug exit:
# mov ecx,100000000; again: dec ecx; jnz again; mov al,16; out 0F4h,al; halt: hlt; jmp halt
KVM_TRIAL = bytes.fromhex("66b900e1f505 6649 75fc b010 e6f4 f4 ebfd")
KVM_TIMEOUT = 10.0  # seconds; TCG takes half a one


def forwards(state: State) -> list[PortForward]:
    """What to ask QEMU for, ssh included: host port 0 (choose a free one) where the config left the choice to it."""
    every = [PortForward(host=state.ssh_port, guest=22), *state.port_forwards]
    return [
        PortForward(host=0 if f.guest in state.auto_ports else f.host, guest=f.guest) for f in every
    ]


def qemu_argv(state: State, accel: str) -> list[str]:
    """QEMU's command line, to be run in the cacheDir: sockets and logs are named without it (`-daemonize` leaves it only
    after they are open), as a socket path is 107 bytes at most. Disks are JSON, in which a comma has no meaning."""
    files = state.files
    hostfwd = [f"hostfwd=tcp:{state.bind_address}:{f.host}-:{f.guest}" for f in forwards(state)]
    seed = {
        "driver": "vvfat",
        "node-name": "seed",
        "dir": str(files.seed),
        "label": "CIDATA",
        "read-only": True,
    }
    argv = [
        QEMU, "-name", f"guest={state.name}", "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none",
        "-machine", f"{state.machine or 'q35'},graphics=off",  # the firmware, too, speaks on the serial console
        "-accel", "kvm" if accel == "kvm" else "tcg,thread=multi", "-cpu", state.cpu_model or ("host" if accel == "kvm" else "max"),
        "-smp", state.cpus, "-m", f"{state.memory}M", "-device", "virtio-rng-pci",
        "-blockdev", _qcow2("boot", files.disk), "-device", "virtio-blk-pci,drive=boot,bootindex=0",
        "-netdev", ",".join(["user", "id=net", *hostfwd]), "-device", "virtio-net-pci,netdev=net,romfile=",
        "-chardev", f"file,id=console,path={files.console.name}", "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,path={files.qmp.name},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        "-pidfile", str(files.pidfile), "-daemonize",
    ]  # fmt: skip
    if files.seed.is_dir():  # the sibling's disks have had theirs at the first boot
        argv += ["-blockdev", json.dumps(seed), "-device", "virtio-blk-pci,drive=seed"]
    if state.data_disk:
        argv += [
            "-blockdev",
            _qcow2("data", Path(state.data_disk)),
            "-device",
            "virtio-blk-pci,drive=data",
        ]
    return argv


def _qcow2(node: str, path: Path) -> str:
    file = {"driver": "file", "filename": str(path), "discard": "unmap"}
    return json.dumps({"driver": "qcow2", "node-name": node, "discard": "unmap", "file": file})


def try_kvm(host: Host) -> None:
    """Raise unless KVM runs a VM, at speed. That /dev/kvm opens proves nothing, nor does a QEMU that starts: on some nested
    hosts its first guest stops, on others it crawls, a hundred times slower than TCG, and stops after minutes."""
    import tempfile

    why = "so QEMU emulates, which is slower"
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        what = "/dev/kvm is closed to you" if os.path.exists("/dev/kvm") else "there is no /dev/kvm"
        raise PrerequisiteError(
            f"{what}, {why}", hint=f"sudo modprobe kvm; sudo usermod -aG kvm {host.user()}"
        )
    with tempfile.NamedTemporaryFile() as disk:
        disk.write(KVM_TRIAL.ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
        disk.flush()
        node = {
            "driver": "raw",
            "node-name": "boot",
            "file": {"driver": "file", "filename": disk.name},
        }
        argv = [
            QEMU, "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none", "-machine", "q35", "-accel", "kvm",
            "-cpu", "host", "-m", "64", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
            "-blockdev", json.dumps(node), "-device", "virtio-blk-pci,drive=boot,bootindex=0",
        ]  # fmt: skip
        try:
            done = host.run(argv, timeout=KVM_TIMEOUT, check=False)
        except TimedOut:
            raise PrerequisiteError(f"KVM does not run a VM at speed here, {why}") from None
    if done.returncode != 33:  # what debug-exit makes of 16
        said = "; ".join(done.stderr.strip().splitlines()[:1]) or f"exit {done.returncode}"
        raise PrerequisiteError(f"KVM does not run a VM here, {why}: {said}")


def kvm_works(host: Host) -> bool:
    """Whether KVM stands its trial, which is asked once in a boot of the host for each QEMU, and anew when it is opened to us."""
    version = host.attempt([QEMU, "--version"], timeout=20) or ""
    trial = f"{host.boot_id()} {''.join(version.splitlines()[:1])} {os.access('/dev/kvm', os.R_OK | os.W_OK)}"
    with contextlib.suppress(OSError, ValueError, YclusterError):
        *tried, verdict = (host.state_home() / "kvm-trial").read_text(encoding="utf-8").splitlines()
        if tried == [trial]:
            return verdict == "kvm"
    try:
        try_kvm(host)
        works = True
    except (YclusterError, OSError) as error:
        host.output.say(f"  {error}")
        works = False
    with contextlib.suppress(OSError, YclusterError):
        host.state_home().mkdir(mode=0o700, parents=True, exist_ok=True)
        write_file(
            host.state_home() / "kvm-trial", f"{trial}\n{'kvm' if works else 'tcg'}\n".encode()
        )
    return works


def launch(host: Host, state: State) -> State:
    """Start QEMU; returns the state with what it chose: accelerator, machine, ports. YclusterError: nothing is left running."""
    if not state.machine:
        # The versioned name behind `q35` keeps the guest's hardware over QEMU's upgrades.
        listing = host.run([QEMU, "-machine", "help"], timeout=20).stdout
        found = re.search(r"^q35 .*\(alias of ([-.\w]+)\)", listing, re.MULTILINE)
        state = replace(state, machine=found.group(1) if found else "q35")
    if (accel := state.accel) == "auto":
        accel = "kvm" if kvm_works(host) else "tcg"
    _spawn_qemu(host, state, accel)
    try:
        return with_ports(host, replace(state, ran_with=accel))
    except BaseException:
        with find_vm(state.files) as vm:
            if vm is not None:  # its guest has hardly run: there is nothing in it to lose
                send_signal(vm.pidfd, signal.SIGKILL)
                _exited(vm.pidfd, 10)
        raise


def _spawn_qemu(host: Host, state: State, accel: str) -> None:
    """Run QEMU until it has made itself a daemon. It inherits the VM lock and holds it to its last breath."""
    files = state.files
    if (fd := take_flock(host, files.vm_lock, timeout=5)) is None:
        raise YclusterError(
            f"{state.name}: its QEMU already runs", hint="`ycluster status` says more"
        )
    with descriptor(fd):
        remove(files.qmp)
        remove(files.pidfile)
        # QEMU's daemon has a umask of its own, 027.
        os.close(os.open(files.console, os.O_WRONLY | os.O_CREAT, 0o600))
        host.run(qemu_argv(state, accel), timeout=60, cwd=files.cache_dir, pass_fds=(fd,))
        files.qmp.chmod(0o600)


def with_ports(host: Host, state: State) -> State:
    """The state with the host ports that QEMU chose for itself filled in."""
    if not state.auto_ports:
        return state
    usernet = ask_qemu(host, state.files, "human-monitor-command", {"command-line": "info usernet"})
    found = re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+(\d+)", usernet)
    chosen = {int(guest): int(port) for port, guest in found}
    ports = tuple(
        PortForward(host=chosen.get(f.guest, f.host), guest=f.guest) for f in state.port_forwards
    )
    return replace(state, ssh_port=chosen.get(22, state.ssh_port), port_forwards=ports)


def port_owner(host: Host, port: int) -> str:
    """Who listens on a port, in words; of another user's program only root may know."""
    answer = host.attempt(["ss", "-Hltnp", f"sport = :{port}"], timeout=10) or ""
    if (found := re.search(r'users:\(\("([^"]*)",pid=([0-9]+)', answer)) is None:
        return (
            "it is below 1024 and you are not root"
            if port < 1024 and os.getuid()
            else "a program of another user has it"
        )
    with contextlib.suppress(OSError):
        if guest := re.search(
            rb"\0guest=([^\0,]*)", Path(f"/proc/{found[2]}/cmdline").read_bytes()
        ):
            return f"the cluster {os.fsdecode(guest[1])} has it (pid {found[2]})"
    return f"{found[1]} has it (pid {found[2]})"


# === 15 guest ========================================================================================
# In the guest, at each boot. The entry lets it boot without the volume, too.
MOUNT_DATA = f"""\
mkdir -p {DATA_DIR}
entry="LABEL={DATA_LABEL} {DATA_DIR} ext4 defaults,nofail,x-systemd.device-timeout=30 0 2"
grep -qxF "$entry" /etc/fstab || echo "$entry" >>/etc/fstab
mountpoint -q {DATA_DIR} || mount {DATA_DIR}
"""

# `prepare-export`: what the guest does while it runs, and what is done to its disk afterwards, any number of times.
PREPARE_LIVE = f"""\
if command -v apt-get >/dev/null; then apt-get clean; fi
for unit in systemd-timesyncd chrony chronyd ntpsec ntp none; do systemctl enable $unit.service 2>/dev/null && break; done
[ $unit != none ] || echo no-time-sync
if mountpoint -q {DATA_DIR}; then umount {DATA_DIR} || true; fi
fstrim -a 2>/dev/null || true
sync
"""
PREPARE_OFFLINE = f"""\
set -eu
rm -rf /var/lib/cloud /var/log/cloud-init*.log /etc/cloud/cloud.cfg.d/99-ycluster.cfg
rm -f /etc/udev/rules.d/70-persistent-net.rules /etc/netplan/50-cloud-init.yaml /etc/network/interfaces.d/50-cloud-init* \\
  /etc/rancher/k3s/registries.yaml /etc/systemd/network/*cloud-init* /var/lib/dhcp/*.leases
if [ -d /etc/netplan ]; then
  echo 'network: {{version: 2, ethernets: {{any: {{match: {{name: "e*"}}, dhcp4: true}}}}}}' >/etc/netplan/90-any-dhcp.yaml
  chmod 0600 /etc/netplan/90-any-dhcp.yaml
elif [ -d /etc/systemd/network ]; then
  printf '[Match]\\nName=en* eth*\\n\\n[Network]\\nDHCP=yes\\n' >/etc/systemd/network/90-any-dhcp.network
fi
sed -i '/^LABEL={DATA_LABEL} /d' /etc/fstab
rm -rf /root/.bash_history /home/*/.bash_history /root/.cache /home/*/.cache /root/.lesshst /root/.viminfo /tmp/*
rm -rf /var/cache/apt/*.bin /var/lib/apt/lists/* /var/log/journal/* /var/lib/systemd/random-seed
find /var/log -type f -exec truncate -s 0 {{}} +
"""


def user_data(
    state: State, login_key: str, host_private: str, host_public: str, registries: Mapping[str, Any]
) -> str:
    """cloud-init's user-data; JSON is YAML. The host key is ours, so that the very first connection can be checked. The
    datasource list keeps a disk that boots elsewhere from asking every cloud for its metadata."""
    pin = {
        "path": "/etc/cloud/cloud.cfg.d/99-ycluster.cfg",
        "content": "datasource_list: [NoCloud, None]\n",
    }
    mirrors = {
        "path": "/etc/rancher/k3s/registries.yaml",
        "permissions": "0600",
        "content": to_json(registries),
    }
    login = {
        "name": state.ssh_user,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
    }
    cloud_config = {
        "hostname": state.name, "users": [{**login, "ssh_authorized_keys": [login_key.strip()]}], "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_private, "ed25519_public": host_public.strip()}, "package_update": False,
        "write_files": [pin, mirrors] if registries else [pin], "bootcmd": [MOUNT_DATA] if state.data_disk else [],
    }  # fmt: skip
    return "#cloud-config\n" + to_json(cloud_config) + "\n"


def make_keys(host: Host, state: State) -> None:
    """Fresh keys of this VM's own: one to log in with, one for its sshd. Nothing touches ~/.ssh."""
    files = state.files
    for key, comment in (
        (files.ssh_key, f"ycluster {state.name}"),
        (files.host_key, f"root@{state.name}"),
    ):
        remove(key)
        remove(key.with_name(key.name + ".pub"))
        host.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)],
            timeout=30,
        )
    public = files.host_pub.read_text(encoding="ascii")
    write_file(files.known_hosts, f"{state.name} {' '.join(public.split()[:2])}\n".encode())


def make_seed(state: State, registries: Mapping[str, Any]) -> None:
    """The NoCloud seed: a directory that QEMU shows to the guest as a vfat volume labelled CIDATA."""
    files = state.files
    remove(files.seed)
    files.seed.mkdir(mode=0o700, parents=True, exist_ok=True)
    login, private, public = (
        key.read_text(encoding="ascii") for key in (files.ssh_pub, files.host_key, files.host_pub)
    )
    data = user_data(state, login, private, public, registries)
    # A new id makes cloud-init apply the new key even to a disk that has booted before.
    meta = to_json(
        {"instance-id": f"{state.name}-{os.urandom(8).hex()}", "local-hostname": state.name}
    )
    write_file(files.seed / "user-data", data.encode())
    write_file(files.seed / "meta-data", meta.encode())


def ssh_argv(state: State, *command: str) -> list[str]:
    """The ssh command for a cluster: its own key, its own known_hosts, strict from the first connection."""
    files = state.files
    # Without our host key (a VM of the sibling's) the first one seen is kept and held to.
    strict = "yes" if files.host_pub.exists() else "accept-new"
    key, known = (
        str(path).replace("%", "%%") for path in (files.ssh_key, files.known_hosts)
    )  # ssh expands %
    return [
        "ssh", "-F", "/dev/null", "-p", str(state.ssh_port),
        "-o", f'IdentityFile="{key}"', "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20",
        "-o", f'UserKnownHostsFile="{known}"', "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", f"StrictHostKeyChecking={strict}", "-o", f"HostKeyAlias={state.name}",
        "-o", "ServerAliveInterval=15", f"{state.ssh_user}@{state.dial_address}", *command,
    ]  # fmt: skip


def ssh_banner(
    address: str, port: int, timeout: float, waiting: Callable[[], object] = lambda: None
) -> bool:
    """Whether an ssh server speaks. A TCP connect alone proves nothing: QEMU accepts with no guest listening."""
    import socket

    with (
        contextlib.suppress(OSError),
        socket.create_connection((address, port), timeout=timeout) as sock,
    ):
        for _ in range(4):
            if select.select([sock], [], [], timeout / 4)[0]:
                return sock.recv(4) == b"SSH-"
            waiting()
    return False


# Its name, and whether it is reached; what that is given is called while it is asked.
Stage: TypeAlias = "tuple[str, Callable[[Callable[[], object]], bool]]"


def wait_ready(host: Host, state: State, *, timeout: float, more: Sequence[Stage] = ()) -> None:
    """Wait until the guest can be worked with: named and timed stages on stderr. Raises YclusterError with the console's
    tail within a second of QEMU's end or stop, TimedOut when a stage takes `timeout` seconds."""
    steps = Steps(host.output, host.monotonic)
    until, looked, stage = host.monotonic() + timeout, [host.monotonic()], "its process"
    with find_vm(state.files) as vm:
        _check_boot(host, state, vm, stage)
        assert vm is not None
        steps.done("process")

        def waiting() -> None:
            """Called twice a second at least, whatever is being asked meanwhile: an ssh may hang for long."""
            if _exited(vm.pidfd, 0) or host.monotonic() > looked[-1] + 1:
                _check_boot(host, state, vm, stage)
                looked.append(host.monotonic())
            if host.monotonic() > until:
                why = (
                    f"{state.name}: no {stage} within {timeout:.0f} s; {console_tail(state.files)}"
                )
                hint = f"it still runs, and its deadline holds: `ycluster stop --name {state.name}` ends it now"
                raise TimedOut(why, hint=hint)
            steps.waiting(f"waiting for {stage}")

        stages: tuple[Stage, ...] = (
            ("firmware", lambda waiting: state.files.console.stat().st_size > 0),
            (
                "SSH banner",
                lambda waiting: ssh_banner(state.dial_address, state.ssh_port, 2.0, waiting),
            ),
            ("login", lambda waiting: in_guest(host, state, "true", waiting) is not None),
            ("cloud-init done", lambda waiting: _cloud_init_done(host, state, waiting)),
        )
        for stage, reached in (*stages, *more):
            until = host.monotonic() + timeout
            while not reached(waiting):
                waiting()
                _exited(vm.pidfd, 0.1)
            steps.done(stage)


def _check_boot(host: Host, state: State, vm: Vm | None, stage: str) -> None:
    """Raise where QEMU has ended, or runs and its guest does not."""
    now = "stopped" if vm is None or _exited(vm.pidfd, 0) else vm_status(host, state.files)
    what = "QEMU ended" if now == "stopped" else f"it is {now}"
    if now in ("running", "busy", "unresponsive"):
        if "end Kernel panic - not syncing" not in console_tail(state.files, 1):
            return
        what = "its kernel panicked (QEMU runs on until the deadline)"
    why = f"{state.name}: {what} while waiting for {stage}; {console_tail(state.files)}"
    raise YclusterError(why, hint=f"the whole console: {state.files.console}")


def in_guest(host: Host, state: State, command: str, waiting: Callable[[], object]) -> str | None:
    """What a command prints in the guest; None while it fails there, or gives no answer."""
    with contextlib.suppress(TimedOut, ProgramFailed):
        return host.run(ssh_argv(state, command), timeout=30, waiting=waiting).stdout
    return None


def _cloud_init_done(host: Host, state: State, waiting: Callable[[], object]) -> bool:
    """Whether cloud-init is through with this boot (or has no part in it). Its own `status` takes seconds without KVM."""
    result, off = "/run/cloud-init/result.json", "/run/cloud-init/disabled"
    wait = f"[ -e {off} ] && exit; for i in $(seq 20); do [ -e {result} ] && exec cat {result}; sleep 0.5; done; exit 1"
    if (
        said := in_guest(
            host, state, f"command -v cloud-init >/dev/null || exit 0; {wait}", waiting
        )
    ) is None:
        return False
    with contextlib.suppress(ValueError, LookupError, TypeError):
        for error in json.loads(said)["v1"]["errors"]:  # the guest is up all the same
            host.output.warn(f"cloud-init in the guest: {error}")
    return True


def console_tail(files: Files, lines: int = 12) -> str:
    """The last lines of the serial console under a heading, cleaned of what would drive a terminal."""
    try:
        text = files.console.read_bytes()[-8192:].decode("utf-8", "replace")
    except OSError as error:
        return f"there is no console: {error.strerror}"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\x20-\x7e]", "", text)
    tail = [line.rstrip() for line in text.split("\n") if line.strip()][-lines:]
    return "\n    ".join(["its console's last lines:", *tail]) if tail else "its console is empty"


# === 16 k3s ==========================================================================================
K3S_FILES = ("sha256sum-amd64.txt", "install.sh", "k3s", "k3s-airgap-images-amd64.tar.zst")
K3S_GET = 'get() { if command -v curl >/dev/null; then curl -sfL "$1"; else wget -qO- "$1"; fi; }\n'
K3S_FROM_RELEASE = f"""\
for file in {" ".join(K3S_FILES)}; do get "$1/$file" >$file; done
sha256sum --quiet --ignore-missing -c sha256sum-amd64.txt
"""
K3S_SCRIPT = 'get https://get.k3s.io >install.sh\nINSTALL_K3S_VERSION="$2" sh install.sh'
K3S_AIRGAP = """\
install -d /var/lib/rancher/k3s/agent/images
install -m 0755 k3s /usr/local/bin/k3s
mv k3s-airgap-images-amd64.tar.zst /var/lib/rancher/k3s/agent/images/
: >/var/lib/rancher/k3s/agent/images/.cache.json  # or it would be imported again at every start
INSTALL_K3S_SKIP_DOWNLOAD=true sh install.sh"""


def check_implemented(config: QemuConfig) -> None:
    """Raise where the config asks for what this version doesn't do; better than to leave out what was promised."""
    here = config.k3s.install == "script" and config.k3s.source.startswith("file:")
    every = {
        "k3s.source: a folder of this host, with install: script": here,
        "network.mode: tap": config.network.mode == "tap",
    }
    if asked := ", ".join(what for what, is_asked in every.items() if is_asked):
        raise NotImplementedYet(f"not yet implemented: {asked}", hint="leave it out")


def fetch_k3s(host: Host, version: str, source: str) -> Path:
    """The files of a k3s release, kept in the user's cache, each held to the release's own list of digests. Raises
    PrerequisiteError when one can't be had, ConfigError when its digest differs."""
    folder = host.home() / ".cache" / "y-cluster" / "k3s" / version
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    release = f"https://github.com/k3s-io/k3s/releases/download/{version.replace('+', '%2B')}"
    hint = "k3s.source can name a folder or a mirror with the release's files; `k3s: {install: none}` gives a plain VM"
    listing = folder / K3S_FILES[0]
    with locked(host, folder / ".lock", timeout=3600):
        for name in (name for name in K3S_FILES if not (folder / name).exists()):
            base = (
                f"https://raw.githubusercontent.com/k3s-io/k3s/{version}"
                if name == "install.sh"
                else release
            )
            sums = [] if name == listing.name else listing.read_text("utf-8", "replace").split()
            digest = dict(zip(sums[1::2], sums[::2])).get(name, "")
            part = folder / f".{name}.part"
            try:
                if name.startswith("k3s") and not digest:
                    raise ConfigError(
                        f"{source or base}/{listing.name}: it has no digest of {name}", hint=hint
                    )
                download(host, f"{source or base}/{name}", part, hint, digest, listing.name)
                if name == "install.sh" and not part.read_bytes().startswith(
                    b"#!"
                ):  # it is in no list of digests
                    raise ConfigError(f"{source or base}/{name}: it is no script", hint=hint)
            except ConfigError:
                remove(listing)  # of the two, it may be what is wrong
                raise
            part.replace(folder / name)
    return folder


def k3s_stages(host: Host, state: State) -> tuple[Stage, ...]:
    """What follows the boot of a VM with k3s. An imported disk may remember nodes of other names: it is our own that counts."""
    kubectl = "sudo k3s kubectl get "
    ready = "node $(hostname | tr A-Z a-z) -o 'jsonpath={.status.conditions[?(@.type==\"Ready\")].status}'"
    return (
        ("k3s installed", lambda waiting: _install_k3s(host, state, waiting)),
        (
            "API ready",
            lambda waiting: in_guest(host, state, kubectl + "--raw /readyz", waiting) is not None,
        ),
        ("node Ready", lambda waiting: in_guest(host, state, kubectl + ready, waiting) == "True"),
    )


def _install_k3s(host: Host, state: State, waiting: Callable[[], object]) -> bool:
    """Have k3s in the guest, which is handed the files, or fetches them itself. True once it is there, and enabled."""
    ask = "if systemctl --root=/ is-enabled -q k3s; then sudo systemctl start --no-block k3s; else echo absent; fi"
    if (said := in_guest(host, state, ask, waiting)) != "absent\n":
        return said is not None  # no answer is not "absent": it is asked again
    version, source = str(state.k3s.get("Version") or K3S_VERSION), str(state.k3s.get("Source", ""))
    script = K3S_GET + (K3S_FROM_RELEASE + K3S_AIRGAP if source else K3S_SCRIPT)
    host.run(ssh_argv(state, "mkdir -p k3s-install"), timeout=60, waiting=waiting)
    if state.k3s["Install"] == "airgap":
        folder, script = fetch_k3s(host, version, source), K3S_AIRGAP
        _, *options, where = ssh_argv(state)
        given = ["-P" if word == "-p" else word for word in options]
        files = [str(folder / name) for name in K3S_FILES[1:]]
        host.run(
            ["scp", "-q", *given, *files, f"{where}:k3s-install/"], timeout=1800, waiting=waiting
        )
    install = shlex.join(["sudo", "sh", "-euc", script, "k3s", source, version])
    host.run(
        ssh_argv(state, f"cd k3s-install && {install} && rm -r ../k3s-install"),
        timeout=1800,
        waiting=waiting,
    )
    return True


# === 17 kubeconfig ===================================================================================
def kubeconfig_file(host: Host) -> Path:
    """The file that clusters are merged into: the first of $KUBECONFIG, else ~/.kube/config."""
    named = [path for path in host.environ.get("KUBECONFIG", "").split(":") if path]
    return Path(os.path.abspath(named[0])) if named else host.home() / ".kube" / "config"


def _kubectl(host: Host, file: Path, *words: str) -> str:
    """`kubectl config` on a file. kubectl takes a lock file, and fails at once where another has it: it is waited for."""
    until = host.monotonic() + 10
    while True:
        try:
            return host.run(
                ["kubectl", "config", *words],
                timeout=60,
                env=host.child_env({"KUBECONFIG": str(file)}),
            ).stdout
        except ProgramFailed as error:
            if ".lock" not in error.stderr or host.monotonic() > until:
                raise
        host.sleep(0.1)


def _view(host: Host, file: Path) -> dict[str, dict[str, Any]]:
    """The clusters, contexts and users of a kubeconfig, each by its name."""
    view = json.loads(_kubectl(host, file, "view", "-o", "json")) if file.exists() else {}
    every = {what: view.get(what) or () for what in ("clusters", "contexts", "users")}
    return {
        what: {item["name"]: item.get(what[:-1]) or {} for item in items}
        for what, items in every.items()
    }


def check_context(host: Host, states: Sequence[State], config: QemuConfig, files: Files) -> None:
    """Raise when another cluster goes by the context, of this user's or in the kubeconfig: it must name one."""
    for state in states:
        if state.context == config.context and state.files != files:
            other = f"context {config.context!r} is that of the cluster {state.name} in {state.cache_dir}"
            raise ConfigError(f"{config.file}: {other}", hint="give this one a context of its own")
    if config.k3s.install != "none":
        _check_names(
            host, kubeconfig_file(host), config.name, config.context, config.network.bind_address
        )


def _check_names(
    host: Host, file: Path, name: str, context: str, address: str, known: bool = False
) -> None:
    """Raise when what is to go into a kubeconfig would replace something else; `known`: it has our cluster and user already."""
    if not host.which("kubectl"):
        return
    view, taken = _view(host, file), ""
    if (entry := view["contexts"].get(context)) is not None:
        cluster = entry.get("cluster", "")
        server = view["clusters"].get(cluster, {}).get("server", "")
        if not cluster == entry.get("user") == name or not re.match(
            rf"$|https://({re.escape(address)}|127\.0\.0\.1):", server
        ):
            taken = f"context {context!r} is that of {cluster} ({server})"
    elif not known and (name in view["clusters"] or name in view["users"]):
        taken = f"it has a cluster or a user {name!r} already"
    if taken:
        raise ConfigError(f"{file}: {taken}", hint="give this one a name and a context of its own")


def _keep_last(file: Path) -> None:
    """A copy of a kubeconfig as it is: kubectl truncates it, so a disk that is full has to be told before."""
    if file.exists():
        write_file(file.with_name(f"{file.name}.before-ycluster-last"), file.read_bytes())


def forget_kubeconfig(host: Host, state: State) -> None:
    """Take our names out of the user's kubeconfig, and nothing else; the context, which tells that they are ours, the last."""
    file, name = Path(state.kubeconfig), state.name
    if not state.kubeconfig or not file.exists():
        return
    host.need({"kubectl": "kubernetes-client"})
    if _view(host, file)["contexts"].get(state.context, {}).get("cluster") == name:
        _keep_last(file)
        if _kubectl(host, file, "view", "-o", "jsonpath={.current-context}") == state.context:
            _kubectl(host, file, "unset", "current-context")
        _kubectl(host, file, "unset", f"clusters.{name}")
        _kubectl(host, file, "unset", f"users.{name}")
        _kubectl(host, file, "delete-context", state.context)


def merge_kubeconfig(host: Host, state: State) -> State:
    """Fetch the guest's kubeconfig under our names and with the forwarded port, and merge it into the user's own."""
    import base64

    files, name = state.files, state.name
    given = json.loads(
        host.run(ssh_argv(state, "sudo k3s kubectl config view --raw -o json"), timeout=60).stdout
    )
    cluster, user = given["clusters"][0]["cluster"], given["users"][0]["user"]
    port = next(forward.host for forward in state.port_forwards if forward.guest == 6443)
    # k3s's certificate is for 127.0.0.1, among others, wherever the port is forwarded from.
    cluster["server"], cluster["tls-server-name"] = (
        f"https://{state.dial_address}:{port}",
        "127.0.0.1",
    )
    context = {"name": state.context, "context": {"cluster": name, "user": name}}
    named = {
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
    }
    own = {
        "apiVersion": "v1",
        "kind": "Config",
        **named,
        "contexts": [context],
        "current-context": state.context,
    }
    write_file(files.kubeconfig, to_json(own).encode())
    if not host.which("kubectl"):
        host.output.say(
            f"  there is no kubectl here; its kubeconfig: export KUBECONFIG={shlex.quote(str(files.kubeconfig))}"
        )
        return state
    file = kubeconfig_file(host)
    _check_names(
        host, file, name, state.context, state.dial_address, known=state.kubeconfig == str(file)
    )
    if state.kubeconfig != str(file):  # it may be another one this time
        forget_kubeconfig(host, state)
    state = save_state(
        replace(state, kubeconfig=str(file))
    )  # from here on a teardown takes our names out
    if file.exists() and not (backup := file.with_name(f"{file.name}.before-ycluster")).exists():
        write_file(backup, file.read_bytes())
    _keep_last(file)
    # As files: a key has no place in argv. And by `set`: `set-credentials` crashes in Debian 12's kubectl.
    files.certificates.mkdir(mode=0o700, exist_ok=True)
    for entry, what in (
        (cluster, "certificate-authority"),
        (user, "client-certificate"),
        (user, "client-key"),
    ):
        write_file(files.certificates / what, base64.b64decode(entry[f"{what}-data"]))
    _kubectl(host, file, "unset", f"users.{name}")
    for what in ("client-certificate", "client-key"):
        _kubectl(host, file, "set", f"users.{name}.{what}", str(files.certificates / what))
    at = (f"--server={cluster['server']}", f"--tls-server-name={cluster['tls-server-name']}")
    _kubectl(
        host,
        file,
        "set-cluster",
        name,
        *at,
        f"--certificate-authority={files.certificates}/certificate-authority",
    )
    _kubectl(host, file, "set-context", state.context, f"--cluster={name}", f"--user={name}")
    if not _kubectl(
        host,
        Path(host.environ.get("KUBECONFIG") or file),
        "view",
        "-o",
        "jsonpath={.current-context}",
    ):
        _kubectl(host, file, "use-context", state.context)
    host.output.say(f"  kubectl --context {shlex.quote(state.context)} get nodes   ({file})")
    return state


# === 18 disk images ==================================================================================
def fetch_image(host: Host, config: QemuConfig, cache_dir: Path) -> Path:
    """The cloud image, copied to a file named by its SHA-256, as disks are overlays on it. A download of known digest that was
    cut off is taken up where it ended. Raises PrerequisiteError when it can't be had, ConfigError when its digest differs."""
    images = cache_dir / "images"
    images.mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(host, images / ".lock", timeout=3600):
        if config.image_sha256 and (images / config.image_sha256).is_file():
            return images / config.image_sha256
        part = images / f".{sha256_of(config.image.encode())[:16]}.part"
        for leftover in {*images.glob(".*.part")} - {
            part
        }:  # the lock is ours, so nobody is using them
            remove(leftover)
        hint = "`image` (and imageSha256) in the config can name any cloud image that this host can reach;\n"
        hint += "scripts/build-guest-image.sh makes one of Debian packages"
        digest = download(host, config.image, part, hint, config.image_sha256, "imageSha256")
        part.chmod(0o400)
        return part.replace(images / digest)


def parse_size(text: str) -> int:
    """Bytes of a size as qemu-img writes it: 20G, 512M, 1073741824."""
    return int(text.rstrip("KMGTkmgt")) << {"K": 10, "M": 20, "G": 30, "T": 40}.get(
        text[-1:].upper(), 0
    )


def image_info(host: Host, image: Path, named: str = "") -> dict[str, Any]:
    """What qemu-img says of a disk; ConfigError where it is not whole."""
    argv = ["qemu-img", "info", "--force-share", "--output=json", str(image)]
    info: dict[str, Any] = json.loads(host.run(argv, timeout=60).stdout)
    if "backing-filename" in info or "data-file" in info.get("format-specific", {}).get("data", {}):
        hint = "`qemu-img convert -O qcow2` makes a whole one of it"
        raise ConfigError(
            f"{named or image}: the image is not whole, it builds on another file", hint=hint
        )
    return info


def make_disk(host: Host, state: State, image: Path) -> None:
    """The boot disk: a qcow2 overlay on the image, grown to diskSize. What was imported is there already, and only grown."""
    info = image_info(host, image, state.image)
    wanted, size = parse_size(state.disk_size), info["virtual-size"]
    if state.imported and wanted > size:
        host.run(
            ["qemu-img", "resize", "-q", "-f", "qcow2", str(image), state.disk_size], timeout=120
        )
    elif not state.imported and wanted < size:
        why = f"diskSize {state.disk_size} is smaller than the image, which takes {size} bytes"
        raise ConfigError(why, hint="a disk can be larger than its image, never smaller")
    elif not state.imported:
        base = image.relative_to(state.cache_dir)  # so that a cacheDir can be moved
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", info["format"]]
        host.run(
            [*argv, str(state.files.disk), state.disk_size], timeout=120, cwd=Path(state.cache_dir)
        )


# --- libguestfs: what it needs of the host, and the data disk
KERNEL_REMEDY = r"""paste this; it lets today's kernels be read, and every later one:
printf '#!/bin/sh\nexec chmod 0644 "/boot/vmlinuz-$1"\n' | sudo tee /etc/kernel/postinst.d/zz-readable-kernel >/dev/null
sudo chmod 0755 /etc/kernel/postinst.d/zz-readable-kernel
sudo chmod 0644 /boot/vmlinuz-*"""


def check_host_kernel(
    host: Host, boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")
) -> None:
    """Raise where libguestfs could not read the kernel that it boots: the newest that has modules (source: supermin(1)).
    Only looks; other troubles are libguestfs's to tell. scripts/_check-host-kernel.sh is the same for shell scripts."""
    kernels = [
        str(path)
        for path in boot.glob("vmlinuz-*")
        if (modules / path.name[len("vmlinuz-") :]).is_dir()
    ]
    *_, newest = [
        "",
        *host.run(["sort", "-V"], timeout=20, stdin="\n".join(kernels)).stdout.splitlines(),
    ]
    if os.path.exists(newest) and not os.access(newest, os.R_OK):
        why = 'libguestfs boots it: "supermin exited with error status 1"'
        raise PrerequisiteError(f"{newest} can't be read, and {why}", hint=KERNEL_REMEDY)


def guestfs(host: Host, what: str, *argv: str) -> None:
    """Run a program of libguestfs, with KVM where that stands its trial."""
    given = {
        name: value
        for name, value in host.environ.items()
        if name.startswith(("LIBGUESTFS_", "SUPERMIN_"))
    }
    emulate = (
        {}
        if "LIBGUESTFS_BACKEND_SETTINGS" in given or kvm_works(host)
        else {"LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
    )
    env, steps = (
        host.child_env({"LIBGUESTFS_BACKEND": "direct", **emulate, **given}),
        Steps(host.output, host.monotonic),
    )
    host.run(argv, timeout=1800, env=env, waiting=lambda: steps.waiting(what))
    steps.done(what)


def check_data_disk(host: Host, path: str) -> None:
    """Raise, before anything is made, where a data disk can't be used, or not be made."""
    if not os.path.exists(path):
        host.need({"virt-format": "libguestfs-tools"})
        check_host_kernel(host)
    elif image_info(host, Path(path))["format"] != "qcow2":
        raise ConfigError(
            f"dataDisk {path} is no qcow2", hint="`qemu-img convert -O qcow2` makes one of it"
        )


def make_data_disk(host: Host, path: Path, size: str) -> None:
    """An empty ext4 volume at `path`, whole or not at all. What is there already stays as it is."""
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.urandom(4).hex()}.part")
    try:
        host.run(["qemu-img", "create", "-q", "-f", "qcow2", str(part), size], timeout=120)
        argv = [
            "virt-format",
            "--format=qcow2",
            "-a",
            str(part),
            "--partition=none",
            "--filesystem=ext4",
        ]
        guestfs(host, f"data disk {path} of {size}", *argv, f"--label={DATA_LABEL}")
        with contextlib.suppress(FileExistsError):  # another's came first, and may be in use by now
            os.link(part, path)
    finally:
        remove(part)


# --- bundles: a disk that leaves this host, and comes in
WINDOW = (
    1 << 28
)  # bytes that are laid out raw at a time on the way into a tar: what an export takes besides its result
QCOW2, RAW, VMDK = ("-O", "qcow2"), ("-O", "raw"), ("-O", "vmdk", "-o", "subformat=streamOptimized")
CONVERT: Mapping[str, tuple[str, ...]] = {"qcow2": QCOW2, "raw": RAW, "vmdk": VMDK, "gcp-tar": ()}
BUNDLE_README = """\
{name}: a boot disk exported by ycluster {version}. `sha256sum -c SHA256SUMS` checks what is here.

With ycluster:      ycluster import {disk} -c DIR && ycluster provision -c DIR
On Compute Engine:  (format gcp-tar) gcloud storage cp {disk} gs://BUCKET/
                    gcloud compute images create {name} --source-uri=gs://BUCKET/{disk}
By ssh:             ssh -i {name}-ssh -o UserKnownHostsFile=known_hosts -o HostKeyAlias={name} {user}@ADDRESS

Whoever has {name}-ssh gets in. known_hosts holds until the disk's cloud-init makes a new host key. No deadline is on the
disk: a budget begins where it starts, by ycluster or by the flags of `ycluster lifetime gcp-flags`.
"""


def write_disk(host: Host, disk: Path, form: str, target: Path, source: str = "qcow2") -> None:
    """The whole disk (its format: `source`), flattened, as a new file: a format of qemu-img's, or what Compute Engine imports."""
    if form == "gcp-tar":
        return _write_gcp_tar(host, disk, target)
    argv = ["qemu-img", "convert", "-f", source, *CONVERT[form], str(disk), str(target)]
    steps, what = Steps(host.output, host.monotonic), f"writing {target.name}"
    target.touch()  # so that its size can be told from the beginning
    host.run(
        argv,
        timeout=6 * 3600,
        waiting=lambda: steps.waiting(f"{what}: {target.stat().st_blocks >> 11} MiB"),
    )
    steps.done(f"{target.name} of {target.stat().st_blocks >> 11} MiB")


def _write_gcp_tar(host: Host, disk: Path, target: Path) -> None:
    """A gzipped tar of disk.raw, sparse and whole GiB large (cloud.google.com/compute/docs/import/import-existing-image)."""
    import gzip

    found = json.loads(
        host.run(["qemu-img", "map", "-f", "qcow2", "--output=json", str(disk)], timeout=600).stdout
    )
    end = max(extent["start"] + extent["length"] for extent in found)
    spans = [
        (extent["start"], extent["start"] + extent["length"]) for extent in found if extent["data"]
    ]
    qcow2 = {"driver": "qcow2", "file": {"driver": "file", "filename": str(disk)}}
    window, steps = target.with_name(".window"), Steps(host.output, host.monotonic)
    with open(target, "xb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        packed.write(
            sparse_header(
                "disk.raw", -(-end >> 30) << 30, [(start, stop - start) for start, stop in spans]
            )
        )
        for at in range(0, end, WINDOW):
            behind = min(at + WINDOW, end)
            inside = [
                (max(start, at), min(stop, behind))
                for start, stop in spans
                if start < behind and at < stop
            ]
            if inside:
                part = {"driver": "raw", "offset": at, "size": behind - at, "file": qcow2}
                host.run(
                    ["qemu-img", "convert", "-O", "raw", "json:" + json.dumps(part), str(window)],
                    timeout=3600,
                )
            for start, stop in inside:
                with open(window, "rb") as source:
                    source.seek(start - at)
                    for offset in range(start, stop, 1 << 20):
                        packed.write(source.read(min(1 << 20, stop - offset)))
                        steps.waiting(f"writing {target.name}: {offset * 100 // end} %")
        packed.write(bytes(-packed.tell() % 512 + 1024))
    remove(window)
    steps.done(f"{target.name} of {target.stat().st_size >> 20} MiB")


def sparse_header(name: str, size: int, spans: Sequence[tuple[int, int]]) -> bytes:
    """What stands before the data of a sparse member of `size` bytes in a tar of the oldgnu format: `spans` are the
    offsets and lengths of its data (source: gnu.org/software/tar/manual/html_node/Standard.html, struct oldgnu_header)."""
    import tarfile

    number = partial(tarfile.itn, digits=12, format=tarfile.GNU_FORMAT)  # type: ignore[attr-defined]
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.size = (
        tarfile.GNUTYPE_SPARSE,
        0o644,
        sum(length for _, length in spans),
    )
    entries = [number(start) + number(length) for start, length in [*spans, (size, 0)]]
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:482] = b"".join(entries[:4]).ljust(96, b"\0")
    head[482:495] = bytes([len(entries) > 4]) + number(size)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    for i in range(4, len(entries), 21):
        head += b"".join(entries[i : i + 21]).ljust(504, b"\0") + bytes(
            [len(entries) > i + 21]
        ).ljust(8, b"\0")
    return bytes(head)


# === 19 commands =====================================================================================
# --- which cluster
def files_of(host: Host, config: QemuConfig) -> Files:
    return Files((config.cache_dir or host.cache_home()).resolve(), config.name)


def fate(host: Host, name: str = "", place: str = "") -> str:
    """What became of the cluster (of the last one, without a name) if its expiry has torn it down: a line, or nothing."""
    with contextlib.suppress(OSError, YclusterError):
        lines = (
            (host.state_home() / "events.jsonl")
            .read_text(encoding="utf-8", errors="replace")
            .splitlines()
        )
        for line in reversed(lines):
            with contextlib.suppress(
                ValueError, LookupError, TypeError, RecursionError
            ):  # half a line, or rubbish
                event = json.loads(line)
                what, who = event["event"], (event["name"], event["cacheDir"])
                if (
                    what in ("started", "reaped", "failed")
                    and name in ("", who[0])
                    and place in ("", who[1])
                ):
                    if what != "reaped" or event["action"] != "teardown":
                        break
                    record = Reaped(
                        parse_time(event["at"]), event["action"], event["by"], event["how"]
                    )
                    return f"{who[0]}{past(State(*who, lifetime=event['maxRun'], reaped=record))}\n"
    return ""


def find_cluster(host: Host, *, context: str = "", name: str = "") -> Files:
    """The one cluster that is meant: the named one; else the only one; else that of the context `local`."""
    found = every = discover(host)
    which = f"named {name}" if name else f"with the context {context or 'local'}"
    if not every:
        hint = f"{'' if context else fate(host, name)}`ycluster provision -c DIR` makes one"
        raise StateError(
            f"there is no cluster {which if name or context else 'yet'}: there are none at all",
            hint=hint,
        )
    if name:
        found = [files for files in every if files.name == name]
    elif context or len(every) > 1:
        found = [files for files, state in readable(host) if state.context == (context or "local")]
    if len(found) == 1:
        return found[0]
    known = "\n".join(f"--name {files.name}   (in {files.cache_dir})" for files in found or every)
    several = f"{len(found)} clusters {which}; -c DIR tells them apart:"
    raise StateError(
        several if found else f"no cluster {which}; there are:",
        hint=(fate(host, name) if name else "") + known,
    )


def current(host: Host, files: Files) -> State:
    """The cluster's state by the clock of now."""
    return adjusted(load_state(files), host.clock())


def readable(host: Host) -> list[tuple[Files, State]]:
    """The clusters whose sidecar can be read; a warning for each other. One bad sidecar never hides the rest."""
    found = []
    for files in discover(host):
        try:
            found.append((files, current(host, files)))
        except StateError as error:
            if os.path.lexists(files.sidecar):
                host.output.warn(str(error))
    return found


def require_qemu(config: Config) -> QemuConfig:
    """The config, where its provider is implemented."""
    if not isinstance(config, QemuConfig):
        raise NotImplementedYet(
            f"not yet implemented for {config.provider}", hint="`provider: qemu` is"
        )
    return config


def cluster_lock(
    host: Host, files: Files, *, patience: float = LOCK_TIMEOUT
) -> contextlib.AbstractContextManager[None]:
    """Hold a cluster's lock. Its file goes when the cluster has gone, or didn't come to be."""
    return locked(host, files.lock, timeout=patience, guards=files.sidecar)


@contextlib.contextmanager
def opened(host: Host, files: Files, *, patience: float = LOCK_TIMEOUT) -> Iterator[State]:
    """The state of an existing cluster, under its lock."""
    load_state(files)  # where there is none, this says so before anything is made
    with cluster_lock(host, files, patience=patience):
        saved = load_state(files)
        state = adjusted(saved, host.clock())
        if step := (state.expires_at or 0) - (saved.expires_at or 0):
            way = "forward" if step > 0 else "back"
            host.output.warn(
                f"{state.name}: the clock was set {way} by {in_words(step)}; its deadline moves along"
            )
        yield state


# --- life and death of a VM
def provision(host: Host, directory: Path) -> None:
    """Make a cluster and boot it. The deadline is saved and its timer armed before the guest gets to run."""
    config = require_qemu(load_config(directory))
    check_implemented(config)
    for warning in left_alone(config):
        host.output.warn(warning)
    _check_host(host)
    files = files_of(host, config)
    state, registries = (
        state_from_config(config, files.cache_dir),
        expand_variables(config.registries, host.environ),
    )
    sweep(host, by="next command", spare=files)
    check_context(host, [other for _, other in readable(host)], config, files)
    imported = _refuse_existing(files)
    _check_ports(host, state)
    if state.data_disk:
        check_data_disk(host, state.data_disk)
    if files.cache_dir.exists() and not files.cache_dir.is_dir():
        raise ConfigError(f"{config.file}: cacheDir {files.cache_dir} is not a directory")
    files.cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Outside the lock: both take long, and touch no cluster.
    image = files.disk if imported else fetch_image(host, config, files.cache_dir)
    if config.k3s.install == "airgap":
        fetch_k3s(host, config.k3s.version, config.k3s.source)
    if state.data_disk:
        make_data_disk(host, Path(state.data_disk), config.data_disk_size)
    with cluster_lock(host, files):
        state = replace(state, imported=_refuse_existing(files))
        if state.imported != imported:
            raise YclusterError(
                f"{files.name}: its disk was imported or removed meanwhile", hint="run it again"
            )
        remember_cache_dir(host, files.cache_dir)
        try:  # from nothing to a running QEMU, or nothing at all
            save_state(state)  # the first: from here on it is known, whatever kills us
            make_keys(host, state)
            make_disk(host, state, image)
            make_seed(state, registries)
            state = _boot(host, state)
        except BaseException:
            if not running(files):
                _erase(host, state, keep_disk=bool(state.imported))
                if state.imported:  # for the next provision
                    save_state(state)
            raise
    _finish_boot(host, state)


def _check_host(host: Host) -> None:
    """Raise, before anything is made, where a VM could not be started, or not be stopped again."""
    host.need(
        {
            QEMU: "qemu-system-x86",
            "qemu-img": "qemu-utils",
            "ssh": "openssh-client",
            "ssh-keygen": "openssh-client",
        }
    )
    try:
        os.close(pidfd_open(os.getpid()))
    except OSError as error:
        raise PrerequisiteError(
            f"pidfd_open: {error.strerror}", hint="Linux 5.3 or later is needed"
        ) from None
    timers_for(host)


def _refuse_existing(files: Files) -> str:
    """Raise when the name is taken. What a provision left that was killed before its first boot is nobody's. Returns where
    the disk that waits for its first boot was imported from; empty where none was."""
    if running(files):
        raise YclusterError(
            f"{files.name} already runs", hint=f"`ycluster teardown --name {files.name}` removes it"
        )
    if files.sidecar.exists():
        if _half_made(state := load_state(files)):
            return state.imported
        way_out = f"`ycluster start --name {files.name}` starts it, `ycluster teardown --name {files.name}` removes it"
        raise YclusterError(f"{files.name} already exists in {files.cache_dir}", hint=way_out)
    for path in (files.disk, files.ssh_key, files.ssh_pub, *files.disposable()):
        ours = path == files.incoming  # an import's that was killed
        if (path.is_dir() and not ours) or (path == files.disk and path.exists()):
            what = "a directory" if path.is_dir() else "a disk"
            hint = "move it away, or choose another name; `ycluster import` makes a cluster's disk of a copy"
            raise YclusterError(f"{path}: {what} is there that no cluster claims", hint=hint)
    return ""


def _half_made(state: State) -> bool:
    """Never booted. Only our own sidecars name an image: a sibling's has no startedAt either, and its disk holds data."""
    return bool(state.image) and state.started_at is None


def _check_ports(host: Host, state: State) -> None:
    """Raise, and name who has it, where QEMU could not bind a port."""
    import socket

    taken = []
    for port in filter(None, (forward.host for forward in forwards(state))):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((state.bind_address, port))
            except OSError:
                taken.append(f"can't listen on port {port}: {port_owner(host, port)}")
    if taken:
        hint = 'set sshPort or portForwards in the config to other ports ("0": QEMU chooses)'
        raise PrerequisiteError("; ".join(taken), hint=hint)


def _boot(host: Host, state: State) -> State:
    """Anchor, save, arm, and only then run. A guest that didn't come to run leaves no deadline behind."""
    state = anchored(state, host.clock())
    try:
        state = save_state(launch(host, arm_timer(host, save_state(state))))
        log_event(
            host, state, "started", expiresAt=_encode_time(state.expires_at), accel=state.ran_with
        )
        return state
    except BaseException:
        if not running(state.files):
            disarm_timer(host, stopped(load_state(state.files)), None)
        raise


def _guarded(host: Host, state: State, *, anew: bool = False) -> State:
    """What a running cluster is owed: a deadline where it has a budget, a timer where it has a deadline; `anew`: a new one."""
    if state.disarmed and not anew:
        return state
    state = replace(state, timer=None if state.disarmed else state.timer)
    if state.expires_at is None and budget(state.lifetime) is not None:
        state = save_state(anchored(state, host.clock()))
    return arm_timer(host, state, fired=anew)


def _finish_boot(host: Host, state: State) -> None:
    """Wait without the lock, so that an extend, a stop or the reaper can get at the cluster meanwhile."""
    say_deadline(host, state)
    try:
        wait_ready(
            host,
            state,
            timeout=READY_TIMEOUT,
            more=k3s_stages(host, state) if state.has_k3s else (),
        )
        if state.has_k3s:
            with opened(host, state.files) as state:
                state = merge_kubeconfig(host, state)
    except Interrupted:
        host.output.say(
            f"{state.name} goes on booting; `ycluster stop --name {state.name}` ends it now"
        )
        raise
    host.output.say(f"{state.name} is ready: ycluster ssh --name {state.name}")


def say_deadline(host: Host, state: State) -> None:
    """One line on stderr: when it ends, in how long, how and by whom."""
    if budget(state.lifetime) is None:
        host.output.say(f"  {state.name} has no lifetime budget: it runs until you stop it")
    elif state.expires_at is not None:
        by = (
            "disarmed by hand"
            if state.disarmed
            else f"{state.on_expiry} by {state.timer.backend if state.timer else '?'}"
        )
        left = state.expires_at - host.now()
        when = f"in {in_words(left)}" if left > 0 else f"{in_words(left)} ago"
        host.output.say(f"  deadline {local_time(state.expires_at)}, {when}: {by}")


def start(host: Host, files: Files) -> None:
    """Boot a stopped cluster, with a fresh budget."""
    _check_host(host)
    sweep(host, by="next command", spare=files)
    with opened(host, files) as state:
        if (status := vm_status(host, files)) == "paused":
            raise YclusterError(
                f"{state.name} is paused", hint=f"`ycluster resume --name {state.name}` wakes it"
            )
        if status != "stopped":
            host.output.say(f"{state.name} already runs")
            state = _guarded(host, save_state(with_ports(host, state)))
            if not state.has_k3s:  # whose install may have been cut short
                return say_deadline(host, state)
        else:
            _require_disk(state)
            if state.data_disk and not os.path.exists(state.data_disk):
                raise StateError(
                    f"{state.name}: its data disk {state.data_disk} is gone",
                    hint="bring it back to that place",
                )
            _check_ports(host, state)
            state = _boot(host, state)
    _finish_boot(host, state)


def _require_disk(state: State) -> None:
    if _half_made(state) or not state.files.disk.exists():
        why = f"{state.name} has no disk to boot: its provision was cut off, or the disk was taken away"
        raise StateError(
            why,
            hint="`ycluster provision -c DIR` makes it anew; `ycluster teardown` clears the rest",
        )


def stop(host: Host, files: Files) -> None:
    """Power the guest off; the disk stays."""
    sweep(host, by="next command", spare=files)
    with opened(host, files) as state:
        how = _halt(host, state)
        disarm_timer(host, stopped(state), None)
    host.output.say(
        f"{state.name} is stopped" if how else f"{state.name} was not running{past(state)}"
    )


def _halt(host: Host, state: State) -> str:
    """Stop the VM; returns the rung of the ladder that ended it, empty where nothing ran."""
    how = ""
    while (
        True
    ):  # what was found may have been the launcher of a QEMU that has only now become a daemon
        with find_vm(state.files) as vm:
            if vm is None:
                break
            host.output.say(f"stopping {state.name} (pid {vm.pid})")
            how = stop_vm(
                host,
                state.files,
                vm,
                lambda: host.run(ssh_argv(state, "sudo sync; sudo poweroff"), timeout=15),
            )
    with contextlib.suppress(
        OSError
    ):  # stale, they do no harm; on a read-only disk they have to stay
        remove(state.files.pidfile)
        remove(state.files.qmp)
    return how


def pause(host: Host, files: Files) -> None:
    """Freeze the guest: its memory stays, its CPUs stand still. The deadline goes on counting."""
    with opened(host, files) as state, find_vm(files) as vm:
        if vm is None:
            raise YclusterError(
                f"{state.name} is not running{past(state)}", hint="there is nothing to pause"
            )
        pause_vm(host, files, vm)
    host.output.say(f"{state.name} is paused")
    say_deadline(host, state)


def resume(host: Host, files: Files) -> None:
    """Let a paused guest go on; with a fresh budget where the old one is used up."""
    sweep(host, by="next command", spare=files)
    with opened(host, files) as state, find_vm(files) as vm:
        if vm is None:
            hint = f"`ycluster start --name {state.name}` starts it, with a fresh budget"
            raise YclusterError(f"{state.name} is stopped{past(state)}", hint=hint)
        halted = vm_status(host, files) != "running"
        if (
            halted
            and state.expires_at is not None
            and state.expires_at <= host.now()
            and not state.disarmed
        ):
            state = anchored(state, host.clock())
        state = _guarded(host, state)
        if halted:
            resume_vm(host, files, vm)
            if (now := vm_status(host, files)) != "running":
                raise YclusterError(
                    f"{state.name} does not go on: its state is {now}", hint=f"see {files.console}"
                )
    host.output.say(f"{state.name} runs")
    say_deadline(host, state)


def teardown(host: Host, files: Files, *, keep_disk: bool = False) -> None:
    """Stop the VM and remove the cluster's own files, and nothing else; says which. Twice is once."""
    if not (os.path.lexists(files.sidecar) or files.lock.exists() or running(files)):
        return host.output.say(f"{files.name}: nothing to tear down in {files.cache_dir}")
    with cluster_lock(host, files):
        known = os.path.lexists(files.sidecar)
        state = (
            load_state(files) if known else State(name=files.name, cache_dir=str(files.cache_dir))
        )
        _halt(host, state)
        # A VM whose sidecar is gone is stopped; what was on its disk only a cluster's teardown may take.
        removed = _erase(host, state, keep_disk=keep_disk or not known)
    host.output.say(f"{files.name} is torn down; removed: {' '.join(removed)}")
    if kept := [
        str(path)
        for path in (files.disk, files.ssh_key, state.data_disk)
        if path and os.path.exists(path)
    ]:
        host.output.say(f"  kept: {' '.join(kept)}")


def _erase(host: Host, state: State, *, keep_disk: bool = False) -> list[str]:
    """Remove the cluster's files; returns their names. What its timer needs goes last, for a teardown that is cut off."""
    files = state.files
    disk = [] if keep_disk else [files.disk, files.ssh_key, files.ssh_pub]
    removed = [path.name for path in [*disk, *files.disposable()] if remove(path)]
    try:
        forget_kubeconfig(host, state)
    except (YclusterError, OSError, ValueError, LookupError) as error:
        host.output.warn(f"{state.kubeconfig}: {error}; the names of {state.name} are still in it")
    cancel_timer(host, files, state.timer)
    return removed + [path.name for path in (files.program, files.sidecar) if remove(path)]


# --- a disk that leaves, and one that comes
def prepare_export(host: Host, files: Files) -> None:
    """Make the boot disk fit to boot elsewhere: what it knows of this host and this network goes, its machine-id and its
    login stay. It is stopped for that, and its deadline is cleared. Any number of times; what was cut off is taken up."""
    with opened(host, files) as state:
        _require_disk(state)
        now = vm_status(host, files)
        if now != "running" and not (now == "stopped" and state.prepared):
            hint = f"`ycluster {'resume' if now == 'paused' else 'start'} --name {state.name}`; some of the work is the guest's own"
            raise YclusterError(f"{state.name} is {now}, so its disk can't be prepared", hint=hint)
        host.need({"virt-customize": "libguestfs-tools"})
        check_host_kernel(host)
        if now == "running":
            done = host.run(
                ssh_argv(state, f"sudo sh -c {shlex.quote(PREPARE_LIVE)}"), timeout=300, check=False
            )
            if done.returncode:
                why = done.stderr.strip() or f"exit {done.returncode}"
                raise YclusterError(
                    f"{state.name}: the guest could not prepare itself: {why}",
                    hint="it runs on as before",
                )
            if "no-time-sync" in done.stdout:
                host.output.warn(
                    f"{state.name}: no time service is installed in the guest; its clock will drift"
                )
            how = _halt(host, state)
            clean = how in ("guest-shutdown", "ssh poweroff")
            state = disarm_timer(
                host, replace(stopped(state), prepared="live" if clean else ""), None
            )
            if not clean:
                hint = f"`ycluster start --name {state.name}` lets it mend its disk; then prepare it again"
                raise YclusterError(f"{state.name} did not shut down by itself ({how})", hint=hint)
        try:
            argv = [
                "virt-customize",
                "--quiet",
                "--no-network",
                "--format",
                "qcow2",
                "-a",
                str(files.disk),
            ]
            guestfs(host, "offline phase", *argv, "--run-command", PREPARE_OFFLINE)
        except YclusterError as error:
            hint = "`ycluster prepare-export` again takes it up; `ycluster start` boots it as it is"
            raise YclusterError(
                f"{state.name} is stopped, and its disk half prepared: {error}", hint=hint
            ) from error
        save_state(replace(state, prepared="done"))
    host.output.say(
        f"{state.name} is prepared: `ycluster export BUNDLE_DIR --name {state.name}` writes its disk"
    )


def export(host: Host, files: Files, bundle: Path, form: str) -> None:
    """Write the boot disk, flattened, with its keys, checksums and a README into a new folder, whole or not at all."""
    bundle = bundle.resolve()
    with opened(host, files) as state:
        if running(files):
            hint = f"`ycluster prepare-export --name {state.name}` stops and prepares it"
            raise YclusterError(f"{state.name} runs", hint=hint)
        _require_disk(state)
        if os.path.lexists(bundle) and (not bundle.is_dir() or any(bundle.iterdir())):
            raise UsageError(
                f"{bundle} is not an empty folder",
                hint="nothing is ever overwritten; name a new one",
            )
        if state.prepared != "done":
            host.output.warn(
                f"{state.name} is not prepared; its disk knows this network. `ycluster prepare-export` mends it"
            )
        if state.data_disk:
            host.output.warn(f"the data disk {state.data_disk} is not part of the bundle")
        part = bundle.with_name(f".{bundle.name}.part")
        try:
            part.mkdir(mode=0o700)
        except FileExistsError:
            hint = f"if not, what was left can go: rm -r {shlex.quote(str(part))}"
            raise YclusterError(
                f"another export to {bundle} is at work, or was killed", hint=hint
            ) from None
        try:
            disk = part / (state.name + (".tar.gz" if form == "gcp-tar" else f".{form}"))
            write_disk(host, files.disk, form, disk)
            for path in filter(Path.exists, (files.ssh_key, files.ssh_pub, files.known_hosts)):
                write_file(
                    part / path.name.replace(f"{state.name}-known", "known"), path.read_bytes()
                )
            readme = BUNDLE_README.format(
                name=state.name, version=VERSION, disk=disk.name, user=state.ssh_user
            )
            write_file(part / "README", readme.encode())
            steps, names = (
                Steps(host.output, host.monotonic),
                sorted(path.name for path in part.iterdir()),
            )
            sums = host.run(
                ["sha256sum", *names],
                timeout=3600,
                cwd=part,
                waiting=lambda: steps.waiting("checksums"),
            )
            write_file(part / "SHA256SUMS", sums.stdout.encode())
            part.rename(bundle)
        finally:
            remove(part)
    host.output.data(str(bundle))


def import_disk(host: Host, disk: Path, directory: Path) -> None:
    """Make a cluster's boot disk of `disk`: any whole one that qemu-img reads, or a tar with a disk.raw. It is held to the
    SHA256SUMS beside it. `provision` then boots it. Raises YclusterError where the cluster exists, or `disk` is none."""
    config = require_qemu(load_config(directory))
    host.need({"qemu-img": "qemu-utils"})
    files, disk = files_of(host, config), disk.resolve()
    if not disk.is_file():
        raise UsageError(
            f"{disk}: no such file", hint="the disk itself is wanted, not the folder of a bundle"
        )
    _refuse_existing(files)
    sums = disk.with_name("SHA256SUMS")
    if sums.exists() and disk.name in sums.read_text(encoding="utf-8", errors="replace"):
        argv = ["sha256sum", "-c", "--quiet", "--ignore-missing", sums.name]
        if host.run(argv, timeout=3600, cwd=disk.parent, check=False).returncode:
            raise ConfigError(
                f"{disk}: its SHA-256 is not that of {sums}",
                hint="it was damaged or changed on its way here",
            )
    files.cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with cluster_lock(host, files):
        _refuse_existing(files)
        try:
            remove(files.incoming)
            files.incoming.mkdir(mode=0o700, parents=True, exist_ok=True)
            source, made = disk, files.incoming / files.disk.name
            with open(disk, "rb") as file:
                if file.read(2) == b"\x1f\x8b":  # gzip
                    source = files.incoming / "disk.raw"
                    host.run(
                        ["tar", "-xzf", str(disk), "-C", str(files.incoming), source.name],
                        timeout=6 * 3600,
                    )
            write_disk(host, source, "qcow2", made, image_info(host, source)["format"])
            # The mark first: killed between the two, the next provision asks for a disk instead of making one.
            save_state(replace(state_from_config(config, files.cache_dir), imported=str(disk)))
            made.replace(files.disk)
        finally:
            remove(files.incoming)
    remember_cache_dir(host, files.cache_dir)
    host.output.say(
        f"{files.name}: {disk} is imported; `ycluster provision -c {shlex.quote(str(directory))}` boots it"
    )


# --- lifetime
EVERY = Files(Path(), "")  # what --all names


def reap(
    host: Host, files: Files, *, by: str, wait: float = 0.0, patience: float = LOCK_TIMEOUT
) -> None:
    """Carry out the expiry if it is due; re-arm, and warn where that is due, if it is not; say so if nothing is armed. What is
    at most `wait` seconds away is waited for. Raises YclusterError when the action failed; it is then tried again."""
    if wait:
        ahead = wake_time(current(host, files)) - host.now()
        host.sleep(ahead if ahead <= wait else 0)
    with opened(host, files, patience=patience) as state:
        decision = decide(state, host.clock())
        if decision.do == "nothing":
            host.output.say(f"{state.name}: nothing to reap: {decision.why}")
        elif decision.do in ("rearm", "warn"):
            state = replace(
                state, warned=state.expires_at if decision.do == "warn" else state.warned
            )
            state = arm_timer(
                host, state, fired=state.timer is not None and state.timer.backend == by
            )
            host.output.say(
                f"{state.name}: {decision.why}; armed by {state.timer.backend if state.timer else '-'}"
            )
        else:
            host.output.say(
                f"{format_time(host.now())} {state.name}: {decision.why}: {decision.do} (by {by})"
            )
            _expire(host, state, decision.do, by)
    if decision.do == "warn":  # without the lock: whoever is warned may want to extend
        _warn(host, state)


def _warn(host: Host, state: State) -> None:
    """Tell the user that the deadline comes, everywhere where it may be seen; and run their command, with the facts."""
    left = (state.expires_at or 0) - host.now()
    end = f"{state.name} will be {PAST[state.on_expiry]} in {in_words(left)}, at {local_time(state.expires_at or 0)}"
    way_out = f"`ycluster lifetime extend 2h --name {state.name}` gives it more time"
    host.output.say(f"{format_time(host.now())} {end}; {way_out}")
    log_event(host, state, "warned", expiresAt=_encode_time(state.expires_at))
    host.tell_terminals(f"ycluster: {end}; {way_out}")
    if host.which("notify-send"):
        host.attempt(["notify-send", "--app-name=ycluster", end, way_out], timeout=5)
    facts = {
        "NAME": state.name, "CONTEXT": state.context, "STATE": str(state.files.sidecar), "ON_EXPIRY": state.on_expiry,
        "EXPIRES_AT": _encode_time(state.expires_at), "REMAINING_SECONDS": str(int(left)),
    }  # fmt: skip
    if state.on_warn:
        env = host.child_env({f"YCLUSTER_{name}": value for name, value in facts.items()})
        try:  # no longer than there is time: a watcher waits for it, and has a deadline to keep
            host.run(
                ["sh", "-c", state.on_warn], timeout=max(1.0, min(NOTICE_TIMEOUT, left)), env=env
            )
        except YclusterError as error:
            host.output.warn(f"{state.name}: lifetime.onWarn: {error}")


def _expire(host: Host, state: State, action: str, by: str) -> None:
    """Act, with a second try armed first: should this one fail or be killed, the VM is not left without a guard."""
    again = int(host.now() + retry_delay(host.now() - (state.expires_at or 0)))
    try:
        state = arm_timer(host, replace(state, retry_at=again), fired=True)
    except (YclusterError, OSError) as error:
        host.output.warn(f"{state.name}: no second try can be armed: {error}")
    done = "failed"
    try:
        if action == "pause":
            with find_vm(state.files) as vm:
                how = pause_vm(host, state.files, vm) if vm else ""
        else:
            how = _halt(host, state)
        # A start that was cut off before QEMU ran, or a stop by the sibling, which leaves its deadline behind, must
        # not cost a disk: what never ran in this budget has nothing to be torn down for.
        action = "stop" if action == "teardown" and not (how or state.ran_with) else action
        record = Reaped(at=int(host.now()), action=action, by=by, how=how or "was not running")
        host.output.say(f"{format_time(host.now())} {state.name}: {action}: {record.how}")
        late = record.at - (state.expires_at or record.at)
        log_event(
            host,
            state,
            "reaped",
            action=action,
            by=by,
            how=record.how,
            maxRun=state.lifetime,
            late=late,
        )
        done = "is done, but can't be written down"
        if action == "teardown":
            _erase(host, state)
        else:
            disarm_timer(host, replace(stopped(state), reaped=record), None)
    except Exception as error:
        log_event(host, state, "failed", action=action, by=by, error=str(error))
        raise YclusterError(
            f"{state.name}: {action} {done}, again at {local_time(again)}: {error}"
        ) from error


def sweep(host: Host, *, by: str, spare: Files | None = None, every: bool = False) -> list[str]:
    """Reap whatever is overdue or has no timer for its deadline (`every`: the others, too); returns the names of those that
    could not be. One that fails keeps no other from it; one that is busy is left alone."""
    failed = []
    for files in (files for files in discover(host) if files != spare):
        try:
            due = due_time(state := current(host, files))
            lost = due < float("inf") and not (
                state.timer and state.timer.deadline == due and is_armed(host, state)
            )
            if every or lost or wake_time(state) <= host.now():
                reap(host, files, by=by, patience=LOCK_TIMEOUT if every else 0.5)
        except Busy:
            failed.append(files.name)
        except Exception as error:
            if os.path.lexists(files.sidecar):
                host.output.warn(f"{files.name}: {error}")
                failed.append(files.name)
    return failed


def extend(
    host: Host, files: Files, nanoseconds: int | None = None, *, from_now: int | None = None, until: str | None = None, dry_run: bool = False
) -> None:  # fmt: skip
    """Push the deadline out and re-arm. It never reaps first, even where the deadline has passed."""
    moment = None if from_now is None else int(host.now()) + -(-from_now // 10**9)
    if until is not None:
        try:
            moment = parse_until(until, host.now())
        except ValueError as error:
            raise UsageError(
                f"--until {error}", hint="such as 18:00, or 2026-01-31T18:00:00Z"
            ) from None
    with opened(host, files) as before:
        state = extended(before, nanoseconds or 0, host.clock(), until=moment)
        by = (state.expires_at or 0) - (before.expires_at or 0)
        if not dry_run:
            state = _guarded(host, save_state(state))
            log_event(host, state, "extended", seconds=by, expiresAt=_encode_time(state.expires_at))
    done = "would be extended" if dry_run else "extended"
    host.output.say(
        f"{state.name}: {f'{done} by {in_words(by)}' if by else 'its deadline is no earlier already'}"
    )
    say_deadline(host, state)


def positive_duration(text: str) -> int:
    """Nanoseconds of a duration on the command line."""
    try:
        if (nanoseconds := parse_duration(text)) > 0:
            return nanoseconds
    except ValueError as error:
        raise UsageError(str(error), hint="a Go duration, such as 2h or 1h30m") from None
    raise UsageError(f"{text}: wants a positive duration, such as 2h")


def arm(host: Host, files: Files) -> None:
    """(Re)install the timer; a running cluster that has a budget and no deadline gets one from now."""
    with opened(host, files) as state:
        if budget(state.lifetime) is None and state.expires_at is None:
            raise YclusterError(
                f"{state.name} has no lifetime budget", hint="lifetime.maxRun in the config sets it"
            )
        if state.expires_at is None and not running(files):
            raise YclusterError(
                f"{state.name} is not running", hint="`ycluster start` gives it a fresh budget"
            )
        state = _guarded(host, state, anew=True)  # there may be a better timer by now
    say_deadline(host, state)


def disarm(host: Host, files: Files) -> None:
    """Take the timer away; the deadline stays written down, and nothing acts on it until `arm` or a start."""
    with opened(host, files) as state:
        if state.expires_at is None:
            return host.output.say(f"{state.name}: nothing is armed")
        disarm_timer(host, state, ArmedTimer("none", "", state.expires_at))
    host.output.say(f"{state.name} is disarmed: it runs until you stop it")


def watch(host: Host, files: Files, *, by: str) -> None:
    """Wait for a cluster's deadline and reap it; ends when none is left. As the detached watcher (`by` watcher) it holds the
    watch lock, ends when the sidecar no longer names it, and lets go under the cluster's lock: no arming counts on it then."""
    while files == EVERY:  # the timer of a host that has none
        sweep(host, by="watch --all")
        ahead = [wake_time(state) - host.now() for _, state in readable(host)]
        host.sleep(min([WATCH_INTERVAL, *(left for left in ahead if left > 0)]))
    load_state(files)
    fd = take_flock(host, files.watch_lock, timeout=2) if by == "watcher" else None
    if by == "watcher" and fd is None:
        return
    while (
        files.sidecar.exists()
    ):  # torn down, our lock file with it: a new cluster of this name gets a new watcher
        try:
            if not _watched(files, by):
                with cluster_lock(host, files):
                    if not _watched(files, by):
                        if fd is not None:
                            os.close(fd)
                        return
            if (wake := wake_time(current(host, files))) <= host.now():
                reap(host, files, by=by)
        except Exception as error:  # whatever it is, a watcher that ends guards nothing
            host.output.warn(f"{files.name}: {error}")
            wake = host.now() + WATCH_INTERVAL
        host.sleep(min(WATCH_INTERVAL, wake - host.now()))


def _watched(files: Files, by: str) -> bool:
    """Whether there is still something to wait for. A sidecar that can't be read is no reason to leave a VM."""
    try:
        state = load_state(files)
    except StateError:
        return files.sidecar.exists() and running(files)
    named = state.timer is not None and state.timer.backend == "watcher"
    return named if by == "watcher" else wake_time(state) < float("inf")


# --- looking
def describe(host: Host, state: State) -> dict[str, Any]:
    """What `list -o json` and `status -o json` show of a cluster (shape version 1)."""
    left, warns = (
        None if state.expires_at is None else int(state.expires_at - host.now()),
        warn_time(state),
    )
    return {
        "name": state.name, "context": state.context, "state": vm_status(host, state.files), "maxRun": state.lifetime,
        "onExpiry": state.on_expiry, "startedAt": _encode_time(state.started_at), "expiresAt": _encode_time(state.expires_at),
        "retryAt": _encode_time(state.retry_at), "remainingSeconds": left, "warnsAt": format_time(warns) if warns < float("inf") else "",
        "disarmed": state.disarmed, "reaped": _encode_record(state.reaped), "sshPort": state.ssh_port,
        "portForwards": [{"host": forward.host, "guest": forward.guest} for forward in state.port_forwards],
        "kubeconfig": state.kubeconfig, "accel": state.ran_with, "disk": str(state.files.disk), "cacheDir": state.cache_dir,
    }  # fmt: skip


def port_words(shown: Mapping[str, Any]) -> str:
    """The forwarded ports, without ssh's: `8080->80 6443`."""
    pairs = (forward.values() for forward in shown["portForwards"])
    return (
        " ".join(f"{host}->{guest}" if host != guest else str(host) for host, guest in pairs) or "-"
    )


def left_words(shown: Mapping[str, Any], bar: bool = False) -> str:
    """What `list` has under LEFT; with a bar of the time since its start."""
    if (left := shown["remainingSeconds"]) is None:
        return "-"
    if shown.get("disarmed"):
        return "disarmed"
    words = in_words(left) if left > 0 else f"OVERDUE {in_words(left)}"
    if not bar or not shown["startedAt"]:
        return words
    whole = max(1, parse_time(shown["expiresAt"]) - parse_time(shown["startedAt"]))
    return f"{'#' * round(10 * min(max(0, left), whole) / whole):.<10} {words}"


def list_clusters(host: Host, form: str) -> None:
    """Every cluster of this user as a table or JSON. It says what is overdue, and never acts."""
    found = [describe(host, state) for _, state in readable(host)]
    if form == "json":
        return host.output.data(to_json({"version": 1, "clusters": found}))
    if not found:
        return host.output.say(f"{fate(host)}no clusters; `ycluster provision -c DIR` makes one")
    rows = [["NAME", "STATE", "LEFT", "CONTEXT", "ON EXPIRY", "SSH", "PORTS", "CACHEDIR"]]
    for shown in found:
        row = [
            str(shown[name])
            for name in ("name", "state", "context", "onExpiry", "sshPort", "cacheDir")
        ]
        rows.append(
            [*row[:2], left_words(shown, host.output.shown), *row[2:5], port_words(shown), row[5]]
        )
    for line, shown in zip(
        table(rows, columns(1) if host.output.shown else 1 << 20).splitlines(), [{}, *found]
    ):
        colours = {
            "stopped": "2",
            "paused": "33",
            "unresponsive": "31",
            "unseen": "33",
        }  # dim, yellow, red (ECMA-48, SGR)
        overdue = shown and left_words(shown).startswith("OVERDUE")
        host.output.data(line, "31" if overdue else colours.get(shown.get("state", ""), ""))


class Finding(Record):
    """What doctor found of a thing; `level` is ok, warning or failure."""

    name: str
    level: str
    text: str = ""
    remedy: str = ""


def _look(name: str, level: str, act: Callable[..., object], *args: object) -> Finding:
    """Ok, unless `act` raises what is wrong, and then of that level."""
    try:
        act(*args)
    except (YclusterError, OSError) as error:
        return Finding(name, level, str(error), getattr(error, "hint", ""))
    return Finding(name, "ok")


def status(host: Host, files: Files, form: str, *, guard: bool = False) -> None:
    """One cluster; with `guard` (`lifetime status`) who enforces its deadline, else how to get at it."""
    state = current(host, files)
    shown = describe(host, state)
    if guard:
        backend, armed = (
            timer_named(state.timer.backend) if state.timer else None,
            is_armed(host, state),
        )
        better = TIMERS[: TIMERS.index(backend)] if backend else ()
        remedies = [
            remedy
            for timer in better
            if (remedy := _look(timer.name, "warning", timer.check, host).remedy)
        ]
        stands: dict[str, Any] = {
            "backend": backend.name if backend else "", "armed": armed,
            "nextFire": format_time(state.timer.deadline) if armed and state.timer else "",
            "survives": dict(backend.survives) if backend else {}, "improve": remedies[0] if remedies else "",
        }  # fmt: skip
        shown["enforcement"] = stands
    if form == "json":
        return host.output.data(to_json({"version": 1, **shown}))
    limit = f"{state.lifetime} from each start, then {state.on_expiry}"
    rows = {
        "cluster:": f"{state.name} (context {state.context})", "state:": shown["state"] + (f" ({shown['accel']})" if shown["accel"] and shown["state"] != "stopped" else ""),
        "lifetime:": limit if budget(state.lifetime) is not None else "no budget (lifetime.maxRun is not set)",
        "deadline:": f"{local_time(state.expires_at or 0)} ({left_words(shown, host.output.shown)})" if shown["expiresAt"] else "",
        "warning:": shown["warnsAt"] and local_time(warn_time(state)),
        "retry:": shown["retryAt"] and f"the {state.on_expiry} is under way, or failed; again at {local_time(state.retry_at or 0)}",
        "expired:": past(state)[2:],
    }  # fmt: skip
    if not guard:
        reach = [
            "kubectl",
            "--kubeconfig",
            state.kubeconfig,
            "--context",
            state.context,
            "get",
            "nodes",
        ]
        rows.update({"ports:": port_words(shown), "ssh:": shlex.join(ssh_argv(state))})
        rows.update({"kubectl:": state.kubeconfig and shlex.join(reach), "disk:": shown["disk"]})
    elif state.expires_at is not None:
        stand = (
            stands["backend"] if stands["armed"] else "NOTHING: `ycluster lifetime arm` mends it"
        )
        rows["guard:"] = "disarmed by hand" if state.disarmed else stand
        rows.update({f"  {what}:": how for what, how in stands["survives"].items()})
        rows["  better:"] = (
            stands["improve"] and f"`{stands['improve']}`, then `ycluster lifetime arm`"
        )
    host.output.data(table([(name, text) for name, text in rows.items() if text]))


def doctor(host: Host, form: str) -> int:
    """What this host can do, what is left over on it, and the command that mends each. It changes nothing."""
    troubles = [finding for finding in _of_clusters(host) if finding.level != "ok"]
    found = [*_of_host(host), *(troubles or [Finding("clusters", "ok", "nothing is left over")])]
    if form == "json":
        host.output.data(to_json({"version": 1, "findings": [vars(finding) for finding in found]}))
    else:
        rows = table([[finding.level, finding.name, finding.text] for finding in found])
        for line, finding in zip(rows.splitlines(), found):
            host.output.data("\n    ".join([line, *finding.remedy.splitlines()]))
    return (
        PrerequisiteError.exit_code if any(finding.level == "failure" for finding in found) else 0
    )


def _of_host(host: Host) -> Iterator[Finding]:
    yield _look("vm", "failure", _check_host, host)
    yield _look("kvm", "warning", try_kvm, host)
    yield from (_look(timer.name, "warning", timer.check, host) for timer in TIMERS[:-1])
    yield _look("libguestfs", "warning", host.need, {"virt-customize": "libguestfs-tools"})
    yield _look("host kernel", "warning", check_host_kernel, host)
    yield _look("kubectl", "warning", host.need, {"kubectl": "kubernetes-client"})
    yield _look("gcloud", "warning", host.need, {"gcloud": "google-cloud-cli"})
    kept = (
        host.attempt(["timedatectl", "show", "--property=NTPSynchronized", "--value"], timeout=10)
        != "no\n"
    )
    wrong = Finding("clock", "warning", "nothing keeps it right", "sudo timedatectl set-ntp true")
    yield Finding("clock", "ok") if kept else wrong


def _of_clusters(host: Host) -> Iterator[Finding]:
    """What is wrong with the clusters of this user, or left over of others."""
    every, states = discover(host), list[State]()
    for files in every:
        yield _look(files.name, "failure", lambda one: states.append(current(host, one)), files)
    for state in states:
        if due_time(state) < float("inf") and not is_armed(host, state):
            yield Finding(
                state.name,
                "failure",
                "no timer guards its deadline",
                f"ycluster lifetime arm --name {state.name}",
            )
        if state.expires_at is None and not running(state.files):
            yield _look(state.name, "warning", _check_ports, host, state)
    for place in sorted({files.cache_dir for files in every}):
        found = os.statvfs(place)
        if (free := found.f_bavail * found.f_frsize >> 30) < 10:
            yield Finding(
                "room",
                "warning",
                f"{place} has {free} GiB left; a disk grows to its diskSize",
                "ycluster teardown",
            )
        for disk in place.glob("*.qcow2"):
            if not disk.with_suffix(".json").exists():
                remedy = (
                    f"ycluster import {shlex.quote(str(disk))} -c DIR   (a copy; then remove it)"
                )
                yield Finding("disk", "warning", f"{disk}: no cluster claims it", remedy)
    for pid, pidfile in [
        (each, Path(path)) for each in pids() for path in pidfiles(each) if path.endswith(".pid")
    ]:
        files = Files(
            pidfile.parent, pidfile.stem
        )  # another user's cannot be seen into, and are none of ours
        if os.path.exists(files.vm_lock) and not os.path.exists(files.sidecar):
            yield Finding(
                "vm",
                "failure",
                f"{files.name} runs, its cluster is gone: nothing ends it",
                f"kill {pid}",
            )
    known = {
        ident for state in states if state.timer for ident in (state.timer.id, state.timer.warning)
    }
    ours = {
        str(state.files.sidecar) for state in states
    }  # others may be unreadable, or of a HOME that is not this one
    units = [
        "systemctl",
        "--user",
        "list-units",
        "--type=timer",
        "--plain",
        "--no-legend",
        "ycluster-reap-*",
    ]
    jobs = ["atq", "-q", AtTimer.QUEUE], "", "at -c", "atrm"
    for listing, suffix, show, remedy in (
        (units, ".timer", "systemctl --user show", "systemctl --user stop"),
        jobs,
    ):
        lines, stale = (host.attempt(listing, timeout=30) or "").splitlines(), []
        for ident in sorted(
            {line.split()[0][: -len(suffix) or None] for line in lines if line.strip()} - known
        ):
            serves = re.search(
                r"--state '?(.*?)'? --by ", host.attempt([*show.split(), ident], timeout=30) or ""
            )
            if serves and (serves[1] in ours or not os.path.exists(serves[1])):
                stale.append(ident + suffix)
        if stale:
            yield Finding(
                "timers",
                "warning",
                f"{len(stale)} that no cluster knows of",
                " ".join([remedy, *stale]),
            )


def ssh(host: Host, files: Files, command: Sequence[str]) -> int:
    """Log in, or run a command; returns its exit status. One word is a shell command; of several each arrives as it is."""
    state = load_state(files)
    if (now := vm_status(host, files)) in ("stopped", "paused"):
        hint = f"`ycluster {'start' if now == 'stopped' else 'resume'} --name {state.name}`"
        raise YclusterError(f"{state.name} is {now}{past(state)}", hint=hint)
    host.need({"ssh": "openssh-client"})
    words = command[command[:1] == ["--"] :]
    return host.interactive(ssh_argv(state, *(words if len(words) < 2 else [shlex.join(words)])))


def print_gcp_flags(host: Host, directory: Path, form: str, quiet: Sequence[str]) -> None:
    """The flags on one line (shell), one a line (lines) or as JSON; nothing at all where there is no budget."""
    config = load_config(directory)
    if flags := gcp_flags(config.lifetime.max_run, f"{config.file}: lifetime.maxRun"):
        written: Any = parse_yaml(config.file.read_text("utf-8"), str(config.file)).value
        said = written["lifetime"].value.get("onExpiry")
        for what, text in gcp_warnings(config, said and said.value).items():
            if not {what, "all"} & set(quiet):
                host.output.warn(f"{text} (--quiet={what} once it is settled)")
    host.output.data(
        to_json(flags) if form == "json" else (" " if form == "shell" else "\n").join(flags)
    )


def gcp_status(
    host: Host, instance: str, zone: str | None, project: str | None, form: str, *, stdin: Any
) -> None:
    """What `lifetime status` shows, of an instance of Compute Engine: its budget, its deadline, what is left."""
    place = [f"--{name}={value}" for name, value in (("zone", zone), ("project", project)) if value]
    if instance == "-":
        if place or stdin is None or stdin.isatty():
            raise UsageError(
                "gcp-status wants an INSTANCE, or its JSON (and no more) on stdin", hint=GCP_PIPE
            )
        text = stdin.buffer.read()
    else:
        if not host.which("gcloud"):
            raise PrerequisiteError(
                "missing: gcloud",
                hint=f"cloud.google.com/sdk/docs/install; or elsewhere: {GCP_PIPE}",
            )
        argv = ["gcloud", "compute", "instances", "describe", instance, "--format=json", *place]
        try:
            text = host.run(argv, timeout=120, env=host.environ).stdout
        except ProgramFailed as error:
            if "was not found" not in error.stderr:
                raise
            raise StateError(
                f"no instance {instance}: {error}", hint="if there was one, it has been deleted"
            ) from None
    try:
        shown = gcp_lifetime(text, host.now())
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        OverflowError,
        RecursionError,
    ) as error:
        why = f"{type(error).__name__}: {error}" if text.strip() else "it is empty"
        raise YclusterError(f"this is not the JSON of one instance: {why}", hint=GCP_PIPE) from None
    if form == "json":
        return host.output.data(to_json({"version": 1, **shown}))
    limit = (
        f"{shown['maxRun']} from each start"
        if shown["maxRun"]
        else f"until {shown['terminationTime']}"
    )
    ends = (
        f"{local_time(parse_time(shown['expiresAt']))} ({left_words(shown)})"
        if shown["expiresAt"]
        else ""
    )
    rows = {"instance:": f"{shown['name']} (zone {shown['zone']})", "state:": shown["state"]}
    if shown["maxRun"] or shown["terminationTime"]:
        rows["lifetime:"] = f"{limit}, then {shown['onExpiry']}"
        rows["deadline:"] = ends or f"nothing counts while it is {shown['state']}"
    else:
        change = f"gcloud compute instances set-scheduling {shown['name']} --zone={shown['zone']}"
        rows["lifetime:"] = (
            "no budget: NOTHING ends it. This gives it one, but only while it is TERMINATED:"
        )
        rows["  better:"] = change + " $(ycluster lifetime gcp-flags -c DIR)"
    host.output.data(table([*rows.items()]))


def config_check(host: Host, directory: Path) -> None:
    """One line where the config is good; ConfigError with every problem where it isn't."""
    config = load_config(directory)
    for warning in left_alone(config):
        host.output.warn(warning)
    expand_variables(config.registries, host.environ)
    limit = (
        f"{config.lifetime.max_run}, then {config.lifetime.on_expiry}"
        if budget(config.lifetime.max_run)
        else "none"
    )
    host.output.data(
        f"{config.file}: ok: {config.provider} cluster {config.name}, lifetime {limit}"
    )
    try:
        check_implemented(require_qemu(config))
    except NotImplementedYet as error:
        host.output.warn(f"provision will refuse it: {error}")


# === 20 CLI ==========================================================================================
def _files(host: Host, args: dict[str, Any]) -> Files:
    """The cluster that the command line names, by what is taken out of its arguments."""
    context, name, config = args.pop("context"), args.pop("name"), args.pop("config")
    sidecar, every = args.pop("sidecar", None), args.pop("every", False)
    if "" in (context, name):
        raise UsageError(
            "--context and --name want a name, and this one is empty", hint="an unset variable?"
        )
    if sidecar:
        path = Path(os.path.abspath(sidecar))
        if path.suffix != ".json":
            raise UsageError(f"{sidecar}: a sidecar is a .json file")
        return Files(path.parent.resolve(), path.stem)
    if config:
        files = files_of(host, require_qemu(load_config(config)))
        host.output.say(
            "" if os.path.lexists(files.sidecar) else fate(host, files.name, str(files.cache_dir)),
            end="",
        )
        return files
    return EVERY if every else find_cluster(host, context=context or "", name=name or "")


def _reap(host: Host, files: Files, by: str, wait: int) -> None:
    if files == EVERY:
        if failed := sweep(host, by=by, every=True):
            raise YclusterError(f"not reaped: {', '.join(failed)}")
        return None if discover(host) else host.output.say("no clusters")
    # A person may be told to come back; a timer fires once, so it waits for as long as the cluster is worked on.
    reap(
        host,
        files,
        by=by,
        wait=wait / 10**9,
        patience=LOCK_TIMEOUT if by == "hand" else float("inf"),
    )


def _schema(host: Host, which: str | None, write: Path | None) -> None:
    if not write:
        return host.output.data(to_json(schema_for(str(which))))
    if not write.is_dir():
        write.mkdir(parents=True)
        write.chmod(0o755)
    for which in KINDS:
        path = write / f"{which}.schema.json"
        write_file(path, (to_json(schema_for(which)) + "\n").encode("ascii"), mode=0o644)
        host.output.say(f"  {path}")


# What a shell loads; each asks us what the last of its words may be. bashcompinit is zsh's own.
_BASH = """_ycluster() { local word; COMPREPLY=(); while IFS= read -r word; do COMPREPLY+=("$word"); done < <(ycluster completion words "${COMP_WORDS[@]:1:$COMP_CWORD}" 2>/dev/null); }
complete -o default -F _ycluster ycluster"""
_FISH = "complete -c ycluster -f -a '(ycluster completion words (commandline -opc)[2..-1] (commandline -ct) 2>/dev/null; or __fish_complete_path (commandline -ct))'"


def completion(host: Host, shell: str, words: Sequence[str]) -> int:
    """What a shell loads; or (`words`), by the parser itself, what may stand in the place of the last word. 1: nothing known."""
    loads = {
        "bash": _BASH,
        "zsh": f"autoload -U bashcompinit && bashcompinit\n{_BASH}",
        "fish": _FISH,
    }
    parser, before, last, found = _parser(), words[:-1], "".join(words[-1:]), list[str]()
    for word in before:
        verbs = [
            action.choices
            for action in parser._actions
            if isinstance(action, argparse._SubParsersAction)
        ]
        parser = verbs[0].get(word, parser) if verbs else parser
    for action in [
        action
        for action in parser._actions
        if action.help != argparse.SUPPRESS and "--" not in before
    ]:
        if action.nargs != 0 and set(before[-1:]) & set(
            action.option_strings
        ):  # its value is wanted
            mine = action.dest in ("name", "context")
            found = (
                [getattr(state, action.dest) for _, state in readable(host)]
                if mine
                else [*(action.choices or ())]
            )
            break
        found += (
            action.option_strings
            if last.startswith("-")
            else ()
            if action.option_strings
            else action.choices or ()
        )
    found = (
        [loads[shell]]
        if shell in loads
        else sorted({word for word in found if word.startswith(last)})
    )
    host.output.data("\n".join(found))
    return 0 if found else 1


# fmt: off
def _arg(*names: str, **options: Any) -> Any:
    return lambda parser: parser.add_argument(*names, **options)

def _either(*arguments: Any, **options: Any) -> Any:
    """Arguments of which one is given at most; exactly one, if `required`."""
    return lambda parser: [add(group) for group in [parser.add_mutually_exclusive_group(**options)] for add in arguments]

class Verb(Record):
    """What the command line calls: `run`, with the host and, under their names, with its arguments."""

    takes: tuple[Any, ...]
    text: str
    run: Callable[..., object]
    more: tuple[Any, ...] = ()
    example: str = ""
    usage: str | None = None

def _forms(*forms: str) -> Any:
    return _arg("-o", dest="form", choices=forms, default=forms[0], help=f"default: {forms[0]}")

COMMON = (_arg("--verbose", action="store_true", default=argparse.SUPPRESS, help="show every program that is run, and tracebacks"),)
WHICH = (_arg("--context", metavar="CTX", help="the cluster of this kubeconfig context"), _arg("--name", help="the cluster of this name"),
    _arg("-c", "--config", metavar="DIR", type=Path, help="the cluster of the config in DIR"))
ONE = (*COMMON, _either(*WHICH))
CONF = (*COMMON, _arg("-c", "--config", dest="directory", metavar="DIR", type=Path, required=True, help="the config's directory"))
SOME = (*COMMON, _arg("--by", default="hand", help=argparse.SUPPRESS), _either(
    *WHICH, _arg("--all", dest="every", action="store_true", help="every cluster of yours"), _arg("--state", dest="sidecar", metavar="FILE", type=Path, help="the cluster of this sidecar")))
HOW_FAR = _either(
    _arg("nanoseconds", nargs="?", metavar="DURATION", type=positive_duration, help="a Go duration, such as 2h or 1h30m, behind the deadline"),
    _arg("--from-now", metavar="DURATION", type=positive_duration, help="at least so long from now"), _arg("--until", metavar="TIME", help="at least until the next 18:00, or an RFC 3339 time"), required=True)
LIKE = {COMMON: "", ONE: " --name dev", SOME: " --name dev", CONF: " -c examples/dev"}  # an example's end
GROUPS = {"lifetime": "the budget of a cluster and the timer that enforces it", "config": "look at a config"}
VERBS = {
    "provision": Verb(CONF, "create a cluster, boot it, wait until it is ready", provision),
    "start": Verb(ONE, "boot a stopped cluster, with a fresh budget", start),
    "stop": Verb(ONE, "power a cluster off; its disk stays", stop),
    "pause": Verb(ONE, "freeze a cluster; its memory stays", pause),
    "resume": Verb(ONE, "let a paused cluster go on", resume),
    "teardown": Verb(ONE, "stop a cluster and remove its files", teardown, (_arg("--keep-disk", action="store_true", help="keep the boot disk and its ssh key"),)),
    "doctor": Verb(COMMON, "what this host can do, and the command that mends what it can't", doctor, (_forms("text", "json"),)),
    "list": Verb(COMMON, "every cluster of yours", list_clusters, (_forms("table", "json"),)),
    "status": Verb(ONE, "one cluster", status, (_forms("text", "json"),)),
    "ssh": Verb(ONE, "log in, or run a command in the guest", ssh, (_arg("command", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run, in the guest's shell"),), "ycluster ssh --name demo -- uname -a"),
    "prepare-export": Verb(ONE, "make a cluster's disk fit to boot elsewhere; stops it", prepare_export),
    "export": Verb(ONE, "write a stopped cluster's disk, keys and checksums to a folder", export, (
        _arg("bundle", metavar="BUNDLE_DIR", type=Path, help="a new folder"), _arg("--format", dest="form", choices=CONVERT, default="qcow2", help="default: qcow2; gcp-tar is what Compute Engine imports")), "ycluster export ./bundle --format gcp-tar --name demo"),
    "import": Verb(CONF, "take a disk in for `provision` to boot", import_disk, (_arg("disk", metavar="DISK", type=Path, help="qcow2, raw, vmdk or an exported .tar.gz"),), "ycluster import bundle/demo.qcow2 -c examples/dev"),
    "completion": Verb(COMMON, "what bash, zsh or fish loads to complete words", completion, (_arg("shell", metavar="{bash,zsh,fish}", choices=("bash", "zsh", "fish", "words")), _arg("words", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)), 'eval "$(ycluster completion bash)"'),
    "schema": Verb(COMMON, "JSON Schema of the config", _schema, (_either(_arg("which", nargs="?", choices=KINDS), _arg("--write", metavar="DIR", type=Path, help="write them all to DIR"), required=True),), "ycluster schema qemu"),
    "lifetime status": Verb(ONE, "budget, deadline, and who enforces it", partial(status, guard=True), (_forms("text", "json"),)),
    "lifetime reap": Verb(SOME, "carry out the expiry if it is due, else re-arm", _reap, (_arg("--wait", metavar="DURATION", type=positive_duration, default=0, help=argparse.SUPPRESS),)),
    "lifetime watch": Verb(SOME, "wait in the foreground for deadlines and reap", watch),
    "lifetime extend": Verb(ONE, "push the deadline out", extend, (HOW_FAR, _arg("--dry-run", action="store_true", help="say what it would be; change nothing")), "ycluster lifetime extend 2h --name demo", "%(prog)s (DURATION | --from-now DURATION | --until TIME) [--dry-run] [--name NAME | ...]"),
    "lifetime arm": Verb(ONE, "(re)install the timer", arm),
    "lifetime disarm": Verb(ONE, "take the timer away; the cluster then runs until you stop it", disarm),
    "lifetime gcp-flags": Verb(CONF, "gcloud flags by which GCP deletes the instance", print_gcp_flags, (_forms("shell", "lines", "json"),
        _arg("--quiet", nargs="?", action="append", const="all", default=[], choices=("all", "onExpiry", "dataDisk", "restart"), help="leave out the warnings, or one of them")), "flags=$(ycluster lifetime gcp-flags -c DIR) && gcloud compute instances create vm $flags"),
    "lifetime gcp-status": Verb(COMMON, "budget and deadline of a Compute Engine instance", lambda host, **args: gcp_status(host, **args, stdin=sys.stdin), (
        _forms("text", "json"), _arg("--zone", help="--zone of gcloud"), _arg("--project", help="--project of gcloud"),
        _arg("instance", nargs="?", default="-", metavar="INSTANCE", help="what gcloud is asked for; -, the default, reads its JSON from stdin")), "ycluster lifetime gcp-status vm --zone=europe-west1-b"),
    "config check": Verb(CONF, "exit 0, or 3 with every problem", config_check),
    "config show": Verb(CONF, "the effective config as JSON", lambda host, directory: host.output.data(to_json(show_config(load_config(directory))))),
}
# fmt: on


def _parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line; with all verbs, or with the one that `argv` begins with: making all of them takes longer than most run."""
    vars(argparse)["_"] = (
        str  # nobody translates its words, and looking for that takes longer than the rest of this
    )
    like: Any = {
        "allow_abbrev": False,
        "formatter_class": partial(argparse.HelpFormatter, width=columns() - 2),
    }
    parser = argparse.ArgumentParser(
        prog="ycluster", description="Dev clusters that expire on their own.", **like
    )
    COMMON[0](parser)
    parser.add_argument("--version", action="version", version=f"ycluster {VERSION}")
    places = {"": parser.add_subparsers(metavar="VERB", required=True)}
    for path in {" ".join(argv[:1]), " ".join(argv[:2])}.intersection(VERBS) or VERBS:
        verb, (group, _, name) = VERBS[path], path.rpartition(" ")
        if group not in places:
            places[group] = places[""].add_parser(group, help=GROUPS[group], **like).add_subparsers(metavar="VERB", required=True)  # fmt: skip
        made = places[group].add_parser(
            name, help=verb.text, description=verb.text, usage=verb.usage, **like
        )
        made.epilog = f"example: {verb.example or f'ycluster {path}{LIKE[verb.takes]}'}"
        made.set_defaults(run=verb.run)
        for add in (*verb.takes, *verb.more):
            add(made)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The one place that prints errors and chooses the exit code."""

    def interrupt(signum: int, frame: object) -> NoReturn:
        raise Interrupted(f"interrupted by {signal.Signals(signum).name}")

    # Streams that take any text; a closed one swallows it.
    streams = [stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr)]  # noqa: SIM115
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    output = Output(
        *streams, colours=not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    )
    os.umask(
        0o077
    )  # what other programs write for us (keys, sockets, disks) is nobody else's business either
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # nohup
            signal.signal(signum, interrupt)
    signal.signal(
        signal.SIGTSTP, signal.SIG_IGN
    )  # asleep with a cluster's lock, it would keep the reaper out
    try:
        args = vars(_parser(argv := sys.argv[1:] if argv is None else argv).parse_args(argv))
        output.verbose = args.pop("verbose", False)
        host, run = Host(os.environ, output), args.pop("run")
        if "context" in args:
            args["files"] = _files(host, args)
        return run(host, **args) or 0
    except Interrupted as error:
        output.draw("")
        output.say(f"ycluster: {error}")
        return error.exit_code
    except BrokenPipeError:
        return 1  # whoever read stdout has gone; nothing is left to tell
    except Exception as error:
        if output.verbose:
            import traceback

            traceback.print_exc()
        if isinstance(error, OSError):
            error = YclusterError(
                f"{error.filename}: {error.strerror}"
                if error.filename
                else error.strerror or str(error)
            )
        elif not isinstance(error, YclusterError):
            why, hint = (
                f"internal error: {type(error).__name__}: {error}",
                "--verbose shows where; please report it",
            )
            error = YclusterError(why, hint=hint)
        output.draw("")
        output.error(error)
        return error.exit_code
    finally:
        try:
            sys.stdout.flush()
        except (OSError, ValueError, AttributeError):
            # The reader has gone, or the disk is full; Python's own last words would only add to it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run() -> NoReturn:
    """`main` as a process. Python's own way out takes 3 ms, to take apart what ends anyway; all that was said has been flushed."""
    os._exit(main())


if __name__ == "__main__":
    run()
