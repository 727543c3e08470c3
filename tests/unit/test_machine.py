"""Sections 14, 15 and 18: what QEMU, ssh and cloud-init are told."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import json
import os
import pty
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_support import (
    LAUNCHER,
    NOW,
    Cli,
    Clocked,
    Processes,
    folded,
    made,
    missing,
    plain,
    refused,
    stand_in,
    try_kvm,
    without,
)

import ycluster
from ycluster import ACTIONS, Additions, Host, PortForward, State, YclusterError, qemu_argv, replace

FORWARDS = (PortForward(host=6443, guest=6443), PortForward(host=0, guest=80))


def state(cache_dir: object = "/c", **fields: object) -> State:
    given_ = {
        "name": "demo",
        "cache_dir": str(cache_dir),
        "port_forwards": FORWARDS,
        "auto_ports": (80,),
    }
    return State(**{**given_, **fields})  # type: ignore[arg-type]


def after(argv: list[str], option: str) -> list[str]:
    """The values given to an option, wherever it stands."""
    return [value for word, value in zip(argv, argv[1:]) if word == option]


def blockdevs(argv: list[str]) -> dict[str, dict[str, object]]:
    return {device["node-name"]: device for device in map(json.loads, after(argv, "-blockdev"))}


# --- qemu_argv


def test_forwards_listen_on_loopback_alone() -> None:
    (netdev,) = after(qemu_argv(state(), "tcg"), "-netdev")
    listens = re.findall(r"hostfwd=([^,]*)", netdev)
    assert listens == ["tcp:127.0.0.1:2222-:22", "tcp:127.0.0.1:6443-:6443", "tcp:127.0.0.1:0-:80"]


def test_qemu_is_asked_to_choose_again_whatever_it_chose_last_time() -> None:
    chosen = state(
        ssh_port=40315, port_forwards=(PortForward(host=40316, guest=80),), auto_ports=(22, 80)
    )
    (netdev,) = after(qemu_argv(chosen, "tcg"), "-netdev")
    assert "hostfwd=tcp:127.0.0.1:0-:22,hostfwd=tcp:127.0.0.1:0-:80" in netdev


@pytest.mark.parametrize(
    "accel, model, wanted",
    [
        ("kvm", "", ("kvm", "host")),
        ("tcg", "", ("tcg,thread=multi", "max")),
        ("kvm", "Haswell,-avx", ("kvm", "Haswell,-avx")),
        ("tcg", "qemu64", ("tcg,thread=multi", "qemu64")),
    ],
)
def test_the_accelerator_decides_the_cpu_unless_the_config_does(
    accel: str, model: str, wanted: tuple[str, str]
) -> None:
    argv = qemu_argv(state(cpu_model=model), accel)
    assert (after(argv, "-accel"), after(argv, "-cpu")) == ([wanted[0]], [wanted[1]])


def test_the_machine_has_the_size_and_type_of_the_sidecar() -> None:
    argv = qemu_argv(state(memory="2048", cpus="3", machine="pc-q35-7.2"), "tcg")
    assert (after(argv, "-m"), after(argv, "-smp")) == (["2048M"], ["3"])
    assert after(argv, "-machine") == ["pc-q35-7.2,graphics=off"]


@given(
    st.text(
        st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="/"), max_size=30
    ).filter(lambda word: word.strip("."))
)
def test_no_directory_name_can_become_an_option(directory: str) -> None:
    directory = "Zz9" + directory  # which stands nowhere else in the argv
    argv = qemu_argv(state("/srv/" + directory), "tcg")
    assert blockdevs(argv)["boot"]["file"]["filename"] == f"/srv/{directory}/demo.qcow2"  # type: ignore[index]
    assert after(argv, "-pidfile") == [f"/srv/{directory}/demo.pid"]
    spread = [word for word in argv if "Zz9" in word]
    assert all(word.startswith(("{", "/srv/")) for word in spread)


def test_sockets_and_logs_are_named_without_their_directory() -> None:
    argv = qemu_argv(state("/" + "d" * 200), "tcg")
    assert [re.search(r"path=([^,]*)", word)[1] for word in after(argv, "-chardev")] == [
        "demo-console.log",
        "demo.qmp",
    ]  # type: ignore[index]


def test_the_pidfile_is_absolute_since_it_is_the_vms_identity() -> None:
    (pidfile,) = after(qemu_argv(state(), "tcg"), "-pidfile")
    assert pidfile == "/c/demo.pid" and "-daemonize" in qemu_argv(state(), "tcg")


def test_a_seed_is_attached_read_only_where_there_is_one(tmp_path: Path) -> None:
    assert "seed" not in blockdevs(qemu_argv(state(tmp_path), "tcg"))
    (tmp_path / "demo-seed").mkdir()
    seed = blockdevs(qemu_argv(state(tmp_path), "tcg"))["seed"]
    assert (seed["dir"], seed["label"], seed["read-only"]) == (
        str(tmp_path / "demo-seed"),
        "CIDATA",
        True,
    )


def test_the_disks_are_qcow2_and_the_data_disk_is_the_second() -> None:
    argv = qemu_argv(state(data_disk="/d/a, b.qcow2"), "tcg")
    boot, data = blockdevs(argv).values()
    assert boot["driver"] == data["driver"] == "qcow2"
    paths = [disk["file"]["filename"] for disk in (boot, data)]  # type: ignore[index]
    assert paths == ["/c/demo.qcow2", "/d/a, b.qcow2"]
    blocks = [device for device in after(argv, "-device") if "virtio-blk" in device]
    assert blocks == ["virtio-blk-pci,drive=boot,bootindex=0", "virtio-blk-pci,drive=data"]
    assert set(blockdevs(qemu_argv(state(), "tcg"))) == {"boot"}


def test_the_argv_depends_on_state_alone() -> None:
    assert {
        tuple(qemu_argv(state(on_expiry=action, expires_at=5), "tcg")) for action in ACTIONS
    } == {tuple(qemu_argv(state(), "tcg"))}


# --- KVM's trial


class Booted(Clocked):
    """A host whose boot id and QEMU version a test chooses."""

    boot, version = "boot-1", "QEMU emulator version 7.2.22"

    def boot_id(self) -> str:
        return self.boot

    def attempt(self, argv: object, *, timeout: float) -> str:
        return self.version + "\nCopyright\n"


@pytest.fixture
def kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ycluster.os.access",
        lambda path, mode, real=os.access: path == "/dev/kvm" or real(path, mode),
    )


def trial(host: Booted, tmp_path: Path, qemu: str) -> str:
    """What is said of a KVM whose QEMU is this shell script."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.write_text(f"#!/bin/sh\n{qemu}\n")
    program.chmod(0o755)
    host.environ["PATH"] = f"{tmp_path}/bin:/usr/bin:/bin"
    with pytest.raises(ycluster.PrerequisiteError) as caught:
        try_kvm(host)
    return str(caught.value)


def test_the_trial_is_a_boot_sector_that_real_qemu_runs(
    home: Path, monkeypatch: pytest.MonkeyPatch, kvm: None
) -> None:
    """By TCG, which does in half a second what a KVM that works does in a tenth."""
    real = Clocked.run
    if not Clocked(home).which("qemu-system-x86_64"):
        pytest.skip("there is no QEMU")

    def emulated(
        self: Clocked, argv: list[str], **options: object
    ) -> subprocess.CompletedProcess[str]:
        assert argv[argv.index("-accel") + 1] == "kvm"
        words = ["tcg" if word == "kvm" else "max" if word == "host" else word for word in argv]
        return real(self, words, **{**options, "timeout": 60.0})  # type: ignore[arg-type]

    monkeypatch.setattr(Clocked, "run", emulated)
    monkeypatch.setattr(Clocked, "monotonic", lambda self: ycluster.time.monotonic())
    try_kvm(Clocked(home))
    monkeypatch.setattr(
        ycluster, "KVM_BOOT_SECTOR", bytes.fromhex("b011e6f4f4ebfd")
    )  # another number
    with refused(ycluster.PrerequisiteError, "exit 35"):
        try_kvm(Clocked(home))


def test_a_kvm_that_fails_the_trial_is_told_apart(
    home: Path, tmp_path: Path, kvm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Booted(home)
    said = trial(host, tmp_path, "echo failed to set MSR 0x10a >&2; exit 1")
    assert folded(said).endswith(": failed to set MSR 0x10a") and "speed" not in said
    assert folded(trial(host, tmp_path, "exit 1")).endswith(": exit 1")
    monkeypatch.setattr(Clocked, "monotonic", lambda self: ycluster.time.monotonic())
    monkeypatch.setattr(ycluster, "KVM_TIMEOUT", 2.0)
    assert "at speed" in folded(trial(host, tmp_path, "exec sleep 60"))
    monkeypatch.setattr(Booted, "which", lambda self, program: program)
    monkeypatch.setattr("ycluster.os.access", lambda path, mode: False)
    assert "/dev/kvm" in trial(host, tmp_path, "exit 33")


@pytest.mark.parametrize(
    "changed, again",
    [({}, False), ({"boot": "boot-2"}, True), ({"version": "QEMU emulator version 9.0"}, True)],
    ids=["same boot, same QEMU", "rebooted", "upgraded"],
)
def test_a_kvm_that_has_passed_its_trial_is_tried_once_in_a_boot(
    home: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, str], again: bool
) -> None:
    held: list[object] = []
    monkeypatch.setattr(ycluster, "try_kvm", held.append)
    host = Booted(home)
    assert ycluster.kvm_works(host) and ycluster.kvm_works(host) and len(held) == 1
    vars(host).update(changed)
    assert ycluster.kvm_works(host) and len(held) == 1 + again


# A QEMU whose KVM does what a test writes to files: `check` is what the boot sector comes to, and a
# launch with KVM fails where `held` is there. It counts its checks, and needs no KVM itself.
KVM_HOST = """\
#!/bin/sh
case "$*" in
*--version*) echo 'QEMU emulator version 7.2.22' ;;
*isa-debug-exit*) echo >>{folder}/checks; . {folder}/check ;;
*'-accel kvm'*) if [ -e {folder}/held ]; then echo 'KVM_CREATE_VM: busy' >&2; exit 1; fi ;;
esac
: >>demo-console.log; : >demo.qmp
"""
PASSES, BUSY, CRAWLS = "exit 33", "echo 'KVM_CREATE_VM: busy' >&2; exit 1", "exec sleep 60"


class KvmHost:
    """A host with that QEMU, and the clusters that it launches."""

    def __init__(self, host: Clocked, folder: Path) -> None:
        self.host, self.folder = host, folder
        program = folder / "bin" / "qemu-system-x86_64"
        program.parent.mkdir()
        program.write_text(KVM_HOST.format(folder=folder))
        program.chmod(0o755)
        host.environ["PATH"] = f"{program.parent}:/usr/bin:/bin"

    def kvm(self, check: str, *, held: bool = False) -> None:
        (self.folder / "check").write_text(check)
        (self.folder / "held").unlink(missing_ok=True)
        if held:
            (self.folder / "held").touch()

    def runs_with(self, accel: str = "auto") -> str:
        fields = {"accel": accel, "machine": "q35", "auto_ports": ()}
        return ycluster.launch(self.host, state(self.folder, **fields)).ran_with

    @property
    def checks(self) -> int:
        return len((self.folder / "checks").read_text().splitlines())


@pytest.fixture
def kvm_host(host: Clocked, tmp_path: Path, kvm: None, monkeypatch: pytest.MonkeyPatch) -> KvmHost:
    monkeypatch.setattr(ycluster, "try_kvm", try_kvm)
    return KvmHost(host, tmp_path)


def test_a_kvm_that_failed_its_trial_is_asked_again_at_the_next_start(kvm_host: KvmHost) -> None:
    """VirtualBox had it, and has let it go. (20.19)"""
    kvm_host.kvm(BUSY)
    assert [kvm_host.runs_with(), kvm_host.runs_with()] == ["tcg", "tcg"]
    assert kvm_host.host.log.getvalue().count("KVM_CREATE_VM: busy") == 2, "each start says why"
    kvm_host.kvm(PASSES)
    assert [kvm_host.runs_with(), kvm_host.runs_with()] == ["kvm", "kvm"]
    assert kvm_host.checks == 3


def test_a_kvm_that_crawls_is_asked_again_after_a_quarter_of_an_hour(
    kvm_host: KvmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each check of it takes ten seconds. (20.19)"""
    monkeypatch.setattr(ycluster, "KVM_TIMEOUT", 2.0)
    monkeypatch.setattr(Clocked, "monotonic", lambda self: ycluster.time.monotonic())
    kvm_host.kvm(CRAWLS)
    assert [kvm_host.runs_with(), kvm_host.runs_with()] == ["tcg", "tcg"]
    assert kvm_host.checks == 1 and kvm_host.host.log.getvalue().count("at speed") == 2
    monkeypatch.setattr(ycluster, "KVM_TIMEOUT", 60.0)
    kvm_host.kvm(PASSES)
    kvm_host.host.time += 890
    assert kvm_host.runs_with() == "tcg"
    kvm_host.host.time += 20
    assert kvm_host.runs_with() == "kvm"


def test_a_verdict_of_the_future_does_not_hold(
    kvm_host: KvmHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was wrong when KVM crawled, or is now. (20.19)"""
    monkeypatch.setattr(ycluster, "KVM_TIMEOUT", 2.0)
    monkeypatch.setattr(Clocked, "monotonic", lambda self: ycluster.time.monotonic())
    kvm_host.kvm(CRAWLS)
    assert kvm_host.runs_with() == "tcg"
    monkeypatch.setattr(ycluster, "KVM_TIMEOUT", 60.0)
    kvm_host.kvm(PASSES)
    kvm_host.host.time -= 60
    assert kvm_host.runs_with() == "kvm"


def test_a_kvm_that_fails_at_the_launch_is_given_up_and_asked_again_the_next_time(
    kvm_host: KvmHost,
) -> None:
    """It passed its check in this boot, and another has taken it since. (20.19)"""
    kvm_host.kvm(PASSES)
    assert kvm_host.runs_with() == "kvm"
    kvm_host.kvm(BUSY, held=True)
    assert kvm_host.runs_with() == "tcg"
    assert folded(kvm_host.host.log.getvalue()).count("KVM_CREATE_VM: busy") == 1
    assert (kvm_host.runs_with(), kvm_host.checks) == ("tcg", 2)
    kvm_host.kvm(PASSES)
    assert (kvm_host.runs_with(), kvm_host.checks) == ("kvm", 3)


def test_a_kvm_that_the_config_asks_for_is_not_replaced(kvm_host: KvmHost) -> None:
    """(20.19)"""
    kvm_host.kvm(PASSES, held=True)
    with refused(YclusterError, "KVM_CREATE_VM: busy"):
        kvm_host.runs_with("kvm")


def test_a_launch_that_fails_with_and_without_kvm_fails_with_the_latters_error(
    kvm_host: KvmHost,
) -> None:
    """It was not KVM's fault, or not its alone. (20.19)"""
    kvm_host.kvm(PASSES, held=True)
    program = kvm_host.folder / "bin" / "qemu-system-x86_64"
    program.write_text(program.read_text() + "echo 'no such disk' >&2; exit 1\n")
    with refused(YclusterError, "no such disk"):
        kvm_host.runs_with()


def test_the_trial_is_held_anew_once_the_device_is_opened_to_the_user(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after `usermod -aG kvm` and a new login, which is what the first trial advised."""
    opens, real = False, os.access
    monkeypatch.setattr(
        "ycluster.os.access", lambda path, mode: opens if path == "/dev/kvm" else real(path, mode)
    )

    def hold(host: object) -> None:
        if not opens:
            raise ycluster.PrerequisiteError("/dev/kvm is closed to you")

    monkeypatch.setattr(ycluster, "try_kvm", hold)
    assert not ycluster.kvm_works(Booted(home))
    opens = True
    assert ycluster.kvm_works(Booted(home))


def test_a_verdict_that_was_cut_off_or_can_not_be_kept_is_asked_for_again(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ycluster, "try_kvm", lambda host: None)
    host = Booted(home)
    host.state_home().mkdir(parents=True)
    for text in ("", "\n", "boot-1 QEMU emulator version 7.2.22\n", "\xff", "tcg"):
        (host.state_home() / "kvm-trial").write_text(text)
        assert ycluster.kvm_works(host)
    assert ycluster.kvm_works(Booted(home / "none" / "such"))


@pytest.mark.parametrize(
    "asked, works, runs_with",
    [("auto", True, "kvm"), ("auto", False, "tcg"), ("kvm", False, "kvm"), ("tcg", True, "tcg")],
)
def test_the_configs_accelerator_goes_before_the_trial(
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    works: bool,
    runs_with: str,
) -> None:
    spawned = []
    monkeypatch.setattr(ycluster, "kvm_works", lambda host: works)
    monkeypatch.setattr(ycluster, "_spawn_qemu", lambda host, state, accel: spawned.append(accel))
    launched = ycluster.launch(
        Booted(home), state(tmp_path, accel=asked, machine="q35", auto_ports=())
    )
    assert (launched.ran_with, spawned) == (runs_with, [runs_with])


@pytest.mark.parametrize(
    "listing, machine",
    [
        ("pc-q35-7.2  Standard PC\nq35                  Standard PC (Q35 + ICH9, 2009) (alias of pc-q35-7.2)\n", "pc-q35-7.2"),
        ("q35                  Standard PC\nmicrovm  (alias of other)\n", "q35"),
        ("", "q35"),
    ],
)  # fmt: skip
def test_the_machine_type_is_pinned_to_a_version(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, machine: str
) -> None:
    class Lists(Booted):
        def run(self, argv, **options):  # type: ignore[no-untyped-def]
            assert argv == ["qemu-system-x86_64", "-machine", "help"]
            return subprocess.CompletedProcess(tuple(argv), 0, listing, "")

    monkeypatch.setattr(ycluster, "_spawn_qemu", lambda host, state, accel: None)
    assert (
        ycluster.launch(Lists(home), state(tmp_path, accel="tcg", auto_ports=())).machine == machine
    )
    assert (
        ycluster.launch(
            Lists(home), state(tmp_path, accel="tcg", auto_ports=(), machine="pc-q35-6.2")
        ).machine
        == "pc-q35-6.2"
    )


def test_qemus_monitor_and_console_are_its_users_alone(tmp_path: Path, host: Clocked) -> None:
    """QEMU's daemon has a umask of its own, 027."""
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\numask 027; : >>demo-console.log; : >demo.qmp\n")
    program.chmod(0o755)
    host.environ["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    demo = ycluster.launch(host, state(tmp_path, accel="tcg", machine="q35", auto_ports=()))
    for path in (demo.files.qmp, demo.files.console):
        assert path.stat().st_mode & 0o777 == 0o600


QEMU = f"""\
#!{sys.executable} -IS
import os, signal, socket, sys, time
if os.fork():
    os._exit(0)
os.setsid()
signal.alarm(60)
open("demo-console.log", "w").close()
socket.socket(socket.AF_UNIX).bind("demo.qmp")  # and nobody listens
pidfile = sys.argv[sys.argv.index("-pidfile") + 1]
with open(pidfile, "w") as file:
    file.write(str(os.getpid()))
for fd in range(3):
    os.dup2(os.open(os.devnull, os.O_RDWR), fd)
time.sleep(60)
"""


@pytest.fixture
def mute(tmp_path: Path, host: Clocked) -> Iterator[State]:
    """For a QEMU that makes itself a daemon, and has a monitor that does not answer."""
    program = tmp_path / "bin" / "qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(QEMU)
    program.chmod(0o755)
    host.environ["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    demo = state(tmp_path, accel="tcg", machine="q35")
    yield demo
    for pid in ycluster.pids():
        if str(demo.files.pidfile) in ycluster.pidfiles(pid):
            os.kill(pid, signal.SIGKILL)


def test_qemu_holds_its_lock_to_its_last_breath(mute: State, host: Clocked) -> None:
    demo = ycluster.replace(mute, auto_ports=())
    ycluster.launch(host, demo)
    assert ycluster.flock_held(demo.files.vm_lock)
    with ycluster.find_vm(host, demo.files) as vm:
        assert vm
        with pytest.raises(YclusterError):
            ycluster.launch(host, demo)
        ycluster.send_signal(vm.pidfd, signal.SIGKILL)
        select.select([vm.pidfd], [], [], 60)
    assert not ycluster.flock_held(demo.files.vm_lock)


def test_a_qemu_that_does_not_say_which_ports_it_chose_is_not_left_running(
    mute: State, host: Clocked
) -> None:
    with pytest.raises(YclusterError):
        ycluster.launch(host, mute)
    assert mute.files.pidfile.exists(), "it ran"
    assert not ycluster.running(host, mute.files)
    assert not ycluster.flock_held(mute.files.vm_lock)


# --- the guest


def test_a_guest_boots_without_its_data_disk_too() -> None:
    entry = ycluster.DATA_ENTRY
    assert entry.startswith("LABEL=y-cluster-data ") and entry in ycluster.MOUNT_DATA
    assert "nofail" in entry.split()[3].split(",")


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"]), max_size=40))
def test_user_data_is_a_cloud_config_that_needs_no_quoting(key: str) -> None:
    mirrors = {"configs": {"r.example": {"auth": {"password": key}}}}
    written = ycluster.seed_data(
        state(ssh_user="dev"), key + "\n", "PRIVATE\nKEY\n", "PUBLIC\n", Additions(mirrors)
    )
    header, _, body = written.partition("\n")
    data = json.loads(body)
    (user,) = data["users"]
    assert header == "#cloud-config"
    assert (user["name"], user["ssh_authorized_keys"], user["lock_passwd"]) == (
        "dev",
        [key.strip()],
        True,
    )
    assert data["ssh_keys"] == {"ed25519_private": "PRIVATE\nKEY\n", "ed25519_public": "PUBLIC"}
    _, registries = data["write_files"]
    assert (registries["path"], registries["permissions"]) == (
        "/etc/rancher/k3s/registries.yaml",
        "0600",
    )
    assert json.loads(registries["content"]) == mirrors
    assert plain(ycluster.parse_yaml(body, "user-data")) == data


@pytest.mark.parametrize(
    "fields, is_there",
    [
        ({"data_disk": "/d.qcow2", "k3s": {"Install": "airgap"}}, True),
        ({"data_disk": "/d.qcow2", "k3s": {"Install": "none"}}, False),
        ({"k3s": {"Install": "airgap"}}, False),
    ],
)
def test_k3s_keeps_its_volumes_on_the_data_disk_if_there_is_one(
    fields: dict[str, Any], is_there: bool
) -> None:
    """(24)"""
    written = ycluster.seed_data(state(**fields), "key", "private", "public", Additions())
    files = json.loads(written.partition("\n")[2])["write_files"]
    content = {file["path"]: file["content"] for file in files}
    storage = "default-local-storage-path: /data/yolean/k3s-storage\n"
    assert (content.get("/etc/rancher/k3s/config.yaml.d/90-ycluster.yaml") == storage) is is_there
    unit = content.get("/etc/systemd/system/k3s.service.d/90-ycluster.conf", "")
    assert ("After=data-yolean.mount" in unit) is is_there


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
def test_keys_and_seed_are_private_and_new_each_time(tmp_path: Path) -> None:
    host, demo = Clocked(tmp_path), state(tmp_path)
    seen = set()
    for _ in range(2):
        ycluster.make_keys(host, demo)
        ycluster.make_seed(demo, Additions())
        login = demo.files.ssh_pub.read_text().strip()
        user_data = (demo.files.seed / "user-data").read_text()
        assert login in user_data and demo.files.host_key.read_text() in json.loads(user_data.split("\n", 1)[1])["ssh_keys"].values()  # fmt: skip
        assert demo.files.known_hosts.read_text().split() == [
            "demo",
            *demo.files.host_pub.read_text().split()[:2],
        ]
        for path in (demo.files.ssh_key, demo.files.host_key, demo.files.seed / "user-data"):
            assert path.stat().st_mode & 0o77 == 0
        seen |= {login, (demo.files.seed / "meta-data").read_text()}
    assert len(seen) == 4


@pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="ssh-keygen is not installed")
def test_a_host_that_refuses_ed25519_makes_keys_of_p_256(tmp_path: Path) -> None:
    """As in FIPS mode. (26.4)"""
    (tmp_path / "bin").mkdir()
    refusing = tmp_path / "bin" / "ssh-keygen"
    refusing.write_text(
        '#!/bin/sh\ncase " $* " in *" ed25519 "*)\n'
        "  echo 'ED25519 keys are not allowed in FIPS mode' >&2; exit 255 ;;\nesac\n"
        f'exec {shutil.which("ssh-keygen")} "$@"\n'
    )
    refusing.chmod(0o755)
    demo = state(tmp_path)
    host = Clocked(tmp_path, PATH=f"{tmp_path}/bin:{os.environ['PATH']}")
    ycluster.make_keys(host, demo)
    ycluster.make_seed(demo, Additions())
    for public in (demo.files.ssh_pub, demo.files.host_pub):
        assert public.read_text().startswith("ecdsa-sha2-nistp256 ")
    assert demo.files.known_hosts.read_text().split()[1] == "ecdsa-sha2-nistp256"
    data = json.loads((demo.files.seed / "user-data").read_text().partition("\n")[2])
    assert data["ssh_keys"] == {
        "ecdsa_private": demo.files.host_key.read_text(),
        "ecdsa_public": demo.files.host_pub.read_text().strip(),
    }


@pytest.mark.parametrize(
    "listed, is_missing",
    [("socket\nhubport\ntap\nuser\n", False), ("socket\nhubport\ntap\n", True), ("?\n", False)],
)
def test_a_qemu_without_user_networking_is_named(
    tmp_path: Path, listed: str, is_missing: bool
) -> None:
    """By doctor, and in the place of QEMU's own words when a start fails. (26.4)"""
    qemu = tmp_path / ycluster.QEMU
    qemu.write_text(f'#!/bin/sh\n[ "$1" = -netdev ] || exit 1\nprintf "Available:\\n{listed}"\n')
    qemu.chmod(0o755)
    host = Clocked(tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
    checks = (
        lambda: ycluster.check_user_network(host),
        lambda: ycluster._spawn_qemu(host, state(tmp_path), "tcg"),
    )
    for check, otherwise in zip(checks, (None, ycluster.ProgramFailed)):
        wanted = ycluster.PrerequisiteError if is_missing else otherwise
        with contextlib.ExitStack() as stack:
            if wanted:
                stack.enter_context(pytest.raises(wanted))
            check()


@pytest.mark.parametrize("limit", [None, 600])
def test_a_limit_of_cpu_time_is_lifted_for_qemu_or_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    """QEMU would be killed in mid-work. (25)"""
    (tmp_path / ycluster.QEMU).write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / ycluster.QEMU).chmod(0o755)
    host = Clocked(tmp_path, PATH=f"{tmp_path}:/usr/bin:/bin")
    limits = []
    monkeypatch.setattr(Host, "cpu_limit", lambda self: limit)
    (tmp_path / ycluster.QEMU).write_text(f"#!/bin/sh\nulimit -St >{tmp_path}/limit\n")
    before = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (5000, before[1]))
    try:
        with pytest.raises(FileNotFoundError, match="qmp"):
            ycluster._spawn_qemu(host, state(tmp_path), "tcg")
        limits.append(resource.getrlimit(resource.RLIMIT_CPU)[0])
    finally:
        resource.setrlimit(resource.RLIMIT_CPU, before)
    assert (tmp_path / "limit").read_text() != "5000\n" and limits == [5000]
    assert ("600 s of CPU time" in host.log.getvalue()) is (limit is not None)


def test_a_vm_that_wants_more_memory_than_is_free_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(26.4)"""
    free = int(re.findall(r"MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text())[0]) // 1024
    host = Clocked(tmp_path)
    ycluster.warn_of_little_memory(host, state(tmp_path, memory=str(free // 4)))
    assert host.log.getvalue() == ""
    ycluster.warn_of_little_memory(host, state(tmp_path, memory=str(free * 4)))
    assert f"may take {free * 4} MiB" in host.log.getvalue() and "`memory`" in host.log.getvalue()


@pytest.mark.parametrize(
    "limits, free",
    [
        ({}, 8000),
        ({"": "max"}, 8000),
        ({"": 3000}, 2900),
        ({"a/b": 3000, "a": 2000, "": "max"}, 1900),
        ({"a/b": 50}, 0),
        ({"c": 50}, 8000),
    ],
)
def test_the_limit_of_a_cgroup_counts_as_the_hosts(
    tmp_path: Path, limits: dict[str, object], free: int
) -> None:
    """Such as a container's. (26.4)"""
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {8000 << 10} kB\n")
    (proc / "self/cgroup").write_text("4:memory:/c\n0::/a/b\n")
    for name, limit in limits.items():
        folder = cgroups / name
        folder.mkdir(parents=True, exist_ok=True)
        most = limit if limit == "max" else int(str(limit)) << 20
        (folder / "memory.max").write_text(f"{most}\n")
        (folder / "memory.current").write_text(f"{150 << 20}\n")
        (folder / "memory.stat").write_text(f"anon 5\ninactive_file {50 << 20}\n")
    assert ycluster.free_memory(proc, cgroups) == free


def test_ssh_is_strict_and_knows_nothing_of_the_users_own(tmp_path: Path) -> None:
    demo = state(tmp_path, ssh_port=40315, ssh_user="dev")
    demo.files.host_pub.write_text("key")
    argv = ycluster.ssh_argv(demo, "uname", "-a")
    options = after(argv, "-o")
    assert after(argv, "-F") == ["/dev/null"] and f"IdentityFile={tmp_path}/demo-ssh" in options
    assert {
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "GlobalKnownHostsFile=/dev/null",
    } <= set(options)
    assert (
        f"UserKnownHostsFile={tmp_path}/demo-known_hosts" in options
        and "HostKeyAlias=demo" in options
    )
    assert argv[-3:] == ["dev@127.0.0.1", "uname", "-a"] and after(argv, "-p") == ["40315"]


def test_the_siblings_guest_is_held_to_the_first_key_it_shows(tmp_path: Path) -> None:
    assert "StrictHostKeyChecking=accept-new" in ycluster.ssh_argv(state(tmp_path))


PATHS = ["plain", "a b", "100%h", "50%", "it's", 'in "quotes"', "back\\slash", "a#b"]


@pytest.mark.skipif(not shutil.which("ssh"), reason="ssh is not installed")
@pytest.mark.parametrize("name", PATHS)
def test_the_host_block_gives_ssh_what_our_command_gives_it(
    cli: Cli, tmp_path: Path, host: Clocked, name: str
) -> None:
    """As the real ssh reads both. (28)"""
    (tmp_path / name).mkdir()
    demo = made(tmp_path / name, ssh_port=40315, ssh_user="dev")
    demo.files.host_pub.write_text("key")
    ycluster.remember_cache_dir(host, demo.files.cache_dir)
    block = cli("ssh-config", "demo").out  # appended to a file without an end of its last line
    others = "Host *\n  Port 1\n  ProxyCommand false\n"
    (tmp_path / "config").write_text(f"Host else\n  User other{block}{others}")
    argv = ycluster.ssh_argv(demo)
    by_block, by_argv = (
        subprocess.check_output(["ssh", "-G", *words], text=True, timeout=30).splitlines()
        for words in (["-F", str(tmp_path / "config"), "demo"], argv[1:])
    )
    assert by_block[0] == "host demo" and by_block[1:] == by_argv[1:]
    assert {"user dev", "hostname 127.0.0.1", "port 40315"} < {*by_block}


@pytest.mark.parametrize(
    "typed, shown, command, gets",
    [
        (True, True, ["--", "top"], True),
        (False, True, ["--", "top"], False),
        (True, False, ["--", "top"], False),
        (True, True, [], False),
    ],
    ids=["a terminal", "from a pipe", "into a pipe", "a login, which gets one from ssh"],
)
def test_a_command_in_the_guest_gets_a_terminal_where_ssh_has_one(
    home: Path,
    cache: Path,
    tmp_path: Path,
    processes: Processes,
    typed: bool,
    shown: bool,
    command: list[str],
    gets: bool,
) -> None:
    """(28)"""
    files = made(cache).files
    files.ssh_key.write_text("key")
    stand_in(processes, files)
    (tmp_path / "ssh").write_text('#!/bin/sh\nfor word; do echo "$word"; done >&2\n')
    (tmp_path / "ssh").chmod(0o755)
    leader, follower = pty.openpty()
    env = {"HOME": str(home), "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    try:
        ran = subprocess.run(
            [sys.executable, str(LAUNCHER), "ssh", *command],
            stdin=follower if typed else subprocess.DEVNULL,
            stdout=follower if shown else subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=env,
            text=True,
        )
    finally:
        os.close(leader)
        os.close(follower)
    words = ran.stderr.splitlines()
    assert ran.returncode == 0 and words[-1] == (command or ["ystack@127.0.0.1"])[-1]
    assert ("-t" in words) is gets


@pytest.mark.skipif(not shutil.which("ssh"), reason="ssh is not installed")
@pytest.mark.parametrize("name", PATHS)
def test_ssh_reads_the_paths_as_they_are(tmp_path: Path, name: str) -> None:
    """The real ssh: `-G` prints what it made of its options, and `-v` which key it opens once it has connected."""
    (tmp_path / name).mkdir()
    with socket.create_server(("127.0.0.1", 0)) as server:
        demo = state(tmp_path / name, ssh_port=server.getsockname()[1])
        demo.files.ssh_key.write_text("no key")
        argv = ycluster.ssh_argv(demo)
        shown = subprocess.run(
            [argv[0], "-G", *argv[1:]], capture_output=True, text=True, timeout=30
        )
        with subprocess.Popen(
            [argv[0], "-v", *argv[1:]], stderr=subprocess.PIPE, text=True
        ) as connecting:
            server.accept()[0].close()
            assert connecting.stderr is not None
            said = connecting.stderr.read()
    options = dict(line.split(" ", 1) for line in shown.stdout.splitlines() if " " in line)
    assert options["userknownhostsfile"].replace("%%", "%") == str(demo.files.known_hosts), (
        shown.stderr
    )
    assert f"identity file {demo.files.ssh_key} type" in said.replace("\\\\", "\\")


# --- the guest's clock


@pytest.fixture
def clock(tmp_path: Path, host: Clocked, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A cluster whose ssh runs a command here, with a clock and an RTC that are files."""
    programs = {
        "ssh": 'for last; do :; done; exec sh -c "$last"',
        "sudo": 'exec "$@"',
        "date": f'case $1 in -s) echo "${{2#@}}" >{tmp_path}/clock ;; *) cat {tmp_path}/clock ;; esac',
    }
    (tmp_path / "bin").mkdir()
    for name, script in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    script = ycluster.GUEST_CLOCK.replace("/sys/class/rtc/rtc0/since_epoch", f"{tmp_path}/rtc")
    monkeypatch.setattr(ycluster, "GUEST_CLOCK", script)
    host.environ["PATH"] = f"{tmp_path / 'bin'}:{host.environ['PATH']}"
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):  # the server is closed in the end
                while True:
                    conn, _address = server.accept()
                    with conn:
                        conn.sendall(b"SSH-2.0-x\r\n")

        threading.Thread(target=serve, daemon=True).start()
        yield state(tmp_path, ssh_port=server.getsockname()[1])
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize(
    "shows, rtc, after",
    [
        (1000, 5000, 5000),
        (9000, 5000, 5000),
        (4998, 5000, 4998),
        (5002, 5000, 5002),
        (1000, None, int(NOW)),
    ],
    ids=["late", "early", "a little late", "a little early", "no RTC"],
)
def test_a_guests_clock_is_set_by_its_rtc(
    tmp_path: Path, host: Clocked, clock: State, shows: int, rtc: int | None, after: int
) -> None:
    """Where it is off by more than 2 s; without an RTC, by the host's. (20.20)"""
    (tmp_path / "clock").write_text(f"{shows}\n")
    if rtc is not None:
        (tmp_path / "rtc").write_text(f"{rtc}\n")
    ycluster.set_guest_clock(host, clock)
    assert int((tmp_path / "clock").read_text()) == after
    assert "warning" not in host.log.getvalue()


@pytest.mark.parametrize("why", ["no sshd", "no ssh", "no login"])
def test_a_clock_that_cannot_be_set_is_no_error(
    tmp_path: Path, host: Clocked, clock: State, why: str
) -> None:
    """Best effort. (20.20)"""
    if why == "no sshd":
        clock = replace(clock, ssh_port=1)
    elif why == "no ssh":
        host.environ["PATH"] = str(tmp_path)
    else:
        (tmp_path / "bin" / "ssh").write_text("#!/bin/sh\nexit 255\n")
    ycluster.set_guest_clock(host, clock)
    assert not (tmp_path / "clock").exists()
    assert len(host.log.getvalue().splitlines()) <= 1


@pytest.mark.parametrize(
    "sudo, said", [('exec "$@"', "off by 4000 s, and is set"), ("exit 1", "could not be set")]
)
def test_one_login_is_enough_for_a_guest_that_goes_on(
    tmp_path: Path,
    host: Clocked,
    clock: State,
    monkeypatch: pytest.MonkeyPatch,
    sudo: str,
    said: str,
) -> None:
    """Without KVM each takes seconds: it sets the clock, and asks for cloud-init. (22)"""
    script = ycluster.CLOUD_INIT_RESULT.replace("/run/cloud-init", str(tmp_path))
    monkeypatch.setattr(ycluster, "CLOUD_INIT_RESULT", script)
    login = f'echo login >>{tmp_path}/logins; for last; do :; done; exec sh -c "$last"'
    for name, text in {"ssh": login, "sudo": sudo, "cloud-init": "", "sleep": ""}.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "clock").write_text("1000\n")
    (tmp_path / "rtc").write_text("5000\n")
    banner, goes_on = (stage.reached for stage in ycluster.RESTORED_STAGES)
    assert banner(host, clock, lambda: None)
    with pytest.raises(ycluster.NotYet):  # cloud-init is not done
        goes_on(host, clock, lambda: None)
    (tmp_path / "clock").write_text("1000\n")
    (tmp_path / "result.json").write_text('{"v1": {"errors": ["no swap"]}}')
    assert goes_on(host, clock, lambda: None)
    assert said in host.log.getvalue() and "no swap" in host.log.getvalue()
    assert (tmp_path / "logins").read_text() == "login\n" * 2


# --- readiness


@pytest.mark.parametrize(
    "greeting, ready",
    [(b"SSH-2.0-OpenSSH_9.2\r\n", True), (b"HTTP/1.1 400\r\n", False), (b"", False)],
)
def test_only_an_ssh_banner_is_a_sign_of_life(greeting: bytes, ready: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(
            (
                "127.0.0.1",
                port,
            )
        )  # the backlog answers a connect by itself
        client.close()

        def serve() -> None:
            for _ in range(2):
                conn, _address = server.accept()
                with conn:
                    conn.sendall(greeting)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        assert ycluster.ssh_banner("127.0.0.1", port, 5.0) is ready
    assert ycluster.ssh_banner("127.0.0.1", port, 0.5) is False


def test_a_server_that_says_nothing_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert ycluster.ssh_banner("127.0.0.1", server.getsockname()[1], 0.05) is False


HEAD = "its console's last lines:"


@pytest.mark.parametrize(
    "written, shown",
    [
        (b"", "its console is empty"),
        (b"\x1b[2J\x1b[1;31mKernel\x1b[0m panic\r\n\r\n", f"{HEAD}\n    Kernel panic"),
        (b"\x1b]0;title\x07\x00\xff\xfe\x9b ok \r\n", None),
        (
            b"".join(b"line %d\n" % n for n in range(5000)),
            "\n    ".join([HEAD, *(f"line {n}" for n in range(4988, 5000))]),
        ),
    ],
    ids=["empty", "colours", "junk", "long"],
)
def test_the_consoles_tail_drives_no_terminal(
    tmp_path: Path, written: bytes, shown: str | None
) -> None:
    demo = state(tmp_path)
    demo.files.console.write_bytes(written)
    tail = ycluster.console_tail(demo.files)
    assert re.fullmatch(r"[\n\x20-\x7e]+", tail) and shown in (None, tail)


def test_a_console_that_is_not_there_is_said_to_be(tmp_path: Path) -> None:
    assert "no console" in ycluster.console_tail(state(tmp_path).files)


def test_a_vm_that_is_gone_ends_the_wait_with_its_last_words(tmp_path: Path) -> None:
    demo = state(tmp_path)
    demo.files.console.write_text("Kernel panic - not syncing\n")
    with refused(ycluster.YclusterError, "QEMU ended while starting QEMU", "Kernel panic"):
        ycluster.wait_ready(Clocked(tmp_path), demo, timeout=60)


@pytest.fixture
def booting(
    tmp_path: Path, processes: Processes
) -> Iterator[tuple[State, subprocess.Popen[bytes]]]:
    """A VM (a stand-in process) that has said something, whose ssh port takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        demo = state(tmp_path, ssh_port=server.getsockname()[1])
        demo.files.console.write_text("Kernel panic - not syncing\n")
        process = processes.start("", "-pidfile", str(demo.files.pidfile))
        demo.files.pidfile.write_text(str(process.pid))
        yield demo, process


@pytest.mark.parametrize("stage", ["waiting for SSH", "logging in"])
@pytest.mark.parametrize("end", ["QEMU ended", "it is internal-error"])
def test_the_end_of_qemu_or_its_guest_is_noticed_while_a_question_hangs(
    tmp_path: Path,
    booting: tuple[State, subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    end: str,
) -> None:
    demo, process = booting
    (tmp_path / "ssh").write_text("#!/bin/sh\nexec sleep 600\n")
    (tmp_path / "ssh").chmod(0o755)
    if stage == "logging in":
        monkeypatch.setattr(ycluster, "ssh_banner", lambda *args: True)
    told, asked = ["running", "running", "internal-error"], []

    def status(*args: object) -> str:
        asked.append(args)
        if end == "QEMU ended" and len(asked) == 2:
            process.kill()
            process.wait()
        return told.pop(0) if end != "QEMU ended" else "running"

    monkeypatch.setattr(ycluster, "vm_status", status)
    clock = Clocked(tmp_path)
    host = Host({"HOME": str(tmp_path), "PATH": f"{tmp_path}:{os.environ['PATH']}"}, clock.output)
    with refused(ycluster.YclusterError, f"{end} while {stage}", "Kernel panic"):
        ycluster.wait_ready(host, demo, timeout=600)
    before = ["starting QEMU", "booting", "waiting for SSH"][: 3 if stage == "logging in" else 2]
    done = [line for line in clock.log.getvalue().splitlines() if " ... " not in line]
    assert [line.partition(" (")[0].strip() for line in done] == before


@pytest.mark.parametrize(
    "console, error",
    [("[ OK ] Started", ycluster.TimedOut), ("[ end Kernel panic - not syncing", YclusterError)],
)
def test_a_boot_is_waited_for_up_to_its_bound_and_not_once_its_kernel_has_panicked(
    tmp_path: Path,
    booting: tuple[State, subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    console: str,
    error: type,
) -> None:
    demo, _ = booting
    host, asked = Clocked(tmp_path), []
    demo.files.console.write_text(console + "\n")

    def silent(*args: object) -> bool:
        asked.append(host.sleep(10))
        assert len(asked) < 20
        return False

    monkeypatch.setattr(ycluster, "ssh_banner", silent)
    monkeypatch.setattr(ycluster, "vm_status", lambda *args: "running")
    with pytest.raises(YclusterError) as caught:
        ycluster.wait_ready(host, demo, timeout=60)
    assert type(caught.value) is error


def test_a_stage_that_takes_too_long_ends_the_wait_and_not_the_vm(
    tmp_path: Path, booting: tuple[State, subprocess.Popen[bytes]]
) -> None:
    demo, process = booting
    host = Host({"HOME": str(tmp_path), "PATH": os.environ["PATH"]}, Clocked(tmp_path).output)
    with refused(ycluster.TimedOut, "waiting for SSH took more than 1 s", "Kernel panic") as caught:
        ycluster.wait_ready(host, demo, timeout=1)
    assert "ycluster stop --name demo" in caught.value.hint and process.poll() is None


def wait_with_ssh(
    demo: State, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, bound: float = 600
) -> tuple[YclusterError, str]:
    """The error that ends the wait for a guest whose `ssh` is this script, and what was shown until then."""
    (tmp_path / "ssh").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setattr(ycluster, "ssh_banner", lambda *args: True)
    monkeypatch.setattr(ycluster, "vm_status", lambda *args: "running")
    host = Clocked(tmp_path, PATH=f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(ycluster, "exited", lambda pidfd, seconds: host.sleep(seconds * 100))
    with pytest.raises(YclusterError) as caught:
        ycluster.wait_ready(host, demo, timeout=bound)
    return caught.value, host.log.getvalue()


# As OpenSSH 9.2 writes them, for each of which the client was seen to fail.
FINAL = [
    (
        "@@@@@@@@@@@@\n@  WARNING: UNPROTECTED PRIVATE KEY FILE!  @\n@@@@@@@@@@@@\n"
        "Permissions 0644 for '{key}' are too open.\nThis private key will be ignored.\n"
        'Load key "{key}": bad permissions\nu@127.0.0.1: Permission denied (publickey).',
        "Permissions 0644",
        "`chmod 600 {key}`",
    ),
    ('Load key "{key}": error in libcrypto\nu@127.0.0.1: Permission denied (publickey).', "error in libcrypto", "bring {key} back"),
    ("no such identity: {key}: No such file or directory\nu@127.0.0.1: Permission denied (publickey).", "no such identity", "`ycluster import {disk} -c DIR`"),
    (
        "Offending ED25519 key in known_hosts:1\nHost key for demo has changed and you have requested strict checking.\n"
        "Host key verification failed.",
        "Host key for demo has changed",
        "rm {host_pub} {known_hosts}",
    ),
    ("No ED25519 host key is known for demo and you have requested strict checking.\nHost key verification failed.", "No ED25519 host key", "known_hosts"),
    ('command-line line 0: unsupported option "accept-new".', "accept-new", "OpenSSH 7.6"),
    ("command-line: line 0: Bad configuration option: foo", "foo", "`ssh -V`"),
    ("Unable to negotiate with 127.0.0.1 port 22022: no matching host key type found. Their offer: ssh-rsa", "Their offer: ssh-rsa", "another image"),
    ("No user exists for uid 54321", "uid 54321", "/etc/passwd"),
]  # fmt: skip


@pytest.mark.parametrize("written, reason, way_out", FINAL, ids=[row[1] for row in FINAL])
def test_a_login_that_can_never_succeed_ends_the_wait_at_once_with_ssh_s_reason_and_the_way_out(
    tmp_path: Path,
    booting: tuple[State, subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    written: str,
    reason: str,
    way_out: str,
) -> None:
    """It cost 600 s of "waiting for login", and was never told."""
    demo, process = booting
    files = demo.files
    paths = {name: getattr(files, name) for name in ("disk", "host_pub", "known_hosts")}
    paths["key"] = files.ssh_key
    (tmp_path / "written").write_text(written.format(**paths) + "\n")
    script = f"echo asked >>{tmp_path}/asked; cat {tmp_path}/written >&2; exit 255"
    error, _ = wait_with_ssh(demo, tmp_path, monkeypatch, script)
    assert missing(str(error), reason) == [] and missing(error.hint, way_out.format(**paths)) == []
    assert "`ycluster stop --name demo`" in error.hint and process.poll() is None
    assert (tmp_path / "asked").read_text() == "asked\n"


@pytest.mark.parametrize(
    "written, code",
    [
        ("ystack@127.0.0.1: Permission denied (publickey).", 255),
        ("kex_exchange_identification: read: Connection reset by peer", 255),
        ("ssh: connect to host 127.0.0.1 port 2222: Connection refused", 255),
        ("No user exists for uid 7, says a command in the guest", 1),
    ],
)
def test_what_may_pass_is_waited_for_and_shown_while_it_lasts_and_in_the_end(
    tmp_path: Path,
    booting: tuple[State, subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    written: str,
    code: int,
) -> None:
    demo, _ = booting
    error, shown = wait_with_ssh(
        demo, tmp_path, monkeypatch, f"echo '{written}' >&2; exit {code}", bound=100
    )
    assert type(
        error
    ) is ycluster.TimedOut and f"logging in took more than 100 s: {written}" in str(error)
    assert f"logging in: {written}" in shown
    assert ("cloud-init" in error.hint) is ("denied" in written)


def test_the_reason_of_one_stage_is_not_that_of_the_next(
    tmp_path: Path, booting: tuple[State, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    once = f"[ -e {tmp_path}/once ] || {{ : >{tmp_path}/once; echo first >&2; exit 255; }}"
    script = f'{once}\nfor last; do :; done\n[ "$last" = true ]'
    error, shown = wait_with_ssh(booting[0], tmp_path, monkeypatch, script, bound=100)
    assert "waiting for cloud-init took more than 100 s: exit 1" in str(error)


@pytest.mark.parametrize(
    "fields, until",
    [
        ({"expires_at": int(NOW) + 60}, "its deadline"),
        ({"max_idle": "2h", "idle": ycluster.Idle(1, 1, 1, "", -1)}, "for 2h"),
        ({}, "you stop it"),
    ],
)
def test_a_deadline_is_promised_where_there_is_one(fields: dict[str, Any], until: str) -> None:
    words = ycluster.goes_on_until(replace(state(Path("/c")), **fields))
    assert until in words and ("deadline" in words) is ("expires_at" in fields)


def test_a_login_key_that_others_can_read_is_closed_to_them_and_lost_known_hosts_are_written(
    tmp_path: Path, host: Clocked
) -> None:
    """ssh ignores such a key, and strict checking fails without the other."""
    demo = state(tmp_path)
    ycluster.make_keys(host, demo)
    known = demo.files.known_hosts.read_text()
    demo.files.ssh_key.chmod(0o644)
    demo.files.known_hosts.unlink()
    ycluster.repair_login(demo)
    assert demo.files.ssh_key.stat().st_mode & 0o777 == 0o600
    assert demo.files.known_hosts.read_text() == known


def test_a_login_key_that_is_a_link_changes_nothing_elsewhere(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("")
    theirs.chmod(0o644)
    demo = state(tmp_path)
    demo.files.ssh_key.symlink_to(theirs)
    ycluster.repair_login(demo)
    assert theirs.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "console, says",
    [
        ("Booting from Hard Disk...\r\nBoot failed: not a bootable disk\r\n\r\nNo bootable device.\r\n", "finds nothing to boot"),
        ("No bootable device.  Retrying in 60 seconds.\n", "finds nothing to boot"),
        ("error: no such device: 1234.\nEntering rescue mode...\ngrub rescue> ", "boot loader"),
        ("ALERT!  UUID=1 does not exist.  Dropping to a shell!\n(initramfs) ", "initramfs"),
        ("Give root password for maintenance\n(or press Control-D to continue): ", "emergency"),
        ("---[ end Kernel panic - not syncing: VFS ]---\n", "panicked"),
        ("No bootable device.\n[ 0.0] Linux version 6.1\n[ 0.1] x\n", ""),
        ("Boot failed: not a bootable disk\nBooting from Floppy...\n", ""),
    ],
)  # fmt: skip
def test_a_console_that_has_come_to_a_dead_end_ends_the_wait(
    tmp_path: Path,
    booting: tuple[State, subprocess.Popen[bytes]],
    monkeypatch: pytest.MonkeyPatch,
    console: str,
    says: str,
) -> None:
    """Of what was no disk there was 'No bootable device.', and ten minutes of waiting."""
    demo, _ = booting
    demo.files.console.write_text(console)
    error, _ = wait_with_ssh(demo, tmp_path, monkeypatch, "exit 255", bound=100)
    if not says:
        assert type(error) is ycluster.TimedOut
        return
    assert type(error) is YclusterError and says in str(error)
    assert missing(error.hint, "`ycluster stop --name demo`", demo.files.console) == []


def test_an_error_in_a_question_is_the_users_to_see(
    tmp_path: Path, booting: tuple[State, subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ycluster, "ssh_banner", lambda *args: True)
    host = Clocked(tmp_path, PATH=str(tmp_path))
    monkeypatch.setattr(host, "which", lambda program: None)
    with refused(ycluster.PrerequisiteError, "ssh: no such program"):
        ycluster.wait_ready(host, booting[0], timeout=60)


# --- images and disks


@pytest.mark.parametrize(
    "text, size",
    [
        ("20G", 20 << 30),
        ("512M", 512 << 20),
        ("1K", 1024),
        ("2T", 2 << 40),
        ("1073741824", 1 << 30),
    ],
)
def test_parse_size(text: str, size: int) -> None:
    assert ycluster.parse_size(text) == size


def config(image: str, **digest: str) -> ycluster.QemuConfig:
    text = json.dumps({"k3s": {"install": "none"}, "image": image, **digest})
    return ycluster.require_qemu(ycluster.read_config(text, Path("/cfg/c.yaml")))


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_an_image_is_copied_under_its_digest_with_holes_kept(
    tmp_path: Path, host: Clocked, scheme: str
) -> None:
    source = tmp_path / "cloud.img"
    source.write_bytes(BOOT + bytes(5 << 20) + b"end")
    found = ycluster.fetch_image(host, config(f"{scheme}{source}"), tmp_path / "c")
    assert found.read_bytes() == source.read_bytes() and found.stat().st_mode & 0o777 == 0o400
    assert found.stat().st_blocks * 512 < 4 << 20
    source.write_bytes(b"changed")
    again = ycluster.fetch_image(host, config("/gone", imageSha256=found.name), tmp_path / "c")
    assert again == found


def test_an_image_in_the_cache_that_is_not_what_its_name_says_is_fetched_anew(
    tmp_path: Path, host: Clocked
) -> None:
    """It is checked at each provision, whoever put it there or damaged it. (20.8)"""
    right = BOOT.ljust(ycluster.SMALLEST_DISK, b"\0")
    source, digest = tmp_path / "cloud.img", hashlib.sha256(right).hexdigest()
    kept = tmp_path / "c" / "images" / digest
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"wrong")
    wanted = config(str(source), imageSha256=digest)
    with refused(ycluster.PrerequisiteError, kept, source):
        ycluster.fetch_image(host, wanted, tmp_path / "c")
    assert kept.read_bytes() == b"wrong", "nothing goes before there is another"
    source.write_bytes(right)
    with open(kept, "rb") as in_use:
        assert ycluster.fetch_image(host, wanted, tmp_path / "c") == kept
        assert (kept.read_bytes(), in_use.read()) == (right, b"wrong"), "it is replaced"
    assert f"warning: {kept}: " in host.log.getvalue()


def test_an_image_with_another_digest_is_refused_and_not_kept(
    tmp_path: Path, host: Clocked
) -> None:
    (tmp_path / "a.img").write_bytes(b"cut off")
    found = hashlib.sha256(b"cut off").hexdigest()
    with refused(ycluster.ConfigError, "a.img", found, "imageSha256", "0" * 64) as caught:
        ycluster.fetch_image(
            host, config(str(tmp_path / "a.img"), imageSha256="0" * 64), tmp_path / "c"
        )
    assert "it is a text, and begins with 'cut off'" in caught.value.hint
    assert [path.name for path in (tmp_path / "c" / "images").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "image", ["/nonexistent.img", "http://127.0.0.1:1/a.img", "file:///nonexistent.img", "/etc"]
)
def test_an_image_that_cannot_be_had_is_a_prerequisite(
    tmp_path: Path, host: Clocked, image: str
) -> None:
    with pytest.raises(ycluster.PrerequisiteError) as caught:
        ycluster.fetch_image(host, config(image), tmp_path / "c")
    assert image.replace("file://", "") in str(caught.value) and caught.value.hint
    assert [path.name for path in (tmp_path / "c" / "images").iterdir()] == [".lock"]


def test_a_disk_is_no_smaller_than_its_image_and_finds_it_where_the_cachedir_is_moved_to(
    tmp_path: Path,
    host: Clocked,
) -> None:
    image = tmp_path / "cache" / "images" / "abc"
    image.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    with pytest.raises(ycluster.ConfigError):
        ycluster.make_disk(host, state(tmp_path / "cache", disk_size="63M"), image)
    assert os.listdir(tmp_path / "cache") == ["images"]
    ycluster.make_disk(host, state(tmp_path / "cache", disk_size="65M"), image)
    (tmp_path / "cache").rename(tmp_path / "moved")
    subprocess.run(["qemu-img", "check", "-q", tmp_path / "moved" / "demo.qcow2"], check=True)


def test_a_disk_that_was_kept_is_grown_at_most_and_keeps_its_login(
    tmp_path: Path, host: Clocked
) -> None:
    image = tmp_path / "cache" / "images" / "abc"
    image.parent.mkdir(parents=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    first = state(tmp_path / "cache", disk_size="65M")
    ycluster.make_keys(host, first)
    ycluster.make_disk(host, first, image)
    login = first.files.ssh_key.read_text()
    for size, wanted in (("70M", 70 << 20), ("60M", 70 << 20)):
        kept = replace(first, imported=str(first.files.disk), disk_size=size)
        ycluster.make_keys(host, kept)
        ycluster.make_disk(host, kept, kept.files.disk)
        info = ycluster.disk_info(host, kept.files.disk, "qcow2")
        assert info["virtual-size"] == wanted and info["backing-filename"] == "images/abc"
        assert kept.files.ssh_key.read_text() == login


BOOT = b"boot".ljust(510, b"\0") + b"\x55\xaa"  # what a disk begins with


class Mirror(http.server.BaseHTTPRequestHandler):
    """Serves `content` whole, cut off after `cut` bytes, or from where a Range asks; `asked` is what came in."""

    content = BOOT + bytes((3 << 20) - 508) + b"end" * 1000
    cut: int | None = None
    ranges = True
    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        wanted = self.headers.get("Range", "")
        self.asked.append(wanted)
        first = int(wanted[len("bytes=") : -1]) if wanted and self.ranges else 0
        if self.path != "/a.img" or first >= len(self.content):
            return self.send_error(416 if first else 404)
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(self.content) - first))
        self.end_headers()
        self.wfile.write(self.content[first : self.cut])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(Mirror, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


DIGEST = hashlib.sha256(Mirror.content).hexdigest()


def test_a_download_that_was_cut_off_goes_on_where_it_ended(
    tmp_path: Path, host: Clocked, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = config(mirror + "a.img", imageSha256=DIGEST)
    monkeypatch.setattr(Mirror, "cut", 2 << 20)
    with refused(ycluster.PrerequisiteError, "a.img", "after 2097152 of 3148732 bytes"):
        ycluster.fetch_image(host, wanted, tmp_path)
    monkeypatch.setattr(Mirror, "cut", None)
    assert ycluster.fetch_image(host, wanted, tmp_path).read_bytes() == Mirror.content
    assert Mirror.asked == ["", "bytes=2097152-"]


@pytest.mark.parametrize(
    "beginning, ranges, asks",
    [
        (b"nonsense", True, ["bytes=8-", ""]),
        (b"boot", False, ["bytes=4-"]),
        (Mirror.content + b"more", True, ["bytes=3148736-", ""]),
        (Mirror.content, True, ["bytes=3148732-", ""]),
    ],
    ids=["other content", "a server that knows no ranges", "more than there is", "everything"],
)
def test_whatever_is_there_of_a_download_the_image_is_right_in_the_end(
    tmp_path: Path, host: Clocked, mirror: str, monkeypatch: pytest.MonkeyPatch, beginning: bytes, ranges: bool, asks: list[str]
) -> None:  # fmt: skip
    monkeypatch.setattr(Mirror, "ranges", ranges)
    (tmp_path / "images").mkdir()
    part = (
        tmp_path
        / "images"
        / f".{hashlib.sha256((mirror + 'a.img').encode()).hexdigest()[:16]}.part"
    )
    part.write_bytes(beginning)
    found = ycluster.fetch_image(host, config(mirror + "a.img", imageSha256=DIGEST), tmp_path)
    assert found.read_bytes() == Mirror.content and found.name == DIGEST and Mirror.asked == asks


def test_a_download_never_writes_through_a_link(
    tmp_path: Path, host: Clocked, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where others can write to the cacheDir, one could lead to any file of the user's."""
    wanted, theirs = config(mirror + "a.img", imageSha256=DIGEST), tmp_path / "theirs"
    monkeypatch.setattr(Mirror, "cut", 5)
    with pytest.raises(ycluster.PrerequisiteError):
        ycluster.fetch_image(host, wanted, tmp_path)
    monkeypatch.setattr(Mirror, "cut", None)
    [part] = (tmp_path / "images").glob(".*.part")
    part.unlink()
    part.symlink_to(theirs)
    for content in (None, b"boot", b"theirs"):
        if content is not None:
            theirs.write_bytes(content)
        with pytest.raises(ycluster.PrerequisiteError):
            ycluster.fetch_image(host, wanted, tmp_path)
        assert (theirs.read_bytes() if theirs.exists() else None) == content


@pytest.mark.parametrize("digest", [DIGEST, ""], ids=["known", "unknown"])
@pytest.mark.parametrize("call", ["write", "fsync", "open"])
def test_an_error_of_this_hosts_disk_is_not_the_images(
    tmp_path: Path, host: Clocked, mirror: str, monkeypatch: pytest.MonkeyPatch, call: str, digest: str
) -> None:  # fmt: skip
    """A full disk takes no other image either, so none is proposed. (20.25)"""

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    wanted = config(mirror + "a.img", imageSha256=digest)
    images = tmp_path / "images"
    part = images / f".{hashlib.sha256(wanted.image.encode()).hexdigest()[:16]}.part"
    if call == "open":
        part.mkdir(parents=True)  # what root meets, too, in the place of a folder that is closed
    else:
        monkeypatch.setattr(
            *{"write": (ycluster, "_write_sparse"), "fsync": (os, "fsync")}[call], full
        )
    with refused(ycluster.PrerequisiteError, part) as caught:
        ycluster.fetch_image(host, wanted, tmp_path)
    assert not {"image", "imageSha256"} & set(re.findall(r"\w+", caught.value.hint))
    if part.is_dir():
        part.rmdir()
    monkeypatch.undo()
    assert ycluster.fetch_image(host, wanted, tmp_path).read_bytes() == Mirror.content


def test_without_a_digest_no_beginning_is_kept(
    tmp_path: Path, host: Clocked, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Mirror, "cut", 5)
    with refused(ycluster.PrerequisiteError, "a.img", "after 5 of"):
        ycluster.fetch_image(host, config(mirror + "a.img"), tmp_path)
    assert [path.name for path in (tmp_path / "images").iterdir()] == [".lock"]


def test_a_release_that_has_vanished_leaves_a_clear_choice(
    tmp_path: Path, host: Clocked, mirror: str
) -> None:
    with refused(ycluster.PrerequisiteError, "b.img: Not Found") as caught:
        ycluster.fetch_image(host, config(mirror + "b.img", imageSha256=DIGEST), tmp_path)
    ways = "HTTPS_PROXY", "`image`", "`imageSha256`", "path", "source repository"
    assert missing(caught.value.hint, "vanish after some months", *ways) == []


def test_a_server_that_answers_everything_with_an_empty_range_is_told_and_asked_once(
    tmp_path: Path, host: Clocked, mirror: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Mirror, "do_GET", lambda self: self.asked.append("") or self.send_error(416)
    )
    with refused(ycluster.PrerequisiteError, "a.img: ", "Range Not Satisfiable"):
        ycluster.fetch_image(host, config(mirror + "a.img", imageSha256=DIGEST), tmp_path)
    assert Mirror.asked == [""]


def test_of_several_callers_one_downloads(tmp_path: Path, mirror: str) -> None:
    host = Host({}, Clocked(tmp_path).output)
    wanted = config(mirror + "a.img", imageSha256=DIGEST)
    found: list[Path] = []
    callers = [
        threading.Thread(target=lambda: found.append(ycluster.fetch_image(host, wanted, tmp_path)))
        for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert found == [tmp_path / "images" / DIGEST] * 8 and Mirror.asked == [""]


def test_the_owner_of_a_port_is_named(tmp_path: Path, processes: Processes) -> None:
    host = Host({"PATH": "/usr/bin:/bin"}, Clocked(tmp_path).output)
    file = tmp_path / "port"
    code = (
        "import socket; s = socket.create_server(('127.0.0.1', 0))\n"
        f"open({str(file)!r}, 'w').write(str(s.getsockname()[1]))"
    )
    other = processes.start(code)
    port = int(file.read_text())
    assert ycluster.port_owner(host, port).endswith(f" has it (pid {other.pid})")
    blind = Host({"PATH": str(tmp_path)}, Clocked(tmp_path).output)
    for told, fact in ((host, f"(pid {other.pid})"), (blind, "another program has it")):
        with refused(ycluster.PrerequisiteError, f"port {port}: ", fact):
            ycluster._check_ports(told, state(ssh_port=port, port_forwards=()))
    other.kill()
    other.wait()
    vm = processes.start(code, "-name", "guest=side-by-side,x=y")
    port = int(file.read_text())
    assert ycluster.port_owner(host, port) == f"the cluster side-by-side has it (pid {vm.pid})"


def test_an_address_of_no_interface_is_told_as_that(host: Clocked) -> None:
    """192.0.2.0/24 is for documentation (RFC 5737): no host has it."""
    with refused(ycluster.PrerequisiteError, "192.0.2.7", "no interface") as caught:
        ycluster._check_ports(host, state(bind_address="192.0.2.7", ssh_port=0, port_forwards=()))
    assert "`network: {bindAddress: 127.0.0.1}`" in caught.value.hint


ROOTS_PORT = """
import sys, ycluster
host = ycluster.Host({}, ycluster.Output(sys.stdout, sys.stderr))
asked = ycluster.State(name="demo", cache_dir="/c", ssh_port=80, port_forwards=())
try:
    ycluster._check_ports(host, asked)
except ycluster.PrerequisiteError as error:
    print(error, error.hint)
"""


def test_a_port_of_roots_is_told_as_that() -> None:
    argv = without(["net_bind_service"], sys.executable, "-c", ROOTS_PORT)
    limit = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()
    if int(limit) <= 80:  # as in many containers; a network of its own has the kernel's default
        argv = ["unshare", "--net", "sh", "-c", 'ip link set lo up; exec "$@"', "sh", *argv]
    said = subprocess.run(argv, text=True, capture_output=True, check=True).stdout
    assert "port 80: you may not" in said
    assert "sudo sysctl net.ipv4.ip_unprivileged_port_start=80" in said
