package migration

import (
	"sync"
	"time"
)

const (
	// pieceTime is how much of the limit goes out in one write: short, so that the
	// stream is smooth.
	pieceTime = 5 * time.Millisecond
	minPiece  = 4 << 10
	maxPiece  = 256 << 10
	// creditTime is how much unused time may be made up for: it covers wake-ups that
	// come late on a busy machine, and no more.
	creditTime = 20 * time.Millisecond
	// napMax bounds a wait, so that a new limit is noticed soon.
	napMax = 50 * time.Millisecond
)

// limiter is a token bucket shared by the streams of a session. Bytes are taken
// when the balance is not negative, and may take it below zero: the next
// taker waits until time has paid the debt.
type limiter struct {
	mu      sync.Mutex
	rate    int64 // bytes per second, 0 for no limit
	balance float64
	at      time.Time
}

func (l *limiter) set(rate int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.rate, l.balance, l.at = rate, 0, time.Now()
}

func (l *limiter) get() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rate
}

// piece is how much to write at once under the present limit; 0 means no limit.
func (l *limiter) piece() int {
	rate := l.get()
	if rate == 0 {
		return 0
	}
	return min(max(int(float64(rate)*pieceTime.Seconds()), minPiece), maxPiece)
}

// take asks to send n bytes at time now. It returns how long to wait before
// asking again; 0 means go ahead, and the bytes are counted.
func (l *limiter) take(n int, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rate == 0 {
		return 0
	}
	rate := float64(l.rate)
	// Unused time is worth little: no burst after a pause.
	l.balance = min(l.balance+now.Sub(l.at).Seconds()*rate, rate*creditTime.Seconds())
	l.at = now
	if l.balance >= 0 {
		l.balance -= float64(n)
		return 0
	}
	return min(time.Duration(-l.balance/rate*1e9)+1, napMax)
}
