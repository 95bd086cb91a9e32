package qcow2

import (
	"encoding/binary"
	"fmt"
)

// ErrShort is the ErrCorrupt of an image whose file ends before what its tables
// refer to: a copy that did not finish, mostly. What is missing would read as
// zeroes, which nobody wrote.
var ErrShort = fmt.Errorf("%w: its file is cut short", ErrCorrupt)

// maxShortBytes bounds what is read of the L2 tables to find out whether a file
// is cut short. It maps 8 TiB by clusters of 64 KiB; what lies behind fails when
// it is read.
const maxShortBytes = 1 << 30

func (m *Image) short(refersTo int64) error {
	return fmt.Errorf("%w: it has %d bytes, and its tables refer to byte %d; copy it again, or have what is missing read as zeroes by godwit image check --repair all",
		ErrShort, m.end.Load(), refersTo)
}

// inFile refuses n bytes of data that do not lie in the file, whose last cluster
// may be cut. It may have grown since its end was looked at, in other hands.
func (m *Image) inFile(off, n int64) error {
	if off+n <= m.end.Load() {
		return nil
	}
	size, err := m.host.Size()
	if err != nil {
		return err
	}
	if off+n > (size+m.g.cluster-1)&^(m.g.cluster-1) {
		return m.short(off)
	}
	return nil
}

// checkEnd refuses a file that is cut short. Only where the refcounts know of
// clusters behind its end, as a crash can leave them, too, are the tables read.
// It needs mu, or nobody who knows m.
func (m *Image) checkEnd() error {
	suspect, err := m.countsBeyondEnd()
	if err != nil || !suspect {
		return err
	}
	table := make([]byte, m.g.cluster)
	left := int64(maxShortBytes)
	for _, e := range m.l1 {
		off := int64(e & offsetMask)
		if off == 0 || left < m.g.cluster {
			continue
		}
		if off >= m.end.Load() {
			return m.short(off)
		}
		left -= m.g.cluster
		if err := readAt(m.host, table, off); err != nil {
			return fmt.Errorf("read an L2 table: %w", err)
		}
		for i := 0; i < len(table); i += entrySize {
			place := m.place(binary.BigEndian.Uint64(table[i:]))
			if place >= m.end.Load() {
				return m.short(place)
			}
		}
	}
	return nil
}

// place is where the data begins that an L2 entry refers to, 0 for none: a zero
// cluster's storage holds none. What is wrong with the entry otherwise is said
// when it is read.
func (m *Image) place(entry uint64) int64 {
	kind, off, err := m.g.split(entry)
	if err == nil && kind == Compressed {
		off, _, err = m.g.compressedPlace(entry)
	}
	if err != nil || kind == Zero {
		return 0
	}
	return off
}

// countsBeyondEnd says whether a cluster behind the end of the file is counted,
// or may be.
func (m *Image) countsBeyondEnd() (bool, error) {
	h := m.h.Load()
	end := uint64(m.end.Load()) >> m.g.bits // the first cluster that is not there
	entries := uint64(h.RefcountClusters) << m.g.bits / entrySize
	first := end / m.g.perBlock
	if first >= entries {
		return false, nil
	}
	b := make([]byte, (entries-first)*entrySize)
	if err := readAt(m.host, b, int64(h.RefcountOffset+first*entrySize)); err != nil {
		return false, fmt.Errorf("read the refcount table: %w", err)
	}
	for i := first + 1; i < entries; i++ {
		if binary.BigEndian.Uint64(b[(i-first)*entrySize:]) != 0 {
			return true, nil
		}
	}
	off := binary.BigEndian.Uint64(b)
	if off == 0 {
		return false, nil
	}
	if off&uint64(m.g.cluster-1) != 0 || off >= uint64(m.end.Load()) {
		return true, nil
	}
	block := make([]byte, m.g.cluster)
	if err := readAt(m.host, block, int64(off)); err != nil {
		return false, fmt.Errorf("read a refcount block: %w", err)
	}
	for i := end % m.g.perBlock; i < m.g.perBlock; i++ {
		if refcount(block, m.g.order, i) != 0 {
			return true, nil
		}
	}
	return false, nil
}
