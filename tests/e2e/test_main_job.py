"""The main job, on one Debian guest: it boots, it is worked with, and each of the three timers makes it expire.

The tests of this module go in order over the same VM: a boot takes a minute without KVM.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path
from typing import Callable

import pytest
from conftest import Cluster, Program, moment, wait_for
from sabotage import boot, obedient_image, unwatch

AHEAD = 15  # seconds to a deadline that the test waits for


@pytest.fixture(scope="module")
def vm(
    new_cluster: Callable[..., Cluster], guest_image: Path, user_manager: None, atd: None
) -> Cluster:
    return new_cluster("main-job", guest_image)


def our_timers(vm: Cluster) -> list[str]:
    listed = subprocess.run(
        ["systemctl", "--user", "list-timers", "--all", "--plain", "--no-legend"],
        text=True,
        capture_output=True,
    )
    return [
        word
        for word in listed.stdout.split()
        if word.startswith(f"ycluster-reap-{vm.name}-") and "timer" in word
    ]


def is_stopped(vm: Cluster) -> bool:
    return vm.status()["state"] == "stopped" and vm.status()["reaped"] is not None


def check_expired_by(vm: Cluster, backend: str) -> None:
    """What every expiry owes: the guest shut down by itself, its disk and sidecar there, nothing else left."""
    wait_for("QEMU to be gone", lambda: vm.qemu() == [])
    wait_for(f"the reap by {backend}", lambda: is_stopped(vm))
    reaped = vm.status()["reaped"]
    assert (reaped["by"], reaped["action"], reaped["how"]) == (backend, "stop", "guest-shutdown")
    assert vm.file(".qcow2").exists()
    assert "expiresAt" not in vm.sidecar() and "timer" not in vm.sidecar()
    wait_for("the last timer to be gone", lambda: our_timers(vm) == [])


def test_provision_boots_and_is_armed_by_systemd(vm: Cluster) -> None:
    done = vm.run("provision")
    assert done.stdout == ""
    stages = [line.split(" (")[0].strip() for line in done.stderr.splitlines()]
    names = ("starting QEMU", "booting", "waiting for SSH", "logging in", "waiting for cloud-init")
    assert [stage for stage in stages if stage in names] == [*names]
    shown, guard = vm.status(), vm.guard()
    assert shown["state"] == "running"
    assert (guard["backend"], guard["armed"], guard["nextFire"]) == (
        "systemd",
        True,
        shown["expiresAt"],
    )
    assert len(our_timers(vm)) == 1


def test_the_deadline_counts_from_the_start_and_not_from_the_end_of_provision(vm: Cluster) -> None:
    sidecar = vm.sidecar()
    assert 3600 <= moment(sidecar["expiresAt"]) - moment(sidecar["startedAt"]) <= 3601


def test_a_second_provision_is_refused_and_the_first_unharmed(vm: Cluster) -> None:
    before = vm.sidecar()
    assert "already runs" in vm.run("provision", code=1).stderr
    assert vm.sidecar() == before and len(vm.qemu()) == 1


def test_ssh_passes_words_output_and_exit_status(vm: Cluster) -> None:
    assert vm.run("ssh", "--", "echo $((6 * 7)) >&1; exit 7", code=7).stdout == "42\n"
    assert vm.run("ssh", "--", "printf", "%s|", "a b", "$HOME").stdout == "a b|$HOME|"


def test_the_guest_has_the_whole_disk_and_a_login_of_its_own(vm: Cluster) -> None:
    size = int(vm.run("ssh", "--", "df --output=size -B1 / | tail -1").stdout)
    assert size > 3400 << 20, "the image's own has 3,072 MiB"
    assert vm.run("ssh", "--", "sudo id -un").stdout == "root\n"
    assert vm.run("ssh", "--", "hostname").stdout == f"{vm.name}\n"


def test_the_guest_has_virtio_disks_an_rng_and_gives_space_back(vm: Cluster) -> None:
    assert "virtio_rng" in vm.run("ssh", "--", "cat /sys/class/misc/hw_random/rng_current").stdout
    assert vm.run("ssh", "--", "findmnt -no SOURCE /").stdout.startswith("/dev/vda")

    def blocks() -> int:
        return vm.file(".qcow2").stat().st_blocks * 512

    vm.run("ssh", "--", "head -c 200M /dev/urandom > filler && sync")
    filled = blocks()
    assert filled > 200 << 20
    vm.run("ssh", "--", "rm filler && sync && sudo fstrim /")
    assert blocks() < filled - (150 << 20)


def test_every_port_is_bound_to_loopback_and_every_file_is_private(vm: Cluster) -> None:
    listening = subprocess.run(["ss", "-Hltnp"], text=True, capture_output=True).stdout
    [pid] = vm.qemu()
    ours = [line.split()[3] for line in listening.splitlines() if f"pid={pid}," in line]
    assert ours == [f"127.0.0.1:{vm.status()['sshPort']}"]
    assert vm.cache.stat().st_mode & 0o777 == 0o700
    for path in vm.cache.rglob("*"):
        assert path.is_symlink() or path.stat().st_mode & 0o077 == 0, path


def test_list_shows_it_wherever_its_cache_dir_is(vm: Cluster, program: Program) -> None:
    header, *rows = (line.split()[:3] for line in program.run("list").stdout.splitlines())
    assert header == ["NAME", "STATE", "LEFT"]
    assert [vm.name, "running"] in [row[:2] for row in rows]


def test_pause_frees_the_cpu_keeps_the_deadline_and_twice_is_once(vm: Cluster) -> None:
    [pid] = vm.qemu()
    ends = vm.status()["expiresAt"]
    vm.run("pause")
    vm.run("pause")
    assert vm.status()["state"] == "paused"

    def ticks() -> int:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])

    before, began = ticks(), time.monotonic()
    time.sleep(2)  # a paused guest is seen by what does not happen
    assert (ticks() - before) / os.sysconf("SC_CLK_TCK") < 0.1 * (time.monotonic() - began)
    assert "is paused" in vm.run("ssh", "--", "true", code=1).stderr
    vm.run("resume")
    vm.run("resume")
    assert vm.status()["state"] == "running" and vm.status()["expiresAt"] == ends
    assert vm.run("ssh", "--", "echo back").stdout == "back\n"


def test_a_resume_sets_the_clock_of_the_guest(vm: Cluster) -> None:
    """As after a pause of an hour, which made it that late. (20.20)"""
    vm.run("ssh", "--", "sudo systemctl stop systemd-timesyncd; sudo date -s '-1 hour'")
    vm.run("pause")
    vm.run("resume")
    assert abs(int(vm.run("ssh", "--", "date +%s").stdout) - time.time()) < 1800


def test_start_of_a_running_cluster_changes_nothing(vm: Cluster) -> None:
    before = vm.sidecar()
    assert "already runs" in vm.run("start").stderr
    assert vm.sidecar() == before


def test_extend_moves_the_deadline_and_leaves_one_timer(vm: Cluster) -> None:
    before = vm.status()
    vm.run("lifetime", "extend", "90m")
    after = vm.status()
    assert moment(after["expiresAt"]) - moment(before["expiresAt"]) == 5400
    assert vm.guard()["nextFire"] == after["expiresAt"]
    wait_for("one timer", lambda: len(our_timers(vm)) == 1)


def test_a_timer_of_before_the_extension_fires_and_does_no_harm(vm: Cluster) -> None:
    """A real timer, armed for the deadline as it was and not taken away, runs what timers run."""
    sidecar = vm.sidecar()
    [timer] = our_timers(vm)
    shown = subprocess.run(
        ["systemctl", "--user", "show", timer.replace(".timer", ".service"), "--property=ExecStart"],
        text=True, capture_output=True,
    ).stdout  # fmt: skip
    script = shown.split("argv[]=/bin/sh -c ")[1].split(" ; ")[0]
    argv = ["/bin/sh", "-c", script]
    subprocess.run(
        ["systemd-run", "--user", "--quiet", "--collect", "--unit=stale", "--on-active=1s",
         "--timer-property=AccuracySec=100ms", "--property=StandardError=truncate:/run/stale.log", *argv],
        check=True,
    )  # fmt: skip
    wait_for(
        "the stale timer",
        lambda: "due in"
        in (Path("/run/stale.log").read_text() if Path("/run/stale.log").exists() else ""),
    )
    wait_for("one timer, armed anew", lambda: len(our_timers(vm)) == 1)
    assert vm.sidecar()["expiresAt"] == vm.guard()["nextFire"] == sidecar["expiresAt"]
    assert vm.guard()["armed"] and len(vm.qemu()) == 1
    assert vm.run("ssh", "--", "echo alive").stdout == "alive\n"


def test_disarm_and_arm(vm: Cluster) -> None:
    vm.run("lifetime", "disarm")
    assert our_timers(vm) == [] and vm.status()["disarmed"]
    assert "disarmed by hand" in vm.run("lifetime", "reap").stderr
    vm.run("lifetime", "arm")
    assert len(our_timers(vm)) == 1 and vm.guard()["armed"]


@pytest.mark.parametrize("backend", ["systemd", "at", "watcher"])
def test_its_user_is_warned_and_extends_it_from_there(
    vm: Cluster, tmp_path: Path, backend: str
) -> None:
    """By a timer of the warning's own; the terminal sees it, and the command that it runs is not locked out."""
    told = tmp_path / "told"
    command = f"env >'{told}.part'; '{vm.program.path}' lifetime extend 1h --name {vm.name} && mv '{told}.part' '{told}'"
    leader, follower = os.openpty()
    os.fchmod(follower, 0o620)  # as `mesg y`
    before = vm.happened()
    vm.set_deadline(90, warn="60s", onWarn=command, startedAt="2020-01-01T00:00:00Z")
    # Not by its config, which would be applied: it has no such warning.
    vm.program.run("lifetime", "arm", "--name", vm.name, YCLUSTER_TIMER=backend)
    armed = our_timers(vm)
    assert len(armed) == (2 if backend == "systemd" else 0)
    wait_for("the warning", told.exists)
    assert f"{vm.name} will be stopped in ".encode() in os.read(leader, 4096)
    os.close(leader)
    os.close(follower)
    facts = dict(line.split("=", 1) for line in told.read_text().splitlines())
    assert (facts["YCLUSTER_NAME"], facts["YCLUSTER_STATE"]) == (vm.name, str(vm.file(".json")))
    assert 0 < int(facts["YCLUSTER_REMAINING_SECONDS"]) <= 60
    assert 3000 < vm.status()["remainingSeconds"] <= 3690 and vm.status()["state"] == "running"
    assert vm.guard()["backend"] == backend, "the command that extended it did not choose one"
    told_of = vm.happened()[len(before) :]
    # What else fires meanwhile (at's job of the old deadline, the watcher) finds it extended, and may arm again.
    assert [event for event in told_of if event != "armed"] == ["warned", "extended"]
    vm.set_deadline(3600, warn="0", onWarn="")
    vm.run("lifetime", "arm", YCLUSTER_TIMER="systemd")
    wait_for("one timer", lambda: len(our_timers(vm)) == 1 and our_timers(vm) != armed)


def test_what_the_guest_has_synced_outlives_a_killed_qemu_and_its_machine_stays_the_same(
    vm: Cluster,
) -> None:
    machine = vm.sidecar()["machine"]
    vm.run("ssh", "--", "sudo touch /etc/cloud/cloud-init.disabled; echo solid > synced && sync")
    [pid] = vm.qemu()
    os.kill(pid, 9)
    wait_for("its end", lambda: vm.qemu() == [])
    assert vm.status()["state"] == "stopped"
    config = vm.directory / "y-cluster-provision.yaml"
    config.write_text(config.read_text().replace("memory: 1024", "memory: 1100"))
    told = vm.run("start", "--max-run", "30m", YCLUSTER_TIMER="systemd").stderr
    assert "memory: 1024 -> 1100" in told
    shown = vm.status()
    assert 1800 <= moment(shown["expiresAt"]) - moment(shown["startedAt"]) <= 1801
    assert shown["maxRun"] == "30m", "for this run alone: see the next start"
    assert vm.run("ssh", "--", "cat synced").stdout == "solid\n"
    [pid] = vm.qemu()
    assert machine.startswith("pc-q35-") and vm.sidecar()["machine"] == machine
    assert f"-machine\0{machine},".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert b"-m\x001100M\0" in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert len(our_timers(vm)) == 1


def test_a_guest_whose_cloud_init_is_disabled_is_not_waited_for(vm: Cluster) -> None:
    """By the start above: each boot takes a minute."""
    vm.run("ssh", "--", "test -e /run/cloud-init/disabled")


def test_systemd_reaps_it_at_its_deadline(vm: Cluster) -> None:
    vm.run("ssh", "--", "echo kept > precious")  # no sync: the shutdown has to keep it
    vm.set_deadline(2 * AHEAD)
    vm.run("lifetime", "arm", YCLUSTER_TIMER="systemd")
    assert vm.guard()["backend"] == "systemd"
    unwatch(vm)
    check_expired_by(vm, "systemd")
    assert "expired:" in vm.run("status").stdout
    assert "no expiry is due" in vm.run("lifetime", "reap").stderr


def test_start_gives_a_fresh_deadline_later_than_the_first(vm: Cluster) -> None:
    first = vm.sidecar()["reaped"]["at"]
    vm.run("start", YCLUSTER_TIMER="at")
    assert vm.status()["expiresAt"] > first
    assert vm.status()["remainingSeconds"] > 0
    assert 3600 <= moment(vm.status()["expiresAt"]) - moment(vm.status()["startedAt"]) <= 3601
    assert vm.guard() | {"survives": None} == {
        "backend": "at", "armed": True, "trouble": "", "nextFire": vm.status()["expiresAt"], "survives": None, "improve": "",
        "chosen": "at",
    }  # fmt: skip
    assert vm.run("ssh", "--", "cat precious").stdout == "kept\n"


@pytest.mark.parametrize("timer", ["at", "watcher"])
def test_it_is_reaped_at_its_deadline_without_systemd(
    new_cluster: Callable[..., Cluster], workshop: Path, atd: None, timer: str
) -> None:
    def queued() -> str:
        return subprocess.run(["atq"], text=True, capture_output=True).stdout

    jobs = queued()
    image = obedient_image(workshop / f"{timer}.img")
    vm = boot(new_cluster(f"main-job-by-{timer}", image))
    vm.set_deadline(3 * AHEAD)
    vm.run("lifetime", "arm", YCLUSTER_TIMER=timer)
    guard = vm.guard()
    assert (guard["backend"], guard["armed"]) == (timer, True)
    vm.program.path.rename(vm.program.path.with_name("moved"))  # it runs its own copy
    try:
        wait_for("QEMU to be gone", lambda: vm.qemu() == [])
    finally:
        vm.program.path.with_name("moved").rename(vm.program.path)
    check_expired_by(vm, timer)
    wait_for("its jobs to be gone", lambda: queued() == jobs)
    watching = ["pgrep", "-f", f"lifetime watch --state {vm.file('.json')}"]
    wait_for(
        "the watcher to leave",
        lambda: subprocess.run(watching, capture_output=True).returncode == 1,
    )


def test_stop_by_hand_takes_the_timer_away_and_twice_is_once(vm: Cluster) -> None:
    vm.run("lifetime", "arm", YCLUSTER_TIMER="systemd")
    assert len(our_timers(vm)) == 1
    assert "off by guest-shutdown" in vm.run("stop").stderr
    assert vm.qemu() == [] and vm.status()["state"] == "stopped"
    assert our_timers(vm) == [] and "timer" not in vm.sidecar()
    assert "was not running" in vm.run("stop").stderr
    assert "there is none to move" in vm.run("lifetime", "extend", "1h", code=1).stderr


def test_teardown_removes_the_clusters_files_and_no_others(vm: Cluster) -> None:
    foreign = vm.cache / "main-job-notes.txt"
    foreign.write_text("mine")
    vm.run("teardown")
    left = {path.name for path in vm.cache.iterdir()}
    assert left == {"images", foreign.name}
    assert "nothing to tear down" in vm.run("teardown").stderr
    assert vm.run("status", code=4).stdout == ""
    foreign.unlink()
