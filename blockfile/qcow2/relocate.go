package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// newTable is a refcount table in the making.
type newTable struct {
	first, clusters int64           // where it lies in the file
	blocks          map[int64]int64 // index in the table to cluster of the file
	own             map[int64]bool  // clusters of table and blocks
}

// placeRefcounts writes a refcount table and its blocks, to which nothing
// refers yet, for what w has counted: behind the end of the file, or where that
// has no room, as on a block device, in clusters that nothing uses.
func (w *walker) placeRefcounts(found *walker) (*newTable, error) {
	size, err := w.f.Size()
	if err != nil {
		return nil, err
	}
	all := int64(len(w.refs.counts))
	t, err := w.layOut(func(c int64) bool { return c >= all })
	if err != nil {
		return nil, err
	}
	err = w.writeRefcounts(t)
	if !noRoom(err) {
		return t, err
	}
	full := err
	// What reached the file before it was full goes again.
	if f, ok := w.f.(interface{ Truncate(int64) error }); ok {
		if now, err := w.f.Size(); err == nil && now > size {
			if err := f.Truncate(size); err != nil {
				return nil, err
			}
		}
	}
	// The old table counts until the header says otherwise: its clusters are used.
	t, err = w.layOut(func(c int64) bool { return c < all && w.refs.count(c) == 0 && found.refs.count(c) == 0 })
	if err != nil {
		return nil, fmt.Errorf("%w; the file cannot grow either: %w; nothing was changed", err, full)
	}
	return t, w.writeRefcounts(t)
}

// noRoom says that a write failed because the file cannot be that long.
func noRoom(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG)
}

// layOut finds places for table and blocks, which they count too, among the
// clusters that are free.
func (w *walker) layOut(free func(cluster int64) bool) (*newTable, error) {
	perBlock := w.h.ClusterSize() * 8 / int64(w.h.RefcountBits())
	all := int64(len(w.refs.counts))
	var order []int64 // blocks that are needed
	for c := int64(0); c < all; c++ {
		if i := c / perBlock; w.refs.count(c) > 0 {
			order = append(order, i)
			c = (i+1)*perBlock - 1
		}
	}
	for clusters := int64(1); ; clusters++ {
		if clusters<<w.h.ClusterBits > max(maxTableBytes, w.h.ClusterSize()) {
			return nil, fmt.Errorf("%w: its refcounts would need a table of %d bytes", ErrUnrepairable, clusters<<w.h.ClusterBits)
		}
		t, err := w.tryLayout(free, clusters, slices.Clone(order))
		if t != nil || err != nil {
			return t, err
		}
	}
}

// tryLayout is layOut with a table of so many clusters. It gives nil if that is
// too small.
func (w *walker) tryLayout(free func(int64) bool, clusters int64, order []int64) (*newTable, error) {
	perBlock := w.h.ClusterSize() * 8 / int64(w.h.RefcountBits())
	entries := clusters << w.h.ClusterBits / entrySize
	// More than the table can count is no place for it.
	limit := min(entries*perBlock, maxOffset>>w.h.ClusterBits)
	t := &newTable{clusters: clusters, blocks: map[int64]int64{}, own: map[int64]bool{}}
	needed := map[int64]bool{}
	for _, i := range order {
		if i >= entries {
			return nil, nil
		}
		needed[i] = true
	}
	next := int64(0)
	take := func(n int64) (first int64, ok bool) {
		for run := int64(0); next < limit; {
			c := next
			if next++; !free(c) {
				run = 0
				continue
			}
			if run++; run < n {
				continue
			}
			for k := c - n + 1; k <= c; k++ {
				t.own[k] = true
				if i := k / perBlock; !needed[i] {
					needed[i] = true
					order = append(order, i)
				}
			}
			return c - n + 1, true
		}
		return 0, false
	}
	var ok bool
	if t.first, ok = take(clusters); !ok {
		return nil, w.noPlace(limit, clusters)
	}
	for k := 0; k < len(order); k++ {
		if t.blocks[order[k]], ok = take(1); !ok {
			return nil, w.noPlace(limit, int64(len(order)))
		}
	}
	return t, nil
}

// noPlace is nil where a larger table could count clusters further behind.
func (w *walker) noPlace(limit, wanted int64) error {
	if limit <= int64(len(w.refs.counts)) {
		return nil
	}
	return fmt.Errorf("%w: its new refcounts need %d clusters that nothing uses; copy what is left with godwit image convert", ErrUnrepairable, wanted)
}

// writeRefcounts writes blocks and table and makes them stable.
func (w *walker) writeRefcounts(t *newTable) error {
	perBlock := w.h.ClusterSize() * 8 / int64(w.h.RefcountBits())
	all := int64(len(w.refs.counts))
	table := make([]byte, t.clusters<<w.h.ClusterBits)
	block := make([]byte, w.h.ClusterSize())
	for i, place := range t.blocks {
		clear(block)
		for c := i * perBlock; c < (i+1)*perBlock; c++ {
			n := uint64(0)
			switch {
			case t.own[c]:
				n = 1
			case c < all:
				n = w.refs.count(c)
			}
			setRefcount(block, w.h.RefcountOrder, uint64(c-i*perBlock), n)
		}
		at := uint64(place) << w.h.ClusterBits
		binary.BigEndian.PutUint64(table[i*entrySize:], at)
		if err := writeAt(w.f, block, int64(at)); err != nil {
			return err
		}
	}
	if err := writeAt(w.f, table, t.first<<w.h.ClusterBits); err != nil {
		return err
	}
	return w.f.Flush()
}
