package tool

import (
	"bytes"
	"context"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

const (
	// chunkSize is what one worker reads at a time; it is a multiple of every
	// cluster size.
	chunkSize = 2 << 20
	// rawUnit is the smallest hole that a raw image gets.
	rawUnit = 4096
)

// copying is a conversion under way.
type copying struct {
	Conversion
	ctx         context.Context
	src, below  blockfile.Mapper // below is nil without a backing file
	unit        int64            // clusters of the target
	compression qcow2.Compression
	out         Converted
}

// chunk is a part of the disk on its way.
type chunk struct {
	off, n       int64
	data, behind []byte // the disk's, the backing file's
	pieces       []piece
	pack         []byte
	done         chan struct{}
}

func newChunk() *chunk { return &chunk{data: make([]byte, chunkSize), done: make(chan struct{}, 1)} }

// what a unit of the disk becomes.
type what uint8

const (
	skip what = iota
	data
	packed
	zero
)

// piece is units of one kind that follow one another; packed ones come alone,
// with their place in chunk.pack.
type piece struct {
	what     what
	off, n   int64 // in the chunk
	from, to int
}

// plan sends the chunks that may hold something, in order. Others have holes in
// both the source and the backing file.
func (j *copying) plan(ctx context.Context, free, todo, queue chan *chunk) error {
	for off := int64(0); ; {
		start, err := j.next(off)
		if err != nil || start >= j.src.Size() {
			return err
		}
		var c *chunk
		select {
		case c = <-free:
		case <-ctx.Done():
			return ctx.Err()
		}
		c.off = start &^ (chunkSize - 1)
		c.n = min(chunkSize, j.src.Size()-c.off)
		for _, to := range []chan *chunk{queue, todo} {
			select {
			case to <- c:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		off = c.off + c.n
	}
}

// next is where the source or the backing file may hold anything but zeroes.
func (j *copying) next(off int64) (int64, error) {
	if off >= j.src.Size() {
		return off, nil
	}
	start, _, err := j.src.NextData(off)
	if err != nil || j.below == nil || off >= j.below.Size() {
		return start, err
	}
	below, _, err := j.below.NextData(off)
	if below == j.below.Size() {
		return start, err
	}
	return min(start, below), err
}

// prepare reads a chunk and decides what becomes of each unit.
func (j *copying) prepare(c *chunk, z *qcow2.Compressor) error {
	c.pieces, c.pack = c.pieces[:0], c.pack[:0]
	b := c.data[:c.n]
	if _, err := j.src.Preadv([][]byte{b}, c.off); err != nil {
		return err
	}
	if err := j.readBelow(c); err != nil {
		return err
	}
	for off := int64(0); off < c.n; off += j.unit {
		n := min(j.unit, c.n-off)
		j.decide(c, z, off, n)
	}
	return nil
}

// readBelow reads what the backing file shows there; zeroes beyond its end.
func (j *copying) readBelow(c *chunk) error {
	if j.below == nil {
		return nil
	}
	if c.behind == nil {
		c.behind = make([]byte, chunkSize)
	}
	have := max(0, min(c.n, j.below.Size()-c.off))
	clear(c.behind[have:])
	if have == 0 {
		return nil
	}
	_, err := j.below.Preadv([][]byte{c.behind[:have]}, c.off)
	return err
}

func (j *copying) decide(c *chunk, z *qcow2.Compressor, off, n int64) {
	b := c.data[off : off+n]
	switch {
	case j.below != nil && bytes.Equal(b, c.behind[off:off+n]):
		c.add(skip, off, n)
	case isZero(b):
		if j.below == nil {
			c.add(skip, off, n)
		} else {
			c.add(zero, off, n)
		}
	case z == nil:
		c.add(data, off, n)
	default:
		// The last cluster of the disk is compressed as a whole one.
		whole := c.data[off : off+j.unit]
		clear(whole[n:])
		from := len(c.pack)
		out, ok := z.Compress(c.pack, whole)
		if !ok {
			c.add(data, off, n)
			return
		}
		c.pack = out
		c.pieces = append(c.pieces, piece{packed, off, n, from, len(out)})
	}
}

// add joins units that follow one another; each zero one stands alone, as the
// target takes them.
func (c *chunk) add(w what, off, n int64) {
	if last := len(c.pieces) - 1; last >= 0 && c.pieces[last].what == w && w != zero && w != packed {
		c.pieces[last].n += n
		return
	}
	c.pieces = append(c.pieces, piece{what: w, off: off, n: n})
}

// write hands a chunk's pieces to the target.
func (j *copying) write(to sink, c *chunk) error {
	for _, p := range c.pieces {
		var err error
		switch p.what {
		case data:
			err = to.data(c.off+p.off, c.data[p.off:p.off+p.n])
			j.out.DataBytes += p.n
		case packed:
			err = to.packed(c.off+p.off, c.pack[p.from:p.to])
			j.out.CompressedBytes += p.n
			j.out.PackedBytes += int64(p.to - p.from)
		case zero:
			err = to.zero(c.off + p.off)
			j.out.ZeroBytes += p.n
		}
		if err != nil {
			return err
		}
	}
	return nil
}

var zeroes [64 << 10]byte

func isZero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeroes))
		if !bytes.Equal(b[:n], zeroes[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}
