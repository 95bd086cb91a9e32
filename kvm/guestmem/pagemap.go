package guestmem

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

const pagemapPath = "/proc/self/pagemap"

// From Linux include/uapi/linux/fs.h, since 6.7. golang.org/x/sys does not have
// them as of v0.49.
const (
	pagemapScan   = 0xc0606610 // PAGEMAP_SCAN: _IOWR('f', 16, struct pm_scan_arg)
	pageIsPresent = 1 << 3     // PAGE_IS_PRESENT
	pageIsSwapped = 1 << 4     // PAGE_IS_SWAPPED
	pageIsPFNZero = 1 << 5     // PAGE_IS_PFNZERO
)

// Bits of a pagemap entry: Linux Documentation/admin-guide/mm/pagemap.rst.
const (
	pagemapSwapped = 1 << 62
	pagemapPresent = 1 << 63
)

// pmScanArg is struct pm_scan_arg of linux/fs.h.
type pmScanArg struct {
	size, flags        uint64
	start, end         uint64
	walkEnd            uint64
	vec, vecLen        uint64
	maxPages           uint64
	categoryInverted   uint64
	categoryMask       uint64
	categoryAnyofMask  uint64
	returnCategoryMask uint64
}

// pageRegion is struct page_region of linux/fs.h.
type pageRegion struct {
	start, end, categories uint64
}

// touchedAnon asks the page tables, region by region.
func (m *Memory) touchedAnon(l *extentList) error {
	f, err := os.Open(pagemapPath)
	if err != nil {
		return fmt.Errorf("%w; is /proc mounted?", err)
	}
	defer f.Close()
	for i := range m.regions {
		r := &m.regions[i]
		if !m.noPagemapScan.Load() {
			err := scanRegion(f, r, l)
			if err == nil {
				continue
			}
			if !errors.Is(err, unix.ENOTTY) {
				return err
			}
			m.noPagemapScan.Store(true)
		}
		if err := readPagemap(f, r, l); err != nil {
			return err
		}
	}
	return nil
}

// scanRegion lists the populated pages of r by PAGEMAP_SCAN. ENOTTY means that
// the kernel does not have it; nothing was listed then.
func scanRegion(f *os.File, r *Region, l *extentList) error {
	var (
		pin  runtime.Pinner
		vec  = make([]pageRegion, 1024)
		base = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(r.Bytes))))
	)
	// The kernel gets the address of vec inside a struct, where the compiler does
	// not see that it is in use.
	pin.Pin(&vec[0])
	defer pin.Unpin()
	arg := pmScanArg{
		size:   uint64(unsafe.Sizeof(pmScanArg{})),
		start:  base,
		end:    base + uint64(len(r.Bytes)),
		vec:    uint64(uintptr(unsafe.Pointer(&vec[0]))),
		vecLen: uint64(len(vec)),
		// Present or swapped, but not the shared zero page of a mere read. No
		// category is returned, so runs are joined whatever they consist of.
		categoryInverted:  pageIsPFNZero,
		categoryMask:      pageIsPFNZero,
		categoryAnyofMask: pageIsPresent | pageIsSwapped,
	}
	for arg.start < arg.end {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return fmt.Errorf("ioctl PAGEMAP_SCAN: %w", errno)
		}
		if n > uintptr(len(vec)) || arg.walkEnd <= arg.start || arg.walkEnd > arg.end {
			return fmt.Errorf("ioctl PAGEMAP_SCAN: kernel answered %d runs up to %#x for %#x-%#x", n, arg.walkEnd, arg.start, arg.end)
		}
		for _, v := range vec[:n] {
			l.add(r.GPA+v.start-base, v.end-v.start)
		}
		arg.start = arg.walkEnd
	}
	return nil
}

// readPagemap lists the populated pages of r from pagemap itself, 8 bytes a
// page. Not by mincore, which calls a swapped page absent.
func readPagemap(f *os.File, r *Region, l *extentList) error {
	const entry = 8
	var (
		buf   = make([]byte, 128<<10)
		first = uint64(uintptr(unsafe.Pointer(unsafe.SliceData(r.Bytes)))) >> PageShift
		pages = uint64(len(r.Bytes)) >> PageShift
	)
	for page := uint64(0); page < pages; {
		b := buf[:min(uint64(len(buf)), (pages-page)*entry)]
		n, err := f.ReadAt(b, int64((first+page)*entry))
		if n < len(b) {
			return fmt.Errorf("read %s: %d of %d bytes: %w", pagemapPath, n, len(b), err)
		}
		for ; len(b) > 0; b, page = b[entry:], page+1 {
			if binary.NativeEndian.Uint64(b)&(pagemapPresent|pagemapSwapped) != 0 {
				l.add(r.GPA+page<<PageShift, PageSize)
			}
		}
	}
	return nil
}

// mincore fills a byte of vec per page of b: mincore(2). Package unix has no
// wrapper.
func mincore(b, vec []byte) error {
	if need := len(b) >> PageShift; need == 0 || len(vec) < need {
		return unix.EINVAL
	}
	_, _, errno := unix.Syscall(unix.SYS_MINCORE,
		uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), uintptr(unsafe.Pointer(&vec[0])))
	if errno != 0 {
		return errno
	}
	return nil
}
