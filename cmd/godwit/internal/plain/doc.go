// Package plain makes text of strangers safe to print: a peer, a guest, a saved
// file, an image or an API server chooses it, and a terminal obeys what is in it.
//
//	ESC ]0;x BEL     \x1b]0;x\a       terminal commands
//	U+202E           \u202e           marks that turn the reading order around
//	0xff             \xff             bytes that are no UTF-8
//
// Every message and table of godwit goes through it; the guest's console does
// not, which is a terminal by purpose. All of it is pure; any goroutine may call
// any function.
package plain
