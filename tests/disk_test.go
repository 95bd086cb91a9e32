package tests

import (
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// runDisk starts a guest that writes to its disk and ends by itself.
func runDisk(t *testing.T, disk string, more ...string) *process {
	return start(t, append([]string{"run", "--guest", "metronome", "--memory", "64M", "--disk", disk,
		"--append", "beat=50 io=blk,4k,depth=1,write,span=1,prefill,flush=10"}, more...)...)
}

func sum(t *testing.T, path string) [32]byte {
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return sha256.Sum256(b)
}

// TestFormatNotSaid: a qcow2 image without format= is left as it is, whichever
// way it is named.
func TestFormatNotSaid(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	image, config := filepath.Join(dir, "vm.qcow2"), filepath.Join(dir, "vm.json")
	code, _, errs := godwit(t, "image", "create", image, "4M", "--preallocate", "metadata")
	require.Zero(t, code, errs)
	before := sum(t, image)
	for _, options := range []string{"", ",readonly", ",snapshot", ",cache=none"} {
		p := runDisk(t, "path="+image+options)
		p.ends(1)
		require.Contains(t, p.err.String(), "format=qcow2", options)
		require.Contains(t, p.err.String(), "format=raw", options)
		require.Equal(t, before, sum(t, image), options)
	}
	for _, format := range []string{"", `,"format":""`} {
		text := fmt.Sprintf(`{"boot-source":{"guest":"metronome"},"machine-config":{"mem_size_mib":64},"drives":[{"drive_id":"a","path_on_host":%q%s}]}`, image, format)
		require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
		p := start(t, "run", "--config", config)
		p.ends(1)
		require.Contains(t, p.err.String(), "format=raw")
		require.Equal(t, before, sum(t, image))
	}
	// Said aloud, it is obeyed.
	p := runDisk(t, "path="+image+",format=raw")
	p.awaitBeats(3)
	p.signal(unix.SIGTERM)
	p.ends(0)
	require.NotEqual(t, before, sum(t, image))
}

// TestBackingFromAStranger: a machine reads what lies beside its image, and
// more only where that is allowed.
func TestBackingFromAStranger(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	secret, image := filepath.Join(dir, "far", "secret"), filepath.Join(dir, "near", "vm.qcow2")
	for _, p := range []string{secret, image} {
		require.NoError(t, os.Mkdir(filepath.Dir(p), 0o700))
	}
	require.NoError(t, os.WriteFile(secret, make([]byte, 4<<20), 0o600))
	code, _, errs := godwit(t, "image", "create", image, "--backing", secret, "--backing-format", "raw")
	require.Zero(t, code, errs)
	require.Contains(t, errs, "note:", "who makes it hears that a machine will refuse it")
	for _, options := range []string{"", ",readonly", ",snapshot"} {
		p := runDisk(t, "path="+image+",format=qcow2"+options)
		p.ends(1)
		require.Contains(t, p.err.String(), secret)
		require.Contains(t, p.err.String(), "--allow-path")
	}
	copied := filepath.Join(dir, "copy.img")
	code, _, errs = godwit(t, "image", "convert", "--from", "qcow2", image, copied, "--to", "raw")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "--any-backing")
	require.NoFileExists(t, copied)
	p := runDisk(t, "path="+image+",format=qcow2", "--allow-path", filepath.Dir(secret))
	p.awaitBeats(2)
	p.signal(unix.SIGTERM)
	p.ends(0)
	p = runDisk(t, "path="+image+",format=qcow2,backing=any")
	p.awaitBeats(2)
	p.signal(unix.SIGTERM)
	p.ends(0)
	p = runDisk(t, "path="+image+",backing=any,format=raw")
	p.ends(2)
	p = runDisk(t, "path="+image+",format=qcow2", "--allow-path", filepath.Join(dir, "none"))
	p.ends(2)
	require.Contains(t, p.err.String(), "it would allow nothing")
	for _, allow := range [][]string{{"--any-backing"}, {"--allow-path", dir}} {
		code, _, errs = godwit(t, append([]string{"image", "convert", "--force", "--from", "qcow2", image, copied, "--to", "raw"}, allow...)...)
		require.Zero(t, code, errs)
	}
	require.FileExists(t, copied)
}

// TestDiskCutShort: a qcow2 image whose copy did not finish is told by name, and
// not run.
func TestDiskCutShort(t *testing.T) {
	needKVM(t)
	image := filepath.Join(t.TempDir(), "vm.qcow2")
	code, _, errs := godwit(t, "image", "create", image, "4M")
	require.Zero(t, code, errs)
	p := runDisk(t, "path="+image+",format=qcow2")
	p.awaitBeats(3)
	p.signal(unix.SIGTERM)
	p.ends(0)
	st, err := os.Stat(image)
	require.NoError(t, err)
	require.NoError(t, os.Truncate(image, st.Size()-3<<16))
	for _, options := range []string{"", ",readonly", ",snapshot"} {
		p = runDisk(t, "path="+image+",format=qcow2"+options)
		p.ends(1)
		require.Contains(t, p.err.String(), "cut short")
	}
	code, _, errs = godwit(t, "image", "convert", image, image+".raw", "--to", "raw")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "cut short")
	code, _, errs = godwit(t, "image", "check", image, "--repair", "all")
	require.Zero(t, code, errs)
	p = runDisk(t, "path="+image+",format=qcow2")
	p.awaitBeats(1)
	p.signal(unix.SIGTERM)
	p.ends(0)
}
