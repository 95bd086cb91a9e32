package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"godwit/cmd/godwit/internal/units"
	"godwit/migration"
	"godwit/vmm"
)

// demoFlags describe the demonstration.
type demoFlags struct {
	memory         memoryValue
	cpus, fill, ws int
	rate           int
	linux          bool
	kernel, append string
	disks          []string
	streams        int
	patience       timeValue
	asJSON         bool
}

func newDemo() *cobra.Command {
	d := demoFlags{memory: 1024, patience: timeValue(2 * time.Minute)}
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Boot a guest, move it live, verify it, print the figures",
		Long: `Boot a guest, move it live between processes, verify it, print the figures.

The guest is metronome, which is its own witness that no page of its memory was lost, torn or stale. It boots in one
process and moves live to a second one: these figures are the ones to quote. Then it moves on to a third one with
--verify, where both ends hash its memory, which takes time that the guest sees. Ends with 1 if anything is wrong.

With --linux the guest is a Linux with this project's root disk, whose init prints "godwit init: reached", and the
witness counts on the console, writes a file and churns memory. The disk image is written to: use a copy.`,
		Example: `  godwit demo
  godwit demo --memory 4G --fill 2048 --ws 256 --rate 20000 --json
  godwit demo --linux --kernel bzImage --disk path=root.img`,
		Args: cobra.NoArgs,
		RunE: action(func(*cobra.Command, []string) error {
			if err := d.check(); err != nil {
				return err
			}
			return d.run()
		}),
	}
	f := cmd.Flags()
	f.Var(&d.memory, "memory", "guest memory, as in --memory 4G")
	addCount(f, &d.cpus, "cpus", 1, 1, vmm.MaxCPUs, "number of vCPUs, as in --cpus 2")
	addCount(f, &d.fill, "fill", 256, 0, vmm.MaxMemoryMiB, "metronome: MiB of memory that hold data, as in --fill 2048")
	addCount(f, &d.ws, "ws", 64, 0, vmm.MaxMemoryMiB, "metronome: MiB of them that it changes all the time, as in --ws 256")
	addCount(f, &d.rate, "rate", 5000, 0, 1_000_000_000, "metronome: pages that it changes a second, as in --rate 20000")
	addCount(f, &d.streams, "streams", 1, 1, migration.MaxStreams, "number of data connections of each move, as in --streams 2")
	f.BoolVar(&d.linux, "linux", false, "boot Linux instead, as in --linux --kernel bzImage --disk path=root.img")
	f.StringVar(&d.kernel, "kernel", "", "Linux kernel to boot from `FILE`, as in --kernel bzImage")
	f.StringArrayVar(&d.disks, "disk", nil, "root disk as `path=FILE`, as in --disk path=root.img; it is written to")
	f.StringVar(&d.append, "append", "", "add `TEXT` to the guest's command line, as in --append 'pattern=sequential'")
	mayBeEmpty(f, "append")
	f.Var(&d.patience, "patience", "most that any one step may take, as in --patience 10m on a slow machine")
	f.BoolVar(&d.asJSON, "json", false, "print the result as one JSON object, the last line of stdout, as in --json")
	f.SortFlags = false
	return cmd
}

func (d *demoFlags) check() error {
	switch {
	case d.linux && (d.kernel == "" || len(d.disks) == 0):
		return usage("--linux needs --kernel FILE and --disk path=FILE; make kernel rootfs builds them")
	case !d.linux && (d.kernel != "" || len(d.disks) > 0):
		return usage("--kernel and --disk go with --linux")
	case d.patience <= 0:
		return usage("--patience must be above 0, as in --patience 2m")
	}
	for _, s := range d.disks {
		if _, err := parseDrive(s); err != nil {
			return err
		}
	}
	return nil
}

// guest is what differs between the guests of the demo.
type guest interface {
	// args are those of `godwit run` that boot it.
	args() []string
	// receiveArgs are added to `godwit receive`.
	receiveArgs() []string
	// booted tells whether line says that it is up.
	booted(line string) bool
	// steady waits until the guest has worked for a while, at first and after
	// each move.
	steady(ctx context.Context, c *child) error
	// after looks at what the guest said since a move began, here and there.
	after(m *demoMove, lines []string) error
	// finish ends the guest in its last process and judges it.
	finish(ctx context.Context, c *child, r *demoResult) error
}

func (d *demoFlags) guest() guest {
	if d.linux {
		return &linuxGuest{flags: d}
	}
	return &metronomeGuest{flags: d}
}

// run does the demo and prints its result.
func (d *demoFlags) run() (err error) {
	ctx, stop := untilSignal()
	defer stop()
	dir, err := os.MkdirTemp("", "godwit-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	s := &stage{flags: d, guest: d.guest(), dir: dir}
	defer s.end()
	res, err := s.play(ctx)
	if err != nil {
		s.showOutput()
		return fmt.Errorf("demo: %w", err)
	}
	if d.asJSON {
		err = printJSON(res)
	} else {
		show(res.text())
	}
	if err == nil && !res.OK {
		err = errors.New("demo: something is wrong with the guest: see above")
	}
	return err
}

// bootArgs are the arguments that both guests share.
func (d *demoFlags) bootArgs(line ...string) []string {
	return []string{"--memory", d.memory.String(), "--cpus", fmt.Sprint(d.cpus),
		"--append", strings.TrimSpace(strings.Join(line, " ") + " " + d.append)}
}

func (d *demoFlags) what() string {
	name := vmm.GuestMetronome
	if d.linux {
		name = "Linux"
	}
	return fmt.Sprintf("%s, %s of memory, %d vCPU", name, units.FormatMiB(int(d.memory)), d.cpus)
}
