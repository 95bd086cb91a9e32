package vsock

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/devices/state/statetest"
)

// crowd is clients of the host that do as they like until stop.
type crowd struct {
	stop  atomic.Bool
	wait  sync.WaitGroup
	turns atomic.Int64
}

func (g *guest) crowd(n int, client func(c *net.UnixConn)) *crowd {
	w := new(crowd)
	path := g.path
	for range n {
		w.wait.Go(func() {
			for !w.stop.Load() {
				c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
				if err != nil {
					continue // too many wait, or nobody listens just now
				}
				_ = c.SetDeadline(time.Now().Add(long))
				client(c)
				_ = c.Close()
				w.turns.Add(1)
			}
		})
	}
	g.t.Cleanup(func() { w.stop.Store(true); w.wait.Wait() })
	return w
}

// pump is a guest that serves whoever comes until done: it accepts, sends a
// little, and answers what ends. It returns when there is nothing to hear.
func (g *guest) pump(done func() bool) {
	g.t.Helper()
	deadline := time.Now().Add(long)
	for !done() {
		require.True(g.t, time.Now().Before(deadline), "it never comes")
		head, n, ok := g.rings[rxQueue].Take()
		if !ok {
			time.Sleep(100 * time.Microsecond)
			continue
		}
		h := g.take(head, n)
		s := g.sock(h.srcPort, h.dstPort)
		s.received = 0
		switch h.op {
		case opRequest:
			s.say(opResponse)
			s.write(make([]byte, 4096))
		case opShutdown:
			s.shutdown(shutSend | shutReceive)
		}
	}
}

// take gives a packet's header, and its buffer back.
func (g *guest) take(head uint16, n uint32) header {
	g.t.Helper()
	gpa := g.bufs[rxQueue][head]
	delete(g.bufs[rxQueue], head)
	var b [headerSize]byte
	require.NoError(g.t, g.mem.ReadAt(b[:], gpa))
	g.give(rxQueue, gpa)
	return parseHeader(&b)
}

// clients are what programs of the host may do.
var clients = map[string]func(c *net.UnixConn){
	"come and go":   func(*net.UnixConn) {},
	"ask and go":    func(c *net.UnixConn) { _, _ = c.Write([]byte("CONNECT 6000\n")) },
	"write and go":  func(c *net.UnixConn) { _, _ = c.Write([]byte("CONNECT 6000\nhello")) },
	"talk nonsense": func(c *net.UnixConn) { _, _ = c.Write([]byte("GET / HTTP/1.1\r\n\r\n")) },
	"half-close": func(c *net.UnixConn) {
		_, _ = c.Write([]byte("CONNECT 6000\nbye"))
		_ = c.CloseWrite()
		_, _ = slowly(c)
	},
	"read no more":   func(c *net.UnixConn) { _, _ = c.Write([]byte("CONNECT 6000\n")); _ = c.CloseRead() },
	"read slowly":    func(c *net.UnixConn) { _, _ = c.Write([]byte("CONNECT 6000\n")); _ = c.CloseWrite(); _, _ = slowly(c) },
	"leave a packet": func(c *net.UnixConn) { _, _ = c.Write([]byte("CONNECT 6000\n")); _, _ = c.Read(make([]byte, 1)) },
}

// TestCrowdHoldsNobodyUp: clients that come without end stop neither pause,
// Stats, save, resume nor a move, in whatever way they go, and what is kept of
// them stays bounded; one that is in earnest gets through.
func TestCrowdHoldsNobodyUp(t *testing.T) {
	for name, client := range clients {
		t.Run(name, func(t *testing.T) {
			g := boot(t)
			g.offer(eventQueue, 7)
			w := g.crowd(4, client)
			for round := range 4 {
				seen := w.turns.Load()
				g.pump(func() bool { return w.turns.Load() > seen+20 })
				for range 5 {
					require.NoError(t, g.tr.Pause())
					g.dev.Stats()
					statetest.Stream(t, g.tr)
					require.NoError(t, g.tr.Resume())
				}
				if round%2 == 1 {
					g.arrive()
					require.NoError(t, g.tr.Resume())
					g.takeEvent()()
				}
				g.bounded()
			}
			taken := g.dev.Stats().Clients
			g.pump(func() bool { return g.dev.Stats().Clients > taken })
			w.stop.Store(true)
			gone := make(chan struct{})
			go func() { w.wait.Wait(); close(gone) }()
			g.pump(func() bool {
				select {
				case <-gone:
					return g.idle()
				default:
					return false
				}
			})
			earnest := g.dial("CONNECT 5000\n")
			var s sock
			for s.g == nil {
				if h, _ := g.hear(); h.op == opRequest && h.dstPort == 5000 {
					s = g.sock(h.srcPort, h.dstPort)
				}
			}
			s.say(opResponse)
			require.Equal(t, "OK "+itoa(s.key.host)+"\n", read(t, earnest, 4+len(itoa(s.key.host))))
			require.Zero(t, g.dev.Stats().BadPackets)
		})
	}
}

// bounded looks at all that is kept of clients.
func (g *guest) bounded() {
	g.t.Helper()
	d := g.dev
	d.mu.Lock()
	defer d.mu.Unlock()
	require.LessOrEqual(g.t, len(d.conns), maxConns)
	require.LessOrEqual(g.t, len(d.table), len(d.conns))
	queued := 0
	for c := d.todo.first; c != nil; c = c.next {
		queued++
		require.Contains(g.t, d.conns, c)
	}
	require.LessOrEqual(g.t, queued, len(d.conns))
}

func (g *guest) idle() bool {
	g.dev.mu.Lock()
	defer g.dev.mu.Unlock()
	return len(g.dev.conns) == 0
}
