//go:build linux && amd64

package kvm

import (
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestRunPortsAndHalt(t *testing.T) {
	g := newGuest(t, 0, []byte{
		0xba, 0xf8, 0x03, // mov dx, 0x3f8
		0xb0, 'A', // mov al, 'A'
		0xee,             // out dx, al
		0xed,             // in ax, dx
		0xba, 0x34, 0x12, // mov dx, 0x1234
		0xef, // out dx, ax
		0xf4, // hlt
	})
	d := g.vcpu.RunData()
	require.Equal(t, ExitIO, g.run(t))
	io, err := d.IO()
	require.NoError(t, err)
	require.Equal(t, IO{Out: true, Size: 1, Port: 0x3f8, Count: 1, Data: []byte("A")}, io)
	_, err = d.MMIO()
	require.ErrorIs(t, err, ErrPayload)
	require.ErrorContains(t, err, "the exit is KVM_EXIT_IO, not KVM_EXIT_MMIO")

	require.Equal(t, ExitIO, g.run(t))
	io, err = d.IO()
	require.NoError(t, err)
	require.Equal(t, IO{Size: 2, Port: 0x3f8, Count: 1, Data: io.Data}, io)
	require.Equal(t, 2, cap(io.Data), "an answer must not reach past its field")
	copy(io.Data, []byte{0xcd, 0xab})

	require.Equal(t, ExitIO, g.run(t))
	io, err = d.IO()
	require.NoError(t, err)
	require.Equal(t, IO{Out: true, Size: 2, Port: 0x1234, Count: 1, Data: []byte{0xcd, 0xab}}, io)

	require.Equal(t, ExitHLT, g.run(t))
}

func TestRunMMIO(t *testing.T) {
	g := newGuest(t, 0, []byte{
		0xb8, 0xff, 0xff, // mov ax, 0xffff
		0x8e, 0xd8, // mov ds, ax
		0xb0, 0x5a, // mov al, 0x5a
		0xa2, 0x20, 0x00, // mov [0x20], al        gpa 0x100010
		0xa0, 0x30, 0x00, // mov al, [0x30]        gpa 0x100020
		0xe6, 0x80, // out 0x80, al
		0xf4, // hlt
	})
	d := g.vcpu.RunData()
	require.Equal(t, ExitMMIO, g.run(t))
	m, err := d.MMIO()
	require.NoError(t, err)
	require.Equal(t, MMIO{Addr: 0x100010, Write: true, Data: []byte{0x5a}}, m)

	require.Equal(t, ExitMMIO, g.run(t))
	m, err = d.MMIO()
	require.NoError(t, err)
	require.Equal(t, MMIO{Addr: 0x100020, Data: m.Data}, m)
	require.Len(t, m.Data, 1)
	m.Data[0] = 0x77

	require.Equal(t, ExitIO, g.run(t))
	io, err := d.IO()
	require.NoError(t, err)
	require.Equal(t, []byte{0x77}, io.Data)
	require.Equal(t, ExitHLT, g.run(t))
}

// A vCPU in the guest must come back with EINTR at a signal, and every later
// Run at once while immediate_exit stands, until it is taken back.
func TestRunReturnsEINTR(t *testing.T) {
	g := newGuest(t, 0, []byte{
		0xff, 0x06, 0x00, 0x20, // again: inc word [0x2000]
		0x75, 0xfa, // jnz again
		0xe6, 0x80, // out 0x80, al
		0xeb, 0xf6, // jmp again
	})
	caught := make(chan os.Signal, 1)
	signal.Notify(caught, unix.SIGUSR1)
	defer signal.Stop(caught)

	thread := make(chan int, 1)
	ended := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		thread <- unix.Gettid()
		for {
			if err := g.vcpu.Run(); err != nil && g.vcpu.RunData().ImmediateExit() {
				ended <- err
				return
			}
		}
	}()
	tid := <-thread
	counter := (*uint32)(unsafe.Pointer(&g.mem[0x2000]))
	eventually(t, "the guest counts", func() bool { return atomic.LoadUint32(counter) > 10 })
	g.vcpu.SetImmediateExit(true)
	require.NoError(t, unix.Tgkill(unix.Getpid(), tid, unix.SIGUSR1))
	require.True(t, <-ended == error(unix.EINTR), "bare EINTR")

	for range 3 {
		require.True(t, g.vcpu.Run() == error(unix.EINTR))
	}
	g.vcpu.SetImmediateExit(false)
	require.False(t, g.vcpu.RunData().ImmediateExit())
	require.Equal(t, ExitIO, g.run(t), "the guest goes on")
}

// immediate_exit finishes a port input without going on in the guest.
func TestImmediateExitCompletesIO(t *testing.T) {
	g := newGuest(t, 0, []byte{
		0xe4, 0x60, // in al, 0x60
		0xf4, // hlt
	})
	require.Equal(t, ExitIO, g.run(t))
	io, err := g.vcpu.RunData().IO()
	require.NoError(t, err)
	io.Data[0] = 0x42
	g.vcpu.SetImmediateExit(true)
	require.ErrorIs(t, g.vcpu.Run(), unix.EINTR)
	regs, err := g.vcpu.Regs()
	require.NoError(t, err)
	require.EqualValues(t, 0x42, regs.RAX&0xff)
	require.EqualValues(t, guestEntry+2, regs.RIP)
}

func TestInterruptWindow(t *testing.T) {
	g := newGuest(t, 0, []byte{
		0xfb,                   // sti
		0xff, 0x06, 0x00, 0x20, // again: inc word [0x2000]
		0xeb, 0xfa, // jmp again
	})
	// Vector 0x20 leads to a handler that halts.
	copy(g.mem[0x20*4:], []byte{0x00, 0x30, 0x00, 0x00})
	g.mem[0x3000] = 0xf4
	require.NoError(t, g.vcpu.SetRegs(&Regs{RIP: guestEntry, RSP: 0x8000, RFLAGS: 2}))
	d := g.vcpu.RunData()
	d.RequestInterruptWindow(true)
	require.Equal(t, ExitIRQWindowOpen, g.run(t))
	require.True(t, d.ReadyForInjection())
	require.True(t, d.InterruptsEnabled())
	d.RequestInterruptWindow(false)
	require.NoError(t, g.vcpu.Interrupt(0x20))
	require.Equal(t, ExitHLT, g.run(t))
	regs, err := g.vcpu.Regs()
	require.NoError(t, err)
	require.EqualValues(t, 0x3001, regs.RIP)
}

func TestSingleStep(t *testing.T) {
	g := newGuest(t, 0, []byte{0x90, 0x90, 0xf4}) // nop, nop, hlt
	require.NoError(t, g.vcpu.SetGuestDebug(&GuestDebug{Control: GuestDebugEnable | GuestDebugSingleStep}))
	require.Equal(t, ExitDebug, g.run(t))
	d, err := g.vcpu.RunData().Debug()
	require.NoError(t, err)
	require.EqualValues(t, 1, d.Exception)
	require.EqualValues(t, guestEntry+1, d.PC)
	require.NoError(t, g.vcpu.SetGuestDebug(&GuestDebug{}))
	require.Equal(t, ExitHLT, g.run(t))
}

func TestRunDoesNotAllocate(t *testing.T) {
	g := newGuest(t, 0, []byte{
		0xe6, 0x80, // again: out 0x80, al
		0xeb, 0xfc, // jmp again
	})
	d := g.vcpu.RunData()
	var port int
	require.Zero(t, testing.AllocsPerRun(200, func() {
		if g.vcpu.Run() == nil && d.ExitReason() == ExitIO {
			if io, err := d.IO(); err == nil {
				port = int(io.Port) + len(io.Data)
			}
		}
	}))
	require.Equal(t, 0x81, port)
	g.vcpu.SetImmediateExit(true)
	require.Zero(t, testing.AllocsPerRun(200, func() { _ = g.vcpu.Run() }), "EINTR")
}

func BenchmarkRunPIO(b *testing.B) {
	g := newGuest(b, 0, []byte{
		0xe6, 0x80, // again: out 0x80, al
		0xeb, 0xfc, // jmp again
	})
	d := g.vcpu.RunData()
	b.ReportAllocs()
	for b.Loop() {
		if g.vcpu.Run() != nil {
			continue
		}
		if _, err := d.IO(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeMMIO(b *testing.B) {
	d := fakeRun(4096)
	d.run.ExitReason = ExitMMIO
	payload[mmioExit](d).Len = 4
	b.ReportAllocs()
	for b.Loop() {
		if m, err := d.MMIO(); err != nil || len(m.Data) != 4 {
			b.Fatal(err)
		}
	}
}
