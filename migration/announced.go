package migration

import (
	"fmt"
	"sort"

	"godwit/migration/wire"
)

// announced is the memory of which a file says that it was touched, ascending. It
// is prepared piece by piece, where data is about to land: an announcement alone,
// or a page of zeros, costs nothing.
type announced struct {
	extents []Extent
	pieces  map[uint64]struct{} // that were prepared
}

// add takes more extents, which must follow those before.
func (a *announced) add(es []Extent) error {
	for _, e := range es {
		if n := len(a.extents); n > 0 && e.GPA < a.extents[n-1].GPA+a.extents[n-1].Len {
			return fmt.Errorf("%w: the extent at %#x does not follow those before", wire.ErrFormat, e.GPA)
		}
		a.extents = append(a.extents, e)
	}
	return nil
}

// around gives what was announced, and is not prepared yet, of the pieces in which
// the runs of a RAW frame lie.
func (a *announced) around(f *wire.Frame) ([]Extent, error) {
	runs, _, err := wire.DecodeRuns(f)
	if err != nil {
		return nil, err
	}
	var out []Extent
	for i := range runs.Len() {
		run := runs.At(i)
		for p, end := run.GPA/populatePiece, run.GPA+uint64(run.Pages)<<pageShift; p*populatePiece < end; p++ {
			if _, done := a.pieces[p]; !done {
				out = a.within(out, p)
			}
			if end-p*populatePiece <= populatePiece {
				break
			}
		}
	}
	return out, nil
}

// within adds the announced part of a piece to out.
func (a *announced) within(out []Extent, piece uint64) []Extent {
	if a.pieces == nil {
		a.pieces = map[uint64]struct{}{}
	}
	from, to := piece*populatePiece, (piece+1)*populatePiece
	i := sort.Search(len(a.extents), func(i int) bool { return a.extents[i].GPA+a.extents[i].Len > from })
	for ; i < len(a.extents) && a.extents[i].GPA < to; i++ {
		a.pieces[piece] = struct{}{}
		start, end := max(from, a.extents[i].GPA), min(to, a.extents[i].GPA+a.extents[i].Len)
		out = append(out, Extent{GPA: start, Len: end - start})
	}
	return out
}
