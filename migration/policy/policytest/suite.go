// Package policytest holds one suite per policy interface. Every
// implementation, built in or not, goes through it.
package policytest

import (
	"hash/crc32"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
)

// rounds are situations that a policy must cope with, edges included.
func rounds() []policy.Round {
	return []policy.Round{
		{},
		{Number: 1, TotalPages: 1 << 18, DirtyPages: 1 << 18, Bandwidth: 0, Duty: 100},
		{Number: 2, TotalPages: 1 << 18, DirtyPages: 1, Bandwidth: 125e6, EstDowntime: 33 * time.Microsecond, DowntimeLimit: 30 * time.Millisecond, Duty: 100, VCPUs: 2},
		{Number: 3, TotalPages: 1 << 18, DirtyPages: 1 << 17, Bandwidth: 1, EstDowntime: math.MaxInt64, DowntimeLimit: time.Nanosecond, Duty: 1},
		{Number: math.MaxInt32, Elapsed: math.MaxInt64, Took: math.MaxInt64, TotalPages: math.MaxUint64, DirtyPages: math.MaxUint64,
			SentPages: math.MaxUint64, SentBytes: math.MaxUint64, Bandwidth: math.Inf(1), EstDowntime: math.MaxInt64, Duty: 100, VCPUs: 1},
		{Number: 4, DirtyPages: math.MaxUint64, Bandwidth: math.NaN(), EstDowntime: math.MinInt64, Duty: 100, PageBytes: math.NaN(),
			Sample: policy.Sample{Took: 1, NewPages: math.MaxUint64, Pause: math.MaxInt64, Pages: math.MaxInt64, State: math.MaxInt64, Resume: math.MaxInt64}},
		{Number: 5, DirtyPages: 1, Bandwidth: -1, DowntimeLimit: time.Second, Duty: 100, PageBytes: math.Inf(1),
			Sample: policy.Sample{Took: math.MaxInt64, Pause: math.MinInt64, Pages: -1, State: -1, Resume: -1}},
	}
}

// Order checks that sorting keeps every page exactly once, for any round.
func Order(t *testing.T, make func() policy.Order) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	o := make()
	for _, r := range rounds() {
		for _, n := range []int{0, 1, 2, 255, 256, 5000} {
			pages := pageSet(rng, n)
			want := slices.Clone(pages)
			o.Sort(r, pages)
			got := slices.Clone(pages)
			slices.Sort(got)
			require.Equal(t, want, got, "Sort must keep every page exactly once (%d pages, round %d)", n, r.Number)
		}
	}
}

func pageSet(rng *rand.Rand, n int) []uint64 {
	pages := make([]uint64, n)
	next := uint64(0)
	for i := range pages {
		next += 1 + rng.Uint64N(4)
		pages[i] = next
	}
	return pages
}

// Throttle checks the range of the answers, that all go by the same means, and
// that asking for the beginning changes nothing.
func Throttle(t *testing.T, make func() policy.Throttle) {
	t.Helper()
	th := make()
	first := th.Next(policy.Round{})
	require.Equal(t, first, th.Next(policy.Round{}), "asked twice before the first round")
	require.Equal(t, first, make().Next(policy.Round{}), "two throttles made alike")
	for _, r := range rounds() {
		p := th.Next(r)
		require.Equal(t, first.By, p.By, "Next must stay with one means, round %d", r.Number)
		require.Equal(t, p, p.Clamp(), "Next must be in range, and only what its means needs, round %d", r.Number)
	}
}

// Stop checks that the rule finishes an idle guest at once, and a guest that
// never converges after a bounded number of rounds.
func Stop(t *testing.T, make func() policy.Stop) {
	t.Helper()
	idle := policy.Round{Number: 1, TotalPages: 1 << 20, Bandwidth: 1e9, DowntimeLimit: 30 * time.Millisecond, Duty: 100}
	require.Equal(t, policy.Finish, make().Decide(idle), "nothing dirty: the rule must finish")
	for _, bandwidth := range []float64{1e6, 0, -1, math.NaN(), math.Inf(1), math.SmallestNonzeroFloat64} {
		busy := policy.Round{TotalPages: 1 << 20, DirtyPages: 1 << 20, Bandwidth: bandwidth, SentPages: 1 << 20, SentBytes: 1 << 32,
			EstDowntime: time.Hour, DowntimeLimit: time.Millisecond, Duty: 100}
		finishes(t, make(), busy)
		busy.EstDowntime = 0 // the pages would fit, but nothing else does
		busy.Sample = policy.Sample{Took: time.Millisecond, NewPages: 1 << 20, Pause: time.Hour, Pages: time.Hour, State: math.MaxInt64, Resume: time.Hour}
		finishes(t, make(), busy)
	}
	for _, r := range rounds() {
		d := make().Decide(r)
		require.Contains(t, []policy.Decision{policy.Continue, policy.Finish}, d)
		if m, ok := make().(policy.Measurer); ok {
			took := m.Measure(r)
			require.True(t, took >= 0 && took <= time.Second, "Measure must be 0 to a second, is %v in round %d", took, r.Number)
		}
	}
}

// finishes runs a rule against a guest that stays as busy as in r.
func finishes(t *testing.T, s policy.Stop, r policy.Round) {
	t.Helper()
	for r.Number = 1; s.Decide(r) != policy.Finish; r.Number++ {
		require.Less(t, r.Number, 1_000_000, "the rule never finishes a guest that does not converge")
	}
}

// Codec checks round trips over pages that change in the ways guests change
// them, that encodings are smaller than pages, and that garbage is refused or
// decoded to something, but never panics.
func Codec(t *testing.T, make func() policy.Codec) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	src, dst := make(), make()
	const pages = 64
	var memory, copied [pages][]byte
	for i := range pages {
		memory[i], copied[i] = newPage(), newPage()
	}
	for step := range 2000 {
		gfn := rng.Uint64N(pages)
		page := memory[gfn]
		mutate(rng, page)
		if isZero(page) {
			src.Forget(gfn)
			dst.Forget(gfn)
			clear(copied[gfn])
			continue
		}
		e := src.Encode(gfn, page)
		if e.Same {
			require.Equal(t, page, copied[gfn], "page %d is not the same at step %d", gfn, step)
			continue
		}
		if e.Raw {
			require.Len(t, e.Data, policy.PageSize)
			copy(copied[gfn], e.Data)
		} else {
			require.NotZero(t, src.ID(), "codec 0 is raw and never encodes")
			require.Less(t, len(e.Data), policy.PageSize, "an encoding must be smaller than the page")
			if e.Base != 0 {
				require.Equal(t, crc32.Checksum(copied[gfn], crc32.MakeTable(crc32.Castagnoli)), e.Base, "Base must be what the destination has")
			}
			require.NoError(t, Decoder(dst, e.Codec).Decode(gfn, copied[gfn], e.Base, e.Data))
		}
		require.Equal(t, page, copied[gfn], "page %d differs after step %d", gfn, step)
	}
	for range 2000 {
		junk := newPage()[:rng.IntN(policy.PageSize)]
		fill(rng, junk)
		_ = dst.Decode(rng.Uint64N(pages), newPage(), rng.Uint32(), junk)
		if c, ok := dst.(policy.Chooser); ok {
			choice := c.Choices()[rng.IntN(len(c.Choices()))]
			_ = choice.Decode(rng.Uint64N(pages), newPage(), rng.Uint32(), junk)
		}
	}
	checkChoices(t, dst)
}

// Decoder finds what decodes an encoding by codec id, 0 for the session's own;
// nil if the session has no such codec.
func Decoder(session policy.Codec, id uint8) policy.Codec {
	if id == 0 {
		return session
	}
	if c, ok := session.(policy.Chooser); ok {
		for _, choice := range c.Choices() {
			if choice.ID() == id {
				return choice
			}
		}
	}
	return nil
}

// checkChoices checks that a chooser's choices can be told apart on the wire.
func checkChoices(t *testing.T, c policy.Codec) {
	t.Helper()
	chooser, ok := c.(policy.Chooser)
	if !ok {
		return
	}
	ids := map[uint8]bool{0: true, c.ID(): true}
	for _, choice := range chooser.Choices() {
		require.False(t, ids[choice.ID()], "choice %d is no codec of its own", choice.ID())
		ids[choice.ID()] = true
		_, nested := choice.(policy.Chooser)
		require.False(t, nested, "choice %d chooses itself: encodings would have two names", choice.ID())
	}
}

func newPage() []byte { return make([]byte, policy.PageSize) }

func isZero(p []byte) bool { return !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) }

func fill(rng *rand.Rand, p []byte) {
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
}

func mutate(rng *rand.Rand, p []byte) {
	switch rng.IntN(5) {
	case 0:
		fill(rng, p)
	case 1:
		clear(p)
	case 2:
		p[rng.IntN(len(p))]++
	case 3:
		for range 200 {
			p[rng.IntN(len(p))] = byte(rng.Uint32())
		}
	}
}
