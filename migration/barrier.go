package migration

import (
	"fmt"
	"sync"

	"godwit/migration/wire"
)

// tally is what the streams have said about one round.
type tally struct {
	streams int
	pages   uint64
	last    bool
}

// barrier lets no stream of the destination go on to round n+1 before every
// stream has passed n.
type barrier struct {
	streams int
	onPass  func(round uint32, t tally) error // by the last stream, before the others go on

	mu     sync.Mutex
	rounds map[uint32]*tally // at most one, unless sabotaged
	gate   chan struct{}     // closed when the round under way is passed
}

func newBarrier(streams int, onPass func(uint32, tally) error) *barrier {
	return &barrier{streams: streams, onPass: onPass, rounds: map[uint32]*tally{}, gate: make(chan struct{})}
}

// pass says that one stream has sent all of a round. The stream must wait until
// the returned channel is closed.
func (b *barrier) pass(round uint32, pages uint64, last bool) (<-chan struct{}, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t := b.rounds[round]
	if t == nil {
		t = &tally{last: last}
		b.rounds[round] = t
	}
	if t.last != last {
		return nil, fmt.Errorf("%w: streams disagree whether round %d is the last", wire.ErrFormat, round)
	}
	t.streams++
	t.pages += pages
	gate := b.gate
	if t.streams < b.streams {
		return gate, nil
	}
	delete(b.rounds, round)
	if err := b.onPass(round, *t); err != nil {
		return nil, err
	}
	close(gate)
	b.gate = make(chan struct{})
	return gate, nil
}
