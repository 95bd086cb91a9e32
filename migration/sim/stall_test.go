package sim_test

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
)

// pipes joins two ends without a system call, as a bubble of its own time needs
// it. wrap is around both ends of each connection.
func pipes(wrap func(net.Conn) net.Conn) (migration.Dialer, migration.Acceptor) {
	calls := make(chan net.Conn)
	dial := func(context.Context) (net.Conn, error) {
		here, there := net.Pipe()
		calls <- wrap(there)
		return wrap(here), nil
	}
	accept := func(ctx context.Context) (net.Conn, error) {
		select {
		case c := <-calls:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return dial, accept
}

// trickle is a line on which a page takes a second.
type trickle struct{ net.Conn }

func (c trickle) Write(p []byte) (n int, err error) {
	for len(p) >= pageSize {
		time.Sleep(time.Second)
		k, err := c.Conn.Write(p[:pageSize])
		if n, p = n+k, p[k:]; err != nil {
			return n, err
		}
	}
	k, err := c.Conn.Write(p)
	return n + k, err
}

// over moves through pipes, and says how long it took the destination.
func (r *rig) over(wrap func(net.Conn) net.Conn) (res result, took time.Duration) {
	dial, accept := pipes(wrap)
	began := time.Now()
	var ends sync.WaitGroup
	ends.Go(func() {
		res.target, res.received, res.recvErr = migration.Receive(context.Background(), accept, r.host.Build, r.recv)
		took = time.Since(began)
	})
	res.sent, res.sendErr = migration.Send(context.Background(), r.from, dial, r.send)
	ends.Wait()
	return res, took
}

func plain(c net.Conn) net.Conn { return c }

// A source that only shows that it lives keeps nobody else out for ever, wherever
// it hangs.
func TestStalledSource(t *testing.T) {
	for _, where := range []string{"Touched", "Dirty", "Pause", "SaveState", "Release"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 600)
				r.send.Silence, r.recv.Silence = 5*time.Second, 5*time.Second
				for i := range uint64(600) {
					r.put(i, i)
				}
				r.src.Hook(func(m string) {
					if m == where {
						time.Sleep(time.Hour)
					}
				})
				res, took := r.over(plain)
				require.ErrorIs(t, res.recvErr, migration.ErrStalled)
				require.Equal(t, migration.Failed, res.received.Status)
				require.GreaterOrEqual(t, took, migration.DefaultStall)
				require.Less(t, took, migration.DefaultStall+10*time.Second)
				require.ErrorContains(t, res.sendErr, "no progress", "the source is told why")
				require.NoError(t, r.src.Unharmed())
				require.True(t, r.host.Target().Aborted())
				require.NoError(t, r.world.Check())
			})
		})
	}
}

// A destination that never gets ready does not keep the guest paused for ever.
func TestStalledDestination(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 600)
		r.put(1, 1)
		r.host.Hook(func(m string) {
			if m == "LoadState" {
				time.Sleep(time.Hour)
			}
		})
		began := time.Now()
		var gaveUp time.Duration
		r.send.OnProgress = func(p migration.Progress) {
			if p.Phase == migration.PhaseUndo && gaveUp == 0 {
				gaveUp = time.Since(began)
			}
		}
		res, _ := r.over(plain)
		require.ErrorIs(t, res.sendErr, migration.ErrStalled)
		require.NotZero(t, gaveUp)
		require.Less(t, gaveUp, 11*time.Minute)
		require.Error(t, res.recvErr)
		require.NoError(t, r.src.Unharmed())
		require.NoError(t, r.world.Check())
	})
}

// A source that takes its time is no source that hangs: every byte of a page
// counts.
func TestSlowIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 600)
		for i := range uint64(600) {
			r.put(i, i+1)
		}
		r.recv.Stall = 10 * time.Second // a frame of pages takes minutes
		res, took := r.over(func(c net.Conn) net.Conn { return trickle{c} })
		r.moved(res)
		require.GreaterOrEqual(t, took, 10*time.Minute)
	})
}

// An operator may know of something that takes longer than any source should.
func TestStallAllowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 600)
		r.recv.Stall = -1
		r.src.Hook(func(m string) {
			if m == "Touched" {
				time.Sleep(time.Hour)
			}
		})
		res, _ := r.over(plain)
		r.moved(res)
	})
}

// What the destination itself takes its time for is not the source's doing.
func TestOwnWorkIsNoStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 600)
		r.put(1, 1)
		r.recv.Stall = 10 * time.Second
		r.host.Hook(func(m string) {
			if m == "Build" {
				time.Sleep(time.Hour)
			}
		})
		res, _ := r.over(plain)
		r.moved(res)
	})
}

// A destination may say how long a migration may take in all.
func TestReceiveTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 600)
		for i := range uint64(600) {
			r.put(i, i+1)
		}
		r.send.Silence, r.recv.Silence = 5*time.Second, 5*time.Second
		r.recv.Timeout = 5 * time.Minute
		res, took := r.over(func(c net.Conn) net.Conn { return trickle{c} })
		require.ErrorIs(t, res.recvErr, migration.ErrTimeout)
		require.Less(t, took, r.recv.Timeout+10*time.Second)
		require.ErrorContains(t, res.sendErr, "5m0s")
		require.NoError(t, r.src.Unharmed())

		r.recv.Timeout = 15 * time.Minute // which is enough
		res, took = r.over(func(c net.Conn) net.Conn { return trickle{c} })
		require.GreaterOrEqual(t, took, 10*time.Minute)
		r.moved(res)
	})
}
