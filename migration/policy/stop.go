package policy

var (
	_ Stop = Rounds{}
	_ Stop = (*Xen)(nil)
)

func init() {
	Stops.Register("rounds", func(o *Options) (Stop, error) {
		return Rounds{N: o.Int("", 1, 1, 1_000_000)}, nil
	})
	Stops.Register("xen", func(*Options) (Stop, error) { return &Xen{}, nil })
}

// Rounds is the stop rule "rounds:N": pause after N rounds whatever is left, or
// when nothing is. With N=1 it is one full copy and the rest in the pause.
type Rounds struct {
	N int // 1 or more
}

// Decide implements Stop.
func (s Rounds) Decide(r Round) Decision {
	if r.DirtyPages == 0 || r.Number >= s.N {
		return Finish
	}
	return Continue
}

// Numbers of Xen's live migration (tools/libxc, xc_domain_save.c of Xen 4.5).
const (
	xenMaxRounds = 29
	xenMaxFactor = 3
	xenFewPages  = 50
)

// Xen is the stop rule "xen": pause when fewer than 50 pages are dirty, after 29
// rounds, or when three times the guest's memory has been sent. It looks at no
// bandwidth and promises no downtime; it stands here to be compared with.
type Xen struct {
	sent uint64 // pages in all rounds
}

// Decide implements Stop.
func (s *Xen) Decide(r Round) Decision {
	if s.sent += r.SentPages; s.sent < r.SentPages {
		s.sent = 1<<64 - 1 // overflow: more than any factor
	}
	if r.DirtyPages < xenFewPages || r.Number >= xenMaxRounds || s.sent/xenMaxFactor >= max(r.TotalPages, 1) {
		return Finish
	}
	return Continue
}
