package xbrle

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"

	"godwit/migration/policy"
)

const (
	pageSize = policy.PageSize
	lineSize = 64
	lines    = pageSize / lineSize // one bit each in a word
	words    = pageSize / 8

	// maxGap is the longest run of equal bytes that becomes part of the literal
	// around it. A run of its own costs two length bytes: a gap of 3 merged costs
	// one byte more and saves the time of a run.
	maxGap = 3
	// maxEdges has room for a literal of one byte in every maxGap+2, start and
	// end, and for what the assembly writes too much.
	maxEdges = 2048
	// denseLines is from how many changed lines on a page is encoded as a whole, in
	// a time that hardly depends on its content. Below, visiting each run costs
	// less.
	denseLines = 20
	// spare is how much may be read behind the snapshot: short literals are
	// copied as if they had 16 bytes. A line of it keeps what follows aligned.
	spare = 64
)

// scratch is the working memory of one encoding, pooled because the stack would
// be cleared for every page.
//
// The order keeps the snapshot away from a page's boundary: with the same low
// address bits as the page that is read, its stores would hold up the loads.
type scratch struct {
	dense
	snapshot [pageSize + spare]byte // see snap
	masks    [lines + 1]uint64      // a bit for each byte that differs; the last stays 0
	edges    [maxEdges]uint16       // starts and ends of literals, in turn
}

// snap is the page as it was read, once.
func (s *scratch) snap() *[pageSize]byte { return (*[pageSize]byte)(s.snapshot[:]) }

// diff reads page once into the snapshot, marks in s.masks where it differs from
// base, and tells the lines with a difference.
func (s *scratch) diff(base, page *[pageSize]byte) (changed uint64) {
	if useAVX2 {
		return diffAVX2(&s.masks, s.snap(), base, page)
	}
	return diffGeneric(&s.masks, s.snap(), base, page)
}

// encode writes to dst the runs in which the snapshot differs from base, after
// diff has found the changed lines, and gives their length, or false when they
// would not be smaller than the page.
func (s *scratch) encode(dst *[pageSize]byte, changed uint64) (int, bool) {
	if useAVX512 && bits.OnesCount64(changed) >= denseLines {
		return s.encodeDense(dst)
	}
	return s.emit(dst, s.findEdges(changed))
}

// findEdges turns the masks into the literals' starts and ends, gaps of up to
// maxGap closed, and tells their number.
func (s *scratch) findEdges(changed uint64) int {
	if useAVX2 {
		return edgesAVX2(&s.edges, &s.masks, changed)
	}
	return edgesGeneric(&s.edges, &s.masks, changed)
}

// fold makes base what the snapshot is and gives its CRC from the one it had, or 0
// when it is cheaper to compute when asked for.
func (s *scratch) fold(base *[pageSize]byte, changed uint64, crc uint32) uint32 {
	if useAVX512 {
		return crc ^ foldAVX512(base, s.snap(), changed, &wordShift)
	}
	if useAVX2 {
		return crc ^ foldAVX2(base, s.snap(), changed, &wordShift)
	}
	for c := changed; c != 0; c &= c - 1 {
		at := bits.TrailingZeros64(c) * lineSize
		copy(base[at:at+lineSize], s.snap()[at:])
	}
	if changed != 0 {
		crc = 0
	}
	return crc
}

func diffGeneric(masks *[lines + 1]uint64, snap, base, page *[pageSize]byte) (changed uint64) {
	copy(snap[:], page[:])
	for i := range lines {
		a, b := base[i*lineSize:(i+1)*lineSize], snap[i*lineSize:(i+1)*lineSize]
		var mask uint64
		for j := 0; j < lineSize; j += 8 {
			mask |= differing(binary.LittleEndian.Uint64(a[j:])^binary.LittleEndian.Uint64(b[j:])) << j
		}
		masks[i] = mask
		if mask != 0 {
			changed |= 1 << i
		}
	}
	return changed
}

// differing has bit i set where byte i of x is not zero.
func differing(x uint64) uint64 {
	const low7, gather = 0x7f7f7f7f7f7f7f7f, 0x0102040810204080
	top := ((x&low7 + low7) | x) &^ low7
	return top >> 7 * gather >> 56
}

// edgesGeneric closes gaps by dilating the masks by maxGap and eroding them by
// as much, in two doubling steps each. Both look back only, which moves
// everything up by maxGap; hence the line after the last.
func edgesGeneric(edges *[maxEdges]uint16, masks *[lines + 1]uint64, changed uint64) int {
	var prev, prevWide, prevWider, prevThin, prevThinner uint64
	n := 0
	for i := range lines + 1 {
		m := masks[i]
		if m|prev == 0 {
			continue // nothing here and nothing carried over
		}
		wide := m | m<<1 | prev>>63
		wider := wide | wide<<2 | prevWide>>62
		thin := wider & (wider<<1 | prevWider>>63)
		thinner := thin & (thin<<2 | prevThin>>62)
		edge := thinner ^ (thinner<<1 | prevThinner>>63)
		prev, prevWide, prevWider, prevThin, prevThinner = m, wide, wider, thin, thinner
		for ; edge != 0; edge &= edge - 1 {
			edges[n] = uint16(i*lineSize + bits.TrailingZeros64(edge) - maxGap)
			n++
		}
	}
	return n
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// wordShift holds for each word of 8 bytes the power of x that moves its CRC, or
// that of bytes which end with it, to where the page's CRC has them: x^(8*bytes
// behind it - 33) modulo the polynomial. 33 is what the multiplication and its
// reduction add.
var wordShift = func() (shift [words]uint64) {
	v := uint32(1) << 31 // x^0, bits reflected
	for range 33 {       // divide by x
		if v>>31 != 0 {
			v = (v^crc32.Castagnoli)<<1 | 1
		} else {
			v <<= 1
		}
	}
	for i := words - 1; i >= 0; i-- {
		shift[i] = uint64(v)
		for range 64 { // multiply by x
			low := v & 1
			v >>= 1
			if low != 0 {
				v ^= crc32.Castagnoli
			}
		}
	}
	return shift
}()
