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
	LineIO                     // metronome io dev= ..
	LineFault                  // metronome fault vector= ..
	LineError                  // metronome error: ..
)

var linePrefixes = []struct {
	prefix string
	kind   LineKind
}{
	{"metronome filled ", LineFilled}, {"metronome beat ", LineBeat}, {"metronome bad ", LineBad},
	{"metronome io ", LineIO}, {"metronome fault ", LineFault}, {"metronome error: ", LineError},
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
	Index   uint64 // page number within fill and text, unit of the disk, or frame in the order received
	Version uint64 // that the page should have had; the device's status of kind error
	Kind    string // zero, stale, torn, other or table; of a device error, too
	At      string // disk or net: it came from that device; empty: it is memory
}

// ParseBad reads a bad-page line.
func ParseBad(line string) (Bad, error) {
	f, err := parseFields(line, LineBad)
	if err != nil {
		return Bad{}, err
	}
	b := Bad{Kind: f["kind"], At: f["at"]}
	err = errors.Join(f.number("page", &b.Page, true), f.number("index", &b.Index, true),
		f.number("version", &b.Version, true))
	switch b.Kind {
	case "zero", "stale", "torn", "other", "table":
	case "error":
		if b.At == "" {
			err = errors.Join(err, fmt.Errorf("%w: kind=error of memory", ErrLine))
		}
	default:
		err = errors.Join(err, fmt.Errorf("%w: kind=%.40q", ErrLine, b.Kind))
	}
	switch b.At {
	case "", "disk", "net":
	default:
		err = errors.Join(err, fmt.Errorf("%w: at=%.40q", ErrLine, b.At))
	}
	if err != nil {
		return Bad{}, err
	}
	return b, nil
}

// IOLine is one line of a load on a device; there is one with each beat.
type IOLine struct {
	Dev     string // blk or net
	Phase   string // fill, verify, run or broken
	TMs     uint64 // milliseconds since "metronome up"
	Ops     uint64 // requests answered in phase run
	Bytes   uint64 // of them
	OpsS    uint64 // a second, since the line before
	BytesS  uint64
	P50Us   uint64 // time from offering a request to seeing its answer, since the line before
	P99Us   uint64
	MaxUs   uint64 // the longest ever
	Bad     uint64 // wrong blocks and errors so far; they are in the beat's bad, too
	Reads   uint64
	Writes  uint64
	Flushes uint64
	Flushed uint64 // writes 1..Flushed are stable

	// Of a network.
	Sent     uint64 // frames of its own given to the device
	Received uint64 // frames of io=net
	Lost     uint64 // numbers that were left out
	Again    uint64 // numbers that came twice or late
	Other    uint64 // frames of somebody else
}

// ParseIO reads the line of a load. Fields that it does not know are ignored.
func ParseIO(line string) (IOLine, error) {
	f, err := parseFields(line, LineIO)
	if err != nil {
		return IOLine{}, err
	}
	l := IOLine{Dev: f["dev"], Phase: f["phase"]}
	err = errors.Join(
		f.number("t_ms", &l.TMs, true), f.number("ops", &l.Ops, true), f.number("bytes", &l.Bytes, true),
		f.number("ops_s", &l.OpsS, true), f.number("bytes_s", &l.BytesS, true),
		f.number("p50_us", &l.P50Us, true), f.number("p99_us", &l.P99Us, true), f.number("max_us", &l.MaxUs, true),
		f.number("bad", &l.Bad, true), f.number("reads", &l.Reads, false), f.number("writes", &l.Writes, false),
		f.number("flushes", &l.Flushes, false), f.number("flushed", &l.Flushed, false),
		f.number("sent", &l.Sent, false), f.number("received", &l.Received, false), f.number("lost", &l.Lost, false),
		f.number("again", &l.Again, false), f.number("other", &l.Other, false))
	if l.Dev == "" || l.Phase == "" {
		err = errors.Join(err, fmt.Errorf("%w: no dev or no phase in %.80q", ErrLine, line))
	}
	if err != nil {
		return IOLine{}, err
	}
	return l, nil
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
