package zero

import (
	"bytes"
	"fmt"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"godwit/migration/zero/internal/readloop"
)

// benchSizes are inside L2, inside L3 and beyond any cache.
var benchSizes = []int{256 << 10, 32 << 20, 1 << 30}

// benchContents says where in every page the one set byte is, -1 for none.
var benchContents = []struct {
	name string
	at   int
}{{"zero", -1}, {"first", 0}, {"middle", PageSize / 2}, {"last", PageSize - 1}}

// scans are what is compared. Each looks at all of mem, the last one without
// an early exit.
var scans = []struct {
	name string
	run  func(mem []byte, bitmap []uint64)
}{
	{"classify", func(mem []byte, bitmap []uint64) { Classify(mem, bitmap) }},
	{"equal", func(mem []byte, bitmap []uint64) {
		clear(bitmap)
		for i := 0; i < len(mem); i += PageSize {
			if bytes.Equal(mem[i:i+PageSize], blank[:]) {
				bitmap[i/PageSize/64] |= 1 << (i / PageSize % 64)
			}
		}
	}},
	{"read", func(mem []byte, _ []uint64) { readloop.Or(mem) }},
}

// touched gives populated memory in huge pages where the system has them.
func touched(b *testing.B, size, at int) []byte {
	const huge = 2 << 20
	m, err := unix.Mmap(-1, 0, size+huge, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = unix.Munmap(m) })
	_ = unix.Madvise(m, unix.MADV_HUGEPAGE) // only slower without
	skip := -uintptr(unsafe.Pointer(&m[0])) % huge
	mem := m[skip : int(skip)+size]
	for i := 0; i < size; i += PageSize {
		mem[i] = 1
		mem[i] = 0
		if at >= 0 {
			mem[i+at] = 1
		}
	}
	return mem
}

func eachBench(b *testing.B, run func(b *testing.B, mem []byte, bitmap []uint64)) {
	if !readloop.Available() {
		b.Skip("the yardstick needs AVX2")
	}
	for _, size := range benchSizes {
		for _, c := range benchContents {
			b.Run(fmt.Sprintf("size=%dKiB/set=%s", size>>10, c.name), func(b *testing.B) {
				mem := touched(b, size, c.at)
				run(b, mem, make([]uint64, (size/PageSize+63)/64))
			})
		}
	}
}

// BenchmarkScan is one figure per scan, for benchstat.
func BenchmarkScan(b *testing.B) {
	eachBench(b, func(b *testing.B, mem []byte, bitmap []uint64) {
		for _, s := range scans {
			b.Run("by="+s.name, func(b *testing.B) {
				b.SetBytes(int64(len(mem)))
				b.ReportAllocs()
				for b.Loop() {
					s.run(mem, bitmap)
				}
			})
		}
	})
}

// BenchmarkBeside lets the scans take turns every 4 MiB, so that a busy
// neighbour hits all of them alike, and reports the median of those pieces: each
// scan's speed, and its speed over that of the plain read. Every scan visits
// every piece, one piece per pass over memory.
func BenchmarkBeside(b *testing.B) {
	eachBench(b, func(b *testing.B, mem []byte, bitmap []uint64) {
		piece := min(len(mem), 4<<20)
		repeats := max(1, 1<<20/piece) // for the clock's sake
		speed := make([][]float64, len(scans))
		pass := 0
		for b.Loop() {
			for range scans {
				for i := 0; i < len(mem); i += piece {
					k := (pass + i/piece) % len(scans)
					began := time.Now()
					for range repeats {
						scans[k].run(mem[i:i+piece], bitmap[:piece/PageSize/64])
					}
					speed[k] = append(speed[k], float64(repeats*piece)/time.Since(began).Seconds()/(1<<30))
				}
				pass++
			}
		}
		read := median(speed[len(scans)-1])
		for k, s := range scans {
			b.ReportMetric(median(speed[k]), s.name+"-GiB/s")
			if k < len(scans)-1 {
				b.ReportMetric(median(speed[k])/read, s.name+"/read")
			}
		}
		b.ReportMetric(0, "ns/op") // of all three, and so of none
	})
}

func median(v []float64) float64 {
	slices.Sort(v)
	return v[len(v)/2]
}
