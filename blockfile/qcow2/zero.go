package qcow2

import "errors"

// zeroes is only ever read.
var zeroes = make([]byte, 64<<10)

// Discard says that the contents of a range no longer matter. Clusters that
// lie in it whole lose their storage. With a backing file they become zero
// clusters, so that nothing old shows through; version 2 has none, so there
// they stay. The range lies within Size; the caller has checked it.
func (m *Image) Discard(off, n int64) error {
	first, last := m.whole(off, n)
	err := m.eachTable(first, last, func(t *table, i uint64) error {
		entry := t.entries[i]
		switch kind, _, err := m.g.split(entry); {
		case err != nil:
			return err
		case kind == Unallocated, entry == flagZero, m.backed && m.g.version < 3:
			return nil
		}
		return m.drop(t, i)
	}, true)
	if err != nil {
		return err
	}
	return m.settle()
}

// WriteZeroes makes a range read as zeroes. Without mayUnmap clusters keep
// their storage where the version has zero clusters. The range lies within
// Size; the caller has checked it.
func (m *Image) WriteZeroes(off, n int64, mayUnmap bool) error {
	if n == 0 {
		return nil
	}
	end := off + n
	first, last := m.whole(off, n)
	if first >= last || m.g.version < 3 && m.backed {
		return errors.Join(m.writeZeroes(off, end), m.settle())
	}
	if err := m.writeZeroes(off, int64(first)<<m.g.bits); err != nil {
		return err
	}
	if err := m.writeZeroes(min(end, int64(last)<<m.g.bits), end); err != nil {
		return err
	}
	err := m.eachTable(first, last, func(t *table, i uint64) error {
		entry := t.entries[i]
		kind, place, err := m.g.split(entry)
		switch {
		case err != nil:
			return err
		case kind == Unallocated && !m.backed, kind == Zero && (place == 0 || !mayUnmap):
			return nil
		case !mayUnmap && m.g.version >= 3 && kind == Normal && entry&flagCopied != 0:
			m.set(t, i, entry|flagZero)
			return nil
		}
		return m.drop(t, i)
	}, !m.backed)
	if err != nil {
		return err
	}
	return m.settle()
}

// whole gives the clusters that lie in a range, the one after the last for the
// end. The last of the disk may be short.
func (m *Image) whole(off, n int64) (first, last uint64) {
	mask := m.g.cluster - 1
	end := off + n
	if end == m.size {
		end = (end + mask) &^ mask
	}
	return uint64(off+mask) >> m.g.bits, uint64(end) >> m.g.bits
}

// drop makes a cluster read as zeroes and frees its storage. It needs mu.
func (m *Image) drop(t *table, i uint64) error {
	old := t.entries[i]
	entry := uint64(0)
	if m.backed {
		entry = flagZero
	}
	m.set(t, i, entry)
	return m.freeEntry(old)
}

// eachTable calls change for the entries of clusters from first to before last,
// with mu held and nobody allocating them, one table at a time. With skipHoles
// it passes over what has no table.
func (m *Image) eachTable(first, last uint64, change func(t *table, i uint64) error, skipHoles bool) error {
	for first < last {
		end := min(last, first|(m.g.perTable-1)+1)
		if err := m.inTable(first, end, change, skipHoles); err != nil {
			return err
		}
		if m.mustSettle() && end < last {
			if err := m.settle(); err != nil {
				return err
			}
		}
		first = end
	}
	return nil
}

func (m *Image) inTable(first, end uint64, change func(t *table, i uint64) error, skipHoles bool) error {
	m.inflight.RLock()
	defer m.inflight.RUnlock()
	if !m.writable {
		return errNotWritable
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for first < end {
		stop := m.waitFree(first, end-1) + 1
		i := first / m.g.perTable
		if skipHoles && m.l1[i]&offsetMask == 0 {
			return nil
		}
		t, err := m.writableTable(i)
		if err != nil {
			return err
		}
		for ; first < stop; first++ {
			if err := change(t, first%m.g.perTable); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeZeroes writes zeroes from off to end, but not to clusters that read as
// zeroes already.
func (m *Image) writeZeroes(off, end int64) error {
	for off < end {
		n, err := m.zeroPiece(off, end)
		if err != nil {
			return err
		}
		off += n
	}
	return nil
}

func (m *Image) zeroPiece(off, end int64) (int64, error) {
	m.inflight.RLock()
	defer m.inflight.RUnlock()
	if !m.writable {
		return 0, errNotWritable
	}
	e, err := m.extent(off, end-off)
	if err != nil {
		return 0, err
	}
	if m.readsZero(e.entry) {
		return e.Len, nil
	}
	n := min(e.Len, int64(len(zeroes)))
	one := [1][]byte{zeroes[:n]}
	return n, m.write(one[:], off)
}
