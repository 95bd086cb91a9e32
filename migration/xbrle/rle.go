package xbrle

import (
	"fmt"

	"godwit/migration/policy"
)

var _ policy.Codec = RLE{}

// RLE is the codec "rle": runs of zero bytes within the page itself, in the
// same format as a delta, with neither a base nor a cache.
type RLE struct{}

// ID is 3.
func (RLE) ID() uint8 { return 3 }

// Encode is EncodeTo with memory of its own.
func (r RLE) Encode(gfn uint64, page []byte) policy.Encoding {
	return encodeApart(r.EncodeTo, gfn, page)
}

// EncodeTo makes a page an encoding that lies in dst, a page long at least, or
// is the page itself.
func (RLE) EncodeTo(dst []byte, _ uint64, page []byte) policy.Encoding {
	s := scratches.Get().(*scratch)
	defer scratches.Put(s)
	changed := s.diff(&zeroPage, (*[pageSize]byte)(page))
	if n, ok := s.encode((*[pageSize]byte)(dst), changed); ok {
		return policy.Encoding{Data: dst[:n]}
	}
	return policy.Encoding{Data: page[:pageSize], Raw: true}
}

var zeroPage [pageSize]byte

// Decode makes page what the encoding says, whatever it was. After an error the
// page is partly changed, and the migration has failed.
func (RLE) Decode(gfn uint64, page []byte, base uint32, enc []byte) error {
	if base != 0 {
		return fmt.Errorf("%w: page %#x: run-length encoding with a base %#08x, it takes none", ErrBase, gfn, base)
	}
	if err := decode((*[pageSize]byte)(page), enc, true); err != nil {
		return fmt.Errorf("page %#x: %w", gfn, err)
	}
	return nil
}

// Forget has nothing to drop.
func (RLE) Forget(uint64) {}
