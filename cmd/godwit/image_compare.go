package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"godwit/blockfile/tool"
	"godwit/cmd/godwit/internal/plain"
)

// sourceFlags say how to read an image.
type sourceFlags struct {
	format   formatValue
	snapshot string
	behind   backingFlags
}

func (s *sourceFlags) add(f *pflag.FlagSet) {
	f.Var(&s.format, "from", "the image's format, raw or qcow2, as in --from raw (default by its first bytes)")
	f.StringVarP(&s.snapshot, "snapshot", "l", "", "qcow2: read the internal snapshot of this `NAME` or id instead of the disk, as in --snapshot before-update")
	s.behind.add(f)
}

func (s *sourceFlags) source(path string) (tool.Source, error) {
	rule, err := s.behind.rule()
	return tool.Source{Path: path, Format: string(s.format), Snapshot: s.snapshot, Rule: rule}, err
}

func newImageCompare() *cobra.Command {
	var flags sourceFlags
	var other formatValue
	var strict, asJSON bool
	cmd := &cobra.Command{
		Use:   "compare IMAGE OTHER",
		Short: "Say whether two images hold the same disk",
		Long: `Say whether two images hold the same disk, whatever their formats. Both, and what is behind them, are locked for reading
meanwhile. A disk that is longer is the same if the rest is zeroes, unless --strict.

Exit codes: 0 the disks are the same; 1 they differ, or could not be compared (the status of --json tells which); 2 bad usage.`,
		Example: "  godwit image compare disk.img disk.qcow2\n  godwit image compare --from qcow2 --snapshot clean vm.qcow2 now.img --strict --json",
		Args:    cobra.ExactArgs(2),
		RunE: action(func(_ *cobra.Command, args []string) error {
			one, err := flags.source(args[0])
			if err != nil {
				return err
			}
			ctx, stop := untilSignal()
			defer stop()
			show := newCopyProgress()
			c, err := tool.Compare(ctx, one, tool.Source{Path: args[1], Format: string(other), Rule: one.Rule}, strict, show.show)
			show.clear()
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(c)
			} else {
				tell("%s", comparedText(c))
			}
			if err == nil && c.Status != "identical" {
				return &exitError{code: exitFailed}
			}
			return err
		}),
	}
	f := cmd.Flags()
	flags.add(f)
	f.Var(&other, "other", "the other image's format, raw or qcow2, as in --other raw (default by its first bytes)")
	f.BoolVar(&strict, "strict", false, "sizes must be the same, too, as in compare --strict")
	f.BoolVar(&asJSON, "json", false, "print one JSON object, as in compare --json")
	f.SortFlags = false
	return cmd
}

func comparedText(c *tool.Compared) string {
	sizes := fmt.Sprintf("%d and %d bytes", c.SizesBytes[0], c.SizesBytes[1])
	switch {
	case c.FirstDifferenceBytes >= 0:
		return fmt.Sprintf("they differ from byte %d on", c.FirstDifferenceBytes)
	case c.Status != "identical":
		return "they differ in their size, " + sizes
	case c.SizesBytes[0] != c.SizesBytes[1]:
		return "they hold the same, of " + sizes + "; the rest is zeroes"
	}
	return "they hold the same"
}

func newImageMap() *cobra.Command {
	var flags sourceFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "map IMAGE",
		Short: "List what holds each piece of a disk",
		Long: `List what holds each piece of a disk: data, compressed data or zeroes, in which image of the chain (depth 0 is IMAGE), and at
which byte of that image's file. Pieces that no image has read as zeroes.

With --json it prints one JSON array, as qemu-img map does, with units in the names.`,
		Example: "  godwit image map disk.qcow2\n  godwit image map --from qcow2 clone.qcow2 --json",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(_ *cobra.Command, args []string) error {
			s, err := flags.source(args[0])
			if err != nil {
				return err
			}
			ctx, stop := untilSignal()
			defer stop()
			out := bufio.NewWriter(os.Stdout)
			each := func(e tool.MapEntry) error { _, err := out.WriteString(mapLine(e)); return err }
			end := ""
			if asJSON {
				begin := "["
				end = "]\n"
				each = func(e tool.MapEntry) error {
					b, err := json.Marshal(e)
					if err == nil {
						_, err = out.WriteString(begin + string(plain.JSON(b)))
					}
					begin = ","
					return err
				}
			}
			if err := tool.Map(ctx, s, each); err != nil {
				return err
			}
			_, err = out.WriteString(end)
			return errors.Join(err, out.Flush())
		}),
	}
	f := cmd.Flags()
	flags.add(f)
	f.BoolVar(&asJSON, "json", false, "print one JSON array, as in map --json")
	f.SortFlags = false
	return cmd
}

func mapLine(e tool.MapEntry) string {
	kind := "zeroes"
	switch {
	case e.Compressed:
		kind = "compressed"
	case e.Data:
		kind = "data"
	}
	where := ""
	if e.Present {
		where = fmt.Sprintf(" depth %d %s", e.Depth, plain.Line(e.Path))
	}
	if e.OffsetBytes != nil {
		where += fmt.Sprintf(" at %d", *e.OffsetBytes)
	}
	return strings.TrimRight(fmt.Sprintf("%14d %14d %-10s%s", e.StartBytes, e.LengthBytes, kind, where), " ") + "\n"
}

func newImageMeasure() *cobra.Command {
	var flags sourceFlags
	var target imageFlags
	to := formatValue(tool.Qcow2)
	var size string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "measure [IMAGE]",
		Short: "Say how large a new image would be",
		Long: `Say how large a new image would be: with what IMAGE holds, uncompressed, or empty with --size. Both figures are lengths of
the file; the second is that of a disk whose every cluster is written. They are those of qemu-img measure.`,
		Example: "  godwit image measure disk.img\n  godwit image measure --size 100G --cluster-size 2M --json",
		Args:    cobra.MaximumNArgs(1),
		RunE: action(func(_ *cobra.Command, args []string) error {
			n, err := target.image("", string(to))
			if err != nil {
				return err
			}
			s, err := flags.source("")
			switch {
			case err != nil:
				return err
			case (len(args) == 1) == (size != ""):
				return usage("measure: give an image, or --size SIZE")
			case len(args) == 1:
				s.Path = args[0]
			default:
				if n.Size, err = parseDiskSize(size); err != nil {
					return err
				}
			}
			n.Rule = s.Rule
			ctx, stop := untilSignal()
			defer stop()
			m, err := tool.Measure(ctx, s, n)
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(m)
			}
			show(fmt.Sprintf("required        %d bytes (%s)\nfully allocated %d bytes (%s)\n",
				m.RequiredBytes, binarySize(m.RequiredBytes), m.FullyAllocatedBytes, binarySize(m.FullyAllocatedBytes)))
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringVar(&size, "size", "", "measure an empty disk of this `SIZE` instead of an image, as in --size 10G")
	flags.add(f)
	f.Var(&to, "to", "the new image's format, raw or qcow2, as in --to raw")
	f.StringVar(&target.clusterSize, "cluster-size", "", "qcow2: `SIZE` of its clusters, 512 to 2M, as in --cluster-size 128K (default 64K)")
	addCount(f, &target.refBits, "refcount-bits", 0, 1, 64, "qcow2: width of a reference count, 1, 2, 4, 8, 16, 32 or 64, as in --refcount-bits 8 (default 16)")
	f.BoolVar(&asJSON, "json", false, "print one JSON object, as in measure --json")
	f.SortFlags = false
	return cmd
}
