package vsock

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
	"godwit/devices/state/statetest"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
)

func itoa(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

func read(t testing.TB, r io.Reader, n int) string {
	t.Helper()
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	require.NoError(t, err)
	return string(b)
}

func TestGuestConnects(t *testing.T) {
	g := boot(t)
	s, c := g.fromGuest(80, 1025)
	s.write([]byte("GET /"))
	require.Equal(t, "GET /", read(t, c, 5))
	_, err := c.Write([]byte("200 OK"))
	require.NoError(t, err)
	h, data := g.expect(opRW)
	require.Equal(t, "200 OK", string(data))
	require.EqualValues(t, 5, h.fwdCnt)
	require.EqualValues(t, 80, h.srcPort)

	// The guest closes: both flags, answered by a reset.
	s.shutdown(shutSend | shutReceive)
	g.expect(opRST)
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.Equal(t, Stats{FromGuest: 1, BytesToGuest: 6, BytesToHost: 5, ResetsSent: 1}, g.dev.Stats())
}

func TestHostConnects(t *testing.T) {
	g := boot(t)
	c := g.dial("CONNECT 5000\nearly")
	h, _ := g.expect(opRequest)
	require.EqualValues(t, 5000, h.dstPort)
	s := g.sock(h.srcPort, 5000)
	s.say(opResponse)
	require.Equal(t, "OK "+itoa(h.srcPort)+"\n", read(t, c, 14))
	_, data := g.expect(opRW)
	require.Equal(t, "early", string(data))

	// The host says that it has no more, and goes on reading.
	require.NoError(t, c.CloseWrite())
	h, _ = g.expect(opShutdown)
	require.EqualValues(t, shutSend, h.flags)
	s.write([]byte("the last word"))
	require.Equal(t, "the last word", read(t, c, 13))
	s.shutdown(shutSend)
	g.expect(opRST)
	require.Zero(t, g.dev.Stats().Open)

	// Two more to the same port have different ports of their own.
	g.dial("CONNECT 5000\n")
	one, _ := g.expect(opRequest)
	d := g.dial("CONNECT 5000\n")
	two, _ := g.expect(opRequest)
	require.NotEqual(t, one.srcPort, two.srcPort)
	refused := g.sock(two.srcPort, 5000)
	refused.say(opRST)
	_, err := d.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.EqualValues(t, 1, g.dev.Stats().FromHost)
}

func TestHostGoesAway(t *testing.T) {
	g := boot(t)
	s, c := g.fromGuest(80, 1025)
	_, err := c.Write([]byte("bye"))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	g.expect(opRW)
	h, _ := g.expect(opShutdown)
	require.EqualValues(t, shutSend|shutReceive, h.flags)
	s.say(opRST)
	require.Zero(t, g.dev.Stats().Open)

	// While it is half closed already.
	_, c = g.fromGuest(81, 1025)
	require.NoError(t, c.CloseWrite())
	h, _ = g.expect(opShutdown)
	require.EqualValues(t, shutSend, h.flags)
	require.NoError(t, c.Close())
	h, _ = g.expect(opShutdown)
	require.EqualValues(t, shutSend|shutReceive, h.flags)
}

// TestStreams: every byte arrives, in order, both ways, with little credit and a
// host that reads slowly.
func TestStreams(t *testing.T) {
	g := boot(t)
	s, c := g.fromGuest(80, 1025)
	s.alloc = 10000
	s.say(opCreditUpdate)
	data := make([]byte, 1<<20)
	for i := range data {
		data[i] = byte(rand.Uint32())
	}
	wrote := make(chan error, 1)
	go func() {
		_, err := c.Write(data)
		wrote <- err
	}()
	var got []byte
	for len(got) < len(data) {
		h, b := g.hear()
		switch h.op {
		case opRW:
			got = append(got, b...)
			require.LessOrEqual(t, len(got)-int(s.received), int(s.alloc), "more than the guest has room for")
		case opCreditRequest:
			s.received = uint32(len(got))
			s.say(opCreditUpdate)
		default:
			require.Fail(t, "unexpected", "operation %d", h.op)
		}
	}
	require.NoError(t, <-wrote)
	require.True(t, bytes.Equal(data, got))
	require.NotZero(t, g.dev.Stats().CreditWaits)
	s.alloc, s.received = 1<<20, uint32(len(got))

	// The other way: the guest keeps within the credit that it is told.
	sent, fwd := 0, uint32(0)
	var heard []byte
	for len(heard) < len(data) {
		for sent < len(data) && sent-int(fwd) < bufAlloc {
			n := min(32<<10, len(data)-sent, bufAlloc-(sent-int(fwd)))
			s.write(data[sent : sent+n])
			sent += n
		}
		heard = append(heard, read(t, c, min(64<<10, sent-len(heard)))...)
		if len(heard) < len(data) && sent-int(fwd) == bufAlloc {
			h, _ := g.expect(opCreditUpdate)
			fwd = h.fwdCnt
		}
	}
	require.True(t, bytes.Equal(data, heard))
	require.Zero(t, g.dev.Stats().BadPackets)
}

// TestTooMuchIsReset: a guest that sends beyond its credit costs bufAlloc bytes.
func TestTooMuchIsReset(t *testing.T) {
	g := boot(t)
	s, _ := g.fromGuest(80, 1025)
	chunk := make([]byte, 32<<10)
	for g.dev.Stats().OverCredit == 0 {
		s.write(chunk) // nobody reads
	}
	for {
		if h, _ := g.hear(); h.op == opRST {
			break
		}
	}
	require.Zero(t, g.dev.Stats().Open)
	require.NotZero(t, g.dev.Stats().WriteWaits)
}

// TestBadPackets: each is answered by a reset and ends its connection alone.
func TestBadPackets(t *testing.T) {
	g := boot(t)
	other, c := g.fromGuest(79, 1024)
	for name, spoil := range map[string]func(*header){
		"a second request":   func(h *header) { h.op = opRequest },
		"a late response":    func(h *header) { h.op = opResponse },
		"unknown operation":  func(h *header) { h.op = 77 },
		"longer than it is":  func(h *header) { h.op, h.len = opRW, 100 },
		"longer than memory": func(h *header) { h.op, h.len = opRW, 0xffffffff },
	} {
		s, _ := g.fromGuest(80, 1025)
		h := s.header(opRW, 0)
		spoil(&h)
		g.send(h, nil)
		r, _ := g.expect(opRST)
		require.Equal(t, s.key, key{r.srcPort, r.dstPort}, name)
	}
	for name, spoil := range map[string]func(*header){
		"no such connection": func(*header) {},
		"nobody listens":     func(h *header) { h.op = opRequest },
		"another type":       func(h *header) { h.op, h.kind = opRequest, 2 },
		"another CID":        func(h *header) { h.op, h.dstCID = opRequest, 7 },
	} {
		s := g.sock(4000, 99)
		h := s.header(opRW, 0)
		spoil(&h)
		g.send(h, nil)
		r, _ := g.expect(opRST)
		require.Equal(t, header{srcCID: h.dstCID, dstCID: testCID, srcPort: 4000, dstPort: 99, kind: typeStream, op: opRST}, r, name)
	}
	s := g.sock(4000, 99)
	s.say(opRST) // never answered
	h := s.header(opRequest, 0)
	h.srcCID = 9 // nor a liar
	g.send(h, nil)
	other.write([]byte("still here"))
	require.Equal(t, "still here", read(t, c, 10))
	require.EqualValues(t, 1, g.dev.Stats().Open)
}

// TestFloods: neither a guest that never reads its answers nor clients without
// end cost more than the limits.
func TestFloods(t *testing.T) {
	g := boot(t)
	for range g.rings[rxQueue].InFlight() {
		s := g.sock(1, 1)
		s.say(opRW) // uses the buffers up
	}
	n := 0
	for g.dev.Stats().ResetWaits == 0 {
		require.Less(t, n, 10*maxResets)
		if g.rings[txQueue].Free() > 2 {
			s := g.sock(4000, uint32(n))
			g.put(s.header(opRequest, 0), nil)
			n++
		}
		for {
			if _, _, ok := g.rings[txQueue].Take(); !ok {
				break
			}
		}
	}
	// It goes on once the guest reads.
	for range n {
		g.expect(opRST)
	}

	clients := make([]net.Conn, 0, maxConns+1)
	for range maxConns {
		clients = append(clients, g.dial("CONN"))
	}
	require.Eventually(t, func() bool { return g.dev.Stats().Open == maxConns }, long, time.Millisecond)
	_, err := g.dial("").Read(make([]byte, 1))
	require.Error(t, err, "one too many")
	require.EqualValues(t, 1, g.dev.Stats().OverLimit)
	for _, c := range clients {
		_ = c.Close()
	}
	require.Eventually(t, func() bool { return g.dev.Stats().Open == 0 }, long, time.Millisecond)
}

func TestBadClients(t *testing.T) {
	g := boot(t)
	for _, line := range []string{"\n", "CONNECT\n", "CONNECT x\n", "CONNECT 4294967296\n", "connect 1\n", "CONNECT -1\n", "GET / HTTP/1.1\r\nHost:"} {
		_, err := g.dial(line).Read(make([]byte, 1))
		require.Error(t, err, line)
	}
	require.EqualValues(t, 7, g.dev.Stats().BadClients)
}

// TestPatience: what the guest never answers ends, and a client that says
// nothing.
func TestPatience(t *testing.T) {
	g := boot(t)
	runOut := func() {
		require.Eventually(t, func() bool { return g.dev.Stats().Open == 1 }, long, time.Millisecond)
		g.dev.mu.Lock()
		defer g.dev.mu.Unlock()
		for c := range g.dev.conns {
			c.timer.Reset(0)
		}
	}
	c := g.dial("CONNECT 7\n")
	g.expect(opRequest)
	runOut()
	g.expect(opRST)
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	c = g.dial("CONN")
	runOut()
	_, err = c.Read(make([]byte, 1))
	require.Error(t, err)
	require.EqualValues(t, 2, g.dev.Stats().Timeouts)
}

// TestPauseIsNotLate: who cannot answer is not late, and what the guest sent is
// not lost because it was paused for long.
func TestPauseIsNotLate(t *testing.T) {
	g := boot(t)
	c := g.dial("CONNECT 7\n")
	h, _ := g.expect(opRequest)
	require.NoError(t, g.tr.Pause())
	g.dev.mu.Lock()
	cn := g.dev.table[key{h.srcPort, h.dstPort}]
	first := cn.timer
	first.Reset(0)
	g.dev.mu.Unlock()
	require.Eventually(t, func() bool {
		g.dev.mu.Lock()
		defer g.dev.mu.Unlock()
		return cn.timer != first
	}, long, time.Millisecond)
	require.Zero(t, g.dev.Stats().Timeouts)
	require.NoError(t, g.tr.Resume())
	s := g.sock(h.srcPort, h.dstPort)
	s.say(opResponse)
	require.Equal(t, "OK "+itoa(h.srcPort)+"\n", read(t, c, 4+len(itoa(h.srcPort))))
}

func TestConfigSpace(t *testing.T) {
	g := boot(t)
	require.EqualValues(t, testCID, g.regs.Get(0x100))
	require.Zero(t, g.regs.Get(0x104))
	for _, cid := range []uint64{0, 1, 2, MaxCID + 1, 1 << 32} {
		_, err := New(Config{GuestCID: cid})
		require.Error(t, err)
	}
}

func TestState(t *testing.T) {
	fresh := func() state.Saver {
		dev, err := New(Config{GuestCID: testCID})
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, dev.Close()) })
		return dev
	}
	statetest.Golden(t, fresh(), fresh)
	other, err := New(Config{GuestCID: 3})
	require.NoError(t, err)
	defer other.Close()
	require.ErrorContains(t, other.Restore(1, state.NewDecoder(statetest.Data(t, fresh()))), "give the same")
}

// FuzzRestore feeds a destination the state of a hostile source.
func FuzzRestore(f *testing.F) {
	golden, err := os.ReadFile("testdata/virtio-vsock-v1.state")
	require.NoError(f, err)
	f.Add(golden)
	mem := drivertest.Memory(f, 1<<20)
	f.Fuzz(func(t *testing.T, data []byte) {
		dev, err := New(Config{GuestCID: testCID})
		require.NoError(t, err)
		defer dev.Close()
		tr, err := mmio.New(mmio.Config{ID: "virtio/vsock0", Memory: mem, Device: dev, Interrupt: drivertest.NewInterrupt()})
		require.NoError(t, err)
		defer tr.Close()
		if tr.Restore(1, state.NewDecoder(data)) == nil {
			require.NoError(t, tr.Resume())
			require.NoError(t, tr.Pause())
		}
	})
}

func FuzzConnectLine(f *testing.F) {
	f.Add([]byte("CONNECT 1024\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		if port, ok := parseConnect(line); ok && !bytes.Contains(line, []byte(itoa(port))) && line[8] != '0' {
			t.Fatalf("%q is port %d", line, port)
		}
	})
}
