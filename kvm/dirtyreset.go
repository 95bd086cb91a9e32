//go:build linux && amd64

package kvm

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// ResetDirtyRings write-protects the harvested pages of every ring of the VM
// and frees their entries (KVM API 8.29). It gives their number; cut tells that
// pages may have stayed writable, among those counted too.
//
// A pending signal ends the call early from Linux 6.16 on, as a success. The
// entries that it did not reach keep their flag, and another call takes them.
// But the batch that was being gathered, up to 64 pages that lie close
// together, is counted and never protected: no count shows it. So all signals
// of the thread are blocked meanwhile, those of the Go runtime too. What cannot
// be blocked is a stop, by SIGSTOP, a tracer or the freezer of a cgroup. A
// thread that stopped has given its processor up of its own accord, and the
// kernel counts how often it did that.
func (vm *VM) ResetDirtyRings() (n int, cut bool, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var mask unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &allSignals, &mask); err != nil {
		return 0, true, &Error{Op: "rt_sigprocmask", Object: vm.f.name, Detail: "block signals during " + ioctlResetDirtyRings.String(), Err: err}
	}
	before, known := sleeps()
	n, err = vm.f.ioctlValue(ioctlResetDirtyRings, 0)
	after, stillKnown := sleeps()
	// It cannot fail: the kernel refuses only a bad address or a bad how.
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &mask, nil)
	return n, !known || !stillKnown || before != after || err != nil, err
}

// allSignals has every bit set. The kernel takes out those that cannot be
// blocked.
var allSignals = func() (s unix.Sigset_t) {
	for i := range s.Val {
		s.Val[i] = ^s.Val[i]
	}
	return s
}()

// sleeps counts how often this thread has given up its processor of its own
// accord: to wait for a lock, or since it was stopped.
func sleeps() (int64, bool) {
	var u unix.Rusage
	err := unix.Getrusage(unix.RUSAGE_THREAD, &u)
	return u.Nvcsw, err == nil
}
