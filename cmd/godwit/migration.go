package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"godwit/api"
	"godwit/cmd/godwit/internal/plain"
	"godwit/cmd/godwit/internal/progress"
	"godwit/cmd/godwit/internal/units"
)

func newMigration() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "migration",
		Short: "Watch, retune or cancel a migration under way",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help() // it writes to stdout; nothing to do if that is gone
			return usage("migration: say status, cancel or set")
		},
	}
	cmd.AddCommand(newMigrationStatus(), newMigrationSet(),
		newControl("cancel", "Cancel the migration: the guest runs on here", "godwit migration cancel --name web",
			func(cmd *cobra.Command, c *api.Client) error { return c.CancelMigration(cmd.Context()) }))
	return cmd
}

func newMigrationStatus() *cobra.Command {
	var watch, asJSON bool
	cmd := newControl("status", "Show how the last migration stands", "godwit migration status --name web --watch",
		func(cmd *cobra.Command, c *api.Client) error {
			var st api.MigrationStatus
			var err error
			if watch {
				show := newProgress()
				st, err = c.WatchMigration(cmd.Context(), func(s api.MigrationStatus) { show.Show(s.Progress) })
				show.Clear()
			} else {
				st, err = c.Migration(cmd.Context())
			}
			switch {
			case err != nil:
				return err
			case asJSON:
				return printJSON(st)
			case st.Report == nil:
				show(plain.Line(fmt.Sprintf("to %s: %s", st.To, progress.Line(st.Progress, false))) + "\n")
			case st.Report.Error != "":
				show(plain.Line(fmt.Sprintf("to %s: %s: %s", st.To, st.Report.Status, oneLine(st.Report.Error))) + "\n")
			default:
				show(summary(st))
			}
			return nil
		})
	cmd.Flags().BoolVar(&watch, "watch", false, "follow it to its end, as in status --watch")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object, as in status --json")
	return cmd
}

func newMigrationSet() *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{
		Use:   "set bandwidth=RATE,downtime-limit=TIME,throttle=NAME",
		Short: "Retune a migration under way",
		Long: `Retune a migration under way. Any of the settings may be given; bandwidth=0 takes the limit away, and throttle comes
last, since what follows may be its own options. It holds from the next round on; one that the machine cannot obey, as
dirty-limit without --tracker ring, is refused. So is what would do nothing: all of it with --local, downtime-limit and
throttle with --mode stop-and-copy. Where one setting is refused none changes, and the migration goes on as before.`,
		Example: `  godwit migration set --name web bandwidth=250MB/s,downtime-limit=50ms
  godwit migration set --name web throttle=cap:50,by=duty
  godwit migration set --name web throttle=none`,
		Args: cobra.ExactArgs(1),
		RunE: action(func(cmd *cobra.Command, args []string) error {
			u, err := parseUpdate(args[0])
			if err != nil {
				return err
			}
			c, err := t.client(cmd.Context())
			if err != nil {
				return err
			}
			return c.UpdateMigration(cmd.Context(), u)
		}),
	}
	t.add(cmd.Flags())
	return cmd
}

// parseUpdate reads the settings of `migration set`.
func parseUpdate(text string) (api.MigrationUpdate, error) {
	var u api.MigrationUpdate
	head, throttle, ok := cutSetting(text, "throttle=")
	if ok {
		if throttle == "" {
			return u, fmt.Errorf("%.80q: %w: throttle= without a name", text, units.ErrSyntax)
		}
		u.Throttle = &throttle
		if head == "" {
			return u, nil
		}
	}
	pairs, err := units.ParsePairs(head)
	if err != nil {
		return u, err
	}
	for _, p := range pairs {
		switch p.Key {
		case "bandwidth":
			rate, err := units.ParseRate(p.Value)
			if err != nil {
				return u, err
			}
			u.Bandwidth = &rate
		case "downtime-limit":
			d, err := parseTime(p.Value)
			if err != nil {
				return u, err
			}
			ms := timeValue(d).ms()
			u.DowntimeLimitMS = &ms
		default:
			return u, fmt.Errorf("%.80q: %w: no setting %q; there are bandwidth, downtime-limit and throttle", text, units.ErrSyntax, p.Key)
		}
	}
	return u, nil
}

// cutSetting splits text before the setting that starts with key.
func cutSetting(text, key string) (head, value string, found bool) {
	if v, ok := strings.CutPrefix(text, key); ok {
		return "", v, true
	}
	if head, value, found = strings.Cut(text, ","+key); found {
		return head, value, true
	}
	return text, "", false
}
