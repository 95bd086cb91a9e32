package console

import (
	"errors"

	"golang.org/x/sys/unix"

	"godwit/virtio"
	"godwit/virtio/internal/hostpoll"
	"godwit/virtio/queue"
)

// port is one port of the device.
type port struct {
	dev   *Device
	index int
	name  string
	host  host
	stats counters

	// Device.mu guards these.
	guest      guestSide
	hostOpen   bool
	cols, rows uint16

	// sent is how many bytes of the first chain of the transmitq have left. It
	// belongs to that queue's worker, and to Save and Restore while that is parked.
	sent   uint32
	rv, wv hostpoll.Vec
}

func newPort(d *Device, i int, cfg Port) *port {
	p := &port{dev: d, index: i, name: cfg.Name}
	p.host.init(p)
	return p
}

// listens says whether the guest wants input. A driver without MULTIPORT cannot
// say that its port is open.
func (p *port) listens() bool {
	p.dev.mu.Lock()
	defer p.dev.mu.Unlock()
	return !p.dev.multi || p.guest.open
}

// receive serves the receiveq: input of the host.
func (p *port) receive(l *virtio.Line) error {
	if !p.listens() {
		return nil // PORT_OPEN kicks
	}
	return l.Each(func(c *queue.Chain) (bool, error) {
		p.rv.Reset()
		if p.rv.Append(c.Writable(), 0, 1<<30) == 0 {
			p.dev.guestErrors.Add(1)
			return true, l.Push(c, 0)
		}
		n, err := p.host.read(&p.rv, c.Writable())
		if err != nil || n == 0 {
			l.Queue.PutBack(c)
			return false, nil // what ends the wait kicks
		}
		p.stats.bytesToGuest.Add(uint64(n))
		return true, l.Push(c, uint32(n))
	})
}

// transmit serves the transmitq: output of the guest.
func (p *port) transmit(l *virtio.Line) error {
	return l.Each(func(c *queue.Chain) (bool, error) {
		p.wv.Reset()
		n := p.wv.Append(c.Readable(), int64(p.sent), 1<<30)
		if n == 0 {
			p.sent = 0
			return true, l.Push(c, 0)
		}
		left := uint64(queue.Len(c.Readable())) - uint64(p.sent)
		done, err := p.host.write(&p.wv, left)
		switch {
		case errors.Is(err, unix.EAGAIN):
			p.stats.waits.Add(1)
			l.Queue.PutBack(c)
			return false, nil
		case err != nil:
			if !errors.Is(err, errStalled) { // nobody is there
				p.stats.discarded.Add(left)
			}
			p.sent = 0
			return true, l.Push(c, 0)
		}
		p.stats.bytesToHost.Add(uint64(done))
		p.sent += uint32(done)
		if int64(p.sent) == queue.Len(c.Readable()) {
			p.sent = 0
			return true, l.Push(c, 0)
		}
		l.Queue.PutBack(c)
		return true, nil // and popped again for the rest
	})
}

// emergency is a character for the host past all queues. It is lost where the
// host does not take it at once.
func (p *port) emergency(b byte) {
	var v hostpoll.Vec
	v.Append([][]byte{{b}}, 0, 1)
	switch _, err := p.host.write(&v, 1); {
	case err == nil:
		p.stats.bytesToHost.Add(1)
	case !errors.Is(err, errStalled):
		p.stats.discarded.Add(1)
	}
}
