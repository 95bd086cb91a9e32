package policy_test

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/migration/policy"
)

const msec = time.Millisecond

// near is a round after which the pages by themselves fit: 1000 pages of 4000
// bytes at 400 MB/s are 10 ms.
func near() policy.Round {
	return policy.Round{Number: 3, TotalPages: 1 << 20, DirtyPages: 1000, Bandwidth: 400e6, PageBytes: 4000, EstDowntime: 10 * msec, DowntimeLimit: 30 * msec}
}

func TestMeasured(t *testing.T) {
	s := policy.Measured{MaxRounds: 5, Watch: 7 * msec}
	fits := policy.Sample{Took: 5 * msec, NewPages: 500, Pause: 2 * msec, Pages: msec, State: 3 * msec, Resume: 4 * msec} // 22 ms in all
	for name, tc := range map[string]struct {
		change  func(r *policy.Round)
		measure bool
		want    policy.Decision
	}{
		"no sample yet":           {func(r *policy.Round) {}, true, policy.Continue},
		"too many pages":          {func(r *policy.Round) { r.EstDowntime = 31 * msec }, false, policy.Continue},
		"fits":                    {func(r *policy.Round) { r.Sample = fits }, true, policy.Finish},
		"fits by a hair":          {func(r *policy.Round) { r.Sample, r.DowntimeLimit = fits, 22*msec }, true, policy.Finish},
		"misses by a hair":        {func(r *policy.Round) { r.Sample, r.DowntimeLimit = fits, 22*msec-1 }, true, policy.Continue},
		"pause too long":          {func(r *policy.Round) { r.Sample, r.Sample.Pause = fits, 12*msec }, true, policy.Continue},
		"barrier too long":        {func(r *policy.Round) { r.Sample, r.Sample.Pages = fits, 11*msec }, true, policy.Continue},
		"state too long":          {func(r *policy.Round) { r.Sample, r.Sample.State = fits, 13*msec }, true, policy.Continue},
		"resume too long":         {func(r *policy.Round) { r.Sample, r.Sample.Resume = fits, 14*msec }, true, policy.Continue},
		"grows too fast":          {func(r *policy.Round) { r.Sample, r.Sample.NewPages = fits, 2500 }, true, policy.Finish}, // 10 ms more, only just
		"grows faster yet":        {func(r *policy.Round) { r.Sample, r.Sample.NewPages = fits, 2600 }, true, policy.Continue},
		"pages grew in sample":    {func(r *policy.Round) { r.Sample, r.DirtyPages = fits, 2000 }, true, policy.Continue},
		"bandwidth not known":     {func(r *policy.Round) { r.Sample, r.Bandwidth = fits, 0 }, true, policy.Continue},
		"page size not known":     {func(r *policy.Round) { r.Sample, r.PageBytes = fits, 0 }, true, policy.Finish},
		"last round":              {func(r *policy.Round) { r.Number, r.EstDowntime = 5, time.Hour }, true, policy.Finish},
		"nothing dirty":           {func(r *policy.Round) { r.DirtyPages, r.EstDowntime = 0, 0 }, true, policy.Finish},
		"nothing dirty, yet long": {func(r *policy.Round) { r.Sample, r.DirtyPages, r.Sample.State = fits, 0, time.Hour }, true, policy.Finish},
	} {
		r := near()
		tc.change(&r)
		want := time.Duration(0)
		if tc.measure {
			want = s.Watch
		}
		require.Equal(t, want, s.Measure(r), name)
		require.Equal(t, tc.want, s.Decide(r), "%s: %+v", name, r.Promise())
	}
	p, err := policy.Stops.Parse("measured,sample=20,rounds=9")
	require.NoError(t, err)
	require.Equal(t, policy.Measured{MaxRounds: 9, Watch: 20 * msec}, p)
	p, err = policy.Stops.Parse("measured")
	require.NoError(t, err)
	require.Equal(t, policy.Measured{MaxRounds: policy.DefaultMaxRounds, Watch: 5 * msec}, p)
	for _, bad := range []string{"measured,sample=0", "measured,sample=1001", "measured,sample=5ms", "measured,rounds=0", "measured:5"} {
		_, err := policy.Stops.Parse(bad)
		require.ErrorIs(t, err, policy.ErrBadPolicy, bad)
	}
}

func TestPromise(t *testing.T) {
	r := near()
	r.Sample = policy.Sample{Took: 5 * msec, NewPages: 500, Pause: 2 * msec, Pages: msec, State: 3 * msec, Resume: 4 * msec}
	p := r.Promise()
	require.Equal(t, policy.Promise{Pause: 2 * msec, Pages: 13 * msec, State: 3 * msec, Resume: 4 * msec, DirtyPages: 1200, PagesPerSecond: 100_000}, p)
	require.Equal(t, 22*msec, p.Downtime())
	r.TotalPages = 1100
	require.EqualValues(t, 1100, r.Promise().DirtyPages, "no more than there are")
}

func TestTransfer(t *testing.T) {
	for _, tc := range []struct {
		bytes, bandwidth float64
		want             time.Duration
	}{
		{0, 0, 0}, {-1, 1, 0}, {1e6, 1e9, msec}, {1, 0, math.MaxInt64}, {1, -1, math.MaxInt64}, {1, math.NaN(), math.MaxInt64},
		{1, math.Inf(1), 0}, {math.Inf(1), 1e9, math.MaxInt64}, {1e18, 1, math.MaxInt64}, {math.Inf(1), math.Inf(1), math.MaxInt64}, {math.NaN(), 1, math.MaxInt64},
	} {
		require.Equal(t, tc.want, policy.Round{Bandwidth: tc.bandwidth}.Transfer(tc.bytes), "%v", tc)
	}
}

// Whatever the numbers are, a promise is made of times and pages that can be.
func TestPromiseOfAnything(t *testing.T) {
	odd := []float64{0, -1, math.NaN(), math.Inf(1), math.Inf(-1), math.MaxFloat64, math.SmallestNonzeroFloat64, 1e6}
	rapid.Check(t, func(rt *rapid.T) {
		dur := func(name string) time.Duration { return time.Duration(rapid.Int64().Draw(rt, name)) }
		r := policy.Round{DirtyPages: rapid.Uint64().Draw(rt, "dirty"), TotalPages: rapid.Uint64().Draw(rt, "total"),
			Bandwidth: rapid.SampledFrom(odd).Draw(rt, "bandwidth"), PageBytes: rapid.SampledFrom(odd).Draw(rt, "page"),
			Sample: policy.Sample{Took: dur("took"), NewPages: rapid.Uint64().Draw(rt, "new"), Pause: dur("pause"), Pages: dur("pages"), State: dur("state"), Resume: dur("resume")}}
		p := r.Promise()
		require.GreaterOrEqual(rt, p.Downtime(), time.Duration(0))
		require.GreaterOrEqual(rt, p.Downtime(), max(p.Pause, p.Pages, p.State, p.Resume))
		require.GreaterOrEqual(rt, p.Pages, time.Duration(0))
		require.False(rt, math.IsNaN(p.PagesPerSecond) || math.IsInf(p.PagesPerSecond, 0) || p.PagesPerSecond < 0)
	})
}
