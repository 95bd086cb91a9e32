package migration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"godwit/migration/wire"
)

// Restore reads a machine that Save wrote, builds and runs it. There is no GO:
// that the same file is not running elsewhere is the operator's word. With any
// error nothing is left half-made.
func Restore(ctx context.Context, from io.Reader, build Builder, o ReceiveOptions) (Target, *Report, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	f := &fileReader{ctx: ctx, o: &o, in: wire.NewReader(from),
		rep: Report{Mode: StopAndCopy, Streams: 1, Rounds: []RoundReport{}}}
	began := time.Now()
	err = f.run(build)
	if err != nil {
		if ctx.Err() != nil {
			err = cancelCause(ctx)
		}
		err = fmt.Errorf("%w: %w", ErrFile, err)
		if f.target != nil {
			err = also(err, f.target.Abort())
			f.target = nil
		}
		f.rep.Error = err.Error()
	}
	f.rep.Status = statusOf(err)
	f.rep.TotalMS = ms(time.Since(began))
	f.rep.Pages = f.page.counts()
	return f.target, &f.rep, err
}

// fileReader is Restore at work.
type fileReader struct {
	ctx       context.Context
	o         *ReceiveOptions
	in        *wire.Reader
	target    Target
	mem       *ram
	page      pages
	announced announced
	last      bool // the last round has passed
	rep       Report
}

func (f *fileReader) run(build Builder) error {
	hello, err := readHello(f.in)
	if err != nil {
		return err
	}
	if err := hello.Compatible(); err != nil {
		return err
	}
	if hello.Role != wire.RoleFile || hello.Streams != 1 || hello.Codec != 0 || hello.Features&wire.FeatureLocal != 0 {
		return fmt.Errorf("%w: a file's HELLO with role %d, %d streams, codec %d, features %#x", wire.ErrFormat, hello.Role, hello.Streams, hello.Codec, hello.Features)
	}
	var config bytes.Buffer
	if err := f.gather(wire.TypeConfig, &config, maxConfig); err != nil {
		return err
	}
	frame, err := f.expect(wire.TypeLayout)
	if err != nil {
		return err
	}
	layout, err := wire.DecodeExtents(frame.Body)
	if err != nil {
		return err
	}
	target, err := build(f.ctx, Offer{Config: config.Bytes()})
	if err != nil {
		return fmt.Errorf("build the machine: %w", err)
	}
	f.target = target
	if f.mem, err = newRAM(target.Memory()); err != nil {
		return err
	}
	if err := f.mem.sameLayout(layout); err != nil {
		return err
	}
	f.page.init(f.mem, 1, nil, func(_ uint32, t tally) error { f.last = t.last; return nil })
	if err := f.memory(); err != nil {
		return err
	}
	return f.finish(hello.Features&wire.FeatureVerify != 0)
}

func (f *fileReader) expect(t wire.Type) (wire.Frame, error) {
	frame, err := f.in.Next()
	if err != nil {
		return frame, fmt.Errorf("read %s: %w", t, err)
	}
	if frame.Type != t {
		return frame, fmt.Errorf("%w: %s where %s must be", wire.ErrFormat, frame.Type, t)
	}
	return frame, nil
}

// gather reads chunks of type t up to the last.
func (f *fileReader) gather(t wire.Type, into *bytes.Buffer, limit int) error {
	for {
		frame, err := f.expect(t)
		if err != nil {
			return err
		}
		if into.Len()+len(frame.Body) > limit {
			return fmt.Errorf("%w: more than %d bytes of %s", wire.ErrFormat, limit, t)
		}
		into.Write(frame.Body)
		if frame.Last() {
			return nil
		}
	}
}

// memory reads the extents, then pages up to the last barrier.
func (f *fileReader) memory() error {
	for last := false; !last; {
		frame, err := f.expect(wire.TypeExtents)
		if err != nil {
			return err
		}
		last = frame.Last()
		es, err := wire.DecodeExtents(frame.Body)
		if err != nil {
			return err
		}
		if es, err = f.mem.split(es); err != nil {
			return err
		}
		if err := f.announced.add(es); err != nil {
			return err
		}
	}
	var pages uint64
	for n := uint32(1); !f.last; {
		if f.ctx.Err() != nil {
			return context.Cause(f.ctx)
		}
		frame, err := f.in.Next()
		if err != nil {
			return fmt.Errorf("read pages: %w", err)
		}
		switch frame.Type {
		case wire.TypeZero, wire.TypeRaw:
			if err := f.prepare(&frame); err != nil {
				return err
			}
			got, err := f.page.apply(&frame, f.in)
			if err != nil {
				return err
			}
			pages += got
		case wire.TypeRound:
			var r wire.Round
			if err := r.Decode(frame.Body); err != nil {
				return err
			}
			if r.N != n || r.Pages != pages {
				return fmt.Errorf("%w: ROUND %d with %d pages, read were %d in round %d", wire.ErrFormat, r.N, r.Pages, pages, n)
			}
			if _, err := f.page.barrier.pass(r.N, pages, frame.Last()); err != nil {
				return err
			}
			n, pages = n+1, 0
		default:
			return fmt.Errorf("%w: %s among pages", wire.ErrFormat, frame.Type)
		}
	}
	return nil
}

// prepare populates memory that a frame's data will fill.
func (f *fileReader) prepare(frame *wire.Frame) error {
	if frame.Type != wire.TypeRaw {
		return nil
	}
	es, err := f.announced.around(frame)
	if err != nil || len(es) == 0 {
		return err
	}
	if err := f.target.Populate(es); err != nil {
		return fmt.Errorf("populate guest memory: %w", err)
	}
	return nil
}

// finish reads state, hash and totals, and runs the machine.
func (f *fileReader) finish(verify bool) error {
	expect(f.target)
	var state bytes.Buffer
	if err := f.gather(wire.TypeState, &state, maxState); err != nil {
		return err
	}
	if verify {
		frame, err := f.expect(wire.TypeHash)
		if err != nil {
			return err
		}
		var theirs wire.Hash
		if err := theirs.Decode(frame.Body); err != nil {
			return err
		}
		ours := f.mem.hash(f.page.all)
		f.rep.Verify = &Verified{Source: fmt.Sprintf("%x", theirs.Sum), Destination: fmt.Sprintf("%x", ours.Sum)}
		if ours != theirs {
			return fmt.Errorf("%w: the file's memory was damaged", ErrVerify)
		}
	} else if f.o.Verify {
		return fmt.Errorf("%w: the file holds no hash to verify; save with --verify", ErrVerify)
	}
	frame, err := f.expect(wire.TypePrepare)
	if err != nil {
		return err
	}
	var p wire.Prepare
	if err := p.Decode(frame.Body); err != nil {
		return err
	}
	if err := checkTotals(&p, f.page.counts(), state.Bytes()); err != nil {
		return err
	}
	if err := f.target.LoadState(&state); err != nil {
		return fmt.Errorf("load state: %w", err)
	}
	if err := f.target.Acquire(); err != nil {
		return fmt.Errorf("take over disks: %w", err)
	}
	if err := f.target.Run(); err != nil {
		return fmt.Errorf("run the guest: %w", err)
	}
	return nil
}
