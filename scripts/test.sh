#!/bin/bash
# Runs all tests with the race detector, those that cannot run under it (they count allocations) once more
# without, and closes with a line of counts. As root a test skipped in both fails the run: what cannot run on
# this machine must not look as if it had. Without root some cannot (loop devices): they are named.
#
#   test.sh [PACKAGE...]      default ./...
#   GODWIT_SOAK=1 test.sh     the long forms, hours
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -c /dev/kvm ]; then
	echo "test: no /dev/kvm on this machine; most tests need it (in a VM: switch nested virtualisation on)" >&2
	exit 1
fi
timeout=40m
[ -z "${GODWIT_SOAK:-}" ] || timeout=24h
[ $# -gt 0 ] || set -- ./...

dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
status=0

# run LOG ARGS...: one go test, its events into LOG; what a package says is shown as it comes.
run() {
	local log=$1
	shift
	go test -timeout "$timeout" -json "$@" | tee "$log" |
		jq --unbuffered -rj 'select(.Action == "output" and (.Test | not) and (.Output | test("^(ok|FAIL|panic|#)"))) | .Output' || status=1
}
tests() { jq -r --arg a "$2" 'select(.Action == $a and .Test) | .Package + " " + .Test' "$1"; }

# No cached results: several tests build the command that they try.
run "$dir/race" -race -count=1 "$@"
tests "$dir/race" skip | sort -u >"$dir/skipped"
: >"$dir/plain"
cut -d' ' -f1 "$dir/skipped" | sort -u | while read -r package; do
	# Slashes separate the levels of -run; each level is anchored.
	awk -v p="$package" '$1 == p {print $2}' "$dir/skipped" | while read -r name; do
		pattern="^$(sed 's,/,$/^,g' <<<"$name")\$"
		run "$dir/one" -count=1 -run "$pattern" "$package" >/dev/null
		cat "$dir/one" >>"$dir/plain"
	done
done

for log in "$dir/race" "$dir/plain"; do
	tests "$log" fail | while read -r package name; do
		echo "=== $package $name"
		jq -rj --arg p "$package" --arg t "$name" 'select(.Action == "output" and .Package == $p and .Test == $t) | .Output' "$log" | tail -n 60
	done
done
# A build that failed, and a package that failed in none of its tests: a crash, a machine that did not come up.
jq -rj 'select(.Action == "build-output") | .Output' "$dir/race" | tail -n 60
jq -r 'select(.Action == "fail" and (.Test | not)) | .Package' "$dir/race" | while read -r package; do
	if ! tests "$dir/race" fail | grep -q "^$package "; then
		echo "=== $package"
		jq -rj --arg p "$package" 'select(.Action == "output" and .Package == $p) | .Output' "$dir/race" | tail -n 80
	fi
done
# A parent counts as skipped or passed by itself; only names that passed nowhere stay skipped.
tests "$dir/plain" pass | sort -u >"$dir/rescued"
comm -23 "$dir/skipped" "$dir/rescued" >"$dir/missed"
sed 's/^/skipped: /' "$dir/missed"
passed=$({ tests "$dir/race" pass; comm -12 "$dir/skipped" "$dir/rescued"; } | wc -l)
failed=$({ tests "$dir/race" fail; tests "$dir/plain" fail; } | wc -l)
skipped=$(wc -l <"$dir/missed")
echo "$passed passed, $failed failed, $skipped skipped"
if [ "$skipped" != 0 ] && [ "$(id -u)" = 0 ]; then
	echo "test: as root nothing may be skipped; see above for what is missing" >&2
	exit 1
fi
[ $status = 0 ] && [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
