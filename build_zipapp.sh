#!/usr/bin/env bash
# Build dist/ycluster: the module and its entry point in one executable archive, by shiv.
# The same commit gives the same bytes: shiv is pinned, times are the commit's, nothing of this machine goes in.
# What shiv would unpack into the user's home before it runs, the main program below runs from the archive itself.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

python=${PYTHON:-python3}
cache=${YCLUSTER_BUILD_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/ycluster-build}
pins=(shiv==1.0.8 click==8.1.8 pip==24.3.1 setuptools==75.3.0)

# A private environment, named after what is in it: a changed pin makes a new one.
tools=$cache/shiv-$(printf '%s\n' "${pins[@]}" "$("$python" --version)" | sha256sum | cut -c1-12)
if [[ ! -e $tools/ready ]]; then
    mkdir -p "$cache"
    exec 9>"$tools.lock"
    flock 9
    if [[ ! -e $tools/ready ]]; then
        rm -rf "$tools"
        "$python" -m venv "$tools" || {
            echo "build_zipapp.sh: $python can't make a virtual environment: apt-get install python3-venv" >&2
            exit 5
        }
        "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "${pins[@]}" >&2
        touch "$tools/ready"
    fi
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
install -m 644 -D ycluster.py "$work/site/ycluster.py"
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct -- ycluster.py build_zipapp.sh 2>/dev/null || true)
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-315532800}
find "$work/site" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +

cat >"$work/__main__.py" <<'PYTHON'
"""Runs site-packages/ycluster.py from this archive. Nothing is unpacked: no home, no room and no write access is needed.

Its compiled code is kept in ~/.cache/ycluster, under a name made of its source and its Python. What lies there is taken
only from a folder and a file that are this user's own and that nobody else can write to, and only if it is whole.
"""

import sys

if sys.version_info < (3, 9):
    sys.exit("ycluster: needs Python 3.9 or later; this is %d.%d" % sys.version_info[:2])

import gc

gc.disable()  # while everything that is made is there to stay
import marshal
import os
import types
from importlib.util import source_hash  # what a .pyc is checked by; hashlib would take longer than all else here

PATH = os.path.join(os.path.dirname(__file__), "site-packages", "ycluster.py")


def ours(status):
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def kept(path):
    with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        if ours(os.lstat(os.path.dirname(path))) and ours(os.fstat(file.fileno())):
            digest, data = file.read(8), file.read()
            if source_hash(data) == digest:
                return marshal.loads(data)
    raise OSError(path)


def keep(path, code):
    folder, data = os.path.dirname(path), marshal.dumps(code)
    parent = os.path.dirname(folder)
    if ours(os.stat(parent if os.path.exists(parent) else os.path.dirname(parent))):  # not so in a user's home under sudo
        os.makedirs(folder, mode=0o700, exist_ok=True)
    if ours(os.lstat(folder)):
        beside = "%s.%d" % (path, os.getpid())
        try:
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(source_hash(data) + data)
            os.replace(beside, path)
        except OSError:
            os.unlink(beside)
            raise


source = __loader__.get_data(PATH)
name = source_hash(source + sys.version.encode()).hex()
cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
path = os.path.join(cache, "ycluster", name) if os.path.isabs(cache) else ""
try:
    code = kept(path)
except OSError:
    code = compile(source, PATH, "exec", dont_inherit=True)
    try:
        keep(path, code)
    except OSError:
        pass
sys.modules["ycluster"] = module = types.ModuleType("ycluster")
module.__dict__.update(__file__=PATH, __loader__=__loader__)
exec(code, module.__dict__)
gc.enable()
module.run()
PYTHON

mkdir -p dist
"$tools/bin/shiv" --site-packages "$work/site" --reproducible --compressed \
    --python '/usr/bin/env python3' --entry-point ycluster:main --output-file "$work/ycluster" >&2
"$python" - "$work/ycluster" "$work/__main__.py" <<'PYTHON'
import sys, zipfile
archive, main = sys.argv[1:]
with open(archive, "rb") as file:
    shebang = file.readline()
with zipfile.ZipFile(archive) as made:
    entries = [(info, made.read(info)) for info in made.infolist()]
with open(archive, "wb") as file:
    file.write(shebang)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        for info, data in entries:
            made.writestr(info, open(main, "rb").read() if info.filename == "__main__.py" else data, zipfile.ZIP_DEFLATED)
PYTHON
chmod 755 "$work/ycluster"
mv -f "$work/ycluster" dist/ycluster
(cd dist && sha256sum ycluster >SHA256SUMS)
echo "built dist/ycluster: $(stat -c %s dist/ycluster) bytes, $(cut -c1-16 dist/SHA256SUMS)..." >&2
