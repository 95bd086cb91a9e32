package rng

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"godwit/virtio"
	"godwit/virtio/queue"
)

const (
	queueSize = 256

	// maxRequest is the most that one buffer gets, so that a pause is never long:
	// virtio 1.2, 5.4.6.1 asks for one byte at least.
	maxRequest = 64 << 10
	// worthwhile is how much budget a waiting worker waits for, where the bucket
	// holds so much: not a request per byte.
	worthwhile = 64
)

// Config says what the guest gets.
type Config struct {
	// Limit is how fast; the zero value is as fast as the host can.
	Limit Limit
	// Source fills p; nil means getrandom. It is for tests.
	Source func(p []byte) error
	// Now is the clock that the limit goes by; nil means time.Now. It is for tests.
	Now func() time.Time
}

// Device is one virtio-rng device.
type Device struct {
	source  func([]byte) error
	now     func() time.Time
	workers virtio.Workers
	stats   counters

	mu      sync.Mutex // the rest; held for moments
	bucket  bucket
	alarm   *time.Timer // kicks the worker when there is budget, or nil
	waiting bool        // the request at hand has been counted as waiting
}

var _ virtio.Device = (*Device)(nil)

// New makes a device that is inactive.
func New(cfg Config) (*Device, error) {
	if err := cfg.Limit.check(); err != nil {
		return nil, fmt.Errorf("virtio-rng: %w", err)
	}
	if cfg.Source == nil {
		cfg.Source = getrandom
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Device{source: cfg.Source, now: cfg.Now, bucket: newBucket(cfg.Limit, cfg.Now())}, nil
}

// getrandom is getrandom(2), which a signal may cut short.
func getrandom(p []byte) error {
	for len(p) > 0 {
		n, err := unix.Getrandom(p, 0)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("getrandom: %w", err)
		}
		p = p[max(n, 0):]
	}
	return nil
}

// Type implements virtio.Device.
func (d *Device) Type() uint32 { return virtio.TypeEntropy }

// Features implements virtio.Device: there are none (virtio 1.2, 5.4.3).
func (d *Device) Features() uint64 { return 0 }

// QueueSizes implements virtio.Device: the requestq (virtio 1.2, 5.4.2).
func (d *Device) QueueSizes() []uint16 { return []uint16{queueSize} }

// ReadConfig implements virtio.Device: there is none (virtio 1.2, 5.4.4).
func (d *Device) ReadConfig(_ uint64, p []byte) { clear(p) }

// WriteConfig implements virtio.Device.
func (d *Device) WriteConfig(uint64, []byte) {}

// Activate implements virtio.Device.
func (d *Device) Activate(a virtio.Activation) error {
	if a.Queues[0] == nil {
		return nil
	}
	kick := a.Kicks[0]
	d.mu.Lock()
	// A kick that fails is one of a device that is closed: nobody waits any more.
	d.alarm = time.AfterFunc(MaxRefill, func() { _ = kick.Signal() })
	d.alarm.Stop()
	d.mu.Unlock()
	w := &worker{Line: virtio.Line{Queue: a.Queues[0], Notifier: a.Notifier, Workers: &d.workers}, dev: d}
	d.workers.Start(kick, w.serve)
	return nil
}

// Reset implements virtio.Device. What was spent of the budget stays spent.
func (d *Device) Reset() {
	d.workers.Stop()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.alarm != nil {
		d.alarm.Stop()
		d.alarm = nil
	}
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

// budget is how many bytes the next request may have. With 0 the worker is
// kicked when there are some.
func (d *Device) budget() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := &d.bucket
	if b.limit.None() {
		return maxRequest
	}
	n := b.available(d.now())
	if n >= min(worthwhile, b.limit.Size) {
		d.waiting = false
		return min(n, maxRequest)
	}
	if !d.waiting {
		d.waiting = true
		d.stats.waits.Add(1)
	}
	d.alarm.Reset(b.wait(worthwhile))
	return 0
}

func (d *Device) spend(n uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.bucket.limit.None() {
		d.bucket.take(n)
	}
}

// worker serves the requestq.
type worker struct {
	virtio.Line
	dev *Device
}

// serve fills buffers until the queue is empty, the budget is, or the workers
// are to yield.
func (w *worker) serve() { w.Serve(w.drain) }

func (w *worker) drain() error {
	for {
		if err := w.Queue.DisableNotification(); err != nil {
			return err
		}
		done, err := w.fillAll()
		if err != nil || done {
			return err
		}
		if more, err := w.Queue.EnableNotification(); err != nil || !more {
			return err
		}
	}
}

// fillAll reports done where it stopped for another reason than an empty queue.
func (w *worker) fillAll() (done bool, err error) {
	for !w.dev.workers.Yield() {
		// An empty queue must not count as a wait, nor set the alarm.
		if ready, err := w.Queue.Ready(); err != nil || !ready {
			return false, err
		}
		budget := w.dev.budget()
		if budget == 0 {
			return true, nil
		}
		c, err := w.Queue.Pop()
		if err != nil || c == nil {
			return false, err
		}
		if err := w.Push(c, w.fill(c, budget)); err != nil {
			return false, err
		}
	}
	return true, nil
}

// fill puts at most budget random bytes into a chain and returns how many.
func (w *worker) fill(c *queue.Chain, budget uint64) uint32 {
	st := &w.dev.stats
	var n uint64
	for _, seg := range c.Writable() {
		seg = seg[:min(uint64(len(seg)), budget-n)]
		if err := w.dev.source(seg); err != nil {
			st.failed(err)
			c.MarkAll() // some of it may have been written
			break
		}
		if n += uint64(len(seg)); n == budget {
			break
		}
	}
	switch {
	case n > 0:
		st.requests.Add(1)
		st.bytes.Add(n)
		w.dev.spend(n)
	case len(c.Writable()) == 0:
		st.guestErrors.Add(1)
	}
	return uint32(n)
}
