package vmm

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
)

// ringMachine runs a guest whose writes are followed by rings, and has the
// log on.
func ringMachine(t *testing.T) (*Machine, *console) {
	cfg := metronomeConfig("fill=16 ws=8 rate=20000 beat=20")
	cfg.Machine.Tracker = TrackerRing
	m, out := start(t, cfg)
	require.NoError(t, m.mem.startLog())
	t.Cleanup(func() { require.NoError(t, m.mem.stopLog()) })
	return m, out
}

// dirtyAll asks the tracker alone, and clears what it said.
func dirtyAll(t *testing.T, m *Machine) []uint64 {
	t.Helper()
	b := make([]uint64, m.mem.words())
	require.NoError(t, m.mem.tracker.dirty(b))
	require.NoError(t, m.mem.tracker.clear(list(b)))
	return b
}

// Pages of a reset that may have been cut short stay dirty, cleared or not,
// until they come again with a reset that was whole.
func TestRingPagesInDoubt(t *testing.T) {
	m, out := ringMachine(t)
	ring := m.mem.ring()
	whole := ring.resetRings
	resets := map[string]func() (int, bool, error){
		"cut": func() (int, bool, error) {
			n, _, err := whole()
			return n, true, err
		},
		"fewer than harvested": func() func() (int, bool, error) {
			held := 0 // told one by one
			return func() (int, bool, error) {
				n, cut, err := whole()
				held += n
				if held == 0 {
					return 0, cut, err
				}
				held--
				return 1, cut, err
			}
		}(),
	}
	for name, reset := range resets {
		t.Run(name, func(t *testing.T) {
			ring.resetRings = reset
			lastBeat(t, out, 2)
			require.NoError(t, m.Pause(context.Background()))
			doubtful := dirtyAll(t, m)
			require.NotZero(t, count(doubtful))
			for range 2 {
				require.Equal(t, doubtful, dirtyAll(t, m), "nothing is written, all is in doubt")
			}
			ring.resetRings = whole
			require.NoError(t, m.Resume())
			lastBeat(t, out, 4)
			require.NoError(t, m.Pause(context.Background()))
			dirtyAll(t, m)
			left := dirtyAll(t, m)
			require.Less(t, count(left), count(doubtful), "what came again is in doubt no more")
			for i := range left {
				require.Zero(t, left[i]&^doubtful[i])
			}
			require.NoError(t, m.mem.stopLog())
			require.NoError(t, m.mem.startLog())
			require.Zero(t, count(dirtyAll(t, m)), "a new start protects all memory")
			require.NoError(t, m.Resume())
		})
	}
}

// A reset that fails is an error, and what was harvested is dirty all the same.
// Later ones make up for it.
func TestRingResetFails(t *testing.T) {
	m, out := ringMachine(t)
	ring := m.mem.ring()
	whole := ring.resetRings
	broken := errors.New("planted")
	for name, c := range map[string]struct {
		reset func() (int, bool, error)
		says  string
	}{
		"error":       {func() (int, bool, error) { return 0, true, broken }, "planted"},
		"no progress": {func() (int, bool, error) { return 0, false, nil }, `101 calls that reset none: a bug of this host's KVM; use tracker "log"`},
	} {
		t.Run(name, func(t *testing.T) {
			lastBeat(t, out, 2)
			require.NoError(t, m.Pause(context.Background()))
			ring.resetRings = c.reset
			b := make([]uint64, m.mem.words())
			require.ErrorContains(t, m.mem.tracker.dirty(b), c.says)
			harvested := len(ring.fresh)
			require.NotZero(t, harvested)
			require.Equal(t, harvested, ring.unreset)
			ring.resetRings = whole
			require.NotZero(t, count(dirtyAll(t, m)))
			require.Zero(t, ring.unreset, "the entries were reset later")
			require.NotZero(t, count(dirtyAll(t, m)), "whether in time nobody knows")
			require.NoError(t, m.Resume())
		})
	}
}
