package lz4codec

import (
	"errors"
	"fmt"
	"runtime"

	"github.com/pierrec/lz4/v4"

	"godwit/migration/policy"
)

// ID is the codec's name on the wire.
const ID = 1

// ErrEncoding says that an encoding is not the LZ4 block of one page.
var ErrEncoding = errors.New("bad lz4 encoding")

// maxEncoded is the longest encoding that is sent, bytes: a page must save an
// eighth. Decoding takes the destination 1 to 2 us a page. At 340 MB/s, about the
// fastest link on which LZ4 pays, 512 bytes take as long on the wire; a page that
// saves less is better sent from guest memory.
const maxEncoded = policy.PageSize - policy.PageSize/8

// slabSize is how much memory is taken at once for encodings, bytes.
const slabSize = 256 << 10

var _ policy.ScratchCodec = (*Codec)(nil)

func init() {
	policy.Codecs.Register("lz4", func(o *policy.Options) (policy.Codec, error) {
		return New(o.Int("accel", 1, 1, 64)), nil
	})
}

// Codec compresses pages one by one. It keeps nothing of a page.
//
// All methods may be called from any goroutine. Encode uses a coder per call
// that is under way; as many as there are processors are kept for the next,
// about 300 KiB each. Decode needs none.
type Codec struct {
	accel int
	idle  chan *coder
}

// New makes a codec with LZ4's acceleration, 1 (the usual) to 64. What lies
// outside is taken as the nearest.
func New(accel int) *Codec {
	return &Codec{accel: min(max(accel, 1), 64), idle: make(chan *coder, runtime.GOMAXPROCS(0))}
}

// ID is 1.
func (*Codec) ID() uint8 { return ID }

// Encode implements policy.Codec. A page of another length than
// policy.PageSize, and one that would not save an eighth, comes back Raw, with
// the page itself as Data.
//
// Encodings are cut from slabs that the collector takes back when none of their
// encodings is in use: one allocation for a hundred pages or so, and Data stays
// valid for as long as anybody keeps it.
func (c *Codec) Encode(_ uint64, page []byte) policy.Encoding {
	if len(page) != policy.PageSize {
		return policy.Encoding{Data: page, Raw: true}
	}
	w := c.coder()
	data := w.encode(page)
	c.rest(w)
	if data == nil {
		return policy.Encoding{Data: page, Raw: true}
	}
	return policy.Encoding{Data: data}
}

// EncodeTo implements policy.ScratchCodec: Encode without an allocation. page
// may lie in dst; what comes back Raw is then as it was.
func (c *Codec) EncodeTo(dst []byte, _ uint64, page []byte) policy.Encoding {
	if len(page) != policy.PageSize {
		return policy.Encoding{Data: page, Raw: true}
	}
	w := c.coder()
	defer c.rest(w)
	if n := w.encodeTo(dst[:maxEncoded], page); n > 0 {
		return policy.Encoding{Data: dst[:n]}
	}
	if &page[0] == &dst[0] {
		copy(dst, w.page[:])
	}
	return policy.Encoding{Data: page, Raw: true}
}

// coder takes a coder that nobody uses.
func (c *Codec) coder() *coder {
	select {
	case w := <-c.idle:
		return w
	default:
		return newCoder(c.accel)
	}
}

// rest puts a coder back, unless enough are kept.
func (c *Codec) rest(w *coder) {
	select {
	case c.idle <- w:
	default:
	}
}

// Decode implements policy.Codec. It reads enc and writes page only, and when
// it fails the content of page is undefined.
func (*Codec) Decode(gfn uint64, page []byte, base uint32, enc []byte) error {
	switch {
	case len(page) != policy.PageSize:
		return fmt.Errorf("%w: page %#x: room for %d bytes, a page has %d", ErrEncoding, gfn, len(page), policy.PageSize)
	case base != 0:
		return fmt.Errorf("%w: page %#x: builds on a page with checksum %#x, lz4 builds on none", ErrEncoding, gfn, base)
	case len(enc) == 0 || len(enc) > maxEncoded:
		return fmt.Errorf("%w: page %#x: %d bytes, must be 1 to %d", ErrEncoding, gfn, len(enc), maxEncoded)
	}
	n, err := lz4.UncompressBlock(enc, page)
	if err != nil {
		return fmt.Errorf("%w: page %#x: %d bytes: %w", ErrEncoding, gfn, len(enc), err)
	}
	if n != policy.PageSize {
		return fmt.Errorf("%w: page %#x: %d bytes make %d, must be %d", ErrEncoding, gfn, len(enc), n, policy.PageSize)
	}
	return nil
}

// Forget implements policy.Codec: there is nothing to drop.
func (*Codec) Forget(uint64) {}
