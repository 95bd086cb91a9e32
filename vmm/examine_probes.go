package vmm

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"time"

	"godwit/kvm"
)

// InstructionFact is what became of one instruction at CPL 0.
type InstructionFact struct {
	Name string `json:"name"`
	// Result is "ok", "gave up" (KVM_EXIT_INTERNAL_ERROR), "hung", or what else
	// came, such as "exception 6".
	Result string `json:"result"`
}

// Results of InstructionFact that say that this KVM cannot do it. An exception
// is the processor's word: it lacks the feature, and Linux asks before use.
const (
	resultOK     = "ok"
	resultGaveUp = "gave up"
	resultHung   = "hung"
)

// instructions are those that a stock Linux kernel executes at CPL 0 and that
// a partial emulator is known, or likely, to lack. rdi points at zeroed memory,
// aligned to 64 bytes.
var instructions = []struct {
	name string
	code []byte
	trap uint16 // the exception that is right, plus probeTrap; 0 for none
}{
	{name: "cpuid", code: []byte{0x31, 0xc0, 0x0f, 0xa2}},
	{name: "rdtsc", code: []byte{0x0f, 0x31}},
	{name: "rdmsr, wrmsr", code: []byte{0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, 0x0f, 0x30}}, // EFER
	{name: "mov cr3", code: []byte{0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8}},
	{name: "invlpg", code: []byte{0x0f, 0x01, 0x3f}},
	{name: "swapgs", code: []byte{0x0f, 0x01, 0xf8, 0x0f, 0x01, 0xf8}},
	{name: "iretq", code: []byte{
		0x48, 0x89, 0xe0, 0x6a, 0x10, 0x50, 0x9c, 0x6a, 0x08, // rax = rsp; push ss, rax, rflags, cs
		0x48, 0x8d, 0x0d, 0x03, 0x00, 0x00, 0x00, 0x51, 0x48, 0xcf}}, // push the end; iretq
	{name: "int3", code: []byte{0xcc}, trap: probeTrap + 3},
	{name: "ud2", code: []byte{0x0f, 0x0b}, trap: probeTrap + 6},
	{name: "stac, clac", code: []byte{0x0f, 0x01, 0xcb, 0x0f, 0x01, 0xca}},
	{name: "lock cmpxchg", code: []byte{0xf0, 0x48, 0x0f, 0xb1, 0x0f}},
	{name: "cmpxchg16b", code: []byte{0xf0, 0x48, 0x0f, 0xc7, 0x0f}},
	{name: "popcnt", code: []byte{0xf3, 0x48, 0x0f, 0xb8, 0xc3}},
	{name: "tzcnt", code: []byte{0xf3, 0x48, 0x0f, 0xbc, 0xc3}},
	{name: "rep movsb", code: []byte{0x48, 0x89, 0xfe, 0xb9, 0x40, 0x00, 0x00, 0x00, 0xf3, 0xa4}},
	{name: "verw", code: []byte{0x8c, 0xd8, 0x0f, 0x00, 0xe8}},
	{name: "mfence, lfence", code: []byte{0x0f, 0xae, 0xf0, 0x0f, 0xae, 0xe8}},
	{name: "clflush", code: []byte{0x0f, 0xae, 0x3f}},
	{name: "fninit, fwait", code: []byte{0xdb, 0xe3, 0x9b}},
	{name: "fxsave, fxrstor", code: []byte{0x0f, 0xae, 0x07, 0x0f, 0xae, 0x0f}},
	{name: "xsetbv", code: []byte{0x31, 0xc9, 0x31, 0xd2, 0xb8, 0x03, 0x00, 0x00, 0x00, 0x0f, 0x01, 0xd1}},
	{name: "xsave, xrstor", code: []byte{0xb8, 0x03, 0x00, 0x00, 0x00, 0x31, 0xd2, 0x0f, 0xae, 0x27, 0x0f, 0xae, 0x2f}},
	{name: "movups", code: []byte{0x0f, 0x10, 0x07, 0x0f, 0x11, 0x07}},
}

// tryInstructions runs each in a guest of its own, so that one that goes wrong
// spoils no other.
func tryInstructions(ctx context.Context, sys *kvm.System) ([]InstructionFact, error) {
	var out []InstructionFact
	for _, i := range instructions {
		f := InstructionFact{Name: i.name}
		err := withProbe(sys, i.code, func(l *pilot, p *probe) error {
			o, err := l.enter(ctx, p)
			f.Result = o.result(i.trap)
			return err
		})
		if err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		out = append(out, f)
	}
	return out, nil
}

func withProbe(sys *kvm.System, code []byte, f func(*pilot, *probe) error) error {
	return fly(func(l *pilot) error {
		p, err := newProbe(sys, code)
		if err != nil {
			return err
		}
		return errors.Join(f(l, p), p.close())
	})
}

// result puts an outcome in words; trap is the exception that was to come.
func (o outcome) result(trap uint16) string {
	switch {
	case o.hung:
		return resultHung
	case o.reason == kvm.ExitInternalError:
		return resultGaveUp
	case o.reason == kvm.ExitIO && (trap == 0 && o.port == probeDone || trap != 0 && o.port == trap):
		return resultOK
	case o.reason == kvm.ExitIO && o.port >= probeTrap && o.port < probeTrap+32:
		return "exception " + strconv.Itoa(int(o.port-probeTrap))
	case o.reason == kvm.ExitIO:
		return "no exception"
	}
	return o.reason.String()
}

// SpeedFacts are measured speeds.
type SpeedFacts struct {
	KernelMIPS float64 `json:"kernel_mips"`     // million instructions a second at CPL 0, in a tight loop
	ExitMicros float64 `json:"exit_us"`         // microseconds for a port access and back, median
	ExitWorst  float64 `json:"exit_us_slowest"` // of 200
}

// measureSpeed times a loop and exits.
func measureSpeed(ctx context.Context, sys *kvm.System) (*SpeedFacts, error) {
	s := &SpeedFacts{}
	// A short loop first: where the kernel is emulated a long one takes minutes.
	for _, turns := range []uint32{50_000, 20_000_000} {
		took, err := timeLoop(ctx, sys, turns)
		if err != nil {
			return nil, err
		}
		s.KernelMIPS = 2 * float64(turns) / float64(took.Microseconds()+1)
		if took > 5*time.Millisecond {
			break
		}
	}
	code := []byte{0xe6, probeDone, 0xeb, 0xfc} // again: out %al, $done; jmp again
	return s, withProbe(sys, code, func(l *pilot, p *probe) error {
		const rounds = 200
		took := make([]float64, rounds)
		for i := range took {
			began := time.Now()
			if err := l.finish(ctx, p); err != nil {
				return err
			}
			took[i] = float64(time.Since(began).Nanoseconds()) / 1000
		}
		slices.Sort(took)
		s.ExitMicros, s.ExitWorst = took[rounds/2], took[rounds-1]
		return nil
	})
}

// timeLoop times mov $turns, %ecx; again: dec %rcx; jnz again.
func timeLoop(ctx context.Context, sys *kvm.System, turns uint32) (took time.Duration, err error) {
	code := append([]byte{0xb9}, binary.LittleEndian.AppendUint32(nil, turns)...)
	code = append(code, 0x48, 0xff, 0xc9, 0x75, 0xfb)
	err = withProbe(sys, code, func(l *pilot, p *probe) error {
		began := time.Now()
		err := l.finish(ctx, p)
		took = time.Since(began)
		return err
	})
	return took, err
}

// DirtyLogFact says whether the dirty log sees every write.
type DirtyLogFact struct {
	Written int `json:"written_pages"`
	Seen    int `json:"seen_pages"`  // of those
	Extra   int `json:"extra_pages"` // reported and not written: allowed
}

// tryDirtyLog writes every second page of a range and reads the log.
func tryDirtyLog(ctx context.Context, sys *kvm.System) (*DirtyLogFact, error) {
	const pages = 64
	f := &DirtyLogFact{Written: pages}
	code := []byte{
		0xb9, pages, 0x00, 0x00, 0x00, // mov $pages, %ecx
		0xbf, 0x00, 0x00, 0x20, 0x00, // mov $probePages, %edi
		0x48, 0x89, 0x0f, // again: mov %rcx, (%rdi)
		0x48, 0x81, 0xc7, 0x00, 0x20, 0x00, 0x00, // add $0x2000, %rdi
		0x48, 0xff, 0xc9, // dec %rcx
		0x75, 0xf1, // jnz again
	}
	return f, withProbe(sys, code, func(l *pilot, p *probe) error {
		if err := p.setSlot(kvm.MemLogDirtyPages); err != nil {
			return err
		}
		if err := l.finish(ctx, p); err != nil {
			return err
		}
		bits := make([]uint64, probeMemory>>12/64)
		if err := p.vm.GetDirtyLog(0, bits); err != nil {
			return err
		}
		for page := uint64(probePages >> 12); page < probePages>>12+2*pages; page++ {
			if bits[page/64]>>(page%64)&1 == 0 {
				continue
			}
			if page%2 == 0 {
				f.Seen++
			} else {
				f.Extra++
			}
		}
		return nil
	})
}

// TSCFacts are about the guest's time stamp counter.
type TSCFacts struct {
	KHz     uint32 `json:"khz"`
	Offset  string `json:"offset"` // "settable", "ignored" or "absent": KVM_VCPU_TSC_OFFSET
	Scaling bool   `json:"scaling"`
}

// tryTSC sets an offset and lets the guest read its counter: some KVMs accept
// the offset and do nothing with it.
func tryTSC(ctx context.Context, sys *kvm.System) (*TSCFacts, error) {
	const jump = 1 << 50 // days: no pause between two readings is that long
	f := &TSCFacts{Offset: "absent"}
	if n, err := sys.CheckExtension(kvm.CapTSCControl); err == nil {
		f.Scaling = n > 0
	}
	// rdtsc; shl $32, %rdx; or %rdx, %rax
	code := []byte{0x0f, 0x31, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x09, 0xd0}
	return f, withProbe(sys, code, func(l *pilot, p *probe) error {
		var err error
		if f.KHz, err = p.vcpu.TSCKHz(); err != nil {
			return err
		}
		if ok, err := p.vcpu.HasAttr(kvm.VCPUTSCCtrl, kvm.VCPUTSCOffset); err != nil || !ok {
			return nil // an old kernel
		}
		before, err := readTSC(ctx, l, p)
		if err != nil {
			return err
		}
		offset, err := p.vcpu.Attr(kvm.VCPUTSCCtrl, kvm.VCPUTSCOffset)
		if err != nil {
			return err
		}
		if err := p.vcpu.SetAttr(kvm.VCPUTSCCtrl, kvm.VCPUTSCOffset, offset+jump); err != nil {
			return err
		}
		after, err := readTSC(ctx, l, p)
		if err != nil {
			return err
		}
		if f.Offset = "ignored"; after-before >= jump {
			f.Offset = "settable"
		}
		return nil
	})
}

func readTSC(ctx context.Context, l *pilot, p *probe) (uint64, error) {
	if err := p.reset(); err != nil {
		return 0, err
	}
	if err := l.finish(ctx, p); err != nil {
		return 0, err
	}
	r, err := p.vcpu.Regs()
	return r.RAX, err
}
