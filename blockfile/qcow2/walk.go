package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// Bits of table entries that must be 0 (qcow2, L1 table entry, Standard Cluster
// Descriptor, Refcount table entry).
const (
	l1Reserved       = 0x7f000000000001ff
	l2Reserved       = 0x3f000000000001fe
	reftableReserved = 0x1ff
)

// walker follows every reference of an image.
type walker struct {
	ctx    context.Context
	f      Host
	h      *Header
	refs   *references
	blocks bitset // clusters that are refcount blocks
	single bitset // clusters whose refcount is 1
	seen   bitset // L2 tables whose entries are counted
	report *CheckReport

	snapshots     []Snapshot
	snapshotBytes int64
	// afresh leaves the refcount table and its blocks out, since they will be
	// built anew; fix replaces entries that cannot be right.
	afresh, fix bool
}

func newWalker(ctx context.Context, f Host, h *Header, r *CheckReport) (*walker, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	refs, err := newReferences(size, h.ClusterBits)
	if err != nil {
		return nil, err
	}
	w := &walker{ctx: ctx, f: f, h: h, refs: refs, report: r, blocks: newBitset(len(refs.counts)), seen: newBitset(len(refs.counts))}
	if w.snapshots, w.snapshotBytes, err = ReadSnapshots(f, h); err != nil {
		w.report.corrupt("%v", err)
		w.report.hopeless = err.Error()
	}
	return w, nil
}

// all counts every reference. Tables come first, the ones that cannot be built
// anew before the others: where two claim a cluster the later one is wrong.
func (w *walker) all() error {
	w.refs.add(0, uint64(w.h.ClusterSize()), useAlone, 1)
	w.table("L1 table", w.h.L1Offset, uint64(w.h.L1Entries)*8)
	if w.snapshotBytes > 0 {
		if !w.table("snapshot table", w.h.SnapshotsOffset, uint64(w.snapshotBytes)) {
			w.report.hopeless = "the snapshot table is broken"
		}
	}
	for i := range w.snapshots {
		s := &w.snapshots[i]
		what := fmt.Sprintf("L1 table of snapshot %q", s.Name)
		if !w.table(what, s.L1Offset, uint64(s.L1Entries)*8) {
			w.report.hopeless = what + " is broken; delete that snapshot with qemu-img snapshot -d"
			s.L1Entries = 0
		}
	}
	if !w.afresh {
		if err := w.refcountTable(); err != nil {
			return err
		}
	}
	if err := w.bitmaps(); err != nil {
		return err
	}
	if err := w.eachL1(w.l2Tables); err != nil {
		return err
	}
	return w.eachL1(w.l2Entries)
}

// eachL1 calls do for the active L1 table and that of every snapshot.
func (w *walker) eachL1(do func(off, entries uint64, active bool) error) error {
	if err := do(w.h.L1Offset, uint64(w.h.L1Entries), true); err != nil {
		return err
	}
	for _, s := range w.snapshots {
		if err := do(s.L1Offset, uint64(s.L1Entries), false); err != nil {
			return err
		}
	}
	return nil
}

// table counts a table that one field refers to.
func (w *walker) table(what string, off, n uint64) bool {
	if n == 0 {
		return true
	}
	if bad := w.refs.aligned(off, n, useAlone, 1); bad != faultNone {
		w.report.corrupt("%s at %#x %v", what, off, bad)
		return false
	}
	return true
}

// entries calls do for each 64-bit entry of a table and writes back what do
// returns, where that differs and fix says so.
func (w *walker) entries(off, n uint64, do func(i, e uint64) (uint64, error)) error {
	buf := make([]byte, min(n*8, 64<<10))
	for i := uint64(0); i < n; {
		if err := w.ctx.Err(); err != nil {
			return err
		}
		part := buf[:min(n-i, uint64(len(buf)/8))*8]
		if err := readAt(w.f, part, int64(off+i*8)); err != nil {
			return err
		}
		first := i
		changed := false
		for ; i-first < uint64(len(part)/8); i++ {
			field := part[(i-first)*8:]
			e := binary.BigEndian.Uint64(field)
			now, err := do(i, e)
			if err != nil {
				return err
			}
			if now != e {
				binary.BigEndian.PutUint64(field, now)
				changed = true
			}
		}
		if changed && w.fix {
			if err := writeAt(w.f, part, int64(off+first*8)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *walker) refcountTable() error {
	w.table("refcount table", w.h.RefcountOffset, uint64(w.h.RefcountClusters)<<w.h.ClusterBits)
	return w.entries(w.h.RefcountOffset, w.refcountEntries(), func(i, e uint64) (uint64, error) {
		if e == 0 {
			return e, nil
		}
		off := e &^ reftableReserved
		bad := w.refs.aligned(off, uint64(w.h.ClusterSize()), useAlone, 1)
		switch {
		case bad != faultNone:
			w.report.corrupt("refcount block %d at %#x %v", i, off, bad)
		case off != e:
			w.report.corrupt("refcount block %d at %#x %v", i, off, faultReserved)
		}
		if bad == faultNone {
			w.blocks.set(int64(off >> w.h.ClusterBits))
		}
		return e, nil
	})
}

// l2Tables counts the L2 tables of an L1 table.
func (w *walker) l2Tables(off, n uint64, _ bool) error {
	return w.entries(off, n, func(i, e uint64) (uint64, error) {
		if e == 0 {
			return e, nil
		}
		if e&l1Reserved != 0 {
			w.report.corrupt("entry %d of the L1 table at %#x %v", i, off, faultReserved)
			e &^= l1Reserved
		}
		l2 := e & offsetMask
		if l2 == 0 {
			return 0, nil
		}
		if bad := w.refs.aligned(l2, uint64(w.h.ClusterSize()), useL2, 1); bad != faultNone {
			w.report.corrupt("L2 table at %#x, entry %d of the L1 table at %#x, %v", l2, i, off, bad)
			return 0, nil
		}
		return e, nil
	})
}

// l2Entries counts the clusters that the L2 tables of an L1 table refer to. It
// looks at a table once, however many refer to it: the work is bounded by what
// the file holds.
func (w *walker) l2Entries(off, n uint64, active bool) error {
	return w.entries(off, n, func(_, e uint64) (uint64, error) {
		l2 := e & offsetMask
		if !w.isL2(l2) || w.seen.has(int64(l2>>w.h.ClusterBits)) {
			return e, nil // what is no L2 table was said by l2Tables
		}
		w.seen.set(int64(l2 >> w.h.ClusterBits))
		times := w.refs.at(l2)
		return e, w.entries(l2, uint64(w.h.ClusterSize()/8), func(i, e uint64) (uint64, error) {
			if active {
				w.tally(e)
			}
			now, what, bad := w.l2Entry(e, times)
			if bad != faultNone {
				w.report.corrupt("%s, entry %d of the L2 table at %#x, %v", what, i, l2, bad)
			}
			return now, nil
		})
	})
}

// isL2 says that an L1 entry was found good.
func (w *walker) isL2(off uint64) bool {
	c := off >> w.h.ClusterBits
	return off != 0 && off&uint64(w.h.ClusterSize()-1) == 0 && c < uint64(len(w.refs.counts)) && w.refs.use(int64(c)) == useL2
}

func (w *walker) tally(e uint64) {
	switch {
	case e&flagCompressed != 0:
		w.report.CompressedClusters++
		w.report.AllocatedClusters++
	case e&flagZero != 0:
		w.report.ZeroClusters++
	case e&offsetMask != 0:
		w.report.AllocatedClusters++
	}
}

// l2Entry counts what an L2 entry refers to, as often as there are references to
// its table. With a fault it gives the entry to
// put in its place: the cluster's data are lost.
func (w *walker) l2Entry(e, times uint64) (now uint64, what string, bad fault) {
	lost := uint64(0) // version 2 has nothing that hides a backing file
	if w.h.Version >= 3 {
		lost = flagZero
	}
	if e&flagCompressed != 0 {
		off, n := compressedExtent(e, w.h.ClusterBits)
		if bad := w.refs.add(off, n, useData, times); bad != faultNone {
			return lost, fmt.Sprintf("compressed cluster at %#x", off), bad
		}
		return e, "", faultNone
	}
	if e&flagZero != 0 && w.h.Version < 3 {
		return lost, fmt.Sprintf("entry %#x", e), faultZeroV2
	}
	now = e
	if e&l2Reserved != 0 {
		now, what, bad = e&^l2Reserved, fmt.Sprintf("entry %#x", e), faultReserved
	}
	off := e & offsetMask
	if off == 0 {
		return now, what, bad
	}
	if bad := w.refs.aligned(off, uint64(w.h.ClusterSize()), useData, times); bad != faultNone {
		return lost, fmt.Sprintf("cluster at %#x", off), bad
	}
	return now, what, bad
}

// flags compares the copied flags of the active tables with the refcounts
// (qcow2, L1 table entry, bit 63). With fix it makes them agree with the
// references instead.
func (w *walker) flags(fix bool) error {
	one := func(off uint64) bool { return w.single.has(int64(off >> w.h.ClusterBits)) }
	if fix {
		one = func(off uint64) bool { return w.refs.at(off) == 1 }
	}
	seen := newBitset(len(w.refs.counts))
	judge := func(e uint64, what string) uint64 {
		off := e & offsetMask
		if off == 0 || off>>w.h.ClusterBits >= uint64(len(w.refs.counts)) {
			return e
		}
		want := e &^ flagCopied
		if e&flagCompressed == 0 && one(off) {
			want |= flagCopied
		}
		if want != e && !fix {
			w.report.corrupt("%s at %#x: its copied flag is %d, which its refcount contradicts", what, off, e>>63)
		}
		return want
	}
	return w.entries(w.h.L1Offset, uint64(w.h.L1Entries), func(_, e uint64) (uint64, error) {
		l2 := e & offsetMask
		if !w.isL2(l2) {
			return e, nil
		}
		if seen.has(int64(l2 >> w.h.ClusterBits)) {
			return judge(e, "L2 table"), nil
		}
		seen.set(int64(l2 >> w.h.ClusterBits))
		err := w.entries(l2, uint64(w.h.ClusterSize()/8), func(_, e uint64) (uint64, error) {
			if e&flagCompressed != 0 {
				if e&flagCopied != 0 && !fix {
					w.report.corrupt("compressed cluster, entry %#x: its copied flag is set", e)
				}
				return e &^ flagCopied, nil
			}
			return judge(e, "cluster"), nil
		})
		return judge(e, "L2 table"), err
	})
}
