package blockfile

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bounceSize bounds the copy that a badly aligned O_DIRECT request needs: a
// longer request goes through it piece by piece. It is a multiple of maxAlign.
const bounceSize = 256 << 10

// bounces are reused. Their number is that of the requests under way.
var bounces = sync.Pool{New: func() any {
	b := make([]byte, bounceSize+maxAlign)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (maxAlign - 1)
	b = b[skip : skip+bounceSize : skip+bounceSize]
	return &b
}}

// aligned says whether the kernel takes a direct request as it stands.
func (r *raw) aligned(bufs [][]byte, off int64) bool {
	bits := uintptr(off)
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		bits |= uintptr(len(b))
		if uintptr(unsafe.Pointer(unsafe.SliceData(b)))&uintptr(r.geo.memAlign-1) != 0 {
			return false
		}
	}
	return bits&uintptr(r.geo.offAlign-1) == 0
}

// piece is the next part of a request that fits the bounce buffer. from and to
// are what is asked for, start and end the same rounded out to blocks.
type piece struct{ from, to, start, end int64 }

func (r *raw) nextPiece(from, last int64) piece {
	a := int64(r.geo.offAlign)
	start := from &^ (a - 1)
	end := min((last+a-1)&^(a-1), start+bounceSize)
	return piece{from: from, to: min(last, end), start: start, end: end}
}

func (r *raw) readBounced(bufs [][]byte, off, n int64) error {
	b := bounces.Get().(*[]byte)
	defer bounces.Put(b)
	c := cursor{bufs: bufs}
	for from, last := off, off+n; from < last; {
		p := r.nextPiece(from, last)
		buf := (*b)[:p.end-p.start]
		if err := r.direct(unix.SYS_PREADV, buf, p.start); err != nil {
			return err
		}
		c.scatter(buf[p.from-p.start : p.to-p.start])
		from = p.to
	}
	return nil
}

func (r *raw) writeBounced(bufs [][]byte, off, n int64) error {
	mask := int64(r.geo.offAlign - 1)
	if (off|n)&mask == 0 {
		r.partial.RLock()
		defer r.partial.RUnlock()
	} else {
		r.partial.Lock()
		defer r.partial.Unlock()
	}
	b := bounces.Get().(*[]byte)
	defer bounces.Put(b)
	c := cursor{bufs: bufs}
	for from, last := off, off+n; from < last; {
		p := r.nextPiece(from, last)
		buf := (*b)[:p.end-p.start]
		if err := r.readEdges(buf, p); err != nil {
			return err
		}
		c.gather(buf[p.from-p.start : p.to-p.start])
		if err := r.direct(unix.SYS_PWRITEV, buf, p.start); err != nil {
			return err
		}
		from = p.to
	}
	return nil
}

// readEdges fetches the blocks that a piece covers only in part.
func (r *raw) readEdges(buf []byte, p piece) error {
	a := int64(r.geo.offAlign)
	if p.from != p.start {
		if err := r.direct(unix.SYS_PREADV, buf[:a], p.start); err != nil {
			return err
		}
	}
	// A lone block that is partial at both ends was just read.
	if p.to == p.end || (p.from != p.start && p.end-p.start == a) {
		return nil
	}
	return r.direct(unix.SYS_PREADV, buf[len(buf)-int(a):], p.end-a)
}

func (r *raw) direct(trap uintptr, buf []byte, off int64) error {
	one := [1][]byte{buf}
	if r.holds && trap == unix.SYS_PREADV {
		return r.readToEnd(one[:], off)
	}
	return transfer(trap, r.fd, one[:], off)
}

// cursor walks a list of buffers. The caller never asks for more than there is.
type cursor struct {
	bufs [][]byte
	skip int
}

func (c *cursor) scatter(src []byte) {
	for len(src) > 0 {
		n := copy(c.bufs[0][c.skip:], src)
		src = src[n:]
		c.bufs, c.skip = advance(c.bufs, c.skip, n)
	}
}

func (c *cursor) gather(dst []byte) {
	for len(dst) > 0 {
		n := copy(dst, c.bufs[0][c.skip:])
		dst = dst[n:]
		c.bufs, c.skip = advance(c.bufs, c.skip, n)
	}
}
