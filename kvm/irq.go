//go:build linux && amd64

package kvm

import "unsafe"

// Types of IRQRoute.
const (
	IRQRoutingIRQChip = 1 // KVM_IRQ_ROUTING_IRQCHIP
	IRQRoutingMSI     = 2 // KVM_IRQ_ROUTING_MSI
)

// IRQRoute says where a global interrupt number leads; make one with
// RouteToChip or RouteToMSI.
//
//kvm:mirror kvm_irq_routing_entry
type IRQRoute struct {
	GSI   uint32
	Type  uint32
	Flags uint32
	_     uint32
	U     [8]uint32
}

//kvm:mirror kvm_irq_routing
type irqRoutingHeader struct {
	Nr    uint32
	Flags uint32
}

//kvm:mirror kvm_irq_level
type irqLevel struct {
	IRQ   uint32
	Level uint32
}

//kvm:mirror kvm_msi
type msi struct {
	AddressLo uint32
	AddressHi uint32
	Data      uint32
	Flags     uint32
	DevID     uint32 `c:"devid"`
	_         [12]uint8
}

// RouteToChip leads gsi to a pin of a chip.
func RouteToChip(gsi uint32, chip ChipID, pin uint32) IRQRoute {
	return IRQRoute{GSI: gsi, Type: IRQRoutingIRQChip, U: [8]uint32{uint32(chip), pin}}
}

// RouteToMSI turns gsi into a message.
func RouteToMSI(gsi uint32, address uint64, data uint32) IRQRoute {
	return IRQRoute{GSI: gsi, Type: IRQRoutingMSI, U: [8]uint32{uint32(address), uint32(address >> 32), data}}
}

// SetGSIRouting replaces the whole routing table (KVM API 4.52). CreateIRQChip
// fills in a default one.
func (vm *VM) SetGSIRouting(routes []IRQRoute) error {
	b := newFlex[irqRoutingHeader, IRQRoute](len(routes))
	b.header().Nr = uint32(len(routes))
	copy(b.elems(len(routes)), routes)
	_, err := vm.f.ioctl(ioctlSetGSIRouting, b.pointer())
	return withDetail(err, "%d routes", len(routes))
}

// IRQLine sets the level of an interrupt line (KVM API 4.25). An edge is high,
// then low.
func (vm *VM) IRQLine(gsi uint32, high bool) error {
	arg := irqLevel{IRQ: gsi}
	if high {
		arg.Level = 1
	}
	if err := set(vm.f, ioctlIRQLine, &arg); err != nil {
		return withDetail(err, "gsi %d", gsi)
	}
	return nil
}

// SignalMSI sends one message to the local APICs (KVM API 4.71). It tells
// whether a vCPU took it; false means that the guest has it masked.
func (vm *VM) SignalMSI(address uint64, data uint32) (bool, error) {
	arg := msi{AddressLo: uint32(address), AddressHi: uint32(address >> 32), Data: data}
	n, err := vm.f.ioctl(ioctlSignalMSI, unsafe.Pointer(&arg))
	if err != nil {
		return false, withDetail(err, "address %#x, data %#x", address, data)
	}
	return n > 0, nil
}
