package policy

import "math/rand/v2"

var (
	_ Order = (*HotLast)(nil)
	_ Order = (*Random)(nil)
)

func init() {
	Orders.Register("hot-last", func(*Options) (Order, error) { return &HotLast{}, nil })
	Orders.Register("random", func(o *Options) (Order, error) {
		return &Random{rng: rand.New(rand.NewPCG(uint64(o.Int("seed", 1, 0, 1<<31-1)), 0))}, nil
	})
}

// HotLast is the order "hot-last": pages that are written most go last, since
// what goes first is likely to be written again before the round ends (Svaerd
// et al. 2011, the follow-up on page order). Among equally hot pages the order
// is by address, which keeps runs long.
//
// How hot a page is, is its history over the last eight rounds, one bit a
// round and the newest on top: the aging approximation of LRU. A page costs
// two bytes, allocated up to the highest page seen.
type HotLast struct {
	history []uint8 // bit 7: dirty in the round that seen names
	seen    []uint8 // that round, modulo 256
	sorted  []uint64
}

// Sort implements Order. In round 1 pages are those ever touched, which says
// nothing about heat: they stay in order of address.
func (h *HotLast) Sort(r Round, pages []uint64) {
	if r.Number < 1 || len(pages) == 0 {
		return
	}
	now := uint8(r.Number)
	var start [257]int
	for _, p := range pages {
		start[int(h.touch(p, now))+1]++
	}
	for i := 1; i < len(start); i++ {
		start[i] += start[i-1]
	}
	if cap(h.sorted) < len(pages) {
		h.sorted = make([]uint64, len(pages))
	}
	out := h.sorted[:len(pages)]
	for _, p := range pages {
		k := h.history[p]
		out[start[k]] = p
		start[k]++
	}
	copy(pages, out)
}

// touch ages the page's history to round now and adds that it was dirty.
func (h *HotLast) touch(p uint64, now uint8) uint8 {
	if p >= uint64(len(h.history)) {
		n := p + p/4 + 1024
		h.history = append(make([]uint8, 0, n), h.history...)[:n]
		h.seen = append(make([]uint8, 0, n), h.seen...)[:n]
	}
	age := now - h.seen[p]
	v := uint8(0)
	if age < 8 {
		v = h.history[p] >> age
	}
	v |= 0x80
	h.history[p], h.seen[p] = v, now
	return v
}

// Random is the order "random": every order equally likely, the same for the
// same seed. It is the ablation that shows what an order is worth.
type Random struct{ rng *rand.Rand }

// Sort implements Order.
func (o *Random) Sort(_ Round, pages []uint64) {
	o.rng.Shuffle(len(pages), func(i, j int) { pages[i], pages[j] = pages[j], pages[i] })
}
