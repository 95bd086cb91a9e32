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
//   - Output with nobody there is discarded and counted, as on a serial line.
//   - Input stays in the socket while the guest has no buffer or has not opened
//     the port, so the sender waits.
//
// So a pause is immediate, nothing is buffered, and the saved state is a few
// flags per port. What a client has sent and the guest has not taken is in the
// socket and does not move.
package console
