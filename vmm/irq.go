package vmm

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/sys/unix"

	"godwit/devices/bus"
	"godwit/kvm"
)

// irqLine is an interrupt line of the machine, raised through an irqfd: an
// edge costs a write and no exit.
type irqLine struct {
	fd  int
	gsi uint32
	vm  *kvm.VM
}

var _ bus.Interrupt = (*irqLine)(nil)

// one is what a write to an eventfd adds.
var one = binary.NativeEndian.AppendUint64(nil, 1)

func newIRQLine(vm *kvm.VM, gsi uint32) (*irqLine, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("make an eventfd for interrupt line %d: %w", gsi, err)
	}
	if err := vm.AddIRQFD(fd, gsi); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return &irqLine{fd: fd, gsi: gsi, vm: vm}, nil
}

// Trigger implements bus.Interrupt. A full counter means that an edge is
// already on its way: not an error.
func (l *irqLine) Trigger() error {
	if _, err := unix.Write(l.fd, one); err != nil && err != unix.EAGAIN {
		return fmt.Errorf("raise interrupt line %d: %w", l.gsi, err)
	}
	return nil
}

func (l *irqLine) close() error {
	err := l.vm.RemoveIRQFD(l.fd, l.gsi)
	_ = unix.Close(l.fd)
	return err
}
