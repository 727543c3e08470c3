"""build_zipapp.sh: what is in the archive is set, not inherited. tests/e2e/test_archive.py has the real shiv."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from unit_support import PROGRAM

ROOT = PROGRAM.parent
SOURCES = ("ycluster.py", "build_zipapp.sh", "scripts/zipapp_main.py", "scripts/zipapp_pack.py")
# Takes everything from its surroundings: the order, the permissions and the times of files.
SHIV = """\
import os, sys, zipfile
site, archive = (sys.argv[sys.argv.index(name) + 1] for name in ("--site-packages", "--output-file"))
own = os.path.dirname(sys.argv[0])
with open(archive, "wb") as file:
    file.write(b"#!/usr/bin/env python3\\n")
    with zipfile.ZipFile(file, "w") as made:
        made.write(os.path.join(own, "bootstrap.py"), "_bootstrap/__init__.py")
        made.write(os.path.join(site, "ycluster.py"), "site-packages/ycluster.py")
        made.writestr("__main__.py", "shiv's own")
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python whose virtual environments have this shiv in them."""
    (tmp_path / "shiv.py").write_text(SHIV)
    program = tmp_path / "python"
    program.write_text(f"""#!/bin/sh
[ "$1 $2" = "-m venv" ] || exec {sys.executable} "$@"
mkdir -p "$3/bin"
echo "code = 1" >"$3/bin/bootstrap.py"
cp {tmp_path}/shiv.py "$3/bin/shiv.py"
printf '#!/bin/sh\\nexec {sys.executable} %s/bin/shiv.py "$@"\\n' "$3" >"$3/bin/shiv"
printf '#!/bin/sh\\nexit\\n' >"$3/bin/python"
chmod u+x "$3/bin/shiv" "$3/bin/python"
""")
    program.chmod(0o755)
    return program


def built(tmp_path: Path, python: Path, umask: str, touched: str) -> Path:
    """An archive built from a fresh copy and a fresh environment, both made under a umask at some time."""
    copy = tmp_path / f"copy-{umask}-{touched}"
    (copy / "scripts").mkdir(parents=True)
    for name in SOURCES:
        shutil.copyfile(ROOT / name, copy / name)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHON": str(python),
        "YCLUSTER_BUILD_CACHE": f"{copy}-cache",
        "TZ": f"X{touched}",
    }
    script = f"umask {umask}; find . -exec touch -d @1{touched}00000000 {{}} +; exec bash build_zipapp.sh"
    subprocess.run(["sh", "-c", script], cwd=copy, env=env, check=True, capture_output=True)
    return copy / "dist" / "ycluster"


def test_two_builds_are_the_same_bytes_whatever_the_umask_and_the_time(
    tmp_path: Path, python: Path
) -> None:
    """Of the files, and of the environment that shiv lives in. (20.21)"""
    archives = [
        built(tmp_path, python, umask, str(i)) for i, umask in enumerate(("002", "022", "077"))
    ]
    first = archives[0].read_bytes()
    assert [archive.read_bytes() == first for archive in archives] == [True] * 3
    assert [archive.stat().st_mode & 0o777 for archive in archives] == [0o755] * 3
    with zipfile.ZipFile(archives[2]) as archive:
        members = archive.infolist()
        assert archive.read("__main__.py") == (ROOT / "scripts" / "zipapp_main.py").read_bytes()
    assert {(member.external_attr >> 16, member.date_time[0]) for member in members} == {
        (0o100644, 1980)
    }


def test_a_build_does_not_depend_on_how_much_of_the_history_there_is(
    tmp_path: Path, python: Path
) -> None:
    """In a shallow clone every file is of the last commit. (20.21)"""
    plain = built(tmp_path, python, "022", "1").read_bytes()
    copy = tmp_path / "copy-022-1"
    git = "git -c user.name=x -c user.email=x@x.invalid"
    script = f"git init -q && git add {' '.join(SOURCES)} && {git} commit -qm x"
    subprocess.run(["sh", "-c", script], cwd=copy, check=True, capture_output=True)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHON": str(python),
        "YCLUSTER_BUILD_CACHE": f"{copy}-cache",
    }
    subprocess.run(["bash", "build_zipapp.sh"], cwd=copy, env=env, check=True, capture_output=True)
    assert (copy / "dist" / "ycluster").read_bytes() == plain
