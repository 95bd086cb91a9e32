package virtio

import (
	"sync"
	"sync/atomic"
)

// Workers are the goroutines of a device, one per queue. The zero value has
// none. Its methods are called by the owner of the device, one at a time.
//
//	          kick
//	waiting ───────> serving ──┐
//	   ^   <───────────────────┘ nothing left, or Yield
//	   │ Pause                Resume
//	   └──────> parked ───────────────> serving
//
// Workers sleep in the runtime's poller and are plain goroutines: their system
// calls on files hold a thread only while they last.
type Workers struct {
	mu     sync.Mutex
	cond   sync.Cond // L is &mu; set by Start
	parked int
	paused bool
	stop   bool
	live   []*Kick
	done   sync.WaitGroup

	yield atomic.Bool // paused or stop, for serve to look at between chains
}

// Start adds a worker. It calls serve after each kick, and once after each
// Resume. serve returns when its queue is empty, or when Yield says so. After
// Pause the worker starts parked.
func (w *Workers) Start(k *Kick, serve func()) {
	w.mu.Lock()
	w.cond.L = &w.mu
	w.live = append(w.live, k)
	w.mu.Unlock()
	w.done.Add(1)
	go w.run(k, serve)
}

func (w *Workers) run(k *Kick, serve func()) {
	defer w.done.Done()
	for w.admit() {
		serve()
		if !w.yield.Load() && k.Wait() != nil {
			w.retire()
			return
		}
	}
}

// retire ends a worker whose eventfd is gone: nobody can kick it any more. It
// counts as parked, so that Pause does not wait for it.
func (w *Workers) retire() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.parked++
	w.cond.Broadcast()
}

// admit parks while paused and reports whether to serve.
func (w *Workers) admit() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.paused && !w.stop {
		w.parked++
		w.cond.Broadcast()
		for w.paused && !w.stop {
			w.cond.Wait()
		}
		w.parked--
	}
	return !w.stop
}

// Yield says that serve is to return after the chain in hand.
func (w *Workers) Yield() bool { return w.yield.Load() }

// Pause returns once every worker is parked between two chains.
func (w *Workers) Pause() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused = true
	w.yield.Store(true)
	w.wake()
	for w.parked < len(w.live) {
		w.cond.Wait()
	}
}

// Resume lets them go on.
func (w *Workers) Resume() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.paused = false
	w.yield.Store(false)
	if len(w.live) > 0 {
		w.cond.Broadcast()
	}
}

// Stop ends every worker and waits for it. A pause stays in force for workers
// that are started later.
func (w *Workers) Stop() {
	w.mu.Lock()
	w.stop = true
	w.yield.Store(true)
	w.wake()
	w.mu.Unlock()
	w.done.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stop, w.live, w.parked = false, nil, 0
	w.yield.Store(w.paused)
}

// wake gets every worker out of Wait and out of its parking place.
func (w *Workers) wake() {
	for _, k := range w.live {
		// A failed signal means a closed eventfd, and then nobody sleeps on it.
		_ = k.Signal()
	}
	if len(w.live) > 0 {
		w.cond.Broadcast()
	}
}
