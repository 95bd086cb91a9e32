package migration

import (
	"errors"
	"fmt"
	"time"

	"godwit/migration/wire"
)

// reclaimEvery is the pace at which disks are asked back that the destination
// may still hold.
const reclaimEvery = 50 * time.Millisecond

// failed brings the source back after an error before the point of no return,
// and leaves it paused after one.
func (e *engine) failed(err error) error {
	if e.s.isCommitted() {
		e.close()
		e.stopLog()
		return also(err, e.s.enter(PhaseFailed))
	}
	stepErr := e.s.enter(PhaseUndo)
	var undoErr error
	if e.asked {
		// The destination may hold the disks by now: it must let go first.
		err = e.peerReason(err)
		e.tell(err)
		undoErr = e.undo()
	} else {
		undoErr = e.undo()
		err = e.peerReason(err)
		e.tell(err)
	}
	e.close()
	end := PhaseFailed
	if statusOf(err) == Cancelled {
		end = PhaseCancelled
	}
	return also(err, undoErr, stepErr, e.s.enter(end))
}

// peerReason prefers what the peer said about its giving up to the broken
// connections that followed from it.
func (e *engine) peerReason(err error) error {
	if !errors.Is(err, ErrConnection) || e.link == nil {
		return err
	}
	t := time.NewTimer(e.o.Silence)
	defer t.Stop()
	select {
	case <-e.link.ended:
		if p := new(PeerError); errors.As(e.link.err, &p) && !errors.As(err, &p) {
			return fmt.Errorf("%w (%w)", e.link.err, err)
		}
	case <-t.C:
	}
	return err
}

// tell sends the peer the reason, if it is there to hear it, and waits until it
// has thrown its copy away, which it shows by closing.
func (e *engine) tell(err error) {
	if e.link == nil {
		return
	}
	t := wire.TypeError
	if errors.Is(err, ErrCancelled) {
		t = wire.TypeCancel
	}
	select {
	case <-e.link.ended: // gone, or gave up itself
	default:
		if e.link.send(t, 0, wire.AppendText(nil, err.Error())) == nil {
			e.link.farewell()
		}
	}
}

// undo takes back everything that was done to the source, in the order of
// Source's contract, each step whether or not the one before it worked; only
// disks that cannot be had again keep the guest from running.
func (e *engine) undo() error {
	e.clearing.Lock() // waits for streams that are clearing a chunk
	e.undoing = true
	e.clearing.Unlock()
	var errs []error
	if e.logging {
		if err := e.src.StopDirtyLog(); err != nil {
			errs = append(errs, fmt.Errorf("stop dirty log: %w", err))
		}
	}
	if err := e.endPace(); err != nil {
		errs = append(errs, err)
	}
	if e.released {
		if err := e.reclaim(); err != nil {
			return also(append(errs, fmt.Errorf("%w: its disks cannot be had again: %w", ErrStaysPaused, err))...)
		}
	}
	if e.paused {
		if err := e.src.Resume(); err != nil && !hasEnded(e.src) {
			errs = append(errs, fmt.Errorf("%w: resume: %w", ErrStaysPaused, err))
		}
	}
	return also(errs...)
}

// reclaim asks for the disks. A destination that was asked to get ready may
// hold them until it has noticed the failure, at most one silence later.
func (e *engine) reclaim() error {
	deadline := time.Now()
	if e.asked {
		deadline = deadline.Add(2 * e.o.Silence)
	}
	for {
		err := e.src.Reclaim()
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(min(reclaimEvery, e.o.Silence/4))
	}
}
