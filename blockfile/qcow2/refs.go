package qcow2

// maxCheckClusters bounds the memory of a check: 4 bytes and a bit for each
// cluster of the file. It is 16 TiB of 64 KiB clusters.
const maxCheckClusters = 1 << 28

// use is what a cluster of the file is used as.
type use uint32

const (
	useNone  use = iota
	useData      // may be shared: by snapshots, by compressed clusters
	useL2        // may be shared by snapshots
	useAlone     // every other table: one owner
)

// fault is what is wrong with a reference.
type fault uint8

const (
	faultNone fault = iota
	faultUnaligned
	faultOutside
	faultOverlap
	faultReserved
	faultZeroV2
)

func (f fault) String() string {
	return [...]string{"fine", "is not at a cluster of its own", "lies outside the file", "overlaps other data or tables",
		"has reserved bits set", "is a zero cluster, which version 2 does not have"}[f]
}

// Bits 0-29 of a count are references, 30 and 31 the use.
const maxRefs = 1<<30 - 1

// references counts who refers to each cluster of a file.
type references struct {
	bits   uint32 // of a cluster
	size   int64  // of the file
	counts []uint32
}

func newReferences(size int64, bits uint32) (*references, error) {
	n := size >> bits
	if n<<bits != size {
		n++
	}
	if n > maxCheckClusters {
		return nil, unsupported("checking a file of %d clusters; %d at most", n, maxCheckClusters)
	}
	return &references{bits: bits, size: size, counts: make([]uint32, n)}, nil
}

// aligned counts a reference to n bytes that must begin at a cluster.
func (r *references) aligned(off, n uint64, u use, times uint64) fault {
	if off&(1<<r.bits-1) != 0 || off == 0 {
		return faultUnaligned
	}
	return r.add(off, n, u, times)
}

// add counts times references to each cluster of n bytes, all of them or none.
// The last cluster of a file may be cut short, as QEMU allows.
func (r *references) add(off, n uint64, u use, times uint64) fault {
	if n == 0 {
		return faultNone
	}
	last := off + n - 1
	if last < off || last>>r.bits >= uint64(len(r.counts)) {
		return faultOutside
	}
	for c := off >> r.bits; c <= last>>r.bits; c++ {
		if was := r.use(int64(c)); was != useNone && (was != u || u == useAlone) {
			return faultOverlap
		}
	}
	for c := off >> r.bits; c <= last>>r.bits; c++ {
		r.counts[c] = uint32(u)<<30 | uint32(min(r.count(int64(c))+times, maxRefs))
	}
	return faultNone
}

func (r *references) use(c int64) use      { return use(r.counts[c] >> 30) }
func (r *references) count(c int64) uint64 { return uint64(r.counts[c] & maxRefs) }

// at is the count of the cluster at an offset that was counted before.
func (r *references) at(off uint64) uint64 {
	if c := off >> r.bits; c < uint64(len(r.counts)) {
		return r.count(int64(c))
	}
	return 0
}

// bitset is one bit per cluster.
type bitset []uint64

func newBitset(n int) bitset      { return make(bitset, (n+63)/64) }
func (b bitset) set(i int64)      { b[i/64] |= 1 << (i % 64) }
func (b bitset) has(i int64) bool { return b[i/64]>>(i%64)&1 == 1 }
