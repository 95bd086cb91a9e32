package blockfile

import (
	"fmt"

	"godwit/blockfile/qcow2"
)

// Extent is a piece of a disk and where it comes from.
type Extent struct {
	Off, Len int64
	// Data says that it may hold anything but zeroes. Present says that an image
	// of the chain has it, as data or as zeroes.
	Data, Present, Compressed bool
	// Depth counts the images above the one that has it.
	Depth int
	// Host is where it begins in that image's file, or -1: it has no place there,
	// or is compressed.
	Host int64
	Path string
}

// ExtentMapper is a File that knows where each piece of its disk comes from.
// Every File that Open gives is one.
type ExtentMapper interface {
	File
	// MapExtent gives the piece that begins at off, which lies below Size, and
	// has at most n bytes. The next one may be of the same kind.
	MapExtent(off, n int64) (Extent, error)
}

var (
	_ ExtentMapper = (*raw)(nil)
	_ ExtentMapper = (*qcow)(nil)
)

// MapExtent implements ExtentMapper by the holes of the file.
func (r *raw) MapExtent(off, n int64) (Extent, error) {
	start, end, err := r.NextData(off)
	if err != nil {
		return Extent{}, err
	}
	e := Extent{Off: off, Len: min(n, start-off), Present: true, Host: off, Path: r.path}
	if start == off {
		e.Data, e.Len = true, min(n, end-off)
	}
	return e, nil
}

// MapExtent implements ExtentMapper.
func (q *qcow) MapExtent(off, n int64) (Extent, error) {
	m, err := q.img.Map(off, n)
	if err != nil {
		return Extent{}, fmt.Errorf("map %q: %w", q.path, err)
	}
	e := Extent{Off: off, Len: m.Len, Present: m.Kind != qcow2.Unallocated, Host: -1, Path: q.path}
	switch m.Kind {
	case qcow2.Compressed:
		e.Data, e.Compressed = true, true
	case qcow2.Normal:
		e.Data, e.Host = true, m.Host
	case qcow2.Zero:
		if m.Host != 0 {
			e.Host = m.Host
		}
	case qcow2.Unallocated:
		return q.mapBelow(e)
	}
	return e, nil
}

// mapBelow maps what the image does not have: its backing file's, or zeroes
// that no image has.
func (q *qcow) mapBelow(e Extent) (Extent, error) {
	if q.backing == nil || e.Off >= q.backing.Size() {
		return e, nil
	}
	below, err := q.backing.(ExtentMapper).MapExtent(e.Off, min(e.Len, q.backing.Size()-e.Off))
	below.Depth++
	return below, err
}
