package adaptive

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
	"godwit/migration/policy/policytest"
)

// Pages that are written while they are encoded, as a guest's are: whichever
// codec is chosen, the base that is kept is what was sent, or the next delta
// would be refused. How much the guest writes between two looks is the
// scheduler's to say, so the loop itself makes each look find something to send, and
// has the pages to itself at the end. The race detector would rightly complain, so
// it is not asked.
func TestLivePage(t *testing.T) {
	if raceEnabled {
		t.Skip("pages are written while they are read, on purpose")
	}
	src, dst := parse(t, "auto,cache=1M"), parse(t, "auto")
	var memory [8][pageSize / 8]uint64
	var stop atomic.Bool
	var guest sync.WaitGroup
	guest.Go(func() {
		rng := rand.New(rand.NewPCG(7, 7))
		for !stop.Load() {
			scribble(rng, &memory[rng.IntN(len(memory))])
		}
	})
	deltas, blocks := 0, 0
	var have [len(memory)][pageSize]byte
	var buf [pageSize]byte
	rng := rand.New(rand.NewPCG(8, 8))
	const steps = 40_000
	for i := range steps {
		if i == steps*3/4 {
			stop.Store(true)
			guest.Wait()
		}
		if i%500 == 0 {
			src.ObserveLink(policy.Link{Speed: []float64{1e6, 1e8, 1e9, 1e13}[rng.IntN(4)], Hidden: rng.Float64()})
		}
		gfn := i % len(memory)
		scribble(rng, &memory[gfn])
		page := (*[pageSize]byte)(unsafe.Pointer(&memory[gfn]))
		e := src.EncodeTo(buf[:], uint64(gfn), page[:])
		if e.Same {
			continue
		}
		if e.Raw {
			copy(have[gfn][:], e.Data)
			continue
		}
		if e.Base != 0 {
			deltas++
		} else {
			blocks++
		}
		if err := policytest.Decoder(dst, e.Codec).Decode(uint64(gfn), have[gfn][:], e.Base, e.Data); err != nil {
			t.Errorf("step %d: %v", i, err)
			break
		}
	}
	stop.Store(true)
	guest.Wait() // after a break
	require.NotZero(t, deltas)
	require.NotZero(t, blocks)
}

// scribble writes a word of a page or, now and then, all of it, so that LZ4 can
// do something with it again.
func scribble(rng *rand.Rand, page *[pageSize / 8]uint64) {
	if at := rng.IntN(len(page)); rng.IntN(100) > 0 {
		atomic.StoreUint64(&page[at], rng.Uint64())
	} else {
		for i := range page {
			atomic.StoreUint64(&page[i], uint64(at))
		}
	}
}

// The steady state allocates nothing, whatever is chosen.
func TestNoAllocation(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	for _, speed := range []float64{0, 1e7, 1e9, 1e12} {
		c := parse(t, "auto,cache=4M")
		var dst [pageSize]byte
		n := 0
		step := func() {
			n++
			gfn := uint64(n % 1000)
			c.ObserveLink(policy.Link{Speed: speed, Hidden: 0.5})
			c.EncodeTo(dst[:], gfn, texts[n%len(texts)])
			c.EncodeTo(dst[:], 1000+gfn, randoms[gfn%256])
		}
		for range 3000 {
			step()
		}
		require.Zero(t, testing.AllocsPerRun(1000, step), "%g bytes/s", speed)
	}
}
