package adaptive

import (
	"fmt"
	"testing"

	"godwit/migration/policy"
)

// BenchmarkEncode is the codec at given speeds of the link, with pages that are
// new each time (text, random) and with pages of which one byte changes
// (rewritten). Page data per second beyond the link's speed is what the encoder
// can feed.
func BenchmarkEncode(b *testing.B) {
	for _, speed := range []float64{125e6, 1e9, 10e9} {
		for _, kind := range []string{"text", "random", "rewritten"} {
			b.Run(fmt.Sprintf("link=%.0fMB/page=%s", speed/1e6, kind), func(b *testing.B) {
				c := parse(b, "auto,cache=4M")
				from := texts
				if kind == "random" {
					from = randoms
				}
				pages := make([][]byte, len(from))
				for i := range pages {
					pages[i] = append([]byte(nil), from[i]...)
				}
				c.ObserveLink(policy.Link{Speed: speed, Hidden: 1})
				var dst [pageSize]byte
				var sent, raw int
				b.SetBytes(pageSize)
				b.ReportAllocs()
				n := 0
				for ; b.Loop(); n++ {
					page, gfn := pages[n%len(pages)], uint64(n)%(1<<22)
					if kind == "rewritten" {
						page[n/len(pages)%pageSize]++
						gfn = uint64(n % len(pages))
					}
					e := c.EncodeTo(dst[:], gfn, page)
					sent += len(e.Data)
					if e.Raw {
						raw++
					}
				}
				b.ReportMetric(float64(sent)/float64(n*pageSize), "ratio")
				b.ReportMetric(float64(raw)/float64(n), "raw")
			})
		}
	}
}
