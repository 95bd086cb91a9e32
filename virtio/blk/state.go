package blk

import (
	"fmt"

	"godwit/devices/state"
)

// stateVersion 1: sectors, read-only, serial, writeback. parkedVersion 2: and the
// requests that wait for room. It is used where there are some, so that older
// destinations take all other guests.
const stateVersion, parkedVersion = 1, 2

// StateID implements state.Saver. The transport's section holds this state.
func (d *Device) StateID() string { return "virtio-blk" }

// StateVersion implements state.Saver.
func (d *Device) StateVersion() uint32 {
	if d.Parked() > 0 {
		return parkedVersion
	}
	return stateVersion
}

// Save implements state.Saver. There are no requests in it but the parked ones:
// a paused device has answered all others that it took.
func (d *Device) Save(e *state.Encoder) error {
	e.U64(d.sectors())
	e.Bool(d.backend.ReadOnly())
	e.Raw(d.serial[:])
	e.Bool(d.writeback.Load())
	if d.Parked() > 0 {
		d.saveParked(e)
	}
	return nil
}

// Restore implements state.Saver and reads versions 1 and 2. The disk must be the one
// that the guest knows.
func (d *Device) Restore(v uint32, dec *state.Decoder) error {
	if v != stateVersion && v != parkedVersion {
		return fmt.Errorf("virtio-blk state: version %d is not known, only %d and %d", v, stateVersion, parkedVersion)
	}
	sectors, readOnly := dec.U64(), dec.Bool()
	var serial [idSize]byte
	dec.Raw(serial[:])
	writeback := dec.Bool()
	if v == parkedVersion {
		if err := d.restoreParked(dec); err != nil {
			return err
		}
	}
	if err := dec.Err(); err != nil {
		return fmt.Errorf("virtio-blk state: %w", err)
	}
	switch {
	case sectors != d.sectors():
		return fmt.Errorf("virtio-blk state: the guest's disk has %d sectors, the one given here %d; give the same disk", sectors, d.sectors())
	case readOnly != d.backend.ReadOnly():
		return fmt.Errorf("virtio-blk state: the guest's disk has read-only=%t, the one given here %t; open it the same way", readOnly, d.backend.ReadOnly())
	case serial != d.serial:
		return fmt.Errorf("virtio-blk state: the guest's disk has serial %q, the one given here %q; give the same serial", serial[:], d.serial[:])
	}
	d.writeback.Store(writeback)
	return nil
}
