package migration

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"runtime"
	"sync"

	"godwit/migration/wire"
)

// hashBlock is how many pages one block digest covers: 2 MiB, one huge page.
const hashBlock = 512

var (
	crcC = crc32.MakeTable(crc32.Castagnoli)
	crcI = crc32.MakeTable(crc32.IEEE)
)

// hash hashes guest memory. Only pages of which are read; all others count as
// zero, and zero pages do not count at all, so both ends agree whatever each of
// them has touched.
//
// A page is summed by two CRCs, which run at the speed of memory; SHA-256 goes
// over the sums with their addresses. This finds every accident. It is no
// signature: whoever can write guest memory could make two contents agree.
func (m *ram) hash(which Bitmap) wire.Hash { return m.hashRange(which, 0, uint64(len(which))*64) }

// hashRange is hash for the pages from to to-1.
func (m *ram) hashRange(which Bitmap, from, to uint64) wire.Hash {
	if to-from < uint64(len(which))*64 {
		some := make(Bitmap, len(which))
		forRange(from, to, func(w, mask uint64) { some[w] = which[w] & mask })
		which = some
	}
	blocks := (len(which)*64 + hashBlock - 1) / hashBlock
	sums := make([][sha256.Size]byte, blocks)
	pages := make([]uint32, blocks)
	var wg sync.WaitGroup
	workers := max(1, runtime.GOMAXPROCS(0))
	for k := range workers {
		wg.Go(func() {
			buf := make([]byte, 0, hashBlock*16)
			for b := k; b < blocks; b += workers {
				buf = m.sumBlock(buf[:0], which, uint64(b)*hashBlock)
				if pages[b] = uint32(len(buf) / 16); pages[b] > 0 {
					sums[b] = sha256.Sum256(buf)
				}
			}
		})
	}
	wg.Wait()
	var out wire.Hash
	all := sha256.New()
	for b := range sums {
		if pages[b] > 0 {
			all.Write(sums[b][:])
			out.Pages += uint64(pages[b])
		}
	}
	all.Sum(out.Sum[:0])
	return out
}

// sumBlock appends address and sums of every page of the block that is in which
// and not zero.
func (m *ram) sumBlock(buf []byte, which Bitmap, first uint64) []byte {
	for gfn := first; gfn < first+hashBlock && gfn < uint64(len(which))*64; gfn++ {
		if which[gfn/64] == 0 {
			gfn |= 63
			continue
		}
		if which[gfn/64]>>(gfn%64)&1 == 0 {
			continue
		}
		page := m.whole(gfn<<pageShift, pageSize)
		if page == nil || isZero(page) {
			continue
		}
		buf = binary.LittleEndian.AppendUint64(buf, gfn)
		buf = binary.LittleEndian.AppendUint32(buf, crc32.Checksum(page, crcC))
		buf = binary.LittleEndian.AppendUint32(buf, crc32.Checksum(page, crcI))
	}
	return buf
}
