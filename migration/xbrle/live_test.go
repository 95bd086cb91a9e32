//go:build !race

package xbrle

import (
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
)

// TestLivePage encodes pages that are being written, as a guest's are: what the
// codec keeps as the base must be what it sent, whatever the page was at any
// moment. The race detector would rightly complain, so it is not asked.
func TestLivePage(t *testing.T) {
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
		for i := 0; i < 20_000 || p.src.Stats().Deltas < 100; i++ {
			if i >= 20_000 {
				runtime.Gosched() // the guest has not had its turn yet
			}
			gfn := i % len(memory)
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
		guest.Wait()
		for gfn := range uint64(len(memory)) {
			// The writer may have gone on for long after the last look, so the first
			// may go raw; the second finds the page unchanged.
			page := (*[pageSize]byte)(unsafe.Pointer(&memory[gfn]))[:]
			p.send(gfn, page)
			require.False(t, p.send(gfn, page))
		}
	}
	play()
	portable(play)
}

// TestNoAllocation: the steady state allocates nothing. The race detector makes
// pools forget on purpose.
func TestNoAllocation(t *testing.T) {
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
