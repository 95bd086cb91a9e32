package vsock

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"godwit/virtio/internal/hostpoll"
)

// How the two directions of a connection end: virtio 1.2, 5.10.6.5.
//
// A unix socket has one end for its reader, and no error before it: the kernel
// makes one only where the reader's own bytes were left unread. So what was
// taken from the guest must be with the kernel before the socket is closed. Then
// the reader has it, however late it comes, and this process may be gone.

// What the kernel keeps of a connection for the host's reader, as a value for
// SO_SNDBUF: the kernel doubles it, and counts its own overhead too. Those who
// may not pass net.core.wmem_max get that; keepsLast is what it is by default.
// keepsLast is larger by more than bufAlloc with overhead, so that the kernel
// takes at an end all that a connection can have left.
const (
	keepsOpen = 104 << 10
	keepsLast = 208 << 10
)

func (c *conn) kernelKeeps(n int) {
	if unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, n) != nil {
		// Less than n is not an error, and no harm: the rest waits for the reader.
		_ = unix.SetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n)
	}
}

// flush writes what the host did not take. mu is held.
func (d *Device) flush(c *conn) {
	for c.pending() > 0 {
		n, err := unix.Write(c.fd, c.buf[c.off:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN):
			c.watch.Arm(hostpoll.Out)
			return
		case err != nil:
			d.unheard(c)
			return
		}
		c.off += n
		c.moved(n)
	}
	c.buf, c.off = c.buf[:0], 0
	d.finish(c)
}

// shutdown is the guest's word that a direction ends.
func (d *Device) shutdown(c *conn, flags uint32) {
	if flags&shutReceive != 0 && !c.guestDeaf {
		c.guestDeaf = true
		d.refuse(c)
	}
	c.guestDone = c.guestDone || flags&shutSend != 0
	switch {
	case c.guestDone && c.guestDeaf:
		d.end(c, true) // the guest waits for a reset
		return
	case c.guestDone:
		c.kernelKeeps(d.keepsLast)
		d.flush(c)
	}
	if c.mute() {
		d.leave(c)
	}
}

// refuse lets the host's writers hear that the guest takes no more. One that polls
// for room learns it only when there is some, so what is in the socket is dropped.
// It is bounded by the socket: nothing more comes in. mu is held.
func (d *Device) refuse(c *conn) {
	_ = unix.Shutdown(c.fd, unix.SHUT_RD)
	var b [32 << 10]byte
	for {
		n, err := unix.Read(c.fd, b[:])
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil || n == 0:
			return
		}
		d.stats.bytesUnread.Add(uint64(n))
	}
}

// finish goes on where the host has taken all. mu is held.
func (d *Device) finish(c *conn) {
	switch {
	case c.pending() > 0, c.phase == closed:
	case c.phase == draining:
		d.close(c)
	case !c.guestDone:
	case c.hostDone && c.shut == 0:
		d.end(c, true) // both are done: the guest waits for a reset
	default:
		_ = unix.Shutdown(c.fd, unix.SHUT_WR) // a host that is gone needs none
	}
}

// unheard drops what the guest sent: nobody reads it any more. What the host
// sent before is still the guest's. mu is held.
func (d *Device) unheard(c *conn) {
	lost := c.pending() - c.own
	d.stats.bytesLost.Add(uint64(lost))
	c.buf, c.off, c.own = nil, 0, 0
	if c.over() {
		d.finish(c)
		return
	}
	c.hostDeaf = true
	c.free(lost)
	c.shut |= shutReceive
	if c.mute() {
		d.leave(c)
	} else {
		c.readable = true
	}
	d.todo.push(c)
	d.kick(rxQueue)
}

// leave looks whether a host that has no more to say is gone altogether: then
// the guest is to answer with a reset. A host that still listens is watched. mu
// is held.
func (d *Device) leave(c *conn) {
	switch {
	case c.over():
	case c.hungUp():
		c.shut = shutSend | shutReceive
		c.hurry()
		d.todo.push(c)
		d.kick(rxQueue)
	default:
		c.watch.Arm(hostpoll.Gone)
	}
}

// hungUp says whether the host's socket is gone for both directions.
func (c *conn) hungUp() bool {
	p := []unix.PollFd{{Fd: int32(c.fd)}}
	n, err := unix.Poll(p, 0)
	return err == nil && n == 1 && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
}

const (
	drainLook  = 20 * time.Millisecond
	drainLimit = time.Minute
)

// drain waits until the host's readers have what the guest sent, where the
// kernel has not taken it from us: for each as long as it reads, within patience,
// and for all at most drainLimit. What is left then is lost, and counted.
func (d *Device) drain() {
	seen := map[*conn]*progress{}
	for began := time.Now(); ; time.Sleep(drainLook) {
		d.mu.Lock()
		for c := range d.conns {
			if seen[c] == nil {
				seen[c] = new(progress)
			}
			if now := time.Now(); seen[c].late(c.unread(), now, d.patience) || now.Sub(began) > drainLimit {
				d.unheard(c)
			}
		}
		n := len(d.conns)
		d.mu.Unlock()
		if n == 0 {
			return
		}
	}
}

// progress is a reader's, as far as it was seen.
type progress struct {
	left int
	at   time.Time
}

// late says whether a reader that has left before it has not read for longer
// than patience.
func (p *progress) late(left int, now time.Time, patience time.Duration) bool {
	if p.at.IsZero() || left != p.left {
		*p = progress{left, now}
	}
	return now.Sub(p.at) > patience
}

// unread is how much the host's reader has before it, in us and in the kernel
// (there with overhead). It changes when the reader reads.
func (c *conn) unread() int {
	n, err := unix.IoctlGetInt(c.fd, unix.TIOCOUTQ)
	if err != nil {
		n = 0
	}
	return n + c.pending()
}
