#!/usr/bin/env bash
# Build dist/ycluster: the module in one executable archive, by shiv, and dist/SHA256SUMS.
# The same sources give the same bytes on every host: shiv is pinned, and order, permissions and times are set, whatever
# those of the files and of shiv's environment are. The main program is scripts/zipapp_main.py, which unpacks nothing, in
# the place of shiv's, which would unpack the module into the user's home.
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
mkdir "$work/site"
cp ycluster.py "$work/site"
# The first time that a zip archive can hold. A commit's would depend on how much of the history a clone has.
export SOURCE_DATE_EPOCH=315532800

"$tools/bin/shiv" --site-packages "$work/site" --reproducible \
    --python '/usr/bin/env python3' --entry-point ycluster:main --output-file "$work/ycluster" >&2
"$python" scripts/zipapp_pack.py "$work/ycluster" scripts/zipapp_main.py "$SOURCE_DATE_EPOCH"
chmod 755 "$work/ycluster"

mkdir -p dist
mv -f "$work/ycluster" dist/ycluster
(cd dist && sha256sum ycluster >SHA256SUMS)
echo "built dist/ycluster: $(stat -c %s dist/ycluster) bytes, $(cut -c1-16 dist/SHA256SUMS)..." >&2
