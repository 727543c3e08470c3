#!/usr/bin/env bash
# THE test command: lint, unit tests, the same on every other Python at hand, then the e2e tests against dist/ycluster.
#   tests/run.sh                            everything
#   tests/run.sh lint|unit|slow|matrix|e2e ...   one part; what follows goes to pytest
#   (with something for pytest, `unit` has the slow ones, too)
# A part that this host lacks is skipped with its reason; with CI=true it is a failure.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
cache=${YCLUSTER_BUILD_CACHE:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/ycluster-build}
export YCLUSTER_BUILD_CACHE=$cache PYTHONDONTWRITEBYTECODE=1
part=all
if (($#)) && [[ $1 =~ ^(lint|unit|slow|matrix|e2e)$ ]]; then part=$1 && shift; fi
wants() { [[ $part == all || $part == "$1" ]]; }
title() { printf '\n\033[1m=== %s\033[0m (%d s)\n' "$*" "$SECONDS"; }

environment() { # PYTHON REQUIREMENTS...: a private environment, named after what is in it
    local tools
    tools=$cache/tests-$( (printf '%s\n' "${@:2}" && "$1" --version) | sha256sum | cut -c1-12)
    if [[ ! -e $tools/ready ]]; then
        title "setting up the test environment of $("$1" --version)" >&2
        mkdir -p "$cache"
        rm -rf "$tools"
        "$1" -m venv "$tools" >&2
        "$tools/bin/python" -m pip install --quiet --disable-pip-version-check "${@:2}" >&2
        touch "$tools/ready"
    fi
    echo "$tools"
}

others() { # the Pythons at hand, from 3.9 on, other than $python: one of each minor version, the oldest first
    local candidate version minor='import sys; sys.version_info < (3, 9) and sys.exit(1); print("3.%d" % sys.version_info[1])'
    local -A seen=([$("$python" -c "$minor")]=yes)
    for candidate in python3.{9..19} "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python3; do
        version=$("$candidate" -c "$minor" 2>/dev/null) || continue
        [[ ${seen[$version]:-} ]] || echo "${version#3.} $candidate"
        seen[$version]=yes
    done | sort -n | cut -d' ' -f2-
}

logs=$(mktemp -d) && trap 'rm -rf "$logs"' EXIT
jobs=() names=()
beside() { # NAME COMMAND...: runs in the background; `collect` tells
    "${@:2}" &>"$logs/${#jobs[@]}" &
    jobs+=($!) names+=("$1")
}
collect() { # waits for them, shows what each said, and fails where one did
    local i status=0
    for i in "${!jobs[@]}"; do
        wait "${jobs[i]}" || status=$?
        title "${names[i]}" && cat "$logs/$i"
    done
    jobs=() names=()
    return "$status"
}

unit() { # COMMAND...: has it keep what Python compiles, which takes each lane seconds, and keep it out of the tree
    env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX="$cache/compiled" PYTHONPATH=. "$@"
}

mapfile -t requirements < <(grep -v '^#' tests/requirements.txt)
tools=$(environment "$python" "${requirements[@]}")
pytest=("$tools/bin/python" -m pytest -p no:cacheprovider)

if wants lint; then
    title lint
    "$tools/bin/ruff" check --no-cache .
    "$tools/bin/ruff" format --no-cache --check .
    "$tools/bin/mypy" --cache-dir=/dev/null
    if command -v shellcheck >/dev/null; then
        git ls-files -co --exclude-standard -- '*.sh' .ci/run | xargs shellcheck
    elif [[ ${CI:-} == true ]]; then
        echo 'shellcheck is missing' >&2 && exit 1
    fi
fi

# Which unit tests run beside which: those of the slow ones mostly wait.
one=(tests/unit/test_{access,cli,config,hold,idle,state}.py)
processes=(tests/unit/test_{faults,histories,tap,timers,vm}.py)
programs=(tests/unit/test_{appliance,bounds,completion,k3s,machine}.py)

if wants unit && (($#)); then
    title 'unit tests'
    unit "${pytest[@]}" tests/unit "$@"
elif wants unit; then
    title 'unit tests, in two lanes'
    slow=("${processes[@]}" "${programs[@]}")
    beside 'one lane' unit "${pytest[@]}" -q "${one[@]}"
    beside 'the other' unit "${pytest[@]}" -q tests/unit "${one[@]/#/--ignore=}" "${slow[@]/#/--ignore=}"
    collect
fi

if [[ $part == slow ]] && (($#)); then
    title 'slow unit tests'
    unit "${pytest[@]}" "${processes[@]}" "${programs[@]}" "$@"
elif wants slow && ! (($#)); then
    title 'unit tests that wait: for processes, and for programs of others'
    beside 'with processes' unit "${pytest[@]}" -q "${processes[@]}"
    beside 'with programs of others: kubectl, shells, those of QEMU' unit "${pytest[@]}" -q "${programs[@]}"
    collect
fi

if wants matrix; then
    mapfile -t matrix < <(others)
    title "unit tests with ${matrix[*]:-no other Python: there is none at hand}"
    for other in "${matrix[@]}"; do
        # The oldest and the newest run all. Those between leave out what mostly waits for other programs.
        some=("${programs[@]/#/--ignore=}")
        [[ $other == "${matrix[0]}" || $other == "${matrix[-1]}" ]] && some=()
        tools=$(environment "$other" "${requirements[@]:0:2}")
        beside "$other" unit env YCLUSTER_EXAMPLES=quick "$tools/bin/python" -m pytest -p no:cacheprovider -q tests/unit "${some[@]}" "$@"
    done
    collect
fi

if wants e2e; then
    title 'build'
    PYTHON=$python ./build_zipapp.sh
    title 'e2e tests'
    here=()
    if ((EUID == 0)) && [[ ! -d /run/systemd/system ]]; then
        # No systemd here (a container): give the tests a /run, a lingering root, an at spool and processes of their own.
        here=(unshare --mount --propagation private --pid --fork --kill-child --mount-proc tests/e2e/in-namespace.sh)
    fi
    (($#)) && exec "${here[@]}" "${pytest[@]}" tests/e2e "$@"
    # The guest that plays the host mostly waits for its deadlines, and libguestfs's is one CPU: four lanes. What keeps
    # CPUs busy to be seen, test_idle, comes when the former is done.
    lanes=(
        'tests/e2e/test_quickstart.py tests/e2e/test_stubborn.py tests/e2e/test_crashes.py tests/e2e/test_run.py'
        'tests/e2e/test_real_host.py tests/e2e/test_guest.py tests/e2e/test_idle.py'
        'tests/e2e/test_appliance.py tests/e2e/test_suspend.py'
    )
    rest=()
    for lane in "${lanes[@]}"; do
        read -ra files <<<"$lane"
        beside "$lane" "${here[@]}" "${pytest[@]}" --durations=15 "${files[@]}"
        rest+=("${files[@]/#/--ignore=}")
    done
    status=0
    "${here[@]}" "${pytest[@]}" --durations=25 tests/e2e "${rest[@]}" || status=$?
    collect || status=$?
    exit "$status"
fi
