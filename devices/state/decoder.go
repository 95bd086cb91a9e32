package state

import (
	"encoding/binary"
	"fmt"
)

// Decoder reads back what an Encoder wrote, in the same order. The first
// failure sticks: from then on every call returns zero values and takes
// nothing, so a Restore reads all its fields and checks once.
type Decoder struct {
	data []byte
	off  int
	err  error
}

// NewDecoder reads from data, which must not change meanwhile.
func NewDecoder(data []byte) *Decoder { return &Decoder{data: data} }

// Err returns the first failure, or nil.
func (d *Decoder) Err() error { return d.err }

// Remaining returns the number of bytes not read yet, 0 after a failure. It
// bounds a count that comes from the section before a slice is made for it.
func (d *Decoder) Remaining() int {
	if d.err != nil {
		return 0
	}
	return len(d.data) - d.off
}

// Fail records a failure that the caller found in the values, unless there
// was one before, with ErrFormat in its chain.
func (d *Decoder) Fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
	}
}

// Finish returns the first failure, or an error if bytes are left over: those
// would be state that nobody restored.
func (d *Decoder) Finish() error {
	if n := d.Remaining(); n > 0 {
		d.Fail("%d bytes left over after the last field", n)
	}
	return d.err
}

// take returns the next n bytes, or nil after recording why not.
func (d *Decoder) take(n int) []byte {
	if d.err != nil {
		return nil
	}
	if n > len(d.data)-d.off {
		d.Fail("%d bytes wanted at offset %d of %d", n, d.off, len(d.data))
		return nil
	}
	p := d.data[d.off : d.off+n : d.off+n]
	d.off += n
	return p
}

// U8 reads one byte.
func (d *Decoder) U8() uint8 {
	p := d.take(1)
	if p == nil {
		return 0
	}
	return p[0]
}

// U16 reads two bytes.
func (d *Decoder) U16() uint16 {
	p := d.take(2)
	if p == nil {
		return 0
	}
	return binary.LittleEndian.Uint16(p)
}

// U32 reads four bytes.
func (d *Decoder) U32() uint32 {
	p := d.take(4)
	if p == nil {
		return 0
	}
	return binary.LittleEndian.Uint32(p)
}

// U64 reads eight bytes.
func (d *Decoder) U64() uint64 {
	p := d.take(8)
	if p == nil {
		return 0
	}
	return binary.LittleEndian.Uint64(p)
}

// Bool reads one byte and accepts 0 and 1 only, so that every state has one
// encoding.
func (d *Decoder) Bool() bool {
	v := d.U8()
	if v > 1 {
		d.Fail("boolean at offset %d is %d", d.off-1, v)
		return false
	}
	return v == 1
}

// Bytes reads a length and that many bytes, at most max, into memory of its
// own.
func (d *Decoder) Bytes(max int) []byte {
	p := d.counted(max)
	if p == nil {
		return nil
	}
	return append(make([]byte, 0, len(p)), p...)
}

// String reads a length and that many bytes, at most max. They need not be
// valid UTF-8.
func (d *Decoder) String(max int) string { return string(d.counted(max)) }

// Raw fills p with the next len(p) bytes, for arrays whose size the version
// fixes. After a failure p is zeroed.
func (d *Decoder) Raw(p []byte) {
	src := d.take(len(p))
	if src == nil {
		clear(p)
		return
	}
	copy(p, src)
}

func (d *Decoder) counted(max int) []byte {
	n := d.U32()
	if d.err != nil {
		return nil
	}
	if int64(n) > int64(max) {
		d.Fail("length %d at offset %d, at most %d allowed", n, d.off-4, max)
		return nil
	}
	return d.take(int(n))
}
