package rng_test

import (
	"bytes"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
	"godwit/devices/state/statetest"
	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/mmio"
	"godwit/virtio/rng"
)

const memSize = 4 << 20

// guest is a machine with an entropy device.
type guest struct {
	t     testing.TB
	mem   *guestmem.Memory
	arena *drivertest.Arena
	irq   *drivertest.Interrupt
	dev   *rng.Device
	tr    *mmio.Transport
	regs  drivertest.Registers
	ring  *drivertest.Ring
}

func (g *guest) transport(cfg rng.Config) {
	var err error
	g.dev, err = rng.New(cfg)
	require.NoError(g.t, err)
	g.tr, err = mmio.New(mmio.Config{ID: "virtio/rng0", Memory: g.mem, Device: g.dev, Interrupt: g.irq})
	require.NoError(g.t, err)
	g.t.Cleanup(func() { require.NoError(g.t, g.tr.Close()) })
	g.regs = drivertest.Registers{T: g.t, Dev: g.tr}
}

func boot(t testing.TB, cfg rng.Config) *guest {
	t.Helper()
	g := &guest{t: t, mem: drivertest.Memory(t, memSize), irq: drivertest.NewInterrupt()}
	g.arena = drivertest.NewArena(0x1000, memSize)
	g.transport(cfg)
	require.True(t, g.regs.Negotiate(g.regs.DeviceFeatures()))
	g.ring = drivertest.NewRing(t, g.mem, g.arena, 16, true)
	g.regs.SetQueue(0, g.ring)
	g.regs.Start()
	return g
}

// ask puts a buffer on the queue.
func (g *guest) ask(segs ...drivertest.Seg) {
	g.ring.Add(segs, false, 0)
	if g.ring.WantsKick() {
		g.regs.Kick(0)
	}
}

func (g *guest) wait() uint32 {
	_, n := g.ring.WaitUsed(g.irq)
	return n
}

func (g *guest) bytes(gpa, n uint64) []byte {
	b := make([]byte, n)
	require.NoError(g.t, g.mem.ReadAt(b, gpa))
	return b
}

// TestBytes: buffers of any shape are filled, and marked dirty as far as that.
func TestBytes(t *testing.T) {
	g := boot(t, rng.Config{})
	a, b := g.arena.Alloc(t, 8192, 4096), g.arena.Alloc(t, 8192, 4096)
	dirty := make([]uint64, (g.mem.Frames()+63)/64)
	g.mem.DrainDirty(dirty)
	clear(dirty)
	g.ask(drivertest.Seg{GPA: a, Len: 100, Write: true}, drivertest.Seg{GPA: b, Len: 5000, Write: true})
	require.EqualValues(t, 5100, g.wait())
	require.False(t, bytes.Equal(make([]byte, 50), g.bytes(a+50, 50)))
	require.False(t, bytes.Equal(make([]byte, 50), g.bytes(b+4950, 50)))
	require.Equal(t, make([]byte, 8192-5000), g.bytes(b+5000, 8192-5000), "not past the end")
	g.mem.DrainDirty(dirty)
	for _, gpa := range []uint64{a, b, b + 4096} {
		require.NotZero(t, dirty[gpa>>12/64]>>(gpa>>12%64)&1)
	}
	require.Zero(t, dirty[(a+4096)>>12/64]>>((a+4096)>>12%64)&1)

	g.ask(drivertest.Seg{GPA: a, Len: 1 << 20, Write: true})
	require.EqualValues(t, 64<<10, g.wait(), "a huge buffer is filled in part")
	g.ask(drivertest.Seg{GPA: a, Len: 64})
	require.Zero(t, g.wait(), "no room is an answer of nothing")
	require.Equal(t, rng.Stats{Requests: 2, Bytes: 5100 + 64<<10, GuestErrors: 1}, g.dev.Stats())
}

// TestHostError: the guest gets nothing, and the device goes on.
func TestHostError(t *testing.T) {
	fail := errors.New("no entropy")
	g := boot(t, rng.Config{Source: func([]byte) error { return fail }})
	for range 2 {
		g.ask(drivertest.Seg{GPA: g.arena.Alloc(t, 64, 64), Len: 64, Write: true})
		require.Zero(t, g.wait())
	}
	require.Equal(t, rng.Stats{HostErrors: 2, LastHostError: "no entropy"}, g.dev.Stats())
}

// TestLimitDelays: a request beyond the budget is answered when there is some
// again, without a kick.
func TestLimitDelays(t *testing.T) {
	g := boot(t, rng.Config{Limit: rng.Limit{Size: 1000, OneTimeBurst: 500, Refill: 200 * time.Millisecond}})
	gpa := g.arena.Alloc(t, 4096, 64)
	began := time.Now()
	total := uint32(0)
	for total < 3000 {
		g.ask(drivertest.Seg{GPA: gpa, Len: 4096, Write: true})
		n := g.wait()
		require.NotZero(t, n)
		total += n
	}
	// 1500 at once, the other 1500 at 5 bytes a millisecond; the last answer is
	// at least 64 bytes past the mark in the worst case.
	require.GreaterOrEqual(t, time.Since(began), 280*time.Millisecond)
	require.NotZero(t, g.dev.Stats().Waits)
	require.Less(t, g.dev.Stats().Requests, uint64(60), "not a request per byte")
}

// TestPauseDoesNotWaitForTheLimit, and what waits is answered on the other side
// of a move, whose budget is no larger.
func TestPauseDoesNotWaitForTheLimit(t *testing.T) {
	var passed atomic.Int64 // no time passes by itself
	cfg := rng.Config{Limit: rng.Limit{Size: 100, Refill: 500 * time.Millisecond},
		Now: func() time.Time { return time.Unix(1000, passed.Load()) }}
	g := boot(t, cfg)
	waits := func() bool { return g.dev.Stats().Waits == 1 }
	gpa := g.arena.Alloc(t, 4096, 64)
	g.ask(drivertest.Seg{GPA: gpa, Len: 60, Write: true})
	require.EqualValues(t, 60, g.wait())
	g.ask(drivertest.Seg{GPA: gpa, Len: 100, Write: true})
	require.Eventually(t, waits, time.Minute, time.Millisecond)
	require.NoError(t, g.tr.Pause())
	stream := statetest.Stream(t, g.tr)
	require.NoError(t, g.tr.Close())
	require.EqualValues(t, 1, g.ring.InFlight())

	g.transport(cfg)
	require.NoError(t, statetest.Restore(g.tr, stream))
	require.NoError(t, g.tr.Resume())
	require.Eventually(t, waits, time.Minute, time.Millisecond)
	passed.Add(int64(120 * time.Millisecond)) // 24 bytes
	require.EqualValues(t, 64, g.wait())

	require.NoError(t, g.tr.Close())
	g.transport(rng.Config{})
	require.ErrorContains(t, statetest.Restore(g.tr, stream), "give the same rate limit")
}

func TestNewRefuses(t *testing.T) {
	for want, l := range map[string]rng.Limit{
		"bucket of 0 bytes":  {Refill: time.Second},
		"refill time of 0s":  {Size: 1},
		"refill time of 48h": {Size: 1, Refill: 48 * time.Hour},
		"a burst of":         {Size: 1, OneTimeBurst: rng.MaxSize + 1, Refill: time.Second},
		"give 1 to":          {Size: rng.MaxSize + 1, Refill: time.Second},
	} {
		_, err := rng.New(rng.Config{Limit: l})
		require.ErrorContains(t, err, want)
	}
}

func TestState(t *testing.T) {
	cfg := rng.Config{Limit: rng.Limit{Size: 1000, OneTimeBurst: 500, Refill: rng.MaxRefill}}
	fresh := func() state.Saver {
		dev, err := rng.New(cfg)
		require.NoError(t, err)
		return dev
	}
	dev := fresh()
	var e state.Encoder
	e.U64(uint64(time.Hour))
	e.U64(123)
	require.NoError(t, dev.Restore(1, state.NewDecoder(e.Data())))
	statetest.Golden(t, dev, fresh)
}

// FuzzRestore feeds a destination the state of a hostile source.
func FuzzRestore(f *testing.F) {
	golden, err := os.ReadFile("testdata/virtio-rng-v1.state")
	require.NoError(f, err)
	f.Add(golden)
	mem := drivertest.Memory(f, 1<<20)
	f.Fuzz(func(t *testing.T, data []byte) {
		dev, err := rng.New(rng.Config{Limit: rng.Limit{Size: 1000, Refill: time.Hour}})
		require.NoError(t, err)
		tr, err := mmio.New(mmio.Config{ID: "virtio/rng0", Memory: mem, Device: dev, Interrupt: drivertest.NewInterrupt()})
		require.NoError(t, err)
		defer tr.Close()
		if tr.Restore(1, state.NewDecoder(data)) == nil {
			require.NoError(t, tr.Resume())
			require.NoError(t, tr.Pause())
		}
	})
}

var _ virtio.Device = (*rng.Device)(nil)
