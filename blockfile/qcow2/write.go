package qcow2

import "errors"

// maxAllocate bounds what one step of a long write allocates, in bytes.
const maxAllocate = 16 << 20

var errNotWritable = errors.New("the image is not open for writing")

// Pwritev writes bufs from off on. The range lies within Size; the caller has
// checked it.
func (m *Image) Pwritev(bufs [][]byte, off int64) error {
	if total(bufs) == 0 {
		return nil
	}
	m.inflight.RLock()
	err := m.write(bufs, off)
	m.inflight.RUnlock()
	if err != nil {
		return err
	}
	return m.settle()
}

// write needs inflight.
func (m *Image) write(bufs [][]byte, off int64) error {
	if !m.writable {
		return errNotWritable
	}
	n := total(bufs)
	host, length, err := m.placed(off, n)
	if err != nil {
		return err
	}
	if length == n {
		return m.host.Pwritev(bufs, host)
	}
	v := newVector(bufs)
	defer v.release()
	for {
		if length > 0 {
			err = m.host.Pwritev(v.next(length), host)
		} else {
			length, err = m.allocateAndWrite(v, off, n)
		}
		if err != nil {
			return err
		}
		off, n = off+length, n-length
		if n == 0 {
			return nil
		}
		if host, length, err = m.placed(off, n); err != nil {
			return err
		}
	}
}

// placed gives the contiguous place in the file of as much of a range as may
// be written where it is: none of it if its first cluster may not.
func (m *Image) placed(off, n int64) (host, length int64, err error) {
	in := off & (m.g.cluster - 1)
	for length < n {
		entry, err := m.lookup(uint64(off+length) >> m.g.bits)
		if err != nil {
			return 0, 0, err
		}
		place, ok := m.g.inPlace(entry)
		if !ok || length > 0 && place != host+length {
			break
		}
		if length == 0 {
			host, length = place+in, min(n, m.g.cluster-in)
		} else {
			length += min(n-length, m.g.cluster)
		}
	}
	if length > 0 {
		err = m.guard(host, length)
	}
	return host, length, err
}

// allocation is a write under way to clusters that it allocates.
type allocation struct {
	span
	old   []uint64 // entries
	host  int64    // place in the file of the first cluster
	fresh bool     // the place reads as zeroes
	owned bool     // the place was the clusters' already
}

// allocateAndWrite writes the next piece of a range whose first cluster cannot
// be written in place, and gives the length of the piece: 0 if that has
// changed meanwhile.
func (m *Image) allocateAndWrite(v *vector, off, n int64) (int64, error) {
	first := uint64(off) >> m.g.bits
	last := uint64(off+min(n, maxAllocate)-1) >> m.g.bits
	last = min(last, first|(m.g.perTable-1)) // one L2 table at a time
	m.mu.Lock()
	last = m.waitFree(first, last)
	a, err := m.begin(first, last)
	m.mu.Unlock()
	if err != nil || a == nil {
		return 0, err
	}
	end := min(off+n, int64(a.last+1)<<m.g.bits)
	err = m.writeAllocated(v, off, end, a)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		err = m.commit(a)
	} else if !a.owned {
		m.unallocate(a.host>>m.g.bits, int64(a.last-a.first)+1)
	}
	m.leave(a.span)
	return end - off, err
}

// waitFree waits until nobody allocates the first cluster of a range, and gives
// the last cluster up to which that is true of them all. It needs mu.
func (m *Image) waitFree(first, last uint64) uint64 {
	for {
		blocked, limit := false, last
		for _, s := range m.busy {
			switch {
			case s.first <= first && first <= s.last:
				blocked = true
			case s.first > first && s.first <= limit:
				limit = s.first - 1
			}
		}
		if !blocked {
			return limit
		}
		m.changed.Wait()
	}
}

// leave lets those go on who wait for an allocation. It needs mu.
func (m *Image) leave(s span) {
	for i := range m.busy {
		if m.busy[i] == s {
			m.busy[i] = m.busy[len(m.busy)-1]
			m.busy = m.busy[:len(m.busy)-1]
			break
		}
	}
	m.changed.Broadcast()
}

// begin finds a place for as many of the clusters from first to last as are of
// one kind, and marks them busy. It gives nil if the first needs none. It
// needs mu, and none of the clusters is busy.
func (m *Image) begin(first, last uint64) (*allocation, error) {
	t, err := m.writableTable(first / m.g.perTable)
	if err != nil {
		return nil, err
	}
	at := first % m.g.perTable
	entries := t.entries[at : at+last-first+1]
	if _, ok := m.g.inPlace(entries[0]); ok {
		return nil, nil
	}
	place, owned, err := m.reusable(entries[0])
	if err != nil {
		return nil, err
	}
	n := uint64(1)
	for ; n < uint64(len(entries)); n++ {
		if _, ok := m.g.inPlace(entries[n]); ok {
			break
		}
		next, same, err := m.reusable(entries[n])
		if err != nil || same != owned || owned && next != place+int64(n)*m.g.cluster {
			break
		}
	}
	a := &allocation{span: span{first, first + n - 1}, host: place, owned: owned}
	if owned {
		err = m.guard(place, int64(n)*m.g.cluster)
	} else {
		var got int64
		a.host, got, a.fresh, err = m.allocate(int64(n))
		a.last = first + uint64(got) - 1
	}
	if err != nil {
		return nil, err
	}
	a.old = append(a.old, entries[:a.last-first+1]...)
	m.busy = append(m.busy, a.span)
	return a, nil
}

// reusable says whether a cluster has a place that nobody reads: a zero
// cluster with storage of its own.
func (m *Image) reusable(entry uint64) (int64, bool, error) {
	kind, off, err := m.g.split(entry)
	return off, kind == Zero && off != 0 && entry&flagCopied != 0, err
}

// writeAllocated writes the bytes from off to end into the clusters of an
// allocation, and around them what the clusters held before.
func (m *Image) writeAllocated(v *vector, off, end int64, a *allocation) error {
	start, stop := int64(a.first)<<m.g.bits, int64(a.last+1)<<m.g.bits
	if a.fresh && m.readsZero(a.old[0]) && m.readsZero(a.old[len(a.old)-1]) {
		// What surrounds the data is a hole already.
		return m.host.Pwritev(v.next(end-off), a.host+off-start)
	}
	head, tail := m.buffer(), m.buffer()
	defer m.buffers.Put(head)
	defer m.buffers.Put(tail)
	list := v.piece[:0]
	if before := (*head)[:off-start]; len(before) > 0 {
		if err := m.readOld(before, start, a.old[0]); err != nil {
			return err
		}
		list = append(list, before)
	}
	list = v.append(list, end-off)
	if after := (*tail)[:stop-end]; len(after) > 0 {
		if err := m.readOld(after, end, a.old[len(a.old)-1]); err != nil {
			return err
		}
		list = append(list, after)
	}
	v.piece = list
	return m.host.Pwritev(list, a.host)
}

// readsZero says whether a cluster reads as zeroes without a look at it.
func (m *Image) readsZero(entry uint64) bool {
	kind, _, err := m.g.split(entry)
	return err == nil && (kind == Zero || kind == Unallocated && !m.backed)
}

// readOld reads a part of a cluster by the entry that it had. What lies beyond
// the end of the disk, in its last cluster, is zeroes.
func (m *Image) readOld(p []byte, off int64, entry uint64) error {
	kind, host, err := m.g.split(entry)
	if err != nil {
		return err
	}
	in := off & (m.g.cluster - 1)
	one := [1][]byte{p}
	return m.readExtent(one[:], Extent{Off: off, Len: int64(len(p)), Kind: kind, Host: host + in, entry: entry})
}

// commit lets the entries of an allocation point to its place. It needs mu.
func (m *Image) commit(a *allocation) error {
	t, err := m.writableTable(a.first / m.g.perTable)
	if err != nil {
		return err
	}
	at := a.first % m.g.perTable
	for i, old := range a.old {
		m.set(t, at+uint64(i), uint64(a.host+int64(i)<<m.g.bits)|flagCopied)
		if !a.owned {
			err = errors.Join(err, m.freeEntry(old))
		}
	}
	return err
}
