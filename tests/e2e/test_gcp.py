"""The cloud hand-off: the real gcloud against a loopback API, and the wrapper that people copy, run as they run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Program, block
from gcp_api import ComputeApi

WRAPPER = ROOT / "examples" / "gcp" / "create-appliance.sh"
PLACE = "projects/some-project/zones/europe-north1-a"
LIMIT = {"maxRunDuration": {"seconds": "43200"}, "instanceTerminationAction": "DELETE"}


@pytest.fixture
def api() -> Iterator[ComputeApi]:
    # Unlike other parts it is skipped in CI, too: Debian has no package of it.
    if not Path("/usr/bin/gcloud").exists():
        pytest.skip("/usr/bin/gcloud is not installed, and no Debian package has it")
    with ComputeApi() as running:
        yield running


class Shell:
    """bash with ycluster, gcloud and the wrapper on PATH, in the directory of two configs: `limited` and `endless`."""

    def __init__(self, program: Program, api: ComputeApi, where: Path) -> None:
        self.where, self.home = where, where / "home"
        self.home.mkdir()
        for name, budget in (("limited", "12h"), ("endless", "")):
            (where / name).mkdir()
            (where / name / "y-cluster-provision.yaml").write_text(
                f"lifetime:\n  maxRun: '{budget}'\n  onExpiry: teardown\n"
            )
        self.environ = {
            "PATH": f"{program.path.parent}:{WRAPPER.parent}:/usr/bin:/bin",
            "HOME": str(self.home),
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE": api.root,
            "CLOUDSDK_AUTH_ACCESS_TOKEN": "anything",
            "CLOUDSDK_CONFIG": str(where / "gcloud"),
            "CLOUDSDK_CORE_PROJECT": "some-project",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK": "true",
        }

    def __call__(
        self, command: str, code: int = 0, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.where, env={**self.environ, **extra}, text=True, capture_output=True,
            timeout=300, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        told = f"{command}\n--- stdout\n{done.stdout}--- stderr\n{done.stderr}"
        print(told)
        assert done.returncode == code and "Traceback" not in done.stderr, (
            f"exit {done.returncode}: {told}"
        )
        return done


@pytest.fixture
def sh(program: Program, api: ComputeApi, tmp_path: Path) -> Shell:
    return Shell(program, api, tmp_path)


def instance(api: ComputeApi, name: str = "vm") -> dict[str, Any]:
    return api.resources[f"{PLACE}/instances/{name}"]


FLAGS = "$(ycluster lifetime gcp-flags -c limited)"
DISK = "--disk=name=data-1,boot=no,auto-delete=no"


@pytest.mark.parametrize(
    "what", ["instances create vm --zone=europe-north1-a", "instance-templates create vm"]
)
def test_gcloud_sends_the_budget_and_what_becomes_of_the_disks(
    api: ComputeApi, sh: Shell, what: str
) -> None:
    sh(f"gcloud compute {what} {DISK} {FLAGS}")
    [sent] = api.posted()
    sent = sent.get("properties", sent)
    assert sent["scheduling"] == {**LIMIT, "automaticRestart": True}
    assert [disk["autoDelete"] for disk in sent["disks"]] == [True, False]


def test_an_instance_that_nothing_ends_gets_a_budget_as_gcp_status_says(
    api: ComputeApi, sh: Shell
) -> None:
    sh(
        "gcloud compute instances create vm --zone=europe-north1-a $(ycluster lifetime gcp-flags -c endless)"
    )
    assert "maxRunDuration" not in instance(api)["scheduling"]
    shown = sh("ycluster lifetime gcp-status vm --zone europe-north1-a").stdout
    assert "NOTHING deletes it" in shown and "deadline:" not in shown
    [mend] = [line for line in shown.splitlines() if "better:" in line]
    instance(api)["status"] = "TERMINATED"
    sh(mend.replace("better:", "").replace("DIR", "limited"))
    assert api.posted()[-1] == LIMIT
    again = sh("ycluster lifetime gcp-status vm --zone europe-north1-a").stdout
    assert (
        "12h0m0s from each start, then delete" in again
        and "no deadline while it is terminated" in again
    )


def test_gcp_status_shows_what_an_instance_has_left(api: ComputeApi, sh: Shell) -> None:
    sh(f"gcloud compute instances create vm --zone=europe-north1-a {FLAGS}")
    asked = sh(
        "ycluster lifetime gcp-status vm --zone europe-north1-a --project some-project -o json"
    ).stdout
    shown = json.loads(asked)
    assert (shown["name"], shown["zone"], shown["state"]) == ("vm", "europe-north1-a", "running")
    assert (shown["maxRun"], shown["onExpiry"]) == ("12h0m0s", "delete")
    assert 43200 - 300 < shown["remainingSeconds"] <= 43201
    for question in ("describe vm --zone europe-north1-a", "list"):
        piped = sh(
            f"gcloud compute instances {question} --format=json | ycluster lifetime gcp-status -o json"
        )
        assert {**json.loads(piped.stdout), "remainingSeconds": 0} == {
            **shown,
            "remainingSeconds": 0,
        }


def test_gcp_status_believes_the_moment_that_compute_engine_names(
    api: ComputeApi, sh: Shell
) -> None:
    sh(f"gcloud compute instances create vm --zone=europe-north1-a {FLAGS}")
    instance(api)["resourceStatus"] = {
        "scheduling": {"terminationTimestamp": "2099-01-01T01:00:00.500+01:00"}
    }
    shown = json.loads(sh("ycluster lifetime gcp-status vm --zone europe-north1-a -o json").stdout)
    assert shown["expiresAt"] == "2099-01-01T00:00:01Z"


def test_an_instance_that_has_gone_is_no_such_cluster(sh: Shell) -> None:
    done = sh("ycluster lifetime gcp-status vm --zone europe-north1-a", 4)
    assert (
        done.stdout == ""
        and "vm" in done.stderr
        and "deleted" in done.stderr
        and len(done.stderr.splitlines()) <= 3
    )


def test_the_commands_in_the_docs_are_true(api: ComputeApi, sh: Shell) -> None:
    written = block("docs/appliances.md", "Compute Engine")
    assert written.count("gcloud") == 1 and written.count("gcp-status") == 1
    done = sh("set -e\n" + written.replace("ZONE", "europe-north1-a").replace("DIR", "limited"))
    assert instance(api)["scheduling"]["maxRunDuration"] == LIMIT["maxRunDuration"]
    assert "12h0m0s from each start, then delete" in done.stdout


# --- the wrapper


def test_the_wrapper_makes_an_instance_that_ends_and_says_when(api: ComputeApi, sh: Shell) -> None:
    done = sh(
        "create-appliance.sh -c limited --zone europe-north1-a --data-disk data-1 --machine-type e2-small"
        " --label team=storage appliance-1 -- --metadata='greeting=hello you' --no-address"
    )
    [sent] = api.posted()
    assert sent["scheduling"] == {**LIMIT, "automaticRestart": False}
    boot, data = sent["disks"]
    assert (
        boot["boot"]
        and boot["autoDelete"]
        and "debian-cloud" in boot["initializeParams"]["sourceImage"]
    )
    assert (
        not data["boot"]
        and not data["autoDelete"]
        and data["source"].endswith(f"{PLACE}/disks/data-1")
    )
    assert (data["deviceName"], data["mode"]) == ("data", "READ_WRITE")
    assert sent["labels"] == {"created-by": "ycluster", "team": "storage", "max-run": "43200s"}
    assert sent["name"] == "appliance-1" and sent["machineType"].endswith("/e2-small")
    assert {"key": "greeting", "value": "hello you"} in sent["metadata"]["items"]
    assert "accessConfigs" not in sent["networkInterfaces"][0]
    summary = done.stdout[done.stdout.index("instance:") :]
    assert (
        "appliance-1" in summary
        and "12h0m0s from each start, then delete" in summary
        and "(11h 59m)" in summary
    )
    assert "warning" not in done.stderr


def test_what_a_dry_run_prints_can_be_pasted_and_does_the_same(api: ComputeApi, sh: Shell) -> None:
    command = "create-appliance.sh -c limited --zone europe-north1-a --data-disk d"
    dry = sh(f'{command} --dry-run vm -- --metadata="it\'s=a \\$5 b"').stdout
    assert api.requests == [] and len(dry.splitlines()) == 1
    sh(dry)
    sh(f'{command} vm-2 -- --metadata="it\'s=a \\$5 b"')
    first, second = api.posted()
    assert first == {**second, "name": "vm"} and first["metadata"]["items"] == [
        {"key": "it's", "value": "a $5 b"}
    ]


def test_the_wrapper_makes_an_instance_of_an_exported_disk(api: ComputeApi, sh: Shell) -> None:
    sh("create-appliance.sh -c limited --zone europe-north1-a --image dev-1 vm")
    [sent] = api.posted()
    assert sent["disks"][0]["initializeParams"]["sourceImage"].endswith("/images/dev-1")
    assert sent["scheduling"] == {**LIMIT, "automaticRestart": False}


def test_without_a_budget_the_wrapper_makes_nothing(api: ComputeApi, sh: Shell) -> None:
    """Nothing would delete the instance. (20.15)"""
    done = sh("create-appliance.sh -c endless --zone europe-north1-a vm", 3)
    assert api.posted() == [] and "lifetime.maxRun is not set" in done.stderr


def test_a_wrapper_whose_gcloud_fails_fails(api: ComputeApi, sh: Shell) -> None:
    done = sh("create-appliance.sh -c limited --zone europe-north1-a vm -- --no-such-flag", 2)
    assert api.posted() == [] and "instance:" not in done.stdout


@pytest.mark.parametrize("home", [{}, {"HOME": "/nonexistent"}])
def test_gcp_flags_want_nothing_of_the_host_but_a_place_to_unpack(
    program: Program, tmp_path: Path, home: dict[str, str]
) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "python3").symlink_to(
        os.path.realpath(sys.executable)
    )  # and nothing else: no QEMU, no ssh, no shell
    (tmp_path / "y-cluster-provision.yaml").write_text(
        "provider: multipass\nlifetime: {maxRun: 90m}\n"
    )
    environ = {"PATH": str(tools), **home}
    done = subprocess.run(
        [program.path, "lifetime", "gcp-flags", "-c", tmp_path],
        env=environ,
        cwd="/",
        text=True,
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (
        0,
        "--max-run-duration=5400s --instance-termination-action=DELETE\n",
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bin", "y-cluster-provision.yaml"]
