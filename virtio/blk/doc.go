// Package blk is virtio-blk: virtio 1.2, 5.2.
//
//	queue 0 ── worker ──┐
//	queue 1 ── worker ──┼──> Backend (preadv, pwritev, ...)
//	queue n ── worker ──┘
//
// A worker takes one request at a time, moves the data between guest memory and
// the Backend without a copy, writes the status byte last and answers. So a
// Pause never waits for more than one request per queue. More parallelism is a
// matter of more queues.
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
