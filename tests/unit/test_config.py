"""Section 7: the config file. Every problem is reported, at once, with where it stands."""

from __future__ import annotations

import json
import os
import pwd
import re
import shlex
import subprocess
from operator import attrgetter
from pathlib import Path
from typing import Any, Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from unit_support import Cli, Clocked, folded, told

import ycluster
from ycluster import Config, ConfigError, PortForward, load_config, read_config, show_config

BASE = Path("/cfg")
FILE = BASE / "y-cluster-provision.yaml"
DEFAULT_FORWARDS = (
    PortForward(host=6443, guest=6443),
    PortForward(host=80, guest=80),
    PortForward(host=443, guest=443),
)
PLAIN = "k3s: {install: none}\n"


def keys(schema: Any, prefix: str = "") -> list[str]:
    """Every key of a schema, dotted; what is handed on as it is counts as one key."""
    found: list[str] = []
    for name, child in schema["properties"].items():
        inner = child.get("type") == "object" and name in ("k3s", "lifetime", "network", "guest")
        found += keys(child, f"{prefix}{name}.") if inner else [prefix + name]
    return found


def read(text: str) -> Any:
    return read_config(text, FILE)


def problems(text: str) -> list[str]:
    """What is wrong with a config, each as `line:column: message`."""
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert caught.value.exit_code == 3
    lines = str(caught.value).splitlines()
    count = [f"{len(lines) - 1} problems in {FILE.name}"] if len(lines) > 1 else []
    assert lines[: len(count)] == count
    found = lines[len(count) :]
    assert all(line.startswith(f"{FILE}:") for line in found)
    return [line[len(f"{FILE}:") :] for line in found]


# --- what it says


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}", "---\n", "provider: qemu\n"])
def test_an_empty_config_is_all_defaults(text: str) -> None:
    config = read(text)
    assert (config.provider, config.name, config.context) == ("qemu", "y-cluster", "local")
    assert (config.memory, config.cpus, config.disk_size, config.data_disk_size) == (
        8192,
        4,
        "20G",
        "10G",
    )
    assert (config.k3s.version, config.k3s.install) == (ycluster.K3S_VERSION, "airgap")
    assert (config.ssh_port, config.port_forwards) == (2222, DEFAULT_FORWARDS)
    assert config.lifetime == ycluster.Lifetime("", "stop", "10m", "", "", "", 25)
    assert isinstance(config, ycluster.QemuConfig) and config.network.bind_address == "127.0.0.1"
    assert (config.cache_dir, config.data_disk, config.accel, config.cpu_model) == (
        None,
        None,
        "auto",
        "",
    )
    assert (config.image, config.image_sha256) == (
        ycluster.DEFAULT_IMAGE,
        ycluster.DEFAULT_IMAGE_SHA256,
    )
    assert config.ssh_user == "ystack" and ycluster.budget(config.lifetime.max_run) is None


@pytest.mark.parametrize(
    "key, text, attr, value",
    [
        ("name", "demo-1", "name", "demo-1"),
        ("context", "team/a b", "context", "team/a b"),
        ("memory", "4096", "memory", 4096),
        ("memory", '"4096"', "memory", 4096),
        ("cpus", "2", "cpus", 2),
        ("cpus", "'2'", "cpus", 2),
        ("k3s.version", "v1.34.1-rc1+k3s2", "k3s.version", "v1.34.1-rc1+k3s2"),
        ("k3s.install", "script", "k3s.install", "script"),
        ("k3s.source", "/srv/k3s", "k3s.source", "file:///srv/k3s"),
        ("k3s.source", "https://mirror.example/k3s/", "k3s.source", "https://mirror.example/k3s"),
        ("k3s.args", "[--disable=traefik]", "k3s.args", ("--disable=traefik",)),
        ("guest.proxy", "host", "guest.proxy", "host"),
        ("guest.caCertificates", "[ca.pem]", "guest.ca_certificates", (BASE / "ca.pem",)),
        ("guest.userData", "/srv/user-data", "guest.user_data", Path("/srv/user-data")),
        ("portForwards", '[{host: "8443", guest: 6443}]', "port_forwards", (PortForward(host=8443, guest=6443),)),
        ("portForwards", '[{host: "", guest: 6443}]', "port_forwards", (PortForward(host=0, guest=6443),)),
        ("portForwards", "[{guest: 6443}]", "port_forwards", (PortForward(host=0, guest=6443),)),
        ("registries", '{mirrors: {a: {endpoint: ["http://b"]}}}', "registries", {"mirrors": {"a": {"endpoint": ("http://b",)}}}),
        ("gateway", "{skip: true}", "gateway", {"skip": True}),
        ("storage", "{path: /data}", "storage", {"path": "/data"}),
        ("lifetime.maxRun", "8h", "lifetime.max_run", "8h"),
        ("lifetime.maxRun", "1h30m", "lifetime.max_run", "1h30m"),
        ("lifetime.maxRun", "0", "lifetime.max_run", "0"),
        ("lifetime.maxRun", '""', "lifetime.max_run", ""),
        ("lifetime.onExpiry", "teardown", "lifetime.on_expiry", "teardown"),
        ("lifetime.warn", "5m", "lifetime.warn", "5m"),
        ("lifetime.onWarn", "notify-send soon", "lifetime.on_warn", "notify-send soon"),
        ("lifetime.maxTotal", "24h", "lifetime.max_total", "24h"),
        ("lifetime.maxIdle", "30m", "lifetime.max_idle", "30m"),
        ("lifetime.maxIdle", "0", "lifetime.max_idle", "0"),
        ("lifetime.idleCpu", "0", "lifetime.idle_cpu", 0),
        ("lifetime.idleCpu", "400", "lifetime.idle_cpu", 400),
        ("diskSize", "40G", "disk_size", "40G"),
        ("diskSize", "1073741824", "disk_size", "1073741824"),
        ("sshPort", "0", "ssh_port", 0),
        ("sshPort", '""', "ssh_port", 2222),
        ("sshPort", '"2022"', "ssh_port", 2022),
        ("cacheDir", "/var/c", "cache_dir", Path("/var/c")),
        ("cacheDir", "state/c", "cache_dir", BASE / "state/c"),
        ("cacheDir", "../c", "cache_dir", Path("/c")),
        ("cacheDir", '""', "cache_dir", None),
        ("dataDisk", "data.qcow2", "data_disk", BASE / "data.qcow2"),
        ("dataDiskSize", "1T", "data_disk_size", "1T"),
        ("image", "https://example.org/a.img", "image", "https://example.org/a.img"),
        ("image", "file:///srv/a.img", "image", "file:///srv/a.img"),
        ("image", "images/a.img", "image", "file:///cfg/images/a.img"),
        ("network.mode", "user", "network.mode", "user"),
        ("network.bindAddress", "0.0.0.0", "network.bind_address", "0.0.0.0"),
        ("network.ifname", "tap0", "network.ifname", "tap0"),
        ("network.guestAddress", "10.88.0.2/24", "network.guest_address", "10.88.0.2/24"),
        ("network.gateway", "10.88.0.1", "network.gateway", "10.88.0.1"),
        ("network.dns", "[1.1.1.1]", "network.dns", ("1.1.1.1",)),
        ("imageSha256", "a" * 64, "image_sha256", "a" * 64),
        ("accel", "tcg", "accel", "tcg"),
        ("cpuModel", "Haswell,-avx", "cpu_model", "Haswell,-avx"),
        ("sshUser", "_dev", "ssh_user", "_dev"),
    ],
)  # fmt: skip
def test_every_key_is_read(key: str, text: str, attr: str, value: object) -> None:
    outer, _, inner = key.partition(".")
    config = read(f"{outer}:\n  {inner}: {text}\n" if inner else f"{outer}: {text}\n")
    assert attrgetter(attr)(config) == value


def test_every_key_has_a_case_above() -> None:
    marks = test_every_key_is_read.pytestmark  # type: ignore[attr-defined]
    tried = {case[0] for case in marks[0].args[1]} | {"provider"}
    assert tried == set(keys(ycluster.kind_of("qemu").schema))


def test_a_path_may_start_at_home(tmp_path: Path) -> None:
    def at_home(text: str, home: Path = tmp_path) -> Any:
        return read_config(text, FILE, lambda: home)

    assert at_home("cacheDir: ~/c\n").cache_dir == tmp_path / "c"
    assert at_home("cacheDir: ~\n").cache_dir is None  # as YAML has it
    assert at_home("cacheDir: '~'\ndataDisk: ~//d/../e\n", Path("/")).cache_dir == Path("/")
    assert at_home("dataDisk: ~//d/../e\n").data_disk == tmp_path / "e"
    assert (
        at_home("image: ~/a b.img\nk3s: {source: ~/k/}\n").image == (tmp_path / "a b.img").as_uri()
    )
    assert at_home("image: ~/a.img\nk3s: {source: ~/k/}\n").k3s.source == (tmp_path / "k").as_uri()


def test_a_path_may_start_at_the_home_of_somebody_else() -> None:
    home = Path(pwd.getpwnam("root").pw_dir)
    assert read("cacheDir: ~root/c\n").cache_dir == home / "c"
    assert read("cacheDir: ./~somebody/c\n").cache_dir == BASE / "~somebody" / "c"


@pytest.mark.parametrize(
    "value, says",
    [
        ("~nobody-has-this-name/c", "no user nobody-has-this-name"),
        ("$HOME/c", "no variable is filled in"),
        ("/a/$USER/c", "no variable is filled in"),
        ('"https://example.org/c"', "is a URL"),
    ],
)
def test_what_only_looks_like_a_path_is_none(value: str, says: str) -> None:
    """A folder of this very name would be made beside the config. (26)"""
    for key in ("cacheDir", "dataDisk"):
        (problem,) = problems(f"{key}: {value}\n")
        assert problem.startswith(f"1:{len(key) + 3}: {key}: ") and says in problem


@pytest.mark.parametrize(
    "text, line",
    [
        ("k3s:\n  args:\n    -disable=traefik\n", 3),
        ("k3s:\n  args:\n    \u2013 --disable=traefik\n", 3),
        ("k3s:\n  args:\n    \u2022 --disable=traefik\n", 3),
        ('portForwards:\n  -host: "80"\n', 2),
    ],
)
def test_an_entry_of_a_list_without_its_dash_and_space_is_told(text: str, line: int) -> None:
    (problem,) = problems(text)
    assert problem.startswith(f"{line}:") and "begins with a dash and a space" in problem


def test_a_letter_that_looks_like_another_is_named() -> None:
    (problem,) = problems("n\u0430me: dev\n")
    assert "did you mean 'name'" in problem and "U+0430 CYRILLIC SMALL LETTER A" in problem


def test_no_invisible_character_becomes_a_dash_of_the_name_that_is_advised() -> None:
    (problem,) = problems('name: "d\u200be"\n')
    assert "`name: de`" in problem
    (problem,) = problems('name: "my\u00a0dev"\n')
    assert "`name: my-dev`" in problem


def test_a_folder_that_may_not_be_listed_is_not_what_is_wrong(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hint is no reason to fail."""

    def closed(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", closed)
    for verb in ("config check", "stop", "teardown"):
        told(cli(*verb.split(), "-c", tmp_path), 3, "no y-cluster-provision.yaml in it")


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("y-cluster-provision.yml", "y-cluster-provision.yaml"),
        ("Y-Cluster-Provision.YAML", "y-cluster-provision.yaml"),
        ("y-cluster-provision.yaml.txt", "y-cluster-provision.yaml"),
        ("y-cluster-provision.JSON", "y-cluster-provision.json"),
        ("ycluster.yaml", "y-cluster-provision.yaml"),
    ],
)
def test_a_config_of_a_similar_name_is_told_with_its_renaming(
    cli: Cli, tmp_path: Path, name: str, wanted: str
) -> None:
    (tmp_path / name).write_text('{"name": "demo"}\n')
    ran = cli("config", "check", "-c", tmp_path)
    told(ran, 3, wanted)
    [renaming] = re.findall("`(mv .*)`", ran.err)
    subprocess.run(shlex.split(renaming), check=True)
    assert (tmp_path / wanted).is_file() and load_config(tmp_path).name == "demo"


def test_a_config_of_another_name_is_told_with_the_words_that_take_it(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "docker-compose.yaml").write_text("name: demo\nservices: {}\n")
    assert "docker" not in cli("config", "check", "-c", tmp_path).err
    (tmp_path / "my own.yaml").write_text("name: demo\nlifetime: {maxRun: 8h}\n")
    ran = cli("config", "check", "-c", tmp_path)
    [words] = re.findall("`(-c .*)`", ran.err)
    assert ran.code == 3 and cli("config", "check", *shlex.split(words)).code == 0


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_config_that_is_no_file_is_told_as_such(
    cli: Cli, tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / FILE.name)
    told(cli("config", "check", "-c", tmp_path), 3, tmp_path / FILE.name, "not a regular file")


@pytest.mark.parametrize(
    "encoding, facts",
    [
        ("utf-16", ["UTF-16"]),
        ("utf-32", ["UTF-32"]),
        ("utf-16-le", ["UTF-16LE"]),
        ("utf-16-be", ["UTF-16BE"]),
        ("latin-1", ["byte 16", "line 2"]),
    ],
)
def test_a_config_that_is_not_utf_8_is_told_with_what_makes_it_that(
    cli: Cli, tmp_path: Path, encoding: str, facts: list[str]
) -> None:
    text = "name: demo\n# caf\u00e9\n"
    (tmp_path / FILE.name).write_bytes(text.encode(encoding))
    ran = cli("config", "check", "-c", tmp_path)
    told(ran, 3, tmp_path / FILE.name, "not UTF-8", *facts)
    [way] = re.findall("`(iconv .*)`", ran.err)
    subprocess.run(way, shell=True, check=True)
    assert (tmp_path / FILE.name).read_text("utf-8").lstrip("\ufeff") == text
    assert cli("config", "check", "-c", tmp_path).code == 0


def test_an_empty_word_for_a_config_is_not_the_working_directory(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / FILE.name).write_text("name: demo\n")
    monkeypatch.chdir(tmp_path)
    told(cli("config", "check", "-c", ""), 2, "-c needs a directory")
    assert cli("config", "check", "-c", ".").code == 0


def test_an_empty_word_for_a_folder_is_not_the_working_directory(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told(cli("init", ""), 2, "DIR needs a directory")
    told(cli("export", ""), 2, "BUNDLE_DIR needs a directory")
    told(cli("schema", "--write", ""), 2, "--write needs a directory")
    assert list(tmp_path.iterdir()) == [tmp_path / "home"]


def test_a_config_of_zeros_is_told_as_such(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_bytes(bytes(40))
    told(cli("config", "check", "-c", tmp_path), 3, "zeros alone")


def test_a_variable_that_is_not_set_is_told_where_it_stands(cli: Cli, tmp_path: Path) -> None:
    text = 'registries:\n  mirrors:\n    docker.io: {endpoint: [https://m, "${NOPE}"]}\n'
    (tmp_path / FILE.name).write_text(text)
    where = f"{tmp_path / FILE.name}:3:39: registries.mirrors.docker.io.endpoint[1]: "
    told(cli("config", "check", "-c", tmp_path), 3, where, "NOPE is not set")


@pytest.mark.parametrize("name", ["Y_CLUSTER_QEMU_CACHE_DIR", "XDG_DATA_HOME"])
def test_a_cachedir_that_the_environment_names_is_not_blamed_on_the_config(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "note").write_text("mine")
    (tmp_path / FILE.name).write_text("name: demo\n")
    monkeypatch.setenv(name, f"{tmp_path}/note/x")
    ran = cli("config", "check", "-c", tmp_path)
    told(ran, 3, f"{tmp_path}/note is not a directory", name)
    assert "leave cacheDir out" not in ran.err
    monkeypatch.setenv(name, str(tmp_path))
    tmp_path.chmod(0o777)
    (tmp_path / "ycluster").mkdir()
    (tmp_path / "ycluster").chmod(0o777)
    ran = cli("config", "check", "-c", tmp_path)
    assert ran.code == 3 and "cacheDir: " not in ran.err
    assert FILE.name not in ran.err, "and no place in it is named"


@pytest.mark.parametrize("name", ["null", "true", "on", "y", "no", "012", "1e3", "Dev 1"])
def test_what_init_writes_has_the_name_of_the_folder(cli: Cli, tmp_path: Path, name: str) -> None:
    """`name: null` was the name that there is without one, and the others were refused."""
    assert cli("init", tmp_path / name).code == 0
    shown = json.loads(cli("config", "show", "-c", tmp_path / name).out)
    wanted = name.lower().replace(" ", "-")
    assert (shown["name"], shown["context"]) == (wanted, wanted)


def test_a_check_says_what_ends_a_cluster(cli: Cli, tmp_path: Path) -> None:
    for lifetime, words, warned in (
        ("{maxRun: 8h}", "lifetime 8h, then stop", None),
        ("{maxRun: 8h, maxIdle: 1h}", "lifetime 8h or 1h unused, then stop", None),
        ("{maxIdle: 1h}", "lifetime 1h unused, then stop", "while it is used"),
        ("{}", "lifetime none", "nothing will end this cluster;"),
    ):
        (tmp_path / FILE.name).write_text(f"lifetime: {lifetime}\n")
        ran = cli("config", "check", "-c", tmp_path)
        assert ran.code == 0 and ran.out.endswith(f"{words}\n")
        assert warned in ran.err if warned else not ran.err


def test_what_init_advises_can_be_pasted_for_a_name_with_a_dash_first(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told(cli("init", "--", "-x"), 0, "`ycluster provision -c ./-x`")


@pytest.mark.parametrize("place, mode, warned", [("file", 0o666, True), ("folder", 0o777, True), ("folder", 0o1777, False), ("file", 0o664, False)])  # fmt: skip
def test_a_config_that_anybody_can_write_to_is_warned_about(
    cli: Cli, tmp_path: Path, place: str, mode: int, warned: bool
) -> None:
    """Its onWarn runs as its user. (25)"""
    folder = tmp_path / "conf"
    folder.mkdir()
    file = folder / "y-cluster-provision.yaml"
    file.write_text("name: demo\n")
    (file if place == "file" else folder).chmod(mode)
    ran = cli("config", "check", "-c", folder)
    assert ran.code == 0 and ("chmod o-w" in ran.err) is warned


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make another user's files")
def test_what_init_makes_is_its_users_and_not_writable_by_others(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By sudo it was root's; under a umask of 0 anybody's. (25)"""
    os.chown(tmp_path, 1000, 1000)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(ycluster.Host, "umask", 0, raising=False)
    before = os.umask(0)
    try:
        assert cli("init", tmp_path / "a" / "dev").code == 0
    finally:
        os.umask(before)
    made = [tmp_path / "a", *(tmp_path / "a").rglob("*")]
    assert len(made) == 4 and {path.stat().st_uid for path in made} == {1000}
    assert [path for path in made if path.stat().st_mode & 0o002] == []


def test_init_at_a_file_is_refused(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("mine")
    for place in (tmp_path / "note", tmp_path / "note" / "dev"):
        told(cli("init", place), 2, f"{tmp_path}/note is a file")
    assert (tmp_path / "note").read_text() == "mine"


@pytest.mark.parametrize(
    "text, line",
    [
        ("network: {bindAddress: localhost}\n", "bindAddress: 127.0.0.1"),
        ("network: {bindAddress: '::1'}\n", "bindAddress: 127.0.0.1"),
        ("network: {bindAddress: '*'}\n", "bindAddress: 0.0.0.0"),
        ("lifetime: {maxRun: 8h, maxTotal: 4h}\n", "maxTotal: 8h"),
        ("k3s: {args: --disable=traefik}\n", "args: [--disable=traefik]"),
        ("k3s: {args: '--disable=traefik'}\n", "args: [--disable=traefik]"),
        ("guest: {caCertificates: ca.pem}\n", "caCertificates: [ca.pem]"),
    ],
)
def test_a_value_that_is_refused_has_a_line_to_write(text: str, line: str) -> None:
    (problem,) = problems(text)
    assert f"`{line}`" in problem
    key, _, value = line.partition(": ")
    assert read(re.sub(rf"{key}: [^,}}]+", f"{key}: {value}", text))


@pytest.mark.parametrize("url", ["http://", "https:///x", "http://:80/x", "https://me@/x"])
def test_a_url_names_a_host(url: str) -> None:
    assert len(problems(f"image: '{url}'\nk3s: {{source: '{url}'}}\n")) == 2


def test_home_comes_from_the_host_and_from_no_variable(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, host: Clocked
) -> None:
    monkeypatch.setenv("HOME", "/another/home")
    (tmp_path / FILE.name).write_text("cacheDir: ~/c\n")
    config = load_config(tmp_path, host.home)
    assert isinstance(config, ycluster.QemuConfig) and config.cache_dir == host.home() / "c"
    with pytest.raises(ConfigError, match=r"1:11: cacheDir: ~ .* write the whole path"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "text", ["name:\nk3s:\n", "name: null\nlifetime: ~\nmemory:\n", "lifetime:\n  maxRun:\n"]
)
def test_a_key_with_nothing_behind_it_is_the_default(text: str) -> None:
    assert read(text) == read("")


def test_an_empty_text_is_the_default_as_it_is_to_the_sibling() -> None:
    """Of every key that is a word, a number, a size or a path; not of what is a list or a mapping."""
    lines = []
    for attr, declared in ycluster.keys_of(ycluster.QemuConfig).items():
        kind, name = declared.kind.schema.get("type", "string"), ycluster.camel_case(attr)
        if kind == "string":
            lines.append(f'{name}: ""\n')
        elif name in ("k3s", "lifetime", "network", "guest"):
            inner = declared.kind.schema["properties"].items()
            scalars = [one for one, schema in inner if schema.get("type") != "array"]
            lines.append(f"{name}: {{" + ", ".join(f'{one}: ""' for one in scalars) + "}\n")
    text = "".join(lines)
    assert {"name", "memory", "diskSize", "image"} <= {line.split(":")[0] for line in lines}
    assert 'onExpiry: ""' in text and 'version: ""' in text and 'mode: ""' in text
    assert read(text) == read("")
    assert read('storage: {reclaimPolicy: ""}\n').storage == {"reclaimPolicy": None}


@pytest.mark.parametrize("provider", ycluster.OTHER_PROVIDERS)
def test_a_provider_that_only_the_sibling_knows_has_its_budget_read(
    cli: Cli, tmp_path: Path, provider: str
) -> None:
    """Its own keys are not judged, and what ycluster does not do is said."""
    text = f"provider: {provider}\nserverType: cx23\nimageCache: {{bucket: b}}\nlifetime: {{maxRun: 1h}}\n"
    (tmp_path / "y-cluster-provision.yaml").write_text(text)
    flags = cli("lifetime", "gcp-flags", "-c", tmp_path, "--quiet")
    assert flags.out.split() == ["--max-run-duration=3600s", "--instance-termination-action=DELETE"]
    checked = cli("config", "check", "-c", tmp_path)
    assert checked.code == 0 and f"provider {provider}: y-cluster runs it" in checked.err
    assert cli("provision", "-c", tmp_path).code == 6
    (tmp_path / "y-cluster-provision.yaml").write_text(text.replace("maxRun", "maxrun"))
    assert cli("config", "check", "-c", tmp_path).code == 3, (
        "of what all have the names are checked"
    )


def test_json_is_a_config_too() -> None:
    assert (
        read('{"name": "demo", "memory": 1024, "lifetime": {"maxRun": "1h"}}').lifetime.max_run
        == "1h"
    )


@pytest.mark.parametrize("provider", ycluster.PROVIDERS)
def test_every_provider_has_the_common_keys(provider: str) -> None:
    config = read(f"provider: {provider}\nname: demo\nlifetime: {{maxRun: 8h, onExpiry: pause}}\n")
    assert (config.provider, config.name, config.lifetime.max_run, config.lifetime.on_expiry) == (
        provider,
        "demo",
        "8h",
        "pause",
    )


@pytest.mark.parametrize(
    "provider, image", [("qemu", ycluster.DEFAULT_IMAGE), ("multipass", "24.04")]
)
def test_the_image_is_the_providers_own(provider: str, image: str) -> None:
    assert read(f"provider: {provider}\n").image == image


def test_an_image_of_ones_own_has_no_digest_unless_given() -> None:
    assert read("image: /srv/a.img\n").image_sha256 == ""


# --- what is wrong with it


@pytest.mark.parametrize(
    "text, says",
    [
        ("name: Demo\n", "1:7: name: 'Demo' is not a DNS label"),
        ("name: -a\n", "1:7: name: '-a' is not a DNS label"),
        (f"name: {'a' * 64}\n", "1:7: name: "),
        ("name: true\n", "1:7: name: must be a string, not a boolean"),
        ("name: [a]\n", "1:7: name: must be a string, not a list"),
        ("memory: lots\n", "1:9: memory: 'lots' is not a whole number from 64 to 16777216 (MB)"),
        ("memory: 63\n", "1:9: memory: '63' is not a whole number"),
        ("memory: 1.5\n", "1:9: memory: '1.5' is not a whole number"),
        ("memory: 8X\n", "1:9: memory: '8X' is not a whole number"),
        ("cpus: 0\n", "1:7: cpus: '0' is not a whole number from 1 to 512"),
        ("cpus: -1\n", "1:7: cpus: '-1' is not"),
        ("provider: hetzner\nlifetme: {maxRun: 1h}\nserver: {}\n", "2:1: lifetme: no such key; did you mean 'lifetime'?"),
        ("network: {bindAddress: 239.1.1.1}\n", "1:24: network.bindAddress: '239.1.1.1' is not an IPv4 address of an interface"),
        ("provider: quemu\n", "1:11: provider: 'quemu' is none of qemu, docker, multipass, hetzner, glesys; did you mean 'qemu'?"),
        ("k3s: {install: nope}\n", "1:16: k3s.install: 'nope' is none of airgap, script, none"),
        ("k3s: {version: latest}\n", "1:16: k3s.version: 'latest' is not a k3s release"),
        ("k3s: airgap\n", "1:6: k3s: must be a mapping of keys to values"),
        ("lifetime: 8h\n", "1:11: lifetime: must be a mapping of keys to values"),
        ("lifetime:\n  maxRun: 8 hours\n", '2:11: lifetime.maxRun: unknown unit " hours" in duration "8 hours"'),
        ("lifetime:\n  maxRun: 8\n", '2:11: lifetime.maxRun: missing unit in duration "8"'),
        ("lifetime:\n  maxRun: -8h\n", '2:11: lifetime.maxRun: "-8h" must be positive'),
        ("lifetime:\n  maxRun: 0s\n", '2:11: lifetime.maxRun: "0s" must be positive'),
        ("lifetime:\n  maxIdle: long\n", '2:12: lifetime.maxIdle: invalid duration "long"'),
        ("lifetime:\n  idleCpu: -1\n", "2:12: lifetime.idleCpu: '-1' is not a whole number from 0 to 100000 (percent of one CPU)"),
        ("lifetime:\n  idleCpu: 100001\n", "2:12: lifetime.idleCpu: '100001' is not a whole number from 0 to 100000 (percent of one CPU)"),
        ("lifetime:\n  idleCpu: half\n", "2:12: lifetime.idleCpu: 'half' is not a whole number from 0 to 100000 (percent of one CPU)"),
        ("lifetime:\n  onExpiry: delete\n", "2:13: lifetime.onExpiry: 'delete' is none of stop, pause, suspend, teardown"),
        ("portForwards: 80\n", "1:15: portForwards: must be a list, not a number"),
        ("portForwards: [80]\n", "1:16: portForwards[0]: must be a mapping of keys to values, not a number"),
        ("portForwards: [{host: 80}]\n", "1:16: portForwards[0].guest: is missing"),
        ("portForwards: [{host: 80, guest: }]\n", "1:16: portForwards[0].guest: is missing"),
        ("portForwards: [{guest: 6443, gest: 1}]\n", "1:30: portForwards[0].gest: no such key; did you mean 'guest'?"),
        ("portForwards: [{guest: 0}]\n", "1:24: portForwards[0].guest: '0' is not a whole number from 1 to 65535"),
        ("portForwards: [{host: 65536, guest: 6443}]\n", "1:23: portForwards[0].host: '65536' is not"),
        ("portForwards: [{host: 1, guest: 6443}, {host: 1, guest: 2}]\n", "1:15: portForwards: host port 1 is forwarded twice"),
        ("registries: none\n", "1:13: registries: must be a mapping of keys to values, not a string"),
        ("diskSize: 20GB\n", "1:11: diskSize: '20GB' is not a size"),
        ("diskSize: 0\n", "1:11: diskSize: '0' is not a size"),
        ("sshPort: ssh\n", "1:10: sshPort: 'ssh' is not"),
        ("image: ftp://a/b\n", "1:8: image: 'ftp://a/b' is not an https, http or file:/// URL"),
        ('portForwards: [{guest: ""}]\n', "1:16: portForwards[0].guest: is missing"),
        ('network: ""\n', "1:10: network: must be a mapping"),
        (f"imageSha256: {'A' * 64}\n", "1:14: imageSha256: "),
        ("accel: hvf\n", "1:8: accel: 'hvf' is none of auto, kvm, tcg"),
        ("cpuModel: host migratable\n", "1:11: cpuModel: "),
        ("sshUser: root user\n", "1:10: sshUser: "),
        ('cacheDir: "a\\nb"\n', "1:11: cacheDir: a path has no line break"),
        ('lifetime: {onWarn: "a\\0b"}\n', "1:20: lifetime.onWarn: a command has no NUL"),
        ("nmae: demo\n", "1:1: nmae: no such key; did you mean 'name'?"),
        ("memroy: 1\n", "1:1: memroy: no such key; did you mean 'memory'?"),
        ("lifetime:\n  maxrun: 8h\n", "2:3: lifetime.maxrun: no such key; did you mean 'maxRun'?"),
        ("zzzzzz: 1\n", "1:1: zzzzzz: no such key"),
        ("lifetime.maxRun: 8h\n", "1:1: lifetime.maxRun: no such key"),
        ("provider: docker\ndiskSize: 20G\n", "2:1: diskSize: no such key"),
        ("provider: multipass\naccel: kvm\n", "2:1: accel: no such key"),
        ("[]\n", "1:1: the config: must be a mapping of keys to values, not a list"),
        ("just words\n", "1:1: the config: must be a mapping of keys to values"),
        ("k3s:\n  install:none\n", "2:3: k3s: no space after the ':' of a key; write `install: ...`"),
        ("name=dev\n", "1:1: the config: no ':' and space after a key; write `name: ...`"),
        ("name:dev\n", "1:1: the config: no space after the ':' of a key; write `name: ...`"),
        ("name:dev\ncpus: 2\n", "1:5: no space after the ':' of a key"),
        ("name: 'dev\u200b'\n", "1:7: name: 'dev\\u200b' is not a DNS label: a-z, 0-9 and inner dashes, 63 at most; "
         "write `name: dev`; an invisible character is in it, U+200B ZERO WIDTH SPACE"),
        ('"na\u200bme": dev\n', "1:1: na\u200bme: in this key is an invisible character, U+200B ZERO WIDTH SPACE"),
        ("a: b: c\n", "1:5: "),
        ("name: a\nname: b\n", "2:1: "),
        (PLAIN + "portForwards: [{host: 2222, guest: 80}]\n", "2:15: portForwards: host port 2222 is used by sshPort, too"),
        (PLAIN + "portForwards: [{host: 1234, guest: 22}]\n", "2:15: portForwards: guest port 22 is what sshPort leads to"),
        ("portForwards: [{host: 80, guest: 80}]\n", "1:15: portForwards: guest port 6443 is missing"),
    ],
)  # fmt: skip
def test_a_problem_is_reported_where_it_stands(text: str, says: str) -> None:
    (problem,) = problems(text)
    assert problem.startswith(says)


@pytest.mark.parametrize("text", ["name: true\n", "lifetime: {maxRun: 8h, maxTotal: 4h}\n"])
def test_no_advice_is_what_is_written_already(text: str) -> None:
    (problem,) = problems(text)
    assert not [line for line in re.findall("`(.+?)`", problem) if line in text]


def test_all_problems_are_reported_at_once_in_the_order_of_the_file() -> None:
    found = problems(
        "name: Demo\nmemory: lots\nnmae: x\nlifetime:\n  maxRun: soon\n  onExpiry: never\ncpus: 0\n"
    )
    assert [line.split(": ")[1] for line in found] == [
        "name", "memory", "nmae", "lifetime.maxRun", "lifetime.onExpiry", "cpus"
    ]  # fmt: skip


WRONG_NAME = "1:7: name"
NO_API, TAKEN, TWICE, SSH = (
    "guest port 6443 is missing",
    "host port 2222 is used by sshPort",
    "host port 80 is forwarded twice",
    "guest port 22 ",
)


@pytest.mark.parametrize(
    "rest, also",
    [
        ("portForwards: [{host: 80, guest: 80}]\n", [("2:15: portForwards", NO_API)]),
        ("portForwards: [{host: 2222, guest: 6443}]\n", [("2:15: portForwards", TAKEN)]),
        ("portForwards: [{host: 80, guest: 6443}, {host: 80, guest: 22}]\n", [("2:15: portForwards", SSH), ("2:15: portForwards", TWICE)]),
        ("sshPort: 80\n", [("2:10: sshPort", "host port 80 is forwarded by default")]),
        ("portForwards: []\nsshPort: 6443\n", [("3:10: sshPort", "6443 is forwarded by default")]),
        # What is right in a list that is not right altogether.
        ("portForwards: [{host: x, guest: 80}]\n", [("2:15: portForwards", NO_API), ("2:23: portForwards[0].host", "'x' is not")]),
        (
            "portForwards: [{host: 80, guest: x}, 5, {host: 80, guest: 2}]\n",
            [("2:15: portForwards", TWICE), ("2:34: portForwards[0].guest", "'x' is not"), ("2:38: portForwards[1]", "must be a mapping")],
        ),
        ("portForwards: [{host: 2222}]\n", [("2:15: portForwards", TAKEN), ("2:16: portForwards[0].guest", "is missing")]),
    ],
)  # fmt: skip
def test_a_wrong_key_hides_no_broken_rule_between_others(
    rest: str, also: list[tuple[str, str]]
) -> None:
    expected = [(WRONG_NAME, "'Demo' is not a DNS label"), *also]
    found = problems("name: Demo\n" + rest)
    assert len(found) == len(expected)
    for problem, (where, what) in zip(found, expected):
        assert problem.startswith(f"{where}: ") and what in problem


@pytest.mark.parametrize(
    "text",
    [
        "portForwards: 80\nsshPort: 6443\n",
        "portForwards: [5]\n",
        "portForwards: [{host: 80}]\n",
        "portForwards: [{host: 80, guest: 0}]\n",
        "k3s: 5\nportForwards: [{host: 80, guest: 80}]\n",
        "k3s: {install: nine}\nportForwards: [{host: 80, guest: 80}]\n",
        "k3s: {install: nine}\nportForwards: []\n",
        "sshPort: x\nportForwards: [{host: 2222, guest: 6443}]\n",
        "provider: quemu\nportForwards: [{host: 80, guest: 80}]\n",
    ],
)
def test_a_rule_is_silent_where_a_value_that_it_needs_is_wrong_itself(text: str) -> None:
    assert len(problems(text)) == 1


def test_only_the_rules_of_the_provider_count() -> None:
    assert read("provider: docker\nportForwards: [{host: 80, guest: 80}]\n").port_forwards == (
        PortForward(80, 80),
    )


def test_an_error_names_the_schema_of_the_provider() -> None:
    with pytest.raises(ConfigError) as caught:
        read("provider: multipass\nnmae: x\n")
    assert "ycluster schema multipass" in caught.value.hint


def test_port_forwards_default_unless_there_is_no_k3s() -> None:
    assert read("portForwards: []\n").port_forwards == DEFAULT_FORWARDS
    assert read(PLAIN).port_forwards == DEFAULT_FORWARDS
    assert read(PLAIN + "portForwards: []\n").port_forwards == ()


@pytest.mark.parametrize(
    "text, first, hosts",
    [
        ("", 1024, [6443, 8080, 8443]),
        ("", 443, [6443, 8080, 443]),
        ("", 0, [6443, 80, 443]),
        ("sshPort: 8080\n", 1024, [6443, 0, 8443]),
        ("portForwards: []\n", 1024, [6443, 8080, 8443]),
        ("portForwards: [{host: 80, guest: 6443}]\n", 1024, [80]),
    ],
)
def test_a_default_port_that_root_alone_may_have_is_moved_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, first: int, hosts: list[int]
) -> None:
    """80 and 443 failed for everybody else; a port that the config names stays."""
    (tmp_path / FILE.name).write_text(text)
    monkeypatch.setattr(ycluster, "first_port", lambda: first)
    config = ycluster.require_qemu(load_config(tmp_path))
    assert [forward.host for forward in config.port_forwards] == hosts
    told = [line for line in ycluster.ignored_keys(config) if line.startswith("portForwards")]
    assert len(told) == bool({8080, 8443} & {*hosts})
    assert ycluster.state_from_config(config, tmp_path).port_forwards == config.port_forwards


def test_chosen_ports_collide_with_nothing() -> None:
    forwards = "portForwards: [{host: 0, guest: 6443}, {host: 0, guest: 80}]\n"
    assert read("sshPort: 0\n" + forwards).port_forwards == (
        PortForward(host=0, guest=6443),
        PortForward(host=0, guest=80),
    )


# --- which file


def test_the_config_of_a_directory_is_found(tmp_path: Path) -> None:
    (tmp_path / FILE.name).write_text("name: demo\n")
    assert load_config(tmp_path) == load_config(tmp_path / FILE.name)
    assert (load_config(tmp_path).name, load_config(tmp_path).file) == (
        "demo",
        tmp_path / FILE.name,
    )


def test_a_json_config_is_looked_for_too(tmp_path: Path) -> None:
    (tmp_path / "y-cluster-provision.json").write_text('{"name": "demo"}')
    assert load_config(tmp_path).name == "demo"


@pytest.mark.parametrize(
    "files, where, says",
    [
        (
            {"y-cluster-provision.yaml": b"", "y-cluster-provision.json": b"{}"},
            ".",
            "both y-cluster-provision.yaml and",
        ),
        ({}, ".", "no y-cluster-provision.yaml in it"),
        ({}, "nowhere", "no such directory"),
        ({"y-cluster-provision.yaml": b"name: \xff\n"}, ".", "not UTF-8 at byte 6"),
        ({"y-cluster-provision.yaml": "name: a\n".encode("utf-16")}, ".", "iconv -f UTF-16"),
        ({"y-cluster-provision.json": b'{"name": '}, ".", "y-cluster-provision.json:1:"),
    ],
    ids=["two files", "none", "no directory", "not UTF-8", "UTF-16", "half a JSON file"],
)
def test_a_config_that_cannot_be_had_is_an_error(
    tmp_path: Path, files: dict[str, bytes], where: str, says: str
) -> None:
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / where)
    assert says in f"{caught.value} {caught.value.hint}" and str(tmp_path) in str(caught.value)


def test_a_config_that_ends_in_yml_is_named_with_the_command_that_renames_it(
    cli: Cli, tmp_path: Path
) -> None:
    """(28)"""
    folder = tmp_path / "a b"
    folder.mkdir()
    (folder / "y-cluster-provision.yml").write_text("name: dev\n")
    ran = cli("config", "check", "-c", folder)
    told(ran, 3, "no y-cluster-provision.yaml in it")
    [command] = re.findall("`(mv .*)`", folded(ran.err))
    subprocess.run(command, shell=True, check=True)
    assert cli("config", "check", "-c", folder).code == 0


# --- for all inputs

KEYS = sorted({part for key in keys(ycluster.kind_of("qemu").schema) for part in key.split(".")})
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=30)
    | st.sampled_from(["8h", "0", ""])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | st.text(), inner, max_size=4)
)  # fmt: skip


@given(
    st.text()
    | st.text(st.sampled_from(":-#[]{},'\"|>&* \n\tab0"))
    | values.map(lambda value: json.dumps(value))
)
@example("portForwards: [{host: , guest: 80}]\n")
@example("provider: [qemu]\n")
@example("? {}\n")
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    try:
        config = read(text)
    except ConfigError as error:
        assert str(FILE) in str(error)
    else:
        assert isinstance(config, Config)


sizes = st.from_regex(r"[1-9][0-9]{0,5}[MGT]|[1-9][0-9]{3,5}K|[1-9][0-9]{6,9}", fullmatch=True)
printable = st.text(
    st.characters(min_codepoint=32, max_codepoint=0x2FFF, exclude_categories=["Cc", "Cs"]),
    max_size=20,
)
paths = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
strings = printable.filter(lambda text: "${" not in text)
registries = st.fixed_dictionaries(
    {}, optional={"mirrors": st.dictionaries(printable, st.fixed_dictionaries({}, optional={
        "endpoint": st.lists(strings | st.just("http://${HOST}"), max_size=2), "rewrite": st.dictionaries(printable, strings, max_size=2),
    }), max_size=2)},
)  # fmt: skip
gateway = st.fixed_dictionaries({}, optional={"skip": st.booleans(), "className": strings})
common: dict[str, Any] = {
    "name": st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True),
    "context": st.from_regex(r"[a-zA-Z0-9@:/._][a-zA-Z0-9@:/._-]{0,39}", fullmatch=True),
    "memory": st.integers(64, 10**6) | st.integers(64, 10**6).map(str),
    "cpus": st.integers(1, 512),
    "portForwards": st.lists(
        st.fixed_dictionaries({"host": st.integers(3000, 65535), "guest": st.integers(23, 65535)}), max_size=3,
        unique_by=lambda forward: forward["host"],
    ),
    "registries": registries,
    "gateway": gateway,
    "lifetime": st.fixed_dictionaries(
        {}, optional={"maxRun": st.sampled_from(["", "0", "8h", "1h30m"]), "onExpiry": st.sampled_from(sorted(ycluster.ACTIONS)),
                      "warn": st.sampled_from(["0", "5m"]), "onWarn": strings, "maxTotal": st.sampled_from(["", "24h"]),
                      "maxIdle": st.sampled_from(["", "0", "30m"]), "idleCpu": st.integers(0, 400)},
    ),
}  # fmt: skip
qemu: dict[str, Any] = {
    "diskSize": sizes,
    "sshPort": st.sampled_from([0, 22, 2222]),
    "cacheDir": paths,
    "dataDisk": paths,
    "dataDiskSize": sizes,
    "image": paths | st.just("https://example.org/a.img"),
    "imageSha256": st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    "accel": st.sampled_from(["auto", "kvm", "tcg"]),
    "cpuModel": st.sampled_from(["", "host", "Haswell,-avx"]),
    "sshUser": st.from_regex(r"[a-z_][-a-z0-9_]{0,31}", fullmatch=True),
}
k3s = {"k3s": st.fixed_dictionaries({"install": st.just("none")}, optional={"source": strings})}
configs = (
    st.fixed_dictionaries(k3s, optional={**common, **qemu})
    | st.fixed_dictionaries({**k3s, "provider": st.just("docker")}, optional=common)
    | st.fixed_dictionaries(
        {**k3s, "provider": st.just("multipass")}, optional={**common, "image": strings}
    )
)


@given(configs)
@example({"k3s": {"install": "none"}, "image": "a b.img"})
@example({"k3s": {"install": "none", "source": "/"}})
def test_what_config_show_prints_is_the_same_config(given_: dict[str, Any]) -> None:
    try:
        config = read(json.dumps(given_))
    except ConfigError as error:
        text = json.dumps(given_)
        assert re.search(r'://|[$]|"~', text), error  # what looks like a URL, a variable, a home
        return
    shown = ycluster.to_json(show_config(config))
    assert read(shown) == config
    assert json.loads(ycluster.to_json(show_config(read(shown)))) == json.loads(shown)


@pytest.mark.parametrize("number", ["1e400", ".inf", "-.inf", ".nan", "1.5", "1_000", "0x10"])
def test_config_show_is_json_whatever_number_the_registries_hold(number: str) -> None:
    try:
        config = read(f"registries: {{number: {number}}}\n")
    except ConfigError:
        return

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(ycluster.to_json(show_config(config)), parse_constant=refuse)


# --- the sibling's files, and what is only the sibling's

SIBLING = """\
provider: qemu
name: acme
context: acme
memory: "12288"
cpus: '6'
diskSize: 40g
sshPort: "2223"
k3s: {version: v1.35.4+k3s1, install: script}
portForwards:
- {host: '36443', guest: '6443'}
- {host: '', guest: '80'}
network: {bindAddress: 0.0.0.0}
gateway: {className: eg, resources: {controller: {cpu: 10m, memory: 64Mi}}}
storage: {path: /data/yolean, pathPattern: "{{ .PVC.Namespace }}_{{ .PVC.Name }}", reclaimPolicy: Retain}
registries:
  mirrors:
    docker.io:
      endpoint: ["https://${MIRROR}"]
      rewrite: {"^library/(.*)": "hub/$1"}
  configs:
    eu.gcr.io: {auth: {username: oauth2accesstoken, password: "${TOKEN}"}, tls: {insecure_skip_verify: true}}
lifetime: {maxRun: 8h, onExpiry: teardown}
"""


def test_a_file_of_the_sibling_means_the_same_here() -> None:
    config = read(SIBLING)
    assert (config.memory, config.cpus, config.ssh_port, config.disk_size) == (
        12288,
        6,
        2223,
        "40g",
    )
    assert config.port_forwards == (
        PortForward(host=36443, guest=6443),
        PortForward(host=0, guest=80),
    )
    assert (config.k3s.version, config.k3s.install) == ("v1.35.4+k3s1", "script")
    assert config.network.bind_address == "0.0.0.0"
    assert ycluster.parse_size(config.disk_size) == 40 << 30


def test_what_is_only_the_siblings_is_warned_about_and_not_refused() -> None:
    assert [text.split(":")[0] for text in ycluster.ignored_keys(read(SIBLING))] == [
        "gateway",
        "storage",
    ]
    assert [
        text.split(":")[0]
        for text in ycluster.ignored_keys(read(PLAIN + "registries: {mirrors: {}}\n"))
    ] == ["registries"]


@pytest.mark.parametrize("provider", ycluster.PROVIDERS)
@pytest.mark.parametrize(
    "lifetime, place",
    [
        ("lifetime: {maxRun: 8h, maxTotal: 1h}", "2:34"),
        ("lifetime:\n  maxTotal: 7h59m\n  maxRun: 8h", "3:13"),
        ("lifetime: {maxRun: 8h, maxTotal: 8h}", ""),
        ("lifetime: {maxRun: 8h, maxTotal: '0'}", ""),
        ("lifetime: {maxTotal: 1h}", ""),
    ],
)
def test_an_upper_limit_below_the_budget_is_refused_at_its_place(
    provider: str, lifetime: str, place: str
) -> None:
    """Either would contradict the other. (20.14)"""
    text = f"provider: {provider}\n{lifetime}\n"
    if place:
        (problem,) = problems(text)
        assert problem.startswith(f"{place}: lifetime.maxTotal:")
    else:
        assert read(text).lifetime.max_total


@pytest.mark.parametrize(
    "lifetime, warned",
    [
        ("{maxRun: 8h, onExpiry: stop, warn: 5m, onWarn: true, maxTotal: 9h}", set()),
        ("{onExpiry: teardown, warn: 5m, onWarn: 'true', maxTotal: 9h}",
         {"onExpiry", "warn", "onWarn", "maxTotal"}),
        ("{maxRun: '0', onExpiry: stop}", {"onExpiry"}),
        ("{warn: '0', maxTotal: ''}", set()),
        ("{maxRun: 5m}", set()),  # the default of 10m is nobody's mistake
        ("{maxRun: 5m, warn: 10m}", {"warn"}),
        ("{maxRun: 5m, warn: 5m}", {"warn"}),
        ("{maxRun: 5m, warn: 4m}", set()),
        ("{maxIdle: 30m, onExpiry: pause, warn: 5m, onWarn: 'true', idleCpu: 50}", set()),
        ("{maxIdle: 30m, maxTotal: 9h}", set()),
        ("{maxIdle: '0', warn: 5m}", {"warn"}),
        ("{maxRun: 8h, idleCpu: 50}", {"idleCpu"}),
        ("{idleCpu: 0}", set()),
        ("{maxRun: 1h, maxIdle: 59m}", set()),
        ("{maxRun: 1h, maxIdle: 1h}", {"maxIdle"}),
        ("", set()),
    ],
)  # fmt: skip
def test_a_lifetime_that_can_have_no_effect_is_warned_about(
    tmp_path: Path, lifetime: str, warned: set[str]
) -> None:
    """An onExpiry without a maxRun, a warning that never comes. (20.15, 20.14)"""
    file = tmp_path / "y-cluster-provision.yaml"
    file.write_text(f"lifetime: {lifetime.replace('onWarn: true', 'onWarn: date')}\n")
    said = ycluster.idle_keys(ycluster.load_config(tmp_path))
    assert {text.split(":")[0] for text in said} == {f"lifetime.{name}" for name in warned}


@pytest.mark.parametrize(
    "text, warned",
    [
        ('onWarn: "a\u00a0b"', ["lifetime.onWarn"]),
        ("onWarn: |\n    a\u200bb", ["lifetime.onWarn"]),
        ('onWarn: "a\\u00a0b"', []),
        ("onWarn: grüße", []),
        ("warn: 1m  # a\u00a0b", []),
    ],
    ids=["quoted", "block", "escape", "visible", "comment"],
)
def test_an_invisible_character_in_a_free_text_is_warned_about(
    tmp_path: Path, text: str, warned: list[str]
) -> None:
    """Elsewhere it is an error; here it may be meant. (26.9)"""
    file = tmp_path / "y-cluster-provision.yaml"
    file.write_text(f"lifetime:\n  maxRun: 8h\n  {text}\n", "utf-8")
    said = ycluster.warnings_of(ycluster.load_config(tmp_path))
    assert [line.split(":")[0] for line in said] == warned
    assert all(re.search(r"U\+.*\"\\u[0-9a-f]{4}\"", line) for line in said)


def test_variables_are_filled_in_where_they_are_used_and_shown_as_they_stand() -> None:
    config = read(SIBLING)
    assert "${TOKEN}" in ycluster.to_json(show_config(config))
    filled = ycluster.expand_variables(config, {"MIRROR": "m.example.org", "TOKEN": "s3cret"})
    assert filled["mirrors"]["docker.io"] == {
        "endpoint": ["https://m.example.org"],
        "rewrite": {"^library/(.*)": "hub/$1"},
    }
    assert filled["configs"]["eu.gcr.io"]["auth"]["password"] == "s3cret"


@pytest.mark.parametrize(
    "text, filled",
    [
        ("plain", "plain"), ("${SET}", "value"), ("a-${SET}-b${SET}", "a-value-bvalue"), ("${EMPTY}", ""),
        ("${UNSET:-fall back}", "fall back"), ("${UNSET:-}", ""), ("${SET:-no}", "value"),
        ("${EMPTY:-no}", ""),  # as the sibling has it: set is set
        ("${UNSET:-${SET}}", "${SET}"),  # no nesting: the first } ends it, and nothing is looked at twice
        ("${UNSET:-a:-b}", "a:-b"), ("${REF}", "${SET} $$"), ("${UNSET:-$$}", "$"),
        ("$${SET}", "${SET}"), ("$$${SET}", "$value"), ("$$ ${SET} $1", "$ value $1"), ("$$$$ ${SET}", "$$ value"),
        ("pa$$word", "pa$$word"), ("$SET", "$SET"),  # the sibling touches nothing without a ${
    ],
)  # fmt: skip
def test_variables_mean_what_they_mean_to_the_sibling(text: str, filled: str) -> None:
    """With defaults and escapes, unset and empty. Source: its pkg/envsubst. (20.9)"""
    environ = {"SET": "value", "EMPTY": "", "REF": "${SET} $$"}
    config = read(json.dumps({"registries": {"configs": {"r": {"auth": {"password": text}}}}}))
    done = ycluster.registries_yaml(config, environ)
    assert done == {"configs": {"r": {"auth": {"password": filled}}}}
    assert config.registries["configs"]["r"]["auth"]["password"] == text, "it is shown as it stands"


@pytest.mark.parametrize("text", ["${", "${1}", "${A", "${A:default}", "${A:-b", "$$${}", "${A }"])
def test_a_reference_that_is_none_is_refused(text: str) -> None:
    """The sibling would hand it on as it is, where a mistake is more likely. (20.9)"""
    config = {"registries": {"configs": {"r": {"auth": {"password": text}}}}}
    assert "password" in problems(json.dumps(config))[0]


def test_a_variable_in_a_key_is_refused() -> None:
    """As in the sibling: a name is never substituted. (20.9)"""
    assert "mirrors.${R}" in problems("registries: {mirrors: {'${R}': {}}}")[0]


WRITTEN = """\
registries:
  mirrors:
    docker.io:
    quay.io: {}
    ghcr.io: {endpoint: [], rewrite: {"^a$": ""}}
  configs:
    a: {auth: {username: "", password: }, tls: }
    b: {auth: {identitytoken: old}}
    c: {auth: {identity_token: "${T:-new}"}}
    d:
"""


def test_what_is_in_the_registries_is_handed_on_as_it_is() -> None:
    """Names with nothing behind them and empty texts too; `identity_token` is what k3s reads. (20.9)"""
    config = read(WRITTEN)
    mirrors = {
        "docker.io": None,
        "quay.io": {},
        "ghcr.io": {"endpoint": [], "rewrite": {"^a$": ""}},
    }
    empty = {"auth": {"username": "", "password": None}, "tls": None}
    handed_on = ycluster.registries_yaml(config, {})
    assert handed_on == {
        "mirrors": mirrors,
        "configs": {
            "a": empty,
            "b": {"auth": {"identity_token": "old"}},
            "c": {"auth": {"identity_token": "new"}},
            "d": None,
        },
    }
    shown = json.loads(ycluster.to_json(show_config(config)))["registries"]
    assert (shown["mirrors"], shown["configs"]["a"]) == (mirrors, empty)
    assert shown["configs"]["b"] == {"auth": {"identitytoken": "old"}}, "as in the file"


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(
        ConfigError,
        match=r"registries\.configs\.eu\.gcr\.io\.auth\.password: the variable TOKEN is not",
    ):
        ycluster.expand_variables(read(SIBLING), {"MIRROR": "m"})


@pytest.mark.parametrize(
    "text",
    [
        "name: ${NAME}",
        "image: ${HOME}/a.img",
        "registries: {configs: {a: {tls: {ca_file: '${HOME}/ca'}}}}",
    ],
)
def test_a_variable_elsewhere_is_refused(text: str) -> None:
    assert "is substituted in registries, and nowhere else" in problems(text)[0]


def test_five_mistakes_are_five_problems_with_five_line_numbers() -> None:
    text = "name: ../x\nmemory: lots\nlifetime:\n  maxRun: 8hours\n  onExpiry: explode\nportForwards:\n  - {host: 80}\n"
    assert [problem.split(":")[0] for problem in problems(text)] == ["1", "2", "4", "5", "7"]


# --- which cluster a config is of, though the whole of it can't be read

IDENTIFIED = {
    "a wrong value": ("name: a\nmemory: lots\ncacheDir: own\n", "own"),
    "a wrong key": ("memry: 1\nname: a\n", ""),
    "a text without end": ('context: "x\ncacheDir: own\nname: a\nprovider: qemu\n', "own"),
    "brackets without end": ("name: a\nportForwards: [{host: 1\n", ""),
    "odd indentation": ("lifetime:\n  maxRun: 8h\n   onExpiry: stop\nname: a  # mine\n", ""),
    "tabs": ("name: 'a'\nk3s:\n\tinstall: none\n", ""),
    "an anchor": ("\ufeffname: a\r\nlifetime: &x {maxRun: 8h}\r\n", ""),
    "a key twice": ("memory: 1\nmemory: 2\nname: a\ncacheDir:\n  own\n", "own"),
    "quoted keys": ("'name': a\n\"cacheDir\" : own\ncpus: *x\n", "own"),
    "no UTF-8": (b"name: a\ncontext: '\xe9'\n", ""),
}


@pytest.mark.parametrize("text, place", IDENTIFIED.values(), ids=IDENTIFIED)
def test_a_config_that_is_wrong_elsewhere_still_tells_which_cluster_it_is_of(
    tmp_path: Path, text: str | bytes, place: str
) -> None:
    """A stop needs no more than the name and the cacheDir. (20.17)"""
    raw = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "y-cluster-provision.yaml").write_bytes(raw)
    with pytest.raises(ConfigError):
        ycluster.load_config(tmp_path)
    config, error = ycluster.load_identity(tmp_path)
    assert isinstance(config, ycluster.QemuConfig) and config.name == "a" and error is not None
    assert config.cache_dir == (tmp_path / place if place else None)


UNCERTAIN = {
    "no name": "memory: [\n",
    "a name twice": "name: a\nname: b\n",
    "a merge conflict": "<<<<<<< ours\nname: a\n=======\nname: b\n>>>>>>> theirs\n",
    "a name that is wrong": "name: [a\nmemory: 1\n",
    "a name without a value": "name:\na\ncpus: [\n",
    "a place without a value": "name: a\ncacheDir:\n/own\n",
    "a place that is wrong": "name: a\ncacheDir: {x: 1}\n",
    "a place without end": "name: a\ncacheDir: 'own\n",
    "a place and more": "name: a\ncacheDir: own\n  more: x\n",
    "a misspelt name": "nmae: a\nmemory: lots\n",
    "a misspelt place": "name: a\ncachedir: own\n",
    "the same, and no YAML": "name: a\ncache_dir: own\ncpus: [\n",
    "a wrong provider": "name: a\nprovider: qmu\n",
    "JSON": '{"name": "a",\n"memory": [\n',
    "a list": "- name: a\n",
    "no name, though it begins like one": "name:x: a\ncpus: [\n",
    "another name in it": "context: |\n  name: b\nmemory: [\n",
}


@pytest.mark.parametrize("text", UNCERTAIN.values(), ids=UNCERTAIN)
def test_where_it_is_not_certain_which_cluster_a_config_is_of_its_error_stays(
    tmp_path: Path, text: str
) -> None:
    """The default name, or the default cacheDir, could be another cluster. (20.17)"""
    (tmp_path / "y-cluster-provision.yaml").write_text(text)
    with pytest.raises(ConfigError) as strict:
        ycluster.load_config(tmp_path)
    with pytest.raises(ConfigError) as caught:
        ycluster.load_identity(tmp_path)
    assert str(caught.value) == str(strict.value)


@pytest.mark.parametrize("provider", ycluster.PROVIDERS)
def test_no_key_is_taken_for_a_misspelt_name_or_place(tmp_path: Path, provider: str) -> None:
    """Every key of a provider's may stand beside one that is wrong. (20.17)"""
    keys = [key for key in ycluster.schema_for(provider)["properties"] if key != "provider"]
    text = f"provider: {provider}\n" + "".join(f"{key}:\n" for key in keys if key != "cacheDir")
    text = text.replace("name:\n", "name: a\n") + "oops: 1\n"
    for broken in ("", "cpus: [\n"):
        (tmp_path / "y-cluster-provision.yaml").write_text(text + broken)
        assert ycluster.load_identity(tmp_path)[0].name == "a"


MISTAKES = [
    ("lifetime: {maxRun: 1d}", "`maxRun: 24h`"),
    ("lifetime: {maxRun: 480}", "`maxRun: 480m` or `maxRun: 8h`"),
    ("lifetime: {maxRun: 7}", "`maxRun: 7m` or `maxRun: 7h`"),
    ("lifetime: {maxRun: 8 hours}", "`maxRun: 8h`"),
    ("lifetime: {warn: 10 min}", "`warn: 10m`"),
    ('lifetime: {maxRun: "8:30"}', "`maxRun: 8h30m`"),
    ("lifetime:\n  maxRun: 8:30", "it is 8h30m"),
    ("lifetime: {maxRun: never}", "leave maxRun out"),
    ("lifetime: {maxIdle: false}", "leave maxIdle out"),
    ("lifetime: {maxRun: -5m}", "`maxRun: 5m`"),
    ("lifetime: {maxRun: soon}", "for example `maxRun: 8h`"),
    ("lifetime: {maxRun: 1h 30m}", "write `maxRun: 1h30m`"),
    ("lifetime: {maxRun: 1d12h}", "write `maxRun: 36h`"),
    ("lifetime: {maxRun: 1.5 days}", "write `maxRun: 36h`"),
    ('lifetime: {maxRun: "1 week, 2 days and 5 Minutes"}', "write `maxRun: 216h5m`"),
    ("lifetime: {maxRun: 90 mins}", "write `maxRun: 1h30m`"),
    ("lifetime: {maxRun: 0.5}", "for example `maxRun: 8h`"),
    ("lifetime: {maxRun: 0 days}", "for example `maxRun: 8h`"),
    ('lifetime: {maxRun: "0:00"}', "for example `maxRun: 8h`"),
    ("lifetime: {maxRun: 999999 weeks}", "for example `maxRun: 8h`"),
    ("lifetime: {maxRun: 5 months}", "for example `maxRun: 8h`"),
    ("lifetime:\n  maxRun: |\n    8h", "write `maxRun: 8h`"),
    ('lifetime: {warn: "off"}', 'write `warn: "0"`'),
    ("lifetime: {onExpiry: delete}", "`onExpiry: teardown`"),
    ("lifetime: {onExpiry: poweroff}", "`onExpiry: stop`"),
    ("lifetime: 8h", "`lifetime: {maxRun: 8h}`"),
    ("lifetime: 1d", "`lifetime: {maxRun: 24h}`"),
    ("maxRun: 8h", "`lifetime: {maxRun: 8h}`"),
    ("ttl: 8h", "`lifetime: {maxRun: 8h}`"),
    ("maxIdle: 30m", "`lifetime: {maxIdle: 30m}`"),
    ("onExpiry: stop", "`lifetime: {onExpiry: stop}`"),
    ("diskSize: 40 GB", "`diskSize: 40G`"),
    ("diskSize: 20", "`diskSize: 20G`"),
    ("dataDiskSize: 20480", "`dataDiskSize: 20480M`"),
    (
        "portForwards: [{host: 80, guest: 80}]",
        "`portForwards: [{host: 80, guest: 80}, {host: 6443, guest: 6443}]`",
    ),
    (
        "portForwards: [{host: 6443, guest: 80}]",
        "`portForwards: [{host: 6443, guest: 80}, {guest: 6443}]`",
    ),
    ("disk: 40G", "`diskSize: 40G`"),
    ("cpu: 2", "`cpus: 2`"),
    ("ram: 4G", "`memory: 4G`"),
    ('portForwards: ["8080:80"]', "`{host: 8080, guest: 80}`"),
    ('ports: ["8080:80"]', "`portForwards: [{host: 8080, guest: 80}]`"),
    ("k3s: none", "`k3s: {install: none}`"),
    ("k3s: false", "`k3s: {install: none}`"),
    ("name: My_Cluster", "`name: my-cluster`"),
    ("name: ___", "`name: dev`"),
    ("provider: kvm", "`provider: qemu`"),
]


@pytest.mark.parametrize("text, advice", MISTAKES, ids=[text for text, _ in MISTAKES])
def test_a_common_mistake_is_told_with_the_line_to_write(
    tmp_path: Path, text: str, advice: str
) -> None:
    """And not with where all keys are described. (25)"""
    (tmp_path / "y-cluster-provision.yaml").write_text(text + "\n")
    with pytest.raises(ycluster.ConfigError) as caught:
        ycluster.load_config(tmp_path)
    said = f"{caught.value} {caught.value.hint}"
    assert advice in said and "schema" not in said


LINES = [
    line for _, advice in MISTAKES for line in re.findall("`([a-z].*?)`", advice)
    if not line.startswith(("maxRun", "warn", "onExpiry", "cpus"))
]  # fmt: skip


@pytest.mark.parametrize("line", sorted({*LINES}))
def test_the_line_to_write_is_right_itself(tmp_path: Path, line: str) -> None:
    """(25)"""
    rest = "" if line.startswith("k3s") else "k3s: {install: none}\n"
    (tmp_path / "y-cluster-provision.yaml").write_text(f"{line}\n{rest}")
    ycluster.load_config(tmp_path)


@pytest.mark.parametrize(
    "text, size",
    [("4G", 4096), ("4Gi", 4096), ("4GB", 4096), ("4 GiB", 4096), ("1.5G", 1536), ("512M", 512),
     ("2048", 2048), ("4g", 4096)],
)  # fmt: skip
def test_memory_may_be_in_gigabytes(tmp_path: Path, text: str, size: int) -> None:
    """(25)"""
    (tmp_path / "y-cluster-provision.yaml").write_text(f"memory: {text}\nk3s: {{install: none}}\n")
    config = ycluster.load_config(tmp_path)
    assert isinstance(config, ycluster.QemuConfig) and config.memory == size


@pytest.mark.parametrize("text", ["1.3333G", "0.01G", "4T", "G", "99999999G"])
def test_memory_is_a_whole_number_of_megabytes(tmp_path: Path, text: str) -> None:
    """(25)"""
    (tmp_path / "y-cluster-provision.yaml").write_text(f"memory: {text}\nk3s: {{install: none}}\n")
    with pytest.raises(ycluster.ConfigError):
        ycluster.load_config(tmp_path)


@pytest.mark.parametrize(
    "where, name", [("dev", "dev"), ("My Project_2", "my-project-2"), ("___", "dev"), ("a/b", "b")]
)
def test_a_config_to_start_with_is_right_and_never_overwrites(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, name: str
) -> None:
    """(25)"""
    monkeypatch.chdir(tmp_path)
    assert cli("init", where).code == 0
    file = tmp_path / where / "y-cluster-provision.yaml"
    config = load_config(tmp_path / where)
    assert (config.name, config.lifetime.max_run, config.lifetime.on_expiry) == (name, "8h", "stop")
    assert 10 < len(file.read_text().splitlines()) < 25
    schema = re.search(r"[$]schema=(.*)", file.read_text())
    assert schema and json.loads((file.parent / schema[1]).read_text()) == ycluster.schema_for(
        "qemu"
    )
    before = file.read_text()
    told(cli("init", where), 2, file.relative_to(tmp_path), "overwritten")
    assert file.read_text() == before


def test_every_line_of_a_config_to_start_with_that_is_commented_out_is_right_too(
    cli: Cli, tmp_path: Path
) -> None:
    """(25)"""
    assert cli("init", tmp_path / "dev").code == 0
    file = tmp_path / "dev" / "y-cluster-provision.yaml"
    lines = re.sub(r"(?m)^( *)# ((- \{)?[a-zA-Z0-9]+: )", r"\1\2", file.read_text())
    file.write_text(lines)
    config = load_config(tmp_path / "dev")
    assert isinstance(config, ycluster.QemuConfig)
    assert (config.memory, config.lifetime.max_idle, config.k3s.install) == (8192, "2h", "none")
    assert len(config.port_forwards) == 2


def test_a_config_to_start_with_is_written_here(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(25)"""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "y-cluster-provision.json").write_text("{}")
    told(cli("init"), 2, "y-cluster-provision.json")
    (tmp_path / "here" / "y-cluster-provision.json").unlink()
    assert cli("init").code == 0 and load_config(tmp_path / "here").name == "here"
