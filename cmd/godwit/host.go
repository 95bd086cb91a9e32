package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"godwit/api"
	"godwit/cmd/godwit/internal/console"
	"godwit/cmd/godwit/internal/plain"
	"godwit/vmm"
)

// answerTime is how long clients have to hear the end of a migration, and
// their other answers, when the process ends.
const answerTime = 5 * time.Second

// hostFlags say how a machine is connected with this process's world.
type hostFlags struct {
	serial, socket string
	noReboot       bool
}

func (h *hostFlags) add(f *pflag.FlagSet) {
	f.StringVar(&h.serial, "serial", "stdio", "serial console at `WHERE`: stdio, none, file:PATH[,limit=SIZE] (at SIZE it becomes PATH.1) or unix:PATH, as in --serial file:vm.log,limit=16M; on a terminal Ctrl-a x stops the machine, Ctrl-a a sends Ctrl-a")
	f.StringVar(&h.socket, "api-sock", "", "serve the API on a unix socket at `PATH`, as in --api-sock vm.sock")
	f.BoolVar(&h.noReboot, "no-reboot", false, "end when the guest resets instead of starting it again, as in run --no-reboot")
}

// host is the life of a machine in this process.
type host struct {
	console  *console.Console // this process' terminal, for messages too
	serial   *console.Console // the guest's serial port; mostly the same
	stdioID  string           // the virtio console that has stdio instead of it, or ""
	copies   sync.WaitGroup   // carry that console's output
	inst     *api.Instance
	servers  []*api.Server // one a socket: --api-sock's, --name's
	noReboot bool
}

// newHost opens console and API socket. named is the machine's name where its
// user gave one, stdioID the virtio console that has stdio, or "".
func newHost(h hostFlags, named, stdioID string) (*host, error) {
	spec, err := console.ParseSpec(h.serial)
	if err != nil {
		return nil, err
	}
	if stdioID != "" && spec.Kind == "stdio" {
		return nil, usage("console %q and the serial port both on stdio; add --serial none, or another place for one of them", stdioID)
	}
	var sockets []string
	if h.socket != "" {
		sockets = append(sockets, h.socket)
	}
	if named != "" {
		socket, err := socketOf(named)
		if err != nil {
			return nil, err
		}
		if err := makeSocketDir(socket); err != nil {
			return nil, err
		}
		sockets = append(sockets, socket)
	}
	out := &host{noReboot: h.noReboot, stdioID: stdioID}
	out.inst = api.NewInstance(named, func(n api.Note) { out.say("%s", n.Text) })
	spec.Say = func(text string) { out.say("%s", text) }
	if out.serial, err = console.Open(spec); err != nil {
		return nil, err
	}
	out.console = out.serial
	if stdioID != "" {
		if out.console, err = console.Open(console.Spec{Kind: "stdio"}); err != nil {
			return nil, errors.Join(err, out.serial.Close())
		}
	}
	for _, socket := range sockets {
		server, err := api.Listen(socket, out.inst)
		if err != nil {
			return nil, errors.Join(err, out.closeServers(0), out.closeConsoles())
		}
		out.servers = append(out.servers, server)
	}
	return out, nil
}

// closeServers closes the API's sockets, together within timeout.
func (h *host) closeServers(timeout time.Duration) error {
	var all errgroup.Group
	for _, s := range h.servers {
		all.Go(func() error { return s.Close(timeout) })
	}
	return all.Wait()
}

// close ends everything that newHost began. What goes wrong then is said, and
// changes nothing about how the command ends.
func (h *host) close() {
	h.inst.Close()
	h.warn(errors.Join(h.closeServers(answerTime), h.closeConsoles()))
}

func (h *host) closeConsoles() error {
	copied := make(chan struct{})
	go func() {
		h.copies.Wait()
		close(copied)
	}()
	select {
	case <-copied:
	case <-time.After(time.Second): // nobody reads stdout; the process ends soon
	}
	err := h.serial.Close()
	if h.console != h.serial {
		err = errors.Join(err, h.console.Close())
	}
	return err
}

// options is what a machine gets from this process.
func (h *host) options() vmm.Options {
	o := vmm.Options{Serial: h.serial, OnFull: func(err error) {
		h.say("the guest is paused: %v; make room there, then run godwit resume", err)
	}}
	if h.stdioID != "" {
		o.Stdio = h.lendStdio
	}
	return o
}

// say writes one line for the user.
func (h *host) say(format string, a ...any) {
	h.console.Message("godwit: " + plain.Line(oneLine(fmt.Sprintf(format, a...))) + "\n")
}

// warn says what went wrong, if anything, without being the command's result.
func (h *host) warn(err error) {
	if err != nil {
		h.say("warning: %v", err)
	}
}

// heeded gives SIGTERM, and those of others that this process was not started to
// ignore: nohup has SIGHUP ignored, and a script's & has SIGINT ignored, so that
// a Ctrl-C is for what runs in front (POSIX, Shell Command Language, 2.11).
func heeded(others ...os.Signal) []os.Signal {
	return append(slices.DeleteFunc(others, signal.Ignored), unix.SIGTERM)
}

// untilSignal gives a context that ends when somebody asks this process to end.
// A second signal ends it at once: the terminal's guard cleans up.
func untilSignal() (context.Context, context.CancelFunc) {
	// Whoever reads our output may go away; the guest does not end with it.
	signal.Ignore(unix.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), heeded(unix.SIGINT, unix.SIGHUP)...)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}

// fitProcs lets a vCPU thread that comes back from the guest always find a
// place to run Go code, however busy the rest is.
func fitProcs(vcpus int) {
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), runtime.NumCPU()+vcpus))
}

// run lives with a machine until its guest has ended for good, and closes it.
// rebuild makes the next machine after a reset. The error has the exit code.
func (h *host) run(ctx context.Context, m *vmm.Machine, rebuild func() (*vmm.Machine, error)) error {
	if err := h.console.Start(); err != nil {
		return errors.Join(err, m.Close())
	}
	resets := newResets()
	defer func() {
		if n := resets.rest(); n > 0 {
			h.say("the guest was reset %d times more", n)
		}
	}()
	for {
		exit, err := h.runOnce(ctx, m)
		if err != nil {
			return err
		}
		switch exit.Kind {
		case vmm.ExitFault:
			return h.fault(exit.Err)
		case vmm.ExitReset:
			if h.noReboot {
				h.say("the guest asked for a reset")
				return nil
			}
		default: // powered off, stopped, or it runs elsewhere
			return nil
		}
		if before, ok := resets.due(); ok {
			h.say("the guest asked for a reset and starts again%s", before)
		}
		if m, err = rebuild(); err != nil {
			return fmt.Errorf("start the guest again: %w", err)
		}
	}
}

// newResets decides which resets of one guest are told: one that resets in a loop
// does not fill the log.
func newResets() *seldom { return &seldom{every: time.Minute, burst: 10} }

// errUnread ends a machine that nothing can reach any more.
var errUnread = errors.New("nobody reads stdout any more, and there is no API socket, so the machine was stopped; " +
	"to let it run on, give --api-sock PATH or --name NAME, or --serial file:PATH")

// runOnce lives with one machine and tells how its guest ended. The error is of
// one that could not start; what goes wrong when the machine is taken down, as
// where nobody reads the console, is not how the guest ended.
func (h *host) runOnce(ctx context.Context, m *vmm.Machine) (exit vmm.Exit, err error) {
	h.inst.Set(m.Config().ID, m)
	h.serial.Attach(m.Input)
	if h.stdioID != "" {
		sizes, end := context.WithCancel(ctx)
		var following sync.WaitGroup
		defer following.Wait()
		defer end()
		following.Go(func() { followSize(sizes, m, h.stdioID) })
	}
	if m.State() == vmm.StateBuilt {
		if err = m.Start(); err != nil {
			m.Stop()
		}
	}
	unread := h.console.Unread()
	if len(h.servers) > 0 {
		unread = nil // whoever read may go: there are other ways to the machine
	}
	select {
	case <-m.Ended():
	case <-ctx.Done():
		m.Stop()
	case <-h.console.Left():
		m.Stop()
	case <-unread:
		m.Stop()
		err = errors.Join(err, errUnread)
	}
	<-m.Ended()
	h.serial.Attach(nil)
	h.console.Attach(nil)
	h.inst.Detach()
	exit = m.Exit()
	lost, other := judgeClose(exit, m.Close())
	h.warn(other)
	return exit, errors.Join(err, lost)
}

// judgeClose says which of what went wrong when a machine was closed is the
// command's result: a disk that lacks what its guest wrote. A guest's fault is
// more to know.
func judgeClose(exit vmm.Exit, err error) (lost, other error) {
	if errors.Is(err, vmm.ErrUnwritten) && exit.Kind != vmm.ExitFault {
		return err, nil
	}
	return nil, err
}

// fault reports how the guest failed.
func (h *host) fault(err error) error {
	if f := new(vmm.Fault); errors.As(err, &f) {
		h.console.Message(f.Report())
	}
	return &exitError{exitFault, fmt.Errorf("guest fault: %w", err)}
}
