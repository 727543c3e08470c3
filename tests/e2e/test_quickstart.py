"""The commands of README.md and docs/, from a copy of what would be committed, as a newcomer runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, block, need, wait_for


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clone") / "ycluster"
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    place.parent.chmod(0o755)
    return place


def test_the_quickstart_shows_a_suspend_at_the_deadline_and_the_work_that_goes_on(
    clone: Path, guest_image: Path, tmp_path: Path, user_manager: None, atd: None
) -> None:
    environ = {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": str(tmp_path),
        "YCLUSTER_GUEST_CACHE": str(guest_image.parent),
        "YCLUSTER_BUILD_CACHE": os.environ.get("YCLUSTER_BUILD_CACHE", str(tmp_path / "build")),
    }
    done = subprocess.run(
        ["scripts/quickstart.sh"],
        cwd=clone,
        env=environ,
        text=True,
        capture_output=True,
        timeout=3500,
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "hello from quickstart" in done.stdout
    assert "suspended" in done.stdout and "still counting: " in done.stdout
    assert "s left" in done.stderr and "Nothing is running" in done.stderr
    assert (tmp_path / ".local/share/ycluster/quickstart.qcow2").is_file()
    assert not (tmp_path / ".local/share/ycluster/quickstart.memory").exists()

    def left() -> str:
        argv = ["pgrep", "-af", f"{tmp_path}/.local/share/ycluster"]
        return subprocess.run(argv, capture_output=True, text=True).stdout

    assert "qemu" not in left()
    wait_for("the end of the watcher, which looks every few seconds", lambda: not left())


def test_an_ordinary_user_without_the_packages_is_given_the_one_line(
    clone: Path, tmp_path: Path
) -> None:
    need(os.geteuid() == 0, "needs root to become somebody else")
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("bash", "dirname", "apt-get", "env"):
        (tools / name).symlink_to(shutil.which(name) or "/bin/false")
    for place in (tmp_path, *tmp_path.parents):
        if place.stat().st_uid == os.geteuid() and place != Path("/"):
            place.chmod(place.stat().st_mode | 0o011)
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "bash", "scripts/quickstart.sh"],
        cwd=clone, env={"PATH": str(tools), "HOME": "/"}, text=True, capture_output=True,
        executable="/usr/bin/setpriv",
    )  # fmt: skip
    assert done.returncode == 5, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "apt-get install" in line]
    assert "qemu-system-x86" in line and "python3" in line
    assert not (clone / "dist").exists() or (clone / "dist" / "ycluster").exists()


def test_the_commands_of_the_readme_and_of_its_pages_do_what_they_say(
    clone: Path, guest_image: Path, tmp_path: Path, user_manager: None, atd: None
) -> None:
    """One after the other in one HOME, from the build to the uninstall. Only the image is put in, as a mirror has no Ubuntu's."""
    image = f'\nimage: "{guest_image}"\n'
    made, _, used = block("README.md", "Quick start").partition("ycluster provision")
    assert "ycluster init dev" in made and "ycluster list" in used
    plain = f"memory: 1024\nk3s: {{install: none}}{image}"
    deadline = block("README.md", "At the deadline")
    ends = block("README.md", "Stop, pause, suspend and teardown")
    assert "ycluster lifetime extend" in deadline and "ycluster stop" in ends
    more = block("docs/developer.md", "For a developer with a laptop").splitlines()
    more = [
        line for line in more if not re.match(r"ycluster (provision|suspend|stop|start) ", line)
    ]  # each boot takes a minute
    assert len(more) > 6
    config = block("docs/ci.md", "For CI, and for agents", "yaml") + image
    job = block("docs/ci.md", "For CI, and for agents") + block("docs/ci.md", "Step by step")
    uninstall = block("README.md", "Upgrade and uninstall")
    script = tmp_path / "script"
    lines = [
        "set -eux -o pipefail",
        block("README.md", "Install"),
        made,
        f"cat >>dev/y-cluster-provision.yaml <<'YAML'\n{plain}YAML",
        f"ycluster provision{used}",
        deadline,
        *more,
        ends,
        "mkdir ci",
        "cat >ci/y-cluster-provision.yaml <<'YAML'",
    ]
    script.write_text("\n".join([*lines, f"{config}YAML", f"({job})", uninstall]))
    home = tmp_path / "home"
    home.mkdir()
    environ = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": str(home),
        "YCLUSTER_BUILD_CACHE": os.environ.get("YCLUSTER_BUILD_CACHE", str(tmp_path / "build")),
    }
    done = subprocess.run(
        ["bash", script], cwd=clone, env=environ, text=True, capture_output=True, timeout=3500
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    greeted = re.findall("^Linux (dev|job(?:-[0-9]+)?) ", done.stdout, re.MULTILINE)
    assert len(greeted) == 3 and greeted[0] == "dev" and "job-" in greeted[1], greeted
    assert f"{greeted[1]} is torn down" in done.stderr
    assert "dev is torn down" in done.stderr and "job is torn down" in done.stderr
    assert [path for path in home.rglob("*") if not path.is_dir()] == []
