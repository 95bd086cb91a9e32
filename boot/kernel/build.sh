#!/bin/bash
# Builds the guest kernel: Linux 6.1 from Debian's linux-source-6.1 package, tinyconfig plus godwit.config.
#
#   build.sh CACHE_DIR        leaves CACHE_DIR/kernel-<key>/{bzImage,vmlinux,config}, with CACHE_DIR/kernel pointing to it,
#                             and prints that folder as the last line of stdout; progress goes to stderr
#   build.sh --key            prints the key alone
#   build.sh --packages       prints the Debian packages that a build needs
#
# The key is a hash of everything that decides the result: this script, the fragment and the package's version.
# A folder with that key is complete, since it is renamed into place only when whole; so it is never built again.
set -euo pipefail
export LC_ALL=C
# Called from a Makefile or a cross-building shell, kbuild must not take over their settings.
unset MAKEFLAGS MFLAGS MAKELEVEL ARCH CROSS_COMPILE KBUILD_OUTPUT KCONFIG_CONFIG KCONFIG_ALLCONFIG LLVM CC LD V O

series=6.1
package=linux-source-$series
tarball=${GODWIT_LINUX_TARBALL:-/usr/src/$package.tar.xz}
packages="$package gcc make flex bison bc libelf-dev libssl-dev lz4 xz-utils"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
fragment=$here/godwit.config
self=$here/$(basename "${BASH_SOURCE[0]}")

say() { echo "kernel: $*" >&2; }
die() { say "$*"; exit 1; }

# Source version: the package's where the tarball is the package's, else the tarball's own hash.
source_version() {
	if [ -z "${GODWIT_LINUX_TARBALL:-}" ] && v=$(dpkg-query -W -f '${Version}' $package 2>/dev/null) && [ -n "$v" ]; then
		echo "$v"
	elif [ -r "$tarball" ]; then
		sha256sum <"$tarball" | cut -d' ' -f1
	else
		die "find the source of Linux $series: no $tarball; install $package or name a tarball in GODWIT_LINUX_TARBALL"
	fi
}

compute_key() {
	local version
	version=$(source_version) || exit 1
	{ echo "$version"; sha256sum <"$fragment"; sha256sum <"$self"; } | sha256sum | cut -c1-16
}

check_tools() {
	local missing=""
	for tool in gcc make flex bison bc lz4 xz flock; do
		command -v $tool >/dev/null || missing+=" $tool"
	done
	# Two header files stand for the two -dev packages.
	for header in gelf.h openssl/opensslv.h; do
		echo "#include <$header>" | gcc -E -x c - >/dev/null 2>&1 || missing+=" $header"
	done
	[ -z "$missing" ] || die "build: missing$missing; run: apt-get install $packages"
	[ -r "$tarball" ] || die "read $tarball: not there; run: apt-get install $package"
}

# Writes .config and proves that it says what the fragment says: kconfig drops a line silently when a dependency fails.
configure() {
	local tree=$1 lost="" log=$1/godwit-config.log
	# kconfig tells of every choice that the fragment changes; that is its purpose, so show it only when a step fails.
	{
		make -C "$tree" -s tinyconfig &&
			(cd "$tree" && ./scripts/kconfig/merge_config.sh -m .config "$fragment") &&
			make -C "$tree" -s olddefconfig
	} >"$log" 2>&1 || { cat "$log" >&2; die "configure: merging $fragment over tinyconfig failed, see above"; }
	while IFS= read -r line; do
		grep -qxF -- "$line" "$tree/.config" || lost+=$'\n'"  $line"
	done < <(grep -E '^CONFIG_[A-Z0-9_]+=|^# CONFIG_[A-Z0-9_]+ is not set$' "$fragment")
	[ -z "$lost" ] || die "configure: these lines of $fragment did not survive (a dependency is missing or another option selects it):$lost"
}

build() {
	local work=$1 tree
	say "unpack $tarball"
	mkdir "$work/src" "$work/out"
	tar -xf "$tarball" -C "$work/src"
	tree=$(echo "$work"/src/*)
	[ -f "$tree/Kconfig" ] || die "unpack $tarball: holds no kernel tree"
	say "configure"
	configure "$tree"
	say "compile with $(nproc) jobs"
	# Fixed stamps: the same inputs and compiler give the same bytes.
	make -C "$tree" -s -j"$(nproc)" bzImage vmlinux KBUILD_BUILD_TIMESTAMP='2026-01-01 00:00:00 UTC' \
		KBUILD_BUILD_USER=godwit KBUILD_BUILD_HOST=godwit KBUILD_BUILD_VERSION=1 >&2
	cp "$tree/arch/x86/boot/bzImage" "$work/out/bzImage"
	# Symbols stay (reports name functions by them); relocations and comments go.
	strip --strip-debug -R '.rela.*' -R .comment -o "$work/out/vmlinux" "$tree/vmlinux"
	cp "$tree/.config" "$work/out/config"
}

case "${1:-}" in
--key) compute_key; exit ;;
--packages) echo "$packages"; exit ;;
"" | -*) echo "usage: build.sh CACHE_DIR | --key | --packages" >&2; exit 2 ;;
esac

mkdir -p "$1"
cache=$(cd "$1" && pwd)
key=$(compute_key)
result=$cache/kernel-$key

# One builder at a time; who waited finds the folder made.
exec 9>"$cache/kernel.lock"
flock -n 9 || { say "another build holds $cache/kernel.lock; waiting"; flock 9; }

if [ ! -d "$result" ]; then
	check_tools
	# What a killed build left; the lock says that nobody is in it.
	rm -rf "$cache"/kernel-build.*
	work=$(mktemp -d "$cache/kernel-build.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	start=$SECONDS
	# Children must not inherit the lock: a daemon left by a tool would hold it for ever.
	build "$work" 9>&-
	chmod 755 "$work/out"
	mv "$work/out" "$result"
	say "built in $((SECONDS - start)) s: bzImage $(stat -c %s "$result/bzImage") bytes, vmlinux $(stat -c %s "$result/vmlinux") bytes"
else
	say "up to date"
fi
ln -sfn "kernel-$key" "$cache/kernel.new"
mv -T "$cache/kernel.new" "$cache/kernel"
echo "$result"
