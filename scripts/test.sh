#!/bin/bash
# Runs all tests with the race detector and closes with a line of counts. A skipped test fails the run: what
# cannot run on this machine must not look as if it had.
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

log=$(mktemp)
trap 'rm -f "$log"' EXIT
status=0
# What a test says is shown when it fails; what a package says, always.
go test -race -timeout "$timeout" -json "$@" | tee "$log" |
	jq --unbuffered -rj 'select(.Action == "output" and (.Test | not) and (.Output | test("^(ok|FAIL|---|panic|\\?|#)"))) | .Output' || status=$?
failed=$(jq -r 'select(.Action == "fail" and .Test) | .Package + " " + .Test' "$log")
if [ -n "$failed" ]; then
	while read -r package name; do
		echo "=== $package $name"
		jq -rj --arg p "$package" --arg t "$name" 'select(.Action == "output" and .Package == $p and .Test == $t) | .Output' "$log" | tail -n 60
	done <<<"$failed"
fi
if [ $status != 0 ]; then
	# Build failures and output that belongs to no test.
	jq -rj 'select(.Action == "build-output" or (.Action == "output" and (.Test | not))) | .Output' "$log" | tail -n 60
fi
count() { jq -r --arg a "$1" 'select(.Action == $a and .Test) | .Test' "$log" | wc -l; }
passed=$(count pass) failures=$(count fail) skipped=$(count skip)
[ "$skipped" = 0 ] || jq -r 'select(.Action == "skip" and .Test) | "skipped: " + .Package + " " + .Test' "$log"
echo "tests: $passed passed, $failures failed, $skipped skipped"
[ "$status" = 0 ] && [ "$failures" = 0 ] && [ "$skipped" = 0 ] && [ "$passed" -gt 0 ]
