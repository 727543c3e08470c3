"""Section 12: the client of QEMU's monitor, over real sockets."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from unit_support import Clocked, refused

import ycluster
from ycluster import QMP_LINE, Qmp, QmpError, chosen_ports, run_state

GREETING = {"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}
Pair = tuple[Qmp, socket.socket]
EVENT = {"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}}


def line(*messages: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(message).encode() + b"\r\n" for message in messages)


@pytest.fixture
def pair() -> Iterator[Pair]:
    """A client that has done its greeting, and the other end."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Qmp(ours, time.monotonic), theirs


def test_a_reply_is_matched_by_its_id_and_events_before_it_are_passed_over(pair: Pair) -> None:
    qmp, qemu = pair
    qemu.sendall(
        line(
            EVENT,
            {"return": "stale", "id": 99},
            {"event": "STOP"},
            {"return": {"status": "running"}, "id": 1},
        )
    )
    assert qmp.execute("query-status") == {"status": "running"}
    assert json.loads(qemu.recv(1000)) == {"execute": "query-status", "id": 1}


def test_arguments_are_sent_and_ids_go_on(pair: Pair) -> None:
    qmp, qemu = pair
    qemu.sendall(line({"return": "a", "id": 1}, {"return": "b", "id": 2}))
    assert qmp.execute("human-monitor-command", {"command-line": "info usernet"}) == "a"
    assert qmp.execute("stop") == "b"
    requests = [json.loads(text) for text in qemu.recv(1000).splitlines()]
    assert requests[0]["arguments"] == {"command-line": "info usernet"} and requests[1]["id"] == 2


@pytest.mark.parametrize("size", [1, 2, 7, 10_000], ids=lambda size: f"{size} bytes at a time")
def test_messages_may_be_split_and_merged_anywhere(pair: Pair, size: int) -> None:
    qmp, qemu = pair
    text = line(EVENT, {"return": "\u00e4" * 50, "id": 1}, EVENT)

    def send() -> None:
        for start in range(0, len(text), size):
            qemu.sendall(text[start : start + size])

    sender = threading.Thread(target=send)
    sender.start()
    assert qmp.execute("x") == "\u00e4" * 50
    sender.join()


def test_a_reply_larger_than_any_buffer_is_read(pair: Pair) -> None:
    qmp, qemu = pair
    sender = threading.Thread(
        target=qemu.sendall, args=(line({"return": "x" * 1_000_000, "id": 1}),)
    )
    sender.start()
    assert len(qmp.execute("x")) == 1_000_000
    sender.join()


@pytest.mark.parametrize(
    "sent, says",
    [
        (
            line({"error": {"class": "GenericError", "desc": "no such device"}, "id": 1}),
            "no such device",
        ),
        (line({"error": {}, "id": 1}), "x: "),
        (line({"error": "bare", "id": 1}), "bare"),
        (b"QEMU 7.2 monitor\r\n", "QMP message"),
        (b"\xff\xfe\x00\r\n", "QMP message"),
        (b"[1, 2]\r\n", "QMP message"),
        (b"\r\n", "QMP message"),
        (line({"id": 1}), "without"),
    ],
    ids=[
        "refused",
        "no words",
        "bare words",
        "human monitor",
        "bytes",
        "a list",
        "empty line",
        "nothing returned",
    ],
)
def test_a_bad_answer_is_an_error_that_says_so(pair: Pair, sent: bytes, says: str) -> None:
    qmp, qemu = pair
    qemu.sendall(sent)
    with refused(QmpError, says):
        qmp.execute("x")


@pytest.mark.parametrize("sent", [b"", line(EVENT), line(EVENT)[:9], b'{"return": 1, "id": 1}'])
def test_an_end_of_file_anywhere_is_an_error(pair: Pair, sent: bytes) -> None:
    qmp, qemu = pair
    qemu.sendall(sent)
    qemu.shutdown(socket.SHUT_WR)
    with pytest.raises(QmpError, match="closed"):
        qmp.execute("x")


def test_a_monitor_that_has_gone_is_an_error(pair: Pair) -> None:
    qmp, qemu = pair
    qemu.close()
    with pytest.raises(QmpError):
        qmp.execute("x")


def test_a_reset_is_an_error() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as ours,
    ):
        theirs, _ = server.accept()
        qmp = Qmp(ours, time.monotonic)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        with pytest.raises(QmpError):
            qmp.execute("x")
            qmp.execute("x")


@pytest.mark.parametrize(
    "sent", [b"", line(EVENT), b'{"half": '], ids=["nothing", "an event", "half a line"]
)
def test_silence_is_an_error_by_its_deadline(pair: Pair, sent: bytes) -> None:
    qmp, qemu = pair
    qemu.sendall(sent)
    late = threading.Timer(60, qemu.sendall, [line({"return": "late", "id": 1})])
    late.start()
    try:
        with refused(QmpError, "in time"):
            qmp.execute("x", timeout=0.05)
    finally:
        late.cancel()


class Noting:
    """A socket that keeps how long it was told to wait."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.waits: list[float] = []

    def settimeout(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.sock.settimeout(seconds)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sock, name)


def test_no_wait_is_longer_than_what_is_left_of_its_time() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        noting = Noting(ours)
        theirs.sendall(line({"return": {}, "id": 1}))
        Qmp(noting, time.monotonic).execute("x", timeout=4.5)
    assert len(noting.waits) > 1 and max(noting.waits) <= 4.5


def test_events_without_end_do_not_hold_a_deadline_up() -> None:
    """Each comes a little later; the answer comes long after the deadline."""
    ours, theirs = socket.socketpair()
    moments = itertools.count()
    with ours, theirs:
        qmp = Qmp(ours, lambda: next(moments) * 0.01)
        theirs.sendall(line(*[EVENT] * 200, {"return": "late", "id": 1}))
        with refused(QmpError, "in time"):
            qmp.execute("x", timeout=0.2)


def flooded(qmp: Qmp, qemu: socket.socket, piece: bytes, says: str, timeout: float) -> int:
    """How many bytes an exchange takes in before it fails, with a monitor that sends a piece for ever."""
    taken = 0

    def flood() -> None:
        nonlocal taken
        with contextlib.suppress(OSError):  # the other end has had enough
            while True:
                taken += qemu.send(piece)

    sender = threading.Thread(target=flood)
    sender.start()
    try:
        with refused(QmpError, says):
            qmp.execute("x", timeout=timeout)
    finally:
        qmp.sock.shutdown(socket.SHUT_RDWR)
        sender.join()
    return taken


def test_a_line_without_end_is_given_up_at_its_bound(pair: Pair) -> None:
    """However much time there is. (21.4.3)"""
    assert flooded(*pair, b"x" * 65536, "longer", timeout=60) < 3 * QMP_LINE


@pytest.mark.parametrize("piece", [b"x" * 100, line(EVENT)], ids=["a line", "events"])
def test_a_flood_ends_at_the_deadline(piece: bytes) -> None:
    """One deadline for an exchange, however much arrives: a look at the clock is a second. (21.4.3)"""
    ours, theirs = socket.socketpair()
    moments = itertools.count()
    with ours, theirs:
        qmp = Qmp(ours, lambda: next(moments))
        flooded(qmp, theirs, piece, "in time", timeout=5)
        assert next(moments) < 12


ODD = [{}, None, [], [{"status": "running"}], "running", 1, {"status": None}, {"status": {}}]


@pytest.mark.parametrize("answer", [*ODD, {"status": "\x1b[2J"}, {"status": "a" * 99}], ids=repr)
def test_an_odd_answer_is_no_run_state(answer: object) -> None:
    """What a monitor answers is checked for its shape. (21.4.3)"""
    with pytest.raises(QmpError):
        run_state(answer)


@pytest.mark.parametrize("answer", [{}, None, [], 1])
def test_an_odd_answer_about_the_network_is_none(
    monkeypatch: pytest.MonkeyPatch, host: Clocked, tmp_path: Path, answer: object
) -> None:
    """(21.4.3)"""
    monkeypatch.setattr(ycluster, "ask_qemu", lambda *_: answer)
    with pytest.raises(QmpError):
        ycluster.ask_usernet(host, ycluster.Files(tmp_path, "demo"))


def test_odd_ports_are_none() -> None:
    row = "  TCP[HOST_FORWARD]  12  127.0.0.1 {}  10.0.2.15 22  0 0\n"
    assert chosen_ports(row.format(40001)) == {22: 40001}
    assert chosen_ports(row.format(99999) + row.format("9" * 5000)) == {}


def test_a_number_of_a_million_digits_takes_no_time(pair: Pair) -> None:
    """It is read as a float, of any length. (21.4.3)"""
    qmp, qemu = pair
    text = b'{"id": ' + b"9" * 1_000_000 + b"}\n"
    sender = threading.Thread(target=qemu.sendall, args=(text + line({"return": {}, "id": 1}),))
    sender.start()
    assert qmp.execute("x") == {}
    sender.join()


def test_a_late_reply_to_an_earlier_command_is_not_taken_for_this_ones(pair: Pair) -> None:
    qmp, qemu = pair
    with pytest.raises(QmpError):
        qmp.execute("slow", timeout=0.01)
    qemu.sendall(line({"return": "late", "id": 1}, {"return": "mine", "id": 2}))
    assert qmp.execute("x") == "mine"


# --- connect


class Monitor:
    """A unix socket server that answers one client: a script of bytes, each sent once a line has been read."""

    def __init__(self, path: Path, *script: bytes) -> None:
        self.script, self.heard = script, b""
        self.server = socket.socket(socket.AF_UNIX)
        here = Path.cwd()
        os.chdir(path.parent)  # a path of more than 107 bytes can't be bound otherwise
        self.server.bind(path.name)
        os.chdir(here)
        self.server.listen()
        self.thread = threading.Thread(target=self.serve, daemon=True)

    def __enter__(self) -> Monitor:
        self.thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.thread.join(10)
        self.server.close()
        assert not self.thread.is_alive()

    def serve(self) -> None:
        client, _ = self.server.accept()
        with client:
            for number, answer in enumerate(self.script):
                if number:
                    self.heard += client.recv(1000)
                client.sendall(answer)


@pytest.fixture
def far(tmp_path: Path) -> Path:
    """A socket path of more than the 107 bytes that the kernel takes."""
    deep = tmp_path / ("d" * 100) / "e"
    deep.mkdir(parents=True)
    return deep / "demo.qmp"


def test_a_socket_path_may_be_longer_than_107_bytes(far: Path) -> None:
    assert len(str(far)) > 107
    answers = (
        line(GREETING),
        line(EVENT, {"return": {}, "id": 1}),
        line({"return": {"status": "running"}, "id": 2}),
    )
    with Monitor(far, *answers) as monitor, Qmp.connect(far, time.monotonic, timeout=5) as qmp:
        assert qmp.execute("query-status") == {"status": "running"}
    assert b"qmp_capabilities" in monitor.heard


@pytest.mark.parametrize(
    "script",
    [
        [],
        [b""],
        [line(GREETING)[:20]],
        [line({"hello": 1})],
        [b"garbage\n"],
        [line(GREETING), b""],
        [line(GREETING), line({"error": {"desc": "no"}, "id": 1})],
    ],
    ids=[
        "closed",
        "closed at once",
        "half a greeting",
        "no greeting",
        "garbage",
        "closed after it",
        "refused",
    ],
)
def test_a_connect_that_fails_names_the_socket(far: Path, script: list[bytes]) -> None:
    told = refused(QmpError, far, "does not answer")
    with Monitor(far, *script), told, Qmp.connect(far, time.monotonic, timeout=5):
        pass


def test_a_monitor_that_is_taken_by_another_client_is_an_error_by_its_deadline(
    tmp_path: Path,
) -> None:
    """QMP serves one client: the second one's connect succeeds, and no greeting comes."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "q"))
        server.listen()
        with (
            refused(QmpError, "in time"),
            Qmp.connect(tmp_path / "q", time.monotonic, timeout=0.05),
        ):
            pass


@pytest.mark.parametrize("name", ["none", "dead", "missing/q"])
def test_a_socket_that_nobody_listens_on_is_an_error(tmp_path: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead"))
    with (
        pytest.raises(QmpError, match=name),
        Qmp.connect(tmp_path / name, time.monotonic, timeout=1),
    ):
        pass
