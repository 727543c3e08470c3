#!/usr/bin/env bash
# Run a command as root with a /run, lingering users and an at spool of its own, in a mount namespace.
# In a PID namespace it also sees no processes but its own: no lane's doctor names another lane's VMs, and none outlives it.
set -euo pipefail
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/system /run/user/0
chmod 700 /run/user/0
mkdir -p /var/lib/systemd/linger
mount -t tmpfs -o mode=755 tmpfs /var/lib/systemd/linger
touch /var/lib/systemd/linger/root
spool=/var/spool/cron/atjobs
if [[ -d $spool ]]; then
    mount -t tmpfs -o "mode=1770,uid=$(stat -c %u $spool),gid=$(stat -c %g $spool)" tmpfs "$spool"
    install -m 600 -o daemon -g daemon /dev/null "$spool/.SEQ"
fi
export XDG_RUNTIME_DIR=/run/user/0 YCLUSTER_OWN_MOUNTS=1
"$@" # not exec: as its namespace's first process, bash takes in the orphans
