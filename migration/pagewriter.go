package migration

import (
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"godwit/migration/policy"
	"godwit/migration/wire"
	"godwit/migration/zero"
)

// chunkPages is how many pages a stream takes at once, and the most that one
// RAW or CODEC frame carries here: 1 MiB.
const chunkPages = 256

// pageWriter turns pages into ZERO, RAW and CODEC frames on one stream. Page
// data leaves by vectored writes straight from guest memory, or from the copy
// that a codec has made. Nothing is allocated per page or per frame.
type pageWriter struct {
	w     io.Writer
	mem   *ram
	limit *limiter
	stop  <-chan struct{} // ends a wait for the limiter
	wait  *time.Timer
	coder *coder // nil in a session without a codec
	gauge *gauge // nil unless the codec wants to know the link

	frames  *wire.Writer
	head    []byte // header and body of the frame being written
	zeros   runs
	raws    runs
	blank   [chunkPages / 64]uint64 // which pages of a piece are zero
	vecs    net.Buffers             // the frame: head, then page data
	cut     net.Buffers             // one piece of it under a bandwidth limit
	scratch net.Buffers             // what a write consumes; a field, or it would escape each time

	written uint64        // bytes, in all
	begun   atomic.Uint64 // bytes that may have left, in all
	pages   PageCounts    // sent, in all
}

// gatherer is a connection that makes one write of pieces itself, since the
// system's vectored write does nothing for it: TLS. WriteBuffers must not keep
// or change v.
type gatherer interface {
	WriteBuffers(v net.Buffers) (int64, error)
}

// newPageWriter makes the writer of one stream. codec is nil when pages go raw.
func newPageWriter(w io.Writer, frames *wire.Writer, mem *ram, limit *limiter, stop <-chan struct{}, codec policy.Codec, pool *pool) *pageWriter {
	p := &pageWriter{
		w: w, frames: frames, mem: mem, limit: limit, stop: stop,
		head:  make([]byte, 0, wire.HeaderSize+chunkPages*16),
		zeros: runs{body: make([]byte, 0, chunkPages*16)},
		raws:  runs{body: make([]byte, 0, chunkPages*16)},
		vecs:  make(net.Buffers, 0, chunkPages+1),
		cut:   make(net.Buffers, 0, chunkPages+1),
	}
	if codec != nil {
		p.coder = newCoder(codec, pool)
	}
	return p
}

// runs gathers the body of a ZERO or RAW frame.
type runs struct {
	body []byte
	open wire.Run // being extended
	sum  uint32   // pages
}

func (r *runs) add(gpa uint64) {
	r.sum++
	if r.open.Pages > 0 && r.open.GPA+uint64(r.open.Pages)<<pageShift == gpa {
		r.open.Pages++
		return
	}
	r.end()
	r.open = wire.Run{GPA: gpa, Pages: 1}
}

func (r *runs) end() {
	if r.open.Pages > 0 {
		r.body = wire.AppendRun(r.body, r.open)
		r.open = wire.Run{}
	}
}

// chunk sends pages, at most chunkPages of them, all of them RAM. Ascending
// order makes the longest runs.
func (p *pageWriter) chunk(gfns []uint64) (err error) {
	if p.coder != nil { // its Forget and ObserveLink are called here
		defer func() {
			if v := recover(); v != nil {
				err = panicked("codec", p.coder.codec, v)
			}
		}()
	}
	p.gauge.begin()
	p.zeros = runs{body: p.zeros.body[:0]}
	p.raws = runs{body: p.raws.body[:0]}
	p.vecs = append(p.vecs[:0], nil) // the head's place
	for len(gfns) > 0 {
		mem, err := p.piece(gfns)
		if err != nil {
			return err
		}
		zero.Classify(mem, p.blank[:])
		n := len(mem) / pageSize
		for i, gfn := range gfns[:n] {
			switch page := mem[i*pageSize : (i+1)*pageSize]; {
			case p.blank[i/64]>>(i%64)&1 == 1:
				p.add(&p.zeros, gfn<<pageShift)
				if p.coder != nil {
					p.coder.codec.Forget(gfn)
				}
			case p.coder != nil:
				p.coder.take(gfn, page)
			default:
				p.addRaw(gfn<<pageShift, page)
			}
		}
		gfns = gfns[n:]
	}
	if p.coder == nil {
		return p.flush()
	}
	if err := p.coder.encode(p.addRaw); err != nil {
		return err
	}
	p.pages.Unchanged += p.coder.same
	p.gauge.encoded(p.written)
	err = p.flush()
	p.gauge.sent(p.written)
	return err
}

// piece is the memory of the first pages, as many as follow each other in one
// region.
func (p *pageWriter) piece(gfns []uint64) ([]byte, error) {
	n := 1
	for n < len(gfns) && gfns[n] == gfns[n-1]+1 {
		n++
	}
	mem, _ := p.mem.find(gfns[0]<<pageShift, uint64(n)<<pageShift)
	if len(mem) < pageSize {
		return nil, fmt.Errorf("page %#x is not guest RAM", gfns[0]<<pageShift)
	}
	return mem, nil
}

// add adds a page to a frame's runs. A run stays in one region.
func (p *pageWriter) add(r *runs, gpa uint64) {
	if p.mem.begins(gpa) {
		r.end()
	}
	r.add(gpa)
}

// addRaw adds a page to the RAW frame, sent from data.
func (p *pageWriter) addRaw(gpa uint64, data []byte) {
	p.add(&p.raws, gpa)
	last := &p.vecs[len(p.vecs)-1]
	if n := len(*last); n > 0 && n < cap(*last) && &(*last)[:n+1][n] == &data[0] {
		*last = (*last)[:n+pageSize]
		return
	}
	p.vecs = append(p.vecs, data)
}

// flush writes the frames that chunk has gathered.
func (p *pageWriter) flush() error {
	p.zeros.end()
	p.raws.end()
	if n := p.zeros.sum; n > 0 {
		p.pages.Zero += uint64(n)
		p.head = p.frames.Append(p.head[:0], wire.TypeZero, 0, p.zeros.body, 0)
		p.cut = append(p.cut[:0], p.head)
		if err := p.put(p.cut, len(p.head)); err != nil {
			return err
		}
	}
	if n := p.raws.sum; n > 0 {
		p.pages.Raw += uint64(n)
		if err := p.bulk(wire.TypeRaw, p.raws.body, n*pageSize); err != nil {
			return err
		}
	}
	if p.coder == nil || len(p.coder.body) == 0 {
		return nil
	}
	p.pages.Delta += p.coder.deltas
	p.pages.Compressed += uint64(len(p.coder.body)/wire.CodedSize) - p.coder.deltas
	p.vecs = append(p.vecs[:0], nil, p.coder.data)
	return p.bulk(wire.TypeCodec, p.coder.body, uint32(len(p.coder.data)))
}

// bulk writes a frame whose n bytes of page data are in vecs behind the head's
// place.
func (p *pageWriter) bulk(t wire.Type, body []byte, n uint32) error {
	p.head = p.frames.Append(p.head[:0], t, 0, body, n)
	p.vecs[0] = p.head
	piece := p.limit.piece()
	if piece == 0 {
		return p.put(p.vecs, len(p.head)+int(n))
	}
	return p.inPieces(piece)
}

// inPieces writes vecs a piece at a time, so that a limit gives a smooth stream
// and not one burst per frame. Pieces may end inside a page.
func (p *pageWriter) inPieces(piece int) error {
	p.cut = p.cut[:0]
	size := 0
	for _, v := range p.vecs {
		for len(v) > 0 {
			n := min(piece-size, len(v))
			p.cut = append(p.cut, v[:n])
			v = v[n:]
			if size += n; size == piece {
				if err := p.put(p.cut, size); err != nil {
					return err
				}
				p.cut, size = p.cut[:0], 0
			}
		}
	}
	return p.put(p.cut, size)
}

// put writes v, n bytes in all, when the limiter lets it. v is kept.
func (p *pageWriter) put(v net.Buffers, n int) error {
	if n == 0 {
		return nil
	}
	for {
		d := p.limit.take(n, time.Now())
		if d == 0 {
			break
		}
		p.gauge.waits()
		if p.wait == nil {
			p.wait = time.NewTimer(d)
		} else {
			p.wait.Reset(d)
		}
		select {
		case <-p.wait.C:
		case <-p.stop:
			p.wait.Stop()
			return net.ErrClosed
		}
	}
	p.begun.Add(uint64(n))
	var wrote int64
	var err error
	if g, ok := p.w.(gatherer); ok {
		wrote, err = g.WriteBuffers(v)
	} else {
		p.scratch = v
		wrote, err = p.scratch.WriteTo(p.w)
	}
	p.written += uint64(wrote)
	return err
}

// frame writes a frame without bulk, unlimited.
func (p *pageWriter) frame(t wire.Type, flags uint8, body []byte) error {
	p.head = p.frames.Append(p.head[:0], t, flags, body, 0)
	p.begun.Add(uint64(len(p.head)))
	wrote, err := p.w.Write(p.head)
	p.written += uint64(wrote)
	return err
}
