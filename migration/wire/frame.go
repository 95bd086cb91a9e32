package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	// Version is the protocol version that this package speaks.
	Version = 1
	// PageSize is the unit of memory on the wire, bytes.
	PageSize = 4096
	// HeaderSize is the size of a frame header, bytes.
	HeaderSize = 24
	// MaxBody is the largest body of any frame, bytes.
	MaxBody = 64 << 10
	// MaxBulk is the largest bulk of any frame, bytes.
	MaxBulk = 16 << 20
	// Preamble opens every connection and file. The line end in it shows a
	// transfer that mangled line ends, as PNG's signature does.
	Preamble = "GODWIT\r\n"
)

// Errors of the format. Each is wrapped with what was found.
var (
	// ErrNotGodwit says that the other side does not speak this protocol at all.
	ErrNotGodwit = errors.New("not a godwit migration stream")
	// ErrFormat says that a frame or message is malformed.
	ErrFormat = errors.New("malformed migration frame")
)

// Type is the kind of a frame.
type Type uint8

// The frame types. Values are part of the protocol and never reused.
const (
	TypeHello     Type = 1  // both ways: who is there
	TypeConfig    Type = 2  // a chunk of the machine configuration
	TypeLayout    Type = 3  // the source's RAM regions
	TypeBuilt     Type = 4  // the destination has built the machine
	TypeExtents   Type = 5  // a chunk of the extents ever touched
	TypeZero      Type = 6  // runs of zero pages
	TypeRaw       Type = 7  // runs of pages as they are
	TypeCodec     Type = 8  // pages encoded by a codec, with the checksum of their base
	TypeRound     Type = 9  // the barrier: this stream has sent all of round n
	TypePassed    Type = 10 // every stream of the destination has passed round n
	TypeState     Type = 11 // a chunk of device state
	TypeVerify    Type = 12 // ask for the hash of guest memory
	TypeHash      Type = 13 // the hash of guest memory
	TypePrepare   Type = 14 // the source's totals; asks for READY, ends a file
	TypeReady     Type = 15 // the destination could run the guest; opens the lease
	TypeGo        Type = 16 // the guest is the destination's
	TypeRunning   Type = 17 // the guest runs at the destination
	TypeError     Type = 18 // the sender gave up, and why
	TypeCancel    Type = 19 // the source's user gave up, and why
	TypeAck       Type = 20 // bytes received on this stream
	TypeKeepalive Type = 21 // nothing but a sign of life
	TypeMemfd     Type = 22 // beside it travels the file that is guest memory (SCM_RIGHTS)
	typeEnd       Type = 23
)

// FlagLast marks the last chunk of CONFIG, EXTENTS and STATE, and the ROUND
// after which no more pages follow.
const FlagLast uint8 = 1

// rule says what a type may carry: body between min and max bytes, bulk at most.
type rule struct {
	name      string
	min, max  uint32
	bulk      uint32
	lastValid bool
}

var rules = [typeEnd]rule{
	TypeHello:     {name: "HELLO", min: helloFixed, max: helloFixed + MaxVMID},
	TypeConfig:    {name: "CONFIG", max: MaxBody, lastValid: true},
	TypeLayout:    {name: "LAYOUT", min: 16, max: 16 * MaxRegions},
	TypeBuilt:     {name: "BUILT", min: 8, max: 8},
	TypeExtents:   {name: "EXTENTS", max: MaxBody, lastValid: true},
	TypeZero:      {name: "ZERO", min: runSize, max: MaxBody},
	TypeRaw:       {name: "RAW", min: runSize, max: MaxBody, bulk: MaxBulk},
	TypeCodec:     {name: "CODEC", min: runSize, max: MaxBody, bulk: MaxBulk},
	TypeRound:     {name: "ROUND", min: 12, max: 12, lastValid: true},
	TypePassed:    {name: "PASSED", min: 12, max: 12},
	TypeState:     {name: "STATE", max: MaxBody, lastValid: true},
	TypeVerify:    {name: "VERIFY", max: 16},
	TypeHash:      {name: "HASH", min: 40, max: 40},
	TypePrepare:   {name: "PREPARE", min: 28, max: 28},
	TypeReady:     {name: "READY", min: 20, max: 20},
	TypeGo:        {name: "GO", min: NonceSize, max: NonceSize},
	TypeRunning:   {name: "RUNNING", min: 24, max: 24},
	TypeError:     {name: "ERROR", max: MaxText},
	TypeCancel:    {name: "CANCEL", max: MaxText},
	TypeAck:       {name: "ACK", min: 8, max: 8},
	TypeKeepalive: {name: "KEEPALIVE"},
	TypeMemfd:     {name: "MEMFD"},
}

// String names the type as the protocol document does.
func (t Type) String() string {
	if t > 0 && t < typeEnd {
		return rules[t].name
	}
	return fmt.Sprintf("type %d", uint8(t))
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC-32C used throughout the protocol.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// header is the decoded fixed part of a frame.
type header struct {
	typ        Type
	flags      uint8
	body, bulk uint32
	seq        uint32
	bodyCRC    uint32
}

func (h *header) put(p []byte) {
	_ = p[HeaderSize-1]
	p[0], p[1], p[2], p[3] = byte(h.typ), h.flags, 0, 0
	binary.LittleEndian.PutUint32(p[4:], h.body)
	binary.LittleEndian.PutUint32(p[8:], h.bulk)
	binary.LittleEndian.PutUint32(p[12:], h.seq)
	binary.LittleEndian.PutUint32(p[16:], h.bodyCRC)
	binary.LittleEndian.PutUint32(p[20:], Checksum(p[:20]))
}

// parse reads and checks a header: checksum first, then the type's limits, so
// that no length is believed before both.
func (h *header) parse(p []byte) error {
	_ = p[HeaderSize-1]
	if got, want := Checksum(p[:20]), binary.LittleEndian.Uint32(p[20:]); got != want {
		return fmt.Errorf("%w: header checksum %#x, computed %#x", ErrFormat, want, got)
	}
	h.typ, h.flags = Type(p[0]), p[1]
	h.body = binary.LittleEndian.Uint32(p[4:])
	h.bulk = binary.LittleEndian.Uint32(p[8:])
	h.seq = binary.LittleEndian.Uint32(p[12:])
	h.bodyCRC = binary.LittleEndian.Uint32(p[16:])
	if h.typ == 0 || h.typ >= typeEnd {
		return fmt.Errorf("%w: unknown frame type %d", ErrFormat, p[0])
	}
	r := &rules[h.typ]
	switch {
	case p[2] != 0 || p[3] != 0:
		return fmt.Errorf("%w: %s with reserved bytes set", ErrFormat, h.typ)
	case h.flags != 0 && !(r.lastValid && h.flags == FlagLast):
		return fmt.Errorf("%w: %s with unknown flags %#x", ErrFormat, h.typ, h.flags)
	case h.body < r.min || h.body > r.max:
		return fmt.Errorf("%w: %s body of %d bytes, must be %d to %d", ErrFormat, h.typ, h.body, r.min, r.max)
	case h.bulk > r.bulk:
		return fmt.Errorf("%w: %s bulk of %d bytes, at most %d", ErrFormat, h.typ, h.bulk, r.bulk)
	}
	return nil
}
