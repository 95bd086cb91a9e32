// Package net is virtio-net: virtio 1.2, 5.1.
//
//	receiveq 0 ── worker <── poll(2), readv ──┐
//	transmitq 0 ─ worker ──> writev ──────────┼── Backend: a tap, one descriptor per pair
//	receiveq n ── worker <────────────────────┤
//	transmitq n ─ worker ─────────────────────┘
//	controlq ──── worker ──> filter, queue pairs, offloads
//
// Frames move between the Backend and guest memory in one system call, their
// 12-byte header included: the kernel fills it in and judges it. Nothing is
// copied here, but for a packet that turns out larger than the buffers offered
// to it.
//
// # Buffers
//
// A receiving worker does not know how long the next packet is. It keeps a
// window of popped chains and offers the packet as many as the recent ones
// needed, with memory of its own behind them. What spills over is copied to
// further chains, and from then on the offer is large enough for 64 KiB.
//
//	chains popped   | 0 | 1 | 2 | 3 |            in guest memory
//	offered         | 0 | 1 | spill ...........|
//	packet          |=======|====|               spills: chain 2 gets the rest
//
// If the ring has too few chains for it, the packet waits here, whole, and the
// worker for the guest. While there is no chain at all it does not read: packets
// wait in the Backend. So nothing is lost that somebody has room for.
//
// A worker waits for either of two things, in poll(2), and is not woken by the
// other: for a kick while it has no buffers, for a packet while it has.
//
// # Moves
//
// Pause puts the window back; a packet that waits becomes state. Announce tells
// the network where the guest is now: it belongs to a resumed device, for a
// paused one never speaks.
package net
