package guestmem

import "sync/atomic"

// MarkDirty records that this process has written the n bytes at gpa. Call it
// after the bytes have landed. Parts of the range that are not RAM are ignored.
func (m *Memory) MarkDirty(gpa, n uint64) {
	end := gpa + n
	if end < gpa {
		end = ^uint64(0)
	}
	for _, e := range layout(m.size) {
		lo, hi := max(gpa, e.GPA), min(end, e.GPA+e.Len)
		if lo < hi {
			m.mark(lo, hi-lo)
		}
	}
}

// mark sets the bits of a range that is known to be RAM.
//
// It always does the atomic OR, even where the bit is set already. Looking first
// and skipping would lose pages: a load may be done before earlier stores have
// left this CPU's store buffer. So the bytes could still be on their way when the
// load sees the old mark; a drain clears the mark, its owner sends the old bytes,
// then the new bytes land with no mark left. Only a full barrier between bytes
// and load prevents that, and costs what the OR costs (on x86 the OR is one).
//
// With the OR, the bytes are visible before the bit is. A drain that takes the
// bit therefore reads the new bytes afterwards; one that came too early leaves
// the bit for the next.
func (m *Memory) mark(gpa, n uint64) {
	if n == 0 {
		return
	}
	first, last := gpa>>PageShift, (gpa+n-1)>>PageShift
	for w := first / 64; w <= last/64; w++ {
		bits := ^uint64(0)
		if w == first/64 {
			bits <<= first % 64
		}
		if w == last/64 {
			bits &= ^uint64(0) >> (63 - last%64)
		}
		atomic.OrUint64(&m.dirty[w], bits)
	}
}

// DrainDirty adds the pages that this process has written to dst and forgets
// them. Bit gfn%64 of word gfn/64 stands for a page; dst should have
// (Frames()+63)/64 words, and pages beyond a shorter dst are kept for later. The
// caller owns dst, Memory does not keep it.
//
// A write that returned before DrainDirty began is in dst. One that runs at the
// same time is in this or in a later drain. Read the pages after draining.
func (m *Memory) DrainDirty(dst []uint64) {
	n := min(len(dst), len(m.dirty))
	for i := range m.dirty[:n] {
		// Most words are zero, and a load leaves their cache line shared. Skipping
		// is safe on this side: a mark that the load misses stays.
		if atomic.LoadUint64(&m.dirty[i]) != 0 {
			dst[i] |= atomic.SwapUint64(&m.dirty[i], 0)
		}
	}
}

// PeekDirty adds the pages that this process has written to dst, as DrainDirty
// does, and forgets nothing: ClearDirty does that, page by page.
//
// A write that returned before PeekDirty began, and whose page was not cleared
// since, is in dst. One that runs at the same time is in this or in a later
// peek.
func (m *Memory) PeekDirty(dst []uint64) {
	n := min(len(dst), len(m.dirty))
	for i := range m.dirty[:n] {
		dst[i] |= atomic.LoadUint64(&m.dirty[i])
	}
}

// ClearDirty forgets that this process has written the pages gfns; those that
// are not RAM are ignored. Neighbours in gfns that share a word of 64 pages cost
// one atomic access together, so ascending order is the fast one. Any number of
// goroutines may call it at a time. It does not allocate or keep gfns.
//
// Clear first, read the pages afterwards. The AND takes away only marks whose
// bytes landed before it, since mark sets them in that order; and, being an
// atomic access like the mark, it is done before any read that follows it. So the
// read sees the bytes of every mark that was taken. A write whose mark comes
// later keeps that mark, whether or not the read saw its bytes. A clear after the
// read would take marks of bytes that nobody has read.
func (m *Memory) ClearDirty(gfns []uint64) {
	for i := 0; i < len(gfns); {
		w, bits := gfns[i]/64, uint64(0)
		for ; i < len(gfns) && gfns[i]/64 == w; i++ {
			bits |= 1 << (gfns[i] % 64)
		}
		// A look first is safe on this side too: a mark that the load misses stays.
		if w < uint64(len(m.dirty)) && atomic.LoadUint64(&m.dirty[w])&bits != 0 {
			atomic.AndUint64(&m.dirty[w], ^bits)
		}
	}
}
