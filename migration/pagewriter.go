package migration

import (
	"fmt"
	"io"
	"net"
	"time"

	"godwit/migration/wire"
)

// chunkPages is how many pages a stream takes at once, and the most that one
// RAW frame carries here: 1 MiB.
const chunkPages = 256

// pageWriter turns pages into ZERO and RAW frames on one stream. Page data
// leaves by vectored writes straight from guest memory. Nothing is allocated
// per page or per frame.
type pageWriter struct {
	w     io.Writer
	mem   *ram
	limit *limiter
	stop  <-chan struct{} // ends a wait for the limiter
	wait  *time.Timer

	frames  *wire.Writer
	head    []byte      // header and body of the frame being written
	zeros   []byte      // runs of zero pages
	raws    []byte      // runs of other pages
	vecs    net.Buffers // the frame: head, then guest memory
	cut     net.Buffers // one piece of it under a bandwidth limit
	scratch net.Buffers // what a write consumes; a field, or it would escape each time

	written uint64 // bytes, in all
	zeroSum uint64 // pages, in all
	rawSum  uint64 // pages, in all
}

func newPageWriter(w io.Writer, frames *wire.Writer, mem *ram, limit *limiter, stop <-chan struct{}) *pageWriter {
	return &pageWriter{
		w: w, frames: frames, mem: mem, limit: limit, stop: stop,
		head:  make([]byte, 0, wire.HeaderSize+chunkPages*16),
		zeros: make([]byte, 0, chunkPages*16),
		raws:  make([]byte, 0, chunkPages*16),
		vecs:  make(net.Buffers, 0, chunkPages+1),
		cut:   make(net.Buffers, 0, chunkPages+1),
	}
}

// chunk sends pages, at most chunkPages of them, all of them RAM.
func (p *pageWriter) chunk(gfns []uint64) error {
	p.zeros, p.raws = p.zeros[:0], p.raws[:0]
	p.vecs = append(p.vecs[:0], nil) // the head's place
	var zero, raw wire.Run           // being extended
	var mem []byte                   // of raw
	rawPages := uint32(0)
	zeroRegion, rawRegion := -1, -1 // a run stays in one region
	for _, gfn := range gfns {
		gpa := gfn << pageShift
		page, region := p.mem.find(gpa, pageSize)
		if len(page) != pageSize {
			return fmt.Errorf("page %#x is not guest RAM", gpa)
		}
		if isZero(page) {
			p.zeroSum++
			if zero.Pages > 0 && region == zeroRegion && zero.GPA+uint64(zero.Pages)<<pageShift == gpa {
				zero.Pages++
				continue
			}
			if zero.Pages > 0 {
				p.zeros = wire.AppendRun(p.zeros, zero)
			}
			zero, zeroRegion = wire.Run{GPA: gpa, Pages: 1}, region
			continue
		}
		rawPages++
		if raw.Pages > 0 && region == rawRegion && raw.GPA+uint64(raw.Pages)<<pageShift == gpa {
			raw.Pages++
			mem = mem[:len(mem)+pageSize]
			continue
		}
		if raw.Pages > 0 {
			p.raws = wire.AppendRun(p.raws, raw)
			p.vecs = append(p.vecs, mem)
		}
		raw, rawRegion = wire.Run{GPA: gpa, Pages: 1}, region
		mem = page
	}
	if zero.Pages > 0 {
		p.zeros = wire.AppendRun(p.zeros, zero)
	}
	if raw.Pages > 0 {
		p.raws = wire.AppendRun(p.raws, raw)
		p.vecs = append(p.vecs, mem)
	}
	return p.flush(rawPages)
}

// flush writes the frames that chunk has gathered.
func (p *pageWriter) flush(rawPages uint32) error {
	p.rawSum += uint64(rawPages)
	if len(p.zeros) > 0 {
		p.head = p.frames.Append(p.head[:0], wire.TypeZero, 0, p.zeros, 0)
		p.cut = append(p.cut[:0], p.head)
		if err := p.put(p.cut, len(p.head)); err != nil {
			return err
		}
	}
	if rawPages == 0 {
		return nil
	}
	p.head = p.frames.Append(p.head[:0], wire.TypeRaw, 0, p.raws, rawPages*pageSize)
	p.vecs[0] = p.head
	piece := p.limit.piece()
	if piece == 0 {
		return p.put(p.vecs, len(p.head)+int(rawPages)*pageSize)
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
	p.scratch = v
	wrote, err := p.scratch.WriteTo(p.w)
	p.written += uint64(wrote)
	return err
}

// frame writes a frame without bulk, unlimited.
func (p *pageWriter) frame(t wire.Type, flags uint8, body []byte) error {
	p.head = p.frames.Append(p.head[:0], t, flags, body, 0)
	wrote, err := p.w.Write(p.head)
	p.written += uint64(wrote)
	return err
}
