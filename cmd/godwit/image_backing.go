package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/pflag"

	"godwit/blockfile"
	"godwit/cmd/godwit/internal/units"
)

// pathsValue collects --allow-path: folders, or files, that are there.
type pathsValue []string

func (v *pathsValue) Set(s string) error {
	if _, err := os.Stat(s); err != nil {
		if e := new(fs.PathError); errors.As(err, &e) {
			err = e.Err // the path stands in front already, in a form that any terminal can take
		}
		return fmt.Errorf("%.200q: %w: it would allow nothing: %w", s, units.ErrSyntax, err)
	}
	*v = append(*v, s)
	return nil
}

func (v *pathsValue) Type() string   { return "FOLDER" }
func (v *pathsValue) String() string { return "" }

// backingFlags say which backing files the images of `godwit image` may name.
type backingFlags struct {
	allow pathsValue
	any   bool
}

func (b *backingFlags) add(f *pflag.FlagSet) {
	f.Var(&b.allow, "allow-path", "open backing files below this `FOLDER`, too, and not only in the folder of the image that names them; may be repeated, as in --allow-path /srv/bases")
	f.BoolVar(&b.any, "any-backing", false, "open any backing file that the images name, for images whose maker you trust, as in --any-backing")
}

func (b *backingFlags) rule() (blockfile.BackingRule, error) {
	switch {
	case b.any && len(b.allow) > 0:
		return nil, usage("both --any-backing, which allows every folder, and --allow-path; give one")
	case b.any:
		return blockfile.AnyBacking, nil
	}
	return blockfile.BackingBelow(b.allow), nil
}

// sayFarBacking warns of a new image that a machine will not open as it is.
func sayFarBacking(image, backing string) {
	if backing == "" {
		return
	}
	path, err := blockfile.BackingPath(backing, image)
	if err == nil {
		_, _, err = blockfile.BackingBelow(nil)(image, path)
	}
	if err != nil {
		tell("note: %v", err)
	}
}
