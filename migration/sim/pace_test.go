package sim_test

import (
	"context"
	"errors"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/policy"
	"godwit/migration/sim"
)

// steps is a throttle that sets paces one after another, the last for good.
type steps []policy.Pace

func (s steps) Next(r policy.Round) policy.Pace { return s[min(r.Number, len(s)-1)] }

// once makes a method fail the first time it is called.
func once(m *sim.Machine, method string, err error) {
	m.Fail(method, err)
	m.Hook(func(called string) {
		if called == method {
			m.Fail(method, nil)
		}
	})
}

// busyRig is a migration of four rounds at least, whose guest writes in each.
func busyRig(t *testing.T, hook func(method string)) *rig {
	r := newRig(t, 600)
	for i := range uint64(600) {
		r.put(i, i+1)
	}
	n := uint64(0)
	r.src.Hook(func(m string) {
		if m == "Dirty" {
			if n++; n <= 3 {
				r.put(n, n)
			}
		}
		if hook != nil {
			hook(m)
		}
	})
	r.send.DowntimeLimit = 1
	return r
}

func TestCapHoldsFromTheStart(t *testing.T) {
	var r *rig
	r = busyRig(t, func(m string) {
		switch m {
		case "Touched", "Clear", "Dirty", "Pause", "SaveState", "Release":
			if p := r.src.Pace(); p != (policy.Pace{Percent: 30}) {
				t.Errorf("%s at %v", m, p)
			}
		}
	})
	r.send.Policies.Throttle = policy.Cap{Percent: 30}
	res := r.migrate(context.Background())
	r.moved(res)
	require.Equal(t, []policy.Pace{{Percent: 30}, policy.FullSpeed}, r.src.Paces(), "set once, undone once")
	require.Equal(t, 70, res.sent.ThrottleMax)
	require.Zero(t, res.sent.DirtyLimit)
}

// What the throttle wants is what the machine gets, brought into range, and the
// report says the most of it.
func TestPaces(t *testing.T) {
	limit := func(n uint64) policy.Pace { return policy.Pace{By: policy.ByDirtyLimit, PagesPerSecond: n} }
	for name, tc := range map[string]struct {
		throttle steps
		want     []policy.Pace
		taken    int
		limit    uint64
	}{
		"none":        {steps{policy.FullSpeed}, nil, 0, 0},
		"ever slower": {steps{policy.FullSpeed, {Percent: 50}, {Percent: 50}, {Percent: -7}}, []policy.Pace{{Percent: 50}, {Percent: 1}, policy.FullSpeed}, 99, 0},
		"and back":    {steps{{Percent: 20}, {Percent: 300}, {Percent: 100}}, []policy.Pace{{Percent: 20}, policy.FullSpeed, policy.FullSpeed}, 80, 0},
		"dirty limit": {steps{limit(0), limit(400), limit(200), limit(800)}, []policy.Pace{limit(400), limit(200), limit(800), policy.FullSpeed}, 0, 200},
		"both":        {steps{limit(9), {By: policy.ByCgroup, Percent: 40}}, []policy.Pace{limit(9), {By: policy.ByCgroup, Percent: 40}, policy.FullSpeed}, 60, 9},
	} {
		t.Run(name, func(t *testing.T) {
			r := busyRig(t, nil)
			var seen []policy.Pace
			r.send.OnProgress = func(p migration.Progress) {
				if q := (policy.Pace{Percent: p.Duty, PagesPerSecond: p.DirtyLimit}); !slices.Contains(seen, q) {
					seen = append(seen, q)
				}
			}
			r.send.Policies.Throttle = tc.throttle
			res := r.migrate(context.Background())
			r.moved(res)
			require.Equal(t, tc.want, r.src.Paces())
			require.Equal(t, tc.taken, res.sent.ThrottleMax)
			require.Equal(t, tc.limit, res.sent.DirtyLimit)
			for _, p := range tc.want[:max(len(tc.want)-1, 0)] {
				require.Contains(t, seen, policy.Pace{Percent: p.Share(), PagesPerSecond: p.PagesPerSecond}, "progress tells")
			}
		})
	}
}

// A throttle that the machine cannot obey is refused before anything is connected.
func TestThrottleRefused(t *testing.T) {
	r := newRig(t, 64)
	r.send.Policies.Throttle = &policy.DirtyLimit{}
	r.src.Fail("CanPace", errors.New("no ring here"))
	dialled := false
	res, err := migration.Send(t.Context(), r.src, func(ctx context.Context) (net.Conn, error) {
		dialled = true
		return nil, errors.New("nobody is there")
	}, r.send)
	require.ErrorIs(t, err, migration.ErrOptions)
	require.EqualError(t, err, "bad migration option: throttle: no ring here")
	require.Equal(t, migration.Failed, res.Status)
	require.False(t, dialled)
	require.Empty(t, r.src.Calls())
	require.NoError(t, r.src.Unharmed())
	require.NoError(t, r.world.Check())
}

// A pace that fails half-way is undone, at any point.
func TestSetPaceFails(t *testing.T) {
	boom := errors.New("boom")
	for name, tc := range map[string]struct {
		throttle steps
		nth      int // call of SetPace that fails
	}{
		"at the start":           {steps{{Percent: 50}}, 1},
		"after round 1":          {steps{policy.FullSpeed, {Percent: 50}}, 1},
		"slower":                 {steps{{Percent: 50}, {Percent: 40}}, 2},
		"back to full speed":     {steps{{Percent: 50}, policy.FullSpeed}, 2},
		"from one means to next": {steps{{Percent: 50}, {By: policy.ByDirtyLimit, PagesPerSecond: 7}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			n := 0
			var r *rig
			r = busyRig(t, func(m string) {
				// A method's failure is looked up before its hook runs: set for the next call.
				switch m {
				case "SetPace":
					n++
					if n == tc.nth {
						r.src.Fail("SetPace", nil)
					}
				case "Dirty", "StartDirtyLog":
					if n+1 == tc.nth {
						r.src.Fail("SetPace", boom)
					}
				}
			})
			r.send.Policies.Throttle = tc.throttle
			res := r.migrate(context.Background())
			require.ErrorIs(t, res.sendErr, boom)
			require.ErrorIs(t, res.sendErr, migration.ErrMemory)
			require.ErrorContains(t, res.recvErr, "slow the guest to")
			require.NoError(t, r.src.Unharmed())
			require.NoError(t, r.world.Check())
			require.Equal(t, tc.nth+1, n, "and one to undo")
			r.send.Policies.Throttle = nil
			r.moved(r.migrate(context.Background()))
		})
	}
}

// A pace that cannot be undone is said, and keeps nothing else from being undone.
func TestPaceCannotBeUndone(t *testing.T) {
	r := busyRig(t, nil)
	r.send.Policies.Throttle = policy.Cap{Percent: 50}
	r.src.Hook(func(m string) {
		if m == "SetPace" {
			r.src.Fail("SetPace", errors.New("stuck"))
		}
	})
	r.src.Fail("SaveState", errors.New("boom"))
	res := r.migrate(context.Background())
	require.ErrorContains(t, res.sendErr, "boom")
	require.ErrorContains(t, res.sendErr, "end throttling: stuck")
	require.ErrorContains(t, r.src.Unharmed(), "slowed to 50 %")
	require.Equal(t, []string{"source"}, r.world.Running())
	require.NoError(t, r.world.Check())
}

// A throttle can be exchanged while it runs, by another means too. One that the
// machine cannot obey is refused, and the migration goes on with the old one.
func TestRetuneThrottle(t *testing.T) {
	var s *migration.Session
	var r *rig
	n := 0
	r = busyRig(t, func(m string) {
		if m != "Dirty" {
			return
		}
		switch n++; n {
		case 1:
			r.src.Fail("CanPace", errors.New("no ring here"))
			err := s.SetThrottle(&policy.DirtyLimit{PagesPerSecond: 300})
			require.ErrorIs(t, err, migration.ErrOptions)
			require.ErrorContains(t, err, "no ring here")
		case 2:
			r.src.Fail("CanPace", nil)
			require.NoError(t, s.SetThrottle(&policy.DirtyLimit{PagesPerSecond: 300}))
		case 3:
			require.NoError(t, s.SetThrottle(nil))
		}
	})
	r.send.Policies.Throttle = policy.Cap{Percent: 50}
	var err error
	s, err = migration.NewSession(r.src, r.dial, r.send)
	require.NoError(t, err)
	done := make(chan error, 1)
	go func() {
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(r.ln), r.host.Build, r.recv)
		done <- err
	}()
	rep, err := s.Run(context.Background())
	r.moved(result{sendErr: err, recvErr: <-done})
	require.Equal(t, []policy.Pace{{Percent: 50}, {By: policy.ByDirtyLimit, PagesPerSecond: 300}, policy.FullSpeed, policy.FullSpeed}, r.src.Paces())
	require.Equal(t, 50, rep.ThrottleMax)
	require.EqualValues(t, 300, rep.DirtyLimit)
	require.ErrorIs(t, s.SetThrottle(nil), migration.ErrNotRunning)
}

// A guest that writes faster than the link converges under a dirty limit that
// adapts: here the machine obeys by writing no more than that between two looks.
func TestDirtyLimitConverges(t *testing.T) { synctest.Test(t, dirtyLimitConverges) }

func dirtyLimitConverges(t *testing.T) {
	r := newRig(t, 4000)
	r.inNoTime()
	for i := range uint64(4000) {
		r.put(i, i+1)
	}
	v, last := uint64(0), time.Now()
	r.src.Hook(func(m string) {
		if m != "Dirty" {
			return
		}
		pages := uint64(3000)
		if p := r.src.Pace(); !p.Free() {
			pages = min(pages, uint64(float64(p.PagesPerSecond)*time.Since(last).Seconds()))
		}
		v++
		for i := range pages {
			r.put(i, v)
		}
		last = time.Now()
	})
	r.send.Bandwidth, r.send.DowntimeLimit = 32<<20, 60*time.Millisecond // 8192 pages a second, 491 within the limit
	r.send.Policies.Throttle = &policy.DirtyLimit{}
	r.send.Policies.Stop = policy.LastSync{MaxRounds: 100}
	res := r.migrate(context.Background())
	r.moved(res)
	require.Less(t, len(res.sent.Rounds), 30)
	require.NotZero(t, res.sent.DirtyLimit)
	require.Zero(t, res.sent.ThrottleMax)
}
