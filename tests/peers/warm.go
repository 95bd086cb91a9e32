package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// warmCommand is the first argument of this program when it is to take memory,
// touch it and end.
const warmCommand = "warm-memory"

// warmSlack is what a destination and a source take beside the guest's memory: a
// delta cache, buffers, the program itself.
const warmSlack = 768

// warmMain takes so many MiB and touches them; its end frees them.
func warmMain(arg string) error {
	size, err := strconv.Atoi(arg)
	if err != nil || size < 1 {
		return fmt.Errorf("%s %q: not a number of MiB", warmCommand, arg)
	}
	mem, err := unix.Mmap(-1, 0, size*mib, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return fmt.Errorf("map %d MiB: %w", size, err)
	}
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE) // faster, where there are huge pages
	for at := 0; at < len(mem); at += os.Getpagesize() {
		mem[at] = 1
	}
	return nil
}

// warm makes the kernel hold so much free memory that its own host has given it
// already. A virtual machine may have handed freed memory back, and then the first
// touch of a page is slower by a factor of 50: whoever comes first would pay.
func warm(ctx context.Context, s *starter, mebibytes int) error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("warm memory: %w", err)
	}
	p, err := s.launch(nil, self, warmCommand, strconv.Itoa(mebibytes))
	if err != nil {
		return fmt.Errorf("warm memory: %w", err)
	}
	defer p.end()
	return p.ended(ctx)
}

// availableMiB is what new processes may take.
func availableMiB() (int, error) {
	f, err := os.Open("/proc/meminfo")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if fields := strings.Fields(in.Text()); len(fields) > 1 && fields[0] == "MemAvailable:" {
			kib, err := strconv.Atoi(fields[1])
			return kib >> 10, err
		}
	}
	return 0, fmt.Errorf("/proc/meminfo has no MemAvailable")
}
