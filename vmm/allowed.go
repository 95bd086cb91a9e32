package vmm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"godwit/blockfile"
)

// Resolve follows the links of path and tells whether it then lies under one of
// prefixes, so that neither ".." nor a symbolic link leads out. A path that is not
// absolute, or does not exist, lies nowhere. Links may change as soon as this
// returns: what opens the file looks for itself (openBelow).
func Resolve(prefixes []string, path string) (resolved string, ok bool) {
	root, rest, err := resolve(prefixes, path)
	if err != nil {
		return "", false
	}
	return filepath.Join(root, rest), true
}

// resolve is Resolve in two parts: the prefix, with its own links followed, and
// the way from there. Without a match the error has what is wrong with the
// prefixes, too.
func resolve(prefixes []string, path string) (root, rest string, err error) {
	if !filepath.IsAbs(path) {
		return "", "", errors.New("the path is not absolute")
	}
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", "", err
	}
	whys := []error{errOutside}
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

var errOutside = errors.New("it lies below none")

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

// openBelow opens the file at path as open(2) does, if it lies under one of
// prefixes at that moment.
func openBelow(prefixes []string, path string, flags int) (fd int, err error) {
	root, rest, err := resolve(prefixes, path)
	if err != nil {
		return -1, fmt.Errorf("open %q below an --allow-path: %w", path, err)
	}
	if rest == "." { // the prefix is no folder but the file
		return detach(os.OpenFile(root, flags|unix.O_NOFOLLOW, 0))
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
	return detach(r.OpenFile(way, flags, 0))
}

// detach gives a file's descriptor to a caller who closes it himself.
func detach(f *os.File, err error) (fd int, _ error) {
	if err != nil {
		return -1, err
	}
	defer f.Close() // the duplicate stays
	return unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
}

// openAnywhere is open(2).
func openAnywhere(path string, flags int) (fd int, err error) {
	return detach(os.OpenFile(path, flags, 0))
}

// judged is the options of a machine whose configuration comes from a stranger:
// what it names is opened below AllowPrefixes, whatever has become of the links
// since it was judged.
func (in Incoming) judged() Options {
	o := in.Options
	o.Open, o.AllowBacking = in.open, in.allowBacking
	return o
}

// Rebuild is New for a machine that arrived and starts again after a reset. cfg
// has the paths that its parts have here.
func (in Incoming) Rebuild(cfg Config) (*Machine, error) { return New(cfg, in.judged()) }

// open opens what the operator named, or what lies below AllowPrefixes.
func (in Incoming) open(path string, flags int) (int, error) {
	for _, p := range in.Disks {
		if p == path {
			return openAnywhere(path, flags)
		}
	}
	return openBelow(in.AllowPrefixes, path, flags)
}

// allowBacking is Options.AllowBacking for what arrives, and for what starts again
// after a reset once it has arrived: what is behind an image lies below
// AllowPrefixes. It makes no difference that the operator named the image itself.
// The source says its format and may have written it, and a guest writes what it
// likes into a raw one: a header there could name any file of the host.
func (in Incoming) allowBacking(drive, path string) (string, blockfile.Opener, error) {
	resolved, ok := Resolve(in.AllowPrefixes, path)
	if !ok {
		return "", nil, fmt.Errorf("%w: disk %q: backing file %q is not below an --allow-path, or is missing; if the image should have it, start the receiver with --allow-path FOLDER",
			ErrIncompatible, drive, path)
	}
	return resolved, func(path string, flags int) (int, error) { return openBelow(in.AllowPrefixes, path, flags) }, nil
}
