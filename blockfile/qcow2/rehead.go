package qcow2

import (
	"context"
	"encoding/binary"
	"fmt"
)

// extFeatureNames is a table of names of feature bits, for messages alone.
const extFeatureNames = 0x6803f857

// SetBacking changes the name and the format of the backing file, or removes
// both if the name is empty. Nobody has the image open; its caller has its lock.
//
// The header's fields lie in one sector, which a disk writes whole or not at
// all. A name that does not fit there is written first, where nothing is.
func SetBacking(f Host, name, format string) error {
	h, err := ReadHeader(f)
	if err != nil {
		return err
	}
	now := *h
	now.Backing, now.BackingFormat = name, format
	encoded, err := now.Encode()
	if err != nil || len(encoded) > sector {
		now.Extensions = nil
		for _, e := range h.Extensions {
			if e.Type != extFeatureNames {
				now.Extensions = append(now.Extensions, e)
			}
		}
		if encoded, err = now.Encode(); err != nil {
			return err
		}
	}
	if len(encoded) > sector {
		if encoded, err = placeName(f, h, encoded, name); err != nil {
			return err
		}
	}
	first := make([]byte, sector)
	copy(first, encoded)
	if err := writeAt(f, first, 0); err != nil {
		return err
	}
	return f.Flush()
}

// placeName writes the name behind everything that the old header uses, and
// gives the new header without it.
func placeName(f Host, old *Header, encoded []byte, name string) ([]byte, error) {
	head := len(encoded) - len(name)
	if head > sector {
		return nil, unsupported("header extensions of %d bytes, which a crash could tear; change it with qemu-img rebase -u", head)
	}
	was := make([]byte, old.ClusterSize())
	if err := readAt(f, was, 0); err != nil {
		return nil, err
	}
	used := extensionsEnd(was, old.Version)
	at := int64(len(was)-len(name)) &^ 7
	if from := int64(binary.BigEndian.Uint64(was[8:])); from != 0 {
		if n := int64(binary.BigEndian.Uint32(was[16:])); at < from+n { // the old name lies there
			at = (from - int64(len(name))) &^ 7
		}
	}
	if at < max(used, sector) {
		return nil, fmt.Errorf("the first cluster has no room for a backing file's name of %d bytes beside the old one; use a shorter name", len(name))
	}
	if err := writeAt(f, []byte(name), at); err != nil {
		return nil, err
	}
	if err := f.Flush(); err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint64(encoded[8:], uint64(at))
	return encoded[:head], nil
}

// extensionsEnd is where the header extensions of a good header end.
func extensionsEnd(b []byte, version uint32) int64 {
	be := binary.BigEndian
	pos, end := int64(lengthV2), int64(len(b))
	if version >= 3 {
		pos = int64(be.Uint32(b[100:]))
	}
	if name := be.Uint64(b[8:]); name != 0 {
		end = min(end, int64(name))
	}
	for pos+8 <= end && be.Uint32(b[pos:]) != extEnd {
		pos += 8 + (int64(be.Uint32(b[pos+4:]))+7)&^7
	}
	return pos + 8
}

// Empty makes an image hold nothing, so that all of its backing file shows, but
// keeps its snapshots. Nobody has it open; its caller has its lock. It gives
// where the last used cluster of the file ends. A crash leaves leaked clusters,
// and some of the disk still in the image.
func Empty(ctx context.Context, f Host) (end int64, err error) {
	h, err := ReadHeader(f)
	if err != nil {
		return 0, err
	}
	zero := make([]byte, h.ClusterSize())
	for off, left := int64(h.L1Offset), int64(h.L1Entries)*entrySize; left > 0; {
		n := min(left, int64(len(zero)))
		if err := writeAt(f, zero[:n], off); err != nil {
			return 0, err
		}
		off, left = off+n, left-n
	}
	if err := f.Flush(); err != nil {
		return 0, err
	}
	_, after, err := Repair(ctx, f, false, 1)
	if err != nil {
		return 0, err
	}
	if !after.Clean() {
		return 0, fmt.Errorf("%w: %v; repair it: godwit image check --repair all", ErrCorrupt, after.Findings)
	}
	return after.EndBytes, nil
}
