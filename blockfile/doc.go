// Package blockfile gives a disk image to whoever needs one: a virtio-blk
// device, a migration, a tool. A disk is not a device, so nothing here knows
// of guests or queues.
//
//	Open ──> File ── Preadv/Pwritev/Discard/WriteZeroes ──> raw image, or qcow2 and its backing files
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
//
// # qcow2
//
// Package qcow2 knows the format; here its file is opened, locked and found its
// backing files, which are read-only and locked shared. What was read of the
// metadata without the lock counts for nothing: Lock reads all of it again.
// Unlock writes what the caches hold, and keeps the lock if it cannot.
package blockfile
