package blk_test

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/devices/bus"
	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/blk"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
)

const (
	memSize  = 32 << 20
	diskSize = 4 << 20

	in, out, flush, getID, discard, writeZeroes = 0, 1, 4, 8, 11, 13
	ok, ioErr, unsupp                           = 0, 1, 2

	unanswered = 0xee // what the status byte holds before
)

// guest is a machine with one disk: memory, driver, transport, device.
type guest struct {
	t     testing.TB
	mem   *guestmem.Memory
	arena *drivertest.Arena
	irq   *drivertest.Interrupt // of the device
	dev   *blk.Device
	tr    *mmio.Transport
	regs  drivertest.Registers
	rings []*drivertest.Ring
	irqs  []*drivertest.Interrupt // what the handler wakes, one per queue

	// cpu is held shared by whatever a vCPU does and exclusively while the
	// vCPUs are paused.
	cpu      sync.RWMutex
	indirect bool
	// wire stands between the device and irq, if it is set.
	wire func(*drivertest.Interrupt) bus.Interrupt
}

type setup struct {
	config   blk.Config
	features uint64 // refused by the driver
	size     uint16
	wire     func(*drivertest.Interrupt) bus.Interrupt
}

func diskFile(t testing.TB, o blockfile.Options) blockfile.File {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, make([]byte, diskSize), 0o600))
	return openDisk(t, path, o)
}

func writeZeroFile(path string) error { return os.WriteFile(path, make([]byte, diskSize), 0o600) }

func openDisk(t testing.TB, path string, o blockfile.Options) blockfile.File {
	t.Helper()
	f, err := blockfile.Open(path, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, f.Close()) })
	return f
}

// transport makes a device in the state of a machine that was just assembled.
func (g *guest) transport(cfg blk.Config) {
	var err error
	g.dev, err = blk.New(cfg)
	require.NoError(g.t, err)
	var irq bus.Interrupt = g.irq
	if g.wire != nil {
		irq = g.wire(g.irq)
	}
	g.tr, err = mmio.New(mmio.Config{ID: "virtio/disk0", Memory: g.mem, Device: g.dev, Interrupt: irq})
	require.NoError(g.t, err)
	g.t.Cleanup(func() { require.NoError(g.t, g.tr.Close()) })
	g.regs = drivertest.Registers{T: g.t, Dev: g.tr}
}

// boot makes a guest whose driver has started the device.
func boot(t testing.TB, s setup) *guest {
	t.Helper()
	g := &guest{t: t, mem: drivertest.Memory(t, memSize), irq: drivertest.NewInterrupt(), wire: s.wire}
	g.arena = drivertest.NewArena(0x1000, memSize)
	g.transport(s.config)
	features := g.regs.DeviceFeatures() &^ s.features
	require.True(t, g.regs.Negotiate(features))
	g.indirect = features&virtio.FeatureIndirectDesc != 0
	if s.size == 0 {
		s.size = 16
	}
	for i := range max(s.config.Queues, 1) {
		ring := drivertest.NewRing(t, g.mem, g.arena, s.size, features&virtio.FeatureEventIdx != 0)
		g.rings = append(g.rings, ring)
		g.irqs = append(g.irqs, drivertest.NewInterrupt())
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

// handle is the interrupt handler: acknowledge first, then look at all queues.
func (g *guest) handle() {
	g.cpu.RLock()
	defer g.cpu.RUnlock()
	g.regs.Acknowledge()
	for _, irq := range g.irqs {
		_ = irq.Trigger()
	}
}

// request is one in guest memory.
type request struct {
	status uint64 // where its status byte is
	header uint64
}

// submit puts a request on a queue and kicks as the device asked to be kicked.
// The data segments say themselves whether the device writes them.
func (g *guest) submit(qi int, kind uint32, sector uint64, data ...drivertest.Seg) (head uint16, r request) {
	g.cpu.RLock()
	defer g.cpu.RUnlock()
	r = request{header: g.arena.Alloc(g.t, 16, 8), status: g.arena.Alloc(g.t, 1, 1)}
	g.writeHeader(r.header, kind, sector)
	require.NoError(g.t, g.mem.WriteAt([]byte{unanswered}, r.status))
	return g.send(qi, r, data), r
}

func (g *guest) writeHeader(gpa uint64, kind uint32, sector uint64) {
	var b [16]byte
	binary.LittleEndian.PutUint32(b[0:], kind)
	binary.LittleEndian.PutUint64(b[8:], sector)
	require.NoError(g.t, g.mem.WriteAt(b[:], gpa))
}

func (g *guest) send(qi int, r request, data []drivertest.Seg) uint16 {
	segs := []drivertest.Seg{{GPA: r.header, Len: 16}}
	segs = append(segs, data...)
	segs = append(segs, drivertest.Seg{GPA: r.status, Len: 1, Write: true})
	head := g.rings[qi].Add(segs, g.indirect, 0)
	if g.rings[qi].WantsKick() {
		g.regs.Kick(qi)
	}
	return head
}

// wait sleeps like a guest until a queue has an answer.
func (g *guest) wait(qi int) (head uint16, written uint32) {
	for {
		g.cpu.RLock()
		head, written, done := g.rings[qi].Take()
		more := !done && g.rings[qi].EnableInterrupt()
		g.cpu.RUnlock()
		switch {
		case done:
			return head, written
		case !more:
			g.irqs[qi].Wait(g.t)
		}
	}
}

// do is submit, wait and the status.
func (g *guest) do(qi int, kind uint32, sector uint64, data ...drivertest.Seg) byte {
	g.t.Helper()
	head, r := g.submit(qi, kind, sector, data...)
	got, written := g.wait(qi)
	require.Equal(g.t, head, got)
	status := g.bytes(r.status, 1)[0]
	if status == ok {
		want := uint32(1)
		for _, s := range data {
			if s.Write {
				want += s.Len
			}
		}
		require.Equal(g.t, want, written)
	}
	return status
}

func (g *guest) bytes(gpa, n uint64) []byte {
	b := make([]byte, n)
	require.NoError(g.t, g.mem.ReadAt(b, gpa))
	return b
}

// buffer puts p into guest memory.
func (g *guest) buffer(p []byte) uint64 {
	gpa := g.arena.Alloc(g.t, uint64(len(p)), 16)
	require.NoError(g.t, g.mem.WriteAt(p, gpa))
	return gpa
}

func readSeg(gpa uint64, n int) drivertest.Seg {
	return drivertest.Seg{GPA: gpa, Len: uint32(n), Write: true}
}

func writeSeg(gpa uint64, n int) drivertest.Seg {
	return drivertest.Seg{GPA: gpa, Len: uint32(n)}
}

func ranges(sector uint64, sectors, flags uint32) []byte {
	b := make([]byte, 16)
	binary.LittleEndian.PutUint64(b[0:], sector)
	binary.LittleEndian.PutUint32(b[8:], sectors)
	binary.LittleEndian.PutUint32(b[12:], flags)
	return b
}
