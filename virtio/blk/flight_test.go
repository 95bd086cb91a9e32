package blk_test

import (
	"math/rand/v2"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/devices/bus"
	"godwit/virtio/blk"
	"godwit/virtio/internal/drivertest"
)

// gate is a disk that holds every read until it is opened for that sector.
type gate struct {
	blockfile.File
	mu   sync.Mutex
	cond sync.Cond
	in   int            // reads that wait
	most int            // the most at once
	open map[int64]bool // by sector
	all  bool
}

func newGate(f blockfile.File) *gate {
	g := &gate{File: f, open: map[int64]bool{}}
	g.cond.L = &g.mu
	return g
}

func (g *gate) Preadv(bufs [][]byte, off int64) (int, error) {
	g.mu.Lock()
	g.in++
	g.most = max(g.most, g.in)
	g.cond.Broadcast()
	for !g.all && !g.open[off/512] {
		g.cond.Wait()
	}
	g.in--
	g.mu.Unlock()
	return g.File.Preadv(bufs, off)
}

// waitFor returns when n reads wait.
func (g *gate) waitFor(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for g.in != n {
		g.cond.Wait()
	}
}

func (g *gate) release(sector int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open[sector] = true
	g.all = g.all || sector < 0
	g.cond.Broadcast()
}

// TestManyInFlight: one queue has 48 reads inside a disk that answers none of
// them, answers come in the order in which the disk gives them, and what needs no
// waiting overtakes them all.
func TestManyInFlight(t *testing.T) {
	variants(t, func(t *testing.T, refused uint64) {
		const depth = 48
		disk := newGate(diskFile(t, blockfile.Options{}))
		g := boot(t, setup{config: blk.Config{Backend: disk}, features: refused, size: 256})
		sectors := map[uint16]int64{}
		for i := range int64(depth) {
			head, _ := g.submit(0, in, uint64(i), readSeg(g.arena.Alloc(t, 512, 16), 512))
			sectors[head] = i
		}
		disk.waitFor(depth)
		id := g.arena.Alloc(t, 20, 1)
		require.EqualValues(t, ok, g.do(0, getID, 0, readSeg(id, 20)))
		for _, i := range rand.New(rand.NewPCG(1, 2)).Perm(depth) {
			disk.release(int64(i))
			head, written := g.wait(0)
			require.EqualValues(t, i, sectors[head])
			require.EqualValues(t, 513, written)
		}
		require.EqualValues(t, depth, g.dev.Stats().Reads)
		require.EqualValues(t, depth, g.dev.Stats().Deferred)
	})
}

// TestInFlightIsBounded: what is beyond the bound waits its turn.
func TestInFlightIsBounded(t *testing.T) {
	disk := newGate(diskFile(t, blockfile.Options{}))
	g := boot(t, setup{config: blk.Config{Backend: disk, InFlight: 3, Queues: 2}, size: 256})
	for i := range uint64(20) {
		g.submit(int(i%2), in, i, readSeg(g.arena.Alloc(t, 512, 16), 512))
	}
	disk.waitFor(3)
	disk.release(-1)
	for i := range 20 {
		g.wait(i % 2)
	}
	disk.mu.Lock()
	defer disk.mu.Unlock()
	require.Equal(t, 3, disk.most)
}

// TestPauseWaitsForTheDisk: Pause comes back after the answers, Reset too.
func TestPauseWaitsForTheDisk(t *testing.T) {
	for name, stop := range map[string]func(*guest){
		"pause": func(g *guest) { require.NoError(g.t, g.tr.Pause()) },
		"reset": func(g *guest) { g.regs.Set(0x70, 0) },
		"queue": func(g *guest) { g.regs.Set(0x30, 0); g.regs.Set(0x44, 0) },
	} {
		t.Run(name, func(t *testing.T) {
			const depth = 40
			disk := newGate(diskFile(t, blockfile.Options{}))
			g := boot(t, setup{config: blk.Config{Backend: disk}, size: 256})
			for i := range uint64(depth) {
				g.submit(0, in, i, readSeg(g.arena.Alloc(t, 512, 16), 512))
			}
			disk.waitFor(depth)
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				stop(g)
			}()
			for i := range int64(depth) {
				select {
				case <-stopped:
					require.FailNow(t, "stopped with reads under way")
				default:
				}
				disk.release(i)
			}
			<-stopped
			used, err := g.mem.LoadUint16(g.rings[0].Used + 2)
			require.NoError(t, err)
			require.EqualValues(t, depth, used)
			disk.waitFor(0)
		})
	}
}

// slowWire is an interrupt line that takes its time.
type slowWire struct {
	bus.Interrupt
	rung, open chan struct{}
}

func (s *slowWire) Trigger() error {
	s.rung <- struct{}{}
	<-s.open
	return s.Interrupt.Trigger()
}

// TestPauseWaitsForTheInterrupt: what a pause is for is saved right after it, so
// the interrupt of the last answer must be out, or no guest ever gets it.
func TestPauseWaitsForTheInterrupt(t *testing.T) {
	wire := &slowWire{rung: make(chan struct{}, 1), open: make(chan struct{})}
	disk := newGate(diskFile(t, blockfile.Options{}))
	g := boot(t, setup{config: blk.Config{Backend: disk}, wire: func(irq *drivertest.Interrupt) bus.Interrupt {
		wire.Interrupt = irq
		return wire
	}})
	g.submit(0, in, 0, readSeg(g.arena.Alloc(t, 512, 16), 512))
	disk.waitFor(1)
	disk.release(-1)
	<-wire.rung
	var once sync.Once
	answer := func() { once.Do(func() { close(wire.open) }) }
	t.Cleanup(answer)
	paused := make(chan struct{})
	go func() {
		defer close(paused)
		require.NoError(t, g.tr.Pause())
	}()
	select {
	case <-paused:
		require.FailNow(t, "paused with an interrupt under way")
	case <-time.After(50 * time.Millisecond):
	}
	answer()
	<-paused
}

// fickle is a Trier that cannot always say, and has done half of it then.
type fickle struct {
	*faulty
	mu sync.Mutex
	r  *rand.Rand
}

func newFickle(f blockfile.File) *fickle {
	return &fickle{faulty: &faulty{File: f}, r: rand.New(rand.NewPCG(5, 5))}
}

func (f *fickle) choose() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.r.IntN(3)
}

func (f *fickle) try(bufs [][]byte, off int64, do func([][]byte, int64) (int, error)) (bool, error) {
	switch f.choose() {
	case 0:
		return false, nil
	case 1:
		n := len(bufs[0]) &^ 511
		_, err := do([][]byte{bufs[0][:n]}, off)
		return err != nil, err
	}
	_, err := do(bufs, off)
	return true, err
}

func (f *fickle) TryPreadv(bufs [][]byte, off int64) (bool, error) {
	return f.try(bufs, off, f.File.Preadv)
}

func (f *fickle) TryPwritev(bufs [][]byte, off int64) (bool, error) {
	return f.try(bufs, off, f.File.Pwritev)
}

// TestTrying mixes answers at once with answers later, on several queues, and
// moves meanwhile.
func TestTrying(t *testing.T) {
	variants(t, func(t *testing.T, refused uint64) {
		const queues = 2
		path := filepath.Join(t.TempDir(), "disk.img")
		require.NoError(t, writeZeroFile(path))
		disk := newFickle(openDisk(t, path, blockfile.Options{}))
		g := boot(t, setup{config: blk.Config{Backend: disk, Queues: queues}, features: refused, size: 32})
		var wg sync.WaitGroup
		for q := range queues {
			wg.Go(func() { newLoad(g, q, queues).run(300) })
		}
		for range 5 {
			next := newFickle(openDisk(t, path, blockfile.Options{NoLock: true}))
			move(t, g, disk.faulty, next.faulty, blk.Config{Backend: next, Queues: queues})
			disk = next
		}
		wg.Wait()
		require.NotZero(t, g.dev.Stats().Reads)
	})
}

var _ blk.Trier = (*fickle)(nil)

// TestFailedTry: an error of a try is the request's.
func TestFailedTry(t *testing.T) {
	disk := &hopeless{diskFile(t, blockfile.Options{})}
	g := boot(t, setup{config: blk.Config{Backend: disk}})
	buf := g.arena.Alloc(t, 4096, 4096)
	require.EqualValues(t, ioErr, g.do(0, in, 0, readSeg(buf, 512)))
	require.EqualValues(t, ioErr, g.do(0, out, 0, drivertest.Seg{GPA: buf, Len: 512}))
	s := g.dev.Stats()
	require.EqualValues(t, 2, s.HostErrors)
	require.Zero(t, s.Deferred+s.Reads+s.Writes)
}

type hopeless struct{ blockfile.File }

func (hopeless) TryPreadv([][]byte, int64) (bool, error)  { return true, errBadPart }
func (hopeless) TryPwritev([][]byte, int64) (bool, error) { return true, errBadPart }
