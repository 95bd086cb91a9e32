package vmm

import (
	"fmt"
	"sync"
	"time"
)

// dutyPeriod is the cycle of a throttled vCPU. It is short, so that a guest's
// own timers see many small delays instead of a few long ones, and long
// beside the price of a kick.
const dutyPeriod = 10 * time.Millisecond

// throttle lets vCPUs run for a share of the time: once a period it kicks each
// of them into a nap.
type throttle struct {
	vcpus []*VCPU

	mu      sync.Mutex
	percent int
	stop    chan struct{} // closes the running cycle; nil when there is none
	done    chan struct{}
}

func newThrottle(vcpus []*VCPU) *throttle {
	return &throttle{vcpus: vcpus, percent: 100}
}

// set changes the share, 1 to 100 percent; 100 ends the cycle.
func (t *throttle) set(percent int) error {
	if percent < 1 || percent > 100 {
		return fmt.Errorf("duty of %d percent; give 1 to 100", percent)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.halt()
	t.percent = percent
	if percent == 100 {
		return nil
	}
	t.stop, t.done = make(chan struct{}), make(chan struct{})
	go t.cycle(dutyPeriod*time.Duration(100-percent)/100, t.stop, t.done)
	return nil
}

func (t *throttle) cycle(nap time.Duration, stop, done chan struct{}) {
	defer close(done)
	tick := time.NewTicker(dutyPeriod)
	defer tick.Stop()
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
			for _, v := range t.vcpus {
				v.nap.Store(int64(nap))
				v.kick()
			}
		}
	}
}

// halt ends the cycle; a nap under way is over within one period. The caller
// holds mu.
func (t *throttle) halt() {
	if t.stop == nil {
		return
	}
	close(t.stop)
	<-t.done
	t.stop, t.done = nil, nil
	for _, v := range t.vcpus {
		v.nap.Store(0)
	}
}

func (t *throttle) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.halt()
}
