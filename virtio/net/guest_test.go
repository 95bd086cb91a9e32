package net_test

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
	"godwit/virtio/net"
)

const (
	memSize    = 16 << 20
	headerSize = 12
	offloads   = net.OffloadCSUM | net.OffloadTSO4 | net.OffloadTSO6 | net.OffloadTSOECN | net.OffloadUSO4 | net.OffloadUSO6
)

// lost is when a test gives up. It is never waited for when all is well.
const lost = 60 * time.Second

var ownMAC = net.MAC{0x02, 0, 0, 0, 0, 1}

// wire is a Backend of datagram sockets; far is its other side, by pair.
type wire struct {
	near, far []int
	has       uint

	set, queues atomic.Int64
	activity    atomic.Uint64
	fault       atomic.Int64 // an errno for Writev
}

func newWire(t testing.TB, pairs int) *wire {
	w := &wire{has: offloads}
	for range pairs {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		for _, fd := range fds {
			require.NoError(t, unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20))
			t.Cleanup(func() { _ = unix.Close(fd) })
		}
		w.near, w.far = append(w.near, fds[0]), append(w.far, fds[1])
	}
	return w
}

func (w *wire) Queues() int     { return len(w.near) }
func (w *wire) Offloads() uint  { return w.has }
func (w *wire) Fd(pair int) int { return w.near[pair] }
func (w *wire) SetQueues(n int) error {
	w.queues.Store(int64(n))
	return nil
}

func (w *wire) SetOffloads(set uint) error {
	w.set.Store(int64(set))
	return nil
}

func (w *wire) Readv(pair int, bufs [][]byte) (int, error) {
	w.activity.Add(1)
	return w.transfer(unix.SYS_READV, pair, bufs)
}

func (w *wire) Writev(pair int, bufs [][]byte) (int, error) {
	w.activity.Add(1)
	if e := w.fault.Load(); e != 0 {
		return 0, unix.Errno(e)
	}
	return w.transfer(unix.SYS_WRITEV, pair, bufs)
}

func (w *wire) transfer(trap uintptr, pair int, bufs [][]byte) (int, error) {
	var v [1024]unix.Iovec
	for i, b := range bufs {
		v[i].Base = unsafe.SliceData(b)
		v[i].SetLen(len(b))
	}
	n, _, errno := unix.Syscall(trap, uintptr(w.near[pair]), uintptr(unsafe.Pointer(&v)), uintptr(len(bufs)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// packet is a header and a frame of n bytes whose contents tell it from others.
func packet(dst net.MAC, seed byte, n int) []byte {
	p := make([]byte, headerSize+n)
	p[0] = 1 // VIRTIO_NET_HDR_F_NEEDS_CSUM
	f := p[headerSize:]
	for i := range f {
		f[i] = seed + byte(i)*7 + byte(i>>8)
	}
	copy(f, dst[:])
	return p
}

// give sends the guest a packet.
func (w *wire) give(t testing.TB, pair int, p []byte) {
	t.Helper()
	require.NoError(t, unix.Sendto(w.far[pair], p, 0, nil))
}

// taken waits until the card has read all that was given.
func (w *wire) taken(t testing.TB, pair int) {
	t.Helper()
	require.Eventually(t, func() bool {
		_, _, err := unix.Recvfrom(w.near[pair], make([]byte, 1), unix.MSG_PEEK)
		return err == unix.EAGAIN
	}, lost, 50*time.Microsecond)
}

// await waits for a packet from the guest.
func (w *wire) await(t testing.TB, pair int) []byte {
	t.Helper()
	set := []unix.PollFd{{Fd: int32(w.far[pair]), Events: unix.POLLIN}}
	for {
		n, err := unix.Poll(set, int(lost/time.Millisecond))
		if err == unix.EINTR {
			continue
		}
		require.NoError(t, err)
		require.Equal(t, 1, n, "no packet came")
		break
	}
	b := make([]byte, 1<<17)
	n, err := unix.Read(w.far[pair], b)
	require.NoError(t, err)
	return b[:n]
}

// guest is a machine with one card: memory, driver, transport, device.
type guest struct {
	t        testing.TB
	mem      *guestmem.Memory
	arena    *drivertest.Arena
	irq      *drivertest.Interrupt
	dev      *net.Device
	tr       *mmio.Transport
	regs     drivertest.Registers
	rings    []*drivertest.Ring
	irqs     []*drivertest.Interrupt
	features uint64
	pairs    int // that the driver may use
	cfg      net.Config

	cpu  sync.RWMutex                        // held by a running vCPU, taken by a pause
	bufs map[int]map[uint16][]drivertest.Seg // by queue and head
}

type setup struct {
	config  net.Config
	refused uint64
	size    uint16
}

func (g *guest) transport() {
	var err error
	g.dev, err = net.New(g.cfg)
	require.NoError(g.t, err)
	g.tr, err = mmio.New(mmio.Config{ID: "virtio/net0", Memory: g.mem, Device: g.dev, Interrupt: g.irq})
	require.NoError(g.t, err)
	g.t.Cleanup(func() { require.NoError(g.t, g.tr.Close()) })
	g.regs = drivertest.Registers{T: g.t, Dev: g.tr}
}

// boot makes a guest whose driver has started the device.
func boot(t testing.TB, s setup) *guest {
	t.Helper()
	if s.config.MAC == (net.MAC{}) {
		s.config.MAC = ownMAC
	}
	if s.size == 0 {
		s.size = 16
	}
	g := &guest{t: t, mem: drivertest.Memory(t, memSize), irq: drivertest.NewInterrupt(), cfg: s.config, bufs: map[int]map[uint16][]drivertest.Seg{}}
	g.arena = drivertest.NewArena(0x1000, memSize)
	g.transport()
	g.features = g.regs.DeviceFeatures() &^ s.refused
	require.True(t, g.regs.Negotiate(g.features))
	if g.pairs = 1; g.features&(1<<22) != 0 {
		g.pairs = s.config.Pairs
	}
	for i := range 2*g.pairs + 1 {
		ring := drivertest.NewRing(t, g.mem, g.arena, s.size, g.features&virtio.FeatureEventIdx != 0)
		g.rings = append(g.rings, ring)
		g.irqs = append(g.irqs, drivertest.NewInterrupt())
		g.bufs[i] = map[uint16][]drivertest.Seg{}
		g.regs.SetQueue(i, ring)
	}
	g.regs.Start()
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		g.irq.Forward(stop, g.handle)
	}()
	t.Cleanup(func() {
		close(stop)
		<-done
	})
	return g
}

func (g *guest) handle() {
	g.cpu.RLock()
	defer g.cpu.RUnlock()
	g.regs.Acknowledge()
	for _, irq := range g.irqs {
		_ = irq.Trigger()
	}
}

// send makes a chain available and kicks as the device asked to be kicked.
func (g *guest) send(qi int, segs ...drivertest.Seg) uint16 {
	g.cpu.RLock()
	defer g.cpu.RUnlock()
	return g.put(qi, segs...)
}

func (g *guest) put(qi int, segs ...drivertest.Seg) uint16 {
	indirect := g.features&virtio.FeatureIndirectDesc != 0 && len(segs) > 1
	head := g.rings[qi].Add(segs, indirect, 0)
	g.bufs[qi][head] = segs
	if g.rings[qi].WantsKick() {
		g.regs.Kick(qi)
	}
	return head
}

// wait sleeps like a guest until a queue has an answer.
func (g *guest) wait(qi int) (segs []drivertest.Seg, written uint32) {
	for {
		g.cpu.RLock()
		head, written, done := g.rings[qi].Take()
		more := !done && g.rings[qi].EnableInterrupt()
		g.cpu.RUnlock()
		switch {
		case done:
			return g.bufs[qi][head], written
		case !more:
			g.irqs[qi].Wait(g.t)
		}
	}
}

func (g *guest) room(n int) drivertest.Seg {
	return drivertest.Seg{GPA: g.arena.Alloc(g.t, uint64(n), 16), Len: uint32(n), Write: true}
}

// post gives the card count receive buffers of n bytes each.
func (g *guest) post(pair, count, n int) {
	for range count {
		g.send(2*pair, g.room(n))
	}
}

func (g *guest) bytes(segs []drivertest.Seg, n uint32) []byte {
	var out []byte
	for _, s := range segs {
		k := min(s.Len, n)
		b := make([]byte, k)
		require.NoError(g.t, g.mem.ReadAt(b, s.GPA))
		out = append(out, b...)
		n -= k
	}
	require.Zero(g.t, n, "more is said to be written than there is room for")
	return out
}

// receive takes the next packet, of one or more buffers, which it posts again.
func (g *guest) receive(pair int) []byte {
	segs, n := g.wait(2 * pair)
	p := g.bytes(segs, n)
	require.GreaterOrEqual(g.t, len(p), headerSize)
	count := binary.LittleEndian.Uint16(p[10:])
	require.NotZero(g.t, count)
	again := [][]drivertest.Seg{segs}
	for range count - 1 {
		g.cpu.RLock()
		head, n, ok := g.rings[2*pair].Take()
		g.cpu.RUnlock()
		require.True(g.t, ok, "a packet's buffers come in one step")
		p = append(p, g.bytes(g.bufs[2*pair][head], n)...)
		again = append(again, g.bufs[2*pair][head])
	}
	for _, segs := range again {
		g.send(2*pair, segs...)
	}
	return p
}

// transmit sends a packet, cut into pieces.
func (g *guest) transmit(pair int, p []byte, cuts ...int) {
	at := g.arena.Alloc(g.t, uint64(len(p)), 16)
	require.NoError(g.t, g.mem.WriteAt(p, at))
	var segs []drivertest.Seg
	from := 0
	for _, c := range append(cuts, len(p)) {
		segs = append(segs, drivertest.Seg{GPA: at + uint64(from), Len: uint32(c - from)})
		from = c
	}
	g.send(2*pair+1, segs...)
}

// command gives the control queue a command and returns the ack.
func (g *guest) command(class, command byte, data ...byte) byte {
	p := append([]byte{class, command}, data...)
	at := g.arena.Alloc(g.t, uint64(len(p)), 16)
	require.NoError(g.t, g.mem.WriteAt(p, at))
	ack := g.room(1)
	require.NoError(g.t, g.mem.WriteAt([]byte{0xee}, ack.GPA))
	g.send(2*g.pairs, drivertest.Seg{GPA: at, Len: 2}, drivertest.Seg{GPA: at + 2, Len: uint32(len(data))}, ack)
	segs, _ := g.wait(2 * g.pairs)
	return g.bytes(segs[2:], 1)[0]
}
