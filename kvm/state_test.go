//go:build linux && amd64

package kvm

import (
	"errors"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestRegsRoundTrip(t *testing.T) {
	g := newGuest(t, 0, nil)
	rapid.Check(t, func(t *rapid.T) {
		u := rapid.Uint64()
		want := Regs{
			RAX: u.Draw(t, "rax"), RBX: u.Draw(t, "rbx"), RCX: u.Draw(t, "rcx"), RDX: u.Draw(t, "rdx"),
			RSI: u.Draw(t, "rsi"), RDI: u.Draw(t, "rdi"), RSP: u.Draw(t, "rsp"), RBP: u.Draw(t, "rbp"),
			R8: u.Draw(t, "r8"), R15: u.Draw(t, "r15"), RIP: u.Draw(t, "rip"), RFLAGS: 2,
		}
		require.NoError(t, g.vcpu.SetRegs(&want))
		got, err := g.vcpu.Regs()
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

// roundTrip reads a state, writes it to a second vCPU of the same kind and
// reads it there.
func roundTrip[T any](t *testing.T, name string, from, to *VCPU,
	read func(*VCPU) (T, error), write func(*VCPU, *T) error, change func(*T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		want, err := read(from)
		require.NoError(t, err)
		if change != nil {
			change(&want)
		}
		require.NoError(t, write(to, &want))
		got, err := read(to)
		require.NoError(t, err)
		require.Empty(t, cmp.Diff(want, got, cmpopts.IgnoreUnexported(
			Sregs{}, Sregs2{}, Segment{}, DTable{}, FPU{}, XCRs{}, XCR{}, DebugRegs{}, VCPUEvents{})))
	})
}

func TestVCPUStateRoundTrip(t *testing.T) {
	g := newGuest(t, 0, nil, withIRQChip)
	cpuid, err := g.sys.SupportedCPUID()
	require.NoError(t, err)
	require.NotEmpty(t, cpuid)
	require.NoError(t, g.vcpu.SetCPUID(cpuid))
	back, err := g.vcpu.CPUID()
	require.NoError(t, err)
	require.NotEmpty(t, back)
	leaf0 := func(e CPUIDEntry) bool { return e.Function == 0 }
	require.Equal(t, cpuid[slices.IndexFunc(cpuid, leaf0)], back[slices.IndexFunc(back, leaf0)])
	other, err := g.vm.CreateVCPU(1)
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, other.SetCPUID(cpuid))

	a, b := g.vcpu, other
	roundTrip(t, "sregs", a, b, (*VCPU).Sregs, (*VCPU).SetSregs, func(s *Sregs) { s.CR3 = 0x5000; s.ES.Base = 0x12340; s.ES.Selector = 0x1234 })
	roundTrip(t, "sregs2", a, b, (*VCPU).Sregs2, (*VCPU).SetSregs2, func(s *Sregs2) { s.CR3 = 0x6000 })
	roundTrip(t, "fpu", a, b, (*VCPU).FPU, (*VCPU).SetFPU, func(f *FPU) { f.XMM[3][2] = 0x5a; f.FCW = 0x37e })
	roundTrip(t, "debugregs", a, b, (*VCPU).DebugRegs, (*VCPU).SetDebugRegs, func(d *DebugRegs) { d.DB[1] = 0x7000 })
	roundTrip(t, "events", a, b, (*VCPU).VCPUEvents, (*VCPU).SetVCPUEvents, nil)
	roundTrip(t, "lapic", a, a, (*VCPU).LAPIC, (*VCPU).SetLAPIC, func(l *LAPIC) { l.SetRegister(0x80, 0x20); l.SetRegister(0xa0, 0x20) })
	roundTrip(t, "xcrs", a, b, (*VCPU).XCRs, (*VCPU).SetXCRs, nil)
	roundTrip(t, "xsave", a, b, (*VCPU).XSave,
		func(v *VCPU, p *[]byte) error { return v.SetXSave(*p) }, func(p *[]byte) {
			(*p)[160+16] = 0xa5 // XMM1
			(*p)[512] |= 2      // XSTATE_BV: SSE state is there
		})
	roundTrip(t, "mpstate", a, b, (*VCPU).MPState,
		func(v *VCPU, s *MPState) error { return v.SetMPState(*s) }, func(s *MPState) { *s = MPStateHalted })

	require.GreaterOrEqual(t, a.XSaveSize(), xsaveMin)
	require.ErrorContains(t, a.SetXSave(make([]byte, 100)), "KVM_SET_XSAVE (100 bytes) on vCPU 0: the state must have")
	require.ErrorIs(t, a.SetXSave(make([]byte, a.XSaveSize()+1)), unix.EINVAL)
	state, err := a.XSave()
	require.NoError(t, err)
	require.NoError(t, a.SetXSave(state[:xsaveMin]))
}

func TestMSRs(t *testing.T) {
	const sysenterCS, bogus = 0x174, 0xdeadbeef
	g := newGuest(t, 0, nil)
	require.NoError(t, g.vcpu.SetMSRs([]MSREntry{{Index: sysenterCS, Data: 0x33}}))
	many := make([]MSREntry, 300)
	for i := range many {
		many[i].Index = sysenterCS
	}
	require.NoError(t, g.vcpu.MSRs(many), "more than one ioctl takes")
	require.EqualValues(t, 0x33, many[299].Data)
	require.NoError(t, g.vcpu.MSRs(nil))

	many[290].Index = bogus
	for i := range many {
		many[i].Data = 0
	}
	var refused *MSRError
	require.ErrorAs(t, g.vcpu.MSRs(many), &refused)
	require.Equal(t, &MSRError{Op: "KVM_GET_MSRS", Object: "vCPU 0", Done: 290, Total: 300, Index: bogus}, refused)
	require.EqualValues(t, 0x33, many[289].Data, "what came before is read")

	err := g.vcpu.SetMSRs([]MSREntry{{Index: sysenterCS, Data: 0x44}, {Index: bogus, Data: 5}, {Index: sysenterCS, Data: 0x55}})
	require.EqualError(t, err, "kvm: KVM_SET_MSRS on vCPU 0: KVM refused MSR 0xdeadbeef = 0x5 (entry 2 of 3)")
	one := []MSREntry{{Index: sysenterCS}}
	require.NoError(t, g.vcpu.MSRs(one))
	require.EqualValues(t, 0x44, one[0].Data, "what came before is written, what comes after is not")
	require.EqualError(t, g.vcpu.MSRs([]MSREntry{{Index: bogus}}),
		"kvm: KVM_GET_MSRS on vCPU 0: KVM refused MSR 0xdeadbeef (entry 1 of 1)")
}

func TestMSRLists(t *testing.T) {
	s, err := Open()
	require.NoError(t, err)
	defer s.Close()
	list, err := s.MSRIndexList()
	require.NoError(t, err)
	require.Contains(t, list, uint32(0x174))
	features, err := s.MSRFeatureIndexList()
	require.NoError(t, err)
	var entries []MSREntry
	for _, index := range features {
		entries = append(entries, MSREntry{Index: index})
	}
	require.NoError(t, s.FeatureMSRs(entries))
}

func TestVCPUExtras(t *testing.T) {
	g := newGuest(t, 0, nil, withIRQChip)
	v := g.vcpu
	require.Zero(t, v.ID())
	khz, err := v.TSCKHz()
	require.NoError(t, err)
	require.NotZero(t, khz)
	require.NoError(t, v.SetTSCKHz(khz))

	has, err := v.HasAttr(VCPUTSCCtrl, VCPUTSCOffset)
	require.NoError(t, err)
	if has {
		offset, err := v.TSCOffset()
		require.NoError(t, err)
		require.NoError(t, v.SetTSCOffset(offset))
	}
	has, err = v.HasAttr(77, 0)
	require.NoError(t, err)
	require.False(t, has)
	_, err = v.Attr(77, 0)
	require.ErrorContains(t, err, "KVM_GET_DEVICE_ATTR (group 77, attribute 0) on vCPU 0")

	tr, err := v.TranslateGVA(0x1234)
	require.NoError(t, err)
	require.EqualValues(t, 1, tr.Valid)
	require.EqualValues(t, 0x1234, tr.PhysicalAddress)

	require.NoError(t, v.SetSignalMask(1<<9|1<<20))
	require.NoError(t, v.ClearSignalMask())
	require.NoError(t, v.NMI())
	events, err := v.VCPUEvents()
	require.NoError(t, err)
	require.NotZero(t, events.NMIPending|events.NMIInjected)
	if err := v.KVMClockCtrl(); err != nil {
		require.ErrorIs(t, err, unix.EINVAL)
	}
	d := v.RunData()
	d.SetCR8(3)
	require.EqualValues(t, 3, d.CR8())
	require.Zero(t, d.Flags())
	_ = d.APICBase()
	require.Error(t, v.EnableCap(Cap(60000), 0))
}

func TestSystemInfo(t *testing.T) {
	s, err := Open()
	require.NoError(t, err)
	defer s.Close()
	for _, c := range []Cap{CapUserMemory, CapIRQChip, CapIRQFD, CapIOEventFD, CapImmediateExit, CapVCPUEvents, CapXSave, CapAdjustClock} {
		n, err := s.CheckExtension(c)
		require.NoError(t, err)
		require.Positive(t, n, "%v", c)
	}
	n, err := s.CheckExtension(Cap(60000))
	require.NoError(t, err)
	require.Zero(t, n)
	size, err := s.VCPUMmapSize()
	require.NoError(t, err)
	require.GreaterOrEqual(t, size, 4096)
	_, err = s.EmulatedCPUID()
	require.NoError(t, err)
	if n, err := s.CheckExtension(CapSysAttributes); err == nil && n > 0 {
		features, err := s.GuestXFeatures()
		require.NoError(t, err)
		require.EqualValues(t, 3, features&3, "x87 and SSE")
	}
	vm, err := s.CreateVM()
	require.NoError(t, err)
	defer vm.Close()
	require.NoError(t, vm.SetBootCPUID(1))
	require.ErrorContains(t, vm.EnableCap(CapSplitIRQChip, 0, 1, 2, 3, 4, 5), "KVM_CAP_SPLIT_IRQCHIP, 5 arguments, at most 4")
	var e *Error
	require.True(t, errors.As(vm.EnableCap(Cap(60000), 0), &e))
	require.Equal(t, "KVM_ENABLE_CAP", e.Op)
}
