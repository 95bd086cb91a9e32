package migration

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"godwit/migration/policy"
	"godwit/migration/wire"
)

// receiver is the destination's side of one migration. Its fields belong to the
// goroutine that called Receive, except where a type guards itself.
type receiver struct {
	o      *ReceiveOptions
	build  Builder
	ctx    context.Context // ends when the migration must stop, before GO
	door   *entrance
	link   *link
	taker  *taker     // of files on the control connection, where that is a unix socket
	hello  wire.Hello // of the source
	nonce  [wire.NonceSize]byte
	target Target
	codec  policy.Codec // nil when pages come raw
	mem    *ram
	rep    Report
	began  time.Time

	wg       sync.WaitGroup // streams, populate
	populate chan []Extent
	popDone  chan struct{}
	popStop  chan struct{} // closed when all pages have come
	arrived  chan struct{} // told after each frame of pages
	page     pages
	hashed   Bitmap // what VERIFY's hash covers, once it was asked for
	layout   []Extent
	config   []byte
	state    bytes.Buffer
	peeked   *outcome       // what next gives next, where peek has waited for it
	rest     *time.Duration // what next may still wait in all, see many; nil: see Stall

	mu         sync.Mutex // guards what follows
	phase      Phase
	cancel     context.CancelCauseFunc
	committed  bool
	conns      []net.Conn    // data streams by index
	ready      chan struct{} // closed when all are there
	roundBegan time.Time
	passed     tally // of the last round
	round      uint32

	received atomic.Uint64 // bytes on data streams
	moved    atomic.Int64  // when a data stream last brought more than signs of life, nanoseconds from began
	allHere  atomic.Bool   // READY leaves: the data streams have done their work
}

// Receive takes in one migration. The first source that says HELLO in full begins
// the session; everybody else is turned away, unless it is a data stream of that
// session. Connections that say nothing, or anything else, are no migrations and
// end nothing. It returns when the guest runs here (Target not nil, error
// nil) or when the migration failed (Target nil: it has been aborted, nothing
// is left half-made). The report is nil only when the options are wrong.
//
// Ending ctx refuses the migration before GO and is ignored after it. Receive
// leaves the acceptor's listener open.
func Receive(ctx context.Context, accept Acceptor, build Builder, o ReceiveOptions) (Target, *Report, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	door := openEntrance(ctx, accept, &o)
	defer door.close()
	source, err := door.wait()
	if err != nil {
		if ctx.Err() != nil {
			err = cancelCause(ctx)
		}
		err = fmt.Errorf("%w: accept: %w", ErrHandshake, err)
		return nil, &Report{Status: statusOf(err), Error: err.Error()}, err
	}
	r := &receiver{o: &o, build: build, ctx: ctx, cancel: cancel, door: door, began: time.Now(), phase: PhaseIdle,
		rep: Report{Mode: PreCopy, Rounds: []RoundReport{}}, ready: make(chan struct{})}
	unlimited := r.limitTime()
	err = r.steps(source)
	unlimited()
	if err != nil {
		err = r.failed(err)
	}
	r.finish(err)
	if err != nil {
		return nil, &r.rep, err
	}
	return r.target, &r.rep, nil
}

func (r *receiver) steps(source *visitor) error {
	for _, st := range []struct {
		do   func() error
		fail error
	}{
		{func() error { return r.greet(source) }, ErrHandshake},
		{r.configure, ErrConfig},
		{r.copyMemory, ErrMemory},
		{r.getState, ErrState},
		{r.commit, ErrCommit},
	} {
		if err := st.do(); err != nil {
			if r.ctx.Err() != nil && !r.isCommitted() {
				err = cancelCause(r.ctx)
			}
			return fmt.Errorf("%w: %w", st.fail, err)
		}
	}
	return nil
}

func (r *receiver) isCommitted() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.committed
}

// fail stops a migration that may still be stopped.
func (r *receiver) fail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.committed {
		r.cancel(err)
	}
}

func (r *receiver) enter(to Phase) error {
	r.mu.Lock()
	err := step(targetNext, r.phase, to)
	if err == nil {
		r.phase = to
	}
	p := Progress{Phase: r.phase, Elapsed: time.Since(r.began), Round: int(r.round), WireBytes: r.received.Load(), Duty: 100}
	r.mu.Unlock()
	if r.mem != nil {
		p.TotalPages = r.mem.pages
	}
	p.Done = to == PhaseCompleted || to == PhaseFailed || to == PhaseCancelled
	r.o.Log.Debug("migration phase", "phase", to)
	r.o.OnProgress(p)
	return err
}

// greet answers the source's HELLO, or refuses it with the reason.
func (r *receiver) greet(v *visitor) error {
	if err := r.enter(PhaseConnect); err != nil {
		_ = v.conn.Close() // nothing was said on it
		return err
	}
	r.taker, v.via = v.taker, patient{v.conn, r.o.Silence}
	err := r.acceptable(v.hello)
	if err != nil {
		v.refuse(err, r.o.Silence)
		hangUp(v.conn, r.o.Silence)
		return fmt.Errorf("%s: %w", v.conn.RemoteAddr(), err)
	}
	r.hello = *v.hello
	r.expectMemory()
	_, _ = rand.Read(r.nonce[:])                             // never fails, by crypto/rand's contract
	_ = v.conn.SetWriteDeadline(time.Now().Add(r.o.Silence)) // Open fails if this did
	if err := v.out.Open(wire.TypeHello, r.answer(0).Append(nil)); err != nil {
		hangUp(v.conn, r.o.Silence)
		return connError(v.conn.RemoteAddr().String(), r.o.Silence, err)
	}
	if r.rep.Local = r.local(); !r.rep.Local {
		r.rep.Streams = int(r.hello.Streams)
	}
	r.link = newLink(v.conn, r.o.Silence, v.in, v.out)
	r.link.start(r.fail)
	return nil
}

// errRefused marks a peer that speaks the protocol but cannot be served.
var errRefused = errors.New("refused")

func (r *receiver) acceptable(h *wire.Hello) error {
	switch {
	case r.o.Verify && h.Features&wire.FeatureVerify == 0:
		return fmt.Errorf("%w: this destination demands verified memory; migrate with --verify", errRefused)
	}
	if err := h.Compatible(); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	if err := r.acceptLocal(h); err != nil {
		return fmt.Errorf("%w: %w", errRefused, err)
	}
	var err error
	r.codec, err = decoderFor(h.Codec)
	return err
}

func (r *receiver) answer(stream uint8) *wire.Hello {
	return &wire.Hello{MinVersion: wire.Version, MaxVersion: wire.Version, Role: wire.RoleControl, PageSize: pageSize,
		Stream: stream, Streams: r.hello.Streams, Codec: r.hello.Codec, Features: r.hello.Features, Nonce: r.nonce}
}

// configure gathers CONFIG and LAYOUT and builds the machine.
func (r *receiver) configure() error {
	if err := r.enter(PhaseConfigure); err != nil {
		return err
	}
	described := r.limitDescription()
	defer described()
	end := r.many()
	defer end()
	for last := false; !last; {
		m, err := r.next()
		if err != nil {
			return err
		}
		if err := checkChunk(wire.TypeConfig, m, len(r.config), maxConfig); err != nil {
			return err
		}
		r.config, last = append(r.config, m.body...), m.last
	}
	body, err := r.expect(wire.TypeLayout)
	if err != nil {
		return err
	}
	if r.layout, err = wire.DecodeExtents(body); err != nil {
		return err
	}
	offer := Offer{Config: r.config}
	if r.local() {
		if offer.Memory, err = r.takeMemory(); err != nil {
			return err
		}
	}
	described()
	if r.target, err = r.build(r.ctx, offer); err != nil {
		r.target = nil
		return fmt.Errorf("build the machine: %w", err)
	}
	if r.mem, err = newRAM(r.target.Memory()); err != nil {
		return err
	}
	if err := r.mem.sameLayout(r.layout); err != nil {
		return err
	}
	if r.local() {
		r.rep.Pages.Skipped = r.mem.pages
		var built wire.Built // no stop rule will ask what restoring takes
		return r.link.send(wire.TypeBuilt, 0, built.Append(nil))
	}
	r.page.init(r.mem, int(r.hello.Streams), r.codec, r.roundPassed)
	built := wire.Built{RestoreNS: uint64(r.rehearse())}
	r.mu.Lock()
	r.conns = make([]net.Conn, r.hello.Streams)
	r.mu.Unlock()
	// Room for the extents of memory in which every other page was touched: the
	// source sends them all before the first page, and the populator waits for pages.
	r.populate = make(chan []Extent, r.mem.pages/wire.MaxExtents+2)
	r.popDone, r.popStop = make(chan struct{}), make(chan struct{})
	r.arrived = make(chan struct{}, 1)
	r.wg.Go(r.populator)
	r.door.admitTo(r)
	return r.link.send(wire.TypeBuilt, 0, built.Append(nil))
}

// snapshot lists the data connections that have found their place.
func (r *receiver) snapshot() []net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]net.Conn(nil), r.conns...)
}
