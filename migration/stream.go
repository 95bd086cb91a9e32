package migration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"godwit/migration/sabotage"
	"godwit/migration/wire"
)

// roundWork is one round, shared by the streams: each takes the next chunk as
// soon as it has sent its last, so a slow stream takes fewer.
type roundWork struct {
	n      uint32
	last   bool
	gfns   []uint64
	cursor atomic.Int64  // first page nobody has taken
	dealt  atomic.Uint64 // pages taken and dealt with
	sent   atomic.Uint64 // pages sent, once all streams have finished
	left   atomic.Int32  // streams that have not finished
	done   chan struct{} // closed by the last stream
}

func newRoundWork(n uint32, last bool, gfns []uint64, streams int) *roundWork {
	w := &roundWork{n: n, last: last, gfns: gfns, done: make(chan struct{})}
	w.left.Store(int32(streams))
	return w
}

// take gives the next pages to send, nil when none are left.
func (w *roundWork) take() []uint64 {
	end := w.cursor.Add(chunkPages)
	start := end - chunkPages
	if start >= int64(len(w.gfns)) {
		return nil
	}
	return w.gfns[start:min(end, int64(len(w.gfns)))]
}

// stream is one data stream of the source.
type stream struct {
	e     *engine
	index int
	conn  net.Conn
	in    *wire.Reader
	out   *pageWriter
	work  chan *roundWork
	hello time.Duration // the exchange of HELLOs
	acked atomic.Uint64 // bytes that the destination has received
	wrote atomic.Uint64 // bytes written when the last round ended
	signs atomic.Uint64 // bytes of signs of life
}

// openStreams connects all data streams at once.
func (e *engine) openStreams() error {
	if e.codec != nil {
		e.pool = newPool()
	}
	e.gauges = newGauges(e.codec, &e.s.limit, e.o.Streams)
	streams := make([]*stream, e.o.Streams)
	g, ctx := errgroup.WithContext(e.ctx)
	for i := range streams {
		g.Go(func() error {
			st, err := e.openStream(ctx, i)
			streams[i] = st
			return err
		})
	}
	err := g.Wait()
	for _, st := range streams {
		switch {
		case st == nil:
		case err != nil:
			_ = st.conn.Close() // err says more
		default:
			st.start()
			e.streams = append(e.streams, st)
		}
	}
	return err
}

// Pauses before a stream tries again that was turned away.
const (
	firstStreamPause   = 10 * time.Millisecond
	longestStreamPause = 500 * time.Millisecond
)

// openStream connects a data stream. A connection that ends without an answer was
// one too many for a destination that strangers crowd: it is tried again, for as
// long as a silence.
func (e *engine) openStream(ctx context.Context, i int) (*stream, error) {
	began := time.Now()
	for pause := firstStreamPause; ; pause = min(2*pause, longestStreamPause) {
		st, err := e.tryStream(ctx, i)
		if err == nil || !hungUp(err) || time.Since(began) > e.o.Silence {
			return st, err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return nil, err
		}
	}
}

// hungUp tells whether the peer closed a connection without a word.
func hungUp(err error) bool {
	for _, end := range []error{io.EOF, io.ErrUnexpectedEOF, unix.ECONNRESET, unix.EPIPE} {
		if errors.Is(err, end) {
			return true
		}
	}
	return false
}

func (e *engine) tryStream(ctx context.Context, i int) (*stream, error) {
	conn, err := e.dial(ctx)
	if err != nil {
		return nil, err
	}
	r, w := wire.NewReader(patient{conn, e.o.Silence}), wire.NewWriter(conn)
	ctx, cancel := context.WithTimeoutCause(ctx, e.o.Silence, fmt.Errorf("%w: no HELLO within %v", ErrSilence, e.o.Silence))
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { _ = conn.Close() }) // wakes a blocked HELLO
	began := time.Now()
	_, err = openStream(conn, r, w, e.hello(wire.RoleData, i), e.o.Silence)
	hello := time.Since(began)
	if !unhook() {
		err = context.Cause(ctx)
	}
	if err == nil {
		err = conn.SetWriteDeadline(time.Time{})
	}
	if err != nil {
		_ = conn.Close() // err says more
		return nil, e.helloError(fmt.Sprintf("data stream %d", i), err)
	}
	out := newPageWriter(conn, w, e.mem, &e.s.limit, e.ctx.Done(), e.codec, e.pool)
	out.gauge = e.gauges.of(i)
	return &stream{e: e, index: i, conn: conn, in: r, work: make(chan *roundWork, 1), hello: hello, out: out}, nil
}

func (st *stream) start() {
	st.e.wg.Go(st.send)
	st.e.wg.Go(st.receive)
}

// send is the goroutine that writes. Its writes have no deadline: a destination
// that lives but reads slowly is no failure, and one that is gone shows in
// receive, which ends the migration and so closes the connection.
func (st *stream) send() {
	t := time.NewTicker(keepaliveEvery(st.e.o.Silence))
	defer t.Stop()
	for {
		var err error
		select {
		case <-st.e.closing:
			return
		case w := <-st.work:
			err = st.round(w)
		case <-t.C:
			st.signs.Add(wire.HeaderSize)
			err = st.out.frame(wire.TypeKeepalive, 0, nil)
		}
		if err != nil {
			st.failed(err)
			return
		}
	}
}

// round sends this stream's share of a round and ends it with the barrier.
func (st *stream) round(w *roundWork) error {
	before := st.out.pages.sent()
	for gfns := w.take(); gfns != nil; gfns = w.take() {
		if err := st.chunk(gfns, w.last); err != nil {
			return err
		}
		w.dealt.Add(uint64(len(gfns)))
	}
	pages := st.out.pages.sent() - before
	w.sent.Add(pages)
	flags := uint8(0)
	if w.last {
		flags = wire.FlagLast
	}
	r := wire.Round{N: w.n, Pages: pages}
	if err := st.out.frame(wire.TypeRound, flags, r.Append(nil)); err != nil {
		return err
	}
	st.wrote.Store(st.out.written)
	if w.left.Add(-1) == 0 {
		close(w.done)
	}
	return nil
}

// chunk clears the dirty bits of pages, then reads and sends them. In this order
// a write is either seen by the read or leaves its page dirty. Nothing asks the
// log after the last round, and before stop-and-copy it was never on.
//
// The pages go in ascending order whatever the order between chunks is: that
// joins them into runs, both on the wire and for the log, and moves a page at
// most one chunk (1 MiB) out of its turn.
func (st *stream) chunk(gfns []uint64, last bool) error {
	slices.Sort(gfns) // chunks do not overlap, so this one is ours
	if last {
		return st.out.chunk(gfns)
	}
	if !sabotage.On(sabotage.ClearOrder) {
		if err := st.clear(gfns); err != nil {
			return err
		}
	}
	if err := st.out.chunk(gfns); err != nil {
		return err
	}
	if sabotage.On(sabotage.ClearOrder) {
		return st.clear(gfns)
	}
	return nil
}

// clear forgets that pages were written. It fails once the migration is being
// undone: from then on the source is no longer the streams' to call.
func (st *stream) clear(gfns []uint64) error {
	st.e.clearing.RLock()
	defer st.e.clearing.RUnlock()
	if st.e.undoing {
		return &logError{net.ErrClosed}
	}
	if err := st.e.src.Clear(gfns); err != nil {
		return &logError{fmt.Errorf("clear dirty log: %w", err)}
	}
	return nil
}

// logError is a failure of the source itself, not of a stream's connection.
type logError struct{ error }

func (e *logError) Unwrap() error { return e.error }

// maxHello is what opens a stream at most: it counts at the destination, not here.
const maxHello = uint64(len(wire.Preamble) + wire.HeaderSize + wire.MaxHello)

// receive is the goroutine that reads acknowledgements: at least one comes for
// every sign of life that was sent.
func (st *stream) receive() {
	for {
		f, err := st.in.Next()
		if err != nil {
			st.failed(err)
			return
		}
		switch f.Type {
		case wire.TypeAck:
			n, err := wire.DecodeAck(f.Body)
			// An ACK is progress, so none may be of what was never sent.
			if sent := st.out.begun.Load() + maxHello; err == nil && (n < st.acked.Load() || n > sent) {
				err = fmt.Errorf("%w: ACK of %d bytes after one of %d, sent were at most %d", wire.ErrFormat, n, st.acked.Load(), sent)
			}
			if err != nil {
				st.failed(err)
				return
			}
			st.acked.Store(n)
		case wire.TypeError, wire.TypeCancel:
			st.failed(&PeerError{Text: wire.DecodeText(f.Body), Cancelled: f.Type == wire.TypeCancel})
			return
		default:
			st.failed(fmt.Errorf("%w: %s on a data stream's way back", wire.ErrFormat, f.Type))
			return
		}
	}
}

func (st *stream) failed(err error) {
	what := fmt.Sprintf("data stream %d", st.index)
	if p, l := new(PeerError), new(logError); !errors.As(err, &p) && !errors.As(err, &l) && !errors.Is(err, ErrPolicy) {
		err = connError(what, st.e.o.Silence, err)
	}
	st.e.fail(err)
}

// written is what the streams had written when the last round ended.
func (e *engine) written() uint64 {
	var n uint64
	for _, st := range e.streams {
		n += st.wrote.Load()
	}
	return n
}

// acked is what the destination has acknowledged so far.
func (e *engine) acked() uint64 {
	var n uint64
	for _, st := range e.streams {
		n += st.acked.Load()
	}
	return n
}
