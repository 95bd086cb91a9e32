package console

import (
	"encoding/binary"

	"godwit/virtio"
	"godwit/virtio/queue"
)

// Events of struct virtio_console_control: virtio 1.2, 5.3.6.2.
const (
	deviceReady = 0 // VIRTIO_CONSOLE_DEVICE_READY
	portAdd     = 1 // VIRTIO_CONSOLE_PORT_ADD (DEVICE_ADD)
	portReady   = 3 // VIRTIO_CONSOLE_PORT_READY
	consolePort = 4 // VIRTIO_CONSOLE_CONSOLE_PORT
	resize      = 5 // VIRTIO_CONSOLE_RESIZE
	portOpen    = 6 // VIRTIO_CONSOLE_PORT_OPEN
	portName    = 7 // VIRTIO_CONSOLE_PORT_NAME
)

// controlSize is struct virtio_console_control: le32 id, le16 event, le16 value.
const controlSize = 8

// guestSide is what guest and device have told each other about a port. What is
// still to be told is a set of flags and not a list, so it is never long however
// often something changes. Device.mu guards it.
type guestSide struct {
	ready bool // the guest has answered PORT_ADD
	open  bool // the guest's side is open
	told  bool // the guest believes that the host's side is open

	// To be told, in this order.
	add, kind, resize bool
	// bounce: the host's side was closed since the guest was told that it is open.
	bounce bool
}

// message builds what the guest is to hear next about a port, and is nil if
// there is nothing. done is to be called once it was put into a buffer.
func (p *port) message(b []byte) (msg []byte, done func(*guestSide)) {
	put := func(event, value uint16) []byte {
		b = binary.LittleEndian.AppendUint32(b[:0], uint32(p.index))
		b = binary.LittleEndian.AppendUint16(b, event)
		return binary.LittleEndian.AppendUint16(b, value)
	}
	g := &p.guest
	switch {
	case g.add:
		return put(portAdd, 1), func(g *guestSide) { g.add = false }
	case !g.ready:
		return nil, nil
	case g.kind && p.name == "":
		return put(consolePort, 1), func(g *guestSide) { g.kind = false }
	case g.kind:
		// 5.3.6.2: the name is not NUL-terminated.
		return append(put(portName, 1), p.name...), func(g *guestSide) { g.kind = false }
	case g.resize:
		msg = binary.LittleEndian.AppendUint16(put(resize, 0), p.cols)
		return binary.LittleEndian.AppendUint16(msg, p.rows), func(g *guestSide) { g.resize = false }
	case g.told && (g.bounce || !p.hostOpen):
		if g.open && p.host.left.size.Load() > 0 {
			return nil, nil // the end of a client comes after what it has sent
		}
		return put(portOpen, 0), func(g *guestSide) { g.told, g.bounce = false, false }
	case !g.told && p.hostOpen:
		return put(portOpen, 1), func(g *guestSide) { g.told, g.bounce = true, false }
	}
	return nil, nil
}

// next finds something to tell. The callers hold mu.
func (d *Device) next(b []byte) (p *port, msg []byte, done func(*guestSide)) {
	for _, p := range d.ports {
		if msg, done := p.message(b); msg != nil {
			return p, msg, done
		}
	}
	return nil, nil, nil
}

// pending says whether there is something to tell.
func (d *Device) pending() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b [controlSize + MaxName]byte
	_, msg, _ := d.next(b[:])
	return msg != nil
}

// tell serves the control receiveq.
func (d *Device) tell(l *virtio.Line) error {
	for !d.workers.Yield() && d.pending() {
		c, err := l.Pop()
		if err != nil || c == nil {
			return err
		}
		if err := l.Push(c, d.tellOne(c)); err != nil {
			return err
		}
	}
	return nil
}

// tellOne puts the next message into a chain and returns its length. A buffer
// that is too small comes back empty; the message waits for another one.
func (d *Device) tellOne(c *queue.Chain) uint32 {
	d.mu.Lock()
	defer d.mu.Unlock()
	var b [controlSize + MaxName]byte
	p, msg, done := d.next(b[:])
	if msg == nil {
		return 0
	}
	if queue.Len(c.Writable()) < int64(len(msg)) {
		d.guestErrors.Add(1)
		return 0
	}
	n := 0
	for _, seg := range c.Writable() {
		n += copy(seg, msg[n:])
	}
	done(&p.guest)
	return uint32(n)
}

// listen serves the control transmitq.
func (d *Device) listen(l *virtio.Line) error {
	return l.Each(func(c *queue.Chain) (bool, error) {
		var b [controlSize]byte
		if !c.Take(b[:]) {
			d.guestErrors.Add(1)
			return true, l.Push(c, 0)
		}
		le := binary.LittleEndian
		if !d.hear(le.Uint32(b[:]), le.Uint16(b[4:]), le.Uint16(b[6:])) {
			d.guestErrors.Add(1)
		}
		return true, l.Push(c, 0)
	})
}

// hear takes a message of the guest: virtio 1.2, 5.3.6.2. It reports false for
// one that makes no sense.
func (d *Device) hear(id uint32, event, value uint16) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if event == deviceReady {
		// A driver that comes up, again perhaps, knows of no port.
		for _, p := range d.ports {
			p.guest = guestSide{add: value == 1}
		}
		d.kickLocked(controlRX)
		return true
	}
	if id >= uint32(len(d.ports)) {
		return false
	}
	p := d.ports[id]
	switch event {
	case portReady:
		p.guest = guestSide{ready: value == 1, kind: true, resize: p.name == "" && p.cols != 0}
		d.kickLocked(controlRX)
	case portOpen:
		p.guest.open = value == 1
		rx, _ := queues(p.index)
		d.kickLocked(rx)
		d.kickLocked(controlRX) // what waited for its reading need not wait any more
	default:
		return false
	}
	return true
}
