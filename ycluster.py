#!/usr/bin/env python3
"""ycluster: dev clusters that expire on their own.

A dev cluster left running after its task is finished is pure cost. Every cluster here gets a wall-clock
budget (`lifetime.maxRun`), counted from each start. A local QEMU cluster is stopped, paused or torn down by
a timer on its own host that fires `ycluster lifetime reap`; a cloud appliance is deleted by the cloud, by
the flags that `lifetime gcp-flags` prints. Nothing but the Python standard library (3.9 or later) is used.

How it flows: file -> `Config` -> `State` -> a pure decision or argv -> one effect. What decides is pure and
takes the time as an argument; what acts is small. A verb loads under the lock, decides, and acts.

The map: each section uses only what stands above it.
   1 constants          names, pins and bounds
   2 errors             one exception a kind; each carries its exit code and a remedy
   3 output             stdout carries data; progress, warnings and errors go to stderr
   4 host effects       `Host`: clock, environment, programs, files, locks. Nothing else touches them
   5 durations          Go's time.ParseDuration and Duration.String, and times for people
   6 YAML subset        `parse_yaml`: strict, every value with its line and column
   7 config and schema  `FIELDS`, the one declaration of a field; `load_config`; `schema_for`
   8 state sidecar      `State` <-> <cacheDir>/<name>.json; `Files`, what a cluster owns on disk; `discover`
   9 lifetime decisions `decide`, `anchored`, `extended`, `retry_delay`: pure
  10 timers             systemd --user, at(1) and the watcher behind one `Timer`; `arm_timer`
  11 gcloud flags       `gcp_flags`: pure
  12 QMP                `Qmp`, the client of QEMU's monitor
  13 VM process         `find_vm`: is it running, under which pid, is it really ours; `stop_vm`, the ladder
  14 QEMU machine       `qemu_argv`: pure; `launch`: KVM by evidence, else TCG
  15 guest              the cloud-init seed, keys, ssh, `wait_ready`
  16 k3s                (later) what `k3s.install` may ask of this version
  17 kubeconfig         (later) the names that belong to a cluster
  18 disk images        fetch or copy the cloud image; the overlay on it
  19 commands           one function a verb
  20 CLI                argv -> command -> exit code

Exit codes: 0 done, 1 failed, 2 usage, 3 invalid config, 4 no such cluster or unreadable state, 5 a host
prerequisite is missing, 6 not implemented for this provider, 7 timed out, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import re
import secrets
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import (
    IO,
    Any,
    Callable,
    NoReturn,
    Protocol,
    Union,
)

# === 1 constants =====================================================================================

VERSION = "0.1.0"

CONFIG_NAMES = ("y-cluster-provision.yaml", "y-cluster-provision.json")
PROVIDERS = ("qemu", "docker", "multipass")
ACTIONS = ("stop", "pause", "teardown")

K3S_VERSION = "v1.35.6+k3s1"

# A dated release has a fixed digest; the undated /release/ URL has none. They vanish after some months.
DEFAULT_IMAGE = "https://cloud-images.ubuntu.com/releases/noble/release-20260705/ubuntu-24.04-server-cloudimg-amd64.img"
DEFAULT_IMAGE_SHA256 = "ffe6203da54deeb6db5d2a98a83f9ec8e55f149d3f7ba622e1abe5fa966ee3d6"

QEMU = "qemu-system-x86_64"
BIND_ADDRESS = "127.0.0.1"  # a forward on every interface would publish ssh to the network
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# GCE's bounds for max-run-duration (cloud.google.com/compute/docs/instances/limit-vm-runtime).
GCP_MIN_SECONDS = 30
GCP_MAX_SECONDS = 120 * 86400

READY_TIMEOUT = 600.0  # seconds; a cold first boot without KVM takes one to five minutes
LOCK_TIMEOUT = 240.0  # seconds; longer than the whole stop ladder, so that a waiting verb gets its turn
POWERDOWN_TIMEOUT = 60.0  # seconds for the guest to shut down by itself
WATCH_INTERVAL = 5.0  # seconds between looks of the watcher: what a suspend may cost in lateness
AT_EARLY = 120.0  # seconds; at(1) drops seconds, so its job may come up to a minute early and waits


# === 2 errors ========================================================================================


class YclusterError(Exception):
    """Something a user can be told: what went wrong, where, and in `hint` what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(YclusterError):
    """The command line asks for something that has no meaning."""

    exit_code = 2


class ConfigError(YclusterError):
    """The config file is missing, unreadable or wrong."""

    exit_code = 3


class StateError(YclusterError):
    """No such cluster, or its sidecar can't be read."""

    exit_code = 4


class PrerequisiteError(YclusterError):
    """The host lacks a program, a permission or a free port."""

    exit_code = 5


class NotImplementedYet(YclusterError):
    """Valid, but this version or this provider doesn't do it."""

    exit_code = 6


class TimedOut(YclusterError):
    """Something bounded took longer than its bound."""

    exit_code = 7


class Interrupted(YclusterError):
    """Ctrl-C or a termination signal."""

    exit_code = 130


class Busy(TimedOut):
    """Another ycluster holds the cluster's lock."""


class ProgramFailed(YclusterError):
    """A program that ycluster ran ended badly; `argv` can be pasted into a shell, `stderr` is what it said."""

    def __init__(self, argv: Sequence[str], returncode: int, stderr: str, *, hint: str = "") -> None:
        last = [line.strip() for line in stderr.splitlines() if line.strip()][-3:]
        why = "; ".join(last) or "it said nothing"
        super().__init__(f"{Path(argv[0]).name} failed (exit {returncode}): {why}", hint=hint)
        self.argv, self.returncode, self.stderr = tuple(argv), returncode, stderr


# === 3 output ========================================================================================


class Output:
    """Where words go. stdout is for data alone; everything a person reads on the way goes to stderr."""

    def __init__(self, stdout: IO[str], stderr: IO[str], *, verbose: bool = False) -> None:
        self.stdout, self.stderr, self.verbose = stdout, stderr, verbose
        self.live = stderr.isatty()

    def data(self, text: str) -> None:
        self.stdout.write(text if text.endswith("\n") or not text else text + "\n")
        self.stdout.flush()

    def say(self, text: str) -> None:
        # A reader that went away (a closed terminal, `| head`) must not undo the work being reported.
        with contextlib.suppress(OSError, ValueError):
            self.stderr.write(text + "\n")
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
            width = shutil.get_terminal_size().columns - 1
            with contextlib.suppress(OSError, ValueError):
                self.stderr.write("\r\x1b[K" + text[:width])
                self.stderr.flush()


class Steps:
    """Progress of a long job in named, timed stages: a live line on a terminal, plain lines elsewhere."""

    HEARTBEAT = 15.0  # seconds between plain lines, so that a log shows life without filling up

    def __init__(self, output: Output, monotonic: Callable[[], float]) -> None:
        self.output, self.monotonic = output, monotonic
        self.began = self.beat = monotonic()

    def waiting(self, what: str) -> None:
        """Call as often as you like while waiting for `what`."""
        elapsed = self.monotonic() - self.began
        self.output.draw(f"  {what} ... {elapsed:.0f} s")
        if not self.output.live and self.monotonic() - self.beat >= self.HEARTBEAT:
            self.beat = self.monotonic()
            self.output.say(f"  {what} ... {elapsed:.0f} s")

    def done(self, what: str) -> None:
        self.output.draw("")
        self.beat = self.monotonic()
        self.output.say(f"  {what} ({self.monotonic() - self.began:.1f} s)")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def to_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


# === 4 host effects ==================================================================================


@dataclass(frozen=True)
class Done:
    """What a finished program left: exit status (negative: the signal that ended it) and its output."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Host:
    """This machine and this user: the clock, the environment, other programs. The only door to them."""

    def __init__(self, environ: Mapping[str, str], output: Output) -> None:
        self.environ, self.output = dict(environ), output

    # --- clock: wall time is what is stored, monotonic time is what is waited on

    def now(self) -> float:
        """Seconds since the epoch, UTC."""
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(max(0.0, seconds))

    def boot_id(self) -> str:
        """The kernel's id of this boot; empty where there is none."""
        with contextlib.suppress(OSError):
            return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return ""

    # --- who and where

    def uid(self) -> int:
        return os.getuid()

    def user(self) -> str:
        import pwd

        try:
            return pwd.getpwuid(self.uid()).pw_name
        except KeyError:
            return str(self.uid())

    def home(self) -> Path:
        """$HOME, else the account's home: a timer or a container may have no HOME at all."""
        import pwd

        named = self.environ.get("HOME", "")
        if named.startswith("/"):
            return Path(named)
        try:
            return Path(pwd.getpwuid(self.uid()).pw_dir)
        except KeyError:
            raise PrerequisiteError(
                f"no home directory: HOME is unset and uid {self.uid()} has no account",
                hint="set HOME, or cacheDir in the config",
            ) from None

    def state_home(self) -> Path:
        """Where this user's index of cache directories is kept (XDG base directory specification)."""
        named = self.environ.get("XDG_STATE_HOME", "")
        base = Path(named) if named.startswith("/") else self.home() / ".local" / "state"
        return base / "ycluster"

    def runtime_dir(self) -> str:
        """XDG_RUNTIME_DIR, or where logind puts it: ssh -T, sudo, cron and at don't set the variable."""
        named = self.environ.get("XDG_RUNTIME_DIR", "")
        guess = f"/run/user/{self.uid()}"
        return named or (guess if os.path.isdir(guess) else "")

    # --- other programs

    def child_env(self, extra: Mapping[str, str] = {}) -> dict[str, str]:
        """The whole environment of a child. Named variables only: at(1) would write secrets to disk."""
        env = {"PATH": self.environ.get("PATH") or DEFAULT_PATH, "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"}
        for name in ("HOME", "USER", "LOGNAME", "TMPDIR", "XDG_STATE_HOME", "DBUS_SESSION_BUS_ADDRESS"):
            if self.environ.get(name):
                env[name] = self.environ[name]
        if self.runtime_dir():
            env["XDG_RUNTIME_DIR"] = self.runtime_dir()
        env.update(extra)
        return env

    def which(self, program: str) -> str | None:
        path = self.environ.get("PATH") or DEFAULT_PATH
        return shutil.which(program, path=path + ":/usr/sbin:/sbin")

    def need(self, programs: Mapping[str, str]) -> None:
        """Raise unless every program (name -> Debian package) is on PATH."""
        missing = [name for name in programs if not self.which(name)]
        if missing:
            packages = " ".join(sorted({programs[name] for name in missing}))
            raise PrerequisiteError(f"missing: {', '.join(missing)}", hint=f"sudo apt-get install {packages}")

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
        check: bool = True,
        stdin: str | None = None,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Done:
        """Run a program to its end: no shell, an explicit environment, a bound in seconds.

        Raises PrerequisiteError when it isn't there, TimedOut past the bound (the program is killed),
        and, unless `check` is off, ProgramFailed when it exits with anything but 0.
        """
        self.output.debug(shlex.join(argv))
        program = self.which(argv[0])
        if program is None:
            raise PrerequisiteError(f"{argv[0]}: no such program on PATH")
        try:
            ended = subprocess.run(
                [program, *argv[1:]],
                input=stdin,
                stdin=subprocess.DEVNULL if stdin is None else None,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                cwd=cwd or "/",
                env=dict(self.child_env() if env is None else env),
                pass_fds=pass_fds,
            )
        except subprocess.TimeoutExpired:
            raise TimedOut(f"{argv[0]} gave no answer within {timeout:.0f} s: {shlex.join(argv)}") from None
        done = Done(tuple(argv), ended.returncode, ended.stdout, ended.stderr)
        if check and done.returncode != 0:
            raise ProgramFailed(argv, done.returncode, done.stderr or done.stdout)
        return done

    def attempt(self, argv: Sequence[str], *, timeout: float) -> Done | None:
        """`run` for a question whose every failure means "no": None unless it ended with exit 0."""
        with contextlib.suppress(YclusterError, OSError):
            return self.run(argv, timeout=timeout)
        return None

    def spawn(self, argv: Sequence[str], log: Path) -> None:
        """Start a program that outlives this one: a session of its own, cwd /, its output appended to `log`."""
        self.output.debug(shlex.join(argv) + " &")
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=fd, stderr=fd, cwd="/", env=self.child_env(), start_new_session=True
            )  # fmt: skip
        finally:
            os.close(fd)

    def interactive(self, argv: Sequence[str]) -> int:
        """Run a program on this terminal and return its exit status."""
        self.output.debug(shlex.join(argv))
        terminal = {"TERM": self.environ["TERM"]} if self.environ.get("TERM") else {}
        status = subprocess.call(argv, env=self.child_env(terminal))
        return 128 - status if status < 0 else status

    def program_source(self) -> bytes:
        """This very module, wherever it was loaded from (a plain file, shiv's cache, a zip)."""
        loader: Any = globals()["__loader__"]
        data: bytes = loader.get_data(__file__)
        return data

    def interpreter(self) -> str:
        """The Python that a timer can rely on: not that of a virtual environment that may be deleted."""
        return os.path.abspath(getattr(sys, "_base_executable", "") or sys.executable or "/usr/bin/python3")


def write_file(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` whole or not at all: write beside it, fsync, rename, fsync the directory."""
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(beside)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def make_private_dir(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def remove(path: Path) -> bool:
    """Remove a file or a directory of ours; False when there was none."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    except FileNotFoundError:
        return False
    return True


def try_flock(path: Path, *, shared: bool = False) -> int | None:
    """A descriptor that holds the lock on `path` (created if needed), or None while another holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        # Whoever held it before may have removed the file: a lock on a nameless file guards nothing.
        if os.path.samestat(os.fstat(fd), os.stat(path)):
            return fd
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(fd)
        raise
    os.close(fd)
    return None


def flock_held(path: Path) -> bool:
    """Whether somebody holds an exclusive lock on `path`. Looks through a shared lock, gone in microseconds."""
    if not path.exists():
        return False
    fd = try_flock(path, shared=True)
    if fd is None:
        return path.exists()
    os.close(fd)
    return False


@contextlib.contextmanager
def locked(host: Host, path: Path, *, timeout: float) -> Iterator[None]:
    """Hold the lock file `path`; raises Busy after `timeout` seconds. Never a lock on the data file itself."""
    began = host.monotonic()
    told = False
    while True:
        fd = try_flock(path)
        if fd is not None:
            break
        waited = host.monotonic() - began
        if waited >= timeout:
            raise Busy(
                f"{path.stem}: another ycluster has been working on it for {waited:.0f} s",
                hint=f"try again when it is done; `fuser {path}` names it",
            )
        if waited > 2 and not told:
            host.output.say(f"  waiting: another ycluster is working on {path.stem}")
            told = True
        host.sleep(0.05)
    try:
        yield
    finally:
        os.close(fd)


# === 5 durations =====================================================================================

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # micro sign
    "\u03bcs": 10**3,  # Greek mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_MAX_INT64 = (1 << 63) - 1
_TERM = re.compile(r"([0-9]*)(\.[0-9]*)?([^.0-9]*)", re.DOTALL)


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration such as `8h`, `1h30m`, `1.5s` (golang.org/pkg/time#ParseDuration).

    Raises ValueError with Go's own words. Go computes a fraction in float64; so does this.
    """
    invalid = ValueError(f'invalid duration "{text}"')
    sign, rest = (text[0], text[1:]) if text[:1] in ("-", "+") else ("+", text)
    if rest == "0":
        return 0
    if not rest:
        raise invalid
    total, pos = 0, 0
    while pos < len(rest):
        match = _TERM.match(rest, pos)
        assert match is not None  # every part of the pattern may be empty
        whole, fraction, unit = match.group(1), match.group(2) or "", match.group(3)
        if not whole and len(fraction) < 2:
            raise invalid
        if len(whole.lstrip("0")) > 19:
            raise invalid
        if not unit:
            raise ValueError(f'missing unit in duration "{text}"')
        if unit not in _UNITS:
            raise ValueError(f'unknown unit "{unit}" in duration "{text}"')
        total += int(whole.lstrip("0") or "0") * _UNITS[unit] + _fraction(fraction[1:], _UNITS[unit])
        if total > 1 << 63:
            raise invalid
        pos = match.end()
    if sign == "-":
        return -total
    if total > _MAX_INT64:
        raise invalid
    return total


def _fraction(digits: str, unit: int) -> int:
    """Nanoseconds of `.digits` of a unit. Go drops the digits that would overflow an int64."""
    value, scale = 0, 1.0
    for digit in digits:
        if value > _MAX_INT64 // 10 or value * 10 + int(digit) > 1 << 63:
            break
        value, scale = value * 10 + int(digit), scale * 10
    return int(float(value) * (float(unit) / scale))


def format_duration(nanoseconds: int) -> str:
    """A duration as Go prints it: `1h30m0s`, `1.5s`, `20ms`, `0s`."""
    sign, left = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if left == 0:
        return "0s"
    if left < 10**9:
        unit = "ns" if left < 10**3 else "\u00b5s" if left < 10**6 else "ms"
        return f"{sign}{_decimal(left, _UNITS[unit])}{unit}"
    minutes, rest = divmod(left, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{head}{_decimal(rest, 10**9)}s"


def _decimal(value: int, unit: int) -> str:
    whole, rest = divmod(value, unit)
    digits = str(rest).rjust(len(str(unit)) - 1, "0").rstrip("0") if rest else ""
    return f"{whole}.{digits}" if digits else str(whole)


def in_words(seconds: float) -> str:
    """A span for people, two units at most: `3h 12m`, `45s`, `2d 4h`."""
    left = int(abs(seconds))
    days, left = divmod(left, 86400)
    hours, left = divmod(left, 3600)
    minutes, left = divmod(left, 60)
    parts = [f"{n}{unit}" for n, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (left, "s")) if n]
    return " ".join(parts[:2]) or "0s"


_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|z|[+-]\d\d:\d\d)", re.ASCII)


def parse_time(text: str) -> int:
    """Seconds since the epoch of an RFC 3339 time, a fraction rounded up. Raises ValueError."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no RFC 3339 time")
    date, clock, fraction, zone = match.groups()
    offset = "+00:00" if zone in "Zz" else zone
    moment = datetime.strptime(f"{date}T{clock}{offset}", "%Y-%m-%dT%H:%M:%S%z")
    whole = int(moment.timestamp())
    return whole + 1 if fraction and fraction.strip("0") else whole


def format_time(seconds: float) -> str:
    """An RFC 3339 time in UTC."""
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def local_time(seconds: float) -> str:
    """A time for people, in the zone of this host."""
    return datetime.fromtimestamp(seconds, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")


# === 6 YAML subset ===================================================================================
#
# The part of YAML 1.2.2 that configs are written in, and with it JSON. The rule: a document either gets the
# value that a YAML 1.2 core schema reader gives it, or is refused with file:line:column and a remedy. Section
# numbers and [productions] are those of https://yaml.org/spec/1.2.2/.
#
# Flow and scalar functions return the position right behind what they read. Block functions take the column
# of the collection they stand in (-1 in the document itself) and return the position of the next token, which
# is the first on its line, or the end of the text. A character is looked at a fixed number of times at most.

Scalar = Union[None, bool, int, float, str]
YamlValue = Union[Scalar, "list[Node]", "dict[str, Node]"]

_MAX_TEXT = 256 * 1024  # characters; a config has a few thousand, and reading takes some µs each
_MAX_DEPTH = 100  # collections around a value; each takes two Python frames
_MAX_KEY = 1024  # characters of an implicit key, section 7.4.2
_MAX_NUMBER = 640  # characters; with PYTHONINTMAXSTRDIGITS at its lowest, int() takes no more

# Not c-printable [1], a byte order mark, or one of the three that break a line in YAML 1.1 only.
_FORBIDDEN = re.compile("[^\t\n -~\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]")
_MARKER = re.compile(r"^(?:---|\.\.\.)(?![^ \t\n])", re.MULTILINE)  # c-forbidden [206], even in a scalar
_DASH = re.compile(r"-(?![^ \t\n])")
_LINE_END = re.compile(r"\n")
_NOT_SPACE = re.compile(r"[^ \n]")
_NOT_WHITE = re.compile(r"[^ \t]")
_NOT_BLANK = re.compile(r"[^ \t\n]")
# ns-plain-first [126] and where ns-plain-char [130] ends, outside and inside of [] and {}.
_PLAIN_FIRST = re.compile(r"[^-?:,\[\]{}#&*!|>'\"%@`]|[-?:](?=[^ \t\n])")
_PLAIN_END = re.compile(r":(?![^ \t\n])|(?<=[ \t\n])#|\n")
# libyaml and its kin read [?x] as a key, so that is refused.
_FLOW_PLAIN_FIRST = re.compile(r"[^-?:,\[\]{}#&*!|>'\"%@`]|[-:](?=[^ \t\n,\[\]{}])")
_FLOW_PLAIN_END = re.compile(r":(?![^ \t\n,\[\]{}])|(?<=[ \t\n])#|[\n,\[\]{}]")
_QUOTED_STOP = re.compile(r"""["'\\\n]""")
_ESCAPE = re.compile(r'\\(?:([0abt\tnvfre "/\\N_LP])|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8})')
_ESCAPES = '0abt\tnvfre "/\\N_LP'  # what stands behind the backslash, and what it stands for: [42] to [58]
_ESCAPED = '\0\a\b\t\t\n\v\f\r\x1b "/\\\x85\xa0\u2028\u2029'
_LOW_SURROGATE = re.compile(r"\\u([dD][c-fC-F][0-9a-fA-F]{2})")
_BLOCK_HEADER = re.compile(r"[|>](?:([1-9])([-+]?)|([-+]?)([1-9]?))[ \t]*(?:(?<=[ \t])#[^\n]*)?(?:\n|\Z)")

# The core schema, section 10.3.2.
_NULL = frozenset(("", "~", "null", "Null", "NULL"))
_TRUE = frozenset(("true", "True", "TRUE"))
_FALSE = frozenset(("false", "False", "FALSE"))
_INT = re.compile(r"[-+]?[0-9]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")
_JSON_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
# What YAML 1.1 (https://yaml.org/type/) reads differently. JSON numbers are not looked up here: 1e3 is a text
# to YAML 1.1, but all of JSON is taken.
_AMBIGUOUS = re.compile(
    r"""y|Y|yes|Yes|YES|n|N|no|No|NO|on|On|ON|off|Off|OFF|=|<<
    |[-+]?0[0-9_]+                                                          # 012 is ten, or twelve
    |[-+]?0o[0-7_]+|[-+]?0b[01_]+|[-+]0x[0-9a-fA-F_]+|0x[0-9a-fA-F]*_[0-9a-fA-F_]*
    |(?=[^_]+_)(?=[^0-9]*[0-9])[-+]?[0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9_]+)?  # 1_000
    |[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][0-9]+|[-+]?[0-9]+[eE][-+][0-9]+  # +1e3
    |[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+                                     # 1:30 is ninety, in base 60
    |[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+\.[0-9_]*
    |[0-9]{4}-[0-9]{2}-[0-9]{2}
    |[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?
     (?:[ \t]*(?:Z|[-+][0-9]{1,2}(?::[0-9]{2})?))?""",
    re.VERBOSE,
)
_REFUSED = (  # what cannot start a plain scalar, why it is refused, and what to write instead
    ("&*", "anchors and aliases are not supported", "write the value out where it is needed"),
    ("!", "tags are not supported", "leave the tag out"),
    ("%", "directives are not supported", "leave the line out"),
    ("?", "explicit keys are not supported", "write 'key: value'"),
    ("-", "a list cannot start here", "start it on a line of its own"),
    (":", "there is no key before this ':'", "write 'key: value'"),
    ("#", "a comment needs a space before its '#'", "put a space there"),
    ("[{", "only a string can be a key", "quote the key"),
    (",]}", "nothing stands before this character", "write a value; null for none"),
    ("|>@`", "nothing can start with this character here", "remove it"),
)


@dataclass(frozen=True)
class Node:
    """One parsed value and where it stands: 1-based line and column, in characters.

    `source` is what a plain scalar was resolved from ("8192" for 8192, "" for a missing value), and None for
    everything else. A value in a mapping has the position of its key too; elsewhere that is 0, 0.
    """

    value: YamlValue
    line: int
    column: int
    source: str | None = None
    key_line: int = 0
    key_column: int = 0


@dataclass(frozen=True)
class _YamlText:
    """What is read, with "\\n" for all line ends and no byte order mark; `starts` is where lines start."""

    text: str
    file: str
    starts: tuple[int, ...]

    def place(self, pos: int) -> tuple[int, int]:
        line = bisect_right(self.starts, pos)
        return line, pos - self.starts[line - 1] + 1

    def indent(self, pos: int) -> int:
        """The 0-based column of pos; -1 at the end of the text, which closes every collection."""
        return self.place(pos)[1] - 1 if pos < len(self.text) else -1

    def node(self, pos: int, value: YamlValue, source: str | None = None) -> Node:
        return Node(value, *self.place(pos), source)

    def error(self, pos: int, message: str, hint: str) -> ConfigError:
        line, column = self.place(pos)
        text = self.text[pos : pos + 30].split("\n")[0]
        message += f": {text!r}" if text else ""
        return ConfigError(f"{self.file}:{line}:{column}: {message}", hint=hint)


def parse_yaml(text: str, file: str) -> Node:
    """Read one document; `file` only names it in errors. An empty document is Node(None).

    Raises ConfigError: "file:line:column: what is wrong", and what to write instead as its hint.
    """
    text = text[text.startswith("\ufeff") :].replace("\r\n", "\n").replace("\r", "\n")
    starts = (0, *(pos + 1 for pos, char in enumerate(text[:_MAX_TEXT]) if char == "\n"))
    src = _YamlText(text, file, starts)
    if len(text) > _MAX_TEXT:
        raise src.error(0, f"more than {_MAX_TEXT} characters", "this is no config; name the right file")
    bad = _FORBIDDEN.search(text)
    if bad:
        hint = f'remove it, or write "\\u{ord(bad.group()):04x}" in double quotes'
        raise src.error(bad.start(), f"the character U+{ord(bad.group()):04X} may not stand here", hint)
    start, end = _document(src)
    return _block_node(replace(src, text=text[:end]), start, -1, 0, "")[1]


def plain(node: Node) -> object:
    """The value as nested dicts, lists and scalars, without positions."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


def _document(src: _YamlText) -> tuple[int, int]:
    """Where the only document starts and ends, its markers left out."""
    first, start, end = _skip(src.text, 0), 0, len(src.text)
    if src.text.startswith("%", first):
        raise _refused(src, first)
    marker = _MARKER.search(src.text)
    if marker and marker.group() == "---" and marker.start() == first:
        start = marker.end()
        marker = _MARKER.search(src.text, start)
    if marker:
        end = marker.start()
        more = end if marker.group() == "---" else _skip(src.text, marker.end())
        if more < len(src.text):
            raise src.error(more, "a second document starts here", "keep one document in the file")
    return start, end


def _find(pattern: re.Pattern[str], text: str, pos: int) -> int:
    """Where the pattern first matches from pos on, or the end of the text."""
    match = pattern.search(text, pos)
    return match.start() if match else len(text)


def _skip(text: str, pos: int) -> int:
    """Behind blanks, line ends and comments; a comment has a blank or a line start before it, section 6.6."""
    pos = _find(_NOT_BLANK, text, pos)
    while text.startswith("#", pos) and (pos == 0 or text[pos - 1] in " \t\n"):
        pos = _find(_NOT_BLANK, text, _find(_LINE_END, text, pos))
    return pos


def _next_token(src: _YamlText, pos: int) -> tuple[int, int | None]:
    """The next token, and its column: None where its line is that of pos too, -1 at the end of the text."""
    token = _skip(src.text, pos)
    line = token - src.indent(token)
    if token == len(src.text) or line < pos:
        return token, -1 if token == len(src.text) else None
    _refuse_tab(src, line, token)
    return token, token - line


def _refuse_tab(src: _YamlText, start: int, end: int) -> None:
    """A tab is no indentation, section 6.1: how wide would it be?"""
    tab = src.text.find("\t", start, end)
    if tab >= 0:
        raise src.error(tab, "a tab in the indentation", "indent with spaces")


def _block_node(src: _YamlText, start: int, indent: int, depth: int, parent: str) -> tuple[int, Node]:
    """What follows the indicator `parent` ("-", ":", or "" in the document) that ends at start; section 8."""
    text = src.text
    pos, column = _next_token(src, start)
    lined_up = parent == ":" and column == indent and _DASH.match(text, pos)  # seq-space [201]
    if column is not None and column <= indent and not lined_up:
        return pos, src.node(start, None, "")
    _check_depth(src, pos, depth)
    end, key, dash = pos, None, None
    if column is not None or parent == "-":  # only here may a block collection start
        dash = _DASH.match(text, pos)
        if not dash and text[pos] not in "[{|>":
            end, key = _key(src, pos, indent, False)
        if column is None and (dash or key is not None):
            _refuse_tab(src, start, pos)
    if dash:
        end, node = _block_sequence(src, pos, depth)
    elif key is not None:
        end, node = _block_mapping(src, pos, end, key, depth)
    elif text[pos] in "|>":
        end, node = _block_scalar(src, pos, indent)
    else:
        end, node = _flow_node(src, pos, indent, depth, False)
        end = _end_of_value(src, end)
    if src.indent(end) > indent:
        hint = "line it up with the entry before it, or quote the text it belongs to"
        raise src.error(end, "the indentation fits nothing above", hint)
    return end, node


def _end_of_value(src: _YamlText, pos: int) -> int:
    """The token after the flow node or scalar that ends at pos; only a comment may be left on its line."""
    token, column = _next_token(src, pos)
    if column is not None:
        return token
    if src.text[token] == ":":
        hint = "quote the text before it, or start a nested mapping on a line of its own"
        raise src.error(token, "no key can stand before this ':'", hint)
    hint = "quote the whole value; a comment needs a space before its '#'"
    raise src.error(token, "text behind the end of a value", hint)


def _block_sequence(src: _YamlText, first: int, depth: int) -> tuple[int, Node]:
    """The sequence whose first dash is at first."""
    pos, indent = first, src.indent(first)
    items: list[Node] = []
    while src.indent(pos) == indent and _DASH.match(src.text, pos):
        pos, item = _block_node(src, pos + 1, indent, depth + 1, "-")
        items.append(item)
    return pos, src.node(first, items)


def _block_mapping(src: _YamlText, first: int, end: int, key: str, depth: int) -> tuple[int, Node]:
    """The mapping whose first key, read already, stands from first to end."""
    pos, indent = first, src.indent(first)
    entries: dict[str, Node] = {}
    while True:
        end, value = _block_node(src, end, indent, depth + 1, ":")
        _add_entry(src, entries, pos, key, value)
        pos = end
        if src.indent(pos) != indent:
            return pos, src.node(first, entries)
        end, key = _required_key(src, pos, indent, False)


def _check_depth(src: _YamlText, pos: int, depth: int) -> None:
    if depth > _MAX_DEPTH:
        raise src.error(pos, f"more than {_MAX_DEPTH} levels of nesting", "nest less deeply")


def _add_entry(src: _YamlText, entries: dict[str, Node], pos: int, key: str, value: Node) -> None:
    """Adds the entry whose key is at pos. Keys are unique, section 3.2.1.3."""
    if key in entries:
        first = entries[key]
        message = f"duplicate key, first in line {first.key_line}, column {first.key_column}"
        raise src.error(pos, message, "keep one of the two")
    entries[key] = Node(value.value, value.line, value.column, value.source, *src.place(pos))


def _key(src: _YamlText, pos: int, indent: int, flow: bool) -> tuple[int, str | None]:
    """The key at pos; None where no colon follows on its line. Section 7.4.2, production [193]."""
    text, quoted = src.text, src.text[pos] in "\"'"
    if quoted:
        end, name = _quoted_scalar(src, pos, indent)
        colon = _find(_NOT_WHITE, text, end)
    else:
        end = colon = _plain_line(src, pos, flow)
        name = text[pos:colon].rstrip(" \t")
    if not text.startswith(":", colon) or "\n" in text[pos:end]:
        return pos, None
    if colon - pos > _MAX_KEY:
        raise src.error(pos, f"a key of more than {_MAX_KEY} characters", "shorten it")
    behind = text[colon + 1 : colon + 2]
    if behind not in ("", " ", "\t", "\n") and not (flow and quoted):
        raise src.error(colon, "no space behind the ':' of a key", "write 'key: value'")
    if not quoted and not isinstance(_resolve(src, pos, name), str):
        raise src.error(pos, "a key that is not a string", f'quote it: "{name}"')
    return colon + 1, name


def _required_key(src: _YamlText, pos: int, indent: int, flow: bool) -> tuple[int, str]:
    end, key = _key(src, pos, indent, flow)
    if key is None:
        raise src.error(pos, "no 'key: value' here", "write the key, a colon and a space on one line")
    return end, key


def _flow_node(src: _YamlText, pos: int, indent: int, depth: int, flow: bool) -> tuple[int, Node]:
    """The flow collection or scalar at pos; `flow` tells whether it stands inside of [] or {}."""
    _check_depth(src, pos, depth)
    char = src.text[pos]
    if char == "[":
        return _flow_sequence(src, pos, indent, depth)
    if char == "{":
        return _flow_mapping(src, pos, indent, depth)
    if char in "\"'":
        end, quoted = _quoted_scalar(src, pos, indent)
        return end, src.node(pos, quoted)
    end, source = _plain_scalar(src, pos, indent, flow)
    return end, src.node(pos, _resolve(src, pos, source), source)


def _flow_sequence(src: _YamlText, first: int, indent: int, depth: int) -> tuple[int, Node]:
    items: list[Node] = []
    pos = _flow_skip(src, first, first + 1, indent)
    while src.text[pos] != "]":
        pos, item = _flow_node(src, pos, indent, depth + 1, True)
        items.append(item)
        pos = _flow_comma(src, first, pos, indent)
    return pos + 1, src.node(first, items)


def _flow_mapping(src: _YamlText, first: int, indent: int, depth: int) -> tuple[int, Node]:
    entries: dict[str, Node] = {}
    pos = _flow_skip(src, first, first + 1, indent)
    while src.text[pos] != "}":
        end, key = _required_key(src, pos, indent, True)
        value = src.node(end, None, "")
        end = _flow_skip(src, first, end, indent)
        if src.text[end] not in ",}":
            end, value = _flow_node(src, end, indent, depth + 1, True)
        _add_entry(src, entries, pos, key, value)
        pos = _flow_comma(src, first, end, indent)
    return pos + 1, src.node(first, entries)


def _flow_comma(src: _YamlText, first: int, pos: int, indent: int) -> int:
    """Behind the comma after the entry that ends at pos, or at the bracket that closes the one at first."""
    pos = _flow_skip(src, first, pos, indent)
    if src.text[pos] == ",":
        return _flow_skip(src, first, pos + 1, indent)
    if src.text[first] + src.text[pos] not in ("[]", "{}"):
        message = f"neither a comma nor the end of the {src.text[first]} of line {src.place(first)[0]}"
        raise src.error(pos, message, "put ', ' between entries; write a pair in a list as [{key: value}]")
    return pos


def _flow_skip(src: _YamlText, first: int, pos: int, indent: int) -> int:
    """The next token inside of the bracket at first."""
    text, token = src.text, _skip(src.text, pos)
    if token == len(text):
        raise src.error(first, "nothing closes this bracket", "add the closing bracket")
    # A closing bracket may line up with its key: section 7.4 forbids that, but libyaml and others take it.
    if "\n" in text[pos:token] and not _is_indented(text, token, indent - (text[token] in "]}")):
        raise _outdented(src, first, token, indent)
    return token


def _is_indented(text: str, token: int, indent: int) -> bool:
    """Whether more than indent spaces stand before token, the first of its line: s-flow-line-prefix [69]."""
    return text.startswith(" " * (indent + 1), text.rfind("\n", 0, token) + 1)


def _outdented(src: _YamlText, first: int, token: int, indent: int) -> ConfigError:
    message = f"not indented, but within what starts in line {src.place(first)[0]}"
    hint = f"start the line with {indent + 1} or more spaces, or close what is open above it"
    return src.error(token, message, hint)


def _plain_line(src: _YamlText, pos: int, flow: bool) -> int:
    """Where the first line of the plain scalar at pos ends, blanks included."""
    if not (_FLOW_PLAIN_FIRST if flow else _PLAIN_FIRST).match(src.text, pos):
        raise _refused(src, pos)
    return _find(_FLOW_PLAIN_END if flow else _PLAIN_END, src.text, pos + 1)


def _refused(src: _YamlText, pos: int) -> ConfigError:
    """Why no plain scalar starts at pos: an indicator stands there."""
    reason, hint = next(entry[1:] for entry in _REFUSED if src.text[pos] in entry[0])
    return src.error(pos, reason, f"{hint}; a text that starts like this needs quotes")


def _plain_scalar(src: _YamlText, pos: int, indent: int, flow: bool) -> tuple[int, str]:
    """Section 7.3.3. It goes on in lines that are indented, up to a comment."""
    text, end = src.text, _plain_line(src, pos, flow)
    parts = [text[pos:end].rstrip(" \t")]
    while text.startswith("\n", end):
        token = _find(_NOT_BLANK, text, end)
        stop = _find(_FLOW_PLAIN_END if flow else _PLAIN_END, text, token)
        if stop == token or not _is_indented(text, token, indent):
            break
        parts += (_fold(src, pos, end, indent)[1], text[token:stop].rstrip(" \t"))
        end = stop
    return end, "".join(parts)


def _fold(src: _YamlText, first: int, pos: int, indent: int) -> tuple[int, str]:
    """The line end at pos and the blank lines behind it, in the scalar that starts at first: section 6.5."""
    token = _find(_NOT_BLANK, src.text, pos)
    if token < len(src.text) and not _is_indented(src.text, token, indent):
        raise _outdented(src, first, token, indent)
    *blank_lines, _ = src.text[pos + 1 : token].split("\n")
    for line in blank_lines:
        if "\t" in line and not line.startswith(" " * (indent + 1)):  # not l-empty [70]
            _refuse_tab(src, pos, token)
    return token, "\n" * len(blank_lines) or " "


def _quoted_scalar(src: _YamlText, first: int, indent: int) -> tuple[int, str]:
    """Sections 7.3.1 and 7.3.2."""
    text, quote, pos = src.text, src.text[first], first + 1
    parts: list[str] = []
    while True:
        stop = _find(_QUOTED_STOP, text, pos)
        parts.append(text[pos:stop])
        pos, char = stop + 1, text[stop : stop + 1]
        if char == "\n":
            parts[-1] = parts[-1].rstrip(" \t")  # an escaped blank is a part of its own, and stays
            pos, char = _fold(src, first, stop, indent)
        elif char == "\\" and quote == '"' and text.startswith("\n", pos):
            pos, char = _fold(src, first, pos, indent)
            char = char.lstrip(" ")  # [112]: an escaped line end is not even a space
        elif char == "\\" and quote == '"':
            pos, char = _escape(src, stop)
        elif char == quote == "'" and text.startswith("'", pos):
            pos += 1
        elif char == quote:
            return pos, "".join(parts)
        elif not char:
            raise src.error(first, "nothing closes this quote", f"add the closing {quote}")
        parts.append(char)


def _escape(src: _YamlText, pos: int) -> tuple[int, str]:
    """The character that the escape at pos stands for: section 5.7, and the surrogate pairs of JSON."""
    match = _ESCAPE.match(src.text, pos)
    if not match:
        raise src.error(pos, "unknown escape", "write \\\\ for a backslash, or use single quotes")
    if match.group(1):
        return match.end(), _ESCAPED[_ESCAPES.index(match.group(1))]
    code = int(match.group()[2:], 16)
    low = _LOW_SURROGATE.match(src.text, match.end())
    if low and match.end() - pos == 6 and 0xD800 <= code < 0xDC00:
        return low.end(), chr(0x10000 + (code - 0xD800) * 0x400 + int(low.group(1), 16) - 0xDC00)
    if 0xD800 <= code < 0xE000 or code > 0x10FFFF:
        raise src.error(pos, "no character has this number", "write the character itself")
    return match.end(), chr(code)


def _block_scalar(src: _YamlText, first: int, indent: int) -> tuple[int, Node]:
    """The literal or folded scalar whose header is at first: section 8.1."""
    text, header = src.text, _BLOCK_HEADER.match(src.text, first)
    if not header:
        hint = "start the text on the next line, indented; or quote it"
        raise src.error(first, "not the header of a block scalar", hint)
    digit, chomp = header.group(1) or header.group(4), header.group(2) or header.group(3)
    if digit and indent < 0:
        raise src.error(first, "readers differ on an indentation indicator at the top level", "leave it out")
    start = header.end()
    end, width = _block_scalar_extent(src, start, indent, int(digit) + indent if digit else 0)
    lines = [line[width:] for line in text[start:end].split("\n")]
    if text[end - 1] == "\n" or start == end:
        lines.pop()  # what stands behind the last line end: nothing
    elif chomp == "+" or (lines[-1] and chomp != "-"):
        hint = "end the last line, or write '-' behind the '|' or '>'"
        raise src.error(end, "the file ends within a line of a block scalar; readers differ on that", hint)
    kept = len(lines)
    while kept and not lines[kept - 1]:
        kept -= 1
    value = "\n".join(lines[:kept]) if text[first] == "|" else _fold_lines(lines[:kept])
    value += "\n" * ((kept > 0 and chomp != "-") + (len(lines) - kept if chomp == "+" else 0))
    _refuse_tab(src, end, end + 1)  # neither a blank line, section 8.1.2, nor part of the text
    return _next_token(src, end)[0], src.node(first, value)


def _block_scalar_extent(src: _YamlText, start: int, indent: int, width: int) -> tuple[int, int]:
    """Where the block scalar with its first line at start ends, and its indentation: `width` if not 0."""
    content = _find(_NOT_SPACE, src.text, start)
    *blanks, last = map(len, src.text[start:content].split("\n"))
    if content == len(src.text):
        blanks.append(last)
    widest = max(blanks, default=0)
    if not width:
        width = max(indent + 1, widest if content == len(src.text) or last <= indent else last)
    if widest > width:
        message = "a blank line below is indented further than the first line of text"
        raise src.error(start, message, "remove the spaces of the blank line")
    if not width and content < len(src.text):
        raise src.error(content, "readers differ on a block scalar without indentation", "indent the text")
    less = re.compile(rf"\n {{0,{max(width, 1) - 1}}}[^ \n]")
    return min(_find(less, src.text, start - 1) + 1, len(src.text)), width


def _fold_lines(lines: list[str]) -> str:
    """Section 8.1.3: line ends beside a line that starts with a blank stay; else n are n - 1, one a space."""
    parts: list[str] = []
    breaks, was_spaced = 0, True
    for line in lines:
        if line:
            spaced = line[0] in " \t"
            parts += ("\n" * breaks if spaced or was_spaced else "\n" * (breaks - 1) or " ", line)
            breaks, was_spaced = 0, spaced
        breaks += 1
    return "".join(parts)


def _resolve(src: _YamlText, pos: int, text: str) -> Scalar:
    """The value of the plain scalar at pos by the core schema, unless YAML 1.1 has another."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    if text == "<<":
        raise src.error(pos, "merge keys are not supported", "write the merged entries out")
    if not _JSON_NUMBER.fullmatch(text) and _AMBIGUOUS.fullmatch(text):
        hint = f'quote it if it is a text: "{text}"; else write true, false or a decimal number'
        raise src.error(pos, "YAML 1.1 and YAML 1.2 read this differently", hint)
    if text[0] not in "-+.0123456789" or not (_INT.fullmatch(text) or _FLOAT.fullmatch(text)):
        return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else text
    if len(text) > _MAX_NUMBER:
        raise src.error(pos, f"a number of more than {_MAX_NUMBER} characters", "quote it")
    if _INT.fullmatch(text):
        return int(text, 16 if text.startswith("0x") else 10)
    return float(text)


# === 7 config and schema =============================================================================


@dataclass(frozen=True)
class PortForward:
    """A TCP port of the host that leads to one of the guest. Host port 0: QEMU chooses a free one."""

    host: int
    guest: int


@dataclass(frozen=True)
class Config:
    """A checked `y-cluster-provision.yaml`, defaults filled. FIELDS says what each value means."""

    file: Path
    provider: str
    name: str
    context: str
    memory: int  # MiB
    cpus: int
    k3s_version: str
    k3s_install: str
    k3s_source: str
    port_forwards: tuple[PortForward, ...]
    registries: Mapping[str, Any]
    gateway: Mapping[str, Any]
    storage: Mapping[str, Any]
    max_run: str  # a Go duration; "" or "0": no budget
    on_expiry: str
    warn: str
    on_warn: str
    max_total: str
    disk_size: str
    ssh_port: int  # 0: QEMU chooses
    cache_dir: Path | None
    data_disk: Path | None
    data_disk_size: str
    image: str
    image_sha256: str
    accel: str
    cpu_model: str
    ssh_user: str


@dataclass(frozen=True)
class Kind:
    """How a value is written: `parse` reads a node (ValueError says what is wrong), `show` is its inverse."""

    parse: Callable[[Node, Path], Any]
    schema: Mapping[str, Any]
    show: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Field:
    """One key of the config file: the only place that knows its spelling, default, meaning and form."""

    key: str  # dotted where nested
    attr: str  # of Config
    kind: Kind
    default: Any
    doc: str
    providers: tuple[str, ...] = PROVIDERS


def _text(node: Node, base: Path) -> str:
    """A string. A plain number is taken as it is written: the sibling wants `memory: "8192"` quoted."""
    if isinstance(node.value, str):
        return node.value
    if isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return node.source or ""
    raise ValueError(f"wants a string, not {_sort(node)}")


def _sort(node: Node) -> str:
    names = {dict: "a mapping", list: "a list", bool: "a boolean", type(None): "nothing"}
    return names.get(type(node.value), "a number")


def _pattern(pattern: str, wanted: str) -> Kind:
    def parse(node: Node, base: Path) -> str:
        text = _text(node, base)
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f"{text!r} is not {wanted}")
        return text

    return Kind(parse, {"type": "string", "pattern": f"^(?:{pattern})$"})


def _number(low: int, high: int, unit: str, *, empty_is: int | None = None) -> Kind:
    """A whole number, quoted or not, shown as the string that the sibling wants."""

    def parse(node: Node, base: Path) -> int:
        text = _text(node, base)
        if not text and empty_is is not None:
            return empty_is
        if not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError(f"{text!r} is not a whole number from {low} to {high} ({unit})")
        return int(text)

    pattern = r"^[0-9]*$" if empty_is is not None else r"^[0-9]+$"
    schema = {"anyOf": [{"type": "string", "pattern": pattern}, {"type": "integer", "minimum": low, "maximum": high}]}
    return Kind(parse, schema, str)


def _choice(*choices: str) -> Kind:
    def parse(node: Node, base: Path) -> str:
        text = _text(node, base)
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}{_nearest(text, choices)}")
        return text

    return Kind(parse, {"type": "string", "enum": list(choices)})


def _nearest(word: str, choices: Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _duration(node: Node, base: Path) -> str:
    text = _text(node, base)
    if text in ("", "0"):
        return text
    if parse_duration(text) <= 0:
        raise ValueError(f'"{text}" must be positive; "0" switches it off')
    return text


def _path(node: Node, base: Path) -> Path | None:
    """A path; a relative one starts at the config file's directory, `~` at home."""
    text = _text(node, base)
    if "\0" in text or "\n" in text:
        raise ValueError("a path has no line break and no NUL")
    return Path(os.path.abspath(base / os.path.expanduser(text))) if text else None


def _image(node: Node, base: Path) -> str:
    text = _text(node, base)
    if not text:
        raise ValueError("wants a URL or a path of a cloud image")
    if re.match(r"[a-z]+://", text):
        if not text.startswith(("https://", "http://", "file:///")):
            raise ValueError(f"{text!r}: only https://, http:// and file:/// are understood")
        return text
    return str(_path(node, base))


def _forwards(node: Node, base: Path) -> tuple[PortForward, ...]:
    if not isinstance(node.value, list):
        raise ValueError(f"wants a list of {{host, guest}}, not {_sort(node)}")
    found: list[PortForward] = []
    for item in node.value:
        if not isinstance(item.value, dict) or "guest" not in item.value or set(item.value) - {"host", "guest"}:
            raise ValueError(f"line {item.line}: wants host and guest, as in {{host: 8080, guest: 80}}")
        host = item.value.get("host")
        found.append(PortForward(_HOST_PORT.parse(host, base) if host else 0, _PORT.parse(item.value["guest"], base)))
    for port in {forward.host for forward in found} - {0}:
        if sum(forward.host == port for forward in found) > 1:
            raise ValueError(f"host port {port} is forwarded twice")
    return tuple(found)


def _show_forwards(forwards: Sequence[PortForward]) -> list[dict[str, str]]:
    return [{"host": str(forward.host), "guest": str(forward.guest)} for forward in forwards]


def _mapping(node: Node, base: Path) -> Mapping[str, Any]:
    if not isinstance(node.value, dict):
        raise ValueError(f"wants a mapping, not {_sort(node)}")
    return {key: plain(child) for key, child in node.value.items()}


_PORT = _number(1, 65535, "a TCP port")
_HOST_PORT = _number(0, 65535, "a TCP port; empty or 0: QEMU chooses", empty_is=0)
_STRING = Kind(_text, {"type": "string"})
_LABEL = _pattern(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", "a DNS label: a-z, 0-9 and inner dashes, 63 at most")
_SIZE = _pattern(r"[1-9][0-9]{0,9}[KMGT]?", "a size such as 20G")
_DURATION = Kind(_duration, {"type": "string"})
_OBJECT = Kind(_mapping, {"type": "object"}, dict)
_PATH = Kind(_path, {"type": "string"}, lambda path: str(path) if path else "")
_FORWARDS = Kind(
    _forwards,
    {
        "type": "array",
        "items": {
            "type": "object",
            "additionalProperties": False,
            "required": ["guest"],
            "properties": {"host": _HOST_PORT.schema, "guest": _PORT.schema},
        },
    },
    _show_forwards,
)
_DEFAULT_FORWARDS = (PortForward(6443, 6443), PortForward(80, 80), PortForward(443, 443))

# fmt: off
FIELDS: tuple[Field, ...] = (
    Field("provider", "provider", _choice(*PROVIDERS), "qemu", "What runs the cluster."),
    Field("name", "name", _LABEL, "y-cluster", "The cluster's name: its files, its host name, its kubeconfig cluster."),
    Field("context", "context", _pattern(r"[^\x00-\x1f\x7f]{1,300}", "a context name"), "local", "The kubeconfig context."),
    Field("memory", "memory", _number(64, 16777216, "MB"), 8192, "Memory of the VM in MB."),
    Field("cpus", "cpus", _number(1, 512, "virtual CPUs"), 4, "Virtual CPUs."),
    Field("k3s.version", "k3s_version", _pattern(r"v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?\+k3s[0-9]+", "a k3s release such as v1.35.6+k3s1"), K3S_VERSION, "The k3s release."),
    Field("k3s.install", "k3s_install", _choice("airgap", "script", "none"), "airgap", "airgap: the host hands k3s to the guest; script: the guest fetches it; none: a plain VM."),
    Field("k3s.source", "k3s_source", _STRING, "", "A base URL or a folder with the release's files, for mirrors."),
    Field("portForwards", "port_forwards", _FORWARDS, _DEFAULT_FORWARDS, "TCP ports of 127.0.0.1 that lead into the guest. An empty list means the default, or none at all with k3s.install: none."),
    Field("registries", "registries", _OBJECT, {}, "Content of k3s's registries.yaml."),
    Field("gateway", "gateway", _OBJECT, {}, "For y-cluster's bundled gateway; ycluster leaves it alone."),
    Field("storage", "storage", _OBJECT, {}, "For y-cluster's bundled storage class; ycluster leaves it alone."),
    Field("lifetime.maxRun", "max_run", _DURATION, "", "Wall-clock budget from each start, as a Go duration (8h, 90m, 1h30m). Empty or \"0\": none."),
    Field("lifetime.onExpiry", "on_expiry", _choice(*ACTIONS), "stop", "What a local cluster's timer does at the deadline."),
    Field("lifetime.warn", "warn", _DURATION, "10m", "How long before the deadline to warn. \"0\": never."),
    Field("lifetime.onWarn", "on_warn", _STRING, "", "A command to run at that moment."),
    Field("lifetime.maxTotal", "max_total", _DURATION, "", "What no extension may pass, counted from the start."),
    Field("diskSize", "disk_size", _SIZE, "20G", "Size of the boot disk.", ("qemu",)),
    Field("sshPort", "ssh_port", _HOST_PORT, 2222, "Port of 127.0.0.1 for ssh. Empty or 0: QEMU chooses.", ("qemu",)),
    Field("cacheDir", "cache_dir", _PATH, None, "Where disks, keys and state are kept. Empty: ~/.cache/y-cluster-qemu.", ("qemu",)),
    Field("dataDisk", "data_disk", _PATH, None, "An external qcow2 that every teardown keeps, mounted at /data/yolean.", ("qemu",)),
    Field("dataDiskSize", "data_disk_size", _SIZE, "10G", "Size of a new data disk.", ("qemu",)),
    Field("image", "image", Kind(_image, {"type": "string"}), DEFAULT_IMAGE, "URL or path of a cloud image (cloud-init, sshd, BIOS boot).", ("qemu",)),
    Field("imageSha256", "image_sha256", _pattern(r"([0-9a-f]{64})?", "a SHA-256 in lower-case hex"), "", "The image's digest; it is refused when it differs.", ("qemu",)),
    Field("accel", "accel", _choice("auto", "kvm", "tcg"), "auto", "auto: KVM where a VM really runs with it, else TCG.", ("qemu",)),
    Field("cpuModel", "cpu_model", _pattern(r"[-_.,=+A-Za-z0-9]*", "a QEMU CPU model"), "", "QEMU's -cpu. Empty: host with KVM, max with TCG.", ("qemu",)),
    Field("sshUser", "ssh_user", _pattern(r"[a-z_][-a-z0-9_]{0,31}", "a user name"), "ystack", "The login that cloud-init makes.", ("qemu",)),
    Field("image", "image", _STRING, "24.04", "Multipass image alias.", ("multipass",)),
)
# fmt: on


def config_file(directory: Path) -> Path:
    """The config in a directory (or the file itself, where that is what was named)."""
    if directory.is_file():
        return directory
    found = [directory / name for name in CONFIG_NAMES if (directory / name).is_file()]
    if len(found) > 1:
        raise ConfigError(f"{directory}: both {found[0].name} and {found[1].name}", hint="keep one of them")
    if not found:
        what = "no such directory" if not directory.is_dir() else f"no {CONFIG_NAMES[0]} in it"
        raise ConfigError(f"{directory}: {what}", hint="-c wants the directory that holds the config")
    return found[0]


def load_config(directory: Path) -> Config:
    """Read and check the config of a directory. ConfigError lists ALL problems, each with file:line:column."""
    path = config_file(Path(os.path.abspath(directory)))
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    return read_config(text, path)


def read_config(text: str, path: Path) -> Config:
    """`load_config` of text that is already in memory; `path` names it and anchors relative paths."""
    root = parse_yaml(text, str(path))
    reader = _Reader(path, root)
    if root.value is not None:
        reader.read(root, "")
    config = reader.config()
    reader.cross_check(config)
    if reader.problems:
        lines = [f"{path}:{line}:{column}: {text}" for (line, column), text in sorted(reader.problems)]
        more = f"{len(lines)} problems in {path.name}\n" if len(lines) > 1 else ""
        raise ConfigError(more + "\n".join(lines), hint=f"`ycluster schema {config.provider}` describes every key")
    return config


class _Reader:
    """Collects the values and the problems of one file."""

    def __init__(self, path: Path, root: Node) -> None:
        self.path = path
        self.problems: list[tuple[tuple[int, int], str]] = []
        self.values: dict[str, Any] = {}
        self.places: dict[str, tuple[int, int]] = {}
        named = root.value.get("provider") if isinstance(root.value, dict) else None
        self.provider = named.value if named and named.value in PROVIDERS else "qemu"
        self.fields = {known.key: known for known in FIELDS if self.provider in known.providers}

    def problem(self, node: Node, text: str) -> None:
        self.problems.append(((node.line, node.column), text))

    def read(self, node: Node, prefix: str) -> None:
        if not isinstance(node.value, dict):
            what = prefix.rstrip(".") or "the config"
            return self.problem(node, f"{what}: wants a mapping of keys to values, not {_sort(node)}")
        for key, child in node.value.items():
            path = prefix + key
            self.places[path] = (child.line, child.column)
            if path in self.fields:
                self._leaf(self.fields[path], child)
            elif not any(known.startswith(path + ".") for known in self.fields):
                self.problem(child, f"{path}: no such key{self._suggest(path)}")
            elif child.value is not None:
                self.read(child, path + ".")

    def _leaf(self, field: Field, node: Node) -> None:
        if node.value is None:  # `key:` with nothing behind it is the default, as in the sibling
            return
        try:
            self.values[field.attr] = field.kind.parse(node, self.path.parent)
        except ValueError as error:
            self.problem(node, f"{field.key}: {error}")

    def _suggest(self, path: str) -> str:
        if any(known.key == path for known in FIELDS):
            return f" for provider {self.provider}"
        return _nearest(path, list(self.fields))

    def config(self) -> Config:
        values = {known.attr: known.default for known in reversed(FIELDS)}  # qemu's, where two share an attribute
        values.update({known.attr: known.default for known in self.fields.values()})
        values.update(self.values)
        if not values["port_forwards"] and values["k3s_install"] != "none":
            values["port_forwards"] = _DEFAULT_FORWARDS
        if values["image"] == DEFAULT_IMAGE and not values["image_sha256"]:
            values["image_sha256"] = DEFAULT_IMAGE_SHA256
        return Config(file=self.path, **values)

    def cross_check(self, config: Config) -> None:
        """Rules between keys. They speak only where each key alone is right."""
        if self.problems or config.provider != "qemu":
            return
        hosts = [forward.host for forward in config.port_forwards]
        at = self.places.get("portForwards", (1, 1))
        if config.ssh_port and config.ssh_port in hosts:
            self.problems.append((at, f"portForwards: host port {config.ssh_port} is sshPort's already"))
        if any(forward.guest == 22 for forward in config.port_forwards):
            self.problems.append((at, "portForwards: guest port 22 is sshPort's business"))
        if config.k3s_install != "none" and all(forward.guest != 6443 for forward in config.port_forwards):
            self.problems.append((at, "portForwards: guest port 6443 is missing; kubectl would not reach k3s"))


def show_config(config: Config) -> dict[str, Any]:
    """The effective config, nested as in the file, defaults filled."""
    shown: dict[str, Any] = {}
    for known in FIELDS:
        if config.provider in known.providers:
            *parents, leaf = known.key.split(".")
            inner = shown
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[leaf] = known.kind.show(getattr(config, known.attr))
    return shown


def schema_for(which: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a provider's config, or of the keys that are `common` to all."""
    root: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{CONFIG_NAMES[0]} ({which})",
        "description": "Generated by `ycluster schema --write`; not by hand.",
        "type": "object",
        "additionalProperties": False,
        "properties": {},
    }
    for known in FIELDS:
        if which in known.providers or (which == "common" and known.providers == PROVIDERS):
            *parents, leaf = known.key.split(".")
            inner = root
            for parent in parents:
                empty = {"type": "object", "additionalProperties": False, "properties": {}}
                inner = inner["properties"].setdefault(parent, empty)
            entry = {"description": known.doc, "default": known.kind.show(known.default), **known.kind.schema}
            if known.key == "provider" and which != "common":
                entry = {"description": known.doc, "default": which, "const": which}
            inner["properties"][leaf] = entry
    return root


def budget(text: str) -> int | None:
    """Nanoseconds of a `maxRun` text, None where it says that there is no budget."""
    return None if text in ("", "0") else parse_duration(text)


# === 8 state sidecar =================================================================================


@dataclass(frozen=True)
class Files:
    """What a cluster owns on disk: everything under its cacheDir that begins with its name."""

    cache_dir: Path
    name: str

    def _at(self, suffix: str) -> Path:
        return self.cache_dir / (self.name + suffix)

    # fmt: off
    sidecar = property(lambda self: self._at(".json"))
    lock = property(lambda self: self._at(".lock"))          # held while the sidecar or the VM changes
    disk = property(lambda self: self._at(".qcow2"))
    pidfile = property(lambda self: self._at(".pid"))        # its path in QEMU's argv is QEMU's identity
    vm_lock = property(lambda self: self._at(".vm.lock"))    # held by QEMU itself for as long as it lives
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
    log = property(lambda self: self._at(".reap.log"))       # what its timers said
    # fmt: on

    def disposable(self) -> list[Path]:
        """What a teardown removes besides the disk and its key; the sidecar goes last."""
        return [
            self.pidfile, self.qmp, self.vm_lock, self.watch_lock, self.console, self.seed, self.host_key,
            self.host_pub, self.known_hosts, self.program, self.log, self._at("-seed.img"),
            self._at("-cloud-init.yaml"), self._at("-meta-data.yaml"), self.sidecar,
        ]  # fmt: skip


@dataclass(frozen=True)
class ArmedTimer:
    """The timer that guards a cluster, as its backend knows it. Backend `none`: the user has disarmed it."""

    backend: str
    id: str
    deadline: int  # seconds since the epoch: when it fires


@dataclass(frozen=True)
class Reaped:
    """The last expiry that was carried out: when, what was done, what fired it and how the VM ended."""

    at: int
    action: str
    by: str
    how: str


@dataclass(frozen=True)
class State:
    """The sidecar. `extra` holds the fields that this program doesn't know; they are written back as they were."""

    name: str
    cache_dir: str
    context: str = "local"
    disk_size: str = "20G"
    memory: str = "8192"  # MB
    cpus: str = "4"
    ssh_port: int = 2222
    port_forwards: tuple[PortForward, ...] = ()
    k3s_version: str = ""
    k3s_install: str = ""
    lifetime: str = ""  # a Go duration; "" or "0": no budget
    on_expiry: str = "stop"
    expires_at: int | None = None  # seconds since the epoch; None: nothing is counting
    started_at: int | None = None  # None: the VM has never been started
    image: str = ""
    data_disk: str = ""
    ssh_user: str = "ystack"
    accel: str = "auto"
    cpu_model: str = ""
    machine: str = ""
    boot_id: str = ""
    auto_ports: tuple[int, ...] = ()  # guest ports whose host port QEMU chooses anew at each start
    timer: ArmedTimer | None = None
    reaped: Reaped | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> Files:
        return Files(Path(self.cache_dir), self.name)

    @property
    def disarmed(self) -> bool:
        return self.timer is not None and self.timer.backend == "none"


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("is no string")
    return value


def _decode_port(value: Any) -> int:
    if not re.fullmatch(r"[0-9]{0,5}", _str(value), re.ASCII) or int(value or "0") > 65535:
        raise ValueError("is no port")
    return int(value or "0")


def _decode_forwards(value: Any) -> tuple[PortForward, ...]:
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ValueError("is no list of {Host, Guest}")
    return tuple(PortForward(_decode_port(item.get("Host", "")), _decode_port(item.get("Guest", ""))) for item in value)


def _encode_forwards(forwards: Sequence[PortForward]) -> Any:
    return [{"Host": str(forward.host), "Guest": str(forward.guest)} for forward in forwards]


def _decode_time(value: Any) -> int | None:
    return parse_time(_str(value)) if value != "" else None


def _encode_time(value: int | None) -> Any:
    return "" if value is None else format_time(value)


def _decode_ports(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise ValueError("is no list of ports")
    return tuple(_decode_port(item) for item in value)


def _decode_action(value: Any) -> str:
    if value not in ("", *ACTIONS):
        raise ValueError(f"is none of {', '.join(ACTIONS)}")
    return value or "stop"  # unset is stop, as in the sibling


def _decode_budget(value: Any) -> str:
    budget(_str(value))
    return str(value)


def _record(kind: type[Any]) -> Callable[[Any], Any]:
    """Decoder of a small flat object: strings, and times under the names of ints."""

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            raise ValueError("is no object")
        given = {item.name: _str(value.get(item.name, "")) for item in dataclasses.fields(kind)}
        return kind(**{key: parse_time(text) if key in ("at", "deadline") else text for key, text in given.items()})

    return decode


def _encode_record(value: Any) -> Any:
    return {key: format_time(item) if isinstance(item, int) else item for key, item in vars(value).items()}


def _same(value: Any) -> Any:
    return value


# (attribute, JSON key, decode, encode, whether the key is left out while the value is empty)
_Codec = tuple[str, str, Callable[[Any], Any], Callable[[Any], Any], bool]
_SIDECAR: tuple[_Codec, ...] = (
    ("name", "name", _str, _same, False),
    ("disk_size", "diskSize", _str, _same, False),
    ("memory", "memory", _str, _same, False),
    ("cpus", "cpus", _str, _same, False),
    ("ssh_port", "sshPort", _decode_port, str, False),
    ("port_forwards", "portForwards", lambda v: _decode_forwards(v or []), _encode_forwards, False),
    ("context", "context", _str, _same, False),
    ("cache_dir", "cacheDir", _str, _same, False),
    ("lifetime", "lifetime", _decode_budget, _same, True),
    ("on_expiry", "onExpiry", _decode_action, _same, False),
    ("expires_at", "expiresAt", _decode_time, _encode_time, True),
    ("started_at", "startedAt", _decode_time, _encode_time, True),
    ("image", "image", _str, _same, True),
    ("data_disk", "dataDisk", _str, _same, True),
    ("ssh_user", "sshUser", _str, _same, False),
    ("accel", "accel", _str, _same, False),
    ("cpu_model", "cpuModel", _str, _same, True),
    ("machine", "machine", _str, _same, True),
    ("boot_id", "bootId", _str, _same, True),
    ("auto_ports", "autoPorts", _decode_ports, lambda ports: [str(port) for port in ports], True),
    ("timer", "timer", _record(ArmedTimer), _encode_record, True),
    ("reaped", "reaped", _record(Reaped), _encode_record, True),
)


def decode_state(text: str, path: Path) -> State:
    """The state in a sidecar's text; StateError names the file, the field and the way out."""
    hint = f"mend or remove {path}; a VM that may still run is found by `pgrep -af {path.stem}.pid`"
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StateError(f"{path}: not JSON: {error}", hint=hint) from None
    if not isinstance(data, dict):
        raise StateError(f"{path}: not a JSON object", hint=hint)
    if data.get("version") != 1:
        later = f"version {data.get('version')!r}, and this ycluster knows version 1"
        raise StateError(f"{path}: {later}", hint="use the ycluster that wrote it")
    values: dict[str, Any] = {}
    for attr, key, decode, _, _ in _SIDECAR:
        if data.get(key) is not None:
            try:
                values[attr] = decode(data[key])
            except (ValueError, OverflowError) as error:
                raise StateError(f"{path}: {key} {error}", hint=hint) from None
    k3s = data.get("k3s")
    if isinstance(k3s, dict):
        values["k3s_version"], values["k3s_install"] = str(k3s.get("Version", "")), str(k3s.get("Install", ""))
    if values.get("name") != path.stem:
        raise StateError(f"{path}: it names the cluster {values.get('name')!r}", hint=hint)
    # Where the file lies is where its neighbours are; the directory may have been moved or linked.
    values["cache_dir"] = str(path.parent)
    known = {key for _, key, _, _, _ in _SIDECAR} | {"version", "k3s"}
    return State(extra={key: value for key, value in data.items() if key not in known}, **values)


def encode_state(state: State) -> str:
    data: dict[str, Any] = {"version": 1}
    for attr, key, _, encode, optional in _SIDECAR:
        value = getattr(state, attr)
        if not optional or value:
            data[key] = encode(value)
    data["k3s"] = {"Version": state.k3s_version, "Install": state.k3s_install}
    return to_json({**data, **state.extra}) + "\n"


def load_state(files: Files) -> State:
    """The cluster's state; StateError when there is no such cluster or its sidecar is unreadable."""
    try:
        text = files.sidecar.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise StateError(
            f"no cluster {files.name} in {files.cache_dir}", hint="`ycluster list` shows those there are"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise StateError(f"{files.sidecar}: {error}") from None
    return decode_state(text, files.sidecar)


def save_state(state: State) -> State:
    """Write the sidecar, whole or not at all. Only under the cluster's lock."""
    write_file(state.files.sidecar, encode_state(state).encode("utf-8"))
    return state


def state_from_config(config: Config, cache_dir: Path) -> State:
    """The state of a cluster that is about to be made."""
    ports = [*config.port_forwards, PortForward(config.ssh_port, 22)]
    return State(
        name=config.name,
        cache_dir=str(cache_dir),
        context=config.context,
        disk_size=config.disk_size,
        memory=str(config.memory),
        cpus=str(config.cpus),
        ssh_port=config.ssh_port,
        port_forwards=config.port_forwards,
        k3s_version=config.k3s_version,
        k3s_install=config.k3s_install,
        lifetime=config.max_run,
        on_expiry=config.on_expiry,
        image=config.image,
        ssh_user=config.ssh_user,
        accel=config.accel,
        cpu_model=config.cpu_model,
        auto_ports=tuple(forward.guest for forward in ports if forward.host == 0),
    )


# --- every cluster of this user: the default cacheDir, and an index of links to the others


def default_cache_dir(host: Host) -> Path:
    return host.home() / ".cache" / "y-cluster-qemu"


def remember_cache_dir(host: Host, cache_dir: Path) -> None:
    """Link to a cacheDir from the user's index. One link a directory, named by a hash: no lock, never half there."""
    try:
        index = host.state_home() / "cachedirs"
        make_private_dir(index)
        (index / hashlib.sha256(os.fsencode(cache_dir)).hexdigest()[:16]).symlink_to(cache_dir)
    except FileExistsError:
        pass
    except (OSError, YclusterError) as error:
        host.output.warn(f"{error}: `list` will not see the clusters in {cache_dir}")


def discover(host: Host) -> list[Files]:
    """The clusters of this user, by name then place; whether a sidecar can be read is not asked here."""
    found: dict[Path, Files] = {}
    places: list[Path] = []
    with contextlib.suppress(OSError, YclusterError):  # a host may have no home
        places.append(default_cache_dir(host))
        places += sorted((host.state_home() / "cachedirs").iterdir())
    for place in places:
        real = place.resolve()
        with contextlib.suppress(OSError):
            for path in real.glob("*.json"):
                if re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", path.stem):
                    found[path] = Files(real, path.stem)
    return sorted(found.values(), key=lambda files: (files.name, str(files.cache_dir)))


# === 9 lifetime decisions ============================================================================


@dataclass(frozen=True)
class Decision:
    """What `reap` has to do: `nothing`, `rearm`, or one of ACTIONS, and why."""

    do: str
    why: str


def decide(state: State, now: float) -> Decision:
    """The whole of reap's judgement. It trusts nothing but the sidecar: a timer may be stale, early or late."""
    if state.disarmed:
        return Decision("nothing", "disarmed by hand; `ycluster lifetime arm` arms it again")
    if state.expires_at is None:
        return Decision("nothing", "not armed" if budget(state.lifetime) else "it has no lifetime budget")
    if now < state.expires_at:
        return Decision("rearm", f"due in {in_words(state.expires_at - now)}")
    return Decision(state.on_expiry, f"due since {in_words(now - state.expires_at)}")


def anchored(state: State, now: float, boot_id: str) -> State:
    """The state of a VM that starts now: a fresh budget, counted from here."""
    nanoseconds = budget(state.lifetime)
    started = int(now)
    expires = None if nanoseconds is None else -int(-(now * 10**9 + nanoseconds) // 10**9)  # never early: ceil
    timer = None if state.disarmed else state.timer  # what stood guard before is still to be taken away
    return replace(
        state, started_at=started, expires_at=expires, boot_id=boot_id, timer=timer, reaped=None
    )  # fmt: skip


def stopped(state: State) -> State:
    """The state of a VM that no longer runs: nothing counts. Its timer is still to be taken away."""
    return replace(state, expires_at=None)


def extended(state: State, nanoseconds: int, now: float) -> State:
    """The deadline pushed out: from where it is, or from now where it has passed already."""
    if state.expires_at is None:
        raise YclusterError(
            f"{state.name}: no deadline is counting, so there is none to extend",
            hint="`ycluster start` gives a fresh budget; lifetime.maxRun in the config sets it",
        )
    if nanoseconds <= 0:
        raise UsageError("extend wants a positive duration, such as 2h")
    later = -(-nanoseconds // 10**9)
    expires = max(state.expires_at, int(now)) + later
    if expires > now + 100 * 365 * 86400:
        raise UsageError("that is more than a hundred years from now", hint="`ycluster lifetime disarm` means never")
    return replace(state, expires_at=expires)


def retry_delay(late: float) -> float:
    """Seconds until a failed action is tried again: half of how late it is already, 30 s to 15 min."""
    return min(max(late / 2, 30.0), 900.0)


# === 10 timers =======================================================================================


class Timer(Protocol):
    """A way to have `ycluster lifetime reap` run at a time. `id` is the backend's own name for one arming."""

    name: str
    survives: Mapping[str, str]
    advice: str  # the command that would make it stronger, empty where nothing would

    def unusable(self, host: Host) -> str:
        """Why it would not outlive what the VM outlives; empty when it would."""

    def arm(self, host: Host, files: Files, deadline: int) -> str: ...

    def armed(self, host: Host, files: Files, timer: ArmedTimer) -> bool: ...

    def cancel(self, host: Host, files: Files, timer: ArmedTimer) -> None: ...


def timer_argv(host: Host, files: Files, backend: str, *verb: str) -> list[str]:
    """What a timer runs: the private copy, by absolute paths, in an isolated Python with no site-packages."""
    interpreter = [host.interpreter(), "-I", "-S", str(files.program)]
    return [*interpreter, "lifetime", *verb, "--state", str(files.sidecar), "--by", backend]


def install_program(host: Host, files: Files) -> None:
    """Keep a copy of this program beside the sidecar: moving, upgrading or deleting ours loses no reap."""
    source = host.program_source()
    with contextlib.suppress(FileNotFoundError):
        if files.program.read_bytes() == source:
            return
    write_file(files.program, source, mode=0o600)


def unit_name(files: Files, deadline: int, nonce: str) -> str:
    """A transient unit's name. The place is in it as a hash, for clusters of one name in two cacheDirs; the
    deadline and a nonce, because a re-arm under the name of the unit that runs it is refused."""
    place = hashlib.sha256(os.fsencode(files.sidecar)).hexdigest()[:8]
    return f"ycluster-reap-{files.name}-{place}-{deadline}-{nonce}"


class SystemdTimer:
    """A transient timer of the user's systemd, on calendar time: it catches up after a suspend."""

    name = "systemd"
    survives: Mapping[str, str] = {
        "logout": "yes: lingering is on",
        "suspend": "yes: it fires when the host wakes",
        "reboot": "not needed: the VM ends with the host",
    }
    advice = ""

    def unusable(self, host: Host) -> str:
        if not host.which("systemd-run") or not host.which("systemctl"):
            return "systemd-run is not installed"
        if not self._answers(host):
            return "no systemd user manager answers"
        if not self._lingers(host):
            return f"{host.user()} does not linger: its systemd ends at logout, a VM does not"
        return ""

    def _answers(self, host: Host) -> bool:
        return host.attempt(["systemctl", "--user", "show", "--property=Version"], timeout=10) is not None

    def _lingers(self, host: Host) -> bool:
        if Path("/var/lib/systemd/linger", host.user()).exists():
            return True
        argv = ["loginctl", "show-user", str(host.uid()), "--property=Linger", "--value"]
        answer = host.attempt(argv, timeout=10)
        return answer is not None and answer.stdout.strip() == "yes"

    def arm(self, host: Host, files: Files, deadline: int) -> str:
        unit = unit_name(files, deadline, secrets.token_hex(2))
        # A calendar time that has passed by the time systemd reads it never fires.
        moment = max(deadline, int(host.now()) + 3)
        argv = [
            "systemd-run", "--user", "--quiet", "--collect",
            f"--unit={unit}", f"--description=expiry of the ycluster cluster {files.name}",
            f"--on-calendar={datetime.fromtimestamp(moment, timezone.utc):%Y-%m-%d %H:%M:%S} UTC",
            "--timer-property=AccuracySec=1s", "--timer-property=RemainAfterElapse=no",
            "--property=KillMode=process",  # what a reap re-arms must outlive its service
            *(f"--setenv={name}={value}" for name, value in host.child_env().items()),
            *(word.replace("$", "$$") for word in timer_argv(host, files, self.name, "reap")),
        ]  # fmt: skip
        host.run(argv, timeout=30)
        if not self._waits(host, unit):
            raise YclusterError(f"systemd took {unit}.timer and has no time for it to fire")
        return unit

    def _waits(self, host: Host, unit: str) -> bool:
        argv = ["systemctl", "--user", "show", f"{unit}.timer", "--property=ActiveState,SubState"]
        answer = host.attempt(argv, timeout=10)
        return answer is not None and ("SubState=waiting" in answer.stdout or "SubState=running" in answer.stdout)

    def armed(self, host: Host, files: Files, timer: ArmedTimer) -> bool:
        return self._waits(host, timer.id)

    def cancel(self, host: Host, files: Files, timer: ArmedTimer) -> None:
        host.run(["systemctl", "--user", "stop", f"{timer.id}.timer"], timeout=30, check=False)


class AtTimer:
    """at(1). It drops seconds: the job comes up to a minute early and waits the rest out itself."""

    name = "at"
    survives: Mapping[str, str] = {
        "logout": "yes",
        "suspend": "yes: it fires when the host wakes",
        "reboot": "yes",
    }
    advice = ""
    QUEUE = "y"

    def unusable(self, host: Host) -> str:
        if not host.which("at"):
            return "at is not installed"
        if not self._daemon_runs():
            return "atd is not running"
        return "" if self._jobs(host) is not None else "at does not let this user in"

    def _daemon_runs(self) -> bool:
        """With no daemon at(1) warns, exits 0 and never runs the job."""
        return any(_comm(pid) == "atd" for pid in _pids())

    def _jobs(self, host: Host) -> list[str] | None:
        # Not only our queue: while a job runs, atq lists it under `=`.
        answer = host.attempt(["atq"], timeout=10)
        return None if answer is None else [line.split()[0] for line in answer.stdout.splitlines() if line.strip()]

    def arm(self, host: Host, files: Files, deadline: int) -> str:
        command = shlex.join(timer_argv(host, files, self.name, "reap", "--wait", f"{AT_EARLY:.0f}s"))
        job = f"umask 077\nexec {command} >>{shlex.quote(str(files.log))} 2>&1 </dev/null\n"
        moment = datetime.fromtimestamp(deadline, timezone.utc).strftime("%Y%m%d%H%M")
        argv = ["at", "-q", self.QUEUE, "-t", moment]
        answer = host.run(
            argv, timeout=30, stdin=job, cwd=Path("/"), env=host.child_env({"TZ": "UTC0", "SHELL": "/bin/sh"})
        )
        found = re.search(r"^job ([0-9]+) at ", answer.stderr, re.MULTILINE)
        if found is None:
            raise YclusterError(f"at did not say which job it made: {answer.stderr.strip()}")
        return found.group(1)

    def armed(self, host: Host, files: Files, timer: ArmedTimer) -> bool:
        return self._daemon_runs() and timer.id in (self._jobs(host) or [])

    def cancel(self, host: Host, files: Files, timer: ArmedTimer) -> None:
        host.run(["atrm", timer.id], timeout=30, check=False)


class WatcherTimer:
    """`lifetime watch` as a detached process of our own: it shares the VM's fate and needs nothing."""

    name = "watcher"
    survives: Mapping[str, str] = {
        "logout": "as the VM does: they end or go on together",
        "suspend": "yes: it looks at the clock every few seconds",
        "reboot": "not needed: the VM ends with the host",
    }
    advice = "loginctl enable-linger"

    def unusable(self, host: Host) -> str:
        return ""

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


TIMERS: tuple[Timer, ...] = (SystemdTimer(), AtTimer(), WatcherTimer())  # best first


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def _comm(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    return ""


def timers_for(host: Host) -> tuple[Timer, ...]:
    """All of them, or the one that YCLUSTER_TIMER names."""
    wanted = host.environ.get("YCLUSTER_TIMER", "")
    chosen = tuple(timer for timer in TIMERS if wanted in ("", timer.name))
    if not chosen:
        names = ", ".join(timer.name for timer in TIMERS)
        raise UsageError(f"YCLUSTER_TIMER={wanted}: it is none of {names}")
    return chosen


def timer_named(name: str) -> Timer | None:
    return next((timer for timer in TIMERS if timer.name == name), None)


def is_armed(host: Host, state: State) -> bool:
    """Whether the timer that the sidecar names really is there."""
    backend = timer_named(state.timer.backend) if state.timer else None
    return backend is not None and state.timer is not None and backend.armed(host, state.files, state.timer)


def arm_timer(host: Host, state: State, when: int | None = None) -> State:
    """Have the reap fire at `when` (the deadline, if not given), and save which timer does it.

    Under the cluster's lock. The new timer stands and is written down before the old one goes, so there is no
    moment without one. A timer that turns out not to work is passed over for the next best.
    """
    deadline = state.expires_at if when is None else when
    if deadline is None:
        return disarm_timer(host, state, None)
    old = state.timer
    if old and old.deadline == deadline and is_armed(host, state) and old.backend in [t.name for t in timers_for(host)]:
        return save_state(state)
    install_program(host, state.files)
    refused: list[str] = []
    for backend in timers_for(host):
        try:
            reason = backend.unusable(host)
            if not reason:
                timer = ArmedTimer(backend.name, backend.arm(host, state.files, deadline), deadline)
                state = save_state(replace(state, timer=timer))
                _cancel(host, state.files, old, keep=timer)
                return state
        except YclusterError as error:
            reason = str(error)
            host.output.warn(f"timer {backend.name}: {reason}")
        refused.append(f"{backend.name}: {reason}")
    save_state(replace(state, timer=None))
    raise PrerequisiteError(
        f"{state.name}: no timer can be armed; its deadline is saved, and nothing fires it ({'; '.join(refused)})",
        hint="have `ycluster lifetime reap --all` run by a scheduler of yours, or unset YCLUSTER_TIMER",
    )


def disarm_timer(host: Host, state: State, mark: ArmedTimer | None) -> State:
    """Save the state with `mark` in the place of its timer, then take the timer away."""
    old = state.timer
    state = save_state(replace(state, timer=mark))
    _cancel(host, state.files, old, keep=mark)
    return state


def _cancel(host: Host, files: Files, old: ArmedTimer | None, keep: ArmedTimer | None) -> None:
    """Best effort: a timer that is left over does no harm, since reap decides afresh."""
    backend = timer_named(old.backend) if old else None
    if old and backend and (keep is None or (keep.backend, keep.id) != (old.backend, old.id)):
        with contextlib.suppress(YclusterError, OSError):
            backend.cancel(host, files, old)


# === 11 gcloud flags =================================================================================


def gcp_flags(max_run: str) -> list[str]:
    """Flags of `gcloud compute instances create` by which GCE itself deletes the instance; none without a budget.

    GCE counts from each entry into RUNNING and takes 30 s to 120 days; gcloud checks neither bound. A fraction
    of a second is rounded up. Raises ConfigError outside the bounds.
    """
    nanoseconds = budget(max_run)
    if nanoseconds is None:
        return []
    seconds = -(-nanoseconds // 10**9)
    if not GCP_MIN_SECONDS <= seconds <= GCP_MAX_SECONDS:
        raise ConfigError(
            f"lifetime.maxRun {max_run} is {seconds} s; Compute Engine takes 30 s to 120 days (2880h)",
            hint="choose a budget within them",
        )
    return [f"--max-run-duration={seconds}s", "--instance-termination-action=DELETE"]


# === 12 QMP ==========================================================================================


class QmpError(YclusterError):
    """QEMU's monitor refused a command, said nothing in time, or hung up."""


class Qmp:
    """A client of QEMU's monitor (QEMU docs/interop/qmp-spec). One client at a time: a second one waits for
    the greeting. Every read has a deadline; events come between replies and are kept in `events`."""

    def __init__(self, sock: socket.socket, monotonic: Callable[[], float]) -> None:
        self.sock, self.monotonic = sock, monotonic
        self.buffer = b""
        self.events: list[Mapping[str, Any]] = []
        self.serial = 0

    @classmethod
    def connect(cls, path: Path, monotonic: Callable[[], float], *, timeout: float) -> Qmp:
        """Connect and negotiate. The directory is reached by a descriptor: a socket path is 107 bytes at most."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        directory = None
        try:
            directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
            sock.settimeout(timeout)
            sock.connect(f"/proc/self/fd/{directory}/{path.name}")
            qmp = cls(sock, monotonic)
            qmp._greet(timeout)
            return qmp
        except (OSError, YclusterError) as error:
            sock.close()
            raise QmpError(f"{path}: QEMU's monitor does not answer: {error}") from None
        finally:
            if directory is not None:
                os.close(directory)

    def _greet(self, timeout: float) -> None:
        until = self.monotonic() + timeout
        if "QMP" not in self._message(until):
            raise QmpError("no QMP greeting")
        self.execute("qmp_capabilities", timeout=timeout)

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *exc: object) -> None:
        self.sock.close()

    def peer_pid(self) -> int:
        """The pid of the QEMU that listens, from the kernel."""
        raw = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return int.from_bytes(raw[:4], sys.byteorder)

    def execute(self, command: str, arguments: Mapping[str, Any] | None = None, *, timeout: float = 5.0) -> Any:
        """Run a command and return its `return`; QmpError when it is refused or `timeout` seconds pass."""
        self.serial += 1
        request: dict[str, Any] = {"execute": command, "id": self.serial}
        if arguments is not None:
            request["arguments"] = arguments
        until = self.monotonic() + timeout
        try:
            self.sock.settimeout(timeout)
            self.sock.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{command}: {error}") from None
        while True:
            message = self._message(until)
            if message.get("id") == self.serial:
                if "error" in message:
                    raise QmpError(f"{command}: {message['error'].get('desc', message['error'])}")
                return message.get("return")
            if "event" in message:
                self.events.append(message)

    def _message(self, until: float) -> dict[str, Any]:
        """The next message; end of file (or a reset, which QEMU's exit may look like) is an error."""
        while b"\n" not in self.buffer:
            left = until - self.monotonic()
            if left <= 0:
                raise QmpError("no answer in time")
            try:
                self.sock.settimeout(left)
                chunk = self.sock.recv(65536)
            except socket.timeout:
                raise QmpError("no answer in time") from None
            except OSError as error:
                raise QmpError(f"connection lost: {error.strerror}") from None
            if not chunk:
                raise QmpError("QEMU closed the connection")
            self.buffer += chunk
        line, self.buffer = self.buffer.split(b"\n", 1)
        try:
            message = json.loads(line)
        except ValueError:
            message = None
        if not isinstance(message, dict):
            raise QmpError(f"not a QMP message: {line[:80]!r}")
        return message

    def wait_event(self, name: str, *, timeout: float) -> Mapping[str, Any] | None:
        """The first event of that name, seen already or coming within `timeout` seconds; else None."""
        until = self.monotonic() + timeout
        while True:
            for event in self.events:
                if event.get("event") == name:
                    return event
            try:
                message = self._message(until)
            except QmpError:
                return None
            if "event" in message:
                self.events.append(message)


# === 13 VM process ===================================================================================


@dataclass(frozen=True)
class Vm:
    """A running QEMU that is known to be ours. `pidfd` can't come to mean another process; close it."""

    pid: int
    pidfd: int


@contextlib.contextmanager
def find_vm(files: Files) -> Iterator[Vm | None]:
    """The cluster's QEMU, or None when it doesn't run.

    Any number may be in a pidfile: a process is ours only when its argv holds our `-pidfile` (so both siblings
    know each other's VMs). QEMU inherited a lock from us, too: while that is held it runs, whatever else is lost.
    """
    pidfd = None
    try:
        for pid in _candidates(files):
            try:
                pidfd = os.pidfd_open(pid)
            except OSError:
                continue
            if _runs_with_pidfile(pid, files.pidfile) and not _exited(pidfd, 0):
                yield Vm(pid, pidfd)
                return
            os.close(pidfd)
            pidfd = None
        yield None
    finally:
        if pidfd is not None:
            os.close(pidfd)


def _candidates(files: Files) -> Iterator[int]:
    with contextlib.suppress(OSError, ValueError):
        pid = int(files.pidfile.read_text(encoding="ascii"))
        if 0 < pid < 1 << 22:
            yield pid
    if flock_held(files.vm_lock):
        yield from _pids()


def _runs_with_pidfile(pid: int, pidfile: Path) -> bool:
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    named = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == b"-pidfile"]
    # The directory may be spelt otherwise there (a link, a relative path): same name, same place.
    return any(
        path == os.fsencode(pidfile)
        or (os.path.basename(path) == os.fsencode(pidfile.name) and _same_place(path, pidfile))
        for path in named
    )


def _same_place(path: bytes, pidfile: Path) -> bool:
    return os.path.realpath(os.path.dirname(path)) == os.fsencode(pidfile.parent.resolve())


def _exited(pidfd: int, timeout: float) -> bool:
    """Whether the process ends within `timeout` seconds; the kernel tells at once, nothing is polled."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(max(0, int(timeout * 1000))))


def _process_state(pid: int) -> str:
    """The kernel's one-letter state: T is stopped by a signal."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rsplit(")", 1)[1].split()[0]
    return ""


def running(files: Files) -> bool:
    with find_vm(files) as vm:
        return vm is not None


def vm_status(host: Host, files: Files) -> str:
    """`running`, `paused`, `stopped`, another run state of QEMU's, `busy` while another ycluster talks to it, or
    `unresponsive`."""
    with find_vm(files) as vm:
        if vm is None:
            return "stopped"
        if _process_state(vm.pid) == "T":
            return "paused"
        if not files.qmp.exists():
            return "running"  # started by the sibling, which has no monitor
        try:
            with Qmp.connect(files.qmp, host.monotonic, timeout=2.0) as qmp:
                return str(qmp.execute("query-status")["status"])
        except QmpError:
            if _exited(vm.pidfd, 0):
                return "stopped"
            return "busy" if flock_held(files.lock) else "unresponsive"


def pause_vm(host: Host, files: Files, vm: Vm) -> str:
    """Freeze the guest's CPUs, its memory kept; returns how it was done."""
    if not files.qmp.exists():
        signal.pidfd_send_signal(vm.pidfd, signal.SIGSTOP)
        return "SIGSTOP"
    with Qmp.connect(files.qmp, host.monotonic, timeout=5.0) as qmp:
        qmp.execute("stop")
    return "QMP stop"


def resume_vm(host: Host, files: Files, vm: Vm) -> None:
    """Undo both kinds of pause: ours, and the sibling's SIGSTOP."""
    signal.pidfd_send_signal(vm.pidfd, signal.SIGCONT)
    if files.qmp.exists():
        with Qmp.connect(files.qmp, host.monotonic, timeout=5.0) as qmp:
            qmp.execute("cont")


def stop_vm(host: Host, files: Files, vm: Vm, ssh_poweroff: Callable[[], object]) -> str:
    """Power the guest off, gently first, and return the rung that did it. Bounded: under three minutes.

    Killing QEMU drops what the guest wrote last, so each rung gets its time before the next.
    Raises YclusterError when QEMU outlives even SIGKILL.
    """
    steps = Steps(host.output, host.monotonic)
    with contextlib.suppress(OSError):
        signal.pidfd_send_signal(vm.pidfd, signal.SIGCONT)  # a frozen QEMU would ignore every rung
    rungs: tuple[tuple[str, Callable[[], object], float], ...] = (
        ("guest-shutdown", lambda: _powerdown(host, files, vm, steps), 0.0),
        ("ssh poweroff", ssh_poweroff, 20.0),
        ("QMP quit", lambda: _qmp_quit(host, files), 10.0),
        ("SIGTERM", lambda: signal.pidfd_send_signal(vm.pidfd, signal.SIGTERM), 10.0),
        ("SIGKILL", lambda: signal.pidfd_send_signal(vm.pidfd, signal.SIGKILL), 10.0),
    )
    for rung, act, patience in rungs:
        with contextlib.suppress(YclusterError, OSError):
            act()
        until = host.monotonic() + patience
        while True:
            if _exited(vm.pidfd, min(0.5, max(0.0, until - host.monotonic()))):
                steps.done(f"{files.name} is off by {rung}")
                remove(files.pidfile)
                remove(files.qmp)
                return rung
            if host.monotonic() >= until:
                break
            steps.waiting(f"{rung}: waiting for QEMU to end")
        host.output.warn(f"{files.name}: {rung} did not end it")
    raise YclusterError(f"{files.name}: QEMU (pid {vm.pid}) is alive after SIGKILL", hint="look into the kernel's log")


def _powerdown(host: Host, files: Files, vm: Vm, steps: Steps) -> None:
    """Press the ACPI power button until the guest goes; one that is still booting misses the first press."""
    with Qmp.connect(files.qmp, host.monotonic, timeout=5.0) as qmp:
        with contextlib.suppress(QmpError):
            qmp.execute("cont")  # a paused guest can't see the button
        began = host.monotonic()
        pressed = began - 10
        while host.monotonic() - began < POWERDOWN_TIMEOUT:
            if host.monotonic() - pressed >= 10:
                qmp.execute("system_powerdown")
                pressed = host.monotonic()
            if _exited(vm.pidfd, 0.5):
                return
            steps.waiting("guest-shutdown: waiting for the guest to power off")


def _qmp_quit(host: Host, files: Files) -> None:
    with Qmp.connect(files.qmp, host.monotonic, timeout=5.0) as qmp:
        qmp.execute("quit")


# === 14 QEMU machine =================================================================================


def _host_forward(host_port: int, guest_port: int) -> str:
    return f"hostfwd=tcp:{BIND_ADDRESS}:{host_port}-:{guest_port}"


def host_port(state: State, port: int, guest: int) -> int:
    """What to ask QEMU for: 0 (choose a free one) where the config left the choice to it."""
    return 0 if guest in state.auto_ports else port


def qemu_argv(state: State, accel: str) -> list[str]:
    """QEMU's command line. Run it with the cacheDir as its working directory.

    The sockets and logs are named without their directory: `-daemonize` leaves it only after they are open, and
    a socket path is 107 bytes at most. Disks are JSON, in which a comma in a path has no meaning.
    """
    files = state.files
    forwards = [_host_forward(host_port(state, state.ssh_port, 22), 22)]
    forwards += [_host_forward(host_port(state, f.host, f.guest), f.guest) for f in state.port_forwards]
    boot = {
        "driver": "qcow2", "node-name": "boot", "discard": "unmap",
        "file": {"driver": "file", "filename": str(files.disk), "discard": "unmap"},
    }  # fmt: skip
    seed = {"driver": "vvfat", "node-name": "seed", "dir": str(files.seed), "label": "CIDATA", "read-only": True}
    argv = [
        QEMU, "-name", f"guest={state.name}", "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none",
        "-machine", state.machine or "q35",
        "-accel", "kvm" if accel == "kvm" else "tcg,thread=multi",
        "-cpu", state.cpu_model or ("host" if accel == "kvm" else "max"),
        "-smp", state.cpus, "-m", f"{state.memory}M",
        "-blockdev", json.dumps(boot), "-device", "virtio-blk-pci,drive=boot,bootindex=0",
        "-netdev", ",".join(["user", "id=net", *forwards]), "-device", "virtio-net-pci,netdev=net,romfile=",
        "-device", "virtio-rng-pci",
        "-chardev", f"file,id=console,path={files.console.name}", "-serial", "chardev:console",
        "-chardev", f"socket,id=qmp,path={files.qmp.name},server=on,wait=off", "-mon", "chardev=qmp,mode=control",
        "-pidfile", str(files.pidfile), "-daemonize",
    ]  # fmt: skip
    if files.seed.is_dir():  # the sibling's disks have had theirs at the first boot
        argv += ["-blockdev", json.dumps(seed), "-device", "virtio-blk-pci,drive=seed"]
    return argv


def versioned_machine(listing: str) -> str:
    """The versioned name behind `q35` in `-machine help`: it keeps the guest's hardware over QEMU's upgrades."""
    found = re.search(r"^q35 .*\(alias of ([-.\w]+)\)", listing, re.MULTILINE)
    return found.group(1) if found else "q35"


def accelerators(host: Host, state: State) -> list[str]:
    """What to try, best first. A KVM that has failed in this boot of the host under this QEMU isn't tried again."""
    if state.accel != "auto":
        return [state.accel]
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return ["tcg"]
    with contextlib.suppress(OSError):
        if _kvm_memo(state.files).read_text(encoding="utf-8") == _kvm_identity(host):
            return ["tcg"]
    return ["kvm", "tcg"]


def _kvm_memo(files: Files) -> Path:
    return files.cache_dir / ".kvm-unusable"


def _kvm_identity(host: Host) -> str:
    version = host.attempt([QEMU, "--version"], timeout=20)
    return f"{host.boot_id()} {version.stdout.splitlines()[0] if version and version.stdout else ''}\n"


def launch(host: Host, state: State) -> State:
    """Start QEMU and return the state with what it chose: accelerator, machine, ports. Under the cluster's lock.

    Only running tells whether KVM works: a device that opens, and even a QEMU that starts, prove nothing.
    Raises YclusterError, with nothing left running, when no accelerator gets the guest to run.
    """
    if not state.machine:
        listing = host.run([QEMU, "-machine", "help"], timeout=20).stdout
        state = replace(state, machine=versioned_machine(listing))
    choices = accelerators(host, state)
    for accel in choices:
        try:
            _spawn_qemu(host, state, accel)
            if accel == "kvm":
                _watch_first_steps(host, state.files)
            break
        except YclusterError as error:
            _discard_vm(state.files)
            if accel == choices[-1]:
                raise
            host.output.say(f"  KVM does not run a VM here, so QEMU emulates (slower): {str(error).split(';')[0]}")
            write_file(_kvm_memo(state.files), _kvm_identity(host).encode())
    return _with_ports(host, state)


def _spawn_qemu(host: Host, state: State, accel: str) -> None:
    """Run QEMU until it has made itself a daemon. It inherits the VM lock and holds it to its last breath."""
    files = state.files
    remove(files.qmp)
    remove(files.pidfile)
    give_up = host.monotonic() + 5
    fd = try_flock(files.vm_lock)
    while fd is None:  # a glance at the lock by another ycluster passes in microseconds; QEMU's hold does not
        if host.monotonic() > give_up:
            raise YclusterError(f"{state.name}: its QEMU already runs", hint="`ycluster status` says more")
        host.sleep(0.01)
        fd = try_flock(files.vm_lock)
    try:
        # QEMU's daemon has a umask of its own, 027.
        os.close(os.open(files.console, os.O_WRONLY | os.O_CREAT, 0o600))
        host.run(qemu_argv(state, accel), timeout=60, cwd=files.cache_dir, pass_fds=(fd,))
        files.qmp.chmod(0o600)
    finally:
        os.close(fd)


def _watch_first_steps(host: Host, files: Files) -> None:
    """Raise unless the guest keeps running until it writes to its console, or for two seconds."""
    with Qmp.connect(files.qmp, host.monotonic, timeout=5.0) as qmp:
        until = host.monotonic() + 2
        while host.monotonic() < until and not files.console.stat().st_size:
            status = qmp.execute("query-status")["status"]
            if status != "running":
                raise YclusterError(f"the guest stopped at once ({status})")
            qmp.wait_event("STOP", timeout=0.1)


def _discard_vm(files: Files) -> None:
    """Kill a VM whose guest never ran: there is nothing in it to lose."""
    with find_vm(files) as vm:
        if vm is not None:
            signal.pidfd_send_signal(vm.pidfd, signal.SIGKILL)
            _exited(vm.pidfd, 10)


def _with_ports(host: Host, state: State) -> State:
    """The state with the host ports that QEMU chose for itself filled in."""
    if not state.auto_ports:
        return state
    with Qmp.connect(state.files.qmp, host.monotonic, timeout=5.0) as qmp:
        chosen = parse_usernet(qmp.execute("human-monitor-command", {"command-line": "info usernet"}))
    return replace(
        state,
        ssh_port=chosen.get(22, state.ssh_port),
        port_forwards=tuple(PortForward(chosen.get(f.guest, f.host), f.guest) for f in state.port_forwards),
    )


def parse_usernet(text: str) -> dict[int, int]:
    """Guest port -> host port, from the HOST_FORWARD lines of the monitor's `info usernet`."""
    found = re.findall(r"TCP\[HOST_FORWARD\]\s+\d+\s+\S+\s+(\d+)\s+\S+\s+(\d+)", text)
    return {int(guest): int(port) for port, guest in found}


def taken_ports(state: State) -> list[int]:
    """The host ports that QEMU could not bind now."""
    wanted = [host_port(state, state.ssh_port, 22)]
    wanted += [host_port(state, forward.host, forward.guest) for forward in state.port_forwards]
    taken = []
    for port in filter(None, wanted):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((BIND_ADDRESS, port))
            except OSError:
                taken.append(port)
    return taken


# === 15 guest ========================================================================================


def user_data(state: State, login_key: str, host_private: str, host_public: str) -> str:
    """cloud-init's user-data. JSON is YAML, so nothing needs quoting of its own.

    The host key is ours, so that the very first connection can be checked. The datasource list keeps a disk that
    boots elsewhere from asking every cloud for its metadata.
    """
    pin = {
        "path": "/etc/cloud/cloud.cfg.d/99-ycluster.cfg",
        "content": "datasource_list: [NoCloud, None]\n",
    }
    login = {
        "name": state.ssh_user,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
        "ssh_authorized_keys": [login_key.strip()],
    }
    cloud_config = {
        "hostname": state.name,
        "users": [login],
        "ssh_deletekeys": True,
        "ssh_keys": {"ed25519_private": host_private, "ed25519_public": host_public.strip()},
        "package_update": False,
        "write_files": [pin],
    }
    return "#cloud-config\n" + to_json(cloud_config) + "\n"


def make_keys(host: Host, state: State) -> None:
    """Fresh keys of this VM's own: one to log in with, one for its sshd. Nothing touches ~/.ssh."""
    files = state.files
    for key, comment in ((files.ssh_key, f"ycluster {state.name}"), (files.host_key, f"root@{state.name}")):
        remove(key)
        remove(key.with_name(key.name + ".pub"))
        host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(key)], timeout=30)
    public = files.host_pub.read_text(encoding="ascii")
    write_file(files.known_hosts, f"{state.name} {' '.join(public.split()[:2])}\n".encode())


def make_seed(state: State) -> None:
    """The NoCloud seed: a directory that QEMU shows to the guest as a vfat volume labelled CIDATA."""
    files = state.files
    remove(files.seed)
    make_private_dir(files.seed)
    data = user_data(
        state,
        files.ssh_pub.read_text(encoding="ascii"),
        files.host_key.read_text(encoding="ascii"),
        files.host_pub.read_text(encoding="ascii"),
    )
    # A new id makes cloud-init apply the new key even to a disk that has booted before.
    meta = f"instance-id: {state.name}-{secrets.token_hex(8)}\nlocal-hostname: {state.name}\n"
    write_file(files.seed / "user-data", data.encode())
    write_file(files.seed / "meta-data", meta.encode())


def ssh_argv(state: State, *command: str) -> list[str]:
    """The ssh command for a cluster: its own key, its own known_hosts, strict from the first connection."""
    files = state.files
    # Without our host key (a VM of the sibling's) the first one seen is kept and held to.
    strict = "yes" if files.host_pub.exists() else "accept-new"
    return [
        "ssh", "-F", "/dev/null", "-i", _ssh_path(files.ssh_key), "-p", str(state.ssh_port),
        "-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20",
        "-o", f'UserKnownHostsFile="{_ssh_path(files.known_hosts)}"', "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", f"StrictHostKeyChecking={strict}", "-o", f"HostKeyAlias={state.name}",
        "-o", "ServerAliveInterval=15", f"{state.ssh_user}@{BIND_ADDRESS}", *command,
    ]  # fmt: skip


def _ssh_path(path: Path) -> str:
    return str(path).replace("%", "%%")  # ssh expands % in file names


def ssh_run(host: Host, state: State, command: str, *, timeout: float) -> Done:
    """Run a shell command in the guest; the status is the command's, or 255 when ssh itself failed."""
    return host.run(ssh_argv(state, command), timeout=timeout, check=False)


def ssh_banner(port: int, timeout: float) -> bool:
    """Whether an ssh server speaks. A TCP connect alone proves nothing: QEMU accepts with no guest listening."""
    try:
        with socket.create_connection((BIND_ADDRESS, port), timeout=timeout) as sock:
            sock.settimeout(timeout)
            return sock.recv(4) == b"SSH-"
    except OSError:
        return False


def wait_ready(host: Host, state: State, *, timeout: float) -> None:
    """Wait until the guest can be worked with: SSH banner, login, cloud-init done. Timed stages on stderr.

    Raises YclusterError with the console's tail as soon as QEMU ends or stops, TimedOut after `timeout` seconds.
    """
    steps = Steps(host.output, host.monotonic)
    until = host.monotonic() + timeout
    stages: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("SSH banner", lambda: ssh_banner(state.ssh_port, 2.0)),
        ("login", lambda: ssh_run(host, state, "true", timeout=60).returncode == 0),
        ("cloud-init done", lambda: _cloud_init_done(host, state)),
    )
    with find_vm(state.files) as vm:
        for stage, reached in stages:
            while True:
                if vm is None or _exited(vm.pidfd, 0):
                    raise YclusterError(
                        f"{state.name}: QEMU ended while waiting for {stage}; its console's last lines:\n"
                        + console_tail(state.files),
                        hint=f"the whole console: {state.files.console}",
                    )
                if reached():
                    break
                if host.monotonic() > until:
                    raise TimedOut(
                        f"{state.name}: no {stage} within {timeout:.0f} s; its console's last lines:\n"
                        + console_tail(state.files),
                        hint=f"it still runs, and its deadline holds: `ycluster stop --name {state.name}` ends it now",
                    )
                steps.waiting(f"waiting for {stage}")
                _exited(vm.pidfd, 0.2)
            steps.done(stage)


def _cloud_init_done(host: Host, state: State) -> bool:
    command = "command -v cloud-init >/dev/null || exit 0; cloud-init status --wait"
    done = ssh_run(host, state, command, timeout=READY_TIMEOUT)
    if done.returncode == 255:
        return False
    if done.returncode:  # 1: a module failed; 2: recoverable. The guest is up either way.
        host.output.warn(f"cloud-init in the guest: {' '.join(done.stdout.split()) or done.stderr.strip()}")
    return True


def console_tail(files: Files, lines: int = 12) -> str:
    """The last lines of the serial console, cleaned of what would drive a terminal."""
    try:
        with open(files.console, "rb") as file:
            file.seek(max(0, files.console.stat().st_size - 8192))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"    (no console: {error.strerror})"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\x20-\x7e]", "", text)
    tail = [line.rstrip() for line in text.split("\n") if line.strip()][-lines:]
    return "\n".join("    " + line for line in tail) or "    (the console is empty)"


# === 16 k3s ==========================================================================================


def check_k3s(config: Config) -> None:
    """Raise where the config asks for what this version can't install."""
    if config.k3s_install != "none":
        raise NotImplementedYet(
            f"k3s.install: {config.k3s_install} is not yet implemented",
            hint="`k3s: {install: none}` gives a plain VM",
        )


# === 17 kubeconfig ===================================================================================


def check_context(states: Sequence[State], config: Config, cache_dir: Path) -> None:
    """Raise when another cluster of this user goes by the context: `--context` must name one."""
    for state in states:
        if state.context == config.context and state.files != Files(cache_dir, config.name):
            raise ConfigError(
                f"{config.file}: context {config.context!r} is that of the cluster {state.name} in {state.cache_dir}",
                hint="give this one a context of its own",
            )


# === 18 disk images ==================================================================================


def fetch_image(host: Host, config: Config, cache_dir: Path) -> Path:
    """The cloud image as a file of our own, named by its SHA-256; downloads or copies it where it isn't there.

    Disks are overlays on it, so it must not change under them: a user's file is copied, never used in place.
    Raises PrerequisiteError when it can't be had, ConfigError when its digest differs.
    """
    images = cache_dir / "images"
    make_private_dir(images)
    if config.image_sha256 and (images / config.image_sha256).is_file():
        return images / config.image_sha256
    local = config.image[len("file://") :] if config.image.startswith("file://") else config.image
    with locked(host, images / ".lock", timeout=3600):
        if config.image_sha256 and (images / config.image_sha256).is_file():
            return images / config.image_sha256
        beside = images / f".{secrets.token_hex(4)}.tmp"
        try:
            with _open_image(Path(local)) if local.startswith("/") else _open_url(config.image) as source:
                digest = _copy_hashing(host, source, beside, config.image)
            if config.image_sha256 and digest != config.image_sha256:
                raise ConfigError(
                    f"{config.image}: its SHA-256 is {digest}, and imageSha256 says {config.image_sha256}",
                    hint="the image was changed or cut off; correct the one that is wrong",
                )
            beside.chmod(0o400)
            os.replace(beside, images / digest)
            return images / digest
        finally:
            remove(beside)


def _open_image(path: Path) -> IO[bytes]:
    try:
        return open(path, "rb")
    except OSError as error:
        raise PrerequisiteError(f"image {path}: {error.strerror}", hint="`image` in the config names it") from None


def _open_url(url: str) -> IO[bytes]:
    import urllib.request

    try:
        response: IO[bytes] = urllib.request.urlopen(url, timeout=60)
        return response
    except (OSError, ValueError) as error:
        raise PrerequisiteError(
            f"{url}: {error}",
            hint="set `image` (and imageSha256) in the config to a cloud image that this host can reach",
        ) from None


def _copy_hashing(host: Host, source: IO[bytes], target: Path, name: str) -> str:
    """Copy a stream to a new file and return its SHA-256. Blocks of zeros stay holes."""
    steps = Steps(host.output, host.monotonic)
    digest, size = hashlib.sha256(), 0
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "wb") as file:
        while True:
            block = source.read(1 << 20)
            if not block:
                break
            digest.update(block)
            if block.count(0) == len(block):
                file.seek(len(block), os.SEEK_CUR)
            else:
                file.write(block)
            size += len(block)
            steps.waiting(f"fetching the image: {size >> 20} MiB")
        file.truncate(size)
        file.flush()
        os.fsync(file.fileno())
    steps.done(f"image {Path(name).name}: {size >> 20} MiB")
    return digest.hexdigest()


def parse_size(text: str) -> int:
    """Bytes of a size as qemu-img writes it: 20G, 512M, 1073741824."""
    factor = {"K": 10, "M": 20, "G": 30, "T": 40}.get(text[-1:], 0)
    return int(text.rstrip("KMGT")) << factor


def make_disk(host: Host, state: State, image: Path) -> None:
    """The boot disk: a qcow2 overlay on the image, grown to diskSize."""
    info = json.loads(host.run(["qemu-img", "info", "--output=json", str(image)], timeout=60).stdout)
    if parse_size(state.disk_size) < info["virtual-size"]:
        raise ConfigError(
            f"diskSize {state.disk_size} is smaller than the image, which takes {info['virtual-size']} bytes",
            hint="a disk can be larger than its image, never smaller",
        )
    argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", info["format"]]
    host.run([*argv, str(state.files.disk), state.disk_size], timeout=120)


# === 19 commands =====================================================================================

PROGRAMS = {QEMU: "qemu-system-x86", "qemu-img": "qemu-utils", "ssh": "openssh-client", "ssh-keygen": "openssh-client"}


# --- which cluster


@dataclass(frozen=True)
class Target:
    """What the command line says of an existing cluster; at most one of them is given."""

    context: str | None = None
    name: str | None = None
    directory: Path | None = None
    sidecar: Path | None = None


def cache_dir_of(host: Host, config: Config) -> Path:
    return (config.cache_dir or default_cache_dir(host)).resolve()


def find_cluster(host: Host, target: Target) -> Files:
    """The one cluster that is meant: the named one; else the only one; else that of the context `local`."""
    if target.sidecar is not None:
        path = Path(os.path.abspath(target.sidecar))
        return Files(path.parent.resolve(), path.stem)
    if target.directory is not None:
        config = load_config(target.directory)
        require_qemu(config)
        return Files(cache_dir_of(host, config), config.name)
    every = discover(host)
    if target.name is not None:
        return _the_one([files for files in every if files.name == target.name], f"named {target.name}", every)
    if target.context is None and len(every) == 1:
        return every[0]
    context = target.context or "local"
    mine = [files for files, state in _readable(host, every) if state.context == context]
    return _the_one(mine, f"with the context {context}", every)


def _the_one(found: Sequence[Files], which: str, every: Sequence[Files]) -> Files:
    if len(found) == 1:
        return found[0]
    known = "\n".join(f"{files.name} in {files.cache_dir}" for files in found or every)
    if found:
        raise StateError(f"{len(found)} clusters {which}; name one by -c DIR:", hint=known)
    if not every:
        raise StateError(f"no cluster {which}: there are none at all", hint="`ycluster provision -c DIR` makes one")
    raise StateError(f"no cluster {which}; there are:", hint=known)


def _readable(host: Host, every: Sequence[Files]) -> list[tuple[Files, State]]:
    """Those whose sidecar can be read; a warning for each other. One bad sidecar never hides the rest."""
    found = []
    for files in every:
        try:
            found.append((files, load_state(files)))
        except StateError as error:
            if files.sidecar.exists():
                host.output.warn(str(error))
    return found


def require_qemu(config: Config) -> None:
    if config.provider != "qemu":
        raise NotImplementedYet(f"not yet implemented for {config.provider}", hint="`provider: qemu` is")


@contextlib.contextmanager
def cluster_lock(host: Host, files: Files, *, patience: float = LOCK_TIMEOUT) -> Iterator[None]:
    """Hold a cluster's lock. Its file goes when the cluster has gone, or didn't come to be."""
    with locked(host, files.lock, timeout=patience):
        try:
            yield
        finally:
            if not files.sidecar.exists():
                remove(files.lock)


@contextlib.contextmanager
def opened(host: Host, files: Files, *, patience: float = LOCK_TIMEOUT) -> Iterator[State]:
    """The state of an existing cluster, under its lock."""
    load_state(files)  # where there is none, this says so before anything is made
    with cluster_lock(host, files, patience=patience):
        yield load_state(files)


# --- life and death of a VM


def provision(host: Host, directory: Path) -> None:
    """Make a cluster and boot it. The deadline is saved and its timer armed before the guest gets to run."""
    config = load_config(directory)
    require_qemu(config)
    check_k3s(config)
    if config.data_disk:
        raise NotImplementedYet("dataDisk is not yet implemented", hint="leave it out")
    for key in ("gateway", "storage", "registries"):
        if getattr(config, key):
            host.output.warn(f"{key}: ignored, nothing of it is installed in a plain VM")
    host.need(PROGRAMS)
    cache_dir = cache_dir_of(host, config)
    state = state_from_config(config, cache_dir)
    files = state.files
    reap_overdue(host, spare=files)
    check_context([other for _, other in _readable(host, discover(host))], config, cache_dir)
    _refuse_existing(files)
    _check_ports(state)
    make_private_dir(cache_dir)
    image = fetch_image(host, config, cache_dir)  # outside the lock: it may take long, and touches no cluster
    with cluster_lock(host, files):
        _refuse_existing(files)
        remember_cache_dir(host, cache_dir)
        state = _create(host, state, image)
    _say_deadline(host, state)
    _finish_boot(host, state)


def _refuse_existing(files: Files) -> None:
    """Raise when the name is taken. What a provision left that was killed before its first boot is nobody's."""
    way_out = f"`ycluster start --name {files.name}` starts it, `ycluster teardown --name {files.name}` removes it"
    if running(files):
        raise YclusterError(f"{files.name} already runs", hint=way_out)
    if files.sidecar.exists():
        state = load_state(files)
        # Only our own sidecars name an image: a sibling's has no startedAt either, and its disk holds data.
        if not state.image or state.started_at is not None:
            raise YclusterError(f"{files.name} already exists in {files.cache_dir}", hint=way_out)
    elif files.disk.exists():
        raise YclusterError(
            f"{files.disk}: a disk is there that no cluster claims", hint="move it away, or choose another name"
        )


def _check_ports(state: State) -> None:
    taken = taken_ports(state)
    if taken:
        ports = ", ".join(map(str, taken))
        raise PrerequisiteError(
            f"{BIND_ADDRESS}: can't listen on {ports}: taken, or below 1024 and you are not root",
            hint='set sshPort or portForwards in the config to other ports ("0": QEMU chooses)',
        )


def _create(host: Host, state: State, image: Path) -> State:
    """Everything from nothing to a running QEMU, or nothing at all. The sidecar comes first: from then on the
    cluster is known, whatever kills us."""
    try:
        save_state(state)
        make_keys(host, state)
        make_disk(host, state, image)
        make_seed(state)
        return _boot(host, state)
    except BaseException:
        if not running(state.files):
            _erase(state.files, keep_disk=False)
        raise


def _boot(host: Host, state: State) -> State:
    """Anchor, save, arm, and only then run. A guest that didn't come to run leaves no deadline behind."""
    state = save_state(anchored(state, host.now(), host.boot_id()))
    try:
        state = arm_timer(host, state)
        return save_state(launch(host, state))
    except BaseException:
        if not running(state.files):
            disarm_timer(host, stopped(load_state(state.files)), None)
        raise


def _finish_boot(host: Host, state: State) -> None:
    """Wait without the lock, so that an extend, a stop or the reaper can get at the cluster meanwhile."""
    try:
        wait_ready(host, state, timeout=READY_TIMEOUT)
    except Interrupted as error:
        error.hint = f"it still runs, and its deadline holds: `ycluster stop --name {state.name}` ends it now"
        raise
    host.output.say(f"{state.name} is ready: {shlex.join(['ycluster', 'ssh', '--name', state.name])}")


def _say_deadline(host: Host, state: State) -> None:
    if state.expires_at is None:
        host.output.say(f"  {state.name} has no lifetime budget: it runs until you stop it")
    else:
        left = in_words(state.expires_at - host.now())
        by = f"{state.on_expiry}, by {state.timer.backend if state.timer else 'nothing'}"
        by = "disarmed by hand" if state.disarmed else by
        host.output.say(f"  deadline {local_time(state.expires_at)}, in {left}: {by}")


def start(host: Host, target: Target) -> None:
    """Boot a stopped cluster, with a fresh budget."""
    files = find_cluster(host, target)
    host.need(PROGRAMS)
    reap_overdue(host, spare=files)
    with opened(host, files) as state:
        status = vm_status(host, files)
        if status == "paused":
            raise YclusterError(f"{state.name} is paused", hint=f"`ycluster resume --name {state.name}` wakes it")
        if status != "stopped":
            host.output.say(f"{state.name} already runs")
            return _say_deadline(host, state)
        if not files.disk.exists():
            raise StateError(
                f"{files.disk}: the disk is gone", hint=f"`ycluster teardown --name {state.name}` clears the rest"
            )
        _check_ports(state)
        state = _boot(host, state)
    _say_deadline(host, state)
    _finish_boot(host, state)


def stop(host: Host, target: Target) -> None:
    """Power the guest off; the disk stays."""
    with opened(host, find_cluster(host, target)) as state:
        how = _halt(host, state)
        disarm_timer(host, stopped(state), None)
    host.output.say(f"{state.name} is stopped" if how else f"{state.name} was not running")


def _halt(host: Host, state: State) -> str:
    """Stop the VM; returns the rung of the ladder that ended it, empty where nothing ran."""
    with find_vm(state.files) as vm:
        if vm is None:
            return ""
        host.output.say(f"stopping {state.name} (pid {vm.pid})")
        poweroff = lambda: ssh_run(host, state, "sudo sync; sudo poweroff", timeout=15)  # noqa: E731
        return stop_vm(host, state.files, vm, poweroff)


def pause(host: Host, target: Target) -> None:
    """Freeze the guest: its memory stays, its CPUs stand still. The deadline goes on counting."""
    files = find_cluster(host, target)
    with opened(host, files) as state, find_vm(files) as vm:
        if vm is None:
            raise YclusterError(f"{state.name} is not running", hint="there is nothing to pause")
        if vm_status(host, files) != "paused":
            pause_vm(host, files, vm)
    host.output.say(f"{state.name} is paused")
    _say_deadline(host, state)


def resume(host: Host, target: Target) -> None:
    """Let a paused guest go on; with a fresh budget where the old one is used up."""
    files = find_cluster(host, target)
    reap_overdue(host, spare=files)
    with opened(host, files) as state, find_vm(files) as vm:
        if vm is None:
            raise YclusterError(f"{state.name} is stopped", hint=f"`ycluster start --name {state.name}` starts it")
        if vm_status(host, files) == "paused":
            if not state.disarmed and (state.expires_at is None or state.expires_at <= host.now()):
                state = save_state(anchored(state, host.now(), host.boot_id()))
                state = arm_timer(host, state)
            resume_vm(host, files, vm)
    host.output.say(f"{state.name} runs")
    _say_deadline(host, state)


def teardown(host: Host, target: Target, *, keep_disk: bool) -> None:
    """Stop the VM and remove the cluster's own files, and nothing else; says which. Twice is once."""
    files = find_cluster(host, target)
    if not files.sidecar.exists():
        return host.output.say(f"{files.name}: nothing to tear down in {files.cache_dir}")
    with opened(host, files) as state:
        _halt(host, state)
        disarm_timer(host, stopped(state), None)
        removed = _erase(files, keep_disk=keep_disk)
    host.output.say(f"{files.name} is torn down; removed: {' '.join(removed)}")
    if keep_disk and files.disk.exists():
        host.output.say(f"  kept: {files.disk} and {files.ssh_key}")


def _erase(files: Files, *, keep_disk: bool) -> list[str]:
    """Remove the cluster's files, the sidecar last; returns the names of those that were there."""
    disk = [] if keep_disk else [files.disk, files.ssh_key, files.ssh_pub]
    return [path.name for path in [*disk, *files.disposable()] if remove(path)]


# --- lifetime


def reap(host: Host, files: Files, *, by: str, wait: float = 0.0, patience: float = LOCK_TIMEOUT) -> None:
    """Carry out the expiry if it is due; re-arm if it is not; say so if nothing is armed.

    Safe by hand, from cron, from a stale timer and twice at once. A deadline at most `wait` seconds away is
    waited for. Raises YclusterError when the action failed; it has then been armed anew.
    """
    ahead = (load_state(files).expires_at or 0) - host.now()
    if 0 < ahead <= wait:
        host.sleep(ahead)
    with opened(host, files, patience=patience) as state:
        decision = decide(state, host.now())
        if decision.do == "nothing":
            host.output.say(f"{state.name}: nothing to reap: {decision.why}")
        elif decision.do == "rearm":
            state = arm_timer(host, state)
            host.output.say(f"{state.name}: {decision.why}; armed by {state.timer.backend if state.timer else '-'}")
        else:
            host.output.say(f"{format_time(host.now())} {state.name}: {decision.why}: {decision.do} (by {by})")
            _expire(host, state, decision.do, by)


def _expire(host: Host, state: State, action: str, by: str) -> None:
    try:
        how = _freeze(host, state.files) if action == "pause" else _halt(host, state)
    except (YclusterError, OSError) as error:
        late = host.now() - (state.expires_at or 0)
        again = int(host.now() + retry_delay(late))
        arm_timer(host, state, again)
        raise YclusterError(f"{state.name}: {action} failed, again at {local_time(again)}: {error}") from error
    record = Reaped(at=int(host.now()), action=action, by=by, how=how or "was not running")
    disarm_timer(host, replace(stopped(state), reaped=record), None)
    if action == "teardown":
        _erase(state.files, keep_disk=False)
    host.output.say(f"{format_time(host.now())} {state.name}: {action}: {record.how}")


def _freeze(host: Host, files: Files) -> str:
    with find_vm(files) as vm:
        if vm is None:
            return ""
        return pause_vm(host, files, vm) if vm_status(host, files) != "paused" else "was paused"


def reap_all(host: Host, *, by: str) -> None:
    """`reap` for every cluster; one that fails keeps no other from being reaped."""
    failed = []
    for files in discover(host):
        try:
            reap(host, files, by=by)
        except (YclusterError, OSError) as error:
            host.output.warn(f"{files.name}: {error}")
            failed.append(files.name)
    if failed:
        raise YclusterError(f"not reaped: {', '.join(failed)}")


def reap_overdue(host: Host, *, spare: Files) -> None:
    """Catch lost timers: reap what is overdue elsewhere. What somebody else is working on is left to them."""
    for files in discover(host):
        if files != spare:
            try:
                if decide(load_state(files), host.now()).do in ACTIONS:
                    reap(host, files, by="next command", patience=0.0)
            except Busy:
                pass
            except (YclusterError, OSError) as error:
                host.output.warn(f"{files.name}: {error}")


def extend(host: Host, target: Target, duration: str) -> None:
    """Push the deadline out and re-arm. It never reaps first, even where the deadline has passed."""
    try:
        nanoseconds = parse_duration(duration)
    except ValueError as error:
        raise UsageError(str(error), hint="a Go duration, such as 2h or 1h30m") from None
    if nanoseconds <= 0:
        raise UsageError(f"{duration}: extend wants a positive duration, such as 2h")
    files = find_cluster(host, target)
    with opened(host, files) as state:
        state = save_state(extended(state, nanoseconds, host.now()))
        if not state.disarmed:
            state = arm_timer(host, state)
    host.output.say(f"{state.name}: extended by {duration}")
    _say_deadline(host, state)


def arm(host: Host, target: Target) -> None:
    """(Re)install the timer; a running cluster that has a budget and no deadline gets one from now."""
    files = find_cluster(host, target)
    with opened(host, files) as state:
        if state.expires_at is None:
            if budget(state.lifetime) is None:
                raise YclusterError(
                    f"{state.name} has no lifetime budget", hint="lifetime.maxRun in the config sets it"
                )
            if not running(files):
                raise YclusterError(f"{state.name} is not running", hint="`ycluster start` gives it a fresh budget")
            state = save_state(anchored(state, host.now(), host.boot_id()))
        state = arm_timer(host, state)
    if state.expires_at is not None and state.expires_at <= host.now():
        host.output.warn(f"{state.name}: its deadline has passed, so the timer fires now")
    _say_deadline(host, state)


def disarm(host: Host, target: Target) -> None:
    """Take the timer away; the deadline stays written down, and nothing acts on it until `arm` or a start."""
    files = find_cluster(host, target)
    with opened(host, files) as state:
        if state.expires_at is None:
            return host.output.say(f"{state.name}: nothing is armed")
        disarm_timer(host, state, ArmedTimer("none", "", state.expires_at))
    host.output.say(f"{state.name} is disarmed: it runs until you stop it")


def watch(host: Host, files: Files, *, by: str) -> None:
    """Wait in the foreground for a cluster's deadline and reap it; ends when no deadline is left.

    As the detached watcher (`by` watcher) it holds the watch lock, and ends when the sidecar no longer names it.
    It decides to end under the cluster's lock, so that no arming can count on it in that moment.
    """
    fd = try_flock(files.watch_lock) if by == "watcher" else None
    if by == "watcher" and fd is None:
        return
    try:
        while True:
            try:
                if not files.sidecar.exists():
                    return  # torn down, our lock file with it: a new cluster of this name gets a new watcher
                if not _watched(files, by):
                    with cluster_lock(host, files):
                        if not _watched(files, by):
                            return
                wake = _wake(load_state(files))
                if wake is not None and wake <= host.now():
                    reap(host, files, by=by)
                    continue
            except (YclusterError, OSError) as error:
                host.output.warn(f"{files.name}: {error}")
                wake = None
            host.sleep(WATCH_INTERVAL if wake is None else min(WATCH_INTERVAL, wake - host.now()))
    finally:
        if fd is not None:
            os.close(fd)


def _watched(files: Files, by: str) -> bool:
    """Whether there is still something to wait for. A sidecar that can't be read is no reason to leave a VM."""
    try:
        state = load_state(files)
    except StateError:
        return files.sidecar.exists() and running(files)
    if by == "watcher":
        return state.timer is not None and state.timer.backend == "watcher"
    return state.expires_at is not None and not state.disarmed


def _wake(state: State) -> int | None:
    """When to look into it: at the deadline, or when a failed action is due again."""
    if state.expires_at is None or state.disarmed:
        return None
    return max(state.expires_at, state.timer.deadline if state.timer else 0)


def watch_all(host: Host) -> None:
    """Reap every cluster of this user as it falls due, until interrupted: the timer of a host that has none."""
    while True:
        wakes = []
        for files in discover(host):
            try:
                wake = _wake(load_state(files))
                if wake is not None and wake <= host.now():
                    reap(host, files, by="watch --all")
                elif wake is not None:
                    wakes.append(wake)
            except (YclusterError, OSError) as error:
                host.output.warn(f"{files.name}: {error}")
        host.sleep(min([WATCH_INTERVAL, *(max(0.0, wake - host.now()) for wake in wakes)]))


# --- looking


def describe(host: Host, state: State) -> dict[str, Any]:
    """What `list -o json` and `status -o json` show of a cluster (shape version 1)."""
    left = None if state.expires_at is None else int(state.expires_at - host.now())
    return {
        "name": state.name,
        "context": state.context,
        "state": vm_status(host, state.files),
        "maxRun": state.lifetime,
        "onExpiry": state.on_expiry,
        "startedAt": _encode_time(state.started_at),
        "expiresAt": _encode_time(state.expires_at),
        "remainingSeconds": left,
        "disarmed": state.disarmed,
        "reaped": _encode_record(state.reaped) if state.reaped else None,
        "sshPort": state.ssh_port,
        "portForwards": _show_forwards(state.port_forwards),
        "accel": state.accel,
        "disk": str(state.files.disk),
        "cacheDir": state.cache_dir,
    }


def enforcement(host: Host, state: State) -> dict[str, Any]:
    """Who stands guard over the deadline, and what that survives."""
    backend = timer_named(state.timer.backend) if state.timer else None
    armed = is_armed(host, state)
    return {
        "backend": backend.name if backend else "",
        "armed": armed,
        "nextFire": format_time(state.timer.deadline) if armed and state.timer else "",
        "survives": dict(backend.survives) if backend else {},
        "improve": backend.advice if backend else "",
    }


def left_words(shown: Mapping[str, Any]) -> str:
    left = shown["remainingSeconds"]
    if left is None:
        return "-"
    if shown["disarmed"]:
        return "disarmed"
    return in_words(left) if left > 0 else f"OVERDUE {in_words(left)}"


def list_clusters(host: Host, form: str) -> None:
    found = [describe(host, state) for _, state in _readable(host, discover(host))]
    if form == "json":
        return host.output.data(to_json({"version": 1, "clusters": found}))
    if not found:
        return host.output.say("no clusters; `ycluster provision -c DIR` makes one")
    rows = [["NAME", "CONTEXT", "STATE", "LEFT", "ON EXPIRY", "SSH", "CACHEDIR"]]
    for shown in found:
        row = ["name", "context", "state", "", "onExpiry", "sshPort", "cacheDir"]
        rows.append([str(shown[key]) if key else left_words(shown) for key in row])
    host.output.data(table(rows))


def status(host: Host, target: Target, form: str) -> None:
    state = load_state(find_cluster(host, target))
    shown = describe(host, state)
    if form == "json":
        return host.output.data(to_json({"version": 1, **shown}))
    rows = [
        ["cluster:", f"{state.name} (context {state.context})"],
        ["state:", shown["state"]],
        *_lifetime_rows(state, shown),
        ["ssh:", shlex.join(ssh_argv(state))],
        ["disk:", shown["disk"]],
    ]
    host.output.data(table(rows))


def _lifetime_rows(state: State, shown: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    if budget(state.lifetime) is None:
        rows.append(["lifetime:", "no budget (lifetime.maxRun is not set)"])
    else:
        rows.append(["lifetime:", f"{state.lifetime} from each start, then {state.on_expiry}"])
    if state.expires_at is not None:
        rows.append(["deadline:", f"{local_time(state.expires_at)} ({left_words(shown)})"])
    if state.reaped:
        done = {"stop": "stopped", "pause": "paused", "teardown": "torn down"}[state.reaped.action]
        rows.append(["expired:", f"{done} {local_time(state.reaped.at)} by {state.reaped.by}: {state.reaped.how}"])
    return rows


def lifetime_status(host: Host, target: Target, form: str) -> None:
    state = load_state(find_cluster(host, target))
    shown, guard = describe(host, state), enforcement(host, state)
    if form == "json":
        return host.output.data(to_json({"version": 1, **shown, "enforcement": guard}))
    rows = [["cluster:", state.name], ["state:", shown["state"]], *_lifetime_rows(state, shown)]
    if state.expires_at is not None:
        armed = guard["backend"] if guard["armed"] else "NOTHING: `ycluster lifetime arm` mends it"
        rows.append(["guard:", "disarmed by hand" if state.disarmed else armed])
        rows += [[f"  {what}:", how] for what, how in guard["survives"].items()]
        if guard["improve"]:
            rows.append(["  better:", f"`{guard['improve']}`, then `ycluster lifetime arm`"])
    host.output.data(table(rows))


def ssh(host: Host, target: Target, command: Sequence[str]) -> int:
    """Log in to the guest, or run a command there; returns its exit status.

    One word is a shell command, as with ssh; of several words each arrives as it is.
    """
    state = load_state(find_cluster(host, target))
    now = vm_status(host, state.files)
    if now != "running":
        raise YclusterError(f"{state.name} is {now}", hint=f"`ycluster start --name {state.name}` starts it")
    host.need({"ssh": "openssh-client"})
    words = command if len(command) < 2 else [shlex.join(command)]
    return host.interactive(ssh_argv(state, *words))


def print_gcp_flags(host: Host, directory: Path, form: str) -> None:
    flags = gcp_flags(load_config(directory).max_run)
    if form == "json":
        host.output.data(to_json(flags))
    else:
        host.output.data((" " if form == "shell" else "\n").join(flags))


def config_check(host: Host, directory: Path) -> None:
    config = load_config(directory)
    limit = f"{config.max_run}, then {config.on_expiry}" if budget(config.max_run) else "none"
    host.output.data(f"{config.file}: ok: {config.provider} cluster {config.name}, lifetime {limit}")


def write_schemas(host: Host, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for which in ("common", *PROVIDERS):
        path = directory / f"{which}.schema.json"
        write_file(path, (to_json(schema_for(which)) + "\n").encode("utf-8"), mode=0o644)
        host.output.say(f"  {path}")


# === 20 CLI ==========================================================================================

_EPILOG = {
    "provision": "example: ycluster provision -c examples/dev",
    "extend": "example: ycluster lifetime extend 2h --name demo",
    "ssh": "example: ycluster ssh --name demo -- uname -a",
    "gcp-flags": "example: gcloud compute instances create vm $(ycluster lifetime gcp-flags -c DIR)",
}


_Run = Callable[[Host, argparse.Namespace], Union[int, None]]


def _verb(under: Any, name: str, parent: argparse.ArgumentParser, text: str, run: _Run) -> Any:
    made = under.add_parser(name, help=text, description=text, parents=[parent], epilog=_EPILOG.get(name))
    made.set_defaults(run=run)
    return made


def _group(under: Any, name: str, text: str) -> Any:
    return under.add_parser(name, help=text, description=text).add_subparsers(metavar="VERB", required=True)


def _forms(made: Any, *names: str) -> None:
    made.add_argument("-o", dest="form", choices=names, default=names[0], help=f"default: {names[0]}")


def _parser() -> argparse.ArgumentParser:
    """The command line. Each verb carries what it runs."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--verbose", action="store_true", help="show every program that is run, and tracebacks")
    one = argparse.ArgumentParser(add_help=False, parents=[common])
    which = one.add_mutually_exclusive_group()
    which.add_argument("--context", metavar="CTX", help="the cluster of this kubeconfig context")
    which.add_argument("--name", help="the cluster of this name")
    which.add_argument("-c", "--config", metavar="DIR", type=Path, help="the cluster of the config in DIR")
    conf = argparse.ArgumentParser(add_help=False, parents=[common])
    conf.add_argument("-c", "--config", metavar="DIR", type=Path, required=True, help="the config's directory")

    parser = argparse.ArgumentParser(prog="ycluster", description="Dev clusters that expire on their own.")
    parser.add_argument("--version", action="version", version=f"ycluster {VERSION}")
    top = parser.add_subparsers(dest="verb", metavar="VERB", required=True)

    # fmt: off
    _verb(top, "provision", conf, "create a cluster, boot it, wait until it is ready", lambda h, a: provision(h, a.config))
    _verb(top, "start", one, "boot a stopped cluster, with a fresh budget", lambda h, a: start(h, _target(a)))
    _verb(top, "stop", one, "power a cluster off; its disk stays", lambda h, a: stop(h, _target(a)))
    _verb(top, "pause", one, "freeze a cluster; its memory stays", lambda h, a: pause(h, _target(a)))
    _verb(top, "resume", one, "let a paused cluster go on", lambda h, a: resume(h, _target(a)))
    down = _verb(top, "teardown", one, "stop a cluster and remove its files", lambda h, a: teardown(h, _target(a), keep_disk=a.keep_disk))
    down.add_argument("--keep-disk", action="store_true", help="keep the boot disk and its ssh key")
    _forms(_verb(top, "list", common, "every cluster of yours", lambda h, a: list_clusters(h, a.form)), "table", "json")
    _forms(_verb(top, "status", one, "one cluster", lambda h, a: status(h, _target(a), a.form)), "text", "json")
    login = _verb(top, "ssh", one, "log in, or run a command in the guest", lambda h, a: ssh(h, _target(a), a.command))
    login.add_argument("command", nargs="*", metavar="COMMAND", help="after --")
    schema = _verb(top, "schema", common, "JSON Schema of the config", _schema)
    schema.add_argument("which", nargs="?", choices=("common", *PROVIDERS))
    schema.add_argument("--write", metavar="DIR", type=Path, help="write them all to DIR")

    _lifetime_verbs(_group(top, "lifetime", "the budget of a cluster and the timer that enforces it"), one, conf)
    config = _group(top, "config", "look at a config")
    _verb(config, "check", conf, "exit 0, or 3 with every problem", lambda h, a: config_check(h, a.config))
    _verb(config, "show", conf, "the effective config as JSON", lambda h, a: h.output.data(to_json(show_config(load_config(a.config)))))
    # fmt: on
    return parser


def _lifetime_verbs(life: Any, one: argparse.ArgumentParser, conf: argparse.ArgumentParser) -> None:
    # fmt: off
    _forms(_verb(life, "status", one, "budget, deadline, and who enforces it", lambda h, a: lifetime_status(h, _target(a), a.form)), "text", "json")
    reaper = _verb(life, "reap", one, "carry out the expiry if it is due, else re-arm", _reap)
    watcher = _verb(life, "watch", one, "wait in the foreground for deadlines and reap", _watch)
    for made in (reaper, watcher):
        every = made.add_mutually_exclusive_group()
        every.add_argument("--all", action="store_true", help="every cluster of yours")
        every.add_argument("--state", metavar="FILE", type=Path, help="the cluster of this sidecar")
        made.add_argument("--by", default="hand", help=argparse.SUPPRESS)
    reaper.add_argument("--wait", default="0", help=argparse.SUPPRESS)
    extender = _verb(life, "extend", one, "push the deadline out", lambda h, a: extend(h, _target(a), a.duration))
    extender.add_argument("duration", metavar="DURATION", help="a Go duration, such as 2h or 1h30m")
    _verb(life, "arm", one, "(re)install the timer", lambda h, a: arm(h, _target(a)))
    _verb(life, "disarm", one, "take the timer away; the cluster then runs until you stop it", lambda h, a: disarm(h, _target(a)))
    flags = _verb(life, "gcp-flags", conf, "gcloud flags by which GCP deletes the instance", lambda h, a: print_gcp_flags(h, a.config, a.form))
    _forms(flags, "shell", "lines", "json")
    # fmt: on


def _target(args: argparse.Namespace) -> Target:
    target = Target(args.context, args.name, args.config, getattr(args, "state", None))
    if (target.sidecar or getattr(args, "all", False)) and (target.context or target.name or target.directory):
        raise UsageError("--state and --all say which already; leave out --context, --name and -c")
    return target


def _reap(host: Host, args: argparse.Namespace) -> None:
    target = _target(args)
    if args.all:
        return reap_all(host, by=args.by)
    try:
        wait = parse_duration(args.wait) / 10**9
    except ValueError as error:
        raise UsageError(str(error)) from None
    # A person may be told to come back; a timer fires once, so it waits for as long as the cluster is worked on.
    patience = LOCK_TIMEOUT if args.by == "hand" else float("inf")
    reap(host, find_cluster(host, target), by=args.by, wait=wait, patience=patience)


def _watch(host: Host, args: argparse.Namespace) -> None:
    target = _target(args)
    if args.all:
        return watch_all(host)
    watch(host, find_cluster(host, target), by=args.by)


def _schema(host: Host, args: argparse.Namespace) -> None:
    if bool(args.write) == bool(args.which):
        raise UsageError("schema wants one of common, qemu, docker, multipass, or --write DIR")
    if args.write:
        return write_schemas(host, args.write)
    host.output.data(to_json(schema_for(args.which)))


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise Interrupted(f"interrupted by {signal.Signals(signum).name}")


def main(argv: Sequence[str] | None = None) -> int:
    """The one place that prints errors and chooses the exit code."""
    args = _parser().parse_args(argv)
    output = Output(sys.stdout, sys.stderr, verbose=args.verbose)
    os.umask(0o077)  # what other programs write for us (keys, sockets, disks) is nobody else's business either
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _interrupt)
    try:
        return args.run(Host(os.environ, output), args) or 0
    except YclusterError as error:
        failure = error
    except BrokenPipeError:
        # The reader of stdout has gone; nothing is left to tell it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        failure = YclusterError(f"{where}{error.strerror or error}")
        failure.__cause__ = error
    if args.verbose:
        import traceback

        traceback.print_exception(type(failure), failure, failure.__traceback__)
    output.draw("")
    output.error(failure)
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main())
