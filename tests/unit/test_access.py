"""What can't be looked into, and what root does by sudo: nothing is taken for nothing, and nothing is made where it does not belong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from unit_support import (
    IMPORTS,
    Cli,
    Clocked,
    Memory,
    Ran,
    away,
    bound_by_modes,
    made,
    missing,
    told,
    tree,
)

import ycluster
from ycluster import Files, Host

LONG_AGO = ycluster.parse_time("2020-01-01T00:00:00Z")
FAR_AHEAD = ycluster.parse_time("2100-01-01T00:00:00Z")


def by_modes(home: Path, *argv: object) -> Ran:
    """`ycluster ARGV` as a process for which the modes of files hold; there is no other program."""
    words = bound_by_modes(sys.executable, "-c", "import ycluster; ycluster.run()", *argv)
    alone = {"HOME": str(home), "PATH": "/nonexistent", **IMPORTS}
    ran = subprocess.run(words, env=alone, capture_output=True, text=True)
    return Ran(ran.returncode, ran.stdout, ran.stderr)


@pytest.fixture
def unlocked(home: Path) -> Iterator[None]:
    """Whatever a test has closed in HOME is opened, so that it can be removed."""
    yield
    for path in (home, *home.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)


INDEX = ".local/state/ycluster/cachedirs"


@pytest.mark.parametrize(
    "closed, mode",
    [
        (".local/share", 0o000),
        (".local/share/ycluster", 0o000),
        (".local/share/ycluster", 0o400),
        (INDEX, 0o100),
        (INDEX, 0o400),
    ],
)
def test_a_folder_that_cannot_be_read_is_not_taken_for_no_clusters(
    home: Path, cache: Path, host: Clocked, unlocked: None, closed: str, mode: int
) -> None:
    """One that root had made under sudo was "no clusters", and "nothing is left over". (20.13)"""
    ycluster.remember_cache_dir(host, cache)
    made(cache, expires_at=LONG_AGO)
    (home / closed).chmod(mode)
    seen, place = (["demo"], home / INDEX) if closed == INDEX else ([], cache)
    ran = by_modes(home, "list", "-o", "json")
    assert ran.code == 0 and [one["name"] for one in json.loads(ran.out)["clusters"]] == seen
    assert missing(ran.err, f"warning: {place}", f"`chmod u+rwx {home / closed}`") == []
    assert "no clusters" not in by_modes(home, "list").err
    found = json.loads(by_modes(home, "doctor", "-o", "json").out)["findings"]
    [finding] = [one for one in found if one["name"] == str(place)]
    assert finding["level"] == "failure" and str(home / closed) in finding["remedy"]
    told(by_modes(home, "lifetime", "reap", "--all"), 1, f"not expired: what is in {place}")
    told(by_modes(home, "status", "--name", "gone"), 4, *([place] if not seen else []))
    if seen:
        assert ycluster.load_state(Files(cache, "demo")).reaped


@pytest.mark.parametrize("verb", ["status", "stop", "teardown", "start"])
def test_a_cluster_whose_folder_cannot_be_read_is_not_taken_for_none(
    home: Path, tmp_path: Path, cache: Path, unlocked: None, verb: str
) -> None:
    """A teardown that can't look must not report that there is nothing to tear down. (20.13)"""
    (tmp_path / "y-cluster-provision.yaml").write_text("name: demo\nk3s: {install: none}\n")
    sidecar = made(cache).files.sidecar
    cache.chmod(0)
    told(by_modes(home, verb, "-c", tmp_path), 4, sidecar, "Permission denied")


@pytest.mark.parametrize("verb", ["status", "stop", "teardown", "start"])
def test_a_cluster_on_a_file_server_that_is_away_is_not_taken_for_none(
    cli: Cli, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text("name: demo\nk3s: {install: none}\n")
    sidecar = made(cache).files.sidecar
    away(monkeypatch, cache)
    told(cli(verb, "-c", tmp_path), 4, sidecar, "not connected")


LEFT_OVER = """
import os, sys, ycluster

class Stub(ycluster.Timer):
    name, survives = "stub", {}
    def jobs(self, host): return sys.argv[1:]
    def job_text(self, host, ident): return f"python x.ycluster.py --state {ident} --by stub "
    def removal(self, idents): return " ".join(idents)

ycluster.TIMERS = (Stub(),)
host = ycluster.Host(os.environ, ycluster.Output(sys.stdout, sys.stderr))
for finding in ycluster._leftover_timers(host, ycluster.Survey((), ())):
    print(finding.remedy, end="")
"""


def test_a_timer_of_a_cluster_in_a_folder_that_cannot_be_read_is_no_leftover(
    home: Path, cache: Path, tmp_path: Path, unlocked: None
) -> None:
    """Doctor's remedy would remove the timer of a cluster that runs. (20.13)"""
    there, gone = made(cache, expires_at=FAR_AHEAD).files.sidecar, tmp_path / "gone.json"
    cache.chmod(0)
    words = bound_by_modes(sys.executable, "-c", LEFT_OVER, there, gone)
    env = {"HOME": str(home), **IMPORTS}
    ran = subprocess.run(words, env=env, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, str(gone), "")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make files of another user's")
def test_a_folder_that_is_another_users_is_given_back_where_it_is_in_the_home(
    home: Path, cache: Path, tmp_path: Path, host: Clocked
) -> None:
    """The remedy never changes what lies outside of the user's own HOME. (20.13)"""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ycluster.remember_cache_dir(host, elsewhere)
    for place in (cache, elsewhere):
        os.chown(place, 1000, 1000)
        place.chmod(0o700)
    found = json.loads(by_modes(home, "doctor", "-o", "json").out)["findings"]
    remedies = {one["name"]: one["remedy"] for one in found}
    assert f"chown -R {host.user()} {cache}`" in remedies[str(cache)]
    assert "1000" in remedies[str(elsewhere)] and "chown" not in remedies[str(elsewhere)]
    os.chown(home, 1000, 1000)  # and not where HOME itself is somebody else's
    closed = PermissionError(13, "Permission denied")
    host.environ["HOME"] = str(home)
    assert "chown" not in ycluster._way_into(host, cache, closed)


@pytest.fixture
def sudo(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is root, and was called by sudo, by the user whose HOME it is."""
    caller = os.getuid() or 1000
    for path in (home, *home.rglob("*")):
        os.chown(path, caller, -1)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("SUDO_UID", str(caller))
    monkeypatch.setenv("SUDO_USER", "somebody")


CHANGES = [
    "provision -c CONF", "import DISK -c CONF", "start --name demo", "stop --name demo", "teardown --name demo",
    "pause --name demo", "resume --name demo", "lifetime extend 1h --name demo", "lifetime disarm --name demo",
    "lifetime arm --name demo", "lifetime reap --name demo", "lifetime reap --all", "lifetime watch --all",
]  # fmt: skip


@pytest.mark.parametrize("verb", CHANGES)
def test_under_sudo_nothing_is_changed_in_the_home_of_who_called_it(
    cli: Cli, cache: Path, home: Path, tmp_path: Path, timer: Memory, verb: str,
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """What root makes there its user can neither see nor stop. (20.13)"""
    (tmp_path / "y-cluster-provision.yaml").write_text("name: new\nk3s: {install: none}\n")
    (tmp_path / "disk").write_bytes(b"disk")
    monkeypatch.setattr(Host, "need", lambda self, programs: None)
    made(cache, expires_at=LONG_AGO)
    before = tree(home)
    request.getfixturevalue("sudo")
    ran = cli(*verb.replace("CONF", str(tmp_path)).replace("DISK", str(tmp_path / "disk")).split())
    assert ran.code == (1 if verb.endswith("reap --all") else 5), ran.err
    assert missing(ran.err, "somebody", "sudo") == [] and tree(home) == before


def test_under_sudo_looking_goes_on_and_makes_no_file(
    cli: Cli, cache: Path, home: Path, timer: Memory, request: pytest.FixtureRequest
) -> None:
    """Whoever only looks leaves nothing behind. (20.13)"""
    made(cache, expires_at=FAR_AHEAD)
    before = tree(home)
    request.getfixturevalue("sudo")
    for verb in ("list", "status --name demo", "lifetime status --name demo"):
        assert cli(*verb.split()).code == 0
    cli("doctor")
    assert tree(home) == before


def test_root_in_the_home_of_another_is_not_refused_where_nobody_called_sudo(
    cli: Cli, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    """Containers are like that; and what root has made there by sudo, root may end. (20.13)"""
    state = made(cache, expires_at=FAR_AHEAD)
    request.getfixturevalue("sudo")
    with monkeypatch.context() as alone:
        alone.delenv("SUDO_UID")
        assert cli("lifetime", "disarm", "--name", "demo").code == 0
    if os.getuid() == 0:
        os.chown(state.files.sidecar, 0, 0)
        assert cli("stop", "--name", "demo").code == 0
