package vmm

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"godwit/kvm"
)

// Trackers of the guest's writes: MachineConfig.Tracker.
const (
	TrackerLog  = "log"  // KVM's dirty log
	TrackerRing = "ring" // KVM's dirty ring
)

// ringEntries is the size of a vCPU's ring: the most that KVM takes. Only tests
// write it.
var ringEntries = 65536

// ringSlot is how much memory, bytes, a slot of a machine with rings holds.
// Logging is switched on slot by slot, and the guest stands still for part of
// each call: 8 GiB of small pages in one slot cost it 50 ms, so this much
// about 2 ms. 4 TiB make 16,384 slots, half of what KVM takes. Only tests
// write it.
var ringSlot uint64 = 256 << 20

// ringTracker is KVM's dirty ring (KVM API 8.29): each vCPU puts the pages that
// it writes into a ring of its own, and write-protects nothing by itself.
//
//	first write to a protected page ──> entry in the ring, page writable
//	harvest: take the entries ──> reset: protect their pages ──> publish in bits
//	clear: forget the bit; the page is protected, or has a newer entry
//
// The order in harvest is what keeps writes from being lost. A page is writable
// only while an entry for it is in a ring, or taken and not yet published. So a
// stream that clears a bit and reads the page at any moment either finds the
// page protected, and a later write makes a new entry; or an entry is still to
// come, which makes the page dirty once more. Published before the reset, a bit
// could be cleared and its page read while the guest still writes to it unseen.
//
// A reset that a stop of this process cut short leaves pages writable, and does
// not say which (kvm.VM.ResetDirtyRings). All pages of that harvest are then in
// doubt: every later question finds them dirty, cleared or not, until one comes
// out of a ring again and that harvest's reset was whole.
//
// A ring is a property of the VM for life: it must be enabled before the first
// vCPU, and there is no log then. Starting protects all memory, since KVM has
// nothing like KVM_DIRTY_LOG_INITIALLY_SET for rings: in pieces, by means of
// smaller slots. On x86 KVM itself
// writes guest memory only on behalf of a vCPU, so nothing bypasses the rings but
// the VMM, whose writes guest memory records.
type ringTracker struct {
	m     *memory
	slots []slotRange
	bits  []uint64 // harvested and not cleared; atomic
	doubt []uint64 // harvested, perhaps still writable; atomic

	fulls atomic.Uint64 // times that a vCPU found its ring full

	mu      sync.Mutex // harvesting, which any vCPU's thread may do
	rings   []*kvm.DirtyRing
	fresh   []uint64 // gfns taken from the rings, not yet published
	unreset int      // entries harvested that KVM has not reset yet

	resetRings func() (n int, cut bool, err error) // KVM's; only tests write it
}

// newRingTracker switches the VM over to rings.
func newRingTracker(m *memory) (*ringTracker, error) {
	which := kvm.CapDirtyLogRingAcqRel
	most, err := m.vm.CheckExtension(which)
	if err == nil && most == 0 {
		which = kvm.CapDirtyLogRing
		most, err = m.vm.CheckExtension(which)
	}
	if err != nil {
		return nil, err
	}
	size := ringEntries * kvm.DirtyRingEntrySize
	if most < size {
		return nil, fmt.Errorf("%w: tracker %q needs dirty rings of %d bytes, this host's KVM has %d; use tracker %q", ErrConfig, TrackerRing, size, most, TrackerLog)
	}
	if err := m.vm.EnableCap(which, 0, uint64(size)); err != nil {
		return nil, err
	}
	m.slotSize = ringSlot
	return &ringTracker{m: m, resetRings: m.vm.ResetDirtyRings, slots: m.slots(), bits: make([]uint64, m.words()), doubt: make([]uint64, m.words())}, nil
}

// attach maps a new vCPU's ring.
func (t *ringTracker) attach(fd *kvm.VCPU) error {
	r, err := fd.MapDirtyRing(ringEntries)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rings = append(t.rings, r)
	return nil
}

// close unmaps the rings. No vCPU runs any more.
func (t *ringTracker) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var errs []error
	for _, r := range t.rings {
		errs = append(errs, r.Close())
	}
	t.rings = nil
	return errors.Join(errs...)
}

// start implements tracker. Entries of an earlier time are taken out, which
// protects their pages again: a page left writable would not be noticed.
func (t *ringTracker) start() error {
	if err := t.m.setFlags(kvm.MemLogDirtyPages); err != nil {
		return err
	}
	if err := t.harvest(); err != nil {
		return err
	}
	for i := range t.bits { // a vCPU whose ring is full may be publishing
		atomic.StoreUint64(&t.bits[i], 0)
	}
	return nil
}

// stop implements tracker. The next start protects all memory, so that nothing
// is in doubt any more.
func (t *ringTracker) stop() error {
	err := errors.Join(t.m.setFlags(0), t.harvest())
	if err == nil {
		for i := range t.doubt {
			atomic.StoreUint64(&t.doubt[i], 0)
		}
	}
	return err
}

// dirty implements tracker.
func (t *ringTracker) dirty(dst []uint64) error {
	if err := t.harvest(); err != nil {
		return err
	}
	for i := range t.bits {
		dst[i] |= atomic.LoadUint64(&t.bits[i]) | atomic.LoadUint64(&t.doubt[i])
	}
	return nil
}

// clear implements tracker.
func (t *ringTracker) clear(gfns []uint64) error {
	for _, gfn := range gfns {
		if gfn/64 >= uint64(len(t.bits)) {
			return fmt.Errorf("clear dirty pages: page %#x is not guest RAM", gfn)
		}
		atomic.AndUint64(&t.bits[gfn/64], ^(uint64(1) << (gfn % 64)))
	}
	return nil
}

// full is called on the thread of a vCPU whose ring is full: it could not run on
// before a harvest, so nobody is kept from work by doing it there.
func (t *ringTracker) full() error {
	t.fulls.Add(1)
	return t.harvest()
}

// published counts the pages that vCPU i has put into its ring since it was
// created, each once between two resets, and takes none out.
func (t *ringTracker) published(i int) uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.rings[i].Published()
}

// harvest empties all rings. What it took is published also where it fails: a
// page is dirty from its entry on.
func (t *ringTracker) harvest() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.fresh = t.fresh[:0]
	taken := 0
	for _, r := range t.rings {
		for {
			p, ok := r.Next()
			if !ok {
				break
			}
			taken++
			// The slot's upper half is the address space, 0 without SMM.
			if i := int(p.Slot); i < len(t.slots) && p.Offset < t.slots[i].pages {
				t.fresh = append(t.fresh, t.slots[i].base+p.Offset)
			}
		}
	}
	t.unreset += taken
	if t.unreset == 0 {
		return nil
	}
	whole, err := t.reset()
	for _, gfn := range t.fresh {
		word, bit := gfn/64, uint64(1)<<(gfn%64)
		if whole {
			atomic.AndUint64(&t.doubt[word], ^bit)
		} else {
			atomic.OrUint64(&t.doubt[word], bit)
		}
		atomic.OrUint64(&t.bits[word], bit)
	}
	return err
}

// resetTries is how many calls in a row may reset nothing of what was
// harvested. A signal that ended a call is gone before the next one.
const resetTries = 100

// reset protects the pages of all harvested entries. whole says that all of
// them are protected; otherwise any may be writable still.
func (t *ringTracker) reset() (whole bool, err error) {
	whole = true
	for idle := 0; t.unreset > 0; idle++ {
		n, cut, err := t.resetRings()
		if err != nil {
			return false, err
		}
		whole = whole && !cut && n == t.unreset
		if n > 0 {
			t.unreset, idle = max(0, t.unreset-n), 0
		} else if idle == resetTries {
			return false, fmt.Errorf("KVM_RESET_DIRTY_RINGS left %d harvested entries in the rings, in %d calls that reset none: a bug of this host's KVM; use tracker %q",
				t.unreset, idle+1, TrackerLog)
		}
	}
	return whole, nil
}
