package blockfile

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"godwit/blockfile/qcow2"
)

// Mapper is a File that knows of ranges that read as zeroes without reading
// them, for what copies a disk. Every File that Open gives is one.
type Mapper interface {
	File
	// NextData gives the first range from off on that may hold anything but
	// zeroes. It begins at Size if there is none. Another one may follow at once.
	NextData(off int64) (start, end int64, err error)
}

var (
	_ Mapper = (*raw)(nil)
	_ Mapper = (*qcow)(nil)
)

// NextData implements Mapper by SEEK_DATA and SEEK_HOLE (lseek(2)). Where they
// are not known all is data.
func (r *raw) NextData(off int64) (start, end int64, err error) {
	size := r.geo.size
	if off < 0 || off > size {
		return 0, 0, fmt.Errorf("byte %d of %q, which has %d: %w", off, r.path, size, ErrRange)
	}
	start, err = unix.Seek(r.fd, off, unix.SEEK_DATA)
	switch {
	case errors.Is(err, unix.ENXIO):
		return size, size, nil
	case err != nil:
		return off, size, nil
	}
	if end, err = unix.Seek(r.fd, start, unix.SEEK_HOLE); err != nil || end%SectorSize != 0 {
		end = size // the end of the file, where that is within a sector
	}
	return min(start, size), min(end, size), nil
}

// NextData implements Mapper: where the image has nothing, its backing file knows.
func (q *qcow) NextData(off int64) (start, end int64, err error) {
	size := q.Size()
	if off < 0 || off > size {
		return 0, 0, fmt.Errorf("byte %d of %q, which has %d: %w", off, q.path, size, ErrRange)
	}
	for off < size {
		e, err := q.img.Map(off, size-off)
		if err != nil {
			return 0, 0, fmt.Errorf("map %q: %w", q.path, err)
		}
		end := off + e.Len
		switch e.Kind {
		case qcow2.Normal, qcow2.Compressed:
			return off, end, nil
		case qcow2.Unallocated:
			start, stop, err := q.dataBelow(off)
			if err != nil || start < end {
				return start, min(stop, end), err
			}
		}
		off = end
	}
	return size, size, nil
}

// dataBelow is NextData of the backing file, which may be shorter.
func (q *qcow) dataBelow(off int64) (start, end int64, err error) {
	if q.backing == nil || off >= q.backing.Size() {
		return q.Size(), q.Size(), nil
	}
	if m, ok := q.backing.(Mapper); ok {
		start, end, err = m.NextData(off)
		if start == q.backing.Size() {
			return q.Size(), q.Size(), err
		}
		return start, end, err
	}
	return off, q.Size(), nil
}
