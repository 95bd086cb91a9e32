package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"godwit/kvm"
	"godwit/kvm/guestmem"
)

// Where things are in a probe guest, all identity-mapped and for the kernel
// alone, as in Linux.
const (
	probeMemory   = 8 << 20
	probePML4     = 0x1000
	probePDPT     = 0x2000
	probePD       = 0x3000
	probeGDT      = 0x4000
	probeIDT      = 0x5000
	probeHandlers = 0x6000
	probeCode     = 0x8000
	probeStack    = 0x20000
	probeData     = 0x40000
	probePages    = 0x200000 // written by the test of the dirty log

	probeDone  = 0x80 // port: the code has come to its end
	probeTrap  = 0xe0 // port + vector: an exception came
	probeTime  = 2 * time.Second
	cr4OSFXSR  = 1 << 9  // Intel SDM 3A, 2.5
	cr4OSXMM   = 1 << 10 // OSXMMEXCPT
	cr4OSXSAVE = 1 << 18
)

// probe is a guest with one vCPU in 64-bit mode at CPL 0.
type probe struct {
	vm   *kvm.VM
	vcpu *kvm.VCPU
	mem  *guestmem.Memory
}

// newProbe makes a guest that is about to run code at probeCode, with rdi at
// probeData.
func newProbe(sys *kvm.System, code []byte) (_ *probe, err error) {
	p := &probe{}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.close())
		}
	}()
	if p.vm, err = sys.CreateVM(); err != nil {
		return nil, err
	}
	if err := p.vm.SetTSSAddr(tssAddr); err != nil {
		return nil, err
	}
	if err := p.vm.SetIdentityMapAddr(identityMapAddr); err != nil {
		return nil, err
	}
	if p.mem, err = guestmem.New(probeMemory, guestmem.Options{}); err != nil {
		return nil, err
	}
	for at, data := range probeImage(code) {
		if err := p.mem.WriteAt(data, at); err != nil {
			return nil, err
		}
	}
	if err := p.setSlot(0); err != nil {
		return nil, err
	}
	if p.vcpu, err = p.vm.CreateVCPU(0); err != nil {
		return nil, err
	}
	cpuid, err := baseCPUID(sys)
	if err != nil {
		return nil, err
	}
	if err := p.vcpu.SetCPUID(vcpuCPUID(cpuid, 0, 1)); err != nil {
		return nil, err
	}
	return p, p.reset()
}

func (p *probe) setSlot(flags uint32) error {
	r := p.mem.Regions()[0]
	return p.vm.SetUserMemoryRegion(0, flags, r.GPA, r.Bytes)
}

// reset points the vCPU at the code.
func (p *probe) reset() error {
	s, err := p.vcpu.Sregs()
	if err != nil {
		return err
	}
	s.CR0, s.CR3 = cr0PE|cr0ET|cr0PG, probePML4
	s.CR4 = cr4PAE | cr4OSFXSR | cr4OSXMM | cr4OSXSAVE
	s.EFER = eferLME | eferLMA
	s.CS = kvm.Segment{Limit: 0xffffffff, Selector: 8, Type: 11, Present: 1, S: 1, G: 1, L: 1}
	data := kvm.Segment{Limit: 0xffffffff, Selector: 16, Type: 3, Present: 1, S: 1, G: 1, DB: 1}
	s.DS, s.ES, s.FS, s.GS, s.SS = data, data, data, data, data
	s.GDT = kvm.DTable{Base: probeGDT, Limit: 3*8 - 1}
	s.IDT = kvm.DTable{Base: probeIDT, Limit: 32*16 - 1}
	if err := p.vcpu.SetSregs(&s); err != nil {
		return err
	}
	return p.vcpu.SetRegs(&kvm.Regs{RIP: probeCode, RSP: probeStack, RDI: probeData, RFLAGS: rflagsFixed})
}

// probeImage is the content of the guest's memory by address.
func probeImage(code []byte) map[uint64][]byte {
	words := func(w ...uint64) []byte {
		var b []byte
		for _, v := range w {
			b = binary.LittleEndian.AppendUint64(b, v)
		}
		return b
	}
	const present, writable, large = 1, 2, 1 << 7
	var pd, idt []uint64
	for i := range uint64(probeMemory >> 21) {
		pd = append(pd, i<<21|large|writable|present)
	}
	var handlers []byte
	for v := range uint64(32) {
		// A 64-bit interrupt gate (Intel SDM 3A, 6.14.1) to out %al, $trap+v; hlt.
		at := probeHandlers + uint64(len(handlers))
		idt = append(idt, at&0xffff|8<<16|0x8e00<<32|at>>16<<48, 0)
		handlers = append(handlers, 0xe6, byte(probeTrap+v), 0xf4)
	}
	end := []byte{0xe6, probeDone, 0xf4} // out %al, $done; hlt
	return map[uint64][]byte{
		probePML4:     words(probePDPT | writable | present),
		probePDPT:     words(probePD | writable | present),
		probePD:       words(pd...),
		probeGDT:      words(0, 0x00af9b000000ffff, 0x00cf93000000ffff), // null, 64-bit code, data
		probeIDT:      words(idt...),
		probeHandlers: handlers,
		probeCode:     append(append([]byte(nil), code...), end...),
	}
}

// close gives everything back.
func (p *probe) close() error {
	if p.vcpu != nil {
		p.vcpu.Close()
	}
	if p.vm != nil {
		p.vm.Close()
	}
	if p.mem != nil {
		return p.mem.Close()
	}
	return nil
}

// outcome is how a run of a probe ended.
type outcome struct {
	hung   bool
	reason kvm.ExitReason
	port   uint16 // of an exit by port I/O
}

// pilot runs probes on one locked thread, with an end to everything.
type pilot struct {
	tid  int
	late atomic.Bool
}

// fly calls f on a locked thread, as KVM wants it.
func fly(f func(*pilot) error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		done <- f(&pilot{tid: unix.Gettid()})
	}()
	return <-done
}

// enter runs the guest until its next exit, at most for probeTime.
func (l *pilot) enter(ctx context.Context, p *probe) (outcome, error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	l.late.Store(false)
	p.vcpu.SetImmediateExit(false)
	kicked := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(kicked)
		l.late.Store(true)
		p.vcpu.SetImmediateExit(true)
		_ = unix.Tgkill(unix.Getpid(), l.tid, kickSignal) // the thread is there: it waits for kicked
	})
	defer func() {
		if !stop() {
			<-kicked
		}
	}()
	for {
		err := p.vcpu.Run()
		switch {
		case err == nil:
			return describe(p.vcpu.RunData())
		case l.late.Load():
			return outcome{hung: true}, nil
		case !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EAGAIN):
			return outcome{}, err
		}
	}
}

func describe(d *kvm.RunData) (outcome, error) {
	o := outcome{reason: d.ExitReason()}
	if o.reason != kvm.ExitIO {
		return o, nil
	}
	io, err := d.IO()
	o.port = io.Port
	return o, err
}

// finish runs the guest to the end of its code.
func (l *pilot) finish(ctx context.Context, p *probe) error {
	o, err := l.enter(ctx, p)
	switch {
	case err != nil:
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case o.hung:
		return fmt.Errorf("%w: it did not end within %v", errProbe, probeTime)
	case o.reason != kvm.ExitIO || o.port != probeDone:
		return fmt.Errorf("%w: it ended with %s, port %#x", errProbe, o.reason, o.port)
	}
	return nil
}
