package migration

import (
	"fmt"
	"time"

	"godwit/migration/policy"
)

// Tuning is what may be changed while a migration runs. What is nil stays.
type Tuning struct {
	Bandwidth     *int64          // bytes per second of all streams together, 0 for no limit
	DowntimeLimit *time.Duration  // what the stop rule aims at
	Throttle      policy.Throttle // how the guest is slowed, from the next round on; policy.None ends it
}

// Tune changes a migration: all that t says, or nothing, where any of it is refused.
// The migration then goes on as before. What would do nothing in this session is
// refused as SendOptions are.
func (s *Session) Tune(t Tuning) error {
	if err := s.canUse(t); err != nil {
		return err
	}
	if t.Bandwidth != nil {
		if err := checkBandwidth(*t.Bandwidth, s.o.Streams); err != nil {
			return err
		}
	}
	if t.DowntimeLimit != nil {
		if err := checkDowntimeLimit(*t.DowntimeLimit); err != nil {
			return err
		}
	}
	var first policy.Pace
	if t.Throttle != nil {
		var err error
		if first, err = s.startOf(t.Throttle); err != nil {
			return fmt.Errorf("%w: %w", ErrOptions, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.p.Done:
		return ErrNotRunning
	case s.committed:
		return ErrCommitted
	}
	if t.Bandwidth != nil {
		s.limit.set(*t.Bandwidth)
	}
	if t.DowntimeLimit != nil {
		s.downLimit = *t.DowntimeLimit
	}
	if t.Throttle != nil {
		s.throttle, s.first = t.Throttle, first
	}
	return nil
}

// canUse refuses what the session would not heed.
func (s *Session) canUse(t Tuning) error {
	o := s.o
	if t.Bandwidth != nil {
		o.Bandwidth = *t.Bandwidth
	}
	if t.DowntimeLimit != nil {
		o.DowntimeLimit = *t.DowntimeLimit
	}
	if t.Throttle != nil {
		o.Policies.Throttle = t.Throttle
	}
	return o.checkUnused()
}

// SetBandwidth changes the limit of all streams together, bytes per second; 0
// means none.
func (s *Session) SetBandwidth(bytesPerSecond int64) error {
	return s.Tune(Tuning{Bandwidth: &bytesPerSecond})
}

// SetDowntimeLimit changes what the stop rule aims at.
func (s *Session) SetDowntimeLimit(d time.Duration) error { return s.Tune(Tuning{DowntimeLimit: &d}) }

// SetThrottle changes how the guest is slowed, from the next round on; nil never
// slows it.
func (s *Session) SetThrottle(t policy.Throttle) error {
	if t == nil {
		t = policy.None{}
	}
	return s.Tune(Tuning{Throttle: t})
}
