"""dist/ycluster as a file that is copied somewhere and run there: no home, no room, no rights, no trust in what lies about."""

from __future__ import annotations

import marshal
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from importlib.util import source_hash
from pathlib import Path

from conftest import ROOT, Program, need

SCHEMA = (ROOT / "schemas" / "docker.schema.json").read_text()


def run(archive: Path, *prefix: str, **environ: str) -> subprocess.CompletedProcess[str]:
    argv = [*prefix, str(archive), "schema", "docker"]
    return subprocess.run(
        argv,
        env={"PATH": os.environ["PATH"], **environ},
        text=True,
        capture_output=True,
        timeout=120,
        cwd="/",
    )


def check(ran: subprocess.CompletedProcess[str]) -> None:
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, SCHEMA, "")


def kept(home: Path) -> list[Path]:
    return sorted((home / ".cache" / "ycluster").iterdir())


def test_it_runs_without_a_home_and_unpacks_nothing(program: Program, tmp_path: Path) -> None:
    check(run(program.path))
    check(run(program.path, HOME="/nonexistent/home"))
    check(run(program.path, HOME="/proc"))
    check(run(program.path, HOME="relative"))
    (tmp_path / "a file").touch()
    check(run(program.path, HOME=str(tmp_path / "a file")))
    check(run(program.path, XDG_CACHE_HOME=str(tmp_path / "a file"), HOME=str(tmp_path)))
    check(run(program.path, sys.executable, "-I", "-S", HOME=str(tmp_path)))
    assert [path.name for path in tmp_path.iterdir() if path.name != "a file"] == [".cache"]
    [code] = kept(tmp_path)
    assert code.stat().st_mode & 0o777 == 0o600 and code.parent.stat().st_mode & 0o777 == 0o700


def test_nothing_is_laid_into_the_home_of_somebody_else(program: Program, tmp_path: Path) -> None:
    need(os.geteuid() == 0, "needs to be root, as under sudo")
    theirs = [tmp_path / "with" / ".cache", tmp_path / "with", tmp_path / "without"]
    for folder in reversed(theirs):
        folder.mkdir()
        os.chown(folder, 1000, 1000)
    for home in theirs[1:]:
        check(run(program.path, HOME=str(home)))
    assert sorted(tmp_path.rglob("*")) == sorted(theirs)
    check(run(program.path, HOME=str(tmp_path / "nowhere")))
    assert not (tmp_path / "nowhere").exists()


def test_it_runs_from_a_read_only_noexec_mount_with_a_full_home(
    program: Program, tmp_path: Path
) -> None:
    need(os.environ.get("YCLUSTER_OWN_MOUNTS"), "needs mounts of its own")
    (tmp_path / "disk").mkdir()
    (tmp_path / "home").mkdir()
    (tmp_path / "schema").mkdir()
    script = f"""set -eu
mount -t tmpfs -o size=4m tmpfs {tmp_path}/disk && cp {program.path} {tmp_path}/disk/ycluster
mount -o remount,ro,noexec {tmp_path}/disk
mount -t tmpfs -o size=64k tmpfs {tmp_path}/home && (dd if=/dev/zero of={tmp_path}/home/filler bs=1k 2>/dev/null || true)
env -i PATH=$PATH HOME={tmp_path}/home python3 {tmp_path}/disk/ycluster schema docker"""
    ran = subprocess.run(
        ["unshare", "--mount", "bash", "-c", script], text=True, capture_output=True
    )
    check(ran)


def test_code_that_was_tampered_with_cut_off_or_laid_there_by_others_is_not_run(
    program: Program, tmp_path: Path
) -> None:
    check(run(program.path, HOME=str(tmp_path)))
    [code] = kept(tmp_path)
    whole = code.read_bytes()
    data = marshal.dumps(compile("raise SystemExit('evil')", "evil", "exec"))
    evil = source_hash(data) + data
    code.write_bytes(evil)
    assert run(program.path, HOME=str(tmp_path)).stderr == "evil\n", (
        "what is ours, private and whole is taken"
    )
    for spoilt in (b"", whole[:31], whole[:-1], whole[:5000] + b"x" + whole[5001:], b"x" * 100):
        code.write_bytes(spoilt)
        check(run(program.path, HOME=str(tmp_path)))
        assert code.read_bytes() == whole, "and mended"
    code.write_bytes(evil)
    code.chmod(0o620)
    check(run(program.path, HOME=str(tmp_path)))
    code.unlink()
    (tmp_path / "evil").write_bytes(evil)
    code.symlink_to(tmp_path / "evil")
    check(run(program.path, HOME=str(tmp_path)))
    for at, mode in ((code, 0o600), (code.parent, 0o700)):
        code.unlink()
        code.write_bytes(evil)
        code.chmod(0o600)
        code.parent.chmod(0o777)
        check(run(program.path, HOME=str(tmp_path)))
        code.parent.chmod(0o700)
        if os.getuid() == 0:
            os.chown(at, 65534, 65534)
            at.chmod(mode)
            check(run(program.path, HOME=str(tmp_path)))
            os.chown(at, 0, 0)


def test_twenty_first_runs_at_once(program: Program, tmp_path: Path) -> None:
    argv, env = (
        [str(program.path), "schema", "docker"],
        {"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
    )
    crowd = [
        subprocess.Popen(argv, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(20)
    ]
    for one in crowd:
        out, err = one.communicate(timeout=300)
        assert (one.returncode, out, err) == (0, SCHEMA, "")
    assert len(kept(tmp_path)) == 1


def test_two_versions_side_by_side_keep_out_of_each_others_way(
    program: Program, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shebang = program.path.read_bytes().split(b"\n", 1)[0] + b"\n"
    with zipfile.ZipFile(program.path) as made, open(other, "wb") as file:
        file.write(shebang)
        with zipfile.ZipFile(file, "w") as changed:
            for name in made.namelist():
                changed.writestr(
                    name, made.read(name).replace(b'VERSION = "0.1.0"', b'VERSION = "9.9.9"')
                )
    other.chmod(0o755)
    for _ in range(2):
        for archive, version in ((program.path, "0.1.0"), (other, "9.9.9")):
            argv, env = (
                [str(archive), "--version"],
                {"PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            )
            ran = subprocess.run(argv, env=env, text=True, capture_output=True)
            assert ran.stdout == f"ycluster {version}\n", ran.stderr
    assert len(kept(tmp_path)) == 2


def test_code_that_was_kept_long_ago_is_removed_when_new_code_is_kept(
    program: Program, tmp_path: Path
) -> None:
    folder = tmp_path / ".cache" / "ycluster"
    folder.mkdir(parents=True, mode=0o700)
    old, cut_off, recent, written_by_others = (
        folder / name for name in ("0" * 16, "a" * 16 + ".123", "1" * 16, "2" * 16)
    )
    others = [
        folder / name
        for name in ("README", "0" * 15, "0" * 17, "A" * 16, "0" * 16 + ".tmp", "0" * 16 + "\n")
    ]
    for path in (old, cut_off, recent, written_by_others, *others):
        path.write_bytes(b"x")
        path.chmod(0o600)
    written_by_others.chmod(0o620)
    (folder / ("d" * 16)).mkdir()
    (folder / ("e" * 16)).symlink_to(recent)
    for path in folder.iterdir():
        days = 29 if path == recent else 31
        os.utime(path, (time.time() - days * 86400,) * 2, follow_symlinks=False)
    before = set(folder.iterdir())
    check(run(program.path, HOME=str(tmp_path)))
    [code] = set(folder.iterdir()) - before
    assert before - set(folder.iterdir()) == {old, cut_off}
    os.utime(code, (0, 0))
    check(run(program.path, HOME=str(tmp_path)))
    assert code.stat().st_mtime == 0, "what is in use is left as it is"


def test_an_older_python_gets_one_line(program: Program) -> None:
    code = f"import sys, runpy; sys.version_info = (3, 8, 1); runpy.run_path({str(program.path)!r}, run_name='__main__')"
    ran = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
    assert (ran.returncode, ran.stderr) == (1, "ycluster: needs Python 3.9 or later; this is 3.8\n")


def pythons() -> Iterator[tuple[str, bool]]:
    """The Pythons at hand, and whether each is new enough."""
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for python in [
        Path(sys.executable),
        *Path("/usr/bin").glob("python?*"),
        *versions.glob("*/bin/python"),
    ]:
        said = subprocess.run(
            [python, "-c", "import sys; print(sys.version_info[:2])"],
            text=True,
            capture_output=True,
        ).stdout
        if re.fullmatch(r"\(\d, \d+\)\n", said):
            yield str(python), bool(re.fullmatch(r"\(3, (9|\d\d)\)\n", said))


def test_pathlib_comes_without_the_parser_of_urls_and_writes_urls_all_the_same(
    program: Program, tmp_path: Path
) -> None:
    (tmp_path / "y-cluster-provision.yaml").write_text("image: an image.img\n")
    show = (str(program.path), "config", "show", "-c", str(tmp_path))
    for python, is_new_enough in pythons():
        if is_new_enough:
            loaded = run(program.path, python, "-SX", "importtime", HOME=str(tmp_path)).stderr
            assert " pathlib\n" in loaded and "urllib.parse" not in loaded
            shown = subprocess.run([python, *show], text=True, capture_output=True, check=True)
            assert f"file://{tmp_path}/an%20image.img" in shown.stdout


def test_every_python_at_hand_runs_it_with_no_site_packages_or_gets_one_line(
    program: Program, tmp_path: Path
) -> None:
    for python, is_new_enough in pythons():
        if is_new_enough:
            check(run(program.path, python, "-I", "-S", HOME=str(tmp_path)))
        else:
            ran = run(program.path, python)
            assert (ran.returncode, ran.stdout) == (1, "") and ran.stderr.startswith(
                "ycluster: needs Python 3.9 or later; "
            )
            assert ran.stderr.count("\n") == 1


def test_the_same_commit_gives_the_same_bytes_and_a_small_file(
    program: Program, tmp_path: Path
) -> None:
    # Small is what is in it and hardly more: the module as it is, for the timers to copy, and what starts it.
    assert program.path.stat().st_size < 1.05 * (ROOT / "ycluster.py").stat().st_size
    shutil.copytree(
        ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns("dist", ".hypothesis", ".git")
    )
    subprocess.run(["./build_zipapp.sh"], cwd=tmp_path / "copy", check=True, capture_output=True)
    assert (tmp_path / "copy" / "dist" / "ycluster").read_bytes() == (
        ROOT / "dist" / "ycluster"
    ).read_bytes()
    subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"],
        cwd=ROOT / "dist",
        check=True,
        capture_output=True,
    )


def test_it_is_built_with_no_network_from_wheels_at_hand(tmp_path: Path) -> None:
    need(os.geteuid() == 0, "needs to be root, for a network namespace with nothing in it")
    pins = re.search(r"^pins=\((.*)\)$", (ROOT / "build_zipapp.sh").read_text(), re.MULTILINE)
    assert pins
    fetch = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "-q",
        "--no-deps",
        "-d",
        str(tmp_path / "wheels"),
        *pins.group(1).split(),
    ]
    subprocess.run(fetch, check=True, capture_output=True)
    shutil.copytree(
        ROOT, tmp_path / "copy", ignore=shutil.ignore_patterns("dist", ".hypothesis", ".git")
    )
    env = {
        **os.environ,
        "YCLUSTER_BUILD_CACHE": str(tmp_path / "cache"),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(tmp_path / "wheels"),
    }
    argv = [
        "sh",
        "-c",
        "umask 077 && exec unshare -n ./build_zipapp.sh",
    ]  # the same bytes, whatever the umask
    subprocess.run(argv, cwd=tmp_path / "copy", env=env, check=True, capture_output=True)
    assert (tmp_path / "copy" / "dist" / "ycluster").read_bytes() == (
        ROOT / "dist" / "ycluster"
    ).read_bytes()
