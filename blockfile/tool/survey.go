package tool

import (
	"bytes"
	"context"
	"fmt"

	"godwit/blockfile"
)

// Source is an image to read, with its chain.
type Source struct {
	Path   string
	Format string // by the caller; empty: by the first bytes, without a backing file
	// Snapshot names an internal snapshot to read instead of the disk, by its id
	// or its name.
	Snapshot string
	// Rule judges the backing files.
	Rule blockfile.BackingRule
}

// Open opens the source, and says its format. What its bytes alone call qcow2
// may have been written by a guest, so then it gets no file to read behind it.
func (s *Source) Open() (blockfile.Mapper, string, error) {
	format, err := s.format()
	if err != nil {
		return nil, "", err
	}
	if s.Snapshot != "" && format != Qcow2 {
		return nil, "", fmt.Errorf("%w: a snapshot of %q, which is a raw image and has none", ErrOptions, s.Path)
	}
	f, err := blockfile.ParseFormat(format)
	if err != nil {
		return nil, "", err
	}
	disk, err := blockfile.Open(s.Path, blockfile.Options{ReadOnly: true, Format: f, Snapshot: s.Snapshot, Backing: s.Rule})
	if err != nil {
		return nil, "", err
	}
	return disk.(blockfile.Mapper), format, nil
}

// format is what the caller says, or the first bytes.
func (s *Source) format() (string, error) {
	if s.Format != "" {
		return s.Format, nil
	}
	i, err := Inspect(s.Path, "", s.Rule)
	if err != nil {
		return "", err
	}
	if i.Qcow2Info != nil && i.BackingFile != "" {
		return "", fmt.Errorf("%w: %q looks like a qcow2 image over %q; if it is no raw disk whose guest wrote that, say --from qcow2",
			ErrOptions, s.Path, i.BackingFile)
	}
	return i.Format, nil
}

// Progress hears how many bytes of a disk are done.
type Progress func(done, total int64)

func (p Progress) say(done, total int64) {
	if p != nil {
		p(done, total)
	}
}

// Compared says how two disks differ.
type Compared struct {
	// Status is identical or different.
	Status string `json:"status"`
	// FirstDifferenceBytes is the offset of the first byte that differs, -1 for
	// none. Where one disk is longer, the other is taken to be zeroes there.
	FirstDifferenceBytes int64    `json:"first_difference_bytes"`
	Paths                []string `json:"paths"`
	SizesBytes           []int64  `json:"sizes_bytes"`
}

// Compare reads two disks. Unless it is strict, one that is longer is the same
// if the rest is zeroes.
func Compare(ctx context.Context, one, other Source, strict bool, progress Progress) (*Compared, error) {
	a, _, err := one.Open()
	if err != nil {
		return nil, err
	}
	defer a.Close()
	b, _, err := other.Open()
	if err != nil {
		return nil, err
	}
	defer b.Close()
	c := &Compared{Status: "identical", FirstDifferenceBytes: -1, Paths: []string{one.Path, other.Path}, SizesBytes: []int64{a.Size(), b.Size()}}
	at, err := firstDifference(ctx, a, b, progress)
	if err != nil {
		return nil, err
	}
	if c.FirstDifferenceBytes = at; at >= 0 || strict && a.Size() != b.Size() {
		c.Status = "different"
	}
	return c, nil
}

// firstDifference gives the first byte at which two disks differ, or -1.
func firstDifference(ctx context.Context, a, b blockfile.Mapper, progress Progress) (int64, error) {
	size := max(a.Size(), b.Size())
	var bufs [2][]byte
	for i := range bufs {
		bufs[i] = make([]byte, chunkSize)
	}
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		next, err := nextOfBoth(a, b, off)
		if err != nil || next >= size {
			return -1, err
		}
		off = next
		n := min(chunkSize, size-off)
		for i, d := range []blockfile.Mapper{a, b} {
			if err := readOrZero(d, bufs[i][:n], off); err != nil {
				return 0, err
			}
		}
		if !bytes.Equal(bufs[0][:n], bufs[1][:n]) {
			for i := range n {
				if bufs[0][i] != bufs[1][i] {
					return off + i, nil
				}
			}
		}
		off += n
		progress.say(off, size)
	}
	return -1, nil
}

// nextOfBoth is where either disk may hold anything but zeroes, from off on.
func nextOfBoth(a, b blockfile.Mapper, off int64) (int64, error) {
	next := max(a.Size(), b.Size())
	for _, d := range []blockfile.Mapper{a, b} {
		if off >= d.Size() {
			continue
		}
		start, _, err := d.NextData(off)
		if err != nil {
			return 0, err
		}
		if start < d.Size() {
			next = min(next, start)
		}
	}
	return next, nil
}

// readOrZero reads a range of a disk that may end before it.
func readOrZero(d blockfile.File, b []byte, off int64) error {
	have := max(0, min(int64(len(b)), d.Size()-off))
	clear(b[have:])
	if have == 0 {
		return nil
	}
	_, err := d.Preadv([][]byte{b[:have]}, off)
	return err
}

// MapEntry is a piece of a disk in the words of qemu-img map.
type MapEntry struct {
	StartBytes  int64  `json:"start_bytes"`
	LengthBytes int64  `json:"length_bytes"`
	Depth       int    `json:"depth"`
	Present     bool   `json:"present"`
	Zero        bool   `json:"zero"`
	Data        bool   `json:"data"`
	Compressed  bool   `json:"compressed"`
	OffsetBytes *int64 `json:"offset_bytes,omitempty"` // in the file
	Path        string `json:"path,omitempty"`
}

// Map calls each for every piece of a disk, in order; pieces of one kind that
// follow one another are one.
func Map(ctx context.Context, s Source, each func(MapEntry) error) error {
	disk, _, err := s.Open()
	if err != nil {
		return err
	}
	defer disk.Close()
	m := disk.(blockfile.ExtentMapper)
	var last *blockfile.Extent
	say := func() error {
		e := MapEntry{StartBytes: last.Off, LengthBytes: last.Len, Depth: last.Depth, Present: last.Present, Zero: !last.Data, Data: last.Data, Compressed: last.Compressed}
		if last.Present {
			e.Path = last.Path
		}
		if last.Host >= 0 {
			e.OffsetBytes = &last.Host
		}
		return each(e)
	}
	for off := int64(0); off < m.Size(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		e, err := m.MapExtent(off, m.Size()-off)
		if err != nil {
			return err
		}
		off += e.Len
		if last != nil && follows(last, &e) {
			last.Len += e.Len
			continue
		}
		if last != nil {
			if err := say(); err != nil {
				return err
			}
		}
		last = &e
	}
	return say()
}

// follows says that b goes on where a ends, in the disk and in the file.
func follows(a, b *blockfile.Extent) bool {
	return a.Data == b.Data && a.Present == b.Present && a.Compressed == b.Compressed && a.Depth == b.Depth &&
		(a.Host < 0) == (b.Host < 0) && (a.Host < 0 || a.Host+a.Len == b.Host)
}
