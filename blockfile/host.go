package blockfile

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"godwit/blockfile/qcow2"
)

// HostFile is a file that holds an image of a format, for what reads and writes
// the format. It may grow, and have any length.
type HostFile struct {
	r *raw
	// temporary says that nothing in it outlives the process.
	temporary bool
}

var _ qcow2.Host = (*HostFile)(nil)

// OpenHost opens the file at path and locks it, exclusively unless it is
// read-only. With NoLock it does not, and what it reads may be changing.
func OpenHost(path string, o Options) (*HostFile, error) {
	r, err := openFile(path, o, true)
	if err != nil {
		return nil, fmt.Errorf("open %q: %w", path, err)
	}
	return &HostFile{r: r}, nil
}

// CreateHost makes an empty file at path, which must not exist, and locks it. It
// is its owner's alone.
func CreateHost(path string, o Options) (*HostFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return OpenHost(path, o)
}

// Preadv implements qcow2.Host.
func (h *HostFile) Preadv(bufs [][]byte, off int64) error {
	if h.r.cache == CacheNone && !h.r.aligned(bufs, off) {
		return h.r.readBounced(bufs, off, total(bufs))
	}
	return h.r.readToEnd(bufs, off)
}

// readToEnd reads what there is; what lies beyond the end of the file reads as
// zeroes. The bufs of an O_DIRECT file are aligned.
func (r *raw) readToEnd(bufs [][]byte, off int64) error {
	err := transfer(unix.SYS_PREADV, r.fd, bufs, off)
	// O_DIRECT stops in the middle of a block where the file ends, and does not
	// go on from there.
	if errors.Is(err, errShort) || errors.Is(err, unix.EINVAL) && r.cache == CacheNone {
		err = nil
		for _, b := range bufs {
			if err = r.readTail(b, off); err != nil {
				break
			}
			off += int64(len(b))
		}
	}
	return err
}

// readTail reads again what an end of file cut short.
func (r *raw) readTail(b []byte, off int64) error {
	done := 0
	for done < len(b) {
		n, err := unix.Pread(r.fd, b[done:], off+int64(done))
		if err == unix.EINTR {
			continue
		}
		if n == 0 || err == unix.EINVAL && done > 0 && r.cache == CacheNone {
			break // the end, or within its block
		}
		if err != nil {
			return fmt.Errorf("at byte %d: %w", off+int64(done), err)
		}
		done += n
	}
	clear(b[done:])
	return nil
}

// Pwritev implements qcow2.Host.
func (h *HostFile) Pwritev(bufs [][]byte, off int64) error {
	r := h.r
	switch {
	case r.readOnly:
		return ErrReadOnly
	case !r.locked.Load():
		return ErrNotLocked
	case r.cache != CacheNone:
		return transfer(unix.SYS_PWRITEV, r.fd, bufs, off)
	case r.aligned(bufs, off):
		r.partial.RLock()
		defer r.partial.RUnlock()
		return transfer(unix.SYS_PWRITEV, r.fd, bufs, off)
	}
	return r.writeBounced(bufs, off, total(bufs))
}

// Flush implements qcow2.Host. fdatasync covers the length of the file too,
// since that is needed to read what was written.
func (h *HostFile) Flush() error {
	if h.temporary {
		return nil
	}
	return h.r.Flush()
}

// Size implements qcow2.Host.
func (h *HostFile) Size() (int64, error) {
	g, err := readGeometry(h.r.fd, false)
	return g.size, err
}

// Punch implements qcow2.Host.
func (h *HostFile) Punch(off, n int64) error {
	r := h.r
	if r.readOnly || !r.locked.Load() {
		return ErrNotLocked
	}
	r.partial.RLock()
	defer r.partial.RUnlock()
	var err error
	if r.geo.device {
		_, err = try(&r.noDiscard, func() error { return r.deviceDiscard(off, n) })
	} else {
		_, err = r.punch(off, n)
	}
	return err
}

// Stat gives what the file system says of the file.
func (h *HostFile) Stat() (st unix.Stat_t, err error) {
	if err = unix.Fstat(h.r.fd, &st); err != nil {
		err = fmt.Errorf("stat %q: %w", h.r.path, err)
	}
	return st, err
}

// Users says whether another open file holds a lock on this one, and whether
// to write. It takes none.
func (h *HostFile) Users() (some, writer bool, err error) {
	for _, ask := range []struct {
		kind int16
		says *bool
	}{{unix.F_WRLCK, &some}, {unix.F_RDLCK, &writer}} {
		lk := unix.Flock_t{Type: ask.kind, Whence: io.SeekStart}
		if err := h.r.flock(unix.F_OFD_GETLK, &lk); err != nil {
			return false, false, fmt.Errorf("ask who locks %q: %w", h.r.path, err)
		}
		*ask.says = lk.Type != unix.F_UNLCK
	}
	return some, writer, nil
}

// Chmod sets the permission bits of the file.
func (h *HostFile) Chmod(mode uint32) error {
	if err := unix.Fchmod(h.r.fd, mode); err != nil {
		return fmt.Errorf("set the mode of %q: %w", h.r.path, err)
	}
	return nil
}

// Chown gives the file to a user and a group.
func (h *HostFile) Chown(uid, gid uint32) error { return unix.Fchown(h.r.fd, int(uid), int(gid)) }

// Truncate sets the length of the file in bytes.
func (h *HostFile) Truncate(n int64) error {
	if h.r.readOnly || !h.r.locked.Load() {
		return ErrNotLocked
	}
	if err := unix.Ftruncate(h.r.fd, n); err != nil {
		return fmt.Errorf("set the length of %q: %w", h.r.path, err)
	}
	return nil
}

// Close gives up the lock and the file.
func (h *HostFile) Close() error { return h.r.Close() }
