#!/bin/bash
# Builds the root disk and an initramfs with the same content, without root rights.
#
#   build.sh CACHE_DIR        leaves CACHE_DIR/rootfs-<key>/{rootfs.ext4,initrd.cpio.gz}, with CACHE_DIR/rootfs pointing
#                             to it, and prints that folder as the last line of stdout; progress goes to stderr
#   build.sh --key            prints the key alone
#   build.sh --packages       prints the Debian packages that a build needs
#
# The key is a hash of this folder's sources, this script and the busybox binary. The same inputs, compiler and
# e2fsprogs give the same bytes: fixed UUID, hash seed and times, owner 0:0 for every file.
# The image is a template: boot a copy of it, or with snapshot, so that the next test finds it as built.
set -euo pipefail
export LC_ALL=C

busybox=${GODWIT_BUSYBOX:-/bin/busybox}
packages="busybox-static gcc libc6-dev e2fsprogs cpio gzip"
size=64M
uuid=6f647769-7400-4000-8000-000000000001
hash_seed=6f647769-7400-4000-8000-000000000002
epoch=1577836800 # 2020-01-01: older than any clock that a guest starts with
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# mke2fs and debugfs stay outside the PATH of ordinary users.
PATH=$PATH:/usr/sbin:/sbin

say() { echo "rootfs: $*" >&2; }
die() { say "$*"; exit 1; }

compute_key() {
	[ -r "$busybox" ] || die "read $busybox: not there; run: apt-get install busybox-static"
	(
		cd "$here"
		find . -type f \( -name '*.[ch]' -o -name build.sh -o -path './skel/*' \) | sort | xargs sha256sum
		sha256sum <"$busybox"
	) | sha256sum | cut -c1-16
}

check_tools() {
	local missing=""
	for tool in gcc mke2fs debugfs cpio gzip flock; do
		command -v $tool >/dev/null || missing+=" $tool"
	done
	[ -z "$missing" ] || die "build: missing$missing; run: apt-get install $packages"
	# A dynamic busybox would need libraries that the image does not have.
	if readelf -lW "$busybox" 2>/dev/null | grep -q INTERP; then
		die "use $busybox: it is not static; run: apt-get install busybox-static, or name one in GODWIT_BUSYBOX"
	fi
}

compile() {
	local out=$1
	shift
	gcc -static -Os -Wall -Wextra -Werror -Wl,--build-id=none -s -o "$out" "$@"
}

# Fills the folder that becomes /.
populate() {
	local root=$1 applet program
	mkdir -p "$root"/{bin,sbin,dev,proc,sys,tmp,run,root,data,mnt,var,etc,usr/{bin,sbin,local/bin,share}}
	cp -r "$here/skel/." "$root/"
	ln -s ../proc/mounts "$root/etc/mtab"
	ln -s ../run/resolv.conf "$root/etc/resolv.conf"
	cp "$busybox" "$root/bin/busybox"
	# init is ours; linuxrc would be taken for an initrd's init.
	"$busybox" --list-full | grep -vxE 'sbin/init|linuxrc|bin/busybox' | while IFS= read -r applet; do
		mkdir -p "$root/$(dirname "$applet")"
		ln -s /bin/busybox "$root/$applet"
	done
	compile "$root/sbin/init" "$here"/{init,cmdline,shutdown}.c
	compile "$root/usr/local/bin/programs" "$here"/{programs,workload,witness,vector,stream,diskload,rtomin,ioport}.c
	for program in witness stream diskload rtomin ioport; do
		ln -s programs "$root/usr/local/bin/$program"
	done
	# The kernel looks for /init in an initramfs.
	ln -s sbin/init "$root/init"
	find "$root" -type d -exec chmod 755 {} +
	# Modes come from here, not from the umask under which somebody cloned the repository.
	find "$root/etc" -type f -exec chmod 644 {} +
	chmod 755 "$root/etc/udhcpc/default.script"
	chmod 1777 "$root/tmp"
	chmod 700 "$root/root"
	chmod 755 "$root"/bin/busybox "$root"/sbin/init "$root"/usr/local/bin/*
	find "$root" -exec touch -h -d "@$epoch" {} +
}

# mke2fs copies owners and times of change from the builder's files; debugfs then sets them to fixed ones.
make_ext4() {
	local root=$1 image=$2
	# No lazy initialisation: the guest's kernel would write it later, in the middle of a measurement.
	E2FSPROGS_FAKE_TIME=$epoch mke2fs -q -t ext4 -b 4096 -m 0 -L godwit-root -U $uuid \
		-E "hash_seed=$hash_seed,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0" \
		-d "$root" "$image" $size >"$image.log" 2>&1 || { cat "$image.log" >&2; die "make $image: mke2fs failed, see above"; }
	(cd "$root" && find . -mindepth 1 -printf '/%P\n') | sort | {
		while IFS= read -r path; do
			for field in uid gid; do echo "sif $path $field 0"; done
			for field in ctime crtime atime mtime; do echo "sif $path $field @$epoch"; done
		done
		for field in ctime crtime atime mtime; do
			echo "sif / $field @$epoch"
			echo "sif /lost+found $field @$epoch"
		done
		for field in mkfs_time lastcheck wtime; do echo "ssv $field @$epoch"; done
	} >"$image.debugfs"
	E2FSPROGS_FAKE_TIME=$epoch debugfs -w -f "$image.debugfs" "$image" >"$image.log" 2>&1 ||
		{ cat "$image.log" >&2; die "set owners and times in $image: debugfs failed, see above"; }
	rm "$image.debugfs"
	e2fsck -fn "$image" >"$image.log" 2>&1 || { cat "$image.log" >&2; die "check $image: e2fsck finds faults in a fresh image, see above"; }
	rm "$image.log"
}

make_initrd() {
	local root=$1 archive=$2
	(cd "$root" && find . -mindepth 1 -printf '%P\n' | sort | cpio -o -H newc -R 0:0 --reproducible --quiet) |
		gzip -9n >"$archive"
}

case "${1:-}" in
--key) compute_key; exit ;;
--packages) echo "$packages"; exit ;;
"" | -*) echo "usage: build.sh CACHE_DIR | --key | --packages" >&2; exit 2 ;;
esac

mkdir -p "$1"
cache=$(cd "$1" && pwd)
key=$(compute_key)
result=$cache/rootfs-$key

# One builder at a time; who waited finds the folder made.
exec 9>"$cache/rootfs.lock"
flock -n 9 || { say "another build holds $cache/rootfs.lock; waiting"; flock 9; }

if [ ! -d "$result" ]; then
	check_tools
	# What a killed build left; the lock says that nobody is in it.
	rm -rf "$cache"/rootfs-build.*
	work=$(mktemp -d "$cache/rootfs-build.XXXXXX")
	trap 'rm -rf "$work"' EXIT
	mkdir "$work/root" "$work/out"
	populate "$work/root"
	make_ext4 "$work/root" "$work/out/rootfs.ext4"
	make_initrd "$work/root" "$work/out/initrd.cpio.gz"
	mv "$work/out" "$result"
	say "built: rootfs.ext4 $(stat -c %s "$result/rootfs.ext4") bytes, initrd.cpio.gz $(stat -c %s "$result/initrd.cpio.gz") bytes"
else
	say "up to date"
fi
ln -sfn "rootfs-$key" "$cache/rootfs.new"
mv -T "$cache/rootfs.new" "$cache/rootfs"
echo "$result"
