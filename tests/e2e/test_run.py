"""`ycluster run` and `lifetime hold` on the real Debian guest: what CI and agents do, and how it ends."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Cluster, wait_for


@pytest.fixture(scope="module")
def suspended(woken: Callable[..., Cluster]) -> Cluster:
    """A cluster that was suspended, and so goes on in seconds; it is paused by an expiry, which costs as little."""
    cluster = woken(
        "runs",
        lambda config: config.replace("onExpiry: stop", "onExpiry: pause"),
        YCLUSTER_TIMER="watcher",
    )
    cluster.run("suspend")
    return cluster


def started(cluster: Cluster, *argv: object, **options: Any) -> subprocess.Popen[str]:
    words = [str(cluster.program.path), *map(str, argv)]
    return subprocess.Popen(
        words, cwd="/", env=cluster.program.environ(YCLUSTER_TIMER="watcher"), text=True, **options
    )


def holders(cluster: Cluster) -> list[int]:
    return [hold["pid"] for hold in cluster.status()["holds"]]


def test_run_wakes_a_cluster_runs_a_command_with_it_and_lets_it_sleep_again(
    suspended: Cluster,
) -> None:
    # This cacheDir has a space in its name: $YCLUSTER_SSH has quotes then, which `eval` takes away.
    script = (
        "echo $YCLUSTER_NAME $YCLUSTER_SSH_PORT\n"
        'eval "$YCLUSTER_SSH hostname" </dev/null\n'
        "umask; pwd; cat"
    )
    argv = [suspended.program.path, "run", "-c", suspended.directory, "--", "sh", "-c", script]
    env = suspended.program.environ(YCLUSTER_TIMER="watcher")
    done = subprocess.run(
        [str(word) for word in argv], env=env, cwd="/tmp", input="given\n", text=True, capture_output=True,
        umask=0o027,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    name_and_port, host_name, umask, folder, given = done.stdout.splitlines()
    assert name_and_port == f"runs {suspended.status()['sshPort']}"
    assert (host_name, umask, folder, given) == ("booted", "0027", "/tmp", "given")
    assert suspended.status()["state"] == "suspended"


def test_the_status_of_the_command_is_that_of_run(suspended: Cluster) -> None:
    done = suspended.run("run", "--", "sh", "-c", "exit 7", code=7)
    assert done.stdout == ""
    assert suspended.status()["state"] == "suspended"


def test_a_command_that_cannot_be_started_is_told_apart_and_undoes_as_much(
    suspended: Cluster, tmp_path: Path
) -> None:
    command = tmp_path / "command"
    command.write_text("#!/no/such/shell\n")
    command.chmod(0o755)
    suspended.run("run", "--", command, code=127)
    assert suspended.status()["state"] == "suspended"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_the_command_and_the_clean_up_still_runs(
    suspended: Cluster, tmp_path: Path, number: signal.Signals
) -> None:
    told = tmp_path / "told"
    script = f"trap 'echo got >>{told}; exit 9' INT TERM; touch {told}; while :; do sleep 0.1; done"
    running = started(suspended, "run", "-c", suspended.directory, "--", "sh", "-c", script)
    wait_for("the command", told.exists)
    running.send_signal(number)
    assert running.wait(300) == 9
    assert told.read_text() == "got\n"
    assert suspended.status()["state"] == "suspended"


def test_run_that_is_killed_leaves_the_deadline_and_no_hold(
    suspended: Cluster, tmp_path: Path
) -> None:
    up = tmp_path / "up"
    running = started(
        suspended, "run", "-c", suspended.directory, "--max-run", "50m", "--",
        "sh", "-c", f"touch {up}; exec sleep 1000",
    )  # fmt: skip
    wait_for("the command", up.exists)
    assert holders(suspended) == [running.pid]
    running.kill()
    running.wait()
    shown = suspended.status()
    assert (shown["state"], shown["maxRun"], shown["holds"]) == ("running", "50m", [])
    assert 0 < shown["remainingSeconds"] <= 3000 and shown["armed"]


def test_a_cluster_that_ran_before_runs_on_and_the_other_ends_can_be_asked_for(
    suspended: Cluster,
) -> None:
    assert suspended.status()["state"] == "running"
    suspended.run("run", "--", "true")
    assert suspended.status()["state"] == "running"
    suspended.run("pause")
    suspended.run("run", "--", "true")
    assert suspended.status()["state"] == "paused"
    suspended.run("run", "--then", "leave", "--", "true")
    assert suspended.status()["state"] == "running"


def test_of_two_at_once_the_one_that_ends_first_leaves_the_cluster_to_the_other(
    suspended: Cluster, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    other = started(
        suspended, "lifetime", "hold", "-c", suspended.directory, "--", "sh", "-c",
        f"until [ -e {go} ]; do sleep 0.1; done",
    )  # fmt: skip
    wait_for("the other's hold", lambda: holders(suspended))
    done = suspended.run("run", "--then", "suspend", "--", "true")
    assert "left running" in done.stderr
    assert suspended.status()["state"] == "running"
    go.touch()
    assert other.wait(60) == 0


def held_past_its_deadline(cluster: Cluster, *options: str) -> subprocess.Popen[str]:
    """A hold on a cluster that is overdue, and held to be so by a reap."""
    cluster.run("lifetime", "set", "1h", YCLUSTER_TIMER="watcher")
    holder = started(
        cluster, "lifetime", "hold", "-c", cluster.directory, *options, "--", "sleep", "1000"
    )
    wait_for("its hold", lambda: holders(cluster) == [holder.pid])
    cluster.set_deadline(3)
    wait_for("a reap that finds it held", lambda: cluster.sidecar().get("retryAt"))
    assert cluster.status()["state"] == "running"
    return holder


@pytest.mark.parametrize("end", ["killed", "its time is over"])
def test_nothing_expires_while_it_is_held_and_soon_after(suspended: Cluster, end: str) -> None:
    if suspended.status()["state"] == "paused":
        suspended.run("resume", YCLUSTER_TIMER="watcher")
    options = () if end == "killed" else ("--at-most", "60s")
    holder = held_past_its_deadline(suspended, *options)
    before = len(suspended.happened())
    if end == "killed":
        first_retry = suspended.sidecar()["retryAt"]
        wait_for(
            "another reap that finds it held", lambda: suspended.sidecar()["retryAt"] != first_retry
        )
        assert suspended.status()["state"] == "running"
        holder.kill()
    wait_for("the expiry", lambda: "reaped" in suspended.happened()[before:])
    assert suspended.status()["state"] == "paused"
    happened = [event for event in suspended.happened()[before:] if event in ("warned", "reaped")]
    assert happened == ["warned", "reaped"]
    holder.kill()
    holder.wait()


def test_hold_is_its_command(suspended: Cluster) -> None:
    """Its pid, its status and its signals are the command's, so that what is killed holds nothing."""
    suspended.run("resume", YCLUSTER_TIMER="watcher")
    holder = started(
        suspended, "lifetime", "hold", "-c", suspended.directory, "--", "sh", "-c", "echo $$; exec sleep 1000",
        stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert int(holder.stdout.readline()) == holder.pid
    holder.terminate()
    assert holder.wait(60) == -signal.SIGTERM
    suspended.program.run(
        "lifetime", "hold", "-c", suspended.directory, "--", "sh", "-c", "exit 3", code=3
    )
    assert holders(suspended) == []


def test_run_makes_a_cluster_and_leaves_nothing_of_it(
    new_cluster: Callable[..., Cluster], guest_image: Path
) -> None:
    made = new_cluster("made-for-one-run", guest_image)
    began = time.time()
    done = made.program.run(
        "run", "-c", made.directory, "--", "echo", "hi", YCLUSTER_TIMER="watcher"
    )
    assert done.stdout == "hi\n", time.time() - began
    assert [path.name for path in made.cache.iterdir()] == ["images"]
    assert not made.qemu()
