package sim_test

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/policy"
)

// sortFunc is an order.
type sortFunc func(r policy.Round, pages []uint64)

func (f sortFunc) Sort(r policy.Round, pages []uint64) { f(r, pages) }

// stopFunc is a stop rule.
type stopFunc func(r policy.Round) policy.Decision

func (f stopFunc) Decide(r policy.Round) policy.Decision { return f(r) }

// watchful is a stop rule that measures.
type watchful struct {
	stopFunc
	measure func(r policy.Round) time.Duration
}

func (w watchful) Measure(r policy.Round) time.Duration { return w.measure(r) }

// paceFunc is a throttle.
type paceFunc func(r policy.Round) policy.Pace

func (f paceFunc) Next(r policy.Round) policy.Pace { return f(r) }

// faulty is a codec with a fault of its own. What it does not set is as in a
// codec that keeps pages whole but for a last byte, so that it encodes.
type faulty struct {
	encode  func(gfn uint64, page []byte) policy.Encoding
	forget  func()
	observe func(r policy.Round, dirty []uint64)
	link    func()
	finish  func() error
}

func (c *faulty) ID() uint8 { return 2 } // LZ4's: the destination has a decoder for it
func (c *faulty) Encode(gfn uint64, page []byte) policy.Encoding {
	if c.encode != nil {
		return c.encode(gfn, page)
	}
	return policy.Encoding{Data: bytes.Clone(page), Raw: true}
}
func (c *faulty) Decode(uint64, []byte, uint32, []byte) error { panic("only a source has this codec") }
func (c *faulty) Forget(uint64) {
	if c.forget != nil {
		c.forget()
	}
}
func (c *faulty) Observe(r policy.Round, dirty []uint64) {
	if c.observe != nil {
		c.observe(r, dirty)
	}
}
func (c *faulty) ObserveLink(policy.Link) {
	if c.link != nil {
		c.link()
	}
}
func (c *faulty) Close() error {
	if c.finish != nil {
		return c.finish()
	}
	return nil
}

// A faulty policy ends the migration before GO, by its name, and the source runs on.
// In round 1 and in a later one: what the first find is what they were given.
func TestFaultyPolicies(t *testing.T) {
	for name, c := range map[string]struct {
		set  policy.Set
		says string
	}{
		"order swaps for others": {policy.Set{Order: sortFunc(func(_ policy.Round, p []uint64) {
			for i := range p[:min(200, len(p))] {
				p[i] += 1 << 20
			}
		})}, "order sim_test.sortFunc puts in a page that it was not given: 0x100000000, of 1000 pages"},
		"order swaps one for an address behind the RAM": {policy.Set{Order: sortFunc(func(_ policy.Round, p []uint64) { p[len(p)-1] = 1 << 19 })},
			"puts in a page that it was not given: 0x80000000"},
		"order swaps for the highest number": {policy.Set{Order: sortFunc(func(_ policy.Round, p []uint64) { p[0] = 1<<64 - 1 })}, "not given"},
		"order drops":                        {policy.Set{Order: sortFunc(func(_ policy.Round, p []uint64) { p[3] = 0 })}, "gives a page 2 times: 0x0, of 1000 pages"},
		"order duplicates":                   {policy.Set{Order: sortFunc(func(_ policy.Round, p []uint64) { copy(p[1:4], []uint64{p[0], p[0], p[0]}) })}, "gives a page 4 times: 0x0"},
		"order clears":                       {policy.Set{Order: sortFunc(func(_ policy.Round, p []uint64) { clear(p) })}, "gives a page 1000 times: 0x0"},
		"order is late to err": {policy.Set{Order: sortFunc(func(r policy.Round, p []uint64) {
			if r.Number == 1 {
				p[0] = p[1]
			}
		})}, "gives a page 2 times"},
		"order panics": {policy.Set{Order: sortFunc(func(_ policy.Round, p []uint64) { _ = p[len(p)] })}, "order sim_test.sortFunc panicked: runtime error: index out of range"},

		"stop answers nonsense":      {policy.Set{Stop: stopFunc(func(policy.Round) policy.Decision { return 7 })}, "stop rule sim_test.stopFunc answers 7, which is neither Continue nor Finish"},
		"stop panics":                {policy.Set{Stop: stopFunc(func(policy.Round) policy.Decision { panic("planted") })}, "stop rule sim_test.stopFunc panicked: planted"},
		"stop panics as it measures": {policy.Set{Stop: watchful{nil, func(policy.Round) time.Duration { panic("planted") }}}, "stop rule sim_test.watchful panicked: planted"},

		"throttle panics": {policy.Set{Throttle: paceFunc(func(r policy.Round) policy.Pace {
			if r.Number == 0 {
				return policy.FullSpeed
			}
			panic("planted")
		})}, "throttle sim_test.paceFunc panicked: planted"},

		"codec makes too much":       {policy.Set{Codec: &faulty{encode: func(_ uint64, p []byte) policy.Encoding { return policy.Encoding{Data: make([]byte, 5000)} }}}, "codec *sim_test.faulty made 5000 bytes of page"},
		"codec makes raw halves":     {policy.Set{Codec: &faulty{encode: func(_ uint64, p []byte) policy.Encoding { return policy.Encoding{Data: p[:2048], Raw: true} }}}, "codec *sim_test.faulty made 2048 bytes of page"},
		"codec panics":               {policy.Set{Codec: &faulty{encode: func(uint64, []byte) policy.Encoding { panic("planted") }}}, "codec *sim_test.faulty panicked: planted"},
		"codec panics as it forgets": {policy.Set{Codec: &faulty{forget: func() { panic("planted") }}}, "codec *sim_test.faulty panicked: planted"},
		"codec panics as it looks":   {policy.Set{Codec: &faulty{observe: func(policy.Round, []uint64) { panic("planted") }}}, "codec *sim_test.faulty panicked: planted"},
		"codec says Same":            {policy.Set{Codec: &faulty{encode: func(uint64, []byte) policy.Encoding { return policy.Encoding{Same: true} }}}, "guest memory differs"},
		"codec names no choice": {policy.Set{Codec: &faulty{encode: func(uint64, []byte) policy.Encoding { return policy.Encoding{Data: []byte{1}, Codec: 99} }}},
			"by codec 99, the session has 2"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, 1200)
			for i := range uint64(1000) {
				r.put(i, i%999) // two are zero
			}
			rounds := 0
			set := c.set
			if set.Stop == nil {
				set.Stop = stopFunc(func(policy.Round) policy.Decision {
					if rounds++; rounds == 3 {
						return policy.Finish
					}
					return policy.Continue
				})
			}
			r.src.Hook(func(m string) {
				if m == "Clear" { // each page is written again, and so in each round
					for i := range uint64(40) {
						r.put(i, uint64(rounds)*1000+i+1)
					}
				}
			})
			r.send.Policies, r.send.Verify = set, true
			res := r.migrate(context.Background())
			require.ErrorContains(t, res.sendErr, c.says)
			if name != "codec says Same" && name != "codec names no choice" {
				require.ErrorIs(t, res.sendErr, migration.ErrPolicy)
			}
			require.Error(t, res.recvErr)
			require.NoError(t, r.world.Check())
			require.Equal(t, []string{"source"}, r.world.Running())
			require.NoError(t, r.src.Unharmed())
		})
	}
}

// A throttle that panics at once is refused before anything is connected.
func TestThrottlePanicsFirst(t *testing.T) {
	r := newRig(t, 100)
	bad := paceFunc(func(policy.Round) policy.Pace { panic("planted") })
	r.send.Policies.Throttle = bad
	_, err := migration.NewSession(r.src, r.dial, r.send)
	require.ErrorIs(t, err, migration.ErrOptions)
	require.ErrorIs(t, err, migration.ErrPolicy)
	s, err := migration.NewSession(r.src, r.dial, migration.SendOptions{})
	require.NoError(t, err)
	require.ErrorIs(t, s.SetThrottle(bad), migration.ErrPolicy)
}

// What a policy may do to its list after Sort, and to what it was shown, is of no
// consequence; nor are numbers beyond their range.
func TestPoliciesThatDoNoHarm(t *testing.T) {
	scribble := func(p []uint64) {
		for i := range p {
			p[i] = 7
		}
	}
	r := newRig(t, 1200)
	for i := range uint64(1000) {
		r.put(i, i+1)
	}
	var kept []uint64
	var mu sync.Mutex
	r.send.Policies = policy.Set{
		Order: sortFunc(func(_ policy.Round, p []uint64) {
			_ = append(p, 1, 2, 3)
			slices.Reverse(p)
			kept = p
		}),
		Throttle: paceFunc(func(r policy.Round) policy.Pace { return policy.Pace{Percent: []int{-5, 1 << 40}[r.Number%2]} }),
		Stop: watchful{func(r policy.Round) policy.Decision {
			if r.Number >= 3 {
				return policy.Finish
			}
			return policy.Continue
		}, func(policy.Round) time.Duration { return -time.Hour }},
		Codec: &faulty{observe: func(_ policy.Round, p []uint64) { scribble(p) }, finish: func() error { panic("planted") }},
	}
	r.src.Hook(func(m string) {
		if m == "Clear" {
			mu.Lock()
			defer mu.Unlock()
			scribble(kept[:cap(kept)]) // while the round is being sent
			r.put(5, 1234)
		}
	})
	r.send.Verify = true
	r.moved(r.migrate(context.Background()))
}

// A decoder that panics at the destination ends the migration there.
func TestDecoderPanics(t *testing.T) {
	registerBomb()
	r := newRig(t, 100)
	for i := range uint64(100) {
		r.put(i, i+1)
	}
	r.send.Policies.Codec = bomb{}
	res := r.migrate(context.Background())
	require.ErrorIs(t, res.recvErr, migration.ErrPolicy)
	require.ErrorContains(t, res.sendErr, "codec sim_test.bomb panicked: planted")
	require.Equal(t, []string{"source"}, r.world.Running())
	require.NoError(t, r.src.Unharmed())
}

// bomb is a codec whose decoder panics.
type bomb struct{}

func (bomb) ID() uint8                                   { return 254 }
func (bomb) Encode(uint64, []byte) policy.Encoding       { return policy.Encoding{Data: []byte{1}} }
func (bomb) Decode(uint64, []byte, uint32, []byte) error { panic("planted") }
func (bomb) Forget(uint64)                               {}

var registerBomb = sync.OnceFunc(func() {
	policy.Codecs.Register("bomb", func(*policy.Options) (policy.Codec, error) { return bomb{}, nil })
})
