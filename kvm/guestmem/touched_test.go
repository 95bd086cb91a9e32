package guestmem

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// ways are the three ways to find touched pages.
var ways = []struct {
	name     string
	backing  Backing
	fallback bool
}{
	{"pagemap-scan", Anon, false},
	{"pagemap-read", Anon, true},
	{"memfd", Memfd, false},
}

func eachWay(t *testing.T, size uint64, small bool, f func(t *testing.T, m *Memory)) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			m := newMemory(t, size, Options{Backing: w.backing, SmallPages: small})
			m.noPagemapScan.Store(w.fallback)
			f(t, m)
			if m.noPagemapScan.Load() != w.fallback {
				t.Log("this kernel has no PAGEMAP_SCAN: the fallback was tested twice")
			}
		})
	}
}

func TestTouchedExact(t *testing.T) {
	const last = HoleStart - PageSize
	tests := []struct {
		name  string
		write []Extent
		want  []Extent
	}{
		{"nothing", nil, nil},
		{"a byte", []Extent{{7 * PageSize, 1}}, []Extent{{7 * PageSize, PageSize}}},
		{"first and last", []Extent{{0, 1}, {last, 1}}, []Extent{{0, PageSize}, {last, PageSize}}},
		{"over a page edge", []Extent{{2*PageSize - 1, 2}}, []Extent{{PageSize, 2 * PageSize}}},
		{"merged", []Extent{{3 * PageSize, 1}, {2 * PageSize, 1}}, []Extent{{2 * PageSize, 2 * PageSize}}},
		{"around the hole", []Extent{{last, 1}, {HoleEnd, 1}}, []Extent{{last, PageSize}, {HoleEnd, PageSize}}},
		{"end of RAM", []Extent{{HoleEnd + 4*PageSize, PageSize}}, []Extent{{HoleEnd + 4*PageSize, PageSize}}},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			eachWay(t, HoleStart+5*PageSize, true, func(t *testing.T, m *Memory) {
				for _, e := range tc.write {
					require.NoError(t, m.WriteAt(make([]byte, e.Len), e.GPA))
				}
				got, err := m.Touched()
				require.NoError(t, err)
				require.Equal(t, tc.want, got)
				again, err := m.Touched()
				require.NoError(t, err)
				require.Equal(t, got, again, "looking must not populate")
			})
		})
	}
}

// More runs than one ioctl or one read of pagemap can answer.
func TestTouchedAlternating(t *testing.T) {
	const pages = 40000
	eachWay(t, pages*PageSize, true, func(t *testing.T, m *Memory) {
		var want []Extent
		for p := uint64(1); p < pages; p += 3 {
			require.NoError(t, m.StoreUint16(p*PageSize, 1))
			want = append(want, Extent{p * PageSize, PageSize})
		}
		got, err := m.Touched()
		require.NoError(t, err)
		require.True(t, slices.Equal(want, got), "%d extents, not %d", len(got), len(want))
		n, err := m.Resident()
		require.NoError(t, err)
		require.Equal(t, uint64(len(want))*PageSize, n)
	})
}

// With huge pages a byte may populate 2 MiB: never less than what was written,
// never beyond the huge page around it.
func TestTouchedHugePages(t *testing.T) {
	eachWay(t, 64*mib, false, func(t *testing.T, m *Memory) {
		rng := rand.New(rand.NewPCG(1, 2))
		var written []uint64
		for range 10 {
			gpa := rng.Uint64N(64 * mib)
			require.NoError(t, m.WriteAt([]byte{1}, gpa))
			written = append(written, gpa)
		}
		got, err := m.Touched()
		require.NoError(t, err)
		requireSorted(t, got)
		for _, gpa := range written {
			require.True(t, covers(got, gpa&^(PageSize-1)), "%#x is missing in %x", gpa, got)
		}
		for _, e := range got {
			for p := e.GPA; p < e.GPA+e.Len; p += PageSize {
				require.True(t, slices.ContainsFunc(written, func(w uint64) bool { return w/hugePage == p/hugePage }), "%#x was not near a write", p)
			}
		}
	})
}

func requireSorted(t require.TestingT, l []Extent) {
	for i, e := range l {
		require.NotZero(t, e.Len)
		require.Zero(t, (e.GPA|e.Len)%PageSize)
		if i > 0 {
			require.Greater(t, e.GPA, l[i-1].GPA+l[i-1].Len, "unsorted or unmerged")
		}
	}
}

func covers(l []Extent, gpa uint64) bool {
	return slices.ContainsFunc(l, func(e Extent) bool { return gpa >= e.GPA && gpa-e.GPA < e.Len })
}

func TestTouchedRandom(t *testing.T) {
	const pages = 600
	rapid.Check(t, func(t *rapid.T) {
		set := rapid.SliceOfDistinct(rapid.Uint64Range(0, pages-1), func(p uint64) uint64 { return p }).Draw(t, "pages")
		for _, w := range ways {
			m, err := New(pages*PageSize, Options{Backing: w.backing, SmallPages: true})
			require.NoError(t, err)
			m.noPagemapScan.Store(w.fallback)
			for _, p := range set {
				require.NoError(t, m.StoreUint64(p*PageSize+8, 1))
			}
			got, err := m.Touched()
			require.NoError(t, err)
			require.NoError(t, m.Close())
			requireSorted(t, got)
			var total uint64
			for _, e := range got {
				total += e.Len
			}
			require.Equal(t, uint64(len(set))*PageSize, total, w.name)
			for _, p := range set {
				require.True(t, covers(got, p*PageSize), w.name)
			}
		}
	})
}

// A swapped page must count. Without swap space MADV_PAGEOUT does nothing to
// anonymous memory, and a memfd keeps its page as well: the answer is the same.
func TestTouchedAfterPageout(t *testing.T) {
	eachWay(t, 16*PageSize, true, func(t *testing.T, m *Memory) {
		require.NoError(t, m.WriteAt([]byte{1}, 3*PageSize))
		if err := unix.Madvise(m.regions[0].Bytes, unix.MADV_PAGEOUT); err != nil {
			require.ErrorIs(t, err, unix.EINVAL)
		}
		got, err := m.Touched()
		require.NoError(t, err)
		require.Equal(t, []Extent{{3 * PageSize, PageSize}}, got)
	})
}

func TestPopulate(t *testing.T) {
	for _, old := range []bool{false, true} {
		t.Run(fmt.Sprintf("fallback=%v", old), func(t *testing.T) {
			eachWay(t, HoleStart+5*PageSize, true, func(t *testing.T, m *Memory) {
				m.noPopulate.Store(old)
				require.NoError(t, m.WriteAt([]byte("kept"), HoleEnd))
				drain(m)
				require.NoError(t, m.Populate([]Extent{
					{HoleEnd + 1, 1}, {10*PageSize - 1, 2}, {HoleStart - 1, 1}, {0, 0}, {HoleStart, 0}, {HoleEnd + 4*PageSize, PageSize},
				}))
				got, err := m.Touched()
				require.NoError(t, err)
				require.Equal(t, []Extent{
					{9 * PageSize, 2 * PageSize}, {HoleStart - PageSize, PageSize}, {HoleEnd, PageSize}, {HoleEnd + 4*PageSize, PageSize},
				}, got)
				b, err := m.View(HoleEnd, 4)
				require.NoError(t, err)
				require.Equal(t, "kept", string(b))
				require.Empty(t, drain(m), "populating is not writing")
				n, err := m.Resident()
				require.NoError(t, err)
				require.Equal(t, uint64(5*PageSize), n)
			})
		})
	}
}

func TestPopulateRefuses(t *testing.T) {
	m := newMemory(t, HoleStart+PageSize, Options{SmallPages: true})
	for _, bad := range []Extent{
		{HoleStart, 1}, {HoleStart - 1, 2}, {HoleEnd - 1, 1}, {HoleEnd, PageSize + 1}, {1, ^uint64(0)}, {^uint64(0), 1}, {0, 1 << 63},
	} {
		require.ErrorIs(t, m.Populate([]Extent{{0, PageSize}, bad}), ErrOutOfRange)
	}
	got, err := m.Touched()
	require.NoError(t, err)
	require.Empty(t, got, "one bad extent: none is populated")
}

// The sizes are those of the kernel's structs: 12 and 3 fields of 8 bytes, and
// the ioctl number holds the first.
func TestPagemapABI(t *testing.T) {
	require.Equal(t, uintptr(96), unsafe.Sizeof(pmScanArg{}))
	require.Equal(t, uintptr(24), unsafe.Sizeof(pageRegion{}))
	require.EqualValues(t, 3<<30|unsafe.Sizeof(pmScanArg{})<<16|'f'<<8|16, uint64(pagemapScan))
}
