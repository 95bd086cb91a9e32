package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"godwit/api"
	"godwit/cmd/godwit/internal/plain"
	"godwit/cmd/godwit/internal/progress"
	"godwit/cmd/godwit/internal/units"
	"godwit/migration"
	"godwit/migration/policy"
)

func newMigrate() *cobra.Command {
	var t targetFlags
	var q api.MigrationRequest
	var bandwidth rateValue
	var downtime, timeout timeValue
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Move a running machine to another process, or save it in a file",
		Long: `Move a running machine to another process, where "godwit receive" waits, or save it in a file.

The guest runs on until the last pages are sent. Until the destination has been told to go, Ctrl-C cancels and the
guest runs on here; after that it cannot be undone. The source's process ends when the guest has moved.

With --local the memory itself goes to a process of this host, without a copy: in a few milliseconds, whatever the
size. The machine must have been started with --memory-backing memfd, and the destination listen on unix:PATH. Flags about
copying (--mode, --streams, --bandwidth, --downtime-limit and the policies) have nothing to act on then and are refused.

With --to file:PATH the guest is paused and all of it written to PATH, which appears only when it is whole and on the
disk. "godwit receive --listen file:PATH" lets it run on. The source's process ends then, or with --keep stays, paused,
and "godwit resume" lets the guest run on in it; its disks change then, and the file does not fit them any more. Of the
flags about copying only --bandwidth acts on a file; the others are refused.

With --tls-cert, --tls-key and --tls-ca the way to a TCP destination is encrypted, and both sides show certificates: the
destination's must be for the HOST of --to. The machine's process reads the files when the migration starts.`,
		Example: `  godwit migrate --name web --to tcp:host2:7000 --bandwidth 125MB/s
  godwit migrate --api-sock vm.sock --to unix:in.sock --verify --json
  godwit migrate --name web --to tcp:host2:7000 --tls-cert host1.pem --tls-key host1.key --tls-ca ca.pem
  godwit migrate --name web --to tcp:host2:7000 --throttle cap:50
  godwit migrate --name web --to unix:in.sock --local
  godwit migrate --name web --to file:/srv/web.saved`,
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			if q.To == "" {
				return usage("where to? give --to, as in --to tcp:host2:7000")
			}
			to, err := api.ParseAddress(q.To)
			if err != nil {
				return err
			}
			// The machine's process may be in another directory than this one.
			if to, err = to.Absolute(); err != nil {
				return err
			}
			if err := q.TLSFiles.Check(to); err != nil {
				return err
			}
			if q.TLSFiles, err = q.TLSFiles.Absolute(); err != nil {
				return err
			}
			if cmd.Flags().Changed("downtime-limit") && downtime == 0 {
				return usage("--downtime-limit 0 cannot be met; give what the guest may stand still, as in --downtime-limit 30ms")
			}
			q.To = to.String()
			q.Bandwidth, q.DowntimeLimitMS, q.TimeoutMS = int64(bandwidth), downtime.ms(), timeout.ms()
			if err := q.Check(); err != nil {
				return err
			}
			c, err := t.client(cmd.Context())
			if err != nil {
				return err
			}
			return migrate(cmd.Context(), c, q, asJSON)
		}),
	}
	f := cmd.Flags()
	t.add(f)
	names := func(list []string) string { return strings.Join(list, ", ") }
	f.StringVar(&q.To, "to", "", "the destination `ADDRESS`, as in --to tcp:host2:7000, --to unix:in.sock or --to file:web.saved")
	f.StringVar(&q.Mode, "mode", string(migration.PreCopy), "`MODE`: precopy, copying while the guest runs; or pausing it first and copying once, as in --mode stop-and-copy, which a file always takes; --throttle, --stop and --downtime-limit are refused with it")
	addCount(f, &q.Streams, "streams", 1, 1, migration.MaxStreams, "number of data connections, as in --streams 4")
	f.Var(&bandwidth, "bandwidth", "most that all streams may send together, as in --bandwidth 125MB/s (default no limit)")
	f.Var(&downtime, "downtime-limit", fmt.Sprintf("downtime to aim at, as in --downtime-limit 30ms (default %v)", migration.DefaultDowntimeLimit))
	f.Var(&timeout, "timeout", "give up after so long and let the guest run on here, as in --timeout 2m (default never)")
	f.StringVar(&q.Order, "order", "", "`POLICY` for the order of pages: "+names(policy.Orders.Names())+", as in --order "+policy.Orders.Names()[0])
	f.StringVar(&q.Codec, "codec", "", "`POLICY` for making pages smaller: "+names(policy.Codecs.Names())+", as in --codec "+policy.Codecs.Names()[0])
	f.StringVar(&q.Throttle, "throttle", "", "`POLICY` for slowing the guest: "+names(policy.Throttles.Names())+"; as in --throttle auto-converge, --throttle cap:50,by=cgroup (half a processor for each vCPU; by=duty where no cgroup is delegated) or --throttle dirty-limit:20 (20 MB/s of newly dirtied pages for each vCPU, or without a number what the link bears; the machine needs --tracker ring)")
	f.StringVar(&q.Stop, "stop", "", "`POLICY` for when to pause the guest: "+names(policy.Stops.Names())+", as in --stop last-sync,rounds=10 or --stop measured,sample=5, which watches the guest for 5 ms before it promises")
	addTLS(f, &q.TLSFiles, "destination")
	f.BoolVar(&q.Verify, "verify", false, "compare hashes of guest memory before the guest runs there, as in migrate --verify")
	f.BoolVar(&q.Local, "local", false, "hand the memory over to a process of this host instead of copying it, as in --to unix:in.sock --local")
	f.BoolVar(&q.FreePageHint, "free-page-hint", false, "ask the guest which pages it does not need and leave those out; the machine must have been started with --balloon hinting; as in migrate --free-page-hint")
	f.BoolVar(&q.Keep, "keep", false, "keep the source's process, its machine paused, after the move, as in --to file:web.saved --keep")
	f.BoolVar(&asJSON, "json", false, "print the report as one JSON object, the last line of stdout, as in migrate --json")
	f.SortFlags = false
	return cmd
}

// migrate starts a migration and follows it to its end.
func migrate(ctx context.Context, c *api.Client, q api.MigrationRequest, asJSON bool) error {
	done := make(chan struct{})
	cancelled := make(chan struct{})
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, heeded(unix.SIGINT)...)
	go func() {
		defer close(cancelled)
		cancelOnSignal(ctx, c, signals, done)
	}()
	show := newProgress()
	st, err := c.Migrate(ctx, q, func(s api.MigrationStatus) { show.Show(s.Progress) })
	show.Clear()
	signal.Stop(signals)
	close(done)
	<-cancelled
	if err != nil {
		return err
	}
	return printReport(st, asJSON)
}

// cancelOnSignal cancels at the first signal and says when that is too late.
func cancelOnSignal(ctx context.Context, c *api.Client, signals <-chan os.Signal, done <-chan struct{}) {
	for {
		select {
		case <-signals:
			fmt.Fprintln(os.Stderr) // below the ^C
			tell("cancelling the migration")
			if err := c.CancelMigration(ctx); err != nil {
				tell("cancel: %v", err)
			}
		case <-done:
			return
		}
	}
}

func newProgress() *progress.Printer {
	fd := int(os.Stderr.Fd())
	if !term.IsTerminal(fd) {
		return progress.New(os.Stderr, nil)
	}
	return progress.New(os.Stderr, func() int {
		w, _, err := term.GetSize(fd)
		if err != nil {
			return 80
		}
		return w
	})
}

// printReport prints how a migration went and gives it its exit code.
func printReport(st api.MigrationStatus, asJSON bool) error {
	rep := st.Report
	if asJSON {
		if err := printJSON(rep); err != nil {
			return err
		}
	} else if rep.Status == migration.Completed {
		show(summary(st))
	}
	if rep.Status != migration.Completed {
		return &exitError{exitFailed, errors.New("migrate: " + rep.Error)}
	}
	return nil
}

// summary is a completed migration in a few lines.
func summary(st api.MigrationStatus) string {
	r := st.Report
	var b strings.Builder
	if path, ok := strings.CutPrefix(st.To, "file:"); ok {
		fmt.Fprintf(&b, "saved in %s in %.0f ms, the guest paused meanwhile\n", plain.Line(path), r.TotalMS)
		fmt.Fprintf(&b, "  written   %s\n  pages     %s\n", units.FormatBytes(float64(r.WireBytes)), pageCounts(r.Pages))
		if r.Verify != nil {
			fmt.Fprintf(&b, "  hash      %.16s, compared when it is restored\n", plain.Line(r.Verify.Source))
		}
		return b.String()
	}
	fmt.Fprintf(&b, "moved to %s in %.0f ms, downtime %.2f ms\n", plain.Line(st.To), r.TotalMS, r.DowntimeMS)
	p := r.DowntimePhases
	fmt.Fprintf(&b, "  downtime  pause %.2f, pages %.2f, state %.2f, resume %.2f ms\n", p.PauseMS, p.PagesMS, p.StateMS, p.ResumeMS)
	if p := r.Promise; p != nil && len(r.Rounds) > 0 {
		fmt.Fprintf(&b, "  promised  %.2f ms and %d pages, took %.2f ms and %d pages\n", p.DowntimeMS, p.Pages, r.DowntimeMS, r.Rounds[len(r.Rounds)-1].SentPages)
	}
	if r.Local {
		fmt.Fprintf(&b, "  memory    %d pages handed over, none copied\n", r.Pages.Skipped)
	} else {
		fmt.Fprintf(&b, "  sent      %s in %d rounds, %d streams\n", units.FormatBytes(float64(r.WireBytes)), len(r.Rounds), r.Streams)
		fmt.Fprintf(&b, "  pages     %s\n", pageCounts(r.Pages))
	}
	if text := slowed(r); text != "" {
		fmt.Fprintf(&b, "  slowed    %s\n", text)
	}
	if v := r.Verify; v != nil {
		fmt.Fprintf(&b, "  verified  %.16s here, %.16s there\n", plain.Line(v.Source), plain.Line(v.Destination))
	}
	return b.String()
}

// slowed says how far the guest was slowed at most, "" for not at all.
func slowed(r *migration.Report) string {
	var words []string
	if r.ThrottleMax > 0 {
		words = append(words, fmt.Sprintf("to %d%% of its processors' time", 100-r.ThrottleMax))
	}
	if r.DirtyLimit > 0 {
		words = append(words, fmt.Sprintf("to %s of new dirty pages per vCPU", units.FormatRate(float64(r.DirtyLimit)*policy.PageSize)))
	}
	return strings.Join(words, ", and ")
}

// pageCounts lists the classes of pages that there are.
func pageCounts(p migration.PageCounts) string {
	var words []string
	for _, c := range []struct {
		name string
		n    uint64
	}{{"raw", p.Raw}, {"zero", p.Zero}, {"delta", p.Delta}, {"compressed", p.Compressed}, {"unchanged", p.Unchanged}, {"never touched", p.Skipped}, {"free", p.Free}} {
		if c.n > 0 {
			words = append(words, fmt.Sprintf("%d %s", c.n, c.name))
		}
	}
	return strings.Join(slices.Clip(words), ", ")
}
