"""Things go wrong on a machine that never answers: cheap to boot, and as stubborn as a guest can be."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Callable

import pytest
from conftest import Cluster, Program, need, wait_for
from sabotage import unwatch

import ycluster


@pytest.fixture(scope="module")
def vm(new_cluster: Callable[..., Cluster], blank_image: Path) -> Cluster:
    return new_cluster("stubborn", blank_image, max_run="60s", on_expiry="pause")


def test_a_provision_killed_while_it_waits_still_expires(vm: Cluster) -> None:
    provision = vm.program.spawn("provision", "-c", vm.directory, YCLUSTER_TIMER="watcher")
    wait_for("QEMU", vm.qemu)
    wait_for("the sidecar of a running VM", lambda: vm.sidecar().get("machine"))
    assert vm.guard()["armed"]  # before the guest got anywhere
    provision.send_signal(signal.SIGKILL)
    provision.wait()
    wait_for("the expiry", lambda: vm.status()["state"] == "paused")
    wait_for("its record", lambda: vm.status()["reaped"])
    assert vm.status()["reaped"]["how"] == "QMP stop"


def test_resume_after_the_expiry_gives_a_fresh_budget_and_not_an_endless_one(vm: Cluster) -> None:
    vm.run("resume")
    assert vm.status()["state"] == "running"
    assert 0 < vm.status()["remainingSeconds"] <= 60
    assert vm.guard()["armed"]


def test_a_guest_that_ignores_the_power_button_is_torn_down_by_a_later_rung(vm: Cluster) -> None:
    vm.run("lifetime", "extend", "1h")
    unwatch(vm)
    vm.set_deadline(-60, onExpiry="teardown")
    done = vm.run("lifetime", "reap")
    assert "guest-shutdown did not end it" in done.stderr and "off by QMP quit" in done.stderr
    assert vm.qemu() == []
    assert [path.name for path in vm.cache.glob("stubborn*")] == []
    told = vm.run("status", code=4).stderr
    assert "stubborn: torn down " in told and "by its 60s budget (hand: QMP quit)" in told


def test_a_provision_that_cannot_boot_leaves_nothing(
    new_cluster: Callable[..., Cluster], blank_image: Path
) -> None:
    broken = new_cluster("broken", blank_image)
    config = broken.directory / "y-cluster-provision.yaml"
    config.write_text(config.read_text().replace("cpuModel: qemu64", "cpuModel: no-such-cpu"))
    done = broken.run("provision", code=1)
    assert "no-such-cpu" in done.stderr
    assert list(broken.cache.glob("broken*")) == [] and broken.qemu() == []


def test_a_taken_port_is_named_before_anything_is_made(
    new_cluster: Callable[..., Cluster], blank_image: Path
) -> None:
    import socket

    blocked = new_cluster("blocked", blank_image)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = blocked.directory / "y-cluster-provision.yaml"
        config.write_text(config.read_text().replace("sshPort: 0", f"sshPort: {port}"))
        done = blocked.run("provision", code=5)
    assert str(port) in done.stderr
    assert list(blocked.cache.glob("blocked*")) == []


def test_a_lost_timer_is_caught_by_the_next_command(
    new_cluster: Callable[..., Cluster], blank_image: Path
) -> None:
    """Its watcher is killed, so nothing fires; the provision of another cluster has it reaped. (20.18)"""
    lost = new_cluster("lost", blank_image, on_expiry="pause")
    waiting = lost.program.spawn("provision", "-c", lost.directory, YCLUSTER_TIMER="watcher")
    wait_for("QEMU", lost.qemu)
    wait_for("the sidecar of a running VM", lambda: lost.sidecar().get("machine"))
    waiting.kill()
    waiting.wait()
    subprocess.run(
        ["pkill", "-9", "-f", f"lifetime watch --state {lost.file('.json')}"], check=True
    )
    wait_for("status to tell", lambda: not lost.guard()["armed"])
    assert "NONE" in lost.run("lifetime", "status").stdout
    lost.set_deadline(-1)
    assert "OVERDUE" in lost.program.run("list").stdout
    assert lost.status()["state"] == "running"  # those that only look never act
    another = new_cluster("another", blank_image.with_name("no-such-image"))
    assert str(lost.file(".reap.log")) in another.run("provision", code=3).stderr
    wait_for("the reap", lambda: lost.sidecar().get("reaped"))
    assert lost.status()["state"] == "paused"
    assert lost.status()["reaped"]["by"] == "next command"


def test_no_scheduler_and_no_home_still_get_their_reap(program: Program, tmp_path: Path) -> None:
    """reap with nothing in its environment but the path of a sidecar."""
    need(Path("/usr/bin/env").exists(), "no env")
    sidecar = tmp_path / "bare.json"
    sidecar.write_text(
        '{"version": 1, "name": "bare", "lifetime": "1h", "expiresAt": "2020-01-01T00:00:00Z"}'
    )
    argv = [
        "env",
        "-i",
        "python3",
        program.path,
        "lifetime",
        "reap",
        "--state",
        sidecar,
    ]
    done = subprocess.run(
        argv, text=True, capture_output=True, cwd="/", env={"PATH": "/usr/bin:/bin"}
    )
    assert done.returncode == 0, done.stderr
    assert "was not running" in done.stderr and "2020" not in sidecar.read_text()


@pytest.mark.parametrize(
    "timer, remedy", [("at", "atrm {}"), ("systemd", "systemctl --user stop {}.timer")]
)
def test_doctor_finds_the_timers_that_no_cluster_knows_of(
    program: Program, user_manager: None, atd: None, timer: str, remedy: str
) -> None:
    sidecar = program.home / ".local" / "share" / "ycluster" / "gone.json"
    sidecar.parent.mkdir(parents=True, exist_ok=True)
    sidecar.write_text(
        '{"version": 1, "name": "gone", "lifetime": "1h", "expiresAt": "2100-01-01T00:00:00Z"}'
    )
    program.run("lifetime", "arm", "--name", "gone", YCLUSTER_TIMER=timer)
    theirs = subprocess.run(
        ["at", "-q", "c", "now + 1 year"], input="true", text=True, capture_output=True, check=True
    )

    def remedies() -> list[str]:
        shown = json.loads(program.run("doctor", "-o", "json", code=None).stdout)["findings"]
        return [finding["remedy"] for finding in shown if finding["name"] == "timers"]

    assert remedies() == []
    ident, saved = json.loads(sidecar.read_text())["timer"]["id"], sidecar.read_text()
    sidecar.write_text(
        saved.replace('"version": 1', '"version": 2')
    )  # a newer ycluster's: it guards
    assert remedies() == []
    for path in sidecar.parent.glob("gone*"):
        path.unlink()
    assert remedies() == [remedy.format(ident)]
    subprocess.run(remedy.format(ident).split(), check=True)
    assert remedies() == []
    subprocess.run(["atrm", theirs.stderr.partition("job ")[2].split()[0]], check=True)


def test_an_atd_of_another_mount_namespace_is_not_taken_for_ours() -> None:
    need(os.geteuid() == 0 and shutil.which("atd"), "needs root, for mounts of its own, and atd")
    own = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        str(Path(__file__).with_name("in-namespace.sh")),
    ]
    code = "import sys, os, ycluster; host = ycluster.Host(os.environ, ycluster.Output(sys.stdout, sys.stderr)); "
    ask = [
        sys.executable,
        "-c",
        code + "print(ycluster._look('at', 'failure', ycluster.AtTimer().check, host).text)",
    ]
    env = {**os.environ, "PYTHONPATH": str(Path(ycluster.__file__).parent)}

    def asked(*where: str) -> str:
        return subprocess.run(
            [*where, *ask], env=env, check=True, capture_output=True, text=True
        ).stdout

    foreign = subprocess.Popen([*own, "atd", "-f"])
    try:
        inside = ("nsenter", f"--mount=/proc/{foreign.pid}/ns/mnt")
        wait_for("atd, to whoever shares its files", lambda: asked(*inside) == "\n")
        assert "atd is not running" in asked(*own)
    finally:
        foreign.terminate()
        foreign.wait(60)
