package blk_test

import (
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/devices/state"
	"godwit/devices/state/statetest"
	"godwit/virtio/blk"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
)

// TestMoveUnderLoad moves a busy device again and again, over a handed-over
// image. Edges and kicks that are on their way get lost each time. Nothing may
// be lost for good, and nothing may be done twice.
func TestMoveUnderLoad(t *testing.T) {
	variants(t, func(t *testing.T, refused uint64) {
		const queues, moves = 2, 25
		path := filepath.Join(t.TempDir(), "disk.img")
		require.NoError(t, os.WriteFile(path, make([]byte, diskSize), 0o600))
		disk := &faulty{File: openDisk(t, path, blockfile.Options{})}
		g := boot(t, setup{config: blk.Config{Backend: disk, Queues: queues}, features: refused, size: 32})

		var wg sync.WaitGroup
		loads := make([]*load, queues)
		for q := range queues {
			loads[q] = newLoad(g, q, queues)
			wg.Go(func() { loads[q].run(300) })
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()

		writes := 0
		for range moves {
			next := &faulty{File: openDisk(t, path, blockfile.Options{NoLock: true})}
			move(t, g, disk, next, blk.Config{Backend: next, Queues: queues})
			n, _ := disk.counts()
			writes += n
			disk = next
		}
		<-done
		n, _ := disk.counts()
		writes += n
		want := 0
		for _, l := range loads {
			want += l.writes
		}
		require.Equal(t, want, writes, "each write reached the disk once")
	})
}

func move(t *testing.T, g *guest, from, to *faulty, cfg blk.Config) {
	g.cpu.Lock() // the vCPUs are paused
	defer g.cpu.Unlock()
	require.NoError(t, g.tr.Pause())
	require.NoError(t, g.tr.Pause(), "twice is no error")
	stream := statetest.Stream(t, g.tr)
	require.Equal(t, stream, statetest.Stream(t, g.tr), "a save changes nothing")
	require.NoError(t, from.Flush())
	require.NoError(t, from.Unlock())
	require.NoError(t, g.tr.Close())
	g.irq.Lose()

	require.NoError(t, to.Lock())
	g.transport(cfg)
	require.NoError(t, statetest.Restore(g.tr, stream))
	require.NoError(t, g.tr.Resume())
}

// TestFailedMove: the source goes on after Save.
func TestFailedMove(t *testing.T) {
	g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{})}})
	g.cpu.Lock()
	require.NoError(t, g.tr.Pause())
	statetest.Stream(t, g.tr)
	g.cpu.Unlock()
	// A kick while paused is answered after Resume and not before.
	head, r := g.submit(0, flush, 0)
	require.EqualValues(t, unanswered, g.bytes(r.status, 1)[0])
	require.NoError(t, g.tr.Resume())
	got, _ := g.wait(0)
	require.Equal(t, head, got)
}

func TestRestoreWantsTheSameDisk(t *testing.T) {
	g := boot(t, setup{config: blk.Config{Backend: diskFile(t, blockfile.Options{}), Serial: "a"}})
	require.NoError(t, g.tr.Pause())
	data := statetest.Data(t, g.tr)
	for want, cfg := range map[string]blk.Config{
		`give the same serial`:   {Backend: diskFile(t, blockfile.Options{}), Serial: "b"},
		"features":               {Backend: diskFile(t, blockfile.Options{ReadOnly: true}), Serial: "a"},
		"it has 1 queues, not 2": {Backend: diskFile(t, blockfile.Options{}), Serial: "a", Queues: 2},
	} {
		dev, err := blk.New(cfg)
		require.NoError(t, err)
		tr, err := mmio.New(mmio.Config{ID: "virtio/disk0", Memory: g.mem, Device: dev, Interrupt: g.irq})
		require.NoError(t, err)
		require.ErrorContains(t, tr.Restore(1, state.NewDecoder(data)), want)
		require.NoError(t, tr.Close())
	}
}

func TestState(t *testing.T) {
	cfg := blk.Config{Backend: diskFile(t, blockfile.Options{}), Serial: "golden", Queues: 2}
	g := boot(t, setup{config: cfg})
	g.tr.Write(0x100+32, []byte{0})
	for q := range 2 {
		for range q + 1 {
			require.EqualValues(t, ok, g.do(q, flush, 0))
		}
	}
	require.NoError(t, g.tr.Pause())
	g.regs.Acknowledge()
	statetest.Golden(t, g.tr, func() state.Saver {
		dev, err := blk.New(cfg)
		require.NoError(t, err)
		tr, err := mmio.New(mmio.Config{ID: "virtio/disk0", Memory: g.mem, Device: dev, Interrupt: drivertest.NewInterrupt()})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, tr.Close()) })
		return tr
	})
}

// FuzzRestore feeds a destination the state of a hostile source.
func FuzzRestore(f *testing.F) {
	golden, err := os.ReadFile("testdata/virtio_disk0-v1.state")
	require.NoError(f, err)
	f.Add(golden)
	mem := drivertest.Memory(f, 1<<20)
	disk := diskFile(f, blockfile.Options{})
	f.Fuzz(func(t *testing.T, data []byte) {
		dev, err := blk.New(blk.Config{Backend: disk, Serial: "golden", Queues: 2})
		require.NoError(t, err)
		tr, err := mmio.New(mmio.Config{ID: "virtio/disk0", Memory: mem, Device: dev, Interrupt: drivertest.NewInterrupt()})
		require.NoError(t, err)
		defer tr.Close()
		if tr.Restore(1, state.NewDecoder(data)) == nil {
			require.NoError(t, tr.Resume())
			require.NoError(t, tr.Pause())
		}
	})
}
