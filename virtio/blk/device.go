package blk

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"godwit/virtio"
)

// Backend is the disk behind the device. Offsets and lengths are bytes and
// multiples of 512, always inside Size. It is called by many goroutines at once. The bufs are guest memory, which the guest may change meanwhile, and are
// not kept.
type Backend interface {
	// Preadv and Pwritev move all of bufs or fail.
	Preadv(bufs [][]byte, off int64) (int, error)
	Pwritev(bufs [][]byte, off int64) (int, error)
	// Flush makes every completed write stable.
	Flush() error
	// Discard says that the range's contents no longer matter.
	Discard(off, n int64) error
	// WriteZeroes makes the range read as zeroes; with mayUnmap it may free it.
	WriteZeroes(off, n int64, mayUnmap bool) error
	// Size is the length in bytes. It does not change.
	Size() int64
	// BlockSize is the unit, in bytes, that is cheap to write; a power of two
	// from 512.
	BlockSize() int
	// ReadOnly says that changes fail.
	ReadOnly() bool
	// WriteCache says that a completed write needs Flush to be stable.
	WriteCache() bool
}

// Trier is a Backend that knows beforehand what would wait for storage. Its
// methods do the whole of a Preadv or Pwritev and report true, or report false
// when that would wait; any part may have been done then, and the caller asks
// again with Preadv or Pwritev.
type Trier interface {
	TryPreadv(bufs [][]byte, off int64) (done bool, err error)
	TryPwritev(bufs [][]byte, off int64) (done bool, err error)
}

const (
	// SectorSize is the unit of capacity and addresses, in bytes, whatever the
	// block size is: virtio 1.2, 5.2.4.
	SectorSize = 512
	// MaxQueues is the most that Config.Queues may ask for.
	MaxQueues = 64
	// DefaultQueueSize is what Config.QueueSize means when it is 0.
	DefaultQueueSize = 256

	idSize = 20 // VIRTIO_BLK_ID_BYTES
)

// Config says what kind of disk the guest sees.
type Config struct {
	Backend Backend
	// Serial is what get-id answers: up to 20 bytes.
	Serial string
	// Queues is their number, 1 to MaxQueues; 0 means 1.
	Queues int
	// QueueSize is a power of two from 4 to 1024, or 0 for DefaultQueueSize.
	QueueSize uint16
	// InFlight bounds the requests, of all queues together, that wait for the
	// backend at a time: 1 to MaxInFlight; 0 means DefaultInFlight.
	InFlight int
	// Full says of an error of the backend that the request is to be parked: the
	// host has no room for it. OnFull hears of each, from any goroutine, when it is;
	// it does not block and does not call the device. Both are nil where such an
	// error goes to the guest.
	Full   func(error) bool
	OnFull func(error)
}

// Device is one virtio-blk device.
type Device struct {
	backend  Backend
	try      Trier // the backend, or nil if it is none
	serial   [idSize]byte
	queues   int
	qsize    uint16
	inFlight int

	writeback atomic.Bool // the configuration field of that name
	workers   virtio.Workers
	pool      *pool // while activated
	stats     counters

	full   func(error) bool
	onFull func(error)

	errMu   sync.Mutex
	lastErr error

	parkMu  sync.Mutex
	parked  []*request // failed for want of room, to be done again by Resume
	arrived []place    // of what was parked where the guest came from, until Activate
}

var (
	_ virtio.Device     = (*Device)(nil)
	_ virtio.Negotiator = (*Device)(nil)
	_ virtio.Keeper     = (*Device)(nil)
)

// New makes a device that is inactive.
func New(cfg Config) (*Device, error) {
	if cfg.Queues == 0 {
		cfg.Queues = 1
	}
	if cfg.QueueSize == 0 {
		cfg.QueueSize = DefaultQueueSize
	}
	if cfg.InFlight == 0 {
		cfg.InFlight = DefaultInFlight
	}
	switch b, q := cfg.Backend, cfg.QueueSize; {
	case b == nil:
		return nil, fmt.Errorf("virtio-blk: no backend given")
	case b.Size() <= 0 || b.Size()%SectorSize != 0:
		return nil, fmt.Errorf("virtio-blk: a disk of %d bytes; it must be a positive multiple of %d", b.Size(), SectorSize)
	case b.BlockSize() < SectorSize || b.BlockSize() > 1<<20 || bits.OnesCount(uint(b.BlockSize())) != 1:
		return nil, fmt.Errorf("virtio-blk: blocks of %d bytes; use a power of two from %d", b.BlockSize(), SectorSize)
	case len(cfg.Serial) > idSize:
		return nil, fmt.Errorf("virtio-blk: serial %q is longer than %d bytes", cfg.Serial, idSize)
	case cfg.Queues < 1 || cfg.Queues > MaxQueues:
		return nil, fmt.Errorf("virtio-blk: %d queues; use 1 to %d", cfg.Queues, MaxQueues)
	case q < 4 || q > 1024 || bits.OnesCount16(q) != 1:
		return nil, fmt.Errorf("virtio-blk: queues of size %d; use a power of two from 4 to 1024", q)
	case (cfg.Full == nil) != (cfg.OnFull == nil):
		return nil, fmt.Errorf("virtio-blk: only one of Full and OnFull given")
	case cfg.InFlight < 1 || cfg.InFlight > MaxInFlight:
		return nil, fmt.Errorf("virtio-blk: %d requests in flight; use 1 to %d", cfg.InFlight, MaxInFlight)
	}
	d := &Device{backend: cfg.Backend, queues: cfg.Queues, qsize: cfg.QueueSize, inFlight: cfg.InFlight, full: cfg.Full, onFull: cfg.OnFull}
	d.try, _ = cfg.Backend.(Trier)
	copy(d.serial[:], cfg.Serial)
	d.writeback.Store(cfg.Backend.WriteCache())
	return d, nil
}

// Type implements virtio.Device.
func (d *Device) Type() uint32 { return virtio.TypeBlock }

// QueueSizes implements virtio.Device.
func (d *Device) QueueSizes() []uint16 {
	sizes := make([]uint16, d.queues)
	for i := range sizes {
		sizes[i] = d.qsize
	}
	return sizes
}

// Activate implements virtio.Device. It starts a worker per queue.
func (d *Device) Activate(a virtio.Activation) error {
	d.pool = newPool(d.inFlight, d.queues*int(d.qsize))
	for i, q := range a.Queues {
		if q == nil {
			continue
		}
		w := &worker{dev: d, index: i, q: q, notify: a.Notifier, features: a.Features, pool: d.pool}
		w.adopt(d.arrived)
		d.workers.Start(a.Kicks[i], w.serve)
	}
	d.arrived = nil
	return nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.workers.Stop()
	if d.pool != nil {
		d.pool.close()
		d.pool = nil
	}
	d.forget()
	d.writeback.Store(d.backend.WriteCache())
}

// Pause implements virtio.Device.
func (d *Device) Pause() error {
	d.workers.Pause()
	if d.pool != nil {
		d.pool.drain()
	}
	return nil
}

// Resume implements virtio.Device.
func (d *Device) Resume() error {
	d.unpark()
	d.workers.Resume()
	return nil
}
