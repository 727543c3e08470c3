#!/usr/bin/env bash
# Create a Compute Engine instance that Compute Engine itself deletes when the budget of a config ends.
# The budget is lifetime.maxRun in the config that -c names. Copy this script and change what you like.
# It wants bash 4.4 or later, gcloud and ycluster.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: create-appliance.sh -c DIR --zone ZONE [options] NAME [-- FLAG ...]

  -c, --config DIR       directory of y-cluster-provision.yaml; its lifetime.maxRun is the budget
      --zone ZONE        where the instance runs
      --project PROJECT  default: that of gcloud's configuration
      --machine-type T   default: e2-standard-4
      --image IMAGE      an image, such as one made of an exported disk; without one, the newest of a family
      --image-project P  default: debian-cloud; with --image: that of gcloud's configuration
      --image-family F   default: debian-12
      --data-disk DISK   attach this existing disk; it outlives the instance
      --label KEY=VALUE  may be repeated
  -n, --dry-run          print the command, run nothing
  -h, --help

What follows -- goes to `gcloud compute instances create` as it is.
$YCLUSTER names the ycluster program (default: ycluster).
TEXT
}

say() { printf 'create-appliance: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 2
}
# A value with a space, a comma or an = would become something else inside a flag of gcloud's.
check() { [[ $2 =~ ^$3$ ]] || die "$1 '$2' does not match $3"; }

ycluster=${YCLUSTER:-ycluster}
config='' zone='' project='' data_disk='' name='' dry_run=false
machine_type=e2-standard-4 image='' image_project='' image_family=debian-12
labels=created-by=ycluster
extra=()
resource='[a-z]([-a-z0-9]{0,61}[a-z0-9])?'

while (($#)); do
    case $1 in
        -c | --config | --zone | --project | --machine-type | --image | --image-project | --image-family | --data-disk | --label)
            (($# > 1)) || die "$1 needs a value"
            ;;&
        -c | --config) config=$2 && shift 2 ;;
        --zone) zone=$2 && shift 2 ;;
        --project) project=$2 && shift 2 ;;
        --machine-type) machine_type=$2 && shift 2 ;;
        --image) image=$2 && shift 2 ;;
        --image-project) image_project=$2 && shift 2 ;;
        --image-family) image_family=$2 && shift 2 ;;
        --data-disk) data_disk=$2 && shift 2 ;;
        --label)
            check --label "$2" '[a-z][-_a-z0-9]{0,62}=[-_a-z0-9]{0,63}'
            labels+=,$2 && shift 2
            ;;
        -n | --dry-run) dry_run=true && shift ;;
        -h | --help) usage && exit ;;
        --) shift && extra=("$@") && break ;;
        -*) die "$1: no such option; --help lists them" ;;
        *)
            [[ -z $name ]] || die "one NAME only: '$name' and '$1'"
            name=$1 && shift
            ;;
    esac
done
[[ $config ]] || die '-c DIR is missing: the directory of y-cluster-provision.yaml'
[[ $zone ]] || die '--zone is missing, such as europe-north1-a'
[[ $name ]] || die 'NAME is missing: what the instance is to be called'
check NAME "$name" "$resource"
check --zone "$zone" "$resource"
[[ -z $image ]] || check --image "$image" "$resource"
[[ -z $data_disk ]] || check --data-disk "$data_disk" "$resource"
command -v "$ycluster" >/dev/null || die "$ycluster: no such program; set YCLUSTER to where it is"

# In `gcloud ... $(ycluster ...)` a ycluster that fails leaves an instance without a limit. An assignment stops here,
# and so does a config without a budget. The restart and the data disk are settled below.
lines=$("$ycluster" lifetime gcp-flags --require-budget -c "$config" -o lines --quiet=restart --quiet=dataDisk)
mapfile -t flags <<<"$lines"
budget=${flags[0]#--max-run-duration=}
flags+=(--no-restart-on-failure) # a restart after a host error would begin a new budget
labels+=,max-run=$budget

command=(gcloud compute instances create "$name" "--zone=$zone")
if [[ $project ]]; then command+=("--project=$project"); fi
command+=("--machine-type=$machine_type")
if [[ $image ]]; then
    command+=("--image=$image" ${image_project:+"--image-project=$image_project"})
else
    command+=("--image-project=${image_project:-debian-cloud}" "--image-family=$image_family")
fi
if [[ $data_disk ]]; then
    # auto-delete is gcloud's default, and would take the data along with the instance
    command+=("--disk=name=$data_disk,device-name=data,mode=rw,boot=no,auto-delete=no")
fi
command+=("--labels=$labels" "${flags[@]}" "${extra[@]}")

if $dry_run; then
    printf '%q ' "${command[@]}" && echo
    say "dry run: nothing was created; it would be deleted $budget after its start"
    exit
fi
"${command[@]}"

say "when $name ends:"
"$ycluster" lifetime gcp-status "$name" "--zone=$zone" ${project:+"--project=$project"} ||
    say "$name was created, but its end could not be looked up; it is to be deleted $budget after its start"
