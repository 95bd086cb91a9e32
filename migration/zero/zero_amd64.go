package zero

import "golang.org/x/sys/cpu"

// hasVector asks for AVX2 in the CPU and for its registers in the kernel.
func hasVector() bool { return cpu.X86.HasAVX2 }

// scanVector classifies pages, 1 to 64, that start at p: bit i of the result is
// set when page i is zero. It needs AVX2.
//
//go:noescape
func scanVector(p *byte, pages uint64) uint64
