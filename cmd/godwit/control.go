package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"godwit/api"
)

// newControl makes a command that asks a machine's API for one thing.
func newControl(use, short, example string, do func(cmd *cobra.Command, c *api.Client) error) *cobra.Command {
	var t targetFlags
	cmd := &cobra.Command{
		Use: use, Short: short, Example: "  " + example, Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			c, err := t.client()
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
	var force bool
	cmd := newControl("resume", "Let a paused machine run on", "godwit resume --name web",
		func(cmd *cobra.Command, c *api.Client) error { return c.Resume(cmd.Context(), force) })
	cmd.Flags().BoolVar(&force, "force", false, "resume a guest whose migration ended without anybody knowing where it runs: "+
		"look at the destination first; waits until the destination can no longer take it")
	return cmd
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
			fmt.Printf("%s  %s\n", info.ID, info.State)
			fmt.Printf("  memory   %d MiB %s, %d MiB of it resident\n", info.MemoryMiB, info.MemoryBacking, info.ResidentBytes>>20)
			for i, n := range info.Exits {
				fmt.Printf("  vcpu %-3d %d exits\n", i, n)
			}
			fmt.Printf("  serial   %d bytes written, %d lost\n", info.Serial.WrittenBytes, info.Serial.LostBytes)
			for _, m := range info.BootMarks {
				fmt.Printf("  mark %-3d at %.3f ms, %d times\n", m.Code, float64(m.AtUS)/1000, m.Count)
			}
			for _, d := range info.Drives {
				access := ""
				if d.ReadOnly {
					access = ", read-only"
				}
				fmt.Printf("  disk %s  %s, %d MiB%s\n", d.ID, d.Path, d.SizeBytes>>20, access)
			}
			return nil
		})
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}
