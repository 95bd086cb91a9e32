package queue

import (
	"encoding/binary"
	"errors"
	"fmt"

	"godwit/kvm/guestmem"
)

// MaxSize is the largest queue: virtio 1.2, 2.7.
const MaxSize = 32768

// Ring layout, in bytes: virtio 1.2, 2.7 and 2.7.5 to 2.7.8.
const (
	descSize      = 16 // struct virtq_desc
	ringHeader    = 4  // flags and idx of either ring
	availElemSize = 2
	usedElemSize  = 8

	descAlign, availAlign, usedAlign = 16, 2, 4
)

const (
	availNoInterrupt = 1 // VIRTQ_AVAIL_F_NO_INTERRUPT
	usedNoNotify     = 1 // VIRTQ_USED_F_NO_NOTIFY
)

var (
	// ErrConfig says that the driver set a queue up in a way that cannot work.
	ErrConfig = errors.New("bad virtqueue set-up")
	// ErrBroken says that the driver broke a rule and the queue is stopped.
	ErrBroken = errors.New("virtqueue broken by its driver")
)

// Config is what the driver chose for a queue. It is untrusted.
type Config struct {
	// Size is the number of descriptors, a power of two up to MaxSize.
	Size uint16
	// Desc, Avail and Used are the guest physical addresses of the three parts.
	Desc, Avail, Used uint64
	// EventIdx and Indirect say whether VIRTIO_F_EVENT_IDX and
	// VIRTIO_F_INDIRECT_DESC were negotiated.
	EventIdx, Indirect bool
	// Restored says that the queue goes on from elsewhere, and Next how many chains,
	// modulo 2^16, were taken and answered there. Next is 0 for a new queue.
	Restored bool
	Next     uint16
}

// Queue is one activated virtqueue. See the package comment for who may call.
type Queue struct {
	mem  *guestmem.Memory
	cfg  Config
	mask uint16

	next   uint16 // available entries taken so far, modulo 2^16
	used   uint16 // used entries published so far, modulo 2^16
	staged uint16 // used entries written behind those, not published
	held   int    // descriptors of the table behind the chains that are out

	// first makes the first answer after a restore interrupt the guest whatever
	// it asked for: nobody knows whether the last one before the move did.
	first   bool
	quiet   bool // VIRTQ_USED_F_NO_NOTIFY is set
	stopped bool
	err     error // ErrBroken and why

	free    []*Chain
	scratch [descSize]byte // one descriptor, or one used element
}

// New checks cfg against mem and gives the queue.
func New(mem *guestmem.Memory, cfg Config) (*Queue, error) {
	if err := cfg.check(mem); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return &Queue{
		mem: mem, cfg: cfg, mask: cfg.Size - 1,
		next: cfg.Next, used: cfg.Next, first: cfg.Restored,
	}, nil
}

func (c *Config) check(mem *guestmem.Memory) error {
	if c.Size == 0 || c.Size > MaxSize || c.Size&(c.Size-1) != 0 {
		return fmt.Errorf("size %d is not a power of two from 1 to %d", c.Size, MaxSize)
	}
	n := uint64(c.Size)
	for _, part := range []struct {
		name             string
		gpa, size, align uint64
	}{
		{"descriptor table", c.Desc, descSize * n, descAlign},
		// Each ring has the event index behind its last entry.
		{"available ring", c.Avail, ringHeader + availElemSize*n + 2, availAlign},
		{"used ring", c.Used, ringHeader + usedElemSize*n + 2, usedAlign},
	} {
		if part.gpa%part.align != 0 {
			return fmt.Errorf("%s at %#x is not aligned to %d", part.name, part.gpa, part.align)
		}
		if _, err := mem.View(part.gpa, part.size); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// Size is the number of descriptors.
func (q *Queue) Size() uint16 { return q.cfg.Size }

// Next is what Config.Next must be for a queue that goes on from here. The
// chains that are out then are adopted there.
func (q *Queue) Next() uint16 { return q.used }

// Outstanding is the number of chains popped and not pushed; one that is staged
// is not pushed yet.
func (q *Queue) Outstanding() int { return int(q.next - q.used) }

// Full says that the chains popped and not answered take all descriptors: an
// honest driver has none left to make more available.
func (q *Queue) Full() bool { return q.held >= int(q.cfg.Size) }

// Err says why the queue is broken, or nil.
func (q *Queue) Err() error { return q.err }

// Stop makes the queue look empty from now on, as if the driver had never made
// anything available again. Chains that are out can still be pushed.
func (q *Queue) Stop() { q.stopped = true }

// Stopped says whether Pop will never give a chain again.
func (q *Queue) Stopped() bool { return q.stopped || q.err != nil }

// Pop takes the next chain that the driver made available. It returns nil, nil
// when there is none. On an error the queue is broken and stays so. The chain is
// the caller's until Push.
func (q *Queue) Pop() (*Chain, error) {
	if q.err != nil || q.stopped {
		return nil, q.err
	}
	ready, err := q.available()
	if err != nil || ready == 0 {
		return nil, err
	}
	head, err := q.mem.LoadUint16(q.cfg.Avail + ringHeader + availElemSize*uint64(q.next&q.mask))
	if err != nil {
		return nil, q.fail(err)
	}
	return q.take(head)
}

// take counts the chain at head as popped.
func (q *Queue) take(head uint16) (*Chain, error) {
	c := q.newChain()
	if err := q.walk(c, head); err != nil {
		q.recycle(c)
		return nil, q.fail(err)
	}
	c.taken = q.next
	q.next++
	q.held += c.own
	return c, nil
}

// Adopt takes a chain out again that was out where the queue comes from, by its
// head, before anything is popped. On an error the queue is broken and stays so.
func (q *Queue) Adopt(head uint16) (*Chain, error) {
	if q.err != nil {
		return nil, q.err
	}
	if q.Outstanding() >= int(q.cfg.Size) {
		return nil, q.fail(fmt.Errorf("more than %d chains are out", q.cfg.Size))
	}
	return q.take(head)
}

// PutBack undoes the Pop of c: the next Pop gives the same entry, read anew. c
// must be the latest of the chains popped; it is not the caller's any more. What
// the device wrote to it is marked dirty only after MarkAll.
func (q *Queue) PutBack(c *Chain) {
	if c.taken != q.next-1 {
		panic("queue: PutBack of a chain that was not popped last")
	}
	c.markDirty(q.mem, 0)
	q.held -= c.own
	q.recycle(c)
	q.next--
}

// Ready says whether Pop has a chain to give.
func (q *Queue) Ready() (bool, error) {
	ready, err := q.Available()
	return ready > 0, err
}

// Available is the number of chains that Pop has to give.
func (q *Queue) Available() (uint16, error) {
	if q.err != nil || q.stopped {
		return 0, q.err
	}
	return q.available()
}

// available is the number of chains to pop. The load acquires: what follows sees
// the entries that the index counts.
func (q *Queue) available() (uint16, error) {
	idx, err := q.mem.LoadUint16(q.cfg.Avail + 2)
	if err != nil {
		return 0, q.fail(err)
	}
	// A driver owns Size descriptors, so no more chains than that can be between
	// available and used, and the index never goes back.
	flight, out := idx-q.used, q.next-q.used
	if flight > q.cfg.Size || flight < out {
		return 0, q.fail(fmt.Errorf("available index %d with %d taken and %d answered, in a queue of %d", idx, q.next, q.used, q.cfg.Size))
	}
	return flight - out, nil
}

// Push answers a chain. written is the number of bytes, from the start of the
// writable part, that the device has filled in; Push marks them dirty. It says
// whether the driver wants an interrupt for it, or for one staged before it.
func (q *Queue) Push(c *Chain, written uint32) (notify bool, err error) {
	if err := q.Stage(c, written); err != nil {
		return false, err
	}
	return q.Publish()
}

// Stage answers a chain like Push, but the driver sees nothing of it before
// Publish: for chains that belong together (virtio 1.2, 5.1.6.4.1), and because
// the index, which both sides fight over, is dear.
func (q *Queue) Stage(c *Chain, written uint32) error {
	c.markDirty(q.mem, uint64(written))
	head := c.head
	q.held -= c.own
	q.recycle(c)

	binary.LittleEndian.PutUint32(q.scratch[0:], uint32(head))
	binary.LittleEndian.PutUint32(q.scratch[4:], written)
	at := uint64((q.used + q.staged) & q.mask)
	if err := q.mem.WriteAt(q.scratch[:usedElemSize], q.cfg.Used+ringHeader+usedElemSize*at); err != nil {
		return q.fail(err)
	}
	q.staged++
	return nil
}

// Publish shows the driver what was staged, in one step, and says whether it
// wants an interrupt for any of it. With nothing staged it does nothing.
func (q *Queue) Publish() (notify bool, err error) {
	if q.staged == 0 {
		return false, q.err
	}
	old := q.used
	q.used, q.staged = q.used+q.staged, 0
	// Releases: the elements are visible before the index that counts them.
	if err := q.mem.StoreUint16(q.cfg.Used+2, q.used); err != nil {
		return false, q.fail(err)
	}
	return q.wantsInterrupt(old)
}

// wantsInterrupt is virtio 1.2, 2.7.7.2 and 2.7.8: whether the entries just
// published, old and up, have one that the driver waits for.
func (q *Queue) wantsInterrupt(old uint16) (bool, error) {
	guestmem.Fence() // the index is out before the driver's wish is read
	first := q.first
	q.first = false
	if !q.cfg.EventIdx {
		flags, err := q.mem.LoadUint16(q.cfg.Avail)
		if err != nil {
			return false, q.fail(err)
		}
		return first || flags&availNoInterrupt == 0, nil
	}
	event, err := q.mem.LoadUint16(q.usedEvent())
	if err != nil {
		return false, q.fail(err)
	}
	return first || q.used-event-1 < q.used-old, nil // 2.7.10.1
}

// EnableNotification asks the driver to kick for the next chain. It reports true
// when one has become available meanwhile: then there may be no kick for it, and
// the caller goes on popping.
func (q *Queue) EnableNotification() (more bool, err error) {
	if q.err != nil || q.stopped {
		return false, q.err
	}
	if err := q.askKick(q.next); err != nil {
		return false, err
	}
	ready, err := q.available()
	return ready > 0, err
}

// NotifyBeyond asks the driver to kick once more than ready chains are available,
// and returns how many are: for a device that leaves chains in the ring and wants
// to hear that the driver adds to them. When the result is more than ready, there
// may be no kick.
func (q *Queue) NotifyBeyond(ready uint16) (now uint16, err error) {
	if q.err != nil || q.stopped {
		return 0, q.err
	}
	if err := q.askKick(q.next + ready); err != nil {
		return 0, err
	}
	return q.available()
}

// askKick asks for a kick for the available entry at, and returns when the
// driver sees that.
func (q *Queue) askKick(at uint16) (err error) {
	if q.cfg.EventIdx {
		err = q.mem.StoreUint16(q.availEvent(), at)
	} else {
		err = q.mem.StoreUint16(q.cfg.Used, 0)
		q.quiet = false
	}
	if err != nil {
		return q.fail(err)
	}
	guestmem.Fence() // the wish is out before the index is read again
	return nil
}

// DisableNotification tells the driver that kicks are not needed while the
// caller pops. It is a hint. With event indices there is nothing to do: the old
// one has been passed, and no kick comes before the next EnableNotification.
func (q *Queue) DisableNotification() error {
	if q.err != nil || q.stopped || q.cfg.EventIdx || q.quiet {
		return q.err
	}
	if err := q.mem.StoreUint16(q.cfg.Used, usedNoNotify); err != nil {
		return q.fail(err)
	}
	q.quiet = true
	return nil
}

// usedEvent is where the driver says which used entry it waits for.
func (q *Queue) usedEvent() uint64 {
	return q.cfg.Avail + ringHeader + availElemSize*uint64(q.cfg.Size)
}

// availEvent is where the device says which available entry it waits for.
func (q *Queue) availEvent() uint64 {
	return q.cfg.Used + ringHeader + usedElemSize*uint64(q.cfg.Size)
}

// fail breaks the queue. The first reason stays.
func (q *Queue) fail(err error) error {
	if q.err == nil {
		q.err = fmt.Errorf("%w: %w", ErrBroken, err)
	}
	return q.err
}
