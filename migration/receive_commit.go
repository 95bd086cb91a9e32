package migration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"godwit/migration/wire"
)

// getState hears STATE, answers VERIFY, and ends with PREPARE.
func (r *receiver) getState() error {
	for first, last := true, false; !last; first = false {
		m, err := r.next()
		if err != nil {
			return err
		}
		if err := checkChunk(wire.TypeState, m, r.state.Len(), maxState); err != nil {
			return err
		}
		if first {
			defer r.many()()
			expect(r.target)
		}
		r.state.Write(m.body)
		last = m.last
	}
	if err := r.enter(PhaseState); err != nil {
		return err
	}
	if err := r.allPages(); err != nil {
		return err
	}
	if r.hello.Features&wire.FeatureVerify == 0 {
		return nil
	}
	return r.verify()
}

// expect tells a Target that wants to know that its guest is on its way.
func expect(t Target) {
	if t, ok := t.(interface{ Expect() }); ok {
		t.Expect()
	}
}

// allPages makes sure that no page is missing.
func (r *receiver) allPages() error {
	if r.local() {
		return nil
	}
	r.mu.Lock()
	last, round := r.passed.last, r.round
	r.mu.Unlock()
	if !last {
		return fmt.Errorf("%w: STATE after round %d, which is not the last", wire.ErrFormat, round)
	}
	close(r.popStop)
	select {
	case <-r.popDone:
		return nil
	case <-r.ctx.Done():
		return context.Cause(r.ctx)
	}
}

// verify hashes what the source sent, and what else was touched where the
// target can tell.
func (r *receiver) verify() error {
	if err := r.enter(PhaseVerify); err != nil {
		return err
	}
	body, err := r.expect(wire.TypeVerify)
	if err != nil {
		return err
	}
	which := make(Bitmap, r.mem.words)
	copy(which, r.page.all) // a local hand-over has none
	if t, ok := r.target.(interface{ Touched() ([]Extent, error) }); ok {
		es, err := t.Touched()
		if err != nil {
			return fmt.Errorf("find touched memory: %w", err)
		}
		if err := r.mem.addExtents(which, es); err != nil {
			return err
		}
	} else if r.local() {
		which.setRange(0, uint64(len(which))*64) // nobody sent a page, and nobody can tell
	}
	r.hashed = which
	h, err := r.hashPart(body)
	r.rep.Verify = &Verified{Destination: fmt.Sprintf("%x", h.Sum)}
	return err
}

// hashPart answers one VERIFY.
func (r *receiver) hashPart(body []byte) (h wire.Hash, err error) {
	var v wire.Verify
	if err := v.Decode(body); err != nil {
		return h, err
	}
	from, to := v.GPA>>pageShift, uint64(len(r.hashed))*64
	if v.Len > 0 {
		end := (v.GPA + v.Len) >> pageShift
		if end > to {
			return h, fmt.Errorf("%w: VERIFY of %#x bytes at %#x, which is beyond memory", wire.ErrFormat, v.Len, v.GPA)
		}
		to = end
	}
	h = r.mem.hashRange(r.hashed, from, to)
	return h, r.link.send(wire.TypeHash, 0, h.Append(nil))
}

// prepare waits for PREPARE. A source whose hash was another asks about parts of
// memory first, and does not come to PREPARE then.
func (r *receiver) prepare() ([]byte, error) {
	defer r.many()()
	for range maxQuestions {
		m, err := r.next()
		switch {
		case err != nil:
			return nil, err
		case m.typ == wire.TypePrepare:
			return m.body, nil
		case m.typ != wire.TypeVerify || r.hashed == nil:
			return nil, fmt.Errorf("%w: %s where %s must be", wire.ErrFormat, m.typ, wire.TypePrepare)
		}
		if _, err := r.hashPart(m.body); err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%w: more than %d questions about memory", wire.ErrFormat, maxQuestions)
}

// commit gets ready, promises it, and runs the guest if GO comes inside the
// lease.
func (r *receiver) commit() error {
	body, err := r.prepare()
	if err != nil {
		return err
	}
	began := time.Now()
	defer quietGC()()
	if err := r.enter(PhasePrepare); err != nil {
		return err
	}
	var p wire.Prepare
	if err := p.Decode(body); err != nil {
		return err
	}
	if err := checkTotals(&p, r.page.counts(), r.state.Bytes()); err != nil {
		return err
	}
	if err := r.target.LoadState(bytes.NewReader(r.state.Bytes())); err != nil {
		return fmt.Errorf("load state: %w", err)
	}
	if err := r.target.Acquire(); err != nil {
		return fmt.Errorf("take over disks: %w", err)
	}
	if err := r.enter(PhaseReady); err != nil {
		return err
	}
	// The lease is counted from before READY leaves: it ends here before the
	// source, which counts from READY's arrival, calls it ended.
	r.allHere.Store(true)
	readyAt, lease := time.Now(), r.o.Clock()+r.o.Lease
	ready := wire.Ready{LeaseMS: uint32(r.o.Lease / time.Millisecond), Zero: p.Zero, Data: p.Data}
	if err := r.link.send(wire.TypeReady, 0, ready.Append(nil)); err != nil {
		return err
	}
	if err := r.awaitGo(lease); err != nil {
		return err
	}
	return r.start(began, readyAt)
}

// checkTotals compares what the source says it sent with what has come.
func checkTotals(p *wire.Prepare, got PageCounts, state []byte) error {
	switch {
	case p.Zero != got.Zero || p.Data != got.data():
		return fmt.Errorf("%w: source sent %d zero and %d other pages, received were %d and %d", wire.ErrFormat, p.Zero, p.Data, got.Zero, got.data())
	case p.StateLen != uint64(len(state)) || p.StateCRC != wire.Checksum(state):
		return fmt.Errorf("%w: state of %d bytes, checksum %#x; received were %d bytes, checksum %#x",
			wire.ErrFormat, p.StateLen, p.StateCRC, len(state), wire.Checksum(state))
	}
	return nil
}

// awaitGo waits for GO and passes the point of no return. A GO after the end of
// the lease is refused: the source's operator may have resumed the guest. The timer
// stands while this host is suspended; the clock that end is a moment of does not.
func (r *receiver) awaitGo(end time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(r.ctx, end-r.o.Clock(), errors.New("no GO within the lease"))
	defer cancel()
	body, err := r.link.expect(ctx, wire.TypeGo)
	if err != nil {
		return err
	}
	if !bytes.Equal(body, r.nonce[:]) {
		return fmt.Errorf("%w: GO of another session", wire.ErrFormat)
	}
	r.mu.Lock()
	// A source that breaks down right after GO has handed the guest over.
	if err := context.Cause(r.ctx); err != nil && !errors.Is(err, ErrConnection) {
		r.mu.Unlock()
		return err
	}
	if late := r.o.Clock() - end; late > 0 {
		r.mu.Unlock()
		return fmt.Errorf("%w, by %v", ErrLateGo, late)
	}
	r.committed = true
	r.mu.Unlock()
	return r.enter(PhaseCommitted)
}

// start runs the guest and says so. From a Run that succeeded on, nothing takes
// the guest back: a source that cannot be told stays paused.
func (r *receiver) start(began, readyAt time.Time) error {
	got := time.Now()
	if err := r.target.Run(); err != nil {
		return fmt.Errorf("run the guest: %w", err)
	}
	now := time.Now()
	r.rep.TotalMS = ms(now.Sub(r.began))
	r.rep.DowntimePhases.ResumeMS = ms(readyAt.Sub(began) + now.Sub(got))
	running := wire.Running{UnixNano: now.UnixNano(), PrepareNS: uint64(readyAt.Sub(began)), RunNS: uint64(now.Sub(got))}
	if err := r.link.send(wire.TypeRunning, 0, running.Append(nil)); err != nil {
		r.rep.Error = "the guest runs here, but the source could not be told: " + err.Error()
		r.o.Log.Warn(r.rep.Error)
	}
	r.link.farewell()
	r.close()
	return r.enter(PhaseCompleted)
}

// failed throws the half-made machine away, then tells the source: its ERROR is
// the promise that the guest does not run here and never will, and that its
// disks are free.
func (r *receiver) failed(err error) error {
	var p *PeerError
	if errors.Is(err, ErrConnection) && r.link != nil && !errors.As(err, &p) {
		select {
		case <-r.link.ended:
			if errors.As(r.link.err, &p) {
				err = fmt.Errorf("%w (%w)", r.link.err, err)
			}
		case <-time.After(keepaliveEvery(r.o.Silence)):
		}
	}
	r.cancel(err)
	r.door.close() // no stream joins any more
	for _, c := range r.snapshot() {
		if c != nil {
			_ = c.Close() // wakes its goroutine
		}
	}
	r.wg.Wait()
	if r.target != nil {
		if abortErr := r.target.Abort(); abortErr != nil {
			err = fmt.Errorf("%w; throw the machine away: %w", err, abortErr)
		}
	}
	if r.link != nil {
		last := wire.TypeError
		if errors.Is(err, ErrCancelled) {
			last = wire.TypeCancel
		}
		if !errors.As(err, &p) && r.link.send(last, 0, wire.AppendText(nil, err.Error())) == nil {
			r.link.farewell()
		}
		r.link.close()
	}
	end := PhaseFailed
	if statusOf(err) == Cancelled && !r.isCommitted() {
		end = PhaseCancelled
	}
	return also(err, r.enter(end))
}

// close ends the streams and the control connection of a guest that runs.
func (r *receiver) close() {
	r.cancel(nil)
	r.door.close()
	for _, c := range r.snapshot() {
		_ = c.Close() // the guest runs: nothing depends on it any more
	}
	r.wg.Wait()
	r.link.close()
}

// finish completes the report.
func (r *receiver) finish(err error) {
	r.rep.Status = statusOf(err)
	if err != nil {
		r.rep.Error = err.Error()
		r.rep.TotalMS = ms(time.Since(r.began))
	}
	r.rep.WireBytes = r.received.Load()
	skipped := r.rep.Pages.Skipped
	r.rep.Pages = r.page.counts()
	r.rep.Pages.Skipped = skipped
	if r.codec != nil {
		_ = closeCodec(r.codec) // it only decoded: nothing is lost with it
	}
}
