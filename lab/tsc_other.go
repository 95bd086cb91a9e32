//go:build !amd64

package lab

// rdtsc gives 0: the counter belongs to x86, and so does the lab's machine.
func rdtsc() uint64 { return 0 }
