package linux

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// loadBlock is the unit of boot/rootfs/diskload.c, which says what a block holds.
const loadBlock = 4096

// mix is the finaliser of splitmix64, as in boot/rootfs/workload.h.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

func fillLoadBlock(p []byte, block, version uint64) {
	binary.LittleEndian.PutUint64(p, block)
	binary.LittleEndian.PutUint64(p[8:], version)
	start := mix(block<<32 | version)
	for i := 16; i < loadBlock; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], (start+uint64(i/8))*0x9e3779b97f4a7c15)
	}
}

// writeLoadImage makes a raw image with every block in version 0.
func writeLoadImage(t testing.TB, path string, mib int) {
	t.Helper()
	image := make([]byte, mib<<20)
	for b := range len(image) / loadBlock {
		fillLoadBlock(image[b*loadBlock:(b+1)*loadBlock], uint64(b), 0)
	}
	require.NoError(t, os.WriteFile(path, image, 0o644))
}

// sumLoadImage checks that each block of a raw image holds what some version of
// it should, and gives diskload's sum.
func sumLoadImage(t testing.TB, path string) string {
	t.Helper()
	image, err := os.ReadFile(path)
	require.NoError(t, err)
	var sum uint64
	want, zero := make([]byte, loadBlock), make([]byte, loadBlock)
	for b := range len(image) / loadBlock {
		have := image[b*loadBlock : (b+1)*loadBlock]
		version := binary.LittleEndian.Uint64(have[8:])
		if string(have) == string(zero) {
			version = 1<<32 - 1
		} else {
			fillLoadBlock(want, uint64(b), version)
			require.Equal(t, string(want), string(have), "block %d of %s", b, path)
		}
		sum += mix(uint64(b)<<32 | version)
	}
	return fmt.Sprintf("%016x", sum)
}

// loadDisk is a disk of the guest under load.
type loadDisk struct {
	id, device, format string
	path, backing      string
}

// makeLoadDisks makes one disk of each kind, all with the same content at first.
func makeLoadDisks(t testing.TB, mib int) []loadDisk {
	t.Helper()
	dir := t.TempDir()
	disks := []loadDisk{
		{id: "raw", device: "/dev/vdb", format: "raw"},
		{id: "qcow2", device: "/dev/vdc", format: "qcow2"},
		{id: "overlay", device: "/dev/vdd", format: "qcow2", backing: filepath.Join(dir, "base.qcow2")},
	}
	raw := filepath.Join(dir, "content")
	writeLoadImage(t, raw, mib)
	for i := range disks {
		d := &disks[i]
		d.path = filepath.Join(dir, d.id)
		switch {
		case d.format == "raw":
			image(t, "convert", "--to", "raw", raw, d.path)
		case d.backing == "":
			image(t, "convert", raw, d.path)
		default:
			image(t, "convert", "--compress", raw, d.backing)
			image(t, "create", d.path, "--backing", d.backing, "--backing-format", "qcow2")
		}
	}
	return disks
}

// image runs godwit image.
func image(t testing.TB, args ...string) {
	t.Helper()
	out, err := exec.Command(godwitPath, append([]string{"image"}, args...)...).CombinedOutput()
	require.NoError(t, err, "godwit image %v: %s", args, out)
}

func digest(t testing.TB, path string) [sha256.Size]byte {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	return sha256.Sum256(content)
}

// TestDisksSurviveMoves: random reads, writes and zeroing of mixed sizes on a raw
// image, a qcow2 image and an overlay, with many requests in flight and every
// block checked, go on through moves; then godwit and QEMU find the images clean,
// and holding what the guest says.
func TestDisksSurviveMoves(t *testing.T) {
	moves, mib := 3, 8
	if os.Getenv(soakEnv) != "" {
		moves, mib = 20, 64
	}
	disks, root := makeLoadDisks(t, mib), diskCopy(t)
	args := []string{"--kernel", bzImagePath, "--cpus", "2", "--memory", "128M", "--disk", "path=" + root + ",id=root"}
	receive := []string{"--disk", "root=" + root}
	for _, d := range disks {
		args = append(args, "--disk", fmt.Sprintf("path=%s,id=%s,format=%s", d.path, d.id, d.format))
		receive = append(receive, "--disk", d.id+"="+d.path)
	}
	base := disks[len(disks)-1].backing
	receive = append(receive, "--allow-path", filepath.Dir(base))
	before := digest(t, base)
	tr := startTrip(t, args...)
	tr.waitFor(t, up)
	for i, d := range disks {
		tr.now.typeLine(t, fmt.Sprintf("diskload disk=%s jobs=4 sync=32 seed=%d &", d.device, i+1))
	}
	busy := func(n int) {
		for _, d := range disks {
			tr.until(t, d.device+" busy", func(text string) bool { return strings.Count(text, "diskload "+d.device+" at") >= n })
		}
	}
	for i := range moves {
		busy(i + 1)
		r := tr.move(t, nil, receive...)
		t.Logf("move %d: total %.0f ms, downtime %.1f ms: %+v", i+1, r.TotalMS, r.DowntimeMS, r.DowntimePhases)
	}
	busy(moves + 2)
	tr.now.typeLine(t, "killall diskload")
	sums := map[string]string{}
	for _, d := range disks {
		done := regexp.MustCompile("diskload " + d.device + ` done requests=(\d+) errors=(\d+) blocks=\d+ sum=(\w+) .*`)
		tr.until(t, d.id+" done", done.MatchString)
		m := done.FindStringSubmatch(tr.console())
		t.Log(d.id, m[0])
		require.Equal(t, "0", m[2], tr.console())
		sums[d.id] = m[3]
	}
	require.NotContains(t, tr.end(t), "diskload ERROR")
	requireClean(t, root)
	for _, d := range disks {
		flat := d.path + ".flat"
		image(t, "convert", "--from", d.format, "--to", "raw", d.path, flat)
		require.Equal(t, sums[d.id], sumLoadImage(t, flat), "the image of %s holds what the guest says", d.id)
		if d.format == "raw" {
			continue
		}
		image(t, "check", d.path)
		out, err := exec.Command("/usr/bin/qemu-img", "check", "-f", d.format, d.path).CombinedOutput()
		require.NoError(t, err, "qemu-img check of %s: %s", d.id, out)
		out, err = exec.Command("/usr/bin/qemu-img", "compare", "-f", d.format, "-F", "raw", d.path, flat).CombinedOutput()
		require.NoError(t, err, "qemu-img compare of %s: %s", d.id, out)
	}
	require.Equal(t, before, digest(t, base), "nothing wrote to the backing file")
}
