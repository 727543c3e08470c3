"""maxIdle on the real Debian guest, by each timer: what is use keeps a cluster, and it ends soon after the last of it."""

from __future__ import annotations

import contextlib
import shlex
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import pytest
from conftest import Cluster, moment, wait_for

MAX_IDLE = 60  # seconds; looks are a minute apart at least
TIMERS = ("systemd", "at", "watcher")


def with_max_idle(config: str) -> str:
    ports = 'portForwards: [{guest: "8080", host: "0"}]'
    config = config.replace("portForwards: []", ports)
    # Of a busy host a guest's loop gets a fraction of a CPU, and what counts is what it got.
    limits = f"  maxIdle: {MAX_IDLE}s\n  idleCpu: 8\n"
    return config.replace("  onExpiry: stop\n", f"  onExpiry: stop\n{limits}")


def idle(cluster: Cluster) -> dict[str, Any]:
    return cluster.sidecar().get("idle", {})


@contextlib.contextmanager
def ssh_session(cluster: Cluster) -> Iterator[None]:
    """A login that does nothing; by ssh itself, as `ycluster ssh` is a verb, which counts by itself."""
    argv = shlex.split(cluster.run("ssh", "--print").stdout)
    session = subprocess.Popen([*argv, "sleep 1000"], stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        session.terminate()
        session.wait()


@contextlib.contextmanager
def open_connection(cluster: Cluster) -> Iterator[None]:
    """A connection through a forwarded port, on which nothing is said."""
    [port] = [forward["host"] for forward in cluster.status()["portForwards"]]
    with socket.create_connection(("127.0.0.1", port)):
        yield


@contextlib.contextmanager
def busy_loop(cluster: Cluster) -> Iterator[None]:
    cluster.run(
        "ssh", "--", "nohup sh -c 'while :; do :; done' >/dev/null 2>&1 & echo $! >busy.pid"
    )
    try:
        yield
    finally:
        cluster.run("ssh", "--", "kill $(cat busy.pid)")


USES: dict[str, Callable[[Cluster], contextlib.AbstractContextManager[None]]] = {
    "connection": open_connection,
    "cpu": busy_loop,
    "ssh": ssh_session,
}


def live_and_end(cluster: Cluster, timer: str) -> None:
    """Each kind of use is seen by a look, and keeps the cluster; when none is left, it ends."""
    # 1F90 is 8080: until it listens, a connection is taken by QEMU, and then closed.
    serve = "nohup python3 -m http.server 8080 >/dev/null 2>&1 &"
    cluster.run("ssh", "--", f"{serve} until grep -q :1F90 /proc/net/tcp; do sleep 0.2; done")
    turn = TIMERS.index(timer)
    kinds = list(USES)
    for kind in kinds[turn:] + kinds[:turn]:  # not all guests are busy at the same time
        wanted = "connection" if kind == "ssh" else kind
        with USES[kind](cluster):
            began = time.time()

            def is_seen(wanted: str = wanted, began: float = began) -> bool:
                assert cluster.qemu(), f"it was ended in use, by {wanted}"
                known = idle(cluster)
                return known["by"] == wanted and moment(known["seen"]) > began

            wait_for(f"a look that sees {kind}", is_seen)
    ended = time.time()
    wait_for("the end of the unused cluster", lambda: not cluster.qemu())
    assert time.time() - ended >= MAX_IDLE - 1  # its moments are whole seconds
    reaped = wait_for("its record", lambda: cluster.sidecar().get("reaped"))
    assert reaped["cause"] == "maxIdle"
    assert reaped["how"] == "guest-shutdown"
    assert reaped["by"] == timer
    looks = [event for event in cluster.events() if event["event"] in ("used", "unused")]
    assert looks[-1]["event"] == "unused"


@pytest.mark.usefixtures("user_manager", "atd")
def test_a_cluster_lives_while_it_is_used_and_ends_soon_after_by_each_timer(
    woken: Callable[..., Cluster],
) -> None:
    with ThreadPoolExecutor(len(TIMERS)) as pool:
        lives = []
        for timer in TIMERS:
            cluster = woken(f"idle-{timer}", with_max_idle, YCLUSTER_TIMER=timer)
            lives.append(pool.submit(live_and_end, cluster, timer))  # its time has begun
        for life in lives:
            life.result()
