package hostpoll

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxVec bounds the segments of one call. A descriptor takes what it takes: the
// rest is for the next call.
const maxVec = 64

// Vec is room for the segments of one call; it is for one goroutine at a time.
type Vec struct {
	iov [maxVec]unix.Iovec
	n   int
}

// Reset forgets all segments.
func (v *Vec) Reset() { v.n = 0 }

// Append adds bufs, without the first skip bytes of them, while there is room.
// It returns how many bytes were added, at most limit.
func (v *Vec) Append(bufs [][]byte, skip, limit int64) int64 {
	var total int64
	for _, b := range bufs {
		if skip >= int64(len(b)) {
			skip -= int64(len(b))
			continue
		}
		b = b[skip:]
		skip = 0
		b = b[:min(int64(len(b)), limit-total)]
		if v.n == maxVec || len(b) == 0 {
			break
		}
		v.iov[v.n].Base = unsafe.SliceData(b)
		v.iov[v.n].SetLen(len(b))
		v.n++
		total += int64(len(b))
	}
	return total
}

// Read reads from fd into the segments, in order. 0 bytes is the end.
func (v *Vec) Read(fd int) (int, error) { return v.call(unix.SYS_READV, fd) }

// Write writes the segments to fd.
func (v *Vec) Write(fd int) (int, error) { return v.call(unix.SYS_WRITEV, fd) }

func (v *Vec) call(trap uintptr, fd int) (int, error) {
	for {
		n, _, errno := unix.Syscall(trap, uintptr(fd), uintptr(unsafe.Pointer(&v.iov)), uintptr(v.n))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return 0, errno
		}
		return int(n), nil
	}
}
