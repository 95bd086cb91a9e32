package migration

import (
	"context"
	"fmt"
	"time"

	"godwit/migration/policy"
	"godwit/migration/sabotage"
	"godwit/migration/wire"
)

const (
	// minMeasured is the least that a round must have moved for its bandwidth to
	// be believed: smaller ones measure latency.
	minMeasured = 256 << 10
	// maxBlank is how many bytes of zero pages, which are only looked at, a round
	// may have had for each byte that it moved. Beyond, it measures the looking: that
	// goes about eight times as fast as the fastest link.
	maxBlank = 8
)

// copyMemory sends rounds while the guest runs, until the stop rule is content.
// The order that must hold: start the log, then find what was touched; then, for
// each chunk, clear its bits, then read, then send (see stream.chunk). A page
// written before its turn is sent once, as it is; one written after is in the log.
func (e *engine) copyMemory() error {
	if !e.o.Local {
		e.pending = make(Bitmap, e.mem.words)
	}
	if e.o.Local || e.o.Mode == StopAndCopy {
		_, err := settle(e.ctx, e.src) // nothing is copied yet, so nothing to log
		return err
	}
	if err := e.s.enter(PhaseCopy); err != nil {
		return err
	}
	e.logging = true // also when it fails half-way
	if err := e.src.StartDirtyLog(); err != nil {
		return fmt.Errorf("start dirty log: %w", err)
	}
	if err := e.setPace(e.s.firstPace()); err != nil {
		return err
	}
	if err := e.announce(); err != nil {
		return err
	}
	if err := e.lookEarly(); err != nil {
		return err
	}
	for waited := false; ; {
		if err := e.round(false); err != nil {
			return err
		}
		if err := e.takeDirty(); err != nil {
			return err
		}
		limit, throttle := e.s.knobs()
		r, err := e.sampled(e.roundDone(limit))
		if err != nil {
			return err
		}
		decision, err := e.decide(r)
		if err != nil {
			return err
		}
		if decision == policy.Finish {
			took, err := settle(e.ctx, e.src)
			if err != nil {
				return err
			}
			// The guest has written meanwhile, so the rule is asked again: once, for a
			// machine that always takes long must still be able to leave.
			if waited || took <= limit/10 {
				e.promise(r)
				return nil
			}
			waited = true
		}
		pace, err := e.nextPace(throttle, r)
		if err != nil {
			return err
		}
		if err := e.setPace(pace); err != nil {
			return err
		}
	}
}

// announce finds what was ever touched, leaves out what the guest does not need,
// tells the destination, so that it can prepare just that, and marks it to be sent.
func (e *engine) announce() error {
	touched, err := e.src.Touched()
	if err != nil {
		return fmt.Errorf("find touched memory: %w", err)
	}
	if err := e.mem.addExtents(e.pending, touched); err != nil {
		return err
	}
	e.rep.Pages.Skipped = e.mem.pages - e.pending.Count()
	if err := e.takeHints(); err != nil {
		return err
	}
	n := e.pending.Count()
	// The lists of the longest round, in memory that is there: growing it later would
	// hold up the first page, for tens of milliseconds where the destination is busy
	// to prepare memory on the same processors.
	e.gfns, e.shown = make([]uint64, n), make([]uint64, n)
	clear(e.gfns)
	clear(e.shown)
	return e.link.sendChunks(e.ctx, wire.TypeExtents, wire.AppendExtents(nil, e.pending.extents()))
}

// takeDirty adds what was written and not sent since to the pages to send.
func (e *engine) takeDirty() error {
	if err := e.readLog(e.pending); err != nil {
		return err
	}
	e.mem.clip(e.pending)
	return nil
}

// round sends all pending pages over all streams and waits until the
// destination has passed the barrier.
func (e *engine) round(last bool) error {
	e.noLongerFree()
	if err := e.sorted(last); err != nil {
		return err
	}
	n := e.last.Number + 1
	e.list(n, e.gfns)
	w := newRoundWork(uint32(n), last, e.gfns, len(e.streams))
	e.s.mu.Lock()
	e.s.p.Round, e.s.p.RoundPages = n, uint64(len(e.gfns))
	e.s.live = func() (uint64, uint64) { return w.dealt.Load(), e.acked() }
	e.s.roundAt, e.s.roundWire = time.Now(), e.acked()
	e.s.mu.Unlock()
	e.s.o.OnProgress(e.s.Progress())

	began := time.Now()
	if n == 1 {
		e.rep.SetupMS = ms(began.Sub(e.s.started))
	}
	for _, st := range e.streams {
		st.work <- w // never blocks: a stream has one round at a time
	}
	ctx, end := e.taking(w).begin(e.ctx)
	defer end()
	select {
	case <-w.done:
	case <-ctx.Done():
		return cancelCause(ctx)
	}
	if !sabotage.On(sabotage.Barrier) || last {
		if err := e.passed(ctx, uint32(n), w.sent.Load()); err != nil {
			return err
		}
	}
	e.measure(w, time.Since(began))
	return nil
}

// passed waits for the destination's word that every stream has passed round n:
// all that was written is then received.
func (e *engine) passed(ctx context.Context, n uint32, pages uint64) error {
	for {
		body, err := e.link.expect(ctx, wire.TypePassed)
		if err != nil {
			return err
		}
		var r wire.Round
		if err := r.Decode(body); err != nil {
			return err
		}
		if sabotage.On(sabotage.Barrier) && r.N < n {
			continue
		}
		if r.N != n || r.Pages != pages {
			return fmt.Errorf("%w: destination passed round %d with %d pages, sent were %d in round %d", wire.ErrFormat, r.N, r.Pages, pages, n)
		}
		return nil
	}
}

// measure takes stock of a round.
func (e *engine) measure(w *roundWork, took time.Duration) {
	written := e.written()
	bytes := written - e.wireBase
	e.wireBase = written
	var zeros uint64
	for _, st := range e.streams {
		zeros += st.out.pages.Zero
	}
	blank := (zeros - e.zeroBase) * pageSize
	e.zeroBase = zeros
	rate := float64(bytes) / max(took.Seconds(), 1e-6)
	switch {
	case bytes >= minMeasured && blank/maxBlank <= bytes:
		e.bandwidth, e.measured = rate, true
	case !e.measured:
		// The link is at least as fast as the fastest of such rounds: none of them may
		// keep a guest here that writes too little for a better one.
		e.bandwidth = max(e.bandwidth, rate)
	}
	e.last = policy.Round{Number: int(w.n), Took: took, TotalPages: e.mem.pages, SentPages: uint64(len(w.gfns)), SentBytes: bytes, Duty: e.pace.Share(), VCPUs: e.src.VCPUs()}
	e.rep.Rounds = append(e.rep.Rounds, RoundReport{N: int(w.n), MS: ms(took), SentPages: w.sent.Load(), WireBytes: bytes, Bandwidth: uint64(rate)})
}

// roundDone completes what the policies may know, with what is dirty now.
func (e *engine) roundDone(limit time.Duration) policy.Round {
	bandwidth := e.bandwidth
	if l := e.s.limit.get(); l > 0 {
		bandwidth = min(bandwidth, float64(l))
	}
	r := &e.last
	r.Elapsed = time.Since(e.s.started)
	r.DirtyPages = e.pending.Count()
	r.Bandwidth, r.DowntimeLimit, r.PageBytes = bandwidth, limit, e.pageBytes()
	r.EstDowntime = r.Sending(float64(r.DirtyPages))
	rr := &e.rep.Rounds[len(e.rep.Rounds)-1]
	rr.DirtyPages, rr.EstDowntimeMS = r.DirtyPages, ms(r.EstDowntime)
	e.s.mu.Lock()
	e.s.p.Bandwidth, e.s.p.EstDowntime = bandwidth, r.EstDowntime
	e.s.dirtying = float64(r.DirtyPages) / max(r.Took.Seconds(), 1e-6)
	e.s.mu.Unlock()
	return *r
}

// fullPage is what a page takes on the wire at most, bytes.
const fullPage = pageSize + 16

// pageBytes is what a page dirtied now will take on the wire. With a codec it
// is what those of the last round took, if that was a round of pages that had
// been sent before, and enough of them to tell; else every page counts in full.
func (e *engine) pageBytes() float64 {
	if r := &e.last; e.codec != nil && r.Number > 1 && r.SentPages >= chunkPages {
		return min(float64(r.SentBytes)/float64(r.SentPages), fullPage)
	}
	return fullPage
}

// lastPages pauses the guest and sends what is left.
func (e *engine) lastPages() error {
	if err := e.s.enter(PhasePause); err != nil {
		return err
	}
	if e.o.Local {
		e.rep.SetupMS = ms(time.Since(e.s.started))
	}
	e.gcOn = quietGC()
	if err := e.clock.enter(partPause); err != nil {
		return err
	}
	if err := e.pause(); err != nil {
		return err
	}
	if hasEnded(e.src) {
		return guestEnded(e.src)
	}
	if e.o.Local {
		return e.clock.enter(partPages) // they are there already
	}
	if err := e.s.enter(PhaseLastPages); err != nil {
		return err
	}
	if err := e.clock.enter(partPages); err != nil {
		return err
	}
	// Only now, with vCPUs stopped and devices drained, is the dirty set final.
	if e.o.Mode == StopAndCopy {
		if err := e.announce(); err != nil {
			return err
		}
	} else if err := e.takeDirty(); err != nil {
		return err
	}
	return e.round(true)
}
