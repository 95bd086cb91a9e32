package tool

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"

	"golang.org/x/sync/errgroup"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

// Conversion says what to copy, and how.
type Conversion struct {
	Source       string
	SourceFormat string // empty: by the first bytes, without a backing file
	Snapshot     string // of the source, to copy instead of its disk
	// Rule judges the backing files of the source.
	Rule blockfile.BackingRule
	// Target is what to make; its size is the source's.
	Target NewImage
	// Existing says that the target is there, an image or a block device, and is
	// written over; what it has behind the end of the source stays.
	Existing bool
	// Stream takes a raw image instead of the target's path; nil for none.
	Stream io.Writer
	// Compress compresses what gets smaller by it; qcow2 only.
	Compress bool
	// Workers read and compress at once; 0 is one for each CPU.
	Workers int
	// Progress hears how much of the disk is done, from one goroutine at a time.
	Progress func(done, total int64)
}

// Converted says what came of it.
type Converted struct {
	Path             string `json:"path"`
	Format           string `json:"format"`
	SourceFormat     string `json:"source_format"`
	VirtualSizeBytes int64  `json:"virtual_size_bytes"`
	// What the pieces of the disk have become. Pieces that hold zeroes, or what
	// the backing file has, are left out.
	DataBytes       int64 `json:"data_bytes"`
	CompressedBytes int64 `json:"compressed_bytes"` // of the disk, before compression
	PackedBytes     int64 `json:"packed_bytes"`     // the same, after
	ZeroBytes       int64 `json:"zero_bytes"`       // marked as zeroes, over a backing file
	SkippedBytes    int64 `json:"skipped_bytes"`
}

// Convert copies a disk into a new image. The source, and what is behind it, is
// locked shared meanwhile.
func Convert(ctx context.Context, c Conversion) (_ *Converted, err error) {
	if c.Compress && c.Target.Format != Qcow2 {
		return nil, fmt.Errorf("%w: only qcow2 images can be compressed; use --to qcow2", ErrOptions)
	}
	if c.Compress && c.Existing {
		return nil, fmt.Errorf("%w: only new images can be compressed", ErrOptions)
	}
	if c.Stream != nil && c.Target.Format != Raw {
		return nil, fmt.Errorf("%w: a %s image cannot be written to a pipe, whose beginning is gone when its tables are known; use --to raw", ErrOptions, c.Target.Format)
	}
	source := Source{Path: c.Source, Format: c.SourceFormat, Snapshot: c.Snapshot, Rule: c.Rule}
	src, format, err := source.Open()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	sources, err := c.sources(format)
	if err != nil {
		return nil, err
	}
	n := c.Target
	n.Size = src.Size()
	job := &copying{ctx: ctx, Conversion: c, src: src, unit: rawUnit,
		out: Converted{Path: n.Path, Format: n.Format, SourceFormat: format, VirtualSizeBytes: n.Size}}
	switch {
	case c.Existing:
		return job.over(&n)
	case c.Stream != nil:
		if err := job.run(&streamSink{to: c.Stream}); err != nil {
			return nil, fmt.Errorf("convert %q to a stream: %w", c.Source, err)
		}
		return &job.out, nil
	}
	if err := n.check(); err != nil {
		return nil, err
	}
	if n.Backing != "" {
		path, wrong := blockfile.BackingPath(n.Backing, n.Path)
		if wrong != nil {
			return nil, wrong
		}
		below, wrong := openBacking(path, n.BackingFormat, n.Rule)
		if wrong != nil {
			return nil, fmt.Errorf("backing file: %w", wrong)
		}
		defer func() { err = errors.Join(err, below.Close()) }()
		job.below = below
	}
	t, err := newTarget(n.Path, n.Force, sources)
	if err != nil {
		return nil, err
	}
	if err := job.into(t, &n); err != nil {
		return nil, errors.Join(fmt.Errorf("convert %q to %q: %w", c.Source, n.Path, err), t.drop())
	}
	return &job.out, t.finish()
}

// sources says who may read the source and what lies behind it. It refuses a
// target that is one of them.
func (c *Conversion) sources(format string) ([]access, error) {
	i, err := Inspect(c.Source, format, c.Rule)
	if err != nil {
		return nil, err
	}
	var all []access
	for ; i != nil; i = i.Backing {
		if sameFile(i.Path, c.Target.Path) {
			return nil, fmt.Errorf("%w: %q is what is to be converted, or lies behind it; give the new image another name", ErrOptions, c.Target.Path)
		}
		if i.BackingError != "" {
			return nil, fmt.Errorf("image %q: %s", i.Path, i.BackingError)
		}
		all = append(all, i.access)
	}
	return all, nil
}

// openBacking opens the backing file of a new image for reading.
func openBacking(path, format string, rule blockfile.BackingRule) (blockfile.Mapper, error) {
	s := Source{Path: path, Format: format, Rule: rule}
	disk, _, err := s.Open()
	return disk, err
}

// over writes over a target that is there.
func (j *copying) over(n *NewImage) (*Converted, error) {
	disk, err := openExisting(n, j.src.Size())
	if err != nil {
		return nil, err
	}
	if err := errors.Join(j.run(&diskSink{File: disk}), disk.Close()); err != nil {
		return nil, fmt.Errorf("convert %q into %q, part of which may be written: %w", j.Source, n.Path, err)
	}
	return &j.out, nil
}

// into fills the target.
func (j *copying) into(t *target, n *NewImage) error {
	if n.Format == Raw {
		if err := t.Truncate(n.Size); err != nil {
			return err
		}
		return j.run(rawSink{t.HostFile})
	}
	w, err := qcow2.NewWriter(t.HostFile, n.options())
	if err != nil {
		return err
	}
	j.unit = w.ClusterSize()
	j.compression = n.Compression
	return j.run(qcow2Sink{w, j.unit})
}

// run has workers read and compress chunks, and hands them on in their order:
//
//	plan ──> todo ──> workers
//	  └────> queue ──> write      waits for each chunk's done
func (j *copying) run(to sink) error {
	workers := j.Workers
	if workers == 0 {
		workers = runtime.GOMAXPROCS(0)
	}
	g, ctx := errgroup.WithContext(j.ctx)
	todo, queue := make(chan *chunk), make(chan *chunk, 2*workers)
	free := make(chan *chunk, 3*workers)
	for range cap(free) {
		free <- newChunk()
	}
	g.Go(func() error {
		defer close(todo)
		defer close(queue)
		return j.plan(ctx, free, todo, queue)
	})
	for range workers {
		g.Go(func() error {
			z, err := j.compressor()
			if err != nil {
				return err
			}
			for c := range todo {
				err := j.prepare(c, z)
				c.done <- struct{}{}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	g.Go(func() error {
		for c := range queue {
			select {
			case <-c.done:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := j.write(to, c); err != nil {
				return err
			}
			if j.Progress != nil {
				j.Progress(c.off+c.n, j.src.Size())
			}
			free <- c
		}
		return nil
	})
	err := g.Wait()
	if err == nil {
		err = to.finish(j.src.Size())
	}
	j.out.SkippedBytes = j.src.Size() - j.out.DataBytes - j.out.CompressedBytes - j.out.ZeroBytes
	return err
}

func (j *copying) compressor() (*qcow2.Compressor, error) {
	if !j.Compress {
		return nil, nil
	}
	return qcow2.NewCompressor(j.compression)
}
