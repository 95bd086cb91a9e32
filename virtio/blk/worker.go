package blk

import (
	"sync"
	"sync/atomic"
	"time"

	"godwit/virtio"
	"godwit/virtio/queue"
)

const (
	// interruptEvery bounds, in requests and in bytes, how long a wanted interrupt
	// waits for the requests behind the one that it is about.
	interruptEvery      = 16
	interruptEveryBytes = 256 << 10

	// The worker looks for the next request for a while before it sleeps, since a
	// wake-up through an eventfd costs more than most requests. The while grows
	// as long as requests come within pollMost of the last, and shrinks to nothing
	// when they do not. KVM polls for a halted vCPU by the same rule
	// (Linux, Documentation/virt/kvm/halt-polling.rst).
	pollLeast = 4 * time.Microsecond
	pollMost  = 50 * time.Microsecond
	// pollLooks is how often it looks at the ring between two looks at the clock,
	// and breath how many turns of a loop, some 100 ns, lie between two of them.
	pollLooks = 32
	breath    = 300
)

// worker serves one queue: it pops, and answers what need not wait. The others
// it gives to the pool, whose goroutines answer them, in whatever order they
// end:
//
//	worker ── Pop ──┬── done at once ──────────────────────> Push
//	                └── pool ── done ──> finished ── owner ──> Push
//
// Whoever holds mu owns the queue. A goroutine of the pool puts its request on
// the finished list and then publishes the list, unless somebody owns the
// queue: the owner looks at the list before and after it lets go. So no wake-up
// stands between the end of a request and its answer.
type worker struct {
	dev      *Device
	index    int // of the queue
	notify   virtio.Notifier
	features uint64
	pool     *pool
	finished atomic.Pointer[request] // linked by next, latest first

	mu   sync.Mutex
	q    *queue.Queue
	free *request // linked by next

	irq   bool // the driver is to be interrupted
	since int  // answers since it is
	bytes int64
	// settled are answers to requests of the pool that it has not been told of: a
	// pause waits for their interrupt too, which would be lost after it.
	settled int

	// Only the worker's own goroutine uses these.
	poll   time.Duration // how long to look before sleeping
	asleep time.Time     // when serve returned last
}

// serve answers requests until the queue is empty or the workers are to yield.
func (w *worker) serve() {
	w.adjustPoll()
	w.mu.Lock()
	if !w.q.Stopped() {
		if err := w.drain(); err != nil {
			w.notify.NeedsReset(err)
		}
	}
	w.interrupt()
	w.mu.Unlock()
	w.publishFinished()
	w.asleep = time.Now()
}

// drain pops until there is nothing left.
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
			if err := w.begin(c); err != nil {
				return err
			}
			if err := w.takeFinished(); err != nil {
				return err
			}
		}
		w.interrupt()
		if w.look() {
			continue
		}
		if more, err := w.q.EnableNotification(); err != nil || !more {
			return err
		}
	}
}

// look waits for the next request without sleeping, for as long as that has
// paid lately. It reports whether there is something to pop.
func (w *worker) look() bool {
	if w.poll == 0 {
		return false
	}
	for end := time.Now().Add(w.poll); ; {
		for range pollLooks {
			breathe()
			if ready, err := w.q.Ready(); ready || err != nil {
				return true
			}
			if w.finished.Load() != nil {
				if w.takeFinished() != nil {
					return true // Pop says it again
				}
				w.interrupt()
			}
		}
		if w.dev.workers.Yield() {
			return false
		}
		if time.Now().After(end) {
			if w.poll /= 2; w.poll < pollLeast {
				w.poll = 0
			}
			return false
		}
	}
}

// breathe leaves the ring's cache line to the driver for a moment: it writes
// there. The compiler keeps empty loops.
//
//go:noinline
func breathe() {
	for range breath {
	}
}

// adjustPoll is called when the worker wakes up.
func (w *worker) adjustPoll() {
	if time.Since(w.asleep) < pollMost {
		w.poll = min(max(2*w.poll, pollLeast), pollMost)
	}
}

// begin carries a request out, or starts it.
func (w *worker) begin(c *queue.Chain) error {
	r := w.newRequest(c)
	if r.status == nil {
		w.dev.stats.guestErrors.Add(1)
		return w.push(r)
	}
	done, n, err := false, int64(0), r.parse()
	if err == nil {
		done, n, err = r.try()
	}
	if !done && err == nil {
		w.dev.stats.deferred.Add(1)
		w.pool.submit(r)
		return nil
	}
	if w.dev.park(r, err) {
		return nil
	}
	r.settleStatus(n, err)
	return w.push(r)
}

// push answers. It is called by the owner of the queue.
func (w *worker) push(r *request) error {
	notify, err := w.q.Push(r.chain, r.written)
	w.irq = w.irq || notify
	w.since++
	w.bytes += r.n
	r.chain, r.status = nil, nil
	r.next, w.free = w.free, r
	if w.since >= interruptEvery || w.bytes >= interruptEveryBytes {
		w.interrupt()
	}
	return err
}

// interrupt tells the driver of the answers so far if it wants to know of one,
// and then the pool.
func (w *worker) interrupt() {
	if w.irq {
		w.notify.Used()
	}
	if w.settled > 0 {
		w.pool.settled(w.settled)
	}
	w.irq, w.since, w.bytes, w.settled = false, 0, 0, 0
}

// complete answers a request of the pool.
func (w *worker) complete(r *request) {
	for {
		head := w.finished.Load()
		r.next = head
		if w.finished.CompareAndSwap(head, r) {
			break
		}
	}
	w.publishFinished()
}

// publishFinished answers what is on the list, unless the queue has an owner
// who will do it.
func (w *worker) publishFinished() {
	for w.finished.Load() != nil && w.mu.TryLock() {
		err := w.takeFinished()
		w.interrupt()
		w.mu.Unlock()
		if err != nil {
			w.notify.NeedsReset(err)
		}
	}
}

// takeFinished answers the list. It is called by the owner of the queue, who
// calls interrupt before letting go. Every request is accounted for, whatever
// becomes of the queue.
func (w *worker) takeFinished() error {
	if w.finished.Load() == nil {
		return nil
	}
	var first error
	for r := w.finished.Swap(nil); r != nil; {
		next := r.next
		w.settled++
		w.pool.answered()
		if err := w.push(r); first == nil {
			first = err
		}
		r = next
	}
	return first
}

// newRequest reuses an answered request. There are never more than the queue's
// size. It is called by the owner of the queue.
func (w *worker) newRequest(c *queue.Chain) *request {
	r := w.free
	if r == nil {
		r = &request{worker: w, dev: w.dev}
	} else {
		w.free = r.next
	}
	r.next, r.chain, r.status, r.written, r.n = nil, c, c.TakeLast(), 0, 0
	r.bad = nil
	return r
}
