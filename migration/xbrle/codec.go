package xbrle

import (
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"runtime"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"godwit/migration/policy"
)

// ErrBase says that a delta does not build on the page that is there.
var ErrBase = errors.New("delta does not fit the page")

var (
	_ policy.Codec         = (*Codec)(nil)
	_ policy.EarlyObserver = (*Codec)(nil)
	_ io.Closer            = (*Codec)(nil)
)

// Prime says which pages are kept when they are sent for the first time.
type Prime int

const (
	PrimeAll  Prime = iota // all, as long as there is room; hotter pages replace colder ones
	PrimeHot               // those seen dirty, and those near them
	PrimeNone              // none: only pages that were sent before
)

// Config is the codec's options. The zero value has no cache.
type Config struct {
	Bytes int  // the most that the cache takes, tables included
	Auto  bool // give memory back for pages that have gone cold
	Prime Prime
}

// Codec is the codec "xbrle". Encode, EncodeTo, Decode and Forget may be called
// by any number of goroutines, though not for one page at once. Observe may run
// beside them. Close only when none of them runs any more.
type Codec struct {
	config Config
	heat   heat
	count  counters

	open  sync.Once // the first Encode: a destination needs no cache
	cache atomic.Pointer[cache]
	undo  runtime.Cleanup
	fail  atomic.Pointer[error]

	round   atomic.Uint32 // rounds that Observe was told of
	trimmed atomic.Uint64
}

// New makes a codec. Its memory is mapped by the first Encode.
func New(config Config) *Codec { return &Codec{config: config} }

// ID is 2.
func (c *Codec) ID() uint8 { return 2 }

// Encode is EncodeTo with memory of its own: what it gives stays valid for good.
func (c *Codec) Encode(gfn uint64, page []byte) policy.Encoding {
	return encodeApart(c.EncodeTo, gfn, page)
}

// encodeApart calls an EncodeTo and copies what it made to memory of just that
// size.
func encodeApart(encodeTo func([]byte, uint64, []byte) policy.Encoding, gfn uint64, page []byte) policy.Encoding {
	buf := buffers.Get().(*[pageSize]byte)
	defer buffers.Put(buf)
	e := encodeTo(buf[:], gfn, page)
	if len(e.Data) == 0 || &e.Data[0] == &buf[0] {
		e.Data = append([]byte{}, e.Data...)
	}
	return e
}

var buffers = sync.Pool{New: func() any { return new([pageSize]byte) }}

// EncodeTo makes page gfn an encoding that lies in dst, a page long at least, or
// is the page itself: then no copy was made, because none is kept. page may
// change while it is being read. Allocates nothing in steady state.
func (c *Codec) EncodeTo(dst []byte, gfn uint64, page []byte) policy.Encoding {
	out, live := (*[pageSize]byte)(dst), (*[pageSize]byte)(page)
	hot := c.heat.sent(gfn)
	n := &c.count[c.count.of(gfn)]
	kept := c.pages()
	if kept == nil {
		n.refused.Add(1)
		return policy.Encoding{Data: page[:pageSize], Raw: true}
	}
	if p, ok := kept.find(gfn); ok {
		switch e := c.delta(p, out, live); {
		case e.Same:
			n.same.Add(1)
			return e
		case !e.Raw:
			n.deltas.Add(1)
			n.deltaBytes.Add(uint64(len(e.Data)))
			return e
		}
		n.rawHits.Add(1)
		return policy.Encoding{Data: out[:], Raw: true}
	}
	p, evicted, ok := place{}, false, false
	if c.config.Prime == PrimeAll || hot.hot() {
		p, evicted, ok = kept.admit(gfn, hot, &c.heat)
	}
	if !ok {
		n.refused.Add(1)
		return policy.Encoding{Data: page[:pageSize], Raw: true}
	}
	copy(out[:], live[:])
	copy(p.page[:], out[:]) // not from live: it may have changed since
	p.release(0, c.round.Load())
	n.kept.Add(1)
	if evicted {
		n.evicted.Add(1)
	}
	return policy.Encoding{Data: out[:], Raw: true}
}

// delta encodes live against the page at p, which it makes what is sent.
func (c *Codec) delta(p place, out, live *[pageSize]byte) policy.Encoding {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	crc := p.set.crc[p.way]
	changed := s.diff(p.page, live)
	if changed == 0 {
		p.release(crc, c.round.Load())
		return policy.Encoding{Same: true}
	}
	if crc == 0 {
		crc = checksum(p.page)
	}
	// A page whose CRC is 0 cannot be named as a base.
	if size, ok := s.encode(out, changed); ok && crc != 0 {
		p.release(s.fold(p.page, changed, crc), c.round.Load())
		return policy.Encoding{Data: out[:size], Base: crc}
	}
	copy(out[:], s.snap()[:])
	copy(p.page[:], out[:])
	p.release(0, p.set.used[p.way].Load()) // it was of no use: not a use
	return policy.Encoding{Data: out[:], Raw: true}
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

func checksum(page *[pageSize]byte) uint32 { return crc32.Checksum(page[:], castagnoli) }

// Decode checks that page is the one that the delta builds on and writes the
// delta's literals into it. After an error in enc the page is partly changed: the
// migration has failed then, and its memory with it.
func (c *Codec) Decode(gfn uint64, page []byte, base uint32, enc []byte) error {
	p := (*[pageSize]byte)(page)
	if base == 0 {
		return fmt.Errorf("%w: page %#x: delta without the CRC of its base", ErrBase, gfn)
	}
	if have := checksum(p); have != base {
		return fmt.Errorf("%w: page %#x has CRC %#08x, the delta builds on %#08x", ErrBase, gfn, have, base)
	}
	if err := decode(p, enc, false); err != nil {
		return fmt.Errorf("page %#x: %w", gfn, err)
	}
	return nil
}

// Kept copies page gfn to dst, a page long at least, as Encode last sent it, if
// it is in the cache: what the destination has once it has decoded that.
func (c *Codec) Kept(dst []byte, gfn uint64) bool {
	kept := c.cache.Load()
	if kept == nil {
		return false
	}
	p, ok := kept.find(gfn)
	if !ok {
		return false
	}
	copy(dst[:pageSize], p.page[:])
	p.release(p.set.crc[p.way], p.set.used[p.way].Load())
	return true
}

// Forget drops page gfn.
func (c *Codec) Forget(gfn uint64) {
	if kept := c.cache.Load(); kept != nil && kept.forget(gfn) {
		c.count[c.count.of(gfn)].forgotten.Add(1)
	}
}

// Observe tells the codec which pages were found dirty: before the first round
// what an early look at the log shows, between rounds the pages of the next one,
// and within a round whatever is learned. r is the last round that was sent.
// Calls come from one goroutine; they may run beside Encode.
func (c *Codec) Observe(r policy.Round, dirty []uint64) {
	// Without priming, what happens before the first round stays unknown.
	if c.config.Prime != PrimeNone || r.Number > 0 {
		for _, gfn := range dirty {
			c.heat.seen(gfn)
		}
	}
	round, was := uint32(max(r.Number, 0)), c.round.Load()
	if round <= was {
		return
	}
	c.round.Store(round)
	if round/staleRounds == was/staleRounds {
		return
	}
	c.heat.halve()
	if kept := c.cache.Load(); kept != nil && c.config.Auto {
		c.trimmed.Add(kept.trim(round))
	}
}

// NeedsEarly says that only pages known to be hot are kept when they are first
// sent.
func (c *Codec) NeedsEarly() bool { return c.config.Prime == PrimeHot && c.config.Bytes >= minCache }

// Stats tells what the codec did so far. It may be called at any time.
func (c *Codec) Stats() Stats {
	s := c.count.sum()
	s.Trimmed = c.trimmed.Load()
	if kept := c.cache.Load(); kept != nil {
		s.CacheBytes = uint64(len(kept.mem))
		s.HeldPages = s.Kept - min(s.Kept, s.Evicted+s.Trimmed+s.Forgotten)
	}
	if err := c.fail.Load(); err != nil {
		s.NoCache = *err
	}
	return s
}

// pages is the cache, mapped by the first call. nil: there is none.
func (c *Codec) pages() *cache {
	if kept := c.cache.Load(); kept != nil {
		return kept
	}
	c.open.Do(func() {
		if c.config.Bytes < minCache {
			return
		}
		kept, err := newCache(c.config.Bytes, !c.config.Auto)
		if err != nil {
			c.fail.Store(&err)
			return
		}
		// For a session that ends without Close.
		c.undo = runtime.AddCleanup(c, func(mem []byte) { _ = unix.Munmap(mem) }, kept.mem)
		c.cache.Store(kept)
	})
	return c.cache.Load()
}

// Close gives the cache's memory back. Every page is sent raw afterwards. It may
// be called more than once.
func (c *Codec) Close() error {
	c.open.Do(func() {})
	kept := c.cache.Swap(nil)
	if kept == nil {
		return nil
	}
	c.undo.Stop()
	if err := unix.Munmap(kept.mem); err != nil {
		return fmt.Errorf("unmap the delta cache: %w", err)
	}
	return nil
}
