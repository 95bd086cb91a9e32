// Package zero finds pages that hold nothing but zeros. It is the first look
// that a migration takes at touched guest memory, so it has to run as fast as
// memory can be read.
//
//	mem     | page 0 | page 1 | page 2 | page 3 | rest
//	         zeros    data     zeros    zeros    zeros
//	bitmap    1        0        1        1        1     bit i of word i/64
//
// On amd64 with AVX2 the work is done in assembly, elsewhere by a portable twin
// around bytes.Equal; the choice is made once, when the program starts. Both
// give the same answers. README.md has the figures of both, with the command
// that repeats them, and says what unrolling is there for, and why nothing is
// prefetched.
//
// # Memory that changes meanwhile
//
// A guest writes to its pages while they are scanned. Every byte is then read
// at some moment of the call, and a page is called zero when all bytes were
// zero as they were read. A caller that clears the dirty log first and scans
// second loses nothing: what is written after the read is dirty again.
//
// Nothing outside the given slice is read.
package zero
