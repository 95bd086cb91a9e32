package qcow2

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync/atomic"
)

// dirtyRange is what of a table must be written, in entries or bytes.
type dirtyRange struct{ from, to int }

func (d *dirtyRange) add(from, to int) {
	if d.to == 0 {
		d.from, d.to = from, to
		return
	}
	d.from, d.to = min(d.from, from), max(d.to, to)
}

func (d *dirtyRange) is() bool { return d.to != 0 }

// table is a cached L2 table. Its entries are in the host's byte order. They
// are read atomically at any time, and set atomically with mu held. A table
// that fell out of the cache keeps what it said, for requests that hold it.
type table struct {
	index   uint64 // in the L1 table
	off     int64
	entries []uint64
	changed dirtyRange // in entries
	used    atomic.Bool
}

func (t *table) touch() *atomic.Bool { return &t.used }

// block is a cached refcount block, as it is in the file. It needs mu.
type block struct {
	index   uint64 // in the refcount table
	off     int64
	b       []byte
	changed dirtyRange // in bytes
	used    atomic.Bool
}

func (b *block) touch() *atomic.Bool { return &b.used }

// cache decides what is kept, by the clock algorithm: an item that was used
// since the hand passed stays for another round.
type cache[T interface{ touch() *atomic.Bool }] struct {
	limit int
	items []T
	hand  int
}

func (c *cache[T]) clear() { c.items, c.hand = nil, 0 }

// victim is what must go before another item is added, if there is no room.
func (c *cache[T]) victim() (T, bool) {
	var none T
	if len(c.items) < c.limit {
		return none, false
	}
	// Readers set marks again as we go, so not for ever.
	for range 2 * len(c.items) {
		if !c.items[c.hand].touch().Swap(false) {
			break
		}
		c.hand = (c.hand + 1) % len(c.items)
	}
	return c.items[c.hand], true
}

// add takes an item in, in the victim's place if there is no room.
func (c *cache[T]) add(item T) {
	item.touch().Store(true)
	if len(c.items) < c.limit {
		c.items = append(c.items, item)
		return
	}
	c.items[c.hand] = item
	c.hand = (c.hand + 1) % len(c.items)
}

// lookup gives the L2 entry of a guest cluster. The usual case takes no lock.
func (m *Image) lookup(cluster uint64) (uint64, error) {
	if entry, ok := m.cached(cluster); ok {
		return entry, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	t, err := m.table(cluster / m.g.perTable)
	if err != nil || t == nil {
		return 0, err
	}
	return t.entries[cluster%m.g.perTable], nil
}

// cached is lookup where that needs neither a lock nor the file.
func (m *Image) cached(cluster uint64) (entry uint64, ok bool) {
	i := cluster / m.g.perTable
	if t := m.tables[i].Load(); t != nil {
		if !t.used.Load() {
			t.used.Store(true)
		}
		return atomic.LoadUint64(&t.entries[cluster%m.g.perTable]), true
	}
	return 0, atomic.LoadUint64(&m.l1[i])&offsetMask == 0
}

// table gives the L2 table of an L1 entry, nil if there is none. It needs mu.
func (m *Image) table(i uint64) (*table, error) {
	if t := m.tables[i].Load(); t != nil {
		t.used.Store(true)
		return t, nil
	}
	off := int64(m.l1[i] & offsetMask)
	if off == 0 {
		return nil, nil
	}
	if off&(m.g.cluster-1) != 0 || off >= m.end.Load() {
		return nil, broken("the L1 entry %#x does not point to a cluster of the file", m.l1[i])
	}
	words, err := readWords(m.host, off, int(m.g.perTable))
	if err != nil {
		return nil, fmt.Errorf("read an L2 table: %w", err)
	}
	if err := m.makeRoom(); err != nil {
		return nil, err
	}
	t := &table{index: i, off: off, entries: words}
	m.l2.add(t)
	m.tables[i].Store(t)
	return t, nil
}

// makeRoom has the L2 cache take one more table. It needs mu.
func (m *Image) makeRoom() error {
	t, full := m.l2.victim()
	if !full {
		return nil
	}
	if t.changed.is() {
		if err := m.writeMetadata(); err != nil {
			return err
		}
	}
	m.tables[t.index].CompareAndSwap(t, nil)
	return nil
}

// set changes an L2 entry. It needs mu.
func (m *Image) set(t *table, i uint64, entry uint64) {
	atomic.StoreUint64(&t.entries[i], entry)
	t.changed.add(int(i), int(i)+1)
	m.dirty.Store(true)
}

// writableTable gives the L2 table of an L1 entry such that it may change: a
// new one if there is none, a copy if snapshots use it too. It needs mu.
func (m *Image) writableTable(i uint64) (*table, error) {
	t, err := m.table(i)
	if err != nil {
		return nil, err
	}
	if t != nil && m.l1[i]&flagCopied != 0 {
		return t, m.holdTable(t)
	}
	if err := m.holdL1(i); err != nil {
		return nil, err
	}
	off, _, _, err := m.allocate(1)
	if err != nil {
		return nil, err
	}
	if err := m.holdNew(off); err != nil {
		m.unallocate(off>>m.g.bits, 1)
		return nil, fmt.Errorf("%w for an L2 table: %w", errRoom, err)
	}
	m.room.l2.add(i)
	fresh := &table{index: i, off: off}
	if t == nil {
		if err := m.makeRoom(); err != nil {
			m.unallocate(off>>m.g.bits, 1)
			return nil, err
		}
		fresh.entries = make([]uint64, m.g.perTable)
		m.l2.add(fresh)
	} else {
		fresh.entries = t.entries
		m.replace(t, fresh)
		m.free(t.off>>m.g.bits, 1)
	}
	fresh.changed.add(0, len(fresh.entries))
	m.tables[i].Store(fresh)
	atomic.StoreUint64(&m.l1[i], uint64(off)|flagCopied)
	m.l1Dirty.add(int(i), int(i)+1)
	m.dirty.Store(true)
	return fresh, nil
}

// replace puts a table into the place in the cache of another, which is there:
// only makeRoom takes a table out, and out of m.tables with it.
func (m *Image) replace(old, fresh *table) {
	fresh.used.Store(true)
	m.l2.items[slices.Index(m.l2.items, old)] = fresh
}

// writeWords writes the sectors of a table of words that changed. It needs mu.
func (m *Image) writeWords(words []uint64, off int64, changed dirtyRange) error {
	const perSector = sector / entrySize
	from := changed.from &^ (perSector - 1)
	to := min(len(words), (changed.to+perSector-1)&^(perSector-1))
	for from < to {
		n := min(to-from, len(m.scratch)/entrySize)
		for i, w := range words[from : from+n] {
			binary.BigEndian.PutUint64(m.scratch[i*entrySize:], w)
		}
		if err := writeAt(m.host, m.scratch[:n*entrySize], off+int64(from)*entrySize); err != nil {
			return err
		}
		from += n
	}
	return nil
}
