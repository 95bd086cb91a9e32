package policy

import (
	"math"
	"time"
)

var _ Measurer = Measured{}

func init() {
	Stops.Register("measured", func(o *Options) (Stop, error) {
		return Measured{
			MaxRounds: o.Int("rounds", DefaultMaxRounds, 1, 1_000_000),
			Watch:     time.Duration(o.Int("sample", 5, 1, 1000)) * time.Millisecond,
		}, nil
	})
}

// Measurer is a Stop that wants to know what a pause would cost before it
// decides.
type Measurer interface {
	Stop
	// Measure is called after each round, before Decide. It returns for how long
	// the engine is to watch the guest's writes now, at most a second; 0 means not
	// this time. Decide then gets a Round with the Sample, and with the pages that
	// became dirty meanwhile.
	Measure(r Round) time.Duration
}

// Sample is what the engine measured because a Measurer asked for it. The costs
// of the pause are the same in each sample of a migration but for the bandwidth.
type Sample struct {
	Took     time.Duration // how long the guest was watched; 0 when no sample was made
	NewPages uint64        // pages written in that time that were not waiting to be sent
	Pause    time.Duration // until nothing writes guest memory any more
	Pages    time.Duration // of the last round: what it takes beside its bytes
	State    time.Duration // saving device state and sending it
	Resume   time.Duration // restoring it there, and the exchanges before the guest runs
}

// Promise is what a pause would come to if it began now.
type Promise struct {
	Pause, Pages, State, Resume time.Duration // the parts of the downtime
	DirtyPages                  uint64        // what the last round would have to send
	PagesPerSecond              float64       // by how much the dirty set grows
}

// Downtime is the sum of the parts, math.MaxInt64 where that is too much.
func (p Promise) Downtime() time.Duration {
	var sum time.Duration
	for _, d := range []time.Duration{p.Pause, p.Pages, p.State, p.Resume} {
		if sum += max(d, 0); sum < 0 {
			return math.MaxInt64
		}
	}
	return sum
}

// Promise works out a pause from the Sample: the guest goes on writing until it
// stands still, and all that is dirty then goes at the present bandwidth.
func (r Round) Promise() Promise {
	s := r.Sample
	p := Promise{Pause: s.Pause, State: s.State, Resume: s.Resume}
	if s.Took > 0 {
		p.PagesPerSecond = float64(s.NewPages) / s.Took.Seconds()
	}
	dirty := math.Ceil(float64(r.DirtyPages) + p.PagesPerSecond*max(s.Pause, 0).Seconds())
	if most := float64(r.TotalPages); most > 0 {
		dirty = min(dirty, most)
	}
	if p.DirtyPages = math.MaxUint64; dirty < math.MaxUint64 {
		p.DirtyPages = uint64(dirty)
	}
	if p.Pages = r.Sending(dirty) + max(s.Pages, 0); p.Pages < 0 {
		p.Pages = math.MaxInt64
	}
	return p
}

// enoughPages is how many pages a round must have had for its time a page to be
// believed.
const enoughPages = 256

// Sending is how long so many dirty pages take, 0 or more: their bytes at the
// present bandwidth, and no less than as many took in the round just sent, which
// may have spent its time on looking at pages that needed no sending. Round 1
// says nothing of that: none of its pages had been sent before.
func (r Round) Sending(pages float64) time.Duration {
	d := r.Transfer(pages * r.pageBytes())
	if r.Number < 2 || r.SentPages < enoughPages || r.Took <= 0 {
		return d
	}
	if looked := pages * float64(r.Took) / float64(r.SentPages); looked < math.MaxInt64 {
		return max(d, time.Duration(looked))
	}
	return math.MaxInt64
}

// pageBytes is PageBytes, or a whole page where that says nothing.
func (r Round) pageBytes() float64 {
	if r.PageBytes > 0 && r.PageBytes <= math.MaxFloat64 {
		return r.PageBytes
	}
	return PageSize
}

// Transfer is how long so many bytes take at the present bandwidth, 0 or more:
// math.MaxInt64 where that is not known or too long to say.
func (r Round) Transfer(bytes float64) time.Duration {
	if bytes <= 0 {
		return 0
	}
	if d := bytes / r.Bandwidth * 1e9; r.Bandwidth > 0 && d < math.MaxInt64 {
		return time.Duration(d)
	}
	return math.MaxInt64
}

// Measured is the stop rule "measured": finish when the whole pause can be
// expected to fit the downtime limit: stopping the guest, what is dirty and what
// it writes until it stands still, device state, and the hand-over. After
// MaxRounds rounds it finishes whatever that costs. LastSync counts the dirty
// pages alone.
//
// It has the guest watched only where the pages by themselves would fit, since
// nothing else can make the pause shorter.
type Measured struct {
	MaxRounds int           // 1 or more
	Watch     time.Duration // length of a sample
}

// Measure implements Measurer. The last round is measured whatever it costs, so
// that the report can say what was expected.
func (m Measured) Measure(r Round) time.Duration {
	if r.Number >= m.MaxRounds || r.DirtyPages == 0 || r.EstDowntime <= r.DowntimeLimit {
		return m.Watch
	}
	return 0
}

// Decide implements Stop.
func (m Measured) Decide(r Round) Decision {
	if r.DirtyPages == 0 || r.Number >= m.MaxRounds || r.Sample.Took > 0 && r.Promise().Downtime() <= r.DowntimeLimit {
		return Finish
	}
	return Continue
}
