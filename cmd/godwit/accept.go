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

// refusals tells the operator about connections that were turned away: the first,
// and then how many more there were. It may be called from any goroutine.
type refusals struct {
	say func(format string, args ...any)

	mu     sync.Mutex
	last   time.Time
	unsaid int
}

func (r *refusals) tell(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); now.Sub(r.last) >= refusalEvery {
		r.last = now
	} else {
		r.unsaid++
		return
	}
	more := ""
	if r.unsaid > 0 {
		more = fmt.Sprintf(" (and %d others before)", r.unsaid)
	}
	r.unsaid = 0
	r.say("turned a connection away%s: %v", more, err)
}
