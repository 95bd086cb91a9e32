package adaptive

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"godwit/migration/lz4codec"
	"godwit/migration/policy"
	"godwit/migration/xbrle"
)

// ID is the codec's name on the wire, in HELLO.
const ID = 4

// ErrNoEncoding says that an encoding names this codec, which makes none itself.
var ErrNoEncoding = errors.New("auto has no encoding of its own")

const (
	pageSize = policy.PageSize
	// largeDelta is from where a delta is compared with LZ4, bytes. Smaller ones are
	// about as good as it gets.
	largeDelta = 512
	// sampleEvery is of how many pages one has its delta timed.
	sampleEvery = 16
	// blockGuess is what LZ4 is taken to cost until it has been measured.
	blockGuess = 5 * time.Microsecond
)

var (
	_ policy.ScratchCodec  = (*Codec)(nil)
	_ policy.Chooser       = (*Codec)(nil)
	_ policy.EarlyObserver = (*Codec)(nil)
	_ policy.LinkObserver  = (*Codec)(nil)
	_ io.Closer            = (*Codec)(nil)
)

func init() {
	policy.Codecs.Register("auto", func(o *policy.Options) (policy.Codec, error) {
		deltas, err := xbrle.ParseConfig(o)
		if err != nil {
			return nil, err
		}
		return New(deltas, o.Int("accel", 1, 1, 64)), nil
	})
}

// deltas is what Codec needs of xbrle.
type deltas interface {
	policy.ScratchCodec
	policy.EarlyObserver
	io.Closer
	Kept(dst []byte, gfn uint64) bool
}

// Codec is the codec "auto". Encode, EncodeTo, Decode, Forget and ObserveLink may
// be called by any number of goroutines, though the first four not for one page
// at once. Observe may run beside them. Close only when none of them runs.
type Codec struct {
	deltas deltas
	blocks policy.ScratchCodec
	now    func() int64 // ns, of a clock that never goes back

	link    board // the engine's word
	account account
	regions regions
	working atomic.Int64 // LZ4 encodings under way
	cost    meter        // of LZ4, where it made a page smaller
}

// New makes a codec from xbrle's options and LZ4's acceleration, 1 to 64.
func New(config xbrle.Config, accel int) *Codec {
	began := time.Now()
	return newCodec(xbrle.New(config), lz4codec.New(accel), func() int64 { return int64(time.Since(began)) })
}

func newCodec(d deltas, b policy.ScratchCodec, now func() int64) *Codec {
	c := &Codec{deltas: d, blocks: b, now: now}
	c.cost.set(blockGuess)
	return c
}

// ID is 4.
func (*Codec) ID() uint8 { return ID }

// Choices are xbrle and lz4.
func (c *Codec) Choices() []policy.Codec { return []policy.Codec{c.deltas, c.blocks} }

// Encode is EncodeTo with memory of its own: what it gives stays valid for good,
// unless it is the page itself.
func (c *Codec) Encode(gfn uint64, page []byte) policy.Encoding {
	return c.EncodeTo(make([]byte, pageSize), gfn, page)
}

// EncodeTo makes page gfn an encoding that lies in dst, a page long at least, or
// is the page itself. page may change while it is being read. Allocates nothing in
// steady state.
func (c *Codec) EncodeTo(dst []byte, gfn uint64, page []byte) policy.Encoding {
	link := c.link.get()
	if !c.account.allows(link.overdraft()) {
		c.deltas.Forget(gfn) // what the destination gets now is not the base kept
		c.account.book(link.income(pageSize))
		return policy.Encoding{Data: page[:pageSize], Raw: true}
	}
	e, cost := c.delta(dst, gfn, page)
	switch {
	case !e.Raw && len(e.Data) < largeDelta:
	case !c.wanted(link, gfn, len(e.Data)):
	case e.Raw:
		// From the copy that is kept, if one is: e.Data is then in dst.
		b, spent := c.block(dst, gfn, e.Data)
		cost += spent
		e = b
	default:
		b, spent := c.instead(dst, gfn, e)
		cost += spent
		e = b
	}
	c.account.book(link.income(len(e.Data)) - cost)
	return e
}

// delta asks xbrle, and tells the cost in ns. Keeping a page may be dear, where
// the cache's memory is used for the first time, so each is timed. Reading the
// clock twice takes half as long as a delta: there one page in 16 pays for all.
func (c *Codec) delta(dst []byte, gfn uint64, page []byte) (policy.Encoding, int64) {
	began := c.now()
	e := c.deltas.EncodeTo(dst, gfn, page)
	switch {
	case e.Raw && &e.Data[0] != &dst[0]:
		return e, 0 // nothing was done
	case e.Raw:
		return e, c.now() - began
	}
	e.Codec = c.deltas.ID()
	if spread(gfn)%sampleEvery != 0 {
		return e, 0
	}
	return e, (c.now() - began) * sampleEvery
}

// spread makes numbers of pages that lie in a pattern look like random ones.
func spread(gfn uint64) uint64 { return gfn * 0x9e3779b97f4a7c15 >> 32 }

// wanted says whether to try LZ4 on a page that takes have bytes so far.
func (c *Codec) wanted(link terms, gfn uint64, have int) bool {
	if !link.known() || !c.account.allows(dear) {
		return false
	}
	cost, region := c.cost.ns.Load(), c.regions.of(gfn)
	switch {
	case link.worth(have-region.expected(), cost):
		return true
	case have < pageSize:
		return false
	case link.worth(pageSize-bestBlock, cost):
		return region.due(probeEvery)
	}
	return spread(gfn)%recheckEvery == 0
}

// block makes page the LZ4 block of gfn in dst, or leaves it raw. page may lie in
// dst. It tells the cost in ns.
func (c *Codec) block(dst []byte, gfn uint64, page []byte) (policy.Encoding, int64) {
	before, began := c.working.Add(1), c.now()
	e := c.blocks.EncodeTo(dst, gfn, page)
	took, after := c.now()-began, c.working.Add(-1)+1
	cost := 2 * took / (before + after)
	region := c.regions.of(gfn)
	if e.Raw {
		region.tried(pageSize)
		return e, cost
	}
	region.tried(len(e.Data))
	c.cost.note(cost)
	e.Codec = c.blocks.ID()
	return e, cost
}

// instead makes LZ4 of what is kept of page gfn, if that is smaller than its
// delta e, which lies in dst. It tells the cost in ns.
func (c *Codec) instead(dst []byte, gfn uint64, e policy.Encoding) (policy.Encoding, int64) {
	copied := pages.Get().(*[pageSize]byte)
	defer pages.Put(copied)
	if !c.deltas.Kept(copied[:], gfn) {
		return e, 0
	}
	b, cost := c.block(copied[:], gfn, copied[:])
	if b.Raw || len(b.Data) >= len(e.Data) {
		return e, cost
	}
	b.Data = dst[:copy(dst, b.Data)]
	return b, cost
}

var pages = sync.Pool{New: func() any { return new([pageSize]byte) }}

// Decode refuses: an encoding names the codec that made it, never this one.
func (c *Codec) Decode(gfn uint64, _ []byte, _ uint32, _ []byte) error {
	return fmt.Errorf("%w: page %#x", ErrNoEncoding, gfn)
}

// Forget drops what is kept of page gfn.
func (c *Codec) Forget(gfn uint64) { c.deltas.Forget(gfn) }

// Observe tells xbrle which pages are written.
func (c *Codec) Observe(r policy.Round, dirty []uint64) { c.deltas.Observe(r, dirty) }

// NeedsEarly is xbrle's.
func (c *Codec) NeedsEarly() bool { return c.deltas.NeedsEarly() }

// ObserveLink sets what the choices are weighed by from now on. A speed that is
// not above 0 stands for a link not known.
func (c *Codec) ObserveLink(l policy.Link) {
	var t terms
	if l.Speed > 0 {
		t = terms{nsPerByte: min(1e9/l.Speed, maxNsPerByte), hidden: min(max(l.Hidden, 0), 1)}
	}
	if t.hidden != t.hidden { // NaN
		t.hidden = 0
	}
	c.link.set(t)
}

// Close gives the memory of the delta cache back.
func (c *Codec) Close() error { return c.deltas.Close() }
