package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"godwit/api"
	"godwit/cmd/godwit/internal/units"
	"godwit/vmm"
)

// balloonValue is --balloon.
type balloonValue struct{ spec *vmm.Balloon }

func (v *balloonValue) Set(s string) (err error) {
	v.spec, err = parseBalloon(s)
	return err
}

func (v *balloonValue) Type() string   { return "size=SIZE[,..]" }
func (v *balloonValue) String() string { return "" }

// parseBalloon reads [size=SIZE][,deflate-on-oom][,stats=TIME][,reporting][,hinting].
func parseBalloon(s string) (*vmm.Balloon, error) {
	bad := func(what string) error {
		return fmt.Errorf("balloon %.80q: %w: %.40q; write [size=SIZE][,deflate-on-oom][,stats=TIME][,reporting][,hinting], for example size=256M,stats=5s,reporting", s, units.ErrSyntax, what)
	}
	pairs, err := units.ParsePairs(s)
	if err != nil {
		return nil, err
	}
	b := &vmm.Balloon{}
	for _, p := range pairs {
		switch {
		case p.Key == "size":
			if b.AmountMiB, err = parseBalloonSize(p.Value); err != nil {
				return nil, err
			}
		case p.Key == "stats":
			if b.StatsPollingIntervalS, err = parseSeconds(p.Value); err != nil {
				return nil, err
			}
		case p.Value != "":
			return nil, bad(p.Key)
		case p.Key == "deflate-on-oom":
			b.DeflateOnOOM = true
		case p.Key == "reporting":
			b.FreePageReporting = true
		case p.Key == "hinting":
			b.FreePageHinting = true
		default:
			return nil, bad(p.Key)
		}
	}
	return b, nil
}

// parseBalloonSize reads a size in whole MiB, 0 included.
func parseBalloonSize(s string) (int, error) {
	if s == "0" {
		return 0, nil
	}
	return units.ParseMiB(s)
}

// parseSeconds reads a time of whole seconds, at least one.
func parseSeconds(s string) (int, error) {
	d, err := parseTime(s)
	if err == nil && (d < time.Second || d%time.Second != 0) {
		err = fmt.Errorf("time %.40q: %w; write whole seconds, for example 5s", s, units.ErrSyntax)
	}
	return int(d / time.Second), err
}

func newBalloon() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "balloon",
		Short: "Take memory from a guest, give it back, or see how it is off",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help() // it writes to stdout; nothing to do if that is gone
			return usage("balloon: say set or stats")
		},
	}
	cmd.AddCommand(newBalloonSet(), newBalloonStats())
	return cmd
}

func newBalloonSet() *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{
		Use:   "set SIZE",
		Short: "Ask the guest for a balloon of this size",
		Long: `Ask the guest for a balloon of this size: what is in it is not the guest's any more, and the host has it back. The
guest takes its time, and stops where it has no more to give; "godwit balloon stats" and "godwit info" say how far it is.
0 gives everything back. The machine must have been started with --balloon.`,
		Example: `  godwit balloon set --name web 256M
  godwit balloon set --name web 0`,
		Args: cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			mib, err := parseBalloonSize(args[0])
			if err != nil {
				return err
			}
			c, err := t.client(cmd.Context())
			if err != nil {
				return err
			}
			return c.SetBalloon(cmd.Context(), mib)
		}),
	}
	t.add(cmd.Flags())
	return cmd
}

func newBalloonStats() *cobra.Command {
	var asJSON bool
	var every string
	cmd := newControl("stats", "Show what the guest says of its memory", "godwit balloon stats --name web",
		func(cmd *cobra.Command, c *api.Client) error {
			if every != "" {
				s, err := parseSeconds(every)
				if err != nil {
					return err
				}
				return c.SetBalloonInterval(cmd.Context(), s)
			}
			s, err := c.BalloonStatistics(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(s)
			}
			show(balloonText(s))
			return nil
		})
	cmd.Flags().StringVar(&every, "every", "", "instead, have the guest asked at this interval, `TIME`, as in stats --every 5s")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object, as in stats --json")
	return cmd
}

// balloonText is the statistics for people.
func balloonText(s api.BalloonStats) string {
	var b strings.Builder
	fmt.Fprintf(&b, "balloon  %d MiB of %d asked for\n", s.ActualMiB, s.TargetMiB)
	for _, e := range []struct {
		name  string
		v     *uint64
		bytes bool
	}{
		{"total", s.TotalMemory, true}, {"free", s.FreeMemory, true}, {"available", s.AvailableMemory, true}, {"caches", s.DiskCaches, true},
		{"swap in", s.SwapIn, true}, {"swap out", s.SwapOut, true}, {"major faults", s.MajorFaults, false}, {"minor faults", s.MinorFaults, false},
	} {
		switch {
		case e.v == nil:
		case e.bytes:
			fmt.Fprintf(&b, "  %-12s %d MiB\n", e.name, *e.v>>20)
		default:
			fmt.Fprintf(&b, "  %-12s %d\n", e.name, *e.v)
		}
	}
	return b.String()
}
