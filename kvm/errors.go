//go:build linux && amd64

package kvm

import (
	"errors"
	"fmt"
)

var (
	// ErrAPIVersion means that /dev/kvm speaks another API than version 12,
	// the only one since Linux 2.6.22.
	ErrAPIVersion = errors.New("unsupported KVM API version")
	// ErrPayload means that struct kvm_run holds another exit than the one
	// asked for, or that its fields point outside the mapping.
	ErrPayload = errors.New("no such payload in struct kvm_run")
	// ErrBitmap means that a dirty bitmap does not fit the pages it is for.
	ErrBitmap = errors.New("dirty bitmap does not fit")
	// ErrNoSlot means that no memory slot of that number was set.
	ErrNoSlot = errors.New("no such memory slot")
)

// Error is a failed operation on a KVM object. Errors.Is sees the errno, or
// os.ErrClosed after Close.
type Error struct {
	Op     string // the ioctl's name in linux/kvm.h, or the system call
	Object string // "/dev/kvm", "VM", "vCPU 2"
	Detail string // the argument that matters, or empty
	Err    error
}

func (e *Error) Error() string {
	if e.Detail != "" {
		return fmt.Sprintf("kvm: %s (%s) on %s: %v", e.Op, e.Detail, e.Object, e.Err)
	}
	return fmt.Sprintf("kvm: %s on %s: %v", e.Op, e.Object, e.Err)
}

// Unwrap gives the cause, mostly a unix.Errno.
func (e *Error) Unwrap() error { return e.Err }

// MSRError tells that KVM stopped in the middle of a list of MSRs. The
// ioctls report how many they did, never why the next one failed.
type MSRError struct {
	Op     string // KVM_GET_MSRS or KVM_SET_MSRS
	Object string
	Done   int    // how many entries were done before the refused one
	Total  int    // how many were asked for
	Index  uint32 // the refused MSR
	Data   uint64 // what was to be written; 0 on a read
}

func (e *MSRError) Error() string {
	if e.Op == ioctlSetMSRs.String() {
		return fmt.Sprintf("kvm: %s on %s: KVM refused MSR %#x = %#x (entry %d of %d)",
			e.Op, e.Object, e.Index, e.Data, e.Done+1, e.Total)
	}
	return fmt.Sprintf("kvm: %s on %s: KVM refused MSR %#x (entry %d of %d)",
		e.Op, e.Object, e.Index, e.Done+1, e.Total)
}

// withDetail adds the argument that matters to an *Error.
func withDetail(err error, format string, args ...any) error {
	var e *Error
	if errors.As(err, &e) && e.Detail == "" {
		e.Detail = fmt.Sprintf(format, args...)
	}
	return err
}
