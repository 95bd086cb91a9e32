package xbrle

import "math/bits"

// dense is the working memory of encodeDense. What the assembly reads or writes
// too much, 64 bytes at most, stays inside each.
type dense struct {
	sent    [lines]uint64 // a bit for each byte of a literal, and for as many before it as its lengths take
	lengths [lines]uint64 // the latter alone
	runs    [1728]uint16  // 0, then starts and ends of literals, in turn: 1640 at most
	headers [1792]byte    // all lengths, as varints: 32 have room to be above 127
	long    [64]uint32    // a bit for each length that takes two bytes
}

// encodeDense encodes a page that differs, without visiting its runs one by one:
// of the bytes before a literal, which stay as they are and are 4 at least, as
// many as it takes are replaced with its lengths. Then what is sent is packed.
func (s *scratch) encodeDense(dst *[pageSize]byte) (int, bool) {
	d := &s.dense
	n, size := runsAVX512(&d.runs, &d.sent, &d.lengths, &s.masks)
	h := 2 // the bytes of the first two lengths
	if headersAVX512(&d.headers, &d.long, &d.runs, n) != 0 {
		size += d.reserve(n)
		h += bits.OnesCount32(d.long[0] & 3)
	}
	// There may be no room for them in the page: they, or some, come before it.
	h = max(0, h-int(d.runs[1]))
	if size += h; size >= pageSize {
		return 0, false
	}
	copy(dst[:4], d.headers[:4])
	mergeAVX512(dst, &s.snapshot, &d.headers, &d.sent, &d.lengths, h)
	return size, true
}

// reserve marks one byte more for each length above 127, and tells for how many
// there was room in the page.
func (d *dense) reserve(n int) (more int) {
	for i := 0; i < n; i += 32 {
		for long := d.long[i/32]; long != 0; long &= long - 1 {
			start := int(d.runs[1+(i+bits.TrailingZeros32(long))&^1])
			for at := start - 3; at >= max(0, start-4); at-- {
				if bit := uint64(1) << (at % 64); d.lengths[at/64]&bit == 0 {
					d.lengths[at/64] |= bit
					d.sent[at/64] |= bit
					more++
					break
				}
			}
		}
	}
	return more
}
