package qcow2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

// counted counts the reads of a file, and can be tried.
type counted struct {
	memory
	reads atomic.Int64
}

func (c *counted) Preadv(bufs [][]byte, off int64) error {
	c.reads.Add(1)
	return c.memory.Preadv(bufs, off)
}

func (c *counted) TryPreadv(bufs [][]byte, off int64) (bool, error) {
	return true, c.memory.Preadv(bufs, off)
}

func (c *counted) TryPwritev(bufs [][]byte, off int64) (bool, error) {
	return true, c.memory.Pwritev(bufs, off)
}

// compressedImage makes an image whose clusters are all compressed. Its bytes follow
// from seed, the places of its clusters do not.
func compressedImage(t testing.TB, kind Compression, bits, clusters int, seed byte) (*counted, []byte) {
	t.Helper()
	size := 1 << bits
	h := &counted{}
	w, err := NewWriter(&h.memory, CreateOptions{Size: int64(clusters * size), ClusterBits: bits, Compression: kind})
	require.NoError(t, err)
	z, err := NewCompressor(kind)
	require.NoError(t, err)
	disk := make([]byte, clusters*size)
	for i := range disk {
		disk[i] = seed ^ byte(i/100) ^ byte(i>>bits)
	}
	for c := range clusters {
		out, ok := z.Compress(nil, disk[c*size:(c+1)*size])
		require.True(t, ok)
		require.NoError(t, w.WriteCompressed(int64(c), out))
	}
	require.NoError(t, w.Close())
	return h, disk
}

func read(t testing.TB, m *Image, off, n int) []byte {
	t.Helper()
	b := make([]byte, n)
	require.NoError(t, m.Preadv([][]byte{b}, int64(off)))
	return b
}

// TestDecompressedOnce: small reads in a row, from any number of readers, take
// one look at the file for each cluster.
func TestDecompressedOnce(t *testing.T) {
	for _, kind := range []Compression{Zlib, Zstd} {
		h, disk := compressedImage(t, kind, 16, 40, 1)
		m := open(t, h, Options{ReadOnly: true})
		read(t, m, 0, 512) // the L2 table, too
		before := h.reads.Load()
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() {
				b := make([]byte, 4096)
				for off := 0; off < 2<<16; off += len(b) {
					if err := m.Preadv([][]byte{b[:100], b[100:]}, int64(off)); err != nil || !bytes.Equal(b, disk[off:off+len(b)]) {
						t.Errorf("at %d: %v", off, err)
					}
				}
			})
		}
		readers.Wait()
		require.EqualValues(t, 1, h.reads.Load()-before)

		for off := 0; off < len(disk); off += 4096 {
			require.Equal(t, disk[off:off+4096], read(t, m, off, 4096))
		}
		require.EqualValues(t, 39, h.reads.Load()-before)
		require.Len(t, m.plain.slots, plainClusters)
	}
}

// TestTryCompressed waits for nothing, and has what was read just before.
func TestTryCompressed(t *testing.T) {
	h, disk := compressedImage(t, Zlib, 16, 4, 1)
	m := open(t, h, Options{ReadOnly: true})
	b := make([]byte, 4096)
	read(t, m, 1<<16, 512) // the L2 table
	done, err := m.TryPreadv([][]byte{b}, 4096)
	require.NoError(t, err)
	require.False(t, done)
	read(t, m, 0, 512)
	for _, off := range []int{4096, 1<<16 - 1024} { // the second over two clusters
		done, err = m.TryPreadv([][]byte{b[:1000], b[1000:]}, int64(off))
		require.NoError(t, err)
		require.True(t, done)
		require.Equal(t, disk[off:off+4096], b)
	}
}

// TestDecompressedBound: what is kept has a bound in bytes.
func TestDecompressedBound(t *testing.T) {
	for bits, want := range map[int]int{9: 16, 12: 16, 16: 16, 18: 16, 19: 8, 20: 4, 21: 2} {
		var c plainCache
		c.reset(1 << bits)
		require.Len(t, c.slots, want)
	}
}

// TestDecompressedUnderChange: more readers than slots, each with clusters of
// its own that it also overwrites and discards, while flushes give storage free
// that is used again.
func TestDecompressedUnderChange(t *testing.T) {
	const bits, workers, each = 12, 24, 8
	const size = 1 << bits
	h, disk := compressedImage(t, Zlib, bits, workers*each, 3)
	m := open(t, h, Options{CacheBytes: 1})
	var work sync.WaitGroup
	for w := range workers {
		work.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 0))
			mine := disk[w*each*size : (w+1)*each*size]
			base := int64(w * each * size)
			got := make([]byte, 3*512)
			for range 400 {
				at := r.IntN(len(mine)-len(got)) &^ 511
				var err error
				switch r.IntN(20) {
				case 0:
					c := at / size * size
					if err = m.WriteZeroes(base+int64(c), size, true); err == nil {
						clear(mine[c : c+size])
					}
				case 1, 2:
					for i := range got {
						got[i] = byte(r.Uint32())
					}
					if err = m.Pwritev([][]byte{got}, base+int64(at)); err == nil {
						copy(mine[at:], got)
					}
				case 3:
					err = m.Flush()
				default:
					if err = m.Preadv([][]byte{got}, base+int64(at)); err == nil && !bytes.Equal(got, mine[at:at+len(got)]) {
						err = fmt.Errorf("wrong bytes")
					}
				}
				if err != nil {
					t.Errorf("at %d: %v", base+int64(at), err)
					return
				}
			}
		})
	}
	work.Wait()
	require.Equal(t, disk, readAll(t, m))
	require.NoError(t, m.Suspend())
	require.True(t, inspect(t, &h.memory).Clean())
}

// TestDecompressedInOtherHands: whoever had the image meanwhile may have put
// other bytes into the same places.
func TestDecompressedInOtherHands(t *testing.T) {
	h, disk := compressedImage(t, Zlib, 16, 2, 0)
	other, changed := compressedImage(t, Zlib, 16, 2, 0xff)
	m := open(t, h, Options{})
	require.Equal(t, disk, readAll(t, m))
	entry, err := m.lookup(1)
	require.NoError(t, err)
	require.NoError(t, m.Suspend())
	h.b = other.b
	require.NoError(t, m.Load())
	now, err := m.lookup(1)
	require.NoError(t, err)
	require.Equal(t, entry, now, "the test wants the same places")
	require.Equal(t, changed, readAll(t, m))
}

// TestDecompressedNot: what cannot be decompressed is not kept, for anybody.
func TestDecompressedNot(t *testing.T) {
	h, disk := compressedImage(t, Zlib, 16, 2, 0)
	m := open(t, h, Options{ReadOnly: true})
	e, err := m.Map(0, 512)
	require.NoError(t, err)
	good := append([]byte(nil), h.b[e.Host:e.Host+8]...)
	copy(h.b[e.Host:], bytes.Repeat([]byte{0xff}, 8))
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			if m.Preadv([][]byte{make([]byte, 512)}, 0) == nil {
				t.Error("garbage was decompressed")
			}
		})
	}
	readers.Wait()
	require.ErrorIs(t, m.Preadv([][]byte{make([]byte, 512)}, 0), ErrCorrupt)
	copy(h.b[e.Host:], good)
	require.Equal(t, disk, readAll(t, m))
}

// BenchmarkCompressed reads an image of compressed clusters, 64 KiB each, in
// pieces of 4 KiB.
func BenchmarkCompressed(b *testing.B) {
	for _, kind := range []Compression{Zlib, Zstd} {
		const clusters = 256
		h, _ := compressedImage(b, kind, 16, clusters, 1)
		m := open(b, h, Options{ReadOnly: true})
		bufs := [][]byte{make([]byte, 4096)}
		pieces := int64(clusters << 16 / 4096)
		for _, order := range []string{"sequential", "random"} {
			b.Run(fmt.Sprintf("%v/%s", kind, order), func(b *testing.B) {
				b.ReportAllocs()
				b.SetBytes(4096)
				x, at := uint32(1), int64(0)
				for b.Loop() {
					if order == "random" {
						x = x*1664525 + 1013904223
						at = int64(x>>8) % pieces
					} else {
						at = (at + 1) % pieces
					}
					require.NoError(b, m.Preadv(bufs, at*4096))
				}
			})
		}
	}
}
