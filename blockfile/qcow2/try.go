package qcow2

// Trier is a Host, or a Backing, that can say that a request would wait for
// storage instead of waiting. It does all of a request and says true, or says
// false, and any part may have been done.
type Trier interface {
	TryPreadv(bufs [][]byte, off int64) (done bool, err error)
	TryPwritev(bufs [][]byte, off int64) (done bool, err error)
}

// TryPreadv is Preadv where that waits for nothing: what the caches and the
// host's page cache have. The range lies within Size.
func (m *Image) TryPreadv(bufs [][]byte, off int64) (done bool, err error) {
	host, ok := m.host.(Trier)
	if !ok || !m.inflight.TryRLock() {
		return false, nil
	}
	defer m.inflight.RUnlock()
	n := total(bufs)
	if n == 0 {
		return true, nil
	}
	e, ok := m.cachedExtent(off, n)
	if !ok {
		return false, nil
	}
	if e.Len == n {
		return m.tryExtent(host, bufs, e)
	}
	v := newVector(bufs)
	defer v.release()
	for {
		if done, err := m.tryExtent(host, v.next(e.Len), e); err != nil || !done {
			return done, err
		}
		off, n = off+e.Len, n-e.Len
		if n == 0 {
			return true, nil
		}
		if e, ok = m.cachedExtent(off, n); !ok {
			return false, nil
		}
	}
}

// cachedExtent is extent where that needs only what is cached.
func (m *Image) cachedExtent(off, n int64) (Extent, bool) {
	for c := uint64(off) >> m.g.bits; c <= uint64(off+n-1)>>m.g.bits; c += m.g.perTable - c%m.g.perTable {
		if _, ok := m.cached(c); !ok {
			return Extent{}, false
		}
	}
	// A table that goes out of the cache just now is read again; that is rare.
	e, err := m.extent(off, n)
	return e, err == nil
}

// tryExtent needs inflight.
func (m *Image) tryExtent(host Trier, bufs [][]byte, e Extent) (bool, error) {
	switch {
	case e.Kind == Compressed:
		return m.tryCompressed(bufs, e.entry, e.Off&(m.g.cluster-1)), nil
	case e.Kind == Normal:
		return host.TryPreadv(bufs, e.Host)
	case e.Kind == Unallocated && m.backed:
		b, ok := m.o.Backing.(Trier)
		if !ok || e.Off+e.Len > m.o.Backing.Size() {
			return false, nil
		}
		return b.TryPreadv(bufs, e.Off)
	}
	clearAll(bufs)
	return true, nil
}

// TryPwritev is Pwritev where that waits for nothing and changes no metadata:
// into one place in the file. The range lies within Size.
func (m *Image) TryPwritev(bufs [][]byte, off int64) (done bool, err error) {
	host, ok := m.host.(Trier)
	if !ok || m.o.WriteThrough || !m.inflight.TryRLock() {
		return false, nil
	}
	defer m.inflight.RUnlock()
	n := total(bufs)
	if n == 0 {
		return true, nil
	}
	if _, ok := m.cachedExtent(off, n); !ok || !m.writable {
		return false, nil
	}
	place, length, err := m.placed(off, n)
	if err != nil || length != n {
		return false, nil // Pwritev has the words for what is wrong
	}
	return host.TryPwritev(bufs, place)
}
