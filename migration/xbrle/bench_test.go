package xbrle

import (
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// timed runs the loop f and reports its rate by the thread's own CPU time
// beside the wall clock's: the figure to quote on a shared machine.
func timed(b *testing.B, f func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	b.SetBytes(pageSize)
	b.ReportAllocs()
	b.ResetTimer()
	began := threadTime(b)
	f()
	took := threadTime(b) - began
	b.StopTimer()
	if took > 0 {
		b.ReportMetric(float64(b.N)*pageSize/float64(took), "GB/s-cpu")
	}
}

func threadTime(b *testing.B) int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		b.Fatal(err)
	}
	return ts.Nano()
}

// change is a way in which a page differs from the one sent before.
type change struct {
	name string
	page func(rng *rand.Rand, p []byte)
}

var changes = []change{
	{"unchanged", func(*rand.Rand, []byte) {}},
	{"word", func(rng *rand.Rand, p []byte) {
		at := 8 * rng.IntN(pageSize/8)
		for i := range 8 {
			p[at+i]++
		}
	}},
	{"random5pct", func(rng *rand.Rand, p []byte) {
		for range pageSize / 20 {
			p[rng.IntN(pageSize)]++
		}
	}},
	{"all", func(_ *rand.Rand, p []byte) {
		for i := range p {
			p[i]++
		}
	}},
}

// pairs makes enough different pages that a branch predictor cannot learn
// them, few enough for the L2 cache: 64 of them, base and changed.
func pairs(c change) (base, page [][pageSize]byte) {
	rng := rand.New(rand.NewPCG(1, 2))
	base, page = make([][pageSize]byte, 64), make([][pageSize]byte, 64)
	for i := range base {
		fill(rng, base[i][:])
		page[i] = base[i]
		c.page(rng, page[i][:])
	}
	return base, page
}

func eachChange(b *testing.B, f func(b *testing.B, base, page [][pageSize]byte)) {
	for _, c := range changes {
		b.Run(c.name, func(b *testing.B) {
			base, page := pairs(c)
			f(b, base, page)
		})
	}
}

func eachKernel(b *testing.B, f func(b *testing.B)) {
	b.Run("avx512", func(b *testing.B) {
		if !useAVX512 {
			b.Skip("this CPU lacks what the assembly needs")
		}
		f(b)
	})
	b.Run("avx2", func(b *testing.B) {
		if !useAVX2 {
			b.Skip("this CPU lacks what the assembly needs")
		}
		withoutAVX512(func() { f(b) })
	})
	b.Run("portable", func(b *testing.B) { portable(func() { f(b) }) })
}

// BenchmarkDelta is the encoder alone: snapshot, difference, runs.
func BenchmarkDelta(b *testing.B) {
	eachKernel(b, func(b *testing.B) {
		eachChange(b, func(b *testing.B, base, page [][pageSize]byte) {
			var s scratch
			var dst [pageSize]byte
			size := 0
			timed(b, func() {
				for i := range b.N {
					n, _ := encodeDelta(&s, &dst, &base[i%64], &page[i%64])
					size += n
				}
			})
			b.ReportMetric(float64(size)/float64(b.N), "B/page")
		})
	})
}

// BenchmarkDecode is the decoder alone, without the check of the base.
func BenchmarkDecode(b *testing.B) {
	eachChange(b, func(b *testing.B, base, page [][pageSize]byte) {
		var s scratch
		var encs [64][]byte
		for i := range encs {
			var dst [pageSize]byte
			n, ok := encodeDelta(&s, &dst, &base[i], &page[i])
			if !ok {
				b.Skip("raw")
			}
			encs[i] = dst[:n]
		}
		timed(b, func() {
			for i := range b.N {
				if err := decode(&base[i%64], encs[i%64], false); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

// BenchmarkChecksum is what a base's check costs: the whole page at the
// destination, the changed lines alone at the source.
func BenchmarkChecksum(b *testing.B) {
	b.Run("page", func(b *testing.B) {
		eachChange(b, func(b *testing.B, base, _ [][pageSize]byte) {
			sum := uint32(0)
			timed(b, func() {
				for i := range b.N {
					sum ^= crc32.Checksum(base[i%64][:], castagnoli)
				}
			})
			sink = uint64(sum)
		})
	})
	b.Run("fold", func(b *testing.B) {
		eachChange(b, func(b *testing.B, base, page [][pageSize]byte) {
			var s scratch
			var changed [64]uint64
			for i := range changed {
				changed[i] = s.diff(&base[i], &page[i])
			}
			timed(b, func() {
				for i := range b.N {
					sink = uint64(s.fold(&base[i%64], changed[i%64], 1))
				}
			})
		})
	})
}

// BenchmarkEncode is a stream's whole path for a page that is in the cache:
// look-up, snapshot, difference, runs, CRC, the base brought up to date. Each
// page alternates between two contents, so that every encoding has the change.
func BenchmarkEncode(b *testing.B) {
	eachKernel(b, func(b *testing.B) {
		eachChange(b, func(b *testing.B, base, page [][pageSize]byte) {
			c := New(Config{Bytes: 1 << 20})
			defer func() { _ = c.Close() }()
			both := [2][][pageSize]byte{page, base}
			var dst [pageSize]byte
			for i := range base {
				c.EncodeTo(dst[:], uint64(i), base[i][:])
			}
			timed(b, func() {
				for i := range b.N {
					e := c.EncodeTo(dst[:], uint64(i%64), both[i/64%2][i%64][:])
					sink += uint64(len(e.Data))
				}
			})
		})
	})
}

// BenchmarkEncodeMiss is the path of a page that is not in the cache: kept from
// now on, or refused.
func BenchmarkEncodeMiss(b *testing.B) {
	base, _ := pairs(changes[0])
	var dst [pageSize]byte
	b.Run("kept", func(b *testing.B) {
		c := New(Config{Bytes: 1 << 20})
		defer func() { _ = c.Close() }()
		timed(b, func() {
			for i := range b.N {
				c.EncodeTo(dst[:], uint64(i%64), base[i%64][:])
				c.Forget(uint64(i % 64))
			}
		})
	})
	b.Run("refused", func(b *testing.B) {
		c := New(Config{Bytes: 1 << 20, Prime: PrimeHot})
		defer func() { _ = c.Close() }()
		timed(b, func() {
			for i := range b.N {
				c.EncodeTo(dst[:], uint64(i), base[i%64][:])
			}
		})
	})
}

// BenchmarkLookUp is the cache alone, 64 MiB of it, pages drawn at random.
func BenchmarkLookUp(b *testing.B) {
	c, err := newCache(64<<20, true)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = unix.Munmap(c.mem) }()
	var h heat
	const held = 16000
	for gfn := range uint64(held) {
		p, _, _ := c.admit(gfn, hotness{page: 1}, &h)
		p.release(0, 0)
	}
	for name, from := range map[string]uint64{"hit": 0, "miss": 1 << 20} {
		b.Run(name, func(b *testing.B) {
			timed(b, func() {
				for i := range b.N {
					if p, ok := c.find(from + uint64(i)*7919%held); ok {
						p.release(0, 0)
					}
				}
			})
		})
	}
}

// BenchmarkDecodeChecked is the destination's whole path: the base's CRC, then
// the literals. The delta is one that it may apply again and again.
func BenchmarkDecodeChecked(b *testing.B) {
	eachChange(b, func(b *testing.B, base, page [][pageSize]byte) {
		var s scratch
		var dst [pageSize]byte
		c := New(Config{})
		var encs, back [64][]byte
		var sums, backSums [64]uint32
		for i := range encs {
			n, ok := encodeDelta(&s, &dst, &base[i], &page[i])
			if !ok {
				b.Skip("raw")
			}
			encs[i], sums[i] = append([]byte(nil), dst[:n]...), checksum(&base[i])
			n, _ = encodeDelta(&s, &dst, &page[i], &base[i])
			back[i], backSums[i] = append([]byte(nil), dst[:n]...), checksum(&page[i])
		}
		timed(b, func() {
			for i := range b.N {
				j, enc, sum := i%64, &encs, &sums
				if i/64%2 == 1 {
					enc, sum = &back, &backSums
				}
				if err := c.Decode(uint64(j), base[j][:], sum[j], enc[j]); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
}

// BenchmarkCopy is the bound: copying 4 KiB, sources and destinations as above.
func BenchmarkCopy(b *testing.B) {
	base, page := pairs(changes[0])
	timed(b, func() {
		for i := range b.N {
			copy(base[i%64][:], page[i%64][:])
		}
	})
}

var sink uint64
