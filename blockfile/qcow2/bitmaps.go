package qcow2

import (
	"encoding/binary"
	"fmt"
)

// QEMU's persistent dirty bitmaps (qcow2, Bitmaps extension). We keep them out
// of use, but their clusters are in use as long as the autoclear bit says that
// nobody has written past them.
const (
	extBitmaps       = 0x23852875
	autoclearBitmaps = 1 << 0
	maxBitmapBytes   = 64 << 20 // of the directory
)

// bitmaps counts the clusters of the bitmaps.
func (w *walker) bitmaps() error {
	if w.h.Autoclear&autoclearBitmaps == 0 {
		return nil
	}
	before := w.report.Corruptions
	defer func() { w.report.badBitmaps = w.report.Corruptions > before }()
	for _, e := range w.h.Extensions {
		if e.Type != extBitmaps {
			continue
		}
		if len(e.Data) != 24 {
			w.report.corrupt("bitmaps extension of %d bytes", len(e.Data))
			return nil
		}
		be := binary.BigEndian
		size, off := be.Uint64(e.Data[8:]), be.Uint64(e.Data[16:])
		if size > maxBitmapBytes {
			w.report.corrupt("bitmap directory of %d bytes", size)
			return nil
		}
		if !w.table("bitmap directory", off, size) {
			return nil
		}
		dir := make([]byte, size)
		if err := readAt(w.f, dir, int64(off)); err != nil {
			return err
		}
		return w.bitmapDirectory(dir)
	}
	return nil
}

func (w *walker) bitmapDirectory(dir []byte) error {
	be := binary.BigEndian
	for i := 0; len(dir) > 0; i++ {
		if len(dir) < 24 {
			w.report.corrupt("bitmap directory: entry %d is cut off", i)
			return nil
		}
		n := (24 + uint64(be.Uint16(dir[18:])) + uint64(be.Uint32(dir[20:])) + 7) &^ 7
		if n > uint64(len(dir)) {
			w.report.corrupt("bitmap directory: entry %d is cut off", i)
			return nil
		}
		off, entries := be.Uint64(dir), uint64(be.Uint32(dir[8:]))
		dir = dir[n:]
		what := fmt.Sprintf("table of bitmap %d", i)
		if !w.table(what, off, entries*8) {
			continue
		}
		err := w.entries(off, entries, func(j, e uint64) (uint64, error) {
			if c := e & offsetMask; c != 0 {
				if bad := w.refs.aligned(c, uint64(w.h.ClusterSize()), useAlone, 1); bad != faultNone {
					w.report.corrupt("cluster at %#x, entry %d of the %s, %v", c, j, what, bad)
				}
			}
			return e, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
