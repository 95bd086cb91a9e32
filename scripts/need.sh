#!/bin/bash
# Makes sure that Debian packages are there: as root installs what is missing, saying what; otherwise names it.
#
#   need.sh PACKAGE...
set -euo pipefail

if ! command -v dpkg-query >/dev/null; then
	echo "need: this is not Debian; install what stands for: $*" >&2
	exit 0 # the step that needs them says what it misses
fi
missing=()
for p in "$@"; do
	[ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
	echo "need: missing packages; run: apt-get install ${missing[*]}" >&2
	exit 1
fi
echo "need: installing ${missing[*]}" >&2
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# Package lists may be missing or old on a new machine.
if ! { apt-get update && apt-get install -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
	tail -n 20 "$log" >&2
	echo "need: apt-get install ${missing[*]} failed; see above" >&2
	exit 1
fi
