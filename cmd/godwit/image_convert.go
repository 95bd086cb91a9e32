package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"godwit/blockfile/qcow2"
	"godwit/blockfile/tool"
	"godwit/cmd/godwit/internal/units"
)

func newImageConvert() *cobra.Command {
	var flags imageFlags
	var from formatValue
	to := formatValue(tool.Qcow2)
	var compress, existing, asJSON bool
	var snapshot string
	var workers int
	cmd := &cobra.Command{
		Use:   "convert SOURCE TARGET",
		Short: "Copy a disk into a new image, from format to format",
		Long: `Copy a disk into a new image, from format to format. The source and what is behind it is locked for reading
meanwhile. Holes and zeroes are not written, nor, with --backing, what the backing file shows already.

Without --from the source is what its first bytes say, but a qcow2 image over a backing file must be called so: a guest
could have written those bytes on a raw disk, to read a file of this host. A file of the target's name is not replaced
without --force; the target appears under its name when it is complete and on stable storage.

With -n the target is there, an image or a block device at least as large, and is written over in place; --to must say
what it is. A TARGET of - is stdout: a raw disk, zeroes and all.`,
		Example: `  godwit image convert disk.img disk.qcow2 --compress --compression zstd
  godwit image convert --from qcow2 clone.qcow2 flat.img --to raw
  godwit image convert disk.qcow2 -n /dev/vg0/disk --to raw
  godwit image convert vm.qcow2 --snapshot clean - --to raw | gzip > clean.img.gz`,
		Args: cobra.ExactArgs(2),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			n, err := flags.image(args[1], string(to))
			if err != nil {
				return err
			}
			stdout := args[1] == "-"
			switch {
			case existing && !cmd.Flags().Changed("to"):
				return usage("-n writes over what is there: say what that is, --to raw or --to qcow2")
			case stdout && (existing || asJSON || n.Force):
				return usage("stdout takes the disk itself: leave out -n, --force and --json")
			case stdout && term.IsTerminal(int(os.Stdout.Fd())):
				return usage("stdout is a terminal; send it to a pipe or a file")
			}
			if workers < 0 {
				return usage("--workers %d: at least 1, or 0 for one for each CPU", workers)
			}
			if n.Compression != qcow2.Zlib && !compress {
				tell("--compression %s compresses nothing without --compress; it only says how %s may be written later",
					flags.compression, n.Path)
			}
			ctx, stop := untilSignal()
			defer stop()
			show := newCopyProgress()
			c := tool.Conversion{Source: args[0], SourceFormat: string(from), Snapshot: snapshot, Rule: n.Rule, Target: n,
				Existing: existing, Compress: compress, Workers: workers, Progress: show.show}
			if stdout {
				c.Stream, c.Target.Path = os.Stdout, ""
			}
			done, err := tool.Convert(ctx, c)
			show.clear()
			if err == nil {
				sayFarBacking(n.Path, n.Backing)
			}
			switch {
			case err != nil:
				return interrupted(err, ctx.Err(), existing || stdout)
			case asJSON:
				return printJSON(done)
			}
			if !stdout {
				tell("%s", convertedText(done))
			}
			return nil
		}),
	}
	f := cmd.Flags()
	f.Var(&from, "from", "the source's format, raw or qcow2, as in --from raw (default by its first bytes)")
	f.Var(&to, "to", "the target's format, raw or qcow2, as in --to raw")
	f.BoolVarP(&existing, "existing", "n", false, "write over a target that is there, an image or a block device, as in --existing /dev/vg0/disk --to raw")
	f.StringVarP(&snapshot, "snapshot", "l", "", "qcow2: copy the internal snapshot of this `NAME` or id instead of the disk, as in --snapshot before-update")
	f.BoolVar(&compress, "compress", false, "qcow2: compress each cluster that gets smaller, as in convert --compress")
	addCount(f, &workers, "workers", 0, 0, 1024, "number of threads that read and compress, as in --workers 4 (default one for each CPU)")
	flags.add(cmd)
	f.BoolVar(&asJSON, "json", false, "print one JSON object, as in convert --json")
	f.SortFlags = false
	return cmd
}

func convertedText(c *tool.Converted) string {
	s := fmt.Sprintf("%s: %s as it is", c.Path, units.FormatBytes(float64(c.DataBytes)))
	if c.CompressedBytes > 0 {
		s += fmt.Sprintf(", %s compressed to %s", units.FormatBytes(float64(c.CompressedBytes)), units.FormatBytes(float64(c.PackedBytes)))
	}
	return s + fmt.Sprintf(", %s not written", units.FormatBytes(float64(c.ZeroBytes+c.SkippedBytes)))
}

// copyProgress shows how a copy stands on a terminal, and nothing elsewhere.
type copyProgress struct {
	terminal bool
	began    time.Time
	last     time.Time
}

func newCopyProgress() *copyProgress {
	return &copyProgress{terminal: term.IsTerminal(int(os.Stderr.Fd())), began: time.Now()}
}

func (p *copyProgress) show(done, total int64) {
	now := time.Now()
	if !p.terminal || now.Sub(p.last) < 100*time.Millisecond {
		return
	}
	p.last = now
	redraw(copyLine(done, total, now.Sub(p.began)))
}

func copyLine(done, total int64, took time.Duration) string {
	return fmt.Sprintf("%3.0f%% of %s  %s", float64(done)/float64(max(total, 1))*100, units.FormatBytes(float64(total)),
		units.FormatRate(float64(done)/max(took.Seconds(), 1e-3)))
}

func (p *copyProgress) clear() {
	if !p.last.IsZero() {
		redraw("")
	}
}
