package blockfile

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

const testSize = 1 << 20

// opener makes a fresh image of size bytes filled with fill and opens it.
type opener func(t *testing.T, fill []byte, o Options) File

// TestConformance puts every format and cache mode through one suite.
func TestConformance(t *testing.T) {
	for _, cache := range []Cache{CacheWriteback, CacheWritethrough, CacheNone} {
		t.Run("raw "+cache.String(), func(t *testing.T) {
			conformance(t, func(t *testing.T, fill []byte, o Options) File {
				o.Cache = cache
				f, err := Open(image(t, fill), o)
				if cache == CacheNone && errors.Is(err, unix.EINVAL) {
					t.Skip("the temporary folder's file system has no O_DIRECT")
				}
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, f.Close()) })
				return f
			})
		})
	}
}

// TestConformanceLargeBlocks takes O_DIRECT to be pickier than it is here, so
// that the read-modify-write of partial blocks is tested on every host.
func TestConformanceLargeBlocks(t *testing.T) {
	conformance(t, func(t *testing.T, fill []byte, o Options) File {
		o.Cache = CacheNone
		f, err := openRaw(image(t, fill), o)
		if errors.Is(err, unix.EINVAL) {
			t.Skip("the temporary folder's file system has no O_DIRECT")
		}
		require.NoError(t, err)
		f.geo.memAlign, f.geo.offAlign, f.geo.block = 4096, 4096, 4096
		t.Cleanup(func() { require.NoError(t, f.Close()) })
		return f
	})
}

func image(t testing.TB, fill []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, fill, 0o600))
	return path
}

func random(seed uint64, n int) []byte {
	r := rand.New(rand.NewPCG(seed, 0))
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

func conformance(t *testing.T, open opener) {
	t.Run("against a model", func(t *testing.T) { againstModel(t, open) })
	t.Run("ranges", func(t *testing.T) { badRanges(t, open) })
	t.Run("read-only", func(t *testing.T) { readOnly(t, open) })
	t.Run("not locked", func(t *testing.T) { notLocked(t, open) })
	t.Run("many vectors", func(t *testing.T) { manyVectors(t, open) })
	t.Run("neighbours", func(t *testing.T) { neighbours(t, open) })
	t.Run("no allocations", func(t *testing.T) { noAllocations(t, open) })
}

// split cuts b into random pieces; their addresses are odd on purpose.
func split(rt *rapid.T, b []byte) [][]byte {
	var out [][]byte
	for len(b) > 0 {
		n := rapid.IntRange(0, len(b)).Draw(rt, "piece")
		if len(out) > 20 {
			n = len(b)
		}
		out = append(out, b[:n:n])
		b = b[n:]
	}
	return out
}

func againstModel(t *testing.T, open opener) {
	model := random(1, testSize)
	f := open(t, model, Options{})
	require.EqualValues(t, testSize, f.Size())
	rapid.Check(t, func(rt *rapid.T) {
		sector := rapid.IntRange(0, testSize/SectorSize).Draw(rt, "sector")
		limit := min(testSize/SectorSize-sector, 1200) // beyond the bounce buffer
		sectors := rapid.IntRange(0, limit).Draw(rt, "sectors")
		off, n := sector*SectorSize, sectors*SectorSize
		shift := rapid.IntRange(0, 9).Draw(rt, "shift")
		switch rapid.SampledFrom([]string{"read", "write", "zero", "unmap", "flush"}).Draw(rt, "op") {
		case "write":
			data := random(rapid.Uint64().Draw(rt, "seed"), n+shift)[shift:]
			got, err := f.Pwritev(split(rt, data), int64(off))
			require.NoError(rt, err)
			require.Equal(rt, n, got)
			copy(model[off:], data)
		case "zero":
			require.NoError(rt, f.WriteZeroes(int64(off), int64(n), false))
			clear(model[off : off+n])
		case "unmap":
			require.NoError(rt, f.WriteZeroes(int64(off), int64(n), true))
			clear(model[off : off+n])
		case "flush":
			require.NoError(rt, f.Flush())
		}
		// Read a little more than what changed: the neighbours must be whole.
		lo, hi := max(0, off-4096), min(testSize, off+n+4096)
		got := make([]byte, hi-lo+shift)[shift:]
		m, err := f.Preadv(split(rt, got), int64(lo))
		require.NoError(rt, err)
		require.Equal(rt, hi-lo, m)
		require.True(rt, bytes.Equal(model[lo:hi], got))
	})
	// What a discarded range holds is anybody's guess; its neighbours are not.
	require.NoError(t, f.Discard(8192+512, 8192))
	got := make([]byte, testSize)
	_, err := f.Preadv([][]byte{got}, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(model[:8192+512], got[:8192+512]))
	require.True(t, bytes.Equal(model[16384+512:], got[16384+512:]))
}

func badRanges(t *testing.T, open opener) {
	f := open(t, random(2, testSize), Options{})
	for _, r := range []struct{ off, n int64 }{
		{-512, 512}, {1, 512}, {0, 511}, {testSize, 512}, {testSize - 512, 1024}, {1 << 62, 512}, {-1 << 63, 512},
	} {
		bufs := [][]byte{make([]byte, r.n)}
		_, err := f.Preadv(bufs, r.off)
		require.ErrorIs(t, err, ErrRange, "%+v", r)
		_, err = f.Pwritev(bufs, r.off)
		require.ErrorIs(t, err, ErrRange, "%+v", r)
		require.ErrorIs(t, f.Discard(r.off, r.n), ErrRange, "%+v", r)
		require.ErrorIs(t, f.WriteZeroes(r.off, r.n, true), ErrRange, "%+v", r)
	}
	require.ErrorIs(t, f.Discard(512, 1<<63-512), ErrRange)
	require.ErrorIs(t, f.Discard(0, -512), ErrRange)
	_, err := f.Preadv(nil, testSize)
	require.NoError(t, err, "nothing, at the very end")
}

func readOnly(t *testing.T, open opener) {
	want := random(3, testSize)
	f := open(t, want, Options{ReadOnly: true})
	require.True(t, f.ReadOnly())
	_, err := f.Pwritev([][]byte{make([]byte, 512)}, 0)
	require.ErrorIs(t, err, ErrReadOnly)
	require.ErrorIs(t, f.Discard(0, 512), ErrReadOnly)
	require.ErrorIs(t, f.WriteZeroes(0, 512, false), ErrReadOnly)
	require.NoError(t, f.Flush())
	got := make([]byte, testSize)
	_, err = f.Preadv([][]byte{got}, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
}

func notLocked(t *testing.T, open opener) {
	f := open(t, random(4, testSize), Options{NoLock: true})
	one := [][]byte{make([]byte, 512)}
	_, err := f.Pwritev(one, 0)
	require.ErrorIs(t, err, ErrNotLocked)
	_, err = f.Preadv(one, 0)
	require.NoError(t, err)
	require.NoError(t, f.Lock())
	require.NoError(t, f.Lock(), "twice is no error")
	_, err = f.Pwritev(one, 0)
	require.NoError(t, err)
	require.NoError(t, f.Unlock())
	require.ErrorIs(t, f.WriteZeroes(0, 512, true), ErrNotLocked)
}

// manyVectors needs more calls than one: the kernel takes 1024 vectors.
func manyVectors(t *testing.T, open opener) {
	f := open(t, make([]byte, testSize), Options{})
	data := random(5, testSize)
	var bufs [][]byte
	for i := 0; i < len(data); i += 256 {
		bufs = append(bufs, data[i:i+256], nil)
	}
	n, err := f.Pwritev(bufs, 0)
	require.NoError(t, err)
	require.Equal(t, testSize, n)
	got := make([]byte, testSize)
	for i := range bufs {
		bufs[i] = got[i/2*256 : i/2*256+len(bufs[i])]
	}
	_, err = f.Preadv(bufs, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got))
}

// neighbours has writers of single sectors in the same blocks: none may undo
// another's.
func neighbours(t *testing.T, open opener) {
	f := open(t, make([]byte, testSize), Options{})
	const writers, rounds, sectors = 8, 20, 64
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			buf := make([]byte, 512)
			for r := range rounds {
				for s := w; s < sectors; s += writers {
					for i := range buf {
						buf[i] = byte(r + s)
					}
					if r%5 == 1 && w == 0 {
						if err := f.WriteZeroes(int64(s)*512, 512, r%2 == 0); err != nil {
							t.Error(err)
						}
					}
					if _, err := f.Pwritev([][]byte{buf}, int64(s)*512); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	got := make([]byte, sectors*512)
	_, err := f.Preadv([][]byte{got}, 0)
	require.NoError(t, err)
	for s := range sectors {
		require.Equal(t, bytes.Repeat([]byte{byte(rounds - 1 + s)}, 512), got[s*512:(s+1)*512], "sector %d", s)
	}
}

func noAllocations(t *testing.T, open opener) {
	if raceEnabled {
		t.Skip("sync.Pool drops items on purpose under the race detector")
	}
	f := open(t, make([]byte, testSize), Options{})
	bufs := [][]byte{make([]byte, 1024)[:512], make([]byte, 4096)[:1024]}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if _, err := f.Preadv(bufs, 512); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Pwritev(bufs, 512); err != nil {
			t.Fatal(err)
		}
	}), fmt.Sprintf("%T", f))
}
