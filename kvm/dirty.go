//go:build linux && amd64

package kvm

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	dirtyLogPageOffset = 64 // KVM_DIRTY_LOG_PAGE_OFFSET
	dirtyGFNFlagDirty  = 1  // KVM_DIRTY_GFN_F_DIRTY
	dirtyGFNFlagReset  = 2  // KVM_DIRTY_GFN_F_RESET
)

// DirtyRingEntrySize is the size in bytes of one entry: the argument of
// CapDirtyLogRing is a number of entries, a power of two, times this.
const DirtyRingEntrySize = int(unsafe.Sizeof(dirtyGFN{}))

//kvm:mirror kvm_dirty_gfn
type dirtyGFN struct {
	Flags  uint32
	Slot   uint32
	Offset uint64
}

// DirtyPage is a page that a vCPU wrote.
type DirtyPage struct {
	Slot   uint32 // low 16 bits the slot, high 16 bits the address space
	Offset uint64 // page number inside the slot
}

// DirtyRing is the ring of one vCPU (KVM API 8.29). The ring replaces the
// dirty log of the whole VM: it is switched on with CapDirtyLogRing or
// CapDirtyLogRingAcqRel before the first vCPU.
//
//	KVM: dirty ──> Next: harvested ──> VM.ResetDirtyRings: free, protected again
//
// One goroutine harvests at a time; the vCPU may run meanwhile.
type DirtyRing struct {
	object  string
	mem     []byte
	entries []dirtyGFN
	next    uint64 // entries harvested since the ring was mapped
	seen    uint64 // entries that Published has counted, next or more
}

// MapDirtyRing maps the ring; entries is the number that the capability was
// enabled with. Close the ring before or after the vCPU.
func (v *VCPU) MapDirtyRing(entries int) (*DirtyRing, error) {
	fail := func(err error) error {
		return &Error{Op: "mmap", Object: v.f.name, Detail: fmt.Sprintf("dirty ring of %d entries", entries), Err: err}
	}
	if entries <= 0 || entries&(entries-1) != 0 || entries > 1<<24 {
		return nil, fail(fmt.Errorf("entries must be a power of two: %w", unix.EINVAL))
	}
	if !v.f.acquire() {
		return nil, fail(os.ErrClosed)
	}
	defer v.f.release()
	mem, err := unix.Mmap(v.f.fd, dirtyLogPageOffset*pageSize, entries*DirtyRingEntrySize,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fail(err)
	}
	list := unsafe.Slice((*dirtyGFN)(unsafe.Pointer(unsafe.SliceData(mem))), entries)
	return &DirtyRing{object: v.f.name, mem: mem, entries: list}, nil
}

// Next harvests one entry; false when there is none, or after Close. The page
// is write-protected again only by VM.ResetDirtyRings: read its content after
// that, else a later write may go unseen.
func (r *DirtyRing) Next() (DirtyPage, bool) {
	if len(r.entries) == 0 {
		return DirtyPage{}, false
	}
	e := &r.entries[r.next%uint64(len(r.entries))]
	// The kernel publishes slot and offset before the flag, and reuses the
	// entry only after it sees ours: both flag accesses must be atomic.
	if !published(e) {
		return DirtyPage{}, false
	}
	p := DirtyPage{Slot: e.Slot, Offset: e.Offset}
	atomic.StoreUint32(&e.Flags, dirtyGFNFlagReset)
	r.next++
	return p, true
}

// Published counts the entries that KVM has put into the ring since it was
// mapped, harvested or not, and harvests none. A page that is written again
// before its reset has no second entry. An entry is looked at once, so that
// asking often is cheap. It is for the harvesting goroutine.
func (r *DirtyRing) Published() uint64 {
	r.seen = max(r.seen, r.next)
	for size := uint64(len(r.entries)); r.seen < r.next+size; r.seen++ {
		if !published(&r.entries[r.seen%size]) {
			break
		}
	}
	return r.seen
}

// published says that KVM has filled an entry, which has not been harvested.
func published(e *dirtyGFN) bool {
	return atomic.LoadUint32(&e.Flags)&(dirtyGFNFlagDirty|dirtyGFNFlagReset) == dirtyGFNFlagDirty
}

// Close unmaps the ring. It may be called again, by the harvesting goroutine.
func (r *DirtyRing) Close() error {
	if r.mem == nil {
		return nil
	}
	mem := r.mem
	r.mem, r.entries = nil, nil
	if err := unix.Munmap(mem); err != nil {
		return &Error{Op: "munmap", Object: r.object, Detail: "dirty ring", Err: err}
	}
	return nil
}
