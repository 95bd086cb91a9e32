// Package console is the host's end of a guest's serial console.
//
//	guest output ──> Console.Write ──> stdout, file or unix socket
//	guest input  <── Attach's func <── stdin or unix socket
//
// A terminal on stdin is put into raw mode, so that keys reach the guest as
// they are; Ctrl-a is then the one key that the console keeps (Escape). The
// terminal is restored by Close, and if the process dies without it, by a
// guard: a second process that holds the terminal and waits for the end of a
// pipe.
package console
