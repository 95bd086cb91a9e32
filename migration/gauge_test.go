package migration

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration/policy"
)

// heard is what a codec was told.
type heard struct {
	policy.Raw
	link policy.Link
}

func (h *heard) ObserveLink(l policy.Link) { h.link = l }

// A gauge of a link of 100 MB/s is right where the stream always waits for it,
// and takes it to be faster, never slower, where the stream itself is slow.
func TestGauge(t *testing.T) {
	const real, chunk = 100e6, 4 << 20
	needs := time.Duration(chunk / real * 1e9) // 42 ms
	for _, c := range []struct {
		name     string
		encoding time.Duration
		writing  time.Duration
		waited   bool
		low, top float64 // of what is told, times real
		hidden   float64
	}{
		{"raw, no limit", 0, needs, false, 1, 1, 0},
		{"encoding in between, nothing known", 5 * time.Millisecond, needs, false, 1, 1, 0},
		{"under a limit", 5 * time.Millisecond, needs - 5*time.Millisecond, true, 1, 1, 1},
		{"slow encoder that the limiter makes up for", 20 * time.Millisecond, needs - 20*time.Millisecond, true, 1, 1, 1},
		{"slower than that", 60 * time.Millisecond, needs - 20*time.Millisecond, true, 1, 1, 1},
		{"slow encoder", 100 * time.Millisecond, needs / 10, false, 10, 10.1, 0},
	} {
		h := &heard{}
		g := newGauges(h, new(limiter), 1)
		s := g.of(0)
		for range 100 {
			s.waited = c.waited
			s.note(chunk, c.encoding, c.writing)
		}
		l, ok := g.link()
		require.True(t, ok)
		require.GreaterOrEqual(t, l.Speed/real, c.low-0.001, c.name)
		require.LessOrEqual(t, l.Speed/real, c.top+0.001, c.name)
		require.InDelta(t, c.hidden, l.Hidden, 0.001, c.name)
	}
}

// Streams add up, the limit is never passed, and what is too short to be
// measured is not.
func TestGaugesTogether(t *testing.T) {
	limit, h := new(limiter), &heard{}
	g := newGauges(h, limit, 3)
	_, ok := g.link()
	require.False(t, ok)
	for i := range 2 {
		s := g.of(i)
		s.note(gaugeBytes-1, 0, time.Second)
		require.Zero(t, s.speed.Load())
		s.note(10e6, 0, 100*time.Millisecond)
	}
	l, _ := g.link()
	require.InDelta(t, 200e6, l.Speed, 1)
	require.Zero(t, h.link, "nobody has asked for it to be told")
	limit.set(50e6)
	l, _ = g.link()
	require.EqualValues(t, 50e6, l.Speed)
	newGauges(h, limit, 1)
	require.Equal(t, policy.Link{Speed: 50e6, Hidden: 1}, h.link, "before the first byte, the limit is what is known")
	require.Nil(t, newGauges(policy.Raw{}, limit, 1))
	var none *gauges
	none.of(0).begin() // does nothing
}

// A link that changes is noticed within half a second on it.
func TestGaugeFollows(t *testing.T) {
	g := newGauges(&heard{}, new(limiter), 1)
	s := g.of(0)
	for _, rate := range []float64{1e9, 20e6, 500e6} {
		took := time.Duration(1 << 20 / rate * 1e9)
		for spent := time.Duration(0); spent < 500*time.Millisecond; spent += took {
			s.note(1<<20, 0, took)
		}
		l, _ := g.link()
		require.InEpsilon(t, rate, l.Speed, 0.2)
	}
}
