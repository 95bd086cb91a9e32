package blockfile

import (
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/blockfile/qcow2"
)

// ruled is two folders of images, "mine" and "elsewhere" with a secret in it.
type ruled struct {
	mine, elsewhere, secret string
}

func newRuled(t *testing.T) ruled {
	dir := t.TempDir()
	r := ruled{mine: filepath.Join(dir, "mine"), elsewhere: filepath.Join(dir, "elsewhere")}
	r.secret = filepath.Join(r.elsewhere, "secret")
	for _, folder := range []string{r.elsewhere, filepath.Join(r.mine, ".ssh")} {
		require.NoError(t, os.MkdirAll(folder, 0o700))
	}
	for _, path := range []string{r.secret, filepath.Join(r.mine, "base"), filepath.Join(r.mine, ".ssh", "key")} {
		require.NoError(t, os.WriteFile(path, random(7, testSize), 0o600))
	}
	return r
}

// over makes an image over a backing file of any name.
func (r ruled) over(t *testing.T, name, backing, format string) string {
	path := filepath.Join(r.mine, name)
	if filepath.IsAbs(name) {
		path = name
	}
	createQcow(t, path, qcow2.CreateOptions{Size: testSize, Backing: backing, BackingFormat: format}, nil)
	return path
}

func openRuled(path string, rule BackingRule) error {
	f, err := Open(path, Options{Format: FormatQcow2, ReadOnly: true, Backing: rule})
	if err != nil {
		return err
	}
	return f.Close()
}

// TestBackingStaysInItsFolder has strangers' images name files of this host in
// every way that leads out of their folder.
func TestBackingStaysInItsFolder(t *testing.T) {
	r := newRuled(t)
	link := func(name, to string) string {
		require.NoError(t, os.Symlink(to, filepath.Join(r.mine, name)))
		return name
	}
	r.over(t, "middle", r.secret, "raw")
	for name, backing := range map[string][2]string{
		"absolute":            {r.secret, "raw"},
		"relative":            {"../elsewhere/secret", "raw"},
		"there and back":      {"../mine/../elsewhere/secret", "raw"},
		"link":                {link("link", r.secret), "raw"},
		"link to a link":      {link("link2", "link"), "raw"},
		"folder's link":       {link("folder", r.elsewhere) + "/secret", "raw"},
		"a folder in it":      {".ssh/key", "raw"},
		"link to a folder in": {link("inner", ".ssh/key"), "raw"},
		"second layer":        {"middle", "qcow2"},
		"proc":                {"/proc/self/exe", "raw"},
	} {
		path := r.over(t, "over", backing[0], backing[1])
		err := openRuled(path, nil)
		require.ErrorIs(t, err, ErrBackingNotAllowed, name)
		require.ErrorContains(t, err, "--allow-path", name)
		require.ErrorContains(t, err, "backing=any", name)
		if filepath.Base(backing[0]) == "secret" || name == "link" || name == "link to a link" {
			require.ErrorContains(t, err, fmt.Sprintf("--allow-path %q", r.elsewhere), "%s: the advice helps", name)
			require.NoError(t, openRuled(path, BackingBelow([]string{r.elsewhere})), name)
		}
		if name != "proc" {
			require.NoError(t, openRuled(path, AnyBacking), name)
			require.NoError(t, openRuled(path, BackingBelow([]string{filepath.Dir(r.mine)})), name)
		}
		require.NoError(t, os.Remove(path))
	}
	for _, backing := range []string{"file:" + r.secret, "file:base", `json:{"driver":"raw","file":{"driver":"file","filename":"base"}}`, "nbd://host/x", "fat:x"} {
		path := r.over(t, "over", backing, "raw")
		require.ErrorContains(t, openRuled(path, AnyBacking), "only files are supported", backing)
		require.NoError(t, os.Remove(path))
	}
}

// TestBackingInItsFolder: what an image may have without asking.
func TestBackingInItsFolder(t *testing.T) {
	r := newRuled(t)
	base := filepath.Join(r.mine, "base")
	require.NoError(t, os.Symlink("base", filepath.Join(r.mine, "link")))
	require.NoError(t, os.Symlink(r.mine, filepath.Join(r.elsewhere, "mine")))
	for _, backing := range []string{"base", "./base", base, "link", "../mine/base"} {
		path := r.over(t, "over", backing, "raw")
		require.NoError(t, openRuled(path, nil), backing)
		require.NoError(t, openRuled(filepath.Join(r.elsewhere, "mine", "over"), nil), backing)
		require.NoError(t, os.Remove(path))
	}
	// Each layer counts from its own folder: the second one is allowed by its path,
	// the third lies beside the second.
	middle := r.over(t, filepath.Join(r.elsewhere, "middle"), "secret", "raw")
	top := r.over(t, "top", middle, "qcow2")
	require.ErrorIs(t, openRuled(top, nil), ErrBackingNotAllowed)
	require.NoError(t, openRuled(top, BackingBelow([]string{middle})))
	// A relative name of the image itself.
	t.Chdir(r.mine)
	r.over(t, "here", "base", "raw")
	require.NoError(t, openRuled("here", nil))
	require.ErrorContains(t, openRuled(r.over(t, "none", "missing", "raw"), nil), "missing")
}

// TestNoRaceLeadsOutOfTheFolder exchanges a backing file for a link all the
// time: what is opened lies in the folder, or nothing is.
func TestNoRaceLeadsOutOfTheFolder(t *testing.T) {
	r := newRuled(t)
	path := r.over(t, "over", "base", "raw")
	base := filepath.Join(r.mine, "base")
	link := filepath.Join(r.mine, "link")
	require.NoError(t, os.Symlink(r.secret, link))
	var inside unix.Stat_t
	require.NoError(t, unix.Stat(base, &inside))
	done := make(chan struct{})
	var swapper sync.WaitGroup
	swapper.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, base, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer func() {
		close(done)
		swapper.Wait()
	}()
	rule := BackingBelow(nil)
	opened := 0
	for i := 0; i < 2000 || opened == 0; i++ {
		allowed, open, err := rule(path, base)
		if err != nil {
			continue
		}
		fd, err := open(allowed, unix.O_RDONLY|unix.O_CLOEXEC)
		if err != nil {
			continue
		}
		opened++
		var st unix.Stat_t
		require.NoError(t, unix.Fstat(fd, &st))
		require.NoError(t, unix.Close(fd))
		require.Equal(t, inside.Ino, st.Ino)
	}
}

// TestFormatUnsaid: an image of another format is not opened raw by default,
// and is when that is said.
func TestFormatUnsaid(t *testing.T) {
	at := func(off int, text string) []byte {
		b := make([]byte, testSize)
		copy(b[off:], text)
		return b
	}
	for i, c := range []struct {
		content []byte
		says    string
	}{
		{at(0, "QFI\xfb\x00\x00\x00\x03"), "format=qcow2"},
		{at(0, "QFI\xfb\x00\x00\x00\x02"), "format=qcow2"},
		{at(0, "QFI\xfb\x00\x00\x00\x01"), "a qcow image"},
		{at(0, "QED\x00"), "qed"},
		{at(0, "KDMV"), "vmdk"},
		{at(0, "COWD"), "vmdk"},
		{at(0, "# Disk DescriptorFile\n"), "vmdk"},
		{at(0x40, "\x7f\x10\xda\xbe"), "vdi"},
		{at(0, "vhdxfile"), "vhdx"},
		{at(0, "conectix"), "vpc"},
		{at(testSize-512, "conectix"), "vpc"},
		{at(0, "WithouFreSpacExt"), "parallels"},
		{at(testSize-512, "koly"), "dmg"},
	} {
		path := image(t, c.content)
		for _, o := range []Options{{}, {ReadOnly: true}, {Cache: CacheNone}, {Cache: CacheWritethrough}} {
			o.Probe = true
			_, err := Open(path, o)
			require.ErrorIs(t, err, ErrFormatUnsaid, "%d", i)
			require.ErrorContains(t, err, c.says)
			require.ErrorContains(t, err, "format=raw")
			o.Probe = false
			f, err := Open(path, o)
			require.NoError(t, err, "raw was said")
			require.NoError(t, f.Close())
		}
		v, err := NewOverlay()
		require.NoError(t, err)
		_, err = Open(path, Options{Probe: true, Overlay: v})
		require.ErrorIs(t, err, ErrFormatUnsaid)
		require.NoError(t, v.Close())
	}
	for i, content := range [][]byte{at(0, ""), at(0, "QFI"), at(4, "QFI\xfb"), at(0, "LUKS\xba\xbe\x00\x02"), at(510, "\x55\xaa")} {
		f, err := Open(image(t, content), Options{Probe: true})
		require.NoError(t, err, fmt.Sprint(i))
		require.NoError(t, f.Close())
	}
}

// TestBlockDeviceHasNoFolder: an image on a device does not lie "beside" the
// other devices of /dev.
func TestBlockDeviceHasNoFolder(t *testing.T) {
	dev := loopDevice(t, make([]byte, 1<<20), 512)
	h, err := OpenHost(dev, Options{})
	require.NoError(t, err)
	require.NoError(t, qcow2.Create(h, qcow2.CreateOptions{Size: testSize, Backing: "null", BackingFormat: "raw"}))
	require.NoError(t, h.Close())
	require.ErrorIs(t, openRuled(dev, nil), ErrBackingNotAllowed)
	require.ErrorContains(t, openRuled(dev, BackingBelow([]string{"/dev"})), "neither a regular file", "allowed, and no disk")
}
