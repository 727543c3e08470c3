"""What a machine that never answers shows of a VM's life: cheap to boot, and there is nothing in it to lose."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Callable

import pytest
from conftest import Cluster, Program, booting, need, running, wait_for


@pytest.fixture(scope="module")
def one(new_cluster: Callable[..., Cluster], blank_image: Path) -> Cluster:
    return running(new_cluster("one", blank_image))


def test_the_end_of_qemu_during_a_boot_is_told_with_the_consoles_last_words(
    new_cluster: Callable[..., Cluster], blank_image: Path
) -> None:
    doomed = new_cluster("doomed", blank_image)
    provision = booting(doomed)
    wait_for(
        "the firmware's last words",
        lambda: b"Nothing to do" in doomed.file("-console.log").read_bytes(),
    )
    [pid] = doomed.qemu()
    os.kill(pid, signal.SIGKILL)
    _, told = provision.communicate(timeout=300)
    assert provision.returncode == 1
    assert "QEMU ended while " in told and "Nothing to do" in told
    assert str(doomed.file("-console.log")) in told
    assert doomed.status()["state"] == "stopped"
    doomed.run("teardown")


def test_root_in_a_users_place_leaves_all_that_it_makes_to_that_user(
    new_cluster: Callable[..., Cluster], blank_image: Path, workshop: Path
) -> None:
    """As in a container, whose HOME may be anybody's: a memory of root's could be loaded by nobody else. (25)"""
    need(os.geteuid() == 0, "needs root, to make another user's files")
    home, bundle = workshop / "a user", workshop / "a user" / "bundles" / "one"
    home.mkdir()
    os.chown(home, 1000, 1000)
    made = new_cluster("theirs", blank_image)
    theirs = Cluster(Program(made.program.path, home), made.directory, home / "cache", "theirs")
    config = theirs.directory / "y-cluster-provision.yaml"
    config.write_text(config.read_text().replace(str(made.cache), str(theirs.cache)))
    running(theirs)
    theirs.run("suspend")
    assert theirs.file(".memory").exists()
    theirs.run("stop", "--discard-memory")
    theirs.run("export", bundle)
    assert (bundle / "theirs.qcow2").exists() or list(bundle.iterdir())
    theirs.program.run("init", home / "new")
    files = [path for path in (home, *home.rglob("*")) if not path.is_symlink()]
    roots = [path for path in files if path.stat().st_uid != 1000]
    theirs.run("teardown")
    assert roots == []


def test_a_kernel_that_panics_is_told_at_once(
    new_cluster: Callable[..., Cluster], panicking_image: Path
) -> None:
    vm = new_cluster("panicking", panicking_image)
    told = vm.run("provision", code=1, YCLUSTER_TIMER="watcher").stderr
    assert "its kernel panicked" in told and "IO-APIC + timer doesn't work!" in told
    assert vm.status()["state"] == "running" and vm.guard()["armed"]


def test_a_guest_that_is_paused_during_a_boot_ends_the_wait(
    new_cluster: Callable[..., Cluster], blank_image: Path
) -> None:
    halted = new_cluster("halted", blank_image)
    provision = booting(halted)
    halted.run("pause")
    _, told = provision.communicate(timeout=300)
    assert provision.returncode == 1 and "it is paused while " in told
    assert halted.status()["state"] == "paused" and halted.guard()["armed"]


def test_two_clusters_run_side_by_side_on_ports_that_qemu_chose(
    one: Cluster, new_cluster: Callable[..., Cluster], blank_image: Path
) -> None:
    other = new_cluster("other", blank_image)
    config = other.directory / "y-cluster-provision.yaml"
    config.write_text(
        config.read_text().replace("portForwards: []", 'portForwards: [{host: "", guest: 80}]')
    )
    running(other)
    shown = other.status()
    ports = {one.status()["sshPort"], shown["sshPort"], shown["portForwards"][0]["host"]}
    assert len(ports) == 3 and 0 not in ports
    assert other.sidecar()["machine"] == one.sidecar()["machine"] != "q35"
    rows = [line.split()[:2] for line in one.program.run("list").stdout.splitlines()]
    assert ["one", "running"] in rows and ["other", "running"] in rows


def test_a_port_of_another_clusters_is_named_with_its_owner(
    one: Cluster, new_cluster: Callable[..., Cluster], blank_image: Path
) -> None:
    late = new_cluster("late", blank_image)
    port = one.status()["sshPort"]
    config = late.directory / "y-cluster-provision.yaml"
    config.write_text(config.read_text().replace("sshPort: 0", f"sshPort: {port}"))
    told = late.run("provision", code=5).stderr
    assert f"port {port}: the cluster one has it (pid {one.qemu()[0]})" in told
    assert list(late.cache.glob("late*")) == []


def test_a_stop_that_is_interrupted_leaves_the_vm_its_deadline_and_its_timer(one: Cluster) -> None:
    before = one.status()
    stop = one.program.spawn("stop", "-c", one.directory)
    assert stop.stderr is not None and "stopping one" in stop.stderr.readline()
    stop.send_signal(signal.SIGTERM)  # SIGINT is ignored where a shell runs tests in the background
    _, told = stop.communicate(timeout=300)
    assert stop.returncode == 130 and "interrupted" in told
    after = one.status()
    assert (after["state"], after["expiresAt"]) == ("running", before["expiresAt"])
    assert one.guard()["armed"]
