package blockfile

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// raw is an image without a format. It holds the descriptor itself rather than
// an os.File: the requests are vectored and positioned, and the file is never
// polled.
type raw struct {
	fd       int
	path     string
	geo      geometry
	readOnly bool
	cache    Cache
	holds    bool // a format, whose file may grow and have any length
	locked   atomic.Bool

	// partial orders the read-modify-write of a part of a block, which holds
	// it exclusively, against every other change, which shares it. Only
	// O_DIRECT needs it: the page cache does this work otherwise.
	partial sync.RWMutex

	// What the file system said it cannot do, so as to ask only once.
	noPunch, noZeroRange, noDiscard, noNowait atomic.Bool

	pace pace // of writes into the page cache
}

var _ File = (*raw)(nil)

func openRaw(path string, o Options) (*raw, error) {
	return openFile(path, o, false)
}

// openFile opens what is a raw image, or holds one of a format.
func openFile(path string, o Options, holds bool) (*raw, error) {
	// O_NONBLOCK keeps a FIFO from hanging the open; disks ignore it.
	flags := unix.O_CLOEXEC | unix.O_NONBLOCK
	if o.ReadOnly {
		flags |= unix.O_RDONLY
	} else {
		flags |= unix.O_RDWR
	}
	switch o.Cache {
	case CacheNone:
		flags |= unix.O_DIRECT
	case CacheWritethrough:
		flags |= unix.O_DSYNC
	}
	if o.Open == nil {
		o.Open = openRetry
	}
	fd, err := o.Open(path, flags)
	if err != nil {
		return nil, explainOpen(err, o)
	}
	r := &raw{fd: fd, path: path, readOnly: o.ReadOnly, cache: o.Cache, holds: holds}
	if err := r.setup(o); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return r, nil
}

func (r *raw) setup(o Options) error {
	var err error
	if r.geo, err = readGeometry(r.fd, o.Cache == CacheNone); err != nil {
		return err
	}
	if !r.holds {
		if err := r.geo.judgeRaw(o.Cache == CacheNone); err != nil {
			return err
		}
		r.geo.wholeSectors()
	}
	if o.NoLock {
		return nil
	}
	return r.takeLock()
}

func openRetry(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

func explainOpen(err error, o Options) error {
	switch {
	case errors.Is(err, unix.EINVAL) && o.Cache == CacheNone:
		return fmt.Errorf("its file system has no O_DIRECT; use cache=writeback: %w", err)
	case errors.Is(err, unix.EISDIR):
		return fmt.Errorf("pass an image file or a block device: %w", err)
	case !o.ReadOnly && (errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM)):
		return fmt.Errorf("not writable; change its permissions or open it read-only: %w", err)
	}
	return err
}

func (r *raw) Size() int64      { return r.geo.size }
func (r *raw) BlockSize() int   { return r.geo.block }
func (r *raw) ReadOnly() bool   { return r.readOnly }
func (r *raw) WriteCache() bool { return r.cache != CacheWritethrough }

// check judges a range before anything touches the file.
func (r *raw) check(off, n int64) error { return checkRange(r.path, r.geo.size, off, n) }

func checkRange(path string, size, off, n int64) error {
	if off < 0 || n < 0 || off%SectorSize != 0 || n%SectorSize != 0 || n > size || off > size-n {
		return fmt.Errorf("bytes %d+%d of %q, which has %d: %w", off, n, path, size, ErrRange)
	}
	return nil
}

// checkWrite judges a range that is to change.
func (r *raw) checkWrite(off, n int64) error {
	if r.readOnly {
		return fmt.Errorf("change %q: %w", r.path, ErrReadOnly)
	}
	if !r.locked.Load() {
		return fmt.Errorf("change %q: %w", r.path, ErrNotLocked)
	}
	return r.check(off, n)
}

// Preadv implements File.
func (r *raw) Preadv(bufs [][]byte, off int64) (int, error) {
	n := total(bufs)
	if err := r.check(off, n); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, nil
	}
	var err error
	switch {
	case r.cache == CacheNone && !r.aligned(bufs, off):
		err = r.readBounced(bufs, off, n)
	case r.geo.part && off+n == r.geo.size:
		err = r.readToEnd(bufs, off)
	default:
		err = transfer(unix.SYS_PREADV, r.fd, bufs, off)
	}
	if err != nil {
		return 0, fmt.Errorf("read %d bytes at %d of %q: %w", n, off, r.path, err)
	}
	return int(n), nil
}

// Pwritev implements File.
func (r *raw) Pwritev(bufs [][]byte, off int64) (int, error) {
	n := total(bufs)
	if err := r.checkWrite(off, n); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, nil
	}
	var err error
	switch {
	case r.cache != CacheNone:
		err = transfer(unix.SYS_PWRITEV, r.fd, bufs, off)
	case r.aligned(bufs, off):
		r.partial.RLock()
		err = transfer(unix.SYS_PWRITEV, r.fd, bufs, off)
		r.partial.RUnlock()
	default:
		err = r.writeBounced(bufs, off, n)
	}
	if err != nil {
		return 0, fmt.Errorf("write %d bytes at %d of %q: %w", n, off, r.path, err)
	}
	return int(n), nil
}

// Flush implements File. fdatasync is enough: the size never changes.
func (r *raw) Flush() error {
	for {
		err := unix.Fdatasync(r.fd)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("flush %q: %w; %w", r.path, err, ErrUnstable)
		}
		return nil
	}
}

// Truncate sets the size of the disk, for tools: nobody else has it open. A block
// device has the size that it has.
func (r *raw) Truncate(n int64) error {
	switch {
	case r.geo.device:
		return fmt.Errorf("%q is a block device; change the size of the device", r.path)
	case r.readOnly || !r.locked.Load():
		return ErrNotLocked
	}
	if err := unix.Ftruncate(r.fd, n); err != nil {
		return fmt.Errorf("set the length of %q: %w", r.path, err)
	}
	r.geo.size, r.geo.part = n, false
	return r.Flush()
}

// Close implements File.
func (r *raw) Close() error {
	if r.locked.Swap(false) {
		// Closing alone would leave the lock with a child that another goroutine is
		// forking, which has all our descriptors until it executes its program.
		_ = r.dropLock() // the end of the descriptor does it, too
	}
	// EINTR still closes the descriptor on Linux.
	if err := unix.Close(r.fd); err != nil && err != unix.EINTR {
		return fmt.Errorf("close %q: %w", r.path, err)
	}
	return nil
}

// errShort is what a file that somebody truncated under us reads like.
var errShort = fmt.Errorf("the image became shorter while open: %w", io.ErrUnexpectedEOF)
