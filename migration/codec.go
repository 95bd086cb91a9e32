package migration

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"godwit/migration/policy"
	"godwit/migration/wire"

	// Every destination knows these: which codec a session has is the source's
	// choice.
	_ "godwit/migration/adaptive"
	_ "godwit/migration/lz4codec"
	_ "godwit/migration/xbrle"
)

const (
	// worthSharing is how long encoding a page must take for other processors to
	// be asked: waking one costs several microseconds, a page of XBRLE less than one.
	worthSharing = 2 * time.Microsecond
	// sharedPages is how many pages a processor takes at once.
	sharedPages = 16
)

// coder encodes one stream's pages with the session's codec. The order of calls
// for one page is kept by the rounds: a page is in one chunk of a round, and
// the barrier is between rounds.
type coder struct {
	codec  policy.Codec
	encTo  func(dst []byte, gfn uint64, page []byte) policy.Encoding
	pool   *pool
	share  share         // of the pool's processors
	perOne time.Duration // encoding a page took lately

	gfns  []uint64
	pages [][]byte // of guest memory
	made  []policy.Encoding
	room  []byte // a page for each encoding

	// The CODEC frame:
	body   []byte // entries
	data   []byte // encodings
	deltas uint64 // entries that build on an earlier page
	same   uint64 // pages that need no entry

	fault atomic.Pointer[error] // that the codec made
}

func newCoder(codec policy.Codec, pool *pool) *coder {
	c := &coder{codec: codec, pool: pool,
		gfns: make([]uint64, 0, chunkPages), pages: make([][]byte, 0, chunkPages),
		made: make([]policy.Encoding, chunkPages), room: make([]byte, chunkPages*pageSize),
		body: make([]byte, 0, chunkPages*wire.CodedSize), data: make([]byte, 0, chunkPages*pageSize)}
	c.share.do = c.one
	if s, ok := codec.(policy.ScratchCodec); ok {
		c.encTo = s.EncodeTo
	} else {
		c.encTo = func(_ []byte, gfn uint64, page []byte) policy.Encoding { return codec.Encode(gfn, page) }
	}
	return c
}

// take adds a page to what encode will encode.
func (c *coder) take(gfn uint64, page []byte) {
	c.gfns, c.pages = append(c.gfns, gfn), append(c.pages, page)
}

// encode makes the CODEC frame of the pages taken, and hands those that go raw
// to addRaw: with the codec's own copy, where it keeps one as a base.
func (c *coder) encode(addRaw func(gpa uint64, data []byte)) error {
	n := len(c.gfns)
	began := time.Now()
	if c.perOne > worthSharing && c.pool != nil {
		c.pool.each(n, &c.share)
	} else {
		c.one(0, n)
	}
	if err := c.fault.Load(); err != nil {
		return *err
	}
	if n > 0 {
		c.perOne = time.Since(began) / time.Duration(n)
	}
	c.body, c.data, c.deltas, c.same = c.body[:0], c.data[:0], 0, 0
	for i, e := range c.made[:n] {
		gpa := c.gfns[i] << pageShift
		if e.Same {
			c.same++
			continue
		}
		if e.Raw && len(e.Data) == pageSize {
			addRaw(gpa, e.Data)
			continue
		}
		if e.Raw || len(e.Data) >= pageSize {
			return fmt.Errorf("%w: codec %T made %d bytes of page %#x, raw being %v; an encoding is smaller than a page, or is the page", ErrPolicy, c.codec, len(e.Data), gpa, e.Raw)
		}
		c.body = wire.AppendCoded(c.body, wire.Coded{GPA: gpa, Base: e.Base, Len: uint16(len(e.Data)), Codec: cmp.Or(e.Codec, c.codec.ID())})
		c.data = append(c.data, e.Data...)
		if e.Base != 0 {
			c.deltas++
		}
	}
	c.gfns, c.pages = c.gfns[:0], c.pages[:0]
	return nil
}

// one encodes pages from to to-1, in any of the pool's goroutines.
func (c *coder) one(from, to int) {
	defer func() {
		if v := recover(); v != nil {
			err := panicked("codec", c.codec, v)
			c.fault.CompareAndSwap(nil, &err)
		}
	}()
	for i := from; i < to; i++ {
		c.made[i] = c.encTo(c.room[i*pageSize:(i+1)*pageSize], c.gfns[i], c.pages[i])
	}
}

// pool is processors that help streams to encode. There are never more of them
// than the machine has, however many streams ask.
type pool struct {
	jobs chan *share
	wg   sync.WaitGroup
}

func newPool() *pool {
	p := &pool{jobs: make(chan *share)}
	for range runtime.GOMAXPROCS(0) - 1 {
		p.wg.Go(func() {
			for s := range p.jobs {
				s.work()
				s.busy.Done()
			}
		})
	}
	return p
}

// share is work that several processors do together. Its owner uses it again and
// again, for one piece of work at a time.
type share struct {
	do   func(from, to int)
	n    int
	next atomic.Int64   // the first that nobody has taken
	busy sync.WaitGroup // processors of the pool
}

// work takes pieces and does them until none are left.
func (s *share) work() {
	for {
		to := int(s.next.Add(sharedPages))
		from := to - sharedPages
		if from >= s.n {
			return
		}
		s.do(from, min(to, s.n))
	}
}

// each has s.do called for pieces of 0 to n-1, in the caller's goroutine and in those
// of the pool that are idle, and returns when all is done.
func (p *pool) each(n int, s *share) {
	s.n = n
	s.next.Store(0)
	for range n/sharedPages - 1 {
		s.busy.Add(1)
		select {
		case p.jobs <- s:
			continue
		default: // nobody is idle
			s.busy.Done()
		}
		break
	}
	s.work()
	s.busy.Wait()
}

// close ends the pool's goroutines. Nobody may use it any more.
func (p *pool) close() {
	close(p.jobs)
	p.wg.Wait()
}

// decoderFor finds the codec that a source has chosen. nil stands for no codec.
func decoderFor(id uint8) (policy.Codec, error) {
	if id == 0 {
		return nil, nil
	}
	for _, name := range policy.Codecs.Names() {
		codec, err := policy.Codecs.Parse(name)
		if err != nil {
			continue // it has an option without a default
		}
		if codec.ID() == id {
			return codec, nil
		}
		_ = closeCodec(codec) // never used
	}
	return nil, fmt.Errorf("%w: page codec %d is not known to this godwit; use the same release on both ends, or migrate with another --codec", errRefused, id)
}

// decodersOf are the codecs that an entry of a session's CODEC frames may name.
func decodersOf(codec policy.Codec) []policy.Codec {
	switch c := codec.(type) {
	case nil:
		return nil
	case policy.Chooser:
		return c.Choices()
	}
	return []policy.Codec{codec}
}

// closeCodec gives back what a codec keeps. Nothing may use it any more.
func closeCodec(codec policy.Codec) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = panicked("codec", codec, v)
		}
	}()
	if c, ok := codec.(io.Closer); ok {
		return c.Close()
	}
	return nil
}
