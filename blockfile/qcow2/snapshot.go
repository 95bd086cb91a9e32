package qcow2

import (
	"encoding/binary"
	"fmt"
	"slices"
	"strings"
)

// Snapshot is an entry of the table of internal snapshots. They are kept as
// they are: what they share with the disk is copied before it changes.
type Snapshot struct {
	L1Offset  uint64
	L1Entries uint32
	ID, Name  string
	DiskSize  uint64 // of the disk then; 0 where the image does not say
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
		if extra >= 16 {
			var size [8]byte // qcow2, Snapshots: extra data, bytes 8-15
			if err := readAt(f, size[:], at+48); err != nil {
				return nil, 0, fmt.Errorf("read the snapshot table: %w", err)
			}
			s.DiskSize = be.Uint64(size[:])
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

// atSnapshot gives the header of an image as it would be if the disk were one of
// its snapshots: that of this id or, if there is none, of this name.
func atSnapshot(f Host, h *Header, wanted string) (*Header, error) {
	list, _, err := ReadSnapshots(f, h)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(list, func(s Snapshot) bool { return s.ID == wanted })
	if i < 0 {
		i = slices.IndexFunc(list, func(s Snapshot) bool { return s.Name == wanted })
	}
	if i < 0 {
		names := make([]string, 0, len(list))
		for _, s := range list[:min(len(list), 20)] {
			names = append(names, fmt.Sprintf("%.80q (id %.20q)", s.Name, s.ID))
		}
		return nil, fmt.Errorf("it has no snapshot %q; it has %d: %s", wanted, len(list), strings.Join(names, ", "))
	}
	s, at := list[i], *h
	at.L1Offset, at.L1Entries = s.L1Offset, s.L1Entries
	if s.DiskSize != 0 {
		at.Size = s.DiskSize
	}
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	return &at, at.validate(size)
}
