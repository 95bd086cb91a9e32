package wire

import (
	"fmt"
	"io"
)

// Writer builds the frames of one direction. It is not safe for concurrent use.
type Writer struct {
	w   io.Writer
	buf []byte
	seq uint32
}

// NewWriter writes frames to w, one Write call each.
func NewWriter(w io.Writer) *Writer { return &Writer{w: w} }

// Open writes the preamble and the first frame in one piece: a HELLO, or an
// ERROR that refuses the peer's.
func (w *Writer) Open(t Type, body []byte) error {
	w.buf = w.Append(append(w.buf[:0], Preamble...), t, 0, body, 0)
	return w.flush(t)
}

// Frame writes a frame without bulk.
func (w *Writer) Frame(t Type, flags uint8, body []byte) error {
	w.buf = w.Append(w.buf[:0], t, flags, body, 0)
	return w.flush(t)
}

// Append adds the header and body of the next frame to dst. Its caller must put
// them on the stream, followed by exactly bulk bytes, before the next frame:
// this is how page data leaves by a vectored write straight from guest memory.
// A body or bulk beyond the type's limits is a bug of the caller and panics.
func (w *Writer) Append(dst []byte, t Type, flags uint8, body []byte, bulk uint32) []byte {
	if r := &rules[t]; uint32(len(body)) > r.max || bulk > r.bulk {
		panic(fmt.Sprintf("wire: %s with body %d and bulk %d", t, len(body), bulk))
	}
	h := header{typ: t, flags: flags, body: uint32(len(body)), bulk: bulk, seq: w.seq, bodyCRC: Checksum(body)}
	w.seq++
	at := len(dst)
	dst = append(dst, make([]byte, HeaderSize)...)
	h.put(dst[at:])
	return append(dst, body...)
}

func (w *Writer) flush(t Type) error {
	if _, err := w.w.Write(w.buf); err != nil {
		return fmt.Errorf("send %s: %w", t, err)
	}
	return nil
}
