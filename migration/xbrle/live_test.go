package xbrle

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// TestLivePage encodes pages that are being written, as a guest's are: what the
// codec keeps as the base must be what it sent, whatever the page was at any
// moment. How much the guest writes between two looks is the scheduler's to say, so
// the loop writes a word itself, which makes a delta, and has the pages to itself
// at the end. The race detector would rightly complain, so it is not asked.
func TestLivePage(t *testing.T) {
	if raceEnabled {
		t.Skip("pages are written while they are read, on purpose")
	}
	play := func() {
		p := newPeers(t, Config{Bytes: 1 << 20})
		var memory [8][pageSize / 8]uint64
		var stop atomic.Bool
		var guest sync.WaitGroup
		guest.Go(func() {
			rng := rand.New(rand.NewPCG(7, 7))
			for !stop.Load() {
				atomic.StoreUint64(&memory[rng.IntN(len(memory))][rng.IntN(pageSize/8)], rng.Uint64())
			}
		})
		rng := rand.New(rand.NewPCG(8, 8))
		const steps = 20_000
		for i := range steps {
			if i == steps*3/4 {
				stop.Store(true)
				guest.Wait()
			}
			gfn := i % len(memory)
			atomic.StoreUint64(&memory[gfn][rng.IntN(pageSize/8)], rng.Uint64())
			page := (*[pageSize]byte)(unsafe.Pointer(&memory[gfn]))
			e := p.src.EncodeTo(p.scratch[:], uint64(gfn), page[:])
			if e.Same {
				continue // looked at twice with no write between
			}
			if e.Raw {
				p.have[uint64(gfn)] = append([]byte(nil), e.Data...)
			} else if err := p.dst.Decode(uint64(gfn), p.have[uint64(gfn)], e.Base, e.Data); err != nil {
				t.Errorf("step %d: %v", i, err)
				break
			}
		}
		stop.Store(true)
		guest.Wait() // after a break
		require.NotZero(t, p.src.Stats().Deltas)
		for gfn := range uint64(len(memory)) {
			page := (*[pageSize]byte)(unsafe.Pointer(&memory[gfn]))[:]
			require.False(t, p.send(gfn, page), "nothing has changed since the last look")
		}
	}
	withEach(play)
}

// TestNoAllocation: the steady state allocates nothing.
func TestNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	c := New(Config{Bytes: 1 << 20})
	defer func() { require.NoError(t, c.Close()) }()
	var dst [pageSize]byte
	pages := [2][]byte{pageOf(1, 0), pageOf(1, 1)}
	enc := append([]byte(nil), RLE{}.EncodeTo(dst[:], 0, make([]byte, pageSize)).Data...)
	n := 0
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		n++
		c.EncodeTo(dst[:], 1, pages[n%2])
		_ = RLE{}.Decode(1, dst[:], 0, enc)
		RLE{}.EncodeTo(dst[:], 1, pages[n%2])
	}))
}
