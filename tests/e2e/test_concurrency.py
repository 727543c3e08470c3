"""Many verbs at once on one cluster whose guest obeys: nothing is lost, torn, or there twice."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Cluster, wait_for
from sabotage import boot, forget, obedient_image, watchers

AT_ONCE = 50


@pytest.fixture(scope="module")
def vm(new_cluster: Callable[..., Cluster], workshop: Path) -> Iterator[Cluster]:
    cluster = boot(new_cluster("crowded", obedient_image(workshop / "crowded.img")))
    yield cluster
    forget(cluster)


def spawn(vm: Cluster, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(vm.program.path), *words, "-c", str(vm.directory)], cwd="/", text=True, stdin=subprocess.DEVNULL,
        env=vm.program.environ(YCLUSTER_TIMER="watcher"), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def at_once(vm: Cluster, every: Sequence[Sequence[str]]) -> list[tuple[str, int, str, str]]:
    """Run them all together; what each was, its exit code, and what it said. Nobody's sidecar is ever seen torn."""
    started = [(" ".join(words), spawn(vm, *words)) for words in every]
    while any(process.poll() is None for what, process in started if not what.startswith("start")):
        with contextlib.suppress(FileNotFoundError):
            assert json.loads(vm.file(".json").read_text())["name"] == vm.name
        # One, while it becomes a daemon its launcher, and for a moment one between them.
        wait_for("two QEMUs at most", lambda: len(vm.qemu()) <= 2, 30)
        time.sleep(0.05)
    wait_for(
        "all but one to end", lambda: sum(process.poll() is None for _, process in started) <= 1
    )
    found = []
    for what, process in started:
        try:
            process.wait(60)
        except (
            subprocess.TimeoutExpired
        ):  # the one that has booted the guest waits for an ssh that never comes
            process.send_signal(signal.SIGINT)
        out, told = process.communicate(timeout=120)
        print(f"--- {what}: {process.returncode}\n{told}")
        assert "Traceback" not in told and "internal error" not in told
        found.append((what, process.returncode, out, told))
    return found


def seconds(moment: str) -> int:
    return int(time.mktime(time.strptime(moment, "%Y-%m-%dT%H:%M:%SZ")))


def test_fifty_extensions_at_once_all_count(vm: Cluster) -> None:
    before = seconds(vm.sidecar()["expiresAt"])
    ended = at_once(vm, [["lifetime", "extend", "1m"]] * AT_ONCE)
    assert {code for _, code, _, _ in ended} == {0}
    assert seconds(vm.sidecar()["expiresAt"]) == before + AT_ONCE * 60
    assert vm.guard()["armed"] and len(watchers(vm)) == 1


def test_a_crowd_that_arms_disarms_extends_reaps_and_looks(vm: Cluster) -> None:
    before = seconds(vm.sidecar()["expiresAt"])
    kinds = [["arm"], ["disarm"], ["extend", "1m"], ["reap"], ["status", "-o", "json"]]
    every = [["lifetime", *words] for words in kinds] * (AT_ONCE // len(kinds))
    random.Random(1).shuffle(every)
    ended = at_once(vm, every)
    assert {code for _, code, _, _ in ended} == {0}
    for what, _, out, _ in ended:
        if "status" in what:
            shown: dict[str, Any] = json.loads(out)
            assert shown["state"] in ("running", "busy") and shown["remainingSeconds"] > 0
    assert seconds(vm.sidecar()["expiresAt"]) == before + 60 * AT_ONCE // len(kinds)
    vm.run("lifetime", "arm", YCLUSTER_TIMER="watcher")
    assert vm.guard()["armed"] and len(watchers(vm)) == 1
    assert len(vm.qemu()) == 1


def test_a_crowd_that_reaps_an_overdue_cluster_reaps_it_once(vm: Cluster) -> None:
    vm.set_deadline(-1)
    ended = at_once(vm, [["lifetime", "reap"]] * 20)
    assert {code for _, code, _, _ in ended} == {0}
    assert (
        sum("is off by guest-shutdown" in told for _, _, _, told in ended) <= 1
    )  # or it was the watcher
    assert vm.qemu() == [] and vm.sidecar()["reaped"]["how"] == "guest-shutdown"
    wait_for("the watcher to leave", lambda: watchers(vm) == [])


def test_ten_starts_at_once_are_one_start(vm: Cluster) -> None:
    ended = at_once(vm, [["start"]] * 10)
    assert sorted(code for _, code, _, _ in ended) == [0] * 9 + [130]
    assert sum("already runs" in told for _, _, _, told in ended) == 9
    assert len(vm.qemu()) == 1 and vm.guard()["armed"] and len(watchers(vm)) == 1


def test_a_crowd_that_starts_and_stops_leaves_one_vm_with_its_guard_or_none(vm: Cluster) -> None:
    kinds = [
        ["start"],
        ["stop"],
        ["lifetime", "extend", "1m"],
        ["lifetime", "reap"],
        ["status", "-o", "json"],
    ]
    every = kinds * (20 // len(kinds)) + [["pause"], ["resume"]] * 2
    random.Random(2).shuffle(every)
    for what, code, _, told in at_once(vm, every):
        # 1: it was not running, it is paused, it has no deadline, or it ended during the boot; 130: interrupted
        assert code in {"start": (0, 1, 130), "stop": (0,)}.get(what.split()[0], (0, 1)), (
            what,
            told,
        )
    state = vm.status()
    assert (state["state"] != "stopped") is bool(vm.qemu()) and len(vm.qemu()) <= 1
    if vm.qemu():
        assert state["expiresAt"] and vm.guard()["armed"] and len(watchers(vm)) == 1
    else:
        assert not state["expiresAt"]
        wait_for("the watcher to leave", lambda: watchers(vm) == [])


def test_ten_teardowns_at_once_leave_nothing(vm: Cluster) -> None:
    ended = at_once(vm, [["teardown"]] * 10)
    assert {code for _, code, _, _ in ended} == {0}
    assert vm.qemu() == [] and not vm.file(".json").exists()
