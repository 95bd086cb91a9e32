package adaptive

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/migration/lz4codec"
	"godwit/migration/policy"
	"godwit/migration/policy/policytest"
	"godwit/migration/xbrle"
)

func parse(t testing.TB, text string) *Codec {
	c, err := policy.Codecs.Parse(text)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.(*Codec).Close()) })
	return c.(*Codec)
}

func TestConformance(t *testing.T) {
	for _, text := range []string{"auto", "auto,cache=64K", "auto,cache=0,accel=8", "auto,cache=auto,max=1M,prime=all"} {
		for _, l := range []policy.Link{{}, {Speed: 1e6, Hidden: 1}, {Speed: 1e9, Hidden: 0.5}, {Speed: 1e12}} {
			t.Run(fmt.Sprintf("%s at %g", text, l.Speed), func(t *testing.T) {
				policytest.Codec(t, func() policy.Codec {
					c := parse(t, text)
					c.ObserveLink(l)
					require.EqualValues(t, ID, c.ID())
					return c
				})
			})
		}
	}
}

func TestOptions(t *testing.T) {
	c := parse(t, "auto")
	require.Equal(t, xbrle.New(xbrle.Config{Bytes: 64 << 20}), c.deltas, "xbrle's own default")
	parse(t, "auto,cache=auto,max=2G,prime=none,accel=64")
	for _, bad := range []string{"auto,cache=x", "auto,max=1G", "auto,accel=0", "auto,accel=65", "auto,prime=some", "auto,level=3", "auto:4"} {
		_, err := policy.Codecs.Parse(bad)
		require.ErrorIs(t, err, policy.ErrBadPolicy, bad)
	}
}

// What comes from a stranger: this codec has no encodings, its choices check
// theirs.
func TestDecodeRefuses(t *testing.T) {
	c := parse(t, "auto")
	page := make([]byte, pageSize)
	require.ErrorIs(t, c.Decode(1, page, 0, nil), ErrNoEncoding)
	require.Nil(t, policytest.Decoder(c, ID))
	require.Nil(t, policytest.Decoder(c, 3), "rle is no choice")
	require.ErrorIs(t, policytest.Decoder(c, 2).Decode(1, page, 77, nil), xbrle.ErrBase)
	require.ErrorIs(t, policytest.Decoder(c, 1).Decode(1, page, 77, []byte{1}), lz4codec.ErrEncoding)
}

// Whatever the link is said to be, odd numbers included, whatever the pages are,
// whatever LZ4 costs: the destination has what the source sent.
func TestAnyMix(t *testing.T) {
	kinds := [][][]byte{texts, randoms}
	rapid.Check(t, func(rt *rapid.T) {
		p := newPair(t, xbrle.Config{Bytes: rapid.SampledFrom([]int{0, 64 << 10, 1 << 20}).Draw(rt, "cache")})
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 0))
		pages := make([][]byte, rapid.IntRange(1, 600).Draw(rt, "pages"))
		for i := range pages {
			pages[i] = bytes.Clone(anyOf(rng, kinds[rng.IntN(2)]))
		}
		for round := range rapid.IntRange(1, 8).Draw(rt, "rounds") {
			p.link(rapid.SampledFrom([]float64{0, -1, 1, 1e7, 1e8, 4e8, 1e9, 1e10, 1e300, math.Inf(1), math.NaN()}).Draw(rt, "speed"),
				rapid.SampledFrom([]float64{0, 0.5, 1, -3, 7, math.NaN(), math.Inf(1)}).Draw(rt, "hidden"))
			p.lz4 = rapid.Int64Range(0, 1e7).Draw(rt, "lz4")
			var dirty []uint64
			for i, page := range pages {
				switch rng.IntN(6) {
				case 0:
					copy(page, anyOf(rng, kinds[rng.IntN(2)]))
				case 1:
					page[rng.IntN(pageSize)]++
				case 2:
					copy(page[rng.IntN(pageSize):], anyOf(rng, texts))
				case 3:
					p.src.Forget(uint64(i)) // as if it had been zero
					clear(p.have[uint64(i)])
				case 4:
					continue
				}
				dirty = append(dirty, uint64(i))
			}
			p.src.Observe(policy.Round{Number: round}, dirty)
			for _, gfn := range dirty {
				p.send(gfn, pages[gfn])
			}
			require.LessOrEqual(t, p.src.account.ns.Load(), accountMost)
			require.GreaterOrEqual(t, p.src.account.ns.Load(), accountLeast)
		}
	})
}

// Several streams encode while the link is reported anew; each has pages of its
// own.
func TestStreams(t *testing.T) {
	src, dst := parse(t, "auto,cache=4M"), parse(t, "auto")
	var wg sync.WaitGroup
	for s := range uint64(6) {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(s, 2))
			var buf [pageSize]byte
			have := map[uint64][]byte{}
			for i := range uint64(3000) {
				if i%100 == 0 {
					src.ObserveLink(policy.Link{Speed: math.Pow(10, 6+5*rng.Float64()), Hidden: rng.Float64()})
				}
				gfn := s + 6*(i%200)
				page := bytes.Clone(anyOf(rng, [][][]byte{texts, randoms}[gfn/256%2]))
				if i%3 > 0 && have[gfn] != nil {
					copy(page, have[gfn])
					page[rng.IntN(pageSize)]++
				}
				e := src.EncodeTo(buf[:], gfn, page)
				if have[gfn] == nil {
					have[gfn] = make([]byte, pageSize)
				}
				if e.Same {
					// checked below
				} else if e.Raw {
					copy(have[gfn], e.Data)
				} else if err := policytest.Decoder(dst, e.Codec).Decode(gfn, have[gfn], e.Base, e.Data); err != nil {
					t.Errorf("page %d: %v", gfn, err)
					return
				}
				if !bytes.Equal(page, have[gfn]) {
					t.Errorf("page %d differs", gfn)
					return
				}
			}
		})
	}
	wg.Wait()
	require.Zero(t, src.working.Load())
}

// Encode's result outlives the next one.
func TestEncodeHasItsOwnMemory(t *testing.T) {
	c := newCodec(xbrle.New(xbrle.Config{}), lz4codec.New(1), func() int64 { return 0 })
	c.ObserveLink(policy.Link{Speed: 1e8, Hidden: 1})
	var es []policy.Encoding
	for i, page := range texts {
		es = append(es, c.Encode(uint64(i), page))
	}
	got := make([]byte, pageSize)
	for i, e := range es {
		require.False(t, e.Raw)
		require.NoError(t, policytest.Decoder(c, e.Codec).Decode(uint64(i), got, e.Base, e.Data))
		require.True(t, bytes.Equal(texts[i], got))
	}
}

func TestRegions(t *testing.T) {
	var r regions
	a := r.of(5)
	require.Same(t, a, r.of(regionPages-1))
	require.NotSame(t, a, r.of(regionPages))
	require.Same(t, a, r.of(5+regionPages*regionChunk*regionChunks), "4 TiB on")
	require.Equal(t, firstGuess, a.expected())
	a.tried(1000)
	require.Equal(t, 1000, a.expected())
	n := 0
	for ; a.expected() < pageSize; n++ {
		a.tried(pageSize)
	}
	require.Less(t, n, 40)
	for range 3 {
		n = 1
		for !a.due(24) {
			n++
		}
		require.Equal(t, 24, n)
		a.tried(pageSize)
		require.Equal(t, pageSize, a.expected())
	}
}

// The guest is watched before round 1 where xbrle needs that.
func TestNeedsEarly(t *testing.T) {
	for prime, want := range map[xbrle.Prime]bool{xbrle.PrimeAll: false, xbrle.PrimeHot: true, xbrle.PrimeNone: false} {
		require.Equal(t, want, New(xbrle.Config{Bytes: 1 << 20, Prime: prime}, 1).NeedsEarly())
	}
	require.False(t, New(xbrle.Config{Prime: xbrle.PrimeHot}, 1).NeedsEarly(), "there is no cache")
}
