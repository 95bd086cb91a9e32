package adaptive

import "sync/atomic"

const (
	regionPages  = 256 // 1 MiB of guest memory
	regionChunk  = 1 << 10
	regionChunks = 1 << 12 // 4 TiB; pages beyond share regions with those below

	firstGuess   = pageSize / 2 // bytes that LZ4 is taken to make where it was never tried
	bestBlock    = pageSize / 8 // bytes that it makes at best, near enough
	probeEvery   = 24           // pages, where LZ4 did not pay lately
	recheckEvery = 1024         // pages, where it cannot pay at its present cost
)

// regions remember how LZ4 did in each MiB of guest memory, 4 bytes each. All
// methods may be called at any time by any number of goroutines; of updates that
// meet one may get lost.
type regions struct {
	chunks [regionChunks]atomic.Pointer[[regionChunk]region]
}

// region is the mean of bytes that LZ4 made of a page lately, 0 for never tried,
// in the low half, and pages since it was last tried in the high half.
type region struct{ state atomic.Uint32 }

func (r *regions) of(gfn uint64) *region {
	i := gfn / regionPages
	p := &r.chunks[i/regionChunk%regionChunks]
	chunk := p.Load()
	if chunk == nil {
		p.CompareAndSwap(nil, new([regionChunk]region))
		chunk = p.Load()
	}
	return &chunk[i%regionChunk]
}

// expected is how many bytes LZ4 is likely to make of a page here.
func (r *region) expected() int {
	if n := r.state.Load() & 0xffff; n > 0 {
		return int(n)
	}
	return firstGuess
}

// tried notes how many bytes a page took, and starts counting anew.
func (r *region) tried(bytes int) {
	if n := int(r.state.Load() & 0xffff); n > 0 {
		bytes = (3*n + bytes + 3) / 4 // up, or the mean would not reach a whole page
	}
	r.state.Store(uint32(bytes))
}

// due counts a page and says whether it is its turn to be tried.
func (r *region) due(every uint32) bool {
	v := r.state.Load()
	if v>>16+1 >= every {
		return true // tried starts anew
	}
	r.state.Store(v + 1<<16)
	return false
}
