//go:build !amd64

package readloop

// Available says whether this machine has AVX2.
func Available() bool { return false }

// Or needs AVX2.
func Or([]byte) bool { panic("readloop: no AVX2 on this architecture") }
