package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"godwit/cmd/godwit/internal/console"
	"godwit/lab"
)

// cacheEnv names the folder for what is fetched once.
const cacheEnv = "GODWIT_CACHE"

func newLab() *cobra.Command {
	var cache string
	var memory memoryValue
	var cpus int
	var prepare, console bool
	cmd := &cobra.Command{
		Use:   "lab [flags] -- COMMAND...",
		Short: "Run a godwit command inside an emulated machine with real nested KVM",
		Long: `Run a godwit command inside an emulated machine with real nested KVM, where this host's KVM is missing or cannot
run the guest (godwit doctor tells).

QEMU emulates a machine with AMD's virtualization and Debian's cloud kernel; files and disks that the command names
go in, and what it writes comes back. Times inside are for comparing two programs in one lab, not for quoting.
The kernel is fetched once, with apt, into $` + cacheEnv + ` or the user's cache folder.`,
		Example: `  godwit lab -- doctor
  godwit lab -- run --kernel bzImage --disk path=root.img
  godwit lab --prepare`,
		RunE: action(func(_ *cobra.Command, args []string) error {
			ctx, stop := untilSignal()
			defer stop()
			dir, err := cacheDir(cache)
			if err != nil {
				return err
			}
			switch {
			case prepare && len(args) > 0:
				return usage("--prepare runs no command")
			case prepare:
				k, err := lab.Prepare(ctx, dir, os.Stderr)
				if err == nil {
					tell("the lab's kernel %s is in %q", k.Release, k.Dir)
				}
				return err
			case len(args) == 0:
				return usage("which command? as in godwit lab -- doctor")
			}
			if cpus == 0 {
				cpus = labCPUs(runtime.NumCPU())
			}
			c := lab.Config{CacheDir: dir, MemoryMiB: int(memory), CPUs: cpus, Progress: os.Stderr}
			if console {
				c.Console = os.Stderr
			}
			return runLab(ctx, c, args)
		}),
	}
	f := cmd.Flags()
	f.BoolVar(&prepare, "prepare", false, "fetch the lab's kernel and end, as in lab --prepare")
	f.StringVar(&cache, "cache", "", "`FOLDER` for the lab's kernel, as in --cache .cache (default $"+cacheEnv+" or the user's cache folder)")
	f.Var(&memory, "lab-memory", "memory of the emulated machine, as in --lab-memory 4G (default 2G and what is carried in)")
	addCount(f, &cpus, "lab-cpus", 0, 1, lab.MaxCPUs, "number of CPUs of the emulated machine, as in --lab-cpus 4 (default 2, or 1 where this host has one)")
	f.BoolVar(&console, "lab-console", false, "show the outer kernel's console on stderr, as in lab --lab-console -- doctor")
	f.SetInterspersed(false) // flags behind the command are the command's
	f.SortFlags = false
	return cmd
}

// labCPUs is how many CPUs the lab has by default. With two, a guest that spins
// does not take the only one from the process that is to answer it, which has
// been seen to stall. More than the host has would only take turns.
func labCPUs(host int) int { return min(2, host) }

func cacheDir(flag string) (string, error) {
	if flag != "" {
		return flag, nil
	}
	if dir := os.Getenv(cacheEnv); dir != "" {
		return dir, nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder: %w; give --cache DIR or set $%s", err, cacheEnv)
	}
	return filepath.Join(dir, "godwit"), nil
}

// labModules names the kernel modules that a command needs beyond those that every
// lab has.
func labModules(args []string) []string {
	for _, a := range args {
		if name, _, _ := strings.Cut(a, "="); name == "--net" || name == "--config" {
			return []string{"tun"} // taps
		}
	}
	return nil
}

// runLab runs this program with args inside and ends with its exit code.
func runLab(ctx context.Context, c lab.Config, args []string) error {
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	carried, err := lab.FilesOf(args, dir)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	c.Init, c.Dir = self, dir
	c.Command = append([]string{filepath.Base(self)}, args...)
	c.Files, c.Disks, c.Outputs = carried.Files, carried.Disks, carried.Outputs
	c.Modules = labModules(args)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	restore := func() error { return nil }
	if term.IsTerminal(int(os.Stdout.Fd())) {
		var raw bool
		if raw, restore, err = console.Raw(os.Stdin); err != nil {
			return err
		}
		if raw {
			c.Terminal = terminalSize()
		}
	}
	code, err := lab.Run(ctx, c)
	if err := errors.Join(err, restore()); err != nil {
		return err
	}
	if code != 0 {
		return &exitError{code: code}
	}
	return nil
}

func terminalSize() *lab.Size {
	cols, rows, err := term.GetSize(int(os.Stdout.Fd()))
	if err != nil || cols > math.MaxUint16 || rows > math.MaxUint16 {
		cols, rows = 80, 24
	}
	return &lab.Size{Rows: uint16(rows), Cols: uint16(cols)}
}
