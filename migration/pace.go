package migration

import (
	"fmt"

	"godwit/migration/policy"
)

// startOf is the pace that t begins with, if the source can be slowed like that.
func (s *Session) startOf(t policy.Throttle) (first policy.Pace, err error) {
	if err := s.asking("throttle", t, func() { first = t.Next(policy.Round{}) }); err != nil {
		return first, err
	}
	if err := s.src.CanPace(first); err != nil {
		return first, fmt.Errorf("throttle: %w", err)
	}
	return first, nil
}

// firstPace is what the throttle in force begins with.
func (s *Session) firstPace() policy.Pace {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.first
}

// canThrottle asks, before anything is connected, whether the guest can be slowed
// as the throttle will want. A later one was asked about when it was set.
func (e *engine) canThrottle() error {
	_, err := e.s.startOf(e.o.Policies.Throttle)
	return err
}

// setPace slows the guest, if the throttle wants another pace than now.
func (e *engine) setPace(p policy.Pace) error {
	if p = p.Clamp(); p == e.pace || p.Free() && e.pace.Free() {
		return nil
	}
	e.pace, e.paced = p, true // also when it fails half-way
	e.rep.ThrottleMax = max(e.rep.ThrottleMax, 100-p.Share())
	if n := p.PagesPerSecond; n > 0 && (n < e.rep.DirtyLimit || e.rep.DirtyLimit == 0) {
		e.rep.DirtyLimit = n
	}
	e.s.mu.Lock()
	e.s.p.Duty, e.s.p.DirtyLimit = p.Share(), p.PagesPerSecond
	e.s.mu.Unlock()
	if err := e.src.SetPace(p); err != nil {
		return fmt.Errorf("slow the guest to %v: %w", p, err)
	}
	return nil
}

// endPace lets the guest run at full speed again.
func (e *engine) endPace() error {
	if !e.paced {
		return nil
	}
	if err := e.src.SetPace(policy.FullSpeed); err != nil {
		return fmt.Errorf("end throttling: %w", err)
	}
	e.s.mu.Lock()
	e.s.p.Duty, e.s.p.DirtyLimit = policy.FullSpeed.Share(), 0
	e.s.mu.Unlock()
	return nil
}
