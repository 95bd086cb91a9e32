// Package blk is virtio-blk: virtio 1.2, 5.2.
//
//	queue 0 ── worker ──┬── at once ──────────────> Trier ──┐
//	queue 1 ── worker ──┤                                   ├── storage
//	queue n ── worker ──┴── pool of goroutines ───> Backend ┘
//
// A worker pops requests and moves the data between guest memory and the host's
// file without a copy, one after the other, as long as none has to wait for
// storage: the page cache has what is read, and takes what is written. What has
// to wait (a read of something else, a flush, a discard, every request of an
// image that goes around the page cache) is one of up to Config.InFlight that
// wait at a time in goroutines of their own, and is answered when it is done, in
// whatever order. So one slow request delays no other. The driver orders writes
// by a flush, which covers every write that was answered before; the status byte
// is written before the answer.
//
// Pause, and Reset, return when every request that was popped is answered: none
// is lost, none is left for another process to do again. But those that the host
// has no room for can be parked, and travel with the guest: see park.go.
//
// What a request is:
//
//	readable: type, reserved, sector (16 bytes) | data to write, or ranges
//	writable: data read, or ID                  | status (1 byte)
//
// The split into descriptors is the driver's business. A request that makes no
// sense gets IOERR or UNSUPP; one with no room for a status is given back
// untouched. The device takes what the host's file says at its word and never
// retries: an I/O error goes to the guest as IOERR and into Stats.
package blk
