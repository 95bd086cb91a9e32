package blk

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

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
// offer makes it available again.
func benchWorker(t testing.TB) (w *worker, offer func()) {
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	disk, err := blockfile.Open(path, blockfile.Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, disk.Close()) })
	dev, err := New(Config{Backend: disk})
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
	return &worker{dev: dev, q: q, notify: &quiet{}, features: virtio.FeatureEventIdx}, func() {
		idx++
		_ = mem.StoreUint16(ring.Avail+2, idx)
	}
}

// BenchmarkRead4K is one read, from the available ring to the used ring, of a
// file in the page cache. The wake-up of the worker is not in it.
func BenchmarkRead4K(b *testing.B) {
	w, offer := benchWorker(b)
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		offer()
		w.serve()
	}
	require.NoError(b, w.notify.(*quiet).failed)
	require.EqualValues(b, b.N, w.dev.Stats().Reads)
}

// TestReadAllocatesNothing holds the benchmark's figure.
func TestReadAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops items on purpose under the race detector")
	}
	w, offer := benchWorker(t)
	require.Zero(t, testing.AllocsPerRun(200, func() {
		offer()
		w.serve()
	}))
	require.NotZero(t, w.dev.Stats().Reads)
	require.Zero(t, w.dev.Stats().HostErrors+w.dev.Stats().GuestErrors)
}
