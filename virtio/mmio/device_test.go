package mmio

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
	"godwit/kvm/guestmem"
	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

// fake is a device that echoes: it answers every chain with nothing, and records
// what its transport asks of it.
type fake struct {
	sizes    []uint16
	calls    []string
	last     virtio.Activation
	workers  virtio.Workers
	failNext error
	word     uint32
}

const fakeFeatures = 1<<3 | 1<<40

func (d *fake) Type() uint32         { return 63 }
func (d *fake) Features() uint64     { return fakeFeatures }
func (d *fake) QueueSizes() []uint16 { return d.sizes }

func (d *fake) ReadConfig(off uint64, p []byte) {
	clear(p)
	if off == 0 && len(p) == 4 {
		binary.LittleEndian.PutUint32(p, d.word)
	}
}

func (d *fake) WriteConfig(off uint64, p []byte) {
	if off == 0 && len(p) == 4 {
		d.word = binary.LittleEndian.Uint32(p)
	}
}

func (d *fake) Activate(a virtio.Activation) error {
	d.calls = append(d.calls, "activate")
	d.last = a
	for i, q := range a.Queues {
		if q != nil {
			d.workers.Start(a.Kicks[i], func() { d.serve(q) })
		}
	}
	return d.failNext
}

func (d *fake) serve(q *queue.Queue) {
	for !d.workers.Yield() && !q.Stopped() {
		c, err := q.Pop()
		if err != nil {
			d.last.Notifier.NeedsReset(err)
			return
		}
		if c == nil {
			if more, err := q.EnableNotification(); err != nil || !more {
				return
			}
			continue
		}
		if notify, err := q.Push(c, 0); err == nil && notify {
			d.last.Notifier.Used()
		}
	}
}

func (d *fake) Reset() {
	d.calls = append(d.calls, "reset")
	d.workers.Stop()
}

func (d *fake) Pause() error {
	d.calls = append(d.calls, "pause")
	d.workers.Pause()
	return nil
}

func (d *fake) Resume() error {
	d.calls = append(d.calls, "resume")
	d.workers.Resume()
	return nil
}

func (d *fake) StateID() string      { return "fake" }
func (d *fake) StateVersion() uint32 { return 1 }
func (d *fake) Save(e *state.Encoder) error {
	e.U32(d.word)
	return nil
}

func (d *fake) Restore(v uint32, dec *state.Decoder) error {
	if v != 1 {
		return fmt.Errorf("version %d", v)
	}
	d.word = dec.U32()
	return dec.Err()
}

var errFake = errors.New("it does not start")

// bench is a transport over a fake.
type bench struct {
	drivertest.Registers
	mem   *guestmem.Memory
	arena *drivertest.Arena
	irq   *drivertest.Interrupt
	dev   *fake
	tr    *Transport
}

const benchMem = 1 << 20

func newBench(t testing.TB, queues int) *bench {
	t.Helper()
	return newBenchOn(t, drivertest.Memory(t, benchMem), queues)
}

func newBenchOn(t testing.TB, mem *guestmem.Memory, queues int) *bench {
	t.Helper()
	b := &bench{mem: mem, arena: drivertest.NewArena(0x1000, benchMem), irq: drivertest.NewInterrupt(), dev: &fake{}}
	for range queues {
		b.dev.sizes = append(b.dev.sizes, 16)
	}
	var err error
	b.tr, err = New(Config{ID: "virtio/fake", Memory: b.mem, Device: b.dev, Interrupt: b.irq})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, b.tr.Close()) })
	b.Registers = drivertest.Registers{T: t, Dev: b.tr}
	return b
}

const modern = virtio.FeatureVersion1 | virtio.FeatureEventIdx

// start takes the device to DRIVER_OK with every queue set up.
func (b *bench) start(t testing.TB) []*drivertest.Ring {
	t.Helper()
	require.True(t, b.Negotiate(modern))
	var rings []*drivertest.Ring
	for i := range b.dev.sizes {
		r := drivertest.NewRing(t, b.mem, b.arena, 16, true)
		rings = append(rings, r)
		b.SetQueue(i, r)
	}
	b.Start()
	return rings
}
