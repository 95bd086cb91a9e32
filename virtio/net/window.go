package net

import "godwit/virtio/queue"

// window is the chains that were popped and are not used yet, oldest first.
type window struct {
	chains []*queue.Chain
	size   []int64 // writable bytes, by chain
	bytes  int64   // their sum
}

func (w *window) push(c *queue.Chain, n int64) {
	w.chains = append(w.chains, c)
	w.size = append(w.size, n)
	w.bytes += n
}

// drop forgets the n oldest chains, which are answered.
func (w *window) drop(n int) {
	for _, size := range w.size[:n] {
		w.bytes -= size
	}
	// Moved down, not cut off at the front, so that the arrays are used again.
	left := copy(w.chains, w.chains[n:])
	clear(w.chains[left:])
	w.chains = w.chains[:left]
	w.size = w.size[:copy(w.size, w.size[n:])]
}

// sizes is the writable bytes of chain i.
func (w *window) sizes(i int) int64 { return w.size[i] }

// putBack gives all chains back to the queue, the latest first.
func (w *window) putBack(q *queue.Queue) {
	for i := len(w.chains) - 1; i >= 0; i-- {
		q.PutBack(w.chains[i])
		w.chains[i] = nil
	}
	w.chains, w.size, w.bytes = w.chains[:0], w.size[:0], 0
}

// scatter copies p to the window from byte off on. It fits.
func (w *window) scatter(off int64, p []byte) {
	for _, c := range w.chains {
		for _, b := range c.Writable() {
			if off >= int64(len(b)) {
				off -= int64(len(b))
				continue
			}
			p = p[copy(b[off:], p):]
			if off = 0; len(p) == 0 {
				return
			}
		}
	}
}

// gather copies the front of the window to p, and returns how much there was.
func (w *window) gather(p []byte) (n int) {
	for _, c := range w.chains {
		for _, b := range c.Writable() {
			if n += copy(p[n:], b); n == len(p) {
				return n
			}
		}
	}
	return n
}

// markAll says that the first n bytes were written, though no answer will tell:
// a page is dirty whoever looks at it.
func (w *window) markAll(n int) {
	left := int64(n)
	for i, c := range w.chains {
		if left <= 0 {
			return
		}
		c.MarkAll()
		left -= w.size[i]
	}
}
