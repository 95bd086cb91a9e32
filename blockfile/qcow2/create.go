package qcow2

import (
	"encoding/binary"
	"fmt"
)

// CreateOptions say what a new image is like. Zero values are defaults.
type CreateOptions struct {
	Size         int64 // of the disk in bytes, a multiple of 512
	ClusterBits  int   // default 16: clusters of 64 KiB
	Version      int   // 2 or 3, default 3
	RefcountBits int   // 1, 2, 4, ... 64, default 16
	// Backing is the name of the backing file as it is stored, with its format.
	Backing       string
	BackingFormat string
	Compression   Compression
}

func (o *CreateOptions) header() (*Header, error) {
	h := &Header{Version: 3, ClusterBits: 16, RefcountOrder: 4, Size: uint64(o.Size),
		Backing: o.Backing, BackingFormat: o.BackingFormat, Compression: o.Compression}
	if o.Version != 0 {
		h.Version = uint32(o.Version)
	}
	if o.ClusterBits != 0 {
		h.ClusterBits = uint32(o.ClusterBits)
	}
	if o.RefcountBits != 0 {
		for h.RefcountOrder = 0; h.RefcountOrder < 7 && 1<<h.RefcountOrder != o.RefcountBits; {
			h.RefcountOrder++
		}
	}
	switch {
	case o.Size < 0 || o.Size%sector != 0:
		return nil, fmt.Errorf("create a disk of %d bytes: use a multiple of %d", o.Size, sector)
	case h.Version != 2 && h.Version != 3:
		return nil, fmt.Errorf("create a qcow2 image of version %d: use 2 or 3", o.Version)
	case o.ClusterBits < 0 || h.ClusterBits < minClusterBits || h.ClusterBits > maxClusterBits:
		return nil, fmt.Errorf("create a qcow2 image with clusters of 2^%d bytes: use 2^%d to 2^%d", o.ClusterBits, minClusterBits, maxClusterBits)
	case h.RefcountOrder > 6:
		return nil, fmt.Errorf("create a qcow2 image with refcounts of %d bits: use 1, 2, 4, 8, 16, 32 or 64", o.RefcountBits)
	case h.Version == 2 && h.RefcountOrder != 4:
		return nil, fmt.Errorf("create a qcow2 image of version 2 with refcounts of %d bits: they have 16 there", o.RefcountBits)
	case h.Version == 2 && o.Compression != Zlib:
		return nil, fmt.Errorf("create a qcow2 image of version 2 with %v: use zlib or version 3", o.Compression)
	case o.Compression > Zstd:
		return nil, fmt.Errorf("create a qcow2 image with %v: use zlib or zstd", o.Compression)
	case o.Backing != "" && o.BackingFormat == "":
		return nil, fmt.Errorf("create an image over %q: say the format of the backing file", o.Backing)
	case h.L1Needed()*entrySize > maxL1Bytes:
		return nil, fmt.Errorf("create a disk of %d bytes with clusters of %d: use larger clusters", o.Size, h.ClusterSize())
	}
	if o.Compression != Zlib {
		h.Incompatible |= IncompatCompression
	}
	return h, nil
}

// Create writes an empty image into f, which is empty itself:
//
//	header | refcount table | refcount blocks | L1 table
//
// The header comes last: before it is there, the file is no image.
func Create(f Host, o CreateOptions) error {
	h, err := o.header()
	if err != nil {
		return err
	}
	g := newGeometry(h)
	h.L1Entries = uint32(h.L1Needed())
	l1 := (uint64(h.L1Entries)*entrySize + uint64(g.cluster) - 1) >> g.bits
	tables, blocks := uint64(1), uint64(1)
	for {
		used := 1 + tables + blocks + l1
		needBlocks := (used + g.perBlock - 1) / g.perBlock
		needTables := (needBlocks + g.perTable - 1) / g.perTable
		if needBlocks <= blocks && needTables <= tables {
			break
		}
		tables, blocks = max(tables, needTables), max(blocks, needBlocks)
	}
	h.RefcountOffset, h.RefcountClusters = uint64(g.cluster), uint32(tables)
	if l1 > 0 {
		h.L1Offset = (1 + tables + blocks) << g.bits
	}
	first, err := h.Encode()
	if err != nil {
		return err
	}
	if err := writeCounts(f, &g, tables, blocks, 1+tables+blocks+l1); err != nil {
		return fmt.Errorf("create a qcow2 image: %w", err)
	}
	// The L1 table is zeroes.
	zero := alignedBytes(int(g.cluster))
	for i := range l1 {
		if err := writeAt(f, zero, int64(h.L1Offset+i<<g.bits)); err != nil {
			return fmt.Errorf("create a qcow2 image: %w", err)
		}
	}
	if err := f.Flush(); err != nil {
		return fmt.Errorf("create a qcow2 image: %w", err)
	}
	copy(zero, first)
	if err := writeAt(f, zero, 0); err != nil {
		return fmt.Errorf("create a qcow2 image: %w", err)
	}
	if err := f.Flush(); err != nil {
		return fmt.Errorf("create a qcow2 image: %w", err)
	}
	return nil
}

// writeCounts writes a refcount table behind the header and the blocks behind
// it, with one reference for each of the first used clusters.
func writeCounts(f Host, g *geometry, tables, blocks, used uint64) error {
	table := alignedBytes(int(tables) << g.bits)
	b := alignedBytes(int(g.cluster))
	for i := range blocks {
		off := (1 + tables + i) << g.bits
		binary.BigEndian.PutUint64(table[i*entrySize:], off)
		clear(b)
		for e := range min(g.perBlock, used-i*g.perBlock) {
			setRefcount(b, g.order, e, 1)
		}
		if err := writeAt(f, b, int64(off)); err != nil {
			return err
		}
	}
	return writeAt(f, table, g.cluster)
}
