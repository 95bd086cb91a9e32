package console

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxLeft bounds what is kept of clients that have left, per port, in bytes:
// more than one socket of Linux's usual size holds (net.core.wmem_default).
const maxLeft = 256 << 10

// leftInput is input of clients that have left before the guest took it, in the
// order in which they came. It is the guest's before what the next client sends,
// and moves with it. host.mu guards it.
type leftInput struct {
	buf  []byte
	size atomic.Int64 // of buf, for those who do not hold host.mu
}

// fill takes what is still in the socket of a client that has hung up, so that
// no more can come, and returns how many bytes there was no room for.
func (l *leftInput) fill(fd int) (lost uint64) {
	var b [4096]byte
	for {
		n, err := unix.Read(fd, b[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n <= 0 {
			return lost
		}
		k := min(n, maxLeft-len(l.buf))
		l.set(append(l.buf, b[:k]...))
		lost += uint64(n - k)
	}
}

// take moves what fits to bufs.
func (l *leftInput) take(bufs [][]byte) (n int) {
	for _, b := range bufs {
		n += copy(b, l.buf[n:])
	}
	if n == len(l.buf) {
		l.set(nil)
	} else {
		l.set(l.buf[n:])
	}
	return n
}

func (l *leftInput) set(p []byte) {
	l.buf = p
	l.size.Store(int64(len(p)))
}
