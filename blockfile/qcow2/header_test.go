package qcow2

import (
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// valid is a header that every test spoils in one place.
func valid(version uint32) *Header {
	return &Header{
		Version: version, ClusterBits: 16, Size: 1 << 30,
		L1Entries: 2, L1Offset: 3 << 16, RefcountOffset: 1 << 16, RefcountClusters: 1, RefcountOrder: 4,
		Backing: "base.raw", BackingFormat: "raw", Extensions: []Extension{{Type: 0x6803f857, Data: make([]byte, 48)}},
	}
}

const validSize = 4 << 16

func encode(t testing.TB, h *Header) []byte {
	t.Helper()
	b, err := h.Encode()
	require.NoError(t, err)
	return b
}

func TestHeaderRoundTrip(t *testing.T) {
	for _, version := range []uint32{2, 3} {
		want := valid(version)
		got, err := ParseHeader(encode(t, want), validSize)
		require.NoError(t, err)
		got.additional = nil
		require.Equal(t, want, got)
	}
	h := valid(3)
	h.Compression, h.Incompatible, h.Compatible, h.Autoclear = Zstd, IncompatCompression|IncompatDirty, 1, 1<<63
	h.additional = []byte{1, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8} // of a later version of the format
	got, err := ParseHeader(encode(t, h), validSize)
	require.NoError(t, err)
	require.Equal(t, h, got)
}

func TestHeaderRefused(t *testing.T) {
	u32 := func(at int, v uint32) func([]byte) { return func(b []byte) { binary.BigEndian.PutUint32(b[at:], v) } }
	u64 := func(at int, v uint64) func([]byte) { return func(b []byte) { binary.BigEndian.PutUint64(b[at:], v) } }
	for _, c := range []struct {
		name  string
		spoil func([]byte)
		want  error
		says  string
	}{
		{"magic", u32(0, 1), ErrMagic, "does not start with"},
		{"version 1", u32(4, 1), ErrUnsupported, "version 1"},
		{"version 4", u32(4, 4), ErrUnsupported, "version 4"},
		{"tiny clusters", u32(20, 8), ErrFormat, "2^8"},
		{"huge clusters", u32(20, 22), ErrFormat, "2^22"},
		{"encryption", u32(32, 1), ErrUnsupported, "encryption"},
		{"data file", u64(72, 4), ErrUnsupported, "external data file"},
		{"extended L2", u64(72, 16), ErrUnsupported, "extended L2"},
		{"unknown bit", u64(72, 1<<40), ErrUnsupported, "0x10000000000"},
		{"compression bit alone", u64(72, 8), ErrFormat, "disagree"},
		{"compression type alone", func(b []byte) { b[104] = 1 }, ErrFormat, "disagree"},
		{"compression type", func(b []byte) { b[104] = 2 }, ErrUnsupported, "compression type 2"},
		{"refcount order", u32(96, 7), ErrFormat, "2^7"},
		{"header too short", u32(100, 96), ErrFormat, "96"},
		{"header not in eights", u32(100, 108), ErrFormat, "108"},
		{"header too long", u32(100, 1<<31), ErrFormat, "header of"},
		{"extension too long", u32(112+4, 1<<31), ErrFormat, "extension"},
		{"backing name too long", u32(16, 1024), ErrFormat, "backing"},
		{"backing name elsewhere", u64(8, 1<<40), ErrFormat, "backing"},
		{"backing name wraps", u64(8, 1<<64-1), ErrFormat, "backing"},
		{"backing name in the header", u64(8, 8), ErrFormat, "backing"},
		{"size", u64(24, 1<<63), ErrFormat, "disk of"},
		{"odd size", u64(24, 1<<30+1), ErrFormat, "disk of"},
		{"L1 too small", u32(36, 1), ErrFormat, "needs 2"},
		{"L1 too large", u32(36, 1<<22+1), ErrFormat, "L1 table"},
		{"L1 behind the end", u64(40, 4<<16), ErrFormat, "L1 table"},
		{"L1 wraps", u64(40, 1<<64-1<<16), ErrFormat, "L1 table"},
		{"L1 not aligned", u64(40, 3<<16+512), ErrFormat, "L1 table"},
		{"no refcount table", u64(48, 0), ErrFormat, "refcount table"},
		{"refcount table of none", u32(56, 0), ErrFormat, "refcount table"},
		{"refcount table large", u32(56, 1<<31), ErrFormat, "refcount table"},
		{"snapshots", u32(60, 65537), ErrFormat, "snapshots"},
		{"snapshot table", u32(60, 1), ErrFormat, "snapshot table"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := append(encode(t, valid(3)), make([]byte, 64)...)
			c.spoil(b)
			_, err := ParseHeader(b, validSize)
			require.ErrorIs(t, err, c.want)
			require.ErrorContains(t, err, c.says)
		})
	}
	_, err := ParseHeader(nil, 0)
	require.ErrorIs(t, err, ErrFormat)
	_, err = ParseHeader(encode(t, valid(3))[:100], validSize)
	require.ErrorIs(t, err, ErrFormat)
}

func TestHeaderNotEncoded(t *testing.T) {
	h := valid(2)
	h.Compression = Zstd
	_, err := h.Encode()
	require.ErrorIs(t, err, ErrUnsupported)
	h = valid(3)
	h.Backing = strings.Repeat("x", 1024)
	_, err = h.Encode()
	require.ErrorContains(t, err, "1023")
	h.ClusterBits, h.Backing = 9, strings.Repeat("x", 512)
	_, err = h.Encode()
	require.ErrorContains(t, err, "does not fit a cluster of 512")
}

// qemuImg runs QEMU's tool, which judges us.
func qemuImg(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	require.NoErrorf(t, err, "qemu-img %s: %s", strings.Join(args, " "), out)
	return string(out)
}

func TestHeaderOfQEMU(t *testing.T) {
	base := filepath.Join(t.TempDir(), "base.raw")
	require.NoError(t, os.WriteFile(base, make([]byte, 4096), 0o600))
	for _, options := range []string{
		"compat=0.10", "compat=1.1", "cluster_size=512,refcount_bits=1", "cluster_size=2M,refcount_bits=64",
		"compression_type=zstd", "lazy_refcounts=on", "backing",
	} {
		path := filepath.Join(t.TempDir(), "a.qcow2")
		args := []string{"create", "-q", "-f", "qcow2", "-o", options, path, "123M"}
		if options == "backing" {
			args = []string{"create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path, "123M"}
		}
		qemuImg(t, args...)
		b, err := os.ReadFile(path)
		require.NoError(t, err)
		h, err := ReadHeader(&memory{b: b})
		require.NoError(t, err, options)
		require.EqualValues(t, 123<<20, h.Size)
		// What we write in its place is the same image to QEMU.
		before := qemuImg(t, "info", path)
		copy(b, make([]byte, 512))
		copy(b, encode(t, h))
		require.NoError(t, os.WriteFile(path, b, 0o600))
		require.Equal(t, before, qemuImg(t, "info", path))
		switch options {
		case "compat=0.10":
			require.EqualValues(t, 2, h.Version)
		case "cluster_size=512,refcount_bits=1":
			require.Equal(t, []int64{512, 1}, []int64{h.ClusterSize(), int64(h.RefcountBits())})
		case "compression_type=zstd":
			require.Equal(t, Zstd, h.Compression)
		case "backing":
			require.Equal(t, []string{base, "raw"}, []string{h.Backing, h.BackingFormat})
		}
	}
}

func FuzzHeader(f *testing.F) {
	for _, version := range []uint32{2, 3} {
		f.Add(encode(f, valid(version)), int64(validSize))
	}
	h := valid(3)
	h.Compression, h.Incompatible, h.SnapshotCount, h.SnapshotsOffset = Zstd, IncompatCompression, 3, 1<<16
	f.Add(encode(f, h), int64(1<<40))
	f.Fuzz(func(t *testing.T, b []byte, size int64) {
		h, err := ParseHeader(b, size)
		if err != nil {
			return
		}
		again, err := h.Encode()
		if err != nil {
			return // more than fits a cluster, where the original was cut off
		}
		got, err := ParseHeader(again, size)
		require.NoError(t, err)
		got.additional, h.additional = nil, nil
		require.Equal(t, fmt.Sprintf("%+v", h), fmt.Sprintf("%+v", got))
	})
}
