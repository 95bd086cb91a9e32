package qcow2

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
)

// Resize changes the size of the disk, in bytes; nobody else uses the image.
// What is new reads as zeroes, whatever the backing file has there. The header
// gets the size last, when all else is stable: a crash leaves the old disk, of
// which a smaller one may have lost what lies behind its end.
//
//	grow:   longer L1 table, zeroes over what would show ──> size
//	shrink: entries behind the end ─────────────────────────> size
func (m *Image) Resize(size int64) error {
	h := m.h.Load()
	switch {
	case !m.writable:
		return errNotWritable
	case size <= 0 || size%sector != 0:
		return fmt.Errorf("a disk of %d bytes: use a multiple of %d, and not 0", size, sector)
	case h.Version < 3 && h.SnapshotCount > 0:
		return unsupported("to change the size of a version 2 image with snapshots, which do not say theirs; delete them, or convert it")
	case l1Needed(uint64(size), h.ClusterBits)*entrySize > maxL1Bytes:
		return fmt.Errorf("%w: a disk of %d bytes needs larger clusters than %d; convert it", ErrFull, size, m.g.cluster)
	}
	var err error
	if old := m.size; size < old {
		err = m.forget(size, old)
	} else {
		err = m.extend(old, size)
	}
	if err != nil {
		return err
	}
	if err := m.Flush(); err != nil {
		return err
	}
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(size))
	return m.patchHeader(b[:], 24, func(h *Header) { h.Size = uint64(size) })
}

// patchHeader changes bytes of the header's first sector, which is written whole
// or not at all.
func (m *Image) patchHeader(b []byte, off int64, change func(*Header)) error {
	if err := writeAt(m.host, b, off); err != nil {
		return err
	}
	if err := m.host.Flush(); err != nil {
		return err
	}
	h := *m.h.Load()
	change(&h)
	m.h.Store(&h)
	m.size = h.DiskSize()
	return nil
}

// forget drops the clusters from a new end of the disk on, so that a disk that
// grows again has zeroes there.
func (m *Image) forget(size, old int64) error {
	first := uint64(size+m.g.cluster-1) >> m.g.bits
	last := uint64(old+m.g.cluster-1) >> m.g.bits
	return m.eachTable(first, last, func(t *table, i uint64) error {
		entry := t.entries[i]
		if entry == 0 {
			return nil
		}
		m.set(t, i, 0)
		return m.freeEntry(entry)
	}, true)
}

// extend makes what lies between two sizes read as zeroes.
func (m *Image) extend(old, size int64) error {
	if err := m.growL1(l1Needed(uint64(size), m.h.Load().ClusterBits)); err != nil {
		return err
	}
	// The last cluster may hold more than the disk did, and the backing file may
	// be longer.
	end := min(size, (old+m.g.cluster-1)&^(m.g.cluster-1))
	if m.o.Backing != nil {
		end = max(end, min(size, m.o.Backing.Size()))
	}
	m.size = size
	if err := m.WriteZeroes(old, end-old, true); err != nil {
		m.size = old
		return err
	}
	return nil
}

// growL1 gives the L1 table as many entries: where it is, if its last cluster has
// room, or else in a new place.
func (m *Image) growL1(entries uint64) error {
	if entries <= uint64(len(m.l1)) {
		return nil
	}
	m.inflight.Lock()
	defer m.inflight.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	h := m.h.Load()
	l1 := make([]uint64, entries)
	copy(l1, m.l1)
	clusters := func(n uint64) int64 { return int64((n + m.g.perTable - 1) / m.g.perTable) }
	place := int64(h.L1Offset)
	moved := place == 0 || clusters(entries) > clusters(uint64(len(m.l1)))
	if moved {
		var err error
		if place, err = m.allocateRow(clusters(entries)); err != nil {
			return err
		}
	}
	// Counts first, and the old table as it is in memory.
	if err := m.writeMetadata(); err != nil {
		return err
	}
	from := 0
	if !moved {
		from = len(m.l1)
	}
	if err := m.writeWords(l1, place, dirtyRange{from, len(l1)}); err != nil {
		return err
	}
	if err := m.host.Flush(); err != nil {
		return err
	}
	var b [12]byte
	binary.BigEndian.PutUint32(b[:], uint32(entries))
	binary.BigEndian.PutUint64(b[4:], uint64(place))
	if err := m.patchHeader(b[:], 36, func(h *Header) { h.L1Entries, h.L1Offset = uint32(entries), uint64(place) }); err != nil {
		return err
	}
	if moved && len(m.l1) > 0 {
		m.free(int64(h.L1Offset)>>m.g.bits, clusters(uint64(len(m.l1))))
	}
	tables := make([]atomic.Pointer[table], entries)
	for i := range m.tables {
		tables[i].Store(m.tables[i].Load())
	}
	m.l1, m.tables, m.room.l1 = l1, tables, nil
	m.dirty.Store(true)
	return nil
}

// allocateRow finds clusters that follow one another, behind all that are in
// use. It needs mu.
func (m *Image) allocateRow(n int64) (off int64, err error) {
	m.refs.hint = m.end.Load() >> m.g.bits
	first, have := int64(0), int64(0)
	for have < n {
		at, got, _, err := m.allocate(n - have)
		if err != nil {
			return 0, err
		}
		if c := at >> m.g.bits; have > 0 && c != first+have {
			// A refcount block came between.
			hint := m.refs.hint
			m.unallocate(first, have)
			m.refs.hint = hint
			have = 0
		}
		if have == 0 {
			first = at >> m.g.bits
		}
		have += got
		if have < n && m.refs.hint < first+have {
			m.refs.hint = first + have
		}
	}
	m.refs.hint = 1
	return first << m.g.bits, nil
}
