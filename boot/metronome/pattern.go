package metronome

import (
	"fmt"
	"strconv"
	"strings"
)

// PatternKind says how pages of the working set are chosen.
type PatternKind int

const (
	Uniform    PatternKind = iota // every page as likely
	Sequential                    // one after the other
	Hotspot                       // HotShare percent of the operations on HotPages percent of the pages
	Zipf                          // page of rank k with probability proportional to k^-S
)

// Pattern is the order in which a vCPU takes the pages of its share of the working
// set.
type Pattern struct {
	Kind      PatternKind
	HotShare  int // Hotspot: percent of the operations, 0..100
	HotPages  int // Hotspot: percent of the pages, 1..100; the first ones
	ZipfMilli int // Zipf: S in thousandths, 1..4000
}

// String writes the pattern as the command line has it.
func (p Pattern) String() string {
	switch p.Kind {
	case Uniform:
		return "uniform"
	case Sequential:
		return "sequential"
	case Hotspot:
		return fmt.Sprintf("hotspot:%d/%d", p.HotShare, p.HotPages)
	case Zipf:
		s := fmt.Sprintf("zipf:%d.%03d", p.ZipfMilli/1000, p.ZipfMilli%1000)
		return strings.TrimSuffix(strings.TrimRight(s, "0"), ".")
	}
	return fmt.Sprintf("pattern(%d)", int(p.Kind))
}

// ParsePattern reads uniform, sequential, hotspot:P/Q or zipf:S.
func ParsePattern(s string) (Pattern, error) {
	p, ok := parsePattern(s)
	if !ok || p.validate() != nil {
		return Pattern{}, fmt.Errorf("pattern=%.40q: must be uniform, sequential, hotspot:P/Q (percent of operations/pages) or zipf:S (over 0, up to 4, three decimals)", s)
	}
	return p, nil
}

func parsePattern(s string) (Pattern, bool) {
	name, arg, hasArg := strings.Cut(s, ":")
	switch {
	case name == "uniform" && !hasArg:
		return Pattern{Kind: Uniform}, true
	case name == "sequential" && !hasArg:
		return Pattern{Kind: Sequential}, true
	case name == "hotspot":
		share, pages, _ := strings.Cut(arg, "/")
		p, err1 := strconv.ParseUint(share, 10, 16)
		q, err2 := strconv.ParseUint(pages, 10, 16)
		return Pattern{Kind: Hotspot, HotShare: int(p), HotPages: int(q)}, err1 == nil && err2 == nil
	case name == "zipf":
		whole, part, hasPart := strings.Cut(arg, ".")
		if hasPart && (part == "" || len(part) > 3) {
			return Pattern{}, false
		}
		w, err1 := strconv.ParseUint(whole, 10, 8)
		f, err2 := strconv.ParseUint((part + "000")[:3], 10, 16)
		return Pattern{Kind: Zipf, ZipfMilli: int(w*1000 + f)}, err1 == nil && err2 == nil
	}
	return Pattern{}, false
}

func (p Pattern) validate() error {
	ok := false
	switch p.Kind {
	case Uniform, Sequential:
		ok = true
	case Hotspot:
		ok = p.HotShare >= 0 && p.HotShare <= 100 && p.HotPages >= 1 && p.HotPages <= 100
	case Zipf:
		ok = p.ZipfMilli >= 1 && p.ZipfMilli <= 4000
	}
	if !ok {
		return fmt.Errorf("pattern=%v: out of range", p)
	}
	return nil
}
