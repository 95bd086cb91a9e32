package vmm

import (
	"fmt"
	"sync"
	"sync/atomic"

	"godwit/kvm"
	"godwit/kvm/guestmem"
)

const (
	// clearWindow is how many words of 64 pages one KVM_CLEAR_DIRTY_LOG covers at
	// most: 32 MiB of guest memory. Each word costs the kernel about a
	// nanosecond even when it is empty, a call about half a microsecond, so pages
	// further apart than this are cheaper in calls of their own. It also bounds
	// how long the kernel holds its MMU lock, which a faulting vCPU waits for.
	clearWindow = 128
	// protectAtOnce is how much touched memory, bytes, may be write-protected in
	// the one call that starts the log. The guest stands still for part of it:
	// 50 ms for 8 GiB of small pages were measured.
	protectAtOnce = 64 << 20
)

// logTracker is KVM's dirty log (KVM API 4.8, 4.117, 7.13): a bit for each page,
// and write-protected pages whose first write sets it.
//
//	kind      start                            dirty           clear
//	classic   protects all, bits 0             get, protects   our own copy
//	manual    protects all, bits 0             get             KVM's bits, protects
//	set       protects nothing, bits all 1     get             KVM's bits, protects
//
// With manual protection, start picks one of the last two: see start.
type logTracker struct {
	m       *memory
	slots   []slotRange
	manual  int      // what CapManualDirtyLogProtect2 offers; 0 for a classic log
	atOnce  uint64   // protectAtOnce
	scratch []uint64 // one slot's log
	// taken is what a classic log gave away by being read, and nobody has
	// cleared yet. Words are shared between streams: atomic.
	taken   []uint64
	windows sync.Pool // of *[clearWindow]uint64
}

func newLogTracker(m *memory) (*logTracker, error) {
	offered, err := m.vm.CheckExtension(kvm.CapManualDirtyLogProtect2)
	if err != nil {
		return nil, err
	}
	t := &logTracker{m: m, slots: m.slots(), atOnce: protectAtOnce}
	if offered&kvm.DirtyLogManualProtectEnable != 0 {
		t.manual = offered & (kvm.DirtyLogManualProtectEnable | kvm.DirtyLogInitiallySet)
	}
	t.windows.New = func() any { return new([clearWindow]uint64) }
	return t, nil
}

// start switches the log on.
//
// Where little was touched, KVM protects all of it at once, for less than a
// millisecond, and bits start at 0. Where much was, the guest would stand still
// meanwhile, so bits start at 1 with nothing protected (KVM_DIRTY_LOG_INITIALLY_SET)
// and are cleared chunk by chunk, just before each is read. Memory that was
// never touched is in no round, so its bits would stay 1 and mean nothing:
// they are cleared here, in pieces.
//
// Nothing is lost by that. The order is: log on, look for touched pages, clear
// the rest, return; the engine then looks for touched pages again, and that is
// round 1. A page that the first look did not find and that was written before
// its bit was cleared is found by the second look. Written after, its bit
// is set again. Pages that the first look found keep their bits.
func (t *logTracker) start() error {
	clear(t.taken)
	touched, err := t.m.Touched()
	if err != nil {
		return err
	}
	var size uint64
	for _, e := range touched {
		size += e.Len
	}
	mode := t.manual
	if size <= t.atOnce {
		mode &^= kvm.DirtyLogInitiallySet
	}
	if t.manual != 0 {
		// It takes effect when a slot's log is switched on.
		if err := t.m.vm.EnableCap(kvm.CapManualDirtyLogProtect2, 0, uint64(mode)); err != nil {
			return err
		}
	}
	if err := t.m.setFlags(kvm.MemLogDirtyPages); err != nil {
		return err
	}
	if mode&kvm.DirtyLogInitiallySet == 0 {
		return nil
	}
	if touched, err = t.m.Touched(); err != nil {
		return err
	}
	return t.clearUntouched(touched)
}

// clearUntouched clears the bits of all memory but the touched extents.
func (t *logTracker) clearUntouched(touched []guestmem.Extent) error {
	rest := make([]uint64, t.m.words())
	for i := range rest {
		rest[i] = ^uint64(0)
	}
	for _, e := range touched {
		for gfn := e.GPA >> guestmem.PageShift; gfn < (e.GPA+e.Len)>>guestmem.PageShift; {
			n := min(64-gfn%64, (e.GPA+e.Len)>>guestmem.PageShift-gfn)
			rest[gfn/64] &^= ^uint64(0) >> (64 - n) << (gfn % 64)
			gfn += n
		}
	}
	for i, s := range t.slots {
		for first := uint64(0); first < s.pages; first += clearWindow * 64 {
			n := min(clearWindow*64, s.pages-first)
			if err := t.m.vm.ClearDirtyLog(uint32(i), first, uint32(n), rest[(s.base+first)/64:]); err != nil {
				return fmt.Errorf("clear dirty log of untouched memory: %w", err)
			}
		}
	}
	return nil
}

// stop implements tracker.
func (t *logTracker) stop() error { return t.m.setFlags(0) }

// dirty implements tracker.
func (t *logTracker) dirty(dst []uint64) error {
	if t.manual != 0 {
		return t.get(dst)
	}
	if t.taken == nil {
		t.taken = make([]uint64, t.m.words())
	}
	if err := t.get(t.taken); err != nil {
		return err
	}
	for i, w := range t.taken {
		dst[i] |= w
	}
	return nil
}

// get adds KVM's bits to dst.
func (t *logTracker) get(dst []uint64) error {
	for i, s := range t.slots {
		words := int(s.pages+63) / 64
		if cap(t.scratch) < words {
			t.scratch = make([]uint64, words)
		}
		log := t.scratch[:words]
		clear(log)
		if err := t.m.vm.GetDirtyLog(uint32(i), log); err != nil {
			return err
		}
		// Regions start at 0 and at 4 GiB: whole words of the bitmap.
		for j, w := range log {
			dst[s.base/64+uint64(j)] |= w
		}
	}
	return nil
}

// clear implements tracker. It does not allocate in steady state.
func (t *logTracker) clear(gfns []uint64) error {
	if t.manual == 0 {
		for _, gfn := range gfns {
			if gfn/64 < uint64(len(t.taken)) {
				atomic.AndUint64(&t.taken[gfn/64], ^(uint64(1) << (gfn % 64)))
			}
		}
		return nil
	}
	window := t.windows.Get().(*[clearWindow]uint64)
	defer t.windows.Put(window)
	for len(gfns) > 0 {
		n, err := t.clearNext(gfns, window)
		if err != nil {
			return err
		}
		gfns = gfns[n:]
	}
	return nil
}

// clearNext clears as many of the first pages as one call covers, in one slot,
// and says how many. window is all zeros, and is so again afterwards.
func (t *logTracker) clearNext(gfns []uint64, window *[clearWindow]uint64) (int, error) {
	for i, s := range t.slots {
		if gfns[0]-s.base >= s.pages { // or below base, and wraps
			continue
		}
		first := (gfns[0] - s.base) &^ 63
		pages := min(clearWindow*64, s.pages-first)
		n, words := 0, uint64(0)
		for n < len(gfns) && gfns[n]-s.base-first < pages {
			at := gfns[n] - s.base - first
			window[at/64] |= 1 << (at % 64)
			words = max(words, at/64+1)
			n++
		}
		err := t.m.vm.ClearDirtyLog(uint32(i), first, uint32(min(words*64, pages)), window[:words])
		clear(window[:words])
		return n, err
	}
	return 0, fmt.Errorf("clear dirty log: page %#x is not guest RAM", gfns[0])
}
