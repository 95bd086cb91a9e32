package virtio

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Kick wakes the worker of a queue. It is an eventfd, so that KVM can signal it
// from the guest's write (KVM_IOEVENTFD) without this process being scheduled
// on the vCPU's side.
type Kick struct {
	fd   int      // the same descriptor as file's, for the kernel's use
	file *os.File // keeps fd open, and parks its reader in the runtime's poller
	buf  [8]byte
}

// NewKick makes an eventfd. Close it when nobody waits any more.
func NewKick() (*Kick, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd for a virtqueue: %w; raise the limit of open files (ulimit -n)", err)
	}
	return &Kick{fd: fd, file: os.NewFile(uintptr(fd), "virtqueue kick")}, nil
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

// Wait returns after a signal, and takes all that came. One goroutine waits at a
// time.
func (k *Kick) Wait() error {
	if _, err := k.file.Read(k.buf[:]); err != nil {
		return fmt.Errorf("wait for a virtqueue's eventfd: %w", err)
	}
	return nil
}

// Close frees the eventfd. A waiter gets an error.
func (k *Kick) Close() error { return k.file.Close() }
