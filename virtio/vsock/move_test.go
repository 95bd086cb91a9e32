package vsock

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/devices/state/statetest"
	"godwit/virtio/internal/drivertest"
)

// arrive replaces the guest's device by a new one that has its state, as a move
// does. It is paused.
func (g *guest) arrive() {
	g.t.Helper()
	require.NoError(g.t, g.tr.Pause())
	stream := statetest.Stream(g.t, g.tr)
	old, oldTransport := g.dev, g.tr
	require.NoError(g.t, old.StopListening())
	g.transport()
	g.dev.move.limit = long
	g.listen()
	require.NoError(g.t, statetest.Restore(g.tr, stream))
	require.NoError(g.t, oldTransport.Close())
	require.NoError(g.t, old.Close())
}

// takeEvent waits for the event, and returns what gives its buffer back: the
// driver has ended its connections then.
func (g *guest) takeEvent() (done func()) {
	g.t.Helper()
	head, n := g.wait(eventQueue)
	require.EqualValues(g.t, 4, n)
	gpa := g.bufs[eventQueue][head]
	var e [4]byte
	require.NoError(g.t, g.mem.ReadAt(e[:], gpa))
	require.Zero(g.t, e, "VIRTIO_VSOCK_EVENT_TRANSPORT_RESET")
	delete(g.bufs[eventQueue], head)
	return func() {
		g.t.Helper()
		g.bufs[eventQueue][g.rings[eventQueue].Add([]drivertest.Seg{{GPA: gpa, Len: bufSize, Write: true}}, false, 0)] = gpa
		g.kick(eventQueue) // or the device has not come to ask for one, and looks by itself
	}
}

// TestMove: the guest hears that its connections are gone, the host's ends close
// with the source, and new ones work.
func TestMove(t *testing.T) {
	g := boot(t)
	s, c := g.fromGuest(80, 1025)
	require.NoError(t, g.tr.Pause())
	statetest.Stream(t, g.tr)
	require.NoError(t, g.dev.StopListening())
	require.NoError(t, g.tr.Resume())
	s.write([]byte("the migration failed"))
	require.Equal(t, "the migration failed", read(t, c, 20))

	g.arrive()
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.NoError(t, g.tr.Resume())
	g.takeEvent()()
	s.write([]byte("to nobody"))
	g.expect(opRST)
	s, c = g.fromGuest(80, 1025)
	s.write([]byte("again"))
	require.Equal(t, "again", read(t, c, 5))
	require.EqualValues(t, 1, g.dev.Stats().TransportResets)
}

// TestNothingOpensBeforeTheEvent: a driver that comes to the event late ends all
// that it has then, and says nothing of it. Nobody on the host may be part of
// that, whichever side began.
func TestNothingOpensBeforeTheEvent(t *testing.T) {
	for _, eventIdx := range []bool{true, false} {
		g := bootWith(t, eventIdx)
		g.offer(eventQueue, 7) // as Linux: more than there are events
		g.arrive()
		early := g.dial("CONNECT 5000\n") // while the guest still stands
		require.NoError(t, g.tr.Resume())
		done := g.takeEvent()
		late := g.dial("CONNECT 5001\n")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.path + "_80", Net: "unix"})
		require.NoError(t, err)
		defer l.Close()
		own := g.sock(80, 1025)
		own.say(opRequest)
		require.NoError(t, l.SetDeadline(time.Now().Add(long)))
		served, err := l.AcceptUnix()
		require.NoError(t, err)
		g.own(served)
		require.Eventually(t, func() bool { return g.dev.Stats().Open == 3 }, long, time.Millisecond)
		// Resets are for what is gone already, and do not wait.
		stranger := g.sock(79, 1000)
		stranger.say(opRW)
		g.expect(opRST)
		_, _, heard := g.rings[rxQueue].Take()
		require.False(t, heard, "something was opened that the guest is about to forget")

		done()
		ends := map[uint32]*net.UnixConn{5000: early, 5001: late}
		for range 3 {
			h, _ := g.hear()
			if h.op == opResponse {
				require.Equal(t, own.key, key{h.srcPort, h.dstPort})
				continue
			}
			require.EqualValues(t, opRequest, h.op)
			s := g.sock(h.srcPort, h.dstPort)
			s.say(opResponse)
			require.Equal(t, "OK "+itoa(h.srcPort)+"\n", read(t, ends[h.dstPort], 14))
			delete(ends, h.dstPort)
		}
		require.Empty(t, ends)
		own.write([]byte("ping"))
		require.Equal(t, "ping", read(t, served, 4))
		require.Zero(t, g.dev.Stats().ResetsSeen)
	}
}

// TestOldSocketsOfTheGuest: a guest keeps the sockets of connections that a move
// ended until its programs close them. What it sends on them then must not meet
// the host's new clients, not even one that has the ports of an old one, by
// chance.
func TestOldSocketsOfTheGuest(t *testing.T) {
	for name, chance := range map[string]bool{"other ports": false, "by chance the same": true} {
		t.Run(name, func(t *testing.T) {
			g := boot(t)
			open := func(c *net.UnixConn) *sock {
				h, _ := g.expect(opRequest)
				s := g.sock(h.srcPort, h.dstPort)
				s.say(opResponse)
				require.Equal(t, "OK "+itoa(h.srcPort)+"\n", read(t, c, 14))
				return &s
			}
			var old []*sock
			for range 2 {
				old = append(old, open(g.dial("CONNECT 5000\n")))
			}
			g.arrive()
			if chance {
				g.dev.mu.Lock()
				g.dev.nextPort = old[0].key.host
				g.dev.mu.Unlock()
			}
			require.NoError(t, g.tr.Resume())
			done := g.takeEvent()
			var clients []*net.UnixConn
			for i := range old {
				clients = append(clients, g.dial("CONNECT 5000\n"))
				require.Eventually(t, func() bool { return g.dev.asking() == i+1 }, long, time.Millisecond)
			}
			for _, s := range old {
				s.write([]byte("late"))
				h, _ := g.expect(opRST)
				require.Equal(t, s.key, key{h.srcPort, h.dstPort})
				s.say(opRST) // which is answered by nothing
			}
			require.Equal(t, len(clients), g.dev.Stats().Open)
			done()
			for i, c := range clients {
				s := open(c)
				require.Equal(t, chance, s.key == old[i].key)
				s.write([]byte("new"))
				require.Equal(t, "new", read(t, c, 3))
			}
			require.Zero(t, g.dev.Stats().BadPackets)
		})
	}
}

// asking is the number of clients whose request has not reached the guest.
func (d *Device) asking() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if c.request {
			n++
		}
	}
	return n
}

// TestPortsWrap: the port that stands for any is no connection's.
func TestPortsWrap(t *testing.T) {
	g := boot(t)
	g.dev.mu.Lock()
	g.dev.nextPort = lastPort
	require.EqualValues(t, 1<<32-2, g.dev.freePort(7))
	require.EqualValues(t, firstPort, g.dev.freePort(7))
	g.dev.mu.Unlock()
}

// TestEventNeverTaken: a guest that does not come to the event keeps nobody
// waiting beyond the limit; when it comes to it after all, what was opened
// meanwhile ends for the host too, and only that.
func TestEventNeverTaken(t *testing.T) {
	g := boot(t)
	g.arrive()
	g.dev.move.limit = time.Millisecond
	require.NoError(t, g.tr.Resume())
	done := g.takeEvent()
	c := g.dial("CONNECT 5000\n")
	h, _ := g.expect(opRequest)
	s := g.sock(h.srcPort, 5000)
	s.say(opResponse)
	require.Equal(t, "OK "+itoa(h.srcPort)+"\n", read(t, c, 14))
	silent := g.dial("CONN")
	require.Eventually(t, func() bool { return g.dev.Stats().Open == 2 }, long, time.Millisecond)

	done()
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	g.expect(opRST)
	_, err = silent.Write([]byte("ECT 5001\n"))
	require.NoError(t, err)
	h, _ = g.expect(opRequest)
	require.EqualValues(t, 5001, h.dstPort)
}

// TestPauseCostsNoTime: who waits for the guest has all of its time from when the
// guest runs.
func TestPauseCostsNoTime(t *testing.T) {
	g := boot(t)
	g.dial("CONNECT 5000\n")
	h, _ := g.expect(opRequest)
	require.NoError(t, g.tr.Pause())
	g.dial("CONNECT 5001\n")
	require.Eventually(t, func() bool { return g.dev.asking() == 1 }, long, time.Millisecond)
	g.dial("CONN")
	require.Eventually(t, func() bool { return g.dev.Stats().Open == 3 }, long, time.Millisecond)
	timers := func() map[uint32]*time.Timer {
		g.dev.mu.Lock()
		defer g.dev.mu.Unlock()
		m := map[uint32]*time.Timer{}
		for c := range g.dev.conns {
			m[c.guest] = c.timer
		}
		return m
	}
	before := timers()
	require.NoError(t, g.tr.Resume())
	after := timers()
	for port, began := range map[uint32]bool{5000: true, 5001: true, 0: false} { // 0: said no port yet
		require.NotNil(t, after[port])
		require.Equal(t, began, before[port] != after[port], "port %d", port)
		if began {
			require.False(t, before[port].Stop(), "what it had left still runs")
		}
	}
	s := g.sock(h.srcPort, 5000)
	s.say(opResponse)
	g.expect(opRequest)
}

// TestPausedGuestIsNotLate: the limit is for a guest that runs.
func TestPausedGuestIsNotLate(t *testing.T) {
	g := boot(t)
	g.arrive()
	g.dev.move.limit = time.Millisecond
	c := g.dial("CONNECT 5000\n")
	require.Eventually(t, func() bool { return g.dev.Stats().Open == 1 }, long, time.Millisecond)
	g.dev.mu.Lock()
	g.dev.startHold()
	g.dev.mu.Unlock()
	require.Eventually(t, func() bool {
		g.dev.mu.Lock()
		defer g.dev.mu.Unlock()
		return g.dev.move.timer == nil
	}, long, time.Millisecond)
	g.dev.mu.Lock()
	require.True(t, g.dev.move.hold)
	g.dev.mu.Unlock()
	require.NoError(t, c.SetReadDeadline(time.Now()))
	_, err := c.Read(make([]byte, 1))
	require.True(t, errors.Is(err, os.ErrDeadlineExceeded), "%v", err)
	require.NoError(t, g.tr.Resume())
	g.expect(opRequest)
}
