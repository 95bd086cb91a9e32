package vmm

import (
	"fmt"
	"slices"
	"time"

	"godwit/devices/state"
	"godwit/kvm"
)

// timeMSRs are the MSRs by which a guest knows the time: the TSC and KVM's clock
// in its two numberings (kernel: Documentation/virt/kvm/x86/msr.rst). KVM takes a
// write to them for more than a value: it synchronises vCPUs by it, and
// rebuilds the clock of the whole machine.
var timeMSRs = []uint32{msrTSC, msrTSCAdjust, 0x11, 0x12, 0x4b564d00, 0x4b564d01}

// Rehearse restores each vCPU of a fresh machine from its own state, by the steps
// of LoadState that do not depend on time: registers, local APIC, the other MSRs,
// what is pending. They are most of the work, and writing back what was read
// leaves the machine as it was. Interrupt controllers, timer, clock and devices
// are left alone: writing the timer starts it, writing the clock moves it. The
// time that it returns is thus a little less than LoadState's.
func (t *target) Rehearse() (time.Duration, error) {
	t.m.op.Lock()
	defer t.m.op.Unlock()
	if s := t.m.State(); s != StateBuilt {
		return 0, fmt.Errorf("rehearse: %w: the machine is %s", ErrState, s)
	}
	var sections [][]byte
	for _, v := range t.m.vcpus {
		s, err := v.readState()
		if err != nil {
			return 0, err
		}
		var e state.Encoder
		s.encode(&e)
		sections = append(sections, e.Data())
	}
	began := time.Now()
	for i, v := range t.m.vcpus {
		if err := v.rehearse(sections[i]); err != nil {
			return 0, fmt.Errorf("rehearse restoring vCPU %d: %w", v.id, err)
		}
	}
	return time.Since(began), nil
}

// rehearse writes a vCPU's own state back to it, all that is not time.
func (v *VCPU) rehearse(section []byte) error {
	d := state.NewDecoder(section)
	s := decodeVCPU(d)
	if err := d.Finish(); err != nil {
		return err
	}
	if err := v.writeRegisters(s); err != nil {
		return err
	}
	s.MSRs = slices.DeleteFunc(s.MSRs, func(e kvm.MSREntry) bool { return slices.Contains(timeMSRs, e.Index) })
	if err := v.writeMSRs(s.MSRs); err != nil {
		return err
	}
	return v.writePending(s)
}
