//go:build linux && amd64

package kvm

import (
	"runtime"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Signals that come while the rings are reset end no reset early: every
// harvested page is counted and protected, so that its next write comes again.
// Linux 6.16 and later, where a pending signal ends the call, fail this without
// the block.
func TestResetDirtyRingsInAStorm(t *testing.T) {
	const entries = 1024
	g := newGuest(t, MemLogDirtyPages, writeEveryOther, withCap(CapDirtyLogRing, entries*uint64(DirtyRingEntrySize)))
	ring, err := g.vcpu.MapDirtyRing(entries)
	require.NoError(t, err)
	defer ring.Close()

	// The guest runs on a thread that gets no signals: they would keep it from
	// ever entering.
	orders, done := make(chan struct{}), make(chan int)
	tid := make(chan int)
	go func() {
		runtime.LockOSThread()
		tid <- unix.Gettid()
		for range orders {
			n, _, err := g.vm.ResetDirtyRings()
			if err != nil {
				n = -1
			}
			done <- n
		}
	}()
	target := <-tid
	var stormers sync.WaitGroup
	stop := make(chan struct{})
	stormers.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Tgkill(unix.Getpid(), target, unix.SIGURG)
			}
		}
	})
	defer func() { close(stop); stormers.Wait(); close(orders) }()
	for i := range 1000 {
		g.reset(t)
		require.Equal(t, ExitHLT, g.run(t))
		bitmap := make([]uint64, 4)
		n := 0
		for p, ok := ring.Next(); ok; p, ok = ring.Next() {
			bitmap[p.Offset/64] |= 1 << (p.Offset % 64)
			n++
		}
		requireSuperset(t, bitmap)
		orders <- struct{}{}
		require.Equal(t, n, <-done, "reset %d", i)
	}
}

// The block ends with the call, and lets through what came meanwhile.
func TestResetDirtyRingsRestoresTheMask(t *testing.T) {
	g := newGuest(t, 0, nil)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, after unix.Sigset_t
	require.NoError(t, unix.PthreadSigmask(unix.SIG_SETMASK, nil, &before))
	_, cut, err := g.vm.ResetDirtyRings()
	require.ErrorIs(t, err, unix.EINVAL, "this VM has no rings")
	require.True(t, cut, "nothing is known to be protected after an error")
	require.NoError(t, unix.PthreadSigmask(unix.SIG_SETMASK, nil, &after))
	require.Equal(t, before, after)
	g.vm.Close()
	_, _, err = g.vm.ResetDirtyRings()
	require.Error(t, err)
}
