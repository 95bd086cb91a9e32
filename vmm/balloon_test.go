package vmm

import (
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/migration"
)

// TestBalloonMoves: what the operator asked for last goes along, not what the
// machine was started with.
func TestBalloonMoves(t *testing.T) {
	cfg := metronomeConfig("fill=8 ws=4 rate=1000 beat=50")
	cfg.Balloon = &Balloon{AmountMiB: 16, DeflateOnOOM: true, StatsPollingIntervalS: 5, FreePageReporting: true}
	m, out := start(t, cfg)
	lastBeat(t, out, 2)
	require.NoError(t, m.SetBalloon(32))
	require.NoError(t, m.SetBalloonInterval(7))
	require.ErrorIs(t, m.SetBalloon(129), ErrConfig)
	require.ErrorIs(t, m.SetBalloon(-1), ErrConfig)
	require.ErrorIs(t, m.SetBalloonInterval(0), ErrConfig)
	next, _ := move(t, m, migration.SendOptions{Verify: true}, out)
	info, err := next.Info()
	require.NoError(t, err)
	require.Equal(t, &BalloonInfo{TargetMiB: 32, DeflateOnOOM: true, StatsIntervalS: 7, FreePageReporting: true}, info.Balloon)

	// Without hinting, or without a driver that hints, a migration that wants hints
	// says so before anything is done.
	for says, spec := range map[string]*Balloon{"--balloon hinting": {}, "no driver": {FreePageHinting: true}} {
		cfg.Balloon = spec
		m, _ := start(t, cfg)
		_, err := migration.Send(t.Context(), m.Source(), nil, migration.SendOptions{FreePageHint: true})
		require.ErrorIs(t, err, migration.ErrHint)
		require.ErrorIs(t, err, migration.ErrOptions)
		require.ErrorContains(t, err, says)
		require.Equal(t, StateRunning, m.State())
	}
	cfg.Balloon = nil
	without, _ := start(t, cfg)
	require.ErrorIs(t, without.SetBalloon(1), ErrNoBalloon)
	require.ErrorIs(t, without.SetBalloonInterval(1), ErrNoBalloon)
	info, err = without.Info()
	require.NoError(t, err)
	require.Nil(t, info.Balloon)
}
