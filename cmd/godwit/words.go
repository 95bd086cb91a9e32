package main

import (
	"fmt"
	"os"

	"godwit/cmd/godwit/internal/plain"
)

// tell writes one message for the user on stderr, where no machine of this process
// has the terminal: see host.say.
func tell(format string, a ...any) { tellAs("godwit", format, a...) }

// tellAs is tell for another that speaks.
func tellAs(who, format string, a ...any) {
	fmt.Fprintf(os.Stderr, "%s: %s\n", who, plain.Line(oneLine(fmt.Sprintf(format, a...))))
}

// show writes a command's result for people on stdout. Values in it that others
// chose are plain.Line already, so that they begin no line of their own.
func show(text string) {
	fmt.Print(plain.Text(text))
}

// redraw rewrites the terminal's last line on stderr; "" takes it away.
func redraw(text string) {
	fmt.Fprintf(os.Stderr, "\r%s\x1b[K", plain.Line(text))
}
