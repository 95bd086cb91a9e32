package hostpoll

import (
	"errors"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Burst is how many clients a listener gives in one turn. Then its handler
	// unlocks what it holds, and other descriptors have their turns.
	Burst = 8
	// restFull is how long a listener rests after a full turn: clients that come
	// without end get 8,000 a second of them, and not a whole CPU.
	restFull = time.Millisecond
	// restFailed is how long it rests after a client that could not be taken. The
	// client goes on waiting, so its event would come again at once.
	restFailed = 100 * time.Millisecond
)

// Accept takes the next client that waits at a listener, which the Watch is of,
// non-blocking. It is for the Watch's handler, which returns when there is none
// and releases its locks: nothing else may wait for clients. There is none
// either after a few in one turn, so that those who connect without end hold
// nobody up, and when descriptors are short. The Watch is armed for the next
// turn, now or after a rest.
func (w *Watch) Accept(listener syscall.RawConn) (fd int, ok bool) {
	if w.accepts == Burst {
		w.next(restFull)
		return -1, false
	}
	for {
		fd, err := -1, error(unix.EBADF)
		if cerr := listener.Control(func(l uintptr) {
			fd, _, err = unix.Accept4(int(l), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		}); cerr != nil {
			return -1, false // it is closed
		}
		switch {
		case err == nil:
			w.accepts++
			return fd, true
		case errors.Is(err, unix.ECONNABORTED), errors.Is(err, unix.EINTR):
		case errors.Is(err, unix.EAGAIN):
			w.next(0)
			return -1, false
		default:
			w.next(restFailed)
			return -1, false
		}
	}
}

// next arms the Watch for another turn.
func (w *Watch) next(rest time.Duration) {
	w.accepts = 0
	if rest == 0 {
		w.Arm(In)
		return
	}
	time.AfterFunc(rest, func() { w.Arm(In) }) // does nothing after Remove
}
