package xbrle

import "sync/atomic"

const (
	chunkPages  = 1 << 18 // 1 GiB of guest memory
	regionPages = 512     // 2 MiB of guest memory
	heatChunks  = 1 << 12 // 4 TiB; pages beyond share counters with those below
	maxHeat     = 255
)

// heat counts per page how often it was sent or seen dirty, in one byte, and
// per region how often one of its pages was sent again or seen dirty. A page
// that nobody has seen dirty yet is likely hot where its neighbours are. All
// methods may be called at any time by any number of goroutines.
type heat struct {
	chunks [heatChunks]atomic.Pointer[heatChunk]
}

type heatChunk struct {
	pages   [chunkPages / 4]atomic.Uint32 // four counters each
	regions [chunkPages / regionPages]atomic.Uint32
}

func (h *heat) chunk(gfn uint64) *heatChunk {
	p := &h.chunks[gfn/chunkPages%heatChunks]
	if c := p.Load(); c != nil {
		return c
	}
	p.CompareAndSwap(nil, new(heatChunk))
	return p.Load()
}

// sent counts a sending of page gfn and tells how hot the page is now.
func (h *heat) sent(gfn uint64) hotness {
	c := h.chunk(gfn)
	n := c.bump(gfn % chunkPages)
	region := &c.regions[gfn%chunkPages/regionPages]
	if n > 1 {
		region.Add(1)
	}
	return hotness{page: n, region: region.Load()}
}

// seen counts that page gfn was found dirty.
func (h *heat) seen(gfn uint64) {
	c := h.chunk(gfn)
	c.bump(gfn % chunkPages)
	c.regions[gfn%chunkPages/regionPages].Add(1)
}

// of tells how hot page gfn is.
func (h *heat) of(gfn uint64) hotness {
	c := h.chunks[gfn/chunkPages%heatChunks].Load()
	if c == nil {
		return hotness{}
	}
	i := gfn % chunkPages
	return hotness{page: c.pages[i/4].Load() >> (i % 4 * 8) & 0xff, region: c.regions[i/regionPages].Load()}
}

// bump adds one to a page's counter, up to maxHeat, and gives its value.
func (c *heatChunk) bump(i uint64) uint32 {
	w, shift := &c.pages[i/4], i%4*8
	for {
		v := w.Load()
		n := v >> shift & 0xff
		if n == maxHeat {
			return n
		}
		if w.CompareAndSwap(v, v+1<<shift) {
			return n + 1
		}
	}
}

// halve ages all counters. A count that is made meanwhile may get lost.
func (h *heat) halve() {
	for i := range h.chunks {
		c := h.chunks[i].Load()
		if c == nil {
			continue
		}
		for j := range c.pages {
			if v := c.pages[j].Load(); v != 0 {
				c.pages[j].Store(v >> 1 & 0x7f7f7f7f)
			}
		}
		for j := range c.regions {
			c.regions[j].Store(c.regions[j].Load() / 2)
		}
	}
}

// hotness is what is known of a page: how often it was sent or seen dirty, and
// how much happens around it.
type hotness struct{ page, region uint32 }

// hot says that the page is expected to be sent again: it was sent or seen
// dirty before, or one of its neighbours was.
func (h hotness) hot() bool { return h.page > 1 || h.region > 0 }

// above says that h is hotter than other; what is equal stays where it is.
func (h hotness) above(other hotness) bool {
	return h.page > other.page || h.page == other.page && h.region > other.region
}
