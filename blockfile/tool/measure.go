package tool

import (
	"context"
	"fmt"

	"godwit/blockfile"
)

// Measured says how large a new image would be.
type Measured struct {
	Format string `json:"format"`
	// RequiredBytes is the file's length once the source is in it, its metadata
	// counted as for a full disk; FullyAllocatedBytes is that of a full disk.
	VirtualSizeBytes    int64 `json:"virtual_size_bytes"`
	RequiredBytes       int64 `json:"required_bytes"`
	FullyAllocatedBytes int64 `json:"fully_allocated_bytes"`
}

// Measure says how large an image as n describes it would be with what the
// source holds, or with n.Size and no contents where the source has no path.
func Measure(ctx context.Context, s Source, n NewImage) (*Measured, error) {
	var m blockfile.ExtentMapper
	if s.Path != "" {
		disk, _, err := s.Open()
		if err != nil {
			return nil, err
		}
		defer disk.Close()
		m = disk.(blockfile.ExtentMapper)
		n.Size = disk.Size()
	}
	if err := n.check(); err != nil {
		return nil, err
	}
	out := &Measured{Format: n.Format, VirtualSizeBytes: n.Size, RequiredBytes: n.Size, FullyAllocatedBytes: n.Size}
	if n.Format == Raw {
		return out, nil
	}
	bits, order := 16, 4
	if n.ClusterBits != 0 {
		bits = n.ClusterBits
	}
	for o := range 7 {
		if n.RefcountBits == 1<<o {
			order = o
		}
	}
	cluster := int64(1) << bits
	size := roundUp(n.Size, cluster)
	out.FullyAllocatedBytes = size + qcow2Metadata(size, cluster, order)
	data := int64(0)
	switch {
	case n.Backing != "":
		data = size // how much of it differs is not known before it is compared
	case m != nil:
		var err error
		if data, err = clustersWithData(ctx, m, cluster); err != nil {
			return nil, fmt.Errorf("measure %q: %w", s.Path, err)
		}
	}
	out.RequiredBytes = out.FullyAllocatedBytes - size + data
	return out, nil
}

func roundUp(n, unit int64) int64 { return (n + unit - 1) / unit * unit }

// clustersWithData is the length of the clusters that may hold anything but
// zeroes.
func clustersWithData(ctx context.Context, m blockfile.ExtentMapper, cluster int64) (int64, error) {
	var data int64
	for off := int64(0); off < m.Size(); {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		e, err := m.MapExtent(off, m.Size()-off)
		if err != nil {
			return 0, err
		}
		if !e.Data {
			off += e.Len
			continue
		}
		first, end := off/cluster*cluster, roundUp(off+e.Len, cluster)
		data += end - first
		off = end
	}
	return data, nil
}

// qcow2Metadata is the length of header, tables and refcounts of a disk whose
// clusters are all in the file.
func qcow2Metadata(size, cluster int64, order int) int64 {
	l2 := roundUp(size/cluster, cluster/8) * 8
	l1 := roundUp(l2/cluster, cluster/8) * 8
	meta := cluster + l2 + l1
	perBlock := cluster * 8 >> order
	used := (size + meta) / cluster
	for blocks, tables := int64(0), int64(0); ; {
		b := (used + blocks + tables + perBlock - 1) / perBlock
		t := (b + cluster/8 - 1) / (cluster / 8)
		if b == blocks && t == tables {
			return meta + (b+t)*cluster
		}
		blocks, tables = b, t
	}
}
