//go:build linux && amd64

package kvm

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	guestSize  = 1 << 20
	guestEntry = 0x1000
)

// guest is a one-processor machine in real mode with 1 MiB of memory.
type guest struct {
	sys  *System
	vm   *VM
	vcpu *VCPU
	mem  []byte
}

type option func(t testing.TB, g *guest)

func withIRQChip(t testing.TB, g *guest) { require.NoError(t, g.vm.CreateIRQChip()) }

func withCap(c Cap, args ...uint64) option {
	return func(t testing.TB, g *guest) { require.NoError(t, g.vm.EnableCap(c, 0, args...)) }
}

// newGuest loads code at guestEntry. The options run before the vCPU exists.
func newGuest(t testing.TB, memFlags uint32, code []byte, opts ...option) *guest {
	t.Helper()
	g := &guest{}
	var err error
	g.sys, err = Open()
	require.NoError(t, err, "these tests need a working /dev/kvm")
	t.Cleanup(g.sys.Close)
	g.vm, err = g.sys.CreateVM()
	require.NoError(t, err)
	t.Cleanup(g.vm.Close)
	require.NoError(t, g.vm.SetTSSAddr(0xfffb_d000))
	require.NoError(t, g.vm.SetIdentityMapAddr(0xfffb_c000))
	for _, o := range opts {
		o(t, g)
	}
	g.mem, err = unix.Mmap(-1, 0, guestSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, unix.Munmap(g.mem)) })
	copy(g.mem[guestEntry:], code)
	require.NoError(t, g.vm.SetUserMemoryRegion(0, memFlags, 0, g.mem))
	g.vcpu, err = g.vm.CreateVCPU(0)
	require.NoError(t, err)
	t.Cleanup(g.vcpu.Close)
	g.reset(t)
	return g
}

// reset points the vCPU at the code again.
func (g *guest) reset(t testing.TB) {
	t.Helper()
	sregs, err := g.vcpu.Sregs()
	require.NoError(t, err)
	sregs.CS.Base, sregs.CS.Selector = 0, 0
	require.NoError(t, g.vcpu.SetSregs(&sregs))
	require.NoError(t, g.vcpu.SetRegs(&Regs{RIP: guestEntry, RFLAGS: 2}))
}

// run enters until there is an exit: signals of the Go runtime interrupt too.
func (g *guest) run(t testing.TB) ExitReason {
	t.Helper()
	for {
		switch err := g.vcpu.Run(); err {
		case nil:
			return g.vcpu.RunData().ExitReason()
		case unix.EINTR:
		default:
			require.NoError(t, err)
		}
	}
}

// eventFD makes one that reads never block on.
func eventFD(t testing.TB) int {
	t.Helper()
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

// signalled takes the count of an eventfd, 0 for none.
func signalled(t testing.TB, fd int) uint64 {
	t.Helper()
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		require.ErrorIs(t, err, unix.EAGAIN)
		return 0
	}
	return uint64(b[0])
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "still not so: %s", what)
	}
}
