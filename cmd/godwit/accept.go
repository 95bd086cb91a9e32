package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"godwit/migration"
)

// describeTime is how long a peer that connects has to say what machine it
// brings. The engine ends one that is silent; this ends one that only shows that
// it lives, which would keep everybody else out.
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

// receiveSoon is migration.Receive for a peer that must have said what machine
// it brings within limit of its connection.
func receiveSoon(ctx context.Context, limit time.Duration, accept migration.Acceptor, build migration.Builder,
	o migration.ReceiveOptions) (migration.Target, *migration.Report, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Waiting for the peer takes as long as it takes: the clock is set when it comes.
	clock := time.AfterFunc(math.MaxInt64, func() {
		cancel(fmt.Errorf("the peer has not said within %v what machine it brings", limit))
	})
	defer clock.Stop()
	var first sync.Once
	return migration.Receive(ctx,
		func(ctx context.Context) (net.Conn, error) {
			conn, err := accept(ctx)
			if err == nil {
				first.Do(func() { clock.Reset(limit) })
			}
			return conn, err
		},
		func(ctx context.Context, offer migration.Offer) (migration.Target, error) {
			clock.Stop()
			return build(ctx, offer)
		}, o)
}
