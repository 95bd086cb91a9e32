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

	"godwit/blockfile"
	"godwit/blockfile/tool"
)

// program is the command, built for these tests.
var program string

func TestMain(m *testing.M) {
	if args := os.Getenv(childEnv); args != "" {
		fmt.Fprintln(os.Stderr, "writer:", writeUntilKilled(args))
		os.Exit(1)
	}
	dir, err := os.MkdirTemp("", "godwit-images-")
	if err == nil {
		program = filepath.Join(dir, "godwit")
		var out []byte
		if out, err = exec.Command("go", "build", "-o", program, "godwit/cmd/godwit").CombinedOutput(); err != nil {
			err = fmt.Errorf("build godwit: %w: %s", err, out)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// godwit runs `godwit image` with --json and reads what it prints.
func godwit(t *testing.T, into any, args ...string) (code int, diagnosis string) {
	t.Helper()
	cmd := exec.Command(program, append([]string{"image"}, append(args, "--json")...)...)
	var diag bytes.Buffer
	cmd.Stderr = &diag
	out, err := cmd.Output()
	require.NoError(t, json.Unmarshal(out, into), "godwit image %q: %v: %s%s", args, err, out, diag.String())
	return cmd.ProcessState.ExitCode(), diag.String()
}

// godwitCheck has godwit judge a qcow2 image.
func godwitCheck(t *testing.T, path string, args ...string) tool.Checked {
	t.Helper()
	var c tool.Checked
	code, diag := godwit(t, &c, append([]string{"check", path}, args...)...)
	want := 1
	if c.Status == "clean" {
		want = 0
	}
	require.Equal(t, want, code, diag)
	return c
}

// byGodwit carries out a plan with godwit and returns the top.
func byGodwit(t *testing.T, p *plan, dir string) string {
	for i, l := range p.layers {
		path := layerPath(dir, i)
		args := l.godwitOptions()
		if i > 0 {
			// Relative to the image's folder.
			args = append(args, "--backing", filepath.Base(layerPath(dir, i-1)), "--backing-format", p.layers[i-1].format)
		}
		if l.copied != nil {
			raw := filepath.Join(dir, "copied.raw")
			require.NoError(t, os.WriteFile(raw, l.copied, 0o600))
			args = append(args, "--to", l.format)
			if l.compressed {
				args = append(args, "--compress")
			}
			var done tool.Converted
			code, diag := godwit(t, &done, append([]string{"convert", "--from", "raw", raw, path}, args...)...)
			require.Zero(t, code, diag)
		} else {
			args = append(args, "--format", l.format)
			if l.preallocate {
				args = append(args, "--preallocate", "metadata")
			}
			var made tool.Info
			code, diag := godwit(t, &made, append([]string{"create", path, fmt.Sprint(l.size)}, args...)...)
			require.Zero(t, code, diag)
			require.Equal(t, l.size, made.VirtualSizeBytes)
		}
		l.godwitOps(t, path)
	}
	return layerPath(dir, len(p.layers)-1)
}

func (l *layer) godwitOptions() []string {
	if l.format == "raw" {
		return nil
	}
	return []string{"--cluster-size", fmt.Sprint(l.cluster()), "--compat", fmt.Sprintf("v%d", l.version),
		"--refcount-bits", fmt.Sprint(l.refBits), "--compression", l.compression}
}

func openImage(t *testing.T, path, format string, readOnly bool) blockfile.File {
	t.Helper()
	f, err := blockfile.ParseFormat(format)
	require.NoError(t, err)
	disk, err := blockfile.Open(path, blockfile.Options{Backing: blockfile.AnyBacking, Format: f, ReadOnly: readOnly})
	require.NoError(t, err)
	return disk
}

func (l *layer) godwitOps(t *testing.T, path string) {
	disk := openImage(t, path, l.format, false)
	for _, o := range l.ops {
		var err error
		switch o.kind {
		case opWrite:
			b := make([]byte, o.n)
			fill(b, o.pattern)
			_, err = disk.Pwritev([][]byte{b}, o.off)
		case opZero, opUnmap:
			err = disk.WriteZeroes(o.off, o.n, o.kind == opUnmap)
		case opDiscard:
			err = disk.Discard(o.off, o.n)
		}
		require.NoError(t, err, "%s %d+%d", o.kind, o.off, o.n)
	}
	require.NoError(t, disk.Flush())
	require.NoError(t, disk.Close())
}

// godwitReads is the disk as blockfile sees it.
func godwitReads(t *testing.T, path, format string) []byte {
	disk := openImage(t, path, format, true)
	b := make([]byte, disk.Size())
	_, err := disk.Preadv([][]byte{b}, 0)
	require.NoError(t, err)
	require.NoError(t, disk.Close())
	return b
}
