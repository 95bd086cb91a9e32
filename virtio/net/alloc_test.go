package net

import (
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/virtio"
	"godwit/virtio/internal/drivertest"
	"godwit/virtio/queue"
)

// feed is a Backend with left packets of size bytes, that swallows all it gets.
type feed struct {
	left, size int
	header     [headerSize]byte
}

func (*feed) Queues() int            { return 1 }
func (*feed) Offloads() uint         { return 0 }
func (*feed) SetOffloads(uint) error { return nil }
func (*feed) SetQueues(int) error    { return nil }
func (*feed) Fd(int) int             { return -1 }

func (f *feed) Readv(_ int, bufs [][]byte) (int, error) {
	if f.left == 0 {
		return 0, unix.EAGAIN
	}
	f.left--
	copy(bufs[0], f.header[:])
	return f.size, nil
}

func (f *feed) Writev(_ int, bufs [][]byte) (int, error) { return int(queue.Len(bufs)), nil }

type nobody struct{}

func (nobody) Used()            {}
func (nobody) ConfigChanged()   {}
func (nobody) NeedsReset(error) {}

// bench is a device with one queue of its own, whose ring is full and is offered
// again by moving the index alone.
type bench struct {
	t     testing.TB
	dev   *Device
	feed  *feed
	ring  *drivertest.Ring
	q     *queue.Queue
	live  virtio.Activation
	avail uint16
	store func(uint64, uint16) error
}

func newBench(t testing.TB, size uint32, write bool) *bench {
	b := &bench{t: t, feed: &feed{}}
	mem := drivertest.Memory(t, 4<<20)
	arena := drivertest.NewArena(0x1000, 4<<20)
	b.ring = drivertest.NewRing(t, mem, arena, 256, true)
	for range 256 {
		b.ring.Add([]drivertest.Seg{{GPA: arena.Alloc(t, uint64(size), 64), Len: size, Write: write}}, false, 0)
	}
	b.avail, b.store = 256, mem.StoreUint16
	var err error
	b.q, err = queue.New(mem, b.ring.Config(false))
	require.NoError(t, err)
	b.dev, err = New(Config{Backend: b.feed, MAC: MAC{2}})
	require.NoError(t, err)
	kick, err := virtio.NewKick()
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, kick.Close()) })
	b.live = virtio.Activation{
		Features: featureMergeable | featureGuestCSUM | featureCtrlRX | virtio.FeatureEventIdx,
		Queues:   []*queue.Queue{b.q, b.q}, Kicks: []*virtio.Kick{kick, kick}, Notifier: nobody{},
	}
	return b
}

// offer gives n answered chains back to the device.
func (b *bench) offer(n uint16) {
	b.avail += n
	require.NoError(b.t, b.store(b.ring.Avail+2, b.avail))
}

// receive moves n packets through a receiver that uses up per chains for each.
func (b *bench) receive(r *receiver, n, per int) {
	b.feed.left = n
	if err := r.drain(); err != nil || b.feed.left != 0 {
		b.t.Fatal(err, b.feed.left)
	}
	b.offer(uint16(n * per))
}

func (b *bench) transmit(x *transmitter) {
	if err := x.drain(); err != nil {
		b.t.Fatal(err)
	}
	b.offer(256)
}

// TestNothingIsAllocated per packet, small or large, in or out.
func TestNothingIsAllocated(t *testing.T) {
	if raceEnabled {
		return // the detector allocates
	}
	b := newBench(t, 1536, true)
	r := newReceiver(b.dev, 0, b.q, b.live)
	b.feed.size = headerSize + 64
	small := func() { b.receive(r, 64, 1) }
	small()
	require.Zero(t, testing.AllocsPerRun(20, small))
	b.feed.size = headerSize + 65536
	large := func() { b.receive(r, 4, (headerSize+65536+1535)/1536) }
	large()
	require.Zero(t, testing.AllocsPerRun(20, large))

	b = newBench(t, 76, false)
	x := newTransmitter(b.dev, 0, b.q, b.live)
	out := func() { b.transmit(x) }
	out()
	require.Zero(t, testing.AllocsPerRun(20, out))
}

// BenchmarkReceive64 and BenchmarkTransmit64 are what a small packet costs here,
// without the kernel's part.
func BenchmarkReceive64(b *testing.B) {
	f := newBench(b, 1536, true)
	r := newReceiver(f.dev, 0, f.q, f.live)
	f.feed.size = headerSize + 64
	b.ReportAllocs()
	for i := 0; i < b.N; i += 64 {
		f.receive(r, 64, 1)
	}
}

func BenchmarkTransmit64(b *testing.B) {
	f := newBench(b, 76, false)
	x := newTransmitter(f.dev, 0, f.q, f.live)
	b.ReportAllocs()
	for i := 0; i < b.N; i += 256 {
		f.transmit(x)
	}
}
