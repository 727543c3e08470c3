#!/usr/bin/env bash
# THE test command: lint, unit tests, then the e2e tests against dist/ycluster.
#   tests/run.sh                     everything
#   tests/run.sh lint|unit|e2e ...   one part; what follows goes to pytest
# A part that this host lacks is skipped with its reason; with CI=true it is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
cache=${YCLUSTER_BUILD_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/ycluster-build}
export YCLUSTER_BUILD_CACHE=$cache PYTHONDONTWRITEBYTECODE=1
part=all
if (($#)) && [[ $1 =~ ^(lint|unit|e2e)$ ]]; then part=$1 && shift; fi
wants() { [[ $part == all || $part == "$1" ]]; }
title() { printf '\n\033[1m=== %s\033[0m (%d s)\n' "$*" "$SECONDS"; }

tools=$cache/tests-$( (cat tests/requirements.txt && "$python" --version) | sha256sum | cut -c1-12)
if [[ ! -e $tools/ready ]]; then
    title 'setting up the test environment'
    mkdir -p "$cache"
    rm -rf "$tools"
    "$python" -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check -r tests/requirements.txt
    touch "$tools/ready"
fi
pytest=("$tools/bin/python" -m pytest -p no:cacheprovider)

if wants lint; then
    title lint
    "$tools/bin/ruff" check --no-cache .
    "$tools/bin/ruff" format --no-cache --check .
    "$tools/bin/mypy" --cache-dir=/dev/null ycluster.py
    if command -v shellcheck >/dev/null; then
        git ls-files -co --exclude-standard -- '*.sh' .ci/run | xargs shellcheck
    elif [[ ${CI:-} == true ]]; then
        echo 'shellcheck is missing' >&2 && exit 1
    fi
fi

if wants unit; then
    title 'unit tests'
    PYTHONPATH=. "${pytest[@]}" tests/unit "$@"
fi

if wants e2e; then
    title 'build'
    PYTHON=$python ./build_zipapp.sh
    title 'e2e tests'
    here=()
    if ((EUID == 0)) && [[ ! -d /run/systemd/system ]]; then
        # No systemd here (a container): give the tests a /run, a lingering root and an at spool of their own.
        here=(unshare --mount --propagation private tests/e2e/in-namespace.sh)
    fi
    (($#)) && exec "${here[@]}" "${pytest[@]}" tests/e2e "$@"
    # The guest that plays the host mostly waits for its deadlines, and libguestfs's is one CPU: two lanes, half each.
    beside=(tests/e2e/test_{real_host,appliance,k3s}.py) log=$(mktemp)
    "${here[@]}" "${pytest[@]}" "${beside[@]}" &>"$log" &
    status=0
    "${here[@]}" "${pytest[@]}" tests/e2e "${beside[@]/#/--ignore=}" || status=$?
    wait $! || status=$?
    title "${beside[*]}, which ran beside them" && cat "$log" && rm -f "$log"
    exit "$status"
fi
