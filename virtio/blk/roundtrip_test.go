package blk_test

import (
	"testing"

	"godwit/blockfile"
	"godwit/virtio/blk"
	"godwit/virtio/internal/drivertest"
)

// BenchmarkRoundTrip4K is a read as a guest with one request in flight sees it:
// kick, worker's wake-up, read, interrupt. There is no vCPU in it.
func BenchmarkRoundTrip4K(b *testing.B) {
	g := boot(b, setup{config: blk.Config{Backend: diskFile(b, blockfile.Options{})}})
	r := request{header: g.arena.Alloc(b, 16, 8), status: g.arena.Alloc(b, 1, 1)}
	g.writeHeader(r.header, in, 8)
	data := []drivertest.Seg{readSeg(g.arena.Alloc(b, 4096, 4096), 4096)}
	b.SetBytes(4096)
	for b.Loop() {
		g.send(0, r, data)
		g.wait(0)
	}
}
