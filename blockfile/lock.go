package blockfile

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// Lock implements File.
func (r *raw) Lock() error {
	if err := r.takeLock(); err != nil {
		return fmt.Errorf("lock disk %q: %w", r.path, err)
	}
	return nil
}

// takeLock locks first and looks at the image then: whoever held the lock
// before may have changed it.
func (r *raw) takeLock() error {
	if r.locked.Load() {
		return nil
	}
	kind := int16(unix.F_WRLCK)
	if r.readOnly {
		kind = unix.F_RDLCK
	}
	err := r.flock(unix.F_OFD_SETLK, &unix.Flock_t{Type: kind, Whence: io.SeekStart})
	if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
		return fmt.Errorf("%w; stop the machine that uses it, or give each its own copy", ErrLocked)
	}
	if err != nil {
		return fmt.Errorf("take the lock: %w", err)
	}
	now, err := readGeometry(r.fd, r.cache == CacheNone)
	if !r.holds {
		now.wholeSectors()
	}
	if err == nil && now.size != r.geo.size && !r.holds {
		err = fmt.Errorf("it had %d bytes when it was opened and has %d now", r.geo.size, now.size)
	}
	if err != nil {
		return errors.Join(err, r.dropLock())
	}
	r.locked.Store(true)
	return nil
}

// Unlock implements File.
func (r *raw) Unlock() error {
	r.locked.Store(false)
	if err := r.dropLock(); err != nil {
		return fmt.Errorf("unlock disk %q: %w", r.path, err)
	}
	return nil
}

func (r *raw) dropLock() error {
	return r.flock(unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart})
}

// LockedElsewhere implements File. It asks whether an exclusive lock would be
// refused, which a lock of our own never makes so.
func (r *raw) LockedElsewhere() (bool, error) {
	lk := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := r.flock(unix.F_OFD_GETLK, &lk); err != nil {
		return false, fmt.Errorf("ask who locks disk %q: %w", r.path, err)
	}
	return lk.Type != unix.F_UNLCK, nil
}

// flock covers the whole file: start and length stay 0. The pid must be 0 for
// the OFD commands.
func (r *raw) flock(cmd int, lk *unix.Flock_t) error {
	for {
		err := unix.FcntlFlock(uintptr(r.fd), cmd, lk)
		if err != unix.EINTR {
			return err
		}
	}
}
