package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"godwit/migration/sabotage"
)

// ErrHint says that the guest cannot be asked for its free pages.
var ErrHint = errors.New("free page hinting is not to be had")

// hintLimit is how long a guest may take to tell which pages are free, in
// silences (SendOptions.Silence), and one silence since it last said something. What
// it has told by then counts, and all else is sent.
const hintLimit = 6

// clearAtOnce is how many pages one call of Clear gets before round 1, 64 MiB of
// them: the guest stands still meanwhile.
const clearAtOnce = 16384

var errHintSlow = errors.New("the guest did not tell all of its free pages in time")

// HintSource is a Source whose guest may be able to tell which of its pages it
// does not need (SendOptions.FreePageHint).
type HintSource interface {
	Source
	// CanHint says why this guest cannot be asked, and what to do about that. Any
	// goroutine may call it, at any time.
	CanHint() error
	// FreePages asks the guest, and hands what it says to found: runs of whole pages
	// in no order. It returns when the guest has told all, or when ctx ends, with
	// its cause. Then found is not called any more, and the guest may use those
	// pages as it likes; it may do so before, too. found keeps nothing of what it is given. It comes from one
	// goroutine at a time, all of which have let go of it when FreePages returns,
	// and does not block.
	//
	// Every page that found is given was free at some moment after FreePages was
	// called, so its contents of before that moment do not matter. The engine calls it
	// with the log on, and no other method meanwhile but Ended and EndReason.
	FreePages(ctx context.Context, found func([]Extent)) error
}

// HintReport is what came of asking the guest for its free pages.
type HintReport struct {
	MS    float64 `json:"ms"`    // that asking took
	Pages uint64  `json:"pages"` // free ones among those ever touched; PageCounts.Free says how many stayed so
	// Complete is false where the guest was cut short.
	Complete bool `json:"complete"`
}

// checkHint refuses what hints have no part in.
func checkHint(o *SendOptions) error {
	switch {
	case !o.FreePageHint:
		return nil
	case o.Local:
		return fmt.Errorf("%w: %w in a local hand-over: no page is copied; leave one of them out", ErrOptions, ErrHint)
	case o.Mode != PreCopy:
		return fmt.Errorf("%w: %w in mode %q: a guest that stands still cannot be asked; use mode %q", ErrOptions, ErrHint, o.Mode, PreCopy)
	}
	return nil
}

// canHint looks before anything is begun.
func (e *engine) canHint() error {
	if !e.o.FreePageHint {
		return nil
	}
	if err := e.src.(HintSource).CanHint(); err != nil { // NewSession has looked
		return fmt.Errorf("%w: %w", ErrHint, err)
	}
	return nil
}

// takeHints asks the guest for its free pages and takes them from what is to be
// sent, before round 1 and never again. Once the guest has answered, the session is
// over: it has its pages back long before the pause.
//
// That no page is lost by it rests on this order:
//
//  1. The log is on, and pending is what was touched.
//  2. All of pending is cleared in the log.
//  3. The guest is asked. A page that it names was free at some moment F after that.
//  4. What it named is taken from pending. The log is not cleared.
//
// What the page held before F does not matter. A write after F is a write after
// its bit was cleared, so the bit is set; whether the hint reached us before or
// after that write, or was under way, makes no difference. And nothing clears
// the bit but a stream, just before it sends the page (stream.chunk): so the next
// takeDirty finds the page and it is sent like any other. A page that it never
// finds has not been written since F.
//
// Step 2 must come first. It makes the bits mean "written since": a log may begin
// with every bit set (KVM_DIRTY_LOG_INITIALLY_SET), and then the free pages would
// be in round 2. Were it done after the guest was asked, it would forget the write
// of a page that was named and then used, and that page would never be sent.
// Pages that are cleared here are in pending, so none is lost by that either.
//
// For the same reason hints are of no use to later rounds, whose pages are pending
// because their bits are set: none is asked for.
//
// (QEMU takes hints from its bitmap while it sends, and holds the guest's pages
// until the end: virtio_balloon_free_page_hint_notify. Asking first sends nothing
// in vain, and a page that was left out was never sent, so it is zeros at the
// destination, not an old copy. See everTouched.)
func (e *engine) takeHints() error {
	if !e.o.FreePageHint {
		return nil
	}
	if !sabotage.On(sabotage.HintOrder) {
		if err := e.clearPending(); err != nil {
			return err
		}
	}
	began := time.Now()
	free, err := e.askFree()
	if err != nil {
		return err
	}
	if sabotage.On(sabotage.HintOrder) {
		if err := e.clearPending(); err != nil {
			return err
		}
	}
	e.mem.clip(free)
	for i := range free {
		free[i] &= e.pending[i]
		e.pending[i] &^= free[i]
	}
	e.free = free
	e.rep.Hint.MS, e.rep.Hint.Pages = ms(time.Since(began)), free.Count()
	return nil
}

// clearPending clears the log of all pages that are to be sent.
func (e *engine) clearPending() error {
	all := make(Bitmap, len(e.pending))
	copy(all, e.pending)
	gfns := all.drain(nil)
	for len(gfns) > 0 {
		if e.ctx.Err() != nil {
			return cancelCause(e.ctx)
		}
		n := min(clearAtOnce, len(gfns))
		if err := e.src.Clear(gfns[:n]); err != nil {
			return fmt.Errorf("clear dirty log: %w", err)
		}
		gfns = gfns[n:]
	}
	return nil
}

// askFree collects what the guest says. Only the end of the migration is an error:
// any other leaves pages that are sent although nobody needs them.
func (e *engine) askFree() (Bitmap, error) {
	ctx, cancel := context.WithCancelCause(e.ctx)
	defer cancel(nil)
	limit := time.AfterFunc(hintLimit*e.o.Silence, func() { cancel(errHintSlow) })
	defer limit.Stop()
	quiet := time.AfterFunc(e.o.Silence, func() { cancel(errHintSlow) })
	defer quiet.Stop()
	free := make(Bitmap, e.mem.words)
	err := e.src.(HintSource).FreePages(ctx, func(es []Extent) {
		quiet.Reset(e.o.Silence)
		for _, x := range es {
			if x.GPA%pageSize == 0 && x.Len%pageSize == 0 && x.GPA+x.Len >= x.GPA && (x.GPA+x.Len)>>pageShift <= uint64(len(free))*64 {
				free.setRange(x.GPA>>pageShift, (x.GPA+x.Len)>>pageShift)
			}
		}
	})
	if e.ctx.Err() != nil {
		return nil, cancelCause(e.ctx)
	}
	e.rep.Hint = &HintReport{Complete: err == nil}
	if err != nil {
		e.o.Log.Warn("ask the guest for its free pages", "err", err)
	}
	return free, nil
}

// noLongerFree takes from the free pages what is to be sent all the same.
func (e *engine) noLongerFree() {
	for i := range e.free {
		e.free[i] &^= e.pending[i]
	}
}
