package blockfile

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestOpenRefuses wants each error to say what is wrong and what to do.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	file := func(name string, size int) string {
		p := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(p, make([]byte, size), 0o600))
		return p
	}
	fifo := filepath.Join(dir, "fifo")
	require.NoError(t, unix.Mkfifo(fifo, 0o600))
	for _, c := range []struct {
		name, path string
		o          Options
		want       string
	}{
		{"missing", filepath.Join(dir, "missing"), Options{}, "no such file"},
		{"folder", dir, Options{}, "pass an image file or a block device"},
		{"folder read-only", dir, Options{ReadOnly: true}, "neither a regular file nor a block device"},
		{"fifo", fifo, Options{ReadOnly: true}, "neither a regular file nor a block device"},
		{"character device", "/dev/null", Options{}, "neither a regular file nor a block device"},
		{"empty", file("empty", 0), Options{}, "empty; create it"},
		{"odd", file("odd", 1000), Options{Cache: CacheNone}, "truncate -s 1024"},
		{"format", file("format", 512), Options{Format: 9}, "not supported"},
		{"cache", file("cache", 512), Options{Cache: 9}, "not a cache mode"},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := Open(c.path, c.o)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, `open disk "`+c.path+`"`)
		})
	}
}

// TestPartOfASector: a raw image whose size is no multiple of a sector has a whole
// last one, which the file gets when it is written.
func TestPartOfASector(t *testing.T) {
	content := random(1, 1000)
	path := image(t, content)
	whole := append(bytes.Clone(content), make([]byte, 24)...)
	read := func(f File) []byte {
		b := make([]byte, 1024)
		_, err := f.Preadv([][]byte{b[:512], b[512:]}, 0)
		require.NoError(t, err)
		return b
	}
	for _, o := range []Options{{ReadOnly: true}, {}} {
		f, err := Open(path, o)
		require.NoError(t, err)
		require.EqualValues(t, 1024, f.Size())
		require.Equal(t, whole, read(f))
		start, end, err := f.(Mapper).NextData(0)
		require.NoError(t, err)
		require.Equal(t, []int64{0, 1024}, []int64{start, end})
		require.NoError(t, f.Close())
	}
	f, err := Open(path, Options{})
	require.NoError(t, err)
	copy(whole[512:], random(2, 512))
	_, err = f.Pwritev([][]byte{whole[512:]}, 512)
	require.NoError(t, err)
	require.Equal(t, whole, read(f))
	require.NoError(t, f.Unlock())
	require.NoError(t, f.Lock(), "it is as large as it was")
	require.NoError(t, f.Close())
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.EqualValues(t, 1024, st.Size())
}

// TestHandOver is the migration of a lock, step by step.
func TestHandOver(t *testing.T) {
	path := image(t, make([]byte, 4096))
	source, err := Open(path, Options{})
	require.NoError(t, err)
	defer source.Close()

	_, err = Open(path, Options{})
	require.ErrorIs(t, err, ErrLocked)
	_, err = Open(path, Options{ReadOnly: true})
	require.ErrorIs(t, err, ErrLocked)

	destination, err := Open(path, Options{NoLock: true})
	require.NoError(t, err)
	defer destination.Close()
	requireLockedElsewhere(t, destination, true)
	requireLockedElsewhere(t, source, false)
	require.ErrorIs(t, destination.Lock(), ErrLocked)

	require.NoError(t, source.Flush())
	require.NoError(t, source.Unlock())
	requireLockedElsewhere(t, destination, false)
	require.NoError(t, destination.Lock())
	requireLockedElsewhere(t, source, true)
	require.ErrorIs(t, source.Lock(), ErrLocked, "the migration is over")

	// A failed migration goes the other way.
	require.NoError(t, destination.Unlock())
	require.NoError(t, source.Lock())
}

// TestLockSeesAnotherDisk: a size that changed between Open and Lock.
func TestLockSeesAnotherDisk(t *testing.T) {
	path := image(t, make([]byte, 4096))
	f, err := Open(path, Options{NoLock: true})
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, os.Truncate(path, 8192))
	require.ErrorContains(t, f.Lock(), "had 4096 bytes")
	other, err := Open(path, Options{})
	require.NoError(t, err, "the refused lock was given back")
	require.NoError(t, other.Close())
}

// TestCloseUnlocks although a copy of the descriptor lives on, as it does in a
// child that is forked and has not come to its exec.
func TestCloseUnlocks(t *testing.T) {
	path := image(t, make([]byte, 4096))
	r, err := openRaw(path, Options{})
	require.NoError(t, err)
	child, err := unix.FcntlInt(uintptr(r.fd), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(child)
	require.NoError(t, r.Close())
	next, err := Open(path, Options{})
	require.NoError(t, err)
	require.NoError(t, next.Close())
}

func TestReadersShare(t *testing.T) {
	path := image(t, make([]byte, 4096))
	a, err := Open(path, Options{ReadOnly: true})
	require.NoError(t, err)
	b, err := Open(path, Options{ReadOnly: true})
	require.NoError(t, err)
	_, err = Open(path, Options{})
	require.ErrorIs(t, err, ErrLocked)
	requireLockedElsewhere(t, a, true)
	require.NoError(t, b.Close())
	requireLockedElsewhere(t, a, false)
	require.NoError(t, a.Close())
	w, err := Open(path, Options{})
	require.NoError(t, err)
	require.NoError(t, w.Close())
}

func requireLockedElsewhere(t *testing.T, f File, want bool) {
	t.Helper()
	got, err := f.LockedElsewhere()
	require.NoError(t, err)
	require.Equal(t, want, got)
}

// TestTruncatedUnderUs wants an error, not a loop.
func TestTruncatedUnderUs(t *testing.T) {
	path := image(t, make([]byte, 8192))
	f, err := Open(path, Options{})
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, os.Truncate(path, 4096))
	_, err = f.Preadv([][]byte{make([]byte, 8192)}, 0)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// TestFailureAfterTheStart: what cannot be read is no end of the file. A page of
// memory behind which a mapping has no file fails that way.
func TestFailureAfterTheStart(t *testing.T) {
	const page = 4096
	mem, err := unix.MemfdCreate("page", unix.MFD_CLOEXEC)
	require.NoError(t, err)
	defer unix.Close(mem)
	require.NoError(t, unix.Ftruncate(mem, page))
	at, err := unix.MmapPtr(mem, 0, nil, 2*page, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	defer func() { require.NoError(t, unix.MunmapPtr(at, 2*page)) }()
	fd, err := unix.Open("/proc/self/mem", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(fd)
	for _, cache := range []Cache{CacheWriteback, CacheNone} {
		r := &raw{fd: fd, cache: cache}
		require.NoError(t, r.readTail(make([]byte, page), int64(uintptr(at))))
		require.ErrorIs(t, r.readTail(make([]byte, 2*page), int64(uintptr(at))), unix.EIO)
	}
}

// TestZeroFallback writes zeroes out where the file system has no shortcut.
func TestZeroFallback(t *testing.T) {
	want := random(7, testSize)
	path := image(t, want)
	f, err := openRaw(path, Options{})
	require.NoError(t, err)
	defer f.Close()
	f.noPunch.Store(true)
	f.noZeroRange.Store(true)
	require.NoError(t, f.WriteZeroes(512, 300<<10, true))
	require.NoError(t, f.Discard(testSize/2, 4096), "a discard is a hint")
	clear(want[512 : 512+300<<10])
	got, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, want, got)
}

func TestDiscardFreesStorage(t *testing.T) {
	path := image(t, random(8, testSize))
	f, err := openRaw(path, Options{})
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, f.Flush())
	require.NoError(t, f.Discard(0, testSize))
	if f.noPunch.Load() {
		t.Skip("the temporary folder's file system makes no holes")
	}
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	require.EqualValues(t, testSize, st.Size)
	require.Less(t, st.Blocks*512, int64(testSize))
}

func TestNames(t *testing.T) {
	for _, c := range []Cache{CacheWriteback, CacheWritethrough, CacheNone} {
		got, err := ParseCache(c.String())
		require.NoError(t, err)
		require.Equal(t, c, got)
	}
	_, err := ParseCache("unsafe")
	require.ErrorContains(t, err, "use none, writeback or writethrough")
	got, err := ParseFormat("raw")
	require.NoError(t, err)
	require.Equal(t, FormatRaw, got)
	_, err = ParseFormat("vmdk")
	require.ErrorContains(t, err, "use raw")
}

func BenchmarkRead4K(b *testing.B) {
	f, err := Open(image(b, make([]byte, testSize)), Options{})
	require.NoError(b, err)
	defer f.Close()
	bufs := [][]byte{make([]byte, 4096)}
	b.SetBytes(4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := f.Preadv(bufs, 8192); err != nil {
			b.Fatal(err)
		}
	}
}
