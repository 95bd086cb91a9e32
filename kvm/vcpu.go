//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// VCPU is one virtual processor. One locked OS thread makes all calls, but
// SetImmediateExit and Close may come from anywhere.
type VCPU struct {
	id        int
	f         *file
	data      RunData
	xsaveSize int
	hasXSave2 bool
}

// ID is the number that CreateVCPU got.
func (v *VCPU) ID() int { return v.id }

// Close closes the descriptor and unmaps struct kvm_run, at once or, where an
// ioctl of another thread is in flight, when that returns. It does not kick:
// a vCPU in Run stays there until its next exit. After Close RunData must not
// be used. Close may be called again.
func (v *VCPU) Close() { v.f.close() }

// Run enters the guest (KVM API 4.10). Nil means an exit: see RunData. Two
// errors come back bare, so that == works and nothing is allocated:
//
//   - unix.EINTR: a signal arrived or immediate_exit was set. The wrapper
//     never repeats the call, whoever sent the signal: a kick must get out.
//   - unix.EAGAIN: a vCPU that waits for INIT or SIPI was woken. Call again.
//
// Anything else is an *Error. EFAULT may come with ExitMemoryFault in RunData.
//
// The system call goes through Syscall, so the Go scheduler knows that the
// thread is away; RawSyscall would stop the whole program at the next
// collection.
func (v *VCPU) Run() error {
	if !v.f.acquire() {
		return v.f.fail(ioctlRun, os.ErrClosed)
	}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(v.f.fd), uintptr(ioctlRun), 0)
	v.f.release()
	switch errno {
	case 0:
		return nil
	case unix.EINTR:
		return unix.EINTR
	case unix.EAGAIN:
		return unix.EAGAIN
	}
	return v.f.fail(ioctlRun, errno)
}

// RunData is the mapping of struct kvm_run. It belongs to the vCPU's thread,
// between two calls of Run, until Close.
func (v *VCPU) RunData() *RunData { return &v.data }

// SetImmediateExit sets the flag that makes the next Run finish a pending PIO
// or MMIO and return EINTR without entering the guest, or takes it back. Any
// thread may call it, at any time. A thread already in the guest does not look
// at it: send a signal after setting it.
func (v *VCPU) SetImmediateExit(on bool) {
	if !v.f.acquire() {
		return
	}
	v.data.setFlag(immediateExitBit, on)
	v.f.release()
}

// EnableCap switches a capability of the vCPU on (KVM API 4.37 and 6).
func (v *VCPU) EnableCap(c Cap, flags uint32, args ...uint64) error {
	return enable(v.f, c, flags, args)
}

//kvm:mirror kvm_interrupt
type interrupt struct {
	IRQ uint32
}

// Interrupt queues an external interrupt vector (KVM API 4.16). Without an
// in-kernel local APIC call it only when RunData.ReadyForInjection says so.
func (v *VCPU) Interrupt(vector uint8) error {
	return withDetail(set(v.f, ioctlInterrupt, &interrupt{IRQ: uint32(vector)}), "vector %d", vector)
}

// NMI queues a non-maskable interrupt (KVM API 4.64).
func (v *VCPU) NMI() error {
	_, err := v.f.ioctlValue(ioctlNMI, 0)
	return err
}

//kvm:mirror kvm_signal_mask
type signalMaskHeader struct {
	Len uint32
}

// SetSignalMask sets the signals that are blocked while the thread is in Run,
// bit n-1 for signal n (KVM API 4.21). Run then ends with EINTR at a signal
// that the thread itself blocks, and the signal stays pending.
func (v *VCPU) SetSignalMask(blocked uint64) error {
	b := newFlex[signalMaskHeader, uint8](8)
	b.header().Len = 8
	binary.LittleEndian.PutUint64(b.elems(8), blocked)
	_, err := v.f.ioctl(ioctlSetSignalMask, b.pointer())
	return withDetail(err, "%#x", blocked)
}

// ClearSignalMask undoes SetSignalMask: Run uses the thread's own mask.
func (v *VCPU) ClearSignalMask() error {
	_, err := v.f.ioctl(ioctlSetSignalMask, nil)
	return err
}

// SetGuestDebug turns single stepping and breakpoints on or off (KVM API
// 4.87).
func (v *VCPU) SetGuestDebug(d *GuestDebug) error {
	return withDetail(set(v.f, ioctlSetGuestDebug, d), "control %#x", d.Control)
}

// TranslateGVA walks the guest's page tables with its current state (KVM API
// 4.15). Translation.Valid is 0 where nothing is mapped.
func (v *VCPU) TranslateGVA(gva uint64) (Translation, error) {
	t := Translation{LinearAddress: gva}
	_, err := v.f.ioctl(ioctlTranslate, unsafe.Pointer(&t))
	return t, withDetail(err, "%#x", gva)
}

// TSCKHz is the frequency of the guest's TSC (KVM API 4.56).
func (v *VCPU) TSCKHz() (uint32, error) {
	n, err := v.f.ioctlValue(ioctlGetTSCKHz, 0)
	return uint32(n), err
}

// SetTSCKHz asks for another frequency (KVM API 4.55). EINVAL means that the
// host cannot scale the TSC that far.
func (v *VCPU) SetTSCKHz(khz uint32) error {
	_, err := v.f.ioctlValue(ioctlSetTSCKHz, uintptr(khz))
	return withDetail(err, "%d kHz", khz)
}

// KVMClockCtrl tells the guest that it was paused, so that its watchdog stays
// quiet (KVM API 4.70). EINVAL means that the guest uses no kvmclock.
func (v *VCPU) KVMClockCtrl() error {
	_, err := v.f.ioctlValue(ioctlKVMClockCtrl, 0)
	return err
}
