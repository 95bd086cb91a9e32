package migration

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"godwit/migration/policy"
)

// Session is one migration at its source. Make it with NewSession, drive it
// once with Run; every other method may be called from any goroutine at any
// time.
type Session struct {
	src   Source
	dial  Dialer
	o     SendOptions
	limit limiter

	mu        sync.Mutex // guards what follows
	cancel    context.CancelCauseFunc
	committed bool
	started   time.Time
	downLimit time.Duration
	throttle  policy.Throttle
	first     policy.Pace // that throttle begins with
	p         Progress
	live      func() (sent, wire uint64) // of the round under way
	roundAt   time.Time                  // when it began
	roundWire uint64                     // acknowledged bytes before it
	dirtying  float64                    // pages that the guest dirtied a second in the last round
}

// NewSession checks the options. Nothing touches src or the network before Run.
func NewSession(src Source, dial Dialer, o SendOptions) (*Session, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	if _, ok := src.(LocalSource); o.Local && !ok {
		return nil, fmt.Errorf("%w: %w of a machine (%T) whose memory no other process can have", ErrOptions, ErrLocal, src)
	}
	if _, ok := src.(HintSource); o.FreePageHint && !ok {
		return nil, fmt.Errorf("%w: %w of a machine (%T) that has no balloon", ErrOptions, ErrHint, src)
	}
	s := &Session{src: src, dial: dial, o: o, downLimit: o.DowntimeLimit, throttle: o.Policies.Throttle}
	if err := s.asking("throttle", s.throttle, func() { s.first = s.throttle.Next(policy.Round{}) }); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrOptions, err)
	}
	s.limit.set(o.Bandwidth)
	s.p = Progress{Phase: PhaseIdle, Duty: 100}
	return s, nil
}

// Send is NewSession and Run in one.
func Send(ctx context.Context, src Source, dial Dialer, o SendOptions) (*Report, error) {
	s, err := NewSession(src, dial, o)
	if err != nil {
		return nil, err
	}
	return s.Run(ctx)
}

// Run migrates. It returns nil when the guest runs at the destination: the
// source is then paused, with its disks released. With any other error the
// source runs on as before, except ErrStaysPaused, ErrOutcomeUnknown and
// ErrNotTaken, which say why it is paused and what may be done. The report is
// never nil. Ending ctx cancels before the point of no return and is ignored
// after it.
func (s *Session) Run(ctx context.Context) (*Report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.mu.Lock()
	if !s.started.IsZero() {
		s.mu.Unlock()
		return &Report{Status: Failed, Error: "session used twice"}, fmt.Errorf("%w: a session runs once", ErrOptions)
	}
	s.started, s.cancel = time.Now(), cancel
	s.mu.Unlock()
	e := newEngine(s, ctx)
	rep, err := e.run()
	s.mu.Lock()
	if s.live != nil {
		s.p.SentPages, s.p.WireBytes = s.live()
	}
	s.cancel, s.live = nil, nil
	s.p.Done, s.p.Elapsed = true, time.Since(s.started)
	s.mu.Unlock()
	s.o.OnProgress(s.Progress())
	return rep, err
}

// Cancel ends the migration with ErrCancelled and the guest running on at the
// source. Past the point of no return it is refused with ErrCommitted, and
// when nothing runs with ErrNotRunning. It does not wait for the end.
func (s *Session) Cancel(reason string) error {
	return s.end(fmt.Errorf("%w: %s", ErrCancelled, reason))
}

// end stops a migration that may still be stopped.
func (s *Session) end(cause error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.committed:
		return ErrCommitted
	case s.cancel == nil:
		return ErrNotRunning
	}
	s.cancel(cause)
	return nil
}

// pointOfNoReturn passes it, unless the migration has been stopped before. From
// here on nothing but the destination's answer ends the migration.
func (s *Session) pointOfNoReturn(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	s.committed = true
	return nil
}

// Progress is a snapshot.
func (s *Session) Progress() Progress {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.p
	if !s.started.IsZero() && !p.Done {
		p.Elapsed = time.Since(s.started)
	}
	p.DowntimeLimit, p.Limit = s.downLimit, s.limit.get()
	if s.live != nil {
		p.SentPages, p.WireBytes = s.live()
	}
	if p.Phase == PhaseCopy && s.live != nil && !p.Done {
		p.estimate(time.Since(s.roundAt), s.roundWire, s.dirtying)
	}
	return p
}

// knobs are what may change from round to round.
func (s *Session) knobs() (time.Duration, policy.Throttle) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.downLimit, s.throttle
}

// enter moves to a phase and tells whoever watches.
func (s *Session) enter(to Phase) error {
	s.mu.Lock()
	err := step(sourceNext, s.p.Phase, to)
	if err == nil {
		s.p.Phase = to
	}
	s.mu.Unlock()
	s.o.Log.Debug("migration phase", "phase", to)
	s.o.OnProgress(s.Progress())
	return err
}

// watch ends the migration when the guest ends or its time is up.
func (s *Session) watch(stop <-chan struct{}) {
	var late <-chan time.Time
	if s.o.Timeout > 0 {
		t := time.NewTimer(s.o.Timeout)
		defer t.Stop()
		late = t.C
	}
	select {
	case <-stop:
	case <-s.src.Ended():
		_ = s.end(guestEnded(s.src)) // after GO the guest is not ours any more
	case <-late:
		_ = s.end(fmt.Errorf("%w: %s", ErrTimeout, s.late()))
	}
}

// late says what to do about a migration whose time is up, by how far it came.
func (s *Session) late() string {
	s.mu.Lock()
	phase := s.p.Phase
	s.mu.Unlock()
	switch phase {
	case PhaseIdle, PhaseConnect:
		return fmt.Sprintf("no connection after %v; is the address right, and does the destination listen?", s.o.Timeout)
	case PhaseConfigure:
		return fmt.Sprintf("the destination had not built the machine after %v; raise the timeout, or look at the destination's messages", s.o.Timeout)
	case PhaseCopy:
		return fmt.Sprintf("not finished after %v; raise the timeout or the downtime limit, or use a throttle", s.o.Timeout)
	}
	return fmt.Sprintf("not finished after %v, with the guest paused for the last pages; raise the timeout", s.o.Timeout)
}

func guestEnded(src Source) error {
	if err := src.EndReason(); err != nil {
		return fmt.Errorf("%w: %w", ErrGuestEnded, err)
	}
	return ErrGuestEnded
}

// hasEnded says whether the guest has ended by itself.
func hasEnded(src Source) bool {
	select {
	case <-src.Ended():
		return true
	default:
		return false
	}
}

// cancelCause is why ctx ended, a plain cancel by its owner counting as the
// user's.
func cancelCause(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", ErrCancelled, err)
	}
	return err
}
