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
// Workers are plain goroutines. Those of Start sleep in the runtime's poller:
// their system calls on files hold a thread only while they last.
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

// Task is what a worker does, all of it on one goroutine.
type Task interface {
	// Serve is called after each Wait, and once after each Resume. It returns
	// when there is nothing to do, or when Yield says so.
	Serve()
	// Wait returns after a signal of the worker's Kick, at the latest. On an error
	// the worker ends.
	Wait() error
	// Park is called before the worker parks or ends. Whatever Serve holds between
	// two calls, it gives back here. It does not call the Workers.
	Park()
}

// kickTask is a Task that only kicks wake and that holds nothing.
type kickTask struct {
	kick  *Kick
	serve func()
}

func (t kickTask) Serve()      { t.serve() }
func (t kickTask) Wait() error { return t.kick.Wait() }
func (t kickTask) Park()       {}

// Start adds a worker. It calls serve after each kick, and once after each
// Resume. serve returns when its queue is empty, or when Yield says so. After
// Pause the worker starts parked.
func (w *Workers) Start(k *Kick, serve func()) { w.StartTask(k, kickTask{k, serve}) }

// StartTask is Start for a worker that waits in a way of its own.
func (w *Workers) StartTask(k *Kick, t Task) {
	w.mu.Lock()
	w.cond.L = &w.mu
	w.live = append(w.live, k)
	w.mu.Unlock()
	w.done.Add(1)
	go w.run(t)
}

func (w *Workers) run(t Task) {
	defer w.done.Done()
	for w.admit(t) {
		t.Serve()
		if !w.yield.Load() && t.Wait() != nil {
			w.retire(t)
			return
		}
	}
}

// retire ends a worker whose eventfd is gone: nobody can kick it any more. It
// counts as parked, so that Pause does not wait for it.
func (w *Workers) retire(t Task) {
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Park()
	w.parked++
	w.cond.Broadcast()
}

// admit parks while paused and reports whether to serve.
func (w *Workers) admit(t Task) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.paused || w.stop {
		t.Park()
	}
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
