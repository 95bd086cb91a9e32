package wire

import (
	"encoding/binary"
	"fmt"
)

const (
	// runSize is the size of one entry in the body of a ZERO or RAW frame, bytes.
	runSize = 16
	// CodedSize is the size of one entry in the body of a CODEC frame, bytes.
	CodedSize = runSize
)

// MaxRuns is how many entries fit in one frame.
const MaxRuns = MaxBody / runSize

// Run is a run of guest pages: an entry of a ZERO or RAW frame. In a RAW frame
// the bulk holds the pages of its runs, one run after the other.
type Run struct {
	GPA   uint64 // guest physical address of the first page, page-aligned
	Pages uint32 // at least 1
}

// AppendRun adds an entry to the body of a ZERO or RAW frame.
func AppendRun(dst []byte, r Run) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, r.GPA)
	dst = binary.LittleEndian.AppendUint32(dst, r.Pages)
	return binary.LittleEndian.AppendUint32(dst, 0)
}

// Runs is the checked body of a ZERO or RAW frame.
type Runs struct{ body []byte }

// DecodeRuns checks every entry of f, and for RAW that the bulk is exactly their
// pages. It returns the runs and how many pages they hold together. The runs
// are valid as long as the frame's body is.
func DecodeRuns(f *Frame) (Runs, uint64, error) {
	if len(f.Body)%runSize != 0 {
		return Runs{}, 0, fmt.Errorf("%w: %s body of %d bytes is not whole entries", ErrFormat, f.Type, len(f.Body))
	}
	rs := Runs{f.Body}
	var pages uint64
	for i := range rs.Len() {
		e := f.Body[i*runSize:]
		r := rs.At(i)
		if r.Pages == 0 || r.GPA%PageSize != 0 || r.GPA+uint64(r.Pages)*PageSize < r.GPA {
			return Runs{}, 0, fmt.Errorf("%w: %s run of %d pages at %#x", ErrFormat, f.Type, r.Pages, r.GPA)
		}
		if binary.LittleEndian.Uint32(e[12:]) != 0 {
			return Runs{}, 0, fmt.Errorf("%w: %s run with reserved bytes set", ErrFormat, f.Type)
		}
		pages += uint64(r.Pages)
	}
	if f.Type == TypeRaw && pages*PageSize != uint64(f.Bulk) {
		return Runs{}, 0, fmt.Errorf("%w: RAW frame names %d pages and carries %d bytes", ErrFormat, pages, f.Bulk)
	}
	return rs, pages, nil
}

// Len is the number of runs.
func (rs Runs) Len() int { return len(rs.body) / runSize }

// At is run i, 0 to Len()-1.
func (rs Runs) At(i int) Run {
	e := rs.body[i*runSize : (i+1)*runSize]
	return Run{GPA: binary.LittleEndian.Uint64(e), Pages: binary.LittleEndian.Uint32(e[8:])}
}

// Coded is one page encoded by a codec: an entry of a CODEC frame, whose bulk
// holds the encodings one after the other. Base is the Checksum of the page
// that the encoding builds on (0 for a codec that needs none), so that two
// caches that drifted apart are noticed before they spoil memory.
type Coded struct {
	GPA   uint64 // page-aligned
	Base  uint32
	Len   uint16 // bytes of the encoding, 0 to PageSize-1: nothing at all can say that a page is as it was
	Codec uint8  // the codec's ID, not 0
}

// AppendCoded adds an entry to the body of a CODEC frame.
func AppendCoded(dst []byte, c Coded) []byte {
	dst = binary.LittleEndian.AppendUint64(dst, c.GPA)
	dst = binary.LittleEndian.AppendUint32(dst, c.Base)
	dst = binary.LittleEndian.AppendUint16(dst, c.Len)
	return append(dst, c.Codec, 0)
}

// CodedPages is the checked body of a CODEC frame.
type CodedPages struct{ body []byte }

// DecodeCoded checks every entry of a CODEC frame, and that its bulk is exactly
// the encodings.
func DecodeCoded(f *Frame) (CodedPages, error) {
	if len(f.Body)%runSize != 0 {
		return CodedPages{}, fmt.Errorf("%w: CODEC body of %d bytes is not whole entries", ErrFormat, len(f.Body))
	}
	cs := CodedPages{f.Body}
	var bytes uint64
	for i := range cs.Len() {
		c := cs.At(i)
		if c.GPA%PageSize != 0 || c.Len >= PageSize || c.Codec == 0 || f.Body[i*runSize+15] != 0 {
			return CodedPages{}, fmt.Errorf("%w: CODEC entry of %d bytes by codec %d at %#x", ErrFormat, c.Len, c.Codec, c.GPA)
		}
		bytes += uint64(c.Len)
	}
	if bytes != uint64(f.Bulk) {
		return CodedPages{}, fmt.Errorf("%w: CODEC frame names %d bytes and carries %d", ErrFormat, bytes, f.Bulk)
	}
	return cs, nil
}

// Len is the number of entries.
func (cs CodedPages) Len() int { return len(cs.body) / runSize }

// At is entry i, 0 to Len()-1.
func (cs CodedPages) At(i int) Coded {
	e := cs.body[i*runSize : (i+1)*runSize]
	return Coded{
		GPA:   binary.LittleEndian.Uint64(e),
		Base:  binary.LittleEndian.Uint32(e[8:]),
		Len:   binary.LittleEndian.Uint16(e[12:]),
		Codec: e[14],
	}
}
