package console

// escapeKey is Ctrl-a.
const escapeKey = 1

// escape finds the console's own keys in what is typed: Ctrl-a x leaves,
// Ctrl-a a is a Ctrl-a for the guest, and any other key after Ctrl-a goes to
// the guest alone. Its zero value is ready.
type escape struct{ armed bool }

// filter appends to dst what is for the guest. leave is true when the user
// wants to leave; what was typed after that is dropped.
func (e *escape) filter(dst, typed []byte) (guest []byte, leave bool) {
	for _, b := range typed {
		switch {
		case !e.armed && b == escapeKey:
			e.armed = true
			continue
		case e.armed && (b == 'x' || b == 'X'):
			e.armed = false
			return dst, true
		case e.armed && (b == 'a' || b == 'A'):
			b = escapeKey
		}
		e.armed = false
		dst = append(dst, b)
	}
	return dst, false
}
