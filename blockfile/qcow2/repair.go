package qcow2

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrUnrepairable says that a repair would lose more than it helps.
var ErrUnrepairable = errors.New("cannot be repaired here")

// Repair checks an image, repairs it and checks it again. Without all it only
// frees leaked clusters, and does not touch an image with corruptions: what
// seems leaked there may be the data that a broken entry has lost. With all it
// replaces entries that cannot be right, which loses what they stood for, and
// builds all refcounts anew. The caller holds the image's lock.
func Repair(ctx context.Context, f Host, all bool, limit int) (before, after *CheckReport, err error) {
	before, w, err := check(ctx, f, limit)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case all && (!before.Clean() || before.Corrupt || before.Dirty):
		err = rebuild(w)
	case all || before.Corruptions > 0:
		return before, before, nil
	case before.Leaks > 0 || before.Dirty:
		err = freeLeaks(w)
	}
	if err != nil {
		return before, nil, err
	}
	after, err = Check(ctx, f, limit)
	return before, after, err
}

// freeLeaks lowers refcounts to the number of references. Lower ones first,
// copied flags after: a flag that is missing costs a copy, no more.
func freeLeaks(w *walker) error {
	w.fix = true
	perBlock := w.h.ClusterSize() * 8 / int64(w.h.RefcountBits())
	block := make([]byte, w.h.ClusterSize())
	all := int64(len(w.refs.counts))
	err := w.entries(w.h.RefcountOffset, w.refcountEntries(), func(i, e uint64) (uint64, error) {
		first := int64(i) * perBlock
		off := e &^ reftableReserved
		if first >= all || !w.isRefcountBlock(off) {
			return e, nil
		}
		if err := readAt(w.f, block, int64(off)); err != nil {
			return e, err
		}
		changed := false
		for c := first; c < min(all, first+perBlock); c++ {
			if want := w.refs.count(c); refcount(block, w.h.RefcountOrder, uint64(c-first)) > want {
				setRefcount(block, w.h.RefcountOrder, uint64(c-first), want)
				changed = true
			}
		}
		if !changed {
			return e, nil
		}
		return e, writeAt(w.f, block, int64(off))
	})
	if err != nil {
		return err
	}
	if err := w.f.Flush(); err != nil {
		return err
	}
	if err := w.flags(true); err != nil {
		return err
	}
	return w.unmark(IncompatDirty)
}

// unmark clears incompatible bits once everything else is stable.
func (w *walker) unmark(bits uint64) error {
	if err := w.f.Flush(); err != nil {
		return err
	}
	if w.h.Incompatible&bits == 0 {
		return nil
	}
	w.h.Incompatible &^= bits
	return w.writeHeader()
}

// writeHeader writes the fields that a repair changes. They lie in one sector,
// which a disk writes whole or not at all.
func (w *walker) writeHeader() error {
	first := make([]byte, sector)
	if err := readAt(w.f, first, 0); err != nil {
		return err
	}
	be := binary.BigEndian
	be.PutUint64(first[48:], w.h.RefcountOffset)
	be.PutUint32(first[56:], w.h.RefcountClusters)
	if w.h.Version >= 3 {
		be.PutUint64(first[72:], w.h.Incompatible)
		be.PutUint64(first[88:], w.h.Autoclear)
	}
	if err := writeAt(w.f, first, 0); err != nil {
		return err
	}
	return w.f.Flush()
}

// rebuild replaces entries that cannot be right, counts again, and writes a new
// refcount table with its blocks. Nothing that the image refers to changes
// before the new table is stable in the file, so a repair that finds no room,
// on a block device or a full disk, leaves the image as it was.
func rebuild(found *walker) error {
	if found.report.hopeless != "" {
		return fmt.Errorf("%w: %s", ErrUnrepairable, found.report.hopeless)
	}
	w, err := countAfresh(found, false)
	if err != nil {
		return err
	}
	for c := range w.refs.counts {
		if n := w.refs.count(int64(c)); n > maxRefcount(w.h.RefcountOrder) {
			return fmt.Errorf("%w: %d references to the cluster at %#x do not fit refcounts of %d bits; copy it with godwit image convert",
				ErrUnrepairable, n, c<<w.h.ClusterBits, w.h.RefcountBits())
		}
	}
	t, err := w.placeRefcounts(found)
	if err != nil {
		return err
	}
	if w, err = countAfresh(found, true); err != nil {
		return err
	}
	if err := w.f.Flush(); err != nil {
		return err
	}
	w.h.RefcountOffset, w.h.RefcountClusters = uint64(t.first)<<w.h.ClusterBits, uint32(t.clusters)
	if err := w.writeHeader(); err != nil {
		return err
	}
	if err := w.flags(true); err != nil {
		return err
	}
	return w.unmark(IncompatDirty | IncompatCorrupt)
}

// countAfresh walks an image without its refcounts. What is wrong has been
// reported; this walk only counts, and mends if fix says so.
func countAfresh(found *walker, fix bool) (*walker, error) {
	w, err := newWalker(found.ctx, found.f, found.h, &CheckReport{})
	if err != nil {
		return nil, err
	}
	w.afresh, w.fix = true, fix
	// The file may be longer by what the repair has put behind its end: an entry
	// that leads there is as wrong as it was.
	if w.refs, err = newReferences(found.refs.size, w.h.ClusterBits); err != nil {
		return nil, err
	}
	if found.report.badBitmaps {
		w.h.Autoclear &^= autoclearBitmaps
	}
	return w, w.all()
}
