package net

import (
	"sync/atomic"

	"godwit/virtio"
	"godwit/virtio/queue"
)

// batch shows the driver what a worker has answered, and everybody the figures,
// several packets at a time.
type batch struct {
	q       *queue.Queue
	notify  virtio.Notifier
	total   *traffic
	packets int

	frames, bytes                          uint64
	malformed, filtered, tooLarge, refused uint64
	unplugged                              uint64 // the cable was out
}

// traffic is a direction's figures, of all pairs.
type traffic struct {
	frames, bytes                          atomic.Uint64
	malformed, filtered, tooLarge, refused atomic.Uint64
	unplugged                              atomic.Uint64
}

// add counts a packet of n bytes whose chains are staged.
func (b *batch) add(n int) error {
	b.frames++
	b.bytes += uint64(n - headerSize)
	return b.step()
}

// step counts an answer of any kind.
func (b *batch) step() error {
	if b.packets++; b.packets < batchPackets {
		return nil
	}
	return b.flush()
}

func (b *batch) flush() error {
	b.packets = 0
	for _, c := range [...]struct {
		from *uint64
		to   *atomic.Uint64
	}{
		{&b.frames, &b.total.frames}, {&b.bytes, &b.total.bytes},
		{&b.malformed, &b.total.malformed}, {&b.filtered, &b.total.filtered},
		{&b.tooLarge, &b.total.tooLarge}, {&b.refused, &b.total.refused}, {&b.unplugged, &b.total.unplugged},
	} {
		if *c.from != 0 {
			c.to.Add(*c.from)
			*c.from = 0
		}
	}
	notify, err := b.q.Publish()
	if notify {
		b.notify.Used()
	}
	return err
}
