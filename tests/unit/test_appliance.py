"""Sections 15, 18 and 19: the kernel guard, the data disk, bundles. qemu-img, tar and sort are the real ones."""

from __future__ import annotations

import configparser
import contextlib
import errno
import gzip
import hashlib
import json
import lzma
import os
import re
import shlex
import shutil
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_support import (
    PROGRAM,
    Cli,
    Clocked,
    Processes,
    folded,
    made,
    missing,
    need,
    refused,
    stand_in,
    told,
    tree,
    with_disk,
)

import ycluster
from ycluster import ConfigError, Files, Host, PrerequisiteError, State, YclusterError

SCRIPT = PROGRAM.parent / "scripts" / "_check-host-kernel.sh"
CONFIG = "name: demo\nk3s: {install: none}\nportForwards: []\nsshPort: 0\n"


RAW = bytes(510) + b"\x55\xaa" + bytes((1 << 20) - 512)  # the smallest disk


def fake_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def qcow2(path: Path, size: str = "64M", *writes: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, size], check=True)
    if writes:
        commands = [word for write in writes for word in ("-c", write)]
        subprocess.run(["qemu-io", *commands, path], check=True, stdout=subprocess.DEVNULL)
    return path


# --- the kernel guard


@pytest.fixture
def no_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """root may read anything: a file without any permission is one that can't be read."""
    readable = os.access
    monkeypatch.setattr(
        os, "access", lambda path, mode: readable(path, mode) and os.stat(path).st_mode & 0o777 != 0
    )


@pytest.fixture
def open_dir() -> Iterator[Path]:
    """A folder that nobody, too, can look into; and so can the script that lies in it."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        shutil.copy(SCRIPT, name)
        yield Path(name)


def kernels(root: Path, modes: dict[str, int | None], modules: list[str]) -> tuple[Path, Path]:
    """A boot folder of kernels with modes (None: a dangling link), and a modules folder."""
    boot, lib = root / "boot", root / "modules"
    boot.mkdir()
    lib.mkdir()
    for release, mode in modes.items():
        path = boot / f"vmlinuz-{release}"
        if mode is None:
            path.symlink_to(root / "nowhere")
        else:
            path.touch()
            path.chmod(mode)
    for release in modules:
        (lib / release).mkdir()
    return boot, lib


CASES = {
    "readable": ({"6.1.0-1": 0o644}, ["6.1.0-1"], ""),
    "not readable": ({"6.1.0-1": 0}, ["6.1.0-1"], "6.1.0-1"),
    "the newest counts, by version and not by letters": (
        {"6.1.0-9": 0o644, "6.1.0-10": 0},
        ["6.1.0-9", "6.1.0-10"],
        "6.1.0-10",
    ),
    "an older one does not": ({"6.1.0-9": 0, "6.1.0-10": 0o644}, ["6.1.0-9", "6.1.0-10"], ""),
    "one without modules does not": ({"6.1.0-9": 0o644, "6.1.0-10": 0}, ["6.1.0-9"], ""),
    "nor does it hide another": ({"6.1.0-9": 0, "6.1.0-10": 0o644}, ["6.1.0-9"], "6.1.0-9"),
    "a dangling link is libguestfs's to tell": ({"6.1.0-9": None}, ["6.1.0-9"], ""),
    "no kernel is, too": ({}, ["6.1.0-9"], ""),
    "where none has modules, the one that runs counts": (
        {os.uname().release: 0, "6.1.0-9": 0},
        [],
        os.uname().release,
    ),
    "ubuntu": (
        {"6.8.0-9-generic": 0, "6.8.0-41-generic": 0},
        ["6.8.0-9-generic", "6.8.0-41-generic"],
        "6.8.0-41-generic",
    ),
}


@pytest.mark.parametrize("shell", ["bash", "sh", "zsh"])
@pytest.mark.parametrize("modes, modules, wanted", CASES.values(), ids=CASES)
def test_the_guard_names_the_kernel_that_libguestfs_would_boot_and_the_script_agrees(
    open_dir: Path,
    host: Clocked,
    no_root: None,
    modes: dict[str, int | None],
    modules: list[str],
    wanted: str,
    shell: str,
) -> None:
    need(shell)
    boot, lib = kernels(open_dir, modes, modules)
    told = ""
    try:
        ycluster.check_host_kernel(host, boot, lib)
    except PrerequisiteError as error:
        told = (
            "\n".join([f"ycluster: {error}", *(f"  {line}" for line in error.hint.splitlines())])
            + "\n"
        )
    assert (f"{boot}/vmlinuz-{wanted} can't be read" in folded(told)) is bool(wanted)
    # What [ -r ] says of a file without permissions depends on who asks.
    argv = [
        shell,
        "-c",
        '. "$1" >/dev/null 2>&1; check_host_kernel "$2" "$3"',  # it has checked this host
        "-",
        str(open_dir / SCRIPT.name),
        str(boot),
        str(lib),
    ]
    if os.getuid() == 0:
        argv = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *argv]
    ran = subprocess.run(argv, text=True, capture_output=True)
    assert (ran.stdout, ran.stderr, ran.returncode) == ("", told, 5 if told else 0)


def test_the_script_checks_when_it_is_sourced() -> None:
    """As that of the sibling does. (26.8)"""
    *_, last = SCRIPT.read_text().splitlines()
    assert last == "check_host_kernel"


def test_the_guard_looks_and_changes_nothing(tmp_path: Path, host: Clocked, no_root: None) -> None:
    boot, lib = kernels(tmp_path, {"6.1.0-1": 0}, ["6.1.0-1"])
    before = tree(tmp_path)
    with pytest.raises(PrerequisiteError):
        ycluster.check_host_kernel(host, boot, lib)
    assert tree(tmp_path) == before


# --- order: what is cheap and says more comes first


def prepared_host(cache: Path, **fields: object) -> State:
    return made(cache, **{"image": "file:///i", "started_at": 1, "ran_with": "tcg", **fields})


@pytest.mark.parametrize(
    "fields, disk, code, remedy",
    [
        ({"started_at": None}, False, 4, "`ycluster provision -c DIR`"),
        ({}, False, 4, "`ycluster provision -c DIR`"),
        ({}, True, 1, "`ycluster start --name demo`"),
    ],
    ids=["run provision", "no disk", "start the cluster"],
)
def test_what_the_cluster_lacks_is_told_before_the_kernel(
    cli: Cli,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    fields: dict[str, object],
    disk: bool,
    code: int,
    remedy: str,
) -> None:
    def guard(*args: object) -> None:
        raise PrerequisiteError("kernel")

    monkeypatch.setattr(ycluster, "check_host_kernel", guard)
    state = prepared_host(cache, **fields)
    if disk:
        state.files.disk.touch()
    before = tree(cache)
    ran = cli("prepare-export")
    told(ran, code, "demo", "disk", remedy)
    assert "kernel" not in ran.err
    after = tree(cache)
    after.pop("demo.lock", None)
    assert after == before


def test_the_kernel_is_told_before_anything_is_touched(
    cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def guard(*args: object) -> None:
        raise PrerequisiteError("kernel")

    monkeypatch.setattr(ycluster, "check_host_kernel", guard)
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    monkeypatch.setattr(ycluster.Host, "need", lambda self, programs: None)
    state = prepared_host(cache, prepared="live")
    state.files.disk.touch()
    before = tree(cache)
    assert cli("prepare-export").err.split() == ["ycluster:", "kernel"]
    after = tree(cache)
    after.pop("demo.lock", None)
    assert after == before
    (tmp_path / "y-cluster-provision.yaml").write_text(
        f"{CONFIG.replace('demo', 'other')}context: c\ndataDisk: new.qcow2\n"
    )
    before = tree(tmp_path)
    assert cli("provision", "-c", tmp_path).err.split() == ["ycluster:", "kernel"]
    assert tree(tmp_path) == before


def test_a_prepare_that_fails_half_way_says_how_to_go_on_and_can_be_had_again(
    cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ycluster, "check_host_kernel", lambda host: None)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    state = prepared_host(cache, prepared="live")
    qcow2(state.files.disk)
    fake_program(tmp_path / "bin", "zerofree", "")
    fake_program(tmp_path / "bin", "virt-customize", "echo 'no space left' >&2; exit 1")
    ran = cli("prepare-export")
    told(ran, 1, "demo is stopped", "virt-customize", "exit 1", "no space left")
    assert missing(ran.err, "`ycluster prepare-export demo`", "`ycluster start demo`") == []
    assert ycluster.load_state(state.files).prepared == "live"
    fake_program(tmp_path / "bin", "virt-customize", f'printf "%s\\n" "$@" >{tmp_path}/argv')
    fake_program(tmp_path / "bin", "guestfish", "exit 1")
    told(cli("prepare-export"), 1, "demo is stopped", "exit 1")
    assert ycluster.load_state(state.files).prepared == "live"
    kinds = ("ext4", "vfat", "unknown", "xfs")
    listed = "".join(f"/dev/sda{at}: {kind}\\n" for at, kind in enumerate(kinds))
    fake_program(tmp_path / "bin", "guestfish", f"printf '{listed}'")
    ran = cli("prepare-export")
    assert ran.code == 0 and ycluster.load_state(state.files).prepared == "done"
    assert "/dev/sda3 (xfs)" in ran.err and "/dev/sda0" not in ran.err and "sda1" not in ran.err
    assert (tmp_path / "argv").read_text().splitlines()[:6] == [
        "--quiet", "--no-network", "--format", "qcow2", "-a", str(state.files.disk),
    ]  # fmt: skip


def test_the_guests_scripts_are_sh_and_run_any_number_of_times(tmp_path: Path) -> None:
    for script in (ycluster.PREPARE_LIVE, ycluster.PREPARE_OFFLINE, ycluster.MOUNT_DATA):
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)


def in_root(script: str, root: Path) -> None:
    """Run a script of the guest's in a folder that takes the place of its root."""

    def moved(part: str) -> str:
        inside = re.sub(r"(?<=[\s>])/(?=(?:etc|var|root|home|tmp|data|usr)/)", f"{root}/", part)
        named = re.findall(r"(?<=[\s>])/[a-z]+/\S+", inside.replace("/dev/null", ""))
        assert all(path.startswith(f"{root}/") for path in named), "nothing of this host is touched"
        return inside

    entry = ycluster.DATA_ENTRY
    inside = entry.join(moved(part) for part in script.split(entry))
    subprocess.run(["sh", "-c", inside], check=True, timeout=60)


def a_root(path: Path, fstab: str = "") -> Path:
    for folder in ("etc/netplan", "etc/rancher/k3s", "var/log", "root", "home/dev", "tmp"):
        (path / folder).mkdir(parents=True)
    (path / "etc/fstab").write_text(fstab)
    (path / "etc/rancher/k3s/registries.yaml").write_text("{}")
    return path


ROOT_ENTRY = "LABEL=cloudimg-rootfs / ext4 defaults 0 1"
ENTRIES = {  # of others, for the data volume
    "ours": ycluster.DATA_ENTRY,
    "the sibling's": "LABEL=y-cluster-data /data/yolean ext4 defaults,nofail 0 2",
    "its own disk": "  /dev/vdb\t/data/yolean/\txfs\tnoatime 0 2",
    "its own folder": 'LABEL="y-cluster-data" /srv/data auto nofail',
    "by the link": "/dev/disk/by-label/y-cluster-data /srv/data ext4 nofail 0 2",
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
def test_a_prepared_disk_keeps_the_entry_of_its_data_volume(tmp_path: Path, entry: str) -> None:
    """An appliance that lost it writes its data to the boot disk, which the cloud deletes. (20.3)"""
    fstab = f"{ROOT_ENTRY}\n{entry}\n"
    root = a_root(tmp_path / "root", fstab)
    in_root(ycluster.PREPARE_OFFLINE, root)
    assert (root / "etc/fstab").read_text() == fstab
    assert not (root / "etc/rancher/k3s/registries.yaml").exists(), "it ran"


@pytest.mark.parametrize(
    "fstab",
    [
        "",
        f"{ROOT_ENTRY}\n",
        ROOT_ENTRY,
        f"{ROOT_ENTRY}\n#{ycluster.DATA_ENTRY}\n",
        f"{ROOT_ENTRY}\nLABEL=y-cluster-data2 /data/yolean2 ext4 nofail 0 2",
    ],
    ids=["empty", "root alone", "without an end", "a comment", "names that begin like these"],
)
def test_a_prepared_disk_mounts_a_data_volume_though_the_cluster_had_none(
    tmp_path: Path, fstab: str
) -> None:
    root = a_root(tmp_path / "root", fstab)
    for _ in range(2):
        in_root(ycluster.PREPARE_OFFLINE, root)
        wanted = [*fstab.splitlines(), ycluster.DATA_ENTRY]
        assert (root / "etc/fstab").read_text().splitlines() == wanted
        assert (root / "data/yolean").is_dir()
    options = ycluster.DATA_ENTRY.split()[3].split(",")
    assert "nofail" in options
    assert ycluster.ADD_DATA_ENTRY in ycluster.MOUNT_DATA, "one rule"


# --- the expiry that a disk carries with it


def unit(text: str) -> dict[str, str]:
    """The settings of a unit; one that stands there twice is refused."""
    parser = configparser.RawConfigParser(delimiters="=", comment_prefixes="#")
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return {name: value for section in parser.sections() for name, value in parser.items(section)}


@given(st.integers(60, 365 * 86400))
def test_a_disk_warns_ten_minutes_before_it_powers_its_machine_off_and_counts_anew_when_postponed(
    seconds: int,
) -> None:
    units = {name: unit(text) for name, text in ycluster.max_run_units(seconds).items()}
    assert sorted(units) == [
        "ycluster-max-run-warning.service",
        "ycluster-max-run-warning.timer",
        "ycluster-max-run.service",
        "ycluster-max-run.timer",
    ]
    off, warning = units["ycluster-max-run.timer"], units["ycluster-max-run-warning.timer"]
    assert off["OnBootSec"] == off["OnUnitInactiveSec"] == f"{seconds}s"
    assert warning["OnBootSec"] == f"{max(0, seconds - 600)}s"
    assert warning["OnUnitInactiveSec"] == f"{seconds}s"
    for timer in (off, warning):
        assert (timer["AccuracySec"], timer["WantedBy"]) == ("1s", "timers.target")
        assert not {"OnCalendar", "Persistent"} & set(timer), "no clock that can be set"
    warned = units["ycluster-max-run-warning.service"]["ExecStart"]
    assert f"sudo touch {ycluster.KEEP_RUNNING}" in warned
    assert ycluster.format_duration(seconds * 10**9) in warned
    postponed = units["ycluster-max-run.service"]["ExecStartPost"]
    for command in (warned, postponed):
        lines = command.split('"')[-2].split("\\n")
        assert len(lines) == 2 and max(map(len, lines)) < 79, "wall breaks longer ones"


def test_systemd_finds_nothing_wrong_with_the_units(tmp_path: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("no systemd here")

    def complaints(units: dict[str, str]) -> str:
        for name, text in units.items():
            (tmp_path / name).write_text(text)
        argv = ["systemd-analyze", "verify", "--man=no", *(str(tmp_path / name) for name in units)]
        return subprocess.run(argv, text=True, capture_output=True).stderr

    units = ycluster.max_run_units(8 * 3600)
    wrong = {name: text.replace("[Unit]", "[Unit]\nNoSuch=1") for name, text in units.items()}
    if "NoSuch" not in complaints(wrong):
        pytest.skip("systemd-analyze can't look at units here")
    assert complaints(units) == ""


def test_a_disk_powers_its_machine_off_unless_the_file_is_there_and_can_be_removed(
    tmp_path: Path,
) -> None:
    """What fails is what powers it off, so that nothing that goes wrong keeps it running."""
    service = unit(ycluster.max_run_units(3600)["ycluster-max-run.service"])
    assert service["FailureAction"] == "poweroff" and "SuccessAction" not in service
    assert service["TimeoutStartSec"] == "60s", "else a program that hangs keeps it running"
    assert service["ExecStart"] == f"/bin/rm {ycluster.KEEP_RUNNING}"
    keep = tmp_path / "keep"
    argv = ["/bin/rm", str(keep)]

    def postponed() -> bool:
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0

    assert not postponed(), "without it"
    keep.touch()
    assert postponed() and not keep.exists(), "once, and not for ever"
    assert not postponed()
    keep.mkdir()
    assert not postponed(), "what can't be removed would keep it for ever"


def test_a_warning_reaches_the_terminals_and_the_console_whatever_becomes_of_wall(
    tmp_path: Path,
) -> None:
    for name in ("ycluster-max-run-warning.service", "ycluster-max-run.service"):
        service = unit(ycluster.max_run_units(3600)[name])
        command = service.get("ExecStartPost", service["ExecStart"])
        assert command.startswith("-"), "its failure is not that of the unit"
        assert service["StandardOutput"] == "journal+console"
        argv = shlex.split(command[1:].replace("$$", "$"))
        env = {"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
        fake_program(tmp_path / "bin", "wall", f"cat >{tmp_path}/terminals")
        said = subprocess.run(argv, text=True, capture_output=True, env=env).stdout
        assert "powers itself off" in said and (tmp_path / "terminals").read_text() == said
        fake_program(tmp_path / "bin", "wall", "exit 1")
        assert subprocess.run(argv, text=True, capture_output=True, env=env).stdout == said


class Guest:
    """A root folder that a fake virt-customize works on."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = a_root(tmp_path / "root", f"{ROOT_ENTRY}\n")
        self.log = tmp_path / "argv"
        monkeypatch.setattr(ycluster, "check_host_kernel", lambda host: None)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
        fake_program(tmp_path / "bin", "zerofree", "")
        fake_program(tmp_path / "bin", "guestfish", "")
        fake_program(tmp_path / "bin", "virt-customize", f'printf "%s\\0" "$@" >{self.log}')

    def customize(self) -> None:
        """Do what virt-customize was asked for."""
        words = self.log.read_text().rstrip("\0").split("\0")
        options = words[words.index("-a") + 2 :]
        for option, value in zip(options[::2], options[1::2]):
            path, _, rest = value.partition(":")
            if option == "--run-command":
                in_root(value, self.root)
            elif option == "--mkdir":
                self.inside(path).mkdir(parents=True, exist_ok=True)
            elif option == "--write":
                self.inside(path).write_text(rest)
            else:
                assert option == "--link"
                self.inside(rest).symlink_to(path)

    def inside(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def units(self) -> set[str]:
        found = self.inside("/etc/systemd/system").rglob("*ycluster*")
        return {str(path.relative_to(self.root)) for path in found}


@pytest.fixture
def prepared_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    return Guest(tmp_path, monkeypatch)


def test_the_timer_comes_with_max_run_stays_one_and_goes_without_it(
    cli: Cli, cache: Path, prepared_guest: Guest, tmp_path: Path
) -> None:
    state = prepared_host(cache, prepared="live")
    qcow2(state.files.disk)
    units = prepared_guest.inside("/etc/systemd/system")
    for length, kept in (("8h", "8h0m0s"), ("90m", "1h30m0s")):
        ran = cli("prepare-export", "--max-run", length)
        told(ran, 0, "demo", kept)
        prepared_guest.customize()
        wanted = ycluster.max_run_units(ycluster.boot_budget(length))
        for name, text in wanted.items():
            assert (units / name).read_text() == text
        links = units / "timers.target.wants"
        for name in sorted(os.listdir(links)):
            assert os.readlink(links / name) == f"/etc/systemd/system/{name}"
        assert sorted(os.listdir(links)) == sorted(n for n in wanted if n.endswith(".timer"))
        assert ycluster.load_state(state.files).disk_max_run == kept
    assert cli("export", tmp_path / "with").code == 0
    readme = (tmp_path / "with" / "README").read_text()
    assert missing(readme, "1h30m0s", ycluster.KEEP_RUNNING, "ycluster-max-run.timer") == []
    assert missing(readme, "No deadline") != []
    (units / "ycluster-max-run.timer.d").mkdir()  # an edit of the user's
    assert cli("prepare-export").code == 0
    prepared_guest.customize()
    assert prepared_guest.units() == set() and (units / "timers.target.wants").is_dir()
    assert ycluster.load_state(state.files).disk_max_run == ""
    assert cli("export", tmp_path / "without").code == 0
    readme = (tmp_path / "without" / "README").read_text()
    assert missing(readme, "No deadline", "`ycluster lifetime gcp-flags`") == []


@pytest.mark.parametrize(
    "wrong",
    ["", "0", "8", "8 hours", "-8h", "59s", "1w", "8761h", "1e3h", "99999999h", "8h;reboot"],
)
def test_a_max_run_that_is_no_duration_or_beyond_reason_is_refused_and_nothing_is_touched(
    cli: Cli, cache: Path, prepared_guest: Guest, wrong: str
) -> None:
    qcow2(prepared_host(cache, prepared="done").files.disk)
    before = tree(cache)
    told(cli("prepare-export", f"--max-run={wrong}"), 2, wrong)
    assert tree(cache) == before and not prepared_guest.log.exists()


@pytest.mark.parametrize("given", ["1m", "60s", "8760h", "59.5s"])
def test_a_max_run_of_a_minute_to_a_year_is_taken(given: str) -> None:
    assert 60 <= ycluster.boot_budget(given) <= 365 * 86400


def test_a_prepared_disk_that_could_not_be_prepared_again_does_not_count_as_prepared(
    cli: Cli, cache: Path, prepared_guest: Guest, tmp_path: Path
) -> None:
    """It may have lost the timer, or kept one that was to go."""
    state = prepared_host(cache, prepared="done", disk_max_run="8h0m0s")
    qcow2(state.files.disk)
    fake_program(tmp_path / "bin", "virt-customize", "exit 1")
    assert cli("prepare-export", "--max-run", "2h").code == 1
    assert ycluster.load_state(state.files).prepared == "live"
    assert "is not prepared" in cli("export", tmp_path / "b").err


def test_a_disk_keeps_its_timer_over_a_start(cache: Path) -> None:
    state = prepared_host(cache, prepared="done", disk_max_run="8h0m0s")
    assert ycluster.anchored(state, ycluster.Clock(1.0, 0.0, "b")).disk_max_run == "8h0m0s"


# --- the data disk


def test_a_data_disk_that_cannot_be_formatted_leaves_nothing(host: Clocked, tmp_path: Path) -> None:
    fake_program(tmp_path / "bin", "virt-format", "echo 'no appliance' >&2; exit 1")
    host.environ["PATH"] = f"{tmp_path / 'bin'}:{host.environ['PATH']}"
    with refused(YclusterError, "no appliance"):
        ycluster.make_data_disk(host, tmp_path / "data" / "d.qcow2", "64M")
    assert list((tmp_path / "data").iterdir()) == []


def test_a_data_disk_that_is_there_is_never_formatted(host: Clocked, tmp_path: Path) -> None:
    fake_program(tmp_path / "bin", "virt-format", f"touch {tmp_path}/called")
    host.environ["PATH"] = f"{tmp_path / 'bin'}:{host.environ['PATH']}"
    disk = qcow2(tmp_path / "d.qcow2", "64M", "write -P 7 0 64k")
    before = disk.read_bytes()
    ycluster.check_data_disk(host, str(disk))
    ycluster.make_data_disk(host, disk, "1G")
    assert disk.read_bytes() == before and not (tmp_path / "called").exists()


def test_a_data_disk_that_another_made_meanwhile_stays(host: Clocked, tmp_path: Path) -> None:
    fake_program(tmp_path / "bin", "virt-format", f"echo theirs >{tmp_path}/d.qcow2")
    host.environ["PATH"] = f"{tmp_path / 'bin'}:{host.environ['PATH']}"
    ycluster.make_data_disk(host, tmp_path / "d.qcow2", "64M")
    assert (tmp_path / "d.qcow2").read_text() == "theirs\n" and sorted(os.listdir(tmp_path)) == [
        "bin",
        "d.qcow2",
        "home",
    ]


def test_a_data_disk_of_another_format_or_that_builds_on_another_is_refused(
    host: Clocked, tmp_path: Path
) -> None:
    (tmp_path / "raw").write_bytes(bytes(1 << 20))
    with refused(ConfigError, f"{tmp_path}/raw", "qcow2"):
        ycluster.check_data_disk(host, str(tmp_path / "raw"))
    qcow2(tmp_path / "base")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", tmp_path / "over"],
        check=True,
    )
    with refused(ConfigError, f"{tmp_path}/over", "builds on"):
        ycluster.check_data_disk(host, str(tmp_path / "over"))


def test_libguestfs_emulates_where_kvm_does_not_stand_its_trial_unless_its_user_says_how(
    host: Clocked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    fake_program(tmp_path / "bin", "virt-x", f'echo "$LIBGUESTFS_BACKEND_SETTINGS" >>{log}')
    host.environ["PATH"] = f"{tmp_path / 'bin'}:{host.environ['PATH']}"
    for kvm in (True, False):
        monkeypatch.setattr(ycluster, "kvm_works", lambda host, works=kvm: works)
        ycluster.guestfs(host, "x", "virt-x")
    host.environ["LIBGUESTFS_BACKEND_SETTINGS"] = "theirs"
    ycluster.guestfs(host, "x", "virt-x")
    assert log.read_text() == "\nforce_tcg\ntheirs\n"
    fake_program(tmp_path / "bin", "virt-x", f"echo fails >>{log}; exit 1")
    verdict = host.state_home() / "kvm-trial"
    verdict.parent.mkdir(parents=True)
    verdict.write_text("of a KVM that worked once (20.19)")
    with pytest.raises(YclusterError):
        ycluster.guestfs(host, "x", "virt-x")
    assert log.read_text().count("fails") == 1 and not verdict.exists()


def test_start_without_its_data_disk_is_refused(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    state = prepared_host(cache, data_disk=str(tmp_path / "gone.qcow2"))
    state.files.disk.touch()
    ran = cli("start")
    told(ran, 4, "demo", tmp_path / "gone.qcow2")


def test_every_teardown_keeps_the_data_disk_and_says_so(
    cli: Cli, cache: Path, tmp_path: Path
) -> None:
    data = tmp_path / "d.qcow2"
    data.write_text("data")
    state = prepared_host(cache, data_disk=str(data))
    state.files.disk.touch()
    ran = cli("teardown", "demo")
    told(ran, 0, f"kept: {data}")
    assert data.read_text() == "data" and not state.files.disk.exists()


# --- bundles

sectors = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 20)), max_size=40)


@settings(max_examples=40)
@given(sectors, st.integers(0, 40))
def test_gnu_tar_reads_a_sparse_member_back(
    tmp_path_factory: pytest.TempPathFactory, marks: list[tuple[int, int]], tail: int
) -> None:
    folder = tmp_path_factory.mktemp("tar")
    spans, at = [], 0
    for gap, length in marks:
        spans.append(((at + gap) * 512, length * 512))
        at += gap + length
    size = (at + tail + 1) * 512
    whole = bytearray(size)
    for number, (start, length) in enumerate(spans):
        whole[start : start + length] = bytes([number % 255 + 1]) * length
    data = b"".join(bytes(whole[start : start + length]) for start, length in spans)
    tar = folder / "x.tar"
    tar.write_bytes(ycluster.sparse_header("disk.raw", size, spans) + data + bytes(1024))
    subprocess.run(["tar", "-xf", tar, "-C", folder], check=True)
    assert (folder / "disk.raw").read_bytes() == whole
    shutil.rmtree(folder)


def test_sizes_beyond_octal_digits_are_read_by_gnu_tar(tmp_path: Path) -> None:
    head = ycluster.sparse_header("disk.raw", 20 << 40, [((20 << 40) - 512, 512)])
    (tmp_path / "x.tar").write_bytes(head + b"x" * 512 + bytes(1024))
    listed = subprocess.run(
        ["tar", "-tvf", tmp_path / "x.tar"], check=True, text=True, capture_output=True
    ).stdout
    assert str(20 << 40) in listed and listed.split()[-1] == "disk.raw"


@pytest.fixture
def disk(cache: Path) -> Path:
    """The disk of a stopped cluster: an overlay with data at both ends and between."""
    boot = ["write -P 1 0 64k", "write -P 0x55 510 1", "write -P 0xaa 511 1"]
    base = qcow2(cache / "images" / "base", "28M", *boot, "write -P 2 15M 3M")
    over = cache / "demo.qcow2"
    argv = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-b",
        "images/base",
        "-F",
        "qcow2",
        over,
        "40M",
    ]
    subprocess.run(argv, check=True, cwd=base.parent.parent)
    writes = ["-c", "write -P 3 64k 64k", "-c", "write -P 4 39M 1M", "-c", "discard 16M 1M"]
    subprocess.run(["qemu-io", *writes, over], check=True, stdout=subprocess.DEVNULL, cwd=cache)
    state = prepared_host(cache, prepared="done")
    for path in (state.files.ssh_key, state.files.ssh_pub, state.files.known_hosts):
        path.write_text(path.name)
        path.chmod(0o600)
    return over


ENDS = {"qcow2": "qcow2", "raw": "img", "vmdk": "vmdk", "ova": "ova", "gcp-tar": "tar.gz"}


@pytest.mark.parametrize("form", ENDS)
def test_a_bundle_is_read_back_checked_and_imported(
    cli: Cli, cache: Path, disk: Path, tmp_path: Path, form: str
) -> None:
    bundle = tmp_path / "a bundle"
    before = tree(cache)
    ran = cli("export", bundle, "--format", form)
    assert (ran.code, ran.out) == (0, f"{bundle}\n"), ran.err
    after = tree(cache)
    after.pop("demo.lock")
    assert after == before
    name = f"demo.{ENDS[form]}"
    assert sorted(os.listdir(bundle)) == sorted(
        [
            "README",
            "SHA256SUMS",
            "demo-ssh",
            "demo-ssh.pub",
            "known_hosts",
            name,
        ]
    )
    assert all(path.stat().st_mode & 0o077 == 0 for path in [bundle, *bundle.iterdir()])
    subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"],
        check=True,
        cwd=bundle,
        stdout=subprocess.DEVNULL,
    )
    assert f"ycluster import {name} -c DIR" in (bundle / "README").read_text()
    if form == "gcp-tar":
        subprocess.run(["tar", "-xzf", bundle / name, "-C", tmp_path], check=True)
        subprocess.run(
            ["qemu-img", "compare", "-f", "raw", tmp_path / "disk.raw", disk], check=True
        )
        # Whole GiB, and as sparse as it was: a small file that only looks large.
        assert (tmp_path / "disk.raw").stat().st_size == 1 << 30
        assert (tmp_path / "disk.raw").stat().st_blocks < 16 << 11 and (
            bundle / name
        ).stat().st_size < 1 << 20
    elif form != "ova":
        subprocess.run(["qemu-img", "compare", "-f", form, bundle / name, disk], check=True)
        assert (bundle / name).stat().st_blocks < 16 << 11
    (tmp_path / "y-cluster-provision.yaml").write_text(CONFIG.replace("demo", "copy"))
    assert cli("import", bundle / name, "-c", tmp_path).code == 0
    subprocess.run(["qemu-img", "compare", cache / "copy.qcow2", disk], check=True)
    info = json.loads(
        subprocess.run(
            ["qemu-img", "info", "--output=json", cache / "copy.qcow2"], capture_output=True
        ).stdout
    )
    assert info["format"] == "qcow2" and "backing-filename" not in info
    assert not (cache / "copy.import").exists()


def test_a_bundle_never_overwrites_and_needs_a_stopped_cluster(
    cli: Cli, cache: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full, file, part = tmp_path / "full", tmp_path / "file", tmp_path / ".new.part"
    full.mkdir()
    (full / "x").touch()
    file.touch()
    part.mkdir()
    before = tree(tmp_path)
    told(cli("export", full), 2, full)
    told(cli("export", file), 2, file)
    assert missing(cli("export", tmp_path / "new").err, f"rm -r {part}") == []
    monkeypatch.setattr(ycluster, "running", lambda host, files: True)
    ran = cli("export", tmp_path / "other")
    told(ran, 1, "`ycluster prepare-export --name demo`")
    after = tree(tmp_path)
    after.pop("home/.local/share/ycluster/demo.lock")
    assert after == before


def test_a_cluster_that_is_exported_is_in_use(cli: Cli, disk: Path, tmp_path: Path) -> None:
    """One that is stopped, and exported every week, was pruned."""
    sidecar = disk.with_suffix(".json")
    os.utime(sidecar, (1, 1))
    assert cli("export", tmp_path / "bundle").code == 0 and sidecar.stat().st_mtime > 1


def test_an_export_that_fails_leaves_nothing_and_an_empty_folder_is_taken(
    cli: Cli, cache: Path, disk: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (cache / "images" / "base").unlink()
    assert cli("export", tmp_path / "empty", "--format", "raw").code == 4
    assert (
        sorted(os.listdir(tmp_path)) == ["empty", "home"] and os.listdir(tmp_path / "empty") == []
    )
    qcow2(disk)
    assert cli("export", tmp_path / "empty", "--format", "raw").code == 0
    assert "demo.img" in os.listdir(tmp_path / "empty")


OVF = "{http://schemas.dmtf.org/ovf/envelope/1}"
RASD = "{http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData}"


def test_an_ova_is_a_descriptor_its_manifest_and_the_disk_in_this_order(
    cli: Cli, cache: Path, disk: Path, tmp_path: Path
) -> None:
    """As DSP0243 has it; virt-v2v reads it in the e2e tests. (24)"""
    prepared_host(cache, prepared="done", memory="1500", cpus="3")
    assert cli("export", tmp_path / "b", "--format", "ova").code == 0
    with tarfile.open(tmp_path / "b" / "demo.ova", "r:") as ova:
        members = ova.getmembers()
        for name in ("demo.ovf", "demo.mf", "demo.vmdk"):
            part = ova.extractfile(name)
            assert part is not None
            (tmp_path / name).write_bytes(part.read())
    names = ["demo.ovf", "demo.mf", "demo.vmdk"]
    assert [member.name for member in members] == names
    assert {(member.uid, member.gid, member.mode) for member in members} == {(0, 0, 0o644)}
    head = (tmp_path / "b" / "demo.ova").read_bytes()[257:265]
    assert head == b"ustar\x0000"  # GNU's own format has blanks there
    manifest = re.findall(r"(?m)^SHA256\((.*)\)= (\w{64})$", (tmp_path / "demo.mf").read_text())
    for name, digest in manifest:
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert [name for name, _ in manifest] == ["demo.ovf", "demo.vmdk"]

    root = ElementTree.parse(tmp_path / "demo.ovf").getroot()
    [file] = root.iter(f"{OVF}File")
    assert file.get(f"{OVF}href") == "demo.vmdk"
    assert file.get(f"{OVF}size") == str((tmp_path / "demo.vmdk").stat().st_size)
    [named] = root.iter(f"{OVF}Disk")
    assert named.get(f"{OVF}capacity") == str(40 << 20)
    found = {}
    for item in root.iter(f"{OVF}Item"):
        keys = [part.tag for part in item]
        assert keys == sorted(keys)  # the schema has them in a sequence
        found[item.findtext(f"{RASD}ResourceType")] = item.findtext(f"{RASD}VirtualQuantity")
    assert (found["3"], found["4"]) == ("3", "1500") and {"10", "17", "20"} < set(found)
    subprocess.run(["qemu-img", "compare", "-f", "vmdk", tmp_path / "demo.vmdk", disk], check=True)


@pytest.mark.parametrize("subformat", ycluster.VMDK_SUBFORMATS)
def test_a_vmdk_has_the_subformat_that_is_asked_for(
    cli: Cli, disk: Path, tmp_path: Path, subformat: str
) -> None:
    """Some are several files, all of them in SHA256SUMS. (24)"""
    ran = cli("export", tmp_path / "b", "--format", "vmdk", "--vmdk-subformat", subformat)
    assert ran.code == 0, ran.err
    made = tmp_path / "b" / "demo.vmdk"
    argv = ["qemu-img", "info", "--output=json", made]
    info = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    assert info["format-specific"]["data"]["create-type"] == subformat
    subprocess.run(["qemu-img", "compare", made, disk], check=True)
    summed = {line.split()[1] for line in (tmp_path / "b/SHA256SUMS").read_text().splitlines()}
    assert summed == {*os.listdir(tmp_path / "b")} - {"SHA256SUMS"}
    is_one = len(list((tmp_path / "b").glob("*.vmdk"))) == 1
    assert ("ycluster import" in (tmp_path / "b" / "README").read_text()) is is_one


def test_a_subformat_is_for_a_vmdk(cli: Cli, disk: Path, tmp_path: Path) -> None:
    told(
        cli("export", tmp_path / "b", "--format", "ova", "--vmdk-subformat", "monolithicFlat"),
        2,
        "--format vmdk",
    )
    assert not (tmp_path / "b").exists()


def gcp_tar(cli: Cli, folder: Path) -> bytes:
    """The tar of an export, unpacked."""
    ran = cli("export", folder, "--format", "gcp-tar")
    assert ran.code == 0, ran.err
    return gzip.decompress((folder / "demo.tar.gz").read_bytes())


def test_pigz_packs_the_same_tar_as_the_standard_library(
    cli: Cli, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(24)"""
    need_pigz = shutil.which("pigz")
    assert need_pigz or os.environ.get("CI") != "true", "pigz is not installed"
    seen = []
    beside = Host.beside

    def noted(self: Host, argv: list[str], **options: Any) -> Any:
        seen.append(argv[0])
        return beside(self, argv, **options)

    monkeypatch.setattr(Host, "beside", noted)
    first = gcp_tar(cli, tmp_path / "one")
    assert ("pigz" in seen) is bool(need_pigz)
    which = Host.which
    monkeypatch.setattr(
        Host, "which", lambda self, name: None if name == "pigz" else which(self, name)
    )
    seen.clear()
    assert gcp_tar(cli, tmp_path / "other") == first and seen == ["qemu-nbd"]


def test_a_gcp_tar_needs_no_short_path(
    cli: Cli, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket's path does. (24)"""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert gcp_tar(cli, long / "b") and os.listdir(long) == ["b"]


def test_what_is_compressed_in_its_image_or_reads_as_zero_is_packed_right(
    cli: Cli, cache: Path, disk: Path, tmp_path: Path
) -> None:
    """As Ubuntu's cloud images are; and what is zero is not read. (24)"""
    base, packed = cache / "images" / "base", cache / "images" / "packed"
    subprocess.run(
        ["qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", base, packed], check=True
    )
    packed.replace(base)
    writes = ["-c", "write -z 24M 10M"]
    subprocess.run(["qemu-io", *writes, disk], check=True, stdout=subprocess.DEVNULL, cwd=cache)
    whole = gcp_tar(cli, tmp_path / "b")
    assert len(whole) < 8 << 20
    (tmp_path / "x.tar").write_bytes(whole)
    subprocess.run(["tar", "-xf", tmp_path / "x.tar", "-C", tmp_path], check=True)
    subprocess.run(["qemu-img", "compare", "-f", "raw", tmp_path / "disk.raw", disk], check=True)


@pytest.mark.parametrize("program", ["pigz", "qemu-nbd", "qemu-img", "tar"])
def test_a_program_that_fails_half_way_leaves_nothing_and_its_words(
    cli: Cli, cache: Path, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    """A full disk, for one. Nor do the folders above that were not there. (24)"""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    before_it_fails = {
        "pigz": "exec <&-; sleep 0.3; ",  # it takes no more, and has not ended yet
        "qemu-img": 'case "$*" in *map*|*info*) exec /usr/bin/qemu-img "$@";; esac; ',
    }
    fake_program(
        tmp_path / "bin",
        program,
        f"{before_it_fails.get(program, '')}echo 'No space left on device' >&2; exit 1",
    )
    before = sorted(os.listdir(tmp_path))
    form = "gcp-tar" if program in ("pigz", "qemu-nbd") else "ova"
    ran = cli("export", tmp_path / "not" / "there" / "b", "--format", form)
    told(ran, 1, program, "No space left")
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("above", ["file", "file/below", "/proc", "/proc/below"])
def test_a_bundle_that_cannot_be_made_is_told_and_leaves_nothing(
    cli: Cli, disk: Path, tmp_path: Path, above: str
) -> None:
    """(24)"""
    (tmp_path / "file").touch()
    before = sorted(os.listdir(tmp_path))
    bundle = tmp_path / above / "b"
    told(cli("export", bundle), 2, bundle, "can't be made")
    assert sorted(os.listdir(tmp_path)) == before


def test_the_folders_above_a_bundle_are_made(cli: Cli, disk: Path, tmp_path: Path) -> None:
    """(24)"""
    bundle = tmp_path / "not" / "there" / "b"
    assert cli("export", bundle).code == 0 and (bundle / "demo.qcow2").exists()


@pytest.mark.parametrize("members", [[], ["a.vmdk", "b.vmdk"], ["../a.vmdk"], ["-x.vmdk"]])
def test_a_tar_that_is_no_ova_with_one_disk_is_not_imported(
    cli: Cli, cache: Path, tmp_path: Path, members: list[str]
) -> None:
    """(24)"""
    (tmp_path / "y-cluster-provision.yaml").write_text(CONFIG)
    with tarfile.open(tmp_path / "x.ova", "w") as archive:
        for name in ["x.ovf", *members]:
            archive.addfile(tarfile.TarInfo(name))
    told(cli("import", tmp_path / "x.ova", "-c", tmp_path), 3, "vmdk")
    assert [path.name for path in cache.iterdir() if not path.name.endswith(".lock")] == []


def test_a_link_in_the_place_of_an_ovas_disk_is_not_imported(
    cli: Cli, cache: Path, tmp_path: Path
) -> None:
    """(21.4)"""
    (tmp_path / "y-cluster-provision.yaml").write_text(CONFIG)
    link = tarfile.TarInfo("x.vmdk")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tmp_path / "x.ova", "w") as archive:
        archive.addfile(tarfile.TarInfo("x.ovf"))
        archive.addfile(link)
    told(cli("import", tmp_path / "x.ova", "-c", tmp_path), 3, "regular file")


def test_a_bundle_gets_its_name_once_its_checksums_are_in_it(
    cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    fake_program(tmp_path / "bin", "sha256sum", "exit 1")
    qcow2(prepared_host(cache, prepared="done").files.disk)
    before = os.listdir(tmp_path)
    assert cli("export", tmp_path / "bundle").code == 1
    assert os.listdir(tmp_path) == before


def test_an_unprepared_disk_is_exported_with_a_warning(
    cli: Cli, cache: Path, disk: Path, tmp_path: Path
) -> None:
    prepared_host(cache, prepared="", data_disk="/d.qcow2")
    ran = cli("export", tmp_path / "b")
    assert ran.code == 0
    assert missing(ran.err, "warning: demo", "`ycluster prepare-export --name", "/d.qcow2") == []


def test_a_start_forgets_that_the_disk_was_prepared(cache: Path) -> None:
    state = prepared_host(cache, prepared="done")
    assert ycluster.anchored(state, ycluster.Clock(1.0, 0.0, "b")).prepared == ""


# --- import


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "y-cluster-provision.yaml").write_text(CONFIG)
    return tmp_path


def test_what_is_no_whole_disk_is_not_imported(
    cli: Cli, cache: Path, config: Path, tmp_path: Path
) -> None:
    qcow2(tmp_path / "base.qcow2")
    convert = "qemu-img convert -O vmdk -o subformat=monolithicSparse base.qcow2 base.vmdk"
    for argv in (
        "qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 over.qcow2",
        convert,  # a vmdk names what it builds on in a text of its own, and not in its header
        "qemu-img create -q -f vmdk -b base.vmdk -F vmdk over.vmdk",
    ):
        subprocess.run(argv.split(), check=True, cwd=tmp_path)
    over, sparse = tmp_path / "over.qcow2", tmp_path / "over.vmdk"
    (tmp_path / "no.tar.gz").write_bytes(
        subprocess.run(["tar", "-cz", "-C", tmp_path, "over.qcow2"], capture_output=True).stdout
    )
    wrong = qcow2(tmp_path / "bundle" / "d.qcow2")
    (wrong.parent / "SHA256SUMS").write_text(f"{'0' * 64}  d.qcow2\n")
    for disk, fact in (
        (tmp_path / "none", f"{tmp_path}/none: no such file"),
        (over, "builds on"),
        (sparse, "builds on"),
        (tmp_path / "no.tar.gz", f"`tar -xf {tmp_path}/no.tar.gz -- over.qcow2`"),
        (wrong, wrong.parent / "SHA256SUMS"),
    ):
        ran = cli("import", disk, "-c", config)
        assert ran.code and missing(ran.err, fact) == [], ran.err
        assert list(cache.iterdir()) == []


def test_what_is_gzipped_is_known_by_its_content_whatever_its_name(
    cli: Cli, cache: Path, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk.raw").write_bytes(RAW)
    tar, plain = tmp_path / "disk.img", tmp_path / "disk.tar"
    subprocess.run(["tar", "-czf", tar, "-C", tmp_path, "disk.raw"], check=True)
    subprocess.run(["tar", "-cf", plain, "-C", tmp_path, "disk.raw"], check=True)
    named = tmp_path / "disk.tar.gz"
    argv = ["qemu-img", "convert", "-O", "qcow2", "-f", "raw", tmp_path / "disk.raw", named]
    subprocess.run(argv, check=True)
    dotted = [tmp_path / "dotted", tmp_path / "dotted.gz"]
    for way, disk in zip(("-cf", "-czf"), dotted):  # as `tar -c .` names what is in it
        subprocess.run(["tar", way, disk, "-C", tmp_path, "./disk.raw"], check=True)
    for disk in (tar, plain, named, *dotted):
        assert cli("import", disk, "-c", config).code == 0
        compare = ["qemu-img", "compare", "-f", "raw", tmp_path / "disk.raw", cache / "demo.qcow2"]
        subprocess.run(compare, check=True)
        assert cli("teardown", "demo").code == 0


def qcow2_header(version: int, encryption: int) -> bytes:
    """(QEMU's docs/interop/qcow2.txt)"""
    numbers = ((version, 4), (0, 8), (0, 4), (16, 4), (1 << 20, 8), (encryption, 4))
    fields = [number.to_bytes(length, "big") for number, length in numbers]
    return b"".join([b"QFI\xfb", *fields]).ljust(1 << 20, b"\0")


NO_DISKS = {
    "a CD": (RAW[:512].ljust(0x8001, b"\0") + b"CD001" + bytes(1 << 20), "CD image", "whole disk"),
    "encrypted": (qcow2_header(3, 2), "encrypted", "qemu-img convert --object secret"),
    "an old qcow": (qcow2_header(1, 0), "version 1", "qemu-img convert -f qcow "),
    "a page": (
        b"<!DOCTYPE html>\n<html>not found</html>\n",
        "begins with '<!DOCTYPE html>'",
        "whole disk",
    ),
    "nothing": (b"", "empty", "whole disk"),
    "zeros": (bytes(512), "no boot sector", "whole disk"),
    "no text": (b"\xff" * 600, "no boot sector", "whole disk"),
    "a text cut within a letter": (b"a" + "\u00e9".encode() * 300, "it is a text", "whole disk"),
    "a boot sector": (RAW[:512], "512 bytes, and a disk 1048576 at least", "whole disk"),
    "a kernel": (RAW[:512] + b"..HdrS" + bytes(1 << 20), "Linux kernel", "whole disk"),
    "gzip": (b"\x1f\x8b\x08" + bytes(600), "packed by gzip", "zcat >disk.img"),
    "xz": (b"\xfd7zXZ\0" + bytes(600), "packed by xz", "xzcat >disk.img"),
    "zstd": (b"\x28\xb5\x2f\xfd" + bytes(600), "packed by zstd", "zstdcat >disk.img"),
    "bzip2": (b"BZh91AY" + bytes(600), "packed by bzip2", "bzcat >disk.img"),
    "lzma": (lzma.compress(RAW, lzma.FORMAT_ALONE), "packed by lzma", "xzcat >disk.img"),
    "lzip": (b"LZIP\1" + bytes(600), "packed by lzip", "lzip -dc >disk.img"),
    "compress": (b"\x1f\x9d\x90" + bytes(600), "packed by compress", "zcat >disk.img"),
    "zip": (b"PK\3\4" + bytes(600), "packed by zip", "`unzip /"),
    "7z": (b"7z\xbc\xaf\x27\x1c" + bytes(600), "packed by 7z", "`7z x /"),
    "rar": (b"Rar!\x1a\x07" + bytes(600), "packed by rar", "`unrar x /"),
    "an unknown qcow": (qcow2_header(9, 0), "version 9", "get it anew"),
    "a torn qcow": (qcow2_header(3, 0)[:100], "too short", "get it anew"),
}


@pytest.mark.parametrize("content, why, way_out", NO_DISKS.values(), ids=NO_DISKS)
def test_what_is_no_disk_is_refused_by_its_content_wherever_it_is_named(
    cli: Cli, cache: Path, config: Path, host: Clocked, tmp_path: Path, content: bytes, why: str, way_out: str
) -> None:  # fmt: skip
    """It was imported as "512 B", or booted to "No bootable device." and waited for."""
    disk = tmp_path / "disk.qcow2"
    disk.write_bytes(content)
    told(cli("import", disk, "-c", config), 3, disk, why, way_out)
    assert list(cache.iterdir()) == []
    file = config / "y-cluster-provision.yaml"
    file.write_text(f"{CONFIG}image: {disk}\n")
    told(cli("config", "check", "-c", config), 3, f"{file}:5:8: image: ", why, way_out)
    with refused(ycluster.NoDisk, disk, why):
        wanted = ycluster.require_qemu(ycluster.load_config(config))
        ycluster.fetch_image(host, wanted, tmp_path / "c")
    assert [path.name for path in (tmp_path / "c" / "images").iterdir()] == [".lock"]


@pytest.mark.parametrize(
    "name, source, way_out",
    [
        ("d.img.xz", "", "`<{place}/d.img.xz xzcat >disk.img`"),
        ("d.tar.xz", "", "`<{place}/d.tar.xz xzcat | tar -x`"),
        ("d.txz", "", "`<{place}/d.txz xzcat | tar -x`"),
        ("d.xz", "https://x.org/a/d.xz", "`curl -fL https://x.org/a/d.xz | xzcat >disk.img`"),
        ("d.zip", "https://x.org/a/d.zip", "`curl -fLO https://x.org/a/d.zip && unzip d.zip`"),
        (
            "d.zip",
            "https://x.org/d.zip?a=1",
            "`curl -fLO 'https://x.org/d.zip?a=1' && unzip d.zip`",
        ),
        ("d.txz", "https://x.org/d.txz?a=1", "xzcat | tar -x`"),
    ],
)
def test_the_way_to_unpack_is_that_of_what_is_in_it(
    tmp_path: Path, name: str, source: str, way_out: str
) -> None:
    """A tar was to be booted as disk.img. (26.2)"""
    packed = b"PK\3\4" if name.endswith("zip") else lzma.compress(RAW)
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(ycluster.NoDisk) as caught:
        ycluster.format_of(tmp_path / name, source)
    assert missing(caught.value.hint, way_out.format(place=tmp_path)) == []


@pytest.mark.parametrize(
    "content, says",
    [
        ("folder", "is not a file"),
        (b"<!DOCTYPE html>\n", "is not a qcow2"),
        (b"", "remove it, and the provision makes"),
        (lzma.compress(RAW), "xzcat >disk.img"),
        (bytes(1 << 20), "qemu-img convert"),
    ],
)
def test_what_is_no_data_disk_is_told_where_it_is_named(
    cli: Cli, config: Path, tmp_path: Path, content: str | bytes, says: str
) -> None:
    disk, file = tmp_path / "data", config / "y-cluster-provision.yaml"
    if isinstance(content, bytes):
        disk.write_bytes(content)
    else:
        disk.mkdir()
    file.write_text(f"{CONFIG}dataDisk: {disk}\n")
    told(cli("config", "check", "-c", config), 3, f"{file}:5:11: dataDisk: ", disk, says)


def test_what_a_config_names_on_this_host_is_checked_with_it(
    cli: Cli, config: Path, tmp_path: Path, home: Path
) -> None:
    """Only its provision told. (26.1)"""
    file, folder = config / "y-cluster-provision.yaml", tmp_path / "k3s"

    def refused_as(line: str, *facts: object) -> None:
        file.write_text(f"name: demo\nlifetime: {{maxRun: 8h}}\n{line}\n")
        told(cli("config", "check", "-c", config), 3, f"{file}:3:", *facts)

    (tmp_path / "note").write_text("text")
    (tmp_path / "link").symlink_to("nowhere")
    raw = tmp_path / "disk.raw"
    raw.write_bytes(RAW.ljust(20 << 20, b"\0"))
    refused_as(f"diskSize: 10M\nimage: {raw}", "diskSize: ", "smaller than the image")
    refused_as(f"dataDisk: {tmp_path}/note/d.qcow2", "dataDisk: ", "note is not a directory")
    refused_as(f"dataDisk: {tmp_path}/link", "dataDisk: ", "a link to nowhere")
    refused_as(f"dataDisk: {tmp_path}/{'x' * 300}", "dataDisk: ", "too long")
    disk = home / ".local/share/ycluster/demo.qcow2"
    refused_as(f"dataDisk: {disk}", "dataDisk: ", "a name of the cluster demo's own")
    refused_as(f"cacheDir: {tmp_path}/note", "cacheDir: ", "is not a directory")
    refused_as(f"cacheDir: {tmp_path}/note/c", f"{tmp_path}/note is not a directory")
    refused_as(f"k3s: {{source: {folder}}}", "k3s.source: ", folder, "no such folder")
    refused_as(f"k3s: {{source: {tmp_path}/note}}", "no such folder")
    folder.mkdir()
    refused_as(f"k3s: {{source: {folder}}}", ycluster.K3S_FILES[0], "is not there")
    for name in ycluster.K3S_FILES[:2]:
        (folder / name).touch()
    refused_as(f"k3s: {{source: {folder}}}", folder, ycluster.K3S_FILES[2])
    kept = home / ".cache/y-cluster/k3s" / ycluster.K3S_VERSION
    kept.mkdir(parents=True)
    for name in ycluster.K3S_FILES:
        (kept / name).touch()
    assert cli("config", "check", "-c", config).code == 0, "it is in the cache"


@pytest.mark.parametrize(
    "line, says",
    [
        ("cacheDir: {place}/note/c", "note is not a directory"),
        ("k3s: {{source: {place}/none}}", "no such folder"),
        ("dataDisk: {place}/note", "is not a qcow2"),
    ],
)
def test_a_provision_tells_it_before_anything_is_made(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, line: str, says: str
) -> None:
    """k3s was fetched first, and then Python's own words were told, twice."""
    (tmp_path / "note").write_text("text")
    (tmp_path / "disk.raw").write_bytes(RAW.ljust(2 << 20, b"\0"))
    text = f"name: demo\nsshPort: 0\nportForwards: [{{guest: 6443}}]\nimage: {tmp_path}/disk.raw\n"
    file = config / "y-cluster-provision.yaml"
    file.write_text(text + line.format(place=tmp_path) + "\n")
    ran = cli("provision", "-c", config)
    assert ran.code == 3 and missing(ran.err, f"{file}:5:", says) == [], ran.err
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("length", [3_000_000, 70_000])
def test_a_disk_that_was_cut_off_is_refused(
    cli: Cli, cache: Path, config: Path, host: Clocked, tmp_path: Path, length: int
) -> None:
    """QEMU reads zeros past the end of the file, so it was imported. (26.2)"""
    (tmp_path / "disk.raw").write_bytes(RAW[:512] + os.urandom(8 << 20))
    disk = tmp_path / "disk.qcow2"
    argv = ["qemu-img", "convert", "-f", "raw", "-O", "qcow2", tmp_path / "disk.raw", disk]
    subprocess.run(argv, check=True)
    ycluster.image_info(host, disk)
    os.truncate(disk, length)
    told(cli("import", disk, "-c", config), 3, disk, "cut off")
    assert list(cache.iterdir()) == []
    file = config / "y-cluster-provision.yaml"
    file.write_text(f"{CONFIG}image: {disk}\n")
    told(cli("config", "check", "-c", config), 3, f"{file}:5:8: image: ", "cut off")
    wanted = ycluster.QemuConfig(image=disk.as_uri())
    with refused(ycluster.ConfigError, disk, "cut off"):
        ycluster.fetch_image(host, wanted, tmp_path / "c")
    assert [path.name for path in (tmp_path / "c" / "images").iterdir()] == [".lock"]


def test_a_disk_after_a_power_cut_is_not_taken_for_damaged(
    host: Clocked, config: Path, tmp_path: Path
) -> None:
    """QEMU mends its counts when it opens it; one was to get it anew, and it was the only copy."""
    disk = tmp_path / "data.qcow2"
    argv = [*"qemu-img create -q -f qcow2 -o lazy_refcounts=on".split(), disk, "64M"]
    subprocess.run(argv, check=True)
    cut = ["-c", "write 1M 4M", "-c", "flush", "-c", "abort"]
    subprocess.run(["qemu-io", "-f", "qcow2", *cut, disk], capture_output=True)
    argv = ["qemu-img", "check", "-q", "-f", "qcow2", str(disk)]
    assert subprocess.run(argv, capture_output=True).returncode, "or this shows nothing"
    ycluster.image_info(host, disk)
    ycluster.check_data_disk(host, str(disk))
    os.truncate(disk, 1_000_000)
    with refused(ConfigError, disk, "cut off"):
        ycluster.check_data_disk(host, str(disk))


def test_config_check_needs_no_program_of_the_host(
    cli: Cli, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, image = qcow2(tmp_path / "data.qcow2"), qcow2(tmp_path / "image.qcow2")
    file = config / "y-cluster-provision.yaml"
    file.write_text(f"{CONFIG}image: {image}\ndataDisk: {data}\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cli("config", "check", "-c", config).code == 0


@pytest.mark.parametrize("form", ["raw", "monolithicSparse", "streamOptimized"])
def test_a_disk_in_another_format_that_was_cut_off_is_refused(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, form: str
) -> None:
    """Of a raw disk its GPT tells. (26.2)"""
    size = 8 << 20
    gpt = b"EFI PART" + bytes(24) + (size // 512).to_bytes(8, "little")
    raw, disk = tmp_path / "disk.raw", tmp_path / "disk"
    raw.write_bytes(RAW[:512] + gpt.ljust(512, b"\0") + os.urandom(size - 512))
    if form == "raw":
        raw.rename(disk)
    else:
        argv = [*f"qemu-img convert -f raw -O vmdk -o subformat={form}".split(), raw, disk]
        subprocess.run(argv, check=True)
    whole = disk.read_bytes()
    for length in (len(whole) // 2, len(whole) - 70_000):
        os.truncate(disk, length)
        told(cli("import", disk, "-c", config), 3, disk, "cut off")
        assert list(cache.iterdir()) == []
        disk.write_bytes(whole)
    assert cli("import", disk, "-c", config).code == 0


def test_an_import_says_which_disk_it_replaces(cli: Cli, config: Path, tmp_path: Path) -> None:
    first, second = qcow2(tmp_path / "a", "1M"), qcow2(tmp_path / "b", "2M")
    assert "is replaced" not in cli("import", first, "-c", config).err
    ran = cli("import", second, "-c", config)
    assert ran.code == 0 and missing(ran.err, "demo.qcow2 is replaced") == []


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_that_was_cut_off_is_refused(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, mode: str
) -> None:
    """tar's own words were all there was. (26.1)"""
    (tmp_path / "disk.raw").write_bytes(RAW[:512] + os.urandom(1 << 20))
    archive = tmp_path / "disk.tar"
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        tar.add(tmp_path / "disk.raw", "disk.raw")
    os.truncate(archive, 1 << 19)
    told(cli("import", archive, "-c", config), 3, archive, "cut off")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["my disk.vmdk", "DISK.VMDK", "\u00fc.vmdk", "a\\b.vmdk", "./x.vmdk"]
)
def test_the_disk_of_an_ova_may_have_any_name(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, name: str
) -> None:
    """(26.2)"""
    (tmp_path / "disk.raw").write_bytes(RAW[:512] + bytes(1 << 20))
    argv = [*"qemu-img convert -f raw -O vmdk".split(), tmp_path / "disk.raw", tmp_path / name]
    subprocess.run(argv, check=True)
    with tarfile.open(tmp_path / "x.ova", "w") as tar:
        tar.add(tmp_path / name, name)
    assert cli("import", tmp_path / "x.ova", "-c", config).code == 0


def test_an_image_that_is_not_there_is_told_with_the_line_to_write(
    cli: Cli, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "noble-server.img").write_bytes(RAW)
    file = config / "y-cluster-provision.yaml"
    for image, line in (
        ("debian", f"`image: {ycluster.DEBIAN_IMAGE}`"),
        ("ubuntu:24.04", f"`image: {ycluster.DEFAULT_IMAGE}`"),
        ("noble-servr.img", f"`image: {tmp_path}/noble-server.img`"),
        ("/none/at/all.img", f"`image: {ycluster.DEFAULT_IMAGE}`"),
    ):
        file.write_text(f"{CONFIG}image: {image}\n")
        told(cli("config", "check", "-c", config), 3, f"{file}:5:8: image: ", line)
    file.write_text(f"{CONFIG}image: noble-server.img\n")
    assert cli("config", "check", "-c", config).code == 0
    (tmp_path / "link").symlink_to("nowhere")
    file.write_text(f"{CONFIG}image: link\n")
    told(cli("config", "check", "-c", config), 3, f"{file}:5:8: image: ", "a link to nowhere")


def test_a_lost_image_is_told_by_start_list_and_doctor(cli: Cli, cache: Path, disk: Path) -> None:
    """QEMU's raw words were all there was, and from start alone."""
    base = cache / "images" / "base"
    base.unlink()
    state = ycluster.load_state(Files(cache, "demo"))
    with refused(ycluster.StateError, base, "is gone"):
        ycluster.check_disks(state)
    assert missing(cli("list").err, base, "is gone") == []
    found = json.loads(cli("doctor", "-o", "json").out)["findings"]
    assert [one["level"] for one in found if str(base) in one["text"]] == ["failure"]
    assert missing(cli("export", cache / "b").err, base, "is gone") == []


def test_a_disk_that_has_run_is_not_made_anew_though_its_state_says_so(
    cli: Cli, cache: Path, config: Path
) -> None:
    """A state without startedAt, as whoever edits it may leave it, is that of a killed provision."""
    files = with_disk(cache, image="x", started_at=None).files
    files.console.write_text("")  # of a QEMU that could not start
    assert (
        cli("start", "-c", config).code == 4 and missing(cli("start").err, "no disk to boot") == []
    )
    files.console.write_text("login:")
    before = tree(cache)
    for verb in ("provision", "start"):
        told(cli(verb, "-c", config), 4, files.sidecar, "has no startedAt", files.console)
    assert tree(cache) == before


@pytest.mark.parametrize("which", ["disk", "data disk"])
def test_a_disk_that_is_gone_or_none_is_told_by_list_and_doctor(
    cli: Cli, cache: Path, tmp_path: Path, which: str
) -> None:
    """Only its start told. (26.1)"""
    data = tmp_path / "d.qcow2"
    data.write_bytes(ycluster.QCOW2)
    state = with_disk(cache, data_disk=str(data), image="x", started_at=1)
    lost = state.files.disk if which == "disk" else data

    def by_doctor() -> list[str]:
        found = json.loads(cli("doctor", "-o", "json").out)["findings"]
        return [one["level"] for one in found if str(lost) in one["text"]]

    assert cli("list").err == "" and by_doctor() == []
    lost.write_bytes(bytes(512))
    assert by_doctor() == ["failure"]
    lost.unlink()
    assert by_doctor() == ["failure"] and missing(cli("list").err, which, lost, "is gone") == []


def test_a_disk_that_is_marked_as_corrupt_is_told_by_doctor_and_start(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """QEMU refuses it, and by then the memory was dropped. (25)"""
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    state = with_disk(cache, image="x", started_at=1)
    disk = qcow2(state.files.disk, "1M")
    state.files.memory.write_bytes(b"what ran in it")
    kept = ycluster.Suspended(at=1, packed="", digest="", fits={})
    ycluster.save_state(ycluster.replace(state, suspended=kept))
    with open(disk, "r+b") as file:
        file.seek(79)
        file.write(b"\x02")
    ran = cli("start", "demo", "--discard-memory")
    told(ran, 4, str(disk), "corrupt", "qemu-img check -r all", "copy")
    assert state.files.memory.exists()
    found = json.loads(cli("doctor", "-o", "json").out)["findings"]
    assert [one["level"] for one in found if "corrupt" in one["text"]] == ["failure"]
    subprocess.run(["qemu-img", "check", "-q", "-r", "all", disk], check=True)
    ycluster.check_formats(ycluster.load_state(state.files))


def test_an_import_that_cannot_save_its_mark_leaves_no_disk_that_nobody_claims(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(state: State) -> State:
        raise OSError(errno.ENOSPC, "No space left on device")

    disk = qcow2(tmp_path / "d", "1M")
    with monkeypatch.context() as patch:
        patch.setattr(ycluster, "save_state", full)
        assert cli("import", disk, "-c", config).code == 1
    assert not (cache / "demo.qcow2").exists()
    assert cli("import", disk, "-c", config).code == 0


def test_an_import_never_replaces_a_cluster(
    cli: Cli, cache: Path, config: Path, disk: Path, tmp_path: Path
) -> None:
    before = tree(cache)
    ran = cli("import", qcow2(tmp_path / "d"), "-c", config)
    told(ran, 1, "`ycluster teardown --name demo`", cache)
    assert tree(cache) == before


def test_an_import_never_replaces_a_cluster_that_came_meanwhile(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checksums take their time, and a cluster of this name is made before the lock is had."""
    locked = ycluster.locked

    @contextlib.contextmanager
    def late(*args: Any, **options: Any) -> Iterator[None]:
        with locked(*args, **options):
            made(cache, image="i", started_at=5).files.disk.write_bytes(b"in use")
            yield

    monkeypatch.setattr(ycluster, "locked", late)
    assert cli("import", qcow2(tmp_path / "d"), "-c", config).code == 1
    state = ycluster.load_state(Files(cache, "demo"))
    assert state.imported == "" and state.files.disk.read_bytes() == b"in use"


def test_an_import_that_is_killed_leaves_no_disk_without_its_mark(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next provision would make a new disk in its place, as after one that was cut off."""
    half = made(cache, image="i")
    half.files.disk.write_bytes(b"half made")

    def killed(state: State) -> None:
        raise ycluster.Interrupted("killed")

    monkeypatch.setattr(ycluster, "save_state", killed)
    assert cli("import", qcow2(tmp_path / "d"), "-c", config).code == 130
    assert half.files.disk.read_bytes() == b"half made"
    assert ycluster.load_state(half.files) == half


def test_an_import_that_was_killed_is_taken_up(
    cli: Cli, cache: Path, config: Path, tmp_path: Path
) -> None:
    (cache / "demo.import").mkdir()
    (cache / "demo.import" / ycluster.IMPORT_MARK).touch()  # what shows that it is ours (21.3.3)
    (cache / "demo.import" / "demo.qcow2").write_text("half")
    assert cli("import", qcow2(tmp_path / "d"), "-c", config).code == 0
    assert not (cache / "demo.import").exists() and ycluster.load_state(
        Files(cache, "demo")
    ).imported == str(tmp_path / "d")


@pytest.mark.parametrize("gone", ["its source", "the folder's name"])
def test_an_import_replaces_no_disk_that_has_no_other_copy(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, gone: str
) -> None:
    """Its source was removed; or it was taken as it was, and the cacheDir was moved since."""
    other = qcow2(tmp_path / "other", "64M", "write -P 8 0 64k")
    if gone == "its source":
        source = qcow2(tmp_path / "only", "64M", "write -P 9 0 64k")
    else:
        source = qcow2(cache / "demo.qcow2", "64M", "write -P 9 0 64k")
    assert cli("import", source, "-c", config).code == 0
    if gone == "its source":
        source.unlink()
    else:
        moved = cache.rename(tmp_path / "moved")
        text = (config / "y-cluster-provision.yaml").read_text()
        (config / "y-cluster-provision.yaml").write_text(f"{text}cacheDir: {moved}\n")
        cache = moved
    before = (cache / "demo.qcow2").read_bytes()
    refused = cli("import", other, "-c", config)
    assert refused.code == 1 and "is there already" in refused.err
    assert (cache / "demo.qcow2").read_bytes() == before


def test_a_data_disk_of_one_cluster_is_no_boot_disk_of_another(
    cli: Cli, cache: Path, config: Path
) -> None:
    """Its teardown removed it."""
    disk = qcow2(cache / "demo.qcow2", "64M", "write -P 9 0 64k")
    made(cache, name="other", context="other", data_disk=str(disk))
    for argv in (("import", disk, "-c", config), ("provision", "-c", config)):
        refused = cli(*argv)
        assert refused.code == 1 and "the data disk of the cluster other" in refused.err
    assert not (cache / "demo.json").exists() and disk.exists()


def test_a_folder_of_the_users_stays_where_an_import_has_its_own(
    cli: Cli, cache: Path, config: Path, tmp_path: Path
) -> None:
    """Also beside a cluster that was imported, and at its teardown."""
    source = qcow2(tmp_path / "d")
    assert cli("import", source, "-c", config).code == 0
    mine = cache / "demo.import" / "mine"
    mine.parent.mkdir()
    mine.write_text("precious")
    refused = cli("import", source, "-c", config)
    assert refused.code == 1 and "demo.import" in refused.err and mine.exists()
    assert cli("teardown", "demo").code == 0
    assert mine.read_text() == "precious" and sorted(os.listdir(cache)) == ["demo.import"]


@pytest.mark.parametrize("name", ["demo.import", "demo-certificates", "demo-seed/bundle"])
def test_a_bundle_is_put_where_no_teardown_removes_it(
    cli: Cli, cache: Path, disk: Path, name: str
) -> None:
    refused = cli("export", cache / name, "--format", "raw")
    assert refused.code == 2 and "the cluster demo's own" in refused.err
    assert not (cache / name).exists()


def test_a_bundle_is_not_put_onto_a_mount(
    cli: Cli, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be written beside it, and then can't be moved there."""
    stick = tmp_path / "stick"
    stick.mkdir()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == stick)
    refused = cli("export", stick, "--format", "raw")
    assert refused.code == 2 and missing(refused.err, "is mounted there", f"{stick}/bundle") == []
    assert os.listdir(stick) == []


@pytest.mark.parametrize("size, told", [("128M", 128 << 20), ("64M", 64 << 20), ("32M", 64 << 20)])
def test_an_imported_disk_boots_as_it_is_or_larger_and_outlives_a_provision_that_fails(
    cli: Cli,
    cache: Path,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    size: str,
    told: int,
) -> None:
    (config / "y-cluster-provision.yaml").write_text(f"{CONFIG}diskSize: {size}\n")
    source = qcow2(tmp_path / "d", "64M", "write -P 9 1M 1M")
    assert cli("import", source, "-c", config).code == 0
    seen: list[State] = []

    def boot(host: object, state: State) -> State:
        seen.append(state)
        raise YclusterError("unbootable")

    monkeypatch.setattr(ycluster, "_boot", boot)
    for _ in range(2):
        assert "unbootable" in cli("provision", "-c", config).err
        subprocess.run(["qemu-img", "compare", cache / "demo.qcow2", source], check=True)
    info = json.loads(
        subprocess.run(
            ["qemu-img", "info", "--output=json", cache / "demo.qcow2"], capture_output=True
        ).stdout
    )
    assert info["virtual-size"] == told and "backing-filename" not in info
    assert [state.imported for state in seen] == [str(source)] * 2
    assert cli("teardown", "demo").code == 0 and sorted(os.listdir(cache)) == []


def test_a_disk_that_is_imported_while_provision_fetches_its_image_is_not_touched(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = qcow2(tmp_path / "d", "64M", "write -P 9 1M 1M")
    image = qcow2(tmp_path / "image", "64M")
    before = image.read_bytes()

    def fetch(*args: object) -> Path:
        assert cli("import", source, "-c", config).code == 0
        return image

    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    monkeypatch.setattr(ycluster, "fetch_image", fetch)
    ran = cli("provision", "-c", config)
    told(ran, 1, "demo", "meanwhile")
    assert image.read_bytes() == before
    assert ycluster.load_state(Files(cache, "demo")).imported == str(source)


# --- disks of strangers

MARKER = b"a file of this host's" * 100


def descriptor(extent: Path) -> bytes:
    """The text of a VMDK descriptor, by which QEMU gives whoever opens it another file."""
    head = "# Disk DescriptorFile\nversion=1\nCID=fffffffe\nparentCID=ffffffff\n"
    text = f'{head}createType="monolithicFlat"\nRW 2048 FLAT "{extent}" 0\n'
    return text.encode().ljust(1 << 20, b"\0")


def embedded(extent: Path) -> bytes:
    """A sparse VMDK without a size of its own: QEMU goes by the descriptor that is in it."""
    header = b"KDMV" + struct.pack("<IIQQQQ", 1, 3, 0, 128, 1, 20)
    return header.ljust(512, b"\0") + descriptor(extent)


def strange_disks(folder: Path, secret: Path) -> dict[str, Path]:
    """Disks each of which leads to the file `secret`, by the way that it does."""

    def create(name: str, *options: object) -> Path:
        argv = ["qemu-img", "create", "-q", *options, folder / name, "1M"]
        subprocess.run(argv, check=True)
        return folder / name

    (folder / "text").write_bytes(descriptor(secret))
    (folder / "late text").write_bytes(b"# a\n \n" + descriptor(secret)[22:])
    (folder / "embedded").write_bytes(embedded(secret))
    return {
        "a descriptor": folder / "text",
        "a descriptor without its first line": folder / "late text",
        "a descriptor in a header": folder / "embedded",
        "a backing file": create("over", "-f", "qcow2", "-b", secret, "-F", "raw"),
        "a parent": create(
            "parent", "-f", "vmdk", "-b", create("whole", "-f", "vmdk"), "-F", "vmdk"
        ),
        "a data file": create(
            "data", "-f", "qcow2", "-o", f"data_file={folder}/d,data_file_raw=on"
        ),
        "two files": create("two", "-f", "vmdk", "-o", "subformat=twoGbMaxExtentSparse"),
    }


def test_a_disk_that_leads_to_another_file_is_neither_imported_nor_an_image(
    cli: Cli, cache: Path, config: Path, host: Clocked, tmp_path: Path
) -> None:
    """A raw disk that began with a VMDK descriptor gave the guest a file of the host's. (21.4.1)"""
    secret, folder = tmp_path / "secret", tmp_path / "disks"
    secret.write_bytes(MARKER.ljust(1 << 20, b"\0"))
    folder.mkdir()
    state = State(name="demo", cache_dir=str(folder), disk_size="1G")
    for way, disk in strange_disks(folder, secret).items():
        told(cli("import", disk, "-c", config), 3, disk, lines=3)
        assert list(cache.iterdir()) == [], way
        with refused(ConfigError, disk):
            ycluster.make_disk(host, state, disk)
        with refused(ConfigError, disk):
            ycluster.check_data_disk(host, str(disk))
    assert not state.files.disk.exists()


def test_a_format_is_known_by_the_first_bytes_and_never_asked_for(tmp_path: Path) -> None:
    """Probing is what takes a raw disk for something else. (21.4.1)"""
    for form in ("qcow2", "vmdk", "raw"):
        subprocess.run(["qemu-img", "create", "-q", "-f", form, tmp_path / form, "1M"], check=True)
        if form == "raw":
            (tmp_path / form).write_bytes(RAW)
        assert ycluster.image_format((tmp_path / form).read_bytes()[:4096].ljust(80, b"\0")) == form
    for form in ("qed", "vdi", "vhdx", "vpc"):
        subprocess.run(["qemu-img", "create", "-q", "-f", form, tmp_path / form, "1M"], check=True)
        with pytest.raises(ycluster.NoDisk, match=form):
            ycluster.image_format((tmp_path / form).read_bytes()[:4096])


def archive(path: Path, **member: Any) -> Path:
    """A gzipped tar with a disk.raw of another kind."""
    with tarfile.open(path, "w:gz") as tar:
        info = tarfile.TarInfo("disk.raw")
        for name, value in member.items():
            setattr(info, name, value)
        tar.addfile(info)
    return path


@pytest.mark.parametrize(
    "member",
    [
        {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"},
        {"type": tarfile.LNKTYPE, "linkname": ycluster.IMPORT_MARK},
        {"type": tarfile.FIFOTYPE},
        {"type": tarfile.DIRTYPE, "mode": 0o700},
    ],
    ids=["a link", "a hard link", "a FIFO", "a folder"],
)
def test_of_a_bundle_only_a_regular_disk_is_unpacked(
    cli: Cli, cache: Path, config: Path, tmp_path: Path, member: dict[str, Any]
) -> None:
    """A disk.raw that was a link gave the guest what it led to. (21.4.1)"""
    bundle = archive(tmp_path / "b.tar.gz", **member)
    told(cli("import", bundle, "-c", config), 3, bundle, "regular", lines=3)
    assert list(cache.iterdir()) == []


def test_a_link_in_the_place_of_a_disk_is_not_imported(
    cli: Cli, cache: Path, config: Path, tmp_path: Path
) -> None:
    """In an unpacked bundle it could lead to any file of the host's. (21.4.1)"""
    disk = qcow2(tmp_path / "there.qcow2", "1M")
    (tmp_path / "disk.raw").symlink_to(disk)
    told(cli("import", tmp_path / "disk.raw", "-c", config), 2, disk, lines=3)
    assert list(cache.iterdir()) == []


def test_no_device_or_pipe_is_opened_for_a_disk_its_checksums_or_an_image(
    cli: Cli, cache: Path, config: Path, host: Clocked, tmp_path: Path
) -> None:
    """A FIFO was waited for, and /dev/zero has no end. (21.4.1)"""
    pipe, disk = tmp_path / "pipe", qcow2(tmp_path / "d.qcow2", "1M")
    os.mkfifo(pipe)
    os.mkfifo(tmp_path / "SHA256SUMS")
    for special in (pipe, Path("/dev/zero")):
        told(cli("import", special, "-c", config), 2, special, lines=3)
        text = json.dumps({"k3s": {"install": "none"}, "image": str(special)})
        wanted = ycluster.require_qemu(ycluster.read_config(text, Path("/cfg/c.yaml")))
        with refused(PrerequisiteError, special):
            ycluster.fetch_image(host, wanted, tmp_path / "c")
    told(cli("import", disk, "-c", config), 3, tmp_path / "SHA256SUMS", lines=3)
    assert list(cache.iterdir()) == []


def test_of_what_checksums_name_the_disk_alone_is_read(
    cli: Cli, cache: Path, config: Path, tmp_path: Path
) -> None:
    """A SHA256SUMS that names /dev/zero, too, was followed there. (21.4.1)"""
    disk = qcow2(tmp_path / "d.qcow2", "1M")
    digest = ycluster.sha256_of(disk.read_bytes())
    lines = [f"{'0' * 64}  /dev/zero", f"{'0' * 64}  and-d.qcow2", f"{digest} *./d.qcow2"]
    (tmp_path / "SHA256SUMS").write_text("\n".join(lines) + "\n")
    assert cli("import", disk, "-c", config).code == 0
    assert cli("teardown", "demo").code == 0
    (tmp_path / "SHA256SUMS").write_text(f"SHA256 (d.qcow2) = {'0' * 64}\n")
    assert cli("import", disk, "-c", config).code == 3
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  of-before-it-was-renamed.qcow2\n")
    told(cli("import", disk, "-c", config), 0, f"{disk} is not checked", tmp_path / "SHA256SUMS")


def test_a_guest_whose_deadline_comes_while_it_is_prepared_does_not_run_on(
    host: Clocked,
    cache: Path,
    tmp_path: Path,
    processes: Processes,
) -> None:
    """That it did was said all the same."""
    fake_program(tmp_path / "bin", "ssh", "echo closed >&2; exit 255")
    host.environ["PATH"] = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    state = with_disk(cache)
    with refused(YclusterError, "was stopped while", "closed"):
        ycluster._prepare_in_guest(host, state)
    stand_in(processes, state.files)
    with refused(YclusterError, "could not prepare itself", "closed"):
        ycluster._prepare_in_guest(host, state)
