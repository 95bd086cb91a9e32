package blockfile

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"godwit/blockfile/qcow2"
)

const (
	// MaxChain is how many qcow2 images a disk may have, each behind the one
	// before; a raw image may lie behind the last.
	MaxChain = 32
	// maxChainTables bounds the memory of all their L1 tables, bytes. One that maps
	// 64 TiB by clusters of 64 KiB takes 2 MiB of it, the largest that the format
	// knows 64 MiB.
	maxChainTables = 128 << 20
)

// chain is the images from the top one down to the one being opened.
type chain struct {
	files  []fileID
	tables int64 // bytes of memory that their tables take
}

// fileID tells files apart, whatever their names.
type fileID struct{ dev, ino uint64 }

// with adds a file, which must not be there yet.
func (c chain) with(r *raw, path string) (chain, error) {
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return c, fmt.Errorf("stat: %w", err)
	}
	id := fileID{st.Dev, st.Ino}
	for _, other := range c.files {
		if other == id {
			return c, fmt.Errorf("its backing files go round in a circle, back to %q", path)
		}
	}
	if len(c.files) == MaxChain {
		return c, fmt.Errorf("more than %d qcow2 images behind one another; merge some with godwit image commit", MaxChain)
	}
	c.files = append(c.files[:len(c.files):len(c.files)], id)
	return c, nil
}

// withTables adds what an image keeps in memory.
func (c chain) withTables(h *qcow2.Header) (chain, error) {
	c.tables += h.TableBytes()
	if c.tables > maxChainTables {
		return c, fmt.Errorf("the L1 tables of this image and of those before it take %d MiB of memory, more than the %d MiB that a disk may take; merge some with godwit image commit, or convert them to larger clusters",
			c.tables>>20, maxChainTables>>20)
	}
	return c, nil
}

// openBacking opens, read-only, what an image's header names; nil if nothing.
// The format is what the header says. It is never guessed: the backing file of
// a raw disk has been in a guest's hands, which could have written a qcow2
// header there that names any file of the host. QEMU since 6.1 makes no image
// that leaves it out, and we open none.
func openBacking(h *qcow2.Header, image string, o Options, c chain) (File, error) {
	if h.Backing == "" {
		return nil, nil
	}
	format, err := ParseFormat(h.BackingFormat)
	if h.BackingFormat == "" {
		return nil, fmt.Errorf("it does not say the format of its backing file %q, which is not guessed; set it: godwit image rebase %q --header-only --backing %q --backing-format raw (or qcow2)",
			h.Backing, image, h.Backing)
	}
	if err != nil {
		return nil, fmt.Errorf("backing file %q: %w", h.Backing, err)
	}
	path, err := BackingPath(h.Backing, image)
	if err != nil {
		return nil, err
	}
	missing := func(err error) error {
		return fmt.Errorf("backing file %q missing; put it there, or say where it is: godwit image rebase %q --header-only --backing PATH --backing-format %s: %w", path, image, h.BackingFormat, err)
	}
	rule := o.Backing
	if rule == nil {
		rule = BackingBelow(nil)
	}
	allowed, open, err := rule(image, path)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, missing(err)
	case err != nil:
		return nil, err
	}
	path = allowed
	f, err := openFormat(path, Options{ReadOnly: true, Cache: o.Cache, Format: format, NoLock: o.NoLock, Open: open, Backing: o.Backing}, c)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil, missing(err)
	case err != nil:
		return nil, fmt.Errorf("backing file %q: %w", path, err)
	}
	return f, nil
}

// BackingPath finds the file that an image names: from the image's folder on.
func BackingPath(name, image string) (string, error) {
	if strings.ContainsRune(name, 0) {
		return "", fmt.Errorf("backing file %q: not a file name", name)
	}
	// QEMU takes what has a colon before any slash for a protocol.
	if before, _, ok := strings.Cut(name, ":"); ok && !strings.Contains(before, "/") {
		return "", fmt.Errorf("backing file %q: only files are supported; a file of this name is written ./%s", name, name)
	}
	if filepath.IsAbs(name) {
		return name, nil
	}
	return filepath.Join(filepath.Dir(image), name), nil
}
