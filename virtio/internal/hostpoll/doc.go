// Package hostpoll tells a virtio device when a descriptor of the host can be
// read or written, without a goroutine per descriptor.
//
//	device: read or write ──EAGAIN──> Arm ─ ─ ready ─ ─> handler kicks the queue's worker
//
// Descriptors are non-blocking, workers try and never wait. A Poller is one
// goroutine that sleeps in the runtime's own poller: its epoll descriptor is
// watched there, so that no thread is held. Each Arm brings one call of the
// handler. Accept takes the clients of a listener. Vec moves bytes between a
// descriptor and guest memory without a copy and without an allocation.
package hostpoll
