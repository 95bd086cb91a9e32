package qcow2

import (
	"cmp"
	"errors"
	"slices"
	"sync/atomic"
)

// The order in which metadata reaches the file. An arrow means that the left is
// stable before the right is written, so that whatever a crash leaves refers
// only to what is counted, and to data that is there:
//
//	data ───────────────────────┐
//	refcount blocks ──> refcount table ──> L2 tables ──> L1 table ──> counts that go down
//
// Clusters that are counted and not referred to are all that a crash can leave.

// reclaimBytes is how much may wait to be free before somebody waits for it.
const reclaimBytes = 256 << 20

// Flush returns once all completed writes are stable.
func (m *Image) Flush() error {
	if !m.dirty.Load() {
		if err := m.host.Flush(); err != nil {
			return err
		}
		return m.reclaim()
	}
	m.mu.Lock()
	err := m.writeMetadata()
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return m.reclaim()
}

// settle does after a change what the cache mode asks for. The caller is no
// longer in flight.
func (m *Image) settle() error {
	if !m.mustSettle() {
		return nil
	}
	return m.Flush()
}

// mustSettle takes no lock: every write asks.
func (m *Image) mustSettle() bool {
	return m.o.WriteThrough && m.dirty.Load() || atomic.LoadInt64(&m.freed) > m.reclaimAt.Load()
}

// writeMetadata writes all tables in order and makes them stable. It needs mu.
// What fails stays dirty.
func (m *Image) writeMetadata() error {
	if err := m.writeBlocks(); err != nil {
		return err
	}
	if m.refs.tableDirty.is() {
		if err := m.writeWords(m.refs.table, int64(m.h.Load().RefcountOffset), m.refs.tableDirty); err != nil {
			return err
		}
		if err := m.host.Flush(); err != nil {
			return err
		}
		m.refs.tableDirty = dirtyRange{}
	}
	if m.dirty.Load() {
		if err := m.writeMaps(); err != nil {
			return err
		}
	}
	m.flushed = append(m.flushed, m.frees...)
	m.frees = nil
	m.dirty.Store(false)
	return nil
}

// writeMaps writes the L2 tables and then the L1 table.
func (m *Image) writeMaps() error {
	for _, t := range m.l2.items {
		if t.changed.is() {
			if err := m.writeWords(t.entries, t.off, t.changed); err != nil {
				return err
			}
		}
	}
	if err := m.host.Flush(); err != nil {
		return err
	}
	for _, t := range m.l2.items {
		t.changed = dirtyRange{}
	}
	if m.l1Dirty.is() {
		if err := m.writeWords(m.l1, int64(m.h.Load().L1Offset), m.l1Dirty); err != nil {
			return err
		}
		if err := m.host.Flush(); err != nil {
			return err
		}
		m.l1Dirty = dirtyRange{}
	}
	return nil
}

// writeBlocks writes the refcount blocks that changed and makes them, and all
// that was written before, stable. A flush that fails may have lost them, so
// they stay changed. It needs mu.
func (m *Image) writeBlocks() error {
	for _, b := range m.refs.blocks.items {
		if err := m.writeBlock(b); err != nil {
			return err
		}
	}
	if err := m.host.Flush(); err != nil {
		return err
	}
	for _, b := range m.refs.blocks.items {
		b.changed = dirtyRange{}
	}
	return nil
}

func (m *Image) writeBlock(b *block) error {
	if !b.changed.is() {
		return nil
	}
	from, to := b.changed.from&^(sector-1), (b.changed.to+sector-1)&^(sector-1)
	return writeAt(m.host, b.b[from:to], b.off+int64(from))
}

// reclaim counts off what the file no longer refers to, and frees its storage.
// Requests that began before may still use it, so they must end first. The
// caller is not in flight.
func (m *Image) reclaim() error {
	m.mu.Lock()
	ready, stuck := m.flushed, len(m.stuck)
	m.flushed = nil
	m.mu.Unlock()
	if len(ready) == 0 && stuck == 0 {
		return nil
	}
	if len(ready) > 0 {
		m.inflight.Lock()
		//lint:ignore SA2001 all earlier requests have ended now, which is all that was wanted
		m.inflight.Unlock()
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range ready {
		atomic.AddInt64(&m.freed, -r.count)
	}
	first := m.retry()
	for _, r := range ready {
		first = cmp.Or(first, m.countOff(r))
	}
	return first
}

// retry counts off what an earlier reclaim could not, up to the first that fails
// again, which is the last to be tried the next time. The host's error was told
// once, and is not again: the disk is whole, and a guest must be able to flush
// it. It needs mu.
func (m *Image) retry() (first error) {
	runs := m.stuck
	m.stuck = nil
	for i, r := range runs {
		if err := m.countOff(r); errors.Is(err, ErrCorrupt) {
			first = cmp.Or(first, err)
		}
		if len(m.stuck) > 0 {
			m.stuck = append(slices.Clip(runs[i+1:]), m.stuck...)
			break
		}
	}
	return first
}

// countOff lowers the counts of a run and punches out what became free. What
// fails does so for its own clusters alone, which stay counted; the first error
// is told. Clusters whose count says something else than that stay so for good,
// those whose count cannot be had are stuck until retry. It needs mu.
func (m *Image) countOff(r run) (first error) {
	hole := run{}
	punch := func() {
		if hole.count == 0 {
			return
		}
		m.refs.hint = min(m.refs.hint, hole.first)
		// The clusters are free even if the file keeps their storage.
		_ = m.host.Punch(hole.first<<m.g.bits, hole.count<<m.g.bits)
		hole.count = 0
	}
	end := r.first + r.count
	for c := r.first; c < end; c++ {
		left, err := m.count(c, -1)
		if err != nil || left != 0 {
			punch()
		}
		switch {
		case errors.Is(err, errRoom):
			// The disk is whole, and this can wait until there is room.
			m.stuck = append(m.stuck, run{c, end - c})
			return first
		case err != nil:
			first = cmp.Or(first, err)
			if !errors.Is(err, ErrCorrupt) {
				// The block cannot be read, so go on with the next.
				last := min(c|(int64(m.g.perBlock)-1), end-1)
				m.stuck = append(m.stuck, run{c, last - c + 1})
				c = last
			}
		case left == 0:
			if hole.count == 0 {
				hole.first = c
			}
			hole.count++
		}
	}
	punch()
	return first
}
