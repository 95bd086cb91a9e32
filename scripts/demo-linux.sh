#!/bin/bash
# Boots Linux, moves it live to a second process and shows that nothing noticed: on this machine's KVM where that
# runs Linux, else inside the lab.
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${CACHE:-$PWD/.cache}
export GODWIT_CACHE=$cache

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cp --sparse=always "$cache/rootfs/rootfs.ext4" "$dir/root.ext4" # the guest writes to it
demo=(demo --linux --kernel "$cache/kernel/bzImage" --disk "path=$dir/root.ext4")
if bin/godwit doctor --json 2>/dev/null | tail -n 1 | grep -q '"linux_runs":true'; then
	bin/godwit "${demo[@]}"
else
	echo "demo-linux: this machine's KVM cannot run Linux (bin/godwit doctor says why); using the lab" >&2
	bin/godwit lab --lab-cpus 2 -- "${demo[@]}"
fi
PATH=$PATH:/sbin e2fsck -fn "$dir/root.ext4"
