package blk

import (
	"fmt"

	"godwit/devices/state"
)

// A request that finds no room on the host is parked if Config.Full says so: it
// is not answered, and not lost. Whoever owns the machine hears of it, pauses
// it, and resumes it when there is room; Resume does it again.
//
//	pool ── no room ──> parked ── Resume ──> pool
//	                      └── Save ──> the saved state ── Activate ──> parked
//
// A pause waits for no parked request: nothing of it is under way.

// place is where a parked request stands in the rings.
type place struct{ queue, head uint16 }

// park keeps a request for later that failed for want of room, and says whether
// it does. The caller has the request, and has it no longer then.
func (d *Device) park(r *request, err error) bool {
	if err == nil || d.full == nil || !d.full(err) {
		return false
	}
	d.errMu.Lock()
	d.lastErr = err
	d.errMu.Unlock()
	d.parkMu.Lock()
	d.parked = append(d.parked, r)
	d.parkMu.Unlock()
	d.onFull(err)
	return true
}

// Parked is the number of requests that wait for room.
func (d *Device) Parked() int {
	d.parkMu.Lock()
	defer d.parkMu.Unlock()
	return len(d.parked)
}

// unpark does parked requests again. Those of a queue that was stopped meanwhile
// are forgotten: its rings and buffers are the driver's again.
func (d *Device) unpark() {
	d.parkMu.Lock()
	list := d.parked
	d.parked = nil
	d.parkMu.Unlock()
	for _, r := range list {
		if !r.worker.q.Stopped() {
			d.pool.submit(r)
		}
	}
}

// forget drops what is parked, with the queues. No worker is left.
func (d *Device) forget() {
	d.parkMu.Lock()
	defer d.parkMu.Unlock()
	d.parked, d.arrived = nil, nil
}

// Kept implements virtio.Keeper.
func (d *Device) Kept(queue int) int {
	d.parkMu.Lock()
	defer d.parkMu.Unlock()
	n := 0
	for _, r := range d.parked {
		if r.worker.index == queue {
			n++
		}
	}
	return n
}

// saveParked writes where the parked requests stand. What they ask for is still
// in guest memory: a driver leaves descriptors alone until they are answered.
func (d *Device) saveParked(e *state.Encoder) {
	d.parkMu.Lock()
	defer d.parkMu.Unlock()
	e.U16(uint16(len(d.parked)))
	for _, r := range d.parked {
		e.U16(uint16(r.worker.index))
		e.U16(r.chain.Head())
	}
}

func (d *Device) restoreParked(dec *state.Decoder) error {
	n := int(dec.U16())
	if dec.Err() == nil && n > d.queues*int(d.qsize) {
		return fmt.Errorf("virtio-blk state: %d requests wait for room, more than %d queues of %d hold", n, d.queues, d.qsize)
	}
	var list []place
	for range n {
		p := place{dec.U16(), dec.U16()}
		if dec.Err() != nil {
			break
		}
		if int(p.queue) >= d.queues {
			return fmt.Errorf("virtio-blk state: a request of queue %d waits for room, and there are %d queues", p.queue, d.queues)
		}
		list = append(list, p)
	}
	d.arrived = list
	return nil
}

// adopt parks the requests that arrived with the guest's state in a queue. One
// that the guest has spoilt breaks the queue, as any of its requests would.
func (w *worker) adopt(list []place) {
	for _, p := range list {
		if int(p.queue) != w.index {
			continue
		}
		c, err := w.q.Adopt(p.head)
		if err != nil {
			w.notify.NeedsReset(err)
			return
		}
		r := w.newRequest(c)
		if r.status == nil {
			r.bad = fmt.Errorf("%w: no room for a status", errRequest)
		} else {
			r.bad = r.parse()
		}
		w.dev.parkMu.Lock()
		w.dev.parked = append(w.dev.parked, r)
		w.dev.parkMu.Unlock()
	}
}
