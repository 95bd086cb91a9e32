package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"godwit/api"
	"godwit/migration"
	"godwit/vmm"
)

func newReceive() *cobra.Command {
	var r receiver
	var hf hostFlags
	var listen, name string
	cmd := &cobra.Command{
		Use:   "receive",
		Short: "Take a machine that migrates here, or one saved in a file, and run it",
		Long: `Take a machine that migrates here, or one saved in a file, and run it as "godwit run" does from then on.

The source sends what the machine is made of; only disks, taps and limits are this side's to say. A disk is opened where
--disk maps its id, or as the source names it if that lies below an --allow-path. A network card needs a tap here, by --net,
whatever the source calls its own. "listening on" on stderr says that a
source may come, with the port where port 0 was asked for. A migration that fails leaves nothing behind, and the next
one is waited for.

A machine, of a source or out of a file, may have as much memory as is free here when it comes, or --max-memory, and
--max-cpus vCPUs.

With --listen file:PATH the machine comes out of a file that "godwit migrate --to file:PATH" wrote. Its disks must be
as they were then, and used by nobody. PATH.restored notes that it was done: restoring the same file again is possible
and brings a warning, since two copies of one guest are seldom meant. What is wrong with the file ends the command
with 1. There is no source to be patient with, so --stall, --timeout and --once are refused.

With --tls-cert, --tls-key and --tls-ca a TCP source must show a certificate that an authority in --tls-ca has signed, and
all that it sends is encrypted; the files are read when listening starts. Without them a source is not authenticated: listen
where only trusted machines can connect. On an address that other hosts can reach that takes --insecure.

Connections that say nothing, or are no source, are turned away and end nothing; stderr says why, at most once a second. A second
source hears at once that the destination is busy. A source has ` + describeTime.String() + ` to say what machine it brings. From then on it may take as long as it likes while something comes; one
that brings nothing for ` + migration.DefaultStall.String() + ` is given up (--stall), and so is one that is not done within --timeout, if that is given. It is told
why, and its guest runs on there.`,
		Example: `  godwit receive --listen tcp:0.0.0.0:7000 --disk vda=/srv/root.img --tls-cert host2.pem --tls-key host2.key --tls-ca ca.pem
  godwit receive --listen tcp:127.0.0.1:7000 --disk vda=/srv/root.img
  godwit receive --listen tcp:127.0.0.1:7000 --disk vda=/srv/root.img --timeout 10m
  godwit receive --listen unix:in.sock --allow-path /srv/images --api-sock vm2.sock
  godwit receive --listen file:/srv/web.saved --disk vda=/srv/root.img --name web`,
		Args: cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command, _ []string) error {
			if listen == "" {
				return usage("where to listen? give --listen, as in --listen tcp:127.0.0.1:7000")
			}
			addr, err := api.ParseAddress(listen)
			if err != nil {
				return err
			}
			if err := checkRestore(addr, cmd.Flags()); err != nil {
				return err
			}
			return r.serve(addr, hf, name)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "", "`ADDRESS` where sources connect, as in --listen tcp:127.0.0.1:7000 or --listen unix:in.sock, port 0 taking a free one; or a saved machine, as in --listen file:web.saved")
	r.disks = diskMapValue{}
	f.Var(r.disks, "disk", "open PATH for the source's disk ID; may be repeated, as in --disk vda=/srv/root.img")
	r.consoles = consoleMapValue{}
	f.Var(r.consoles, "console", "put unix:PATH, file:PATH or stdio behind the source's virtio console ID; may be repeated; others have nobody behind them; as in --console con0=unix:c.sock")
	r.networks = networkMapValue{}
	f.Var(r.networks, "net", "use TAP for the source's network card ID, and put it into a bridge; may be repeated, as in --net net0=tap7,bridge=br0")
	f.Var(&r.vsock, "vsock", "put the source's vsock at path=PATH; without, it is where the source had it if that is below an --allow-path, and else nobody is behind it; as in --vsock path=v.sock")
	f.Var(&r.allow, "allow-path", "open disks below this `FOLDER` as the source names them, and backing files as images name them; may be repeated, as in --allow-path /srv/images")
	f.Var(&r.maxMemory, "max-memory", "refuse a machine with more memory than this; given, it need not be free when the machine comes, as in --max-memory 8G (default what is free then)")
	addCount(f, &r.maxCPUs, "max-cpus", 0, 1, vmm.MaxCPUs, "refuse a machine with more vCPUs than this, as in --max-cpus 4 (default as many as KVM takes)")
	r.guard.add(f)
	r.addPatience(f)
	f.BoolVar(&r.once, "once", false, "end with 1 when a migration fails, instead of waiting for the next, as in receive --once")
	f.StringVar(&name, "name", "", "as `NAME`, put the API socket where the other commands' --name finds it, as in --name web")
	hf.add(f)
	f.SortFlags = false
	return cmd
}

// receiver is what `receive` was told about incoming machines.
type receiver struct {
	disks    diskMapValue
	consoles consoleMapValue
	vsock    vsockPathValue
	networks networkMapValue
	allow    pathsValue

	maxMemory memoryValue
	maxCPUs   int

	guard   guard
	once    bool
	stall   timeValue
	timeout timeValue
}

// addPatience makes the flags that say how long a source may take.
func (r *receiver) addPatience(f *pflag.FlagSet) {
	r.stall = timeValue(migration.DefaultStall)
	f.Var(&r.stall, "stall", "give a source up that only shows that it lives, and brings nothing, for so long; 0 for never; a source that flushes its disks at the hand-over brings nothing, so give more where its host has much to write back; as in --stall 15m")
	f.Var(&r.timeout, "timeout", "give a migration up that is not done so long after its source came, as in --timeout 10m (default never)")
}

// checkRestore refuses what only sources that connect have a use for: a file is
// read as it is.
func checkRestore(addr api.Address, f *pflag.FlagSet) error {
	for _, name := range []string{"stall", "timeout", "once"} {
		if addr.IsFile() && f.Changed(name) {
			return usage("--%s has nothing to act on with --listen %s: no source connects, and a file is read once; leave it out", name, addr)
		}
	}
	return nil
}

// options are what the engine is told.
func (r *receiver) options() migration.ReceiveOptions {
	o := migration.ReceiveOptions{Stall: time.Duration(r.stall), Timeout: time.Duration(r.timeout), Describe: describeTime}
	if o.Stall == 0 {
		o.Stall = -1 // never, to the engine
	}
	return o
}

func (r *receiver) serve(addr api.Address, hf hostFlags, name string) error {
	ctx, stop := untilSignal()
	defer stop()
	secure, err := r.guard.check(ctx, addr)
	if err != nil {
		return err
	}
	h, err := newHost(hf, name, r.stdioID())
	if err != nil {
		return err
	}
	defer h.close()
	m, err := r.arrive(ctx, h, addr, secure)
	if ctx.Err() != nil && m == nil {
		return &exitError{code: exitFailed, err: errors.New("ended before a machine came")}
	}
	if err != nil {
		if m != nil {
			err = errors.Join(err, m.Close())
		}
		return &exitError{exitFailed, err}
	}
	r.sayUnmapped(h, m)
	return h.run(ctx, m, func() (*vmm.Machine, error) { return r.rebuild(h, m) })
}

// arrive takes a machine from a peer or out of a file.
func (r *receiver) arrive(ctx context.Context, h *host, addr api.Address, secure *api.TLS) (*vmm.Machine, error) {
	if addr.IsFile() {
		return r.restore(ctx, h, addr.Target)
	}
	l, err := r.guard.listen(addr, secure)
	if err != nil {
		return nil, err
	}
	m, err := r.wait(ctx, h, l)
	h.warn(l.Close()) // whatever comes of it, a guest that has arrived runs
	return m, err
}

// incoming is what a machine that comes may have here.
func (r *receiver) incoming(h *host) vmm.Incoming {
	return vmm.Incoming{Options: h.options(), Disks: r.disks, Networks: r.networks, Consoles: r.consoles, Vsock: string(r.vsock), AllowPrefixes: r.allow,
		MaxMemoryMiB: int(r.maxMemory), MaxVCPUs: r.maxCPUs}
}

// wait takes migrations until one succeeds.
func (r *receiver) wait(ctx context.Context, h *host, l net.Listener) (*vmm.Machine, error) {
	in := r.incoming(h)
	accept := acceptPatiently(migration.AcceptFrom(l), h.warn)
	o := r.options()
	o.OnTurnedAway = newRefusals(h.say).tell
	h.say("listening on %s:%s", l.Addr().Network(), l.Addr())
	for {
		var m *vmm.Machine
		built := func(b *vmm.Machine) {
			m = b
			fitProcs(b.Config().Machine.VCPUCount)
		}
		_, rep, err := migration.Receive(ctx, accept, vmm.BuildTarget(in, built), o)
		switch {
		case err == nil:
			h.say("the machine %q has arrived: %s", m.Config().ID, arrival(rep))
			if rep.Error != "" {
				h.say("%s", rep.Error)
			}
			return m, nil
		case r.once || ctx.Err() != nil || errors.Is(err, errDeaf):
			return nil, err
		}
		h.say("a migration failed: %v", err)
		h.say("listening on %s:%s", l.Addr().Network(), l.Addr())
	}
}

// stdioID is the console that was mapped to stdio, or "".
func (r *receiver) stdioID() string {
	for id, where := range r.consoles {
		if where == vmm.PathStdio {
			return id
		}
	}
	return ""
}

// sayUnmapped names the consoles that nobody is behind from here on.
func (r *receiver) sayUnmapped(h *host, m *vmm.Machine) {
	for _, c := range m.Config().Consoles {
		if _, ok := r.consoles[c.ID]; !ok {
			h.say("nobody can connect to its console %q here: no --console %s=.. was given", c.ID, c.ID)
		}
	}
	if v := m.Config().Vsock; v != nil && r.incomingVsock(v) == "" {
		h.say("nobody can connect to its vsock here: no --vsock path=.. was given")
	}
}

// incomingVsock is where a machine's vsock is here, by the rule of its arrival, or
// "".
func (r *receiver) incomingVsock(v *vmm.Vsock) string {
	path, err := vmm.Incoming{Vsock: string(r.vsock), AllowPrefixes: r.allow}.VsockPath(v)
	if err != nil {
		return "" // the machine would not be here
	}
	return path
}

// arrival says how much came, and how.
func arrival(rep *migration.Report) string {
	if rep.Local {
		return fmt.Sprintf("%.0f ms, %d pages handed over, none copied", rep.TotalMS, rep.Pages.Skipped)
	}
	p := rep.Pages
	return fmt.Sprintf("%.0f ms, %d pages, %d of them zero", rep.TotalMS, p.Raw+p.Delta+p.Compressed+p.Zero, p.Zero)
}

// rebuild starts a machine that arrived and reset, here: from the disks that
// were opened here and, where the operator allows its path, the kernel that the
// source named.
func (r *receiver) rebuild(h *host, m *vmm.Machine) (*vmm.Machine, error) {
	cfg, err := r.here(m.Config())
	if err != nil {
		return nil, err
	}
	return r.incoming(h).Rebuild(cfg)
}

// here gives cfg with the paths that its parts have here, or refuses it: what
// the source named is opened only below an --allow-path.
func (r *receiver) here(cfg vmm.Config) (vmm.Config, error) {
	cfg.Drives = slices.Clone(cfg.Drives)
	cfg.Consoles = slices.Clone(cfg.Consoles)
	for i := range cfg.Consoles {
		cfg.Consoles[i].Path = r.consoles[cfg.Consoles[i].ID]
	}
	if v := cfg.Vsock; v != nil {
		moved := *v
		moved.UDSPath = r.incomingVsock(v)
		cfg.Vsock = &moved
	}
	paths := []*string{&cfg.BootSource.KernelImagePath, &cfg.BootSource.InitrdPath}
	for i := range cfg.Drives {
		d := &cfg.Drives[i]
		if path, ok := r.disks[d.ID]; ok {
			d.PathOnHost = path
		} else {
			paths = append(paths, &d.PathOnHost)
		}
	}
	cfg.Networks = slices.Clone(cfg.Networks)
	for i := range cfg.Networks {
		n := &cfg.Networks[i]
		host, ok := r.networks[n.ID]
		if !ok {
			return cfg, fmt.Errorf("network %q has no tap here; start the receiver with --net %s=TAP", n.ID, n.ID)
		}
		n.HostDevName, n.Bridge = host.Tap, host.Bridge
	}
	for _, p := range paths {
		if *p == "" {
			continue
		}
		path, ok := vmm.Resolve(r.allow, *p)
		if !ok {
			return cfg, fmt.Errorf("its %q is named by the source and not below an --allow-path; start it with godwit run", *p)
		}
		*p = path
	}
	return cfg, nil
}
