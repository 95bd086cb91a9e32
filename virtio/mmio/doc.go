// Package mmio is virtio's memory-mapped transport, version 2: virtio 1.2, 4.2.
//
// A Transport is a bank of registers on the MMIO bus, with one virtio.Device
// behind it. It owns the status register, feature negotiation, the queue
// registers and the interrupt status.
//
//	 status   0 ──> ACKNOWLEDGE ──> DRIVER ──> FEATURES_OK ──> DRIVER_OK
//	          ^                                   features        device
//	          └── write 0: reset, from anywhere   judged          activated
//
//	kick      guest writes QueueNotify ── KVM_IOEVENTFD ──> Kick ──> worker
//	                                  └── no ioeventfd: Write ──┘
//	interrupt worker ── InterruptStatus, bus.Interrupt ──> guest
//
// Interrupts are edges; InterruptStatus says what they were about. Setting a bit
// always sends one, so a guest that acknowledges before it looks at its rings
// misses none.
//
// # Moving
//
// Pause drains the device, Save writes registers, queues and the device's own
// state as one section, Restore brings a new Transport to the same point, still
// paused. Resume then kicks every queue and, while InterruptStatus is not zero,
// sends the interrupt again: a kick or an edge that was on its way in the old
// process is done twice rather than never, which rings and drivers allow.
package mmio
