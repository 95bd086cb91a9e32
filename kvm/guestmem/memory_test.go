package guestmem

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

const (
	mib = uint64(1) << 20
	gib = uint64(1) << 30
)

var backings = []Backing{Anon, Memfd}

func newMemory(t testing.TB, size uint64, o Options) *Memory {
	t.Helper()
	m, err := New(size, o)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	return m
}

func eachBacking(t *testing.T, f func(t *testing.T, o Options)) {
	for _, b := range backings {
		t.Run(b.String(), func(t *testing.T) { f(t, Options{Backing: b}) })
	}
}

func TestNewRefuses(t *testing.T) {
	for _, size := range []uint64{0, 1, PageSize - 1, PageSize + 1, MaxSize + PageSize, 1 << 63, ^uint64(0), ^uint64(0) &^ (PageSize - 1)} {
		m, err := New(size, Options{})
		require.ErrorIs(t, err, ErrSize, "size %#x", size)
		require.Nil(t, m)
	}
	_, err := New(PageSize, Options{Backing: 7})
	require.ErrorIs(t, err, ErrBacking)
}

func TestBackingNames(t *testing.T) {
	for _, b := range backings {
		got, err := ParseBacking(b.String())
		require.NoError(t, err)
		require.Equal(t, b, got)
	}
	for _, s := range []string{"", "hugetlb", "Backing(3)", "ANON"} {
		_, err := ParseBacking(s)
		require.ErrorIs(t, err, ErrBacking)
	}
	require.Equal(t, "Backing(3)", Backing(3).String())
}

// Sizes up to MaxSize only reserve addresses, so the large ones are cheap.
func TestLayout(t *testing.T) {
	tests := []struct {
		size   uint64
		want   []Extent
		frames uint64
	}{
		{PageSize, []Extent{{0, PageSize}}, 1},
		{5 * PageSize, []Extent{{0, 5 * PageSize}}, 5},
		{HoleStart - PageSize, []Extent{{0, HoleStart - PageSize}}, HoleStart/PageSize - 1},
		{HoleStart, []Extent{{0, HoleStart}}, HoleStart / PageSize},
		{HoleStart + PageSize, []Extent{{0, HoleStart}, {HoleEnd, PageSize}}, HoleEnd/PageSize + 1},
		{8 * gib, []Extent{{0, HoleStart}, {HoleEnd, 5 * gib}}, 9 * gib / PageSize},
		{MaxSize, []Extent{{0, HoleStart}, {HoleEnd, MaxSize - HoleStart}}, (MaxSize + gib) / PageSize},
	}
	for _, tc := range tests {
		eachBacking(t, func(t *testing.T, o Options) {
			m := newMemory(t, tc.size, o)
			require.Equal(t, tc.size, m.Size())
			require.Equal(t, tc.frames, m.Frames())
			var (
				got    []Extent
				offset uint64
			)
			for _, r := range m.Regions() {
				got = append(got, Extent{r.GPA, uint64(len(r.Bytes))})
				require.Equal(t, len(r.Bytes), cap(r.Bytes))
				require.Zero(t, uintptr(unsafe.Pointer(&r.Bytes[0]))%hugePage)
				if o.Backing == Memfd {
					require.GreaterOrEqual(t, r.Fd, 0)
					require.Equal(t, offset, r.Offset)
				} else {
					require.Equal(t, -1, r.Fd)
					require.Zero(t, r.Offset)
				}
				offset += uint64(len(r.Bytes))
			}
			require.Equal(t, tc.want, got)
		})
	}
}

func TestHoleEdges(t *testing.T) {
	const size = HoleStart + 2*PageSize
	const end = HoleEnd + 2*PageSize
	tests := []struct {
		gpa, n uint64
		ok     bool
	}{
		{0, 1, true},
		{0, HoleStart, true},
		{0, HoleStart + 1, false},
		{0, ^uint64(0), false},
		{1, ^uint64(0), false},
		{HoleStart - 1, 1, true},
		{HoleStart - 1, 2, false},
		{HoleStart, 0, true},
		{HoleStart, 1, false},
		{HoleStart + 1, 0, false},
		{HoleStart - 8, gib + 16, false},
		{HoleEnd - 1, 0, false},
		{HoleEnd - 1, 1, false},
		{HoleEnd - 1, 2, false},
		{HoleEnd, 0, true},
		{HoleEnd, 2 * PageSize, true},
		{HoleEnd, 2*PageSize + 1, false},
		{HoleEnd + PageSize - 1, 2, true},
		{end - 1, 1, true},
		{end - 1, 2, false},
		{end, 0, true},
		{end, 1, false},
		{end + 1, 0, false},
		{1 << 63, 1 << 63, false},
		{^uint64(0), 0, false},
		{^uint64(0), 1, false},
		{^uint64(0), 2, false},
		{^uint64(0) - PageSize + 1, PageSize, false},
		{HoleEnd, ^uint64(0) - HoleEnd + 1, false},
	}
	eachBacking(t, func(t *testing.T, o Options) {
		m := newMemory(t, size, o)
		for _, tc := range tests {
			t.Run(fmt.Sprintf("%#x+%#x", tc.gpa, tc.n), func(t *testing.T) {
				v, err := m.View(tc.gpa, tc.n)
				w, err2 := m.Writable(tc.gpa, tc.n)
				if !tc.ok {
					require.ErrorIs(t, err, ErrOutOfRange)
					require.ErrorIs(t, err2, ErrOutOfRange)
					require.Contains(t, err.Error(), fmt.Sprintf("%#x", tc.gpa))
					return
				}
				require.NoError(t, err)
				require.NoError(t, err2)
				require.Len(t, v, int(tc.n))
				require.Equal(t, len(v), cap(v))
				require.Equal(t, len(w), cap(w))
			})
		}
	})
}

func TestWriteIsWholeOrNothing(t *testing.T) {
	m := newMemory(t, HoleStart+PageSize, Options{})
	ones := bytes.Repeat([]byte{0xff}, 32)
	for _, gpa := range []uint64{HoleStart - 16, HoleEnd - 16, HoleEnd + PageSize - 16, ^uint64(0) - 16} {
		require.ErrorIs(t, m.WriteAt(ones, gpa), ErrOutOfRange)
	}
	got := make([]byte, 16)
	for _, gpa := range []uint64{HoleStart - 16, HoleEnd, HoleEnd + PageSize - 16} {
		require.NoError(t, m.ReadAt(got, gpa))
		require.Equal(t, make([]byte, 16), got)
	}
	require.Empty(t, drain(m))
	p := []byte{1, 2, 3}
	require.ErrorIs(t, m.ReadAt(p, HoleStart-1), ErrOutOfRange)
	require.Equal(t, []byte{1, 2, 3}, p)
}

func TestMemfdIsShared(t *testing.T) {
	m := newMemory(t, HoleStart+2*PageSize, Options{Backing: Memfd})
	require.NoError(t, m.WriteAt([]byte("below"), PageSize))
	require.NoError(t, m.WriteAt([]byte("above"), HoleEnd+PageSize))
	for i, want := range []string{"below", "above"} {
		r := m.Regions()[i]
		got := make([]byte, 5)
		_, err := unix.Pread(r.Fd, got, int64(r.Offset)+PageSize)
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	fd := m.Regions()[0].Fd
	require.ErrorIs(t, unix.Ftruncate(fd, PageSize), unix.EPERM, "the memfd must be sealed")
	require.ErrorIs(t, unix.Ftruncate(fd, 1<<40), unix.EPERM)
}

func TestClosed(t *testing.T) {
	eachBacking(t, func(t *testing.T, o Options) {
		m, err := New(HoleStart+PageSize, o)
		require.NoError(t, err)
		require.NoError(t, m.WriteAt([]byte{1}, 0))
		require.NoError(t, m.Close())
		require.NoError(t, m.Close())

		_, view := m.View(0, 1)
		_, writable := m.Writable(0, 1)
		_, touched := m.Touched()
		_, resident := m.Resident()
		_, l16 := m.LoadUint16(0)
		_, l32 := m.LoadUint32(0)
		_, l64 := m.LoadUint64(0)
		for i, err := range []error{
			m.ReadAt(make([]byte, 1), 0), m.WriteAt([]byte{1}, 0), view, writable, touched, resident, l16, l32, l64,
			m.StoreUint16(0, 1), m.StoreUint32(0, 1), m.StoreUint64(0, 1), m.Populate([]Extent{{0, 1}}),
		} {
			require.ErrorIs(t, err, ErrClosed, "call %d", i)
		}
		require.Empty(t, m.Regions())
		require.Equal(t, uint64(HoleStart+PageSize), m.Size())
		m.MarkDirty(0, ^uint64(0))
		m.DrainDirty(make([]uint64, 1))
	})
}

// A leak of mappings or descriptors would show after enough guests.
func TestCloseGivesEverythingBack(t *testing.T) {
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(fds)
	}
	ours := func() int {
		maps, err := os.ReadFile("/proc/self/maps")
		require.NoError(t, err)
		return bytes.Count(maps, []byte("godwit-ram"))
	}
	before := count()
	for range 20 {
		m, err := New(4*gib, Options{Backing: Memfd})
		require.NoError(t, err)
		require.Equal(t, 2, ours())
		require.NoError(t, m.Close())
	}
	require.Equal(t, before, count())
	require.Zero(t, ours())
}
