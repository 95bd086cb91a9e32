package balloon

import (
	"encoding/binary"
	"slices"

	"godwit/kvm/guestmem"
	"godwit/virtio/queue"
)

// maxListed is how many pages one chain may name: 64 MiB of them. Linux names 256,
// other drivers up to 1024. What is beyond is not looked at.
const maxListed = 16384

// pageList is room for the pages of one chain. It grows once.
type pageList struct {
	pfns    []uint32
	raw     [1024]byte
	extents []guestmem.Extent
}

// read copies the page numbers of a chain, little-endian 32 bits each: virtio 1.2,
// 5.5.6. It reports how many bytes were too many or no whole number.
func (l *pageList) read(c *queue.Chain) (rest int64) {
	l.pfns = l.pfns[:0]
	left := queue.Len(c.Readable())
	for left >= 4 && len(l.pfns) < maxListed {
		p := l.raw[:min(left&^3, int64(len(l.raw)), int64(maxListed-len(l.pfns))*4)]
		c.Take(p)
		left -= int64(len(p))
		for ; len(p) > 0; p = p[4:] {
			l.pfns = append(l.pfns, binary.LittleEndian.Uint32(p))
		}
	}
	return left
}

// runs sorts the pages and joins them into extents that are RAM. It reports how
// many pages they hold, each counted once, and how many are not RAM.
func (l *pageList) runs(ram []guestmem.Extent) (pages, stray uint64) {
	slices.Sort(l.pfns)
	l.extents = l.extents[:0]
	region := 0
	for i, pfn := range l.pfns {
		if i > 0 && pfn == l.pfns[i-1] {
			continue
		}
		gpa := uint64(pfn) * PageSize
		for region < len(ram) && gpa >= ram[region].GPA+ram[region].Len {
			region++
		}
		if region == len(ram) || gpa < ram[region].GPA {
			stray++
			continue
		}
		pages++
		if k := len(l.extents) - 1; k >= 0 && l.extents[k].GPA+l.extents[k].Len == gpa && gpa != ram[region].GPA {
			l.extents[k].Len += PageSize
		} else {
			l.extents = append(l.extents, guestmem.Extent{GPA: gpa, Len: PageSize})
		}
	}
	return pages, stray
}

// whole collects the whole pages of the buffers of a chain: what is told as free
// is free to its last byte, and no further. The queue has checked that they are
// RAM.
func (l *pageList) whole(c *queue.Chain) (bytes uint64) {
	l.extents = l.extents[:0]
	for _, t := range c.Targets() {
		start := (t.GPA + PageSize - 1) &^ (PageSize - 1)
		end := (t.GPA + t.Len) &^ (PageSize - 1)
		if start < end {
			l.extents = append(l.extents, guestmem.Extent{GPA: start, Len: end - start})
			bytes += end - start
		}
	}
	return bytes
}

// inflate takes pages into the balloon: virtio 1.2, 5.5.6.
func (w *worker) inflate(c *queue.Chain) {
	s := &w.dev.stats
	if rest := w.list.read(c); rest > 0 {
		s.guestErrors.Add(1)
	}
	pages, stray := w.list.runs(w.dev.ram)
	s.strayPages.Add(stray)
	s.inflatedPages.Add(pages)
	w.discard(pages * PageSize)
}

// deflate takes pages out of it: virtio 1.2, 5.5.6. The host gives them memory
// when the guest touches them.
func (w *worker) deflate(c *queue.Chain) {
	s := &w.dev.stats
	if rest := w.list.read(c); rest > 0 {
		s.guestErrors.Add(1)
	}
	pages, stray := w.list.runs(w.dev.ram)
	s.strayPages.Add(stray)
	s.deflatedPages.Add(pages)
}

// report takes free pages: virtio 1.2, 5.5.6.7. What the driver says is free until
// it gets the chain back. It may have them hold a pattern, which must still be
// there afterwards; pages that are discarded come back as zeros, so with any
// other pattern they stay (as in QEMU, virtio_balloon_handle_report).
func (w *worker) report(c *queue.Chain) {
	bytes := w.list.whole(c)
	w.dev.stats.reportedBytes.Add(bytes)
	if w.poisoned() {
		w.dev.stats.poisonedBytes.Add(bytes)
		return
	}
	w.discard(bytes)
}

// poisoned says whether free pages hold something else than zeros, which the guest
// relies on.
func (w *worker) poisoned() bool { return w.keepPoison && w.dev.poison.Load() != 0 }

// discard gives the list back to the host. A failure is the host's: the guest is
// told nothing, as it has nothing to do about it.
func (w *worker) discard(bytes uint64) {
	if len(w.list.extents) == 0 {
		return
	}
	if err := w.dev.cfg.Memory.Discard(w.list.extents); err != nil {
		w.dev.hostError(err)
		return
	}
	w.dev.stats.discardedBytes.Add(bytes)
}
