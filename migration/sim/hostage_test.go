package sim_test

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/wire"
)

// hostage is a peer that means to keep a paused guest paused: it stands between
// source and destination, and from some moment on only shows that it lives.
type hostage struct {
	how
	once   sync.Once
	struck chan struct{}
	seen   atomic.Bool // the frame has come
	relays sync.WaitGroup
}

// how is a peer's way of doing it.
type how struct {
	at     wire.Type                                    // the moment: this frame of the destination's; 0: see on
	on     string                                       // or this call of the source machine; "": Pause
	lose   bool                                         // what the source sends goes nowhere from then on
	take   time.Duration                                // and a byte of it is taken each so often; 0: all of it
	ack    func(taken uint64) uint64                    // what data streams say they have got; nil: the truth
	change func(t wire.Type, body []byte) time.Duration // what it makes of its answers, and how late they come; nil: there are none
}

func (h *hostage) strike() { h.once.Do(func() { close(h.struck) }) }

func (h *hostage) hasStruck() bool {
	select {
	case <-h.struck:
		return true
	default:
		return false
	}
}

// dialer joins the source to the destination through h.
func (h *hostage) dialer() (migration.Dialer, migration.Acceptor) {
	h.struck = make(chan struct{})
	dial, accept := pipes(plain)
	return func(ctx context.Context) (net.Conn, error) {
		far, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		near, ours := net.Pipe()
		c := &hostageConn{h: h, near: ours, far: far}
		h.relays.Go(c.forth)
		h.relays.Go(c.back)
		return near, nil
	}, accept
}

// hostageConn is one connection: near is the source's end, far the destination's.
type hostageConn struct {
	h         *hostage
	near, far net.Conn
	taken     atomic.Uint64
}

// forth carries what the source sends.
func (c *hostageConn) forth() {
	defer c.far.Close()
	buf := make([]byte, 32<<10)
	for {
		b := buf
		if c.h.hasStruck() && c.h.take > 0 {
			time.Sleep(c.h.take)
			b = buf[:1]
		}
		n, err := c.near.Read(b)
		c.taken.Add(uint64(n))
		if c.h.hasStruck() && c.h.lose {
			if err != nil {
				return
			}
			continue
		}
		if _, werr := c.far.Write(b[:n]); err != nil || werr != nil {
			return
		}
	}
}

// back carries what the destination answers, and forges signs of life.
func (c *hostageConn) back() {
	defer c.near.Close()
	in, out := wire.NewReader(c.far), wire.NewWriter(c.near)
	var mu sync.Mutex // guards out
	if in.Preamble() != nil {
		return
	}
	hello, err := in.Next()
	if err != nil || out.Open(hello.Type, hello.Body) != nil {
		return
	}
	var h wire.Hello
	_ = h.Decode(hello.Body)
	ended := make(chan struct{})
	c.h.relays.Go(func() {
		defer close(ended)
		for {
			f, err := in.Next()
			if err != nil {
				return
			}
			if f.Type == c.h.at && !c.h.seen.Swap(true) {
				c.h.strike()
			}
			if c.h.hasStruck() {
				if c.h.change == nil {
					continue
				}
				time.Sleep(c.h.change(f.Type, f.Body))
			}
			mu.Lock()
			err = out.Frame(f.Type, f.Flags, f.Body)
			mu.Unlock()
			if err != nil {
				return
			}
		}
	})
	for real := uint64(0); ; {
		if c.h.hasStruck() && (c.h.change == nil || h.Role == wire.RoleControl) {
			real = max(real, c.taken.Load())
			t, body := wire.TypeKeepalive, []byte(nil)
			if h.Role == wire.RoleData {
				n := real
				if c.h.ack != nil {
					n = c.h.ack(real)
				}
				t, body = wire.TypeAck, binary.LittleEndian.AppendUint64(nil, n)
			}
			mu.Lock()
			err := out.Frame(t, 0, body)
			mu.Unlock()
			if err != nil {
				return
			}
		} else {
			select {
			case <-ended:
				return
			default:
			}
		}
		time.Sleep(time.Second)
	}
}

// bounds is when a paused guest ran on.
type bounds struct{ paused, resumed atomic.Int64 }

// hold moves a guest through h and gives how long it stood still. after, if not
// nil, is called a while after the pause.
func (h *hostage) hold(t *testing.T, r *rig, after func(s *migration.Session)) (res result, stood time.Duration) {
	dial, accept := h.dialer()
	began := time.Now()
	var b bounds
	r.src.Hook(func(m string) {
		if h.at == 0 && m == cmp.Or(h.on, "Pause") {
			h.strike()
		}
		switch m {
		case "Pause":
			b.paused.Store(int64(time.Since(began)))
		case "Resume":
			b.resumed.CompareAndSwap(0, int64(time.Since(began)))
		}
	})
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var ends sync.WaitGroup
	ends.Go(func() {
		res.target, res.received, res.recvErr = migration.Receive(ctx, accept, r.host.Build, r.recv)
	})
	s, err := migration.NewSession(r.from, dial, r.send)
	require.NoError(t, err)
	if after != nil {
		ends.Go(func() {
			<-h.struck
			time.Sleep(10 * time.Second)
			after(s)
		})
	}
	res.sent, res.sendErr = s.Run(context.Background())
	ended := time.Since(began)
	ends.Wait()
	h.relays.Wait()
	if b.resumed.Load() == 0 {
		b.resumed.Store(int64(ended))
	}
	return res, time.Duration(b.resumed.Load() - b.paused.Load())
}

func hostageRig(t *testing.T, mode migration.Mode) *rig {
	r := newRig(t, 2000)
	for i := range uint64(2000) {
		r.put(i, i+1)
	}
	epoch := time.Now()
	r.send.Clock = func() time.Duration { return time.Since(epoch) }
	r.recv.Clock = r.send.Clock
	r.send.Silence, r.recv.Silence = 5*time.Second, 5*time.Second
	r.send.Mode, r.send.Verify = mode, true
	r.src.State = make([]byte, 1<<20)
	return r
}

// captors are all waits of a source whose guest stands still, and how a
// destination may stretch them.
var captors = map[string]struct {
	mode  migration.Mode
	how   how
	limit time.Duration // beyond HoldLimit
}{
	"no PASSED":                 {mode: migration.PreCopy},
	"no PASSED, stop and copy":  {mode: migration.StopAndCopy},
	"no HASH":                   {mode: migration.PreCopy, how: how{at: wire.TypeHash}},
	"no READY":                  {mode: migration.PreCopy, how: how{at: wire.TypeReady}},
	"no EXTENTS taken":          {mode: migration.StopAndCopy, how: how{lose: true, take: time.Hour}},
	"no STATE taken":            {mode: migration.PreCopy, how: how{on: "SaveState", lose: true, take: time.Hour}},
	"STATE byte by byte":        {mode: migration.PreCopy, how: how{on: "SaveState", lose: true, take: time.Millisecond}},
	"control byte by byte":      {mode: migration.StopAndCopy, how: how{lose: true, take: time.Second}},
	"pages byte by byte":        {mode: migration.StopAndCopy, how: how{at: wire.TypePassed, lose: true, take: 10 * time.Millisecond}},
	"ACK of what was not sent":  {mode: migration.StopAndCopy, how: how{ack: func(n uint64) uint64 { return n + 1<<30 }}},
	"wrong HASH, slow answers":  {mode: migration.PreCopy, how: how{at: wire.TypeHash, change: wrongHash()}, limit: 2 * migration.HoldLimit},
	"READY with a lease of 10m": {mode: migration.PreCopy, how: how{at: wire.TypeReady, change: longLease}},
}

// wrongHash has all answers differ, and come 25 seconds late.
func wrongHash() func(wire.Type, []byte) time.Duration {
	return func(t wire.Type, body []byte) time.Duration {
		if t != wire.TypeHash {
			return 0
		}
		body[0]++
		return 25 * time.Second
	}
}

func longLease(t wire.Type, body []byte) time.Duration {
	if t == wire.TypeReady {
		binary.LittleEndian.PutUint32(body, 600_000)
	}
	return 0
}

// A destination that lives and does nothing for a guest that stands still gives it
// back: within a limit of its own for each wait, whatever signs of life it sends.
func TestNoHostages(t *testing.T) {
	for name, c := range captors {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := hostageRig(t, c.mode)
				h := &hostage{how: c.how}
				res, stood := h.hold(t, r, nil)
				t.Logf("stood still for %v: %v", stood, res.sendErr)
				require.Error(t, res.sendErr)
				require.NotErrorIs(t, res.sendErr, migration.ErrOutcomeUnknown)
				require.NoError(t, r.src.Unharmed())
				require.LessOrEqual(t, stood, migration.HoldLimit+c.limit+4*r.send.Silence+2*time.Second)
				require.NoError(t, r.world.Check())
				require.Equal(t, []string{"source"}, r.world.Running())
			})
		})
	}
}

// Whatever the source waits for, a cancel ends it within the time that telling the
// destination takes.
func TestCancelledHostage(t *testing.T) {
	for name, c := range captors {
		switch name {
		case "ACK of what was not sent", "READY with a lease of 10m", "no STATE taken", "STATE byte by byte":
			continue // these have ended before
		}
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := hostageRig(t, c.mode)
				h := &hostage{how: c.how}
				res, stood := h.hold(t, r, func(s *migration.Session) { require.NoError(t, s.Cancel("enough")) })
				require.ErrorIs(t, res.sendErr, migration.ErrCancelled)
				require.NoError(t, r.src.Unharmed())
				require.LessOrEqual(t, stood, 10*time.Second+4*r.send.Silence+time.Second)
				require.NoError(t, r.world.Check())
			})
		})
	}
}

// A RUNNING that does not come is waited for no longer than lease and silence; and
// one silence once the machine here was stopped, as its operator waits for that.
func TestNoRunning(t *testing.T) {
	for _, stop := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			r := hostageRig(t, migration.PreCopy)
			r.recv.Lease = time.Minute
			h := &hostage{how: how{at: wire.TypeRunning}}
			res, stood := h.hold(t, r, func(*migration.Session) {
				if stop {
					r.src.End(errors.New("stopped"))
				}
			})
			require.ErrorIs(t, res.sendErr, migration.ErrOutcomeUnknown)
			require.NoError(t, res.recvErr)
			limit := r.recv.Lease + r.send.Silence
			if stop {
				limit = 10*time.Second + r.send.Silence
			}
			require.LessOrEqual(t, stood, limit+time.Second)
			require.Greater(t, stood, limit-time.Second)
			require.Equal(t, []string{"target"}, r.world.Running())
			require.NoError(t, r.world.Check())
			require.NoError(t, r.host.Target().Close())
		})
	}
}

// A slow line is no captor, nor is a source whose own work takes long.
func TestSlowIsNoHostage(t *testing.T) {
	for _, where := range []string{"line", "Release", "SaveState"} {
		synctest.Test(t, func(t *testing.T) {
			r := hostageRig(t, migration.StopAndCopy)
			dial, accept := pipes(func(c net.Conn) net.Conn {
				if where == "line" {
					return slowLine{c}
				}
				return c
			})
			r.caller, r.acceptor = dial, accept
			r.src.Hook(func(m string) {
				if m == where {
					time.Sleep(2 * time.Minute)
				}
			})
			began := time.Now()
			res := r.migrate(t.Context())
			r.moved(res)
			require.GreaterOrEqual(t, time.Since(began), 100*time.Second)
		})
	}
}

// slowLine carries a page in 50 ms: 80 KiB/s.
type slowLine struct{ net.Conn }

func (c slowLine) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		k, err := c.Conn.Write(p[:min(len(p), pageSize)])
		time.Sleep(time.Duration(k) * 50 * time.Millisecond / pageSize)
		if n, p = n+k, p[k:]; err != nil {
			return n, err
		}
	}
	return n, nil
}

// While the guest runs on, a destination that takes nothing is given up too: its
// guest may be slowed.
func TestStalledCopy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := hostageRig(t, migration.PreCopy)
		h := &hostage{how: how{at: wire.TypePassed}}
		began := time.Now()
		res, _ := h.hold(t, r, nil)
		require.ErrorIs(t, res.sendErr, migration.ErrStalled)
		require.LessOrEqual(t, time.Since(began), migration.DefaultStall+20*time.Second)
		require.NoError(t, r.src.Unharmed())
	})
}
