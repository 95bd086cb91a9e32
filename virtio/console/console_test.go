package console_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/devices/state"
	"godwit/devices/state/statetest"
	"godwit/virtio"
	"godwit/virtio/console"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
)

const channel = "org.example.0"

// connect lets a client come and the guest hear of it.
func (g *guest) connect(port int, path string) io.ReadWriteCloser {
	g.t.Helper()
	c := dial(g.t, path)
	require.Equal(g.t, message{uint32(port), portOpen, 1, ""}, g.hear())
	return c
}

func read(t testing.TB, r io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	require.NoError(t, err)
	return string(b)
}

func TestBothWays(t *testing.T) {
	for _, refused := range []uint64{0, virtio.FeatureEventIdx} {
		g := boot(t, refused, "", channel)
		g.handshake()
		for port := range 2 {
			path := g.listen(port)
			c := g.connect(port, path)
			rx, tx := queues(port)
			_, err := c.Write([]byte("to the guest"))
			require.NoError(t, err)
			require.Equal(t, "to the guest", string(g.receive(rx)))
			g.send(tx, []byte("to the host"))
			require.Equal(t, "to the host", read(t, c, 11))
			g.wait(tx)

			second := dial(t, path)
			_, err = second.Read(make([]byte, 1))
			require.Error(t, err, "one client at a time")

			require.NoError(t, c.Close())
			require.Equal(t, message{uint32(port), portOpen, 0, ""}, g.hear())
			g.send(tx, []byte("nobody"))
			g.wait(tx)
			i := g.dev.Port(port)
			require.Equal(t, console.Stats{BytesToGuest: 12, BytesToHost: 11, DiscardedBytes: 6, Connects: 1, Refused: 1}, i.Stats)
			require.False(t, i.Connected)
			require.True(t, i.GuestOpen)

			c = g.connect(port, path)
			g.send(tx, []byte("back"))
			require.Equal(t, "back", read(t, c, 4))
			g.wait(tx)
		}
		require.Zero(t, g.dev.GuestErrors())
	}
}

// TestInputWaits for the guest to open the port, and for buffers.
func TestInputWaits(t *testing.T) {
	g := boot(t, 0, channel)
	g.offer(2, 16)
	g.offer(0, 1)
	path := g.listen(0)
	c := dial(t, path)
	data := make([]byte, 3*bufSize)
	for i := range data {
		data[i] = byte(i)
	}
	_, err := c.Write(data)
	require.NoError(t, err)
	g.say(0, deviceReady, 1)
	g.hear()
	g.say(0, portReady, 1)
	require.Equal(t, channel, g.hear().rest)
	require.Equal(t, message{0, portOpen, 1, ""}, g.hear())
	require.Zero(t, g.dev.Port(0).Stats.BytesToGuest)
	g.say(0, portOpen, 1)
	got := g.receive(0)
	require.Len(t, got, bufSize)
	g.offer(0, 4)
	for len(got) < len(data) {
		got = append(got, g.receive(0)...)
	}
	require.Equal(t, data, got)
}

// TestSlowReaderBlocksItsPortAlone: a channel keeps every byte for its client. What it did not take waits in the ring,
// also across a move: another client gets
// exactly the rest.
func TestSlowReaderBlocksItsPortAlone(t *testing.T) {
	g := boot(t, 0, channel, "")
	g.handshake()
	slow, quick := g.connect(0, g.listen(0)), g.connect(1, g.listen(1))
	want := make([]byte, 1<<20)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	sent := 0
	for g.dev.Port(0).Stats.Waits == 0 {
		// It may have all and not have come to it yet.
		require.True(t, sent < len(want) || g.rings[1].InFlight() > 0, "the socket never fills")
		if sent < len(want) && g.rings[1].Free() >= 2 {
			g.send(1, want[sent:sent+64<<10])
			sent += 64 << 10
		}
		for {
			if _, _, ok := g.rings[1].Take(); !ok {
				break
			}
		}
		time.Sleep(time.Millisecond)
	}
	g.send(5, []byte("not blocked"))
	require.Equal(t, "not blocked", read(t, quick, 11))
	g.wait(5)

	require.NoError(t, g.tr.Pause(), "it does not wait for the reader, who reads nothing before it is over")
	stream := statetest.Stream(t, g.tr)
	require.NoError(t, g.tr.Close())
	require.NoError(t, g.dev.Close())
	got, err := io.ReadAll(slow)
	require.NoError(t, err)
	require.Less(t, len(got), sent)

	g.transport()
	require.NoError(t, statetest.Restore(g.tr, stream))
	path := g.listen(0)
	c := dial(t, path)
	require.Eventually(t, func() bool { return g.dev.Port(0).Connected }, patience, time.Millisecond)
	require.NoError(t, g.tr.Resume())
	got = append(got, read(t, c, sent-len(got))...)
	require.True(t, bytes.Equal(want[:sent], got))
	// The guest hears that its old peers have gone, and that one is new.
	heard := map[message]int{}
	for range 3 {
		heard[g.hear()]++
	}
	require.Equal(t, map[message]int{{0, portOpen, 0, ""}: 1, {0, portOpen, 1, ""}: 1, {1, portOpen, 0, ""}: 1}, heard)
	for g.rings[1].InFlight() > 0 {
		g.wait(1)
	}
}

// TestConsoleGivesUp: a client that connects to a console and never reads holds
// the guest for a second, once. What is lost is counted, and said when the client
// reads after all.
func TestConsoleGivesUp(t *testing.T) {
	g := boot(t, 0, "", channel)
	g.handshake()
	c := g.connect(0, g.listen(0))
	chunk := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	began, sent := time.Now(), 0
	send := func(p []byte) {
		g.send(1, p)
		sent += len(p)
		g.wait(1)
	}
	for g.dev.Port(0).Stats.LostBytes == 0 {
		require.Less(t, sent, 4<<20, "the socket never fills")
		send(chunk)
	}
	require.GreaterOrEqual(t, time.Since(began), time.Second)
	waits := g.dev.Port(0).Stats.Waits
	for range 100 {
		send([]byte("lost at once"))
	}
	// A client that types and does not read is no other.
	_, err := c.Write([]byte("typed"))
	require.NoError(t, err)
	require.Equal(t, "typed", string(g.receive(0)))
	send([]byte("lost too"))
	require.Equal(t, waits, g.dev.Port(0).Stats.Waits, "it waited again")

	// The client reads all that there is, and gets the next that comes.
	said := []byte("again")
	read := make(chan []byte, 1)
	go func() {
		var got []byte
		b := make([]byte, 64<<10)
		for !bytes.HasSuffix(got, said) {
			n, err := c.Read(b)
			if err != nil {
				break
			}
			got = append(got, b[:n]...)
		}
		read <- got
	}()
	before := g.dev.Port(0).Stats.BytesToHost
	for began = time.Now(); g.dev.Port(0).Stats.BytesToHost == before; {
		require.Less(t, time.Since(began), patience)
		send(said)
	}
	got := <-read
	s := g.dev.Port(0).Stats
	require.EqualValues(t, sent, s.BytesToHost+s.LostBytes)
	require.Zero(t, s.DiscardedBytes)
	require.Equal(t, fmt.Sprintf("\r\n[godwit: %d bytes of console output lost]\r\nagain", s.LostBytes), string(got[before:]))
	for i := range got[:before] {
		require.Equal(t, chunk[i%len(chunk)], got[i])
	}

	// The next client has missed nothing.
	require.NoError(t, c.Close())
	require.Equal(t, message{0, portOpen, 0, ""}, g.hear())
	send([]byte("nobody"))
	require.EqualValues(t, 6, g.dev.Port(0).Stats.DiscardedBytes)
}

// TestOldDriver knows one port and no control queues.
func TestOldDriver(t *testing.T) {
	g := boot(t, featureMultiport, "", channel)
	c := dial(t, g.listen(0))
	g.offer(0, 1)
	_, err := c.Write([]byte("x"))
	require.NoError(t, err)
	require.Equal(t, "x", string(g.receive(0)))

	one := boot(t, 0, "")
	require.Zero(t, one.dev.Features()&featureMultiport, "one console needs no control queues")
	require.Len(t, one.dev.QueueSizes(), 2)
	require.NoError(t, one.dev.Resize(0, 132, 50))
	var b [4]byte
	one.tr.Read(0x100, b[:])
	require.Equal(t, []byte{132, 0, 50, 0}, b[:])
	require.EqualValues(t, 2, one.regs.Get(0x60)&2, "a configuration interrupt")
	generation := one.regs.Get(0xfc)
	require.NoError(t, one.dev.Resize(0, 132, 50))
	require.Equal(t, generation, one.regs.Get(0xfc), "no change")
	require.Error(t, one.dev.Resize(1, 1, 1))
	require.Error(t, g.dev.Resize(1, 1, 1), "a channel has no size")
}

func TestResize(t *testing.T) {
	g := boot(t, 0, channel, "")
	g.handshake()
	require.NoError(t, g.dev.Resize(1, 80, 25))
	require.Equal(t, message{1, resize, 0, "\x50\x00\x19\x00"}, g.hear())
	g.say(1, portReady, 1)
	require.Equal(t, message{1, consolePort, 1, ""}, g.hear())
	require.Equal(t, message{1, resize, 0, "\x50\x00\x19\x00"}, g.hear(), "a port that comes up again hears its size")
}

func TestEmergencyWrite(t *testing.T) {
	g := boot(t, 0, "")
	path := filepath.Join(t.TempDir(), "out")
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	require.NoError(t, g.dev.Attach(0, fd, true))
	for _, c := range "panic" {
		g.tr.Write(0x108, binary.LittleEndian.AppendUint32(nil, uint32(c)))
	}
	g.send(1, []byte("!"))
	g.wait(1)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "panic!", string(text))
	require.EqualValues(t, 6, g.dev.Port(0).Stats.BytesToHost)
}

// TestBadMessages: none breaks the device, and each is counted.
func TestBadMessages(t *testing.T) {
	g := boot(t, 0, channel)
	g.handshake()
	g.say(1, portReady, 1)
	g.say(0xfffffffe, portOpen, 1)
	g.say(0, 99, 0)
	g.send(3, []byte("short"))
	g.wait(3)
	require.EqualValues(t, 4, g.dev.GuestErrors())

	// A buffer with no room for the message, then one with.
	for g.rings[2].InFlight() > 0 {
		g.say(0, portReady, 1)
		g.hear()
	}
	small := g.arena.Alloc(t, 4, 4)
	g.rings[2].Add([]drivertest.Seg{{GPA: small, Len: 4, Write: true}}, false, 0)
	g.say(0, portReady, 1)
	_, n := g.wait(2)
	require.Zero(t, n)
	g.offer(2, 1)
	require.Equal(t, channel, g.hear().rest)
}

func TestNewRefuses(t *testing.T) {
	for want, ports := range map[string][]console.Port{
		"0 ports":     nil,
		"17 ports":    make([]console.Port, 17),
		"longer than": {{Name: string(make([]byte, 65))}},
	} {
		_, err := console.New(console.Config{Ports: ports})
		require.ErrorContains(t, err, want)
	}
}

func (g *guest) fresh() *console.Device {
	dev, err := console.New(g.cfg)
	require.NoError(g.t, err)
	g.t.Cleanup(func() { require.NoError(g.t, dev.Close()) })
	return dev
}

func TestState(t *testing.T) {
	g := boot(t, 0, "", channel)
	g.handshake()
	c := g.connect(1, g.listen(1))
	require.NoError(t, g.dev.Resize(0, 80, 25))
	g.hear()
	require.NoError(t, g.tr.Pause())
	_, err := io.WriteString(c, "of a client that has left")
	require.NoError(t, err)
	require.NoError(t, c.Close())
	statetest.Golden(t, g.dev, func() state.Saver { return g.fresh() })

	other := boot(t, 0, channel)
	require.ErrorContains(t, other.dev.Restore(1, state.NewDecoder(statetest.Data(t, g.dev))), "give the same ports")
	other = boot(t, 0, channel, "")
	require.ErrorContains(t, other.dev.Restore(1, state.NewDecoder(statetest.Data(t, g.dev))), "give the same ports")
}

// FuzzRestore feeds a destination the state of a hostile source.
func FuzzRestore(f *testing.F) {
	for _, v := range []string{"v1", "v2"} {
		golden, err := os.ReadFile("testdata/virtio-console-" + v + ".state")
		require.NoError(f, err)
		f.Add(golden)
	}
	mem := drivertest.Memory(f, 1<<20)
	f.Fuzz(func(t *testing.T, data []byte) {
		dev, err := console.New(console.Config{Ports: []console.Port{{}, {Name: channel}}})
		require.NoError(t, err)
		defer dev.Close()
		tr, err := mmio.New(mmio.Config{ID: "virtio/console0", Memory: mem, Device: dev, Interrupt: drivertest.NewInterrupt()})
		require.NoError(t, err)
		defer tr.Close()
		if tr.Restore(1, state.NewDecoder(data)) == nil {
			require.NoError(t, tr.Resume())
			require.NoError(t, tr.Pause())
		}
	})
}
