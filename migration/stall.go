package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"godwit/migration/wire"
)

// next waits for the peer's next message, as long as it makes progress: as pages
// come on a data stream, or a round ends, or a message. Signs of life are none. A
// peer that has much to say may take as long as it likes; one that hangs, or
// only wants to keep others out, may not. What this side takes for its own work
// does not count, for nobody is waited for then.
func (r *receiver) next() (message, error) {
	if h := r.peeked; h != nil {
		r.peeked = nil
		return h.message, h.err
	}
	if r.o.Stall < 0 {
		return r.link.next(r.ctx)
	}
	if r.rest != nil {
		return r.nextOfMany()
	}
	for from := time.Since(r.began); ; {
		m, err := r.nextBy(from + r.o.Stall)
		if !errors.Is(err, ErrStalled) {
			return m, err
		}
		moved := time.Duration(r.moved.Load())
		if moved <= from {
			return m, err
		}
		from = moved
	}
}

// many has all messages up to the call of what it gives come within one Stall
// together, this side's own work left out: a source could send each piece of a list
// at the last moment.
func (r *receiver) many() func() {
	rest := r.o.Stall
	r.rest = &rest
	return func() { r.rest = nil }
}

func (r *receiver) nextOfMany() (message, error) {
	from := time.Since(r.began)
	m, err := r.nextBy(from + *r.rest)
	*r.rest -= time.Since(r.began) - from
	return m, err
}

// checkChunk checks the next chunk of what comes in chunks, max bytes at most in all.
func checkChunk(t wire.Type, m message, size, max int) error {
	switch {
	case m.typ != t || size+len(m.body) > max:
		return fmt.Errorf("%w: %s after %d bytes of %s, at most %d", wire.ErrFormat, m.typ, size, t, max)
	case len(m.body) == 0 && !m.last:
		return fmt.Errorf("%w: an empty chunk of %s that is not the last", wire.ErrFormat, t)
	}
	return nil
}

// outcome is what a wait for a message has come to.
type outcome struct {
	message
	err error
}

// peek waits for the next message, and leaves it to next.
func (r *receiver) peek() error {
	m, err := r.next()
	r.peeked = &outcome{m, err}
	return err
}

// nextBy waits until a moment, counted from the beginning.
func (r *receiver) nextBy(end time.Duration) (message, error) {
	ctx, cancel := context.WithDeadlineCause(r.ctx, r.began.Add(end), fmt.Errorf("%w: it lives, but brought nothing for %v", ErrStalled, r.o.Stall))
	defer cancel()
	return r.link.next(ctx)
}

// expect is next for a message of one type; any other is the peer's mistake.
func (r *receiver) expect(t wire.Type) ([]byte, error) {
	m, err := r.next()
	if err != nil {
		return nil, err
	}
	return m.must(t)
}

// progress notes that something has come which is more than a sign of life.
func (r *receiver) progress(now time.Time) { r.moved.Store(int64(now.Sub(r.began))) }

// limitTime ends a migration that takes too long in all, up to GO, and returns
// what calls that off.
func (r *receiver) limitTime() func() {
	if r.o.Timeout == 0 {
		return func() {}
	}
	t := time.AfterFunc(r.o.Timeout, func() {
		r.fail(fmt.Errorf("%w: not finished after %v, which is what this side allows", ErrTimeout, r.o.Timeout))
	})
	return func() { t.Stop() }
}

// limitDescription ends a migration whose source has not said in time what machine
// it brings: showing that it lives is not enough. It returns what calls that off.
func (r *receiver) limitDescription() func() {
	if r.o.Describe == 0 {
		return func() {}
	}
	t := time.AfterFunc(r.o.Describe, func() {
		r.fail(fmt.Errorf("%w: the source has not said within %v what machine it brings", ErrStalled, r.o.Describe))
	})
	return func() { t.Stop() }
}
