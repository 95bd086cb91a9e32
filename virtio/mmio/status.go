package mmio

import (
	"fmt"

	"godwit/virtio"
	"godwit/virtio/queue"
)

// step is one legal move of the status register: virtio 1.2, 3.1.1. enter runs
// before the bit is set and may refuse it; entered runs after.
type step struct {
	from    uint32
	bit     uint32
	enter   func(*Transport) error
	entered func(*Transport)
}

// steps is all of them. A driver may take several in one write.
var steps = [...]step{
	{from: 0, bit: statusAcknowledge},
	{from: statusAcknowledge, bit: statusDriver},
	{from: statusAcknowledge | statusDriver, bit: statusFeaturesOK, enter: (*Transport).acceptFeatures, entered: (*Transport).settle},
	{from: statusAcknowledge | statusDriver | statusFeaturesOK, bit: statusDriverOK, entered: (*Transport).start},
}

// troubles are the bits that say something is wrong; they lie beside the steps.
const troubles = statusNeedsReset | statusFailed

// nextStep gives the move out of a status, or nil.
func nextStep(from uint32) *step {
	for i := range steps {
		if steps[i].from == from {
			return &steps[i]
		}
	}
	return nil
}

// writeStatus moves along steps as far as the driver asks. It never takes a bit
// back: only 0 does, and resets.
func (t *Transport) writeStatus(v uint32) {
	if v == 0 {
		t.reset()
		return
	}
	if v&statusFailed != 0 {
		t.status.Or(statusFailed)
	}
	if t.status.Load()&troubles != 0 {
		return // 2.1: only a reset helps
	}
	for {
		s := nextStep(t.status.Load() &^ troubles)
		if s == nil || v&s.bit == 0 {
			return
		}
		if s.enter != nil {
			if err := s.enter(t); err != nil {
				t.complain("driver refused", err)
				return
			}
		}
		t.status.Or(s.bit)
		if s.entered != nil {
			s.entered(t)
		}
	}
}

// acceptFeatures judges what the driver chose: virtio 1.2, 2.2.2. The refusal is
// that FEATURES_OK reads back as zero.
func (t *Transport) acceptFeatures() error {
	if bad := t.driverFeatures &^ t.offered(); bad != 0 {
		return fmt.Errorf("features %#x were not offered", bad)
	}
	if t.driverFeatures&virtio.FeatureVersion1 == 0 {
		return fmt.Errorf("it does not accept VIRTIO_F_VERSION_1, and there is no legacy interface")
	}
	return nil
}

// settle is what FEATURES_OK sets off.
func (t *Transport) settle() {
	if n, ok := t.dev.(virtio.Negotiator); ok {
		n.Negotiated(t.driverFeatures)
	}
}

// start is what DRIVER_OK sets off.
func (t *Transport) start() {
	if err := t.activate(); err != nil {
		t.NeedsReset(err)
	}
}

// activate hands the queues to the device. The status has DRIVER_OK by now, so
// that a worker which finds a broken queue at once can say so.
func (t *Transport) activate() error {
	queues := make([]*queue.Queue, len(t.queues))
	for i := range t.queues {
		queues[i] = t.queues[i].q
	}
	t.active = true
	return t.dev.Activate(virtio.Activation{
		Features: t.driverFeatures, Queues: queues, Kicks: t.kicks, Notifier: t,
	})
}

// reset is virtio 1.2, 2.4 and 4.2.2: everything as after New. The workers stop
// before the status is cleared, so none of them can spoil the new life.
func (t *Transport) reset() {
	t.dev.Reset()
	t.active = false
	t.deviceSel, t.driverSel, t.driverFeatures, t.queueSel = 0, 0, 0, 0
	clear(t.queues)
	t.pending.Store(0)
	t.status.Store(0)
}
