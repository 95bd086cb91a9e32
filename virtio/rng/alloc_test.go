package rng

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

// quiet is a Notifier that nobody listens to.
type quiet struct{ failed error }

func (*quiet) Used()                    {}
func (*quiet) ConfigChanged()           {}
func (q *quiet) NeedsReset(cause error) { q.failed = cause }

// TestFillAllocatesNothing serves the same buffer over and over.
func TestFillAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	dev, err := New(Config{Limit: Limit{Size: 1 << 30, Refill: time.Second}})
	require.NoError(t, err)
	mem := drivertest.Memory(t, 1<<20)
	arena := drivertest.NewArena(0x1000, 1<<20)
	ring := drivertest.NewRing(t, mem, arena, 16, true)
	head := ring.Add([]drivertest.Seg{{GPA: arena.Alloc(t, 64, 64), Len: 64, Write: true}}, true, 0)
	for i := range uint64(16) {
		require.NoError(t, mem.StoreUint16(ring.Avail+4+2*i, head))
	}
	q, err := queue.New(mem, ring.Config(true))
	require.NoError(t, err)
	notify := &quiet{}
	w := &worker{Line: virtio.Line{Queue: q, Notifier: notify, Workers: &dev.workers}, dev: dev}
	idx := uint16(0)
	require.Zero(t, testing.AllocsPerRun(200, func() {
		idx++
		_ = mem.StoreUint16(ring.Avail+2, idx)
		w.serve()
	}))
	require.NoError(t, notify.failed)
	require.EqualValues(t, 201, dev.Stats().Requests)
}
