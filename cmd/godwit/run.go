package main

import (
	"github.com/spf13/cobra"

	"godwit/vmm"
)

func newRun() *cobra.Command {
	var mf machineFlags
	var hf hostFlags
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Run a machine until its guest ends",
		Long: `Run a machine until its guest ends.

A guest that powers off ends the command with 0. One that resets starts again, unless --no-reboot. One that faults
or panics ends it with 3 and a report on stderr. SIGTERM and Ctrl-a x on the console stop the machine; so do SIGINT
and SIGHUP, unless the command was started with them ignored, as a script's & does with SIGINT and nohup with SIGHUP.
When the guest has been migrated away the command ends with 0 and says where it went.

With --name NAME the machine also has an API socket godwit/NAME.sock below $XDG_RUNTIME_DIR, or below /run for root,
where the other commands' --name finds it.

Without an API socket a machine whose serial console is stdout ends when nobody reads that any more, as in
godwit run ... | head -1: nothing could reach it then.`,
		Example: `  godwit run --guest metronome --append 'fill=64 ws=16 rate=1000'
  godwit run --kernel bzImage --disk path=root.img --memory 1G --cpus 2 --name web
  godwit run --kernel bzImage --disk path=root.qcow2,format=qcow2,snapshot
  godwit run --config machine.json --serial unix:console.sock`,
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			cfg, err := mf.build(cmd.Flags())
			if err != nil {
				return err
			}
			return runMachine(cfg, hf, mf.name, mf.allow)
		}),
	}
	mf.add(cmd.Flags())
	hf.add(cmd.Flags())
	cmd.Flags().SortFlags = false
	return cmd
}

func runMachine(cfg vmm.Config, hf hostFlags, named string, allow []string) error {
	ctx, stop := untilSignal()
	defer stop()
	fitProcs(max(cfg.Machine.VCPUCount, 1))
	h, err := newHost(hf, named, stdioConsole(cfg.Consoles))
	if err != nil {
		return err
	}
	defer h.close()
	// A reset starts another machine, over the same disks to the guest.
	var overlays vmm.Overlays
	defer func() { h.warn(overlays.Close()) }()
	build := func() (*vmm.Machine, error) {
		o := h.options()
		o.Overlays, o.AllowPaths = &overlays, allow
		return vmm.New(cfg, o)
	}
	m, err := build()
	if err != nil {
		return err
	}
	// An image is after a reset what it was at first, whatever the guest has
	// written to its beginning meanwhile.
	cfg.Drives = m.Config().Drives
	return h.run(ctx, m, build)
}
