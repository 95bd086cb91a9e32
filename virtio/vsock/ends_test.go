package vsock

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/devices/state/statetest"
)

// conn is the device's side of s.
func (s *sock) conn() *conn {
	s.g.t.Helper()
	s.g.dev.mu.Lock()
	defer s.g.dev.mu.Unlock()
	c := s.g.dev.table[s.key]
	require.NotNil(s.g.t, c)
	return c
}

// fill sends until the credit is used up, with n bytes a packet at first: small
// packets cost the kernel the most. It returns what was sent.
func (s *sock) fill(n int) (sent []byte) {
	s.g.t.Helper()
	c := s.conn()
	for packets := 0; ; packets++ {
		if packets == 400 {
			n = 32 << 10
		}
		s.g.dev.mu.Lock()
		room := bufAlloc - int(c.received-c.forwarded)
		s.g.dev.mu.Unlock()
		if room == 0 {
			return sent
		}
		p := make([]byte, min(n, room))
		for i := range p {
			p[i] = byte(rand.Uint32())
		}
		s.write(p)
		sent = append(sent, p...)
	}
}

// slowly reads to the end, a little at a time.
func slowly(c net.Conn) ([]byte, error) {
	var all []byte
	for b := make([]byte, 5000); ; {
		n, err := c.Read(b)
		all = append(all, b[:n]...)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return all, err
		}
	}
}

// endings are the ways in which a guest's side of a connection ends.
var endings = map[string]func(g *guest, s *sock){
	"closed":           func(_ *guest, s *sock) { s.shutdown(shutSend | shutReceive) },
	"closed and reset": func(_ *guest, s *sock) { s.shutdown(shutSend | shutReceive); s.say(opRST) },
	"reset":            func(_ *guest, s *sock) { s.say(opRST) },
	"half closed":      func(_ *guest, s *sock) { s.shutdown(shutSend) },
	"half by half":     func(_ *guest, s *sock) { s.shutdown(shutReceive); s.shutdown(shutSend) },
	"half closed, then reset": func(_ *guest, s *sock) {
		s.shutdown(shutSend)
		s.say(opRST)
	},
	"rule broken":             func(_ *guest, s *sock) { s.say(77) },
	"machine reset":           func(g *guest, _ *sock) { g.regs.Set(0x070, 0) },
	"power-off":               func(g *guest, _ *sock) { closeAll(g) },
	"paused, then closed":     func(g *guest, _ *sock) { require.NoError(g.t, g.tr.Pause()); closeAll(g) },
	"closed while paused for": func(g *guest, s *sock) { s.shutdown(shutSend | shutReceive); require.NoError(g.t, g.tr.Pause()) },
	"saved": func(g *guest, _ *sock) {
		require.NoError(g.t, g.tr.Pause())
		statetest.Stream(g.t, g.tr)
		closeAll(g)
	},
	"moved": func(g *guest, _ *sock) { g.arrive() },
}

func closeAll(g *guest) {
	require.NoError(g.t, g.tr.Close())
	require.NoError(g.t, g.dev.Close())
}

// TestAllThatTheGuestSent reaches a reader of the host, in whatever way the
// guest's side ends and however late the reader comes. Then it sees a clean end.
func TestAllThatTheGuestSent(t *testing.T) {
	for name, end := range endings {
		for _, packet := range []int{1, 700, 32 << 10} {
			t.Run(name, func(t *testing.T) {
				g := boot(t)
				s, c := g.fromGuest(80, 1025)
				sent := s.fill(packet)
				dev := g.dev
				end(g, s)
				// Nobody has read a byte yet.
				require.Zero(t, dev.Stats().BytesLost)
				got, err := slowly(c)
				require.NoError(t, err)
				require.True(t, bytes.Equal(sent, got), "%d bytes taken, %d came", len(sent), len(got))
				require.Eventually(t, func() bool { return dev.Stats().Draining == 0 }, long, time.Millisecond)
			})
		}
	}
}

// TestSlowReaderOfANarrowKernel is the same where the kernel does not take the
// rest: it comes as long as the reader reads, without a word from the guest.
func TestSlowReaderOfANarrowKernel(t *testing.T) {
	for name, end := range endings {
		t.Run(name, func(t *testing.T) {
			g := boot(t)
			g.dev.keepsLast = keepsOpen
			s, c := g.fromGuest(80, 1025)
			sent := s.fill(32 << 10)
			read := make(chan error, 1)
			var got []byte
			go func() {
				var err error
				got, err = slowly(c)
				read <- err
			}()
			end(g, s)
			require.NoError(t, <-read)
			require.True(t, bytes.Equal(sent, got), "%d bytes taken, %d came", len(sent), len(got))
		})
	}
}

// TestPatienceCountsFromProgress, and not from when the guest was done.
func TestPatienceCountsFromProgress(t *testing.T) {
	now, p := time.Now(), new(progress)
	for left := 100; left > 0; left-- {
		require.False(t, p.late(left, now, time.Second))
		now = now.Add(time.Second)
		require.False(t, p.late(left, now, time.Second))
	}
	require.True(t, p.late(1, now.Add(1), time.Second))
	require.False(t, p.late(0, now.Add(2), time.Second))
}

// TestReaderThatDoesNotRead does not stop the end of the device, where the kernel
// does not take the rest. What it lost is counted; and it has a reset at its end
// if it has sent something that the guest did not take.
func TestReaderThatDoesNotRead(t *testing.T) {
	for name, spoke := range map[string]bool{"silent": false, "with something to say": true} {
		t.Run(name, func(t *testing.T) {
			g := boot(t)
			g.dev.keepsLast = keepsOpen
			s, c := g.fromGuest(80, 1025)
			if spoke {
				s.alloc = 0
				s.say(opCreditUpdate)
				_, err := c.Write([]byte("hear me"))
				require.NoError(t, err)
			}
			sent := s.fill(32 << 10)
			g.dev.patience = 0
			closeAll(g)
			got, err := slowly(c)
			if spoke {
				require.ErrorIs(t, err, unix.ECONNRESET)
			}
			require.EqualValues(t, len(sent)-len(got), g.dev.Stats().BytesLost)
			require.NotZero(t, g.dev.Stats().BytesLost)
			require.Zero(t, g.dev.Stats().Draining)
		})
	}
}

// TestReplyOfAHostThatLeft: what the host wrote before it closed is the guest's,
// also when the guest writes to it meanwhile.
func TestReplyOfAHostThatLeft(t *testing.T) {
	reply := bytes.Repeat([]byte("reply..."), 4096)
	for name, fill := range map[string]bool{"nothing waits for it": false, "it left things unread": true} {
		t.Run(name, func(t *testing.T) {
			g := boot(t)
			s, c := g.fromGuest(80, 1025)
			sent := 0
			if fill {
				sent = len(s.fill(32 << 10))
			}
			_, err := c.Write(reply)
			require.NoError(t, err)
			require.NoError(t, c.Close())
			if !fill {
				for range 3 {
					s.write([]byte("are you there"))
					sent += 13
				}
			}
			var got []byte
			var ends uint32
			for len(got) < len(reply) {
				switch h, data := g.hear(); h.op {
				case opRW:
					got = append(got, data...)
					s.received += uint32(len(data))
				case opShutdown:
					require.NotZero(t, h.flags&shutReceive)
					ends |= h.flags
				case opCreditUpdate:
				default:
					require.Fail(t, "cut short", "operation %d after %d bytes", h.op, len(got))
				}
			}
			require.True(t, bytes.Equal(reply, got))
			// It left without reading: after its last byte a reset, or the news that it is gone.
			for ends != shutSend|shutReceive {
				h, _ := g.hear()
				if h.op == opRST {
					break
				}
				if h.op == opShutdown {
					ends |= h.flags
				}
			}
			s.say(opRST)
			require.Zero(t, g.dev.Stats().Open)
			require.EqualValues(t, sent, g.dev.Stats().BytesToHost+g.dev.Stats().BytesLost)
		})
	}
}

// TestClientThatWritesAndLeaves before the guest has even accepted.
func TestClientThatWritesAndLeaves(t *testing.T) {
	g := boot(t)
	require.NoError(t, g.dial("CONNECT 5000\nhello").Close())
	h, _ := g.expect(opRequest)
	s := g.sock(h.srcPort, 5000)
	s.say(opResponse)
	var got []byte
	for len(got) < 5 {
		h, data := g.hear()
		require.Contains(t, []uint16{opRW, opShutdown}, h.op)
		got = append(got, data...)
	}
	require.Equal(t, "hello", string(got))
	for {
		if h, _ := g.hear(); h.op == opShutdown && h.flags == shutSend|shutReceive {
			break
		}
	}
	s.say(opRST)
	require.Zero(t, g.dev.Stats().Open)
}

// TestHostStopsReading: a host that takes no more can still send, and the guest
// hears that it need not.
func TestHostStopsReading(t *testing.T) {
	g := boot(t)
	s, c := g.fromGuest(80, 1025)
	require.NoError(t, c.CloseRead())
	s.write([]byte("to nobody"))
	h, _ := g.expect(opShutdown)
	require.EqualValues(t, shutReceive, h.flags)
	_, err := c.Write([]byte("still talking"))
	require.NoError(t, err)
	h, data := g.expect(opRW)
	require.Equal(t, "still talking", string(data))
	require.EqualValues(t, 9, h.fwdCnt, "its credit is not lost with the bytes")
	require.NoError(t, c.Close())
	h, _ = g.expect(opShutdown)
	require.EqualValues(t, shutSend|shutReceive, h.flags)
	require.EqualValues(t, 9, g.dev.Stats().BytesLost)
}

// TestGuestStopsReading: after the guest's SHUTDOWN(RECEIVE) a writer of the host
// is told, also one that waits for room; what the guest sends still comes, and
// that the host closes is noticed.
func TestGuestStopsReading(t *testing.T) {
	g := boot(t)
	s, c := g.fromGuest(80, 1025)
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(make([]byte, 4<<20))
		wrote <- err
	}()
	require.Eventually(t, func() bool { return g.dev.Stats().BytesToGuest > 0 }, long, time.Millisecond)
	s.shutdown(shutReceive)
	select {
	case err := <-wrote:
		require.ErrorIs(t, err, unix.EPIPE)
	case <-time.After(long):
		require.Fail(t, "the writer waits for ever")
	}
	s.write([]byte("but I talk"))
	require.Equal(t, "but I talk", read(t, c, 10))
	require.NoError(t, c.Close())
	for {
		if h, _ := g.hear(); h.op == opShutdown {
			require.EqualValues(t, shutSend|shutReceive, h.flags)
			break
		}
	}
	s.say(opRST)
	require.Zero(t, g.dev.Stats().Open)
}

// TestForgottenClientsCostNothing: clients whose time ends while the guest takes
// nothing leave nothing behind.
func TestForgottenClientsCostNothing(t *testing.T) {
	g := boot(t)
	for range g.rings[rxQueue].InFlight() {
		s := g.sock(1, 1)
		s.say(opRW) // uses the buffers up
	}
	for range 3 {
		for range 20 {
			g.dial("CONNECT 5000\n")
		}
		require.Eventually(t, func() bool { return g.dev.asking() == 20 }, long, time.Millisecond)
		g.dev.mu.Lock()
		for c := range g.dev.conns {
			c.timer.Reset(0)
		}
		g.dev.mu.Unlock()
		require.Eventually(t, func() bool { return g.dev.Stats().Open == 0 }, long, time.Millisecond)
	}
	g.dev.mu.Lock()
	defer g.dev.mu.Unlock()
	require.Nil(t, g.dev.todo.first)
	require.Empty(t, g.dev.conns)
	require.Empty(t, g.dev.table)
}
