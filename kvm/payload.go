//go:build linux && amd64

package kvm

import (
	"encoding/binary"
	"fmt"
)

// Directions of KVM_EXIT_IO.
const (
	ioIn  = 0 // KVM_EXIT_IO_IN
	ioOut = 1 // KVM_EXIT_IO_OUT
)

//kvm:mirror kvm_run.io
type ioExit struct {
	Direction  uint8
	Size       uint8
	Port       uint16
	Count      uint32
	DataOffset uint64
}

// IO is a port access of ExitIO.
type IO struct {
	Out   bool
	Size  int    // bytes of one access: 1, 2 or 4
	Port  uint16 // all accesses go to the same port
	Count int    // more than 1 for a repeated string instruction
	Data  []byte // Size times Count bytes; fill it in to answer an input
}

// IO decodes ExitIO. An input must be answered in Data before the next Run,
// which hands it to the guest.
func (d *RunData) IO() (IO, error) {
	if err := d.expect(ExitIO); err != nil {
		return IO{}, err
	}
	p := payload[ioExit](d)
	n := uint64(p.Size) * uint64(p.Count)
	size := uint64(len(d.mem))
	if p.Direction > ioOut || n == 0 || n > size || p.DataOffset > size-n {
		return IO{}, fmt.Errorf("kvm: %w: port %#x, direction %d, %d accesses of %d bytes at offset %#x of %d",
			ErrPayload, p.Port, p.Direction, p.Count, p.Size, p.DataOffset, size)
	}
	end := p.DataOffset + n
	return IO{Out: p.Direction != ioIn, Size: int(p.Size), Port: p.Port, Count: int(p.Count),
		Data: d.mem[p.DataOffset:end:end]}, nil
}

//kvm:mirror kvm_run.mmio
type mmioExit struct {
	PhysAddr uint64
	Data     [8]uint8
	Len      uint32
	IsWrite  uint8
}

// MMIO is an access of ExitMMIO, outside every slot or a write to a read-only
// one.
type MMIO struct {
	Addr  uint64
	Write bool
	Data  []byte // 1 to 8 bytes; fill it in to answer a read
}

// MMIO decodes ExitMMIO. A read must be answered in Data before the next Run.
func (d *RunData) MMIO() (MMIO, error) {
	if err := d.expect(ExitMMIO); err != nil {
		return MMIO{}, err
	}
	p := payload[mmioExit](d)
	if p.Len == 0 || p.Len > uint32(len(p.Data)) {
		return MMIO{}, fmt.Errorf("kvm: %w: MMIO of %d bytes at %#x", ErrPayload, p.Len, p.PhysAddr)
	}
	return MMIO{Addr: p.PhysAddr, Write: p.IsWrite != 0, Data: p.Data[:p.Len:p.Len]}, nil
}

// Suberrors of ExitInternalError.
const (
	InternalErrorEmulation            = 1 // KVM_INTERNAL_ERROR_EMULATION
	InternalErrorSimulEx              = 2 // KVM_INTERNAL_ERROR_SIMUL_EX
	InternalErrorDeliveryEv           = 3 // KVM_INTERNAL_ERROR_DELIVERY_EV
	InternalErrorUnexpectedExitReason = 4 // KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
)

const emulationFlagInstructionBytes = 1 // KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES

//kvm:mirror kvm_run.internal
type internalExit struct {
	Suberror uint32
	Ndata    uint32
	Data     [16]uint64
}

// InternalError is what KVM says when it gives up.
type InternalError struct {
	Suberror uint32
	Data     []uint64 // debugging data, at most 16 words, a copy
	// Instruction holds the bytes that KVM could not emulate, where it
	// tells them; at most 15.
	Instruction []byte
}

func (e InternalError) String() string {
	name := "unknown internal error"
	switch e.Suberror {
	case InternalErrorEmulation:
		name = "emulation failure"
	case InternalErrorSimulEx:
		name = "simultaneous exceptions"
	case InternalErrorDeliveryEv:
		name = "exit while delivering an event"
	case InternalErrorUnexpectedExitReason:
		name = "unexpected hardware exit reason"
	}
	s := fmt.Sprintf("%s (suberror %d)", name, e.Suberror)
	if len(e.Instruction) > 0 {
		return s + fmt.Sprintf(", instruction % x", e.Instruction)
	}
	return s + fmt.Sprintf(", data %#x", e.Data)
}

// InternalError decodes ExitInternalError.
func (d *RunData) InternalError() (InternalError, error) {
	if err := d.expect(ExitInternalError); err != nil {
		return InternalError{}, err
	}
	p := payload[internalExit](d)
	n := min(int(p.Ndata), len(p.Data))
	e := InternalError{Suberror: p.Suberror, Data: append([]uint64(nil), p.Data[:n]...)}
	// Struct emulation_failure overlays the data: a word of flags, then the
	// length and 15 bytes of instruction in two words.
	if p.Suberror == InternalErrorEmulation && n >= 3 && p.Data[0]&emulationFlagInstructionBytes != 0 {
		var insn [16]byte
		binary.LittleEndian.PutUint64(insn[:8], p.Data[1])
		binary.LittleEndian.PutUint64(insn[8:], p.Data[2])
		e.Instruction = append([]byte(nil), insn[1:1+min(int(insn[0]), 15)]...)
	}
	return e, nil
}

// FailEntry is why the hardware refused to enter the guest.
//
//kvm:mirror kvm_run.fail_entry
type FailEntry struct {
	HardwareEntryFailureReason uint64
	CPU                        uint32 // the host CPU that tried
}

// FailEntry decodes ExitFailEntry.
func (d *RunData) FailEntry() (FailEntry, error) {
	if err := d.expect(ExitFailEntry); err != nil {
		return FailEntry{}, err
	}
	return *payload[FailEntry](d), nil
}

// UnknownReason is the hardware's exit reason behind ExitUnknown.
func (d *RunData) UnknownReason() (uint64, error) {
	if err := d.expect(ExitUnknown); err != nil {
		return 0, err
	}
	return d.run.Payload[0], nil
}

// Types of SystemEvent.
const (
	SystemEventShutdown = 1 // KVM_SYSTEM_EVENT_SHUTDOWN
	SystemEventReset    = 2 // KVM_SYSTEM_EVENT_RESET
	SystemEventCrash    = 3 // KVM_SYSTEM_EVENT_CRASH
	SystemEventWakeup   = 4 // KVM_SYSTEM_EVENT_WAKEUP
	SystemEventSuspend  = 5 // KVM_SYSTEM_EVENT_SUSPEND
	SystemEventSEVTerm  = 6 // KVM_SYSTEM_EVENT_SEV_TERM
)

//kvm:mirror kvm_run.system_event
type systemEventExit struct {
	Type  uint32
	Ndata uint32
	Data  [16]uint64
}

// SystemEvent is what a guest asked of the whole machine.
type SystemEvent struct {
	Type uint32
	Data []uint64 // at most 16 words, a copy
}

// SystemEvent decodes ExitSystemEvent.
func (d *RunData) SystemEvent() (SystemEvent, error) {
	if err := d.expect(ExitSystemEvent); err != nil {
		return SystemEvent{}, err
	}
	p := payload[systemEventExit](d)
	n := min(int(p.Ndata), len(p.Data))
	return SystemEvent{Type: p.Type, Data: append([]uint64(nil), p.Data[:n]...)}, nil
}

// DebugExit is a breakpoint or a single step, of ExitDebug.
//
//kvm:mirror kvm_run.debug
type DebugExit struct {
	Exception uint32 `c:"arch.exception"`
	_         uint32
	PC        uint64 `c:"arch.pc"`
	DR6       uint64 `c:"arch.dr6"`
	DR7       uint64 `c:"arch.dr7"`
}

// Debug decodes ExitDebug.
func (d *RunData) Debug() (DebugExit, error) {
	if err := d.expect(ExitDebug); err != nil {
		return DebugExit{}, err
	}
	return *payload[DebugExit](d), nil
}

// EOIVector decodes ExitIOAPICEOI, which a split irqchip brings.
func (d *RunData) EOIVector() (uint8, error) {
	if err := d.expect(ExitIOAPICEOI); err != nil {
		return 0, err
	}
	return uint8(d.run.Payload[0]), nil
}

// Why an MSR access came to user space; also the argument of
// CapX86UserSpaceMSR.
const (
	MSRExitReasonInval   = 1 // KVM_MSR_EXIT_REASON_INVAL
	MSRExitReasonUnknown = 2 // KVM_MSR_EXIT_REASON_UNKNOWN
	MSRExitReasonFilter  = 4 // KVM_MSR_EXIT_REASON_FILTER
)

// MSRExit is an access of ExitX86RDMSR or ExitX86WRMSR. Set Data to answer a
// read; set Error to 1 to give the guest #GP.
//
//kvm:mirror kvm_run.msr
type MSRExit struct {
	Error  uint8
	_      [7]uint8
	Reason uint32
	Index  uint32
	Data   uint64
}

// MSR gives the access in the mapping, to be read and answered.
func (d *RunData) MSR() (*MSRExit, error) {
	if d.run.ExitReason != ExitX86WRMSR {
		if err := d.expect(ExitX86RDMSR); err != nil {
			return nil, err
		}
	}
	return payload[MSRExit](d), nil
}

// MemoryFault is an access that KVM could not resolve; Run then returned
// EFAULT. KVM tells it from Linux 6.8 on.
//
//kvm:mirror kvm_run.memory_fault since KVM_EXIT_MEMORY_FAULT
type MemoryFault struct {
	Flags uint64
	GPA   uint64
	Size  uint64 // bytes
}

// MemoryFault decodes ExitMemoryFault.
func (d *RunData) MemoryFault() (MemoryFault, error) {
	if err := d.expect(ExitMemoryFault); err != nil {
		return MemoryFault{}, err
	}
	return *payload[MemoryFault](d), nil
}
