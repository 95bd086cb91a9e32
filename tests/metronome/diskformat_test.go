package metronome_test

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
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
		raw := filepath.Join(t.TempDir(), "raw")
		out, err = exec.Command("qemu-img", "convert", "-f", f.format, "-O", "raw", path, raw).CombinedOutput()
		require.NoError(t, err, "%s", out)
		path = raw
	}
	require.NoError(t, verifyDisk(t, path, flushed).Err())
}
