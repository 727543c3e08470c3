"""Disks that are full, broken or read-only, under real VMs: by strace's errors, and by a small tmpfs that is mounted."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import Cluster, Program, need, running, wait_for
from sabotage import boot, forget, obedient_image, ours, strace, unwatch


@pytest.fixture(scope="module")
def image(workshop: Path) -> Path:
    return obedient_image(workshop / "disks.img")


@pytest.fixture(scope="module")
def vm(new_cluster: Callable[..., Cluster], image: Path) -> Iterator[Cluster]:
    cluster = boot(new_cluster("broken-disk", image))
    yield cluster
    forget(cluster)


def failing(vm: Cluster, call: str, error: str, *argv: object) -> subprocess.CompletedProcess[str]:
    """Run a verb each of whose calls fails, as on a disk that is full or broken."""
    calls = strace(f"--trace={call}", f"--inject={call}:error={error}")
    words = [*[word for word in calls if word != "-f"], vm.program.path, *argv, "-c", vm.directory]
    done = subprocess.run(
        list(map(str, words)), cwd="/", env=vm.program.environ(YCLUSTER_TIMER="watcher"), text=True,
        capture_output=True, stdin=subprocess.DEVNULL, timeout=300,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    return done


TOLD = {"ENOSPC": "No space left on device", "EIO": "Input/output error"}


@pytest.mark.parametrize("error", TOLD)
@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_an_extend_that_cannot_be_saved_says_why_and_changes_nothing(
    vm: Cluster, call: str, error: str
) -> None:
    before = (ours(vm), vm.sidecar())
    done = failing(vm, call, error, "lifetime", "extend", "3h")
    assert (
        done.returncode == 1 and TOLD[error] in done.stderr and len(done.stderr.splitlines()) <= 3
    )
    assert (ours(vm), vm.sidecar()) == before
    assert vm.guard()["armed"]


@pytest.mark.parametrize("error", TOLD)
def test_a_provision_that_cannot_be_saved_leaves_nothing(
    new_cluster: Callable[..., Cluster], image: Path, error: str
) -> None:
    made = new_cluster(f"unsaved-{error.lower()}", image)
    done = failing(made, "fsync", error, "provision")
    assert done.returncode in (1, 5) and TOLD[error] in done.stderr
    assert ours(made) == [] and made.qemu() == []
    boot(made)  # and on a disk that has come to its senses
    forget(made)


def test_a_start_that_cannot_be_saved_runs_nothing(vm: Cluster) -> None:
    vm.run("stop")
    before = vm.sidecar()
    done = failing(vm, "fsync", "EIO", "start")
    assert done.returncode == 1 and TOLD["EIO"] in done.stderr
    assert vm.qemu() == [] and vm.sidecar() == before
    boot(vm, "start")


def test_a_reap_that_can_save_nothing_still_stops_the_vm_and_those_that_come_after_it(
    vm: Cluster, new_cluster: Callable[..., Cluster], image: Path
) -> None:
    other = boot(new_cluster("other-disk", image))
    for cluster in (vm, other):
        unwatch(cluster)
    vm.set_deadline(-5)
    done = failing(vm, "fsync", "EIO", "lifetime", "reap")
    assert done.returncode == 1 and "can't be saved" in done.stderr and TOLD["EIO"] in done.stderr
    assert vm.qemu() == []
    wait_for("the second try, which can save", lambda: vm.sidecar().get("reaped"))
    assert vm.sidecar()["reaped"]["how"] == "was not running" and not vm.sidecar().get("expiresAt")
    other.set_deadline(-5)
    other.program.run("lifetime", "reap", "--all", YCLUSTER_TIMER="watcher")
    assert other.qemu() == [] and other.status()["reaped"]["how"] == "guest-shutdown"
    forget(other)
    boot(vm, "start")


@pytest.fixture
def mounted(workshop: Path) -> Iterator[Callable[[Path, str], Path]]:
    """Mounts a small tmpfs for the time of a test; only in the mount namespace that tests/run.sh makes for root."""
    need(
        os.environ.get("YCLUSTER_OWN_MOUNTS"),
        "no mount namespace of its own: tests/run.sh gives root one, in a container",
    )
    with contextlib.ExitStack() as stack:

        def mount(place: Path, size: str) -> Path:
            place.mkdir()
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", place], check=True
            )
            stack.callback(subprocess.run, ["umount", "-l", place], check=True)
            return place

        yield mount


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    """What a kernel does with a disk that fails: files that are open stay so, and nothing else is written to."""
    subprocess.run(["mount", "--bind", place, place], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", place], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def fill(place: Path) -> Path:
    ballast = place / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    return ballast


def test_a_provision_on_a_full_disk_says_so_and_succeeds_when_there_is_room(
    new_cluster: Callable[..., Cluster], image: Path, mounted: Callable[[Path, str], Path]
) -> None:
    full = new_cluster("full", image)
    ballast = fill(mounted(full.cache, "8m"))
    done = full.run("provision", code=5, YCLUSTER_TIMER="watcher")
    assert TOLD["ENOSPC"] in done.stderr
    assert ours(full) == [] and full.qemu() == []
    ballast.unlink()
    boot(full)
    forget(full)


def test_a_full_disk_keeps_no_cluster_from_its_end(
    new_cluster: Callable[..., Cluster], image: Path, mounted: Callable[[Path, str], Path]
) -> None:
    vm = new_cluster("filled", image)
    mounted(vm.cache, "8m")
    boot(vm)
    ballast = fill(vm.cache)
    before = vm.sidecar()
    done = vm.run("lifetime", "extend", "1h", code=1)
    assert TOLD["ENOSPC"] in done.stderr
    assert vm.sidecar() == before and vm.guard()["armed"]
    told = vm.run("teardown").stderr
    assert "torn down" in told
    assert vm.qemu() == [] and ours(vm) == []
    ballast.unlink()


@pytest.mark.parametrize("action", ["stop", "teardown"])
def test_an_expiry_on_a_disk_that_became_read_only_still_stops_the_vm_and_others_after_it(
    new_cluster: Callable[..., Cluster],
    image: Path,
    mounted: Callable[[Path, str], Path],
    action: str,
) -> None:
    vm = new_cluster(f"frozen-{action}", image, on_expiry=action)
    other = boot(new_cluster(f"zz-after-{action}", image))
    mounted(vm.cache, "8m")
    boot(vm)
    for cluster in (vm, other):
        unwatch(cluster)
        cluster.set_deadline(-5)
    with read_only(vm.cache):
        done = vm.program.run("lifetime", "reap", "--all", code=1, YCLUSTER_TIMER="watcher")
        assert "Read-only file system" in done.stderr and f"not expired: {vm.name}" in done.stderr
        assert vm.qemu() == [] and other.qemu() == []
        assert vm.status()["state"] == "stopped" and vm.sidecar()["expiresAt"]
    vm.run("lifetime", "reap")
    assert vm.file(".qcow2").exists() is (action == "stop") or not vm.sidecar().get("expiresAt")
    forget(vm)
    forget(other)


# Real mode, loaded at 0000:7C00; the ports are those of sabotage.py. It fills the third disk, 32 KiB at a time from
# the BIOS's ROM, by the packet at 0x7D00.
WRITER = bytes.fromhex(
    "FA 31C0 8ED8 8ED0 BC007C BA0206 B80001 EF"  # the power button is to be noted
    "FB BE007D B282 B80043 CD13"  # again: int 13h, extended write to disk 82h
    "66 8306087D40"  # add dword [0x7D08], 64
    "BA0006 ED F6C401 74E6"  # not pressed: again
    "BA0406 B80020 EF EBDD"  # off
)
PACKET = bytes.fromhex("1000 4000 0000 00F0 0000000000000000")


def test_a_guest_whose_disk_has_no_room_is_suspended_and_goes_on_once_there_is_some(
    new_cluster: Callable[..., Cluster], workshop: Path, mounted: Callable[[Path, str], Path]
) -> None:
    """QEMU lets it stand still; what it has in memory is kept. (25)"""
    image = workshop / "writer.img"
    sector = bytearray(WRITER.ljust(510, b"\0") + b"\x55\xaa")
    sector[0x100:0x110] = PACKET
    image.write_bytes(sector.ljust(1 << 20, b"\0"))
    place = mounted(workshop / "small", "8m")
    disk = place / "data.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", disk, "64M"], check=True)
    vm = new_cluster("brimful", image, on_expiry="suspend")
    with open(vm.directory / "y-cluster-provision.yaml", "a") as config:
        config.write(f"dataDisk: {disk}\n")
    running(vm)
    wait_for("a full disk", lambda: vm.status()["state"] == "io-error", 120)
    assert "room" in vm.run("status").stdout
    assert "has no room" in vm.program.run("doctor", code=None).stdout
    assert "room" in vm.run("resume", code=1).stderr
    vm.set_deadline(20)
    vm.run("lifetime", "arm", YCLUSTER_TIMER="watcher")
    wait_for("the suspend", lambda: vm.status()["state"] == "suspended", 120)
    start = vm.program.spawn("start", "-c", vm.directory, YCLUSTER_TIMER="watcher")
    # Until its memory file is gone, the guest has executed nothing: it would be suspended again.
    wait_for("its memory", lambda: not vm.file(".memory").exists(), 120)
    wait_for("a full disk again", lambda: vm.status()["state"] == "io-error", 120)
    start.kill()
    start.communicate()
    subprocess.run(["mount", "-o", "remount,size=128m", place], check=True)
    vm.run("resume")
    wait_for("a disk that is written to", lambda: disk.stat().st_blocks << 9 > 32 << 20, 120)
    assert "off by guest-shutdown" in vm.run("stop").stderr
    forget(vm)


def test_a_home_that_cannot_be_written_to_costs_a_warning_and_no_cluster(
    new_cluster: Callable[..., Cluster],
    image: Path,
    mounted: Callable[[Path, str], Path],
    workshop: Path,
) -> None:
    home = mounted(workshop / "read-only-home", "8m")
    vm = new_cluster("homeless", image)
    subprocess.run(
        [vm.program.path, "--version"], env=vm.program.environ(HOME=str(home)), check=True
    )  # it unpacks
    with read_only(home):
        elsewhere = Cluster(Program(vm.program.path, home), vm.directory, vm.cache, vm.name)
        boot(elsewhere)
        assert elsewhere.guard()["armed"]
        elsewhere.set_deadline(-1)
        wait_for("the expiry", lambda: not elsewhere.qemu())
        wait_for(
            "its record", lambda: json.loads(elsewhere.file(".json").read_text()).get("reaped")
        )
        forget(elsewhere)
