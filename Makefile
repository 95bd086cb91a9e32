# godwit's two commands are `make demo` and `make test`; everything else serves them.
#
# Both install what they lack: as root on Debian with apt, saying what; elsewhere they name the packages.
# Results that take long to make (guest kernel, root disk, the lab's outer kernel) are kept in $(CACHE), keyed by
# content, and never made twice for the same inputs.

SHELL := /bin/bash
CACHE ?= $(CURDIR)/.cache
export CACHE
export GODWIT_CACHE := $(CACHE)
GO ?= go

# Debian packages: to build the guest kernel and the root disk, and to run the tests and the lab.
KERNEL_PACKAGES := linux-source-6.1 gcc make flex bison bc libelf-dev libssl-dev lz4 xz-utils
ROOTFS_PACKAGES := gcc libc6-dev busybox-static e2fsprogs cpio gzip
LAB_PACKAGES    := qemu-system-x86 busybox-static
TEST_PACKAGES   := gcc libc6-dev linux-libc-dev jq e2fsprogs qemu-utils

.PHONY: all build demo demo-linux test soak bench peers kernel rootfs lab-kernel check clean

all: build

build: bin/godwit

bin/godwit: FORCE
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -trimpath -o $@ ./cmd/godwit

.PHONY: FORCE
FORCE:

# Boots metronome on this machine's /dev/kvm, migrates it live to a second process, verifies it.
demo: build
	bin/godwit demo

# The same with Linux: directly where this machine's KVM can, else in the lab.
demo-linux: build kernel rootfs lab-kernel
	scripts/demo-linux.sh

kernel:
	@scripts/need.sh $(KERNEL_PACKAGES)
	boot/kernel/build.sh $(CACHE)

rootfs:
	@scripts/need.sh $(ROOTFS_PACKAGES)
	boot/rootfs/build.sh $(CACHE)

lab-kernel: build
	@scripts/need.sh $(LAB_PACKAGES)
	bin/godwit lab --prepare

# All of it ends within 25 minutes, builds included. TEST_FLAGS has flags of scripts/test.sh.
TEST_NEEDS := build kernel rootfs lab-kernel test-packages
test:
	scripts/test.sh --make "$(TEST_NEEDS)" $(TEST_FLAGS)

.PHONY: test-packages
test-packages:
	@scripts/need.sh $(TEST_PACKAGES)

# Hours of what `make test` has in short form, and a hundred demos in the lab of a busy machine.
soak: $(TEST_NEEDS)
	GODWIT_SOAK=1 scripts/test.sh
	scripts/soak-lab.sh

bench:
	$(GO) test -run '^$$' -bench . -benchmem ./...

# The same guest moved by QEMU and by godwit, in turn: docs/results.md. PEERS has flags of tests/peers, as in
# make peers PEERS='-cases ws-20k -runs 1'.
PEERS ?= -out $(CACHE)/peers.jsonl -markdown $(CACHE)/peers.md
peers: build
	@scripts/need.sh qemu-system-x86
	@mkdir -p $(CACHE)
	$(GO) run ./tests/peers $(PEERS)

# What .ci/run adds to the tests.
check:
	@test -z "$$(gofmt -l .)" || { echo "gofmt: these files are not formatted:"; gofmt -l .; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...

clean:
	rm -rf bin
