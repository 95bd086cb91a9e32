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
	staged  []request      // answered, not published
	pushed  []request      // answered, not taken back

	next   int // popped and not put back
	pushes uint16
	first  bool // the next answer interrupts whatever was asked
}

type request struct {
	head    uint16
	segs    []drivertest.Seg
	written uint32
	taken   int // how many were popped before it
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
	r.taken = m.next
	m.next++
	m.offered = m.offered[1:]
	require.Equal(rt, r.head, c.Head())
	if m.q.Full() {
		require.Zero(rt, m.ring.Free())
	}
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

// push answers any outstanding request, with what is staged.
func (m *model) push(rt *rapid.T) {
	if len(m.popped) == 0 {
		return
	}
	m.answer(rt, func(c *queue.Chain, written uint32) {
		m.publish(rt, func() (bool, error) { return m.q.Push(c, written) })
	})
}

// stage answers any outstanding request behind the driver's back.
func (m *model) stage(rt *rapid.T) {
	if len(m.popped) == 0 {
		return
	}
	m.answer(rt, func(c *queue.Chain, written uint32) {
		index := m.load(m.ring.Used + 2)
		require.NoError(rt, m.q.Stage(c, written))
		require.Equal(rt, index, m.load(m.ring.Used+2))
	})
}

// answer picks a request, gives it to do and checks the marks.
func (m *model) answer(rt *rapid.T, do func(*queue.Chain, uint32)) {
	i := rapid.IntRange(0, len(m.popped)-1).Draw(rt, "which")
	r, c := m.popped[i], m.chains[i]
	m.popped = append(m.popped[:i:i], m.popped[i+1:]...)
	m.chains = append(m.chains[:i:i], m.chains[i+1:]...)
	r.written = uint32(rapid.Int64Range(0, queue.Len(c.Writable())).Draw(rt, "written"))
	m.staged = append(m.staged, r)

	m.drain()
	do(c, r.written)
	m.requireMarks(rt, r, m.drain())
}

// publish checks whether do tells of an interrupt exactly when one is wanted.
func (m *model) publish(rt *rapid.T, do func() (bool, error)) {
	n := uint16(len(m.staged))
	event := m.load(m.ring.Avail + 4 + 2*uint64(m.ring.Size))
	want := m.load(m.ring.Avail) == 0
	if m.ring.EventIdx {
		want = event-m.pushes < n
	}
	notify, err := do()
	require.NoError(rt, err)
	require.Equal(rt, n > 0 && (want || m.first), notify)
	if n > 0 {
		m.first = false
	}
	m.pushes += n
	m.pushed = append(m.pushed, m.staged...)
	m.staged = nil
}

// putBack undoes the latest pop, if that chain is still out.
func (m *model) putBack(rt *rapid.T) {
	last := len(m.chains) - 1
	if last < 0 || m.popped[last].taken != m.next-1 {
		return
	}
	c, r := m.chains[last], m.popped[last]
	m.drain()
	all := rapid.Bool().Draw(rt, "mark all")
	if all {
		c.MarkAll()
		for _, b := range c.Writable() {
			r.written += uint32(len(b))
		}
	}
	m.q.PutBack(c)
	m.requireMarks(rt, r, m.drain())
	r.written = 0
	m.next--
	m.chains, m.popped = m.chains[:last], m.popped[:last]
	m.offered = append([]request{r}, m.offered...)
}

// drain is the pages marked since the last drain.
func (m *model) drain() []uint64 {
	dirty := make([]uint64, (m.mem.Frames()+63)/64)
	m.mem.DrainDirty(dirty)
	return dirty
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
	m.publish(rt, m.q.Publish)
	require.Zero(rt, m.q.Outstanding())
	cfg := m.ring.Config(m.indirect)
	cfg.Restored, cfg.Next = true, m.q.Next()
	var err error
	m.q, err = queue.New(m.mem, cfg)
	require.NoError(rt, err)
	m.first = true // even if Next is 0 again
}

// TestAgainstModel runs a correct driver against the queue.
func TestAgainstModel(t *testing.T) {
	mem := drivertest.Memory(t, memSize)
	zero := make([]byte, memSize/2)
	rapid.Check(t, func(rt *rapid.T) {
		require.NoError(rt, mem.WriteAt(zero, 0))
		m := newModel(t, rt, mem)
		rt.Repeat(map[string]func(*rapid.T){
			"offer":    m.offer,
			"pop":      m.pop,
			"push":     m.push,
			"stage":    m.stage,
			"publish":  func(rt *rapid.T) { m.publish(rt, m.q.Publish) },
			"put back": m.putBack,
			"ready": func(rt *rapid.T) {
				ready, err := m.q.Ready()
				require.NoError(rt, err)
				require.Equal(rt, len(m.offered) > 0, ready)
				n, err := m.q.Available()
				require.NoError(rt, err)
				require.EqualValues(rt, len(m.offered), n)
			},
			"take": m.take,
			"full": func(rt *rapid.T) {
				all := m.ring.Free() == 0 && len(m.offered)+len(m.staged)+len(m.pushed) == 0
				require.Equal(rt, all, m.q.Full())
			},
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
			"enable kicks beyond": func(rt *rapid.T) {
				ready := rapid.IntRange(0, len(m.offered)).Draw(rt, "ready")
				now, err := m.q.NotifyBeyond(uint16(ready))
				require.NoError(rt, err)
				require.EqualValues(rt, len(m.offered), now)
				if int(now) == ready {
					m.ring.WantsKick()
					m.offer(rt)
					require.Equal(rt, len(m.offered) > ready, m.ring.WantsKick(), "the device sleeps and is not woken")
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
