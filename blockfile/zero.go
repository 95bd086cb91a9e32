package blockfile

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Discard implements File.
func (r *raw) Discard(off, n int64) error {
	if err := r.checkWrite(off, n); err != nil || n == 0 {
		return err
	}
	if err := r.discard(off, n); err != nil {
		return fmt.Errorf("discard %d bytes at %d of %q: %w", n, off, r.path, err)
	}
	return nil
}

func (r *raw) discard(off, n int64) error {
	r.partial.RLock()
	defer r.partial.RUnlock()
	ok, err := true, error(nil)
	if r.geo.device {
		// Only whole sectors can be discarded; the rest may stay as it is.
		ok, err = try(&r.noDiscard, func() error { return r.deviceDiscard(off, n) })
	} else {
		ok, err = r.punch(off, n)
	}
	if err != nil || !ok {
		return err
	}
	return r.settle()
}

// deviceDiscard drops the whole sectors of the range: linux/fs.h, BLKDISCARD.
func (r *raw) deviceDiscard(off, n int64) error {
	a := int64(r.geo.block)
	start, end := (off+a-1)&^(a-1), (off+n)&^(a-1)
	if start >= end {
		return nil
	}
	rng := [2]uint64{uint64(start), uint64(end - start)}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r.fd), unix.BLKDISCARD, uintptr(unsafe.Pointer(&rng))); errno != 0 {
		return errno
	}
	return nil
}

// WriteZeroes implements File. fallocate serves files and, since Linux 4.9,
// block devices; what it refuses is written out.
func (r *raw) WriteZeroes(off, n int64, mayUnmap bool) error {
	if err := r.checkWrite(off, n); err != nil || n == 0 {
		return err
	}
	if err := r.zero(off, n, mayUnmap); err != nil {
		return fmt.Errorf("write %d zeroes at %d of %q: %w", n, off, r.path, err)
	}
	return nil
}

func (r *raw) zero(off, n int64, mayUnmap bool) error {
	ok, err := r.zeroFast(off, n, mayUnmap)
	if err != nil || ok {
		return err
	}
	for done := int64(0); done < n; {
		size := min(int64(len(zeroes)), n-done)
		one := [1][]byte{zeroes[:size]}
		if _, err := r.Pwritev(one[:], off+done); err != nil {
			return err
		}
		done += size
	}
	return nil
}

// zeroes is only ever read.
var zeroes = make([]byte, 64<<10)

func (r *raw) zeroFast(off, n int64, mayUnmap bool) (bool, error) {
	if r.geo.device && (off|n)&int64(r.geo.block-1) != 0 {
		return false, nil // EINVAL from the block layer
	}
	r.partial.RLock()
	defer r.partial.RUnlock()
	ok, err := false, error(nil)
	if mayUnmap {
		ok, err = r.punch(off, n)
	}
	if err == nil && !ok {
		ok, err = try(&r.noZeroRange, func() error {
			return unix.Fallocate(r.fd, unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
		})
	}
	if err != nil || !ok {
		return ok, err
	}
	return true, r.settle()
}

// punch makes a hole, which reads as zeroes.
func (r *raw) punch(off, n int64) (bool, error) {
	return try(&r.noPunch, func() error {
		return unix.Fallocate(r.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	})
}

// settle makes a change by fallocate or ioctl as stable as O_DSYNC makes a write.
func (r *raw) settle() error {
	if r.cache != CacheWritethrough {
		return nil
	}
	return r.Flush()
}

// try runs an operation that the file system may not have. It reports false
// when it has not, and remembers.
func try(missing *atomic.Bool, op func() error) (bool, error) {
	if missing.Load() {
		return false, nil
	}
	for {
		err := op()
		switch {
		case err == nil:
			return true, nil
		case errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENOTTY):
			missing.Store(true)
			return false, nil
		default:
			return false, err
		}
	}
}
