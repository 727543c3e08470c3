"""What several unit tests share: a host with a clock of its own, the command line, and real processes."""

from __future__ import annotations

import atexit
import contextlib
import errno
import importlib.util
import io
import json
import os
import py_compile
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest

import ycluster
from ycluster import ArmedTimer, Files, Host, Output, PrerequisiteError, State

PROGRAM = Path(ycluster.__file__).resolve()


def compiled() -> Path:
    """A folder for PYTHONPYCACHEPREFIX in which the module is compiled: once, and not in each process."""
    prefix = Path(tempfile.mkdtemp(prefix="ycluster-compiled-"))
    atexit.register(shutil.rmtree, prefix, ignore_errors=True)
    cached = f"{PROGRAM.stem}.{sys.implementation.cache_tag}.pyc"
    target = prefix / PROGRAM.parent.relative_to("/") / cached
    kept = Path(importlib.util.cache_from_source(str(PROGRAM)))
    if kept.exists():  # by the import of this process, or by one before it
        target.parent.mkdir(parents=True)
        shutil.copy(kept, target)
    else:
        py_compile.compile(str(PROGRAM), str(target), doraise=True)
    launcher = f"import sys\nsys.pycache_prefix = {str(prefix)!r}\nsys.path[:0] = [{str(PROGRAM.parent)!r}]\n"
    launcher += "import ycluster\n"
    (prefix / "launcher.py").write_text(f"{launcher}ycluster.run()\n")
    (prefix / "alone.py").write_text(f"{launcher}ycluster.lost_vms = lambda: ()\nycluster.run()\n")
    return prefix


_COMPILED = compiled()
LAUNCHER = _COMPILED / "launcher.py"  # does what PROGRAM does, in a fifth of the time
ALONE = _COMPILED / "alone.py"  # the same, and sees no VMs of the tests beside it
IMPORTS = {"PYTHONPATH": str(PROGRAM.parent), "PYTHONPYCACHEPREFIX": str(_COMPILED)}
try_kvm = ycluster.try_kvm  # the real one: conftest.py puts another in its place
NOW = 1_763_800_000.0  # 2025-11-22T08:26:40Z


class Clocked(Host):
    """The real host but for HOME and the clock: it starts at NOW, moves by `sleep` alone, and `log` keeps stderr.

    Time passes where `time` is changed; `set_clock` is somebody who sets it, and `reboot` begins a new boot.
    """

    def __init__(self, home: Path, **environ: str) -> None:
        self.log = io.StringIO()
        super().__init__(
            {"HOME": str(home), "PATH": os.environ["PATH"], **environ},
            Output(io.StringIO(), self.log, verbose=False),
        )
        self.time, self.booted, self.boots = NOW, NOW - 3600, 1

    def set_clock(self, by: float) -> None:
        self.time += by
        self.booted += by

    def reboot(self) -> None:
        self.booted, self.boots = self.time, self.boots + 1

    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def uptime(self) -> float:
        return self.time - self.booted

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += max(0.0, seconds)


class Memory(ycluster.Timer):
    """A timer that is a set of ids, and can refuse. `log` is what happened, in order, over all timers of a test."""

    survives = {"logout": "yes"}  # noqa: RUF012
    launches = False  # nothing that could be started: a probe of the program would be for nothing

    def __init__(
        self, name: str, log: list[str], *, unusable: str = "", error: Exception | None = None
    ) -> None:
        self.name, self.log, self.reason, self.error = name, log, unusable, error
        self.standing: dict[str, int] = {}

    def check(self, host: Host) -> None:
        if self.reason:
            raise PrerequisiteError(self.reason)

    def arm(self, host: Host, files: Files, deadline: int) -> str:
        if self.error:
            raise self.error
        ident = f"{self.name}-{len(self.log)}"
        self.standing[ident] = deadline
        self.log.append(f"arm {ident}")
        return ident

    def armed(self, host: Host, files: Files, timer: ArmedTimer) -> bool:
        return timer.id in self.standing

    def cancel(self, host: Host, files: Files, timer: ArmedTimer) -> None:
        saved = ycluster.load_state(files).timer
        self.log.append(f"cancel {timer.id} while {saved.id if saved else None} is saved")
        self.standing.pop(timer.id, None)


class Ran(NamedTuple):
    code: int
    out: str
    err: str


def folded(text: str) -> str:
    """The text with single spaces and no line ends: a command is found however it is laid out."""
    return " ".join(text.split())


def missing(text: str, *facts: object) -> list[str]:
    """Those of the facts (names, paths, numbers, options, commands) that the text does not hold."""
    text = folded(text)
    return [str(fact) for fact in facts if folded(str(fact)) not in text]


def told(ran: Ran, code: int, *facts: object, lines: int = 10) -> None:
    """It ended as documented, in a few lines with nothing on stdout, and named these facts."""
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert "Traceback" not in ran.err and "internal error" not in folded(ran.err), ran.err
    assert len(ran.err.splitlines()) <= lines and len(ran.err) < 4000, ran.err
    assert missing(ran.err, *facts) == [], ran.err


@contextlib.contextmanager
def refused(kind: type[Exception], *facts: object) -> Iterator[pytest.ExceptionInfo[Any]]:
    """The block ends with an error of this kind, which names these facts."""
    with pytest.raises(kind) as caught:
        yield caught
    assert missing(str(caught.value), *facts) == [], caught.value


class Cli:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *argv: object) -> Ran:
        try:
            code = ycluster.main([str(word) for word in argv])
        except SystemExit as end:  # argparse's own way out
            code = int(end.code or 0)
        return Ran(code, *self.capsys.readouterr())


GIVES_WAY = "import os, signal; signal.signal(signal.SIGCONT, lambda *args: os._exit(0))"  # to the first act of a stop


def monitor(
    guest: str = "running", migration: str = "none", ends_at: str = "False", usernet: str = ""
) -> str:
    """QEMU's monitor, with a guest and a migration in these states, until `ends_at`. It keeps what it is asked.

    `usernet` is its answer to a person's command, `info usernet`.
    """
    return f"""
import json, os, socket, sys, threading
os.chdir(os.path.dirname(sys.argv[4]))
server = socket.socket(socket.AF_UNIX)
server.bind("demo.new")
server.listen()
os.rename("demo.new", "demo.qmp")
guest, migration = {{"status": "{guest}"}}, {{"status": "{migration}"}}

def serve():
    while True:
        client, _ = server.accept()
        with client, client.makefile("rw") as lines, open("asked", "a") as asked:
            print('{{"QMP": {{}}}}', file=lines, flush=True)
            for request in map(json.loads, lines):
                what = request["execute"]
                print(what, file=asked, flush=True)
                guest["status"] = {{"stop": "paused", "cont": "running"}}.get(what, guest["status"])
                if what == "migrate_cancel":
                    migration["status"] = "cancelled"
                answers = {{"query-migrate": migration, "human-monitor-command": {usernet!r}}}
                answer = answers.get(what, guest)
                print(json.dumps({{"return": answer, "id": request["id"]}}), file=lines, flush=True)
                if {ends_at}:
                    os._exit(0)

threading.Thread(target=serve, daemon=True).start()
"""


# A signal that comes just before a sleep begins would be handled after it: a descriptor has no such gap.
WAITS = """
import os, select, signal, sys
signalled, wakes = os.pipe()
os.set_blocking(wakes, False)
signal.set_wakeup_fd(wakes)
sys.stdout.write("up\\n")
sys.stdout.flush()
while select.select([signalled], [], [], 600)[0]:
    os.read(signalled, 1)
"""


class Processes:
    """Real processes that stand in for QEMU, and innocent ones."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def start(self, code: str, *argv: str, pass_fds: Sequence[int] = ()) -> subprocess.Popen[bytes]:
        """A Python process that runs `code`, then says so, then waits for signals."""
        code += WAITS
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *argv],
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
        )
        self.started.append(process)
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        return process


def stand_in(processes: Processes, files: Files, code: str = GIVES_WAY) -> subprocess.Popen[bytes]:
    """A process with QEMU's identity, and its pidfile."""
    process = processes.start(code, "-name", files.name, "-pidfile", str(files.pidfile))
    files.pidfile.write_text(f"{process.pid}\n")
    return process


class Became(Exception):
    """In the place of the command that a process becomes."""


def held(
    host: Host, files: Files, *command: str, at_most: str = "0s", pid: int | None = None
) -> ycluster.Hold:
    """`lifetime hold`, as far as where it becomes its command; by a process that need not be there. Returns the hold."""

    def become(self: Host, argv: Sequence[str]) -> None:
        raise Became(*argv)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Became):
        patch.setattr(Host, "become", become)
        if pid is not None:
            patch.setattr("ycluster.os.getpid", lambda: pid)
        ycluster.hold(host, files, ycluster.parse_duration(at_most), command or ("make", "test"))
    host.holder = None  # that was another process
    return ycluster.load_state(files).holds[-1]


# `info usernet` of a guest that nobody is connected to, and what a login adds to it.
USERNET = """\
VLAN -1 (net0):
  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ
  TCP[HOST_FORWARD]  13       127.0.0.1  2222       10.0.2.15    22     0     0
  TCP[HOST_FORWARD]  12               *  8080       10.0.2.15    80     0     0
"""
LOGIN = "  TCP[ESTABLISHED]   20       127.0.0.1 40022       10.0.2.15    22     0     0\n"
UNUSED, USED = (
    monitor(
        ends_at='what == "system_powerdown" and guest["status"] == "running"',
        usernet=(USERNET + more).replace("\n", "\r\n"),
    )
    for more in ("", LOGIN)
)


def events(home: Path) -> list[dict[str, Any]]:
    """The user's log of events."""
    log = home / ".local/state/ycluster/events.jsonl"
    return [json.loads(line) for line in log.read_text().splitlines()]


class Live:
    """A cluster with maxIdle alone; in memory are its timers and its clock, and its VM is a real process."""

    def __init__(self, host: Clocked, cache: Path, timer: Memory, processes: Processes) -> None:
        self.host, self.timer, self.processes = host, timer, processes
        self.files = Files(cache, "demo")
        self.monitor = UNUSED

    def launch(self, host: Host, state: State) -> State:
        stand_in(self.processes, self.files, self.monitor)
        return ycluster.replace(state, ran_with="tcg")

    def starts(self, **fields: Any) -> None:
        values = {"lifetime": "", "max_idle": "30m", "started_at": 1, "warn": "10m", **fields}
        self.files.disk.touch()
        ycluster._boot(self.host, made(self.files.cache_dir, **values))

    @property
    def state(self) -> State:
        return ycluster.load_state(self.files)

    @property
    def runs(self) -> bool:
        return ycluster.running(self.host, self.files)

    def fires(self) -> float:
        """The next timer, when it is to; returns how many seconds that was after the start."""
        ident = min(self.timer.standing, key=lambda one: self.timer.standing[one])
        self.host.time = float(self.timer.standing.pop(ident))
        ycluster.reap(self.host, self.files, by="memory")
        return self.host.time - NOW

    def events(self, *without: str) -> list[dict[str, Any]]:
        return [event for event in events(self.host.home()) if event["event"] not in without]


def need(program: str) -> None:
    """Skip the test where a program is not installed; in CI that is a failure."""
    if not shutil.which(program):
        if os.environ.get("CI") == "true":
            pytest.fail(f"missing in CI: {program}")
        pytest.skip(f"{program} is not installed")


def without(capabilities: Sequence[str], *argv: object) -> list[str]:
    """A command line under which root is denied what others are; see capabilities(7)."""
    words = [str(word) for word in argv]
    if os.getuid() != 0:
        return words
    gone = ",".join(f"-{name}" for name in capabilities)
    setpriv = shutil.which("setpriv") or "setpriv"
    return [setpriv, f"--bounding-set={gone}", f"--inh-caps={gone}", *words]


def bound_by_modes(*argv: object) -> list[str]:
    """A command line under which the modes of files bind root, too."""
    return without(["dac_override", "dac_read_search"], *argv)


def made(cache_dir: Path, name: str = "demo", **fields: Any) -> State:
    """The state of a cluster with an 8 h budget, saved in its cacheDir."""
    state = State(**{"name": name, "cache_dir": str(cache_dir), "lifetime": "8h", **fields})
    return ycluster.save_state(state)


def with_disk(cache_dir: Path, name: str = "demo", **fields: Any) -> State:
    """`made`, with a boot disk that begins as one does."""
    state = made(cache_dir, name, **fields)
    state.files.disk.write_bytes(ycluster.QCOW2)
    return state


def away(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """From now on a folder is on a file server that is away."""
    lstat = os.lstat

    def looked(path: Any, **options: Any) -> os.stat_result:
        if str(path).startswith(f"{folder}/"):
            raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN), str(path))
        return lstat(path, **options)

    monkeypatch.setattr(os, "lstat", looked)


def wait_for(what: str, condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for what another process does."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, f"no {what} within {seconds:.0f} s"
        time.sleep(0.02)


def tree(root: Path) -> dict[str, object]:
    """Every path below root with its mode and content."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        content: object = None
        with contextlib.suppress(OSError):
            content = (
                os.readlink(path)
                if path.is_symlink()
                else path.read_bytes()
                if path.is_file()
                else None
            )
        found[str(path.relative_to(root))] = (oct(path.lstat().st_mode), content)
    return found


def plain(node: ycluster.Node) -> object:
    """The value as nested dicts, lists and scalars, without positions."""
    if isinstance(node.value, dict):
        return {key: plain(child) for key, child in node.value.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value
