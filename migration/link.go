package migration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"godwit/migration/wire"
)

// connError says what broke on which connection, and whether it was silence.
func connError(what string, silence time.Duration, err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %s: %w: no sign of life for %v", ErrConnection, what, ErrSilence, silence)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %s: closed by the other side: %w", ErrConnection, what, err)
	}
	return fmt.Errorf("%w: %s: %w", ErrConnection, what, err)
}

// patient is a connection whose reads fail after a silence, however long the
// whole transfer takes.
type patient struct {
	net.Conn
	silence time.Duration
}

func (p patient) Read(b []byte) (int, error) { return readWithin(p.Conn, b, p.silence) }

// readWithin reads from conn and fails after a silence. A deadline also passes
// while this process itself stands still (stopped, suspended, starved), and
// then says nothing about the peer: what came meanwhile waits to be read, and a
// peer that stood still with us needs its time again.
func readWithin(conn net.Conn, b []byte, silence time.Duration) (int, error) {
	began := time.Now()
	if err := conn.SetReadDeadline(began.Add(silence)); err != nil {
		return 0, err
	}
	n, err := conn.Read(b)
	if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		return n, err
	}
	again := silence / 10
	if time.Since(began) > silence+keepaliveEvery(silence) {
		again = silence
	}
	if err := conn.SetReadDeadline(time.Now().Add(again)); err != nil {
		return 0, err
	}
	return conn.Read(b)
}

// openStream sends our first frame on a new connection and reads the peer's
// HELLO. The caller closes conn when it fails.
func openStream(conn net.Conn, r *wire.Reader, w *wire.Writer, mine *wire.Hello, silence time.Duration) (*wire.Hello, error) {
	if err := conn.SetWriteDeadline(time.Now().Add(silence)); err != nil {
		return nil, err
	}
	if err := w.Open(wire.TypeHello, mine.Append(nil)); err != nil {
		return nil, err
	}
	return readHello(r)
}

// readHello reads the peer's preamble and its HELLO, or the reason that it
// refuses ours.
func readHello(r *wire.Reader) (*wire.Hello, error) {
	if err := r.Preamble(); err != nil {
		return nil, err
	}
	f, err := r.Next()
	if err != nil {
		return nil, err
	}
	switch f.Type {
	case wire.TypeHello:
		h := new(wire.Hello)
		return h, h.Decode(f.Body)
	case wire.TypeError, wire.TypeCancel:
		return nil, &PeerError{Text: wire.DecodeText(f.Body), Cancelled: f.Type == wire.TypeCancel}
	}
	return nil, fmt.Errorf("%w: %s where HELLO must be", wire.ErrFormat, f.Type)
}

// message is a frame of the control connection with its own copy of the body.
type message struct {
	typ  wire.Type
	last bool
	body []byte
}

// must gives the body of a message that is of type t, or the peer's mistake.
func (m message) must(t wire.Type) ([]byte, error) {
	if m.typ != t {
		return nil, fmt.Errorf("%w: %s where %s must be", wire.ErrFormat, m.typ, t)
	}
	return m.body, nil
}

// link is the control connection of one end. A reader goroutine turns frames
// into messages, another one sends signs of life; both belong to wg and end
// with close.
type link struct {
	conn    net.Conn
	silence time.Duration
	r       *wire.Reader
	wg      sync.WaitGroup

	turn turn // guards w and its place in the stream
	w    *wire.Writer

	inbox  chan message
	drain  chan struct{} // closed: nobody reads the inbox any more
	closed chan struct{}
	ended  chan struct{} // closed by the reader when it stops; err says why
	err    error
	onEnd  func(error)
}

// turn is a mutex whose holder may wait for the peer: a channel, so that a bubble
// of testing/synctest knows that those behind it wait too.
type turn chan struct{}

// newLink makes the control connection, on which HELLO has been said.
func newLink(conn net.Conn, silence time.Duration, r *wire.Reader, w *wire.Writer) *link {
	return &link{conn: conn, silence: silence, r: r, w: w, turn: make(turn, 1)}
}

// start runs the goroutines. onEnd is told once why reading stopped.
func (l *link) start(onEnd func(error)) {
	l.inbox = make(chan message, 16)
	l.drain, l.closed, l.ended = make(chan struct{}), make(chan struct{}), make(chan struct{})
	l.onEnd = onEnd
	l.wg.Go(l.read)
	l.wg.Go(l.beat)
}

func (l *link) read() {
	for {
		f, err := l.r.Next()
		if err != nil {
			l.end(connError("control connection", l.silence, err))
			return
		}
		switch f.Type {
		case wire.TypeKeepalive:
			continue
		case wire.TypeError, wire.TypeCancel:
			l.end(&PeerError{Text: wire.DecodeText(f.Body), Cancelled: f.Type == wire.TypeCancel})
			return
		}
		select {
		case <-l.drain:
		case l.inbox <- message{f.Type, f.Last(), append([]byte(nil), f.Body...)}:
		}
	}
}

func (l *link) end(err error) {
	l.err = err
	close(l.ended)
	l.onEnd(err)
}

func (l *link) beat() {
	t := time.NewTicker(keepaliveEvery(l.silence))
	defer t.Stop()
	for {
		select {
		case <-l.closed:
			return
		case <-t.C:
			// A failed write shows in the reader too, with a better reason.
			if l.send(wire.TypeKeepalive, 0, nil) != nil {
				return
			}
		}
	}
}

// send writes one frame. Any goroutine may call it.
func (l *link) send(t wire.Type, flags uint8, body []byte) error {
	_, err := l.sendAfter(func() error { return nil }, t, flags, body)
	return err
}

// sendAfter writes one frame if check allows it, asked when nothing but the
// write itself is left to do. tried says whether any byte may have left.
func (l *link) sendAfter(check func() error, t wire.Type, flags uint8, body []byte) (tried bool, err error) {
	return l.sendBy(check, func() error { return l.w.Frame(t, flags, body) })
}

// sendBy is sendAfter for a frame that write puts on the connection.
func (l *link) sendBy(check, write func() error) (tried bool, err error) {
	l.turn <- struct{}{}
	defer func() { <-l.turn }()
	if err := l.conn.SetWriteDeadline(time.Now().Add(l.silence)); err != nil {
		return false, connError("control connection", l.silence, err)
	}
	if err := check(); err != nil {
		return false, err
	}
	if err := write(); err != nil {
		return true, connError("control connection", l.silence, err)
	}
	return true, nil
}

// sendChunks writes data as frames of type t, the last one flagged; no data is
// one empty frame. It stops between two frames when ctx ends; each must leave
// within one silence.
func (l *link) sendChunks(ctx context.Context, t wire.Type, data []byte) error {
	return chunks(data, func(flags uint8, chunk []byte) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return l.send(t, flags, chunk)
	})
}

func chunks(data []byte, emit func(flags uint8, chunk []byte) error) error {
	for len(data) > wire.MaxBody {
		if err := emit(0, data[:wire.MaxBody]); err != nil {
			return err
		}
		data = data[wire.MaxBody:]
	}
	return emit(wire.FlagLast, data)
}

// next waits for the next message. Messages that came before the end of the
// connection are delivered before its error.
func (l *link) next(ctx context.Context) (message, error) {
	select {
	case m := <-l.inbox:
		return m, nil
	default:
	}
	select {
	case m := <-l.inbox:
		return m, nil
	case <-l.ended:
		select {
		case m := <-l.inbox:
			return m, nil
		default:
			return message{}, l.err
		}
	case <-ctx.Done():
		select {
		case m := <-l.inbox:
			return m, nil
		default:
			return message{}, context.Cause(ctx)
		}
	}
}

// expect waits for a message of one type; any other is the peer's mistake.
func (l *link) expect(ctx context.Context, t wire.Type) ([]byte, error) {
	m, err := l.next(ctx)
	if err != nil {
		return nil, err
	}
	return m.must(t)
}

// farewell waits until the peer has closed, or for a silence. Closing with
// unread bytes would reset the connection and could take our last words with it.
func (l *link) farewell() {
	select {
	case <-l.drain:
	default:
		close(l.drain)
	}
	if c, ok := l.conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite() // a broken connection needs no farewell
	}
	t := time.NewTimer(l.silence)
	defer t.Stop()
	select {
	case <-l.ended:
	case <-t.C:
	}
}

// close ends the connection and waits for the goroutines.
func (l *link) close() {
	select {
	case <-l.drain:
	default:
		close(l.drain)
	}
	close(l.closed)
	_ = l.conn.Close() // nothing useful can be done about it
	l.wg.Wait()
}
