package migration

import (
	"math"
	"sync/atomic"
	"time"

	"godwit/migration/policy"
)

const (
	// gaugeTime is how far back a gauge looks, half of it at least. It is time on
	// the link, not on the clock.
	gaugeTime = 50 * time.Millisecond
	// gaugeBytes is the least that must leave at once to be measured: what is
	// shorter measures system calls. Under a limit everything counts.
	gaugeBytes = 64 << 10
)

// gauges measure how fast a session's link takes bytes, for a codec that wants
// to know. Each stream has its own; nobody waits for another.
type gauges struct {
	to      policy.LinkObserver
	limit   *limiter
	streams []gauge
}

// newGauges gives nil, which measures nothing, when codec does not want to know.
func newGauges(codec policy.Codec, limit *limiter, streams int) *gauges {
	to, ok := codec.(policy.LinkObserver)
	if !ok {
		return nil
	}
	g := &gauges{to: to, limit: limit, streams: make([]gauge, streams)}
	g.tell()
	return g
}

// of is the gauge of stream i.
func (g *gauges) of(i int) *gauge {
	if g == nil {
		return nil
	}
	g.streams[i].all = g
	return &g.streams[i]
}

// gauge measures one stream. What counts is the time in writing and in waiting
// for the limiter. Where the limiter made the stream wait, encoding counts too: it
// used up what the limiter makes up for, and delayed nothing. Elsewhere nobody
// can tell whether bytes in the socket's buffers kept the link busy meanwhile:
// they may just as well be on a long way, or wait for a destination that this
// encoder takes the processor from. So the link is then taken to be idle while
// the stream encodes, and faster than it may be.
//
// Its methods are called by the stream's goroutine, and do nothing on nil.
type gauge struct {
	all *gauges

	began, done time.Time // of encoding the chunk
	before      uint64    // bytes written before it
	waited      bool      // the limiter made us wait

	bytes, seconds float64       // of late
	share          float64       // of encoding that was hidden, of late
	speed, hidden  atomic.Uint64 // float64: bytes per second, 0 when not known; share
}

// begin starts a chunk.
func (g *gauge) begin() {
	if g != nil {
		g.began, g.waited = time.Now(), false
	}
}

// encoded says that the chunk is ready to be written.
func (g *gauge) encoded(written uint64) {
	if g != nil {
		g.done, g.before = time.Now(), written
	}
}

// waits says that the limiter makes the stream wait.
func (g *gauge) waits() {
	if g != nil {
		g.waited = true
	}
}

// sent ends the chunk.
func (g *gauge) sent(written uint64) {
	if g == nil {
		return
	}
	g.note(written-g.before, g.done.Sub(g.began), time.Since(g.done))
	g.all.tell()
}

// note takes in a chunk.
func (g *gauge) note(bytes uint64, encoding, writing time.Duration) {
	took, h := writing, 0.0
	if g.waited {
		// The limiter makes up for no more: what took longer was not hidden.
		took, h = writing+min(encoding, creditTime), 1
	} else if bytes < gaugeBytes {
		return
	}
	g.bytes, g.seconds = g.bytes+float64(bytes), g.seconds+max(took.Seconds(), 1e-9)
	for g.seconds > gaugeTime.Seconds() {
		g.bytes, g.seconds = g.bytes/2, g.seconds/2
	}
	g.share += (h - g.share) / 8
	g.speed.Store(math.Float64bits(g.bytes / g.seconds))
	g.hidden.Store(math.Float64bits(g.share))
}

// tell tells the codec.
func (g *gauges) tell() {
	if l, ok := g.link(); ok {
		g.to.ObserveLink(l)
	}
}

// link is the sum of the streams, or the user's limit where that is less or
// nothing was measured yet. ok is false when nothing is known.
func (g *gauges) link() (l policy.Link, ok bool) {
	n := 0.0
	for i := range g.streams {
		if v := math.Float64frombits(g.streams[i].speed.Load()); v > 0 {
			l.Speed += v
			l.Hidden += math.Float64frombits(g.streams[i].hidden.Load())
			n++
		}
	}
	limit := float64(g.limit.get())
	switch {
	case n > 0:
		l.Hidden /= n
		if limit > 0 {
			l.Speed = min(l.Speed, limit)
		}
	case limit > 0:
		l = policy.Link{Speed: limit, Hidden: 1}
	default:
		return l, false
	}
	return l, true
}
