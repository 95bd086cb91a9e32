// Package vsock is virtio-vsock: virtio 1.2, 5.10. It joins stream sockets of
// the guest with unix sockets of the host, in Firecracker's convention:
//
//	host connects to PATH, sends "CONNECT <port>\n" ──> guest's listener at that
//	     port; "OK <host port>\n" comes back, then the stream
//	guest connects to CID 2, port P ──> host's unix socket PATH_P
//
//	guest ── tx queue ──> header judged ──> writev to the host's socket
//	                            │              └ what it does not take: ≤ bufAlloc kept
//	                            └> what to answer: flags of a connection, or a reset
//	guest <── rx queue ── answers first, then readv from the host's sockets
//	guest <── event queue ── TRANSPORT_RESET after a move
//
// # Bounds
//
// The guest and the host's clients are not trusted. There are at most maxConns
// connections; each keeps at most bufAlloc bytes, which is the credit that the
// guest is given (5.10.6.3), and a guest that sends more is reset. Bytes for the
// guest are read from the host's socket only into a buffer of the guest, within
// the credit that it gives, so its lies cost nothing. What is to be answered is
// a set of flags per connection, in a queue that a connection is in once. Resets
// for what is no connection are kept up to maxResets; then the tx queue waits
// for the rx queue.
//
// # A move
//
// Connections do not move. The destination tells the guest by an event that all
// are gone (5.10.6.7), and opens no new ones before the guest has taken that in:
// see move.go. The source keeps the host's ends until its process closes
// them, since it may have to go on after a migration that failed.
package vsock
