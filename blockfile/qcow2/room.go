package qcow2

import (
	"errors"
	"fmt"
)

// errRoom says that there is no storage for what would be written later.
var errRoom = errors.New("get room")

// Room for tables is had before data is answered. A file is given storage where
// it is first written, and data that fills the file system would leave none for
// the tables that lead to it, which are written later. So whatever will be
// written later is written once before it changes in memory: as it stands in the
// file, or as zeroes where the file never had it. After that it has storage, and
// writing it again needs none. (A file system that writes a copy at each
// change, such as btrfs with its defaults, makes no such promise.)
//
//	request ── hold: L2 table, L1 entry, refcount block, its entry ──> data ──> answer
//	               └ no room: the request fails, nothing has changed
type room struct {
	l2, blocks bits // by the index of a table, a block
	l1, counts bits // by cluster of the L1 table, of the refcount table
}

// bits is a set of small numbers. It grows with the largest.
type bits []uint64

func (b bits) has(i uint64) bool { return i/64 < uint64(len(b)) && b[i/64]>>(i%64)&1 != 0 }

func (b *bits) add(i uint64) {
	if more := int(i/64) + 1 - len(*b); more > 0 {
		*b = append(*b, make([]uint64, more)...)
	}
	(*b)[i/64] |= 1 << (i % 64)
}

// hold has storage for n bytes of the file, at most a cluster, that are in use.
// It needs mu.
func (m *Image) hold(off, n int64) error {
	p := m.scratch[:(n+sector-1)&^(sector-1)]
	if err := readAt(m.host, p, off); err != nil {
		return err
	}
	return writeAt(m.host, p, off)
}

// holdNew has storage for a cluster that nothing refers to yet. It needs mu.
func (m *Image) holdNew(off int64) error {
	clear(m.scratch)
	return writeAt(m.host, m.scratch, off)
}

// holdTable is called before an L2 table changes.
func (m *Image) holdTable(t *table) error {
	if m.room.l2.has(t.index) {
		return nil
	}
	if err := m.hold(t.off, m.g.cluster); err != nil {
		return fmt.Errorf("%w for an L2 table: %w", errRoom, err)
	}
	m.room.l2.add(t.index)
	return nil
}

// holdBlock is called before a refcount block changes.
func (m *Image) holdBlock(b *block) error {
	if m.room.blocks.has(b.index) {
		return nil
	}
	if err := m.hold(b.off, m.g.cluster); err != nil {
		return fmt.Errorf("%w for a refcount block: %w", errRoom, err)
	}
	m.room.blocks.add(b.index)
	return nil
}

// holdL1 is called before an entry of the L1 table changes.
func (m *Image) holdL1(i uint64) error {
	if err := m.holdWords(&m.room.l1, int64(m.h.Load().L1Offset), len(m.l1), m.l1Dirty, int(i)); err != nil {
		return fmt.Errorf("%w for the L1 table: %w", errRoom, err)
	}
	return nil
}

// holdCounts is called before an entry of the refcount table changes.
func (m *Image) holdCounts(i uint64) error {
	if err := m.holdWords(&m.room.counts, int64(m.h.Load().RefcountOffset), len(m.refs.table), m.refs.tableDirty, int(i)); err != nil {
		return fmt.Errorf("%w for the refcount table: %w", errRoom, err)
	}
	return nil
}

// holdWords has storage for what writeWords will write of a table of words at
// off once word i has changed: all from the first that changed to the last.
func (m *Image) holdWords(held *bits, off int64, words int, changed dirtyRange, i int) error {
	changed.add(i, i+1)
	perCluster := int(m.g.perTable)
	for c := changed.from / perCluster; c*perCluster < changed.to; c++ {
		if held.has(uint64(c)) {
			continue
		}
		n := min(words-c*perCluster, perCluster)
		if err := m.hold(off+int64(c)<<m.g.bits, int64(n)*entrySize); err != nil {
			return err
		}
		held.add(uint64(c))
	}
	return nil
}
