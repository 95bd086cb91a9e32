// Package wire is the byte format of godwit's migration protocol, version 1.
// It knows frames and messages, and neither sockets nor machines. One format
// serves a socket, a pipe and a file.
//
// Every connection (and a file) opens with an 8-byte preamble, then frames:
//
//	 0        1        2        4          8          12         16         20         24
//	+--------+--------+--------+----------+----------+----------+----------+----------+------+------+
//	| type   | flags  | zero   | body len | bulk len | sequence | body CRC | head CRC | body | bulk |
//	+--------+--------+--------+----------+----------+----------+----------+----------+------+------+
//
// Numbers are little-endian, CRCs are CRC-32C. The header CRC covers bytes 0-19,
// the body CRC the body. The bulk is page data and has no checksum: it leaves
// straight from guest memory, which may change between summing and sending; a
// page that changed is in the dirty log and goes again. The sequence number
// counts the frames of one direction from 0, so a lost or doubled frame shows.
//
// Everything read here comes from a stranger. Each type has its own limits for
// body and bulk, checked before a byte of either is read or allocated, and a
// body is never larger than MaxBody. Decoders refuse what they do not know:
// reserved fields that are not zero, trailing bytes, unaligned or overflowing
// page runs.
//
// Who sends what:
//
//	control  source -> destination  HELLO CONFIG LAYOUT MEMFD EXTENTS STATE VERIFY PREPARE GO CANCEL ERROR KEEPALIVE
//	         destination -> source  HELLO BUILT PASSED HASH READY RUNNING ERROR CANCEL KEEPALIVE
//	data     source -> destination  HELLO ZERO RAW CODEC ROUND KEEPALIVE
//	         destination -> source  HELLO ACK ERROR
//	file     one way                HELLO CONFIG LAYOUT EXTENTS ZERO RAW CODEC ROUND STATE HASH PREPARE
package wire
