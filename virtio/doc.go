// Package virtio holds what every virtio device shares: the Device interface,
// the feature bits of virtio 1.2, section 6, and the Workers that serve a
// device's queues and can be paused between two requests.
//
// A Device knows nothing of its transport. The transport (virtio/mmio) owns
// the status register, feature negotiation and the queue registers; once the
// driver sets DRIVER_OK it hands the device its queues, and takes them back on
// reset. Guest memory is reached through virtio/queue alone, which checks
// every address and length before a device sees it.
//
//	guest driver ── registers ──> virtio/mmio ── Activate(queues) ──> virtio/blk
//	      │                                                              │
//	      └───────── rings in guest memory ──> virtio/queue <────────────┘
package virtio
