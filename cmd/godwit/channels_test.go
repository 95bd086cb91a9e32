package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/cmd/godwit/internal/units"
	"godwit/vmm"
)

func TestParseEntropy(t *testing.T) {
	for s, want := range map[string]vmm.TokenBucket{
		"rate=64K":              {Size: 64 << 10, RefillTime: 1000},
		"rate=1000,burst=500":   {Size: 500, RefillTime: 500},
		"burst=1M,rate=64K":     {Size: 1 << 20, RefillTime: 16000},
		"rate=3000,burst=1":     {Size: 1, RefillTime: 1},
		"rate=1,burst=10":       {Size: 10, RefillTime: 10000},
		"rate=7000,burst=10000": {Size: 10000, RefillTime: 1429},
	} {
		e, err := parseEntropy(s)
		require.NoError(t, err, s)
		require.Equal(t, want, *e.RateLimiter.Bandwidth, s)
	}
	e, err := parseEntropy("unlimited")
	require.NoError(t, err)
	require.Nil(t, e.RateLimiter)
	for _, s := range []string{"", "rate", "rate=", "rate=0", "rate=x", "burst=1K", "rate=1K,x=1", "rate=1K,burst=0", "unlimited,rate=1", "rate=1,burst=16777215T"} {
		_, err := parseEntropy(s)
		require.ErrorIs(t, err, units.ErrSyntax, s)
	}
}

func FuzzParseChannels(f *testing.F) {
	f.Add("rate=64K,burst=1M")
	f.Fuzz(func(t *testing.T, s string) {
		if e, err := parseEntropy(s); err == nil && e.RateLimiter != nil && e.RateLimiter.Bandwidth.RefillTime == 0 {
			t.Fatalf("%q is never filled again", s)
		}
	})
}
