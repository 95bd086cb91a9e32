package blockfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ErrOutside says that a file lies below none of the folders that were allowed.
var ErrOutside = errors.New("it lies below none")

// ResolveBelow follows the links of path and gives the prefix that it then lies
// under, with the prefix's own links followed, and the way from there. Without a
// match the error has what is wrong with the prefixes, too. Links may change as
// soon as this returns: OpenBelow looks for itself.
func ResolveBelow(prefixes []string, path string) (root, rest string, err error) {
	if !filepath.IsAbs(path) {
		return "", "", errors.New("the path is not absolute")
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", "", err
	}
	whys := []error{ErrOutside}
	for _, prefix := range prefixes {
		root, err := rootOf(prefix)
		if err != nil {
			whys = append(whys, err)
			continue
		}
		if rest, err := filepath.Rel(root, resolved); err == nil && filepath.IsLocal(rest) {
			return root, rest, nil
		}
	}
	return "", "", errors.Join(whys...)
}

// rootOf is where a prefix leads. An operator may give one that starts at the
// working directory, but not one that says nothing.
func rootOf(prefix string) (string, error) {
	if prefix == "" {
		return "", errors.New("an --allow-path is empty")
	}
	abs, err := filepath.Abs(prefix)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

// OpenBelow opens the file at path as open(2) does, if it lies under one of
// prefixes at that moment.
func OpenBelow(prefixes []string, path string, flags int) (fd int, err error) {
	root, rest, err := ResolveBelow(prefixes, path)
	if err != nil {
		return -1, fmt.Errorf("open %q below an --allow-path: %w", path, err)
	}
	if rest == "." { // the prefix is no folder but the file
		return Detach(os.OpenFile(root, flags|unix.O_NOFOLLOW, 0))
	}
	return openIn(root, rest, flags)
}

// openIn opens a file on a way from root which no link leads out of, whoever
// changes what while we walk it: os.Root goes from folder to folder by their
// descriptors.
func openIn(root, way string, flags int) (fd int, err error) {
	r, err := os.OpenRoot(root)
	if err != nil {
		return -1, err
	}
	defer r.Close() // a folder, only read
	return Detach(r.OpenFile(way, flags, 0))
}

// openDirectly opens a file that lies in a folder itself and is no link, whoever
// changes what meanwhile: its name has one part, which the kernel looks up in
// the folder's descriptor.
func openDirectly(folder, name string, flags int) (fd int, err error) {
	at, err := unix.Open(folder, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(at)
	for {
		fd, err := unix.Openat(at, name, flags|unix.O_NOFOLLOW, 0)
		if err != unix.EINTR {
			return fd, err
		}
	}
}

// Detach gives a file's descriptor to a caller who closes it himself.
func Detach(f *os.File, err error) (fd int, _ error) {
	if err != nil {
		return -1, err
	}
	defer f.Close() // the duplicate stays
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}
