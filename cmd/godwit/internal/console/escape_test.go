package console

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEscape(t *testing.T) {
	for _, c := range []struct {
		typed []string
		guest string
		leave bool
	}{
		{[]string{"ls\r"}, "ls\r", false},
		{[]string{"\x01x"}, "", true},
		{[]string{"a\x01", "xrest"}, "a", true},
		{[]string{"\x01a"}, "\x01", false},
		{[]string{"\x01A\x01X"}, "\x01", true},
		{[]string{"\x01q"}, "q", false},
		{[]string{"\x01\x01x"}, "\x01x", false},
		{[]string{"\x03\x1c\x00"}, "\x03\x1c\x00", false},
	} {
		var e escape
		var guest []byte
		leave := false
		for _, s := range c.typed {
			var g []byte
			if g, leave = e.filter(nil, []byte(s)); true {
				guest = append(guest, g...)
			}
		}
		require.Equal(t, c.guest, string(guest), "%q", c.typed)
		require.Equal(t, c.leave, leave, "%q", c.typed)
	}
}

func FuzzEscape(f *testing.F) {
	f.Add([]byte("a\x01ab\x01x"), 3)
	f.Fuzz(func(t *testing.T, typed []byte, cut int) {
		var whole, halves escape
		one, leave := whole.filter(nil, typed)
		cut = min(max(cut, 0), len(typed))
		two, left := halves.filter(nil, typed[:cut])
		if !left {
			two, left = halves.filter(two, typed[cut:])
		}
		if string(one) != string(two) || leave != left {
			t.Fatalf("%q cut at %d: %q, %v and %q, %v", typed, cut, one, leave, two, left)
		}
	})
}
