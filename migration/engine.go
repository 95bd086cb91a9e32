package migration

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"godwit/migration/policy"
	"godwit/migration/wire"
)

// maxConfig and maxState bound what a peer may send as CONFIG and STATE, bytes:
// the latter is what a machine reads (devices/state).
const (
	maxConfig = 1 << 20
	maxState  = 64 << 20
)

// engine is the source's side of one migration while it runs. Its fields belong
// to the goroutine that called Run, except where a type guards itself.
type engine struct {
	s    *Session
	src  Source
	o    *SendOptions
	ctx  context.Context // ends when the migration must stop, before GO
	mem  *ram
	link *link
	peer wire.Hello
	gift *os.File // guest memory that is to change hands, until it has

	codec     policy.Codec // nil when pages go raw
	pool      *pool        // nil without a codec
	gauges    *gauges      // nil unless the codec wants to know the link
	streams   []*stream
	wg        sync.WaitGroup // the streams' goroutines
	closing   chan struct{}  // closed when they must end
	pending   Bitmap         // pages to send
	free      Bitmap         // pages that the guest does not need, and has not written since; nil unless it was asked
	gfns      []uint64       // of the round under way, in the order of sending
	shown     []uint64       // the same, in the hands of the policies
	listed    []uint16       // by page, the last round that was to send it; only to verify
	bandwidth float64        // acknowledged bytes per second
	measured  bool           // bandwidth is of a round that can be believed, else no more than it may be
	wireBase  uint64         // bytes written before the round under way
	zeroBase  uint64         // zero pages sent before it
	last      policy.Round

	clearing sync.RWMutex // held shared by streams in Source.Clear
	undoing  bool         // no Clear any more; guarded by clearing

	pace  policy.Pace // of the guest at present
	paced bool        // one was set, so there is one to undo

	logging, paused, released, asked bool // what there is to undo
	stateLen                         uint64
	stateCRC                         uint32
	forceAfter                       time.Time // when the destination's lease has ended for certain
	gcOn                             func()
	clock                            downtimeClock
	costs                            costs
	rep                              Report
}

func newEngine(s *Session, ctx context.Context) *engine {
	e := &engine{s: s, src: s.src, o: &s.o, ctx: ctx, pace: policy.FullSpeed, closing: make(chan struct{}), gcOn: func() {},
		rep: Report{Mode: s.o.Mode, Streams: s.o.Streams, Rounds: []RoundReport{}}}
	if codec := s.o.Policies.Codec; codec.ID() != 0 {
		e.codec = codec
	}
	if s.o.Local {
		e.rep.Local, e.rep.Streams = true, 0
	}
	return e
}

func (e *engine) run() (*Report, error) {
	stop := make(chan struct{})
	watching := make(chan struct{})
	go func() { defer close(watching); e.s.watch(stop) }()
	err := e.steps()
	close(stop)
	<-watching
	if err != nil {
		err = e.failed(err)
	} else {
		err = e.cleanUp()
	}
	e.gcOn()
	e.rep.Status = statusOf(err)
	if err != nil {
		e.rep.Error = err.Error()
	}
	e.totals()
	e.rep.DowntimePhases, e.rep.DowntimeMS = e.clock.phases(), ms(e.clock.total())
	return &e.rep, err
}

// steps runs the protocol from HELLO to RUNNING. Each step fails with its own
// sentinel.
func (e *engine) steps() error {
	for _, st := range []struct {
		do   func() error
		fail error
	}{
		{e.canThrottle, ErrOptions},
		{e.canHint, ErrOptions},
		{e.connect, ErrHandshake},
		{e.configure, ErrConfig},
		{e.copyMemory, ErrMemory},
		{e.lastPages, ErrMemory},
		{e.sendState, ErrState},
		{e.verify, ErrCommit},
		{e.commit, ErrCommit},
	} {
		if err := st.do(); err != nil {
			if e.ctx.Err() != nil && !e.s.isCommitted() {
				err = cancelCause(e.ctx)
			}
			return fmt.Errorf("%w: %w", st.fail, err)
		}
	}
	return nil
}

func (s *Session) isCommitted() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.committed
}

// fail ends the migration because of a connection. After the point of no return
// only the control connection matters, and commit itself listens to it.
func (e *engine) fail(err error) { _ = e.s.end(err) }

func (e *engine) connect() error {
	if err := e.s.enter(PhaseConnect); err != nil {
		return err
	}
	if hasEnded(e.src) {
		return guestEnded(e.src)
	}
	var err error
	if e.mem, err = newRAM(e.src.Memory()); err != nil {
		return err
	}
	e.s.mu.Lock()
	e.s.p.TotalPages = e.mem.pages
	e.s.mu.Unlock()
	if err := e.openMemory(); err != nil {
		return err
	}
	conn, err := e.dial(e.ctx)
	if err != nil {
		return err
	}
	if err := e.canGive(conn); err != nil {
		_ = conn.Close() // nothing was said on it
		return err
	}
	r, w := wire.NewReader(patient{conn, e.o.Silence}), wire.NewWriter(conn)
	ctx, cancel := context.WithTimeoutCause(e.ctx, e.o.Silence, fmt.Errorf("%w: no HELLO within %v", ErrSilence, e.o.Silence))
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() }) // wakes a blocked HELLO
	began := time.Now()
	peer, err := openStream(conn, r, w, e.hello(wire.RoleControl, 0), e.o.Silence)
	e.costs.hello = time.Since(began)
	if err == nil {
		err = peer.Compatible()
	}
	if !unhook() {
		err = context.Cause(ctx)
	}
	if err != nil {
		_ = conn.Close() // err says more
		return e.helloError("control connection", err)
	}
	e.peer = *peer
	e.link = newLink(conn, e.o.Silence, r, w)
	e.link.start(e.fail)
	return nil
}

// dial opens one connection.
func (e *engine) dial(ctx context.Context) (net.Conn, error) {
	conn, err := e.s.dial(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConnect, err)
	}
	return conn, nil
}

func (e *engine) hello(role wire.Role, stream int) *wire.Hello {
	h := &wire.Hello{MinVersion: wire.Version, MaxVersion: wire.Version, Role: role, PageSize: pageSize,
		Stream: uint8(stream), Streams: uint8(e.o.Streams), Nonce: e.peer.Nonce, VMID: e.o.VMID, Codec: e.o.Policies.Codec.ID()}
	if e.o.Verify {
		h.Features |= wire.FeatureVerify
	}
	if e.o.Local {
		h.Features |= wire.FeatureLocal
	}
	return h
}

// helloError tells what the peer said from what became of the connection.
func (e *engine) helloError(what string, err error) error {
	if p := new(PeerError); errors.As(err, &p) || errors.Is(err, wire.ErrNotGodwit) || errors.Is(err, wire.ErrFormat) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return connError(what, e.o.Silence, err)
}

// configure has the destination build the machine.
func (e *engine) configure() error {
	if err := e.s.enter(PhaseConfigure); err != nil {
		return err
	}
	config, err := e.src.Config()
	if err != nil {
		return err
	}
	if len(config) > maxConfig {
		return fmt.Errorf("configuration of %d bytes, at most %d", len(config), maxConfig)
	}
	if err := e.link.sendChunks(e.ctx, wire.TypeConfig, config); err != nil {
		return err
	}
	if err := e.link.send(wire.TypeLayout, 0, wire.AppendExtents(nil, e.mem.layout())); err != nil {
		return err
	}
	if err := e.giveMemory(); err != nil {
		return err
	}
	if err := e.built(); err != nil {
		return err
	}
	if e.o.Local {
		return nil
	}
	return e.openStreams()
}

// sendState saves and sends device state and lets go of the disks.
func (e *engine) sendState() error {
	if err := e.s.enter(PhaseState); err != nil {
		return err
	}
	if err := e.clock.enter(partState); err != nil {
		return err
	}
	var state bytes.Buffer
	if err := e.src.SaveState(&state); err != nil {
		return fmt.Errorf("save: %w", err)
	}
	if state.Len() > maxState {
		return fmt.Errorf("state of %d bytes, at most %d", state.Len(), maxState)
	}
	e.released = true // also when it fails half-way
	if err := e.src.Release(); err != nil {
		return fmt.Errorf("release disks: %w", err)
	}
	e.stateLen, e.stateCRC = uint64(state.Len()), wire.Checksum(state.Bytes())
	return e.link.sendChunks(e.ctx, wire.TypeState, state.Bytes())
}
