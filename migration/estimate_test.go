package migration

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestEstimate(t *testing.T) {
	at := func(round int, sent, of uint64) Progress {
		return Progress{Phase: PhaseCopy, Round: round, SentPages: sent, RoundPages: of, WireBytes: 5000, Bandwidth: 7}
	}
	for _, c := range []struct {
		name      string
		p         Progress
		ago       time.Duration
		dirtying  float64
		left      time.Duration
		bandwidth float64
	}{
		{"too early to tell", at(1, 10, 100), 99 * time.Millisecond, 0, 0, 7},
		{"nothing sent", at(1, 0, 100), time.Second, 0, 0, 7},
		{"the first round alone", at(1, 25, 100), time.Second, 0, 3 * time.Second, 4000},
		{"a clean guest", at(2, 50, 100), time.Second, 0, time.Second, 7},
		// 50 pages a second are sent, 25 dirtied: 2 s, then 1, 1/2, ..
		{"half as fast", at(2, 50, 100), time.Second, 25, time.Second + 2*time.Second, 7},
		{"as fast", at(3, 50, 100), time.Second, 50, NeverLeft, 7},
		{"faster", at(3, 50, 100), time.Second, 5000, NeverLeft, 7},
		{"nearly as fast", at(3, 50, 1<<40), time.Second, 49.999999, longestLeft, 7},
		{"longer than thought", at(2, 100, 100), time.Second, 0, 0, 7},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := c.p
			p.estimate(c.ago, 1000, c.dirtying)
			require.InDelta(t, c.left.Seconds(), p.EstLeft.Seconds(), 1e-6)
			require.Equal(t, c.bandwidth, p.Bandwidth)
		})
	}
}
