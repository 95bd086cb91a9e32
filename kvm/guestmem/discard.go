package guestmem

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Discard gives the host memory behind the extents back. They read as zeros from
// then on and take memory again when somebody touches them. Extents are whole
// pages, each wholly RAM of one region; they are judged before anything is
// discarded. Runs are much cheaper than single pages: a hole in a huge page
// splits it.
//
// Discarding counts as a write of zeros by this process. KVM's log does not see
// it, so the pages are marked dirty, as always after the bytes have changed, and
// also where the kernel failed half-way. A write by the guest at the same time
// is gone or stays; who discards has the guest's word that it does not matter.
//
// It does not allocate or keep extents. Frozen memory is not discarded.
func (m *Memory) Discard(extents []Extent) error {
	for _, e := range extents {
		if (e.GPA|e.Len)%PageSize != 0 {
			return rangeError("discard", e.GPA, e.Len, ErrPartialPage)
		}
		if _, err := m.toWrite("discard", e.GPA, e.Len); err != nil {
			return err
		}
	}
	for _, e := range extents {
		if e.Len == 0 {
			continue
		}
		err := m.discard(e)
		m.mark(e.GPA, e.Len)
		if err != nil {
			return fmt.Errorf("discard %#x bytes of guest memory at %#x: %w", e.Len, e.GPA, err)
		}
	}
	return nil
}

func (m *Memory) discard(e Extent) error {
	if m.fd < 0 {
		b, err := m.slice("discard", e.GPA, e.Len)
		if err != nil {
			return err
		}
		if err := unix.Madvise(b, unix.MADV_DONTNEED); err != nil {
			return fmt.Errorf("madvise MADV_DONTNEED: %w", err)
		}
		return nil
	}
	// The file keeps its pages whatever its mappings forget: it needs a hole.
	for i := range m.regions {
		r := &m.regions[i]
		if off := e.GPA - r.GPA; e.GPA >= r.GPA && off < uint64(len(r.Bytes)) {
			for {
				err := unix.Fallocate(m.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(r.Offset+off), int64(e.Len))
				if !errors.Is(err, unix.EINTR) {
					if err != nil {
						err = fmt.Errorf("punch a hole into the memfd: %w", err)
					}
					return err
				}
			}
		}
	}
	return ErrOutOfRange // not reached: Discard has looked
}
