package policy

var (
	_ Throttle = (*AutoConverge)(nil)
	_ Throttle = Cap{}
)

func init() {
	Throttles.Register("auto-converge", func(o *Options) (Throttle, error) {
		return &AutoConverge{
			Initial:   o.Int("initial", 20, 1, 99),
			Increment: o.Int("increment", 10, 1, 99),
			Max:       o.Int("max", 99, 1, 99),
		}, nil
	})
	Throttles.Register("cap", func(o *Options) (Throttle, error) {
		return Cap{Percent: o.Int("", 50, 1, 100)}, nil
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
func (a *AutoConverge) Next(r Round) int {
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
	return 100 - a.taken
}

// Cap is the throttle "cap:PCT": the guest gets that share of its processors
// for as long as the migration takes.
type Cap struct {
	Percent int // 1 to 100
}

// Next implements Throttle.
func (c Cap) Next(Round) int { return c.Percent }
