package vmm

import "time"

// dutyPeriod is the cycle of a slowed vCPU. It is short, so that a guest's
// own timers see many small delays instead of a few long ones, and long
// beside the price of a kick.
const dutyPeriod = 10 * time.Millisecond

// startDuty lets vCPUs run for a share of the time, 1 to 99 percent: once a period
// it kicks each of them into a nap. What it gives ends that.
func startDuty(vcpus []*VCPU, percent int) (end func() error) {
	nap := dutyPeriod * time.Duration(100-percent) / 100
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(dutyPeriod)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				for _, v := range vcpus {
					v.doze(nap)
				}
			}
		}
	}()
	return func() error {
		close(stop)
		<-done
		for _, v := range vcpus {
			v.rouse()
		}
		return nil
	}
}
