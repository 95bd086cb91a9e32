package mmio

import (
	"bytes"
	"encoding/binary"
	"log/slog"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

func TestIdentity(t *testing.T) {
	b := newBench(t, 2)
	require.EqualValues(t, 0x74726976, b.Get(regMagic))
	require.EqualValues(t, 2, b.Get(regVersion))
	require.EqualValues(t, 63, b.Get(regDeviceID))
	require.EqualValues(t, vendor, b.Get(regVendorID))
	require.Equal(t, uint64(fakeFeatures|virtio.RingFeatures), b.DeviceFeatures())
	b.Set(regDeviceFeaturesSel, 2)
	require.Zero(t, b.Get(regDeviceFeatures))
	require.EqualValues(t, 16, b.Get(regQueueNumMax))
	b.Set(regQueueSel, 2)
	require.Zero(t, b.Get(regQueueNumMax), "there is no queue 2")
	require.EqualValues(t, 0xffffffff, b.Get(regSHMLenLow))
	require.EqualValues(t, 0xffffffff, b.Get(regSHMBaseHigh))
	require.Len(t, b.tr.Kicks(), 2)
	require.EqualValues(t, 0x50, NotifyOffset)
}

// TestOddAccesses: only aligned 4-byte accesses reach a register.
func TestOddAccesses(t *testing.T) {
	b := newBench(t, 1)
	for _, c := range []struct {
		off uint64
		n   int
	}{{0, 1}, {0, 2}, {0, 8}, {1, 4}, {2, 2}, {0xfe, 4}} {
		p := bytes.Repeat([]byte{0xaa}, c.n)
		b.tr.Read(c.off, p)
		require.Equal(t, make([]byte, c.n), p, "%+v", c)
	}
	b.tr.Write(regStatus, []byte{1})
	b.tr.Write(regStatus, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	require.Zero(t, b.Get(regStatus))
}

// TestStatusWalk writes every value in every state that a driver can reach, and
// compares with the rule: bits come in the order of steps and never go.
func TestStatusWalk(t *testing.T) {
	paths := [][]uint32{{}}
	for i := range steps {
		paths = append(paths, append(append([]uint32{}, paths[i]...), steps[i].from|steps[i].bit))
	}
	b := newBench(t, 1)
	for _, path := range paths {
		for v := range uint32(256) {
			b.Set(regStatus, 0)
			for _, s := range path {
				b.Set(regStatus, s)
				b.acceptVersion1()
			}
			from := b.Get(regStatus)
			b.Set(regStatus, v)
			require.Equal(t, afterWrite(from, v), b.Get(regStatus), "write %#x in status %#x", v, from)
		}
	}
}

// acceptVersion1 is what a driver writes before FEATURES_OK.
func (b *bench) acceptVersion1() {
	b.Set(regDriverFeaturesSel, 1)
	b.Set(regDriverFeatures, 1)
}

// afterWrite says it once more, without the table. A jump over DRIVER leaves no
// time to write features, so FEATURES_OK is refused then.
func afterWrite(from, v uint32) uint32 {
	if v == 0 {
		return 0
	}
	s := from | v&statusFailed
	if s&statusFailed != 0 {
		return s
	}
	for _, bit := range []uint32{statusAcknowledge, statusDriver, statusFeaturesOK, statusDriverOK} {
		if s&bit != 0 {
			continue
		}
		if v&bit == 0 || (bit == statusFeaturesOK && from&statusDriver == 0) {
			break
		}
		s |= bit
	}
	return s
}

func TestFeatures(t *testing.T) {
	b := newBench(t, 1)
	for _, c := range []struct {
		name     string
		features uint64
		want     bool
	}{
		{"none", 0, false},
		{"legacy", 1 << 3, false},
		{"version 1", virtio.FeatureVersion1, true},
		{"all", fakeFeatures | virtio.RingFeatures, true},
		{"not offered", virtio.FeatureVersion1 | 1<<5, false},
		{"not offered, high", virtio.FeatureVersion1 | 1<<63, false},
	} {
		require.Equal(t, c.want, b.Negotiate(c.features), c.name)
	}
	require.True(t, b.Negotiate(virtio.FeatureVersion1))
	b.Set(regDriverFeatures, 0xffffffff)
	b.Set(regStatus, 15)
	require.Equal(t, uint64(virtio.FeatureVersion1), b.dev.last.Features, "features are settled by FEATURES_OK")
}

// TestRequests goes all the way: rings, kick, interrupt, reset, again.
func TestRequests(t *testing.T) {
	b := newBench(t, 2)
	for range 3 {
		rings := b.start(t)
		for i := range 2 {
			head := rings[i].Add([]drivertest.Seg{{GPA: 0x80000, Len: 1}}, false, 0)
			b.Kick(i)
			got, _ := rings[i].WaitUsed(b.irq)
			require.Equal(t, head, got)
		}
		b.Kick(99)
		b.Set(regStatus, 0)
		require.Zero(t, b.Get(regStatus)|b.Get(regInterruptStatus))
	}
}

// TestStopQueue: QueueReady = 0 on a live device lets go of the rings.
func TestStopQueue(t *testing.T) {
	b := newBench(t, 2)
	rings := b.start(t)
	b.Set(regQueueSel, 0)
	b.Set(regQueueReady, 0)
	require.Zero(t, b.Get(regQueueReady))
	rings[0].Offer(0xffff) // a queue in use would break
	b.Kick(0)
	head := rings[1].Add([]drivertest.Seg{{GPA: 0x80000, Len: 1}}, false, 0)
	b.Kick(1)
	got, _ := rings[1].WaitUsed(b.irq)
	require.Equal(t, head, got)
	require.EqualValues(t, 15, b.Get(regStatus))
	require.True(t, b.dev.last.Queues[0].Stopped())
}

// TestLateSetUp: a live device's queues stay as they are.
func TestLateSetUp(t *testing.T) {
	b := newBench(t, 1)
	require.True(t, b.Negotiate(modern))
	b.Start()
	require.Nil(t, b.dev.last.Queues[0])
	r := drivertest.NewRing(t, b.mem, b.arena, 16, true)
	b.Set(regQueueNum, uint32(r.Size))
	b.Set(regQueueReady, 1)
	require.Zero(t, b.Get(regQueueReady))
}

func TestBadQueues(t *testing.T) {
	for name, num := range map[string]uint32{"zero": 0, "odd": 3, "too large": 32, "truncated": 1<<16 + 8} {
		b := newBench(t, 1)
		require.True(t, b.Negotiate(modern))
		b.Set(regQueueNum, num)
		b.Set(regQueueReady, 1)
		require.Zero(t, b.Get(regQueueReady), name)
		require.NotZero(t, b.Get(regStatus)&statusNeedsReset, name)
		b.Set(regStatus, 15)
		require.Zero(t, b.Get(regStatus)&statusDriverOK, name)
	}
}

func TestNeedsReset(t *testing.T) {
	b := newBench(t, 1)
	rings := b.start(t)
	rings[0].Offer(0xffff)
	b.Kick(0)
	b.irq.Wait(t)
	require.EqualValues(t, interruptConfig, b.Acknowledge())
	require.EqualValues(t, 15|statusNeedsReset, b.Get(regStatus))
	require.ErrorIs(t, b.dev.last.Queues[0].Err(), queue.ErrBroken)
	b.start(t)
	require.EqualValues(t, 15, b.Get(regStatus))
}

func TestConfigChange(t *testing.T) {
	b := newBench(t, 1)
	b.tr.ConfigChanged()
	require.Zero(t, b.irq.Count(), "no driver, no interrupt")
	b.start(t)
	gen := b.Get(regConfigGeneration)
	b.tr.ConfigChanged()
	require.NotEqual(t, gen, b.Get(regConfigGeneration))
	require.EqualValues(t, interruptConfig, b.Get(regInterruptStatus))
	b.Set(regConfig, 0x1234)
	require.EqualValues(t, 0x1234, b.Get(regConfig))
}

func TestActivationFails(t *testing.T) {
	b := newBench(t, 1)
	b.dev.failNext = errFake
	require.True(t, b.Negotiate(modern))
	b.Set(regStatus, 15)
	require.EqualValues(t, 15|statusNeedsReset, b.Get(regStatus))
}

// TestLogIsBounded: the guest decides how often something goes wrong.
func TestLogIsBounded(t *testing.T) {
	var log bytes.Buffer
	b := newBench(t, 1)
	b.tr.log = slog.New(slog.NewTextHandler(&log, nil))
	for range 100 {
		b.Negotiate(0)
	}
	require.Equal(t, maxComplaints, bytes.Count(log.Bytes(), []byte("driver refused")))
}

func TestNewRefuses(t *testing.T) {
	mem, irq := drivertest.Memory(t, 4096), drivertest.NewInterrupt()
	for name, cfg := range map[string]Config{
		"nothing":   {},
		"no queues": {Memory: mem, Interrupt: irq, Device: &fake{}},
		"odd queue": {Memory: mem, Interrupt: irq, Device: &fake{sizes: []uint16{8, 3}}},
		"too many":  {Memory: mem, Interrupt: irq, Device: &fake{sizes: make([]uint16, maxQueues+1)}},
	} {
		_, err := New(cfg)
		require.Error(t, err, name)
	}
}

// FuzzRegisters plays sequences of accesses, 7 bytes each: operation and width,
// offset, value. Whatever comes, the status is one that steps can reach.
func FuzzRegisters(f *testing.F) {
	f.Add([]byte{})
	var boot []byte
	for _, w := range [][2]uint32{
		{0x70, 1}, {0x70, 3}, {0x24, 1}, {0x20, 1}, {0x70, 11}, {0x30, 0}, {0x38, 8},
		{0x80, 0x1000}, {0x90, 0x2000}, {0xa0, 0x3000}, {0x44, 1}, {0x70, 15}, {0x50, 0}, {0x44, 0}, {0x70, 0},
	} {
		boot = append(boot, 2, byte(w[0]), byte(w[0]>>8))
		boot = binary.LittleEndian.AppendUint32(boot, w[1])
	}
	f.Add(boot)
	f.Fuzz(func(t *testing.T, ops []byte) {
		b := newBench(t, 2)
		for ; len(ops) >= 7; ops = ops[7:] {
			width := 1 << (ops[0] & 3)
			off := uint64(binary.LittleEndian.Uint16(ops[1:])) % Size
			off = min(off, Size-uint64(width))
			p := make([]byte, 8)
			copy(p, ops[3:7])
			switch ops[0] >> 2 & 7 {
			case 0, 1, 2, 3:
				b.tr.Write(off, p[:width])
			case 4:
				require.NoError(t, b.tr.Pause())
			case 5:
				require.NoError(t, b.tr.Resume())
			case 6:
				require.NoError(t, b.mem.WriteAt(p, uint64(binary.LittleEndian.Uint16(ops[1:]))))
			default:
				b.tr.Read(off, p[:width])
			}
			status := b.Get(regStatus) &^ troubles
			require.Contains(t, []uint32{0, 1, 3, 11, 15}, status)
		}
		moveAnywhere(t, b)
	})
}
