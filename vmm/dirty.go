package vmm

import (
	"fmt"

	"godwit/kvm"
	"godwit/kvm/guestmem"
	"godwit/migration"
	"godwit/migration/sabotage"
)

// tracker finds out which pages the guest writes. KVM has two ways; both do the
// same here, and one suite tests both. Bitmaps have a bit for each guest frame.
//
// start, stop and dirty are called one at a time; clear by several streams at a
// time, for different pages, but beside none of the others.
type tracker interface {
	// start begins to track. Every page written after it returns is in each
	// later dirty until it is cleared. What was written before may be missing,
	// so whoever starts looks for touched pages afterwards.
	start() error
	// stop ends tracking; only after a start, also one that failed.
	stop() error
	// dirty adds the pages written and not cleared since to dst. More may be in
	// it, never fewer.
	dirty(dst []uint64) error
	// clear forgets pages, ascending and all RAM. A write that it forgets has
	// landed: whoever reads the page afterwards sees it.
	clear(gfns []uint64) error
}

// memory joins guest RAM and its KVM slots.
type memory struct {
	*guestmem.Memory
	vm       *kvm.VM
	tracker  tracker
	logging  bool
	slotSize uint64 // most that a slot holds, bytes, a multiple of 64 pages; 0 for a region a slot
}

// setFlags registers all of RAM with KVM, with flags.
func (m *memory) setFlags(flags uint32) error {
	for i, s := range m.slots() {
		if err := m.vm.SetUserMemoryRegion(uint32(i), flags, s.base<<guestmem.PageShift, s.bytes); err != nil {
			return fmt.Errorf("register guest memory at %#x: %w", s.base<<guestmem.PageShift, err)
		}
	}
	return nil
}

// slotRange is where a slot lies: in guest frames, and in this process.
type slotRange struct {
	base, pages uint64
	bytes       []byte
}

// slots lists where the slots lie, by number.
func (m *memory) slots() (out []slotRange) {
	for _, r := range m.Regions() {
		for gpa, left := r.GPA, r.Bytes; len(left) > 0; {
			n := uint64(len(left))
			if m.slotSize > 0 {
				n = min(n, m.slotSize)
			}
			out = append(out, slotRange{gpa >> guestmem.PageShift, n >> guestmem.PageShift, left[:n:n]})
			gpa, left = gpa+n, left[n:]
		}
	}
	return out
}

// track makes the tracker that the configuration names, before the first vCPU.
func (m *memory) track(name string) (err error) {
	var t tracker
	if name == TrackerRing {
		t, err = newRingTracker(m)
	} else {
		t, err = newLogTracker(m)
	}
	if err == nil {
		m.tracker = t
	}
	return err
}

// ring is the tracker where it is a ring, else nil.
func (m *memory) ring() *ringTracker {
	r, _ := m.tracker.(*ringTracker)
	return r
}

// startLog begins to record what is written. What the VMM wrote before is of no
// interest: whoever starts a log reads all touched pages afterwards.
func (m *memory) startLog() error {
	m.logging = true // also when it fails half-way
	if err := m.tracker.start(); err != nil {
		return fmt.Errorf("start dirty log: %w", err)
	}
	m.DrainDirty(make([]uint64, m.words()))
	return nil
}

// words is the length of a bitmap of all guest frames.
func (m *memory) words() int { return int((m.Frames() + 63) / 64) }

// stopLog ends it.
func (m *memory) stopLog() error {
	if !m.logging {
		return nil
	}
	m.logging = false
	if err := m.tracker.stop(); err != nil {
		return fmt.Errorf("stop dirty log: %w", err)
	}
	return nil
}

// dirty adds what was written and not cleared since to dst, one bit a guest
// frame: what the guest wrote, united with the VMM's own writes, which KVM never
// sees.
func (m *memory) dirty(dst []uint64) error {
	if !sabotage.On(sabotage.VMMDirty) {
		m.PeekDirty(dst)
	}
	if err := m.tracker.dirty(dst); err != nil {
		return fmt.Errorf("read dirty log: %w", err)
	}
	return nil
}

// clear forgets that pages were written, by the guest or by the VMM. Which of
// the two is forgotten first does not matter, only that both are before the
// pages are read.
func (m *memory) clear(gfns []uint64) error {
	m.ClearDirty(gfns)
	return m.tracker.clear(gfns)
}

// populate prepares extents for writing.
func (m *memory) populate(extents []migration.Extent) error {
	out := make([]guestmem.Extent, len(extents))
	for i, e := range extents {
		out[i] = guestmem.Extent{GPA: e.GPA, Len: e.Len}
	}
	return m.Populate(out)
}

// touched lists the extents that were ever populated.
func (m *memory) touched() ([]migration.Extent, error) {
	extents, err := m.Touched()
	if err != nil {
		return nil, err
	}
	out := make([]migration.Extent, len(extents))
	for i, e := range extents {
		out[i] = migration.Extent{GPA: e.GPA, Len: e.Len}
	}
	return out, nil
}
