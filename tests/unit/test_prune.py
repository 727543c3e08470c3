"""`prune`: what it lists and removes, and what it never does."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib.util import source_hash
from pathlib import Path
from typing import Any

import pytest
from test_docs import documented, shape
from test_telling import findings, quick
from unit_support import (
    NOW,
    PROGRAM,
    Cli,
    Clocked,
    Processes,
    away,
    made,
    missing,
    stand_in,
    told,
    tree,
)

import ycluster
from ycluster import ArmedTimer, Files, Hold, Host, State

DAY = 86400
IMAGE = "a" * 64
RELEASE = "v1.30.1+k3s1"


def aged(path: Path, days: float = 40) -> Path:
    """Nobody has written to it for so long."""
    os.utime(path, (NOW - days * DAY,) * 2, follow_symlinks=False)
    return path


def filled(path: Path, data: bytes = b"x" * 8192, days: float = 40) -> Path:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.write_bytes(data)
    path.chmod(0o600)
    return aged(path, days)


def overlay(path: Path, base: str) -> Path:
    """A qcow2 that builds on another file, as far as its header tells."""
    name = base.encode()
    head = b"QFI\xfb" + (3).to_bytes(4, "big") + (104).to_bytes(8, "big")
    return filled(path, head + len(name).to_bytes(4, "big") + bytes(84) + name)


def old(cache: Path, name: str = "demo", days: float = 40, **fields: Any) -> State:
    """A stopped cluster that ran so long ago, its disk on an image that is not there."""
    state = made(cache, name, **{"started_at": int(NOW - days * DAY), **fields})
    overlay(state.files.disk, "images/" + "0" * 64)
    filled(state.files.console)
    for path in (state.files.sidecar, state.files.disk, state.files.console):
        aged(path, days)
    return state


@pytest.fixture(autouse=True)
def at_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock of the command line stands at NOW, and no timer of this host's is seen."""
    monkeypatch.setattr(ycluster.Host, "now", lambda self: NOW)
    monkeypatch.setattr(ycluster, "TIMERS", ())


def pruned(cli: Cli, *options: str, code: int = 0) -> list[dict[str, Any]]:
    ran = cli("prune", *options, "-o", "json")
    assert ran.code == code, ran.err
    found: list[dict[str, Any]] = json.loads(ran.out)["prunable"]
    return found


def listed(cli: Cli, kind: str) -> list[str]:
    """The paths of what is listed of a kind."""
    return [item["path"] for item in pruned(cli) if item["kind"] == kind]


def removed(cli: Cli, *paths: Path) -> None:
    """These are listed and removed, and nothing else is; then nothing is left to list."""
    assert {item["path"] for item in pruned(cli)} == set(map(str, paths))
    assert all(path.exists() for path in paths)
    assert all(item["removed"] and item["bytes"] > 0 for item in pruned(cli, "--yes"))
    assert pruned(cli) == []


# --- clusters
def test_a_cluster_that_was_off_for_long_is_torn_down(cli: Cli, cache: Path) -> None:
    files = old(cache, data_disk=str(cache / "data.qcow2")).files
    filled(cache / "data.qcow2")
    young = old(cache, "young", days=20).files
    before = tree(cache)
    assert listed(cli, "cluster") == [str(files.sidecar)]
    assert tree(cache) == before
    removed(cli, files.sidecar)
    assert not files.disk.exists() and (cache / "data.qcow2").exists() and young.disk.exists()


@pytest.mark.parametrize("verb", ["prune --yes", "teardown demo", "lifetime reap demo"])
def test_a_disk_that_another_builds_on_goes_with_no_cluster(
    cli: Cli, cache: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that its user has made beside it was lost with it."""
    due = {"expires_at": int(NOW - DAY), "on_expiry": "teardown", "ending": "teardown"}
    files = old(cache, **due).files
    between = overlay(cache.parent / "between", str(files.disk))
    snapshot = overlay(cache / "snapshot.qcow2", str(between))
    for number in range(4):
        filled(cache / "many" / str(number))
    monkeypatch.setattr(ycluster, "MANY_FILES", len(tree(cache)) - 2)  # it is found before
    ran = cli(*verb.split())
    assert ran.code == 0 and files.disk.exists()
    assert files.sidecar.exists() == ("prune" in verb)
    assert (f"{files.disk} is kept: {snapshot} builds on it" in ran.err) == ("prune" not in verb)


def test_a_teardown_that_keeps_the_disk_names_the_image_that_it_builds_on(
    cli: Cli, cache: Path
) -> None:
    """A disk that is moved away is no reason for a prune to keep its image."""
    overlay(made(cache).files.disk, f"images/{IMAGE}")
    ran = cli("teardown", "demo", "--keep-disk")
    told(ran, 0, f"builds on {cache / 'images' / IMAGE}", "prune", cache)


@pytest.mark.parametrize("newest", ["disk", "console", "sidecar"])
def test_a_cluster_is_as_old_as_the_last_thing_that_was_written_of_it(
    cli: Cli, cache: Path, newest: str
) -> None:
    files = old(cache).files
    aged(getattr(files, newest), 29)
    assert pruned(cli) == []
    assert len(pruned(cli, "--older-than", "28d")) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"started_at": None, "image": "file:///image"},
        {"suspended": ycluster.Suspended(at=1, packed="", digest="", fits={})},
        {"reaped": ycluster.Reaped(int(NOW) - 5 * DAY, "stop", "at", "SIGKILL", "maxRun")},
        {"started_at": int(NOW) + DAY},
    ],
    ids=["never started", "suspended", "expired lately", "in the future"],
)
def test_a_cluster_whose_time_has_not_come_stays(
    cli: Cli, cache: Path, fields: dict[str, Any]
) -> None:
    old(cache, **fields)
    assert pruned(cli, "--yes") == []


def test_the_memory_of_a_cluster_is_never_pruned_whatever_its_state_says(
    cli: Cli, cache: Path
) -> None:
    filled(old(cache).files.memory)
    assert pruned(cli, "--yes") == []


def test_a_cluster_that_runs_or_is_held_or_cannot_be_read_stays(
    cli: Cli, cache: Path, processes: Processes
) -> None:
    stand_in(processes, old(cache, "runs").files)
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    mine, began = os.getpid(), ycluster.process_start(os.getpid())
    hold = Hold(mine, began, boot, since=1, until=None, command="make", undo="hold")
    old(cache, "held", holds=(hold,))
    broken = old(cache, "broken").files
    filled(broken.sidecar, b"{")
    before = tree(cache)
    assert pruned(cli, "--yes") == []
    assert tree(cache) == before


def test_a_cluster_that_was_started_since_it_was_listed_stays(
    cli: Cli, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it a failure where another prune was first."""
    files, gone = old(cache).files, old(cache, "gone").files
    take = ycluster.cluster_lock

    def meanwhile(host: Host, one: Files, **options: Any) -> Any:
        if one == files and not files.pidfile.exists():
            stand_in(processes, files)
        if one == gone and gone.disk.exists():
            with monkeypatch.context() as as_it_was:
                as_it_was.setattr(ycluster, "cluster_lock", take)
                ycluster.teardown(host, gone)
        return take(host, one, **options)

    monkeypatch.setattr(ycluster, "cluster_lock", meanwhile)
    assert [(one["removed"], one["error"]) for one in pruned(cli, "--yes")] == [(False, "")] * 2
    assert files.disk.exists() and not gone.disk.exists()


def test_one_that_fails_is_named_and_the_rest_goes(cli: Cli, cache: Path) -> None:
    busy, other = old(cache, "busy").files, old(cache, "other").files
    before = tree(cache)
    with pytest.MonkeyPatch.context() as patch, open(busy.lock, "w") as lock:
        patch.setattr(ycluster, "LOCK_BOUND", 0.1)
        fcntl.flock(lock, fcntl.LOCK_EX)
        ran = cli("prune", "--yes")
    assert ran.code == 1 and missing(ran.err, "busy (in", "stays") == []
    assert "busy" not in ran.out and not other.sidecar.exists()
    kept = {name: what for name, what in before.items() if name.startswith("busy")}
    assert {name: what for name, what in tree(cache).items() if name in kept} == kept


# --- images
def test_an_image_goes_once_no_disk_builds_on_it(cli: Cli, cache: Path) -> None:
    image = filled(cache / "images" / IMAGE)
    young = filled(cache / "images" / ("b" * 64), days=20)
    filled(cache / "images" / "notes")
    removed(cli, image)
    assert young.exists() and (cache / "images" / "notes").exists()


@pytest.mark.parametrize(
    "name, base",
    [
        ("demo.qcow2", "images/{}"),
        ("demo.qcow2.bak", "images/{}"),
        ("demo.qcow2", "{cache}/images/{}"),
        ("demo.qcow2", "{cache}/../between"),
        ("linked", "images/{}"),
        ("mine/disk", "../images/{}"),
    ],
    ids=["kept", "renamed", "absolute", "by way of another", "linked", "in a folder"],
)
def test_an_image_that_any_disk_builds_on_stays(
    cli: Cli, cache: Path, tmp_path: Path, name: str, base: str
) -> None:
    """No state file claims these: a teardown has kept them, or they are copies of the user's."""
    image = filled(cache / "images" / IMAGE)
    overlay(cache.parent / "between", f"ycluster/images/{IMAGE}")
    disk = overlay(cache / name, base.format(IMAGE, cache=cache))
    if name == "linked":
        disk.rename(tmp_path / "elsewhere")
        disk.symlink_to(tmp_path / "elsewhere")
    assert pruned(cli, "--yes") == [] and image.exists()
    disk.unlink()
    removed(cli, image)


def test_an_image_that_a_state_names_stays(cli: Cli, cache: Path) -> None:
    image, data = filled(cache / "images" / IMAGE), filled(cache / "images" / ("d" * 64))
    old(cache, days=5, image=f"file://{image}", data_disk=str(data))
    assert pruned(cli, "--yes") == []


@pytest.mark.parametrize("why", ["no disk", "unreadable", "odd base", "place", "many"])
def test_images_and_releases_stay_where_nobody_can_tell_who_uses_them(
    cli: Cli, home: Path, cache: Path, host: Clocked, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = filled(cache / "images" / IMAGE)
    state = old(cache, days=5)
    if why == "no disk":  # as while it is made, or while its disk is elsewhere
        state.files.disk.unlink()
    elif why == "unreadable":
        state.files.sidecar.write_text("{")
    elif why == "odd base":
        overlay(cache / "other", "nbd://server/disk")
    elif why == "many":
        monkeypatch.setattr(ycluster, "MANY_FILES", 3)
    else:
        (home / "open").mkdir()
        ycluster.remember_cache_dir(host, home / "open")
        (home / "open").chmod(0o777)
    ran = cli("prune", "--yes")
    assert ran.code == 0 and image.exists() and "image: " in ran.err


def test_a_link_a_folder_and_a_file_that_others_can_write_to_are_no_images(
    cli: Cli, cache: Path, tmp_path: Path
) -> None:
    images = cache / "images"
    filled(tmp_path / "mine")
    images.mkdir(mode=0o700)
    (images / ("a" * 64)).symlink_to(tmp_path / "mine")
    aged(images / ("a" * 64))
    (images / ("b" * 64)).mkdir()
    aged(images / ("b" * 64))
    filled(images / ("c" * 64)).chmod(0o666)
    assert pruned(cli, "--yes") == []
    images.rename(tmp_path / "moved")
    (tmp_path / "moved" / ("c" * 64)).chmod(0o600)
    images.symlink_to(tmp_path / "moved")
    assert pruned(cli, "--yes") == []
    assert (tmp_path / "moved" / ("c" * 64)).exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make files of another user's")
def test_what_is_another_users_is_not_pruned(cli: Cli, home: Path, cache: Path) -> None:
    image = filled(cache / "images" / IMAGE)
    os.chown(image, 4711, 4711)
    release = filled(home / ".cache/y-cluster/k3s" / RELEASE / "k3s")
    os.chown(release.parent, 4711, 4711)
    assert pruned(cli, "--yes") == [] and image.exists() and release.exists()


def test_what_a_provision_has_just_taken_is_young_again(
    host: Clocked, cache: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it has a disk on the image, and a state that names the release, nothing else keeps them."""
    digest = hashlib.sha256(b"x" * 8192).hexdigest()
    image = filled(cache / "images" / digest)
    config = ycluster.read_config(f"imageSha256: {digest}\n", home / "y-cluster-provision.yaml")
    assert ycluster.fetch_image(host, ycluster.require_qemu(config), cache) == image
    monkeypatch.setattr(ycluster, "_fetch_k3s_file", lambda *args, **options: False)
    listing = filled(ycluster.k3s_cache(host) / RELEASE / ycluster.K3S_LISTING)
    ycluster.fetch_k3s(host, RELEASE, "")
    assert image.stat().st_mtime == listing.stat().st_mtime == NOW


def test_a_download_keeps_the_image_that_it_is_about(cli: Cli, cache: Path) -> None:
    """Its lock is held from before it looks at an image until that is marked as used."""
    image = filled(cache / "images" / IMAGE)
    with pytest.MonkeyPatch.context() as patch, open(cache / "images" / ".lock", "w") as lock:
        patch.setattr(ycluster, "LOCK_BOUND", 0.1)
        fcntl.flock(lock, fcntl.LOCK_EX)
        [one] = pruned(cli, "--yes", code=1)
    assert image.exists() and one["error"] and not one["removed"]


# --- releases of k3s
def test_a_release_of_k3s_goes_once_no_cluster_is_of_it(cli: Cli, cache: Path, home: Path) -> None:
    releases = home / ".cache/y-cluster/k3s"
    for version in (RELEASE, "v1.31.1+k3s1", "v1.32.1+k3s1"):
        filled(releases / version / "k3s")
    filled(releases / "v1.32.1+k3s1" / "install.sh", days=20)  # fetched again since
    filled(releases / RELEASE / "of-the-user")
    old(cache, days=5, k3s={"Version": "v1.31.1+k3s1", "Install": "airgap"})
    (releases / "link").symlink_to(home / "elsewhere")
    filled(home / "elsewhere" / "k3s")
    removed(cli, releases / RELEASE)
    assert sorted(os.listdir(releases / RELEASE)) == [".lock", "of-the-user"]
    assert (home / "elsewhere" / "k3s").exists()


# --- parts, and compiled code
def parts_in(home: Path, cache: Path, files: Files) -> list[Path]:
    """Whatever a killed command may leave, of a cluster that is in use."""
    return [
        filled(cache / "images" / ".0123456789abcdef.part"),
        filled(home / ".cache/y-cluster/k3s" / RELEASE / ".k3s.part"),
        filled(cache / f".{files.sidecar.name}.0a1b2c3d.tmp"),
        filled(files.memory_part),
        filled(cache / ".data.qcow2.0a1b2c3d.part"),
        filled(home / ".local/state/ycluster/.kvm-trial.0a1b2c3d.tmp"),
    ]


def test_what_killed_commands_have_left_goes(cli: Cli, home: Path, cache: Path) -> None:
    files = old(cache, days=5, data_disk=str(cache / "data.qcow2")).files
    parts = parts_in(home, cache, files)
    filled(cache / "import" / "x")
    folder = filled(cache / "lost.import" / ycluster.IMPORT_MARK).parent
    filled(folder / "disk.raw")
    filled(cache / ".other.json.0a1b2c3d.tmp")  # of no cluster that is known
    filled(cache / "users.import" / "disk.raw")  # has no mark
    (cache / "linked.import").symlink_to(folder)
    removed(cli, *parts, folder)
    assert sorted(path.name for path in cache.iterdir() if "import" in path.name) == [
        "import", "linked.import", "users.import",
    ]  # fmt: skip
    assert (cache / ".other.json.0a1b2c3d.tmp").exists() and files.disk.exists()


def test_young_parts_and_those_of_a_running_vm_stay(
    cli: Cli, home: Path, cache: Path, processes: Processes
) -> None:
    files = old(cache, days=5, data_disk=str(cache / "data.qcow2")).files
    for part in parts_in(home, cache, files):
        aged(part, 20)
    aged(filled(cache / "lost.import" / ycluster.IMPORT_MARK), 20)
    filled(files.memory_part)
    stand_in(processes, files)
    assert pruned(cli, "--yes") == []


def test_a_cluster_takes_its_parts_along(cli: Cli, cache: Path) -> None:
    files = old(cache).files
    filled(files.memory_part)
    filled(files.incoming / ycluster.IMPORT_MARK)
    removed(cli, files.sidecar)
    assert not files.incoming.exists() and not files.memory_part.exists()


def test_compiled_code_of_other_versions_goes(cli: Cli, home: Path) -> None:
    kept = home / ".cache" / "ycluster"
    mine = source_hash(PROGRAM.read_bytes() + sys.version.encode()).hex()
    filled(kept / mine)
    filled(kept / "0123456789abcde0", days=20)
    filled(kept / "notes")
    removed(cli, filled(kept / "0123456789abcdef"), filled(kept / "0123456789abcdef.4711"))


# --- timers
class Jobs(ycluster.Timer):
    """Timers by id, each for a state file; to remove one is to remove a file of its name."""

    name, survives = "jobs", {}

    def __init__(self, folder: Path, **sidecars: Path) -> None:
        self.folder, self.sidecars = folder, sidecars
        for ident in sidecars:
            (folder / ident).touch()

    def jobs(self, host: Host) -> list[str]:
        return sorted(os.listdir(self.folder))

    def job_text(self, host: Host, ident: str) -> str:
        return f"python3 x.ycluster.py lifetime reap --state {self.sidecars[ident]} --by jobs ;"

    def removal(self, ids: Sequence[str]) -> str:
        return shlex.join(["rm", *(str(self.folder / ident) for ident in ids)])


def test_a_timer_that_no_cluster_names_goes_and_no_other(
    cli: Cli, cache: Path, tmp_path: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = ArmedTimer("jobs", "named", int(NOW) + 60)
    state = old(cache, days=1, timers=(named,))
    made(cache, "broken").files.sidecar.write_text("{")
    lost = Files(tmp_path, "lost")
    lost.vm_lock.touch()
    processes.start("", "-pidfile", str(lost.pidfile))  # whose state file is gone, and which runs
    (tmp_path / "jobs").mkdir()
    jobs = Jobs(
        tmp_path / "jobs", gone=cache / "gone.json", named=state.files.sidecar,
        stale=state.files.sidecar, broken=cache / "broken.json", lost=lost.sidecar,
    )  # fmt: skip
    monkeypatch.setattr(ycluster, "TIMERS", (jobs,))
    names = [one["name"] for one in pruned(cli) if one["kind"] == "timer"]
    assert names == ["jobs gone", "jobs stale"]
    pruned(cli, "--yes")
    assert sorted(os.listdir(tmp_path / "jobs")) == ["broken", "lost", "named"]


def test_a_timer_of_a_cluster_on_a_file_server_that_is_away_stays(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its VM runs, and would have no deadline once the server is back."""
    (tmp_path / "jobs").mkdir()
    jobs = Jobs(tmp_path / "jobs", demo=tmp_path / "server" / "demo.json")
    monkeypatch.setattr(ycluster, "TIMERS", (jobs,))
    with monkeypatch.context() as meanwhile:
        away(meanwhile, tmp_path / "server")
        pruned(cli, "--yes")
        assert os.listdir(tmp_path / "jobs") == ["demo"]
    pruned(cli, "--yes")
    assert os.listdir(tmp_path / "jobs") == []


@pytest.mark.parametrize("folder", ["plain", "two words", "a --by b", "Bob's", 'a"b', "a\\b"])
def test_a_timer_of_a_cluster_that_cannot_be_read_stays_whatever_its_folder_is_called(
    cli: Cli,
    host: Clocked,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    folder: str,
) -> None:
    """A path with a quote was cut at it, and what was left is not there."""

    class Quoting(Jobs):
        def job_text(self, host: Host, ident: str) -> str:
            words = shlex.join(["reap", "--state", str(self.sidecars[ident])])
            return f"{words} --by at >>$log"

    (home / folder).mkdir(mode=0o700)
    ycluster.remember_cache_dir(host, home / folder)
    newer = made(home / folder, "newer").files.sidecar
    newer.write_text(json.dumps({**json.loads(newer.read_text()), "version": 2}))
    (tmp_path / "jobs").mkdir()
    jobs = Quoting(tmp_path / "jobs", newer=newer)
    monkeypatch.setattr(ycluster, "TIMERS", (jobs,))
    pruned(cli, "--yes")
    assert os.listdir(tmp_path / "jobs") == ["newer"]


def test_a_timer_that_a_cluster_has_armed_meanwhile_stays(
    cli: Cli, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is armed before the state names it: whoever looks between the two takes it for stale."""
    state = old(cache, days=1)
    (tmp_path / "jobs").mkdir()
    jobs = Jobs(tmp_path / "jobs", new=state.files.sidecar)
    monkeypatch.setattr(ycluster, "TIMERS", (jobs,))
    take = ycluster.cluster_lock

    def saved_first(host: Host, files: Files, **options: Any) -> Any:
        armed = (ArmedTimer("jobs", "new", int(NOW) + 60),)
        ycluster.save_state(ycluster.replace(state, timers=armed))
        return take(host, files, **options)

    monkeypatch.setattr(ycluster, "cluster_lock", saved_first)
    [one] = pruned(cli, "--yes")
    assert not one["removed"] and os.listdir(tmp_path / "jobs") == ["new"]


# --- what is shown
def test_people_get_a_table_with_a_total_and_what_to_run(cli: Cli, cache: Path) -> None:
    image = filled(cache / "images" / IMAGE, b"x" * (3 << 20))
    ran = cli("prune", "--older-than", "14d")
    head, row, total = ran.out.splitlines()
    assert row.split() == ["image", "40d", "3.0", "MiB", str(image)] and "3.0 MiB" in total
    assert head.split() == ["KIND", "UNUSED", "FREES", "WHAT"]
    command = ran.err.split("`")[1]
    assert shlex.split(command)[:2] == ["ycluster", "prune"] and "--yes" in command
    assert cli(*shlex.split(command)[1:]).code == 0 and not image.exists()
    assert cli("prune").out == ""


@pytest.mark.parametrize("span", ["59m", "0s", "soon"])
def test_what_is_needed_by_a_provision_that_runs_is_never_old_enough(cli: Cli, span: str) -> None:
    assert cli("prune", "--older-than", span).code == 2


def test_the_json_of_prune_is_as_documented(cli: Cli, cache: Path) -> None:
    filled(cache / "images" / IMAGE)
    shown = json.loads(cli("prune", "-o", "json").out)
    assert shape(shown) == shape(documented("ycluster prune -o json"))
    assert shown["bytes"] == sum(one["bytes"] for one in shown["prunable"]) > 0


# --- doctor
@pytest.mark.usefixtures(quick.__name__)
def test_doctor_points_to_it_where_there_is_much_or_something_left_over(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = filled(cache / "images" / IMAGE)
    assert "unused" not in findings(cli)[1]
    part = filled(cache / "images" / ".0123456789abcdef.part")
    assert findings(cli)[1]["unused"]["remedy"] == "ycluster prune"
    part.unlink()
    monkeypatch.setattr(ycluster, "size_of", lambda path: 2 << 30)
    found = findings(cli)[1]["unused"]
    assert (found["level"], found["remedy"]) == ("warning", "ycluster prune")
    assert "2.0 GiB" in found["text"] and image.exists()


def test_a_cluster_that_is_torn_down_meanwhile_is_none_that_cannot_be_read(
    host: Clocked, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """prune then listed no image, and doctor a failure."""
    here, gone, broken = made(cache, "here"), made(cache, "gone"), made(cache, "broken")
    broken.files.sidecar.write_text("{")
    broken.files.copy.write_text("{")
    current = ycluster.current

    def torn_down(host: Host, files: Files) -> State:
        gone.files.sidecar.unlink(missing_ok=True)
        return current(host, files)

    monkeypatch.setattr(ycluster, "current", torn_down)
    survey = ycluster.surveyed(host)
    assert [state.name for state in survey.states] == ["here"]
    assert [name for name, _ in survey.unreadable] == ["broken"]
    assert {files.name for files in survey.clusters} == {here.name, "broken"}
