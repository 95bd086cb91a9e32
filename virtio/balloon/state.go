package balloon

import (
	"fmt"
	"time"

	"godwit/devices/state"
)

// stateVersion 1: target, actual, poison, stats interval in seconds, latest hinting
// session, the command that the driver is to read, whether it must be told that
// this changed, queue of each role plus one.
const stateVersion = 1

// StateID implements state.Saver. The transport's section holds this state.
func (d *Device) StateID() string { return "virtio-balloon" }

// StateVersion implements state.Saver.
func (d *Device) StateVersion() uint32 { return stateVersion }

// Save implements state.Saver. There is no chain in it, and no page: those in the
// balloon are memory that was never touched, as far as memory is concerned. Nor is
// there a hinting session: who asked stays here, so the driver finds it done.
func (d *Device) Save(e *state.Encoder) error {
	e.U32(d.target.Load())
	e.U32(d.actual.Load())
	e.U32(d.poison.Load())
	e.U32(uint32(d.StatsInterval() / time.Second))
	d.mu.Lock()
	defer d.mu.Unlock()
	last, command := d.hint.read()
	tell := d.tell
	if command == last && last != cmdStop {
		command, tell = cmdDone, true
	}
	e.U32(last)
	e.U32(command)
	e.Bool(tell)
	for _, q := range d.roles {
		e.U8(uint8(q + 1))
	}
	return nil
}

// Restore implements state.Saver and reads version 1.
func (d *Device) Restore(v uint32, dec *state.Decoder) error {
	if v != stateVersion {
		return fmt.Errorf("virtio-balloon state: version %d is not known, only %d", v, stateVersion)
	}
	target, actual, poison := dec.U32(), dec.U32(), dec.U32()
	interval := time.Duration(dec.U32()) * time.Second
	session, command, tell := dec.U32(), dec.U32(), dec.Bool()
	roles := noRoles
	for i := range roles {
		roles[i] = int8(dec.U8()) - 1
	}
	if err := dec.Err(); err != nil {
		return fmt.Errorf("virtio-balloon state: %w", err)
	}
	if err := d.checkTarget(target); err != nil {
		return fmt.Errorf("virtio-balloon state: %w", err)
	}
	if (interval == 0) != (d.interval.Load() == 0) {
		return fmt.Errorf("virtio-balloon state: the guest's balloon is polled every %v, the one given here every %v; give both statistics or none", interval, d.StatsInterval())
	}
	if interval != 0 {
		if err := checkInterval(interval); err != nil {
			return fmt.Errorf("virtio-balloon state: %w", err)
		}
	}
	if session != 0 && session < cmdFirst || command > cmdDone {
		return fmt.Errorf("virtio-balloon state: hinting session %#x with command %#x", session, command)
	}
	if err := roles.check(); err != nil {
		return fmt.Errorf("virtio-balloon state: %w", err)
	}
	d.target.Store(target)
	d.actual.Store(actual)
	d.poison.Store(poison)
	d.interval.Store(int64(interval))
	d.hint.set(session, command)
	d.mu.Lock()
	defer d.mu.Unlock()
	// Without any queue the driver had not started the device: it may do so here.
	d.roles, d.restored, d.tell = roles, roles != noRoles, tell
	return nil
}

// check holds roles to what assign can give.
func (r roles) check() error {
	last := int8(-1)
	for _, q := range r {
		if q == -1 {
			continue
		}
		if q <= last || q >= numRoles {
			return fmt.Errorf("queues %v cannot be those of a balloon", r)
		}
		last = q
	}
	return nil
}
