package qcow2

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// bytesBacking is a backing file in memory.
type bytesBacking []byte

func (b bytesBacking) Size() int64 { return int64(len(b)) }

func (b bytesBacking) Preadv(bufs [][]byte, off int64) (int, error) {
	n := 0
	for _, p := range bufs {
		if int(off)+n+len(p) > len(b) {
			return n, fmt.Errorf("read beyond the backing file")
		}
		n += copy(p, b[int(off)+n:])
	}
	return n, nil
}

func random(seed uint64, n int) []byte {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	b := make([]byte, n)
	_, _ = rand.NewChaCha8(key).Read(b)
	return b
}

func create(t testing.TB, o CreateOptions) *memory {
	t.Helper()
	host := new(memory)
	require.NoError(t, Create(host, o))
	return host
}

func open(t testing.TB, h Host, o Options) *Image {
	t.Helper()
	m, err := Open(h, o)
	require.NoError(t, err)
	return m
}

// save puts an image into a file for qemu-img.
func save(t testing.TB, host *memory) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "a.qcow2")
	require.NoError(t, os.WriteFile(path, host.b, 0o600))
	return path
}

// contents is what QEMU reads from an image.
func contents(t testing.TB, path string) []byte {
	t.Helper()
	raw := path + ".raw"
	qemuImg(t, "convert", "-f", "qcow2", "-O", "raw", path, raw)
	b, err := os.ReadFile(raw)
	require.NoError(t, err)
	return b
}

func readAll(t testing.TB, m *Image) []byte {
	t.Helper()
	b := make([]byte, m.Size())
	require.NoError(t, m.Preadv([][]byte{b}, 0))
	return b
}

// workload drives an image against a model of bytes.
type workload struct {
	m     *Image
	model []byte
	r     *rand.Rand
}

func (w *workload) step() error {
	limit := len(w.model) / sector
	at := w.r.IntN(limit)
	n := 1 + w.r.IntN(min(limit-at, []int{8, 64, 700}[w.r.IntN(3)]))
	off, length := int64(at*sector), n*sector
	switch w.r.IntN(10) {
	case 0, 1, 2, 3, 4:
		data := random(w.r.Uint64(), length)
		cut := w.r.IntN(length)
		copy(w.model[off:], data)
		return w.m.Pwritev([][]byte{data[:cut], nil, data[cut:]}, off)
	case 5:
		clear(w.model[off:][:length])
		return w.m.WriteZeroes(off, int64(length), w.r.IntN(2) == 0)
	case 6:
		// What was discarded is unknown until it is written.
		if err := w.m.Discard(off, int64(length)); err != nil {
			return err
		}
		return w.m.Preadv([][]byte{w.model[off:][:length]}, off)
	case 7:
		return w.m.Flush()
	default:
		got := make([]byte, length)
		if err := w.m.Preadv([][]byte{got[:length/2], got[length/2:]}, off); err != nil {
			return err
		}
		if !bytes.Equal(got, w.model[off:][:length]) {
			return fmt.Errorf("wrong data at %d+%d", off, length)
		}
		return nil
	}
}

// variants are images of every shape that the format has.
var variants = []struct {
	name    string
	o       CreateOptions
	backing int // bytes of backing file, 0 for none
	cache   int
}{
	{"default", CreateOptions{}, 0, 0},
	{"version 2", CreateOptions{Version: 2}, 0, 0},
	{"tiny clusters", CreateOptions{ClusterBits: 9}, 0, 0},
	{"tiny clusters, tiny cache", CreateOptions{ClusterBits: 9}, 0, 1},
	{"4 KiB, 1 bit", CreateOptions{ClusterBits: 12, RefcountBits: 1}, 0, 0},
	{"512, 64 bits, growing table", CreateOptions{ClusterBits: 9, RefcountBits: 64}, 0, 1},
	{"2 MiB", CreateOptions{ClusterBits: 21}, 0, 0},
	{"zstd", CreateOptions{Compression: Zstd}, 0, 0},
	{"backing", CreateOptions{ClusterBits: 12}, testSize, 0},
	{"short backing", CreateOptions{ClusterBits: 14}, testSize / 2, 0},
	{"version 2 backing", CreateOptions{Version: 2, ClusterBits: 12}, testSize/2 + 512, 0},
}

const testSize = 3<<20 + 1536 // ends in the middle of a cluster

func TestAgainstModel(t *testing.T) {
	for i, v := range variants {
		t.Run(v.name, func(t *testing.T) {
			dir := t.TempDir()
			o, opts := v.o, Options{CacheBytes: v.cache}
			o.Size = testSize
			model := make([]byte, testSize)
			if v.backing > 0 {
				base := random(7, v.backing)
				copy(model, base)
				o.Backing, o.BackingFormat = filepath.Join(dir, "base.raw"), "raw"
				require.NoError(t, os.WriteFile(o.Backing, base, 0o600))
				opts.Backing = bytesBacking(base)
			}
			host := create(t, o)
			w := &workload{m: open(t, host, opts), model: model, r: rand.New(rand.NewPCG(uint64(i), 1))}
			for n := range 250 {
				require.NoError(t, w.step(), "step %d", n)
				if n%97 == 0 { // as a migration does
					require.NoError(t, w.m.Suspend())
					require.ErrorIs(t, w.m.Pwritev([][]byte{make([]byte, 512)}, 0), errNotWritable)
					require.True(t, bytes.Equal(model, readAll(t, w.m)))
					require.NoError(t, w.m.Load())
				}
			}
			require.True(t, bytes.Equal(model, readAll(t, w.m)))
			require.NoError(t, w.m.Suspend())
			require.True(t, bytes.Equal(model, readAll(t, open(t, host, Options{ReadOnly: true, Backing: opts.Backing}))))
			path := save(t, host)
			qemuImg(t, "check", "-f", "qcow2", path)
			require.True(t, bytes.Equal(model, contents(t, path)))
		})
	}
}

func TestRefcountWidths(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		order := rapid.Uint32Range(0, 6).Draw(rt, "order")
		b := make([]byte, 64)
		model := make([]uint64, len(b)*8>>order)
		for range 50 {
			i := rapid.IntRange(0, len(model)-1).Draw(rt, "i")
			model[i] = rapid.Uint64Max(maxRefcount(order)).Draw(rt, "n")
			setRefcount(b, order, uint64(i), model[i])
		}
		for i, want := range model {
			require.Equal(rt, want, refcount(b, order, uint64(i)))
		}
	})
}

// TestReadsQEMU has QEMU write images of every kind.
func TestReadsQEMU(t *testing.T) {
	data := random(3, 1<<20)
	clear(data[100<<10 : 300<<10])
	copy(data[500<<10:], bytes.Repeat([]byte("compressible "), 10000))
	raw := filepath.Join(t.TempDir(), "a.raw")
	require.NoError(t, os.WriteFile(raw, data, 0o600))
	for _, args := range [][]string{
		{"-o", "compat=0.10"}, {"-o", "cluster_size=512"}, {"-c"}, {"-c", "-o", "cluster_size=2M"}, {"-c", "-o", "cluster_size=512"},
		{"-c", "-o", "compression_type=zstd"}, {"-c", "-o", "compression_type=zstd,cluster_size=4k"}, {"-o", "preallocation=metadata"},
		{"-S", "0"},
	} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "a.qcow2")
			qemuImg(t, append(append([]string{"convert", "-f", "raw", "-O", "qcow2"}, args...), raw, path)...)
			b, err := os.ReadFile(path)
			require.NoError(t, err)
			host := &memory{b: b}
			require.True(t, bytes.Equal(data, readAll(t, open(t, host, Options{ReadOnly: true}))))
			// Writing over it frees what it had.
			w := &workload{m: open(t, host, Options{}), model: bytes.Clone(data), r: rand.New(rand.NewPCG(1, 1))}
			for range 100 {
				require.NoError(t, w.step())
			}
			require.NoError(t, w.m.Suspend())
			path = save(t, host)
			qemuImg(t, "check", "-f", "qcow2", path)
			require.True(t, bytes.Equal(w.model, contents(t, path)))
		})
	}
}

// TestSnapshotsStay has internal snapshots share clusters with the disk.
func TestSnapshotsStay(t *testing.T) {
	data := random(4, 1<<20)
	raw, path := filepath.Join(t.TempDir(), "a.raw"), filepath.Join(t.TempDir(), "a.qcow2")
	require.NoError(t, os.WriteFile(raw, data, 0o600))
	for _, options := range []string{"cluster_size=4k", "compat=0.10"} {
		qemuImg(t, "convert", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
		qemuImg(t, "snapshot", "-c", "before", path)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		host := &memory{b: b}
		w := &workload{m: open(t, host, Options{}), model: bytes.Clone(data), r: rand.New(rand.NewPCG(2, 1))}
		list, _, err := ReadSnapshots(host, w.m.Header())
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.Equal(t, "before", list[0].Name)
		for range 100 {
			require.NoError(t, w.step())
		}
		require.NoError(t, w.m.Suspend())
		path := save(t, host)
		qemuImg(t, "check", "-f", "qcow2", path)
		require.True(t, bytes.Equal(w.model, contents(t, path)))
		qemuImg(t, "snapshot", "-a", "before", path)
		qemuImg(t, "check", "-f", "qcow2", path)
		require.True(t, bytes.Equal(data, contents(t, path)))
	}
}

// TestFreedIsUsedAgain keeps a file from growing for ever.
func TestFreedIsUsedAgain(t *testing.T) {
	host := create(t, CreateOptions{Size: 1 << 20, ClusterBits: 12})
	m := open(t, host, Options{})
	for range 20 {
		require.NoError(t, m.Pwritev([][]byte{random(1, 1<<20)}, 0))
		require.NoError(t, m.Flush())
		require.NoError(t, m.Discard(0, 1<<20))
		require.NoError(t, m.Flush())
	}
	require.Less(t, len(host.b), 3<<20/2)
	require.NoError(t, m.Suspend())
	qemuImg(t, "check", save(t, host))
}

// TestManyWriters has goroutines allocate in the same clusters at once.
func TestManyWriters(t *testing.T) {
	base := random(9, 1<<20)
	for _, backing := range []Backing{nil, bytesBacking(base)} {
		o := CreateOptions{Size: 1 << 20, ClusterBits: 14}
		if backing != nil {
			o.Backing, o.BackingFormat = "base", "raw"
		}
		host := create(t, o)
		m := open(t, host, Options{Backing: backing, CacheBytes: 1})
		const writers = 8
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				// Each has every eighth sector.
				r := rand.New(rand.NewPCG(uint64(w), 3))
				for range 300 {
					at := int64(r.IntN(1<<20/sector/writers)*writers+w) * sector
					var err error
					switch r.IntN(8) {
					case 0:
						err = m.WriteZeroes(at, sector, true)
					case 1:
						err = m.Flush()
					default:
						err = m.Pwritev([][]byte{bytes.Repeat([]byte{byte(w)}, sector)}, at)
					}
					if err != nil {
						t.Error(err)
					}
				}
				for s := w; s < 1<<20/sector; s += writers {
					if err := m.Pwritev([][]byte{bytes.Repeat([]byte{byte(s / writers)}, sector)}, int64(s)*sector); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
		got := readAll(t, m)
		for s := range len(got) / sector {
			require.Equal(t, bytes.Repeat([]byte{byte(s / writers)}, sector), got[s*sector:][:sector], "sector %d", s)
		}
		require.NoError(t, m.Suspend())
		if backing == nil {
			qemuImg(t, "check", save(t, host))
		}
	}
}

func TestMap(t *testing.T) {
	host := create(t, CreateOptions{Size: 1 << 20, ClusterBits: 12})
	m := open(t, host, Options{})
	require.NoError(t, m.Pwritev([][]byte{make([]byte, 8192)}, 4096))
	require.NoError(t, m.WriteZeroes(8192, 4096, false))
	var got []Kind
	for off := int64(0); off < m.Size(); {
		e, err := m.Map(off, m.Size()-off)
		require.NoError(t, err)
		got = append(got, e.Kind)
		off += e.Len
	}
	require.Equal(t, []Kind{Unallocated, Normal, Zero, Unallocated}, got)
	_, err := m.Map(1<<20, 1)
	require.Error(t, err)
}

func TestCreateRefuses(t *testing.T) {
	for says, o := range map[string]CreateOptions{
		"multiple of 512":   {Size: 1},
		"version 4":         {Version: 4},
		"2^8":               {ClusterBits: 8},
		"2^22":              {ClusterBits: 22},
		"3 bits":            {RefcountBits: 3},
		"128 bits":          {RefcountBits: 128},
		"with zstd":         {Version: 2, Compression: Zstd},
		"have 16 there":     {Version: 2, RefcountBits: 8},
		"say the format":    {Backing: "x"},
		"use larger":        {Size: 1 << 50, ClusterBits: 9},
		"compression type ": {Compression: 7},
	} {
		require.ErrorContains(t, Create(new(memory), o), says)
	}
}

func TestOpenRefuses(t *testing.T) {
	host := create(t, CreateOptions{Size: 1 << 20})
	host.b[79] = IncompatDirty
	_, err := Open(host, Options{})
	require.ErrorIs(t, err, ErrDirty)
	require.ErrorContains(t, err, "image check --repair")
	_, err = Open(host, Options{ReadOnly: true})
	require.NoError(t, err)
	host.b[79] = IncompatCorrupt
	_, err = Open(host, Options{})
	require.ErrorIs(t, err, ErrCorrupt)
	_, err = Open(host, Options{ReadOnly: true})
	require.NoError(t, err)
	host.b[79] = 0
	host.b[95] = 1 // a bitmap that would no longer be true
	_, err = Open(host, Options{})
	require.NoError(t, err)
	require.Zero(t, host.b[95])
}

func TestReadAllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("sync.Pool drops items on purpose under the race detector")
	}
	m := open(t, create(t, CreateOptions{Size: 1 << 20, ClusterBits: 12}), Options{})
	require.NoError(t, m.Pwritev([][]byte{make([]byte, 65536)}, 0))
	bufs := [][]byte{make([]byte, 4096), make([]byte, 8192)}
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if m.Preadv(bufs, 512) != nil || m.Pwritev(bufs, 512) != nil {
			t.Fail()
		}
	}))
}

func TestQEMUImgIsThere(t *testing.T) {
	_, err := exec.LookPath("qemu-img")
	require.NoError(t, err, "the tests need it: apt-get install qemu-utils")
}
