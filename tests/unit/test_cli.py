"""Sections 19 and 20: from argv to exit code. A command that fails says so in three lines, and leaves no trace."""

from __future__ import annotations

import json
import os
import pwd
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from unit_support import (
    ALONE,
    LAUNCHER,
    PROGRAM,
    Cli,
    Memory,
    Processes,
    Ran,
    made,
    missing,
    stand_in,
    told,
    tree,
    wait_for,
    with_disk,
)

import ycluster

CONFIGS = {
    "good": "name: demo\nk3s: {install: none}\nlifetime: {maxRun: 8h}\n",
    "bad": "nmae: demo\nmemory: lots\n",
    "k3s": "name: demo\nk3s: {install: script, source: /srv/k3s}\n",
    "tap": "k3s: {install: none}\nnetwork: {mode: tap, ifname: tap0, guestAddress: 10.88.0.2/24, gateway: 10.88.0.1}\n",
    "long": "k3s: {install: none}\nlifetime: {maxRun: 3000h}\n",
    "docker": "provider: docker\n",
    "multipass": "provider: multipass\n",
}
VERBS = ["start", "stop", "pause", "resume", "status", "ssh"]
VERBS += ["lifetime " + verb for verb in ("status", "reap", "extend 1h", "arm", "disarm", "watch")]
LONG_AGO = ycluster.parse_time("2020-01-01T00:00:00Z")
FAR_AHEAD = ycluster.parse_time("2100-01-01T00:00:00Z")


@pytest.fixture
def at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one directory for each of CONFIGS."""
    for name, text in CONFIGS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "y-cluster-provision.yaml").write_text(text)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failed(ran: Ran, code: int, lines: int = 3) -> None:
    assert (ran.code, ran.out) == (code, ""), ran.err
    assert 1 <= len(ran.err.splitlines()) <= lines and "Traceback" not in ran.err


def shell(command: str, home: Path, **environ: str) -> Ran:
    """A shell command in which $y is ycluster, in an all but empty environment."""
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "y": str(LAUNCHER),
        "python": sys.executable,
        **environ,
    }
    done = subprocess.run(
        ["sh", "-c", command], env=env, capture_output=True, text=True, timeout=60
    )
    return Ran(done.returncode, done.stdout, done.stderr)


# --- every class of bad input


def test_a_verb_alone_is_parsed_as_it_is_among_all_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only the one that is asked for is made; a word that is none finds them all."""
    assert len(ycluster.VERBS) > 20
    for path in ycluster.VERBS:
        helps = []
        for parse in (ycluster.parse_args, ycluster.full_parser().parse_args):
            with pytest.raises(SystemExit):
                parse([*path.split(), "--help"])
            helps.append(capsys.readouterr().out)
        assert helps[0] == helps[1] and f"usage: ycluster {path} " in helps[0]


@pytest.mark.parametrize("argv", [[], ["lifetime"], ["help"], ["help", "config"], ["--help"]])
def test_what_there_is_is_told_where_no_verb_is_asked_for(cli: Cli, argv: list[str]) -> None:
    """(25)"""
    code, shown, _ = cli(*argv)
    assert code == 0
    group = "".join(word for word in argv if word in ycluster.GROUPS)
    below = [path for path in ycluster.VERBS if path.rpartition(" ")[0] == group]
    assert len(below) > 1 and all(
        re.search(rf"(?m)^ +{path.split()[len(group.split())]}\b", shown) for path in below
    )


@pytest.mark.parametrize(
    "argv, near",
    [
        ("provison", "provision"),
        ("lst", "list"),
        ("lifetime extnd 1h", "extend"),
        ("help strat", "start"),
        ("extend 1h", "lifetime extend"),
        ("lifetime start", "start"),
        ("start --nmae demo", "--name"),
        ("lifetime extend 1h --dryrun", "--dry-run"),
    ],
)
def test_a_word_that_is_none_is_told_with_the_nearest(cli: Cli, argv: str, near: str) -> None:
    """(25)"""
    ran = cli(*argv.split())
    assert ran.code == 2 and f"did you mean '{near}'?" in ran.err and ran.out == ""


@pytest.mark.parametrize(
    "argv, word",
    [
        ("lifetime extend -1h", "-1h"),
        ("lifetime set demo -5m", "-5m"),
        ("prune --older-than -1d", "-1d"),
        ("provision -c x --max-run -.5h", "-.5h"),
        ("lifetime extend -1h30m", "-1h30m"),
    ],
)
def test_a_negative_value_is_not_told_as_missing(cli: Cli, argv: str, word: str) -> None:
    told(cli(*argv.split()), 2, f"{word}: a duration is positive")


@pytest.mark.parametrize("verb", ["provision -c x", "run -c x", "start demo", "resume demo"])
def test_an_empty_budget_is_not_taken_for_none_that_is_given(cli: Cli, verb: str) -> None:
    """A script whose variable is not set would run by the config's. (25)"""
    code = 125 if verb.startswith("run") else 2
    told(cli(*verb.split(), "--max-run", ""), code, "--max-run needs a duration", "unset variable")
    given = ycluster.parse_args([*verb.split(), "--max-run", "0"])
    assert given["run_budget"] == "0" and "run_budget" not in ycluster.parse_args(verb.split())


def test_help_is_shown_whatever_else_is_wrong(cli: Cli) -> None:
    assert cli("lifetime", "extend", "-1h", "--help").code == 0


def test_a_number_after_a_dash_may_be_a_name_or_stand_in_a_command() -> None:
    args = ycluster.parse_args(["ssh", "--name", "demo", "sleep", "-1h"])
    assert list(args["command"]) == ["sleep", "-1h"]
    assert ycluster.parse_args(["init", "-1"])["directory"] == Path("-1")


def test_help_is_that_of_the_verb_and_tells_all_exit_codes(cli: Cli) -> None:
    """(25)"""
    for verb in ("start", "lifetime extend"):
        asked = cli("help", *verb.split())
        assert asked == cli(*verb.split(), "--help") and asked.code == 0 and asked.out
    codes = re.findall(r"(?m)^ *(\d+)  \S", cli("help", "exit-codes").out)
    classes = [kind for kind in vars(ycluster).values() if isinstance(kind, type)]
    used = {vars(kind)["exit_code"] for kind in classes if "exit_code" in vars(kind)}
    assert {*map(int, codes)} == used | {0, ycluster.OWN_FAILURE, 126, 127}


def test_ls_and_rm_are_list_and_teardown(cli: Cli, cache: Path) -> None:
    """(25)"""
    made(cache, "demo")
    assert cli("ls").out == cli("list").out != ""
    assert cli("rm", "demo").code == 0 and not ycluster.Files(cache, "demo").sidecar.exists()


PLACED = [
    path for path, command in ycluster.VERBS.items()
    if any(ycluster.BY_PLACE in getattr(item, "arguments", ()) for item in command.verb.arguments)  # type: ignore[attr-defined]
]  # fmt: skip


@pytest.mark.parametrize("path", PLACED)
def test_a_cluster_is_named_by_its_place_too(path: str) -> None:
    """(25)"""
    by_place = ycluster.parse_args([*path.split(), "demo"])
    assert by_place == ycluster.parse_args([*path.split(), "--name", "demo"])
    for twice in (["demo", "--name", "demo"], ["demo", "-c", "."], ["demo", "other"]):
        with pytest.raises(SystemExit):
            ycluster.parse_args([*path.split(), *twice])


def test_every_verb_of_one_cluster_takes_it_by_its_place_or_has_another_word_there() -> None:
    """(25)"""
    other = {"export", "lifetime extend", "lifetime set", "lifetime hold", "ssh"}
    assert len(PLACED) > 10 and not other & {*PLACED}
    for path in ycluster.VERBS:
        names = [name for item in ycluster.arguments_of(path) for name in item.names]
        assert ("--context" not in names) or path in PLACED or path in other


@pytest.mark.parametrize("verb", ["ssh", "lifetime hold", "-v=false lifetime hold"])
@pytest.mark.parametrize(
    "words, name, command",
    [
        ("demo -- uname -a", "demo", ["--", "uname", "-a"]),
        ("demo", "demo", []),
        ("-- uname -a", "", ["--", "uname", "-a"]),
        ("--name demo -- uname", "demo", ["--", "uname"]),
        ("--name demo uname", "demo", ["uname"]),
        ("demo -- sh -c -- x", "demo", ["--", "sh", "-c", "--", "x"]),
    ],
)
def test_before_a_command_stands_the_cluster(
    verb: str, words: str, name: str, command: list[str]
) -> None:
    """(25)"""
    args = ycluster.parse_args([*verb.split(), *words.split()])
    assert (args["files"].name, list(args["command"])) == (name, command)


@pytest.mark.parametrize("verb", ["ssh", "lifetime hold", "-v=false lifetime hold"])
def test_a_command_without_its_dashes_is_not_taken_for_a_cluster(cli: Cli, verb: str) -> None:
    """(25)"""
    own = 2 if verb == "ssh" else ycluster.OWN_FAILURE
    told(cli(*verb.split(), "uname", "-a"), own, "-a", "`--`")


@pytest.mark.parametrize(
    "argv, code, says",
    [
        ("frobnicate", 2, "frobnicate, ycluster help"),
        ("config frobnicate", 2, "config frobnicate, ycluster help config"),
        ("provision", 2, "-c/--config"),
        ("stop --name a --context b", 2, "--context, --name"),
        ("stop --name a -c good", 2, "-c/--config, --name"),
        ("stop demo more", 2, "more"),
        ("stop demo", 4, "demo"),
        ("list -o yaml", 2, "yaml"),
        ("status -o table", 2, "table"),
        ("lifetime gcp-flags -c good -o table", 2, "table"),
        ("lifetime extend", 2, "DURATION"),
        ("schema", 2, "which --write"),
        ("schema common --write out", 2, "--write:, which"),
        ("schema podman", 2, "podman"),
        ("lifetime reap --wait soon", 2, "soon"),
        ("lifetime reap --state a.json --name demo", 2, "--state"),
        ("lifetime reap --state a.json -c good", 2, "--state"),
        ("lifetime watch --state a.json --context local", 2, "--state"),
        ("lifetime reap --all --state a.json", 2, "--all"),
        ("lifetime reap --all --name demo", 2, "--all"),
        ("config check -c bad", 3, "bad/y-cluster-provision.yaml:1:1: nmae:"),
        ("config show -c bad", 3, "bad/y-cluster-provision.yaml:2:9: memory: 'lots'"),
        ("provision -c bad", 3, "2 problems, yaml:1:1, yaml:2:9"),
        ("lifetime gcp-flags -c bad", 3, "yaml:1:1, yaml:2:9"),
        ("lifetime gcp-flags -c long", 3, "/long/y-cluster, maxRun 3000h"),
        ("config check -c empty", 3, "/empty:, y-cluster-provision.yaml"),
        ("config check -c nowhere", 3, "/nowhere: no such directory"),
        pytest.param("config check -c " + "d" * 5000, 3, "dddd", id="a path too long"),
        ("stop -c bad", 3, "yaml:1:1, yaml:2:9"),
        ("provision -c good --name Job_7", 2, "Job_7, DNS label"),
        pytest.param("provision -c good --name=", 2, "DNS label", id="an unset variable"),
        ("run -c good --name -7 -- true", 125, "--name"),
        ("stop --name demo", 4, "demo, none, `ycluster provision"),
        ("stop --context prod", 4, "context prod"),
        ("status --name ../../etc/passwd", 4, "../../etc/passwd"),
        ("teardown --name demo", 4, "demo"),
        ("lifetime reap --state nowhere/demo.json", 4, "demo, /nowhere"),
        ("lifetime watch --state nowhere/demo.json", 4, "demo, /nowhere"),
        ("provision -c docker", 6, "docker, provider: qemu"),
        ("provision -c multipass", 6, "multipass, provider: qemu"),
        ("stop -c docker", 6, "docker, provider: qemu"),
        ("teardown -c multipass", 6, "multipass, provider: qemu"),
        ("provision -c tap", 6, "network.mode: tap"),
        ("provision -c k3s", 6, "k3s.source, install: script"),
    ],
)  # fmt: skip
def test_bad_input_has_its_exit_code_and_leaves_no_trace(
    cli: Cli, at: Path, argv: str, code: int, says: str
) -> None:
    before = tree(at)
    ran = cli(*argv.split())
    failed(ran, code, lines=5 if "usage:" in ran.err else 4)
    assert missing(ran.err.partition("error: ")[2] or ran.err, *says.split(", ")) == [], ran.err
    assert tree(at) == before


@pytest.mark.parametrize(
    "words, same",
    [
        ("teardown demo --keep-disk=true", "teardown demo --keep-disk"),
        ("teardown demo --keep-disk=false", "teardown demo"),
        ("teardown demo --keep-disk=1", "teardown demo --keep-disk"),
        ("teardown demo --keep-disk=F", "teardown demo"),
        ("-v=true list", "list -v"),
        ("--verbose=false ls", "list"),
        ("lifetime -v reap --all", "lifetime reap --all -v"),
        ("list -v=true -q=false", "list -v"),
        ("lifetime reap --all=true", "lifetime reap --all"),
        ("ssh dev -- x --keep-disk=true", "ssh dev -- x --keep-disk=true"),
        ("export b --format=true", ""),
    ],
)
def test_a_flag_may_have_a_value_as_the_sibling_takes_it(
    words: str, same: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """(26.8) Not what is no flag; and a command is left as it is."""
    if same:
        assert ycluster.parse_args(words.split()) == ycluster.parse_args(same.split())
    else:
        with pytest.raises(SystemExit):
            ycluster.parse_args(words.split())


def test_a_flag_is_true_or_false(cli: Cli) -> None:
    told(cli("teardown", "demo", "--keep-disk=maybe"), 2, "--keep-disk is true or false")


@pytest.mark.parametrize(
    "duration, says",
    [
        ("soon", '"soon"'),
        ("2", '"2"'),
        ("0s", "positive"),
        ("-- -2h", "positive"),
        ("0d", "positive"),
        ("d", '"d"'),
        ("1d2", '"1d2"'),
        ("1.5d", '"1.5d"'),
        ("2h1d", '"2h1d"'),
    ],
)
def test_extend_wants_a_positive_go_duration(
    cli: Cli, cache: Path, duration: str, says: str
) -> None:
    state = made(cache, expires_at=FAR_AHEAD)
    ran = cli("lifetime", "extend", *duration.split())
    failed(ran, 2)
    assert says in ran.err and ycluster.load_state(state.files) == state


CHANGING = [
    path for path in ycluster.VERBS if ycluster.THEN_SHOW in ycluster.declared(path).arguments
]  # fmt: skip


def test_list_can_give_names_alone(cli: Cli, cache: Path) -> None:
    """(25)"""
    assert cli("list", "-q") == (0, "", "")
    made(cache, "b")
    made(cache, "a")
    assert cli("ls", "-q").out == "a\nb\n"
    told(cli("list", "-q", "-o", "json"), 2, "-q")


def test_the_console_is_shown_without_what_would_drive_a_terminal(cli: Cli, cache: Path) -> None:
    """(25)"""
    files = made(cache).files
    told(cli("console", "demo"), 4, "demo", "console")
    files.console.write_bytes(b"\x1b[2J\x1b[31mone\x1b[0m\r\ntwo\x07 \xff\nthe last")
    assert cli("console", "demo") == (0, "one\ntwo \nthe last\n", "")


def test_the_console_is_followed_until_the_vm_ends(
    home: Path, cache: Path, processes: Processes
) -> None:
    """Also where its log has been cut meanwhile. (25)"""
    files = made(cache).files
    files.console.write_bytes(b"one\ntw")
    vm = stand_in(processes, files)
    argv = [sys.executable, str(LAUNCHER), "console", "demo", "--follow"]
    env = {"HOME": str(home), "PATH": os.environ["PATH"]}
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, text=True) as following:
        assert following.stdout is not None
        assert following.stdout.readline() == "one\n"
        with open(files.console, "ab") as log:
            log.write(b"o\n")
        assert following.stdout.readline() == "two\n"
        files.console.write_bytes(b"cut\n")
        assert following.stdout.readline() == "cut\n"
        with open(files.console, "ab") as log:
            log.write(b"off")
        vm.kill()
        vm.wait()
        assert following.stdout.read() == "off\n" and following.wait(60) == 0


def test_every_verb_that_changes_a_cluster_can_show_it_afterwards() -> None:
    """(25)"""
    looks = {
        "status",
        "console",
        "lifetime status",
        "lifetime watch",
        "lifetime reap",
        "ssh",
        "ssh-config",
        "export",
    }
    others = {"prepare-export", "lifetime hold"}
    of_one = {
        path for path in ycluster.VERBS
        if "--context" in {name for item in ycluster.arguments_of(path) for name in item.names}
    }  # fmt: skip
    assert of_one - {*CHANGING} == looks | others and "provision" in CHANGING


@pytest.mark.parametrize(
    "argv",
    ["stop demo", "lifetime extend 1h --name demo", "lifetime set 1h --name demo", "lifetime arm demo", "lifetime disarm demo"],
)  # fmt: skip
def test_the_state_afterwards_can_be_had_as_json(
    cli: Cli, cache: Path, timer: Memory, processes: Processes, argv: str
) -> None:
    """(25)"""
    state = made(cache, expires_at=FAR_AHEAD, started_at=1)
    stand_in(processes, state.files)
    ran = cli(*argv.split(), "-o", "json")
    assert ran.code == 0, ran.err
    shown, status = json.loads(ran.out), json.loads(cli("status", "-o", "json").out)
    for one in (shown, status):
        one.pop("remainingSeconds")
    assert shown == status and shown["name"] == "demo"
    by_itself = cli(*argv.split()).out
    assert by_itself == ("demo: extended by 1h\n" if "extend" in argv else "")


def test_a_cluster_that_is_gone_is_absent_and_a_failure_shows_nothing(
    cli: Cli, cache: Path
) -> None:
    """(25)"""
    made(cache)
    shown = json.loads(cli("teardown", "demo", "-o", "json").out)
    assert shown == {"version": 1, "name": "demo", "cacheDir": str(cache), "state": "absent"}
    told(cli("start", "demo", "-o", "json"), 4, "demo")


def test_the_problems_of_a_config_can_be_had_as_json(cli: Cli, at: Path) -> None:
    """(25)"""
    ran = cli("config", "check", "-c", "bad", "-o", "json")
    shown = json.loads(ran.out)
    assert (ran.code, ran.err, shown["ok"], shown["warnings"]) == (3, "", False, [])
    assert [(one["line"], one["column"]) for one in shown["problems"]] == [(1, 1), (2, 9)]
    assert all(one["file"].endswith("/bad/y-cluster-provision.yaml") for one in shown["problems"])
    assert shown["problems"][1]["text"].startswith("memory: ")

    ran = cli("config", "check", "-c", "nowhere", "-o", "json")
    [problem] = json.loads(ran.out)["problems"]
    assert ran.code == 3 and problem["line"] is None and "no such directory" in problem["text"]

    ran = cli("config", "check", "-c", "tap", "-o", "json")
    shown = json.loads(ran.out)
    assert (ran.code, shown["ok"], shown["problems"]) == (0, True, [])
    assert missing("".join(shown["warnings"]), "lifetime.maxRun", "provision will refuse it") == []


@pytest.mark.parametrize(
    "text, go", [("3d", "72h0m0s"), ("1d12h", "36h0m0s"), ("0d5m", "5m0s"), ("90m", "90m")]
)
def test_a_duration_on_the_command_line_may_have_days(text: str, go: str) -> None:
    """In a config they stay Go's, as the sibling reads them, and so does the state file. (25)"""
    assert ycluster.own_budget(text) == go
    assert ycluster.positive_duration(text) == ycluster.parse_duration(go)


def test_a_name_that_no_cluster_has_lists_those_there_are(cli: Cli, cache: Path) -> None:
    made(cache)
    for argv in ("status --name other", "status --context other"):
        ran = cli(*argv.split())
        told(ran, 4, "other", "--name demo", lines=3)


def test_watch_all_takes_no_name(home: Path) -> None:
    ran = shell('exec timeout 60 "$python" "$y" lifetime watch --all --name demo', home)
    assert ran.code == 2 and "--all" in ran.err


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_says_that_there_is_no_cluster(cli: Cli, at: Path, verb: str) -> None:
    before = tree(at)
    failed(cli(*verb.split()), 4 if verb != "start" else cli("start").code)
    assert cli(*verb.split()).code == 4
    assert tree(at) == before


@pytest.mark.parametrize("made_before", [False, True], ids=["no cacheDir", "a cacheDir"])
@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "start"])
def test_every_verb_says_that_the_config_has_no_cluster_yet(
    cli: Cli, at: Path, home: Path, verb: str, made_before: bool
) -> None:
    if made_before:
        (home / ".local" / "share" / "ycluster").mkdir(parents=True)
    before = tree(at)
    ran = cli(*verb.split(), "-c", "good")
    told(ran, 4, "demo", home / ".local" / "share" / "ycluster", lines=3)
    assert tree(at) == before


@pytest.mark.parametrize("argv", ["provision -c good", "start"])
def test_a_missing_program_is_a_prerequisite_with_its_remedy(
    cli: Cli, at: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, argv: str
) -> None:
    made(cache)
    before = tree(at)
    monkeypatch.setattr(
        ycluster.Host, "which", lambda self, program: None
    )  # PATH alone leaves /usr/sbin and /sbin
    ran = cli(*argv.split())
    told(ran, 5, "qemu-system-x86_64", "qemu-img", "sudo apt-get install", lines=3)
    assert tree(at) == before


def test_a_verb_with_nothing_on_path_is_a_prerequisite(
    at: Path, home: Path, tmp_path: Path
) -> None:
    ran = shell('PATH=/nonexistent; export PATH; exec "$python" "$y" provision -c good', home)
    told(ran, 5, "missing:", lines=3)
    assert not (home / ".cache").exists()


def test_a_file_in_the_place_of_the_cachedir_is_an_error(cli: Cli, at: Path, home: Path) -> None:
    (home / ".cache").write_text("in the way")
    for verb in ("stop", "teardown"):
        ran = cli(verb, "-c", "good")
        assert ran.out == "" and "Traceback" not in ran.err and len(ran.err.splitlines()) <= 3
    assert (home / ".cache").read_text() == "in the way"


def test_verbose_shows_the_traceback(cli: Cli, at: Path) -> None:
    ran = cli("config", "check", "-c", "bad", "--verbose")
    assert ran.code == 3 and "Traceback (most recent call last)" in ran.err and ran.out == ""


# --- which cluster


def test_the_only_cluster_is_the_one_that_is_meant(cli: Cli, cache: Path) -> None:
    made(cache, "only", context="odd")
    assert json.loads(cli("status", "-o", "json").out)["name"] == "only"


def test_of_several_clusters_the_one_with_the_context_local_is_meant(cli: Cli, cache: Path) -> None:
    made(cache, "a", context="prod")
    made(cache, "b", context="local")
    assert json.loads(cli("status", "-o", "json").out)["name"] == "b"
    assert json.loads(cli("status", "-o", "json", "--context", "prod").out)["name"] == "a"
    assert json.loads(cli("status", "-o", "json", "--name", "a").out)["name"] == "a"


@pytest.mark.parametrize(
    "contexts", [("one", "two"), ("local", "local")], ids=["none is local", "both are"]
)
def test_when_it_is_not_clear_the_clusters_are_listed(
    cli: Cli, cache: Path, contexts: tuple[str, str]
) -> None:
    for name, context in zip(("first", "second"), contexts):
        made(cache, name, context=context)
    ran = cli("stop")
    told(ran, 4, f"--name first # in {cache}", f"--name second # in {cache}", lines=3)


@pytest.mark.parametrize("names", [("only",), ("a", "local")], ids=["the only one", "one is local"])
def test_teardown_never_guesses_and_lists_the_commands_to_paste(
    cli: Cli, cache: Path, names: tuple[str, ...]
) -> None:
    """What is destroyed is named; the other verbs keep taking the only cluster. (20.2)"""
    for name in names:
        made(cache, name, context="local" if name == names[-1] else "other").files.disk.touch()
    before = tree(cache)
    for argv in ("teardown", "teardown --keep-disk"):
        ran = cli(*argv.split())
        commands = [f"ycluster teardown --name {name} # in {cache}" for name in names]
        told(ran, 2, *commands, lines=1 + len(names))
        assert tree(cache) == before
    assert cli("status").code == 0


@pytest.mark.parametrize(
    "argv", ["demo", "--keep-disk demo", "--name demo", "--context mine", "-c named"]
)
def test_each_way_of_naming_a_cluster_tears_down_that_one(
    cli: Cli, at: Path, cache: Path, argv: str
) -> None:
    """(20.2)"""
    (at / "named").mkdir()
    (at / "named" / "y-cluster-provision.yaml").write_text("name: demo\nk3s: {install: none}\n")
    made(cache, context="mine")
    other = made(cache, "other", context="local")
    assert cli("teardown", *argv.split()).code == 0
    assert set(tree(cache)) == {"other.json", "other.ycluster.state"}
    assert ycluster.load_state(other.files) == other


@pytest.mark.parametrize(
    "argv", ["demo --name demo", "demo --context local", "demo -c good", "demo demo"]
)
def test_a_cluster_to_tear_down_is_named_once(cli: Cli, at: Path, cache: Path, argv: str) -> None:
    """(20.2)"""
    made(cache)
    before = tree(cache)
    assert cli("teardown", *argv.split()).code == 2 and tree(cache) == before


def test_a_teardown_where_there_is_no_cluster_says_so(cli: Cli, cache: Path) -> None:
    """(20.2)"""
    told(cli("teardown"), 4, "no cluster", lines=2)


def test_a_config_names_its_cluster_in_its_own_cachedir(cli: Cli, at: Path) -> None:
    (at / "good" / "y-cluster-provision.yaml").write_text(CONFIGS["good"] + "cacheDir: own\n")
    (at / "good" / "own").mkdir()
    made(at / "good" / "own")
    assert json.loads(cli("status", "-o", "json", "-c", "good").out)["cacheDir"] == str(
        at / "good" / "own"
    )


@pytest.mark.parametrize("wrong", ["memory: lots", "memory: [}", "memory: lots\ncpus: {x: 1}"])
def test_verbs_that_need_only_the_name_go_on_with_a_config_that_is_wrong_elsewhere(
    cli: Cli, at: Path, timer: Memory, wrong: str
) -> None:
    """An edit that went wrong must not keep a cluster running. (20.17)"""
    place, file = at / "own", at / "good" / "y-cluster-provision.yaml"
    place.mkdir()
    file.write_text(f"name: demo\ncacheDir: {place}\n{wrong}\n")
    made(place, expires_at=FAR_AHEAD)
    for verb in (
        "status",
        "lifetime status",
        "lifetime extend 1h",
        "lifetime reap",
        "lifetime disarm",
        "stop",
        "teardown",
    ):
        ran = cli(*verb.split(), "-c", "good")
        assert ran.code == 0, ran.err
        warning = f"warning: {file}:3:", f"going on with demo in {place}"
        assert missing(ran.err, *warning) == [], ran.err
    assert list(place.iterdir()) == []
    for verb in ("provision", "config check", "config show", "lifetime gcp-flags"):
        assert cli(*verb.split(), "-c", "good").code == 3
    file.write_text(f"name: demo\nprovider: docker\n{wrong}\n")
    failed(cli("stop", "-c", "good"), 6)


def test_a_sidecar_names_its_cluster_wherever_it_lies(cli: Cli, at: Path) -> None:
    state = made(at / "empty", lifetime="")
    ran = cli("lifetime", "reap", "--state", "empty/demo.json")
    told(ran, 0, "demo:")
    assert ycluster.load_state(state.files) == state


# --- data on stdout


def test_list_is_json_with_a_version(cli: Cli, cache: Path) -> None:
    made(cache, "a", expires_at=LONG_AGO)
    made(cache, "b", context="other")
    shown = json.loads(cli("list", "-o", "json").out)
    assert shown["version"] == 1 and [cluster["name"] for cluster in shown["clusters"]] == [
        "a",
        "b",
    ]
    assert (
        shown["clusters"][0]["expiresAt"] == "2020-01-01T00:00:00Z"
        and shown["clusters"][0]["remainingSeconds"] < 0
    )
    assert (
        shown["clusters"][1]["expiresAt"] == "" and shown["clusters"][1]["remainingSeconds"] is None
    )


@pytest.mark.parametrize("argv", ["status", "lifetime status"])
def test_status_is_json_with_a_version(cli: Cli, cache: Path, argv: str) -> None:
    made(cache, on_expiry="pause", expires_at=FAR_AHEAD)
    shown = json.loads(cli(*argv.split(), "-o", "json").out)
    assert (shown["version"], shown["state"], shown["maxRun"], shown["onExpiry"]) == (
        1,
        "stopped",
        "8h",
        "pause",
    )
    assert shown["expiresAt"] == "2100-01-01T00:00:00Z" and shown["remainingSeconds"] > 0


@pytest.mark.parametrize(
    "expires, says", [(LONG_AGO, "OVERDUE"), (FAR_AHEAD, "d ")], ids=["late", "early"]
)
def test_commands_that_look_say_what_is_overdue_and_change_nothing(
    cli: Cli, cache: Path, home: Path, processes: Processes, expires: int, says: str
) -> None:
    state = with_disk(cache, expires_at=expires)
    process = processes.start("", "-pidfile", str(state.files.pidfile))
    state.files.pidfile.write_text(str(process.pid))
    before = tree(home)
    for argv in ("list", "status", "lifetime status"):
        ran = cli(*argv.split())
        assert ran.code == 0 and "running" in ran.out and says in ran.out and ran.err == ""
    assert tree(home) == before and process.poll() is None


def test_no_cluster_at_all_is_an_empty_list(cli: Cli, home: Path) -> None:
    ran = cli("list")
    told(ran, 0, "no clusters", "`ycluster provision -c DIR`")
    assert json.loads(cli("list", "-o", "json").out) == {"version": 1, "clusters": []}
    assert tree(home) == {}


def test_config_check_and_show(cli: Cli, at: Path) -> None:
    assert cli("config", "check", "-c", "good").out.endswith(
        ": ok: qemu cluster demo, lifetime 8h, then stop\n"
    )
    assert json.loads(cli("config", "show", "-c", "good").out)["lifetime"]["maxRun"] == "8h"


def test_config_check_warns_of_what_nothing_would_end(cli: Cli, tmp_path: Path) -> None:
    """It is a good config all the same. (20.15)"""
    file = tmp_path / "y-cluster-provision.yaml"
    for text, facts in [("", ["maxRun"]), ("lifetime: {onExpiry: stop}", ["maxRun", "onExpiry"])]:
        file.write_text(text + "\n")
        ran = cli("config", "check", "-c", tmp_path)
        assert (ran.code, missing(ran.err, "warning:", *facts)) == (0, [])
    file.write_text("lifetime: {maxRun: 8h}\n")
    assert cli("config", "check", "-c", tmp_path).err == ""


@pytest.mark.parametrize("which", ["common", *ycluster.PROVIDERS])
def test_schema_prints_one_schema(cli: Cli, which: str) -> None:
    assert json.loads(cli("schema", which).out) == ycluster.schema_for(which)


# --- one bad sidecar never hides the rest


def test_a_corrupt_sidecar_does_not_hide_other_clusters(cli: Cli, cache: Path) -> None:
    (cache / "bad.json").write_text("{")
    made(cache, "good")
    ran = cli("list", "-o", "json")
    assert ran.code == 0 and [cluster["name"] for cluster in json.loads(ran.out)["clusters"]] == [
        "good"
    ]
    assert missing(ran.err, f"warning: {cache}/bad.json:") == []
    failed(cli("status", "--name", "bad"), 4)


def test_reap_all_reaps_the_others_and_fails(cli: Cli, cache: Path) -> None:
    for name in ("a", "z"):
        made(cache, name, expires_at=LONG_AGO)
    (cache / "m.json").write_text("{")
    ran = cli("lifetime", "reap", "--all")
    told(ran, 1, "not expired: m")
    for name in ("a", "z"):
        state = ycluster.load_state(ycluster.Files(cache, name))
        assert state.expires_at is None and state.reaped and state.reaped.how == "was not running"


def test_the_next_command_reaps_what_is_overdue_elsewhere(
    cli: Cli, cache: Path, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a process of its own: its own verb comes first. (20.18)"""
    late = made(cache, "late", expires_at=LONG_AGO, timer_choice="watcher")
    made(cache, "other", expires_at=LONG_AGO)
    ran = cli("resume", "--name", "other")  # is stopped, which is an error, and comes after it
    told(ran, 1, "`ycluster start --name other`", "late:", late.files.log)
    wait_for("the reap", lambda: ycluster.load_state(late.files).reaped)
    reaped = ycluster.load_state(late.files).reaped
    assert reaped is not None and reaped.by == "next command"
    wait_for("its log", lambda: "stop: was not running" in late.files.log.read_text())
    assert ycluster.load_state(ycluster.Files(cache, "other")).expires_at == LONG_AGO


# --- verbs on a cluster that is not running


def test_teardown_removes_the_clusters_files_and_nothing_else(cli: Cli, cache: Path) -> None:
    state = made(cache)
    for path in [
        *state.files.disposable()[:4],
        state.files.disk,
        state.files.ssh_key,
        state.files.console,
    ]:
        path.write_text("x")
    (state.files.seed).mkdir()
    (cache / "images").mkdir()
    for other in ("images/abc", "demo2.qcow2", "demo.qcow2.bak", "other.json", "notes"):
        (cache / other).write_text("mine")
    keep = {"images", "images/abc", "demo2.qcow2", "demo.qcow2.bak", "other.json", "notes"}
    assert cli("teardown", "--name", "demo").code == 0
    assert set(tree(cache)) == keep


@pytest.mark.parametrize("keep", [False, True])
def test_a_teardown_removes_every_file_that_a_cluster_may_have(
    cli: Cli, cache: Path, keep: bool
) -> None:
    own = {
        name: file
        for name, file in vars(ycluster.Files).items()
        if isinstance(file, ycluster.OwnFile)
    }
    files = made(cache).files
    for name, file in own.items():
        path = getattr(files, name)
        if file.removed in ("with the cluster", "last"):
            path.with_name(f".{path.name}.0a1b2c3d.tmp").touch()  # left by a write that was killed
        if name != "sidecar":
            path.touch()
    (cache / ".demo2.json.0a1b2c3d.tmp").touch()
    assert cli("teardown", "--name", "demo", *["--keep-disk"] * keep).code == 0
    kept = {files.disk.name, files.ssh_key.name, files.ssh_pub.name} if keep else set()
    assert set(tree(cache)) == {".demo2.json.0a1b2c3d.tmp"} | kept
    assert {name for name, file in own.items() if file.removed == "with the disk"} == {
        "disk",
        "ssh_key",
        "ssh_pub",
    }
    assert {name for name, file in own.items() if file.removed == "never"} == {
        "lock"
    }  # which goes when it is let go


def test_teardown_can_keep_the_disk_and_its_key(cli: Cli, cache: Path) -> None:
    state = made(cache)
    for path in (state.files.disk, state.files.ssh_key, state.files.ssh_pub):
        path.write_text("x")
    ran = cli("teardown", "demo", "--keep-disk")
    told(ran, 0, f"kept: {state.files.disk}")
    assert set(tree(cache)) == {"demo.qcow2", "demo-ssh", "demo-ssh.pub"}
    assert "builds on" not in ran.err


@pytest.mark.parametrize("cachedir", [False, True], ids=["no cacheDir", "a cacheDir"])
def test_teardown_of_what_is_not_there_is_done_already(
    cli: Cli, at: Path, home: Path, cachedir: bool
) -> None:
    if cachedir:
        (home / ".local" / "share" / "ycluster").mkdir(parents=True)
    before = tree(at)
    ran = cli("teardown", "-c", "good")
    told(ran, 0, "demo", home / ".local" / "share" / "ycluster")
    assert tree(at) == before


def test_stop_of_a_stopped_cluster_is_done_already_and_clears_its_deadline(
    cli: Cli, cache: Path
) -> None:
    state = made(cache, expires_at=FAR_AHEAD, extra={"theirs": 1})
    ran = cli("stop")
    told(ran, 0, "demo was not running")
    after = ycluster.load_state(state.files)
    assert (after.expires_at, after.timer, after.extra) == (None, None, {"theirs": 1})


@pytest.mark.parametrize(
    "argv, says",
    [
        ("pause", "`ycluster start --name demo`"),
        ("resume", "`ycluster start --name demo`"),
        ("ssh", "`ycluster start --name demo`"),
        ("lifetime extend 1h", "lifetime.maxRun"),
        ("lifetime arm", "`ycluster start --name demo`"),
    ],
)
def test_verbs_that_need_a_running_vm_say_what_to_do(
    cli: Cli, cache: Path, argv: str, says: str
) -> None:
    state = made(cache)
    ran = cli(*argv.split())
    told(ran, 1, "demo", says, lines=3)
    assert ycluster.load_state(state.files) == state


def test_a_disarmed_cluster_keeps_its_deadline_and_is_left_alone(cli: Cli, cache: Path) -> None:
    state = made(cache, expires_at=LONG_AGO)
    assert cli("lifetime", "disarm").code == 0
    told(cli("lifetime", "reap"), 0, "demo:", "disarmed", "`ycluster lifetime arm --name demo`")
    after = ycluster.load_state(state.files)
    assert after.expires_at == LONG_AGO and after.disarmed
    assert "disarmed" in cli("list").out


@pytest.mark.parametrize("lifetime", ["", "0"])
def test_arm_without_a_budget_says_where_to_set_it(cli: Cli, cache: Path, lifetime: str) -> None:
    made(cache, lifetime=lifetime)
    ran = cli("lifetime", "arm")
    told(ran, 1, "maxRun", lines=3)


@pytest.mark.parametrize("proc", ["of another namespace", "not mounted"])
def test_without_its_own_proc_no_vm_is_started(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch, proc: str
) -> None:
    """A process that can't be seen can't be ended. (25)"""

    def readlink(path: str) -> str:
        if proc == "not mounted":
            raise FileNotFoundError(path)
        return "1"

    monkeypatch.setattr(ycluster.Host, "which", lambda self, program: "/bin/true")
    made(cache).files.disk.touch()
    with monkeypatch.context() as patch:
        patch.setattr(ycluster.os, "readlink", readlink)
        ran = cli("start")
    told(ran, 5, "/proc", "mount -t proc")


def test_start_without_a_disk_is_refused(
    cli: Cli, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ycluster.Host, "which", lambda self, program: "/bin/true")
    made(cache)
    ran = cli("start")
    told(ran, 4, "demo", "disk", "`ycluster provision -c DIR`", lines=3)


@pytest.mark.parametrize(
    "fields, code, says",
    [
        ({"started_at": 5}, 1, "`ycluster teardown --name demo`"),
        ({"started_at": None, "image": ""}, 1, "`ycluster teardown --name demo`"),
        (None, 1, "demo.qcow2:"),
    ],
    ids=["ours, without its disk", "the sibling's, without its disk", "a disk alone"],
)
def test_provision_never_takes_over_what_is_there(
    cli: Cli, at: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any] | None, code: int, says: str
) -> None:  # fmt: skip
    monkeypatch.setattr(ycluster.Host, "which", lambda self, program: "/bin/true")
    if fields is not None:
        made(cache, **{"image": "/i", **fields})
    else:
        ycluster.Files(cache, "demo").disk.write_text("data")
    before = {name: value for name, value in tree(cache).items() if not name.endswith(".lock")}
    ran = cli("provision", "-c", "good")
    told(ran, code, says, cache)
    assert {
        name: value for name, value in tree(cache).items() if not name.endswith(".lock")
    } == before


def test_provision_of_one_that_runs_tells_each_way_on(
    cli: Cli, at: Path, cache: Path, processes: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teardown, which costs its disk, comes last. (25)"""
    monkeypatch.setattr(ycluster.Host, "which", lambda self, program: "/bin/true")
    stand_in(processes, made(cache, image="/i", started_at=5).files)
    ran = cli("provision", "-c", "good")
    ways = [f"`ycluster {way}`" for way in ("ssh demo", "start -c DIR", "teardown demo")]
    told(ran, 1, "demo already runs", *ways)
    assert sorted(ways, key=ran.err.index) == ways


# --- hosts to expect


def test_without_home_the_accounts_home_is_used(
    cli: Cli, home: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(cache)
    monkeypatch.delenv("HOME")
    entry = pwd.struct_passwd(("me", "x", os.getuid(), 0, "", str(home), "/bin/sh"))
    monkeypatch.setattr("pwd.getpwuid", lambda uid: entry)
    assert [
        cluster["name"] for cluster in json.loads(cli("list", "-o", "json").out)["clusters"]
    ] == ["demo"]


def test_without_any_home_a_cachedir_must_be_named(
    cli: Cli, at: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", nobody)
    assert json.loads(cli("list", "-o", "json").out)["clusters"] == []
    ran = cli("stop", "-c", "good")
    told(ran, 5, "HOME", "cacheDir", lines=3)


def test_a_config_can_be_checked_without_home(at: Path, home: Path) -> None:
    ran = shell('unset HOME; exec "$python" "$y" config check -c good', home)
    assert (ran.code, ran.err) == (0, "")


def test_a_working_directory_that_is_gone_is_no_obstacle(
    home: Path, cache: Path, tmp_path: Path
) -> None:
    with_disk(cache)
    gone = tmp_path / "gone"
    gone.mkdir()
    ran = shell(f'cd {gone} && rmdir {gone} && exec "$python" "$y" list', home, y=str(ALONE))
    assert ran.code == 0 and "demo" in ran.out and ran.err == ""


def test_a_relative_config_in_a_directory_that_is_gone_is_an_error(
    home: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    ran = shell(f'cd {gone} && rmdir {gone} && exec "$python" "$y" config check -c .', home)
    assert ran.code in (1, 3)
    failed(ran, ran.code)


@pytest.mark.parametrize(
    "argv", ["list -o json", "schema qemu", "--help", "stop --help", "--version"]
)
def test_a_reader_that_has_gone_is_no_traceback(home: Path, argv: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, str(LAUNCHER), *argv.split()]
    ended = subprocess.run(
        command,
        env={"HOME": str(home)},
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    os.close(writer)
    assert ended.stderr == ""


@pytest.mark.parametrize("argv", ["list -o json", "schema qemu", "config check -c /nonexistent"])
@pytest.mark.parametrize("streams", [">&-", ">/dev/full", "2>&-", "<&-", ">&- 2>&-"])
def test_streams_that_are_closed_or_full_are_no_traceback(
    home: Path, argv: str, streams: str
) -> None:
    ran = shell(f'exec "$python" "$y" {argv} {streams}', home)
    assert "Traceback" not in ran.err and "Exception ignored" not in ran.err
    assert ran.code in (0, 1, 3)
    assert (ran.code == 1) == ("stdout: " in ran.err), "which of them is told"


def test_a_working_folder_that_is_gone_is_told_as_that(home: Path, tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    ran = shell(f'cd "{tmp_path}/gone" && rmdir ../gone && exec "$python" "$y" init', home)
    told(ran, 1, "the working folder is gone")


def test_what_a_verb_shows_in_the_end_is_the_cluster_that_it_was_about(
    cli: Cli, cache: Path, timer: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was looked for a second time: by a config that had another name by then, among others."""
    made(cache, expires_at=FAR_AHEAD, started_at=1)
    arm = ycluster.arm_timers

    def meanwhile(*args: Any, **options: Any) -> ycluster.State:
        made(cache, "other")
        return arm(*args, **options)

    monkeypatch.setattr(ycluster, "arm_timers", meanwhile)
    ran = cli("lifetime", "arm", "-o", "json")
    assert ran.code == 0 and json.loads(ran.out)["name"] == "demo"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_130(home: Path, cache: Path, signum: signal.Signals) -> None:
    """A verb that waits for the lock is interrupted: by Ctrl-C, a shutdown, a closed terminal."""
    state = made(cache)
    fd = ycluster.try_flock(state.files.lock)
    assert fd is not None
    argv = [sys.executable, str(LAUNCHER), "stop"]
    with subprocess.Popen(
        argv,
        env={"HOME": str(home)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL),  # under nohup it is ignored
    ) as waiting:
        try:
            while not ignores(waiting.pid, signal.SIGTSTP):  # the last that it sets
                assert waiting.poll() is None
            waiting.send_signal(signum)
            said = waiting.communicate(timeout=60)[1]
        finally:
            waiting.kill()
    os.close(fd)
    told(Ran(waiting.returncode, "", said), 130, signum.name, lines=1)


def ignores(pid: int, signum: int) -> bool:
    """Whether a process ignores a signal."""
    status = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return bool(int(status["SigIgn"], 16) >> (signum - 1) & 1)


def test_version_and_help_go_to_stdout(cli: Cli) -> None:
    assert re.fullmatch(r"ycluster \d+\.\d+\.\d+\n", cli("--version").out)
    shown = cli("--help")
    assert shown.code == 0 and "provision" in shown.out and shown.err == ""


OPTIONS = [
    "list", "list -o json", "list -o yaml", "doctor -o text", "status --name a", "stop -c good",
    "stop --name a --context b", "stop --name", "stop --name -c", "teardown --keep-disk --name a",
    "teardown --keep-disk --keep-disk", "--verbose list", "list --verbose", "provision",
    "-v lifetime status", "lifetime -v status --name a", "lifetime -v",
    "provision -c good", "lifetime reap --all", "lifetime reap --wait 2m --by at --state a.json",
    "lifetime reap --all --name a", "lifetime watch --context c", "lifetime extend 2h",
    "lifetime extend --from-now 2h --dry-run", "lifetime extend --until 18:00 --name a",
    "lifetime extend", "lifetime gcp-flags -c good --quiet", "lifetime gcp-flags -c good -o lines",
    "lifetime gcp-status --zone z vm", "lifetime gcp-status --zone z", "schema", "schema qemu",
    "schema --write out", "config show -c good", "ssh", "ssh -- uname -a", "ssh --name a",
    "completion bash", "export out --format raw", "export --format raw", "import -c good", "stop -x",
]  # fmt: skip


@pytest.mark.parametrize("name", ["", "y-cluster-provision.yaml"])
def test_a_config_that_is_a_link_to_nothing_is_told_as_one(
    cli: Cli, tmp_path: Path, name: str
) -> None:
    """(26.9)"""
    link = tmp_path / "y-cluster-provision.yaml"
    link.symlink_to("nowhere")
    told(cli("config", "check", "-c", tmp_path / name), 3, link, "nowhere")


def test_a_link_to_a_folder_without_a_config_is_told_as_the_folder(
    cli: Cli, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there/y-cluster-provision.yml").touch()
    (tmp_path / "link").symlink_to("there")
    told(cli("config", "check", "-c", tmp_path / "link"), 3, "no y-cluster-provision.yaml", "`mv ")


@pytest.mark.parametrize("line", OPTIONS)
def test_what_is_read_without_argparse_is_what_argparse_makes_of_it(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def outcome() -> object:
        try:
            return ycluster.parse_args(line.split())
        except SystemExit as end:
            return end.code

    quick = outcome()
    monkeypatch.setattr(ycluster, "_read_options", lambda path, words: None)
    assert quick == outcome()


def test_most_command_lines_need_no_parser() -> None:
    """Nor its import, which takes as long as a tenth of all else. (19)"""
    lines = ("list -o json", "stop --name a", "lifetime status", "lifetime gcp-flags -c good")
    script = f"""
import sys, ycluster
for line in {lines}:
    assert ycluster.parse_args(line.split())["path"] in ycluster.VERBS
assert "argparse" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], cwd=PROGRAM.parent, check=True)
