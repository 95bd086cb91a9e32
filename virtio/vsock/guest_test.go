package vsock

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
)

const (
	memSize = 16 << 20
	long    = time.Minute // never waited for when all is well
	testCID = 52
	bufSize = 4096
)

// guest is a machine with a vsock device, and a driver as Linux has it.
type guest struct {
	t     testing.TB
	mem   *guestmem.Memory
	arena *drivertest.Arena
	irq   *drivertest.Interrupt
	dev   *Device
	tr    *mmio.Transport
	regs  drivertest.Registers
	rings [3]*drivertest.Ring
	bufs  [3]map[uint16]uint64
	path  string
}

func (g *guest) transport() {
	var err error
	g.dev, err = New(Config{GuestCID: testCID})
	require.NoError(g.t, err)
	g.dev.patience = long
	g.tr, err = mmio.New(mmio.Config{ID: "virtio/vsock0", Memory: g.mem, Device: g.dev, Interrupt: g.irq})
	require.NoError(g.t, err)
	dev, tr := g.dev, g.tr
	g.t.Cleanup(func() { _, _ = tr.Close(), dev.Close() })
	g.regs = drivertest.Registers{T: g.t, Dev: g.tr}
}

func (g *guest) listen() {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.path, Net: "unix"})
	require.NoError(g.t, err)
	require.NoError(g.t, g.dev.Listen(l, g.path))
}

func boot(t testing.TB) *guest { return bootWith(t, true) }

func bootWith(t testing.TB, eventIdx bool) *guest {
	t.Helper()
	g := &guest{t: t, mem: drivertest.Memory(t, memSize), irq: drivertest.NewInterrupt(), path: filepath.Join(t.TempDir(), "v")}
	g.arena = drivertest.NewArena(0x1000, memSize)
	g.transport()
	g.listen()
	features := g.regs.DeviceFeatures()
	if !eventIdx {
		features &^= virtio.FeatureEventIdx
	}
	require.True(t, g.regs.Negotiate(features))
	for i := range g.rings {
		g.rings[i] = drivertest.NewRing(t, g.mem, g.arena, queueSize, eventIdx)
		g.regs.SetQueue(i, g.rings[i])
		g.bufs[i] = map[uint16]uint64{}
	}
	g.regs.Start()
	g.offer(rxQueue, 8)
	g.offer(eventQueue, 1)
	return g
}

func (g *guest) kick(q int) {
	if g.rings[q].WantsKick() {
		g.regs.Kick(q)
	}
}

// offer gives n buffers, each a header's descriptor and one for data.
func (g *guest) offer(q, n int) {
	for range n {
		g.give(q, g.arena.Alloc(g.t, bufSize, 16))
	}
}

// give offers one buffer.
func (g *guest) give(q int, gpa uint64) {
	g.bufs[q][g.rings[q].Add([]drivertest.Seg{{GPA: gpa, Len: headerSize, Write: true}, {GPA: gpa + headerSize, Len: bufSize - headerSize, Write: true}}, false, 0)] = gpa
	g.kick(q)
}

func (g *guest) wait(q int) (head uint16, n uint32) {
	g.t.Helper()
	require.Eventually(g.t, func() bool {
		var ok bool
		if head, n, ok = g.rings[q].Take(); !ok && g.rings[q].EnableInterrupt() {
			head, n, ok = g.rings[q].Take()
		}
		return ok
	}, long, 100*time.Microsecond, "queue %d", q)
	return head, n
}

// hear takes the next packet, and gives its buffer back.
func (g *guest) hear() (header, []byte) {
	g.t.Helper()
	head, n := g.wait(rxQueue)
	gpa := g.bufs[rxQueue][head]
	delete(g.bufs[rxQueue], head)
	b := make([]byte, n)
	require.NoError(g.t, g.mem.ReadAt(b, gpa))
	g.give(rxQueue, gpa)
	h := parseHeader((*[headerSize]byte)(b))
	require.EqualValues(g.t, testCID, h.dstCID)
	require.EqualValues(g.t, n-headerSize, h.len)
	return h, b[headerSize:]
}

// expect is hear for a packet of one kind.
func (g *guest) expect(op uint16) (header, []byte) {
	g.t.Helper()
	h, data := g.hear()
	require.Equal(g.t, op, h.op)
	return h, data
}

// send puts a packet on the tx queue and waits until it is taken.
func (g *guest) send(h header, data []byte) {
	g.t.Helper()
	g.put(h, data)
	for g.rings[txQueue].InFlight() > 0 {
		g.wait(txQueue)
	}
}

func (g *guest) put(h header, data []byte) {
	var b [headerSize]byte
	h.put(&b)
	gpa := g.arena.Alloc(g.t, uint64(headerSize+len(data)), 16)
	require.NoError(g.t, g.mem.WriteAt(append(b[:], data...), gpa))
	segs := []drivertest.Seg{{GPA: gpa, Len: headerSize}}
	if len(data) > 0 {
		segs = append(segs, drivertest.Seg{GPA: gpa + headerSize, Len: uint32(len(data))})
	}
	g.rings[txQueue].Add(segs, false, 0)
	g.kick(txQueue)
}

// sock is a guest's end of a connection.
type sock struct {
	g        *guest
	key      key
	alloc    uint32
	received uint32
}

func (s *sock) header(op uint16, n int) header {
	return header{
		srcCID: testCID, dstCID: hostCID, srcPort: s.key.guest, dstPort: s.key.host, kind: typeStream, op: op,
		len: uint32(n), bufAlloc: s.alloc, fwdCnt: s.received,
	}
}

func (s *sock) say(op uint16)  { s.g.t.Helper(); s.g.send(s.header(op, 0), nil) }
func (s *sock) write(p []byte) { s.g.t.Helper(); s.g.send(s.header(opRW, len(p)), p) }
func (s *sock) shutdown(flags uint32) {
	h := s.header(opShutdown, 0)
	h.flags = flags
	s.g.send(h, nil)
}
func (g *guest) sock(host, port uint32) sock {
	return sock{g: g, key: key{host, port}, alloc: 64 << 10}
}

// fromGuest is a connection to a listener on the host.
func (g *guest) fromGuest(port, from uint32) (*sock, *net.UnixConn) {
	g.t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: g.path + "_" + itoa(port), Net: "unix"})
	require.NoError(g.t, err)
	defer l.Close()
	s := g.sock(port, from)
	s.say(opRequest)
	h, _ := g.expect(opResponse)
	require.Equal(g.t, s.key, key{h.srcPort, h.dstPort})
	require.EqualValues(g.t, bufAlloc, h.bufAlloc)
	require.NoError(g.t, l.SetDeadline(time.Now().Add(long)))
	c, err := l.AcceptUnix()
	require.NoError(g.t, err)
	return &s, g.own(c)
}

func (g *guest) own(c *net.UnixConn) *net.UnixConn {
	require.NoError(g.t, c.SetDeadline(time.Now().Add(long)))
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

// dial is a client of the host that says line first.
func (g *guest) dial(line string) *net.UnixConn {
	g.t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: g.path, Net: "unix"})
	require.NoError(g.t, err)
	if line != "" {
		_, err = c.Write([]byte(line))
		require.NoError(g.t, err)
	}
	return g.own(c)
}
