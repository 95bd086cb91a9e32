//go:build !amd64

package zero

func hasVector() bool { return false }

// scanVector is never called here: hasVector says so.
func scanVector(*byte, uint64) uint64 { panic("zero: no vector scan on this architecture") }
