package lz4codec

import (
	"fmt"
	"testing"

	"godwit/migration/policy"
)

const benchPages = 256 // a chunk of the engine: 1 MiB

func BenchmarkEncode(b *testing.B) {
	for _, k := range kinds {
		for _, accel := range []int{1, 4} {
			b.Run(fmt.Sprintf("page=%s/accel=%d", k.name, accel), func(b *testing.B) {
				c, pages := New(accel), pagesOf(benchPages, k.fill)
				var sent, calls int
				b.SetBytes(policy.PageSize)
				b.ReportAllocs()
				for b.Loop() {
					sent += len(c.Encode(0, pages[calls%benchPages]).Data)
					calls++
				}
				b.ReportMetric(float64(sent)/float64(calls*policy.PageSize), "ratio")
			})
		}
	}
}

// BenchmarkEncodeTo is Encode with memory of the caller: what the slabs cost.
func BenchmarkEncodeTo(b *testing.B) {
	for _, k := range kinds {
		b.Run("page="+k.name, func(b *testing.B) {
			w, pages, dst := newCoder(1), pagesOf(benchPages, k.fill), make([]byte, maxEncoded)
			b.SetBytes(policy.PageSize)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				w.encodeTo(dst, pages[i%benchPages])
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, k := range kinds {
		b.Run("page="+k.name, func(b *testing.B) {
			c := New(1)
			var encs [][]byte
			for _, p := range pagesOf(benchPages, k.fill) {
				if e := c.Encode(0, p); !e.Raw {
					encs = append(encs, e.Data)
				}
			}
			if len(encs) == 0 {
				b.Skip("these pages go raw")
			}
			page := make([]byte, policy.PageSize)
			b.SetBytes(policy.PageSize)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				if err := c.Decode(0, page, 0, encs[i%len(encs)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
