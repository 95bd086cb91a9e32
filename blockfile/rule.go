package blockfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrBackingNotAllowed says that an image names a backing file that its opener
// has not allowed.
var ErrBackingNotAllowed = errors.New("backing file not allowed")

// BackingRule judges the file that an image names as its backing file. image is
// the path by which the image was opened, path the file's, found by BackingPath.
// It gives the path to open and what opens it; a nil Opener is open(2).
//
// Whoever makes an image chooses that name, so without a rule the image of a
// stranger would show a guest any file of this host.
type BackingRule func(image, path string) (string, Opener, error)

// AnyBacking allows every backing file.
func AnyBacking(_, path string) (string, Opener, error) { return path, nil, nil }

// BackingBelow allows a backing file that lies in the folder of the image that
// names it, or below one of folders. It counts where the file lies once all
// links are followed, at the moment when it is opened.
//
// The image's folder is that folder alone, not the folders in it: a download
// lies in a home directory as often as not, next to ".ssh". An image that is no
// regular file has no folder of its own: /dev is full of other disks.
func BackingBelow(folders []string) BackingRule {
	return func(image, path string) (string, Opener, error) {
		path, err := filepath.Abs(path)
		if err != nil {
			return "", nil, err
		}
		folder, name, own, err := inOwnFolder(image, path)
		switch {
		case err != nil && !errors.Is(err, unix.EACCES):
			return "", nil, fmt.Errorf("backing file %q: %w", path, err)
		case own:
			return path, func(_ string, flags int) (int, error) { return openDirectly(folder, name, flags) }, nil
		}
		if _, _, err := ResolveBelow(folders, path); err == nil {
			return path, func(path string, flags int) (int, error) { return OpenBelow(folders, path, flags) }, nil
		}
		return "", nil, notAllowed(image, path)
	}
}

// inOwnFolder says whether path leads to a file in the image's folder, and
// gives the folder and the file's name there.
func inOwnFolder(image, path string) (folder, name string, own bool, err error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", "", false, err
	}
	st, err := os.Stat(image)
	if err != nil {
		return "", "", false, err
	}
	abs, err := filepath.Abs(filepath.Dir(image))
	if err != nil {
		return "", "", false, err
	}
	if folder, err = filepath.EvalSymlinks(abs); err != nil {
		return "", "", false, err
	}
	return folder, filepath.Base(resolved), st.Mode().IsRegular() && filepath.Dir(resolved) == folder, nil
}

func notAllowed(image, path string) error {
	if at, err := filepath.EvalSymlinks(path); err == nil {
		path = at // what would be allowed
	}
	return fmt.Errorf("%w: %q does not lie in the folder of %q, which names it, and an image can name any file of this host; if it should be read, pass --allow-path %q, or backing=any on --disk (godwit image: --any-backing)",
		ErrBackingNotAllowed, path, image, filepath.Dir(path))
}
