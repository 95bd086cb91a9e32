package vsock

import (
	"time"

	"godwit/virtio/queue"
)

// holdLimit is how long a guest that does not take the event keeps everybody
// waiting. It is shorter than defaultPatience, so that clients are still there.
const holdLimit = 5 * time.Second

// move is what is left to do after a move. The guest's driver, when it comes to
// the event that its connections are gone, ends all that it has, without a word
// to the device (Linux: virtio_vsock_reset_sock). What was opened just before
// would be dead on the guest's side alone, and its client would wait for ever.
// So nothing is opened until the driver gives a buffer of the event queue back,
// which it does when it is done with the event.
//
// What counts as that is that the queue holds more buffers than when ours was
// taken from it. The device cannot tell whose they are: a second move, before the
// driver has come to the event of the first, may take the end of that one for
// the end of its own. So every later buffer counts again, and what was opened in
// between is reset then, which the client sees.
//
//	Restore ──> lost, hold ──event given──> hold ──buffer back──> open
//	                 └──────────────────limit──> open ──buffer back──> reset what is open
//
// Device.mu guards it, but for ready.
type move struct {
	lost  bool // the event is still to be given
	watch bool // buffers that come back say something
	hold  bool // the guest gets nothing but resets
	limit time.Duration
	timer *time.Timer // ends hold, or nil

	// ready is how many buffers are known to be in the event queue. It belongs to
	// that queue's worker.
	ready uint16
}

// event serves the event queue: virtio 1.2, 5.10.6.7. There is one event,
// VIRTIO_VSOCK_EVENT_TRANSPORT_RESET, whose number is 0.
func (d *Device) event(l *line) error {
	m := &d.move
	for !d.workers.Yield() {
		d.mu.Lock()
		lost, watch := m.lost, m.watch
		d.mu.Unlock()
		if !watch {
			return nil // Restore comes before the worker
		}
		if lost {
			if given, err := d.giveEvent(l); err != nil || !given {
				return err
			}
		}
		ready, err := l.Queue.NotifyBeyond(m.ready)
		if err != nil || ready <= m.ready {
			return err
		}
		m.ready = ready
		d.settle()
	}
	return nil
}

// giveEvent tells the guest. It reports false when there is no buffer for that;
// the driver kicks when there is.
func (d *Device) giveEvent(l *line) (given bool, err error) {
	for {
		c, err := l.Pop()
		if err != nil || c == nil {
			return false, err
		}
		// Before the driver can see the event, and answer it.
		if d.move.ready, err = l.Queue.Available(); err != nil {
			return false, err
		}
		var e [4]byte
		if queue.Len(c.Writable()) < int64(len(e)) {
			d.stats.badPackets.Add(1)
			if err := l.Push(c, 0); err != nil {
				return false, err
			}
			continue
		}
		put(c, e[:])
		d.mu.Lock()
		d.move.lost = false
		d.mu.Unlock()
		d.stats.transportResets.Add(1)
		return true, l.Push(c, uint32(len(e)))
	}
}

// settle is called when the driver has just dealt with an event: what it knew
// before that is gone.
func (d *Device) settle() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if c.phase != greeting && !c.request && !c.response {
			d.end(c, true)
		}
	}
	d.release()
}

// startHold begins the limit of a hold. mu is held.
func (d *Device) startHold() {
	m := &d.move
	if !m.hold || m.timer != nil {
		return
	}
	m.timer = time.AfterFunc(m.limit, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		m.timer = nil
		if !d.paused {
			d.release() // else Resume begins anew: the guest could not take it
		}
	})
}

// release ends a hold, if there is one. mu is held.
func (d *Device) release() {
	m := &d.move
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
	}
	if m.hold {
		m.hold = false
		d.kick(rxQueue)
	}
}
