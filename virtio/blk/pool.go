package blk

import (
	"sync"
	"sync/atomic"
)

// MaxInFlight is the most that Config.InFlight may ask for, and
// DefaultInFlight what it means when it is 0. Each request that waits for the
// host holds a thread.
const (
	MaxInFlight     = 1024
	DefaultInFlight = 64
)

// pool is where requests wait for the host's storage. It has goroutines up to a
// bound, which start when there is work for one more and end with the pool. What
// is beyond the bound waits in jobs, which holds whatever all queues together
// can have out, so that submit never blocks.
type pool struct {
	jobs    chan *request
	bound   int32
	started atomic.Int32
	out     atomic.Int32   // submitted and not answered
	ended   sync.WaitGroup // the goroutines
	drained sync.WaitGroup // the requests, until they are settled
}

func newPool(bound, jobs int) *pool {
	return &pool{jobs: make(chan *request, jobs), bound: int32(bound)}
}

// submit takes a request over. It is called by workers, that is, never after
// they were paused or stopped.
func (p *pool) submit(r *request) {
	p.drained.Add(1)
	out := p.out.Add(1)
	for n := p.started.Load(); n < out && n < p.bound; n = p.started.Load() {
		if p.started.CompareAndSwap(n, n+1) {
			p.ended.Add(1)
			go p.run()
			break
		}
	}
	p.jobs <- r
}

func (p *pool) run() {
	defer p.ended.Done()
	for r := range p.jobs {
		n, err := r.do()
		if r.dev.park(r, err) {
			p.answered()
			p.settled(1)
			continue
		}
		r.settleStatus(n, err)
		r.worker.complete(r)
	}
}

// answered says that a request waits for the host no more.
func (p *pool) answered() { p.out.Add(-1) }

// settled says that the driver got n requests back, and its interrupt if it
// wanted one.
func (p *pool) settled(n int) { p.drained.Add(-n) }

// drain returns once every request is settled. Nobody may submit meanwhile.
func (p *pool) drain() { p.drained.Wait() }

// close drains and ends the goroutines.
func (p *pool) close() {
	p.drain()
	close(p.jobs)
	p.ended.Wait()
}
