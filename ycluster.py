#!/usr/bin/env python3
"""ycluster: dev clusters that expire on their own.

A dev cluster left running after its task is finished is pure cost. Every cluster here gets a
wall-clock budget (`lifetime.maxRun`), counted from each start. A local QEMU cluster is stopped,
paused or torn down by a timer on its own host, which runs `ycluster lifetime reap`. A cloud
appliance is deleted by the cloud itself, through the flags that `lifetime gcp-flags` prints.

Data flows one way: file -> `Config` -> `State` -> a pure decision or argv -> one effect. What
decides is pure and takes the time as an argument; what acts is small. A verb loads the state under
the cluster's lock, decides, and acts.

y-cluster, a Go program, reads the same config and state files; comments call it the sibling.

The sections. Each uses only what stands above it.
   1 constants          names, pins and bounds; `Record`, the base of all values
   2 errors             one exception class a kind; each has its exit code and a hint
   3 output             data goes to stdout; progress, warnings and errors go to stderr
   4 host effects       `Host`: clock, environment and programs, which nothing else touches;
                        helpers for processes, files and locks
   5 durations          durations as Go's time package reads and writes them; times for people
   6 YAML subset        `parse_yaml`: strict, every value with its line and column
   7 config and schema  `key()` declares a key of `Config`, once for everything; `load_config`;
                        `load_identity`, as much of it as tells the cluster; `schema_for`
   8 state sidecar      `State` <-> <cacheDir>/<name>.json; `Files`, what a cluster owns on disk,
                        its four locks; `discover`; the log of events
   9 lifetime decisions when: `anchored`, `recounted`, `moved`, `adjusted`; what to do by now:
                        `agenda`, `decide`, `after_look`
  10 timers             systemd --user, at(1) and the watcher, each a `Timer`; `arm_timers`
  11 gcloud flags       `gcp_flags`, `gcp_warnings`, and `gcp_lifetime` of an instance: pure
  12 QMP                `Qmp`, the client of QEMU's monitor
  13 VM process         `find_vm`: is it running, under which pid, is it really ours; `stop_vm`, the
                        escalation
  14 QEMU machine       `qemu_argv`: pure; `launch`; `kvm_works`, the KVM check; `write_memory`,
                        `launch_from_memory`: a suspend, and what follows it
  15 guest              the cloud-init seed, keys, ssh, `wait_ready`
  16 k3s                `download`; `fetch_k3s`, a release on the host; `k3s_stages`, into the guest
                        until it is Ready
  17 kubeconfig         `check_context`, one cluster a context; `merge_kubeconfig`,
                        `forget_kubeconfig`
  18 disk images        `fetch_image`, the overlay on it, the data disk, bundles; the kernel that
                        libguestfs boots
  19 commands           one function a verb, by subject: `verb`, which declares one; which cluster;
                        opening it; edited configs; life and death; suspend; export and import;
                        lifetime (`reap` and `sweep` carry an expiry out); `run` and holds;
                        watching (`Watcher`); looking; prune; doctor; Compute Engine; config; help
  20 CLI                argv -> command -> exit code

Exit codes: 0 done, 1 failed, 2 usage, 3 invalid config, 4 no such cluster or unreadable state, 5 a
host prerequisite is missing, 6 not implemented for this provider, 7 timed out, 130 interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pwd
import re
import select
import shlex
import signal
import stat
import sys
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

TYPE_CHECKING = False  # Importing typing takes longer than a whole verb may take to start.
if TYPE_CHECKING:
    import argparse
    import subprocess
    from typing import (
        IO,
        Any,
        Callable,
        Generic,
        Literal,
        NoReturn,
        TypeAlias,
        TypeVar,
        dataclass_transform,
    )

    AnyRecord = TypeVar("AnyRecord", bound="Record")
    Command = TypeVar("Command", bound=Callable[..., Any])
    Result = TypeVar("Result")
    Value = TypeVar("Value")
else:
    Value = None

    class Generic:
        """Stands in for typing's, which is not imported at run time."""

        def __class_getitem__(cls, parameter):
            return cls

    def dataclass_transform(**options):
        """Stands in for typing's, too."""
        return lambda cls: cls


# === 1 constants ==================================================================================
# The names, pins and bounds, most of them for several sections; `Record`, the base of all values.
# A timeout or interval is in seconds, and its comment gives the reason for it.
# Nothing here changes while the program runs.

VERSION = "0.1.0"

CONFIG_NAMES = ("y-cluster-provision.yaml", "y-cluster-provision.json")
PROVIDERS = ("qemu", "docker", "multipass")
# Others of the sibling's, whose keys only it knows: their budgets are read, for `gcp-flags`.
OTHER_PROVIDERS = ("hetzner", "glesys")
DEFAULT_CONTEXT = "local"
GZIP = b"\x1f\x8b"  # its first bytes
# What the system says where there surely is no file; other errors, as that of a file server which
# is away, tell nothing.
NOT_THERE = (errno.ENOENT, errno.ENOTDIR)
SIBLING_HOME = ".cache/y-cluster-qemu"  # its default cacheDir, below the user's home
K3S_VERSION = "v1.35.6+k3s1"

# A dated release, because what the undated /release/ URL gives has no fixed digest. The server
# keeps a dated one for some months.
DEFAULT_IMAGE = (
    "https://cloud-images.ubuntu.com/releases/noble/release-20260705/"
    "ubuntu-24.04-server-cloudimg-amd64.img"
)
DEFAULT_IMAGE_SHA256 = "ffe6203da54deeb6db5d2a98a83f9ec8e55f149d3f7ba622e1abe5fa966ee3d6"

DEBIAN_IMAGE = (  # for whoever writes `image: debian`
    "https://cloud.debian.org/images/cloud/trixie/latest/debian-13-genericcloud-amd64.qcow2"
)

QEMU = "qemu-system-x86_64"
DATA_LABEL = "y-cluster-data"  # of the volume on the data disk
DATA_DIR = "/data/yolean"  # where the guest mounts it
DATA_MOUNT = "data-yolean.mount"  # by systemd's name
BIND_ADDRESS = "127.0.0.1"  # A forward on every interface would publish ssh to the network.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# GCE's bounds for max-run-duration (cloud.google.com/compute/docs/instances/limit-vm-runtime).
GCP_MIN_SECONDS = 30
GCP_MAX_SECONDS = 120 * 86400
GCP_PIPE = "gcloud compute instances describe NAME --format=json | ycluster lifetime gcp-status"

READY_TIMEOUT = 600.0  # A cold first boot without KVM takes one to five minutes.
LOCK_BOUND = 20.0  # So long a deadline waits for a lock; a holder that hangs must not keep a VM.
LOCK_TIMEOUT = 300.0  # Longer than a whole stop, so that a verb that waits gets its turn.
ANSWER_TIMEOUT = 10.0  # of QEMU's monitor, where data or a deadline depends on what it says
POWERDOWN_TIMEOUT = 100.0  # The guest's systemd gives a service 90 s to end.
WATCH_INTERVAL = 5.0  # Between two looks of the watcher; so late may it act after a suspend.
ASK_TO_STOP = signal.SIGUSR1  # asks a watcher to stop a VM whose state can't be read
SSH_FAILED = 255  # ssh's own failure; all else is the exit code of what it ran
LOOK_AGE = 60.0  # A look at a cluster's use that is older than this ends nothing.
HOLD_LOOK = 25.0  # Between two looks at what holds a cluster whose deadline has passed.
HOLD_GRACE = 30.0  # From the warning that its last hold has ended to the expiry.
WATCH_START = 120.0  # A watcher comes up in one second, and in many where the host is busy.
WATCH_GRACE = 30.0  # For so long the watcher leaves a deadline to the timer that is armed for it.
AT_EARLY = 120.0  # A job of at(1) starts up to a minute early; it then waits, at most this long.
CLOCK_STEP = 30.0  # If the wall clock is set by less than this, deadlines stay where they are.
NOTICE_TIMEOUT = 60.0  # For the command lifetime.onWarn.
WAKE_AFTER = 5.0  # After this wait for a lock, a holder that is stopped (SIGSTOP) is continued.
MANY_FILES = 10_000  # A cacheDir has dozens; in one with more, such as a home, nobody looks at all.
CONSOLE_SIZE = 16 << 20  # Bytes; the watcher cuts a console log that is larger.
CONSOLE_KEPT = 1 << 18  # Bytes at its end, which are kept then.
EVENTS_SIZE = 1 << 20  # Bytes; a larger log of events is set aside and a new one begun.
STATE_SIZE = 1 << 20  # Bytes; a file of ours that is read whole is not larger. A state has 2 KB.
PROGRAM_SIZE = 16 << 20  # Bytes; nor is a copy of this program, which has 0.7 MB.

REQUIRED = object()  # marks a key without a default


@dataclass_transform(frozen_default=True)
class Record:
    """A frozen value, declared like a dataclass: its fields are the annotated names of its class.

    A subclass adds its fields to those that it inherits. The default of a field is the class
    attribute of that name or, where this has an attribute `default` of its own, that one; REQUIRED
    in it means none. Records are equal if they are of one class and their fields are equal.

    (dataclasses do the same with `inspect` and generated code, which takes longer than most verbs.)
    """

    fields: Mapping[str, Any] = {}  # of the class: names and defaults, `...` where there is none

    def __init_subclass__(cls) -> None:
        own = vars(cls)
        fields = dict(cls.fields)
        for name in own.get("__annotations__", ()):
            value = own.get(name, ...)
            default = getattr(value, "default", value)
            if default is REQUIRED and value is not REQUIRED:
                default = ...
            fields[name] = default  # A field that is declared again stays where it was.
        cls.fields = fields

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self.fields
        given = named
        if values:
            given = dict(zip(fields, values), **named)
        own = vars(self)
        own.update(fields)  # all of them first, which puts them in the order of declaration
        own.update(given)
        too_many_or_twice = len(given) < len(values) + len(named)
        unknown = len(own) > len(fields)
        missing = ... in own.values()
        if too_many_or_twice or unknown or missing:
            names = ", ".join(fields)
            given_all = f"{values} {named}"
            raise TypeError(f"{type(self).__name__} has the fields {names}, not {given_all}")

    def __setattr__(self, name: str, value: object) -> None:
        what = type(self).__name__
        raise AttributeError(f"{name}: a {what} does not change; `replace` makes another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: a {type(self).__name__} does not change")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))

    def __repr__(self) -> str:
        values = vars(self).items()
        fields = ", ".join(f"{name}={value!r}" for name, value in values)
        return f"{type(self).__name__}({fields})"


def replace(record: AnyRecord, **changes: Any) -> AnyRecord:
    """Make a record that differs from another in some fields."""
    return type(record)(**{**vars(record), **changes})


class Action(Record):
    """What an expiry may do to a cluster: `onExpiry` in the config. Section 19 carries it out."""

    name: str
    done: str  # the participle for messages: stopped
    ends: str  # what it does to the cluster, for messages: stops
    in_doubt: str  # the action taken instead if the clock can't be checked, or nothing was running
    erases: bool = False  # whether the cluster's files go


ACTIONS: Mapping[str, Action] = {
    action.name: action
    for action in (
        Action("stop", "stopped", "stops", in_doubt="stop"),
        Action("pause", "paused", "pauses", in_doubt="pause"),
        Action("suspend", "suspended", "is suspended", in_doubt="suspend"),
        Action("teardown", "torn down", "is removed", in_doubt="stop", erases=True),
    )
}

# What ends a run: its budget, or that nobody uses it. Both are keys of the config's lifetime.
BUDGET, UNUSED = "maxRun", "maxIdle"

# The events that a `Moment` and a timer can be of. A look at its use may end a run as a deadline
# does, a warning never.
DEADLINE, LOOK, WARNING = "deadline", "look", "warning"
ENDS = (DEADLINE, LOOK)
NEVER = float("inf")


# === 2 errors =====================================================================================
# The exceptions. Every failure that a user should understand is a YclusterError: its class has the
# exit code, its message says what went wrong and where, its hint what to do next. Functions raise;
# only `main` (section 20) prints an error and returns an exit code.


class YclusterError(Exception):
    """An error for the user to see, with a `hint` at what to do next (lines of text, or empty)."""

    exit_code = 1

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
    ) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(YclusterError):
    """The command line asks for something that has no meaning."""

    exit_code = 2


class ConfigError(YclusterError):
    """The config file is missing, unreadable or wrong."""

    exit_code = 3


class StateError(YclusterError):
    """There is no such cluster, or its state file can't be read."""

    exit_code = 4


class ForeignError(StateError):
    """A folder is another user's, so nothing in it is believed, run or written."""


class PrerequisiteError(YclusterError):
    """The host lacks a program, a permission or a free port."""

    exit_code = 5


class NotImplementedYet(YclusterError):
    """The request is valid, but this version or this provider can't serve it."""

    exit_code = 6


class TimedOut(YclusterError):
    """Something took longer than its timeout."""

    exit_code = 7


class NoAnswer(TimedOut):
    """A program that ycluster ran took longer than its timeout, and was killed."""


class Busy(TimedOut):
    """Another ycluster holds the cluster's lock."""


class NoLock(YclusterError):
    """Nobody can have the cluster's lock: its file is another's, or no file at all."""


# Lines of ssh's and tar's that frame what they have to say.
_FRAME = r"@.*@|tar: (?:Error is not recoverable: exiting now|Exiting with failure status .*)"
# What programs write where the way out is known, and that way out.
_REMEDIES = (
    ("Is another process using the image", "`fuser -v FILE` names the program that has it open"),
    (
        "cannot set up guest memory",
        "`free -m` shows what is free; write a smaller `memory` in the config",
    ),
    ("unable to find CPU model", "`qemu-system-x86_64 -cpu help` lists what cpuModel can be"),
    ("No space left on device|Disk quota exceeded", "`ycluster prune` lists what can go"),
    (
        "Could not set up host forwarding rule",
        "`ycluster doctor` says why; set sshPort or portForwards in the config to other ports",
    ),
)


def lines_that_matter(argv: Sequence[str], written: str) -> list[str]:
    """What tells why a program failed: up to three of the lines that it wrote.

    They are the last. gcloud's error comes first, with advice of any length after it.
    """
    for option, value in zip(argv, argv[1:]):
        written = written.replace(f"{option} {value}: ", "")  # QEMU repeats its arguments
    stripped = [line.strip() for line in written.splitlines()]
    lines = [line for line in stripped if line and not re.fullmatch(_FRAME, line)]
    for index, line in enumerate(lines):
        if line.startswith("ERROR: ("):
            return lines[index : index + 3]
    return lines[-3:]


class ProgramFailed(YclusterError):
    """A program that ycluster ran has failed.

    `stderr` is what it wrote there; its stdout if that is empty.
    """

    def __init__(
        self,
        argv: Sequence[str],
        returncode: int,
        stderr: str,
    ) -> None:
        why = "; ".join(lines_that_matter(argv, stderr)) or "it wrote nothing"
        hint = next((remedy for text, remedy in _REMEDIES if re.search(text, stderr)), "")
        program = Path(argv[0]).name
        super().__init__(f"{program} failed (exit {returncode}): {why}", hint=hint)
        self.returncode = returncode
        self.stderr = stderr


class NotStarted(YclusterError):
    """The command of `run` or `lifetime hold` could not be started; the code is a shell's."""

    def __init__(self, program: str, error: OSError) -> None:
        super().__init__(f"{program}: {error.strerror}")
        missing = isinstance(error, FileNotFoundError)
        self.exit_code = 127 if missing else 126


class Interrupted(BaseException):
    """Ctrl-C or a termination signal.

    It is not an Exception, so that `except Exception` does not catch it.
    """

    exit_code = 130


OWN_FAILURE = 125  # the exit code of `run` where ycluster itself failed, as docker's
EXIT_CODES: Mapping[int, str] = {
    0: "done",
    1: "failed",
    UsageError.exit_code: "the command line asks for something that has no meaning",
    ConfigError.exit_code: "the config is wrong",
    StateError.exit_code: "no such cluster, or its state can't be read",
    PrerequisiteError.exit_code: "the host lacks something: a program, a permission, a free port",
    NotImplementedYet.exit_code: "not implemented, or not for this provider",
    TimedOut.exit_code: "it took too long",
    OWN_FAILURE: "of `run` and `lifetime hold`: ycluster failed, not the command",
    126: "of these two: the command can't be run",
    127: "of these two: there is no such command",
    Interrupted.exit_code: "interrupted",
}


# === 3 output =====================================================================================
# What is written, and how it looks. Data goes to stdout and nothing else does; everything that a
# person reads on the way goes to stderr. A message that can't be written is dropped: it must not
# undo the work that it reports. Data that can't be written is an error.


# As RFC 3986 places it in a URL. The scheme has a bound, or a long word is looked at from each of
# its characters.
_USERINFO = r"([A-Za-z][A-Za-z0-9+.-]{0,30}://)[^\s/?#]*@"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*://"  # how a URL begins
_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f]"  # C0 and C1 but the tab and the line end


def masked(text: str) -> str:
    """A text as it may be shown: without the user and the password of the URLs in it."""
    return re.sub(_USERINFO, r"\1***@", text) if "://" in text else text


def cleaned(text: str) -> str:
    """A text with its control characters made visible: a terminal obeys none of them."""
    text = text.replace("\r\n", "\n")  # as ssh ends its lines
    return re.sub(_CONTROL, _visible, text)


def _visible(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"


def without_password(url: str) -> str:
    """A URL without its user and its password."""
    return re.sub(rf"\A{_USERINFO}", r"\1", url)


def path_of_url(url: str) -> Path:
    """The path that a file: URL names."""
    import urllib.parse

    return Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path))


class Output:
    """The two streams, to which no password in a URL and no control character of others gets.

    `live` and `shown` tell whether stderr and stdout are terminals.
    """

    def __init__(
        self,
        stdout: IO[str],
        stderr: IO[str],
        *,
        verbose: bool = False,
        colours: bool = False,
    ) -> None:
        self.stdout = stdout
        self.stderr = stderr
        self.verbose = verbose
        self.then_json = False  # whether stdout gets the cluster's state in the end
        self.live = stderr.isatty()
        self.shown = stdout.isatty()
        self.colours = colours and self.shown
        self.warned: set[str] = set()  # by `warn_once`

    def data(self, text: str, colour: str = "") -> None:
        """Write lines to stdout. `colour` is a code of the escape sequence SGR, such as "31"."""
        text = cleaned(masked(text))
        if colour and self.colours:
            text = f"\x1b[{colour}m{text}\x1b[m"
        if text and not text.endswith("\n"):
            text += "\n"
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except OSError as error:
            error.filename = "stdout"
            raise

    def result(self, text: str) -> None:
        """What a verb has done, for scripts: on stdout, except where that is to have JSON."""
        if self.then_json:
            self.say(text)
        else:
            self.data(text)

    def say(self, text: str, end: str = "\n") -> None:
        """Write a message to stderr."""
        self._write(cleaned(masked(text)) + end)

    def _write(self, text: str) -> None:
        try:
            self.stderr.write(text)
            self.stderr.flush()
        except (OSError, ValueError):
            # The reader has gone (EPIPE), or the stream is closed: messages are best effort.
            return

    def warn(self, text: str) -> None:
        """Write a warning."""
        self.say("ycluster: warning: " + text)

    def warn_once(self, text: str) -> None:
        """Write a warning, unless this process has written the same before."""
        if text not in self.warned:
            self.warned.add(text)
            self.warn(text)

    def debug(self, text: str) -> None:
        """Write what only --verbose shows."""
        if self.verbose:
            self.say("+ " + text)

    def error(self, error: YclusterError) -> None:
        """Write an error with its hint."""
        self.say(f"ycluster: {error}")
        for line in error.hint.splitlines():
            self.say("  " + line)

    def draw(self, text: str) -> None:
        """Redraw the live line; an empty text wipes it. Does nothing if stderr is no terminal."""
        if self.live:
            width = columns() - 1
            self._write("\r\x1b[K" + cleaned(masked(text))[:width])


class Steps:
    """The progress of a job in named steps: a live line on a terminal, plain lines elsewhere."""

    REDRAW = 0.2  # seconds from one live line to the next
    HEARTBEAT = 15.0  # seconds between plain lines, so that a log shows life and stays short

    def __init__(self, output: Output, monotonic: Callable[[], float]) -> None:
        self.output = output
        self.monotonic = monotonic
        self.began = monotonic()
        self.last = self.began - self.HEARTBEAT + 2  # The first plain line comes after 2 seconds.

    def waiting(self, what: str | Callable[[], str]) -> None:
        """Show a step that takes its time, and for how long the job has run; call it often."""
        now = self.monotonic()
        interval = self.REDRAW if self.output.live else self.HEARTBEAT
        if now - self.last < interval:
            return
        self.last = now
        line = f"  {_step_name(what)} ... {now - self.began:.0f} s"
        if self.output.live:
            self.output.draw(line)
        else:
            self.output.say(line)

    def done(self, what: str | Callable[[], str]) -> None:
        """Show a step that has been completed."""
        now = self.monotonic()
        self.last = now
        self.output.draw("")
        spent = now - self.began
        self.output.say(f"  {_step_name(what)} ({spent:.1f} s)")


def _step_name(what: str | Callable[[], str]) -> str:
    """The name of a step, which may change while it lasts."""
    return what if isinstance(what, str) else what()


def columns(fd: int = 2) -> int:
    """The width of the terminal, or 80.

    shutil has such a function too, but importing it loads three decompressors.
    """
    try:
        return os.get_terminal_size(fd).columns or 80  # Some terminals do not know, and give 0.
    except OSError:
        return 80


NO_LIMIT = 1 << 20  # columns: wider than any table
CUT_TO = 5  # columns: of a cell that is cut two letters are left, and dots


def table(
    rows: Sequence[Sequence[str]], width: int = NO_LIMIT, spare: Sequence[str] = ()
) -> list[str]:
    """Rows of cells as left-aligned columns, two spaces apart: a text for each row.

    Where it is wider than `width`, columns are left out by their headings, those of `spare` in
    their order; where that is not enough, the widest ones are cut.
    """
    kept = [*zip(*rows)]
    for heading in spare:
        if _table_width(_widths(kept)) > width:
            kept = [column for column in kept if column[0] != heading]
    widths = _widths(kept)
    while _table_width(widths) > width and max(widths) > CUT_TO:
        widths[widths.index(max(widths))] -= 1
    lines = ["  ".join(map(_fitted, row, widths)) for row in zip(*kept)]
    return [line.rstrip() for line in lines]


def _widths(kept: Iterable[Sequence[str]]) -> list[int]:
    return [max(map(len, column)) for column in kept]


def _table_width(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _fitted(cell: str, width: int) -> str:
    """A cell as wide as its column; dots show where it is cut."""
    if len(cell) <= width:
        return cell.ljust(width)
    return f"{cell[: width - 3]}..."


def to_json(value: object) -> str:
    """A value as indented JSON.

    It is ASCII: half a surrogate pair, which can't be written to a file, becomes an escape.
    """
    return json.dumps(value, indent=2)


# === 4 host effects ===============================================================================
# `Host` is the only way to the clock, other programs and the environment, but for HOME, by which
# `_trusted_owners` judges a file. A program runs without a shell, in an environment made for it,
# with a timeout, and what it writes to stderr is kept in the error. After it come helpers for
# processes (held by a descriptor, since a pid may be used again), files (replaced as a whole or not
# at all) and locks (released when the holder ends, even by a kill).


class Clock(Record):
    """One look at the time: `now`, and when this boot began, both by the wall clock.

    If somebody sets the wall clock, `booted` moves by as much as `now` does. `slept`: for how many
    seconds of this boot the host has been suspended.
    """

    now: float
    booted: float
    boot_id: str
    slept: float = 0.0


# The variables that a child gets if they are set. Not all: at(1) would write secrets to disk.
_INHERITED = (
    "HOME",
    "USER",
    "LOGNAME",
    "TMPDIR",
    "XDG_STATE_HOME",
    "XDG_DATA_HOME",
    "XDG_RUNTIME_DIR",
    "DBUS_SESSION_BUS_ADDRESS",
)


class Holder(Record):
    """The command of the user's for which this process holds each cluster that it brings up."""

    command: tuple[str, ...]
    at_most: int = 0  # nanoseconds; 0: the default
    undo: str = "hold"  # see `Hold`


Done: TypeAlias = "subprocess.CompletedProcess[str]"  # a finished program: exit code and output


class Host:
    """The machine as this user sees it: the clock, the environment, other programs."""

    def __init__(
        self,
        environ: Mapping[str, str],
        output: Output,
        stdin: Any = None,
        umask: int = 0o022,
    ) -> None:
        self.environ = dict(environ)
        self.output = output
        self.stdin = stdin  # None: there is none
        self.umask = umask  # the user's, which is for the user's own commands alone
        self.holder: Holder | None = None
        self.locked: set[Path] = set()  # the locks of clusters that this process holds
        self.worked_on: Path | None = None  # the state file of the one that it locked last
        self.qemus: list[int] | None = None  # see `looking_once`
        self._source = b""

    # --- time

    def now(self) -> float:
        """Seconds since the epoch: the time that is stored."""
        return time.time()

    def monotonic(self) -> float:
        """Seconds since some moment, which nobody can set: the time by which waits are measured."""
        return time.monotonic()

    def uptime(self) -> float:
        """Seconds since the boot, those of a suspend included; nobody can set them."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot_id(self) -> str:
        """The kernel's id of this boot, or nothing where it has none."""
        return kernel_text(Path("/proc/sys/kernel/random/boot_id")).strip()

    def clock(self) -> Clock:
        """Look at the time."""
        now, uptime = self.now(), self.uptime()
        slept = max(0.0, uptime - self.monotonic())
        return Clock(now, now - uptime, self.boot_id(), slept)

    def sleep(self, seconds: float) -> None:
        """Sleep; not at all if the span is negative."""
        time.sleep(max(0.0, seconds))

    def wait_for(
        self,
        condition: Callable[[], Result | None],
        *,
        timeout: float,
        interval: float = 0.05,
        waiting: Callable[[], object] = lambda: None,
    ) -> Result | None:
        """Wait until `condition` returns something other than None and False, and return that.

        It is asked every `interval` seconds, and `waiting` is called in between. After `timeout`
        seconds the last thing that it returned is returned. It is asked at least once.
        """
        until = self.monotonic() + timeout
        while True:
            result = condition()
            left = until - self.monotonic()
            answered = result is not None and result is not False
            if answered or left <= 0:
                return result
            waiting()
            self.sleep(min(interval, left))

    # --- the user's environment

    def user(self) -> str:
        """The name of the account, or the uid where it has none."""
        uid = os.getuid()
        try:
            return pwd.getpwuid(uid).pw_name
        except KeyError:
            return str(uid)

    def home(self) -> Path:
        """$HOME, else the home of the account: a timer or a container may have no HOME at all."""
        named = self.environ.get("HOME", "")
        if named.startswith("/"):
            return Path(named)
        uid = os.getuid()
        try:
            return Path(pwd.getpwuid(uid).pw_dir)
        except KeyError:
            raise PrerequisiteError(
                f"no home directory: HOME is unset and uid {uid} has no account",
                hint="set HOME, or cacheDir in the config",
            ) from None

    def sibling_home(self) -> Path:
        """The sibling's default cacheDir."""
        given = self.environ.get("Y_CLUSTER_QEMU_CACHE_DIR", "")
        if given:
            return Path(os.path.abspath(given))
        return self.home() / SIBLING_HOME

    def data_home(self) -> Path:
        """The default cacheDir (XDG base directories)."""
        return self._xdg_home("XDG_DATA_HOME", ".local/share")

    def state_home(self) -> Path:
        """Where the index of cacheDirs and the log of events are (XDG base directories)."""
        return self._xdg_home("XDG_STATE_HOME", ".local/state")

    def cache_home(self) -> Path:
        """Where dist/ycluster keeps its compiled code (XDG base directories)."""
        return self._xdg_home("XDG_CACHE_HOME", ".cache")

    def _xdg_home(self, variable: str, otherwise: str) -> Path:
        named = self.environ.get(variable, "")
        base = Path(named) if named.startswith("/") else self.home() / otherwise
        return base / "ycluster"

    def kubeconfigs(self) -> list[Path]:
        """The files of $KUBECONFIG in their order, each once; none where it is not set.

        They are absolute, as other programs run in another folder. A relative one leads nowhere if
        this process's folder has been removed.
        """
        try:
            folder = os.getcwd()
        except FileNotFoundError:
            folder = ""
        found: dict[str, Path] = {}
        for name in self.environ.get("KUBECONFIG", "").split(":"):
            path = Path(folder, name)
            if name and path.is_absolute():
                found.setdefault(os.path.realpath(path), path)
        return list(found.values())

    def child_env(self, extra: Mapping[str, str] = {}) -> dict[str, str]:
        """The whole environment of a child."""
        env = {
            "PATH": self.environ.get("PATH") or DEFAULT_PATH,
            "LANG": "C.UTF-8",
            "LC_ALL": "C.UTF-8",
        }
        runtime = f"/run/user/{os.getuid()}"
        if os.path.isdir(runtime):  # ssh -T, sudo, cron and at do not set the variable.
            env["XDG_RUNTIME_DIR"] = runtime
        inherited = {name: self.environ[name] for name in _INHERITED if self.environ.get(name)}
        if self.kubeconfigs():  # Timers need it: a teardown takes our names out of these files.
            inherited["KUBECONFIG"] = ":".join(map(str, self.kubeconfigs()))
        return {**env, **inherited, **extra}

    def interpreter(self) -> str:
        """The Python that runs this; of a virtual environment, which may go, the one it is of."""
        found = sys.executable or "/usr/bin/python3"
        if sys.prefix != sys.base_prefix:
            return os.path.realpath(found)
        return os.path.abspath(found)

    def program_source(self) -> bytes:
        """The source of this module, wherever it was loaded from: a file or an archive.

        Read once: what runs for long calls this when it starts, as an upgrade may replace the file
        under it.
        """
        if not self._source:
            self._source = bytes(globals()["__loader__"].get_data(__file__))
        return self._source

    # --- programs

    def which(self, program: str) -> str | None:
        """The path of a program; None if there is none on PATH or among the administrator's."""
        import shutil

        return shutil.which(program, path=self.child_env()["PATH"] + ":/usr/sbin:/sbin")

    def need(self, programs: Mapping[str, str]) -> None:
        """Raise PrerequisiteError unless all programs (name -> Debian package) are there."""
        missing = [name for name in programs if not self.which(name)]
        if missing:
            packages = sorted({programs[name] for name in missing})
            hint = f"sudo apt-get install {' '.join(packages)}"
            raise PrerequisiteError(f"missing: {', '.join(missing)}", hint=hint)

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
        waiting: Callable[[], object] = lambda: None,
        progress: str | Callable[[], str] = "",
    ) -> Done:
        """Run a program to its end, at most `timeout` seconds, with `waiting` called meanwhile.

        `progress`, a text or a function that makes one, is shown as a step of its own while it
        runs. `stdin` must fit into a pipe (64 KiB). Raises PrerequisiteError if there is no such
        program, NoAnswer if it takes longer (it is killed), and ProgramFailed if it exits with
        anything but 0, unless `check` is false.
        """
        import subprocess

        steps = Steps(self.output, self.monotonic)

        def meanwhile() -> None:
            waiting()
            if progress:
                steps.waiting(progress)

        with self._start(argv, stdin, cwd, env, pass_fds) as process:
            written = self._communicate(process, stdin, timeout, meanwhile)
        if written is None:
            why = f"{argv[0]} gave no answer within {timeout:.0f} s"
            raise NoAnswer(f"{why}: {shlex.join(argv)}")
        done = subprocess.CompletedProcess(tuple(argv), process.returncode, *written)
        if check and done.returncode != 0:
            raise ProgramFailed(argv, done.returncode, done.stderr or done.stdout)
        if progress:
            steps.done(progress)
        return done

    def _start(
        self,
        argv: Sequence[str],
        stdin: str | None,
        cwd: Path | None,
        env: Mapping[str, str] | None,
        pass_fds: Sequence[int],
    ) -> subprocess.Popen[str]:
        """Start a program with pipes for its output, and for its input if there is any."""
        import subprocess

        self.output.debug(shlex.join(argv))
        program = self.which(argv[0])
        if program is None:
            raise PrerequisiteError(f"{argv[0]}: no such program on PATH")
        if env is None:
            env = self.child_env()
        return subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",  # as Python decodes paths
            cwd=cwd or "/",
            env=dict(env),
            pass_fds=pass_fds,
        )

    def _communicate(
        self,
        process: subprocess.Popen[str],
        stdin: str | None,
        timeout: float,
        meanwhile: Callable[[], object],
    ) -> tuple[str, str] | None:
        """What a program writes to stdout and stderr; None if it is killed because of the timeout.

        It is also killed if `meanwhile`, which is called twice a second, raises.
        """
        import subprocess

        until = self.monotonic() + timeout
        try:
            while self.monotonic() < until:
                meanwhile()
                try:
                    left = until - self.monotonic()
                    return process.communicate(stdin, timeout=min(0.5, left))
                except subprocess.TimeoutExpired:
                    stdin = None  # communicate() has it, and refuses input a second time.
            return None
        finally:
            process.kill()  # does nothing to a program that has ended

    @contextlib.contextmanager
    def beside(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None = None,
        stdout: int | None = None,
    ) -> Iterator[IO[bytes]]:
        """Run a program while the block lasts, with our end of the pipe that it has on one side.

        Raises ProgramFailed where it fails. It is killed where the block does, or a minute later.
        """
        import subprocess

        self.output.debug(shlex.join(argv))
        program = self.which(argv[0])
        if program is None:
            raise PrerequisiteError(f"{argv[0]}: no such program on PATH")
        process = subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.PIPE if stdin is None else stdin,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=self.child_env(),
        )
        ours, errors = process.stdin or process.stdout, process.stderr
        assert ours is not None and errors is not None
        with ours, errors:
            try:
                yield ours
                process.wait(60)
            except subprocess.TimeoutExpired:
                raise TimedOut(f"{argv[0]} does not end") from None
            except OSError:  # its end of the pipe is closed: it ends, or has
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                raise
            finally:
                _end_beside(process, argv, errors)

    def attempt(
        self,
        argv: Sequence[str],
        *,
        timeout: float,
    ) -> str | None:
        """What a program writes to stdout; None if it is missing, fails or takes too long.

        For a question to which each of these failures means "no".
        """
        try:
            return self.run(argv, timeout=timeout).stdout
        except (YclusterError, OSError):
            return None

    def cpu_limit(self) -> int | None:
        """After so many seconds of CPU time the kernel ends any program of ours; None: never."""
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        return None if hard == resource.RLIM_INFINITY else hard

    @contextlib.contextmanager
    def cpu_limit_lifted(self) -> Iterator[None]:
        """Have nothing that is started in the block end at the session's limit of CPU time.

        A command of the user's is to have it.
        """
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (hard, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))

    def spawn(self, argv: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a program that outlives this one; its output is appended to `log`."""
        import subprocess

        self.output.debug(shlex.join(argv) + " &")
        try:
            fd = open_own(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        except OSError:  # something else stands there: what is started matters more than its log
            fd = os.open(os.devnull, os.O_WRONLY)
        with descriptor(fd) as to, self.cpu_limit_lifted():
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=to,
                cwd="/",
                env=self.child_env(),
                start_new_session=True,
            )

    def interactive(self, argv: Sequence[str]) -> int:
        """Run a program on this terminal and return its exit status, as a shell would give it."""
        import subprocess

        self.output.debug(shlex.join(argv))
        # `main` ignores Ctrl-Z, for it may hold a lock; this program may be stopped like any other.
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        extra = {}
        if self.environ.get("TERM"):
            extra["TERM"] = self.environ["TERM"]
        return _shell_status(subprocess.call(argv, env=self.child_env(extra)))

    def check_command(self, program: str) -> None:
        """Raise NotStarted where a command of the user's is not there, or is no program."""
        import shutil

        if shutil.which(program, path=os.pathsep.join(os.get_exec_path(self.environ))):
            return
        is_there = os.sep in program and os.path.exists(program)
        number = errno.EACCES if is_there else errno.ENOENT
        raise NotStarted(program, OSError(number, os.strerror(number)))

    def become(self, argv: Sequence[str]) -> NoReturn:
        """Run a command of the user's in the place of this process, which keeps its pid.

        Raises NotStarted.
        """
        self.output.debug(shlex.join(argv))
        for ignored in (signal.SIGTSTP, signal.SIGPIPE, signal.SIGXFSZ):  # by us, and by Python
            signal.signal(ignored, signal.SIG_DFL)
        os.umask(self.umask)
        try:
            os.execvpe(argv[0], list(argv), self.environ)
        except OSError as error:
            os.umask(0o077)
            raise NotStarted(argv[0], error) from None

    def attend(self, argv: Sequence[str], extra: Mapping[str, str]) -> int:
        """Run a command of the user's on this terminal; its exit status, as a shell would give it.

        It gets the signals that are sent to this process, which goes on. Those of a terminal's keys
        it has got already. Raises NotStarted.
        """
        self.output.debug(shlex.join(argv))
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)  # both stop at Ctrl-Z, like any job
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_PASSED_ON, signal.SIGCHLD})
        try:
            process = self._start_attended(argv, extra, before)
            while process.poll() is None:
                got = signal.sigwaitinfo({*_PASSED_ON, signal.SIGCHLD})
                if got.si_signo != signal.SIGCHLD and got.si_code <= 0:  # SI_USER, not SI_KERNEL
                    _pass_on(process, got.si_signo)
        finally:
            self.ignore_interrupts()
            signal.signal(signal.SIGTSTP, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return _shell_status(process.returncode)

    def _start_attended(
        self,
        argv: Sequence[str],
        extra: Mapping[str, str],
        mask: Iterable[int],
    ) -> subprocess.Popen[bytes]:
        import subprocess

        try:
            return subprocess.Popen(
                argv,
                env={**self.environ, **extra},
                umask=self.umask,
                close_fds=False,  # those that we were given are its own; ours do not outlive exec
                preexec_fn=partial(signal.pthread_sigmask, signal.SIG_SETMASK, mask),
            )
        except OSError as error:
            raise NotStarted(argv[0], error) from None

    def ignore_interrupts(self) -> None:
        """Go on whatever comes, as a clean-up does. By a handler, which no child inherits."""

        def say_so(signum: int, _: object) -> None:
            self.output.say(f"  {signal.Signals(signum).name}: cleaning up already")

        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, say_so)

    def tell_terminals(self, text: str) -> None:
        """Write a message to this user's terminals; wall(1) would write to everybody's."""
        for terminal in Path("/dev/pts").glob("[0-9]*"):
            try:
                if _takes_messages(terminal):
                    _write_to_terminal(terminal, f"\r\n{text}\r\n")
            except OSError:
                # It was closed meanwhile, or takes no more; the others still get the message.
                continue


# The signals that ask a command to end: one that is run for the user gets them from us.
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def _end_beside(process: subprocess.Popen[bytes], argv: Sequence[str], errors: IO[bytes]) -> None:
    """Kill a program, unless it has ended; ProgramFailed if it failed, for that is the cause."""
    failed = process.poll() not in (None, 0)
    process.kill()  # does nothing to a program that has ended
    process.wait()
    if failed:
        told = errors.read().decode(errors="replace")
        raise ProgramFailed(argv, process.returncode, told)


def _pass_on(process: subprocess.Popen[bytes], signum: int) -> None:
    with contextlib.suppress(OSError):  # it has become root's, as sudo does, and is attended still
        process.send_signal(signum)


def _shell_status(status: int) -> int:
    """The exit status that a shell gives to a program: killed by signal 15, it is 143."""
    return 128 - status if status < 0 else status


def _takes_messages(terminal: Path) -> bool:
    """Whether a terminal is this user's and takes messages: mesg(1) sets the group's write bit."""
    status = terminal.stat()
    return status.st_uid == os.getuid() and status.st_mode & 0o020 != 0


def _write_to_terminal(terminal: Path, text: str) -> None:
    # O_NONBLOCK: the terminal may be stopped by Ctrl-S, and writing to it must not wait for Ctrl-Q.
    flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK
    with descriptor(os.open(terminal, flags)) as to:
        os.write(to, text.encode())


# --- processes
def kernel_text(path: Path) -> str:
    """What a file of the kernel's says; empty where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _syscall(number: int, *arguments: int | None) -> int:
    """Make a system call for which this Python was built without a wrapper."""
    import ctypes

    result: int = ctypes.CDLL(None, use_errno=True).syscall(number, *arguments)
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


# The numbers of these two calls are the same on every architecture.
_PIDFD_SEND_SIGNAL = 424
_PIDFD_OPEN = 434


def pidfd_open(pid: int) -> int:
    """Open a descriptor of a process, which is never reused as a pid is. Needs Linux 5.3."""
    if hasattr(os, "pidfd_open"):
        return os.pidfd_open(pid)
    return _syscall(_PIDFD_OPEN, pid, 0)


def send_signal(pidfd: int, signum: int) -> None:
    """Signal the process of a pidfd; raises OSError if it has ended."""
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(pidfd, signum)
    else:
        _syscall(_PIDFD_SEND_SIGNAL, pidfd, signum, None, 0)


def pids() -> list[int]:
    """The pids of all processes that can be seen."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process handles a signal, which would else end it."""
    status = kernel_text(Path(f"/proc/{pid}/status"))
    found = re.search(r"(?m)^SigCgt:\s*([0-9a-f]+)$", status)
    if found is None:
        return False
    return bool(int(found[1], 16) >> (number - 1) & 1)


STOPPED = ("T", "t")  # states of a process that runs again when it is continued: SIGSTOP, a tracer


def _stat_of(pid: int) -> tuple[str, list[str]]:
    """The name of a process, and what follows it in /proc/pid/stat; empty if it is not there."""
    # "17 (name) S ...": the name may have spaces and parentheses of its own.
    text = kernel_text(Path(f"/proc/{pid}/stat"))
    name, _, rest = text.partition("(")[2].rpartition(")")
    return name, rest.split()


def process_stat(process: int | Path) -> tuple[str, str]:
    """The name of a process and the letter of its state (T: stopped); empty if it is not there.

    The process is given by its pid or by the path of its pidfile. See proc(5), /proc/pid/stat.
    """
    try:
        pid = int(process.read_text(encoding="utf-8")) if isinstance(process, Path) else process
    except (OSError, ValueError):
        return "", ""
    name, fields = _stat_of(pid)
    return (name, fields[0]) if fields else ("", "")


def process_start(pid: int) -> int:
    """When a process began, in clock ticks since the boot; 0 where it is gone, or a zombie.

    A pid that is given again comes with another one.
    """
    _, fields = _stat_of(pid)
    if not fields or fields[0] in ("Z", "X"):
        return 0
    return int(fields[19])  # starttime, the 22nd of proc(5)


def cpu_time(pid: int) -> float | None:
    """Seconds of CPU that all threads of a process have used; None where it is gone."""
    _, fields = _stat_of(pid)
    if not fields:
        return None
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")  # utime and stime


def command_line(pid: int) -> list[str]:
    """The argv of a process; empty where it is gone, or may not be seen."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb", buffering=0) as file:
            return os.fsdecode(file.read()).split("\0")
    except OSError:
        return []


# --- files


@contextlib.contextmanager
def descriptor(fd: int) -> Iterator[int]:
    """Close a file descriptor at the end of the block."""
    try:
        yield fd
    finally:
        os.close(fd)


def sha256_of(data: bytes) -> str:
    """The SHA-256 digest in hexadecimal digits."""
    import hashlib

    return hashlib.sha256(data).hexdigest()


def _trusted_owners() -> set[int]:
    """Whose files count as this user's own; for root, those of HOME's owner, too.

    In containers root has a HOME that may be anybody's, who then decides all that root runs there.
    """
    me, home = os.geteuid(), os.environ.get("HOME", "")
    if me == 0 and home.startswith("/") and os.path.isdir(home):
        return {me, os.stat(home).st_uid}
    return {me}


def not_own(status: os.stat_result) -> str:
    """Why a file or folder is not used: another user owns it or may write to it; empty if it is."""
    if status.st_uid not in _trusted_owners():
        return f"it belongs to uid {status.st_uid}"
    if status.st_mode & 0o022:
        return "other users can write to it"
    return ""


_NOBODY = 65534  # whom the files of users outside of a user namespace seem to belong to


def check_folder(folder: Path) -> None:
    """Raise StateError unless a folder is this user's own, and nobody else can write to it.

    ForeignError where it is another's. Nor may another be able to replace it, from a folder above
    it. One that is not there yet is judged by those above it.
    """
    real = Path(os.path.realpath(folder))
    part = existing_part(real)
    above = [part, *part.parents]
    trusted = {0, _NOBODY, *_trusted_owners()}
    if part == real:
        above.remove(real)
        status = os.lstat(real)
        why = not_own(status)
        if why and status.st_uid not in _trusted_owners():
            hint = "nothing in it is believed, run or changed; use another cacheDir"
            raise ForeignError(f"{folder} is not used: {why}", hint=hint)
        if why and not stat.S_ISLNK(status.st_mode):  # that leads in a circle
            hint = f"`chmod go-w {shlex.quote(str(real))}` closes it to them"
            if status.st_mode & stat.S_ISVTX:
                hint = f"use a folder of your own in it, such as {real}/ycluster-{os.geteuid()}"
            raise StateError(f"{folder} is not used: {why}", hint=hint)
    for place in above:
        status = os.lstat(place)
        open_to_all = status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX
        if open_to_all or status.st_uid not in trusted:
            why = f"{folder} is not used: others can replace it, by way of {place}"
            raise StateError(why, hint="use a cacheDir below a folder that is yours alone")


def open_own(path: Path, flags: int) -> int:
    """Open a regular file of this user's own, private where `flags` make it; follow no link.

    Raises OSError for all else, and waits for nothing: a FIFO would wait for its other end.
    """
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        _refuse_foreign(path, os.lstat(path))  # first, as opening a device may have effects
        fd = os.open(path, flags & ~os.O_CREAT)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
        fd = os.open(path, flags, 0o600)
        keep_owner(fd, path.parent)
    try:
        _refuse_foreign(path, os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def _refuse_foreign(path: Path, status: os.stat_result) -> None:
    """Raise OSError unless this is a regular file of this user's own."""
    why = not_own(status) if stat.S_ISREG(status.st_mode) else "it is not a regular file"
    if why:
        raise OSError(errno.EPERM, why, str(path))


def is_empty(path: Path) -> bool:
    """Whether there is a regular file with nothing in it, as our locks are; no link to one."""
    try:
        status = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_size == 0


def read_own(
    path: Path,
    limit: int = STATE_SIZE,
    *,
    last: bool = False,
) -> bytes:
    """What a regular file of this user's own holds, or the `last` bytes of it.

    Raises OSError for any other file, and for one that is larger than `limit`, unless `last`.
    """
    fd = open_own(path, os.O_RDONLY)
    with os.fdopen(fd, "rb") as file:
        size = os.fstat(fd).st_size
        if last:
            file.seek(max(0, size - limit))
        data = file.read(limit + 1)
    if last:
        return data[:limit]
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is larger than {limit} bytes", str(path))
    return data


def working_folder_is_there() -> bool:
    """Whether the user's working folder has not been removed."""
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def working_folder() -> Path:
    """The user's working folder, or / where that is gone."""
    return Path.cwd() if working_folder_is_there() else Path("/")


def keep_owner(made: int | Path, like: Path) -> None:
    """Give what root has made, a descriptor or a path, to whom the file or folder `like` belongs.

    So root, in a user's place, keeps its user from nothing. Another user is given nothing.
    """
    if os.geteuid() != 0:
        return
    # Where there are no other owners (a user namespace, some file systems) it stays root's.
    with contextlib.suppress(OSError):
        to = os.lstat(like)
        now = os.lstat(made) if isinstance(made, Path) else os.fstat(made)
        if to.st_uid == now.st_uid or to.st_uid not in _trusted_owners():
            return
        if isinstance(made, Path):
            os.chown(made, to.st_uid, to.st_gid, follow_symlinks=False)
        else:
            os.fchown(made, to.st_uid, to.st_gid)


def make_folder(path: Path, mode: int = 0o700) -> None:
    """Make a private folder, and those above it, unless they are there."""
    missing = [part for part in (path, *path.parents) if not os.path.lexists(part)]
    path.mkdir(mode=mode, parents=True, exist_ok=True)
    for part in reversed(missing):
        with descriptor(os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)) as fd:
            keep_owner(fd, part.parent)


def own_folder(path: Path) -> None:
    """Make a private folder, unless it is there; raise as `check_folder` where it is not ours."""
    check_folder(path)
    make_folder(path)


def holds(path: Path, data: bytes, mode: int) -> bool:
    """Whether a file is as `write_file` would leave it."""
    try:
        status = os.lstat(path)
        same = (status.st_size, stat.S_IMODE(status.st_mode)) == (len(data), mode)
        return same and read_own(path, len(data)) == data
    except OSError:
        return False


def write_file(
    path: Path,
    data: bytes,
    *,
    mode: int = 0o600,
) -> None:
    """Replace a file whole or not at all, also if the host loses power meanwhile.

    It is written beside `path`, synced and renamed, and then the directory is synced. One that
    holds just this already stays as it is; and whoever owns it goes on owning it.
    """
    if holds(path, data, mode):
        return
    nonce = os.urandom(4).hex()
    beside = path.with_name(f".{path.name}.{nonce}.tmp")
    fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(fd, mode)
            keep_owner(fd, path if os.path.lexists(path) else path.parent)
            file.write(data)
            file.flush()
            os.fsync(fd)
        os.replace(beside, path)
    except BaseException as error:
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(path)  # ENOSPC carries no file name.
        with contextlib.suppress(OSError):  # The error above is the one to report.
            os.unlink(beside)
        raise
    sync_folder(path.parent)


def mark_used(host: Host, path: Path) -> None:
    """Set the time by which `prune` tells when a file was last used; best effort.

    That is its mtime: a use need not set its atime (noatime), and a backup may.
    """
    now = host.now()
    with contextlib.suppress(OSError):  # on a read-only disk nothing is pruned either
        os.utime(path, (now, now), follow_symlinks=False)


def files_below(folder: Path) -> Iterator[Path]:
    """The files in a folder, then those in the folders in it, and what links to files lead to.

    A folder below that can't be looked into, such as lost+found, is passed over. Raises OSError
    where the folder itself can't, or where there is no end of them.
    """
    os.scandir(folder).close()
    seen = 0
    for place, _, names in os.walk(folder):
        seen += len(names)
        if seen > MANY_FILES:
            raise OSError(errno.EFBIG, f"it has more than {MANY_FILES} files in it", str(folder))
        paths = [Path(place, name) for name in sorted(names)]
        yield from [path for path in paths if path.is_file()]


def size_of(path: Path) -> int:
    """The bytes that a removal of `path`, with all in it, frees on its disk; 0 where it is gone."""
    try:
        status = os.lstat(path)
        within = list(path.iterdir()) if stat.S_ISDIR(status.st_mode) else []
    except OSError:
        return 0
    if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
        return 0  # it has another name, and stays under that
    return status.st_blocks * 512 + sum(map(size_of, within))


def size_words(size: int) -> str:
    """A number of bytes for people: `1.5 GiB`, `12.0 MiB`, `4 KiB`."""
    for unit, shift in (("GiB", 30), ("MiB", 20)):
        if size >= 1 << shift:
            return f"{size / (1 << shift):.1f} {unit}"
    return f"{-(-size >> 10)} KiB"


def own_files(folder: Path, pattern: str) -> list[tuple[Path, float]]:
    """The regular files of this user's own in a folder, by a pattern of names, with their mtimes.

    There are none where the folder is a link, or not this user's own: nothing in it is believed.
    """
    try:
        if folder.is_symlink() or not folder.is_dir():
            return []
        check_folder(folder)
        paths = sorted(path for path in folder.iterdir() if re.fullmatch(pattern, path.name))
    except (OSError, StateError):
        return []
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # it has gone since it was listed
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode) and not not_own(status):
                found.append((path, status.st_mtime))
    return found


def sync_folder(folder: Path) -> None:
    """Have the names in a folder outlive a loss of power."""
    with descriptor(os.open(folder, os.O_RDONLY | os.O_DIRECTORY)) as directory:
        os.fsync(directory)


def existing_part(path: Path) -> Path:
    """The path itself, or the nearest folder above it that is there."""
    while not os.path.lexists(path):
        path = path.parent
    return path


def refuse_dead_link(path: Path) -> None:
    """Raise ConfigError where a path is a link to what is not there."""
    if path.is_symlink() and not path.exists():
        raise ConfigError(f"{path} is a link to {os.readlink(path)}, which is not there")


def refuse_sudo(host: Host, path: Path) -> None:
    """Raise where `path` is to be made or changed by root, in what belongs to who called sudo.

    That user could then neither see nor stop what was made. Root that did not come by sudo is not
    refused: in containers HOME may be anybody's.
    """
    caller = host.environ.get("SUDO_UID", "")
    by_sudo = os.geteuid() == 0 and re.fullmatch("[0-9]+", caller)
    if not by_sudo or int(caller) == 0:
        return
    part = existing_part(path)
    if os.lstat(part).st_uid == int(caller):
        user = host.environ.get("SUDO_USER") or f"uid {caller}"
        hint = "run it without sudo; or with `sudo -H`, for clusters of root's own"
        raise PrerequisiteError(f"{part} is {user}'s, and this is root, by sudo", hint=hint)


def is_gone(path: Path) -> bool:
    """Whether there certainly is nothing at a path; where that can't be seen, there may be."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno in NOT_THERE
    return False


def remove(path: Path) -> bool:
    """Remove a file or a link; False if there was none. A folder there is the user's, and stays."""
    if path.is_dir() and not path.is_symlink():
        return False
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def remove_folder(path: Path) -> bool:
    """Remove a folder of ours with all that is in it, or what stands in its place."""
    if path.is_symlink() or not path.is_dir():
        return remove(path)
    import shutil

    shutil.rmtree(path)
    return True


# --- locks


def try_flock(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file, created if missing; returns a descriptor that holds the lock.

    None if somebody else holds it. The lock ends with the last copy of the descriptor, and thus
    with the last process that has one.
    """
    operation = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    # Who only looks at a lock does not care whose it is: root may have started the VM.
    looks = shared and os.path.lexists(path)
    with descriptor(os.open(path, _LOOK) if looks else _open_lock(path)) as fd:
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            # The file may have been unlinked between open and flock: that lock keeps nobody out.
            same = os.path.samestat(os.fstat(fd), os.stat(path))
        except (BlockingIOError, FileNotFoundError):
            return None
        return os.dup(fd) if same else None


_LOOK = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK


def _open_lock(path: Path) -> int:
    try:
        return open_own(path, os.O_RDWR | os.O_CREAT)
    except OSError:
        if not path.exists():
            raise
        # The disk may have become read-only. Its VM must be stopped all the same.
        return open_own(path, os.O_RDONLY)


def take_flock(
    host: Host,
    path: Path,
    *,
    timeout: float,
    what: str = "",
) -> int | None:
    """Lock a file, as `try_flock` does, within `timeout` seconds; None if it is still held then.

    With `what`, the name of what is locked, the user sees that it is waited for, and a holder that
    is stopped is continued. Wait even where nobody can be working: `flock_held` takes the lock for
    a moment.
    """
    steps = Steps(host.output, host.monotonic)

    def waiting() -> None:
        if what:
            steps.waiting(f"waiting: another ycluster is working on {what}")

    until = host.monotonic() + timeout
    while True:
        span = min(WAKE_AFTER, until - host.monotonic())
        fd = host.wait_for(partial(try_flock, path), timeout=span, interval=0.02, waiting=waiting)
        if fd is not None or host.monotonic() >= until:
            return fd
        if what:
            wake_holder(path)


def flock_held(path: Path) -> bool:
    """Whether somebody holds an exclusive lock on a file; makes no file.

    Nobody does where it is not a regular file: it is none of ours.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return False
        fd = try_flock(path, shared=True)
    except FileNotFoundError:
        return False
    if fd is None:
        return path.exists()  # If it has been removed meanwhile, its lock means nothing.
    os.close(fd)
    return False


def wake_holder(path: Path) -> None:
    """Continue each stopped process that has a lock file open, or all others would wait for it."""
    for pid in pids():
        if process_stat(pid)[1] == "T":
            signal_holder(pid, path, signal.SIGCONT)


def signal_holder(pid: int, path: Path, sign: signal.Signals) -> None:
    """Send a signal to a process if it has a file open."""
    # A failure means that it has ended, or that it is another user's.
    with contextlib.suppress(OSError), descriptor(pidfd_open(pid)) as pidfd:
        if has_open(pid, path):
            send_signal(pidfd, sign)


def lock_holder(path: Path) -> int | None:
    """The pid of the process that has locked a file, by the kernel's list; None where none has."""
    try:
        wanted = os.lstat(path)
    except OSError:
        return None
    for line in kernel_text(Path("/proc/locks")).splitlines():
        words = line.split()  # 1: FLOCK ADVISORY WRITE 4711 fe:01:1234 0 EOF
        if words[1:4] != ["FLOCK", "ADVISORY", "WRITE"]:  # READ: somebody looks, see `flock_held`
            continue
        if not words[5].endswith(f":{wanted.st_ino}"):
            continue
        pid = int(words[4])
        with contextlib.suppress(OSError):  # it has ended meanwhile
            if has_open(pid, path):
                return pid
    return None


def has_open(pid: int, path: Path) -> bool:
    """Whether a process has a file open, by whatever name. OSError: it can't be looked into."""
    files = Path(f"/proc/{pid}/fd").iterdir()
    return any(file.exists() and file.samefile(path) for file in files)


@contextlib.contextmanager
def locked(
    host: Host,
    path: Path,
    *,
    timeout: float,
    belongs_to: Path | None = None,
) -> Iterator[None]:
    """Hold the lock file `path` during the block; raises Busy after `timeout` seconds.

    If the file that it belongs to is gone at the end of the block, the lock file is removed, too.
    """
    # A cluster by its name; what is downloaded by its folder.
    what = str(path.parent) if path.name == ".lock" else path.stem.removesuffix(".stop")
    try:
        fd = take_flock(host, path, timeout=timeout, what=what)
    except PermissionError as error:  # root's, or no file at all
        hint = f"while no ycluster works on {what}, `rm {shlex.quote(str(path))}` is safe"
        raise NoLock(f"{path}: {error.strerror}", hint=hint) from None
    if fd is None:
        hint = f"`fuser {path}` names it"
        raise Busy(f"{what}: another ycluster is working on it", hint=hint)
    with descriptor(fd):
        try:
            yield
        finally:
            # What is not empty was no lock of ours before, and a lock is all that it is now.
            if belongs_to and not os.path.lexists(belongs_to) and os.fstat(fd).st_size == 0:
                remove(path)


# === 5 durations ==================================================================================
# Durations as Go's time package reads and writes them, because a program in Go shares the config
# and the state file, and times as in RFC 3339. A duration is in nanoseconds and fits an int64, as
# in Go; a time is in seconds since the epoch. All is pure, and a text that can't be read raises
# ValueError. Patterns are text, here and in other sections: `re` compiles one at its first use.

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "\u00b5s": 10**3,  # the micro sign
    "\u03bcs": 10**3,  # the Greek letter mu
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_TERM = (
    r"(?s)(?=.)([0-9]*)(\.[0-9]*)?([^.0-9]*)"  # a whole number, a fraction, a unit; not all empty
)
_OVERFLOW = 1 << 63  # the first number that is no int64; negated it is one
_LATEST = 32503679999  # 2999-12-31T23:59:59Z, in seconds since the epoch
# 1900-01-01T00:00:00Z. Of a boot alone: a clock that a dead battery has reset is below the uptime.
_EARLIEST_BOOT = -2208988800
_RFC3339 = r"(?a)(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d+))?(Z|z|[+-]\d\d:[0-5]\d)"
_CLOCK = r"(?a)([01]?\d|2[0-3]):([0-5]\d)"
_CLOCK_12 = "(1[0-2]|0?[1-9])(?::([0-5][0-9]))? ?([APap])[Mm]"
_LOCAL_TIME = "([0-9]{4})-([0-9]{2})-([0-9]{2})[ T]([0-9]{2}):([0-9]{2})"


def parse_duration(text: str) -> int:
    """Nanoseconds of a Go duration such as `8h`, `1h30m` or `1.5s`.

    Raises ValueError in Go's own words. See golang.org/pkg/time#ParseDuration.
    """
    unsigned = text[1:] if text.startswith(("-", "+")) else text
    negative = text.startswith("-")
    if unsigned == "0":
        return 0
    total = 0
    for whole, fraction, unit in re.findall(_TERM, unsigned):
        total += _parse_term(text, whole, fraction, unit)
        if total > _OVERFLOW:
            raise _invalid_duration(text)
    if not unsigned or (total == _OVERFLOW and not negative):
        raise _invalid_duration(text)
    return -total if negative else total


def _invalid_duration(text: str) -> ValueError:
    return ValueError(f"invalid duration {_quoted(text)}")


def _quoted(text: str) -> str:
    """A text in double quotes, in one line whatever is in it."""
    return json.dumps(text, ensure_ascii=False)


def _parse_term(
    text: str,
    whole: str,
    fraction: str,
    unit: str,
) -> int:
    """Nanoseconds of one number with its unit; `text` is the duration in which it stands."""
    if not whole and fraction in ("", "."):
        raise _invalid_duration(text)
    digits = whole.lstrip("0")
    # An int64 has no more; int() would refuse 5,000 digits with another message.
    if len(digits) > 19:
        raise _invalid_duration(text)
    number = int(digits or "0")
    if number > _OVERFLOW:
        raise _invalid_duration(text)
    if not unit:
        raise ValueError(f"missing unit in duration {_quoted(text)}")
    if unit not in _UNITS:
        unknown = _quoted(unit)
        raise ValueError(f"unknown unit {unknown} in duration {_quoted(text)}")
    return number * _UNITS[unit] + _parse_fraction(fraction[1:], _UNITS[unit])


def _parse_fraction(digits: str, unit: int) -> int:
    """Nanoseconds of a fraction of a unit, rounded down, computed in float64 as Go computes it."""
    value = 0
    scale = 1.0
    for digit in digits:
        longer = value * 10 + int(digit)
        if longer > _OVERFLOW:
            break  # Go ignores the digits that would overflow an int64.
        value = longer
        scale *= 10
    return int(float(value) * (float(unit) / scale))


def budget(text: str) -> int | None:
    """Nanoseconds of a setting such as `maxRun`; None if it is switched off: empty, or "0"."""
    if text in ("", "0"):
        return None
    return parse_duration(text)


def seconds_up(nanoseconds: int) -> int:
    """Convert to seconds, rounded up: a budget is never cut short."""
    return -(-nanoseconds // 10**9)


def format_duration(nanoseconds: int) -> str:
    """A duration as Go writes it: `1h30m0s`, `1.5s`, `20ms`, `0s`."""
    if nanoseconds == 0:
        return "0s"
    if nanoseconds < 0:
        return "-" + format_duration(-nanoseconds)
    # Only a span of less than a second is in a smaller unit.
    unit = next(unit for unit in ("s", "ms", "\u00b5s", "ns") if nanoseconds >= _UNITS[unit])
    minutes, rest = divmod(nanoseconds, _UNITS["m"])
    hours, minutes = divmod(minutes, 60)
    number = f"{rest / _UNITS[unit]:.9f}"  # exact, for it has eleven digits at most
    text = number.rstrip("0").rstrip(".") + unit
    if hours:
        return f"{hours}h{minutes}m{text}"
    if minutes:
        return f"{minutes}m{text}"
    return text


def in_words(seconds: float) -> str:
    """A span for people, in two units at most: `3h 12m`, `45s`, `2d 4h`."""
    minutes, left = divmod(int(abs(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    numbers = ((days, "d"), (hours, "h"), (minutes, "m"), (left, "s"))
    words = [f"{number}{unit}" for number, unit in numbers if number]
    return " ".join(words[:2]) or "0s"


def parse_time(text: str, *, earliest: int = 0) -> int:
    """Seconds since the epoch of an RFC 3339 time, a fraction rounded up."""
    from datetime import datetime

    match = re.fullmatch(_RFC3339, text)
    if match is None:
        raise ValueError(f"{text!r} is not an RFC 3339 time")
    date, clock, fraction, zone = match.groups()
    if zone in ("Z", "z"):
        zone = "+00:00"
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{zone}")
    except ValueError:
        raise ValueError(f"{text!r}: there is no such time") from None
    seconds = int(moment.timestamp())
    if fraction and fraction.strip("0"):
        seconds += 1
    if not earliest <= seconds <= _LATEST:
        raise ValueError(f"{text!r} is before {utc_text(earliest, '%Y')} or after 2999")
    return seconds


def format_time(seconds: float) -> str:
    """An RFC 3339 time in UTC."""
    return utc_text(seconds, "%Y-%m-%dT%H:%M:%SZ")


def utc_text(seconds: float, layout: str) -> str:
    """A time in UTC, in a layout of strftime's."""
    return time.strftime(layout, time.gmtime(seconds))


def local_time(seconds: float) -> str:
    """A time for people, in the zone of this host."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds))


def parse_until(text: str, now: float) -> int:
    """Seconds since the epoch of an RFC 3339 time; or of a time in this host's zone.

    That is 2026-01-31 18:00, or the next 18:00, 6pm or 6:30pm. Raises ValueError.
    """
    dated = re.fullmatch(_LOCAL_TIME, text)
    if dated:
        year, month, day, hour, minute = map(int, dated.groups())
        day_and_time = f"{dated[1]}-{dated[2]}-{dated[3]}T{dated[4]}:{dated[5]}"
        parse_time(f"{day_and_time}:00Z")  # as a check
        return int(time.mktime((year, month, day, hour, minute, 0, 0, 0, -1)))
    clock = _clock_time(text)
    if clock is None:
        return parse_time(text)
    year, month, day, *_ = time.localtime(now)
    rest = (*clock, 0, 0, 0, -1)  # -1: summer time is as it may be
    moment = time.mktime((year, month, day, *rest))
    if moment <= now:
        moment = time.mktime((year, month, day + 1, *rest))
    return int(moment)


def _clock_time(text: str) -> tuple[int, int] | None:
    """The hour and the minute of 18:00, 6pm or 6:30pm; None where it is no such text."""
    match = re.fullmatch(_CLOCK, text)
    if match:
        return int(match[1]), int(match[2])
    match = re.fullmatch(_CLOCK_12, text)
    if match:
        afternoon = 12 if match[3].lower() == "p" else 0
        hour, minute = int(match[1]), int(match[2] or 0)
        return hour % 12 + afternoon, minute
    return None


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
# What looks like a blank, or like nothing: spaces that are none to YAML, soft hyphens, zero-width
# characters, marks of the direction, fillers. YAML takes them for letters.
_INVISIBLE = (
    "[\xa0\xad\u034f\u061c\u115f\u1160\u1680\u180e\u2000-\u200f\u202a-\u202f"
    "\u205f-\u206f\u2800\u3000\u3164\uffa0]"
)
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


def _refuse_invisible(src: _YamlSource, start: int, end: int) -> None:
    """Refuse an invisible character from start to end, outside of quotes: nobody has meant it."""
    if src.text.isascii():
        return
    match = re.compile(_INVISIBLE).search(src.text, start, end)
    if match:
        message = f"an invisible character, {character_name(match.group())}"
        escape = f'"\\u{ord(match.group()):04x}"'
        way = "type a space in its place" if match.group().isspace() else "remove it"
        hint = f"{way}, or write {escape} in double quotes"
        raise src.error(match.start(), message, hint)


def character_name(char: str) -> str:
    """A character by its number, and by its name where it has one."""
    from unicodedata import name

    return f"U+{ord(char):04X} {name(char, '')}".rstrip()


def invisible_in(value: object) -> str:
    """The name of the first invisible character in a text; empty where there is none."""
    if not isinstance(value, str) or value.isascii():
        return ""
    match = re.search(_INVISIBLE, value)
    return character_name(match.group()) if match else ""


def _check_depth(src: _YamlSource, pos: int, depth: int) -> None:
    if depth > _MAX_DEPTH:
        message = f"more than {_MAX_DEPTH} levels of nesting"
        hint = "nest less deeply"
        raise src.error(pos, message, hint)


# --- scalars

# The first character of a plain scalar, ns-plain-first [126]: not an indicator, except "-", "?" and
# ":" with text right after them. Inside of [] and {} readers differ on a "?" or ":": some take it
# for the sign of a key.
_PLAIN_FIRST = r"""[^-?:,\[\]{}#&*!|>'"%@`]|[-?:](?=[^ \t\n])"""
_FLOW_PLAIN_FIRST = r"""[^-?:,\[\]{}#&*!|>'"%@`]|-(?=[^ \t\n,\[\]{}])"""
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
        # Octal in YAML 1.2, binary in YAML 1.1, for Go with a capital letter, too: 0o12, 0b11, 0X1F
        r"[-+]?_*0_*(?:[oO][0-7_]+|[bB][01_]+|X[0-9a-fA-F_]+)",
        r"[-+]_*0_*x[0-9a-fA-F_]+",  # hexadecimal with a sign: -0x1F
        r"(?=[^_]+_)0_*x[0-9a-fA-F_]+",  # hexadecimal with underscores: 0x_ff
        # Decimal with an underscore that is not the first, and a digit: 1_000.5
        r"(?=[^_]+_)(?=[^0-9]*[0-9])[-+]?[0-9_]*(?:\.[0-9_]*)?(?:[eE]_*[-+]?[0-9_]+)?",
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
        _refuse_invisible(src, next_line, next_end)
        end = next_end


def _plain_line_end(src: _YamlSource, pos: int, context: _ScalarContext) -> int:
    """Find where the first line of the plain scalar at pos ends, without the blanks after it."""
    if not src.match(context.first, pos):
        raise _refused_start(src, pos)
    end = src.skip(context.line, pos)
    _refuse_invisible(src, pos, end)
    return end


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
        span = re.fullmatch("([0-9]{1,3}):([0-5][0-9])[]},]*", text)
        if span:
            hint += f"; as a duration it is {int(span[1])}h{span[2]}m"
        if re.fullmatch("(?!.{20})(?:[1-9][0-9]*_[0-9_]+|0[0-9]*[89][0-9]*)", text):
            decimal = int(text.replace("_", ""))
            hint += f"; as a decimal number it is {decimal}"
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
# A key and what stands for its colon and space: a colon with text right after it, which makes no
# URL of both, an equals sign, or the wide colon of a Chinese or Japanese keyboard.
NO_COLON = r"(?a)([A-Za-z_][\w.-]*)(?:[ \t]*[=\uff1a]|[ \t]*:(?!//|[ \t\n]))"
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
        if _lacks_space(src, pos):
            hint = ENTRY
        raise src.error(end, message, hint)
    return end, node


def _next_token(src: _YamlSource, start: int) -> int:
    """Find the token at or after start. If it is the first on its line, only spaces indent it."""
    pos = src.skip(_TO_TOKEN, start)
    starts_line = src.line_start(pos) >= start
    if starts_line and not src.at_end(pos):
        _refuse_tab_before(src, start, pos)
    return pos


ENTRY = "an entry of a list begins with a dash and a space"  # a hint


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
        _refuse_colon_above(src, pos, line_start)
        key = src.skip(_BLANKS, line_start)
        begins_its_line = src.line_start(pos) + src.indent(pos) == pos
        if begins_its_line and src.indent(pos) == src.indent(key):
            raise _no_key(src, pos)
        message = "a key in the middle of a text"
        hint = "line it up with the key above it (':' ends a key), or quote the whole text"
        if _lacks_space(src, pos):
            hint = ENTRY
        raise src.error(key, message, hint)
    _refuse_invisible(src, token, token + 1)
    message = "text after the end of a value"
    raise src.error(token, message, _way_to_end(src, pos, token))


def _no_key(src: _YamlSource, pos: int) -> ConfigError:
    message = "no 'key: value' here"
    return src.error(pos, message, "write the key, a colon and a space on one line")


def _lacks_space(src: _YamlSource, pos: int) -> bool:
    """Whether the line of pos begins with a dash that no space follows."""
    return bool(src.match(r"[ ]*-[^-\s]", src.line_start(pos)))


def _way_to_end(src: _YamlSource, start: int, token: int) -> str:
    """The hint where the value that begins at start has something after it, on its line."""
    if _lacks_space(src, start):
        return ENTRY
    one = src.match(r"([a-z][A-Za-z0-9]*: [^\n:,{}\[\]#]*[^\n:,{}\[\]# ]) *(?:\n|#|$)", start)
    if src.at(token, ":") and one:
        return f"quote a text; write a mapping in braces: {{{one[1]}}}"
    if src.match(r",[ \t]*(?:\n|$)", token):
        return "leave the comma out; in JSON, braces are around all of it"
    return (
        "quote the whole value; a comment needs a space before its '#', "
        "a nested mapping a line of its own"
    )


def _refuse_colon_above(src: _YamlSource, start: int, end: int) -> None:
    """Blame the line of `name:dev` for the text that goes on from there into the next key."""
    before = src.text[src.line_start(start) : start]
    pos = end if before.strip(" \t-") else start  # the value of a key above may have a colon
    while pos < end:
        _refuse_colon(src, pos)
        pos = src.skip(r"[^\n]*\n[ \t\n]*", pos)


def colon_missing(match: re.Match[str]) -> str:
    """What is wrong with a text that matches NO_COLON."""
    if match[0].endswith(":"):
        return "no space after the ':' of a key"
    return "no ':' and space after a key"


def _refuse_colon(src: _YamlSource, pos: int) -> None:
    """Refuse a key at pos that has something else after it than a colon and a space."""
    match = src.match(NO_COLON, pos)
    if match:
        raise src.error(match.end() - 1, colon_missing(match), "write 'key: value'")


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
        _refuse_colon(src, pos)
        raise _no_key(src, pos)
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
        _refuse_invisible(src, content, content + 1)
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
        _refuse_invisible(src, pos, pos + 1)
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
        message = f"the character {character_name(match.group())} is not allowed here"
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


# === 7 config and schema ==========================================================================
# Owns the config file: `load_config` reads and checks it, `schema_for` describes it to editors.
# Each key is declared once, by `key` in the tables Config, QemuConfig and so on. Reading, defaults,
# `config show` and the schemas all come from there. All problems of a file are reported at once,
# each with its line and column, and only a config without any problem is returned. Of the host it
# reads which ports its user can't have: `load_config` moves defaults that are among them.

WRONG: Any = object()  # stands for a wrong value, whose problem is in the list already

Problem: TypeAlias = "tuple[int, int, str]"  # line and column from 1 on, and what is wrong

_SORTS = {
    dict: "a mapping",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    type(None): "nothing",
}


# What is substituted in a text with a ${: a variable, maybe with a default, or $$ for a $.
# Source: pkg/envsubst of the sibling.
_REFERENCE = r"\$\$|\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}"


# --- what was probably meant by something that is wrong
# A path and a value, as expressions for the whole of both, and what to write in their place.
_MEANT = (
    ("provider", "kvm|libvirt|qemu-kvm|vm", "provider: qemu"),
    (r"lifetime\.onExpiry", "delete|destroy|remove|rm|down", "onExpiry: teardown"),
    (r"lifetime\.onExpiry", "shutdown|power-?off|halt|off", "onExpiry: stop"),
    (r"lifetime\.onExpiry", "hibernate|save|sleep", "onExpiry: suspend"),
    (r"lifetime\.onExpiry", "freeze", "onExpiry: pause"),
    ("onExpiry|onWarn", ".+", r"lifetime: {PATH: \g<0>}"),
    ("k3s", "none|false|no|off", "k3s: {install: none}"),
    ("k3s", "v[0-9].*", r"k3s: {version: \g<0>}"),
    ("diskSize|dataDiskSize", "([1-9][0-9]*) *([MGT])i?B?", r"PATH: \1\2"),
    ("diskSize|dataDiskSize", "[1-9][0-9]{0,2}", r"PATH: \g<0>G"),
    ("diskSize|dataDiskSize", "[1-9][0-9]{3,5}", r"PATH: \g<0>M"),
    (r"portForwards\[[0-9]+\]", "([0-9]+):([0-9]+)(/tcp)?", r"{host: \1, guest: \2}"),
    ("ports|publish|forwards", ".*", "portForwards: [{host: 8080, guest: 80}]"),
    ("disk|storage", "[0-9]+[KMGT]?", r"diskSize: \g<0>"),
    (r"network\.bindAddress", "localhost|::1|127", "bindAddress: 127.0.0.1"),
    (r"network\.bindAddress", r"\*|::|0|all|any", "bindAddress: 0.0.0.0"),
    ("image", "debian.*", f"image: {DEBIAN_IMAGE}"),
    ("image", "(ubuntu|noble|24[.]04).*", f"image: {DEFAULT_IMAGE}"),
    ("cpu|vcpus|cores", "[0-9]+", r"cpus: \g<0>"),
    ("ram|mem", ".+", r"memory: \g<0>"),
)
LIFETIME_SPANS = ("maxRun", "warn", "maxTotal", "maxIdle")
_SPAN_NAMES = "|".join(LIFETIME_SPANS)
_SPAN_PATH = rf"lifetime(\.({_SPAN_NAMES}))?|{_SPAN_NAMES}|ttl|timeout"
# A number with its unit as people write them, in the place of a Go duration.
_SPAN_TERM = (
    r"(?i:([0-9]{1,6}(?:\.[0-9]{1,3})?)\s*"
    "(weeks?|w|days?|d|hours?|hrs?|h|minutes?|mins?|m|seconds?|secs?|s)(?![a-z]))"
    r"(?:,? and |[\s,]*)"
)
_SPAN_SECONDS = {
    "w": 7 * 86400,
    "d": 86400,
    "h": 3600,
    "m": 60,
    "s": 1,
}


def line_to_write(path: str, value: object) -> str:
    """What was probably meant by a wrong value at a path, as advice; empty: nobody can tell."""
    text = value if isinstance(value, str) else str(value).lower()
    if isinstance(value, (dict, list)):
        text = ""
    if re.fullmatch(_SPAN_PATH, path) and text:
        return "" if re.match(NO_COLON, text) else _span_advice(path, text)
    if path == "name":
        seen = re.sub(rf"(?!\s){_INVISIBLE}", "", text)
        label = re.sub("[^a-z0-9]+", "-", seen.lower()).strip("-")[:63]
        return f"write `name: {label or 'dev'}`"
    for at, pattern, line in _MEANT:
        found = re.fullmatch(f"(?i:{pattern})", text)
        if found and re.fullmatch(at, path):
            return f"write `{found.expand(line.replace('PATH', path))}`"
    return ""


def _span_advice(path: str, text: str) -> str:
    """Advice for a duration of the lifetime, wherever it stands."""
    key = path.rpartition(".")[2]
    if re.fullmatch("(?i:never|none|no|off|false|unlimited|infinite|forever)", text):
        return 'write `warn: "0"`' if key == "warn" else f"leave {key} out"
    is_in_place = path.startswith("lifetime.")
    name = key if key in LIFETIME_SPANS else "maxRun"
    meant = [span for span in _spans_meant(text) if _is_limit(span)]
    lines = [f"{name}: {span}" for span in meant or ["8h"]]
    if not is_in_place:
        lines = [f"lifetime: {{{line}}}" for line in lines]
    shown = " or ".join(f"`{line}`" for line in lines)
    return f"write {shown}" if meant else f"for example {shown}"


def _is_limit(span: str) -> bool:
    """Whether a text is a Go duration, and a positive one."""
    try:
        return parse_duration(span) > 0
    except ValueError:
        return False


def _spans_meant(text: str) -> list[str]:
    """The Go durations that may be meant by a text; none where nobody can tell."""
    text = text.strip().lstrip("-+")
    if _is_limit(text):
        return [text]
    if re.fullmatch("[0-9]{1,6}", text):
        number = int(text)
        is_hours = number >= 60 and number % 60 == 0
        return [f"{number}m", f"{number // 60 if is_hours else number}h"]
    clock = re.fullmatch("([0-9]{1,3}):([0-5][0-9])", text)
    if clock:
        return [f"{clock[1]}h{clock[2]}m"]
    if not re.fullmatch(f"({_SPAN_TERM})+", text):
        return []
    seconds = 0.0
    for count, unit in re.findall(_SPAN_TERM, text):
        letter = unit[0].lower()
        seconds += float(count) * _SPAN_SECONDS[letter]
    whole = format_duration(round(seconds) * 10**9)
    short = re.sub("(?<=m)0s$", "", whole)  # 36h for 36h0m0s
    return [re.sub("(?<=h)0m$", "", short)]


class Item(Record):
    """A node of the config, with all that its kind needs to read it."""

    node: Node
    path: str  # as in a message: `portForwards[0].host`; empty for the whole config
    base: Path  # the config's directory, where relative paths start
    home: Callable[[], Path] | None  # what `~` stands for
    problems: list[Problem]  # one list for the whole config, which reading adds to

    def below(self, node: Node, step: str) -> Item:
        """The item of a node below this one; the step to it is a `.key` or an `[index]`."""
        return replace(self, node=node, path=(self.path + step).lstrip("."))

    def refuse(self, why: object) -> None:
        """Add a problem with the value."""
        named = self.path or "the config"
        meant = line_to_write(self.path, self.node.value)
        key = self.path.rpartition(".")[2]
        if meant and meant != f"write `{key}: {self.node.source}`":  # which stands there already
            why = f"{why}; {meant}"
        unseen = invisible_in(self.node.value)
        if unseen:
            why = f"{why}; an invisible character is in it, {unseen}"
        line, column = self.node.line, self.node.column
        self.problems.append((line, column, f"{named}: {why}"))

    def read(self, kind: Kind[Value]) -> Value:
        """The value; or WRONG, after a problem with it has been added."""
        try:
            value = kind.read(self)
        except ValueError as error:
            self.refuse(error)
            value = WRONG
        return value

    def entries(
        self, kinds: Mapping[str, Kind[Any]], *, keep_empty: bool = False
    ) -> dict[str, Any]:
        """The values of a mapping. A key without a value is absent, and so keeps its default.

        So is one with an empty text, as in the sibling. With `keep_empty` what is absent has the
        value None, and an empty text is one, but where one of several words is wanted.
        """
        values: dict[str, Any] = {}
        for name, node in self.mapping().items():
            if name not in kinds:
                at_key = replace(node, line=node.key_line, column=node.key_column)
                unseen = invisible_in(name)
                why = f"no such key{_nearest(name, kinds)}"
                foreign = re.search("[^\x00-\x7f]", name)
                if foreign:
                    why += f"; {foreign[0]!r} in it is {character_name(foreign[0])}"
                if unseen:
                    why = f"in this key is an invisible character, {unseen}"
                self.below(at_key, f".{name}").refuse(why)
                continue
            kind = kinds[name]
            is_scalar = kind.schema.get("type", "string") == "string"
            empty = is_scalar and (not keep_empty or "enum" in kind.schema)
            if node.value is not None and not (empty and node.value == ""):
                values[name] = self.below(node, f".{name}").read(kind)
            elif keep_empty:
                values[name] = None
        return values

    def value(self, sort: type[Value], wanted: str) -> Value:
        """The node's own value. Raises ValueError where it is of another sort."""
        found = self.node.value
        if not isinstance(found, sort):
            raise ValueError(f"must be {wanted}, not {_SORTS.get(type(found), 'a number')}")
        return found

    def mapping(self) -> dict[str, Node]:
        """The node's keys and their values."""
        found = re.match(NO_COLON, self.node.source or "")
        if found:
            raise ValueError(f"{colon_missing(found)}; write `{found[1]}: ...`")
        return self.value(dict, "a mapping of keys to values")

    def nodes(self, *, of_texts: bool = False) -> Sequence[Node]:
        """The entries of a list; `of_texts`: each is a text."""
        value = self.node.value
        first = next(iter(value), "") if isinstance(value, dict) else value
        text = first if isinstance(first, str) else ""
        is_one = re.fullmatch("(?:--)?[A-Za-z0-9/][-=A-Za-z0-9./_]*", text)
        if of_texts and is_one and text == value:
            key = self.path.rpartition(".")[2]
            raise ValueError(f"must be a list; write `{key}: [{text}]`")
        if re.match("[-\u2010-\u2015\u2022]", text):
            raise ValueError(ENTRY)
        return self.value(list, "a list")

    def boolean(self) -> bool:
        """True or false, and no number."""
        return self.value(bool, "true or false")

    def string(self) -> str:
        """A text as it stands, ${} and all."""
        return self.value(str, "a string")

    def scalar(self) -> str:
        """A string, or a number as it is written: the sibling wants `memory: "8192"` quoted."""
        if type(self.node.value) in (int, float):
            return str(self.node.source)
        return self.string()

    def text(self) -> str:
        """A scalar, in which ${VAR} would be a mistake."""
        text = self.scalar()
        if "${" in text:
            why = "${...} is substituted in registries, and nowhere else; write the value itself"
            raise ValueError(why)
        return text

    def template(self) -> str:
        """A scalar that may hold ${VAR}. It is filled in when used, so that no secret is stored."""
        text = self.scalar()
        if "${" in re.sub(_REFERENCE, "", text):
            raise ValueError("${ names a variable, as in ${VAR} or ${VAR:-default}; or write $${")
        return text

    def file(self, text: str) -> Path:
        """The path in a text: a relative one starts at the config's directory, `~` at home."""
        if "\0" in text or "\n" in text:
            raise ValueError("a path has no line break and no NUL")
        if re.match(_SCHEME, text):
            raise ValueError(f"{text!r} is a URL; a path is wanted")
        if re.search(r"(?:^|/)\$[A-Za-z_]", text):
            raise ValueError(f"{text!r}: no variable is filled in here; ~ is the home directory")
        return Path(os.path.abspath(self.base / self._expand_home(text)))

    def _expand_home(self, text: str) -> Path:
        """`~` or `~user` at the head of a path made what a shell makes of it."""
        first, _, rest = text.partition("/")
        if first == "~":
            if self.home is None:
                raise ValueError("~ means nothing here; write the whole path")
            return self.home() / rest.lstrip("/")
        if first.startswith("~"):
            try:
                return Path(pwd.getpwnam(first[1:]).pw_dir) / rest.lstrip("/")
            except KeyError:
                why = f"no user {first[1:]} has a home here; of a file of this name, write ./{text}"
                raise ValueError(why) from None
        return Path(text)


# --- kinds: how values are read, described and shown
def unchanged(value: Value) -> Value:
    """The value itself, where JSON holds it as it is."""
    return value


class Kind(Record, Generic[Value]):
    """How a value is written in the config.

    `read` takes it from an Item, or raises ValueError with what is wrong; `schema` describes what
    can be read, in JSON Schema; `show` gives what JSON holds for the value.
    """

    read: Callable[[Item], Value]
    schema: Mapping[str, Any] = {}
    show: Callable[[Value], Any] = unchanged


class Key(Record, Generic[Value]):
    """A key of the config, as `key` declares it."""

    kind: Kind[Value]
    doc: str
    default: Value  # REQUIRED where the file has to give a value

    @property
    def schema(self) -> dict[str, Any]:
        """The schema of the kind, with what the key means and its default."""
        described: dict[str, Any] = {"description": self.doc}
        if self.default is not REQUIRED:
            described["default"] = self.kind.show(self.default)
        return {**described, **self.kind.schema}


def key(
    kind: Kind[Value],
    doc: str,
    default: Value = REQUIRED,  # type: ignore[assignment]
) -> Value:
    """Declare a key of the config as a field of a Record; in the file it is spelt in camelCase."""
    return Key(kind, doc, default)  # type: ignore[return-value] # instances hold a value instead


def keys_of(cls: type[Record]) -> dict[str, Key[Any]]:
    """The keys that a Record declares, by the names of its fields."""
    keys = {}
    for attr in cls.fields:
        declared = getattr(cls, attr, None)
        if isinstance(declared, Key):
            keys[attr] = declared
    return keys


def camel_case(attr: str) -> str:
    """A field's name as files spell it: `maxRun` for `max_run`."""
    first, *others = attr.split("_")
    return first + "".join(word.capitalize() for word in others)


def _object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def section(cls: type[AnyRecord]) -> Kind[AnyRecord]:
    """The kind of a mapping whose keys a Record declares; other keys are refused."""
    keys = keys_of(cls)
    kinds = {camel_case(attr): declared.kind for attr, declared in keys.items()}

    def read(item: Item) -> AnyRecord:
        found = item.entries(kinds)
        values: dict[str, Any] = {}
        for attr, declared in keys.items():
            name = camel_case(attr)
            if name in found:
                values[attr] = found[name]
            elif declared.default is REQUIRED:
                item.below(item.node, f".{name}").refuse("is missing")
                values[attr] = WRONG
        return cls(**values)

    def show(record: AnyRecord) -> dict[str, Any]:
        shown = {}
        for attr, declared in keys.items():
            shown[camel_case(attr)] = declared.kind.show(getattr(record, attr))
        return shown

    return Kind(read, _schema_of_keys(keys), show)


def _schema_of_keys(keys: Mapping[str, Key[Any]]) -> dict[str, Any]:
    properties, required = {}, []
    for attr, declared in keys.items():
        properties[camel_case(attr)] = declared.schema
        if declared.default is REQUIRED:
            required.append(camel_case(attr))
    schema = _object_schema(properties)
    if required:
        schema["required"] = required
    return schema


def shape(kinds: Mapping[str, Kind[Any]]) -> Kind[Mapping[str, Any]]:
    """The kind of a mapping that stays as it is, each of its keys checked."""

    def read(item: Item) -> Mapping[str, Any]:
        return item.entries(kinds, keep_empty=True)

    schema = _object_schema({name: _or_nothing(kind.schema) for name, kind in kinds.items()})
    return Kind(read, schema, dict)


def _or_nothing(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of what may be left empty."""
    return {"anyOf": [schema, {"type": "null"}]}


def map_of(kind: Kind[Value]) -> Kind[Mapping[str, Value]]:
    """The kind of a mapping with keys of the user's own."""

    def read(item: Item) -> Mapping[str, Value]:
        names = item.mapping()
        for name, node in names.items():
            if "${" in name:
                item.below(node, f".{name}").refuse("${...} is not substituted in a key")
        return item.entries(dict.fromkeys(names, kind), keep_empty=True)

    return Kind(read, {"type": "object", "additionalProperties": _or_nothing(kind.schema)}, dict)


def list_of(kind: Kind[Value]) -> Kind[tuple[Value, ...]]:
    """The kind of a list, read as a tuple."""

    def read(item: Item) -> tuple[Value, ...]:
        values = []
        for index, node in enumerate(item.nodes(of_texts=kind.schema.get("type") == "string")):
            values.append(item.below(node, f"[{index}]").read(kind))
        return tuple(values)

    def show(values: tuple[Value, ...]) -> list[Any]:
        return [kind.show(value) for value in values]

    return Kind(read, {"type": "array", "items": kind.schema}, show)


# --- rules, shared by config and command line: text in, value out, or ValueError
def _nearest(word: str, choices: Iterable[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, list(choices), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def positive_budget(text: str) -> str:
    """A Go duration as it is written; empty or "0": none."""
    nanoseconds = budget(text)
    if nanoseconds is not None and nanoseconds <= 0:
        raise ValueError(f'"{text}" must be positive; "0" switches it off')
    return text


def matching(pattern: str, wanted: str) -> Callable[[str], str]:
    """The rule that an expression matches the whole text."""

    def rule(text: str) -> str:
        if not re.fullmatch(pattern, text, re.ASCII):
            raise ValueError(f"{text!r} is not {wanted}")
        return text

    return rule


def no_option(text: str) -> str:
    """A text that no program takes for an option."""
    if text.startswith("-"):
        raise ValueError(f"{text!r} begins with a dash, so it would be taken for an option")
    return text


_ANY_OCTET = "(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"  # a zero in front of it, too
_ADDRESS = rf"(|(?!(?:22[4-9]|2[345][0-9])\.){_ANY_OCTET}(?:\.{_ANY_OCTET}){{3}})"
_is_address = matching(_ADDRESS, "an IPv4 address of an interface")


def address(text: str) -> str:
    """An IPv4 address to listen on; where none is written, BIND_ADDRESS, and never all of them."""
    return _is_address(text) or BIND_ADDRESS


# Strictly, as Go reads an address: no number has a zero in front.
_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"
_PREFIX = r"/(?:3[0-2]|[12]?[0-9])"
_INTERFACE = r"(?!-|\.\.?$)[!-.0-9;-~]{0,15}"
interface_name = matching(_INTERFACE, "an interface's name: 15 characters, no blank, no / and no :")


def name_server(text: str) -> str:
    """An IPv4 or IPv6 address."""
    import socket

    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        socket.inet_pton(family, text)
    except (OSError, ValueError):  # ValueError: of a NUL, or of what is no ASCII
        raise ValueError(f"{text!r} is not an IPv4 or IPv6 address") from None
    return text


# What `k3s server` would do no more by these: become one that can be reached, and is Ready.
_K3S_OWN = frozenset(
    "help h version config c disable-agent server s https-listen-port write-kubeconfig o "
    "data-dir d rootless".split()
)
_K3S_ARGUMENT = r"--?[a-z][-a-z0-9]*(?:=[^\x00-\x1f\x7f]*)?"


def k3s_argument(text: str) -> str:
    """An option of `k3s server` with its value, in one text."""
    if re.fullmatch(_K3S_ARGUMENT, text):
        name, _, value = text.lstrip("-").partition("=")
        if name in _K3S_OWN:
            why = f"{text!r}: ycluster itself counts on the default of --{name}"
            raise ValueError(f"{why}; leave it out")
        if name == "disable" and not value:
            raise ValueError("--disable names what is disabled, in one text: `--disable=traefik`")
        return text
    name, blank, value = text.partition(" ")
    if blank and re.fullmatch(_K3S_ARGUMENT, f"{name}={value}") and "=" not in name:
        raise ValueError(f"an option and its value are one text; write `{name}={value}`")
    raise ValueError(f"{text!r} is no option of `k3s server`; one is --disable=traefik")


_USER = r"[a-z_][-a-z0-9_]{0,31}"
user_name = matching(_USER, "a user name")


def one_of(*choices: str) -> Callable[[str], str]:
    """The rule that a text is one of these words."""

    def rule(text: str) -> str:
        if text not in choices:
            raise ValueError(f"{text!r} is none of {', '.join(choices)}{_nearest(text, choices)}")
        return text

    return rule


def whole_number(low: int, high: int, unit: str) -> Callable[[str], int]:
    """The rule of a whole number with these bounds. An empty text stands for 0."""

    def rule(text: str) -> int:
        if re.fullmatch("[0-9]{0,9}", text) and low <= int(text or 0) <= high:
            return int(text or 0)
        raise ValueError(f"{text!r} is not a whole number from {low} to {high} ({unit})")

    return rule


def _text(rule: Callable[[str], str], **schema: Any) -> Kind[str]:
    """The kind of a text that has to keep a rule; `schema` describes the rule."""

    def read(item: Item) -> str:
        return rule(item.text())

    return Kind(read, {"type": "string", **schema})


def _pattern(pattern: str, wanted: str) -> Kind[str]:
    return _text(matching(pattern, wanted), pattern=f"^(?:{pattern})$")


def _choice(*choices: str) -> Kind[str]:
    return _text(one_of(*choices), enum=list(choices))


def _number(low: int, high: int, unit: str) -> Kind[int]:
    """The kind of a whole number, quoted or not; shown as a string, which the sibling wants."""
    rule = whole_number(low, high, unit)

    def read(item: Item) -> int:
        return rule(item.text())

    digits = "[0-9]+" if low else "[0-9]*"
    string = {"type": "string", "pattern": f"^{digits}$"}
    integer = {"type": "integer", "minimum": low, "maximum": high}
    return Kind(read, {"anyOf": [string, integer]}, str)


_MEGABYTES = (64, 16777216)  # bounds of the VM's memory
_megabytes = whole_number(*_MEGABYTES, "MB")


def _read_megabytes(item: Item) -> int:
    """A number of MB; 4G, 4Gi and 4GB are 4096."""
    text = item.text()
    found = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?) ?([MGmg])i?[Bb]?", text)
    if found:
        size = float(found[1]) * (1024 if found[2] in "Gg" else 1)
        if size == int(size):
            text = str(int(size))
    return _megabytes(text)


def _read_path(item: Item) -> Path | None:
    text = item.text()
    return item.file(text) if text else None


def _read_file(item: Item) -> Path:
    text = item.text()
    if not text:
        raise ValueError("must be the path of a file")
    return item.file(text)


def _show_path(path: Path | None) -> str:
    return str(path) if path else ""


def _read_url(item: Item) -> str:
    """A URL, made from a path where it is one."""
    import urllib.parse

    text = item.text()
    if re.fullmatch(r"https?://[^\x00-\x20]*", text):
        try:
            parts = urllib.parse.urlsplit(text)
            _ = parts.port
        except ValueError:  # whose message may have a part of the password
            why = "its host is none; a user or a password in a URL has %2F for /, and so on"
            raise ValueError(why) from None
        if not parts.hostname:
            raise ValueError(f"{text!r} names no host")
        return text
    if not text:
        raise ValueError("must be a URL or a path of a cloud image")
    if text.startswith("file:///"):
        text = urllib.parse.unquote(text[len("file://") :])
    elif re.match(_SCHEME, text):
        raise ValueError(f"{text!r} is not an https, http or file:/// URL")
    return item.file(text).as_uri()


def _read_base_url(item: Item) -> str:
    """Nothing, or a URL without a final slash; a file is `<URL>/<name>`."""
    if not item.text():
        return ""
    return re.sub("(?<=[^:/])/+$", "", _read_url(item))


_K3S_ARGS = list_of(_text(k3s_argument, pattern=f"^(?:{_K3S_ARGUMENT})$"))


def _read_k3s_args(item: Item) -> tuple[str, ...]:
    """The options, each with its value in one text, as two would be for a shell."""
    nodes = item.nodes(of_texts=True)
    values = [node.source or node.value for node in nodes]
    texts = ["" if value is None else str(value) for value in values]
    for option, value in zip(texts, texts[1:]):
        if re.fullmatch("--?[a-z][-a-z0-9]*", option) and re.match("[^-]", value):
            raise ValueError(f"an option and its value are one text; write `{option}={value}`")
    return _K3S_ARGS.read(item)


def _read_command(item: Item) -> str:
    """A shell command, whose ${VAR} the shell fills in."""
    text = item.string()
    if "\0" in text:
        raise ValueError("a command has no NUL")
    return text


_STRING = Kind(Item.text, {"type": "string"})
_TEMPLATE = Kind(Item.template, {"type": "string"})
_COMMAND = Kind(_read_command, {"type": "string"})
_BOOL = Kind(Item.boolean, {"type": "boolean"})
_PATH = Kind(_read_path, {"type": "string"}, _show_path)
_FILE = Kind(_read_file, {"type": "string"}, str)
_URL = Kind(_read_url, {"type": "string"})
_BASE_URL = Kind(_read_base_url, {"type": "string"})
_MEMORY = Kind(
    _read_megabytes,
    {
        "anyOf": [
            {"type": "string", "pattern": "^[0-9]+([.][0-9]+)?( ?[MGmg]i?[Bb]?)?$"},
            {"type": "integer", "minimum": _MEGABYTES[0], "maximum": _MEGABYTES[1]},
        ]
    },
    str,
)
# About a megabyte at least: a bare number is bytes, and `diskSize: 20` was not meant so.
_SIZE = _pattern(
    r"[1-9][0-9]{0,9}[MGTmgt]|[1-9][0-9]{3,9}[Kk]|[1-9][0-9]{6,9}", "a size such as 20G"
)
_DURATION = _text(
    positive_budget,
    pattern=r"^(|0|\+?((\d+(\.\d*)?|\.\d+)(ns|us|\u00b5s|\u03bcs|ms|s|m|h))+)$",
)
_HOST_PORT = _number(0, 65535, "a TCP port; 0: QEMU chooses")
_GUEST_PORT = _number(1, 65535, "a TCP port")
_RESOURCES = shape({"cpu": _STRING, "memory": _STRING})
_GATEWAY = shape(
    {
        "skip": _BOOL,
        "className": _STRING,
        "resources": shape({"controller": _RESOURCES, "proxy": _RESOURCES}),
    }
)
_STORAGE = shape(
    {
        "path": _STRING,
        "pathPattern": _STRING,
        "reclaimPolicy": _choice("Retain", "Delete"),
    }
)
_MIRROR = shape({"endpoint": list_of(_TEMPLATE), "rewrite": map_of(_STRING)})
_REGISTRY = shape(
    {
        "auth": shape(
            {
                "username": _TEMPLATE,
                "password": _TEMPLATE,
                "auth": _TEMPLATE,
                "identity_token": _TEMPLATE,
                "identitytoken": _TEMPLATE,  # as the sibling calls it
            }
        ),
        "tls": shape(
            {
                "cert_file": _STRING,
                "key_file": _STRING,
                "ca_file": _STRING,
                "insecure_skip_verify": _BOOL,
            }
        ),
    }
)
_REGISTRIES = shape({"mirrors": map_of(_MIRROR), "configs": map_of(_REGISTRY)})


# --- the keys
class PortForward(Record):
    """A TCP port of the host that leads to one of the guest."""

    guest: int = key(_GUEST_PORT, "Guest port.")

    host: int = key(_HOST_PORT, "Host port. 0: QEMU chooses a free one.", 0)


_K3S_RELEASE_NAME = r"v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.]+)?\+k3s[0-9]+"


class K3s(Record):
    """Which k3s, and how it gets into the guest."""

    version: str = key(
        _pattern(_K3S_RELEASE_NAME, "a k3s release such as v1.35.6+k3s1"),
        "The k3s release.",
        K3S_VERSION,
    )

    install: str = key(
        _choice("airgap", "script", "none"),
        "airgap: the host hands k3s to the guest; script: the guest fetches it; none: a plain VM.",
        "airgap",
    )

    source: str = key(
        _BASE_URL,
        "A base URL or a folder with the release's files, for mirrors. User and password as in "
        "image.",
        "",
    )

    args: tuple[str, ...] = key(
        Kind(_read_k3s_args, _K3S_ARGS.schema, _K3S_ARGS.show),
        "Options of `k3s server`, such as --disable=traefik. They are written to a file in "
        "/etc/rancher/k3s/config.yaml.d, where k3s reads them at each start.",
        (),
    )


class Lifetime(Record):
    """The budget, and what happens at its end. Durations are Go's, kept as text."""

    max_run: str = key(
        _DURATION,
        'Wall-clock budget from each start, as a Go duration (8h, 90m, 1h30m). Empty or "0": none.',
        "",
    )

    on_expiry: str = key(
        _choice(*ACTIONS), "What a local cluster's timer does at the deadline.", "stop"
    )

    warn: str = key(
        _DURATION,
        'How long before the deadline to warn, if the budget is longer than that. "0": never.',
        "10m",
    )

    on_warn: str = key(
        _COMMAND,
        "A shell command to run at that moment, with YCLUSTER_NAME and other facts in its "
        "environment.",
        "",
    )

    max_total: str = key(
        _DURATION,
        "Upper limit of the budget with all extensions, counted from the start, as a Go duration. "
        'Empty or "0": none.',
        "",
    )

    max_idle: str = key(
        _DURATION,
        "How long nobody may use the cluster before it expires, as a Go duration. Used is: a TCP "
        "connection through a forwarded port, CPU time above idleCpu, a `lifetime hold`, or a verb "
        'such as start, resume, ssh or extend. Empty or "0": it may be unused.',
        "",
    )

    idle_cpu: int = key(
        _number(0, 100000, "percent of one CPU"),
        "Percent of one CPU above which the VM counts as used, for maxIdle. 0: never by its CPU.",
        25,
    )


class Network(Record):
    """How the VM is attached. Only user mode is implemented here; tap is the sibling's."""

    mode: str = key(
        _choice("user", "tap"),
        "user: forwarded ports, no host set-up; tap: a tap device that you have made, and a guest "
        "with an address of its own (y-cluster only).",
        "user",
    )

    bind_address: str = key(
        _text(address, pattern=f"^(?:{_ADDRESS})$"),
        "IPv4 address that the forwarded ports listen on; 0.0.0.0 is every interface. In user mode "
        "only.",
        "127.0.0.1",
    )

    ifname: str = key(
        _text(interface_name, pattern=f"^(?:{_INTERFACE})$"),
        "Name of the tap device, such as tap0. Tap mode needs it; user mode ignores it, and the "
        "keys below.",
        "",
    )

    guest_address: str = key(
        _pattern(f"({_IPV4}{_PREFIX})?", "an IPv4 address with its prefix, such as 10.88.0.2/24"),
        "The guest's own IPv4 address with its prefix, such as 10.88.0.2/24. Tap mode needs it.",
        "",
    )

    gateway: str = key(
        _pattern(f"({_IPV4})?", "an IPv4 address"),
        "IPv4 address of the guest's gateway, in the network of guestAddress. Tap mode needs it.",
        "",
    )

    dns: tuple[str, ...] = key(
        list_of(_text(name_server)), "Addresses of the guest's name servers, in tap mode.", ()
    )


class Guest(Record):
    """What of this host and of the user's own goes into the guest when it is made."""

    proxy: str = key(
        _choice("none", "host"),
        "host: logins, services and k3s in the guest get HTTP_PROXY, HTTPS_PROXY and NO_PROXY of "
        "the command that provisions it.",
        "none",
    )

    ca_certificates: tuple[Path, ...] = key(
        list_of(_FILE), "PEM files; the guest trusts the CA certificates in them.", ()
    )

    user_data: Path | None = key(
        _PATH,
        "A file for cloud-init, such as a #cloud-config or a script. It adds to the user-data of "
        "ycluster, whose login and keys stay.",
        None,
    )


NAME_PATTERN = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"
NAME_RULE = "a DNS label: a-z, 0-9 and inner dashes, 63 at most"


class Config(Record):
    """A checked config, defaults filled in: the keys that are common to every provider."""

    provider: str = key(
        _choice(*PROVIDERS, *OTHER_PROVIDERS),
        "What runs the cluster. ycluster runs those of qemu; of others it reads the budget.",
        "qemu",
    )

    name: str = key(
        _pattern(NAME_PATTERN, NAME_RULE),
        "The cluster's name: its files, its host name, its kubeconfig cluster.",
        "y-cluster",
    )

    context: str = key(
        _pattern(
            r"[^-\x00-\x1f\x7f][^\x00-\x1f\x7f]{0,299}", "a context name, which has no dash first"
        ),
        "The kubeconfig context.",
        DEFAULT_CONTEXT,
    )

    memory: int = key(_MEMORY, "Memory of the VM in MB; or as 4G, 4Gi or 4GB.", 8192)

    cpus: int = key(_number(1, 512, "virtual CPUs"), "Virtual CPUs.", 4)

    k3s: K3s = key(section(K3s), "The Kubernetes inside.", K3s())

    port_forwards: tuple[PortForward, ...] = key(
        list_of(section(PortForward)),
        "TCP ports that lead into the guest. An empty list means the default, or none at all with "
        "k3s.install: none. Of the default, a host port that root alone may have becomes 8080 or "
        "8443.",
        (PortForward(6443, 6443), PortForward(80, 80), PortForward(443, 443)),
    )

    registries: Mapping[str, Any] = key(
        _REGISTRIES,
        "Content of k3s's registries.yaml; ${VAR}, ${VAR:-default} and, beside these, $$ are "
        "substituted in endpoints and credentials.",
        {},
    )

    gateway: Mapping[str, Any] = key(
        _GATEWAY, "For y-cluster's bundled gateway; ycluster ignores it.", {}
    )

    storage: Mapping[str, Any] = key(
        _STORAGE, "For y-cluster's bundled storage class; ycluster ignores it.", {}
    )

    lifetime: Lifetime = key(
        section(Lifetime), "How long the cluster may run, and what happens then.", Lifetime()
    )

    file: Path = Path()  # which it was read from

    moved_forwards: tuple[PortForward, ...] = ()  # those with a default host port of root's


class QemuConfig(Config):
    """The keys of `provider: qemu`."""

    disk_size: str = key(_SIZE, "Size of the boot disk.", "20G")

    ssh_port: int = key(_HOST_PORT, "Host port for ssh. 0: QEMU chooses a free one.", 2222)

    cache_dir: Path | None = key(
        _PATH,
        "Where disks, keys and state are kept: a folder that nobody else can write to. Empty: what "
        "Y_CLUSTER_QEMU_CACHE_DIR names; else ~/.local/share/ycluster, or ~/.cache/y-cluster-qemu "
        "where clusters are already.",
        None,
    )

    data_disk: Path | None = key(
        _PATH, "An external qcow2 that every teardown keeps, mounted at /data/yolean.", None
    )

    data_disk_size: str = key(_SIZE, "Size of a new data disk.", "10G")

    network: Network = key(
        section(Network), "How the VM is attached to the host's network.", Network()
    )

    guest: Guest = key(section(Guest), "What goes into the guest when it is made.", Guest())

    image: str = key(
        _URL,
        "URL or path of a cloud image (cloud-init, sshd, BIOS boot). A user and a password in it, "
        "or those of its host in ~/.netrc, are sent to that host alone, and never shown or kept.",
        DEFAULT_IMAGE,
    )

    image_sha256: str = key(
        _pattern(r"([0-9a-f]{64})?", "a SHA-256 in lower-case hex"),
        "The image's digest; it is refused when it differs.",
        "",
    )

    accel: str = key(
        _choice("auto", "kvm", "tcg"),
        "auto: KVM where a VM really runs with it, else TCG.",
        "auto",
    )

    cpu_model: str = key(
        _pattern(r"([_.,=+A-Za-z0-9][-_.,=+A-Za-z0-9]*)?", "a QEMU CPU model"),
        "QEMU's -cpu. Empty: host with KVM, max with TCG.",
        "",
    )

    ssh_user: str = key(
        _pattern(_USER, "a user name"),
        "The login that cloud-init makes.",
        "ystack",
    )


class _MultipassK3s(K3s):
    install: str = key(
        _choice("airgap", "script", "none"), "How k3s comes into the guest.", "script"
    )


class MultipassConfig(Config):
    """The keys of `provider: multipass`, whose guests fetch k3s and have addresses of their own."""

    k3s: K3s = key(section(_MultipassK3s), "The Kubernetes inside.", _MultipassK3s())

    port_forwards: tuple[PortForward, ...] = key(
        list_of(section(PortForward)), "Multipass's guests have addresses of their own.", ()
    )

    image: str = key(_STRING, "Multipass image alias.", "24.04")


CONFIGS: dict[str, type[Config]] = {
    "common": Config,
    "qemu": QemuConfig,
    "docker": Config,
    "multipass": MultipassConfig,
}


def kind_of(which: str) -> Kind[Any]:
    """How a whole config is read: that of a provider, or the keys that are `common` to all."""
    return section(CONFIGS.get(which, Config))


# --- reading the file
def load_config(directory: Path, home: Callable[[], Path] | None = None) -> Config:
    """Read and check the config of a directory, or the config file itself.

    `home` gives what `~` stands for in it. Raises ConfigError, which lists all problems.
    """
    path = Path(os.path.abspath(directory))
    try:
        path = _config_file(path)
        text = decoded(path, path.read_bytes())
    except OSError as error:  # such as a path that is too long, or a directory closed to us
        raise ConfigError(f"{path}: {error.strerror}") from None
    config, keys = _read(text, path, home)
    ports = keys.get("portForwards")
    if isinstance(config, QemuConfig) and not (ports and ports.value):
        return moved_ports(config, first_port())
    return config


# Encodings that are not UTF-8, and how a text in them begins.
_WIDE = (
    ("UTF-32", rb"\xff\xfe\0\0|\0\0\xfe\xff"),
    ("UTF-16", rb"\xff\xfe|\xfe\xff"),
    ("UTF-16LE", rb"[^\0]\0[^\0]\0"),
    ("UTF-16BE", rb"\0[^\0]\0[^\0]"),
)


def decoded(path: Path, data: bytes) -> str:
    """The text of a file in UTF-8. ConfigError says how to make it that where it is not."""
    name = shlex.quote(str(path))
    way = f"-t UTF-8 {name} >{name}.new && mv {name}.new {name}` makes it UTF-8"
    if data and not data.strip(b"\0"):
        raise ConfigError(f"{path}: it holds zeros alone, as after a power cut")
    for encoding, pattern in _WIDE:
        if re.match(pattern, data):
            hint = f"`iconv -f {encoding} {way}"
            raise ConfigError(f"{path}: not UTF-8, but {encoding}", hint=hint)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        hint = f"if it is Latin-1, `iconv -f LATIN1 {way}"
        why = f"{path}: not UTF-8 at byte {error.start}, in line {line}"
        raise ConfigError(why, hint=hint) from None


def first_port() -> int:
    """The lowest port that this process may listen on; see ip(7) and capabilities(7)."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8", errors="replace")
        limit = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text("ascii"))
    except (OSError, ValueError):
        return 1024 if os.geteuid() else 0
    found = re.search(r"(?m)^CapEff:\s*([0-9a-f]+)$", status)
    may_bind_all = found is not None and int(found[1], 16) >> _CAP_NET_BIND_SERVICE & 1
    return 0 if may_bind_all else limit


_CAP_NET_BIND_SERVICE = 10
_MOVE = 8000  # from a port that root alone may have, to one for everybody: 80 is 8080


def moved_ports(config: QemuConfig, first: int) -> QemuConfig:
    """The config with the default host ports below `first`, which the user can't have, moved."""
    ports = []
    for forward in config.port_forwards:
        host = forward.host
        if 0 < host < first:
            host += _MOVE
            host = 0 if _uses(config, host) else host
        ports.append(replace(forward, host=host))
    others = [port for port, old in zip(ports, config.port_forwards) if port != old]
    return replace(config, port_forwards=tuple(ports), moved_forwards=tuple(others))


def _config_file(path: Path) -> Path:
    """The only config file in a directory; or the path itself, where that is a file."""
    if path.is_file():
        return path
    candidates = [path / name for name in CONFIG_NAMES]
    found = [candidate for candidate in candidates if candidate.is_file()]
    if len(found) > 1:
        why = f"{path}: both {found[0].name} and {found[1].name}"
        raise ConfigError(why, hint="keep one of them")
    if not found:
        raise _no_config(path, candidates)
    return found[0]


def _no_config(path: Path, candidates: Sequence[Path]) -> ConfigError:
    """The error where there is no config at a path, with what is there in its place."""
    for place in (path, *candidates):
        refuse_dead_link(place)
        if place.exists() and not (place == path and place.is_dir()):
            return ConfigError(f"{place} is not a regular file")
    what = f"no {CONFIG_NAMES[0]} in it" if path.is_dir() else "no such directory"
    hint = _other_name(path) or "-c names the directory that holds the config"
    return ConfigError(f"{path}: {what}", hint=hint)


# Names that are meant for that of a config.
_MEANT_FOR_CONFIG = r"(?i)y-?cluster(?:-provision)?\.(?:ya?ml|json)(?:\.txt)?"


def _looks_like_config(path: Path) -> bool:
    """Whether a file has a key at its left margin that configs of others have not."""
    own = r"(?m)^(?:provider|lifetime|k3s|sshPort|portForwards|diskSize|cacheDir|dataDisk)\s*:"
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return re.search(own, file.read(STATE_SIZE)) is not None
    except OSError:
        return False


def _other_name(folder: Path) -> str:
    """How a config is named that a folder has under another name; empty where there is none."""
    files: list[Path] = []
    with contextlib.suppress(OSError):  # it is none, or may not be listed: nothing to say of it
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
    for path in files:
        if re.fullmatch(_MEANT_FOR_CONFIG, path.name):
            name = CONFIG_NAMES[".json" in path.name.lower()]
            renaming = shlex.join(["mv", "--", str(path), str(folder / name)])
            return f"its name must be {name}, for the sibling, too: `{renaming}`"
    for path in files:
        if path.suffix in (".yaml", ".yml") and _looks_like_config(path):
            return f"-c names its directory, or a file: `-c {shlex.quote(str(path))}`"
    return ""


def read_config(text: str, path: Path, home: Callable[[], Path] | None = None) -> Config:
    """`load_config` of a text; `path` names it in errors, and relative paths start beside it.

    No port is moved, as that depends on the host.
    """
    return _read(text, path, home)[0]


def _read(text: str, path: Path, home: Callable[[], Path] | None) -> tuple[Config, dict[str, Node]]:
    """The config, and the keys at the top of the file."""
    root = parse_yaml(text, str(path))
    if root.value is None:
        root = replace(root, value={})
    provider = _provider(root)
    if provider in OTHER_PROVIDERS and isinstance(root.value, dict):
        known = kind_of(provider).schema["properties"]
        ours = {}
        for key, node in root.value.items():
            if key in known or _is_like(key, known):
                ours[key] = node
        root = replace(root, value=ours)
    item = Item(root, "", path.parent, home, [])
    config: Config = item.read(kind_of(provider))
    if config is not WRONG:
        config = _fill_defaults(replace(config, file=path))
        _check_rules(item, config)
    _raise_problems(item.problems, path, provider)
    return config, item.mapping()


def _is_like(word: str, keys: Iterable[str]) -> bool:
    """Whether a word is probably meant for one of the keys."""
    import difflib

    return bool(difflib.get_close_matches(word.lower(), keys, n=1, cutoff=0.8))


def _provider(root: Node) -> str:
    """The provider whose keys the file is checked against."""
    keys = root.value
    named = keys.get("provider") if isinstance(keys, dict) else None
    if named is not None and named.value in (*PROVIDERS, *OTHER_PROVIDERS):
        return str(named.value)
    return "qemu"


def _fill_defaults(config: Config) -> Config:
    """Fill in the defaults that depend on other keys."""
    if config.port_forwards == () and _wants_k3s(config):
        config = replace(config, port_forwards=config.fields["port_forwards"])
    if isinstance(config, QemuConfig) and config.image_sha256 == "":
        known = {DEFAULT_IMAGE: DEFAULT_IMAGE_SHA256}
        config = replace(config, image_sha256=known.get(config.image, ""))
    return config


def _wants_k3s(config: Config) -> bool:
    """Whether there is to be a k3s in the guest; False as well where the keys for it are wrong."""
    return config.k3s is not WRONG and config.k3s.install not in (WRONG, "none")


def _check_rules(root: Item, config: Config) -> None:
    """Check the rules between keys."""
    _check_lifetime(root, config.lifetime)
    if not isinstance(config, QemuConfig) or config.provider is WRONG:
        return
    if config.network is not WRONG and config.network.mode == "tap":
        _check_tap(root, config.network)
        return  # no port is forwarded
    if config.port_forwards is WRONG:
        return
    keys = root.mapping()
    forwards = keys.get("portForwards")
    if forwards and forwards.value:
        place = root.below(forwards, ".portForwards")
        for why in _broken_port_rules(config):
            place.refuse(why)
    elif any(config.ssh_port == forward.host for forward in config.port_forwards):
        why = f"host port {config.ssh_port} is forwarded by default; choose another"
        root.below(keys["sshPort"], ".sshPort").refuse(why)


def _check_lifetime(root: Item, lifetime: Lifetime) -> None:
    """Refuse an upper limit that the budget itself is over."""
    if lifetime is WRONG or WRONG in (lifetime.max_run, lifetime.max_total):
        return
    limit, most = budget(lifetime.max_run), budget(lifetime.max_total)
    if limit is not None and most is not None and most < limit:
        keys = root.below(root.mapping()["lifetime"], ".lifetime")
        place = keys.below(keys.mapping()["maxTotal"], ".maxTotal")
        why = f"{lifetime.max_total} is less than maxRun, {lifetime.max_run}"
        place.refuse(f"{why}; write `maxTotal: {lifetime.max_run}` or more")


def _check_tap(root: Item, network: Network) -> None:
    """Refuse tap mode without a key that it needs, or with a gateway that the guest can't reach."""
    place = root.below(root.mapping()["network"], ".network")
    keys = place.mapping()
    for attr in ("ifname", "guest_address", "gateway"):
        if getattr(network, attr) == "":
            name = camel_case(attr)
            missing = place.below(keys.get(name, place.node), f".{name}")
            missing.refuse("is missing; tap mode needs it")
    both = (network.guest_address, network.gateway)
    if "" in both or WRONG in both:
        return
    why = _unreachable(*both)
    if why:
        place.below(keys["gateway"], ".gateway").refuse(why)


def _unreachable(guest: str, gateway: str) -> str:
    """Why a guest with this address and prefix has no such gateway; empty where it can."""
    import ipaddress

    own = ipaddress.ip_interface(guest)
    if gateway == str(own.ip):
        return f"{gateway} is the guest's own address"
    if ipaddress.ip_address(gateway) not in own.network:
        return f"{gateway} is not in the network of guestAddress, {own.network}"
    return ""


def _broken_port_rules(config: QemuConfig) -> Iterator[str]:
    """What is wrong with the ports together. One that is wrong by itself takes part in no rule."""
    right = [forward for forward in config.port_forwards if forward is not WRONG]
    yield from _broken_host_port_rules(config, right)
    guests = [forward.guest for forward in right]
    if 22 in guests:
        yield "guest port 22 is what sshPort leads to; remove it here"
    all_known = len(right) == len(config.port_forwards) and WRONG not in guests
    if all_known and 6443 not in guests and _wants_k3s(config):
        port = PortForward(host=0 if _uses(config, 6443) else 6443, guest=6443)
        line = "portForwards: [" + ", ".join(map(_flow_style, [*right, port])) + "]"
        why = "guest port 6443 is missing, so k3s is out of reach"
        yield f"{why}; write `{line}`, or `k3s: {{install: none}}`"


def _uses(config: QemuConfig, port: int) -> bool:
    """Whether a host port is used in a config."""
    return port in (config.ssh_port, *(forward.host for forward in config.port_forwards))


def _flow_style(forward: PortForward) -> str:
    host = f"host: {forward.host}, " if forward.host not in (0, WRONG) else ""
    return f"{{{host}guest: {forward.guest}}}"


def _broken_host_port_rules(config: QemuConfig, right: Sequence[PortForward]) -> Iterator[str]:
    hosts = [forward.host for forward in right if forward.host not in (0, WRONG)]
    for port in sorted(set(hosts)):
        if hosts.count(port) > 1:
            yield f"host port {port} is forwarded twice; change one of the two"
    if config.ssh_port in hosts:
        yield f"host port {config.ssh_port} is used by sshPort, too; change one of the two"


def _raise_problems(problems: Sequence[Problem], path: Path, provider: str) -> None:
    """Raise ConfigError with all problems in the order of the file, where there are any."""
    if not problems:
        return
    lines = []
    if len(problems) > 1:
        lines.append(f"{len(problems)} problems in {path.name}")
    for line, column, why in sorted(problems):
        lines.append(f"{path}:{line}:{column}: {why}")
    is_advised = all(re.search("; (write `|leave |for example `)", why) for _, _, why in problems)
    which = provider if provider in CONFIGS else "common"
    hint = "" if is_advised else f"`ycluster schema {which}` describes every key"
    raise ConfigError("\n".join(lines), hint=hint)


# --- which cluster a config is of, where the whole of it can't be read
_IDENTITY = ("name", "cacheDir", "provider")


def load_identity(
    directory: Path,
    home: Callable[[], Path] | None = None,
) -> tuple[Config, ConfigError | None]:
    """`load_config` for a verb that needs the cluster's name and cacheDir alone, to stop it, say.

    Where the config is wrong, its error is returned, too, and the other keys have their defaults.
    Raises the error where it may concern which cluster is meant: a destructive verb must not guess.
    """
    try:
        whole = load_config(directory, home)
    except ConfigError as error:
        config = _read_identity(_config_file(Path(os.path.abspath(directory))), home)
        if config is None:
            raise
        return config, error
    if has_no_key(whole):  # as one that was cut off: its default name was not meant
        raise ConfigError(f"{whole.file} has no key in it", hint="name the cluster by --name")
    return whole, None


def has_no_key(config: Config) -> bool:
    """Whether its file is empty, or holds comments alone."""
    return not parse_yaml(config.file.read_text("utf-8"), str(config.file)).value


def _read_identity(path: Path, home: Callable[[], Path] | None) -> Config | None:
    try:
        text = path.read_bytes().decode("utf-8", "surrogateescape")
        root = _identity_node(text, str(path))
    except (OSError, ConfigError):
        return None
    if root is None:
        return None
    item = Item(root, "", path.parent, home, [])
    config: Config = item.read(kind_of(_provider(root)))
    return None if item.problems else replace(config, file=path)


def _identity_node(text: str, path: str) -> Node | None:
    """The config with the keys of `_IDENTITY` alone; None where they can't be told for certain."""
    try:
        root = parse_yaml(text, path)
    except ConfigError:
        root = _top_level_keys(text, path)
        if "name" not in root.value:
            return None
    keys = root.value
    if not isinstance(keys, dict) or any(_misspells(key, keys) for key in keys):
        return None
    return replace(root, value={key: keys[key] for key in _IDENTITY if key in keys})


def _misspells(word: str, keys: Mapping[str, object]) -> bool:
    """Whether a word may stand for a key of `_IDENTITY` that is not among the keys."""
    import difflib

    plain = word.lower().replace("_", "").replace("-", "")
    missing = {key.lower() for key in _IDENTITY if key not in keys}
    return word not in _IDENTITY and bool(difflib.get_close_matches(plain, missing))


def _top_level_keys(text: str, path: str) -> Any:
    """The mapping of the keys at the left margin of a text that is no YAML as a whole.

    The values of those that are not in `_IDENTITY` mean nothing. Each of the others is read by
    itself, with the lines below it that are indented. Raises ConfigError where one is wrong by
    itself, or is there twice.
    """
    root = parse_yaml("{}", path)
    keys: dict[str, Node] = {}
    for block in re.split(r"\n(?=[^\s#])", text.lstrip("\ufeff")):
        match = re.match(r"""(["']?)([A-Za-z_-]+)\1\s*:""", block)
        if not match:
            continue
        key, node = match[2], root
        if key in _IDENTITY:
            found = parse_yaml(block, path).value
            node = found.get(key, root) if isinstance(found, dict) else root
            if key in keys or node.value in (None, {}):
                raise ConfigError(f"{path}: {key} is not there once, with a value")
        keys[key] = node
    return replace(root, value=keys)


# --- using a config
def used_registries(config: Config) -> Mapping[str, Any]:
    """The registries of a config for k3s; none in a plain VM, which needs no password of theirs."""
    return {} if config.k3s.install == "none" else config.registries


def warnings_of(config: Config) -> list[str]:
    """What is not wrong with the file, and may not be what its user thinks."""
    empty = [f"{config.file} has no key in it: each has its default"] if has_no_key(config) else []
    return [
        *empty,
        *_open_to_others(config),
        *ignored_keys(config),
        *idle_keys(config),
        *invisible_characters(config),
    ]


def _open_to_others(config: Config) -> Iterator[str]:
    """A warning where anybody may write to the file: its onWarn is a command."""
    for place in (config.file, config.file.parent):
        mode = os.stat(place).st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            way_out = f"`chmod o-w {shlex.quote(str(place))}`"
            yield f"{place}: anybody can write to it, and what it says runs as you; {way_out}"


def ignored_keys(config: Config) -> list[str]:
    """A warning for each key that this program ignores."""
    warnings = []
    for name in ("gateway", "storage"):
        if getattr(config, name):
            warnings.append(f"{name}: ignored, it is for y-cluster")
    if config.registries and not used_registries(config):
        warnings.append("registries: ignored, there is no k3s in a plain VM")
    if config.k3s.args and config.k3s.install == "none":
        warnings.append("k3s.args: ignored, there is no k3s in a plain VM")
    if isinstance(config, QemuConfig):
        warnings += _ignored_by_mode(config)
    if config.moved_forwards:
        moved = [f"{port.host or 'any'} -> {port.guest}" for port in config.moved_forwards]
        shown = ", ".join(moved)
        warnings.append(f"portForwards: lower ports of this host are root's, so {shown}")
    return warnings


def _ignored_by_mode(config: QemuConfig) -> list[str]:
    """A warning for each key that is for the other network.mode."""
    network = config.network
    if network.mode == "tap":
        why = "in tap mode the guest has an address of its own"
        values = [
            ("sshPort", config, "ssh_port"),
            ("portForwards", config, "port_forwards"),
            ("network.bindAddress", network, "bind_address"),
        ]
    else:
        why = "it is for network.mode: tap"
        attrs = ("ifname", "guest_address", "gateway", "dns")
        values = [(f"network.{camel_case(attr)}", network, attr) for attr in attrs]
    return [
        f"{name}: ignored, {why}"
        for name, record, attr in values
        if getattr(record, attr) != keys_of(type(record))[attr].default
    ]


def idle_keys(config: Config) -> list[str]:
    """A warning for each key of the lifetime that the file has, and that can have no effect."""
    lifetime = config.lifetime
    limit = budget(lifetime.max_run)
    warnings = []
    for name in _set_in_vain(config):
        needed = " or ".join(f"lifetime.{key}" for key in _NEEDED[name])
        warnings.append(f"lifetime.{name}: ignored, as there is no {needed}")
    if limit is None:
        return warnings
    lead = budget(lifetime.warn)
    if lead is not None and lead >= limit and written(config, "lifetime", "warn"):
        why = f"{lifetime.warn} is as long as maxRun, {lifetime.max_run}, or longer"
        warnings.append(f"lifetime.warn: it never comes: {why}")
    if (budget(lifetime.max_idle) or 0) >= limit:
        why = f"maxRun, {lifetime.max_run}, ends each run before"
        warnings.append(f"lifetime.maxIdle: it never comes: {why}")
    return warnings


# Keys of the lifetime that mean nothing without one of these others.
_NEEDED = {
    "onExpiry": (BUDGET, UNUSED),
    "warn": (BUDGET, UNUSED),
    "onWarn": (BUDGET, UNUSED),
    "maxTotal": (BUDGET, UNUSED),
    "idleCpu": (UNUSED,),
}


def _set_in_vain(config: Config) -> list[str]:
    """The keys of _NEEDED that the file sets to something without any that they need."""
    shown = show_config(config)["lifetime"]
    given = {name for name in (BUDGET, UNUSED) if budget(shown[name]) is not None}
    return [
        name
        for name, needed in _NEEDED.items()
        if given.isdisjoint(needed)
        and shown[name] not in ("", "0")
        and written(config, "lifetime", name)
    ]


def invisible_characters(config: Config) -> Iterator[str]:
    """A warning for each text in quotes, or of a block, with an invisible character in it.

    Elsewhere it is an error. One that is written as an escape is meant.
    """
    text = config.file.read_text("utf-8")
    if text.isascii():
        return
    root = parse_yaml(text, str(config.file))
    left: list[tuple[str, Node]] = [("", root)]
    while left:
        path, node = left.pop(0)
        value = node.value
        if isinstance(value, dict):
            left += [(f"{path}.{key}", below) for key, below in value.items()]
            value = "".join(value)
        elif isinstance(value, list):
            left += [(f"{path}[{index}]", below) for index, below in enumerate(value)]
        char = None
        if isinstance(value, str):
            char = re.search(_INVISIBLE, value)
        if char and char[0] in text:
            named = f"{path.lstrip('.')}: an invisible character is in it, "
            named += character_name(char[0])
            yield f'{named}; if it is meant, write "\\u{ord(char[0]):04x}" in double quotes'


def written(config: Config, *keys: str) -> object:
    """The value that the file itself has under a key, given by the way to it; None: it has none."""
    node = _written_node(config, keys)
    return None if node is None else node.value


def _written_node(config: Config, keys: Sequence[str | int]) -> Node | None:
    """The node at a place in the file, given by the keys and the indexes that lead to it."""
    node: Any = parse_yaml(config.file.read_text("utf-8"), str(config.file))
    for key in keys:
        try:
            node = node.value[key]
        except (LookupError, TypeError):
            return None
    found: Node = node
    return found


@contextlib.contextmanager
def blamed_on(config: Config, *keys: str | int) -> Iterator[None]:
    """What goes wrong within is told as wrong at that place in the file, as its value leads there.

    Raises ConfigError in the place of a ConfigError or an OSError.
    """
    try:
        yield
    except (ConfigError, OSError) as error:
        place = str(config.file)
        with contextlib.suppress(OSError, ConfigError):  # it has been changed since it was read
            node = _written_node(config, keys)
            place += f":{node.line}:{node.column}" if node else ""
        path = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, keys)))
        why = str(error)
        hint = getattr(error, "hint", "")
        if isinstance(error, OSError):
            why = f"{error.filename}: {error.strerror}"
        raise ConfigError(f"{place}: {path}: {why}", hint=hint) from None


def expand_variables(config: Config, environ: Mapping[str, str]) -> Any:
    """Its registries with variables filled in. Raises ConfigError for one that is not set."""

    def expanded(value: Any, *keys: str | int) -> Any:
        if isinstance(value, Mapping):
            return {name: expanded(child, *keys, name) for name, child in value.items()}
        if isinstance(value, (list, tuple)):
            return [expanded(child, *keys, index) for index, child in enumerate(value)]
        if isinstance(value, str):
            with blamed_on(config, "registries", *keys):
                return _expand_text(value, environ)
        return value

    return expanded(used_registries(config))


def _expand_text(text: str, environ: Mapping[str, str]) -> str:
    if "${" not in text:
        return text  # where a $$ is a part of a password

    def value(found: re.Match[str]) -> str:
        name, default = found[1], found[2]
        if name is None:
            return "$"
        if name not in environ and default is not None:
            return default.replace("$$", "$")
        return environ[name]  # set is set, even to nothing

    try:
        return re.sub(_REFERENCE, value, text)
    except KeyError as error:
        why = f"the variable {error.args[0]} is not set"
        hint = "export it, leave it out, or give a default: ${VAR:-default}"
        raise ConfigError(why, hint=hint) from None


def registries_yaml(config: Config, environ: Mapping[str, str]) -> Any:
    """What k3s's registries.yaml is to hold: variables filled in, and keys as k3s knows them.

    Source: rancher/wharfie, pkg/registries: k3s reads `identity_token`, and passes over what it
    does not know. Raises ConfigError for a variable that is not set.
    """
    filled = expand_variables(config, environ)
    for of_host in (filled.get("configs") or {}).values():
        auth = (of_host or {}).get("auth") or {}
        if "identitytoken" in auth:
            token = auth.pop("identitytoken")
            auth.setdefault("identity_token", token)
    return filled


def show_config(config: Config) -> Any:
    """The effective config as in the file, defaults filled in."""
    return kind_of(config.provider).show(config)


def schema_for(which: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a provider's config, or of the `common` keys."""
    schema = kind_of(which).schema
    properties = dict(schema["properties"])
    if which in PROVIDERS:  # the file for this schema names this provider
        properties["provider"] = {**properties["provider"], "default": which, "enum": [which]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"{CONFIG_NAMES[0]} ({which})",
        "description": "Generated by `ycluster schema --write`; not by hand.",
        **schema,
        "properties": properties,
    }


# === 8 state sidecar ==============================================================================
# Owns what a cluster keeps on disk: its state file, the sidecar (`State`), the files beside it
# (`Files`), the index of cacheDirs by which `discover` finds every cluster, and the log of events.
# A state file is replaced whole or not at all, and only under the cluster's lock. Its version stays
# 1: fields are only added, and fields that are unknown here are written back as they were read.
# The sibling keeps its own fields alone when it saves; so ours are in a copy, too.
#
# A cluster has four locks. A verb holds `.lock` while it changes the state or the VM. QEMU itself
# holds `.vm.lock`, so that a running VM is seen without its pidfile, and two can't start. The
# watcher holds `.watch.lock`, so that a cluster has one; `armed` asks whether that lock is held.
# `.stop.lock` is held while the VM is stopped, paused or suspended: `.lock` would not do, as an
# expiry does not wait for a verb that hangs with it. Whoever takes one while it has another does so
# in this order: `.watch.lock`, `.lock`, and then `.stop.lock`, `.vm.lock` or `claim_lock`.
# Downloads have locks of their own: `images/.lock` in a cacheDir, `.lock` beside a release of k3s.
# `claim_lock` is the user's: under it a cluster takes its context, and its names in a kubeconfig.

Removal: TypeAlias = "Literal['with the cluster', 'with the disk', 'last', 'never']"


class OwnFile:
    """A file or folder of a cluster: it lies in the cacheDir, named by the cluster and a suffix.

    `removed` is when a teardown removes it: `with the cluster`; `with the disk`, unless that is to
    be kept; `last`, since the timers need it until all the rest is gone; or `never`.
    """

    def __init__(self, suffix: str, removed: Removal = "with the cluster") -> None:
        self.suffix = suffix
        self.removed = removed

    def __get__(self, files: Files, owner: object = None) -> Path:
        return files.cache_dir / (files.name + self.suffix)


GATEWAY_STATE = "-gateway-state.json"  # a file of the sibling's
IMPORT_FOLDER = ".import"
IMPORT_MARK = ".made-by-ycluster"  # lies in a folder for imports that may be removed


class Files(Record):
    """What a cluster owns on disk, and when a teardown removes it."""

    cache_dir: Path
    name: str

    # Held while the state or the VM changes. `locked` removes it with the state file.
    lock = OwnFile(".lock", "never")

    # The boot disk, and the key pair that logs in to it.
    disk = OwnFile(".qcow2", "with the disk")
    ssh_key = OwnFile("-ssh", "with the disk")
    ssh_pub = OwnFile("-ssh.pub", "with the disk")

    # The VM. A process is our QEMU if its argv names this pidfile.
    pidfile = OwnFile(".pid")
    qmp = OwnFile(".qmp")  # the socket of QEMU's monitor
    vm_lock = OwnFile(".vm.lock")  # held by QEMU itself for as long as it lives
    watch_lock = OwnFile(".watch.lock")  # held by the watcher
    console = OwnFile("-console.log")  # what the guest writes to its serial console

    # The memory of a suspended guest, and what is written before it is whole.
    memory = OwnFile(".memory")
    memory_part = OwnFile(".memory.part")

    # The guest's first boot: a folder of cloud-init files, and the ssh host key that they bring.
    seed = OwnFile("-seed")
    host_key = OwnFile("-hostkey")
    host_pub = OwnFile("-hostkey.pub")
    known_hosts = OwnFile("-known_hosts")

    log = OwnFile(".reap.log")  # the output of the timers
    incoming = OwnFile(IMPORT_FOLDER)  # a folder, while a disk is imported
    kubeconfig = OwnFile("-kubeconfig")  # the cluster's own, to be merged into the user's
    certificates = OwnFile("-certificates")  # a folder: the user's kubeconfig leads there

    # What the Go sibling makes for the first boot.
    sibling_seed = OwnFile("-seed.img")
    sibling_user_data = OwnFile("-cloud-init.yaml")
    sibling_meta_data = OwnFile("-meta-data.yaml")
    sibling_network = OwnFile("-network-config.yaml")

    # What it writes later: an export's record of the gateway, and a save that was cut off.
    sibling_gateway = OwnFile(GATEWAY_STATE)
    sibling_unfinished = OwnFile(".json.tmp")

    program = OwnFile(".ycluster.py", "last")  # the copy of this program that the timers run
    launcher = OwnFile(".ycluster.sh", "last")  # what a timer starts: it finds a Python for it
    timer_failed = OwnFile(".reap.failed")  # says how a timer's last run failed
    copy = OwnFile(".ycluster.state", "last")  # a copy of the state, see `save_state`
    sidecar = OwnFile(".json", "last")  # the state, see `State`

    # Held while the VM is stopped, paused or suspended, with `.lock` or without it. Whoever waits
    # for it makes the file again, and removes it only where the state is gone; so it goes after it.
    stop_lock = OwnFile(".stop.lock", "last")

    def going(self, removed: Removal) -> list[Path]:
        """The files that a teardown removes at this stage."""
        own = [file for file in vars(Files).values() if isinstance(file, OwnFile)]
        return [file.__get__(self) for file in own if file.removed == removed]

    def names(self) -> list[Path]:
        """Every path at which the cluster may have something, its disk first."""
        stages: tuple[Removal, ...] = ("with the disk", "with the cluster", "last", "never")
        return [path for stage in stages for path in self.going(stage)]

    def remove(self, path: Path) -> bool:
        """Remove one of these; False if there was none, or a folder of the user's is there."""
        if path == self.incoming and self._is_users_import():
            return False
        is_folder = path in (self.seed, self.incoming, self.certificates)
        return remove_folder(path) if is_folder else remove(path)

    def locks(self) -> tuple[Path, ...]:
        """The files that are never written to."""
        return (self.lock, self.vm_lock, self.watch_lock, self.stop_lock)

    def unclaimed(self) -> list[Path]:
        """What lies at the names of a cluster that is not there. None of it may be ours.

        An empty lock does not count, for it holds nothing, and whoever waits for it made it.
        """
        there = [path for path in self.names() if os.path.lexists(path)]
        return [path for path in there if not self._is_free(path)]

    def are_all(self, kept: Sequence[Path]) -> bool:
        """Whether these, each a file of the user's own, are all that is there."""
        if set(self.unclaimed()) != set(kept):
            return False
        try:
            for path in kept:
                os.close(open_own(path, os.O_RDONLY))
        except OSError:
            return False
        return True

    def _is_free(self, path: Path) -> bool:
        if path in self.locks():
            return is_empty(path)
        if path == self.sibling_gateway:  # it may be the state of a cluster of that name
            return _is_state(path)
        return path == self.incoming and self.is_our_import()

    def is_our_import(self) -> bool:
        """Whether the folder for imports is one that `import` has made, or has nothing in it."""
        if self.incoming.is_symlink() or not self.incoming.is_dir():
            return False
        names = os.listdir(self.incoming)
        return not names or IMPORT_MARK in names

    def _is_users_import(self) -> bool:
        """Whether a folder lies at the name of that for imports which no import has made."""
        return self.incoming.is_dir() and not self.is_our_import()

    def disposable(self) -> list[Path]:
        """What goes with the cluster, and the temporary files of killed writes."""
        going = self.going("with the cluster")
        other = Files(self.cache_dir, self.sibling_gateway.stem)
        if _is_state(other.sidecar) or os.path.lexists(other.lock):
            going.remove(other.sidecar)  # the state of a cluster called NAME-gateway-state
        written = [*going, *self.going("last")]
        return [*going, *self._unfinished({path.name for path in written})]

    def temporary(self) -> list[Path]:
        """What killed writes to any of the cluster's files have left."""
        return self._unfinished({path.name for path in self.names()})

    def unfinished(self) -> list[Path]:
        """The temporary files of a first save that was killed, before any file claimed a name."""
        return self._unfinished({self.sidecar.name})

    def _unfinished(self, names: set[str]) -> list[Path]:
        """The temporary files that `write_file` makes for files of these names."""
        found = []
        for path in self.cache_dir.glob(".*.tmp"):
            match = re.fullmatch(r"(?s)\.(.+)\.[0-9a-f]{8}\.tmp", path.name)
            if match and match[1] in names:
                found.append(path)
        return found


# --- fields: how values are written in a state file, which holds texts, lists and objects of texts
class Field(Record, Generic[Value]):
    """How a value is written in the state file.

    `decode` takes it from what JSON holds, or raises ValueError; `encode` is the inverse.
    """

    decode: Callable[[Any], Value]
    encode: Callable[[Value], Any] = unchanged


class Stored(Record, Generic[Value]):
    """A field of the state file, as `stored` declares it."""

    field: Field[Value]
    default: Value
    name: str  # in the file; empty: the attribute's in camelCase


def stored(field: Field[Value], default: Value, name: str = "") -> Value:
    """Declare a field of the state file as a field of `State`."""
    return Stored(field, default, name)  # type: ignore[return-value] # as `key` does


def _of_type(raw: object, sort: type[Value], wanted: str) -> Value:
    if not isinstance(raw, sort):
        raise ValueError(f"is not {wanted}")
    return raw


def _decode_text(raw: object) -> str:
    return _of_type(raw, str, "a string")


def _decode_object(raw: object) -> dict[str, Any]:
    return _of_type(raw, dict, "an object")


def _decode_budget(raw: object) -> str:
    """A Go duration as it is written; empty or "0": none."""
    text = _decode_text(raw)
    budget(text)  # raises ValueError where it is no duration
    return text


_port = whole_number(0, 65535, "a TCP port")


def _decode_port(raw: object) -> int:
    return _port(_decode_text(raw))


def _decode_number(raw: object) -> int:
    """A whole number, written as a text, as all that is in a state file."""
    text = _decode_text(raw)
    if not re.fullmatch("-?[0-9]{1,15}", text):
        raise ValueError("is not a whole number")
    return int(text)


def _decode_action(raw: object) -> str:
    """What to do at the deadline; where it is not set that is `stop`, as in the sibling."""
    if raw == "":
        return "stop"
    if not isinstance(raw, str) or raw not in ACTIONS:
        raise ValueError(f"is none of {', '.join(ACTIONS)}")
    return raw


def _decode_moment(raw: object) -> int:
    return parse_time(_decode_text(raw))


def _decode_time(raw: object) -> int | None:
    """A moment, or None where none is set, for which Go writes its zero time."""
    if raw in ("", "0001-01-01T00:00:00Z"):
        return None
    return _decode_moment(raw)


def _decode_boot(raw: object) -> int | None:
    """When a boot began, or None. By a clock that is wrong it may have begun before 1970."""
    return parse_time(_decode_text(raw), earliest=_EARLIEST_BOOT) if raw else None


def _encode_time(seconds: int | None) -> str:
    return "" if seconds is None else format_time(seconds)


def text_by(rule: Callable[[str], str]) -> Field[str]:
    """A text that has to keep a rule of section 7's."""

    def decode(raw: object) -> str:
        return rule(_decode_text(raw))

    return Field(decode)


def tuple_of(field: Field[Value]) -> Field[tuple[Value, ...]]:
    """A list in JSON, read as a tuple."""

    def decode(raw: object) -> tuple[Value, ...]:
        return tuple(field.decode(value) for value in _of_type(raw, list, "a list"))

    def encode(values: tuple[Value, ...]) -> list[Any]:
        return [field.encode(value) for value in values]

    return Field(decode, encode)


def optional(field: Field[Value]) -> Field[Value | None]:
    """A value that may not be set, which is null."""

    def encode(value: Value | None) -> Any:
        return None if value is None else field.encode(value)

    return Field(field.decode, encode)


def object_of(cls: type[AnyRecord], **fields: Field[Any]) -> Field[AnyRecord]:
    """An object in JSON with these fields, read as a Record. The sibling writes Host for `host`."""

    def decode(raw: object) -> AnyRecord:
        found = _decode_object(raw)
        values = {}
        for name, field in fields.items():
            values[name.lower()] = field.decode(found.get(name, ""))
        return cls(**values)

    def encode(record: AnyRecord) -> dict[str, Any]:
        written = {}
        for name, field in fields.items():
            written[name] = field.encode(getattr(record, name.lower()))
        return written

    return Field(decode, encode)


def _encode_k3s(k3s: Mapping[str, Any]) -> dict[str, Any]:
    """Without the password of its source, which is for the provision at hand alone."""
    source = k3s.get("Source")
    return {**k3s, "Source": without_password(source)} if isinstance(source, str) else {**k3s}


class Attachment(Record):
    """How the sibling attaches a VM to the host's network, as its state file has it.

    Of that counts what leads to the guest; no state is refused for what is wrong with the rest.
    """

    raw: Mapping[str, Any]  # the whole object, as JSON holds it
    mode: str = ""  # user or tap; empty: user
    guest_address: str = ""  # with its prefix or without


def _decode_network(raw: object) -> Attachment:
    """The object `network`. Names may be in any case, as for Go; null is as good as nothing."""
    data = _decode_object(raw)
    found = {name.lower(): value for name, value in data.items() if value is not None}
    values = {}
    for attr, field in _OF_NETWORK.items():
        name = camel_case(attr)
        try:
            if name.lower() in found:
                values[attr] = field.decode(found[name.lower()])
        except ValueError as error:
            raise ValueError(f"{name} {error}") from None
    if values.get("mode") == "tap" and not values.get("guest_address"):
        raise ValueError("guestAddress is missing")
    return Attachment(data, **values)


def _encode_network(network: Attachment) -> Mapping[str, Any]:
    return network.raw


_TEXT = Field(_decode_text)
_WORD = text_by(no_option)  # for what becomes an argument of another program
_ADDRESS_TEXT = text_by(address)
_USER_NAME = text_by(user_name)
_URL_TEXT = Field(_decode_text, without_password)
_K3S_RELEASE: Field[Mapping[str, Any]] = Field(_decode_object, _encode_k3s)
_OBJECT: Field[Mapping[str, Any]] = Field(_decode_object)
_BUDGET = Field(_decode_budget)
_NUMBER = Field(_decode_number, str)
_PORT = Field(_decode_port, str)
_ACTION = Field(_decode_action)
_MOMENT = Field(_decode_moment, format_time)
_TIME = Field(_decode_time, _encode_time)
_BOOT_TIME = Field(_decode_boot, _encode_time)
_PORTS = tuple_of(_PORT)
_FORWARDS = tuple_of(object_of(PortForward, Host=_PORT, Guest=_PORT))
_OF_NETWORK: Mapping[str, Field[Any]] = {
    "mode": text_by(one_of("", "user", "tap")),
    "guest_address": text_by(matching(f"({_IPV4}({_PREFIX})?)?", "an IPv4 address")),
}
_NETWORK = optional(Field(_decode_network, _encode_network))


# --- the state
class ArmedTimer(Record):
    """A timer that is armed for an event of a cluster, as its backend knows it.

    The backend `none` for the deadline means that the user has disarmed the cluster.
    """

    backend: str
    id: str
    deadline: int  # when it fires, whatever its event; seconds since the epoch, 0: unknown
    event: str = DEADLINE  # or another one of a `Moment`


_OF_DEADLINE = object_of(ArmedTimer, backend=_TEXT, id=_WORD, deadline=_MOMENT)
_OTHERS = tuple_of(object_of(ArmedTimer, event=_TEXT, id=_WORD, deadline=_MOMENT, backend=_TEXT))


def _timer_of_deadline(timers: Sequence[ArmedTimer]) -> ArmedTimer | None:
    return next((timer for timer in timers if timer.event == DEADLINE), None)


def _decode_timers(raw: object) -> tuple[ArmedTimer, ...]:
    """The armed timers, that of the deadline first.

    Older files have no `others`: `warning` is the id of the warning's timer, and its time is not
    saved.
    """
    found = _decode_object(raw)
    others = _OTHERS.decode(found.get("others", []))
    if "others" in found and "backend" not in found:
        return others
    first = _OF_DEADLINE.decode(found)
    warning = _WORD.decode(found.get("warning", ""))
    if warning:
        others = (ArmedTimer(first.backend, warning, 0, WARNING), *others)
    return (first, *others)


def _encode_timers(timers: tuple[ArmedTimer, ...]) -> dict[str, Any]:
    """The deadline's timer, with a list of the others, which older versions ignore."""
    first = _timer_of_deadline(timers)
    if first is None:  # an older version reads a timer of no backend, and arms one
        written: dict[str, Any] = {"deadline": format_time(0)}
    else:
        written = _OF_DEADLINE.encode(first)
    others = tuple(timer for timer in timers if timer is not first)
    if others:
        written["others"] = _OTHERS.encode(others)
    return written


_TIMERS = Field(_decode_timers, _encode_timers)


class Reaped(Record):
    """The last expiry that was carried out."""

    at: int  # seconds since the epoch
    action: str  # what was done, one of ACTIONS
    by: str  # what fired it: a timer's backend, or the user's hand
    how: str  # how the VM ended
    cause: str = ""  # BUDGET or UNUSED; empty in files of before


_REAPED = optional(object_of(Reaped, at=_MOMENT, action=_ACTION, by=_TEXT, how=_TEXT, cause=_TEXT))


class Suspended(Record):
    """What belongs to the memory file of a suspended guest."""

    at: int  # when it was written, in seconds since the epoch
    packed: str  # the program that unpacks it, zstd; empty: it is as QEMU wrote it
    digest: str  # its SHA-256; empty where what unpacks it finds every damage
    fits: Mapping[str, Any]  # what has to be the same when it is loaded, see `memory_fits`


_SUSPENDED = optional(
    object_of(
        Suspended,
        at=_MOMENT,
        packed=_TEXT,
        digest=_TEXT,
        fits=Field(_decode_object),
    )
)


class Idle(Record):
    """What is known of the use of a running cluster. Moments are in seconds since the epoch."""

    used: int  # its last use that is known
    seen: int  # the last look
    next: int  # the next one
    by: str  # what that look saw in use, as the keys of USES; empty: nothing
    cpu: int  # CPU time that QEMU had used by then, in milliseconds; -1: not known
    connections: int = -1  # that led into the guest then; -1: could not be told
    percent: int = -1  # of one CPU, from the look before; -1: not known
    slept: int = 0  # for how many seconds of this boot the host had been suspended
    warned: int | None = None  # the end, if it stays unused, of which the user has been warned


_IDLE = optional(
    object_of(
        Idle,
        used=_MOMENT,
        seen=_MOMENT,
        next=_MOMENT,
        by=_TEXT,
        cpu=_NUMBER,
        connections=_NUMBER,
        percent=_NUMBER,
        slept=_NUMBER,
        warned=_TIME,
    )
)


class Hold(Record):
    """A process while which runs nothing expires."""

    pid: int
    began: int  # in clock ticks since the boot: a pid is given again
    boot: str  # the host's boot that it belongs to
    since: int  # seconds since the epoch
    until: int | None  # likewise: it holds no longer than until then; None: as long as it runs
    command: str  # for people
    # `hold`; or what `run` does at its end, a verb or `leave`, where empty is `leave` by default.
    undo: str


_HOLDS = tuple_of(
    object_of(
        Hold,
        pid=_NUMBER,
        began=_NUMBER,
        boot=_TEXT,
        since=_MOMENT,
        until=_TIME,
        command=_TEXT,
        undo=_TEXT,
    )
)


class State(Record):
    """The content of a cluster's state file, the sidecar. A field with no declaration is a text."""

    name: str
    cache_dir: str
    context: str = stored(_WORD, DEFAULT_CONTEXT)
    disk_size: str = stored(_WORD, "20G")
    memory: str = stored(_WORD, "8192")  # MB
    cpus: str = stored(_WORD, "4")
    ssh_port: int = stored(_PORT, 2222)
    port_forwards: tuple[PortForward, ...] = stored(_FORWARDS, ())
    bind_address: str = stored(_ADDRESS_TEXT, BIND_ADDRESS)
    attachment: Attachment | None = stored(_NETWORK, None, name="network")  # None: user mode
    k3s: Mapping[str, Any] = stored(_K3S_RELEASE, {})  # Version, Install, Source
    kubeconfig: str = ""  # the user's file that this cluster was merged into

    # The budget, as the config gives it: Go durations, where "" and "0" mean none.
    lifetime: str = stored(_BUDGET, "")
    run_budget: str = stored(_BUDGET, "")  # for the run of now alone, in place of `lifetime`
    on_expiry: str = stored(_ACTION, "stop")
    warn: str = stored(_BUDGET, "")  # this long before the deadline
    on_warn: str = ""  # a shell command
    max_total: str = stored(_BUDGET, "")  # upper limit of all extensions, from the start
    max_idle: str = stored(_BUDGET, "")  # so long may nobody use it
    idle_cpu: int = stored(_NUMBER, 25)  # percent of one CPU above which it counts as used

    # Where it stands. Times are seconds since the epoch.
    expires_at: int | None = stored(_TIME, None)  # the deadline, if there is one
    started_at: int | None = stored(_TIME, None)  # None: never started
    retry_at: int | None = stored(_TIME, None)  # when an expiry that is under way is tried again
    warned: int | None = stored(_TIME, None)  # the deadline of which the user has been warned
    # The action of an expiry that is under way, if that erases, and found the VM running.
    ending: str = ""
    failed: int | None = stored(_TIME, None)  # the end of which the user was told that it failed
    idle: Idle | None = stored(_IDLE, None)  # while it runs, with max_idle
    holds: tuple[Hold, ...] = stored(_HOLDS, ())  # of which some may have ended

    # The machine.
    image: str = stored(_URL_TEXT, "")
    seeded: Mapping[str, Any] = stored(_OBJECT, {})  # what its seed was made of: see `_seeded`
    imported: str = ""  # the disk that `import` took the boot disk from
    prepared: str = ""  # `live` or `done`: how far `prepare-export` has come since the last boot
    disk_max_run: str = ""  # so long after each boot the disk powers its guest off; empty: never
    data_disk: str = stored(_WORD, "")
    ssh_user: str = stored(_USER_NAME, "ystack")
    accel: str = "auto"  # as the config asks
    ran_with: str = ""  # what the last start found to work, kvm or tcg
    cpu_model: str = stored(_WORD, "")
    machine: str = stored(_WORD, "")
    boot_id: str = ""  # the host's boot in which the deadline was set
    # When that boot began, by the wall clock when this was saved.
    booted_at: int | None = stored(_BOOT_TIME, None)
    auto_ports: tuple[int, ...] = stored(_PORTS, ())  # guest ports whose host ports QEMU chooses

    # What was armed for it, and its last expiry.
    timers: tuple[ArmedTimer, ...] = stored(_TIMERS, (), name="timer")
    timer_choice: str = ""  # the backend that YCLUSTER_TIMER has chosen; empty: the best there is
    reaped: Reaped | None = stored(_REAPED, None)
    suspended: Suspended | None = stored(_SUSPENDED, None)  # while its memory is in a file

    extra: Mapping[str, Any] = {}  # the fields that are unknown here, as JSON held them

    @property
    def files(self) -> Files:
        """What the cluster owns on disk."""
        return Files(Path(self.cache_dir), self.name)

    @property
    def max_run(self) -> str:
        """The budget that counts: that of this run alone, or what the config gives each run."""
        return self.run_budget or self.lifetime

    @property
    def has_k3s(self) -> bool:
        """Whether there is a k3s that this host can reach."""
        return bool(self.api_ports)

    @property
    def api_ports(self) -> list[int]:
        """The ports at `dial_address` that lead to the API of its k3s."""
        if self.k3s.get("Install", "none") in ("", "none"):
            return []
        if self.guest_address:
            return [6443]
        return [forward.host for forward in self.port_forwards if forward.guest == 6443]

    @property
    def is_half_made(self) -> bool:
        """Whether it has never booted.

        Only our own state files name an image. A sibling's has no startedAt either, yet holds data.
        """
        return bool(self.image) and self.started_at is None

    @property
    def has_limit(self) -> bool:
        """Whether anything ends a run: a budget, or that nobody uses it."""
        return budget(self.max_run) is not None or budget(self.max_idle) is not None

    @property
    def counts(self) -> bool:
        """Whether a run of now is counted: it has a deadline, or its use is looked at."""
        return self.expires_at is not None or self.idle is not None

    @property
    def timer(self) -> ArmedTimer | None:
        """The timer that fires at the deadline; where there is none, that of the next look."""
        looks = (timer for timer in self.timers if timer.event == LOOK)
        return _timer_of_deadline(self.timers) or next(looks, None)

    @property
    def disarmed(self) -> bool:
        """Whether the user wants nothing to happen at the deadline."""
        return self.timer is not None and self.timer.backend == "none"

    @property
    def guest_address(self) -> str:
        """The guest's own address in tap mode; empty in user mode, where it has none."""
        if self.attachment is None or self.attachment.mode != "tap":
            return ""
        return self.attachment.guest_address.partition("/")[0]

    @property
    def dial_address(self) -> str:
        """Where this host reaches the guest: its own address, or that of the forwarded ports."""
        bound = BIND_ADDRESS if self.bind_address == "0.0.0.0" else self.bind_address
        return self.guest_address or bound

    @property
    def ssh_at(self) -> tuple[str, int]:
        """The address and the port where this host reaches the guest's sshd."""
        return self.dial_address, 22 if self.guest_address else self.ssh_port


def _fields_of_state() -> dict[str, tuple[str, Field[Any]]]:
    """The fields of a state file by their names in it: the attribute, and how it is written."""
    fields = {}
    for attr in State.fields:
        declared = getattr(State, attr, None)
        if isinstance(declared, Stored):
            fields[declared.name or camel_case(attr)] = (attr, declared.field)
        elif attr != "extra":
            fields[camel_case(attr)] = (attr, _TEXT)
    return fields


_FIELDS = _fields_of_state()


# --- reading and writing the state file
def _unreadable(path: Path, why: object) -> StateError:
    stop = shlex.join(["ycluster", "stop", "--state", str(path)])
    way_out = f"`{stop}` shuts its guest down, if that still runs"
    hint = f"fix {path}, or move it away; {way_out}"
    return StateError(f"{path}: {why!s:.200}", hint=hint)


def decode_state(text: str, path: Path, copy: Callable[[], str] = str) -> State:
    """The state in a file's text. Raises StateError, which names the file and the bad field.

    `copy` gives the text of the copy of the state, empty where there is none.
    """
    data = _parse_object(text, path)
    if _WRITER not in data.items():  # the sibling's save has dropped it, and all that is ours
        data = {**_dropped_fields(copy(), data, path), **data}
    data.pop(_WRITER[0], None)
    version = data.pop("version", None)
    if version != 1:
        if version is None:
            raise _unreadable(path, "it has no version, as a state file has")
        why = f"{path}: version {version!r:.40}, and this ycluster knows version 1"
        raise StateError(why, hint="use the ycluster that wrote it")
    values: dict[str, Any] = {}
    for name, (attr, field) in _FIELDS.items():
        raw = data.pop(name, None)
        if raw is None:
            continue
        try:
            values[attr] = field.decode(raw)
        except (ValueError, OverflowError) as error:
            raise _unreadable(path, f"{name} {error}") from None
    if values.get("name") != path.stem:
        named = f"the cluster {values['name']!r}" if "name" in values else "no cluster"
        raise _unreadable(path, f"it names {named}")
    # Where the file lies is where its neighbours are; the directory may have been moved or linked.
    values["cache_dir"] = str(path.parent)
    state = State(extra=data, **values)
    if budget(state.max_run) is None:
        # A deadline that is left of an earlier budget means nothing.
        state = replace(state, expires_at=None)
    if budget(state.max_idle) is None:
        state = replace(state, idle=None)
    return state if state.has_limit else replace(state, retry_at=None, ending="")


def _parse_object(text: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _unreadable(path, f"not JSON: {error}") from None
    if not isinstance(data, dict):
        raise _unreadable(path, "not a JSON object")
    return data


# What says in a state file that our fields in it are all there.
_WRITER = ("savedBy", "ycluster")
# The fields that the sibling writes, and those of ours that end with a deadline.
_SIBLINGS = frozenset(
    "version name diskSize memory cpus sshPort portForwards context cacheDir k3s "
    "lifetime onExpiry expiresAt".split()
)
_OF_EXPIRY = frozenset(("retryAt", "ending", "reaped"))


def _dropped_fields(copy: str, data: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of ours in the copy of a state, which the sibling's save has dropped."""
    kept = _fields_in_copy(copy, data.get("name"), path)
    gone = set(_SIBLINGS)
    if kept.get("expiresAt") != data.get("expiresAt"):
        gone |= _OF_EXPIRY
    return {name: value for name, value in kept.items() if name not in gone}


def last_saved(files: Files) -> State | None:
    """The state that ycluster saved last, by the copy; None where there is none of this cluster."""
    kept = _fields_in_copy(_text_of(files.copy), files.name, files.sidecar)
    try:
        return decode_state(to_json(kept), files.sidecar) if kept else None
    except StateError:
        return None


def _fields_in_copy(copy: str, name: object, path: Path) -> dict[str, Any]:
    """What the copy of a state holds; empty where it is of an earlier cluster, or half of one.

    Each cluster has a login key of its own.
    """
    try:
        kept: dict[str, Any] = json.loads(copy)
        is_of_it = kept["name"] == name and kept.pop("loginKey") == _login_key(path)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
    return kept if is_of_it else {}


def _login_key(sidecar: Path) -> str:
    """A digest of the key that logs in to a cluster; empty where there is none yet."""
    try:
        return sha256_of(read_own(Files(sidecar.parent, sidecar.stem).ssh_pub))
    except OSError:
        return ""


def encode_state(state: State) -> str:
    """The text of the state file, in ASCII; the inverse of `decode_state`."""
    return to_json(_state_object(state)) + "\n"


def _state_object(state: State) -> dict[str, Any]:
    """What a state file holds."""
    data: dict[str, Any] = {"version": 1, _WRITER[0]: _WRITER[1]}
    for name, (attr, field) in _FIELDS.items():
        value = getattr(state, attr)
        if _is_unset(attr, value) and attr != "port_forwards":  # which the sibling always writes
            continue
        data[name] = field.encode(value)
    return {**data, **state.extra}


def _is_unset(attr: str, value: object) -> bool:
    """Whether a field is empty, and would be read as empty if left out."""
    return value in (None, "", ()) and value == State.fields[attr]


def is_claimed(files: Files) -> bool:
    """Whether what lies at a cluster's names is its own: its state file is there, or the copy."""
    if os.path.lexists(files.sidecar):
        return True
    try:
        kept = json.loads(read_own(files.copy))
        return bool(kept["name"] == files.name and _WRITER in kept.items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def has_state(files: Files) -> bool:
    """Whether there is a state file, whatever is in it. Raises StateError where nobody can tell."""
    try:
        os.lstat(files.sidecar)
    except OSError as error:
        if error.errno in NOT_THERE:
            return False
        raise _unreadable(files.sidecar, error.strerror) from None
    return True


def load_state(files: Files) -> State:
    """The cluster's state. Raises StateError if there is no such cluster, or it is unreadable."""
    path = files.sidecar
    if not has_state(files):
        why = f"no cluster {files.name} in {files.cache_dir}"
        raise StateError(why, hint="`ycluster list` shows those there are")
    check_folder(path.parent)
    try:
        text = read_own(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unreadable(path, error) from None
    except OSError as error:
        raise _unreadable(path, error.strerror or error) from None
    return decode_state(text, path, partial(_text_of, files.copy))


def _text_of(path: Path) -> str:
    try:
        return read_own(path).decode("utf-8")
    except (OSError, ValueError):
        return ""


def _read_back(text: str, files: Files) -> None:
    """Raise StateError where a text could not be read again, were it saved as the state."""
    try:
        decode_state(text, files.sidecar)
        if len(text) > STATE_SIZE:
            raise StateError(f"{files.sidecar}: it would be larger than {STATE_SIZE} bytes")
    except StateError as error:
        hint = "the state of before stays; `date` shows whether this host's clock is right"
        raise StateError(f"not saved, as it could not be read again: {error}", hint=hint) from None


def save_state(state: State) -> State:
    """Replace the state file, whole or not at all. Only under the cluster's lock.

    What is saved has been read back first: a file that no verb can read is a VM that none can stop.
    The copy goes first: it counts only once the sibling has replaced the state file. A new cluster
    has its state file first, for that is what claims all of its other names.
    """
    files = state.files
    copy = {**_state_object(state), "loginKey": _login_key(files.sidecar)}
    text = encode_state(state).encode("ascii")
    copy_text = to_json(copy).encode("ascii")
    _read_back(text.decode("ascii"), files)
    if not os.path.lexists(files.sidecar):
        write_file(files.sidecar, text)
    write_file(files.copy, copy_text)
    write_file(files.sidecar, text)
    return state


def state_from_config(config: QemuConfig, cache_dir: Path) -> State:
    """The state of a cluster that is about to be made."""
    k3s = {
        "Version": config.k3s.version,
        "Install": config.k3s.install,
        "Source": config.k3s.source,
    }
    ssh = PortForward(host=config.ssh_port, guest=22)
    forwards = [*config.port_forwards, ssh]
    return State(
        name=config.name,
        cache_dir=str(cache_dir),
        context=config.context,
        disk_size=config.disk_size,
        memory=str(config.memory),
        cpus=str(config.cpus),
        ssh_port=config.ssh_port,
        port_forwards=config.port_forwards,
        bind_address=config.network.bind_address,
        k3s=k3s,
        lifetime=config.lifetime.max_run,
        on_expiry=config.lifetime.on_expiry,
        warn=config.lifetime.warn,
        on_warn=config.lifetime.on_warn,
        max_total=config.lifetime.max_total,
        max_idle=config.lifetime.max_idle,
        idle_cpu=config.lifetime.idle_cpu,
        image=config.image,
        seeded=_seeded(config),
        data_disk=_show_path(config.data_disk),
        ssh_user=config.ssh_user,
        accel=config.accel,
        cpu_model=config.cpu_model,
        auto_ports=tuple(forward.guest for forward in forwards if forward.host == 0),
    )


def _seeded(config: QemuConfig) -> Mapping[str, str]:
    """What of a config is in the seed alone, by its key: a mark that another value has not.

    It is short, so that few passwords can be ruled out by it; that of 65,536 edits one goes unseen
    does less harm. Files are known by their names, and what has its default leaves no mark: the
    config may be moved, and a later ycluster may have more keys.
    """
    guest = config.guest
    own = {
        "proxy": guest.proxy == "host",
        "caCertificates": [path.name for path in guest.ca_certificates],
        "userData": guest.user_data and guest.user_data.name,
    }
    parts: dict[str, Any] = {
        "registries": used_registries(config),
        "guest": {name: value for name, value in own.items() if value},
        "k3s.args": config.k3s.args if _wants_k3s(config) else (),
    }
    marks = {}
    for key, value in parts.items():
        text = json.dumps(value, sort_keys=True)
        marks[key] = sha256_of(text.encode())[:4]
    return marks


# --- finding clusters
def _index(host: Host) -> Path:
    """The directory of links to the cacheDirs in which this user has made clusters."""
    return host.state_home() / "cachedirs"


def remember_cache_dir(host: Host, cache_dir: Path) -> None:
    """Add a cacheDir to the user's index.

    It is one link, named by a hash of the directory. So the index needs no lock, and is never half
    written.
    """
    try:
        index = _index(host)
        own_folder(index)
        with contextlib.suppress(FileExistsError):  # then it is in the index already
            (index / sha256_of(os.fsencode(cache_dir))[:16]).symlink_to(cache_dir)
    except (OSError, YclusterError) as error:
        host.output.warn(f"{error}: `list` will not see the clusters in {cache_dir}")


def remember_again(host: Host, cache_dir: Path) -> None:
    """Put a cacheDir into the index that may have been taken out of it while it was away."""
    with contextlib.suppress(YclusterError):  # no home: then there is no index either
        if cache_dir not in (host.data_home().resolve(), host.sibling_home().resolve()):
            remember_cache_dir(host, cache_dir)


def check_cache_dir(config: QemuConfig, folder: Path) -> None:
    """Raise ConfigError where no folder can be at the place of a cacheDir."""
    part = existing_part(folder)
    if part.is_dir():
        return
    why = f"{part} is not a directory"
    if not config.cache_dir:
        hint = "Y_CLUSTER_QEMU_CACHE_DIR, XDG_DATA_HOME or HOME leads there"
        raise ConfigError(f"{folder} can't be the cacheDir: {why}", hint=hint)
    with blamed_on(config, "cacheDir"):
        raise ConfigError(why, hint="name a folder, or leave cacheDir out")


def default_cache_dir(host: Host, name: str) -> Path:
    """Where a cluster is whose config names no cacheDir, by the first of these that there is.

    The folder that the user names for the sibling's clusters; one of the defaults in which there is
    a cluster of this name; the sibling's, where clusters are; the folder under XDG_DATA_HOME. What
    can't be made again has no place in a cache.
    """
    own, siblings = host.data_home(), host.sibling_home()
    if host.environ.get("Y_CLUSTER_QEMU_CACHE_DIR"):
        return siblings
    for place in (own, siblings):
        files = Files(place, name)
        if os.path.lexists(files.sidecar) or os.path.exists(files.disk):
            return place
    with contextlib.suppress(OSError, StateError):  # then it is not used
        if _clusters_in(siblings) or any(siblings.glob("*.qcow2")):
            return siblings
    return own


@contextlib.contextmanager
def claim_lock(host: Host) -> Iterator[None]:
    """Keep this user's other commands from claiming a context, or names in the kubeconfig.

    Held for a moment only. Best effort: where HOME can't be written to, there is no lock.
    """
    try:
        path = host.state_home() / "claims.lock"
        own_folder(path.parent)
        fd = take_flock(host, path, timeout=LOCK_TIMEOUT, what="its names")
    except (OSError, YclusterError) as error:
        host.output.debug(f"no lock on claims: {error}")
        yield
        return
    if fd is None:
        raise Busy(f"{path}: held by another ycluster", hint=f"`fuser {path}` names it")
    with descriptor(fd):
        yield


def own_places(host: Host) -> list[Path]:
    """The cacheDirs that are there and this user's own, whether they have clusters in them or not.

    A disk that a teardown has kept lies in one, too.
    """
    found = set()
    for place in _cache_dirs(host):
        # It leads nowhere, or to what is not ours: `unseen` tells.
        with contextlib.suppress(OSError, RuntimeError, StateError):
            real = place.resolve(strict=True)
            check_folder(real)
            found.add(real)
    return sorted(found)


def discover(host: Host) -> list[Files]:
    """The clusters of this user, by name and place; those whose state file is damaged, too.

    What can't be looked into is a warning: it may have clusters in it.
    """
    found, closed = _looked_for(host)
    for error in closed.values():
        host.output.warn_once(f"{error}: {error.hint}")
    return sorted(found, key=lambda files: (files.name, str(files.cache_dir)))


def unseen(host: Host) -> dict[Path, StateError]:
    """The folders that can't be read or trusted, and may have clusters in them; an error for each.

    Of a ForeignError the clusters are not this user's, or no longer.
    """
    return _looked_for(host)[1]


def _looked_for(host: Host) -> tuple[set[Files], dict[Path, StateError]]:
    """The clusters in all folders that may have some, and why others can't be looked into."""
    places = _cache_dirs(host)
    with contextlib.suppress(YclusterError):  # no home: then it has no index
        places.append(_index(host))  # It has none in it, but leads to some.
    found: set[Files] = set()
    closed: dict[Path, StateError] = {}
    for place in places:
        try:
            found |= _clusters_in(place)
        except StateError as error:
            if isinstance(error, ForeignError) and place.is_symlink():
                error.hint += f"; `rm {shlex.quote(str(place))}` forgets it"
            closed[Path(os.path.realpath(place))] = error
        except OSError as error:
            if error.errno in (*NOT_THERE, errno.ELOOP):
                continue  # It is gone, or never was a folder.
            real = Path(os.path.realpath(place))
            why = f"{real} can't be read ({error.strerror}), and there may be clusters in it"
            closed[real] = StateError(why, hint=_way_into(host, real, error))
    return found, closed


def _cache_dirs(host: Host) -> list[Path]:
    """The default cacheDirs, ours and the sibling's, and those in the index."""
    places: list[Path] = []
    with contextlib.suppress(YclusterError):  # no home: then it has no clusters
        places += [host.data_home(), host.sibling_home()]
    with contextlib.suppress(OSError, YclusterError):  # no index: then no other cacheDir was used
        places.extend(_indexed(host))
    return places


def _indexed(host: Host) -> list[Path]:
    """The links in the index. One that leads nowhere is removed.

    Whatever changes a cluster puts its cacheDir into the index again, and so does its watcher when
    that is back from where it was.
    """
    index, live = _index(host), []
    check_folder(index)
    for link in sorted(index.iterdir()):
        if not _is_dead(link):
            live.append(link)
            continue
        with contextlib.suppress(OSError, YclusterError):  # then it is passed over the next time
            refuse_sudo(host, link)
            link.unlink()
    return live


def _is_dead(link: Path) -> bool:
    """Whether a link certainly leads nowhere."""
    try:
        os.stat(link)
    except OSError as error:
        gone = error.errno in (*NOT_THERE, errno.ELOOP)
        return gone and link.is_symlink()
    return False


def _clusters_in(place: Path) -> set[Files]:
    """Those in one cacheDir. Raises OSError or StateError where it can't be read or trusted."""
    names = os.listdir(place)
    cache_dir = Path(os.path.realpath(place))
    check_folder(cache_dir)
    with contextlib.suppress(FileNotFoundError):  # It raises what opening a file in it would.
        os.stat(cache_dir / "a cluster.json")
    names = [name for name in names if name.endswith(".json") and not name.startswith(".")]
    paths = [cache_dir / name for name in names]
    return {Files(cache_dir, path.stem) for path in paths if _is_state(path)}


def _way_into(host: Host, place: Path, error: OSError) -> str:
    """What lets this user into a folder again."""
    if not isinstance(error, PermissionError):
        return "`dmesg` may show why"
    path = next(part for part in (place, *place.parents) if _can_stat(part))
    owner = os.stat(path).st_uid
    if owner == os.getuid():
        return f"`chmod u+rwx {shlex.quote(str(path))}` opens it"
    if host.home() in path.parents and os.stat(host.home()).st_uid == os.getuid():
        return f"`sudo chown -R {host.user()} {shlex.quote(str(path))}` gives it back"
    return f"it belongs to uid {owner}"


def _can_stat(path: Path) -> bool:
    try:
        os.stat(path)
    except OSError:
        return False
    return True


# One of these beside a version tells a state file from any other JSON; the sibling writes them all.
_MARKS = {"diskSize", "memory", "cpus", "sshPort", "portForwards", "cacheDir", "k3s"}


def _is_state(path: Path) -> bool:
    """Whether a JSON file in a cacheDir is, or was, the state file of a cluster.

    One that is damaged counts: its VM may run. What never was one does not, such as the sibling's
    record of a gateway, unless there is a cluster of that name.
    """
    files = Files(path.parent, path.stem)
    parts = (files.disk, files.ssh_key, files.pidfile, files.vm_lock)
    if any(os.path.lexists(part) for part in parts):
        return True
    try:
        data = json.loads(read_own(path))
    except (OSError, ValueError, RecursionError):
        data = None
    if data is None:
        return not path.name.endswith(GATEWAY_STATE)
    if not isinstance(data, dict):
        return False
    if data.get("name") == path.stem:
        return True
    return "version" in data and bool(_MARKS & data.keys())


# --- events: what happened, in the user's log and in the next command's words
def _event_log(host: Host) -> Path:
    return host.state_home() / "events.jsonl"


def _full_log(log: Path) -> Path:
    """What becomes of a log of events that is full."""
    return log.with_name("events.1.jsonl")


def log_event(
    host: Host,
    state: State,
    event: str,
    **facts: object,
) -> None:
    """Add a line of JSON to the user's log of events, best effort.

    A full log becomes `_full_log`, in the place of the one before it.
    """
    about = {
        "at": format_time(host.now()),
        "event": event,
        "name": state.name,
        "cacheDir": state.cache_dir,
        **facts,
    }
    line = masked(json.dumps(about)).encode() + b"\n"
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with contextlib.suppress(OSError, YclusterError):  # nothing depends on the log
        log = _event_log(host)
        refuse_sudo(host, log)
        own_folder(log.parent)
        if log.exists() and log.stat().st_size > EVENTS_SIZE:
            log.replace(_full_log(log))
        with descriptor(open_own(log, appending)) as fd:
            os.write(fd, line)  # in one go, so that the lines of two commands never mix


NOT_RUNNING = "was not running"  # how a VM has ended that an expiry has found off


def last_expiry(state: State) -> str:
    """What a cluster's last expiry did, as the end of a sentence; empty where there was none."""
    reaped = state.reaped
    if reaped is None:
        return ""
    if reaped.how == NOT_RUNNING and not ACTIONS[reaped.action].erases:
        return f": it was off already when its end came, {local_time(reaped.at)}"
    done = f"{ACTIONS[reaped.action].done} {local_time(reaped.at)}"
    cause = f" by its {state.max_run} budget"
    if reaped.cause == UNUSED:
        cause = f", unused for {state.max_idle}"
    return f": {done}{cause} ({reaped.by}: {reaped.how})"


def last_teardown(host: Host, name: str = "", place: str = "") -> str:
    """A line on the expiry that tore a cluster down, if nothing has happened to it since.

    Empty otherwise. Without a name, or a cacheDir as its place, any cluster is meant.
    """
    for state in _last_events(host):
        if name in ("", state.name) and place in ("", state.cache_dir):
            torn_down = state.reaped is not None
            return f"{state.name}{last_expiry(state)}\n" if torn_down else ""
    return ""


def _last_events(host: Host) -> Iterator[State]:
    """The clusters in the log, newest first."""
    try:
        log = _event_log(host)
    except YclusterError:  # no home: then nothing is logged
        return
    for path in (log, _full_log(log)):
        try:
            text = read_own(path, 2 * EVENTS_SIZE, last=True)
        except (OSError, YclusterError):  # there is none yet
            continue
        for line in reversed(text.decode("utf-8", "replace").splitlines()):
            state = _state_after(line)
            if state is not None:
                yield state


def _state_after(line: str) -> State | None:
    """The cluster of a log line about a start or an expiry; `reaped` is set only for a teardown.

    None for all other lines, and for what is no event: half a line, or rubbish.
    """
    try:
        event = json.loads(line)
        if event["event"] not in ("started", "reaped", "failed"):
            return None
        state = State(name=event["name"], cache_dir=event["cacheDir"])
        if event["event"] == "reaped" and event["action"] == "teardown":
            cause = event.get("cause", "")
            reaped = Reaped(parse_time(event["at"]), "teardown", event["by"], event["how"], cause)
            limits = {"lifetime": event["maxRun"], "max_idle": event.get("maxIdle", "")}
            state = replace(state, **limits, reaped=reaped)
    except (ValueError, LookupError, TypeError, RecursionError):
        return None
    return state


# === 9 lifetime decisions =========================================================================
# Everything that is decided about deadlines, but for what an edited config changes: that is
# `reconfigured`, in 19. Pure: the time comes in as an argument, a state or a `Decision` goes out.
# What acts on it is in section 19; section 10 has the timers that wake it.
# A deadline is an absolute time by the wall clock; where that clock is set, it moves along.


class End(Record):
    """What ends a run, and when: `at` in seconds since the epoch."""

    at: int
    cause: str  # BUDGET, or UNUSED


class Decision(Record):
    """What `reap` has to do, and why; `end` is what an action, or a warning, is about.

    `nothing`, `rearm`, `warn`, `held` (it is due, and not now), or the name of one of ACTIONS.
    """

    do: str
    why: str
    end: End | None = None
    again: int | None = None  # when to decide again about what is due, in seconds since the epoch


class Moment(Record):
    """Something that is to happen to a cluster, and when: `at` in seconds since the epoch."""

    at: float
    event: str


def adjusted(state: State, clock: Clock) -> State:
    """The state by the clock of now: a deadline moves along where the wall clock was set.

    A budget is an amount of time, and the time since boot, which nobody can set, measures it.
    After a reboot nothing does, and the state stays as it is.
    """
    if state.boot_id != clock.boot_id or state.booted_at is None:
        return state
    step = round(clock.booted - state.booted_at)
    if abs(step) < CLOCK_STEP:
        return state
    booted_at = min(max(_EARLIEST_BOOT, state.booted_at + step), _LATEST)
    if state.idle is not None:
        idle = _shifted(state.idle, step, "used", "seen", "next", "warned")
        state = replace(state, idle=idle)
    holds = [_shifted(hold, step, "since", "until") for hold in state.holds]
    state = replace(state, booted_at=booted_at, holds=tuple(holds))
    return _shifted(state, step, "started_at", "retry_at", "warned", "failed", "expires_at")


def _shifted(record: AnyRecord, step: int, *names: str) -> AnyRecord:
    """The record with these moments, where they are set, `step` seconds later."""
    moved = {}
    for name in names:
        at = getattr(record, name)
        if at is not None:
            moved[name] = min(max(0, at + step), _LATEST)
    return replace(record, **moved)


def agenda(state: State) -> list[Moment]:
    """What is to happen to the cluster, soonest first.

    Empty if nothing ends the run, or if disarmed. The deadline is when to act: a retry, where an
    action has failed or is under way.
    """
    if state.disarmed:
        return []
    moments = []
    deadline, again = deadline_of(state), state.retry_at or 0
    if deadline is not None:
        moments.append(Moment(max(deadline, again), DEADLINE))
    if state.idle is not None and unused_end(state) is not None:
        moments.append(Moment(max(state.idle.next, again), LOOK))
    warning = _warning_time(state)
    if warning is not None:
        moments.append(Moment(warning, WARNING))
    return sorted(moments, key=lambda moment: moment.at)


def deadline_of(state: State) -> int | None:
    """When the budget of the run ends it, in seconds since the epoch; None without a budget."""
    return None if budget(state.max_run) is None else state.expires_at


def unused_end(state: State) -> int | None:
    """When it ends if nobody uses it any more, likewise; None where nobody looks at that."""
    limit = budget(state.max_idle)
    if limit is None or state.idle is None:
        return None
    return state.idle.used + seconds_up(limit)


def _warning_time(state: State) -> int | None:
    """When to warn of the deadline: once for each, and not where the whole budget is shorter."""
    lead, deadline = budget(state.warn), deadline_of(state)
    if lead is None or deadline is None or state.retry_at:
        return None
    if state.warned == deadline:
        return None
    moment = deadline - seconds_up(lead)
    if (state.started_at or 0) < moment < deadline:
        return moment
    return None


def time_of(state: State, event: str) -> float:
    """When an event is due, in seconds since the epoch; NEVER where it is not on the agenda."""
    return next((moment.at for moment in agenda(state) if moment.event == event), NEVER)


def wake_time(state: State) -> float:
    """When to look into it next, in seconds since the epoch; NEVER if the agenda is empty."""
    return min((moment.at for moment in agenda(state)), default=NEVER)


def end_time(state: State) -> float:
    """When it may end at the earliest: at the deadline, or by a look; NEVER if by neither."""
    return min(time_of(state, event) for event in ENDS)


def decide(state: State, clock: Clock, *, was_held: bool = False) -> Decision:
    """Decide what `reap` does about an adjusted state, by nothing but the state and the clock.

    The timer that asks may be stale, early or late. `was_held`: it was due and held when it was
    looked at last; once nothing holds it any more its user is warned, and has a while. In doubt
    nothing is torn down: the clock of another boot can't be checked, so after a reboot of the host
    a teardown is only a stop.
    """
    nothing = _why_nothing(state)
    if nothing:
        return Decision("nothing", nothing)
    ends = ends_of(state)
    due = next((end for end in ends if _is_due(state, end, clock.now)), None)
    if due is None:
        return _before_the_end(state, clock.now)
    why = _why_due(state, due, clock.now)
    if state.holds:
        why = f"{why}; held by {hold_words(state.holds)}"
        return Decision("held", why, due, again=int(clock.now + HOLD_LOOK))
    if was_held:
        why = f"{why}; its last hold has ended"
        return Decision("warn", why, due, again=int(clock.now + HOLD_GRACE))
    action = ACTIONS[state.on_expiry]
    if action.in_doubt != action.name and state.boot_id not in ("", clock.boot_id):
        doubt = "by a clock that may be wrong, as the host was rebooted; its disk is kept"
        return Decision(action.in_doubt, f"{why} {doubt}", due)
    return Decision(action.name, why, due)


def _why_nothing(state: State) -> str:
    """Why nothing can come to be due; empty where something can."""
    if state.disarmed:
        return f"disarmed by hand; `ycluster lifetime arm --name {state.name}` arms it again"
    if not state.has_limit:
        return "it has no lifetime budget"
    return "" if agenda(state) else "not armed"


def _before_the_end(state: State, now: float) -> Decision:
    """The decision while nothing is due: to warn of an end, or to wait for the first."""
    first = ends_of(state)[0]
    why = f"due in {in_words(first.at - now)}"
    if first.cause == UNUSED:
        why = f"unused for {unused_words(state, now)}; {why}, if it stays so"
    deadline = deadline_of(state)
    if deadline is not None and time_of(state, WARNING) <= now:
        return Decision("warn", why, End(deadline, BUDGET))
    if first.cause == UNUSED and _warns_of_unused(state, now):
        return Decision("warn", why, first)
    return Decision("rearm", why, first)


def _why_due(state: State, end: End, now: float) -> str:
    if end.cause == UNUSED:
        return f"unused for {unused_words(state, now)}"
    return f"due since {in_words(end.at - now)}"


def hold_words(holds: Sequence[Hold]) -> str:
    """What holds a cluster: `make test (pid 17), 2 more`."""
    first = holds[0]
    words = f"{first.command} (pid {first.pid})"
    if len(holds) > 1:
        words += f", {len(holds) - 1} more"
    return words


def ends_of(state: State) -> list[End]:
    """What ends the run by the state as it is, soonest first."""
    ends = []
    for at, cause in ((deadline_of(state), BUDGET), (unused_end(state), UNUSED)):
        if at is not None:
            ends.append(End(at, cause))
    return sorted(ends, key=lambda end: end.at)


def _is_due(state: State, end: End, now: float) -> bool:
    """Whether an end has come: that nobody uses it only by a look of just now."""
    if end.cause != UNUSED:
        return end.at <= now
    return _looks_unused(state, now) and state.idle is not None and state.idle.seen >= end.at


def _looks_unused(state: State, now: float) -> bool:
    """Whether a look of just now has seen no use."""
    idle = state.idle
    return idle is not None and not idle.by and 0 <= now - idle.seen <= LOOK_AGE


# --- unused: what a look at a running cluster has measured, and what follows from it
# By what a cluster can be in use. Of those that are `sampled`, a look sees only whether it is now:
# what one has seen may have ended just before the next one.
CPU, UNMEASURED, LATE, VERB = "cpu", "unmeasured", "late", "verb"
CONNECTION, HELD = "connection", "hold"
SAMPLED = (CONNECTION, HELD, UNMEASURED)
USES: Mapping[str, str] = {
    CONNECTION: "a connection to it",
    CPU: "its CPU",
    HELD: "a hold",
    UNMEASURED: "no telling: its monitor does not answer",
    LATE: "no telling: the look came late",
    VERB: "one of your commands",
}


class Look(Record):
    """What a look at a cluster has measured."""

    holds: bool  # whether one of its holds still holds
    connections: int | None  # TCP connections into the guest; None: can't be told
    cpu: float | None  # seconds of CPU time that QEMU has used; None: can't be told


def look_interval(limit: int) -> int:
    """Seconds between two looks, for a `maxIdle` in nanoseconds: a sixth, 1 to 15 minutes."""
    return min(max(limit // (6 * 10**9), 60), 900)


def _next_look(used: int, limit: int, now: int) -> int:
    """When to look next: after the interval, or at the end where no third look comes before."""
    interval, end = look_interval(limit), used + seconds_up(limit)
    return end if interval < end - now < 2 * interval else now + interval


def watched_from(state: State, clock: Clock, cpu: float | None = None) -> State:
    """The state of a running VM whose use is looked at from now on, if that is to be."""
    limit, now = budget(state.max_idle), int(clock.now)
    if limit is None:
        return replace(state, idle=None)
    spent = -1 if cpu is None else int(cpu * 1000)
    look = _next_look(now, limit, now)
    idle = Idle(now, now, look, VERB, spent, slept=int(clock.slept))
    return _called_off(replace(state, idle=idle), clock.now)


def after_look(state: State, look: Look, clock: Clock) -> State:
    """The state after a look, with all of the holds that there were since the one before.

    What can't be told counts as use. So does what was in use at the look before and may have ended
    since; and a look that comes late, so that nobody finds it ended who wakes the host to use it.
    """
    limit, before = budget(state.max_idle), state.idle
    assert limit is not None and before is not None
    now = int(clock.now)
    percent = _percent(before, look, clock.now)
    by = _use_seen(state, look, percent, clock)
    used = now if by or before.by in SAMPLED else before.used
    idle = Idle(
        used=used,
        seen=now,
        next=_next_look(used, limit, now),
        by=by,
        cpu=-1 if look.cpu is None else int(look.cpu * 1000),
        connections=-1 if look.connections is None else look.connections,
        percent=-1 if percent is None else percent,
        slept=int(clock.slept),
        warned=before.warned,
    )
    state = replace(state, idle=idle)
    return _called_off(state, clock.now) if by else state


def _called_off(state: State, now: float) -> State:
    """The state of a cluster that is used: an expiry that has begun is off, but at a deadline."""
    deadline = deadline_of(state)
    if deadline is not None and deadline <= now:
        return state
    return replace(state, retry_at=None, ending="")


def _percent(before: Idle, look: Look, now: float) -> int | None:
    """Percent of one CPU that were used since the look before; None: can't be told."""
    if look.cpu is None or before.cpu < 0:
        return None
    spent = look.cpu - before.cpu / 1000
    if spent < 0:  # another QEMU, which somebody has started meanwhile
        return None
    span = max(1.0, now - before.seen)
    return min(round(100 * spent / span), 10**6)


def _use_seen(
    state: State,
    look: Look,
    percent: int | None,
    clock: Clock,
) -> str:
    """By what a look has seen it in use, as a key of USES; empty: by nothing."""
    unknown = look.connections is None or (percent is None and state.idle_cpu > 0)
    seen = {
        HELD: look.holds,
        CONNECTION: look.connections,
        UNMEASURED: unknown,
        CPU: state.idle_cpu and (percent or 0) > state.idle_cpu,
        VERB: state.holds,  # of which one has ended since the look before
        LATE: _is_late(state, clock),
    }
    return next((use for use, is_so in seen.items() if is_so), "")


def _is_late(state: State, clock: Clock) -> bool:
    """Whether a look of now comes an interval late, or after a sleep of the host."""
    limit, idle = budget(state.max_idle), state.idle
    if limit is None or idle is None:
        return False
    if clock.slept > idle.slept + 2:
        return True
    return clock.now - idle.next > look_interval(limit)


def used_by_hand(state: State, now: float) -> State:
    """The state of a cluster to which its user has just given a verb."""
    if state.idle is None:
        return state
    idle = replace(state.idle, used=max(state.idle.used, int(now)))
    if state.retry_at:  # the look that was to be a second try may be far off
        interval = look_interval(budget(state.max_idle) or 0)
        idle = replace(idle, next=min(idle.next, int(now) + interval))
    return _called_off(replace(state, idle=idle), now)


def unused_words(state: State, now: float) -> str:
    """For how long nobody has used it, and of how long: `12m of 30m`."""
    since = now - state.idle.used if state.idle is not None else 0
    return f"{in_words(since)} of {state.max_idle}"


def _warns_of_unused(state: State, now: float) -> bool:
    """Whether to warn that it ends if it stays unused: at the last look before `warn`, once."""
    limit, lead = budget(state.max_idle), budget(state.warn)
    end = unused_end(state)
    if limit is None or lead is None or end is None or state.idle is None:
        return False
    if lead >= limit or state.idle.warned == end or state.retry_at:
        return False
    is_near = end - now <= seconds_up(lead) or state.idle.next >= end
    return is_near and _looks_unused(state, now)


# --- holds
def hold_until(state: State, at_most: int, clock: Clock) -> int | None:
    """How long a hold of now holds: `at_most` nanoseconds, or 0 for one maxRun; within maxTotal.

    None: as long as it runs. Raises YclusterError if nothing is left of maxTotal.
    """
    limits = []
    length = at_most or budget(state.max_run)
    if length is not None:
        limits.append(int(clock.now) + seconds_up(length))
    latest = latest_end(state, clock)
    if latest is not None:
        limits.append(latest)
        if latest <= clock.now:
            why = f"{state.name}: nothing is left of lifetime.maxTotal, {state.max_total}"
            hint = "raise it in the config, and apply that by `ycluster lifetime arm -c DIR`"
            raise YclusterError(why, hint=hint)
    return min(limits, default=None)


def bounded_holds(state: State, clock: Clock) -> State:
    """The state with its holds within limits that have changed: by one maxRun, and by maxTotal.

    Where all of maxTotal has passed they end with a fresh budget: no change ends one at once.
    """
    length, latest = budget(state.max_run), latest_end(state, clock)
    if latest is not None and latest <= clock.now and length is not None:
        latest = _end_of(length, clock)
    holds = []
    for hold in state.holds:
        limits = [] if latest is None else [latest]
        if hold.until is not None:
            limits.append(hold.until)
        elif length is not None:
            limits.append(_end_of(length, clock))
        holds.append(replace(hold, until=min(limits, default=None)))
    return replace(state, holds=tuple(holds))


# --- where a deadline is, and how it moves
def _due_at(state: State, expires_at: int | None, clock: Clock) -> State:
    """The state with a deadline, set by the clock of now; an expiry that has begun is off."""
    return replace(
        state,
        expires_at=expires_at,
        retry_at=None,
        ending="",
        boot_id=clock.boot_id,
        booted_at=round(clock.booted),
    )


def _end_of(length: int, clock: Clock) -> int:
    """When so many nanoseconds from now have passed, rounded up to seconds since the epoch."""
    numerator, denominator = clock.now.as_integer_ratio()  # exact, so that it is never early
    nanoseconds = numerator * 10**9 + length * denominator
    return -(-nanoseconds // (denominator * 10**9))


def latest_end(state: State, clock: Clock) -> int | None:
    """The latest deadline that maxTotal allows, in seconds since the epoch; None: any."""
    most = budget(state.max_total)
    if most is None:
        return None
    return (state.started_at or int(clock.now)) + seconds_up(most)


def anchored(state: State, clock: Clock) -> State:
    """The state of a VM that starts now. Its deadline is set by a fresh budget, counted from now.

    `timers` are kept, as those of before are still to be taken away.
    """
    length = budget(state.max_run)
    expires_at = None if length is None else _end_of(length, clock)
    fresh = replace(
        _due_at(watched_from(state, clock, 0.0), expires_at, clock),
        started_at=int(clock.now),
        warned=None,
        timers=() if state.disarmed else state.timers,
        reaped=None,
        prepared="",
    )
    return bounded_holds(fresh, clock)


def stopped(state: State) -> State:
    """The state of a VM that does not run: no deadline is set. Its timers are yet to be removed."""
    return replace(state, expires_at=None, retry_at=None, ending="", idle=None)


def recounted(state: State, clock: Clock) -> State:
    """The state of a running VM whose budget was changed: its deadline by the new one.

    The budget counts from the start; where that deadline has passed, it is a fresh one, from now.
    Neither is a start: what holds of the VM, and that it was disarmed by hand, stays.
    """
    length = budget(state.max_run)
    if length is None:
        return replace(state, expires_at=None, retry_at=None, ending="", warned=None)
    expires_at = (state.started_at or 0) + seconds_up(length)
    if expires_at <= clock.now:
        expires_at = _end_of(length, clock)
        state = replace(state, reaped=None)
    state = replace(_due_at(state, expires_at, clock), warned=None)
    return bounded_holds(within_total(state, clock), clock)


def within_total(state: State, clock: Clock) -> State:
    """The state of a running VM with its deadline no later than maxTotal allows.

    Where all of that has passed, it is no later than a fresh budget, from now.
    """
    latest, length = latest_end(state, clock), budget(state.max_run)
    if latest is None or length is None or state.expires_at is None:
        return state
    if latest <= clock.now:
        latest = _end_of(length, clock)
    if state.expires_at <= latest:
        return state
    return replace(_due_at(state, latest, clock), warned=None)


def for_one_run(state: State, run_budget: str) -> State:
    """The state for a new run, with a budget of that run alone, or with none: "".

    Raises UsageError past lifetime.maxTotal.
    """
    length, most = budget(run_budget), budget(state.max_total)
    if run_budget and most is not None and (length is None or length > most):
        given = run_budget if length is not None else f"{run_budget}, no budget,"
        why = f"--max-run {given} is more than lifetime.maxTotal, {state.max_total}"
        raise UsageError(why, hint="give less, or raise maxTotal in the config")
    return replace(state, run_budget=run_budget)


def after_expiry(state: State) -> State:
    """The state of a VM that its expiry has paused, as it goes on: by the config's own budget.

    That of one run is over with it, unless there is no other.
    """
    by_config = for_one_run(state, "")
    return by_config if by_config.has_limit else state


def recounted_for_one_run(state: State, run_budget: str, clock: Clock) -> State:
    """The state of a running VM with another budget for this run, counted from its start."""
    changed = recounted(for_one_run(state, run_budget), clock)
    return warned_by_hand(changed, clock.now)


def warned_by_hand(state: State, now: float) -> State:
    """The state with its warning done where that is due: whoever has just set it needs none."""
    if time_of(state, WARNING) <= now:
        return replace(state, warned=state.expires_at)
    return state


class HowFar(Record):
    """Where a deadline is to go; exactly one of the first four fields is set."""

    by: int | None = None  # nanoseconds after the deadline, or after now where that has passed
    from_now: int | None = None  # nanoseconds
    until: str = ""  # HH:MM, or an RFC 3339 time
    moment: int | None = None  # seconds since the epoch
    exact: bool = False  # exactly there, which may be earlier than it was; else never earlier

    def fixed(self, now: float) -> HowFar:
        """The same as a moment, unless it counts from the deadline."""
        if self.until:
            return HowFar(moment=parse_until(self.until, now), exact=self.exact)
        if self.from_now is not None:
            now_up = -int(-now // 1)  # a fraction of a second is given, not taken
            return HowFar(moment=now_up + seconds_up(self.from_now), exact=self.exact)
        return self

    def deadline(self, expires_at: int, now: float) -> int:
        """The deadline that it makes of another; seconds since the epoch."""
        moment = self.fixed(now).moment
        if moment is not None:
            return moment if self.exact else max(expires_at, moment)
        return max(expires_at, int(now)) + seconds_up(self.by or 0)


def moved(state: State, how_far: HowFar, clock: Clock) -> State:
    """The state with its deadline pushed out, or exactly where it is wanted.

    Raises YclusterError if no deadline is set, or past lifetime.maxTotal; UsageError if the new
    deadline is absurd.
    """
    if state.expires_at is None:
        if state.idle is None or state.suspended or how_far.exact:
            raise _no_deadline(state)
        return used_by_hand(state, clock.now)
    expires_at = how_far.deadline(state.expires_at, clock.now)
    if how_far.exact and expires_at <= clock.now:
        hint = f"`ycluster stop --name {state.name}` stops it now"
        raise UsageError(f"{local_time(expires_at)} has passed", hint=hint)
    if expires_at > clock.now + 100 * 365 * 86400:
        hint = f"`ycluster lifetime disarm --name {state.name}` means never"
        raise UsageError("that is more than a hundred years from now", hint=hint)
    _check_cap(state, expires_at, clock)
    state = _due_at(state, expires_at, clock)
    if how_far.exact and state.disarmed:
        state = replace(state, timers=())
    return warned_by_hand(used_by_hand(state, clock.now), clock.now)


def _no_deadline(state: State) -> YclusterError:
    """The error where there is no deadline to move, with what gives the cluster one."""
    if state.suspended:
        hint = f"`ycluster start --name {state.name}` goes on where it was, with a fresh budget"
        return YclusterError(f"{state.name} is suspended, and has no deadline", hint=hint)
    wakes = "resume" if state.reaped and state.reaped.action == "pause" else "start"
    why = f"{state.name}: no deadline is set, so there is none to move{last_expiry(state)}"
    hint = f"`ycluster {wakes} --name {state.name}` gives a fresh budget; "
    hint += "`ycluster lifetime arm -c DIR` applies the lifetime.maxRun of its config"
    return YclusterError(why, hint=hint)


def _check_cap(state: State, expires_at: int, clock: Clock) -> None:
    """Raise where a new deadline would be later than lifetime.maxTotal after the start."""
    cap = latest_end(state, clock)
    if cap is None:
        return
    if expires_at > max(cap, state.expires_at or 0):
        limit = f"{local_time(cap)} (lifetime.maxTotal: {state.max_total} from the start)"
        up_to = f"--until {format_time(cap)} --name {state.name}"
        hint = f"up to there: `ycluster lifetime extend {up_to}`"
        raise YclusterError(f"{state.name}: the deadline can't be later than {limit}", hint=hint)


def tried_again(state: State, end: End, again: int) -> State:
    """The state with the time of a second try, which is a look where it is about disuse."""
    if end.cause == UNUSED and state.idle is not None:
        state = replace(state, idle=replace(state.idle, next=again))
    return replace(state, retry_at=again)


def retry_delay(late: float, least: float = 60.0) -> float:
    """Seconds until an action that failed, or was killed, is tried again.

    Half of its lateness, from `least` to 15 minutes.
    """
    return min(max(late / 2, least), 900.0)


# === 10 timers ====================================================================================
# Timers run `ycluster lifetime reap` at each moment of an agenda, one timer an event: of systemd,
# at(1), or a process of our own, best first. A timer runs a private copy of this program beside the
# state file. A stale timer does no harm, as `reap` decides afresh: so a new one is armed and saved
# before the old one is taken away, and never the other way round.


# The modules that a reap imports when it first needs them. A Python that lacks one is of no use to
# a timer; and a watcher imports them all before it counts as armed.
IMPORTED_LATER = (
    "array",  # by socket.send_fds
    "datetime",
    "hashlib",
    "resource",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "traceback",
)

# What a timer starts. The Python that armed it may be gone by then: one of a version manager, or of
# the system before an upgrade. The watcher takes the launcher's place; a reap reports its failure.
_LAUNCHER = """\
#!/bin/sh
# Written by ycluster: runs its copy by the first Python that is fit for it.
# The copy's SHA-256 is {digest}
folder=${{0%/*}} # a timer gives ".", so that the folder that it looked at is the one that is used
program=$folder/{program}
failed=$folder/{failed}
for python in /usr/bin/python3 {python} python3 /usr/local/bin/python3 /usr/bin/python3.*; do
  "$python" -I -S -c 'import sys, {modules}; sys.exit(sys.version_info < (3, 9))' 2>/dev/null ||
    continue
  case "$*" in
    probe) printf '%s\\n' "$program"; exit ;;
    *"lifetime watch "*) exec "$python" -I -S -c {lean} "$program" "$@" ;;
  esac
  "$python" -I -S "$program" "$@" && exit
  status=$?
  [ ! -e "$program" ] ||
    {{ rm -f "$failed"; echo "its last run failed: exit $status" >"$failed"; }}
  exit $status
done
rm -f "$failed"
echo 'no Python 3.9 or later is left to run it' >"$failed"
exit 127
"""


# How a watcher loads the copy: compiled by a child, as compiling takes 30 MiB, which a process that
# has done it keeps for as long as it runs.
_LEAN = """\
import marshal, os, sys
from importlib.machinery import SourceFileLoader
del sys.argv[0]
__file__ = sys.argv[0]
__loader__ = SourceFileLoader("__main__", __file__)
reader, writer = os.pipe()
if os.fork() == 0:
    with os.fdopen(writer, "wb") as to:
        marshal.dump(compile(__loader__.get_data(__file__), __file__, "exec"), to)
    os._exit(0)
os.close(writer)
with os.fdopen(reader, "rb") as compiled:
    code = marshal.load(compiled)
os.wait()
exec(code)
"""


def load_all(host: Host) -> None:
    """Load all that a reap needs of this program and its Python: both may be gone by then."""
    host.program_source()
    for name in IMPORTED_LATER:
        __import__(name)
    os.close(pidfd_open(os.getpid()))  # which some Pythons do by another module


def _lifetime_words(files: Files, backend: str, verb: Sequence[str]) -> list[str]:
    return ["lifetime", *verb, "--state", str(files.sidecar), "--by", backend]


def timer_argv(files: Files, backend: str, *verb: str) -> list[str]:
    """What runs the private copy, through its launcher, by absolute paths."""
    return ["/bin/sh", str(files.launcher), *_lifetime_words(files, backend, verb)]


def timer_script(files: Files, backend: str, *verb: str) -> tuple[str, str]:
    """What a timer runs some day, as shell text: a guard, and the command that it lets run.

    The cacheDir may be removed by then, and in /tmp another user may have made it again; or others
    may write to it by now. So the shell goes there, sees that the folder is its user's own and
    theirs alone, as `check_folder` does, and runs what lies in that very one.
    """
    own = "[ -O . ]"
    trusted = sorted(_trusted_owners())
    if len(trusted) > 1:
        owners = " -o ".join(f"-prune -user {uid}" for uid in trusted)
        own = f"find . {owners} | grep -q ."
    # Without `find` this one lets it run: then the deadline counts for more.
    shut = "! find . -prune -perm -020 -o -prune -perm -002 | grep -q ."
    guard = f"cd -P {shlex.quote(str(files.cache_dir))} && {own} && {shut}"
    launcher = ["/bin/sh", f"./{files.launcher.name}"]
    return guard, shlex.join([*launcher, *_lifetime_words(files, backend, verb)])


def install_program(host: Host, files: Files) -> None:
    """Keep a copy of this program, and its launcher, beside the state file.

    So no reap is lost when the program that armed it, or its Python, is moved, upgraded or deleted.
    """
    launcher = _LAUNCHER.format(
        digest=sha256_of(host.program_source()),
        python=shlex.quote(host.interpreter()),
        lean=shlex.quote(_LEAN),
        modules=", ".join(IMPORTED_LATER),
        program=shlex.quote(files.program.name),
        failed=shlex.quote(files.timer_failed.name),
    )
    for path, content in (
        (files.program, host.program_source()),
        (files.launcher, launcher.encode()),
    ):
        write_file(path, content)


def program_trouble(host: Host, state: State) -> str:
    """Why a timer could not run the private copy, or has failed to; empty if it is fit to run.

    A reap that has armed its own retry has failed to act, and not to run.
    """
    files = state.files
    if not _is_whole(files):
        return "what it would run is not there, or not whole"
    if files.timer_failed.exists() and state.retry_at is None:
        return _text_of(files.timer_failed).strip() or "its last run failed"
    # A launcher that is cut off may end well, and run nothing.
    runs = host.attempt(["/bin/sh", str(files.launcher), "probe"], timeout=60) or ""
    if runs.rstrip("\n") != str(files.program):
        return "no Python 3.9 or later can run it"
    return ""


def _is_whole(files: Files) -> bool:
    """Whether the private copy is there, and as it was when its launcher was written."""
    try:
        digest = sha256_of(read_own(files.program, PROGRAM_SIZE))
        return digest.encode() in read_own(files.launcher)
    except OSError:
        return False


class Timer:
    """A timer backend. `arm` returns an id; `armed` and `cancel` get it in `timer.id`."""

    name = ""
    launches = True  # whether it starts the program only when it fires
    stands_watch = False  # whether it runs beside the VM, and outlives its files
    survives: Mapping[str, str] = {}  # logout, suspend, reboot and a clock that is set, in words

    def check(self, host: Host) -> None:
        """Raise PrerequisiteError if it is not available, or would not outlive the VM."""

    def arm(
        self,
        host: Host,
        files: Files,
        moment: int,
    ) -> str:
        """Have a reap run at a moment, in seconds since the epoch; at once if that has passed."""
        raise NotImplementedError

    def armed(
        self,
        host: Host,
        files: Files,
        timer: ArmedTimer,
    ) -> bool:
        """Whether what was armed is still there, and will run."""
        raise NotImplementedError

    def cancel(
        self,
        host: Host,
        files: Files,
        timer: ArmedTimer,
    ) -> None:
        """Take away what was armed, where that is still there."""

    def jobs(self, host: Host) -> list[str]:
        """The ids of all that it has armed for this user."""
        return []

    def job_text(self, host: Host, ident: str) -> str:
        """The backend's own description of what it has armed, the command in it."""
        return ""

    def removal(self, ids: Sequence[str]) -> str:
        """The shell command that takes armed timers away."""
        return ""


def unit_name(files: Files, moment: int, nonce: str) -> str:
    """A transient unit's name.

    With a hash of the place, as systemd takes few characters, and the sibling's names may hold
    any. With the moment and a nonce, as no name can be armed while its own unit runs.
    """
    return f"{_unit_stem(files)}-{moment}-{nonce}"


def state_of_job(text: str) -> str:
    """The state file that a timer of this description is for; empty where that can't be told.

    As shlex.quote writes it. A path with a quote in it is not read: nobody judges its timer.
    """
    found = re.search(r"""--state (?:'([^'"\\]+)'|([^\s'"\\]+)) --by """, text)
    return "" if found is None else found[1] or found[2]


def _unit_stem(files: Files) -> str:
    """What the names of all units begin with that are for a cluster in this place."""
    place = sha256_of(os.fsencode(files.sidecar))[:8]
    name = re.sub(r"[^A-Za-z0-9:_.-]", "-", files.name)[:100]
    return f"ycluster-reap-{name}-{place}"


class SystemdTimer(Timer):
    """A transient timer of the user's systemd, on calendar time: it catches up after a suspend."""

    name = "systemd"
    survives: Mapping[str, str] = {
        "logout": "yes: lingering is on",
        "suspend": "yes: it fires when the host wakes",
        "reboot": "not needed: the VM ends with the host",
        "clock": "yes: it fires when the clock is set, too",
    }

    def check(self, host: Host) -> None:
        """Raise unless a user manager answers that stays when the user logs out."""
        if not host.which("systemd-run") or not host.which("systemctl"):
            raise PrerequisiteError("systemd-run is not installed")
        answer = host.attempt(["systemctl", "--user", "show", "--property=Version"], timeout=30)
        if answer is None:
            raise PrerequisiteError("no systemd user manager answers")
        if not self._lingers(host):
            why = (
                f"{host.user()} does not linger: its systemd ends at the last logout, a VM does not"
            )
            raise PrerequisiteError(why, hint="loginctl enable-linger")

    def _lingers(self, host: Host) -> bool:
        if Path("/var/lib/systemd/linger", host.user()).exists():
            return True
        argv = ["loginctl", "show-user", str(os.getuid()), "--property=Linger", "--value"]
        answer = host.attempt(argv, timeout=30) or ""
        return answer.strip() == "yes"

    def arm(
        self,
        host: Host,
        files: Files,
        moment: int,
    ) -> str:
        """Make a transient timer, and see that it has a time to fire."""
        script = " && exec ".join(timer_script(files, self.name, "reap"))
        if re.search(r"[$;]", script):
            why = "systemd misreads a path with $ or ; in it, at its next daemon-reload or before"
            raise YclusterError(why)
        command = ["/bin/sh", "-c", script]
        unit = unit_name(files, moment, os.urandom(2).hex())
        host.run(self._argv(host, files, unit, moment, command), timeout=30)
        if not self._has_a_time(host, unit):
            self._stop(host, unit)
            raise YclusterError(f"systemd took {unit}.timer and has no time for it to fire")
        return unit

    def _argv(
        self,
        host: Host,
        files: Files,
        unit: str,
        moment: int,
        command: Sequence[str],
    ) -> list[str]:
        # A calendar time that has passed by the time systemd reads it never fires.
        ahead = max(moment, int(host.now()) + 3)
        calendar = utc_text(ahead, "%Y-%m-%d %H:%M:%S UTC")
        child_env = host.child_env()
        environment = [f"--setenv={name}={value}" for name, value in child_env.items()]
        return [
            "systemd-run", "--user", "--quiet", "--collect",
            f"--unit={unit}", f"--description=expiry of the ycluster cluster {files.name}",
            f"--on-calendar={calendar}", "--on-clock-change",
            "--timer-property=AccuracySec=1s", "--timer-property=RemainAfterElapse=no",
            "--property=KillMode=process",  # what a reap arms must outlive its service
            *environment, *command,
        ]  # fmt: skip

    def _has_a_time(self, host: Host, unit: str) -> bool:
        # A fired timer stays loaded for clock changes, without a next time.
        wanted = ["--property=NextElapseUSecRealtime", "--value"]
        answer = host.attempt(["systemctl", "--user", "show", f"{unit}.timer", *wanted], timeout=30)
        return (answer or "").strip() not in ("", "n/a")

    def armed(
        self,
        host: Host,
        files: Files,
        timer: ArmedTimer,
    ) -> bool:
        """Whether the unit is for the cluster where it now is, and has a time to fire."""
        is_ours = timer.id.startswith(f"{_unit_stem(files)}-")
        return is_ours and self._has_a_time(host, timer.id)

    def cancel(
        self,
        host: Host,
        files: Files,
        timer: ArmedTimer,
    ) -> None:
        """Stop the unit, unless it is of the cluster of which this one is a copy."""
        if not timer.id.startswith(f"{_unit_stem(files)}-"):  # of before its cacheDir was moved
            other = state_of_job(self.job_text(host, timer.id))
            if other and not is_gone(Path(other)):
                return
        self._stop(host, timer.id)

    def _stop(self, host: Host, unit: str) -> None:
        # That it may be missing (exit 5) does not matter.
        host.run(["systemctl", "--user", "stop", f"{unit}.timer"], timeout=30, check=False)

    def jobs(self, host: Host) -> list[str]:
        """The user's timer units with a name of ours."""
        options = ["--type=timer", "--plain", "--no-legend"]
        argv = ["systemctl", "--user", "list-units", *options, "ycluster-reap-*"]
        listing = host.attempt(argv, timeout=30) or ""
        units = [line.split()[0] for line in listing.splitlines() if line.strip()]
        return [unit.rpartition(".timer")[0] for unit in units]

    def job_text(self, host: Host, ident: str) -> str:
        """The properties of the unit's service."""
        return host.attempt(["systemctl", "--user", "show", ident], timeout=30) or ""

    def removal(self, ids: Sequence[str]) -> str:
        """Stop the units."""
        units = [f"{unit}.timer" for unit in ids]
        return shlex.join(["systemctl", "--user", "stop", *units])


class AtTimer(Timer):
    """at(1). It drops seconds: its job comes up to a minute early, and waits for the rest."""

    name = "at"
    survives: Mapping[str, str] = {
        "logout": "yes",
        "suspend": "yes: it fires when the host wakes",
        "reboot": "yes",
        "clock": "set forward: yes; set back: it fires that much later, "
        "unless a ycluster command runs before",
    }
    QUEUE = "c"  # the later the letter, the lower the priority
    PIDFILE = Path("/run/atd.pid")

    @property
    def daemon_runs(self) -> bool:
        """Whether the atd that serves our spool runs, and is not stopped.

        By its pidfile at(1) finds it, too: with none, at warns, exits 0 and never runs the job. An
        atd of another mount namespace has another spool, and its pidfile is not seen from here.
        """
        name, state = process_stat(self.PIDFILE)
        return name == "atd" and state not in STOPPED

    def check(self, host: Host) -> None:
        """Raise unless at is installed, its daemon runs and the user may use it."""
        host.need({"at": "at"})
        if not self.daemon_runs:
            raise PrerequisiteError("atd is not running", hint="sudo service atd start")
        if host.attempt(["atq"], timeout=30) is None:
            raise PrerequisiteError("at does not let this user in (at.allow, at.deny)")

    def arm(
        self,
        host: Host,
        files: Files,
        moment: int,
    ) -> str:
        """Make a job, with a minimal environment, as the job file holds all of it."""
        guard, command = timer_script(files, self.name, "reap", "--wait", f"{AT_EARLY:.0f}s")
        log = shlex.quote(f"./{files.log.name}")
        # A log that can't be written must keep no reap from running; a FIFO would be waited for.
        job = (
            f"umask 077\n{guard} || exit\nlog={log}\n"
            '[ -L "$log" ] || { [ -e "$log" ] && [ ! -f "$log" ]; } ||\n'
            f'{{ true >>"$log" && exec {command} >>"$log" 2>&1; }}\n'
            f"exec {command} >/dev/null 2>&1\n"
        )
        minute = utc_text(moment, "%Y%m%d%H%M")
        env = host.child_env({"TZ": "UTC0", "SHELL": "/bin/sh"})
        argv = ["at", "-q", self.QUEUE, "-t", minute]
        answer = host.run(argv, timeout=30, stdin=job, cwd=Path("/"), env=env)
        found = re.search(r"^job ([0-9]+) at ", answer.stderr, re.MULTILINE)
        if found is None:
            raise YclusterError(f"at did not say which job it made: {answer.stderr.strip()}")
        return found.group(1)

    def armed(
        self,
        host: Host,
        files: Files,
        timer: ArmedTimer,
    ) -> bool:
        """Whether the job is queued (or runs), and its daemon runs."""
        if not self.daemon_runs:
            return False
        # At the moment when atd renames a job that it starts, at misses it: look twice.
        return self._is_ours(host, files, timer.id) or self._is_ours(host, files, timer.id)

    def _is_ours(
        self,
        host: Host,
        files: Files,
        job: str,
    ) -> bool:
        """Whether there is such a job, and it is this cluster's.

        at gives a number again, in a new spool for one. Of a job that is gone it shows nothing.
        """
        path = shlex.quote(str(files.sidecar))
        return f"--state {path} " in self.job_text(host, job)

    def cancel(
        self,
        host: Host,
        files: Files,
        timer: ArmedTimer,
    ) -> None:
        """Remove the job, unless its number is another's by now."""
        if self._is_ours(host, files, timer.id):
            host.run(["atrm", timer.id], timeout=30, check=False)

    def jobs(self, host: Host) -> list[str]:
        """The user's jobs in our queue."""
        listing = host.attempt(["atq", "-q", self.QUEUE], timeout=30) or ""
        lines = [line.split() for line in listing.splitlines() if line.strip()]
        if os.geteuid() == 0:  # Root is shown every user's; the last word of a line is whose it is.
            lines = [line for line in lines if line[-1] == host.user()]
        return [line[0] for line in lines]

    def job_text(self, host: Host, ident: str) -> str:
        """The job's shell script."""
        return host.attempt(["at", "-c", ident], timeout=30) or ""

    def removal(self, ids: Sequence[str]) -> str:
        """Remove the jobs."""
        return shlex.join(["atrm", *ids])


class WatcherTimer(Timer):
    """A detached process of our own (`lifetime watch`): it ends with the VM, and needs nothing.

    It stands beside every VM, whichever timer is armed: see `Watcher` in section 19.
    """

    name = "watcher"
    launches = False
    stands_watch = True
    survives: Mapping[str, str] = {
        "logout": "like the VM: both end, or both keep running",
        "suspend": "yes: it looks at the clock every few seconds",
        "reboot": "not needed: the VM ends with the host",
        "clock": "yes: it goes by the time since boot",
    }

    def arm(
        self,
        host: Host,
        files: Files,
        moment: int,
    ) -> str:
        """Start the watcher, unless one runs: it reads its moments from the state file.

        One that is stopped (SIGSTOP), looks where the files have been moved from, or runs the code
        of before an upgrade, makes room for it.
        """
        holder = lock_holder(files.watch_lock)
        if holder == os.getpid():
            return "watch"
        if holder is not None and not watched(holder):
            why = f"{files.watch_lock} is locked by a process that is not a watcher"
            raise YclusterError(why, hint=f"`ps -fp {holder}` names it")
        if holder is not None and not (_is_fit(holder, files) and _is_installed(host, files)):
            self._end(host, files, holder)
        if flock_held(files.watch_lock):
            return "watch"
        install_program(host, files)
        started = host.spawn(timer_argv(files, self.name, "watch"), files.log)

        def is_settled() -> bool:
            return flock_held(files.watch_lock) or started.poll() is not None

        host.wait_for(is_settled, timeout=WATCH_START, interval=0.02)
        if not flock_held(files.watch_lock):
            raise TimedOut(f"the watcher did not come up; see {files.log}")
        return "watch"

    def _end(
        self,
        host: Host,
        files: Files,
        pid: int,
    ) -> None:
        """End a watcher. It has nothing to clean up, and its lock ends with it."""
        signal_holder(pid, files.watch_lock, signal.SIGKILL)
        host.wait_for(lambda: not flock_held(files.watch_lock), timeout=10, interval=0.02)

    def armed(
        self,
        host: Host,
        files: Files,
        timer: ArmedTimer,
    ) -> bool:
        """Whether a watcher of this place holds its lock, and is not stopped."""
        if not flock_held(files.watch_lock):
            return False
        holder = lock_holder(files.watch_lock)  # None where the kernel's list has it not
        return holder is None or holder == os.getpid() or _is_fit(holder, files)

    def cancel(
        self,
        host: Host,
        files: Files,
        timer: ArmedTimer,
    ) -> None:
        """Nothing to do: it reads the state file at every look, and ends when not named there."""


def _is_fit(pid: int, files: Files) -> bool:
    """Whether a process watches the cluster in its place, and is not stopped."""
    its_state = process_stat(pid)[1]
    return its_state not in STOPPED and watched(pid) == str(files.sidecar)


def watched(pid: int) -> str:
    """The state file that a process watches, by its argv; empty where it is no watcher."""
    words = command_line(pid)
    if words[-3:] != ["--by", WatcherTimer.name, ""] or "--state" not in words:
        return ""
    return words[words.index("--state") + 1]


def _is_installed(host: Host, files: Files) -> bool:
    """Whether the private copy is this very program."""
    return holds(files.program, host.program_source(), 0o600)


TIMERS: tuple[Timer, ...] = (SystemdTimer(), AtTimer(), WatcherTimer())  # best first


def chosen_timer(host: Host) -> str | None:
    """The backend that YCLUSTER_TIMER names; empty for `auto`, the best; None where it is not set.

    Raises UsageError for what is no backend.
    """
    wanted = host.environ.get("YCLUSTER_TIMER", "")
    if wanted == "":
        return None
    if wanted == "auto":
        return ""
    if timer_named(wanted) is None:
        names = ", ".join(timer.name for timer in TIMERS)
        raise UsageError(f"YCLUSTER_TIMER={wanted}: it is none of {names}, auto")
    return wanted


def with_choice(host: Host, state: State) -> State:
    """The state with what YCLUSTER_TIMER chooses, for timers and commands that do not set it."""
    chosen = chosen_timer(host)
    return state if chosen is None else replace(state, timer_choice=chosen)


def timers_for(host: Host, state: State) -> tuple[Timer, ...]:
    """The backends to try, best first; only the one that YCLUSTER_TIMER names, where it is set.

    What an earlier command has chosen comes before the others, and does not exclude them: it may
    be gone by now, and nobody may be there to choose again.
    """
    chosen = chosen_timer(host)
    if chosen:
        return tuple(timer for timer in TIMERS if timer.name == chosen)
    kept = state.timer_choice if chosen is None else ""
    return tuple(sorted(TIMERS, key=lambda timer: timer.name != kept))  # a stable sort


def timer_named(name: str) -> Timer | None:
    """The backend of a name; None where there is none (`none`, or one of another version's)."""
    return next((timer for timer in TIMERS if timer.name == name), None)


def is_armed(host: Host, state: State) -> bool:
    """Whether the timer that the state file names for the deadline really is there, and can run."""
    return not timer_trouble(host, state)


def timer_trouble(host: Host, state: State) -> str:
    """What is wrong with the timers that may end it, in words; empty if they will run."""
    if state.timer is None:
        return "none is armed"
    armed = {timer.event: timer for timer in state.timers}
    ends = {moment.event for moment in agenda(state)}.intersection(ENDS)
    for event in ends:
        if event not in armed:
            return f"none is armed for the {event}"
        if not _is_there(host, state, armed[event]):
            return f"{armed[event].backend} has it no longer"
    return _trouble_of_program(host, state, [armed[event] for event in ends])


def _is_there(host: Host, state: State, timer: ArmedTimer) -> bool:
    backend = timer_named(timer.backend)
    return backend is not None and backend.armed(host, state.files, timer)


def _trouble_of_program(host: Host, state: State, timers: Sequence[ArmedTimer]) -> str:
    """What is wrong with what timers run, which is asked once for all; empty where nothing is."""
    backends = [timer_named(timer.backend) for timer in timers]
    if any(backend is not None and backend.launches for backend in backends):
        return program_trouble(host, state)
    return ""


def arm_timers(
    host: Host,
    state: State,
    *,
    renew: bool = False,
) -> State:
    """Have a reap run at each moment of the agenda, and save by which timers. Under the lock.

    Those that are armed already are kept, unless `renew` says otherwise: one of them may have fired
    and run this very program, or a better backend may be there by now. Raises PrerequisiteError
    where no backend takes the deadline, which is saved all the same. What is disarmed stays so.
    """
    now = host.now()
    moments = []
    for moment in agenda(state):
        if moment.event in ENDS or moment.at > now:
            moments.append(moment)
    if not moments:
        return swap_timers(host, state, state.timers if state.disarmed else ())
    backends = timers_for(host, state)
    _stand_watch(host, state)
    kept = () if renew else _fit_timers(host, state, moments, backends)
    if len(kept) == len(moments):
        return swap_timers(host, state, kept)
    install_program(host, state.files)
    remove(state.files.timer_failed)  # it is about a timer of before
    refused: list[str] = []
    for backend in backends:
        try:
            backend.check(host)
            armed = _arm_each(host, state, backend, moments, kept)
        except (YclusterError, OSError) as error:
            if _is_unexpected(host, state, backend, error):
                host.output.warn(f"timer {backend.name}: {error}")
            refused.append(f"{backend.name}: {error}")
            continue
        return swap_timers(host, state, armed)
    left = _timers_left(host, state, moments)
    save_state(replace(state, timers=left))
    raise _not_armed(state, left, "; ".join(refused))


def _timers_left(host: Host, state: State, moments: Sequence[Moment]) -> tuple[ArmedTimer, ...]:
    """Those timers of before that still act: each fires by its moment, and then decides afresh."""
    latest = {moment.event: moment.at for moment in moments}
    return tuple(
        timer
        for timer in state.timers
        if host.now() < timer.deadline <= latest.get(timer.event, 0)
        and _is_there(host, state, timer)
    )


def _not_armed(state: State, left: Sequence[ArmedTimer], refused: str) -> PrerequisiteError:
    """The error where no backend takes the deadline; `left`: the timers that act all the same."""
    hint = "without YCLUSTER_TIMER any timer will do"
    acting = [timer.backend for timer in left if timer.event in ENDS]
    if acting:
        why = f"the timer of before, {acting[0]}, stays"
    else:
        why = "so nothing would act on its deadline"
        hint += "; a cluster that runs already keeps its deadline\n"
        hint += "by `ycluster lifetime reap --all` from a scheduler of your own, such as cron"
    message = f"{state.name}: no timer can be armed, {why}"
    return PrerequisiteError(f"{message} ({refused})", hint=hint)


def is_watched(host: Host, state: State) -> bool:
    """Whether a watcher runs beside the VM; True where there is no such timer backend."""
    beside = ArmedTimer("watcher", "watch", 0)
    watchers = [backend for backend in TIMERS if backend.stands_watch]
    return all(backend.armed(host, state.files, beside) for backend in watchers)


def _stand_watch(host: Host, state: State) -> None:
    """See that a watcher runs beside the VM: timers outlive a logout, and it outlives the files."""
    for backend in TIMERS:
        if backend.stands_watch and not (
            is_watched(host, state) and _is_installed(host, state.files)
        ):
            try:
                save_state(state)  # it reads its deadline from there
                backend.arm(host, state.files, 0)
            except (YclusterError, OSError) as error:
                host.output.warn(f"{state.name}: no watcher beside it: {error}")


def _is_unexpected(
    host: Host,
    state: State,
    backend: Timer,
    error: Exception,
) -> bool:
    """Whether the failure of a backend is news: it was chosen before, or it lacks nothing."""
    was_chosen = backend.name == state.timer_choice and chosen_timer(host) is None
    return was_chosen or not isinstance(error, PrerequisiteError)


def _fit_timers(
    host: Host,
    state: State,
    moments: Sequence[Moment],
    backends: Sequence[Timer],
) -> tuple[ArmedTimer, ...]:
    """The timers of the state that are for one of the moments, of a backend, and really armed."""
    wanted = [(moment.event, int(moment.at)) for moment in moments]
    fit = tuple(
        timer
        for timer in state.timers
        if (timer.event, timer.deadline) in wanted
        and timer_named(timer.backend) in backends
        and _is_there(host, state, timer)
    )
    return () if _trouble_of_program(host, state, fit) else fit


def _arm_each(
    host: Host,
    state: State,
    backend: Timer,
    moments: Sequence[Moment],
    kept: Sequence[ArmedTimer],
) -> tuple[ArmedTimer, ...]:
    """A timer of the backend for each moment; those that are `kept` stay as they are.

    A failure for a warning, or for a look beside a deadline, costs the deadline nothing.
    """
    first, *others = sorted(
        moments, key=lambda moment: (DEADLINE, LOOK, WARNING).index(moment.event)
    )
    by_event = {timer.event: timer for timer in kept if timer.backend == backend.name}
    armed: list[ArmedTimer] = []
    for moment in (first, *others):
        if moment.event in by_event:
            armed.append(by_event[moment.event])
            continue
        at = int(moment.at)
        try:
            ident = backend.arm(host, state.files, at)
        except (YclusterError, OSError) as error:
            if moment is first:
                raise
            host.output.warn(f"timer {backend.name}: no {moment.event}: {error}")
            continue
        armed.append(ArmedTimer(backend.name, ident, at, moment.event))
        if moment.event == DEADLINE and not state.holds:  # which has one after the other
            log_event(host, state, "armed", by=backend.name, deadline=format_time(at))
    return tuple(armed)


def swap_timers(host: Host, state: State, timers: tuple[ArmedTimer, ...]) -> State:
    """Save the state with other timers, and only then take those away that are not among them."""
    saved = save_state(replace(state, timers=timers))
    gone = tuple(timer for timer in state.timers if timer not in timers)
    cancel_timers(host, replace(state, timers=gone))
    return saved


def cancel_timers(host: Host, state: State) -> None:
    """Take a state's timers away, best effort: one that is left over does no harm."""
    for timer in state.timers:
        backend = timer_named(timer.backend)
        if backend is None:
            continue
        with contextlib.suppress(YclusterError, OSError):  # reap decides afresh when it fires
            backend.cancel(host, state.files, timer)


# === 11 gcloud flags ==============================================================================
# A cloud appliance is deleted by Compute Engine itself, by flags that its creation is given. Here
# is what those flags are, what may still hurt, and what an instance's own JSON shows. Pure: gcloud
# is run in section 19. Compute Engine counts from each start, and needs neither host nor timer.


def gcp_flags(max_run: str, where: str = "lifetime.maxRun") -> list[str]:
    """Flags of `gcloud compute instances create`; none without a budget.

    A fraction of a second is rounded up. Raises ConfigError outside Compute Engine's bounds, 30 s
    to 120 days, which gcloud does not check; `where` names the budget in it.
    """
    nanoseconds = budget(max_run)
    if nanoseconds is None:
        return []
    seconds = seconds_up(nanoseconds)
    if not GCP_MIN_SECONDS <= seconds <= GCP_MAX_SECONDS:
        why = f"{where} {max_run} is {seconds} s; Compute Engine takes 30 s to 120 days (2880h)"
        hint = "choose a budget within them; gcloud itself would let it through"
        raise ConfigError(why, hint=hint)
    return [f"--max-run-duration={seconds}s", "--instance-termination-action=DELETE"]


def gcp_warnings(config: Config, on_expiry: object) -> dict[str, str]:
    """What may still hurt, by the word that `--quiet` takes once it is settled.

    `on_expiry` is what the file has under lifetime.onExpiry, None where it has nothing.
    """
    if budget(config.lifetime.max_run) is None:
        return {"budget": "lifetime.maxRun is not set: NOTHING will delete the instance"}
    restart = "a restart after a host error begins a new budget, "
    restart += "unless you add --no-restart-on-failure"
    warnings = {"restart": restart}
    if on_expiry is None:
        local = f"is not set, which means {config.lifetime.on_expiry} on this host"
        warnings["onExpiry"] = f"lifetime.onExpiry {local}; the cloud deletes the instance"
    elif on_expiry != "teardown":
        text = f"lifetime.onExpiry: {on_expiry} is ignored in the cloud, the instance is deleted"
        warnings["onExpiry"] = text
    if budget(config.lifetime.max_idle) is not None:
        text = "lifetime.maxIdle is not kept in the cloud: an instance that nobody uses runs on"
        warnings["maxIdle"] = text
    if isinstance(config, QemuConfig) and config.data_disk:
        text = "a data disk is deleted with the instance, unless its --disk has auto-delete=no"
        warnings["dataDisk"] = text
    return warnings


def gcp_lifetime(text: str | bytes, now: float) -> dict[str, Any]:
    """What `gcp-status` shows of the one instance in gcloud's JSON.

    Raises ValueError and its like where that is something else.
    """
    instance = _the_instance(text)
    plan = instance["scheduling"]
    limit = _gcp_limit(plan)
    until = plan.get("terminationTime")
    started = instance.get("lastStartTimestamp")
    expires_at = _gcp_deadline(instance, limit)
    return {
        "name": instance["name"],
        "zone": instance.get("zone", "").rpartition("/")[2],  # of a URL
        "state": instance["status"].lower(),
        "maxRun": format_duration(limit) if limit is not None else "",
        "terminationTime": until or "",
        "onExpiry": plan.get("instanceTerminationAction", "STOP").lower(),
        "startedAt": _encode_time(parse_time(started)) if started else "",
        "expiresAt": _encode_time(expires_at),
        "remainingSeconds": None if expires_at is None else int(expires_at - now),
    }


def _the_instance(text: str | bytes) -> dict[str, Any]:
    """The instance that `describe` prints; `list` prints an array, of one."""
    found = json.loads(text)
    if isinstance(found, list):
        [found] = found
    instance: dict[str, Any] = found
    kind = instance.get("kind", "compute#instance")
    if kind != "compute#instance":
        raise ValueError(f"it is a {kind}")
    return instance


def _gcp_limit(plan: Mapping[str, Any]) -> int | None:
    """The instance's maxRunDuration in nanoseconds; None where it has none."""
    limit = plan.get("maxRunDuration")
    if not limit:
        return None
    seconds, rest = int(limit["seconds"]), int(limit.get("nanos", 0))
    return seconds * 10**9 + rest


def _gcp_deadline(instance: Mapping[str, Any], limit: int | None) -> int | None:
    """When it is deleted, in seconds since the epoch; None while no deadline is set."""
    if instance["status"] != "RUNNING":
        return None
    # Compute Engine's own reckoning goes first: it counts from the last entry into RUNNING, which
    # a resume is, too.
    reckoned = instance.get("resourceStatus", {}).get("scheduling", {}).get("terminationTimestamp")
    known = reckoned or instance["scheduling"].get("terminationTime")
    if known:
        return parse_time(known)
    if limit is None:
        return None
    return parse_time(instance["lastStartTimestamp"]) + seconds_up(limit)


# === 12 QMP =======================================================================================
# The client of QEMU's monitor (docs/interop/qmp-spec), which serves one client at a time. A command
# gets its answer, matched by id, or a QmpError. Who answers is not trusted: an exchange has one
# deadline, however much arrives until then, a line has a bound, and an answer a shape.

QMP_LINE = 1 << 20  # bytes in a message at most; the longest that we ask for has some KiB
QMP_WORDS = 300  # characters of an error that are shown


class QmpError(YclusterError):
    """QEMU's monitor refused a command, gave no answer in time, or hung up."""


class Qmp:
    """A connection to QEMU's monitor."""

    def __init__(self, sock: Any, monotonic: Callable[[], float]) -> None:
        self.sock = sock
        self.monotonic = monotonic
        self.buffer = b""  # what has been read beyond the last message
        self.serial = 0  # the id of the last command

    @classmethod
    @contextlib.contextmanager
    def connect(
        cls,
        path: Path,
        monotonic: Callable[[], float],
        *,
        timeout: float,
    ) -> Iterator[Qmp]:
        """Connect and negotiate, all in `timeout` seconds. Raises QmpError.

        The directory is reached by a descriptor, as a socket's path is 107 bytes at most.
        """
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            qmp = cls(sock, monotonic)
            until = monotonic() + timeout
            try:
                sock.settimeout(timeout)
                with descriptor(os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)) as directory:
                    sock.connect(f"/proc/self/fd/{directory}/{path.name}")
                qmp.greet(until - monotonic())
            except (OSError, YclusterError) as error:
                why = f"{path}: QEMU's monitor does not answer: {error}"
                raise QmpError(why) from None
            yield qmp

    def greet(self, timeout: float) -> None:
        """Take the greeting, and leave the mode in which only this is understood."""
        until = self.monotonic() + timeout
        if "QMP" not in self._message(until):
            raise QmpError("no QMP greeting")
        self.execute("qmp_capabilities", timeout=until - self.monotonic())

    def execute(
        self,
        command: str,
        arguments: Mapping[str, Any] = {},
        *,
        timeout: float = 5.0,
        fd: int | None = None,
    ) -> Any:
        """What a command returns. QmpError where it is refused, or after `timeout` seconds.

        QEMU gets a copy of the descriptor `fd` with it.
        """
        self.serial += 1
        request = {"execute": command, "id": self.serial}
        if arguments:
            request["arguments"] = arguments
        until = self.monotonic() + timeout
        try:
            self.sock.settimeout(max(0.001, timeout))
            line = json.dumps(request).encode() + b"\n"
            if fd is None:
                self.sock.sendall(line)
            else:
                _send_with_descriptor(self.sock, line, fd)
        except OSError as error:
            raise QmpError(f"{command}: {error}") from None
        message = self._message(until)
        while message.get("id") != self.serial:  # an event, or the answer to what was given up
            message = self._message(until)
        if "error" in message:
            why = message["error"]
            if isinstance(why, dict):
                why = why.get("desc", why)
            raise QmpError(f"{command}: {str(why)[:QMP_WORDS]}")
        if "return" not in message:
            raise QmpError(f"{command}: an answer without what it returns")
        return message["return"]

    def give(self, name: str, fd: int) -> None:
        """Let QEMU have a copy of a descriptor, for a `fd:NAME` of a migration."""
        self.execute("getfd", {"fdname": name}, fd=fd)

    def _message(self, until: float) -> dict[str, Any]:
        """The next message. QmpError if a line is not a message, or does not come in time."""
        line = self._line(until)
        try:
            # As floats, which take no longer for a million digits; ours are only compared.
            message = json.loads(line, parse_int=float)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            raise QmpError(f"not a QMP message: {line[:80]!r}")
        return message

    def _line(self, until: float) -> bytes:
        """The next line. QmpError if it is too long, or does not come in time."""
        chunks = [self.buffer]
        size = len(self.buffer)
        while b"\n" not in chunks[-1]:
            if size > QMP_LINE:
                raise QmpError(f"a message longer than {QMP_LINE} bytes")
            chunks.append(self._receive(until))
            size += len(chunks[-1])
        if self.monotonic() > until:  # events without end must not hold the deadline up
            raise QmpError("no answer in time")
        line, self.buffer = b"".join(chunks).split(b"\n", 1)
        return line

    def _receive(self, until: float) -> bytes:
        left = until - self.monotonic()
        if left <= 0:  # a line without end must not, either
            raise QmpError("no answer in time")
        try:
            self.sock.settimeout(left)
            chunk: bytes = self.sock.recv(65536)
        except OSError as error:
            if not error.errno:  # the socket's own timeout
                raise QmpError("no answer in time") from None
            raise QmpError(f"connection lost: {error.strerror}") from None
        if not chunk:
            raise QmpError("QEMU closed the connection")
        return chunk


def _send_with_descriptor(sock: Any, line: bytes, fd: int) -> None:
    import socket

    socket.send_fds(sock, [line], [fd])


# === 13 VM process ================================================================================
# Is a cluster's VM running, under which pid, is it really ours; and how it is paused and stopped.
# A pid alone proves nothing. A process is ours if QEMU's argv names our pidfile, or it has the VM
# lock open, as QEMU has as long as it lives: see `is_qemu_of`. Signals go to a pidfd, which can't
# come to mean another process.


class Vm(Record):
    """A running QEMU that is known to be ours. Whoever has it closes `pidfd`."""

    pid: int
    pidfd: int


@contextlib.contextmanager
def find_vm(host: Host, files: Files) -> Iterator[Vm | None]:
    """The cluster's QEMU, or None when it doesn't run.

    Raises YclusterError while QEMU's lock is held and no QEMU can be seen (it may be another
    container's): "not seen" is not "not running", and a disk must not be pulled from under a VM.
    """

    def look() -> Vm | str | None:
        vm = _look_for_vm(files, host.qemus)
        return vm or (None if flock_held(files.vm_lock) else "ended")

    found = host.wait_for(look, timeout=5)  # QEMU may be starting or ending right now
    if found is None:
        hint = f"it may run in another container: `fuser {files.vm_lock}` there gives its pid"
        raise YclusterError(f"{files.name}: its QEMU runs, and can't be seen from here", hint=hint)
    if isinstance(found, Vm):
        with descriptor(found.pidfd):
            yield found
    else:
        yield None


@contextlib.contextmanager
def looking_once(host: Host) -> Iterator[None]:
    """Look through all processes once for all clusters in the block, and not once for each.

    For a block that only shows: a VM which is started meanwhile may not be seen in it.
    """
    host.qemus = [pid for pid in pids() if pidfiles(pid)]
    try:
        yield
    finally:
        host.qemus = None


def _look_for_vm(files: Files, among: Sequence[int] | None = None) -> Vm | None:
    """The VM by its pidfile; else among these pids, or all, whatever has become of its files."""
    named = _pid_in(files.pidfile)
    if named is not None:
        vm = _vm_of(named, files)
        if vm is not None:
            return vm
    # Of another user's process only the pidfile, in our own folder, may say that it is ours.
    all_pids = pids() if among is None else among
    candidates = (_vm_of(pid, files) for pid in all_pids if _is_mine(pid))
    return next((vm for vm in candidates if vm is not None), None)


def _pid_in(pidfile: Path) -> int | None:
    try:
        return int(read_own(pidfile, 64))
    except (OSError, ValueError):
        return None


def _vm_of(pid: int, files: Files) -> Vm | None:
    """The process as a VM, where it is the cluster's QEMU."""
    if not is_qemu_of(pid, files):
        return None
    try:
        pidfd = pidfd_open(pid)
    except ProcessLookupError:
        return None
    # Asked again: the number may have been recycled before it was opened; now it can't be.
    if is_qemu_of(pid, files) and not exited(pidfd, 0):
        return Vm(pid, pidfd)
    os.close(pidfd)
    return None


def one_value(text: str) -> str:
    """A text as the value of one of QEMU's options, which end at a comma that is not doubled."""
    return text.replace(",", ",,")


def monitor_option(files: Files) -> str:
    """The value of the option that gives a QEMU of ours its monitor."""
    return f"socket,id=qmp,path={one_value(files.qmp.name)},server=on,wait=off"


def pidfiles(pid: int) -> list[str]:
    """The pidfiles that a process's argv names, as QEMU's does, ours or the sibling's."""
    argv = command_line(pid)
    return [path for word, path in zip(argv, argv[1:]) if word == "-pidfile"]


def lost_vms() -> Iterator[tuple[int, Files]]:
    """The user's VMs whose state file is gone: the pid of each, and where its files were."""
    for pid in pids():
        for pidfile in map(Path, pidfiles(pid)):
            files = Files(pidfile.parent, pidfile.stem)
            if pidfile.suffix != ".pid" or os.path.lexists(files.sidecar):
                continue
            # Other programs' QEMUs have a pidfile, too, and no state file of ours beside it.
            ours = monitor_option(files) in command_line(pid) or os.path.exists(files.vm_lock)
            if ours and _is_mine(pid):
                yield pid, files


def where_now(pid: int, files: Files) -> Files:
    """The files of a VM in the place that they have been moved to: QEMU has its lock open."""
    try:
        fds = Path(f"/proc/{pid}/fd").iterdir()
        paths = [Path(os.readlink(fd)) for fd in fds]
    except OSError:  # it has just closed one, or ended
        paths = []
    now = next((path for path in paths if path.name == files.vm_lock.name), files.vm_lock)
    return Files(now.parent, files.name)


def _is_mine(pid: int) -> bool:
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.getuid()
    except OSError:
        return False


def is_qemu_of(pid: int, files: Files) -> bool:
    """Whether the process is the cluster's QEMU: by its pidfile, or it has the VM lock open.

    Its argv may spell the directory otherwise (a link, relative); or the files were moved since.
    """
    named = pidfiles(pid)
    if not named:  # as nearly all: what follows takes far longer than to see that
        return False
    if os.path.realpath(files.pidfile) in map(os.path.realpath, named):
        return True
    try:
        return has_open(pid, files.vm_lock)
    except OSError:  # there is no such file, or the process is gone or another user's
        return False


def exited(pidfd: int, timeout: float) -> bool:
    """Whether the process ends within `timeout` seconds; the kernel reports it at once."""
    ended, _, _ = select.select([pidfd], [], [], max(0.0, timeout))
    return bool(ended)


def ask_qemu(
    host: Host,
    files: Files,
    command: str,
    arguments: Mapping[str, Any] = {},
    *,
    timeout: float = 5.0,
) -> Any:
    """What QEMU's monitor returns for one command, all in `timeout` seconds. Raises QmpError."""
    until = host.monotonic() + timeout
    with Qmp.connect(files.qmp, host.monotonic, timeout=timeout) as qmp:
        return qmp.execute(command, arguments, timeout=until - host.monotonic())


def run_state(answer: Any) -> str:
    """The run state in an answer to `query-status`. Raises QmpError where there is none."""
    state = answer.get("status") if isinstance(answer, dict) else None
    if not isinstance(state, str) or not re.fullmatch("[a-z-]{1,40}", state):
        raise QmpError("query-status: an answer without a state")
    return state


def running(host: Host, files: Files) -> bool:
    """Whether the cluster's QEMU runs, paused or not.

    Raises YclusterError if that can't be found out.
    """
    with find_vm(host, files) as vm:
        return vm is not None


def vm_status(host: Host, files: Files, *, patience: float = 2.0) -> str:
    """The state of a VM: `running`, `paused`, `stopped`, or another run state of QEMU's.

    Where its monitor does not answer in `patience` seconds: `busy`, while another ycluster works on
    it; else `unresponsive`. `unseen`: it runs out of our sight.
    """
    try:
        with find_vm(host, files) as vm:
            return _status_of(host, files, vm, patience)
    except YclusterError:
        return "unseen"


def _status_of(host: Host, files: Files, vm: Vm | None, patience: float) -> str:
    if vm is None:
        return "stopped"
    if process_stat(vm.pid)[1] == "T":
        return "paused"
    if not files.qmp.exists():
        return "running"  # started by the sibling, which has no monitor
    try:
        status = run_state(ask_qemu(host, files, "query-status", timeout=patience))
        return _IN_OUR_WORDS.get(status, status)
    except QmpError:
        if exited(vm.pidfd, 0):
            return "stopped"
        is_ours = files.lock in host.locked
        return "busy" if not is_ours and flock_held(files.lock) else "unresponsive"


_MAY_RUN = ("running", "asleep", "busy", "unresponsive")  # states of a guest that may execute

# Run states of QEMU's that would be misread: those around a suspend, in which the guest executes
# nothing, and that of a guest which sleeps by its own will (ACPI S3).
_IN_OUR_WORDS = {
    "postmigrate": "paused",
    "inmigrate": "paused",
    "prelaunch": "paused",
    "finish-migrate": "paused",
    "suspended": "asleep",
}


# QEMU's run state of a guest that stands still: the host had no room for what it wrote to a disk.
# `cont` has it write again: it goes on, or comes to this state again.
NO_ROOM = "io-error"
WRITE_TIME = 2.0  # seconds in which a guest that goes on comes to the write that had no room

# A TCP connection into the guest in slirp's list, which is what `info usernet` shows: the guest's
# address comes last. With TIME_WAIT and the like nobody is there any more.
_CONNECTION = (
    r"(?m)^ *TCP\[(?:ESTABLISHED|SYN_SENT|SYN_RCVD|FIN_WAIT_[12]|CLOSE_WAIT)\] +\S+ +"
    r"\S+ +\d+ +10\.0\.2\.15 +\d+ "
)


def measured_use(host: Host, files: Files) -> tuple[int | None, float | None] | None:
    """The TCP connections that lead into a VM, and the seconds of CPU time that it has used.

    Each is None where it can't be told; there is neither where the VM is off.
    """
    try:
        with find_vm(host, files) as vm:
            if vm is None:
                return None
            seconds = cpu_time(vm.pid)
            if vm_status(host, files) in ("paused", NO_ROOM):
                return 0, seconds  # QEMU lists who has given up until the guest goes on
            return _connections(host, files), seconds
    except YclusterError:  # it runs, and can't be seen from here
        return None, None


def _connections(host: Host, files: Files) -> int | None:
    """How many TCP connections lead into the guest; None where its monitor does not tell."""
    try:
        return len(re.findall(_CONNECTION, ask_usernet(host, files)))
    except QmpError:
        return None


def ask_usernet(host: Host, files: Files) -> str:
    """The answer to `info usernet`: all that goes in and out of the guest. Raises QmpError."""
    ask = {"command-line": "info usernet"}
    answer = ask_qemu(host, files, "human-monitor-command", ask)
    if not isinstance(answer, str):
        raise QmpError("info usernet: an answer that is not text")
    return answer


def pause_vm(host: Host, files: Files, vm: Vm) -> str:
    """Freeze the guest's CPUs, its memory kept; returns how it was done."""
    now = vm_status(host, files)
    if now == "paused":
        return "was paused"
    try:
        if now == NO_ROOM:
            ask_qemu(host, files, "cont")
        ask_qemu(host, files, "stop")
    except QmpError:
        # There is no monitor, or none that answers: the sibling's way.
        freeze_process(host, vm)
        return "SIGSTOP"
    return "QMP stop"


def freeze_process(host: Host, vm: Vm) -> None:
    """Stop QEMU itself; on a busy host the kernel does so a moment later, which is waited for."""
    send_signal(vm.pidfd, signal.SIGSTOP)
    over = (*STOPPED, "")
    host.wait_for(lambda: process_stat(vm.pid)[1] in over, timeout=5, interval=0.02)


def resume_vm(host: Host, files: Files, vm: Vm) -> None:
    """Undo both kinds of pause: ours, and the sibling's SIGSTOP."""
    send_signal(vm.pidfd, signal.SIGCONT)
    if files.qmp.exists():
        ask_qemu(host, files, "cont")


# --- stopping
class StopStep(Record):
    """A step of the escalation that stops a VM, and how many seconds it is given after `act`."""

    name: str
    act: Callable[[], object]
    patience: float


def stop_vm(
    host: Host,
    files: Files,
    vm: Vm,
    ssh_poweroff: Callable[[], object],
    may_cut_off: Callable[[], bool],
) -> str:
    """Power the guest off, gently first, and return the name of the step that did it.

    Killing QEMU drops what the guest wrote last. Bounded: under three minutes. Raises YclusterError
    when QEMU outlives even SIGKILL; and before anything is dropped of a guest that could write it
    if there were room for it, unless it `may_cut_off`, which is asked then alone.
    """
    steps = Steps(host.output, host.monotonic)
    _continue(vm)
    # `_powerdown` waits by itself; but QEMU may close its monitor just before it ends.
    by_guest = (
        StopStep("guest-shutdown", partial(_powerdown, host, files, vm, steps), 2.0),
        StopStep("ssh poweroff", ssh_poweroff, 20.0),
    )
    by_force = (
        StopStep("QMP quit", partial(ask_qemu, host, files, "quit"), 10.0),
        StopStep("SIGTERM", partial(send_signal, vm.pidfd, signal.SIGTERM), 10.0),
        StopStep("SIGKILL", partial(send_signal, vm.pidfd, signal.SIGKILL), 10.0),
    )
    is_stuck = _stays_without_room(host, files)  # then it can't shut down
    how = "" if is_stuck else _escalate(host, files, vm, by_guest, steps)
    if how:
        return how
    is_stuck = is_stuck or vm_status(host, files, patience=ANSWER_TIMEOUT) == NO_ROOM
    if is_stuck and not may_cut_off():
        hint = "make room, then stop it again: `ycluster prune` lists what can go;\n"
        hint += f"`kill {vm.pid}` ends it as a power cut does, and what it has not written is lost"
        raise YclusterError(f"{files.name}: {NO_ROOM_WORDS}, so it can't shut down", hint=hint)
    how = _escalate(host, files, vm, by_force, steps)
    if how:
        return how
    why = f"{files.name}: QEMU (pid {vm.pid}) is alive after SIGKILL"
    hint = "it hangs in the kernel: `sudo dmesg` may say where; a reboot of the host ends it"
    raise YclusterError(why, hint=hint)


def _stays_without_room(host: Host, files: Files) -> bool:
    """Whether the guest has no room for what it writes, also when it is told to write again."""
    if vm_status(host, files) != NO_ROOM:
        return False
    with contextlib.suppress(QmpError):  # it is looked at again in any case
        ask_qemu(host, files, "cont")
    host.sleep(WRITE_TIME)
    # One that does not answer now has not gone on either, as far as one can tell.
    return vm_status(host, files, patience=ANSWER_TIMEOUT) in (NO_ROOM, "busy", "unresponsive")


NO_ROOM_WORDS = "its guest stands still, as a disk of it has no room for what it writes"


def _escalate(
    host: Host,
    files: Files,
    vm: Vm,
    escalation: Sequence[StopStep],
    steps: Steps,
) -> str:
    """The name of the first of these steps that ends QEMU; empty where none does."""
    for step in escalation:
        began = host.monotonic()
        if _ends_by(host, vm, step, steps):
            steps.done(f"{files.name} is off by {step.name}")
            return step.name
        took = host.monotonic() - began
        what = f"{step.name} did not end it in {took:.0f} s"
        host.output.warn(f"{files.name}: {what}")
    return ""


def _continue(vm: Vm) -> None:
    """Wake a QEMU that is stopped by SIGSTOP: it would ignore every step."""
    with contextlib.suppress(OSError):  # it has ended: the first step will see that
        send_signal(vm.pidfd, signal.SIGCONT)


def _ends_by(
    host: Host,
    vm: Vm,
    step: StopStep,
    steps: Steps,
) -> bool:
    """Whether a step ends QEMU. One that fails is waited for all the same: it may have worked."""
    with contextlib.suppress(YclusterError, OSError):  # the next step is what follows a failure
        step.act()
    until = host.monotonic() + step.patience
    while True:
        left = until - host.monotonic()
        if exited(vm.pidfd, min(0.5, left)):
            return True
        if left <= 0:
            return False
        steps.waiting(f"{step.name}: waiting for QEMU to end")


def _powerdown(
    host: Host,
    files: Files,
    vm: Vm,
    steps: Steps,
) -> None:
    """Press the ACPI power button until the guest goes; one that boots misses the first press."""
    with Qmp.connect(files.qmp, host.monotonic, timeout=5.0) as qmp:
        until = host.monotonic() + POWERDOWN_TIMEOUT
        while host.monotonic() < until:
            with contextlib.suppress(QmpError):  # a guest that is not paused needs no `cont`
                qmp.execute("cont")  # one that is, or has no room, can't see the button
            qmp.execute("system_powerdown")
            if _gone_soon(vm, steps):
                return


def _gone_soon(vm: Vm, steps: Steps) -> bool:
    """Whether QEMU ends within three seconds, until the button is pressed again."""
    for _ in range(6):
        if exited(vm.pidfd, 0.5):
            return True
        steps.waiting("guest-shutdown: waiting for the guest to power off")
    return False


# === 14 QEMU machine ==============================================================================
# The virtual machine: QEMU's argv, which accelerator really works here, and the launch. A launch
# either leaves a QEMU that runs and is known, or nothing. What a start has chosen (accelerator,
# machine type, ports) goes into the state.

# A boot sector that counts down from a hundred million, a tenth of a second for a CPU, and ends
# QEMU by its debug exit: mov ecx,100000000; again: dec ecx; jnz again; mov al,16; out 0F4h,al;
# halt: hlt; jmp halt
KVM_BOOT_SECTOR = bytes.fromhex("66b900e1f505 6649 75fc b010 e6f4 f4 ebfd")
KVM_TIMEOUT = 10.0  # seconds; TCG takes half a second
KVM_SLOW_HOLDS = 900.0  # seconds that a check which took the whole timeout is not made again


def forwards(state: State) -> list[PortForward]:
    """The forwards to ask QEMU for, ssh's included.

    With host port 0 (choose a free one) where the config left the choice to QEMU. None in tap mode.
    """
    if state.guest_address:
        return []
    wanted = [PortForward(host=state.ssh_port, guest=22), *state.port_forwards]
    return [
        PortForward(host=0, guest=forward.guest) if forward.guest in state.auto_ports else forward
        for forward in wanted
    ]


def qemu_argv(state: State, accel: str) -> list[str]:
    """QEMU's command line, to be run in the cacheDir.

    Sockets and logs are named without it (`-daemonize` leaves it only after they are open), as a
    socket's path is 107 bytes at most. Disks are JSON, in which a comma has no meaning. One that is
    suspended waits for its memory. The console's log is cut while it is written, see `cut_console`.
    """
    files = state.files
    return [
        QEMU, "-name", f"guest={one_value(state.name)}", "-no-user-config", "-nodefaults",
        "-display", "none", "-vga", "none",
        *_machine_argv(state, accel),
        *_disk_argv("boot", _qcow2(files.disk), ",bootindex=0"),
        *_network_argv(state),
        "-chardev", f"file,id=console,path={one_value(files.console.name)},append=on",
        "-serial", "chardev:console",
        "-chardev", monitor_option(files),
        "-mon", "chardev=qmp,mode=control",
        "-pidfile", str(files.pidfile), "-daemonize",
        *_seed_argv(files),
        *(_disk_argv("data", _qcow2(Path(state.data_disk))) if state.data_disk else []),
        *(["-incoming", "defer"] if state.suspended else []),
    ]  # fmt: skip


def _machine_argv(state: State, accel: str) -> list[str]:
    kvm = accel == "kvm"
    return [
        # graphics=off: the firmware, too, writes to the serial console.
        "-machine", f"{state.machine or 'q35'},graphics=off",
        "-accel", "kvm" if kvm else "tcg,thread=multi",
        "-cpu", state.cpu_model or ("host" if kvm else "max"),
        "-smp", state.cpus, "-m", f"{state.memory}M", "-device", "virtio-rng-pci",
    ]  # fmt: skip


def _network_argv(state: State) -> list[str]:
    options = ["user", "id=net"]
    for forward in forwards(state):
        options.append(f"hostfwd=tcp:{state.bind_address}:{forward.host}-:{forward.guest}")
    return ["-netdev", ",".join(options), "-device", "virtio-net-pci,netdev=net,romfile="]


def _seed_argv(files: Files) -> list[str]:
    """The cloud-init seed; the sibling's disks have had theirs at the first boot."""
    if not files.seed.is_dir():
        return []
    seed = {"driver": "vvfat", "dir": str(files.seed), "label": "CIDATA", "read-only": True}
    return _disk_argv("seed", seed)


def _qcow2(path: Path) -> dict[str, Any]:
    file = {"driver": "file", "filename": str(path), "discard": "unmap"}
    return {"driver": "qcow2", "discard": "unmap", "file": file}


def _disk_argv(node: str, disk: Mapping[str, Any], options: str = "") -> list[str]:
    block = json.dumps({"node-name": node, **disk})
    return ["-blockdev", block, "-device", f"virtio-blk-pci,drive={node}{options}"]


# --- the KVM check
_SLOWER = "so QEMU emulates, which is slower"


class SlowKvm(PrerequisiteError):
    """KVM did not pass the check in time. To ask again takes as long."""


def try_kvm(host: Host) -> None:
    """Raise PrerequisiteError unless KVM runs a VM, at speed.

    That /dev/kvm opens proves nothing, nor does a QEMU that starts: on some nested hosts its first
    guest stops, on others it crawls, a hundred times slower than TCG, and stops after minutes.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        if os.path.exists("/dev/kvm"):
            what = "/dev/kvm is closed to you"
            hint = f"sudo usermod -aG kvm {host.user()}, then log in again"
        else:
            what = "there is no /dev/kvm"
            hint = "sudo modprobe kvm_intel (or kvm_amd); where that fails, the firmware, or the "
            hint += "host of this host, has it switched off"
        raise PrerequisiteError(f"{what}, {_SLOWER}", hint=hint)
    try:
        done = _boot_with_kvm(host)
    except TimedOut:
        raise SlowKvm(f"KVM does not run a VM at speed here, {_SLOWER}") from None
    if done.returncode != 33:  # what debug-exit makes of 16
        printed = done.stderr.strip().splitlines()
        why = printed[0] if printed else f"exit {done.returncode}"
        raise PrerequisiteError(f"KVM does not run a VM here, {_SLOWER}: {why}")


def _boot_with_kvm(host: Host) -> Done:
    """Run the boot sector under KVM."""
    import tempfile

    with tempfile.NamedTemporaryFile() as disk:
        sector = KVM_BOOT_SECTOR.ljust(510, b"\0") + b"\x55\xaa"
        disk.write(sector.ljust(1 << 20, b"\0"))
        disk.flush()
        raw = {"driver": "raw", "file": {"driver": "file", "filename": disk.name}}
        argv = [
            QEMU, "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none",
            "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-m", "64",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
            *_disk_argv("boot", raw, ",bootindex=0"),
        ]  # fmt: skip
        return host.run(argv, timeout=KVM_TIMEOUT, check=False)


def kvm_works(host: Host) -> bool:
    """Whether KVM passes the check. If not, the reason is said.

    A yes holds for a boot of the host and a QEMU, or until `forget_kvm`. A no is asked again, as
    whatever held KVM may have let it go; only one that took the whole timeout holds for a while.
    """
    conditions = _kvm_conditions(host)
    kept = _kept_verdict(host, conditions)
    if kept is None:
        return _check_kvm(host, conditions)
    if not kept:
        host.output.say(f"  KVM did not run a VM at speed when it was last tried, {_SLOWER}")
    return kept


def _check_kvm(host: Host, conditions: str) -> bool:
    """Make the check, say why where KVM fails it, and keep the verdict where that may hold."""
    try:
        try_kvm(host)
    except (YclusterError, OSError) as error:
        host.output.say(f"  {error}")
        if isinstance(error, SlowKvm):
            _keep_verdict(host, conditions, f"slow {int(host.now())}")
        return False
    _keep_verdict(host, conditions, "kvm")
    return True


def _kvm_conditions(host: Host) -> str:
    """A line that changes when the check has to be made anew."""
    version = host.attempt([QEMU, "--version"], timeout=20) or ""
    first_line = version.partition("\n")[0]
    is_open = os.access("/dev/kvm", os.R_OK | os.W_OK)
    return f"{host.boot_id()} {first_line} {is_open}"


def _verdict_file(host: Host) -> Path:
    return host.state_home() / "kvm-trial"


def _kept_verdict(host: Host, conditions: str) -> bool | None:
    """The verdict of a check under the same conditions; None where there is none that holds."""
    try:
        lines = read_own(_verdict_file(host)).decode("utf-8").splitlines()
    except (OSError, ValueError, YclusterError):
        return None
    if lines[:-1] != [conditions]:
        return None
    if lines[-1] == "kvm":
        return True
    slow = re.fullmatch(r"slow ([0-9]{1,12})", lines[-1])
    if slow and 0 <= host.now() - int(slow[1]) < KVM_SLOW_HOLDS:
        return False
    return None


def _keep_verdict(host: Host, conditions: str, verdict: str) -> None:
    # Without it the check is made again the next time.
    with contextlib.suppress(OSError, YclusterError):
        make_folder(host.state_home())
        write_file(_verdict_file(host), f"{conditions}\n{verdict}\n".encode())


def forget_kvm(host: Host) -> None:
    """Have the next start make the check again: KVM may have failed since it passed."""
    # Where it stays, the next launch with KVM is what shows that it fails.
    with contextlib.suppress(OSError, YclusterError):
        remove(_verdict_file(host))


# --- the launch
def launch(host: Host, state: State) -> State:
    """Start QEMU; returns the state with what it chose. YclusterError: nothing is left running."""
    state = replace(state, machine=state.machine or _versioned_machine(host))
    accel = state.accel
    if accel == "auto":
        accel = _spawn_with_best(host, state)
    else:
        _spawn_qemu(host, state, accel)
    try:
        return with_ports(host, replace(state, ran_with=accel))
    except BaseException:
        _kill(host, state.files)
        raise


def _spawn_with_best(host: Host, state: State) -> str:
    """Run QEMU with KVM where that works, else without; returns the accelerator."""
    if kvm_works(host):
        try:
            _spawn_qemu(host, state, "kvm")
            return "kvm"
        except (ProgramFailed, TimedOut) as error:
            # Another hypervisor may have taken KVM since it passed the check.
            forget_kvm(host)
            host.output.warn(f"{state.name}: with KVM, {error}; it is started without")
        _kill(host, state.files)  # where it gave no answer, its daemon may have come up
    _spawn_qemu(host, state, "tcg")
    return "tcg"


def _versioned_machine(host: Host) -> str:
    """The name that `q35` stands for: it keeps the guest's hardware over upgrades of QEMU."""
    listing = host.run([QEMU, "-machine", "help"], timeout=20).stdout
    found = re.search(r"^q35 .*\(alias of ([-.\w]+)\)", listing, re.MULTILINE)
    return found.group(1) if found else "q35"


def _kill(host: Host, files: Files) -> None:
    """Kill a VM whose guest has hardly run: there is nothing in it to lose."""
    with find_vm(host, files) as vm:
        if vm is not None:
            send_signal(vm.pidfd, signal.SIGKILL)
            exited(vm.pidfd, 10)


def check_user_network(host: Host) -> None:
    """Raise where QEMU was built without user networking, by which the host reaches the guest."""
    host.need({QEMU: "qemu-system-x86"})
    known = host.run([QEMU, "-netdev", "help"], timeout=30, check=False).stdout.split()
    if "socket" in known and "user" not in known:
        why = f"this {QEMU} has no user networking (-netdev user)"
        raise PrerequisiteError(why, hint="install one that was built with libslirp")


def warn_of_little_memory(host: Host, state: State) -> None:
    """Warn where the host has less memory free than the VM may take."""
    free = free_memory()
    if free is not None and free < int(state.memory):
        host.output.warn(
            f"{state.name}: the VM may take {state.memory} MiB of memory, and this host has "
            f"{free} MiB free: it may become slow, or be killed; a smaller "
            "`memory` in the config takes effect by `ycluster start -c DIR`"
        )


def free_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """MiB that a program of ours may yet take, by the host and by its cgroups; None if not known.

    Of cgroups, version 2 (the kernel's admin-guide/cgroup-v2.rst, "Memory Interface Files").
    """
    listed = kernel_text(proc / "meminfo")
    found = re.search(r"^MemAvailable: *([0-9]+) kB", listed, re.MULTILINE)
    free = [int(found[1]) << 10] if found else []
    own = re.search(r"^0::/(.*)$", kernel_text(proc / "self/cgroup"), re.MULTILINE)
    folder = cgroups / own[1] if own else cgroups
    while folder != cgroups.parent:
        limit = kernel_text(folder / "memory.max").strip()  # "max": none
        used = kernel_text(folder / "memory.current").strip()
        counts = kernel_text(folder / "memory.stat")
        if limit.isdigit() and used.isdigit():
            cached = re.search(r"^inactive_file ([0-9]+)$", counts, re.MULTILINE)
            given_back = int(cached[1]) if cached else 0
            free.append(int(limit) - int(used) + given_back)
        folder = folder.parent
    return max(0, min(free)) >> 20 if free else None


def _spawn_qemu(host: Host, state: State, accel: str) -> None:
    """Run QEMU until it is a daemon. It inherits the VM lock, and holds it as long as it lives."""
    files = state.files
    limit = host.cpu_limit()
    if limit is not None:
        why = f"the VM is killed after {limit} s of CPU time, and what it has in memory is lost"
        host.output.warn(f"{why}: `ulimit -Ht` is the limit of this session")
    fd = take_flock(host, files.vm_lock, timeout=5)
    if fd is None:
        hint = f"`ycluster status --name {state.name}` shows more"
        raise YclusterError(f"{state.name}: its QEMU already runs", hint=hint)
    with descriptor(fd):
        remove(files.qmp)
        remove(files.pidfile)
        # Made here, as QEMU's daemon has a umask of its own, 027.
        with descriptor(open_own(files.console, os.O_WRONLY | os.O_CREAT)) as console:
            if not state.suspended:
                os.ftruncate(console, 0)
        try:
            argv = qemu_argv(state, accel)
            with host.cpu_limit_lifted():
                host.run(argv, timeout=60, cwd=files.cache_dir, pass_fds=(fd,))
        except ProgramFailed:
            check_user_network(host)
            raise
        files.qmp.chmod(0o600)
        for path in (files.qmp, files.pidfile):
            keep_owner(path, files.cache_dir)


def cut_console(files: Files) -> None:
    """Cut a console log that has become too long to its last lines: a guest can write for ever.

    QEMU appends to it, and so goes on at the new end.
    """
    if os.lstat(files.console).st_size <= CONSOLE_SIZE:
        return
    with descriptor(open_own(files.console, os.O_RDWR | os.O_APPEND)) as fd:
        last = os.pread(fd, CONSOLE_KEPT, os.fstat(fd).st_size - CONSOLE_KEPT)
        os.ftruncate(fd, 0)
        os.write(fd, b"[cut by ycluster]\n" + last)


def with_ports(host: Host, state: State) -> State:
    """The state with the host ports that QEMU chose for itself filled in."""
    if not state.auto_ports:
        return state
    chosen = chosen_ports(ask_usernet(host, state.files))
    ports = [
        PortForward(host=chosen.get(forward.guest, forward.host), guest=forward.guest)
        for forward in state.port_forwards
    ]
    ssh_port = chosen.get(22, state.ssh_port)
    return replace(state, ssh_port=ssh_port, port_forwards=tuple(ports))


def chosen_ports(usernet: str) -> dict[int, int]:
    """The host ports in an answer to `info usernet`, by the guest's."""
    pattern = r"TCP\[HOST_FORWARD\]\s+[0-9]+\s+\S+\s+([0-9]{1,5})\s+\S+\s+([0-9]{1,5})\b"
    pairs = re.findall(pattern, usernet)
    found = [(int(guest), int(port)) for port, guest in pairs]
    return {guest: port for guest, port in found if 0 < port < 65536}


# --- suspend: the guest's memory to a file, and back
# A memory file belongs to one state of the disks alone. From when it is whole until it is removed
# the guest executes nothing; it is removed before the guest goes on.
_PIPE = "memory"  # what QEMU knows the descriptor by


def memory_timeout(state: State) -> float:
    """Seconds that its memory may take to a file, and back: a minute, and one for each 3 GiB."""
    known = re.fullmatch("[0-9]{1,7}", state.memory)  # in MB; a state file may hold any word
    return 60.0 + (int(known[0]) / 50 if known else 0.0)


def installed_qemu(host: Host) -> str:
    """The version of the QEMU that would be started now, such as 7.2.22."""
    told = host.run([QEMU, "--version"], timeout=20).stdout
    found = re.search("version ([0-9.]+)", told)
    return found[1] if found else told.partition("\n")[0]


def running_qemu(qmp: Qmp) -> str:
    """The version of a QEMU that runs. An upgrade may have replaced its file since."""
    version = qmp.execute("query-version")["qemu"]
    major = int(version["major"])
    minor = int(version["minor"])
    micro = int(version["micro"])
    return f"{major}.{minor}.{micro}"


def memory_fits(host: Host, state: State, qmp: Qmp | None = None) -> dict[str, str]:
    """What a memory file goes with: QEMU, the machine that it makes, and the state of its disks.

    Of the QEMU that runs, where its monitor is given; else of one that would be started now.
    """
    fits = {
        "QEMU": running_qemu(qmp) if qmp else installed_qemu(host),
        "machine type": state.machine,
        "accelerator": state.ran_with,
        "CPU model": state.cpu_model,
        "number of CPUs": state.cpus,
        "memory size": state.memory,
    }
    if state.ran_with == "kvm":
        fits["CPU of this host"] = _host_cpu()
    return {**fits, **disks_fit(state)}


def disks_fit(state: State) -> dict[str, str]:
    """The part of `memory_fits` that QEMU itself may still change when it ends."""
    fits = {"disk": _disk_state(state.files.disk)}
    if state.data_disk:
        fits["data disk"] = _disk_state(Path(state.data_disk))
    return fits


def misfits(then: Mapping[str, Any], now: Mapping[str, str]) -> list[str]:
    """What keeps a memory file that was written `then` from being loaded now; empty: nothing. Pure.

    A later QEMU reads what an earlier one of the same machine type has written, and a guest needs
    no fewer features of its CPU than it had.
    """
    known = then.keys() & now.keys()
    others = []
    for what in known:
        if not _goes_with(what, str(then[what]), now[what]):
            others.append(what)
    others += then.keys() ^ now.keys()
    return sorted(others)


def _goes_with(what: str, was: str, now: str) -> bool:
    if what == "QEMU":
        return _numbers(now) >= _numbers(was)
    if what == "CPU of this host":
        return {*was.split()} <= {*now.split()}
    return was == now


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall("[0-9]{1,9}", version)]


def _disk_state(disk: Path) -> str:
    """What changes whenever a disk is written to: its size, and its modification time in ns."""
    try:
        found = disk.stat()
    except OSError as error:
        return f"{disk}: {error.strerror}"
    return f"{found.st_size} {found.st_mtime_ns}"


def _host_cpu() -> str:
    """The model and the features of this host's CPU, which a guest of KVM's may use, as words."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    facts = dict(re.findall(r"(?m)^(model name|flags)\s*: (.*)$", text.partition("\n\n")[0]))
    model = facts.get("model name", "").replace(" ", "_")
    return f"{model} {facts.get('flags', '')}"


@contextlib.contextmanager
def standing_still(host: Host, state: State, vm: Vm) -> Iterator[Qmp]:
    """A guest that executes nothing during the block, and goes on as it was where that fails.

    On one connection: QEMU has one client at a time, so nobody else lets it go on meanwhile.
    """
    frozen = process_stat(vm.pid)[1] == "T"
    _continue(vm)
    try:
        with Qmp.connect(state.files.qmp, host.monotonic, timeout=5.0) as qmp:
            ran = _stand_still(qmp, state.name)
            try:
                yield qmp
            except BaseException:
                _undo_suspend(host, state, qmp, runs_on=ran)
                raise
    except BaseException:
        if frozen:
            freeze_process(host, vm)
        raise


# Seconds. QEMU writes out all that its disks have kept back before it answers.
_FLUSH_TIMEOUT = 60.0


def _stand_still(qmp: Qmp, name: str) -> bool:
    """Stop the guest's CPUs; returns whether they ran. Raises where no memory can be had of it."""
    now = run_state(qmp.execute("query-status", timeout=_FLUSH_TIMEOUT))
    # A suspend was cut off, and QEMU writes a memory twice only so; or `stop` would do nothing.
    if now in ("postmigrate", NO_ROOM):
        qmp.execute("cont", timeout=_FLUSH_TIMEOUT)
    elif now not in ("running", "paused"):
        raise YclusterError(f"{name}: its QEMU is {now}, so it can't be suspended")
    qmp.execute("stop", timeout=_FLUSH_TIMEOUT)
    return now != "paused"


def _undo_suspend(
    host: Host,
    state: State,
    qmp: Qmp,
    *,
    runs_on: bool,
) -> None:
    """After a suspend that failed: no file, and only then a guest that runs on."""
    try:
        cancel_migration(host, qmp)
        remove(state.files.memory_part)
        remove(state.files.memory)
        if runs_on:
            qmp.execute("cont", timeout=_FLUSH_TIMEOUT)
    except (OSError, YclusterError) as error:
        remedy = f"`ycluster resume --name {state.name}` lets it go on"
        host.output.warn(f"{state.name} may stand still, and {remedy}: {error}")


def cancel_migration(host: Host, qmp: Qmp) -> None:
    """Have QEMU write no memory any more; it would stop the guest when it has."""
    until = host.monotonic() + _FLUSH_TIMEOUT
    while _migration(qmp).get("status", "none") not in ("none", *_MIGRATION_ENDS):
        if host.monotonic() > until:
            raise TimedOut(f"QEMU still writes its memory after {_FLUSH_TIMEOUT:.0f} s")
        qmp.execute("migrate_cancel", timeout=_FLUSH_TIMEOUT)
        host.sleep(0.02)


_MIGRATION_ENDS = ("completed", "failed", "cancelled")


def write_memory(host: Host, state: State, qmp: Qmp) -> Suspended:
    """Write the memory of a guest that stands still to its file, whole or not at all."""
    files = state.files
    packed = _write_part(host, state, qmp)
    fits = memory_fits(host, state, qmp)
    digest = "" if packed else _digest(host, state, files.memory_part)
    files.memory_part.replace(files.memory)
    sync_folder(files.cache_dir)
    return Suspended(int(host.now()), packed, digest, fits)


def _check_room(host: Host, files: Files, vm: Vm) -> None:
    """Raise where the memory can't have room. Zero pages take none, and zstd packs the others."""
    status = Path(f"/proc/{vm.pid}/status").read_text(encoding="utf-8")
    found = re.search(r"^VmRSS:\s+([0-9]+) kB$", status, re.MULTILINE)
    most = int(found[1]) << 10 if found else 0
    disk = os.statvfs(files.cache_dir)
    free = disk.f_bavail * disk.f_frsize
    if free < (most // 4 if host.which("zstd") else most):
        why = f"{files.name}: its memory takes up to {most >> 20} MiB, and {files.cache_dir} has "
        hint = "`ycluster prune` lists what can go"
        if vm_status(host, files) != NO_ROOM:
            hint += f"; `ycluster stop {files.name}` needs no room, and loses what runs in it"
        raise YclusterError(f"{why}{free >> 20} MiB left", hint=hint)


def _write_part(host: Host, state: State, qmp: Qmp) -> str:
    """Write the memory to the file that is not whole yet; returns what it was packed with."""
    files = state.files
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    packed = "zstd" if host.which("zstd") else ""
    with descriptor(os.open(files.memory_part, flags, 0o600)) as fd:
        keep_owner(fd, files.cache_dir)
        if packed:
            with host.beside([packed, "-q", "-1", "-T0", "-c"], stdout=fd) as pipe:
                qmp.give(_PIPE, pipe.fileno())
                pipe.close()  # zstd ends when QEMU closes its copy
                _migrate(host, qmp, state)
        else:
            qmp.give(_PIPE, fd)
            _migrate(host, qmp, state)
        os.fsync(fd)
    return packed


def _migrate(host: Host, qmp: Qmp, state: State) -> None:
    """Have QEMU write its memory to the descriptor that it was given, and wait until it has."""
    name, timeout = state.name, memory_timeout(state)
    qmp.execute("migrate-set-parameters", {"max-bandwidth": 1 << 40})  # it would go at 128 MiB/s
    qmp.execute("migrate", {"uri": f"fd:{_PIPE}"})
    steps = Steps(host.output, host.monotonic)
    until = host.monotonic() + timeout
    while True:
        found = _migration(qmp)
        status = found.get("status")
        if status == "completed":
            steps.done(f"memory of {name}")
            return
        if status in _MIGRATION_ENDS:
            why = found.get("error-desc") or f"the migration has {status}"
            raise YclusterError(f"{name}: QEMU could not write its memory: {why}")
        if host.monotonic() > until:
            raise TimedOut(f"{name}: its memory is not written in {timeout:.0f} s")
        steps.waiting(f"memory of {name}")
        host.sleep(0.02)


def _migration(qmp: Qmp) -> dict[str, Any]:
    """How far QEMU is with its migration. Raises QmpError where the answer is none."""
    found = qmp.execute("query-migrate", timeout=_FLUSH_TIMEOUT)
    if not isinstance(found, dict):
        raise QmpError("query-migrate: an answer without a state")
    return found


def _digest(host: Host, state: State, path: Path) -> str:
    argv = ["sha256sum", str(path)]
    done = host.run(argv, timeout=memory_timeout(state), progress="checksum")
    return done.stdout.split()[0].lstrip("\\")  # it begins with one where a name is escaped


def memory_fault(host: Host, state: State) -> str:
    """Why the memory of a suspended guest can't be loaded; empty where it can."""
    suspended, files = state.suspended, state.files
    if suspended is None:
        return "it is not suspended"
    if not files.memory.is_file():
        return f"{files.memory} is gone"
    changed = misfits(suspended.fits, memory_fits(host, state))
    if changed:
        return f"it fits no more, as this has changed since: {', '.join(changed)}"
    if suspended.packed and not host.which(suspended.packed):
        return f"it is packed by {suspended.packed}, which is not installed"
    if suspended.digest and _digest(host, state, files.memory) != suspended.digest:
        return f"{files.memory} is damaged: its SHA-256 is another"
    return ""


def launch_from_memory(host: Host, state: State) -> State:
    """Start QEMU with the guest's memory in it; the guest stands still. Returns as `launch`.

    YclusterError: nothing is left running, and the memory file is as it was.
    """
    try:
        _spawn_qemu(host, state, state.ran_with)
        with host.cpu_limit_lifted():  # zstd may take long, too
            _read_memory(host, state)
        return with_ports(host, state)
    except BaseException:
        _kill(host, state.files)
        raise


def _read_memory(host: Host, state: State) -> None:
    files = state.files
    packed = state.suspended.packed if state.suspended else ""
    memory = descriptor(open_own(files.memory, os.O_RDONLY))
    with memory as fd, Qmp.connect(files.qmp, host.monotonic, timeout=5.0) as qmp:
        if packed:
            with host.beside([packed, "-q", "-d", "-c"], stdin=fd) as pipe:
                qmp.give(_PIPE, pipe.fileno())
                pipe.close()  # zstd fails where QEMU reads no further
                _load(host, qmp, state)
        else:
            qmp.give(_PIPE, fd)
            _load(host, qmp, state)


def _load(host: Host, qmp: Qmp, state: State) -> None:
    """Have QEMU read its memory from the descriptor that it was given, and wait until it has."""
    name, timeout = state.name, memory_timeout(state)
    steps = Steps(host.output, host.monotonic)
    until = host.monotonic() + timeout
    try:
        qmp.execute("migrate-incoming", {"uri": f"fd:{_PIPE}"}, timeout=60.0)
        while True:
            now = run_state(qmp.execute("query-status", timeout=_FLUSH_TIMEOUT))
            if now != "inmigrate":
                break
            if host.monotonic() > until:
                raise TimedOut(f"{name}: its memory is not read in {timeout:.0f} s")
            steps.waiting("reading its memory")
            host.sleep(0.02)
    except QmpError as error:  # QEMU ends where it can't make sense of what it reads
        raise YclusterError(f"{name}: QEMU could not read its memory: {error}") from None
    if now not in ("paused", NO_ROOM):
        raise YclusterError(f"{name}: QEMU is {now} after it has read its memory")
    steps.done(f"memory of {name}")


def stands_still(host: Host, files: Files) -> bool:
    """Whether a VM has executed nothing since its memory was written to its file, or read from it.

    That is proven by what QEMU itself says. Raises YclusterError where it says nothing.
    """
    if not files.qmp.exists():
        return False  # the sibling's
    now = run_state(ask_qemu(host, files, "query-status", timeout=_FLUSH_TIMEOUT))
    with find_vm(host, files) as vm:
        reads = vm is not None and "-incoming" in command_line(vm.pid)
    return now in ("postmigrate", "inmigrate") or (now in ("paused", NO_ROOM) and reads)


# === 15 guest =====================================================================================
# What happens inside the VM until you can log in: its keys and its cloud-init seed, the ssh command
# that reaches it, and the wait for its boot. The host key comes with the seed, so that even the
# first connection is checked. Whatever is asked or run in the guest is safe to repeat, as a
# connection can break at any time, and the command is then repeated.

Waiting: TypeAlias = "Callable[[], object]"  # called at least twice a second during a long question

# The data volume in fstab. With `nofail` the guest also boots without it; a slow host has systemd's
# 90 s to show it.
DATA_ENTRY = f"LABEL={DATA_LABEL} {DATA_DIR} ext4 defaults,nofail 0 2"
# Adds it, unless the label or the folder has an entry: ours, the sibling's or the user's. A last
# line of fstab that has no end gets one first.
ADD_DATA_ENTRY = f"""\
mkdir -p {DATA_DIR}
label='^[[:space:]]*(LABEL="?{DATA_LABEL}"?|/dev/disk/by-label/{DATA_LABEL})[[:space:]]'
folder='^[[:space:]]*[^#[:space:]]+[[:space:]]+{DATA_DIR}/?[[:space:]]'
if ! grep -Eqs -e "$label" -e "$folder" /etc/fstab; then
  [ -z "$(tail -c 1 /etc/fstab 2>/dev/null)" ] || echo >>/etc/fstab
  echo '{DATA_ENTRY}' >>/etc/fstab
fi
"""
# Run at each boot of a VM with a data disk. An entry of the user's may name another folder.
MOUNT_DATA = f"""\
{ADD_DATA_ENTRY}
mountpoint -q {DATA_DIR} || mount {DATA_DIR} || mount LABEL={DATA_LABEL} {DATA_DIR}
"""

SYSTEM_UNITS = "/etc/systemd/system"  # of the guest
POWER_OFF = "ycluster-max-run"  # the name of the units that power a guest off

# With a data disk k3s keeps its volumes there. It starts once the disk is mounted, or has not come
# in time: otherwise an appliance would now and then write to its boot disk.
K3S_ON_DATA_DISK = (
    {
        "path": "/etc/rancher/k3s/config.yaml.d/90-ycluster.yaml",
        "content": f"default-local-storage-path: {DATA_DIR}/k3s-storage\n",
    },
    {
        "path": f"{SYSTEM_UNITS}/k3s.service.d/90-ycluster.conf",
        "content": f"[Unit]\nWants={DATA_MOUNT}\nAfter={DATA_MOUNT}\n",
    },
)

# With `guest.proxy: host`: where the proxies are, and what leads there. A drop-in of this name is
# one of every service, and sudo hands on what it does not reset.
PROXIES = "/etc/default/ycluster-proxy"
PROXY_UNIT = f"{SYSTEM_UNITS}/service.d/90-ycluster-proxy.conf"
PROXY_SUDO = "/etc/sudoers.d/90-ycluster-proxy"
PROXY_NAMES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
_KEPT_BY_SUDO = " ".join([*PROXY_NAMES, *(name.lower() for name in PROXY_NAMES)])
# Takes our lines out of what PAM sets for logins.
FORGET_PROXIES = """\
if [ -e /etc/environment ]; then
  sed -i '/^# ycluster: proxies$/,/^# ycluster: end$/d' /etc/environment
fi"""
# Run at each boot, before cloud-init installs packages, with the proxies in the place of {lines}.
# Services that start from then on have them.
SET_PROXIES = f"""\
{FORGET_PROXIES}
mkdir -p /etc/default {SYSTEM_UNITS}/service.d
install -m 0600 /dev/null {PROXIES}
cat >{PROXIES} <<'END'
{{lines}}
END
[ -z "$(tail -c 1 /etc/environment 2>/dev/null)" ] || echo >>/etc/environment
{{{{ echo '# ycluster: proxies'; cat {PROXIES}; echo '# ycluster: end'; }}}} >>/etc/environment
if [ -d /etc/sudoers.d ]; then
  echo 'Defaults env_keep += "{_KEPT_BY_SUDO}"' >{PROXY_SUDO}
  chmod 0440 {PROXY_SUDO}
fi
if [ ! -e {PROXY_UNIT} ]; then
  printf '[Service]\\nEnvironmentFile=-{PROXIES}\\n' >{PROXY_UNIT}
  systemctl daemon-reload
fi
"""
# What needs no proxy in the guest: itself, QEMU's network, and k3s's pods, services and names.
NEVER_PROXIED = (
    "localhost",
    "127.0.0.0/8",
    "::1",
    "10.0.2.0/24",
    "10.42.0.0/16",
    "10.43.0.0/16",
    ".svc",
    ".cluster.local",
)
HOST_IN_GUEST = "10.0.2.2"  # 127.0.0.1 of the host, in QEMU's user network
K3S_ARGS = "/etc/rancher/k3s/config.yaml.d/91-ycluster-args.yaml"

# The parts of `prepare-export`: run in the guest, then on its disk once the guest is off.
PREPARE_LIVE = f"""\
# Downloaded packages need not travel.
if command -v apt-get >/dev/null; then apt-get clean; fi

# Wherever the disk boots next, it sets its clock: enable the first time service that is installed.
for unit in systemd-timesyncd chrony chronyd ntpsec ntp none; do
  systemctl enable $unit.service 2>/dev/null && break
done
[ $unit != none ] || echo no-time-sync

# The data disk stays here. If a service still uses it, the shutdown unmounts it.
if mountpoint -q {DATA_DIR}; then umount {DATA_DIR} || true; fi

# Blocks that deleted files occupied are given back, so that the export is small.
fstrim -a 2>/dev/null || true
sync
"""
PREPARE_OFFLINE = f"""\
set -eu

# Wherever a volume with the label is attached, it is mounted: without the entry an appliance would
# write its data to the boot disk. The volume is not part of the export; a boot can do without it.
{ADD_DATA_ENTRY}
# The timer of an earlier `--max-run`.
rm -rf {SYSTEM_UNITS}/{POWER_OFF}* {SYSTEM_UNITS}/timers.target.wants/{POWER_OFF}*

# cloud-init starts afresh elsewhere, and chooses among all datasources again.
rm -rf /var/lib/cloud /var/log/cloud-init*.log /etc/cloud/cloud.cfg.d/99-ycluster.cfg

# What describes this network, and the registries with their passwords.
rm -f /etc/udev/rules.d/70-persistent-net.rules /etc/netplan/50-cloud-init.yaml \\
  /etc/network/interfaces.d/50-cloud-init* /etc/systemd/network/*cloud-init* \\
  /var/lib/dhcp/*.leases /etc/rancher/k3s/registries.yaml

# The proxies of this host, maybe with a password: ours, and what k3s's installation made of them.
{FORGET_PROXIES}
if [ -e {PROXIES} ] && [ -e {SYSTEM_UNITS}/k3s.service.env ]; then
  sed -i -E '/^(NO|HTTP|HTTPS)_PROXY=/Id' {SYSTEM_UNITS}/k3s.service.env
fi
rm -f {PROXIES} {PROXY_UNIT} {PROXY_SUDO}

# The CA certificates that cloud-init has added.
added=$(ls -d /usr/local/share/ca-certificates/cloud-init-ca-cert* \\
  /etc/pki/ca-trust/source/anchors/cloud-init-ca-cert* 2>/dev/null) || true
if [ -n "$added" ]; then
  rm -f $added
  if command -v update-ca-trust >/dev/null; then update-ca-trust
  else update-ca-certificates --fresh >/dev/null
  fi
fi

# Network cards have other names elsewhere: ask for an address on any of them.
if [ -d /etc/netplan ]; then
  echo 'network: {{version: 2, ethernets: {{any: {{match: {{name: "e*"}}, dhcp4: true}}}}}}' \\
    >/etc/netplan/90-any-dhcp.yaml
  chmod 0600 /etc/netplan/90-any-dhcp.yaml
elif [ -d /etc/systemd/network ]; then
  printf '[Match]\\nName=en* eth*\\n\\n[Network]\\nDHCP=yes\\n' \\
    >/etc/systemd/network/90-any-dhcp.network
fi

# What its users left behind.
rm -rf /root/.bash_history /home/*/.bash_history /root/.cache /home/*/.cache \\
  /root/.lesshst /root/.viminfo /tmp/*

# Package lists, journals, and the random seed, which no two machines may share. Other logs are
# emptied but stay, since the owner and mode of a log file are part of the installation.
rm -rf /var/cache/apt/*.bin /var/lib/apt/lists/* /var/log/journal/* /var/lib/systemd/random-seed
find /var/log -type f -exec truncate -s 0 {{}} +
"""

# Blocks that were freed keep what was in them, secrets included, until something else is written
# there. guestfish runs what its first list is made into; zerofree can do ext2, 3 and 4.
CLEAR_FREE = r"""
found=$(mktemp) && trap 'rm -f "$found"' EXIT
guestfish --format=qcow2 --add "$1" <<END
run
list-filesystems
list-filesystems | sed -n 's/^\(.*\): ext[234]$/zerofree \1/p' >"$found"
<! cat "$found"
END
"""


# --- the expiry that a disk carries with it
# systemd counts, by a clock that nobody sets: from each boot, and anew from each postponement.
# Time in which the guest is suspended or paused does not count.
KEEP_RUNNING = "/run/ycluster-keep-running"  # in /run, where no boot finds it again
WARN_BEFORE = 600  # seconds, from the warning to the power-off
# Prints a text and shows it on every terminal; in a unit, `$$` is `$`.
TELL = """/bin/sh -c 'echo "$$0"; echo "$$0" | timeout 20 wall'"""
POWER_OFF_TIMER = """\
# Written by `ycluster prepare-export --max-run`, which without the option removes it.
[Unit]
Description={what}

[Timer]
OnBootSec={first}s
OnUnitInactiveSec={again}s
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
# It removes the file that postpones the power-off. If that fails, as it does without the file,
# systemd itself shuts the guest down, whatever is wrong with the disk or its programs.
POWER_OFF_SERVICE = """\
[Unit]
Description=Power-off, unless {file} postpones it
FailureAction=poweroff
RefuseManualStart=yes

[Service]
Type=oneshot
TimeoutStartSec=60s
ExecStart=/bin/rm {file}
ExecStartPost=-{tell} "{text}"
StandardOutput=journal+console
StandardError=journal
"""
POWER_OFF_WARNING = """\
[Unit]
Description=Warning of the power-off

[Service]
Type=oneshot
TimeoutStartSec=60s
ExecStart=-{tell} "{text}"
StandardOutput=journal+console
"""


def max_run_units(seconds: int) -> dict[str, str]:
    """The systemd units, by their names, that power a guest off so long after each boot.

    They warn on its terminals and its console. KEEP_RUNNING postpones the power-off once, by as
    long again.
    """
    length = format_duration(seconds * 10**9)
    before = min(WARN_BEFORE, seconds)
    remedy = f"To have {length} more: sudo touch {KEEP_RUNNING}"
    # systemd reads `\\n` as the end of a line; wall would break a longer one, within a word.
    warning = f"This machine powers itself off within {in_words(before)}.\\n{remedy}"
    postponed = f"{KEEP_RUNNING} is removed.\\nThis machine powers itself off in {length}."
    timer = partial(POWER_OFF_TIMER.format, again=seconds)
    service = POWER_OFF_SERVICE.format(file=KEEP_RUNNING, tell=TELL, text=postponed)
    return {
        f"{POWER_OFF}.timer": timer(what=f"Power-off {length} after the boot", first=seconds),
        f"{POWER_OFF}.service": service,
        f"{POWER_OFF}-warning.timer": timer(what="Warning before it", first=seconds - before),
        f"{POWER_OFF}-warning.service": POWER_OFF_WARNING.format(tell=TELL, text=warning),
    }


def max_run_argv(seconds: int) -> list[str]:
    """virt-customize's options that put these units into a disk; the links, which count, last."""
    wants = f"{SYSTEM_UNITS}/timers.target.wants"
    argv = ["--mkdir", wants]
    units = max_run_units(seconds)
    for name, text in units.items():
        argv += ["--write", f"{SYSTEM_UNITS}/{name}:{text}"]
    for name in units:
        if name.endswith(".timer"):
            argv += ["--link", f"{SYSTEM_UNITS}/{name}:{wants}/{name}"]
    return argv


# --- what a config adds to its guest
class Additions(Record):
    """What a config adds to the guest that is made of it. Only the seed has it, as it has secrets.

    The proxies by their names; a certificate is a PEM block; the part of the user's is a text that
    cloud-init understands, or empty.
    """

    registries: Mapping[str, Any] = {}
    proxies: Mapping[str, str] = {}
    certificates: Sequence[str] = ()
    k3s_config: Mapping[str, Any] = {}
    user_part: str = ""


def additions_of(config: QemuConfig, environ: Mapping[str, str]) -> Additions:
    """What a config adds, with variables filled in and files read. Raises ConfigError."""
    guest, has_k3s = config.guest, config.k3s.install != "none"
    proxies: dict[str, str] = {}
    certificates: list[str] = []
    own = ""
    if guest.proxy == "host":
        with blamed_on(config, "guest", "proxy"):
            proxies = guest_proxies(environ)
    for index, path in enumerate(guest.ca_certificates):
        with blamed_on(config, "guest", "caCertificates", index):
            certificates += certificates_in(path)
    if guest.user_data:
        with blamed_on(config, "guest", "userData"):
            own = user_part(guest.user_data)
    return Additions(
        registries=registries_yaml(config, environ),
        proxies=proxies,
        certificates=certificates,
        k3s_config=k3s_config(config.k3s.args) if has_k3s else {},
        user_part=own,
    )


def _proxy_of(environ: Mapping[str, str], name: str) -> str:
    """A proxy setting of this host; the lower-case name, which curl wants, goes first."""
    return (environ.get(name.lower(), "") or environ.get(name, "")).strip()


def guest_proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY for the guest; none where this host has no proxy.

    Raises ConfigError where one could not be written to a file as it is.
    """
    proxies = {}
    for name in PROXY_NAMES[:2]:
        value = _proxy_of(environ, name)
        if re.search(r"""[^!-~]|["'`$#\\]""", value):
            why = f"{name} has a character that a URL can't have"
            raise ConfigError(why, hint="write it as %XX, such as %24 for $")
        if value:
            proxies[name] = re.sub(_LOOPBACK, rf"\g<1>{HOST_IN_GUEST}", value)
    if proxies:
        own = re.findall(r"(?<![^\s,])[-A-Za-z0-9.:/*_]+(?![^\s,])", _proxy_of(environ, "NO_PROXY"))
        proxies["NO_PROXY"] = ",".join(dict.fromkeys([*own, *NEVER_PROXIED]))
    return proxies


# The host of a URL, or of an address and a port alone, that is this host itself.
_LOOPBACK = (
    rf"\A((?:{_SCHEME})?(?:[^\s/?#]*@)?)"
    r"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?=[:/]|\Z)"
)


def proxy_warnings(config: QemuConfig, environ: Mapping[str, str]) -> Iterator[str]:
    """What is to be known of the proxies that a guest gets."""
    if config.guest.proxy != "host":
        return
    proxies = guest_proxies(environ)
    if not proxies:
        yield "guest.proxy: neither HTTP_PROXY nor HTTPS_PROXY is set here, so the guest has none"
    for name in PROXY_NAMES[:2]:
        if re.search(_LOOPBACK, _proxy_of(environ, name)):
            yield f"guest.proxy: {name} is on this host, which is {HOST_IN_GUEST} in the guest"


def _read_named(path: Path) -> bytes:
    """What is in a file that the config names. Raises ConfigError, which names the file."""
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path} is no file")
        return path.read_bytes()
    except OSError as error:
        unseen = invisible_in(str(path))
        what = f"; in the path is an invisible character, {unseen}" if unseen else ""
        raise ConfigError(f"{path}: {error.strerror}{what}") from None


_BEGIN = "-----BEGIN CERTIFICATE-----"
_END = "-----END CERTIFICATE-----"
_PEM = rf"{_BEGIN}([A-Za-z0-9+/=\s]+){_END}"


def certificates_in(path: Path) -> list[str]:
    """The certificates of a PEM file, one text each; a private key beside them stays here."""
    text = _read_named(path).decode("latin-1")
    bodies = re.findall(_PEM, text)
    begun = re.findall(rf"{_BEGIN}[ \t]*[\r\n]", text)
    if not bodies or len(bodies) < len(begun):
        raise _no_certificate(path, text)
    for number, body in enumerate(bodies, 1):
        if not _is_whole_der(body):
            which = f"certificate {number} of {len(bodies)}"
            raise ConfigError(f"{path}: {which} is damaged, or was cut off", hint="get it anew")
    return [f"{_BEGIN}\n{body.strip()}\n{_END}\n" for body in bodies]


def _is_whole_der(body: str) -> bool:
    """Whether a PEM block holds one whole SEQUENCE of DER (ITU-T X.690, 8.1)."""
    import base64

    try:
        der = base64.b64decode("".join(body.split()), validate=True)
    except ValueError:
        return False
    if der[:1] != b"\x30" or len(der) < 2:
        return False
    start, length = 2, der[1]
    if length >= 0x80:  # so many bytes of length follow
        start += length - 0x80
        length = int.from_bytes(der[2:start], "big")
    return len(der) == start + length


def _no_certificate(path: Path, text: str) -> ConfigError:
    """The error where a file has no certificate, or one that is not whole."""
    kinds = re.findall("-----BEGIN ([A-Z0-9 ]+)-----", text)
    if "CERTIFICATE" in kinds:
        why = "a certificate in it is damaged, or was cut off"
        return ConfigError(f"{path}: {why}", hint="get it anew")
    if kinds:
        why = f"it has no CERTIFICATE, but {', '.join(dict.fromkeys(kinds))}"
        hint = "the certificate of the authority is wanted"
        if kinds[0].endswith(" CERTIFICATE"):  # as openssl calls it, too
            quoted = shlex.quote(str(path))
            hint = f"`openssl x509 -in {quoted} -out {quoted}.crt` makes one of it; name that"
        return ConfigError(f"{path}: {why}", hint=hint)
    why, hint = "is no PEM certificate", f"one begins with {_BEGIN}"
    if text.startswith("\x30"):  # a SEQUENCE, as DER begins
        hint = "DER is made PEM by `openssl x509 -inform der -in FILE -out FILE.pem`"
    return ConfigError(f"{path} {why}", hint=hint)


def k3s_config(args: Sequence[str]) -> dict[str, Any]:
    """The options of `k3s server` as its config file has them; one given twice is a list.

    Source: docs.k3s.io/installation/configuration, "Configuration File".
    """
    values: dict[str, Any] = {}
    for arg in args:
        name, equals, value = arg.lstrip("-").partition("=")
        values.setdefault(name, []).append(value if equals else True)
    for name, found in values.items():
        if len(found) == 1:
            values[name] = found[0]
    return values


# How cloud-init tells a part's kind (docs.cloud-init.io, "User-data formats").
USER_DATA_HEADERS = (
    "#cloud-config",  # and -archive, -jsonp
    "#!",
    "#include",  # and -once
    "#cloud-boothook",
    "#part-handler",
    "## template: jinja",
)


_A_KEY = r"[\w-]+:(?:\s|$)"


def _cloud_config_fault(text: str) -> str:
    """What keeps a cloud-config from being a mapping in YAML, as far as that is seen here.

    YAML has far more than `parse_yaml` reads; what is seen is what people get wrong.
    """
    if not re.match("(?i)#cloud-config\\s", text):
        return ""
    for number, line in enumerate(text.split("\n"), 1):
        if re.match(rf"\t+ *(?:- |{_A_KEY})", line):
            return f"line {number} is indented by a tab, which YAML forbids"
        if re.match(rf" *{_INVISIBLE}+ *{_A_KEY}", line):
            return f"line {number} is indented by an invisible character"
        is_open = line.count('"') % 2 or line.count("'") % 2
        if is_open or re.search(r"[|>][-+0-9]*\s*(?:#.*)?$", line):
            break  # of a text that begins here, nothing is known
    first = re.search(r"^(?! *#|---|%)[^\n]*\S", text, re.MULTILINE)
    if first and not re.match(r" *(?:[{?&!*]|[^-\s].*:(?:\s|$)|-\S.*:(?:\s|$))", first[0]):
        return f"it is no mapping, and begins with {first[0].strip()!r}"
    return ""


def _displaces_users(text: str) -> bool:
    """Whether a cloud-config has `users` as a mapping or a text, which would displace our list."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("users:"):
            below = [line.removeprefix("users:"), *lines]
            first = next((one for one in below if one.split("#")[0].strip()), "")
            return first.startswith((" ", "\t")) and first.lstrip()[0] not in "-[&!*"
    return False


def user_part(path: Path) -> str:
    """The user's own user-data, without blank lines before it, which would hide a script's `#!`.

    Raises ConfigError where cloud-init would pass over it, or over the login of our part.
    """
    read = _read_named(path)
    if read.startswith(GZIP):
        hint = f"`zcat <{shlex.quote(str(path))} >FILE` unpacks it; name FILE"
        raise ConfigError(f"{path}: it is packed by gzip", hint=hint)
    text = decoded(path, read).lstrip("\ufeff \t\r\n")
    if re.match("(?i)content-type:|mime-version:", text):
        hint = "name the part itself: ycluster makes the message"
        raise ConfigError(f"{path}: it is a MIME message", hint=hint)
    if not text.lower().startswith(USER_DATA_HEADERS):
        hint = f"its first line begins with one of {', '.join(USER_DATA_HEADERS)}"
        raise ConfigError(f"{path}: cloud-init does not know its kind", hint=hint)
    if re.match(r"#!.*\r\n", text):
        hint = "`sed -i 's/\\r$//' FILE` makes them those of Linux"
        raise ConfigError(f"{path}: its lines end as on Windows", hint=hint)
    if re.match(r"#!(?![ \t]*/)", text):
        hint = "write one with its whole path, such as #!/bin/sh"
        raise ConfigError(f"{path}: its first line names no interpreter", hint=hint)
    fault = _cloud_config_fault(text)
    if fault:
        raise ConfigError(f"{path}: {fault}", hint="cloud-init would pass over all of it")
    if _displaces_users(text):
        hint = "write each as `- name: NAME`; ycluster's own login is put into that list"
        raise ConfigError(f"{path}: users is not a list", hint=hint)
    return text


# How our part is merged into the user's, which comes first (docs.cloud-init.io, "Merging user-data
# sections"): lists of ours go before theirs, so of two entries for one login ours counts; a
# text of ours takes the place of theirs; where both have a number or a boolean, and where only
# they have a key, theirs stays.
MERGE_HOW = (
    {"name": "list", "settings": ["prepend"]},
    {"name": "dict", "settings": ["no_replace", "recurse_list", "recurse_str"]},
    {"name": "str", "settings": []},
)


def with_user_part(ours: str, theirs: str) -> str:
    """Both parts of user-data as one MIME message, which cloud-init takes apart."""
    from email.mime.multipart import MIMEMultipart
    from email.mime.text import MIMEText

    whole = MIMEMultipart()
    whole.attach(MIMEText(theirs, "plain", "utf-8"))  # cloud-init tells its kind by its first line
    whole.attach(MIMEText(ours, "cloud-config", "utf-8"))
    return whole.as_string()


# --- the seed, and ssh
def _host_keys(private: str, public: str) -> dict[str, str]:
    """The host key, by the names that cloud-init has for it."""
    kind = "ecdsa" if public.startswith("ecdsa-") else "ed25519"
    return {f"{kind}_private": private, f"{kind}_public": public}


def seed_data(
    state: State,
    login_key: str,
    host_private: str,
    host_public: str,
    added: Additions,
) -> str:
    """cloud-init's user-data. Our part is written as JSON, which is YAML too."""
    login = {
        "name": state.ssh_user,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
        "ssh_authorized_keys": [login_key.strip()],
    }
    commands = [MOUNT_DATA] if state.data_disk else []
    if added.proxies:
        commands.insert(0, _set_proxies(added.proxies))
    cloud_config = {
        "hostname": state.name,
        "users": [login],
        "ssh_deletekeys": True,
        "ssh_keys": _host_keys(host_private, host_public.strip()),
        "package_update": False,
        "write_files": _files_of_guest(state, added),
        "bootcmd": commands,
    }
    if added.certificates:
        cloud_config["ca_certs"] = {"trusted": [*added.certificates]}
    if added.user_part:
        cloud_config["merge_how"] = [*MERGE_HOW]
    ours = "#cloud-config\n" + to_json(cloud_config) + "\n"
    return with_user_part(ours, added.user_part) if added.user_part else ours


def _files_of_guest(state: State, added: Additions) -> list[Mapping[str, str]]:
    """What cloud-init writes in the guest."""
    # Without this list a disk that boots elsewhere asks every cloud's address for its metadata.
    datasources = {
        "path": "/etc/cloud/cloud.cfg.d/99-ycluster.cfg",
        "content": "datasource_list: [NoCloud, None]\n",
    }
    mirrors = {
        "path": "/etc/rancher/k3s/registries.yaml",
        "permissions": "0600",
        "content": to_json(added.registries),
    }
    k3s_args = {"path": K3S_ARGS, "permissions": "0600", "content": to_json(added.k3s_config)}
    written: list[Mapping[str, str]] = [datasources]
    if added.registries:
        written.append(mirrors)
    if state.has_k3s and state.data_disk:
        written += K3S_ON_DATA_DISK
    if added.k3s_config:
        written.append(k3s_args)
    return written


def _set_proxies(proxies: Mapping[str, str]) -> str:
    """The script that sets the proxies; programs differ on whether they read capital letters."""
    lines = []
    for name, value in proxies.items():
        lines += [f"{name}={value}", f"{name.lower()}={value}"]
    return SET_PROXIES.format(lines="\n".join(lines))


def make_keys(host: Host, state: State) -> None:
    """Make fresh keys for this VM alone, to log in with and for its sshd; ~/.ssh is not touched.

    A disk that was kept has its login key beside it; one that the sibling imported has none.
    """
    files = state.files
    if state.imported != str(files.disk) or not files.ssh_key.exists():
        _make_key(host, files.ssh_key, f"ycluster {state.name}")
    _make_key(host, files.host_key, f"root@{state.name}")
    write_known_hosts(state)


def write_known_hosts(state: State) -> None:
    """Have ssh expect the host key that the guest got with its seed, and no other."""
    words = read_own(state.files.host_pub).decode("ascii").split()
    algorithm, key = words[:2]
    known_host = f"{state.name} {algorithm} {key}\n"
    write_file(state.files.known_hosts, known_host.encode())


def _make_key(host: Host, file: Path, comment: str) -> None:
    remove(file)
    remove(file.with_name(file.name + ".pub"))
    options = ["-N", "", "-C", comment, "-f", str(file)]
    try:
        host.run(["ssh-keygen", "-q", "-t", "ed25519", *options], timeout=30)
    except ProgramFailed:  # refused in FIPS mode, which allows P-256
        host.run(["ssh-keygen", "-q", "-t", "ecdsa", "-b", "256", *options], timeout=30)
    for path in (file, file.with_name(file.name + ".pub")):
        keep_owner(path, file.parent)


def make_seed(state: State, added: Additions) -> None:
    """Make the NoCloud seed, a folder that QEMU shows to the guest as a volume labelled CIDATA."""
    files = state.files
    remove_folder(files.seed)
    make_folder(files.seed)
    login_key = read_own(files.ssh_pub).decode("ascii")
    host_private = read_own(files.host_key).decode("ascii")
    host_public = read_own(files.host_pub).decode("ascii")
    data = seed_data(state, login_key, host_private, host_public, added)
    # A new id makes cloud-init apply the new keys even to a disk that has booted before.
    instance = f"{state.name}-{os.urandom(8).hex()}"
    meta = to_json({"instance-id": instance, "local-hostname": state.name})
    write_file(files.seed / "user-data", data.encode())
    write_file(files.seed / "meta-data", meta.encode())


def ssh_argv(state: State, *command: str, terminal: bool = False) -> list[str]:
    """The ssh command for a cluster: with its own key and its own known_hosts alone.

    `terminal`: the command gets one, as a login without a command always does.
    """
    address, port = state.ssh_at
    argv = ["ssh", "-F", "/dev/null", "-p", str(port)]
    for name, value in _ssh_options(state).items():
        argv += ["-o", f"{name}={value}"]
    if terminal:
        argv.append("-t")
    return [*argv, "--", f"{state.ssh_user}@{address}", *command]


def _ssh_options(state: State) -> dict[str, str]:
    files = state.files
    return {
        "IdentityFile": _ssh_path(files.ssh_key),
        "IdentitiesOnly": "yes",
        "BatchMode": "yes",
        "LogLevel": "ERROR",
        "ConnectTimeout": "20",
        "UserKnownHostsFile": _ssh_path(files.known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        # The sibling's VM has no host key of ours: the first key that it shows is kept, and every
        # later connection is checked against it.
        "StrictHostKeyChecking": "yes" if files.host_pub.exists() else "accept-new",
        "HostKeyAlias": state.name,
        "ServerAliveInterval": "15",
    }


def ssh_block(state: State) -> str:
    """The same as a Host block of ~/.ssh/config, by the cluster's name.

    It begins with an empty line: what it is appended to may not end with a line end.
    """
    address, port = state.ssh_at
    place = {"HostName": address, "Port": str(port), "User": state.ssh_user}
    options = {**place, **_ssh_options(state), "ProxyCommand": "none"}
    lines = ["", f"Host {state.name}"]
    for name, value in options.items():
        lines.append(f"  {name} {value}")
    return "\n".join(lines)


def _ssh_path(path: Path) -> str:
    """Quote a path for an option of ssh, which splits at spaces and expands `%`.

    Only where it has to be: so that a shell can take $YCLUSTER_SSH as it is, too.
    """
    escaped = re.sub(r'(["\\])', r"\\\1", str(path).replace("%", "%%"))
    return escaped if re.fullmatch("[-A-Za-z0-9@%+=:,./_]+", escaped) else f'"{escaped}"'


def repair_login(state: State) -> None:
    """Put right what keeps ssh from logging in, where it is ours and what is right is known.

    ssh ignores a key that others can read, and wants the guest's host key to be in known_hosts.
    """
    files = state.files
    # What can't be repaired is reported by ssh, or by `_final_fault`.
    with contextlib.suppress(OSError, YclusterError):
        if not os.path.lexists(files.known_hosts) and files.host_pub.exists():
            write_known_hosts(state)
    with contextlib.suppress(OSError):  # as above
        fd = os.open(files.ssh_key, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with descriptor(fd):
            status = os.fstat(fd)
            if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                os.fchmod(fd, 0o600)


class NotYet(YclusterError):
    """A question to the guest has failed, and may be answered later; the message is the reason."""


# What ssh writes where it will fail at every try, for a reason that no guest can change; and what
# to do about it.
_FINAL_FAULTS = (
    (
        r"Permissions .* are too open",
        "`chmod 600 {key}`; if that changes nothing, its file system has no modes: use another "
        "cacheDir",
    ),
    (r'Load key ".*": |no such identity: ', "bring {key} back; {lost}"),
    (
        r"Host key for .* has changed|No .* host key is known for ",
        "see `ycluster console {name}`; if it is the guest's own new key, accept it:\n"
        "rm {host_pub} {known_hosts}",
    ),
    (
        r".*Bad configuration option|.*[Uu]nsupported option|unknown option",
        "OpenSSH 7.6 or later is needed; `ssh -V` tells which one is on PATH",
    ),
    (
        r"Unable to negotiate with ",
        "the guest's sshd and this host's ssh have no algorithm in common: use another image, or "
        "let this host's\nOpenSSH configuration or crypto policy allow what the guest offers",
    ),
    (r"No user exists for uid ", "ssh needs a line for this uid in /etc/passwd"),
    (r"OpenSSL version mismatch", "reinstall openssh-client"),
)
_LOST_KEY = (
    "without it nobody can log in. A copy of the disk gets a new one:\n"
    "`ycluster import {disk} -c DIR`, with another name in DIR's config, and `provision`"
)


def _final_fault(state: State, written: str) -> YclusterError | None:
    """The error where ssh wrote that it will fail at every try; None where it may succeed yet."""
    files = state.files
    paths = {
        "key": files.ssh_key,
        "disk": files.disk,
        "host_pub": files.host_pub,
        "known_hosts": files.known_hosts,
    }
    quoted = {name: shlex.quote(str(path)) for name, path in paths.items()}
    lost = _LOST_KEY.format(**quoted)
    for pattern, remedy in _FINAL_FAULTS:
        found = re.search(rf"(?m)^(?:{pattern}).*", written)
        if found:
            hint = remedy.format(name=state.name, lost=lost, **quoted)
            why = f"{state.name}: ssh can't log in: {found[0].strip()}"
            return YclusterError(why, hint=f"{hint}\n{goes_on_until(state)}")
    return None


def in_guest(
    host: Host,
    state: State,
    command: str,
    waiting: Waiting,
) -> str:
    """What a command prints in the guest.

    Raises NotYet where it fails or gives no answer in time, as while the guest boots; YclusterError
    where ssh says that no try can succeed.
    """
    argv = ssh_argv(state, command)
    argv[argv.index("LogLevel=ERROR")] = "LogLevel=INFO"  # some reasons are written only then
    try:
        return host.run(argv, timeout=30, waiting=waiting).stdout
    except NoAnswer:
        raise NotYet("no answer within 30 s") from None
    except ProgramFailed as error:
        fault = None
        if error.returncode == SSH_FAILED:
            fault = _final_fault(state, error.stderr)
        lines = lines_that_matter(argv, error.stderr)
        raise fault or NotYet(lines[-1] if lines else f"exit {error.returncode}") from None


def goes_on_until(state: State) -> str:
    """A sentence on how long a VM keeps running that nothing else stops, and how to stop it."""
    until = "you stop it"
    if state.expires_at is not None:
        until = "its deadline"
    elif state.idle is not None:
        until = f"nobody has used it for {state.max_idle}"
    return f"it keeps running until {until}; `ycluster stop --name {state.name}` stops it now"


# --- its clock
# A guest's clock stands still while its CPUs do, in a pause or while the host sleeps. Its RTC does
# not: QEMU's follows the host's clock, unless -rtc says otherwise (source: system/rtc.c of QEMU).
# A guest without one takes the host's time, which is "$1".
GUEST_CLOCK = """\
now=$(cat /sys/class/rtc/rtc0/since_epoch 2>/dev/null) || now=$1
late=$((now - $(date +%s)))
if [ ${late#-} -gt 2 ]; then date -s @$now >/dev/null && echo $late; fi
"""


def set_guest_clock(host: Host, state: State) -> None:
    """Set the guest's clock if it is off by more than 2 s. Best effort, for up to half a minute.

    For after its CPUs stood still; outside of the cluster's lock, which others may wait for.
    """
    try:
        if not ssh_banner(*state.ssh_at, 2.0):
            return  # a guest without sshd, or one that is about to shut down
        _say_clock(host, state, in_guest(host, state, _clock_command(host), lambda: None))
    except (YclusterError, OSError) as error:
        host.output.warn(f"{state.name}: its clock could not be set, and may be late: {error}")


def _clock_command(host: Host) -> str:
    """The command that sets the guest's clock, and prints by how many seconds it was off."""
    now = str(int(host.now()))
    return shlex.join(["sudo", "sh", "-c", GUEST_CLOCK, "clock", now])


def _say_clock(host: Host, state: State, off: str | None) -> None:
    """Tell what came of setting the guest's clock; None: it failed."""
    if off is None:
        host.output.warn(f"{state.name}: its clock could not be set, and may be late")
    elif off.strip():
        host.output.say(f"  {state.name}: its clock was off by {off.strip()} s, and is set")


# --- the wait for the boot
STARTING_QEMU = "starting QEMU"


class Stage(Record):
    """A step of a boot, and the question that is asked until it answers yes.

    Where it raises NotYet, that is a no with a reason.
    """

    name: str  # what goes on meanwhile: booting
    reached: Callable[[Host, State, Waiting], bool]


def firmware_speaks(host: Host, state: State, waiting: Waiting) -> bool:
    """Whether anything has been written to the serial console."""
    written: int = os.lstat(state.files.console).st_size
    return written > 0


def ssh_answers(host: Host, state: State, waiting: Waiting) -> bool:
    """Whether the guest's sshd speaks."""
    return ssh_banner(*state.ssh_at, 2.0, waiting)


def ssh_banner(
    address: str,
    port: int,
    timeout: float,
    waiting: Waiting = lambda: None,
) -> bool:
    """Whether an ssh server speaks within `timeout` seconds.

    A TCP connection alone proves nothing: QEMU accepts it before anybody listens in the guest.
    """
    import socket

    try:
        with socket.create_connection((address, port), timeout=timeout) as connection:
            return _sends_banner(connection, timeout, waiting)
    except OSError:
        return False


def _sends_banner(connection: Any, timeout: float, waiting: Waiting) -> bool:
    for _ in range(4):
        readable, _, _ = select.select([connection], [], [], timeout / 4)
        if readable:
            return bool(connection.recv(4) == b"SSH-")
        waiting()
    return False


def login_works(host: Host, state: State, waiting: Waiting) -> bool:
    """Whether our key opens the guest."""
    in_guest(host, state, "true", waiting)
    return True


# Without KVM `cloud-init status` takes seconds to start, so its result file is looked for instead.
# A login takes seconds as well, so a single one waits for the file, for up to ten seconds.
CLOUD_INIT_RESULT = """\
command -v cloud-init >/dev/null || exit 0
[ -e /run/cloud-init/disabled ] && exit
for i in $(seq 20); do
  [ -e /run/cloud-init/result.json ] && exec cat /run/cloud-init/result.json
  sleep 0.5
done
exit 1
"""


def cloud_init_is_done(host: Host, state: State, waiting: Waiting) -> bool:
    """Whether cloud-init has finished this boot, or has no part in it. Its errors are warnings."""
    _warn_of_cloud_init(host, in_guest(host, state, CLOUD_INIT_RESULT, waiting))
    return True


def _warn_of_cloud_init(host: Host, result: str) -> None:
    for error in _cloud_init_errors(result):
        host.output.warn(f"cloud-init in the guest: {error}")


def _cloud_init_errors(result: str) -> list[object]:
    """The errors in cloud-init's result.json; none if it is empty or of another shape."""
    try:
        return list(json.loads(result)["v1"]["errors"])
    except (ValueError, LookupError, TypeError):
        return []


BOOT_STAGES = (
    Stage("booting", firmware_speaks),
    Stage("waiting for SSH", ssh_answers),
    Stage("logging in", login_works),
    Stage("waiting for cloud-init", cloud_init_is_done),
)


def goes_on(host: Host, state: State, waiting: Waiting) -> bool:
    """Whether a guest that was suspended can be logged in to; the same login sets its clock.

    It may have been in the middle of a boot, so cloud-init is waited for.
    """
    clock = f"off=$({_clock_command(host)}) || off=failed"
    result = f"result=$(\n{CLOUD_INIT_RESULT}) || exit 1"
    show = 'echo "$off"; echo "$result"'
    answer = in_guest(host, state, f"{clock}\n{result}\n{show}", waiting)
    off, _, result = answer.partition("\n")
    _say_clock(host, state, None if off == "failed" else off)
    _warn_of_cloud_init(host, result)
    return True


# A guest that goes on writes nothing to its console.
RESTORED_STAGES = (Stage("waiting for SSH", ssh_answers), Stage("logging in", goes_on))


class BootWait:
    """The wait for a VM to boot, one stage after the other. It ends soon after the VM does.

    `look` is called at least twice a second, whatever is being asked: an ssh can hang for long.
    """

    def __init__(
        self,
        host: Host,
        state: State,
        vm: Vm,
        timeout: float,
    ) -> None:
        self.host = host
        self.state = state
        self.vm = vm
        self.timeout = timeout  # seconds that each stage may take
        self.steps = Steps(host.output, host.monotonic)
        self.stage = STARTING_QEMU
        self.reason = ""  # why the last question failed
        self.looked = host.monotonic()  # when the VM was last looked at
        self.until = self.looked + timeout

    def reach(self, stage: Stage) -> None:
        """Ask until a stage is reached; raises as `look` does, and what no wait can help."""
        self.stage = stage.name
        self.reason = ""
        self.until = self.host.monotonic() + self.timeout
        while not self._reached(stage):
            self.look()
            exited(self.vm.pidfd, 0.1)  # a pause, which the end of QEMU cuts short
        self.steps.done(stage.name)

    def _reached(self, stage: Stage) -> bool:
        try:
            return stage.reached(self.host, self.state, self.look)
        except NotYet as error:
            self.reason = str(error)
            return False

    def look(self) -> None:
        """Show the stage; raise TimedOut past its bound, YclusterError if the boot has failed."""
        ended = exited(self.vm.pidfd, 0)
        if ended or self.host.monotonic() > self.looked + 1:
            self.check()
            self.looked = self.host.monotonic()
        if self.host.monotonic() > self.until:
            raise self._timed_out()
        self.steps.waiting(self._with_reason(self.stage))

    def _with_reason(self, text: str) -> str:
        return f"{text}: {self.reason}" if self.reason else text

    def _timed_out(self) -> TimedOut:
        state = self.state
        bound = self._with_reason(f"{self.stage} took more than {self.timeout:.0f} s")
        hint = goes_on_until(state)
        if "Permission denied" in self.reason:
            which = f"{state.ssh_user} and {state.files.ssh_pub.name}"
            hint = f"cloud-init has not run in the guest, or has not let in {which}\n{hint}"
        shown = console_tail(state.files)
        return TimedOut(f"{state.name}: {bound}; {shown}", hint=hint)

    def check(self) -> None:
        """Raise if QEMU has ended, or its guest does not run."""
        trouble = self._trouble()
        if trouble:
            forget_kvm(self.host)  # a guest that stops may be KVM's fault; its check will tell
            raise _boot_failed(self.state, self.stage, trouble)
        console = console_tail(self.state.files, 2)
        for pattern, what, check in DEAD_ENDS:
            if re.search(pattern, console):
                hint = f"{check}\n{goes_on_until(self.state)}".strip()
                raise _boot_failed(self.state, self.stage, what, hint)

    def _trouble(self) -> str:
        """What keeps the guest from booting; empty if nothing is known to."""
        if exited(self.vm.pidfd, 0):
            return "QEMU ended"
        status = vm_status(self.host, self.state.files)
        if status == "stopped":
            return "QEMU ended"
        if status == NO_ROOM:
            way_on = f"make room, then `ycluster resume --name {self.state.name}` goes on"
            return f"{NO_ROOM_WORDS} ({way_on})"
        # A monitor that is in use, or slow to answer, proves nothing about the guest.
        if status not in ("running", "busy", "unresponsive"):
            return f"it is {status}"
        return ""


_OF_THE_IMAGE = "see `image` in the config: its disk must be a cloud image that boots by BIOS"
# What the console ends with where a boot has come to its end, though QEMU runs; what that means,
# and what to check. Of SeaBIOS, Linux, GRUB, the initramfs of Debian and Ubuntu, and systemd.
DEAD_ENDS = (
    (r"No bootable device", "its firmware finds nothing to boot on its disk", _OF_THE_IMAGE),
    (r"end Kernel panic - not syncing", "its kernel panicked", ""),
    (r"(?m)^ *grub rescue> *$", "its boot loader can't go on", _OF_THE_IMAGE),
    (r"(?m)^ *\(initramfs\) *$", "its initramfs can't go on", _OF_THE_IMAGE),
    (
        r"or press Control-D to continue\): *$|the root account is locked\.",
        "systemd is in emergency mode",
        "check the guest's /etc/fstab",
    ),
)


def _boot_failed(
    state: State,
    stage: str,
    trouble: str,
    hint: str = "",
) -> YclusterError:
    files = state.files
    why = f"{state.name}: {trouble} while {stage}; {console_tail(files)}"
    return YclusterError(why, hint=f"{hint}\nthe whole console: {files.console}".strip())


def wait_ready(
    host: Host,
    state: State,
    *,
    timeout: float,
    stages: Sequence[Stage] = BOOT_STAGES,
) -> None:
    """Wait until you can log in and the stages are reached, each shown with its time.

    Raises YclusterError with the end of the console within a second or so of the moment when QEMU
    ends or its guest stops, TimedOut when a stage takes more than `timeout` seconds.
    """
    repair_login(state)
    with find_vm(host, state.files) as vm:
        if vm is None:
            raise _boot_failed(state, STARTING_QEMU, "QEMU ended")
        wait = BootWait(host, state, vm, timeout)
        wait.check()
        wait.steps.done(STARTING_QEMU)
        for stage in stages:
            wait.reach(stage)


def printable(written: bytes) -> str:
    """What was written to a console, without what would drive a terminal."""
    text = written.decode("utf-8", "replace")
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|[^\n\x20-\x7e]", "", text)


def console_tail(files: Files, lines: int = 12) -> str:
    """The last lines of the serial console, without what would drive a terminal."""
    try:
        written = read_own(files.console, 8192, last=True)
    except OSError as error:
        return f"there is no console: {error.strerror}"
    shown = [line.rstrip() for line in printable(written).split("\n") if line.strip()]
    if not shown:
        return "its console is empty"
    return "\n    ".join(["its console's last lines:", *shown[-lines:]])


# === 16 k3s =======================================================================================
# Downloads, and k3s: its release on this host, its installation in the guest. A file of the release
# is checked at each use, and takes its name only once it is whole and checked: what the release's
# list names, by its digest; install.sh, which is not in the list, by its first bytes; the list
# itself by whether it has those digests. Until then it is a `.part` beside it.


# --- downloads: of k3s here, of disk images in section 18
def download(
    host: Host,
    url: str,
    part: Path,
    hint: str,
    wanted: str = "",
    by: str = "",
    explain: Callable[[Path], str] | None = None,
) -> str:
    """Copy what a URL names to the file `part`, and return its SHA-256.

    `wanted` is the digest that it must have, empty if any will do, and `by` names what gives it.
    `explain` is asked for what a file without that digest is, as far as can be told.
    A user and a password are sent to the host of the URL alone, as `credentials` finds them.

    With a digest, a `part` that is there already is resumed. Raises PrerequisiteError with `hint`
    if the file is not available, ConfigError if its digest differs.
    """
    # Without a digest nobody could tell whether the rest belongs to what is here.
    have = 0
    if wanted and part.exists():
        have = part.stat().st_size
    digest = _fetch(host, url, part, have, hint, wanted)
    if have and digest != wanted:
        # What was here may be the beginning of another file: try once more, from the start.
        remove(part)
        digest = _fetch(host, url, part, 0, hint, wanted)
    if wanted and digest != wanted:
        hint = (explain and explain(part)) or "one of them is wrong, or the file has been changed"
        remove(part)
        why = f"{url}: its SHA-256 is {digest}, but {by} gives {wanted}"
        raise ConfigError(why, hint=hint)
    return digest


def _fetch(
    host: Host,
    url: str,
    part: Path,
    have: int,
    hint: str,
    wanted: str,
) -> str:
    """Fetch what follows the first `have` bytes of `part`, and return the SHA-256 of the whole.

    The result is empty if the server has nothing after these bytes. Raises PrerequisiteError; its
    hint is `hint` unless it is this host that failed.
    """
    from http import HTTPStatus
    from http.client import HTTPException

    try:
        _ask_and_copy(host, url, part, have)
        return digest_of(host, part)
    except PrerequisiteError:
        if not wanted:
            remove(part)  # it could not be resumed
        raise
    except (OSError, ValueError, HTTPException) as error:
        if not wanted:
            remove(part)
        status = getattr(error, "code", 0)
        if have and status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return ""  # what is here is the whole file, or not the beginning of this one
        if status == HTTPStatus.UNAUTHORIZED:
            known = "a user and a password go into the URL (%2F for /, %40 for @), or into ~/.netrc"
            hint = f"{known}; or\n{hint}"
        if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            gone = "there is no such release, or no longer (dated images vanish after some months)"
            hint = f"{gone}: choose another, with its digest; or\n{hint}"
        why = getattr(error, "reason", None) or error
        raise PrerequisiteError(f"{url}: {why}", hint=hint) from None


def _ask_and_copy(
    host: Host,
    url: str,
    part: Path,
    have: int,
) -> None:
    """Ask for what follows the first `have` bytes, and copy the answer to where it belongs."""
    import urllib.request
    from http import HTTPStatus

    bare = without_password(url)
    _refuse_special(bare)
    request = urllib.request.Request(bare)
    if have:
        request.add_header("Range", f"bytes={have}-")
    known = credentials(host, url)
    if known:
        request.add_unredirected_header("Authorization", _basic(*known))
    with _opener().open(request, timeout=60) as answer:
        # A server that does not know ranges sends the file from its beginning.
        start = have if answer.status == HTTPStatus.PARTIAL_CONTENT else 0
        _copy(host, answer, part, start, bare.rpartition("/")[2])


def _refuse_special(url: str) -> None:
    """Raise OSError where a URL names a device or a FIFO: it has no end, or is waited for."""
    import urllib.parse

    parts = urllib.parse.urlsplit(url)
    path = urllib.parse.unquote(parts.path)
    if parts.scheme == "file" and os.path.exists(path) and not os.path.isfile(path):
        raise OSError(errno.EINVAL, "it is not a regular file", path)


def _basic(user: str, password: str) -> str:
    """The value of an Authorization header (RFC 7617)."""
    import base64

    both = f"{user}:{password}".encode()
    return "Basic " + base64.b64encode(both).decode("ascii")


def _opener() -> Any:
    """What opens URLs. A password follows a redirect on the same server, and none to another."""
    import urllib.request

    class SameServer(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, *answer: Any) -> Any:
            further = super().redirect_request(req, *answer)
            known = req.get_header("Authorization")
            if further and known and (further.type, further.host) == (req.type, req.host):
                further.add_unredirected_header("Authorization", known)
            return further

    return urllib.request.build_opener(SameServer)


def credentials(host: Host, url: str) -> tuple[str, str] | None:
    """The user and the password for a URL: its own, or those of its host in ~/.netrc; or None."""
    import urllib.parse

    parts = urllib.parse.urlsplit(url)
    if parts.username is None:
        return _from_netrc(host, parts.hostname or "")
    return urllib.parse.unquote(parts.username), urllib.parse.unquote(parts.password or "")


def _from_netrc(host: Host, machine: str) -> tuple[str, str] | None:
    """What ~/.netrc has for a machine; its `default` is not for whoever a config names."""
    import netrc

    try:
        found = netrc.netrc(str(host.home() / ".netrc")).hosts.get(machine)
    except (OSError, ValueError, netrc.NetrcParseError, YclusterError) as error:
        # Without its message, which may quote a password.
        host.output.debug(f"~/.netrc is not used: {type(error).__name__}")
        return None
    return (found[0], found[2] or "") if found else None


def with_credentials(host: Host, url: str) -> str:
    """A URL with the user and the password that `credentials` finds for it."""
    import urllib.parse

    known = credentials(host, url)
    if not known:
        return url
    user, password = (urllib.parse.quote(word, safe="") for word in known)
    scheme, _, rest = without_password(url).partition("://")
    return f"{scheme}://{user}:{password}@{rest}"


def _copy(
    host: Host,
    answer: Any,
    part: Path,
    start: int,
    what: str,
) -> None:
    """Copy an answer to a file, from the byte `start` on; OSError if it is cut off.

    PrerequisiteError, which names the file, if it can't be written.
    """
    size = start
    total = 0  # unknown
    total_mib = "?"
    length = answer.headers.get("Content-Length")
    if length:
        total = start + int(length)
        total_mib = str(total >> 20)
    steps = Steps(host.output, host.monotonic)
    try:
        fd = os.open(part, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "r+b") as file:
            file.truncate(start)
            file.seek(start)
            for block in _blocks(answer):
                _write_sparse(file, block)
                size += len(block)
                steps.waiting(f"fetching {what}: {size >> 20} of {total_mib} MiB")
            file.truncate(size)  # a hole at the end counts only now
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        why = f"{part}: it can't be written: {error.strerror or error}"
        raise PrerequisiteError(why, hint="see `df` and the folder's permissions") from error
    if total and size != total:
        raise OSError(f"cut off after {size} of {total} bytes")
    steps.done(f"{what} of {size >> 20} MiB")


def _blocks(answer: Any) -> Iterator[bytes]:
    """What is read of an answer. HTTPException if that fails, so that OSError means writing it."""
    from http.client import HTTPException

    try:
        while block := answer.read(1 << 20):
            yield block
    except OSError as error:
        raise HTTPException(str(error)) from error


def _write_sparse(file: IO[bytes], block: bytes) -> None:
    """Write a block, or leave a hole for one of zeros: an image is mostly empty."""
    if block.count(0) == len(block):
        file.seek(len(block), os.SEEK_CUR)
    else:
        file.write(block)


def digest_of(host: Host, path: Path) -> str:
    """The SHA-256 of a file. Raises ProgramFailed if it can't be read."""
    steps = Steps(host.output, host.monotonic)
    waiting = partial(steps.waiting, f"checking {path.name}")
    listed = host.run(["sha256sum", "--", str(path)], timeout=3600, waiting=waiting).stdout
    return listed.lstrip("\\")[:64]  # a backslash marks an escaped file name


# --- files that are kept: checked at each use, since anybody may have put them there
def digest_fault(host: Host, path: Path, wanted: str) -> str:
    """What is wrong with a file that must have a SHA-256; empty where nothing is."""
    if not path.is_file():  # a FIFO would be waited for
        return "it is not a regular file"
    try:
        found = digest_of(host, path)
    except ProgramFailed as error:
        return str(error)
    return "" if found == wanted else f"its SHA-256 is {found}, and not {wanted}"


@contextlib.contextmanager
def fetching_anew(host: Host, path: Path, fault: str) -> Iterator[None]:
    """Fetch another file in the block, in the place of one with a fault.

    The user learns of that, and of both where no other can be had. Without a fault, only do it.
    """
    if fault:
        host.output.warn(f"{path}: {fault}; it is fetched anew")
    try:
        yield
    except PrerequisiteError as error:
        if not fault:
            raise
        why = f"{path}: {fault}; and no other can be fetched: {error}"
        raise PrerequisiteError(why, hint=error.hint) from error


# --- the release
K3S_LISTING = "sha256sum-amd64.txt"  # the release's own list of digests
K3S_INSTALL = "install.sh"  # which the list does not have
K3S_LISTED = ("k3s", "k3s-airgap-images-amd64.tar.zst")
K3S_FILES = (K3S_LISTING, K3S_INSTALL, *K3S_LISTED)
K3S_HINT = (
    "k3s.source can name a folder or a mirror with the release's files; "
    "`k3s: {install: none}` gives a plain VM"
)


def k3s_cache(host: Host) -> Path:
    """The folder of the releases on this host, which the sibling shares: a folder a version."""
    return host.home() / ".cache" / "y-cluster" / "k3s"


def check_k3s_source(host: Host, config: QemuConfig) -> None:
    """Raise ConfigError where `k3s.source` is a folder of this host that lacks a release's file.

    One whose release is in the cache need not be there.
    """
    if config.k3s.install != "airgap" or not config.k3s.source.startswith("file:"):
        return
    folder = path_of_url(config.k3s.source)
    kept = k3s_cache(host) / config.k3s.version
    missing = [name for name in K3S_FILES if not (kept / name).is_file()]
    with blamed_on(config, "k3s", "source"):
        if missing and not folder.is_dir():
            raise ConfigError(f"{folder}: no such folder", hint=K3S_HINT)
        for name in missing:
            if not (folder / name).is_file():
                hint = f"{', '.join(K3S_FILES)} of a release are wanted"
                raise ConfigError(f"{folder}: {name} is not there", hint=hint)


def fetch_k3s(host: Host, version: str, source: str) -> Path:
    """Fetch what is missing or wrong of a k3s release; returns its folder in the user's cache.

    Another program shares that cache, so each file is checked at each call. One that is wrong stays
    until there is another. Raises PrerequisiteError if a file is not available, ConfigError if it
    is not what it should be.
    """
    folder = k3s_cache(host) / version
    own_folder(folder)
    listing, *others = [partial(_fetch_k3s_file, host, folder, name) for name in K3S_FILES]
    with locked(host, folder / ".lock", timeout=3600):
        list_is_new = listing(version, source)
        try:
            for fetch in others:
                fetch(version, source)
        except ConfigError:
            if list_is_new:
                raise
            # The list that was in the cache may be the one that is wrong.
            listing(version, source, anew=True)
            for fetch in others:
                fetch(version, source)
        mark_used(host, folder / K3S_LISTING)
    return folder


def _fetch_k3s_file(
    host: Host,
    folder: Path,
    name: str,
    version: str,
    source: str,
    *,
    anew: bool = False,
) -> bool:
    """Fetch one file of a release, and check it, unless the one in the cache is right.

    Returns whether it was fetched.
    """
    path, part = folder / name, folder / f".{name}.part"
    url = _k3s_url(name, version, source)
    fault = ""
    if os.path.lexists(path):
        fault = _k3s_fault(host, path, folder)
        if not fault and not anew:
            return False
    wanted = "" if name in (K3S_LISTING, K3S_INSTALL) else _k3s_digest(folder / K3S_LISTING, name)
    with fetching_anew(host, path, fault):
        download(host, url, part, K3S_HINT, wanted, K3S_LISTING)
    if not wanted:
        fault = _k3s_fault(host, part, folder, name)
        if fault:
            remove(part)
            raise ConfigError(f"{url}: {fault}", hint=K3S_HINT)
    keep_owner(part, folder)
    part.replace(path)
    return True


def _k3s_fault(
    host: Host,
    path: Path,
    folder: Path,
    name: str = "",
) -> str:
    """What is wrong with a file of a release; empty where nothing is. `name`: as in the release."""
    name = name or path.name
    if not path.is_file():  # a FIFO would be waited for
        return "it is not a regular file"
    try:
        if name == K3S_LISTING:
            unlisted = [file for file in K3S_LISTED if not _k3s_digest(path, file)]
            return f"it has no digest of {unlisted[0]}" if unlisted else ""
        if name == K3S_INSTALL:
            with open(path, "rb") as file:
                return "" if file.read(2) == b"#!" else "it is not a script"
    except OSError as error:
        return f"it can't be read: {error.strerror}"
    return digest_fault(host, path, _k3s_digest(folder / K3S_LISTING, name))


def _k3s_url(name: str, version: str, source: str) -> str:
    """Where a file of a release comes from: `source`, or GitHub if that is empty."""
    if source:
        return f"{source}/{name}"
    if name == K3S_INSTALL:  # it is in the repository, and not among the files of a release
        return f"https://raw.githubusercontent.com/k3s-io/k3s/{version}/{name}"
    tag = version.replace("+", "%2B")
    return f"https://github.com/k3s-io/k3s/releases/download/{tag}/{name}"


def _k3s_digest(listing: Path, name: str) -> str:
    """The digest of a file in the release's list; empty if it is not listed."""
    pattern = rf"(?m)^([0-9a-f]{{64}}) [ *]{re.escape(name)}$"  # as sha256sum writes a line
    found = re.search(pattern, listing.read_text("utf-8", "replace"))
    return found[1] if found else ""


# --- in the guest
K3S_START = """\
if systemctl --root=/ is-enabled -q k3s
then sudo systemctl start --no-block k3s
else echo absent
fi
"""
# The installation: `sh -eu` runs one of these combinations as root in a folder of its own, with the
# version of the release as "$1". Its source, which may have a password that no argv should have, is
# a line of stdin. A guest may have curl or wget.
K3S_GET = """\
get() {
  if command -v curl >/dev/null; then curl -sfL "$1"; else wget -qO- "$1"; fi
}
"""
K3S_FROM_RELEASE = f"""\
IFS= read -r source
for file in {" ".join(K3S_FILES)}; do get "$source/$file" >$file; done
for file in {" ".join(K3S_LISTED)}; do grep "^[0-9a-f]* [ *]$file\\$" {K3S_LISTING}; done >listed
sha256sum --quiet -c listed
[ "$(head -c 2 {K3S_INSTALL})" = '#!' ]
"""
K3S_SCRIPT = """\
get https://get.k3s.io >install.sh
INSTALL_K3S_VERSION="$1" sh install.sh
"""
K3S_AIRGAP = """\
install -d /var/lib/rancher/k3s/agent/images
install -m 0755 k3s /usr/local/bin/k3s
mv k3s-airgap-images-amd64.tar.zst /var/lib/rancher/k3s/agent/images/

# With this file k3s imports images only when they have changed; without it, at every start.
: >/var/lib/rancher/k3s/agent/images/.cache.json

INSTALL_K3S_SKIP_DOWNLOAD=true sh install.sh
"""
K3S_API_READY = "sudo k3s kubectl get --raw /readyz"
# Asked by name, since an imported disk may remember nodes of other names.
K3S_NODE_READY = (
    "sudo k3s kubectl get node $(hostname | tr A-Z a-z) "
    "-o 'jsonpath={.status.conditions[?(@.type==\"Ready\")].status}'"
)


def k3s_stages(state: State) -> tuple[Stage, ...]:
    """What follows the boot of a VM with k3s; nothing for one without."""
    if not state.has_k3s:
        return ()
    return (
        Stage("installing k3s", install_k3s),
        Stage("waiting for the API", api_is_ready),
        Stage("waiting for the node", node_is_ready),
    )


def api_is_ready(host: Host, state: State, waiting: Waiting) -> bool:
    """Whether Kubernetes in the guest serves its API."""
    in_guest(host, state, K3S_API_READY, waiting)
    return True


def node_is_ready(host: Host, state: State, waiting: Waiting) -> bool:
    """Whether the guest's own node is Ready."""
    return in_guest(host, state, K3S_NODE_READY, waiting) == "True"


def install_k3s(host: Host, state: State, waiting: Waiting) -> bool:
    """Start k3s in the guest, or install it if it is not enabled; return whether it is there.

    It is enabled near the end of an installation, so one that was cut short is done again.
    """
    # No answer does not mean that it is absent: then NotYet is raised, and it is asked again.
    if in_guest(host, state, K3S_START, waiting) != "absent\n":
        return True
    host.run(ssh_argv(state, "mkdir -p k3s-install"), timeout=60, waiting=waiting)
    if state.k3s["Install"] == "airgap":
        _copy_k3s(host, state, waiting)
    _run_k3s_install(host, state, waiting)
    return True


def k3s_release(state: State) -> tuple[str, str]:
    """The version of k3s, and the source of its files (empty: the release on GitHub)."""
    version = str(state.k3s.get("Version") or K3S_VERSION)  # the sibling may leave it empty
    if not re.fullmatch(_K3S_RELEASE_NAME, version):  # a folder is named by it
        raise _unreadable(state.files.sidecar, f"k3s.Version {version!r} is not a release of k3s")
    return version, str(state.k3s.get("Source", ""))


def _copy_k3s(host: Host, state: State, waiting: Waiting) -> None:
    """Copy the release from this host to the guest, which then needs no network."""
    version, source = k3s_release(state)
    folder = fetch_k3s(host, version, source)
    files = [str(folder / name) for name in K3S_FILES if name != K3S_LISTING]
    ssh = ssh_argv(state)
    options = ssh[1:-1]
    options[options.index("-p")] = "-P"  # the port, by scp's letter
    target = f"{ssh[-1]}:k3s-install/"
    argv = ["scp", "-q", *options, *files, target]
    host.run(argv, timeout=1800, waiting=waiting)


def _run_k3s_install(host: Host, state: State, waiting: Waiting) -> None:
    """Run the installation in the guest, in its folder, which is removed once that succeeds."""
    version, source = k3s_release(state)
    told = None
    if state.k3s["Install"] == "airgap":
        script = K3S_AIRGAP
    elif source:
        script = K3S_GET + K3S_FROM_RELEASE + K3S_AIRGAP
        told = with_credentials(host, source) + "\n"
    else:
        script = K3S_GET + K3S_SCRIPT
    install = shlex.join(["sudo", "sh", "-euc", script, "k3s", version])
    command = f"cd k3s-install && {install} && rm -r ../k3s-install"
    host.run(ssh_argv(state, command), timeout=1800, stdin=told, waiting=waiting)


# === 17 kubeconfig ================================================================================
# Our cluster, user and context in the user's kubeconfig, which kubectl alone writes. What is the
# user's own is never replaced, and what kubectl does without --context does not change: it merges
# all files of $KUBECONFIG, so every one of them is looked at, while one alone is written. The state
# names this file before our names go into it. The context, which shows that they are ours, goes in
# first and comes out last: so a teardown finds what a kill has left. `.before-ycluster`, beside the
# file, is a copy of it as it was before our first change ever; `.before-ycluster-last` is one that
# is there while we change it, and stays only where that fails.


class Kubeconfig(Record):
    """What a kubeconfig says, without its secrets: what each name in it stands for."""

    clusters: Mapping[str, Any] = {}
    contexts: Mapping[str, Any] = {}
    users: Mapping[str, Any] = {}
    current_context: str = ""


Kubeconfigs: TypeAlias = "Mapping[Path, Kubeconfig]"  # in the order in which kubectl merges them


def kubeconfig_files(host: Host) -> list[Path]:
    """The files that the user's kubectl merges: those of $KUBECONFIG, or ~/.kube/config."""
    return host.kubeconfigs() or [host.home() / ".kube" / "config"]


def kubeconfig_file(host: Host) -> Path:
    """The file to merge clusters into: the first."""
    return kubeconfig_files(host)[0]


def _kubectl(host: Host, file: Path | str, *words: str) -> str:
    """Run `kubectl config` on a file, and return its output.

    A version manager's kubectl goes by the user's folder and environment, so it gets both. kubectl
    fails at once if somebody else has its lock file, so that is waited for.
    """
    env = {**host.child_env(), **host.environ, "KUBECONFIG": str(file)}

    def call() -> str:
        argv = ["kubectl", "config", *words]
        return host.run(argv, timeout=60, env=env, cwd=working_folder()).stdout

    def call_unless_locked() -> str | None:
        try:
            return call()
        except ProgramFailed as error:
            if ".lock: file exists" in error.stderr:
                return None
            raise

    output = host.wait_for(call_unless_locked, timeout=10, interval=0.1)
    if output is None:
        return call()  # the last try: if it fails, its error names the lock file
    return output


def check_kubectl(host: Host) -> None:
    """Raise where there is no kubectl, or it does not run here."""
    host.need({"kubectl": "kubernetes-client"})
    _kubectl(host, os.devnull, "view")


def _unusable(host: Host) -> str:
    """Why our names can't go into the user's kubeconfig; empty where they can."""
    try:
        refuse_sudo(host, kubeconfig_file(host))
    except PrerequisiteError as error:
        return str(error)
    for file in kubeconfig_files(host):
        try:
            mode = os.stat(file).st_mode
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            return f"{file}: {error.strerror}"
        if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):  # kubectl would wait for a FIFO
            return f"{file} is not a file"
        if not os.access(file, os.R_OK):  # kubectl then fails with all of them
            return f"{file} can't be read"
        try:
            _view(host, file)
        except (YclusterError, ValueError) as error:
            return f"{file}: {error}"
    return _unwritable(kubeconfig_file(host))


def _unwritable(file: Path) -> str:
    """Why kubectl could not write a kubeconfig; empty where it can.

    It writes through links, and makes its lock file, as we do our copies, beside the file's own
    name.
    """
    target = Path(os.path.realpath(file))
    if target.exists():
        if not target.is_file():
            return f"{target} is not a file"
        if not os.access(target, os.W_OK):
            return f"{target} can't be written to"
    elif file.is_symlink() and not target.parent.is_dir():
        return f"{file} is a link to {target}, and there is no such folder"
    folders = [file.parent] if target.exists() else [file.parent, target.parent]
    for folder in folders:
        place = existing_part(folder)
        if not os.access(place, os.W_OK | os.X_OK):
            return f"no file can be made in {place}"
    return ""


def _view(host: Host, file: Path) -> Kubeconfig:
    """What a kubeconfig says; nothing where there is no such file."""
    if not os.path.exists(file):
        return Kubeconfig()
    view = json.loads(_kubectl(host, file, "view", "-o", "json"))
    return Kubeconfig(
        clusters=_by_name(view.get("clusters"), "cluster"),
        contexts=_by_name(view.get("contexts"), "context"),
        users=_by_name(view.get("users"), "user"),
        current_context=view.get("current-context") or "",
    )


def _views(host: Host) -> Kubeconfigs:
    """What each of the user's kubeconfigs says."""
    return {file: _view(host, file) for file in kubeconfig_files(host)}


def _current_context(views: Iterable[Kubeconfig]) -> str:
    """The current context of several kubeconfigs: kubectl takes the first that is set."""
    return next((view.current_context for view in views if view.current_context), "")


def _by_name(items: Sequence[dict[str, Any]] | None, kind: str) -> dict[str, Any]:
    """What each name in a list of a kubeconfig stands for; the list may be null."""
    if items is None:
        return {}
    return {item["name"]: item.get(kind) or {} for item in items}


def can_merge(host: Host, name: str) -> bool:
    """Whether a cluster's names can go into the user's kubeconfig; a warning of what is wrong."""
    if not host.which("kubectl"):
        return False
    unusable = _unusable(host)
    if unusable:
        host.output.warn_once(f"{unusable}; {name} gets a kubeconfig of its own")
    return not unusable


def check_context(
    host: Host,
    states: Sequence[State],
    config: QemuConfig,
    files: Files,
) -> None:
    """Raise if the context belongs to another cluster, in `states` or in the user's kubeconfig.

    A kubeconfig that can't be used is a warning: nothing goes into it.
    """
    context = config.context
    for state in states:
        if state.context == context and state.files != files:
            other = f"the cluster {state.name} in {state.cache_dir}"
            why = f"{config.file}: context {context!r} is that of {other}"
            raise ConfigError(why, hint="give this one a context of its own")
    if config.k3s.install != "none" and can_merge(host, config.name):
        _check_names(_views(host), config.name, context, config.network.bind_address)


def _check_names(
    views: Kubeconfigs,
    name: str,
    context: str,
    address: str,
    own: Path | None = None,
) -> None:
    """Raise if our names would replace something else in the user's kubeconfigs, or be used by it.

    `address` is where the cluster's API listens, `own` the file in which our names may be already.
    """
    for file, view in views.items():
        taken = ""
        if context in view.contexts:
            taken = _other_owner(view, name, context, address)
        elif file != own and (name in view.clusters or name in view.users):
            taken = f"it has a cluster or a user {name!r} already"
        taken = taken or _borrower(view, name, context, known=own in views)
        if taken:
            hint = "give this one a name and a context of its own"
            raise ConfigError(f"{file}: {taken}", hint=hint)


def _borrower(
    view: Kubeconfig,
    name: str,
    context: str,
    *,
    known: bool,
) -> str:
    """A context of the user's that half consists of our names; empty where there is none.

    With our user it would present our credentials to another cluster; with our cluster it would
    present the user's to ours. Where our names are `known` already, the latter is the user's wish.
    """
    for other, entry in view.contexts.items():
        has_cluster, has_user = entry.get("cluster") == name, entry.get("user") == name
        if other == context or has_cluster == has_user or (has_cluster and known):
            continue
        what = "cluster" if has_cluster else "user"
        return f"context {other!r} would use the {what} {name!r}"
    return ""


def _other_owner(
    view: Kubeconfig,
    name: str,
    context: str,
    address: str,
) -> str:
    """What a context leads to, if that is not the cluster `name` on this host."""
    entry = view.contexts[context]
    cluster, user = entry.get("cluster", ""), entry.get("user", "")
    server = view.clusters.get(cluster, {}).get("server", "")
    has_our_names = cluster == name and user == name
    leads_nowhere = server == ""  # a kill has left the context, and not its cluster
    leads_here = server.startswith((f"https://{address}:", "https://127.0.0.1:"))
    if has_our_names and (leads_nowhere or leads_here):
        return ""
    return f"context {context!r} is that of {cluster} ({server})"


def _keep_first(file: Path) -> None:
    """Keep a copy of a kubeconfig as it was before ycluster ever changed it."""
    backup = file.with_name(f"{file.name}.before-ycluster")
    if file.exists() and not backup.exists():
        write_file(backup, file.read_bytes())


@contextlib.contextmanager
def _copied(host: Host, file: Path, name: str) -> Iterator[None]:
    """Keep a copy of a kubeconfig, with its credentials, while kubectl changes our names in it.

    kubectl truncates the file before it writes: if the disk is full, the copy must fail first. It
    stays where the change fails; one that has what the file has lost since then stays, too.
    """
    if not file.exists():
        yield
        return
    copy = file.with_name(f"{file.name}.before-ycluster-last")
    lost = _lost_users(host, file, copy, name)
    if lost:
        spare = copy.rename(f"{copy}-{os.urandom(4).hex()}")
        text = f"an earlier change of {file} was interrupted: it has no user {lost[0]!r} now, but"
        host.output.warn(f"{text} {spare} has; remove that once you have what you need of it")
    write_file(copy, file.read_bytes())
    try:
        yield
    except BaseException:
        host.output.warn(f"{file} may be half changed; {copy} is the file as it was")
        raise
    remove(copy)


def _lost_users(
    host: Host,
    file: Path,
    copy: Path,
    name: str,
) -> list[str]:
    """The users in a copy of a kubeconfig that are no longer in it, but for `name`.

    A user whose key is in a file that is gone is not missed, such as that of a former cluster.
    """
    lost = []
    users = _view(host, copy).users if os.path.exists(copy) else {}
    there = _view(host, file).users if users else {}
    for user in sorted(users.keys() - there.keys() - {name}):
        if os.path.exists(users[user].get("client-key", "/")):
            lost.append(user)
    return lost


def forget_kubeconfig(
    host: Host,
    state: State,
    *,
    moving: bool = False,
) -> None:
    """Take our names out of the user's kubeconfig, and nothing else. Under the lock on claims.

    If they are `moving` to another file, a current-context that names ours stays.
    """
    files = [Path(state.kubeconfig)] if state.kubeconfig else []
    if not state.image and state.has_k3s and not files:
        files = kubeconfig_files(host)  # The sibling does not note into which it has merged.
    found = [file for file in files if os.path.exists(file)]
    if found:
        host.need({"kubectl": "kubernetes-client"})
    for file in found:
        view = _view(host, file)
        if _has_names_of(view, state):
            leave = view.current_context == state.context and not moving
            _remove_names(host, file, state, leave=leave)


def _has_names_of(view: Kubeconfig, state: State) -> bool:
    """Whether a kubeconfig has a cluster's names, and its user has made nothing else of them."""
    name, entry = state.name, view.contexts.get(state.context, {})
    if state.kubeconfig:
        return bool(entry.get("cluster") == name)
    # Merged by the sibling: its names alone don't prove that they are of this cluster.
    server = view.clusters.get(name, {}).get("server", "")
    leads_here = server in [f"https://{state.dial_address}:{port}" for port in state.api_ports]
    return leads_here and (entry.get("cluster"), entry.get("user")) == (name, name)


def _remove_names(
    host: Host,
    file: Path,
    state: State,
    *,
    leave: bool,
) -> None:
    """Take a cluster's names out of a kubeconfig; `leave` its context where it is the current."""
    name, unwritable = state.name, _unwritable(file)
    if unwritable:
        raise PrerequisiteError(unwritable)
    if not state.kubeconfig:  # It may be our first change.
        _keep_first(file)
    with _copied(host, file, name):
        if leave:
            _leave_context(host, file, state.context)
        _kubectl(host, file, "unset", f"clusters.{name}")
        _kubectl(host, file, "unset", f"users.{name}")
        # Last, because it shows that the names are ours: so a teardown that was killed is completed
        # by the next.
        _kubectl(host, file, "delete-context", state.context)


def leave_kubeconfig(host: Host, state: State) -> None:
    """Take our names out of the user's kubeconfig. A failure is a warning.

    Alone: of two kubectls at once, one brings back what the other has removed.
    """
    with _told_of_names(host, state), claim_lock(host):
        forget_kubeconfig(host, state)


@contextlib.contextmanager
def _told_of_names(host: Host, state: State) -> Iterator[None]:
    """Warn, in the place of an error, that names may be left in the kubeconfig."""
    try:
        yield
    except (YclusterError, OSError, ValueError, LookupError) as error:
        names = f"the names of {state.name} {'are' if state.kubeconfig else 'may be'} still in it"
        host.output.warn(f"{state.kubeconfig or 'your kubeconfig'}: {error}; {names}")


def _leave_context(host: Host, file: Path, context: str) -> None:
    """Unset a current-context that is ours, unless another file's would take its place.

    kubectl would then talk to another cluster, which nobody has asked for. With a name that leads
    nowhere it fails. So the name stays, too, if the files that kubectl merges are not known here.
    """
    try:
        views = _views(host)
    except (YclusterError, ValueError):  # one of them is broken
        views = {}
    real = os.path.realpath(file)
    others = []
    for path, view in views.items():
        if os.path.realpath(path) != real:
            others.append(view)
    known = len(others) < len(views)
    if known and _current_context(others) in ("", _current_context(views.values())):
        _kubectl(host, file, "unset", "current-context")
        return
    text = f"{file}: its current-context is still {context!r}, which is gone"
    host.output.warn(f"{text}; `kubectl config use-context NAME` chooses another")


def merge_kubeconfig(host: Host, state: State) -> State:
    """Merge the guest's kubeconfig into the user's, under our names; return the saved state.

    Without kubectl, or with a kubeconfig that can't be used, the cluster gets one of its own, and
    the user's stays as it is.
    """
    cluster, user = _guest_kubeconfig(host, state)
    _write_own_kubeconfig(state, cluster, user)
    why = _unusable(host) if host.which("kubectl") else "kubectl is not installed"
    if why:
        own = shlex.quote(str(state.files.kubeconfig))
        host.output.say(f"  {why}; the kubeconfig: export KUBECONFIG={own}")
        return state
    file = kubeconfig_file(host)
    last = Path(state.kubeconfig) if state.kubeconfig else None
    with claim_lock(host):  # Two clusters of one name must not both find it free.
        _check_names(_views(host), state.name, state.context, state.dial_address, last)
        if last not in (None, file):  # $KUBECONFIG may have named another file last time
            with _told_of_names(host, state):
                forget_kubeconfig(host, state, moving=True)
        # Saved before the file is touched: so a teardown takes our names out whatever happens.
        state = save_state(replace(state, kubeconfig=str(file)))
        _keep_first(file)
        with _copied(host, file, state.name):
            _write_certificates(state.files, cluster, user)
            _merge_by_kubectl(host, state, file, cluster)
    host.output.say(f"  kubectl --context {shlex.quote(state.context)} get nodes   ({file})")
    return state


def _guest_kubeconfig(host: Host, state: State) -> tuple[dict[str, Any], dict[str, Any]]:
    """Fetch the guest's cluster and user, the cluster with the address of its forwarded port."""
    ask = "sudo k3s kubectl config view --raw -o json"
    output = host.run(ssh_argv(state, ask), timeout=60).stdout
    given = json.loads(output)
    cluster: dict[str, Any] = given["clusters"][0]["cluster"]
    user: dict[str, Any] = given["users"][0]["user"]
    cluster["server"] = f"https://{state.dial_address}:{state.api_ports[0]}"
    # k3s's certificate names 127.0.0.1, and not every address that the port is forwarded from.
    cluster["tls-server-name"] = "127.0.0.1"
    return cluster, user


def _write_own_kubeconfig(state: State, cluster: object, user: object) -> None:
    """Write a kubeconfig of this cluster alone, beside its state."""
    name = state.name
    own = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": state.context, "context": {"cluster": name, "user": name}}],
        "current-context": state.context,
    }
    write_file(state.files.kubeconfig, to_json(own).encode())


def _write_certificates(files: Files, cluster: Mapping[str, Any], user: Mapping[str, Any]) -> None:
    """Write what proves the cluster and the user to files: a key has no place in kubectl's argv."""
    import base64

    encoded = {
        "certificate-authority": cluster["certificate-authority-data"],
        "client-certificate": user["client-certificate-data"],
        "client-key": user["client-key-data"],
    }
    make_folder(files.certificates)
    for name, data in encoded.items():
        write_file(files.certificates / name, base64.b64decode(data))


def _merge_by_kubectl(
    host: Host,
    state: State,
    file: Path,
    cluster: Mapping[str, Any],
) -> None:
    """Put our user, cluster and context into the user's kubeconfig."""
    name, certificates = state.name, state.files.certificates
    # Ours becomes the current context only where there is no other in any file.
    views = _views(host).values()
    is_first = not any(view.contexts or view.current_context for view in views)
    _kubectl(host, file, "set-context", state.context, f"--cluster={name}", f"--user={name}")
    if is_first:
        _kubectl(host, file, "use-context", state.context)
    # By `set`, key by key: `set-credentials` crashes in Debian 12's kubectl.
    _kubectl(host, file, "unset", f"users.{name}")
    for what in ("client-certificate", "client-key"):
        path = str(certificates / what)
        _kubectl(host, file, "set", f"users.{name}.{what}", path)
    options = [
        f"--server={cluster['server']}",
        f"--tls-server-name={cluster['tls-server-name']}",
        f"--certificate-authority={certificates / 'certificate-authority'}",
    ]
    _kubectl(host, file, "set-cluster", *options, "--", name)


# === 18 disk images ===============================================================================
# Disks: the cloud image that is downloaded once, the overlay that a VM boots from, the data disk,
# and bundles, disks that leave this host or come to it. qemu-img and libguestfs do the work.
# A disk is made under another name and then renamed, so that none is ever half there.


# How to get an image that can't be fetched, for somebody who has this program alone.
OTHER_IMAGES = """\
HTTPS_PROXY names a proxy; `image` in the config, with its `imageSha256`, can be a mirror's URL,
or the path of an Ubuntu or Debian cloud image on this host
(in the source repository, scripts/build-guest-image.sh makes one of packages)"""


def fetch_image(host: Host, config: QemuConfig, cache_dir: Path) -> Path:
    """The cloud image, in a file named by its SHA-256, as disks are overlays on it.

    One that is there is checked first; if it is wrong it stays until there is another, as VMs may
    run on it. A download of known digest that was cut off is resumed. Raises PrerequisiteError if
    the image is not available, ConfigError if its digest differs, or it is no disk.
    """
    images = cache_dir / "images"
    own_folder(images)
    with locked(host, images / ".lock", timeout=3600):
        known, fault = images / config.image_sha256, ""
        if config.image_sha256 and os.path.lexists(known):
            fault = digest_fault(host, known, config.image_sha256)
            if not fault:
                mark_used(host, known)
                return known
        bare = without_password(config.image)
        part = images / f".{sha256_of(bare.encode())[:16]}.part"
        # Those of other images: the lock is ours, so nobody is using them.
        for leftover in {*images.glob(f".{'[0-9a-f]' * 16}.part")} - {part}:
            remove(leftover)
        with fetching_anew(host, known, fault):
            digest = download(
                host,
                config.image,
                part,
                OTHER_IMAGES,
                config.image_sha256,
                "imageSha256",
                explain=partial(_if_no_disk, named=bare),
            )
        try:
            image_info(host, part, bare)
        except NoDisk:
            remove(part)
            raise
        part.chmod(0o400)
        keep_owner(part, images)
        mark_used(host, part)  # what is resumed and has nothing missing may be old
        return part.replace(images / digest)


def _if_no_disk(path: Path, named: str) -> str:
    """Why a file is no disk; empty where it is one."""
    try:
        format_of(path, named)
    except NoDisk as error:
        return str(error)
    return ""


PART_OF_IMAGE = r"\.[0-9a-f]{16}\.part"


QCOW2 = b"QFI\xfb"  # its first bytes


def base_of(disk: Path) -> str:
    """The file that a qcow2 builds on, as it is named in it; empty for any other file.

    ValueError where that is no plain file name. Source: QEMU's docs/interop/qcow2.txt.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(open(disk, "rb"))
        except FileNotFoundError:  # it has gone since it was listed
            return ""
        head = file.read(20)
        at = int.from_bytes(head[8:16], "big")
        length = int.from_bytes(head[16:20], "big")
        if not head.startswith(QCOW2) or not at:
            return ""
        file.seek(at)
        name = file.read(min(length, 1024))
    if not name or len(name) != length or re.match(rb"[A-Za-z0-9+.-]*:", name):
        raise ValueError(f"{disk}: it can't be told what it builds on")
    return os.fsdecode(name)


def files_built_on(disks: Iterable[Path]) -> set[tuple[int, int]]:
    """The `identity` of each file that these disks build on, and those build on in turn.

    OSError or ValueError where that can't be told of one.
    """
    found: set[tuple[int, int]] = set()
    left = list(disks)
    while left:
        disk = left.pop()
        base = base_of(disk)
        # QEMU goes by the folder of the name that it is given, which may be a link.
        places = {disk.parent, Path(os.path.realpath(disk)).parent} if base else set()
        for path in {place / base for place in places}:
            if path.is_file() and identity(path) not in found:
                found.add(identity(path))
                left.append(path)
    return found


def built_on(host: Host, disk: Path) -> list[Path]:
    """The files in the cacheDirs that build on a disk, and are of no use without it."""
    if not disk.is_file():
        return []
    this = identity(disk)
    return [path for path, bases in bases_of_all(host) if this in bases]


def bases_of_all(host: Host) -> list[tuple[Path, set[tuple[int, int]]]]:
    """What each file in the cacheDirs builds on, by `identity`; those alone that do."""
    found: list[tuple[Path, set[tuple[int, int]]]] = []
    for place in own_places(host):
        # Nobody can look there, or not into all of it: a teardown does not wait for that. What was
        # found before is in the list.
        with contextlib.suppress(OSError):
            found.extend((path, _bases_of(path)) for path in files_below(place))
    return [(path, bases) for path, bases in found if bases]


def _bases_of(path: Path) -> set[tuple[int, int]]:
    try:
        return files_built_on([path])
    except (OSError, ValueError):
        return set()  # A disk that can't be read can't be booted.


def identity(path: Path) -> tuple[int, int]:
    """The device and the inode of a file, by which it is known under every name."""
    status = path.stat()
    return status.st_dev, status.st_ino


def check_image(host: Host, config: QemuConfig, cache_dir: Path) -> None:
    """Raise ConfigError where `image` names a file of this host that is not there, or is no disk.

    One whose digest is in the cache need not be there.
    """
    if not config.image.startswith("file:"):
        return  # the download will tell
    if config.image_sha256 and (cache_dir / "images" / config.image_sha256).is_file():
        return
    path, size = path_of_url(config.image), 0
    with blamed_on(config, "image"):
        refuse_dead_link(path)
        if not path.exists():
            raise ConfigError(f"{path}: no such file; {_image_meant(config, path)}")
        if not path.is_file():
            raise ConfigError(f"{path}: it is not a regular file")
        if host.which("qemu-img"):
            size = image_info(host, path)["virtual-size"]
        else:
            format_of(path)
    with blamed_on(config, "diskSize"):
        _refuse_small(config.disk_size, size)


def _image_meant(config: QemuConfig, path: Path) -> str:
    """The line to write in the place of an `image` that is not there."""
    import difflib

    there = []
    if path.parent.is_dir():
        there = [file.name for file in path.parent.glob("*") if file.exists()]
    near = difflib.get_close_matches(path.name, there, n=1, cutoff=0.8)
    if near:
        return f"write `image: {path.with_name(near[0])}`"
    meant = line_to_write("image", written(config, "image"))
    return meant or f"write a path or a URL of a cloud image, for example `image: {DEFAULT_IMAGE}`"


def parse_size(text: str) -> int:
    """Bytes of a size as qemu-img writes it: 20G, 512M, 1073741824."""
    shifts = {"K": 10, "M": 20, "G": 30, "T": 40}
    number = int(text.rstrip("KMGTkmgt"))
    return number << shifts.get(text[-1:].upper(), 0)


# What a text that tells where a VMDK disk lies begins with; QEMU takes either for one.
_VMDK_TEXT = rb"# Disk DescriptorFile|(?:#[^\n]*\n|[ \r]*\n)*version=[123]"
# Formats that are not read here, by what they hold at an offset: taken for raw they would not boot.
OTHER_FORMATS = (
    ("qed", 0, b"QED\0"),
    ("vhdx", 0, b"vhdxfile"),
    ("vpc", 0, b"conectix"),
    ("vmdk of ESX", 0, b"COWD"),
    ("vdi", 64, b"\x7f\x10\xda\xbe"),
)
# What packs a disk, by its first bytes, and the program that writes to stdout what it unpacks of
# stdin.
PACKED = (
    ("gzip", "zcat", GZIP),
    ("xz", "xzcat", b"\xfd7zXZ\0"),
    ("zstd", "zstdcat", b"\x28\xb5\x2f\xfd"),
    ("bzip2", "bzcat", b"BZh"),
    ("lz4", "lz4cat", b"\x04\x22\x4d\x18"),
    ("lzma", "xzcat", b"\x5d\0\0\x80\0"),
    ("lzip", "lzip -dc", b"LZIP"),
    ("compress", "zcat", b"\x1f\x9d"),
)
# The same for what packs files by their names; the program takes the file.
ARCHIVES = (
    ("zip", "unzip", b"PK\x03\x04"),
    ("7z", "7z x", b"7z\xbc\xaf\x27\x1c"),
    ("rar", "unrar x", b"Rar!\x1a\x07"),
)
_PLAIN_TEXT = rb"[\t-\r\x1b\x20-\x7e\x80-\xff]+"  # of which no disk consists
SMALLEST_DISK = 1 << 20  # bytes
WHOLE = "if you trust it, `qemu-img convert -O qcow2 OLD NEW` makes a whole one of it"
DECRYPT = """\
with its passphrase in the file KEY, this makes a plain one of it:
qemu-img convert --object secret,id=key,file=KEY -O qcow2 --image-opts \\
  driver=qcow2,file.filename=OLD,encrypt.key-secret=key NEW"""
ANEW = "get it anew, or try `qemu-img check -r all` on a copy"
A_DISK = "the whole disk of a machine that boots by BIOS is wanted, as qcow2, raw or vmdk"


class NoDisk(ConfigError):
    """What is named as a disk is none, or can't be used as one; the hint is what makes one of it.

    In the hint, {packed} stands for how the file comes to a program's stdin, {into} for where that
    writes it, {file} for its path; {get} is the command that fetches it from another host.
    """


class PackedDisk(NoDisk):
    """What packs a disk, and can be unpacked by programs of the host."""


class NoBootSector(NoDisk):
    """What may be a raw disk, from which nothing can boot."""


def image_format(head: bytes) -> str:
    """The format of a disk that begins with `head`: qcow2, vmdk or raw. NoDisk says why not.

    qemu-img is given it, and never asked: for it a raw disk that begins with the text of a VMDK
    descriptor is whichever file of this host that text names. Nor does it open one whose header
    leads to another file, as it would open that, too.
    Sources: QEMU's docs/interop/qcow2.txt and block/vmdk.c.
    """
    if head.startswith(QCOW2):
        _refuse_qcow2(head)
        return "qcow2"
    if head.startswith(b"KDMV"):
        if not any(head[12:20]):  # no size of its own: it is as its descriptor says
            raise NoDisk("it builds on another file", hint=WHOLE)
        return "vmdk"
    if re.match(_VMDK_TEXT, head):
        raise NoDisk("it is the descriptor of a disk that is in other files", hint=WHOLE)
    for form, offset, magic in OTHER_FORMATS:
        if head[offset:].startswith(magic):
            raise NoDisk(f"its format is {form}, and not qcow2, raw or vmdk", hint=WHOLE)
    _refuse_no_disk(head)
    return "raw"


def _refuse_qcow2(head: bytes) -> None:
    """Raise NoDisk where the header of a qcow2 says that it can't be used."""

    def number(first: int, length: int) -> int:
        return int.from_bytes(head[first : first + length], "big")

    version = number(4, 4)
    backing, encryption = number(8, 8), number(32, 4)
    has_data_file = version > 2 and head[79] & 4
    if version == 1:
        hint = WHOLE.replace("convert", "convert -f qcow")
        raise NoDisk("it is a qcow of version 1, and not 2 or 3", hint=hint)
    if version not in (2, 3):
        raise NoDisk(f"it is damaged: a qcow of version {version}", hint=ANEW)
    if backing or has_data_file:
        raise NoDisk("it builds on another file", hint=WHOLE)
    if encryption:
        raise NoDisk("it is encrypted", hint=DECRYPT)


def is_tar(head: bytes) -> bool:
    """Whether a file that begins with `head` is a tar (pax(1), "ustar Interchange Format")."""
    return head[257:].startswith(b"ustar")


def unzipped(head: bytes) -> bytes:
    """The first bytes of what is in a gzip that begins with `head`; none where it is no gzip."""
    import zlib

    try:
        return zlib.decompressobj(wbits=31).decompress(head, 512)
    except zlib.error:
        return b""


def _refuse_no_disk(head: bytes) -> None:
    """Raise NoDisk where what would be a raw disk can't be booted."""
    if head[0x8001:].startswith(b"CD001"):  # whether it has a boot sector, too, or none
        raise NoDisk("it is a CD image (ISO 9660), from which one installs", hint=A_DISK)
    if is_tar(unzipped(head)):
        hint = "`{packed}tar -xz` unpacks it; use the disk in it"
        raise PackedDisk("it is a tar, packed by gzip", hint=hint)
    for form, program, magic in PACKED:
        if head.startswith(magic):
            raise PackedDisk(f"it is packed by {form}", hint=f"`{{packed}}{program}{{into}}")
    for form, program, magic in ARCHIVES:
        if head.startswith(magic):
            hint = f"`{{get}}{program} {{file}}` unpacks it; use the disk in it"
            raise PackedDisk(f"it is packed by {form}", hint=hint)
    if is_tar(head):
        raise PackedDisk("it is a tar", hint="`{packed}tar -x` unpacks it; use the disk in it")
    text = head[:512].rstrip(b"\0")
    words = text.decode("utf-8", "replace")  # of which the last letter may be cut off
    if re.fullmatch(_PLAIN_TEXT, text) and "\ufffd" not in words[:-1]:
        begins = words.strip().partition("\n")[0][:60].strip()
        raise NoDisk(f"it is a text, and begins with {begins!r}", hint=A_DISK)
    if head[514:].startswith(b"HdrS"):
        raise NoDisk("it is a Linux kernel", hint=A_DISK)
    if head[510:512] != b"\x55\xaa":
        raise NoBootSector("it has no boot sector (55 AA at byte 510)", hint=A_DISK)


def format_of(image: Path, named: str = "") -> str:
    """The format of a disk, by its first bytes. NoDisk names it: as `named`, where that is given.

    `named` may be the URL that it came from.
    """
    with open(image, "rb") as file:
        head = file.read(0x8006)  # up to what tells a CD
    try:
        if not head:
            raise NoDisk("it is empty", hint=A_DISK)
        return image_format(head.ljust(80, b"\0"))
    except NoDisk as error:
        source = named or str(image)
        if source.startswith("file:"):
            source = str(path_of_url(source))
        hint = _unpacking(error.hint, source)
        why = f"{source}: the image is not used: {error}"
        raise type(error)(why, hint=hint) from None


def _unpacking(hint: str, source: str) -> str:
    """The hint of a NoDisk for what comes from this path or URL."""
    quoted, name = shlex.quote(source), source.rpartition("/")[2]
    words = {"packed": f"<{quoted} ", "get": "", "file": quoted}
    if "://" in source:
        name = re.split("[?#]", source)[0].rpartition("/")[2]
        words = {"packed": f"curl -fL {quoted} | ", "get": f"curl -fLO {quoted} && "}
        words["file"] = shlex.quote(name)
    words["into"] = " >disk.img` unpacks it; use disk.img in its place"
    if re.search(r"\.(?:tar\.[a-z0-9]+|t[bglx]z2?|tzst)$", name):  # what else is in it isn't seen
        words["into"] = " | tar -x` unpacks it; use the disk in it"
    return hint.format(**words)


def _files_named(report: object) -> Iterator[object]:
    """Every file that a report of qemu-img's names."""
    if isinstance(report, list):
        for part in report:
            yield from _files_named(part)
    elif isinstance(report, dict):
        for name, value in report.items():
            if name.endswith("filename") or name == "data-file":
                yield value
            else:
                yield from _files_named(value)


def disk_info(host: Host, disk: Path, form: str) -> dict[str, Any]:
    """What qemu-img reports of a disk in this format."""
    argv = ["qemu-img", "info", "--force-share", "--output=json", "-f", form, str(disk)]
    info: dict[str, Any] = json.loads(host.run(argv, timeout=60).stdout)
    return info


def image_info(host: Host, image: Path, named: str = "") -> dict[str, Any]:
    """`disk_info` of a disk that is whole, in the format that it has by its first bytes.

    NoDisk where it is not: where it builds on another file, or lies in several.
    """
    form, refused = format_of(image, named), f"{named or image}: the image is not used"
    try:
        info = disk_info(host, image, form)
    except ProgramFailed as error:
        raise NoDisk(f"{refused}: {error}", hint=ANEW) from None
    if set(_files_named(info)) != {str(image)}:
        raise NoDisk(f"{refused}: it builds on another file", hint=WHOLE)
    if info["virtual-size"] < SMALLEST_DISK:
        why = f"it has {info['virtual-size']} bytes, and a disk {SMALLEST_DISK} at least"
        raise NoDisk(f"{refused}: {why}", hint=A_DISK)
    if _is_damaged(host, image, form):
        raise NoDisk(f"{refused}: it is damaged, or was cut off", hint=ANEW)
    return info


def _is_damaged(host: Host, image: Path, form: str) -> bool:
    """Whether a disk is known to be damaged. QEMU reads zeros past the end of one that was cut off.

    The first header of a GPT says in which sector the last one is (UEFI specification, 5.3.2).
    """
    if form == "raw":
        with open(image, "rb") as file:
            gpt = file.read(1024)[512:]
        last = int.from_bytes(gpt[32:40], "little")
        return gpt.startswith(b"EFI PART") and (last + 1) * 512 > image.stat().st_size
    if form == "qcow2" and _is_dirty(image):
        return _ends_early(host, image)
    argv = ["qemu-img", "check", "-q", "-f", form, str(image)]
    done = host.run(argv, timeout=3600, check=False)
    # Of a vmdk it gives up where a part is missing. One that is in use it doesn't look at.
    return done.returncode == _CORRUPT or "Check failed" in done.stderr


def _ends_early(host: Host, image: Path) -> bool:
    """Whether a qcow2 has data past the end of its file."""
    argv = ["qemu-img", "map", "-f", "qcow2", "--output=json", str(image)]
    parts = json.loads(host.run(argv, timeout=3600).stdout)
    ends = [part["offset"] + part["length"] for part in parts if "offset" in part]
    return max(ends, default=0) > image.stat().st_size


def _is_dirty(image: Path) -> bool:
    """Whether a qcow2's counts may be wrong, as after a power cut: QEMU mends them as it opens it.

    Source: QEMU's docs/interop/qcow2.txt, incompatible features of version 3.
    """
    with open(image, "rb") as file:
        head = file.read(80)
    version = int.from_bytes(head[4:8], "big")
    features = int.from_bytes(head[72:80], "big")
    return version > 2 and features & 1 == 1


_CORRUPT = 2  # the exit status of `qemu-img check` (qemu-img(1))


def _refuse_small(disk_size: str, size: int) -> None:
    """Raise ConfigError where a disk would be smaller than its image of so many bytes."""
    if parse_size(disk_size) < size:
        why = f"diskSize {disk_size} is smaller than the image, which takes {size} bytes"
        raise ConfigError(why, hint="a disk can be larger than its image, never smaller")


def make_disk(host: Host, state: State, image: Path) -> None:
    """The boot disk: an overlay on the image, of diskSize. One that is there is only grown."""
    if state.imported == str(state.files.disk):
        info = disk_info(host, image, "qcow2")
    else:
        info = image_info(host, image, state.image)
    wanted, size = parse_size(state.disk_size), info["virtual-size"]
    if state.imported:
        if wanted > size:
            argv = ["qemu-img", "resize", "-q", "-f", "qcow2", str(image), state.disk_size]
            host.run(argv, timeout=120)
        return
    _refuse_small(state.disk_size, size)
    base = image.relative_to(state.cache_dir)  # so that a cacheDir can be moved
    argv = [
        "qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", info["format"],
        str(state.files.disk), state.disk_size,
    ]  # fmt: skip
    host.run(argv, timeout=120, cwd=Path(state.cache_dir))
    keep_owner(state.files.disk, Path(state.cache_dir))


def backing_of(disk: Path) -> Path | None:
    """The file that a qcow2 builds on; None where there is none, or where it is not on this host.

    "protocol:" begins what is not (qemu-block-drivers(7)).
    """
    try:
        base = base_of(disk)
    except ValueError:
        return None
    return disk.parent / base if base else None


def check_disks(state: State) -> None:
    """Raise StateError where a disk of the cluster can't be opened, as a file is gone."""
    for which, disk in disks_of(state):
        if not disk.exists():
            hint = "bring it back to that place"
            raise StateError(f"{state.name}: its {which} {disk} is gone", hint=hint)
        check_backing(state, disk)


def disks_of(state: State) -> Iterator[tuple[str, Path]]:
    """The disks that a cluster boots with, and what each is called."""
    if not state.is_half_made:
        yield "disk", state.files.disk
    if state.data_disk:
        yield "data disk", Path(state.data_disk)


def check_formats(state: State) -> None:
    """Raise StateError where a disk is there that QEMU refuses: no qcow2, or a corrupt one."""
    for which, disk in disks_of(state):
        if disk.is_file() and not is_qcow2(disk):
            why = f"{state.name}: its {which} {disk} is damaged: it is no qcow2"
            raise StateError(why, hint="put a copy of it in its place")
    check_marks(state)


def check_marks(state: State) -> None:
    """Raise StateError where QEMU has marked a disk as corrupt."""
    for which, disk in disks_of(state):
        if disk.is_file() and _is_marked_corrupt(disk):
            check = shlex.join(["qemu-img", "check", "-r", "all", str(disk)])
            hint = f"make a copy of it first; then `{check}` repairs what can be repaired"
            why = f"{state.name}: its {which} {disk} is damaged: QEMU has marked it as corrupt"
            raise StateError(why, hint=hint)


def is_qcow2(disk: Path) -> bool:
    """Whether a disk begins as a qcow2 does."""
    with open(disk, "rb") as file:
        return file.read(len(QCOW2)) == QCOW2


def _is_marked_corrupt(disk: Path) -> bool:
    """Whether QEMU has found the structure of a qcow2 damaged; it then opens it no more to write.

    Source: docs/interop/qcow2.txt of QEMU, "incompatible_features".
    """
    with open(disk, "rb") as file:
        head = file.read(80)
    version = int.from_bytes(head[4:8], "big")
    is_marked = int.from_bytes(head[72:80], "big") & 2
    return head.startswith(QCOW2) and version >= 3 and bool(is_marked)


def check_backing(state: State, disk: Path) -> None:
    """Raise StateError where a file is gone that a disk builds on, directly or not."""
    above: Path | None = disk
    for _ in range(100):  # or it could lead in a circle
        if above is None or not above.is_file():
            return
        base = backing_of(above)
        if base and not base.is_file():
            why = f"{state.name}: {base} is gone, on which its disk {above} builds"
            raise StateError(why, hint=_way_to_base(state, base))
        above = base


def _way_to_base(state: State, base: Path) -> str:
    """How to get a lost image back."""
    hint = "bring it back to that place"
    if base.parent.name == "images" and re.fullmatch("[0-9a-f]{64}", base.name) and state.image:
        argv = ["curl", "-fLo", str(base), state.image]
        hint += f"; its name is its SHA-256, and it was fetched from there:\n{shlex.join(argv)}"
    return hint


# --- libguestfs: what it needs of the host, and the data disk
LIBGUESTFS = {"virt-customize": "libguestfs-tools", "zerofree": "zerofree"}
KERNEL_REMEDY = r"""paste this; it lets today's kernels be read, and every later one:
printf '#!/bin/sh\nexec chmod 0644 "/boot/vmlinuz-$1"\n' |
  sudo tee /etc/kernel/postinst.d/zz-readable-kernel >/dev/null
sudo chmod 0755 /etc/kernel/postinst.d/zz-readable-kernel
sudo chmod 0644 /boot/vmlinuz-*"""


def check_host_kernel(
    host: Host, boot: Path = Path("/boot"), modules: Path = Path("/lib/modules")
) -> None:
    """Raise where libguestfs could not read the kernel that it boots.

    That is the newest that has modules (source: supermin(1)); where none has, the one that runs
    here is looked at. It only looks; other troubles are libguestfs's to report.
    scripts/_check-host-kernel.sh is the same for shell scripts.
    """
    kernels = []
    for path in boot.glob("vmlinuz-*"):
        if (modules / path.name[len("vmlinuz-") :]).is_dir():
            kernels.append(str(path))
    by_version = host.run(["sort", "-V"], timeout=20, stdin="\n".join(kernels))
    ordered = by_version.stdout.splitlines()
    running = boot / f"vmlinuz-{os.uname().release}"
    newest = ordered[-1] if ordered else str(running)
    if os.path.exists(newest) and not os.access(newest, os.R_OK):
        why = 'libguestfs boots it: "supermin exited with error status 1"'
        raise PrerequisiteError(f"{newest} can't be read, and {why}", hint=KERNEL_REMEDY)


def guestfs(host: Host, what: str, *argv: str) -> str:
    """What a program of libguestfs, shown as `what`, prints; with KVM where that works.

    Where the user has set libguestfs's own variables, they hold.
    """
    env = host.child_env({"LIBGUESTFS_BACKEND": "direct"})
    for name, value in host.environ.items():
        if name.startswith(("LIBGUESTFS_", "SUPERMIN_")):
            env[name] = value
    if "LIBGUESTFS_BACKEND_SETTINGS" not in env and not kvm_works(host):
        env["LIBGUESTFS_BACKEND_SETTINGS"] = "force_tcg"
    try:
        return host.run(argv, timeout=1800, env=env, progress=what).stdout
    except YclusterError:
        forget_kvm(host)  # it may be why; whoever tries again has it checked anew
        raise


def check_data_disk(host: Host, path: str) -> None:
    """Raise, before anything is made, where a data disk can't be used, or not be made."""
    check_data_file(host, Path(path))
    if not os.path.exists(path):
        host.need({"virt-format": "libguestfs-tools"})
        check_host_kernel(host)


def check_data_file(host: Host, path: Path) -> None:
    """Raise ConfigError where what is at the place of a data disk is none, or none can be there."""
    if not path.exists():
        part = existing_part(path)
        refuse_dead_link(part)
        if not part.is_dir():
            raise ConfigError(f"{part} is not a directory")
        return
    if not (path.is_file() or path.is_block_device()):
        hint = "a qcow2 file is wanted; one that is not there is made"
        raise ConfigError(f"{path} is not a file", hint=hint)
    if path.is_file() and is_empty(path):
        raise ConfigError(f"{path} is empty", hint="remove it, and the provision makes a disk")
    if not is_qcow2(path):
        raise _no_qcow2(path)
    if host.which("qemu-img"):
        image_info(host, path)


def _no_qcow2(path: Path) -> ConfigError:
    """The error of a data disk that is no qcow2; a disk of another format can be made one."""
    hint = f"`qemu-img convert -O qcow2 {shlex.quote(str(path))} NEW` makes one of it"
    try:
        format_of(path)
    except PackedDisk as error:
        return error
    except NoBootSector:
        pass  # a data disk need not have one
    except NoDisk:
        hint = "one that is not there is made"
    return ConfigError(f"{path} is not a qcow2", hint=hint)


def make_data_disk(host: Host, path: Path, size: str) -> None:
    """An empty ext4 volume at `path`, whole or not at all. What is there already stays as it is."""
    if path.exists():
        return
    make_folder(path.parent)
    nonce = os.urandom(4).hex()
    part = path.with_name(f".{path.name}.{nonce}.part")
    argv = [
        "virt-format", "--format=qcow2", "-a", str(part),
        "--partition=none", "--filesystem=ext4", f"--label={DATA_LABEL}",
    ]  # fmt: skip
    try:
        host.run(["qemu-img", "create", "-q", "-f", "qcow2", str(part), size], timeout=120)
        guestfs(host, f"data disk {path} of {size}", *argv)
        keep_owner(part, path.parent)
        with contextlib.suppress(FileExistsError):  # another's came first, and may be in use
            os.link(part, path)  # unlike a rename, this replaces nothing
    finally:
        remove(part)


# --- bundles: a disk that leaves this host, and comes in
VMDK_SUBFORMATS = (  # the first is what OVF asks for, and what ESXi imports
    "streamOptimized",
    "monolithicSparse",
    "monolithicFlat",
    "twoGbMaxExtentSparse",
    "twoGbMaxExtentFlat",
)
EXPORTS: Mapping[str, str] = {  # formats of an export, and how the name of their file ends
    "qcow2": ".qcow2",
    "raw": ".img",
    "vmdk": ".vmdk",
    "ova": ".ova",
    "gcp-tar": ".tar.gz",
}
BUNDLE_README = """\
{name}: a boot disk exported by ycluster {version}. `sha256sum -c SHA256SUMS` checks what is here.

{use}
By ssh:             ssh -i {name}-ssh -o UserKnownHostsFile=known_hosts -o HostKeyAlias={name} \\
                      {user}@ADDRESS

Whoever has {name}-ssh gets in. known_hosts holds until the disk's cloud-init makes a new host key.
{deadline}
"""
_IMPORT = "With ycluster:      ycluster import {disk} -c DIR && ycluster provision -c DIR"
BUNDLE_USES: Mapping[str, str] = {  # by the format
    "gcp-tar": f"""{_IMPORT}
On Compute Engine:  gcloud storage cp {{disk}} gs://BUCKET/
                    gcloud compute images create {{name}} --source-uri=gs://BUCKET/{{disk}}""",
    "ova": f"""{_IMPORT}
On ESXi:            Deploy OVF Template
With VirtualBox:    VBoxManage import {{disk}}   (or File, Import Appliance)""",
    "parts": "{disk} describes the disk, which is in the files beside it.",
}
NO_DEADLINE = """\
No deadline is on the disk: a budget begins where it starts, by ycluster or by the flags of
`ycluster lifetime gcp-flags`."""
OWN_DEADLINE = """\
The disk powers its machine off {length} after each boot, wherever that is.
There `sudo touch {file}` postpones it once, by as long again, and
`sudo systemctl disable --now {timer}` ends it. What a power-off saves depends on the
platform: on some a machine that is off costs as much as before."""


def deadline_on_disk(state: State) -> str:
    """What the README of a bundle says of the expiry that the disk carries with it."""
    if not state.disk_max_run:
        return NO_DEADLINE
    timer = f"{POWER_OFF}.timer"
    return OWN_DEADLINE.format(length=state.disk_max_run, file=KEEP_RUNNING, timer=timer)


def mebibytes(path: Path) -> str:
    """What a file takes on its disk, in words."""
    return f"{path.stat().st_blocks >> 11} MiB"


def write_disk(
    host: Host,
    disk: Path,
    form: str,
    target: Path,
    source: str = "qcow2",
    subformat: str = "",
) -> None:
    """The whole disk, flattened, as a new file of a format of qemu-img's; `source` is its own."""
    options = ["-o", f"subformat={subformat}"] if subformat else []
    target.touch()  # its size is shown from the beginning
    argv = ["qemu-img", "convert", "-f", source, "-O", form, *options, str(disk), str(target)]
    host.run(argv, timeout=6 * 3600, progress=partial(_written, target))


def _written(target: Path) -> str:
    """How far a file has come that is written, in words."""
    return f"{target.name}: {mebibytes(target)}"


def write_export(
    host: Host,
    state: State,
    form: str,
    target: Path,
    subformat: str,
) -> None:
    """The boot disk of a cluster as a new file of a format in EXPORTS."""
    disk = state.files.disk
    if form == "gcp-tar":
        _write_gcp_tar(host, disk, target)
    elif form == "ova":
        _write_ova(host, state, target)
    else:
        write_disk(host, disk, form, target, subformat=subformat if form == "vmdk" else "")


# --- an OVA, as VMware and VirtualBox import it
OVF = """\
<?xml version="1.0" encoding="utf-8"?>
<Envelope xmlns="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1"
 xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
 xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData">
  <References>
    <File ovf:id="file1" ovf:href="{disk}" ovf:size="{bytes}"/>
  </References>
  <DiskSection>
    <Info>The disks</Info>
    <Disk ovf:diskId="disk1" ovf:fileRef="file1" ovf:capacity="{capacity}"
     ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <NetworkSection>
    <Info>The networks</Info>
    <Network ovf:name="NAT">
      <Description>A network with DHCP</Description>
    </Network>
  </NetworkSection>
  <VirtualSystem ovf:id="{name}">
    <Info>An appliance made by ycluster {version}</Info>
    <Name>{name}</Name>
    <OperatingSystemSection ovf:id="101">
      <Info>The operating system</Info>
      <Description>Linux, 64 bit</Description>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>The hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{name}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>vmx-13</vssd:VirtualSystemType>
      </System>
{items}    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
"""
_AHCI = (("Address", "0"), ("ResourceSubType", "AHCI"))
_ON_AHCI = (("AddressOnParent", "0"), ("HostResource", "ovf:/disk/disk1"), ("Parent", "3"))
_NIC = (("AutomaticAllocation", "true"), ("Connection", "NAT"), ("ResourceSubType", "E1000"))


def ovf(
    state: State,
    disk: str,
    size: int,
    capacity: int,
) -> str:
    """The OVF 1.0 descriptor of a cluster whose disk is a vmdk of `size` bytes, of this name.

    The hardware is what ESXi 6.5 and VirtualBox both have: they refuse other families, and hardly
    a guest lacks a driver for it. Source: dmtf.org/standards/ovf, DSP0243.
    """
    from html import escape

    megabytes = ("AllocationUnits", "byte * 2^20")
    hardware = (  # ResourceType: CIM_ResourceAllocationSettingData
        (3, f"{state.cpus} CPUs", (("VirtualQuantity", state.cpus),)),
        (4, f"{state.memory} MB of memory", (megabytes, ("VirtualQuantity", state.memory))),
        (20, "SATA controller", _AHCI),
        (17, "Disk 1", _ON_AHCI),
        (10, "Network card", _NIC),
    )
    items = ""
    for number, (kind, name, more) in enumerate(hardware, start=1):
        facts = (*more, ("ElementName", name), ("InstanceID", number), ("ResourceType", kind))
        # The schema wants them sorted.
        lines = []
        for key, value in sorted(facts):
            text = escape(str(value))
            lines.append(f"<rasd:{key}>{text}</rasd:{key}>")
        items += "      <Item>\n        " + "\n        ".join(lines) + "\n      </Item>\n"
    return OVF.format(
        name=escape(state.name),
        disk=escape(disk),
        bytes=size,
        capacity=capacity,
        version=VERSION,
        items=items,
    )


def _write_ova(host: Host, state: State, target: Path) -> None:
    """A tar of an OVF descriptor, its manifest and the disk, in the order that the standard wants.

    Source: DSP0243, "Distribution as a single file".
    """
    folder = target.parent
    names = [f"{state.name}.{end}" for end in ("vmdk", "ovf", "mf")]
    disk, envelope, manifest = [folder / name for name in names]
    write_disk(host, state.files.disk, "vmdk", disk, subformat=VMDK_SUBFORMATS[0])
    capacity = disk_info(host, state.files.disk, "qcow2")["virtual-size"]
    size = disk.stat().st_size
    write_file(envelope, ovf(state, disk.name, size, capacity).encode())
    digests = [(file.name, digest_of(host, file)) for file in (envelope, disk)]
    sums = [f"SHA256({name})= {digest}\n" for name, digest in digests]
    write_file(manifest, "".join(sums).encode())
    parts = (envelope, manifest, disk)
    argv = [
        # ustar, which the standard wants, has no larger file.
        "tar", "--format=ustar" if size < 1 << 33 else "--format=gnu",
        "--owner=0", "--group=0", "--numeric-owner", "--mode=0644",
        "-cf", target.name, "--", *(part.name for part in parts),
    ]  # fmt: skip
    target.touch()  # its size is shown from the beginning
    host.run(argv, timeout=6 * 3600, cwd=folder, progress=partial(_written, target))
    for part in parts:
        remove(part)


# --- a tar for Compute Engine
BLOCK = 1 << 20  # bytes that are read at a time
GZIP_LEVEL = 5  # the default, 6, takes half as long again for 1 % less


def _write_gcp_tar(host: Host, disk: Path, target: Path) -> None:
    """A gzipped tar of disk.raw, sparse and of whole GiB, as Compute Engine imports it.

    Only what is allocated is read. Source:
    cloud.google.com/compute/docs/import/import-existing-image
    """
    argv = ["qemu-img", "map", "-f", "qcow2", "--output=json", str(disk)]
    extents = json.loads(host.run(argv, timeout=600).stdout)
    end = max(extent["start"] + extent["length"] for extent in extents)
    spans = []
    for extent in extents:
        if extent["data"] and not extent["zero"]:
            spans.append((extent["start"], extent["length"]))
    steps = Steps(host.output, host.monotonic)
    header = sparse_header("disk.raw", whole_gib(end), spans)
    size = len(header) + sum(length for _, length in spans)
    with open(target, "xb") as file, gzipped(host, file) as packed, served(host, disk) as sock:
        packed.write(header)
        for start, length in spans:
            for at in range(start, start + length, BLOCK):
                packed.write(read_served(sock, at, min(BLOCK, start + length - at)))
                steps.waiting(f"writing {target.name}: {at * 100 // end} %")
        packed.write(bytes(-size % 512 + 1024))  # the end of an archive: two empty blocks
    steps.done(_written(target))


@contextlib.contextmanager
def gzipped(host: Host, file: IO[bytes]) -> Iterator[Any]:
    """A stream that arrives in a file gzipped: by pigz on every core, where the host has it."""
    import gzip
    import io

    if not host.which("pigz"):
        with gzip.GzipFile("", "wb", GZIP_LEVEL, file, mtime=0) as packed:
            yield packed
        return
    with host.beside(["pigz", f"-{GZIP_LEVEL}", "-n", "-c"], stdout=file.fileno()) as pipe:
        whole = io.BufferedWriter(pipe)  # type: ignore[arg-type] # unbuffered: a FileIO
        try:
            yield whole
            whole.close()  # pigz ends when it has all
        except BaseException:
            pipe.close()  # or it would be written to once more
            raise


@contextlib.contextmanager
def served(host: Host, disk: Path) -> Iterator[Any]:
    """A connection to a qemu-nbd that serves what the guest sees of a qcow2, while the block lasts.

    It gives the blocks of any qcow2, compressed ones too, and takes no space on a disk for that.
    Source: the NBD protocol's doc/proto.md, "Fixed newstyle negotiation".
    """
    import socket
    import tempfile

    nothing = descriptor(os.open(os.devnull, os.O_RDONLY))
    # A socket's path has 107 bytes at most, and $TMPDIR may be long.
    with nothing as stdin, tempfile.TemporaryDirectory(dir="/tmp") as folder:
        path = f"{folder}/nbd"
        argv = ["qemu-nbd", "--read-only", "--format=qcow2", f"--socket={path}", str(disk)]
        with host.beside(argv, stdin=stdin) as output, socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(60)

            def connects() -> bool:
                if not sock.connect_ex(path):
                    return True
                if select.select([output], [], [], 0)[0]:  # nothing is printed: it has ended
                    raise BrokenPipeError("qemu-nbd has ended")
                return False

            if not host.wait_for(connects, timeout=60, interval=0.01):
                raise TimedOut(f"{disk}: qemu-nbd does not serve it")
            _choose_export(sock)
            yield sock
            sock.close()  # qemu-nbd ends with its client


def _choose_export(sock: Any) -> None:
    """Ask for the export with no name; what follows are answers to requests."""
    import struct

    if _received(sock, 18)[:16] != b"NBDMAGICIHAVEOPT":
        raise YclusterError("what serves the disk is not qemu-nbd")
    no_padding = 3
    sock.sendall(struct.pack(">I8sII", no_padding, b"IHAVEOPT", 1, 0))
    _received(sock, 10)  # its size and flags


def read_served(sock: Any, offset: int, length: int) -> bytes:
    """Some bytes of a disk that is `served`."""
    import struct

    sock.sendall(struct.pack(">IHHQQI", 0x25609513, 0, 0, offset, offset, length))
    magic, error, _ = struct.unpack(">IIQ", _received(sock, 16))
    if magic != 0x67446698 or error:
        raise YclusterError(f"the disk can't be read at {offset}: {os.strerror(error)}")
    return _received(sock, length)


def _received(sock: Any, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        part = sock.recv(length - len(found))
        if not part:
            raise BrokenPipeError("qemu-nbd has hung up")
        found += part
    return bytes(found)


def whole_gib(size: int) -> int:
    """Bytes, rounded up to GiB."""
    return -(-size >> 30) << 30


def sparse_header(name: str, size: int, spans: Sequence[tuple[int, int]]) -> bytes:
    """What stands before the data of a sparse member of `size` bytes in a tar of the oldgnu format.

    `spans` are the offsets and lengths of its data.
    Source: gnu.org/software/tar/manual/html_node/Standard.html, struct oldgnu_header.
    """
    import tarfile

    itn = tarfile.itn  # type: ignore[attr-defined]
    number = partial(itn, digits=12, format=tarfile.GNU_FORMAT)
    info = tarfile.TarInfo(name)
    info.type = tarfile.GNUTYPE_SPARSE
    info.mode = 0o644
    info.size = sum(length for _, length in spans)
    ended = [*spans, (size, 0)]
    entries = [number(start) + number(length) for start, length in ended]
    here, after = entries[:4], entries[4:]  # four fit into the header itself
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:482] = b"".join(here).ljust(96, b"\0")
    head[482:483] = _more(after)
    head[483:495] = number(size)
    head[148:156] = b" " * 8  # the checksum counts itself as blanks
    head[148:156] = b"%06o\0 " % sum(head)
    while after:  # and 21 into each block after it
        here, after = after[:21], after[21:]
        head += b"".join(here).ljust(504, b"\0") + _more(after).ljust(8, b"\0")
    return bytes(head)


def _more(entries: Sequence[bytes]) -> bytes:
    """Whether more entries follow in another block, as a byte."""
    return b"\1" if entries else b"\0"


# === 19 commands ==================================================================================
# One function a verb, with its place on the command line declared above it by `@verb`; and `reap`
# and `sweep`, which carry expiries out. A verb is a short story: load under the lock, decide, act.
# What always holds: the deadline is saved, and its timer armed, before a guest gets to run; and
# nothing of the user's is removed but by a verb whose help promises it.
# Its parts, each under a heading of these words, and where to begin to read in it:
#   how a verb is declared      `verb`
#   which cluster               `Selector`, `find_cluster`
#   opening a cluster           `opened`: the state, under the cluster's lock
#   a config that was edited    `reconfigured`
#   life and death of a VM      `_run_with_deadline`: save, arm, then run; `_halt`; `_erase`
#   suspend                     `_suspend`, `_run_from_memory`; `_settled`, after one was cut off
#   a disk that leaves          `prepare_export`, `export`; and one that comes: `import_disk`
#   lifetime                    `reap`: a look, `decide`, `_expire`; `hand_over`; `extend`, `arm`
#   a command, and a cluster    `run_with`, `_undo`; `hold`
#   watching                    `Watcher`
#   looking                     `describe`, and the rows that `show_as` makes of it
#   prune                       `PRUNED`: a row a kind
#   doctor                      `CLUSTER_CHECKS`, and the checks of the host beside it
#   Compute Engine, the config, completion, help, the parser: a verb or two each

# --- how a verb is declared


# As in argparse, which takes long to import, and which few command lines need.
SUPPRESS = "==SUPPRESS=="
REMAINDER = "..."


class Argument(Record):
    """An argument of a verb, in the terms of argparse's `add_argument`."""

    names: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def dest(self) -> str:
        """The name under which argparse keeps its value."""
        named = self.names[-1].lstrip("-").replace("-", "_")
        return str(self.options.get("dest", named))

    @property
    def choices(self) -> Sequence[str]:
        """The words that its value can be, where they are fixed."""
        return tuple(self.options.get("choices", ()))

    @property
    def is_option(self) -> bool:
        """Whether it is named, and not known by its place."""
        return self.names[0].startswith("-")

    @property
    def takes_value(self) -> bool:
        """Whether it is an option with a word of its own after it."""
        flags = ("store_true", "store_const")
        return self.is_option and self.options.get("action") not in flags

    @property
    def is_hidden(self) -> bool:
        """Whether it is for our own timers, and not for people."""
        return bool(self.options.get("help") == SUPPRESS)

    @property
    def is_required(self) -> bool:
        """Whether a command line without it is wrong."""
        return bool(
            self.options.get("required", not self.is_option and "nargs" not in self.options)
        )

    @property
    def default(self) -> Any:
        """Its value where it is not given."""
        if self.options.get("nargs") in (REMAINDER, "*"):
            return []
        flag = self.options.get("action") == "store_true"
        return self.options.get("default", False if flag else None)

    def take_value(self, rest: list[str]) -> Any:
        """Its value, which may use up the next word; None where only argparse knows."""
        action = self.options.get("action")
        if action == "store_true":
            return True
        if action == "store_const":
            return self.options["const"]
        if action or "nargs" in self.options or not rest or rest[0].startswith("-"):
            return None
        word = rest.pop(0)
        if self.choices and word not in self.choices:
            return None
        return self.options.get("type", str)(word)


class OneOf(Record):
    """Arguments that exclude each other. The one that is given becomes the value of `dest`."""

    dest: str
    arguments: tuple[Argument, ...]
    required: bool = False
    default: object = None


class Verb(Record):
    """A verb of the command line: its words, and what follows them."""

    path: str
    help: str
    arguments: tuple[Argument | OneOf, ...]
    example: str
    usage: str | None = None


def argument(*names: str, **options: Any) -> Argument:
    """Declare an argument; `options` are argparse's."""
    return Argument(names, options)


def verb(
    path: str,
    text: str,
    *arguments: Argument | OneOf,
    example: str,
    usage: str | None = None,
) -> Callable[[Command], Command]:
    """Declare that a function is a verb: it is called with the host and, by name, its arguments.

    A group named `files` arrives as `Files`, resolved by `_run`; SOME arrives as a `Selector`. What
    the function returns is the exit code, where that is not 0.
    """

    def declare(command: Command) -> Command:
        command.verb = Verb(path, text, arguments, example, usage)  # type: ignore[attr-defined]
        return command

    return declare


def positive_duration(text: str) -> int:
    """Nanoseconds of a duration on the command line: Go's, and days. Raises UsageError."""
    days, _, rest = text.rpartition("d")
    if not re.fullmatch("[0-9]{0,6}", days):
        rest, days = text, ""
    try:
        nanoseconds = parse_duration(rest) if rest or not days else 0
    except ValueError:
        hint = "for example 2h, 1h30m or 3d"
        raise UsageError(f'invalid duration "{text}"', hint=hint) from None
    nanoseconds += int(days or 0) * 86400 * 10**9
    if nanoseconds <= 0:
        raise UsageError(f"{text}: must be a positive duration, for example 2h")
    return nanoseconds


def boot_budget(text: str) -> int:
    """Seconds that a disk may run after each boot: a minute to a year. Raises UsageError."""
    seconds = seconds_up(positive_duration(text))
    if not 60 <= seconds <= 365 * 86400:
        raise UsageError(f"{text}: must be 1m to 8760h", hint="for example 8h; a boot takes 1m")
    return seconds


def own_budget(text: str) -> str:
    """A budget on the command line, as Go writes it; "0" for none. Raises UsageError."""
    if text == "0":
        return text
    nanoseconds = positive_duration(_given("--max-run", text, "duration"))
    return format_duration(nanoseconds) if "d" in text else text


def forms(*choices: str) -> Argument:
    """`-o`: the form in which something is shown; the first is the default."""
    text = f"default: {choices[0]}"
    return argument("-o", dest="form", choices=choices, default=choices[0], help=text)


# Of what changes a cluster. `_run` prints it, so that no verb need know.
THEN_SHOW = argument(
    "-o",
    dest="then_show",
    choices=("text", "json"),
    default="text",
    help="json: print the cluster's state afterwards, as `status -o json` does",
)


# --- which cluster
class Selector(Record):
    """Which cluster the command line names; one field is set at most, but for config and name.

    These two together are a cluster of that name by that config, as `own_config` has it.
    """

    name: str = ""
    context: str = ""
    config: Path | None = None  # the directory of its config
    state_file: Path | None = None
    every: bool = False
    # The verb whose command line has to name one and does not: it destroys, so nothing is guessed.
    unnamed_for: str = ""

    def __str__(self) -> str:
        """In words, to follow `no cluster`."""
        if self.name:
            return f"named {self.name}"
        if self.context:
            return f"with the context {self.context}"
        return f"with the default context, {DEFAULT_CONTEXT}"

    def pick(self, host: Host, found: Sequence[Files]) -> list[Files]:
        """Those that it may mean: by name; else by context; else the only one, or `local`."""
        if self.name:
            return [files for files in found if files.name == self.name]
        if len(found) == 1 and not self.context:
            return list(found)
        wanted = self.context or DEFAULT_CONTEXT
        return [files for files, state in readable(host) if state.context == wanted]


def _named(text: str) -> Selector:
    return Selector(name=_given("--name", text))


def _placed(text: str) -> Selector:
    return Selector(name=_given("NAME", text))


def _own_name(text: str) -> str:
    if not re.fullmatch(NAME_PATTERN, text):
        raise UsageError(f"--name {text}: must be {NAME_RULE}")
    return text


def _of_context(text: str) -> Selector:
    return Selector(context=_given("--context", text))


def _given(option: str, text: str, what: str = "name") -> str:
    if not text:
        why = f"{option} needs a {what}, and has an empty text"
        raise UsageError(why, hint="an unset variable?")
    return text


def _directory(option: str, text: str) -> Path:
    # An empty path would be the current directory.
    return Path(_given(option, text, "directory"))


def _of_config(text: str) -> Selector:
    return Selector(config=_directory("-c", text))


def _of_state_file(text: str) -> Selector:
    path = Path(os.path.abspath(text))
    if path.suffix != ".json":
        raise UsageError(f"{text}: a state file is a .json file")
    return Selector(state_file=path)


BY_CONTEXT = argument(
    "--context", metavar="CTX", type=_of_context, help="the cluster of this kubeconfig context"
)
BY_NAME = argument("--name", metavar="NAME", type=_named, help="the cluster of this name")
BY_CONFIG = argument(
    "-c", "--config", metavar="DIR", type=_of_config, help="the cluster of the config in DIR"
)
BY_STATE = argument(
    "--state", metavar="FILE", type=_of_state_file, help="the cluster of this state file"
)
EVERY = Selector(every=True)
ALL = argument("--all", action="store_const", const=EVERY, help="all of your clusters")
BY_PLACE = argument(
    "cluster", nargs="?", metavar="NAME", type=_placed, help="the cluster of this name"
)
_BY_OPTION = (BY_CONTEXT, BY_NAME, BY_CONFIG, BY_STATE)
ONE = OneOf("files", (BY_PLACE, *_BY_OPTION), default=Selector())
# For the verbs that have another word in its place. Before `--` and a command, a NAME may stand.
ONE_BY_OPTION = OneOf("files", _BY_OPTION, default=Selector())
# For the verbs that apply a config, where the cluster is named by one.
ONE_OR_CONFIG = OneOf("which", ONE.arguments, default=Selector())
SOME = OneOf("which", (BY_PLACE, *_BY_OPTION, ALL), default=Selector())
FIRED_BY = argument("--by", default="hand", help=SUPPRESS)
OWN_NAME = argument(
    "--name",
    dest="own_name",
    metavar="NAME",
    type=_own_name,
    help="a cluster of this name, and of this context, in the place of those in the config",
)
CONFIG = argument(
    "-c",
    "--config",
    dest="directory",
    metavar="DIR",
    type=partial(_directory, "-c"),
    required=True,
    help="the config's directory",
)


def files_of(host: Host, config: QemuConfig) -> Files:
    """The files of the cluster that a config is of."""
    place = config.cache_dir or default_cache_dir(host, config.name)
    return Files(place.resolve(), config.name)


def own_config(host: Host, directory: Path, own_name: str | None = None) -> QemuConfig:
    """The config of a directory; with a name, that of a cluster and a context of this name."""
    config = require_qemu(load_config(directory, host.home))
    return replace(config, name=own_name, context=own_name) if own_name else config


def find_cluster(host: Host, which: Selector) -> Files:
    """The one cluster that is meant. StateError lists those there are where it is not one."""
    if which.state_file:
        return Files(which.state_file.parent.resolve(), which.state_file.stem)
    if which.config:
        config = _identity_of(host, which.config, which.name)
        return _named_by_config(host, config)
    every = discover(host)
    if not every:
        raise _no_clusters(host, which)
    if which.unnamed_for:
        raise _not_named(which.unnamed_for, every)
    found = which.pick(host, every)
    if len(found) == 1:
        return found[0]
    hint = last_teardown(host, which.name) if which.name else ""
    hint += "\n".join(_selectors(found or every))
    if found:
        raise StateError(f"{len(found)} clusters {which}; choose one:", hint=hint)
    raise StateError(f"no cluster {which}; there are:", hint=hint)


def has_remains(host: Host, files: Files) -> bool:
    """Whether there is anything of a cluster: its state, its lock, or its VM."""
    return has_state(files) or files.lock.exists() or running(host, files)


def _by_state(files: Files) -> str:
    """The words that select a cluster whatever others there are."""
    return f"--state {shlex.quote(str(files.sidecar))}   # in {files.cache_dir}"


def _selectors(found: Sequence[Files]) -> list[str]:
    """For each cluster the words that select it: by its state file, where another has its name."""
    names = [files.name for files in found]
    return [
        _by_state(files)
        if names.count(files.name) > 1
        else f"--name {shlex.quote(files.name)}   # in {files.cache_dir}"
        for files in found
    ]


def find_with_config(host: Host, which: Selector) -> tuple[Files, QemuConfig | None]:
    """The one cluster that is meant, and the config by which it is named, where it is by one."""
    if not which.config:
        return find_cluster(host, which), None
    config = own_config(host, which.config, which.name)
    return _named_by_config(host, config), config


def _named_by_config(host: Host, config: QemuConfig) -> Files:
    """The files of its cluster; where there is no such cluster, what became of it is said."""
    files = files_of(host, config)
    if has_state(files):
        return files
    if not config.cache_dir and not has_remains(host, files):
        _tell_of_namesakes(host, files)
    host.output.say(last_teardown(host, files.name, str(files.cache_dir)), end="")
    return files


def _tell_of_namesakes(host: Host, files: Files) -> None:
    """Warn where there is none of a cluster, and one of its name in another cacheDir.

    That one may be meant by a config which names no cacheDir. Raises StateError where it is in a
    cacheDir that is used without a word of the user's: no script must take it for none.
    """
    namesakes = [other for other in discover(host) if other.name == files.name]
    if not namesakes:
        return
    why = f"no cluster {files.name} in {files.cache_dir}; elsewhere there is one of this name"
    ways = [_by_state(other) for other in namesakes]
    usual = {host.data_home().resolve(), (host.home() / SIBLING_HOME).resolve()}
    if not usual.isdisjoint(other.cache_dir for other in namesakes):
        raise StateError(f"{why}:", hint="\n".join(ways))
    host.output.warn(f"{why}: {'; '.join(ways)}")


def _not_named(path: str, every: Sequence[Files]) -> UsageError:
    """The error where a verb that destroys is not told which cluster; it lists those there are."""
    lines = [f"ycluster {path} {words}" for words in _selectors(every)]
    return UsageError(f"{path} never guesses which cluster; name it:", hint="\n".join(lines))


def _identity_of(host: Host, directory: Path, own_name: str) -> QemuConfig:
    """A config, for the name and the cacheDir of its cluster; it may be wrong otherwise."""
    config, error = load_identity(directory, host.home)
    config = require_qemu(config)
    config = replace(config, name=own_name or config.name)
    files = files_of(host, config)
    if error:
        head, *problems = str(error).splitlines()
        why = f"{problems[0]} ({head})" if problems else head
        host.output.warn(f"{why}; going on with {files.name} in {files.cache_dir}")
    return config


def _no_clusters(host: Host, which: Selector) -> StateError:
    asked = f" {which}" if which.name or which.context else ""
    for error in unseen(host).values():
        raise StateError(f"no cluster{asked} can be seen: {error}", hint=error.hint)
    hint = "`ycluster provision -c DIR` makes one"
    if not which.context:
        hint = last_teardown(host, which.name) + hint
    return StateError(f"there is no cluster{asked}: there are none yet", hint=hint)


def current(host: Host, files: Files) -> State:
    """The cluster's state by the clock of now."""
    return adjusted(load_state(files), host.clock())


def readable(host: Host) -> list[tuple[Files, State]]:
    """The clusters whose state can be read; one that can't be is a warning, and hides no other."""
    return [(files, state) for files, state in with_states(host) if state is not None]


def with_states(host: Host) -> list[tuple[Files, State | None]]:
    """The clusters with their states; None, and a warning, where that can't be read."""
    found: list[tuple[Files, State | None]] = []
    for files in discover(host):
        try:
            found.append((files, current(host, files)))
        except StateError as error:
            if not is_gone(files.sidecar):
                host.output.warn(str(error))
                found.append((files, None))
    return found


def require_qemu(config: Config) -> QemuConfig:
    """The config, where its provider is implemented; else NotImplementedYet."""
    if not isinstance(config, QemuConfig):
        why = f"not yet implemented for {config.provider}"
        hint = "`provider: qemu` is; `ycluster lifetime gcp-flags` works with all"
        raise NotImplementedYet(why, hint=hint)
    return config


# --- opening a cluster: its state under its lock, and what is wrong with that state
@contextlib.contextmanager
def cluster_lock(
    host: Host,
    files: Files,
    *,
    patience: float = LOCK_TIMEOUT,
) -> Iterator[None]:
    """Hold a cluster's lock, which may be held by this process already.

    Its file goes when the cluster has gone, or was never made. Whatever changes a cluster passes
    here. What root has made by sudo, root may end by sudo.
    """
    if files.lock in host.locked:
        yield
        return
    refuse_sudo(host, files.sidecar)
    check_folder(files.cache_dir)
    host.program_source()  # before a wait, in which an upgrade may replace the file
    with locked(host, files.lock, timeout=patience, belongs_to=files.sidecar):
        host.locked.add(files.lock)
        host.worked_on = files.sidecar
        try:
            yield
        finally:
            host.locked.discard(files.lock)


def _newest(host: Host, state: State) -> State:
    """The state, or what was saved last where that is of a later start, or knows of a memory.

    The state file came back from a backup, or a save was killed between the copy and the state
    file. Its deadline is another run's; and a memory of which it does not know would be removed.
    """
    kept = last_saved(state.files)
    if kept is None:
        return state
    is_of_a_later_start = (kept.started_at or 0) > (state.started_at or 0)
    has_a_memory = kept.suspended is not None and state.suspended is None
    if not is_of_a_later_start and not has_a_memory:
        return state
    text = "is older than what was saved last, which counts"
    host.output.warn(f"{state.name}: {state.files.sidecar} {text}")
    kept = replace(kept, cache_dir=state.cache_dir)
    with contextlib.suppress(OSError, YclusterError):  # on a full disk it counts all the same
        save_state(kept)
    return kept


@contextlib.contextmanager
def opened(
    host: Host,
    files: Files,
    *,
    patience: float = LOCK_TIMEOUT,
) -> Iterator[State]:
    """The state of an existing cluster, under its lock, by the clock of now."""
    load_state(files)  # where there is none, this raises before a lock file is made
    with cluster_lock(host, files, patience=patience):
        saved = _newest(host, load_state(files))  # again: it may have been changed while we waited
        remember_again(host, files.cache_dir)
        state = adjusted(saved, host.clock())
        step = (state.expires_at or 0) - (saved.expires_at or 0)
        if step:
            way = "forward" if step > 0 else "back"
            text = f"the clock was set {way} by {in_words(step)}; its deadline moves along"
            host.output.warn(f"{state.name}: {text}")
        yield state


MAX_RUN = argument(
    "--max-run",
    dest="run_budget",
    metavar="D",
    type=own_budget,
    default=SUPPRESS,
    help='the budget of this one run, such as 2h; "0": none',
)
DISCARD_MEMORY = argument(
    "--discard-memory",
    action="store_true",
    help="drop what ran in a suspended cluster; its disk is as after a power cut",
)

# For each state, the verb to use first, and its effect.
WAYS_OUT: Mapping[str, tuple[str, str]] = {
    "stopped": ("start", "starts it, with a fresh budget"),
    "paused": ("resume", "wakes it"),
    "suspended": ("start", "goes on where it was"),
    "running": ("stop", "stops it"),
    NO_ROOM: ("resume", "lets it go on, once there is room on its disk"),
}


OFF = ("stopped", "suspended")  # the states in which there is no QEMU


def wrong_state(state: State, now: str, why: str = "") -> YclusterError:
    """The error where a cluster is in a state in which a verb can do nothing; `why` adds to it."""
    verb_out, effect = WAYS_OUT.get(now, ("status", "shows more"))
    hint = f"`ycluster {verb_out} --name {state.name}` {effect}"
    expired = last_expiry(state)
    return YclusterError(f"{state.name} is {now}{why}{expired}", hint=hint)


def status_of(host: Host, state: State) -> str:
    """What `vm_status` says of the cluster's VM; `suspended` where its memory is in a file."""
    now = vm_status(host, state.files)
    return "suspended" if now == "stopped" and state.suspended else now


# --- a config that was edited since its cluster was made
# Keys of the config and fields of the state, by when a change takes hold: at once, at the next
# start, or with a new cluster.
_AT_ONCE = {
    "lifetime.maxRun": "lifetime",
    "lifetime.onExpiry": "on_expiry",
    "lifetime.warn": "warn",
    "lifetime.onWarn": "on_warn",
    "lifetime.maxTotal": "max_total",
    "lifetime.maxIdle": "max_idle",
    "lifetime.idleCpu": "idle_cpu",
}
_AT_START = {
    "memory": "memory",
    "cpus": "cpus",
    "accel": "accel",
    "cpuModel": "cpu_model",
}
_NETWORK_AT_START = {"network.bindAddress": "bind_address"}
_AT_PROVISION = {
    "diskSize": "disk_size",
    "context": "context",
    "image": "image",
    "dataDisk": "data_disk",
    "sshUser": "ssh_user",
}
_DURATIONS = [f"lifetime.{name}" for name in LIFETIME_SPANS]
# Whose value may hold a password, or is not kept.
_UNSHOWN = ("image", "k3s.source", "lifetime.onWarn", "registries", "guest", "k3s.args")
_A_START = "takes a stop and a start"
_A_PROVISION = "takes a teardown, which removes the disk, and a provision"


class Difference(Record):
    """A key of the config whose value is not that of the state, with the fields that follow it."""

    key: str
    old: str
    new: str
    fields: Mapping[str, Any]

    def __str__(self) -> str:
        """In words: the start of a line."""
        if self.key in _UNSHOWN:
            return f"{self.key}: changed"
        return f"{self.key}: {self.old or 'none'} -> {self.new or 'none'}"


def reconfigured(
    state: State,
    config: QemuConfig | None,
    clock: Clock,
    *,
    runs: bool,
) -> tuple[State, list[str]]:
    """The state by a config that may have been edited, and a line on each difference. Pure.

    `runs`: the VM does, so that its deadline follows the budget, and its machine stays as it is.
    """
    if config is None:
        return state, []
    made = state_from_config(config, Path(state.cache_dir))
    # As it would be saved and read: a password in a URL is none of the differences.
    wanted = decode_state(encode_state(made), made.files.sidecar)
    applied = _differences(state, wanted, _AT_ONCE)
    at_start = _differences(state, wanted, _AT_START)
    network = _network_differences(state, wanted)
    fixed = _differences(state, wanted, _AT_PROVISION) + _k3s_differences(state, wanted)
    fixed += _seed_differences(state, wanted)
    if runs:
        at_start += network
    elif state.suspended:  # it goes on with the machine that it had
        applied += network
    else:
        applied += at_start + network
        at_start = []
    lines = [str(difference) for difference in applied]
    fields: dict[str, Any] = {}
    for difference in applied:
        fields.update(difference.fields)
    changed = replace(state, **fields)
    if runs:
        changed, more = _with_new_deadline(changed, fields, clock)
        lines += more
    lines += _what_takes(_A_START, state, at_start)
    lines += _what_takes(_A_PROVISION, state, fixed)
    lines += [f"{difference} {_A_PROVISION}" for difference in _mode_differences(state, config)]
    return changed, lines


def _with_new_deadline(
    state: State, changed: Mapping[str, Any], clock: Clock
) -> tuple[State, list[str]]:
    """The state of a running VM in which these fields have changed, and a line on its deadline."""
    lines = []
    if "lifetime" in changed and state.reaped is not None:  # what goes on has a fresh one
        lines.append(_counted_from(state))
    elif "lifetime" in changed and state.run_budget:
        lines.append("the new budget counts from the next start: this run has its own")
    elif "lifetime" in changed:
        state = recounted(state, clock)
        lines.append(_counted_from(state))
    if not {"lifetime", "max_total"}.isdisjoint(changed):
        state = bounded_holds(within_total(state, clock), clock)
        latest = latest_end(state, clock)
        if latest is not None and state.expires_at == latest:
            lines.append("the deadline is where maxTotal ends, and can't be later")
    if "max_idle" in changed:
        state = watched_from(state, clock)
        if state.idle is not None:
            lines.append("from now on, it expires if it stays unused for that long")
    if not {"lifetime", "warn"}.isdisjoint(changed):
        state = warned_by_hand(state, clock.now)
    return state, lines


def _what_takes(how: str, state: State, differences: Sequence[Difference]) -> list[str]:
    """A line on each difference that takes more. One in what the state does not know is none."""
    if not state.image:  # the sibling's: a field that it does not write is unknown
        shared = [{*map(camel_case, item.fields)} & _SIBLINGS for item in differences]
        differences = [item for item, known in zip(differences, shared) if known]
    return [f"{difference} {how}" for difference in differences]


def _counted_from(state: State) -> str:
    length = budget(state.max_run)
    if length is None:
        return "no deadline any more" + ("" if state.max_idle else ": nothing will stop it")
    from_start = (state.started_at or 0) + seconds_up(length)
    if state.expires_at is None or state.expires_at > from_start:
        return "the new budget counts from now, as that from the start is used up"
    return "the new budget counts from the start, not from now"


def _differences(state: State, wanted: State, keys: Mapping[str, str]) -> list[Difference]:
    """Where fields that are texts differ."""
    found = []
    for key, attr in keys.items():
        old, new = getattr(state, attr), getattr(wanted, attr)
        same = old == new or (key in _DURATIONS and budget(old) == budget(new))
        # The pinned image changes with ycluster itself, and says nothing of what the user wants.
        if not same and (key, new) != ("image", DEFAULT_IMAGE):
            found.append(Difference(key, str(old), str(new), {attr: new}))
    return found


def _mode_differences(state: State, config: QemuConfig) -> list[Difference]:
    """Whether the guest is to have an address of its own, or another one."""
    old, new = state.guest_address, ""
    if config.network.mode == "tap":
        new = config.network.guest_address.partition("/")[0]
    if old == new:
        return []
    return [Difference("network.mode", _mode_words(old), _mode_words(new), {})]


def _mode_words(guest_address: str) -> str:
    return f"tap, {guest_address}" if guest_address else "user"


def _network_differences(state: State, wanted: State) -> list[Difference]:
    """Where the forwards differ, or what they listen on; in tap mode there are none."""
    if state.guest_address:
        return []
    return _differences(state, wanted, _NETWORK_AT_START) + _port_differences(state, wanted)


def _port_differences(state: State, wanted: State) -> list[Difference]:
    """Where the forwards differ, those that QEMU has chosen not counted."""
    old_ssh, *old = forwards(state)
    new_ssh, *new = forwards(wanted)
    found = []
    for key, attr, before, after in (
        ("sshPort", "ssh_port", [old_ssh], [new_ssh]),
        ("portForwards", "port_forwards", old, new),
    ):
        texts = _port_text(before), _port_text(after)
        if texts[0] != texts[1]:
            fields = {attr: getattr(wanted, attr), "auto_ports": wanted.auto_ports}
            found.append(Difference(key, *texts, fields))
    return found


def _port_text(ports: Sequence[PortForward]) -> str:
    texts = [f"{port.host or 'any'}:{port.guest}" for port in ports]
    return ", ".join(sorted(texts))


def _k3s_differences(state: State, wanted: State) -> list[Difference]:
    """Where the k3s differs. What the state file does not have is unknown."""
    if state.k3s.get("Install") == wanted.k3s["Install"] == "none":
        return []
    found = []
    for name, new in wanted.k3s.items():
        old = state.k3s.get(name, new)
        is_known = name != "Version" or old != ""
        # The pinned version is as the pinned image.
        if is_known and old != new and (name, new) != ("Version", K3S_VERSION):
            key = f"k3s.{name.lower()}"
            found.append(Difference(key, str(old), str(new), {"k3s": wanted.k3s}))
    return found


def _seed_differences(state: State, wanted: State) -> list[Difference]:
    """Where the seed would be made of something else. What an older ycluster made is unknown."""
    found = []
    for key, mark in wanted.seeded.items():
        if state.seeded.get(key, mark) != mark:
            found.append(Difference(key, "", "", {"seeded": wanted.seeded}))
    return found


def say_changes(host: Host, lines: Sequence[str]) -> None:
    """Write what `reconfigured` has found."""
    for line in lines:
        host.output.say(f"  {line}")


# --- life and death of a VM
TAP = "network.mode: tap"


def refuse_tap(state: State, hint: str) -> None:
    """Raise where a cluster is in tap mode, for what would have to start it again."""
    if state.guest_address:
        raise NotImplementedYet(f"{state.name}: not yet implemented: {TAP}", hint=hint)


def check_implemented(config: QemuConfig) -> None:
    """Raise if the config asks for what is not implemented, rather than leave it out in silence."""
    asked = []
    if config.k3s.install == "script" and config.k3s.source.startswith("file:"):
        asked.append("k3s.source: a folder of this host, with install: script")
    if config.network.mode == "tap":
        asked.append(TAP)
    if asked:
        hint = "remove it from the config"
        raise NotImplementedYet(f"not yet implemented: {', '.join(asked)}", hint=hint)


@verb(
    "provision",
    "create a cluster, boot it, wait until you can log in",
    CONFIG,
    OWN_NAME,
    MAX_RUN,
    THEN_SHOW,
    example="ycluster provision -c examples/dev",
)
def provision(
    host: Host, directory: Path, *, own_name: str | None = None, run_budget: str = ""
) -> None:
    """Make a cluster and boot it; boot one that is there and off, by the config as it is now."""
    config = own_config(host, directory, own_name)
    check_implemented(config)
    for warning in warnings_of(config):
        host.output.warn(warning)
    _check_host(host)
    files = files_of(host, config)
    if _can_start(host, files):
        host.output.say(f"{files.name} exists already: starting it by the config as it is now")
        start(host, Selector(config=directory, name=own_name or ""), run_budget=run_budget)
    else:
        _provision_anew(host, config, files, run_budget)


def _provision_anew(host: Host, config: QemuConfig, files: Files, run_budget: str) -> None:
    """Make a cluster and boot it, with everything checked before anything is made."""
    added = additions_of(config, host.environ)
    for warning in proxy_warnings(config, host.environ):
        host.output.warn(warning)
    refuse_sudo(host, files.sidecar)
    state = for_one_run(state_from_config(config, files.cache_dir), run_budget)
    check_cache_dir(config, files.cache_dir)
    check_folder(files.cache_dir)
    hand_over(host, spare=files)
    others = [other for _, other in readable(host)]
    check_context(host, others, config, files)
    if state.data_disk:
        with blamed_on(config, "dataDisk"):
            _refuse_data_disk(state.data_disk, [files, *(other.files for other in others)])
    _refuse_data_disks_of(others, files)
    imported = _origin_of_disk(host, files)
    _check_ports(host, state)
    if state.data_disk:
        with blamed_on(config, "dataDisk"):
            check_data_disk(host, state.data_disk)
    if not imported:
        check_image(host, config, files.cache_dir)
    check_k3s_source(host, config)
    own_folder(files.cache_dir)
    # Outside the lock: this takes long, and touches no cluster. The image comes after k3s, whose
    # download has no bound, as PRUNE_LEAST is all that keeps the image until a disk builds on it.
    if config.k3s.install == "airgap":
        fetch_k3s(host, config.k3s.version, config.k3s.source)
    image = files.disk if imported else fetch_image(host, config, files.cache_dir)
    if state.data_disk:
        make_data_disk(host, Path(state.data_disk), config.data_disk_size)
    with cluster_lock(host, files):
        if _origin_of_disk(host, files) != imported:
            why = f"{files.name}: its disk was imported or removed meanwhile"
            raise YclusterError(why, hint="run it again")
        remember_cache_dir(host, files.cache_dir)
        state = _claim(host, config, replace(state, imported=imported))
        state = _make_cluster(host, state, image, added)
    _finish_boot(host, state)


def _claim(host: Host, config: QemuConfig, state: State) -> State:
    """Save the state of a new cluster, which takes its context: of two at once, one alone does.

    From here on a crash leaves a cluster that is listed.
    """
    files, known = state.files, has_state(state.files)
    with claim_lock(host):
        check_context(host, [other for _, other in readable(host)], config, files)
        try:
            return save_state(state)
        except BaseException:
            remove(files.copy)  # which is of no use alone
            if not known:
                remove(files.sidecar)
            raise


def _make_cluster(
    host: Host,
    state: State,
    image: Path,
    added: Additions,
) -> State:
    """From nothing to a running QEMU, or nothing at all. An imported disk is kept either way."""
    try:
        make_keys(host, state)
        make_disk(host, state, image)
        make_seed(state, added)
        return _boot(host, state)
    except BaseException:
        if not running(host, state.files):
            _erase(host, state, keep_disk=bool(state.imported))
            if state.imported:
                save_state(state)  # for the next provision
        raise


def _check_host(host: Host) -> None:
    """Raise, before anything is made, where a VM could not be started, or not be stopped again."""
    host.program_source()  # before a download, in which an upgrade may replace the file
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
        hint = "Linux 5.3 or later is needed"
        raise PrerequisiteError(f"pidfd_open: {error.strerror}", hint=hint) from None
    if not _sees_itself():
        hint = "`mount -t proc proc /proc` mounts it; nothing could be stopped without it"
        raise PrerequisiteError("/proc is not that of these processes", hint=hint)
    chosen_timer(host)
    refuse_sudo(host, host.state_home())


def _sees_itself() -> bool:
    """Whether /proc is there, and of the PID namespace of this process."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())
    except OSError:
        return False


def _can_start(host: Host, files: Files) -> bool:
    """Whether there is a cluster that is off, and has all that `start` boots."""
    if not files.sidecar.exists() or running(host, files):
        return False
    state = load_state(files)
    return not state.is_half_made and files.disk.exists()


def _origin_of_disk(host: Host, files: Files) -> str:
    """Where the boot disk that is there came from: of an import, or kept; empty without one.

    Raises where the name is taken. A cluster that has never booted (its provision was killed) may
    be replaced.
    """
    _refuse_lost(host, files)
    if running(host, files):
        hint = f"`ycluster ssh {files.name}` logs in; `ycluster start -c DIR` applies what can be "
        hint += f"changed\nwhile it runs; `ycluster teardown {files.name}` removes it"
        raise YclusterError(f"{files.name} already runs", hint=hint)
    if files.sidecar.exists():
        state = load_state(files)
        _refuse_disk_that_ran(state)
        if state.is_half_made:
            return state.imported
        back = "" if files.disk.exists() else "once its disk is back in its place, "
        hint = f"{back}`ycluster start -c DIR` starts it by its config; "
        hint += f"`ycluster teardown --name {files.name}` removes it"
        raise YclusterError(f"{files.name} already exists in {files.cache_dir}", hint=hint)
    if _is_disk_kept(host, files):
        return str(files.disk)
    _refuse_unclaimed(files)
    return ""


def _refuse_disk_that_ran(state: State) -> None:
    """Raise where a state calls a cluster half-made, and its console shows that it has run."""
    console = state.files.console
    if state.is_half_made and console.is_file() and console.stat().st_size:
        why = f"{state.files.sidecar} has no startedAt, but {state.name} has run: see {console}"
        hint = 'write "startedAt" back into it, a time such as "2026-07-01T12:00:00Z"'
        raise StateError(why, hint=hint)


def _is_disk_kept(host: Host, files: Files) -> bool:
    """Whether all that is there is a disk to boot.

    A `teardown --keep-disk` left it and its login key, or the sibling's import made it, which keeps
    no record. A disk alone is taken for the sibling's in its folder; elsewhere it may be anybody's.
    """
    if files.are_all([files.disk, files.ssh_key, files.ssh_pub]):
        return True
    is_siblings = files.cache_dir.resolve() == host.sibling_home().resolve()
    return is_siblings and _is_whole_disk(files)


def _is_whole_disk(files: Files) -> bool:
    """Whether all that is there is a boot disk that builds on no other file."""
    if not files.are_all([files.disk]):
        return False
    try:
        return format_of(files.disk) == "qcow2"
    except (NoDisk, OSError):
        return False


def _refuse_disk(host: Host, files: Files, disk: Path) -> None:
    """Raise where the name is taken, or a disk that was kept is there: it has no other copy.

    `disk`, which is to be imported, may be there itself.
    """
    if disk == files.disk and _is_whole_disk(files):
        return
    there = _origin_of_disk(host, files)
    if not there or not files.disk.exists():
        return
    # What it was made of may be gone, or have been this very file, before its folder was moved.
    if there == str(files.disk) or not os.path.exists(there):
        hint = "`ycluster provision -c DIR` boots it; move it away to import another"
        why = f"{files.disk} is there already, from an earlier cluster or import"
        raise YclusterError(why, hint=hint)


_END_OF_LOST = "only its watcher, if that still runs, ends it at its deadline"


def _stop_of_lost(files: Files) -> str:
    """The command that shuts down a guest whose state file is lost."""
    return shlex.join(["ycluster", "stop", "--state", str(files.sidecar)])


def _way_out_of_lost(files: Files) -> str:
    return f"{_END_OF_LOST}; `{_stop_of_lost(files)}` does now"


def told_of_lost(host: Host) -> Iterator[tuple[str, Files]]:
    """What to say of each VM whose state file is not where it was made, and its files."""
    lost = list(lost_vms())
    known = discover(host) if lost else []
    for pid, files in lost:
        if any(is_qemu_of(pid, cluster) for cluster in known):
            continue  # its files were moved, and are seen there
        files = where_now(pid, files)
        gone = "is gone"
        if os.path.lexists(files.sidecar):
            gone = f"is in {files.cache_dir} now, where no timer looks for it"
        yield f"{files.name} runs (pid {pid}), but its state file {gone}", files


def _refuse_lost(host: Host, files: Files) -> None:
    """Raise where a VM of this name runs whose files are gone, here or in a default cacheDir."""
    places = {files.cache_dir, host.data_home().resolve(), host.sibling_home().resolve()}
    for pid, lost in lost_vms():
        if lost.name == files.name and lost.cache_dir.resolve() in places:
            why = (
                f"{lost.name} already runs (pid {pid}), and its files in {lost.cache_dir} are gone"
            )
            raise YclusterError(why, hint=_way_out_of_lost(lost))


def _refuse_unclaimed(files: Files) -> None:
    """Raise where anything stands in the place of a file of the cluster's: it may be the user's."""
    hint = (
        "move it away, or choose another name; `ycluster import` makes a cluster's disk of a copy"
    )
    if _is_whole_disk(files):
        argv = shlex.join(["ycluster", "import", str(files.disk)])
        hint = f"`{argv} -c DIR` makes it the cluster's, as it is; or {hint}"
    for path in files.unclaimed():
        what = "a disk" if path == files.disk and not path.is_dir() else "something"
        raise YclusterError(f"{path}: {what} is there that no cluster claims", hint=hint)


def _refuse_data_disk(data_disk: str, every: Sequence[Files]) -> None:
    """Raise where a data disk has a name that a cluster gives its own files, which it removes."""
    real = os.path.realpath(data_disk)
    for files in every:
        name = _own_name_at(real, files)
        if name:
            why = f"{data_disk}: {name} is a name of the cluster {files.name}'s own"
            raise ConfigError(why, hint="a teardown would remove it; give it another name")


def _refuse_data_disks_of(others: Iterable[State], files: Files) -> None:
    """Raise where the data disk of another cluster lies at one of the names of this one."""
    for other in others:
        if not other.data_disk:
            continue
        if _own_name_at(os.path.realpath(other.data_disk), files):
            why = f"{other.data_disk} is the data disk of the cluster {other.name}"
            hint = f"a teardown of {files.name} would remove it; choose another name or cacheDir"
            raise YclusterError(why, hint=hint)


def _own_name_at(real: str, files: Files) -> str:
    """The name of a cluster's own file that is at a path, or is a folder around it."""
    for path in files.names():
        if _is_within(real, path):
            return path.name
    return ""


def _is_within(real: str, path: Path) -> bool:
    """Whether a real path is that of `path`, or lies in it."""
    top = os.path.realpath(path)
    return real == top or real.startswith(top + os.sep)


def _check_ports(host: Host, state: State) -> None:
    """Raise, and say why, where QEMU could not listen on a port."""
    address, faults = state.bind_address, []
    hint = 'set sshPort or portForwards in the config to other ports ("0": QEMU chooses), '
    hint += "and name the cluster by -c"
    for forward in forwards(state):
        port = forward.host
        fault = _listen_fault(address, port)
        if fault == errno.EADDRNOTAVAIL:
            why = f"can't listen on {address}: no interface of this host has this address"
            hint = f"write `network: {{bindAddress: {BIND_ADDRESS}}}`; `ip -4 addr` lists them all"
            raise PrerequisiteError(why, hint=hint)
        if fault:
            faults.append(f"can't listen on port {port}: {_listen_words(host, port, fault)}")
        if fault == errno.EACCES and "sysctl" not in hint:
            hint += f"; or let\neverybody listen on it: sudo sysctl {_LOW_PORTS}={port}"
    if faults:
        raise PrerequisiteError("; ".join(faults), hint=hint)


_LOW_PORTS = "net.ipv4.ip_unprivileged_port_start"


def _listen_words(host: Host, port: int, fault: int) -> str:
    """Why a port can't be had."""
    if fault == errno.EACCES:
        return f"you may not, as it is below {_LOW_PORTS}"
    return port_owner(host, port) if fault == errno.EADDRINUSE else os.strerror(fault)


def port_owner(host: Host, port: int) -> str:
    """Who listens on a port, in words; of another user's program only root may know."""
    answer = host.attempt(["ss", "-Hltnp", f"sport = :{port}"], timeout=10)
    found = re.search(r'users:\(\("([^"]*)",pid=([0-9]+)', answer or "")
    if found is None:
        return "another program has it" if answer is None else "a program of another user has it"
    program, pid = found.groups()
    cluster = _guest_name(int(pid))
    owner = f"the cluster {cluster}" if cluster else program
    return f"{owner} has it (pid {pid})"


def _guest_name(pid: int) -> str:
    """The name that a process gives its guest, as QEMU does; empty where there is none."""
    argv = command_line(pid)
    after = argv[argv.index("-name") + 1 :] if "-name" in argv else []
    found = re.match("(?:guest=)?([^,=]*)", after[0]) if after else None
    return found[1] if found else ""


def _listen_fault(address: str, port: int) -> int:
    """The errno of listening on a port; 0 where that works."""
    import socket

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As QEMU does: a port whose connections of before are in TIME_WAIT can be bound.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            return error.errno or errno.EIO
    return 0


def _boot(host: Host, state: State) -> State:
    """Start the VM from its disk, with a fresh budget."""
    warn_of_little_memory(host, state)
    fresh = anchored(with_choice(host, state), host.clock())
    fresh = replace(fresh, ran_with="")
    return _run_with_deadline(host, state, fresh, _run_from_disk)


def _run_from_disk(host: Host, state: State) -> State:
    # What QEMU chose (accelerator, machine, ports) is what later commands go by.
    return save_state(launch(host, state))


def _run_with_deadline(
    host: Host, before: State, fresh: State, run_guest: Callable[[Host, State], State]
) -> State:
    """Start the VM by `run_guest`, in the order that makes it expire whatever happens.

    `fresh` has the deadline. If the guest does not start, it is cleared: all is as `before`.
    """
    try:
        # The deadline is on disk: whatever kills us from here on, the next command knows of it.
        state = save_state(_with_own_hold(host, fresh))
        # Something enforces it: a timer is armed, and saved.
        state = arm_timers(host, state)
        # Only now may the guest run.
        state = run_guest(host, state)
    except BaseException:
        if not running(host, before.files):
            saved = load_state(before.files)
            if saved.files.memory.exists():
                saved = _stamped(saved)
            swap_timers(host, stopped(_not_started(before, saved)), ())
        raise
    log_event(
        host,
        state,
        "started",
        expiresAt=_encode_time(state.expires_at),
        accel=state.ran_with,
        restored=before.suspended is not None,
    )
    return state


def _not_started(before: State, saved: State) -> State:
    """The saved state of a start that failed: of what ran last it has what it had `before`."""
    return replace(saved, started_at=before.started_at, reaped=before.reaped)


def _see_to_timers(host: Host, state: State) -> State:
    """Give a running cluster a deadline where it has a budget, and timers where it has a deadline.

    Under the lock. One that was disarmed by hand stays so.
    """
    if state.disarmed:
        return state if host.holder is None else save_state(_with_own_hold(host, state))
    state = used_by_hand(_see_to_deadline(host, state), host.now())
    return arm_timers(host, _with_own_hold(host, with_choice(host, state)))


def _see_to_deadline(host: Host, state: State) -> State:
    if state.expires_at is None and budget(state.max_run) is not None:
        return save_state(anchored(state, host.clock()))
    if state.idle is None and budget(state.max_idle) is not None:
        return save_state(watched_from(replace(state, reaped=None), host.clock()))
    return state


def _finish_boot(
    host: Host,
    state: State,
    stages: Sequence[Stage] = BOOT_STAGES,
) -> None:
    """Wait without the lock, so that an extend, a stop or a reap gets its turn meanwhile."""
    say_deadline(host, state)
    if state.has_k3s:
        can_merge(host, state.name)  # told now, and not after minutes
    try:
        wait_ready(host, state, timeout=READY_TIMEOUT, stages=(*stages, *k3s_stages(state)))
        if state.has_k3s:
            with opened(host, state.files) as state:
                state = merge_kubeconfig(host, state)
    except Interrupted:
        if host.holder is None:  # else it is taken away again
            hint = f"`ycluster stop --name {state.name}` ends it now"
            host.output.say(f"{state.name} keeps booting; {hint}")
        raise
    except YclusterError as error:
        reaped = _reaped_since(state)
        if reaped is None:
            raise
        why = _expired_early(state, reaped, "while it started")
        hint = "--max-run, or lifetime in the config, gives it more"
        raise YclusterError(why, hint=hint) from error
    host.output.say(f"{state.name} is ready: ycluster ssh --name {state.name}")


def _reaped_since(state: State) -> Reaped | None:
    """The expiry that has ended this run since; None where none has, or nothing is left to ask."""
    try:
        now = load_state(state.files)
    except StateError:
        return None
    return now.reaped if now.started_at == state.started_at else None


def _expired_early(state: State, reaped: Reaped, when: str) -> str:
    """That an expiry has ended a run under what went on in it, in words."""
    done = ACTIONS[reaped.action].done
    at = local_time(reaped.at)
    why = f"its {state.max_run}"
    if reaped.cause == UNUSED:
        why = f"its maxIdle, {state.max_idle}"
    return f"{state.name} was {done} at {at}, by {why}, {when}"


def say_deadline(host: Host, state: State) -> None:
    """One line on stderr: when it ends, in how long, how and by which timer."""
    if not state.has_limit:
        host.output.say(f"  {state.name} has no lifetime budget: it runs until you stop it")
        return
    by = "no timer: disarmed by hand"
    if not state.disarmed:
        by = f"timer: {state.timer.backend if state.timer else 'none'}"
    word = ACTIONS[state.on_expiry].ends
    if state.expires_at is not None:
        left = state.expires_at - host.now()
        span = in_words(left)
        when = f"in {span}" if left > 0 else f"{span} ago"
        at = local_time(state.expires_at)
        host.output.say(f"  {word} at {at}, {when}; {by}")
        word = "or"
    if state.idle is not None:
        host.output.say(f"  {word} when nobody has used it for {state.max_idle}; {by}")


@verb(
    "start",
    "boot a stopped cluster, or go on with a suspended one, with a fresh budget; with -c by the "
    "config as it is now",
    ONE_OR_CONFIG,
    DISCARD_MEMORY,
    MAX_RUN,
    THEN_SHOW,
    example="ycluster start dev",
)
def start(
    host: Host, which: Selector, *, discard_memory: bool = False, run_budget: str = ""
) -> None:
    """Boot a stopped cluster; for one that runs, see to its timers and its k3s."""
    files, config = find_with_config(host, which)
    _check_mode(host, files)
    _check_host(host)
    hand_over(host, spare=files)
    with opened(host, files) as state:
        state = found = _settled(host, state)
        if discard_memory:
            state = replace(state, suspended=None)
        now = status_of(host, state)
        if now in ("paused", NO_ROOM):
            raise wrong_state(state, now)
        runs = now not in OFF
        state, changes = _by_config(host, state, config, runs=runs)
        if not runs:
            state = for_one_run(state, run_budget)
        elif run_budget:
            state = recounted_for_one_run(state, run_budget, host.clock())
        if now == "suspended":
            say_changes(host, changes)
            state = _go_on(host, state)
        elif not runs:
            _check_bootable(state)
            _check_ports(host, state)
            say_changes(host, changes)
            if discard_memory:
                _discard_memory(host, found)
            state = _boot(host, state)
        else:
            host.output.say(f"{state.name} already runs")
            say_changes(host, changes)
            state = _see_to_timers(host, save_state(with_ports(host, state)))
            if not state.has_k3s:
                say_deadline(host, state)
                return
            # Its install may have been cut short: finished below.
    _finish_boot(host, state, RESTORED_STAGES if now == "suspended" else BOOT_STAGES)


def _by_config(
    host: Host,
    before: State,
    config: QemuConfig | None,
    *,
    runs: bool,
) -> tuple[State, list[str]]:
    """`reconfigured`, by the clock of now.

    Under a `run` it takes nothing from the deadline of a VM that ran before: somebody else may be
    at work in it.
    """
    state, changes = reconfigured(before, config, host.clock(), runs=runs)
    if not runs or host.holder is None:
        return state, changes
    state = replace(state, holds=before.holds)
    was, now = before.expires_at, state.expires_at
    if was is not None and now is not None and now < was:
        changes.append("it ran before, and keeps its deadline; the next start counts anew")
        state = replace(state, expires_at=was, warned=before.warned)
    return state, changes


def _check_mode(host: Host, files: Files) -> None:
    """Raise, before anything is changed, where a cluster is off that only the sibling can start."""
    state = load_state(files)
    if state.guest_address and status_of(host, state) in OFF:
        _refuse_start(state)


def _refuse_start(state: State) -> None:
    refuse_tap(state, "y-cluster, which made it, can start it")


def _check_bootable(state: State) -> None:
    """Raise where the VM can't be booted here, or a disk that it needs is not there."""
    _refuse_start(state)  # again: it may have been stopped meanwhile
    _require_disk(state)
    check_disks(state)
    check_marks(state)


def _require_disk(state: State) -> None:
    if state.is_half_made or not state.files.disk.exists():
        _refuse_disk_that_ran(state)
        why = f"{state.name} has no disk to boot"
        if state.imported and state.files.disk.exists():
            hint = "`ycluster provision -c DIR` boots it for the first time"
            raise StateError(f"{state.name} is imported, and has not booted yet", hint=hint)
        why += ": its provision was interrupted, or the disk was removed"
        hint = "`ycluster provision -c DIR` makes it anew; "
        hint += f"`ycluster teardown --name {state.name}` clears the rest"
        raise StateError(why, hint=hint)


@verb(
    "stop",
    "power a cluster off; its disk stays",
    ONE,
    DISCARD_MEMORY,
    THEN_SHOW,
    example="ycluster stop dev",
)
def stop(host: Host, files: Files, *, discard_memory: bool = False) -> None:
    """Power the guest off; the disk stays. Its state file may be lost, or what can't be read."""
    hand_over(host, spare=files)
    try:
        load_state(files)
    except StateError:
        check_folder(files.cache_dir)  # in another's, nothing is believed
        if not running(host, files):
            raise
        _stop_lost(host, files)
        return
    with opened(host, files) as state:
        state = _settled(host, state)
        if discard_memory:
            state = _discard_memory(host, state)
        if status_of(host, state) == "suspended":
            why = f"{state.name} is suspended: what ran in it is in {files.memory}"
            hint = f"`ycluster start --name {state.name}` goes on with it; "
            hint += f"`ycluster stop --discard-memory --name {state.name}` drops it"
            raise YclusterError(why, hint=hint)
        how = _halt(host, state)
        swap_timers(host, stopped(state), ())
    if how:
        host.output.say(f"{state.name} is stopped")
    else:
        host.output.say(f"{state.name} was not running{last_expiry(state)}")


def _stop_lost(host: Host, files: Files) -> None:
    """Power off a guest whose state can't be read.

    By its watcher, where there is one: it has what logs in to the guest, also where the monitor is
    gone with the folder.
    """
    with find_vm(host, files) as vm:
        if vm is None:
            return
        host.output.say(f"stopping {files.name} (pid {vm.pid}), without its state")
        asked = _ask_watcher(files)
        if asked:
            host.output.say(f"  its watcher (pid {asked}) has been asked to do it")
        if not asked or not exited(vm.pidfd, LOCK_TIMEOUT):

            def no_login() -> NoReturn:
                raise YclusterError("what logs in to it is not known")

            now = where_now(vm.pid, files)
            stop_vm(host, now, vm, no_login, partial(is_gone, now.disk))
    host.output.say(f"{files.name} is stopped")


def _ask_watcher(files: Files) -> int | None:
    """The pid of the watcher that now stops its VM; None where there is none that would."""
    for pid in pids():
        is_its = watched(pid) == str(files.sidecar)
        if is_its and process_stat(pid)[1] not in STOPPED and catches(pid, ASK_TO_STOP):
            # It may have ended meanwhile, with its VM.
            with contextlib.suppress(OSError), descriptor(pidfd_open(pid)) as pidfd:
                send_signal(pidfd, ASK_TO_STOP)
                return pid
    return None


@contextlib.contextmanager
def _one_at_a_time(host: Host, state: State) -> Iterator[None]:
    """While a VM is stopped, paused or suspended, with the cluster's lock or without it.

    Of two that stop it at once, the second would come to force too soon; and a stop that did not
    wait for a suspend would lose the memory.
    """
    files = state.files
    timeout = max(LOCK_TIMEOUT, memory_timeout(state))
    with contextlib.ExitStack() as stack:
        if running(host, files):
            with contextlib.suppress(YclusterError, OSError):  # whatever is there keeps no VM
                one = locked(host, files.stop_lock, timeout=timeout, belongs_to=files.sidecar)
                stack.enter_context(one)
        yield


def _halt(host: Host, state: State, *, erases: bool = False) -> str:
    """Stop the VM; returns the step that ended it, empty where nothing ran.

    One that stands still beside its memory file is ended as it is: nothing of it is lost.
    """
    with _one_at_a_time(host, state):
        if _is_memory_kept(host, state.files):
            _end_still(host, state)
            return MEMORY_STEP
        return _stop_guest(host, state, erases=erases)


def _loses_nothing(host: Host, state: State, *, erases: bool) -> bool:
    """Whether no disk stays of a guest without room: it is gone, or it is to go (`erases`)."""
    if state.data_disk:
        return False
    disk = state.files.disk
    return is_gone(disk) or (erases and not built_on(host, disk))


MEMORY_STEP = "memory file"  # how a VM has ended of which its memory is left


def _is_memory_kept(host: Host, files: Files) -> bool:
    """Whether all that a VM has in memory is in its file, too, by the state as it is now."""
    try:
        if not files.memory.exists() or not running(host, files):
            return False
        return load_state(files).suspended is not None and stands_still(host, files)
    except YclusterError:
        return False


def _stop_guest(host: Host, state: State, *, erases: bool) -> str:
    files = state.files

    def poweroff() -> object:
        repair_login(state)
        return host.run(ssh_argv(state, "sudo sync; sudo poweroff"), timeout=15)

    how = ""
    # Look again: the process found may have been QEMU's parent, which ends once the daemon runs.
    while True:
        with find_vm(host, files) as vm:
            if vm is None:
                break
            host.output.say(f"stopping {state.name} (pid {vm.pid})")
            may_cut_off = partial(_loses_nothing, host, state, erases=erases)
            how = stop_vm(host, files, vm, poweroff, may_cut_off)
    if how or is_claimed(files):
        _forget_process(files)
    return how


def _forget_process(files: Files) -> None:
    """Remove what named a QEMU that has ended. On a read-only disk it stays, and does no harm."""
    for path in (files.pidfile, files.qmp):
        with contextlib.suppress(OSError):  # see above
            remove(path)


def _freeze(host: Host, state: State) -> str:
    """Pause the VM; returns how, empty where nothing ran."""
    with _one_at_a_time(host, state), find_vm(host, state.files) as vm:
        return pause_vm(host, state.files, vm) if vm else ""


@verb(
    "pause",
    "freeze a cluster; its memory stays",
    ONE,
    THEN_SHOW,
    example="ycluster pause dev",
)
def pause(host: Host, files: Files) -> None:
    """Freeze the guest: its memory stays, its CPUs stand still. The deadline stays, too."""
    with opened(host, files) as state:
        state = _settled(host, state)
        if not _freeze(host, state):
            raise wrong_state(state, status_of(host, state))
    host.output.say(f"{state.name} is paused")
    say_deadline(host, state)


# --- suspend
# What becomes of a memory file: `start`, or `resume`, loads it and removes it, and then the guest
# goes on; `teardown`, and `start` or `stop` with --discard-memory, remove it; `stop` alone, and
# what exports a disk, refuse. No expiry comes, as nothing runs. Whatever else works on the cluster
# finishes first what was cut off, by `_settled`.
@verb(
    "suspend",
    "write a cluster's memory to disk and end its VM; start goes on where it was",
    ONE,
    THEN_SHOW,
    example="ycluster suspend dev",
)
def suspend(host: Host, files: Files) -> None:
    """Write the guest's memory beside its disk, and end the VM. A failure lets the guest run on."""
    _refuse_suspend(load_state(files))
    hand_over(host, spare=files)
    with opened(host, files) as state:
        state = _settled(host, state)
        with find_vm(host, files) as vm:
            if vm is not None:
                state = _suspend(host, state, vm)
        if state.suspended is None:
            raise wrong_state(state, status_of(host, state))
        swap_timers(host, stopped(state), ())
    host.output.say(f"{state.name} is suspended: its memory takes {mebibytes(files.memory)}")
    host.output.say(f"  `ycluster start --name {state.name}` goes on where it was")


def _refuse_suspend(state: State) -> None:
    hint = f"no start could go on with it; `ycluster pause --name {state.name}` freezes it"
    refuse_tap(state, hint)


def _suspend(host: Host, state: State, vm: Vm) -> State:
    """Write the memory, save what belongs to it, and only then end QEMU.

    A guest whose monitor does not answer runs on: that is the error.
    """
    _refuse_suspend(state)
    files = state.files
    if not files.qmp.exists():
        raise YclusterError(f"{state.name}: its QEMU has no monitor, which a suspend needs")
    _check_room(host, files, vm)
    with _one_at_a_time(host, state):
        with standing_still(host, state, vm) as qmp:
            state = replace(state, suspended=write_memory(host, state, qmp))
            state = save_state(state)
            with contextlib.suppress(QmpError):  # a signal is what follows
                qmp.execute("quit")
        _end_still(host, state)
    log_event(host, state, "suspended", bytes=files.memory.stat().st_size)
    return _stamped(state)


def _end_still(host: Host, state: State) -> None:
    """End a QEMU whose guest stands still and has its memory in the file: nothing is lost."""
    files = state.files
    with find_vm(host, files) as vm:
        if vm is None:
            return
        with contextlib.suppress(YclusterError):  # the signal is what follows a failure
            ask_qemu(host, files, "quit")
        if not exited(vm.pidfd, 10):
            send_signal(vm.pidfd, signal.SIGKILL)
            exited(vm.pidfd, 10)
    _forget_process(files)


def _stamped(state: State) -> State:
    """The state, saved, with its disks as they are now that a QEMU which ran nothing has ended."""
    if state.suspended is None:
        return state
    fits = {**state.suspended.fits, **disks_fit(state)}
    if fits == state.suspended.fits:
        return state
    return save_state(replace(state, suspended=replace(state.suspended, fits=fits)))


def _settled(host: Host, state: State) -> State:
    """The state of a cluster whose suspend, or start from one, may have been cut off.

    A VM that has executed nothing since its memory was written, or read, is ended, and the file is
    what counts. Any other VM counts itself: the file is out of date, or not whole, and goes.
    """
    files = state.files
    if not running(host, files):
        _remove_memory(files, whole=state.suspended is None)
        return state
    if state.suspended is None or not files.memory.exists():
        _settle_vm(host, files)
        return state if state.suspended is None else save_state(replace(state, suspended=None))
    if stands_still(host, files):
        text = "its suspend was interrupted, or a start from it; it is suspended"
        host.output.say(f"{state.name}: {text}")
        _end_still(host, state)
        return _stamped(state)
    host.output.warn(f"{state.name} runs; its memory file is out of date, and is removed")
    _remove_memory(files, whole=True)
    return save_state(replace(state, suspended=None))


def _remove_memory(files: Files, *, whole: bool) -> None:
    """Remove what a suspend that was cut off has left."""
    with contextlib.suppress(OSError):  # on a read-only disk it stays
        remove(files.memory_part)
        if whole:
            remove(files.memory)


def _settle_vm(host: Host, files: Files) -> None:
    """Let a VM forget about a suspend that was cut off, and take what is left of that away."""
    if not os.path.lexists(files.memory_part) and not os.path.lexists(files.memory):
        return
    try:
        with Qmp.connect(files.qmp, host.monotonic, timeout=5.0) as qmp:
            cancel_migration(host, qmp)
    except YclusterError as error:
        host.output.warn(f"{files.name}: {error}")
    _remove_memory(files, whole=True)


def _discard_memory(host: Host, state: State) -> State:
    """Remove the memory of a suspended cluster: its disk is then as after a power cut."""
    if state.suspended is None:
        return state
    size = mebibytes(state.files.memory) if state.files.memory.exists() else "nothing"
    remove(state.files.memory)
    host.output.say(f"{state.name}: its memory is discarded ({size})")
    return save_state(replace(state, suspended=None))


def _go_on(host: Host, state: State) -> State:
    """Let a suspended guest go on, with a fresh budget.

    Where its memory can't be loaded it stays suspended, and nothing is booted in its place.
    """
    _check_bootable(state)
    _check_ports(host, state)
    warn_of_little_memory(host, state)
    fault = memory_fault(host, state)
    if fault:
        raise _not_loaded(state, fault)
    fresh = anchored(with_choice(host, state), host.clock())
    fresh = _run_with_deadline(host, state, fresh, _run_from_memory)
    host.output.say(f"{state.name} goes on where it was suspended")
    return fresh


def _run_from_memory(host: Host, state: State) -> State:
    try:
        state = launch_from_memory(host, state)
    except YclusterError as error:
        raise _not_loaded(state, str(error)) from error
    return _run_on(host, save_state(state))


def _run_on(host: Host, state: State) -> State:
    """Remove the memory file, and only then let the guest execute anything."""
    remove(state.files.memory)
    sync_folder(state.files.cache_dir)
    state = save_state(replace(state, suspended=None))
    ask_qemu(host, state.files, "cont")
    return state


def _not_loaded(state: State, why: str) -> YclusterError:
    hint = "fix that; or, to boot its disk as after a power cut, without what ran in it: "
    hint += f"`ycluster start --discard-memory --name {state.name}`"
    return YclusterError(f"{state.name} stays suspended: {why}", hint=hint)


@verb(
    "resume",
    "continue a paused or suspended cluster; with -c by the config's lifetime as it is now",
    ONE_OR_CONFIG,
    MAX_RUN,
    THEN_SHOW,
    example="ycluster resume dev",
)
def resume(host: Host, which: Selector, *, run_budget: str = "") -> None:
    """Continue a paused guest; with a fresh budget where the old one is used up."""
    files, config = find_with_config(host, which)
    hand_over(host, spare=files)
    with opened(host, files) as state:
        state = _settled(host, state)
        halted, state = _resume(host, state, config, run_budget)
    if state.suspended:
        start(host, which, run_budget=run_budget)
        return
    host.output.say(f"{state.name} runs")
    say_deadline(host, state)
    if halted:
        set_guest_clock(host, state)


def _resume(
    host: Host,
    state: State,
    config: QemuConfig | None,
    run_budget: str,
) -> tuple[bool, State]:
    """Let a paused VM run; returns whether it was paused. One that is suspended stays so."""
    with find_vm(host, state.files) as vm:
        if vm is None and state.suspended:
            return False, state
        if vm is None:
            raise wrong_state(state, "stopped")
        now = vm_status(host, state.files)
        halted = now != "running"
        paused, anew = _budgeted(host, state, config, run_budget, halted=halted)
        state = anchored(paused, host.clock()) if anew else paused
        try:
            state = _see_to_timers(host, state)  # before the guest runs
            if halted:
                _wake(host, state, vm, was=now)
        except BaseException:
            # One that stood still, and may run by now, keeps what ends it.
            if halted and (now in _MAY_RUN or vm_status(host, state.files) not in _MAY_RUN):
                _take_back(host, paused)
            raise
        return halted, state


def _budgeted(
    host: Host,
    state: State,
    config: QemuConfig | None,
    run_budget: str,
    *,
    halted: bool,
) -> tuple[State, bool]:
    """The state of a VM by its config and the budget of this run, saved.

    And whether what ran until now has used its budget up, so that it goes on with a fresh one.
    """
    before = after_expiry(state) if halted and state.reaped is not None else state
    changed, changes = _by_config(host, before, config, runs=True)
    is_over = state.reaped is not None or _used_up(changed, host.now())
    anew = halted and is_over and not state.disarmed
    if anew:
        changed = for_one_run(changed, run_budget) if run_budget else after_expiry(changed)
    elif run_budget:
        changed = recounted_for_one_run(changed, run_budget, host.clock())
    if changed != state:
        state = save_state(changed)  # also where it is disarmed, and no timer is armed
    say_changes(host, changes)
    return state, anew


def _take_back(host: Host, paused: State) -> None:
    """After a resume that failed: the deadline is that of before, and its timers stand."""
    saved = load_state(paused.files)
    state = swap_timers(host, replace(paused, timers=saved.timers), paused.timers)
    with contextlib.suppress(YclusterError):  # why the resume has failed says more
        arm_timers(host, state)


def _used_up(state: State, now: float) -> bool:
    return state.expires_at is not None and state.expires_at <= now and not state.disarmed


def _wake(host: Host, state: State, vm: Vm, *, was: str) -> None:
    """Have the guest go on; raises where it does not. `was`: the state of the VM."""
    resume_vm(host, state.files, vm)
    if was == NO_ROOM:
        host.sleep(WRITE_TIME)
    now = vm_status(host, state.files, patience=ANSWER_TIMEOUT)
    if now == NO_ROOM:
        raise YclusterError(f"{state.name}: {NO_ROOM_WORDS}", hint="make room, and try again")
    if now == "unresponsive":
        why = f"{state.name} was told to go on, and its monitor does not answer since"
        hint = f"`ycluster status {state.name}` shows whether it runs, and until when"
        raise YclusterError(why, hint=hint)
    if now != "running":
        why = f"{state.name} could not be continued: its state is {now}"
        raise YclusterError(why, hint=f"see {state.files.console}")


@verb(
    "teardown",
    "stop a cluster and remove its files",
    OneOf(
        "files",
        ONE.arguments,
        default=Selector(unnamed_for="teardown"),
    ),
    argument("--keep-disk", action="store_true", help="keep the boot disk and its ssh key"),
    THEN_SHOW,
    example="ycluster teardown dev",
    usage="%(prog)s (NAME | --name NAME | --context CTX | -c DIR | --state FILE) [--keep-disk]",
)
def teardown(host: Host, files: Files, *, keep_disk: bool = False) -> None:
    """Stop the VM and remove the cluster's own files, and nothing else. Safe to repeat."""
    if not has_remains(host, files):
        host.output.say(f"{files.name}: nothing to tear down in {files.cache_dir}")
        return
    with cluster_lock(host, files):
        known = os.path.lexists(files.sidecar)
        if known:
            state = load_state(files)
        else:
            # Its VM is stopped; but without a state file nobody can prove that the disk is ours.
            state = State(name=files.name, cache_dir=str(files.cache_dir))
        if known:
            state = _settled(host, state)
        if keep_disk and state.suspended:
            text = "its memory is not kept, so the disk is as after a power cut"
            host.output.warn(f"{state.name}: {text}")
        _halt(host, state, erases=known and not keep_disk)
        removed = _erase(host, state, keep_disk=keep_disk or not known)
    host.output.say(f"{files.name} is torn down; removed: {' '.join(removed)}")
    kept = _kept(state) if known else files.unclaimed()
    if kept:
        host.output.say(f"  kept: {' '.join(map(str, kept))}")
        _say_its_image(host, files)


def _say_its_image(host: Host, files: Files) -> None:
    """Name the image that a kept disk builds on: prune looks into the cacheDirs alone."""
    image = None
    with contextlib.suppress(OSError):  # it is gone, or can't be read
        image = backing_of(files.disk)
    if image:
        why = f"which `ycluster prune` keeps for a disk in {files.cache_dir}, and for no other"
        host.output.say(f"  {files.disk.name} builds on {image}, {why}")


def _kept(state: State) -> list[Path]:
    """What a teardown has kept of a cluster."""
    paths = [state.files.disk, state.files.ssh_key]
    if state.data_disk:
        paths.append(Path(state.data_disk))
    return [path for path in paths if path.exists()]


def _erase(host: Host, state: State, *, keep_disk: bool = False) -> list[str]:
    """Remove the cluster's files; returns their names.

    What its timer needs goes last: a teardown that is cut off is then finished by that timer. What
    no state file claims, and no copy of one, stays: it may be the user's.
    """
    files = state.files
    if not is_claimed(files):
        locks = [path for path in files.locks() if path != files.lock and is_empty(path)]
        return [path.name for path in (*locks, *files.unfinished()) if remove(path)]
    keep_disk = keep_disk or _is_built_on(host, files)
    first = _going_first(state, keep_disk=keep_disk)
    removed = [path.name for path in first if files.remove(path)]
    _leave_names(host, state)
    cancel_timers(host, state)
    return removed + [path.name for path in files.going("last") if files.remove(path)]


def _leave_names(host: Host, state: State) -> None:
    """Take a cluster's names out of the kubeconfig, unless a copy of its cacheDir has them, too."""
    mine = (state.name, state.context, state.kubeconfig)
    for files, other in readable(host) if state.kubeconfig else ():
        its = (other.name, other.context, other.kubeconfig)
        if files != state.files and its == mine:
            text = f"its names stay in {state.kubeconfig}, for {files.sidecar} has the same"
            host.output.warn(f"{state.name}: {text}")
            return
    leave_kubeconfig(host, state)


def _is_built_on(host: Host, files: Files) -> bool:
    """Whether another disk would be lost with the boot disk; says which."""
    others = built_on(host, files.disk)
    for path in others:
        host.output.warn(f"{files.disk} is kept: {path} builds on it")
    return bool(others)


def _going_first(state: State, *, keep_disk: bool) -> list[Path]:
    """What a teardown removes before that which the timers need; never the data disk."""
    files = state.files
    first = files.disposable()
    if not keep_disk:
        first = [*files.going("with the disk"), *first]
    if not state.data_disk:
        return first
    # A state of an earlier version, or an edited one, may give it one of our names.
    data = os.path.realpath(state.data_disk)
    return [path for path in first if not _is_within(data, path)]


# --- a disk that leaves, and one that comes
CLEAN = ("guest-shutdown", "ssh poweroff")  # the steps of a stop after which a file system is whole


@verb(
    "prepare-export",
    "make a cluster's disk fit to boot elsewhere; stops it",
    ONE,
    argument(
        "--max-run",
        metavar="D",
        type=boot_budget,
        default=0,
        help="have the disk power its machine off D after each boot, where nothing else does",
    ),
    example="ycluster prepare-export dev --max-run 8h",
)
def prepare_export(host: Host, files: Files, max_run: int = 0) -> None:
    """Make the boot disk fit to boot elsewhere.

    Stops the cluster, and removes what its disk knows of this host and this network, free blocks
    included. Its machine-id and its login stay. Safe to repeat; it resumes if it was interrupted.
    `max_run`: seconds, after which each machine that boots the disk powers itself off; 0: never.
    """
    with opened(host, files) as state:
        _require_disk(state)
        now = status_of(host, state)
        if now != "running" and not (now == "stopped" and state.prepared):
            raise wrong_state(state, now, ", so its disk can't be prepared")
        host.need(LIBGUESTFS)
        check_host_kernel(host)
        if now == "running":
            _prepare_in_guest(host, state)
            state = _halt_cleanly(host, state)
        state = save_state(replace(state, prepared="live"))  # if this fails, it is to be had again
        _prepare_disk(host, state, max_run)
        length = format_duration(max_run * 10**9) if max_run else ""
        save_state(replace(state, prepared="done", disk_max_run=length))
    if max_run:
        text = f"{length} after each boot the disk powers its machine off, here too"
        host.output.say(f"{state.name}: {text}")
    way_on = f"`ycluster export BUNDLE_DIR --name {state.name}` writes its disk"
    host.output.say(f"{state.name} is prepared: {way_on}")


def _prepare_in_guest(host: Host, state: State) -> None:
    repair_login(state)
    command = f"sudo sh -c {shlex.quote(PREPARE_LIVE)}"
    done = host.run(ssh_argv(state, command), timeout=300, check=False)
    if done.returncode:
        why = done.stderr.strip() or f"exit {done.returncode}"
        message = f"{state.name}: the guest could not prepare itself: {why}"
        hint = "it keeps running as before"
        if not running(host, state.files):
            message = f"{state.name} was stopped while it was prepared: {why}"
            hint = (
                f"`ycluster start --name {state.name}` gives it a fresh deadline; then prepare it"
            )
        raise YclusterError(message, hint=hint)
    if "no-time-sync" in done.stdout:
        text = "no time service is installed in the guest; its clock will drift"
        host.output.warn(f"{state.name}: {text}")


def _halt_cleanly(host: Host, state: State) -> State:
    """Stop the guest and its deadline; raises where it was not the guest that shut down."""
    how = _halt(host, state)
    clean = how in CLEAN
    state = swap_timers(host, replace(stopped(state), prepared="live" if clean else ""), ())
    if not clean:
        hint = (
            f"`ycluster start --name {state.name}` lets it repair its disk; then prepare it again"
        )
        how = how or "it was off already"
        raise YclusterError(f"{state.name} did not shut down by itself: {how}", hint=hint)
    return state


def _prepare_disk(host: Host, state: State, max_run: int) -> None:
    disk = str(state.files.disk)
    argv = [
        "virt-customize", "--quiet", "--no-network", "--format", "qcow2",
        "-a", disk, "--run-command", PREPARE_OFFLINE,
    ]  # fmt: skip
    if max_run:
        argv += max_run_argv(max_run)
    try:
        guestfs(host, "offline phase", *argv)
        listed = guestfs(host, "clearing free space", "sh", "-c", CLEAR_FREE, "sh", disk)
    except YclusterError as error:
        why = f"{state.name} is stopped, and its disk half prepared: {error}"
        hint = f"`ycluster prepare-export {state.name}` goes on with it; "
        hint += f"`ycluster start {state.name}` boots it as it is"
        raise YclusterError(why, hint=hint) from error
    harmless = "ext[234]|vfat|unknown"  # those that are cleared; EFI and BIOS have no data of users
    for device, kind in re.findall(r"(?m)^(/.*): (.*)$", listed):
        if not re.fullmatch(harmless, kind):
            text = f"what was deleted from {device} ({kind}) can still be read from the disk"
            host.output.warn(f"{state.name}: {text}")


@verb(
    "export",
    "write a stopped cluster's disk, keys and checksums to a folder",
    ONE_BY_OPTION,
    argument(
        "bundle",
        metavar="BUNDLE_DIR",
        type=partial(_directory, "BUNDLE_DIR"),
        help="a new folder",
    ),
    argument(
        "--format",
        dest="form",
        choices=EXPORTS,
        default="qcow2",
        help="default: qcow2; gcp-tar is what Compute Engine imports, ova VMware and VirtualBox",
    ),
    argument(
        "--vmdk-subformat",
        dest="subformat",
        choices=VMDK_SUBFORMATS,
        help=f"with --format vmdk; default: {VMDK_SUBFORMATS[0]}",
    ),
    example="ycluster export ./bundle --format gcp-tar --name demo",
)
def export(
    host: Host,
    files: Files,
    bundle: Path,
    form: str,
    subformat: str | None,
) -> None:
    """Write the boot disk, flattened, with its keys, checksums and a README into a new folder.

    Whole or not at all: it is made beside the folder, and renamed.
    """
    if subformat and form != "vmdk":
        raise UsageError("--vmdk-subformat is for --format vmdk")
    bundle = bundle.resolve()
    with opened(host, files) as state:
        _check_export(host, state, bundle, form)
        with _new_folder(bundle) as part:
            _fill_bundle(host, state, part, form, subformat or VMDK_SUBFORMATS[0])
        mark_used(host, files.sidecar)
    host.output.data(str(bundle))


@contextlib.contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """What is written to the path that this gives becomes the folder, if the block ends well.

    If not, nothing is left, not even the folders above it that were not there.
    """
    part = folder.with_name(f".{folder.name}.part")
    missing = [above for above in folder.parents if not os.path.lexists(above)]
    try:
        try:
            make_folder(folder.parent)
            part.mkdir(mode=0o700)
        except OSError as error:
            if error.filename == str(part) and error.errno == errno.EEXIST:
                left = shlex.quote(str(part))
                hint = f"if none is running, remove what the killed one has left: rm -r {left}"
                why = f"another export to {folder} is running, or was killed"
                raise YclusterError(why, hint=hint) from None
            why = f"{folder} can't be made: {error.filename}: {error.strerror}"
            raise UsageError(why, hint="name a folder that can be made") from None
        try:
            yield part
            for path in (*part.iterdir(), part):  # the folder last: until then nobody else is in it
                keep_owner(path, folder.parent)
            part.rename(folder)
        finally:
            remove_folder(part)
    except BaseException:
        for above in missing:
            with contextlib.suppress(OSError):  # somebody uses it by now
                above.rmdir()
        raise


def _check_export(
    host: Host,
    state: State,
    bundle: Path,
    form: str,
) -> None:
    """Raise where the disk can't be exported there; warn of what it lacks."""
    programs = {"qemu-img": "qemu-utils"}
    if form == "gcp-tar":
        programs["qemu-nbd"] = "qemu-utils"
    host.need(programs)
    if running(host, state.files):
        hint = f"`ycluster prepare-export --name {state.name}` stops and prepares it"
        raise YclusterError(f"{state.name} is running", hint=hint)
    if state.suspended:
        raise wrong_state(state, "suspended", ", and its disk is not whole without its memory")
    _require_disk(state)
    check_backing(state, state.files.disk)
    _check_bundle(host, bundle)
    if state.prepared != "done":
        way_out = f"`ycluster prepare-export --name {state.name}` fixes it"
        why = "is not prepared; its disk knows this network"
        host.output.warn(f"{state.name} {why}. {way_out}")
    if state.data_disk:
        host.output.warn(f"the data disk {state.data_disk} is not part of the bundle")


def _check_bundle(host: Host, bundle: Path) -> None:
    """Raise UsageError where no bundle can be put, or none would be safe."""
    if os.path.lexists(bundle) and (not bundle.is_dir() or any(bundle.iterdir())):
        hint = "nothing is ever overwritten; name a new one"
        raise UsageError(f"{bundle} is not an empty folder", hint=hint)
    if bundle.is_mount():
        hint = f"name a new folder in it, such as {bundle / 'bundle'}"
        raise UsageError(f"{bundle}: a file system is mounted there", hint=hint)
    real = os.path.realpath(bundle)
    for files in discover(host):
        if _own_name_at(real, files):
            why = f"{bundle} is a name of the cluster {files.name}'s own"
            raise UsageError(why, hint="a teardown would remove it; name another one")


def _fill_bundle(
    host: Host,
    state: State,
    folder: Path,
    form: str,
    subformat: str,
) -> None:
    """The disk, the login key, the host key, a README, and last the checksums of them all."""
    files = state.files
    disk = folder / f"{state.name}{EXPORTS[form]}"
    write_export(host, state, form, disk, subformat)
    copies = {
        files.ssh_key: files.ssh_key.name,
        files.ssh_pub: files.ssh_pub.name,
        files.known_hosts: "known_hosts",
    }
    for path, name in copies.items():
        if path.exists():
            write_file(folder / name, path.read_bytes())
    facts = {"name": state.name, "version": VERSION, "disk": disk.name, "user": state.ssh_user}
    facts["deadline"] = deadline_on_disk(state)
    in_parts = form == "vmdk" and subformat not in ("streamOptimized", "monolithicSparse")
    use = BUNDLE_USES.get("parts" if in_parts else form, _IMPORT)
    text = BUNDLE_README.format(**facts, use=use.format(**facts))
    write_file(folder / "README", text.encode())
    names = sorted(path.name for path in folder.iterdir())
    sums = host.run(["sha256sum", *names], timeout=3600, cwd=folder, progress="checksums")
    write_file(folder / "SHA256SUMS", sums.stdout.encode())


@verb(
    "import",
    "import a disk for `provision` to boot",
    CONFIG,
    argument(
        "disk", metavar="DISK", type=Path, help="qcow2, raw, vmdk, or an exported .ova or .tar.gz"
    ),
    example="ycluster import bundle/demo.qcow2 -c examples/dev",
)
def import_disk(host: Host, disk: Path, directory: Path) -> None:
    """Make a cluster's boot disk of `disk`, which `provision` then boots.

    It becomes a copy of it, or `disk` itself where that is in its place already.
    `disk` builds on no other file, and is a qcow2, a vmdk, raw, a tar with a disk.raw (gzipped or
    not), or an OVA, of which the hardware is not used.
    It is checked against the SHA256SUMS beside it. Raises YclusterError if the cluster exists, or
    `disk` is no file.
    """
    config = own_config(host, directory)
    check_implemented(config)
    host.need({"qemu-img": "qemu-utils"})
    files = files_of(host, config)
    refuse_sudo(host, files.sidecar)
    disk = _real_disk(disk)
    check_folder(files.cache_dir)
    _refuse_data_disks_of([other for _, other in readable(host)], files)
    _refuse_disk(host, files, disk)
    _check_sums(host, disk)
    make_folder(files.cache_dir)
    with cluster_lock(host, files):
        _refuse_disk(host, files, disk)
        try:
            made = disk if disk == files.disk else _convert_import(host, disk, files)
            if files.disk.exists() and made != files.disk:
                host.output.say(f"{files.disk} is replaced, which was imported and never booted")
            # The mark first: if this is killed between the two, the next provision asks for a disk.
            save_state(replace(state_from_config(config, files.cache_dir), imported=str(disk)))
            made.replace(files.disk)
            keep_owner(files.disk, files.cache_dir)
        finally:
            files.remove(files.incoming)
    remember_cache_dir(host, files.cache_dir)
    way_on = f"`ycluster provision -c {shlex.quote(str(directory))}` boots it"
    host.output.say(f"{files.name}: {disk} is imported; {way_on}")


def _real_disk(disk: Path) -> Path:
    """The path of a disk without links. UsageError where there is none, or it is a link itself."""
    if disk.is_symlink():  # in the bundle of a stranger it could lead to any file of this host's
        target = shlex.quote(str(disk.resolve()))
        raise UsageError(f"{disk} is a link", hint=f"import what it leads to, if you mean {target}")
    disk = disk.resolve()
    if not disk.is_file():
        hint = "the disk itself is wanted, not the folder of a bundle"
        there = "not a regular file" if disk.exists() else "no such file"
        raise UsageError(f"{disk}: {there}", hint=hint)
    return disk


def _check_sums(host: Host, disk: Path) -> None:
    """Raise where a SHA256SUMS beside the disk names it with another digest.

    Only the disk is read, whatever else it names.
    """
    sums = disk.with_name("SHA256SUMS")
    if not os.path.lexists(sums):
        return
    if not sums.is_file():
        hint = "the SHA256SUMS of the bundle is wanted there, or none"
        raise ConfigError(f"{sums} is not a regular file", hint=hint)
    with open(sums, "rb") as file:
        text = file.read(STATE_SIZE).decode(errors="replace")
    name = re.escape(disk.name)
    lines = rf"^(?:(\w{{64}}) [ *](?:\./)?{name}|SHA256 \((?:\./)?{name}\) = (\w{{64}}))\r?$"
    every = list(re.finditer(lines, text, re.MULTILINE))
    if not every:
        host.output.warn(f"{disk} is not checked: {sums}, beside it, does not name it")
    for found in every:
        if digest_fault(host, disk, (found[1] or found[2]).lower()):
            hint = "it was damaged or changed on its way here"
            raise ConfigError(f"{disk}: its SHA-256 is not that of {sums}", hint=hint)


def _convert_import(host: Host, disk: Path, files: Files) -> Path:
    """A qcow2 of the disk, or of the one in a tar, in the folder for imports."""
    files.remove(files.incoming)
    if os.path.lexists(files.incoming):
        why = f"{files.incoming} is in the way: no import has made it"
        raise YclusterError(why, hint="move it away")
    make_folder(files.incoming)
    write_file(files.incoming / IMPORT_MARK, b"")
    source, made = disk, files.incoming / files.disk.name
    with open(disk, "rb") as file:
        head = file.read(1 << 15)
    if is_tar(unzipped(head)):
        source = _unpack(host, disk, files.incoming, "disk.raw")
    elif is_tar(head):
        source = _unpack(host, disk, files.incoming, _disk_in_tar(host, disk))
    form: str = image_info(host, source, str(disk))["format"]
    write_disk(host, source, "qcow2", made, form)
    return made


def _tar(host: Host, archive: Path, *argv: str) -> str:
    """What tar prints of an archive. ConfigError where that is damaged."""
    try:
        return host.run(["tar", *argv], timeout=6 * 3600).stdout
    except ProgramFailed as error:
        if re.search(r"Unexpected EOF|unexpected end of file|^gzip: ", error.stderr, re.MULTILINE):
            why = f"{archive} is damaged, or was cut off"
            raise ConfigError(why, hint="get it anew; `tar -tf` says more") from None
        raise


def _names_in(host: Host, archive: Path) -> list[str]:
    """The names in a tar, each as it is given to tar to have it unpacked."""
    return _tar(host, archive, "--quoting-style=literal", "-tf", str(archive)).splitlines()


def _disk_in_tar(host: Host, archive: Path) -> str:
    """The name of the one disk in an OVA, or of the disk.raw in a tar."""
    listed = _names_in(host, archive)
    disks = [name for name in listed if re.fullmatch(r"(?i)(?:\./)?[^/.-][^/]*\.vmdk", name)]
    if {"disk.raw", "./disk.raw"} & {*listed}:
        return "disk.raw"
    if len(disks) != 1:
        why = f"{archive} is a tar with {len(disks)} vmdk disks, and not an OVA with one"
        raise ConfigError(why, hint=_way_into_tar(archive, listed))
    return disks[0]


def _way_into_tar(archive: Path, listed: Sequence[str]) -> str:
    """How to import a disk that lies elsewhere in a tar."""
    for name in listed:
        if re.search(r"(?i)\.(raw|img|qcow2|vmdk)$", name):
            argv = ["tar", "-xf", str(archive), "--", name]
            return f"`{shlex.join(argv)}` unpacks the disk in it; import that"
    return "a tar with a disk.raw, an OVA or the disk itself is wanted"


def _unpack(
    host: Host,
    archive: Path,
    folder: Path,
    name: str,
) -> Path:
    """A disk in a tar, as a file in `folder`. ConfigError where it is no file there.

    A link, hard or symbolic, would give the guest a file of this host's.
    """
    unpacked = folder / name
    argv = [
        "-xf", str(archive), "-C", str(folder),
        "--occurrence=1", "--no-recursion", "--no-same-owner", "--no-same-permissions",
        "--no-unquote",
    ]  # fmt: skip
    try:
        _tar(host, archive, *argv, name)
    except ProgramFailed as error:
        if "Not found in archive" not in error.stderr:
            raise
        listed = _names_in(host, archive)
        if f"./{name}" not in listed:  # as `tar -c .` names it
            hint = _way_into_tar(archive, listed)
            raise ConfigError(f"{archive} is a tar without a {name}", hint=hint) from None
        _tar(host, archive, *argv, f"./{name}")
    status = os.lstat(unpacked)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        hint = "a tar with the disk itself is wanted"
        raise ConfigError(f"{archive}: its {name} is not a regular file", hint=hint)
    unpacked.chmod(0o600)  # whatever the archive says
    return unpacked


# --- lifetime
def reap(
    host: Host,
    files: Files,
    *,
    by: str,
    wait: float = 0.0,
    patience: float = LOCK_TIMEOUT,
) -> None:
    """Carry out the expiry if it is due; warn if that is; re-arm if neither is.

    First it looks at the cluster's use, if that is to be looked at by now. `by` names what fired
    it. What is at most `wait` seconds away is waited for; `patience` is how many seconds to wait
    for the lock. Raises YclusterError where the action failed, which is then tried again.
    """
    if wait:
        ahead = wake_time(current(host, files)) - host.now()
        host.sleep(ahead if ahead <= wait else 0)
    with opened(host, files, patience=patience) as saved:
        if _runs_without_end(host, saved):
            saved = _see_to_deadline(host, saved)
        state, decision = _look_and_decide(host, saved, files)
        if decision.do == "nothing":
            host.output.say(f"{state.name}: no expiry is due: {decision.why}")
        elif decision.do not in ACTIONS:
            is_one_of_many = state.idle != saved.idle
            if decision.do == "held":
                is_one_of_many = saved.retry_at is not None
            state = _arm_again(host, state, decision, by, is_one_of_many=is_one_of_many)
        else:
            text = f"{decision.why}: {decision.do} (by {by})"
            say_when(host, f"{state.name}: {text}")
            _expire_or_tell(host, state, decision, by)
    if decision.do == "warn":  # without the lock: whoever is warned may want to extend
        _warn(host, state, decision)


def _runs_without_end(host: Host, state: State) -> bool:
    """Whether the guest of a VM that has a limit executes, and that has no place on its agenda.

    Its expiry had paused it, and QEMU's monitor was told to continue it; or its state was edited.
    """
    is_whole = state.expires_at is not None or budget(state.max_run) is None
    if state.disarmed or not state.has_limit or (is_whole and agenda(state)):
        return False
    if not process_stat(state.files.pidfile)[0]:  # asked first: what is out of sight takes long
        return False
    return status_of(host, state) in _MAY_RUN


def say_when(host: Host, text: str) -> None:
    """Write a line with its moment, for a log."""
    host.output.say(f"{format_time(host.now())} {text}")


def live_holds(host: Host, state: State) -> tuple[Hold, ...]:
    """Those of its holds that hold now."""
    clock = host.clock()
    return tuple(hold for hold in state.holds if _still_holds(hold, clock))


def _still_holds(hold: Hold, clock: Clock) -> bool:
    """Whether the process that holds runs, and has not held for as long as it may."""
    in_time = hold.until is None or clock.now < hold.until
    return in_time and hold.boot == clock.boot_id and process_start(hold.pid) == hold.began > 0


def _without_ended_holds(host: Host, state: State) -> State:
    """The state with those holds that hold now; one that has ended was use until now."""
    left = live_holds(host, state)
    return state if left == state.holds else used_by_hand(replace(state, holds=left), host.now())


def _with_look(host: Host, state: State, files: Files) -> State:
    """The state after a look at its use, if the time for one has come; `files`: where they are."""
    clock = host.clock()
    if time_of(state, LOOK) > clock.now or state.idle is None:
        return state
    measured = measured_use(host, files)
    if measured is None:  # it is off
        measured = 0, max(0, state.idle.cpu) / 1000
    elif state.guest_address:  # what reaches it there does not pass by here
        measured = None, measured[1]
    is_held = bool(live_holds(host, state))
    after = after_look(state, Look(is_held, *measured), clock)
    assert after.idle is not None
    if bool(after.idle.by) != bool(state.idle.by):
        word = "used" if after.idle.by else "unused"
        log_event(host, state, word, by=after.idle.by, since=format_time(after.idle.used))
    return after


def _look_and_decide(host: Host, state: State, files: Files) -> tuple[State, Decision]:
    """What a reap does about a state, and the state after its look; `files`: where they are."""
    was_held = bool(state.holds) and state.retry_at is not None
    after = _without_ended_holds(host, _with_look(host, state, files))
    decision = decide(after, host.clock(), was_held=was_held)
    if decision.again is not None:
        after = replace(after, retry_at=decision.again)
    return after, decision


def reap_in_time(
    host: Host,
    files: Files,
    *,
    by: str,
    patience: float,
    wait: float = 0.0,
) -> None:
    """Reap as `reap` does, for a timer: it fires once, and its deadline waits for no lock.

    Where another ycluster holds that and hangs, the VM is ended without it, which takes no lock;
    what is written does, and waits for it for `patience` seconds.
    """
    try:
        reap(host, files, by=by, wait=wait, patience=LOCK_BOUND)
    except (Busy, NoLock):
        _end_without_lock(host, files)
        reap(host, files, by=by, patience=patience)


def _end_without_lock(host: Host, files: Files) -> None:
    """Stop or pause a VM that is due, whoever holds the cluster's lock. Nothing is saved."""
    # No look, and no grace after a hold: as nothing is saved, each try would begin anew. The verb
    # that has the lock is a use, too.
    state = current(host, files)
    state = replace(state, holds=live_holds(host, state))
    decision = decide(state, host.clock())
    is_under_way = state.retry_at is not None and state.retry_at > host.now()
    if decision.do not in ACTIONS or is_under_way:  # an expiry has its own second try
        return
    # To suspend takes the lock; paused, the VM loses nothing, and costs less.
    is_kept = decision.do in ("pause", "suspend")
    over = ("stopped", "paused") if is_kept else ("stopped",)
    if vm_status(host, files) in over:  # an earlier look than this has ended it
        return
    text = f"{decision.why}; its lock is held, so it is ended without it"
    say_when(host, f"{state.name}: {text}")
    end = _freeze if is_kept else _halt
    end(host, state)


def _arm_again(
    host: Host,
    state: State,
    decision: Decision,
    by: str,
    *,
    is_one_of_many: bool,
) -> State:
    """Arm again; if a warning is due, note it first, so that it is given once.

    What has fired is armed anew. If this is one of many looks, that was the look's timer, unless
    the deadline is so near that its own, which may come early, may be what runs this.
    """
    if decision.do == "warn":
        state = _warned(state, decision.end)
    fired = state.timer is not None and state.timer.backend == by
    is_near = time_of(state, DEADLINE) - host.now() <= AT_EARLY
    state = arm_timers(host, state, renew=fired and (is_near or not is_one_of_many))
    if decision.do == "warn" or not is_one_of_many:  # a log has no room for all of them
        backend = state.timer.backend if state.timer else "-"
        host.output.say(f"{state.name}: {decision.why}; armed by {backend}")
    return state


def _warned(state: State, end: End | None) -> State:
    """The state in which its user has been warned of an end."""
    if end is not None and end.cause == UNUSED and state.idle is not None:
        return replace(state, idle=replace(state.idle, warned=end.at))
    return replace(state, warned=state.expires_at)


def _warn(host: Host, state: State, decision: Decision) -> None:
    """Warn the user of an end wherever they may see it; and run their command."""
    assert decision.end is not None
    cause = decision.end.cause
    at = max(decision.end.at, int(end_time(state)))
    done = ACTIONS[state.on_expiry].done
    left = in_words(at - host.now())
    text = f"{state.name} will be {done} in {left}, at {local_time(at)}"
    if cause == UNUSED:
        text += f", if it stays unused, as it is for {unused_words(state, host.now())}"
        way_out = f"`ycluster lifetime hold --name {state.name} -- COMMAND` keeps it"
    else:
        way_out = f"`ycluster lifetime extend 2h --name {state.name}` gives it more time"
    say_when(host, f"{text}; {way_out}")
    log_event(host, state, "warned", expiresAt=format_time(at), cause=cause)
    host.tell_terminals(f"ycluster: {text}; {way_out}")
    if host.which("notify-send"):
        host.attempt(["notify-send", "--app-name=ycluster", "--", text, way_out], timeout=5)
    if state.on_warn:
        _run_on_warn(host, state, End(at, cause))


def _run_on_warn(host: Host, state: State, end: End) -> None:
    """Run lifetime.onWarn, with the facts in its environment, for at most the time that is left."""
    left = end.at - host.now()
    facts = {
        "YCLUSTER_NAME": state.name,
        "YCLUSTER_CONTEXT": state.context,
        "YCLUSTER_STATE": str(state.files.sidecar),
        "YCLUSTER_ON_EXPIRY": state.on_expiry,
        "YCLUSTER_EXPIRES_AT": format_time(end.at),
        "YCLUSTER_REMAINING_SECONDS": str(int(left)),
        "YCLUSTER_CAUSE": end.cause,
    }
    # A watcher waits for the command, and has a deadline to keep.
    timeout = max(1.0, min(NOTICE_TIMEOUT, left))
    try:
        _run_alone(host, state.on_warn, host.child_env(facts), timeout)
    except YclusterError as error:
        host.output.warn(f"{state.name}: lifetime.onWarn: {error}")


def _run_alone(host: Host, command: str, env: Mapping[str, str], timeout: float) -> None:
    """Run a shell command of the user's; what it leaves in the background goes on, unwaited for.

    So its output goes to a file: a pipe has an end only once the last program has closed it, and
    whoever writes to it after us is killed.
    """
    with descriptor(os.memfd_create("output")) as fd:
        argv = ["sh", "-c", f'exec sh -c "$1" >/proc/self/fd/{fd} 2>&1', "sh", command]
        done = host.run(argv, timeout=timeout, check=False, env=env, pass_fds=[fd])
        if done.returncode != 0:
            size = os.fstat(fd).st_size
            written = os.pread(fd, 4096, max(0, size - 4096)).decode("utf-8", "replace")
            raise ProgramFailed(argv, done.returncode, done.stderr or written)


def _expire_or_tell(
    host: Host,
    state: State,
    decision: Decision,
    by: str,
) -> None:
    """`_expire`; where the first try fails, the user's terminals are told that the VM runs on."""
    end = decision.end
    assert end is not None
    try:
        _expire(host, state, decision, by)
    except YclusterError as error:
        if state.failed != end.at:
            host.tell_terminals(f"ycluster: {error}")
            with contextlib.suppress(YclusterError, OSError):  # then they are told again
                save_state(replace(_newest(host, load_state(state.files)), failed=end.at))
        raise


def _expire(
    host: Host,
    state: State,
    decision: Decision,
    by: str,
) -> None:
    """Carry an action out, with a second try armed first, which acts if this one fails.

    A reap that is killed half way is harmless. retry_at, ending and a second timer are saved before
    it acts, and expires_at is cleared only at the end, so the next firing decides the same again. A
    teardown removes the program and the state file last, so that this timer can finish it.
    """
    action, end = ACTIONS[decision.do], decision.end
    assert end is not None
    again = int(host.now() + retry_delay(host.now() - end.at))
    ending = _ending(host, state, action)
    try:
        state = replace(tried_again(state, end, again), ending=ending)
        state = arm_timers(host, state, renew=True)
    except Exception as error:  # whatever it is: the VM is to end all the same
        host.output.warn(f"{state.name}: no second try can be armed: {error}")
    try:
        how, action, state = _end(host, state, action)
    except Exception as error:
        raise _failed(host, state, action, by, "failed", again, error) from error
    # What has stopped costs nothing to run, and must not cost a disk: a guest that powered itself
    # off, or had just been suspended; or a stop by the sibling, which leaves its deadline in there.
    if not how and (not ending or state.suspended is not None):
        action = ACTIONS[action.in_doubt]
    how = how or NOT_RUNNING
    reaped = Reaped(int(host.now()), action.name, by, how, end.cause)
    _tell_expiry(host, state, reaped, end.at)
    try:
        if action.erases:
            _erase(host, state)
        else:
            swap_timers(host, replace(stopped(state), reaped=reaped), ())
    except Exception as error:
        what = "is done, but can't be saved"
        raise _failed(host, state, action, by, what, again, error) from error


def _end(host: Host, state: State, action: Action) -> tuple[str, Action, State]:
    """End a run by an action: how, empty where nothing ran; what it came to; and the state then."""
    try:
        state = _settled(host, state)
    except Exception as error:  # whatever it is: the VM is to end all the same
        host.output.warn(f"{state.name}: {error}")
    how = END_BY[action.name](host, state)
    state = replace(state, suspended=load_state(state.files).suspended)
    if action.name == "suspend" and state.suspended is None:
        return how, ACTIONS["stop"], state  # see `_suspend_or_stop`
    return how, action, state


def _ending(host: Host, state: State, action: Action) -> str:
    """What to save as `ending`: the action, if it erases and the VM runs.

    An expiry that has found the VM running, and was cut off, goes on where it was.
    """
    if not action.erases or state.ending == action.name:
        return state.ending
    try:
        return action.name if running(host, state.files) else ""
    except YclusterError:  # it can't be seen, so it can't be stopped either: that is the failure
        return ""


def _tell_expiry(
    host: Host,
    state: State,
    reaped: Reaped,
    due: int,
) -> None:
    say_when(host, f"{state.name}: {reaped.action}: {reaped.how}")
    log_event(
        host,
        state,
        "reaped",
        action=reaped.action,
        by=reaped.by,
        how=reaped.how,
        cause=reaped.cause,
        maxRun=state.max_run,
        maxIdle=state.max_idle,
        late=reaped.at - due,
    )


def _failed(
    host: Host,
    state: State,
    action: Action,
    by: str,
    what: str,
    again: int,
    error: Exception,
) -> YclusterError:
    """The error of an expiry that did not go through; it is in the log of events, too."""
    log_event(host, state, "failed", action=action.name, by=by, error=str(error))
    when = local_time(again)
    text = f"{action.name} {what}, again at {when}"
    return YclusterError(f"{state.name}: {text}: {error}")


def _suspend_or_stop(host: Host, state: State) -> str:
    """Suspend the VM; one that can't be, is stopped: it must not outlive its deadline."""
    try:
        with find_vm(host, state.files) as vm:
            if vm is None:
                return ""
            _suspend(host, state, vm)
            return MEMORY_STEP
    except (YclusterError, OSError) as error:
        why = " ".join(str(error).split())
    host.output.warn(f"{state.name}: it can't be suspended, and is stopped: {why}")
    how = _halt(host, state)
    if how in ("", MEMORY_STEP):  # its memory is whole: only what came after has failed
        return how
    return f"{how}, as it could not be suspended: {why}"


# How each of ACTIONS ends a run; what is left on disk is the same for all that do not erase it.
END_BY: Mapping[str, Callable[[Host, State], str]] = {
    "stop": _halt,
    "pause": _freeze,
    "suspend": _suspend_or_stop,
    "teardown": partial(_halt, erases=True),
}


def sweep(host: Host, *, by: str, every: bool = False) -> list[str]:
    """Reap what is overdue, or has no timer for its deadline; with `every` all others, too.

    Returns the names of those that could not be reaped; one that fails does not stop the rest. One
    whose lock is held comes last, and its VM, if due, is ended as in `reap_in_time`.
    """

    def at_once(files: Files) -> None:
        if every or _needs_reap(host, current(host, files)):
            try:
                reap(host, files, by=by, patience=0.5)
            except NoLock:  # to come back later would help nobody
                _end_without_lock(host, files)
                raise

    def in_time(files: Files) -> None:
        if every or running(host, files):
            reap_in_time(host, files, by=by, patience=0.5)
        else:
            raise Busy(f"{files.name}: another ycluster is working on it")

    def patiently(files: Files) -> None:
        reap(host, files, by=by)

    left, failed = discover(host), []
    for act in (at_once, in_time, patiently) if every else (at_once, in_time):
        left, names = _reap_each(host, left, act)
        failed += names
    return [*failed, *(files.name for files in left)]


def _reap_each(
    host: Host, clusters: Sequence[Files], act: Callable[[Files], None]
) -> tuple[list[Files], list[str]]:
    """Do it to each of the clusters; returns those that are busy, and the names that failed."""
    busy, failed = [], []
    for files in clusters:
        try:
            act(files)
        except Busy:
            busy.append(files)
        except Exception as error:
            if not is_gone(files.sidecar):
                host.output.warn(f"{files.name}: {error}")
                failed.append(files.name)
    return busy, failed


def _needs_reap(host: Host, state: State) -> bool:
    """Whether something is due, or no timer is armed for what may end it."""
    moments = agenda(state)
    if _runs_without_end(host, state):
        return True
    if not moments:
        return False
    if moments[0].at <= host.now():
        return True
    armed = {(timer.event, timer.deadline) for timer in state.timers}
    wanted = {(moment.event, int(moment.at)) for moment in moments if moment.event in ENDS}
    return not wanted <= armed or not is_armed(host, state)


def hand_over(host: Host, *, spare: Files) -> None:
    """Have what is overdue elsewhere, or has no timer, reaped by a process of its own.

    A reap may take minutes, and the user's own verb comes first. `spare` is the cluster that this
    is about. A cluster that somebody works on is left to them, and to the next command.
    """
    for files in discover(host):
        if files == spare:
            continue
        try:
            state = current(host, files)
            if _needs_reap(host, state):
                _reap_apart(host, state)
        except Exception as error:
            if not is_gone(files.sidecar):
                host.output.warn(f"{files.name}: {error}")


def _reap_apart(host: Host, state: State) -> None:
    """Start a reap of the cluster that outlives this command, and say so.

    Nothing of it may be written into the folder of a cluster that is being torn down.
    """
    with contextlib.ExitStack() as stack:
        try:
            lock, sidecar = state.files.lock, state.files.sidecar
            stack.enter_context(locked(host, lock, timeout=0.0, belongs_to=sidecar))
        except Busy:
            return
        except (YclusterError, OSError):  # no lock can be had, as on a full disk
            host.output.debug(f"{state.name}: reaped without its lock")
        if os.path.lexists(state.files.sidecar):
            _spawn_reap(host, state)


def _spawn_reap(host: Host, state: State) -> None:
    files = state.files
    try:
        install_program(host, files)
    except OSError:
        if not files.launcher.exists():
            raise
        # The disk may be full, or read-only: the copy of before stops a VM as well.
    host.spawn(timer_argv(files, "next command", "reap"), files.log)
    why = _why_reap(state, host.now())
    host.output.say(f"{state.name}: {why}; a process in the background sees to it; see {files.log}")


def _why_reap(state: State, now: float) -> str:
    """Why a cluster needs a reap, in words."""
    if time_of(state, DEADLINE) <= now:
        return f"its {state.on_expiry} is overdue"
    if time_of(state, LOOK) <= now:
        return "whether it is used is to be looked at"
    if time_of(state, WARNING) <= now:
        return "its user is to be warned of its deadline"
    if state.expires_at is None and budget(state.max_run) is not None:
        return "it runs without a deadline"
    return "no timer is armed for its deadline"


@verb(
    "lifetime reap",
    "carry out the expiry if it is due, else re-arm",
    FIRED_BY,
    SOME,
    argument("--wait", type=positive_duration, default=0, help=SUPPRESS),
    example="ycluster lifetime reap dev",
)
def reap_now(
    host: Host,
    which: Selector,
    by: str,
    wait: int,
) -> None:
    """Reap one cluster, or every one. `wait`: nanoseconds."""
    if which.every:
        _reap_all(host, by)
        return
    files = find_cluster(host, which)
    if by == "hand":  # a person can try again
        reap(host, files, by=by, wait=wait / 10**9)
    else:
        reap_in_time(host, files, by=by, wait=wait / 10**9, patience=NEVER)


def _reap_all(host: Host, by: str) -> None:
    failed = sweep(host, by=by, every=True)
    for place, error in unseen(host).items():
        if not isinstance(error, ForeignError):  # what is another's is named, and no failure
            failed.append(f"what is in {place}")
    if failed:
        raise YclusterError(f"not expired: {', '.join(failed)}")
    if not discover(host):
        host.output.say("no clusters")


def _after_deadline(text: str) -> HowFar:
    return HowFar(by=positive_duration(text))


def _from_now(text: str) -> HowFar:
    return HowFar(from_now=positive_duration(text))


def _until(text: str) -> HowFar:
    try:
        parse_until(text, now=0.0)
    except ValueError as error:
        hint = "for example 18:00, 6pm, 2026-01-31 18:00 or 2026-01-31T18:00:00Z"
        raise UsageError(f"--until {error}", hint=hint) from None
    return HowFar(until=text)


DRY_RUN = argument("--dry-run", action="store_true", help="show what it would be; change nothing")


HOW_FAR = OneOf(
    "how_far",
    (
        argument(
            "duration",
            nargs="?",
            metavar="DURATION",
            type=_after_deadline,
            help="how much later, as a Go duration: 2h, 1h30m",
        ),
        argument(
            "--from-now", metavar="DURATION", type=_from_now, help="at least this long from now"
        ),
        argument(
            "--until",
            metavar="TIME",
            type=_until,
            help="at least until TIME: HH:MM (its next occurrence) or RFC 3339",
        ),
    ),
    required=True,
)


EXACTLY_WHEN = OneOf(
    "how_far",
    (
        argument(
            "duration",
            nargs="?",
            metavar="DURATION",
            type=_from_now,
            help="how long from now, as a Go duration: 10m, 1h30m",
        ),
        argument(
            "--until",
            metavar="TIME",
            type=_until,
            help="at TIME: HH:MM (its next occurrence) or RFC 3339",
        ),
    ),
    required=True,
)


@verb(
    "lifetime extend",
    "push the deadline out",
    ONE_BY_OPTION,
    HOW_FAR,
    DRY_RUN,
    THEN_SHOW,
    example="ycluster lifetime extend 2h --name demo",
    usage="%(prog)s (DURATION | --from-now DURATION | --until TIME) [--dry-run] [--name NAME|...]",
)
def extend(
    host: Host,
    files: Files,
    how_far: HowFar,
    *,
    dry_run: bool = False,
) -> None:
    """Push the deadline out and re-arm. It never reaps first, even where that has passed."""
    by, state = _move_deadline(host, files, how_far, "extended", dry_run=dry_run)
    if state.expires_at is None:
        host.output.result(f"{state.name}: it has no deadline; that counts as use")
    elif by:
        done = "would be extended" if dry_run else "extended"
        host.output.result(f"{state.name}: {done} by {in_words(by)}")
    else:
        host.output.result(f"{state.name}: its deadline is that late already; nothing changed")
    say_deadline(host, state)


@verb(
    "lifetime set",
    "set the deadline, earlier or later than it is",
    ONE_BY_OPTION,
    EXACTLY_WHEN,
    DRY_RUN,
    THEN_SHOW,
    example="ycluster lifetime set 10m --name demo",
    usage="%(prog)s (DURATION | --until TIME) [--dry-run] [--name NAME|...]",
)
def set_deadline(
    host: Host,
    files: Files,
    how_far: HowFar,
    *,
    dry_run: bool = False,
) -> None:
    """Set the deadline and arm it, also where it was disarmed. It never reaps first."""
    how_far = replace(how_far, exact=True)
    by, state = _move_deadline(host, files, how_far, "set", dry_run=dry_run)
    done = "would be set" if dry_run else "set"
    way = "later" if by >= 0 else "earlier"
    span = in_words(by)
    host.output.say(f"{state.name}: {done} {span} {way}")
    say_deadline(host, state)


def _move_deadline(
    host: Host,
    files: Files,
    how_far: HowFar,
    event: str,
    *,
    dry_run: bool,
) -> tuple[int, State]:
    """By how many seconds the deadline was moved, and the state with it.

    It is moved even where no timer can be armed, which raises PrerequisiteError: the timers of
    before fire still, and decide by the new one.
    """
    how_far = how_far.fixed(host.now())  # what is meant by now does not wait for the lock
    with opened(host, files) as before:
        state = moved(before, how_far, host.clock())
        by = (state.expires_at or 0) - (before.expires_at or 0)
        if not dry_run:
            state = save_state(state)
            try:
                state = _see_to_timers(host, state)
            finally:  # it is moved, whatever becomes of its timers
                expires_at = _encode_time(state.expires_at)
                log_event(host, state, event, seconds=by, expiresAt=expires_at)
    return by, state


@verb(
    "lifetime arm",
    "(re)install the timer; with -c by the config's lifetime as it is now",
    ONE_OR_CONFIG,
    THEN_SHOW,
    example="ycluster lifetime arm dev",
)
def arm(host: Host, which: Selector) -> None:
    """(Re)install the timers; a running cluster with a budget and no deadline gets one from now."""
    files, config = find_with_config(host, which)
    with opened(host, files) as before:
        if before.reaped is not None:
            before = after_expiry(before)
        # What has a deadline counts as running: a VM may run out of our sight.
        state, changes = reconfigured(before, config, host.clock(), runs=True)
        if not before.counts:
            _require_budget(host, state)
        say_changes(host, changes)
        if state.disarmed:
            state = watched_from(replace(state, timers=()), host.clock())
            if _used_up(state, host.now()):  # while nothing was to end it
                state = recounted(state, host.clock())
        # Anew: there may be a better backend by now.
        state = with_choice(host, _see_to_deadline(host, state))
        state = arm_timers(host, state, renew=True)
    if state.has_limit:
        host.output.say(f"{state.name} is armed")
    say_deadline(host, state)


def _require_budget(host: Host, state: State) -> None:
    if not state.has_limit:
        hint = "set lifetime.maxRun in its config; `ycluster lifetime arm -c DIR` then applies it"
        raise YclusterError(f"{state.name} has no lifetime budget", hint=hint)
    now = status_of(host, state)
    if now in OFF:
        raise wrong_state(state, now)


@verb(
    "lifetime disarm",
    "remove the timer; the cluster then runs until you stop it",
    ONE,
    THEN_SHOW,
    example="ycluster lifetime disarm dev",
)
def disarm(host: Host, files: Files) -> None:
    """Remove the timers; the deadline stays saved, and nothing acts until `arm` or a start."""
    with opened(host, files) as state:
        if not state.counts:
            host.output.say(f"{state.name}: nothing is armed")
            return
        swap_timers(host, state, (ArmedTimer("none", "", state.expires_at or 0),))
    host.output.say(f"{state.name} is disarmed: it runs until you stop it")


# --- a command, and a cluster while it runs
AT_MOST = argument(
    "--at-most",
    metavar="D",
    type=positive_duration,
    default=0,
    help="how long it may hold, such as 2h; default: one maxRun, and never past maxTotal",
)
COMMAND = argument(
    "command",
    nargs=REMAINDER,
    metavar="-- COMMAND",
    help="what to run on this host, with your environment",
)
COMMAND_SHOWN = 100  # characters of a command that holds, for people


@verb(
    "lifetime hold",
    "run a command; while it runs, nothing expires",
    ONE_BY_OPTION,
    AT_MOST,
    COMMAND,
    example="ycluster lifetime hold dev -- make test",
)
def hold(
    host: Host,
    files: Files,
    at_most: int,
    command: Sequence[str],
) -> NoReturn:
    """Let this process hold the cluster, and become the command: what is killed holds nothing."""
    words = _words(host, command)
    host.holder = Holder(tuple(words), at_most)
    with opened(host, files) as state:
        state = _settled(host, state)
        now = status_of(host, state)
        if now in (*OFF, "unseen"):  # of which a process here could hold nothing
            raise wrong_state(state, now)
        if now == "paused" and state.reaped:  # by its expiry: it has no deadline to hold back
            raise wrong_state(state, now)
        state = _see_to_timers(host, state)
    _tell_hold(host, state)
    host.become(words)


def _words(host: Host, command: Sequence[str]) -> list[str]:
    """The words of a command that can be run, as far as one can tell before a cluster boots."""
    words = list(command)
    if words[:1] == ["--"]:
        del words[0]
    if not words:
        raise UsageError("what is to be run is missing", hint="it comes last: ... -- make test")
    host.check_command(words[0])
    return words


def _with_own_hold(host: Host, state: State) -> State:
    """The state with a hold of this process, if it is to hold what it brings up. Under the lock."""
    if host.holder is None:
        return state
    clock = host.clock()
    mine = Hold(
        pid=os.getpid(),
        began=process_start(os.getpid()),
        boot=clock.boot_id,
        since=int(clock.now),
        until=hold_until(state, host.holder.at_most, clock),
        command=" ".join(masked(shlex.join(host.holder.command)).split())[:COMMAND_SHOWN],
        undo=host.holder.undo,
    )
    others = [hold for hold in live_holds(host, state) if not _is_of_this_process(hold)]
    return replace(state, holds=(*others, mine))


def _is_of_this_process(hold: Hold) -> bool:
    """Whether a hold is of this process."""
    return (hold.pid, hold.began) == (os.getpid(), process_start(os.getpid()))


def _tell_hold(host: Host, state: State) -> None:
    """Say, and log, that this process holds the cluster."""
    for mine in filter(_is_of_this_process, state.holds):
        facts = _hold_facts(mine)
        log_event(host, state, "held", **facts)
        until = f", until {local_time(mine.until)} at most" if mine.until else ""
        host.output.say(f"  {state.name} is held while it runs{until}: {mine.command}")


# What undoes what `run` has done, by what the cluster was before; else it is left as it is.
_UNDO = {
    "absent": "teardown",
    "imported": "stop",
    "stopped": "stop",
    "suspended": "suspend",
    "paused": "pause",
}


@verb(
    "run",
    "bring a cluster up, run a command with it, and undo that",
    CONFIG,
    OWN_NAME,
    argument(
        "--then",
        choices=("stop", "suspend", "teardown", "leave"),
        help="what to do at the end; default: a cluster that was made is torn down, one that was "
        "woken goes back to what it was, and one that ran runs on",
    ),
    MAX_RUN,
    argument(
        "--summary",
        metavar="FILE",
        type=Path,
        help="write what came of it to FILE as JSON, also where it fails",
    ),
    COMMAND,
    example="ycluster run -c examples/dev -- make test",
)
def run_with(
    host: Host,
    directory: Path,
    command: Sequence[str],
    *,
    then: str | None,
    own_name: str | None = None,
    run_budget: str = "",
    summary: Path | None = None,
) -> int:
    """Run a command on this host while a cluster runs; returns its exit status.

    Whatever becomes of it, the clean-up follows; if this is killed, the deadline does. Its stdout
    is the command's alone, so what came of it goes to a file.
    """
    with _summed_up(host, summary) as facts:
        words = _words(host, command)
        which = Selector(config=directory, name=own_name or "")
        files = files_of(host, own_config(host, directory, own_name))
        facts.update(name=files.name, cacheDir=str(files.cache_dir))
        if has_state(files):
            _check_mode(host, files)
            if then == "suspend":
                _refuse_suspend(load_state(files))
        before = facts["before"] = _state_before(host, files)
        host.holder = Holder(tuple(words), undo=then or _UNDO.get(before, ""))
        brought = ""
        try:
            state = _bring_up(host, which, files, before, run_budget)
            brought = _run_of(state)
            _tell_hold(host, state)
            facts["exitStatus"] = host.attend(words, _facts_for_commands(state))
        finally:
            host.ignore_interrupts()
            facts["undone"], facts["error"] = _undo(host, files, brought)
    return int(facts["exitStatus"]) or (OWN_FAILURE if facts["error"] else 0)


# The summary of a run of which nothing is known yet; docs/json.md says what each means.
_SUMMARY: Mapping[str, Any] = {
    "version": 1,
    "name": "",
    "cacheDir": "",
    "seconds": 0,
    "state": "",
    "before": "",
    "exitStatus": None,
    "undone": "",
    "error": "",
}


@contextlib.contextmanager
def _summed_up(host: Host, place: Path | None) -> Iterator[dict[str, Any]]:
    """Have what the block notes of a run written to a file at its end, whatever that is.

    The file is emptied first: that of an earlier run says nothing of this one.
    """
    facts = dict(_SUMMARY)
    if place is None:
        yield facts
        return
    began = host.monotonic()
    os.umask(host.umask)  # it is the user's, and no secret
    try:
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    finally:
        os.umask(0o077)
    with descriptor(fd):
        try:
            yield facts
        except BaseException as error:
            facts["error"] = str(error)
            raise
        finally:
            took = host.monotonic() - began
            facts["seconds"] = int(took)
            if facts["name"]:
                cache_dir = Path(facts["cacheDir"])
                files = Files(cache_dir, facts["name"])
                facts["state"] = _state_now(host, files)
            try:
                os.write(fd, masked(to_json(facts) + "\n").encode())
            except OSError as error:  # which costs no status of the command's
                host.output.warn(f"{place}: {error.strerror}")


def _state_now(host: Host, files: Files) -> str:
    """What `status` calls the state of a cluster, or `absent`, or `unreadable`."""
    try:
        return status_of(host, load_state(files)) if has_state(files) else "absent"
    except YclusterError:
        return "unreadable"


def _state_before(host: Host, files: Files) -> str:
    """What `list` calls the state of a cluster; `absent` or `imported` where it has never run."""
    if not has_state(files):
        return "imported" if _is_disk_kept(host, files) else "absent"
    with opened(host, files) as state:
        if state.is_half_made:
            return "imported" if state.imported else "absent"
        return status_of(host, _settled(host, state))


def _bring_up(
    host: Host,
    which: Selector,
    files: Files,
    before: str,
    run_budget: str,
) -> State:
    """Have the cluster run, and be held by this process, until one can log in.

    It is named by its config.
    """
    ran = before not in ("absent", "imported", *OFF)  # somebody else may be at work in it
    if run_budget and ran and (before != "paused" or current(host, files).counts):
        now = "is paused" if before == "paused" else "runs already"
        text = f"{now}, and keeps its deadline: no --max-run for it"
        host.output.say(f"{files.name} {text}")
        run_budget = ""
    if which.config and before in ("absent", "imported"):
        provision(host, which.config, own_name=which.name, run_budget=run_budget)
    elif before == "paused":
        resume(host, which, run_budget=run_budget)
    else:
        start(host, which, run_budget=run_budget)
    state = current(host, files)
    if ran:  # it may be booting
        wait_ready(host, state, timeout=READY_TIMEOUT, stages=RESTORED_STAGES)
    return state


def _run_of(state: State) -> str:
    """What tells one run of one cluster from another: its login key, and when it was started."""
    return f"{_login_key(state.files.sidecar)} {state.started_at}"


def _facts_for_commands(state: State) -> dict[str, str]:
    """How a command reaches the cluster, as variables of its environment."""
    facts = {
        "YCLUSTER_NAME": state.name,
        "YCLUSTER_SSH_PORT": str(state.ssh_at[1]),
        "YCLUSTER_SSH": shlex.join(ssh_argv(state)),
    }
    if state.has_k3s:
        facts["KUBECONFIG"] = str(state.files.kubeconfig)
    return facts


def _undo(host: Host, files: Files, brought: str) -> tuple[str, str]:
    """Do what comes after a command; returns the verb, empty where nothing is undone, and a fault.

    That is a warning, too.
    """
    try:
        if not has_state(files):
            return "", ""
        with cluster_lock(host, files):
            state = load_state(files)
            if state.reaped is not None and brought == _run_of(state):
                host.output.warn(_expired_early(state, state.reaped, "while the command ran"))
            return _undo_run(host, state, brought)
    except (YclusterError, OSError) as error:
        trouble = f"the clean-up failed: {error}"
        host.output.warn(f"{files.name}: {trouble}")
        return "", trouble


def _undo_run(host: Host, state: State, brought: str) -> tuple[str, str]:
    """Undo what `run` did, where the run of now is what it brought up, and nobody else's.

    Returns as `_undo`.
    """
    assert host.holder is not None
    mine = [hold for hold in state.holds if _is_of_this_process(hold)]
    others = [hold for hold in live_holds(host, state) if hold not in mine]
    undo = mine[0].undo if mine else host.holder.undo
    if undo in ("", "leave"):
        return "", ""
    if not mine and brought != _run_of(state):
        why = "it is not what this run has brought up" if brought else "it did not come up"
        host.output.warn(f"{state.name} is left as it is: {why}")
        return "", ""
    if others:
        host.output.warn(f"{state.name} is left running: held by {hold_words(others)}")
        _hand_on(state, others, undo)
        return "", ""
    return _undo_by(host, state, undo)


def _undo_by(host: Host, state: State, undo: str) -> tuple[str, str]:
    """Undo by a verb what a `run` did; returns as `_undo`."""
    trouble = ""
    is_off = status_of(host, state) in OFF  # it may have expired, or somebody has stopped it
    if is_off:
        trouble = _found_off(host, state)
    if not is_off or undo == "teardown":
        _UNDO_BY[undo](host, state.files)
        return undo, ""
    lost = trouble if undo in ("suspend", "pause") else ""  # what ran in it was to be kept
    return "", lost


def _found_off(host: Host, state: State) -> str:
    """What ended a VM that is off, if that was neither a verb nor an expiry, which is told."""
    trouble = "its VM was killed, or its guest powered off, before the command ended"
    if not state.has_limit and not state.suspended:  # then a verb leaves no trace
        trouble = "it was stopped, or its VM killed, before the command ended"
    elif not state.counts:
        return ""
    host.output.warn(f"{state.name}: {trouble}")
    swap_timers(host, stopped(state), ())
    return trouble


def _hand_on(state: State, others: Sequence[Hold], undo: str) -> None:
    """Let another `run`, which found the cluster running, undo at its end what this one did."""
    heir = next((hold for hold in others if not hold.undo), None)
    if heir is not None:
        rest = [hold for hold in others if hold is not heir]
        save_state(replace(state, holds=(*rest, replace(heir, undo=undo))))


_UNDO_BY: Mapping[str, Callable[[Host, Files], None]] = {
    "stop": stop,
    "suspend": suspend,
    "pause": pause,
    "teardown": teardown,
}


# --- watching, in the foreground or as a cluster's own watcher
@verb(
    "lifetime watch",
    "wait in the foreground for deadlines, and carry expiries out",
    FIRED_BY,
    SOME,
    example="ycluster lifetime watch --all",
)
def watch(host: Host, which: Selector, by: str) -> None:
    """Wait for deadlines and reap: of one cluster, of every one, or as the detached watcher."""
    if which.every:
        watch_all(host)
    files = find_cluster(host, which)
    if by == "watcher":
        run_watcher(host, files)
    else:
        watch_one(host, files, by=by)


def watch_all(host: Host) -> NoReturn:
    """Reap whatever comes to be due, without end: the timer of a host that has none."""
    refuse_sudo(host, host.state_home())
    load_all(host)
    said = ""
    while True:
        ahead: list[float] = []
        try:
            sweep(host, by="watch --all")
            states = [state for _, state in readable(host)]
            ahead = [wake_time(state) - host.now() for state in states]
            watched_now = _watched_words(states)
            if watched_now != said:
                said = watched_now
                say_when(host, said)
        except Exception as error:  # whatever it is: the deadlines are to be kept all the same
            host.output.warn(str(error))
        host.sleep(min([WATCH_INTERVAL, *(left for left in ahead if left > 0)]))


def _watched_words(states: Sequence[State]) -> str:
    """What is watched, in words that change when a cluster or a deadline does."""
    count = "1 cluster" if len(states) == 1 else f"{len(states)} clusters"
    ends = []
    for state in states:
        deadline = deadline_of(state)
        if deadline is not None and not state.disarmed:
            ends.append((deadline, state.name))
    if not ends:
        return f"watching {count}; no deadline is set"
    at, name = min(ends)
    return f"watching {count}; the next deadline is that of {name}, at {local_time(at)}"


def watch_one(host: Host, files: Files, *, by: str) -> None:
    """Wait for a cluster's deadline and reap it; ends when none is left."""
    Watcher(host, files, by).run()


def run_watcher(host: Host, files: Files) -> None:
    """Be the detached watcher, of which a cluster has one: it holds the watch lock.

    All that it may need is loaded before it counts as armed: this Python, and the file that it was
    started from, may be gone at the deadline.
    """
    load_all(host)
    watcher = Watcher(host, files, "watcher")
    signal.signal(ASK_TO_STOP, watcher.ask)
    fd = take_flock(host, files.watch_lock, timeout=2)
    if fd is not None:
        watcher.run(fd)


class Watcher:
    """Waits for what is on a cluster's agenda, and reaps.

    The detached one stands beside the VM, and outlives its files: it holds the VM itself, the last
    state that could be read and what a login takes. It ends with the VM, or when a state that can
    be read has no deadline. Where another timer is armed it comes second, after WATCH_GRACE, but
    for a state that can't be read, which that timer can't read either.
    """

    def __init__(self, host: Host, files: Files, by: str) -> None:
        host.program_source()  # now, as it may be gone when a second try is armed
        self.host = host
        self.files = files
        self.by = by
        self.known = load_state(files)  # the last that could be read
        self.readable = True  # whether the last look could read it
        self.vm: Vm | None = None  # the VM that is held
        self.login: dict[str, bytes] = {}  # the files by which ssh logs in to it
        self.trouble = ""  # what was said last, so that it is not said again at each look
        self.asked = False  # whether a VM whose state can't be read is to be stopped now
        self.slept = self.host.clock().slept
        self.failed = (0.0, 0.0)  # the end that could not be carried out; when to try that again

    def run(self, fd: int | None = None) -> None:
        """Wait until there is nothing left to wait for; then release the watch lock, `fd`."""
        while True:
            wake = self.host.now() + WATCH_INTERVAL
            try:
                if self._has_ended(fd):
                    return
                wake = self._act()
                self._follow_clock()
                self._bound_console()
            except Exception as error:  # if this ended, perhaps nothing would enforce the deadline
                self._say_once(error)
            self.host.sleep(max(0.02, min(WATCH_INTERVAL, wake - self.host.now())))

    def _bound_console(self) -> None:
        if self.vm is not None and self.readable:
            with contextlib.suppress(OSError):  # there is none, or it is another's
                cut_console(self.files)

    def ask(self, *_: object) -> None:
        """Have the VM stopped at the next look, if its state can't be read: as `stop` does then."""
        self.asked = True

    def _say_once(self, error: Exception) -> None:
        if str(error) != self.trouble:
            self.trouble = str(error)
            self.host.output.warn(f"{self.files.name}: {error}")

    # --- what is known

    def _has_ended(self, fd: int | None) -> bool:
        """Whether there is nothing more to wait for; then a watcher's lock, `fd`, is released.

        Both under the cluster's lock: a verb that is at work may be about to set a deadline, and
        whoever arms either finds us watching, or starts another watcher.
        """
        if fd is not None and self._is_superseded(fd):
            return True
        if self._is_needed():
            return False
        lost = fd is not None and not os.path.exists(self.files.watch_lock)
        if lost or not self._has_folder():
            return True  # A cluster that is made there again has another watcher.
        with cluster_lock(self.host, self.files):
            if self._is_needed():
                return False
            if fd is not None:
                os.close(fd)
            return True

    def _is_superseded(self, fd: int) -> bool:
        """Whether its lock file, `fd`, is not the one that is there now: another watcher has that.

        Its VM has ended, and the cluster was made again; or somebody has removed its lock file, and
        the other, too, has the VM that runs in this place.
        """
        try:
            if os.path.samestat(os.fstat(fd), os.lstat(self.files.watch_lock)):
                return False
        except OSError:
            return False  # there is none, see `_has_ended`
        if self.vm is None or exited(self.vm.pidfd, 0):
            return True
        runs_here = _pid_in(self.files.pidfile) == self.vm.pid
        return runs_here and flock_held(self.files.watch_lock)

    def _has_folder(self) -> bool:
        """Whether the cluster's folder is there, and its user's own: no verb works in another."""
        try:
            check_folder(self.files.cache_dir)
        except StateError:
            return False
        return os.path.exists(self.files.cache_dir)

    def _is_needed(self) -> bool:
        self.readable = self._look()
        if not self.readable:
            return self.vm is not None
        if not agenda(self.known):
            return self.vm is not None and _runs_without_end(self.host, self.known)
        # Whoever starts a VM has the cluster's lock until it runs, and then this is asked again.
        return not self._stands_by(self.known) or self.vm is not None

    def _stands_by(self, state: State) -> bool:
        """Whether another timer is armed for the deadline."""
        other = state.timer is not None and state.timer.backend != self.by
        return self.by == "watcher" and other

    def _look(self) -> bool:
        """Look at the VM and at the state; False where that can't be read, or is another VM's."""
        if self.vm is not None and exited(self.vm.pidfd, 0):
            os.close(self.vm.pidfd)
            self.vm = None
        if self.vm is None:
            self._hold()
        elif _pid_in(self.files.pidfile) not in (None, self.vm.pid):
            return False  # its folder was lost, and another VM has been made in that place
        try:
            self.known = load_state(self.files)
        except StateError as error:
            self._say_once(error)
            if self.readable:  # until now
                self.known = self._last_written()
            return False
        self.trouble = ""
        if not self.readable:  # it is back from where it was
            remember_again(self.host, self.files.cache_dir)
        return True

    def _last_written(self) -> State:
        """The state of this run as it was written last: its deadline may have moved since a look.

        It is in the copy of a state file that is damaged, and in the folder that the files were
        moved to.
        """
        files = self.files if self.vm is None else where_now(self.vm.pid, self.files)
        for path in (files.sidecar, files.copy):
            with contextlib.suppress(StateError):  # it is lost, too
                state = decode_state(_text_of(path), files.sidecar)
                if state.started_at == self.known.started_at:
                    return replace(state, cache_dir=self.known.cache_dir)
        return self.known

    def _hold(self) -> None:
        """Hold the VM, if it runs, with or without its files, and keep what a login takes."""
        self.vm = _look_for_vm(self.files)
        for path in (self.files.ssh_key, self.files.host_pub, self.files.known_hosts):
            with contextlib.suppress(OSError):  # the sibling's has no host key
                self.login[path.name] = read_own(path)

    # --- what is done

    def _act(self) -> float:
        """Reap what is due; returns when to look again, in seconds since the epoch."""
        state = adjusted(self.known, self.host.clock())
        asked, self.asked = self.asked, False
        if not self.readable:
            return self._act_without_files(state, asked=asked)
        wake, end = wake_time(state), end_time(state)
        if self._stands_by(state):
            wake = end + WATCH_GRACE
        if not agenda(state):  # it runs all the same, see `_is_needed`
            wake = self.host.now()
        wake = self._after_failure(end, wake)
        if wake > self.host.now():
            return wake
        try:
            reap_in_time(self.host, self.files, by=self.by, patience=LOCK_BOUND)
        except Exception:  # The state, which has the time of the next try, may not be saved.
            self._try_later(end)
            raise
        return self.host.now() + 1  # soon, as there may be nothing left to wait for

    def _after_failure(self, end: float, wake: float) -> float:
        """When to act on an end: at `wake`, or later where that very end has failed before."""
        failed, again = self.failed
        return max(wake, again) if end == failed else wake

    def _try_later(self, end: float) -> None:
        """Note when to try an end again that has failed: ever later."""
        now = self.host.now()
        self.failed = (end, now + retry_delay(now - end, WATCH_INTERVAL))

    def _act_without_files(self, state: State, *, asked: bool) -> float:
        """The same for a VM whose state can't be read, by what was known of it."""
        host, vm = self.host, self.vm
        if vm is None:
            return host.now() + 1
        if asked:
            self._stop_without_files(state, vm, "it is to be stopped")
            return host.now() + 1
        end = end_time(state)
        wake = self._after_failure(end, end)
        if wake > host.now():
            return wake
        self.known, decision = _look_and_decide(host, state, where_now(vm.pid, self.files))
        if decision.do == "warn" and decision.again is not None:
            left = in_words(decision.again - host.now())
            text = f"its last hold has ended, and its state file is lost: it is stopped in {left}"
            say_when(host, f"{state.name}: {text}")
            host.tell_terminals(f"ycluster: {state.name}: {text}")
        if decision.do in ACTIONS and decision.end is not None:
            try:
                how = self._stop_without_files(state, vm, f"it is {decision.why}")
            except Exception:
                self._try_later(end)
                raise
            reaped = Reaped(int(host.now()), "stop", self.by, how, decision.end.cause)
            _tell_expiry(host, state, reaped, decision.end.at)
        return host.now() + 1

    def _follow_clock(self) -> None:
        """Set the guest's clock where the host has slept, as its CPUs stood still meanwhile."""
        before, self.slept = self.slept, self.host.clock().slept
        has_slept = self.by == "watcher" and self.slept > before + 2
        if has_slept and self.vm is not None and vm_status(self.host, self.files) == "running":
            set_guest_clock(self.host, self.known)

    def _stop_without_files(self, state: State, vm: Vm, cause: str) -> str:
        """Stop the VM, whatever the expiry would be: nothing goes. Returns how."""
        host, files = self.host, where_now(vm.pid, self.files)
        text = f"{state.name}: its state file is lost or can't be read, and {cause}: stopping it"
        say_when(host, text)
        host.tell_terminals(f"ycluster: {text}")
        poweroff = partial(self._poweroff_without_files, state)
        there = replace(state, cache_dir=str(files.cache_dir))
        may_cut_off = partial(_loses_nothing, host, there, erases=False)
        return stop_vm(host, files, vm, poweroff, may_cut_off)

    def _poweroff_without_files(self, state: State) -> None:
        """Have the guest power itself off, by a login from the copies that are held."""
        import tempfile

        with tempfile.TemporaryDirectory(prefix="ycluster-") as folder:
            for name, content in self.login.items():
                write_file(Path(folder, name), content)
            login = ssh_argv(replace(state, cache_dir=folder), "sudo sync; sudo poweroff")
            self.host.run(login, timeout=30)


# --- looking: data first, then rows of it for people, and one way to show either
class Line(Record):
    """A line of what is shown: its cells, its colour (ECMA-48, SGR), and what follows below it."""

    cells: tuple[str, ...]
    colour: str = ""
    remedy: str = ""


DIM, RED, YELLOW = "2", "31", "33"


def show_as(
    host: Host,
    form: str,
    data: Mapping[str, Any],
    lines: Callable[[], Sequence[Line]],
    *,
    spare: Sequence[str] = (),
) -> None:
    """Print the data as JSON, or the lines as a table.

    `spare`: the headings of what a table does without on a narrow terminal, as in `table`.
    """
    if form == "json":
        host.output.data(to_json({"version": 1, **data}))
        return
    made = lines()
    width = columns(1) if spare and host.output.shown else NO_LIMIT
    for row, line in zip(table([line.cells for line in made], width, spare), made):
        host.output.data(row, line.colour)
        for text in line.remedy.splitlines():
            host.output.data("    " + text)


def describe(host: Host, state: State, *, armed: bool | None = None) -> dict[str, Any]:
    """What `list -o json` and `status -o json` show of a cluster (shape version 1).

    `armed`: whether its timer is, where that is known; to ask it starts other programs.
    """
    if armed is None:
        armed = bool(agenda(state)) and is_armed(host, state)
    now = status_of(host, state)
    left = None if state.expires_at is None else int(state.expires_at - host.now())
    warns_at = time_of(state, WARNING)
    address, ssh_port = state.ssh_at
    tap = bool(state.guest_address)
    forwarded = () if tap else state.port_forwards
    ports = [{"host": forward.host, "guest": forward.guest} for forward in forwarded]
    return {
        "name": state.name,
        "context": state.context,
        "state": now,
        "maxRun": state.lifetime if now in OFF else state.max_run,
        "maxIdle": state.max_idle,
        "onExpiry": state.on_expiry,
        "startedAt": _encode_time(state.started_at),
        "expiresAt": _encode_time(state.expires_at),
        "retryAt": _encode_time(state.retry_at),
        "remainingSeconds": left,
        "warnsAt": "" if warns_at == NEVER else format_time(warns_at),
        "idle": _idle_facts(state, host.now()),
        "holds": [_hold_facts(hold) for hold in live_holds(host, state)],
        "disarmed": state.disarmed,
        "armed": armed,
        "reaped": _REAPED.encode(state.reaped),
        "suspended": _suspended_facts(state) if now == "suspended" else None,
        "network": {"mode": "tap" if tap else "user", "address": address},
        "sshPort": ssh_port,
        "portForwards": ports,
        "kubeconfig": state.kubeconfig,
        "accel": state.ran_with,
        "disk": str(state.files.disk),
        "cacheDir": state.cache_dir,
    }


def _suspended_facts(state: State) -> dict[str, Any] | None:
    """Since when a cluster is suspended, and how many bytes its memory takes."""
    if state.suspended is None:
        return None
    try:
        size = state.files.memory.stat().st_size
    except OSError:
        size = 0
    return {"at": format_time(state.suspended.at), "bytes": size}


def _idle_facts(state: State, now: float) -> dict[str, Any] | None:
    """What is known of a cluster's use; None where nobody looks at that."""
    idle = state.idle
    end = unused_end(state)
    if idle is None or end is None:
        return None
    end = max(end, idle.next)  # it ends by a look
    return {
        "usedAt": format_time(idle.used),
        "unusedSeconds": int(now - idle.used),
        "expiresAt": format_time(end),
        "remainingSeconds": int(end - now),
        "lookedAt": format_time(idle.seen),
        "nextLookAt": format_time(idle.next),
        "usedBy": idle.by,
        "connections": None if idle.connections < 0 else idle.connections,
        "cpuPercent": None if idle.percent < 0 else idle.percent,
        "idleCpu": state.idle_cpu,
    }


def _hold_facts(hold: Hold) -> dict[str, Any]:
    return {
        "pid": hold.pid,
        "command": hold.command,
        "since": format_time(hold.since),
        "until": _encode_time(hold.until),
    }


def port_words(shown: Mapping[str, Any]) -> str:
    """The forwarded ports, without ssh's: `8080->80 6443`; in tap mode where all of them are."""
    if shown["network"]["mode"] == "tap":
        return f"all at {shown['network']['address']}"
    words = []
    for forward in shown["portForwards"]:
        host, guest = forward["host"], forward["guest"]
        words.append(str(host) if host == guest else f"{host}->{guest}")
    return " ".join(words) or "-"


def left_words(shown: Mapping[str, Any]) -> str:
    """How long a cluster may still run."""
    if shown.get("disarmed"):
        return "disarmed"
    left, _, when = _sooner_end(shown)
    if left is None:
        return "-" if shown["state"] in OFF else "no limit"
    if left <= 0 and shown.get("holds"):
        return "held"
    words = in_words(left)
    words = f"{words}{when}" if left > 0 else f"OVERDUE {words}"
    if not shown.get("armed", True):
        words += " (NO TIMER)"
    return words


def time_bar(shown: Mapping[str, Any]) -> str:
    """A bar of how much of its time a cluster has left; empty where that is not known."""
    left, whole, _ = _sooner_end(shown)
    if left is None or not whole or shown["disarmed"]:
        return ""
    filled = round(10 * min(max(0, left), whole) / whole)
    return f"{'#' * filled:.<10}"


def left_colour(shown: Mapping[str, Any]) -> str:
    """The colour of `left_words`: red for what is overdue or has no timer, yellow for no limit."""
    left, off = left_words(shown), shown["state"] in OFF
    if left.startswith("OVERDUE") or (left.endswith("(NO TIMER)") and not off):
        return RED
    return YELLOW if left in ("no limit", "disarmed") and not off else ""


def ended_words(shown: Mapping[str, Any], now: float) -> str:
    """How long ago an expiry has ended a run, and why; empty where something else has."""
    reaped = shown["reaped"]
    if not reaped or ACTIONS[reaped["action"]].done != shown["state"]:
        return ""
    if reaped["how"] == NOT_RUNNING or shown["remainingSeconds"] is not None:
        return ""
    passed = now - parse_time(reaped["at"])
    if passed > 60:
        passed -= passed % 60
    ago = f"{in_words(passed)} ago"
    if reaped["cause"] == UNUSED:
        return f"{ago}, unused for {shown['maxIdle']}"
    return f"{ago} by its budget"


def _sooner_end(shown: Mapping[str, Any]) -> tuple[int | None, int, str]:
    """Of deadline and disuse, the sooner: the seconds left; of how many; and on what condition."""
    left: int | None = shown["remainingSeconds"]
    idle = shown.get("idle")
    if idle and (left is None or idle["remainingSeconds"] < left):
        left = max(1, idle["remainingSeconds"])
        return left, left + idle["unusedSeconds"], " if unused"
    if left is None or not shown["startedAt"]:
        return left, 0, ""
    whole = parse_time(shown["expiresAt"]) - parse_time(shown["startedAt"])
    return left, max(1, whole), ""


@verb(
    "list",
    "list your clusters",
    forms("table", "json"),
    argument("-q", "--quiet", action="store_true", help="their names alone, one a line"),
    example="ycluster list",
)
def list_clusters(host: Host, form: str, *, quiet: bool = False) -> None:
    """Every cluster of this user. It shows what is overdue, and never acts.

    A VM whose state file is lost has no row; a warning names it.
    """
    if quiet:
        if form == "json":
            raise UsageError("-q shows names, and -o json all there is to know")
        host.output.data("\n".join(files.name for files in discover(host)))
        return
    every: list[tuple[Files, dict[str, Any] | None]] = []
    with looking_once(host):
        for files, state in with_states(host):
            every.append((files, None if state is None else _listed(host, state)))
    for text, files in told_of_lost(host):
        host.output.warn(f"{text}: {_way_out_of_lost(files)}")
    if not every and form != "json":
        if unseen(host):
            return
        hint = "`ycluster provision -c DIR` makes one"
        host.output.say(f"{last_teardown(host)}no clusters; {hint}")
        return

    def lines() -> list[Line]:
        return _list_lines([_list_row(host, *one) for one in every], host.output.shown)

    found = [shown for _, shown in every if shown]
    show_as(host, form, {"clusters": found}, lines, spare=LIST_SPARE)


def _listed(host: Host, state: State) -> dict[str, Any]:
    """What is shown of a cluster; a disk of it that can't be opened is a warning."""
    lost = _look(state.name, "warning", check_disks, state)
    if lost.level != "ok":
        host.output.warn(f"{lost.text}; {lost.remedy}")
    return describe(host, state)


# What `list` leaves out first on a narrow terminal; the time bar has no heading.
LIST_SPARE = ("", "CONTEXT", "CACHEDIR", "PORTS", "SSH", "ON EXPIRY")
STATE_COLOURS = {
    "stopped": DIM,
    "suspended": DIM,
    "paused": YELLOW,
    "unresponsive": RED,
    NO_ROOM: RED,
    "unseen": YELLOW,
}


class ListRow(Record):
    """A row of `list`: its cells by their headings, and its colour."""

    cells: Mapping[str, str]
    colour: str = ""


def _list_row(host: Host, files: Files, shown: Mapping[str, Any] | None) -> ListRow:
    """The row of a cluster; None is shown of one whose state can't be read."""
    if shown is None:
        unknown = dict.fromkeys(("LEFT", "CONTEXT", "ON EXPIRY", "SSH", "PORTS"), "?")
        cells = {"NAME": files.name, "STATE": "unreadable", "": "", **unknown}
        return ListRow({**cells, "CACHEDIR": str(files.cache_dir)}, RED)
    cells = {
        "NAME": shown["name"],
        "STATE": shown["state"],
        "": time_bar(shown),
        "LEFT": ended_words(shown, host.now()) or left_words(shown),
        "CONTEXT": shown["context"],
        "ON EXPIRY": shown["onExpiry"],
        "SSH": str(shown["sshPort"]),
        "PORTS": port_words(shown),
        "CACHEDIR": shown["cacheDir"],
    }
    colours = (left_colour(shown), STATE_COLOURS.get(shown["state"], ""))
    return ListRow(cells, RED if RED in colours else colours[0] or colours[1])


def _list_lines(rows: Sequence[ListRow], terminal: bool) -> list[Line]:
    """The table of `list`. For a terminal it has bars, and no CONTEXT that says nothing."""
    has_bars = has_contexts = False
    for row in rows:
        has_bars = has_bars or bool(row.cells[""])
        if row.cells["CONTEXT"] not in (row.cells["NAME"], "?"):
            has_contexts = True
    headings = list(rows[0].cells)
    if not (terminal and has_bars):
        headings.remove("")
    if terminal and not has_contexts:
        headings.remove("CONTEXT")
    lines = [Line(tuple(headings))]
    for row in rows:
        cells = [row.cells[heading] for heading in headings]
        lines.append(Line(tuple(cells), row.colour))
    return lines


@verb("status", "show one cluster", ONE, forms("text", "json"), example="ycluster status dev")
def status(host: Host, files: Files, form: str) -> None:
    """One cluster, and how to get at it."""
    state = current(host, files)
    shown = describe(host, state)

    def lines() -> list[Line]:
        return [*_status_lines(host, state, shown), *_access_lines(state, shown)]

    show_as(host, form, shown, lines)


@verb(
    "lifetime status",
    "budget, deadline, and the timer that enforces it",
    ONE,
    forms("text", "json"),
    example="ycluster lifetime status dev",
)
def lifetime_status(host: Host, files: Files, form: str) -> None:
    """One cluster's deadline, and the timer that enforces it."""
    state = current(host, files)
    trouble = timer_trouble(host, state)
    shown = {
        **describe(host, state, armed=bool(agenda(state)) and not trouble),
        "enforcement": _enforcement(host, state, trouble),
    }

    def lines() -> list[Line]:
        made = _status_lines(host, state, shown)
        if state.counts:
            made += _enforcement_lines(state, shown["enforcement"])
        return made + _lines_for_scripts(state, host.now())

    show_as(host, form, shown, lines)


def _lines_for_scripts(state: State, now: float) -> list[Line]:
    """The budget and the deadline as the sibling prints them; scripts look for these lines."""
    made = [_row("maxRun:", state.max_run or "0"), _row("onExpiry:", state.on_expiry)]
    if state.expires_at is not None:
        left = state.expires_at - int(now)
        words = format_duration(abs(left) * 10**9)
        made.append(_row("expiresAt:", format_time(state.expires_at)))
        made.append(_row("remaining:", words if left > 0 else f"EXPIRED ({words} ago)"))
    return made


def _budget_words(state: State, shown: Mapping[str, Any]) -> str:
    """How long it may run, from when, and what comes then."""
    limit = shown["maxRun"]
    of_this_run = state.run_budget and shown["state"] not in OFF
    limits = []
    if budget(limit) is not None:
        limits.append(f"{limit} {'for this run' if of_this_run else 'from each start'}")
    elif of_this_run:
        limits.append("no limit for this run")
    if budget(state.max_idle) is not None:
        limits.append(f"unused for {state.max_idle}")
    if not limits:
        return "no budget (lifetime.maxRun is not set)"
    return " or ".join(limits) + (f", then {state.on_expiry}" if state.has_limit else "")


def _row(head: str, text: str, colour: str = "") -> Line:
    return Line((head, text), colour)


def _status_lines(host: Host, state: State, shown: Mapping[str, Any]) -> list[Line]:
    """What both kinds of status begin with."""
    colour = left_colour(shown)
    made = [
        _row("cluster:", f"{state.name} (context {state.context})"),
        _row("state:", _state_words(host, shown), STATE_COLOURS.get(shown["state"], "")),
        _row("lifetime:", _budget_words(state, shown), "" if state.has_limit else colour),
    ]
    if state.expires_at is not None:
        bar = time_bar(shown) if host.output.shown else ""
        left = f"{bar} {left_words(shown)}".lstrip()
        ends = f"{local_time(state.expires_at)} ({left})"
        made.append(_row("deadline:", ends, colour))
    made += _use_lines(state, shown, "" if state.expires_at is not None else colour)
    if shown["warnsAt"]:
        made.append(_row("warning:", local_time(time_of(state, WARNING))))
    if state.retry_at is not None and not shown["holds"]:
        # It is under way, or has failed; or its last hold has ended, and its user was warned.
        again = local_time(state.retry_at)
        text = f"the {state.on_expiry} comes, or is tried again, at {again}"
        made.append(_row("retry:", text, RED))
    if state.reaped is not None:
        made.append(_row("expired:", last_expiry(state)[2:]))
    return made


def _state_words(host: Host, shown: Mapping[str, Any]) -> str:
    """The state of a cluster, and since when or how it has that."""
    now: str = shown["state"]
    words = ended_words(shown, host.now())
    suspended = shown["suspended"]
    if suspended:
        words = words or f"since {local_time(parse_time(suspended['at']))}"
        words += f"; its memory takes {suspended['bytes'] >> 20} MiB"
    elif shown["accel"] and now not in OFF:
        words = words or f"({shown['accel']})"
    if now == NO_ROOM:
        way_out = f"make room, then `ycluster resume --name {shown['name']}`"
        return f"{now}: {NO_ROOM_WORDS}; {way_out}"
    return f"{now} {words}".rstrip()


def _use_lines(state: State, shown: Mapping[str, Any], colour: str) -> list[Line]:
    """Whether a cluster is used, and what holds it."""
    made = []
    if shown["idle"]:
        made.append(_row("idle:", _use_words(state.max_idle, shown["idle"]), colour))
    for hold in shown["holds"]:
        words = f"by {hold['command']} (pid {hold['pid']})"
        if hold["until"]:
            words += f" until {local_time(parse_time(hold['until']))}"
        made.append(_row("held:", words))
    return made


def _use_words(limit: str, idle: Mapping[str, Any]) -> str:
    """What the last look at a cluster's use has seen."""
    connections, percent, by = idle["connections"], idle["cpuPercent"], idle["usedBy"]
    words = [
        f"unused for {in_words(idle['unusedSeconds'])} of {limit}",
        f"connections {'?' if connections is None else connections}",
        f"CPU {'?' if percent is None else percent} %",
        f"next look {local_time(parse_time(idle['nextLookAt']))}",
    ]
    if by:
        words.insert(1, f"used at the last look: {USES.get(by, by)}")
    return "; ".join(words)


def _access_lines(state: State, shown: Mapping[str, Any]) -> list[Line]:
    """How to get at a cluster, in commands to paste."""
    login = shlex.join(["ycluster", "ssh", state.name])
    made = [_row("ports:", port_words(shown)), _row("ssh:", login)]
    if state.kubeconfig:
        options = ["--kubeconfig", state.kubeconfig, "--context", state.context]
        made.append(_row("kubectl:", shlex.join(["kubectl", *options, "get", "nodes"])))
    return [*made, _row("disk:", shown["disk"])]


def _enforcement(host: Host, state: State, trouble: str) -> dict[str, Any]:
    """Which timer enforces the deadline, what it survives, and what would give a better one.

    `trouble` is what is wrong with it; empty if nothing is.
    """
    armed = not trouble
    shown = {"armed": armed, "trouble": trouble, "chosen": state.timer_choice}
    backend = timer_named(state.timer.backend) if state.timer else None
    if backend is None or state.timer is None:
        return {"backend": "", **shown, "nextFire": "", "survives": {}, "improve": ""}
    return {
        "backend": backend.name,
        **shown,
        "nextFire": format_time(state.timer.deadline) if armed else "",
        "survives": dict(backend.survives),
        "improve": "" if state.timer_choice else _better_timer(host, backend),
    }


def _better_timer(host: Host, backend: Timer) -> str:
    """The command that makes a better timer backend usable; empty where there is none."""
    for better in TIMERS[: TIMERS.index(backend)]:
        remedy = _look(better.name, "warning", better.check, host).remedy
        if remedy:
            return remedy
    return ""


def _enforcement_lines(state: State, shown: Mapping[str, Any]) -> list[Line]:
    if state.disarmed:
        return [_row("timer:", "disarmed by hand", YELLOW)]
    arm = f"ycluster lifetime arm --name {state.name}"
    made = [_row("timer:", shown["backend"])]
    if not shown["armed"]:
        text = f"NONE, {shown['trouble']}: `{arm}` fixes it"
        made = [_row("timer:", text, RED)]
    if shown["chosen"]:
        way_out = f"`YCLUSTER_TIMER=auto {arm}` takes the best"
        made.append(_row("  chosen:", f"{shown['chosen']}, by YCLUSTER_TIMER; {way_out}"))
    survives = shown["survives"].items()
    made += [_row(f"  {what}:", how) for what, how in survives]
    if shown["improve"]:
        better = f"`{shown['improve']}`, then `{arm}`"
        made.append(_row("  better:", better))
    return made


@verb(
    "ssh",
    "log in, or run a command in the guest",
    ONE_BY_OPTION,
    argument(
        "--print",
        dest="print_only",
        action="store_true",
        help="print the ssh command for a shell, and run nothing",
    ),
    argument(
        "command",
        nargs=REMAINDER,
        metavar="-- COMMAND",
        help="what to run, in the guest's shell",
    ),
    example="ycluster ssh dev -- uname -a",
)
def ssh(host: Host, files: Files, command: Sequence[str], *, print_only: bool = False) -> int:
    """Log in, or run a command; returns its exit status.

    One word is a shell command; of several, each arrives as it is. A command gets a terminal where
    this program has one on both sides, so that what it prints into a pipe or a file is unchanged.
    """
    state = load_state(files)
    words = list(command)
    if words[:1] == ["--"]:
        del words[0]
    if len(words) > 1:
        words = [shlex.join(words)]
    if print_only:
        host.output.data(shlex.join(ssh_argv(state, *words)))
        return 0
    now = status_of(host, state)
    if now in (*OFF, "paused", NO_ROOM):
        raise wrong_state(state, now)
    host.need({"ssh": "openssh-client"})
    repair_login(state)
    os.close(open_own(files.ssh_key, os.O_RDONLY))  # ssh would wait for a FIFO
    terminal = bool(words) and os.isatty(0) and os.isatty(1)
    _note_use(host, state)
    status = host.interactive(ssh_argv(state, *words, terminal=terminal))
    _note_use(host, state)
    return status


@verb(
    "ssh-config",
    "a Host block for ~/.ssh/config: editors, rsync and scp then know the cluster by its name",
    ONE,
    example="ycluster ssh-config dev >>~/.ssh/config",
)
def show_ssh_config(host: Host, files: Files) -> None:
    """Print what ssh needs to log in by the cluster's name."""
    host.output.data(ssh_block(load_state(files)))


@verb(
    "console",
    "what the guest has written to its serial console",
    ONE,
    argument("--follow", action="store_true", help="and what it goes on to write, until it ends"),
    example="ycluster console --follow dev",
)
def show_console(host: Host, files: Files, *, follow: bool = False) -> None:
    """Print the console's log, line by line and without what would drive a terminal."""
    load_state(files)
    at, rest, has_ended = 0, b"", False
    while not has_ended:
        has_ended = not follow or not running(host, files)  # asked before the last look
        at, written = _console_after(files, at)
        *lines, rest = (rest + written).split(b"\n")
        if has_ended and rest:
            lines.append(rest)
        if lines:
            host.output.data(printable(b"\n".join(lines) + b"\n"))
        if not has_ended:
            host.sleep(0.5)


def _console_after(files: Files, at: int) -> tuple[int, bytes]:
    """How long the console's log is, and what stands in it after `at`; all of it where it was cut.

    StateError where there is none.
    """
    try:
        with descriptor(open_own(files.console, os.O_RDONLY)) as fd:
            size = os.fstat(fd).st_size
            start = at if at <= size else 0
            return size, os.pread(fd, size - start, start)
    except FileNotFoundError:
        why = f"{files.name} has no console log: it has not booted, or is gone"
        raise StateError(why, hint=f"`ycluster status {files.name}` tells more") from None


def _note_use(host: Host, state: State) -> None:
    """Save that the cluster is used now, best effort: no login waits for it."""
    if budget(state.max_idle) is None:
        return
    try:
        with opened(host, state.files, patience=2.0) as now:
            save_state(used_by_hand(now, host.now()))
    except (YclusterError, OSError) as error:
        host.output.debug(f"{state.name}: its use is not noted: {error}")


# --- prune: what takes up room, and was not used for long
class Survey(Record):
    """The clusters of this user, and the states of those that can be read."""

    clusters: tuple[Files, ...]
    states: tuple[State, ...]
    unreadable: tuple[tuple[str, Exception], ...] = ()  # the names of the others, and why

    @property
    def places(self) -> list[Path]:
        """Their cacheDirs."""
        return sorted({files.cache_dir for files in self.clusters})


def surveyed(host: Host) -> Survey:
    """The clusters of now."""
    clusters, states, unreadable = [], [], []
    for files in discover(host):
        try:
            states.append(current(host, files))
        except (YclusterError, OSError) as error:
            if is_gone(files.sidecar):  # it was torn down meanwhile
                continue
            unreadable.append((files.name, error))
        clusters.append(files)
    return Survey(tuple(clusters), tuple(states), tuple(unreadable))


PRUNE_AGE = 30 * 86400  # seconds
# Seconds. A provision takes less from its image, which it marks as used, to the disk on that: the
# data disk may take 32 minutes, the lock 5.
PRUNE_LEAST = 3600

LockOf: TypeAlias = "Callable[[], contextlib.AbstractContextManager[object]]"


class Prunable(Record):
    """Something that `prune` may remove, under `lock`. By kind, name and path it is found again."""

    kind: str
    name: str  # for people
    path: Path
    unused: int | None  # for so many seconds; None: it has no age
    size: int  # the bytes that its removal frees
    lock: LockOf
    remove: Callable[[], object]


def _unused_clusters(host: Host, survey: Survey, age: int) -> Iterator[Prunable]:
    """What a teardown would remove of each cluster that was off for long."""
    built_upon: set[tuple[int, int]] = set()
    for _, bases in bases_of_all(host):
        built_upon |= bases
    for state in survey.states:
        unused = _unused_since(host, state, age)
        files = state.files
        is_base = files.disk.is_file() and identity(files.disk) in built_upon
        if unused is None or is_base:
            continue
        name = f"{state.name} (in {state.cache_dir})"
        going = [*_going_first(state, keep_disk=False), *files.going("last")]
        lock, remove_it = _lock_of(host, files), partial(teardown, host, files)
        size = sum(map(size_of, going))
        yield Prunable("cluster", name, files.sidecar, unused, size, lock, remove_it)


def _unused_since(host: Host, state: State, age: int) -> int | None:
    """For how many seconds a cluster is unused; None where not for so long, or nobody can tell.

    One that never ran counts as used, as an import that waits for its provision; and a suspended
    one, whose memory is its user's work.
    """
    files = state.files
    if state.started_at is None or state.suspended or os.path.lexists(files.memory):
        return None
    used = [float(state.started_at), state.reaped.at if state.reaped else 0.0]
    try:
        # QEMU writes to these until it ends, and whatever changes a cluster to its state file.
        for path in (files.disk, files.console, files.sidecar):
            if os.path.lexists(path):
                used.append(path.stat().st_mtime)
    except OSError:
        return None
    unused = int(host.now() - max(used))
    if unused < age or status_of(host, state) != "stopped" or live_holds(host, state):
        return None
    return unused


def _lock_of(host: Host, files: Files) -> LockOf:
    return partial(cluster_lock, host, files, patience=LOCK_BOUND)


def _unused_files(
    host: Host,
    kind: str,
    files: Iterable[tuple[Path, float]],
    age: int,
    lock: LockOf,
) -> Iterator[Prunable]:
    """Of these files, those that nobody has written to, or marked as used, for so long."""
    for path, written in files:
        unused = int(host.now() - written)
        if unused >= age:
            yield Prunable(
                kind, str(path), path, unused, size_of(path), lock, partial(remove, path)
            )


def _lock_in(host: Host, folder: Path) -> LockOf:
    """The lock of the downloads to a folder."""
    return partial(locked, host, folder / ".lock", timeout=LOCK_BOUND)


def _unused_images(host: Host, survey: Survey, age: int) -> Iterator[Prunable]:
    """The images that no disk in any cacheDir builds on."""
    places = own_places(host)
    used = _used_by_disks(survey, places)
    for images in [place / "images" for place in places]:
        files = own_files(images, "[0-9a-f]{64}")
        for found in _unused_files(host, "image", files, age, _lock_in(host, images)):
            if identity(found.path) not in used:
                yield found


def _used_by_disks(survey: Survey, places: Sequence[Path]) -> set[tuple[int, int]]:
    """The `identity` of what the disks in these folders and those of the clusters build on.

    And of what a state names. StateError where a cluster has no disk: it is being made, or the disk
    is away.
    """
    disks = [files.disk for files in survey.clusters]
    away = [str(disk) for disk in disks if not disk.is_file()]
    if away:
        raise StateError(f"{away[0]} is missing, and may build on one of them")
    named = [path for state in survey.states for path in _named_by(state) if path.is_file()]
    disks += named
    for place in places:
        disks += files_below(place)  # by whatever name
    return files_built_on(disks) | set(map(identity, named))


def _named_by(state: State) -> Iterator[Path]:
    """What a state names that is not its cluster's own: a data disk, a file of this host's."""
    if state.data_disk:
        yield Path(state.data_disk)
    if state.image.startswith("file:"):
        yield path_of_url(state.image)


def _unused_releases(host: Host, survey: Survey, age: int) -> Iterator[Prunable]:
    """The releases of k3s that no cluster is of. Their folders stay, each with its lock."""
    used = {k3s_release(state)[0] for state in survey.states}
    names = "|".join(map(re.escape, K3S_FILES))
    for folder in _releases(host):
        files = own_files(folder, names)
        if folder.name in used or not files:
            continue
        unused = int(host.now() - max(written for _, written in files))
        if unused >= age:
            size = sum(size_of(path) for path, _ in files)
            lock, act = _lock_in(host, folder), partial(_remove_each, files)
            yield Prunable("k3s", folder.name, folder, unused, size, lock, act)


def _releases(host: Host) -> list[Path]:
    cache = k3s_cache(host)
    return sorted(cache.iterdir()) if cache.is_dir() else []


def _remove_each(files: Iterable[tuple[Path, float]]) -> None:
    for path, _ in files:
        remove(path)


def _left_parts(host: Host, survey: Survey, age: int) -> Iterator[Prunable]:
    """What killed downloads, imports, suspends and saves have left.

    Not of a cluster that is listed itself, as they go with that.
    """
    for place in own_places(host):
        images = place / "images"
        parts = own_files(images, PART_OF_IMAGE)
        yield from _unused_files(host, "part", parts, age, _lock_in(host, images))
    names = "|".join(re.escape(f".{name}.part") for name in K3S_FILES)
    for folder in _releases(host):
        parts = own_files(folder, names)
        yield from _unused_files(host, "part", parts, age, _lock_in(host, folder))
    listed = [state for state in survey.states if _unused_since(host, state, age) is not None]
    for state in survey.states:
        if state not in listed:
            parts = _parts_of(host, state)
            yield from _unused_files(host, "part", parts, age, _lock_of(host, state.files))
    going = {state.files.incoming for state in listed}
    for place in own_places(host):
        yield from _left_imports(host, place, going, age)
    parts = own_files(host.state_home(), r"(?s)\..+\.[0-9a-f]{8}\.tmp")
    yield from _unused_files(host, "part", parts, age, partial(claim_lock, host))


def _parts_of(host: Host, state: State) -> list[tuple[Path, float]]:
    """The temporary files of a cluster, and those from which its data disk was to be made."""
    files = state.files
    names = [path.name for path in files.temporary()]
    part = files.memory_part
    if os.path.lexists(part) and vm_status(host, files) == "stopped":  # else it may be written
        names.append(part.name)
    found = own_files(files.cache_dir, "|".join(map(re.escape, names))) if names else []
    if state.data_disk:
        disk = Path(state.data_disk)
        pattern = rf"\.{re.escape(disk.name)}\.[0-9a-f]{{8}}\.part"
        found += own_files(disk.parent, pattern)
    return found


def _left_imports(host: Host, place: Path, going: set[Path], age: int) -> Iterator[Prunable]:
    """The folders in a cacheDir in which `import` was killed."""
    for folder in sorted(place.glob(f"*{IMPORT_FOLDER}")):
        files = Files(place, folder.name[: -len(IMPORT_FOLDER)])
        written = [when for _, when in own_files(folder, "(?s).*")]
        if folder in going or not written or not files.is_our_import():
            continue
        unused = int(host.now() - max(written))
        if unused >= age:
            lock, act = _lock_of(host, files), partial(remove_folder, folder)
            yield Prunable("part", str(folder), folder, unused, size_of(folder), lock, act)


def _old_code(host: Host, survey: Survey, age: int) -> Iterator[Prunable]:
    """The compiled code that dist/ycluster has kept, of other versions and other Pythons."""
    from importlib.util import source_hash

    mine = source_hash(host.program_source() + sys.version.encode()).hex()
    files = own_files(host.cache_home(), r"[0-9a-f]{16}(\.[0-9]+)?")
    others = [(path, written) for path, written in files if path.name != mine]
    yield from _unused_files(host, "code", others, age, contextlib.nullcontext)


def _orphaned_timers(host: Host, survey: Survey, age: int) -> Iterator[Prunable]:
    """The timers that no cluster names, whatever their age.

    A timer is armed, under its cluster's lock, before the state names it.
    """
    lost = {files.sidecar for _, files in lost_vms()}
    for backend in TIMERS:
        for ident, sidecar in stale_timers(host, survey, backend):
            if sidecar in lost:
                continue  # its VM runs
            lock: LockOf = contextlib.nullcontext
            if not is_gone(sidecar):
                lock = _lock_of(host, Files(sidecar.parent, sidecar.stem))
            argv = shlex.split(backend.removal([ident]))
            act = partial(host.run, argv, timeout=30)
            yield Prunable("timer", f"{backend.name} {ident}", sidecar, None, 0, lock, act)


def stale_timers(host: Host, survey: Survey, backend: Timer) -> Iterator[tuple[str, Path]]:
    """The armed timers that no cluster names, and the state files that they are for.

    Those of clusters that can't be read are not judged: their state file is there, but of a newer
    version, or of another HOME; or nobody can tell whether it is there.
    """
    known = {timer.id for state in survey.states for timer in state.timers}
    ours = {str(state.files.sidecar) for state in survey.states}
    for ident in sorted(set(backend.jobs(host)) - known):
        path = state_of_job(backend.job_text(host, ident))
        if path and (path in ours or is_gone(Path(path))):
            yield ident, Path(path)


# What `prune` lists, by kind. Each may raise where it can't tell: then nothing of it is listed.
PRUNED: Mapping[str, Callable[[Host, Survey, int], Iterator[Prunable]]] = {
    "cluster": _unused_clusters,
    "image": _unused_images,
    "k3s": _unused_releases,
    "part": _left_parts,
    "code": _old_code,
    "timer": _orphaned_timers,
}
NEEDS_ALL = ("image", "k3s")  # which any cluster may use, one that can't be read, too


def prunables(
    host: Host, survey: Survey, age: int, *, but: str = ""
) -> tuple[list[Prunable], list[str]]:
    """What was not used for `age` seconds; and why all of a kind stays, where that can't be told.

    `but`: a kind that is not asked for.
    """
    found: list[Prunable] = []
    troubles = []
    for kind in PRUNED:
        if kind == but:
            continue
        try:
            found += _of_kind(host, survey, age, kind)
        except (YclusterError, OSError, ValueError) as error:
            troubles.append(f"{kind}: nothing of this kind is listed: {error}")
    return found, troubles


def _of_kind(host: Host, survey: Survey, age: int, kind: str) -> list[Prunable]:
    if kind in NEEDS_ALL:
        errors = [*(error for _, error in survey.unreadable), *unseen(host).values()]
        errors = [error for error in errors if not isinstance(error, ForeignError)]
        if errors:
            raise StateError(f"some may be in use where nobody can look: {errors[0]}")
    return list(PRUNED[kind](host, survey, age))


def prune_age(text: str) -> int:
    """Seconds for `--older-than`. Raises UsageError."""
    seconds = seconds_up(positive_duration(text))
    if seconds < PRUNE_LEAST:
        why = f"{text}: must be {in_words(PRUNE_LEAST)} or more"
        raise UsageError(why, hint="a provision that runs now may need what is younger")
    return seconds


@verb(
    "prune",
    "list stopped clusters, images and left-overs that are long unused, and what they take up",
    argument(
        "--older-than",
        metavar="D",
        type=prune_age,
        default=PRUNE_AGE,
        help="unused for this long, such as 14d (default: 30d)",
    ),
    argument(
        "--yes",
        action="store_true",
        help="remove what is listed: clusters are torn down, but none that is suspended, "
        "and no data disk",
    ),
    forms("table", "json"),
    example="ycluster prune --older-than 14d",
)
def prune(host: Host, older_than: int, form: str, *, yes: bool = False) -> int:
    """List what was not used for long; with `yes` remove just that, each after another look."""
    found, troubles = prunables(host, surveyed(host), older_than)
    clock = _look("clock", "warning", _check_clock, host)
    if clock.level != "ok":
        troubles.append(f"{clock.text}: what was used lately may look old")
    for text in troubles:
        host.output.warn(text)
    shown, facts, failed = [], [], False
    for item in found:
        end = LISTED
        if yes:
            end = _pruned(host, older_than, item)
        if end.removed or not yes:
            shown.append(item)
        failed = failed or bool(end.error)
        facts.append(_prune_facts(item, end))
    total = sum(item.size for item in shown)

    def lines() -> list[Line]:
        if not shown:
            return []
        freed = "FREED" if yes else "FREES"
        head = Line(("KIND", "UNUSED", freed, "WHAT"))
        end = Line(("total", "", size_words(total), ""))
        return [head, *map(_prune_line, shown), end]

    data = {"olderThanSeconds": older_than, "bytes": total, "prunable": facts}
    show_as(host, form, data, lines)
    _say_what_next(host, older_than, found, yes=yes)
    return YclusterError.exit_code if failed else 0


class PruneEnd(Record):
    """What has become of something that `prune` was to remove."""

    removed: bool = False
    error: str = ""  # what kept it from being removed


LISTED = PruneEnd()  # nothing


def _pruned(host: Host, age: int, item: Prunable) -> PruneEnd:
    """Remove it, if under its lock it still is what it was when it was listed."""
    try:
        refuse_sudo(host, item.path)
        with item.lock():
            now = _of_kind(host, surveyed(host), age, item.kind)
            same = [one for one in now if (one.name, one.path) == (item.name, item.path)]
            for one in same:
                one.remove()
    except (YclusterError, OSError, ValueError) as error:
        host.output.warn(f"{item.name} stays: {error}")
        return PruneEnd(error=str(error))
    if not same:
        host.output.say(f"{item.name}: it has been used since it was listed, or is gone")
    return PruneEnd(removed=bool(same))


def _prune_line(item: Prunable) -> Line:
    unused = "-" if item.unused is None else in_words(item.unused)
    return Line((item.kind, unused, size_words(item.size), item.name))


def _prune_facts(item: Prunable, end: PruneEnd) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "name": item.name,
        "path": str(item.path),
        "unusedSeconds": item.unused,
        "bytes": item.size,
        "removed": end.removed,
        "error": end.error,
    }


def _say_what_next(host: Host, age: int, found: Sequence[Prunable], *, yes: bool) -> None:
    is_whole = age % 3600 == 0
    span = f"{age // 3600}h" if is_whole else f"{age}s"
    option = "" if age == PRUNE_AGE else f" --older-than {span}"
    if not found:
        host.output.say(f"nothing was unused for {in_words(age)}")
    elif not yes:
        host.output.say(f"`ycluster prune{option} --yes` removes this; a cluster is torn down")
    elif any(item.kind == "cluster" for item in found):
        host.output.say(f"`ycluster prune{option}` shows whether an image is left over now")


# --- doctor
class Finding(Record):
    """What doctor found about a thing; `level` is ok, warning or failure."""

    name: str
    level: str
    text: str = ""
    remedy: str = ""


LEVEL_COLOURS = {"warning": YELLOW, "failure": RED}


def _look(name: str, level: str, act: Callable[..., object], *args: object) -> Finding:
    """Ok, unless `act` raises what is wrong; then that, with its hint as the remedy."""
    try:
        act(*args)
    except (YclusterError, OSError) as error:
        return Finding(name, level, str(error), getattr(error, "hint", ""))
    return Finding(name, "ok")


@verb(
    "doctor",
    "what this host can do, and the command that fixes what it can't",
    forms("text", "json"),
    example="ycluster doctor",
)
def doctor(host: Host, form: str) -> int:
    """What this host can do, what is left over on it, and how to fix each. It changes nothing."""
    found = list(_of_host(host))
    troubles = list(_of_clusters(host))
    found += troubles or [Finding("clusters", "ok", "nothing is left over")]

    def lines() -> list[Line]:
        return [
            Line((one.level, one.name, one.text), LEVEL_COLOURS.get(one.level, ""), one.remedy)
            for one in found
        ]

    show_as(host, form, {"findings": [vars(finding) for finding in found]}, lines)
    failed = any(finding.level == "failure" for finding in found)
    return PrerequisiteError.exit_code if failed else 0


def _of_host(host: Host) -> Iterator[Finding]:
    yield _look("vm", "failure", _check_host, host)
    yield _look("kvm", "warning", try_kvm, host)
    yield _look("user networking", "failure", check_user_network, host)
    for timer in TIMERS[:-1]:  # the last one is always available
        yield _look(timer.name, "warning", timer.check, host)
    yield _look("libguestfs", "warning", host.need, LIBGUESTFS)
    yield _look("host kernel", "warning", check_host_kernel, host)
    yield _look("kubectl", "warning", check_kubectl, host)
    yield _look("gcloud", "warning", host.need, {"gcloud": "google-cloud-cli"})
    yield _look("clock", "warning", _check_clock, host)


def _check_clock(host: Host) -> None:
    argv = ["timedatectl", "show", "--property=NTPSynchronized", "--value"]
    if host.attempt(argv, timeout=10) == "no\n":
        hint = "sudo timedatectl set-ntp true"
        raise PrerequisiteError("the clock is not synchronised", hint=hint)


def _of_clusters(host: Host) -> Iterator[Finding]:
    """What is wrong with this user's clusters, or left over of others."""
    for place, error in unseen(host).items():
        level = "warning" if isinstance(error, ForeignError) else "failure"
        yield Finding(str(place), level, str(error), error.hint)
    survey = surveyed(host)
    for name, trouble in survey.unreadable:
        yield Finding(name, "failure", str(trouble), getattr(trouble, "hint", ""))
    findings: list[Finding] = []
    with looking_once(host):
        for state in survey.states:
            for check in CLUSTER_CHECKS:
                findings += _found(state.name, check(host, state))
        for look in SURVEY_CHECKS:
            findings += _found("clusters", look(host, survey))
    yield from dict.fromkeys(findings)


def _found(name: str, findings: Iterator[Finding]) -> Iterator[Finding]:
    """What a check finds; that it can't be made is a failure, and hides nothing of the others."""
    try:
        yield from findings
    except (YclusterError, OSError) as error:
        yield Finding(name, "failure", str(error), getattr(error, "hint", ""))


def _unenforced(host: Host, state: State) -> Iterator[Finding]:
    remedy = f"ycluster lifetime arm --name {state.name}"
    if not agenda(state):
        if _runs_without_end(host, state):
            text = "it runs, has a budget, and no deadline"
            yield Finding(state.name, "failure", text, remedy)
        return
    trouble = timer_trouble(host, state)
    if trouble:
        text = f"no timer enforces its deadline: {trouble}"
        yield Finding(state.name, "failure", text, remedy)
    elif not is_watched(host, state) and running(host, state.files):
        text = "no watcher runs beside its VM, to end it if its files get lost"
        yield Finding(state.name, "warning", text, remedy)


def _taken_ports(host: Host, state: State) -> Iterator[Finding]:
    if state.expires_at is None and not running(host, state.files):
        finding = _look(state.name, "warning", _check_ports, host, state)
        if finding.level != "ok":
            yield finding


def _lost_disks(host: Host, state: State) -> Iterator[Finding]:
    for check in (check_disks, check_formats):
        finding = _look(state.name, "failure", check, state)
        if finding.level != "ok":
            yield finding


def _without_room(host: Host, state: State) -> Iterator[Finding]:
    if not process_stat(state.files.pidfile)[0]:  # first: what is out of sight takes long
        return
    if status_of(host, state) == NO_ROOM:
        remedy = f"ycluster resume --name {state.name}   # once there is room"
        yield Finding(state.name, "failure", NO_ROOM_WORDS, remedy)


def _low_space(host: Host, survey: Survey) -> Iterator[Finding]:
    for place in survey.places:
        found = os.statvfs(place)
        free = found.f_bavail * found.f_frsize >> 30
        if free < 10:
            text = f"{place} has {free} GiB left; a disk grows to its diskSize"
            yield Finding("room", "warning", text, "ycluster list   # shows whose disks are there")


def _unclaimed_disks(host: Host, survey: Survey) -> Iterator[Finding]:
    """Disks, and memory, in a cacheDir of which no cluster knows. They may hold data."""
    if survey.unreadable:
        return  # a cluster whose state can't be read may claim any of them
    data_disks = [state.data_disk for state in survey.states if state.data_disk]
    claimed = set(map(os.path.realpath, data_disks))
    places = own_places(host)
    found = [path for place in places for path in sorted(place.iterdir())]
    for path in found:
        is_one = path.suffix in (".qcow2", ".memory") and path.is_file()
        has_state_file = path.with_suffix(".json").exists()
        is_known = has_state_file or os.path.realpath(path) in claimed
        if is_one and not is_known:
            text = f"{path}: no cluster claims it, and it may hold data"
            remedy = _way_out_of_unclaimed(host, path)
            yield Finding("disk", "warning", text, remedy)


def _way_out_of_unclaimed(host: Host, path: Path) -> str:
    """What to do about a disk, or memory, that no cluster claims."""
    if path.suffix == ".memory":
        return f"rm {shlex.quote(str(path))}   (nothing can go on from it without its state file)"
    if _is_disk_kept(host, Files(path.parent, path.stem)):
        return f"ycluster provision -c DIR   (boots it, by a config with the name {path.stem})"
    return f"ycluster import {shlex.quote(str(path))} -c DIR   (makes a copy)"


def _lost_vms(host: Host, survey: Survey) -> Iterator[Finding]:
    for text, files in told_of_lost(host):
        yield Finding("vm", "failure", f"{text}: {_END_OF_LOST}", _stop_of_lost(files))


def _leftover_timers(host: Host, survey: Survey) -> Iterator[Finding]:
    for backend in TIMERS:
        stale = [ident for ident, _ in stale_timers(host, survey, backend)]
        if stale:
            text = f"{len(stale)} timers that belong to no cluster"
            yield Finding("timers", "warning", text, backend.removal(stale))


def _room_to_gain(host: Host, survey: Survey) -> Iterator[Finding]:
    """What `prune` would free. The timers, which it lists, too, are a finding of their own."""
    found, _ = prunables(host, survey, PRUNE_AGE, but="timer")
    size = sum(item.size for item in found)
    if size > 1 << 30 or any(item.kind == "part" for item in found):
        text = f"{size_words(size)} could be freed, of what was not used for "
        yield Finding("unused", "warning", text + in_words(PRUNE_AGE), "ycluster prune")


CLUSTER_CHECKS: tuple[Callable[[Host, State], Iterator[Finding]], ...] = (
    _unenforced,
    _taken_ports,
    _lost_disks,
    _without_room,
)
SURVEY_CHECKS: tuple[Callable[[Host, Survey], Iterator[Finding]], ...] = (
    _low_space,
    _unclaimed_disks,
    _lost_vms,
    _leftover_timers,
    _room_to_gain,
)


# --- Compute Engine
@verb(
    "lifetime gcp-flags",
    "gcloud flags by which GCP deletes the instance",
    CONFIG,
    forms("shell", "lines", "json"),
    argument(
        "--quiet",
        nargs="?",
        action="append",
        const="all",
        default=[],
        choices=("all", "onExpiry", "maxIdle", "dataDisk", "restart", "budget"),
        help="leave out the warnings, or one of them",
    ),
    argument(
        "--require-budget", action="store_true", help="fail (3) where the config has no budget"
    ),
    example=(
        "flags=$(ycluster lifetime gcp-flags --require-budget -c DIR) && "
        "gcloud compute instances create vm $flags"
    ),
)
def print_gcp_flags(
    host: Host,
    directory: Path,
    form: str,
    quiet: Sequence[str],
    *,
    require_budget: bool = False,
) -> None:
    """The flags on one line (shell), one a line (lines) or as JSON; nothing without a budget."""
    config = load_config(directory, host.home)
    flags = gcp_flags(config.lifetime.max_run, f"{config.file}: lifetime.maxRun")
    if require_budget and not flags:
        why = f"{config.file}: lifetime.maxRun is not set, and a budget is required"
        raise ConfigError(why, hint="for example `lifetime: {maxRun: 8h}`")
    for what, text in gcp_warnings(config, written(config, "lifetime", "onExpiry")).items():
        if not {what, "all"} & set(quiet):
            host.output.warn(f"{text} (hide this with --quiet={what})")
    if form == "json":
        host.output.data(to_json(flags))
    else:
        host.output.data((" " if form == "shell" else "\n").join(flags))


@verb(
    "lifetime gcp-status",
    "budget and deadline of a Compute Engine instance",
    forms("text", "json"),
    argument("--zone", help="passed to gcloud"),
    argument("--project", help="passed to gcloud"),
    argument(
        "instance",
        nargs="?",
        default="-",
        metavar="INSTANCE",
        help="the instance's name; - (default): read gcloud's JSON from stdin",
    ),
    example="ycluster lifetime gcp-status vm --zone=europe-west1-b",
)
def gcp_status(
    host: Host,
    instance: str,
    zone: str | None,
    project: str | None,
    form: str,
) -> None:
    """What `lifetime status` shows, of an instance of Compute Engine."""
    given = {"zone": zone, "project": project}
    place = [f"--{name}={value}" for name, value in given.items() if value]
    if instance.startswith("-") and instance != "-":
        raise UsageError(f"{instance!r} is not the name of an instance", hint=GCP_PIPE)
    text = _piped_instance(host, place) if instance == "-" else _instance(host, instance, place)
    try:
        shown = gcp_lifetime(text, host.now())
    except (
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        why = f"{type(error).__name__}: {error}" if text.strip() else "it is empty"
        message = f"this is not the JSON of one instance: {why}"
        raise YclusterError(message, hint=GCP_PIPE) from None
    show_as(host, form, shown, lambda: [Line(row) for row in _gcp_rows(shown)])


def _piped_instance(host: Host, place: Sequence[str]) -> bytes:
    if place or host.stdin is None or host.stdin.isatty():
        why = "gcp-status needs an INSTANCE, or its JSON on stdin without --zone and --project"
        raise UsageError(why, hint=GCP_PIPE)
    text: bytes = host.stdin.buffer.read()
    return text


def _instance(host: Host, instance: str, place: Sequence[str]) -> str:
    """What gcloud prints about an instance. StateError where there is none."""
    if not host.which("gcloud"):
        hint = f"cloud.google.com/sdk/docs/install; or elsewhere: {GCP_PIPE}"
        raise PrerequisiteError("missing: gcloud", hint=hint)
    argv = ["gcloud", "compute", "instances", "describe", instance, "--format=json", *place]
    try:
        return host.run(argv, timeout=120, env=host.environ).stdout
    except ProgramFailed as error:
        if "was not found" not in error.stderr:
            raise
        hint = "if there was one, it has been deleted"
        raise StateError(f"no instance {instance}: {error}", hint=hint) from None


def _gcp_rows(shown: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("instance:", f"{shown['name']} (zone {shown['zone']})"),
        ("state:", shown["state"]),
    ]
    if not shown["maxRun"] and not shown["terminationTime"]:
        none = "no budget: NOTHING deletes it. This sets one, but only while it is TERMINATED:"
        flags = "flags=$(ycluster lifetime gcp-flags --require-budget -c DIR)"
        change = f"gcloud compute instances set-scheduling {shown['name']} --zone={shown['zone']}"
        better = f"{flags} && {change} $flags"
        return [*rows, ("lifetime:", none), ("  better:", better)]
    limit = f"{shown['maxRun']} from each start"
    if not shown["maxRun"]:
        limit = f"until {shown['terminationTime']}"
    ends = f"no deadline while it is {shown['state']}"
    if shown["expiresAt"]:
        ends = f"{local_time(parse_time(shown['expiresAt']))} ({left_words(shown)})"
    return [*rows, ("lifetime:", f"{limit}, then {shown['onExpiry']}"), ("deadline:", ends)]


# --- the config
STARTER = """\
# yaml-language-server: $schema={schema}
# A dev cluster that ends by itself. `ycluster config check -c {folder}` says what is wrong here,
# `ycluster provision -c {folder}` makes the cluster, `ycluster list` shows what it has left.
name: {name}
context: {name}  # the name by which kubectl knows it
lifetime:
  maxRun: 8h             # from each start; `ycluster lifetime extend 1h --name {name}` gives more
  onExpiry: stop         # or suspend, which keeps what runs; pause, its memory; teardown, nothing
  # maxIdle: 2h          # ends it sooner, when nobody has used it for so long
# memory: 8G
# cpus: 4
# diskSize: 20G
sshPort: 0               # 0: a free port is chosen
portForwards:
  - {{guest: 6443}}        # Kubernetes; a free port of this host is chosen
  # - {{host: 8080, guest: 80}}
# k3s: {{install: none}}   # a plain VM, without Kubernetes
"""


@verb(
    "init",
    "write a config to start with",
    argument(
        "directory",
        nargs="?",
        metavar="DIR",
        type=partial(_directory, "DIR"),
        default=Path(),
        help="default: .",
    ),
    example="ycluster init dev",
)
def init(host: Host, directory: Path) -> None:
    """Write a config to a folder, with its schema beside it; never over one that is there."""
    for name in CONFIG_NAMES:
        if os.path.lexists(directory / name):
            raise UsageError(f"{directory / name} is there already", hint="nothing is overwritten")
    part = existing_part(directory.absolute())
    if part.is_file():
        raise UsageError(f"{part} is a file", hint="name a folder")
    folder = directory.resolve()
    words = re.sub("[^a-z0-9]+", "-", folder.name.lower())
    name = words.strip("-")[:63].strip("-") or "dev"
    schema = "y-cluster-provision.schema.json"
    file = directory / CONFIG_NAMES[0]
    path = str(directory)
    shown = shlex.quote(f"./{path}" if path.startswith("-") else path)
    text = STARTER.format(name=_yaml_name(name), folder=shown, schema=schema)
    umask = host.umask | 0o002  # it is no secret; but what it says, runs as its user
    os.umask(umask)
    own = 0o666 & ~umask
    make_folder(directory, 0o777)
    if not os.path.lexists(directory / schema):
        schema_text = to_json(schema_for("qemu"))
        write_file(directory / schema, f"{schema_text}\n".encode(), mode=own)
    write_file(file, text.encode(), mode=own)
    way_on = f"`ycluster provision -c {shown}` makes the cluster"
    host.output.say(f"{file} is written, its schema beside it; {way_on}")


def _yaml_name(name: str) -> str:
    """A name as YAML reads it back: in quotes where it would be null, a number or ambiguous."""
    try:
        is_text = parse_yaml(name, name).value == name
    except ConfigError:
        is_text = False
    return name if is_text else f'"{name}"'


@verb(
    "config check",
    "exit 0, or 3 with every problem",
    CONFIG,
    forms("text", "json"),
    example="ycluster config check -c examples/dev",
)
def config_check(host: Host, directory: Path, form: str) -> int:
    """One line where the config is good; ConfigError with every problem where it isn't."""
    config = None
    try:
        config = load_config(directory, host.home)
        expand_variables(config, host.environ)
        if isinstance(config, QemuConfig):
            additions_of(config, host.environ)
            _check_named(host, config)
    except ConfigError as error:
        if form == "text":
            raise
        found = {"problems": _located(error), "hint": error.hint, "warnings": []}
        host.output.data(to_json({"version": 1, "ok": False, **found}))
        return ConfigError.exit_code
    warnings = list(_warnings_of_check(config))
    if form == "json":
        found = {"problems": [], "hint": "", "warnings": warnings}
        host.output.data(to_json({"version": 1, "ok": True, **found}))
        return 0
    limit = _limit_words(config.lifetime)
    host.output.data(
        f"{config.file}: ok: {config.provider} cluster {config.name}, lifetime {limit}"
    )
    for warning in warnings:
        host.output.warn(warning)
    return 0


def _limit_words(lifetime: Lifetime) -> str:
    """What ends a cluster by its config: `8h, then stop`."""
    limits = []
    if budget(lifetime.max_run) is not None:
        limits.append(lifetime.max_run)
    if budget(lifetime.max_idle) is not None:
        limits.append(f"{lifetime.max_idle} unused")
    return f"{' or '.join(limits)}, then {lifetime.on_expiry}" if limits else "none"


def _check_named(host: Host, config: QemuConfig) -> None:
    """Raise ConfigError where what a config names on this host is not what provision wants."""
    files = files_of(host, config)
    cache_dir = files.cache_dir
    check_cache_dir(config, cache_dir)
    try:
        check_folder(cache_dir)
    except StateError as error:
        refused = ConfigError(str(error), hint=error.hint)
        if not config.cache_dir:
            raise refused from None
        with blamed_on(config, "cacheDir"):
            raise refused from None
    check_image(host, config, cache_dir)
    check_k3s_source(host, config)
    if config.data_disk:
        with blamed_on(config, "dataDisk"):
            _refuse_data_disk(str(config.data_disk), [files])
            check_data_file(host, config.data_disk)


def _warnings_of_check(config: Config) -> Iterator[str]:
    """`warnings_of`, and what is to be known of the cluster that it would make."""
    yield from warnings_of(config)
    if budget(config.lifetime.max_run) is None:
        text = "lifetime.maxRun is not set: nothing will end this cluster"
        if budget(config.lifetime.max_idle) is not None:
            text = "lifetime.maxRun is not set: nothing will end this cluster while it is used"
        yield f"{text}; for example `lifetime: {{maxRun: 8h}}`"
    if config.provider in OTHER_PROVIDERS:
        yield (
            f"provider {config.provider}: y-cluster runs it; checked are only the keys that all "
            "providers have, for `ycluster lifetime gcp-flags`"
        )
        return
    try:
        check_implemented(require_qemu(config))
    except NotImplementedYet as error:
        yield f"provision will refuse it: {error}"


def _located(error: ConfigError) -> list[dict[str, Any]]:
    """The problems that an error names, each with its file, line and column where it has them."""
    found = []
    for text in str(error).splitlines():
        place = re.fullmatch(r"(.+?):([0-9]+):([0-9]+): (.*)", text)
        if place:
            file, line, column, text = place.groups()
            found.append({"file": file, "line": int(line), "column": int(column), "text": text})
        elif not re.match("[0-9]+ problems in ", text):
            found.append({"file": None, "line": None, "column": None, "text": text})
    return found


@verb(
    "config show",
    "the effective config as JSON",
    CONFIG,
    forms("json"),
    example="ycluster config show -c examples/dev",
)
def config_show(host: Host, directory: Path, form: str) -> None:
    """Print the config with its defaults filled in; the only `form` is json."""
    host.output.data(to_json(show_config(load_config(directory, host.home))))


SCHEMAS = OneOf(
    "target",
    (
        argument("which", nargs="?", choices=CONFIGS, help="the provider"),
        argument(
            "--write",
            metavar="DIR",
            type=partial(_directory, "--write"),
            help="write them all to DIR",
        ),
    ),
    required=True,
)


@verb("schema", "JSON Schema of the config", SCHEMAS, example="ycluster schema qemu")
def print_schema(host: Host, target: str | Path) -> None:
    """Print the schema of one provider's config, or write them all to a folder."""
    if isinstance(target, str):
        host.output.data(to_json(schema_for(target)))
        return
    if not target.is_dir():
        target.mkdir(parents=True)
        target.chmod(0o755)
    for which in CONFIGS:
        path = target / f"{which}.schema.json"
        write_file(path, (to_json(schema_for(which)) + "\n").encode("ascii"), mode=0o644)
        host.output.say(f"  {path}")


# === 20 CLI =======================================================================================
# argv -> verb -> exit code. The verbs are the functions that `@verb` has declared; only the parser
# of the one that is asked for is made, as making all of them takes longer than most verbs run.
# `main` is the one place that prints errors and chooses the exit code.

GROUPS: Mapping[str, str] = {
    "lifetime": "the budget of a cluster and the timer that enforces it",
    "config": "look at a config",
}
ALIASES: Mapping[str, str] = {"ls": "list", "rm": "teardown"}
COMMON = argument(
    "-v",
    "--verbose",
    action="store_true",
    default=SUPPRESS,
    help="show every program that is run, and tracebacks",
)


def declared(path: str) -> Verb:
    """What a verb has declared of itself."""
    found: Verb = VERBS[path].verb  # type: ignore[attr-defined]
    return found


def arguments_of(path: str) -> list[Argument]:
    """The arguments of a verb, those of its groups among them."""
    found = [COMMON]
    for item in declared(path).arguments:
        found += item.arguments if isinstance(item, OneOf) else (item,)
    return found


# --- completion: what bash, zsh and fish load; each asks us what the last of its words may be
# bash inserts a word as it is given. A context is any text, so each word is quoted, and compared
# with what has been typed so far in that form; we are asked for what begins as that does only where
# nothing in it is quoted. fish quotes by itself; so does zsh, which first takes our quotes away.
_BASH = """\
_ycluster() {
  local word last=${COMP_WORDS[COMP_CWORD]} asked; COMPREPLY=()
  case $last in *[!-A-Za-z0-9_./]*) asked= ;; *) asked=$last ;; esac
  while IFS= read -r word; do
    printf -v word %q "$word"
    case $word in "$last"*) COMPREPLY+=("$word") ;; esac
  done < <(
    ycluster completion words "${COMP_WORDS[@]:1:$COMP_CWORD-1}" "$asked" 2>/dev/null)
}
complete -o default -F _ycluster ycluster"""
_FISH = """\
complete -c ycluster -f -a '(
  ycluster completion words (commandline -opc)[2..-1] (
    commandline -ct | string unescape) 2>/dev/null
  or __fish_complete_path (commandline -ct))'"""
_SHELLS: Mapping[str, str] = {
    "bash": _BASH,
    "zsh": f"autoload -U bashcompinit && bashcompinit\n{_BASH}",  # bashcompinit is zsh's own
    "fish": _FISH,
}


@verb(
    "completion",
    "what bash, zsh or fish loads to complete words",
    argument("shell", metavar="{bash,zsh,fish}", choices=(*_SHELLS, "words")),
    argument("words", nargs=REMAINDER, help=SUPPRESS),
    example='eval "$(ycluster completion bash)"',
)
def completion(host: Host, shell: str, words: Sequence[str]) -> int:
    """Print what a shell loads; or, for `words`, what the last of them may be. 1: nothing known."""
    if shell in _SHELLS:
        host.output.data(_SHELLS[shell])
        return 0
    last = words[-1] if words else ""
    words_there = set(_next_words(host, words[:-1], last))
    found = [word for word in sorted(words_there) if word.startswith(last)]
    host.output.data("\n".join(found))
    return 0 if found else 1


def _next_words(host: Host, before: Sequence[str], last: str) -> list[str]:
    """What may follow the words before: verbs, options, or the values of an option."""
    if "--" in before:  # the guest's own words
        return []
    path = _path_in(before)
    options = last.startswith("-")
    if path not in VERBS:
        return _options_of(path) if options else _verbs_below(path)
    known = [item for item in arguments_of(path) if not item.is_hidden]
    for item in known:
        if item.takes_value and before[-1] in item.names:
            return _values_of(host, item)
    return _words_of(host, known, options)


def _words_of(host: Host, arguments: Sequence[Argument], options: bool) -> list[str]:
    """The names of those that are options; or else the words that the others can be."""
    if not options:
        placed = [item for item in arguments if not item.is_option]
        has_command = any(item.dest == "command" for item in placed)
        if has_command and BY_NAME in arguments:
            placed.append(BY_PLACE)  # see `_take_name`
        return [word for item in placed for word in _values_of(host, item)]
    names = [name for item in arguments if item.is_option for name in item.names]
    return ["-h", "--help", *names]


def _path_in(words: Sequence[str]) -> str:
    """The verb, or the group of verbs, that words lead to."""
    path = ""
    for word in words:
        longer = f"{path} {word}" if path else ALIASES.get(word, word)
        if longer in GROUPS or longer in VERBS:
            path = longer
    return path


def _verbs_below(path: str) -> list[str]:
    """The words that may follow a group's; at the top, verbs and groups."""
    start = f"{path} " if path else ""
    below = [verb_path[len(start) :] for verb_path in VERBS if verb_path.startswith(start)]
    return [words.split()[0] for words in below]


def _options_of(group: str) -> list[str]:
    """The options of a group of verbs; those of the program itself at the top."""
    return ["-h", "--help"] if group else ["-h", "--help", "--version", *COMMON.names]


def _values_of(host: Host, option: Argument) -> list[str]:
    if option in (BY_NAME, BY_PLACE):
        return [state.name for _, state in readable(host)]
    if option == BY_CONTEXT:
        return [state.context for _, state in readable(host)]
    return list(option.choices)


# --- help
@verb(
    "help",
    "help on a verb, or on exit-codes",
    argument("words", nargs="*", metavar="VERB"),
    example="ycluster help lifetime extend",
)
def show_help(host: Host, words: Sequence[str]) -> None:
    """Print the help of a verb or a group of verbs, or what the exit codes mean."""
    if list(words) == ["exit-codes"]:
        rows = [f"{code:3}  {text}" for code, text in EXIT_CODES.items()]
        host.output.data("\n".join(rows))
    else:
        parse_args([*words, "--help"])


# --- the parser
VERBS: Mapping[str, Callable[..., Any]] = {
    command.verb.path: command
    for command in tuple(globals().values())
    if callable(command) and isinstance(getattr(command, "verb", None), Verb)
}


def parse_args(argv: Sequence[str]) -> dict[str, Any]:
    """What the command line asks for: `path`, the verb, and the arguments of its call."""
    path, words = _verb_in(argv)
    if path:
        words = _plain_flags(path, words)
        args = _read_options(path, words)
        if args is None:
            _refuse_negative(path, words)
            parser = _parser(prog=f"ycluster {path}", **_texts(path))
            _add_arguments(parser, path)
            args = vars(parser.parse_args(words))
        return _collect(args)
    if not argv or (len(argv) == 1 and argv[0] in GROUPS):
        argv = [*argv, "--help"]
    else:
        _refuse_unknown(argv)
    return _collect(vars(full_parser().parse_args(argv)))


def _verb_in(argv: Sequence[str]) -> tuple[str, list[str]]:
    """The verb that words begin with, and its own words; -v may stand before it. Empty: none."""
    path, common = "", []
    for place, word in enumerate(argv):
        if word.partition("=")[0] in COMMON.names:
            common.append(word)
            continue
        path = f"{path} {word}" if path else ALIASES.get(word, word)
        if path in VERBS:
            return path, [*common, *argv[place + 1 :]]
        if path not in GROUPS:
            break
    return "", []


def _plain_flags(path: str, words: Sequence[str]) -> list[str]:
    """The words of a verb, with `--flag=true` and `--flag=false` as the sibling takes them.

    Source: Go's strconv.ParseBool.
    """
    if not any("=" in word for word in words):
        return list(words)
    flags: list[str] = []
    for item in arguments_of(path):
        if item.is_option and not item.takes_value:
            flags += item.names
    plain: list[str] = []
    for place, word in enumerate(words):
        if word == "--":  # what follows is a command
            return plain + list(words[place:])
        name, equals, value = word.partition("=")
        if name not in flags or not equals:
            plain.append(word)
        elif value in ("1", "t", "T", "true", "TRUE", "True"):
            plain.append(name)
        elif value not in ("0", "f", "F", "false", "FALSE", "False"):
            raise UsageError(f"{word}: {name} is true or false")
    return plain


def _refuse_negative(path: str, words: Sequence[str]) -> None:
    """Raise UsageError where a duration begins with a minus: argparse takes it for an option."""
    is_help = any(word in ("-h", "--help") for word in words)
    if is_help or any(item.dest == "command" for item in arguments_of(path)):
        return  # what begins with a dash may be a word of the command
    for word in words:
        if re.fullmatch("-(?:[0-9.]+(?:[mun\u00b5]?s|[mhd]))+", word):
            why = f"{word}: a duration is positive"
            raise UsageError(why, hint="write it without the minus")


def _refuse_unknown(argv: Sequence[str]) -> None:
    """Raise UsageError if these words begin with none that leads to a verb."""
    group = argv[0] if argv[0] in GROUPS else ""
    words = [word for word in argv[bool(group) :] if not word.startswith("-")]
    word = words[0] if words else ""
    known = [*_verbs_below(group), *([] if group else ALIASES)]
    if word and word not in known:
        nested = [path for path in VERBS if path.split()[-1] == word]
        meant = f"; did you mean {nested[0]!r}?" if nested else _nearest(word, known)
        why = f"there is no verb `{f'{group} {word}'.strip()}`{meant}"
        raise UsageError(why, hint=f"`{f'ycluster help {group}'.strip()}` lists them")


def _parser(**options: Any) -> argparse.ArgumentParser:
    """argparse's, which names the nearest option where there is none of a name."""
    import argparse

    class Parser(argparse.ArgumentParser):
        def error(self, message: str) -> NoReturn:
            """Print the usage and what is wrong, and exit with 2."""
            unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
            path = self.get_default("path")
            if unknown and path:
                names = [name for item in arguments_of(path) for name in item.names]
                message += _nearest(unknown[1], [*names, "--help"])
            super().error(message)

    made: Parser = _style(Parser, **options)
    return made


def _read_options(path: str, words: Sequence[str]) -> dict[str, Any] | None:
    """What argparse makes of words that are options with their values, as most are; else None.

    To make a parser takes longer than most verbs run. So it is made for all other words only: help,
    what has a place, and what is wrong.
    """
    options = {name: item for item in arguments_of(path) for name in item.names if item.is_option}
    given: dict[str, Any] = {}
    rest = list(words)
    while rest:
        option = options.get(rest.pop(0))
        if option is None or option.dest in given:
            return None
        given[option.dest] = option.take_value(rest)
    if None in given.values() or _is_incomplete(path, given):
        return None
    defaults = {item.dest: item.default for item in arguments_of(path)}
    args = {**defaults, **given, "path": path}
    return {dest: value for dest, value in args.items() if value != SUPPRESS}


def _is_incomplete(path: str, given: Mapping[str, Any]) -> bool:
    """Whether an argument is missing, or one is given that excludes another."""
    for item in declared(path).arguments:
        if isinstance(item, OneOf):
            count = sum(choice.dest in given for choice in item.arguments)
            if count > 1 or (item.required and not count):
                return True
        elif item.is_required and item.dest not in given:
            return True
    return False


def full_parser() -> argparse.ArgumentParser:
    """The parser of all verbs: for help, for `--version`, and for what no verb begins with."""
    parser = _parser(
        prog="ycluster",
        description="Dev clusters that expire on their own.",
        epilog="`ycluster help VERB` tells more; `ycluster help exit-codes` lists those",
    )
    _add(parser, COMMON)
    parser.add_argument("--version", action="version", version=f"ycluster {VERSION}")
    places = {"": parser.add_subparsers(metavar="VERB", required=True)}
    for path in VERBS:
        group, _, name = path.rpartition(" ")
        if group not in places:
            of_group = _style(places[""].add_parser, group, help=GROUPS[group])
            places[group] = of_group.add_subparsers(metavar="VERB", required=True)
        made = _style(places[group].add_parser, name, help=declared(path).help, **_texts(path))
        _add_arguments(made, path)
    return parser


def _style(make: Callable[..., Any], *names: str, **options: Any) -> Any:
    """A parser that takes no abbreviations, and fills the terminal."""
    import argparse

    formatter = partial(argparse.HelpFormatter, width=columns() - 2)
    return make(*names, allow_abbrev=False, formatter_class=formatter, **options)


def _texts(path: str) -> dict[str, Any]:
    verb = declared(path)
    return {"description": verb.help, "usage": verb.usage, "epilog": f"example: {verb.example}"}


def _add_arguments(parser: argparse.ArgumentParser, path: str) -> None:
    parser.set_defaults(path=path)
    _add(parser, COMMON)
    for item in declared(path).arguments:
        if isinstance(item, OneOf):
            group = parser.add_mutually_exclusive_group(required=item.required)
            for choice in item.arguments:
                _add(group, choice)
        else:
            _add(parser, item)


def _add(place: Any, item: Argument) -> None:
    """Add an argument to a parser, or to a group of one."""
    import argparse

    options = dict(item.options)
    for name, value in options.items():
        if value == SUPPRESS:
            options[name] = argparse.SUPPRESS  # itself, as argparse compares by `is`
    place.add_argument(*item.names, **options)


def _collect(args: dict[str, Any]) -> dict[str, Any]:
    """One value for each group of arguments that exclude each other."""
    if ONE_BY_OPTION in declared(args["path"]).arguments and "command" in args:
        _take_name(args)
    for item in declared(args["path"]).arguments:
        if isinstance(item, OneOf):
            values = [args.pop(choice.dest) for choice in item.arguments]
            given = [value for value in values if value is not None]
            args[item.dest] = given[0] if given else item.default
    return args


def _take_name(args: dict[str, Any]) -> None:
    """Take the cluster from before the `--` of a command, unless an option names it.

    Raises UsageError for further words there.
    """
    words = list(args["command"])
    if any(args[item.dest] is not None for item in ONE_BY_OPTION.arguments) or not words:
        return
    if words[0] != "--":
        args[BY_NAME.dest] = _placed(words.pop(0))
    if words and words[0] != "--":
        raise UsageError(
            f"{words[0]}: a command stands after `--`, and an option before the name",
            hint=f"example: {declared(args['path']).example}",
        )
    args["command"] = words


# --- the process
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; returns the exit code. Every error is printed here, and only here."""
    output = _open_output()
    words = sys.argv[1:] if argv is None else argv
    try:
        umask = _prepare_process()
        return _run(words, output, umask)
    except Interrupted as error:
        output.draw("")
        output.say(f"ycluster: {error}")
        return error.exit_code
    except BrokenPipeError:
        return 1  # whoever read stdout has gone: nobody is left to report to
    except Exception as error:
        if output.verbose:
            import traceback

            output.say(traceback.format_exc(), end="")
        shown = _as_ours(error)
        output.draw("")
        output.error(shown)
        return _told_apart(words, shown.exit_code)
    except SystemExit as end:  # argparse's way out, after --help or an error of usage
        return _told_apart(words, end.code if isinstance(end.code, int) else 0)
    finally:
        _flush_stdout()


def _told_apart(words: Sequence[str], code: int) -> int:
    """The exit code of a failure of ours, where the command's own may be any, as for docker run."""
    path = [word for word in words if word.partition("=")[0] not in COMMON.names]
    holds_it = path[:2] == ["lifetime", "hold"]
    runs = holds_it or path[:1] == ["run"]
    if not runs or code in (0, 126, 127, Interrupted.exit_code):
        return code
    return OWN_FAILURE


def _run(argv: Sequence[str], output: Output, umask: int) -> int:
    args = parse_args(argv)
    output.verbose = args.pop("verbose", False)
    host = Host(os.environ, output, sys.stdin, umask)
    command = VERBS[args.pop("path")]
    if "files" in args:
        args["files"] = find_cluster(host, args["files"])
    then_show = args.pop("then_show", "text")
    output.then_json = then_show == "json"
    code = command(host, **args) or 0
    if then_show == "json" and code == 0:
        host.output.data(to_json({"version": 1, **_shown_after(host, args)}))
    return code


def _shown_after(host: Host, args: Mapping[str, Any]) -> dict[str, Any]:
    """What has become of the cluster that a verb was called with."""
    if host.worked_on:  # the config may have been edited meanwhile, or another cluster made
        files = Files(host.worked_on.parent, host.worked_on.stem)
    elif "directory" in args:
        files = files_of(host, own_config(host, args["directory"], args.get("own_name")))
    else:
        files = args.get("files") or find_cluster(host, args["which"])
    named = {"name": files.name, "cacheDir": str(files.cache_dir)}
    if not has_state(files):
        return {**named, "state": "absent"}
    try:
        return describe(host, current(host, files))
    except StateError as error:  # the VM of one that can't be read may be stopped all the same
        return {**named, "state": "unreadable", "error": str(error)}


def _open_output() -> Output:
    # Streams that take any text; in the place of a closed one, one that swallows it.
    streams = []
    for stream in (sys.stdout, sys.stderr):
        if stream is None:
            stream = open(os.devnull, "w")  # noqa: SIM115  # open for as long as we run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        streams.append(stream)
    colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return Output(*streams, colours=colours)


def _prepare_process() -> int:
    """Set umask and signals, as a process of its own wants them; returns the umask of before."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, no child has an exit status
    umask = os.umask(0o077)  # what other programs write for us (keys, disks) is private, too
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signum, _interrupt)
    # Stopped while it holds a cluster's lock, it would keep the reaper out.
    signal.signal(signal.SIGTSTP, signal.SIG_IGN)
    return umask


def _interrupt(signum: int, frame: object) -> NoReturn:
    raise Interrupted(f"interrupted by {signal.Signals(signum).name}")


def _as_ours(error: Exception) -> YclusterError:
    """The error as one with a message for people and an exit code."""
    if isinstance(error, YclusterError):
        return error
    if isinstance(error, OSError):
        why = error.strerror or str(error)
        if error.filename:
            why = f"{error.filename}: {why}"
        elif isinstance(error, FileNotFoundError) and not working_folder_is_there():
            why = "the working folder is gone"
        return YclusterError(why)
    why = f"internal error: {type(error).__name__}: {error}"
    return YclusterError(why, hint="--verbose shows where; please report it")


def _flush_stdout() -> None:
    try:
        sys.stdout.flush()
    except (OSError, ValueError, AttributeError):
        # The reader has gone, or the disk is full; Python's own last words would only add to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def run() -> NoReturn:
    """`main` as a process, left at once: Python's own way out takes 3 ms more, and does nothing."""
    os._exit(main())


if __name__ == "__main__":
    run()
