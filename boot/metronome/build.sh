#!/bin/sh
# Rebuilds metronome.elf from guest/, byte for byte the same with the same compiler:
# no paths, no build-id, no debug information. Usage: ./build.sh [output]
set -eu
cd "$(dirname "$0")"
out=${1:-metronome.elf}
cc=${CC:-gcc}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
flags="-std=gnu11 -O2 -m64 -march=x86-64 -mtune=generic -mcmodel=small -mgeneral-regs-only
	-ffreestanding -fno-pic -fno-pie -fno-stack-protector -fno-asynchronous-unwind-tables
	-fno-ident -fcf-protection=none -fno-strict-aliasing -fno-tree-loop-distribute-patterns
	-mno-red-zone -Wall -Wextra -ffile-prefix-map=$PWD=."
for source in entry.S start.c machine.c memory.c options.c serial.c fault.c pages.c witness.c \
	pattern.c work.c sweep.c beat.c plant.c virtio.c stats.c diskdata.c disk.c net.c; do
	# shellcheck disable=SC2086 # flags are words
	$cc $flags -c "guest/$source" -o "$tmp/$source.o"
done
$cc -E -P -x c -Iguest guest/guest.ld -o "$tmp/guest.ld"
(cd "$tmp" && $cc -m64 -nostdlib -static -no-pie -Wl,-T,guest.ld -Wl,--build-id=none -Wl,-s \
	-Wl,-z,noexecstack -Wl,-z,max-page-size=4096 -Wl,--no-warn-rwx-segments -o metronome.elf \
	entry.S.o start.c.o machine.c.o memory.c.o options.c.o serial.c.o fault.c.o pages.c.o \
	witness.c.o pattern.c.o work.c.o sweep.c.o beat.c.o plant.c.o \
	virtio.c.o stats.c.o diskdata.c.o disk.c.o net.c.o)
install -m 644 "$tmp/metronome.elf" "$out"
# What made it: another compiler may well make other bytes, other sources must not go unnoticed.
[ $# -gt 0 ] || { $cc --version | head -n 1; ld --version | head -n 1; cat build.sh guest/* | sha256sum | cut -c1-64; } >metronome.elf.compiler
