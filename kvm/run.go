//go:build linux && amd64

package kvm

import (
	"fmt"
	"sync/atomic"
	"unsafe"
)

// The first word of struct kvm_run holds two flags that different threads
// write. sync/atomic has no bytes, so both are bits of one atomic word; x86 is
// little-endian.
const (
	requestWindowBit = 1 << 0
	immediateExitBit = 1 << 8
)

// run mirrors struct kvm_run, which the kernel shares with us at offset 0 of a
// vCPU's descriptor (KVM API 5).
//
//kvm:mirror kvm_run
type run struct {
	// RequestInterruptWindow and ImmediateExit, then padding.
	Request                    uint32 `c:"request_interrupt_window" csize:"-"`
	_                          uint32
	ExitReason                 ExitReason
	ReadyForInterruptInjection uint8
	IfFlag                     uint8
	Flags                      uint16
	CR8                        uint64
	APICBase                   uint64
	Payload                    [32]uint64 `c:"padding"`
	KVMValidRegs               uint64
	KVMDirtyRegs               uint64
	Sync                       [256]uint64 `c:"s"`
}

// RunData reads and answers the exit that the last Run brought. Slices it
// returns lie in the mapping: they are good until the next Run, and answers
// are written into them.
type RunData struct {
	mem []byte
	run *run
}

// setFlag changes one bit atomically: SetImmediateExit runs on other threads.
func (d *RunData) setFlag(bit uint32, on bool) {
	if on {
		atomic.OrUint32(&d.run.Request, bit)
	} else {
		atomic.AndUint32(&d.run.Request, ^bit)
	}
}

// ExitReason says why the last Run returned nil.
func (d *RunData) ExitReason() ExitReason { return d.run.ExitReason }

// ImmediateExit tells whether SetImmediateExit is in force.
func (d *RunData) ImmediateExit() bool {
	return atomic.LoadUint32(&d.run.Request)&immediateExitBit != 0
}

// RequestInterruptWindow asks for ExitIRQWindowOpen as soon as the guest can
// take an external interrupt, or takes the wish back.
func (d *RunData) RequestInterruptWindow(on bool) { d.setFlag(requestWindowBit, on) }

// ReadyForInjection tells whether VCPU.Interrupt may be called now.
func (d *RunData) ReadyForInjection() bool { return d.run.ReadyForInterruptInjection != 0 }

// InterruptsEnabled is the guest's RFLAGS.IF. It means nothing with an
// in-kernel local APIC.
func (d *RunData) InterruptsEnabled() bool { return d.run.IfFlag != 0 }

// Flags that x86 sets with any exit.
const (
	RunX86SMM     = 1 // KVM_RUN_X86_SMM
	RunX86BusLock = 2 // KVM_RUN_X86_BUS_LOCK
)

// Flags are RunX86SMM and RunX86BusLock.
func (d *RunData) Flags() uint16 { return d.run.Flags }

// CR8 is the guest's task priority; without an in-kernel local APIC KVM takes
// it from here at each entry.
func (d *RunData) CR8() uint64 { return d.run.CR8 }

// SetCR8 sets it for the next entry.
func (d *RunData) SetCR8(cr8 uint64) { d.run.CR8 = cr8 }

// APICBase is the guest's APIC base MSR.
func (d *RunData) APICBase() uint64 { return d.run.APICBase }

// payload views the union behind the header as one of its members.
func payload[T any](d *RunData) *T { return (*T)(unsafe.Pointer(&d.run.Payload)) }

// expect refuses to read the payload of another exit.
func (d *RunData) expect(want ExitReason) error {
	if d.run.ExitReason != want {
		return fmt.Errorf("kvm: %w: the exit is %v, not %v", ErrPayload, d.run.ExitReason, want)
	}
	return nil
}
