package virtio

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Kick wakes the worker of a queue. It is an eventfd, so that KVM can signal it
// from the guest's write (KVM_IOEVENTFD) without this process being scheduled
// on the vCPU's side.
type Kick struct {
	fd   int      // the same descriptor as file's, for the kernel's use
	file *os.File // keeps fd open; not in the runtime's poller
	buf  [8]byte
	set  [2]unix.PollFd // of Await

	mu     sync.Mutex
	parked *os.File // a duplicate in the runtime's poller, from the first Wait on
}

// NewKick makes an eventfd. Close it when nobody waits any more.
func NewKick() (*Kick, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd for a virtqueue: %w; raise the limit of open files (ulimit -n)", err)
	}
	// A descriptor that blocks while NewFile looks stays out of the runtime's
	// poller: each kick would wake a thread there, too, where Await is used.
	k := &Kick{fd: fd, file: os.NewFile(uintptr(fd), "virtqueue kick")}
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = k.file.Close()
		return nil, fmt.Errorf("set up an eventfd for a virtqueue: %w", err)
	}
	return k, nil
}

// Fd is the eventfd, for KVM_IOEVENTFD. The Kick still owns it.
func (k *Kick) Fd() int { return k.fd }

// one is what a signal adds to the counter, in the host's order, little-endian.
var one = [8]byte{1}

// Signal wakes the waiter, now or when it waits next.
func (k *Kick) Signal() error {
	if _, err := k.file.Write(one[:]); err != nil {
		return fmt.Errorf("signal a virtqueue's eventfd: %w", err)
	}
	return nil
}

// Wait returns after a signal, and takes all that came. It sleeps in the
// runtime's poller. One goroutine waits at a time.
func (k *Kick) Wait() error {
	f, err := k.park()
	if err == nil {
		_, err = f.Read(k.buf[:])
	}
	if err != nil {
		return fmt.Errorf("wait for a virtqueue's eventfd: %w", err)
	}
	return nil
}

// park gives the file that the runtime's poller watches.
func (k *Kick) park() (*os.File, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.parked != nil {
		return k.parked, nil
	}
	conn, err := k.file.SyscallConn()
	if err != nil {
		return nil, err
	}
	var dup int
	var errno error
	if err := conn.Control(func(fd uintptr) {
		dup, errno = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
	}); err != nil {
		return nil, err
	}
	if errno != nil {
		return nil, errno
	}
	k.parked = os.NewFile(uintptr(dup), "virtqueue kick")
	return k.parked, nil
}

// Await returns after a signal, which it takes, or once the descriptor fd has
// one of events (poll(2)) or an error; a negative fd has none. It may also return
// for no reason. kicked says whether there was a signal.
//
// Unlike Wait it holds a thread while it sleeps, and nothing is woken by what
// comes while nobody sleeps: for workers that are woken often and wait for more
// than kicks. Close does not end it. One goroutine waits at a time.
func (k *Kick) Await(fd int, events int16) (kicked bool, err error) {
	k.set = [2]unix.PollFd{
		{Fd: int32(k.fd), Events: unix.POLLIN},
		{Fd: int32(fd), Events: events},
	}
	if _, err := unix.Poll(k.set[:], -1); err != nil {
		if err == unix.EINTR {
			return false, nil
		}
		return false, fmt.Errorf("wait for a virtqueue's eventfd: %w", err)
	}
	if k.set[0].Revents == 0 {
		return false, nil
	}
	switch _, err := unix.Read(k.fd, k.buf[:]); err {
	case nil:
		return true, nil
	case unix.EAGAIN, unix.EINTR:
		return false, nil
	default:
		return false, fmt.Errorf("read a virtqueue's eventfd: %w", err)
	}
}

// Close frees the eventfd. A waiter in Wait gets an error.
func (k *Kick) Close() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.parked != nil {
		_ = k.parked.Close()
	}
	return k.file.Close()
}
