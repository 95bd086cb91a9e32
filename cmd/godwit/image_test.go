package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/blockfile/qcow2"
	"godwit/blockfile/tool"
)

// The four commands as a script uses them: one object on stdout, words on stderr.
func TestImageCommands(t *testing.T) {
	dir := t.TempDir()
	raw, disk, over := filepath.Join(dir, "disk.img"), filepath.Join(dir, "disk.qcow2"), filepath.Join(dir, "over.qcow2")
	require.NoError(t, os.WriteFile(raw, append(make([]byte, 1<<20), strings.Repeat("data", 1<<18)...), 0o600))
	do := func(code int, into any, args ...string) (stderr string) {
		t.Helper()
		got, stdout, stderr := godwit(t, append([]string{"image"}, args...)...)
		require.Equal(t, code, got, stderr)
		if into == nil {
			require.Empty(t, stdout)
			return stderr
		}
		require.Equal(t, 1, strings.Count(stdout, "\n"), stdout)
		require.NoError(t, json.Unmarshal([]byte(stdout), into), stdout)
		return stderr
	}
	var done tool.Converted
	do(0, &done, "convert", raw, disk, "--compress", "--compression", "zstd", "--json")
	require.EqualValues(t, 1<<20, done.SkippedBytes)
	require.EqualValues(t, 1<<20, done.CompressedBytes)
	require.Less(t, done.PackedBytes, int64(1<<12))
	require.Contains(t, do(0, nil, "convert", raw, disk, "--force"), "disk.qcow2: 1.05 MB as it is, 1.05 MB not written")
	require.Contains(t, do(0, nil, "convert", raw, disk, "--force", "--compression", "zstd"), "nothing without --compress")
	require.Contains(t, do(2, nil, "convert", raw, raw, "--force"), "is what is to be converted")
	said := do(1, nil, "check", raw)
	require.Contains(t, said, "only qcow2 images have something to check")
	require.NotContains(t, said, "format")
	require.Contains(t, do(1, nil, "convert", raw, filepath.Join(dir, "x"), "--from", "qcow2"), "say that its format is raw")

	do(0, nil, "create", over, "--backing", "disk.qcow2", "--backing-format", "qcow2")
	var info tool.Info
	do(0, &info, "info", over, "--json")
	require.Equal(t, disk, info.Backing.Path)
	require.EqualValues(t, 2<<20, info.VirtualSizeBytes)
	code, stdout, _ := godwit(t, "image", "info", over)
	require.Zero(t, code)
	require.Contains(t, stdout, "by its first bytes")
	require.Contains(t, stdout, "disk.qcow2, format qcow2")
	require.Contains(t, do(2, nil, "convert", over, filepath.Join(dir, "x")), "say --from qcow2")

	require.Contains(t, do(0, nil, "check", over), "clean; 0 of 32 clusters")
	// The L1 table's first entry is dropped: all that it stood for leaks.
	h := headerOf(t, disk)
	spoil(t, disk, int64(h.L1Offset))
	var c tool.Checked
	do(1, &c, "check", disk, "--json")
	require.Equal(t, "leaks", c.Status)
	require.EqualValues(t, 17, c.Leaks)
	said = do(1, nil, "check", disk, "--findings", "2")
	require.Contains(t, said, "leaked cluster at")
	require.Contains(t, said, "... and 15 more")
	require.Contains(t, said, "--repair leaks")
	require.Contains(t, do(0, nil, "check", disk, "--repair", "leaks"), "repaired 0 corruptions and 17 leaks")
	// The refcounts are gone.
	spoil(t, disk, int64(headerOf(t, disk).RefcountOffset))
	do(1, &c, "check", disk, "--repair", "leaks", "--json")
	require.Equal(t, "corrupt", c.Status)
	do(0, &c, "check", disk, "--repair", "all", "--json")
	require.Equal(t, "clean", c.Status)
	require.Positive(t, c.RepairedCorruptions)
}

func headerOf(t *testing.T, path string) *qcow2.Header {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	h, err := qcow2.ParseHeader(b, int64(len(b)))
	require.NoError(t, err)
	return h
}

func spoil(t *testing.T, path string, off int64) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, 8), off)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func TestImageText(t *testing.T) {
	i := &tool.Info{Path: "a.qcow2", Format: "qcow2", FormatFrom: "flag", VirtualSizeBytes: 10 << 30, FileSizeBytes: 1 << 20, DiskSizeBytes: 1536,
		InUse: true, InUseForWriting: true, BackingError: "open x: gone", Qcow2Info: &tool.Qcow2Info{Version: 3, ClusterSizeBytes: 65536,
			RefcountBits: 16, Compression: "zstd", Dirty: true, Snapshots: 2, BackingFile: "x"}}
	require.Equal(t, `a.qcow2
  format      qcow2, as you say
  disk        10737418240 bytes (10G)
  file        1048576 bytes, 1536 of them allocated (1.5K)
  in use      locked by a machine that may write to it: figures may be old already
  version     3
  clusters    65536 bytes, refcounts of 16 bits, compression zstd
  snapshots   2
  dirty       refcounts may be wrong: godwit image check --repair all
  backing     x, format none
              which cannot be looked at: open x: gone
`, imageText(i))
	require.Equal(t, " 25% of 4 MB  2 MB/s", copyLine(1e6, 4e6, 500*time.Millisecond))
}
