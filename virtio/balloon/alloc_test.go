package balloon

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

type quiet struct{ failed error }

func (*quiet) Used()                    {}
func (*quiet) ConfigChanged()           {}
func (q *quiet) NeedsReset(cause error) { q.failed = cause }

// TestInflateAllocatesNothing: nor does anything per chain.
func TestInflateAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	mem := drivertest.Memory(t, 4<<20)
	d, err := New(Config{Memory: mem})
	require.NoError(t, err)
	arena := drivertest.NewArena(0x1000, 1<<20)
	ring := drivertest.NewRing(t, mem, arena, 64, true)
	list := arena.Alloc(t, 1024, 4)
	for i := range uint64(256) {
		var b [4]byte
		binary.LittleEndian.PutUint32(b[:], uint32(1000-3*i/2))
		require.NoError(t, mem.WriteAt(b[:], list+4*i))
	}
	head := ring.Add([]drivertest.Seg{{GPA: list, Len: 1024}}, false, 0)
	for i := range uint64(64) {
		require.NoError(t, mem.StoreUint16(ring.Avail+4+2*i, head))
	}
	q, err := queue.New(mem, ring.Config(true))
	require.NoError(t, err)
	n := &quiet{}
	w := &worker{Line: virtio.Line{Queue: q, Notifier: n, Workers: &d.workers}, dev: d}
	w.answer = w.inflate
	idx := uint16(0)
	require.Zero(t, testing.AllocsPerRun(200, func() {
		idx++
		_ = mem.StoreUint16(ring.Avail+2, idx)
		w.serve()
	}))
	require.NoError(t, n.failed)
	require.NotZero(t, d.Stats().InflatedPages)
	require.Zero(t, d.Stats().HostErrors+d.Stats().StrayPages)
}
