package plain

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// What is printed at most of one text. Neither cuts anything that godwit says
// by itself.
const (
	MaxLine = 4 << 10 // bytes of a line
	MaxText = 1 << 20 // bytes of all lines
)

// Line gives s as one line without its end: what is not printable is written as
// %q writes it, and what exceeds MaxLine is counted instead.
func Line(s string) string {
	return escape(s, MaxLine, "")
}

// Text gives the lines of s, each as Line gives it, but for tabs, which stay.
// What exceeds MaxText is counted instead.
func Text(s string) string {
	var b strings.Builder
	for rest := s; rest != ""; {
		line, after, ended := strings.Cut(rest, "\n")
		line = escape(line, MaxLine, "\t")
		if b.Len()+len(line) > MaxText {
			fmt.Fprintf(&b, "... and %d bytes more\n", len(rest))
			break
		}
		b.WriteString(line)
		if rest = after; ended {
			b.WriteByte('\n')
		}
	}
	return b.String()
}

// JSON gives a JSON text without the characters that encoding/json leaves in
// strings and a terminal does not print as they are: they become \u escapes,
// which mean the same.
func JSON(text []byte) []byte {
	var b []byte
	for len(text) > 0 {
		r, n := utf8.DecodeRune(text)
		switch {
		case r == '\n' || strconv.IsPrint(r):
			b = append(b, text[:n]...)
		case r > 0xffff:
			r -= 0x10000
			b = fmt.Appendf(b, `\u%04x\u%04x`, 0xd800+r>>10, 0xdc00+r&0x3ff)
		default:
			b = fmt.Appendf(b, `\u%04x`, r)
		}
		text = text[n:]
	}
	return b
}

// escape writes at most about limit bytes of s. Characters in keep stay.
func escape(s string, limit int, keep string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		piece := s[i : i+n]
		if r == utf8.RuneError && n == 1 || !strconv.IsPrint(r) && !strings.ContainsRune(keep, r) {
			quoted := strconv.Quote(piece)
			piece = quoted[1 : len(quoted)-1]
		}
		if b.Len()+len(piece) > limit {
			fmt.Fprintf(&b, "... and %d bytes more", len(s)-i)
			break
		}
		b.WriteString(piece)
		i += n
	}
	return b.String()
}
