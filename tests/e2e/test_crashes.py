"""Every verb is killed, as by a power cut, at the calls that change something: renames, removals, syncs, spawned programs,
locks and words to QEMU. strace records one undisturbed run, then kills one run at each of the calls it saw."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple

import pytest
from conftest import Cluster, wait_for
from sabotage import boot, forget, obedient_image, ours, strace, unwatch, up

# What changes something; and poll, in which a verb waits for a program that it has just run.
CALLS = "rename,renameat,renameat2,fsync,unlink,unlinkat,rmdir,symlink,mkdir,fork,vfork,clone,sendto,sendmsg,poll"
SPAWNS = ("fork", "vfork", "clone")
VERBS = ("provision", "start", "pause", "resume", "extend", "reap", "stop", "teardown")
BOOTS = ("provision", "start")


class Point(NamedTuple):
    """The n-th time that a verb makes a call."""

    call: str
    count: int


class Ended(NamedTuple):
    """How a verb under strace ended: 0 also where it waited for an ssh that never comes, and its guest was up."""

    code: int
    told: str


@pytest.fixture(scope="module")
def vm(new_cluster: Callable[..., Cluster], workshop: Path) -> Iterator[Cluster]:
    cluster = boot(
        new_cluster("crashed", obedient_image(workshop / "crashed.img"))
    )  # and learns of a bad KVM
    yield cluster
    forget(cluster)


def words(verb: str) -> list[str]:
    return {"extend": ["lifetime", "extend", "1m"], "reap": ["lifetime", "reap"]}.get(verb, [verb])


def prepare(vm: Cluster, verb: str) -> None:
    """Bring the cluster to where the verb has work to do."""
    if verb == "provision":
        return forget(vm)
    if not vm.file(".json").exists():
        boot(vm)
    if verb == "start":
        if vm.qemu():
            vm.run("stop")
        return
    if not vm.qemu():
        boot(vm, "start")
    if verb == "resume":
        vm.run("pause")
    elif vm.status()["state"] == "paused":
        vm.run("resume")
    if verb == "reap":
        unwatch(vm)
        vm.set_deadline(-1)


def traced(vm: Cluster, verb: str, *options: str) -> Ended:
    """Run a verb under strace: to its end, or until the guest that it waits for is up."""
    if not vm.qemu():
        with contextlib.suppress(FileNotFoundError):
            vm.file("-console.log").unlink()

    def booted() -> bool:
        return verb in BOOTS and up(vm) and bool(vm.sidecar().get("ranWith"))

    begin = [
        word for word in strace(*options) if word != "-f"
    ]  # the verb is killed, not the programs that it runs
    process = subprocess.Popen(
        [*begin, str(vm.program.path), *words(verb), "-c", str(vm.directory)], cwd="/", text=True,
        env=vm.program.environ(YCLUSTER_TIMER="watcher"), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    wait_for(verb, lambda: process.poll() is not None or booted())
    waits = False
    if verb in BOOTS:  # it may be about to end by itself
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.3)
        waits = process.poll() is None
        if waits:
            os.killpg(process.pid, signal.SIGKILL)
    told = process.communicate()[1]
    assert "Traceback" not in told and "internal error" not in told, told
    return Ended(0 if waits else process.returncode, told)


def points(vm: Cluster, verb: str, record: Path) -> list[Point]:
    """What an undisturbed run calls, in its order, without what comes to the same."""
    forget(
        vm
    )  # with what other crashes have left: a teardown would have more to remove than those to come
    prepare(vm, verb)
    ended = traced(vm, verb, "-o", str(record), f"--trace={CALLS}")
    assert ended.code == 0, ended.told
    found: list[Point] = []
    seen: Counter[str] = Counter()
    before = ""
    for call, result in re.findall(r"^(\w+)\(.* = (-?\d+)", record.read_text(), re.MULTILINE):
        seen[call] += 1
        if result.startswith("-"):
            continue  # it changed nothing
        # A sync is followed by a rename or follows one, and what is killed there leaves the same; so one verb is enough.
        same = (call == "fsync" and verb != "extend") or (call == "poll" and before not in SPAWNS)
        same = same or (
            call == before == "unlink" and seen[call] % 2 == 1
        )  # a teardown's many: every other one
        if not same:
            found.append(Point(call, seen[call]))
        before = call
    return found


def is_sound(vm: Cluster) -> None:
    """What holds after any crash: the sidecar can be read; a VM that runs is known, has its deadline, and is guarded."""
    if vm.file(".json").exists():
        json.loads(vm.file(".json").read_text())
    wait_for(
        "one QEMU at most", lambda: len(vm.qemu()) < 2
    )  # its launcher may live a moment longer
    if vm.qemu():
        assert vm.sidecar()["expiresAt"]
        assert vm.status()["state"] in ("running", "paused") or vm.qemu() == []
    vm.program.run("lifetime", "reap", "--all", YCLUSTER_TIMER="watcher")
    if vm.qemu():
        assert vm.guard()["armed"]


def again(vm: Cluster, verb: str) -> None:
    """The same verb, undisturbed, gets to its end."""
    exists = vm.file(".json").exists() and vm.sidecar().get("startedAt")
    if verb == "provision" and exists and vm.qemu():
        assert "already" in vm.run("provision", code=1).stderr
        verb = "start"
    if (verb == "resume" and not vm.qemu()) or (
        verb != "provision" and not vm.file(".json").exists()
    ):
        return
    ended = traced(vm, verb)
    assert ended.code == 0, ended.told
    if verb in ("stop", "reap", "teardown"):
        assert vm.qemu() == []
    elif verb in BOOTS:
        assert vm.status()["state"] == "running" and vm.guard()["armed"]
    if verb == "teardown":
        assert ours(vm) == []


@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_that_is_killed_at_any_call_can_be_had_again(
    vm: Cluster, verb: str, tmp_path: Path
) -> None:
    seen = points(vm, verb, tmp_path / "calls")
    assert len(seen) >= 4
    killed = 0
    for point in seen:
        print(f"=== {verb} is killed at {point.call} {point.count}")
        prepare(vm, verb)
        inject = f"--inject={point.call}:signal=KILL:when={point.count}"
        killed += traced(vm, verb, f"--trace={point.call}", inject).code == -signal.SIGKILL
        is_sound(vm)
        again(vm, verb)
    print(f"{verb}: killed {killed} times at {len(seen)} calls")
    assert killed >= len(seen) * 3 // 4  # how often it polls depends on how fast the host is
