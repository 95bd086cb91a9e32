package vsock

import (
	"fmt"

	"godwit/devices/state"
)

// stateVersion 1: the guest's CID.
const stateVersion = 1

// StateID implements state.Saver. The transport's section holds this state.
func (d *Device) StateID() string { return "virtio-vsock" }

// StateVersion implements state.Saver.
func (d *Device) StateVersion() uint32 { return stateVersion }

// Save implements state.Saver. Connections are not in it: they do not move.
func (d *Device) Save(e *state.Encoder) error {
	e.U64(d.cid)
	return nil
}

// Restore implements state.Saver and reads version 1. The guest will hear that
// its connections are gone: virtio 1.2, 5.10.6.7.
func (d *Device) Restore(v uint32, dec *state.Decoder) error {
	if v != stateVersion {
		return fmt.Errorf("virtio-vsock state: version %d is not known, only %d", v, stateVersion)
	}
	cid := dec.U64()
	if err := dec.Err(); err != nil {
		return fmt.Errorf("virtio-vsock state: %w", err)
	}
	if cid != d.cid {
		return fmt.Errorf("virtio-vsock state: the guest has CID %d, the device here %d; give the same", cid, d.cid)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.move.lost, d.move.watch, d.move.hold = true, true, true
	return nil
}
