package vmm

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// grant refuses a machine that is larger than the operator allows. Without a word
// of his, memory must be free on this host now, and vCPUs are as many as KVM takes.
// Memory that a source of this host hands over costs nothing anew.
func (in Incoming) grant(cfg Config, handedOver bool) error {
	need, cpus := cfg.Machine.MemSizeMiB, cfg.Machine.VCPUCount
	if in.MaxVCPUs > 0 && cpus > in.MaxVCPUs {
		return fmt.Errorf("%w: it has %d vCPUs and this receiver takes at most %d; start it with --max-cpus %d to take the machine", ErrIncompatible, cpus, in.MaxVCPUs, cpus)
	}
	if in.MaxMemoryMiB > 0 {
		if need > in.MaxMemoryMiB {
			return fmt.Errorf("%w: it has %d MiB of memory and this receiver takes at most %d; start it with --max-memory %dM to take the machine", ErrIncompatible, need, in.MaxMemoryMiB, need)
		}
		return nil
	}
	if handedOver {
		return nil
	}
	free, err := freeMemoryMiB()
	if err == nil && need > free {
		err = fmt.Errorf("%w: it has %d MiB of memory and this host has %d MiB free; free some, or start the receiver with --max-memory %dM to take the machine all the same", ErrIncompatible, need, free, need)
	}
	return err
}

// freeMemoryMiB is what programs may still take without pushing others out, and
// free swap.
func freeMemoryMiB() (int, error) {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, fmt.Errorf("find out how much memory is free: %w", err)
	}
	return parseFreeMiB(text)
}

// parseFreeMiB reads /proc/meminfo (kernel: Documentation/filesystems/proc.rst).
func parseFreeMiB(text []byte) (int, error) {
	kib, found := 0, false
	for lines := bufio.NewScanner(bytes.NewReader(text)); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		if name != "MemAvailable" && name != "SwapFree" {
			continue
		}
		n, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
		if err != nil {
			return 0, fmt.Errorf("/proc/meminfo: %q: %w", lines.Text(), err)
		}
		kib, found = kib+n, found || name == "MemAvailable"
	}
	if !found {
		return 0, fmt.Errorf("/proc/meminfo has no MemAvailable; start the receiver with --max-memory SIZE")
	}
	return kib >> 10, nil
}
