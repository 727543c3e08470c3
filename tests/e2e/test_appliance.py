"""An appliance's life on one Debian guest, with the real libguestfs: a data disk, prepare-export, export, import.

The tests of this module go in order over the same clusters: a boot takes a minute without KVM.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable

import pytest
from conftest import ROOT, Cluster, Program, block, guest, need

FORMATS = {"qcow2": "qcow2", "raw": "img", "vmdk": "vmdk", "gcp-tar": "tar.gz"}
# The page's own commands, run as they stand there.
PREPARE, EXPORT, IMPORT, PROVISION = block(
    "docs/appliances.md", "Prepare, export and import"
).splitlines()
DATA_NOTE = "/data/yolean/note"
SBIN = "/usr/sbin:/sbin"
KEEP = "/run/ycluster-keep-running"
UNITS = {
    f"/etc/systemd/system/{folder}ycluster-max-run{name}"
    for folder, name in (
        ("", ".timer"),
        ("", ".service"),
        ("", "-warning.timer"),
        ("", "-warning.service"),
        ("timers.target.wants/", ".timer"),
        ("timers.target.wants/", "-warning.timer"),
    )
}
SECRET = "the-password-of-a-registry"


@pytest.fixture(scope="module")
def data_disk(workshop: Path) -> Path:
    return workshop / "data, of the appliance" / "volume.qcow2"


def with_data_disk(made: Cluster, disk: Path) -> Cluster:
    with open(made.directory / "y-cluster-provision.yaml", "a") as config:
        config.write(f'dataDisk: "{disk}"\ndataDiskSize: 1G\n')
    return made


@pytest.fixture(scope="module")
def work(workshop: Path) -> Path:
    """Where its user stands: in a HOME with a single cluster, that need not be named."""
    place = workshop / "work"
    place.mkdir()
    return place


@pytest.fixture(scope="module")
def vm(
    new_cluster: Callable[..., Cluster], guest_image: Path, data_disk: Path, work: Path
) -> Cluster:
    need(shutil.which("virt-customize"), "libguestfs-tools is not installed")
    need(shutil.which("zerofree", path="/usr/sbin"), "zerofree is not installed")
    need(list(Path("/boot").glob("vmlinuz-*")), "no kernel for libguestfs in /boot")
    made = with_data_disk(new_cluster("dev", guest_image), data_disk)
    with open(made.directory / "y-cluster-provision.yaml", "a") as config:
        config.write("guest: {proxy: host}\n")
    return replace(made, program=Program(made.program.path, work))


def as_written(vm: Cluster, command: str) -> None:
    """A line of the page, in a shell that finds ycluster."""
    env = vm.program.environ(PATH=f"{vm.program.path.parent}:/usr/local/bin:/usr/bin:/bin")
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=vm.program.home,
        env=env,
        text=True,
        capture_output=True,
        timeout=900,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def looked(disk: Path, *commands: str) -> list[str]:
    """What guestfish's commands say of a disk, by one launch of its appliance: each takes a minute without KVM."""
    script = "".join(f"{command}\necho =====\n" for command in commands)
    argv = ["guestfish", "--ro", "-a", str(disk), "-i"]
    env = {**os.environ, "LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
    done = subprocess.run(argv, input=script, text=True, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    return [said.strip() for said in done.stdout.split("=====\n")]


def test_provision_makes_a_labelled_ext4_data_disk_and_mounts_it(
    vm: Cluster, data_disk: Path
) -> None:
    vm.run("provision", HTTP_PROXY=f"http://me:{SECRET}@127.0.0.1:1")
    assert SECRET in guest(vm, "cat /etc/environment")
    assert guest(vm, "findmnt -no FSTYPE,LABEL /data/yolean") == "ext4   y-cluster-data"
    assert data_disk.stat().st_mode & 0o077 == 0 and os.listdir(data_disk.parent) == [
        data_disk.name
    ]
    guest(vm, f"echo kept | sudo tee {DATA_NOTE}; sudo touch /root/.bash_history; sudo sync")
    guest(
        vm,
        f"sudo mkdir -p /etc/rancher/k3s; echo {SECRET} | sudo tee /etc/rancher/k3s/registries.yaml; sync",
    )


def test_prepare_export_shuts_down_clears_the_deadline_and_cleans_the_disk(
    vm: Cluster, data_disk: Path
) -> None:
    before = guest(vm, "cat /etc/machine-id"), guest(vm, "cat ~/.ssh/authorized_keys")
    guest(vm, "sudo sed -i /y-cluster-data/d /etc/fstab")  # as of a cluster without a data disk
    vm.run("prepare-export", "--max-run", "1m")
    assert vm.qemu() == [] and vm.status()["state"] == "stopped"
    assert not {"expiresAt", "timer"} & set(vm.sidecar())

    seen = looked(vm.file(".qcow2"), "cat /etc/machine-id", "cat /home/ystack/.ssh/authorized_keys", "cat /etc/fstab",
                  "cat /etc/systemd/network/90-any-dhcp.network", "find /", "cat /etc/environment")  # fmt: skip
    assert seen[:2] == [*before]
    (entry,) = [line for line in seen[2].splitlines() if line.startswith("LABEL=y-cluster-data ")]
    assert "nofail" in entry and "cloudimg-rootfs" in seen[2]
    assert "DHCP=yes" in seen[3]
    every = {"/" + name for name in seen[4].split("\n")}
    assert {"/etc/machine-id", "/data/yolean", *UNITS} <= every
    gone = {
        "/root/.bash_history",
        "/var/lib/cloud",
        "/etc/cloud/cloud.cfg.d/99-ycluster.cfg",
        "/data/yolean/note",
    }
    gone |= {"/etc/rancher/k3s/registries.yaml", "/etc/default/ycluster-proxy"}
    assert SECRET not in seen[5]
    gone |= {
        name for name in every if "cloud-init" in name and name.startswith("/etc/systemd/network")
    }
    assert not gone & every


def write_into(disk: Path, files: dict[str, str], *commands: str) -> None:
    """Write files into the first partition of a raw disk; debugfs takes no minute, as guestfish does."""
    script = list(commands)
    with tempfile.TemporaryDirectory() as folder:
        for number, (path, text) in enumerate(files.items()):
            Path(folder, str(number)).write_text(text)
            script.append(f"write {number} {path}")
        subprocess.run(
            [shutil.which("debugfs", path=SBIN) or "debugfs", "-w", "-f", "-", f"{disk}?offset=1048576"],
            input="\n".join(script), text=True, check=True, cwd=folder, capture_output=True,
        )  # fmt: skip


def bare_boot(disk: Path, log: Path, *volume: str) -> str:
    """The console of a boot by QEMU alone, without a seed or a network of ycluster's, until QEMU ends by itself."""
    done = subprocess.run(
        ["qemu-system-x86_64", "-M", "q35", "-accel", "tcg", "-cpu", "qemu64", "-m", "1024", "-smp", "2",
         "-display", "none", "-monitor", "none", "-no-reboot", "-serial", f"file:{log}", "-nic", "user,model=virtio",
         "-drive", f"file={disk},format=raw,if=virtio", *volume],
        stdin=subprocess.DEVNULL, timeout=900, text=True, capture_output=True,
    )  # fmt: skip
    console = log.read_text(errors="replace")
    assert done.returncode == 0, done.stderr + console
    return console


def powered_off(console: str) -> float:
    """After how many seconds of its own the guest had shut down."""
    (off,) = re.findall(r"\[ *([0-9.]+)\] reboot: Power down", console)
    return float(off)


# Seen from within: it says so before the first power-off that falls due, however slow the guest is.
WITNESS = f"""\
[Unit]
After=data-yolean.mount
Before=ycluster-max-run.service
[Service]
Type=oneshot
ExecStart=/bin/sh -c 'exec >/dev/console 2>&1; systemctl list-timers --all --full --no-pager "ycluster-*"; sed s/^/note:/ {DATA_NOTE}'
"""


def test_an_exported_disk_powers_its_machine_off_after_each_boot_and_a_file_postpones_that(
    vm: Cluster, work: Path, data_disk: Path, tmp_path: Path
) -> None:
    """And mounts the data volume that it finds, on a host that knows nothing of ycluster."""
    need(shutil.which("debugfs", path=SBIN), "e2fsprogs is not installed")
    vm.run("export", tmp_path / "bundle", "--format", "raw")
    assert "1m0s after each boot" in (tmp_path / "bundle" / "README").read_text()
    disk = tmp_path / "bundle" / "dev.img"
    system = "/etc/systemd/system"
    write_into(
        disk,
        {
            f"{system}/witness.service": WITNESS,
            "/etc/tmpfiles.d/keep.conf": f"f {KEEP}\n",
            "/etc/systemd/system.conf.d/slow.conf": "[Manager]\nDefaultDeviceTimeoutSec=600\n",
        },
        "mkdir /etc/systemd/system.conf.d",
        f"symlink {system}/multi-user.target.wants/witness.service {system}/witness.service",
    )
    volume = f"file={str(data_disk).replace(',', ',,')},format=qcow2,if=virtio,snapshot=on"
    console = bare_boot(disk, tmp_path / "first.log", "-drive", volume)
    said = ["This machine powers itself off within 1m", f"{KEEP} is removed", "reboot: Power down"]
    places = [console.find(text) for text in said]
    assert -1 not in places and places == sorted(places), console
    assert "ycluster-max-run.timer " in console, "systemctl list-timers shows it"
    assert "note:kept" in console, "the volume is mounted"
    assert powered_off(console) >= 120, "postponed by as long again"
    wants = f"{system}/multi-user.target.wants/witness.service"
    write_into(disk, {}, "rm /etc/tmpfiles.d/keep.conf", f"rm {wants}")
    console = bare_boot(disk, tmp_path / "second.log")  # without a volume
    assert "This machine powers itself off" in console and "is removed" not in console
    assert powered_off(console) >= 60
    shutil.rmtree(tmp_path / "bundle")


def test_prepare_export_twice_is_once_and_without_the_flag_the_timer_goes(vm: Cluster) -> None:
    as_written(vm, PREPARE)
    assert vm.sidecar()["prepared"] == "done" and "diskMaxRun" not in vm.sidecar()
    units, fstab, _ = looked(vm.file(".qcow2"), "find /etc/systemd/system", "cat /etc/fstab")
    assert "timers.target.wants" in units and "ycluster" not in units
    assert fstab.count("y-cluster-data") == 1


@pytest.mark.parametrize("form", FORMATS)
def test_every_format_is_read_back_the_same(
    vm: Cluster, work: Path, tmp_path: Path, form: str
) -> None:
    if form == "gcp-tar":
        as_written(vm, EXPORT)
        bundle = work / "bundle"
    else:
        bundle = work / form
        vm.run("export", bundle, "--format", form)
    subprocess.run(["sha256sum", "-c", "--strict", "SHA256SUMS"], check=True, cwd=bundle)
    if form == "gcp-tar":
        packed = bundle / "dev.tar.gz"
        listed = subprocess.run(
            ["tar", "-tvzf", packed], text=True, capture_output=True, check=True
        ).stdout
        assert (
            len(listed.splitlines()) == 1
            and f" {4 << 30} " in listed
            and listed.split()[-1] == "disk.raw"
        )
        subprocess.run(["tar", "-xzf", packed, "-C", tmp_path], check=True)
        disk, kind = tmp_path / "disk.raw", "raw"
    else:
        disk, kind = bundle / f"dev.{FORMATS[form]}", form
        if form != "raw":
            subprocess.run(["qemu-img", "check", "-f", form, disk], check=True)
    subprocess.run(
        ["qemu-img", "compare", "-f", kind, "-F", "qcow2", disk, vm.file(".qcow2")], check=True
    )
    assert disk.stat().st_blocks * 512 < 2 << 30, "sparse stays sparse"
    if form in ("raw", "qcow2"):  # vmdk packs what is in it
        said = subprocess.run(["grep", "-c", "-a", SECRET, disk], capture_output=True, text=True)
        assert said.stdout == "0\n", "a file that was removed can be read no more"
    if form != "gcp-tar":
        disk.unlink()  # the bundle that is imported is the one that went the longest way


def test_an_ova_is_read_by_a_reader_of_such(vm: Cluster, work: Path) -> None:
    """virt-v2v, up to where it would convert the guest, which has no boot loader that it knows."""
    need(shutil.which("virt-v2v"), "virt-v2v is not installed")
    vm.run("export", work / "ova", "--format", "ova")
    env = {**os.environ, "LIBGUESTFS_BACKEND": "direct", "LIBGUESTFS_BACKEND_SETTINGS": "force_tcg"}
    argv = ["virt-v2v", "-i", "ova", work / "ova" / "dev.ova", "-o", "null"]
    said = subprocess.run(argv, text=True, capture_output=True, env=env)
    assert "Converting 12" in said.stdout and "no bootloader" in said.stderr, said
    shutil.rmtree(work / "ova")


def test_the_data_is_there_again_after_a_start(vm: Cluster) -> None:
    vm.run("start")
    assert guest(vm, f"cat {DATA_NOTE}") == "kept"
    assert "prepared" not in vm.sidecar()
    assert "is running" in vm.run("export", vm.directory / "bundle", code=1).stderr
    guest(vm, f"echo and more | sudo tee -a {DATA_NOTE}")
    vm.run("suspend")
    vm.run("start")
    assert guest(vm, f"cat {DATA_NOTE}") == "kept\nand more"
    vm.run("stop")


def test_an_imported_disk_boots_with_a_new_identity_and_finds_the_data_that_the_teardown_kept(
    vm: Cluster, work: Path, new_cluster: Callable[..., Cluster], guest_image: Path, data_disk: Path
) -> None:
    old = vm.file("-hostkey.pub").read_text()
    copy = replace(
        with_data_disk(new_cluster("bought", guest_image), data_disk), program=vm.program
    )
    (work / "copy").symlink_to(copy.directory)
    assert f"kept: {data_disk}" in vm.run("teardown").stderr
    assert os.listdir(vm.cache) and not vm.file(".qcow2").exists()
    as_written(vm, IMPORT)
    as_written(vm, PROVISION)
    assert guest(copy, f"hostname; cat {DATA_NOTE}") == "bought\nkept\nand more"
    key = copy.file("-hostkey.pub").read_text().split()[1]
    assert key in guest(copy, "sudo cat /etc/ssh/ssh_host_ed25519_key.pub") and key not in old
    # The keypair of the bundle is handed over: whoever received it gets in.
    argv = [
        "ssh",
        "-F",
        "/dev/null",
        "-i",
        work / "bundle" / "dev-ssh",
        "-p",
        copy.status()["sshPort"],
    ]
    for option in (
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "BatchMode=yes",
        "IdentitiesOnly=yes",
    ):
        argv += ["-o", option]
    ran = subprocess.run(
        [*map(str, argv), "ystack@127.0.0.1", "id -un"], text=True, capture_output=True
    )
    assert ran.stdout == "ystack\n", ran.stderr
    assert copy.status()["remainingSeconds"] > 0
    copy.run("teardown")
    assert data_disk.exists()


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that nobody, too, can look into."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_the_block_that_the_guard_prints_mends_the_kernels_of_today_and_of_tomorrow(
    open_dir: Path,
) -> None:
    """In a /boot and an /etc/kernel of its own, in the shell that it will be pasted into."""
    need(
        os.environ.get("YCLUSTER_OWN_MOUNTS") and shutil.which("run-parts"),
        "needs mounts of its own and run-parts",
    )
    for folder in ("bin", "boot", "etc/kernel/postinst.d", "m/6.1.0-1"):
        (open_dir / folder).mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "_check-host-kernel.sh", open_dir)
    (open_dir / "bin" / "sudo").write_text('#!/bin/sh\nexec "$@"\n')
    (open_dir / "bin" / "sudo").chmod(0o755)
    today, tomorrow = open_dir / "boot" / "vmlinuz-6.1.0-1", open_dir / "boot" / "vmlinuz-6.1.0-2"
    today.touch()
    today.chmod(0o600)
    script = f". {open_dir}/_check-host-kernel.sh 2>/dev/null; check_host_kernel /boot {open_dir}/m"
    inside = f"""\
set -eu
mount --bind {open_dir}/boot /boot
mount --bind {open_dir}/etc/kernel /etc/kernel
export PATH={open_dir}/bin:$PATH
remedy=$(setpriv --reuid=65534 --regid=65534 --clear-groups bash -c {script!r} 2>&1 || true)
printf '%s\\n' "$remedy"
bash -eu <<<"$(tail -n +3 <<<"$remedy")"
install -m 600 /dev/null /boot/vmlinuz-6.1.0-2
run-parts --exit-on-error --arg=6.1.0-2 --arg=/boot/vmlinuz-6.1.0-2 /etc/kernel/postinst.d
"""
    ran = subprocess.run(
        ["unshare", "--mount", "bash", "-c", inside], text=True, capture_output=True
    )
    assert ran.returncode == 0 and "can't be read" in ran.stdout, ran.stdout + ran.stderr
    assert [path.stat().st_mode & 0o777 for path in (today, tomorrow)] == [0o644, 0o644]
