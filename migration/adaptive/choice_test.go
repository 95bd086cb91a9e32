package adaptive

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
	"godwit/migration/xbrle"
)

const mb = 1e6

// Text and random pages in pieces of memory of their own, sent once, over links
// of all speeds. LZ4 takes 8 us a page here: at 32 us a page (128 MB/s) there is
// time for all, at 4.5 us for some, at 0.4 us for none.
func TestFirstPass(t *testing.T) {
	const pages = 20 * regionPages // of each kind
	for _, c := range []struct {
		name             string
		speed, hidden    float64
		textLow, textTop float64 // share of the text that is compressed
	}{
		{"not known", 0, 1, 0, 0},
		{"slow", 100 * mb, 1, 0.95, 1},
		{"slow, nothing hidden", 100 * mb, 0, 0.95, 1},
		{"125 MB/s", 125 * mb, 1, 0.9, 1},
		{"medium", 900 * mb, 1, 0.6, 0.95},
		{"medium, nothing hidden", 500 * mb, 0, 0, 0.01},
		{"fast", 10_000 * mb, 1, 0, 0.01},
		{"fast, nothing hidden", 10_000 * mb, 0, 0, 0.01},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPair(t, xbrle.Config{})
			rng := rand.New(rand.NewPCG(1, 2))
			p.link(c.speed, c.hidden)
			var text, random counts
			var work, took float64
			for gfn := uint64(0); gfn < 2*pages; {
				for k, fill := range [][][]byte{texts, randoms} {
					n, w := p.over(func() {
						for range regionPages {
							p.send(gfn, anyOf(rng, fill))
							gfn++
						}
					})
					into := []*counts{&text, &random}[k]
					into.raw, into.block, into.delta, into.sent = into.raw+n.raw, into.block+n.block, into.delta+n.delta, into.sent+n.sent
					work += w
				}
			}
			t.Logf("text %+v random %+v work %.3f s", text, random, work)
			require.Zero(t, random.block+random.delta)
			require.InDelta(t, (c.textLow+c.textTop)/2, float64(text.block)/pages, (c.textTop-c.textLow)/2+1e-9)
			if c.speed == 0 {
				require.Zero(t, work)
				return
			}
			took = float64(text.sent+random.sent) / c.speed
			if c.hidden == 1 {
				require.LessOrEqual(t, work, took+0.011, "encoding takes longer than the link")
				require.Less(t, max(work, took), 1.001*2*pages*pageSize/c.speed+0.011)
			} else {
				require.Less(t, work+took, 1.07*2*pages*pageSize/c.speed, "encoding costs more than it saves")
			}
		})
	}
}

// At a medium speed the share of compressed pages makes both ends meet: neither
// the link nor the encoder waits for the other.
func TestMediumLinkIsBalanced(t *testing.T) {
	p := newPair(t, xbrle.Config{})
	p.link(400*mb, 1)
	rng := rand.New(rand.NewPCG(1, 2))
	n, work := p.over(func() {
		for gfn := range uint64(40_000) {
			p.send(gfn, anyOf(rng, texts))
		}
	})
	took := float64(n.sent) / p.speed
	t.Logf("%+v: work %.3f s, link %.3f s", n, work, took)
	require.InEpsilon(t, took, work, 0.1)
}

// A working set that is written a little goes as deltas, also where LZ4 has no
// place; on a link faster than deltas it goes raw, and no base goes wrong.
func TestRewrittenPages(t *testing.T) {
	for _, c := range []struct {
		speed, hidden float64
		low, top      int
	}{{20 * mb, 1, 990, 1000}, {125 * mb, 1, 980, 1000}, {125 * mb, 0, 980, 1000}, {2000 * mb, 0.5, 700, 1000}, {100_000 * mb, 0, 0, 300}} {
		p := newPair(t, xbrle.Config{Bytes: 16 << 20})
		p.link(c.speed, c.hidden)
		rng := rand.New(rand.NewPCG(3, 4))
		pages := make([][]byte, 1000)
		sendAll := func() {
			for gfn, page := range pages {
				p.send(uint64(gfn), page)
			}
		}
		for i := range pages {
			pages[i] = pageOf(rng, []func(*rand.Rand, []byte){fillText, fillRandom}[i/500])
		}
		n, _ := p.over(sendAll)
		for range 20 {
			for _, page := range pages {
				page[rng.IntN(pageSize)]++
			}
			n, _ = p.over(sendAll)
		}
		t.Logf("%.0f MB/s, %v hidden: %+v", c.speed/mb, c.hidden, n)
		require.GreaterOrEqual(t, n.delta, c.low, "%.0f MB/s", c.speed/mb)
		require.LessOrEqual(t, n.delta, c.top, "%.0f MB/s", c.speed/mb)
	}
}

// A page of text that is written anew has a delta, but a large one: LZ4 is tried
// on what the cache keeps, and the delta after that has the right base.
func TestLargeDeltas(t *testing.T) {
	p := newPair(t, xbrle.Config{Bytes: 16 << 20})
	p.link(100*mb, 1)
	rng := rand.New(rand.NewPCG(5, 6))
	var n counts
	for round := range 4 {
		n, _ = p.over(func() {
			for gfn := range uint64(300) {
				page := pageOf(rng, fillText)
				p.send(gfn, page)
				page[7]++
				p.send(gfn, page)
			}
		})
		t.Logf("round %d: %+v", round, n)
	}
	require.Greater(t, n.block, 290, "the new text")
	require.Greater(t, n.delta, 290, "the byte in it")
}

// What was incompressible is tried again now and then, and what was text is given
// up soon.
func TestNeighbourhoodChanges(t *testing.T) {
	p := newPair(t, xbrle.Config{})
	p.link(100*mb, 1)
	rng := rand.New(rand.NewPCG(7, 8))
	pass := func(fill [][]byte) (counts, float64) {
		return p.over(func() {
			for gfn := range uint64(4 * regionPages) {
				p.send(gfn, anyOf(rng, fill))
			}
		})
	}
	_, work := pass(randoms)
	require.Less(t, work, 4*(regionPages/probeEvery+2)*8e-6, "random pages are probed, not all tried")
	n, _ := pass(texts)
	require.Greater(t, n.block, 4*(regionPages-2*probeEvery))
	_, work = pass(randoms)
	require.Less(t, work, 4*(regionPages/probeEvery+20)*8e-6)
}

// The limit is changed while pages go: the mix follows within milliseconds of
// link time.
func TestLinkChanges(t *testing.T) {
	p := newPair(t, xbrle.Config{})
	rng := rand.New(rand.NewPCG(9, 10))
	gfn := uint64(0)
	some := func(n int) counts {
		c, _ := p.over(func() {
			for range n {
				p.send(gfn, anyOf(rng, texts))
				gfn++
			}
		})
		return c
	}
	p.link(50*mb, 1)
	require.Greater(t, some(3000).block, 2990)
	p.link(10_000*mb, 1)
	some(200)
	require.Less(t, some(3000).block, 30)
	p.link(50*mb, 1)
	some(100) // 8 ms of the link
	require.Greater(t, some(3000).block, 2990)
	p.link(0, 0)
	require.Zero(t, some(3000).block)
}

// LZ4 that looked slow for a while, on a busy machine, comes back by itself; and
// where it has become slow it is given up.
func TestCostChanges(t *testing.T) {
	p := newPair(t, xbrle.Config{})
	p.link(400*mb, 1)
	rng := rand.New(rand.NewPCG(11, 12))
	gfn := uint64(0)
	some := func(n int) counts {
		c, _ := p.over(func() {
			for range n {
				p.send(gfn, anyOf(rng, texts))
				gfn++
			}
		})
		return c
	}
	p.lz4 = 1_000_000
	some(30_000)
	require.Less(t, some(10_000).block, 300)
	p.lz4 = 4000
	some(30_000)
	require.Greater(t, some(1000).block, 800) // at 4 us a page, encoder and link meet at 0.87
}

// A cache whose memory is slow at first, as where each page of it is a page
// fault, is filled all the same while encoders wait for the link, and is not
// where they do not.
func TestDearBases(t *testing.T) {
	for _, c := range []struct {
		hidden   float64
		low, top int
	}{{1, 900, 1000}, {0, 0, 200}} {
		p := newPair(t, xbrle.Config{Bytes: 16 << 20})
		p.link(500*mb, c.hidden)
		d := p.src.deltas.(timedDeltas)
		d.each = 20_000
		p.src.deltas = d
		for gfn := range uint64(1000) {
			p.send(gfn, randoms[gfn%256])
		}
		n := 0
		for gfn := range uint64(1000) {
			if d.Kept(p.buf[:], gfn) {
				n++
			}
		}
		t.Logf("hidden %v: %d of 1000 kept", c.hidden, n)
		require.GreaterOrEqual(t, n, c.low)
		require.LessOrEqual(t, n, c.top)
	}
}

// A guest that writes to a page just after it was kept: LZ4 gets what is kept,
// not what the page has become.
func TestBlockIsOfWhatIsKept(t *testing.T) {
	p := newPair(t, xbrle.Config{Bytes: 1 << 20})
	p.link(10*mb, 1)
	page := append([]byte(nil), texts[0]...)
	p.src.deltas = writtenAfter{p.src.deltas, page}
	e := p.src.EncodeTo(p.buf[:], 1, page)
	require.Equal(t, p.src.blocks.ID(), e.Codec)
	got := make([]byte, pageSize)
	require.NoError(t, p.dst.blocks.Decode(1, got, 0, e.Data))
	require.Equal(t, texts[0], got)
}

// writtenAfter is a guest that writes as soon as deltas has looked.
type writtenAfter struct {
	deltas
	page []byte
}

func (w writtenAfter) EncodeTo(dst []byte, gfn uint64, page []byte) policy.Encoding {
	defer func() { w.page[9]++ }()
	return w.deltas.EncodeTo(dst, gfn, page)
}
