package console

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"godwit/virtio/internal/hostpoll"
)

var (
	// errNobody says that nobody is behind a port.
	errNobody = errors.New("nobody is connected")
	errEnd    = errors.New("the other side has ended")
)

// host is what stands behind a port: see doc.go. Its descriptors never block,
// but for a regular file, whose writes take what a disk takes.
type host struct {
	port *port

	mu       sync.Mutex
	listener *net.UnixListener // nil where nobody can connect
	knock    *hostpoll.Watch
	fd       int             // the client's, or -1
	watch    *hostpoll.Watch // nil for a regular file
	sink     bool            // there is no input from it
	quiet    bool            // it has shut its sending side, and may still read
	deaf     bool            // it has shut its receiving side, and may still send
	closed   bool
	stall    stall
	left     leftInput

	// A channel's output after a move is kept until a client has taken some.
	awaits    bool
	reachable bool // clients can connect, or could before the listener was released
}

func (h *host) init(p *port) { h.port, h.fd = p, -1 }

// Attach puts an open descriptor behind a port, for good: a connected socket,
// or with sink a file that only takes output. The device owns it from now on,
// also when that fails, and closes it when its other side ends.
func (d *Device) Attach(port int, fd int, sink bool) error {
	h := &d.ports[port].host
	h.mu.Lock()
	defer h.mu.Unlock()
	err := unix.SetNonblock(fd, true)
	if err == nil {
		err = h.take(fd, sink)
	}
	if err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("virtio-console: port %d: %w", port, err)
	}
	return nil
}

// Listen lets clients connect to a port, one at a time; others are turned away.
// The device owns l from now on, also when that fails.
func (d *Device) Listen(port int, l *net.UnixListener) error {
	h := &d.ports[port].host
	h.mu.Lock()
	defer h.mu.Unlock()
	raw, err := l.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			h.knock, err = d.poll.Add(int(fd), func(uint32) { h.accept(raw) })
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("virtio-console: port %d: %w", port, err), l.Close())
	}
	h.listener, h.reachable = l, true
	h.knock.Arm(hostpoll.In)
	return nil
}

// StopListening closes the sockets where clients connect, and removes them.
// Clients that are there stay.
func (d *Device) StopListening() error {
	var errs []error
	for _, p := range d.ports {
		p.host.mu.Lock()
		errs = append(errs, p.host.stopListening())
		p.host.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (h *host) stopListening() error {
	if h.listener == nil {
		return nil
	}
	h.knock.Remove()
	err := h.listener.Close()
	h.listener, h.knock = nil, nil
	return err
}

// accept takes some of the clients that wait. The poller calls it again for more.
func (h *host) accept(raw syscall.RawConn) {
	for h.acceptOne(raw) {
	}
}

// acceptOne holds mu for one client only. It reports whether there may be more.
func (h *host) acceptOne(raw syscall.RawConn) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listener == nil {
		return false
	}
	fd, ok := h.knock.Accept(raw)
	if !ok {
		return false
	}
	h.makeRoom()
	if h.fd >= 0 || h.take(fd, false) != nil {
		h.port.stats.refused.Add(1)
		_ = unix.Close(fd) // turned away
	}
	return true
}

// makeRoom lets a client go that has hung up, and whose end the guest has not
// seen because it does not read. mu is held.
func (h *host) makeRoom() {
	if h.hungUp() {
		h.leave()
	}
}

// hungUp says whether the client neither sends nor takes anything any more. mu is
// held.
func (h *host) hungUp() bool {
	if h.fd < 0 || h.sink {
		return false
	}
	p := [1]unix.PollFd{{Fd: int32(h.fd)}}
	n, err := unix.Poll(p[:], 0)
	return err == nil && n == 1 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

// leave is drop for a client that has hung up: what it has sent is the guest's.
// mu is held.
func (h *host) leave() {
	h.port.stats.lostInput.Add(h.left.fill(h.fd))
	h.drop()
}

// take makes fd what is behind the port. mu is held.
func (h *host) take(fd int, sink bool) error {
	if h.closed {
		return unix.EBADF
	}
	h.drop()
	w, err := h.port.dev.poll.Add(fd, func(events uint32) {
		h.polled(events)
		h.port.wake()
	})
	if err != nil && !(sink && errors.Is(err, unix.EPERM)) {
		return err
	}
	h.fd, h.watch, h.sink = fd, w, sink
	h.port.stats.connects.Add(1)
	h.port.setHostOpen(true)
	return nil
}

// drop forgets what is behind the port. mu is held.
func (h *host) drop() {
	if h.fd < 0 {
		return
	}
	if h.watch != nil {
		h.watch.Remove()
	}
	_ = unix.Close(h.fd) // nothing more is to be said
	h.fd, h.watch, h.quiet, h.deaf = -1, nil, false, false
	h.stall.forget()
	h.port.setHostOpen(false)
}

// read gives input, or an error where there is none: v is of bufs. Once there is,
// or someone connects, the port's workers are kicked.
func (h *host) read(v *hostpoll.Vec, bufs [][]byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n := h.left.take(bufs); n > 0 {
		if len(h.left.buf) == 0 {
			h.port.tell() // that those who have left are gone
		}
		return n, nil
	}
	if h.fd < 0 || h.sink || h.quiet {
		return 0, errNobody
	}
	n, err := v.Read(h.fd)
	switch {
	case errors.Is(err, unix.EAGAIN):
		h.watch.Arm(hostpoll.In)
		return 0, err
	case err == nil && n == 0:
		err = errEnd
		if !h.hungUp() {
			h.quiet = true // it may wait for the answer
			h.watch.Arm(hostpoll.Gone)
			return 0, err
		}
	case err == nil:
		return n, nil
	}
	h.drop()
	return 0, err
}

// write takes output. unix.EAGAIN says that the workers are kicked once there is
// room, errStalled that it is lost because a console's does not wait for longer,
// any other error that nobody is there. left is how much of it there is.
func (h *host) write(v *hostpoll.Vec, left uint64) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	switch {
	case h.fd < 0 || h.deaf:
		return 0, h.nobody()
	case h.stall.givenUp:
		return h.lose(left)
	}
	h.confess()
	n, err := v.Write(h.fd)
	switch {
	case errors.Is(err, unix.EAGAIN) && h.watch != nil:
		h.watch.Arm(hostpoll.Out)
		if h.port.name == "" && h.late() {
			return h.lose(left)
		}
		return 0, unix.EAGAIN
	case err == nil && n > 0:
		h.stall.end()
		h.awaits = false
		return n, nil
	case err == nil:
		err = errEnd
	}
	h.port.failed(err)
	switch {
	case h.sink: // a file may have room again later
		return 0, fmt.Errorf("write: %w", err)
	case h.hungUp():
		h.leave()
	case errors.Is(err, unix.EPIPE):
		h.deaf = true
	default:
		h.drop()
	}
	return 0, h.nobody()
}

// nobody is what becomes of output that nobody is there to take. A channel's after
// a move waits: its client could not come along, and the guest had no news of that
// when it wrote. The ring bounds it, and the guest's driver sleeps meanwhile. mu is
// held.
func (h *host) nobody() error {
	if h.awaits && h.reachable && h.port.queues() {
		return unix.EAGAIN // take kicks
	}
	return errNobody
}

func (h *host) connected() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.fd >= 0
}

func (h *host) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.drop()
	_ = h.stopListening() // its path may be gone already
	h.closed = true
}

// queues says whether the guest's driver knows the port for a channel, and sleeps
// while its output waits. One without MULTIPORT spins.
func (p *port) queues() bool {
	p.dev.mu.Lock()
	defer p.dev.mu.Unlock()
	return p.name != "" && p.dev.multi
}

// tell makes the worker of the control queue look for news.
func (p *port) tell() {
	p.dev.mu.Lock()
	defer p.dev.mu.Unlock()
	if p.dev.multi {
		p.dev.kickLocked(controlRX)
	}
}

// setHostOpen tells guest and workers that somebody came or went.
func (p *port) setHostOpen(open bool) {
	d := p.dev
	d.mu.Lock()
	defer d.mu.Unlock()
	p.hostOpen = open
	if !open && p.guest.told {
		p.guest.bounce = true
	}
	if d.multi {
		d.kickLocked(controlRX)
	}
	p.wakeLocked()
}

// wake makes the port's workers try again.
func (p *port) wake() {
	p.dev.mu.Lock()
	defer p.dev.mu.Unlock()
	p.wakeLocked()
}

func (p *port) wakeLocked() {
	rx, tx := queues(p.index)
	p.dev.kickLocked(rx)
	p.dev.kickLocked(tx)
}
