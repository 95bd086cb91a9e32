package tool

import (
	"errors"
	"fmt"
	"os"

	"godwit/blockfile"
	"godwit/blockfile/qcow2"
)

// ErrOptions says that what was asked for contradicts itself.
var ErrOptions = errors.New("options do not fit together")

// NewImage says what a new image is to be. Zero values are defaults.
type NewImage struct {
	Path   string
	Format string // raw or qcow2
	Force  bool   // replace a file of that name
	// Size is the disk's in bytes; below 0 it is the backing file's.
	Size int64
	// What follows is for qcow2 alone.
	ClusterBits   int
	Version       int
	RefcountBits  int
	Compression   qcow2.Compression
	Backing       string // as stored: relative to the new image's folder
	BackingFormat string
	// Rule judges what lies behind the backing file, which itself is its maker's
	// choice.
	Rule blockfile.BackingRule
	// Preallocate gives every cluster its place, without writing it.
	Preallocate bool
}

func (n *NewImage) options() qcow2.CreateOptions {
	return qcow2.CreateOptions{Size: n.Size, ClusterBits: n.ClusterBits, Version: n.Version, RefcountBits: n.RefcountBits,
		Compression: n.Compression, Backing: n.Backing, BackingFormat: n.BackingFormat}
}

// check judges what can be judged without the new file, and looks at the
// backing file.
func (n *NewImage) check() error {
	wrong := func(format string, a ...any) error {
		return fmt.Errorf("%w: %s", ErrOptions, fmt.Sprintf(format, a...))
	}
	switch {
	case n.Format != Raw && n.Format != Qcow2:
		return wrong("format %q is not known; there are raw and qcow2", n.Format)
	case n.Format == Raw && n.options() != (qcow2.CreateOptions{Size: n.Size}) || n.Format == Raw && n.Preallocate:
		return wrong("a raw image has no clusters, versions, refcounts, compression, backing file or tables; use --format qcow2")
	case n.Backing != "" && n.BackingFormat != Raw && n.BackingFormat != Qcow2:
		return wrong("say the format of the backing file, raw or qcow2: it is never guessed from its contents")
	case n.Backing == "" && n.BackingFormat != "":
		return wrong("a format of a backing file, and no backing file")
	case n.Backing != "" && n.Preallocate:
		return wrong("an image whose clusters all have a place would hide its backing file")
	case n.Backing == "" && n.Size < 0:
		return wrong("how large? give a size, for example 10G, or a backing file")
	}
	if n.Backing != "" {
		path, err := blockfile.BackingPath(n.Backing, n.Path)
		if err != nil {
			return err
		}
		below, err := Inspect(path, n.BackingFormat, n.Rule)
		if err != nil {
			return fmt.Errorf("backing file: %w", err)
		}
		images := 1
		for b := below; b != nil; b = b.Backing {
			if b.BackingError != "" {
				return fmt.Errorf("backing file of %q: %s", b.Path, b.BackingError)
			}
			if b.Format == Qcow2 {
				images++
			}
			if sameFile(b.Path, n.Path) {
				return wrong("%q is to show what lies behind the new image of that name, which would replace it; give the image another name", n.Path)
			}
		}
		if images > blockfile.MaxChain {
			return wrong("%d qcow2 images would lie behind one another, and a machine opens %d; merge some with godwit image commit", images, blockfile.MaxChain)
		}
		if n.Size < 0 {
			n.Size = below.VirtualSizeBytes
		}
	}
	if n.Size == 0 || n.Size%512 != 0 {
		return wrong("a disk of %d bytes; it must be a multiple of 512, and not 0", n.Size)
	}
	return nil
}

// sameFile says whether two names stand for one file that exists.
func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return false
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// Create makes an empty image.
func Create(n NewImage) error {
	if err := n.check(); err != nil {
		return err
	}
	t, err := newTarget(n.Path, n.Force, nil)
	if err != nil {
		return err
	}
	if err := n.empty(t); err != nil {
		return errors.Join(fmt.Errorf("create %q: %w", n.Path, err), t.drop())
	}
	return t.finish()
}

func (n *NewImage) empty(t *target) error {
	switch {
	case n.Format == Raw:
		return t.Truncate(n.Size)
	case !n.Preallocate:
		return qcow2.Create(t.HostFile, n.options())
	}
	w, err := qcow2.NewWriter(t.HostFile, n.options())
	if err != nil {
		return err
	}
	for c := range w.Clusters() {
		if err := w.Reserve(c); err != nil {
			return err
		}
	}
	return w.Close()
}
