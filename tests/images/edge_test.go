package images_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
	"godwit/blockfile/tool"
)

// blockDevice is a loop device over a file of n bytes, where the test may.
func blockDevice(t *testing.T, n int64) string {
	file := filepath.Join(t.TempDir(), "device")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	require.NoError(t, os.Truncate(file, n))
	out, err := exec.Command("losetup", "-f", "--show", file).Output()
	if err != nil {
		t.Skipf("block devices need root, losetup and the loop driver: %v", err)
	}
	path := strings.TrimSpace(string(out))
	t.Cleanup(func() { run(t, "losetup", "-d", path) })
	return path
}

// TestRepairOnABlockDevice: a device cannot grow, so the new refcounts go where
// nothing is. qemu-img judges.
func TestRepairOnABlockDevice(t *testing.T) {
	dev := blockDevice(t, 16<<20)
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", dev, "64M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 2M", dev)
	f, err := blockfile.OpenHost(dev, blockfile.Options{})
	require.NoError(t, err)
	h, err := qcow2.ReadHeader(f)
	require.NoError(t, err)
	block := make([]byte, 512)
	require.NoError(t, f.Preadv([][]byte{block}, int64(h.RefcountOffset)))
	at := int64(block[5])<<16 | int64(block[6])<<8 | int64(block[7])
	require.NoError(t, f.Preadv([][]byte{block}, at))
	block[21] = 0 // cluster 10 loses its count
	require.NoError(t, f.Pwritev([][]byte{block}, at))
	require.NoError(t, f.Close())
	require.NotEqual(t, qemuVerdict{}, qemuCheck(t, dev))
	want := qemuReads(t, dev, "qcow2", t.TempDir())
	require.Equal(t, "clean", godwitCheck(t, dev, "--repair", "all").Status)
	require.Equal(t, qemuVerdict{}, qemuCheck(t, dev))
	require.Equal(t, want, qemuReads(t, dev, "qcow2", t.TempDir()))
}

// TestRepairOnAFullDisk does the same on a file system without room.
func TestRepairOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if out, err := exec.Command("mount", "-t", "tmpfs", "-o", "size=4M", "none", dir).CombinedOutput(); err != nil {
		t.Skipf("a small file system needs root: %v: %s", err, out)
	}
	t.Cleanup(func() { run(t, "umount", dir) })
	path := filepath.Join(dir, "vm.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "64M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 0 1M", "-c", "write -P 2 1M 1M", path)
	run(t, "qemu-io", "-f", "qcow2", "-d", "unmap", "-c", "discard 1M 512k", path) // free clusters amid the file
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	h, err := qcow2.ParseHeader(b, int64(len(b)))
	require.NoError(t, err)
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt(make([]byte, 8), int64(h.RefcountOffset)) // no counts at all
	require.NoError(t, err)
	require.NoError(t, f.Close())
	// What is left of the disk goes, but for the holes in the image, which the
	// file system has not promised to anybody: they are filled first.
	filler, err := os.Create(filepath.Join(dir, "filler"))
	require.NoError(t, err)
	for {
		if _, err := filler.Write(make([]byte, 4096)); err != nil {
			break
		}
	}
	require.NoError(t, filler.Close())
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	c, err := tool.Check(context.Background(), path, tool.RepairAll, 10)
	if err != nil {
		now, rerr := os.ReadFile(path)
		require.NoError(t, rerr)
		require.Equal(t, before, now, "what cannot be done changes nothing")
		require.ErrorContains(t, err, "no space left")
		return
	}
	require.Equal(t, "clean", c.Status)
	require.Equal(t, qemuVerdict{}, qemuCheck(t, path))
}

// TestOddSizes: both take the same disk from images whose size is no multiple
// of a sector.
func TestOddSizes(t *testing.T) {
	dir := t.TempDir()
	raw := filepath.Join(dir, "odd.img")
	require.NoError(t, os.WriteFile(raw, []byte(strings.Repeat("odd", 1000)), 0o600))
	require.Equal(t, qemuReads(t, raw, "raw", dir), godwitReads(t, raw, "raw"))
	var done tool.Converted
	copied := filepath.Join(dir, "copy.qcow2")
	code, diag := godwit(t, &done, "convert", raw, copied)
	require.Zero(t, code, diag)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, copied)
	var over tool.Info
	code, diag = godwit(t, &over, "create", filepath.Join(dir, "over.qcow2"), "--backing", "odd.img", "--backing-format", "raw")
	require.Zero(t, code, diag)
	require.EqualValues(t, 3072, over.VirtualSizeBytes)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", raw, filepath.Join(dir, "over.qcow2"))
	for _, more := range []int{1, 291, 511} {
		path := filepath.Join(dir, fmt.Sprint(more))
		run(t, "qemu-img", "create", "-q", "-f", "qcow2", path, "1M")
		run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 3 1000k 24k", path)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{byte(more >> 8), byte(more)}, 30) // the size, bytes 24 to 31
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.Equal(t, qemuReads(t, path, "qcow2", dir), godwitReads(t, path, "qcow2"), more)
	}
}
