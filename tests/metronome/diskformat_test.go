package metronome_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
	"godwit/vmm"
)

// diskFormat is a kind of image, and how to make an empty disk of one.
type diskFormat struct {
	name, format string
	make         func(t *testing.T, path string)
}

// diskBytes is the length of the disks of these tests.
const diskBytes = metronome.DiskData + diskSpan<<20

var diskFormats = []diskFormat{
	{"raw", "raw", func(t *testing.T, path string) {
		require.NoError(t, os.WriteFile(path, nil, 0o600))
		require.NoError(t, os.Truncate(path, diskBytes))
	}},
	{"qcow2", "qcow2", func(t *testing.T, path string) {
		qemuImg(t, "create", "-q", "-f", "qcow2", path, strconv.Itoa(diskBytes))
	}},
	{"qcow2 with backing", "qcow2", func(t *testing.T, path string) {
		base := filepath.Join(filepath.Dir(path), "base.raw")
		f, err := os.Create(base)
		require.NoError(t, err)
		load := metronome.DefaultBlk()
		load.Span = diskSpan
		require.NoError(t, errors.Join(metronome.WriteDisk(f, metronome.Defaults().Seed, load), f.Truncate(diskBytes), f.Close()))
		qemuImg(t, "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", path)
	}},
}

// folders are where disks lie, with what is behind them.
func folders(disks map[string]string) []string {
	var out []string
	for _, path := range disks {
		out = append(out, filepath.Dir(path))
	}
	return out
}

func qemuImg(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("qemu-img", args...).CombinedOutput()
	require.NoError(t, err, "qemu-img %v: %s", args, out)
}

// drive makes a disk in a folder, and the configuration to go with it.
func (f diskFormat) drive(t *testing.T, dir string) vmm.Drive {
	t.Helper()
	path := filepath.Join(dir, "disk."+f.format)
	f.make(t, path)
	return vmm.Drive{ID: "data", PathOnHost: path, Format: f.format}
}

// check judges an image that nobody uses any more, by its pattern and, where the
// format has metadata, by QEMU. What was killed may have leaked clusters.
func (f diskFormat) check(t *testing.T, path string, flushed uint64, killed bool) {
	t.Helper()
	if f.format != "raw" {
		out, err := exec.Command("qemu-img", "check", "-f", f.format, path).CombinedOutput()
		const leaks = 3
		if e := new(exec.ExitError); !killed || !errors.As(err, &e) || e.ExitCode() != leaks {
			require.NoError(t, err, "%s", out)
		}
	}
	require.NoError(t, verifyDisk(t, f.raw(t, path), flushed).Err())
}

// raw gives the contents of an image as a raw file, of which a copy is looked at:
// QEMU does not open what somebody has locked.
func (f diskFormat) raw(t *testing.T, path string) string {
	t.Helper()
	copied := copyImage(t, path)
	if f.format == "raw" {
		return copied
	}
	raw := filepath.Join(t.TempDir(), "raw")
	qemuImg(t, "convert", "-f", f.format, "-O", "raw", copied, raw)
	return raw
}

// copyImage copies an image and what stands beside it to another folder.
func copyImage(t *testing.T, path string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.CopyFS(dir, os.DirFS(filepath.Dir(path))))
	return filepath.Join(dir, filepath.Base(path))
}
