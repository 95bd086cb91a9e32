package blockfile

import (
	"fmt"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// iovMax is UIO_MAXIOV of linux/uio.h: the longest vector the kernel takes.
const iovMax = 1024

// vectors are reused: a request allocates nothing.
var vectors = sync.Pool{New: func() any { return new([iovMax]unix.Iovec) }}

// total is the length of bufs in bytes. It cannot overflow: each slice exists
// in this process, and a caller that repeats one 2^32 times has run out of
// memory for the slice headers first.
func total(bufs [][]byte) int64 {
	var n int64
	for _, b := range bufs {
		n += int64(len(b))
	}
	return n
}

// transfer moves all of bufs by preadv or pwritev, in as many calls as the
// kernel's limits on vectors and bytes and its short counts make necessary.
func transfer(trap uintptr, fd int, bufs [][]byte, off int64) error {
	v := vectors.Get().(*[iovMax]unix.Iovec)
	used := 0
	defer func() {
		clear(v[:used]) // do not keep the caller's memory alive
		vectors.Put(v)
	}()
	skip := 0 // bytes of bufs[0] that are done
	for {
		n := fillVector(v, bufs, skip)
		if n == 0 {
			return nil
		}
		used = max(used, n)
		done, _, errno := unix.Syscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&v[0])), uintptr(n), uintptr(off), 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return fmt.Errorf("at byte %d: %w", off, errno)
		case done == 0:
			return errShort
		}
		off += int64(done)
		bufs, skip = advance(bufs, skip, int(done))
	}
}

// fillVector describes what is left of bufs, as much as fits, and returns the
// number of entries.
func fillVector(v *[iovMax]unix.Iovec, bufs [][]byte, skip int) int {
	n := 0
	for _, b := range bufs {
		b = b[skip:]
		skip = 0
		if len(b) == 0 {
			continue
		}
		if n == iovMax {
			break
		}
		v[n].Base = unsafe.SliceData(b)
		v[n].SetLen(len(b))
		n++
	}
	return n
}

// advance drops done bytes from the front of bufs.
func advance(bufs [][]byte, skip, done int) ([][]byte, int) {
	skip += done
	for len(bufs) > 0 && skip >= len(bufs[0]) {
		skip -= len(bufs[0])
		bufs = bufs[1:]
	}
	return bufs, skip
}
