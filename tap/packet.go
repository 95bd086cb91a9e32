package tap

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// MaxSegments is the most slices that one packet may have (UIO_MAXIOV).
const MaxSegments = 1024

// vectors are reused: a packet allocates nothing.
var vectors = sync.Pool{New: func() any { return new([MaxSegments]unix.Iovec) }}

// Fd is the descriptor of queue i, for poll(2). The Interface owns it. Once the
// interface is gone it has an error all the time.
func (t *Interface) Fd(i int) int { return t.fds[i] }

// Readv takes the next packet from queue i, header first, and returns its
// length. What does not fit into bufs is lost. Without a packet the error is
// unix.EAGAIN; unix.EBADFD says that the interface is gone. Empty bufs are skipped; bufs are not kept.
func (t *Interface) Readv(i int, bufs [][]byte) (int, error) {
	return transfer(unix.SYS_READV, t.fds[i], bufs)
}

// Writev sends a packet, header first, through queue i, whole or not at all.
// With no room the error is unix.EAGAIN, unix.EIO says that the interface is
// down, and unix.EINVAL that the kernel makes nothing of the header.
func (t *Interface) Writev(i int, bufs [][]byte) (int, error) {
	return transfer(unix.SYS_WRITEV, t.fds[i], bufs)
}

func transfer(trap uintptr, fd int, bufs [][]byte) (int, error) {
	v := vectors.Get().(*[MaxSegments]unix.Iovec)
	n := 0
	for _, b := range bufs {
		if len(b) == 0 {
			continue
		}
		if n == MaxSegments {
			clear(v[:])
			vectors.Put(v)
			return 0, unix.EINVAL
		}
		v[n].Base = unsafe.SliceData(b)
		v[n].SetLen(len(b))
		n++
	}
	// A queue never blocks, so the runtime need not be told of the call, which costs
	// as much as a small packet's copy.
	done, _, errno := unix.RawSyscall(trap, uintptr(fd), uintptr(unsafe.Pointer(v)), uintptr(n))
	clear(v[:n]) // do not keep the caller's memory alive
	vectors.Put(v)
	if errno != 0 {
		return 0, errno
	}
	return int(done), nil
}

// Purge throws away the packets that wait in the queues in use: they were for
// nobody. What comes meanwhile may stay.
func (t *Interface) Purge() {
	var bin [64]byte // the rest of a packet is cut off
	bufs := [][]byte{bin[:]}
	for i := range t.inUse {
		// As many as can wait; more would be a race against the senders.
		for range 4 * madeQueueLen {
			if _, err := t.Readv(i, bufs); err == unix.EAGAIN || err == unix.EBADFD || err == unix.EINTR {
				break
			}
		}
	}
}
