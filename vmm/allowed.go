package vmm

import (
	"fmt"
	"os"
	"path/filepath"

	"godwit/blockfile"
)

// Resolve follows the links of path and tells whether it then lies under one of
// prefixes, so that neither ".." nor a symbolic link leads out. A path that is not
// absolute, or does not exist, lies nowhere. Links may change as soon as this
// returns: what opens the file looks for itself (blockfile.OpenBelow).
func Resolve(prefixes []string, path string) (resolved string, ok bool) {
	root, rest, err := blockfile.ResolveBelow(prefixes, path)
	if err != nil {
		return "", false
	}
	return filepath.Join(root, rest), true
}

// openAnywhere is open(2).
func openAnywhere(path string, flags int) (fd int, err error) {
	return blockfile.Detach(os.OpenFile(path, flags, 0))
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
	return blockfile.OpenBelow(in.AllowPrefixes, path, flags)
}

// allowBacking is Options.AllowBacking for what arrives, and for what starts again
// after a reset once it has arrived: what is behind an image lies below
// AllowPrefixes. It makes no difference that the operator named the image itself.
// The source says its format and may have written it, and a guest writes what it
// likes into a raw one: a header there could name any file of the host.
func (in Incoming) allowBacking(drive, _, path string) (string, blockfile.Opener, error) {
	resolved, ok := Resolve(in.AllowPrefixes, path)
	if !ok {
		return "", nil, fmt.Errorf("%w: disk %q: backing file %q is not below an --allow-path, or is missing; if the image should have it, start the receiver with --allow-path FOLDER",
			ErrIncompatible, drive, path)
	}
	return resolved, func(path string, flags int) (int, error) { return blockfile.OpenBelow(in.AllowPrefixes, path, flags) }, nil
}
