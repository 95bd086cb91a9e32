package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/api"
	"godwit/cmd/godwit/internal/units"
	"godwit/vmm"
)

func TestParseBalloon(t *testing.T) {
	for s, want := range map[string]vmm.Balloon{
		"size=256M":                {AmountMiB: 256},
		"size=0":                   {},
		"hinting":                  {FreePageHinting: true},
		"reporting,size=1G":        {AmountMiB: 1024, FreePageReporting: true},
		"deflate-on-oom,stats=5s":  {DeflateOnOOM: true, StatsPollingIntervalS: 5},
		"size=1M,stats=1m,hinting": {AmountMiB: 1, StatsPollingIntervalS: 60, FreePageHinting: true},
	} {
		b, err := parseBalloon(s)
		require.NoError(t, err, s)
		require.Equal(t, want, *b, s)
	}
	for _, s := range []string{"", "size", "size=", "size=x", "stats", "stats=0s", "stats=1500ms", "stats=-1s", "hinting=yes", "oom", "size=1M,,"} {
		_, err := parseBalloon(s)
		require.ErrorIs(t, err, units.ErrSyntax, s)
	}
}

func FuzzParseBalloon(f *testing.F) {
	f.Add("size=256M,deflate-on-oom,stats=5s,reporting,hinting")
	f.Fuzz(func(t *testing.T, s string) {
		if b, err := parseBalloon(s); err == nil && (b.AmountMiB < 0 || b.StatsPollingIntervalS < 0) {
			t.Fatalf("%q gives %+v", s, b)
		}
	})
}

func TestBalloonText(t *testing.T) {
	free, faults := uint64(5<<20), uint64(7)
	require.Equal(t, "balloon  3 MiB of 4 asked for\n  free         5 MiB\n  major faults 7\n",
		balloonText(api.BalloonStats{TargetMiB: 4, ActualMiB: 3, FreeMemory: &free, MajorFaults: &faults}))
}
