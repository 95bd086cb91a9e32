// Package readloop is the yardstick of the zero scan: it reads memory with AVX2
// as fast as it comes, and decides nothing. Only benchmarks use it.
package readloop
