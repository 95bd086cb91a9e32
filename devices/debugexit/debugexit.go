package debugexit

import (
	"godwit/devices/bus"
	"godwit/devices/state"
)

// Port is the device's only address, the one that QEMU's isa-debug-exit has by
// default.
const Port = 0x501

// Device is the port. It holds nothing: what the guest asked for is the
// machine's to remember.
type Device struct {
	onExit func(code uint8)
}

var (
	_ bus.Device  = (*Device)(nil)
	_ state.Saver = (*Device)(nil)
)

// New returns a device that calls onExit for every byte written, on the vCPU's
// thread. onExit must not block; a guest can call it any number of times, and
// from several vCPUs at once.
func New(onExit func(code uint8)) *Device { return &Device{onExit: onExit} }

// Attach puts the port on a port I/O bus.
func (d *Device) Attach(b *bus.Bus) error { return b.Attach(Port, 1, "debug exit", d) }

// Read gives zeros: a guest can tell the port from an empty bus.
func (d *Device) Read(_ uint64, p []byte) { clear(p) }

// Write reports the code in the lowest byte.
func (d *Device) Write(_ uint64, p []byte) { d.onExit(p[0]) }

// StateID is "debug-exit".
func (d *Device) StateID() string { return "debug-exit" }

// StateVersion is 1.
func (d *Device) StateVersion() uint32 { return 1 }

// Save writes nothing. The empty section says that the machine has the port.
func (d *Device) Save(*state.Encoder) error { return nil }

// Restore reads version 1, which is empty.
func (d *Device) Restore(_ uint32, dec *state.Decoder) error { return dec.Err() }
