"""Any history of verbs, clock jumps, crashes and odd timers keeps the promises.

The decisions, the sidecar, the locks and the verbs are real. In memory are the VMs, the timers and the clock, and a crash:
from a chosen effect on nothing has any effect any more, as after a SIGKILL, until the next command starts afresh.
"""

from __future__ import annotations

import contextlib
import functools
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from unit_support import Clocked, tree

import ycluster
from ycluster import (
    BUDGET,
    ArmedTimer,
    Decision,
    End,
    Files,
    Host,
    HowFar,
    Selector,
    State,
    Suspended,
    Vm,
    YclusterError,
    replace,
)

NAMES = ("a", "b")
names = st.sampled_from(NAMES)
crashes = st.one_of(st.none(), st.none(), st.integers(1, 12))


class Crash(BaseException):
    """SIGKILL."""


class Laptop(Clocked):
    """`handed` are the state files of clusters for whose reap a process has been started."""

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.handed: list[Path] = []

    def need(self, programs: Mapping[str, str]) -> None:
        pass

    def spawn(self, argv: Sequence[str], log: Path) -> None:
        assert "reap" in argv and argv[-1] == "next command"
        self.handed.append(Path(argv[list(argv).index("--state") + 1]))


class Monitor:
    """In the place of a connection to QEMU."""

    def __init__(self, world: World, files: Files) -> None:
        self.world = world
        self.files = files

    def execute(self, command: str) -> None:
        self.world.ask_qemu(None, self.files, command)


class World:
    """What is outside of the program: VMs, timers, and when the program dies."""

    def __init__(self) -> None:
        self.vms: dict[Files, str] = {}  # running or paused; others are stopped
        self.work: dict[Files, int] = {}  # what runs in them: by the boot that it came from
        self.boots = 0
        self.still: set[Files] = set()  # those that have executed nothing beside their memory file
        self.timers: dict[str, tuple[Files, int]] = {}  # those that stand
        self.serial = 0
        self.crash_at: int | None = None
        self.effects = 0
        self.stubborn = False  # no VM can be stopped
        self.broken = False  # no VM can be started

    def effect(self) -> None:
        self.effects += 1
        if self.crash_at is not None and self.effects >= self.crash_at:
            raise Crash

    def takes_over(self, patch: pytest.MonkeyPatch) -> None:
        """From now on the program has this one."""
        for attr in ("find_vm", "vm_status", "launch", "stop_vm", "pause_vm", "resume_vm"):
            patch.setattr(ycluster, attr, getattr(self, attr))
        for attr in (
            "standing_still",
            "stands_still",
            "write_memory",
            "launch_from_memory",
            "ask_qemu",
        ):
            patch.setattr(ycluster, attr, getattr(self, attr))
        patch.setattr(ycluster, "_check_room", lambda host, files, vm: None)
        patch.setattr(ycluster, "memory_fits", lambda *known: {})
        patch.setattr(ycluster, "disks_fit", lambda state: {})
        patch.setattr(ycluster, "exited", lambda pidfd, timeout: True)
        patch.setattr(ycluster, "TIMERS", (self,))
        for attr in ("make_keys", "make_seed", "wait_ready", "install_program", "set_guest_clock"):
            patch.setattr(ycluster, attr, lambda *args, **options: None)
        patch.setattr(ycluster, "fetch_image", lambda *args: Path("/image"))
        patch.setattr(ycluster, "make_disk", lambda host, state, image: state.files.disk.touch())
        patch.setattr(ycluster, "_check_ports", lambda host, state: None)

    # --- in the place of QEMU

    @contextlib.contextmanager
    def find_vm(self, host: Host, files: Files) -> Iterator[Vm | None]:
        yield Vm(1, -1) if files in self.vms else None

    def vm_status(self, host: Host, files: Files, **_: float) -> str:
        return self.vms.get(files, "stopped")

    def launch(self, host: Host, state: State) -> State:
        self.effect()
        if self.broken:
            raise YclusterError("QEMU failed")
        assert state.files not in self.vms, "two VMs on one disk"
        assert not state.files.memory.exists(), "a boot of the disk that a memory belongs to"
        self.vms[state.files] = "running"
        self.boots += 1
        self.work[state.files] = self.boots
        state.files.qmp.touch()
        self.effect()
        return replace(state, ran_with="tcg")

    @contextlib.contextmanager
    def standing_still(self, host: Host, state: State, vm: Vm) -> Iterator[Monitor]:
        self.effect()
        files, ran = state.files, self.vms[state.files] == "running"
        self.vms[files] = "paused"
        try:
            yield Monitor(self, files)
        except YclusterError:
            for path in (files.memory, files.memory_part):
                path.unlink(missing_ok=True)
            self.still.discard(files)
            self.vms[files] = "running" if ran else "paused"
            raise

    def stands_still(self, host: Host, files: Files) -> bool:
        return files in self.still

    def write_memory(self, host: Host, state: State, qmp: object) -> Suspended:
        state.files.memory_part.write_text(str(self.work[state.files]))
        self.effect()
        if self.stubborn:
            raise YclusterError("no room")
        state.files.memory_part.replace(state.files.memory)
        self.still.add(state.files)
        self.effect()
        return Suspended(at=int(host.now()), packed="", digest="", fits={})

    def launch_from_memory(self, host: Host, state: State) -> State:
        self.effect()
        if self.broken:
            raise YclusterError("QEMU failed")
        assert state.files not in self.vms, "two VMs on one disk"
        self.vms[state.files] = "paused"
        self.work[state.files] = int(state.files.memory.read_text())
        self.still.add(state.files)
        state.files.qmp.touch()
        self.effect()
        return state

    def ask_qemu(self, host: Host | None, files: Files, command: str) -> None:
        """`quit` ends a VM that stands still, `cont` lets it go on."""
        self.effect()
        if command == "quit":
            assert self.vms[files] == "paused" and files.memory.exists(), "its work is lost"
            del self.vms[files]
        else:
            assert not files.memory.exists(), "it would be run twice"
            self.vms[files] = "running"
        self.still.discard(files)
        self.effect()

    def stop_vm(
        self, host: Host, files: Files, vm: Vm, poweroff: object, may_cut_off: object
    ) -> str:
        self.effect()
        if self.stubborn:
            raise YclusterError("QEMU is alive after SIGKILL")
        del self.vms[files]
        self.effect()
        return "SIGTERM"

    def pause_vm(self, host: Host, files: Files, vm: Vm) -> str:
        self.effect()
        if self.stubborn:
            raise YclusterError("no answer in time")
        self.vms[files] = "paused"
        self.effect()
        return "QMP stop"

    def resume_vm(self, host: Host, files: Files, vm: Vm) -> None:
        self.effect()
        assert not files.memory.exists(), "it would be run twice"
        self.vms[files] = "running"
        self.still.discard(files)

    # --- in the place of systemd

    name = "memory"
    survives: Mapping[str, str] = {}
    launches = stands_watch = False

    def check(self, host: Host) -> None:
        return None

    def arm(self, host: Host, files: Files, deadline: int) -> str:
        self.effect()
        self.serial += 1
        self.timers[str(self.serial)] = (files, deadline)
        self.effect()
        return str(self.serial)

    def armed(self, host: Host, files: Files, timer: ArmedTimer) -> bool:
        return timer.id in self.timers

    def cancel(self, host: Host, files: Files, timer: ArmedTimer) -> None:
        self.effect()
        self.timers.pop(timer.id, None)


decode_state = functools.lru_cache(maxsize=256)(ycluster.decode_state)


def decoded(text: str, path: Path, copy: object = None) -> State:
    """The state in a text, decoded once: each step reads each state often. The sibling, for which there is a copy, is not here."""
    return decode_state(text, path)


class Histories(RuleBasedStateMachine):
    @initialize(
        actions=st.tuples(*[st.sampled_from(sorted(ycluster.ACTIONS))] * 2),
        runs=st.tuples(*[st.sampled_from(["1h", "40s", ""])] * 2),
    )
    def begin(self, actions: tuple[str, str], runs: tuple[str, str]) -> None:
        self.dir = tempfile.TemporaryDirectory()
        self.world, self.host = World(), Laptop(Path(self.dir.name))
        self.cache = self.host.data_home()
        self.files = {name: Files(self.cache, name) for name in NAMES}
        self.killed = False
        self.cut: set[str] = (
            set()
        )  # what ran in it is gone: its VM has ended by itself, or a `discard` was cut off
        self.unguarded: set[str] = (
            set()
        )  # whose timer may be gone: it was lost, or its reap was killed
        self.told: set[tuple[str, int]] = set()  # of which deadline they have been warned
        for name, action, run in zip(NAMES, actions, runs):
            self.config(name).mkdir()
            lifetime = (
                f"{{maxRun: '{run}', onExpiry: {action}, warn: {'15s' if run == '40s' else '10m'}}}"
            )
            text = f"name: {name}\ncontext: {name}\nk3s: {{install: none}}\nlifetime: {lifetime}\n"
            (self.config(name) / "y-cluster-provision.yaml").write_text(text)
        self.patch = pytest.MonkeyPatch()
        self.world.takes_over(self.patch)
        for attr in ("save_state", "remove"):
            self.patch.setattr(ycluster, attr, self.fatal(getattr(ycluster, attr)))
        self.patch.setattr(ycluster, "_warn", self.warned)
        self.patch.setattr("ycluster.os.fsync", lambda fd: None)
        self.patch.setattr(ycluster, "decode_state", decoded)
        self.patch.setattr(ycluster, "lost_vms", lambda: ())  # none of the world's is in /proc
        ycluster.provision(self.host, self.config("a"))

    def teardown(self) -> None:
        if hasattr(self, "patch"):
            self.patch.undo()
            self.dir.cleanup()

    def config(self, name: str) -> Path:
        return Path(self.dir.name) / name

    def warned(self, host: Host, state: State, decision: Decision) -> None:
        assert decision.do == "warn" and decision.end == End(state.expires_at or 0, BUDGET)
        assert (
            state.expires_at is not None and host.now() < state.expires_at and not state.disarmed
        ), "warned of nothing"
        assert (state.name, state.expires_at) not in self.told, "warned twice of one deadline"
        assert ycluster.load_state(state.files).warned == state.expires_at, (
            "what is not saved is told again"
        )
        assert not ycluster.flock_held(state.files.lock), "whoever is warned may want to extend"
        self.told.add((state.name, state.expires_at))

    def fatal(self, real: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def wrapped(argument: Any) -> Any:
            self.world.effect()
            result = real(argument)
            self.world.effect()
            return result

        return wrapped

    def states(self) -> dict[str, State]:
        """What the sidecars say, by the clock of now. That the program can read them is an invariant."""
        clock = self.host.clock()
        return {
            name: ycluster.adjusted(decoded(files.sidecar.read_text(), files.sidecar), clock)
            for name, files in self.files.items()
            if files.sidecar.exists()
        }

    def command(self, verb: Callable[[], object], crash: int | None = None, halts: str = "") -> str:
        """Run a verb; returns how it ended: done, failed or killed. Only the cluster that it `halts` may halt undue."""
        before, ran = self.states(), dict(self.world.vms)
        disks = {
            name for name, files in self.files.items() if files.disk.exists() and name != halts
        }
        self.world.effects, self.world.crash_at = 0, crash
        try:
            verb()
            end = "done"
        except YclusterError:
            end = "failed"
        except Crash:
            end, self.killed = "killed", True
        self.world.crash_at = None
        self.the_processes_that_were_started_run()
        for name, files in self.files.items():
            if (
                ran.get(files) == "running"
                and self.world.vms.get(files) != "running"
                and name != halts
            ):
                deadline = before[name].expires_at
                assert deadline is not None and deadline <= self.host.now(), (
                    f"{name} was reaped before its deadline"
                )
                assert not before[name].disarmed, f"{name} was reaped though it is disarmed"
        for name in disks:
            if not self.files[name].disk.exists():
                assert before[name].on_expiry == "teardown", f"the disk of {name} is lost"
                assert before[name].boot_id == self.host.boot_id(), (
                    f"{name} was torn down by a clock nobody can check"
                )
        return end

    def the_processes_that_were_started_run(self) -> None:
        """Whatever has become of the command that started them."""
        while self.host.handed:
            sidecar = self.host.handed.pop()
            with contextlib.suppress(YclusterError):
                ycluster.reap(self.host, Files(sidecar.parent, sidecar.stem), by="next command")

    def overdue(self, *, patient: bool = True) -> list[str]:
        """Clusters that run past their deadline; a `patient` look leaves out those whose second try is yet to come."""
        late = {
            name: state
            for name, state in self.states().items()
            if ycluster.decide(state, self.host.clock()).do in ycluster.ACTIONS
        }
        waits = {
            name
            for name, state in late.items()
            if patient and (state.retry_at or 0) > self.host.now()
        }
        return [
            name
            for name in late
            if name not in waits and self.world.vms.get(self.files[name]) == "running"
        ]

    # --- verbs

    @rule(name=names, crash=crashes)
    def provision(self, name: str, crash: int | None) -> None:
        known = self.states().get(name)
        never_ran = (
            known is not None and known.started_at is None
        )  # half made by a provision that was killed
        fresh = (
            name if never_ran or not self.files[name].disk.exists() else ""
        )  # what it makes it may take away again
        if (
            self.command(
                lambda: ycluster.provision(self.host, self.config(name)), crash, halts=fresh
            )
            == "done"
        ):
            self.guarded(name)
            assert self.overdue() == [] or self.world.stubborn

    @rule(name=names, crash=crashes, verb=st.sampled_from(["start", "resume"]))
    def wake(self, name: str, crash: int | None, verb: str) -> None:
        files, before = self.files[name], self.states().get(name)
        stopped = files not in self.world.vms and files.disk.exists()
        suspended = stopped and before is not None and before.suspended is not None
        suspended = suspended and name not in self.cut
        kept = files.memory.read_text() if suspended else ""
        end = self.command(
            lambda: getattr(ycluster, verb)(self.host, Selector(name=name)),
            crash,
        )
        if end == "done":
            assert set(self.overdue()) <= {name} or self.world.stubborn, (
                "the others are swept first"
            )
        if end == "done" and verb == "start" and stopped:
            self.guarded(name)
        if suspended:
            self.goes_on(name, end, kept)
        if end == "failed" and verb == "start" and stopped and name in self.states():
            assert self.states()[name].expires_at is None, (
                "a guest that didn't come to run leaves a deadline behind"
            )

    def goes_on(self, name: str, end: str, kept: str) -> None:
        """What ran when it was suspended is there, in memory or in the file, whatever became of the verb."""
        files = self.files[name]
        if end == "done":
            assert self.world.vms[files] == "running" and not files.memory.exists()
            assert self.states()[name].suspended is None
            self.guarded(name)
        now = files.memory.read_text() if files.memory.exists() else str(self.world.work[files])
        assert now == kept and (files.memory.exists() or files in self.world.vms)

    @rule(name=names, crash=crashes)
    def discard(self, name: str, crash: int | None) -> None:
        """The only verb but teardown that a memory is lost by."""
        files = self.files[name]
        end = self.command(
            lambda: ycluster.stop(
                self.host,
                ycluster.find_cluster(self.host, Selector(name=name)),
                discard_memory=True,
            ),
            crash,
            halts=name,
        )
        assert end != "done" or (
            not files.memory.exists() and self.states()[name].suspended is None
        )
        if end != "done" and not files.memory.exists():
            self.cut.add(name)

    @rule(name=names, crash=crashes, verb=st.sampled_from(["pause", "suspend", "stop"]))
    def halt(self, name: str, crash: int | None, verb: str) -> None:
        end = self.command(
            lambda: getattr(ycluster, verb)(
                self.host, ycluster.find_cluster(self.host, Selector(name=name))
            ),
            crash,
            halts=name,
        )
        if end == "done" and verb != "pause" and name not in self.cut:
            assert (self.states()[name].suspended is not None) is (verb == "suspend")
            assert self.files[name].memory.exists() is (verb == "suspend")
            assert self.files[name] not in self.world.vms and self.states()[name].expires_at is None
            left = [owner for owner, _ in self.world.timers.values() if owner == self.files[name]]
            assert not left or self.killed, (
                "only a crash may leave a timer behind, which then finds nothing to reap"
            )

    @rule(name=names, crash=crashes, verb=st.sampled_from(["arm", "disarm"]))
    def guard(self, name: str, crash: int | None, verb: str) -> None:
        ran, which = dict(self.world.vms), Selector(name=name)
        verbs: dict[str, Callable[[], object]] = {
            "arm": lambda: ycluster.arm(self.host, which),
            "disarm": lambda: ycluster.disarm(self.host, ycluster.find_cluster(self.host, which)),
        }
        if self.command(verbs[verb], crash) == "done":
            self.guarded(name)
        assert self.world.vms == ran

    @rule(
        name=names,
        crash=crashes,
        verb=st.sampled_from(["start", "resume", "arm"]),
        run=st.sampled_from(["1h", "40s", ""]),
    )
    def the_config_is_edited_and_applied(
        self, name: str, crash: int | None, verb: str, run: str
    ) -> None:
        """(20.14)"""
        config = self.config(name) / "y-cluster-provision.yaml"
        config.write_text(re.sub(r"maxRun: '.*?'", f"maxRun: '{run}'", config.read_text()))
        by_config = Selector(config=self.config(name))
        before = self.states().get(name)
        end = self.command(lambda: getattr(ycluster, verb)(self.host, by_config), crash)
        if end == "killed" and before and before.expires_at is None:
            self.unguarded.add(name)  # its first deadline is saved: the next command arms a timer
        if end != "done":
            return
        state = self.states()[name]
        assert state.lifetime == run and (state.expires_at is not None or not run)
        self.guarded(name)

    @rule(name=names, crash=crashes, more=st.sampled_from(["1s", "90s", "2h"]))
    def extend(self, name: str, crash: int | None, more: str) -> None:
        before, ran = self.states().get(name), dict(self.world.vms)
        end = self.command(
            lambda: ycluster.extend(
                self.host,
                ycluster.find_cluster(self.host, Selector(name=name)),
                HowFar(by=ycluster.parse_duration(more)),
            ),
            crash,
        )
        if before is not None and before.expires_at is not None:
            after = self.states()[name].expires_at
            assert after is not None and (
                after > before.expires_at if end == "done" else after >= before.expires_at
            )
            assert end != "done" or after > self.host.now()
        assert self.world.vms == ran, "extend comes before any reap"
        if end == "done":
            self.guarded(name)

    @rule(name=names, crash=crashes, keep_disk=st.booleans())
    def tear_down(self, name: str, crash: int | None, keep_disk: bool) -> None:
        files = self.files[name]
        self.command(
            lambda: ycluster.teardown(self.host, files, keep_disk=keep_disk), crash, halts=name
        )
        self.world.stubborn = False
        for _ in range(2):  # whatever is left of the first time
            assert self.command(lambda: ycluster.teardown(self.host, files), halts=name) == "done"
        left = (
            {path.name for path in self.cache.glob(f"{name}[.-]*")} - {f"{name}.lock"}
            if self.cache.exists()
            else set()
        )
        assert self.files[name] not in self.world.vms
        assert left <= ({f"{name}.qcow2"} if keep_disk else set()), (
            "an empty lock file is all that a crash may leave"
        )
        self.files[name].disk.unlink() if left else None
        self.unguarded.discard(name)

    @rule(name=names, verb=st.sampled_from(["provision", "reap", "sweep", "stop", "teardown"]))
    def others_can_write_to_the_folder_for_a_while(self, name: str, verb: str) -> None:
        """What is in it is neither believed nor changed meanwhile. (21.3.1)"""
        if not self.cache.exists():
            return
        files = self.files[name]
        verbs: dict[str, Callable[[], object]] = {
            "provision": lambda: ycluster.provision(self.host, self.config(name)),
            "reap": lambda: ycluster.reap(self.host, files, by="memory"),
            "sweep": lambda: ycluster.sweep(self.host, by="hand", every=True),
            "stop": lambda: ycluster.stop(self.host, files),
            "teardown": lambda: ycluster.teardown(self.host, files),
        }
        self.cache.chmod(0o777)
        before, ran, timers = tree(self.cache), dict(self.world.vms), dict(self.world.timers)
        with contextlib.suppress(YclusterError):
            verbs[verb]()
        after = tree(self.cache)
        self.cache.chmod(0o700)
        assert (after, self.world.vms, self.world.timers) == (before, ran, timers)

    # --- expiry

    @rule(name=names, crash=crashes)
    def reap(self, name: str, crash: int | None) -> None:
        self.reaping(name, crash)

    @rule(data=st.data(), crash=crashes)
    def a_timer_fires_whenever_it_likes(self, data: st.DataObject, crash: int | None) -> None:
        if self.world.timers:
            ident = data.draw(st.sampled_from(sorted(self.world.timers)))
            files, _ = self.world.timers.pop(ident)
            self.reaping(files.name, crash)

    @rule(name=names)
    def a_stale_timer_fires_twice(self, name: str) -> None:
        self.reaping(name, None)
        once = self.states()
        self.reaping(name, None)
        timeless = [
            {key: replace(state, timers=()) for key, state in states.items()}
            for states in (once, self.states())
        ]
        assert self.world.stubborn or timeless[0] == timeless[1]

    def reaping(self, name: str, crash: int | None) -> None:
        end = self.command(lambda: ycluster.reap(self.host, self.files[name], by="memory"), crash)
        if end == "killed":
            self.unguarded.add(name)
        elif name not in self.overdue(patient=False):
            self.guarded(name)
        else:
            state = self.states()[name]
            assert end == "failed" and self.world.stubborn and state.timer
            assert self.host.now() < state.timer.deadline + 1 <= self.host.now() + 902, (
                "a failed reap is tried again soon"
            )
            self.guarded(name)

    @rule(name=names, late=st.sampled_from([-1, 0, 5]), reaps=st.booleans())
    def the_deadline_comes(self, name: str, late: int, reaps: bool) -> None:
        state = self.states().get(name)
        if state is not None and state.expires_at is not None:
            self.host.time = float(state.expires_at + late)
            due = ycluster.time_of(state, "warning") <= self.host.now() < state.expires_at
            self.reaping(name, None) if reaps else self.sweep()
            assert not due or (name, state.expires_at) in self.told

    @rule()
    def sweep(self) -> None:
        self.command(lambda: ycluster.hand_over(self.host, spare=Files(self.cache, "nobody's")))
        assert self.overdue() == [] or self.world.stubborn
        for name in self.states():  # a timer that got lost is armed again
            self.guarded(name)

    @rule()
    def reap_all(self) -> None:
        end = self.command(lambda: ycluster.reap_now(self.host, ycluster.EVERY, "hand", 0))
        assert self.overdue(patient=False) == [] or (self.world.stubborn and end == "failed")
        for name in self.states():
            self.guarded(name)

    # --- the world

    @rule(seconds=st.sampled_from([0.3, 29.0, 41.0, 3600.0, 100_000.0]))
    def time_passes(self, seconds: float) -> None:
        self.host.time += seconds

    @rule(seconds=st.sampled_from([-100_000.0, -3000.0, -1.5, 1.5, 3000.0, 100_000.0, 1e9]))
    def the_clock_is_set(self, seconds: float) -> None:
        """No cluster's time gets longer or shorter by it, unless the host has been rebooted, after which nobody knows."""
        before = self.time_left()
        self.host.set_clock(max(seconds, 1e6 - self.host.time))
        for name, left in self.time_left().items():
            assert abs(left - before[name]) < ycluster.CLOCK_STEP + 2, (
                f"the time of {name} has changed by {seconds}"
            )

    def time_left(self) -> dict[str, float]:
        """Seconds to the deadlines that were set in this boot of the host."""
        return {
            name: state.expires_at - self.host.now()
            for name, state in self.states().items()
            if state.expires_at is not None and state.boot_id == self.host.boot_id()
        }

    @rule(keeps_timers=st.booleans())
    def the_host_is_rebooted(self, keeps_timers: bool) -> None:
        self.host.reboot()
        for name in NAMES:
            self.the_vm_ends_by_itself(name)
        if not keeps_timers:
            self.unguarded |= {files.name for files, _ in self.world.timers.values()}
            self.world.timers.clear()

    @rule(stubborn=st.booleans(), broken=st.booleans())
    def qemu_has_moods(self, stubborn: bool, broken: bool) -> None:
        self.world.stubborn, self.world.broken = stubborn, broken

    @precondition(lambda self: self.world.timers)
    @rule(data=st.data())
    def a_timer_is_lost(self, data: st.DataObject) -> None:
        files, _ = self.world.timers.pop(data.draw(st.sampled_from(sorted(self.world.timers))))
        self.unguarded.add(files.name)

    @rule(name=names)
    def the_vm_ends_by_itself(self, name: str) -> None:
        """One that was about to go on, its memory file already removed, is gone as by any power cut."""
        files = self.files[name]
        self.world.still.discard(files)
        if self.world.vms.pop(files, None) == "paused" and not files.memory.exists():
            self.cut.add(name)

    # --- what always holds

    def guarded(self, name: str) -> None:
        """A command that is done leaves a timer behind wherever a deadline counts."""
        self.unguarded.discard(name)
        state = self.states().get(name)
        if state and state.expires_at is not None and not state.disarmed:
            assert ycluster.is_armed(self.host, state), f"{name} has a deadline and no timer"
            assert state.timer and state.timer.deadline >= state.expires_at, (
                f"the timer of {name} is of an older deadline"
            )

    @invariant()
    def every_sidecar_can_be_read(self) -> None:
        if hasattr(self, "cache") and self.cache.exists():
            found = {path.stem: Files(self.cache, path.stem) for path in self.cache.glob("*.json")}
            read = {name: ycluster.current(self.host, files) for name, files in found.items()}
            assert read == self.states()
            assert not list(self.cache.glob(".*.tmp"))

    @invariant()
    def no_memory_is_loaded_twice_or_lost(self) -> None:
        if hasattr(self, "world"):
            for name, state in self.states().items():
                files = self.files[name]
                runs = self.world.vms.get(files) == "running"
                assert not runs or not files.memory.exists(), "the memory of a guest that runs"
                if state.suspended is None:
                    self.cut.discard(name)
                elif name not in self.cut:
                    assert files.memory.exists() or files in self.world.vms, "its memory is lost"

    @invariant()
    def no_vm_runs_without_its_deadline_and_a_timer(self) -> None:
        if not hasattr(self, "world"):
            return
        states = self.states()
        for name, files in self.files.items():
            if files not in self.world.vms:
                continue
            assert name in states, f"a VM of {name} is there, and no sidecar knows it"
            state = states[name]
            if (
                self.world.vms[files] == "running"
                and ycluster.budget(state.lifetime)
                and not state.disarmed
            ):
                assert state.expires_at is not None, f"{name} runs with a budget and no deadline"
                standing = [
                    deadline for owner, deadline in self.world.timers.values() if owner == files
                ]
                assert standing or name in self.unguarded, f"no timer of {name} will ever fire"


def short(rule: stateful.Rule) -> str:
    """Hypothesis wants the text of every rule at each step, and makes it of deep copies."""
    return f"Rule({rule.function.__name__})"


stateful.Rule.__repr__ = short  # type: ignore[method-assign]


class MoreHistories(Histories):
    """Others: each test has the same time, however slow the machine is."""


class YetMoreHistories(Histories):
    """And others."""


for some in (Histories, MoreHistories, YetMoreHistories):
    some.TestCase.settings = settings(
        max_examples=settings().max_examples // 2, stateful_step_count=40, deadline=None
    )
TestHistories = Histories.TestCase
TestMoreHistories = MoreHistories.TestCase
TestYetMoreHistories = YetMoreHistories.TestCase


Step = Callable[[Histories], object]


@pytest.mark.parametrize(
    "action, steps",
    [
        ("pause", [lambda h: h.the_deadline_comes("a", 0, True), lambda h: h.wake("a", None, "resume")]),
        ("stop", [lambda h: h.the_deadline_comes("a", 0, True), lambda h: h.wake("a", None, "start")]),
        ("stop", [lambda h: h.qemu_has_moods(True, False), lambda h: h.the_deadline_comes("a", 5, True)]),
        ("stop", [lambda h: h.time_passes(100_000.0), lambda h: h.extend("a", None, "2h")]),
        ("stop", [lambda h: h.halt("a", None, "stop"), lambda h: h.qemu_has_moods(False, True), lambda h: h.wake("a", None, "start")]),
        ("teardown", [lambda h: h.guard("a", None, "disarm"), lambda h: h.time_passes(1e5), lambda h: h.reap("a", None)]),
        ("teardown", [lambda h: h.the_host_is_rebooted(True), lambda h: h.the_deadline_comes("a", 5, True)]),
        ("teardown", [lambda h: h.the_clock_is_set(1e5), lambda h: h.reap("a", None), lambda h: h.time_passes(3600.0), lambda h: h.reap("a", None)]),
        ("suspend", [lambda h: h.the_deadline_comes("a", 0, True), lambda h: h.wake("a", None, "start")]),
        ("suspend", [lambda h: h.qemu_has_moods(True, False), lambda h: h.the_deadline_comes("a", 5, True)]),
        ("stop", [step for n in range(1, 20) for step in (lambda h, n=n: h.halt("a", n, "suspend"), lambda h: h.wake("a", None, "resume"))]),
        ("stop", [step for n in range(1, 20) for step in (lambda h: h.halt("a", None, "suspend"), lambda h, n=n: h.wake("a", n, "start"), lambda h: h.wake("a", None, "resume"))]),
        ("stop", [step for n in range(1, 12) for step in (lambda h: h.halt("a", None, "stop"), lambda h, n=n: h.wake("a", n, "start"))]),
    ],
    ids=["resumed after its expiry", "started again", "won't stop", "extended late", "won't start", "disarmed", "rebooted", "clock set", "suspended", "can't be suspended", "killed in a suspend", "killed in a start from it", "killed anywhere"],
)  # fmt: skip
def test_histories_that_must_be_among_them(action: str, steps: list[Step]) -> None:
    """Chance finds these too, but not in every run."""
    history = Histories()
    history.begin(actions=(action, "stop"), runs=("1h", ""))
    try:
        for step in steps:
            step(history)
            history.every_sidecar_can_be_read()
            history.no_memory_is_loaded_twice_or_lost()
            history.no_vm_runs_without_its_deadline_and_a_timer()
    finally:
        history.teardown()
