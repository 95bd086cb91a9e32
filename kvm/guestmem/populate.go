package guestmem

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Populate gives the extents host memory, ready for writing, so that later
// writes do not fault. Contents stay as they are, even while others write them,
// and nothing is marked dirty. Extents are widened to whole pages. One that is
// not RAM is an error, and nothing is populated then. The call blocks for the
// time that the kernel needs to clear the memory.
//
// Huge pages are asked for where whole ones fit. Frozen memory is not populated:
// that would be writing.
func (m *Memory) Populate(ext []Extent) error {
	if m.frozen.Load() {
		return fmt.Errorf("populate guest memory: %w", ErrFrozen)
	}
	for _, e := range ext {
		if _, err := m.pages(e); err != nil {
			return err
		}
	}
	for _, e := range ext {
		b, err := m.pages(e)
		if err != nil {
			return err
		}
		if err := m.populate(b); err != nil {
			return fmt.Errorf("populate %#x bytes of guest memory at %#x: %w; is the host short of memory?", e.Len, e.GPA, err)
		}
	}
	return nil
}

// pages finds the whole pages that e lies in.
func (m *Memory) pages(e Extent) ([]byte, error) {
	if _, err := m.slice("populate", e.GPA, e.Len); err != nil {
		return nil, err
	}
	// RAM is made of whole pages, so neither rounding leaves the region or wraps.
	start := e.GPA &^ (PageSize - 1)
	end := (e.GPA + e.Len + PageSize - 1) &^ (PageSize - 1)
	if e.Len == 0 {
		end = start
	}
	return m.slice("populate", start, end-start)
}

func (m *Memory) populate(b []byte) error {
	if len(b) == 0 {
		return nil
	}
	m.collapse(b)
	for !m.noPopulate.Load() {
		err := unix.Madvise(b, unix.MADV_POPULATE_WRITE)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.EINVAL): // before Linux 5.14
			m.noPopulate.Store(true)
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
		default:
			return fmt.Errorf("madvise MADV_POPULATE_WRITE: %w", err)
		}
	}
	for off := 0; off < len(b); off += PageSize {
		if err := touch(b[off:]); err != nil {
			return fmt.Errorf("touch a page: %w", err)
		}
	}
	return nil
}

// collapse gives the parts of b that are whole huge pages huge pages. The files
// of memfds get small ones by default (shmem_enabled under
// /sys/kernel/mm/transparent_hugepage is "never"), which cost about as much to fill as
// huge ones and far more to map, here and again in each process that the file is
// handed to. MADV_COLLAPSE makes huge ones whatever that setting says, and keeps
// what the pages hold. It wants a page table to be there, so one page of each is
// populated first. It is a wish: memory that is short, in small pieces or in use
// stays as it is, and so does that of kernels before Linux 6.1.
func (m *Memory) collapse(b []byte) {
	if m.noCollapse.Load() {
		return
	}
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % hugePage
	if uintptr(len(b)) < skip+hugePage {
		return
	}
	whole := b[skip : skip+(uintptr(len(b))-skip)&^(hugePage-1)]
	for off := 0; off < len(whole); off += hugePage {
		if unix.Madvise(whole[off:off+PageSize], unix.MADV_POPULATE_WRITE) != nil {
			return // populating all of it will say why
		}
	}
	if err := unix.Madvise(whole, unix.MADV_COLLAPSE); errors.Is(err, unix.EINVAL) {
		m.noCollapse.Store(true)
	}
}

// From Linux include/uapi/linux/futex.h.
const (
	futexWakeOpPrivate = 5 | 128 // FUTEX_WAKE_OP_PRIVATE
	futexOpOr          = 2 << 28 // FUTEX_OP_OR with operand 0, compared to 0
)

// touch makes the page of b writable without changing it, inside a system call so
// that a fault never holds up Go's scheduler: FUTEX_WAKE_OP ORs 0 into a word,
// atomically. Nobody waits on guest RAM, so nobody is woken.
func touch(b []byte) error {
	p := uintptr(unsafe.Pointer(&b[0]))
	_, _, errno := unix.Syscall6(unix.SYS_FUTEX, p, futexWakeOpPrivate, 0, 0, p, futexOpOr)
	if errno != 0 {
		return errno
	}
	return nil
}
