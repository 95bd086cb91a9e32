package net

import (
	"fmt"

	"golang.org/x/sys/unix"

	"godwit/virtio"
	"godwit/virtio/queue"
)

// transmitter empties one transmit queue.
type transmitter struct {
	dev   *Device
	pair  int
	q     *queue.Queue
	kick  *virtio.Kick
	live  virtio.Activation
	out   batch
	dead  bool // the driver broke a rule; only a reset helps
	sleep waitFor
	peek  [headerSize + arpPacket]byte
}

var _ virtio.Task = (*transmitter)(nil)

func newTransmitter(d *Device, pair int, q *queue.Queue, a virtio.Activation) *transmitter {
	return &transmitter{
		dev: d, pair: pair, q: q, kick: a.Kicks[2*pair+1], live: a,
		out: batch{q: q, notify: a.Notifier, total: &d.stats.tx},
	}
}

// Serve implements virtio.Task.
func (x *transmitter) Serve() {
	x.sleep = forKick
	if x.dead || x.q.Stopped() {
		return
	}
	if err := x.drain(); err != nil {
		x.dead = true
		x.live.Notifier.NeedsReset(err)
	}
}

// Wait implements virtio.Task.
func (x *transmitter) Wait() error {
	fd := -1
	if x.sleep == forBackend {
		fd = x.dev.backend.Fd(x.pair)
	}
	kicked, err := x.kick.Await(fd, unix.POLLOUT)
	if kicked {
		x.dev.stats.kicks.Add(1)
	}
	return err
}

// Park implements virtio.Task.
func (x *transmitter) Park() { _ = x.out.flush() } // a broken queue has been reported

// drain sends packets until there is none, or no room, or the workers yield.
func (x *transmitter) drain() error {
	for {
		if err := x.q.DisableNotification(); err != nil {
			return err
		}
		for {
			if x.dev.workers.Yield() {
				return nil // Park shows the rest
			}
			c, err := x.q.Pop()
			if err != nil {
				return err
			}
			if c == nil {
				break
			}
			if !x.send(c) {
				x.q.PutBack(c)
				x.dev.stats.txWaits.Add(1)
				x.sleep = forBackend
				return x.out.flush()
			}
			if err := x.q.Stage(c, 0); err != nil {
				return err
			}
			if err := x.out.step(); err != nil {
				return err
			}
		}
		if err := x.out.flush(); err != nil {
			return err
		}
		if more, err := x.q.EnableNotification(); err != nil || !more {
			return err
		}
	}
}

// send reports false when the packet must wait for room. One that cannot be sent
// is dropped and counted, as a network does.
func (x *transmitter) send(c *queue.Chain) bool {
	bufs := c.Readable()
	n := queue.Len(bufs)
	if n < minPacket || n > maxPacket || len(bufs) > maxSegments {
		x.out.malformed++
		return true
	}
	turn := x.dev.turns.Load()
	if x.pair >= int(x.dev.inUse.Load()) {
		x.out.refused++ // 5.1.6.5.5.2: the driver does not use it
		return true
	}
	if x.dev.down.Load() {
		x.out.unplugged++
		return true
	}
	x.learn(bufs)
	for {
		_, err := x.dev.backend.Writev(x.pair, bufs)
		switch err {
		case nil:
			x.out.frames++
			x.out.bytes += uint64(n - headerSize)
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		default:
			x.out.refused++
			if !x.dev.left(x.pair, turn) {
				x.dev.fail(fmt.Errorf("transmit: %w", err))
			}
		}
		return true
	}
}

// learn looks for the addresses that the guest goes by, in its ARP packets. The
// bytes are copied before they are judged.
func (x *transmitter) learn(bufs [][]byte) {
	n := copyFront(x.peek[:minPacket], bufs)
	if n < minPacket || !isARP(x.peek[headerSize:]) {
		return
	}
	if n = copyFront(x.peek[:], bufs); n < len(x.peek) {
		return
	}
	if who, ok := parseARP(x.peek[headerSize:]); ok {
		x.dev.mu.Lock()
		x.dev.known.add(who)
		x.dev.mu.Unlock()
	}
}

// copyFront copies the first bytes of bufs to p, and returns how many there were.
func copyFront(p []byte, bufs [][]byte) (n int) {
	for _, b := range bufs {
		if n += copy(p[n:], b); n == len(p) {
			break
		}
	}
	return n
}
