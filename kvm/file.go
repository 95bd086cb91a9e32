//go:build linux && amd64

package kvm

import (
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// closedBit is set in file.state once Close was called; the bits below count
// the ioctls in flight.
const closedBit = 1 << 62

// file owns one descriptor. It is not an os.File: that would put the
// descriptor in the poller's hands and close it at a collection.
//
// Close never waits. It forbids new ioctls, and whoever leaves last closes the
// descriptor; so a blocked KVM_RUN cannot end up on a reused number.
type file struct {
	name    string
	fd      int
	state   atomic.Int64
	onClose func() // runs once, just before the descriptor is closed; may be nil
}

func newFile(name string, fd int) *file { return &file{name: name, fd: fd} }

// acquire takes a share in the descriptor; false once it is closed.
func (f *file) acquire() bool {
	for {
		s := f.state.Load()
		if s&closedBit != 0 {
			return false
		}
		if f.state.CompareAndSwap(s, s+1) {
			return true
		}
	}
}

func (f *file) release() {
	if f.state.Add(-1) == closedBit {
		f.destroy()
	}
}

func (f *file) close() {
	for {
		s := f.state.Load()
		if s&closedBit != 0 {
			return
		}
		if f.state.CompareAndSwap(s, s|closedBit) {
			if s == 0 {
				f.destroy()
			}
			return
		}
	}
}

// destroy drops close's result: these descriptors have nothing to write back.
func (f *file) destroy() {
	if f.onClose != nil {
		f.onClose()
	}
	_ = unix.Close(f.fd)
}

func (f *file) fail(req ioctl, err error) error {
	return &Error{Op: req.String(), Object: f.name, Err: err}
}

// ioctl passes a pointer. It repeats on EINTR: no ioctl but KVM_RUN gives a
// signal a meaning, and KVM_CREATE_VM does fail that way when the Go runtime
// preempts.
func (f *file) ioctl(req ioctl, arg unsafe.Pointer) (int, error) {
	if !f.acquire() {
		return 0, f.fail(req, os.ErrClosed)
	}
	defer f.release()
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), uintptr(req), uintptr(arg))
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, f.fail(req, errno)
		}
	}
}

// ioctlValue passes a plain number.
func (f *file) ioctlValue(req ioctl, arg uintptr) (int, error) {
	if !f.acquire() {
		return 0, f.fail(req, os.ErrClosed)
	}
	defer f.release()
	for {
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(f.fd), uintptr(req), arg)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR:
		default:
			return 0, f.fail(req, errno)
		}
	}
}

// get reads a fixed-size struct.
func get[T any](f *file, req ioctl) (T, error) {
	var v T
	_, err := f.ioctl(req, unsafe.Pointer(&v))
	return v, err
}

// set writes a fixed-size struct.
func set[T any](f *file, req ioctl, v *T) error {
	_, err := f.ioctl(req, unsafe.Pointer(v))
	return err
}

// flex is a kernel struct with a counted array at its end: a header H, then
// elements E. It lies in 64-bit words, so header and elements are aligned.
type flex[H, E any] struct {
	words []uint64
}

func newFlex[H, E any](n int) flex[H, E] {
	var h H
	var e E
	bytes := unsafe.Sizeof(h) + unsafe.Sizeof(e)*uintptr(n)
	return flex[H, E]{words: make([]uint64, (bytes+7)/8)}
}

func (b flex[H, E]) pointer() unsafe.Pointer { return unsafe.Pointer(unsafe.SliceData(b.words)) }

func (b flex[H, E]) header() *H { return (*H)(b.pointer()) }

// elems is a view of the first n elements, never past the buffer's end.
func (b flex[H, E]) elems(n int) []E {
	var h H
	var e E
	room := (uintptr(len(b.words))*8 - unsafe.Sizeof(h)) / unsafe.Sizeof(e)
	n = max(0, min(n, int(room)))
	if n == 0 {
		return nil
	}
	return unsafe.Slice((*E)(unsafe.Add(b.pointer(), unsafe.Sizeof(h))), n)
}
