package lz4codec

import (
	"github.com/pierrec/lz4/v4"

	"godwit/migration/policy"
)

// coder is what one Encode needs. It serves one call at a time.
type coder struct {
	// The port of the reference's fast search. On pages it is as fast as the
	// library's default on text and up to six times as fast on sparse pages, since
	// it clears a table of 16 KiB per page and not one of 128 KiB.
	lz4  lz4.CompressorCCompat
	page [policy.PageSize]byte // a copy: the guest goes on writing
	slab []byte                // room for encodings, not used yet
}

func newCoder(accel int) *coder {
	return &coder{lz4: lz4.CompressorCCompat{Acceleration: accel}}
}

// encode gives page as a block in the slab, or nil when it saves too little.
func (w *coder) encode(page []byte) []byte {
	if len(w.slab) < maxEncoded {
		w.slab = make([]byte, slabSize)
	}
	n := w.encodeTo(w.slab[:maxEncoded], page)
	if n == 0 {
		return nil
	}
	data := w.slab[:n:n]
	w.slab = w.slab[n:]
	return data
}

// encodeTo writes page's block to dst and gives its length, 0 if it does not fit.
func (w *coder) encodeTo(dst, page []byte) int {
	copy(w.page[:], page)
	n, err := w.lz4.CompressBlock(w.page[:], dst)
	if err != nil {
		return 0
	}
	return n
}
