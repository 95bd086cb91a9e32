package guestmem_test

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"godwit/kvm/guestmem"
)

// TestDiscard discards random runs, against a model of contents and dirty marks.
func TestDiscard(t *testing.T) {
	const pages = 64
	for _, backing := range []guestmem.Backing{guestmem.Anon, guestmem.Memfd} {
		t.Run(backing.String(), func(t *testing.T) {
			m, err := guestmem.New(pages*guestmem.PageSize, guestmem.Options{Backing: backing, SmallPages: true})
			require.NoError(t, err)
			defer m.Close()
			full := bytes.Repeat([]byte{0xa5}, guestmem.PageSize)
			rapid.Check(t, func(t *rapid.T) {
				for p := range uint64(pages) {
					require.NoError(t, m.WriteAt(full, p*guestmem.PageSize))
				}
				m.DrainDirty(make([]uint64, 1))
				var es []guestmem.Extent
				var gone uint64
				for range rapid.IntRange(0, 6).Draw(t, "runs") {
					first := rapid.Uint64Range(0, pages-1).Draw(t, "first")
					n := rapid.Uint64Range(0, pages-first).Draw(t, "pages")
					es = append(es, guestmem.Extent{GPA: first * guestmem.PageSize, Len: n * guestmem.PageSize})
					for p := first; p < first+n; p++ {
						gone |= 1 << p
					}
				}
				require.NoError(t, m.Discard(es))
				dirty := make([]uint64, 1)
				m.DrainDirty(dirty)
				require.Equal(t, gone, dirty[0], "what is discarded counts as written")
				touched, err := m.Touched()
				require.NoError(t, err)
				var left uint64
				for _, e := range touched {
					for p := e.GPA / guestmem.PageSize; p < (e.GPA+e.Len)/guestmem.PageSize; p++ {
						left |= 1 << p
					}
				}
				require.Equal(t, ^gone, left, "and is as if never touched")
				got := make([]byte, guestmem.PageSize)
				for p := range uint64(pages) {
					require.NoError(t, m.ReadAt(got, p*guestmem.PageSize))
					if gone>>p&1 == 1 {
						require.Zero(t, bytes.Trim(got, "\x00"))
					} else {
						require.Equal(t, full, got)
					}
				}
			})
		})
	}
}

// TestDiscardBeyondTheHole finds the second region's place in the file.
func TestDiscardBeyondTheHole(t *testing.T) {
	for _, backing := range []guestmem.Backing{guestmem.Anon, guestmem.Memfd} {
		m, err := guestmem.New(guestmem.HoleStart+1<<20, guestmem.Options{Backing: backing})
		require.NoError(t, err)
		defer m.Close()
		at := []uint64{0x1000, guestmem.HoleEnd, guestmem.HoleEnd + 0x1000}
		for _, gpa := range at {
			require.NoError(t, m.WriteAt([]byte{1}, gpa))
		}
		require.NoError(t, m.Discard([]guestmem.Extent{{GPA: guestmem.HoleEnd, Len: guestmem.PageSize}}))
		for i, want := range []byte{1, 0, 1} {
			var b [1]byte
			require.NoError(t, m.ReadAt(b[:], at[i]))
			require.Equal(t, want, b[0], "%v at %#x", backing, at[i])
		}
	}
}

func TestDiscardRefuses(t *testing.T) {
	m, err := guestmem.New(1<<20, guestmem.Options{Backing: guestmem.Memfd})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.WriteAt([]byte{1}, 0))
	for _, c := range []struct {
		bad  guestmem.Extent
		want error
	}{
		{guestmem.Extent{GPA: 1, Len: 4096}, guestmem.ErrPartialPage},
		{guestmem.Extent{GPA: 0, Len: 4095}, guestmem.ErrPartialPage},
		{guestmem.Extent{GPA: 1 << 20, Len: 4096}, guestmem.ErrOutOfRange},
		{guestmem.Extent{GPA: 1<<20 - 4096, Len: 8192}, guestmem.ErrOutOfRange},
		{guestmem.Extent{GPA: ^uint64(0) &^ 4095, Len: 8192}, guestmem.ErrOutOfRange},
	} {
		require.ErrorIs(t, m.Discard([]guestmem.Extent{{GPA: 0, Len: 4096}, c.bad}), c.want)
	}
	var b [1]byte
	require.NoError(t, m.ReadAt(b[:], 0))
	require.EqualValues(t, 1, b[0], "all are judged before any is discarded")

	f, err := m.File()
	require.NoError(t, err)
	defer f.Close()
	frozen, err := guestmem.Attach(f, 1<<20, guestmem.Options{})
	require.NoError(t, err)
	defer frozen.Close()
	require.ErrorIs(t, frozen.Discard([]guestmem.Extent{{GPA: 0, Len: 4096}}), guestmem.ErrFrozen)
	require.NoError(t, m.ReadAt(b[:], 0))
	require.EqualValues(t, 1, b[0], "its owner's memory is untouched")
}
