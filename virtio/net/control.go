package net

import (
	"encoding/binary"
	"slices"

	"godwit/virtio"
	"godwit/virtio/queue"
)

// Classes and commands of the control queue: virtio 1.2, 5.1.6.5.
const (
	ctrlRX         = 0 // VIRTIO_NET_CTRL_RX
	ctrlRXPromisc  = 0
	ctrlRXAllMulti = 1
	ctrlRXAllUni   = 2
	ctrlRXNoMulti  = 3
	ctrlRXNoUni    = 4
	ctrlRXNoBroadc = 5

	ctrlMAC         = 1 // VIRTIO_NET_CTRL_MAC
	ctrlMACTableSet = 0
	ctrlMACAddrSet  = 1

	ctrlAnnounce    = 3 // VIRTIO_NET_CTRL_ANNOUNCE
	ctrlAnnounceACK = 0

	ctrlMQ      = 4 // VIRTIO_NET_CTRL_MQ
	ctrlMQPairs = 0 // VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET

	ctrlOffloads    = 5 // VIRTIO_NET_CTRL_GUEST_OFFLOADS
	ctrlOffloadsSet = 0

	ctrlOK  = 0 // VIRTIO_NET_OK
	ctrlErr = 1 // VIRTIO_NET_ERR

	// maxCommand bounds what one command may hold, in bytes.
	maxCommand = 64 << 10
)

// controller serves the control queue.
type controller struct {
	dev   *Device
	q     *queue.Queue
	live  *virtio.Activation
	pairs int // that the driver may use
	dead  bool
	buf   [8]byte
}

func (c *controller) serve() {
	if c.dead || c.q.Stopped() {
		return
	}
	if err := c.drain(); err != nil {
		c.dead = true
		c.live.Notifier.NeedsReset(err)
	}
}

func (c *controller) drain() error {
	for {
		if err := c.q.DisableNotification(); err != nil {
			return err
		}
		for {
			if c.dev.workers.Yield() {
				return nil
			}
			chain, err := c.q.Pop()
			if err != nil {
				return err
			}
			if chain == nil {
				break
			}
			notify, err := c.q.Push(chain, c.answer(chain))
			if err != nil {
				return err
			}
			if notify {
				c.live.Notifier.Used()
			}
		}
		if more, err := c.q.EnableNotification(); err != nil || !more {
			return err
		}
	}
}

// answer carries a command out and writes its ack, the last writable byte.
func (c *controller) answer(chain *queue.Chain) uint32 {
	ack := chain.TakeLast()
	if ack == nil {
		c.dev.stats.guestErrors.Add(1)
		return 0
	}
	ack[0] = ctrlOK
	if !c.execute(chain) {
		ack[0] = ctrlErr
		c.dev.stats.guestErrors.Add(1)
	}
	if queue.Len(chain.Writable()) > 0 {
		chain.MarkAll() // the ack is not at the front
		return 0
	}
	return 1
}

// take copies the next n bytes of the command to the buffer.
func (c *controller) take(chain *queue.Chain, n int) ([]byte, bool) {
	return c.buf[:n], chain.Take(c.buf[:n])
}

func (c *controller) execute(chain *queue.Chain) bool {
	if queue.Len(chain.Readable()) > maxCommand {
		return false
	}
	head, ok := c.take(chain, 2)
	if !ok {
		return false
	}
	class, command := head[0], head[1]
	has := func(f uint64) bool { return c.live.Features&f != 0 }
	switch {
	case class == ctrlRX && (command <= ctrlRXAllMulti && has(featureCtrlRX) || has(featureCtrlRXExtra)):
		return c.setMode(chain, command)
	case class == ctrlMAC && command == ctrlMACTableSet && has(featureCtrlRX):
		return c.setTables(chain)
	case class == ctrlMAC && command == ctrlMACAddrSet && has(featureCtrlMAC):
		return c.setMAC(chain)
	case class == ctrlAnnounce && command == ctrlAnnounceACK && has(featureGuestAnnounce):
		return c.dev.announced()
	case class == ctrlMQ && command == ctrlMQPairs && has(featureMQ):
		return c.setPairs(chain)
	case class == ctrlOffloads && command == ctrlOffloadsSet && has(featureGuestOffloads):
		return c.setOffloads(chain)
	}
	return false
}

// change puts a changed copy of the filter into force.
func (c *controller) change(edit func(*filter)) {
	f := *c.dev.filter.Load()
	edit(&f)
	c.dev.filter.Store(&f)
}

// setMode is 5.1.6.5.1.
func (c *controller) setMode(chain *queue.Chain, command uint8) bool {
	b, ok := c.take(chain, 1)
	if !ok || b[0] > 1 || command > ctrlRXNoBroadc {
		return false
	}
	on := b[0] == 1
	c.change(func(f *filter) {
		*[...]*bool{&f.promisc, &f.allMulti, &f.allUni, &f.noMulti, &f.noUni, &f.noBroadc}[command] = on
	})
	return true
}

// setTables is 5.1.6.5.2: unicast, then multicast addresses.
func (c *controller) setTables(chain *queue.Chain) bool {
	uni, uniMore, ok := c.takeTable(chain)
	if !ok {
		return false
	}
	multi, multiMore, ok := c.takeTable(chain)
	if !ok {
		return false
	}
	c.change(func(f *filter) {
		f.uni, f.uniOverflow, f.multi, f.multiOverflow = uni, uniMore, multi, multiMore
	})
	return true
}

// takeTable reads a table. more says that it is larger than ours: then nothing of
// it is kept.
func (c *controller) takeTable(chain *queue.Chain) (list []MAC, more, ok bool) {
	b, ok := c.take(chain, 4)
	if !ok {
		return nil, false, false
	}
	n := int64(binary.LittleEndian.Uint32(b))
	if n*macSize > queue.Len(chain.Readable()) {
		return nil, false, false
	}
	for range n {
		b, _ := c.take(chain, macSize)
		if n <= maxTable {
			list = append(list, MAC(b))
		}
	}
	return slices.Clip(list), n > maxTable, true
}

func (c *controller) setMAC(chain *queue.Chain) bool {
	b, ok := c.take(chain, macSize)
	if !ok {
		return false
	}
	c.change(func(f *filter) { f.mac = MAC(b) })
	return true
}

// setPairs is 5.1.6.5.5. Workers of pairs that join are woken. Those of pairs that
// leave are told before the backend knows: what it answers them then is no error,
// even if they have joined again when they look.
func (c *controller) setPairs(chain *queue.Chain) bool {
	b, ok := c.take(chain, 2)
	if !ok {
		return false
	}
	n := int(binary.LittleEndian.Uint16(b))
	if n < 1 || n > c.pairs {
		return false
	}
	c.dev.turns.Add(1)
	before := c.dev.inUse.Load()
	c.dev.inUse.Store(min(before, int32(n)))
	err := c.dev.backend.SetQueues(n)
	if err != nil {
		c.dev.fail(err)
		n = int(before)
	}
	c.dev.inUse.Store(int32(n))
	for i := range c.pairs {
		// A signal that fails means an eventfd that nobody sleeps on any more.
		_ = c.live.Kicks[2*i].Signal()
	}
	return err == nil
}

// left says whether a pair that was in use after turn was read may have been out of
// use since.
func (d *Device) left(pair int, turn uint32) bool {
	return pair >= int(d.inUse.Load()) || d.turns.Load() != turn
}

// setOffloads is 5.1.6.5.6.
func (c *controller) setOffloads(chain *queue.Chain) bool {
	b, ok := c.take(chain, 8)
	if !ok {
		return false
	}
	want := binary.LittleEndian.Uint64(b)
	if want&^(guestOffloads&c.live.Features) != 0 {
		return false
	}
	if err := c.dev.backend.SetOffloads(backendOffloads(want)); err != nil {
		c.dev.fail(err)
		return false
	}
	c.dev.mu.Lock()
	defer c.dev.mu.Unlock()
	c.dev.offloads = want
	return true
}
