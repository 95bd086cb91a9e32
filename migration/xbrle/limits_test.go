package xbrle

import (
	"math"
	"math/rand/v2"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestDensities: from a byte in a thousand to all of them, in literals of every
// length, those at which lengths take two bytes included.
func TestDensities(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
		share := math.Pow(10, rapid.Float64Range(-3, 0).Draw(t, "log10 of the share"))
		length := rapid.SampledFrom([]int{1, 2, 3, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256}).Draw(t, "length")
		gap := float64(length) * (1/share - 1)
		var base, page [pageSize]byte
		fill(rng, base[:])
		page = base
		at := rapid.SampledFrom([]int{0, 1, 2, 3, 4, 5}).Draw(t, "first")
		for ; at < pageSize; at += length + int(rng.ExpFloat64()*gap) {
			for i := at; i < min(at+length, pageSize); i++ {
				page[i]++
			}
		}
		if rapid.Bool().Draw(t, "last byte") {
			page[pageSize-1] = ^base[pageSize-1]
		}
		checkPair(t, base, page)
		checkRoundTrip(t, base, page)
	})
}

// TestLengthLimits: gaps and literals around 127, 128, 129 bytes, where a length
// begins to take two, at the page's start and end and within.
func TestLengthLimits(t *testing.T) {
	sizes := []int{126, 127, 128, 129, 255, 256, 257}
	for _, first := range []int{0, 1, 2, 3, 4, 5, 127, 128, 129} {
		for _, literal := range sizes {
			for _, gap := range append([]int{4, 5}, sizes...) {
				var base, page [pageSize]byte
				for i := first; i < pageSize; i++ {
					if (i-first)%(literal+gap) < literal {
						page[i] = 1
					}
				}
				checkPair(t, base, page)
				checkRoundTrip(t, base, page)
			}
		}
	}
}

// TestFullDestination: encodings as long as one may be, and those one byte longer.
func TestFullDestination(t *testing.T) {
	full, raw := 0, 0
	for first := range 6 {
		for last := range 7 {
			for _, cuts := range [][]int{nil, {100}, {2000}, {127, 300}, {128, 2000, 4000}, {5, 10, 15}} {
				for gap := 4; gap <= 6; gap++ {
					var base, page [pageSize]byte
					for i := first; i < pageSize-last; i++ {
						page[i] = 1
					}
					for _, cut := range cuts {
						clear(page[first+cut : first+cut+gap])
					}
					n, ok := checkPair(t, base, page)
					checkRoundTrip(t, base, page)
					switch {
					case n == pageSize-1:
						full++
					case !ok:
						raw++
					}
				}
			}
		}
	}
	require.NotZero(t, full, "no page with the longest encoding was tried")
	require.NotZero(t, raw, "no page was tried for which there is none")
}

func TestScratchLayout(t *testing.T) {
	var s scratch
	for name, at := range map[string]uintptr{"snapshot": unsafe.Offsetof(s.snapshot), "dense": unsafe.Offsetof(s.dense), "masks": unsafe.Offsetof(s.masks)} {
		require.Zero(t, at%lineSize, "%s is loaded by the line", name)
	}
}
