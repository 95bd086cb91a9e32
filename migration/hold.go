package migration

import (
	"context"
	"fmt"
	"time"
)

// HoldLimit is how long a destination may let a paused guest stand still without
// progress. Signs of life are none: a destination that sends only those is given
// up, and the guest runs on at the source.
const HoldLimit = 30 * time.Second

const (
	// leastRate is what a destination must take from the source of a paused guest to
	// make progress, bytes per second: a quarter of the smallest bandwidth limit.
	leastRate = MinBandwidth / 4
	// leastHash is what it must hash, bytes per second.
	leastHash = 128 << 20
	// holdTick is how often progress is looked at.
	holdTick = time.Second
)

// wait is one wait for the destination: how long it may take, and what counts as
// progress meanwhile.
type wait struct {
	what  string        // "did not ..", for the error
	limit time.Duration // without progress
	moved func() uint64 // grows with progress; nil: nothing but the end is any
	least uint64        // how much moved must grow by within limit
}

// held is a wait with the guest standing still that ends by its limit whatever
// comes.
func held(what string, limit time.Duration) wait { return wait{what: what, limit: limit} }

// hashing is how long the destination may take to hash n pages.
func hashing(n uint64) time.Duration {
	return HoldLimit + time.Duration(n/(leastHash>>pageShift))*time.Second
}

// begin gives a context that ends with ErrStalled when the destination has made
// no progress for the limit, and what ends the watch. Time is counted in ticks that
// this process saw: what passes while it stands still itself (stopped, suspended)
// says nothing about the destination.
func (w wait) begin(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.watch(ctx, cancel)
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

func (w wait) watch(ctx context.Context, cancel context.CancelCauseFunc) {
	t := time.NewTicker(min(holdTick, w.limit))
	defer t.Stop()
	var from uint64
	if w.moved != nil {
		from = w.moved()
	}
	for left := w.limit; left > 0; left -= holdTick {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		if w.moved == nil {
			continue
		}
		if now := w.moved(); now >= from+w.least {
			from, left = now, w.limit+holdTick
		}
	}
	cancel(fmt.Errorf("%w: the destination lives, but %s for %v", ErrStalled, w.what, w.limit))
}

// taken is what the destination has acknowledged, without signs of life. It may go
// down for a moment, while one is on its way.
func (e *engine) taken() uint64 {
	var n, signs uint64
	for _, st := range e.streams {
		n += st.acked.Load()
		signs += st.signs.Load()
	}
	return n - min(n, signs)
}

// taking is the wait for a round to end. While the guest runs, whatever moves is
// progress; while it stands still there must be enough of it.
func (e *engine) taking(w *roundWork) wait {
	moved := func() uint64 { return w.dealt.Load()*pageSize + e.taken() }
	if w.last {
		return wait{what: "took too little of the last pages", limit: HoldLimit, moved: moved, least: leastRate * uint64(HoldLimit/time.Second)}
	}
	return wait{what: "took no page", limit: DefaultStall, moved: moved, least: 1}
}
