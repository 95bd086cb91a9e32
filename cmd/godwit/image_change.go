package main

import (
	"strings"

	"github.com/spf13/cobra"

	"godwit/blockfile/tool"
	"godwit/cmd/godwit/internal/units"
)

func newImageResize() *cobra.Command {
	var format formatValue
	var behind backingFlags
	var shrink, asJSON bool
	cmd := &cobra.Command{
		Use:   "resize IMAGE SIZE",
		Short: "Change the size of a disk",
		Long: `Change the size of a disk that no machine uses: to SIZE, by +SIZE or, with --shrink, by -SIZE (write -- before it). What is
new reads as zeroes. What lies behind the end of a smaller disk is lost, so make the guest's partitions and file systems
smaller first. The guest's are not changed either way.`,
		Example: "  godwit image resize disk.qcow2 20G\n  godwit image resize disk.img +5G\n  godwit image resize --shrink disk.qcow2 10G",
		Args:    cobra.ExactArgs(2),
		RunE: action(func(_ *cobra.Command, args []string) error {
			to, err := parseNewSize(args[1])
			if err != nil {
				return err
			}
			rule, err := behind.rule()
			if err != nil {
				return err
			}
			r, err := tool.Resize(tool.Source{Path: args[0], Format: string(format), Rule: rule}, to, shrink)
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(r)
			}
			tell("%s: %d bytes (%s), it had %d", r.Path, r.VirtualSize, binarySize(r.VirtualSize), r.WasBytes)
			return nil
		}),
	}
	f := cmd.Flags()
	f.Var(&format, "from", "the image's format, raw or qcow2, as in --from raw (default by its first bytes)")
	f.BoolVar(&shrink, "shrink", false, "let the disk get smaller and lose its end, as in resize --shrink disk.img 10G")
	behind.add(f)
	f.BoolVar(&asJSON, "json", false, "print one JSON object, as in resize --json")
	f.SortFlags = false
	return cmd
}

// parseNewSize reads SIZE, +SIZE or -SIZE.
func parseNewSize(s string) (func(was int64) (int64, error), error) {
	sign := strings.TrimRight(s[:min(len(s), 1)], "0123456789")
	n, err := units.ParseSize(strings.TrimPrefix(strings.TrimPrefix(s, "+"), "-"))
	if err != nil {
		return nil, err
	}
	if n > 1<<62 || strings.HasPrefix(s, "+-") {
		return nil, usage("size %s: write SIZE, +SIZE or -SIZE, for example +10G", s)
	}
	return func(was int64) (int64, error) {
		switch sign {
		case "+":
			return was + int64(n), nil
		case "-":
			return was - int64(n), nil
		}
		return int64(n), nil
	}, nil
}

func newImageCommit() *cobra.Command {
	var behind backingFlags
	var keep, asJSON bool
	cmd := &cobra.Command{
		Use:   "commit OVERLAY",
		Short: "Write what an overlay holds into its backing file",
		Long: `Write what an overlay holds into its backing file, and empty the overlay. It shows the same disk before, after, and if the
command is cut off at any moment, which is then run again. Both files are locked, so no machine may use either.

Every other overlay over that backing file is spoilt by this: nothing knows of them.`,
		Example: "  godwit image commit clone.qcow2\n  godwit image commit clone.qcow2 --keep --json",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(_ *cobra.Command, args []string) error {
			rule, err := behind.rule()
			if err != nil {
				return err
			}
			ctx, stop := untilSignal()
			defer stop()
			show := newCopyProgress()
			c, err := tool.Commit(ctx, args[0], rule, keep, show.show)
			show.clear()
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(c)
			}
			tell("%s went from %s into %s", units.FormatBytes(float64(c.CommittedBytes)), c.Path, c.Backing)
			return nil
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&keep, "keep", false, "leave the overlay as it is, for one that is thrown away, as in commit --keep")
	behind.add(f)
	f.BoolVar(&asJSON, "json", false, "print one JSON object, as in commit --json")
	f.SortFlags = false
	return cmd
}

func newImageRebase() *cobra.Command {
	var r tool.Rebasing
	var format formatValue
	var behind backingFlags
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "rebase OVERLAY",
		Short: "Give an overlay another backing file",
		Long: `Give an overlay another backing file. Its disk stays the same: what differs between the old and the new file is copied into
the overlay first, and the name changes last, so it is right whenever the command is cut off. With --backing "" the
overlay becomes an image of its own.

--header-only changes the name alone, for a backing file that has moved; over another file the disk would change.`,
		Example: `  godwit image rebase clone.qcow2 --backing new-base.img --backing-format raw
  godwit image rebase clone.qcow2 --backing ""
  godwit image rebase clone.qcow2 --backing bases/base.img --backing-format raw --header-only`,
		Args: cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			var err error
			if r.Rule, err = behind.rule(); err != nil {
				return err
			}
			if !cmd.Flags().Changed("backing") {
				return usage(`rebase: say --backing FILE, or --backing "" for none`)
			}
			ctx, stop := untilSignal()
			defer stop()
			show := newCopyProgress()
			r.Path, r.BackingFormat, r.Progress = args[0], string(format), show.show
			done, err := tool.Rebase(ctx, r)
			show.clear()
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(done)
			}
			sayFarBacking(done.Path, done.Backing)
			tell("%s: %s copied into it", done.Path, units.FormatBytes(float64(done.CopiedBytes)))
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringVar(&r.Backing, "backing", "", "the new backing `FILE`, or nothing for none, as in --backing base.img; a relative name is stored so and starts at the overlay's folder")
	mayBeEmpty(f, "backing")
	f.Var(&format, "backing-format", "format of the new backing file, which is never guessed, as in --backing-format raw")
	f.BoolVar(&r.HeaderOnly, "header-only", false, "change the name alone, for a file that has moved, as in rebase --header-only")
	behind.add(f)
	f.BoolVar(&asJSON, "json", false, "print one JSON object, as in rebase --json")
	f.SortFlags = false
	return cmd
}
