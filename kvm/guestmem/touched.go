package guestmem

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Touched lists the RAM that was ever populated, whether it is in memory or
// swapped out, sorted and merged, in whole pages. Everything else reads as zeros.
//
// The list is a superset of what was written: a huge page counts whole, and a
// page that was only read may count or not (it holds zeros). Pages that become
// populated during the call may be missing, so start the dirty log first.
//
// The memory itself is not accessed, and nothing gets populated. Anonymous memory
// is asked by PAGEMAP_SCAN, before Linux 6.7 by reading pagemap; a memfd by
// SEEK_DATA, since its page table entries vanish while the file keeps the page.
func (m *Memory) Touched() ([]Extent, error) {
	if m.closed.Load() {
		return nil, fmt.Errorf("find touched guest memory: %w", ErrClosed)
	}
	var (
		l   extentList
		err error
	)
	if m.fd >= 0 {
		err = m.touchedFile(&l)
	} else {
		err = m.touchedAnon(&l)
	}
	if err != nil {
		return nil, fmt.Errorf("find touched guest memory: %w", err)
	}
	return l.extents, nil
}

// extentList collects extents in address order.
type extentList struct{ extents []Extent }

// add appends [gpa, gpa+n), joined to the last extent where they meet.
func (l *extentList) add(gpa, n uint64) {
	if k := len(l.extents); k > 0 {
		if last := &l.extents[k-1]; last.GPA+last.Len == gpa {
			last.Len += n
			return
		}
	}
	l.extents = append(l.extents, Extent{gpa, n})
}

// touchedFile walks the data of the memfd. Swapped pages are data, see
// mapping_seek_hole_data in Linux mm/filemap.c.
func (m *Memory) touchedFile(l *extentList) error {
	for i := range m.regions {
		r := &m.regions[i]
		pos, end := int64(r.Offset), int64(r.Offset)+int64(len(r.Bytes))
		for pos < end {
			data, err := unix.Seek(r.Fd, pos, unix.SEEK_DATA)
			if errors.Is(err, unix.ENXIO) {
				break // no data behind pos
			}
			if err != nil {
				return fmt.Errorf("SEEK_DATA in memfd: %w", err)
			}
			if data >= end {
				break
			}
			hole, err := unix.Seek(r.Fd, data, unix.SEEK_HOLE)
			if errors.Is(err, unix.ENXIO) {
				hole = end
			} else if err != nil {
				return fmt.Errorf("SEEK_HOLE in memfd: %w", err)
			}
			hole = min(hole, end)
			l.add(r.GPA+uint64(data)-r.Offset, uint64(hole-data))
			pos = hole
		}
	}
	return nil
}

// Resident is how much of the RAM is in host memory now, in bytes. Unlike
// Touched it leaves out what is swapped out. For information only.
func (m *Memory) Resident() (uint64, error) {
	if m.closed.Load() {
		return 0, fmt.Errorf("measure resident guest memory: %w", ErrClosed)
	}
	const step = 1 << 30
	var (
		pages uint64
		vec   = make([]byte, min(m.size, step)>>PageShift)
	)
	for i := range m.regions {
		for b := m.regions[i].Bytes; len(b) > 0; {
			n := min(len(b), step)
			if err := mincore(b[:n], vec); err != nil {
				return 0, fmt.Errorf("measure resident guest memory: mincore: %w", err)
			}
			for _, v := range vec[:n>>PageShift] {
				pages += uint64(v & 1) // the other bits are reserved
			}
			b = b[n:]
		}
	}
	return pages << PageShift, nil
}
