package xbrle

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
	"godwit/migration/policy/policytest"
)

func TestConformance(t *testing.T) {
	for _, name := range []string{"rle", "xbrle", "xbrle,cache=64K", "xbrle,cache=0", "xbrle,cache=auto", "xbrle,cache=auto,max=64K,prime=all",
		"xbrle,prime=hot", "xbrle,cache=64K,prime=none"} {
		t.Run(name, func(t *testing.T) {
			suite := func() {
				policytest.Codec(t, func() policy.Codec {
					c, err := policy.Codecs.Parse(name)
					require.NoError(t, err)
					if c, ok := c.(*Codec); ok {
						t.Cleanup(func() { require.NoError(t, c.Close()) })
					}
					return c
				})
			}
			withEach(suite)
		})
	}
}

func TestOptions(t *testing.T) {
	for text, want := range map[string]Config{
		"xbrle":                           {Bytes: 64 << 20},
		"xbrle,cache=512M,prime=hot":      {Bytes: 512 << 20, Prime: PrimeHot},
		"xbrle,cache=0":                   {},
		"xbrle,cache=131072,prime=none":   {Bytes: 131072, Prime: PrimeNone},
		"xbrle,cache=auto":                {Bytes: 1 << 30, Auto: true, Prime: PrimeHot},
		"xbrle,cache=auto,max=2G":         {Bytes: 2 << 30, Auto: true, Prime: PrimeHot},
		"xbrle,cache=auto,prime=all":      {Bytes: 1 << 30, Auto: true},
		"xbrle,cache=1024G":               {Bytes: 1 << 40},
		"xbrle,cache=auto,max=0,prime=al": {Bytes: -1},
		"xbrle,cache=1025G":               {Bytes: -1},
		"xbrle,cache=63K":                 {Bytes: -1},
		"xbrle,cache=99999999999999999G":  {Bytes: -1},
		"xbrle,cache=-1":                  {Bytes: -1},
		"xbrle,cache=M":                   {Bytes: -1},
		"xbrle,cache=1Mi":                 {Bytes: -1},
		"xbrle,cache=":                    {Bytes: -1},
		"xbrle,max=1G":                    {Bytes: -1},
		"xbrle,prime=some":                {Bytes: -1},
		"rle,cache=1M":                    {Bytes: -1},
	} {
		c, err := policy.Codecs.Parse(text)
		if want.Bytes < 0 {
			require.ErrorIs(t, err, policy.ErrBadPolicy, text)
			continue
		}
		require.NoError(t, err, text)
		require.Equal(t, want, c.(*Codec).config, text)
	}
}

// peers is a source and a destination of pages that are known by number.
type peers struct {
	t        testing.TB
	src, dst *Codec
	have     map[uint64][]byte
	scratch  [pageSize]byte
}

func newPeers(t testing.TB, c Config) *peers {
	p := &peers{t: t, src: New(c), dst: New(c), have: map[uint64][]byte{}}
	t.Cleanup(func() {
		require.NoError(t, p.src.Close())
		require.NoError(t, p.dst.Close())
	})
	return p
}

// send moves a page and tells whether it went raw.
func (p *peers) send(gfn uint64, page []byte) bool {
	e := p.src.EncodeTo(p.scratch[:], gfn, page)
	have := p.have[gfn]
	switch {
	case e.Same:
	case e.Raw:
		p.have[gfn] = append([]byte(nil), e.Data...)
	default:
		require.Equal(p.t, crc32.Checksum(have, castagnoli), e.Base)
		require.NoError(p.t, p.dst.Decode(gfn, have, e.Base, e.Data))
	}
	require.True(p.t, bytes.Equal(page, p.have[gfn]), "page %d differs", gfn)
	return e.Raw
}

func pageOf(gfn uint64, version byte) []byte {
	p := make([]byte, pageSize)
	rng := rand.New(rand.NewPCG(gfn, 9))
	fill(rng, p)
	p[gfn%pageSize] += version
	return p
}

func TestDecodeChecksTheBase(t *testing.T) {
	p := newPeers(t, Config{Bytes: 1 << 20})
	require.True(t, p.send(7, pageOf(7, 0)))
	e := p.src.Encode(7, pageOf(7, 1))
	require.False(t, e.Raw)
	require.ErrorIs(t, p.dst.Decode(7, pageOf(8, 0), e.Base, e.Data), ErrBase)
	require.ErrorIs(t, p.dst.Decode(7, pageOf(7, 0), 0, e.Data), ErrBase)
	require.ErrorIs(t, p.dst.Decode(7, pageOf(7, 0), e.Base, []byte{1}), ErrFormat)
	require.ErrorIs(t, RLE{}.Decode(7, pageOf(7, 0), 1, nil), ErrBase)
	require.ErrorIs(t, RLE{}.Decode(7, pageOf(7, 0), 0, []byte{1}), ErrFormat)
	page := pageOf(7, 0)
	require.NoError(t, p.dst.Decode(7, page, e.Base, e.Data))
	require.Equal(t, pageOf(7, 1), page)
}

// TestEncodeKeepsItsPromise: what Encode gives does not change, whatever is
// encoded or closed after it.
func TestEncodeKeepsItsPromise(t *testing.T) {
	c := New(Config{Bytes: minCache})
	first := c.Encode(1, pageOf(1, 0))
	second := c.Encode(1, pageOf(1, 1))
	want := append([]byte(nil), second.Data...)
	for v := range byte(5) {
		for gfn := range uint64(100) {
			c.Encode(gfn, pageOf(gfn, v))
		}
	}
	require.NoError(t, c.Close())
	require.NoError(t, c.Close())
	require.Equal(t, pageOf(1, 0), first.Data)
	require.Equal(t, want, second.Data)
	require.True(t, c.Encode(1, pageOf(1, 2)).Raw, "a closed codec sends raw")
	require.Zero(t, c.Stats().CacheBytes)
}

func TestCacheIsBounded(t *testing.T) {
	for _, size := range []int{minCache, 1 << 20, 3<<20 + 12345} {
		p := newPeers(t, Config{Bytes: size})
		for gfn := range uint64(2000) {
			p.send(gfn, pageOf(gfn, 0))
		}
		s := p.src.Stats()
		require.LessOrEqual(t, s.CacheBytes, uint64(size))
		require.LessOrEqual(t, s.HeldPages, uint64(size/pageSize))
		require.GreaterOrEqual(t, s.HeldPages, min(2000, uint64(size/(pageSize+setSize))-1))
		require.Equal(t, uint64(2000), s.Pages())
		require.Zero(t, p.dst.Stats().CacheBytes, "a destination maps no cache")
	}
	require.Equal(t, 32, setSize)
	require.Zero(t, unsafe.Sizeof(counters{}[0])%64)
}

// TestHotPagesStay: a small hot set keeps its place in a cache that a sweep over
// everything would flush many times over.
func TestHotPagesStay(t *testing.T) {
	p := newPeers(t, Config{Bytes: 1 << 20})
	hot := func(round byte) (raw int) {
		for gfn := range uint64(64) {
			if p.send(10_000+gfn, pageOf(10_000+gfn, round)) {
				raw++
			}
		}
		return raw
	}
	hot(0)
	hot(1)
	for gfn := range uint64(4000) {
		p.send(gfn, pageOf(gfn, 0))
	}
	require.Zero(t, hot(2))
	// And when it has gone cold, another takes its place.
	for round := range 6 * staleRounds {
		p.src.Observe(policy.Round{Number: round + 1}, nil)
	}
	for v := range byte(3) {
		for gfn := range uint64(256) {
			raw := p.send(20_000+gfn, pageOf(20_000+gfn, v))
			if v == 2 && gfn < 200 {
				require.False(t, raw, "page %d", gfn)
			}
		}
	}
}

func TestPrime(t *testing.T) {
	const pages, hotFrom, hotTo = 2048, 1024, 1024 + 128
	early := []uint64{hotFrom, hotFrom + 5, hotTo - 1} // what an early look at the log shows
	for _, c := range []struct {
		prime  Prime
		second int // raw sends of the hot pages in the second round
	}{{PrimeAll, 0}, {PrimeHot, 0}, {PrimeNone, hotTo - hotFrom}} {
		t.Run(fmt.Sprint(c.prime), func(t *testing.T) {
			p := newPeers(t, Config{Bytes: 3 << 20, Prime: c.prime}) // room for 767 pages
			p.src.Observe(policy.Round{}, early)
			for gfn := range uint64(pages) {
				p.send(gfn, pageOf(gfn, 0))
			}
			held := p.src.Stats().HeldPages
			switch c.prime {
			case PrimeAll:
				require.InDelta(t, 766, float64(held), 2)
			case PrimeHot:
				require.Equal(t, uint64(regionPages), held, "the region around the hot pages")
			case PrimeNone:
				require.Zero(t, held)
			}
			p.src.Observe(policy.Round{Number: 1}, nil)
			raw := 0
			for gfn := uint64(hotFrom); gfn < hotTo; gfn++ {
				if p.send(gfn, pageOf(gfn, 1)) {
					raw++
				}
			}
			require.Equal(t, c.second, raw)
			for gfn := uint64(hotFrom); gfn < hotTo; gfn++ {
				require.False(t, p.send(gfn, pageOf(gfn, 2)), "sent twice, so kept")
			}
		})
	}
}

// TestAutoFollowsTheHotSet: the cache grows with what is sent again and gives
// back what is not any more.
func TestAutoFollowsTheHotSet(t *testing.T) {
	p := newPeers(t, Config{Bytes: 16 << 20, Auto: true, Prime: PrimeHot})
	round := 0
	next := func(from, to uint64) {
		for gfn := from; gfn < to; gfn++ {
			p.send(gfn, pageOf(gfn, byte(round)))
		}
		round++
		p.src.Observe(policy.Round{Number: round}, nil)
	}
	next(0, 3000)
	require.Zero(t, p.src.Stats().HeldPages, "nothing is hot yet")
	next(0, 1000)
	next(0, 1000)
	require.Equal(t, uint64(1000), p.src.Stats().HeldPages)
	for range 2 * staleRounds {
		next(0, 100)
	}
	s := p.src.Stats()
	require.Equal(t, uint64(100), s.HeldPages)
	require.Equal(t, uint64(900), s.Trimmed)
	require.Equal(t, uint64(100), held(p.src.pages()))
	for range 3 {
		next(2000, 3000)
	}
	require.Equal(t, uint64(1100), held(p.src.pages()))
	for gfn := range uint64(4096) {
		p.src.Forget(gfn)
	}
	require.Zero(t, p.src.Stats().HeldPages)
	for range 2 * staleRounds { // pages of which no byte stays: found, but of no use
		for gfn := range uint64(10) {
			require.True(t, p.send(gfn, pageOf(gfn+uint64(10*round+5000), 0)))
		}
		round++
		p.src.Observe(policy.Round{Number: round}, nil)
	}
	s = p.src.Stats()
	require.GreaterOrEqual(t, s.Trimmed, uint64(910))
	require.NotZero(t, s.RawHits)
	p.src.Forget(0)
	for gfn := range uint64(10) {
		p.src.Forget(gfn)
	}
	require.Zero(t, held(p.src.pages()))
}

func held(c *cache) (n uint64) {
	for i := range c.sets {
		for way := range ways {
			if c.sets[i].tag[way].Load() != 0 {
				n++
			}
		}
	}
	return n
}

// TestStreams: several streams over different pages that share sets, with
// Observe beside them, and a writer of the kind that a guest is to the pages.
func TestStreams(t *testing.T) {
	const streams, rounds, pages = 4, 40, 400
	src, dst := New(Config{Bytes: 1 << 20, Auto: true, Prime: PrimeAll}), New(Config{})
	defer func() { require.NoError(t, src.Close()) }()
	var have [pages][]byte
	for round := range rounds {
		var group sync.WaitGroup
		for stream := range streams {
			group.Go(func() {
				var buf [pageSize]byte
				for gfn := stream; gfn < pages; gfn += streams {
					page := pageOf(uint64(gfn), byte(round))
					if (gfn+round)%13 == 0 {
						src.Forget(uint64(gfn))
						have[gfn] = page
						continue
					}
					e := src.EncodeTo(buf[:], uint64(gfn), page)
					if e.Same {
						continue // sent so before
					}
					if e.Raw {
						have[gfn] = append([]byte(nil), e.Data...)
					} else if err := dst.Decode(uint64(gfn), have[gfn], e.Base, e.Data); err != nil {
						t.Error(err)
					}
					if string(page) != string(have[gfn]) {
						t.Errorf("page %d differs in round %d", gfn, round)
					}
				}
			})
		}
		src.Observe(policy.Round{Number: round}, []uint64{1, 2, 3})
		group.Wait()
	}
	s := src.Stats()
	require.NotZero(t, s.Deltas)
	require.NotZero(t, s.Evicted+s.Refused)
	require.Equal(t, s.HeldPages, held(src.pages()))
}

func TestHeat(t *testing.T) {
	var h heat
	const far = 1<<60 + 3*chunkPages
	require.Equal(t, hotness{}, h.of(far))
	for range 300 {
		h.seen(far)
	}
	require.Equal(t, hotness{page: maxHeat, region: 300}, h.of(far))
	require.Equal(t, hotness{page: 0, region: 300}, h.of(far+3))
	require.Equal(t, hotness{page: 1, region: 300}, h.sent(far+3))
	h.halve()
	require.Equal(t, hotness{page: maxHeat / 2, region: 150}, h.of(far))
	require.Equal(t, hotness{page: 0, region: 150}, h.of(far+3))
	require.False(t, h.sent(0).hot())
	require.True(t, h.sent(0).hot())
}
