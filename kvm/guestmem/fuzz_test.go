package guestmem

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
)

// FuzzAccess throws any address and length at every accessor. Whatever comes
// back must agree with the layout, and nothing may panic.
func FuzzAccess(f *testing.F) {
	const above = 3 * PageSize
	for _, gpa := range []uint64{0, 1, PageSize - 1, HoleStart - 1, HoleStart, HoleEnd - 1, HoleEnd, HoleEnd + above - 1, HoleEnd + above, 1 << 63, ^uint64(0)} {
		for _, n := range []uint64{0, 1, 2, 8, PageSize, 1 << 32, ^uint64(0)} {
			f.Add(gpa, n, []byte("data"))
		}
	}
	m := newMemory(f, HoleStart+above, Options{SmallPages: true})
	f.Fuzz(func(t *testing.T, gpa, n uint64, p []byte) {
		in := func(n uint64) bool {
			low := gpa <= HoleStart && n <= HoleStart-gpa
			high := gpa >= HoleEnd && gpa <= HoleEnd+above && n <= HoleEnd+above-gpa
			return low || high
		}
		v, err := m.View(gpa, n)
		require.Equal(t, in(n), err == nil, "view %#x+%#x: %v", gpa, n, err)
		w, err := m.Writable(gpa, n)
		require.Equal(t, in(n), err == nil, "writable %#x+%#x: %v", gpa, n, err)
		if err == nil {
			require.True(t, uint64(len(v)) == n && uint64(cap(v)) == n && uint64(len(w)) == n && uint64(cap(w)) == n)
		}
		err = m.WriteAt(p, gpa)
		require.Equal(t, in(uint64(len(p))), err == nil, "write %#x+%#x: %v", gpa, len(p), err)
		got := make([]byte, len(p))
		if err == nil {
			require.NoError(t, m.ReadAt(got, gpa))
			require.True(t, bytes.Equal(p, got))
			dst := make([]uint64, (m.Frames()+63)/64)
			m.DrainDirty(dst)
			if len(p) > 0 {
				for g := gpa >> PageShift; g <= (gpa+uint64(len(p))-1)>>PageShift; g++ {
					require.NotZero(t, dst[g/64]&(1<<(g%64)))
				}
			}
		} else {
			require.Error(t, m.ReadAt(got, gpa))
		}
		if len(p) < 64*PageSize { // keep what the fuzzer populates small
			err = m.Populate([]Extent{{gpa, uint64(len(p))}})
			require.Equal(t, in(uint64(len(p))), err == nil)
		}
		m.MarkDirty(gpa, n)
		_, err = m.LoadUint16(gpa)
		require.Equal(t, gpa%2 == 0 && in(2), err == nil)
		_, err = m.LoadUint32(gpa)
		require.Equal(t, gpa%4 == 0 && in(4), err == nil)
		_, err = m.LoadUint64(gpa)
		require.Equal(t, gpa%8 == 0 && in(8), err == nil)
		require.Equal(t, gpa%2 == 0 && in(2), m.StoreUint16(gpa, 1) == nil)
		require.Equal(t, gpa%4 == 0 && in(4), m.StoreUint32(gpa, 1) == nil)
		require.Equal(t, gpa%8 == 0 && in(8), m.StoreUint64(gpa, 1) == nil)
	})
}
