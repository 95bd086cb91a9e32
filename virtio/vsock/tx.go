package vsock

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"godwit/virtio/internal/hostpoll"
	"godwit/virtio/queue"
)

// transmit serves the tx queue: packets of the guest.
func (d *Device) transmit(l *line) error {
	for !d.workers.Yield() {
		if !d.ready() {
			return nil // the rx queue kicks
		}
		c, err := l.Pop()
		if err != nil || c == nil {
			return err
		}
		d.handle(l, c)
		if err := l.Push(c, 0); err != nil {
			return err
		}
	}
	return nil
}

// ready says whether there is room for the answer to another packet
// (5.10.6.1.2).
func (d *Device) ready() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.resets) >= maxResets {
		if !d.blocked {
			d.blocked = true
			d.stats.resetWaits.Add(1)
		}
		return false
	}
	return true
}

// handle judges a packet and does what it says.
func (d *Device) handle(l *line, c *queue.Chain) {
	if !c.Take(l.head[:]) {
		d.stats.badPackets.Add(1)
		return
	}
	h := parseHeader(&l.head)
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.srcCID != d.cid {
		d.stats.badPackets.Add(1) // not this guest's to say
		return
	}
	k := key{host: h.dstPort, guest: h.srcPort}
	if h.dstCID != hostCID || h.kind != typeStream {
		d.stats.badPackets.Add(1)
		if h.op != opRST {
			d.reset(h.dstCID, k)
		}
		return
	}
	cn := d.table[k]
	if cn == nil {
		d.stranger(h, k)
		return
	}
	if cn.request {
		// The guest has not heard of this one: it means what had the ports before.
		if h.op != opRST {
			d.stats.unknown.Add(1)
			d.reset(hostCID, k)
		}
		return
	}
	// 5.10.6.3: every packet has it.
	cn.peerAlloc, cn.peerFwd, cn.asked = h.bufAlloc, h.fwdCnt, false
	if !d.told(cn, h, l, c) {
		d.stats.badPackets.Add(1)
		d.end(cn, true)
	}
	if cn.stalled && !cn.over() && cn.credit() > 0 {
		cn.stalled = false
		d.todo.push(cn)
		d.kick(rxQueue)
	}
}

// stranger is a packet that belongs to no connection: a request, or the guest's
// mistake (5.10.6.4.1). mu is held.
func (d *Device) stranger(h header, k key) {
	switch h.op {
	case opRST:
		return
	case opRequest:
		if c := d.dial(k); c != nil {
			c.peerAlloc, c.peerFwd = h.bufAlloc, h.fwdCnt
			c.response, c.readable = true, true
			d.stats.fromGuest.Add(1)
			d.todo.push(c)
			d.kick(rxQueue)
			return
		}
	default:
		d.stats.unknown.Add(1)
	}
	d.reset(hostCID, k)
}

// told takes a packet for a connection. It reports false for one that breaks the
// rules. mu is held.
func (d *Device) told(cn *conn, h header, l *line, c *queue.Chain) bool {
	switch h.op {
	case opResponse:
		if cn.phase != asking {
			return false
		}
		d.opened(cn)
	case opRST:
		d.stats.resetsSeen.Add(1)
		d.end(cn, false)
	case opShutdown:
		if cn.phase != open {
			return false
		}
		d.shutdown(cn, h.flags)
	case opRW:
		return d.write(cn, h, l, c)
	case opCreditUpdate:
	case opCreditRequest:
		cn.update = true
		d.todo.push(cn)
		d.kick(rxQueue)
	default:
		return false
	}
	return true
}

// opened tells a client that the guest has accepted.
func (d *Device) opened(cn *conn) {
	cn.phase, cn.readable = open, true
	cn.calm()
	d.stats.fromHost.Add(1)
	answer := fmt.Appendf(nil, "OK %d\n", cn.host)
	if n, _ := unix.Write(cn.fd, answer); n < len(answer) {
		rest := answer[max(n, 0):]
		cn.own = len(rest)
		cn.keep(rest)
		d.flush(cn) // or the client is gone
	}
	d.todo.push(cn)
	d.kick(rxQueue)
}

// write passes a packet's bytes on: straight to the host, and what it does not
// take into the connection's buffer.
func (d *Device) write(cn *conn, h header, l *line, c *queue.Chain) bool {
	have := queue.Len(c.Readable())
	switch {
	case cn.phase != open || cn.guestDone || int64(h.len) > have:
		return false
	case int64(cn.received-cn.forwarded)+int64(h.len) > bufAlloc:
		d.stats.overCredit.Add(1)
		return false
	}
	cn.received += h.len
	if cn.hostDeaf { // the guest has not heard of that yet
		d.stats.bytesLost.Add(uint64(h.len))
		cn.free(int(h.len))
		return true
	}
	left, done := int64(h.len), int64(0)
	if cn.pending() == 0 {
		for left > 0 {
			l.vec.Reset()
			l.vec.Append(c.Readable(), done, left)
			n, err := l.vec.Write(cn.fd)
			if errors.Is(err, unix.EAGAIN) {
				cn.watch.Arm(hostpoll.Out)
				d.stats.writeWaits.Add(1)
				break
			}
			if err != nil {
				d.stats.bytesLost.Add(uint64(left))
				cn.free(int(left))
				d.unheard(cn)
				return true
			}
			cn.moved(n)
			done += int64(n)
			left -= int64(n)
		}
	}
	for _, seg := range c.Readable() {
		if done >= int64(len(seg)) {
			done -= int64(len(seg))
			continue
		}
		seg = seg[done:]
		seg = seg[:min(int64(len(seg)), left)]
		cn.keep(seg)
		done, left = 0, left-int64(len(seg))
		if left == 0 {
			break
		}
	}
	return true
}
