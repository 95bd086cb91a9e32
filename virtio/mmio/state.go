package mmio

import (
	"errors"
	"fmt"

	"godwit/devices/state"
	"godwit/virtio"
)

// stateVersion 1: registers, then each queue, then the device's version and its
// own state.
const stateVersion = 1

// StateID implements state.Saver.
func (t *Transport) StateID() string { return t.id }

// StateVersion implements state.Saver.
func (t *Transport) StateVersion() uint32 { return stateVersion }

// Pause drains the device. It may be called on any Transport, activated or not.
func (t *Transport) Pause() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.pause()
}

func (t *Transport) pause() error {
	if t.paused {
		return nil
	}
	if err := t.dev.Pause(); err != nil {
		return fmt.Errorf("pause %q: %w", t.id, err)
	}
	t.paused = true
	return nil
}

// Resume lets the device go on, here or after Restore, and repeats every kick
// and interrupt that may have been lost on the way.
func (t *Transport) Resume() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.paused {
		return nil
	}
	if err := t.dev.Resume(); err != nil {
		return fmt.Errorf("resume %q: %w", t.id, err)
	}
	t.paused = false
	var errs []error
	if t.active {
		for _, k := range t.kicks {
			errs = append(errs, k.Signal())
		}
	}
	if t.pending.Load() != 0 {
		errs = append(errs, t.irq.Trigger())
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("resume %q: %w", t.id, err)
	}
	return nil
}

// Save implements state.Saver. The Transport must be paused.
func (t *Transport) Save(e *state.Encoder) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.paused {
		return fmt.Errorf("save %q: it is not paused", t.id)
	}
	e.U32(t.dev.Type())
	e.U32(t.status.Load())
	e.U32(t.pending.Load())
	e.U32(t.generation.Load())
	e.U32(t.deviceSel)
	e.U32(t.driverSel)
	e.U64(t.driverFeatures)
	e.U32(t.queueSel)
	e.U16(uint16(len(t.queues)))
	for i := range t.queues {
		if err := t.queues[i].save(e, t.kept(i)); err != nil {
			return fmt.Errorf("save %q: queue %d: %w", t.id, i, err)
		}
	}
	e.U32(t.dev.StateVersion())
	if err := t.dev.Save(e); err != nil {
		return fmt.Errorf("save %q: %w", t.id, err)
	}
	return nil
}

// kept is how many requests of a queue the device saves itself.
func (t *Transport) kept(queue int) int {
	if k, ok := t.dev.(virtio.Keeper); ok {
		return k.Kept(queue)
	}
	return 0
}

func (r *queueRegs) save(e *state.Encoder, kept int) error {
	e.U32(r.num)
	e.U64(r.desc)
	e.U64(r.driver)
	e.U64(r.device)
	e.Bool(r.ready)
	if !r.ready {
		return nil
	}
	// Of a queue that was stopped, nothing is taken or answered any more.
	if n := r.q.Outstanding() - kept; n != 0 && !r.q.Stopped() {
		return fmt.Errorf("%d requests are not answered", n)
	}
	e.Bool(r.q.Stopped())
	e.U16(r.q.Next())
	return nil
}

// Restore implements state.Saver and reads version 1. The Transport must be new,
// over the restored machine's memory. It comes back paused, its device activated
// if the driver had got that far.
func (t *Transport) Restore(v uint32, d *state.Decoder) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if v != stateVersion {
		return fmt.Errorf("restore %q: version %d is not known, only %d", t.id, v, stateVersion)
	}
	if t.closed || t.active || t.status.Load() != 0 {
		return fmt.Errorf("restore %q: it is not a new device", t.id)
	}
	// Paused from here on: what is activated below starts to work in Resume.
	if err := t.pause(); err != nil {
		return err
	}
	stopped := t.restoreRegisters(d)
	if d.Err() != nil {
		return fmt.Errorf("restore %q: %w", t.id, d.Err())
	}
	if err := t.restoreDevice(d); err != nil {
		return fmt.Errorf("restore %q: %w", t.id, err)
	}
	return t.reactivate(stopped)
}

// restoreRegisters reads all but the device and makes the queues. It returns
// which of them were stopped. Errors stay in d.
func (t *Transport) restoreRegisters(d *state.Decoder) []bool {
	if got := d.U32(); d.Err() == nil && got != t.dev.Type() {
		d.Fail("it is of a virtio device of type %d, not %d", got, t.dev.Type())
	}
	status := d.U32()
	t.pending.Store(d.U32())
	t.generation.Store(d.U32())
	t.deviceSel, t.driverSel = d.U32(), d.U32()
	t.driverFeatures = d.U64()
	t.queueSel = d.U32()
	if n := d.U16(); d.Err() == nil && int(n) != len(t.queues) {
		d.Fail("it has %d queues, not %d", n, len(t.queues))
	}
	if d.Err() == nil {
		t.checkRegisters(d, status)
	}
	t.status.Store(status)
	stopped := make([]bool, len(t.queues))
	for i := range t.queues {
		stopped[i] = t.restoreQueue(d, i)
	}
	return stopped
}

// checkRegisters holds the status to what steps can reach.
func (t *Transport) checkRegisters(d *state.Decoder, status uint32) {
	reached := uint32(0)
	for s := nextStep(0); s != nil && reached != status&^troubles; s = nextStep(reached) {
		reached |= s.bit
	}
	if reached != status&^troubles {
		d.Fail("no driver can reach device status %#x", status)
	}
	if p := t.pending.Load(); p&^(interruptUsed|interruptConfig) != 0 {
		d.Fail("interrupt status %#x", p)
	}
	if status&statusFeaturesOK != 0 {
		if err := t.acceptFeatures(); err != nil {
			d.Fail("%v; give the device here the options that it had", err)
		}
	}
}

func (t *Transport) restoreQueue(d *state.Decoder, i int) (stopped bool) {
	r := &t.queues[i]
	r.num = d.U32()
	r.desc, r.driver, r.device = d.U64(), d.U64(), d.U64()
	if !d.Bool() {
		return false
	}
	stopped = d.Bool()
	next := d.U16()
	if d.Err() != nil {
		return false
	}
	if t.status.Load()&statusFeaturesOK == 0 {
		d.Fail("queue %d is ready before features were agreed", i)
		return false
	}
	if err := t.readyQueue(i, true, next); err != nil {
		d.Fail("%v", err)
	}
	return stopped
}

func (t *Transport) restoreDevice(d *state.Decoder) error {
	v := d.U32()
	if d.Err() != nil {
		return d.Err()
	}
	if err := t.dev.Restore(v, d); err != nil {
		return err
	}
	return d.Err()
}

// reactivate gives the queues to the device, which stays paused.
func (t *Transport) reactivate(stopped []bool) error {
	for i, s := range stopped {
		if s {
			t.queues[i].q.Stop()
		}
	}
	if t.status.Load()&statusDriverOK != 0 {
		if err := t.activate(); err != nil {
			return fmt.Errorf("restore %q: %w", t.id, err)
		}
	}
	return nil
}
