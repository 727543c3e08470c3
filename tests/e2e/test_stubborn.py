"""QEMUs, monitors and guests that won't end: each does, in bounds, and the rung of the ladder that did it is told."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import Cluster, Program, wait_for
from sabotage import GREETING, boot, forget, obedient_image, unwatch, watchers


@pytest.fixture(scope="module")
def image(workshop: Path) -> Path:
    return obedient_image(workshop / "stubborn.img")


@pytest.fixture(scope="module")
def vm(new_cluster: Callable[..., Cluster], image: Path) -> Iterator[Cluster]:
    cluster = boot(new_cluster("awkward", image))
    yield cluster
    forget(cluster)


@pytest.fixture
def running(vm: Cluster) -> Cluster:
    if not vm.file(".json").exists():
        return boot(vm)
    return vm if vm.qemu() else boot(vm, "start")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


@contextlib.contextmanager
def taken_monitor(vm: Cluster) -> Iterator[None]:
    """Somebody who connected to the monitor, and says nothing."""
    with socket.socket(socket.AF_UNIX) as client:
        directory = os.open(vm.cache, os.O_RDONLY)
        client.connect(f"/proc/self/fd/{directory}/{vm.name}.qmp")  # a socket's path is short
        os.close(directory)
        assert b"QMP" in client.recv(4096)
        yield


@contextlib.contextmanager
def kept_frozen(pid: int) -> Iterator[None]:
    """Somebody who stops a process whenever it goes on."""
    over = threading.Event()

    def freeze() -> None:
        while not over.wait(0.001):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)

    thread = threading.Thread(target=freeze)
    for task in os.listdir(f"/proc/{pid}/task"):  # on a busy machine, too, it gets nowhere
        os.setpriority(os.PRIO_PROCESS, int(task), 19)
    os.kill(pid, signal.SIGSTOP)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("verb", ["stop", "reap", "teardown"])
@pytest.mark.parametrize("how", ["SIGSTOP", "pause"])
def test_a_frozen_vm_is_woken_and_its_guest_shuts_down(
    running: Cluster, how: str, verb: str
) -> None:
    vm = running
    [pid] = vm.qemu()
    if how == "SIGSTOP":
        os.kill(pid, signal.SIGSTOP)
    else:
        vm.run("pause")
    assert vm.status()["state"] == "paused"
    if verb == "reap":
        unwatch(vm)
        vm.set_deadline(-1)
    told = vm.run(*(["lifetime", "reap"] if verb == "reap" else [verb])).stderr
    assert "off by guest-shutdown" in told and vm.qemu() == []
    if verb == "reap":
        assert vm.status()["reaped"]["how"] == "guest-shutdown"
        assert "stop: guest-shutdown" in told


def test_a_monitor_that_is_taken_and_a_qemu_that_is_kept_frozen_end_by_the_last_rungs(
    running: Cluster, new_cluster: Callable[..., Cluster], image: Path
) -> None:
    """Both at a time, since each takes the better part of a minute."""
    frozen = boot(new_cluster("kept-frozen", image, on_expiry="stop"))
    [pid] = frozen.qemu()
    for vm in (running, frozen):
        unwatch(vm)
        vm.set_deadline(-1)
    began = time.monotonic()
    with taken_monitor(running), kept_frozen(pid):
        assert running.status()["state"] == "unresponsive"
        reaps = [
            vm.program.spawn("lifetime", "reap", "-c", vm.directory) for vm in (running, frozen)
        ]
        # while it is being reaped, those who look are told so, and are not kept waiting
        wait_for("the reap to begin", lambda: running.sidecar().get("retryAt"))
        assert running.status()["state"] == "busy"
        assert running.guard()["armed"]  # a second try, should this one be killed
        told = [reap.communicate(timeout=170)[1] for reap in reaps]
    assert time.monotonic() - began < 170
    print("\n".join(told))
    assert [reap.returncode for reap in reaps] == [0, 0]
    for vm, words, rung in zip((running, frozen), told, ("SIGTERM", "SIGKILL")):
        assert vm.qemu() == []
        assert "guest-shutdown did not end it" in words and "QMP quit did not end it" in words
        assert f"off by {rung}" in words and f"stop: {rung}" in words
        assert vm.status()["reaped"]["how"] == rung
    forget(frozen)


@pytest.mark.parametrize("verb", ["stop", "reap", "teardown"])
def test_whoever_has_the_pid_in_the_pidfile_is_left_alone_and_the_vm_is_ended(
    running: Cluster, bystander: subprocess.Popen[bytes], verb: str
) -> None:
    vm = running
    vm.file(".pid").write_text(f"{bystander.pid}\n")
    assert vm.status()["state"] == "running"
    if verb == "reap":
        unwatch(vm)
        vm.set_deadline(-1)
    vm.run(*(["lifetime", "reap"] if verb == "reap" else [verb]))
    assert vm.qemu() == [] and bystander.poll() is None


def test_a_pidfile_of_a_vm_that_is_off_leads_to_nobody(
    running: Cluster, bystander: subprocess.Popen[bytes]
) -> None:
    vm = running
    unwatch(vm)
    vm.set_deadline(-1)
    [pid] = vm.qemu()
    os.kill(pid, signal.SIGKILL)
    wait_for("the end of QEMU", lambda: not vm.qemu())
    vm.file(".pid").write_text(f"{bystander.pid}\n")
    assert vm.status()["state"] == "stopped"
    assert "is stopped" in vm.run("pause", code=1).stderr
    vm.run("lifetime", "reap")
    assert vm.status()["reaped"]["how"] == "was not running"
    vm.file(".pid").write_text(f"{bystander.pid}\n")
    vm.run("stop")
    vm.file(".pid").write_text(f"{bystander.pid}\n")
    vm.run("teardown")
    assert bystander.poll() is None
    assert (
        Path(f"/proc/{bystander.pid}/stat").read_text().split()[2] == "S"
    )  # nor was it put to sleep


def test_a_console_that_is_written_for_ever_is_cut_and_goes_on(running: Cluster) -> None:
    """(21.4.4)"""
    console = running.file("-console.log")
    with console.open("ab") as log:
        log.write(b"x" * (20 << 20))
    wait_for("the watcher to cut it", lambda: console.stat().st_size < 1 << 20)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(running.file(".qmp")))
        stream = sock.makefile("rw")
        for command in ("qmp_capabilities", "system_reset"):
            print(json.dumps({"execute": command}), file=stream, flush=True)
        wait_for("another boot", lambda: GREETING in console.read_bytes())
    assert b"\0" not in console.read_bytes()


# --- what a watcher and a watch lean on


@pytest.mark.parametrize("lost", ["everything", "the sidecar"])
def test_a_vm_whose_files_are_gone_is_found_and_ends_at_its_deadline(
    new_cluster: Callable[..., Cluster], image: Path, program: Program, lost: str
) -> None:
    """`rm -rf ~/.cache/*` while it runs: its watcher holds the VM itself. (20.12)"""
    cluster = boot(
        new_cluster(f"lost-{len(lost)}", image, max_run="3m" if lost == "everything" else "1h")
    )
    (pid,) = cluster.qemu()
    if lost == "everything":
        shutil.rmtree(cluster.cache)
    else:
        cluster.file(".json").unlink()
    found = json.loads(program.run("doctor", "-o", "json", code=None).stdout)["findings"]
    assert any(one["level"] == "failure" and str(pid) in one["text"] for one in found), found
    assert str(pid) in cluster.run("provision", code=1).stderr
    assert cluster.qemu() == [pid]
    if lost != "everything":  # what doctor names shuts its guest down (21.1.1)
        remedy = next(one["remedy"] for one in found if str(pid) in one["text"])
        program.run(*shlex.split(remedy)[1:])
        assert not cluster.qemu()
    wait_for("the end of the VM", lambda: not cluster.qemu(), timeout=600)
    wait_for("the end of its watcher", lambda: not watchers(cluster))
    assert lost == "everything" or cluster.file(".qcow2").exists()


def overdue_and_unwatched(cluster: Cluster) -> list[int]:
    """Leave it to a `watch --all`: at once, as that replaces a watcher that it finds frozen."""
    with cluster.file(".lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        pids = watchers(cluster)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    cluster.set_deadline(-5)
    return pids


def test_a_watch_goes_on_when_its_archive_is_replaced(
    new_cluster: Callable[..., Cluster], image: Path, program: Program, tmp_path: Path
) -> None:
    """The README's way to upgrade: copy the new file over the old one. (20.22)"""
    first, second = (boot(new_cluster(name, image)) for name in ("watched-1", "watched-2"))
    copy = shutil.copy(program.path, tmp_path / "ycluster")
    frozen = overdue_and_unwatched(first)
    watch = Program(Path(copy), program.home).spawn("lifetime", "watch", "--all")
    try:
        wait_for("the first end", lambda: not first.qemu(), timeout=300)
        Path(copy).write_bytes(b"another file, as long as may be" * 9)
        frozen += overdue_and_unwatched(second)
        wait_for("the second end", lambda: not second.qemu(), timeout=300)
        wait_for("its end on disk", lambda: "expiresAt" not in second.sidecar())
    finally:
        watch.kill()
        said = watch.communicate()[1]
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert said.count("(by watch --all)") == 2
    forget(first)
    forget(second)
