package wire

import (
	"bufio"
	"errors"
	"fmt"
	"io"
)

// readBuffer is large enough to take many small frames in one system call, and
// small beside a run of pages, which bypasses it.
const readBuffer = 32 << 10

// tlsHandshake is the first byte of a TLS connection: the content type
// "handshake" (RFC 8446, 5.1).
const tlsHandshake = 22

// Frame is one frame as read. Body is valid until the next call of the Reader.
// Bulk is the length of the page data that follows; it must be read with
// Reader.Bulk before the next frame.
type Frame struct {
	Type  Type
	Flags uint8
	Body  []byte
	Bulk  uint32
}

// Last says whether FlagLast is set.
func (f *Frame) Last() bool { return f.Flags&FlagLast != 0 }

// Reader reads frames of one direction. It is not safe for concurrent use. After
// an error it stays failed: the position in the stream is lost.
type Reader struct {
	r    *bufio.Reader
	head [HeaderSize]byte
	body []byte
	seq  uint32
	bulk uint32
	err  error
}

// NewReader reads frames from r, which it buffers.
func NewReader(r io.Reader) *Reader {
	return &Reader{r: bufio.NewReaderSize(r, readBuffer)}
}

// Preamble reads and checks the opening of the stream, byte by byte, so that a
// stranger who talks another protocol is told so at its first wrong byte.
func (r *Reader) Preamble() error {
	for i := range len(Preamble) {
		c, err := r.r.ReadByte()
		if err != nil {
			if errors.Is(err, io.EOF) && i > 0 {
				err = io.ErrUnexpectedEOF
			}
			return r.fail(fmt.Errorf("read preamble: %w", err))
		}
		if i == 0 && c == tlsHandshake {
			return r.fail(fmt.Errorf("%w: the other side speaks TLS and this one does not; let both have certificates (--tls-cert, --tls-key, --tls-ca) or neither", ErrNotGodwit))
		}
		if c != Preamble[i] {
			return r.fail(fmt.Errorf("%w: it begins with %q", ErrNotGodwit, Preamble[:i]+string(rune(c))))
		}
	}
	return nil
}

// Next reads the next frame's header and body. A stream that ends between
// frames gives io.EOF, one that ends inside gives io.ErrUnexpectedEOF.
func (r *Reader) Next() (Frame, error) {
	if r.err != nil {
		return Frame{}, r.err
	}
	if r.bulk != 0 {
		return Frame{}, r.fail(fmt.Errorf("read frame: %d bytes of page data not consumed", r.bulk))
	}
	if _, err := io.ReadFull(r.r, r.head[:]); err != nil {
		return Frame{}, r.fail(err)
	}
	var h header
	if err := h.parse(r.head[:]); err != nil {
		return Frame{}, r.fail(err)
	}
	if h.seq != r.seq {
		return Frame{}, r.fail(fmt.Errorf("%w: %s has sequence number %d, expected %d", ErrFormat, h.typ, h.seq, r.seq))
	}
	r.seq++
	if cap(r.body) < int(h.body) {
		r.body = make([]byte, h.body)
	}
	body := r.body[:h.body]
	if _, err := io.ReadFull(r.r, body); err != nil {
		return Frame{}, r.fail(inside(err))
	}
	if got := Checksum(body); got != h.bodyCRC {
		return Frame{}, r.fail(fmt.Errorf("%w: %s body checksum %#x, computed %#x", ErrFormat, h.typ, h.bodyCRC, got))
	}
	r.bulk = h.bulk
	return Frame{Type: h.typ, Flags: h.flags, Body: body, Bulk: h.bulk}, nil
}

// Bulk fills p with the next page data of the current frame. Large p are read
// straight from the stream, with no copy.
func (r *Reader) Bulk(p []byte) error {
	if r.err != nil {
		return r.err
	}
	if uint64(len(p)) > uint64(r.bulk) {
		return r.fail(fmt.Errorf("%w: %d bytes of page data wanted, %d left in the frame", ErrFormat, len(p), r.bulk))
	}
	n, err := io.ReadFull(r.r, p)
	r.bulk -= uint32(n)
	if err != nil {
		return r.fail(inside(err))
	}
	return nil
}

func (r *Reader) fail(err error) error {
	if r.err == nil {
		r.err = err
	}
	return err
}

// inside turns an end of stream within a frame into what it is.
func inside(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
