package vmm

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

func driveSpec(path string) Drive {
	return Config{Drives: []Drive{{ID: "vda", PathOnHost: path, Format: "qcow2", Backing: BackingAny}}}.withDefaults().Drives[0]
}

// qcowImage makes an image over a raw base of a megabyte.
func qcowImage(t *testing.T, base string) string {
	t.Helper()
	require.NoError(t, os.WriteFile(base, make([]byte, 1<<20), 0o600))
	path := filepath.Join(t.TempDir(), "a.qcow2")
	h, err := blockfile.CreateHost(path, blockfile.Options{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(h, qcow2.CreateOptions{Size: 1 << 20, Backing: base, BackingFormat: "raw"}))
	require.NoError(t, h.Close())
	return path
}

func newTestDrive(t *testing.T, spec Drive, a assembly) *drive {
	t.Helper()
	p, err := newDrive(spec, a)
	require.NoError(t, err)
	return p.(*drive)
}

// TestSnapshotDriveSurvivesReset builds the drive of one machine after another.
func TestSnapshotDriveSurvivesReset(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	spec := driveSpec(qcowImage(t, filepath.Join(t.TempDir(), "base")))
	spec.Snapshot = true
	data := bytes.Repeat([]byte("guest!! "), 64)
	for _, keep := range []bool{true, false} {
		var overlays Overlays
		a := assembly{overlays: &overlays}
		if !keep {
			a.overlays = nil
		}
		d := newTestDrive(t, spec, a)
		_, err := d.file.Pwritev([][]byte{data}, 4096)
		require.NoError(t, err)
		require.NoError(t, d.close())
		d = newTestDrive(t, spec, a)
		got := make([]byte, 512)
		_, err = d.file.Preadv([][]byte{got}, 4096)
		require.NoError(t, err)
		require.Equal(t, keep, bytes.Equal(data, got))
		require.NoError(t, d.close())
		require.NoError(t, overlays.Close())
	}
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	require.NoError(t, canMove([]Drive{{ID: "vdb"}}))
	err = canMove([]Drive{{ID: "vdb"}, spec})
	require.ErrorIs(t, err, ErrCannotLeave)
	require.ErrorContains(t, err, `disk "vda" is a snapshot`)
	require.ErrorContains(t, Config{ID: "a", Drives: []Drive{spec}}.withDefaults().validate(true), "temporary file of the source")
}

// TestStrangersBackingFile has a source name an image that names a file which
// the destination's operator never allowed.
func TestStrangersBackingFile(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	path := qcowImage(t, secret)
	spec := driveSpec(path)
	source := newTestDrive(t, spec, assembly{})
	defer source.close()
	resolved, err := filepath.EvalSymlinks(path)
	require.NoError(t, err)
	allowed := Incoming{AllowPrefixes: []string{filepath.Dir(path)}}
	in := assembly{incoming: true, disks: map[string]string{"vda": resolved}}
	in.backing = func(drive, image, path string) (string, blockfile.Opener, error) {
		return allowed.allowBacking(drive, image, path)
	}
	_, err = newDrive(spec, in)
	require.ErrorIs(t, err, ErrIncompatible)
	require.ErrorContains(t, err, "--allow-path")
	allowed.AllowPrefixes = append(allowed.AllowPrefixes, filepath.Dir(secret))
	d := newTestDrive(t, spec, in)
	require.True(t, errors.Is(d.claim(), blockfile.ErrLocked))
	require.NoError(t, d.close())
	// That the operator named the image says nothing of what is written in it.
	allowed = Incoming{Disks: in.disks}
	_, err = newDrive(spec, in)
	require.ErrorIs(t, err, ErrIncompatible)
	require.ErrorContains(t, err, secret)
	allowed.AllowPrefixes = []string{filepath.Dir(secret)}
	d = newTestDrive(t, spec, in)
	require.NoError(t, source.release())
	require.NoError(t, d.claim())
	require.NoError(t, d.close())

	// After a reset it starts here again, and is still a stranger's.
	allowed = Incoming{AllowPrefixes: []string{filepath.Dir(path)}}
	_, err = newDrive(spec, assembly{backing: in.backing})
	require.ErrorIs(t, err, ErrIncompatible)
}

// TestFormatUnsaid: an image is judged when nobody said its format, once: what a
// guest writes to a raw disk later changes nothing about the next machine.
func TestFormatUnsaid(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk.img")
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	cfg := Config{ID: "a", BootSource: BootSource{Guest: GuestMetronome}, Machine: MachineConfig{MemSizeMiB: 64},
		Drives: []Drive{{PathOnHost: path}}}
	m, err := New(cfg, Options{})
	require.NoError(t, err)
	settled := m.Config()
	require.NoError(t, m.Close())
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	require.NoError(t, err)
	_, err = f.WriteAt([]byte("QFI\xfb\x00\x00\x00\x03"), 0)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	_, err = New(cfg, Options{})
	require.ErrorIs(t, err, blockfile.ErrFormatUnsaid)
	m, err = New(settled, Options{})
	require.NoError(t, err, "the machine after a reset")
	require.NoError(t, m.Close())
	// A source has said it, whatever its user did.
	require.Equal(t, "raw", settled.Drives[0].Format)
}

// TestBackingIsThisHosts: what a drive may read here goes to no other host.
func TestBackingIsThisHosts(t *testing.T) {
	m := &Machine{cfg: Config{ID: "a", Drives: []Drive{driveSpec("x")}}}
	wire, err := m.Source().Config()
	require.NoError(t, err)
	require.NotContains(t, string(wire), `"backing"`)
	require.Equal(t, BackingAny, m.cfg.Drives[0].Backing, "ours is as it was")
	for backing, format := range map[string]string{"all": "qcow2", BackingAny: "raw"} {
		c := Config{ID: "a", Drives: []Drive{{PathOnHost: "x", Backing: backing, Format: format}}}
		require.ErrorIs(t, c.withDefaults().validate(false), ErrConfig)
	}
	// A stranger's word for it counts for nothing.
	path := qcowImage(t, filepath.Join(t.TempDir(), "secret"))
	in := Incoming{Disks: map[string]string{"vda": path}}
	_, err = newDrive(driveSpec(path), assembly{incoming: true, disks: in.Disks, backing: in.judged().AllowBacking})
	require.ErrorIs(t, err, ErrIncompatible)
}

// failsToClose is a disk that cannot write its end.
type failsToClose struct{ blockfile.File }

func (f failsToClose) Close() error { return errors.Join(f.File.Close(), unix.ENOSPC) }

// TestUnwrittenDisk: what is not on a disk at the end has a name, and the disk's.
func TestUnwrittenDisk(t *testing.T) {
	spec := driveSpec(qcowImage(t, filepath.Join(t.TempDir(), "base")))
	d := newTestDrive(t, spec, assembly{})
	d.file = failsToClose{d.file}
	err := d.close()
	require.ErrorIs(t, err, ErrUnwritten)
	require.ErrorIs(t, err, unix.ENOSPC)
	require.ErrorContains(t, err, fmt.Sprintf("disk %q", spec.ID))
}
