package sim_test

import (
	"context"
	"errors"
	"math"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/policy"
	"godwit/migration/sim"
)

// laggy delays small writes, as a network does frames that ask for an answer.
type laggy struct{ net.Conn }

const lag = time.Millisecond // one way

func (c laggy) Write(p []byte) (int, error) {
	if len(p) < 1024 {
		time.Sleep(lag)
	}
	return c.Conn.Write(p)
}

// What the made-up machine's steps cost.
var stepCosts = map[string]time.Duration{"Pause": 4 * time.Millisecond, "SaveState": 3 * time.Millisecond,
	"Rehearse": 5 * time.Millisecond, "LoadState": 5 * time.Millisecond}

const (
	pageRate  = 10_000    // pages that its guest writes each second
	linkSpeed = 100 << 20 // bytes per second
)

// movesInNoTime moves a guest of known habits in a bubble of its own time, in
// which only what sleeps takes any.
func movesInNoTime(t *testing.T, stop string) (rep *migration.Report) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 8000)
		for i := range uint64(8000) {
			r.put(i, i+1)
		}
		cost := func(m string) { time.Sleep(stepCosts[m]) }
		r.src.Hook(cost)
		r.host.Hook(cost)
		r.send.Bandwidth, r.send.Silence, r.recv.Silence = linkSpeed, time.Hour, time.Hour
		var err error
		r.send.Policies.Stop, err = policy.Stops.Parse(stop)
		require.NoError(t, err)

		dial, accept := pipes(func(c net.Conn) net.Conn { return laggy{c} })
		done := make(chan struct{})
		var guest sync.WaitGroup
		guest.Go(func() {
			for i := uint64(0); ; i++ {
				select {
				case <-done:
					return
				case <-time.After(time.Second / pageRate):
					r.put(i%8000, i)
				}
			}
		})
		var res result
		var ends sync.WaitGroup
		ends.Go(func() {
			res.target, res.received, res.recvErr = migration.Receive(t.Context(), accept, r.host.Build, r.recv)
		})
		res.sent, res.sendErr = migration.Send(t.Context(), r.src, dial, r.send)
		ends.Wait()
		close(done)
		guest.Wait()
		r.moved(res)
		rep = res.sent
	})
	return rep
}

// The promise is kept, where the rule that counts pages alone misses the limit.
func TestMeasuredKeepsItsPromise(t *testing.T) {
	limit := float64(migration.DefaultDowntimeLimit / time.Millisecond)
	plain := movesInNoTime(t, "last-sync")
	require.Nil(t, plain.Promise)
	rep := movesInNoTime(t, "measured")
	p, last := rep.Promise, rep.Rounds[len(rep.Rounds)-1]
	require.NotNil(t, p)
	t.Logf("promised %+v; took %.2f ms, %+v, %d pages; last-sync %.2f ms", *p, rep.DowntimeMS, rep.DowntimePhases, last.SentPages, plain.DowntimeMS)
	require.InDelta(t, p.DowntimeMS, p.PauseMS+p.PagesMS+p.StateMS+p.ResumeMS, 1e-6)
	require.LessOrEqual(t, p.DowntimeMS, limit)
	require.LessOrEqual(t, rep.DowntimeMS, limit)
	require.InDelta(t, p.DowntimeMS, rep.DowntimeMS, limit/4)
	require.InDelta(t, 4, p.PauseMS, 0.1)
	require.InDelta(t, rep.DowntimePhases.PauseMS, p.PauseMS, 0.1)
	require.InDelta(t, rep.DowntimePhases.StateMS, p.StateMS, 1.5)
	require.InDelta(t, rep.DowntimePhases.ResumeMS, p.ResumeMS, 1)
	require.InEpsilon(t, pageRate, p.PagesPerSecond, 0.05)
	require.InEpsilon(t, last.SentPages, p.Pages, 0.05)
	require.Greater(t, rep.Rounds[len(rep.Rounds)-2].N, plain.Rounds[len(plain.Rounds)-2].N, "the pages alone fitted earlier")

	// Where the limit cannot be met the report says what was expected.
	rep = movesInNoTime(t, "measured,rounds=1")
	require.Len(t, rep.Rounds, 2)
	require.Greater(t, rep.Promise.DowntimeMS, limit)
	require.InEpsilon(t, rep.DowntimeMS, rep.Promise.DowntimeMS, 0.25)
}

// measuring is a rig with a rule that measures, and a little memory.
func measuring(t *testing.T) *rig {
	r := newRig(t, 600)
	for i := range uint64(600) {
		r.put(i, i)
	}
	var err error
	r.send.Policies.Stop, err = policy.Stops.Parse("measured,sample=1")
	require.NoError(t, err)
	return r
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// The pause is rehearsed once a migration, before the one that counts, and the
// samples find what the guest writes between two looks.
func TestRehearsal(t *testing.T) {
	r := measuring(t)
	r.send.DowntimeLimit = time.Minute // so that no machine is too slow
	looks := uint64(0)
	r.src.Hook(func(m string) {
		if m == "Dirty" {
			r.put(looks, 9)
			looks++
		}
	})
	res := r.migrate(context.Background())
	r.moved(res)
	calls := r.src.Calls()
	require.Equal(t, []string{"Pause", "SaveState", "Resume", "Dirty", "Dirty", "Pause", "Dirty", "SaveState", "Release", "StopDirtyLog"},
		calls[slices.Index(calls, "Pause"):])
	require.Equal(t, 1, count(r.host.Calls(), "Rehearse"))
	p := res.sent.Promise
	require.NotNil(t, p)
	require.Greater(t, p.PagesPerSecond, 0.0)
	require.LessOrEqual(t, p.PagesPerSecond, 1000.0, "one page in a millisecond or longer")
	require.GreaterOrEqual(t, p.Pages, uint64(3))

	r = measuring(t) // a guest that nothing can make fit is measured in the last round as well
	r.send.DowntimeLimit = 1
	r.send.Policies.Stop = policy.Measured{MaxRounds: 4, Watch: time.Millisecond}
	n := uint64(0)
	r.src.Hook(func(m string) {
		if m == "Dirty" {
			r.put(n%600, n)
			n++
		}
	})
	res = r.migrate(context.Background())
	r.moved(res)
	require.Len(t, res.sent.Rounds, 5)
	require.NotNil(t, res.sent.Promise)
	require.Equal(t, 2, count(r.src.Calls(), "Pause"))
}

// ageless is a target that says it needs for ever.
type ageless struct{ *sim.Target }

func (ageless) Rehearse() (time.Duration, error) { return math.MaxInt64, nil }

// A destination that cannot rehearse, or says that it needs ages, is moved to all
// the same.
func TestWhatTheDestinationSays(t *testing.T) {
	r := measuring(t)
	r.send.DowntimeLimit = time.Minute
	r.host.Fail("Rehearse", errors.New("boom"))
	res := r.migrate(context.Background())
	r.moved(res)
	require.NotNil(t, res.sent.Promise)
	require.Less(t, res.sent.Promise.ResumeMS, 60e3)

	r = measuring(t)
	r.send.DowntimeLimit = time.Minute
	r.send.Policies.Stop = policy.Measured{MaxRounds: 5, Watch: time.Millisecond}
	looks := uint64(0)
	r.src.Hook(func(m string) {
		if m == "Dirty" {
			r.put(looks%600, looks)
			looks++
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _, res.recvErr = migration.Receive(context.Background(), migration.AcceptFrom(r.ln), func(ctx context.Context, offer migration.Offer) (migration.Target, error) {
			_, err := r.host.Build(ctx, offer)
			return ageless{r.host.Target()}, err
		}, r.recv)
	}()
	res.sent, res.sendErr = migration.Send(context.Background(), r.src, r.dial, r.send)
	<-done
	r.moved(res)
	require.InDelta(t, 600e3, res.sent.Promise.ResumeMS, 60e3, "no longer than the longest lease")
	require.Len(t, res.sent.Rounds, 6, "it could never be promised")
	require.Equal(t, 2, count(r.src.Calls(), "Pause"), "five samples, one rehearsal, and the pause itself")
}

// Whatever fails in a rehearsal, the source runs on.
func TestRehearsalFails(t *testing.T) {
	boom := errors.New("boom")
	for _, m := range []string{"Pause", "SaveState", "Resume"} {
		t.Run(m, func(t *testing.T) {
			r := measuring(t)
			before := goroutines()
			r.src.Fail(m, boom)
			r.src.Hook(func(name string) {
				if name == "StopDirtyLog" && m == "Resume" {
					r.src.Fail(m, nil) // the undo may succeed where the rehearsal failed
				}
			})
			res := r.migrate(context.Background())
			require.ErrorIs(t, res.sendErr, boom)
			require.ErrorContains(t, res.sendErr, "rehearse the pause")
			require.Error(t, res.recvErr)
			require.Nil(t, res.sent.Promise)
			require.NoError(t, r.world.Check())
			require.NoError(t, r.src.Unharmed())
			require.Equal(t, []string{"source"}, r.world.Running())
			noLeak(t, before)
			r.src.Hook(nil)
			r.src.Fail(m, nil)
			r.moved(r.migrate(context.Background())) // a second attempt succeeds
		})
	}
	t.Run("Resume for good", func(t *testing.T) {
		r := measuring(t)
		r.src.Fail("Resume", boom)
		res := r.migrate(context.Background())
		require.ErrorIs(t, res.sendErr, migration.ErrStaysPaused)
		require.Empty(t, r.world.Running())
		require.NoError(t, r.world.Check())
	})
}

func TestGuestEndsInRehearsal(t *testing.T) {
	for _, at := range []string{"Pause", "SaveState", "Resume"} {
		t.Run(at, func(t *testing.T) {
			r := measuring(t)
			var once sync.Once
			r.src.Hook(func(m string) {
				if m == at {
					once.Do(func() {
						r.src.Fail(at, errors.New("not possible in this state"))
						r.src.End(errors.New("triple fault"))
					})
				}
			})
			res := r.migrate(context.Background())
			require.ErrorIs(t, res.sendErr, migration.ErrGuestEnded)
			require.ErrorContains(t, res.sendErr, "triple fault")
			require.NotErrorIs(t, res.sendErr, migration.ErrStaysPaused)
			require.Error(t, res.recvErr)
			require.NoError(t, r.world.Check())
		})
	}
}

// A cancel ends a sample early, and a rehearsal leaves the guest running.
func TestCancelInSample(t *testing.T) {
	for _, at := range []string{"Pause", "SaveState", "Resume", "Dirty"} {
		t.Run(at, func(t *testing.T) {
			r := measuring(t)
			r.send.Policies.Stop = policy.Measured{MaxRounds: 30, Watch: time.Second}
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			r.src.Hook(func(m string) {
				if m == at {
					cancel()
				}
			})
			var recvErr error
			done := make(chan struct{})
			go func() {
				defer close(done)
				_, _, recvErr = migration.Receive(context.Background(), migration.AcceptFrom(r.ln), r.host.Build, r.recv)
			}()
			_, err := migration.Send(ctx, r.src, r.dial, r.send)
			<-done
			require.ErrorIs(t, err, migration.ErrCancelled)
			require.ErrorIs(t, recvErr, migration.ErrCancelled)
			require.NoError(t, r.world.Check())
			require.NoError(t, r.src.Unharmed())
		})
	}
}

// A guest that takes long to pause, as one does whose console nobody reads,
// stands still for a bounded time, and is then not paused before it must be.
func TestSlowRehearsal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := measuring(t)
		r.send.Policies.Stop = policy.Measured{MaxRounds: 6, Watch: time.Millisecond}
		pauses := 0
		var began, longest time.Duration
		epoch := time.Now()
		n := uint64(0)
		s := &slowSource{Machine: r.src, world: r.world, pause: func(ctx context.Context) error {
			if pauses++; pauses > 3 {
				return nil // somebody reads it at last
			}
			began = time.Since(epoch)
			<-ctx.Done()
			longest = max(longest, time.Since(epoch)-began)
			return context.Cause(ctx)
		}}
		r.src.Hook(func(m string) {
			if m == "Dirty" {
				r.put(n%600, n)
				n++
			}
		})
		dial, accept := pipes(plain)
		done := make(chan struct{})
		var recvErr error
		go func() {
			defer close(done)
			_, _, recvErr = migration.Receive(t.Context(), accept, r.host.Build, r.recv)
		}()
		rep, err := migration.Send(t.Context(), s, dial, r.send)
		<-done
		require.NoError(t, err)
		require.NoError(t, recvErr)
		require.NoError(t, r.world.Check())
		require.Equal(t, 4, pauses, "three rehearsals and the pause itself")
		require.Equal(t, 50*time.Millisecond, longest)
		require.Len(t, rep.Rounds, 7, "no promise could be made before the last round")
		require.GreaterOrEqual(t, rep.Promise.PauseMS, 50.0)
		require.NoError(t, r.host.Target().Close())
	})
}

// slowSource is a machine with another Pause before its own.
type slowSource struct {
	*sim.Machine
	world *sim.World
	pause func(context.Context) error
}

func (s *slowSource) Pause(ctx context.Context) error {
	if err := s.pause(ctx); err != nil {
		return err
	}
	return s.Machine.Pause(ctx)
}

// Resume after a pause that failed finds the machine running, as vmm's does.
func (s *slowSource) Resume() error {
	if slices.Contains(s.world.Running(), "source") {
		return nil
	}
	return s.Machine.Resume()
}
