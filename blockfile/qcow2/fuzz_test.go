package qcow2

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// small is a host that does not grow beyond what a test can afford.
type small struct{ memory }

var errFull = errors.New("no space left")

func (s *small) Pwritev(bufs [][]byte, off int64) error {
	if off+total(bufs) > 16<<20 {
		return errFull
	}
	return s.memory.Pwritev(bufs, off)
}

// seeds are images of every kind, as small as they come.
func seeds(f *testing.F) [][]byte {
	var list [][]byte
	for _, o := range []CreateOptions{
		{Size: 64 << 10, ClusterBits: 9}, {Size: 64 << 10, ClusterBits: 10, Version: 2}, {Size: 1 << 20, ClusterBits: 12, RefcountBits: 1},
		{Size: 64 << 10, ClusterBits: 9, Backing: "base", BackingFormat: "raw"},
	} {
		host := create(f, o)
		opts := Options{}
		if o.Backing != "" {
			opts.Backing = bytesBacking(make([]byte, 32<<10))
		}
		m := open(f, host, opts)
		require.NoError(f, m.Pwritev([][]byte{random(1, 8192)}, 1024))
		require.NoError(f, m.WriteZeroes(2048, 1024, false))
		require.NoError(f, m.Suspend())
		list = append(list, host.b)
	}
	raw, path := filepath.Join(f.TempDir(), "a.raw"), filepath.Join(f.TempDir(), "a.qcow2")
	data := random(2, 24<<10)
	clear(data[4096:20000])
	require.NoError(f, os.WriteFile(raw, data, 0o600))
	for _, options := range []string{"cluster_size=512", "cluster_size=512,compression_type=zstd", "cluster_size=4k,compat=0.10"} {
		qemuImg(f, "convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
		qemuImg(f, "snapshot", "-c", "s", path)
		b, err := os.ReadFile(path)
		require.NoError(f, err)
		list = append(list, b)
	}
	return list
}

// FuzzImage opens an image that somebody spoiled, reads, writes and discards
// in it, and closes it. It may refuse anything; it may not panic, hang, or take
// memory or space without bounds. Each four bytes of spoil put one byte somewhere.
func FuzzImage(f *testing.F) {
	images := seeds(f)
	for i := range images {
		f.Add(uint8(i), []byte{}, uint64(i))
		f.Add(uint8(i), []byte{0, 2, 0, 7, 0, 6, 0x10, 0xff}, uint64(i))
	}
	f.Fuzz(func(t *testing.T, which uint8, spoil []byte, seed uint64) {
		host := new(small)
		host.b = append(host.b, images[int(which)%len(images)]...)
		for ; len(spoil) >= 4; spoil = spoil[4:] {
			at := int(spoil[0])<<16 | int(spoil[1])<<8 | int(spoil[2])
			host.b[at%len(host.b)] = spoil[3]
		}
		o := Options{Backing: bytesBacking(make([]byte, 32<<10)), CacheBytes: 1, ReadOnly: seed%5 == 0}
		m, err := Open(host, o)
		if err != nil {
			return
		}
		if h := m.Header(); h.SnapshotCount > 0 {
			_, _, _ = ReadSnapshots(host, h)
		}
		r := rand.New(rand.NewPCG(seed, 0))
		buf := make([]byte, 32<<10)
		for range 24 {
			limit := m.Size() / sector
			if limit == 0 {
				break
			}
			// Mostly where the seeds have something.
			span := limit
			if r.IntN(4) > 0 {
				span = min(span, 128)
			}
			at := r.Int64N(span)
			n := 1 + r.Int64N(min(limit-at, int64(len(buf)/sector)))
			off, bufs := at*sector, [][]byte{buf[:n*sector]}
			switch r.IntN(8) {
			case 0, 1:
				_ = m.Preadv(bufs, off)
			case 2, 3, 4:
				_ = m.Pwritev(bufs, off)
			case 5:
				_ = m.Discard(off, n*sector)
			case 6:
				_ = m.WriteZeroes(off, n*sector, r.IntN(2) == 0)
			case 7:
				_ = m.Flush()
			}
			_, _ = m.Map(off, n*sector)
		}
		_ = m.Suspend()
		_ = m.Load()
	})
}
