"""What a config adds to its guest: proxies, CA certificates, options of k3s, user-data of the user's own. (28)"""

from __future__ import annotations

import base64
import email
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from test_appliance import a_root, fake_program, in_root
from test_config import problems, read
from unit_support import Cli, missing, refused, told

import ycluster
from ycluster import Additions, ConfigError, State

DEMO = State(name="demo", cache_dir="/c", k3s={"Install": "airgap"})
OURS = "localhost,127.0.0.0/8,::1,10.0.2.0/24,10.42.0.0/16,10.43.0.0/16,.svc,.cluster.local"


def data_with(**added: Any) -> dict[str, Any]:
    """Our part of the user-data."""
    written = ycluster.seed_data(DEMO, "KEY", "PRIVATE", "PUBLIC", Additions(**added))
    found: dict[str, Any] = json.loads(written.partition("\n")[2])
    return found


def added_by(text: str, **environ: str) -> Additions:
    return ycluster.additions_of(read(text), environ)


# --- proxies

PROXIES = [
    ({}, {}),
    ({"NO_PROXY": "a.b"}, {}),
    (
        {"HTTP_PROXY": "http://p.x:3128", "NO_PROXY": "a.b, .c  localhost"},
        {"HTTP_PROXY": "http://p.x:3128", "NO_PROXY": f"a.b,.c,{OURS}"},
    ),
    (
        {"http_proxy": "http://lower", "HTTP_PROXY": "http://upper"},
        {"HTTP_PROXY": "http://lower", "NO_PROXY": OURS},
    ),
    (
        {"HTTPS_PROXY": "http://u:p%40w@127.0.0.1:3128/"},
        {"HTTPS_PROXY": "http://u:p%40w@10.0.2.2:3128/", "NO_PROXY": OURS},
    ),
    ({"https_proxy": "localhost:1"}, {"HTTPS_PROXY": "10.0.2.2:1", "NO_PROXY": OURS}),
    ({"https_proxy": "http://[::1]"}, {"HTTPS_PROXY": "http://10.0.2.2", "NO_PROXY": OURS}),
    (
        {"https_proxy": "http://localhost.example:1"},
        {"HTTPS_PROXY": "http://localhost.example:1", "NO_PROXY": OURS},
    ),
]


@pytest.mark.parametrize("environ, proxies", PROXIES)
def test_a_guest_gets_the_proxies_of_the_host_if_the_config_asks(
    environ: dict[str, str], proxies: dict[str, str]
) -> None:
    """One at 127.0.0.1 is at 10.0.2.2 there, and what is in the guest needs none."""
    assert added_by("guest: {proxy: host}\n", **environ).proxies == proxies
    assert added_by("guest: {}\n", **environ).proxies == {}


@pytest.mark.parametrize("value", ["http://a b", "http://a\nb", "http://me:hu$h@a", "http://'x"])
def test_a_proxy_that_cannot_be_written_as_it_is_is_refused_and_not_shown(value: str) -> None:
    with refused(ConfigError, ": guest.proxy: ", "HTTPS_PROXY") as caught:
        added_by("guest: {proxy: host}\n", HTTPS_PROXY=value)
    assert "http://" not in str(caught.value)


@pytest.mark.parametrize(
    "text, environ, facts",
    [
        ("guest: {proxy: host}\n", {}, ["HTTP_PROXY", "HTTPS_PROXY"]),
        ("guest: {proxy: host}\n", {"http_proxy": "http://127.0.0.1:1"}, ["10.0.2.2"]),
        ("guest: {proxy: host}\n", {"http_proxy": "http://p"}, None),
        ("{}\n", {"http_proxy": "http://127.0.0.1:1"}, None),
    ],
)
def test_a_proxy_that_is_missing_or_has_another_address_is_said(
    text: str, environ: dict[str, str], facts: list[str] | None
) -> None:
    warnings = list(ycluster.proxy_warnings(read(text), environ))
    assert len(warnings) == (0 if facts is None else 1)
    assert missing("".join(warnings), *facts or ()) == []


@pytest.fixture
def reloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What is asked of systemctl, which is not this host's."""
    log = tmp_path / "reloads"
    fake_program(tmp_path / "bin", "systemctl", f'echo "$@" >>{log}')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return log


def test_the_proxies_are_set_at_each_boot_and_prepare_export_removes_them(
    tmp_path: Path, reloads: Path
) -> None:
    """For logins, services and sudo. What of these files is the user's own stays."""
    root = a_root(tmp_path / "root")
    (root / "etc/environment").write_text("MINE=1")
    (root / "etc/sudoers.d").mkdir()
    [script] = data_with(proxies={"HTTP_PROXY": "http://u:p%40w@p:1", "NO_PROXY": "a,b"})["bootcmd"]
    lines = ["HTTP_PROXY=http://u:p%40w@p:1", "http_proxy=http://u:p%40w@p:1"]
    lines += ["NO_PROXY=a,b", "no_proxy=a,b"]
    for _ in range(2):
        in_root(script, root)
    set_now = (root / "etc/environment").read_text().splitlines()
    assert set_now == ["MINE=1", "# ycluster: proxies", *lines, "# ycluster: end"]
    own = root / "etc/default/ycluster-proxy"
    assert own.read_text().splitlines() == lines and own.stat().st_mode & 0o777 == 0o600
    unit = (root / "etc/systemd/system/service.d/90-ycluster-proxy.conf").read_text()
    assert unit.startswith("[Service]\nEnvironmentFile=-") and unit.endswith("/ycluster-proxy\n")
    assert reloads.read_text() == "daemon-reload\n", "cloud-init's later services have them, too"
    k3s = root / "etc/systemd/system/k3s.service.env"
    k3s.write_text("K3S_TOKEN=x\nHTTP_PROXY='http://u:p%40w@p:1'\nno_proxy='a,b'\n")
    for _ in range(2):
        in_root(ycluster.PREPARE_OFFLINE, root)
    assert (
        root / "etc/environment"
    ).read_text() == "MINE=1\n" and k3s.read_text() == "K3S_TOKEN=x\n"
    left = [path for path in root.rglob("*") if path.is_file() and b"p%40w" in path.read_bytes()]
    assert [*left, *root.rglob("*ycluster-proxy*")] == []


def test_prepare_export_leaves_proxies_that_are_not_ours(tmp_path: Path) -> None:
    root = a_root(tmp_path / "root")
    (root / "etc/systemd/system").mkdir(parents=True)
    k3s = root / "etc/systemd/system/k3s.service.env"
    for file in (k3s, root / "etc/environment"):
        file.write_text("HTTP_PROXY=http://mine\n")
    in_root(ycluster.PREPARE_OFFLINE, root)
    assert k3s.read_text() == (root / "etc/environment").read_text() == "HTTP_PROXY=http://mine\n"


# --- CA certificates


def pem(what: str = "CERTIFICATE", data: bytes = b"\x30\x03abc") -> str:
    body = base64.b64encode(data).decode()
    return f"-----BEGIN {what}-----\n{body}\n-----END {what}-----\n"


def test_the_guest_trusts_every_certificate_of_a_file_and_gets_no_key(tmp_path: Path) -> None:
    both, last = (pem(data=b"\x30" + rest) for rest in (b"\x03one", b"\x81\xc8" + bytes(200)))
    text = f"# a comment\n{both}{pem('PRIVATE KEY')}{last}"
    (tmp_path / "ca.pem").write_text(text.replace("\n", "\r\n"))
    added = added_by(f"guest: {{caCertificates: [{tmp_path}/ca.pem]}}\n")
    assert [one.replace("\r", "") for one in added.certificates] == [both, last]
    assert data_with(certificates=added.certificates)["ca_certs"]["trusted"] == [
        *added.certificates
    ]
    assert "ca_certs" not in data_with()


@pytest.mark.parametrize(
    "content",
    [None, b"", b"\x30\x82\xff", pem("PRIVATE KEY"), pem(data=b"text"), pem().replace("=", "*"), "folder",
     pem(data=b"\x30\x04abc"), pem(data=b"\x30"), pem() + pem()[:-9], pem("CERTIFICATE REQUEST")],
    ids=["none", "empty", "DER", "a key", "no DER inside", "no base64 inside", "a folder",
         "DER cut off", "DER without a length", "second cut off", "a request"],
)  # fmt: skip
def test_what_is_no_pem_certificate_is_refused_with_its_path(
    cli: Cli, tmp_path: Path, content: str | bytes | None
) -> None:
    path = tmp_path / "ca.pem"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    (tmp_path / "y-cluster-provision.yaml").write_text("guest: {caCertificates: [ca.pem]}\n")
    ran = cli("config", "check", "-c", tmp_path)
    told(ran, 3, ":1:26: guest.caCertificates[0]: ", path)
    assert ("openssl x509 -inform der" in ran.err) is (content == b"\x30\x82\xff")
    kind = re.match("-----BEGIN ([A-Z ]+)-----", str(content))
    if kind and kind[1] != "CERTIFICATE":
        assert f"has no CERTIFICATE, but {kind[1]}" in ran.err


@pytest.mark.parametrize(
    "text, count",
    [
        (pem().strip() + pem(), 2),
        ("\ufeff" + pem(), 1),
        (pem("PRIVATE KEY").strip() + pem(), 1),
        (pem().replace("\n", "\r"), 1),
        ("  " + pem().replace("\n", "\n  "), 1),
    ],
    ids=["joined", "BOM", "joined to its key", "CR", "indented"],
)
def test_certificates_are_found_however_their_lines_stand(
    tmp_path: Path, text: str, count: int
) -> None:
    (tmp_path / "ca.pem").write_bytes(text.encode())
    assert len(ycluster.certificates_in(tmp_path / "ca.pem")) == count


def test_the_marker_of_a_certificate_may_stand_in_a_comment(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(f"# -----BEGIN CERTIFICATE----- begins each\n{pem()}")
    assert ycluster.certificates_in(tmp_path / "ca.pem") == [pem()]


@pytest.mark.parametrize("kind", ["TRUSTED CERTIFICATE", "X509 CERTIFICATE"])
def test_a_certificate_of_another_kind_is_told_with_what_makes_one_of_it(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "ca.pem").write_text(pem(kind))
    with pytest.raises(ycluster.ConfigError) as caught:
        ycluster.certificates_in(tmp_path / "ca.pem")
    assert f"openssl x509 -in {tmp_path}/ca.pem -out" in caught.value.hint


@pytest.mark.parametrize("program", ["update-ca-certificates", "update-ca-trust"])
def test_prepare_export_removes_the_certificates_of_cloud_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    fake_program(tmp_path / "bin", program, f'echo "$@" >>{tmp_path}/updates')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    root = a_root(tmp_path / "root")
    folder = root / "usr/local/share/ca-certificates"
    folder.mkdir(parents=True)
    (folder / "mine.crt").write_text(pem())
    in_root(ycluster.PREPARE_OFFLINE, root)
    assert not (tmp_path / "updates").exists(), "there is nothing of cloud-init's"
    (folder / "cloud-init-ca-cert-1.crt").write_text(pem())
    in_root(ycluster.PREPARE_OFFLINE, root)
    assert os.listdir(folder) == ["mine.crt"] and (tmp_path / "updates").exists()


# --- options of k3s


@pytest.mark.parametrize(
    "args, config",
    [
        ([], {}),
        (["--disable=traefik"], {"disable": "traefik"}),
        (["--disable=a", "--disable=b", "-v=2"], {"disable": ["a", "b"], "v": "2"}),
        (["--disable-helm-controller"], {"disable-helm-controller": True}),
        (["--kubelet-arg=max-pods=9", "--tls-san="], {"kubelet-arg": "max-pods=9", "tls-san": ""}),
    ],
)
def test_options_of_k3s_are_in_a_file_that_it_reads_at_each_start(
    args: list[str], config: dict[str, Any]
) -> None:
    """One that root alone can read: an option may be a token."""
    added = added_by(f"k3s: {{args: {json.dumps(args)}}}\n")
    files = {file["path"]: file for file in data_with(k3s_config=added.k3s_config)["write_files"]}
    written = files.get("/etc/rancher/k3s/config.yaml.d/91-ycluster-args.yaml")
    assert (json.loads(written["content"]) if written else {}) == config
    assert written is None or written["permissions"] == "0600"


@pytest.mark.parametrize(
    "arg, says",
    [
        ("--disable traefik", "; write `--disable=traefik`"),
        ("traefik", "no option of `k3s server`"),
        ("server", "no option of `k3s server`"),
        ("--", "no option of `k3s server`"),
        ("--data-dir=/x", "counts on the default of --data-dir"),
        ("--disable-agent", "counts on the default of --disable-agent"),
        ("--disable=", "`--disable=traefik`"),
    ],
)
def test_what_is_no_option_of_k3s_is_refused(arg: str, says: str) -> None:
    (problem,) = problems(f"k3s:\n  args: ['{arg}']\n")
    assert problem.startswith("2:10: k3s.args[0]: ") and says in problem


@pytest.mark.parametrize(
    "args, line",
    [
        ("[--disable, traefik]", "`--disable=traefik`"),
        ("[-v, '3']", "`-v=3`"),
        ("[--debug, --kubelet-arg, max-pods=10]", "`--kubelet-arg=max-pods=10`"),
    ],
)
def test_an_option_and_its_value_in_two_texts_are_told_as_one(args: str, line: str) -> None:
    """As a shell would have them; there were two problems, or one without a remedy. (26)"""
    (problem,) = problems(f"k3s:\n  args: {args}\n")
    assert problem.startswith("2:9: k3s.args: ") and line in problem


def test_options_of_k3s_are_ignored_and_that_is_said_where_there_is_none() -> None:
    config = read("k3s: {install: none, args: [--debug]}\n")
    assert ycluster.additions_of(config, {}).k3s_config == {}
    assert missing(" ".join(ycluster.ignored_keys(config)), "k3s.args") == []


# --- user-data of the user's own

HEADERS = ["#cloud-config", "#!/bin/sh", "#include-once", "#Cloud-Boothook", "## template: jinja"]


@pytest.mark.parametrize("header", HEADERS)
def test_the_users_own_part_comes_first_as_it_is_and_ours_is_merged_into_it(
    tmp_path: Path, header: str
) -> None:
    """As cloud-init merges: lists of ours before theirs, texts of ours in the place of theirs."""
    theirs = f"{header}\n# caf\u00e9\nfrom: here on\n.\n--==\n"
    (tmp_path / "mine").write_text(theirs)
    added = added_by(f"guest: {{userData: {tmp_path}/mine}}\n")
    written = ycluster.seed_data(DEMO, "KEY", "PRIVATE", "PUBLIC", added)
    whole, first, second = parts = [*email.message_from_string(written).walk()]
    kinds = [part.get_content_type() for part in parts]
    assert kinds == ["multipart/mixed", "text/plain", "text/cloud-config"] and whole.is_multipart()
    assert first.get_payload(decode=True) == theirs.encode()
    ours = json.loads(second.get_payload(decode=True).partition(b"\n")[2])  # type: ignore[union-attr]
    merging = ours.pop("merge_how")
    assert ours == data_with() and ours["users"][0]["ssh_authorized_keys"] == ["KEY"]
    assert {one["name"]: one["settings"] for one in merging} == {
        "list": ["prepend"],
        "dict": ["no_replace", "recurse_list", "recurse_str"],
        "str": [],
    }


@pytest.mark.parametrize(
    "content",
    [
        "#cloud-config\n",
        "#cloud-config\nruncmd:\n- |\n  if true\n  \tthen true\n",
        "#cloud-config\n{bootcmd: []}\n",
        '#cloud-config\n"a": b\n\t\n',
        "#cloud-config-archive\n- type: text/x\n",
        "#! /bin/sh\n\ttrue\n",
        "#cloud-config\n  # indented\npackages: [git]\n",
        "#cloud-config\nwrite_files:\n- path: /x\n  content: |\n    \xa0 a: b\n    \u3000- c\n",
        "#cloud-config\nbootcmd:\n  - |-  # mine\n    \u200f- a\n",
        '#cloud-config\nbootcmd:\n  - "echo a\n\tb"\n',
        '#cloud-config\nfinal_message: "done\n\tat: $UPTIME"\n',
        "#cloud-config\nbootcmd:\n- 'cat <<E\n\t- b\n\tE'\n",
        "#cloud-config\nx: a\n  \u00a0- b\n",
        "#!\t/bin/sh\n",
        "#cloud-config\n? a\n: b\n",
        "#cloud-config\nusers: &u\n- name: me\nx: *u\n",
        "#cloud-config\nx: &u\n- name: me\nusers:\n  *u\n",
        "#cloud-config\n-a: b\n",
    ],
)
def test_user_data_that_cloud_init_takes_is_taken(tmp_path: Path, content: str) -> None:
    (tmp_path / "mine").write_text(content)
    assert added_by(f"guest: {{userData: {tmp_path}/mine}}\n").user_part == content


@pytest.mark.parametrize(
    "content, says",
    [
        (None, "No such file"),
        (b"users: []\n", "#cloud-config"),
        (b"", "#cloud-config"),
        (b"\x1f\x8b\xff", "zcat <"),
        (b"#!/bin/sh\necho caf\xe9\n", "UTF-8"),
        (b"Content-Type: multipart/mixed; boundary=x\n", "a MIME message"),
        (b"MIME-Version: 1.0\n", "a MIME message"),
        (b"#!bin/sh\ntrue\n", "no interpreter"),
        (b"#!\ntrue\n", "no interpreter"),
        (b"#cloud-config\nwrite_files:\n\t- path: /x\n", "line 3 is indented by a tab"),
        ("#cloud-config\n\xa0 a: b\n".encode(), "line 2 is indented by an invisible character"),
        (b"#cloud-config\n# mine\n---\n\n- a: b\n", "no mapping, and begins with '- a: b'"),
        (b"#cloud-config # mine\nhello\n", "no mapping, and begins with 'hello'"),
        (b"#cloud-config\npackages:[git]\n", "no mapping, and begins with 'packages:[git]'"),
        (b'#Cloud-Config\n"hello there"\n', "no mapping, and begins with"),
        (b"#cloud-config\nhttp://foo\n", "no mapping, and begins with 'http://foo'"),
        (b"#cloud-config\n - echo foo: bar\n", "no mapping, and begins with '- echo"),
        (b"#!/bin/sh\r\ntrue\r\n", "as on Windows"),
        (b"#cloud-config\nusers: {me: {}}\n", "users is not a list"),
        (b"#cloud-config\nusers: me, you\n", "users is not a list"),
        (b"#cloud-config\nusers:\n  me: {}\n", "users is not a list"),
        (b"#cloud-config\r\nusers: # mine\r\n\r\n # and\r\n  me:\r\n", "users is not a list"),
    ],
)
def test_user_data_that_cloud_init_would_pass_over_or_that_displaces_our_login_is_refused(
    cli: Cli, tmp_path: Path, content: bytes | None, says: str
) -> None:
    if content is not None:
        (tmp_path / "mine").write_bytes(content)
    (tmp_path / "y-cluster-provision.yaml").write_text("guest: {userData: mine}\n")
    told(
        cli("config", "check", "-c", tmp_path),
        3,
        ":1:19: guest.userData: ",
        tmp_path / "mine",
        says,
    )


@pytest.mark.parametrize(
    "users",
    [
        "",
        "users:",
        "users: []",
        "users: [{name: me}]",
        "users: # mine",
        "users:\n- name: me\n  shell: /bin/sh",
        "users:\n\n  # mine\n  - name: me\n",
        "users:\npackages:\n  - tree",
        "runcmd:\n  - |\n    users: me",
    ],
)
def test_users_of_the_users_own_beside_our_login(tmp_path: Path, users: str) -> None:
    (tmp_path / "mine").write_text(f"#cloud-config\n{users}")
    assert ycluster.user_part(tmp_path / "mine") == f"#cloud-config\n{users}"


@pytest.mark.parametrize("before", ["\n", "\r\n \n", "\ufeff", "\ufeff\n"])
def test_blank_lines_before_user_data_hide_no_first_line(tmp_path: Path, before: str) -> None:
    """cloud-init passes over them, and the kernel wants `#!` to come first. (26.10)"""
    (tmp_path / "mine").write_bytes(f"{before}#!/bin/sh\ntrue\n".encode())
    assert ycluster.user_part(tmp_path / "mine") == "#!/bin/sh\ntrue\n"
