package tool

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

// sink takes the pieces of a disk in ascending order. What lies between them,
// and behind the last, is zeroes or, with a backing file, what that has.
type sink interface {
	data(off int64, b []byte) error
	packed(off int64, b []byte) error
	zero(off int64) error
	// finish takes the end of the disk.
	finish(size int64) error
}

// rawSink leaves holes where nothing is written.
type rawSink struct{ *blockfile.HostFile }

func (s rawSink) data(off int64, b []byte) error { return s.Pwritev([][]byte{b}, off) }
func (s rawSink) packed(int64, []byte) error     { return errors.ErrUnsupported }
func (s rawSink) zero(int64) error               { return nil }
func (s rawSink) finish(int64) error             { return nil }

// qcow2Sink writes a new qcow2 image.
type qcow2Sink struct {
	*qcow2.Writer
	unit int64
}

func (s qcow2Sink) data(off int64, b []byte) error   { return s.Write(off/s.unit, b) }
func (s qcow2Sink) packed(off int64, b []byte) error { return s.WriteCompressed(off/s.unit, b) }
func (s qcow2Sink) zero(off int64) error             { return s.Zero(off / s.unit) }
func (s qcow2Sink) finish(int64) error               { return s.Close() }

// diskSink writes over what a disk holds, zeroes too.
type diskSink struct {
	blockfile.File
	at int64 // the disk is right up to here
}

// zeroStep bounds one request for zeroes, bytes.
const zeroStep = 1 << 30

func (s *diskSink) fill(end int64) error {
	for s.at < end {
		n := min(end-s.at, zeroStep)
		if err := s.WriteZeroes(s.at, n, true); err != nil {
			return err
		}
		s.at += n
	}
	return nil
}

func (s *diskSink) data(off int64, b []byte) error {
	if err := s.fill(off); err != nil {
		return err
	}
	_, err := s.Pwritev([][]byte{b}, off)
	s.at = off + int64(len(b))
	return err
}

func (s *diskSink) packed(int64, []byte) error { return errors.ErrUnsupported }
func (s *diskSink) zero(int64) error           { return nil }

func (s *diskSink) finish(size int64) error {
	if err := s.fill(size); err != nil {
		return err
	}
	return s.Flush()
}

// streamSink writes the whole disk, zeroes too, to a pipe.
type streamSink struct {
	to io.Writer
	at int64
}

func (s *streamSink) fill(end int64) error {
	for s.at < end {
		n, err := s.to.Write(zeroes[:min(end-s.at, int64(len(zeroes)))])
		if err != nil {
			return err
		}
		s.at += int64(n)
	}
	return nil
}

func (s *streamSink) data(off int64, b []byte) error {
	if err := s.fill(off); err != nil {
		return err
	}
	n, err := s.to.Write(b)
	s.at += int64(n)
	return err
}

func (s *streamSink) packed(int64, []byte) error { return errors.ErrUnsupported }
func (s *streamSink) zero(int64) error           { return nil }
func (s *streamSink) finish(size int64) error    { return s.fill(size) }

// openExisting opens a disk to write over, which nobody else may have: not a
// machine, and of a block device not a mounted file system either.
func openExisting(n *NewImage, size int64) (blockfile.File, error) {
	if n.options() != (qcow2.CreateOptions{Size: n.Size}) || n.Force || n.Preallocate {
		return nil, fmt.Errorf("%w: %q is there already, so it has its clusters, its version and its backing file; leave out what says them, and --force", ErrOptions, n.Path)
	}
	format, err := blockfile.ParseFormat(n.Format)
	if err != nil {
		return nil, err
	}
	st, err := os.Stat(n.Path)
	if err != nil {
		return nil, fmt.Errorf("%w; without -n it is made", err)
	}
	o := blockfile.Options{Format: format, Backing: n.Rule}
	if st.Mode()&os.ModeDevice != 0 {
		o.Open = func(path string, flags int) (int, error) { return unix.Open(path, flags|unix.O_EXCL, 0) }
	}
	f, err := blockfile.Open(n.Path, o)
	switch {
	case errors.Is(err, unix.EBUSY):
		return nil, fmt.Errorf("%w; is it mounted, or part of another device", err)
	case err != nil:
		return nil, err
	case f.Size() < size:
		return nil, errors.Join(fmt.Errorf("write to %q: it has %d bytes, and the disk %d; make it larger first, as by godwit image resize", n.Path, f.Size(), size), f.Close())
	}
	return f, nil
}
