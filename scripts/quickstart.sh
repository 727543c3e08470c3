#!/usr/bin/env bash
# From a fresh clone to a VM that suspends itself at its deadline, and goes on where it was.
# Safe to run again; leaves nothing running, and the stopped cluster `quickstart` to play with.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=quickstart
yc=$PWD/dist/ycluster
step() { printf '\n\033[1m==> %s\033[0m (%d s)\n' "$*" "$SECONDS" >&2; }

# --- 1: what the host must have

# program or file:package
needs=(
    python3:python3 qemu-system-x86_64:qemu-system-x86 qemu-img:qemu-utils ssh:openssh-client
    mmdebstrap:mmdebstrap mke2fs:e2fsprogs sfdisk:fdisk grub-mkimage:grub-common
    /usr/lib/grub/i386-pc/boot.img:grub-pc-bin /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring
)
((EUID == 0)) || needs+=(fakeroot:fakeroot newuidmap:uidmap)
missing=()
for need in "${needs[@]}"; do
    PATH=$PATH:/usr/sbin:/sbin command -v "${need%%:*}" >/dev/null || [[ -e ${need%%:*} ]] || missing+=("${need##*:}")
done
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if ((${#missing[@]})); then
    command -v apt-get >/dev/null || {
        echo "quickstart: this host has no apt-get; install the equivalents of: ${missing[*]}" >&2
        exit 5
    }
    if ((EUID)); then
        printf 'quickstart: first, as root:\n  apt-get update && apt-get install -y --no-install-recommends %s\n' "${missing[*]}" >&2
        exit 5
    fi
    step "installing ${missing[*]}"
    apt-get update -q >&2
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >&2
fi

# --- 2: the program and a guest for it

step 'building dist/ycluster'
./build_zipapp.sh
step 'building the guest image (a minute; cached from then on)'
image=$(scripts/build-guest-image.sh)

# --- 3: the main job, with dist/ycluster alone

state() { "$yc" status --name "$name" -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["'"$1"'"])'; }
leave_nothing_running() { if [[ -x $yc ]]; then "$yc" stop --name "$name" >/dev/null 2>&1 || true; fi; }
trap 'leave_nothing_running' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

config=${XDG_CACHE_HOME:-$HOME/.cache}/ycluster-quickstart
mkdir -p "$config"
cat >"$config/y-cluster-provision.yaml" <<YAML
name: $name
context: $name
memory: 1024
cpus: 2
diskSize: 8G
sshPort: 0            # QEMU chooses a free one
portForwards: []
image: "$image"
k3s:
  install: none       # a plain VM
lifetime:
  maxRun: 1h          # the budget, counted from each start
  onExpiry: suspend   # at the deadline its memory goes to a file
YAML

in_guest() { "$yc" ssh --name "$name" -- "$@"; }

step 'a cluster with a budget of an hour'
"$yc" teardown -c "$config"
"$yc" provision -c "$config"
# shellcheck disable=SC2016  # for the guest's shell
in_guest 'echo "hello from $(hostname), up $(cut -d. -f1 /proc/uptime) s"'

step 'work in it: a program that counts'
# shellcheck disable=SC2016
in_guest 'setsid sh -c "while n=\$((n + 1)); do echo \$n; sleep 1; done" >count 2>&1 </dev/null & echo $! >counter'
step 'a minute more, and nobody touches it: its timer has to'
"$yc" lifetime set 60s --name "$name"
"$yc" lifetime status --name "$name"
disk=$(state disk)
waited=0
while [[ $(state state) != suspended ]]; do
    left=$(state remainingSeconds)
    if [[ $left == None ]]; then left=0; fi
    if ((left > 0)); then printf '    %s s left\n' "$left" >&2; else printf '    due\n' >&2; fi
    # Twice the time that a suspend, or all steps of a stop in its place, may take.
    if ((left <= 0 && (waited += 5) > 360)); then echo 'quickstart: it is still running' >&2 && exit 1; fi
    sleep "$((left > 15 ? 10 : left > 0 ? left : 5))"
done
while [[ $(state reaped) == None ]]; do sleep 1; done # the record follows the end of QEMU by a moment

step 'QEMU is gone; the disk and the memory are there'
"$yc" status --name "$name"
ls -lh "$disk" "${disk%.qcow2}.memory"
if pgrep -f "[-]pidfile ${disk%.qcow2}.pid" >/dev/null; then echo 'quickstart: QEMU is still there' >&2 && exit 1; fi

step 'it goes on where it was, with a fresh budget'
"$yc" start --name "$name"
# shellcheck disable=SC2016
in_guest 'before=$(wc -l <count); sleep 2; kill -0 "$(cat counter)" && [ "$(wc -l <count)" -gt "$before" ] && echo "still counting: $(tail -n 1 count)"'
"$yc" lifetime status --name "$name"
"$yc" stop --name "$name"
cat >&2 <<DONE

Done in $SECONDS s. Nothing is running. Next:
  dist/ycluster start $name        # boots it, with a fresh budget
  dist/ycluster list
  dist/ycluster teardown $name     # removes it
DONE
