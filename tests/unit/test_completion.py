"""`ycluster completion`: what the parser says, in real shells on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from unit_support import LAUNCHER, Cli, made, need

LOAD = {
    "bash": 'eval "$(ycluster completion bash)"',
    "zsh": 'autoload -Uz compinit; compinit -u -D; eval "$(ycluster completion zsh)"',
    "fish": "ycluster completion fish | source",
}
TYPED = {
    "ycluster provis": "ycluster provision",
    "ycluster lifetime ext": "ycluster lifetime extend",
    "ycluster lifetime extend --unt": "ycluster lifetime extend --until",
    "ycluster stop --name al": "ycluster stop --name alpha",
    "ycluster lifetime status --context wo": "ycluster lifetime status --context work",
    "ycluster export --format gc": "ycluster export --format gcp-tar",
    "ycluster list -o j": "ycluster list -o json",
    "ycluster schema mul": "ycluster schema multipass",
}
HARM = '$(touch harm) `touch harm` ; "it\'s" & *'  # what is inserted, and what it begins with
QUOTED = {
    "ycluster stop --context zed": f"ycluster stop --context zed {HARM}",
    "ycluster stop --context zed\\ \\$\\(to": f"ycluster stop --context zed {HARM}",
    "ycluster stop --context \\$": f"ycluster stop --context {HARM}",
}


@pytest.fixture
def env(home: Path, cache: Path, tmp_path: Path) -> dict[str, str]:
    """A host with `ycluster` on its PATH, and two clusters."""
    made(cache, "alpha", context="work")
    made(cache, "beta", context=HARM)
    made(cache, "gamma", context=f"zed {HARM}")
    program = tmp_path / "bin" / "ycluster"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {LAUNCHER} "$@"\n')
    program.chmod(0o755)
    path = f"{program.parent}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(home), "TERM": "xterm", "PS1": "", "LANG": "C.UTF-8"}


@pytest.mark.parametrize(
    "words, said",
    [
        (["lifetime", "gcp"], ["gcp-flags", "gcp-status"]),
        (["lifetime", "reap", "--"], ["--all", "--config", "--context", "--help", "--name", "--state", "--verbose"]),  # no --by, no --wait
        (["stop", "--name", ""], ["alpha", "beta"]),
        (["stop", "--name", "x"], []),
        (["teardown", ""], ["alpha", "beta"]),
        (["teardown", "b"], ["beta"]),
        (["rm", "b"], ["beta"]),
        (["ls", "-o", "j"], ["json"]),
        (["ssh", "a"], ["alpha"]),
        (["lifetime", "hold", ""], ["alpha", "beta"]),
        (["lifetime", "extend", "a"], []),
        (["run", "a"], []),
        (["completion", ""], ["bash", "fish", "words", "zsh"]),
        (["ssh", "--name", "alpha", "--", "st"], []),  # the guest's words are its own
        (["stop", "-c", ""], []),  # the shell knows of folders
        (["no-such-verb", "sto"], ["stop"]),
        ([], ["completion", "config", "console", "doctor", "export", "help", "import", "init", "lifetime", "list", "pause", "prepare-export", "provision", "prune",
              "resume", "run", "schema", "ssh", "ssh-config", "start", "status", "stop", "suspend", "teardown"]),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_parser_says_what_a_word_may_be(
    cli: Cli, cache: Path, words: list[str], said: list[str]
) -> None:
    made(cache, "alpha")
    made(cache, "beta")
    (cache / "broken.json").write_text("{")
    ran = cli("completion", "words", *words)
    assert (ran.out.split(), ran.code) == (said, 0 if said else 1)


def read_until(leader: int, wanted: str) -> str:
    """What the terminal shows, up to a line that matches."""
    written, shown, until = b"", "", time.monotonic() + 120
    while not (found := re.search(wanted, shown, re.MULTILINE)):
        assert time.monotonic() < until, f"no {wanted} in {shown!r}"
        if select.select([leader], [], [], 1)[0]:
            written += os.read(leader, 65536)
            text = written.decode("utf-8", "replace")
            escapes = r"\r|\x1b\[[?0-9;]*[A-Za-z]|\x1b[=>]|\x1b\(B|\x1b\][^\x07]*\x07"
            shown = re.sub(escapes, "", text)
    return found[1]


def takes_terminal() -> None:
    """Make stdin the terminal that controls this process, which fish wants."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_typed_is_completed(env: dict[str, str], tmp_path: Path, shell: str) -> None:
    """And quoted: on Enter nothing of a context runs. (20.24)"""
    need(shell)
    leader, follower = pty.openpty()
    argv = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[shell]
    process = subprocess.Popen(
        [shell, *argv, "-i"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=env,
        cwd=tmp_path,
        start_new_session=True,
        preexec_fn=takes_terminal,
    )
    try:
        os.write(leader, f"{LOAD[shell]}; echo REA''DY\r".encode())
        read_until(leader, "^(READY)$")
        for typed, completed in {**TYPED, **QUOTED}.items():
            os.write(
                leader, f"{typed}\t\x01echo SA''ID \n".encode()
            )  # Ctrl-A: what the line has become is printed
            assert read_until(leader, r"^SAID (.*)\n").strip() == completed
        os.write(leader, b"ycluster stop --context \t\x15echo NO''NE\r")
        read_until(leader, "^(NONE)$")
    finally:
        process.kill()
        process.wait()
        os.close(leader)
        os.close(follower)
    assert not (tmp_path / "harm").exists()


def test_fish_completes_what_is_typed(env: dict[str, str], tmp_path: Path) -> None:
    need("fish")
    for typed, completed in TYPED.items():
        argv = ["fish", "--no-config", "-c", f"{LOAD['fish']}; complete -C {typed!r}"]
        done = subprocess.run(
            argv, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=120
        )
        words = [line.split("\t")[0] for line in done.stdout.splitlines()]
        assert words == [completed.split()[-1]], done.stderr
    for typed, completed in QUOTED.items():
        argv = ["fish", "--no-config", "-c", f"{LOAD['fish']}; complete -C $argv", typed]
        done = subprocess.run(
            argv, env=env, cwd=tmp_path, text=True, capture_output=True, timeout=120
        )
        assert done.stdout == completed.partition("--context ")[2] + "\n", done.stderr
    assert not (tmp_path / "harm").exists()
