"""Killed between any two effects, its disk full or read-only, fifty commands at once: on a real QEMU, by strace.

The guest is a boot sector that obeys the power button and nothing else, so a boot costs nothing. No ssh ever answers in
it: what waits for that is killed once the VM runs.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable

import pytest
from conftest import Cluster, need, running, wait_for

WRITES = "rename,renameat,renameat2"
REMOVES = "unlink,unlinkat"
STARTS = "fork,vfork,clone,clone3"
TALKS = "sendto,sendmsg"
WATCHER = {"YCLUSTER_TIMER": "watcher"}


@pytest.fixture(scope="module")
def vm(new_cluster: Callable[..., Cluster], obedient_image: Path) -> Cluster:
    need(shutil.which("strace"), "strace is not installed")
    cluster = new_cluster("crash", obedient_image)
    config = cluster.directory / "y-cluster-provision.yaml"
    config.write_text(config.read_text() + "accel: tcg\n")
    return cluster


def survives(cluster: Cluster, verb: str, inject: str) -> bool:
    """Run a verb with a fault injected; whether it came to its end, or to where it waits for ssh."""
    calls = inject.split(":")[0]
    argv = ["strace", "-qq", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={inject}"]
    words = [*argv, str(cluster.program.path), *verb.split(), "-c", str(cluster.directory)]
    traced = subprocess.Popen(
        words, env=cluster.program.environ(**WATCHER), cwd="/", text=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    assert traced.stderr is not None
    for line in traced.stderr:
        print(line, end="")
        assert "Traceback" not in line
        if verb in ("provision", "start") and "  deadline " in line:
            os.killpg(traced.pid, signal.SIGKILL)
            traced.wait()
            return True
    return traced.wait() == 0


def bring_to(cluster: Cluster, state: str) -> None:
    cluster.run("teardown", code=None)
    if state == "absent":
        return
    running(cluster)
    if state in ("stopped", "paused"):
        cluster.run({"stopped": "stop", "paused": "pause"}[state])
    if state == "due":
        cluster.set_deadline(-60)
        subprocess.run(["pkill", "-9", "-f", f"lifetime watch --state {cluster.file('.json')}"], check=False)


def check_nothing_is_lost(cluster: Cluster) -> None:
    """The sidecar parses; a VM that runs is known and has its deadline, and the next command gives it its timer."""
    if cluster.file(".json").exists():
        sidecar = cluster.sidecar()
        cluster.status()
    if cluster.qemu():
        assert sidecar["expiresAt"] and cluster.status()["state"] in ("running", "paused", "busy")
        cluster.program.run("lifetime", "reap", "--all", **WATCHER)
        if cluster.qemu() and cluster.status()["state"] == "running":
            assert cluster.guard()["armed"]


@pytest.mark.parametrize(
    "verb, state, calls",
    [
        ("provision", "absent", (WRITES, STARTS)),
        ("start", "stopped", (WRITES, STARTS)),
        ("stop", "running", (WRITES, REMOVES, TALKS)),
        ("pause", "running", (TALKS,)),
        ("resume", "paused", (WRITES, TALKS)),
        ("lifetime extend 1h", "running", (WRITES,)),
        ("lifetime reap", "due", (WRITES, STARTS, TALKS)),
        ("teardown", "running", (REMOVES, TALKS)),
    ],
)
def test_killed_between_any_two_effects_nothing_is_lost(
    vm: Cluster, verb: str, state: str, calls: tuple[str, ...]
) -> None:
    killed = 0
    for call in calls:
        for number in (1, 2, 3, 5, 8, 13):
            bring_to(vm, state)
            if survives(vm, verb, f"{call}:signal=KILL:when={number}"):
                break
            killed += 1
            check_nothing_is_lost(vm)
            if verb in ("provision", "start"):
                # Once it has been started, its disk may hold something: then a provision is refused, and names the start.
                again = ("provision", "start") if verb == "provision" else ("start",)
                assert vm.qemu() or any(survives(vm, word, f"{call}:signal=KILL:when=999") for word in again)
                assert len(vm.qemu()) == 1
            else:
                vm.run(*verb.split(), code=None if verb in ("resume", "pause") else 0, **WATCHER)
    assert killed
    vm.run("teardown", code=None)
    assert vm.qemu() == [] and list(vm.cache.glob("crash*")) == []


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize(
    "verb, state",
    [("provision", "absent"), ("lifetime extend 1h", "running"), ("stop", "running"), ("lifetime reap", "due")],
)
def test_a_disk_that_takes_no_write_leaves_the_old_state(vm: Cluster, verb: str, state: str, error: str) -> None:
    bring_to(vm, state)
    before = vm.sidecar() if state != "absent" else None
    assert not survives(vm, verb, f"fsync:error={error}")
    if before is None:
        assert [path.name for path in vm.cache.glob("crash*")] == [] and vm.qemu() == []
        return
    assert vm.sidecar()["name"] == "crash" and not list(vm.cache.glob(".crash*.tmp"))
    if verb != "lifetime reap":  # there the watcher that it arms first finishes what it could not write down
        assert vm.sidecar()["expiresAt"] == before["expiresAt"]
    if verb.startswith("lifetime extend"):
        assert vm.qemu()
    else:  # what costs money ends, even where that can't be written down
        assert vm.qemu() == []
        vm.run(*verb.split(), **WATCHER)
        assert "expiresAt" not in vm.sidecar()


def test_on_a_disk_that_became_read_only_a_reap_still_stops_the_vm(vm: Cluster) -> None:
    need(os.geteuid() == 0, "only root can make a file system read-only")
    bring_to(vm, "due")
    subprocess.run(["mount", "--bind", vm.cache, vm.cache], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", vm.cache], check=True)
        done = vm.run("lifetime", "reap", code=1)
        assert vm.qemu() == []
        assert "is done, but can't be written down" in done.stderr
    finally:
        subprocess.run(["umount", "-l", vm.cache], check=True)
    vm.run("lifetime", "reap")
    assert "expiresAt" not in vm.sidecar()


def test_fifty_commands_at_once_lose_no_update_and_leave_one_timer(vm: Cluster) -> None:
    bring_to(vm, "running")
    before = vm.status()
    verbs = [["lifetime", "extend", "1m"]] * 20 + [["lifetime", "arm"]] * 8 + [["lifetime", "reap"]] * 8
    verbs += [["status"]] * 7 + [["lifetime", "status"]] * 7
    with ThreadPoolExecutor(50) as pool:
        done = list(pool.map(lambda verb: vm.run(*verb, code=None, **WATCHER), verbs))
    assert [result.stderr for result in done if result.returncode] == []
    gained = vm.status()["remainingSeconds"] + int(time.time()) - (before["remainingSeconds"] + int(time.time()))
    ends = [time.mktime(time.strptime(shown["expiresAt"], "%Y-%m-%dT%H:%M:%SZ")) for shown in (before, vm.status())]
    assert ends[1] - ends[0] == 20 * 60 and gained < 20 * 60
    watching = ["pgrep", "-f", f"lifetime watch --state {vm.file('.json')}"]
    wait_for("one watcher", lambda: len(subprocess.run(watching, capture_output=True).stdout.split()) == 1)
    assert vm.guard()["armed"] and len(vm.qemu()) == 1


def test_stops_starts_and_disarms_at_once_end_in_a_state_that_holds(vm: Cluster) -> None:
    bring_to(vm, "running")
    verbs = [["stop"]] * 4 + [["lifetime", "disarm"]] * 4 + [["lifetime", "arm"]] * 4 + [["lifetime", "reap"]] * 4
    with ThreadPoolExecutor(20) as pool:
        starts = [vm.program.spawn("start", "-c", vm.directory, **WATCHER) for _ in range(3)]
        done = list(pool.map(lambda verb: vm.run(*verb, code=None, **WATCHER), verbs))
    assert {result.returncode for result in done} <= {0, 1}
    for start in starts:
        start.kill()
        start.wait()
    assert len(vm.qemu()) <= 1
    json.loads(vm.file(".json").read_text())
    if vm.qemu() and not vm.status()["disarmed"]:
        vm.program.run("lifetime", "reap", "--all", **WATCHER)
        assert vm.guard()["armed"]
    vm.run("stop")
    assert vm.qemu() == [] and vm.status()["expiresAt"] == ""


@pytest.mark.parametrize(
    "verb, state", [("stop", "frozen"), ("teardown", "silent"), ("lifetime reap", "frozen"), ("stop", "paused")]
)
def test_a_stubborn_vm_is_ended_and_the_rung_reported(vm: Cluster, verb: str, state: str) -> None:
    import socket

    bring_to(vm, "due" if "reap" in verb else "paused" if state == "paused" else "running")
    [pid] = vm.qemu()
    with socket.socket(socket.AF_UNIX) as silent:
        if state == "frozen":
            os.kill(pid, signal.SIGSTOP)
        if state == "silent":  # QMP serves one client: we are in, and say nothing
            os.chdir(vm.cache)
            silent.connect("crash.qmp")
            os.chdir("/")
        done = vm.run(*verb.split())
    assert vm.qemu() == []
    rung = "SIGTERM" if state == "silent" else "guest-shutdown"
    assert f"is off by {rung}" in done.stderr
    if "reap" in verb:
        assert vm.status()["reaped"]["how"] == rung


def test_a_pid_that_is_somebody_elses_by_now_is_never_signalled(vm: Cluster) -> None:
    bring_to(vm, "due")
    [pid] = vm.qemu()
    os.kill(pid, signal.SIGKILL)
    wait_for("its end", lambda: vm.qemu() == [])
    with subprocess.Popen(["sleep", "600"]) as innocent:
        vm.file(".pid").write_text(str(innocent.pid))
        assert vm.status()["state"] == "stopped"
        vm.run("lifetime", "reap")
        vm.run("stop")
        vm.run("teardown")
        assert innocent.poll() is None
        innocent.kill()
