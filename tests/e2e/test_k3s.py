"""k3s inside, kubeconfig outside, on the Debian guest. What is installed is a STAND-IN for k3s, not k3s: see k3s_stand_in."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import Any, Callable

import pytest
from conftest import Cluster, need

STAND_IN = Path(__file__).parent / "k3s_stand_in"
OTHERS = {
    "apiVersion": "v1", "kind": "Config", "current-context": "work", "users": [{"name": "w", "user": {"token": "t"}}],
    "clusters": [{"name": "far", "cluster": {"server": "https://far.example:6443", "proxy-url": "http://proxy.example:1"}}],
    "contexts": [{"name": "work", "context": {"cluster": "far", "user": "w", "namespace": "n"}}],
}  # fmt: skip


@pytest.fixture(scope="module")
def release(workshop: Path) -> Path:
    """A folder with the files of a release, the list of their digests among them."""
    folder = workshop / "release"
    shutil.copytree(STAND_IN, folder)
    (folder / "k3s-airgap-images-amd64.tar.zst").write_bytes(os.urandom(1 << 20))
    names = ("k3s", "k3s-airgap-images-amd64.tar.zst")
    lines = [
        f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in names
    ]
    (folder / "sha256sum-amd64.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def kubeconfig(workshop: Path) -> Path:
    """The user's kubeconfig: a link to a file that knows another cluster."""
    real, link = workshop / "kube" / "real", workshop / "kube" / "config"
    real.parent.mkdir()
    real.write_text(json.dumps(OTHERS))
    link.symlink_to(real)
    return link


@pytest.fixture(scope="module")
def vm(
    new_cluster: Callable[..., Cluster], guest_image: Path, release: Path, kubeconfig: Path
) -> Cluster:
    need(shutil.which("kubectl"), "kubectl is not installed")
    made = new_cluster("k3s-inside", guest_image)
    file = made.directory / "y-cluster-provision.yaml"
    text = file.read_text().replace("k3s: {install: none}", f"k3s: {{source: {release}}}")
    text = text.replace(
        "portForwards: []", "portForwards: [{guest: 6443}]\nnetwork: {bindAddress: 127.0.0.2}"
    )
    file.write_text(
        text
        + 'registries: {configs: {r.example: {auth: {username: u, password: "${R_PASSWORD}"}}}}\n'
        + "dataDisk: volume.qcow2\n"
    )
    volume = made.directory / "volume.raw"
    label = ["-q", "-t", "ext4", "-L", "y-cluster-data"]
    subprocess.run(["mke2fs", *label, volume, "64M"], check=True, env={"PATH": "/usr/sbin:/sbin"})
    argv = ["qemu-img", "convert", "-O", "qcow2", volume, volume.with_suffix(".qcow2")]
    subprocess.run(argv, check=True)
    made.program.env["KUBECONFIG"] = str(kubeconfig)
    return made


@pytest.fixture(scope="module", autouse=True)
def no_kubeconfig_for_others(vm: Cluster) -> Any:
    yield
    vm.program.env.pop("KUBECONFIG")


def kubectl(kubeconfig: Path, *words: str) -> str:
    argv = ["kubectl", "--kubeconfig", str(kubeconfig), *words]
    env = {"PATH": os.environ["PATH"], "HOME": str(kubeconfig.parent)}
    return subprocess.run(argv, text=True, capture_output=True, check=True, env=env).stdout


def view(kubeconfig: Path) -> dict[str, Any]:
    shown: dict[str, Any] = json.loads(kubectl(kubeconfig, "config", "view", "--raw", "-o", "json"))
    return shown


def reaches_the_api(vm: Cluster, kubeconfig: Path) -> None:
    assert kubectl(kubeconfig, "--context", vm.name, "get", "--raw", "/readyz").strip() == "ok"
    nodes = json.loads(kubectl(kubeconfig, "--context", vm.name, "get", "--raw", "/api/v1/nodes"))
    [node] = nodes["items"]
    assert node["metadata"]["name"] == vm.name and node["status"]["conditions"] == [
        {"type": "Ready", "status": "True"}
    ]


def test_a_context_of_that_name_which_points_elsewhere_is_refused_before_anything_is_made(
    vm: Cluster, kubeconfig: Path
) -> None:
    before = kubeconfig.read_text()
    kubeconfig.resolve().write_text(before.replace('"work"', f'"{vm.name}"'))
    ran = vm.run("provision", code=3, R_PASSWORD="hush")
    assert (
        f"context '{vm.name}' is that of far (https://far.example:6443)" in ran.stderr
        and not vm.cache.exists()
    )
    kubeconfig.resolve().write_text(before)


def test_provision_installs_it_with_no_network_and_the_users_kubectl_reaches_the_api(
    vm: Cluster, kubeconfig: Path
) -> None:
    done = vm.run("provision", R_PASSWORD="hush")
    stages = [line.split(" (")[0].strip() for line in done.stderr.splitlines()]
    assert (
        stages.index("waiting for cloud-init")
        < stages.index("installing k3s")
        < stages.index("waiting for the API")
        < stages.index("waiting for the node")
    )
    reaches_the_api(vm, kubeconfig)


def test_what_was_in_the_kubeconfig_is_there_as_it_was(vm: Cluster, kubeconfig: Path) -> None:
    now = view(kubeconfig)
    assert kubeconfig.is_symlink() and now["current-context"] == "work"
    for section in ("clusters", "contexts", "users"):
        assert [item for item in now[section] if item["name"] in ("far", "work", "w")] == OTHERS[
            section
        ]
    assert json.loads(kubeconfig.with_name("config.before-ycluster").read_text()) == OTHERS
    assert vm.file("-kubeconfig").stat().st_mode & 0o777 == 0o600


def test_registries_are_private_in_the_guest_and_their_secret_is_nowhere_else(vm: Cluster) -> None:
    assert "hush" in vm.run("ssh", "--", "sudo cat /etc/rancher/k3s/registries.yaml").stdout
    assert (
        vm.run("ssh", "--", "cat /var/lib/rancher/k3s/starts").stdout
        == "registries 0o600, images kept\n"
    )
    assert "hush" not in vm.file(".json").read_text() + vm.file("-console.log").read_text(
        errors="replace"
    )


STORAGE = "default-local-storage-path: /data/yolean/k3s-storage, mounted: True\n"


def storage_at_starts(vm: Cluster) -> str:
    """What k3s found at each of its starts."""
    return vm.run("ssh", "--", "cat /var/lib/rancher/k3s/storage-at-starts").stdout


def test_its_volumes_are_on_the_data_disk_before_it_first_starts(vm: Cluster) -> None:
    assert storage_at_starts(vm) == STORAGE
    shown = vm.run("ssh", "--", "systemctl show -p After -p Wants k3s").stdout
    assert shown.count("data-yolean.mount") == 2


def test_a_suspended_cluster_is_reached_again_by_its_new_port(
    vm: Cluster, kubeconfig: Path
) -> None:
    starts = vm.run("ssh", "--", "cat /var/lib/rancher/k3s/starts").stdout
    vm.run("suspend")
    told = vm.run("start").stderr
    assert "goes on" in told and "waiting for the node" in told
    reaches_the_api(vm, kubeconfig)
    assert vm.run("ssh", "--", "cat /var/lib/rancher/k3s/starts").stdout == starts


def test_start_refreshes_the_port_and_imports_nothing_again(vm: Cluster, kubeconfig: Path) -> None:
    [before] = [
        item["cluster"]["server"]
        for item in view(kubeconfig)["clusters"]
        if item["name"] == vm.name
    ]
    vm.run("stop")
    with_port = before.rsplit(":", 1)[1]
    taken = subprocess.Popen(
        [
            "python3",
            "-c",
            f"import socket, time; s = socket.create_server(('127.0.0.2', {with_port})); time.sleep(600)",
        ]
    )
    try:
        vm.run("start")
    finally:
        taken.kill()
        taken.wait()
    [after] = [
        item["cluster"]["server"]
        for item in view(kubeconfig)["clusters"]
        if item["name"] == vm.name
    ]
    assert after != before
    reaches_the_api(vm, kubeconfig)
    assert "imported" not in vm.run("ssh", "--", "cat /var/lib/rancher/k3s/starts").stdout
    assert storage_at_starts(vm) == STORAGE * 2  # mounted before k3s started at this boot, too


def test_an_install_that_was_cut_short_is_finished_by_start(vm: Cluster, kubeconfig: Path) -> None:
    vm.run(
        "ssh",
        "--",
        "sudo systemctl disable --now -q k3s && sudo rm -r /usr/local/bin/k3s /etc/rancher/k3s/k3s.yaml",
    )
    told = vm.run("start").stderr
    assert "already runs" in told and "waiting for the node" in told
    reaches_the_api(vm, kubeconfig)


def test_teardown_takes_out_our_names_and_nothing_else(vm: Cluster, kubeconfig: Path) -> None:
    vm.run(
        "teardown", KUBECONFIG="/nonexistent"
    )  # as a timer has it: the sidecar knows which file it was
    assert kubeconfig.is_symlink() and view(kubeconfig) == {**OTHERS, "preferences": {}}


def test_with_script_the_guest_fetches_the_release_for_itself(
    vm: Cluster, kubeconfig: Path, release: Path
) -> None:
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(release))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = vm.directory / "y-cluster-provision.yaml"
        mirror = f"install: script, source: http://10.0.2.2:{server.server_port}"  # the host, as a guest of QEMU's sees it
        file.write_text(file.read_text().replace(f"source: {release}", mirror))
        vm.run("provision", R_PASSWORD="hush")
        server.shutdown()
    reaches_the_api(vm, kubeconfig)
