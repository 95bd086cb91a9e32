package policy

import "fmt"

var (
	_ Order    = Address{}
	_ Codec    = Raw{}
	_ Throttle = None{}
	_ Stop     = LastSync{}
)

func init() {
	Orders.Register("address", func(*Options) (Order, error) { return Address{}, nil })
	Codecs.Register("raw", func(*Options) (Codec, error) { return Raw{}, nil })
	Throttles.Register("none", func(*Options) (Throttle, error) { return None{}, nil })
	Stops.Register("last-sync", func(o *Options) (Stop, error) {
		return LastSync{MaxRounds: o.Int("rounds", DefaultMaxRounds, 1, 1_000_000)}, nil
	})
}

// Address is the order "address": ascending, the longest runs on the wire.
type Address struct{}

// Sort leaves pages as they come.
func (Address) Sort(Round, []uint64) {}

// Raw is the codec "raw": every page as it is. The engine sees ID 0 and sends
// straight from guest memory without asking it.
type Raw struct{}

// ID is 0: no codec.
func (Raw) ID() uint8 { return 0 }

// Encode gives the page itself.
func (Raw) Encode(_ uint64, page []byte) Encoding { return Encoding{Data: page, Raw: true} }

// Decode refuses: a raw page never comes as an encoding.
func (Raw) Decode(gfn uint64, _ []byte, _ uint32, enc []byte) error {
	return fmt.Errorf("decode page %#x: %d encoded bytes in a session without a codec", gfn, len(enc))
}

// Forget has nothing to drop.
func (Raw) Forget(uint64) {}

// None is the throttle "none": the guest always runs at full speed.
type None struct{}

// Next is always FullSpeed.
func (None) Next(Round) Pace { return FullSpeed }

// DefaultMaxRounds is LastSync's bound when none is given.
const DefaultMaxRounds = 30

// LastSync is the stop rule "last-sync": finish when what was dirty at the last
// look at the log can be sent within the downtime limit, or after MaxRounds
// rounds whatever that costs. It is the classic rule of pre-copy (Clark et al.,
// NSDI 2005, section 3.2), with time in place of a page count.
type LastSync struct {
	MaxRounds int // 1 or more
}

// Decide implements Stop.
func (s LastSync) Decide(r Round) Decision {
	if r.DirtyPages == 0 || r.Number >= s.MaxRounds || r.Bandwidth > 0 && r.EstDowntime <= r.DowntimeLimit {
		return Finish
	}
	return Continue
}
