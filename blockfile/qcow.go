package blockfile

import (
	"errors"
	"fmt"
	"sync/atomic"

	"godwit/blockfile/qcow2"
)

// qcow is an image of the qcow2 format with what is behind it.
type qcow struct {
	host     *HostFile
	img      *qcow2.Image
	backing  File          // nil without a backing file
	header   *qcow2.Header // as it was when the backing file was opened
	path     string
	snapshot string // read instead of the disk, if not empty
	readOnly bool
	cache    Cache
	locked   atomic.Bool
}

var _ File = (*qcow)(nil)

func openQcow(path string, o Options, c chain) (_ *qcow, err error) {
	r, err := openFile(path, o, true)
	if err != nil {
		return nil, err
	}
	q := &qcow{host: &HostFile{r: r}, path: path, snapshot: o.Snapshot, readOnly: o.ReadOnly, cache: o.Cache}
	defer func() {
		if err != nil {
			err = errors.Join(err, q.host.Close())
		}
	}()
	if c, err = c.with(r, path); err != nil {
		return nil, err
	}
	h, err := qcow2.ReadHeader(q.host)
	if errors.Is(err, qcow2.ErrMagic) {
		err = fmt.Errorf("%w; if it is a raw image, say that its format is raw", err)
	}
	if err != nil {
		return nil, err
	}
	if h.DiskSize() == 0 {
		return nil, fmt.Errorf("a disk of no bytes; create it with a size")
	}
	if c, err = c.withTables(h); err != nil {
		return nil, err
	}
	if q.backing, err = openBacking(h, path, o, c); err != nil {
		return nil, err
	}
	q.header = h
	opts := q.options()
	opts.TableBytes = h.TableBytes() // it is read again, and may say something else
	if o.NoLock {
		q.img, err = qcow2.OpenUntrusted(q.host, opts)
	} else {
		q.img, err = qcow2.Open(q.host, opts)
	}
	if err != nil {
		return nil, errors.Join(err, closeFile(q.backing))
	}
	q.locked.Store(!o.NoLock)
	return q, nil
}

func (q *qcow) options() qcow2.Options {
	o := qcow2.Options{ReadOnly: q.readOnly, WriteThrough: q.cache == CacheWritethrough, Snapshot: q.snapshot}
	if q.backing != nil {
		o.Backing = q.backing
	}
	return o
}

func closeFile(f File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

func (q *qcow) Size() int64      { return q.img.Size() }
func (q *qcow) BlockSize() int   { return q.host.r.geo.block }
func (q *qcow) ReadOnly() bool   { return q.readOnly }
func (q *qcow) WriteCache() bool { return q.cache != CacheWritethrough }

// Image gives what reads and writes the format, for tools.
func (q *qcow) Image() *qcow2.Image { return q.img }

// Host gives the file of the image, for tools.
func (q *qcow) Host() *HostFile { return q.host }

// checkWrite judges a range that is to change.
func (q *qcow) checkWrite(off, n int64) error {
	if q.readOnly {
		return fmt.Errorf("change %q: %w", q.path, ErrReadOnly)
	}
	if !q.locked.Load() {
		return fmt.Errorf("change %q: %w", q.path, ErrNotLocked)
	}
	return checkRange(q.path, q.Size(), off, n)
}

// Preadv implements File.
func (q *qcow) Preadv(bufs [][]byte, off int64) (int, error) {
	n := total(bufs)
	if err := checkRange(q.path, q.Size(), off, n); err != nil {
		return 0, err
	}
	if err := q.img.Preadv(bufs, off); err != nil {
		return 0, fmt.Errorf("read %d bytes at %d of %q: %w", n, off, q.path, err)
	}
	return int(n), nil
}

// Pwritev implements File.
func (q *qcow) Pwritev(bufs [][]byte, off int64) (int, error) {
	n := total(bufs)
	if err := q.checkWrite(off, n); err != nil {
		return 0, err
	}
	if err := q.img.Pwritev(bufs, off); err != nil {
		return 0, fmt.Errorf("write %d bytes at %d of %q: %w", n, off, q.path, err)
	}
	return int(n), nil
}

// Flush implements File.
func (q *qcow) Flush() error {
	if err := q.img.Flush(); err != nil {
		return fmt.Errorf("flush %q: %w", q.path, err)
	}
	return nil
}

// Discard implements File.
func (q *qcow) Discard(off, n int64) error {
	if err := q.checkWrite(off, n); err != nil || n == 0 {
		return err
	}
	if err := q.img.Discard(off, n); err != nil {
		return fmt.Errorf("discard %d bytes at %d of %q: %w", n, off, q.path, err)
	}
	return nil
}

// WriteZeroes implements File.
func (q *qcow) WriteZeroes(off, n int64, mayUnmap bool) error {
	if err := q.checkWrite(off, n); err != nil || n == 0 {
		return err
	}
	if err := q.img.WriteZeroes(off, n, mayUnmap); err != nil {
		return fmt.Errorf("write %d zeroes at %d of %q: %w", n, off, q.path, err)
	}
	return nil
}

// Lock implements File. What was read of the metadata before counts for
// nothing: the image was somebody else's.
func (q *qcow) Lock() error {
	if q.locked.Load() {
		return nil
	}
	if q.backing != nil {
		if err := q.backing.Lock(); err != nil {
			return err
		}
	}
	if err := q.host.r.Lock(); err != nil {
		return errors.Join(err, unlockFile(q.backing))
	}
	err := q.img.Load()
	if was, now := q.header, q.img.Header(); err == nil && (now.Backing != was.Backing || now.BackingFormat != was.BackingFormat) {
		err = fmt.Errorf("its backing file was %q (%s) when it was opened and is %q (%s) now", was.Backing, was.BackingFormat, now.Backing, now.BackingFormat)
	}
	if err != nil {
		err = fmt.Errorf("lock disk %q: %w", q.path, err)
		return errors.Join(err, q.host.r.Unlock(), unlockFile(q.backing))
	}
	q.locked.Store(true)
	return nil
}

// Unlock implements File. It keeps the lock if what it has cannot be written.
func (q *qcow) Unlock() error {
	if !q.locked.Load() {
		return nil
	}
	if err := q.img.Suspend(); err != nil {
		return fmt.Errorf("unlock disk %q: %w", q.path, err)
	}
	q.locked.Store(false)
	return errors.Join(q.host.r.Unlock(), unlockFile(q.backing))
}

func unlockFile(f File) error {
	if f == nil {
		return nil
	}
	return f.Unlock()
}

// LockedElsewhere implements File. Others may share the backing file.
func (q *qcow) LockedElsewhere() (bool, error) { return q.host.r.LockedElsewhere() }

// Close implements File.
func (q *qcow) Close() error {
	var err error
	if q.locked.Swap(false) {
		if err = q.img.Suspend(); err != nil {
			err = fmt.Errorf("close %q: %w", q.path, err)
		}
	}
	return errors.Join(err, q.host.Close(), closeFile(q.backing))
}
