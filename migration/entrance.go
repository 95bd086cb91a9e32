package migration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"time"

	"godwit/migration/wire"
)

// maxVisitors is how many connections may be on their way in at once: between
// accept and a HELLO that finds its place. With TLS the handshake is part of that.
const maxVisitors = 128

// errBusy refuses a second source.
var errBusy = fmt.Errorf("%w: this destination is busy with another migration; try again when that has ended", errRefused)

// errNoSession refuses a data stream that comes before any session.
var errNoSession = fmt.Errorf("%w: a data stream of a session that does not exist; start the migration anew", errRefused)

// visitor is a connection that has not found its place yet. Whoever gives it one
// sets via and owns the connection from then on.
type visitor struct {
	conn  net.Conn // plain, or the taker of files around it
	plain net.Conn // as it was accepted
	taker *taker
	host  string // where it comes from
	via   io.Reader
	in    *wire.Reader // buffers via
	out   *wire.Writer
	bytes uint64 // read so far
	hello *wire.Hello
}

func newVisitor(plain net.Conn) *visitor {
	v := &visitor{plain: plain}
	v.conn, v.taker = takeFiles(plain)
	v.via, v.in, v.out = v.conn, wire.NewReader(v), wire.NewWriter(plain)
	if a, ok := plain.RemoteAddr().(*net.TCPAddr); ok {
		v.host = a.IP.String()
	}
	return v
}

// Read implements io.Reader for in.
func (v *visitor) Read(p []byte) (int, error) {
	n, err := v.via.Read(p)
	v.bytes += uint64(n)
	return n, err
}

// refuse tells the peer why it is not served.
func (v *visitor) refuse(err error, patience time.Duration) {
	_ = v.plain.SetWriteDeadline(time.Now().Add(patience))            // Open fails if this did
	_ = v.out.Open(wire.TypeError, wire.AppendText(nil, err.Error())) // err is the failure to report
}

// entrance lets connections in during one Receive. Each says HELLO in a goroutine
// of its own, within a short time, so that a silent stranger holds nobody up. The
// first source that does so in full begins the session; its data streams join it
// however many strangers there are; a second source hears at once that the
// destination is busy.
//
//	accept -> visitor -> HELLO -+- control, first  -> Receive
//	          (TLS)             +- control, later  -> "busy"
//	                            +- data, the nonce -> receiver.join
//	                            +- anything else   -> turned away
//
// When there are too many visitors, the oldest of the host that has most of them
// gives way: a flood from one address turns itself away.
type entrance struct {
	o      *ReceiveOptions
	ctx    context.Context
	cancel context.CancelFunc
	limit  time.Duration // for HELLO
	first  chan *visitor // the source that begins the session
	deaf   chan error    // accepting has failed
	wg     sync.WaitGroup

	mu       sync.Mutex // guards what follows
	visitors []*visitor // oldest first
	taken    bool       // a source has come
	closed   bool
	session  *receiver // that data streams join
}

func openEntrance(ctx context.Context, accept Acceptor, o *ReceiveOptions) *entrance {
	e := &entrance{o: o, limit: min(o.Silence, DefaultSilence), first: make(chan *visitor, 1), deaf: make(chan error, 1)}
	e.ctx, e.cancel = context.WithCancel(ctx)
	e.wg.Go(func() { e.accept(accept) })
	return e
}

// close turns away whoever is still on the way in, and waits for the goroutines.
func (e *entrance) close() {
	e.cancel()
	e.mu.Lock()
	e.closed = true
	for _, v := range e.visitors {
		_ = v.plain.Close() // wakes its goroutine
	}
	e.mu.Unlock()
	e.wg.Wait()
	select {
	case v := <-e.first:
		_ = v.conn.Close() // nobody has taken it
	default:
	}
}

func (e *entrance) accept(accept Acceptor) {
	for {
		conn, err := accept(e.ctx)
		if e.ctx.Err() != nil {
			if err == nil {
				_ = conn.Close() // came too late
			}
			return
		}
		if err != nil {
			e.deaf <- err
			e.mu.Lock()
			r := e.session
			e.mu.Unlock()
			if r != nil {
				r.cannotAccept(err)
			}
			return
		}
		v := newVisitor(conn)
		e.admit(v)
		e.wg.Go(func() { e.hear(v) })
	}
}

// admit gives a visitor room, at another's cost if there is none.
func (e *entrance) admit(v *visitor) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.visitors) == maxVisitors {
		i := e.leastWelcome()
		_ = e.visitors[i].plain.Close() // wakes its goroutine
		e.visitors = slices.Delete(e.visitors, i, i+1)
	}
	e.visitors = append(e.visitors, v)
	if e.closed {
		_ = v.plain.Close() // it came while the entrance closed
	}
}

// leastWelcome is the oldest visitor of the host that has most of them. mu is held.
func (e *entrance) leastWelcome() int {
	count, most := map[string]int{}, ""
	for _, v := range e.visitors {
		if count[v.host]++; count[v.host] > count[most] {
			most = v.host
		}
	}
	return slices.IndexFunc(e.visitors, func(v *visitor) bool { return v.host == most })
}

// leave takes a visitor off the list. It says false for one that had to give way.
func (e *entrance) leave(v *visitor) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	i := slices.Index(e.visitors, v)
	if i < 0 {
		return false
	}
	e.visitors = slices.Delete(e.visitors, i, i+1)
	return !e.closed
}

// hear finds out who a visitor is.
func (e *entrance) hear(v *visitor) {
	err := e.getHello(v)
	if err == nil {
		var placed bool
		if placed, err = e.place(v); placed {
			return
		}
	}
	if err != nil {
		e.turnedAway(v, err)
		hangUp(v.conn, e.limit)
	}
	e.leave(v)
	_ = v.conn.Close() // it is nobody's
}

// turnedAway tells the operator.
func (e *entrance) turnedAway(v *visitor, err error) {
	if e.ctx.Err() != nil && !errors.Is(err, errRefused) {
		return // we have gone, not it
	}
	if !errors.Is(err, wire.ErrNotGodwit) && !errors.Is(err, wire.ErrFormat) && !errors.Is(err, errRefused) {
		err = connError(v.plain.RemoteAddr().String(), e.limit, err)
	} else {
		err = fmt.Errorf("%s: %w", v.plain.RemoteAddr(), err)
	}
	err = fmt.Errorf("%w: %w", ErrHandshake, err)
	e.o.Log.Warn("turned a connection away", "err", err)
	e.o.OnTurnedAway(err)
}

// getHello reads a HELLO within the limit.
func (e *entrance) getHello(v *visitor) (err error) {
	ctx, cancel := context.WithTimeoutCause(e.ctx, e.limit, fmt.Errorf("%w: no HELLO within %v", ErrSilence, e.limit))
	defer cancel()
	unhook := context.AfterFunc(ctx, func() { _ = v.plain.Close() }) // wakes a blocked HELLO
	v.hello, err = readHello(v.in)
	if !unhook() {
		err = context.Cause(ctx)
	}
	return err
}

// place gives a visitor its place. One that is not placed has been told why, if
// there is an error.
func (e *entrance) place(v *visitor) (placed bool, err error) {
	e.mu.Lock()
	r, control := e.session, v.hello.Role == wire.RoleControl
	begins := control && !e.taken
	if begins {
		e.taken = true
	}
	e.mu.Unlock()
	switch {
	case begins:
		if !e.leave(v) {
			e.mu.Lock()
			e.taken = false // it had to give way
			e.mu.Unlock()
			return false, nil
		}
		e.first <- v
		return true, nil
	case control:
		err = errBusy
	case r == nil:
		err = errNoSession
	default:
		return r.join(v, e)
	}
	v.refuse(err, e.limit)
	return false, err
}

// wait gives the source that begins a session.
func (e *entrance) wait() (*visitor, error) {
	select {
	case v := <-e.first:
		return v, nil
	case err := <-e.deaf:
		return nil, err
	case <-e.ctx.Done():
		return nil, context.Cause(e.ctx)
	}
}

// admitTo lets data streams join r from now on.
func (e *entrance) admitTo(r *receiver) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.session = r
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
