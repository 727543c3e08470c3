#!/usr/bin/env bash
# Build a bootable Debian cloud image (qcow2, BIOS, cloud-init, sshd) from the distribution's own packages.
#
# For hosts that reach a Debian package mirror and nothing else: no image server, no loop device, no mount, no
# libguestfs, and no root where user namespaces are allowed. Pipeline: mmdebstrap -> tar -> a tree (under fakeroot
# unless root) -> `mke2fs -d` straight into partition 1 of a raw disk -> GRUB by dd into the gap before it -> qcow2.
set -euo pipefail
export LC_ALL=C PATH="$PATH:/usr/sbin:/sbin" # mke2fs and sfdisk are not on an ordinary Debian user's PATH

usage() {
    cat <<'USAGE'
usage: build-guest-image.sh [--print] [OUTPUT]

Builds the guest image once per recipe, keeps it in the cache, and prints its path (only that) on stdout.
  OUTPUT     also copy it there, and print that path instead
  --print    print the path; build nothing
Environment:
  YCLUSTER_GUEST_CACHE   cache directory   (default: ${XDG_CACHE_HOME:-~/.cache}/ycluster-guest)
  YCLUSTER_GUEST_SUITE   Debian suite      (default: bookworm)
  YCLUSTER_GUEST_MIRROR  package mirror    (default: the host's own, if it is Debian of that suite; else mmdebstrap's)
Exit status: 0 done, 1 the build failed, 2 usage, 5 something is missing on this host, 130/143 interrupted.
USAGE
}

say() { printf 'guest-image: %3ds %s\n' "$SECONDS" "$*" >&2; }
die() { printf 'build-guest-image.sh: %s\n' "$2" >&2 && exit "$1"; } # STATUS MESSAGE

require_tools() {
    local missing=() tool tools=(mmdebstrap mke2fs sfdisk grub-mkimage qemu-img flock)
    ((EUID == 0)) || tools+=(fakeroot newuidmap)
    for tool in "${tools[@]}"; do command -v "$tool" >/dev/null || missing+=("$tool"); done
    [[ -e $grub_dir/boot.img ]] || missing+=("$grub_dir/boot.img")
    [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || missing+=(debian-archive-keyring) # Ubuntu hosts
    ((${#missing[@]} == 0)) || die 5 "missing: ${missing[*]}. Run:
  apt-get install mmdebstrap e2fsprogs fdisk grub-pc-bin qemu-utils debian-archive-keyring fakeroot uidmap"
    [[ $arch == amd64 ]] || die 5 "the image boots by BIOS, which needs an amd64 host (this one is $arch)"
}

# Only lines of Debian itself: a host's third-party sources have no business in the guest.
sources() {
    local found=''
    if [[ -n ${YCLUSTER_GUEST_MIRROR:-} ]]; then
        found="deb $YCLUSTER_GUEST_MIRROR $suite main"
    elif command -v apt-get >/dev/null; then
        found=$(apt-get indextargets --format "deb \$(REPO_URI) \$(RELEASE) \$(COMPONENT)" \
            'Created-By: Packages' 'Origin: Debian' 2>/dev/null |
            grep -E "^deb http[^ ]+ $suite(-updates|-security)? main$" | sort -u) || found=''
        grep -q " $suite main$" <<<"$found" || found=''
    fi
    [[ -z $found ]] || printf '%s\n' "$found" # nothing: mmdebstrap knows Debian's own mirror
}

bootstrap() { # TARFILE
    local include=(
        linux-image-cloud-amd64 systemd-sysv dbus dbus-user-session libpam-systemd
        cloud-init cloud-guest-utils fdisk e2fsprogs systemd-resolved # growpart calls sfdisk
        openssh-server sudo iproute2 procps ca-certificates at curl # which k3s's own install.sh asks for
    )
    local path opts=(--variant=minbase --arch="$arch" --include="${include[*]}" --dpkgopt=force-unsafe-io)
    for path in doc man info locale lintian; do opts+=(--dpkgopt="path-exclude=/usr/share/$path/*"); done
    opts+=(--dpkgopt=path-include=/usr/share/locale/locale.alias) # locale-gen fails without it

    # The drivers of QEMU's usual disks, not the 30 MB of `most`: unpacking the initramfs is slow without KVM.
    # shellcheck disable=SC2016  # $1 is for the shell that runs the hook: the root of the guest
    opts+=(--essential-hook='mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/etc/initramfs-tools/hooks"
        echo MODULES=list >"$1/etc/initramfs-tools/conf.d/ycluster"
        printf "%s\n" "#!/bin/sh" "[ \"\$1\" = prereqs ] && exit" ". /usr/share/initramfs-tools/hook-functions" \
            "manual_add_modules virtio_pci virtio_blk virtio_scsi sd_mod ata_piix ahci nvme ext4" \
            >"$1/etc/initramfs-tools/hooks/ycluster"
        chmod +x "$1/etc/initramfs-tools/hooks/ycluster"')
    # shellcheck disable=SC2016
    opts+=(--customize-hook='chroot "$1" systemctl enable -q systemd-networkd systemd-resolved
        chroot "$1" systemctl mask -q apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service')
    local -a mirrors=()
    mapfile -t mirrors < <(sources)
    mmdebstrap -q --format=tar "${opts[@]}" "$suite" "$1" "${mirrors[@]}" >&2
}

# Runs as root, or in fakeroot: whatever owns the files must also pack them.
pack() { # TARFILE TREE DISK
    mkdir "$2"
    tar -xf "$1" -C "$2" --numeric-owner --exclude='./dev/*'
    rm -f "$1" "$2"/etc/ssh/ssh_host_*_key* "$2/etc/resolv.conf" "$2/etc/hostname" "$2"/etc/apt/apt.conf.d/99mmdebstrap
    ln -s ../run/systemd/resolve/stub-resolv.conf "$2/etc/resolv.conf"
    : >"$2/etc/machine-id" # empty: each clone makes its own; a missing one would start the first-boot dialogue
    echo 'LABEL=cloudimg-rootfs / ext4 errors=remount-ro 0 1' >"$2/etc/fstab"
    echo 'LANG=C.UTF-8' >"$2/etc/default/locale"
    # What cloud-init would write for `ssh_pwauth: false`: with it there, it does not restart sshd under our feet.
    echo 'PasswordAuthentication no' >"$2/etc/ssh/sshd_config.d/50-cloud-init.conf"
    # Waiting for a duplicate IPv6 address costs a second before the network counts as online.
    echo 'net.ipv6.conf.default.accept_dad = 0' >"$2/etc/sysctl.d/90-ycluster.conf"
    cat >"$2/etc/cloud/cloud.cfg.d/90_ycluster.cfg" <<'CFG'
datasource_list: [NoCloud, None] # anything longer makes cloud-init probe for clouds at every boot
manage_etc_hosts: true # sudo looks its own host name up
locale: C.UTF-8 # needs no locale-gen
ssh_genkeytypes: [ed25519, ecdsa] # used when the seed brings no ssh_keys; RSA takes long without KVM
ssh: {emit_keys_on_console: false} # the end of the console is what error messages quote
grub_dpkg: {enabled: false} # there is no grub package to configure
system_info: {network: {renderers: [networkd]}}
CFG
    # An explicit feature list: newer e2fsprogs enable what an older GRUB or guest kernel cannot read.
    mke2fs -q -t ext4 -L cloudimg-rootfs -E offset=1048576,lazy_itable_init=1,nodiscard -d "$2" -O \
        none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum \
        "$3" $((disk_mib - 1))M >&2 # offset: partition 1
}

# What grub-install does, without a device: the core image already expects to lie at sector 1 of the boot disk.
# Debian keeps /vmlinuz and /initrd.img pointing at the newest kernel, so the commands can be compiled in.
# no_timer_check, for emulation on a busy host: the check panics when the host gives QEMU no turn for some 40 ms.
# loglevel=6 keeps warnings and systemd's lines on the console, and saves the time that 700 others take there.
install_grub() { # DISK
    cat >"$work/grub.cfg" <<'CFG'
linux /vmlinuz root=LABEL=cloudimg-rootfs ro console=ttyS0,115200 loglevel=6 no_timer_check
initrd /initrd.img
boot
CFG
    grub-mkimage -O i386-pc -d "$grub_dir" -c "$work/grub.cfg" -p '(,msdos1)/boot/grub' -o "$work/core.img" \
        biosdisk part_msdos ext2 linux
    dd if="$grub_dir/boot.img" of="$1" bs=440 count=1 conv=notrunc status=none
    dd if="$work/core.img" of="$1" bs=512 seek=1 conv=notrunc status=none
}

build() { # IMAGE
    local disk=$work/disk.raw
    say "installing Debian $suite ($arch) with mmdebstrap"
    bootstrap "$work/root.tar"
    say 'writing the file system'
    truncate -s "${disk_mib}M" "$disk"
    echo 'start=2048, type=83, bootable' | sfdisk -q --label dos "$disk" >&2
    if ((EUID == 0)); then pack "$work/root.tar" "$work/tree" "$disk"; else
        fakeroot -- bash -euc "disk_mib=$disk_mib; $(declare -f pack); pack \"\$@\"" pack "$work/root.tar" "$work/tree" "$disk"
    fi
    install_grub "$disk"
    say 'converting to qcow2'
    qemu-img convert -f raw -O qcow2 "$disk" "$work/image.qcow2"
}

publish() { # FROM TO: the image and its digest; the image last, since its presence is what says "complete"
    local sum
    sum=$(sha256sum <"$1")
    printf '%s  %s\n' "${sum%% *}" "${2##*/}" >"$2.sha256.$$"
    mv -f "$2.sha256.$$" "$2.sha256"
    mv -f "$1" "$2"
}

cleanup() {
    local i
    trap '' INT TERM
    if [[ -n $child ]]; then
        kill -TERM -- "-$child" 2>/dev/null || true # the whole group: mmdebstrap removes its own tree, so let it finish
        for ((i = 0; i < 300; i++)); do
            kill -0 -- "-$child" 2>/dev/null || break
            sleep 0.1
        done
    fi
    [[ -z $work ]] || rm -rf "$work"
}

print_only='' output='' work='' child=''
grub_dir=/usr/lib/grub/i386-pc disk_mib=3072
suite=${YCLUSTER_GUEST_SUITE:-bookworm}
while (($#)); do
    case $1 in
    -h | --help) usage && exit 0 ;;
    --print) print_only=1 ;;
    -*) die 2 "unknown option: $1 (see --help)" ;;
    *)
        [[ -z $output ]] || die 2 "more than one OUTPUT: $output, $1"
        output=$1
        ;;
    esac
    shift
done

arch=$(dpkg --print-architecture 2>/dev/null || uname -m)
if [[ -n ${YCLUSTER_GUEST_CACHE:-} ]]; then
    cache=$YCLUSTER_GUEST_CACHE
elif [[ -n ${XDG_CACHE_HOME:-${HOME:-}} ]]; then
    cache=${XDG_CACHE_HOME:-$HOME/.cache}/ycluster-guest
else
    cache=${TMPDIR:-/tmp}/ycluster-guest-$EUID # a shared parent: what another user put there must not be booted
fi
recipe=$(sha256sum <"${BASH_SOURCE[0]}")
image=$cache/debian-$suite-$arch-${recipe:0:10}.qcow2
[[ -z $print_only ]] || { printf '%s\n' "${output:-$image}" && exit 0; }

(umask 077 && mkdir -p "$cache")
[[ -O $cache ]] || die 1 "$cache belongs to another user"
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
exec 9>"$image.lock"
flock -n 9 || { say 'waiting for another build' && flock 9; }
if [[ -e $image ]]; then
    say "cached: $image"
else
    require_tools
    rm -rf "$image".tmp.* # of a build that was killed: we hold the lock, so nobody is using them
    work=$(mktemp -d "$image.tmp.XXXXXX")
    # In the background, because bash runs no trap while it waits for a foreground child; in a group of its own, so that
    # cleanup reaches all of it; without the lock, lest a stray grandchild keeps it.
    set -m
    build 9>&- </dev/null &
    child=$!
    set +m
    wait "$child" || { child='' && die 1 'the build failed (see above)'; }
    child=''
    publish "$work/image.qcow2" "$image"
    say "built: $image"
fi
if [[ -n $output ]]; then
    cp --reflink=auto "$image" "$output.part.$$"
    publish "$output.part.$$" "$output"
fi
printf '%s\n' "${output:-$image}"
