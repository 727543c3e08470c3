"""What holds a cluster, and what `run` undoes: nothing expires while a command runs, and soon after all goes on."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import signal
import stat
import subprocess
import sys
import termios
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from test_docs import documented, shape
from test_histories import World
from unit_support import (
    IMPORTS,
    NOW,
    Became,
    Cli,
    Clocked,
    Live,
    Memory,
    Processes,
    Ran,
    held,
    made,
    missing,
    refused,
    stand_in,
    told,
)

import ycluster
from ycluster import Clock, Files, Hold, Host, State, YclusterError, replace

HOUR = 3600
MINUTE = 60
NOBODY = 2**22 + 1  # no process has this pid


def hold_of(process: subprocess.Popen[bytes], **fields: Any) -> Hold:
    """A hold of a process that runs, in the first boot of a Clocked host."""
    values = {
        "pid": process.pid,
        "began": ycluster.process_start(process.pid),
        "boot": "boot-1",
        "since": int(NOW),
        "until": None,
        "command": "make test",
        "undo": "hold",
    }
    return Hold(**{**values, **fields})


def holders(host: Host, state: State) -> list[int]:
    """The pids that hold a cluster, as `list` shows them."""
    return [hold["pid"] for hold in ycluster.describe(host, state)["holds"]]


# --- which processes hold


def test_a_process_holds_while_it_runs(host: Clocked, cache: Path, processes: Processes) -> None:
    process = processes.start("")
    state = made(cache, holds=(hold_of(process),))
    assert holders(host, state) == [process.pid]
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert holders(host, state) == [], "a zombie runs no more"
    process.wait()
    assert holders(host, state) == []


@pytest.mark.parametrize(
    "fields",
    [{"began": 1}, {"boot": "boot-0"}, {"until": int(NOW)}, {"pid": NOBODY}, {"pid": NOBODY, "began": 0}],
    ids=["the pid is another's by now", "before a reboot", "for too long", "gone", "gone, and odd"],
)  # fmt: skip
def test_what_is_not_that_process_holds_nothing(
    host: Clocked, cache: Path, processes: Processes, fields: dict[str, Any]
) -> None:
    process = processes.start("")
    state = made(cache, holds=(hold_of(process, **fields), hold_of(process, until=int(NOW) + 1)))
    assert holders(host, state) == [process.pid]


@pytest.mark.parametrize(
    "lifetime, at_most, seconds",
    [
        ({"lifetime": "8h"}, "0s", 8 * HOUR),
        ({"lifetime": "8h"}, "2h", 2 * HOUR),
        ({"lifetime": "8h"}, "20h", 20 * HOUR),
        ({"lifetime": "8h", "run_budget": "1h"}, "0s", HOUR),
        ({"lifetime": "8h", "max_total": "9h"}, "20h", 8 * HOUR),
        ({"lifetime": "8h", "max_total": "9h"}, "0s", 8 * HOUR),
        ({"lifetime": "8h", "max_total": "90m"}, "0s", HOUR / 2),
        ({"lifetime": "", "max_idle": "30m"}, "0s", None),
        ({"lifetime": "", "max_idle": "30m"}, "3h", 3 * HOUR),
        ({"lifetime": ""}, "0s", None),
    ],
)
def test_a_hold_is_for_one_budget_or_as_asked_and_within_max_total(
    lifetime: dict[str, Any], at_most: str, seconds: float | None
) -> None:
    state = State(name="demo", cache_dir="/c", started_at=int(NOW) - HOUR, **lifetime)
    clock = Clock(NOW, NOW - 9 * HOUR, "boot-1")
    until = ycluster.hold_until(state, ycluster.parse_duration(at_most), clock)
    assert until == (None if seconds is None else NOW + seconds)


def test_nothing_is_held_past_max_total() -> None:
    state = State(
        name="demo", cache_dir="/c", lifetime="1h", max_total="2h", started_at=int(NOW) - 2 * HOUR
    )
    with refused(YclusterError, "demo", "lifetime.maxTotal", "2h"):
        ycluster.hold_until(state, 0, Clock(NOW, NOW - 9 * HOUR, "boot-1"))


# --- expiry, and what holds


@pytest.fixture
def working(live: Live, processes: Processes) -> subprocess.Popen[bytes]:
    """A cluster that runs, with a budget of an hour, and the process of a command."""
    live.starts(lifetime="1h", max_idle="", warn="10m")
    return processes.start("")


def hold(live: Live, process: subprocess.Popen[bytes], at_most: str = "9h") -> Hold:
    return held(live.host, live.files, at_most=at_most, pid=process.pid)


def test_nothing_expires_while_it_is_held_and_after_a_warning_soon_after(
    live: Live, working: subprocess.Popen[bytes]
) -> None:
    hold(live, working)
    assert live.fires() == HOUR - 10 * MINUTE  # the warning, as ever
    for looks in range(20):
        assert live.fires() == HOUR + looks * ycluster.HOLD_LOOK
        state = live.state
        assert live.runs and state.expires_at == NOW + HOUR and state.reaped is None
        assert state.retry_at == live.host.time + ycluster.HOLD_LOOK
    working.kill()
    working.wait()
    ended = live.host.time - NOW
    assert live.fires() <= ended + ycluster.HOLD_LOOK and live.runs and live.state.holds == ()
    assert live.fires() <= ended + MINUTE and not live.runs
    events = live.events("started", "armed")
    assert [event["event"] for event in events] == ["held", "warned", "warned", "reaped"]
    assert events[2]["expiresAt"] == events[3]["at"] and events[3]["cause"] == "maxRun"
    assert live.timer.standing == {} and live.state.holds == ()


def test_a_hold_that_ended_before_the_deadline_delays_nothing(
    live: Live, working: subprocess.Popen[bytes]
) -> None:
    hold(live, working)
    live.fires()
    working.kill()
    working.wait()
    assert live.fires() == HOUR and not live.runs
    assert [event["event"] for event in live.events("armed", "started")] == [
        "held",
        "warned",
        "reaped",
    ]


def test_a_hold_ends_when_it_is_to_whatever_becomes_of_its_command(
    live: Live, working: subprocess.Popen[bytes]
) -> None:
    assert hold(live, working, at_most="70m").until == NOW + 70 * MINUTE
    while live.runs:
        live.fires()
    assert 70 * MINUTE < live.host.time - NOW <= 71 * MINUTE and working.poll() is None


def test_the_last_of_several_holds_counts(
    live: Live, working: subprocess.Popen[bytes], processes: Processes
) -> None:
    other = processes.start("")
    hold(live, working)
    hold(live, other)
    assert holders(live.host, live.state) == [working.pid, other.pid]
    while live.fires() <= HOUR:
        pass
    working.kill()
    working.wait()
    for _ in range(5):
        live.fires()
    assert live.runs and [one.pid for one in live.state.holds] == [other.pid]
    other.kill()
    other.wait()
    live.fires()
    live.fires()
    assert not live.runs


def test_a_second_hold_in_the_minute_after_the_first_keeps_it(
    live: Live, working: subprocess.Popen[bytes], processes: Processes
) -> None:
    hold(live, working)
    while live.fires() <= HOUR:
        pass
    working.kill()
    working.wait()
    live.fires()
    assert live.state.holds == () and live.runs
    hold(live, processes.start(""))
    for _ in range(5):
        live.fires()
    assert live.runs


def test_a_held_cluster_can_be_extended_and_stopped(
    live: Live, working: subprocess.Popen[bytes]
) -> None:
    hold(live, working)
    while live.fires() <= HOUR:
        pass
    ycluster.extend(live.host, live.files, ycluster.HowFar(from_now=HOUR * 10**9))
    state = live.state
    assert state.retry_at is None and state.expires_at == int(live.host.time) + HOUR
    assert holders(live.host, state) == [working.pid]
    ycluster.stop(live.host, live.files)
    state = live.state
    assert not live.runs and (state.timers, state.retry_at) == ((), None)
    assert holders(live.host, state) == [working.pid], "what is started again is held by it, too"


@pytest.mark.parametrize("action", ["pause", "teardown"])
def test_no_expiry_of_whatever_kind_comes_while_it_is_held(
    live: Live, processes: Processes, action: str
) -> None:
    live.starts(lifetime="1h", max_idle="", warn="", on_expiry=action)
    process = processes.start("")
    hold(live, process)
    while live.fires() <= HOUR + 5 * MINUTE:
        pass
    assert ycluster.vm_status(live.host, live.files) == "running" and live.files.disk.exists()
    process.kill()
    process.wait()
    live.fires()
    live.fires()
    assert ycluster.vm_status(live.host, live.files) != "running"
    assert live.files.disk.exists() is (action == "pause")


def test_no_lock_that_hangs_ends_what_is_held(live: Live, working: subprocess.Popen[bytes]) -> None:
    """An expiry that gets no lock acts without one, but for a hold."""
    hold(live, working)
    live.host.time += HOUR + 1
    other = Clocked(live.host.home())
    with ycluster.cluster_lock(other, live.files), contextlib.suppress(ycluster.Busy):
        ycluster.reap_in_time(live.host, live.files, by="memory", patience=0.01)
    assert live.runs


def test_a_hold_is_a_use_and_its_end_begins_the_count(live: Live, processes: Processes) -> None:
    """Of maxIdle: from the first look at which it was gone."""
    live.starts()
    process = processes.start("")
    live.fires()
    hold(live, process)
    for _ in range(12):
        live.fires()
    assert live.runs and live.state.idle and live.state.idle.by == "hold"
    process.kill()
    process.wait()
    gone = live.fires()
    while live.runs:
        live.fires()
    assert live.host.time - NOW == gone + 30 * MINUTE


def test_a_hold_arms_nothing_that_was_disarmed(
    live: Live, working: subprocess.Popen[bytes]
) -> None:
    ycluster.disarm(live.host, live.files)
    hold(live, working)
    assert live.state.disarmed and live.timer.standing == {}
    assert holders(live.host, live.state) == [working.pid]


# --- what people see of it


def test_who_holds_is_shown_and_no_password_of_theirs(
    cli: Cli, cache: Path, timer: Memory, processes: Processes
) -> None:
    files, process = Files(cache, "demo"), processes.start("")
    stand_in(processes, files)
    made(cache, lifetime="8h", expires_at=1, started_at=1)
    host = Host({"HOME": os.environ["HOME"]}, ycluster.Output(sys.stdout, sys.stderr))
    one = held(host, files, "curl", "https://me:SECRET@example.org/", "x" * 300, pid=process.pid)
    assert len(one.command) <= 100
    shown = cli("lifetime", "status")
    assert missing(shown.out, "held:", "curl", f"pid {process.pid}") == []
    [facts] = json.loads(cli("lifetime", "status", "-o", "json").out)["holds"]
    assert (facts["pid"], facts["command"]) == (process.pid, one.command)
    assert facts["until"] == ycluster.format_time(one.until or 0)
    listed = cli("list").out
    assert "held" in listed and "OVERDUE" not in listed
    log = (Path(os.environ["HOME"]) / ".local/state/ycluster/events.jsonl").read_text()
    for text in (shown.out, log, files.sidecar.read_text(), shown.err):
        assert "SECRET" not in text
    process.kill()
    process.wait()
    assert "OVERDUE" in cli("list").out and "held:" not in cli("lifetime", "status").out


# --- `lifetime hold`, a process that becomes its command

# The program, on a host that lacks nothing, with a guest that is ready at once.
PROGRAM = """
import ycluster
ycluster.Host.need = ycluster.wait_ready = lambda *args, **options: None
ycluster.run()
"""


class Commands:
    """Runs ycluster as a process in a folder of its own, with a cluster `demo` that runs, and has no limit."""

    def __init__(self, home: Path, cache: Path, processes: Processes) -> None:
        self.home, self.files = home, Files(cache, "demo")
        self.vm = stand_in(processes, self.files)
        made(cache, lifetime="", started_at=1, context="demo")
        self.files.disk.touch()
        self.folder = home / "a folder"
        self.folder.mkdir()
        text = "name: demo\ncontext: demo\nk3s: {install: none}\n"
        (self.folder / "y-cluster-provision.yaml").write_text(text)
        self.environ = {"HOME": str(home), "PATH": os.environ["PATH"], "COLOUR": "blue", **IMPORTS}

    def start(self, *argv: object, program: str = PROGRAM, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program, *map(str, argv)],
            env=self.environ,
            cwd=self.folder,
            text=True,
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )

    def __call__(self, *argv: object, **options: Any) -> Ran:
        with self.start(*argv, stdin=subprocess.DEVNULL, **options) as process:
            out, err = process.communicate(timeout=60)
        return Ran(process.returncode, out, err)

    @property
    def holds(self) -> list[int]:
        """Of what pids there are holds, whether they live or not."""
        return [hold.pid for hold in ycluster.load_state(self.files).holds]


@pytest.fixture
def commands(home: Path, cache: Path, processes: Processes) -> Commands:
    return Commands(home, cache, processes)


HOLD = ("lifetime", "hold", "--name", "demo", "--")
RUN = ("run", "-c", ".", "--")
VERBS = pytest.mark.parametrize("verb", [HOLD, RUN], ids=["hold", "run"])


@VERBS
@pytest.mark.parametrize(
    "command, code",
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["no-such-command"], 127),
        (["/etc/passwd"], 126),
        (["/"], 126),
    ],
    ids=["done", "failed", "missing", "no program", "a folder"],
)
def test_the_status_is_that_of_the_command_or_a_shells(
    commands: Commands, verb: tuple[str, ...], command: list[str], code: int
) -> None:
    ran = commands(*verb, *command)
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert code < 126 or missing(ran.err, "ycluster:", command[0]) == []
    assert "Traceback" not in ran.err


@pytest.mark.parametrize(
    "argv",
    [
        ("lifetime", "hold", "--name", "other", "--", "true"),
        ("lifetime", "hold", "--name", "demo", "--"),
        ("lifetime", "hold", "--at-most", "soon", "--", "true"),
        ("--verbose", "lifetime", "hold", "--name", "other", "--", "true"),
        ("run", "-c", ".", "--"),
        ("run", "--", "true"),
        ("run", "-c", "nowhere", "--", "true"),
        ("run", "-c", ".", "--then", "pause", "--", "true"),
        ("run", "-c", ".", "--max-run", "soon", "--", "true"),
        ("--verbose", "run", "-c", "nowhere", "--", "true"),
    ],
    ids=" ".join,
)
def test_a_failure_of_our_own_is_told_apart(commands: Commands, argv: tuple[str, ...]) -> None:
    """By 125, which `docker run` has for it, too; and it says so."""
    before = ycluster.load_state(commands.files)
    ran = commands(*argv)
    assert (ran.code, ran.out) == (125, "") and ran.err.strip()
    assert ycluster.load_state(commands.files) == before


@VERBS
def test_help_is_no_failure(commands: Commands, verb: tuple[str, ...]) -> None:
    ran = commands(*verb[:-1], "--help")
    assert ran.code == 0 and "usage: ycluster" in ran.out


def test_a_cluster_that_does_not_run_is_not_held(commands: Commands) -> None:
    commands.vm.kill()
    commands.vm.wait()
    told(commands(*HOLD, "touch", "here"), 125, "demo is stopped", "`ycluster start --name demo`")
    assert commands.holds == [] and not (commands.folder / "here").exists()


@VERBS
def test_the_command_has_the_users_environment_folder_input_and_umask(
    commands: Commands, verb: tuple[str, ...]
) -> None:
    """Not those that we give to programs of our own; and nothing of ours is on stdout."""
    script = 'pwd; umask; echo "$COLOUR $PATH"; cat; touch made'
    with commands.start(*verb, "sh", "-c", script, stdin=subprocess.PIPE, umask=0o027) as process:
        out, _ = process.communicate("what was typed\n", timeout=60)
    pwd, umask, environ, typed = out.splitlines()
    assert (pwd, int(umask, 8), typed) == (str(commands.folder), 0o027, "what was typed")
    assert environ == f"blue {os.environ['PATH']}"
    assert stat.S_IMODE((commands.folder / "made").stat().st_mode) == 0o640
    assert stat.S_IMODE(commands.files.sidecar.stat().st_mode) == 0o600


@VERBS
def test_the_command_has_the_signals_and_descriptors_that_we_were_given(
    commands: Commands, verb: tuple[str, ...]
) -> None:
    """Neither those that Python ignores nor the Ctrl-Z that we do; SIGHUP is ignored below nohup, and stays so."""
    script = "grep -E '^Sig(Ign|Blk)' /proc/self/status; ls /proc/self/fd"
    with commands.start(
        *verb, "sh", "-c", script, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    ) as process:
        out, err = process.communicate(timeout=60)
    masks = dict(re.findall(r"^Sig(\w+):\s*([0-9a-f]+)$", out, re.MULTILINE))
    assert int(masks["Ign"], 16) == 1 << (signal.SIGHUP - 1) and int(masks["Blk"], 16) == 0, err
    assert re.findall(r"^\d+$", out, re.MULTILINE) == ["0", "1", "2", "3"]  # and what ls reads


WAITS = "import os, signal; print(os.getpid(), flush=True); signal.pause()"


def test_a_holder_is_its_command_and_holds_nothing_once_it_is_killed(commands: Commands) -> None:
    with commands.start(*HOLD, sys.executable, "-c", WAITS) as process:
        assert process.stdout and int(process.stdout.readline()) == process.pid
        assert commands.holds == [process.pid]
        [shown] = json.loads(commands("status", "-o", "json").out)["holds"]
        assert shown["pid"] == process.pid and shown["until"] == ""
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert json.loads(commands("status", "-o", "json").out)["holds"] == []


def test_several_hold_at_once(commands: Commands) -> None:
    with contextlib.ExitStack() as stack:
        some = []
        for _ in range(3):
            process = stack.enter_context(commands.start(*HOLD, sys.executable, "-c", WAITS))
            stack.callback(process.kill)
            assert process.stdout and process.stdout.readline()
            some.append(process)
        assert commands.holds == [process.pid for process in some]
        some[1].kill()
        some[1].wait()
        shown = json.loads(commands("status", "-o", "json").out)["holds"]
        assert [hold["pid"] for hold in shown] == [some[0].pid, some[2].pid]


# --- `run`, whose process goes on


def test_the_command_of_run_is_told_how_to_reach_the_cluster(commands: Commands) -> None:
    names = ("YCLUSTER_NAME", "YCLUSTER_SSH_PORT", "YCLUSTER_SSH", "KUBECONFIG")
    script = "; ".join(f'echo "${{{name}-none}}"' for name in names)
    ran = commands(*RUN, "sh", "-c", script)
    state = ycluster.load_state(commands.files)
    assert ran.out.splitlines() == [
        "demo", str(state.ssh_port), shlex.join(ycluster.ssh_argv(state)), "none",
    ]  # fmt: skip


def test_the_command_of_run_has_the_kubeconfig_of_a_cluster_with_k3s(
    cache: Path,
) -> None:
    forwards = (ycluster.PortForward(host=6443, guest=6443),)
    state = made(cache, k3s={"Version": "v1", "Install": "airgap"}, port_forwards=forwards)
    facts = ycluster._facts_for_commands(state)
    assert facts["KUBECONFIG"] == str(state.files.kubeconfig)


# Tells what signals it gets, until one that ends it; then its status is 10 and how many there were.
LISTENS = """
import os, signal, sys
awaited = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
assert not awaited & signal.pthread_sigmask(signal.SIG_BLOCK, awaited)  # none is lost while this is busy
os.write(1, b"up\\n")
got = []
while signal.SIGTERM not in got and signal.SIGHUP not in got:
    got.append(signal.sigwait(awaited))
    os.write(1, b"%d\\n" % got[-1])
sys.exit(10 + len(got))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_run_reaches_its_command_and_the_clean_up_still_comes(
    commands: Commands, number: signal.Signals
) -> None:
    argv = ("run", "-c", ".", "--then", "stop", "--", sys.executable, "-c", LISTENS)
    with commands.start(*argv) as process:
        assert process.stdout and process.stdout.readline() == "up\n"
        [holder] = commands.holds
        assert holder == process.pid
        process.send_signal(number)
        out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (11, f"{number:d}\n"), err
    assert commands.vm.wait(60) == 0
    assert json.loads(commands("status", "-o", "json").out)["holds"] == []


def takes_terminal() -> None:
    """Make stdin the terminal that controls this process, from which Ctrl-C comes."""
    ioctl(0, termios.TIOCSCTTY, 0)


def test_ctrl_c_reaches_the_command_once(commands: Commands) -> None:
    """By its terminal, which sends it to both."""
    leader, follower = pty.openpty()
    argv = ("run", "-c", ".", "--then", "stop", "--", sys.executable, "-c", LISTENS)
    with commands.start(
        *argv, stdin=follower, start_new_session=True, preexec_fn=takes_terminal
    ) as process:
        try:
            assert process.stdout and process.stdout.readline() == "up\n"
            os.write(leader, b"\x03")
            assert process.stdout.readline() == f"{signal.SIGINT:d}\n"
            process.send_signal(signal.SIGTERM)  # is passed on after what came before
            out, err = process.communicate(timeout=100)
        finally:
            process.kill()
            os.close(leader)
            os.close(follower)
    assert (process.returncode, out) == (12, f"{signal.SIGTERM:d}\n"), err
    assert commands.vm.wait(60) == 0


# --- what `run` undoes


class Runs:
    """`run` in this process, of a cluster whose VM is in memory."""

    def __init__(self, cli: Cli, cache: Path, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.cli, self.files, self.folder, self.world = cli, Files(cache, "demo"), folder, World()
        self.during: list[tuple[str, State]] = []  # what the VM was while the command ran
        self.edit()
        self.world.takes_over(patch)
        patch.setattr(Host, "need", lambda self, programs: None)
        patch.setattr(ycluster, "lost_vms", lambda: ())
        attend = Host.attend

        def attended(host: Host, argv: Any, extra: Any) -> int:
            if self.files.sidecar.exists():
                self.during.append((self.vm, self.state))
            return attend(host, argv, extra)

        patch.setattr(Host, "attend", attended)

    def loses_its_vm(self, patch: pytest.MonkeyPatch) -> None:
        """From now on the VM is killed, or powers itself off, under a command."""
        attend = Host.attend

        def killed(host: Host, argv: Any, extra: Any) -> int:
            del self.world.vms[self.files]
            return attend(host, argv, extra)

        patch.setattr(Host, "attend", killed)

    def edit(self, lifetime: str = "{maxRun: 8h}") -> None:
        text = f"name: demo\ncontext: demo\nk3s: {{install: none}}\nlifetime: {lifetime}\n"
        (self.folder / "y-cluster-provision.yaml").write_text(text)

    def __call__(self, *words: object) -> Ran:
        return self.cli("run", "-c", self.folder, *words)

    def is_brought_to(self, state: str) -> None:
        """It becomes what it is to be before: missing, imported, or as `list` has it."""
        if state == "missing":
            return
        if state == "imported":
            self.files.disk.touch()
            config = ycluster.load_config(self.folder)
            assert isinstance(config, ycluster.QemuConfig)
            one = ycluster.state_from_config(config, self.files.cache_dir)
            ycluster.save_state(replace(one, imported="/an/appliance"))
            return
        assert self.cli("provision", "-c", self.folder).code == 0
        if state == "kept":
            for key in (self.files.ssh_key, self.files.ssh_pub):
                key.write_text("its login")
            assert self.cli("teardown", "demo", "--keep-disk").code == 0
            return
        verb = {"stopped": "stop", "suspended": "suspend", "paused": "pause"}.get(state)
        assert verb is None or self.cli(verb, "--name", "demo").code == 0
        assert self.now == state

    @property
    def state(self) -> State:
        return ycluster.load_state(self.files)

    @property
    def vm(self) -> str:
        return self.world.vms.get(self.files, "stopped")

    @property
    def now(self) -> str:
        """What it is, as `list` has it; `missing` where nothing is left of it."""
        if not self.files.sidecar.exists():
            left = {path.name for path in self.files.cache_dir.glob("demo*")} - {"demo.lock"}
            return f"missing, but for {left}" if left or self.files in self.world.vms else "missing"
        [shown] = json.loads(self.cli("list", "-o", "json").out)["clusters"]
        return str(shown["state"])


@pytest.fixture
def runs(cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(cli, cache, tmp_path, monkeypatch)


BEFORE = ["missing", "imported", "kept", "stopped", "suspended", "paused", "running"]


@pytest.mark.parametrize("script, code", [("true", 0), ("exit 7", 7), ("kill -TERM $$", 143)])
@pytest.mark.parametrize("before", BEFORE)
def test_run_leaves_a_cluster_as_it_found_it(
    runs: Runs, before: str, script: str, code: int
) -> None:
    """One that it made is gone, one that was imported keeps its disk; and its status is the command's."""
    runs.is_brought_to(before)
    work = dict(runs.world.work)
    ran = runs("--", "sh", "-c", script)
    assert (ran.code, ran.out) == (code, ""), ran.err
    [(vm, during)] = runs.during
    assert vm == "running" and [hold.pid for hold in during.holds] == [os.getpid()]
    assert during.expires_at is not None and during.timers
    assert runs.now == ("stopped" if before in ("imported", "kept") else before), ran.err
    assert runs.files.disk.exists() is (before != "missing")
    if before in ("suspended", "paused", "running"):
        assert runs.world.work == work, "what ran in it was lost"
    timers = [one for one in runs.world.timers.values() if one[0] == runs.files]
    assert bool(timers) is (before in ("paused", "running"))


def summary(runs: Runs, *words: object) -> tuple[Ran, dict[str, Any]]:
    """How `run --summary` ends, and what it writes, without what is the same each time."""
    place = runs.folder / "summary.json"
    ran = runs("--summary", place, *words)
    written = json.loads(place.read_text())
    assert written.pop("version") == 1 and written.pop("seconds") >= 0
    assert (written.pop("name"), written.pop("cacheDir")) == ("demo", str(runs.files.cache_dir))
    return ran, written


@pytest.mark.parametrize("before", BEFORE)
def test_what_came_of_a_run_can_be_had_as_json(runs: Runs, before: str) -> None:
    """In a file, as stdout is the command's. (25)"""
    runs.is_brought_to(before)
    (runs.folder / "summary.json").write_text("of an earlier run")
    ran, written = summary(runs, "--", "sh", "-c", "echo hello; exit 7")
    found = {"missing": "absent", "kept": "imported"}.get(before, before)
    assert ran.code == 7 and written == {
        "before": found,
        "state": "stopped" if found == "imported" else found,
        "exitStatus": 7,
        "undone": ycluster._UNDO.get(found, ""),
        "error": "",
    }
    whole = json.loads((runs.folder / "summary.json").read_text())
    assert shape(whole) == shape(documented("ycluster run --summary FILE"))
    _, written = summary(runs, "--then", "leave", "--", "true")
    assert (written["state"], written["undone"]) == ("running", "")


def test_a_run_that_fails_is_summed_up_too(runs: Runs) -> None:
    """(25)"""
    runs.is_brought_to("stopped")
    command = unfit(runs.folder, "#!/no/such/shell")
    ran, written = summary(runs, "--", command)
    assert ran.code == 127 and missing(written.pop("error"), str(command)) == []
    assert written == {
        "before": "stopped",
        "state": "stopped",
        "exitStatus": None,
        "undone": "stop",
    }
    runs.world.stubborn = True
    ran, written = summary(runs, "--", "true")
    assert ran.code == 125 and missing(written["error"], "clean-up", "SIGKILL") == []
    assert (written["state"], written["exitStatus"], written["undone"]) == ("running", 0, "")


@pytest.mark.parametrize("wrong", ["config", "folder", "command"])
def test_a_run_that_has_not_begun_is_summed_up_too(runs: Runs, wrong: str) -> None:
    """A summary of an earlier run would tell of its success. (25)"""
    place = runs.folder / "summary.json"
    place.write_text('{"exitStatus": 0}')
    if wrong == "config":
        runs.folder.joinpath("y-cluster-provision.yaml").write_text("memory: much\n")
    folder = runs.folder / "nowhere" if wrong == "folder" else runs.folder
    words = ["--"] if wrong == "command" else ["--", "true"]
    assert runs.cli("run", "-c", folder, "--summary", place, *words).code == 125
    written = json.loads(place.read_text())
    assert written.keys() == documented("ycluster run --summary FILE").keys()
    assert (written["exitStatus"], written["name"], written["state"]) == (None, "", "")
    assert written["error"]


def test_a_summary_that_can_not_be_written_costs_no_cluster(runs: Runs) -> None:
    """It is opened first. (25)"""
    ran = runs("--summary", runs.folder / "nowhere" / "x", "--", "true")
    assert ran.code == 125 and missing(ran.err, "nowhere/x") == [] and runs.now == "missing"
    assert runs.during == []
    assert runs("--summary", "/dev/full", "--", "sh", "-c", "exit 7").code == 7


@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize(
    "then, after",
    [("stop", "stopped"), ("suspend", "suspended"), ("teardown", "missing"), ("leave", "running")],
)
def test_what_is_asked_for_comes_after_the_command(
    runs: Runs, before: str, then: str, after: str
) -> None:
    runs.is_brought_to(before)
    assert runs("--then", then, "--", "true").code == 0
    assert len(runs.during) == 1 and runs.now == after


def unfit(folder: Path, first_line: str) -> Path:
    """A file that looks like a program, and can't be started as one."""
    path = folder / "unfit"
    path.write_text(first_line)
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("before", ["missing", "stopped"])
@pytest.mark.parametrize("first_line, code", [("#!/no/such/shell", 127), ("rubbish", 126)])
def test_a_command_that_cannot_be_started_undoes_as_much(
    runs: Runs, before: str, first_line: str, code: int
) -> None:
    runs.is_brought_to(before)
    command = unfit(runs.folder, first_line)
    ran = runs("--", command)
    assert ran.code == code and missing(ran.err, str(command)) == [] and runs.now == before
    assert len(runs.during) == 1


@pytest.mark.parametrize("before", ["missing", "stopped"])
@pytest.mark.parametrize(
    "command, code",
    [("no-such-command", 127), ("build", 127), ("./build", 126), ("/etc/passwd", 126)],
)
def test_what_is_no_command_boots_nothing(
    runs: Runs, before: str, command: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A boot takes a minute, and a first one a download, to be told of a typo."""
    runs.is_brought_to(before)
    monkeypatch.chdir(runs.folder)
    Path("build").mkdir()  # no command is looked for here
    ran = runs("--", command)
    assert ran.code == code and missing(ran.err, command) == [] and runs.now == before
    assert runs.during == []


@pytest.mark.parametrize("before", ["missing", "stopped", "suspended"])
def test_a_cluster_that_does_not_start_is_left_as_it_was(runs: Runs, before: str) -> None:
    runs.is_brought_to(before)
    runs.world.broken = True
    ran = runs("--", "touch", runs.folder / "harm")
    assert ran.code == 125 and "QEMU failed" in ran.err and runs.during == []
    assert runs.now == before and not (runs.folder / "harm").exists()


@pytest.mark.parametrize("before", BEFORE)
def test_an_interrupted_start_is_undone(
    runs: Runs, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ctrl-C while the guest boots, say."""
    runs.is_brought_to(before)

    def interrupted(*args: object, **options: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ycluster, "wait_ready", interrupted)
        patch.setattr(ycluster, "set_guest_clock", interrupted)
        ran = runs("--", "true")
    assert ran.code == 130 and runs.during == [], ran.err
    assert runs.now == ("stopped" if before in ("imported", "kept") else before), ran.err


@pytest.mark.parametrize("script, code", [("exit 7", 7), ("true", 125)])
def test_a_clean_up_that_fails_is_told_and_costs_no_status_of_the_commands(
    runs: Runs, script: str, code: int
) -> None:
    runs.is_brought_to("stopped")
    runs.world.stubborn = True
    ran = runs("--", "sh", "-c", script)
    assert ran.code == code and missing(ran.err, "demo", "QEMU is alive after SIGKILL") == []
    assert runs.now == "running" and runs.state.expires_at is not None


@pytest.mark.parametrize("before", ["missing", "stopped", "paused"])
def test_a_cluster_that_another_holds_is_left_to_them(
    runs: Runs, processes: Processes, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs.is_brought_to(before)
    process = processes.start("")
    attend = Host.attend

    def meanwhile(host: Host, argv: Any, extra: Any) -> int:
        boot = host.boot_id()
        state = runs.state
        ycluster.save_state(replace(state, holds=(*state.holds, hold_of(process, boot=boot))))
        return attend(host, argv, extra)

    monkeypatch.setattr(Host, "attend", meanwhile)
    ran = runs("--", "true")
    assert ran.code == 0 and missing(ran.err, "demo", "make test", f"pid {process.pid}") == []
    assert runs.now == "running"
    assert process.pid in [hold.pid for hold in runs.state.holds]
    process.kill()
    process.wait()
    monkeypatch.setattr(Host, "attend", attend)
    assert runs("--then", "stop", "--", "true").code == 0 and runs.now == "stopped"


def test_what_somebody_else_has_made_meanwhile_is_not_torn_down(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two that find no cluster, one makes it; it is not for the other to undo that."""

    def another(*args: object) -> Path:
        monkeypatch.setattr(ycluster, "fetch_image", lambda *args: Path("/image"))
        host = Host({"HOME": os.environ["HOME"]}, ycluster.Output(sys.stdout, sys.stderr))
        ycluster.provision(host, runs.folder)
        return Path("/image")

    monkeypatch.setattr(ycluster, "fetch_image", another)
    ran = runs("--", "true")
    assert ran.code == 125 and runs.during == [], ran.err
    assert runs.now == "running" and runs.files.disk.exists()


@pytest.mark.parametrize("end", ["stop", "teardown"])
def test_a_cluster_that_ends_while_the_command_runs_is_no_failure(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    runs.is_brought_to("stopped")
    attend = Host.attend

    def meanwhile(host: Host, argv: Any, extra: Any) -> int:
        ended = Host({"HOME": os.environ["HOME"]}, ycluster.Output(sys.stdout, sys.stderr))
        getattr(ycluster, end)(ended, runs.files)
        return attend(host, argv, extra)

    monkeypatch.setattr(Host, "attend", meanwhile)
    assert runs("--", "true").code == 0
    assert runs.now == ("stopped" if end == "stop" else "missing")


def test_a_budget_for_the_run_is_that_of_this_run(runs: Runs) -> None:
    runs.is_brought_to("stopped")
    assert runs("--max-run", "50m", "--", "true").code == 0
    [(_, during)] = runs.during
    assert during.max_run == "50m" and during.started_at and during.expires_at
    assert during.expires_at - during.started_at in (3000, 3001)
    [hold] = during.holds
    assert hold.until and hold.until - hold.since in (3000, 3001)


def test_a_run_never_shortens_the_life_of_a_cluster_that_ran_before(runs: Runs) -> None:
    """Somebody else may be at work in it."""
    runs.is_brought_to("running")
    before = runs.state
    ran = runs("--max-run", "50s", "--", "true")
    assert ran.code == 0 and "keeps its deadline" in ran.err
    [(_, during)] = runs.during
    for state in (during, runs.state):
        assert (state.expires_at, state.max_run) == (before.expires_at, before.max_run)
    runs.edit("{maxRun: 50s, maxTotal: 50s}")
    ran = runs("--", "true")
    assert ran.code == 0 and "keeps its deadline" in ran.err
    assert (runs.state.expires_at, runs.state.lifetime) == (before.expires_at, "50s")
    runs.edit("{maxRun: 20h}")
    assert runs("--", "true").code == 0
    assert runs.state.expires_at == (before.started_at or 0) + 20 * 3600


def test_an_expiry_under_the_command_of_a_run_is_told_at_its_end(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds for as long as its budget, and no longer."""
    runs.is_brought_to("stopped")
    attend = Host.attend

    def expires(host: Host, argv: Any, extra: Any) -> int:
        status = attend(host, argv, extra)
        ycluster.save_state(replace(runs.state, expires_at=1, holds=()))
        runs.cli("lifetime", "reap", "--name", "demo")
        return status

    monkeypatch.setattr(Host, "attend", expires)
    ran = runs("--max-run", "50m", "--", "true")
    assert ran.code == 0 and runs.now == "stopped"
    assert "demo was stopped" in ran.err and "while the command ran" in ran.err


@pytest.mark.parametrize("before", ["missing", "stopped", "suspended"])
def test_a_run_tells_that_its_vm_was_killed_under_its_command(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """It said that it had suspended it again; what ran in it was lost. (25)"""
    runs.is_brought_to(before)
    runs.loses_its_vm(monkeypatch)
    ran, written = summary(runs, "--", "true")
    assert "killed" in ran.err and ran.code == (125 if before == "suspended" else 0)
    assert ("killed" in written["error"]) is (before == "suspended")
    assert written["undone"] == ("teardown" if before == "missing" else "")
    assert runs.now == ("missing" if before == "missing" else "stopped")
    if before != "missing":
        assert not runs.state.counts and not runs.state.timers


@pytest.mark.parametrize("before", ["stopped", "suspended"])
def test_a_run_without_a_budget_tells_that_its_vm_was_off_under_its_command(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    """No deadline shows that it was not stopped by a verb; what was to be suspended is lost."""
    runs.edit('{maxRun: "0"}')
    runs.is_brought_to(before)
    runs.loses_its_vm(monkeypatch)
    ran, written = summary(runs, "--", "true")
    assert "stopped, or its VM killed" in ran.err and ran.code == (
        125 if before == "suspended" else 0
    )
    assert bool(written["error"]) is (before == "suspended") and runs.now == "stopped"


@pytest.mark.parametrize("then", ["leave", None])
def test_each_job_can_have_a_cluster_of_its_own_by_one_config(runs: Runs, then: str | None) -> None:
    """The name goes into its files and its context, and the config's own cluster is not touched."""
    runs.is_brought_to("stopped")
    before = runs.state
    runs.files = Files(runs.files.cache_dir, "job-7")
    for _ in range(2):  # the second finds the first's
        asked = ("--then", then) if then else ()
        assert runs("--name", "job-7", *asked, "--", "true").code == 0
    assert len(runs.during) == 2
    for vm, state in runs.during:
        assert (vm, state.name, state.context) == ("running", "job-7", "job-7")
    assert runs.files.sidecar.exists() is (then == "leave")
    assert ycluster.load_state(Files(runs.files.cache_dir, "demo")) == before


def test_what_its_expiry_has_paused_is_not_held_and_its_way_out_is_a_resume(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hold gave it a new deadline, and nobody was told; `start` can't wake it."""

    def become(host: Host, argv: Any) -> None:
        raise Became(argv)

    monkeypatch.setattr(Host, "become", become)  # else it would become the command
    runs.edit("{maxRun: 8h, onExpiry: pause}")
    runs.is_brought_to("running")
    ycluster.save_state(replace(runs.state, expires_at=1))
    assert runs.cli("lifetime", "reap", "--name", "demo").code == 0 and runs.now == "paused"
    before = runs.state
    for argv in (("hold", "demo", "--", "true"), ("extend", "1h", "--name", "demo")):
        refused = runs.cli("lifetime", *argv)
        assert refused.code and "ycluster resume" in refused.err, refused.err
        assert "ycluster start" not in refused.err and runs.state == before


def test_a_start_that_its_own_budget_ends_says_so(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And blames no guest."""
    runs.is_brought_to("stopped")

    def expires(host: Host, state: State, **_: Any) -> None:
        ycluster.save_state(replace(runs.state, expires_at=1))
        runs.cli("lifetime", "reap", "--name", "demo")
        raise ycluster.YclusterError("QEMU ended while booting")

    monkeypatch.setattr(ycluster, "wait_ready", expires)
    failed = runs.cli("start", "demo", "--max-run", "2s")
    assert failed.code == 1 and "QEMU ended" not in failed.err
    assert "by its 2s, while it started" in failed.err and "--max-run" in failed.err


def test_a_provision_under_another_name_shows_that_cluster(runs: Runs) -> None:
    argv = ("provision", "-c", runs.folder, "--name", "job-7")
    shown = json.loads(runs.cli(*argv, "-o", "json").out)
    assert (shown["name"], shown["context"], shown["state"]) == ("job-7", "job-7", "running")
    assert [one.name for one in runs.world.vms] == ["job-7"]


@pytest.mark.parametrize("before", ["stopped", "suspended", "kept"])
def test_a_provision_boots_the_disk_that_is_there_by_the_config_as_it_is_now(
    runs: Runs, before: str
) -> None:
    runs.is_brought_to(before)
    runs.files.disk.write_text("what it holds")
    runs.edit("{maxRun: 2h}")
    ran = runs.cli("provision", "-c", runs.folder, "--max-run", "50m")
    assert ran.code == 0, ran.err
    assert (runs.now, runs.state.lifetime, runs.state.max_run) == ("running", "2h", "50m")
    assert runs.files.disk.read_text() == "what it holds"
    assert before == "kept" or "exists already" in ran.err


def test_a_disk_that_was_kept_stays_whatever_fails(runs: Runs, tmp_path: Path) -> None:
    runs.is_brought_to("kept")
    runs.files.disk.write_text("what it holds")
    (tmp_path / "other.qcow2").write_text("another")
    assert runs.cli("import", tmp_path / "other.qcow2", "-c", runs.folder).code == 1
    runs.world.broken = True
    for _ in range(2):
        assert runs.cli("provision", "-c", runs.folder).code == 1
        assert runs.cli("import", tmp_path / "other.qcow2", "-c", runs.folder).code == 1
        assert runs.files.disk.read_text() == "what it holds"
        assert runs.files.ssh_key.read_text() == "its login"
    runs.world.broken = False
    assert runs.cli("provision", "-c", runs.folder).code == 0 and runs.now == "running"
    assert runs.files.ssh_key.read_text() == "its login"


@pytest.mark.parametrize("what", ["no key", "a link", "of somebody else", "more"])
def test_a_disk_that_nobody_is_known_to_have_kept_is_not_booted(runs: Runs, what: str) -> None:
    """With `cacheDir: .` it may be any file of the user's."""
    runs.is_brought_to("kept")
    if what == "no key":
        runs.files.ssh_key.unlink()
    elif what == "a link":
        runs.files.disk.rename(runs.folder / "theirs.qcow2")
        runs.files.disk.symlink_to(runs.folder / "theirs.qcow2")
    elif what == "more":
        runs.files.console.write_text("?")
    else:
        runs.files.disk.chmod(0o666)
    ran = runs.cli("provision", "-c", runs.folder)
    assert ran.code == 1 and "no cluster claims" in ran.err and not runs.world.vms


STAGED = {
    "imported": ("-f raw -O qcow2 whole.img demo.qcow2", True),
    "elsewhere": ("-f raw -O qcow2 whole.img demo.qcow2", False),
    "an overlay": ("-f raw -O qcow2 -B whole.img -F raw whole.img demo.qcow2", False),
    "raw": ("-f raw -O raw whole.img demo.qcow2", False),
}


@pytest.mark.parametrize("what", STAGED)
def test_a_disk_that_the_siblings_import_staged_is_booted(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """It keeps no record of it; elsewhere than in its folder a disk may be anybody's. (26.7)"""
    argv, is_booted = STAGED[what]
    folder = runs.files.cache_dir
    if what != "elsewhere":
        monkeypatch.setenv("Y_CLUSTER_QEMU_CACHE_DIR", str(folder))
    (folder / "whole.img").write_bytes(b"boot".ljust(510, b"\0") + b"\x55\xaa" + bytes(1 << 20))
    subprocess.run(["qemu-img", "convert", *argv.split()], cwd=folder, check=True)
    staged, place = runs.files.disk.read_bytes(), runs.files.disk.stat().st_ino
    assert runs.cli("import", folder / "whole.img", "-c", runs.folder).code == 1
    runs.world.broken = True
    assert runs.cli("provision", "-c", runs.folder).code == 1
    runs.world.broken = False
    ran = runs("--", "true")
    assert (ran.code == 0) is is_booted, ran.err
    assert bool(runs.during) is is_booted
    assert is_booted or "no cluster claims" in ran.err
    if what == "elsewhere":  # where it takes a word of the user's
        [way_out] = re.findall("`(ycluster import .* -c )DIR`", ran.err)
        assert runs.cli(*shlex.split(way_out)[1:], runs.folder).code == 0
        assert runs("--", "true").code == 0 and runs.during
    assert (runs.files.disk.read_bytes(), runs.files.disk.stat().st_ino) == (staged, place)


def test_run_applies_the_config_and_starts_its_count_anew(runs: Runs) -> None:
    runs.is_brought_to("running")
    runs.edit("{maxRun: 8h, maxIdle: 30m}")
    assert runs("--", "true").code == 0
    [(_, during)] = runs.during
    assert during.max_idle == "30m" and during.idle is not None
    assert runs.state.idle is not None and runs.now == "running"


def test_a_cluster_that_was_made_anew_meanwhile_is_not_torn_down(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its user tore it down, and works in one of the same name."""
    attend = Host.attend

    def meanwhile(host: Host, argv: Any, extra: Any) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(host, "holder", None)
            ycluster.teardown(host, runs.files)
            ycluster.provision(host, runs.folder)
            runs.files.ssh_pub.write_text("each cluster has a login key of its own")
        return attend(host, argv, extra)

    monkeypatch.setattr(Host, "attend", meanwhile)
    ran = runs("--", "true")
    assert ran.code == 0 and "left as it is" in ran.err
    assert runs.now == "running" and runs.files.disk.exists()


def test_of_two_runs_the_last_undoes_what_the_first_did(
    runs: Runs, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first makes the cluster, and ends while the second uses it; which then takes it away."""
    process = processes.start("")
    attend = Host.attend

    def second_is_begun(host: Host, argv: Any, extra: Any) -> int:
        other = replace(hold_of(process, boot=host.boot_id()), undo="")
        state = runs.state
        ycluster.save_state(replace(state, holds=(*state.holds, other)))
        return attend(host, argv, extra)

    with monkeypatch.context() as patch:
        patch.setattr(Host, "attend", second_is_begun)
        assert runs("--", "true").code == 0
    assert runs.now == "running"
    [heir] = runs.state.holds
    assert (heir.pid, heir.undo) == (process.pid, "teardown")

    def as_the_second(host: Host, argv: Any, extra: Any) -> int:
        mine = replace(runs.state.holds[-1], undo=heir.undo)  # as the first has left it
        ycluster.save_state(replace(runs.state, holds=(mine,)))
        return attend(host, argv, extra)

    monkeypatch.setattr(Host, "attend", as_the_second)
    assert runs("--", "true").code == 0
    assert runs.now == "missing"


@pytest.mark.parametrize("before", ["running", "paused"])
def test_a_cluster_that_runs_is_waited_for(
    runs: Runs, before: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be booting for somebody else."""
    runs.is_brought_to(before)
    asked = []
    monkeypatch.setattr(ycluster, "wait_ready", lambda *args, **options: asked.append(options))
    assert runs("--", "true").code == 0
    assert asked


@pytest.mark.parametrize("way", ["running", "stopped"])
def test_a_hold_without_an_end_gets_one_with_the_budget_of_a_start(
    live: Live, processes: Processes, way: str
) -> None:
    """It was taken where there was no budget, and outlived each that came after."""
    live.starts(lifetime="", max_idle="", warn="")
    holder = processes.start("")
    assert held(live.host, live.files, pid=holder.pid).until is None
    if way == "running":
        changed = ycluster.recounted_for_one_run(live.state, "1h", live.host.clock())
        ycluster.save_state(changed)
    else:
        live.processes.started[0].kill()
        live.processes.started[0].wait()
        ycluster.stop(live.host, live.files)
        ycluster._boot(live.host, ycluster.for_one_run(live.state, "1h"))
    [hold] = live.state.holds
    assert hold.until == live.state.expires_at == live.host.time + HOUR


def test_a_run_in_a_cluster_that_its_user_had_paused_leaves_the_deadline_as_it_was(
    runs: Runs,
) -> None:
    """It was paused again with what was left of the run's budget, and then stopped."""
    runs.is_brought_to("paused")
    before = runs.state
    runs.edit("{maxRun: 50s}")
    ran = runs("--max-run", "50s", "--", "true")
    assert ran.code == 0 and "keeps its deadline" in ran.err and runs.now == "paused"
    assert (runs.state.expires_at, runs.state.run_budget) == (before.expires_at, "")
