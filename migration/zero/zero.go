package zero

import (
	"bytes"
	"math/bits"
)

const (
	// PageSize is the size of a page, bytes.
	PageSize  = 4096
	wordPages = 64 // pages per word of a bitmap
)

// vector says that the assembly is used. Only tests write it.
var vector = hasVector()

var blank [PageSize]byte

// Page says whether p holds nothing but zeros. p is usually one page, but any
// length and alignment will do; an empty p is zero. Any goroutine may call it,
// also while p changes. It does not allocate.
func Page(p []byte) bool {
	for len(p) >= PageSize {
		if word(p[:PageSize]) == 0 {
			return false
		}
		p = p[PageSize:]
	}
	return bytes.Equal(p, blank[:len(p)])
}

// Classify looks at the pages of mem in turn, and sets bit i%64 of bitmap[i/64]
// when page i is zero, else clears it. It returns how many are zero.
//
// A last page of less than [PageSize] counts as a page. Where bitmap is too
// short, the pages it has no bit for are not looked at; where it is too long,
// the bits without a page are cleared. mem may have any alignment and may change
// meanwhile; bitmap belongs to the call. It does not allocate.
func Classify(mem []byte, bitmap []uint64) (zeros int) {
	for i := range bitmap {
		n := min(len(mem), wordPages*PageSize)
		w := word(mem[:n])
		bitmap[i] = w
		zeros += bits.OnesCount64(w)
		mem = mem[n:]
	}
	return zeros
}

// word classifies at most 64 pages.
func word(mem []byte) uint64 {
	whole := len(mem) / PageSize
	var w uint64
	switch {
	case whole == 0:
	case vector:
		w = scanVector(&mem[0], uint64(whole))
	default:
		w = scanPortable(mem[:whole*PageSize])
	}
	if rest := mem[whole*PageSize:]; len(rest) > 0 && bytes.Equal(rest, blank[:len(rest)]) {
		w |= 1 << whole
	}
	return w
}

// scanPortable is the twin of scanVector. bytes.Equal is assembly on every
// architecture that matters, and stops at the first difference.
func scanPortable(mem []byte) uint64 {
	var w uint64
	for bit := uint64(1); len(mem) > 0; bit <<= 1 {
		if bytes.Equal(mem[:PageSize], blank[:]) {
			w |= bit
		}
		mem = mem[PageSize:]
	}
	return w
}
