package units

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ErrSyntax marks a text that does not say what it should.
var ErrSyntax = errors.New("not understood")

// sizeUnits are the suffixes of a size, binary as DESIGN.md's "Command line" says.
var sizeUnits = map[string]uint64{"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}

// rateUnits are the suffixes of a rate, decimal, in bytes per second.
var rateUnits = map[string]float64{
	"B/s": 1, "kB/s": 1e3, "KB/s": 1e3, "MB/s": 1e6, "GB/s": 1e9,
	"bit/s": 1. / 8, "kbit/s": 1e3 / 8, "Kbit/s": 1e3 / 8, "Mbit/s": 1e6 / 8, "Gbit/s": 1e9 / 8,
}

// split cuts a text into its number and what follows.
func split(s string) (number, suffix string) {
	i := 0
	for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '.') {
		i++
	}
	return s[:i], s[i:]
}

// ParseSize reads a size such as 512M or 4096: a whole number of bytes with an
// optional binary suffix K, M, G or T.
func ParseSize(s string) (uint64, error) {
	number, suffix := split(s)
	unit, ok := sizeUnits[suffix]
	n, err := strconv.ParseUint(number, 10, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("size %.40q: %w; write for example 512M or 2G", s, ErrSyntax)
	}
	if n > math.MaxUint64/unit {
		return 0, fmt.Errorf("size %.40q: %w: more than 64 bits", s, ErrSyntax)
	}
	return n * unit, nil
}

// ParseMiB reads a size that must be a whole number of MiB, at least one.
func ParseMiB(s string) (int, error) {
	n, err := ParseSize(s)
	if err != nil {
		return 0, err
	}
	if n == 0 || n%(1<<20) != 0 || n>>20 > math.MaxInt32 {
		return 0, fmt.Errorf("size %.40q: %w: not a whole number of MiB; write for example 512M or 2G", s, ErrSyntax)
	}
	return int(n >> 20), nil
}

// FormatMiB is the shortest text that ParseMiB reads as mib.
func FormatMiB(mib int) string {
	if mib > 0 && mib%1024 == 0 {
		return strconv.Itoa(mib/1024) + "G"
	}
	return strconv.Itoa(mib) + "M"
}

// ParseRate reads a rate such as 125MB/s or 1Gbit/s, decimal, and gives bytes
// per second; 0 stands for no limit.
func ParseRate(s string) (int64, error) {
	if s == "0" {
		return 0, nil
	}
	number, suffix := split(s)
	unit, ok := rateUnits[suffix]
	n, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil {
		return 0, fmt.Errorf("rate %.40q: %w; write for example 125MB/s or 1Gbit/s, or 0 for no limit", s, ErrSyntax)
	}
	rate := math.Round(n * unit)
	if rate < 1 || rate > math.MaxInt64/2 {
		return 0, fmt.Errorf("rate %.40q: %w: out of range", s, ErrSyntax)
	}
	return int64(rate), nil
}

// FormatRate writes a rate for people, decimal.
func FormatRate(bytesPerSecond float64) string { return FormatBytes(bytesPerSecond) + "/s" }

// FormatBytes writes an amount for people, decimal, three digits.
func FormatBytes(n float64) string {
	for _, u := range []struct {
		name string
		size float64
	}{{"GB", 1e9}, {"MB", 1e6}, {"kB", 1e3}} {
		if n >= u.size {
			return fmt.Sprintf("%.3g %s", n/u.size, u.name)
		}
	}
	return fmt.Sprintf("%.0f B", n)
}

// Pair is one setting of a list.
type Pair struct{ Key, Value string }

// splitItems splits at single commas; two of them are one comma of an item.
func splitItems(s string) []string {
	items := []string{""}
	for i := 0; i < len(s); i++ {
		last := &items[len(items)-1]
		switch {
		case s[i] != ',':
			*last += s[i : i+1]
		case strings.HasPrefix(s[i:], ",,"):
			*last += ","
			i++
		default:
			items = append(items, "")
		}
	}
	return items
}

// ParsePairs reads KEY=VALUE,KEY=VALUE; an item without '=' is a key alone. A
// key comes at most once. A comma within an item is written twice, as for QEMU.
func ParsePairs(s string) ([]Pair, error) {
	var out []Pair
	for _, item := range splitItems(s) {
		key, value, ok := strings.Cut(item, "=")
		switch {
		case key == "":
			return nil, fmt.Errorf("%.80q: %w: an item without a name", s, ErrSyntax)
		case ok && value == "":
			return nil, fmt.Errorf("%.80q: %w: %s= without a value", s, ErrSyntax, key)
		}
		for _, p := range out {
			if p.Key == key {
				return nil, fmt.Errorf("%.80q: %w: %s given twice", s, ErrSyntax, key)
			}
		}
		out = append(out, Pair{key, value})
	}
	return out, nil
}
