package tap

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// usual are the offloads that every kernel since 2.6.27 has; uso came with 6.2.
const (
	usual = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	uso   = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

func ioctl(fd int, req uint, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(req), uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// prepare sets the format of the header, and finds out which offloads there are
// by trying: nothing lists them.
func (t *Interface) prepare() error {
	size, little := int32(HeaderSize), int32(1)
	if err := ioctl(t.fds[0], unix.TUNSETVNETHDRSZ, unsafe.Pointer(&size)); err != nil {
		return fmt.Errorf("set the size of its packet header: %w", err)
	}
	if err := ioctl(t.fds[0], unix.TUNSETVNETLE, unsafe.Pointer(&little)); err != nil {
		return fmt.Errorf("set the byte order of its packet header: %w", err)
	}
	t.offloads = usual | uso
	if err := t.SetOffloads(usual | uso); err == unix.EINVAL {
		t.offloads = usual
	}
	return t.SetOffloads(0)
}

// Queues is the number of queues.
func (t *Interface) Queues() int { return len(t.fds) }

// Offloads are those that the kernel has, as TUN_F_* bits of linux/if_tun.h.
func (t *Interface) Offloads() uint { return t.offloads }

// SetOffloads says what a reader understands, as TUN_F_* bits: packets without a
// checksum, and packets larger than the MTU that it would have to cut.
func (t *Interface) SetOffloads(set uint) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(t.fds[0]), unix.TUNSETOFFLOAD, uintptr(set)); errno != 0 {
		return errno
	}
	return nil
}

// SetQueues lets the first n queues take part; packets go to them alone.
func (t *Interface) SetQueues(n int) error {
	if n < 1 || n > len(t.fds) {
		return fmt.Errorf("tap %q: %d queues in use of %d", t.name, n, len(t.fds))
	}
	for ; t.inUse < n; t.inUse++ {
		if err := t.setQueue(t.inUse, unix.IFF_ATTACH_QUEUE); err != nil {
			return err
		}
	}
	for ; t.inUse > n; t.inUse-- {
		if err := t.setQueue(t.inUse-1, unix.IFF_DETACH_QUEUE); err != nil {
			return err
		}
	}
	return nil
}

func (t *Interface) setQueue(i int, flag uint16) error {
	var req struct {
		_     [unix.IFNAMSIZ]byte
		flags uint16
		_     [22]byte
	}
	req.flags = flag
	if err := ioctl(t.fds[i], unix.TUNSETQUEUE, unsafe.Pointer(&req)); err != nil {
		return fmt.Errorf("tap %q: attach or detach queue %d: %w", t.name, i, err)
	}
	return nil
}

// SetCarrier plugs the cable in or pulls it: a bridge sends nothing to a port
// without carrier, and forgets what it learned there. The error of a kernel that
// cannot (before 5.0) is errors.ErrUnsupported; ErrGone says that there is no
// interface any more.
func (t *Interface) SetCarrier(on bool) error {
	var v int32
	if on {
		v = 1
	}
	if err := ioctl(t.fds[0], unix.TUNSETCARRIER, unsafe.Pointer(&v)); err != nil {
		switch err {
		case unix.EINVAL:
			err = errors.ErrUnsupported
		case unix.EBADFD:
			err = ErrGone
		}
		return fmt.Errorf("tap %q: set carrier: %w", t.name, err)
	}
	return nil
}
