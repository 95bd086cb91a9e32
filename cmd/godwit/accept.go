package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"godwit/migration"
)

// describeTime is how long a source has to say what machine it brings. The engine
// ends one that is silent; this ends one that only shows that it lives, which would
// keep everybody else out.
const describeTime = 30 * time.Second

// Pauses between attempts to accept while the system lacks something.
const (
	firstAcceptPause   = 5 * time.Millisecond
	longestAcceptPause = time.Second
)

// errDeaf marks a listener that takes no connection and never will.
var errDeaf = errors.New("the listener has failed")

// passing are errors of accept(2) that end by themselves: a lack of descriptors
// or memory, and what the network says about a connection that is gone already.
var passing = []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED, unix.EPROTO, unix.ENETDOWN,
	unix.ENETUNREACH, unix.EHOSTDOWN, unix.EHOSTUNREACH, unix.ENONET, unix.ENOPROTOOPT, unix.EOPNOTSUPP}

// acceptPatiently tries again, less and less often, while what keeps accept from
// working may pass; tell hears of it once each time it begins. Any other error
// is errDeaf.
func acceptPatiently(accept migration.Acceptor, tell func(error)) migration.Acceptor {
	return func(ctx context.Context) (net.Conn, error) {
		for pause := firstAcceptPause; ; pause = min(2*pause, longestAcceptPause) {
			conn, err := accept(ctx)
			if err == nil || ctx.Err() != nil {
				return conn, err
			}
			if !slices.ContainsFunc(passing, func(p error) bool { return errors.Is(err, p) }) {
				return nil, fmt.Errorf("%w: %w", errDeaf, err)
			}
			if pause == firstAcceptPause {
				tell(fmt.Errorf("%w; trying again", err))
			}
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
	}
}

// refusalEvery is how often the operator hears of connections that were turned
// away, at most.
const refusalEvery = time.Second

// seldom decides which of many alike messages are said: the first burst of them,
// then one in every, which tells how many were left out before. It may be used from
// any goroutine.
type seldom struct {
	every time.Duration
	burst int // at least 1

	mu     sync.Mutex
	said   int
	last   time.Time
	unsaid int
}

// due reports whether this one is to be said, with the words for those before it
// that were not.
func (s *seldom) due() (before string, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	if s.said >= s.burst && now.Sub(s.last) < s.every {
		s.unsaid++
		return "", false
	}
	s.said++
	s.last = now
	if s.unsaid > 0 {
		before = fmt.Sprintf(" (and %d others before)", s.unsaid)
	}
	s.unsaid = 0
	return before, true
}

// rest is how many were not said since the last one that was.
func (s *seldom) rest() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unsaid
}

// refusals tells the operator about connections that were turned away. It may be
// called from any goroutine.
type refusals struct {
	say func(format string, args ...any)
	seldom
}

func newRefusals(say func(format string, args ...any)) *refusals {
	return &refusals{say: say, seldom: seldom{every: refusalEvery, burst: 1}}
}

func (r *refusals) tell(err error) {
	if before, ok := r.due(); ok {
		r.say("turned a connection away%s: %v", before, err)
	}
}
