package migration

import "time"

// NeverLeft is Progress.EstLeft of a migration whose rounds do not get shorter: the
// guest dirties pages as fast as they are sent.
const NeverLeft time.Duration = -1

const (
	// leastSeen is how long a round must have gone on for its rates to mean anything.
	leastSeen = 100 * time.Millisecond
	// longestLeft bounds an estimate: beyond, its digits mean nothing.
	longestLeft = 100 * time.Hour
)

// estimate fills in what the round under way shows of itself: it began so long ago,
// with wire bytes acknowledged before it. dirtying is how many pages the guest dirtied
// a second in the round before; that is not known in round 1.
func (p *Progress) estimate(ago time.Duration, wire uint64, dirtying float64) {
	if ago < leastSeen || p.SentPages == 0 {
		return
	}
	if p.Round == 1 && p.WireBytes > wire {
		p.Bandwidth = float64(p.WireBytes-wire) / ago.Seconds()
	}
	sending := float64(p.SentPages) / ago.Seconds() // pages a second
	round := float64(p.RoundPages) / sending        // all of it, seconds
	left := max(round-ago.Seconds(), 0)
	if p.Round > 1 {
		// Each round is as long as sending what was dirtied during the one before: a
		// geometric series of factor grow.
		grow := dirtying / sending
		if grow >= 1 {
			p.EstLeft = NeverLeft
			return
		}
		left += round * grow / (1 - grow)
	}
	p.EstLeft = time.Duration(min(left, longestLeft.Seconds()) * float64(time.Second))
}
