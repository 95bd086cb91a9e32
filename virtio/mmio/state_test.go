package mmio

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
	"godwit/devices/state/statetest"
	"godwit/virtio/internal/drivertest"
)

// moveAnywhere saves a transport in whatever state it is, restores it over the
// same memory, and wants the same again.
func moveAnywhere(t *testing.T, b *bench) *bench {
	t.Helper()
	require.NoError(t, b.tr.Pause())
	data := statetest.Data(t, b.tr)
	next := newBenchOn(t, b.mem, len(b.dev.sizes))
	d := state.NewDecoder(data)
	require.NoError(t, next.tr.Restore(1, d))
	require.NoError(t, d.Finish())
	require.Equal(t, data, statetest.Data(t, next.tr))
	return next
}

// TestMoveInEveryStatus: nothing is activated before its time, and Pause works
// on a device that was never started.
func TestMoveInEveryStatus(t *testing.T) {
	for _, status := range []uint32{0, 1, 3, 11, 15, 3 | statusFailed} {
		b := newBench(t, 1)
		for _, s := range []uint32{1, 3, 11, 15} {
			if s <= status&15 {
				b.acceptVersion1()
				b.Set(regStatus, s)
			}
		}
		if status != 0 {
			b.Set(regStatus, status)
		}
		require.Equal(t, status, b.Get(regStatus))
		next := moveAnywhere(t, b)
		require.Equal(t, status, next.Get(regStatus))
		require.NoError(t, next.tr.Resume())
		want := []string{"pause", "resume"}
		if status == 15 {
			want = []string{"pause", "activate", "resume"}
		}
		require.Equal(t, want, next.dev.calls)
	}
}

// TestEdgeAgain: an edge that nobody has seen is sent again, with no request
// there to cause another.
func TestEdgeAgain(t *testing.T) {
	b := newBench(t, 1)
	b.start(t)
	require.NoError(t, b.tr.Pause())
	require.NoError(t, b.tr.Resume())
	require.Zero(t, b.irq.Count(), "nothing was pending")
	b.tr.ConfigChanged()
	require.NoError(t, b.tr.Pause())
	next := moveAnywhere(t, b)
	require.NoError(t, next.tr.Resume())
	require.Equal(t, 1, next.irq.Count())
	require.EqualValues(t, interruptConfig, next.Acknowledge())
}

// TestNothingIsLost: a kick and an edge that nobody has seen when the guest stops.
func TestNothingIsLost(t *testing.T) {
	b := newBench(t, 1)
	rings := b.start(t)
	require.NoError(t, b.tr.Pause())
	head := rings[0].Add([]drivertest.Seg{{GPA: 0x80000, Len: 1}}, false, 0)
	b.tr.raise(interruptConfig)
	require.NoError(t, b.tr.Pause())
	next := moveAnywhere(t, b)
	require.Zero(t, next.irq.Count())
	require.NoError(t, next.tr.Resume())
	next.irq.Wait(t)
	require.NotZero(t, next.Acknowledge()&interruptConfig)
	got, _ := rings[0].WaitUsed(next.irq)
	require.Equal(t, head, got)
}

// TestBrokenStaysBroken: a broken queue does not come back to life by a move.
func TestBrokenStaysBroken(t *testing.T) {
	b := newBench(t, 1)
	rings := b.start(t)
	rings[0].Offer(0xffff)
	b.Kick(0)
	b.irq.Wait(t)
	next := moveAnywhere(t, b)
	require.True(t, next.dev.last.Queues[0].Stopped())
	require.NotZero(t, next.Get(regStatus)&statusNeedsReset)
}

func TestSaveWantsPause(t *testing.T) {
	b := newBench(t, 1)
	require.ErrorContains(t, b.tr.Save(&state.Encoder{}), "not paused")
}

func TestRestoreRefuses(t *testing.T) {
	b := newBench(t, 1)
	b.start(t)
	require.NoError(t, b.tr.Pause())
	good := statetest.Data(t, b.tr)
	for _, c := range []struct {
		name string
		at   int
		to   byte
		want string
	}{
		{"type", 0, 1, "virtio device of type 1"},
		{"status", 4, 4, "no driver can reach"},
		{"interrupt", 8, 4, "interrupt status"},
		{"feature not offered", 24, 0xff, "not offered"},
		{"version 1 missing", 28, 0, "VIRTIO_F_VERSION_1"},
		{"queues", 36, 2, "2 queues, not 1"},
		{"queue size", 38, 15, "not a power of two"},
		{"queue far away", 47, 0xff, "not guest RAM"},
		{"ready is a bool", 66, 2, "boolean"},
		{"ready too early", 4, 3, "before features were agreed"},
	} {
		data := append([]byte{}, good...)
		data[c.at] = c.to
		err := newBench(t, 1).tr.Restore(1, state.NewDecoder(data))
		require.ErrorContains(t, err, c.want, c.name)
	}
	require.ErrorContains(t, newBench(t, 1).tr.Restore(2, state.NewDecoder(good)), "version 2")
	require.ErrorContains(t, b.tr.Restore(1, state.NewDecoder(good)), "not a new device")
	failing := newBenchOn(t, b.mem, 1)
	failing.dev.failNext = errFake
	require.ErrorIs(t, failing.tr.Restore(1, state.NewDecoder(good)), errFake)
}

func TestState(t *testing.T) {
	b := newBench(t, 2)
	rings := b.start(t)
	for range 3 {
		rings[1].Add([]drivertest.Seg{{GPA: 0x80000, Len: 1}}, false, 0)
		b.Kick(1)
		rings[1].WaitUsed(b.irq)
	}
	b.Acknowledge()
	b.Set(regConfig, 0x5678)
	b.tr.ConfigChanged()
	require.NoError(t, b.tr.Pause())
	statetest.Golden(t, b.tr, func() state.Saver { return newBenchOn(t, b.mem, 2).tr })
}
