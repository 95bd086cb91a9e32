package vmm

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/blockfile"
)

// twoFolders makes in/sub/f, which may be opened, and out/f, which may not.
func twoFolders(t *testing.T) (in, out string) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	in, out = filepath.Join(dir, "in"), filepath.Join(dir, "out")
	require.NoError(t, os.MkdirAll(filepath.Join(in, "sub"), 0o700))
	require.NoError(t, os.Mkdir(out, 0o700))
	for _, d := range []string{filepath.Join(in, "sub"), out} {
		require.NoError(t, os.WriteFile(filepath.Join(d, "f"), make([]byte, 1<<20), 0o600))
	}
	return in, out
}

// turn makes the folder in/sub a link to out.
func turn(t *testing.T, in, out string) {
	require.NoError(t, os.Rename(filepath.Join(in, "sub"), filepath.Join(in, "was")))
	require.NoError(t, os.Symlink(out, filepath.Join(in, "sub")))
}

// inode is which file fd is; it is closed.
func inode(t *testing.T, fd int) uint64 {
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.NoError(t, unix.Close(fd))
	return st.Ino
}

func TestNoLinkLeadsOut(t *testing.T) {
	in, out := twoFolders(t)
	secret, err := os.Open(filepath.Join(out, "f"))
	require.NoError(t, err)
	defer secret.Close()
	for name, to := range map[string]string{
		"absolute": filepath.Join(out, "f"),
		"relative": "../out/f",
		"magic":    fmt.Sprintf("/proc/self/fd/%d", secret.Fd()),
		"folder":   out,
		"round":    "round",
	} {
		require.NoError(t, os.Symlink(to, filepath.Join(in, name)))
		way := name
		if name == "folder" {
			way = "folder/f"
		}
		_, err := blockfile.OpenBelow([]string{in}, filepath.Join(in, way), unix.O_RDONLY)
		require.Error(t, err, name)
	}
	for _, way := range []string{"../out/f", "sub/../../out/f"} {
		_, err := blockfile.OpenBelow([]string{in}, filepath.Join(in, way), unix.O_RDONLY)
		require.Error(t, err, way)
	}
	fd, err := blockfile.OpenBelow([]string{in}, filepath.Join(in, "sub/f"), unix.O_RDONLY)
	require.NoError(t, err)
	var st unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(in, "sub", "f"), &st))
	require.Equal(t, st.Ino, inode(t, fd))
	_, err = blockfile.OpenBelow([]string{in}, filepath.Join(out, "f"), unix.O_RDONLY)
	require.ErrorContains(t, err, "--allow-path")
	_, err = blockfile.OpenBelow([]string{in}, filepath.Join(in, "none"), unix.O_RDONLY)
	require.ErrorIs(t, err, unix.ENOENT)
	_, err = blockfile.OpenBelow([]string{in}, filepath.Join(in, "round"), unix.O_RDONLY)
	require.ErrorContains(t, err, "too many links")
	_, err = blockfile.OpenBelow([]string{filepath.Join(in, "missing")}, filepath.Join(in, "sub", "f"), unix.O_RDONLY)
	require.ErrorIs(t, err, unix.ENOENT, "of the prefix")
	fd, err = blockfile.OpenBelow([]string{filepath.Join(out, "f")}, filepath.Join(out, "f"), unix.O_RDONLY)
	require.NoError(t, err, "a prefix may be the file itself")
	require.NoError(t, unix.Close(fd))
}

// A folder that turns into a link between the judgement and the opening leads
// nowhere: not for a disk, not for what is behind one, not for a kernel.
func TestWhatIsJudgedIsOpened(t *testing.T) {
	raw := Config{Drives: []Drive{{ID: "vda", IsReadOnly: true}}}.withDefaults().Drives[0]
	t.Run("disk", func(t *testing.T) {
		in, out := twoFolders(t)
		path := filepath.Join(in, "sub", "f")
		inc := Incoming{AllowPrefixes: []string{in}}
		raw.PathOnHost = path
		disks, err := inc.resolve([]Drive{raw})
		require.NoError(t, err)
		a := assembly{incoming: true, disks: disks, open: inc.judged().Open}
		d, err := newDrive(raw, a)
		require.NoError(t, err)
		require.NoError(t, d.close())
		turn(t, in, out)
		_, err = newDrive(raw, a)
		require.ErrorContains(t, err, "--allow-path")
	})
	t.Run("operator's disk", func(t *testing.T) {
		in, out := twoFolders(t)
		turn(t, in, out)
		inc := Incoming{Disks: map[string]string{"vda": filepath.Join(in, "sub", "f")}}
		d, err := newDrive(raw, assembly{incoming: true, disks: inc.Disks, open: inc.judged().Open})
		require.NoError(t, err, "links are the operator's own affair")
		require.NoError(t, d.close())
	})
	t.Run("backing file", func(t *testing.T) {
		in, out := twoFolders(t)
		path := qcowImage(t, filepath.Join(in, "sub", "f"))
		spec := driveSpec(path)
		spec.IsReadOnly = true
		inc := Incoming{AllowPrefixes: []string{in}, Disks: map[string]string{"vda": path}}
		judge := inc.judged().AllowBacking
		turned := false
		a := assembly{incoming: true, disks: inc.Disks, open: inc.judged().Open, backing: func(drive, image, path string) (string, blockfile.Opener, error) {
			path, open, err := judge(drive, image, path)
			turn(t, in, out)
			turned = true
			return path, open, err
		}}
		_, err := newDrive(spec, a)
		require.ErrorContains(t, err, "--allow-path")
		require.True(t, turned)
	})
	t.Run("kernel", func(t *testing.T) {
		in, out := twoFolders(t)
		path := filepath.Join(in, "sub", "f")
		open := Incoming{AllowPrefixes: []string{in}}.judged().Open
		f, img, err := openImage("kernel", path, open)
		require.NoError(t, err)
		require.EqualValues(t, 1<<20, img.Size)
		require.NoError(t, f.Close())
		turn(t, in, out)
		_, _, err = openImage("kernel", path, open)
		require.ErrorContains(t, err, "--allow-path")
	})
}

// While somebody exchanges a folder for a link all the time, what is opened is
// what lies below, or nothing.
func TestNoRaceLeadsOut(t *testing.T) {
	in, out := twoFolders(t)
	path := filepath.Join(in, "sub", "f")
	var allowed unix.Stat_t
	require.NoError(t, unix.Stat(path, &allowed))
	require.NoError(t, os.Symlink(out, filepath.Join(in, "link")))
	done := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			err := unix.Renameat2(unix.AT_FDCWD, filepath.Join(in, "sub"), unix.AT_FDCWD, filepath.Join(in, "link"), unix.RENAME_EXCHANGE)
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer func() {
		close(done)
		swapper.Wait()
	}()
	opened := 0
	for i := 0; i < 2000 || opened == 0; i++ {
		if fd, err := blockfile.OpenBelow([]string{in}, path, unix.O_RDONLY); err == nil {
			opened++
			require.Equal(t, allowed.Ino, inode(t, fd))
		}
	}
}
