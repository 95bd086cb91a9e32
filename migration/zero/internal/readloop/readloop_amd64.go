package readloop

import "golang.org/x/sys/cpu"

const block = 512

// Available says whether this machine has AVX2.
func Available() bool { return cpu.X86.HasAVX2 }

// Or reads mem up to the last whole 512 bytes and says whether any bit in it was
// set. It never stops early and does not prefetch. Call it only if [Available].
func Or(mem []byte) bool {
	if len(mem) < block {
		return false
	}
	return orVector(&mem[0], uint64(len(mem)/block))
}

// orVector reads blocks, at least 1, of 512 bytes.
//
//go:noescape
func orVector(p *byte, blocks uint64) bool
