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
)

// run runs a program and fails the test if it does not end well.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	require.NoError(t, err, "%s %q: %s", name, args, out)
	return string(out)
}

// layerPath is where layer i of a plan lies.
func layerPath(dir string, i int) string { return filepath.Join(dir, fmt.Sprintf("layer%d.img", i)) }

// byQEMU carries out a plan with qemu-img and qemu-io and returns the top.
func byQEMU(t *testing.T, p *plan, dir string) string {
	for i, l := range p.layers {
		path := layerPath(dir, i)
		args := []string{"create", "-q", "-f", l.format}
		if i > 0 {
			args = append(args, "-b", layerPath(dir, i-1), "-F", p.layers[i-1].format)
		}
		if l.format == "qcow2" {
			args = append(args, "-o", l.qemuOptions())
		}
		run(t, "qemu-img", append(args, path, fmt.Sprint(l.size))...)
		l.qemuOps(t, path, dir)
	}
	return layerPath(dir, len(p.layers)-1)
}

func (l *layer) qemuOptions() string {
	o := fmt.Sprintf("cluster_size=%d", l.cluster())
	if l.version == 2 {
		o += ",compat=0.10"
	} else {
		o += fmt.Sprintf(",compat=1.1,refcount_bits=%d,compression_type=%s", l.refBits, l.compression)
		if l.lazy {
			o += ",lazy_refcounts=on"
		}
	}
	if l.preallocate {
		o += ",preallocation=metadata"
	}
	return o
}

// qemuOps has one qemu-io do what comes between two snapshots or compressed writes.
func (l *layer) qemuOps(t *testing.T, path, dir string) {
	var cmds []string
	flush := func() {
		if len(cmds) > 0 {
			// qemu-io ends with 0 whatever its commands did; it says so in words.
			out := run(t, "qemu-io", append([]string{"-f", l.format, "-d", "unmap"}, append(cmds, path)...)...)
			require.NotContains(t, out, "failed", out)
			require.NotContains(t, out, "rror", out)
		}
		cmds = nil
	}
	for i, o := range l.ops {
		pattern := filepath.Join(dir, fmt.Sprintf("pattern%d", i))
		switch o.kind {
		case opSnapshot:
			flush()
			run(t, "qemu-img", "snapshot", "-c", fmt.Sprintf("s%d", i), path)
			continue
		case opCompress:
			// In one process QEMU 7.2 goes on packing into a cluster of the file
			// that it has freed meanwhile, and cannot read the result itself
			// (seeds 17, 46 and 97 of one qemu-io). A new one begins a new cluster.
			flush()
			fallthrough
		case opWrite:
			require.NoError(t, os.WriteFile(pattern, o.pattern, 0o600))
		}
		cmds = append(cmds, "-c", map[kind]string{
			opWrite:    fmt.Sprintf("write -q -s %s %d %d", pattern, o.off, o.n),
			opCompress: fmt.Sprintf("write -q -c -s %s %d %d", pattern, o.off, o.n),
			opZero:     fmt.Sprintf("write -q -z %d %d", o.off, o.n),
			opUnmap:    fmt.Sprintf("write -q -z -u %d %d", o.off, o.n),
			opDiscard:  fmt.Sprintf("discard -q %d %d", o.off, o.n),
		}[o.kind])
	}
	flush()
}

// qemuReads is the disk as qemu-img sees it.
func qemuReads(t *testing.T, path, format, dir string) []byte {
	raw := filepath.Join(dir, "qemu.raw")
	run(t, "qemu-img", "convert", "-f", format, "-O", "raw", path, raw)
	b, err := os.ReadFile(raw)
	require.NoError(t, err)
	return b
}

// qemuVerdict is what qemu-img check --output=json says.
type qemuVerdict struct {
	Corruptions int `json:"corruptions"`
	Leaks       int `json:"leaks"`
	CheckErrors int `json:"check-errors"`
}

// qemuCheck has qemu-img judge a qcow2 image.
func qemuCheck(t *testing.T, path string) qemuVerdict {
	t.Helper()
	cmd := exec.Command("qemu-img", "check", "-f", "qcow2", "--output=json", path)
	var diag bytes.Buffer
	cmd.Stderr = &diag
	out, err := cmd.Output() // 2 and 3 say corruptions and leaks
	var v qemuVerdict
	require.NoError(t, json.Unmarshal(out, &v), "qemu-img check: %v: %s%s", err, out, diag.String())
	return v
}
