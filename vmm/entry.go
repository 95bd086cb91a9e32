package vmm

import (
	"godwit/boot"
	"godwit/kvm"
)

// Control register and EFER bits (Intel SDM 3A, 2.5 and 2.2.1).
const (
	cr0PE   = 1 << 0
	cr0ET   = 1 << 4
	cr0PG   = 1 << 31
	cr4PAE  = 1 << 5
	eferLME = 1 << 8
	eferLMA = 1 << 10

	rflagsFixed = 1 << 1 // reads as one (Intel SDM 1, 3.4.3)
)

// enter sets the registers that the boot protocol asks of the first vCPU.
func enter(fd *kvm.VCPU, e boot.Entry) error {
	s, err := fd.Sregs()
	if err != nil {
		return err
	}
	code := kvm.Segment{Limit: 0xffffffff, Selector: e.Code, Type: 11, Present: 1, S: 1, G: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: e.Data, Type: 3, Present: 1, S: 1, G: 1, DB: 1}
	s.CR0 = cr0PE | cr0ET
	switch e.Mode {
	case boot.Long64:
		code.L = 1
		s.CR0 |= cr0PG
		s.CR3 = e.CR3
		s.CR4 = cr4PAE
		s.EFER = eferLME | eferLMA
	case boot.Protected32:
		code.DB = 1
		s.CR3, s.CR4, s.EFER = 0, 0, 0
	}
	s.CS = code
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.TR = kvm.Segment{Limit: 0x67, Selector: e.Task, Type: 11, Present: 1}
	s.LDT = kvm.Segment{Unusable: 1}
	s.GDT = kvm.DTable{Base: e.GDT, Limit: e.GDTLimit}
	s.IDT = kvm.DTable{}
	if err := fd.SetSregs(&s); err != nil {
		return err
	}
	return fd.SetRegs(&kvm.Regs{RIP: e.RIP, RBX: e.RBX, RSI: e.RSI, RFLAGS: rflagsFixed})
}
