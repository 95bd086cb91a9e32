package policy_test

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
)

func TestHotLast(t *testing.T) {
	o, err := policy.Orders.Parse("hot-last")
	require.NoError(t, err)
	sorted := func(number int, pages ...uint64) []uint64 {
		o.Sort(policy.Round{Number: number}, pages)
		return pages
	}
	require.Equal(t, []uint64{1, 2, 3, 9}, sorted(0, 1, 2, 3, 9), "the first round knows no heat")
	require.Equal(t, []uint64{2, 3}, sorted(1, 2, 3))
	require.Equal(t, []uint64{1, 9, 3}, sorted(2, 1, 3, 9), "3 was dirty before, 1 and 9 were not")
	require.Equal(t, []uint64{2, 1, 3}, sorted(3, 1, 2, 3), "2 rested a round, 1 was dirty once, 3 always")
	require.Equal(t, []uint64{3, 7}, sorted(40, 3, 7), "old heat is forgotten")
	require.Equal(t, []uint64{5, 1 << 20, 3}, sorted(41, 3, 5, 1<<20))
}

func TestRandomIsRepeatable(t *testing.T) {
	pages := func(spec string) []uint64 {
		o, err := policy.Orders.Parse(spec)
		require.NoError(t, err)
		p := make([]uint64, 1000)
		for i := range p {
			p[i] = uint64(i)
		}
		o.Sort(policy.Round{}, p)
		return p
	}
	require.Equal(t, pages("random,seed=7"), pages("random,seed=7"))
	require.NotEqual(t, pages("random,seed=7"), pages("random,seed=8"))
	require.False(t, slices.IsSorted(pages("random")))
}

func TestRoundsAndXen(t *testing.T) {
	for _, tc := range []struct {
		spec string
		r    policy.Round
		want policy.Decision
	}{
		{"rounds:3", policy.Round{Number: 2, DirtyPages: 1}, policy.Continue},
		{"rounds:3", policy.Round{Number: 3, DirtyPages: 1}, policy.Finish},
		{"rounds:3", policy.Round{Number: 1}, policy.Finish},
		{"xen", policy.Round{Number: 1, DirtyPages: 49, TotalPages: 1000}, policy.Finish},
		{"xen", policy.Round{Number: 1, DirtyPages: 50, TotalPages: 1000, SentPages: 2999}, policy.Continue},
		{"xen", policy.Round{Number: 1, DirtyPages: 50, TotalPages: 1000, SentPages: 3000}, policy.Finish},
		{"xen", policy.Round{Number: 29, DirtyPages: 500, TotalPages: 1000}, policy.Finish},
	} {
		s, err := policy.Stops.Parse(tc.spec)
		require.NoError(t, err)
		require.Equal(t, tc.want, s.Decide(tc.r), "%s %+v", tc.spec, tc.r)
	}
}

func TestAutoConverge(t *testing.T) {
	th, err := policy.Throttles.Parse("auto-converge,initial=30,increment=25,max=80")
	require.NoError(t, err)
	busy := policy.Round{Number: 1, SentPages: 100, DirtyPages: 51, EstDowntime: time.Second, DowntimeLimit: time.Millisecond}
	calm := busy
	calm.DirtyPages = 50
	var got []int
	for _, r := range []policy.Round{{}, busy, calm, busy, busy, busy, busy, busy, busy, busy, busy} {
		got = append(got, th.Next(r).Percent)
	}
	require.Equal(t, []int{100, 100, 100, 100, 70, 70, 45, 45, 20, 20, 20}, got)
}

// What a throttle begins with, by its text.
func TestThrottleTexts(t *testing.T) {
	for text, want := range map[string]policy.Pace{
		"none":                {By: policy.ByDuty, Percent: 100},
		"auto-converge":       {By: policy.ByDuty, Percent: 100},
		"cap:30":              {By: policy.ByDuty, Percent: 30},
		"cap:30,by=duty":      {By: policy.ByDuty, Percent: 30},
		"cap:30,by=cgroup":    {By: policy.ByCgroup, Percent: 30},
		"dirty-limit":         {By: policy.ByDirtyLimit},
		"dirty-limit:1":       {By: policy.ByDirtyLimit, PagesPerSecond: 245},
		"dirty-limit:4096":    {By: policy.ByDirtyLimit, PagesPerSecond: 1_000_000},
		"dirty-limit:1000000": {By: policy.ByDirtyLimit, PagesPerSecond: 244_140_625},
	} {
		th, err := policy.Throttles.Parse(text)
		require.NoError(t, err, text)
		require.Equal(t, want, th.Next(policy.Round{}), text)
	}
	for text, says := range map[string]string{
		"auto-converge,initial=0": "1 to 99", "auto-converge,max=100": "1 to 99",
		"cap:0": "1 to 100", "cap:101": "1 to 100", "cap:x": "whole number", "cap:30,by=": "is not NAME=VALUE", "cap": "write cap:50", "cap,by=duty": "write cap:50", "auto-converge,initial=99,max=1": "above max=1", "cap:30,by=luck": "duty or cgroup",
		"dirty-limit:0": "1 to 1000000", "dirty-limit:1000001": "1 to 1000000", "dirty-limit:2.5": "whole number", "dirty-limit,by=cgroup": `no option "by"`,
	} {
		_, err := policy.Throttles.Parse(text)
		require.ErrorIs(t, err, policy.ErrBadPolicy, text)
		require.ErrorContains(t, err, says, text)
	}
}

func TestDirtyLimitAdapts(t *testing.T) {
	d := &policy.DirtyLimit{}
	for i, step := range []struct {
		dirty     uint64
		bandwidth float64
		want      uint64
	}{
		{1000, 0, 0},              // nothing known yet
		{1000, 4096 * 8000, 1000}, // half of it, over four vCPUs
		{900, 4096 * 80000, 1000}, // the dirty set shrinks: enough
		{900, 4096 * 8000, 500},   // it does not
		{2000, 4096 * 8000, 250},
		{2000, 4096 * 8000, 245}, // the floor
		{2000, 4096 * 8000, 245},
		{0, 4096 * 8000, 245},
	} {
		got := d.Next(policy.Round{Number: i + 1, DirtyPages: step.dirty, Bandwidth: step.bandwidth, VCPUs: 4})
		require.Equal(t, policy.Pace{By: policy.ByDirtyLimit, PagesPerSecond: step.want}, got, "round %d", i+1)
	}
	fixed := &policy.DirtyLimit{PagesPerSecond: 700}
	for n := range 3 {
		require.EqualValues(t, 700, fixed.Next(policy.Round{Number: n, DirtyPages: 5, Bandwidth: 1e9}).PagesPerSecond)
	}
}

func TestPace(t *testing.T) {
	for _, tc := range []struct {
		p     policy.Pace
		free  bool
		share int
		clamp policy.Pace
		text  string
	}{
		{policy.FullSpeed, true, 100, policy.FullSpeed, "full speed"},
		{policy.Pace{Percent: 40}, false, 40, policy.Pace{Percent: 40}, "40 % by duty cycle"},
		{policy.Pace{By: policy.ByCgroup, Percent: 1}, false, 1, policy.Pace{By: policy.ByCgroup, Percent: 1}, "1 % by cgroup"},
		{policy.Pace{Percent: -3, PagesPerSecond: 5}, false, 1, policy.Pace{Percent: 1}, "-3 % by duty cycle"},
		{policy.Pace{}, false, 1, policy.Pace{Percent: 1}, "0 % by duty cycle"},
		{policy.Pace{By: policy.ByCgroup, Percent: 300}, true, 100, policy.Pace{By: policy.ByCgroup, Percent: 100}, "full speed"},
		{policy.Pace{By: policy.ByDirtyLimit}, true, 100, policy.Pace{By: policy.ByDirtyLimit}, "full speed"},
		{policy.Pace{By: policy.ByDirtyLimit, Percent: 7, PagesPerSecond: 9}, false, 100, policy.Pace{By: policy.ByDirtyLimit, PagesPerSecond: 9}, "9 new dirty pages/s per vCPU"},
	} {
		require.Equal(t, tc.free, tc.p.Free(), tc.p)
		require.Equal(t, tc.share, tc.p.Share(), tc.p)
		require.Equal(t, tc.clamp, tc.p.Clamp(), tc.p)
		require.Equal(t, tc.text, tc.p.String())
	}
	require.Equal(t, "dirty-rate limit, means 9", fmt.Sprintf("%v, %v", policy.ByDirtyLimit, policy.Means(9)))
}

func BenchmarkHotLast(b *testing.B) {
	o := &policy.HotLast{}
	pages := make([]uint64, 1<<17)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		for i := range pages {
			pages[i] = uint64(i) * 2
		}
		n++
		o.Sort(policy.Round{Number: n}, pages)
	}
}
