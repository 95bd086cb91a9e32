package console

import (
	"fmt"

	"godwit/devices/state"
)

// stateVersion 1: number of ports, then for each its name, columns, rows, the
// flags of its guestSide, and the bytes of the transmitq's first chain that have
// left.
const stateVersion = 1

// StateID implements state.Saver. The transport's section holds this state.
func (d *Device) StateID() string { return "virtio-console" }

// StateVersion implements state.Saver.
func (d *Device) StateVersion() uint32 { return stateVersion }

// Save implements state.Saver. There are no bytes in it: what the host has not
// taken is in the ring, what the guest has not taken is in a socket.
func (d *Device) Save(e *state.Encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.U8(uint8(len(d.ports)))
	for _, p := range d.ports {
		e.String(p.name)
		e.U16(p.cols)
		e.U16(p.rows)
		for _, flag := range p.guest.flags() {
			e.Bool(*flag)
		}
		e.U32(p.sent)
	}
	return nil
}

// flags lists the fields in the order of their saved form; bounce follows from
// told.
func (g *guestSide) flags() [6]*bool {
	return [...]*bool{&g.ready, &g.open, &g.told, &g.add, &g.kind, &g.resize}
}

// Restore implements state.Saver and reads version 1. The ports must be those
// that the guest knows. Whoever was behind a port at the source is not behind it
// here, so the guest hears that its host's side was closed.
func (d *Device) Restore(v uint32, dec *state.Decoder) error {
	if v != stateVersion {
		return fmt.Errorf("virtio-console state: version %d is not known, only %d", v, stateVersion)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := dec.U8(); dec.Err() == nil && int(n) != len(d.ports) {
		return fmt.Errorf("virtio-console state: the guest has %d ports, the device here %d; give the same ports", n, len(d.ports))
	}
	for i, p := range d.ports {
		if name := dec.String(MaxName); dec.Err() == nil && name != p.name {
			return fmt.Errorf("virtio-console state: the guest's port %d has the name %.80q, the one here %.80q; give the same ports", i, name, p.name)
		}
		p.cols, p.rows = dec.U16(), dec.U16()
		for _, flag := range p.guest.flags() {
			*flag = dec.Bool()
		}
		p.guest.bounce = p.guest.told
		p.sent = dec.U32()
	}
	if err := dec.Err(); err != nil {
		return fmt.Errorf("virtio-console state: %w", err)
	}
	return nil
}
