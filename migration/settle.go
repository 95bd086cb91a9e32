package migration

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ErrUnsettled is a Pause that has let the guest run on because the machine is not
// ready to stand still: the engine settles it and pauses again. How often that
// may happen is the Source's to bound.
var ErrUnsettled = errors.New("the machine is not ready to stand still, and runs on")

// Settler is a Source whose Pause may have to wait for others, such as whoever
// reads the guest's console. What can be waited for with the guest running is
// waited for here: it is no downtime.
type Settler interface {
	Source
	// Settle returns when Pause is worth a try. The engine calls it before the stop
	// rule's word is final, before a rehearsal, and after ErrUnsettled; the guest
	// runs, with the log on or off. It may block for 10 seconds and fails then, or
	// with ctx's cause when that ends. There is nothing to undo.
	Settle(ctx context.Context) error
}

// settle lets src settle, and tells how long that took.
func settle(ctx context.Context, src Source) (time.Duration, error) {
	s, ok := src.(Settler)
	if !ok {
		return 0, nil
	}
	began := time.Now()
	if err := s.Settle(ctx); err != nil {
		return time.Since(began), fmt.Errorf("before the pause: %w", err)
	}
	return time.Since(began), nil
}

// pause stops the guest, within the downtime.
func (e *engine) pause() error {
	e.paused = true // also when it fails half-way
	for {
		err := e.src.Pause(e.ctx)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ErrUnsettled) {
			return fmt.Errorf("pause: %w", err)
		}
		if err := e.catchUp(); err != nil {
			return err
		}
	}
}

// catchUp follows a Pause that let the guest run on: what it writes until it is
// settled goes in one more round, and all that is no downtime.
func (e *engine) catchUp() error {
	began := time.Now()
	e.gcOn()
	defer func() {
		e.gcOn = quietGC()
		e.clock.exclude(time.Since(began))
	}()
	if _, err := settle(e.ctx, e.src); err != nil {
		return err
	}
	if hasEnded(e.src) {
		return guestEnded(e.src)
	}
	if !e.logging {
		return nil
	}
	if err := e.takeDirty(); err != nil {
		return err
	}
	if err := e.round(false); err != nil {
		return err
	}
	if err := e.takeDirty(); err != nil {
		return err
	}
	limit, _ := e.s.knobs()
	e.roundDone(limit)
	return nil
}
