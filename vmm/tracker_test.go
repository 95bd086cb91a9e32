package vmm

import (
	"bytes"
	"context"
	"fmt"
	"math/bits"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
	"godwit/kvm/guestmem"
	"godwit/migration"
)

// trackers are the ways to follow the guest's writes, each a change to a machine
// that has not run yet.
var trackers = []struct {
	name, kind string
	entries    int    // of a ring
	slot       uint64 // bytes, with a ring
	use        func(*memory)
}{
	{"log", TrackerLog, 0, 0, func(*memory) {}},
	{"log/protected at once", TrackerLog, 0, 0, func(m *memory) { m.tracker.(*logTracker).atOnce = 1 << 40 }},
	{"log/initially set", TrackerLog, 0, 0, func(m *memory) { m.tracker.(*logTracker).atOnce = 0 }},
	{"log/classic", TrackerLog, 0, 0, func(m *memory) { m.tracker.(*logTracker).manual = 0 }},
	{"ring", TrackerRing, ringEntries, ringSlot, func(*memory) {}},
	{"ring/always full", TrackerRing, 1024, ringSlot, func(*memory) {}},
	{"ring/many slots", TrackerRing, ringEntries, 1 << 20, func(*memory) {}},
	{"ring/cut now and then", TrackerRing, ringEntries, ringSlot, func(m *memory) {
		r, calls := m.ring(), 0
		whole := r.resetRings
		r.resetRings = func() (int, bool, error) {
			n, cut, err := whole()
			calls++
			return n, cut || calls%3 == 0, err
		}
	}},
}

// TestTrackers is the suite that every tracker passes: a copy of guest memory
// that is brought up to date only with what the tracker reports is equal to the
// memory once the guest is paused. So what is reported is never less than what
// was written, by the guest or by the VMM, whichever way pages are cleared.
func TestTrackers(t *testing.T) {
	for _, tr := range trackers {
		for _, cpus := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/%d", tr.name, cpus), func(t *testing.T) {
				cfg := metronomeConfig("fill=32 ws=16 rate=20000 beat=20")
				cfg.Machine.VCPUCount, cfg.Machine.Tracker = cpus, tr.kind
				defer func(n int, size uint64) { ringEntries, ringSlot = n, size }(ringEntries, ringSlot)
				ringEntries, ringSlot = max(tr.entries, 1), max(tr.slot, 1<<20)
				out := newConsole()
				m, err := New(cfg, Options{Serial: out})
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, m.Close()) })
				tr.use(m.mem)
				require.NoError(t, m.Start())
				lastBeat(t, out, 2)
				for try := range 3 { // tracking can be started again
					f := &follower{t: t, m: m, rng: rand.New(rand.NewPCG(1, uint64(try))), copy: map[uint64][]byte{}}
					f.follow(4)
					require.NoError(t, m.Resume())
					lastBeat(t, out, 2)
				}
			})
		}
	}
}

// follower copies a running guest's memory as a migration would.
type follower struct {
	t    *testing.T
	m    *Machine
	rng  *rand.Rand
	copy map[uint64][]byte // by gfn; others are zero
	mu   sync.Mutex        // guards copy
	sent int               // pages copied
}

func (f *follower) follow(rounds int) {
	t, mem := f.t, f.m.mem
	require.NoError(t, mem.startLog())
	touched, err := mem.Touched()
	require.NoError(t, err)
	pending := make([]uint64, mem.words())
	var pages uint64
	for _, e := range touched {
		for gfn := e.GPA / 4096; gfn < (e.GPA+e.Len)/4096; gfn++ {
			pending[gfn/64] |= 1 << (gfn % 64)
			pages++
		}
	}
	before := make([]uint64, mem.words())
	require.NoError(t, mem.dirty(before))
	require.LessOrEqual(t, count(before), pages+guestmem.PageSize/8, "memory that was never touched is not dirty")
	if ring := mem.ring(); ring != nil && ringEntries < 4096 { // fewer than the working set has pages
		was := ring.fulls.Load()
		require.Eventually(t, func() bool { return ring.fulls.Load() > was }, time.Minute, time.Millisecond)
	}
	for range rounds {
		// From here on a write counts as dirty: seen below, or asked for again.
		require.NoError(t, mem.WriteAt([]byte{byte(f.rng.Uint32())}, metronome.MailboxGPA+f.rng.Uint64N(4096)))
		f.round(pending)
		clear(pending)
		require.NoError(t, mem.dirty(pending))
		again := make([]uint64, mem.words())
		require.NoError(t, mem.dirty(again))
		for i, w := range pending {
			require.Zero(t, w&^again[i], "asking must not forget")
		}
	}
	require.NoError(t, f.m.Pause(context.Background()))
	require.NoError(t, mem.dirty(pending))
	f.take(list(pending))
	require.NoError(t, mem.stopLog())
	f.compare()
	t.Logf("%d pages copied, of %d", f.sent, pages)
}

// round clears and copies pages in chunks, on two goroutines, the chunks in
// ascending or in random order.
func (f *follower) round(pending []uint64) {
	gfns := list(pending)
	if f.rng.IntN(2) == 0 {
		f.rng.Shuffle(len(gfns), func(i, j int) { gfns[i], gfns[j] = gfns[j], gfns[i] })
	}
	half := len(gfns) / 2
	var wg sync.WaitGroup
	for _, part := range [][]uint64{gfns[:half], gfns[half:]} {
		wg.Go(func() {
			for chunk := range slices.Chunk(part, 256) {
				slices.Sort(chunk)
				if err := f.m.mem.clear(chunk); err != nil {
					f.t.Error(err)
				}
				f.take(chunk)
			}
		})
	}
	wg.Wait()
}

func (f *follower) take(gfns []uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, gfn := range gfns {
		p := make([]byte, guestmem.PageSize)
		copy(p, page(f.m.mem, gfn))
		f.copy[gfn] = p
		f.sent++
	}
}

func (f *follower) compare() {
	touched, err := f.m.mem.Touched()
	require.NoError(f.t, err)
	zero := make([]byte, guestmem.PageSize)
	for _, e := range touched {
		for gfn := e.GPA / 4096; gfn < (e.GPA+e.Len)/4096; gfn++ {
			have, ok := f.copy[gfn]
			if !ok {
				have = zero
			}
			if !bytes.Equal(have, page(f.m.mem, gfn)) {
				f.t.Fatalf("page %#x was written and not reported", gfn)
			}
		}
	}
}

func page(m *memory, gfn uint64) []byte {
	p, _ := m.View(gfn<<guestmem.PageShift, guestmem.PageSize) // an error shows as a page that differs
	return p
}

func list(bitmap []uint64) (gfns []uint64) {
	for i, w := range bitmap {
		for ; w != 0; w &= w - 1 {
			gfns = append(gfns, uint64(i*64+bits.TrailingZeros64(w)))
		}
	}
	return gfns
}

func count(bitmap []uint64) (n uint64) {
	for _, w := range bitmap {
		n += uint64(bits.OnesCount64(w))
	}
	return n
}

func TestClearRefusesWhatIsNotRAM(t *testing.T) {
	m, err := New(metronomeConfig(""), Options{})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.mem.startLog())
	require.NoError(t, m.mem.clear(nil))
	require.ErrorContains(t, m.mem.clear([]uint64{5, 128 << 8}), "page 0x8000 is not guest RAM")
	require.NoError(t, m.mem.clear([]uint64{128<<8 - 1, 5, 70}), "any order will do, if slower")
	require.NoError(t, m.mem.stopLog())
	require.NoError(t, m.mem.stopLog())
}

func BenchmarkClearChunk(b *testing.B) {
	m, err := New(metronomeConfig(""), Options{})
	require.NoError(b, err)
	defer m.Close()
	require.NoError(b, m.mem.startLog())
	for _, stride := range []uint64{1, 2, 100} {
		b.Run(fmt.Sprintf("stride=%d", stride), func(b *testing.B) {
			var gfns []uint64
			for i := range uint64(256) {
				gfns = append(gfns, i*stride)
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := m.mem.clear(gfns); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestTrackerTravels(t *testing.T) {
	cfg := metronomeConfig("fill=64 ws=32 rate=5000 beat=50")
	cfg.Machine.Tracker = TrackerRing
	m, out := start(t, cfg)
	before := lastBeat(t, out, 2)
	for range 2 {
		next, rep := move(t, m, migration.SendOptions{Verify: true, Streams: 2}, out)
		require.Equal(t, rep.Verify.Source, rep.Verify.Destination)
		require.NotNil(t, next.mem.ring(), "a destination tracks as its source did")
		after := lastBeat(t, out, 2)
		require.Greater(t, after.Writes, before.Writes)
		require.Zero(t, after.Bad)
		m, before = next, after
	}
	cfg.Machine.Tracker = "guesswork"
	_, err := New(cfg, Options{})
	require.ErrorContains(t, err, `tracker "guesswork"; use log or ring`)
	defer func(n int) { ringEntries = n }(ringEntries)
	ringEntries = 1 << 20
	cfg.Machine.Tracker = TrackerRing
	_, err = New(cfg, Options{})
	require.ErrorContains(t, err, `use tracker "log"`)
}
