//go:build linux && amd64

package kvm

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// xsaveMin is the size of struct kvm_xsave without its flexible array.
const xsaveMin = 4096

// Regs reads the general registers (KVM API 4.11).
func (v *VCPU) Regs() (Regs, error) { return get[Regs](v.f, ioctlGetRegs) }

// SetRegs writes the general registers (KVM API 4.12).
func (v *VCPU) SetRegs(r *Regs) error { return set(v.f, ioctlSetRegs, r) }

// Sregs reads the system registers (KVM API 4.13).
func (v *VCPU) Sregs() (Sregs, error) { return get[Sregs](v.f, ioctlGetSregs) }

// SetSregs writes the system registers (KVM API 4.14).
func (v *VCPU) SetSregs(s *Sregs) error { return set(v.f, ioctlSetSregs, s) }

// Sregs2 reads the system registers with the PDPTRs (KVM API 4.131); it needs
// CapSregs2.
func (v *VCPU) Sregs2() (Sregs2, error) { return get[Sregs2](v.f, ioctlGetSregs2) }

// SetSregs2 writes the system registers (KVM API 4.132); it needs CapSregs2.
func (v *VCPU) SetSregs2(s *Sregs2) error { return set(v.f, ioctlSetSregs2, s) }

// FPU reads the x87 and SSE state (KVM API 4.22).
func (v *VCPU) FPU() (FPU, error) { return get[FPU](v.f, ioctlGetFPU) }

// SetFPU writes the x87 and SSE state (KVM API 4.23), but for MXCSR, which KVM
// leaves alone here: SetXSave writes all.
func (v *VCPU) SetFPU(f *FPU) error { return set(v.f, ioctlSetFPU, f) }

// XSaveSize is the length of XSave's result in bytes, at least 4096.
func (v *VCPU) XSaveSize() int { return v.xsaveSize }

// XSave reads the whole extended state in the layout of the XSAVE instruction,
// not compacted (KVM API 4.42 and 4.134).
func (v *VCPU) XSave() ([]byte, error) {
	req := ioctlGetXSave
	if v.hasXSave2 {
		req = ioctlGetXSave2
	}
	b := newFlex[[xsaveMin]byte, byte](v.xsaveSize - xsaveMin)
	if _, err := v.f.ioctl(req, b.pointer()); err != nil {
		return nil, err
	}
	out := make([]byte, v.xsaveSize)
	n := copy(out, b.header()[:])
	copy(out[n:], b.elems(v.xsaveSize-xsaveMin))
	return out, nil
}

// SetXSave writes the extended state (KVM API 4.43). It takes from 4096 bytes
// to XSaveSize; what is missing at the end counts as zero, which suits a state
// from a host with fewer features.
func (v *VCPU) SetXSave(state []byte) error {
	if len(state) < xsaveMin || len(state) > v.xsaveSize {
		return withDetail(v.f.fail(ioctlSetXSave, fmt.Errorf("the state must have %d to %d bytes: %w", xsaveMin, v.xsaveSize, unix.EINVAL)),
			"%d bytes", len(state))
	}
	b := newFlex[[xsaveMin]byte, byte](v.xsaveSize - xsaveMin)
	n := copy(b.header()[:], state)
	copy(b.elems(v.xsaveSize-xsaveMin), state[n:])
	_, err := v.f.ioctl(ioctlSetXSave, b.pointer())
	return err
}

// XCRs reads the extended control registers (KVM API 4.44).
func (v *VCPU) XCRs() (XCRs, error) { return get[XCRs](v.f, ioctlGetXCRs) }

// SetXCRs writes the extended control registers (KVM API 4.45). KVM checks
// them against the CPUID, so that must be set before.
func (v *VCPU) SetXCRs(x *XCRs) error { return set(v.f, ioctlSetXCRs, x) }

// DebugRegs reads the debug registers (KVM API 4.33).
func (v *VCPU) DebugRegs() (DebugRegs, error) { return get[DebugRegs](v.f, ioctlGetDebugRegs) }

// SetDebugRegs writes the debug registers (KVM API 4.34).
func (v *VCPU) SetDebugRegs(d *DebugRegs) error { return set(v.f, ioctlSetDebugRegs, d) }

// LAPIC reads the local APIC (KVM API 4.57); it needs an in-kernel one.
func (v *VCPU) LAPIC() (LAPIC, error) { return get[LAPIC](v.f, ioctlGetLAPIC) }

// SetLAPIC writes the local APIC (KVM API 4.58). The APIC base, in Sregs, must
// be set before: it decides how the registers are read.
func (v *VCPU) SetLAPIC(l *LAPIC) error { return set(v.f, ioctlSetLAPIC, l) }

// MPState reads what the vCPU does as one of many (KVM API 4.38). It also
// makes KVM process a pending INIT or SIPI, so save it before the events.
func (v *VCPU) MPState() (MPState, error) {
	s, err := get[mpState](v.f, ioctlGetMPState)
	return s.MPState, err
}

// SetMPState writes it (KVM API 4.39); it needs an in-kernel local APIC.
func (v *VCPU) SetMPState(s MPState) error {
	return withDetail(set(v.f, ioctlSetMPState, &mpState{MPState: s}), "state %d", s)
}

// VCPUEvents reads what is on its way into the guest (KVM API 4.31).
func (v *VCPU) VCPUEvents() (VCPUEvents, error) { return get[VCPUEvents](v.f, ioctlGetVCPUEvents) }

// SetVCPUEvents writes it (KVM API 4.32). Flags decides which of the optional
// fields count.
func (v *VCPU) SetVCPUEvents(e *VCPUEvents) error { return set(v.f, ioctlSetVCPUEvents, e) }

// CPUID reads what SetCPUID set, as KVM keeps it: it updates leaves that
// depend on state, and some KVMs drop empty ones.
func (v *VCPU) CPUID() ([]CPUIDEntry, error) { return getCPUID(v.f, ioctlGetCPUID2) }

// SetCPUID decides what the guest's CPUID answers, and with it which state
// KVM accepts: call it before all other setters (KVM API 4.20). It cannot
// change once the vCPU has run.
func (v *VCPU) SetCPUID(entries []CPUIDEntry) error { return setCPUID(v.f, entries) }

// MSRs fills in Data of every entry (KVM API 4.18). An *MSRError names the
// first MSR that KVM refuses; the entries before it are filled in.
func (v *VCPU) MSRs(entries []MSREntry) error { return getMSRs(v.f, entries) }

// SetMSRs writes every entry in order (KVM API 4.19). An *MSRError names the
// first one that KVM refuses; those before it are written.
func (v *VCPU) SetMSRs(entries []MSREntry) error { return setMSRs(v.f, entries) }
