package vsock

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"godwit/virtio/internal/hostpoll"
)

// maxLine is the longest first line of a client: "CONNECT 4294967295\n".
const maxLine = 19

// Listen lets the host's programs connect to the guest at l, and the guest to
// those that listen at path_PORT. The device owns l from now on, also when that
// fails.
func (d *Device) Listen(l *net.UnixListener, path string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	raw, err := l.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			var knock *hostpoll.Watch
			knock, err = d.poll.Add(int(fd), func(uint32) { d.accept(knock, raw) })
			d.knock = knock
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("virtio-vsock: %w", err), l.Close())
	}
	d.listener, d.path = l, path
	d.knock.Arm(hostpoll.In)
	return nil
}

// StopListening closes the socket where the host's programs connect, and removes
// it. Connections that are there stay.
func (d *Device) StopListening() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener == nil {
		return nil
	}
	d.knock.Remove()
	err := d.listener.Close()
	d.listener, d.knock = nil, nil
	return err
}

// accept takes the clients that wait. One too many is turned away at once. The
// lock is for one client at a time: the workers, Pause and Reset wait for no
// more, however many come.
func (d *Device) accept(knock *hostpoll.Watch, raw syscall.RawConn) {
	for {
		fd, ok := knock.Accept(raw)
		if !ok {
			return
		}
		d.welcome(fd)
	}
}

func (d *Device) welcome(fd int) {
	d.stats.clients.Add(1)
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.listener == nil {
		_ = unix.Close(fd) // StopListening came in between
		return
	}
	if c := d.add(fd, greeting); c != nil {
		c.hurry()
		d.greet(c)
	}
}

// greet reads a client's first line, and not a byte more: the rest is the
// guest's. mu is held.
func (d *Device) greet(c *conn) {
	var b [1]byte
	for {
		n, err := unix.Read(c.fd, b[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			c.watch.Arm(hostpoll.In)
			return
		case err != nil || n == 0:
			d.end(c, false)
			return
		}
		c.line = append(c.line, b[0])
		if b[0] == '\n' {
			break
		}
		if len(c.line) == maxLine {
			d.stats.badClients.Add(1)
			d.end(c, false)
			return
		}
	}
	port, ok := parseConnect(c.line)
	if !ok || d.kicks == nil {
		d.stats.badClients.Add(1)
		d.end(c, false)
		return
	}
	c.line = nil
	c.phase, c.key = asking, key{host: d.freePort(port), guest: port}
	d.table[c.key] = c
	c.request = true
	c.hurry()
	d.todo.push(c)
	d.kick(rxQueue)
}

// parseConnect reads "CONNECT <port>\n".
func parseConnect(line []byte) (port uint32, ok bool) {
	text, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte("CONNECT "))
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(string(text), 10, 32)
	return uint32(n), err == nil
}

// freePort gives a port of the host's that has no connection with the guest's.
// There are more ports than connections. mu is held.
func (d *Device) freePort(guest uint32) uint32 {
	for {
		p := d.nextPort
		if d.nextPort++; d.nextPort > lastPort {
			d.nextPort = firstPort
		}
		if d.table[key{p, guest}] == nil {
			return p
		}
	}
}

// dial connects a guest's connection with what listens on the host. mu is held;
// nothing here waits: a unix socket is connected at once or not at all.
func (d *Device) dial(k key) *conn {
	if d.path == "" {
		d.stats.refused.Add(1)
		return nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		d.stats.refused.Add(1)
		return nil
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: d.path + "_" + strconv.FormatUint(uint64(k.host), 10)}); err != nil {
		d.stats.refused.Add(1)
		_ = unix.Close(fd)
		return nil
	}
	c := d.add(fd, open)
	if c != nil {
		c.key = k
		d.table[k] = c
	}
	return c
}
