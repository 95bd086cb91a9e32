package lab

import (
	"math"
	"time"
)

// The outer kernel needs the rate of its time-stamp counter. QEMU's TCG gives it
// the host's counter, and drives its timers from the host's CLOCK_MONOTONIC, so
// the host can measure the one against the other better than the kernel can: on a
// busy host the kernel was seen 590 ppm off. See clock.go for what that broke.
const (
	rateSpan  = 50 * time.Millisecond // the two readings are at least so far apart
	rateError = 50e-6                 // a reading that may be off by more of the span is no use
	pairTries = 64
	pairGood  = 2 * time.Microsecond
)

// tscPair is a reading of both clocks at one moment, known to within slack.
type tscPair struct {
	ticks uint64
	at    time.Time
	slack time.Duration
}

// readPair takes the closest of several tries: the scheduler can come between
// the two readings.
func readPair() tscPair {
	best := tscPair{slack: math.MaxInt64}
	for range pairTries {
		before := time.Now()
		ticks := rdtsc()
		after := time.Now()
		if slack := after.Sub(before); slack < best.slack {
			best = tscPair{ticks: ticks, at: before.Add(slack / 2), slack: slack}
		}
		if best.slack <= pairGood {
			break
		}
	}
	return best
}

// tscRate gives the counter's rate in kHz as seen since first, or 0 if it could
// not be measured well; the outer kernel then measures for itself.
func tscRate(first tscPair) int {
	time.Sleep(rateSpan - time.Since(first.at)) // most often it has passed already
	last := readPair()
	span := last.at.Sub(first.at)
	if last.ticks <= first.ticks || float64(first.slack+last.slack) > rateError*float64(span) {
		return 0
	}
	return int(math.Round(float64(last.ticks-first.ticks) / span.Seconds() / 1000))
}
