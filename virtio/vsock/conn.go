package vsock

import (
	"time"

	"golang.org/x/sys/unix"

	"godwit/virtio/internal/hostpoll"
)

// key is how both sides know a connection.
type key struct{ host, guest uint32 } // ports

// reset is an RST for the guest: from cid and key.host to key.guest.
type reset struct {
	cid uint64
	key key
}

// phase of a connection.
//
//	host:  greeting ──CONNECT──> asking ──RESPONSE──> open ──end──> draining ──> closed
//	guest:                           REQUEST ───────> open
//
// An end closes what has nothing left for the host at once.
type phase int

const (
	greeting phase = iota // its first line has not come
	asking                // the guest has not answered
	open
	draining // the guest knows it no more, the host has not taken all
	closed
)

// conn is a connection. Device.mu guards it.
type conn struct {
	key
	dev   *Device
	phase phase
	fd    int // the host's unix socket; -1 when closed
	watch *hostpoll.Watch
	timer *time.Timer // ends it when the other side takes too long, or nil
	line  []byte      // while greeting

	// Packets for the guest that wait for a buffer.
	request, response, update, ask bool
	shut                           uint32 // flags of a shutdown

	// Towards the guest: virtio 1.2, 5.10.6.3.
	readable           bool // the host's socket is worth a read
	hostDone           bool // it has no more
	guestDeaf          bool // the guest takes no more
	peerAlloc, peerFwd uint32
	sent               uint32
	stalled            bool // out of credit, with something to send
	asked              bool // credit was asked for, and no packet has come since

	// Towards the host.
	buf       []byte // not taken by the host; from off on
	off       int
	own       int // of them ours, not the guest's: the answer to CONNECT
	received  uint32
	forwarded uint32
	told      uint32 // forwarded, as the guest knows it
	guestDone bool   // the guest sends no more
	hostDeaf  bool   // the host takes no more

	queued     bool // in Device.todo, between:
	prev, next *conn
}

// over says that the guest knows the connection no more.
func (c *conn) over() bool { return c.phase >= draining }

// mute says that nothing more is to be read from the host's socket.
func (c *conn) mute() bool { return c.hostDone || c.guestDeaf }

// credit is how many bytes the guest's buffer has room for. What makes no sense
// is no room.
func (c *conn) credit() uint32 {
	flight := c.sent - c.peerFwd
	if flight > c.peerAlloc {
		return 0
	}
	return c.peerAlloc - flight
}

// pending is the number of bytes that the host has not taken.
func (c *conn) pending() int { return len(c.buf) - c.off }

// keep adds to what the host has not taken. The credit bounds it.
func (c *conn) keep(p []byte) {
	if c.buf == nil {
		c.buf = make([]byte, 0, bufAlloc+maxLine)
	}
	if c.off > 0 && len(c.buf)+len(p) > cap(c.buf) {
		c.buf = c.buf[:copy(c.buf, c.buf[c.off:])]
		c.off = 0
	}
	c.buf = append(c.buf, p...)
}

// moved notes that the host has taken n bytes, and tells the guest when the room
// that it does not know of is half of all.
func (c *conn) moved(n int) {
	ours := min(n, c.own)
	c.own -= ours
	c.dev.stats.bytesToHost.Add(uint64(n - ours))
	c.free(n - ours)
}

// free gives the guest the room of n bytes back.
func (c *conn) free(n int) {
	c.forwarded += uint32(n)
	if c.forwarded-c.told >= bufAlloc/2 {
		c.update = true
		c.dev.todo.push(c)
		c.dev.kick(rxQueue)
	}
}

// add makes a connection of a descriptor, which it owns from then on: also when
// it fails, for want of room or memory. mu is held.
func (d *Device) add(fd int, p phase) *conn {
	c := &conn{dev: d, phase: p, fd: fd}
	var err error
	if len(d.conns) >= maxConns {
		d.stats.overLimit.Add(1)
		err = unix.EMFILE
	} else {
		c.watch, err = d.poll.Add(fd, func(uint32) { c.ready() })
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil
	}
	c.kernelKeeps(keepsOpen)
	d.conns[c] = struct{}{}
	d.stats.open.Add(1)
	return c
}

// hurry ends the connection unless it is where it must be within patience. mu is
// held.
func (c *conn) hurry() {
	if c.timer != nil {
		c.timer.Stop()
	}
	c.timer = time.AfterFunc(c.dev.patience, func() {
		c.dev.mu.Lock()
		defer c.dev.mu.Unlock()
		switch {
		case c.over():
		case c.dev.paused && c.phase != greeting:
			c.hurry() // neither the guest nor a worker of ours could do its part
		default:
			c.dev.stats.timeouts.Add(1)
			c.dev.end(c, c.phase != greeting)
		}
	})
}

// calm takes hurry back. mu is held.
func (c *conn) calm() {
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
}

// end makes the guest's side forget a connection, and with tell sends it an RST.
// The host's side is closed when it has all that the guest sent. mu is held.
func (d *Device) end(c *conn, tell bool) {
	if c.over() {
		return
	}
	c.calm()
	d.todo.remove(c)
	d.stats.open.Add(-1)
	if d.table[c.key] == c {
		delete(d.table, c.key)
	}
	if tell && !c.request { // it has not heard of one that was still to be asked for
		d.reset(hostCID, c.key)
	}
	c.phase = draining
	d.stats.draining.Add(1)
	if c.pending() > 0 {
		c.kernelKeeps(d.keepsLast)
	}
	d.flush(c)
}

// close forgets a connection that has ended. mu is held.
func (d *Device) close(c *conn) {
	c.phase = closed
	d.stats.draining.Add(-1)
	c.watch.Remove()
	// What the host sent and the guest did not take is still in the socket: then
	// the kernel tells the host's reader of a reset, behind the last byte.
	_ = unix.Close(c.fd)
	c.fd, c.buf = -1, nil
	delete(d.conns, c)
}

// reset tells the guest that there is no such connection. mu is held. Whoever
// answers a packet has seen that there is room; ends of connections that the
// guest did not ask for are no more than those.
func (d *Device) reset(cid uint64, k key) {
	if len(d.resets) == cap(d.resets) {
		d.stats.overLimit.Add(1)
		return
	}
	d.resets = append(d.resets, reset{cid, k})
	d.kick(rxQueue)
}

// ready is called by the poller: something may be done with the host's socket.
func (c *conn) ready() {
	d := c.dev
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case c.phase == closed:
	case c.phase == greeting:
		d.greet(c)
	case c.phase == draining:
		d.flush(c)
	case c.mute():
		d.flush(c)
		d.leave(c)
	default:
		c.readable = true
		d.todo.push(c)
		d.kick(rxQueue)
		d.flush(c)
	}
}

// fifo holds connections, each once.
type fifo struct{ first, last *conn }

func (f *fifo) push(c *conn) {
	if c.queued || c.over() {
		return
	}
	c.queued = true
	if c.prev = f.last; c.prev == nil {
		f.first = c
	} else {
		c.prev.next = c
	}
	f.last = c
}

// pop gives the first, or nil.
func (f *fifo) pop() *conn {
	c := f.first
	f.remove(c)
	return c
}

// remove takes c out, if it is in.
func (f *fifo) remove(c *conn) {
	if c == nil || !c.queued {
		return
	}
	if c.prev == nil {
		f.first = c.next
	} else {
		c.prev.next = c.next
	}
	if c.next == nil {
		f.last = c.prev
	} else {
		c.next.prev = c.prev
	}
	c.queued, c.prev, c.next = false, nil, nil
}
