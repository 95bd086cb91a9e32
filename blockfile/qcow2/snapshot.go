package qcow2

import (
	"encoding/binary"
	"fmt"
)

// Snapshot is an entry of the table of internal snapshots. They are kept as
// they are: what they share with the disk is copied before it changes.
type Snapshot struct {
	L1Offset  uint64
	L1Entries uint32
	ID, Name  string
}

// maxSnapshotBytes bounds the snapshot table; it is QEMU's limit.
const maxSnapshotBytes = 64 << 20

// ReadSnapshots reads the snapshot table, and gives its length in bytes too
// (qcow2, Snapshots).
func ReadSnapshots(f Host, h *Header) (list []Snapshot, bytes int64, err error) {
	size, err := f.Size()
	if err != nil {
		return nil, 0, err
	}
	end := uint64(size)
	for range h.SnapshotCount {
		at := int64(h.SnapshotsOffset) + bytes
		var b [40]byte
		if uint64(at)+40 > end {
			return nil, 0, broken("the snapshot table goes beyond the end of the file")
		}
		if err := readAt(f, b[:], at); err != nil {
			return nil, 0, fmt.Errorf("read the snapshot table: %w", err)
		}
		be := binary.BigEndian
		s := Snapshot{L1Offset: be.Uint64(b[:]), L1Entries: be.Uint32(b[8:])}
		idLen, nameLen, extra := int64(be.Uint16(b[12:])), int64(be.Uint16(b[14:])), int64(be.Uint32(b[36:]))
		n := (40 + extra + idLen + nameLen + 7) &^ 7
		if bytes += n; bytes > maxSnapshotBytes || uint64(at+40+extra+idLen+nameLen) > end {
			return nil, 0, broken("the snapshot table goes beyond the end of the file")
		}
		c := uint64(h.ClusterSize())
		if s.L1Offset%c != 0 || uint64(s.L1Entries)*entrySize > maxL1Bytes || s.L1Offset > end || uint64(s.L1Entries)*entrySize > (end+c-1)&^(c-1)-s.L1Offset {
			return nil, 0, broken("a snapshot's L1 table of %d entries at %d", s.L1Entries, s.L1Offset)
		}
		names := make([]byte, idLen+nameLen)
		if err := readAt(f, names, at+40+extra); err != nil {
			return nil, 0, fmt.Errorf("read the snapshot table: %w", err)
		}
		s.ID, s.Name = string(names[:idLen]), string(names[idLen:])
		list = append(list, s)
	}
	return list, bytes, nil
}
