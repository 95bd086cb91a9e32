package sim_test

import (
	"context"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/wire"
)

// trickler has a source's list of one type come in pieces, each at the last moment,
// with signs of life in between.
type trickler struct {
	what  wire.Type
	piece int // bytes
	every time.Duration
	n     int // connections
	both  sync.WaitGroup
}

func (t *trickler) dialer() (migration.Dialer, migration.Acceptor) {
	dial, accept := pipes(plain)
	return func(ctx context.Context) (net.Conn, error) {
		far, err := dial(ctx)
		if err != nil {
			return nil, err
		}
		near, ours := net.Pipe()
		forth := func() { _, _ = io.Copy(far, ours) }
		if t.n++; t.n == 1 {
			forth = func() { t.control(ours, far) }
		}
		t.both.Go(func() {
			defer far.Close()
			forth()
		})
		t.both.Go(func() {
			defer ours.Close()
			_, _ = io.Copy(ours, far)
		})
		return near, nil
	}, accept
}

// control carries the source's control connection.
func (t *trickler) control(near, far net.Conn) {
	in, out := wire.NewReader(near), wire.NewWriter(far)
	if in.Preamble() != nil {
		return
	}
	hello, err := in.Next()
	if err != nil || out.Open(hello.Type, hello.Body) != nil {
		return
	}
	frames := make(chan wire.Frame, 1000)
	t.both.Go(func() {
		defer close(frames)
		for {
			f, err := in.Next()
			if err != nil {
				return
			}
			f.Body = append([]byte(nil), f.Body...)
			frames <- f
		}
	})
	for f := range frames {
		for f.Type == t.what && len(f.Body) > t.piece {
			if out.Frame(f.Type, 0, f.Body[:t.piece]) != nil || !t.idle(out) {
				return
			}
			f.Body = f.Body[t.piece:]
		}
		if out.Frame(f.Type, f.Flags, f.Body) != nil {
			return
		}
	}
}

func (t *trickler) idle(out *wire.Writer) bool {
	for range t.every / time.Second {
		time.Sleep(time.Second)
		if out.Frame(wire.TypeKeepalive, 0, nil) != nil {
			return false
		}
	}
	return true
}

// A source that trickles keeps a receiver no longer than one that hangs.
func TestTricklingSource(t *testing.T) {
	for _, c := range []struct {
		what  wire.Type
		piece int
	}{{wire.TypeConfig, 1}, {wire.TypeExtents, 16}, {wire.TypeState, 1}} {
		t.Run(c.what.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 600)
				for i := uint64(0); i < 600; i += 2 {
					r.put(i, i+1)
				}
				r.send.Silence, r.recv.Silence = 5*time.Second, 5*time.Second
				r.recv.Stall = 20 * time.Second // below what the source waits for READY
				tr := &trickler{what: c.what, piece: c.piece, every: 15 * time.Second}
				r.caller, r.acceptor = tr.dialer()
				began := time.Now()
				res := r.migrate(t.Context())
				tr.both.Wait()
				require.ErrorIs(t, res.recvErr, migration.ErrStalled)
				require.Less(t, time.Since(began), 3*r.recv.Stall)
				require.NoError(t, r.src.Unharmed())
				require.NoError(t, r.world.Check())
			})
		})
	}
}

// Pieces that come in good time are none of anybody's business.
func TestPiecesInTime(t *testing.T) {
	for _, what := range []wire.Type{wire.TypeConfig, wire.TypeState} {
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, 600)
			r.put(1, 1)
			r.send.Silence, r.recv.Silence = 5*time.Second, 5*time.Second
			epoch := time.Now()
			r.send.Clock = func() time.Duration { return time.Since(epoch) }
			r.recv.Clock = r.send.Clock
			tr := &trickler{what: what, piece: 4, every: time.Second}
			r.caller, r.acceptor = tr.dialer()
			res := r.migrate(t.Context())
			r.moved(res)
			tr.both.Wait()
		})
	}
}
