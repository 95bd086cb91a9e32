package vmm

import (
	"fmt"
	"strings"

	"godwit/kvm"
)

// Fault is why a vCPU could not go on, with what is needed to find out more.
type Fault struct {
	VCPU   int
	Reason string
	Hint   string // what to do about it, "" where nothing general can be said
	Regs   *kvm.Regs
	Sregs  *kvm.Sregs
	Code   []byte // up to 16 bytes at RIP, where they could be read
}

// Error is one line: what happened, where, and what to do.
func (f *Fault) Error() string {
	s := fmt.Sprintf("vCPU %d: %s", f.VCPU, f.Reason)
	if f.Regs != nil {
		s += fmt.Sprintf(" at rip %#x", f.Regs.RIP)
	}
	if f.Hint != "" {
		s += "; " + f.Hint
	}
	return s
}

// Report is the registers and the bytes at RIP, several lines.
func (f *Fault) Report() string {
	var b strings.Builder
	fmt.Fprintf(&b, "vCPU %d: %s\n", f.VCPU, f.Reason)
	if r := f.Regs; r != nil {
		fmt.Fprintf(&b, "  rip %016x  rflags %016x\n", r.RIP, r.RFLAGS)
		fmt.Fprintf(&b, "  rax %016x  rbx %016x  rcx %016x  rdx %016x\n", r.RAX, r.RBX, r.RCX, r.RDX)
		fmt.Fprintf(&b, "  rsi %016x  rdi %016x  rsp %016x  rbp %016x\n", r.RSI, r.RDI, r.RSP, r.RBP)
		fmt.Fprintf(&b, "  r8  %016x  r9  %016x  r10 %016x  r11 %016x\n", r.R8, r.R9, r.R10, r.R11)
		fmt.Fprintf(&b, "  r12 %016x  r13 %016x  r14 %016x  r15 %016x\n", r.R12, r.R13, r.R14, r.R15)
	}
	if s := f.Sregs; s != nil {
		fmt.Fprintf(&b, "  cr0 %016x  cr2 %016x  cr3 %016x  cr4 %016x  efer %x\n", s.CR0, s.CR2, s.CR3, s.CR4, s.EFER)
		fmt.Fprintf(&b, "  cs %04x base %x  ss %04x base %x  ds %04x  gdt %x+%x  idt %x+%x  cpl %d\n",
			s.CS.Selector, s.CS.Base, s.SS.Selector, s.SS.Base, s.DS.Selector,
			s.GDT.Base, s.GDT.Limit, s.IDT.Base, s.IDT.Limit, s.SS.DPL)
	}
	if len(f.Code) > 0 {
		fmt.Fprintf(&b, "  code % x\n", f.Code)
	}
	if f.Hint != "" {
		fmt.Fprintf(&b, "  %s\n", f.Hint)
	}
	return b.String()
}

// fault collects what the vCPU can tell. It runs on the vCPU's thread; what
// cannot be read stays out of the report.
func (v *VCPU) fault(reason, hint string) *Fault {
	f := &Fault{VCPU: v.id, Reason: reason, Hint: hint}
	regs, err := v.fd.Regs()
	if err != nil {
		return f
	}
	f.Regs = &regs
	sregs, err := v.fd.Sregs()
	if err != nil {
		return f
	}
	f.Sregs = &sregs
	t, err := v.fd.TranslateGVA(sregs.CS.Base + regs.RIP)
	if err != nil || t.Valid == 0 {
		return f
	}
	// The instruction may end at the edge of RAM: take what there is.
	for n := uint64(16); n > 0 && f.Code == nil; n-- {
		p := make([]byte, n)
		if v.m.mem.ReadAt(p, t.PhysicalAddress) == nil {
			f.Code = p
		}
	}
	return f
}
