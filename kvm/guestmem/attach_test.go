package guestmem

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// attached is memory of a process that has handed its file over, and the same
// memory as the process that got the file sees it.
func attached(t *testing.T, size uint64) (given, got *Memory) {
	t.Helper()
	given = newMemory(t, size, Options{Backing: Memfd})
	f, err := given.File()
	require.NoError(t, err)
	got, err = Attach(f, size, Options{})
	require.NoError(t, err)
	require.NoError(t, f.Close(), "the file stays the caller's")
	t.Cleanup(func() { require.NoError(t, got.Close()) })
	return given, got
}

// canWrite tries to change a byte past all methods.
func canWrite(p *byte) (ok bool) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() { ok = recover() == nil }()
	*p = 7
	return true
}

func TestAttachSharesAndFreezes(t *testing.T) {
	const size = HoleStart + 64*mib // two regions
	given, got := attached(t, size)
	require.Equal(t, given.Size(), got.Size())
	for i, r := range got.Regions() {
		require.Equal(t, given.Regions()[i].GPA, r.GPA)
		require.Equal(t, given.Regions()[i].Offset, r.Offset)
		require.Len(t, r.Bytes, len(given.Regions()[i].Bytes))
	}
	want := []byte("what the guest has written")
	spots := []uint64{0, HoleStart - 4096, HoleEnd, HoleEnd + 64*mib - 4096}
	for _, gpa := range spots {
		require.NoError(t, given.WriteAt(want, gpa))
	}
	check := func() {
		p := make([]byte, len(want))
		for _, gpa := range spots {
			require.NoError(t, got.ReadAt(p, gpa))
			require.Equal(t, want, p)
		}
	}
	check()
	mine, err := given.Touched()
	require.NoError(t, err)
	theirs, err := got.Touched()
	require.NoError(t, err)
	require.Equal(t, mine, theirs)

	writes := map[string]func() error{
		"WriteAt":     func() error { return got.WriteAt([]byte{1}, 8) },
		"Writable":    func() error { _, err := got.Writable(8, 1); return err },
		"StoreUint16": func() error { return got.StoreUint16(8, 1) },
		"StoreUint32": func() error { return got.StoreUint32(8, 1) },
		"StoreUint64": func() error { return got.StoreUint64(8, 1) },
		"Populate":    func() error { return got.Populate([]Extent{{8, 1}}) },
	}
	for name, write := range writes {
		require.ErrorIs(t, write(), ErrFrozen, name)
	}
	for _, r := range got.Regions() {
		require.False(t, canWrite(&r.Bytes[8]), "the mapping itself can be written")
		require.False(t, canWrite(&r.Bytes[len(r.Bytes)-1]), "the mapping itself can be written")
	}
	check()

	require.NoError(t, got.Thaw())
	require.NoError(t, got.Thaw(), "twice is once")
	for name, write := range writes {
		require.NoError(t, write(), name)
	}
	for _, r := range got.Regions() {
		require.True(t, canWrite(&r.Bytes[8]))
		require.True(t, canWrite(&r.Bytes[len(r.Bytes)-1]))
	}
	require.NoError(t, got.WriteAt([]byte("back"), 100))
	b, err := given.View(100, 4)
	require.NoError(t, err)
	require.Equal(t, "back", string(b))

	require.NoError(t, newMemory(t, PageSize, Options{}).Thaw(), "memory of our own is never frozen")
	gone, err := New(PageSize, Options{Backing: Memfd})
	require.NoError(t, err)
	require.NoError(t, gone.Close())
	require.ErrorIs(t, gone.Thaw(), ErrClosed)
	_, err = gone.File()
	require.ErrorIs(t, err, ErrClosed)
	_, err = newMemory(t, PageSize, Options{}).File()
	require.ErrorIs(t, err, ErrBacking)
}

// Whoever gave memory away can tell whether it was thawed, by the last receiver
// and however often before.
func TestTaken(t *testing.T) {
	m, err := New(2*mib, Options{Backing: Memfd})
	require.NoError(t, err)
	taken := func(m *Memory, want bool) {
		t.Helper()
		is, err := m.Taken()
		require.NoError(t, err)
		require.Equal(t, want, is)
	}
	taken(m, false)
	for range 20 { // the count wraps at 16
		f, err := m.File()
		require.NoError(t, err)
		dead, err := Attach(f, m.Size(), Options{})
		require.NoError(t, err)
		require.NoError(t, dead.Close()) // a destination that never ran it
		taken(m, false)
		next, err := Attach(f, m.Size(), Options{})
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, next.Thaw())
		taken(m, true)
		taken(next, false) // its own
		require.NoError(t, m.Close())
		_, err = m.Taken()
		require.ErrorIs(t, err, ErrClosed)
		m = next
	}
	require.NoError(t, m.Close())
}

// Memory that could not be made writable is not taken: its giver may go on.
func TestThawThatFails(t *testing.T) {
	given, got := attached(t, 4*mib)
	readOnly, err := os.Open("/proc/self/exe")
	require.NoError(t, err)
	defer readOnly.Close()
	bytes := got.Regions()[0].Bytes
	last := unsafe.Pointer(&bytes[len(bytes)-PageSize])
	_, err = unix.MmapPtr(int(readOnly.Fd()), 0, last, PageSize, unix.PROT_READ, unix.MAP_SHARED|unix.MAP_FIXED)
	require.NoError(t, err)
	require.ErrorIs(t, got.Thaw(), unix.EACCES)
	is, err := given.Taken()
	require.NoError(t, err)
	require.False(t, is)
	require.ErrorIs(t, got.WriteAt([]byte{1}, 0), ErrFrozen)
}

// The memory outlives the process that made it.
func TestAttachedOutlivesTheGiver(t *testing.T) {
	given, got := attached(t, 4*mib)
	require.NoError(t, given.WriteAt([]byte("still here"), 3*mib))
	require.NoError(t, given.Close())
	require.NoError(t, got.Thaw())
	b, err := got.View(3*mib, 10)
	require.NoError(t, err)
	require.Equal(t, "still here", string(b))
}

// A memfd can be neither cut nor grown, nor sealed against what Thaw needs.
func TestMemfdIsSealed(t *testing.T) {
	m := newMemory(t, mib, Options{Backing: Memfd})
	for _, size := range []int64{0, 4096, 2 << 20} {
		require.ErrorIs(t, unix.Ftruncate(m.fd, size), unix.EPERM)
	}
	_, err := unix.FcntlInt(uintptr(m.fd), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE)
	require.ErrorIs(t, err, unix.EPERM)
}

func openFiles(t *testing.T) int {
	t.Helper()
	es, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return len(es)
}

// Whatever else a peer may send in place of guest memory is refused by name, and
// nothing is kept of it.
func TestAttachRefuses(t *testing.T) {
	const size = 64 << 10
	// The collector closes what an earlier test dropped: not while descriptors are counted.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	memfd := func(t *testing.T, flags int, size int64, seals int) *os.File {
		fd, err := unix.MemfdCreate("x", flags|unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Skipf("memfd_create with flags %#x: %v", flags, err)
		}
		f := os.NewFile(uintptr(fd), "x")
		require.NoError(t, f.Truncate(size))
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals)
		require.NoError(t, err)
		return f
	}
	reopened := func(t *testing.T, flag int) *os.File {
		f := memfd(t, 0, size, sealsWanted)
		defer f.Close()
		fd, err := unix.Open("/proc/self/fd/"+strconv.Itoa(int(f.Fd())), flag|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		return os.NewFile(uintptr(fd), "x")
	}
	open := func(t *testing.T, path string, flag int) *os.File {
		f, err := os.OpenFile(path, flag, 0o600)
		if err != nil {
			t.Skip(err)
		}
		return f
	}
	for name, c := range map[string]struct {
		make func(t *testing.T) *os.File
		says string
	}{
		"pipe": {func(t *testing.T) *os.File {
			r, w, err := os.Pipe()
			require.NoError(t, err)
			require.NoError(t, w.Close())
			return r
		}, "no memfd"},
		"device":         {func(t *testing.T) *os.File { return open(t, "/dev/zero", os.O_RDWR) }, "no memfd"},
		"folder":         {func(t *testing.T) *os.File { return open(t, "/", os.O_RDONLY) }, ""},
		"file on a disk": {func(t *testing.T) *os.File { return open(t, filepath.Join(t.TempDir(), "x"), os.O_RDWR|os.O_CREATE) }, ""},
		"file in tmpfs": {func(t *testing.T) *os.File {
			f, err := os.CreateTemp("/dev/shm", "godwit-attach-")
			if err != nil {
				t.Skip(err)
			}
			require.NoError(t, os.Remove(f.Name()))
			require.NoError(t, f.Truncate(size))
			return f
		}, ""},
		"unsealed":          {func(t *testing.T) *os.File { return memfd(t, 0, size, 0) }, "has seals 0x0"},
		"may shrink":        {func(t *testing.T) *os.File { return memfd(t, 0, size, sealsWanted&^unix.F_SEAL_SHRINK) }, "has seals"},
		"may grow":          {func(t *testing.T) *os.File { return memfd(t, 0, size, sealsWanted&^unix.F_SEAL_GROW) }, "has seals"},
		"may be sealed":     {func(t *testing.T) *os.File { return memfd(t, 0, size, sealsWanted&^unix.F_SEAL_SEAL) }, "has seals"},
		"no writing":        {func(t *testing.T) *os.File { return memfd(t, 0, size, sealsWanted|unix.F_SEAL_WRITE) }, "against writing"},
		"no writing later":  {func(t *testing.T) *os.File { return memfd(t, 0, size, sealsWanted|unix.F_SEAL_FUTURE_WRITE) }, "against writing"},
		"too small":         {func(t *testing.T) *os.File { return memfd(t, 0, size-PageSize, sealsWanted) }, "has 61440 bytes"},
		"too large":         {func(t *testing.T) *os.File { return memfd(t, 0, size+PageSize, sealsWanted) }, "has 69632 bytes"},
		"odd size":          {func(t *testing.T) *os.File { return memfd(t, 0, size+1, sealsWanted) }, "has 65537 bytes"},
		"empty":             {func(t *testing.T) *os.File { return memfd(t, 0, 0, sealsWanted) }, "has 0 bytes"},
		"huge page file":    {func(t *testing.T) *os.File { return memfd(t, unix.MFD_HUGETLB, 2<<20, sealsWanted) }, "file system"},
		"open for reading":  {func(t *testing.T) *os.File { return reopened(t, unix.O_RDONLY) }, "reading and writing"},
		"open for its name": {func(t *testing.T) *os.File { return reopened(t, unix.O_PATH) }, "no memfd"},
		"open for writing":  {func(t *testing.T) *os.File { return reopened(t, unix.O_WRONLY) }, "reading and writing"},
		"a closed one of us": {func(t *testing.T) *os.File {
			f := memfd(t, 0, size, sealsWanted)
			require.NoError(t, f.Close())
			return f
		}, "closed"},
	} {
		t.Run(name, func(t *testing.T) {
			f := c.make(t)
			defer f.Close()
			before := openFiles(t)
			m, err := Attach(f, size, Options{})
			require.Nil(t, m)
			require.Error(t, err)
			if name != "a closed one of us" {
				require.ErrorIs(t, err, ErrForeign)
			}
			require.ErrorContains(t, err, c.says)
			require.Equal(t, before, openFiles(t))
		})
	}
	m := newMemory(t, size, Options{Backing: Memfd})
	f, err := m.File()
	require.NoError(t, err)
	defer f.Close()
	for _, bad := range []uint64{0, 1, size + 1, MaxSize + PageSize} {
		_, err := Attach(f, bad, Options{})
		require.ErrorIs(t, err, ErrSize)
	}
}

// Populating a memfd gives it huge pages where the kernel makes any, keeps what is
// there, and leaves alone what is less than a huge page.
func TestPopulateMemfdHuge(t *testing.T) {
	m := newMemory(t, 16*mib, Options{Backing: Memfd})
	want := bytes.Repeat([]byte("keep"), 1024)
	for _, gpa := range []uint64{3 * mib, 5 * mib, 15 * mib} {
		require.NoError(t, m.WriteAt(want, gpa))
	}
	require.NoError(t, m.Populate([]Extent{{mib, 8 * mib}, {15 * mib, 4096}, {12 * mib, mib}}))
	for _, gpa := range []uint64{3 * mib, 5 * mib, 15 * mib} {
		b, err := m.View(gpa, uint64(len(want)))
		require.NoError(t, err)
		require.Equal(t, want, b)
	}
	touched, err := m.Touched()
	require.NoError(t, err)
	require.Equal(t, []Extent{{mib, 8 * mib}, {12 * mib, mib}, {15 * mib, PageSize}}, touched)
	if m.noCollapse.Load() {
		t.Skip("this kernel makes no huge pages of shared memory")
	}
	require.Equal(t, 3*2*mib, hugeShared(t, m), "2 to 8 MiB are three huge pages")

	small := newMemory(t, 16*mib, Options{Backing: Memfd, SmallPages: true})
	require.NoError(t, small.Populate([]Extent{{0, 16 * mib}}))
	require.Zero(t, hugeShared(t, small))
}

// hugeShared is how much of the memory is mapped by huge pages of a memfd, bytes.
func hugeShared(t *testing.T, m *Memory) uint64 {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	require.NoError(t, err)
	defer f.Close()
	begin := fmt.Sprintf("%x-", uintptr(unsafe.Pointer(&m.regions[0].Bytes[0])))
	here := false
	for in := bufio.NewScanner(f); in.Scan(); {
		line := in.Text()
		if strings.Contains(line, " r") && strings.Contains(line, "-") && !strings.HasPrefix(line, "VmFlags") {
			here = strings.HasPrefix(line, begin)
		}
		if rest, ok := strings.CutPrefix(line, "ShmemPmdMapped:"); ok && here {
			n, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			require.NoError(t, err)
			return n << 10
		}
	}
	t.Fatal("the mapping is not in smaps")
	return 0
}
