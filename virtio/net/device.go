package net

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"godwit/virtio"
)

// Backend is the network behind the device: one side of a cable, in queue pairs.
// A packet is a header of headerSize bytes in the guest's byte order, as the
// guest sees it, and a frame. One goroutine reads a pair, several write. bufs
// are guest memory, which the guest may change meanwhile, and are not kept.
type Backend interface {
	// Queues is the number of pairs that it can have.
	Queues() int
	// Offloads are the Offload bits that it can do.
	Offloads() uint
	// SetOffloads says what the reader understands.
	SetOffloads(set uint) error
	// SetQueues says that the first n pairs are in use: it gives packets to those
	// alone.
	SetQueues(n int) error
	// Readv takes a packet; what does not fit is lost. Errors: unix.EAGAIN when
	// there is none, anything else when there will be none for now.
	Readv(pair int, bufs [][]byte) (int, error)
	// Writev sends a packet. Errors: unix.EAGAIN when there is no room, anything
	// else when the packet cannot be sent.
	Writev(pair int, bufs [][]byte) (int, error)
	// Fd is for poll(2): readable with a packet, writable with room. It may have
	// an error once Readv has.
	Fd(pair int) int
}

const (
	headerSize   = 12 // struct virtio_net_hdr: virtio 1.2, 5.1.6
	headerCount  = 10 // num_buffers in it
	macSize      = 6
	etherHeader  = 14
	maxSegments  = 1024 // of one system call (UIO_MAXIOV)
	maxFrame     = 1<<16 + 64
	maxPacket    = headerSize + maxFrame
	minPacket    = headerSize + etherHeader
	batchPackets = 16 // answered before the driver is shown them

	// MaxPairs is the most that Config.Pairs may ask for.
	MaxPairs = 64
	// DefaultQueueSize is what Config.QueueSize means when it is 0.
	DefaultQueueSize = 256
)

// MAC is an Ethernet address.
type MAC [macSize]byte

// Config says what kind of network card the guest sees.
type Config struct {
	Backend Backend
	// MAC is the card's, until the driver sets another.
	MAC MAC
	// MTU is told to the driver, 68 to 65535 bytes; 0 tells it none.
	MTU uint16
	// Pairs is the number of queue pairs, 1 to MaxPairs; 0 means 1.
	Pairs int
	// QueueSize is a power of two from 16 to 1024, or 0 for DefaultQueueSize.
	QueueSize uint16
}

// Device is one virtio-net device.
type Device struct {
	backend Backend
	mac     MAC // of a new device
	mtu     uint16
	pairs   int
	qsize   uint16

	workers virtio.Workers
	stats   counters

	inUse  atomic.Int32  // queue pairs
	turns  atomic.Uint32 // that the controller has begun to set inUse
	filter atomic.Pointer[filter]
	down   atomic.Bool // the cable is out; changed under mu
	// Owned by the transport's calls:
	receivers []*receiver
	restored  [][]byte // by pair, a packet that waited when the state was saved

	mu       sync.Mutex
	live     *virtio.Activation // nil while inactive
	paused   bool
	settled  bool   // offloads is what the driver asked for, or its default
	offloads uint64 // guest offload features in force
	announce bool   // VIRTIO_NET_S_ANNOUNCE
	known    neighbours
}

var _ virtio.Device = (*Device)(nil)

// New makes a device that is inactive.
func New(cfg Config) (*Device, error) {
	if cfg.Pairs == 0 {
		cfg.Pairs = 1
	}
	if cfg.QueueSize == 0 {
		cfg.QueueSize = DefaultQueueSize
	}
	switch q := cfg.QueueSize; {
	case cfg.Backend == nil:
		return nil, fmt.Errorf("virtio-net: no backend given")
	case cfg.MAC[0]&1 != 0 || cfg.MAC == MAC{}:
		return nil, fmt.Errorf("virtio-net: %v is no address of a card; give one whose first byte is even, not all zero", cfg.MAC)
	case cfg.MTU != 0 && cfg.MTU < 68:
		return nil, fmt.Errorf("virtio-net: an MTU of %d bytes; it is at least 68", cfg.MTU) // 5.1.4.1
	case cfg.Pairs < 1 || cfg.Pairs > MaxPairs:
		return nil, fmt.Errorf("virtio-net: %d queue pairs; use 1 to %d", cfg.Pairs, MaxPairs)
	case cfg.Pairs > cfg.Backend.Queues():
		return nil, fmt.Errorf("virtio-net: %d queue pairs over a backend of %d", cfg.Pairs, cfg.Backend.Queues())
	case q < 16 || q > 1024 || bits.OnesCount16(q) != 1:
		return nil, fmt.Errorf("virtio-net: queues of size %d; use a power of two from 16 to 1024", q)
	}
	d := &Device{backend: cfg.Backend, mac: cfg.MAC, mtu: cfg.MTU, pairs: cfg.Pairs, qsize: cfg.QueueSize}
	d.forget()
	return d, nil
}

// forget goes back to what a driver finds in a new device.
func (d *Device) forget() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.live, d.receivers, d.restored = nil, nil, nil
	d.settled, d.offloads, d.announce = false, 0, false
	d.known = neighbours{}
	d.inUse.Store(1)
	d.filter.Store(&filter{mac: d.mac, promisc: true})
}

// Type implements virtio.Device.
func (d *Device) Type() uint32 { return virtio.TypeNet }

// QueueSizes implements virtio.Device: virtio 1.2, 5.1.2.
func (d *Device) QueueSizes() []uint16 {
	sizes := make([]uint16, 2*d.pairs+1)
	for i := range sizes {
		sizes[i] = d.qsize
	}
	return sizes
}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	d.mu.Lock()
	if !d.settled {
		d.offloads, d.settled = guestOffloads, true
	}
	d.offloads &= a.Features
	offloads := d.offloads
	d.live = &a
	d.mu.Unlock()

	// Without MQ there is one pair, and the control queue comes right behind it.
	pairs := 1
	if a.Features&featureMQ != 0 {
		pairs = d.pairs
	}
	if int(d.inUse.Load()) > pairs {
		d.inUse.Store(1)
	}
	if err := d.backend.SetOffloads(backendOffloads(offloads)); err != nil {
		return fmt.Errorf("virtio-net: set offloads: %w", err)
	}
	if err := d.backend.SetQueues(int(d.inUse.Load())); err != nil {
		return fmt.Errorf("virtio-net: %w", err)
	}
	d.receivers = make([]*receiver, pairs)
	for i := range pairs {
		if q := a.Queues[2*i]; q != nil {
			r := newReceiver(d, i, q, a)
			d.receivers[i] = r
			d.workers.StartTask(a.Kicks[2*i], r)
		}
		if q := a.Queues[2*i+1]; q != nil {
			d.workers.StartTask(a.Kicks[2*i+1], newTransmitter(d, i, q, a))
		}
	}
	if q := a.Queues[2*pairs]; q != nil && a.Features&featureCtrlVQ != 0 {
		c := &controller{dev: d, q: q, live: &a, pairs: pairs}
		d.workers.Start(a.Kicks[2*pairs], c.serve)
	}
	return nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.workers.Stop()
	d.forget()
	// What was agreed on with the driver is void. An interface that is gone has
	// nothing to be told.
	_ = d.backend.SetOffloads(0)
	_ = d.backend.SetQueues(1)
}

// Pause implements virtio.Device.
func (d *Device) Pause() error {
	d.setPaused(true)
	d.workers.Pause()
	return nil
}

// Resume implements virtio.Device.
func (d *Device) Resume() error {
	d.workers.Resume()
	d.setPaused(false)
	return nil
}

func (d *Device) setPaused(paused bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.paused = paused
}
