package qcow2

// Bits of L1 and L2 entries (qcow2, Cluster mapping).
const (
	flagCopied     = 1 << 63
	flagCompressed = 1 << 62
	flagZero       = 1
	offsetMask     = 0x00ff_ffff_ffff_fe00
	entrySize      = 8
)

// Kind is what an image says of a cluster.
type Kind uint8

const (
	// Unallocated clusters are the backing file's, or zeroes without one.
	Unallocated Kind = iota
	// Zero clusters read as zeroes. They may have storage all the same.
	Zero
	// Normal clusters lie in the image as they are.
	Normal
	// Compressed clusters lie in the image, compressed.
	Compressed
)

// String gives the kind's name.
func (k Kind) String() string {
	return [...]string{"unallocated", "zero", "normal", "compressed"}[k&3]
}

// geometry is what follows from the header and is needed everywhere.
type geometry struct {
	version     uint32
	bits        uint32 // a cluster has 1 << bits bytes
	cluster     int64
	perTable    uint64 // entries of an L2 table
	order       uint32
	perBlock    uint64 // entries of a refcount block
	compression Compression
}

func newGeometry(h *Header) geometry {
	return geometry{
		version: h.Version, bits: h.ClusterBits, cluster: h.ClusterSize(), perTable: uint64(h.ClusterSize()) / entrySize,
		order: h.RefcountOrder, perBlock: uint64(h.ClusterSize()) * 8 >> h.RefcountOrder, compression: h.Compression,
	}
}

// split judges an L2 entry and gives the cluster's place in the file, 0 for
// none. A compressed cluster's place is read by compressedPlace.
func (g *geometry) split(entry uint64) (Kind, int64, error) {
	if entry&flagCompressed != 0 {
		return Compressed, 0, nil
	}
	off := int64(entry & offsetMask)
	if off&(g.cluster-1) != 0 {
		return 0, 0, broken("the L2 entry %#x does not point to the start of a cluster", entry)
	}
	switch {
	case entry&flagZero != 0 && g.version >= 3:
		return Zero, off, nil
	case off != 0:
		return Normal, off, nil
	}
	return Unallocated, 0, nil
}

// inPlace gives the place of a cluster that may be written where it is.
func (g *geometry) inPlace(entry uint64) (int64, bool) {
	kind, off, err := g.split(entry)
	return off, err == nil && kind == Normal && entry&flagCopied != 0
}

// compressedExtent reads a compressed cluster descriptor: where its data begins,
// and how many bytes there are at most (qcow2, Compressed Clusters Descriptor).
func compressedExtent(e uint64, clusterBits uint32) (off, n uint64) {
	x := 62 - (clusterBits - 8)
	off = e & (1<<x - 1)
	sectors := (e&(flagCompressed-1))>>x + 1
	return off, sectors*sector - off%sector
}

// compressedPlace is compressedExtent for an entry that is to be believed.
func (g *geometry) compressedPlace(entry uint64) (off, n int64, err error) {
	at, most := compressedExtent(entry, g.bits)
	if at < uint64(g.cluster) || at > maxOffset {
		return 0, 0, broken("a compressed cluster at %d", at)
	}
	return int64(at), int64(most), nil
}

// clusters gives the clusters of the file, from their first to their last, that
// hold what an L2 entry refers to. There are none if count is 0.
func (g *geometry) clusters(entry uint64) (first, count int64, err error) {
	kind, off, err := g.split(entry)
	if err != nil {
		return 0, 0, err
	}
	if kind == Compressed {
		off, n, err := g.compressedPlace(entry)
		if err != nil {
			return 0, 0, err
		}
		first = off >> g.bits
		return first, (off+n-1)>>g.bits - first + 1, nil
	}
	if off == 0 {
		return 0, 0, nil
	}
	return off >> g.bits, 1, nil
}
