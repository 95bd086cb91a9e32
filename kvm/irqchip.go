//go:build linux && amd64

package kvm

import "unsafe"

// ChipID names one of the in-kernel interrupt controllers.
type ChipID uint32

// The chips of KVM_CREATE_IRQCHIP.
const (
	ChipPICMaster ChipID = 0 // KVM_IRQCHIP_PIC_MASTER
	ChipPICSlave  ChipID = 1 // KVM_IRQCHIP_PIC_SLAVE
	ChipIOAPIC    ChipID = 2 // KVM_IRQCHIP_IOAPIC
)

// IOAPICPins is how many inputs the in-kernel IOAPIC has.
const IOAPICPins = 24 // KVM_IOAPIC_NUM_PINS

// IRQChip is the state of one chip; PIC or IOAPIC reads it, as ChipID says.
//
//kvm:mirror kvm_irqchip
type IRQChip struct {
	ChipID ChipID
	_      uint32
	// Chip is made of words: the IOAPIC's state wants that alignment.
	Chip [64]uint64
}

// PIC gives the state of a PIC, inside c.
func (c *IRQChip) PIC() *PICState { return (*PICState)(unsafe.Pointer(&c.Chip)) }

// IOAPIC gives the state of the IOAPIC, inside c.
func (c *IRQChip) IOAPIC() *IOAPICState { return (*IOAPICState)(unsafe.Pointer(&c.Chip)) }

// PICState is one 8259.
//
//kvm:mirror kvm_pic_state
type PICState struct {
	LastIRR                uint8
	IRR                    uint8
	IMR                    uint8
	ISR                    uint8
	PriorityAdd            uint8
	IRQBase                uint8
	ReadRegSelect          uint8
	Poll                   uint8
	SpecialMask            uint8
	InitState              uint8
	AutoEOI                uint8
	RotateOnAutoEOI        uint8
	SpecialFullyNestedMode uint8
	Init4                  uint8
	ELCR                   uint8
	ELCRMask               uint8
}

// IOAPICState is the IOAPIC; Redirtbl holds its redirection entries as the
// guest sees them.
//
//kvm:mirror kvm_ioapic_state
type IOAPICState struct {
	BaseAddress uint64
	IORegSel    uint32 `c:"ioregsel"`
	ID          uint32
	IRR         uint32
	_           uint32
	Redirtbl    [IOAPICPins]uint64
}

// CreateIRQChip makes PICs and IOAPIC in the kernel, and a local APIC for each
// vCPU created afterwards (KVM API 4.24). For local APICs alone enable
// CapSplitIRQChip instead.
func (vm *VM) CreateIRQChip() error {
	_, err := vm.f.ioctlValue(ioctlCreateIRQChip, 0)
	return err
}

// IRQChip reads one chip (KVM API 4.26).
func (vm *VM) IRQChip(id ChipID) (IRQChip, error) {
	c := IRQChip{ChipID: id}
	err := set(vm.f, ioctlGetIRQChip, &c)
	return c, withDetail(err, "chip %d", id)
}

// SetIRQChip writes the chip that c.ChipID names (KVM API 4.27).
func (vm *VM) SetIRQChip(c *IRQChip) error {
	return withDetail(set(vm.f, ioctlSetIRQChip, c), "chip %d", c.ChipID)
}

// PITSpeakerDummy makes the kernel answer port 0x61.
const PITSpeakerDummy = 1 // KVM_PIT_SPEAKER_DUMMY

//kvm:mirror kvm_pit_config
type pitConfig struct {
	Flags uint32
	_     [15]uint32
}

// PITChannel is one counter of the 8254.
//
//kvm:mirror kvm_pit_channel_state
type PITChannel struct {
	Count         uint32 // up to 65536
	LatchedCount  uint16
	CountLatched  uint8
	StatusLatched uint8
	Status        uint8
	ReadState     uint8
	WriteState    uint8
	WriteLatch    uint8
	RWMode        uint8
	Mode          uint8
	BCD           uint8
	Gate          uint8
	CountLoadTime int64 // nanoseconds of the host's monotonic clock
}

// PIT2 is the 8254.
//
//kvm:mirror kvm_pit_state2
type PIT2 struct {
	Channels [3]PITChannel
	Flags    uint32
	_        [9]uint32
}

// CreatePIT2 makes an 8254 in the kernel (KVM API 4.71). It needs
// CreateIRQChip first, and must come before the first vCPU.
func (vm *VM) CreatePIT2(flags uint32) error {
	return withDetail(set(vm.f, ioctlCreatePIT2, &pitConfig{Flags: flags}), "flags %#x", flags)
}

// PIT2 reads the 8254 (KVM API 4.72).
func (vm *VM) PIT2() (PIT2, error) { return get[PIT2](vm.f, ioctlGetPIT2) }

// SetPIT2 writes the 8254 (KVM API 4.73).
func (vm *VM) SetPIT2(p *PIT2) error { return set(vm.f, ioctlSetPIT2, p) }
