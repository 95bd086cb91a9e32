package devicefuzz

import "encoding/binary"

// operation is the first byte of a step, modulo operations.
type operation byte

const (
	opRead      operation = iota // offset (2), length
	opWrite                      // offset (2), length, bytes
	opConfig                     // offset (8), length
	opNegotiate                  // choice of features
	opQueue                      // queue, log2 of size
	opBadQueue                   // queue, size (2), three addresses
	opRun                        // DRIVER_OK
	opChain                      // queue, shape, segments
	opOffer                      // queue, head (2)
	opBump                       // queue, available index += int16
	opEvent                      // queue, used_event or flags (2)
	opKick                       // queue
	opSettle                     // lets the device work
	opPause
	opResume
	opMove
	opBadMove // position (2), byte
	opReset
	opMemory // address, length, bytes
	opPoke   // byte
	operations
)

// Script writes a program that Run reads. It is for seeds; its steps are those
// of a driver that keeps the rules.
type Script struct{ b []byte }

// Program gives the bytes.
func (s *Script) Program() []byte { return s.b }

func (s *Script) op(o operation, args ...byte) *Script {
	s.b = append(append(s.b, byte(o)), args...)
	return s
}

// Negotiate resets the device and agrees on every feature that it has but for
// those of without, a choice as in features.
func (s *Script) Negotiate(without byte) *Script { return s.op(opNegotiate, without) }

// Features, to be left out: arguments of Negotiate.
const (
	WithoutNone byte = iota
	WithoutEventIdx
	WithoutIndirect
	WithoutBoth
	WithoutOwn // nothing but what every device has
	someFeatures
)

// Queue sets one up with 2^log entries.
func (s *Script) Queue(i, log byte) *Script { return s.op(opQueue, i, log) }

// Run is DRIVER_OK.
func (s *Script) Run() *Script { return s.op(opRun) }

// Start negotiates everything, sets the queues up with 16 entries, and runs.
func (s *Script) Start(queues ...byte) *Script {
	s.Negotiate(WithoutNone)
	for _, q := range queues {
		s.Queue(q, 4)
	}
	return s.Run()
}

// Seg is a segment of a Chain.
type Seg []byte

// Bytes is a readable segment that holds p, at most 255 bytes.
func Bytes(p ...byte) Seg { return append(Seg{segInline, byte(len(p))}, p...) }

// Data is a readable segment of n bytes in the data area.
func Data(n uint16) Seg { return sized(0, n) }

// Room is a writable segment of n bytes in the data area.
func Room(n uint16) Seg { return sized(segWrite, n) }

func sized(control byte, n uint16) Seg {
	return Seg{control, byte(addrData), byte(n), byte(n >> 8), 0, byte(len16), byte(n), byte(n >> 8)}
}

// Chain makes segments available on a queue, at most 15.
func (s *Script) Chain(q byte, segs ...Seg) *Script { return s.chain(q, 0, segs) }

// IndirectChain does the same by an indirect table.
func (s *Script) IndirectChain(q byte, segs ...Seg) *Script { return s.chain(q, shapeIndirect, segs) }

func (s *Script) chain(q, shape byte, segs []Seg) *Script {
	s.op(opChain, q, shape|byte(len(segs))&shapeCount)
	for _, seg := range segs {
		s.b = append(s.b, seg...)
	}
	return s
}

// Kick notifies the device and gives it time.
func (s *Script) Kick(q byte) *Script { return s.op(opKick, q).op(opSettle) }

// Poke is an event from the host's side.
func (s *Script) Poke(b byte) *Script { return s.op(opPoke, b).op(opSettle) }

// Pause, Resume, Move and Reset are what they say. Move leaves the device paused
// where it was paused.
func (s *Script) Pause() *Script  { return s.op(opPause) }
func (s *Script) Resume() *Script { return s.op(opResume) }
func (s *Script) Move() *Script   { return s.op(opMove) }
func (s *Script) Reset() *Script  { return s.op(opReset) }

// Config writes to the device's configuration space.
func (s *Script) Config(off uint16, p ...byte) *Script {
	s.op(opWrite)
	s.b = binary.LittleEndian.AppendUint16(s.b, 0x100+off)
	s.b = append(s.b, byte(len(p)))
	s.b = append(s.b, p...)
	return s
}

// input reads a program. At its end it gives zeroes.
type input struct{ b []byte }

func (in *input) u8() byte {
	if len(in.b) == 0 {
		return 0
	}
	v := in.b[0]
	in.b = in.b[1:]
	return v
}

func (in *input) u16() uint16 { return uint16(in.u8()) | uint16(in.u8())<<8 }
func (in *input) u32() uint32 { return uint32(in.u16()) | uint32(in.u16())<<16 }
func (in *input) u64() uint64 { return uint64(in.u32()) | uint64(in.u32())<<32 }

func (in *input) bytes(n int) []byte {
	p := make([]byte, n)
	in.b = in.b[copy(p, in.b):]
	return p
}
