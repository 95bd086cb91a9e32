package vmm

import (
	"fmt"
	"sync"

	"godwit/migration/policy"
)

// throttle slows the vCPUs for a migration, by one means at a time. Its methods
// may be called from any goroutine.
type throttle struct {
	vcpus  []*VCPU
	ring   *ringTracker // nil where the tracker is the log
	groups *cpuGroups

	mu  sync.Mutex
	by  policy.Means
	end func() error // ends what is in force by that means; nil at full speed
}

// newThrottle slows vCPUs whose threads have started.
func newThrottle(vcpus []*VCPU, ring *ringTracker) *throttle {
	threads := make([]groupThread, len(vcpus))
	for i, v := range vcpus {
		threads[i] = groupThread{id: v.id, tid: v.tid}
	}
	return &throttle{vcpus: vcpus, ring: ring, groups: newCPUGroups(threads)}
}

// can says why p's means is not to be had here.
func (t *throttle) can(p policy.Pace) error {
	switch p.By {
	case policy.ByDuty:
		return nil
	case policy.ByDirtyLimit:
		if t.ring == nil {
			return fmt.Errorf("a dirty-rate limit counts pages in KVM's dirty ring, and this machine tracks writes with %q; start it with --tracker %s, or use --throttle auto-converge or cap:PCT", TrackerLog, TrackerRing)
		}
		return nil
	case policy.ByCgroup:
		_, err := t.groups.check()
		return err
	}
	return fmt.Errorf("a machine cannot be slowed by %v", p.By)
}

// set puts p in the place of what is in force. What fails half-way is ended by
// the next set, or close.
func (t *throttle) set(p policy.Pace) error {
	if err := t.can(p); err != nil {
		return err
	}
	if p != p.Clamp() {
		return fmt.Errorf("slow the vCPUs to %+v: out of range", p)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.end != nil && t.by == policy.ByCgroup && p.By == policy.ByCgroup && !p.Free() {
		return t.groups.limit(p.Percent) // the groups stay
	}
	if err := t.halt(); err != nil || p.Free() {
		return err
	}
	t.by = p.By
	switch p.By {
	case policy.ByDuty:
		t.end = startDuty(t.vcpus, p.Percent)
	case policy.ByDirtyLimit:
		t.end = startDirtyLimit(t.vcpus, t.ring, p.PagesPerSecond)
	case policy.ByCgroup:
		t.end = t.groups.free
		return t.groups.limit(p.Percent)
	}
	return nil
}

// halt ends what is in force. The caller holds mu.
func (t *throttle) halt() error {
	if t.end == nil {
		return nil
	}
	if err := t.end(); err != nil {
		return err
	}
	t.end = nil
	return nil
}

// close ends what is in force, while the vCPUs' threads are still there.
func (t *throttle) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.halt()
}
