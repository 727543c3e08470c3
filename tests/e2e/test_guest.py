"""What a config adds to its guest, seen from within. The disk is one that the sibling's import staged."""

from __future__ import annotations

import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import pytest
from conftest import Cluster, guest, need

HOST = "10.0.2.2"  # this host, as the guest sees it
USER_DATA = """\
#cloud-config
users:
- {name: guestbook, shell: /bin/sh}
write_files:
- {path: /etc/mine, content: of the user's own}
runcmd:
- curl -s http://example.invalid/at-boot -o /run/at-boot
"""


class Answer(http.server.BaseHTTPRequestHandler):
    said = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.said + self.path.encode())

    def log_message(self, *args: object) -> None:
        pass


def serving(words: str, tls: ssl.SSLContext | None = None) -> http.server.HTTPServer:
    """A server of this host that answers with these words and what it was asked for."""
    handler = type("Says", (Answer,), {"said": words.encode()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=[0.1], daemon=True).start()
    return server


@pytest.fixture(scope="module")
def authority(workshop: Path) -> Path:
    """A certificate of an authority that no guest knows, with its key beside it, as PEM."""
    need(shutil.which("openssl"), "openssl is not installed")
    made = workshop / "authority.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=ours", "-days", "2"]  # fmt: skip
    argv += ["-addext", f"subjectAltName=IP:{HOST}", "-keyout", str(made), "-out", f"{made}.crt"]
    subprocess.run(argv, check=True, capture_output=True)
    made.write_text(made.read_text() + Path(f"{made}.crt").read_text())
    return made


@pytest.fixture(scope="module")
def proxy() -> Iterator[int]:
    with serving("by the proxy: ") as server:
        yield server.server_port
        server.shutdown()


@pytest.fixture(scope="module")
def vm(
    new_cluster: Callable[..., Cluster], guest_image: Path, authority: Path, proxy: int
) -> Cluster:
    made = new_cluster("added", guest_image)
    (made.directory / "mine.yaml").write_text(USER_DATA)
    with open(made.directory / "y-cluster-provision.yaml", "a") as config:
        config.write("guest:\n  proxy: host\n  userData: mine.yaml\n")
        config.write(f"  caCertificates: [{authority}]\n")
    made.cache.mkdir()
    argv = ["qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", guest_image, made.file(".qcow2")]
    subprocess.run(argv, check=True)
    environ = {"Y_CLUSTER_QEMU_CACHE_DIR": str(made.cache)}
    environ["HTTP_PROXY"] = f"http://127.0.0.1:{proxy}"
    said = made.run("provision", **environ).stderr
    assert f"HTTP_PROXY is on this host, which is {HOST} in the guest" in said
    assert not (made.cache / "images").exists(), "the disk that is there is booted"
    guest(made, "cloud-init status --wait")
    return made


def test_user_data_of_the_users_own_counts_beside_the_login_of_ycluster(vm: Cluster) -> None:
    said = guest(vm, "id -un; id -un guestbook; cat /etc/mine; echo; hostname")
    assert said.split("\n") == ["ystack", "guestbook", "of the user's own", "added"]


def test_services_logins_and_sudo_have_the_proxy_of_this_host(vm: Cluster, proxy: int) -> None:
    said = guest(
        vm,
        "cat /run/at-boot; echo; curl -s http://example.invalid/a; echo; "
        "sudo curl -s http://example.invalid/b; echo; echo $HTTP_PROXY",
    )
    asked = [f"by the proxy: http://example.invalid/{what}" for what in ("at-boot", "a", "b")]
    assert said.split("\n") == [*asked, f"http://{HOST}:{proxy}"]
    before = guest(vm, "cat /etc/environment")
    guest(vm, "sudo cloud-init single --name bootcmd --frequency always")
    assert guest(vm, "cat /etc/environment") == before, "as at each further boot"


def test_the_guest_trusts_the_authority_and_asks_its_host_without_the_proxy(
    vm: Cluster, authority: Path
) -> None:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority)
    with serving("directly: ", tls) as server:
        said = guest(vm, f"curl -sS https://{HOST}:{server.server_port}/c")
        server.shutdown()
    assert said == "directly: /c"
    key = authority.read_text().splitlines()[1]
    assert guest(vm, f"sudo grep -rlF {key} /etc /usr/local || true") == "", "the key stays here"
