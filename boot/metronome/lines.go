package metronome

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// LineKind tells the guest's serial lines apart.
type LineKind int

const (
	LineOther  LineKind = iota // not the guest's
	LineUp                     // metronome up
	LineFilled                 // metronome filled ms=
	LineBeat                   // metronome beat t_ms= ..
	LineBad                    // metronome bad page= ..
	LineFault                  // metronome fault vector= ..
	LineError                  // metronome error: ..
)

var linePrefixes = []struct {
	prefix string
	kind   LineKind
}{
	{"metronome filled ", LineFilled}, {"metronome beat ", LineBeat}, {"metronome bad ", LineBad},
	{"metronome fault ", LineFault}, {"metronome error: ", LineError},
}

// ErrLine: a line is not what the parser is for, or a field of it is missing or wrong.
var ErrLine = errors.New("not such a metronome line")

// maxLine is more than the guest's longest line. Longer ones are not parsed.
const maxLine = 512

// Kind tells what a serial line is. Line ends are ignored.
func Kind(line string) LineKind {
	line = strings.TrimRight(line, "\r\n")
	if line == "metronome up" {
		return LineUp
	}
	for _, p := range linePrefixes {
		if strings.HasPrefix(line, p.prefix) {
			return p.kind
		}
	}
	return LineOther
}

// Beat is one beat line.
type Beat struct {
	TMs      uint64 // milliseconds since "metronome up"
	Writes   uint64 // page writes so far
	GapUs    uint64 // longest time between two looks at the TSC since the beat before, worst vCPU
	MaxGapUs uint64 // the longest ever
	Bad      uint64 // bad pages found so far
	Sweeps   uint64 // full sweeps of the slowest vCPU
	Reads    uint64 // 0 where the line has none
	Back     uint64 // times a TSC went backwards; 0 where the line has none
}

// ParseBeat reads a beat line. Fields that it does not know are ignored.
func ParseBeat(line string) (Beat, error) {
	f, err := parseFields(line, LineBeat)
	if err != nil {
		return Beat{}, err
	}
	var b Beat
	err = errors.Join(
		f.number("t_ms", &b.TMs, true), f.number("writes", &b.Writes, true),
		f.number("gap_us", &b.GapUs, true), f.number("max_gap_us", &b.MaxGapUs, true),
		f.number("bad", &b.Bad, true), f.number("sweeps", &b.Sweeps, true),
		f.number("reads", &b.Reads, false), f.number("back", &b.Back, false))
	if err != nil {
		return Beat{}, err
	}
	return b, nil
}

// Bad is one bad-page line.
type Bad struct {
	Page    uint64 // guest physical address
	Index   uint64 // page number within fill and text
	Version uint64 // that the page should have had
	Kind    string // zero, stale, torn, other or table
}

// ParseBad reads a bad-page line.
func ParseBad(line string) (Bad, error) {
	f, err := parseFields(line, LineBad)
	if err != nil {
		return Bad{}, err
	}
	b := Bad{Kind: f["kind"]}
	err = errors.Join(f.number("page", &b.Page, true), f.number("index", &b.Index, true),
		f.number("version", &b.Version, true))
	switch b.Kind {
	case "zero", "stale", "torn", "other", "table":
	default:
		err = errors.Join(err, fmt.Errorf("%w: kind=%.40q", ErrLine, b.Kind))
	}
	if err != nil {
		return Bad{}, err
	}
	return b, nil
}

// ParseFilled reads the line that follows filling: milliseconds since "metronome up".
func ParseFilled(line string) (ms uint64, err error) {
	f, err := parseFields(line, LineFilled)
	if err != nil {
		return 0, err
	}
	return ms, f.number("ms", &ms, true)
}

type fields map[string]string

func parseFields(line string, kind LineKind) (fields, error) {
	if len(line) > maxLine || Kind(line) != kind {
		return nil, fmt.Errorf("%w: %.80q", ErrLine, line)
	}
	f := fields{}
	for _, word := range strings.Fields(line)[2:] {
		key, value, ok := strings.Cut(word, "=")
		if _, twice := f[key]; !ok || twice {
			return nil, fmt.Errorf("%w: word %.40q in %.80q", ErrLine, word, line)
		}
		f[key] = value
	}
	return f, nil
}

// number stores the decimal or 0x field, which must be there when needed.
func (f fields) number(key string, to *uint64, needed bool) error {
	value, ok := f[key]
	if !ok && !needed {
		return nil
	}
	v, err := strconv.ParseUint(value, 0, 64)
	if err != nil {
		return fmt.Errorf("%w: %s=%.40q is not a number", ErrLine, key, value)
	}
	*to = v
	return nil
}
