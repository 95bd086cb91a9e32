package qcow2

import (
	"encoding/binary"
	"errors"
	"fmt"
)

var (
	// ErrFormat says that the file is no qcow2 image, or a broken one.
	ErrFormat = errors.New("not a valid qcow2 image")
	// ErrMagic is the ErrFormat of a file that does not begin as an image does.
	ErrMagic = fmt.Errorf("%w: it does not start with a qcow2 header", ErrFormat)
	// ErrUnsupported says that the image uses a part of the format that is
	// not implemented here.
	ErrUnsupported = errors.New("qcow2 feature not supported")
)

// Limits of the format, and of QEMU where the format has none.
const (
	magic          = 0x514649fb // "QFI\xfb"
	lengthV2       = 72         // qcow2, Header
	lengthV3       = 104
	minClusterBits = 9
	maxClusterBits = 21       // QEMU's limit: 2 MiB
	maxL1Bytes     = 32 << 20 // QEMU's limit
	maxTableBytes  = 8 << 20  // of the refcount table, QEMU's limit
	maxBackingName = 1023
	maxSnapshots   = 65536 // QEMU's limit
	maxOffset      = 1<<56 - 1
	sector         = 512
)

// Incompatible feature bits (qcow2, Header, bytes 72-79).
const (
	IncompatDirty       = 1 << 0
	IncompatCorrupt     = 1 << 1
	IncompatDataFile    = 1 << 2
	IncompatCompression = 1 << 3
	IncompatExtendedL2  = 1 << 4
)

// Header extensions (qcow2, Header extensions).
const (
	extEnd           = 0x00000000
	extBackingFormat = 0xe2792aca
)

// Compression is how the compressed clusters of an image are compressed.
type Compression uint8

// The compression types of qcow2, Additional fields, byte 104.
const (
	Zlib Compression = 0
	Zstd Compression = 1
)

// String gives the name that QEMU uses.
func (c Compression) String() string {
	switch c {
	case Zlib:
		return "zlib"
	case Zstd:
		return "zstd"
	}
	return fmt.Sprintf("compression type %d", uint8(c))
}

// Extension is a header extension that is kept as it was found.
type Extension struct {
	Type uint32
	Data []byte
}

// Header is what the first cluster of an image holds. Offsets are bytes in the
// file, Size is bytes of the disk.
type Header struct {
	Version     uint32
	ClusterBits uint32
	Size        uint64

	L1Entries        uint32
	L1Offset         uint64
	RefcountOffset   uint64 // of the refcount table
	RefcountClusters uint32 // of the refcount table
	RefcountOrder    uint32 // a refcount has 1 << RefcountOrder bits
	SnapshotCount    uint32
	SnapshotsOffset  uint64
	Incompatible     uint64
	Compatible       uint64
	Autoclear        uint64
	Compression      Compression
	Backing          string // name as stored, empty without a backing file
	BackingFormat    string // empty if the image does not say
	Extensions       []Extension
	additional       []byte // header fields beyond byte 104 that we do not know
}

// ClusterSize is the unit of allocation in bytes.
func (h *Header) ClusterSize() int64 { return 1 << h.ClusterBits }

// RefcountBits is the width of a reference count.
func (h *Header) RefcountBits() int { return 1 << h.RefcountOrder }

// TableBytes is how much memory an Image keeps for the L1 table, whatever is
// cached: for each entry itself, and where its L2 table is.
func (h *Header) TableBytes() int64 { return int64(h.L1Entries) * 2 * entrySize }

// DiskSize is the size of the disk in bytes: whole sectors, as QEMU has it of a
// Size that is no multiple of one.
func (h *Header) DiskSize() int64 { return int64(h.Size &^ (sector - 1)) }

// L1Needed is the number of L1 entries that a disk of Size bytes needs.
func (h *Header) L1Needed() uint64 { return l1Needed(h.Size, h.ClusterBits) }

func l1Needed(size uint64, clusterBits uint32) uint64 {
	bits := clusterBits + clusterBits - 3 // bytes that one L2 table covers
	n := size >> bits
	if size&(1<<bits-1) != 0 {
		n++
	}
	return n
}

// ReadHeader reads and judges the header of an image.
func ReadHeader(f Host) (*Header, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	first := make([]byte, min(size, 1<<minClusterBits))
	if err := readAt(f, first, 0); err != nil {
		return nil, fmt.Errorf("read the qcow2 header: %w", err)
	}
	bits, err := headerStart(first)
	if err != nil {
		return nil, err
	}
	cluster := make([]byte, min(size, 1<<bits))
	if err := readAt(f, cluster, 0); err != nil {
		return nil, fmt.Errorf("read the qcow2 header: %w", err)
	}
	return ParseHeader(cluster, size)
}

func broken(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

func unsupported(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
}

// headerStart judges what must be known to read the rest.
func headerStart(b []byte) (clusterBits uint32, err error) {
	if len(b) < 4 || binary.BigEndian.Uint32(b) != magic {
		return 0, ErrMagic
	}
	if len(b) < lengthV2 {
		return 0, broken("the header is cut off")
	}
	if v := binary.BigEndian.Uint32(b[4:]); v != 2 && v != 3 {
		return 0, unsupported("version %d; only 2 and 3 are known", v)
	}
	bits := binary.BigEndian.Uint32(b[20:])
	if bits < minClusterBits || bits > maxClusterBits {
		return 0, broken("clusters of 2^%d bytes; allowed are 2^%d to 2^%d", bits, minClusterBits, maxClusterBits)
	}
	return bits, nil
}

// ParseHeader reads a header from the first cluster of a file of fileSize
// bytes, or from what there is of it, and judges it.
func ParseHeader(b []byte, fileSize int64) (*Header, error) {
	bits, err := headerStart(b)
	if err != nil {
		return nil, err
	}
	b = b[:min(len(b), 1<<bits)]
	be := binary.BigEndian
	h := &Header{
		Version: be.Uint32(b[4:]), ClusterBits: bits, Size: be.Uint64(b[24:]),
		L1Entries: be.Uint32(b[36:]), L1Offset: be.Uint64(b[40:]),
		RefcountOffset: be.Uint64(b[48:]), RefcountClusters: be.Uint32(b[56:]), RefcountOrder: 4,
		SnapshotCount: be.Uint32(b[60:]), SnapshotsOffset: be.Uint64(b[64:]),
	}
	if m := be.Uint32(b[32:]); m != 0 {
		return nil, unsupported("encryption (method %d); decrypt it with qemu-img convert", m)
	}
	length := uint32(lengthV2)
	if h.Version >= 3 {
		if length, err = h.parseV3(b); err != nil {
			return nil, err
		}
	}
	if err := h.parseExtensions(b, length); err != nil {
		return nil, err
	}
	if err := h.parseBacking(b, length); err != nil {
		return nil, err
	}
	return h, h.validate(fileSize)
}

func (h *Header) parseV3(b []byte) (length uint32, err error) {
	if len(b) < lengthV3 {
		return 0, broken("the header is cut off")
	}
	be := binary.BigEndian
	h.Incompatible, h.Compatible, h.Autoclear = be.Uint64(b[72:]), be.Uint64(b[80:]), be.Uint64(b[88:])
	h.RefcountOrder, length = be.Uint32(b[96:]), be.Uint32(b[100:])
	if length < lengthV3 || length%8 != 0 || uint64(length) > uint64(len(b)) {
		return 0, broken("a header of %d bytes", length)
	}
	h.additional = append([]byte(nil), b[lengthV3:length]...)
	if len(h.additional) > 0 {
		h.Compression = Compression(h.additional[0])
	}
	return length, h.checkFeatures()
}

// checkFeatures refuses what would be misread.
func (h *Header) checkFeatures() error {
	switch {
	case h.Incompatible&IncompatDataFile != 0:
		return unsupported("an external data file; copy it into one file with qemu-img convert")
	case h.Incompatible&IncompatExtendedL2 != 0:
		return unsupported("extended L2 entries (subclusters); convert it with extended_l2=off")
	case h.Incompatible&^(IncompatDirty|IncompatCorrupt|IncompatCompression) != 0:
		return unsupported("incompatible feature bits %#x", h.Incompatible)
	case h.Compression > Zstd:
		return unsupported("%v", h.Compression)
	case (h.Incompatible&IncompatCompression != 0) != (h.Compression != Zlib):
		return broken("the compression bit and the compression type (%v) disagree", h.Compression)
	}
	return nil
}

// parseExtensions walks the extensions up to their end, the end of the cluster
// or the backing file's name, whichever comes first.
func (h *Header) parseExtensions(b []byte, at uint32) error {
	end := uint64(len(b))
	if name := binary.BigEndian.Uint64(b[8:]); name != 0 {
		end = min(end, name)
	}
	for pos := uint64(at); pos+8 <= end; {
		kind, n := binary.BigEndian.Uint32(b[pos:]), uint64(binary.BigEndian.Uint32(b[pos+4:]))
		if kind == extEnd {
			return nil
		}
		pos += 8
		if n > end-pos {
			return broken("header extension %#x of %d bytes does not fit the header", kind, n)
		}
		data := append([]byte(nil), b[pos:pos+n]...)
		if kind == extBackingFormat {
			h.BackingFormat = string(data)
		} else {
			h.Extensions = append(h.Extensions, Extension{kind, data})
		}
		pos += (n + 7) &^ 7
	}
	return nil
}

func (h *Header) parseBacking(b []byte, length uint32) error {
	off, n := binary.BigEndian.Uint64(b[8:]), binary.BigEndian.Uint32(b[16:])
	if off == 0 {
		h.BackingFormat = "" // qemu-img leaves the extension when it drops the name
		return nil
	}
	if n > maxBackingName || off < uint64(length) || off > uint64(len(b)) || uint64(n) > uint64(len(b))-off {
		return broken("the backing file's name, %d bytes at %d, does not lie behind the header in the first cluster", n, off)
	}
	h.Backing = string(b[off : off+uint64(n)])
	return nil
}

// validate judges the numbers against each other and the file.
func (h *Header) validate(fileSize int64) error {
	c := uint64(h.ClusterSize())
	// The last cluster of a file may be cut short.
	end := (uint64(max(fileSize, 0)) + c - 1) &^ (c - 1)
	table := func(what string, off, bytes uint64) error {
		if off%c != 0 || off == 0 || off > end || bytes > end-off {
			return broken("the %s, %d bytes at %d, does not lie in the file of %d bytes at a cluster of its own", what, bytes, off, fileSize)
		}
		return nil
	}
	switch {
	case h.Size > 1<<63-1:
		return broken("a disk of %d bytes", h.Size)
	case uint64(h.L1Entries)*8 > maxL1Bytes:
		return broken("an L1 table of %d entries", h.L1Entries)
	case h.L1Needed() > uint64(h.L1Entries):
		return broken("an L1 table of %d entries for a disk of %d bytes, which needs %d", h.L1Entries, h.Size, h.L1Needed())
	case h.RefcountOrder > 6:
		return broken("refcounts of 2^%d bits", h.RefcountOrder)
	case h.RefcountClusters == 0 || uint64(h.RefcountClusters)*c > max(maxTableBytes, c):
		return broken("a refcount table of %d clusters", h.RefcountClusters)
	case h.SnapshotCount > maxSnapshots:
		return broken("%d snapshots", h.SnapshotCount)
	}
	if h.L1Entries > 0 {
		if err := table("L1 table", h.L1Offset, uint64(h.L1Entries)*8); err != nil {
			return err
		}
	}
	if h.SnapshotCount > 0 {
		// An entry has at least 40 bytes (qcow2, Snapshots).
		if err := table("snapshot table", h.SnapshotsOffset, uint64(h.SnapshotCount)*40); err != nil {
			return err
		}
	}
	return table("refcount table", h.RefcountOffset, uint64(h.RefcountClusters)*c)
}

// Encode gives the bytes of the header with its extensions and the name of the
// backing file. They fit in the first cluster, or it fails.
func (h *Header) Encode() ([]byte, error) {
	be := binary.BigEndian
	length := uint32(lengthV2)
	additional := append([]byte(nil), h.additional...)
	if h.Version >= 3 {
		if len(additional) == 0 {
			additional = make([]byte, 8)
		}
		additional[0] = byte(h.Compression)
		length = lengthV3 + uint32(len(additional))
	}
	b := make([]byte, length)
	be.PutUint32(b, magic)
	be.PutUint32(b[4:], h.Version)
	be.PutUint32(b[20:], h.ClusterBits)
	be.PutUint64(b[24:], h.Size)
	be.PutUint32(b[36:], h.L1Entries)
	be.PutUint64(b[40:], h.L1Offset)
	be.PutUint64(b[48:], h.RefcountOffset)
	be.PutUint32(b[56:], h.RefcountClusters)
	be.PutUint32(b[60:], h.SnapshotCount)
	be.PutUint64(b[64:], h.SnapshotsOffset)
	if h.Version >= 3 {
		be.PutUint64(b[72:], h.Incompatible)
		be.PutUint64(b[80:], h.Compatible)
		be.PutUint64(b[88:], h.Autoclear)
		be.PutUint32(b[96:], h.RefcountOrder)
		be.PutUint32(b[100:], length)
		copy(b[lengthV3:], additional)
	} else if h.RefcountOrder != 4 || h.Incompatible|h.Compatible|h.Autoclear != 0 || h.Compression != Zlib {
		return nil, unsupported("version 2 has no features, only zlib, and refcounts of 16 bits")
	}
	if h.Backing != "" && h.BackingFormat != "" {
		b = appendExtension(b, Extension{extBackingFormat, []byte(h.BackingFormat)})
	}
	for _, e := range h.Extensions {
		b = appendExtension(b, e)
	}
	b = append(b, make([]byte, 8)...) // the end of the extensions
	if h.Backing != "" {
		if len(h.Backing) > maxBackingName {
			return nil, fmt.Errorf("the backing file's name has %d bytes; the format allows %d", len(h.Backing), maxBackingName)
		}
		be.PutUint64(b[8:], uint64(len(b)))
		be.PutUint32(b[16:], uint32(len(h.Backing)))
		b = append(b, h.Backing...)
	}
	if int64(len(b)) > h.ClusterSize() {
		return nil, fmt.Errorf("a header of %d bytes does not fit a cluster of %d; use larger clusters", len(b), h.ClusterSize())
	}
	return b, nil
}

func appendExtension(b []byte, e Extension) []byte {
	b = binary.BigEndian.AppendUint32(b, e.Type)
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Data)))
	b = append(b, e.Data...)
	return append(b, make([]byte, -len(e.Data)&7)...)
}
