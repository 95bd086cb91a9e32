package blk

import (
	"fmt"
	"math/bits"
	"sync"
	"sync/atomic"

	"godwit/virtio"
	"godwit/virtio/queue"
)

// Backend is the disk behind the device. Offsets and lengths are bytes and
// multiples of 512, always inside Size. Workers of several queues call it at
// once. The bufs are guest memory, which the guest may change meanwhile, and are
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
}

// Device is one virtio-blk device.
type Device struct {
	backend Backend
	serial  [idSize]byte
	queues  int
	qsize   uint16

	writeback atomic.Bool // the configuration field of that name
	workers   virtio.Workers
	stats     counters

	errMu   sync.Mutex
	lastErr error
}

var _ virtio.Device = (*Device)(nil)

// New makes a device that is inactive.
func New(cfg Config) (*Device, error) {
	if cfg.Queues == 0 {
		cfg.Queues = 1
	}
	if cfg.QueueSize == 0 {
		cfg.QueueSize = DefaultQueueSize
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
	}
	d := &Device{backend: cfg.Backend, queues: cfg.Queues, qsize: cfg.QueueSize}
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
	for i, q := range a.Queues {
		if q == nil {
			continue
		}
		w := &worker{dev: d, q: q, notify: a.Notifier, features: a.Features}
		d.workers.Start(a.Kicks[i], w.serve)
	}
	return nil
}

// Reset implements virtio.Device.
func (d *Device) Reset() {
	d.workers.Stop()
	d.writeback.Store(d.backend.WriteCache())
}

// Pause implements virtio.Device.
func (d *Device) Pause() error {
	d.workers.Pause()
	return nil
}

// Resume implements virtio.Device.
func (d *Device) Resume() error {
	d.workers.Resume()
	return nil
}

// worker serves one queue.
type worker struct {
	dev      *Device
	q        *queue.Queue
	notify   virtio.Notifier
	features uint64
	header   [headerSize]byte
	ranges   [rangeSize * maxRanges]byte
}

// serve answers requests until the queue is empty or the workers are to yield.
func (w *worker) serve() {
	if w.q.Stopped() {
		return
	}
	if err := w.drain(); err != nil {
		w.notify.NeedsReset(err)
	}
}

func (w *worker) drain() error {
	for {
		if err := w.q.DisableNotification(); err != nil {
			return err
		}
		for {
			if w.dev.workers.Yield() {
				return nil
			}
			c, err := w.q.Pop()
			if err != nil {
				return err
			}
			if c == nil {
				break
			}
			notify, err := w.q.Push(c, w.answer(c))
			if err != nil {
				return err
			}
			if notify {
				w.notify.Used()
			}
		}
		if more, err := w.q.EnableNotification(); err != nil || !more {
			return err
		}
	}
}
