package vmm

import "godwit/kvm"

// Local APIC registers and LVT delivery modes (Intel SDM 3A, 11.5.1).
const (
	lapicLVT0 = 0x350
	lapicLVT1 = 0x360

	lvtModeMask   = 7 << 8
	lvtModeNMI    = 4 << 8
	lvtModeExtINT = 7 << 8
	lvtMasked     = 1 << 16
)

// wireLAPIC does what firmware leaves behind (Intel MP 1.4, 3.6.2.2, virtual
// wire mode): the 8259s reach the processor through LINT0, NMI through LINT1.
// Writing the registers has a second effect that is needed under PVM, where
// KVM otherwise has not yet entered a fresh vCPU into its map of APIC ids and
// an INIT sent to it is lost (seen on Linux 6.18).
func wireLAPIC(fd *kvm.VCPU) error {
	l, err := fd.LAPIC()
	if err != nil {
		return err
	}
	l.SetRegister(lapicLVT0, l.Register(lapicLVT0)&^(lvtModeMask|lvtMasked)|lvtModeExtINT)
	l.SetRegister(lapicLVT1, l.Register(lapicLVT1)&^(lvtModeMask|lvtMasked)|lvtModeNMI)
	return fd.SetLAPIC(&l)
}
