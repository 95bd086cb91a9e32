package migration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"godwit/migration/wire"
)

// fileWriter writes a machine into a stream with no way back.
type fileWriter struct {
	ctx context.Context
	src Source
	o   SendOptions
	mem *ram
	w   *wire.Writer
	out *pageWriter
	rep Report

	state    bytes.Buffer
	paused   bool
	released bool
}

// Save pauses the machine and writes all of it to w, in the protocol's own
// frames: stop-and-copy with no destination to answer. CheckSave says which
// options it has no use for; Timeout is the caller's to keep, by ctx.
//
// On success the machine stays paused with its disks released; to let it go
// on, the caller calls Reclaim and Resume. On failure it runs on, or
// ErrStaysPaused says why not.
func Save(ctx context.Context, src Source, w io.Writer, o SendOptions) (*Report, error) {
	if err := CheckSave(o); err != nil {
		return nil, err
	}
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	began := time.Now()
	f := &fileWriter{ctx: ctx, src: src, o: o, w: wire.NewWriter(w),
		rep: Report{Mode: StopAndCopy, Streams: 1, Rounds: []RoundReport{}}}
	if f.mem, err = newRAM(src.Memory()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	limit := new(limiter)
	limit.set(o.Bandwidth)
	f.out = newPageWriter(w, f.w, f.mem, limit, ctx.Done(), nil, nil)
	if err = f.run(); err != nil {
		if ctx.Err() != nil {
			err = cancelCause(ctx)
		}
		err = also(fmt.Errorf("%w: %w", ErrFile, err), f.undo())
		f.rep.Error = err.Error()
	}
	f.rep.Status = statusOf(err)
	f.rep.TotalMS = ms(time.Since(began))
	f.rep.WireBytes = f.out.written
	f.rep.Pages.Zero, f.rep.Pages.Raw = f.out.pages.Zero, f.out.pages.Raw
	return &f.rep, err
}

func (f *fileWriter) run() error {
	if hasEnded(f.src) {
		return guestEnded(f.src)
	}
	config, err := f.src.Config()
	if err != nil {
		return err
	}
	hello := wire.Hello{MinVersion: wire.Version, MaxVersion: wire.Version, Role: wire.RoleFile, PageSize: pageSize, Streams: 1, VMID: f.o.VMID}
	if f.o.Verify {
		hello.Features = wire.FeatureVerify
	}
	if err := f.w.Open(wire.TypeHello, hello.Append(nil)); err != nil {
		return err
	}
	if err := f.chunks(wire.TypeConfig, config); err != nil {
		return err
	}
	if err := f.out.frame(wire.TypeLayout, 0, wire.AppendExtents(nil, f.mem.layout())); err != nil {
		return err
	}
	if err := f.pause(); err != nil {
		return err
	}
	if hasEnded(f.src) {
		return guestEnded(f.src)
	}
	which, err := f.memory()
	if err != nil {
		return err
	}
	return f.rest(which)
}

// pause stops the guest once the machine has settled.
func (f *fileWriter) pause() error {
	for {
		if _, err := settle(f.ctx, f.src); err != nil {
			return err
		}
		f.paused = true // also when it fails half-way
		err := f.src.Pause(f.ctx)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrUnsettled) {
			return fmt.Errorf("pause: %w", err)
		}
	}
}

func (f *fileWriter) chunks(t wire.Type, data []byte) error {
	return chunks(data, func(flags uint8, chunk []byte) error { return f.out.frame(t, flags, chunk) })
}

// memory writes what was ever touched, and returns it.
func (f *fileWriter) memory() (Bitmap, error) {
	touched, err := f.src.Touched()
	if err != nil {
		return nil, fmt.Errorf("find touched memory: %w", err)
	}
	which := make(Bitmap, f.mem.words)
	if err := f.mem.addExtents(which, touched); err != nil {
		return nil, err
	}
	f.rep.Pages.Skipped = f.mem.pages - which.Count()
	if err := f.chunks(wire.TypeExtents, wire.AppendExtents(nil, which.extents())); err != nil {
		return nil, err
	}
	gfns := append(Bitmap(nil), which...).drain(nil)
	for rest := gfns; len(rest) > 0; {
		if f.ctx.Err() != nil {
			return nil, context.Cause(f.ctx)
		}
		n := min(len(rest), chunkPages)
		if err := f.out.chunk(rest[:n]); err != nil {
			return nil, err
		}
		rest = rest[n:]
	}
	r := wire.Round{N: 1, Pages: uint64(len(gfns))}
	return which, f.out.frame(wire.TypeRound, wire.FlagLast, r.Append(nil))
}

// rest writes state, hash and totals.
func (f *fileWriter) rest(which Bitmap) error {
	if err := f.src.SaveState(&f.state); err != nil {
		return fmt.Errorf("save state: %w", err)
	}
	if f.state.Len() > maxState {
		return fmt.Errorf("state of %d bytes, at most %d", f.state.Len(), maxState)
	}
	f.released = true // also when it fails half-way
	if err := f.src.Release(); err != nil {
		return fmt.Errorf("release disks: %w", err)
	}
	if err := f.chunks(wire.TypeState, f.state.Bytes()); err != nil {
		return err
	}
	if f.o.Verify {
		h := f.mem.hash(which)
		f.rep.Verify = &Verified{Source: fmt.Sprintf("%x", h.Sum)}
		if err := f.out.frame(wire.TypeHash, 0, h.Append(nil)); err != nil {
			return err
		}
	}
	p := wire.Prepare{Zero: f.out.pages.Zero, Data: f.out.pages.Raw, StateLen: uint64(f.state.Len()), StateCRC: wire.Checksum(f.state.Bytes())}
	return f.out.frame(wire.TypePrepare, 0, p.Append(nil))
}

// undo brings the machine back.
func (f *fileWriter) undo() error {
	if f.released {
		if err := f.src.Reclaim(); err != nil {
			return fmt.Errorf("%w: its disks cannot be had again: %w", ErrStaysPaused, err)
		}
	}
	if !f.paused {
		return nil
	}
	if err := f.src.Resume(); err != nil && !hasEnded(f.src) {
		return fmt.Errorf("%w: resume: %w", ErrStaysPaused, err)
	}
	return nil
}

// SaveFile is Save into a file that appears under its name only when it is
// whole and on the disk: written beside, synced, renamed. The file holds all of
// the guest's memory, so only its owner may read it.
func SaveFile(ctx context.Context, src Source, path string, o SendOptions) (rep *Report, err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".part-*")
	if err != nil {
		return nil, fmt.Errorf("%w: create beside %q: %w", ErrFile, path, err)
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()           // closed already when Save worked
			_ = os.Remove(tmp.Name()) // err is the failure to report
		}
	}()
	renamed := false
	last := func() error {
		if err := tmp.Sync(); err != nil {
			return err
		}
		if err := tmp.Close(); err != nil {
			return err
		}
		if err := os.Rename(tmp.Name(), path); err != nil {
			return err
		}
		renamed = true
		dir, err := os.Open(filepath.Dir(path))
		if err != nil {
			return err
		}
		return errors.Join(dir.Sync(), dir.Close())
	}
	if rep, err = Save(ctx, src, tmp, o); err != nil {
		return rep, err
	}
	if err = last(); err != nil {
		f := fileWriter{src: src, paused: true, released: true}
		// The machine runs on, so no file may stay that looks like its saved self.
		if renamed {
			err = errors.Join(err, os.Remove(path))
		}
		err = also(fmt.Errorf("%w: write %q: %w", ErrFile, path, err), f.undo())
		rep.Status, rep.Error = Failed, err.Error()
	}
	return rep, err
}
