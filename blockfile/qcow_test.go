package blockfile

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/blockfile/qcow2"
)

// createQcow makes an image and writes fill into it.
func createQcow(t testing.TB, path string, o qcow2.CreateOptions, fill []byte) {
	t.Helper()
	h, err := CreateHost(path, Options{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(h, o))
	require.NoError(t, h.Close())
	if fill == nil {
		return
	}
	f, err := Open(path, Options{Backing: AnyBacking, Format: FormatQcow2})
	require.NoError(t, err)
	_, err = f.Pwritev([][]byte{fill}, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

// TestConformanceQcow2 puts images with and without a backing file, and
// overlays, through the suite.
func TestConformanceQcow2(t *testing.T) {
	makers := map[string]func(t *testing.T, fill []byte, o *Options) string{
		"plain": func(t *testing.T, fill []byte, o *Options) string {
			path := filepath.Join(t.TempDir(), "a.qcow2")
			createQcow(t, path, qcow2.CreateOptions{Size: int64(len(fill))}, fill)
			return path
		},
		"small clusters over raw": func(t *testing.T, fill []byte, o *Options) string {
			path := filepath.Join(t.TempDir(), "a.qcow2")
			createQcow(t, path, qcow2.CreateOptions{Size: int64(len(fill)), ClusterBits: 10, Backing: image(t, fill), BackingFormat: "raw"}, nil)
			return path
		},
		"version 2 over qcow2": func(t *testing.T, fill []byte, o *Options) string {
			dir := t.TempDir()
			createQcow(t, filepath.Join(dir, "b.qcow2"), qcow2.CreateOptions{Size: int64(len(fill))}, fill)
			path := filepath.Join(dir, "a.qcow2")
			createQcow(t, path, qcow2.CreateOptions{Size: int64(len(fill)), Version: 2, Backing: "b.qcow2", BackingFormat: "qcow2"}, nil)
			return path
		},
		"overlay": func(t *testing.T, fill []byte, o *Options) string {
			if !o.ReadOnly {
				var err error
				o.Overlay, err = NewOverlay()
				require.NoError(t, err)
				t.Cleanup(func() { require.NoError(t, o.Overlay.Close()) })
			}
			o.Format = FormatRaw
			return image(t, fill)
		},
	}
	all := []Cache{CacheWriteback, CacheWritethrough, CacheNone}
	caches := map[string][]Cache{"plain": all, "small clusters over raw": all[1:], "version 2 over qcow2": all[:1], "overlay": all[:1]}
	for name, path := range makers {
		for _, cache := range caches[name] {
			t.Run(name+" "+cache.String(), func(t *testing.T) {
				conformance(t, func(t *testing.T, fill []byte, o Options) File {
					o.Cache, o.Format = cache, FormatQcow2
					p := path(t, fill, &o)
					if o.Overlay != nil && o.NoLock {
						o.NoLock = false // its lock is not a migration's
						f, err := Open(p, o)
						require.NoError(t, err)
						require.NoError(t, f.Unlock())
						t.Cleanup(func() { require.NoError(t, f.Close()) })
						return f
					}
					o.Backing = AnyBacking
					f, err := Open(p, o)
					if cache == CacheNone && errors.Is(err, unix.EINVAL) {
						t.Skip("the temporary folder's file system has no O_DIRECT")
					}
					require.NoError(t, err)
					t.Cleanup(func() {
						require.NoError(t, f.Close())
						if o.Format == FormatQcow2 {
							check(t, p)
						}
					})
					return f
				})
			})
		}
	}
}

// check has QEMU judge an image.
func check(t testing.TB, path string) {
	t.Helper()
	out, err := exec.Command("qemu-img", "check", "-f", "qcow2", path).CombinedOutput()
	require.NoError(t, err, string(out))
}

// TestRawStaysRaw has a guest write a qcow2 header onto its raw disk, naming a
// file of the host as its backing file.
func TestRawStaysRaw(t *testing.T) {
	secret := image(t, bytes.Repeat([]byte("secret!!"), 8192))
	h := qcow2.Header{Version: 3, ClusterBits: 16, Size: 65536, L1Entries: 1, L1Offset: 3 << 16,
		RefcountOffset: 1 << 16, RefcountClusters: 1, RefcountOrder: 4, Backing: secret, BackingFormat: "raw"}
	evil, err := h.Encode()
	require.NoError(t, err)
	disk := make([]byte, testSize)
	copy(disk, evil)
	path := image(t, disk)
	got := make([]byte, testSize)
	for range 2 {
		f, err := Open(path, Options{})
		require.NoError(t, err)
		_, err = f.Preadv([][]byte{got}, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(disk, got))
		require.NoError(t, f.Close())
	}
	// Nor does it become one as a backing file: either it is said to be raw,
	over := filepath.Join(t.TempDir(), "a.qcow2")
	createQcow(t, over, qcow2.CreateOptions{Size: testSize, Backing: path, BackingFormat: "raw"}, nil)
	f, err := Open(over, Options{Backing: AnyBacking, Format: FormatQcow2})
	require.NoError(t, err)
	_, err = f.Preadv([][]byte{got}, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(disk, got))
	require.NoError(t, f.Close())
	// or nothing is said, which is refused.
	host, err := OpenHost(over, Options{})
	require.NoError(t, err)
	head, err := qcow2.ReadHeader(host)
	require.NoError(t, err)
	head.BackingFormat = ""
	b, err := head.Encode()
	require.NoError(t, err)
	require.NoError(t, host.Pwritev([][]byte{append(b, make([]byte, 64)...)}, 0))
	require.NoError(t, host.Close())
	_, err = Open(over, Options{Backing: AnyBacking, Format: FormatQcow2})
	require.ErrorContains(t, err, "--header-only --backing")
	require.NotContains(t, err.Error(), "secret")
}

// TestChainTablesAreBounded: images with the largest L1 tables that the format
// knows open as long as they fit one bound, which all of a chain share.
func TestChainTablesAreBounded(t *testing.T) {
	dir := t.TempDir()
	var paths []string
	for i := range 3 {
		paths = append(paths, filepath.Join(dir, fmt.Sprint(i)))
		o := qcow2.CreateOptions{Size: 128 << 30, ClusterBits: 9}
		if i > 0 {
			o.Backing, o.BackingFormat = paths[i-1], "qcow2"
		}
		createQcow(t, paths[i], o, nil)
	}
	for _, o := range []Options{{ReadOnly: true}, {ReadOnly: true, NoLock: true}} {
		o.Format = FormatQcow2
		f, err := Open(paths[1], o)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		_, err = Open(paths[2], o)
		require.ErrorContains(t, err, "take 192 MiB of memory, more than the 128 MiB")
		require.ErrorContains(t, err, paths[0])
	}

	// What was judged before the lock cannot be more behind it.
	small := filepath.Join(dir, "small")
	createQcow(t, small, qcow2.CreateOptions{Size: testSize}, nil)
	f, err := Open(small, Options{Backing: AnyBacking, Format: FormatQcow2, NoLock: true})
	require.NoError(t, err)
	defer f.Close()
	host, err := OpenHost(small, Options{NoLock: true, ReadOnly: true})
	require.NoError(t, err)
	h, err := qcow2.ReadHeader(host)
	require.NoError(t, err)
	require.NoError(t, host.Close())
	raw, err := os.OpenFile(small, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = raw.WriteAt(binary.BigEndian.AppendUint32(nil, h.L1Entries+1), 36)
	require.NoError(t, err)
	require.NoError(t, raw.Close())
	require.ErrorContains(t, f.Lock(), "when it was opened first")
}

func TestBackingRefused(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	mk := func(name, backing, format string) string {
		createQcow(t, at(name), qcow2.CreateOptions{Size: testSize, Backing: backing, BackingFormat: format}, nil)
		return at(name)
	}
	for i := range MaxChain + 1 {
		mk(fmt.Sprintf("chain%d", i), fmt.Sprintf("chain%d", i+1), "qcow2")
	}
	for path, says := range map[string]string{
		mk("missing", "b.raw", "raw"):                 `backing file "` + at("b.raw") + `" missing`,
		mk("itself", "itself", "qcow2"):               "circle",
		mk("a", "b", "qcow2"):                         "circle",
		mk("b", "a", "qcow2"):                         "circle",
		mk("deep", "chain0", "qcow2"):                 "more than 32",
		mk("vmdk", "x", "vmdk"):                       `"vmdk": unknown`,
		mk("protocol", "nbd://host/disk", "raw"):      "only files",
		mk("json", `json:{"driver":"raw"}`, "raw"):    "only files",
		mk("folder", "/", "raw"):                      "does not lie in the folder of",
		mk("not really", "../"+at("x"), "qcow2"):      "missing",
		mk("lies", filepath.Base(image(t, nil)), "x"): `"x": unknown`,
	} {
		f, err := Open(path, Options{Format: FormatQcow2, ReadOnly: true})
		if err == nil {
			f.Close()
		}
		require.ErrorContains(t, err, says, path)
		require.ErrorContains(t, err, path)
	}
	// Where a stranger named the image, the caller judges its backing files.
	base := image(t, make([]byte, testSize))
	over := mk("over", base, "raw")
	_, err := Open(over, Options{Format: FormatQcow2, Backing: func(image, path string) (string, Opener, error) {
		require.Equal(t, over, image)
		require.Equal(t, base, path)
		return "", nil, errors.New("not allowed here")
	}})
	require.ErrorContains(t, err, "not allowed here")
	// And opens them; the image itself is not its to open.
	judged := mk("judged", over, "qcow2")
	var opened []string
	judge := func(_, path string) (string, Opener, error) {
		return path, func(path string, flags int) (int, error) {
			opened = append(opened, path)
			return openRetry(path, flags)
		}, nil
	}
	f, err := Open(judged, Options{Format: FormatQcow2, Backing: judge})
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.Equal(t, []string{over, base}, opened)
}

// TestNotQcow2: only what does not begin as a qcow2 image does may be a raw one.
func TestNotQcow2(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	createQcow(t, path, qcow2.CreateOptions{Size: testSize}, nil)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		damage func(b []byte) []byte
		raw    bool
	}{
		"zeroes":      {func(b []byte) []byte { return make([]byte, len(b)) }, true},
		"first byte":  {func(b []byte) []byte { b[0]++; return b }, true},
		"empty":       {func([]byte) []byte { return nil }, true},
		"L1 table":    {func(b []byte) []byte { b[46]++; return b }, false},
		"cut off":     {func(b []byte) []byte { return b[:71] }, false},
		"header size": {func(b []byte) []byte { b[103]++; return b }, false},
	} {
		require.NoError(t, os.WriteFile(path, c.damage(bytes.Clone(good)), 0o600))
		_, err := Open(path, Options{Backing: AnyBacking, Format: FormatQcow2})
		require.ErrorIs(t, err, qcow2.ErrFormat, name)
		if c.raw {
			require.ErrorContains(t, err, "say that its format is raw", name)
		} else {
			require.NotContains(t, err.Error(), "format is raw", name)
		}
	}
}

// TestQcow2ChangesHands has two openers take turns, as a migration does, with
// the backing file shared.
func TestQcow2ChangesHands(t *testing.T) {
	base := image(t, random(1, testSize))
	path := filepath.Join(t.TempDir(), "a.qcow2")
	createQcow(t, path, qcow2.CreateOptions{Size: testSize, ClusterBits: 12, Backing: base, BackingFormat: "raw"}, nil)
	a, err := Open(path, Options{Backing: AnyBacking, Format: FormatQcow2})
	require.NoError(t, err)
	defer a.Close()
	_, err = Open(path, Options{Backing: AnyBacking, Format: FormatQcow2})
	require.ErrorIs(t, err, ErrLocked)
	b, err := Open(path, Options{Backing: AnyBacking, Format: FormatQcow2, NoLock: true})
	require.NoError(t, err)
	defer b.Close()
	for i := range 10 {
		held, err := b.LockedElsewhere()
		require.NoError(t, err)
		require.True(t, held)
		require.ErrorIs(t, b.Lock(), ErrLocked)
		data := random(uint64(i), 12345*512/512&^511)
		_, err = a.Pwritev([][]byte{data}, int64(i)*8192)
		require.NoError(t, err)
		stale := make([]byte, len(data))
		_, err = b.Preadv([][]byte{stale}, int64(i)*8192) // fills caches that must not be believed
		require.NoError(t, err)
		require.NoError(t, a.Flush())
		require.NoError(t, a.Unlock())
		_, err = a.Pwritev([][]byte{data}, 0)
		require.ErrorIs(t, err, ErrNotLocked)
		require.NoError(t, b.Lock())
		got := make([]byte, len(data))
		_, err = b.Preadv([][]byte{got}, int64(i)*8192)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, got))
		a, b = b, a
	}
	other, err := Open(base, Options{})
	require.ErrorIs(t, err, ErrLocked, "%v", other)
	require.NoError(t, a.Close())
	require.NoError(t, b.Close())
	check(t, path)
}

// TestQcow2Surroundings changes what must stay the same between open and Lock.
func TestQcow2Surroundings(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.qcow2")
	createQcow(t, path, qcow2.CreateOptions{Size: testSize}, nil)
	f, err := Open(path, Options{Backing: AnyBacking, Format: FormatQcow2, NoLock: true})
	require.NoError(t, err)
	defer f.Close()
	out, err := exec.Command("qemu-img", "resize", path, "2M").CombinedOutput()
	require.NoError(t, err, string(out))
	require.ErrorContains(t, f.Lock(), "had 1048576 bytes")
	held, err := f.LockedElsewhere()
	require.NoError(t, err)
	require.False(t, held)
	g, err := Open(path, Options{Backing: AnyBacking, Format: FormatQcow2})
	require.NoError(t, err, "the lock was given up")
	require.NoError(t, g.Close())
}

func TestOverlayOutlivesTheDisk(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	fill := random(5, testSize)
	path := filepath.Join(t.TempDir(), "a.qcow2")
	createQcow(t, path, qcow2.CreateOptions{Size: testSize}, fill)
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	v, err := NewOverlay()
	require.NoError(t, err)
	one := random(6, 4096)
	for i := range 2 {
		f, err := Open(path, Options{Backing: AnyBacking, Format: FormatQcow2, Overlay: v})
		require.NoError(t, err)
		if i == 0 {
			_, err = f.Pwritev([][]byte{one}, 8192)
			require.NoError(t, err)
		}
		got := make([]byte, testSize)
		_, err = f.Preadv([][]byte{got}, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(one, got[8192:][:4096]), "as a guest that resets finds it")
		require.True(t, bytes.Equal(fill[:8192], got[:8192]))
		require.NoError(t, f.Close())
	}
	require.NoError(t, v.Close())
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	require.True(t, bytes.Equal(before, after))
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	v, err = NewOverlay()
	require.NoError(t, err)
	defer v.Close()
	_, err = Open(path, Options{Backing: AnyBacking, Format: FormatQcow2, ReadOnly: true, Overlay: v})
	require.ErrorContains(t, err, "give one")
}

// TestTryQcow2 does at once what the caches have, and leaves the rest.
func TestTryQcow2(t *testing.T) {
	base := random(1, testSize)
	path := filepath.Join(t.TempDir(), "a.qcow2")
	createQcow(t, path, qcow2.CreateOptions{Size: testSize, ClusterBits: 12, Backing: image(t, base), BackingFormat: "raw"}, nil)
	f, err := Open(path, Options{Backing: AnyBacking, Format: FormatQcow2})
	require.NoError(t, err)
	defer f.Close()
	q := f.(*qcow)
	data := random(2, 16384)
	// Nothing is there to be written in place.
	done, err := q.TryPwritev([][]byte{data}, 8192)
	require.NoError(t, err)
	require.False(t, done)
	_, err = q.Pwritev([][]byte{data}, 8192)
	require.NoError(t, err)
	require.NoError(t, q.WriteZeroes(40960, 4096, true))
	copy(base[8192:], data)
	clear(base[40960:][:4096])
	got := make([]byte, 65536)
	_, err = q.Preadv([][]byte{got}, 0)
	require.NoError(t, err)
	clear(got)
	done, err = q.TryPreadv([][]byte{got[:512], nil, got[512:]}, 0) // three kinds of cluster
	require.NoError(t, err)
	if q.host.r.noNowait.Load() {
		t.Log("this file system has no RWF_NOWAIT")
	} else {
		require.True(t, done)
		require.True(t, bytes.Equal(base[:65536], got))
	}
	data = random(3, 4096)
	done, err = q.TryPwritev([][]byte{data[:512], data[512:]}, 8192+512)
	require.NoError(t, err)
	require.True(t, done)
	_, err = q.Preadv([][]byte{got[:4096]}, 8192+512)
	require.NoError(t, err)
	require.True(t, bytes.Equal(data, got[:4096]))
	// Freed, it must not be written in place any more.
	require.NoError(t, q.Discard(8192, 16384))
	done, err = q.TryPwritev([][]byte{data}, 8192)
	require.NoError(t, err)
	require.False(t, done)
	for _, off := range []int64{-512, 1, testSize} {
		_, err = q.TryPreadv([][]byte{data}, off)
		require.ErrorIs(t, err, ErrRange)
		_, err = q.TryPwritev([][]byte{data}, off)
		require.ErrorIs(t, err, ErrRange)
	}
	require.NoError(t, q.Unlock())
	_, err = q.TryPwritev([][]byte{data}, 0)
	require.ErrorIs(t, err, ErrNotLocked)
}

// BenchmarkFormats reads 4 KiB at random from allocated clusters in the page
// cache, one request at a time and from several goroutines.
func BenchmarkFormats(b *testing.B) {
	const size = 256 << 20
	raw, path := filepath.Join(b.TempDir(), "a.raw"), filepath.Join(b.TempDir(), "a.qcow2")
	require.NoError(b, os.WriteFile(raw, random(1, size), 0o600))
	out, err := exec.Command("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, path).CombinedOutput()
	require.NoError(b, err, string(out))
	for _, c := range []struct {
		path   string
		format Format
	}{{raw, FormatRaw}, {path, FormatQcow2}} {
		f, err := Open(c.path, Options{Format: c.format})
		require.NoError(b, err)
		t := f.(Trier)
		read := func(b *testing.B, op func(bufs [][]byte, off int64) bool) {
			b.ReportAllocs()
			bufs := [][]byte{make([]byte, 4096)}
			x := uint32(1)
			for b.Loop() {
				x = x*1664525 + 1013904223
				if !op(bufs, int64(x%(size/4096))*4096) {
					b.Fatal("not read")
				}
			}
		}
		b.Run(c.format.String()+" read", func(b *testing.B) {
			read(b, func(bufs [][]byte, off int64) bool { _, err := f.Preadv(bufs, off); return err == nil })
		})
		b.Run(c.format.String()+" try", func(b *testing.B) {
			read(b, func(bufs [][]byte, off int64) bool { done, err := t.TryPreadv(bufs, off); return done && err == nil })
		})
		b.Run(c.format.String()+" parallel", func(b *testing.B) {
			b.ReportAllocs()
			b.RunParallel(func(p *testing.PB) {
				bufs := [][]byte{make([]byte, 4096)}
				for x := uint32(1); p.Next(); {
					x = x*1664525 + 1013904223
					if _, err := f.Preadv(bufs, int64(x%(size/4096))*4096); err != nil {
						b.Error(err)
					}
				}
			})
		})
		require.NoError(b, f.Close())
	}
}
