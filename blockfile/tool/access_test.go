package tool

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

// withUmask sets this process's umask for a test.
func withUmask(t *testing.T, mask int) {
	old := unix.Umask(mask)
	t.Cleanup(func() { unix.Umask(old) })
}

func modeOf(t *testing.T, path string) os.FileMode {
	st, err := os.Stat(path)
	require.NoError(t, err)
	return st.Mode().Perm()
}

// TestConvertKeepsSecrets: nobody may read the copy of a disk who may not read
// the disk, or what lies behind it.
func TestConvertKeepsSecrets(t *testing.T) {
	withUmask(t, 0o022)
	src := rawImage(t, disk(1))
	target := func() string { return filepath.Join(t.TempDir(), "copy.img") }
	for mode, want := range map[os.FileMode]os.FileMode{0o600: 0o600, 0o400: 0o600, 0o640: 0o640, 0o644: 0o644, 0o666: 0o644} {
		require.NoError(t, os.Chmod(src, mode))
		for _, format := range []string{Raw, Qcow2} {
			n := NewImage{Path: target(), Format: format}
			convert(t, Conversion{Source: src, SourceFormat: Raw, Target: n})
			require.Equal(t, want, modeOf(t, n.Path), "%v", mode)
		}
	}
	// A public overlay of a secret disk.
	require.NoError(t, os.Chmod(src, 0o600))
	over := NewImage{Path: filepath.Join(filepath.Dir(src), "over.qcow2"), Format: Qcow2, Size: -1, Backing: "disk.img", BackingFormat: Raw}
	require.NoError(t, Create(over))
	require.Equal(t, os.FileMode(0o644), modeOf(t, over.Path), "it holds nothing yet")
	n := NewImage{Path: target(), Format: Raw}
	convert(t, Conversion{Source: over.Path, SourceFormat: Qcow2, Target: n})
	require.Equal(t, os.FileMode(0o600), modeOf(t, n.Path))
	// The umask of whoever asks.
	unix.Umask(0o077)
	require.NoError(t, os.Chmod(src, 0o644))
	n.Path = target()
	convert(t, Conversion{Source: src, SourceFormat: Raw, Target: n})
	require.Equal(t, os.FileMode(0o600), modeOf(t, n.Path))
}

// TestForceKeepsAccess: a file that is replaced keeps its owner, group and mode.
func TestForceKeepsAccess(t *testing.T) {
	withUmask(t, 0o022)
	src := rawImage(t, disk(1))
	path := filepath.Join(t.TempDir(), "old.img")
	for _, mode := range []os.FileMode{0o600, 0o660, 0o644} {
		require.NoError(t, os.WriteFile(path, []byte("old"), 0o600))
		require.NoError(t, os.Chmod(path, mode))
		if os.Getuid() == 0 {
			require.NoError(t, os.Chown(path, 1234, 4321))
		}
		require.NoError(t, Create(NewImage{Path: path, Format: Raw, Size: 1 << 20, Force: true}))
		require.Equal(t, mode, modeOf(t, path))
		n := NewImage{Path: path, Format: Qcow2, Force: true}
		require.NoError(t, os.Chmod(src, 0o644))
		convert(t, Conversion{Source: src, SourceFormat: Raw, Target: n})
		// The new group may read no more than everybody may of the source.
		require.Equal(t, mode&0o644, modeOf(t, path))
		if os.Getuid() == 0 {
			var st unix.Stat_t
			require.NoError(t, unix.Stat(path, &st))
			require.EqualValues(t, []uint32{1234, 4321}, []uint32{st.Uid, st.Gid})
		}
		require.NoError(t, os.Remove(path))
	}
	require.Equal(t, access{mode: 0o604, gid: 1}, access{mode: 0o664, gid: 1}.below(access{mode: 0o644 &^ 0o040, gid: 1}))
	require.Equal(t, access{mode: 0o600, gid: 1}, access{mode: 0o660, gid: 1}.below(access{mode: 0o660, gid: 2}))
}

// TestForeignFormats: what other programs keep disks in is no raw disk, unless
// that is said.
func TestForeignFormats(t *testing.T) {
	for format, head := range map[string]string{"vmdk": "KDMV", "vhdx": "vhdxfile", "qed": "QED\x00", "vpc": "conectix", "qcow": "QFI\xfb\x00\x00\x00\x01"} {
		b := make([]byte, 1<<20)
		copy(b, head)
		src := rawImage(t, b)
		n := NewImage{Path: filepath.Join(t.TempDir(), "new.qcow2"), Format: Qcow2}
		_, err := Convert(context.Background(), Conversion{Source: src, Target: n})
		require.ErrorIs(t, err, ErrForeign)
		require.ErrorContains(t, err, "a "+format+" image")
		require.NoFileExists(t, n.Path)
		_, err = Inspect(src, "", nil)
		require.ErrorIs(t, err, ErrForeign)
		_, err = Detect(src)
		require.ErrorIs(t, err, ErrForeign)
		convert(t, Conversion{Source: src, SourceFormat: Raw, Target: n})
	}
}

// TestConvertJudgesBacking: the source's chain is judged as a machine's is.
func TestConvertJudgesBacking(t *testing.T) {
	secret := rawImage(t, disk(1))
	over := filepath.Join(t.TempDir(), "over.qcow2")
	h, err := blockfile.CreateHost(over, blockfile.Options{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(h, qcow2.CreateOptions{Size: int64(len(disk(1))), Backing: secret, BackingFormat: Raw}))
	require.NoError(t, h.Close())
	c := Conversion{Source: over, SourceFormat: Qcow2, Target: NewImage{Path: filepath.Join(t.TempDir(), "new.img"), Format: Raw}}
	_, err = Convert(context.Background(), c)
	require.ErrorIs(t, err, blockfile.ErrBackingNotAllowed)
	require.NoFileExists(t, c.Target.Path)
	i, err := Inspect(over, "", nil)
	require.NoError(t, err)
	require.Nil(t, i.Backing)
	require.Contains(t, i.BackingError, "--allow-path")
	// A new image over such an overlay: the overlay is its maker's choice, what
	// lies behind that is not.
	n := NewImage{Path: filepath.Join(filepath.Dir(over), "top.qcow2"), Format: Qcow2, Size: -1, Backing: over, BackingFormat: Qcow2}
	require.ErrorContains(t, Create(n), "does not lie in the folder")
	c.Rule = blockfile.BackingBelow([]string{filepath.Dir(secret)})
	convert(t, c)
	n.Rule = c.Rule
	require.NoError(t, Create(n))
}
