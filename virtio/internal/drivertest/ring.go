package drivertest

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/virtio/queue"
)

// Flags of a descriptor.
const (
	Next     = 1
	Write    = 2
	Indirect = 4
)

// Seg is one buffer of a request.
type Seg struct {
	GPA   uint64
	Len   uint32
	Write bool
}

// Ring is the driver's side of a split virtqueue. It is for one goroutine.
type Ring struct {
	t   testing.TB
	mem *guestmem.Memory

	Size              uint16
	Desc, Avail, Used uint64
	EventIdx          bool

	avail, used uint16 // published by us, taken back by us
	kicked      uint16 // avail at the last decision about a kick
	free        []uint16
	chains      map[uint16][]uint16 // the descriptors behind each head
	tables      []uint64            // an indirect table per head, 0 until used
	arena       *Arena
}

// NewRing lays an empty ring out in memory.
func NewRing(t testing.TB, mem *guestmem.Memory, a *Arena, size uint16, eventIdx bool) *Ring {
	t.Helper()
	n := uint64(size)
	r := &Ring{
		t: t, mem: mem, arena: a, Size: size, EventIdx: eventIdx,
		Desc: a.Alloc(t, 16*n, 16), Avail: a.Alloc(t, 6+2*n, 2), Used: a.Alloc(t, 6+8*n, 4),
		chains: map[uint16][]uint16{}, tables: make([]uint64, size),
	}
	for i := range size {
		r.free = append(r.free, size-1-i)
	}
	return r
}

// Config is what the device must be told.
func (r *Ring) Config(indirect bool) queue.Config {
	return queue.Config{Size: r.Size, Desc: r.Desc, Avail: r.Avail, Used: r.Used, EventIdx: r.EventIdx, Indirect: indirect}
}

// Free is the number of descriptors that are not in use.
func (r *Ring) Free() int { return len(r.free) }

// InFlight is the number of requests not taken back.
func (r *Ring) InFlight() int { return len(r.chains) }

// PutDescriptor writes entry i of a table.
func (r *Ring) PutDescriptor(table uint64, i uint16, gpa uint64, n uint32, flags, next uint16) {
	var b [16]byte
	binary.LittleEndian.PutUint64(b[0:], gpa)
	binary.LittleEndian.PutUint32(b[8:], n)
	binary.LittleEndian.PutUint16(b[12:], flags)
	binary.LittleEndian.PutUint16(b[14:], next)
	require.NoError(r.t, r.mem.WriteAt(b[:], table+16*uint64(i)))
}

// Add makes a request available and returns its head. With indirect its segments
// from the number direct on stand in an indirect table.
func (r *Ring) Add(segs []Seg, indirect bool, direct int) uint16 {
	if !indirect {
		direct = len(segs)
	}
	need := direct
	if indirect {
		need++
	}
	require.LessOrEqual(r.t, need, len(r.free), "no free descriptors")
	ids := make([]uint16, need)
	for i := range ids {
		ids[i] = r.free[len(r.free)-1]
		r.free = r.free[:len(r.free)-1]
	}
	for i, s := range segs[:direct] {
		r.putSeg(r.Desc, ids[i], s, ids[min(i+1, need-1)], i+1 < need)
	}
	if indirect {
		head := ids[0]
		if r.tables[head] == 0 {
			r.tables[head] = r.arena.Alloc(r.t, 16*uint64(r.Size), 16)
		}
		rest := segs[direct:]
		for i, s := range rest {
			r.putSeg(r.tables[head], uint16(i), s, uint16(i+1), i+1 < len(rest))
		}
		r.PutDescriptor(r.Desc, ids[direct], r.tables[head], uint32(16*len(rest)), Indirect, 0)
	}
	r.chains[ids[0]] = ids
	r.Offer(ids[0])
	return ids[0]
}

func (r *Ring) putSeg(table uint64, i uint16, s Seg, next uint16, more bool) {
	var flags uint16
	if s.Write {
		flags |= Write
	}
	if more {
		flags |= Next
	}
	r.PutDescriptor(table, i, s.GPA, s.Len, flags, next)
}

// Offer publishes a head, whatever it is.
func (r *Ring) Offer(head uint16) {
	require.NoError(r.t, r.mem.StoreUint16(r.Avail+4+2*uint64(r.avail%r.Size), head))
	r.avail++
	require.NoError(r.t, r.mem.StoreUint16(r.Avail+2, r.avail))
}

// WantsKick says whether the device asked to be told of what was offered since
// the last call.
func (r *Ring) WantsKick() bool {
	guestmem.Fence()
	old := r.kicked
	r.kicked = r.avail
	if old == r.avail {
		return false
	}
	if !r.EventIdx {
		return r.load(r.Used)&1 == 0
	}
	event := r.load(r.Used + 4 + 8*uint64(r.Size))
	return r.avail-event-1 < r.avail-old // virtio 1.2, 2.7.10.1
}

// Take gives the next answer, if there is one.
func (r *Ring) Take() (head uint16, written uint32, ok bool) {
	if r.load(r.Used+2) == r.used {
		return 0, 0, false
	}
	var b [8]byte
	require.NoError(r.t, r.mem.ReadAt(b[:], r.Used+4+8*uint64(r.used%r.Size)))
	id := binary.LittleEndian.Uint32(b[:])
	require.Less(r.t, id, uint32(r.Size))
	head = uint16(id)
	ids, known := r.chains[head]
	require.True(r.t, known, "head %d was answered, but is not in flight", head)
	delete(r.chains, head)
	r.free = append(r.free, ids...)
	r.used++
	return head, binary.LittleEndian.Uint32(b[4:]), true
}

// EnableInterrupt asks for one at the next answer. It reports true when there is
// an answer already.
func (r *Ring) EnableInterrupt() bool {
	if r.EventIdx {
		require.NoError(r.t, r.mem.StoreUint16(r.Avail+4+2*uint64(r.Size), r.used))
	} else {
		require.NoError(r.t, r.mem.StoreUint16(r.Avail, 0))
	}
	guestmem.Fence()
	return r.load(r.Used+2) != r.used
}

// DisableInterrupt asks for none.
func (r *Ring) DisableInterrupt() {
	if !r.EventIdx {
		require.NoError(r.t, r.mem.StoreUint16(r.Avail, 1))
	}
}

// WaitUsed returns an answer, asleep until the interrupt when there is none.
func (r *Ring) WaitUsed(irq *Interrupt) (head uint16, written uint32) {
	for {
		if head, written, ok := r.Take(); ok {
			return head, written
		}
		if !r.EnableInterrupt() {
			irq.Wait(r.t)
		}
		r.DisableInterrupt()
	}
}

func (r *Ring) load(gpa uint64) uint16 {
	v, err := r.mem.LoadUint16(gpa)
	require.NoError(r.t, err)
	return v
}
