package bus

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
)

// ErrAttach is in the chain of every error that Attach returns.
var ErrAttach = errors.New("attach to bus")

// Bus maps addresses to devices. The zero value is an empty bus.
//
// A Bus has two phases. While the machine is assembled, one goroutine calls
// Attach. Once the first vCPU runs, only Read, Write and the counters are
// used, from any number of threads and without a lock.
type Bus struct {
	ranges []attachment // sorted by base, no two overlap

	unmappedReads  atomic.Uint64
	unmappedWrites atomic.Uint64
}

// attachment is one device's claim to the addresses base to last, both
// included: an exclusive end could not express a range that ends at 2^64.
type attachment struct {
	base, last uint64
	name       string
	dev        Device
}

func (a attachment) String() string {
	return fmt.Sprintf("%q at %#x-%#x", a.name, a.base, a.last)
}

// Attach gives the size addresses from base on to d. The name is what errors
// call the device. One device may be attached at several ranges.
//
// It fails, and changes nothing, for an empty range, for one that runs past
// the top of the address space, and for one that overlaps another device's.
// It must not be called any more once a vCPU runs.
func (b *Bus) Attach(base, size uint64, name string, d Device) error {
	if d == nil {
		return fmt.Errorf("%w: %q at %#x: no device given", ErrAttach, name, base)
	}
	if size == 0 {
		return fmt.Errorf("%w: %q at %#x: the range is empty; give it a size", ErrAttach, name, base)
	}
	a := attachment{base: base, last: base + (size - 1), name: name, dev: d}
	if a.last < a.base {
		return fmt.Errorf("%w: %q at %#x: %#x bytes run past the end of the address space", ErrAttach, name, base, size)
	}

	i, _ := slices.BinarySearchFunc(b.ranges, base, func(r attachment, base uint64) int {
		if r.last < base {
			return -1
		}
		return 1
	})
	// i is the first range that ends at or after base: the only one that can
	// be the lowest overlap.
	if i < len(b.ranges) && b.ranges[i].base <= a.last {
		return fmt.Errorf("%w: %v overlaps %v; move one of them", ErrAttach, a, b.ranges[i])
	}
	b.ranges = slices.Insert(b.ranges, i, a)
	return nil
}

// Read fills p with what the device at addr answers. All of p is set to ones
// when no device claims every address of the access, or when its width is not
// 1, 2, 4 or 8 bytes: that is what a floating bus reads as.
func (b *Bus) Read(addr uint64, p []byte) {
	if a := b.find(addr, len(p)); a != nil {
		a.dev.Read(addr-a.base, p)
		return
	}
	b.unmappedReads.Add(1)
	for i := range p {
		p[i] = 0xff
	}
}

// Write hands p to the device at addr. It is dropped under the conditions in
// which Read gives ones.
func (b *Bus) Write(addr uint64, p []byte) {
	if a := b.find(addr, len(p)); a != nil {
		a.dev.Write(addr-a.base, p)
		return
	}
	b.unmappedWrites.Add(1)
}

// Unmapped returns how many reads and writes found no device so far. Probing
// guests cause some; a count that grows all the time means a driver talks to
// something this machine does not have.
func (b *Bus) Unmapped() (reads, writes uint64) {
	return b.unmappedReads.Load(), b.unmappedWrites.Load()
}

// find returns the attachment that holds all n addresses from addr on, or nil.
func (b *Bus) find(addr uint64, n int) *attachment {
	switch n {
	case 1, 2, 4, 8:
	default:
		return nil
	}
	// By hand instead of slices.BinarySearchFunc: this runs on every exit, and
	// the call through a function value costs more than the search.
	lo, hi := 0, len(b.ranges)
	for lo < hi {
		mid := int(uint(lo+hi) >> 1)
		if b.ranges[mid].last < addr {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == len(b.ranges) {
		return nil
	}
	a := &b.ranges[lo]
	// Subtractions only: addr+n could wrap.
	if addr < a.base || a.last-addr < uint64(n-1) {
		return nil
	}
	return a
}
