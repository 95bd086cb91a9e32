package console

import (
	"fmt"

	"godwit/devices/state"
)

// stateVersion 2: number of ports, then for each its name, columns, rows, the
// flags of its guestSide, the bytes of the transmitq's first chain that have left,
// whether its output awaits a client, and the input of clients that have left.
// Version 1 lacks the last two.
const stateVersion = 2

// StateID implements state.Saver. The transport's section holds this state.
func (d *Device) StateID() string { return "virtio-console" }

// StateVersion implements state.Saver.
func (d *Device) StateVersion() uint32 { return stateVersion }

// Save implements state.Saver. What the host has not taken is in the ring, so it is
// not in here; of what the guest has not taken, the part of clients that have left
// is. The others hear that their connection has ended.
func (d *Device) Save(e *state.Encoder) error {
	var hosts [MaxPorts]hostSide
	for i, p := range d.ports {
		hosts[i] = p.host.settle()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	e.U8(uint8(len(d.ports)))
	for i, p := range d.ports {
		e.String(p.name)
		e.U16(p.cols)
		e.U16(p.rows)
		for _, flag := range p.guest.flags() {
			e.Bool(*flag)
		}
		e.U32(p.sent)
		e.Bool(hosts[i].awaits || p.mayOwe())
		e.Bytes(hosts[i].left)
	}
	return nil
}

// mayOwe says whether the ring of a channel may hold output that a client has not
// taken, or get some from a guest that believes in that client.
func (p *port) mayOwe() bool { return p.name != "" && (p.guest.told || p.sent > 0) }

// hostSide is what of a port's host moves with the guest.
type hostSide struct {
	awaits bool
	left   []byte
}

func (h *host) settle() hostSide {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.makeRoom()
	return hostSide{h.awaits, append([]byte(nil), h.left.buf...)}
}

func (h *host) adopt(s hostSide) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.awaits = s.awaits
	h.left.set(s.left)
}

// await says whether output is kept until a client has taken some.
func (h *host) await(on bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.awaits = on
}

// flags lists the fields in the order of their saved form; bounce follows from
// told.
func (g *guestSide) flags() [6]*bool {
	return [...]*bool{&g.ready, &g.open, &g.told, &g.add, &g.kind, &g.resize}
}

// Restore implements state.Saver and reads versions 1 and 2. The ports must be
// those that the guest knows. Whoever was behind a port at the source is not behind
// it here, so the guest hears that its host's side was closed; until then, and
// until a client comes, its output waits.
func (d *Device) Restore(v uint32, dec *state.Decoder) error {
	if v < 1 || v > stateVersion {
		return fmt.Errorf("virtio-console state: version %d is not known, only 1 to %d", v, stateVersion)
	}
	hosts, err := d.restorePorts(v, dec)
	if err != nil {
		return err
	}
	for i, p := range d.ports {
		p.host.adopt(hosts[i])
	}
	return nil
}

func (d *Device) restorePorts(v uint32, dec *state.Decoder) (hosts [MaxPorts]hostSide, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n := dec.U8(); dec.Err() == nil && int(n) != len(d.ports) {
		return hosts, fmt.Errorf("virtio-console state: the guest has %d ports, the device here %d; give the same ports", n, len(d.ports))
	}
	for i, p := range d.ports {
		if name := dec.String(MaxName); dec.Err() == nil && name != p.name {
			return hosts, fmt.Errorf("virtio-console state: the guest's port %d has the name %.80q, the one here %.80q; give the same ports", i, name, p.name)
		}
		p.cols, p.rows = dec.U16(), dec.U16()
		for _, flag := range p.guest.flags() {
			*flag = dec.Bool()
		}
		p.guest.bounce = p.guest.told
		p.sent = dec.U32()
		hosts[i].awaits = p.mayOwe()
		if v >= 2 {
			hosts[i].awaits = dec.Bool()
			hosts[i].left = append([]byte(nil), dec.Bytes(maxLeft)...)
		}
	}
	if err := dec.Err(); err != nil {
		return hosts, fmt.Errorf("virtio-console state: %w", err)
	}
	return hosts, nil
}
