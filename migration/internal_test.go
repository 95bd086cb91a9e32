package migration

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"runtime/debug"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/migration/policy"
	"godwit/migration/wire"
)

// Both phase tables, walked: everything named is defined, everything is reached,
// the ends are ends, and only the one legal way leads past the point of no
// return.
func TestPhaseTables(t *testing.T) {
	for name, table := range map[string]map[Phase][]Phase{"source": sourceNext, "target": targetNext} {
		reached := map[Phase]bool{PhaseIdle: true}
		for from, tos := range table {
			for _, to := range tos {
				require.Contains(t, table, to, "%s: %s leads to an unknown phase", name, from)
				require.NoError(t, step(table, from, to))
				reached[to] = true
			}
			require.Error(t, step(table, from, PhaseIdle), "nothing leads back to the start")
		}
		require.Len(t, reached, len(table), "%s: a phase is never reached", name)
		for _, end := range []Phase{PhaseCompleted, PhaseFailed, PhaseCancelled} {
			require.Empty(t, table[end])
		}
		require.NotContains(t, table[PhaseCommitted], PhaseUndo)
		require.NotContains(t, table[PhaseCommitted], PhaseCancelled)
		before := PhasePrepare
		if name == "target" {
			before = PhaseReady
		}
		for from, tos := range table {
			require.Equal(t, from == before, slices.Contains(tos, PhaseCommitted), "%s: %s to committed", name, from)
		}
	}
}

func TestDowntimeClock(t *testing.T) {
	var c downtimeClock
	require.Error(t, c.enter(partPages), "pause comes first")
	for p := partPause; p <= partEnd; p++ {
		require.NoError(t, c.enter(p))
		require.Error(t, c.enter(p), "a part is entered once")
		require.Error(t, c.enter(p-1), "and never left backwards")
	}
	var total time.Duration
	for p := partPause; p < partEnd; p++ {
		total += c.took[p]
	}
	require.Equal(t, total, c.total())
}

func TestQuietGC(t *testing.T) {
	before := debug.SetGCPercent(77)
	defer debug.SetGCPercent(before)
	a, b := quietGC(), quietGC()
	a()
	a() // once only
	require.Equal(t, -1, debug.SetGCPercent(-1))
	b()
	require.Equal(t, 77, debug.SetGCPercent(77))
}

// A limiter asked in simulated time keeps to its rate and bursts by creditTime at most.
func TestLimiter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Int64Range(MinBandwidth, 10<<30).Draw(t, "rate")
		var l limiter
		l.set(rate)
		now := l.at
		began := now
		piece := l.piece()
		sent := 0
		for range 2000 {
			if rapid.IntRange(0, 50).Draw(t, "idle") == 0 {
				now = now.Add(time.Second)
				began = now // after idling, only creditTime is free
				sent = 0
			}
			d := l.take(piece, now)
			if d == 0 {
				sent += piece
			}
			require.LessOrEqual(t, d, napMax)
			require.LessOrEqual(t, float64(sent), now.Sub(began).Seconds()*float64(rate)*1.001+3*float64(piece)+float64(rate)*creditTime.Seconds())
			now = now.Add(d)
		}
		l.set(0)
		require.Zero(t, l.take(1<<30, now))
		require.Zero(t, l.piece())
	})
}

func TestLimiterReachesItsRate(t *testing.T) {
	var l limiter
	l.set(100 << 20)
	now, began, sent := l.at, l.at, 0
	for sent < 1<<30 {
		if d := l.take(l.piece(), now); d > 0 {
			now = now.Add(d)
			continue
		}
		sent += l.piece()
	}
	require.InDelta(t, float64(100<<20), float64(sent)/now.Sub(began).Seconds(), 2<<20)
}

func TestBitmap(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		words := rapid.IntRange(1, 6).Draw(t, "words")
		b := make(Bitmap, words)
		want := map[uint64]bool{}
		for range rapid.IntRange(0, 8).Draw(t, "ops") {
			from := rapid.Uint64Range(0, uint64(words)*64).Draw(t, "from")
			to := rapid.Uint64Range(from, uint64(words)*64).Draw(t, "to")
			set := rapid.Bool().Draw(t, "set")
			if set {
				b.setRange(from, to)
			} else {
				b.clearRange(from, to)
			}
			for g := from; g < to; g++ {
				want[g] = set
			}
		}
		var gfns []uint64
		for g := range uint64(words) * 64 {
			if want[g] {
				gfns = append(gfns, g)
			}
		}
		require.EqualValues(t, len(gfns), b.Count())
		var fromExtents []uint64
		end := uint64(0)
		for i, e := range b.extents() {
			require.True(t, i == 0 || e.GPA > end, "extents must be merged")
			for g := e.GPA / pageSize; g < (e.GPA+e.Len)/pageSize; g++ {
				fromExtents = append(fromExtents, g)
			}
			end = e.GPA + e.Len
		}
		require.Equal(t, gfns, fromExtents)
		require.Equal(t, gfns, b.drain(nil))
		require.Zero(t, b.Count())
	})
}

func TestRAM(t *testing.T) {
	mem := make([]byte, 8*pageSize)
	for name, regions := range map[string][]Region{
		"none":      nil,
		"unaligned": {{GPA: 1, Bytes: mem}},
		"odd":       {{GPA: 0, Bytes: mem[:5]}},
		"overlap":   {{GPA: 0, Bytes: mem}, {GPA: pageSize, Bytes: mem}},
		"many":      make([]Region, wire.MaxRegions+1),
	} {
		_, err := newRAM(regions)
		require.Error(t, err, name)
	}
	m, err := newRAM([]Region{{GPA: 0, Bytes: mem[:4*pageSize]}, {GPA: 100 * pageSize, Bytes: mem[4*pageSize:]}})
	require.NoError(t, err)
	require.EqualValues(t, 8, m.pages)
	require.NotNil(t, m.whole(100*pageSize, 4*pageSize))
	require.Nil(t, m.whole(3*pageSize, 2*pageSize))
	require.Nil(t, m.whole(^uint64(4095), 2*pageSize))
	all := make(Bitmap, m.words)
	all.setRange(0, uint64(m.words)*64)
	m.clip(all)
	require.EqualValues(t, 8, all.Count())
	require.Error(t, m.addExtents(all, []Extent{{GPA: 1 << 50, Len: pageSize}}))
	require.ErrorContains(t, m.sameLayout([]Extent{{GPA: 0, Len: pageSize}}), "0x4000@0x0+0x4000@0x64000")
}

// Regions may touch: no run and no extent on the wire crosses from one to the
// next, so the destination finds each in one piece.
func TestRegionsThatTouch(t *testing.T) {
	mem := make([]byte, 4*pageSize)
	m, err := newRAM([]Region{{GPA: 0, Bytes: mem[:2*pageSize]}, {GPA: 2 * pageSize, Bytes: mem[2*pageSize:]}})
	require.NoError(t, err)
	es, err := m.split([]Extent{{GPA: 0, Len: 4 * pageSize}})
	require.NoError(t, err)
	require.Equal(t, m.layout(), es)
	_, err = m.split([]Extent{{GPA: pageSize, Len: 4 * pageSize}})
	require.ErrorContains(t, err, "not guest RAM")
	for i, codec := range []policy.Codec{nil, nil, policy.Raw{}} { // zeros, then pages without a codec and with one
		for k := range 4 {
			mem[k*pageSize] = byte(i)
		}
		var buf bytes.Buffer
		require.NoError(t, newPageWriter(&buf, wire.NewWriter(&buf), m, new(limiter), nil, codec, nil).chunk([]uint64{0, 1, 2, 3}))
		f, err := wire.NewReader(&buf).Next()
		require.NoError(t, err)
		runs, _, err := wire.DecodeRuns(&f)
		require.NoError(t, err)
		require.Equal(t, 2, runs.Len(), "%s", f.Type)
	}
}

// The hash does not depend on what was touched, only on what memory holds.
func TestHash(t *testing.T) {
	mem := make([]byte, 2000*pageSize)
	m, err := newRAM([]Region{{GPA: 0, Bytes: mem}})
	require.NoError(t, err)
	mem[5*pageSize], mem[1999*pageSize+7] = 1, 2
	some, all := make(Bitmap, m.words), make(Bitmap, m.words)
	some.setRange(5, 6)
	some.setRange(1999, 2000)
	all.setRange(0, 2000)
	h := m.hash(some)
	require.Equal(t, h, m.hash(all))
	require.EqualValues(t, 2, h.Pages)
	mem[5*pageSize], mem[6*pageSize] = 0, 1
	require.NotEqual(t, h, m.hash(all), "the same page elsewhere")
	mem[6*pageSize], mem[5*pageSize+1] = 0, 1
	require.NotEqual(t, h, m.hash(all), "the same byte elsewhere in the page")
}

func TestIsZero(t *testing.T) {
	page := make([]byte, pageSize)
	require.True(t, isZero(page))
	for i := range page {
		page[i] = 0x80
		require.False(t, isZero(page), "byte %d", i)
		page[i] = 0
	}
}

// pageWriter's frames, with and without a limit, rebuild memory; nothing is
// allocated per chunk.
func TestPageWriter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		mem := make([]byte, 300*pageSize)
		m, err := newRAM([]Region{{GPA: 0, Bytes: mem[:200*pageSize]}, {GPA: 200 * pageSize, Bytes: mem[200*pageSize:]}})
		require.NoError(t, err)
		var gfns []uint64
		for g := range uint64(300) {
			if rapid.Bool().Draw(t, "sent") {
				gfns = append(gfns, g)
				mem[g*pageSize] = rapid.SampledFrom([]byte{0, 1, 2}).Draw(t, "content")
			}
		}
		if rapid.Bool().Draw(t, "shuffled") {
			rand.New(rand.NewPCG(1, 1)).Shuffle(len(gfns), func(i, j int) { gfns[i], gfns[j] = gfns[j], gfns[i] })
		}
		var buf bytes.Buffer
		var w io.Writer = &buf
		if rapid.Bool().Draw(t, "gathers") {
			w = gathering{&buf}
		}
		l := new(limiter)
		if rapid.Bool().Draw(t, "limited") {
			l.set(4 << 30)
		}
		p := newPageWriter(w, wire.NewWriter(&buf), m, l, nil, nil, nil)
		for rest := gfns; len(rest) > 0; rest = rest[min(len(rest), chunkPages):] {
			require.NoError(t, p.chunk(rest[:min(len(rest), chunkPages)]))
		}
		require.EqualValues(t, buf.Len(), p.written)
		got := make([]byte, len(mem))
		gm, err := newRAM([]Region{{GPA: 0, Bytes: got[:200*pageSize]}, {GPA: 200 * pageSize, Bytes: got[200*pageSize:]}})
		require.NoError(t, err)
		var ps pages
		ps.init(gm, 1, nil, nil)
		in := wire.NewReader(&buf)
		n := uint64(0)
		for {
			f, err := in.Next()
			if errors.Is(err, io.EOF) {
				break
			}
			require.NoError(t, err)
			k, err := ps.apply(&f, in)
			require.NoError(t, err)
			n += k
		}
		require.EqualValues(t, len(gfns), n)
		require.True(t, bytes.Equal(mem, got))
	})
}

// gathering is a connection that makes one write of pieces itself.
type gathering struct{ buf *bytes.Buffer }

func (g gathering) Write([]byte) (int, error) { return 0, errors.New("pieces come together") }

func (g gathering) WriteBuffers(v net.Buffers) (int64, error) {
	n := g.buf.Len()
	for _, b := range v {
		g.buf.Write(b)
	}
	return int64(g.buf.Len() - n), nil
}

func TestPageWriterRefusesHoles(t *testing.T) {
	m, err := newRAM([]Region{{GPA: 0, Bytes: make([]byte, pageSize)}})
	require.NoError(t, err)
	p := newPageWriter(io.Discard, wire.NewWriter(io.Discard), m, new(limiter), nil, nil, nil)
	require.ErrorContains(t, p.chunk([]uint64{1}), "not guest RAM")
}

// AcceptFrom leaves the listener usable after a call that was cancelled.
func TestAcceptFrom(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	accept := AcceptFrom(ln)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { _, err := accept(ctx); done <- err }()
	cancel()
	require.ErrorIs(t, <-done, context.Canceled)
	_, err = accept(ctx)
	require.ErrorIs(t, err, context.Canceled)
	go func() {
		c, err := net.Dial("tcp", ln.Addr().String())
		if err == nil {
			c.Close()
		}
	}()
	c, err := accept(t.Context())
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

func BenchmarkZeroScan(b *testing.B) {
	mem := make([]byte, 64<<20)
	b.SetBytes(int64(len(mem)))
	for b.Loop() {
		for i := 0; i < len(mem); i += pageSize {
			if !isZero(mem[i : i+pageSize]) {
				b.Fatal("not zero")
			}
		}
	}
}

func BenchmarkHash(b *testing.B) {
	mem := make([]byte, 64<<20)
	for i := range mem {
		mem[i] = byte(i * 7)
	}
	m, err := newRAM([]Region{{Bytes: mem}})
	require.NoError(b, err)
	all := make(Bitmap, m.words)
	all.setRange(0, m.pages)
	b.SetBytes(int64(len(mem)))
	for b.Loop() {
		m.hash(all)
	}
}

// BenchmarkChunkCodec is the same through a codec whose cache holds the pages,
// one word of each changing every time: 0 allocs/op.
func BenchmarkChunkCodec(b *testing.B) {
	for _, name := range []string{"rle", "xbrle,cache=16M", "lz4", "auto,cache=16M"} {
		b.Run(name, func(b *testing.B) {
			mem := make([]byte, chunkPages*pageSize)
			rng := rand.NewChaCha8([32]byte{1})
			_, _ = rng.Read(mem)
			m, err := newRAM([]Region{{Bytes: mem}})
			require.NoError(b, err)
			gfns := make([]uint64, chunkPages)
			for i := range gfns {
				gfns[i] = uint64(i)
			}
			codec, err := policy.Codecs.Parse(name)
			require.NoError(b, err)
			defer func() { require.NoError(b, closeCodec(codec)) }()
			pool := newPool()
			defer pool.close()
			p := newPageWriter(io.Discard, wire.NewWriter(io.Discard), m, new(limiter), nil, codec, pool)
			if o, ok := codec.(policy.LinkObserver); ok {
				o.ObserveLink(policy.Link{Speed: 125e6, Hidden: 1})
			}
			b.SetBytes(chunkPages * pageSize)
			b.ReportAllocs()
			for b.Loop() {
				for i := 0; i < len(mem); i += pageSize {
					mem[i+64]++
				}
				if err := p.chunk(gfns); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(p.written)/float64(b.N*chunkPages), "wire-B/page")
		})
	}
}

// BenchmarkChunk is the sending path without a socket: 0 allocs/op.
func BenchmarkChunk(b *testing.B) {
	mem := make([]byte, chunkPages*2*pageSize)
	for i := 0; i < len(mem); i += 3 * pageSize {
		mem[i] = 1
	}
	m, err := newRAM([]Region{{Bytes: mem}})
	require.NoError(b, err)
	gfns := make([]uint64, chunkPages)
	for i := range gfns {
		gfns[i] = uint64(i * 2)
	}
	p := newPageWriter(io.Discard, wire.NewWriter(io.Discard), m, new(limiter), nil, nil, nil)
	b.SetBytes(chunkPages * pageSize)
	b.ReportAllocs()
	for b.Loop() {
		if err := p.chunk(gfns); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkJudge is what it costs to check an order's list: listing the pages
// again where a codec has seen them, copying them, and looking each up.
func BenchmarkJudge(b *testing.B) {
	const pages = 1 << 21 // 8 GiB
	pending := make(Bitmap, pages/64)
	pending.setRange(0, pages)
	full := slices.Clone(pending)
	list := pending.list(nil)
	shuffled := slices.Clone(list)
	rand.New(rand.NewPCG(1, 2)).Shuffle(pages, func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	copied := make([]uint64, pages)
	for name, order := range map[string][]uint64{"ascending": list, "random": shuffled} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				copy(pending, full)
				copy(copied, order)
				if _, ok := pending.judge(copied); !ok {
					b.Fatal("a good order is refused")
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pages, "ns/page")
		})
	}
	b.Run("drain", func(b *testing.B) { // what there was before
		for b.Loop() {
			copy(pending, full)
			copied = pending.drain(copied[:0])
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/pages, "ns/page")
	})
}
