#!/bin/bash
# Runs `godwit lab -- demo --linux` many times beside busy loops: every run must boot, move and verify.
#
#   soak-lab.sh [RUNS [LOOPS]]      default 100 runs beside 2 busy loops
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${CACHE:-$PWD/.cache}
export GODWIT_CACHE=$cache
runs=${1:-100} loops=${2:-2}

dir=$(mktemp -d)
busy=()
trap '[ ${#busy[@]} = 0 ] || kill "${busy[@]}"; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM
for ((i = 0; i < loops; i++)); do
	while :; do :; done &
	busy+=($!)
done
failed=0
for ((i = 1; i <= runs; i++)); do
	cp --sparse=always "$cache/rootfs/rootfs.ext4" "$dir/root.ext4" # the guest writes to it
	start=$SECONDS
	if timeout --foreground 600 bin/godwit lab --lab-cpus 2 -- demo --linux --kernel "$cache/kernel/bzImage" \
		--disk "path=$dir/root.ext4" >"$dir/log" 2>&1 && PATH=$PATH:/sbin e2fsck -fn "$dir/root.ext4" >>"$dir/log" 2>&1; then
		echo "soak-lab: run $i of $runs passed in $((SECONDS - start)) s"
	else
		failed=$((failed + 1))
		echo "soak-lab: run $i of $runs FAILED after $((SECONDS - start)) s:"
		tail -n 100 "$dir/log"
	fi
done
echo "soak-lab: $((runs - failed)) of $runs runs passed beside $loops busy loops"
[ $failed = 0 ]
