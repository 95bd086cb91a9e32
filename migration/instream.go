package migration

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"time"

	"godwit/migration/sabotage"
	"godwit/migration/wire"
)

// ackBytes is how much a data stream receives between acknowledgements.
const ackBytes = 1 << 20

// inStream is one data stream of the destination. One goroutine owns it.
type inStream struct {
	r        *receiver
	index    int
	conn     net.Conn
	in       *wire.Reader
	out      *wire.Writer
	bytes    uint64 // received
	ackedAt  uint64 // bytes when the last ACK went
	ackTime  time.Time
	ackEvery time.Duration
	ack      [8]byte
	buf      [pageSize]byte // an encoding
	open     bool           // HELLO is over: acknowledge
	paging   bool           // in a frame of pages: every byte is progress
}

// Read is the connection's, with a deadline, counting what comes in and
// acknowledging it even in the middle of a long frame.
func (st *inStream) Read(b []byte) (int, error) {
	n, err := readWithin(st.conn, b, st.r.o.Silence)
	now := time.Now()
	st.bytes += uint64(n)
	st.r.received.Add(uint64(n))
	if st.paging {
		st.r.progress(now)
	}
	if err == nil && st.open && (st.bytes-st.ackedAt >= ackBytes || now.Sub(st.ackTime) >= st.ackEvery) {
		err = st.acknowledge(now)
	}
	return n, err
}

func (st *inStream) acknowledge(now time.Time) error {
	if err := st.conn.SetWriteDeadline(now.Add(st.r.o.Silence)); err != nil {
		return err
	}
	st.ackedAt, st.ackTime = st.bytes, now
	return st.out.Frame(wire.TypeAck, 0, wire.AppendAck(st.ack[:0], st.bytes))
}

// cannotAccept ends a session whose data streams have no way in any more.
func (r *receiver) cannotAccept(err error) {
	select {
	case <-r.ready:
	default:
		r.fail(fmt.Errorf("accept data stream: %w", err))
	}
}

// join gives a data stream its place, or says why it has none here.
func (r *receiver) join(v *visitor, e *entrance) (placed bool, err error) {
	st := &inStream{r: r, index: int(v.hello.Stream), conn: v.plain, in: v.in, out: v.out, bytes: v.bytes, ackEvery: keepaliveEvery(r.o.Silence)}
	if err := r.place(v, e); err != nil {
		v.refuse(err, e.limit)
		return false, err
	}
	r.received.Add(v.bytes)
	answer := r.answer(v.hello.Stream)
	answer.Role = wire.RoleData
	_ = v.plain.SetWriteDeadline(time.Now().Add(r.o.Silence)) // Open fails if this did
	if err := st.out.Open(wire.TypeHello, answer.Append(nil)); err != nil {
		_ = v.plain.Close() // err says more
		r.fail(connError(fmt.Sprintf("data stream %d", st.index), r.o.Silence, err))
		return true, nil
	}
	v.via, st.open = st, true
	r.wg.Go(st.run)
	return true, nil
}

// place takes the visitor off the entrance's list: no stranger can push it out any
// more.
func (r *receiver) place(v *visitor, e *entrance) error {
	h := v.hello
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case h.Role != wire.RoleData || subtle.ConstantTimeCompare(h.Nonce[:], r.nonce[:]) != 1:
		return fmt.Errorf("%w: not a stream of the session under way", errRefused)
	case h.Streams != r.hello.Streams || h.Codec != r.hello.Codec || r.conns[h.Stream] != nil:
		return fmt.Errorf("%w: stream %d of %d, session has %d and each comes once", errRefused, h.Stream, h.Streams, r.hello.Streams)
	}
	if !e.leave(v) {
		return fmt.Errorf("%w: too many connections at once", errRefused)
	}
	r.conns[h.Stream] = v.plain
	for _, c := range r.conns {
		if c == nil {
			return nil
		}
	}
	close(r.ready)
	return nil
}

// run is the life of a data stream. Its end before GO is the migration's end.
func (st *inStream) run() {
	defer func() { _ = st.conn.Close() }()
	defer context.AfterFunc(st.r.ctx, func() { _ = st.conn.Close() })()
	err := st.frames()
	if !st.r.allHere.Load() {
		if !errors.Is(err, wire.ErrFormat) {
			err = connError(fmt.Sprintf("data stream %d", st.index), st.r.o.Silence, err)
		} else {
			err = fmt.Errorf("data stream %d: %w", st.index, err)
		}
		st.r.fail(err)
	}
}

// frames reads until the stream ends, which is always an error: whoever knows
// that the stream has done its work ignores it.
func (st *inStream) frames() error {
	round, pages, done := uint32(1), uint64(0), false
	for {
		f, err := st.in.Next()
		if err != nil {
			return err
		}
		if st.paging = f.Type != wire.TypeKeepalive; st.paging {
			st.r.progress(time.Now())
		}
		switch {
		case f.Type == wire.TypeKeepalive:
			err = st.acknowledge(time.Now())
		case done:
			err = fmt.Errorf("%w: %s after the last round", wire.ErrFormat, f.Type)
		case f.Type == wire.TypeZero || f.Type == wire.TypeRaw:
			var n uint64
			n, err = st.r.page.apply(&f, st.in)
			pages += n
			st.r.tellArrived()
		case f.Type == wire.TypeCodec:
			var n uint64
			n, err = st.r.page.applyCoded(&f, st.in, &st.buf)
			pages += n
			st.r.tellArrived()
		case f.Type == wire.TypeRound:
			done = f.Last()
			err = st.endRound(&f, round, pages)
			round, pages = round+1, 0
		default:
			err = fmt.Errorf("%w: %s on a data stream", wire.ErrFormat, f.Type)
		}
		if err != nil {
			return err
		}
		st.paging = false
	}
}

// tellArrived lets the populator know of more pages.
func (r *receiver) tellArrived() {
	select {
	case r.arrived <- struct{}{}:
	default:
	}
}

// endRound waits at the barrier. Meanwhile it shows the source that it lives,
// for it does not read.
func (st *inStream) endRound(f *wire.Frame, round uint32, pages uint64) error {
	var w wire.Round
	if err := w.Decode(f.Body); err != nil {
		return err
	}
	if w.N != round || w.Pages != pages {
		return fmt.Errorf("%w: ROUND %d with %d pages, received were %d in round %d", wire.ErrFormat, w.N, w.Pages, pages, round)
	}
	if err := st.acknowledge(time.Now()); err != nil {
		return err
	}
	gate, err := st.r.page.barrier.pass(round, pages, f.Last())
	if err != nil || sabotage.On(sabotage.Barrier) {
		return err
	}
	t := time.NewTicker(st.ackEvery)
	defer t.Stop()
	for {
		select {
		case <-gate:
			return nil
		case <-st.r.ctx.Done():
			return context.Cause(st.r.ctx)
		case <-t.C:
			if err := st.acknowledge(time.Now()); err != nil {
				return err
			}
		}
	}
}

// roundPassed notes a round and tells the source. The last stream calls it.
func (r *receiver) roundPassed(round uint32, t tally) error {
	now := time.Now()
	r.mu.Lock()
	if r.roundBegan.IsZero() {
		r.roundBegan = r.began
	}
	if len(r.rep.Rounds) < maxReported {
		r.rep.Rounds = append(r.rep.Rounds, RoundReport{N: int(round), MS: ms(now.Sub(r.roundBegan)), SentPages: t.pages})
	}
	r.roundBegan, r.passed, r.round = now, t, round
	r.mu.Unlock()
	w := wire.Round{N: round, Pages: t.pages}
	return r.link.send(wire.TypePassed, 0, w.Append(nil))
}

// maxReported bounds the rounds in a destination's report: the source decides
// how many there are.
const maxReported = 10_000
