package virtio

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func newKick(t *testing.T) *Kick {
	t.Helper()
	k, err := NewKick()
	require.NoError(t, err)
	t.Cleanup(func() { _ = k.Close() })
	return k
}

// TestKickIsKept: a signal before the wait is not lost, and several are one.
func TestKickIsKept(t *testing.T) {
	k := newKick(t)
	for range 3 {
		require.NoError(t, k.Signal())
	}
	require.NoError(t, k.Wait())
	woken := make(chan error)
	go func() { woken <- k.Wait() }()
	require.NoError(t, k.Signal())
	require.NoError(t, <-woken)
	go func() { woken <- k.Wait() }()
	require.NoError(t, k.Close())
	require.Error(t, <-woken)
	require.Error(t, k.Signal())
}

// TestPauseUnderLoad pauses workers that never run out of work. Nothing may be
// served between Pause and Resume.
func TestPauseUnderLoad(t *testing.T) {
	var w Workers
	var served atomic.Uint64
	for range 3 {
		w.Start(newKick(t), func() {
			for !w.Yield() {
				served.Add(1)
			}
		})
	}
	for range 100 {
		w.Pause()
		w.Pause()
		before := served.Load()
		require.Equal(t, before, served.Load())
		w.Resume()
	}
	w.Stop()
	before := served.Load()
	require.Equal(t, before, served.Load())
}

// TestStartPaused: what is started during a pause waits for Resume, once it
// served whatever was there.
func TestStartPaused(t *testing.T) {
	var w Workers
	w.Pause() // no workers yet
	served := make(chan struct{}, 10)
	k := newKick(t)
	w.Start(k, func() { served <- struct{}{} })
	require.NoError(t, k.Signal())
	w.Pause() // returns when the worker is parked
	require.Empty(t, served)
	w.Resume()
	<-served
	require.NoError(t, k.Signal())
	<-served
	w.Stop()
}

// TestStopFromEveryState and start again.
func TestStopFromEveryState(t *testing.T) {
	var w Workers
	w.Stop()
	k := newKick(t)
	for _, paused := range []bool{false, true, false} {
		if paused {
			w.Pause()
		}
		served := make(chan struct{}, 100)
		w.Start(k, func() { served <- struct{}{} })
		if !paused {
			<-served
		}
		w.Stop()
		if paused {
			require.Empty(t, served)
			w.Resume()
		}
	}
}

// TestLostKick: a worker whose eventfd was closed does not hang anybody.
func TestLostKick(t *testing.T) {
	for range 20 {
		var w Workers
		k := newKick(t)
		served := make(chan struct{}, 10)
		w.Start(k, func() { served <- struct{}{} })
		<-served
		require.NoError(t, k.Close())
		w.Pause()
		w.Resume()
		w.Pause()
		w.Stop()
	}
}

// TestKickAfterResume: kicks during a pause are served after it.
func TestKickAfterResume(t *testing.T) {
	var w Workers
	var pending, served atomic.Int64
	k := newKick(t)
	w.Start(k, func() {
		for pending.Load() > 0 && !w.Yield() {
			pending.Add(-1)
			served.Add(1)
		}
	})
	for i := range int64(50) {
		w.Pause()
		pending.Add(1)
		require.NoError(t, k.Signal())
		require.Equal(t, i, served.Load())
		w.Resume()
		require.Eventually(t, func() bool { return served.Load() == i+1 }, lostKick, 50_000)
	}
	w.Stop()
}

// lostKick is when the test gives a kick up for lost: never waited for when all
// is well.
const lostKick = 60_000_000_000

// holder is a Task that holds something between two calls of Serve.
type holder struct {
	kick  *Kick
	holds atomic.Bool
	parks atomic.Int64
}

func (h *holder) Serve() { h.holds.Store(true) }

func (h *holder) Wait() error {
	_, err := h.kick.Await(-1, 0)
	return err
}

func (h *holder) Park() {
	h.holds.Store(false)
	h.parks.Add(1)
}

// TestTaskParks: nothing is held during a pause and after the end, whether the
// worker slept or was about to.
func TestTaskParks(t *testing.T) {
	var w Workers
	h := &holder{kick: newKick(t)}
	w.StartTask(h.kick, h)
	for range 200 {
		w.Pause()
		require.False(t, h.holds.Load())
		w.Resume()
		require.Eventually(t, h.holds.Load, lostKick, 10_000)
		require.NoError(t, h.kick.Signal())
	}
	w.Stop()
	require.False(t, h.holds.Load())
	require.GreaterOrEqual(t, h.parks.Load(), int64(201))
}

// TestAwaitTwoSources: a kick and a second descriptor wake alike; only the kick is
// taken.
func TestAwaitTwoSources(t *testing.T) {
	k, other := newKick(t), newKick(t)
	require.NoError(t, k.Signal())
	kicked, err := k.Await(other.Fd(), 1)
	require.NoError(t, err)
	require.True(t, kicked)
	require.NoError(t, other.Signal())
	for range 2 {
		kicked, err = k.Await(other.Fd(), 1)
		require.NoError(t, err)
		require.False(t, kicked)
	}
	require.NoError(t, k.Signal())
	kicked, err = k.Await(-1, 0)
	require.NoError(t, err)
	require.True(t, kicked)
	require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = k.Await(other.Fd(), 1) }))
}
