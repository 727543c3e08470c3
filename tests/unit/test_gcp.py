"""Section 11: the flags by which Compute Engine deletes an instance by itself."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit_support import Cli

from ycluster import ConfigError, format_duration, gcp_flags

DELETE = "--instance-termination-action=DELETE"


@pytest.mark.parametrize(
    "max_run, seconds",
    [
        ("30s", 30), ("8h", 28800), ("1h30m", 5400), ("90m", 5400), ("2880h", 10368000), ("29.5s", 30), ("30.000000001s", 31),
        ("2879h59m59.1s", 10368000),
    ],
)  # fmt: skip
def test_the_budget_is_given_in_whole_seconds_rounded_up(max_run: str, seconds: int) -> None:
    assert gcp_flags(max_run) == [f"--max-run-duration={seconds}s", DELETE]


@pytest.mark.parametrize("max_run", ["", "0"])
def test_no_budget_is_no_flag(max_run: str) -> None:
    assert gcp_flags(max_run) == []


@pytest.mark.parametrize("max_run", ["1ns", "29s", "2880h0m0.000000001s", "2881h", "1000000h"])
def test_what_compute_engine_would_refuse_is_refused(max_run: str) -> None:
    with pytest.raises(ConfigError, match="30 s to 120 days") as caught:
        gcp_flags(max_run)
    assert max_run in str(caught.value)


@given(st.integers(29 * 10**9 + 1, 120 * 86400 * 10**9))
def test_an_instance_never_ends_before_its_budget(nanoseconds: int) -> None:
    limit, action = gcp_flags(format_duration(nanoseconds))
    seconds = int(limit[len("--max-run-duration=") : -1])
    assert action == DELETE and 0 <= seconds * 10**9 - nanoseconds < 10**9


@pytest.mark.parametrize("provider", ["qemu", "docker", "multipass"])
@pytest.mark.parametrize(
    "max_run, form, out",
    [
        ("8h", "shell", f"--max-run-duration=28800s {DELETE}\n"),
        ("8h", "lines", f"--max-run-duration=28800s\n{DELETE}\n"),
        ("0", "shell", ""),
        ("0", "lines", ""),
    ],
)
def test_stdout_is_the_flags_and_nothing_else(
    cli: Cli, tmp_path: Path, provider: str, max_run: str, form: str, out: str
) -> None:
    config = {"provider": provider, "lifetime": {"maxRun": max_run}}
    (tmp_path / "y-cluster-provision.json").write_text(json.dumps(config))
    assert cli("lifetime", "gcp-flags", "-c", tmp_path, "-o", form) == (0, out, "")


def test_the_shell_form_is_the_default_and_json_a_list(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text("lifetime: {maxRun: 45s}\n")
    flags = ["--max-run-duration=45s", DELETE]
    assert shlex.split(cli("lifetime", "gcp-flags", "-c", tmp_path).out) == flags
    assert json.loads(cli("lifetime", "gcp-flags", "-c", tmp_path, "-o", "json").out) == flags
    (tmp_path / "y-cluster-provision.yaml").write_text("")
    assert cli("lifetime", "gcp-flags", "-c", tmp_path, "-o", "json") == (0, "[]\n", "")
