package sim_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/policy"
	"godwit/migration/wire"
)

// faultRig is a migration with every kind of frame in it: two streams, three
// rounds, verify.
func faultRig(t *testing.T, f *fault) (*rig, *network) {
	r := newRig(t, 1200)
	for i := range uint64(1100) {
		r.put(i, i/600*i) // zeros, then data
	}
	n := 0
	r.src.Hook(func(m string) {
		if m == "Dirty" {
			if n++; n <= 2 {
				for i := range uint64(300) {
					r.put(i*4, i+1)
				}
			}
		}
	})
	nw := &network{fault: f}
	r.wrap = nw.wrap
	r.send.Streams, r.send.Verify, r.send.DowntimeLimit = 2, true, 1
	r.send.Policies.Throttle = policy.Cap{Percent: 60}
	r.send.Silence, r.recv.Silence = 150*time.Millisecond, 150*time.Millisecond
	r.recv.Lease = time.Second
	return r, nw
}

// Every frame of the protocol, on every connection, in both directions: closed,
// killed and silenced before, inside and after it. Before GO the source runs on;
// after it at most one copy runs, and the error says what can be known.
func TestEveryFrame(t *testing.T) {
	var types []wire.Type
	for typ := wire.TypeHello; typ <= wire.TypeRunning; typ++ {
		if typ != wire.TypeCodec {
			types = append(types, typ)
		}
	}
	everyFrame(t, faultRig, types)
}

// makeRig makes a rig whose connections a fault may strike.
type makeRig func(t *testing.T, f *fault) (*rig, *network)

// everyFrame is TestEveryFrame for the migrations of one kind of rig, in which
// these types of frames must occur.
func everyFrame(t *testing.T, make makeRig, types []wire.Type) {
	r, nw := make(t, nil)
	r.send.Silence, r.recv.Silence, r.recv.Lease = time.Minute, time.Minute, time.Minute
	r.moved(r.migrate(context.Background()))
	frames := nw.seen
	seen := map[wire.Type]bool{}
	for _, f := range frames {
		seen[f.frame] = true
	}
	for _, typ := range types {
		require.True(t, seen[typ], "the walk meets no %s", typ)
	}
	fds := openFiles(t)
	before := goroutines()
	t.Run("walk", func(t *testing.T) {
		for _, f := range frames {
			for _, what := range []string{"close", "kill", "silence"} {
				for _, when := range []string{"before", "inside", "after"} {
					f := f
					f.what, f.when = what, when
					dir := "from"
					if f.out {
						dir = "to"
					}
					t.Run(fmt.Sprintf("conn%d/%s/%d-%s/%s/%s", f.conn, dir, f.nth, f.frame, when, what), func(t *testing.T) {
						t.Parallel()
						strike(t, make, &f)
					})
				}
			}
		}
	})
	noLeak(t, before)
	require.Eventually(t, func() bool { return openFiles(t) <= fds }, time.Minute, time.Millisecond, "file descriptors leak")
}

// strike runs a migration with one fault and checks what must hold after any.
func strike(t *testing.T, make makeRig, f *fault) {
	r, nw := make(t, f)
	res := r.migrate(t.Context())
	nw.shutdown()
	require.NoError(t, r.world.Check())
	require.True(t, r.src.Pace().Free(), "the source is slowed to %v after %v", r.src.Pace(), res.sendErr)
	running := r.world.Running()
	require.LessOrEqual(t, len(running), 1)
	if tg := r.host.Target(); tg != nil && !tg.Aborted() {
		require.NoError(t, res.recvErr)
		require.Equal(t, []string{"target"}, running)
		require.NoError(t, r.same())
		defer tg.Close()
	} else {
		require.Error(t, res.recvErr)
	}
	if !nw.goOut {
		require.Error(t, res.sendErr)
		require.NoError(t, r.src.Unharmed(), "%v", res.sendErr)
		require.Equal(t, []string{"source"}, running)
		require.Equal(t, migration.Failed, res.sent.Status)
		return
	}
	require.NotContains(t, running, "source", "after GO the source must not run")
	out := new(migration.OutcomeError)
	switch {
	case res.sendErr == nil:
		require.Equal(t, []string{"target"}, running)
	case errors.Is(res.sendErr, migration.ErrNotTaken):
		require.Empty(t, running)
	default:
		require.ErrorIs(t, res.sendErr, migration.ErrOutcomeUnknown)
		require.ErrorContains(t, res.sendErr, "nobody can know")
		require.ErrorAs(t, res.sendErr, &out)
		require.False(t, out.ForceAfter.IsZero())
	}
}

func openFiles(t *testing.T) int {
	es, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(es)
}

// A GO that is held up until the lease has ended is refused, and the source is
// told so.
func TestLateGo(t *testing.T) { synctest.Test(t, lateGo) }

func lateGo(t *testing.T) {
	r, nw := faultRig(t, nil)
	r.inNoTime()
	r.send.Silence, r.recv.Silence, r.recv.Lease = time.Hour, time.Hour, 100*time.Millisecond
	nw.hold = func(typ wire.Type) {
		if typ == wire.TypeGo {
			time.Sleep(300 * time.Millisecond) // well past the lease
		}
	}
	res := r.migrate(context.Background())
	require.ErrorContains(t, res.recvErr, "lease")
	require.ErrorIs(t, res.sendErr, migration.ErrNotTaken)
	require.Empty(t, r.world.Running())
	require.NoError(t, r.world.Check())
}

// sleeper is the clock of a host that can be suspended: the lease goes on, and Go's
// timers do not.
type sleeper struct{ slept atomic.Int64 }

func (s *sleeper) suspend(d time.Duration) { s.slept.Add(int64(d)) }

func (s *sleeper) now() time.Duration { return migration.BootTime() + time.Duration(s.slept.Load()) }

// A destination that was suspended between READY and GO finds its lease ended
// when it wakes: the source's operator may have resumed the guest meanwhile.
func TestSuspendedBeforeGo(t *testing.T) {
	r, nw := faultRig(t, nil)
	r.send.Silence, r.recv.Silence, r.recv.Lease = time.Minute, time.Minute, migration.DefaultLease
	var dest sleeper
	r.recv.Clock = dest.now
	nw.hold = func(typ wire.Type) {
		if typ == wire.TypeGo {
			dest.suspend(migration.DefaultLease)
		}
	}
	res := r.migrate(context.Background())
	require.ErrorIs(t, res.recvErr, migration.ErrLateGo)
	require.ErrorIs(t, res.sendErr, migration.ErrNotTaken)
	require.Empty(t, r.world.Running())
	require.NoError(t, r.world.Check())
}

// A source that was suspended while the destination got ready sends no GO.
func TestSuspendedSource(t *testing.T) {
	r, nw := faultRig(t, nil)
	r.send.Silence, r.recv.Silence, r.recv.Lease = time.Minute, time.Minute, migration.DefaultLease
	var source sleeper
	r.send.Clock = source.now
	r.host.Hook(func(m string) {
		if m == "LoadState" {
			source.suspend(migration.DefaultLease)
		}
	})
	res := r.migrate(context.Background())
	require.ErrorContains(t, res.sendErr, "lease")
	require.Error(t, res.recvErr)
	require.False(t, nw.goOut)
	require.NoError(t, r.src.Unharmed())
	require.NoError(t, r.world.Check())
}

// A destination that needs longer than its own lease to get ready gets no GO.
func TestSlowReady(t *testing.T) { synctest.Test(t, slowReady) }

func slowReady(t *testing.T) {
	r, nw := faultRig(t, nil)
	r.inNoTime()
	r.send.Silence, r.recv.Silence, r.recv.Lease = time.Hour, time.Hour, 100*time.Millisecond
	r.host.Hook(func(m string) {
		if m == "LoadState" {
			time.Sleep(200 * time.Millisecond) // longer than the lease
		}
	})
	res := r.migrate(context.Background())
	require.ErrorContains(t, res.sendErr, "lease")
	require.Error(t, res.recvErr)
	require.False(t, nw.goOut)
	require.NoError(t, r.src.Unharmed())
	require.NoError(t, r.world.Check())
}
