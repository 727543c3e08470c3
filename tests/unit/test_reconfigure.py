"""A config that was edited after its cluster was made: what `start -c`, `resume -c` and `lifetime arm -c` apply."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from unit_support import NOW, Cli, Memory, Processes, Ran, missing, told, wait_for

import ycluster
from ycluster import ArmedTimer, Clock, Files, Hold, Host, PortForward, QemuConfig, State, replace

HOUR = 3600
CLOCK = Clock(NOW, NOW - 9 * HOUR, "boot-1")
BASE = {
    "name": "demo",
    "memory": 4096,
    "cpus": 2,
    "sshPort": 2222,
    "portForwards": [{"host": 8080, "guest": 80}],
    "k3s": {"install": "none"},
    "lifetime": {"maxRun": "8h"},
}


def text(**edits: Any) -> str:
    """The config with edits: a key is changed, or left out where it is None."""
    keys = {key: value for key, value in {**BASE, **edits}.items() if value is not None}
    return ycluster.to_json(keys)


def config(**edits: Any) -> QemuConfig:
    read = ycluster.read_config(text(**edits), Path("/conf/y-cluster-provision.json"))
    assert isinstance(read, QemuConfig)
    return read


def cluster(began: Any = None, **fields: Any) -> State:
    """One that was made by a config, an hour ago, and has run since."""
    state = ycluster.state_from_config(config(**(began or {})), Path("/c"))
    times = {"started_at": int(NOW) - HOUR, "expires_at": int(NOW) + 7 * HOUR}
    return replace(state, boot_id="boot-1", ran_with="tcg", **{**times, **fields})


def reconfigured(state: State, *, runs: bool, **edits: Any) -> tuple[State, str]:
    changed, lines = ycluster.reconfigured(state, config(**edits), CLOCK, runs=runs)
    return changed, "\n".join(lines)


# --- the decision


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(
    "edits",
    [
        {},
        {"sshPort": 0, "portForwards": [{"guest": 80}]},
        {"k3s": None, "portForwards": None},
        {"lifetime": None},
        {"dataDisk": "data.qcow2", "image": "/i.qcow2", "accel": "tcg", "sshUser": "me"},
    ],
    ids=str,
)
def test_a_config_that_was_not_edited_changes_nothing(edits: dict[str, Any], runs: bool) -> None:
    """Nor do the ports that QEMU has chosen, or a deadline that was extended. (20.14)"""
    state = cluster(edits, expires_at=int(NOW) + 99 * HOUR)
    if state.auto_ports:
        chosen = (PortForward(host=40001, guest=80),)
        state = replace(state, ssh_port=40000, port_forwards=chosen)
    assert reconfigured(state, runs=runs, **edits) == (state, "")
    assert ycluster.reconfigured(state, None, CLOCK, runs=runs) == (state, [])


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(
    "lifetime, field, value, says",
    [
        ({"maxRun": "8h", "onExpiry": "pause"}, "on_expiry", "pause", "lifetime.onExpiry: stop -> pause"),
        ({"maxRun": "8h", "warn": "5m"}, "warn", "5m", "lifetime.warn: 10m -> 5m"),
        ({"maxRun": "8h", "onWarn": "true SECRET"}, "on_warn", "true SECRET", "lifetime.onWarn: changed"),
        ({"maxRun": "8h", "maxTotal": "9h"}, "max_total", "9h", "lifetime.maxTotal: none -> 9h"),
        ({"maxRun": "4h"}, "lifetime", "4h", "lifetime.maxRun: 8h -> 4h"),
        ({"maxRun": "8h", "maxIdle": "30m"}, "max_idle", "30m", "lifetime.maxIdle: none -> 30m"),
        ({"maxRun": "8h", "idleCpu": 50}, "idle_cpu", 50, "lifetime.idleCpu: 25 -> 50"),
    ],
)  # fmt: skip
def test_the_lifetime_is_applied_at_once(
    lifetime: dict[str, Any], field: str, value: object, says: str, runs: bool
) -> None:
    """(20.14)"""
    changed, said = reconfigured(cluster(), runs=runs, lifetime=lifetime)
    assert getattr(changed, field) == value and says in said.splitlines()
    assert (
        len(said.splitlines()) == 1 + (runs and field in ("lifetime", "max_idle"))
        and "SECRET" not in said
    )


MACHINE = [
    ({"memory": 8192}, {"memory": "8192"}, "memory: 4096 -> 8192"),
    ({"cpus": 4}, {"cpus": "4"}, "cpus: 2 -> 4"),
    ({"sshPort": 2200}, {"ssh_port": 2200}, "sshPort: 2222:22 -> 2200:22"),
    ({"sshPort": 0}, {"ssh_port": 0, "auto_ports": (22,)}, "sshPort: 2222:22 -> any:22"),
    ({"portForwards": []}, {"port_forwards": ()}, "portForwards: 8080:80 -> none"),
    ({"portForwards": [{"host": 81, "guest": 80}]}, {"port_forwards": (PortForward(host=81, guest=80),)}, "portForwards: 8080:80 -> 81:80"),
    ({"network": {"bindAddress": "0.0.0.0"}}, {"bind_address": "0.0.0.0"}, "network.bindAddress: 127.0.0.1 -> 0.0.0.0"),
    ({"accel": "tcg"}, {"accel": "tcg"}, "accel: auto -> tcg"),
    ({"cpuModel": "qemu64"}, {"cpu_model": "qemu64"}, "cpuModel: none -> qemu64"),
]  # fmt: skip


@pytest.mark.parametrize("edits, fields, says", MACHINE, ids=[row[2] for row in MACHINE])
def test_the_machine_is_changed_at_a_start_and_not_below_a_running_guest(
    edits: dict[str, Any], fields: dict[str, Any], says: str
) -> None:
    """(20.14)"""
    state = cluster()
    assert reconfigured(state, runs=False, **edits) == (replace(state, **fields), says)
    assert reconfigured(state, runs=True, **edits) == (state, f"{says} takes a stop and a start")


def test_a_port_that_qemu_chose_gives_way_to_one_that_the_config_names() -> None:
    """(20.14)"""
    state = cluster({"sshPort": 0}, ssh_port=40000)
    changed, said = reconfigured(state, runs=False)
    assert (changed.ssh_port, changed.auto_ports, said) == (2222, (), "sshPort: any:22 -> 2222:22")


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(
    "edits, says",
    [
        ({"diskSize": "40G"}, "diskSize: 20G -> 40G"),
        ({"context": "work"}, "context: local -> work"),
        ({"sshUser": "me"}, "sshUser: ystack -> me"),
        ({"dataDisk": "/d.qcow2"}, "dataDisk: none -> /d.qcow2"),
        ({"image": "https://me:SECRET@example/i.img"}, "image: changed"),
        ({"k3s": {"install": "script"}, "portForwards": None}, "k3s.install: none -> script"),
    ],
)
def test_what_belongs_to_the_disk_is_named_and_not_applied(
    edits: dict[str, Any], says: str, runs: bool
) -> None:
    """With the warning that its way costs the disk. (20.14)"""
    changed, said = reconfigured(cluster(), runs=runs, **edits)
    [line] = [line for line in said.splitlines() if says in line]
    assert missing(line, "teardown", "removes the disk", "provision") == [] and "SECRET" not in said
    for attr in ("disk_size", "context", "ssh_user", "data_disk", "image", "k3s"):
        assert getattr(changed, attr) == getattr(cluster(), attr)


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(
    "key, edits",
    [
        ("registries", {"registries": {"mirrors": {"docker.io": {"endpoint": ["https://m"]}}}}),
        ("guest", {"guest": {"proxy": "host"}}),
        ("guest", {"guest": {"userData": "mine"}}),
        ("k3s.args", {"k3s": {"args": ["--debug"]}}),
    ],
)
def test_what_is_in_the_seed_alone_is_named_and_not_applied(
    key: str, edits: dict[str, Any], runs: bool
) -> None:
    """Nothing told, so that one waited for a mirror or a proxy in vain. (26.10)"""
    plain = {"k3s": {}, "portForwards": None}
    for before, after in ((plain, {**plain, **edits}), ({**plain, **edits}, plain)):
        state = cluster(before)
        changed, lines = reconfigured(state, runs=runs, **after)
        assert changed == state and lines.startswith(f"{key}: changed takes a teardown")
        older = replace(state, seeded={})
        assert reconfigured(older, runs=runs, **after) == (older, ""), "it is not known"


def registries(*hosts: str) -> dict[str, Any]:
    mirrors = {host: {"endpoint": [f"https://{host}"]} for host in hosts}
    return {"registries": {"mirrors": mirrors}, "k3s": {}, "portForwards": None}


@pytest.mark.parametrize(
    "before, after",
    [
        ({"guest": {"userData": "mine"}}, {"guest": {"userData": "/elsewhere/mine"}}),
        (registries("a", "b"), registries("b", "a")),
        ({}, {"registries": {"mirrors": {}}, "k3s": {"install": "none", "args": ["--debug"]}}),
        ({"guest": {"proxy": "none"}}, {"guest": {}}),
    ],
)
def test_what_makes_the_same_seed_is_no_difference(before: Any, after: Any) -> None:
    """The config was moved, its keys have another order, or there is no k3s for them."""
    made, now = cluster(before), cluster(after)
    assert made.seeded == now.seeded


def test_no_password_can_be_tried_by_what_a_state_keeps_of_the_registries() -> None:
    made = cluster({"registries": {"configs": {"r": {"auth": {"password": "secret"}}}}})
    assert {len(mark) for mark in made.seeded.values()} == {4}
    assert "secret" not in ycluster.encode_state(made)


def test_a_password_that_was_not_saved_is_no_edit() -> None:
    """Neither in the image's URL nor in that of k3s. (20.10, 20.14)"""
    edits = {
        "image": "https://me:hush@host.example/i.qcow2",
        "k3s": {"source": "https://me:hush@host.example/k3s"},
        "portForwards": None,
    }
    made = cluster(edits)
    saved = ycluster.decode_state(ycluster.encode_state(made), made.files.sidecar)
    assert saved != made and reconfigured(saved, runs=False, **edits) == (saved, "")


def test_a_default_that_came_with_another_ycluster_is_no_edit() -> None:
    """Whoever follows the advice of a line about it would tear down a disk for nothing. (20.14)"""
    k3s = {"Version": "v1.30.1+k3s1", "Install": "airgap", "Source": ""}
    edits = {"k3s": None, "portForwards": None}
    older = cluster(edits, image="https://example/older.img", k3s=k3s)
    assert reconfigured(older, runs=False, **edits) == (older, "")
    wanted = {**edits, "k3s": {"version": "v1.31.1+k3s1"}}
    _, said = reconfigured(older, runs=False, **wanted)
    assert said.startswith("k3s.version: v1.30.1+k3s1 -> v1.31.1+k3s1 takes a teardown")


def test_what_a_state_file_of_the_siblings_does_not_have_is_no_difference() -> None:
    """(20.14)"""
    theirs = State(
        name="demo", cache_dir="/c", memory="4096", cpus="2", lifetime="8h", warn="10m",
        port_forwards=(PortForward(host=8080, guest=80),), k3s={"Version": "v1", "Install": "none"},
    )  # fmt: skip
    ours = {"image": "/i", "sshUser": "me", "dataDisk": "/d", "accel": "tcg", "cpuModel": "max"}
    assert reconfigured(theirs, runs=True, **ours) == (theirs, "")
    _, said = reconfigured(theirs, runs=True, memory=64, diskSize="9G", sshPort=22222, **ours)
    assert [line.split(":")[0] for line in said.splitlines()] == ["memory", "sshPort", "diskSize"]


@pytest.mark.parametrize(
    "max_run, began, expires_at, counts",
    [
        ("4h", int(NOW) - HOUR, int(NOW) + 3 * HOUR, "from the start"),
        ("20h", int(NOW) - HOUR, int(NOW) + 19 * HOUR, "from the start"),
        ("30m", int(NOW) - HOUR, int(NOW) + HOUR // 2, "from now"),
        ("1h", int(NOW) - HOUR, int(NOW) + HOUR, "from now"),
        ("2h", None, int(NOW) + 2 * HOUR, "from now"),  # the sibling does not write when
        ("0", int(NOW) - HOUR, None, "no deadline"),
        (None, int(NOW) - HOUR, None, "no deadline"),
    ],
)
def test_the_deadline_of_a_running_vm_follows_its_budget(
    max_run: str | None, began: int | None, expires_at: int | None, counts: str
) -> None:
    """From its start; where that has passed, afresh: an edit never ends a VM at once. (20.14)"""
    lifetime = {"maxRun": max_run} if max_run else {}
    state = cluster(started_at=began, retry_at=int(NOW) + 60, warned=int(NOW))
    changed, said = reconfigured(state, runs=True, lifetime=lifetime)
    assert (changed.expires_at, changed.retry_at) == (expires_at, None) and counts in said
    assert (changed.ran_with, changed.boot_id) == ("tcg", "boot-1")
    halted, said = reconfigured(ycluster.stopped(state), runs=False, lifetime=lifetime)
    assert halted.expires_at is None and counts not in said, "the next start counts anew"


@pytest.mark.parametrize(
    "began, before, ends, max_run, left, at_the_end",
    [
        (7, "8h", 47, "8h", 3, True),  # extended beyond
        (9, "12h", 12, "4h", 1, True),  # the fresh budget is cut off
        (9, "8h", 9.5, "8h", 0.5, False),  # in time as it is
        (30, "8h", 40, "8h", 8, False),  # nothing is left of it, and no edit ends a VM at once
        (30, "8h", 31, "8h", 1, False),
    ],
)
def test_a_max_total_that_is_edited_limits_the_deadline_of_now(
    began: int, before: str, ends: float, max_run: str, left: float, at_the_end: bool
) -> None:
    """In hours: since the start, from the start to the deadline, from now to the new one."""
    start = int(NOW) - began * HOUR
    state = cluster(started_at=start, expires_at=start + int(ends * HOUR), lifetime=before)
    wanted = {"maxRun": max_run, "maxTotal": "10h"}
    changed, said = reconfigured(state, runs=True, lifetime=wanted)
    assert (changed.expires_at, changed.started_at) == (int(NOW) + int(left * HOUR), start)
    assert ("where maxTotal ends" in said) == at_the_end


def test_a_hold_without_an_end_gets_one_with_the_budget() -> None:
    """It was taken where there was no budget, and held whatever the config said since."""
    endless = Hold(1, 1, "boot-1", int(NOW), None, "make", "hold")
    short = replace(endless, until=int(NOW) + 60)
    late = replace(endless, until=int(NOW) + 90 * HOUR)
    state = cluster(lifetime="", expires_at=None, holds=(endless, short, late))
    changed, _ = reconfigured(state, runs=True, lifetime={"maxRun": "8h"})
    assert [hold.until for hold in changed.holds] == [int(NOW) + 8 * HOUR, short.until, late.until]
    changed, _ = reconfigured(state, runs=True, lifetime={"maxRun": "8h", "maxTotal": "9h"})
    assert [hold.until for hold in changed.holds] == [
        int(NOW) + 8 * HOUR,
        short.until,
        int(NOW) + 8 * HOUR,
    ]
    overdue = replace(state, lifetime="30m", expires_at=int(NOW) - HOUR // 2, holds=(late,))
    changed, _ = reconfigured(overdue, runs=True, lifetime={"maxRun": "30m", "maxTotal": "40m"})
    assert changed.holds[0].until == int(NOW) + HOUR // 2, "no edit ends one at once"


def test_a_max_idle_that_is_edited_counts_from_now_and_one_that_is_the_same_as_before() -> None:
    """Neither ends a VM at once that was unused before. (23)"""
    lifetime = {"maxRun": "8h", "maxIdle": "30m"}
    fresh, _ = reconfigured(cluster(), runs=True, lifetime=lifetime)
    assert fresh.idle is not None and fresh.idle.used == int(NOW) and fresh.expires_at
    assert ycluster.unused_end(fresh) == int(NOW) + HOUR // 2
    later = replace(CLOCK, now=NOW + 600)
    looked = ycluster.after_look(fresh, ycluster.Look(False, 0, 1.0), later)
    assert reconfigured(looked, runs=True, lifetime=lifetime) == (looked, "")
    same = {"maxRun": "8h", "maxIdle": "0.5h"}
    assert reconfigured(looked, runs=True, lifetime=same) == (looked, "")
    none, said = reconfigured(looked, runs=True, lifetime={"maxRun": "8h"})
    assert none.idle is None and "lifetime.maxIdle: 30m -> none" in said
    alone, said = reconfigured(looked, runs=True, lifetime={"maxIdle": "30m"})
    assert alone.expires_at is None and alone.idle == looked.idle and "nothing will" not in said
    assert ycluster.time_of(alone, ycluster.LOOK) == (looked.idle and looked.idle.next)


def test_whoever_brings_a_warning_about_needs_none() -> None:
    """(20.14)"""
    lifetime = {"maxRun": "8h", "warn": "7h30m"}
    changed, _ = reconfigured(cluster(), runs=True, lifetime=lifetime)
    assert changed.warned == changed.expires_at and ycluster.time_of(changed, "warning") == float(
        "inf"
    )


def test_a_cluster_that_was_disarmed_by_hand_stays_so() -> None:
    """Its deadline is saved, and nothing acts on it until `arm` or a start. (20.14)"""
    disarmed = (ArmedTimer("none", "", int(NOW) + 7 * HOUR),)
    for max_run in ("4h", "30m"):
        changed, _ = reconfigured(cluster(timers=disarmed), runs=True, lifetime={"maxRun": max_run})
        assert changed.disarmed and changed.lifetime == max_run


# --- the verbs


class Edited:
    """A cluster that was made by the config in `folder`, which is then edited."""

    def __init__(self, cli: Cli, cache: Path, folder: Path, processes: Processes) -> None:
        self.cli, self.folder, self.processes = cli, folder, processes
        self.edit()
        self.files = Files(cache, "demo")
        state = ycluster.state_from_config(config(), cache)
        self.began = int(time.time()) - HOUR
        ycluster.save_state(replace(state, started_at=self.began, ran_with="tcg"))
        self.files.disk.touch()

    def edit(self, **edits: Any) -> None:
        (self.folder / "y-cluster-provision.json").write_text(text(**edits))

    def runs(self, frozen: bool = False) -> None:
        """From now on there is a process with QEMU's identity."""
        process = self.processes.start("", "-pidfile", str(self.files.pidfile))
        self.files.pidfile.write_text(f"{process.pid}\n")
        ycluster.save_state(replace(self.state, expires_at=self.began + 8 * HOUR))
        if frozen:
            process.send_signal(signal.SIGSTOP)
            wait_for("a stop", lambda: ycluster.process_stat(process.pid)[1] == "T")

    def run(self, verb: str) -> Ran:
        return self.cli(*verb.split(), "-c", self.folder)

    @property
    def state(self) -> State:
        return ycluster.load_state(self.files)


@pytest.fixture
def edited(
    cli: Cli, cache: Path, tmp_path: Path, timer: Memory, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> Edited:  # fmt: skip
    monkeypatch.setattr(Host, "need", lambda self, programs: None)
    monkeypatch.setattr(ycluster, "_check_ports", lambda host, state: None)
    monkeypatch.setattr(ycluster, "launch", lambda host, state: state)
    monkeypatch.setattr(ycluster, "wait_ready", lambda *args, **options: None)
    return Edited(cli, cache, tmp_path, processes)


@pytest.mark.parametrize("verb", ["start", "lifetime arm", "resume"])
def test_a_running_cluster_gets_the_lifetime_of_its_config_and_timers_for_it(
    edited: Edited, timer: Memory, verb: str
) -> None:
    """The hint led to `lifetime arm -c`, which led to the hint. (20.14)"""
    edited.runs(frozen=verb == "resume")
    edited.edit(lifetime={"maxRun": "4h", "onExpiry": "pause", "warn": "0"}, memory=1024)
    ran = edited.run(verb)
    told(
        ran,
        0,
        "lifetime.maxRun: 8h -> 4h",
        "lifetime.onExpiry: stop -> pause",
        "memory: 4096 -> 1024 takes a stop",
    )
    state = edited.state
    assert (state.lifetime, state.on_expiry, state.memory) == ("4h", "pause", "4096")
    assert state.expires_at == edited.began + 4 * HOUR
    assert list(timer.standing.values()) == [state.expires_at]
    assert "->" not in edited.run("lifetime arm").err.replace("memory: 4096 -> 1024", "")


@pytest.mark.parametrize("verb", ["lifetime arm", "resume"])
def test_what_its_expiry_has_paused_gets_the_whole_of_an_edited_budget(
    edited: Edited, verb: str
) -> None:
    """It had what was left of it since the start."""
    edited.runs(frozen=True)
    reaped = ycluster.Reaped(int(time.time()), "pause", "hand", "QMP stop", ycluster.DEADLINE)
    ycluster.save_state(replace(edited.state, expires_at=None, reaped=reaped, run_budget="10m"))
    edited.edit(lifetime={"maxRun": "4h", "onExpiry": "pause", "warn": "0"})
    before = int(time.time())
    ran = edited.run(verb)
    told(ran, 0, "lifetime.maxRun: 8h -> 4h", "the new budget counts from now")
    assert "next start" not in ran.err
    assert edited.state.expires_at is not None
    assert before + 4 * HOUR <= edited.state.expires_at <= time.time() + 4 * HOUR + 1


def test_a_resume_after_a_deadline_that_no_expiry_has_kept_counts_an_edited_budget_from_the_start(
    edited: Edited,
) -> None:
    """Its expiry may have failed, for want of room; the words and the deadline agree."""
    edited.runs(frozen=True)
    ycluster.save_state(replace(edited.state, lifetime="30m", expires_at=edited.began + 1800))
    edited.edit(lifetime={"maxRun": "4h", "warn": "0"})
    told(edited.run("resume"), 0, "lifetime.maxRun: 30m -> 4h", "from the start, not from now")
    assert edited.state.expires_at == edited.began + 4 * HOUR


@pytest.mark.parametrize("verb", ["start", "lifetime arm", "resume"])
def test_a_budget_that_is_taken_out_of_the_config_takes_deadline_and_timers_along(
    edited: Edited, timer: Memory, verb: str
) -> None:
    """(20.14)"""
    edited.runs()
    assert edited.run("lifetime arm").code == 0 and timer.standing
    edited.edit(lifetime=None)
    told(edited.run(verb), 0, "lifetime.maxRun: 8h -> none")
    assert edited.state.expires_at is None and edited.state.timers == () and not timer.standing


@pytest.mark.parametrize("verb", ["start", "lifetime arm", "resume"])
def test_a_max_idle_that_is_put_into_the_config_of_a_running_cluster_is_looked_after(
    edited: Edited, timer: Memory, verb: str
) -> None:
    """Beside its deadline; and it goes as it came. (23)"""
    edited.runs(frozen=verb == "resume")
    edited.edit(lifetime={"maxRun": "8h", "maxIdle": "30m", "warn": "0"})
    told(edited.run(verb), 0, "lifetime.maxIdle: none -> 30m")
    state = edited.state
    assert state.idle is not None
    assert sorted(timer.standing.values()) == [state.idle.next, state.expires_at]
    edited.edit(lifetime={"maxIdle": "30m"})
    told(edited.run(verb), 0, "lifetime.maxRun: 8h -> none")
    state = edited.state
    assert state.idle is not None and list(timer.standing.values()) == [state.idle.next]
    edited.edit(lifetime=None)
    told(edited.run(verb), 0, "lifetime.maxIdle: 30m -> none")
    assert (edited.state.idle, edited.state.timers, timer.standing) == (None, (), {})


def test_a_stopped_cluster_starts_with_the_machine_of_its_config(
    edited: Edited, timer: Memory
) -> None:
    """(20.14)"""
    edited.edit(memory=1024, cpus=1, sshPort=2200, lifetime={"maxRun": "4h"})
    before = int(time.time())
    told(
        edited.run("start"),
        0,
        "memory: 4096 -> 1024",
        "cpus: 2 -> 1",
        "sshPort",
        "maxRun: 8h -> 4h",
    )
    state = edited.state
    assert (state.memory, state.cpus, state.ssh_port, state.lifetime) == ("1024", "1", 2200, "4h")
    assert state.expires_at is not None and before + 4 * HOUR <= state.expires_at
    assert [state.expires_at] == [at for at in timer.standing.values() if at == state.expires_at]


@pytest.mark.parametrize("verb, code", [("start", 0), ("lifetime arm", 1), ("resume", 1)])
def test_by_its_name_alone_a_cluster_stays_as_it_was_made(
    edited: Edited, verb: str, code: int
) -> None:
    """(20.14)"""
    edited.edit(memory=1024, lifetime={"maxRun": "4h"})
    ran = edited.cli(*verb.split(), "--name", "demo")
    assert ran.code == code and "->" not in ran.err
    assert (edited.state.memory, edited.state.lifetime) == ("4096", "8h")


@pytest.mark.parametrize("verb", ["start", "resume"])
def test_a_budget_for_one_run_is_armed_and_no_config_changes_it(
    edited: Edited, timer: Memory, verb: str
) -> None:
    """(23)"""
    edited.runs(frozen=verb == "resume")
    assert edited.run(f"{verb} --max-run 2h").code == 0
    state = edited.state
    assert (state.run_budget, state.lifetime) == ("2h", "8h")
    assert state.expires_at == edited.began + 2 * HOUR == max(timer.standing.values())
    edited.edit(lifetime={"maxRun": "4h"})
    told(edited.run("start"), 0, "lifetime.maxRun: 8h -> 4h", "next start")
    assert edited.state.expires_at == edited.began + 2 * HOUR
    shown = edited.run("status -o json").out
    assert json.loads(shown)["maxRun"] == "2h"
    told(edited.run(f"{verb} --max-run soon"), 2, "soon")


def test_a_budget_for_one_run_is_that_of_the_start_that_gave_it(
    edited: Edited, timer: Memory
) -> None:
    """(23)"""
    for budget, hours in (("--max-run 2h", 2), ("", 8)):
        before = int(time.time())
        assert edited.run(f"start {budget}").code == 0
        ends = edited.state.expires_at
        assert ends is not None and 0 <= ends - before - hours * HOUR < 300
    told(edited.run("start --max-run 0"), 0, "no lifetime budget")
    assert edited.state.expires_at is None and edited.state.timers == ()


def test_an_arm_that_fails_applies_nothing(edited: Edited) -> None:
    """It is stopped; `start -c` applies it. (20.14)"""
    before = edited.state
    edited.edit(lifetime={"maxRun": "4h"})
    ran = edited.run("lifetime arm")
    told(ran, 1, "`ycluster start ")
    assert edited.state == before and "->" not in ran.err


def test_the_hint_where_there_is_no_budget_is_the_command_that_gives_one(
    edited: Edited, timer: Memory
) -> None:
    """(20.14)"""
    edited.runs()
    ycluster.save_state(replace(edited.state, lifetime="", expires_at=None))
    for verb in ("lifetime arm", "lifetime extend 1h"):
        ran = edited.cli(*verb.split(), "--name", "demo")
        told(ran, 1, "lifetime.maxRun", "`ycluster lifetime arm -c DIR`")
    told(edited.run("lifetime arm"), 0, "lifetime.maxRun: none -> 8h")
    assert edited.state.expires_at == edited.began + 8 * HOUR and timer.standing


@pytest.mark.parametrize("verb", ["start", "lifetime arm", "resume"])
def test_a_config_that_cannot_be_read_is_an_error_of_the_verbs_that_apply_it(
    edited: Edited, verb: str
) -> None:
    """(20.14)"""
    edited.runs()
    before = edited.state
    edited.edit(memory="lots")
    assert edited.run(verb).code == 3 and edited.state == before


def test_an_arm_leaves_the_machine_to_the_next_start(edited: Edited, timer: Memory) -> None:
    """Its VM ended by itself, and its deadline is still there. (20.14)"""
    ycluster.save_state(replace(edited.state, expires_at=edited.began + 8 * HOUR))
    edited.edit(memory=1024, lifetime=None)
    told(edited.run("lifetime arm"), 0, "lifetime.maxRun: 8h -> none", "takes a stop and a start")
    state = edited.state
    assert (state.lifetime, state.expires_at, state.memory) == ("", None, "4096")
    assert not timer.standing
