"""Suspend: what a guest has in memory outlives its VM. On a real Debian guest, and on one of a boot sector for what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, NamedTuple

import pytest
from conftest import Cluster, wait_for
from sabotage import GREETING, boot, forget, obedient_image, strace, unwatch

# --- a guest of a boot sector: it prints a greeting when it boots, and obeys the power button


@pytest.fixture(scope="module")
def image(workshop: Path) -> Path:
    return obedient_image(workshop / "suspended.img")


@pytest.fixture(scope="module")
def small(new_cluster: Callable[..., Cluster], image: Path) -> Iterator[Cluster]:
    made = new_cluster("small", image)
    config = made.directory / "y-cluster-provision.yaml"
    config.write_text(config.read_text().replace("memory: 1024", "memory: 64"))
    boot(made)
    yield made
    forget(made)


def run_again(vm: Cluster, verb: str = "start") -> None:
    """Let it go on; the verb waits for an ssh that never comes, so it is killed once the guest runs."""
    waiting = vm.program.spawn(verb, "-c", vm.directory, YCLUSTER_TIMER="watcher")

    def runs() -> bool:
        if waiting.poll() is not None:
            return True
        # It counts as running from when its QEMU is there, too, before that has a monitor.
        return "suspended" not in vm.sidecar() and vm.status()["state"] == "running"

    try:
        wait_for("the guest to go on", runs)
    finally:
        waiting.kill()
        _, told = waiting.communicate()
        print(told)
    wait_for("a guest that runs", lambda: vm.status()["state"] == "running")


def without_zstd(place: Path) -> str:
    """A PATH of all the programs of this host's but that one."""
    for folder in ("/usr/bin", "/usr/sbin"):
        for program in os.listdir(folder):
            if "zstd" not in program and not (place / program).exists():
                (place / program).symlink_to(f"{folder}/{program}")
    return str(place)


@pytest.fixture
def running(small: Cluster) -> Cluster:
    if not small.qemu():
        boot(small, "start")
    return small


@pytest.fixture
def suspended(running: Cluster) -> Cluster:
    running.run("suspend")
    return running


def test_a_suspended_cluster_says_so_and_goes_on_without_a_boot(running: Cluster) -> None:
    vm = running
    assert GREETING in vm.file("-console.log").read_bytes()
    told = vm.run("suspend").stderr
    assert "is suspended" in told and vm.qemu() == []
    shown = vm.status()
    assert (shown["state"], shown["expiresAt"], shown["armed"]) == ("suspended", "", False)
    assert shown["suspended"]["bytes"] == vm.file(".memory").stat().st_size > 0
    assert vm.file(".memory").stat().st_mode & 0o777 == 0o600
    assert "suspended since" in vm.run("status").stdout
    for verb in ("pause", "ssh", "export x", "prepare-export", "lifetime extend 1h", "stop"):
        refused = vm.run(*verb.split(), code=None)
        assert refused.returncode == 1 and "suspended" in refused.stderr, verb
    assert vm.run("suspend").returncode == 0, "it is what was wanted"
    run_again(vm)
    shown = vm.status()
    assert (
        shown["suspended"] is None and shown["armed"] and 3500 < shown["remainingSeconds"] <= 3600
    )
    assert not vm.file(".memory").exists()
    assert vm.file("-console.log").read_bytes().count(GREETING) == 1
    assert "off by guest-shutdown" in vm.run("stop").stderr


def test_resume_and_a_teardown_know_of_it_too(suspended: Cluster) -> None:
    vm = suspended
    run_again(vm, "resume")
    vm.run("suspend")
    assert "small.memory" in vm.run("teardown").stderr
    assert list(vm.cache.glob("*memory*")) == []
    boot(vm)


def test_a_memory_is_of_the_qemu_that_ran_and_not_of_one_installed_since(
    running: Cluster, tmp_path: Path
) -> None:
    installed = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True)
    upgraded = tmp_path / "qemu-system-x86_64"
    upgraded.write_text("#!/bin/sh\necho QEMU emulator version 99.0.0\n")
    upgraded.chmod(0o755)
    running.run("suspend", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert f"version {running.sidecar()['suspended']['fits']['QEMU']}" in installed.stdout
    run_again(running)


@pytest.mark.parametrize(
    "what", ["disk", "machine", "cut", "flipped", "gone", "unpacked by nobody"]
)
def test_a_memory_that_fits_no_more_is_refused_with_the_way_out(
    suspended: Cluster, what: str, tmp_path: Path
) -> None:
    vm, memory, sidecar = suspended, suspended.file(".memory"), suspended.sidecar()
    kept = memory.read_bytes()
    path = "/usr/local/bin:/usr/bin:/bin"
    if what == "disk":
        argv = ["qemu-io", "-c", "write -P 1 512k 4k", str(vm.file(".qcow2"))]
        subprocess.run(argv, check=True, capture_output=True)
    elif what == "machine":
        vm.set_deadline(0, expiresAt="", machine="pc-q35-7.0")
    elif what == "cut":
        os.truncate(memory, len(kept) // 2)
    elif what == "flipped":
        at = len(kept) // 2
        memory.write_bytes(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :])
    elif what == "gone":
        memory.unlink()
    else:
        path = without_zstd(tmp_path)
    refused = vm.run("start", code=1, PATH=path).stderr
    assert "stays suspended" in refused and "--discard-memory" in refused
    assert (
        vm.qemu() == [] and vm.status()["state"] == "suspended" and vm.status()["expiresAt"] == ""
    )
    assert what == "gone" or memory.exists()
    if what in ("cut", "flipped", "gone"):
        memory.write_bytes(kept)
        run_again(vm)
    elif what == "machine":
        vm.set_deadline(0, expiresAt="", machine=sidecar["machine"])
        run_again(vm)
    elif what == "disk":
        vm.run("stop", "--discard-memory")
        assert vm.status()["state"] == "stopped" and not memory.exists()
    else:
        run_again(vm)


def test_one_that_is_packed_by_nothing_goes_on_as_well_and_is_checked(
    running: Cluster, tmp_path: Path
) -> None:
    vm = running
    vm.run("suspend", PATH=without_zstd(tmp_path))
    memory = vm.file(".memory")
    kept = memory.read_bytes()
    at = len(kept) // 2
    memory.write_bytes(kept[:at] + bytes([kept[at] ^ 1]) + kept[at + 1 :])
    assert "damaged" in vm.run("start", code=1).stderr
    memory.write_bytes(kept)
    run_again(vm)


def test_it_goes_on_in_another_boot_of_the_host(suspended: Cluster) -> None:
    vm = suspended
    vm.set_deadline(0, expiresAt="", bootId=str(uuid.uuid4()), bootedAt="2026-01-01T00:00:00Z")
    vm.program.run("list")
    run_again(vm)
    assert 3500 < vm.status()["remainingSeconds"] <= 3600
    assert vm.file("-console.log").read_bytes().count(GREETING) == 1


@pytest.mark.parametrize("timer", ["systemd", "at", "watcher"])
def test_an_expiry_suspends(running: Cluster, timer: str, user_manager: None, atd: None) -> None:
    vm = running
    if timer != "watcher":
        unwatch(vm)
    vm.set_deadline(15, onExpiry="suspend")
    vm.program.run("lifetime", "arm", "--name", vm.name, YCLUSTER_TIMER=timer)
    if timer != "watcher":
        unwatch(vm)
    wait_for("the suspend", lambda: not vm.qemu() and vm.sidecar().get("suspended"), 300)
    wait_for("its record", lambda: vm.status()["reaped"])
    reaped = vm.status()["reaped"]
    assert (reaped["action"], reaped["by"]) == ("suspend", timer)
    run_again(vm)
    assert "off by guest-shutdown" in vm.run("stop").stderr


def test_an_expiry_that_cannot_suspend_stops(running: Cluster) -> None:
    """Money: with no room for the memory it must not run on."""
    vm = running
    unwatch(vm)
    vm.set_deadline(-1, onExpiry="suspend")
    limited = [
        "prlimit",
        "--fsize=65536",
        str(vm.program.path),
        "lifetime",
        "reap",
        "-c",
        str(vm.directory),
    ]
    done = subprocess.run(limited, env=vm.program.environ(), text=True, capture_output=True)
    assert done.returncode == 0 and vm.qemu() == [], done.stderr
    assert "can't be suspended" in done.stderr
    shown = vm.status()
    assert (shown["state"], shown["reaped"]["action"]) == ("stopped", "stop")
    assert list(vm.cache.glob("*memory*")) == []


def test_a_suspend_that_fails_lets_the_guest_run_on(running: Cluster) -> None:
    vm = running
    before = vm.status()["expiresAt"]
    limited = ["prlimit", "--fsize=65536", str(vm.program.path), "suspend", "-c", str(vm.directory)]
    done = subprocess.run(limited, env=vm.program.environ(), text=True, capture_output=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    shown = vm.status()
    assert (shown["state"], shown["expiresAt"], shown["suspended"]) == ("running", before, None)
    assert list(vm.cache.glob("*memory*")) == [] and vm.guard()["armed"]


# --- a real Debian guest: what ran in it runs on

BUSY = """
nohup sh -c 'echo $$ >/dev/shm/pid; exec 3>/var/tmp/open; echo unsynced >&3
while :; do date +%s >/dev/shm/tick; sleep 1; done' >/dev/null 2>&1 </dev/null &
"""
LOOK = "cat /proc/sys/kernel/random/boot_id /dev/shm/pid /var/tmp/open; ls /proc/$(cat /dev/shm/pid)/fd/3"


@pytest.fixture(scope="module")
def debian(woken: Callable[..., Cluster]) -> Iterator[Cluster]:
    made = woken("sleeper")
    made.run("ssh", "--", BUSY)
    yield made
    made.run("teardown")


def runs_on(vm: Cluster, before: str) -> None:
    assert vm.run("ssh", "--", LOOK).stdout == before, "it is another boot, or its process is gone"
    before_it = time.time()
    guest = int(vm.run("ssh", "--", "date +%s").stdout)
    assert before_it - 5 < guest < time.time() + 5
    tick = "cat /dev/shm/tick"
    seen = vm.run("ssh", "--", tick).stdout
    wait_for("a tick", lambda: vm.run("ssh", "--", tick).stdout != seen)


def test_a_process_a_tmpfs_an_open_file_and_the_clock_survive(debian: Cluster) -> None:
    before = debian.run("ssh", "--", LOOK).stdout
    assert "unsynced" in before
    debian.run("suspend")
    assert debian.qemu() == [] and debian.file(".memory").stat().st_size > 10 << 20
    debian.run("start")
    runs_on(debian, before)


@pytest.mark.parametrize("timer", ["systemd", "at", "watcher"])
def test_they_survive_a_deadline(
    debian: Cluster, timer: str, user_manager: None, atd: None
) -> None:
    before = debian.run("ssh", "--", LOOK).stdout
    debian.set_deadline(15, onExpiry="suspend")
    debian.program.run("lifetime", "arm", "--name", debian.name, YCLUSTER_TIMER=timer)
    wait_for("the suspend", lambda: debian.status()["state"] == "suspended", 300)
    wait_for("its record", lambda: debian.status()["reaped"])
    assert debian.status()["reaped"]["action"] == "suspend"
    debian.run("start")
    runs_on(debian, before)


# --- killed, and failed, at each call that changes something

CALLS = "rename,fsync,unlink,fork,vfork,clone,sendto,sendmsg,openat"
KILLED = (
    "rename",
    "unlink",
    "fork",
    "vfork",
    "clone",
    "sendto",
    "sendmsg",
)  # a sync leaves the same as the rename by it
FAILED = ("rename", "fsync", "openat", "unlink")


class Point(NamedTuple):
    call: str
    count: int
    words: str = ""


def begun_under(vm: Cluster, verb: str, *options: str) -> subprocess.Popen[str]:
    """A verb under strace, without its children, in a process group of its own."""
    begin = [word for word in strace(*options) if word != "-f"]
    return subprocess.Popen(
        [*begin, str(vm.program.path), verb, "-c", str(vm.directory)], cwd="/", text=True,
        env=vm.program.environ(YCLUSTER_TIMER="watcher"), start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def under(vm: Cluster, verb: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a verb under strace to its end; a start only until the guest runs."""
    process = begun_under(vm, verb, *options)

    def done() -> bool:
        if process.poll() is not None:
            return True
        return (
            verb == "start"
            and "suspended" not in vm.sidecar()
            and bool(vm.qemu())
            and vm.status()["state"] == "running"
        )

    wait_for(verb, done)
    with contextlib.suppress(
        subprocess.TimeoutExpired
    ):  # one that boots may be about to end by itself
        process.wait(0.3)
    waits = process.poll() is None
    if waits:
        os.killpg(process.pid, signal.SIGKILL)
    told = process.communicate()[1]
    assert "Traceback" not in told and "internal error" not in told, told
    return subprocess.CompletedProcess([verb], 0 if waits else process.returncode, "", told)


def prepare(vm: Cluster, verb: str) -> None:
    """To where the verb has work to do, whatever a crash has left."""
    state = vm.status()["state"]
    if state == "stopped":
        boot(vm, "start")
    elif state != "running":
        run_again(vm, "resume")
    if verb == "start":
        vm.run("suspend")


def changing(vm: Cluster, verb: str, record: Path) -> list[Point]:
    """What an undisturbed run calls, in its order; of what is opened, only what is made."""
    prepare(vm, verb)
    assert under(vm, verb, "-o", str(record), f"--trace={CALLS}").returncode == 0
    found, seen = [], Counter[str]()
    for call, words, result in re.findall(
        r"^(\w+)\((.*)\)? = (-?\d+)", record.read_text(), re.MULTILINE
    ):
        seen[call] += 1
        # A question is asked again and again, the more so the slower the machine is.
        if '"query-' in words.replace("\\", ""):
            continue
        if not result.startswith("-") and (call != "openat" or "O_CREAT" in words):
            found.append(Point(call, seen[call], words))
    return found


def is_sound(vm: Cluster, verb: str, booted: bytes) -> None:
    """It is as it was, suspended, or paused; never booted anew, never twice; and the next verb goes on."""
    json.loads(vm.file(".json").read_text())
    wait_for("one QEMU at most", lambda: len(vm.qemu()) < 2)
    state = vm.status()["state"]
    assert state in ("running", "paused", "suspended"), state
    if vm.qemu():
        vm.program.run("lifetime", "reap", "--all", YCLUSTER_TIMER="watcher")
        assert vm.guard()["armed"]
    if state != "running":
        run_again(vm, "resume")
    assert vm.status()["state"] == "running" and vm.status()["suspended"] is None
    assert list(vm.cache.glob("*.memory*")) == []
    written = vm.file("-console.log").read_bytes()
    assert written == booted, "it was booted anew"


def test_a_memory_that_was_loaded_counts_until_it_is_removed(
    running: Cluster, tmp_path: Path
) -> None:
    """The host loses power just before: QEMU has it loaded, and has not touched the disk."""
    vm = running
    points = changing(vm, "start", tmp_path / "calls")
    [point] = [one for one in points if one.call == "unlink" and '.memory"' in one.words]
    prepare(vm, "start")
    inject = f"--inject=unlink:signal=KILL:when={point.count}"
    assert under(vm, "start", "--trace=unlink", inject).returncode != 0
    [pid] = vm.qemu()
    assert vm.file(".memory").exists()
    os.kill(pid, signal.SIGKILL)
    wait_for("the end of QEMU", lambda: not vm.qemu())
    assert vm.status()["state"] == "suspended"
    run_again(vm)
    assert vm.file("-console.log").read_bytes().count(GREETING) == 1


def test_a_stop_at_the_deadline_waits_for_a_suspend_that_hangs(
    running: Cluster, tmp_path: Path
) -> None:
    """It has the cluster's lock, so the VM is to be ended without that: which would lose the memory."""
    vm = running
    points = changing(vm, "suspend", tmp_path / "calls")
    place = next(at for at, one in enumerate(points) if '.memory"' in one.words)
    point = next(one for one in reversed(points[: place + 1]) if one.call == "fsync")
    prepare(vm, "suspend")
    booted = vm.file("-console.log").read_bytes()
    vm.set_deadline(45, onExpiry="stop")
    vm.program.run("lifetime", "arm", "--name", vm.name, YCLUSTER_TIMER="watcher")
    inject = f"--inject={point.call}:signal=STOP:when={point.count}"
    hangs = begun_under(vm, "suspend", f"--trace={point.call}", inject)

    def tries() -> int:
        log = vm.file(".reap.log")
        said = log.read_text() if log.exists() else ""
        return said.count("its lock is held, so it is ended without it")

    try:
        before = tries()
        wait_for("the try to end it", lambda: tries() > before, 300)
        # Nothing is to be seen while it waits; all that a stop tries would take half as long.
        with pytest.raises(AssertionError):
            wait_for("a stop that did not wait", lambda: not vm.qemu(), 60)
        assert hangs.poll() is None
        os.killpg(hangs.pid, signal.SIGCONT)
        told = hangs.communicate(timeout=120)[1]
    finally:
        if hangs.poll() is None:
            os.killpg(hangs.pid, signal.SIGKILL)
    assert hangs.returncode == 0 and "is suspended" in told, told
    assert vm.qemu() == [] and vm.status()["state"] == "suspended"
    run_again(vm)
    assert vm.file("-console.log").read_bytes() == booted, "it was booted anew"


@pytest.mark.parametrize("fault", ["killed", "failed"])
@pytest.mark.parametrize("verb", ["suspend", "start"])
def test_nothing_is_lost_or_run_twice_wherever_it_is_cut_off(
    running: Cluster, verb: str, fault: str, tmp_path: Path
) -> None:
    vm = running
    points = changing(vm, verb, tmp_path / "calls")
    wanted = {"rename", "fsync", "sendmsg", *(["unlink"] if verb == "start" else [])}
    assert wanted <= {point.call for point in points}
    points = [point for point in points if point.call in (KILLED if fault == "killed" else FAILED)]
    hit = 0
    for number, point in enumerate(points):
        way = "signal=KILL" if fault == "killed" else f"error={('EIO', 'ENOSPC')[number % 2]}"
        prepare(vm, verb)
        booted = vm.file("-console.log").read_bytes()
        print(f"=== {verb}: {way} at {point.call} {point.count}")
        inject = f"--inject={point.call}:{way}:when={point.count}"
        hit += under(vm, verb, f"--trace={point.call}", inject).returncode != 0
        is_sound(vm, verb, booted)
    assert hit >= len(points) // 2
    assert "off by guest-shutdown" in vm.run("stop").stderr
    checked = subprocess.run(["qemu-img", "check", "-q", vm.file(".qcow2")], capture_output=True)
    assert checked.returncode == 0, checked.stdout
