package state

import "encoding/binary"

// Encoder appends plain data to a section. The zero value is empty and ready.
// It cannot fail: whether the section fits is for the Writer to say.
type Encoder struct {
	data []byte
}

// Data returns everything appended so far. It stays valid until the next call.
func (e *Encoder) Data() []byte { return e.data }

// U8 appends one byte.
func (e *Encoder) U8(v uint8) { e.data = append(e.data, v) }

// U16 appends two bytes, little-endian.
func (e *Encoder) U16(v uint16) { e.data = binary.LittleEndian.AppendUint16(e.data, v) }

// U32 appends four bytes, little-endian.
func (e *Encoder) U32(v uint32) { e.data = binary.LittleEndian.AppendUint32(e.data, v) }

// U64 appends eight bytes, little-endian.
func (e *Encoder) U64(v uint64) { e.data = binary.LittleEndian.AppendUint64(e.data, v) }

// Bool appends one byte, 0 or 1.
func (e *Encoder) Bool(v bool) {
	if v {
		e.U8(1)
	} else {
		e.U8(0)
	}
}

// Bytes appends the length of b in four bytes, then b. A b of 4 GiB or more
// is over every section's cap, so the Writer refuses it.
func (e *Encoder) Bytes(b []byte) {
	e.U32(uint32(len(b)))
	e.data = append(e.data, b...)
}

// String appends s as Bytes does.
func (e *Encoder) String(s string) {
	e.U32(uint32(len(s)))
	e.data = append(e.data, s...)
}

// Raw appends b without its length, for arrays whose size the version fixes.
func (e *Encoder) Raw(b []byte) { e.data = append(e.data, b...) }
