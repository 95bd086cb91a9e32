package qcow2

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
)

// Writer makes a new image in one go: clusters of the disk in ascending order,
// each appended to the file, and the header last, so that what is cut short is
// no image. It is for one goroutine.
//
//	header | L1 table | clusters, with L2 tables and refcount blocks between | refcount table
//
// Compressed clusters are packed without gaps; one may lie in two clusters of
// the file, and many in one, whose refcount is their number.
type Writer struct {
	f    Host
	h    Header
	l1   []byte
	l2   []byte
	l2At int64 // index of l2 in the L1 table, -1 for none
	last int64 // disk cluster written last

	next    int64            // next free cluster of the file
	written int64            // how long the file is
	blocks  map[int64][]byte // refcount blocks still changing
	table   []uint64         // offsets of those that are written

	packed      int64 // where the next compressed cluster may begin
	packedStart int64 // of pending in the file
	pending     []byte
}

// pendingBytes is how much compressed data waits to be written at once.
const pendingBytes = 1 << 20

// NewWriter begins an image in an empty file.
func NewWriter(f Host, o CreateOptions) (*Writer, error) {
	h, err := o.header()
	if err != nil {
		return nil, err
	}
	h.L1Entries = uint32(max(h.L1Needed(), 1))
	w := &Writer{f: f, h: *h, l2At: -1, last: -1, blocks: map[int64][]byte{}}
	if _, err := w.h.Encode(); err != nil {
		return nil, err
	}
	w.l1 = make([]byte, w.h.L1Entries*8)
	if err := w.take(1); err != nil { // the header's
		return nil, err
	}
	w.h.L1Offset = uint64(w.next) << w.h.ClusterBits
	return w, w.take(w.clusters(int64(len(w.l1))))
}

// clusters is how many n bytes take.
func (w *Writer) clusters(n int64) int64 { return (n + w.h.ClusterSize() - 1) >> w.h.ClusterBits }

func (w *Writer) perBlock() int64 { return w.h.ClusterSize() * 8 / int64(w.h.RefcountBits()) }

// take gives the next n clusters of the file a refcount of 1.
func (w *Writer) take(n int64) error {
	if (w.next+n)<<w.h.ClusterBits > maxOffset {
		return fmt.Errorf("the image does not fit a file of %d bytes", int64(maxOffset))
	}
	for range n {
		w.refer(w.next)
		w.next++
	}
	return nil
}

// refer counts a reference to a cluster of the file.
func (w *Writer) refer(c int64) {
	i := c / w.perBlock()
	b := w.blocks[i]
	if b == nil {
		b = make([]byte, w.h.ClusterSize())
		w.blocks[i] = b
	}
	at := uint64(c % w.perBlock())
	setRefcount(b, w.h.RefcountOrder, at, refcount(b, w.h.RefcountOrder, at)+1)
}

func (w *Writer) refcount(c int64) uint64 {
	b := w.blocks[c/w.perBlock()]
	if b == nil {
		return 0
	}
	return refcount(b, w.h.RefcountOrder, uint64(c%w.perBlock()))
}

// settle writes the refcount blocks that can change no more.
func (w *Writer) settle() error {
	low := w.next
	if w.packed&(w.h.ClusterSize()-1) != 0 {
		low = min(low, w.packed>>w.h.ClusterBits)
	}
	for int64(len(w.table)) < low/w.perBlock() {
		if err := w.writeBlock(int64(len(w.table))); err != nil {
			return err
		}
	}
	return nil
}

// writeBlock writes refcount block i to a cluster that was not counted yet and
// lies in a later block.
func (w *Writer) writeBlock(i int64) error {
	at := w.next
	if err := w.take(1); err != nil {
		return err
	}
	w.table = append(w.table, uint64(at)<<w.h.ClusterBits)
	err := w.put(w.blocks[i], at<<w.h.ClusterBits)
	delete(w.blocks, i)
	return err
}

func (w *Writer) put(p []byte, off int64) error {
	w.written = max(w.written, off+int64(len(p)))
	return writeAt(w.f, p, off)
}

// advance begins disk cluster c, which must lie behind the last one.
func (w *Writer) advance(c int64) error {
	if c <= w.last || uint64(c)<<w.h.ClusterBits >= w.h.Size {
		return fmt.Errorf("cluster %d after %d of a disk of %d bytes", c, w.last, w.h.Size)
	}
	w.last = c
	bits := w.h.ClusterBits - 3
	if c>>bits == w.l2At {
		return nil
	}
	if err := w.endL2(); err != nil {
		return err
	}
	w.l2At = c >> bits
	if w.l2 == nil {
		w.l2 = make([]byte, w.h.ClusterSize())
	}
	clear(w.l2)
	return w.settle()
}

// endL2 writes the L2 table that is complete.
func (w *Writer) endL2() error {
	if w.l2At < 0 {
		return nil
	}
	at := w.next << w.h.ClusterBits
	if err := w.take(1); err != nil {
		return err
	}
	binary.BigEndian.PutUint64(w.l1[w.l2At*8:], uint64(at)|flagCopied)
	w.l2At = -1
	return w.put(w.l2, at)
}

func (w *Writer) enter(c int64, e uint64) {
	binary.BigEndian.PutUint64(w.l2[c&(1<<(w.h.ClusterBits-3)-1)*8:], e)
}

// Write adds disk clusters from c on; only the last one may be cut short, at
// the end of the disk.
func (w *Writer) Write(c int64, data []byte) error {
	for len(data) > 0 {
		n, err := w.run(c, int64(len(data)))
		if err != nil {
			return err
		}
		at := w.next - w.clusters(n)
		if err := w.put(data[:n], at<<w.h.ClusterBits); err != nil {
			return err
		}
		c += w.clusters(n)
		data = data[n:]
	}
	return nil
}

// Reserve gives disk cluster c a place in the file that nothing is written to.
func (w *Writer) Reserve(c int64) error {
	_, err := w.run(c, 1)
	return err
}

// run places as much of n bytes from disk cluster c on as one L2 table covers
// and returns how much that is.
func (w *Writer) run(c, n int64) (int64, error) {
	if err := w.advance(c); err != nil {
		return 0, err
	}
	left := int64(1)<<(w.h.ClusterBits-3) - c&(1<<(w.h.ClusterBits-3)-1)
	n = min(n, left<<w.h.ClusterBits)
	for i := range w.clusters(n) {
		if i > 0 {
			if err := w.advance(c + i); err != nil {
				return 0, err
			}
		}
		w.enter(c+i, uint64(w.next)<<w.h.ClusterBits|flagCopied)
		if err := w.take(1); err != nil {
			return 0, err
		}
	}
	return n, nil
}

// Zero makes disk cluster c read as zeroes, whatever the backing file holds.
func (w *Writer) Zero(c int64) error {
	switch {
	case w.h.Backing == "":
		return nil
	case w.h.Version < 3: // it has no zero clusters
		return w.Write(c, make([]byte, w.h.ClusterSize()))
	}
	if err := w.advance(c); err != nil {
		return err
	}
	w.enter(c, flagZero)
	return nil
}

// WriteCompressed adds disk cluster c by its compressed data, which must be
// shorter than a cluster.
func (w *Writer) WriteCompressed(c int64, data []byte) error {
	n := int64(len(data))
	if n == 0 || n >= w.h.ClusterSize() {
		return fmt.Errorf("compressed cluster of %d bytes", n)
	}
	if err := w.advance(c); err != nil {
		return err
	}
	at, err := w.pack(n)
	if err != nil {
		return err
	}
	if at != w.packedStart+int64(len(w.pending)) || len(w.pending) >= pendingBytes {
		if err := w.flushPacked(); err != nil {
			return err
		}
		w.packedStart = at
	}
	w.pending = append(w.pending, data...)
	w.enter(c, compressedEntry(uint64(at), uint64(n), w.h.ClusterBits))
	return nil
}

// compressedEntry is the inverse of compressedExtent.
func compressedEntry(off, n uint64, clusterBits uint32) uint64 {
	more := (off+n-1)/sector - off/sector
	return flagCompressed | more<<(62-(clusterBits-8)) | off
}

// pack finds a place for n bytes of compressed data and counts the references.
func (w *Writer) pack(n int64) (int64, error) {
	size := w.h.ClusterSize()
	c := w.packed >> w.h.ClusterBits // the cluster begun, if packed lies in it
	rest := -w.packed & (size - 1)
	fits := rest >= n || rest > 0 && c+1 == w.next
	if rest == 0 || !fits || w.refcount(c) >= maxRefcount(w.h.RefcountOrder) {
		w.packed = w.next << w.h.ClusterBits
		rest = 0
	} else {
		w.refer(c)
	}
	at := w.packed
	if n > rest {
		if err := w.take(1); err != nil {
			return 0, err
		}
	}
	w.packed += n
	return at, nil
}

func (w *Writer) flushPacked() error {
	err := w.put(w.pending, w.packedStart)
	w.pending = w.pending[:0]
	return err
}

// Close completes the image and makes it stable. The file stays open.
func (w *Writer) Close() error {
	if err := w.endL2(); err != nil {
		return err
	}
	if err := w.flushPacked(); err != nil {
		return err
	}
	w.packed = 0
	if err := w.put(w.l1, int64(w.h.L1Offset)); err != nil {
		return err
	}
	if err := w.writeTable(); err != nil {
		return err
	}
	// What was reserved last may lie behind all that was written.
	if end := w.next << w.h.ClusterBits; w.written < end {
		if err := w.put(make([]byte, sector), end-sector); err != nil {
			return err
		}
	}
	if err := w.f.Flush(); err != nil {
		return err
	}
	header, err := w.h.Encode()
	if err != nil {
		return err
	}
	if err := w.put(header, 0); err != nil {
		return err
	}
	return w.f.Flush()
}

// writeTable writes the refcount table and the blocks that are left, which
// count themselves and the table.
func (w *Writer) writeTable() error {
	size := int64(1)
	for {
		// The number of blocks, if the table takes size clusters.
		n := int64(len(w.table)) + 1
		for n*w.perBlock() < w.next+size+n-int64(len(w.table)) {
			n++
		}
		if need := w.clusters(n * 8); need > size {
			size = need
			continue
		}
		break
	}
	if size<<w.h.ClusterBits > max(maxTableBytes, w.h.ClusterSize()) {
		return fmt.Errorf("the image needs a refcount table of %d bytes, more than %d; use larger clusters or smaller refcounts", size<<w.h.ClusterBits, maxTableBytes)
	}
	at := w.next
	if err := w.take(size); err != nil {
		return err
	}
	// Places first: each block counts itself, and may need another one.
	place := map[int64]int64{}
	for i := int64(len(w.table)); w.blocks[i] != nil; i++ {
		place[i] = w.next
		if err := w.take(1); err != nil {
			return err
		}
	}
	for _, i := range slices.Sorted(maps.Keys(w.blocks)) {
		w.table = append(w.table, uint64(place[i])<<w.h.ClusterBits)
		if err := w.put(w.blocks[i], place[i]<<w.h.ClusterBits); err != nil {
			return err
		}
	}
	table := make([]byte, size<<w.h.ClusterBits)
	for i, off := range w.table {
		binary.BigEndian.PutUint64(table[i*8:], off)
	}
	w.h.RefcountOffset, w.h.RefcountClusters = uint64(at)<<w.h.ClusterBits, uint32(size)
	return w.put(table, at<<w.h.ClusterBits)
}

// Clusters is the number of clusters of the disk.
func (w *Writer) Clusters() int64 {
	return int64(w.h.Size+uint64(w.h.ClusterSize())-1) >> w.h.ClusterBits
}

// ClusterSize is the unit of allocation in bytes.
func (w *Writer) ClusterSize() int64 { return w.h.ClusterSize() }
