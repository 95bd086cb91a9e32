package rng

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// TestBucket: over any times and takes, no more than bucket, burst and what
// flowed in since is given; and after its wait the bytes are there.
func TestBucket(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := Limit{
			Size:         rapid.Uint64Range(1, MaxSize).Draw(t, "size"),
			OneTimeBurst: rapid.Uint64Range(0, 1000).Draw(t, "burst"),
			Refill:       time.Duration(rapid.Int64Range(int64(time.Millisecond), int64(MaxRefill)).Draw(t, "refill")),
		}
		require.NoError(t, l.check())
		now := time.Unix(1000, 0)
		b := newBucket(l, now)
		began := now
		var taken uint64
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			now = now.Add(time.Duration(rapid.Int64Range(0, int64(l.Refill)*2).Draw(t, "passed")))
			have := b.available(now)
			require.LessOrEqual(t, have, l.Size+l.OneTimeBurst)
			n := rapid.Uint64Range(0, have).Draw(t, "take")
			b.take(n)
			taken += n
			want := rapid.Uint64Range(1, 2*l.Size).Draw(t, "want")
			if d := b.wait(want); d > 0 {
				require.LessOrEqual(t, d, l.Refill)
				later := b
				require.GreaterOrEqual(t, later.available(now.Add(d)), min(want, l.Size))
			}
		}
		flowed := float64(now.Sub(began)) / float64(l.Refill) * float64(l.Size)
		require.LessOrEqual(t, float64(taken), float64(l.Size+l.OneTimeBurst)+flowed*1.0000001+1)
	})
}
