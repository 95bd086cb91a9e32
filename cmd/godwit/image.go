package main

import (
	"errors"
	"fmt"
	"math/bits"
	"strings"

	"github.com/spf13/cobra"

	"godwit/blockfile/qcow2"
	"godwit/blockfile/tool"
	"godwit/cmd/godwit/internal/plain"
	"godwit/cmd/godwit/internal/units"
)

func newImage() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "image",
		Short: "Look at, make, copy, compare, check and change disk images",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help() // it writes to stdout; nothing to do if that is gone
			return usage("image: say info, create, convert, check, compare, map, measure, resize, commit or rebase")
		},
	}
	cmd.AddCommand(newImageInfo(), newImageCreate(), newImageConvert(), newImageCheck(),
		newImageCompare(), newImageMap(), newImageMeasure(), newImageResize(), newImageCommit(), newImageRebase())
	return cmd
}

// formatValue is the name of an image's format.
type formatValue string

func (v *formatValue) Set(s string) error {
	if s != tool.Raw && s != tool.Qcow2 {
		return fmt.Errorf("format %.40q: %w; there are raw and qcow2", s, units.ErrSyntax)
	}
	*v = formatValue(s)
	return nil
}

func (v *formatValue) Type() string   { return "FORMAT" }
func (v *formatValue) String() string { return string(*v) }

// imageFlags are what create and convert say of a new image.
type imageFlags struct {
	force       bool
	clusterSize string
	compat      string
	refBits     int
	compression string
	backing     string
	backFormat  formatValue
	behind      backingFlags
}

func (i *imageFlags) add(cmd *cobra.Command) {
	name := cmd.Name()
	f := cmd.Flags()
	f.BoolVar(&i.force, "force", false, fmt.Sprintf("replace a file of that name, if no machine uses it, as in %s --force", name))
	f.StringVar(&i.clusterSize, "cluster-size", "", "qcow2: `SIZE` of its clusters, 512 to 2M, as in --cluster-size 128K (default 64K)")
	f.StringVar(&i.compat, "compat", "", "qcow2: `VERSION` of the format, v2 or v3, as in --compat v2 (default v3)")
	addCount(f, &i.refBits, "refcount-bits", 0, 1, 64, "qcow2: width of a reference count, 1, 2, 4, 8, 16, 32 or 64, as in --refcount-bits 8 (default 16)")
	f.StringVar(&i.compression, "compression", "", "qcow2: `KIND` of compression, zlib or zstd, as in --compression zstd (default zlib)")
	f.StringVar(&i.backing, "backing", "", "qcow2: `FILE` that shows where the image has nothing, as in --backing base.img; a relative name is stored so and starts at the image's folder")
	f.Var(&i.backFormat, "backing-format", "qcow2: format of the backing file, which is never guessed, as in --backing-format raw")
	i.behind.add(f)
}

// image gives what the flags say; formats and sizes are judged by tool.
func (i *imageFlags) image(path, format string) (tool.NewImage, error) {
	n := tool.NewImage{Path: path, Format: format, Force: i.force, Size: -1, RefcountBits: i.refBits,
		Backing: i.backing, BackingFormat: string(i.backFormat)}
	var err error
	if n.Rule, err = i.behind.rule(); err != nil {
		return n, err
	}
	switch i.compat {
	case "":
	case "v2", "0.10":
		n.Version = 2
	case "v3", "1.1":
		n.Version = 3
	default:
		return n, usage("--compat %s: write v2 or v3", i.compat)
	}
	switch i.compression {
	case "", "zlib":
	case "zstd":
		n.Compression = qcow2.Zstd
	default:
		return n, usage("--compression %s: write zlib or zstd", i.compression)
	}
	if i.clusterSize != "" {
		size, err := units.ParseSize(i.clusterSize)
		if err != nil {
			return n, err
		}
		if bits.OnesCount64(size) != 1 || size < 512 || size > 2<<20 {
			return n, usage("--cluster-size %s: a power of two from 512 to 2M", i.clusterSize)
		}
		n.ClusterBits = bits.TrailingZeros64(size)
	}
	switch i.refBits {
	case 0, 1, 2, 4, 8, 16, 32, 64:
	default:
		return n, usage("--refcount-bits %d: 1, 2, 4, 8, 16, 32 or 64", i.refBits)
	}
	if n.Version == 2 && (i.refBits != 0 && i.refBits != 16 || n.Compression != qcow2.Zlib) {
		return n, usage("--compat v2 has refcounts of 16 bits and zlib only")
	}
	return n, nil
}

func newImageCreate() *cobra.Command {
	var flags imageFlags
	format := formatValue(tool.Qcow2)
	var preallocate string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "create FILE [SIZE]",
		Short: "Make an empty image, or one over a backing file",
		Long: `Make an empty image, or one over a backing file.

SIZE is the disk's, such as 10G; over a backing file it may be left out and is the backing file's. A file of that name
is not replaced without --force. The image appears under its name when it is complete and on stable storage.`,
		Example: `  godwit image create disk.qcow2 10G
  godwit image create disk.img 10G --format raw
  godwit image create clone.qcow2 --backing base.img --backing-format raw`,
		Args: cobra.RangeArgs(1, 2),
		RunE: action(func(_ *cobra.Command, args []string) error {
			n, err := flags.image(args[0], string(format))
			if err != nil {
				return err
			}
			if len(args) == 2 {
				if n.Size, err = parseDiskSize(args[1]); err != nil {
					return err
				}
			}
			switch preallocate {
			case "off":
			case "metadata":
				n.Preallocate = true
			default:
				return usage("--preallocate %s: write off or metadata", preallocate)
			}
			if err := tool.Create(n); err != nil {
				return err
			}
			sayFarBacking(n.Path, n.Backing)
			if !asJSON {
				return nil
			}
			info, err := tool.Inspect(n.Path, n.Format, n.Rule)
			if err != nil {
				return err
			}
			return printJSON(info)
		}),
	}
	f := cmd.Flags()
	f.Var(&format, "format", "raw or qcow2, as in --format raw")
	flags.add(cmd)
	f.StringVar(&preallocate, "preallocate", "off", "qcow2: `WHAT` to lay out beforehand, off or metadata (every cluster has its place in the file, which stays sparse), as in --preallocate metadata")
	f.BoolVar(&asJSON, "json", false, "print one JSON object about the new image, as in create --json")
	f.SortFlags = false
	return cmd
}

func parseDiskSize(s string) (int64, error) {
	n, err := units.ParseSize(s)
	if err != nil {
		return 0, err
	}
	if n == 0 || n%512 != 0 || n > 1<<62 {
		return 0, usage("size %s: a disk has a multiple of 512 bytes, and at least one", s)
	}
	return int64(n), nil
}

func newImageInfo() *cobra.Command {
	var format formatValue
	var behind backingFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "info FILE",
		Short: "Describe an image and the files behind it",
		Long: `Describe an image and the files behind it. It takes no lock, so an image may be looked at while a machine uses it.

The format is that of the file's first bytes, unless --format says it. A guest can write those bytes on a raw disk, so
what is shown of an image of unknown origin is what it claims to be. A machine never looks: it wants format=.`,
		Example: "  godwit image info disk.qcow2\n  godwit image info disk.img --format raw --json",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(_ *cobra.Command, args []string) error {
			rule, err := behind.rule()
			if err != nil {
				return err
			}
			info, err := tool.Inspect(args[0], string(format), rule)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(info)
			}
			show(imageText(info))
			return nil
		}),
	}
	f := cmd.Flags()
	f.Var(&format, "format", "raw or qcow2, whatever the first bytes say, as in --format raw")
	behind.add(f)
	f.BoolVar(&asJSON, "json", false, "print one JSON object, as in info --json")
	f.SortFlags = false
	return cmd
}

// imageText is image info for people.
func imageText(i *tool.Info) string {
	var b strings.Builder
	for ; i != nil; i = i.Backing {
		line := func(name, format string, a ...any) {
			fmt.Fprintf(&b, "  %-11s %s\n", name, plain.Line(fmt.Sprintf(format, a...)))
		}
		by := map[string]string{"flag": "as you say", "magic": "by its first bytes", "header": "as the image above says"}[i.FormatFrom]
		fmt.Fprintln(&b, plain.Line(i.Path))
		line("format", "%s, %s", i.Format, by)
		line("disk", "%d bytes (%s)", i.VirtualSizeBytes, binarySize(i.VirtualSizeBytes))
		line("file", "%d bytes, %d of them allocated (%s)", i.FileSizeBytes, i.DiskSizeBytes, binarySize(i.DiskSizeBytes))
		switch {
		case i.InUseForWriting:
			line("in use", "locked by a machine that may write to it: figures may be old already")
		case i.InUse:
			line("in use", "locked by who reads it")
		}
		if q := i.Qcow2Info; q != nil {
			line("version", "%d", q.Version)
			line("clusters", "%d bytes, refcounts of %d bits, compression %s", q.ClusterSizeBytes, q.RefcountBits, q.Compression)
			line("snapshots", "%d", q.Snapshots)
			if q.Dirty {
				line("dirty", "refcounts may be wrong: godwit image check --repair all")
			}
			if q.Corrupt {
				line("corrupt", "it was found corrupt: godwit image check")
			}
			if q.BackingFile != "" {
				line("backing", "%s, format %s", q.BackingFile, orNone(q.BackingFormat))
			}
		}
		if i.BackingError != "" {
			line("", "which cannot be looked at: %s", oneLine(i.BackingError))
		}
	}
	return b.String()
}

// binarySize is a size for people, in the units that flags take.
func binarySize(n int64) string {
	v, unit := float64(n), "B"
	for _, next := range []string{"K", "M", "G", "T"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, next
	}
	return fmt.Sprintf("%.4g%s", v, unit)
}

// interrupted gives a cancelled command words of its own.
func interrupted(err, cause error, inPlace bool) error {
	if cause == nil {
		return err
	}
	if inPlace {
		return errors.New("interrupted; the target holds part of the disk")
	}
	return errors.New("interrupted; nothing was made")
}
