package balloon_test

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/virtio/balloon"
)

// statistic is one statistic as the driver writes it.
func statistic(tag uint16, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint16(nil, tag), v)
}

func TestStatistics(t *testing.T) {
	g := boot(t, balloon.Config{StatsInterval: time.Second}, 0, 0, 1, 2)
	_, ok := g.dev.GuestStats()
	require.False(t, ok)

	var all []byte
	for tag := range uint16(14) { // four more than are known
		all = append(all, statistic(tag, 100+uint64(tag))...)
	}
	first := g.send(2, g.bytes(append(all, 1, 2, 3)))
	require.Equal(t, first, g.wait(2), "the interval is over: it is asked again")
	s, ok := g.dev.GuestStats()
	require.True(t, ok)
	for i, p := range []*uint64{s.SwapInBytes, s.SwapOutBytes, s.MajorFaults, s.MinorFaults, s.FreeBytes,
		s.TotalBytes, s.AvailableBytes, s.CacheBytes, s.HugetlbAllocated, s.HugetlbFailed} {
		require.NotNil(t, p)
		require.EqualValues(t, 100+i, *p)
	}

	// The second answer replaces all of the first. A driver that gives a second
	// buffer gets the older one back at once, before its time.
	require.NoError(t, g.dev.SetStatsInterval(time.Hour))
	second := g.send(2, g.bytes(statistic(4, 7)))
	third := g.send(2, g.bytes(statistic(4, 8)))
	require.Equal(t, second, g.wait(2))
	s, _ = g.dev.GuestStats()
	require.EqualValues(t, 8, *s.FreeBytes)
	require.Nil(t, s.TotalBytes)

	// Pausing asks as well, and holds nothing.
	require.NoError(t, g.tr.Pause())
	require.Equal(t, third, g.wait(2))
	require.NoError(t, g.tr.Resume())
}

func TestStatisticsInterval(t *testing.T) {
	g := boot(t, balloon.Config{StatsInterval: time.Hour}, 0, 0, 1, 2)
	head := g.send(2, g.bytes(statistic(4, 7)))
	require.Eventually(t, func() bool { _, ok := g.dev.GuestStats(); return ok }, time.Minute, time.Millisecond)
	require.ErrorIs(t, g.dev.SetStatsInterval(0), balloon.ErrInterval)
	require.NoError(t, g.dev.SetStatsInterval(time.Second), "is in force at once")
	require.Equal(t, head, g.wait(2))
	require.Equal(t, time.Second, g.dev.StatsInterval())

	g = boot(t, balloon.Config{}, 0, 0, 1)
	require.ErrorIs(t, g.dev.SetStatsInterval(time.Second), balloon.ErrNoStats)
}
