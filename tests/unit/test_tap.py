"""Clusters of the sibling in tap mode: their guest has an address of its own, and only the sibling starts them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_config import problems, read
from unit_support import (
    NOW,
    Cli,
    Clocked,
    Live,
    Memory,
    Processes,
    made,
    refused,
    stand_in,
    told,
    tree,
)

import ycluster
from ycluster import Clock, Files, PortForward, State, StateError, decode_state, encode_state

PATH = Path("/c/demo.json")
TAP = {
    "mode": "tap",
    "ifname": "tap0",
    "guestAddress": "10.88.0.2/24",
    "gateway": "10.88.0.1",
    "dns": ["1.1.1.1"],
}
GO: dict[str, Any] = {
    "version": 1, "name": "demo", "diskSize": "20G", "memory": "8192", "cpus": "4", "sshPort": "2222",
    "portForwards": [{"Host": "7443", "Guest": "6443"}], "context": "local", "cacheDir": "/c",
    "k3s": {"Version": "v1.35.4+k3s1", "Install": "airgap"}, "lifetime": "8h", "onExpiry": "stop",
}  # fmt: skip
CONFIG = """\
name: demo
network: {mode: tap, ifname: tap0, guestAddress: 10.88.0.2/24, gateway: 10.88.0.1, dns: [1.1.1.1]}
"""
CODES = {"run": ycluster.OWN_FAILURE}  # whose exit codes are its command's, all but one
FUTURE = ycluster.parse_time("2100-01-01T00:00:00Z")


def sidecar(network: object, **changes: object) -> str:
    return json.dumps({**GO, "network": network, **changes})


def decoded(network: object = TAP, **changes: object) -> State:
    return decode_state(sidecar(network, **changes), PATH)


# --- the state file


@pytest.mark.parametrize(
    "network, address",
    [
        (TAP, "10.88.0.2"),
        ({"mode": "tap", "guestAddress": "10.88.0.2"}, "10.88.0.2"),
        ({**TAP, "mtu": 1400, "routes": [{"to": "default"}]}, "10.88.0.2"),
        ({**TAP, "dns": None, "gateway": "", "ifname": None}, "10.88.0.2"),
        ({**TAP, "dns": ["2001:db8::1"]}, "10.88.0.2"),
        ({**TAP, "dns": ["resolver"], "gateway": 10, "ifname": "../tap0"}, "10.88.0.2"),
        ({"Mode": "tap", "IfName": "tap0", "GuestAddress": "10.88.0.2/24", "DNS": ["1.1.1.1"]}, "10.88.0.2"),
        ({}, ""),
        ({"mode": ""}, ""),
        ({"mode": "user", "bindAddress": "0.0.0.0"}, ""),
        ({"guestAddress": "10.88.0.2/24"}, ""),
        ({**TAP, "mode": "user"}, ""),
    ],
)  # fmt: skip
def test_the_network_of_a_sidecar_is_understood_and_kept_as_it_is(
    network: dict[str, Any], address: str
) -> None:
    """The names may be in any case, as the sibling's own reader takes them.

    What does not lead to the guest makes no state unreadable: its VM has a deadline.
    """
    state = decoded(network)
    assert state.guest_address == address
    assert state.ssh_at == ((address, 22) if address else ("127.0.0.1", 2222))
    assert json.loads(encode_state(state))["network"] == network
    assert decode_state(encode_state(state), PATH) == state


@pytest.mark.parametrize("changes", [{}, {"network": None}])
def test_a_sidecar_without_a_network_is_of_user_mode_and_gets_none(changes: dict[str, Any]) -> None:
    state = decode_state(json.dumps({**GO, **changes}), PATH)
    assert state.guest_address == "" and state.dial_address == "127.0.0.1"
    assert "network" not in json.loads(encode_state(state))


@given(
    st.dictionaries(
        st.text(max_size=9).filter(lambda name: name.lower() not in map(str.lower, TAP)),
        st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.lists(st.text(max_size=3)),
        max_size=4,
    )
)  # fmt: skip
def test_whatever_else_is_in_a_network_outlives_a_save(others: dict[str, Any]) -> None:
    network = {**others, **TAP}
    assert json.loads(encode_state(decoded(network)))["network"] == network


@pytest.mark.parametrize(
    "network, names",
    [
        ("tap", "network"),
        ([TAP], "network"),
        ({**TAP, "mode": "bridge"}, "network mode 'bridge'"),
        ({**TAP, "mode": 1}, "network mode"),
        ({"mode": "tap"}, "network guestAddress"),
        ({**TAP, "guestAddress": ""}, "network guestAddress"),
        ({**TAP, "guestAddress": None}, "network guestAddress"),
        ({**TAP, "guestAddress": ["10.88.0.2"]}, "network guestAddress"),
        ({**TAP, "guestAddress": "-oProxyCommand=id"}, "network guestAddress"),
        ({**TAP, "guestAddress": "10.88.0.2/33"}, "network guestAddress"),
        ({**TAP, "guestAddress": "10.88.0.02/24"}, "network guestAddress"),
        ({**TAP, "guestAddress": "10.88.0.2/24\n"}, "network guestAddress"),
        ({**TAP, "guestAddress": "10.88.0/24"}, "network guestAddress"),
        ({**TAP, "guestAddress": "guest.example"}, "network guestAddress"),
        ({**TAP, "mode": "user", "guestAddress": "-l root"}, "network guestAddress"),
    ],
)
def test_a_network_that_is_none_is_refused_by_the_name_of_its_field(
    network: object, names: str
) -> None:
    with refused(StateError, PATH, names):
        decoded(network)


# --- where the guest is reached


def test_ssh_goes_to_the_guest_itself() -> None:
    """In user mode to a port of this host."""
    argv = ycluster.ssh_argv(decoded(), "true")
    assert argv[-2:] == ["ystack@10.88.0.2", "true"] and argv[argv.index("-p") + 1] == "22"
    argv = ycluster.ssh_argv(decoded({}), "true")
    assert argv[-2:] == ["ystack@127.0.0.1", "true"] and argv[argv.index("-p") + 1] == "2222"


@contextlib.contextmanager
def sshd_at(address: str) -> Any:
    """What speaks like an ssh server, at port 22."""
    try:
        server = socket.create_server((address, 22))
    except PermissionError:
        pytest.skip("port 22 is not for this user")

    def serve() -> None:
        with contextlib.suppress(OSError):  # the server is closed in the end
            while True:
                with server.accept()[0] as connection:
                    connection.sendall(b"SSH-2.0-x\r\n")

    with server:
        threading.Thread(target=serve, daemon=True).start()
        yield
        server.shutdown(socket.SHUT_RDWR)


def test_a_boot_is_seen_at_the_guests_own_port_22(host: Clocked) -> None:
    address = f"127.{os.getpid() >> 8 & 255}.{os.getpid() & 255}.77"  # no other test's
    state = decoded({**TAP, "guestAddress": f"{address}/8"})
    with sshd_at(address):
        assert ycluster.ssh_answers(host, state, lambda: None)


def test_what_leads_to_its_k3s_is_port_6443_of_the_guest() -> None:
    """By that a teardown knows the names that the sibling has merged into a kubeconfig."""
    entry = {"cluster": "demo", "user": "demo"}
    server = {"server": "https://10.88.0.2:6443"}
    view = ycluster.Kubeconfig(clusters={"demo": server}, contexts={"local": entry})
    assert ycluster._has_names_of(view, decoded())
    assert not ycluster._has_names_of(view, decoded({}))
    assert decoded(portForwards=[]).has_k3s
    assert not decoded(k3s={"Install": "none"}).has_k3s


def test_a_sibling_that_knows_no_network_does_not_make_it_one_of_user_mode(cache: Path) -> None:
    """Its save drops the field; a start would then boot the disk in another network. (20.4)"""
    state = made(cache, attachment=decoded().attachment)
    state.files.ssh_pub.write_text("ssh-ed25519 AAAA")
    ycluster.save_state(state)
    state.files.sidecar.write_text(json.dumps(GO))
    assert ycluster.load_state(state.files).guest_address == "10.88.0.2"


def test_nobody_can_tell_that_it_is_unused(live: Live) -> None:
    """What reaches it at its own address is no connection that QEMU knows of."""
    live.starts(attachment=decoded().attachment)
    live.fires()
    assert live.runs and live.state.idle is not None
    assert (live.state.idle.by, live.state.idle.connections) == ("unmeasured", -1)


# --- what is shown, with none of the ports


def on_disk(cache: Path, **changes: Any) -> Files:
    """A cluster of the sibling's in tap mode, with what the sibling leaves beside its sidecar."""
    files = Files(cache, "demo")
    files.sidecar.write_text(sidecar(TAP, **changes))
    files.disk.write_text("data")
    files.sibling_network.write_text("version: 2\n")
    gateway = {"gateways": [], "fetchedAt": "2026-01-01T00:00:00Z", "schemaVersion": "1"}
    files.sibling_gateway.write_text(json.dumps(gateway))
    return files


def test_it_is_shown_with_its_address_and_without_a_port_of_this_host(
    cli: Cli, cache: Path
) -> None:
    on_disk(cache)
    [shown] = json.loads(cli("list", "-o", "json").out)["clusters"]
    assert shown["network"] == {"mode": "tap", "address": "10.88.0.2"}
    assert (shown["sshPort"], shown["portForwards"], shown["state"]) == (22, [], "stopped")
    assert json.loads(cli("status", "-o", "json").out) == {"version": 1, **shown}
    for verb in ("list", "status"):
        ran = cli(verb)
        assert ran.code == 0 and "10.88.0.2" in ran.out and "7443" not in ran.out, ran.err
    made(cache, "other")
    [shown] = [one for one in json.loads(cli("list", "-o", "json").out)["clusters"] if one["name"] == "other"]  # fmt: skip
    assert shown["network"] == {"mode": "user", "address": "127.0.0.1"}


def test_no_port_of_this_host_is_asked_for(cli: Cli, cache: Path) -> None:
    """doctor names the ports of a stopped cluster that are taken."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        files = on_disk(cache, sshPort=port, lifetime="")
        found = json.loads(cli("doctor", "-o", "json").out)["findings"]
        assert [one["text"] for one in found if one["name"] == "demo" and port in one["text"]] == []
        files.sidecar.write_text(sidecar({}, sshPort=port, lifetime=""))
        found = json.loads(cli("doctor", "-o", "json").out)["findings"]
        assert [one["text"] for one in found if one["name"] == "demo" and port in one["text"]] != []


def test_the_command_of_run_gets_the_guests_port() -> None:
    facts = ycluster._facts_for_commands(decoded())
    assert facts["YCLUSTER_SSH_PORT"] == "22"
    assert facts["YCLUSTER_SSH"].endswith(" ystack@10.88.0.2")


# --- a config that was edited


@pytest.mark.parametrize("runs", [True, False])
@pytest.mark.parametrize(
    "network, edited, says",
    [
        (TAP, CONFIG, ""),
        ({**TAP, "guestAddress": "10.88.0.2"}, CONFIG + "sshPort: 2200\nportForwards: []\n", ""),
        (TAP, CONFIG.replace("0.2/", "0.3/"), "network.mode: tap, 10.88.0.2 -> tap, 10.88.0.3"),
        (TAP, "name: demo\nsshPort: 2200\n", "network.mode: tap, 10.88.0.2 -> user"),
        ({}, CONFIG, "network.mode: user -> tap, 10.88.0.2"),
    ],
)
def test_of_a_tap_network_only_the_mode_and_the_address_can_differ(
    network: dict[str, Any], edited: str, says: str, runs: bool
) -> None:
    """Not the ports, which mean nothing then. The guest has its network from its first boot."""
    forwards = [{"Host": str(port), "Guest": str(port)} for port in (6443, 80, 443)]
    state = decoded(network, portForwards=forwards, lifetime="")
    config = read(edited)
    changed, lines = ycluster.reconfigured(state, config, Clock(NOW, 0.0, "boot-1"), runs=runs)
    found = [line for line in lines if line.startswith(("network", "sshPort", "portForwards"))]
    assert [line.partition(" takes a teardown")[0] for line in found] == [says] * bool(says)
    assert changed.attachment == state.attachment
    assert (changed.ssh_port, changed.port_forwards) == (state.ssh_port, state.port_forwards)


# --- what only the sibling can do


def tap_folder(tmp_path: Path, text: str = CONFIG) -> Path:
    folder = tmp_path / "tap"
    folder.mkdir(exist_ok=True)
    (folder / "y-cluster-provision.yaml").write_text(text)
    return folder


@pytest.mark.parametrize(
    "verb",
    ["start", "start --max-run 1h", "start -c tap", "start -c user", "run -c tap -- /bin/true", "run -c user -- /bin/true", "suspend"],
)  # fmt: skip
def test_what_would_have_to_start_it_is_not_implemented_and_changes_nothing(
    cli: Cli, cache: Path, home: Path, tmp_path: Path, timer: Memory, verb: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Nor is another cluster's expiry carried out first, or a missing QEMU found."""
    tap_folder(tmp_path)
    (tmp_path / "user").mkdir()
    (tmp_path / "user" / "y-cluster-provision.yaml").write_text("name: demo\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    files = on_disk(cache)
    made(cache, "other", expires_at=1, started_at=1)
    before = tree(home)
    first, *words = verb.split()
    ran = cli(first, *words, *([] if "-c" in words else ["--name", "demo"]))
    told(ran, CODES.get(first, 6), "demo", "not yet implemented: network.mode: tap")
    assert tree(home) == before and timer.log == [] and files.disk.read_text() == "data"


def test_its_disk_is_neither_provisioned_nor_imported(
    cli: Cli, home: Path, tmp_path: Path, timer: Memory
) -> None:
    folder = tap_folder(tmp_path)
    (tmp_path / "disk.raw").write_bytes(bytes(512))
    before = tree(home)
    for first, *words in (["provision"], ["import", tmp_path / "disk.raw"], ["run", "true"]):
        ran = cli(first, "-c", folder, *words)
        told(ran, CODES.get(first, 6), "not yet implemented: network.mode: tap")
    assert tree(home) == before and timer.log == []


def test_one_that_is_stopped_meanwhile_is_not_booted_in_another_mode(
    cache: Path, host: Clocked
) -> None:
    on_disk(cache)
    with refused(ycluster.NotImplementedYet, "network.mode: tap"):
        ycluster._check_bootable(ycluster.load_state(Files(cache, "demo")))


# --- one that runs: its QEMU is the sibling's, and has no monitor


class Running:
    """A tap cluster that runs, whose `ssh` ends it; what ssh was asked is in `asked`."""

    def __init__(self, files: Files, process: subprocess.Popen[bytes], asked: Path) -> None:
        self.files, self.process, self.asked = files, process, asked

    @property
    def state(self) -> State:
        return ycluster.load_state(self.files)


@pytest.fixture
def vm(cache: Path, tmp_path: Path, timer: Memory, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> Running:  # fmt: skip
    files, asked = on_disk(cache, expiresAt="2100-01-01T00:00:00Z"), tmp_path / "asked"
    files.ssh_key.write_text("key")
    process = stand_in(processes, files, "")
    (tmp_path / "bin").mkdir()
    ssh = tmp_path / "bin" / "ssh"
    ssh.write_text(
        f'#!/bin/sh\necho "$@" >>{asked}\ncase "$*" in *poweroff*) kill -9 {process.pid} ;; esac\n'
    )
    ssh.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(ycluster.Host, "tell_terminals", lambda self, text: None)
    return Running(files, process, asked)


@pytest.mark.parametrize("verb", ["stop", "teardown"])
def test_it_is_powered_off_by_ssh_at_its_own_address(cli: Cli, vm: Running, verb: str) -> None:
    """The gentle step of a VM that has no monitor."""
    ran = cli(verb, "--name", "demo")
    assert ran.code == 0 and vm.process.wait(60) == -9, ran.err
    asked = vm.asked.read_text()
    assert "-p 22 " in asked and "ystack@10.88.0.2 sudo sync; sudo poweroff" in asked
    kept = {vm.files.sidecar, vm.files.disk, vm.files.sibling_network, vm.files.sibling_gateway}
    assert {path for path in kept if path.exists()} == (kept if verb == "stop" else set())


def test_its_expiry_stops_it_and_by_a_suspend_too(cli: Cli, vm: Running) -> None:
    """A suspend that no start could undo is a stop, and it says so."""
    text = sidecar(TAP, expiresAt="2020-01-01T00:00:00Z", onExpiry="suspend")
    vm.files.sidecar.write_text(text)
    ran = cli("lifetime", "reap", "--name", "demo")
    assert ran.code == 0 and "not yet implemented: network.mode: tap" in ran.err, ran.err
    assert vm.state.reaped and vm.state.suspended is None
    assert vm.state.reaped.action == "stop"
    how, _, why = vm.state.reaped.how.partition(", as it could not be suspended: ")
    assert how == "ssh poweroff" and "network.mode: tap" in why, "and what became of it says why"
    assert json.loads(vm.files.sidecar.read_text())["network"] == TAP


def test_the_verbs_of_one_that_runs_keep_its_network(cli: Cli, vm: Running, timer: Memory) -> None:
    """It is paused and resumed, extended, armed, disarmed and logged in to."""
    for verb in ("lifetime arm", "lifetime extend 1h", "pause", "resume", "lifetime disarm", "ssh"):
        ran = cli(*verb.split(), "--name", "demo")
        assert ran.code == 0, f"{verb}: {ran.err}"
        assert json.loads(vm.files.sidecar.read_text())["network"] == TAP, verb
    assert vm.state.expires_at == FUTURE + 3600
    assert vm.asked.read_text().splitlines()[-1].endswith(" ystack@10.88.0.2")
    assert json.loads(cli("status", "-o", "json").out)["state"] == "running"


def test_a_start_of_one_that_runs_arms_its_timers(
    cli: Cli, vm: Running, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    vm.files.sidecar.write_text(sidecar(TAP, k3s={"Install": "none"}))
    ran = cli("start", "--name", "demo")
    assert ran.code == 0 and "already runs" in ran.err, ran.err
    assert list(timer.standing.values()) == [vm.state.expires_at]


def test_a_suspend_of_one_that_runs_leaves_it_running(
    cli: Cli, vm: Running, home: Path, tmp_path: Path
) -> None:
    """Also at the end of a run, which is refused before it begins."""
    before = tree(home)
    told(cli("suspend", "--name", "demo"), 6, "network.mode: tap", "`ycluster pause --name demo`")
    folder, mark = tap_folder(tmp_path), tmp_path / "mark"
    ran = cli("run", "--then", "suspend", "-c", folder, "--", "touch", mark)
    told(ran, ycluster.OWN_FAILURE, "not yet implemented: network.mode: tap")
    assert tree(home) == before and vm.process.poll() is None and not mark.exists()


# --- files of the sibling's beside its sidecars


def test_what_the_sibling_puts_beside_a_sidecar_is_no_cluster(cli: Cli, cache: Path) -> None:
    """With the cluster, and where that has gone; doctor does not name it either. (20.5)"""
    files = on_disk(cache)
    for names in (["demo"], []):
        ran = cli("list", "-o", "json")
        assert [one["name"] for one in json.loads(ran.out)["clusters"]] == names
        assert "state.json" not in ran.err
        found = json.loads(cli("doctor", "-o", "json").out)["findings"]
        texts = [one["name"] + one["text"] for one in found]
        assert not [text for text in texts if "gateway-state" in text or "network-config" in text]
        files.sidecar.unlink(missing_ok=True)
        files.disk.unlink(missing_ok=True)


def test_a_teardown_leaves_none_of_the_siblings_files(cli: Cli, cache: Path, timer: Memory) -> None:
    """A cluster of a longer name keeps its own. (20.5)"""
    on_disk(cache)
    theirs = [cache / f"demo-2{suffix}" for suffix in ("-gateway-state.json", "-network-config.yaml")]  # fmt: skip
    for path in theirs:
        path.write_text("{}")
    assert cli("teardown", "demo").code == 0
    assert sorted(cache.iterdir()) == sorted(theirs)


@pytest.mark.parametrize("suffix", ["-gateway-state.json", "-network-config.yaml"])
def test_a_provision_takes_nothing_over_that_was_left_without_a_cluster(
    cli: Cli, cache: Path, tmp_path: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:  # fmt: skip
    """Its teardown would remove it, and it may be the user's."""
    monkeypatch.setattr(ycluster, "_check_host", lambda host: None)
    left = cache / f"demo{suffix}"
    left.write_text("{}")
    folder = tap_folder(tmp_path, "name: demo\nk3s: {install: none}\nsshPort: 0\n")
    told(cli("provision", "-c", folder), 1, left, "move it away")
    assert list(cache.iterdir()) == [left]


# --- the config


def test_a_tap_network_is_read() -> None:
    network = read(CONFIG).network
    assert (network.mode, network.ifname, network.dns) == ("tap", "tap0", ("1.1.1.1",))
    assert (network.guest_address, network.gateway) == ("10.88.0.2/24", "10.88.0.1")


def tap(**changes: object) -> str:
    """A config in tap mode, its network as JSON on line 2; None leaves a key out."""
    network = {name: value for name, value in {**TAP, **changes}.items() if value is not None}
    return f"name: demo\nnetwork: {json.dumps(network)}\n"


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"ifname": None}, ["2:10: network.ifname: is missing"]),
        ({"guestAddress": None}, ["2:10: network.guestAddress: is missing"]),
        ({"gateway": None}, ["2:10: network.gateway: is missing"]),
        ({"gateway": ""}, ["2:87: network.gateway: is missing"]),
        ({"gateway": "10.89.0.1"}, ["2:87: network.gateway: 10.89.0.1 is not in the network of guestAddress, 10.88.0.0/24"]),
        ({"gateway": "10.88.0.2"}, ["2:87: network.gateway: 10.88.0.2 is the guest's own address"]),
        ({"guestAddress": "10.88.0.2/32"}, ["network.gateway: 10.88.0.1 is not in"]),
        ({"guestAddress": "10.88.0.2"}, ["2:60: network.guestAddress: '10.88.0.2' is not"]),
        ({"guestAddress": "10.88.0.2/33"}, ["network.guestAddress:"]),
        ({"guestAddress": "10.88.0.02/24"}, ["network.guestAddress:"]),
        ({"guestAddress": "fd00::2/64"}, ["network.guestAddress:"]),
        ({"gateway": "10.88.0.1/24"}, ["network.gateway:"]),
        ({"dns": ["1.1.1.1", "resolver"]}, ["network.dns[1]:"]),
        ({"dns": "1.1.1.1"}, ["network.dns:"]),
        ({"ifname": "a" * 16}, ["2:36: network.ifname:"]),
        ({"ifname": "tap 0"}, ["network.ifname:"]),
        ({"ifname": "a/b"}, ["network.ifname:"]),
        ({"ifname": "a:b"}, ["network.ifname:"]),
        ({"ifname": "-tap"}, ["network.ifname:"]),
        ({"ifname": "."}, ["network.ifname:"]),
        ({"ifname": ".."}, ["network.ifname:"]),
        ({"ifname": None, "guestAddress": "x", "gateway": "y", "dns": ["z"]},
         ["network.ifname:", "network.guestAddress:", "network.gateway:", "network.dns[0]:"]),
    ],
)  # fmt: skip
def test_the_keys_of_a_tap_network_are_checked_all_at_once(
    changes: dict[str, Any], names: list[str]
) -> None:
    found = problems(tap(**changes))
    assert len(found) == len(names)
    assert all(any(name in line for line in found) for name in names), found


@pytest.mark.parametrize(
    "changes",
    [{"dns": None}, {"dns": ["2001:db8::1"]}, {"ifname": "a" * 15}, {"ifname": "..."}, {"ifname": "a-b.1"},
     {"guestAddress": "10.88.1.2/16"}, {"guestAddress": "0.0.0.0/0"}],
)  # fmt: skip
def test_a_tap_network_that_fits_is_good(changes: dict[str, Any]) -> None:
    assert read(tap(**changes)).network.mode == "tap"


def test_ports_and_the_address_they_listen_on_are_ignored_in_tap_mode() -> None:
    """Whatever rules they break: none is forwarded."""
    config = read(
        CONFIG.replace("{", "{bindAddress: 0.0.0.0, ")
        + "sshPort: 80\nportForwards: [{host: 80, guest: 22}]\n"
    )
    assert config.port_forwards == (PortForward(host=80, guest=22),)
    names = [text.partition(":")[0] for text in ycluster.ignored_keys(config)]
    assert names == ["sshPort", "portForwards", "network.bindAddress"]
    assert ycluster.ignored_keys(read(CONFIG)) == []


def test_keys_of_tap_mode_are_ignored_in_user_mode_unless_they_are_wrong() -> None:
    config = read(CONFIG.replace("mode: tap, ", ""))
    names = [text.partition(":")[0] for text in ycluster.ignored_keys(config)]
    assert names == ["network.ifname", "network.guestAddress", "network.gateway", "network.dns"]
    assert problems("network: {gateway: here}\n") == [
        "1:20: network.gateway: 'here' is not an IPv4 address"
    ]


def test_a_config_in_tap_mode_is_good_and_not_for_provision(cli: Cli, tmp_path: Path) -> None:
    ran = cli("config", "check", "-c", tap_folder(tmp_path, CONFIG + "lifetime: {maxRun: 8h}\n"))
    assert ran.code == 0 and "network.mode: tap" in ran.err
    assert "6443" not in ran.err
