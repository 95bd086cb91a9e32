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
	link   *link
	taker  *taker     // of files on the control connection, where that is a unix socket
	hello  wire.Hello // of the source
	nonce  [wire.NonceSize]byte
	target Target
	codec  policy.Codec // nil when pages come raw
	mem    *ram
	rep    Report
	began  time.Time

	wg       sync.WaitGroup // streams, acceptor, populate
	populate chan []Extent
	popDone  chan struct{}
	popStop  chan struct{} // closed when all pages have come
	arrived  chan struct{} // told after each frame of pages
	page     pages
	hashed   Bitmap // what VERIFY's hash covers, once it was asked for
	layout   []Extent
	config   []byte
	state    bytes.Buffer
	peeked   *outcome // what next gives next, where peek has waited for it

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

// Receive takes in one migration. The first connection becomes its control
// connection; the others must be its data streams, and strangers among them
// are turned away. It returns when the guest runs here (Target not nil, error
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
	conn, err := accept(ctx)
	if err != nil {
		if ctx.Err() != nil {
			err = cancelCause(ctx)
		}
		err = fmt.Errorf("%w: accept: %w", ErrHandshake, err)
		return nil, &Report{Status: statusOf(err), Error: err.Error()}, err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r := &receiver{o: &o, build: build, ctx: ctx, cancel: cancel, began: time.Now(), phase: PhaseIdle,
		rep: Report{Mode: PreCopy, Rounds: []RoundReport{}}, ready: make(chan struct{})}
	unlimited := r.limitTime()
	err = r.steps(conn, accept)
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

func (r *receiver) steps(conn net.Conn, accept Acceptor) error {
	for _, st := range []struct {
		do   func() error
		fail error
	}{
		{func() error { return r.greet(conn) }, ErrHandshake},
		{func() error { return r.configure(accept) }, ErrConfig},
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
func (r *receiver) greet(conn net.Conn) error {
	if err := r.enter(PhaseConnect); err != nil {
		return err
	}
	conn, r.taker = takeFiles(conn)
	in, out := wire.NewReader(patient{conn, r.o.Silence}), wire.NewWriter(conn)
	ctx, cancel := context.WithTimeoutCause(r.ctx, r.o.Silence, fmt.Errorf("%w: no HELLO within %v", ErrSilence, r.o.Silence))
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() }) // wakes a blocked HELLO
	hello, err := readHello(in)
	if err == nil {
		err = r.acceptable(hello)
		_ = conn.SetWriteDeadline(time.Now().Add(r.o.Silence)) // Open fails if this did
		if err != nil {
			_ = out.Open(wire.TypeError, wire.AppendText(nil, err.Error())) // err is the failure to report
		} else {
			r.hello = *hello
			r.expectMemory()
			_, _ = rand.Read(r.nonce[:]) // never fails, by crypto/rand's contract
			err = out.Open(wire.TypeHello, r.answer(0).Append(nil))
		}
	}
	if !unhook() {
		err = context.Cause(ctx)
	}
	if err != nil {
		hangUp(conn, r.o.Silence)
		if errors.Is(err, wire.ErrNotGodwit) || errors.Is(err, wire.ErrFormat) || errors.Is(err, errRefused) {
			return fmt.Errorf("%s: %w", conn.RemoteAddr(), err)
		}
		return connError(conn.RemoteAddr().String(), r.o.Silence, err)
	}
	if r.rep.Local = r.local(); !r.rep.Local {
		r.rep.Streams = int(hello.Streams)
	}
	r.link = &link{conn: conn, silence: r.o.Silence, r: in, w: out}
	r.link.start(r.fail)
	return nil
}

// errRefused marks a peer that speaks the protocol but cannot be served.
var errRefused = errors.New("refused")

func (r *receiver) acceptable(h *wire.Hello) error {
	switch {
	case h.Role != wire.RoleControl:
		return fmt.Errorf("%w: a data stream of a session that does not exist; start the migration anew", errRefused)
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

// hangUp closes conn after letting what was written reach the peer: closing with
// unread bytes would reset the connection and lose it.
func hangUp(conn net.Conn, patience time.Duration) {
	if c, ok := conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() == nil {
		_ = conn.SetReadDeadline(time.Now().Add(min(patience, time.Second)))
		var sink [4096]byte
		for n := 0; n < 1<<20; {
			k, err := conn.Read(sink[:])
			if err != nil {
				break
			}
			n += k
		}
	}
	_ = conn.Close() // the peer is not ours to care for
}

// configure gathers CONFIG and LAYOUT and builds the machine.
func (r *receiver) configure(accept Acceptor) error {
	if err := r.enter(PhaseConfigure); err != nil {
		return err
	}
	for last := false; !last; {
		m, err := r.next()
		if err != nil {
			return err
		}
		if m.typ != wire.TypeConfig || len(r.config)+len(m.body) > maxConfig {
			return fmt.Errorf("%w: %s after %d bytes of CONFIG, at most %d", wire.ErrFormat, m.typ, len(r.config), maxConfig)
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
	r.wg.Go(func() { r.acceptStreams(accept) })
	return r.link.send(wire.TypeBuilt, 0, built.Append(nil))
}

// snapshot lists the data connections that have found their place.
func (r *receiver) snapshot() []net.Conn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]net.Conn(nil), r.conns...)
}
