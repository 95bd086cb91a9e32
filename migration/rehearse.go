package migration

import (
	"context"
	"errors"
	"fmt"
	"time"

	"godwit/migration/policy"
	"godwit/migration/wire"
)

// A rehearsal stands the guest still: normally for well under a millisecond, and
// at most for the downtime limit or rehearsalPatience, whichever is longer. One
// that by itself misses the limit is tried again with the next sample: the host
// may just have been busy.
const (
	rehearsalPatience = 50 * time.Millisecond
	maxRehearsals     = 3
)

// maxWatch bounds what a stop rule may ask for.
const maxWatch = time.Second

// costs are what a pause takes beside its pages, as measured.
type costs struct {
	tries      int  // rehearsals begun
	done       bool // the last one met the limit
	pause      time.Duration
	state      time.Duration
	stateBytes uint64
	hello      time.Duration // the exchange of HELLOs on the control connection
	restore    time.Duration // by the destination's word; 0 when it does not know
}

// sampled is r with what the stop rule wants to have measured, if it wants
// anything. Looking at the log forgets nothing; what is new joins the pages to
// send.
func (e *engine) sampled(r policy.Round) (policy.Round, error) {
	m, ok := e.o.Policies.Stop.(policy.Measurer)
	if !ok {
		return r, nil
	}
	var watch time.Duration
	if err := e.s.asking("stop rule", m, func() { watch = min(m.Measure(r), maxWatch) }); err != nil {
		return r, err
	}
	if watch <= 0 {
		return r, nil
	}
	if err := e.rehearse(r.DowntimeLimit); err != nil {
		return r, fmt.Errorf("rehearse the pause: %w", err)
	}
	if err := e.takeDirty(); err != nil {
		return r, err
	}
	began, before := time.Now(), e.pending.Count()
	if err := sleep(e.ctx, watch); err != nil {
		return r, err
	}
	slept := time.Now()
	if err := e.takeDirty(); err != nil {
		return r, err
	}
	// From the end of one look to the end of the next: a page is found when its
	// part of the log is read, and both looks read in the same order.
	took, trip := time.Since(began), e.roundTrip()
	r = e.roundDone(r.DowntimeLimit)
	r.Sample = policy.Sample{
		Took: took, NewPages: r.DirtyPages - before,
		Pause:  e.costs.pause,
		Pages:  time.Since(slept) + trip, // a last look, and the barrier
		State:  e.costs.state + r.Transfer(float64(e.costs.stateBytes)),
		Resume: e.costs.restore + 2*trip, // PREPARE to READY, GO to RUNNING
	}
	if r.Sample.State < 0 {
		r.Sample.State = r.Transfer(float64(e.costs.stateBytes))
	}
	e.last = r
	return r, nil
}

// sleep waits for d, or fails when the migration must stop.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return cancelCause(ctx)
	}
}

// roundTrip is how long an answer takes at least: the shortest of the session's
// exchanges of HELLO, in which neither side has more to do than to read
// and write one frame. A connection that first has to agree on keys, or whose
// other end first has to be scheduled, counts only if all of them had to.
func (e *engine) roundTrip() time.Duration {
	trip := e.costs.hello
	for _, st := range e.streams {
		trip = min(trip, st.hello)
	}
	return trip
}

var errSlowPause = errors.New("pausing the guest took longer than it may in a rehearsal")

// rehearse pauses the guest, saves its state to nowhere and lets it run on, with
// a stop-watch, as a rule once a migration. Disks are not released: flushing them
// has its price at the real pause, and cannot be known before. If anything fails
// the guest counts as paused, and undo resumes it.
func (e *engine) rehearse(limit time.Duration) (err error) {
	c := &e.costs
	if c.done || c.tries == maxRehearsals {
		return nil
	}
	c.tries++
	patience := max(limit, rehearsalPatience)
	defer func() {
		if hasEnded(e.src) {
			err = guestEnded(e.src) // whatever else failed, failed because of it
		}
	}()
	ctx, cancel := context.WithTimeoutCause(e.ctx, patience, errSlowPause)
	defer cancel()
	if waited, err := settle(ctx, e.src); err != nil {
		if ctx.Err() == nil || e.ctx.Err() != nil {
			return err
		}
		c.pause = waited // no less, for all that is known
		return nil
	}
	cancel()
	ctx, cancel = context.WithTimeoutCause(e.ctx, patience, errSlowPause)
	defer cancel()
	defer quietGC()() // as in the real pause
	e.paused = true   // also when it fails half-way
	began := time.Now()
	pauseErr := e.src.Pause(ctx)
	c.pause = time.Since(began)
	slow := pauseErr != nil && e.ctx.Err() == nil && (ctx.Err() != nil || errors.Is(pauseErr, ErrUnsettled))
	if pauseErr != nil && !slow {
		return fmt.Errorf("pause: %w", pauseErr)
	}
	if !slow {
		began = time.Now()
		var size counter
		if err := e.src.SaveState(&size); err != nil {
			return fmt.Errorf("save: %w", err)
		}
		c.state, c.stateBytes = time.Since(began), uint64(size)
		c.done = c.pause+c.state <= limit
	}
	if err := e.src.Resume(); err != nil {
		return fmt.Errorf("resume: %w", err)
	}
	e.paused = false
	e.o.Log.Debug("rehearsed the pause", "pause", c.pause, "state", c.state, "state_bytes", c.stateBytes, "slow", slow)
	return nil
}

// counter is a writer that keeps only the number of bytes.
type counter uint64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// promise notes in the report what the pause that comes now should take, where
// that was measured.
func (e *engine) promise(r policy.Round) {
	if r.Sample.Took <= 0 {
		return
	}
	p := r.Promise()
	e.rep.Promise = &Promise{DowntimeMS: ms(p.Downtime()), Pages: p.DirtyPages, PagesPerSecond: p.PagesPerSecond,
		PauseMS: ms(p.Pause), PagesMS: ms(p.Pages), StateMS: ms(p.State), ResumeMS: ms(p.Resume)}
}

// maxRestore bounds what a destination may say that restoring takes.
const maxRestore = 10 * time.Minute

// built hears that the destination has built the machine, and what it says that
// restoring one takes. A number beyond all sense only keeps the guest here.
func (e *engine) built() error {
	body, err := e.link.expect(e.ctx, wire.TypeBuilt)
	if err != nil {
		return err
	}
	var b wire.Built
	if err := b.Decode(body); err != nil {
		return err
	}
	e.costs.restore = time.Duration(min(b.RestoreNS, uint64(maxRestore)))
	return nil
}

// rehearse asks the new machine what restoring its state takes, 0 when it does
// not know. A machine that fails at it is not judged before its own state comes.
func (r *receiver) rehearse() time.Duration {
	t, ok := r.target.(interface{ Rehearse() (time.Duration, error) })
	if !ok {
		return 0
	}
	took, err := t.Rehearse()
	if err != nil {
		r.o.Log.Warn("rehearse restoring the machine", "err", err)
		return 0
	}
	return max(took, 0)
}
