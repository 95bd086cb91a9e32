package balloon_test

import (
	"encoding/binary"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/state/statetest"
	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/balloon"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
)

const (
	memSize = 16 << 20
	rings   = 1 << 20 // below it are rings and buffers, above it pages to play with

	fStats, fOOM, fHint, fPoison, fReport = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 5
	ringFeatures                          = virtio.RingFeatures

	cfgTarget, cfgActual, cfgHint, cfgPoison = 0x100, 0x104, 0x108, 0x10c
)

// guest is a machine with a balloon: memory, driver, transport, device.
type guest struct {
	t     testing.TB
	mem   *guestmem.Memory
	arena *drivertest.Arena
	irq   *drivertest.Interrupt
	cfg   balloon.Config
	dev   *balloon.Device
	tr    *mmio.Transport
	regs  drivertest.Registers
	rings [5]*drivertest.Ring
	cpu   sync.Mutex // held by whatever a vCPU does, and while vCPUs are paused
}

// build makes a device in the state of a machine that was just assembled.
func (g *guest) build() {
	var err error
	g.dev, err = balloon.New(g.cfg)
	require.NoError(g.t, err)
	g.tr, err = mmio.New(mmio.Config{ID: "virtio/balloon", Memory: g.mem, Device: g.dev, Interrupt: g.irq})
	require.NoError(g.t, err)
	tr := g.tr
	g.t.Cleanup(func() { require.NoError(g.t, tr.Close()) })
	g.regs = drivertest.Registers{T: g.t, Dev: g.tr}
}

// boot makes a guest whose driver has started the device with the queues named by
// number, and with what it was offered but for the features refused.
func boot(t testing.TB, cfg balloon.Config, refused uint64, queues ...int) *guest {
	t.Helper()
	g := &guest{t: t, mem: drivertest.Memory(t, memSize), irq: drivertest.NewInterrupt(), cfg: cfg}
	g.arena = drivertest.NewArena(0x1000, rings)
	if g.cfg.Memory == nil {
		g.cfg.Memory = g.mem
	}
	g.build()
	g.start(refused, queues...)
	return g
}

func (g *guest) start(refused uint64, queues ...int) {
	require.True(g.t, g.regs.Negotiate(g.regs.DeviceFeatures()&^refused))
	for _, i := range queues {
		g.rings[i] = drivertest.NewRing(g.t, g.mem, g.arena, 64, refused&virtio.FeatureEventIdx == 0)
		g.regs.SetQueue(i, g.rings[i])
	}
	g.regs.Start()
}

// send makes a chain available and kicks.
func (g *guest) send(q int, segs ...drivertest.Seg) uint16 {
	g.cpu.Lock()
	defer g.cpu.Unlock()
	head := g.rings[q].Add(segs, false, 0)
	if g.rings[q].WantsKick() {
		g.regs.Kick(q)
	}
	return head
}

// wait sleeps until a queue has an answer.
func (g *guest) wait(q int) uint16 {
	for {
		g.cpu.Lock()
		head, written, done := g.rings[q].Take()
		more := !done && g.rings[q].EnableInterrupt()
		g.cpu.Unlock()
		switch {
		case done:
			require.Zero(g.t, written)
			return head
		case !more:
			g.irq.Wait(g.t)
			g.cpu.Lock()
			g.regs.Acknowledge()
			g.cpu.Unlock()
		}
	}
}

// do is send and wait.
func (g *guest) do(q int, segs ...drivertest.Seg) {
	g.t.Helper()
	require.Equal(g.t, g.send(q, segs...), g.wait(q))
}

// bytes is a buffer that holds p.
func (g *guest) bytes(p []byte) drivertest.Seg {
	gpa := g.arena.Alloc(g.t, uint64(len(p)), 4)
	require.NoError(g.t, g.mem.WriteAt(p, gpa))
	return drivertest.Seg{GPA: gpa, Len: uint32(len(p))}
}

// list is a buffer of page numbers.
func (g *guest) list(pfns ...uint32) drivertest.Seg {
	var b []byte
	for _, pfn := range pfns {
		b = binary.LittleEndian.AppendUint32(b, pfn)
	}
	return g.bytes(b)
}

// free is a buffer that is free pages.
func free(gpa, n uint64) drivertest.Seg { return drivertest.Seg{GPA: gpa, Len: uint32(n), Write: true} }

// fill writes something to every page to play with.
func (g *guest) fill() {
	for gpa := uint64(rings); gpa < memSize; gpa += 4096 {
		require.NoError(g.t, g.mem.WriteAt([]byte{1}, gpa))
	}
}

// gone lists the pages to play with that hold nothing any more.
func (g *guest) gone() (pfns []uint32) {
	for gpa := uint64(rings); gpa < memSize; gpa += 4096 {
		var b [1]byte
		require.NoError(g.t, g.mem.ReadAt(b[:], gpa))
		if b[0] == 0 {
			pfns = append(pfns, uint32(gpa/4096))
		}
	}
	return pfns
}

// move takes the device to a new process.
func (g *guest) move() {
	g.cpu.Lock()
	defer g.cpu.Unlock()
	require.NoError(g.t, g.tr.Pause())
	stream := statetest.Stream(g.t, g.tr)
	require.Equal(g.t, stream, statetest.Stream(g.t, g.tr), "a save changes nothing")
	require.NoError(g.t, g.tr.Close())
	g.build()
	require.NoError(g.t, statetest.Restore(g.tr, stream))
	require.NoError(g.t, g.tr.Resume())
}

func sorted(pfns []uint32) []uint32 {
	pfns = slices.Clone(pfns)
	slices.Sort(pfns)
	return slices.Compact(pfns)
}
