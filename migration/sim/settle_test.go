package sim_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/policy"
	"godwit/migration/sim"
)

// settling is a machine that takes two seconds to settle, in which the guest
// writes, and whose Pause lets it run on for the first few times.
type settling struct {
	slowSource
	settled int
	unready int // how often Pause is not ready
	settle  func(ctx context.Context) error
}

var _ migration.Settler = (*settling)(nil)

func (s *settling) Settle(ctx context.Context) error {
	s.settled++
	return s.settle(ctx)
}

func newSettling(r *rig, unready int) *settling {
	s := &settling{unready: unready}
	s.slowSource = slowSource{Machine: r.src, world: r.world, pause: func(context.Context) error {
		if s.unready == 0 {
			return nil
		}
		s.unready--
		time.Sleep(100 * time.Millisecond)
		return fmt.Errorf("the reader is slow: %w", migration.ErrUnsettled)
	}}
	s.settle = func(ctx context.Context) error {
		select {
		case <-time.After(2 * time.Second):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		for i := range uint64(500) {
			r.put(i, uint64(s.settled)<<32|i)
		}
		return nil
	}
	return s
}

// What a machine has to wait for while its guest runs is no downtime. What the
// guest writes meanwhile goes in a round before the pause: the first time, and
// whenever a pause let it run on.
func TestSettlingIsNoDowntime(t *testing.T) {
	measured := policy.Measured{MaxRounds: 10, Watch: time.Millisecond}
	for name, c := range map[string]struct {
		mode     migration.Mode
		stop     policy.Stop
		unready  int
		downtime float64 // ms
		settled  int
		last     uint64 // pages of the last round
	}{
		"pre-copy":              {migration.PreCopy, policy.LastSync{MaxRounds: 10}, 0, 0, 2, 500},
		"pre-copy, held twice":  {migration.PreCopy, policy.LastSync{MaxRounds: 10}, 2, 200, 4, 0},
		"measured":              {migration.PreCopy, measured, 0, 0, 5, 500},
		"measured, held once":   {migration.PreCopy, measured, 1, 100, 6, 0},
		"stop and copy":         {migration.StopAndCopy, nil, 0, 0, 1, 600},
		"stop and copy, held 3": {migration.StopAndCopy, nil, 3, 300, 4, 600},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 600)
				for i := range uint64(600) {
					r.put(i, i+1)
				}
				r.send.Mode, r.send.Policies.Stop, r.send.Verify = c.mode, c.stop, true
				s := newSettling(r, c.unready)
				rep := r.moveFrom(s)
				last := rep.Rounds[len(rep.Rounds)-1]
				t.Logf("downtime %.0f ms, settled %d times, last round %d pages of %d rounds", rep.DowntimeMS, s.settled, last.SentPages, len(rep.Rounds))
				require.Equal(t, c.downtime, rep.DowntimeMS)
				require.Equal(t, c.downtime, rep.DowntimePhases.PauseMS)
				require.Equal(t, c.settled, s.settled)
				require.Equal(t, c.last, last.SentPages)
				require.GreaterOrEqual(t, rep.TotalMS, 2000.0)
				require.Zero(t, s.unready)
			})
		})
	}
}

// moveFrom moves s to the rig's host, in a bubble.
func (r *rig) moveFrom(s migration.Source) *migration.Report {
	dial, accept := pipes(plain)
	done := make(chan error, 1)
	go func() {
		_, _, err := migration.Receive(r.t.Context(), accept, r.host.Build, r.recv)
		done <- err
	}()
	rep, err := migration.Send(r.t.Context(), s, dial, r.send)
	require.NoError(r.t, <-done)
	require.NoError(r.t, err)
	require.NoError(r.t, r.world.Check())
	require.NoError(r.t, r.host.Target().Close())
	return rep
}

// A machine that does not settle is not stopped, and stays whole.
func TestNeverSettles(t *testing.T) {
	for _, after := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, 600)
			r.put(1, 1)
			s := newSettling(r, after)
			fine := s.settle
			s.settle = func(ctx context.Context) error {
				if s.settled <= 2*after {
					return fine(ctx)
				}
				return errors.New("nobody reads")
			}
			dial, accept := pipes(plain)
			done := make(chan error, 1)
			go func() {
				_, _, err := migration.Receive(t.Context(), accept, r.host.Build, r.recv)
				done <- err
			}()
			_, err := migration.Send(t.Context(), s, dial, r.send)
			require.ErrorContains(t, err, "before the pause: nobody reads")
			require.Error(t, <-done)
			require.NoError(t, r.src.Unharmed())
			require.NoError(t, r.world.Check())
		})
	}
}

// A file is written once the machine has settled, too.
func TestSaveSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 600)
		r.put(1, 1)
		s := newSettling(r, 2)
		var file bytes.Buffer
		_, err := migration.Save(t.Context(), s, &file, migration.SendOptions{})
		require.NoError(t, err)
		require.Equal(t, 3, s.settled)
		host := sim.NewHost(r.world)
		_, _, err = migration.Restore(t.Context(), io.Reader(&file), host.Build, migration.ReceiveOptions{})
		require.NoError(t, err)
		require.Equal(t, r.src.Page(r.gpa(7)), host.Target().Page(r.gpa(7)))
		require.NoError(t, host.Target().Close())
	})
}
