package migration

import (
	"bytes"
	"fmt"
	"math/bits"
	"slices"
	"sync/atomic"

	"godwit/migration/wire"
	"godwit/migration/zero"
)

const (
	pageSize  = wire.PageSize
	pageShift = 12
)

// isZero says whether a page holds nothing but zeros.
func isZero(page []byte) bool { return zero.Page(page) }

// ram finds host memory by guest address. It is read-only after newRAM.
type ram struct {
	regions []Region
	pages   uint64 // of all regions
	words   int    // length of a Bitmap that covers the highest page
}

// newRAM checks what an endpoint says about its memory.
func newRAM(regions []Region) (*ram, error) {
	if len(regions) == 0 || len(regions) > wire.MaxRegions {
		return nil, fmt.Errorf("machine has %d RAM regions, must be 1 to %d", len(regions), wire.MaxRegions)
	}
	m := &ram{regions: regions}
	var end uint64
	for i, r := range regions {
		n := uint64(len(r.Bytes))
		if r.GPA%pageSize != 0 || n%pageSize != 0 || n == 0 || r.GPA < end || r.GPA+n < r.GPA {
			return nil, fmt.Errorf("RAM region %d is %#x bytes at %#x after %#x", i, n, r.GPA, end)
		}
		end = r.GPA + n
		m.pages += n / pageSize
	}
	m.words = int((end/pageSize + 63) / 64)
	return m, nil
}

// layout is the regions without their memory, for the peer.
func (m *ram) layout() []Extent {
	es := make([]Extent, len(m.regions))
	for i, r := range m.regions {
		es[i] = Extent{GPA: r.GPA, Len: uint64(len(r.Bytes))}
	}
	return es
}

// sameLayout compares with what the source announced.
func (m *ram) sameLayout(theirs []Extent) error {
	if ours := m.layout(); !slices.Equal(ours, theirs) {
		return fmt.Errorf("guest RAM is laid out as %s here and %s at the source", describe(ours), describe(theirs))
	}
	return nil
}

func describe(es []Extent) string {
	var b bytes.Buffer
	for i, e := range es {
		if i > 0 {
			b.WriteByte('+')
		}
		fmt.Fprintf(&b, "%#x@%#x", e.Len, e.GPA)
	}
	return b.String()
}

// find returns the bytes from gpa on, at most n, within one region, and that
// region's index; nil when gpa is not RAM.
func (m *ram) find(gpa, n uint64) ([]byte, int) {
	for i := range m.regions {
		r := &m.regions[i]
		if off := gpa - r.GPA; gpa >= r.GPA && off < uint64(len(r.Bytes)) {
			return r.Bytes[off : off+min(n, uint64(len(r.Bytes))-off)], i
		}
	}
	return nil, -1
}

// begins tells whether a region begins at gpa.
func (m *ram) begins(gpa uint64) bool {
	for i := range m.regions {
		if m.regions[i].GPA == gpa {
			return true
		}
	}
	return false
}

// whole returns exactly the n bytes at gpa, or nil when they are not all in one
// region.
func (m *ram) whole(gpa, n uint64) []byte {
	if p, _ := m.find(gpa, n); uint64(len(p)) == n {
		return p
	}
	return nil
}

// split cuts extents so that each piece is in one region, or says which is not
// RAM.
func (m *ram) split(es []Extent) ([]Extent, error) {
	var out []Extent
	for _, e := range es {
		for left := e; left.Len > 0; {
			p, _ := m.find(left.GPA, left.Len)
			n := uint64(len(p))
			if n == 0 {
				return nil, fmt.Errorf("%w: extent of %#x bytes at %#x is not guest RAM", wire.ErrFormat, e.Len, e.GPA)
			}
			out = append(out, Extent{GPA: left.GPA, Len: n})
			left.GPA, left.Len = left.GPA+n, left.Len-n
		}
	}
	return out, nil
}

// clip clears the bits of b that are not RAM: an endpoint's log may cover more.
func (m *ram) clip(b Bitmap) {
	var gfn uint64
	for _, r := range m.regions {
		b.clearRange(gfn, r.GPA>>pageShift)
		gfn = (r.GPA + uint64(len(r.Bytes))) >> pageShift
	}
	b.clearRange(gfn, uint64(len(b))*64)
}

// forRange calls f with each word index and mask that cover pages from to to-1.
func forRange(from, to uint64, f func(word uint64, mask uint64)) {
	for from < to {
		w := from / 64
		n := min(64-from%64, to-from)
		f(w, ^uint64(0)>>(64-n)<<(from%64))
		from += n
	}
}

func (b Bitmap) clearRange(from, to uint64) {
	forRange(from, to, func(w, mask uint64) { b[w] &^= mask })
}

func (b Bitmap) setRange(from, to uint64) {
	forRange(from, to, func(w, mask uint64) { b[w] |= mask })
}

// Count is the number of pages in b.
func (b Bitmap) Count() uint64 {
	var n int
	for _, w := range b {
		n += bits.OnesCount64(w)
	}
	return uint64(n)
}

// drain appends the pages of b to dst in ascending order and clears b.
func (b Bitmap) drain(dst []uint64) []uint64 {
	dst = b.list(dst)
	clear(b)
	return dst
}

// list appends the pages of b to dst in ascending order.
func (b Bitmap) list(dst []uint64) []uint64 {
	for i, w := range b {
		for base := uint64(i) * 64; w != 0; w &= w - 1 {
			dst = append(dst, base+uint64(bits.TrailingZeros64(w)))
		}
	}
	return dst
}

// extents lists the runs of pages of b.
func (b Bitmap) extents() []Extent {
	var es []Extent
	for i, w := range b {
		for base := uint64(i) * 64; w != 0; {
			start := bits.TrailingZeros64(w)
			n := bits.TrailingZeros64(^(w >> start))
			gpa := (base + uint64(start)) << pageShift
			if k := len(es) - 1; k >= 0 && es[k].GPA+es[k].Len == gpa {
				es[k].Len += uint64(n) << pageShift
			} else {
				es = append(es, Extent{GPA: gpa, Len: uint64(n) << pageShift})
			}
			if start+n == 64 {
				break
			}
			w &^= (1<<n - 1) << start
		}
	}
	return es
}

// addExtents sets the pages of es, which must be RAM.
func (m *ram) addExtents(b Bitmap, es []Extent) error {
	for _, e := range es {
		if e.GPA%pageSize != 0 || e.Len%pageSize != 0 || e.GPA+e.Len < e.GPA || (e.GPA+e.Len)>>pageShift > uint64(m.words)*64 {
			return fmt.Errorf("touched extent of %#x bytes at %#x is not guest RAM", e.Len, e.GPA)
		}
		b.setRange(e.GPA>>pageShift, (e.GPA+e.Len)>>pageShift)
	}
	m.clip(b)
	return nil
}

// seen is a bitmap that several streams mark at once.
type seen []atomic.Uint64

// all says whether pages from to to-1 are marked.
func (s seen) all(from, to uint64) bool {
	all := true
	forRange(from, to, func(w, mask uint64) { all = all && s[w].Load()&mask == mask })
	return all
}

// mark sets pages from to to-1 and says whether all of them were clear.
func (s seen) mark(from, to uint64) bool {
	fresh := true
	forRange(from, to, func(w, mask uint64) {
		if s[w].Or(mask)&mask != 0 {
			fresh = false
		}
	})
	return fresh
}
