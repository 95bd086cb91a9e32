package xbrle

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// ErrFormat says that bytes are not an encoding of a page.
var ErrFormat = errors.New("malformed page encoding")

// emit writes the runs that s.edges[:n] delimit to dst and gives their length,
// or false when they would not be smaller than the page. What lies behind the
// length in dst is undefined.
func (s *scratch) emit(dst *[pageSize]byte, n int) (int, bool) {
	snap := s.snap()
	o, at := 0, 0
	for i := 0; i < n; i += 2 {
		if useAVX2 {
			if i, o = emitAVX2(dst, &s.snapshot, &s.edges, i, n, at, o); i >= n {
				break
			}
			if i > 0 {
				at = int(s.edges[i-1])
			}
		}
		from, to := int(s.edges[i]), int(s.edges[i+1])
		gap, literal := from-at, to-from
		at = to
		if o+varintLen(gap)+varintLen(literal)+literal >= pageSize {
			return 0, false
		}
		o = putRunLength(dst, o, gap)
		o = putRunLength(dst, o, literal)
		o += copy(dst[o:], snap[from:to])
	}
	return o, true
}

// putRunLength writes a run's length, 0 to 4096, and gives the place behind it.
func putRunLength(dst *[pageSize]byte, o, n int) int {
	if n < 1<<7 {
		dst[o] = byte(n)
		return o + 1
	}
	dst[o], dst[o+1] = byte(n)|1<<7, byte(n>>7)
	return o + 2
}

// varintLen is the length of a run's length, 0 to 4096.
func varintLen(n int) int {
	if n < 1<<7 {
		return 1
	}
	return 2
}

// decode applies an encoding to page. Between literals the page keeps its bytes,
// or gets zeros when plain. It never writes outside the page and reads every
// byte of enc once; after an error the page is partly changed.
func decode(page *[pageSize]byte, enc []byte, plain bool) error {
	if len(enc) >= pageSize {
		return fmt.Errorf("%w: %d bytes, a page has %d", ErrFormat, len(enc), pageSize)
	}
	at, i := 0, 0
	for i < len(enc) {
		var gap, literal int
		if i+1 < len(enc) && (enc[i]|enc[i+1])&0x80 == 0 {
			gap, literal, i = int(enc[i]), int(enc[i+1]), i+2
		} else {
			var err error
			if gap, i, err = runLength(enc, i); err != nil {
				return err
			}
			if literal, i, err = runLength(enc, i); err != nil {
				return err
			}
		}
		if literal == 0 || gap == 0 && at != 0 || gap+literal > pageSize-at || literal > len(enc)-i {
			return runError(gap, literal, at, len(enc)-i)
		}
		if plain {
			clear(page[at : at+gap])
		}
		at += gap
		if literal <= 8 && at <= pageSize-8 && i <= len(enc)-8 {
			// Short literals are the rule: one masked word instead of a call.
			p, mask := page[at:at+8], ^uint64(0)>>((64-8*literal)&63)
			binary.LittleEndian.PutUint64(p, binary.LittleEndian.Uint64(p)&^mask|binary.LittleEndian.Uint64(enc[i:])&mask)
		} else {
			copy(page[at:at+literal], enc[i:])
		}
		at += literal
		i += literal
	}
	if plain {
		clear(page[at:])
	}
	return nil
}

// runError says what is wrong with a run, left bytes being behind its header.
func runError(gap, literal, at, left int) error {
	switch {
	case literal == 0 || gap == 0 && at != 0:
		return fmt.Errorf("%w: empty run at byte %d of the page", ErrFormat, at)
	case gap+literal > pageSize-at:
		return fmt.Errorf("%w: run of %d+%d bytes at byte %d of the page goes beyond it", ErrFormat, gap, literal, at)
	}
	return fmt.Errorf("%w: literal of %d bytes at byte %d of the page, only %d left", ErrFormat, literal, at+gap, left)
}

// runLength reads a varint of one or two bytes at enc[i:], in the shortest form
// only, and gives the place behind it.
func runLength(enc []byte, i int) (n, next int, err error) {
	switch left := len(enc) - i; {
	case left >= 1 && enc[i] < 0x80:
		return int(enc[i]), i + 1, nil
	case left >= 2 && enc[i+1] != 0 && enc[i+1] < 0x80:
		return int(enc[i]&0x7f) | int(enc[i+1])<<7, i + 2, nil
	case left < 2:
		return 0, i, fmt.Errorf("%w: ends within a run's length", ErrFormat)
	}
	return 0, i, fmt.Errorf("%w: run length % x is overlong or too great", ErrFormat, enc[i:i+2])
}
