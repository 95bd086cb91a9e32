package qcow2

import (
	"context"
	"fmt"
)

// CheckReport is what a check found. A corruption is what can lose data or
// show wrong data; a leak only wastes storage.
type CheckReport struct {
	Corruptions int64 `json:"corruptions"`
	Leaks       int64 `json:"leaks"` // clusters
	LeakedBytes int64 `json:"leaked_bytes"`
	// Findings describes the first ones, corruptions and leaks.
	Findings []string `json:"findings"`

	Dirty   bool `json:"dirty"`   // marked: refcounts may be behind
	Corrupt bool `json:"corrupt"` // marked by who found it broken

	// Clusters of the disk, and how many of them are in the file, as they are
	// or compressed, or are marked as zeroes.
	TotalClusters      int64 `json:"total_clusters"`
	AllocatedClusters  int64 `json:"allocated_clusters"`
	CompressedClusters int64 `json:"compressed_clusters"`
	ZeroClusters       int64 `json:"zero_clusters"`
	// EndBytes is where the last used cluster of the file ends.
	EndBytes int64 `json:"end_bytes"`

	limit      int
	badBitmaps bool
	// What a repair of everything cannot help: it would free what a snapshot holds.
	hopeless string
}

// Clean says that nothing is wrong.
func (r *CheckReport) Clean() bool { return r.Corruptions == 0 && r.Leaks == 0 }

func (r *CheckReport) find(format string, a ...any) {
	if len(r.Findings) < r.limit {
		r.Findings = append(r.Findings, fmt.Sprintf(format, a...))
	}
}

func (r *CheckReport) corrupt(format string, a ...any) {
	r.Corruptions++
	r.find(format, a...)
}

// Check follows every reference of an image and compares them with its
// refcounts. It describes up to limit findings. It writes nothing; an image
// that somebody writes meanwhile looks worse than it is.
func Check(ctx context.Context, f Host, limit int) (*CheckReport, error) {
	r, _, err := check(ctx, f, limit)
	return r, err
}

func check(ctx context.Context, f Host, limit int) (*CheckReport, *walker, error) {
	h, err := ReadHeader(f)
	if err != nil {
		return nil, nil, err
	}
	r := &CheckReport{limit: limit, Findings: []string{},
		Dirty: h.Incompatible&IncompatDirty != 0, Corrupt: h.Incompatible&IncompatCorrupt != 0}
	r.TotalClusters = int64(h.Size >> h.ClusterBits)
	if h.Size&(1<<h.ClusterBits-1) != 0 {
		r.TotalClusters++
	}
	w, err := newWalker(ctx, f, h, r)
	if err != nil {
		return nil, nil, err
	}
	if err := w.all(); err != nil {
		return nil, nil, err
	}
	if err := w.compare(); err != nil {
		return nil, nil, err
	}
	return r, w, w.flags(false)
}

// compare sets what refers to each cluster against its refcount, and notes
// which refcounts are 1: the copied flags depend on that.
func (w *walker) compare() error {
	w.single = newBitset(len(w.refs.counts))
	perBlock := w.h.ClusterSize() * 8 / int64(w.h.RefcountBits())
	block := make([]byte, w.h.ClusterSize())
	next := int64(0) // cluster
	all := int64(len(w.refs.counts))
	err := w.entries(w.h.RefcountOffset, w.refcountEntries(), func(_ uint64, e uint64) (uint64, error) {
		if next >= all {
			return e, nil
		}
		clear(block)
		if off := e &^ reftableReserved; w.isRefcountBlock(off) {
			if err := readAt(w.f, block, int64(off)); err != nil {
				return e, err
			}
		}
		end := min(all-next, perBlock)
		for i := range end {
			w.compareOne(next+i, refcount(block, w.h.RefcountOrder, uint64(i)))
		}
		next += end
		return e, nil
	})
	for ; err == nil && next < all; next++ {
		w.compareOne(next, 0)
	}
	return err
}

func (w *walker) compareOne(c int64, counted uint64) {
	refs := w.refs.count(c)
	if counted == 1 {
		w.single.set(c)
	}
	if refs > 0 || counted > 0 {
		w.report.EndBytes = (c + 1) << w.h.ClusterBits
	}
	switch {
	case refs > counted:
		w.report.corrupt("cluster at %#x: refcount %d, references %d", c<<w.h.ClusterBits, counted, refs)
	case refs < counted:
		w.report.Leaks++
		w.report.LeakedBytes += w.h.ClusterSize()
		w.report.find("leaked cluster at %#x: refcount %d, references %d", c<<w.h.ClusterBits, counted, refs)
	}
}

// refcountEntries is the number of entries of the refcount table.
func (w *walker) refcountEntries() uint64 {
	return uint64(w.h.RefcountClusters) << (w.h.ClusterBits - 3)
}

// isRefcountBlock says that an entry of the refcount table is to be believed.
func (w *walker) isRefcountBlock(off uint64) bool {
	c := off >> w.h.ClusterBits
	return off&uint64(w.h.ClusterSize()-1) == 0 && c < uint64(len(w.refs.counts)) && w.blocks.has(int64(c))
}
