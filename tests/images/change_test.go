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

// twin copies a chain into another folder, with the names in its headers.
func twin(t *testing.T, p *plan, dir string) (top, into string) {
	into = t.TempDir()
	for i, l := range p.layers {
		b, err := os.ReadFile(layerPath(dir, i))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(layerPath(into, i), b, 0o600))
		if i > 0 {
			run(t, "qemu-img", "rebase", "-u", "-f", "qcow2", "-b", layerPath(into, i-1), "-F", p.layers[i-1].format, layerPath(into, i))
		}
		top = layerPath(into, i)
		_ = l
	}
	return top, into
}

// healthy says that qemu-img finds nothing wrong with a chain.
func healthy(t *testing.T, p *plan, dir string) {
	t.Helper()
	for i, l := range p.layers {
		if l.format == "qcow2" {
			require.Equal(t, qemuVerdict{}, qemuCheck(t, layerPath(dir, i)), "layer %d", i)
		}
	}
}

// TestResizeAgrees: larger and smaller, qemu-img reads what it should and finds
// nothing wrong. (Its own resize cannot do some of these, and has what was cut
// off within a cluster come back.)
func TestResizeAgrees(t *testing.T) {
	chains(t, func(t *testing.T, p *plan, top, format, dir string) {
		want := godwitReads(t, top, format)
		size := p.layers[len(p.layers)-1].size
		for _, to := range []int64{size + 512, 3*size + 65536, size / 2 &^ 511, size * 2 &^ 511} {
			if to == 0 {
				continue
			}
			code, out, diag := anyway(t, "resize", "--from", format, top, fmt.Sprint(to), "--shrink", "--json")
			if format == "qcow2" && p.top().version == 2 && code != 0 {
				require.Contains(t, diag, "snapshots")
				return
			}
			require.Zero(t, code, diag)
			var r tool.Resized
			require.NoError(t, json.Unmarshal(out, &r))
			require.Equal(t, to, r.VirtualSize)
			want = append(want, make([]byte, max(0, to-int64(len(want))))...)[:to]
			require.True(t, bytes.Equal(want, qemuReads(t, top, format, dir)), "%d", to)
			require.True(t, bytes.Equal(qemuReads(t, top, format, dir), godwitReads(t, top, format)), "%d", to)
			healthy(t, p, dir)
		}
	})
	path := filepath.Join(t.TempDir(), "a.img")
	for _, step := range []struct {
		args []string
		code int
		size int64
	}{
		{[]string{"create", path, "1M", "--format", "raw"}, 0, 1 << 20},
		{[]string{"resize", path, "+1M"}, 0, 2 << 20},
		{[]string{"resize", path, "1M"}, 1, 2 << 20},
		{[]string{"resize", path, "--shrink", "--", "-512K"}, 0, 3 << 19},
		{[]string{"resize", path, "--shrink", "--", "-2M"}, 2, 3 << 19},
		{[]string{"resize", path, "+-1M"}, 2, 3 << 19},
		{[]string{"resize", path, ""}, 2, 3 << 19},
	} {
		code, _, diag := anyway(t, step.args...)
		require.Equal(t, step.code, code, "%q: %s", step.args, diag)
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, step.size, st.Size(), "%q", step.args)
	}
}

// TestCommitAgrees: the overlay shows what it did, the backing file shows it
// too, as after qemu-img commit.
func TestCommitAgrees(t *testing.T) {
	committed := 0
	chains(t, func(t *testing.T, p *plan, top, format, dir string) {
		if len(p.layers) < 2 {
			return
		}
		committed++
		other, into := twin(t, p, dir)
		want := godwitReads(t, top, format)
		below := p.layers[len(p.layers)-2]
		code, out, diag := anyway(t, "commit", "--any-backing", top, "--json")
		if code != 0 && below.version == 2 {
			require.Contains(t, diag, "snapshots") // it would have to grow
			require.True(t, bytes.Equal(want, godwitReads(t, top, format)))
			return
		}
		require.Zero(t, code, diag)
		var c tool.Committed
		require.NoError(t, json.Unmarshal(out, &c))
		require.True(t, c.Emptied)
		require.True(t, bytes.Equal(want, qemuReads(t, top, format, dir)))
		if exec.Command("qemu-img", "commit", "-q", "-f", format, other).Run() == nil { // it cannot make some version 2 images larger
			require.True(t, bytes.Equal(qemuReads(t, layerPath(into, len(p.layers)-2), below.format, dir),
				qemuReads(t, layerPath(dir, len(p.layers)-2), below.format, dir)))
		}
		healthy(t, p, dir)
		for _, e := range entries(t, top) {
			require.False(t, e.Present && e.Depth == 0, "the overlay is empty: %+v", e)
		}
	})
	require.Positive(t, committed)
}

func entries(t *testing.T, top string) (list []tool.MapEntry) {
	code, diag := godwit(t, &list, "map", "--from", "qcow2", "--any-backing", top)
	require.Zero(t, code, diag)
	return list
}

// TestRebaseKeepsTheDisk: over any other file, over none, and back.
func TestRebaseKeepsTheDisk(t *testing.T) {
	chains(t, func(t *testing.T, p *plan, top, format, dir string) {
		if format != "qcow2" {
			return
		}
		want := godwitReads(t, top, format)
		noise := filepath.Join(dir, "noise.img")
		b := bytes.Clone(want)
		for i := range len(b) / 3000 {
			b[i*3000]++
		}
		require.NoError(t, os.WriteFile(noise, b[:len(b)/1024*512], 0o600)) // shorter than the disk
		code, _, diag := anyway(t, "convert", "--from", format, top, filepath.Join(dir, "same.qcow2"))
		require.Zero(t, code, diag)
		for _, backing := range [][]string{{"same.qcow2", "qcow2"}, {"noise.img", "raw"}, {"", ""}, {"same.qcow2", "qcow2"}} {
			args := []string{"rebase", "--any-backing", top, "--backing", backing[0]}
			if backing[1] != "" {
				args = append(args, "--backing-format", backing[1])
			}
			var r tool.Rebased
			code, diag := godwit(t, &r, args...)
			require.Zero(t, code, diag)
			require.True(t, bytes.Equal(want, qemuReads(t, top, format, dir)), "%q", backing)
			require.Equal(t, qemuVerdict{}, qemuCheck(t, top), "%q", backing)
		}
		var i tool.Info
		code, diag = godwit(t, &i, "info", top)
		require.Zero(t, code, diag)
		require.Equal(t, "same.qcow2", i.BackingFile)
		// A file that has moved.
		require.NoError(t, os.Rename(filepath.Join(dir, "same.qcow2"), filepath.Join(dir, "moved.qcow2")))
		code, _, diag = anyway(t, "rebase", top, "--backing", "moved.qcow2", "--backing-format", "qcow2", "--header-only")
		require.Zero(t, code, diag)
		require.True(t, bytes.Equal(want, godwitReads(t, top, format)))
		code, _, diag = anyway(t, "rebase", top, "--backing", top, "--backing-format", "qcow2")
		require.Equal(t, 2, code, diag)
	})
}
