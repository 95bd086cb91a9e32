package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// Limits bound what Read accepts and therefore allocates. All must be above 0.
type Limits struct {
	Total    int64 // bytes of the whole stream, framing included
	Section  int64 // bytes of one section's data
	Sections int   // number of sections
}

// DefaultLimits hold a machine of 1,024 vCPUs with room to spare: a vCPU with
// AVX-512 and its MSRs saves about 16 KiB.
var DefaultLimits = Limits{Total: 64 << 20, Section: 16 << 20, Sections: 4096}

// check says whether a section with an id and data of these lengths fits
// after total bytes, with one byte kept for the end mark.
func (l Limits) check(total int64, idLen int, dataLen int64) error {
	if dataLen > l.Section {
		return fmt.Errorf("%w: section of %d bytes, at most %d allowed", ErrLimit, dataLen, l.Section)
	}
	if rest := l.Total - total - int64(overhead+idLen) - 1; dataLen > rest {
		return fmt.Errorf("%w: the stream would have more than %d bytes", ErrLimit, l.Total)
	}
	return nil
}

// Sections is a whole saved machine, read and checked but not yet restored.
// It is not safe for concurrent use.
type Sections struct {
	byID map[string]section
}

type section struct {
	version uint32
	data    []byte
}

// Read reads a state stream from its header to its end mark and checks the
// framing and every checksum. It takes no byte beyond the end mark from r;
// since it reads field by field, r is best buffered. Nothing is restored yet,
// so an error here has changed nothing.
func Read(r io.Reader, l Limits) (*Sections, error) {
	sr := sectionReader{r: r, limits: l}
	s, err := sr.readAll()
	if err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = fmt.Errorf("%w: cut short after %d bytes: %w", ErrFormat, sr.total, io.ErrUnexpectedEOF)
		}
		return nil, fmt.Errorf("read state: %w", err)
	}
	return s, nil
}

type sectionReader struct {
	r      io.Reader
	limits Limits
	total  int64
	crc    uint32 // of the section being read
	buf    [maxID + 8]byte
}

func (r *sectionReader) readAll() (*Sections, error) {
	if r.limits.Total <= 0 || r.limits.Section <= 0 || r.limits.Sections <= 0 {
		return nil, fmt.Errorf("%w: limits %+v allow nothing; start from DefaultLimits", ErrLimit, r.limits)
	}
	header, err := r.fixed(headerLen)
	if err != nil {
		return nil, err
	}
	if string(header[:len(magic)]) != magic {
		return nil, fmt.Errorf("%w: no state header; this is not a saved godwit machine", ErrFormat)
	}
	if v := binary.LittleEndian.Uint32(header[len(magic):]); v != formatVersion {
		return nil, fmt.Errorf("%w: framing version %d, this godwit reads %d", ErrVersion, v, formatVersion)
	}
	s := &Sections{byID: make(map[string]section)}
	for {
		more, err := r.readSection(s)
		if err != nil || !more {
			return s, err
		}
	}
}

// readSection adds the next section to s, or reports false at the end mark.
func (r *sectionReader) readSection(s *Sections) (more bool, err error) {
	r.crc = 0
	b, err := r.fixed(1)
	if err != nil {
		return false, err
	}
	if b[0] == endMark {
		return false, nil
	}
	idLen := int(b[0])
	if idLen > maxID {
		return false, fmt.Errorf("%w: section id of %d bytes, at most %d allowed", ErrFormat, idLen, maxID)
	}
	if len(s.byID) >= r.limits.Sections {
		return false, fmt.Errorf("%w: more than %d sections", ErrLimit, r.limits.Sections)
	}
	b, err = r.fixed(idLen + 8)
	if err != nil {
		return false, err
	}
	id := string(b[:idLen])
	version := binary.LittleEndian.Uint32(b[idLen:])
	dataLen := int64(binary.LittleEndian.Uint32(b[idLen+4:]))
	switch _, taken := s.byID[id]; {
	case !validID(id):
		return false, fmt.Errorf("%w: %q is no section id", ErrID, id)
	case taken:
		return false, fmt.Errorf("%w: %q comes twice", ErrID, id)
	case version == 0:
		return false, fmt.Errorf("%w: section %q has version 0", ErrVersion, id)
	}
	// The id and lengths are in total already.
	if err := r.limits.check(r.total-int64(1+idLen+8), idLen, dataLen); err != nil {
		return false, fmt.Errorf("section %q: %w", id, err)
	}
	data, err := r.data(dataLen)
	if err != nil {
		return false, err
	}
	want := r.crc
	b, err = r.fixed(4)
	if err != nil {
		return false, err
	}
	if got := binary.LittleEndian.Uint32(b); got != want {
		return false, fmt.Errorf("%w: section %q: checksum %#08x, its bytes have %#08x", ErrFormat, id, got, want)
	}
	s.byID[id] = section{version: version, data: data}
	return true, nil
}

// fixed returns the next n bytes, valid until the next call.
func (r *sectionReader) fixed(n int) ([]byte, error) {
	p := r.buf[:n]
	got, err := io.ReadFull(r.r, p)
	r.total += int64(got)
	r.crc = crc32.Update(r.crc, castagnoli, p[:got])
	return p, err
}

// data returns the next n bytes in memory of their own. It grows with what
// really arrives: a length alone makes nobody allocate.
func (r *sectionReader) data(n int64) ([]byte, error) {
	var buf bytes.Buffer
	got, err := io.CopyN(&buf, r.r, n)
	r.total += got
	r.crc = crc32.Update(r.crc, castagnoli, buf.Bytes())
	return buf.Bytes(), err
}

// Restore hands the section with s's id to s and forgets it. It fails when
// there is none, when the section is newer than s, when s refuses it, and when
// s leaves a part of it unread. After an error s is of no use.
func (s *Sections) Restore(p Saver) error {
	id := p.StateID()
	sec, ok := s.byID[id]
	if !ok {
		return fmt.Errorf("restore %q: %w", id, ErrMissing)
	}
	delete(s.byID, id)
	if have := p.StateVersion(); sec.version > have {
		return fmt.Errorf("restore %q: %w: section has version %d, this godwit reads up to %d; use a newer one",
			id, ErrVersion, sec.version, have)
	}
	d := NewDecoder(sec.data)
	if err := p.Restore(sec.version, d); err != nil {
		return fmt.Errorf("restore %q version %d: %w", id, sec.version, err)
	}
	if err := d.Finish(); err != nil {
		return fmt.Errorf("restore %q version %d: %w", id, sec.version, err)
	}
	return nil
}

// Done fails when a section has not been asked for, and names all of those:
// the machine that was saved had a part that this one lacks.
func (s *Sections) Done() error {
	if len(s.byID) == 0 {
		return nil
	}
	ids := make([]string, 0, len(s.byID))
	for id := range s.byID {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return fmt.Errorf("%w: %q; give both sides the same configuration", ErrUnclaimed, ids)
}
