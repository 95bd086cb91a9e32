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
	closed   bool
	stall    stall
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
	h.listener = l
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

// accept takes the clients that wait.
func (h *host) accept(raw syscall.RawConn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.listener == nil {
		return
	}
	for {
		fd, ok := h.knock.Accept(raw)
		if !ok {
			return
		}
		h.makeRoom()
		if h.fd >= 0 || h.take(fd, false) != nil {
			h.port.stats.refused.Add(1)
			_ = unix.Close(fd) // turned away
		}
	}
}

// makeRoom sends a client away that has hung up, and whose end the guest has not
// seen because it does not read.
func (h *host) makeRoom() {
	if h.fd < 0 {
		return
	}
	p := []unix.PollFd{{Fd: int32(h.fd)}}
	if n, err := unix.Poll(p, 0); err == nil && n == 1 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0 {
		h.drop()
	}
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
	h.fd, h.watch = -1, nil
	h.stall.forget()
	h.port.setHostOpen(false)
}

// read gives input, or an error where there is none. Once there is, or someone
// connects, the port's workers are kicked.
func (h *host) read(v *hostpoll.Vec) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fd < 0 || h.sink {
		return 0, errNobody
	}
	n, err := v.Read(h.fd)
	switch {
	case errors.Is(err, unix.EAGAIN):
		h.watch.Arm(hostpoll.In)
		return 0, err
	case err == nil && n == 0:
		err = errEnd
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
	case h.fd < 0:
		return 0, errNobody
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
		return n, nil
	case err == nil:
		err = errEnd
	}
	h.port.failed(err)
	if !h.sink {
		h.drop() // a file may have room again later
	}
	return 0, fmt.Errorf("write: %w", err)
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
