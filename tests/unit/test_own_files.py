"""Files that are not ours: whose a folder or a file is, what lies at our names, and words that would be options."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest
from unit_support import NOW, Cli, Clocked, Memory, made, missing, told, tree

import ycluster
from ycluster import Files

LONG_AGO = ycluster.parse_time("2020-01-01T00:00:00Z")
FAR_AHEAD = ycluster.parse_time("2100-01-01T00:00:00Z")
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make another user's files")
ATTACKER = 1000


@pytest.fixture
def shared(tmp_path: Path, host: Clocked) -> Path:
    """A cacheDir in the index, with a cluster in it that is overdue."""
    place = tmp_path / "parent" / "shared"
    place.mkdir(parents=True)
    ycluster.remember_cache_dir(host, place)
    made(place, "trap", expires_at=LONG_AGO, on_expiry="teardown", on_warn=f"touch {tmp_path}/ran")
    return place


def opened_to_all(place: Path) -> None:
    place.chmod(0o777)


def given_away(place: Path) -> None:
    for path in (place, *place.iterdir()):
        os.chown(path, ATTACKER, ATTACKER)


def below_what_others_can_write_to(place: Path) -> None:
    place.parent.chmod(0o777)


def state_given_away(place: Path) -> None:
    os.chown(place / "trap.json", ATTACKER, ATTACKER)


def state_opened(place: Path) -> None:
    (place / "trap.json").chmod(0o666)


UNSAFE = [
    opened_to_all, below_what_others_can_write_to, state_opened,
    pytest.param(given_away, marks=needs_root), pytest.param(state_given_away, marks=needs_root),
]  # fmt: skip


# --- folders


@pytest.mark.parametrize("make_unsafe", UNSAFE)
def test_what_another_could_have_written_is_named_and_neither_believed_nor_changed(
    cli: Cli, shared: Path, cache: Path, timer: Memory, tmp_path: Path, make_unsafe: object
) -> None:
    """A shared folder that an attacker remade had its onWarn run by the victim's `reap --all`. (21.3.1)"""
    assert callable(make_unsafe)
    made(cache, "mine", expires_at=LONG_AGO)
    make_unsafe(shared)
    before = tree(shared)
    ran = cli("lifetime", "reap", "--all")
    assert ran.code == (0 if make_unsafe is given_away else 1), ran.err
    assert missing(ran.err, shared) == []
    for verb in ("start", "stop", "teardown", "lifetime extend 1h", "lifetime arm"):
        told(cli(*verb.split(), "--name", "trap"), 4)
    told(cli("lifetime", "reap", "--state", shared / "trap.json"), 4, shared)
    after = tree(shared)
    after.pop("trap.lock", None)
    assert after == before
    assert timer.standing == {} and not (tmp_path / "ran").exists()
    assert ycluster.load_state(Files(cache, "mine")).reaped


@pytest.mark.parametrize("make_unsafe", UNSAFE[:2])
def test_nothing_is_provisioned_where_another_could_replace_it(
    cli: Cli, tmp_path: Path, home: Path, timer: Memory, make_unsafe: object,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """What a timer will run lies there; and a link that was planted there was truncated. (21.3.1)"""
    assert callable(make_unsafe)
    place, dotfile = tmp_path / "open" / "cache", home / ".profile"
    place.mkdir(parents=True)
    dotfile.write_text("mine")
    (place / "demo-console.log").symlink_to(dotfile)
    make_unsafe(place)
    config = tmp_path / "y-cluster-provision.yaml"
    config.write_text(f"name: demo\ncacheDir: {place}\nk3s: {{install: none}}\n")
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    (tmp_path / "disk").write_bytes(b"disk")
    before = tree(tmp_path)
    told(cli("provision", "-c", tmp_path), 4, place)
    ran = cli("import", tmp_path / "disk", "-c", tmp_path)
    assert ran.code in (4, 5) and tree(tmp_path) == before


def test_doctor_and_list_name_a_folder_that_others_can_write_to(cli: Cli, shared: Path) -> None:
    """(21.3.1)"""
    shared.chmod(0o777)
    assert missing(cli("list").err, shared, f"chmod go-w {shared}") == []
    found = json.loads(cli("doctor", "-o", "json").out)["findings"]
    [finding] = [one for one in found if one["name"] == str(shared)]
    assert finding["level"] == "failure" and f"chmod go-w {shared}" in finding["remedy"]


@needs_root
def test_an_index_of_another_users_is_not_followed(cli: Cli, shared: Path, host: Clocked) -> None:
    """(21.3.1)"""
    index = host.state_home() / "cachedirs"
    os.chown(index, ATTACKER, ATTACKER)
    ran = cli("list", "-o", "json")
    assert json.loads(ran.out)["clusters"] == [] and missing(ran.err, index) == []


def test_dead_links_leave_the_index_and_come_back_with_their_folder(
    cli: Cli, shared: Path, tmp_path: Path, host: Clocked, timer: Memory
) -> None:
    """20,000 of them took seconds. (21.3.5)"""
    index = host.state_home() / "cachedirs"
    for number in range(50):
        (index / f"{number:016x}").symlink_to(tmp_path / f"gone-{number}")
    away = shared.rename(tmp_path / "away")
    assert ycluster.discover(host) == [] and list(index.iterdir()) == []
    away.rename(shared)
    assert cli("lifetime", "extend", "1h", "--state", shared / "trap.json").code in (0, 2)
    assert cli("lifetime", "reap", "--state", shared / "trap.json").code == 0
    assert os.path.realpath(next(index.iterdir())) == str(shared)


# --- root in a user's place


@needs_root
def test_root_leaves_the_owner_of_all_that_it_writes(
    cli: Cli, cache: Path, home: Path, timer: Memory
) -> None:
    """After one extend by root the user's watcher got "Permission denied" for ever. (21.3.2)"""
    files = made(cache, expires_at=FAR_AHEAD).files
    for path in (home, *home.rglob("*")):
        os.chown(path, ATTACKER, ATTACKER)
    for verb in ("lifetime extend 1h", "lifetime arm", "lifetime reap", "lifetime disarm"):
        assert cli(*verb.split(), "--name", "demo").code == 0
    assert files.lock.exists() and ycluster.load_state(files).disarmed
    assert {path.lstat().st_uid for path in home.rglob("*")} == {ATTACKER}


@needs_root
def test_root_gives_nothing_to_a_user_whose_home_it_has_not(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing that a link leads to. (25)"""
    theirs, made = tmp_path / "theirs", tmp_path / "made"
    theirs.mkdir()
    os.chown(theirs, ATTACKER, ATTACKER)
    made.touch()
    link = tmp_path / "link"
    link.symlink_to(made)
    for owner in (0, ATTACKER):
        os.chown(home, owner, owner)
        monkeypatch.setenv("HOME", str(home))
        ycluster.keep_owner(link, theirs)
        assert (link.lstat().st_uid, made.stat().st_uid) == (owner, 0)
    ycluster.keep_owner(made, theirs)
    assert made.stat().st_uid == ATTACKER


def test_a_reap_with_nothing_due_writes_nothing_anew(cli: Cli, cache: Path, timer: Memory) -> None:
    """(21.3.2)"""
    files = made(cache, expires_at=FAR_AHEAD).files
    assert cli("lifetime", "arm", "--name", "demo").code == 0
    before = {path: path.stat() for path in cache.iterdir()}
    assert cli("lifetime", "reap", "--all").code == 0
    assert {path: path.stat().st_ino for path in cache.iterdir()} == {
        path: status.st_ino for path, status in before.items()
    }
    assert before[files.sidecar].st_mtime_ns == files.sidecar.stat().st_mtime_ns


# --- what lies at our names


NAMES = sorted(path.name for path in Files(Path("/c"), "demo").names())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config in it, whose cacheDir it is."""
    folder = tmp_path / "project"
    folder.mkdir()
    config = "name: demo\ncacheDir: .\nk3s: {install: none}\nimage: file:///nonexistent\n"
    (folder / "y-cluster-provision.yaml").write_text(config)
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    monkeypatch.setattr(ycluster, "_check_ports", lambda host, state: None)
    return folder


@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo.json"])
def test_what_no_state_file_claims_is_in_the_way_and_stays_as_it_is(
    cli: Cli, project: Path, timer: Memory, name: str
) -> None:
    """A provision that failed removed eight of the user's files, a private key among them. (21.3.3)"""
    (project / name).write_text("mine")
    (project / "disk").write_bytes(b"disk")
    before = tree(project)
    told(cli("provision", "-c", project), 1, project / name)
    assert cli("import", project / "disk", "-c", project).code == 1
    cli("teardown", "-c", project)
    cli("stop", "-c", project)
    assert tree(project) == before


def test_a_folder_for_imports_with_something_else_in_it_stays(
    cli: Cli, project: Path, timer: Memory
) -> None:
    """The disk to import may lie in it. (21.3.3)"""
    (project / "demo.import").mkdir()
    disk = project / "demo.import" / "demo.qcow2"
    disk.write_text("mine")
    told(cli("import", disk, "-c", project), 1, "demo.import")
    assert disk.read_text() == "mine"


@pytest.mark.parametrize("name", ["demo.qcow2", "demo-seed/data.qcow2", "demo.vm.lock", "mine-ssh"])
def test_a_data_disk_has_no_name_that_a_teardown_removes(
    cli: Cli, project: Path, timer: Memory, host: Clocked, name: str
) -> None:
    """(21.3.3)"""
    made(project, "mine")
    ycluster.remember_cache_dir(host, project)
    config = project / "y-cluster-provision.yaml"
    config.write_text(config.read_text() + f"context: demo\ndataDisk: {name}\n")
    told(cli("provision", "-c", project), 3, "dataDisk", name)


@pytest.mark.parametrize("name", ["demo.qcow2", "demo-seed/data.qcow2", "demo.vm.lock"])
def test_a_data_disk_with_a_name_of_ours_outlives_a_teardown(
    cli: Cli, cache: Path, timer: Memory, name: str
) -> None:
    """The state of an earlier version may have it. (21.3.3)"""
    disk = cache / name
    disk.parent.mkdir(exist_ok=True)
    disk.write_text("data")
    made(cache, data_disk=str(disk))
    ran = cli("teardown", "demo")
    assert ran.code == 0 and missing(ran.err, "kept:", disk) == [] and disk.read_text() == "data"


def test_doctor_does_not_call_a_data_disk_in_a_cachedir_unclaimed(
    cli: Cli, cache: Path, tmp_path: Path
) -> None:
    """Nor one that goes by another name. (21.3.3)"""
    (tmp_path / "link").symlink_to(cache)
    for name in ("data.qcow2", "other.qcow2"):
        (cache / name).write_text("data")
    made(cache, data_disk=str(tmp_path / "link" / "data.qcow2"))
    found = json.loads(cli("doctor", "-o", "json").out)["findings"]
    assert [one["text"].split(":")[0] for one in found if one["name"] == "disk"] == [
        str(cache / "other.qcow2")
    ]


def test_doctor_names_what_no_cluster_claims_where_there_is_none_any_more(
    cli: Cli, cache: Path
) -> None:
    """With what to do about it: an import refuses a disk that builds on an image."""
    files = made(cache, "kept").files
    for path in (files.disk, files.ssh_key, files.ssh_pub):
        path.write_text("data")
    assert cli("teardown", "kept", "--keep-disk").code == 0
    for name in ("alone.qcow2", "lost.memory"):
        (cache / name).write_text("data")
    found = json.loads(cli("doctor", "-o", "json").out)["findings"]
    told = {one["text"].split(":")[0]: one["remedy"] for one in found if one["name"] == "disk"}
    assert {Path(path).name: remedy.split()[:2] for path, remedy in told.items()} == {
        "kept.qcow2": ["ycluster", "provision"],
        "alone.qcow2": ["ycluster", "import"],
        "lost.memory": ["rm", str(cache / "lost.memory")],
    }


@pytest.mark.parametrize(
    "suffix",
    [".reap.failed", ".pid", ".qmp", "-console.log", ".memory", ".memory.part", "-hostkey", ".reap.log", ".qcow2"],
)  # fmt: skip
def test_a_folder_of_the_users_in_the_place_of_a_file_outlives_a_teardown(
    cli: Cli, cache: Path, timer: Memory, suffix: str
) -> None:
    """Ours would be a file. (21.3)"""
    state = made(cache, expires_at=int(NOW) + 60, started_at=int(NOW))
    note = cache / f"demo{suffix}" / "note"
    note.parent.mkdir()
    note.write_text("mine")
    cli("lifetime", "arm", "--name", "demo")
    cli("teardown", "--name", "demo")
    assert note.read_text() == "mine" and not state.files.sidecar.exists()


def test_a_teardown_without_a_state_file_goes_by_its_copy(
    cli: Cli, cache: Path, tmp_path: Path, timer: Memory
) -> None:
    """The copy shows that the rest is ours; the disk stays all the same. (21.3.3)"""
    (tmp_path / "y-cluster-provision.yaml").write_text("name: demo\nk3s: {install: none}\n")
    files = made(cache).files
    files.sidecar.unlink()
    for path in (files.disk, files.console, files.lock):
        path.touch()
    assert cli("teardown", "-c", tmp_path).code == 0
    assert list(cache.iterdir()) == [files.disk]


# --- FIFOs, links and large files at our names


VERBS = (
    "list",
    "status",
    "lifetime status",
    "lifetime reap",
    "lifetime extend 1h",
    "pause",
    "stop",
    "ssh",
)


@pytest.mark.parametrize("kind", ["fifo", "link", "socket"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "demo.qmp"])
def test_what_is_no_regular_file_at_a_name_of_ours_holds_nobody_up(
    cli: Cli, cache: Path, tmp_path: Path, timer: Memory, name: str, kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """FIFOs hung verbs, some of them under the lock; a link led to the user's own file. (21.3.5)"""
    made(cache, expires_at=FAR_AHEAD)
    path, theirs = cache / name, tmp_path / "theirs"
    theirs.write_text("mine")
    if path.exists():
        path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        path.symlink_to(theirs)
    else:
        monkeypatch.chdir(cache)  # as a socket's path is short
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(name)
    for verb in VERBS:
        cli(*verb.split(), *(["--name", "demo"] if verb != "list" else []))
    cli("teardown", "demo")
    assert theirs.read_text() == "mine"


def test_a_lock_that_cannot_be_had_is_named_with_the_way_out(
    cli: Cli, cache: Path, timer: Memory
) -> None:
    """A FIFO, or one that root had made. (21.3.5)"""
    lock = made(cache, expires_at=FAR_AHEAD).files.lock
    os.mkfifo(lock)
    for verb in ("stop", "lifetime extend 1h", "teardown"):
        told(cli(*verb.split(), "--name", "demo"), 1, lock, f"rm {lock}")
    lock.unlink()
    assert cli("stop", "--name", "demo").code == 0


def test_a_device_and_a_large_file_are_not_read(cache: Path, host: Clocked) -> None:
    """A .json of 1 GiB in the cacheDir took 2 GB. (21.3.5)"""
    with open(cache / "big.json", "wb") as file:
        file.truncate(1 << 40)
    (cache / "zero.json").symlink_to("/dev/zero")
    assert ycluster.discover(host) == [Files(cache, "big"), Files(cache, "zero")]
    for files in ycluster.discover(host):
        with pytest.raises(ycluster.StateError):
            ycluster.load_state(files)


def test_a_log_is_appended_to_and_no_link_is_followed(cache: Path, tmp_path: Path) -> None:
    """(21.3.5)"""
    theirs, log = tmp_path / "theirs", cache / "demo.reap.log"
    theirs.write_text("mine")
    log.symlink_to(theirs)
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for path in (log, Path("/dev/full"), cache):
        with pytest.raises(OSError):
            ycluster.open_own(path, appending)
    log.unlink()
    os.close(ycluster.open_own(log, appending))
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


# --- words that become arguments


@pytest.mark.parametrize(
    "field, value",
    [
        ("context", "--current"), ("sshUser", "-oProxyCommand=touch /tmp/x"), ("cpus", "-4"),
        ("sshUser", ""), ("sshUser", "a b"), ("memory", "-m"), ("diskSize", "--shrink"),
        ("cpuModel", "-x"), ("machine", "-x"), ("dataDisk", "-x"), ("bindAddress", "::"),
        ("bindAddress", "-x"), ("timer", {"backend": "at", "id": "-x", "deadline": "2026-01-01T00:00:00Z"}),
    ],
)  # fmt: skip
def test_a_state_file_holds_no_word_that_is_an_option(
    cache: Path, field: str, value: object
) -> None:
    """It goes into the argv of kubectl, ssh, QEMU, atrm. (21.3.4)"""
    sidecar = made(cache).files.sidecar
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), field: value}))
    with pytest.raises(ycluster.StateError, match=field):
        ycluster.load_state(Files(cache, "demo"))


def test_an_empty_address_is_this_host_alone(cache: Path) -> None:
    """It made QEMU listen everywhere. (21.3.4)"""
    sidecar = made(cache).files.sidecar
    sidecar.write_text(json.dumps({**json.loads(sidecar.read_text()), "bindAddress": ""}))
    state = ycluster.load_state(Files(cache, "demo"))
    assert state.bind_address == "127.0.0.1" == state.dial_address
    config = ycluster.read_config('network: {bindAddress: ""}\n', Path("/y"))
    assert isinstance(config, ycluster.QemuConfig) and config.network.bind_address == "127.0.0.1"


@pytest.mark.parametrize(
    "line", ["context: --current", "context: -x", "cpuModel: -x", "sshUser: -x"]
)
def test_a_config_holds_no_word_that_is_an_option(line: str) -> None:
    """(21.3.4)"""
    with pytest.raises(ycluster.ConfigError, match=line.partition(":")[0]):
        ycluster.read_config(line + "\n", Path("/y"))


def test_ssh_takes_no_word_of_a_command_for_an_option(cache: Path) -> None:
    """ssh reads options after the host, too. (21.3.4)"""
    argv = ycluster.ssh_argv(made(cache), "-oProxyCommand=x")
    assert argv[-3:] == ["--", "ystack@127.0.0.1", "-oProxyCommand=x"]


def test_a_release_of_k3s_names_no_other_folder(cache: Path) -> None:
    """(21.3.4)"""
    state = made(cache, k3s={"Version": "../../../x", "Install": "airgap"})
    with pytest.raises(ycluster.StateError, match="k3s"):
        ycluster.k3s_release(state)


def test_gcloud_gets_no_option_for_an_instance(cli: Cli) -> None:
    """(21.3.4)"""
    assert cli("lifetime", "gcp-status", "--", "--flags-file=x").code == 2


def test_the_name_of_a_cluster_is_no_option_of_qemus(cache: Path) -> None:
    """The sibling may have given it any. (21.3.4)"""
    argv = ycluster.qemu_argv(made(cache, "a,process=x"), "tcg")
    assert argv[argv.index("-name") + 1] == "guest=a,,process=x"
    chardevs = [value for word, value in zip(argv, argv[1:]) if word == "-chardev"]
    assert len(chardevs) == 2 and all("path=a,,process=x" in value for value in chardevs)


def test_a_data_disk_that_is_a_pipe_is_not_waited_for(cli: Cli, project: Path) -> None:
    """(21.3.5)"""
    os.mkfifo(project / "data")
    config = project / "y-cluster-provision.yaml"
    config.write_text(config.read_text() + "dataDisk: data\n")
    told(cli("provision", "-c", project), 3, "dataDisk", project / "data")
