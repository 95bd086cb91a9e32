package main

import (
	"strings"

	"github.com/spf13/cobra"

	"godwit/blockfile/tool"
)

func newImageCheck() *cobra.Command {
	var repair string
	var limit int
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "check FILE",
		Short: "Follow every reference of a qcow2 image, and repair it",
		Long: `Follow every reference of a qcow2 image and compare them with its reference counts. A corruption can lose data or show
wrong data; a leak only wastes storage.

--repair leaks frees leaked clusters, if there are no corruptions. --repair all also replaces entries that cannot be
right, which loses what they stood for, and counts all references anew; copy the image first. The image is locked, so no
machine may use it. Only the file itself is looked at, not its backing file.

Exit codes: 0 the image is clean, or was made so; 1 it has corruptions or leaks, or could not be checked (the status of
--json tells corruptions from leaks); 2 bad usage.`,
		Example: "  godwit image check disk.qcow2\n  godwit image check disk.qcow2 --repair leaks --json",
		Args:    cobra.ExactArgs(1),
		RunE: action(func(_ *cobra.Command, args []string) error {
			kind := tool.RepairKind(repair)
			if kind != tool.RepairNothing && kind != tool.RepairLeaks && kind != tool.RepairAll {
				return usage("--repair %s: write leaks or all", repair)
			}
			if limit < 0 {
				return usage("--findings %d: at least 0", limit)
			}
			ctx, stop := untilSignal()
			defer stop()
			c, err := tool.Check(ctx, args[0], kind, limit)
			if err != nil {
				return err
			}
			if asJSON {
				err = printJSON(c)
			} else {
				sayChecked(tell, c)
			}
			if err == nil && !c.Clean() {
				return &exitError{code: exitFailed}
			}
			return err
		}),
	}
	f := cmd.Flags()
	f.StringVar(&repair, "repair", "", "`WHAT` to repair, leaks or all, as in --repair leaks (default nothing)")
	addCount(f, &limit, "findings", 20, 0, 1_000_000, "how many findings to describe, as in --findings 100")
	f.BoolVar(&asJSON, "json", false, "print one JSON object, as in check --json")
	f.SortFlags = false
	return cmd
}

func sayChecked(say func(format string, a ...any), c *tool.Checked) {
	for _, f := range c.Found {
		say("repaired: %s", f)
	}
	for _, f := range c.Findings {
		say("%s", f)
	}
	if rest := c.Corruptions + c.Leaks - int64(len(c.Findings)); rest > 0 && len(c.Findings) > 0 {
		say("... and %d more", rest)
	}
	if c.RepairedCorruptions > 0 || c.RepairedLeaks > 0 {
		say("repaired %d corruptions and %d leaks", c.RepairedCorruptions, c.RepairedLeaks)
	}
	switch {
	case c.Corruptions > 0:
		say("%s: %d corruptions, %d leaked clusters; --repair all mends what can be, copy the image first", c.Path, c.Corruptions, c.Leaks)
	case c.Leaks > 0:
		say("%s: no corruption, %d leaked clusters (%d bytes); --repair leaks frees them", c.Path, c.Leaks, c.LeakedBytes)
	default:
		say("%s: clean; %d of %d clusters allocated, %d of them compressed, %d marked as zeroes", c.Path, c.AllocatedClusters, c.TotalClusters,
			c.CompressedClusters, c.ZeroClusters)
	}
	if c.Dirty || c.Corrupt {
		say("the image is marked %s; --repair all takes the mark away once it is clean", strings.Join(marks(c), " and "))
	}
}

func marks(c *tool.Checked) []string {
	var m []string
	if c.Dirty {
		m = append(m, "dirty")
	}
	if c.Corrupt {
		m = append(m, "corrupt")
	}
	return m
}
