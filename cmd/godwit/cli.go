package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"godwit/api"
	"godwit/blockfile/tool"
	"godwit/cmd/godwit/internal/console"
	"godwit/cmd/godwit/internal/plain"
	"godwit/cmd/godwit/internal/units"
	"godwit/migration"
	"godwit/migration/policy"
	"godwit/vmm"
)

// Exit codes: DESIGN.md, "Command line".
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
	exitFault  = 3 // the guest's, not ours
)

// exitError ends the program with a code. A nil err says nothing more, because
// everything has been said.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

func usage(format string, a ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, a...)}
}

// execute runs the program and gives its exit code.
func execute(args []string) int {
	root := newRoot()
	root.SetArgs(args)
	cmd, err := root.ExecuteC()
	if err == nil {
		return exitDone
	}
	code := codeOf(err)
	text := err.Error()
	if e := new(exitError); errors.As(err, &e) {
		if e.err == nil {
			return code
		}
		text = plain.Line(oneLine(text)) // cobra's own have lines that are meant
	}
	fmt.Fprintf(os.Stderr, "godwit: %s\n", plain.Text(text))
	if code == exitUsage {
		fmt.Fprintf(os.Stderr, "Try '%s --help'.\n", cmd.CommandPath())
	}
	return code
}

// oneLine puts the lines of joined errors in one, so that every message is one
// line that starts with the program's name.
func oneLine(text string) string {
	var parts []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" {
			parts = append(parts, line)
		}
	}
	return strings.Join(parts, "; ")
}

// codeOf is the exit code of an error that a command ended with. What does not
// come from a command's own work is cobra's complaint about the arguments.
func codeOf(err error) int {
	if e := new(exitError); errors.As(err, &e) {
		return e.code
	}
	return exitUsage
}

// badUsage are errors that only a wrong argument brings, unless the system's own word
// is behind them: a file that is not there is no matter of the command line alone.
var badUsage = []error{vmm.ErrConfig, migration.ErrOptions, policy.ErrBadPolicy, api.ErrAddress, api.ErrTLS, console.ErrSpec, units.ErrSyntax, tool.ErrOptions}

// action makes a command's work give the right exit code.
func action(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := checkEmpty(cmd.Flags()); err != nil {
			return err
		}
		err := f(cmd, args)
		if e := new(exitError); err == nil || errors.As(err, &e) {
			return err
		}
		if errno := syscall.Errno(0); errors.As(err, &errno) {
			return &exitError{exitFailed, err}
		}
		for _, b := range badUsage {
			if errors.Is(err, b) {
				return &exitError{exitUsage, err}
			}
		}
		if e := new(api.RequestError); errors.As(err, &e) && e.Status == 400 {
			return &exitError{exitUsage, err}
		}
		return &exitError{exitFailed, err}
	}
}

// plainFlagError is pflag's complaint in the words of the command line.
func plainFlagError(err error) string {
	value := new(pflag.InvalidValueError)
	if !errors.As(err, &value) {
		return err.Error()
	}
	name := value.GetFlag().Name
	if value.GetFlag().Value.Type() == "bool" {
		return fmt.Sprintf("--%s %.40q: write true or false, or the flag alone", name, value.GetValue())
	}
	return fmt.Sprintf("--%s: %v", name, errors.Unwrap(value))
}

// takesEmpty marks flags whose empty text has a meaning.
const takesEmpty = "godwit-takes-empty"

func mayBeEmpty(f *pflag.FlagSet, names ...string) {
	for _, name := range names {
		f.Lookup(name).Annotations = map[string][]string{takesEmpty: nil}
	}
}

// checkEmpty refuses a flag whose text was given and is empty, as where a script's
// variable is not set.
func checkEmpty(f *pflag.FlagSet) (err error) {
	f.Visit(func(flag *pflag.Flag) {
		if err == nil && flag.Value.Type() == "string" && flag.Value.String() == "" {
			if _, ok := flag.Annotations[takesEmpty]; ok {
				return
			}
			err = usage("--%s is empty; give it a value, or leave it out", flag.Name)
		}
	})
	return err
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "godwit",
		Short: "Runs virtual machines on KVM and moves them live",
		Long: `godwit runs virtual machines on /dev/kvm and moves them live from process to process.

  godwit demo      boots the built-in guest, moves it, verifies it, prints the figures
  godwit doctor    says what this host can do, and what to do about what it cannot

Sizes take K, M, G (binary), rates MB/s, Mbit/s (decimal), times 30ms, 2s.
Exit codes: 0 done, 1 failed, 2 bad usage, 3 guest fault.`,
		Version:           api.Version(),
		SilenceErrors:     true,
		SilenceUsage:      true,
		DisableAutoGenTag: true,
		Args:              cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_ = cmd.Help() // it writes to stdout; nothing to do if that is gone
			return usage("no command given")
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usage("%s", plainFlagError(err)) })
	root.CompletionOptions.DisableDefaultCmd = true // ours, with an example, is newCompletion
	cobra.EnableCommandSorting = false              // they are in the order of use
	for _, g := range []struct {
		id, title string
		commands  []*cobra.Command
	}{
		{"machine", "Run a machine:", []*cobra.Command{newRun(), newInfo(), newPause(), newResume(), newStop(), newLink(), newBalloon()}},
		{"move", "Move it:", []*cobra.Command{newReceive(), newMigrate(), newMigration()}},
		{"disk", "Its disks:", []*cobra.Command{newImage()}},
		{"host", "Try it on this host:", []*cobra.Command{newDemo(), newDoctor(), newLab()}},
		{"self", "About godwit:", []*cobra.Command{newVersion(), newCompletion(), newMan()}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range g.commands {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	return root
}

// printJSON writes v as one line on stdout.
func printJSON(v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if _, err := fmt.Printf("%s\n", plain.JSON(text)); err != nil {
		return fmt.Errorf("write to stdout: %w", err)
	}
	return nil
}
