package tool

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

// disk is 9 MiB and a bit: noise, text, zeroes and holes.
func disk(seed uint64) []byte {
	r := rand.New(rand.NewPCG(seed, 1))
	b := make([]byte, 9<<20+512)
	for off := 0; off < len(b); off += 100_000 {
		part := b[off:min(off+100_000, len(b))]
		switch r.IntN(4) {
		case 0:
			for i := range part {
				part[i] = byte(r.Uint32())
			}
		case 1:
			for i := range part {
				part[i] = "godwit "[i%7]
			}
		}
	}
	return b
}

func rawImage(t *testing.T, content []byte) string {
	path := filepath.Join(t.TempDir(), "disk.img")
	f, err := os.Create(path)
	require.NoError(t, err)
	require.NoError(t, f.Truncate(int64(len(content))))
	for off := 0; off < len(content); off += 4096 {
		if part := content[off:min(off+4096, len(content))]; !isZero(part) {
			_, err := f.WriteAt(part, int64(off))
			require.NoError(t, err)
		}
	}
	require.NoError(t, f.Close())
	return path
}

func contents(t *testing.T, path, format string) []byte {
	d, err := openBacking(path, format, blockfile.AnyBacking)
	require.NoError(t, err)
	defer d.Close()
	b := make([]byte, d.Size())
	_, err = d.Preadv([][]byte{b}, 0)
	require.NoError(t, err)
	return b
}

func convert(t *testing.T, c Conversion) *Converted {
	t.Helper()
	done, err := Convert(context.Background(), c)
	require.NoError(t, err)
	left, err := filepath.Glob(filepath.Join(filepath.Dir(c.Target.Path), ".*godwit*"))
	require.NoError(t, err)
	require.Empty(t, left, "nothing is left behind")
	return done
}

func TestConvert(t *testing.T) {
	want := disk(1)
	src := rawImage(t, want)
	for name, n := range map[string]NewImage{
		"64K zlib":  {Format: Qcow2},
		"512 zlib":  {Format: Qcow2, ClusterBits: 9},
		"2M zstd":   {Format: Qcow2, ClusterBits: 21, Compression: qcow2.Zstd},
		"v2":        {Format: Qcow2, Version: 2, ClusterBits: 12},
		"1 bit":     {Format: Qcow2, RefcountBits: 1},
		"raw":       {Format: Raw},
		"1 bit 4K ": {Format: Qcow2, RefcountBits: 1, ClusterBits: 12, Compression: qcow2.Zstd},
	} {
		for _, compress := range []bool{false, true} {
			if compress && n.Format == Raw {
				continue
			}
			n.Path = filepath.Join(t.TempDir(), "new.img")
			var seen int64
			done := convert(t, Conversion{Source: src, SourceFormat: Raw, Target: n, Compress: compress, Workers: 3,
				Progress: func(done, total int64) {
					require.Greater(t, done, seen)
					require.EqualValues(t, len(want), total)
					seen = done
				}})
			require.True(t, bytes.Equal(want, contents(t, n.Path, n.Format)), name)
			require.EqualValues(t, len(want), done.VirtualSizeBytes)
			if n.ClusterBits < 20 {
				require.Positive(t, done.SkippedBytes, name)
			}
			require.Equal(t, compress, done.CompressedBytes > 0, name)
			if n.Format == Qcow2 {
				c, err := Check(context.Background(), n.Path, RepairNothing, 5)
				require.NoError(t, err)
				require.Equal(t, "clean", c.Status, "%s: %v", name, c.Findings)
				require.Equal(t, compress, c.CompressedClusters > 0)
			} else {
				i, err := Inspect(n.Path, "", nil)
				require.NoError(t, err)
				require.Less(t, i.DiskSizeBytes, i.FileSizeBytes, "holes stay holes")
			}
		}
	}
}

// Over a backing file only what differs is written, in both directions.
func TestConvertOverABackingFile(t *testing.T) {
	base, want := disk(2), disk(2)
	clear(want[3<<20 : 4<<20])
	copy(want[5<<20:], disk(3)[:1<<20])
	base = base[:8<<20]
	for _, version := range []int{2, 3} {
		src := rawImage(t, want)
		n := NewImage{Path: filepath.Join(filepath.Dir(src), "over.img"), Format: Qcow2, Version: version, Backing: "base.img", BackingFormat: Raw}
		require.NoError(t, os.Rename(rawImage(t, base), filepath.Join(filepath.Dir(src), "base.img")))
		done := convert(t, Conversion{Source: src, SourceFormat: Raw, Target: n})
		require.True(t, bytes.Equal(want, contents(t, n.Path, Qcow2)))
		require.Greater(t, done.SkippedBytes, int64(5<<20))
		require.Positive(t, done.ZeroBytes)
		flat := NewImage{Path: filepath.Join(t.TempDir(), "flat.img"), Format: Raw}
		convert(t, Conversion{Source: n.Path, SourceFormat: Qcow2, Target: flat})
		b, err := os.ReadFile(flat.Path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, b))
	}
}

// A guest that writes a qcow2 header on its raw disk must not get a file of the
// host copied into the new image.
func TestConvertDoesNotBelieveABackingFile(t *testing.T) {
	secret := rawImage(t, disk(4))
	over := filepath.Join(t.TempDir(), "over.img")
	require.NoError(t, Create(NewImage{Path: over, Format: Qcow2, Size: -1, Backing: secret, BackingFormat: Raw}))
	n := NewImage{Path: filepath.Join(t.TempDir(), "new.img"), Format: Raw}
	_, err := Convert(context.Background(), Conversion{Source: over, Target: n})
	require.ErrorIs(t, err, ErrOptions)
	require.ErrorContains(t, err, "--from qcow2")
	require.NoFileExists(t, n.Path)
	convert(t, Conversion{Source: over, SourceFormat: Raw, Target: n})
	b, err := os.ReadFile(n.Path)
	require.NoError(t, err)
	require.Equal(t, "QFI\xfb", string(b[:4]), "the bytes as they are")
}

func TestCancelledConvertLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	n := NewImage{Path: filepath.Join(t.TempDir(), "new.img"), Format: Qcow2}
	_, err := Convert(ctx, Conversion{Source: rawImage(t, disk(5)), SourceFormat: Raw, Target: n, Compress: true, Workers: 1,
		Progress: func(int64, int64) { cancel() }})
	require.ErrorIs(t, err, context.Canceled)
	files, err := os.ReadDir(filepath.Dir(n.Path))
	require.NoError(t, err)
	require.Empty(t, files)
}

func TestNothingIsReplacedUnasked(t *testing.T) {
	path := rawImage(t, disk(6))
	n := NewImage{Path: path, Format: Qcow2, Size: 1 << 20}
	require.ErrorIs(t, Create(n), ErrExists)
	n.Force = true
	user, err := blockfile.Open(path, blockfile.Options{ReadOnly: true})
	require.NoError(t, err)
	require.ErrorIs(t, Create(n), blockfile.ErrLocked, "even for reading")
	require.NoError(t, user.Close())
	require.NoError(t, Create(n))
	i, err := Inspect(path, "", nil)
	require.NoError(t, err)
	require.Equal(t, Qcow2, i.Format)
	n.Path = t.TempDir()
	require.ErrorContains(t, Create(n), "no regular file")
	// Somebody makes the file while we write ours.
	n.Path, n.Force = filepath.Join(t.TempDir(), "late.img"), false
	target, err := newTarget(n.Path, false, nil)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(n.Path, []byte("theirs"), 0o600))
	require.ErrorIs(t, target.finish(), ErrExists)
	require.ErrorIs(t, target.rename(), os.ErrNotExist, "the unnamed file is gone")
}

func TestCreateRefuses(t *testing.T) {
	dir := t.TempDir()
	base := rawImage(t, disk(7))
	for want, n := range map[string]NewImage{
		"not known":            {Format: "vmdk", Size: 512},
		"a raw image has no":   {Format: Raw, Size: 512, ClusterBits: 16},
		"how large":            {Format: Qcow2, Size: -1},
		"multiple of 512":      {Format: Qcow2, Size: 100},
		"say the format":       {Format: Qcow2, Size: 512, Backing: base},
		"and no backing file":  {Format: Qcow2, Size: 512, BackingFormat: Raw},
		"would hide":           {Format: Qcow2, Size: 512, Backing: base, BackingFormat: Raw, Preallocate: true},
		"use larger clusters":  {Format: Qcow2, Size: 1 << 50, ClusterBits: 9},
		"no such file":         {Format: Qcow2, Size: 512, Backing: "absent", BackingFormat: Raw},
		"not a valid qcow2":    {Format: Qcow2, Size: 512, Backing: base, BackingFormat: Qcow2},
		"no such file or dire": {Format: Qcow2, Size: 512, Path: filepath.Join(dir, "absent", "x")},
	} {
		if n.Path == "" {
			n.Path = filepath.Join(dir, "x")
		}
		require.ErrorContains(t, Create(n), want)
	}
	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, files)
}

// An image cannot lie behind itself: not even force replaces what the new one needs.
func TestNoImageReplacesWhatIsBehindIt(t *testing.T) {
	want := disk(3)
	base := rawImage(t, want)
	dir := filepath.Dir(base)
	mid := filepath.Join(dir, "mid.qcow2")
	require.NoError(t, Create(NewImage{Path: mid, Format: Qcow2, Size: -1, Backing: base, BackingFormat: Raw}))
	require.NoError(t, os.Symlink(mid, filepath.Join(dir, "link")))
	for name, n := range map[string]NewImage{
		"itself":   {Path: base, Backing: base, BackingFormat: Raw},
		"relative": {Path: base, Backing: filepath.Base(base), BackingFormat: Raw},
		"a link":   {Path: mid, Backing: "link", BackingFormat: Qcow2},
		"further":  {Path: base, Backing: mid, BackingFormat: Qcow2},
	} {
		n.Format, n.Size, n.Force = Qcow2, -1, true
		require.ErrorIs(t, Create(n), ErrOptions, name)
		_, err := Convert(context.Background(), Conversion{Source: base, SourceFormat: Raw, Target: n})
		require.Error(t, err, name)
	}
	for from, to := range map[string]string{base: base, mid: filepath.Join(dir, "link"), filepath.Join(dir, "link"): base} {
		format := Qcow2
		if from == base {
			format = Raw
		}
		_, err := Convert(context.Background(), Conversion{Source: from, SourceFormat: format, Target: NewImage{Path: to, Format: Qcow2, Force: true}})
		require.ErrorIs(t, err, ErrOptions, "%s to %s", from, to)
		require.ErrorContains(t, err, "what is to be converted")
	}
	require.Equal(t, want, contents(t, base, Raw))
	require.Equal(t, want, contents(t, mid, Qcow2))
}

// What create takes as a backing file's name a machine must take, too, and QEMU:
// a colon makes a protocol of it.
func TestBackingFileIsNoProtocol(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "nbd:base"), make([]byte, 1<<20), 0o600))
	n := NewImage{Path: filepath.Join(dir, "a.qcow2"), Format: Qcow2, Size: -1, Backing: "nbd:base", BackingFormat: Raw}
	require.ErrorContains(t, Create(n), "./nbd:base")
	n.Backing = "./nbd:base"
	require.NoError(t, Create(n))
	require.Len(t, contents(t, n.Path, Qcow2), 1<<20)
}

// TestLongestChain: what Create makes, a machine opens, and Inspect shows it to
// the end.
func TestLongestChain(t *testing.T) {
	for _, base := range []string{Raw, Qcow2} {
		dir := t.TempDir()
		at := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
		require.NoError(t, Create(NewImage{Path: at(0), Format: base, Size: 1 << 20}))
		images, err := 1, error(nil)
		for format := base; err == nil; images++ {
			err = Create(NewImage{Path: at(images), Format: Qcow2, Size: -1, Backing: at(images - 1), BackingFormat: format})
			format = Qcow2
		}
		images--
		require.ErrorIs(t, err, ErrOptions)
		require.ErrorContains(t, err, "33 qcow2 images")
		f, err := blockfile.Open(at(images-1), blockfile.Options{Format: blockfile.FormatQcow2})
		require.NoError(t, err)
		require.NoError(t, f.Close())
		info, err := Inspect(at(images-1), "", nil)
		require.NoError(t, err)
		n := 0
		for ; info != nil; info = info.Backing {
			require.Empty(t, info.BackingError)
			n++
		}
		require.Equal(t, images, n)

		// One that somebody else made longer is shown as far as it can be opened.
		h, err := blockfile.CreateHost(at(images), blockfile.Options{})
		require.NoError(t, err)
		require.NoError(t, qcow2.Create(h, qcow2.CreateOptions{Size: 1 << 20, Backing: at(images - 1), BackingFormat: Qcow2}))
		require.NoError(t, h.Close())
		_, err = blockfile.Open(at(images), blockfile.Options{Format: blockfile.FormatQcow2})
		require.ErrorContains(t, err, "more than 32")
		info, err = Inspect(at(images), "", nil)
		require.NoError(t, err)
		for info.Backing != nil {
			info = info.Backing
		}
		require.Contains(t, info.BackingError, "more than 32")
	}
}

// TestBrokenChain: nothing is put above a chain that no machine would open,
// wherever it breaks.
func TestBrokenChain(t *testing.T) {
	dir := t.TempDir()
	at := func(i int) string { return filepath.Join(dir, fmt.Sprint(i)) }
	require.NoError(t, Create(NewImage{Path: at(0), Format: Raw, Size: 1 << 20}))
	for i, format := range []string{Raw, Qcow2, Qcow2} {
		require.NoError(t, Create(NewImage{Path: at(i + 1), Format: Qcow2, Size: -1, Backing: at(i), BackingFormat: format}))
	}
	require.NoError(t, os.Remove(at(0)))
	for i := 1; i <= 3; i++ {
		err := Create(NewImage{Path: at(4), Format: Qcow2, Size: -1, Backing: at(i), BackingFormat: Qcow2})
		require.ErrorContains(t, err, fmt.Sprintf("backing file of %q", at(1)))
		require.ErrorContains(t, err, "no such file")
		require.NoFileExists(t, at(4))
	}
}

func TestInspect(t *testing.T) {
	base := rawImage(t, disk(8))
	dir := filepath.Dir(base)
	over := filepath.Join(dir, "over.img")
	require.NoError(t, Create(NewImage{Path: over, Format: Qcow2, Size: -1, Backing: "disk.img", BackingFormat: Raw, Version: 2}))
	user, err := blockfile.Open(over, blockfile.Options{Format: blockfile.FormatQcow2})
	require.NoError(t, err)
	i, err := Inspect(over, "", blockfile.AnyBacking)
	require.NoError(t, err)
	require.True(t, i.InUse && i.InUseForWriting)
	require.Equal(t, "magic", i.FormatFrom)
	require.Equal(t, Qcow2Info{Version: 2, ClusterSizeBytes: 64 << 10, RefcountBits: 16, Compression: "zlib", BackingFile: "disk.img", BackingFormat: "raw"}, *i.Qcow2Info)
	require.Equal(t, base, i.Backing.Path)
	require.True(t, i.Backing.InUse)
	require.False(t, i.Backing.InUseForWriting)
	require.EqualValues(t, 9<<20+512, i.VirtualSizeBytes)
	_, err = Check(context.Background(), over, RepairNothing, 1)
	require.ErrorIs(t, err, blockfile.ErrLocked)
	require.NoError(t, user.Close())
	i, err = Inspect(over, Raw, nil)
	require.NoError(t, err)
	require.Nil(t, i.Qcow2Info)
	require.Equal(t, i.FileSizeBytes, i.VirtualSizeBytes)

	require.NoError(t, os.Remove(base))
	i, err = Inspect(over, "", blockfile.AnyBacking)
	require.NoError(t, err)
	require.Contains(t, i.BackingError, "no such file")
	circle := filepath.Join(dir, "disk.img")
	require.NoError(t, os.Rename(over, circle))
	i, err = Inspect(circle, Raw, nil)
	require.NoError(t, err)
	require.Empty(t, i.BackingError, "raw has no chain")
	_, err = Inspect(dir, "", nil)
	require.Error(t, err)
}

func TestCheckNeedsAQcow2Image(t *testing.T) {
	_, err := Check(context.Background(), rawImage(t, disk(9)), RepairNothing, 1)
	require.ErrorIs(t, err, qcow2.ErrFormat)
	require.ErrorContains(t, err, "only qcow2")
	damaged := filepath.Join(t.TempDir(), "damaged")
	require.NoError(t, os.WriteFile(damaged, append([]byte("QFI\xfb\x00\x00\x00\x03"), make([]byte, 1016)...), 0o600))
	_, err = Check(context.Background(), damaged, RepairNothing, 1)
	require.ErrorIs(t, err, qcow2.ErrFormat)
	require.NotContains(t, err.Error(), "only qcow2", "it is one")
	_, err = Check(context.Background(), filepath.Join(t.TempDir(), "absent"), RepairAll, 1)
	require.True(t, errors.Is(err, os.ErrNotExist))
}

// TestConvertCutShort: what is missing at the end of a source is not zeroes.
func TestConvertCutShort(t *testing.T) {
	n := NewImage{Path: filepath.Join(t.TempDir(), "whole.qcow2"), Format: Qcow2, Size: 8 << 20}
	require.NoError(t, Create(n))
	f, err := blockfile.Open(n.Path, blockfile.Options{Format: blockfile.FormatQcow2})
	require.NoError(t, err)
	_, err = f.Pwritev([][]byte{bytes.Repeat([]byte("data"), 1<<20)}, 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	st, err := os.Stat(n.Path)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(n.Path, st.Size()/2))
	c := Conversion{Source: n.Path, Target: NewImage{Path: filepath.Join(t.TempDir(), "copy.img"), Format: Raw}}
	_, err = Convert(context.Background(), c)
	require.ErrorIs(t, err, qcow2.ErrShort)
	require.ErrorContains(t, err, n.Path)
	require.ErrorContains(t, err, "cut short")
	require.NoFileExists(t, c.Target.Path)
}

// TestCheckSaysWhatItIs: only what is no qcow2 image is said to be none.
func TestCheckSaysWhatItIs(t *testing.T) {
	n := NewImage{Path: filepath.Join(t.TempDir(), "a.qcow2"), Format: Qcow2, Size: 1 << 20}
	require.NoError(t, Create(n))
	b, err := os.ReadFile(n.Path)
	require.NoError(t, err)
	b[79] |= qcow2.IncompatDataFile
	require.NoError(t, os.WriteFile(n.Path, b, 0o600))
	_, err = Check(context.Background(), n.Path, RepairNothing, 1)
	require.ErrorContains(t, err, "external data file")
	require.NotContains(t, err.Error(), "only qcow2 images")
	copy(b, "KDMV")
	require.NoError(t, os.WriteFile(n.Path, b, 0o600))
	_, err = Check(context.Background(), n.Path, RepairNothing, 1)
	require.ErrorContains(t, err, "a vmdk image")
	require.ErrorContains(t, Create(NewImage{Path: t.TempDir(), Format: Raw, Size: 512}), "only those are replaced", "--force would not help")
}
