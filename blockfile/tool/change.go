package tool

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

// image is a qcow2 disk with what tools need of it.
type image interface {
	blockfile.Mapper
	Image() *qcow2.Image
	Host() *blockfile.HostFile
}

// Resized says what a disk has become.
type Resized struct {
	Path        string `json:"path"`
	Format      string `json:"format"`
	WasBytes    int64  `json:"was_bytes"`
	VirtualSize int64  `json:"virtual_size_bytes"`
}

// Resize changes the size of a disk that no machine uses: to size, which is
// given the size that it has.
func Resize(s Source, size func(was int64) (int64, error), shrink bool) (_ *Resized, err error) {
	format, err := s.format()
	if err != nil {
		return nil, err
	}
	f, err := blockfile.ParseFormat(format)
	if err != nil {
		return nil, err
	}
	disk, err := blockfile.Open(s.Path, blockfile.Options{Format: f, Backing: s.Rule})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	out := &Resized{Path: s.Path, Format: format, WasBytes: disk.Size()}
	if out.VirtualSize, err = size(out.WasBytes); err != nil {
		return nil, err
	}
	switch {
	case out.VirtualSize <= 0 || out.VirtualSize%blockfile.SectorSize != 0:
		return nil, fmt.Errorf("%w: a disk of %d bytes; it must be a multiple of 512, and above 0", ErrOptions, out.VirtualSize)
	case out.VirtualSize < out.WasBytes && !shrink:
		return nil, fmt.Errorf("resize %q: it has %d bytes, and what lies behind byte %d would be lost; make the guest's file systems smaller first, and pass --shrink",
			s.Path, out.WasBytes, out.VirtualSize)
	}
	if q, ok := disk.(image); ok {
		err = q.Image().Resize(out.VirtualSize)
	} else {
		err = disk.(interface{ Truncate(int64) error }).Truncate(out.VirtualSize)
	}
	if err != nil {
		return nil, fmt.Errorf("resize %q: %w", s.Path, err)
	}
	return out, nil
}

// Committed says what went into a backing file.
type Committed struct {
	Path           string `json:"path"`
	Backing        string `json:"backing"`
	CommittedBytes int64  `json:"committed_bytes"`
	Emptied        bool   `json:"emptied"`
}

// Commit writes what an overlay holds into its backing file. Unless keep says
// so, the overlay is empty then; it goes on to show the same disk at every
// moment, whenever this ends.
func Commit(ctx context.Context, path string, rule blockfile.BackingRule, keep bool, progress Progress) (_ *Committed, err error) {
	host, err := blockfile.OpenHost(path, blockfile.Options{})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, host.Close()) }()
	top, err := qcow2.Open(host, qcow2.Options{})
	if err != nil {
		return nil, fmt.Errorf("commit %q: %w", path, err)
	}
	h := top.Header()
	if h.Backing == "" {
		return nil, fmt.Errorf("%w: %q has no backing file to write to", ErrOptions, path)
	}
	base, err := openBase(h, path, rule, top.Size())
	if err != nil {
		return nil, fmt.Errorf("commit %q: backing file: %w", path, err)
	}
	out := &Committed{Path: path, Backing: h.Backing}
	out.CommittedBytes, err = pour(ctx, top, base, progress)
	if err == nil {
		err = base.Flush()
	}
	if err = errors.Join(err, base.Close()); err != nil {
		return nil, fmt.Errorf("commit %q, which still holds all of its disk: %w", path, err)
	}
	if err := top.Suspend(); err != nil || keep {
		return out, err
	}
	end, err := qcow2.Empty(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("empty %q, all of which is in its backing file: %w", path, err)
	}
	out.Emptied = true
	if st, err := host.Stat(); err != nil || st.Size <= end { // a block device has no size there
		return out, err
	}
	return out, host.Truncate(end)
}

// openBase opens the backing file of an image to write to it, as large as the
// image's disk at least.
func openBase(h *qcow2.Header, image string, rule blockfile.BackingRule, size int64) (blockfile.File, error) {
	format, err := blockfile.ParseFormat(h.BackingFormat)
	if err != nil {
		return nil, err
	}
	path, err := blockfile.BackingPath(h.Backing, image)
	if err != nil {
		return nil, err
	}
	if rule == nil {
		rule = blockfile.BackingBelow(nil)
	}
	path, open, err := rule(image, path)
	if err != nil {
		return nil, err
	}
	base, err := blockfile.Open(path, blockfile.Options{Format: format, Open: open, Backing: rule})
	if err != nil || base.Size() >= size {
		return base, err
	}
	if q, ok := base.(interface{ Image() *qcow2.Image }); ok {
		err = q.Image().Resize(size)
	} else {
		err = base.(interface{ Truncate(int64) error }).Truncate(size)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make %q as large as the overlay: %w", path, err), base.Close())
	}
	return base, nil
}

// pour writes all that an image itself holds over another disk.
func pour(ctx context.Context, top *qcow2.Image, base blockfile.File, progress Progress) (poured int64, err error) {
	buf := make([]byte, chunkSize)
	for off := int64(0); off < top.Size(); {
		if err := ctx.Err(); err != nil {
			return poured, err
		}
		e, err := top.Map(off, top.Size()-off)
		if err != nil {
			return poured, err
		}
		switch e.Kind {
		case qcow2.Unallocated:
		case qcow2.Zero:
			e.Len = min(e.Len, zeroStep)
			err = base.WriteZeroes(off, e.Len, true)
			poured += e.Len
		default:
			e.Len = min(e.Len, int64(len(buf)))
			if err = top.Preadv([][]byte{buf[:e.Len]}, off); err == nil {
				_, err = base.Pwritev([][]byte{buf[:e.Len]}, off)
			}
			poured += e.Len
		}
		if err != nil {
			return poured, err
		}
		off += e.Len
		progress.say(off, top.Size())
	}
	return poured, nil
}

// Rebasing says what an overlay's backing file is to be.
type Rebasing struct {
	Path string
	// Backing is the new name as it is stored; empty makes the image hold its
	// whole disk itself.
	Backing, BackingFormat string
	// HeaderOnly changes the name and nothing else: the disk changes with what the
	// new file holds. It is for a file that has moved.
	HeaderOnly bool
	Rule       blockfile.BackingRule
	Progress   Progress
}

// Rebased says what came of it.
type Rebased struct {
	Path          string `json:"path"`
	Backing       string `json:"backing"`
	BackingFormat string `json:"backing_format"`
	// CopiedBytes are what the old backing file had and the new one has not.
	CopiedBytes int64 `json:"copied_bytes"`
}

// Rebase gives an overlay another backing file. Its disk stays as it is: what
// differs is copied into it first, so it is right whenever this ends.
func Rebase(ctx context.Context, r Rebasing) (_ *Rebased, err error) {
	switch {
	case r.Backing == "" && r.BackingFormat != "":
		return nil, fmt.Errorf("%w: a format of a backing file, and no backing file", ErrOptions)
	case r.Backing != "" && r.BackingFormat != Raw && r.BackingFormat != Qcow2:
		return nil, fmt.Errorf("%w: say the format of the backing file, raw or qcow2: it is never guessed from its contents", ErrOptions)
	}
	out := &Rebased{Path: r.Path, Backing: r.Backing, BackingFormat: r.BackingFormat}
	if r.HeaderOnly {
		host, err := blockfile.OpenHost(r.Path, blockfile.Options{})
		if err != nil {
			return nil, err
		}
		return out, errors.Join(r.name(host), host.Close())
	}
	disk, err := blockfile.Open(r.Path, blockfile.Options{Format: blockfile.FormatQcow2, Backing: r.Rule})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, disk.Close()) }()
	q := disk.(image)
	below, err := r.openNew()
	if err != nil {
		return nil, err
	}
	if out.CopiedBytes, err = r.copyDifference(ctx, q, below); below != nil {
		err = errors.Join(err, below.Close())
	}
	if err == nil {
		err = q.Image().Suspend()
	}
	if err != nil {
		return nil, fmt.Errorf("rebase %q, which is as it was: %w", r.Path, err)
	}
	return out, r.name(q.Host())
}

func (r *Rebasing) name(host *blockfile.HostFile) error {
	if err := qcow2.SetBacking(host, r.Backing, r.BackingFormat); err != nil {
		return fmt.Errorf("rebase %q: %w", r.Path, err)
	}
	return nil
}

// openNew opens the new backing file, nil for none. It is the caller's choice;
// what lies behind it is not.
func (r *Rebasing) openNew() (blockfile.Mapper, error) {
	if r.Backing == "" {
		return nil, nil
	}
	path, err := blockfile.BackingPath(r.Backing, r.Path)
	if err != nil {
		return nil, err
	}
	i, err := Inspect(path, r.BackingFormat, r.Rule)
	if err != nil {
		return nil, fmt.Errorf("backing file: %w", err)
	}
	for ; i != nil; i = i.Backing {
		if sameFile(i.Path, r.Path) {
			return nil, fmt.Errorf("%w: %q would lie behind itself", ErrOptions, r.Path)
		}
	}
	return openBacking(path, r.BackingFormat, r.Rule)
}

// copyDifference writes into the image what it shows of its old backing file
// and would not show of the new one, by clusters.
func (r *Rebasing) copyDifference(ctx context.Context, q image, below blockfile.Mapper) (copied int64, err error) {
	img := q.Image()
	cluster := img.Header().ClusterSize()
	was, now := make([]byte, cluster), make([]byte, cluster)
	for off := int64(0); off < q.Size(); {
		if err := ctx.Err(); err != nil {
			return copied, err
		}
		e, err := img.Map(off, q.Size()-off)
		if err != nil {
			return copied, err
		}
		if e.Kind != qcow2.Unallocated {
			off += e.Len
			continue
		}
		n := min(cluster, q.Size()-off)
		if _, err := q.Preadv([][]byte{was[:n]}, off); err != nil {
			return copied, err
		}
		clear(now)
		if below != nil {
			if err := readOrZero(below, now[:n], off); err != nil {
				return copied, err
			}
		}
		if !bytes.Equal(was[:n], now[:n]) {
			if _, err := q.Pwritev([][]byte{was[:n]}, off); err != nil {
				return copied, err
			}
			copied += n
		}
		off += n
		r.Progress.say(off, q.Size())
	}
	return copied, nil
}
