package images_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile/tool"
)

// anyway runs `godwit image` and gives what it prints, whatever its exit code.
func anyway(t *testing.T, args ...string) (code int, stdout []byte, stderr string) {
	t.Helper()
	cmd := exec.Command(program, append([]string{"image"}, args...)...)
	var diag bytes.Buffer
	cmd.Stderr = &diag
	out, _ := cmd.Output()
	return cmd.ProcessState.ExitCode(), out, diag.String()
}

// chains are disks that qemu-img has made, from seeds.
func chains(t *testing.T, do func(t *testing.T, p *plan, top, format, dir string)) {
	for seed := range shortOr(12, 100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := newPlan(uint64(7000+seed), true)
			t.Log(p)
			dir := t.TempDir()
			do(t, p, byQEMU(t, p, dir), p.layers[len(p.layers)-1].format, dir)
		})
	}
}

// TestMapAgrees: each piece of a disk is what qemu-img says it is.
func TestMapAgrees(t *testing.T) {
	type piece struct {
		Start, Length, Depth int64
		Present, Zero, Data  bool
		Offset               *int64
	}
	chains(t, func(t *testing.T, p *plan, top, format, dir string) {
		var theirs []piece
		require.NoError(t, json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", format, top)), &theirs))
		code, out, diag := anyway(t, "map", "--from", format, top, "--json")
		require.Zero(t, code, diag)
		var ours []tool.MapEntry
		require.NoError(t, json.Unmarshal(out, &ours))
		at, i := int64(0), 0
		for _, o := range ours {
			require.Equal(t, at, o.StartBytes)
			for end := at + o.LengthBytes; at < end; {
				q := theirs[i]
				where := fmt.Sprintf("byte %d: %+v, %+v", at, o, q)
				require.Equal(t, q.Data, o.Data, where)
				if q.Data {
					require.EqualValues(t, q.Depth, o.Depth, where)
					require.Equal(t, q.Offset == nil, o.OffsetBytes == nil, where)
					if q.Offset != nil {
						require.Equal(t, *q.Offset+at-q.Start, *o.OffsetBytes+at-o.StartBytes, where)
					}
				}
				at = min(end, q.Start+q.Length)
				if at == q.Start+q.Length {
					i++
				}
			}
		}
		require.Equal(t, len(theirs), i)
	})
}

// TestMeasureAgrees: the same figures from both.
func TestMeasureAgrees(t *testing.T) {
	type figures struct {
		Required int64 `json:"required"`
		Full     int64 `json:"fully-allocated"`
	}
	// QEMU also looks for holes of the file behind clusters that it takes for
	// preallocated; then ours is larger.
	near := func(t *testing.T, exact bool, theirs, ours []string) {
		t.Helper()
		var q figures
		require.NoError(t, json.Unmarshal([]byte(run(t, "qemu-img", append([]string{"measure", "--output=json"}, theirs...)...)), &q))
		var m tool.Measured
		code, diag := godwit(t, &m, append([]string{"measure"}, ours...)...)
		require.Zero(t, code, diag)
		require.Equal(t, q.Full, m.FullyAllocatedBytes, "%v", ours)
		if !exact && m.RequiredBytes > q.Required {
			require.LessOrEqual(t, m.RequiredBytes, m.FullyAllocatedBytes)
			return
		}
		require.Equal(t, q.Required, m.RequiredBytes, "%v", ours)
	}
	same := func(t *testing.T, theirs, ours []string) { t.Helper(); near(t, true, theirs, ours) }
	chains(t, func(t *testing.T, p *plan, top, format, dir string) {
		near(t, false, []string{"-f", format, "-O", "qcow2", top}, []string{"--from", format, top})
		near(t, false, []string{"-f", format, "-O", "qcow2", "-o", "cluster_size=4k", top}, []string{"--from", format, top, "--cluster-size", "4K"})
		same(t, []string{"-f", format, "-O", "raw", top}, []string{"--from", format, top, "--to", "raw"})
	})
	disk := filepath.Join(t.TempDir(), "disk")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", disk, "64M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 1 1000k 3M", "-c", "write -z 9M 1M", "-c", "write -P 2 20M 512", disk)
	same(t, []string{"-f", "qcow2", "-O", "qcow2", disk}, []string{disk})
	same(t, []string{"-f", "qcow2", "-O", "qcow2", "-o", "cluster_size=512", disk}, []string{disk, "--cluster-size", "512"})
	for _, size := range []string{"512", "1G", "10T"} {
		same(t, []string{"-O", "qcow2", "--size", size}, []string{"--size", size})
		same(t, []string{"-O", "qcow2", "-o", "cluster_size=2M,refcount_bits=64", "--size", size}, []string{"--size", size, "--cluster-size", "2M", "--refcount-bits", "64"})
	}
}

// TestCompareAgrees: one byte anywhere, and both say so.
func TestCompareAgrees(t *testing.T) {
	chains(t, func(t *testing.T, p *plan, top, format, dir string) {
		content := godwitReads(t, top, format)
		copied := filepath.Join(dir, "copy.img")
		for _, at := range []int{-1, 0, len(content) / 2, len(content) - 1} {
			b := bytes.Clone(content)
			if at >= 0 {
				b[at]++
			}
			require.NoError(t, os.WriteFile(copied, b, 0o600))
			var c tool.Compared
			code, _ := godwit(t, &c, "compare", "--from", format, top, copied, "--other", "raw", "--strict")
			require.EqualValues(t, at, c.FirstDifferenceBytes)
			q := exec.Command("qemu-img", "compare", "-q", "-f", format, "-F", "raw", top, copied)
			_ = q.Run() // 1 where they differ
			require.Equal(t, q.ProcessState.ExitCode(), code)
		}
	})
	dir := t.TempDir()
	short, long := filepath.Join(dir, "short"), filepath.Join(dir, "long")
	require.NoError(t, os.WriteFile(short, []byte("data"), 0o600))
	require.NoError(t, os.WriteFile(long, append([]byte("data"), make([]byte, 5<<20)...), 0o600))
	code, _, said := anyway(t, "compare", short, long)
	require.Zero(t, code)
	require.Contains(t, said, "the rest is zeroes")
	code, _, _ = anyway(t, "compare", long, short, "--strict")
	require.Equal(t, 1, code)
}

// TestConvertWhereItGoes: into what is there, into a block device, to stdout.
func TestConvertWhereItGoes(t *testing.T) {
	chains(t, func(t *testing.T, p *plan, top, format, dir string) {
		want := godwitReads(t, top, format)
		code, out, diag := anyway(t, "convert", "--from", format, top, "-", "--to", "raw")
		require.Zero(t, code, diag)
		require.True(t, bytes.Equal(want, out), "stdout")
		// What is there before, and behind the end of the disk.
		noise := bytes.Repeat([]byte("noise!!!"), len(want)/8+1024)[:len(want)/512*512+4096]
		raw, qcow := filepath.Join(dir, "there.img"), filepath.Join(dir, "there.qcow2")
		require.NoError(t, os.WriteFile(raw, noise, 0o600))
		run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow)
		copy(noise, want)
		for target, to := range map[string]string{raw: "raw", qcow: "qcow2"} {
			code, _, diag = anyway(t, "convert", "--from", format, top, "-n", target, "--to", to)
			require.Zero(t, code, diag)
			require.True(t, bytes.Equal(noise, qemuReads(t, target, to, dir)), to)
		}
		require.Equal(t, qemuVerdict{}, qemuCheck(t, qcow))
	})
	dir := t.TempDir()
	small, large := filepath.Join(dir, "small"), filepath.Join(dir, "large")
	require.NoError(t, os.WriteFile(small, make([]byte, 512), 0o600))
	require.NoError(t, os.WriteFile(large, make([]byte, 1024), 0o600))
	for says, args := range map[string][]string{
		"make it larger first":     {"convert", large, "-n", small, "--to", "raw"},
		"say what that is":         {"convert", large, "-n", small},
		"no such file":             {"convert", large, "-n", filepath.Join(dir, "none"), "--to", "raw"},
		"is there already, so":     {"convert", large, "-n", small, "--to", "raw", "--force"},
		"cannot be written to a p": {"convert", large, "-"},
	} {
		code, _, diag := anyway(t, args...)
		require.NotZero(t, code)
		require.Contains(t, diag, says)
	}
}

func TestConvertBlockDevices(t *testing.T) {
	dev, other := blockDevice(t, 8<<20), blockDevice(t, 9<<20)
	dir := t.TempDir()
	src := filepath.Join(dir, "disk.qcow2")
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", src, "8M")
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 5 1M 3M", src)
	run(t, "qemu-io", "-f", "raw", "-c", "write -P 9 0 9M", other)
	for _, step := range [][]string{
		{"convert", src, "-n", dev, "--to", "raw"},
		{"convert", dev, filepath.Join(dir, "from.qcow2")},
		{"convert", dev, "-n", other, "--to", "raw"},
		{"compare", src, dev},
	} {
		code, _, diag := anyway(t, step...)
		require.Zero(t, code, diag)
	}
	run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", src, dev)
	run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "qcow2", src, filepath.Join(dir, "from.qcow2"))
	b, err := os.ReadFile(other)
	require.NoError(t, err)
	require.Equal(t, bytes.Repeat([]byte{9}, 1<<20), b[8<<20:], "what lies behind stays")
	code, _, diag := anyway(t, "convert", src, dev, "--to", "raw")
	require.Equal(t, 1, code)
	require.Contains(t, diag, "convert -n --to raw")
}

// TestConvertSnapshot reads what a disk was.
func TestConvertSnapshot(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	run(t, "qemu-img", "create", "-q", "-f", "qcow2", at("vm"), "4M")
	for i, name := range []string{"first", "second"} {
		run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprintf("write -P %d 1M 1M", i+1), at("vm"))
		run(t, "qemu-img", "snapshot", "-c", name, at("vm"))
	}
	run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 0 4M", at("vm"))
	for _, name := range []string{"first", "second", "1", "2"} {
		code, _, diag := anyway(t, "convert", "--snapshot", name, at("vm"), at("ours-"+name), "--to", "raw")
		require.Zero(t, code, diag)
		run(t, "qemu-img", "convert", "-l", name, "-f", "qcow2", "-O", "raw", at("vm"), at("theirs"))
		run(t, "cmp", at("theirs"), at("ours-"+name))
	}
	code, _, _ := anyway(t, "compare", "-l", "1", at("vm"), at("ours-first"))
	require.Zero(t, code)
	code, _, diag := anyway(t, "convert", "-l", "third", at("vm"), at("x"))
	require.Equal(t, 1, code)
	require.Contains(t, diag, `"second" (id "2")`)
	code, _, _ = anyway(t, "convert", "-l", "x", at("ours-first"), at("x"))
	require.Equal(t, 2, code)
}
