package guestmem

import (
	"errors"
	"fmt"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const (
	// PageShift is log2 of PageSize: gfn = gpa >> PageShift.
	PageShift = 12
	// PageSize is the size in bytes of a guest page, and of a host page.
	PageSize = 1 << PageShift

	// HoleStart and HoleEnd bound the addresses below 4 GiB that are never RAM.
	HoleStart = 3 << 30
	HoleEnd   = 4 << 30

	// MaxSize is the largest guest that New accepts, in bytes. It keeps the dirty
	// bitmap at 128 MiB and a region inside what one KVM memory slot can hold
	// (KVM_MEM_MAX_NR_PAGES, 2^31-1 pages).
	MaxSize = 4 << 40
)

// Errors to test for with errors.Is. What is returned also names the operation
// and the range.
var (
	// ErrOutOfRange: the range is not wholly RAM of one region.
	ErrOutOfRange = errors.New("not guest RAM")
	// ErrMisaligned: the address of a Load or Store is no multiple of its size.
	ErrMisaligned = errors.New("not naturally aligned")
	// ErrPartialPage: the range is not made of whole pages.
	ErrPartialPage = errors.New("not whole pages")
	// ErrClosed: the memory was closed.
	ErrClosed = errors.New("guest memory is closed")
	// ErrSize: New cannot give memory of this size.
	ErrSize = errors.New("bad guest memory size")
	// ErrBacking: no such kind of backing.
	ErrBacking = errors.New("unknown memory backing")
	// ErrFrozen: the memory was attached and is not to be written before Thaw.
	ErrFrozen = errors.New("guest memory is frozen")
	// ErrForeign: the file given to Attach cannot be guest memory.
	ErrForeign = errors.New("not the memory file of a guest")
)

// Backing is where the bytes of guest RAM live.
type Backing int

const (
	// Anon is private anonymous memory with transparent huge pages: the fastest to
	// fill and to map again after a migration.
	Anon Backing = iota
	// Memfd is a shared memory file that can be handed to another process.
	Memfd
)

// String gives the name that ParseBacking takes.
func (b Backing) String() string {
	switch b {
	case Anon:
		return "anon"
	case Memfd:
		return "memfd"
	}
	return fmt.Sprintf("Backing(%d)", int(b))
}

// ParseBacking reads "anon" or "memfd".
func ParseBacking(s string) (Backing, error) {
	for _, b := range []Backing{Anon, Memfd} {
		if s == b.String() {
			return b, nil
		}
	}
	return 0, fmt.Errorf("memory backing %q: %w; use anon or memfd", s, ErrBacking)
}

// Options choose how guest RAM is mapped. The zero value is the default.
type Options struct {
	// Backing is Anon unless set.
	Backing Backing
	// SmallPages keeps transparent huge pages away (MADV_NOHUGEPAGE), for
	// experiments that compare page sizes. By default they are asked for.
	SmallPages bool
}

// Region is a run of guest RAM that is contiguous in the guest and in the host.
type Region struct {
	// GPA is where the region starts in the guest, a multiple of 2 MiB.
	GPA uint64
	// Bytes is the host mapping: a page multiple long, starting on a 2 MiB
	// boundary, so that KVM can map huge pages. Valid until Close.
	Bytes []byte
	// Fd is the memfd that holds the region, or -1. Memory owns it: duplicate it
	// to keep it past Close.
	Fd int
	// Offset is where in Fd the region starts, in bytes.
	Offset uint64
}

// Extent is a range of guest RAM in bytes.
type Extent struct {
	GPA, Len uint64
}

// Memory is the RAM of one guest. See the package comment for who may call what.
type Memory struct {
	size    uint64
	regions []Region
	// reserved are the address ranges to unmap, guards included.
	reserved []reservation
	fd       int // memfd, or -1
	closed   atomic.Bool
	frozen   atomic.Bool            // mapped for reading only, from Attach to Thaw
	given    atomic.Pointer[uint32] // the file's mode when File gave it away last

	// dirty has a bit per gfn, hole included, so that the index needs no
	// translation. Accessed with sync/atomic only.
	dirty []uint64

	// noPagemapScan is set once the kernel has refused PAGEMAP_SCAN, noPopulate
	// once it has refused MADV_POPULATE_WRITE, and noCollapse once it has refused
	// MADV_COLLAPSE, or where it is not wanted.
	noPagemapScan atomic.Bool
	noPopulate    atomic.Bool
	noCollapse    atomic.Bool
}

// New maps size bytes of zeroed guest RAM: a multiple of PageSize, from one page
// to MaxSize. Host memory is taken only as pages are touched. Close the result.
func New(size uint64, o Options) (*Memory, error) {
	if err := checkSize(size); err != nil {
		return nil, err
	}
	if o.Backing != Anon && o.Backing != Memfd {
		return nil, fmt.Errorf("guest memory with backing %d: %w; use anon or memfd", int(o.Backing), ErrBacking)
	}
	m := &Memory{size: size, fd: -1}
	if o.Backing == Memfd {
		if err := m.openMemfd(); err != nil {
			return nil, m.failed(o, err)
		}
	}
	if err := m.mapAll(o); err != nil {
		return nil, m.failed(o, err)
	}
	return m, nil
}

func checkSize(size uint64) error {
	if size == 0 || size%PageSize != 0 || size > MaxSize {
		return fmt.Errorf("guest memory of %d bytes: %w; use a multiple of %d up to %d", size, ErrSize, PageSize, uint64(MaxSize))
	}
	if host := unix.Getpagesize(); host != PageSize {
		return fmt.Errorf("guest memory: the host's pages have %d bytes; a kernel with %d-byte pages is needed", host, PageSize)
	}
	return nil
}

// failed gives back what a half-made memory holds.
func (m *Memory) failed(o Options, err error) error {
	_ = m.unmap() // err says more
	return fmt.Errorf("guest memory of %d bytes (%v): %w; is the host short of memory, or limited by ulimit -v or vm.overcommit_memory=2?", m.size, o.Backing, err)
}

// layout splits size bytes of RAM around the hole. The second part may be empty.
func layout(size uint64) [2]Extent {
	low := min(size, HoleStart)
	return [2]Extent{{0, low}, {HoleEnd, size - low}}
}

// Size is the amount of RAM in bytes.
func (m *Memory) Size() uint64 { return m.size }

// Regions lists the RAM in address order: one KVM memory slot each. It is empty
// after Close.
func (m *Memory) Regions() []Region {
	if m.closed.Load() {
		return nil
	}
	return append([]Region(nil), m.regions...)
}

// Frames is one past the highest gfn: the length in bits of a bitmap indexed by
// gfn. The frames of the hole count.
func (m *Memory) Frames() uint64 {
	if m.size <= HoleStart {
		return m.size >> PageShift
	}
	return (m.size + HoleEnd - HoleStart) >> PageShift
}

// Close unmaps the memory and closes its memfd. Every vCPU and every holder of a
// View, a Writable or a Region must have stopped before. Accesses through Memory
// fail with ErrClosed from then on. Closing twice is allowed.
func (m *Memory) Close() error {
	if m.closed.Swap(true) {
		return nil
	}
	if err := m.unmap(); err != nil {
		return fmt.Errorf("close guest memory: %w", err)
	}
	return nil
}
