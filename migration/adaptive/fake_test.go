package adaptive

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration/lz4codec"
	"godwit/migration/policy"
	"godwit/migration/policy/policytest"
	"godwit/migration/xbrle"
)

// clock is time that passes only when work is done.
type clock struct{ ns int64 }

// timedDeltas is xbrle with a price.
type timedDeltas struct {
	*xbrle.Codec
	clock *clock
	each  int64
}

func (d timedDeltas) EncodeTo(dst []byte, gfn uint64, page []byte) policy.Encoding {
	e := d.Codec.EncodeTo(dst, gfn, page)
	if !e.Raw || &e.Data[0] == &dst[0] {
		d.clock.ns += d.each
	}
	return e
}

// timedBlocks is lz4 with a price.
type timedBlocks struct {
	*lz4codec.Codec
	clock *clock
	each  *int64
}

func (b timedBlocks) EncodeTo(dst []byte, gfn uint64, page []byte) policy.Encoding {
	b.clock.ns += *b.each
	return b.Codec.EncodeTo(dst, gfn, page)
}

// pair is a source whose work takes the time that the test says, and a
// destination.
type pair struct {
	t      testing.TB
	src    *Codec
	dst    *Codec
	clock  clock
	lz4    int64 // ns a page
	speed  float64
	have   map[uint64][]byte
	buf    [pageSize]byte
	counts counts
}

// counts is what became of pages, and the time they took.
type counts struct{ raw, delta, block, sent int }

func newPair(t testing.TB, config xbrle.Config) *pair {
	p := &pair{t: t, dst: New(config, 1), have: map[uint64][]byte{}, lz4: 8000}
	p.src = newCodec(timedDeltas{xbrle.New(config), &p.clock, 200}, timedBlocks{lz4codec.New(1), &p.clock, &p.lz4}, func() int64 { return p.clock.ns })
	t.Cleanup(func() {
		require.NoError(t, p.src.Close())
		require.NoError(t, p.dst.Close())
	})
	return p
}

func (p *pair) link(speed, hidden float64) {
	p.speed = speed
	p.src.ObserveLink(policy.Link{Speed: speed, Hidden: hidden})
}

// send moves a page and checks it.
func (p *pair) send(gfn uint64, page []byte) {
	e := p.src.EncodeTo(p.buf[:], gfn, page)
	p.counts.sent += len(e.Data)
	switch {
	case e.Same:
	case e.Raw:
		p.counts.raw++
		p.have[gfn] = append(p.have[gfn][:0], e.Data...)
	default:
		if e.Base != 0 {
			p.counts.delta++
		} else {
			p.counts.block++
		}
		require.NotZero(p.t, e.Codec)
		if p.have[gfn] == nil {
			p.have[gfn] = make([]byte, pageSize)
		}
		require.NoError(p.t, policytest.Decoder(p.dst, e.Codec).Decode(gfn, p.have[gfn], e.Base, e.Data))
	}
	require.True(p.t, bytes.Equal(page, p.have[gfn]), "page %d differs", gfn)
}

// over is what do sends, and the seconds of work that it took.
func (p *pair) over(do func()) (counts, float64) {
	p.counts = counts{}
	began := p.clock.ns
	do()
	return p.counts, float64(p.clock.ns-began) / 1e9
}

func fillRandom(rng *rand.Rand, page []byte) {
	for i := range page {
		page[i] = byte(rng.Uint32())
	}
}

// fillText is lines that LZ4 takes to about a third.
func fillText(rng *rand.Rand, page []byte) {
	text := page[:0]
	for len(text) < len(page) {
		text = fmt.Appendf(text, "request %d from client %d: sector read, queue closed after timeout\n", rng.IntN(1e6), rng.IntN(1e6))
	}
	copy(page, text)
}

func pageOf(rng *rand.Rand, fill func(*rand.Rand, []byte)) []byte {
	p := make([]byte, pageSize)
	fill(rng, p)
	return p
}

// texts and randoms are pages to be sent as they are.
var texts, randoms = pagesOf(fillText), pagesOf(fillRandom)

func pagesOf(fill func(*rand.Rand, []byte)) [][]byte {
	rng := rand.New(rand.NewPCG(20, 21))
	pages := make([][]byte, 256)
	for i := range pages {
		pages[i] = pageOf(rng, fill)
	}
	return pages
}

func anyOf(rng *rand.Rand, pages [][]byte) []byte { return pages[rng.IntN(len(pages))] }
