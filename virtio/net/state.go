package net

import (
	"fmt"

	"godwit/devices/state"
)

// stateVersion 1: MTU, pairs, pairs in use, settled, offloads, link, announce,
// filter, neighbours, the packets that wait.
const stateVersion = 1

// StateID implements state.Saver. The transport's section holds this state.
func (d *Device) StateID() string { return "virtio-net" }

// StateVersion implements state.Saver.
func (d *Device) StateVersion() uint32 { return stateVersion }

// Save implements state.Saver.
func (d *Device) Save(e *state.Encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.U16(d.mtu)
	e.U16(uint16(d.pairs))
	e.U16(uint16(d.inUse.Load()))
	e.Bool(d.settled)
	e.U64(d.offloads)
	e.Bool(d.down.Load())
	e.Bool(d.announce)
	d.filter.Load().save(e)
	e.U8(uint8(d.known.n))
	for _, who := range d.known.list[:d.known.n] {
		e.Raw(who.ip[:])
		e.Raw(who.mac[:])
	}
	for i := range d.pairs {
		e.Bytes(d.heldBy(i))
	}
	return nil
}

// heldBy is the packet that waits for the buffers of a pair; one that came for a
// queue which the driver has stopped since is kept as it is.
func (d *Device) heldBy(pair int) []byte {
	if pair < len(d.receivers) && d.receivers[pair] != nil {
		r := d.receivers[pair]
		return r.spill[:r.held]
	}
	if pair < len(d.restored) {
		return d.restored[pair]
	}
	return nil
}

func (f *filter) flags() []*bool {
	return []*bool{&f.promisc, &f.allMulti, &f.allUni, &f.noMulti, &f.noUni, &f.noBroadc, &f.uniOverflow, &f.multiOverflow}
}

func (f *filter) save(e *state.Encoder) {
	e.Raw(f.mac[:])
	for _, b := range f.flags() {
		e.Bool(*b)
	}
	for _, table := range [][]MAC{f.uni, f.multi} {
		e.U8(uint8(len(table)))
		for _, m := range table {
			e.Raw(m[:])
		}
	}
}

func (f *filter) restore(d *state.Decoder) {
	d.Raw(f.mac[:])
	for _, b := range f.flags() {
		*b = d.Bool()
	}
	for _, table := range []*[]MAC{&f.uni, &f.multi} {
		n := int(d.U8())
		if d.Err() == nil && n > maxTable {
			d.Fail("a filter of %d addresses, at most %d", n, maxTable)
		}
		for range n {
			var m MAC
			if d.Raw(m[:]); d.Err() != nil {
				return
			}
			*table = append(*table, m)
		}
	}
}

// Restore implements state.Saver and reads version 1. What waits at the backend is
// left alone: it may be for the guest.
func (d *Device) Restore(v uint32, dec *state.Decoder) error {
	if v != stateVersion {
		return fmt.Errorf("virtio-net state: version %d is not known, only %d", v, stateVersion)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	mtu, pairs, inUse := dec.U16(), dec.U16(), dec.U16()
	d.settled, d.offloads = dec.Bool(), dec.U64()
	d.down.Store(dec.Bool())
	d.announce = dec.Bool()
	var f filter
	f.restore(dec)
	if err := d.restoreNeighbours(dec); err != nil {
		return fmt.Errorf("virtio-net state: %w", err)
	}
	switch {
	case mtu != d.mtu:
		return fmt.Errorf("virtio-net state: the guest's card has MTU %d, the one given here %d; give the same", mtu, d.mtu)
	case int(pairs) != d.pairs:
		return fmt.Errorf("virtio-net state: the guest's card has %d queue pairs, the one given here %d; give as many", pairs, d.pairs)
	case inUse < 1 || inUse > pairs:
		return fmt.Errorf("virtio-net state: %d queue pairs in use of %d", inUse, pairs)
	case d.offloads&^guestOffloads != 0:
		return fmt.Errorf("virtio-net state: offloads %#x", d.offloads)
	}
	d.restored = make([][]byte, pairs)
	for i := range d.restored {
		p := dec.Bytes(maxPacket)
		if dec.Err() == nil && len(p) != 0 && len(p) < minPacket {
			dec.Fail("a packet of %d bytes waits", len(p))
		}
		d.restored[i] = append([]byte(nil), p...)
	}
	if err := dec.Err(); err != nil {
		return fmt.Errorf("virtio-net state: %w", err)
	}
	d.inUse.Store(int32(inUse))
	d.filter.Store(&f)
	return nil
}

func (d *Device) restoreNeighbours(dec *state.Decoder) error {
	n := int(dec.U8())
	if dec.Err() == nil && n > maxNeighbours {
		dec.Fail("%d neighbours, at most %d", n, maxNeighbours)
	}
	d.known = neighbours{}
	for range n {
		var who neighbour
		dec.Raw(who.ip[:])
		dec.Raw(who.mac[:])
		if dec.Err() != nil {
			break
		}
		// As the guest says it: an enemy's list is no longer than an honest one.
		f := packetOf(etherTypeARP, arpRequest, who, MAC{})[headerSize:]
		if _, ok := parseARP(f); !ok {
			dec.Fail("an address that no host can have: %v", who.ip)
			break
		}
		d.known.add(who)
	}
	return dec.Err()
}
