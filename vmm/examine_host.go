package vmm

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MemoryFacts are about the host's memory and what its kernel can do with it.
type MemoryFacts struct {
	TotalMiB     uint64 `json:"total_mib"`
	AvailableMiB uint64 `json:"available_mib"`
	// HugePages is the transparent huge page mode: always, madvise, never, or ""
	// where the kernel has none.
	HugePages   string `json:"transparent_hugepages"`
	PagemapScan bool   `json:"pagemap_scan"`
	// Userfaultfd is "full", "user-mode-only" (of no use to KVM) or "none".
	Userfaultfd string `json:"userfaultfd"`
}

func (f *MemoryFacts) look() error {
	info, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return fmt.Errorf("read the size of memory: %w", err)
	}
	f.TotalMiB = meminfo(string(info), "MemTotal") >> 10
	f.AvailableMiB = meminfo(string(info), "MemAvailable") >> 10
	if text, err := os.ReadFile("/sys/kernel/mm/transparent_hugepage/enabled"); err == nil {
		f.HugePages = chosen(string(text))
	}
	f.PagemapScan = hasPagemapScan()
	f.Userfaultfd = userfaultfd()
	return nil
}

// meminfo finds a field of /proc/meminfo, in KiB; 0 if it is not there.
func meminfo(text, field string) uint64 {
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err == nil {
				return n
			}
		}
	}
	return 0
}

// chosen finds the word in brackets.
func chosen(text string) string {
	_, rest, _ := strings.Cut(text, "[")
	word, _, ok := strings.Cut(rest, "]")
	if !ok {
		return ""
	}
	return word
}

// hasPagemapScan asks PAGEMAP_SCAN about an empty range: an older kernel
// answers ENOTTY (linux/fs.h, since 6.7).
func hasPagemapScan() bool {
	f, err := os.Open("/proc/self/pagemap")
	if err != nil {
		return false
	}
	defer f.Close()
	const pagemapScan = 0xc0606610
	arg := [12]uint64{0: 96} // struct pm_scan_arg, its size first
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
	return !errors.Is(errno, unix.ENOTTY)
}

// userfaultfd tells which kind this process may have (userfaultfd(2)).
func userfaultfd() string {
	const userModeOnly = 1 // UFFD_USER_MODE_ONLY
	open := func(flags uintptr) bool {
		fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC|flags, 0, 0)
		if errno != 0 {
			return false
		}
		_ = unix.Close(int(fd)) // it was only tried
		return true
	}
	if open(0) || unix.Access("/dev/userfaultfd", unix.R_OK|unix.W_OK) == nil {
		return "full"
	}
	if open(userModeOnly) {
		return "user-mode-only"
	}
	return "none"
}
