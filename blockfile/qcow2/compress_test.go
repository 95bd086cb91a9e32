package qcow2

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// What the compressor makes the image's own reader takes, with other bytes
// behind it, as in a shared sector.
func TestCompressorAndReader(t *testing.T) {
	for _, c := range []Compression{Zlib, Zstd} {
		z, err := NewCompressor(c)
		require.NoError(t, err)
		var d decoders
		rapid.Check(t, func(t *rapid.T) {
			cluster := make([]byte, 1<<rapid.IntRange(9, 17).Draw(t, "bits"))
			pattern := rapid.SliceOfN(rapid.Byte(), 1, 300).Draw(t, "pattern")
			for i := range cluster {
				cluster[i] = pattern[i%len(pattern)]
			}
			head := []byte("head")
			out, ok := z.Compress(head, cluster)
			if !ok {
				return
			}
			require.Equal(t, "head", string(out[:4]))
			require.Less(t, len(out)-4, len(cluster))
			got := make([]byte, len(cluster))
			require.NoError(t, d.decompress(c, got, append(out[4:], "tail"...)))
			require.True(t, bytes.Equal(cluster, got))
		})
		noise := make([]byte, 4096)
		for i, x := 0, uint32(1); i < len(noise); i++ {
			x = x*1664525 + 1013904223
			noise[i] = byte(x >> 24)
		}
		_, ok := z.Compress(nil, noise)
		require.False(t, ok, "%v: noise does not get smaller", c)
	}
	_, err := NewCompressor(9)
	require.Error(t, err)
}

// A written image reads back through Image: compressed, zero, plain, missing.
func TestWriterIsReadBack(t *testing.T) {
	for _, c := range []Compression{Zlib, Zstd} {
		for _, bits := range []int{9, 12, 16} {
			size := int64(1) << bits
			m := &memory{}
			w, err := NewWriter(m, CreateOptions{Size: 99*size + 512, ClusterBits: bits, Compression: c})
			require.NoError(t, err)
			z, err := NewCompressor(c)
			require.NoError(t, err)
			want := make([]byte, 100*size)
			for i := range int64(100) {
				part := want[i*size : (i+1)*size]
				if i%4 == 3 {
					continue
				}
				for k := range part {
					part[k] = byte(i + int64(k/100))
				}
				if i == 99 {
					clear(part[512:])
				}
				if out, ok := z.Compress(nil, part); ok && i%4 == 1 {
					require.NoError(t, w.WriteCompressed(i, out))
				} else {
					require.NoError(t, w.Write(i, part))
				}
			}
			require.NoError(t, w.Close())
			require.True(t, inspect(t, m).Clean())
			image, err := Open(m, Options{})
			require.NoError(t, err)
			got := make([]byte, 99*size+512)
			require.NoError(t, image.Preadv([][]byte{got}, 0))
			require.True(t, bytes.Equal(want[:len(got)], got), "%v, clusters of %d", c, size)
		}
	}
}
