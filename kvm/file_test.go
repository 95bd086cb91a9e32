//go:build linux && amd64

package kvm

import (
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestOpenErrors(t *testing.T) {
	_, err := open(filepath.Join(t.TempDir(), "kvm"))
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.ErrorContains(t, err, "load kvm_intel or kvm_amd")
	require.ErrorIs(t, openError(devicePath, unix.EACCES), fs.ErrPermission)
	require.EqualError(t, openError(devicePath, unix.EACCES), "kvm: open /dev/kvm: permission denied; "+
		"join the group that owns the device (usually: usermod -aG kvm, then log in again) or run as root")
	require.ErrorContains(t, openError(devicePath, unix.ENODEV), "no KVM module answers")
	require.ErrorContains(t, openError(devicePath, unix.EMFILE), "dmesg")
	_, err = open(os.DevNull)
	require.ErrorIs(t, err, unix.ENOTTY)
	require.ErrorContains(t, err, "this is not the KVM device")
}

func TestCloseIsIdempotentAndFinal(t *testing.T) {
	g := newGuest(t, 0, nil)
	_, err := g.vm.CreateVCPU(0)
	require.EqualError(t, err, "kvm: KVM_CREATE_VCPU (vCPU 0) on VM: file exists")
	_, err = g.vm.CreateVCPU(-1)
	require.ErrorIs(t, err, unix.EINVAL)
	for range 2 {
		g.vcpu.Close()
		g.vm.Close()
		g.sys.Close()
	}
	g.vcpu.SetImmediateExit(true) // must not touch the unmapped page
	require.ErrorIs(t, g.vcpu.Run(), os.ErrClosed)
	_, err = g.vcpu.Regs()
	require.EqualError(t, err, "kvm: KVM_GET_REGS on vCPU 0: file already closed")
	_, err = g.vcpu.MapDirtyRing(64)
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = g.vm.CreateVCPU(1)
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = g.sys.CreateVM()
	require.ErrorIs(t, err, os.ErrClosed)
}

// The descriptor stays open until the last ioctl has left.
func TestFileClosesAfterLastUse(t *testing.T) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	require.NoError(t, err)
	isOpen := func() bool {
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		return err == nil
	}
	f := newFile("test", fd)
	closed := 0
	f.onClose = func() { closed++ }
	require.True(t, f.acquire())
	require.True(t, f.acquire())
	f.close()
	require.False(t, f.acquire())
	require.True(t, isOpen())
	f.release()
	require.True(t, isOpen())
	f.release()
	f.close()
	require.Equal(t, 1, closed)
}

// Users and closers in a race: closed exactly once, never under a user.
func TestFileCloseRace(t *testing.T) {
	for range 200 {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
		require.NoError(t, err)
		f := newFile("test", fd)
		var mu sync.Mutex
		users, closed := 0, 0
		f.onClose = func() {
			mu.Lock()
			defer mu.Unlock()
			closed++
			if users != 0 {
				t.Error("closed under a user")
			}
		}
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for f.acquire() {
					mu.Lock()
					users++
					mu.Unlock()
					runtime.Gosched()
					mu.Lock()
					users--
					mu.Unlock()
					f.release()
				}
			})
		}
		wg.Go(f.close)
		wg.Go(f.close)
		wg.Wait()
		require.Equal(t, 1, closed)
	}
}

func TestFlexStaysInside(t *testing.T) {
	b := newFlex[msrsHeader, MSREntry](3)
	require.Len(t, b.elems(3), 3)
	require.Len(t, b.elems(1000), 3, "a count from the kernel cannot reach past the buffer")
	require.Empty(t, b.elems(-1))
	require.Empty(t, newFlex[msrListHeader, uint32](0).elems(0))
	e := b.elems(3)
	e[2].Data = 7
	require.EqualValues(t, 7, b.words[len(b.words)-1])
	require.Zero(t, uintptr(unsafe.Pointer(&e[0]))%8)
}
