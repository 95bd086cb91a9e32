package drivertest

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/devices/bus"
)

// Registers drives a bank of virtio-mmio registers.
type Registers struct {
	T   testing.TB
	Dev bus.Device
}

// Get reads a register.
func (r Registers) Get(off uint64) uint32 {
	var b [4]byte
	r.Dev.Read(off, b[:])
	return binary.LittleEndian.Uint32(b[:])
}

// Set writes a register.
func (r Registers) Set(off uint64, v uint32) {
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], v)
	r.Dev.Write(off, b[:])
}

// DeviceFeatures reads both halves.
func (r Registers) DeviceFeatures() uint64 {
	r.Set(0x14, 0)
	lo := r.Get(0x10)
	r.Set(0x14, 1)
	return uint64(r.Get(0x10))<<32 | uint64(lo)
}

// Negotiate resets the device and goes up to FEATURES_OK. It reports whether the
// device accepted.
func (r Registers) Negotiate(features uint64) bool {
	r.Set(0x70, 0)
	r.Set(0x70, 1)
	r.Set(0x70, 3)
	r.Set(0x24, 0)
	r.Set(0x20, uint32(features))
	r.Set(0x24, 1)
	r.Set(0x20, uint32(features>>32))
	r.Set(0x70, 11)
	return r.Get(0x70)&8 != 0
}

// SetQueue makes a queue ready.
func (r Registers) SetQueue(i int, ring *Ring) {
	r.Set(0x30, uint32(i))
	require.Zero(r.T, r.Get(0x44), "queue %d is ready before it was set up", i)
	require.LessOrEqual(r.T, uint32(ring.Size), r.Get(0x34))
	r.Set(0x38, uint32(ring.Size))
	for _, a := range []struct {
		off uint64
		gpa uint64
	}{{0x80, ring.Desc}, {0x90, ring.Avail}, {0xa0, ring.Used}} {
		r.Set(a.off, uint32(a.gpa))
		r.Set(a.off+4, uint32(a.gpa>>32))
	}
	r.Set(0x44, 1)
	require.Equal(r.T, uint32(1), r.Get(0x44), "queue %d", i)
}

// Start is DRIVER_OK.
func (r Registers) Start() {
	r.Set(0x70, 15)
	require.Equal(r.T, uint32(15), r.Get(0x70))
}

// Kick writes the queue's number to QueueNotify.
func (r Registers) Kick(i int) { r.Set(0x50, uint32(i)) }

// Acknowledge reads and clears the interrupt status, as a handler does first.
func (r Registers) Acknowledge() uint32 {
	s := r.Get(0x60)
	r.Set(0x64, s)
	return s
}
