package policy_test

import (
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
	for _, r := range []policy.Round{busy, calm, busy, busy, busy, busy, busy, busy, busy, busy} {
		got = append(got, th.Next(r))
	}
	require.Equal(t, []int{100, 100, 100, 70, 70, 45, 45, 20, 20, 20}, got)
	for _, bad := range []string{"auto-converge,initial=0", "auto-converge,max=100", "cap:0", "cap:101", "cap:x"} {
		_, err := policy.Throttles.Parse(bad)
		require.ErrorIs(t, err, policy.ErrBadPolicy, bad)
	}
	c, err := policy.Throttles.Parse("cap:30")
	require.NoError(t, err)
	require.Equal(t, 30, c.Next(busy))
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
