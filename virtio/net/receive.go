package net

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"godwit/virtio"
	"godwit/virtio/queue"
)

var errTinyBuffer = errors.New("a receive buffer without room for the header")

// What a worker sleeps for.
type waitFor int

const (
	forKick waitFor = iota
	forBackend
)

// shrinkAfter is how many small packets in a row make the offer small again.
const shrinkAfter = 64

// receiver fills one receive queue.
type receiver struct {
	dev   *Device
	pair  int
	q     *queue.Queue
	kick  *virtio.Kick
	live  virtio.Activation
	out   batch
	merge bool // VIRTIO_NET_F_MRG_RXBUF
	sums  bool // VIRTIO_NET_F_GUEST_CSUM
	sift  bool // the driver can set a filter
	dead  bool // the driver broke a rule; only a reset helps
	sleep waitFor

	small  int64 // bytes that hold any packet of the MTU
	offer  int64 // bytes of guest memory offered to the next packet
	calm   int   // packets in a row that a small offer would have held
	window window
	bufs   [][]byte // of one Readv
	spill  []byte   // maxPacket bytes
	count  [2]byte  // num_buffers of a packet
	bin    [64]byte // for a packet that is dropped: its rest is cut off
	held   int      // bytes of a whole packet in spill, waiting for buffers
}

var _ virtio.Task = (*receiver)(nil)

func newReceiver(d *Device, pair int, q *queue.Queue, a virtio.Activation) *receiver {
	r := &receiver{
		dev: d, pair: pair, q: q, kick: a.Kicks[2*pair], live: a,
		out:   batch{q: q, notify: a.Notifier, total: &d.stats.rx},
		merge: a.Features&featureMergeable != 0,
		sums:  a.Features&featureGuestCSUM != 0,
		sift:  a.Features&featureCtrlRX != 0,
		bufs:  make([][]byte, 0, maxSegments),
		spill: make([]byte, maxPacket),
	}
	r.small = headerSize + 1500 + 18
	if d.mtu > 1500 {
		r.small = headerSize + int64(d.mtu) + 18
	}
	r.offer = r.small
	r.window.chains = make([]*queue.Chain, 0, q.Size())
	if pair < len(d.restored) {
		r.held = copy(r.spill, d.restored[pair])
	}
	return r
}

// Serve implements virtio.Task.
func (r *receiver) Serve() {
	if r.dead || r.q.Stopped() {
		r.sleep = forKick
		return
	}
	err := r.drain()
	if err != nil {
		r.dead, r.sleep = true, forKick
		r.live.Notifier.NeedsReset(err)
	}
}

// Wait implements virtio.Task.
func (r *receiver) Wait() error {
	fd := -1
	if r.sleep == forBackend {
		fd = r.dev.backend.Fd(r.pair)
	}
	kicked, err := r.kick.Await(fd, unix.POLLIN)
	if kicked {
		r.dev.stats.kicks.Add(1)
	}
	return err
}

// Park implements virtio.Task. A packet that is held stays.
func (r *receiver) Park() {
	_ = r.out.flush() // a broken queue has been reported
	r.window.putBack(r.q)
}

// drain moves packets until there is none, or no buffer, or the workers yield.
func (r *receiver) drain() error {
	if err := r.q.DisableNotification(); err != nil {
		return err
	}
	for !r.dev.workers.Yield() {
		turn := r.dev.turns.Load()
		if r.pair >= int(r.dev.inUse.Load()) {
			r.sleep = forKick // the controller kicks when that changes
			return r.out.flush()
		}
		if r.dev.down.Load() {
			more, err := r.discard()
			if err = errors.Join(err, r.out.flush()); err != nil || !more {
				return err
			}
			continue
		}
		ready, err := r.prepare()
		if err != nil {
			return err
		}
		if !ready {
			if err := r.out.flush(); err != nil {
				return err
			}
			more, err := r.q.EnableNotification()
			if err != nil {
				return err
			}
			if more {
				if err := r.q.DisableNotification(); err != nil {
					return err
				}
				continue
			}
			r.dev.stats.rxWaits.Add(1)
			r.sleep = forKick
			return nil
		}
		if r.held > 0 {
			n := r.held
			r.held = 0
			r.window.scatter(0, r.spill[:n])
			if err := r.deliver(n); err != nil {
				return err
			}
			continue
		}
		n, offered, err := r.read()
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			r.sleep = forBackend
			return r.out.flush()
		case err != nil && r.dev.left(r.pair, turn):
			// The controller took the pair out of use meanwhile.
		case err != nil:
			// There is nothing to wait for but a change of mind: a resume, or a kick.
			r.window.markAll(maxPacket)
			r.dev.fail(fmt.Errorf("receive: %w", err))
			r.sleep = forKick
			_, err := r.q.EnableNotification()
			return errors.Join(err, r.out.flush())
		default:
			if err := r.take(n, offered); err != nil {
				return err
			}
		}
	}
	return nil
}

// discard drops what the network has sent while the cable is out, without the
// driver's buffers: a batch, or what there is. It reports whether there may be
// more. A packet that is held came before that, and stays.
func (r *receiver) discard() (more bool, err error) {
	bufs := append(r.bufs[:0], r.bin[:])
	defer clear(bufs)
	for range batchPackets {
		switch _, err := r.dev.backend.Readv(r.pair, bufs); err {
		case nil:
			r.out.unplugged++
		case unix.EINTR:
		case unix.EAGAIN:
			r.sleep = forBackend
			return false, nil
		default:
			// A tap that is gone has nothing to drop: a resume or a kick looks again.
			r.sleep = forKick
			_, err := r.q.EnableNotification()
			return false, err
		}
	}
	return true, nil
}

// prepare pops what the next packet is offered, and reports whether there is
// enough to go on. A held packet that no ring of this size could take is dropped.
func (r *receiver) prepare() (bool, error) {
	for {
		want := r.offer
		if r.held > 0 {
			want = int64(r.held)
		}
		if err := r.fill(want); err != nil {
			return false, err
		}
		have := r.window.bytes
		if !r.merge && len(r.window.chains) > 0 {
			have = r.window.sizes(0)
		}
		switch {
		case r.held == 0:
			return len(r.window.chains) > 0, nil
		case have >= want:
			return true, nil
		case len(r.window.chains) == 0, r.merge && !r.q.Full():
			return false, nil
		}
		r.held = 0
		r.out.tooLarge++
	}
}

// fill pops chains until the window has want bytes; without mergeable buffers,
// one chain.
func (r *receiver) fill(want int64) error {
	for r.window.bytes < want && (r.merge || len(r.window.chains) == 0) {
		c, err := r.q.Pop()
		if err != nil || c == nil {
			return err
		}
		n := queue.Len(c.Writable())
		r.window.push(c, n)
		if n < headerSize && r.merge {
			return fmt.Errorf("virtio-net: receive queue %d: %w", r.pair, errTinyBuffer) // 5.1.6.3.1
		}
	}
	return nil
}

// read offers the window, and the spill behind it, to a packet. offered is how
// much of the window that was.
func (r *receiver) read() (n int, offered int64, err error) {
	bufs := r.bufs[:0]
collect:
	for _, c := range r.window.chains {
		for _, b := range c.Writable() {
			if len(bufs) == maxSegments-1 || offered >= maxPacket {
				break collect
			}
			bufs = append(bufs, b)
			offered += int64(len(b))
		}
		if !r.merge || offered >= r.offer {
			break
		}
	}
	bufs = append(bufs, r.spill)
	n, err = r.dev.backend.Readv(r.pair, bufs)
	clear(bufs)
	return n, offered, err
}

// take judges a packet of n bytes that was just read, and delivers or holds it.
func (r *receiver) take(n int, offered int64) error {
	over := max(0, n-int(offered))
	switch {
	case n < minPacket:
		r.window.markAll(n)
		r.out.malformed++
		return nil
	case r.sift && !r.accepted(offered):
		r.window.markAll(n)
		r.out.filtered++
		return nil
	case over == 0:
		r.settle(n)
		return r.deliver(n)
	}
	r.offer, r.calm = maxPacket, 0
	if !r.merge && int64(n) > r.window.sizes(0) {
		r.window.markAll(n)
		r.out.tooLarge++
		return nil
	}
	if r.merge {
		if err := r.fill(int64(n)); err != nil {
			return err
		}
	}
	if r.window.bytes >= int64(n) {
		r.window.scatter(offered, r.spill[:over])
		return r.deliver(n)
	}
	// Too few buffers: all of it goes into the spill and waits for more.
	copy(r.spill[offered:n], r.spill[:over])
	r.window.gather(r.spill[:offered])
	r.window.markAll(n)
	r.held = n
	return nil
}

// accepted asks the filter about the packet at the front of the window.
func (r *receiver) accepted(offered int64) bool {
	f := r.dev.filter.Load()
	if f.promisc {
		return true
	}
	var head [headerSize + macSize]byte
	n := r.window.gather(head[:min(offered, int64(len(head)))])
	copy(head[n:], r.spill)
	return f.accepts(MAC(head[headerSize:]))
}

// settle makes the offer small again once packets have been for a while.
func (r *receiver) settle(n int) {
	if r.offer == r.small {
		return
	}
	if int64(n) > r.small {
		r.calm = 0
	} else if r.calm++; r.calm >= shrinkAfter {
		r.offer, r.calm = r.small, 0
	}
}

// deliver answers the chains that hold a packet of n bytes. The driver is shown
// all of them in one step, after the last: virtio 1.2, 5.1.6.4.1.
func (r *receiver) deliver(n int) error {
	chains := 1
	if r.merge {
		for left := int64(n) - r.window.sizes(0); left > 0; chains++ {
			left -= r.window.sizes(chains)
		}
	}
	binary.LittleEndian.PutUint16(r.count[:], uint16(chains))
	r.window.scatter(headerCount, r.count[:])
	if !r.sums {
		r.window.scatter(0, noFlags[:]) // 5.1.6.4.1
	}
	left := int64(n)
	for i := range chains {
		written := min(left, r.window.sizes(i))
		left -= written
		if err := r.q.Stage(r.window.chains[i], uint32(written)); err != nil {
			r.window.drop(i + 1)
			return err
		}
	}
	r.window.drop(chains)
	return r.out.add(n)
}

var noFlags [1]byte
