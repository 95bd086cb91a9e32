package migration

import (
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// downtimePart is a part of the downtime, in its only legal order.
type downtimePart int

const (
	partNone downtimePart = iota
	partPause
	partPages
	partState
	partResume
	partEnd
)

// downtimeClock measures the parts of the downtime. Its zero value is ready.
type downtimeClock struct {
	part  downtimePart
	since time.Time
	took  [partEnd]time.Duration
}

// enter ends the current part and begins the next one. Parts in any other order
// are a bug, reported as an error so that it cannot spoil a figure silently.
func (c *downtimeClock) enter(p downtimePart) error {
	if p != c.part+1 || p > partEnd {
		return fmt.Errorf("migration: downtime part %d entered from part %d", p, c.part)
	}
	now := time.Now()
	if c.part != partNone {
		c.took[c.part] += now.Sub(c.since)
	}
	c.part, c.since = p, now
	return nil
}

// exclude takes d, spent within the current part, out of it.
func (c *downtimeClock) exclude(d time.Duration) { c.since = c.since.Add(d) }

func (c *downtimeClock) phases() DowntimePhases {
	return DowntimePhases{ms(c.took[partPause]), ms(c.took[partPages]), ms(c.took[partState]), ms(c.took[partResume])}
}

func (c *downtimeClock) total() time.Duration {
	var d time.Duration
	for _, t := range c.took {
		d += t
	}
	return d
}

// The collector's pace belongs to the whole process, and several migrations can
// be in their downtime at once: the first switches it off, the last back on.
var quiet struct {
	sync.Mutex
	users int
	saved int
}

// quietGC keeps the garbage collector from starting until the returned function
// is called, which may be done more than once. A memory limit still holds.
func quietGC() (restore func()) {
	quiet.Lock()
	defer quiet.Unlock()
	if quiet.users++; quiet.users == 1 {
		quiet.saved = debug.SetGCPercent(-1)
	}
	return sync.OnceFunc(func() {
		quiet.Lock()
		defer quiet.Unlock()
		if quiet.users--; quiet.users == 0 {
			debug.SetGCPercent(quiet.saved)
		}
	})
}
