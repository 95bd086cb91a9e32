// Package queue is the device's side of a split virtqueue: virtio 1.2, 2.7.
//
//	driver                     guest memory                        device
//	fills descriptors ──> descriptor table ────────────────┐
//	publishes a head ───> available ring ── Pop ──> Chain ─┤ reads and writes
//	                                                       │ guest memory
//	takes it back <────── used ring <────── Push <─────────┘
//
// The driver is an adversary. Everything it can write is judged on a copy that
// was read once: the available index, each head, each descriptor. Every address
// goes through guestmem, a chain has no more descriptors than the queue and no
// more than 4 GiB in all, so neither a loop nor a lie costs more than a bounded
// walk. A rule broken in a way that leaves no way to answer makes the queue
// broken: Pop fails from then on, and the transport asks the driver for a reset
// (DEVICE_NEEDS_RESET). Nothing panics.
//
// # Ordering
//
// Three pairs of accesses must not pass each other:
//
//   - Pop loads the available index (acquire) before ring entry and descriptors:
//     the driver wrote those first.
//   - Push writes the used element before it stores the used index (release): the
//     driver reads them in the other order.
//   - Both "publish, then look whether the other side wants to know" sequences
//     (Push, EnableNotification) put a full fence between the store and the load.
//     Without it the store may still sit in this CPU's buffer while the load is
//     done; driver and device then each see the other's old value, and both sleep.
//
// # Who may call
//
// A Queue belongs to one goroutine at a time. Chains may be pushed in any order.
// Stage and Publish are the two halves of Push, for devices that answer several
// chains at once; PutBack undoes Pop, last chain first.
// In steady state nothing is allocated: chains are reused.
package queue
