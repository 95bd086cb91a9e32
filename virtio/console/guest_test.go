package console_test

import (
	"encoding/binary"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/console"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
)

const (
	memSize  = 8 << 20
	patience = time.Minute

	featureMultiport = 1 << 1

	deviceReady, portAdd, portReady, consolePort, resize, portOpen, portName = 0, 1, 3, 4, 5, 6, 7
)

// guest is a machine with a console device, and its driver.
type guest struct {
	t     testing.TB
	cfg   console.Config
	mem   *guestmem.Memory
	arena *drivertest.Arena
	irq   *drivertest.Interrupt
	dev   *console.Device
	tr    *mmio.Transport
	regs  drivertest.Registers
	rings []*drivertest.Ring
	bufs  map[int]map[uint16]uint64 // of receive queues, by head
	paths map[int]string            // where listen last listened, by port
}

const bufSize = 512

func (g *guest) transport() {
	var err error
	g.dev, err = console.New(g.cfg)
	require.NoError(g.t, err)
	g.tr, err = mmio.New(mmio.Config{ID: "virtio/console0", Memory: g.mem, Device: g.dev, Interrupt: g.irq})
	require.NoError(g.t, err)
	dev, tr := g.dev, g.tr
	g.t.Cleanup(func() { _, _ = tr.Close(), dev.Close() })
	g.regs = drivertest.Registers{T: g.t, Dev: g.tr}
}

// boot starts the driver; refused are features it does not want.
func boot(t testing.TB, refused uint64, names ...string) *guest {
	t.Helper()
	g := &guest{t: t, mem: drivertest.Memory(t, memSize), irq: drivertest.NewInterrupt(), bufs: map[int]map[uint16]uint64{}, paths: map[int]string{}}
	for _, n := range names {
		g.cfg.Ports = append(g.cfg.Ports, console.Port{Name: n})
	}
	g.arena = drivertest.NewArena(0x1000, memSize)
	g.transport()
	features := g.regs.DeviceFeatures() &^ refused
	require.True(t, g.regs.Negotiate(features))
	for i, size := range g.dev.QueueSizes() {
		ring := drivertest.NewRing(t, g.mem, g.arena, size, features&virtio.FeatureEventIdx != 0)
		g.rings = append(g.rings, ring)
		g.regs.SetQueue(i, ring)
		g.bufs[i] = map[uint16]uint64{}
	}
	g.regs.Start()
	return g
}

func (g *guest) kick(q int) {
	if g.rings[q].WantsKick() {
		g.regs.Kick(q)
	}
}

// offer gives a receive queue n empty buffers.
func (g *guest) offer(q, n int) {
	for range n {
		gpa := g.arena.Alloc(g.t, bufSize, 16)
		g.bufs[q][g.rings[q].Add([]drivertest.Seg{{GPA: gpa, Len: 100, Write: true}, {GPA: gpa + 100, Len: bufSize - 100, Write: true}}, false, 0)] = gpa
	}
	g.kick(q)
}

// receive waits for a buffer of a receive queue to be filled.
func (g *guest) receive(q int) []byte {
	g.t.Helper()
	head, n := g.wait(q)
	b := make([]byte, n)
	require.NoError(g.t, g.mem.ReadAt(b, g.bufs[q][head]))
	delete(g.bufs[q], head)
	return b
}

// wait is for an answer in a queue; several queues share the interrupt.
func (g *guest) wait(q int) (head uint16, n uint32) {
	g.t.Helper()
	require.Eventually(g.t, func() bool {
		var ok bool
		if head, n, ok = g.rings[q].Take(); ok {
			return true
		}
		if g.rings[q].EnableInterrupt() {
			head, n, ok = g.rings[q].Take()
		}
		return ok
	}, patience, 200*time.Microsecond, "queue %d", q)
	return head, n
}

// send puts bytes on a transmit queue.
func (g *guest) send(q int, p []byte) {
	gpa := g.arena.Alloc(g.t, uint64(len(p)), 16)
	require.NoError(g.t, g.mem.WriteAt(p, gpa))
	half := uint32(len(p) / 2)
	g.rings[q].Add([]drivertest.Seg{{GPA: gpa, Len: half}, {GPA: gpa + uint64(half), Len: uint32(len(p)) - half}}, false, 0)
	g.kick(q)
}

type message struct {
	id           uint32
	event, value uint16
	rest         string
}

func (g *guest) say(id uint32, event, value uint16) {
	b := binary.LittleEndian.AppendUint32(nil, id)
	b = binary.LittleEndian.AppendUint16(b, event)
	g.send(3, binary.LittleEndian.AppendUint16(b, value))
	g.wait(3)
}

func (g *guest) hear() message {
	g.t.Helper()
	b := g.receive(2)
	require.GreaterOrEqual(g.t, len(b), 8)
	le := binary.LittleEndian
	return message{le.Uint32(b), le.Uint16(b[4:]), le.Uint16(b[6:]), string(b[8:])}
}

// handshake brings every port up, as Linux does.
func (g *guest) handshake() {
	g.t.Helper()
	g.offer(2, 16)
	g.say(0xffffffff, deviceReady, 1)
	for i := range g.cfg.Ports {
		require.Equal(g.t, message{uint32(i), portAdd, 1, ""}, g.hear())
	}
	for i, p := range g.cfg.Ports {
		rx, _ := queues(i)
		g.offer(rx, 8)
		g.say(uint32(i), portReady, 1)
		want := message{uint32(i), portName, 1, p.Name}
		if p.Name == "" {
			want = message{uint32(i), consolePort, 1, ""}
		}
		require.Equal(g.t, want, g.hear())
		g.say(uint32(i), portOpen, 1)
	}
}

func queues(port int) (rx, tx int) {
	if port == 0 {
		return 0, 1
	}
	return 2*port + 2, 2*port + 3
}

// listen makes a port reachable and gives the path.
func (g *guest) listen(port int) string {
	path := filepath.Join(g.t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(g.t, err)
	require.NoError(g.t, g.dev.Listen(port, l))
	g.paths[port] = path
	return path
}

func dial(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	t.Cleanup(func() { _ = c.Close() })
	return c
}
