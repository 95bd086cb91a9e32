package rng

import (
	"fmt"
	"time"

	"godwit/devices/state"
)

// stateVersion 1: the bucket's level in nanoseconds, bytes left of the one-time
// burst.
const stateVersion = 1

// StateID implements state.Saver. The transport's section holds this state.
func (d *Device) StateID() string { return "virtio-rng" }

// StateVersion implements state.Saver.
func (d *Device) StateVersion() uint32 { return stateVersion }

// Save implements state.Saver. A guest does not get a new budget by moving.
func (d *Device) Save(e *state.Encoder) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	e.U64(uint64(d.bucket.level))
	e.U64(d.bucket.burst)
	return nil
}

// Restore implements state.Saver and reads version 1.
func (d *Device) Restore(v uint32, dec *state.Decoder) error {
	if v != stateVersion {
		return fmt.Errorf("virtio-rng state: version %d is not known, only %d", v, stateVersion)
	}
	level, burst := dec.U64(), dec.U64()
	if err := dec.Err(); err != nil {
		return fmt.Errorf("virtio-rng state: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	b := &d.bucket
	if level > uint64(b.limit.Refill) || burst > b.limit.OneTimeBurst {
		return fmt.Errorf("virtio-rng state: a budget of %v and %d bytes, in a bucket of %v and %d; give the same rate limit",
			time.Duration(min(level, 1<<62)), burst, b.limit.Refill, b.limit.OneTimeBurst)
	}
	b.level, b.burst, b.at = time.Duration(level), burst, d.now()
	return nil
}
