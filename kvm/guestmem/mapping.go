package guestmem

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a transparent huge page on x86-64. KVM maps a huge page
// only where guest and host address agree modulo this size.
const hugePage = 2 << 20

// memfdName shows in /proc/PID/maps.
const memfdName = "godwit-ram"

// reservation is a range of host addresses that this package owns.
type reservation struct {
	addr unsafe.Pointer
	len  uintptr
}

// mapAll maps every region. On error, unmap releases what was mapped so far.
func (m *Memory) mapAll(o Options) error {
	m.dirty = make([]uint64, (m.Frames()+63)/64)
	m.noCollapse.Store(m.fd < 0 || o.SmallPages) // anonymous memory has huge pages from the first touch
	var offset uint64
	for _, e := range layout(m.size) {
		if e.Len == 0 {
			continue
		}
		b, err := m.mapRegion(e.Len, offset)
		if err != nil {
			return err
		}
		if err := advise(b, o); err != nil {
			return err
		}
		r := Region{GPA: e.GPA, Bytes: b, Fd: m.fd}
		if m.fd >= 0 {
			r.Offset = offset
		}
		m.regions = append(m.regions, r)
		offset += e.Len
	}
	return nil
}

// openMemfd makes the file that holds all regions one after the other. It is
// sealed against a change of size: a process that got the file and cut it would
// otherwise make our next access a SIGBUS.
func (m *Memory) openMemfd() error {
	fd, err := unix.MemfdCreate(memfdName, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("memfd_create: %w", err)
	}
	m.fd = fd
	if err := unix.Ftruncate(fd, int64(m.size)); err != nil {
		return fmt.Errorf("ftruncate memfd: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, sealsWanted); err != nil {
		return fmt.Errorf("seal memfd: %w", err)
	}
	return nil
}

// mapRegion maps n bytes on a huge page boundary. It reserves more address space
// than that without access rights; what is left over stays on both sides as a
// guard, so that an overrun in this process faults instead of hitting a stranger.
func (m *Memory) mapRegion(n, offset uint64) ([]byte, error) {
	total := uintptr(n + 2*hugePage)
	base, err := unix.MmapPtr(-1, 0, nil, total, unix.PROT_NONE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("reserve %d bytes of address space: %w", total, err)
	}
	m.reserved = append(m.reserved, reservation{base, total})

	// The guard below has one page to 2 MiB, the one above 2 MiB or more.
	skip := hugePage - uintptr(base)%hugePage
	start := unsafe.Add(base, skip)
	flags := unix.MAP_FIXED | unix.MAP_NORESERVE
	if m.fd >= 0 {
		flags |= unix.MAP_SHARED
	} else {
		flags |= unix.MAP_PRIVATE | unix.MAP_ANONYMOUS
		offset = 0
	}
	prot := unix.PROT_READ | unix.PROT_WRITE
	if m.frozen.Load() {
		prot = unix.PROT_READ
	}
	p, err := unix.MmapPtr(m.fd, int64(offset), start, uintptr(n), prot, flags)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes: %w", n, err)
	}
	return unsafe.Slice((*byte)(p), n), nil
}

// advise tells the kernel how the region is used. A core dump of this process
// must not hold a guest's secrets (DONTDUMP), and a forked child has no business
// with guest RAM: copying its page tables would stall the guest (DONTFORK).
func advise(b []byte, o Options) error {
	huge, name := unix.MADV_HUGEPAGE, "MADV_HUGEPAGE"
	if o.SmallPages {
		huge, name = unix.MADV_NOHUGEPAGE, "MADV_NOHUGEPAGE"
	}
	// A kernel built without transparent huge pages says EINVAL. Small pages then
	// do, only slower.
	if err := unix.Madvise(b, huge); err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("madvise %s: %w", name, err)
	}
	if err := unix.Madvise(b, unix.MADV_DONTDUMP); err != nil {
		return fmt.Errorf("madvise MADV_DONTDUMP: %w", err)
	}
	if err := unix.Madvise(b, unix.MADV_DONTFORK); err != nil {
		return fmt.Errorf("madvise MADV_DONTFORK: %w", err)
	}
	return nil
}

// unmap releases everything that mapAll took.
func (m *Memory) unmap() error {
	var errs []error
	for _, r := range m.reserved {
		if err := unix.MunmapPtr(r.addr, r.len); err != nil {
			errs = append(errs, fmt.Errorf("munmap: %w", err))
		}
	}
	if m.fd >= 0 {
		if err := unix.Close(m.fd); err != nil {
			errs = append(errs, fmt.Errorf("close memfd: %w", err))
		}
	}
	m.regions, m.reserved, m.fd = nil, nil, -1
	return errors.Join(errs...)
}
