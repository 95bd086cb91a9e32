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
	var compress, asJSON bool
	var workers int
	cmd := &cobra.Command{
		Use:   "convert SOURCE TARGET",
		Short: "Copy a disk into a new image, from format to format",
		Long: `Copy a disk into a new image, from format to format. The source and what is behind it is locked for reading
meanwhile. Holes and zeroes are not written, nor, with --backing, what the backing file shows already.

Without --from the source is what its first bytes say, but a qcow2 image over a backing file must be called so: a guest
could have written those bytes on a raw disk, to read a file of this host. A file of the target's name is not replaced
without --force; the target appears under its name when it is complete and on stable storage.`,
		Example: `  godwit image convert disk.img disk.qcow2 --compress --compression zstd
  godwit image convert --from qcow2 clone.qcow2 flat.img --to raw`,
		Args: cobra.ExactArgs(2),
		RunE: action(func(_ *cobra.Command, args []string) error {
			n, err := flags.image(args[1], string(to))
			if err != nil {
				return err
			}
			if workers < 0 {
				return usage("--workers %d: at least 1, or 0 for one for each CPU", workers)
			}
			if n.Compression != qcow2.Zlib && !compress {
				fmt.Fprintf(os.Stderr, "godwit: --compression %s compresses nothing without --compress; it only says how %s may be written later\n",
					flags.compression, n.Path)
			}
			ctx, stop := untilSignal()
			defer stop()
			show := newCopyProgress()
			done, err := tool.Convert(ctx, tool.Conversion{Source: args[0], SourceFormat: string(from), Rule: n.Rule, Target: n,
				Compress: compress, Workers: workers, Progress: show.show})
			show.clear()
			if err == nil {
				flags.sayFarBacking(n)
			}
			switch {
			case err != nil:
				return interrupted(err, ctx.Err())
			case asJSON:
				return printJSON(done)
			}
			fmt.Fprint(os.Stderr, convertedText(done))
			return nil
		}),
	}
	f := cmd.Flags()
	f.Var(&from, "from", "the source's format, raw or qcow2, as in --from raw (default by its first bytes)")
	f.Var(&to, "to", "the target's format, raw or qcow2, as in --to raw")
	f.BoolVar(&compress, "compress", false, "qcow2: compress each cluster that gets smaller, as in convert --compress")
	f.IntVar(&workers, "workers", 0, "number `N` of threads that read and compress, as in --workers 4 (default one for each CPU)")
	flags.add(cmd)
	f.BoolVar(&asJSON, "json", false, "print one JSON object, as in convert --json")
	f.SortFlags = false
	return cmd
}

func convertedText(c *tool.Converted) string {
	s := fmt.Sprintf("godwit: %s: %s as it is", c.Path, units.FormatBytes(float64(c.DataBytes)))
	if c.CompressedBytes > 0 {
		s += fmt.Sprintf(", %s compressed to %s", units.FormatBytes(float64(c.CompressedBytes)), units.FormatBytes(float64(c.PackedBytes)))
	}
	return s + fmt.Sprintf(", %s not written\n", units.FormatBytes(float64(c.ZeroBytes+c.SkippedBytes)))
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
	fmt.Fprintf(os.Stderr, "\r%s\x1b[K", copyLine(done, total, now.Sub(p.began)))
}

func copyLine(done, total int64, took time.Duration) string {
	return fmt.Sprintf("%3.0f%% of %s  %s", float64(done)/float64(max(total, 1))*100, units.FormatBytes(float64(total)),
		units.FormatRate(float64(done)/max(took.Seconds(), 1e-3)))
}

func (p *copyProgress) clear() {
	if !p.last.IsZero() {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}
