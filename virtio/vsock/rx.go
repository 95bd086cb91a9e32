package vsock

import (
	"errors"

	"golang.org/x/sys/unix"

	"godwit/virtio/internal/hostpoll"
	"godwit/virtio/queue"
)

// receive serves the rx queue: packets for the guest.
func (d *Device) receive(l *line) error {
	for !d.workers.Yield() && d.busy() {
		c, err := l.Pop()
		if err != nil || c == nil {
			return err
		}
		room := queue.Len(c.Writable())
		if room < headerSize {
			d.stats.badPackets.Add(1)
			if err := l.Push(c, 0); err != nil {
				return err
			}
			continue
		}
		n := d.fill(l, c, room)
		if n == 0 {
			l.Queue.PutBack(c)
			continue
		}
		if err := l.Push(c, n); err != nil {
			return err
		}
	}
	return nil
}

// busy says whether there may be something for the guest.
func (d *Device) busy() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.resets) > 0 || !d.move.hold && d.todo.first != nil
}

// fill puts the next packet into a chain and returns its length, or 0 when
// nothing is to be said.
func (d *Device) fill(l *line, c *queue.Chain, room int64) uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		if len(d.resets) > 0 {
			return d.fillReset(l, c)
		}
		if d.move.hold {
			return 0 // all of them are to be opened first
		}
		cn := d.todo.pop()
		if cn == nil {
			return 0
		}
		h := header{
			srcCID: hostCID, dstCID: d.cid, srcPort: cn.host, dstPort: cn.guest, kind: typeStream,
			bufAlloc: bufAlloc, fwdCnt: cn.forwarded,
		}
		if !cn.answer(&h) && !cn.data(l, c, room, &h) {
			continue
		}
		cn.told, cn.update = cn.forwarded, false // each packet tells (5.10.6.3)
		d.todo.push(cn)                          // behind the others
		h.put(&l.head)
		put(c, l.head[:])
		return headerSize + h.len
	}
}

func (d *Device) fillReset(l *line, c *queue.Chain) uint32 {
	r := d.resets[0]
	d.resets = d.resets[:copy(d.resets, d.resets[1:])]
	if d.blocked && len(d.resets) <= maxResets/2 {
		d.blocked = false
		d.kick(txQueue)
	}
	d.stats.resetsSent.Add(1)
	h := header{srcCID: r.cid, dstCID: d.cid, srcPort: r.key.host, dstPort: r.key.guest, kind: typeStream, op: opRST}
	h.put(&l.head)
	put(c, l.head[:])
	return headerSize
}

// answer makes h what the guest is to hear next about the connection besides
// data.
func (c *conn) answer(h *header) bool {
	switch {
	case c.request:
		c.request = false
		h.op = opRequest
	case c.response:
		c.response = false
		h.op = opResponse
	case c.shut != 0:
		h.op, h.flags = opShutdown, c.shut
		c.shut = 0
	case c.update:
		h.op = opCreditUpdate
	case c.ask:
		c.ask = false
		h.op = opCreditRequest
	default:
		return false
	}
	return true
}

// data reads what the host has sent, within the guest's credit, into a chain. It
// reports false where there is none, or where something else is to be said
// first: then the connection or its reset is queued for that.
func (c *conn) data(l *line, chain *queue.Chain, room int64, h *header) bool {
	d := c.dev
	if c.phase != open || !c.readable || c.mute() {
		return false
	}
	credit := c.credit()
	if credit == 0 {
		if !c.stalled {
			c.stalled = true
			d.stats.creditWaits.Add(1)
		}
		if !c.asked {
			c.asked, c.ask = true, true
			d.todo.push(c)
		}
		return false
	}
	l.vec.Reset()
	if l.vec.Append(chain.Writable(), headerSize, min(int64(credit), maxPacket)) == 0 {
		d.stats.badPackets.Add(1) // a buffer for a header alone; the next may do
		return d.later(c)
	}
	n, err := l.vec.Read(c.fd)
	switch {
	case errors.Is(err, unix.EAGAIN):
		c.readable = false
		c.watch.Arm(hostpoll.In)
		return false
	case err != nil:
		d.end(c, true)
		return false
	case n == 0:
		c.hostDone = true
		c.shut |= shutSend
		d.todo.push(c)
		d.finish(c)
		d.leave(c)
		return false
	}
	h.op, h.len = opRW, uint32(n)
	c.sent += uint32(n)
	d.stats.bytesToGuest.Add(uint64(n))
	return true
}

// later leaves a connection with data for the next buffers of the guest, which
// kicks when it offers them. A hostile guest's buffers for headers alone come
// back as credit updates, so that they are used up.
func (d *Device) later(c *conn) bool {
	c.update = true
	d.todo.push(c)
	return false
}
