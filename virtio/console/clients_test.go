package console_test

import (
	"bytes"
	"fmt"
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/devices/state/statetest"
	"godwit/virtio/console"
)

const maxLeft = 256 << 10 // of the package

// move hands the guest over to a new device, with nobody behind its ports.
func (g *guest) move() {
	g.t.Helper()
	require.NoError(g.t, g.tr.Pause())
	stream := statetest.Stream(g.t, g.tr)
	require.NoError(g.t, g.tr.Close())
	require.NoError(g.t, g.dev.Close())
	g.transport()
	require.NoError(g.t, statetest.Restore(g.tr, stream))
	require.Equal(g.t, stream, statetest.Stream(g.t, g.tr), "what was restored is what was saved")
}

// gather receives n bytes from a queue, whose buffers go back at once.
func (g *guest) gather(q, n int) string {
	g.t.Helper()
	var got []byte
	for len(got) < n {
		got = append(got, g.receive(q)...)
		g.offer(q, 1)
	}
	return string(got)
}

// visit is a client that says something and leaves.
func visit(t testing.TB, path, text string) {
	t.Helper()
	c := dial(t, path)
	_, err := io.WriteString(c, text)
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

// TestInputOfThoseWhoLeft: all that clients wrote before they left reaches the
// guest, in the order in which they came, whatever the guest does meanwhile.
func TestInputOfThoseWhoLeft(t *testing.T) {
	const clients = 200
	say := func(i int) string { return fmt.Sprintf("message %04d\n", i) } // 13 bytes
	for name, guestDoes := range map[string]struct {
		open  bool // its port, before anybody comes
		print bool
		pause bool
		move  bool
	}{
		"reads":                    {open: true},
		"prints and reads":         {open: true, print: true},
		"opens its port later":     {},
		"stands still":             {open: true, pause: true},
		"moves":                    {open: true, pause: true, move: true},
		"moves and opens it later": {pause: true, move: true},
	} {
		for _, port := range []string{"", channel} {
			t.Run(name+" "+port, func(t *testing.T) {
				g := boot(t, 0, port, "other")
				g.handshake()
				if !guestDoes.open {
					g.say(0, portOpen, 0)
				}
				path := g.listen(0)
				if guestDoes.pause {
					require.NoError(t, g.tr.Pause())
				}
				want := ""
				for i := range clients {
					visit(t, path, say(i))
					want += say(i)
					if guestDoes.print {
						g.send(1, []byte("output"))
						g.wait(1)
					}
				}
				// Whoever is accepted has been heard.
				require.Eventually(t, func() bool { return g.dev.Port(0).Stats.Connects == clients }, patience, time.Millisecond)
				switch {
				case guestDoes.move:
					g.move()
					require.NoError(t, g.tr.Resume())
				case guestDoes.pause:
					require.NoError(t, g.tr.Resume())
				}
				if !guestDoes.open {
					g.say(0, portOpen, 1)
				}
				require.Equal(t, want, g.gather(0, len(want)))
				s := g.dev.Port(0).Stats
				require.Zero(t, s.Refused+s.LostInputBytes)
			})
		}
	}
}

// TestLeftInputIsBounded: what there is no room for is counted, and the oldest is
// kept. A client that is there is read after those who left, and loses nothing.
func TestLeftInputIsBounded(t *testing.T) {
	g := boot(t, 0, channel)
	g.handshake()
	g.say(0, portOpen, 0)
	path := g.listen(0)
	sent := 0
	for g.dev.Port(0).Stats.LostInputBytes == 0 {
		require.Less(t, sent, 8*maxLeft)
		c := dial(t, path)
		raw, err := c.SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) { // as much as the socket takes
			for err == nil {
				var n int
				n, err = unix.Write(int(fd), bytes.Repeat([]byte{byte(sent >> 12)}, 4096))
				sent += max(n, 0)
			}
		}))
		require.NoError(t, c.Close())
		visit(t, path, "")
		connects := g.dev.Port(0).Stats.Connects
		require.Eventually(t, func() bool { return g.dev.Port(0).Stats.Connects >= connects }, patience, time.Millisecond)
	}
	c := dial(t, path)
	_, err := io.WriteString(c, "here")
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		return g.dev.Port(0).Stats.LostInputBytes == uint64(sent-maxLeft)
	}, patience, time.Millisecond)
	g.say(0, portOpen, 1)
	got := g.gather(0, maxLeft+4)
	require.Len(t, got, maxLeft+4)
	require.Equal(t, "here", got[maxLeft:])
	for i := 0; i < maxLeft; i += 4096 {
		require.Equal(t, byte(i>>12), got[i])
	}
}

// TestEndComesAfterInput: the guest hears that a client has gone only when it has
// all that the client sent, and that the next has come after that.
func TestEndComesAfterInput(t *testing.T) {
	g := boot(t, 0, channel, "")
	g.handshake()
	path := g.listen(0)
	c := g.connect(0, path)
	text := string(bytes.Repeat([]byte("0123456789abcdef"), 10*bufSize/16)) // the driver has 8 buffers
	_, err := io.WriteString(c, text)
	require.NoError(t, err)
	require.NoError(t, c.Close())
	next := dial(t, path)
	require.Eventually(t, func() bool { return g.dev.Port(0).Stats.Connects == 2 }, patience, time.Millisecond)
	got := ""
	for range 8 {
		got += string(g.receive(0))
	}
	require.NoError(t, g.dev.Resize(1, 80, 25))
	require.Equal(t, message{1, resize, 0, "\x50\x00\x19\x00"}, g.hear(), "news of the first port would come first")
	g.offer(0, 8)
	require.Equal(t, text, got+g.gather(0, len(text)-len(got)))
	require.Equal(t, message{0, portOpen, 0, ""}, g.hear())
	require.Equal(t, message{0, portOpen, 1, ""}, g.hear())
	g.send(1, []byte("hello"))
	require.Equal(t, "hello", read(t, next, 5))
}

// TestHalfClose: a client that has said all gets its answer; one that has heard
// enough goes on speaking. Both ends together are a hang-up.
func TestHalfClose(t *testing.T) {
	for _, port := range []string{"", channel} {
		t.Run(port, func(t *testing.T) {
			g := boot(t, 0, port, "other")
			g.handshake()
			path := g.listen(0)
			c := dial(t, path)
			require.Equal(t, message{0, portOpen, 1, ""}, g.hear())
			_, err := io.WriteString(c, "question")
			require.NoError(t, err)
			require.NoError(t, c.CloseWrite())
			require.Equal(t, "question", string(g.receive(0)))
			for i := range 3 {
				require.True(t, g.dev.Port(0).Connected)
				g.send(1, fmt.Appendf(nil, "answer %d", i))
				g.wait(1)
				require.Equal(t, fmt.Sprintf("answer %d", i), read(t, c, 8))
				require.NoError(t, g.tr.Pause())
				require.NoError(t, g.tr.Resume())
			}
			_, err = dial(t, path).Read(make([]byte, 1))
			require.Error(t, err, "it is still there")
			require.NoError(t, c.Close())
			require.Equal(t, message{0, portOpen, 0, ""}, g.hear())

			c = dial(t, path)
			require.Equal(t, message{0, portOpen, 1, ""}, g.hear())
			require.NoError(t, c.CloseRead())
			before := g.dev.Port(0).Stats.DiscardedBytes
			for i := range 3 {
				g.send(1, []byte("unheard"))
				g.wait(1)
				_, err = fmt.Fprintf(c, "speech %d", i)
				require.NoError(t, err)
				require.Equal(t, fmt.Sprintf("speech %d", i), string(g.receive(0)))
			}
			require.EqualValues(t, 21, g.dev.Port(0).Stats.DiscardedBytes-before)
			require.NoError(t, c.CloseWrite())
			require.Equal(t, message{0, portOpen, 0, ""}, g.hear(), "that was all of it")
			require.False(t, g.dev.Port(0).Connected)
			require.Zero(t, g.dev.Port(0).Stats.HostErrors)
		})
	}
}

// TestOutputAwaitsTheNextClient: a real move. The source's client has not taken
// all, the guest goes on writing before it hears that the client is gone, and the
// new client comes only then, at the second host. It gets every byte.
func TestOutputAwaitsTheNextClient(t *testing.T) {
	for _, moves := range []int{1, 3} {
		g := boot(t, 0, channel)
		g.handshake()
		slow := g.connect(0, g.listen(0))
		var want []byte
		write := func(n int) {
			p := make([]byte, n)
			for i := range p {
				p[i] = byte(len(want) + i*7)
			}
			want = append(want, p...)
			g.send(1, p)
		}
		for g.dev.Port(0).Stats.Waits == 0 {
			require.Less(t, len(want), 4<<20, "the socket never fills")
			write(28992)
			if g.rings[1].Free() < 8 {
				g.wait(1)
			}
		}
		for range moves {
			g.move()
			path := g.listen(0)
			visit(t, path, "") // somebody who only looks takes nothing
			require.Eventually(t, func() bool { return g.dev.Port(0).Stats.Connects == 1 }, patience, time.Millisecond)
			require.NoError(t, g.tr.Resume())
			write(1000) // it has no news yet
			require.Eventually(t, func() bool { return g.dev.Port(0).Stats.Waits > 0 }, patience, time.Millisecond)
			require.Zero(t, g.dev.Port(0).Stats.DiscardedBytes)
		}
		got, err := io.ReadAll(slow)
		require.NoError(t, err)
		require.Less(t, len(got), len(want))
		require.Equal(t, message{0, portOpen, 0, ""}, g.hear())
		write(1000) // it does not care

		c := dial(t, g.paths[0])
		got = append(got, read(t, c, len(want)-len(got))...)
		require.True(t, bytes.Equal(want, got))
		for g.rings[1].InFlight() > 0 {
			g.wait(1)
		}

		// From here on it is as with any client that leaves.
		require.NoError(t, c.Close())
		require.Eventually(t, func() bool { return !g.dev.Port(0).Connected }, patience, time.Millisecond)
		g.send(1, []byte("nobody"))
		g.wait(1)
		require.EqualValues(t, 6, g.dev.Port(0).Stats.DiscardedBytes)
	}
}

// TestOutputIsNotKeptForNobody: where no client can ever come, and where a driver
// would spin.
func TestOutputIsNotKeptForNobody(t *testing.T) {
	for name, c := range map[string]struct {
		port    string
		refused uint64
		listen  bool
	}{
		"a port that is not mapped": {port: channel},
		"a console":                 {port: "", listen: true},
		"a driver of one port":      {port: channel, refused: featureMultiport, listen: true},
	} {
		t.Run(name, func(t *testing.T) {
			g := boot(t, c.refused, c.port, "other")
			if c.refused == 0 {
				g.handshake()
				g.connect(0, g.listen(0))
			} else {
				dial(t, g.listen(0))
				require.Eventually(t, func() bool { return g.dev.Port(0).Connected }, patience, time.Millisecond)
			}
			g.move()
			if c.listen {
				g.listen(0)
			}
			require.NoError(t, g.tr.Resume())
			g.send(1, []byte("nobody"))
			g.wait(1)
			require.Equal(t, console.Stats{DiscardedBytes: 6}, g.dev.Port(0).Stats)
		})
	}
}

// TestReset: a guest that starts anew owes nobody what it once wrote.
func TestReset(t *testing.T) {
	g := boot(t, 0, channel)
	g.handshake()
	g.connect(0, g.listen(0))
	g.move()
	g.listen(0)
	require.NoError(t, g.tr.Resume())
	g.regs.Set(0x70, 0) // the driver resets the device
	require.NoError(t, g.tr.Pause())
	require.Equal(t, statetest.Data(t, g.fresh()), statetest.Data(t, g.dev))
}

// TestClientsInALoop: clients that come and go as fast as they can keep nobody:
// not the guest's other port, not a pause, a look or a save.
func TestClientsInALoop(t *testing.T) {
	g := boot(t, 0, channel, "quiet")
	g.handshake()
	path := g.listen(0)
	other := g.connect(1, g.listen(1))
	stop := make(chan struct{})
	var flood sync.WaitGroup
	for range 4 {
		flood.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
				if err == nil {
					_ = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
					_ = unix.Close(fd)
				}
			}
		})
	}
	defer flood.Wait()
	defer close(stop)
	require.Eventually(t, func() bool { return g.dev.Port(0).Stats.Connects > 100 }, patience, time.Millisecond)
	for range 10 {
		g.send(5, []byte("to the host"))
		require.Equal(t, "to the host", read(t, other, 11))
		g.wait(5)
		require.NoError(t, g.tr.Pause())
		statetest.Stream(t, g.tr)
		require.NoError(t, g.tr.Resume())
		_, err := io.WriteString(other, "x")
		require.NoError(t, err)
		require.Equal(t, "x", g.gather(4, 1))
	}
}
