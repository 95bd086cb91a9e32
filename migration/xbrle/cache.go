package xbrle

import (
	"fmt"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ways    = 2
	setSize = int(unsafe.Sizeof(set{}))
	busy    = 1 // in a tag: a goroutine works on this way
	// staleRounds is for how many rounds a page keeps its place in a cache that
	// follows the hot set, and after how many its heat counts half.
	staleRounds = 8
)

// set is two ways that a page can be in. A way belongs to whoever has set the
// busy bit of its tag, by compare-and-swap; whoever fails goes without, so
// nobody ever waits.
type set struct {
	tag  [ways]atomic.Uint64 // (gfn+1)<<1 | busy; 0: empty
	used [ways]atomic.Uint32 // the round in which it was kept or made a delta
	crc  [ways]uint32        // CRC-32C of the page, 0: not computed; the owner's
}

// cache holds pages as they were last sent, with the sets behind them in one
// mapping outside the Go heap.
type cache struct {
	mem  []byte
	sets []set
}

// newCache maps a cache of at most size bytes, sets included; size is at least
// minCache. Memory is used when a page is first kept. Huge pages make that
// cheap; without them a page that is given back is really free.
func newCache(size int, huge bool) (*cache, error) {
	n := size / (ways*pageSize + setSize)
	length := n*(ways*pageSize+setSize) + pageSize - 1
	length -= length % pageSize
	mem, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map %d bytes for the delta cache: %w; make cache= smaller", length, err)
	}
	advice := unix.MADV_NOHUGEPAGE
	if huge {
		advice = unix.MADV_HUGEPAGE
	}
	// A kernel without huge pages refuses; then there is nothing to choose.
	_ = unix.Madvise(mem, advice)
	// The mapping is zero and page-aligned, pages come first: sets are aligned.
	sets := unsafe.Slice((*set)(unsafe.Pointer(&mem[n*ways*pageSize])), n)
	return &cache{mem: mem, sets: sets}, nil
}

// place is a way that the caller owns until it calls release.
type place struct {
	set   *set
	way   int
	page  *[pageSize]byte
	owner uint64 // the tag to release
}

func tagOf(gfn uint64) uint64 { return (gfn + 1) << 1 }

// index is a modulo, not a hash: a working set in one piece that fits has no
// conflicts.
func (c *cache) index(gfn uint64) int { return int(gfn % uint64(len(c.sets))) }

func (c *cache) place(i, way int, owner uint64) place {
	at := (i*ways + way) * pageSize
	return place{set: &c.sets[i], way: way, page: (*[pageSize]byte)(c.mem[at : at+pageSize]), owner: owner}
}

// find takes the way that holds page gfn.
func (c *cache) find(gfn uint64) (place, bool) {
	i, tag := c.index(gfn), tagOf(gfn)
	s := &c.sets[i]
	for way := range ways {
		if s.tag[way].Load() == tag && s.tag[way].CompareAndSwap(tag, tag|busy) {
			return c.place(i, way, tag), true
		}
	}
	return place{}, false
}

// admit takes a way for page gfn, which is in none: an empty one, or that of
// the colder page if gfn is hotter. evicted tells which it was.
func (c *cache) admit(gfn uint64, hot hotness, h *heat) (p place, evicted, ok bool) {
	i, tag := c.index(gfn), tagOf(gfn)
	s := &c.sets[i]
	victim, victimTag := -1, uint64(0)
	var coldest hotness
	for way := range ways {
		t := s.tag[way].Load()
		if t == 0 && s.tag[way].CompareAndSwap(0, tag|busy) {
			return c.place(i, way, tag), false, true
		}
		if t == 0 || t&busy != 0 {
			continue
		}
		if its := h.of(t>>1 - 1); victim < 0 || coldest.above(its) {
			victim, victimTag, coldest = way, t, its
		}
	}
	if victim < 0 || !hot.above(coldest) || !s.tag[victim].CompareAndSwap(victimTag, tag|busy) {
		return place{}, false, false
	}
	return c.place(i, victim, tag), true, true
}

// release ends the ownership; round is that of the last use.
func (p place) release(crc, round uint32) {
	p.set.crc[p.way] = crc
	if p.set.used[p.way].Load() != round {
		p.set.used[p.way].Store(round)
	}
	p.set.tag[p.way].Store(p.owner)
}

// forget empties the way that holds page gfn, if there is one.
func (c *cache) forget(gfn uint64) bool {
	s, tag := &c.sets[c.index(gfn)], tagOf(gfn)
	for way := range ways {
		if s.tag[way].Load() == tag && s.tag[way].CompareAndSwap(tag, 0) {
			return true
		}
	}
	return false
}

// trim empties the ways whose hit rate over the last staleRounds rounds is 0,
// gives their memory back, and tells how many they were.
func (c *cache) trim(round uint32) (dropped uint64) {
	from, to := 0, 0 // bytes to give back, joined while they touch
	flush := func() {
		if to > from {
			// Owned and read by nobody: on failure they merely stay resident.
			_ = unix.Madvise(c.mem[from:to], unix.MADV_DONTNEED)
			for at := from / pageSize; at < to/pageSize; at++ {
				c.sets[at/ways].tag[at%ways].Store(0)
			}
		}
	}
	for i := range c.sets {
		s := &c.sets[i]
		for way := range ways {
			t := s.tag[way].Load()
			if t == 0 || t&busy != 0 || round-s.used[way].Load() < staleRounds || !s.tag[way].CompareAndSwap(t, t|busy) {
				continue
			}
			dropped++
			if at := (i*ways + way) * pageSize; at == to && to > from {
				to += pageSize
			} else {
				flush()
				from, to = at, at+pageSize
			}
		}
	}
	flush()
	return dropped
}
