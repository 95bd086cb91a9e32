package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

var (
	// ErrDirty says that the image's refcounts may be wrong.
	ErrDirty = errors.New("image is marked dirty: whoever wrote it last did not close it")
	// ErrCorrupt says that the image is known, or was found, to be corrupt.
	ErrCorrupt = errors.New("image is corrupt")
)

// DefaultCache is the size of the metadata caches in bytes. With clusters of
// 64 KiB it maps 96 GiB of disk at once.
const DefaultCache = 16 << 20

// Backing is what shows through where an image has nothing. Offsets and lengths
// are multiples of 512 and stay below Size. The methods may be called from
// several goroutines at once.
type Backing interface {
	Preadv(bufs [][]byte, off int64) (int, error)
	Size() int64
}

// Options say how an image is used.
type Options struct {
	ReadOnly bool
	// WriteThrough makes a write stable, metadata too, before it returns.
	WriteThrough bool
	// Snapshot names an internal snapshot, by its id or its name, to read instead of
	// the disk. The image is opened read-only then.
	Snapshot string
	// Backing is the backing file, opened; nil for an image without one.
	Backing Backing
	// CacheBytes bounds the metadata caches; 0 is DefaultCache. At least four
	// clusters are kept. The L1 table with its index (Header.TableBytes, at most
	// 64 MiB) and, of an image that is written, the refcount table (8 MiB) come on
	// top, and decompressed clusters (4 MiB).
	CacheBytes int
	// TableBytes is the most that Header.TableBytes may be; 0 sets no limit.
	TableBytes int64
}

// Image is an open image.
//
//	request ── lookup ──> one read or write for each contiguous piece    no lock but inflight, shared
//	             │
//	             └ nothing to write in place: busy ── allocate ── write data ── set entries
//	                                                   (mu)                       (mu)
//
// Nothing that changes the meaning of the file is written before Flush, but
// clusters that nothing refers to yet. What Flush will write has room: see room.
type Image struct {
	host Host
	o    Options
	size int64 // the same for ever

	// inflight is shared by every request. Whoever takes it exclusively knows
	// that no request holds an old idea of where a cluster is.
	inflight sync.RWMutex

	// Replaced by load alone, with inflight held exclusively.
	g        geometry
	writable bool
	backed   bool     // unallocated clusters are the backing file's
	l1       []uint64 // entries in the host's byte order, read and set atomically
	// tables has the L2 table of each L1 entry if it is cached.
	tables []atomic.Pointer[table]

	// dirty says that something waits to be written that a flush of the guest
	// promises: tables, or what they depend on.
	dirty atomic.Bool
	// h is replaced by load, and with mu held where the refcount table moves.
	h atomic.Pointer[Header]
	// reclaimAt is how many clusters may wait to be free.
	reclaimAt atomic.Int64
	// end is where the file ends, rounded up, with all that is allocated.
	end atomic.Int64

	// mu orders everything below and every change of an entry.
	mu      sync.Mutex
	changed *sync.Cond // busy has become less
	busy    []span     // guest clusters whose allocation is under way
	l2      cache[*table]
	l1Dirty dirtyRange
	refs    refcounts
	room    room
	frees   []run // no longer referred to, but not flushed
	flushed []run // flushed, but a request may still use them
	stuck   []run // no request uses them, but the host could not read their counts
	freed   int64 // clusters in frees and flushed; read atomically without mu
	scratch []byte

	plain   plainCache
	buffers sync.Pool // *[]byte of a cluster
	codecs  decoders
}

// span is a range of clusters, both ends within.
type span struct{ first, last uint64 }

// run is a range of clusters of the file.
type run struct{ first, count int64 }

// Open opens the image in h. It writes nothing unless bits of the header must
// be cleared before the image may change. The caller closes h, after Flush.
func Open(h Host, o Options) (*Image, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCache
	}
	m := &Image{host: h, o: o}
	m.changed = sync.NewCond(&m.mu)
	if err := m.load(!o.ReadOnly); err != nil {
		return m, err
	}
	return m, m.checkEnd()
}

// OpenUntrusted opens an image that somebody else may be changing: it can be
// read, for what that is worth, and writes nothing. Load makes it usable.
func OpenUntrusted(h Host, o Options) (*Image, error) {
	if o.CacheBytes == 0 {
		o.CacheBytes = DefaultCache
	}
	m := &Image{host: h, o: o}
	m.changed = sync.NewCond(&m.mu)
	return m, m.load(false)
}

// Load forgets what was known of the image and reads it again: somebody else
// may have changed it before the caller got its lock. The sizes of the disk and of
// its clusters must still be the same.
func (m *Image) Load() error {
	m.inflight.Lock()
	defer m.inflight.Unlock()
	if err := m.load(!m.o.ReadOnly); err != nil {
		return err
	}
	return m.checkEnd()
}

// Suspend writes everything and forgets the caches, before the image is given
// into other hands. No request may be under way or follow before Load, but reads.
func (m *Image) Suspend() error {
	if err := m.Flush(); err != nil {
		return err
	}
	m.inflight.Lock()
	defer m.inflight.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	// The counts that Flush lowered last wait for no order.
	if err := m.writeBlocks(); err != nil {
		return err
	}
	m.dropCaches()
	m.writable = false
	return nil
}

// load needs inflight exclusively, or nobody who knows m.
func (m *Image) load(forWriting bool) error {
	h, err := ReadHeader(m.host)
	if err != nil {
		return err
	}
	if m.o.Snapshot != "" {
		if forWriting {
			return errors.New("a snapshot can only be read")
		}
		if h, err = atSnapshot(m.host, h, m.o.Snapshot); err != nil {
			return err
		}
	}
	first := m.h.Load() == nil
	if !first && m.size != h.DiskSize() {
		return fmt.Errorf("the disk had %d bytes when it was opened and has %d now", m.size, h.DiskSize())
	}
	if most := m.o.TableBytes; most > 0 && h.TableBytes() > most {
		return fmt.Errorf("its L1 table takes %d bytes of memory now, and %d when it was opened first; open it anew", h.TableBytes(), most)
	}
	if !first && m.g.cluster != h.ClusterSize() { // the pooled buffers are of that size
		return fmt.Errorf("the image had clusters of %d bytes when it was opened and has some of %d now", m.g.cluster, h.ClusterSize())
	}
	if err := usable(h, forWriting); err != nil {
		return err
	}
	fileSize, err := m.host.Size()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if forWriting && h.Autoclear != 0 {
		// qcow2, Header, bytes 88-95: what these bits vouch for, such as dirty
		// bitmaps, does not follow what we write.
		if err := writeAt(m.host, make([]byte, 8), 88); err != nil {
			return err
		}
		if err := m.host.Flush(); err != nil {
			return err
		}
		h.Autoclear = 0
	}
	l1, err := readWords(m.host, int64(h.L1Offset), int(h.L1Entries))
	if err != nil {
		return fmt.Errorf("read the L1 table: %w", err)
	}
	var reftable []uint64
	if forWriting {
		if reftable, err = readRefcountTable(m.host, h); err != nil {
			return err
		}
	}
	if first {
		m.size = h.DiskSize()
	}
	m.h.Store(h)
	m.g, m.l1, m.backed = newGeometry(h), l1, h.Backing != "" || m.o.Backing != nil
	m.tables = make([]atomic.Pointer[table], len(l1))
	m.end.Store((fileSize + m.g.cluster - 1) &^ (m.g.cluster - 1))
	m.reclaimAt.Store(reclaimBytes >> m.g.bits)
	m.scratch = alignedBytes(int(m.g.cluster))
	m.buffers.New = func() any { b := alignedBytes(int(m.g.cluster)); return &b }
	clusters := max(4, m.o.CacheBytes>>m.g.bits)
	m.l2.limit, m.refs.blocks.limit = clusters-clusters/4, clusters/4
	m.refs.table, m.refs.hint = reftable, 1
	m.dropCaches()
	m.writable = forWriting
	return nil
}

func usable(h *Header, forWriting bool) error {
	switch {
	case !forWriting:
		return nil
	case h.Incompatible&IncompatCorrupt != 0:
		return fmt.Errorf("%w; it can be opened read-only, to copy what is left", ErrCorrupt)
	case h.Incompatible&IncompatDirty != 0:
		return fmt.Errorf("%w; repair it first: godwit image check --repair all", ErrDirty)
	}
	return nil
}

// dropCaches needs mu, and inflight exclusively.
func (m *Image) dropCaches() {
	m.plain.reset(m.g.cluster)
	m.l2.clear()
	for i := range m.tables {
		m.tables[i].Store(nil)
	}
	m.refs.blocks.clear()
	m.refs.byIndex = make(map[uint64]*block)
	m.refs.tableDirty, m.l1Dirty = dirtyRange{}, dirtyRange{}
	m.room = room{}
	m.frees, m.flushed, m.stuck = nil, nil, nil
	atomic.StoreInt64(&m.freed, 0)
	m.dirty.Store(false)
}

// Size is the length of the disk in bytes.
func (m *Image) Size() int64 { return m.size }

// Header is what the image's header said when it was read last. The caller
// does not change it.
func (m *Image) Header() *Header { return m.h.Load() }

// guard refuses to write data over the parts of the metadata whose place is
// known without a search, as a corrupt image would have it.
func (m *Image) guard(off, n int64) error {
	c, h := m.g.cluster, m.h.Load()
	for _, p := range [...]struct {
		what   string
		off, n int64
	}{
		{"header", 0, c},
		{"L1 table", int64(h.L1Offset), int64(h.L1Entries) * entrySize},
		{"refcount table", int64(h.RefcountOffset), int64(h.RefcountClusters) * c},
		{"snapshot table", int64(h.SnapshotsOffset), int64(h.SnapshotCount) * 40},
	} {
		if off < p.off+p.n && p.off < off+n && p.n > 0 {
			return fmt.Errorf("%w: %d bytes at %d are its %s, but hold data too; copy what is left to a new image", ErrCorrupt, n, off, p.what)
		}
	}
	if off+n > m.end.Load() {
		return fmt.Errorf("%w: data at %d lies beyond the end of the file; copy what is left to a new image", ErrCorrupt, off)
	}
	return nil
}

// readWords reads n big-endian words.
func readWords(h Host, off int64, n int) ([]uint64, error) {
	b := alignedBytes((n*entrySize + sector - 1) &^ (sector - 1))
	if err := readAt(h, b, off); err != nil {
		return nil, err
	}
	words := make([]uint64, n)
	for i := range words {
		words[i] = binary.BigEndian.Uint64(b[i*entrySize:])
	}
	return words, nil
}

// alignedBytes allocates memory that O_DIRECT takes as it is.
func alignedBytes(n int) []byte {
	const align = 4096
	b := make([]byte, n+align)
	skip := -int(uintptr(unsafe.Pointer(&b[0]))) & (align - 1)
	return b[skip : skip+n : skip+n]
}
