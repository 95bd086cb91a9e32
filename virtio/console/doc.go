// Package console is virtio-console: virtio 1.2, 5.3. One device has up to
// MaxPorts ports.
//
//	port 0: receiveq 0, transmitq 1      port n > 0: receiveq 2n+2, transmitq 2n+3
//	control: receiveq 2, transmitq 3     only with VIRTIO_CONSOLE_F_MULTIPORT
//
//	guest                            device                           host
//	DEVICE_READY ───────────────────> for each port:
//	              <─────────────────  PORT_ADD
//	PORT_READY   ───────────────────>
//	              <─────────────────  CONSOLE_PORT | PORT_NAME, RESIZE
//	              <─────────────────  PORT_OPEN 1, 0 ............. client comes, goes
//	PORT_OPEN    ───────────────────> input flows from now on
//
// A port is a console (hvcN in Linux), or a named channel
// (/dev/virtio-ports/NAME). A device with one port and no name for it does not
// offer MULTIPORT: it is a console from the start, and its size is in the
// configuration space.
//
// # The host's side
//
// Behind a port is a listening unix socket with one client at a time, a
// connected descriptor, a file that output is appended to, or nothing. Bytes go
// between its descriptor and the guest's buffers without a copy in between.
// Nothing in here waits for the host:
//
//   - Output that a client does not take stays in the guest's buffer, which stays
//     in the ring; how much of it has left is remembered. Other ports go on.
//     A console's waits for a second at most while the client takes nothing; then
//     it is lost, and counted, until the client reads again: see stall.go.
//   - Output with nobody there is discarded and counted, as on a serial line. Only
//     a channel's that a move has cut off from its client waits, in the ring, for
//     the next one.
//   - Input stays in the socket while the guest has no buffer or has not opened
//     the port, so the sender waits. Of a client that leaves, the next one finds it
//     moved to a buffer (leftInput), which the guest reads first.
//   - A client that shuts one direction keeps the other. Its end is when both are
//     shut, as after a close; the guest hears of it when it has read all.
//   - Clients are accepted a few at a time, and the port's lock is held for one.
//
// So a pause is immediate, and the saved state is a few flags per port and the
// input of those who have left. What a client that is there has sent and the guest
// has not taken is in the socket and does not move: that client hears of it.
package console
