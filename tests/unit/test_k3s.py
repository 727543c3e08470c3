"""Sections 16 and 17: a release over a loopback HTTP server, and the kubeconfig by the real kubectl. The guest's answer to
`k3s kubectl config view` is the one thing that is made up here; tests/e2e/test_k3s.py has a guest."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
from unit_support import IMPORTS, Clocked, bound_by_modes, made, missing, refused, tree

import ycluster
from ycluster import ConfigError, Host, PortForward, PrerequisiteError, State, replace

VERSION = ycluster.K3S_VERSION
LISTING, INSTALL, BINARY, IMAGES = ycluster.K3S_FILES


class Release(http.server.BaseHTTPRequestHandler):
    """A mirror that knows the `files`; /moved/... leads to them. `cut` holds how much of a file comes before the line drops."""

    files: dict[str, bytes]
    cut: dict[str, int]
    asked: list[str]
    sent: list[tuple[str, str | None]]  # to which host, and with which Authorization
    wants = ""

    def do_GET(self) -> None:
        folder, _, name = self.path[1:].rpartition("/")
        wanted = self.headers.get("Range", "")
        self.asked.append(name + wanted.replace("bytes=", " from "))
        self.sent.append((self.headers["Host"].split(":")[0], self.headers.get("Authorization")))
        if folder.startswith("moved"):
            elsewhere = f"http://localhost:{self.server.server_address[1]}"
            self.send_response(302)
            self.send_header("Location", f"{elsewhere * (folder == 'moved-away')}/{name}")
            return self.end_headers()
        if self.wants and self.headers.get("Authorization") != self.wants:
            return self.send_error(401)
        if name not in self.files:
            return self.send_error(404)
        first = int(wanted[len("bytes=") : -1]) if wanted else 0
        content = self.files[name][first:]
        self.send_response(206 if first else 200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.cut.get(name)])

    def log_message(self, *args: object) -> None:
        pass


def listing(files: dict[str, bytes]) -> bytes:
    names = (IMAGES, BINARY, "k3s-arm64")  # in no particular order, and with more than we want
    return "".join(
        f"{hashlib.sha256(files.get(name, b'')).hexdigest()}  {name}\n" for name in names
    ).encode()


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    files = {
        INSTALL: b"#!/bin/sh\n",
        BINARY: b"\x7fELF" + os.urandom(9000),
        IMAGES: os.urandom(3 << 20),
    }
    monkeypatch.setattr(Release, "files", {**files, LISTING: listing(files)}, raising=False)
    monkeypatch.setattr(Release, "cut", {}, raising=False)
    monkeypatch.setattr(Release, "asked", [], raising=False)
    monkeypatch.setattr(Release, "sent", [], raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Release) as server:
        threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def kept(home: Path) -> dict[str, bytes]:
    folder = home / ".cache" / "y-cluster" / "k3s" / VERSION
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


# --- the release


@pytest.mark.parametrize("where", ["", "/moved"])
def test_a_release_is_fetched_once_and_kept(
    home: Path, host: Clocked, mirror: str, where: str
) -> None:
    folder = ycluster.fetch_k3s(host, VERSION, mirror + where)
    assert kept(home) == Release.files and folder.stat().st_mode & 0o77 == 0
    asked = len(Release.asked)
    assert (
        ycluster.fetch_k3s(host, VERSION, "http://127.0.0.1:1") == folder
        and len(Release.asked) == asked
    )


def test_a_folder_serves_as_a_release_for_a_host_with_no_way_out(
    home: Path, host: Clocked, tmp_path: Path, mirror: str
) -> None:
    (tmp_path / "a folder").mkdir()
    for name, content in Release.files.items():
        (tmp_path / "a folder" / name).write_bytes(content)
    ycluster.fetch_k3s(host, VERSION, (tmp_path / "a folder").as_uri())
    assert kept(home) == Release.files and Release.asked == []


@pytest.mark.parametrize("wrong", [BINARY, IMAGES])
def test_what_differs_from_the_releases_list_is_not_kept(
    home: Path, host: Clocked, mirror: str, wrong: str
) -> None:
    right = Release.files[wrong]
    Release.files[wrong] = bytes([right[0] ^ 1]) + right[1:]
    with refused(ConfigError, f"/{wrong}:", "SHA-256", LISTING) as caught:
        ycluster.fetch_k3s(host, VERSION, mirror)
    digests = [hashlib.sha256(data).hexdigest() for data in (Release.files[wrong], right)]
    assert missing(str(caught.value), *digests) == []
    assert not {wrong, f".{wrong}.part"} & set(kept(home))
    Release.files[wrong] = right
    ycluster.fetch_k3s(host, VERSION, mirror)
    assert kept(home) == Release.files


@pytest.mark.parametrize("said", [b"<html>Sign in to continue</html>", b"", b"\xff\xfe" * 40])
def test_a_list_that_is_none_is_told_and_asked_for_again(
    home: Path, host: Clocked, mirror: str, said: bytes
) -> None:
    right, Release.files[LISTING] = Release.files[LISTING], said
    with refused(ConfigError, f"{mirror}/{LISTING}:", "digest"):
        ycluster.fetch_k3s(host, VERSION, mirror)
    Release.files[LISTING] = right
    ycluster.fetch_k3s(host, VERSION, mirror)
    assert kept(home) == Release.files


@pytest.mark.parametrize("name", [LISTING, INSTALL, BINARY, IMAGES])
@pytest.mark.parametrize("rubbish", [b"", b"<html>", b"\x7fELF of another release"])
def test_what_is_wrong_in_the_cache_is_told_and_fetched_anew(
    home: Path, host: Clocked, mirror: str, name: str, rubbish: bytes
) -> None:
    """It goes into a guest, whoever put it there. (20.8)"""
    folder = ycluster.fetch_k3s(host, VERSION, mirror)
    Release.asked.clear()
    (folder / name).write_bytes(rubbish)
    with refused(PrerequisiteError, folder / name):
        ycluster.fetch_k3s(host, VERSION, "http://127.0.0.1:1")
    assert (folder / name).read_bytes() == rubbish, "nothing goes before there is another"
    ycluster.fetch_k3s(host, VERSION, mirror)
    assert kept(home) == Release.files and Release.asked == [name]
    assert f"warning: {folder / name}: " in host.log.getvalue()


def test_a_list_of_another_release_in_the_cache_is_fetched_anew(
    home: Path, host: Clocked, mirror: str
) -> None:
    """What differs from it may be right: the list itself is doubted, too. (20.8)"""
    folder = ycluster.fetch_k3s(host, VERSION, mirror)
    (folder / LISTING).write_bytes(listing({BINARY: b"another", IMAGES: b"another"}))
    ycluster.fetch_k3s(host, VERSION, mirror)
    assert kept(home) == Release.files


def test_a_file_in_the_cache_that_cannot_be_read_is_fetched_anew(
    home: Path, host: Clocked, mirror: str
) -> None:
    """A link that leads nowhere stands for what another user may have put there. (20.8)"""
    folder = ycluster.fetch_k3s(host, VERSION, mirror)
    for name in (LISTING, INSTALL, BINARY):
        (folder / name).unlink()
        (folder / name).symlink_to("/nonexistent")
    ycluster.fetch_k3s(host, VERSION, mirror)
    assert kept(home) == Release.files


@pytest.mark.parametrize("wrong", ["", BINARY, IMAGES, INSTALL, LISTING, "unlisted"])
def test_the_guest_checks_each_file_of_a_release_that_it_fetches(
    tmp_path: Path, mirror: str, wrong: str
) -> None:
    """A list that names only some of them vouches for no other. (20.8)"""
    if wrong == "unlisted":
        lines = Release.files[LISTING].splitlines(keepends=True)
        Release.files[LISTING] = b"".join(line for line in lines if IMAGES.encode() not in line)
    elif wrong:
        Release.files[wrong] = b"<html>"
    script = ycluster.K3S_GET + ycluster.K3S_FROM_RELEASE + "touch installed\n"
    argv = ["sh", "-eu", "-c", script, "k3s", VERSION]
    done = subprocess.run(
        argv, cwd=tmp_path, capture_output=True, timeout=60, input=f"{mirror}\n".encode()
    )
    assert (done.returncode == 0, (tmp_path / "installed").exists()) == (not wrong, not wrong)


def test_a_page_in_the_place_of_the_script_is_not_kept(
    home: Path, host: Clocked, mirror: str
) -> None:
    right, Release.files[INSTALL] = Release.files[INSTALL], b"<html>not here</html>"
    with refused(ConfigError, f"{mirror}/{INSTALL}:", "script"):
        ycluster.fetch_k3s(host, VERSION, mirror)
    Release.files[INSTALL] = right
    ycluster.fetch_k3s(host, VERSION, mirror)
    assert kept(home) == Release.files


def test_a_download_that_is_cut_off_is_taken_up_where_its_digest_is_known(
    home: Path, host: Clocked, mirror: str
) -> None:
    Release.cut = {LISTING: 30, INSTALL: 5, IMAGES: 1 << 20}
    for name in (LISTING, INSTALL, IMAGES):
        with refused(PrerequisiteError, f"/{name}:", f"after {Release.cut[name]} of"):
            ycluster.fetch_k3s(host, VERSION, mirror)
        del Release.cut[name]
    ycluster.fetch_k3s(host, VERSION, mirror)
    assert kept(home) == Release.files
    assert [what for what in Release.asked if "from" in what] == [f"{IMAGES} from 1048576-"]


def test_a_release_that_is_not_there_is_told_with_the_ways_out(
    home: Path, host: Clocked, mirror: str
) -> None:
    del Release.files[BINARY]
    with refused(PrerequisiteError, f"{mirror}/k3s:", "Not Found") as caught:
        ycluster.fetch_k3s(host, VERSION, mirror)
    assert "k3s.source" in caught.value.hint and "there is no such release" in caught.value.hint


def test_of_several_callers_one_fetches(home: Path, mirror: str) -> None:
    host = Host({"HOME": str(home), "PATH": os.environ["PATH"]}, Clocked(home).output)
    callers = [
        threading.Thread(target=lambda: ycluster.fetch_k3s(host, VERSION, mirror)) for _ in range(8)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert kept(home) == Release.files and Release.asked == list(ycluster.K3S_FILES)


# --- user and password

BASIC = "Basic " + base64.b64encode(b"me:p/s s:@w\xc3\xb6rd").decode()
USER = "me:p%2Fs%20s:%40w%C3%B6rd@"


@pytest.fixture
def closed(mirror: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A mirror that wants a user and a password."""
    monkeypatch.setattr(Release, "wants", BASIC)
    return mirror


def test_the_password_of_a_url_is_sent_as_basic_authentication(
    home: Path, host: Clocked, closed: str
) -> None:
    """And a redirect on the same server wants it again. (20.10)"""
    source = closed.replace("//", f"//{USER}")
    with refused(PrerequisiteError, "Unauthorized") as caught:
        ycluster.fetch_k3s(host, VERSION, closed)
    assert "~/.netrc" in caught.value.hint
    Release.sent.clear()
    ycluster.fetch_k3s(host, VERSION, f"{source}/moved")
    assert kept(home) == Release.files
    assert Release.sent == [("127.0.0.1", BASIC)] * 8


def test_a_password_does_not_follow_to_another_host(home: Path, host: Clocked, mirror: str) -> None:
    """Whatever a mirror redirects to has no part in it. (20.10)"""
    source = mirror.replace("//", f"//{USER}")
    ycluster.fetch_k3s(host, VERSION, f"{source}/moved-away")
    assert kept(home) == Release.files
    assert Release.sent == [("127.0.0.1", BASIC), ("localhost", None)] * 4


@pytest.mark.parametrize(
    "text, sent",
    [
        ("machine 127.0.0.1 login me password netrc's\n", "me:netrc's"),
        ("machine example.org login me password x\ndefault login you password y\n", None),
        ("machine 127.0.0.1 gibberish\n", None),
        ("\xff\n", None),
        (None, None),
    ],
    ids=["its own", "another's", "broken", "not UTF-8", "none"],
)
def test_a_url_without_a_password_gets_that_of_the_netrc(
    home: Path, host: Clocked, mirror: str, text: str | None, sent: str | None
) -> None:
    """Where it names that very host, and can be read. (20.10)"""
    if text is not None:
        (home / ".netrc").write_bytes(text.encode("latin-1"))
    host.output.verbose = True
    wanted = sent and "Basic " + base64.b64encode(sent.encode()).decode()
    ycluster.fetch_k3s(host, VERSION, mirror)
    assert Release.sent == [("127.0.0.1", wanted)] * 4
    assert not re.search("gibberish|netrc's", host.log.getvalue())
    Release.sent.clear()
    ycluster.download(host, f"{mirror.replace('//', f'//{USER}')}/k3s", home / "part", "")
    assert Release.sent == [("127.0.0.1", BASIC)], "its own goes first"


def test_a_source_with_a_password_gets_into_the_guest_by_stdin(
    home: Path, tmp_path: Path, demo: State
) -> None:
    """Everybody on this host can read the argv of ssh. (20.10)"""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    keep = f'printf "%s\\n" "$@" >>{tmp_path}/argv\n'
    answer = f"case $* in *is-enabled*) echo absent ;; *read*) cat >>{tmp_path}/stdin ;; esac"
    ssh.write_text(f"#!/bin/sh\n{keep}{answer}\n")
    ssh.chmod(0o755)
    path = f"{ssh.parent}:{os.environ['PATH']}"
    host = Host({"HOME": str(home), "PATH": path}, Clocked(home).output)
    host.output.verbose = True
    (home / ".netrc").write_text("machine far.example login you password hush\n")
    for source, told in [
        ("https://me:hush%2F@r.example/k3s", "https://me:hush%2F@r.example/k3s"),
        ("https://far.example/k3s", "https://you:hush@far.example/k3s"),
        ("https://r.example/k3s", "https://r.example/k3s"),
    ]:
        (tmp_path / "stdin").write_text("")
        state = replace(demo, k3s={"Install": "script", "Source": source, "Version": VERSION})
        assert ycluster.install_k3s(host, state, lambda: None)
        assert (tmp_path / "stdin").read_text() == f"{told}\n"
    argv = (tmp_path / "argv").read_text()
    assert "hush" not in argv and "r.example" not in argv and VERSION in argv


# --- into the guest


@pytest.mark.parametrize("answer, there", [("exit 255", False), ("exit 1", False), ("echo", True)])
def test_k3s_is_installed_where_the_guest_says_that_it_is_absent_and_nowhere_else(
    home: Path,
    tmp_path: Path,
    demo: State,
    answer: str,
    there: bool,
) -> None:
    """No answer is not "absent", and what is there is not replaced."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/asked\n{answer}\n")
    ssh.chmod(0o755)
    path = f"{ssh.parent}:{os.environ['PATH']}"
    host = Host({"HOME": str(home), "PATH": path}, Clocked(home).output)
    nowhere = replace(demo, k3s={"Install": "airgap", "Source": "http://127.0.0.1:1"})
    install, *_ = ycluster.k3s_stages(nowhere)
    with contextlib.nullcontext() if there else pytest.raises(ycluster.NotYet):
        assert install.reached(host, nowhere, lambda: None)
    assert (tmp_path / "asked").read_text() == "asked\n"


# --- the kubeconfig

needs_kubectl = pytest.mark.skipif(
    not shutil.which("kubectl") and os.environ.get("CI") != "true",
    reason="kubectl is not installed",
)
WORK = {
    "apiVersion": "v1", "kind": "Config", "current-context": "work", "preferences": {},
    "clusters": [{"name": "far", "cluster": {"server": "https://far.example:6443", "proxy-url": "http://proxy.example:1"}}],
    "contexts": [{"name": "work", "context": {"cluster": "far", "user": "w", "namespace": "n"}}],
    "users": [{"name": "w", "user": {"token": "t"}}],
}  # fmt: skip


@pytest.fixture
def demo(cache: Path) -> State:
    return made(
        cache,
        context="a context",
        k3s={"Install": "airgap"},
        port_forwards=(PortForward(host=7443, guest=6443),),
    )


class User(Host):
    """Asks the real kubectl, and each question once: of what it makes of a text it is sure.

    Anything but a plain file of the user's (a lock beside it, another mode, a link, none as yet) is
    asked each time, and so is a kubectl of the test's own, and each question that fails.
    """

    answers: ClassVar[dict[tuple[str, ...], tuple[str, str, str]]] = {}

    def child_env(self, extra: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
        """kubectl, which Go made, takes a third less with one thread that collects no garbage."""
        return {**super().child_env(extra), "GOGC": "off", "GOMAXPROCS": "1"}

    def run(self, argv: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
        env = options.get("env") or {}
        named = argv[2] if argv[1] == "--kubeconfig" else env.get("KUBECONFIG", "")
        file = Path(named)
        if argv[0] != "kubectl" or not is_plain(file) or self.which("kubectl") != KUBECTL:
            return super().run(argv, **options)
        place = str(Path(self.environ["HOME"]).parent)  # is each test's own, and tells nothing
        before = file.read_text()
        question = tuple(word.replace(place, "@place") for word in (before, named, *argv))
        if question not in self.answers:
            done = super().run(argv, **options)
            answer = (done.stdout, done.stderr, file.read_text())
            out, err, after = (text.replace(place, "@place") for text in answer)
            self.answers[question] = (out, err, after)
            return done
        out, err, after = (text.replace("@place", place) for text in self.answers[question])
        if after != before:
            file.write_text(after)
        return subprocess.CompletedProcess(argv, 0, out, err)


def is_plain(file: Path) -> bool:
    usual = file.is_file() and not file.is_symlink() and file.stat().st_mode & 0o777 in PLAIN_MODES
    return usual and not file.with_name(f"{file.name}.lock").exists()


KUBECTL, PLAIN_MODES = shutil.which("kubectl"), (0o600, 0o640, 0o644)


@pytest.fixture
def user(home: Path, tmp_path: Path) -> Host:
    """A host whose ssh leads to a guest that knows one question."""
    secret = {name: base64.b64encode(name.encode()).decode() for name in ("ca", "crt", "key")}
    answer = {
        "clusters": [{"name": "default", "cluster": {"certificate-authority-data": secret["ca"], "server": "https://127.0.0.1:6443"}}],
        "users": [{"name": "default", "user": {"client-certificate-data": secret["crt"], "client-key-data": secret["key"]}}],
    }  # fmt: skip
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "ssh").write_text(f"#!/bin/sh\necho '{json.dumps(answer)}'\n")
    (tmp_path / "bin" / "ssh").chmod(0o755)
    return User(
        {"HOME": str(home), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"},
        Clocked(home).output,
    )


def config_of(home: Path, content: Any = None) -> Path:
    file = home / ".kube" / "config"
    file.parent.mkdir(exist_ok=True)
    if content is not None:
        file.write_text(json.dumps(content))
    return file


def read(host: Host, file: Path) -> dict[str, Any]:
    argv = ["kubectl", "--kubeconfig", str(file), "config", "view", "--raw", "-o", "json"]
    shown: dict[str, Any] = json.loads(host.run(argv, timeout=60).stdout)
    return shown


@needs_kubectl
def test_a_kubectl_that_goes_by_the_working_folder_and_the_environment_finds_both(
    tmp_path: Path, user: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the shims of version managers do. (26.4)"""
    shim = tmp_path / "bin" / "kubectl"
    wants = '[ -e .tool-versions ] && [ "$ASDF_DIR" = here ] || { echo no version >&2; exit 126; }'
    shim.write_text(f'#!/bin/sh\n{wants}\nexec {KUBECTL} "$@"\n')
    shim.chmod(0o755)
    (tmp_path / ".tool-versions").touch()
    monkeypatch.chdir(tmp_path)
    mine = User({**user.environ, "ASDF_DIR": "here"}, user.output)
    ycluster.check_kubectl(mine)
    monkeypatch.chdir(tmp_path / "bin")
    with pytest.raises(ycluster.YclusterError, match="no version"):
        ycluster.check_kubectl(mine)


@needs_kubectl
def test_our_names_go_in_beside_the_users_and_come_out_again(
    home: Path, user: Host, demo: State
) -> None:
    file = config_of(home, WORK)
    merged = ycluster.merge_kubeconfig(user, demo)
    now = read(user, file)
    [cluster], [who] = (
        [item for item in now[what] if item["name"] == "demo"] for what in ("clusters", "users")
    )
    assert cluster["cluster"]["server"] == "https://127.0.0.1:7443"
    assert (
        Path(who["user"]["client-key"]).read_bytes() == b"key"
        and os.stat(who["user"]["client-key"]).st_mode & 0o77 == 0
    )
    assert {"name": "a context", "context": {"cluster": "demo", "user": "demo"}} in now["contexts"]
    assert (
        now["current-context"] == "work"
        and json.loads(file.with_name("config.before-ycluster").read_text()) == WORK
    )
    own = json.loads(demo.files.kubeconfig.read_text())
    assert (
        own["current-context"] == "a context" and demo.files.kubeconfig.stat().st_mode & 0o77 == 0
    )
    assert ycluster.merge_kubeconfig(user, merged) == merged and read(user, file) == now
    ycluster.forget_kubeconfig(user, merged)
    assert read(user, file) == WORK
    first = file.with_name("config.before-ycluster")
    assert json.loads(first.read_text()) == WORK, "the second merge left it as it was"


def copies(file: Path) -> list[Path]:
    """The copies of a kubeconfig that its last change has left."""
    return sorted(file.parent.glob(f"{file.name}.before-ycluster-last*"))


@needs_kubectl
def test_a_copy_of_the_kubeconfig_lasts_as_long_as_its_change(
    home: Path, user: Host, demo: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stayed for ever, with all the credentials of the user's. (21.4.5)"""
    file = config_of(home, WORK)
    seen, kubectl = [], ycluster._kubectl

    def look(host: Host, of: Path | str, *words: str) -> str:
        seen.append([(path.stat().st_mode & 0o777, path.read_bytes()) for path in copies(file)])
        return kubectl(host, of, *words)

    before = file.read_bytes()
    monkeypatch.setattr(ycluster, "_kubectl", look)
    merged = ycluster.merge_kubeconfig(user, demo)
    assert [(0o600, before)] in seen and copies(file) == []
    ycluster.forget_kubeconfig(user, merged)
    assert seen[-1] != [] and copies(file) == []


@needs_kubectl
def test_a_copy_of_the_kubeconfig_that_a_change_has_damaged_stays(
    home: Path, user: Host, demo: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the next change, too, which would copy the damaged file over it. (21.4.5)"""
    file = config_of(home, WORK)
    before = file.read_bytes()

    def full(*args: object) -> None:
        file.write_bytes(b"")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(ycluster, "_merge_by_kubectl", full)
        ycluster.merge_kubeconfig(user, demo)
    assert [path.read_bytes() for path in copies(file)] == [before]
    merged = ycluster.merge_kubeconfig(user, ycluster.load_state(demo.files))
    ycluster.forget_kubeconfig(user, merged)
    assert [path.read_bytes() for path in copies(file)] == [before]


@needs_kubectl
def test_a_teardown_will_know_of_the_kubeconfig_before_anything_goes_into_it(
    home: Path, user: Host, demo: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*args: object, **options: object) -> None:
        raise ycluster.Interrupted("killed")

    monkeypatch.setattr("base64.b64decode", killed)
    with pytest.raises(ycluster.Interrupted):
        ycluster.merge_kubeconfig(user, demo)
    assert ycluster.load_state(demo.files).kubeconfig == str(config_of(home))


@needs_kubectl
def test_where_there_is_no_kubeconfig_ours_is_current_until_it_goes(
    home: Path, user: Host, demo: State
) -> None:
    merged = ycluster.merge_kubeconfig(user, demo)
    file = config_of(home)
    assert read(user, file)["current-context"] == "a context" and file.stat().st_mode & 0o77 == 0
    ycluster.forget_kubeconfig(user, merged)
    left = read(user, file)
    assert (
        not left["clusters"]
        and not left["contexts"]
        and not left["users"]
        and not left["current-context"]
    )


@needs_kubectl
def test_names_are_checked_and_taken_under_a_lock_of_the_user(
    home: Path, user: Host, demo: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clusters of one name, whose guests are ready at once, must not both find it free. (20.25)"""
    lock = user.state_home() / "claims.lock"
    lock.parent.mkdir(parents=True)
    held = ycluster.try_flock(lock)
    assert held is not None
    theirs = {**WORK, "users": [{"name": "demo", "user": {"token": "another's"}}]}

    def sleep(self: Host, seconds: float) -> None:
        monkeypatch.undo()
        config_of(home, theirs)
        os.close(held)

    monkeypatch.setattr(Host, "sleep", sleep)
    with refused(ConfigError, "'demo'"):
        ycluster.merge_kubeconfig(user, demo)
    assert json.loads(config_of(home).read_text()) == theirs


@needs_kubectl
def test_names_are_removed_under_that_lock(
    home: Path, user: Host, demo: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two teardowns at once, one brought back the names that the other had removed."""
    merged = ycluster.merge_kubeconfig(user, demo)
    before = config_of(home).read_text()
    held = ycluster.try_flock(user.state_home() / "claims.lock")
    assert held is not None

    found = []

    def sleep(self: Host, seconds: float) -> None:
        monkeypatch.undo()
        found.append(config_of(home).read_text())
        os.close(held)

    monkeypatch.setattr(Host, "sleep", sleep)
    ycluster.leave_kubeconfig(user, merged)
    assert found == [before] and not read(user, config_of(home))["clusters"]


@needs_kubectl
def test_a_teardown_of_a_copy_leaves_the_names_of_the_original(
    home: Path, user: Host, demo: State, tmp_path: Path
) -> None:
    """Its state names the same context, in the same kubeconfig."""
    merged = ycluster.merge_kubeconfig(user, demo)
    before = config_of(home).read_text()
    ycluster.remember_cache_dir(user, demo.files.cache_dir)
    copy = ycluster.Files(tmp_path / "copy", demo.name)
    shutil.copytree(demo.cache_dir, copy.cache_dir)
    copy.cache_dir.chmod(0o700)
    ycluster.teardown(user, copy)
    assert config_of(home).read_text() == before and not copy.sidecar.exists()
    ycluster.teardown(user, merged.files)
    assert not read(user, config_of(home))["clusters"]


@needs_kubectl
def test_a_lock_of_somebody_elses_is_waited_for(home: Path, user: Host, demo: State) -> None:
    lock = config_of(home, WORK).with_name("config.lock")
    lock.touch()
    threading.Timer(1.0, lock.unlink).start()
    ycluster.merge_kubeconfig(user, demo)
    assert {"far", "demo"} == {item["name"] for item in read(user, config_of(home))["clusters"]}


@needs_kubectl
def test_a_lock_that_nobody_gives_back_is_named_and_nothing_is_changed(
    home: Path, user: Host, demo: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = config_of(home, WORK).with_name("config.lock")
    lock.touch()
    began = time.monotonic()
    monkeypatch.setattr(Host, "monotonic", lambda self: began + (time.monotonic() - began) * 20)
    with pytest.raises(ycluster.YclusterError, match=str(lock)):
        ycluster.merge_kubeconfig(user, demo)
    assert json.loads(config_of(home).read_text()) == WORK and lock.exists()


def test_with_no_kubectl_there_is_a_kubeconfig_of_its_own_and_the_line_to_export(
    home: Path, user: Host, demo: State, tmp_path: Path
) -> None:
    clock = Clocked(home)
    alone = Host({"HOME": str(home), "PATH": str(tmp_path / "bin")}, clock.output)
    assert ycluster.merge_kubeconfig(alone, demo) == demo and not (home / ".kube").exists()
    assert missing(clock.log.getvalue(), f"export KUBECONFIG={demo.files.kubeconfig}") == []
    assert (
        json.loads(demo.files.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        == "https://127.0.0.1:7443"
    )
    ycluster.forget_kubeconfig(alone, demo)
    config_of(home, WORK)
    with pytest.raises(PrerequisiteError, match="kubectl"):  # which teardown tells, with the file
        ycluster.forget_kubeconfig(alone, replace(demo, kubeconfig=str(config_of(home))))


@needs_kubectl
@pytest.mark.parametrize(
    "cluster, who, server, fine",
    [
        ("demo", "demo", "https://127.0.0.1:7443", True),
        ("demo", "demo", "https://10.1.2.3:6443", False),
        ("demo", "w", "https://127.0.0.1:7443", False),
        ("prod", "demo", "https://127.0.0.1:7443", False),
        ("prod", "w", "https://prod.example", False),
        ("kind-x", "kind-x", "https://127.0.0.1:7443", False),
    ],
)
def test_a_context_that_points_at_another_cluster_is_refused(
    home: Path, user: Host, tmp_path: Path, cluster: str, who: str, server: str, fine: bool
) -> None:
    file = config_of(home, {
        **WORK, "clusters": [{"name": cluster, "cluster": {"server": server}}],
        "contexts": [{"name": "mine", "context": {"cluster": cluster, "user": who}}],
    })  # fmt: skip
    config = ycluster.read_config(
        "name: demo\ncontext: mine\n", tmp_path / "y-cluster-provision.yaml"
    )
    assert isinstance(config, ycluster.QemuConfig)
    files = ycluster.files_of(user, config)
    if fine:
        return ycluster.check_context(user, [], config, files)
    with refused(ConfigError, f"{file}:", "context 'mine'", f"{cluster} ({server})"):
        ycluster.check_context(user, [], config, files)


@needs_kubectl
@pytest.mark.parametrize("what", ["clusters", "users"])
def test_a_cluster_or_user_of_our_name_that_is_the_users_own_is_not_overwritten(
    home: Path, user: Host, demo: State, tmp_path: Path, what: str
) -> None:
    theirs = {**WORK, what: [{**WORK[what][0], "name": "demo"}]}
    file = config_of(home, theirs)
    config = ycluster.read_config(
        "name: demo\ncontext: mine\n", tmp_path / "y-cluster-provision.yaml"
    )
    assert isinstance(config, ycluster.QemuConfig)
    with refused(ConfigError, f"{file}:", "'demo'"):
        ycluster.check_context(user, [], config, demo.files)
    with refused(ConfigError, f"{file}:", "'demo'"):  # where kubectl came later
        ycluster.merge_kubeconfig(user, demo)
    assert json.loads(file.read_text()) == theirs and demo.files.sidecar.exists()
    plain = replace(config, k3s=replace(config.k3s, install="none"))
    ycluster.check_context(user, [], plain, demo.files)


@needs_kubectl
def test_a_full_disk_is_told_before_kubectl_truncates_the_kubeconfig(
    home: Path, user: Host, demo: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = config_of(home, WORK)
    merged = ycluster.merge_kubeconfig(user, demo)
    before, written = file.read_bytes(), ycluster.write_file

    def full(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        if path.parent == file.parent:
            raise OSError(errno.ENOSPC, "No space left on device")
        written(path, data, mode=mode)

    monkeypatch.setattr(ycluster, "write_file", full)
    for change in (ycluster.merge_kubeconfig, ycluster.forget_kubeconfig):
        with pytest.raises(OSError, match="No space"):
            change(user, merged)
        assert file.read_bytes() == before


@needs_kubectl
def test_the_current_context_of_a_second_kubeconfig_stays(
    home: Path, user: Host, demo: State
) -> None:
    both = User(
        {**user.environ, "KUBECONFIG": f"{home / 'first'}:{config_of(home, WORK)}"}, user.output
    )
    ycluster.merge_kubeconfig(both, demo)
    assert not read(user, home / "first")["current-context"]


def siblings(**changes: str) -> dict[str, Any]:
    """A kubeconfig into which the sibling has merged its cluster `demo`."""
    names = {"context": "local", "cluster": "demo", "user": "demo", **changes}
    server = names.pop("server", "https://127.0.0.1:7443")
    context, entry = names.pop("context"), names
    return {
        **WORK, "current-context": "local",
        "clusters": [*WORK["clusters"], {"name": "demo", "cluster": {"server": server}}],
        "contexts": [*WORK["contexts"], {"name": context, "context": entry}],
        "users": [*WORK["users"], {"name": "demo", "user": {"token": "t"}}],
    }  # fmt: skip


@needs_kubectl
@pytest.mark.parametrize("named", [True, False], ids=["KUBECONFIG", "~/.kube/config"])
def test_a_teardown_of_a_siblings_cluster_takes_its_names_out_of_the_kubeconfig(
    home: Path, user: Host, demo: State, named: bool
) -> None:
    """Its state names no kubeconfig: its names, and a server that is its port, show which. (20.5)"""
    file = home / "mine" if named else config_of(home)
    file.write_text(json.dumps(siblings()))
    host = with_files(user, home / "none", file) if named else user
    ycluster.forget_kubeconfig(host, replace(demo, context="local"))
    assert read(user, file) == {**WORK, "current-context": ""}
    assert json.loads(file.with_name(f"{file.name}.before-ycluster").read_text()) == siblings()


@needs_kubectl
@pytest.mark.parametrize(
    "changes, fields",
    [
        ({"server": "https://127.0.0.1:6443"}, {}),
        ({"server": "https://10.1.2.3:7443"}, {}),
        ({"user": "w"}, {}),
        ({"cluster": "far"}, {}),
        ({"context": "another"}, {}),
        ({}, {"image": "https://of.ours.example/i"}),
    ],
)
def test_what_is_not_provably_of_the_siblings_cluster_stays(
    home: Path, user: Host, demo: State, changes: dict[str, str], fields: dict[str, str]
) -> None:
    """Nothing that the user owns is removed: not even under the cluster's name. (20.5)"""
    file = config_of(home, siblings(**changes))
    ycluster.forget_kubeconfig(user, replace(demo, context="local", **fields))
    assert json.loads(file.read_text()) == siblings(**changes)


PROD = {
    "apiVersion": "v1", "kind": "Config", "current-context": "prod", "preferences": {},
    "clusters": [{"name": "prod", "cluster": {"server": "https://prod.example:6443"}}],
    "contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "admin"}}],
    "users": [{"name": "admin", "user": {"token": "t"}}],
}  # fmt: skip


def with_files(user: Host, *files: object) -> Host:
    """The host with these files in its KUBECONFIG."""
    return User({**user.environ, "KUBECONFIG": ":".join(map(str, files))}, user.output)


def current_context(host: Host) -> str:
    """What kubectl goes by with all files of the environment."""
    argv = ["kubectl", "config", "view", "-o", "jsonpath={.current-context}"]
    return host.run(argv, timeout=60).stdout


@needs_kubectl
@pytest.mark.parametrize("mine", [None, "", WORK], ids=["no file", "an empty file", "work"])
def test_relative_kubeconfigs_keep_their_current_context_through_a_provision_and_a_teardown(
    home: Path, user: Host, demo: State, monkeypatch: pytest.MonkeyPatch, mine: Any
) -> None:
    """kubectl runs in another folder than the one that $KUBECONFIG is relative to. (20.6)"""
    monkeypatch.chdir(home)
    if mine is not None:
        Path("mine.yaml").write_text(json.dumps(mine) if mine else "")
    Path("prod.yaml").write_text(json.dumps(PROD))
    both = with_files(user, "mine.yaml", "", "prod.yaml", "./mine.yaml")
    before = current_context(both)
    assert before == (mine or PROD)["current-context"]
    merged = ycluster.merge_kubeconfig(both, demo)
    assert merged.kubeconfig == str(home / "mine.yaml")
    assert "demo" in ycluster._view(user, home / "mine.yaml").clusters
    for change in (ycluster.merge_kubeconfig, ycluster.forget_kubeconfig):
        assert current_context(both) == before
        change(both, merged)
    assert current_context(both) == before
    assert "demo" not in ycluster._view(user, home / "mine.yaml").clusters
    assert json.loads(Path("prod.yaml").read_text()) == PROD


def test_other_programs_and_timers_get_the_kubeconfigs_by_their_absolute_paths(
    home: Path, user: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timer's teardown must know the files that its user's kubectl merges. (20.6)"""
    assert "KUBECONFIG" not in user.child_env()
    monkeypatch.chdir(home)
    (home / "link").symlink_to("a")
    many = with_files(user, "a", "/b", "", "a", "link", "d/../c")
    assert many.child_env()["KUBECONFIG"] == f"{home}/a:/b:{home}/d/../c"
    (home / "gone").mkdir()
    monkeypatch.chdir(home / "gone")
    (home / "gone").rmdir()
    assert many.child_env()["KUBECONFIG"] == "/b"


@needs_kubectl
@pytest.mark.parametrize("ours", ["first", "last"])
def test_a_teardown_does_not_bring_another_files_current_context_into_force(
    home: Path, user: Host, demo: State, ours: str
) -> None:
    """With ours gone kubectl would talk to prod, which nobody has asked for; so it fails. (20.6)"""
    mine, prod = config_of(home), home / "prod"
    merged = ycluster.merge_kubeconfig(with_files(user, mine), demo)
    prod.write_text(json.dumps(PROD))
    both = with_files(user, *((mine, prod) if ours == "first" else (prod, mine)))
    before = current_context(both)
    assert before == ("a context" if ours == "first" else "prod")
    ycluster.forget_kubeconfig(both, merged)
    assert current_context(both) == before
    assert read(user, mine)["current-context"] == ("a context" if ours == "first" else "")
    assert not read(user, mine)["contexts"] and json.loads(prod.read_text()) == PROD


@needs_kubectl
def test_where_the_merged_files_are_not_known_a_current_context_stays_and_is_reported(
    home: Path, demo: State, user: Host
) -> None:
    """A timer that an older version armed has no KUBECONFIG. (20.6)"""
    clock = Clocked(home, PATH=user.environ["PATH"])
    merged = ycluster.merge_kubeconfig(with_files(user, home / "mine"), demo)
    ycluster.forget_kubeconfig(clock, merged)
    left = read(user, home / "mine")
    assert left["current-context"] == "a context" and not left["clusters"] and not left["contexts"]
    assert missing(clock.log.getvalue(), "warning:", home / "mine", "'a context'") == []


@needs_kubectl
def test_another_kubeconfig_that_is_broken_keeps_no_teardown_from_its_own(
    home: Path, user: Host, demo: State
) -> None:
    """What would come into force is not known then, so the current context stays. (20.6)"""
    merged = ycluster.merge_kubeconfig(with_files(user, config_of(home)), demo)
    (home / "broken").write_text("{")
    ycluster.forget_kubeconfig(with_files(user, config_of(home), home / "broken"), merged)
    left = ycluster._view(user, config_of(home))
    assert left == ycluster.Kubeconfig(current_context="a context")


@needs_kubectl
def test_a_start_leaves_a_current_context_that_its_user_has_unset_or_moved(
    home: Path, user: Host, demo: State
) -> None:
    """Ours becomes current where there was no context at all, and never again. (20.6)"""
    file = config_of(home)
    merged = ycluster.merge_kubeconfig(user, demo)
    argv = ["kubectl", "--kubeconfig", str(file), "config", "unset", "current-context"]
    user.run(argv, timeout=60)
    ycluster.merge_kubeconfig(user, merged)
    assert read(user, file)["current-context"] == ""
    argv[-2:] = ["use-context", "a context"]
    user.run(argv, timeout=60)
    elsewhere = with_files(user, home / "new", file)
    moved = ycluster.merge_kubeconfig(elsewhere, merged)
    assert current_context(elsewhere) == "a context"
    assert set(ycluster._view(user, Path(moved.kubeconfig)).contexts) == {"a context"}


@needs_kubectl
def test_contexts_with_none_of_them_current_keep_ours_from_becoming_it(
    home: Path, user: Host, demo: State
) -> None:
    """Whoever has contexts, and none that is current, wants to name one each time. (20.6)"""
    file = config_of(home, {**WORK, "current-context": ""})
    ycluster.merge_kubeconfig(user, demo)
    assert read(user, file)["current-context"] == ""


@needs_kubectl
@pytest.mark.parametrize(
    "second, word",
    [
        ({"users": [{"name": "demo", "user": {}}]}, "'demo'"),
        ({"clusters": [{"name": "demo", "cluster": {"server": "https://x"}}]}, "'demo'"),
        ({"contexts": [{"name": "mine", "context": {"cluster": "prod", "user": "x"}}]}, "'mine'"),
        (
            {"contexts": [{"name": "prod", "context": {"cluster": "prod", "user": "demo"}}]},
            "'prod'",
        ),
        ({"contexts": [{"name": "prod", "context": {"cluster": "demo", "user": "x"}}]}, "'prod'"),
    ],
    ids=["user", "cluster", "context", "a context with our user", "a context with our cluster"],
)
def test_names_are_checked_in_all_files_that_kubectl_merges(
    home: Path, user: Host, demo: State, tmp_path: Path, second: dict[str, Any], word: str
) -> None:
    """In the merged files context `prod` would present our certificate to https://prod. (20.6)"""
    config = ycluster.read_config("name: demo\ncontext: mine\n", tmp_path / "c.yaml")
    assert isinstance(config, ycluster.QemuConfig)
    (home / "second").write_text(json.dumps({**PROD, **second}))
    both = with_files(user, home / "first", home / "second")
    demo = replace(demo, context="mine")
    with refused(ConfigError, f"{home / 'second'}:", word):
        ycluster.check_context(both, [], config, demo.files)
    with refused(ConfigError, f"{home / 'second'}:", word):
        ycluster.merge_kubeconfig(both, demo)
    assert not (home / "first").exists()


@needs_kubectl
def test_contexts_that_the_user_made_of_our_names_do_not_keep_a_start_from_its_end(
    home: Path, user: Host, demo: State
) -> None:
    """An alias with a namespace, or an account of the user's own in our cluster. (20.6)"""
    merged = ycluster.merge_kubeconfig(user, demo)
    config = ["kubectl", "--kubeconfig", merged.kubeconfig, "config", "set-context"]
    user.run([*config, "alias", "--cluster=demo", "--user=demo", "--namespace=n"], timeout=60)
    user.run([*config, "account", "--cluster=demo", "--user=me"], timeout=60)
    assert ycluster.merge_kubeconfig(user, merged) == merged
    user.run([*config, "prod", "--cluster=prod", "--user=demo"], timeout=60)
    with refused(ConfigError, "'prod'", "user 'demo'"):
        ycluster.merge_kubeconfig(user, merged)


def a_link_to_a_file_for_reading(place: Path) -> Path:
    (place / "real").write_text(json.dumps(WORK))
    (place / "real").chmod(0o444)
    (place / "config").symlink_to("real")
    return place / "real"


def a_folder_for_reading(place: Path) -> Path:
    (place / "config").write_text(json.dumps(WORK))
    place.chmod(0o555)
    return place


def a_folder_to_be_made_in_one_for_reading(place: Path) -> Path:
    place.chmod(0o555)
    return place


def a_folder_that_is_closed(place: Path) -> Path:
    place.chmod(0)
    return place / "config"


def a_second_file_that_cannot_be_read(place: Path) -> Path:
    (place / "second").touch(0)
    return place / "second"


def a_link_to_nowhere(place: Path) -> Path:
    (place / "config").symlink_to("gone/config")
    return place / "gone" / "config"


def a_device(place: Path) -> Path:
    (place / "config").symlink_to("/dev/null")
    return Path("/dev/null")


def a_file_that_is_no_kubeconfig(place: Path) -> Path:
    (place / "config").write_text("clusters: [\n")
    return place / "config"


def a_second_file_that_is_a_fifo(place: Path) -> Path:
    os.mkfifo(place / "second")
    return place / "second"


UNUSABLE = [
    a_link_to_a_file_for_reading, a_folder_for_reading, a_folder_to_be_made_in_one_for_reading,
    a_folder_that_is_closed, a_second_file_that_cannot_be_read, a_link_to_nowhere, a_device,
    a_file_that_is_no_kubeconfig, a_second_file_that_is_a_fifo,
]  # fmt: skip
WITH_UNUSABLE = """
import os, sys
from pathlib import Path
import ycluster
host = ycluster.Host(os.environ, ycluster.Output(sys.stdout, sys.stderr))
files = ycluster.Files(Path(sys.argv[1]), "demo")
config = ycluster.read_config("name: demo\\ncontext: a context\\n", Path("c.yaml"))
ycluster.check_context(host, [], config, files)
host.output.say("checked")
print(ycluster.merge_kubeconfig(host, ycluster.load_state(files)).kubeconfig, end="")
"""


def by_modes(host: Host, code: str, *argv: object) -> subprocess.CompletedProcess[str]:
    """Run Python code with the environment of a host, bound by the modes of files."""
    env = {**host.environ, **IMPORTS, "PYTHONDONTWRITEBYTECODE": "1"}
    words = bound_by_modes(sys.executable, "-c", code, *argv)
    return subprocess.run(words, env=env, text=True, capture_output=True)


@needs_kubectl
@pytest.mark.parametrize("unusable", UNUSABLE)
def test_a_kubeconfig_that_cannot_be_used_is_told_before_and_the_cluster_gets_its_own(
    user: Host, demo: State, tmp_path: Path, unusable: Callable[[Path], Path]
) -> None:
    """It was found out after boot and k3s, as a bare "permission denied". (20.7)"""
    place = tmp_path / "place"
    place.mkdir()
    culprit = unusable(place)
    first = place / "new" / "config" if "to_be_made" in unusable.__name__ else place / "config"
    before = tree(place)
    ran = by_modes(with_files(user, first, place / "second"), WITH_UNUSABLE, demo.cache_dir)
    place.chmod(0o755)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    told, after = ran.stderr.split("checked\n")
    assert missing(told, "warning:", culprit, "demo") == []
    assert missing(after, culprit, f"export KUBECONFIG={demo.files.kubeconfig}") == []
    assert demo.files.kubeconfig.exists() and ycluster.load_state(demo.files) == demo
    assert {**tree(place), ".": None} == {**before, ".": None}


@needs_kubectl
def test_a_start_tells_of_a_kubeconfig_that_cannot_be_used_before_it_waits_for_the_guest(
    home: Path, user: Host, demo: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A boot takes minutes, and its user may be gone by its end. (20.7)"""
    clock = Clocked(home, PATH=user.environ["PATH"], KUBECONFIG="/dev/null")
    told: list[str] = []
    wait_ready = lambda *args, **options: told.append(clock.log.getvalue())  # noqa: E731
    monkeypatch.setattr(ycluster, "wait_ready", wait_ready)
    ycluster._finish_boot(clock, demo)
    assert missing(told[0], "warning:", "/dev/null", "demo") == []
    assert clock.log.getvalue().count("warning:") == 1 and demo.files.kubeconfig.exists()


@needs_kubectl
@pytest.mark.skipif(os.getuid() != 0, reason="root alone writes whatever the mode")
def test_root_writes_to_a_file_for_reading_as_it_can(user: Host, demo: State, home: Path) -> None:
    """What counts is whether it can be written, not its mode. (20.7)"""
    config_of(home, WORK).chmod(0o444)
    merged = ycluster.merge_kubeconfig(user, demo)
    assert "a context" in ycluster._view(user, Path(merged.kubeconfig)).contexts


@needs_kubectl
def test_a_teardown_with_a_kubeconfig_that_became_read_only_names_it(
    user: Host, demo: State, home: Path
) -> None:
    """Its names stay, and that is a warning. (20.7)"""
    file = config_of(home, WORK)
    merged = ycluster.merge_kubeconfig(user, demo)
    file.chmod(0o444)
    before = file.read_bytes()
    code = WITH_UNUSABLE.rpartition("config = ")[0]
    code += "ycluster.leave_kubeconfig(host, ycluster.load_state(files))"
    ran = by_modes(user, code, merged.cache_dir)
    assert (ran.returncode, file.read_bytes()) == (0, before)
    assert missing(ran.stderr, "warning:", f"{file} can't be written to", "demo") == []
    file.chmod(0o600)
    ycluster.forget_kubeconfig(user, merged)
    assert read(user, file) == WORK


@needs_kubectl
def test_a_lock_file_that_cannot_be_made_is_not_taken_for_one_that_is_held(
    user: Host, tmp_path: Path
) -> None:
    """Where the folder can't be written to, another try changes nothing. (20.7)"""
    calls, real = tmp_path / "calls", shutil.which("kubectl")
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho >> {calls}\nexec {real} "$@"\n')
    kubectl.chmod(0o755)
    closed = tmp_path / "closed"
    closed.mkdir(0o555)
    code = WITH_UNUSABLE.partition("files = ")[0]
    code += "ycluster._kubectl(host, sys.argv[1], 'set-context', 'x', '--cluster=x')"
    ran = by_modes(user, code, closed / "config")
    assert ran.returncode == 1 and "permission denied" in ran.stderr
    assert calls.read_text() == "\n"


@needs_kubectl
def test_another_kubeconfig_takes_the_place_of_the_first(
    home: Path, user: Host, demo: State
) -> None:
    first = config_of(home, WORK)
    merged = ycluster.merge_kubeconfig(user, demo)
    second = home / "second"
    elsewhere = User({**user.environ, "KUBECONFIG": f"{second}:{first}"}, user.output)
    assert ycluster.merge_kubeconfig(elsewhere, merged).kubeconfig == str(second)
    assert read(user, first) == WORK and set(ycluster._view(user, second).contexts) == {"a context"}


@needs_kubectl
def test_what_a_kill_left_in_the_kubeconfig_is_taken_up_or_out(
    home: Path, user: Host, demo: State
) -> None:
    killed = ycluster.merge_kubeconfig(user, demo)
    file = config_of(home)
    user.run(
        ["kubectl", "--kubeconfig", str(file), "config", "delete-context", "a context"], timeout=60
    )
    assert ycluster.merge_kubeconfig(user, killed) == killed
    user.run(["kubectl", "--kubeconfig", str(file), "config", "unset", "users.demo"], timeout=60)
    ycluster.forget_kubeconfig(user, killed)
    left = read(user, file)
    assert not left["clusters"] and not left["contexts"] and not left["users"]


@needs_kubectl
def test_the_context_comes_out_last_so_that_a_killed_teardown_is_taken_up(
    home: Path, user: Host, demo: State, tmp_path: Path
) -> None:
    merged = ycluster.merge_kubeconfig(user, demo)
    file, kept = config_of(home), tmp_path / "kept"
    kept.mkdir()
    kubectl, real = tmp_path / "bin" / "kubectl", shutil.which("kubectl")
    keep = f"cp {file} {kept}/$(ls {kept} | wc -l)"
    kubectl.write_text(f'#!/bin/sh\n{real} "$@" || exit\n{keep}\n')
    kubectl.chmod(0o755)
    ycluster.forget_kubeconfig(user, merged)
    left = [path.read_text() for path in kept.iterdir()]
    ours = [text for text in left if "name: demo\n" in text]
    assert len(set(left)) > len(set(ours)) > 1
    assert [text for text in ours if "name: a context\n" not in text] == []


@needs_kubectl
def test_names_that_the_user_has_taken_over_meanwhile_stay(
    home: Path, user: Host, demo: State
) -> None:
    merged = ycluster.merge_kubeconfig(user, demo)
    theirs = {
        **WORK,
        "contexts": [{"name": "a context", "context": {"cluster": "far", "user": "w"}}],
    }
    file = config_of(home, theirs)
    ycluster.forget_kubeconfig(user, merged)
    assert json.loads(file.read_text()) == theirs
