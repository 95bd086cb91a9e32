package serial

// ring is a queue of bytes of fixed capacity.
type ring struct {
	buf  []byte
	head int // of the oldest byte
	n    int
}

func newRing(capacity int) ring { return ring{buf: make([]byte, capacity)} }

func (r *ring) len() int  { return r.n }
func (r *ring) free() int { return len(r.buf) - r.n }

// write appends what fits of p and returns how much that is.
func (r *ring) write(p []byte) int {
	p = p[:min(len(p), r.free())]
	tail := (r.head + r.n) % len(r.buf)
	k := copy(r.buf[tail:], p)
	copy(r.buf, p[k:])
	r.n += len(p)
	return len(p)
}

// put appends b; there must be room.
func (r *ring) put(b byte) {
	r.buf[(r.head+r.n)%len(r.buf)] = b
	r.n++
}

// span returns the oldest bytes that are contiguous in memory, at most max.
// They stay in the ring, and unchanged, until discard.
func (r *ring) span(max int) []byte {
	n := min(max, r.n, len(r.buf)-r.head)
	return r.buf[r.head : r.head+n]
}

// discard drops the n oldest bytes.
func (r *ring) discard(n int) {
	r.head = (r.head + n) % len(r.buf)
	r.n -= n
}

// pop removes the oldest byte; there must be one.
func (r *ring) pop() byte {
	b := r.buf[r.head]
	r.discard(1)
	return b
}

// bytes returns a copy of everything queued.
func (r *ring) bytes() []byte {
	first := r.span(r.n)
	p := append(make([]byte, 0, r.n), first...)
	return append(p, r.buf[:r.n-len(first)]...)
}

// reset empties the ring.
func (r *ring) reset() { r.head, r.n = 0, 0 }
