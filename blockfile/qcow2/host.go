package qcow2

// Host is the file that holds an image. All methods may be called from several
// goroutines at once. Neither bufs nor what it lists is kept.
type Host interface {
	// Preadv fills bufs from off on. What lies beyond the end of the file
	// reads as zeroes.
	Preadv(bufs [][]byte, off int64) error
	// Pwritev writes bufs from off on and makes the file longer if needed.
	Pwritev(bufs [][]byte, off int64) error
	// Flush returns once every write that completed before is stable.
	Flush() error
	// Size is the length of the file in bytes.
	Size() (int64, error)
	// Punch frees the storage of a range, which nothing refers to any more. A
	// file that cannot do so leaves the range as it is.
	Punch(off, n int64) error
}

// readAt fills p from off on.
func readAt(h Host, p []byte, off int64) error { return h.Preadv([][]byte{p}, off) }

// writeAt writes p from off on.
func writeAt(h Host, p []byte, off int64) error { return h.Pwritev([][]byte{p}, off) }
