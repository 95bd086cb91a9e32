package virtio

import (
	"godwit/devices/state"
	"godwit/virtio/queue"
)

// Device is a virtio device without its transport.
//
//	          Activate                Pause
//	inactive ──────────> running <──────────────> paused
//	    ^                   │        Resume          │
//	    └────── Reset ──────┴────────────────────────┘
//
// The transport calls everything but ReadConfig and WriteConfig one at a time.
// Those two come from vCPU threads at any moment, together with each other and
// with the device's own workers; the device does its own locking.
//
// The state.Saver part is called while the device is paused, or was never
// activated. What it saves is the device's own: the transport saves features
// and queues. Restore comes before Activate.
type Device interface {
	state.Saver

	// Type is the device ID: virtio 1.2, section 5.
	Type() uint32
	// Features are the device's own feature bits. The transport adds those of
	// the rings and of the transport.
	Features() uint64
	// QueueSizes gives the largest size, a power of two, of each queue.
	QueueSizes() []uint16

	// ReadConfig fills p from the device configuration space; bytes that the
	// device does not have read as zero.
	ReadConfig(off uint64, p []byte)
	// WriteConfig changes what the driver may change, and ignores the rest.
	WriteConfig(off uint64, p []byte)

	// Activate starts the device: the driver set DRIVER_OK. A device that was
	// paused while inactive starts paused.
	Activate(a Activation) error
	// Reset stops every worker, waits for it, forgets the queues and goes back
	// to the state of a new device, but for Pause, which stays. It may be called
	// on an inactive device.
	Reset()
	// Pause returns once nothing is under way: every request that was taken from
	// a queue is answered, or kept (see Keeper), no guest memory is written and no host file is used
	// until Resume. It may be called on an inactive or a paused device.
	Pause() error
	// Resume goes on. It does not kick the queues; the transport does.
	Resume() error
}

// Negotiator is a Device whose configuration space depends on what the driver
// accepted. The driver may read and write it as soon as that is settled, which
// is before Activate.
type Negotiator interface {
	// Negotiated is called when the driver sets FEATURES_OK: once at most
	// between Reset and Activate, and never for a device that was restored
	// beyond that.
	Negotiated(features uint64)
}

// Keeper is a Device that may be paused with requests that it took from a queue
// and has not answered, and that saves them itself.
type Keeper interface {
	// Kept is their number in a queue, while the device is paused.
	Kept(queue int) int
}

// Activation is what the driver and the transport agreed on.
type Activation struct {
	// Features is the negotiated subset of everything that was offered.
	Features uint64
	// Queues are the device's to use until Reset, by queue number. One that the
	// driver did not set up is nil.
	Queues []*queue.Queue
	// Kicks tell that the driver made chains available, by queue number.
	Kicks []*Kick
	// Notifier is for telling the driver.
	Notifier Notifier
}

// Notifier tells the driver something. It is implemented by the transport, may be
// called from any goroutine, and never blocks on the device or on a vCPU.
type Notifier interface {
	// Used says that Push asked for an interrupt.
	Used()
	// ConfigChanged says that the configuration space reads differently now.
	ConfigChanged()
	// NeedsReset says that the device cannot go on as the driver set it up.
	NeedsReset(cause error)
}
