"""Section 8: the sidecar on disk, the lock beside it, and the index of cacheDirs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit_support import IMPORTS, Clocked, Processes, made, missing, refused, tree

import ycluster
from ycluster import (
    ArmedTimer,
    Files,
    Hold,
    Idle,
    PortForward,
    Reaped,
    State,
    StateError,
    decode_state,
    encode_state,
    load_state,
)

GO = {
    "version": 1,
    "name": "y-cluster",
    "diskSize": "20G",
    "memory": "8192",
    "cpus": "4",
    "sshPort": "2222",
    "portForwards": [{"Host": "6443", "Guest": "6443"}],
    "context": "local",
    "cacheDir": "/home/u/.cache/y-cluster-qemu",
    "k3s": {"Version": "v1.35.4+k3s1", "Install": "airgap"},
    "lifetime": "8h",
    "onExpiry": "stop",
    "expiresAt": "2026-11-22T12:00:00+01:00",
}
PATH = Path("/c/y-cluster.json")
LATEST = ycluster.parse_time("2999-12-31T23:59:59Z")


def without_a_stray_deadline(state: State) -> State:
    """As it is read: without a budget there is no deadline either."""
    if ycluster.budget(state.lifetime) is None:
        state = ycluster.replace(state, expires_at=None)
    if ycluster.budget(state.max_idle) is None:
        state = ycluster.replace(state, idle=None)
    return state if state.has_limit else ycluster.replace(state, retry_at=None, ending="")


words = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
arguments = words.filter(lambda word: not word.startswith("-"))  # of other programs
users = st.from_regex(r"[a-z_][-a-z0-9_]{0,31}", fullmatch=True)
times = st.integers(0, LATEST)
numbers = st.integers(-1, 10**15 - 1)
ports = st.integers(0, 65535)
labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
unknown = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=8,
)
others = st.lists(
    st.builds(ArmedTimer, words, arguments, times, words.filter(lambda event: event != "deadline")),
    max_size=3,
)
armed = st.tuples(st.lists(st.builds(ArmedTimer, words, arguments, times), max_size=1), others).map(
    lambda parts: (*parts[0], *parts[1])
)
extras = st.dictionaries(words.map(lambda word: "x-" + word), unknown, max_size=4)
states = st.builds(
    State,
    name=labels,
    cache_dir=st.just("/c"),
    context=arguments,
    disk_size=arguments,
    memory=arguments,
    cpus=arguments,
    ssh_port=ports,
    port_forwards=st.lists(st.builds(PortForward, guest=ports, host=ports), max_size=4).map(tuple),
    k3s=st.dictionaries(words, words, max_size=3),
    bind_address=st.just("0.0.0.0") | st.just("127.0.0.1"),
    lifetime=st.sampled_from(["", "0", "8h", "1h30m", "1.5s"]),
    on_expiry=st.sampled_from(sorted(ycluster.ACTIONS)),
    expires_at=st.none() | times,
    started_at=st.none() | times,
    retry_at=st.none() | times,
    max_idle=st.sampled_from(["", "0", "30m", "1.5s"]),
    idle_cpu=st.integers(0, 100_000),
    idle=st.none()
    | st.builds(
        Idle, times, times, times, words, numbers, numbers, numbers, times, st.none() | times
    ),
    holds=st.lists(
        st.builds(Hold, numbers, numbers, words, times, st.none() | times, words, words), max_size=3
    ).map(tuple),
    image=words,
    data_disk=arguments,
    ssh_user=users,
    accel=words,
    ran_with=words,
    ending=words,
    cpu_model=arguments,
    machine=arguments,
    boot_id=words,
    auto_ports=st.lists(ports, max_size=3).map(tuple),
    timers=armed,
    reaped=st.none()
    | st.builds(Reaped, times, st.sampled_from(sorted(ycluster.ACTIONS)), words, words, words),
    extra=extras,
).map(without_a_stray_deadline)


# --- what is written is read back


@given(states)
@example(State(name="demo", cache_dir="/c", lifetime="8h", expires_at=0))
def test_every_state_survives_a_round_trip(state: State) -> None:
    assert decode_state(encode_state(state), state.files.sidecar) == state


@given(extras)
def test_fields_of_others_are_kept_as_they_are(extra: dict[str, Any]) -> None:
    kept = json.loads(encode_state(decode_state(json.dumps({**GO, **extra}), PATH)))
    assert {key: kept[key] for key in extra} == extra


def test_a_sidecar_of_the_go_sibling_is_understood() -> None:
    state = decode_state(json.dumps(GO), PATH)
    assert (state.lifetime, state.on_expiry, state.expires_at) == (
        "8h",
        "stop",
        ycluster.parse_time("2026-11-22T11:00:00Z"),
    )
    assert state.k3s == {"Version": "v1.35.4+k3s1", "Install": "airgap"}
    assert (state.ssh_port, state.port_forwards) == (2222, (PortForward(host=6443, guest=6443),))
    assert not state.disarmed and state.extra == {}


def test_the_go_sibling_finds_its_fields_unchanged_after_a_save() -> None:
    kept = json.loads(encode_state(decode_state(json.dumps(GO), PATH)))
    moved = {
        "expiresAt": "2026-11-22T11:00:00Z",
        "cacheDir": "/c",
    }  # the same instant; where the file really is
    assert {key: kept[key] for key in GO} == {**GO, **moved}


def sibling_saves(files: Files, **changes: str) -> None:
    """What its `lifetime extend` and its `start` do: its own fields alone are left."""
    saved = json.loads(files.sidecar.read_text())
    own = {name: saved[name] for name in GO if name in saved}
    files.sidecar.write_text(json.dumps({**own, **changes}, indent=2))


FULL = {
    "expires_at": 2_000_000_000,
    "started_at": 1_999_990_000,
    "boot_id": "boot-1",
    "booted_at": 1_999_000_000,
    "max_total": "24h",
    "warn": "5m",
    "machine": "pc-q35-7.2",
    "ssh_user": "debian",
    "kubeconfig": "/home/u/.kube/config",
    "image": "file:///image",
    "data_disk": "/data.qcow2",
    "ran_with": "tcg",
    "timers": (ArmedTimer("at", "7", 2_000_000_000),),
    "extra": {"of a later version": [1]},
}


def test_what_the_sibling_drops_when_it_saves_is_kept_for_us(cache: Path) -> None:
    """Its extend moves the deadline, and must not lose the timer, the cap, the boot or the user.
    (20.4)"""
    state = made(cache, **FULL)
    state.files.ssh_pub.write_text("ssh-ed25519 AAAA")
    ycluster.save_state(state)
    sibling_saves(state.files, expiresAt="2033-05-18T04:33:20Z")
    after = load_state(state.files)
    assert after == ycluster.replace(state, expires_at=2_000_003_600)
    ycluster.save_state(after)
    assert load_state(state.files) == after
    sibling_saves(state.files)
    assert load_state(state.files) == after  # twice in a row, too


def test_an_expiry_that_was_under_way_is_not_that_of_the_siblings_deadline(cache: Path) -> None:
    """(20.4)"""
    reaped = Reaped(1_999_999_999, "stop", "at", "SIGTERM")
    state = made(cache, **FULL, retry_at=2_000_000_060, ending="teardown", reaped=reaped)
    sibling_saves(state.files)
    assert load_state(state.files) == state
    sibling_saves(state.files, expiresAt="2033-05-18T04:33:20Z")
    after = load_state(state.files)
    assert (after.retry_at, after.ending, after.reaped) == (None, "", None)


@pytest.mark.parametrize("rubbish", ["", "{", "[]", "{}", '{"loginKey": ""}', "\0"])
def test_a_cluster_that_the_sibling_makes_takes_nothing_from_an_earlier_one(
    cache: Path, rubbish: str
) -> None:
    """Its teardown leaves our copy behind. A login key is never used for two clusters. (20.4)"""
    state = made(cache, **FULL)
    state.files.ssh_pub.write_text("ssh-ed25519 AAAA")
    ycluster.save_state(state)
    state.files.sidecar.write_text(json.dumps({**GO, "name": "demo"}))
    state.files.ssh_pub.write_text("ssh-ed25519 BBBB")
    new = load_state(state.files)
    assert new == decode_state(json.dumps({**GO, "name": "demo"}), state.files.sidecar)
    state.files.copy.write_text(rubbish)
    assert load_state(state.files) == new


def test_a_field_that_was_cleared_does_not_come_back_from_the_copy(cache: Path) -> None:
    """The copy counts only for what somebody else has saved. (20.4)"""
    state = made(cache, **FULL)
    before = state.files.copy.read_bytes()
    after = ycluster.save_state(ycluster.replace(state, timers=(), max_total="", machine=""))
    state.files.copy.write_bytes(before)  # a crash between the two writes, or a lost one
    assert load_state(state.files) == after


@pytest.mark.parametrize("absent", ["lifetime", "onExpiry", "expiresAt"])
def test_a_field_that_the_sibling_omits_when_empty_stays_unset(absent: str) -> None:
    state = decode_state(
        json.dumps({key: value for key, value in GO.items() if key != absent}), PATH
    )
    assert {"lifetime": state.lifetime, "onExpiry": "", "expiresAt": state.expires_at or ""}[
        absent
    ] == ""
    assert state.on_expiry == "stop"


def test_an_expiry_that_names_no_action_is_a_stop() -> None:
    assert decode_state(json.dumps({**GO, "onExpiry": ""}), PATH).on_expiry == "stop"


@pytest.mark.parametrize("written", [None, []], ids=["null, as Go writes a nil slice", "empty"])
def test_no_port_forwards(written: object) -> None:
    assert decode_state(json.dumps({**GO, "portForwards": written}), PATH).port_forwards == ()


def test_unknown_fields_inside_known_objects_are_kept() -> None:
    k3s = {"Version": "v1.35.4+k3s1", "Install": "airgap", "Source": "https://mirror.example"}
    kept = json.loads(encode_state(decode_state(json.dumps({**GO, "k3s": k3s}), PATH)))
    assert kept["k3s"] == k3s


@pytest.mark.parametrize(
    "moment, seconds",
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59.5Z", 0),
        ("2999-12-31T23:59:58.5Z", LATEST),
        ("2999-12-31T12:59:59-11:00", LATEST),
        ("3000-01-01T00:59:59+01:00", LATEST),
        ("0001-01-01T00:00:00Z", None),  # Go's zero
    ],
)
def test_a_time_that_can_be_read_can_be_written(moment: str, seconds: int | None) -> None:
    state = decode_state(json.dumps({**GO, "expiresAt": moment}), PATH)
    assert state.expires_at == seconds
    written = encode_state(state)
    assert ("expiresAt" in json.loads(written)) is (seconds is not None)
    assert decode_state(written, PATH) == state


@pytest.mark.parametrize(
    "moment",
    [
        "1969-12-31T23:59:59Z",
        "1970-01-01T00:59:59+01:00",
        "2999-12-31T23:59:59.5Z",
        "3000-01-01T00:00:00Z",
        "9999-12-31T23:59:59-23:59",  # of the year 10000, in UTC
        "0001-01-01T00:00:01Z",
    ],
)
def test_a_time_that_could_not_be_written_is_refused(moment: str) -> None:
    with pytest.raises(StateError):
        decode_state(json.dumps({**GO, "expiresAt": moment}), PATH)


def test_a_sidecar_is_known_by_where_it_lies(cache: Path, tmp_path: Path) -> None:
    made(cache)
    cache.rename(tmp_path / "moved")
    assert load_state(Files(tmp_path / "moved", "demo")).cache_dir == str(tmp_path / "moved")


def test_text_that_is_no_unicode_is_kept_as_it_is(cache: Path) -> None:
    """JSON can spell half a surrogate pair, and Python can't encode it."""
    (cache / "demo.json").write_text(
        r'{"version": 1, "name": "demo", "context": "\ud800", "theirs": {"\udcff": "\udfff"}}'
    )
    read = load_state(Files(cache, "demo"))
    assert (read.context, read.extra) == ("\ud800", {"theirs": {"\udcff": "\udfff"}})
    ycluster.save_state(read)
    assert load_state(read.files) == read


# --- the armed timers

AT = "2026-11-22T11:00:00Z"
DEADLINE = ArmedTimer("at", "7", ycluster.parse_time(AT))
WARNING = ArmedTimer("systemd", "w", ycluster.parse_time("2026-11-22T10:50:00Z"), "warning")
IDLE = ArmedTimer("at", "9", 60, "idle")


def written(*timers: ArmedTimer) -> Any:
    """What is in a sidecar of these timers, after it has been read back."""
    state = State(name="y-cluster", cache_dir="/c", timers=timers)
    text = encode_state(state)
    assert decode_state(text, PATH) == state
    return json.loads(text).get("timer")


def test_the_timer_of_the_deadline_is_written_as_it_always_was() -> None:
    assert written() is None
    assert written(DEADLINE) == {"backend": "at", "id": "7", "deadline": AT}


def test_the_other_timers_are_a_list_in_it_that_older_versions_ignore() -> None:
    others = [
        {"event": "warning", "id": "w", "deadline": "2026-11-22T10:50:00Z", "backend": "systemd"},
        {"event": "idle", "id": "9", "deadline": "1970-01-01T00:01:00Z", "backend": "at"},
    ]
    assert written(DEADLINE, WARNING, IDLE) == {
        "backend": "at",
        "id": "7",
        "deadline": AT,
        "others": others,
    }
    # With none of the deadline an older version, which wants a deadline, finds a timer that is not armed.
    assert written(WARNING, IDLE) == {"deadline": "1970-01-01T00:00:00Z", "others": others}
    assert State(name="demo", cache_dir="/c", timers=(WARNING, IDLE)).timer is None


@pytest.mark.parametrize(
    "warning, others",
    [("", ()), ("8", (ArmedTimer("at", "8", 0, "warning"),))],
    ids=["none", "one"],
)
def test_a_sidecar_of_the_version_before_keeps_its_timers(
    warning: str, others: tuple[ArmedTimer, ...]
) -> None:
    timer = {"backend": "at", "id": "7", "deadline": AT, "warning": warning}
    state = decode_state(json.dumps({**GO, "timer": timer}), PATH)
    assert state.timers == (DEADLINE, *others) and state.timer == DEADLINE and not state.disarmed
    assert (
        decode_state(encode_state(state), PATH) == state
        and "warning" not in json.loads(encode_state(state))["timer"]
    )


def test_a_disarmed_cluster_of_the_version_before_stays_disarmed() -> None:
    timer = {"backend": "none", "id": "", "deadline": AT, "warning": ""}
    assert decode_state(json.dumps({**GO, "timer": timer}), PATH).disarmed


# --- what is declared


def test_a_field_of_the_state_without_a_declaration_is_a_text() -> None:
    bare = [
        name for name in State.fields if not isinstance(getattr(State, name, None), ycluster.Stored)
    ]
    assert {State.__annotations__[name] for name in bare if name != "extra"} == {"str"}


def test_what_the_config_says_is_in_the_state() -> None:
    text = """\
name: demo
context: mine
memory: 1024
cpus: 2
k3s: {version: v1.34.1+k3s1, install: script, source: /srv/k3s}
portForwards: [{host: 0, guest: 6443}, {host: 8080, guest: 80}]
lifetime: {maxRun: 1h, onExpiry: pause, warn: 5m, onWarn: "true", maxTotal: 9h, maxIdle: 30m, idleCpu: 40}
diskSize: 1G
sshPort: 0
dataDisk: data.qcow2
network: {bindAddress: 0.0.0.0}
image: /srv/a.img
accel: tcg
cpuModel: host
sshUser: me
"""
    config = ycluster.read_config(text, Path("/c/y-cluster-provision.yaml"))
    assert isinstance(config, ycluster.QemuConfig)
    state = ycluster.state_from_config(config, Path("/d"))
    same = set(State.fields) & {*vars(config), *vars(config.lifetime)} - {
        "memory",
        "cpus",
        "k3s",
        "lifetime",
        "cache_dir",
        "data_disk",
    }
    assert len(same) == 15
    for name in same:
        assert (
            getattr(state, name)
            == {**vars(config), **vars(config.lifetime)}[name]
            != State(name="x", cache_dir="").__dict__[name]
        )
    assert (state.memory, state.cpus, state.lifetime, state.cache_dir, state.data_disk) == (
        "1024",
        "2",
        "1h",
        "/d",
        "/c/data.qcow2",
    )
    assert state.k3s == {
        "Version": "v1.34.1+k3s1",
        "Install": "script",
        "Source": "file:///srv/k3s",
    }
    assert (state.bind_address, state.auto_ports) == ("0.0.0.0", (6443, 22))


# --- what can't be read says so


@pytest.mark.parametrize(
    "text, says",
    [
        ("", "JSON"),
        (json.dumps(GO)[:80], "JSON"),
        ("[" * 100_000, "JSON"),
        ("\x00" * 512, "JSON"),
        ("[]", "JSON object"),
        ('"y-cluster"', "JSON object"),
        ("null", "JSON object"),
        (json.dumps({**GO, "version": 2}), "version 2"),
        (json.dumps({**GO, "version": "1"}), "version '1'"),
        ("{}", "no version"),
        ('{"version": 1}', "names no cluster"),
        (json.dumps({**GO, "name": "other"}), "'other'"),
        (json.dumps({**GO, "name": None}), "names no cluster"),
        (json.dumps({**GO, "name": 5}), "name, string"),
        (json.dumps({**GO, "context": ["local"]}), "context, string"),
        (json.dumps({**GO, "sshPort": 2222}), "sshPort, string"),
        (json.dumps({**GO, "sshPort": "ssh"}), "sshPort 'ssh', whole number"),
        (json.dumps({**GO, "sshPort": "65536"}), "sshPort '65536', whole number"),
        (json.dumps({**GO, "portForwards": "6443"}), "portForwards, list"),
        (json.dumps({**GO, "portForwards": ["6443"]}), "portForwards, object"),
        (
            json.dumps({**GO, "portForwards": [{"Host": 1, "Guest": "1"}]}),
            "portForwards, string",
        ),
        (json.dumps({**GO, "lifetime": "8 hours"}), "lifetime, unit"),
        (json.dumps({**GO, "lifetime": 8}), "lifetime, string"),
        (json.dumps({**GO, "onExpiry": "explode"}), "onExpiry, stop, pause, teardown"),
        (json.dumps({**GO, "onExpiry": {}}), "onExpiry, stop, pause, teardown"),
        (json.dumps({**GO, "expiresAt": "tomorrow"}), "expiresAt, 'tomorrow', RFC 3339"),
        (json.dumps({**GO, "expiresAt": "2026-02-30T12:00:00Z"}), "expiresAt"),
        (json.dumps({**GO, "expiresAt": 1763800000}), "expiresAt, string"),
        (json.dumps({**GO, "timer": "systemd"}), "timer, object"),
        (json.dumps({**GO, "timer": {"backend": "at", "id": "7"}}), "timer"),
        (
            json.dumps(
                {
                    **GO,
                    "timer": {"backend": 1, "id": "7", "deadline": "2026-11-22T11:00:00Z"},
                }
            ),
            "timer",
        ),
        (
            json.dumps(
                {
                    **GO,
                    "timer": {
                        "backend": "at",
                        "id": "7",
                        "deadline": "2026-11-22T11:00:00Z",
                        "others": "8",
                    },
                }
            ),
            "timer, list",
        ),
        (
            json.dumps(
                {
                    **GO,
                    "timer": {
                        "backend": "at",
                        "id": "7",
                        "deadline": "2026-11-22T11:00:00Z",
                        "others": [{}],
                    },
                }
            ),
            "timer ''",
        ),
        (
            json.dumps(
                {
                    **GO,
                    "timer": {
                        "backend": "at",
                        "id": "7",
                        "deadline": "2026-11-22T11:00:00Z",
                        "warning": 8,
                    },
                }
            ),
            "timer, string",
        ),
        (json.dumps({**GO, "timer": {}}), "timer"),
        (json.dumps({**GO, "autoPorts": "22"}), "autoPorts, list"),
    ],
)
def test_a_corrupt_sidecar_is_an_error_that_names_file_and_fault(
    cache: Path, text: str, says: str
) -> None:
    files = Files(cache, "y-cluster")
    files.sidecar.write_text(text)
    with refused(StateError, f"{files.sidecar}:", *says.split(", ")) as caught:
        load_state(files)
    assert caught.value.exit_code == 4 and caught.value.hint
    assert files.sidecar.read_text() == text


def test_a_sidecar_that_is_no_utf8_is_an_error(cache: Path) -> None:
    Files(cache, "demo").sidecar.write_bytes(b'{"name": "\xff"}')
    with pytest.raises(StateError, match=r"demo\.json"):
        load_state(Files(cache, "demo"))


def test_a_pipe_in_the_place_of_a_sidecar_is_refused_and_not_read(cache: Path) -> None:
    """A FIFO's reader waits for a writer; this one has had its: a wrong reader fails at once."""
    files = Files(cache, "demo")
    ours, theirs = os.pipe()
    os.write(theirs, encode_state(State(name="demo", cache_dir=str(cache))).encode())
    os.close(theirs)
    files.sidecar.symlink_to(f"/proc/self/fd/{ours}")
    with ycluster.descriptor(ours), pytest.raises(StateError):
        load_state(files)


def test_what_is_no_file_in_the_place_of_a_sidecar_is_never_opened(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To open a device may have effects; and a FIFO's writer goes on once it has a reader."""
    files, opened, open_fd = Files(cache, "demo"), [], os.open
    os.mkfifo(files.sidecar)

    def noted(path: Any, *args: Any, **options: Any) -> int:
        opened.append(Path(path))
        return open_fd(path, *args, **options)

    monkeypatch.setattr(os, "open", noted)
    with pytest.raises(StateError):
        load_state(files)
    assert files.sidecar not in opened


def test_a_cluster_that_does_not_exist_is_an_error(cache: Path) -> None:
    with refused(StateError, "demo", cache):
        load_state(Files(cache, "demo"))


@given(
    st.text()
    | unknown.map(json.dumps)
    | st.dictionaries(st.sampled_from(sorted(GO)), unknown).map(json.dumps)
)
def test_nothing_but_a_state_error_comes_of_reading_junk(text: str) -> None:
    with pytest.raises(StateError):
        decode_state(text, PATH)


@given(
    st.dictionaries(
        st.sampled_from([*sorted(GO), "timer", "reaped", "autoPorts"]), unknown, max_size=3
    )
)
def test_a_field_of_the_wrong_type_is_a_state_error_or_can_be_saved_again(
    junk: dict[str, Any],
) -> None:
    try:
        state = decode_state(json.dumps({**GO, **junk}), PATH)
    except StateError:
        return
    assert decode_state(encode_state(state), PATH) == state


# --- whole or not at all


def test_the_sidecar_is_private(cache: Path) -> None:
    assert made(cache).files.sidecar.stat().st_mode & 0o777 == 0o600


def test_saving_leaves_nothing_but_the_sidecar_and_its_copy(cache: Path) -> None:
    made(cache)
    made(cache, memory="1024")
    assert {path.name for path in cache.iterdir()} == {"demo.json", "demo.ycluster.state"}


@pytest.mark.parametrize(
    "fields",
    [
        {"lifetime": "8 hours"},
        {"context": "-o"},
        {"expires_at": -1},
        {"booted_at": 1 << 40},
        {"on_expiry": "explode"},
        {"on_warn": "x" * ycluster.STATE_SIZE},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_could_not_be_read_again_is_not_saved(cache: Path, fields: dict[str, Any]) -> None:
    """Every verb would fail for ever, and the VM would run on. (21.1.3)"""
    made(cache)
    before = tree(cache)
    with pytest.raises(StateError, match="not saved"):
        made(cache, **fields)
    assert tree(cache) == before


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_fails_leaves_the_old_sidecar_and_no_debris(
    cache: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    made(cache)
    before = tree(cache)

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(f"ycluster.os.{call}", full)
    with pytest.raises(OSError, match="No space"):
        made(cache, memory="1024")
    assert tree(cache) == before


def test_a_save_is_on_the_disk_before_it_gets_its_name_and_so_is_the_name_after_it(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a power cut leaves an empty sidecar, or the deadline of before the extension."""
    sidecar = made(cache).files.sidecar
    old, seen, fsync = sidecar.read_bytes(), [], os.fsync

    def observed(fd: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
        seen.append((path, path.is_file() and path.read_bytes(), sidecar.read_bytes()))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", observed)
    made(cache, memory="1024")
    new = sidecar.read_bytes()
    # The copy goes first, and is as safe.
    beside = cache.resolve()
    of_the_copy = [(seen[0][0], seen[0][1], old), (beside, False, old)]
    assert seen == [*of_the_copy, (seen[2][0], new, old), (beside, False, new)]


def test_a_save_into_a_directory_that_is_gone_fails_and_makes_none(cache: Path) -> None:
    state = made(cache)
    state.files.sidecar.unlink()
    state.files.copy.unlink()
    cache.rmdir()
    with pytest.raises(FileNotFoundError):
        ycluster.save_state(state)
    assert not cache.exists()


def test_a_reader_never_sees_a_torn_sidecar(cache: Path) -> None:
    made(cache)
    code = (
        "import ycluster; from pathlib import Path\n"
        f"for n in range(150): ycluster.save_state(ycluster.State(name='demo', cache_dir={str(cache)!r},"
        " extra={'pad': str(n) * (n * 99)}))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code], env=IMPORTS) for _ in range(2)]
    reads = 0
    while any(writer.poll() is None for writer in writers):
        load_state(Files(cache, "demo"))
        reads += 1
    assert reads and [writer.returncode for writer in writers] == [0, 0]


# --- the lock


def test_a_lock_is_held_by_one_at_a_time(cache: Path, host: Clocked) -> None:
    path, inside, seen = cache / "demo.lock", [0], []

    def work() -> None:
        for _ in range(20):
            with ycluster.locked(ycluster.Host({}, host.output), path, timeout=30):
                inside[0] += 1
                seen.append(inside[0])
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1] * 80


def test_a_second_holder_is_told_that_it_is_busy(cache: Path, host: Clocked) -> None:
    path, second = cache / "demo.lock", contextlib.ExitStack()
    with (
        ycluster.locked(host, path, timeout=0),
        pytest.raises(ycluster.Busy, match="demo") as caught,
    ):
        second.enter_context(ycluster.locked(host, path, timeout=20))
    assert caught.value.exit_code == 7 and "fuser" in caught.value.hint
    with ycluster.locked(host, path, timeout=0):
        pass


@pytest.mark.parametrize("made_anew", [False, True], ids=["", "and made anew"])
def test_a_lock_file_removed_by_its_last_holder_still_locks(
    cache: Path, host: Clocked, monkeypatch: pytest.MonkeyPatch, made_anew: bool
) -> None:
    """A teardown removes it under the lock: who has opened that one must lock the new one."""
    path, flock = cache / "demo.lock", fcntl.flock

    def comes_too_late(fd: int, how: int) -> None:
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        if made_anew:
            path.touch()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", comes_too_late)
    with ycluster.locked(host, path, timeout=5):
        assert ycluster.flock_held(path)
        assert ycluster.try_flock(path) is None


def test_a_lock_file_that_is_removed_or_replaced_between_open_and_flock_is_not_held(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, flock = cache / "demo.lock", ycluster.fcntl.flock
    for another in (False, True):

        def late(fd: int, operation: int, another: bool = another) -> None:
            path.unlink()
            if another:
                path.touch()
            flock(fd, operation)

        monkeypatch.setattr("ycluster.fcntl.flock", late)
        assert ycluster.try_flock(path) is None
    monkeypatch.undo()
    fd = ycluster.try_flock(path)
    assert fd is not None
    os.close(fd)


def test_a_lock_ends_with_its_process(cache: Path, processes: Processes) -> None:
    path = cache / "demo.vm.lock"
    fd = ycluster.try_flock(path)
    assert fd is not None
    heir = processes.start("", pass_fds=[fd])
    os.close(fd)
    assert ycluster.flock_held(path) and ycluster.try_flock(path) is None
    heir.kill()
    heir.wait()
    assert not ycluster.flock_held(path)


def test_a_holder_that_was_put_to_sleep_is_woken_and_no_other_sleeper(
    cache: Path, host: Clocked
) -> None:
    """SIGSTOP on a verb, by a debugger or a cgroup that was frozen badly, must not keep the reaper waiting for ever."""
    path = cache / "demo.lock"
    code = "import fcntl, os, sys; lock = open(sys.argv[1], 'a'); fcntl.flock(lock, 2); os.kill(os.getpid(), 19)"
    holder = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, path])
    other = subprocess.Popen([sys.executable, "-I", "-S", "-c", code, cache / "other.lock"])
    try:
        for process in (holder, other):
            os.waitpid(process.pid, os.WUNTRACED)
        with ycluster.locked(host, path, timeout=600):
            assert ycluster.process_stat(other.pid)[1] == "T"
    finally:
        for process in (holder, other):
            process.kill()
            process.wait()


def test_a_look_at_a_lock_is_not_taken_for_its_holder(cache: Path) -> None:
    glance = ycluster.try_flock(cache / "demo.lock", shared=True)
    assert glance is not None
    with ycluster.descriptor(glance):
        assert not ycluster.flock_held(cache / "demo.lock")


def test_looking_at_a_lock_makes_no_file(cache: Path) -> None:
    assert not ycluster.flock_held(cache / "demo.lock")
    assert tree(cache) == {}


# --- discovery


def test_clusters_are_found_in_the_default_cachedir_and_in_indexed_ones(
    cache: Path, tmp_path: Path, host: Clocked
) -> None:
    other = tmp_path / "an other"
    other.mkdir()
    for place in (cache, other):
        ycluster.remember_cache_dir(host, place)
        ycluster.remember_cache_dir(host, place)
        made(place, "same")
    made(other, "only")
    assert ycluster.discover(host) == [
        Files(other, "only"),
        Files(other, "same"),
        Files(cache, "same"),
    ]
    assert host.log.getvalue() == ""


def test_a_cachedir_that_goes_by_two_names_is_seen_once(
    cache: Path, tmp_path: Path, host: Clocked
) -> None:
    (tmp_path / "link").symlink_to(cache)
    ycluster.remember_cache_dir(host, tmp_path / "link")
    made(cache)
    assert ycluster.discover(host) == [Files(cache, "demo")]


def test_what_is_no_cluster_is_not_discovered(cache: Path, host: Clocked) -> None:
    index = host.state_home() / "cachedirs"
    index.mkdir(parents=True)
    (index / "dangling").symlink_to("/nonexistent/place")
    (index / "loop").symlink_to("loop")
    (index / "file").write_text("junk")
    for name in (".demo.json", "demo.json.tmp", ".demo.json.1a2b3c4d.tmp", "x.txt"):
        (cache / name).write_text("{}")
    (cache / "images").mkdir()
    made(cache)
    assert ycluster.discover(host) == [Files(cache, "demo")]


GATEWAY = json.dumps(  # what the sibling's prepare-export writes
    {"gateways": [{"name": "y-cluster"}], "fetchedAt": "2026-01-01T00:00:00Z", "schemaVersion": "1"}
)


@pytest.mark.parametrize(
    "name, content, seen",
    [
        ("demo-gateway-state", GATEWAY, False),
        ("demo-gateway-state", GATEWAY[:-5], False),
        ("package", '{"name": "an-app", "version": "1.0.0"}', False),
        ("notes", "[1, 2]", False),
        ("notes", "{}", False),
        ("notes", GATEWAY[:-5], True),
        ("empty", "", True),
        ("copied", '{"version": 1, "name": "demo", "sshPort": "2222"}', True),
        ("newer", '{"version": 9, "name": "newer"}', True),
        ("unnamed", '{"version": 9, "cacheDir": "/c"}', True),
        ("dev-gateway-state", '{"version": 1, "name": "dev-gateway-state"}', True),
    ],
)
def test_a_json_that_never_was_a_state_file_is_no_cluster_and_a_damaged_one_is(
    cache: Path, host: Clocked, name: str, content: str, seen: bool
) -> None:
    """The sibling's record of a gateway is no cluster; what may be one's state is named. (20.5)"""
    (cache / f"{name}.json").write_text(content)
    assert ycluster.discover(host) == [Files(cache, name)] * seen


@pytest.mark.parametrize("part", [".qcow2", "-ssh", ".pid", ".vm.lock"])
def test_a_json_beside_the_files_of_a_cluster_is_its_state_whatever_it_holds(
    cache: Path, host: Clocked, part: str
) -> None:
    """Where a cluster has left more, its state file may have been overwritten. (20.5)"""
    for name in ("notes", "demo-gateway-state"):
        (cache / f"{name}.json").write_text("[1")
        (cache / f"{name}{part}").touch()
    assert {files.name for files in ycluster.discover(host)} == {"notes", "demo-gateway-state"}


def test_a_pipe_in_the_place_of_a_state_file_is_named_and_not_waited_for(
    cache: Path, host: Clocked
) -> None:
    """Reading from it would wait for a writer. (20.5)"""
    os.mkfifo(cache / "pipe.json")
    assert ycluster.discover(host) == [Files(cache, "pipe")]


def test_the_state_of_a_cluster_that_is_named_like_anothers_file_is_its_own(cache: Path) -> None:
    """A teardown of `demo` removes the sibling's record, and no cluster's state. (20.5)"""
    record = Files(cache, "demo").sibling_gateway
    record.write_text(GATEWAY)
    assert record in Files(cache, "demo").disposable()
    other = Files(cache, "demo-gateway-state")
    writing = cache / f".{record.name}.0a1b2c3d.tmp"
    writing.touch()
    assert other.sidecar == record and writing in Files(cache, "demo").disposable()
    other.lock.touch()
    assert not {record, writing} & set(Files(cache, "demo").disposable())
    other.lock.unlink()
    made(cache, name=other.name)
    assert not {record, writing} & set(Files(cache, "demo").disposable())


@pytest.mark.parametrize(
    "name", ["Demo", "a_b", "-a", "a.b", "two words", "100%", "$HOME", "it's", "größe", "n" * 200]
)
def test_the_sibling_may_have_named_its_cluster_anything(
    cache: Path, host: Clocked, name: str
) -> None:
    state = made(cache, name=name, expires_at=5)
    assert ycluster.discover(host) == [state.files]
    ycluster.reap_now(host, ycluster.EVERY, "hand", 0)
    assert ycluster.load_state(state.files).reaped


def test_a_user_with_no_cluster_at_all_has_none(host: Clocked) -> None:
    assert ycluster.discover(host) == []
    assert tree(host.home()) == {}


def test_an_index_that_cannot_be_written_is_a_warning(cache: Path, host: Clocked) -> None:
    (host.home() / ".local/state").write_text("in the way")
    ycluster.remember_cache_dir(host, cache)
    assert missing(host.log.getvalue(), "warning:", "`list`", cache) == []


# --- where a cluster lives whose config names no cacheDir


def place_of(home: Path, **environ: str) -> Path:
    """The cacheDir of the cluster `demo`."""
    return ycluster.default_cache_dir(Clocked(home, **environ), "demo")


def places(home: Path) -> list[Path]:
    return [home / ".local/share/ycluster", home / ".cache/y-cluster-qemu", home / "data/ycluster"]


def test_what_cannot_be_made_again_is_not_kept_in_a_cache(home: Path) -> None:
    """`rm -rf ~/.cache/*` is what people do. The sibling's place is used where clusters are. (20.12)"""
    own, siblings, elsewhere = places(home)
    assert place_of(home) == own
    (siblings / "images").mkdir(parents=True)
    assert place_of(home) == own
    made(siblings, "other")
    assert place_of(home) == siblings
    own.mkdir(parents=True)
    made(own, "demo")
    assert place_of(home) == own
    found = {files.name for files in ycluster.discover(Clocked(home))}
    assert found == {"demo", "other"}
    assert place_of(home, XDG_DATA_HOME=str(home / "data")) == siblings
    (siblings / "other.json").unlink()
    assert place_of(home, XDG_DATA_HOME=str(home / "data")) == elsewhere
    assert place_of(home, XDG_DATA_HOME="relative") == own
