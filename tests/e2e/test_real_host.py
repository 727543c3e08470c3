"""The Debian guest as the HOST: systemd is PID 1 there, logins and reboots are real, and anybody may set the clock.

dist/ycluster is all that is installed. A stand-in process takes the VM's place: it has a pidfile in its argv, answers QMP, and
ends at the power button. Only a suspend needs the real one: this machine's QEMU, with a guest of a boot sector. The tests go in
order over one boot and one reboot.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Cluster, wait_for
from sabotage import GREETING, obedient_image

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
import fcntl, json, os, pathlib, time
def moment(epoch):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(epoch))
sidecar = pathlib.Path.home() / ".cache/y-cluster-qemu/demo.json"
lock = open(sidecar.with_suffix(".lock"), "a")  # as a verb, against a timer that has read what is changed here
fcntl.flock(lock, fcntl.LOCK_EX)
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
# A cluster of a real QEMU, and a shell line for it: a verb waits for an ssh that never comes, so it is killed.
SMALL = """\
name: small
memory: 64
cpus: 1
cpuModel: qemu64
diskSize: 64M
sshPort: 0
cacheDir: /home/dev/of-small
image: /home/dev/small.img
k3s: {install: none}
lifetime: {maxRun: 1h, warn: "0", onExpiry: suspend}
"""
UNTIL = "setsid -f ycluster {verb} -c small </dev/null >small.log 2>&1; for i in $(seq 240); do {until} && break; sleep 1; done; pkill -f '^[^ ]*python.*ycluster {verb}'; cat small.log; {until}"
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
            f"ycluster lifetime disarm --name demo; rm -rf {CACHE}; mkdir -p -m 700 {CACHE}; echo kept >{CACHE}/demo.qcow2; python3",
            stdin=WRITE.format(seconds=3600, on_expiry=on_expiry),
        )
        self.root(
            "systemctl stop stand-in; systemctl reset-failed stand-in\n"
            f"systemd-run -q --collect --uid=dev --unit=stand-in python3 /home/dev/stand-in.py -pidfile {CACHE}/demo.pid"
        )
        self.wait_within(f"[ -S {CACHE}/demo.qmp ]")

    def put(self, content: bytes, command: str) -> None:
        """Give root's command there this as its stdin."""
        argv = [str(self.vm.program.path), "ssh", "-c", str(self.vm.directory), "--"]
        environ = self.vm.program.environ()
        subprocess.run([*argv, f"sudo {command}"], input=content, env=environ, check=True)

    def shown(self, name: str) -> dict[str, Any]:
        """What `status` shows of a cluster."""
        shown: dict[str, Any] = json.loads(self.login(f"ycluster status --name {name} -o json"))
        return shown

    def status(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(
            self.login("ycluster lifetime status --name demo -o json")
        )
        return shown

    def arm(self, within: int = 0, beforehand: str = "true") -> dict[str, Any]:
        """What enforces the deadline once a login has armed it, `within` seconds of it."""
        sooner = WRITE.format(seconds=within, on_expiry="") if within else ""
        if within:  # what takes long in this guest, a watcher's start, is done before
            beforehand += "; ycluster lifetime arm --name demo >&2"
        asked = f"{beforehand}; python3 - && ycluster lifetime arm --name demo >&2 && ycluster lifetime status --name demo -o json"
        guard: dict[str, Any] = json.loads(self.login(asked, stdin=sooner))["enforcement"]
        assert guard["armed"], guard
        return guard

    def unwatch(self) -> None:
        """Kill the watcher, which would be the first where a timer takes long to start its reap."""
        self.root("pkill -KILL -u dev -f 'lifetime watch'; true")

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


def install_qemu(host: RealHost, place: Path) -> None:
    """Put this machine's QEMU there, with all the libraries that it loads, down to the C library's."""
    qemu, qemu_img = (str(shutil.which(name)) for name in ("qemu-system-x86_64", "qemu-img"))
    modules = Path("/usr/lib/x86_64-linux-gnu/qemu")
    data = [Path("/usr/share", name) for name in ("qemu", "seabios")] + [Path("/usr/lib/ipxe/qemu")]
    loaded = [qemu, qemu_img, *modules.glob("accel-*.so")]
    listed = subprocess.run(["ldd", *loaded], capture_output=True, text=True, check=True).stdout
    libraries = set(re.findall(r"(?m)^\t(?:.* => )?(/\S+)", listed))
    own = place / "opt" / "qemu"
    own.mkdir(parents=True)
    for path in (qemu, qemu_img, *libraries):
        shutil.copy(path, own)
    (loader,) = own.glob("ld-linux*")
    starting = f"exec /opt/qemu/{loader.name} --library-path /opt/qemu /opt/qemu"
    folders = " ".join(f"-L {path}" for path in data)
    wrappers = place / "usr" / "local" / "bin"
    wrappers.mkdir(parents=True)
    for name, options in ((Path(qemu).name, folders), ("qemu-img", "")):
        line = f'export QEMU_MODULE_DIR={modules}\n{starting}/{name} {options} "$@"'
        (wrappers / name).write_text(f"#!/bin/sh\n{line}\n")
        (wrappers / name).chmod(0o755)
    there = [str(path)[1:] for path in (modules, *data) if path.exists()]
    argv = ["tar", "-cz", "-C", str(place), "opt", "usr/local", "-C", "/", *there]
    packed = subprocess.run(argv, capture_output=True, check=True).stdout
    host.put(packed, "tar -xz --no-same-owner -C /")


@pytest.fixture(scope="module")
def host(woken: Callable[..., Cluster]) -> RealHost:
    vm = woken("real-host", YCLUSTER_TIMER="watcher")
    vm.run("lifetime", "extend", "5h")  # one hour is none too long for all of these tests
    made = RealHost(vm, vm.status()["sshPort"])
    made.root(
        "useradd -m -s /bin/bash dev && mkdir -m 700 /home/dev/.ssh && cp /home/ystack/.ssh/authorized_keys /home/dev/.ssh"
    )
    made.root("chown -R dev: /home/dev/.ssh")
    made.put(vm.program.path.read_bytes(), "tee /usr/local/bin/ycluster >/dev/null")
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
    host.unwatch()
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
    assert "NONE" in host.login("ycluster lifetime status --name demo")
    host.login("ycluster lifetime reap --all")
    guard = host.status()["enforcement"]
    assert (guard["backend"], guard["armed"]) == ("watcher", True)
    host.root("systemctl start atd")


def test_with_lingering_systemd_reaps_after_the_logout(host: RealHost) -> None:
    host.root("loginctl enable-linger dev")
    host.fresh()
    assert host.arm(SOON)["backend"] == "systemd"
    host.unwatch()
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


def test_a_deadline_suspends_a_real_guest(host: RealHost, tmp_path: Path) -> None:
    """By systemd, while nobody is logged in. The next tests see what a reboot makes of it. (22)"""
    install_qemu(host, tmp_path)
    image = obedient_image(tmp_path / "small.img").read_bytes()
    host.put(image, "tee /home/dev/small.img >/dev/null")
    host.login("mkdir small && cat >small/y-cluster-provision.yaml", stdin=SMALL)
    greeted = f"grep -qs '{GREETING.decode().strip()}' of-small/small-console.log"
    host.login(UNTIL.format(verb="provision", until=greeted))
    soon = (
        WRITE.format(seconds=20, on_expiry="suspend")
        .replace(".cache/y-cluster-qemu", "of-small")
        .replace("demo", "small")
    )
    host.login("python3 - && ycluster lifetime arm --name small", stdin=soon)
    host.wait_within("[ -e /home/dev/of-small/small.memory ]")
    wait_for("the end of the suspend", lambda: host.shown("small")["state"] == "suspended")
    assert "suspended" in host.login("tail -n 3 ~/.local/state/ycluster/events.jsonl")


def test_after_a_reboot_nothing_is_torn_down_and_whoever_has_the_pid_now_is_left_alone(
    host: RealHost,
) -> None:
    host.fresh(on_expiry="teardown")
    before = host.root(
        "touch /etc/cloud/cloud-init.disabled; cat /proc/sys/kernel/random/boot_id"
    )  # which takes its time
    assert host.arm(3 * SOON)["backend"] == "systemd"
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
    host.login("ycluster lifetime reap --name demo")
    assert host.root("systemctl is-active innocent") == "active"
    assert host.root(f"cat {CACHE}/demo.qcow2") == "kept"
    assert host.status()["expiresAt"] == ""


def test_what_was_suspended_before_the_reboot_goes_on_after_it(host: RealHost) -> None:
    """Nothing has touched its memory, and it is loaded without a boot. (22)"""
    host.login("ycluster lifetime reap --all")
    shown = host.shown("small")
    assert (shown["state"], shown["armed"], shown["expiresAt"]) == ("suspended", False, "")
    size = int(host.login("stat -c %s of-small/small.memory"))
    assert size == shown["suspended"]["bytes"] > 0
    host.login(UNTIL.format(verb="start", until="! [ -e of-small/small.memory ]"))
    wait_for("a guest that runs", lambda: host.shown("small")["state"] == "running")
    shown = host.shown("small")
    assert shown["armed"] and 3000 < shown["remainingSeconds"] <= 3600
    console = host.login("cat of-small/small-console.log")
    assert console.count(GREETING.decode().strip()) == 1, "it was not booted anew"
    assert "guest-shutdown" in host.login("ycluster stop --name small 2>&1"), "it obeys its button"
