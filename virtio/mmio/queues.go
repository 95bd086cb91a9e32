package mmio

import (
	"fmt"

	"godwit/virtio"
	"godwit/virtio/queue"
)

// queueRegs are the registers of one queue as the driver wrote them. They are
// judged when it sets QueueReady.
type queueRegs struct {
	num                  uint32
	ready                bool
	desc, driver, device uint64
	q                    *queue.Queue // while ready
}

func (t *Transport) selected() *queueRegs {
	if t.queueSel >= uint32(len(t.queues)) {
		return nil
	}
	return &t.queues[t.queueSel]
}

// writeQueue handles the registers of the selected queue. A queue is set up
// while the driver initialises the device, and not changed while it is ready:
// virtio 1.2, 4.2.2.2 and 3.1.1.
func (t *Transport) writeQueue(off uint64, v uint32) {
	r := t.selected()
	if r == nil {
		return
	}
	if off == regQueueReady && v == 0 {
		t.stopQueue(r)
		return
	}
	s := t.status.Load()
	if r.ready || s&statusFeaturesOK == 0 || s&(statusDriverOK|statusFailed) != 0 {
		return
	}
	switch off {
	case regQueueNum:
		r.num = v
	case regQueueDescLow:
		setLow(&r.desc, v)
	case regQueueDescHigh:
		setHigh(&r.desc, v)
	case regQueueDriverLow:
		setLow(&r.driver, v)
	case regQueueDriverHigh:
		setHigh(&r.driver, v)
	case regQueueDeviceLow:
		setLow(&r.device, v)
	case regQueueDeviceHigh:
		setHigh(&r.device, v)
	case regQueueReady:
		if err := t.readyQueue(int(t.queueSel), false, 0); err != nil {
			t.NeedsReset(err)
		}
	}
}

// readyQueue makes queue i from its registers. A restored one goes on at next.
func (t *Transport) readyQueue(i int, restored bool, next uint16) error {
	r := &t.queues[i]
	if r.num > uint32(t.maxima[i]) {
		return fmt.Errorf("queue %d: %w: size %d, at most %d offered", i, queue.ErrConfig, r.num, t.maxima[i])
	}
	q, err := queue.New(t.mem, queue.Config{
		Size: uint16(r.num), Desc: r.desc, Avail: r.driver, Used: r.device,
		EventIdx: t.driverFeatures&virtio.FeatureEventIdx != 0,
		Indirect: t.driverFeatures&virtio.FeatureIndirectDesc != 0,
		Restored: restored, Next: next,
	})
	if err != nil {
		return fmt.Errorf("queue %d: %w", i, err)
	}
	r.ready, r.q = true, q
	return nil
}

// stopQueue is QueueReady = 0. The driver may reuse the rings once it reads the
// zero back, so the device must have let go of them by then.
func (t *Transport) stopQueue(r *queueRegs) {
	if !r.ready {
		return
	}
	if t.active && !t.paused {
		if err := t.dev.Pause(); err != nil {
			t.NeedsReset(err)
			return
		}
	}
	r.q.Stop()
	r.ready, r.q = false, nil
	if t.active && !t.paused {
		if err := t.dev.Resume(); err != nil {
			t.NeedsReset(err)
		}
	}
}

func setLow(p *uint64, v uint32)  { *p = *p&^0xffffffff | uint64(v) }
func setHigh(p *uint64, v uint32) { *p = *p&0xffffffff | uint64(v)<<32 }
