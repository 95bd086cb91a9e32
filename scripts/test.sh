#!/bin/bash
# Runs all tests with the race detector, those that cannot run under it (they count allocations) once more
# without, and closes with a line of counts. As root a test skipped in both fails the run: what cannot run on
# this machine must not look as if it had. Without root some cannot (loop devices): they are named.
#
#   test.sh [--make "TARGET..."] [--retry] [PACKAGE...]      default ./...
#   GODWIT_SOAK=1 test.sh     the long forms, hours
#
# --make makes these targets first. --retry runs what has failed once more, alone: a test that passes then is
# named FLAKY, with both logs, and does not fail the run. A data race is never a matter of chance.
#
# After 24 minutes (GODWIT_TEST_BOUND seconds) everything that still runs is ended and named; the report takes
# less than one more.
set -euo pipefail
cd "$(dirname "$0")/.."

bound=${GODWIT_TEST_BOUND:-1440}
timeout=20m # of one package, which then shows its goroutines
[ -z "${GODWIT_SOAK:-}" ] || { bound=$((7 * 86400)) timeout=24h; }
until=$((SECONDS + bound))
most_retries=10 # more failures than that are not chance
targets="" retry=""
while [ $# -gt 0 ]; do
	case $1 in
	--make) targets=$2 && shift 2 ;;
	--retry) retry=1 && shift ;;
	*) break ;;
	esac
done
[ $# -gt 0 ] || set -- ./...

dir=$(mktemp -d)
child="" watch=""
end_group() {
	[ -z "$child" ] || { kill -TERM -- "-$child" && sleep 5 && kill -KILL -- "-$child"; } 2>/dev/null || true
}
trap 'end_group; [ -z "$watch" ] || kill "$watch" 2>/dev/null; rm -rf "$dir"' EXIT
trap 'exit 130' INT TERM

# within CMD...: runs it in a process group of its own, which ends with it, or when the time is over.
within() {
	local code=0
	if [ $SECONDS -ge $until ]; then
		touch "$dir/late"
		return 1
	fi
	setsid "$@" &
	child=$!
	(
		trap 'kill $! 2>/dev/null' TERM
		sleep $((until - SECONDS)) &
		wait $! && touch "$dir/late" && end_group
	) >/dev/null &
	watch=$!
	wait "$child" || code=$?
	kill -TERM "$watch" 2>/dev/null || true
	[ ! -e "$dir/late" ] || wait "$watch" || true # it may still have to use force
	kill -KILL -- "-$child" 2>/dev/null || true   # whatever a test left behind
	child="" watch=""
	return $code
}

if [ -n "$targets" ]; then
	# shellcheck disable=SC2086
	within make --no-print-directory $targets || {
		[ ! -e "$dir/late" ] || echo "test: 'make $targets' was not done within $bound seconds" >&2
		exit 1
	}
fi
if [ ! -c /dev/kvm ]; then
	echo "test: no /dev/kvm on this machine; most tests need it (in a VM: switch nested virtualisation on)" >&2
	exit 1
fi

# run LOG ARGS...: one go test, its events into LOG; what a package says is shown as it comes.
run() {
	local log=$1 code=0 reader
	shift
	rm -f "$dir/events"
	mkfifo "$dir/events"
	tee "$log" <"$dir/events" |
		jq --unbuffered -Rrj 'fromjson? | select(.Action == "output" and (.Test | not) and (.Output | test("^(ok|FAIL|panic|#)"))) | .Output' &
	reader=$!
	within go test -timeout "$timeout" -json "$@" >"$dir/events" || code=$?
	wait "$reader" || true
	return $code
}
# events LOG FILTER [ARGS...]: the last line may have been cut off.
events() { jq -Rrj "${@:3}" "fromjson? | $2" "$1"; }
tests() { events "$1" 'select(.Action == $a and .Test) | .Package + " " + .Test + "\n"' --arg a "$2" | sort -u; }
packages() { events "$1" 'select(.Action == $a and (.Test | not)) | .Package + "\n"' --arg a "$2" | sort -u; }
# said LOG PACKAGE [TEST]: the end of what it wrote.
said() {
	events "$1" 'select(.Action == "output" and .Package == $p and ($t == "" or .Test == $t or ((.Test // "") | startswith($t + "/")))) | .Output' \
		--arg p "$2" --arg t "${3:-}" | tail -n 80
}
# pattern TEST: for -run. Slashes separate the levels; each level is anchored.
pattern() { sed 's,[][().*+?{}|\\^$],\\&,g; s,/,$/^,g; s,^,^,; s,$,$,' <<<"$1"; }

# No cached results: several tests build the command that they try.
code=0
run "$dir/race" -race -count=1 "$@" || code=1
tests "$dir/race" skip >"$dir/skipped"
: >"$dir/plain"
while read -r package name; do
	run "$dir/one" -count=1 -run "$(pattern "$name")" "$package" >/dev/null || code=1
	cat "$dir/one" >>"$dir/plain"
done <"$dir/skipped"
tests "$dir/plain" pass >"$dir/rescued"

# What was running when the time was over: it began, and has no end.
for log in race plain; do
	tests "$dir/$log" run | comm -23 - <(cat <(tests "$dir/$log" pass) <(tests "$dir/$log" fail) <(tests "$dir/$log" skip) | sort -u)
done >"$dir/running"
# Failed: "race" or "plain", the package, and the test, or "-" for a package that failed in none of its tests: a
# crash, or a machine that did not come up.
for log in race plain; do
	tests "$dir/$log" fail | sed "s/^/$log /"
	packages "$dir/$log" fail | comm -23 - <(tests "$dir/$log" fail | cut -d' ' -f1 | sort -u) | sed "s/^/$log /; s/\$/ -/"
done >"$dir/failed"
cat "$dir/race" "$dir/plain" >"$dir/all"
unbuilt=$(events "$dir/all" 'select(.Action == "build-fail") | .ImportPath + "\n"')

: >"$dir/again"
if [ -n "$retry" ] && [ ! -e "$dir/late" ] && [ -z "$unbuilt" ]; then
	awk '{split($3, level, "/"); print $1, $2, level[1]}' "$dir/failed" | sort -u >"$dir/once"
	if [ "$(wc -l <"$dir/once")" -gt $most_retries ]; then
		echo "test: more than $most_retries tests failed, which is not chance: none is tried again" >&2
		: >"$dir/once"
	fi
	while read -r log package name; do
		what=$([ "$name" = - ] || echo "$name")
		if said "$dir/$log" "$package" "$what" | grep -q "DATA RACE"; then
			continue
		fi
		flags=(-count=1)
		[ "$log" = plain ] || flags+=(-race)
		[ -z "$what" ] || flags+=(-run "$(pattern "$what")")
		if run "$dir/one" "${flags[@]}" "$package" >/dev/null && [ ! -e "$dir/late" ]; then
			echo "FLAKY $package $what"
			tests "$dir/one" pass >>"$dir/again"
			echo "$log $package $name" >>"$dir/excused"
			echo "=== it failed:"
			said "$dir/$log" "$package" "$what"
			echo "=== tried again, alone, it passed:"
		else
			echo "=== $package $what, tried again, failed again:"
		fi
		said "$dir/one" "$package" "$what"
	done <"$dir/once"
fi
touch "$dir/excused"
# Excused with a test are its subtests.
awk 'FILENAME == ARGV[1] {ok[$0]; next} {split($3, level, "/"); if (!(($1 " " $2 " " level[1]) in ok)) print}' "$dir/excused" "$dir/failed" >"$dir/left"

while read -r log package name; do
	what=$([ "$name" = - ] || echo "$name")
	echo "=== $package $what"
	said "$dir/$log" "$package" "$what"
done <"$dir/left"
events "$dir/all" 'select(.Action == "build-output") | .Output' | tail -n 60
if [ -e "$dir/late" ]; then
	echo "test: not done within $bound seconds; running then:"
	while read -r package name; do
		echo "=== $package $name"
		said "$dir/all" "$package" "$name" | tail -n 40
	done <"$dir/running"
fi
# A parent counts as skipped or passed by itself; only names that passed nowhere stay skipped.
comm -23 "$dir/skipped" "$dir/rescued" >"$dir/missed"
sed 's/^/skipped: /' "$dir/missed"
passed=$(cat <(tests "$dir/race" pass) <(comm -12 "$dir/skipped" "$dir/rescued") "$dir/again" | sort -u | wc -l)
failed=$(cut -d' ' -f2- "$dir/left" | sort -u | wc -l)
skipped=$(wc -l <"$dir/missed")
echo "$passed passed, $failed failed, $skipped skipped"
if [ "$skipped" != 0 ] && [ "$(id -u)" = 0 ]; then
	echo "test: as root nothing may be skipped; see above for what is missing" >&2
	exit 1
fi
[ -s "$dir/excused" ] && code=0 # go test failed for these; what is left counts
[ $code = 0 ] && [ ! -e "$dir/late" ] && [ -z "$unbuilt" ] && [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
