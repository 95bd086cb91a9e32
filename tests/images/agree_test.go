package images_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile/tool"
)

// shortOr gives the size of a test in its short and its long form.
func shortOr(short, long int) int {
	if os.Getenv("GODWIT_SOAK") != "" {
		return long
	}
	return short
}

// What qemu-img and qemu-io wrote, godwit reads byte for byte and finds clean;
// a compressed copy that godwit makes of it reads the same in qemu-img.
func TestGodwitReadsWhatQEMUWrote(t *testing.T) {
	for seed := range shortOr(12, 100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := newPlan(uint64(seed), true)
			t.Log(p)
			dir := t.TempDir()
			top := byQEMU(t, p, dir)
			p.model.learn(t, qemuReads(t, top, "qcow2", dir), "qemu-img")
			p.model.learn(t, godwitReads(t, top, "qcow2"), "godwit")
			for i, l := range p.layers {
				if l.format == "qcow2" {
					require.Equal(t, qemuVerdict{}, qemuCheck(t, layerPath(dir, i)), "qemu-img check of layer %d", i)
					c := godwitCheck(t, layerPath(dir, i))
					require.Equal(t, "clean", c.Status, "layer %d: %v", i, c.Findings)
				}
			}
			again := filepath.Join(dir, "again.img")
			var done tool.Converted
			code, diag := godwit(t, &done, append([]string{"convert", "--from", "qcow2", top, again, "--compress"}, p.top().godwitOptions()...)...)
			require.Zero(t, code, diag)
			require.Equal(t, qemuVerdict{}, qemuCheck(t, again))
			run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", again, p.model.write(t, dir))
		})
	}
}

// What godwit wrote, qemu-img finds clean and equal to the model.
func TestQEMUReadsWhatGodwitWrote(t *testing.T) {
	for seed := range shortOr(12, 100) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			p := newPlan(uint64(seed), false)
			t.Log(p)
			dir := t.TempDir()
			top := byGodwit(t, p, dir)
			p.model.learn(t, godwitReads(t, top, "qcow2"), "godwit")
			for i, l := range p.layers {
				if l.format == "qcow2" {
					require.Equal(t, qemuVerdict{}, qemuCheck(t, layerPath(dir, i)), "qemu-img check of layer %d", i)
					c := godwitCheck(t, layerPath(dir, i))
					require.Equal(t, "clean", c.Status, "layer %d: %v", i, c.Findings)
				}
			}
			run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", top, p.model.write(t, dir))
			// Only what differs from the lower layer comes into a copy over it.
			over, args := filepath.Join(dir, "over.img"), p.top().godwitOptions()
			if n := len(p.layers); n > 1 {
				args = append(args, "--backing", layerPath(dir, n-2), "--backing-format", p.layers[n-2].format)
			}
			var done tool.Converted
			code, diag := godwit(t, &done, append([]string{"convert", "--from", "qcow2", top, over}, args...)...)
			require.Zero(t, code, diag)
			require.Equal(t, qemuVerdict{}, qemuCheck(t, over))
			run(t, "qemu-img", "compare", "-f", "qcow2", "-F", "raw", over, p.model.write(t, dir))
			// And down to raw, with the holes that the disk has.
			flat := filepath.Join(dir, "flat.img")
			code, diag = godwit(t, &done, "convert", "--from", "qcow2", top, flat, "--to", "raw")
			require.Zero(t, code, diag)
			b, err := os.ReadFile(flat)
			require.NoError(t, err)
			p.model.learn(t, b, "flat copy")
		})
	}
}
