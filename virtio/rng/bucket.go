package rng

import (
	"fmt"
	"math/bits"
	"time"
)

// Limit is a token bucket in Firecracker's words: Size bytes at most, filled
// within Refill, and OneTimeBurst bytes on top that are never filled again. The
// zero Limit is none.
type Limit struct {
	Size         uint64
	OneTimeBurst uint64
	Refill       time.Duration
}

const (
	// MaxSize bounds Limit.Size and Limit.OneTimeBurst, bytes.
	MaxSize = 1 << 40
	// MaxRefill bounds Limit.Refill.
	MaxRefill = 24 * time.Hour
)

// None says that nothing is limited.
func (l Limit) None() bool { return l.Size == 0 }

func (l Limit) check() error {
	switch {
	case l == Limit{}:
		return nil
	case l.Size < 1 || l.Size > MaxSize:
		return fmt.Errorf("a bucket of %d bytes; give 1 to %d", l.Size, uint64(MaxSize))
	case l.OneTimeBurst > MaxSize:
		return fmt.Errorf("a burst of %d bytes; give at most %d", l.OneTimeBurst, uint64(MaxSize))
	case l.Refill < time.Millisecond || l.Refill > MaxRefill:
		return fmt.Errorf("a refill time of %v; give 1 ms to %v", l.Refill, MaxRefill)
	}
	return nil
}

// bucket holds a Limit's budget. Its level is counted in the time that it took
// to fill that far, which has no rounding to lose bytes in.
type bucket struct {
	limit Limit
	level time.Duration // 0 to limit.Refill
	burst uint64        // bytes left of OneTimeBurst
	at    time.Time     // when level was right
}

func newBucket(l Limit, now time.Time) bucket {
	return bucket{limit: l, level: l.Refill, burst: l.OneTimeBurst, at: now}
}

// available is the number of bytes that may be taken at now.
func (b *bucket) available(now time.Time) uint64 {
	if passed := now.Sub(b.at); passed > 0 {
		b.level = min(b.level+min(passed, b.limit.Refill), b.limit.Refill)
		b.at = now
	}
	return b.burst + scale(uint64(b.level), b.limit.Size, uint64(b.limit.Refill))
}

// take spends n bytes, which must be available.
func (b *bucket) take(n uint64) {
	burst := min(n, b.burst)
	b.burst -= burst
	b.level = max(b.level-b.cost(n-burst), 0)
}

// wait is how long it takes until n bytes are available, or until the bucket is
// full.
func (b *bucket) wait(n uint64) time.Duration {
	return max(b.cost(min(n, b.limit.Size))-b.level, 0)
}

// cost is the time that n bytes take to fill, rounded up: at most Refill.
func (b *bucket) cost(n uint64) time.Duration {
	t := scale(n, uint64(b.limit.Refill), b.limit.Size)
	if scale(t, b.limit.Size, uint64(b.limit.Refill)) < n {
		t++
	}
	return time.Duration(t)
}

// scale is x*num/den, for results that fit: x is at most den.
func scale(x, num, den uint64) uint64 {
	hi, lo := bits.Mul64(x, num)
	q, _ := bits.Div64(hi, lo, den)
	return q
}
