package blockfile

import (
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"godwit/blockfile/qcow2"
)

// Trier is a File that knows beforehand which requests would wait for storage.
// It is for callers that have something better to do than to wait: they try, and
// leave to a goroutine of its own what was not done.
//
// Both methods do the whole of what Preadv or Pwritev would do and report true;
// an error comes with true, too. Or they report false, and no error, because
// that would have to wait: any part may have been done then, and the caller asks
// again by Preadv or Pwritev. They never wait for long; see raw.TryPwritev.
type Trier interface {
	TryPreadv(bufs [][]byte, off int64) (done bool, err error)
	TryPwritev(bufs [][]byte, off int64) (done bool, err error)
}

var (
	_ Trier = (*raw)(nil)
	_ Trier = (*qcow)(nil)
	_ Trier = overlaid{}

	_ qcow2.Trier = (*HostFile)(nil)
)

const (
	// slowWrite is a write into the page cache that was not just a copy: the
	// kernel made the writer wait (balance_dirty_pages), or read a page first.
	slowWrite = 2 * time.Millisecond
	// slowFor is how long writes are then left to those who may wait.
	slowFor = 100 * time.Millisecond
)

// pace remembers when a write was slow.
type pace struct {
	until atomic.Int64 // since start, in nanoseconds
}

var start = time.Now()

// slow says whether writes are left to others at now.
func (p *pace) slow(now time.Time) bool { return int64(now.Sub(start)) < p.until.Load() }

// took notes a write from begin to end.
func (p *pace) took(begin, end time.Time) {
	if end.Sub(begin) > slowWrite {
		p.until.Store(int64(end.Sub(start) + slowFor))
	}
}

// TryPreadv implements Trier: the page cache has all of it, or it is not done.
func (r *raw) TryPreadv(bufs [][]byte, off int64) (bool, error) {
	n := total(bufs)
	if err := r.check(off, n); err != nil {
		return true, err
	}
	if r.cache == CacheNone || r.noNowait.Load() {
		return n == 0, nil
	}
	return r.nowait(bufs, off, n)
}

// TryPwritev implements Trier. Most file systems cannot say whether a write into
// the page cache would wait (ext4 refuses RWF_NOWAIT there), and hardly any
// does. So it is done, and if it was slow, nothing is tried for a while: at worst
// one write in slowFor waits here.
func (r *raw) TryPwritev(bufs [][]byte, off int64) (bool, error) {
	n := total(bufs)
	if err := r.checkWrite(off, n); err != nil {
		return true, err
	}
	if n == 0 {
		return true, nil
	}
	begin := time.Now()
	if r.cache != CacheWriteback || r.pace.slow(begin) {
		return false, nil
	}
	_, err := r.Pwritev(bufs, off)
	r.pace.took(begin, time.Now())
	return true, err
}

// TryPreadv implements Trier: what the caches of the format and the page cache
// have.
func (q *qcow) TryPreadv(bufs [][]byte, off int64) (bool, error) {
	if err := checkRange(q.path, q.Size(), off, total(bufs)); err != nil {
		return true, err
	}
	return q.img.TryPreadv(bufs, off)
}

// TryPwritev implements Trier: a write into clusters that the image has.
func (q *qcow) TryPwritev(bufs [][]byte, off int64) (bool, error) {
	if err := q.checkWrite(off, total(bufs)); err != nil {
		return true, err
	}
	return q.img.TryPwritev(bufs, off)
}

// TryPreadv implements qcow2.Trier. A read across the end of the file is left
// to Preadv.
func (h *HostFile) TryPreadv(bufs [][]byte, off int64) (bool, error) {
	r := h.r
	if r.cache == CacheNone || r.noNowait.Load() {
		return false, nil
	}
	return r.nowait(bufs, off, total(bufs))
}

// TryPwritev implements qcow2.Trier.
func (h *HostFile) TryPwritev(bufs [][]byte, off int64) (bool, error) {
	begin := time.Now()
	if r := h.r; r.cache != CacheWriteback || r.pace.slow(begin) {
		return false, nil
	}
	err := h.Pwritev(bufs, off)
	h.r.pace.took(begin, time.Now())
	return true, err
}

// nowait is one preadv2 with RWF_NOWAIT. A vector that is too long for one call
// is left to Preadv, and so is whatever makes the call fail: Preadv knows the
// right words for it.
func (r *raw) nowait(bufs [][]byte, off, n int64) (bool, error) {
	if len(bufs) > iovMax {
		return false, nil
	}
	v := vectors.Get().(*[iovMax]unix.Iovec)
	used := fillVector(v, bufs, 0)
	// The offset goes in two halves, of which a 64-bit kernel wants the first.
	done, _, errno := unix.Syscall6(unix.SYS_PREADV2, uintptr(r.fd), uintptr(unsafe.Pointer(&v[0])), uintptr(used), uintptr(off), 0, unix.RWF_NOWAIT)
	clear(v[:used])
	vectors.Put(v)
	if errno == unix.EOPNOTSUPP || errno == unix.ENOSYS || errno == unix.EINVAL {
		r.noNowait.Store(true) // a file system, or a kernel, that cannot tell
	}
	return errno == 0 && int64(done) == n, nil
}
