package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
)

// ErrFull says that the format has no more room for the image to grow.
var ErrFull = errors.New("the image cannot grow any more")

// refcounts is what counts the references to each cluster of the file. All of
// it needs Image.mu.
type refcounts struct {
	table      []uint64 // offsets of refcount blocks
	tableDirty dirtyRange
	byIndex    map[uint64]*block
	blocks     cache[*block]
	hint       int64 // the search for a free cluster begins here
}

// refcount reads entry i of a refcount block (qcow2, Host cluster management).
func refcount(b []byte, order uint32, i uint64) uint64 {
	switch order {
	case 3:
		return uint64(b[i])
	case 4:
		return uint64(binary.BigEndian.Uint16(b[i*2:]))
	case 5:
		return uint64(binary.BigEndian.Uint32(b[i*4:]))
	case 6:
		return binary.BigEndian.Uint64(b[i*8:])
	}
	// Below a byte entry 0 is in the least significant bits.
	bit := i << order
	return uint64(b[bit/8]>>(bit%8)) & (1<<(1<<order) - 1)
}

// setRefcount sets entry i of a refcount block.
func setRefcount(b []byte, order uint32, i, n uint64) {
	switch order {
	case 3:
		b[i] = byte(n)
	case 4:
		binary.BigEndian.PutUint16(b[i*2:], uint16(n))
	case 5:
		binary.BigEndian.PutUint32(b[i*4:], uint32(n))
	case 6:
		binary.BigEndian.PutUint64(b[i*8:], n)
	default:
		bit := i << order
		mask := byte(1<<(1<<order)-1) << (bit % 8)
		b[bit/8] = b[bit/8]&^mask | byte(n)<<(bit%8)&mask
	}
}

// maxRefcount is the largest count that fits.
func maxRefcount(order uint32) uint64 {
	if order == 6 {
		return math.MaxUint64
	}
	return 1<<(1<<order) - 1
}

// readRefcountTable reads the refcount table. Blocks that two entries share
// would be a free cluster given out twice.
func readRefcountTable(h Host, hdr *Header) ([]uint64, error) {
	n := int(int64(hdr.RefcountClusters) * hdr.ClusterSize() / entrySize)
	table, err := readWords(h, int64(hdr.RefcountOffset), n)
	if err != nil {
		return nil, fmt.Errorf("read the refcount table: %w", err)
	}
	size, err := h.Size()
	if err != nil {
		return nil, err
	}
	var places []uint64
	for i, off := range table {
		if off == 0 {
			continue
		}
		if off&uint64(hdr.ClusterSize()-1) != 0 || off >= uint64(size) {
			return nil, fmt.Errorf("%w: refcount block %d is at %#x; repair it: godwit image check --repair all", ErrCorrupt, i, off)
		}
		places = append(places, off)
	}
	slices.Sort(places)
	for i := 1; i < len(places); i++ {
		if places[i] == places[i-1] {
			return nil, fmt.Errorf("%w: two refcount blocks are at %#x; repair it: godwit image check --repair all", ErrCorrupt, places[i])
		}
	}
	return table, nil
}

// block gives a refcount block, nil if there is none.
func (m *Image) block(i uint64) (*block, error) {
	if b := m.refs.byIndex[i]; b != nil {
		b.used.Store(true)
		return b, nil
	}
	if i >= uint64(len(m.refs.table)) || m.refs.table[i] == 0 {
		return nil, nil
	}
	b := &block{index: i, off: int64(m.refs.table[i]), b: alignedBytes(int(m.g.cluster))}
	if err := readAt(m.host, b.b, b.off); err != nil {
		return nil, fmt.Errorf("read a refcount block: %w", err)
	}
	return b, m.keepBlock(b)
}

// keepBlock takes a block into the cache. If a changed one must go, all are
// written: that is right at any time, since counts go up before a reference is
// written and down after it is gone from the file.
func (m *Image) keepBlock(b *block) error {
	if old, full := m.refs.blocks.victim(); full {
		if old.changed.is() {
			if err := m.writeBlocks(); err != nil {
				return err
			}
		}
		delete(m.refs.byIndex, old.index)
	}
	m.refs.blocks.add(b)
	m.refs.byIndex[b.index] = b
	return nil
}

// count changes the count of a cluster of the file by delta and gives the new one.
func (m *Image) count(cluster int64, delta int64) (uint64, error) {
	b, err := m.block(uint64(cluster) / m.g.perBlock)
	if err != nil {
		return 0, err
	}
	i := uint64(cluster) % m.g.perBlock
	if b == nil {
		return 0, fmt.Errorf("%w: cluster %d is in use and not counted; repair it: godwit image check --repair all", ErrCorrupt, cluster)
	}
	if err := m.holdBlock(b); err != nil {
		return 0, err
	}
	n := refcount(b.b, m.g.order, i)
	if delta < 0 && n < uint64(-delta) || delta > 0 && maxRefcount(m.g.order)-n < uint64(delta) {
		return 0, fmt.Errorf("%w: cluster %d has %d references, which cannot change by %d; repair it: godwit image check --repair all", ErrCorrupt, cluster, n, delta)
	}
	n += uint64(delta)
	setRefcount(b.b, m.g.order, i, n)
	at := int(i << m.g.order / 8)
	b.changed.add(at, at+max(1, 1<<m.g.order/8))
	return n, nil
}

// allocate finds up to want free clusters in a row and counts one reference to
// each. It gives their place and number, and whether they read as zeroes, as
// they do where the file has never been.
func (m *Image) allocate(want int64) (off, got int64, fresh bool, err error) {
	for c := m.refs.hint; ; {
		i := uint64(c) / m.g.perBlock
		if c > maxOffset>>m.g.bits {
			return 0, 0, false, ErrFull
		}
		if i >= uint64(len(m.refs.table)) {
			if err := m.growTable(i); err != nil {
				return 0, 0, false, err
			}
		}
		b, err := m.block(i)
		if err != nil {
			return 0, 0, false, err
		}
		if b == nil {
			if b, err = m.newBlock(i, c); err != nil {
				return 0, 0, false, err
			}
		}
		at := uint64(c) % m.g.perBlock
		for at < m.g.perBlock && refcount(b.b, m.g.order, at) != 0 {
			at++
		}
		first := int64(i*m.g.perBlock + at)
		for at < m.g.perBlock && got < want && refcount(b.b, m.g.order, at) == 0 {
			at++
			got++
		}
		c = int64(i*m.g.perBlock + at)
		if got == 0 {
			continue
		}
		return m.take(first, got)
	}
}

// take counts clusters that were found free.
func (m *Image) take(first, got int64) (off, n int64, fresh bool, err error) {
	off = first << m.g.bits
	end := (first + got) << m.g.bits
	fresh = off >= m.end.Load()
	old := m.end.Load()
	m.end.Store(max(old, end))
	if err := m.guard(off, end-off); err != nil {
		m.end.Store(old)
		return 0, 0, false, err
	}
	for c := first; c < first+got; c++ {
		if _, err := m.count(c, 1); err != nil {
			m.end.Store(old)
			return 0, 0, false, err
		}
	}
	m.refs.hint = first + got
	return off, got, fresh, nil
}

// unallocate gives clusters back that nothing ever referred to.
func (m *Image) unallocate(first, n int64) {
	for c := first; c < first+n; c++ {
		// An error leaves the cluster counted, which wastes it and no more.
		_, _ = m.count(c, -1)
	}
	m.refs.hint = min(m.refs.hint, first)
}

// newBlock makes refcount block i, at cluster c, which is the first that it
// counts: nothing else can be there, since nothing there is counted.
func (m *Image) newBlock(i uint64, c int64) (*block, error) {
	off := c << m.g.bits
	m.end.Store(max(m.end.Load(), off+m.g.cluster))
	if err := m.guard(off, m.g.cluster); err != nil {
		return nil, err
	}
	if err := m.holdCounts(i); err != nil {
		return nil, err
	}
	if err := m.holdNew(off); err != nil {
		return nil, fmt.Errorf("%w for a refcount block: %w", errRoom, err)
	}
	b := &block{index: i, off: off, b: alignedBytes(int(m.g.cluster))}
	setRefcount(b.b, m.g.order, uint64(c)%m.g.perBlock, 1)
	b.changed.add(0, len(b.b))
	if err := m.keepBlock(b); err != nil {
		return nil, err
	}
	m.room.blocks.add(i)
	m.refs.table[i] = uint64(off)
	m.refs.tableDirty.add(int(i), int(i)+1)
	return b, nil
}

// growTable makes the refcount table long enough for block i, in a new place
// that starts where the old one's reach ends, with the blocks that count it.
func (m *Image) growTable(i uint64) error {
	old := m.refs.table
	first := uint64(len(old)) * m.g.perBlock
	need := max(i+1, uint64(len(old))*3/2)
	var tableClusters, blocks uint64
	for {
		tableClusters = (need + m.g.perTable - 1) / m.g.perTable
		blocks = (tableClusters + blocks + m.g.perBlock - 1) / m.g.perBlock
		if uint64(len(old))+blocks <= tableClusters*m.g.perTable && tableClusters+blocks <= blocks*m.g.perBlock {
			break
		}
		need = max(need, uint64(len(old))+blocks)
	}
	if tableClusters<<m.g.bits > maxTableBytes || first+blocks+tableClusters > maxOffset>>m.g.bits {
		return fmt.Errorf("%w: its refcount table has the largest size; convert it to larger clusters", ErrFull)
	}
	table := make([]uint64, tableClusters*m.g.perTable)
	copy(table, old)
	if err := m.writeBlocks(); err != nil {
		return err
	}
	m.end.Store(max(m.end.Load(), int64(first+blocks+tableClusters)<<m.g.bits))
	if err := m.guard(int64(first)<<m.g.bits, int64(blocks+tableClusters)<<m.g.bits); err != nil {
		return err
	}
	for n := range blocks {
		clear(m.scratch)
		for e := range m.g.perBlock {
			if n*m.g.perBlock+e < blocks+tableClusters {
				setRefcount(m.scratch, m.g.order, e, 1)
			}
		}
		off := (first + n) << m.g.bits
		if err := writeAt(m.host, m.scratch, int64(off)); err != nil {
			return err
		}
		table[uint64(len(old))+n] = off
	}
	place := int64(first+blocks) << m.g.bits
	if err := m.writeWords(table, place, dirtyRange{0, len(table)}); err != nil {
		return err
	}
	if err := m.host.Flush(); err != nil {
		return err
	}
	return m.switchTable(table, place, tableClusters)
}

// switchTable makes the header point to a refcount table that is in the file.
// The two fields lie in one sector, which is written whole or not at all.
func (m *Image) switchTable(table []uint64, place int64, clusters uint64) error {
	var b [12]byte
	binary.BigEndian.PutUint64(b[:], uint64(place))
	binary.BigEndian.PutUint32(b[8:], uint32(clusters))
	if err := writeAt(m.host, b[:], 48); err != nil {
		return err
	}
	if err := m.host.Flush(); err != nil {
		return err
	}
	h := *m.h.Load()
	oldFirst, oldCount := int64(h.RefcountOffset)>>m.g.bits, int64(h.RefcountClusters)
	h.RefcountOffset, h.RefcountClusters = uint64(place), uint32(clusters)
	m.h.Store(&h)
	m.refs.table, m.refs.tableDirty = table, dirtyRange{}
	m.room.counts = nil
	for c := range clusters { // all of it was just written
		m.room.counts.add(c)
	}
	m.unallocate(oldFirst, oldCount)
	return nil
}

// free says that a reference to clusters is gone from the tables in memory.
// Once it is gone from the file too, Flush counts it off.
func (m *Image) free(first, count int64) {
	if n := len(m.frees); n > 0 && m.frees[n-1].first+m.frees[n-1].count == first {
		m.frees[n-1].count += count
	} else {
		m.frees = append(m.frees, run{first, count})
	}
	atomic.AddInt64(&m.freed, count)
}

// freeEntry frees what an L2 entry referred to.
func (m *Image) freeEntry(entry uint64) error {
	first, count, err := m.g.clusters(entry)
	if err == nil && count > 0 {
		m.free(first, count)
	}
	return err
}
