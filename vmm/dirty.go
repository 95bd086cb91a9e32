package vmm

import (
	"fmt"

	"godwit/kvm"
	"godwit/kvm/guestmem"
	"godwit/migration"
	"godwit/migration/sabotage"
)

// memory joins guest RAM and its KVM slots: slot i holds region i.
type memory struct {
	*guestmem.Memory
	vm      *kvm.VM
	logging bool
	scratch []uint64 // one slot's log
}

// setFlags registers every region with KVM, with flags.
func (m *memory) setFlags(flags uint32) error {
	for i, r := range m.Regions() {
		if err := m.vm.SetUserMemoryRegion(uint32(i), flags, r.GPA, r.Bytes); err != nil {
			return fmt.Errorf("register guest memory at %#x: %w", r.GPA, err)
		}
	}
	return nil
}

// startLog switches KVM's dirty log on. What the VMM wrote before is of no
// interest: whoever starts a log reads all touched pages afterwards.
func (m *memory) startLog() error {
	if err := m.setFlags(kvm.MemLogDirtyPages); err != nil {
		return fmt.Errorf("start dirty log: %w", err)
	}
	m.logging = true
	m.DrainDirty(make([]uint64, (m.Frames()+63)/64))
	return nil
}

// stopLog switches it off.
func (m *memory) stopLog() error {
	if !m.logging {
		return nil
	}
	m.logging = false
	if err := m.setFlags(0); err != nil {
		return fmt.Errorf("stop dirty log: %w", err)
	}
	return nil
}

// dirty adds what was written since the last call to dst, one bit a guest
// frame: KVM's log, which holds the guest's writes, united with the VMM's own,
// which KVM never sees.
func (m *memory) dirty(dst []uint64) error {
	if !sabotage.On(sabotage.VMMDirty) {
		m.DrainDirty(dst)
	}
	for i, r := range m.Regions() {
		words := (len(r.Bytes)/guestmem.PageSize + 63) / 64
		if cap(m.scratch) < words {
			m.scratch = make([]uint64, words)
		}
		log := m.scratch[:words]
		clear(log)
		if err := m.vm.GetDirtyLog(uint32(i), log); err != nil {
			return fmt.Errorf("read dirty log: %w", err)
		}
		// Regions start at 0 and at 4 GiB: whole words of the bitmap.
		base := r.GPA >> guestmem.PageShift / 64
		for j, w := range log {
			dst[base+uint64(j)] |= w
		}
	}
	return nil
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
