package hostpoll

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// retryAccept is how long a listener rests after a client that could not be
// taken.
const retryAccept = 100 * time.Millisecond

// Accept takes the next client that waits at a listener, which the Watch is of,
// non-blocking. When there is none the Watch is armed for the next. For want of
// descriptors a client goes on waiting, and so would its event come at once: the
// Watch is armed after a rest.
func (w *Watch) Accept(listener syscall.RawConn) (fd int, ok bool) {
	for {
		fd, err := -1, error(unix.EBADF)
		if cerr := listener.Control(func(l uintptr) {
			fd, _, err = unix.Accept4(int(l), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		}); cerr != nil {
			return -1, false // it is closed
		}
		switch {
		case err == nil:
			return fd, true
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			w.Arm(In)
			return -1, false
		default:
			time.AfterFunc(retryAccept, func() { w.Arm(In) }) // does nothing after Remove
			return -1, false
		}
	}
}
