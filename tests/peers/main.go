package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

const help = `peers moves the same guest with QEMU and with godwit, in turn, or lets it drive their devices, and prints what each
took and the ratios.

  go run ./tests/peers -list                                     what there is to measure
  go run ./tests/peers -runs 5 -out raw.jsonl -markdown all.md    everything
  go run ./tests/peers -cases ws-20k,ws-50k                       two cases
  go run ./tests/peers -cases fill-1g -settings multifd,streams   settings by parts of their names
  go run ./tests/peers -cases blk-4k-randread,net-64              what the guest gets out of devices; nothing moves
  go run ./tests/peers -cases ws-50k -slow                        auto-converge too, which takes a minute a run
  go run ./tests/peers -cases ws-20k -try 'ws-20k:--codec xbrle,cache=auto --order hot-last'
  go run ./tests/peers -from raw.jsonl                            tables of the last invocation in a file

Leave the machine alone meanwhile. Before each move memory is warmed: a process touches as much as the destination will
need and ends, since a virtual machine may have given freed memory back to its host. Exit code 0 says that it measured,
1 that it could not, whoever won.

Flags:
`

type options struct {
	choice
	runs              int
	qemu, godwit      string
	out, markdown     string
	from              string
	list              bool
	timeout           time.Duration
	casesArg, setsArg string
}

func parse(args []string) (*options, error) {
	o := &options{}
	f := flag.NewFlagSet("peers", flag.ContinueOnError)
	f.Usage = func() {
		fmt.Fprint(f.Output(), help)
		f.PrintDefaults()
	}
	f.StringVar(&o.casesArg, "cases", "", "only these `CASES`, as in -cases fill-1g,ws-20k (default all)")
	f.StringVar(&o.setsArg, "settings", "", "only settings with one of these `PARTS` in their names, as in -settings multifd,streams (default all that are not slow)")
	f.BoolVar(&o.slow, "slow", false, "slow settings too, as in -cases ws-50k -slow")
	f.Func("try", "one godwit setting more, `CASE:FLAGS` of migrate; may be repeated, as in -try 'ws-20k:--codec lz4'", func(s string) error {
		o.tries = append(o.tries, s)
		return nil
	})
	f.IntVar(&o.runs, "runs", 5, "runs of each setting, as in -runs 5")
	f.StringVar(&o.qemu, "qemu", "qemu-system-x86_64", "QEMU's `PATH`, as in -qemu /usr/bin/qemu-system-x86_64")
	f.StringVar(&o.godwit, "godwit", "bin/godwit", "godwit's `PATH`, as in -godwit bin/godwit")
	f.StringVar(&o.out, "out", "", "append raw lines to `FILE`, JSON, one a run, as in -out raw.jsonl")
	f.StringVar(&o.markdown, "markdown", "", "write the tables to `FILE` too, as in -markdown tables.md")
	f.StringVar(&o.from, "from", "", "measure nothing; print tables of the last invocation in `FILE`, as in -from raw.jsonl")
	f.DurationVar(&o.timeout, "timeout", 2*time.Minute, "most that booting, getting ready, moving, or checking may take in a run, as in -timeout 2m")
	f.BoolVar(&o.list, "list", false, "print cases and settings, as in -list")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	o.cases, o.settings = words(o.casesArg), words(o.setsArg)
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("%q is no flag; see -help", f.Arg(0))
	case o.runs < 1:
		return nil, fmt.Errorf("-runs %d: at least 1", o.runs)
	case o.timeout <= 0:
		return nil, fmt.Errorf("-timeout %v: must be above 0", o.timeout)
	}
	return o, nil
}

// words splits at commas.
func words(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' })
}

func main() {
	if len(os.Args) == 3 && os.Args[1] == warmCommand {
		exit(warmMain(os.Args[2]))
	}
	o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), heeded(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)...)
	err = run(ctx, o)
	stop()
	exit(err)
}

// heeded leaves out the signals that this program was started with ignored, as
// nohup does with SIGHUP.
func heeded(all ...os.Signal) []os.Signal {
	return slices.DeleteFunc(all, signal.Ignored)
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "peers:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, o *options) error {
	all := cases()
	if o.from != "" {
		s, err := readSession(o.from)
		if err != nil {
			return err
		}
		return publish(s, all, o.markdown)
	}
	chosen, err := choose(all, o.choice)
	if err != nil {
		return err
	}
	if o.list {
		if len(o.settings) == 0 {
			chosen = all // the slow ones too
		}
		fmt.Print(list(chosen))
		return nil
	}
	return measureAll(ctx, o, chosen)
}

// measureAll prints what there is even when it is interrupted.
func measureAll(ctx context.Context, o *options, chosen []Case) (err error) {
	b := &bench{starter: newStarter(), timeout: o.timeout, say: say}
	if b.qemu, err = exec.LookPath(o.qemu); err != nil {
		return fmt.Errorf("find QEMU: %w; on Debian: scripts/need.sh qemu-system-x86", err)
	}
	if b.godwit, err = filepath.Abs(o.godwit); err != nil {
		return err
	}
	if _, err := os.Stat(b.godwit); err != nil {
		return fmt.Errorf("find godwit: %w; make build makes it", err)
	}
	s := &session{}
	if s.Host, err = examine(ctx, b.qemu, b.godwit); err != nil {
		return err
	}
	b.tscKHz = s.Host.TSCKHz
	if b.dir, err = os.MkdirTemp("", "peers-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if err := b.prepare(); err != nil {
		return err
	}
	if o.out != "" {
		f, err := os.OpenFile(o.out, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, f.Close()) }()
		s.raw = f
	}
	if err := s.note(s.Host); err != nil {
		return err
	}
	for i := range chosen {
		if err = b.measure(ctx, s, &chosen[i], o.runs); err != nil {
			break
		}
	}
	return errors.Join(err, publish(s, chosen, o.markdown))
}

func say(format string, a ...any) {
	fmt.Fprintf(os.Stderr, time.Now().Format("15:04:05 ")+format+"\n", a...)
}

// publish prints the tables, and writes them where asked.
func publish(s *session, all []Case, markdown string) error {
	text := render(s, all)
	fmt.Print(text)
	if markdown == "" {
		return nil
	}
	return os.WriteFile(markdown, []byte(text), 0o644)
}
