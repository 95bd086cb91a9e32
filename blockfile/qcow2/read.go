package qcow2

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// vector hands out a list of buffers piece by piece. It is reused, so that a
// request allocates nothing.
type vector struct {
	bufs  [][]byte
	skip  int // bytes of bufs[0] that are gone
	piece [][]byte
}

var vectors = sync.Pool{New: func() any { return new(vector) }}

func newVector(bufs [][]byte) *vector {
	v := vectors.Get().(*vector)
	v.bufs, v.skip = bufs, 0
	return v
}

func (v *vector) release() {
	clear(v.piece[:cap(v.piece)]) // do not keep the caller's memory alive
	v.bufs, v.piece = nil, v.piece[:0]
	vectors.Put(v)
}

// next gives the next n bytes. They are valid until the call after. The caller
// never asks for more than there is.
func (v *vector) next(n int64) [][]byte {
	v.piece = v.append(v.piece[:0], n)
	return v.piece
}

// append appends the next n bytes to a list.
func (v *vector) append(list [][]byte, n int64) [][]byte {
	for n > 0 {
		b := v.bufs[0][v.skip:]
		if int64(len(b)) > n {
			b = b[:n]
			v.skip += int(n)
		} else {
			v.bufs, v.skip = v.bufs[1:], 0
		}
		if len(b) > 0 {
			list = append(list, b)
		}
		n -= int64(len(b))
	}
	return list
}

func clearAll(bufs [][]byte) {
	for _, b := range bufs {
		clear(b)
	}
}

// total is the length of bufs in bytes.
func total(bufs [][]byte) int64 {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// Preadv fills bufs from off on. The range lies within Size; the caller has
// checked it.
func (m *Image) Preadv(bufs [][]byte, off int64) error {
	n := total(bufs)
	if n == 0 {
		return nil
	}
	m.inflight.RLock()
	defer m.inflight.RUnlock()
	e, err := m.extent(off, n)
	if err != nil {
		return err
	}
	if e.Len == n {
		return m.readExtent(bufs, e)
	}
	v := newVector(bufs)
	defer v.release()
	for {
		if err := m.readExtent(v.next(e.Len), e); err != nil {
			return err
		}
		off, n = off+e.Len, n-e.Len
		if n == 0 {
			return nil
		}
		if e, err = m.extent(off, n); err != nil {
			return err
		}
	}
}

// Extent is a piece of the disk that is one kind, and in one piece in the file
// where it is Normal.
type Extent struct {
	Off, Len int64
	Kind     Kind
	// Host is where it begins in the file: of Normal extents, of Zero ones that
	// have storage, and of Compressed ones, which are one cluster or part of it.
	Host int64
	// Stored is the number of bytes that a Compressed cluster has at most.
	Stored int64

	entry uint64
}

// extent gives the piece that begins at off and has at most n bytes. It needs
// inflight.
func (m *Image) extent(off, n int64) (Extent, error) {
	cluster := uint64(off) >> m.g.bits
	in := off & (m.g.cluster - 1)
	entry, err := m.lookup(cluster)
	if err != nil {
		return Extent{}, err
	}
	kind, host, err := m.g.split(entry)
	if err != nil {
		return Extent{}, err
	}
	e := Extent{Off: off, Len: min(n, m.g.cluster-in), Kind: kind, entry: entry}
	switch {
	case kind == Compressed:
		e.Host, e.Stored, err = m.g.compressedPlace(entry)
		return e, err
	case host != 0:
		e.Host = host + in
	}
	for e.Len < n {
		cluster++
		entry, err := m.lookup(cluster)
		if err != nil {
			return Extent{}, err
		}
		k, place, err := m.g.split(entry)
		if err != nil {
			return Extent{}, err
		}
		if k != kind || (place != 0) != (host != 0) || place != 0 && place != e.Host+e.Len {
			break
		}
		e.Len += min(n-e.Len, m.g.cluster)
	}
	return e, nil
}

// Map gives the extent that begins at off and has at most n bytes, for tools
// that walk an image. The range lies within Size.
func (m *Image) Map(off, n int64) (Extent, error) {
	if off < 0 || n <= 0 || n > m.size || off > m.size-n {
		return Extent{}, fmt.Errorf("map bytes %d+%d of a disk of %d: out of range", off, n, m.size)
	}
	m.inflight.RLock()
	defer m.inflight.RUnlock()
	return m.extent(off, n)
}

// readExtent fills bufs, which have the length of the extent.
func (m *Image) readExtent(bufs [][]byte, e Extent) error {
	switch e.Kind {
	case Normal:
		if err := m.inFile(e.Host, e.Len); err != nil {
			return err
		}
		return m.host.Preadv(bufs, e.Host)
	case Compressed:
		return m.readCompressed(bufs, e.entry, e.Off&(m.g.cluster-1))
	case Unallocated:
		if m.backed {
			return m.readBacking(bufs, e.Off, e.Len)
		}
	}
	clearAll(bufs)
	return nil
}

// readBacking reads what shows through. A backing file may be shorter than the
// disk; zeroes follow it.
func (m *Image) readBacking(bufs [][]byte, off, n int64) error {
	if m.o.Backing == nil {
		return errors.New("the image has a backing file, which was not opened")
	}
	have := min(n, max(0, m.o.Backing.Size()-off))
	if have == n {
		_, err := m.o.Backing.Preadv(bufs, off)
		return err
	}
	v := newVector(bufs)
	defer v.release()
	if have > 0 {
		if _, err := m.o.Backing.Preadv(v.next(have), off); err != nil {
			return err
		}
	}
	clearAll(v.next(n - have))
	return nil
}

// readCompressed gives the part of a compressed cluster that begins at in. It
// needs inflight.
func (m *Image) readCompressed(bufs [][]byte, entry uint64, in int64) error {
	p, fill := m.plain.get(entry, m.g.cluster)
	if p == nil { // all are in use
		b := m.buffer()
		defer m.buffers.Put(b)
		err := m.decompress(*b, entry)
		if err == nil {
			copyTo(bufs, (*b)[in:])
		}
		return err
	}
	defer m.plain.put(p)
	if fill {
		err := m.decompress(p.data, entry)
		m.plain.fill(p, err == nil)
		if err != nil {
			return err
		}
	}
	copyTo(bufs, p.data[in:])
	return nil
}

// tryCompressed is readCompressed where the cluster is decompressed already.
func (m *Image) tryCompressed(bufs [][]byte, entry uint64, in int64) bool {
	p := m.plain.have(entry)
	if p == nil {
		return false
	}
	copyTo(bufs, p.data[in:])
	m.plain.put(p)
	return true
}

// decompress reads a compressed cluster into dst.
func (m *Image) decompress(dst []byte, entry uint64) error {
	off, n, err := m.g.compressedPlace(entry)
	if err == nil {
		err = m.inFile(off, 1)
	}
	if err != nil {
		return err
	}
	stored := m.buffer()
	defer m.buffers.Put(stored)
	// A compressed cluster may have one cluster's bytes and up to another's,
	// but a writer that gains nothing stores it as it is.
	src := *stored
	if n > int64(len(src)) {
		src = make([]byte, n)
	}
	src = src[:n]
	if err := readAt(m.host, src, off); err != nil {
		return err
	}
	if err := m.codecs.decompress(m.g.compression, dst, src); err != nil {
		return fmt.Errorf("%w: the compressed cluster at %d: %w", ErrCorrupt, off, err)
	}
	return nil
}

// copyTo fills bufs from src.
func copyTo(bufs [][]byte, src []byte) {
	for _, b := range bufs {
		src = src[copy(b, src):]
	}
}

// buffer is a cluster of aligned memory, to be put back.
func (m *Image) buffer() *[]byte { return m.buffers.Get().(*[]byte) }

// errShort says that compressed data ended before a cluster was full.
var errShort = io.ErrUnexpectedEOF
