package migration

import (
	"fmt"
	"math/bits"
	"sync/atomic"

	"godwit/migration/policy"
	"godwit/migration/sabotage"
	"godwit/migration/wire"
)

// pages is guest memory as it arrives.
type pages struct {
	mem       *ram
	seen      seen   // pages of the round under way
	content   seen   // those of them that came by content
	all       Bitmap // pages of all rounds before; changed at the barrier only, as full is
	full      Bitmap // those of all that came by content when they last came; the others are zero
	barrier   *barrier
	codec     policy.Codec // nil when pages come raw
	decoders  []policy.Codec
	zero, raw atomic.Uint64 // applied, in all
	delta     atomic.Uint64 // applied, encoded with a base
	packed    atomic.Uint64 // applied, encoded without one
}

func (p *pages) init(mem *ram, streams int, codec policy.Codec, passed func(uint32, tally) error) {
	p.mem, p.codec = mem, codec
	p.seen, p.all = make(seen, mem.words), make(Bitmap, mem.words)
	p.content, p.full = make(seen, mem.words), make(Bitmap, mem.words)
	p.decoders = decodersOf(codec)
	p.barrier = newBarrier(streams, func(round uint32, t tally) error {
		p.settle() // every stream is here, so nobody marks or looks
		return passed(round, t)
	})
}

// settle takes the round under way to those before it.
func (p *pages) settle() {
	for i := range p.seen {
		if came := p.seen[i].Load(); came != 0 {
			p.all[i] |= came
			p.full[i] = p.full[i]&^came | p.content[i].Load()
			p.seen[i].Store(0)
			p.content[i].Store(0)
		}
	}
}

// apply takes in a ZERO or RAW frame and returns how many pages it held.
func (p *pages) apply(f *wire.Frame, in *wire.Reader) (n uint64, err error) {
	runs, pages, err := wire.DecodeRuns(f)
	if err != nil {
		return 0, err
	}
	defer p.caught(&err)
	for i := range runs.Len() {
		run := runs.At(i)
		mem := p.mem.whole(run.GPA, uint64(run.Pages)<<pageShift)
		if mem == nil {
			return 0, fmt.Errorf("%w: %s run of %d pages at %#x is not guest RAM", wire.ErrFormat, f.Type, run.Pages, run.GPA)
		}
		first := run.GPA >> pageShift
		if !p.seen.mark(first, first+uint64(run.Pages)) && !sabotage.On(sabotage.Barrier) {
			return 0, fmt.Errorf("%w: a page of the %d at %#x came twice in one round", wire.ErrFormat, run.Pages, run.GPA)
		}
		if f.Type == wire.TypeRaw {
			p.content.mark(first, first+uint64(run.Pages))
			if err := in.Bulk(mem); err != nil {
				return 0, err
			}
			continue
		}
		p.zeroRun(first, mem)
	}
	if f.Type == wire.TypeRaw {
		p.raw.Add(pages)
	} else {
		p.zero.Add(pages)
	}
	return pages, nil
}

// applyCoded takes in a CODEC frame and returns how many pages it held. buf has
// room for a page.
func (p *pages) applyCoded(f *wire.Frame, in *wire.Reader, buf *[pageSize]byte) (n uint64, err error) {
	if p.codec == nil {
		return 0, fmt.Errorf("%w: CODEC in a session without a codec", wire.ErrFormat)
	}
	defer p.caught(&err)
	entries, err := wire.DecodeCoded(f)
	if err != nil {
		return 0, err
	}
	for i := range entries.Len() {
		c := entries.At(i)
		page, decoder := p.mem.whole(c.GPA, pageSize), p.decoder(c.Codec)
		switch gfn := c.GPA >> pageShift; {
		case page == nil:
			return 0, fmt.Errorf("%w: CODEC page at %#x is not guest RAM", wire.ErrFormat, c.GPA)
		case decoder == nil:
			return 0, fmt.Errorf("%w: page at %#x by codec %d, the session has %d", wire.ErrFormat, c.GPA, c.Codec, p.codec.ID())
		case !p.seen.mark(gfn, gfn+1) && !sabotage.On(sabotage.Barrier):
			return 0, fmt.Errorf("%w: page at %#x came twice in one round", wire.ErrFormat, c.GPA)
		}
		p.content.mark(c.GPA>>pageShift, c.GPA>>pageShift+1)
		if err := in.Bulk(buf[:c.Len]); err != nil {
			return 0, err
		}
		if err := decoder.Decode(c.GPA>>pageShift, page, c.Base, buf[:c.Len]); err != nil {
			return 0, fmt.Errorf("%w: %w", wire.ErrFormat, err)
		}
		if c.Base != 0 {
			p.delta.Add(1)
		} else {
			p.packed.Add(1)
		}
	}
	return uint64(entries.Len()), nil
}

// caught, deferred, turns a panic of the session's codec into an error. Without a
// codec there is none to blame.
func (p *pages) caught(err *error) {
	if p.codec == nil {
		return
	}
	if v := recover(); v != nil {
		*err = panicked("codec", p.codec, v)
	}
}

// decoder finds what decodes an entry by codec id, nil if the session has none.
func (p *pages) decoder(id uint8) policy.Codec {
	for _, d := range p.decoders {
		if d.ID() == id {
			return d
		}
	}
	return nil
}

// counts is what was applied in all.
func (p *pages) counts() PageCounts {
	return PageCounts{Zero: p.zero.Load(), Raw: p.raw.Load(), Delta: p.delta.Load(), Compressed: p.packed.Load()}
}

// zeroRun clears pages that an earlier round filled. Others are zero already and
// must not be touched: that would populate them, and a source that sends the same
// run in round after round, in a hundred bytes each, would have us read all of
// memory each time. As it is, each page that is looked at was paid for when it came.
func (p *pages) zeroRun(first uint64, mem []byte) {
	forRange(first, first+uint64(len(mem))>>pageShift, func(word, mask uint64) {
		filled := p.full[word] & mask
		if sabotage.On(sabotage.Barrier) {
			filled = mask
		}
		for ; filled != 0; filled &= filled - 1 {
			gfn := word*64 + uint64(bits.TrailingZeros64(filled))
			if p.codec != nil {
				p.codec.Forget(gfn)
			}
			if page := mem[(gfn-first)<<pageShift:][:pageSize]; !isZero(page) {
				clear(page)
			}
		}
	})
}
