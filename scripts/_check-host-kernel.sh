#!/bin/sh
# For shell scripts to source before they call libguestfs: `. _check-host-kernel.sh || exit`. It is what ycluster itself
# checks (check_host_kernel in ycluster.py; a test holds the two together): libguestfs boots the newest /boot/vmlinuz-* that
# has modules (where none has, the one that runs is looked at), and Ubuntu makes kernels readable by root alone. It only
# looks, and prints what fixes it.
# shellcheck disable=SC2120
check_host_kernel() ( # [BOOT [MODULES]]; in a subshell, so that nothing of the caller's is changed
    boot=${1:-/boot} having=${2:-/lib/modules}
    newest=$(
        # shellcheck disable=SC2012 # where a pattern matches nothing, shells differ
        { ls "$boot" 2>/dev/null || :; } | sed -n 's/^vmlinuz-//p' | sort -V |
            while IFS= read -r kernel; do [ ! -d "$having/$kernel" ] || printf '%s\n' "$kernel"; done | tail -n 1
    )
    newest=$boot/vmlinuz-${newest:-$(uname -r)}
    if [ ! -e "$newest" ] || [ -r "$newest" ]; then exit 0; fi
    cat >&2 <<REMEDY
ycluster: $newest can't be read, and libguestfs boots it: "supermin exited with error status 1"
  paste this; it lets today's kernels be read, and every later one:
  printf '#!/bin/sh\nexec chmod 0644 "/boot/vmlinuz-\$1"\n' |
    sudo tee /etc/kernel/postinst.d/zz-readable-kernel >/dev/null
  sudo chmod 0755 /etc/kernel/postinst.d/zz-readable-kernel
  sudo chmod 0644 /boot/vmlinuz-*
REMEDY
    exit 5
)

# shellcheck disable=SC2119
check_host_kernel
