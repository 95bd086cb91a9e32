package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"godwit/migration/wire"
)

// leaseMargin is the part of a lease that the two clocks may disagree by: the
// source sends GO in the first 9 tenths, and calls the lease ended after 11.
const leaseMargin = 10

// commit hands the guest over. The window for GO is counted from before PREPARE
// left, and READY cannot have been sent earlier, so it closes here before it
// closes at the destination.
func (e *engine) commit() error {
	if err := e.s.enter(PhasePrepare); err != nil {
		return err
	}
	if err := e.clock.enter(partResume); err != nil {
		return err
	}
	sums := e.sums()
	prepare := wire.Prepare{Zero: sums.Zero, Data: sums.data(), StateLen: e.stateLen, StateCRC: e.stateCRC}
	asked := e.o.Clock()
	e.asked = true
	if err := e.link.send(wire.TypePrepare, 0, prepare.Append(nil)); err != nil {
		return err
	}
	ctx, end := held("did not get ready", HoldLimit).begin(e.ctx)
	defer end()
	body, err := e.link.expect(ctx, wire.TypeReady)
	if err != nil {
		return err
	}
	var ready wire.Ready
	if err := ready.Decode(body); err != nil {
		return err
	}
	if ready.Zero != sums.Zero || ready.Data != sums.data() {
		return fmt.Errorf("destination applied %d zero and %d other pages, sent were %d and %d", ready.Zero, ready.Data, sums.Zero, sums.data())
	}
	// The guest may stand still for as long as the lease when RUNNING is lost. A
	// shorter one in place of the destination's would not be kept there.
	lease := time.Duration(ready.LeaseMS) * time.Millisecond
	if lease > maxLease {
		return fmt.Errorf("%w: READY with a lease of %v, at most %v", wire.ErrFormat, lease, maxLease)
	}
	// On Go's clock: it stands while this host is suspended, so that it waits too
	// long rather than too short.
	e.forceAfter = time.Now().Add(lease + lease/leaseMargin)
	if hasEnded(e.src) {
		return guestEnded(e.src)
	}
	return e.handOver(asked, lease)
}

// handOver passes the point of no return, sends GO and waits for RUNNING.
func (e *engine) handOver(asked, lease time.Duration) error {
	// A GO that failed to leave may still have left in part: what counts is
	// whether it was tried, and the reader of the connection has the last word.
	tried, sendErr := e.link.sendAfter(func() error {
		if took := e.o.Clock() - asked; took > lease-lease/leaseMargin {
			return fmt.Errorf("destination took %v to get ready, its lease is only %v", took, lease)
		}
		return e.s.pointOfNoReturn(e.ctx)
	}, wire.TypeGo, 0, e.peer.Nonce[:])
	if !tried {
		return sendErr
	}
	if err := e.s.enter(PhaseCommitted); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(context.Background(), lease+e.o.Silence,
		fmt.Errorf("%w: no RUNNING %v after GO", ErrSilence, lease+e.o.Silence))
	defer cancel()
	defer e.hurry(cancel)()
	body, err := e.link.expect(ctx, wire.TypeRunning)
	var running wire.Running
	if err == nil {
		err = running.Decode(body)
	}
	if err == nil {
		return e.clock.enter(partEnd)
	}
	if p := new(PeerError); errors.As(err, &p) {
		return &OutcomeError{Known: true, Err: err}
	}
	return &OutcomeError{ForceAfter: e.forceAfter, Err: also(sendErr, err)}
}

// hurry ends the wait for RUNNING one silence after the machine here was stopped:
// its operator waits for the end of this process. It gives what calls that off.
func (e *engine) hurry(cancel func()) func() {
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-e.src.Ended():
		case <-stop:
			return
		}
		t := time.NewTimer(e.o.Silence)
		defer t.Stop()
		select {
		case <-t.C:
			cancel()
		case <-stop:
		}
	}()
	return func() {
		close(stop)
		<-done
	}
}

// cleanUp does what can wait until the guest runs elsewhere.
func (e *engine) cleanUp() error {
	e.rep.TotalMS = ms(time.Since(e.s.started))
	if err := e.s.enter(PhaseCleanUp); err != nil {
		return err
	}
	e.close()
	e.stopLog()
	return e.s.enter(PhaseCompleted)
}

// stopLog ends logging and slowing where nothing depends on it any more.
func (e *engine) stopLog() {
	if e.logging {
		if err := e.src.StopDirtyLog(); err != nil {
			e.o.Log.Warn("stop dirty log", "err", err)
		}
	}
	if err := e.endPace(); err != nil {
		e.o.Log.Warn("clean up", "err", err)
	}
}

// close ends all connections and waits for every goroutine.
func (e *engine) close() {
	e.dropMemory()
	close(e.closing)
	for _, st := range e.streams {
		_ = st.conn.Close() // nothing useful can be done about it
	}
	if e.link != nil {
		e.link.close()
	}
	e.wg.Wait()
	if e.pool != nil {
		e.pool.close()
	}
	if err := closeCodec(e.o.Policies.Codec); err != nil {
		e.o.Log.Warn("close page codec", "err", err)
	}
}

// sums is what the streams have sent in all. Only between rounds.
func (e *engine) sums() PageCounts {
	sum := PageCounts{Skipped: e.rep.Pages.Skipped, Free: e.free.Count()}
	for _, st := range e.streams {
		sum.Zero += st.out.pages.Zero
		sum.Raw += st.out.pages.Raw
		sum.Delta += st.out.pages.Delta
		sum.Compressed += st.out.pages.Compressed
		sum.Unchanged += st.out.pages.Unchanged
	}
	return sum
}

// totals fills in the counters of the report, after close.
func (e *engine) totals() {
	if e.rep.TotalMS == 0 {
		e.rep.TotalMS = ms(time.Since(e.s.started))
	}
	e.rep.Pages = e.sums()
	e.rep.WireBytes = max(e.wireBase, e.acked())
	if e.rep.Status == Completed {
		e.rep.WireBytes = e.wireBase
	}
}
