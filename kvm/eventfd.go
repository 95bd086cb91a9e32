//go:build linux && amd64

package kvm

import (
	"fmt"
	"math"

	"golang.org/x/sys/unix"
)

const (
	irqFDFlagDeassign      = 1 // KVM_IRQFD_FLAG_DEASSIGN
	irqFDFlagResample      = 2 // KVM_IRQFD_FLAG_RESAMPLE
	ioEventFDFlagDataMatch = 1 // KVM_IOEVENTFD_FLAG_DATAMATCH
	ioEventFDFlagPIO       = 2 // KVM_IOEVENTFD_FLAG_PIO
	ioEventFDFlagDeassign  = 4 // KVM_IOEVENTFD_FLAG_DEASSIGN
)

//kvm:mirror kvm_irqfd
type irqFD struct {
	FD         uint32
	GSI        uint32
	Flags      uint32
	ResampleFD uint32 `c:"resamplefd"`
	_          [16]uint8
}

//kvm:mirror kvm_ioeventfd
type ioEventFD struct {
	DataMatch uint64 `c:"datamatch"`
	Addr      uint64
	Len       uint32
	FD        int32
	Flags     uint32
	_         [36]uint8
}

// IOEvent is a guest write that signals an eventfd instead of an exit.
type IOEvent struct {
	PIO   bool   // Addr is a port, else a guest-physical address
	Addr  uint64 // where the write starts
	Len   uint32 // its bytes: 1, 2, 4 or 8; 0 is any (CapIOEventFDAnyLength)
	Match bool   // only a write of Data counts
	Data  uint64
}

// AddIOEvent makes the guest write signal eventfd (KVM API 4.59). The kernel
// keeps its own reference; the caller may close eventfd once it is removed.
func (vm *VM) AddIOEvent(eventfd int, e IOEvent) error { return vm.ioEvent(eventfd, e, 0) }

// RemoveIOEvent undoes AddIOEvent; pass the same arguments.
func (vm *VM) RemoveIOEvent(eventfd int, e IOEvent) error {
	return vm.ioEvent(eventfd, e, ioEventFDFlagDeassign)
}

func (vm *VM) ioEvent(eventfd int, e IOEvent, flags uint32) error {
	if err := checkFD(eventfd); err != nil {
		return vm.f.fail(ioctlIOEventFD, err)
	}
	if e.PIO {
		flags |= ioEventFDFlagPIO
	}
	if e.Match {
		flags |= ioEventFDFlagDataMatch
	}
	arg := ioEventFD{DataMatch: e.Data, Addr: e.Addr, Len: e.Len, FD: int32(eventfd), Flags: flags}
	return withDetail(set(vm.f, ioctlIOEventFD, &arg), "fd %d, address %#x, %d bytes, flags %#x", eventfd, e.Addr, e.Len, flags)
}

// AddIRQFD makes a signal on eventfd an edge on gsi (KVM API 4.75). The kernel
// drops it by itself when eventfd is closed.
func (vm *VM) AddIRQFD(eventfd int, gsi uint32) error {
	return vm.irqFD(irqFD{GSI: gsi}, eventfd)
}

// AddIRQFDResample makes a signal on eventfd raise gsi and hold it until the
// guest acknowledges; then KVM lowers it and signals resample, so that a
// device whose interrupt is still pending can signal again.
func (vm *VM) AddIRQFDResample(eventfd, resample int, gsi uint32) error {
	if err := checkFD(resample); err != nil {
		return vm.f.fail(ioctlIRQFD, err)
	}
	return vm.irqFD(irqFD{GSI: gsi, Flags: irqFDFlagResample, ResampleFD: uint32(resample)}, eventfd)
}

// RemoveIRQFD undoes either of the two. No interrupt of eventfd is delivered
// after it returns.
func (vm *VM) RemoveIRQFD(eventfd int, gsi uint32) error {
	return vm.irqFD(irqFD{GSI: gsi, Flags: irqFDFlagDeassign}, eventfd)
}

func (vm *VM) irqFD(arg irqFD, eventfd int) error {
	if err := checkFD(eventfd); err != nil {
		return vm.f.fail(ioctlIRQFD, err)
	}
	arg.FD = uint32(eventfd)
	return withDetail(set(vm.f, ioctlIRQFD, &arg), "fd %d, gsi %d, flags %#x", eventfd, arg.GSI, arg.Flags)
}

func checkFD(fd int) error {
	if fd < 0 || fd > math.MaxInt32 {
		return fmt.Errorf("file descriptor %d: %w", fd, unix.EBADF)
	}
	return nil
}
