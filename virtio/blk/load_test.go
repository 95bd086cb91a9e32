package blk_test

import (
	"bytes"
	"math/rand/v2"

	"github.com/stretchr/testify/require"

	"godwit/virtio/internal/drivertest"
)

// load keeps several writes and reads of one queue in flight, on a part of the
// disk of its own, and knows what every read must give.
type load struct {
	g     *guest
	q     int
	r     *rand.Rand
	slots []slot
	heads map[uint16]int

	writes int
}

// slot is a run of 4 KiB on the disk with one request at a time.
type slot struct {
	sector  uint64
	buf     uint64
	req     request
	version uint64 // what the disk holds; 0 is zeroes
	reading bool
}

const slotSize = 4096

func newLoad(g *guest, q, of int) *load {
	l := &load{g: g, q: q, r: rand.New(rand.NewPCG(uint64(q), 7)), heads: map[uint16]int{}}
	for i := range 6 {
		l.slots = append(l.slots, slot{
			sector: uint64((i*of + q) * slotSize / 512),
			buf:    g.arena.Alloc(g.t, slotSize, 4096),
			req:    request{header: g.arena.Alloc(g.t, 16, 8), status: g.arena.Alloc(g.t, 1, 1)},
		})
	}
	return l
}

func (l *load) content(s *slot) []byte {
	if s.version == 0 {
		return make([]byte, slotSize)
	}
	return pattern(s.sector<<32|s.version, slotSize)
}

// run does rounds answers, then waits for the rest.
func (l *load) run(rounds int) {
	for i := range l.slots {
		l.start(i)
	}
	for range rounds {
		l.start(l.finish())
	}
	for len(l.heads) > 0 {
		l.finish()
	}
}

func (l *load) start(i int) {
	s, g := &l.slots[i], l.g
	g.cpu.RLock()
	defer g.cpu.RUnlock()
	require.NoError(g.t, g.mem.WriteAt([]byte{unanswered}, s.req.status))
	s.reading = l.r.IntN(2) == 0
	if s.reading {
		require.NoError(g.t, g.mem.WriteAt(bytes.Repeat([]byte{0xcc}, slotSize), s.buf))
		g.writeHeader(s.req.header, in, s.sector)
	} else {
		s.version++
		l.writes++
		require.NoError(g.t, g.mem.WriteAt(l.content(s), s.buf))
		g.writeHeader(s.req.header, out, s.sector)
	}
	head := g.send(l.q, s.req, []drivertest.Seg{
		{GPA: s.buf, Len: 1024, Write: s.reading}, {GPA: s.buf + 1024, Len: slotSize - 1024, Write: s.reading},
	})
	l.heads[head] = i
}

func (l *load) finish() int {
	g := l.g
	head, _ := g.wait(l.q)
	g.cpu.RLock()
	defer g.cpu.RUnlock()
	i, known := l.heads[head]
	require.True(g.t, known)
	delete(l.heads, head)
	s := &l.slots[i]
	require.EqualValues(g.t, ok, g.bytes(s.req.status, 1)[0])
	if s.reading {
		require.True(g.t, bytes.Equal(l.content(s), g.bytes(s.buf, slotSize)), "queue %d sector %d", l.q, s.sector)
	}
	return i
}
