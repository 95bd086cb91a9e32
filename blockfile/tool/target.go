package tool

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"godwit/blockfile"
)

// ErrExists says that there is a file of the new image's name.
var ErrExists = errors.New("file exists")

// target is a new image that has no name yet.
type target struct {
	*blockfile.HostFile
	path, temp string
	force      bool
}

// newTarget begins a new image beside path. With force it may replace an image,
// but not one that is in use. sources are the files whose contents it gets.
func newTarget(path string, force bool, sources []access) (*target, error) {
	replaced, err := mayReplace(path, force)
	if err != nil {
		return nil, err
	}
	temp := filepath.Join(filepath.Dir(path), fmt.Sprintf(".%s.godwit-%x", filepath.Base(path), rand.Uint64()))
	f, err := blockfile.CreateHost(temp, blockfile.Options{})
	if err != nil {
		return nil, fmt.Errorf("create %q: %w", path, err)
	}
	t := &target{HostFile: f, path: path, temp: temp, force: force}
	if err := permit(f, replaced, sources); err != nil {
		return nil, errors.Join(fmt.Errorf("create %q: %w", path, err), t.drop())
	}
	return t, nil
}

// mayReplace judges what is at path, and gives whose it is; nil for nothing.
func mayReplace(path string, force bool) (*access, error) {
	var st unix.Stat_t
	err := unix.Lstat(path, &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("create %q: %w", path, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return nil, fmt.Errorf("create %q: %w and is no regular file; only those are replaced; to copy into a block device: convert -n --to raw", path, ErrExists)
	}
	old, err := look(path)
	if err != nil {
		return nil, err
	}
	used, _, err := old.Users()
	if err = errors.Join(err, old.Close()); err == nil && used {
		err = fmt.Errorf("replace %q: %w; stop the machine that uses it", path, blockfile.ErrLocked)
	}
	if err == nil && !force {
		err = fmt.Errorf("create %q: %w; pass --force to replace it", path, ErrExists)
	}
	a := accessOf(&st)
	return &a, err
}

// finish makes the image stable and gives it its name.
func (t *target) finish() error {
	if err := t.commit(); err != nil {
		return errors.Join(fmt.Errorf("create %q: %w", t.path, err), t.drop())
	}
	return t.Close()
}

func (t *target) commit() error {
	if err := t.Flush(); err != nil {
		return err
	}
	if _, err := mayReplace(t.path, t.force); err != nil {
		return err
	}
	if err := t.rename(); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(t.path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// rename gives the file its name and, without force, takes it from nobody who
// came in between.
func (t *target) rename() error {
	if t.force {
		return os.Rename(t.temp, t.path)
	}
	err := unix.Renameat2(unix.AT_FDCWD, t.temp, unix.AT_FDCWD, t.path, unix.RENAME_NOREPLACE)
	switch {
	case errors.Is(err, unix.EEXIST):
		return fmt.Errorf("%w; pass --force to replace it", ErrExists)
	case errors.Is(err, unix.EINVAL): // a file system that cannot, such as NFS
		if err := os.Link(t.temp, t.path); err != nil {
			return err
		}
		return os.Remove(t.temp)
	}
	return err
}

// drop gives a target up that has not got its name.
func (t *target) drop() error {
	err := t.Close()
	if rm := os.Remove(t.temp); rm != nil && !errors.Is(rm, os.ErrNotExist) {
		err = errors.Join(err, rm)
	}
	return err
}
