//go:build linux && amd64

package kvm

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestIRQChipRoundTrip(t *testing.T) {
	g := newGuest(t, 0, nil, withIRQChip)
	for _, c := range []struct {
		name   string
		id     ChipID
		change func(*IRQChip)
		check  func(*IRQChip) bool
	}{
		{"PIC master", ChipPICMaster, func(c *IRQChip) { c.PIC().IMR = 0xfb; c.PIC().IRQBase = 0x20 },
			func(c *IRQChip) bool { return c.PIC().IMR == 0xfb && c.PIC().IRQBase == 0x20 }},
		{"PIC slave", ChipPICSlave, func(c *IRQChip) { c.PIC().IMR = 0xff },
			func(c *IRQChip) bool { return c.PIC().IMR == 0xff }},
		{"IOAPIC", ChipIOAPIC, func(c *IRQChip) { c.IOAPIC().Redirtbl[4] = 1<<16 | 0x34 },
			func(c *IRQChip) bool { return c.IOAPIC().Redirtbl[4] == 1<<16|0x34 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			state, err := g.vm.IRQChip(c.id)
			require.NoError(t, err)
			require.False(t, c.check(&state))
			c.change(&state)
			require.NoError(t, g.vm.SetIRQChip(&state))
			back, err := g.vm.IRQChip(c.id)
			require.NoError(t, err)
			require.True(t, c.check(&back))
			require.Equal(t, state, back)
		})
	}
	_, err := g.vm.IRQChip(9)
	require.ErrorContains(t, err, "KVM_GET_IRQCHIP (chip 9) on VM: invalid argument")
}

func TestPITRoundTrip(t *testing.T) {
	g := newGuest(t, 0, nil, withIRQChip, func(t testing.TB, g *guest) {
		require.NoError(t, g.vm.CreatePIT2(PITSpeakerDummy))
	})
	state, err := g.vm.PIT2()
	require.NoError(t, err)
	state.Channels[2].Count = 1193
	state.Channels[2].Mode = 3
	require.NoError(t, g.vm.SetPIT2(&state))
	back, err := g.vm.PIT2()
	require.NoError(t, err)
	// Setting starts the counter anew, so its time differs.
	require.Empty(t, cmp.Diff(state, back, cmpopts.IgnoreFields(PITChannel{}, "CountLoadTime"), cmpopts.IgnoreUnexported(PIT2{})))
}

func TestClock(t *testing.T) {
	g := newGuest(t, 0, nil, withIRQChip)
	flags, err := g.vm.CheckExtension(CapAdjustClock)
	require.NoError(t, err)
	require.NoError(t, g.vm.SetClock(&ClockData{Clock: 5_000_000_000_000}))
	now, err := g.vm.Clock()
	require.NoError(t, err)
	require.GreaterOrEqual(t, now.Clock, uint64(5_000_000_000_000))
	if flags&ClockRealtime == 0 || now.Flags&ClockRealtime == 0 {
		return
	}
	// Wall time one hour ago: the clock must be an hour on.
	require.NoError(t, g.vm.SetClock(&ClockData{Clock: now.Clock, Flags: ClockRealtime, Realtime: now.Realtime - 3600e9}))
	later, err := g.vm.Clock()
	require.NoError(t, err)
	require.GreaterOrEqual(t, later.Clock, now.Clock+3600e9)
	require.ErrorContains(t, g.vm.SetClock(&ClockData{Flags: 1 << 31}), "KVM_SET_CLOCK (0 ns, flags 0x80000000) on VM")
}

// irr is what the two PICs have latched.
func irr(t *testing.T, vm *VM) uint16 {
	t.Helper()
	master, err := vm.IRQChip(ChipPICMaster)
	require.NoError(t, err)
	slave, err := vm.IRQChip(ChipPICSlave)
	require.NoError(t, err)
	return uint16(master.PIC().IRR) | uint16(slave.PIC().IRR)<<8
}

func TestIRQLine(t *testing.T) {
	g := newGuest(t, 0, nil, withIRQChip)
	require.Zero(t, irr(t, g.vm)&(1<<5))
	require.NoError(t, g.vm.IRQLine(5, true))
	require.NoError(t, g.vm.IRQLine(5, false))
	require.NotZero(t, irr(t, g.vm)&(1<<5), "an edge is latched")
}

func TestIRQFD(t *testing.T) {
	g := newGuest(t, 0, nil, withIRQChip)
	fd := eventFD(t)
	require.NoError(t, g.vm.AddIRQFD(fd, 10))
	require.ErrorIs(t, g.vm.AddIRQFD(fd, 10), unix.EBUSY)
	require.Zero(t, irr(t, g.vm)&(1<<10))
	_, err := unix.Write(fd, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	require.NoError(t, err)
	eventually(t, "the interrupt is latched", func() bool { return irr(t, g.vm)&(1<<10) != 0 })
	require.NoError(t, g.vm.RemoveIRQFD(fd, 10))
	require.NoError(t, g.vm.AddIRQFDResample(fd, eventFD(t), 10))
	require.NoError(t, g.vm.RemoveIRQFD(fd, 10))
	require.ErrorIs(t, g.vm.AddIRQFD(-1, 10), unix.EBADF)
	require.ErrorIs(t, g.vm.AddIRQFDResample(fd, -1, 10), unix.EBADF)
}

func TestGSIRoutingAndMSI(t *testing.T) {
	g := newGuest(t, 0, nil, withIRQChip)
	require.NoError(t, g.vm.SetGSIRouting([]IRQRoute{
		RouteToChip(3, ChipPICMaster, 3),
		RouteToChip(3, ChipIOAPIC, 3),
		RouteToMSI(30, 0xfee0_0000, 0x41),
	}))
	require.NoError(t, g.vm.IRQLine(3, true))
	require.NotZero(t, irr(t, g.vm)&(1<<3))
	require.ErrorContains(t, g.vm.SetGSIRouting([]IRQRoute{RouteToChip(3, 9, 0)}), "KVM_SET_GSI_ROUTING (1 routes) on VM")
	require.NoError(t, g.vm.SetGSIRouting(nil))

	// The local APIC takes a message once it is software-enabled.
	l, err := g.vcpu.LAPIC()
	require.NoError(t, err)
	l.SetRegister(0xf0, 0x1ff)
	require.NoError(t, g.vcpu.SetLAPIC(&l))
	taken, err := g.vm.SignalMSI(0xfee0_0000, 0x41)
	require.NoError(t, err)
	require.True(t, taken)
	l, err = g.vcpu.LAPIC()
	require.NoError(t, err)
	require.NotZero(t, l.Register(0x200+0x10*(0x41/32))&(1<<(0x41%32)), "vector 0x41 requested")
}

func TestSplitIRQChip(t *testing.T) {
	g := newGuest(t, 0, nil, withCap(CapSplitIRQChip, 24))
	_, err := g.vcpu.LAPIC()
	require.NoError(t, err)
	_, err = g.vm.IRQChip(ChipIOAPIC)
	require.ErrorIs(t, err, unix.ENXIO)
}

func TestIOEvents(t *testing.T) {
	g := newGuest(t, 0, []byte{
		0xb0, 7, // mov al, 7
		0xe6, 0x40, // out 0x40, al       any value
		0xe6, 0x41, // out 0x41, al       matches
		0xb0, 8, // mov al, 8
		0xe6, 0x41, // out 0x41, al       does not match: exits
		0xb8, 0xff, 0xff, // mov ax, 0xffff
		0x8e, 0xd8, // mov ds, ax
		0xa2, 0x20, 0x00, // mov [0x20], al   gpa 0x100010
		0xf4, // hlt
	})
	anyValue, match, mmio := eventFD(t), eventFD(t), eventFD(t)
	events := map[int]IOEvent{
		anyValue: {PIO: true, Addr: 0x40, Len: 1},
		match:    {PIO: true, Addr: 0x41, Len: 1, Match: true, Data: 7},
		mmio:     {Addr: 0x100010},
	}
	for fd, e := range events {
		require.NoError(t, g.vm.AddIOEvent(fd, e))
	}
	require.ErrorIs(t, g.vm.AddIOEvent(match, events[match]), unix.EEXIST)

	require.Equal(t, ExitIO, g.run(t))
	io, err := g.vcpu.RunData().IO()
	require.NoError(t, err)
	require.Equal(t, IO{Out: true, Size: 1, Port: 0x41, Count: 1, Data: []byte{8}}, io)
	require.Equal(t, ExitHLT, g.run(t))
	for fd := range events {
		require.EqualValues(t, 1, signalled(t, fd))
	}

	for fd, e := range events {
		require.NoError(t, g.vm.RemoveIOEvent(fd, e))
		require.ErrorIs(t, g.vm.RemoveIOEvent(fd, e), unix.ENOENT)
	}
	g.reset(t)
	for _, want := range []ExitReason{ExitIO, ExitIO, ExitIO, ExitMMIO, ExitHLT} {
		require.Equal(t, want, g.run(t))
	}
	require.ErrorContains(t, g.vm.AddIOEvent(mmio, IOEvent{Addr: 1, Len: 3}), "3 bytes, flags 0x0) on VM: invalid argument")
	require.ErrorIs(t, g.vm.AddIOEvent(-1, IOEvent{}), unix.EBADF)
}
