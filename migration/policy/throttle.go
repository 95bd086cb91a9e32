package policy

import (
	"errors"
	"fmt"
)

var (
	_ Throttle = (*AutoConverge)(nil)
	_ Throttle = (*DirtyLimit)(nil)
	_ Throttle = Cap{}
)

func init() {
	Throttles.Register("auto-converge", func(o *Options) (Throttle, error) {
		a := &AutoConverge{
			Initial:   o.Int("initial", 20, 1, 99),
			Increment: o.Int("increment", 10, 1, 99),
			Max:       o.Int("max", 99, 1, 99),
		}
		if a.Initial > a.Max {
			return nil, fmt.Errorf("option initial=%d is above max=%d: the first step would be cut short", a.Initial, a.Max)
		}
		return a, nil
	})
	Throttles.Register("cap", func(o *Options) (Throttle, error) {
		if !o.Given("") {
			return nil, errors.New("the percentage is missing; write cap:50 for half of the processors' time")
		}
		c := Cap{Percent: o.Int("", 0, 1, 100)}
		switch by := o.String("by", "duty"); by {
		case "duty":
		case "cgroup":
			c.By = ByCgroup
		default:
			return nil, fmt.Errorf("option \"by\" must be duty or cgroup, not %.40q", by)
		}
		return c, nil
	})
	Throttles.Register("dirty-limit", func(o *Options) (Throttle, error) {
		return &DirtyLimit{PagesPerSecond: pagesOf(o.Int("", 0, 1, 1_000_000))}, nil
	})
}

// AutoConverge is the throttle "auto-converge", after QEMU's: when the guest
// dirties more than half of what a round could send, twice in a row, it is
// slowed by Initial percent, and by Increment more each time it happens again.
type AutoConverge struct {
	Initial   int // percent taken from the guest at first
	Increment int // percent more each time
	Max       int // percent taken at most
	taken     int
	strikes   int
}

// Next implements Throttle.
func (a *AutoConverge) Next(r Round) Pace {
	if r.Number >= 1 && r.DirtyPages > r.SentPages/2 && r.DirtyPages > 0 && r.EstDowntime > r.DowntimeLimit {
		a.strikes++
	} else {
		a.strikes = 0
	}
	if a.strikes >= 2 {
		a.strikes = 0
		if a.taken == 0 {
			a.taken = a.Initial
		} else {
			a.taken += a.Increment
		}
		a.taken = min(a.taken, a.Max)
	}
	return Pace{Percent: 100 - a.taken}
}

// Cap is the throttle "cap:PCT": the guest gets that share of its processors
// for as long as the migration takes, from the first page on.
type Cap struct {
	Percent int   // 1 to 100
	By      Means // ByDuty or ByCgroup
}

// Next implements Throttle.
func (c Cap) Next(Round) Pace { return Pace{By: c.By, Percent: c.Percent} }

// pagesOf is how many pages megabytes (10^6 bytes) are, a part of one counting
// as one.
func pagesOf(megabytes int) uint64 {
	return (uint64(megabytes)*1_000_000 + PageSize - 1) / PageSize
}

// DirtyLimit is the throttle "dirty-limit[:RATE]": no vCPU dirties more than
// RATE MB/s of pages that were clean, as QEMU's vcpu-dirty-limit. A vCPU that
// reads and computes keeps its full speed.
//
// Without RATE it adapts. Round 1 runs without a limit. Then all vCPUs together
// may dirty half of the bandwidth, and half of that again each time a round did
// not shrink the dirty set; but each 1 MB/s at least.
type DirtyLimit struct {
	PagesPerSecond uint64 // of each vCPU; 0 adapts

	limit  uint64 // in force, while it adapts; 0 for none yet
	before uint64 // dirty pages after the round before
}

// Next implements Throttle.
func (d *DirtyLimit) Next(r Round) Pace {
	if d.PagesPerSecond > 0 {
		return Pace{By: ByDirtyLimit, PagesPerSecond: d.PagesPerSecond}
	}
	if r.Number >= 1 && r.Bandwidth > 0 {
		if d.limit == 0 {
			share := r.Bandwidth / PageSize / 2 / float64(max(r.VCPUs, 1))
			d.limit = uint64(min(share, 1e15)) // a bandwidth may be anything, a limit not
		} else if r.DirtyPages >= d.before {
			d.limit /= 2
		}
		d.limit = max(d.limit, pagesOf(1))
		d.before = r.DirtyPages
	}
	return Pace{By: ByDirtyLimit, PagesPerSecond: d.limit}
}
