package serial

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"
)

const (
	ringSize  = 64 << 10
	chunkSize = 4 << 10

	// linger is how long the first byte after silence waits for company. At one
	// exit per byte, a system call per byte would cost as much as the guest.
	linger = time.Millisecond
	// holdLimit is how long one stall can delay a guest that polls or writes
	// blindly.
	holdLimit = 10 * time.Millisecond
	// patience is how long the writer may take nothing before a guest that
	// waits for its interrupt is let go on, with its output dropped.
	patience = time.Second
	// closeLimit bounds each of the two waits in close.
	closeLimit = time.Second
)

// output carries bytes from vCPUs to an io.Writer without making them wait for
// it for long. doc.go has the policy. It owns one goroutine, from newOutput to
// close.
type output struct {
	w io.Writer
	// onRoom is called, without a lock held, when ready may have turned true.
	onRoom func()

	some chan struct{} // the ring is not empty any more
	soon chan struct{} // and there is no reason to linger
	room chan struct{} // the ring is not full any more
	done chan struct{} // the goroutine has ended

	mu      sync.Mutex
	ring    ring
	drained chan struct{} // closed when the ring runs empty; nil if nobody waits
	took    chan struct{} // closed when the writer has taken something; nil if nobody waits
	closing bool

	// A stall begins when less than a FIFO's worth of room is left and ends
	// when the ring is half empty.
	stalled  bool
	since    time.Time // when the stall began
	moved    time.Time // when the writer last took something, or since
	dropping bool      // the stall has cost a byte: all others until its end go too
	givenUp  bool      // the writer has taken nothing for patience
	watchdog *time.Timer

	missing uint64 // bytes dropped and not yet marked in the output
	written uint64
	lost    uint64
	err     error // the last one of w
}

func newOutput(w io.Writer, onRoom func()) *output {
	o := &output{
		w:      w,
		onRoom: onRoom,
		ring:   newRing(ringSize),
		some:   make(chan struct{}, 1),
		soon:   make(chan struct{}, 1),
		room:   make(chan struct{}, 1),
		done:   make(chan struct{}),
	}
	go o.run()
	return o
}

// signal leaves a token in c, which has room for one.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// put queues b, or drops it after at most holdLimit. Callers take turns.
func (o *output) put(b byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ring.free() == 0 && !o.dropping && !o.closing {
		o.waitForRoom()
	}
	if o.dropping || o.closing {
		o.lost++
		o.missing++
		return
	}
	o.ring.put(b)
	if o.ring.len() == 1 {
		signal(o.some)
	}
	if b == '\n' || o.ring.len() == chunkSize {
		signal(o.soon)
	}
	if !o.stalled && o.ring.free() < fifoSize {
		o.stalled, o.since = true, time.Now()
		o.moved = o.since
		o.watchdog = time.AfterFunc(patience, o.giveUp)
	}
}

// waitForRoom returns when the ring has room, or starts dropping because the
// stall has used up its holdLimit. It unlocks while it waits.
func (o *output) waitForRoom() {
	limit := time.NewTimer(holdLimit - time.Since(o.since))
	defer limit.Stop()
	for o.ring.free() == 0 && !o.dropping && !o.closing {
		o.mu.Unlock()
		select {
		case <-o.room:
			o.mu.Lock()
		case <-limit.C:
			o.mu.Lock()
			// Room that came together with the limit is room.
			o.dropping = o.ring.free() == 0
		}
	}
}

// ready says whether the guest may be told that the transmitter is empty.
func (o *output) ready(waitsForInterrupt bool) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case !o.stalled, o.givenUp, o.closing:
		return true
	case waitsForInterrupt:
		return false
	default:
		return time.Since(o.since) >= holdLimit
	}
}

// giveUp runs when the writer has taken nothing for patience.
func (o *output) giveUp() {
	o.mu.Lock()
	// A timer that was stopped too late must not end the next stall.
	o.givenUp = o.stalled && !o.closing && time.Since(o.moved) >= patience
	givenUp := o.givenUp
	o.mu.Unlock()
	if givenUp {
		o.onRoom()
	}
}

// run drains the ring until close.
func (o *output) run() {
	defer close(o.done)
	company := time.NewTimer(linger)
	defer company.Stop()
	for {
		<-o.some
		company.Reset(linger)
		select {
		case <-o.soon:
		case <-company.C:
		}
		for o.writeChunk() {
		}
		o.mu.Lock()
		end := o.closing && o.ring.len() == 0
		o.mu.Unlock()
		if end {
			return
		}
	}
}

// writeChunk writes the oldest bytes and then takes them out of the ring. It
// reports false when there are none.
func (o *output) writeChunk() bool {
	o.mu.Lock()
	p := o.ring.span(chunkSize)
	o.mu.Unlock()
	if len(p) == 0 {
		return false
	}
	// Without the lock: put only writes to the free part of the ring.
	n, err := o.w.Write(p)
	n = max(0, min(n, len(p)))
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}

	o.mu.Lock()
	o.written += uint64(n)
	gone := len(p)
	if err != nil {
		// A writer that failed gets a new chance with the next bytes, not with
		// these: that could go on for ever.
		o.err = err
		if o.closing {
			gone = o.ring.len()
		}
		o.lost += uint64(gone - n)
	}
	o.ring.discard(gone)
	signal(o.room)
	resumed := o.progress()
	if o.ring.len() == 0 {
		tell(&o.drained)
	}
	tell(&o.took)
	o.mu.Unlock()
	if resumed {
		o.onRoom()
	}
	return true
}

// progress looks after a stall when the ring has shrunk, and reports whether
// it is over.
func (o *output) progress() bool {
	if !o.stalled {
		return false
	}
	if o.ring.len() > ringSize/2 {
		if !o.givenUp {
			o.moved = time.Now()
			o.watchdog.Reset(patience)
		}
		return false
	}
	o.watchdog.Stop()
	o.stalled, o.dropping, o.givenUp = false, false, false
	if o.missing > 0 {
		o.ring.write(fmt.Appendf(nil, "\r\n[godwit: %d bytes of serial output lost]\r\n", o.missing))
		o.missing = 0
	}
	return true
}

// pending returns how many bytes are not written yet.
func (o *output) pending() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.ring.len()
}

// tell closes a channel that somebody waits on.
func tell(c *chan struct{}) {
	if *c != nil {
		close(*c)
		*c = nil
	}
}

// drain returns when everything put so far is written, or failed to be.
func (o *output) drain(ctx context.Context) error { return o.await(ctx, &o.drained) }

// flow returns when the writer has taken something, or has nothing to take.
func (o *output) flow(ctx context.Context) error { return o.await(ctx, &o.took) }

// await waits for one of o's channels, if there is anything to write.
func (o *output) await(ctx context.Context, c *chan struct{}) error {
	o.mu.Lock()
	if o.ring.len() == 0 {
		o.mu.Unlock()
		return nil
	}
	if *c == nil {
		*c = make(chan struct{})
	}
	news := *c
	o.mu.Unlock()
	signal(o.soon)
	select {
	case <-news:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain serial output: %d bytes left that the other end does not take: %w", o.pending(), context.Cause(ctx))
	}
}

// close ends the goroutine after it has written what is queued. A writer that
// blocks is given closeLimit, then a deadline in the past if it has deadlines.
func (o *output) close() error {
	o.mu.Lock()
	o.closing = true
	if o.watchdog != nil {
		o.watchdog.Stop()
	}
	o.mu.Unlock()
	signal(o.some)
	signal(o.soon)
	signal(o.room)
	if o.ended(closeLimit) {
		return nil
	}
	if d, ok := o.w.(interface{ SetWriteDeadline(time.Time) error }); ok && d.SetWriteDeadline(time.Now()) == nil {
		if o.ended(closeLimit) {
			// The writer is its owner's, who may go on using it.
			_ = d.SetWriteDeadline(time.Time{})
			return fmt.Errorf("close serial output: %d bytes dropped that the other end did not take in %v", o.stats().Lost, closeLimit)
		}
	}
	return fmt.Errorf("close serial output: a write blocks for ever with %d bytes left; close its other end", o.pending())
}

func (o *output) ended(limit time.Duration) bool {
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case <-o.done:
		return true
	case <-t.C:
		return false
	}
}

func (o *output) stats() Stats {
	o.mu.Lock()
	defer o.mu.Unlock()
	return Stats{Written: o.written, Lost: o.lost, WriteErr: o.err}
}
