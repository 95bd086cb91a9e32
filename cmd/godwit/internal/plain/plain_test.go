package plain

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

func TestLine(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"empty", "", ""},
		{"plain", `the guest "web" runs at tcp:host:1\2`, `the guest "web" runs at tcp:host:1\2`},
		{"other scripts", "größe 大きさ é ✓", "größe 大きさ é ✓"},
		{"title", "\x1b]0;x\a", `\x1b]0;x\a`},
		{"clear", "\x1b[2J", `\x1b[2J`},
		{"8-bit CSI", "\u009b2J", `\u009b2J`},
		{"raw 8-bit CSI", "\x9b2J", `\x9b2J`},
		{"overwrite", "bad\rgood", `bad\rgood`},
		{"backspace, delete, NUL", "a\b\x7f\x00", `a\b\x7f\x00`},
		{"new line", "a\ngodwit: b", `a\ngodwit: b`},
		{"tab", "a\tb", `a\tb`},
		{"line separators", "a\u0085b\u2028c\u2029", `a\u0085b\u2028c\u2029`},
		{"embeddings", "\u202a\u202b\u202c\u202d\u202e", `\u202a\u202b\u202c\u202d\u202e`},
		{"isolates", "\u2066\u2067\u2068\u2069", `\u2066\u2067\u2068\u2069`},
		{"marks", "\u200e\u200f\u061c", `\u200e\u200f\u061c`},
		{"invisible", "\u200b\ufeff\u00ad\U000e0041", `\u200b\ufeff\u00ad\U000e0041`},
		{"no UTF-8", "a\xff\xc3(\xed\xa0\x80", `a\xff\xc3(\xed\xa0\x80`},
		{"replacement character", "\ufffd", "\ufffd"},
		{"once more", `\x1b[2J`, `\x1b[2J`},
	} {
		t.Run(c.name, func(t *testing.T) {
			require.Equal(t, c.want, Line(c.in))
			require.Equal(t, c.want, Line(c.want), "what is plain stays")
		})
	}
}

func TestEveryCharacterOfALine(t *testing.T) {
	for r := range rune(utf8.MaxRune + 1) {
		switch {
		case r < ' ', r >= 0x7f && r < 0xa0, r >= 0x202a && r <= 0x202e, r >= 0x2066 && r <= 0x2069, r == 0x200e, r == 0x200f, r == 0x61c:
			require.NotContains(t, Line(string(r)), string(r), "%U", r)
			if r != '\n' { // between objects
				require.NotContains(t, string(JSON([]byte(string(r)))), string(r), "%U", r)
			}
		}
	}
}

func TestText(t *testing.T) {
	require.Equal(t, "a\n\tb\\x1b\n\nc", Text("a\n\tb\x1b\n\nc"))
	require.Equal(t, "a\n", Text("a\n"))
	require.Empty(t, Text(""))
	require.Equal(t, `a\r`+"\nb\n", Text("a\r\nb\n"))
}

func TestBounds(t *testing.T) {
	for _, unit := range []string{"x", "\x1b", "\xff", "大", "\U000e0041"} {
		t.Run(fmt.Sprintf("%q", unit), func(t *testing.T) {
			line := Line(strings.Repeat(unit, 1<<20))
			require.Less(t, len(line), MaxLine+40)
			require.Regexp(t, `\.\.\. and \d+ bytes more$`, line)
			require.True(t, utf8.ValidString(line))
			text := Text(strings.Repeat(unit+"\n", 4<<20))
			require.Less(t, len(text), MaxText+40)
			require.Regexp(t, `\n\.\.\. and \d+ bytes more\n$`, text)
		})
	}
	exact := strings.Repeat("x", MaxLine)
	require.Equal(t, exact, Line(exact))
}

func TestJSON(t *testing.T) {
	in := map[string]string{"a": "\u009b2J\u202e\x7f\U000e0041大\x1b\n"}
	text, err := json.Marshal(in)
	require.NoError(t, err)
	out := JSON(append(text, '\n'))
	require.Equal(t, `{"a":"\u009b2J\u202e\u007f\udb40\udc41大\u001b\n"}`+"\n", string(out))
	var back map[string]string
	require.NoError(t, json.Unmarshal(out, &back))
	require.Equal(t, in, back)
}
