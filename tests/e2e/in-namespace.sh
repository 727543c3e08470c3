#!/usr/bin/env bash
# Run a command as root in a mount namespace whose /run, lingering users and at spool are its own.
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
exec "$@"
