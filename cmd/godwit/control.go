package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"godwit/api"
	"godwit/cmd/godwit/internal/plain"
)

// newControl makes a command that asks a machine's API for one thing.
func newControl(use, short, example string, do func(cmd *cobra.Command, c *api.Client) error) *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{
		Use: use, Short: short, Example: "  " + example, Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			c, err := t.client(cmd.Context())
			if err != nil {
				return err
			}
			return do(cmd, c)
		}),
	}
	t.add(cmd.Flags())
	return cmd
}

func newPause() *cobra.Command {
	return newControl("pause", "Stop a machine's vCPUs and devices for a while", "godwit pause --name web",
		func(cmd *cobra.Command, c *api.Client) error { return c.Pause(cmd.Context()) })
}

func newResume() *cobra.Command {
	var force, stale bool
	cmd := newControl("resume", "Let a paused machine run on", "godwit resume --name web",
		func(cmd *cobra.Command, c *api.Client) error {
			if force || stale {
				tellWait(cmd.Context(), c)
			}
			if stale {
				return c.ResumeStale(cmd.Context())
			}
			return c.Resume(cmd.Context(), force)
		})
	cmd.Flags().BoolVar(&force, "force", false, "resume a guest whose migration ended without anybody knowing where it runs, as in resume --force: "+
		"look at the destination first; waits until the destination can no longer take it")
	cmd.Flags().BoolVar(&stale, "force-stale", false, "as --force, also over disks that others took or wrote since the guest left: its old memory may destroy them; as in resume --force-stale")
	return cmd
}

// tellWait says why a forced resume takes its time.
func tellWait(ctx context.Context, c *api.Client) {
	info, err := c.Info(ctx)
	if err != nil || info.LastMigration == nil || info.LastMigration.ForceAfter == nil {
		return // the resume itself will say what is wrong
	}
	if left := time.Until(*info.LastMigration.ForceAfter); left > 0 {
		tell("waiting %.1f s, until %s can no longer take the guest", left.Seconds(), info.LastMigration.To)
	}
}

func newStop() *cobra.Command {
	return newControl("stop", "End a machine as if its power were cut", "godwit stop --api-sock vm.sock",
		func(cmd *cobra.Command, c *api.Client) error { return c.Stop(cmd.Context()) })
}

func newInfo() *cobra.Command {
	var asJSON bool
	cmd := newControl("info", "Show a machine's state and figures", "godwit info --api-sock vm.sock --json",
		func(cmd *cobra.Command, c *api.Client) error {
			info, err := c.Info(cmd.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(info)
			}
			show(infoText(info))
			return nil
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object, as in info --json")
	return cmd
}

// infoText is info for people.
func infoText(info api.Info) string {
	var b strings.Builder
	line := func(name, format string, a ...any) {
		fmt.Fprintf(&b, "  %-9s %s\n", plain.Line(name), plain.Line(fmt.Sprintf(format, a...)))
	}
	fmt.Fprintf(&b, "%s  %s\n", plain.Line(info.ID), plain.Line(string(info.State)))
	if info.PausedFor != "" {
		line("paused", "%s; then run godwit resume", oneLine(info.PausedFor))
	}
	if n := info.LastMigration; n != nil {
		line("migration", "%s", oneLine(n.Text))
	}
	line("memory", "%d MiB %s, %d MiB of it resident", info.MemoryMiB, info.MemoryBacking, info.ResidentBytes>>20)
	for i, n := range info.Exits {
		line(fmt.Sprintf("vcpu %d", i), "%d exits to this process", n)
	}
	for _, d := range info.Drives {
		access := ""
		if d.ReadOnly {
			access = ", read-only"
		}
		if d.Snapshot {
			access = ", changes are lost at the end"
		}
		line("disk "+d.ID, "%s (%s), %d MiB%s", d.Path, d.Format, d.SizeBytes>>20, access)
	}
	for _, n := range info.Networks {
		s := n.Stats
		line("net "+n.ID, "%s, tap %s, %s, %d frames in, %d out, %d dropped", n.MAC, n.Tap, linkWord(n.LinkUp), s.RxFrames, s.TxFrames, s.Dropped())
	}
	if v := info.Balloon; v != nil {
		line("balloon", "%d MiB of %d asked for, %d MiB given back in all", v.ActualMiB, v.TargetMiB, v.Stats.DiscardedBytes>>20)
	}
	if e := info.Entropy; e != nil {
		line("rng", "%d bytes in %d requests, %d of them waited for the rate limit", e.Stats.Bytes, e.Stats.Requests, e.Stats.Waits)
	}
	if c := info.Console; c != nil {
		for _, p := range c.Ports {
			line("console "+p.ID, "%s, %d bytes to the host, %d to the guest, %d discarded, %d lost",
				place(p.Path, p.Fault), p.Stats.BytesToHost, p.Stats.BytesToGuest, p.Stats.DiscardedBytes, p.Stats.LostBytes)
		}
	}
	if v := info.Vsock; v != nil {
		line("vsock", "CID %d, %s, %d connections, %d bytes to the host, %d to the guest",
			v.GuestCID, place(v.Path, v.Fault), v.Stats.Open, v.Stats.BytesToHost, v.Stats.BytesToGuest)
	}
	lost := ""
	if info.Serial.LastError != "" {
		lost = ": " + oneLine(info.Serial.LastError)
	}
	line("serial", "%d bytes written, %d lost%s", info.Serial.WrittenBytes, info.Serial.LostBytes, lost)
	for _, m := range info.BootMarks {
		times := ""
		if m.Count > 1 {
			times = fmt.Sprintf(", %d times by now", m.Count)
		}
		line("boot mark", "%d after %.1f ms%s", m.Code, float64(m.AtUS)/1000, times)
	}
	return b.String()
}

// place says where the host's programs reach a channel of the guest.
func place(path, fault string) string {
	switch {
	case fault != "":
		return "nobody can connect (" + fault + ")"
	case path == "":
		return "nobody can connect"
	}
	return path
}
