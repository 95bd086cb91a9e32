// Package tap opens tap interfaces: a network interface of the host whose other
// end is a file descriptor. It is a leaf: it knows nothing of virtio, but frames
// carry the 12-byte header that virtio-net has (linux/virtio_net.h, struct
// virtio_net_hdr_mrg_rxbuf, little-endian), so that a device passes them through
// without a look.
//
//	     host's network stack, a bridge
//	                 │
//	          tap interface ── carrier, MTU, offloads
//	   ┌─────────────┼─────────────┐
//	queue 0       queue 1       queue n       one descriptor each
//	   │             │             │
//	Readv/Writev, poll(2) on Fd
//
// An interface that exists is used as it is, without rights. One that does not
// is made, which takes CAP_NET_ADMIN, and is gone with the last descriptor: at
// Close, and at the end of the process, however that comes.
//
// A queue is for one reader and any number of writers at a time. SetQueues,
// SetOffloads, SetCarrier and Purge are called one at a time. Close comes last.
package tap
