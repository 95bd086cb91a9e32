package queue_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/kvm/guestmem"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

const memSize = 4 << 20

// model is a driver, the queue under test and what must be in flight.
type model struct {
	t        *testing.T
	mem      *guestmem.Memory
	arena    *drivertest.Arena
	ring     *drivertest.Ring
	q        *queue.Queue
	indirect bool

	offered []request // made available, not popped
	popped  []request
	chains  []*queue.Chain // parallel to popped
	pushed  []request      // answered, not taken back

	pushes uint16
	first  bool // the next answer interrupts whatever was asked
}

type request struct {
	head    uint16
	segs    []drivertest.Seg
	written uint32
}

func newModel(t *testing.T, rt *rapid.T, mem *guestmem.Memory) *model {
	m := &model{t: t, mem: mem, arena: drivertest.NewArena(0x1000, memSize/2)}
	size := uint16(1) << rapid.IntRange(0, 5).Draw(rt, "log2 size")
	m.indirect = rapid.Bool().Draw(rt, "indirect")
	m.ring = drivertest.NewRing(t, mem, m.arena, size, rapid.Bool().Draw(rt, "event index"))
	var err error
	m.q, err = queue.New(mem, m.ring.Config(m.indirect))
	require.NoError(rt, err)
	return m
}

// offer adds a random request: readable segments, then writable ones.
func (m *model) offer(rt *rapid.T) {
	readable := rapid.IntRange(0, int(m.ring.Size)).Draw(rt, "readable")
	writable := rapid.IntRange(0, int(m.ring.Size)-readable).Draw(rt, "writable")
	if readable+writable == 0 {
		readable = 1
	}
	n := readable + writable
	indirect := m.indirect && rapid.Bool().Draw(rt, "in a table")
	direct, need := n, n
	if indirect {
		direct = rapid.IntRange(0, n-1).Draw(rt, "direct")
		need = direct + 1
	}
	if need > m.ring.Free() {
		return
	}
	segs := make([]drivertest.Seg, n)
	for i := range segs {
		segs[i] = drivertest.Seg{
			GPA:   memSize/2 + uint64(rapid.IntRange(0, memSize/2-5000).Draw(rt, "gpa")),
			Len:   uint32(rapid.IntRange(0, 5000).Draw(rt, "len")),
			Write: i >= readable,
		}
	}
	head := m.ring.Add(segs, indirect, direct)
	m.offered = append(m.offered, request{head: head, segs: segs})
}

// pop checks that the device sees the oldest request, segment by segment.
func (m *model) pop(rt *rapid.T) {
	c, err := m.q.Pop()
	require.NoError(rt, err)
	if len(m.offered) == 0 {
		require.Nil(rt, c)
		return
	}
	require.NotNil(rt, c)
	r := m.offered[0]
	m.offered = m.offered[1:]
	require.Equal(rt, r.head, c.Head())
	var want [2][][]byte
	for _, s := range r.segs {
		if s.Len == 0 {
			continue
		}
		b, err := m.mem.View(s.GPA, uint64(s.Len))
		require.NoError(rt, err)
		k := 0
		if s.Write {
			k = 1
		}
		want[k] = append(want[k], b)
	}
	requireSame(rt, want[0], c.Readable())
	requireSame(rt, want[1], c.Writable())
	m.popped = append(m.popped, r)
	m.chains = append(m.chains, c)
}

// requireSame compares places in memory, not contents.
func requireSame(rt *rapid.T, want, got [][]byte) {
	require.Len(rt, got, len(want))
	for i := range want {
		require.Len(rt, got[i], len(want[i]))
		require.Same(rt, &want[i][0], &got[i][0])
	}
}

// push answers any outstanding request and checks marks and notification.
func (m *model) push(rt *rapid.T) {
	if len(m.popped) == 0 {
		return
	}
	i := rapid.IntRange(0, len(m.popped)-1).Draw(rt, "which")
	r, c := m.popped[i], m.chains[i]
	m.popped = append(m.popped[:i:i], m.popped[i+1:]...)
	m.chains = append(m.chains[:i:i], m.chains[i+1:]...)
	r.written = uint32(rapid.Int64Range(0, queue.Len(c.Writable())).Draw(rt, "written"))

	dirty := make([]uint64, (m.mem.Frames()+63)/64)
	m.mem.DrainDirty(dirty)
	clear(dirty)
	event := m.load(m.ring.Avail + 4 + 2*uint64(m.ring.Size))
	flags := m.load(m.ring.Avail)
	notify, err := m.q.Push(c, r.written)
	require.NoError(rt, err)
	want := flags == 0
	if m.ring.EventIdx {
		want = event == m.pushes
	}
	require.Equal(rt, want || m.first, notify)
	m.first = false
	m.pushes++
	m.mem.DrainDirty(dirty)
	m.requireMarks(rt, r, dirty)
	m.pushed = append(m.pushed, r)
}

// requireMarks wants each page written to be marked, and no other but the ring's.
func (m *model) requireMarks(rt *rapid.T, r request, dirty []uint64) {
	want := map[uint64]bool{}
	left := uint64(r.written)
	for _, s := range r.segs {
		n := min(uint64(s.Len), left)
		if !s.Write || n == 0 {
			continue
		}
		left -= n
		for p := s.GPA / 4096; p <= (s.GPA+n-1)/4096; p++ {
			want[p] = true
		}
	}
	for p := range m.mem.Frames() {
		got := dirty[p/64]>>(p%64)&1 != 0
		if p < memSize/2/4096 {
			continue // rings
		}
		require.Equal(rt, want[p], got, "page %d", p)
	}
}

func (m *model) take(rt *rapid.T) {
	head, written, ok := m.ring.Take()
	require.Equal(rt, len(m.pushed) > 0, ok)
	if !ok {
		return
	}
	require.Equal(rt, m.pushed[0].head, head)
	require.Equal(rt, m.pushed[0].written, written)
	m.pushed = m.pushed[1:]
}

func (m *model) load(gpa uint64) uint16 {
	v, err := m.mem.LoadUint16(gpa)
	require.NoError(m.t, err)
	return v
}

// move replaces the queue by a new one that goes on where it stands.
func (m *model) move(rt *rapid.T) {
	for len(m.popped) > 0 {
		m.push(rt)
	}
	require.Zero(rt, m.q.Outstanding())
	cfg := m.ring.Config(m.indirect)
	cfg.Next = m.q.Next()
	var err error
	m.q, err = queue.New(m.mem, cfg)
	require.NoError(rt, err)
	m.first = cfg.Next != 0
}

// TestAgainstModel runs a correct driver against the queue.
func TestAgainstModel(t *testing.T) {
	mem := drivertest.Memory(t, memSize)
	zero := make([]byte, memSize/2)
	rapid.Check(t, func(rt *rapid.T) {
		require.NoError(rt, mem.WriteAt(zero, 0))
		m := newModel(t, rt, mem)
		rt.Repeat(map[string]func(*rapid.T){
			"offer": m.offer,
			"pop":   m.pop,
			"push":  m.push,
			"take":  m.take,
			"enable interrupt": func(rt *rapid.T) {
				require.Equal(rt, len(m.pushed) > 0, m.ring.EnableInterrupt())
			},
			"disable interrupt": func(*rapid.T) { m.ring.DisableInterrupt() },
			"enable kicks": func(rt *rapid.T) {
				more, err := m.q.EnableNotification()
				require.NoError(rt, err)
				require.Equal(rt, len(m.offered) > 0, more)
				if !more {
					m.ring.WantsKick()
					m.offer(rt)
					require.Equal(rt, len(m.offered) > 0, m.ring.WantsKick(), "the device sleeps and is not woken")
				}
			},
			"disable kicks": func(rt *rapid.T) {
				require.NoError(rt, m.q.DisableNotification())
				if !m.ring.EventIdx {
					m.ring.WantsKick()
					m.offer(rt)
					require.False(rt, m.ring.WantsKick())
				}
			},
			"move": m.move,
		})
	})
}

// TestChainHelpers walks Take and TakeLast over every split of a small request.
func TestChainHelpers(t *testing.T) {
	mem := drivertest.Memory(t, 1<<20)
	a := drivertest.NewArena(0x1000, 1<<20)
	ring := drivertest.NewRing(t, mem, a, 16, false)
	q, err := queue.New(mem, ring.Config(false))
	require.NoError(t, err)
	data := []byte("0123456789")
	for split := range len(data) + 1 {
		in, out := a.Alloc(t, 16, 1), a.Alloc(t, 16, 1)
		require.NoError(t, mem.WriteAt(data, in))
		ring.Add([]drivertest.Seg{
			{GPA: in, Len: uint32(split)}, {GPA: in + uint64(split), Len: uint32(len(data) - split)},
			{GPA: out, Len: uint32(split), Write: true}, {GPA: out + uint64(split), Len: uint32(len(data) - split), Write: true},
		}, false, 0)
		c, err := q.Pop()
		require.NoError(t, err)
		var p [4]byte
		require.True(t, c.Take(p[:]))
		require.Equal(t, "0123", string(p[:]))
		require.Equal(t, "456789", string(bytes.Join(c.Readable(), nil)))
		require.False(t, c.Take(make([]byte, 7)))
		require.Equal(t, "456789", string(bytes.Join(c.Readable(), nil)))
		for i := range data {
			b := c.TakeLast()
			require.Len(t, b, 1)
			b[0] = data[i]
		}
		require.Nil(t, c.TakeLast())
		require.Empty(t, c.Writable())
		got := make([]byte, len(data))
		require.NoError(t, mem.ReadAt(got, out))
		require.Equal(t, "9876543210", string(got))
		_, err = q.Push(c, uint32(len(data)))
		require.NoError(t, err)
		_, _, ok := ring.Take()
		require.True(t, ok)
	}
}
