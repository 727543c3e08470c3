"""The Debian guest as the HOST: systemd is PID 1 there, logins and reboots are real, and anybody may set the clock.

There is no QEMU in it. A stand-in process takes the VM's place: it has a pidfile in its argv, answers QMP, and ends at the
power button. dist/ycluster is all that is installed. The tests go in order over one boot and one reboot.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import Any, Callable

import pytest
from conftest import Cluster, wait_for

STAND_IN = """\
import json, os, socket, sys
base = sys.argv[2][:-4]
with open(base + ".pid", "w") as file:
    file.write(str(os.getpid()))
if os.path.exists(base + ".qmp"):
    os.unlink(base + ".qmp")
server = socket.socket(socket.AF_UNIX)
server.bind(base + ".qmp")
server.listen()
while True:
    stream = server.accept()[0].makefile("rw")
    print('{"QMP": {}}', file=stream, flush=True)
    for line in stream:
        asked = json.loads(line)
        print(json.dumps({"return": {"status": "running"}, "id": asked["id"]}), file=stream, flush=True)
        if asked["execute"] == "system_powerdown":
            os._exit(0)
"""
CACHE = "/home/dev/.cache/y-cluster-qemu"
# A cluster whose VM is started just now, and a deadline near enough to wait for; no verb shortens one.
WRITE = """\
import json, os, pathlib, time
def moment(epoch):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
sidecar = pathlib.Path.home() / ".cache/y-cluster-qemu/demo.json"
kept = json.loads(sidecar.read_text()) if sidecar.exists() else {{
    "version": 1, "name": "demo", "context": "demo", "lifetime": "1h", "ranWith": "tcg", "onExpiry": "{on_expiry}",
    "bootId": open("/proc/sys/kernel/random/boot_id").read().strip(),
    "bootedAt": moment(time.time() - float(open("/proc/uptime").read().split()[0])),
}}
beside = sidecar.with_suffix(".edited")
beside.touch(0o600)
beside.write_text(json.dumps({{**kept, "expiresAt": moment(time.time() + {seconds})}}))
beside.replace(sidecar)
"""
SOON = 60  # seconds: time enough for a login that arms it, on a busy machine, too


@dataclass
class RealHost:
    """A host that one logs in to: as root, and as `dev`, an ordinary user with a session of its own."""

    vm: Cluster
    port: int

    def root(self, script: str, code: int | None = 0) -> str:
        argv = [str(self.vm.program.path), "ssh", "-c", str(self.vm.directory), "--", "sudo sh"]
        done = subprocess.run(
            argv, input=script, text=True, capture_output=True, env=self.vm.program.environ(), timeout=900
        )  # fmt: skip
        print(f"root# {script}\n{done.stdout}{done.stderr}")
        assert code is None or done.returncode == code, done.stderr
        return done.stdout.strip()

    def login(self, command: str, code: int | None = 0, stdin: str = "") -> str:
        """A login of dev's from its beginning to its end."""
        argv = [
            "ssh",
            "-F",
            "/dev/null",
            "-i",
            str(self.vm.file("-ssh")),
            "-p",
            str(self.port),
            "-o",
            "BatchMode=yes",
        ]
        argv += [
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ]
        done = subprocess.run(
            [*argv, "dev@127.0.0.1", command],
            input=stdin,
            text=True,
            capture_output=True,
            timeout=900,
        )
        print(f"dev$ {command}\n{done.stdout}{done.stderr}")
        assert code is None or done.returncode == code, done.stderr
        return done.stdout.strip()

    def fresh(self, on_expiry: str = "stop") -> None:
        """A cluster of dev's, with an hour left and no timer, whose VM is a stand-in that a system service runs."""
        self.login(
            f"ycluster lifetime disarm; rm -rf {CACHE}; mkdir -p -m 700 {CACHE}; echo kept >{CACHE}/demo.qcow2; python3",
            stdin=WRITE.format(seconds=3600, on_expiry=on_expiry),
        )
        self.root(
            "systemctl stop stand-in; systemctl reset-failed stand-in\n"
            f"systemd-run -q --collect --uid=dev --unit=stand-in python3 /home/dev/stand-in.py -pidfile {CACHE}/demo.pid"
        )
        self.wait_within(f"[ -S {CACHE}/demo.qmp ]")

    def status(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.login("ycluster lifetime status -o json"))
        return shown

    def arm(self, within: int = 0, beforehand: str = "true") -> dict[str, Any]:
        """What enforces the deadline once a login has armed it, `within` seconds of it."""
        sooner = WRITE.format(seconds=within, on_expiry="") if within else ""
        asked = f"{beforehand}; python3 - && ycluster lifetime arm >&2 && ycluster lifetime status -o json"
        guard: dict[str, Any] = json.loads(self.login(asked, stdin=sooner))["enforcement"]
        assert guard["armed"], guard
        return guard

    def log_out_for_good(self) -> None:
        """Until the user's systemd has ended, which is some seconds after the last logout."""
        self.wait_within("[ $(systemctl is-active user@$(id -u dev)) = inactive ]")

    def wait_within(self, condition: str) -> None:
        """Wait in the guest, by one login: each takes a second of a CPU that is emulated."""
        self.root(f"for i in $(seq 240); do {condition} && exit; sleep 1; done; exit 1")

    def wait_for_the_reap(self, by: str) -> None:
        """Watched as root: a login of dev's would bring its systemd back."""
        self.wait_within(f'grep -q "\\"by\\": \\"{by}\\"" {CACHE}/demo.json')
        self.wait_within("[ $(systemctl is-active stand-in) = inactive ]")


@pytest.fixture(scope="module")
def host(woken: Callable[..., Cluster]) -> RealHost:
    vm = woken("real-host", YCLUSTER_TIMER="watcher")
    made = RealHost(vm, vm.status()["sshPort"])
    made.root(
        "useradd -m -s /bin/bash dev && mkdir -m 700 /home/dev/.ssh && cp /home/ystack/.ssh/authorized_keys /home/dev/.ssh"
    )
    made.root("chown -R dev: /home/dev/.ssh")
    with vm.program.path.open("rb") as program:
        argv = [
            str(vm.program.path),
            "ssh",
            "-c",
            str(vm.directory),
            "--",
            "sudo tee /usr/local/bin/ycluster >/dev/null",
        ]
        subprocess.run(argv, stdin=program, env=vm.program.environ(), check=True)
    made.root("chmod 755 /usr/local/bin/ycluster")
    made.login("cat >stand-in.py", stdin=STAND_IN)
    return made


def test_the_one_file_serves_an_appliance_host(host: RealHost) -> None:
    host.login(
        "mkdir c && cat >c/y-cluster-provision.yaml",
        stdin="provider: docker\nlifetime: {maxRun: 8h}\n",
    )
    assert (
        host.login("ycluster lifetime gcp-flags -c c")
        == "--max-run-duration=28800s --instance-termination-action=DELETE"
    )
    assert ": ok: docker cluster y-cluster, lifetime 8h" in host.login("ycluster config check -c c")


def test_without_lingering_at_reaps_after_the_logout_and_its_job_keeps_no_secret(
    host: RealHost,
) -> None:
    host.fresh()
    guard = host.arm(SOON, "export SECRET=hunter2 KUBECONFIG=/nowhere")
    assert guard["backend"] == "at" and "enable-linger" in guard["improve"]
    assert host.root("grep -l hunter2 /var/spool/cron/atjobs/*; true") == ""
    host.log_out_for_good()
    host.wait_for_the_reap("at")


def test_without_lingering_and_atd_the_watcher_reaps_after_the_logout(host: RealHost) -> None:
    host.fresh()
    host.root("systemctl stop atd")
    assert host.arm(SOON)["backend"] == "watcher"
    host.root("mv /usr/local/bin/ycluster /root/")  # it runs its own copy
    try:
        host.wait_for_the_reap("watcher")
    finally:
        host.root("mv /root/ycluster /usr/local/bin/; systemctl start atd")


def test_a_stopped_atd_is_noticed_and_the_next_command_arms_again(host: RealHost) -> None:
    host.fresh()
    assert host.arm()["backend"] == "at"
    host.root("systemctl stop atd")
    assert not host.status()["enforcement"]["armed"]
    assert "NONE" in host.login("ycluster lifetime status")
    host.login("ycluster lifetime reap --all")
    guard = host.status()["enforcement"]
    assert (guard["backend"], guard["armed"]) == ("watcher", True)
    host.root("systemctl start atd")


def test_with_lingering_systemd_reaps_after_the_logout(host: RealHost) -> None:
    host.root("loginctl enable-linger dev")
    host.fresh()
    assert host.arm(SOON)["backend"] == "systemd"
    host.wait_for_the_reap("systemd")


def test_a_stopped_user_manager_is_noticed_and_the_next_command_arms_again(host: RealHost) -> None:
    host.fresh()
    assert host.arm()["backend"] == "systemd"
    host.root("systemctl stop user@$(id -u dev)")
    assert not host.status()["enforcement"]["armed"]
    host.login("ycluster lifetime reap --all")
    assert host.status()["enforcement"]["armed"]
    host.root("systemctl start user@$(id -u dev)")


@pytest.mark.parametrize("timer", ["systemd", "watcher"])
def test_a_clock_that_is_set_moves_the_deadline_along(host: RealHost, timer: str) -> None:
    host.fresh()
    host.arm(beforehand=f"export YCLUSTER_TIMER={timer}")
    for step in ("+3 hours", "-6 hours", "+3 hours"):
        host.root(f'date -s "{step}" >/dev/null')
        shown = host.status()
        assert shown["state"] == "running" and shown["enforcement"]["backend"] == timer
        assert 1800 < shown["remainingSeconds"] <= 3600
    if (
        timer == "systemd"
    ):  # it fired when the clock was set, and was armed anew for the deadline that had moved along
        wait_for(
            "the right time",
            lambda: host.status()["enforcement"]["nextFire"] == host.status()["expiresAt"],
        )


def test_after_a_reboot_nothing_is_torn_down_and_whoever_has_the_pid_now_is_left_alone(
    host: RealHost,
) -> None:
    host.fresh(on_expiry="teardown")
    before = host.root(
        "touch /etc/cloud/cloud-init.disabled; cat /proc/sys/kernel/random/boot_id"
    )  # which takes its time
    assert host.arm(SOON)["backend"] == "systemd"
    host.root("systemctl reboot", None)

    def after() -> bool:
        done = host.vm.run("ssh", "--", "cat /proc/sys/kernel/random/boot_id", code=None)
        return done.returncode == 0 and done.stdout.strip() not in ("", before)

    wait_for("the next boot", after, 900)
    host.root(
        f"systemd-run --quiet --uid=dev --unit=innocent sleep infinity; systemctl show -P MainPID innocent >{CACHE}/demo.pid"
    )
    assert host.status()["state"] == "stopped"
    wait_for("the deadline", lambda: (host.status()["remainingSeconds"] or 0) <= 0)
    host.login("ycluster lifetime reap")
    assert host.root("systemctl is-active innocent") == "active"
    assert host.root(f"cat {CACHE}/demo.qcow2") == "kept"
    assert host.status()["expiresAt"] == ""
