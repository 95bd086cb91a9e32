package xbrle

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"godwit/migration/policy"
)

// move plays the migration of a guest that fills memory with random words and
// then changes 8 bytes in random pages of a working set, over a link that is
// slower than everything else. It is the limited case of the project's figures
// at a sixteenth: memory, working set, link and rate. Bits are cleared
// just before each page is sent; order is by address. It gives the bytes sent.
type move struct {
	codec          *Codec
	memory         [][pageSize]byte
	from, to       int     // the working set
	link, rate     float64 // bytes and writes per second
	early          float64 // how long the log is watched before the first round
	now            float64
	written, bytes float64
	dirty          []bool
	rng            *rand.Rand
}

func newMove(codec *Codec, pages, from, to int) *move {
	m := &move{codec: codec, memory: make([][pageSize]byte, pages), from: from, to: to, dirty: make([]bool, pages), rng: rand.New(rand.NewPCG(5, 6))}
	for i := range m.memory {
		for j := 0; j < pageSize; j += 8 {
			binary.LittleEndian.PutUint64(m.memory[i][j:], m.rng.Uint64())
		}
	}
	return m
}

func (m *move) run() (rounds int) {
	pending := make([]uint64, 0, len(m.memory))
	m.pass(m.early)
	m.codec.Observe(policy.Round{}, m.takeDirty(pending))
	for gfn := range m.memory {
		pending = append(pending, uint64(gfn))
	}
	const enough = 40 // pages that may be left for the pause
	for rounds = 1; rounds < 100 && len(pending) > enough; rounds++ {
		m.round(pending)
		pending = m.takeDirty(pending[:0])
		m.codec.Observe(policy.Round{Number: rounds}, pending)
	}
	m.round(pending)
	return rounds
}

// round sends pages; the guest goes on meanwhile.
func (m *move) round(pages []uint64) {
	var dst [pageSize]byte
	for _, gfn := range pages {
		m.dirty[gfn] = false
		e := m.codec.EncodeTo(dst[:], gfn, m.memory[gfn][:])
		const header = 16
		m.bytes += float64(len(e.Data) + header)
		m.pass(float64(len(e.Data)+header) / m.link)
	}
}

// pass lets the guest write for some seconds.
func (m *move) pass(seconds float64) {
	for m.now += seconds; m.written < m.now*m.rate; m.written++ {
		gfn := m.from + m.rng.IntN(m.to-m.from)
		at := 8 * m.rng.IntN(pageSize/8)
		binary.LittleEndian.PutUint64(m.memory[gfn][at:], m.rng.Uint64())
		m.dirty[gfn] = true
	}
}

func (m *move) takeDirty(pages []uint64) []uint64 {
	for gfn, d := range m.dirty {
		if d {
			pages = append(pages, uint64(gfn))
			m.dirty[gfn] = false
		}
	}
	return pages
}

// BenchmarkPrime answers the two open questions of the XBRLE paper: how large
// the cache, and filled with what. floor is bytes sent to the bytes of memory,
// resent are pages that went raw more than once, cache is the most that it held.
func BenchmarkPrime(b *testing.B) {
	const pages, hot = 1 << 14, 1 << 13
	for _, c := range []struct {
		name string
		Config
	}{
		{"none", Config{}},
		{"half/all", Config{Bytes: 32 << 20}},
		{"half/hot", Config{Bytes: 32 << 20, Prime: PrimeHot}},
		{"half/none", Config{Bytes: 32 << 20, Prime: PrimeNone}},
		{"16th/all", Config{Bytes: 4 << 20}},
		{"16th/hot", Config{Bytes: 4 << 20, Prime: PrimeHot}},
		{"16th/none", Config{Bytes: 4 << 20, Prime: PrimeNone}},
		{"auto", Config{Bytes: 64 << 20, Auto: true, Prime: PrimeHot}},
	} {
		for _, rate := range []float64{20_000. / 16, 50_000. / 16} {
			name := c.name + "/20k"
			if rate > 2000 {
				name = c.name + "/50k"
			}
			b.Run(name, func(b *testing.B) {
				for range b.N {
					b.StopTimer()
					codec := New(c.Config)
					m := newMove(codec, pages, pages-hot, pages)
					m.link, m.rate, m.early = 125e6/16, rate, 0.05
					b.StartTimer()
					rounds := m.run()
					s := codec.Stats()
					b.ReportMetric(m.bytes/float64(pages*pageSize), "floor")
					b.ReportMetric(float64(s.Pages()-s.Deltas-pages), "resent")
					b.ReportMetric(float64(s.HeldPages)*pageSize/(1<<20), "cache-MiB")
					b.ReportMetric(float64(rounds), "rounds")
					_ = codec.Close()
				}
			})
		}
	}
}
