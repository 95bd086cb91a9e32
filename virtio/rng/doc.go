// Package rng is virtio-rng, the entropy device: virtio 1.2, 5.4.
//
//	guest: empty buffer ──> requestq ──> worker ──> getrandom into guest memory
//	                                       │
//	                             token bucket: no budget, no Pop
//
// The bytes are the host's own (getrandom, always ready once the host has
// booted). A buffer may be filled in part, so a request is answered with what
// the budget has and no more than maxRequest.
//
// A rate limit is judged before a buffer is taken. While the budget is empty the
// worker sleeps, a timer kicks it when there is enough again, and the buffers
// stay in the ring. So a pause never waits for the limit, and a guest that moves
// meanwhile finds its buffers in the ring on the other side.
package rng
