#!/usr/bin/env bash
# Build dist/ycluster: the module and its entry point in one executable archive, by shiv.
# The same commit gives the same bytes: shiv is pinned, times are the commit's, nothing of this machine goes in.
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

mkdir -p dist
"$tools/bin/shiv" --site-packages "$work/site" --reproducible --compressed \
    --python '/usr/bin/env python3' --entry-point ycluster:main --output-file "$work/ycluster" >&2
chmod 755 "$work/ycluster"
mv -f "$work/ycluster" dist/ycluster
(cd dist && sha256sum ycluster >SHA256SUMS)
echo "built dist/ycluster: $(stat -c %s dist/ycluster) bytes, $(cut -c1-16 dist/SHA256SUMS)..." >&2
