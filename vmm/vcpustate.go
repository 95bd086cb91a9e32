package vmm

import (
	"errors"
	"fmt"

	"godwit/devices/state"
	"godwit/kvm"
)

// Model-specific registers with a place of their own in the order below.
const (
	msrTSC         = 0x10       // Intel SDM 4: IA32_TIME_STAMP_COUNTER
	msrTSCAdjust   = 0x3b       // IA32_TSC_ADJUST
	msrTSCDeadline = 0x6e0      // IA32_TSC_DEADLINE
	msrAPICBase    = 0x1b       // IA32_APIC_BASE; travels in Sregs
	msrEFER        = 0xc0000080 // travels in Sregs

	maxMSRs      = 1024
	maxXSaveSize = 64 << 10 // AMX needs 11 KiB; nothing comes near
)

// vcpuState is all that a vCPU is, as plain data.
type vcpuState struct {
	MPState   kvm.MPState
	Regs      kvm.Regs
	Sregs     kvm.Sregs
	XCRs      kvm.XCRs
	XSave     []byte
	LAPIC     kvm.LAPIC
	Debug     kvm.DebugRegs
	Events    kvm.VCPUEvents
	MSRs      []kvm.MSREntry
	Deadline  uint64 // IA32_TSC_DEADLINE; 0 is disarmed
	TSCOffset uint64 // from the host's TSC; 0 too where the kernel does not tell
}

// read collects the state of a vCPU that stands still. Two places in the order
// matter: MP state comes first, because asking for it makes KVM process a
// pending INIT or SIPI, which changes registers and the local APIC (kernel:
// kvm_arch_vcpu_ioctl_get_mpstate); the TSC comes last of the MSRs' values in
// time, so that the guest's clock loses as little as possible.
func (v *VCPU) readState() (*vcpuState, error) {
	var s vcpuState
	var err error
	step := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	step(func() (e error) { s.MPState, e = v.fd.MPState(); return })
	step(func() (e error) { s.Regs, e = v.fd.Regs(); return })
	step(func() (e error) { s.Sregs, e = v.fd.Sregs(); return })
	step(func() (e error) { s.XCRs, e = v.fd.XCRs(); return })
	step(func() (e error) { s.XSave, e = v.fd.XSave(); return })
	step(func() (e error) { s.LAPIC, e = v.fd.LAPIC(); return })
	step(func() (e error) { s.Debug, e = v.fd.DebugRegs(); return })
	step(func() (e error) { s.Events, e = v.fd.VCPUEvents(); return })
	step(func() (e error) { s.Deadline, e = v.readDeadline(); return })
	step(func() (e error) { s.MSRs, e = v.readMSRs(v.m.msrs); return })
	if err == nil {
		s.TSCOffset, _ = v.fd.TSCOffset() // Linux before 5.16 has no such attribute
	}
	if err != nil {
		return nil, fmt.Errorf("save vCPU %d: %w", v.id, err)
	}
	return &s, nil
}

func (v *VCPU) readDeadline() (uint64, error) {
	e := []kvm.MSREntry{{Index: msrTSCDeadline}}
	if err := v.fd.MSRs(e); err != nil {
		var refused *kvm.MSRError
		if errors.As(err, &refused) {
			return 0, nil // the guest has no deadline timer
		}
		return 0, err
	}
	return e[0].Data, nil
}

func (v *VCPU) readMSRs(indices []uint32) ([]kvm.MSREntry, error) {
	entries := make([]kvm.MSREntry, len(indices))
	for i, x := range indices {
		entries[i].Index = x
	}
	return entries, v.fd.MSRs(entries)
}

// unlistedMSRs are state that KVM keeps but does not list: the memory type
// ranges (Intel SDM 3A, 11.11.2) and the machine check banks' controls.
func unlistedMSRs() []uint32 {
	list := []uint32{0x2ff, 0x250, 0x258, 0x259, 0x17b}
	for i := range uint32(16) {
		list = append(list, 0x200+i)
	}
	for i := range uint32(8) {
		list = append(list, 0x268+i)
	}
	return list
}

// savedMSRs are the MSRs that this vCPU lets us read, of those that KVM lists
// and those above. KVM lists by host, not by guest: an MSR whose CPUID feature
// the guest lacks is refused, and nothing is lost without it.
func savedMSRs(sys *kvm.System, fd *kvm.VCPU) ([]uint32, error) {
	all, err := sys.MSRIndexList()
	if err != nil {
		return nil, err
	}
	var keep []uint32
	hasTSC := false
	seen := map[uint32]bool{}
	for _, x := range append(all, unlistedMSRs()...) {
		if seen[x] {
			continue
		}
		seen[x] = true
		switch x {
		case msrTSCDeadline, msrAPICBase, msrEFER:
			continue
		case msrTSC:
			hasTSC = true
			continue
		}
		err := fd.MSRs([]kvm.MSREntry{{Index: x}})
		var refused *kvm.MSRError
		if errors.As(err, &refused) {
			continue
		}
		if err != nil {
			return nil, err
		}
		keep = append(keep, x)
	}
	if hasTSC {
		keep = append(keep, msrTSC)
	}
	return keep, nil
}

// writeState makes a fresh vCPU what s says. CPUID was set when it was
// created, and decides what KVM accepts here. Then the order is:
//
//	Sregs      APIC base and mode, CR4 and EFER, which the rest depends on
//	XCRs       before XSave: XCR0 decides which components load
//	XSave
//	Regs
//	LAPIC      after the APIC base, which gives its mode
//	MSRs       the TSC last of them: it ages while others are written
//	TSC offset all vCPUs as far apart as they were: see alignTSC
//	deadline   after LAPIC (timer mode) and TSC, or it would fire at once
//	Debug
//	Events     after Regs and Sregs, which clear pending exceptions
//	MPState    last: a vCPU that waits for SIPI keeps waiting
func (v *VCPU) writeState(s *vcpuState) error {
	var err error
	step := func(f func() error) {
		if err == nil {
			err = f()
		}
	}
	step(func() error { return v.writeRegisters(s) })
	for i := range s.MSRs {
		if s.MSRs[i].Index == msrTSC {
			s.MSRs[i].Data += v.m.ticksAway
			v.m.tscWanted = s.MSRs[i].Data
		}
	}
	step(func() error { return v.writeMSRs(s.MSRs) })
	step(func() error { return v.alignTSC(s.TSCOffset) })
	if s.Deadline != 0 {
		step(func() error { return v.fd.SetMSRs([]kvm.MSREntry{{Index: msrTSCDeadline, Data: s.Deadline}}) })
	}
	step(func() error { return v.writePending(s) })
	if err != nil {
		return fmt.Errorf("restore vCPU %d: %w", v.id, err)
	}
	return nil
}

// writeRegisters is the first part of writeState, up to the local APIC.
func (v *VCPU) writeRegisters(s *vcpuState) error {
	forTCG(&s.Sregs)
	for _, step := range []func() error{
		func() error { return v.fd.SetSregs(&s.Sregs) },
		func() error { return v.fd.SetXCRs(&s.XCRs) },
		func() error { return v.fd.SetXSave(s.XSave) },
		func() error { return v.fd.SetRegs(&s.Regs) },
		func() error { return v.fd.SetLAPIC(&s.LAPIC) },
	} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// writePending is the last part of writeState, after MSRs and time.
func (v *VCPU) writePending(s *vcpuState) error {
	if err := v.fd.SetDebugRegs(&s.Debug); err != nil {
		return err
	}
	if err := v.fd.SetVCPUEvents(&s.Events); err != nil {
		return err
	}
	return v.fd.SetMPState(s.MPState)
}

// writeMSRs sets what this host knows. An MSR that it refuses matters only if
// the guest had put something other than this host's own value there.
func (v *VCPU) writeMSRs(entries []kvm.MSREntry) error {
	for len(entries) > 0 {
		err := v.fd.SetMSRs(entries)
		var refused *kvm.MSRError
		if !errors.As(err, &refused) {
			return err
		}
		skip := refused.Done
		if skip >= len(entries) {
			return err
		}
		here := []kvm.MSREntry{{Index: entries[skip].Index}}
		if v.fd.MSRs(here) != nil && entries[skip].Data != 0 || here[0].Data != entries[skip].Data {
			return err
		}
		entries = entries[skip+1:]
	}
	return nil
}

// alignTSC puts the vCPU's TSC as far from vCPU 0's as it was at the source. The
// values were read one after the other and are written so too, and guests
// trust that processors agree; offsets from the host's TSC do not age. vCPU 0,
// restored first, gives the distance between the two hosts' offsets.
func (v *VCPU) alignTSC(saved uint64) error {
	if v.id == 0 {
		now, err := v.settleTSC()
		v.m.tscShift, v.m.tscAligned = now-saved, err == nil && saved != 0
		return nil // a kernel without the attribute keeps what the MSR gave
	}
	if !v.m.tscAligned || saved == 0 {
		return nil
	}
	return v.fd.SetTSCOffset(saved + v.m.tscShift)
}

// settleTSC makes sure that vCPU 0's TSC is what was written, and gives its
// offset. KVM takes a value within a second of the VM's own age for an attempt
// to synchronise vCPUs, and then sets the VM's age instead (kernel:
// kvm_synchronize_tsc): a guest as young as the move is long would lose time.
func (v *VCPU) settleTSC() (offset uint64, err error) {
	if offset, err = v.fd.TSCOffset(); err != nil {
		return 0, err
	}
	got, err := v.readMSRs([]uint32{msrTSC})
	if err != nil {
		return 0, err
	}
	off := int64(v.m.tscWanted - got[0].Data)
	if millisecond := int64(v.m.tscKHz); off > -millisecond && off < millisecond {
		return offset, nil
	}
	if err := v.fd.SetTSCOffset(offset + uint64(off)); err != nil {
		return 0, err
	}
	return v.fd.TSCOffset()
}

// A message-signalled interrupt that stands for the hypercall KVM_HC_KICK_CPU:
// delivery mode "remote read", which KVM uses for it internally
// (arch/x86/kvm/lapic.c, APIC_DM_REMRD).
const (
	msiAddress   = 0xfee00000
	msiDestShift = 12
	msiRemoteRd  = 3 << 8
)

// unhalt lets the vCPU's next HLT, or the one it is in, return at once. A
// paravirtual spinlock waits in HLT with interrupts off until its holder kicks
// it. A kick that comes between the waiter's last look and its HLT is kept in
// KVM's pv_unhalted, which no ioctl saves while the vCPU counts as runnable:
// the waiter would sleep for ever here, with all who wait for what it holds
// (four-vCPU guests in the lab were seen to hang so, one vCPU in a lock's HLT with
// interrupts off; since this is sent, not in some 120 moves). Guests that have such
// locks expect to be woken without reason, and others' idle loops do too.
func (v *VCPU) unhalt() error {
	_, err := v.m.vm.SignalMSI(msiAddress|uint64(v.id)<<msiDestShift, msiRemoteRd)
	return err
}

// vcpuSaver makes a vCPU's state a section. Saving only encodes what was
// collected before, by all vCPUs side by side; restoring goes to KVM.
type vcpuSaver struct {
	v *VCPU
	s *vcpuState
}

var _ state.Saver = (*vcpuSaver)(nil)

// StateID implements state.Saver.
func (p *vcpuSaver) StateID() string { return fmt.Sprintf("vcpu/%d", p.v.id) }

// StateVersion implements state.Saver.
func (p *vcpuSaver) StateVersion() uint32 { return 1 }

// Save implements state.Saver.
func (p *vcpuSaver) Save(e *state.Encoder) error {
	p.s.encode(e)
	return nil
}

// Restore implements state.Saver. KVM judges the values.
func (p *vcpuSaver) Restore(_ uint32, d *state.Decoder) error {
	s := decodeVCPU(d)
	if err := d.Err(); err != nil {
		return err
	}
	return p.v.writeState(s)
}

// encode writes the fixed structs as the kernel lays them out (little-endian,
// checked against its header by kvm's tests), then the counted parts.
func (s *vcpuState) encode(e *state.Encoder) {
	for _, part := range s.fixed() {
		encodeStruct(e, part)
	}
	e.Bytes(s.XSave)
	e.U32(uint32(len(s.MSRs)))
	for _, m := range s.MSRs {
		e.U32(m.Index)
		e.U64(m.Data)
	}
	e.U64(s.Deadline)
	e.U64(s.TSCOffset)
}

// fixed lists the parts of fixed size in the order of the section.
func (s *vcpuState) fixed() []any {
	return []any{&s.MPState, &s.Regs, &s.Sregs, &s.XCRs, &s.LAPIC, &s.Debug, &s.Events}
}

func decodeVCPU(d *state.Decoder) *vcpuState {
	var s vcpuState
	for _, part := range s.fixed() {
		decodeStruct(d, part)
	}
	s.XSave = d.Bytes(maxXSaveSize)
	n := d.U32()
	if n > maxMSRs {
		d.Fail("%d MSRs, at most %d", n, maxMSRs)
		return &s
	}
	for range n {
		s.MSRs = append(s.MSRs, kvm.MSREntry{Index: d.U32(), Data: d.U64()})
	}
	s.Deadline, s.TSCOffset = d.U64(), d.U64()
	return &s
}
