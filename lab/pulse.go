package lab

import (
	"sync/atomic"
	"time"
)

const (
	pulseEvery = time.Second
	// maxSilence is far more than init goes without the CPU among the busiest of guests.
	maxSilence = 2 * time.Minute
)

// beat sends signs of life while the command runs.
func beat(out *frameWriter) {
	for range time.Tick(pulseEvery) {
		if out.send(kindAlive, nil) != nil {
			return
		}
	}
}

// pulse tells for how long the host has waited in vain. It counts its own looks,
// one every pulseEvery, rather than read a clock: while both ends are stopped, as
// by Ctrl-z, nothing is missed.
type pulse struct {
	waiting atomic.Bool // not while the caller's writer has a frame
	looks   atomic.Int64
}

func (p *pulse) wait() { p.waiting.Store(true) }

func (p *pulse) beat() {
	p.waiting.Store(false)
	p.looks.Store(0)
}

// silence is one look more.
func (p *pulse) silence() time.Duration {
	if !p.waiting.Load() {
		return 0
	}
	return time.Duration(p.looks.Add(1)) * pulseEvery
}
