package state

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
)

const (
	// magic opens the stream. The high bit and the line ends catch a transport
	// that is not 8-bit clean or that translates text.
	magic = "\x89GODWIT\n"
	// formatVersion is the version of the framing, not of any section.
	formatVersion = 1
	headerLen     = len(magic) + 4

	maxID = 64
	// overhead is what a section costs besides its id and data.
	overhead = 1 + 4 + 4 + 4
	// endMark stands where the id length of another section would.
	endMark = 0
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Writer frames sections. It is not safe for concurrent use.
type Writer struct {
	w        io.Writer
	limits   Limits
	ids      map[string]bool
	total    int64
	frame    []byte // reused from section to section
	enc      Encoder
	err      error
	finished bool
}

// NewWriter writes a state stream to w: header, one section per WriteSaver,
// end mark at Close. Each section is one Write call. The Writer keeps to
// DefaultLimits, so that what the destination would refuse fails here, while
// the source can still run on. A failure to write the header is returned by
// the first WriteSaver or Close.
func NewWriter(w io.Writer) *Writer {
	sw := &Writer{w: w, limits: DefaultLimits, ids: make(map[string]bool)}
	header := binary.LittleEndian.AppendUint32([]byte(magic), formatVersion)
	sw.write(header)
	return sw
}

// WriteSaver saves s and writes its section. After any error the stream is of
// no use: every later call, Close included, returns that error.
func (w *Writer) WriteSaver(s Saver) error {
	if w.err != nil {
		return w.err
	}
	id := s.StateID()
	if err := w.writeSection(id, s); err != nil {
		w.err = fmt.Errorf("save state of %q: %w", id, err)
	}
	return w.err
}

func (w *Writer) writeSection(id string, s Saver) error {
	switch {
	case w.finished:
		return fmt.Errorf("%w: the stream is closed", ErrFormat)
	case !validID(id):
		return fmt.Errorf("%w: an id has 1 to %d of a-z, 0-9, '-', '/', '.'", ErrID, maxID)
	case w.ids[id]:
		return fmt.Errorf("%w: two parts of the machine have this id", ErrID)
	case len(w.ids) >= w.limits.Sections:
		return fmt.Errorf("%w: more than %d sections", ErrLimit, w.limits.Sections)
	case s.StateVersion() == 0:
		return fmt.Errorf("%w: versions start at 1", ErrVersion)
	}
	w.ids[id] = true

	w.enc.data = w.enc.data[:0]
	if err := s.Save(&w.enc); err != nil {
		return err
	}
	data := w.enc.data
	if err := w.limits.check(w.total, len(id), int64(len(data))); err != nil {
		return err
	}
	f := append(w.frame[:0], byte(len(id)))
	f = append(f, id...)
	f = binary.LittleEndian.AppendUint32(f, s.StateVersion())
	f = binary.LittleEndian.AppendUint32(f, uint32(len(data)))
	f = append(f, data...)
	f = binary.LittleEndian.AppendUint32(f, crc32.Checksum(f, castagnoli))
	w.frame = f
	w.write(f)
	return w.err
}

// Close writes the end mark. It does not close the underlying writer. Without
// it the stream reads as cut short.
func (w *Writer) Close() error {
	if w.err != nil {
		return w.err
	}
	if !w.finished {
		w.finished = true
		w.write([]byte{endMark})
	}
	return w.err
}

// write keeps the first error.
func (w *Writer) write(p []byte) {
	n, err := w.w.Write(p)
	w.total += int64(n)
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	if err != nil && w.err == nil {
		w.err = fmt.Errorf("write state: %w", err)
	}
}

// validID reports whether id keeps to what Saver.StateID promises.
func validID(id string) bool {
	if len(id) < 1 || len(id) > maxID {
		return false
	}
	for _, c := range []byte(id) {
		switch {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '/', c == '.':
		default:
			return false
		}
	}
	return true
}
