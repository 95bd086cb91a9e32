package vmm

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// bell wakes the thread that waits for it, by a system call and not through Go's
// scheduler: that one finds a goroutine's thread in two steps, each of which waits
// for the processor, and on a busy host a guest that had arrived stood still for 15
// to 40 ms more by that.
//
// Whoever waits looks first, then at what it waits for, and then waits: a ring
// since the look ends the wait at once.
type bell struct{ rings atomic.Uint32 }

// From Linux include/uapi/linux/futex.h.
const (
	futexWaitPrivate = 0 | 128 // FUTEX_WAIT_PRIVATE
	futexWakePrivate = 1 | 128 // FUTEX_WAKE_PRIVATE
)

func (b *bell) look() uint32 { return b.rings.Load() }

// wait returns after a ring since the look, and sometimes without one.
func (b *bell) wait(seen uint32) {
	// EAGAIN: it rang already. EINTR: a signal of Go's runtime, or a kick.
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&b.rings)), futexWaitPrivate, uintptr(seen), 0, 0, 0)
}

func (b *bell) ring() {
	b.rings.Add(1)
	_, _, _ = unix.Syscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&b.rings)), futexWakePrivate, 1, 0, 0, 0)
}
