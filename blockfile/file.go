package blockfile

import (
	"errors"
	"fmt"
)

// SectorSize is the unit of every offset and length, in bytes.
const SectorSize = 512

var (
	// ErrRange says that an offset or a length is negative, not a multiple of
	// SectorSize, or beyond the end of the image.
	ErrRange = errors.New("outside the image")
	// ErrReadOnly says that a change was asked of an image opened read-only.
	ErrReadOnly = errors.New("image is read-only")
	// ErrLocked says that somebody else holds a conflicting lock.
	ErrLocked = errors.New("image is locked by somebody else")
	// ErrNotLocked says that a change was asked without holding the lock.
	ErrNotLocked = errors.New("image is not locked by us")
)

// File is an open disk image. Offsets and lengths are bytes and multiples of
// SectorSize. All methods may be called from several goroutines at once,
// except Close, which must come last. Overlapping requests under way together
// may land in any order, each sector whole, as on a real disk.
type File interface {
	// Preadv fills bufs from off on. It returns the whole length or an error;
	// on an error any part of bufs may have been written.
	Preadv(bufs [][]byte, off int64) (int, error)
	// Pwritev writes bufs from off on. It returns the whole length or an
	// error; on an error any part of the range may have changed.
	Pwritev(bufs [][]byte, off int64) (int, error)
	// Flush returns once every write that completed before is on stable storage.
	Flush() error
	// Discard says that the contents of the range no longer matter. A file
	// system that cannot free it leaves it as it was.
	Discard(off, n int64) error
	// WriteZeroes makes the range read as zeroes; with mayUnmap its storage
	// may be freed too.
	WriteZeroes(off, n int64, mayUnmap bool) error

	// Size is the length of the disk in bytes; it never changes while open.
	Size() int64
	// BlockSize is the size in bytes, a power of two from 512, of the smallest
	// write that costs no read first.
	BlockSize() int
	// ReadOnly says whether changes are refused.
	ReadOnly() bool
	// WriteCache says whether a completed write needs a Flush to be stable.
	WriteCache() bool

	// Lock takes the lock, shared for a read-only file, and checks that the
	// image is still the one that was opened. Holding it already is no error.
	Lock() error
	// Unlock gives the lock up; changes fail with ErrNotLocked from then on.
	// The caller drains and flushes first.
	Unlock() error
	// LockedElsewhere says whether another open file holds a lock, of either
	// kind, on the image.
	LockedElsewhere() (bool, error)
	// Close gives up the lock and the file. No call may be under way.
	Close() error
}

// Cache says what a completed write means.
type Cache uint8

const (
	// CacheWriteback goes through the host's page cache; Flush makes it stable.
	CacheWriteback Cache = iota
	// CacheWritethrough goes through the host's page cache and is stable when
	// the write returns.
	CacheWritethrough
	// CacheNone goes around the host's page cache (O_DIRECT). The drive's own
	// cache still needs Flush.
	CacheNone
)

// String gives the name that ParseCache reads.
func (c Cache) String() string {
	switch c {
	case CacheWriteback:
		return "writeback"
	case CacheWritethrough:
		return "writethrough"
	case CacheNone:
		return "none"
	}
	return fmt.Sprintf("Cache(%d)", uint8(c))
}

// ParseCache reads the name of a cache mode.
func ParseCache(s string) (Cache, error) {
	for _, c := range []Cache{CacheWriteback, CacheWritethrough, CacheNone} {
		if s == c.String() {
			return c, nil
		}
	}
	return 0, fmt.Errorf("cache mode %q: unknown; use none, writeback or writethrough", s)
}

// Format is the layout of an image.
type Format uint8

const (
	// FormatRaw is the bare disk, sector after sector.
	FormatRaw Format = iota
	// FormatQcow2 is QEMU's: package qcow2.
	FormatQcow2
)

// String gives the name that ParseFormat reads.
func (f Format) String() string {
	switch f {
	case FormatRaw:
		return "raw"
	case FormatQcow2:
		return "qcow2"
	}
	return fmt.Sprintf("Format(%d)", uint8(f))
}

// ParseFormat reads the name of a format.
func ParseFormat(s string) (Format, error) {
	for _, f := range []Format{FormatRaw, FormatQcow2} {
		if s == f.String() {
			return f, nil
		}
	}
	return 0, fmt.Errorf("disk format %q: unknown; use raw or qcow2", s)
}

// Opener opens the file at path as open(2) does with flags.
type Opener func(path string, flags int) (fd int, err error)

// Options say how to open an image. The zero value is a writable raw image
// behind the page cache, locked.
type Options struct {
	ReadOnly bool
	Cache    Cache
	Format   Format
	// NoLock leaves the lock to a later call of Lock: for the destination of a
	// migration, whose source still holds it.
	NoLock bool
	// Overlay takes the changes instead of the image, which is opened read-only.
	Overlay *Overlay
	// Open opens the image's file; nil means open(2), which follows links wherever
	// they lead.
	Open Opener
	// Probe says that the format is raw for want of another word: an image that
	// looks like one of another format is refused (ErrFormatUnsaid).
	Probe bool
	// Snapshot names an internal snapshot of a read-only qcow2 image, by its id or
	// its name, to read instead of the disk.
	Snapshot string
	// Backing judges each backing file; nil is BackingBelow(nil): only what lies in
	// the folder of the image that names it.
	Backing BackingRule
}

// Open opens the image at path: a regular file or a block device. The format
// is never guessed from the contents, which a guest controls.
func Open(path string, o Options) (File, error) {
	f, err := open(path, o)
	if err != nil {
		return nil, fmt.Errorf("open disk %q: %w", path, err)
	}
	return f, nil
}

func open(path string, o Options) (File, error) {
	if o.Cache > CacheNone {
		return nil, fmt.Errorf("%v is not a cache mode", o.Cache)
	}
	if o.Overlay != nil {
		return openOverlay(path, o)
	}
	return openFormat(path, o, chain{})
}

// openFormat opens an image behind those of c.
func openFormat(path string, o Options, c chain) (File, error) {
	switch o.Format {
	case FormatRaw:
		r, err := openRaw(path, o)
		if err != nil {
			return nil, err
		}
		if o.Probe {
			if err := r.mustBeRaw(); err != nil {
				return nil, errors.Join(err, r.Close())
			}
		}
		return r, nil
	case FormatQcow2:
		q, err := openQcow(path, o, c)
		if err != nil {
			return nil, err
		}
		return q, nil
	}
	return nil, fmt.Errorf("format %v is not supported", o.Format)
}
