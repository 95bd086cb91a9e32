// Package blockfile gives a disk image to whoever needs one: a virtio-blk
// device, a migration, a tool. A disk is not a device, so nothing here knows
// of guests or queues.
//
//	Open ──> File ── Preadv/Pwritev/Discard/WriteZeroes ──> raw image
//	          │                 │
//	          │                 └── cache=none: O_DIRECT, bounced where the
//	          │                     caller's buffers are not aligned
//	          └── Lock/Unlock/LockedElsewhere: one OFD lock over the image
//
// # The lock
//
// A writable image is locked exclusively, a read-only one shared, for as long
// as it is open. A migration hands the lock over:
//
//	source                            destination
//	Open (locks)                      Open with NoLock
//	                                  LockedElsewhere: true, else another disk
//	drain, Flush, Unlock  ──────────> Lock (reads the size again)
//
// Between Unlock and Lock neither side can write: a File refuses to change an
// image that it has not locked. The lock belongs to the open file description
// (F_OFD_SETLK), so it dies with the process however that ends, and closing an
// unrelated descriptor of the same file does not drop it.
package blockfile
