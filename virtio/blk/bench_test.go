package blk

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

// quiet is a Notifier that nobody listens to.
type quiet struct{ failed error }

func (*quiet) Used()                    {}
func (*quiet) ConfigChanged()           {}
func (q *quiet) NeedsReset(cause error) { q.failed = cause }

// benchWorker is a worker whose queue holds the same 4 KiB read over and over:
// offer makes it available again. With waits it is always the pool that does it.
func benchWorker(t testing.TB, waits bool) (w *worker, offer func()) {
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	disk, err := blockfile.Open(path, blockfile.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, disk.Close()) })
	backend := Backend(disk)
	if waits {
		backend = struct{ Backend }{disk} // no Trier: all goes through the pool
	}
	dev, err := New(Config{Backend: backend})
	require.NoError(t, err)

	mem := drivertest.Memory(t, 1<<20)
	arena := drivertest.NewArena(0x1000, 1<<20)
	ring := drivertest.NewRing(t, mem, arena, 256, true)
	header := arena.Alloc(t, 16, 16)
	var h [16]byte
	binary.LittleEndian.PutUint64(h[8:], 64)
	require.NoError(t, mem.WriteAt(h[:], header))
	head := ring.Add([]drivertest.Seg{
		{GPA: header, Len: 16},
		{GPA: arena.Alloc(t, 4096, 4096), Len: 4096, Write: true},
		{GPA: arena.Alloc(t, 1, 1), Len: 1, Write: true},
	}, true, 0)
	for i := range uint64(256) {
		require.NoError(t, mem.StoreUint16(ring.Avail+4+2*i, head))
	}
	q, err := queue.New(mem, ring.Config(true))
	require.NoError(t, err)
	idx := uint16(0)
	dev.pool = newPool(DefaultInFlight, 256)
	t.Cleanup(dev.Reset)
	return &worker{dev: dev, q: q, notify: &quiet{}, features: virtio.FeatureEventIdx, pool: dev.pool}, func() {
		idx++
		w.asleep = time.Time{} // not soon after the last: no polling
		_ = mem.StoreUint16(ring.Avail+2, idx)
	}
}

// BenchmarkRead4K is one read, from the available ring to the used ring, of a
// file in the page cache. The wake-up of the worker is not in it.
func BenchmarkRead4K(b *testing.B) {
	w, offer := benchWorker(b, false)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		offer()
		w.serve()
	}
	require.NoError(b, w.notify.(*quiet).failed)
	require.EqualValues(b, b.N, w.dev.Stats().Reads)
}

// BenchmarkReadDeferred4K is the same through the pool, one at a time.
func BenchmarkReadDeferred4K(b *testing.B) {
	w, offer := benchWorker(b, true)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		offer()
		w.serve()
		w.pool.drain()
	}
}

// TestReadAllocatesNothing holds the benchmark's figure.
func TestReadAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops items on purpose under the race detector")
	}
	for _, waits := range []bool{false, true} {
		w, offer := benchWorker(t, waits)
		require.Zero(t, testing.AllocsPerRun(200, func() {
			offer()
			w.serve()
			w.pool.drain()
		}), "waits: %t", waits)
		s := w.dev.Stats()
		require.NotZero(t, s.Reads)
		require.Equal(t, waits, s.Deferred == s.Reads)
		require.Zero(t, s.HostErrors+s.GuestErrors)
	}
}
