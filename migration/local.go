package migration

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"godwit/migration/wire"
)

// A local hand-over: both ends live on one host and the file that is guest memory
// changes hands. What a migration copies is simply there.
//
//	source                          control connection            destination
//	configure   CONFIG, LAYOUT, MEMFD with the file --------------> Builder maps it for reading
//	            <------------------------------------------ BUILT
//	pause       Pause
//	state       ... and so on, as always; Run makes it writable
//
// The two processes share the memory from MEMFD on. Who may write it is who may
// run the guest: the source until GO, nobody from its first byte on until the
// destination's Run.

var errNotUnix = errors.New("it needs a unix socket, since only that carries files; use unix:PATH at both ends")

// checkLocal refuses what has no meaning where nothing is copied, beside what
// checkUnused does.
func checkLocal(o *SendOptions) error {
	switch {
	case !o.Local:
		return nil
	case o.Mode != PreCopy:
		return o.useless(fmt.Sprintf("mode %q", o.Mode))
	case o.Streams > 1:
		return o.useless(fmt.Sprintf("%d streams", o.Streams))
	}
	return nil
}

// giver is a connection that can carry a file to the other side: *net.UnixConn.
type giver interface {
	WriteMsgUnix(b, oob []byte, addr *net.UnixAddr) (n, oobn int, err error)
}

// openMemory gets the file, before anything else is begun.
func (e *engine) openMemory() error {
	if !e.o.Local {
		return nil
	}
	f, err := e.s.src.(LocalSource).MemoryFile() // NewSession has looked
	if err != nil {
		return fmt.Errorf("%w: %w", ErrLocal, err)
	}
	e.gift = f
	return nil
}

// canGive says whether conn will carry the file.
func (e *engine) canGive(conn net.Conn) error {
	if _, ok := conn.(giver); e.o.Local && !ok {
		return fmt.Errorf("%w over %s: %w", ErrLocal, conn.RemoteAddr().Network(), errNotUnix)
	}
	return nil
}

// giveMemory sends the file with a MEMFD.
func (e *engine) giveMemory() error {
	if !e.o.Local {
		return nil
	}
	e.rep.Pages.Skipped = e.mem.pages
	defer e.dropMemory()
	return e.link.sendFile(wire.TypeMemfd, e.gift)
}

// dropMemory closes our descriptor of the file; the one under way is the
// kernel's.
func (e *engine) dropMemory() {
	if e.gift != nil {
		_ = e.gift.Close() // it was only for passing on
		e.gift = nil
	}
}

// sendFile sends a frame without a body, and f with its first byte. Only on a
// connection that is a giver.
func (l *link) sendFile(t wire.Type, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return fmt.Errorf("send %s: %w", t, err)
	}
	_, err = l.sendBy(func() error { return nil }, func() error {
		frame := l.w.Append(nil, t, 0, nil, 0)
		var n int
		var sendErr error
		err := raw.Control(func(fd uintptr) {
			n, _, sendErr = l.conn.(giver).WriteMsgUnix(frame, unix.UnixRights(int(fd)), nil)
		})
		if err = errors.Join(err, sendErr); err == nil && n < len(frame) {
			_, err = l.conn.Write(frame[n:]) // the file has left with what came before
		}
		if err != nil {
			return fmt.Errorf("send %s: %w", t, err)
		}
		return nil
	})
	return err
}

// receivesFiles is a connection that files can come on: *net.UnixConn.
type receivesFiles interface {
	net.Conn
	CloseWrite() error
	ReadMsgUnix(b, oob []byte) (n, oobn, flags int, addr *net.UnixAddr, err error)
}

// maxFiles is how many descriptors one read makes room for. The kernel closes
// what does not fit, so a sender of hundreds costs us two.
const maxFiles = 2

// taker is a control connection that files may come on: at most one, and only
// once it was said to expect it. All others are closed, and the Read that brought
// them fails. A file that nobody takes is closed with the connection.
//
// A descriptor arrives only with the bytes that it was sent with, and only to a
// reader that makes room for it: so every Read does, from the first on. The
// kernel drops what comes on other connections, which are read plainly.
type taker struct {
	receivesFiles
	oob []byte // room for maxFiles descriptors

	mu     sync.Mutex // guards what follows
	wanted bool       // one may come
	file   *os.File   // it has come
	closed bool
}

// takeFiles makes a taker of conn where it is a unix socket.
func takeFiles(conn net.Conn) (net.Conn, *taker) {
	c, ok := conn.(receivesFiles)
	if !ok {
		return conn, nil
	}
	t := &taker{receivesFiles: c, oob: make([]byte, unix.CmsgSpace(maxFiles*4))}
	return t, t
}

// Read implements net.Conn.
func (t *taker) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil // ReadMsgUnix would take a byte, which it needs to get a file
	}
	n, oobn, flags, _, err := t.ReadMsgUnix(p, t.oob)
	if err != nil {
		return max(n, 0), err // n is -1 where the call itself failed
	}
	if oobn > 0 || flags&unix.MSG_CTRUNC != 0 {
		if err := t.keep(t.oob[:oobn], flags&unix.MSG_CTRUNC != 0); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// keep takes the file that came, or closes all that came and says why.
func (t *taker) keep(oob []byte, more bool) error {
	fds, err := parseRights(oob)
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case err != nil:
		err = fmt.Errorf("%w: %w", wire.ErrFormat, err)
	case more || len(fds) > 1:
		err = fmt.Errorf("%w: several files at once, where one at most may come", wire.ErrFormat)
	case len(fds) == 0:
		return nil
	case t.closed:
		err = net.ErrClosed
	case !t.wanted:
		err = fmt.Errorf("%w: a file where none may come", wire.ErrFormat)
	}
	if err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd) // a stranger's, for no use
		}
		return err
	}
	t.wanted, t.file = false, os.NewFile(uintptr(fds[0]), "guest memory")
	return nil
}

// parseRights lists the descriptors in a control message. They are ours from
// then on, those before an error too.
func parseRights(oob []byte) (fds []int, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	for i := range msgs {
		got, e := unix.ParseUnixRights(&msgs[i])
		if e != nil {
			err = e // another kind of message, which nobody asked the kernel for
		}
		fds = append(fds, got...)
	}
	return fds, err
}

// expect lets one file come.
func (t *taker) expect() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wanted = true
}

// take gives the file that came, the caller's from then on, or nil.
func (t *taker) take() *os.File {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := t.file
	t.wanted, t.file = false, nil
	return f
}

// Close implements net.Conn.
func (t *taker) Close() error {
	err := t.receivesFiles.Close()
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	if f := t.take(); f != nil {
		_ = f.Close() // nobody wanted it
	}
	return err
}

// local says whether this session is a local hand-over.
func (r *receiver) local() bool { return r.hello.Features&wire.FeatureLocal != 0 }

// acceptLocal refuses a local hand-over that cannot be.
func (r *receiver) acceptLocal(h *wire.Hello) error {
	switch {
	case h.Features&wire.FeatureLocal == 0:
		return nil
	case r.taker == nil:
		return fmt.Errorf("%w: %w", ErrLocal, errNotUnix)
	case h.Streams != 1 || h.Codec != 0:
		return fmt.Errorf("%w with %d streams and codec %d; it has neither", ErrLocal, h.Streams, h.Codec)
	}
	return nil
}

// expectMemory opens the connection for the file, before our HELLO asks for it.
func (r *receiver) expectMemory() {
	if r.local() {
		r.taker.expect()
	}
}

// takeMemory waits for MEMFD and gives what came with it.
func (r *receiver) takeMemory() (*os.File, error) {
	if _, err := r.expect(wire.TypeMemfd); err != nil {
		return nil, err
	}
	f := r.taker.take()
	if f == nil {
		return nil, fmt.Errorf("%w: %s without a file", wire.ErrFormat, wire.TypeMemfd)
	}
	return f, nil
}
