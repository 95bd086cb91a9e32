package metronome_test

import (
	"context"
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/boot/metronome"
	"godwit/migration"
	"godwit/vmm"
)

// copyHere is one copy of a guest in this process.
type copyHere struct {
	t   testing.TB
	m   *vmm.Machine
	out *console
}

// bootHere starts a guest in this process and waits until it beats.
func bootHere(t testing.TB, cfg vmm.Config) *copyHere {
	t.Helper()
	c := &copyHere{t: t, out: newConsole(nil)}
	var err error
	c.m, err = vmm.New(cfg, vmm.Options{Serial: c.out})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.m.Close()) })
	require.NoError(t, c.m.Start())
	c.beats(2)
	return c
}

func (c *copyHere) beats(n int) []metronome.Beat {
	c.t.Helper()
	beats, err := c.out.next(deadline(c.t), n)
	require.NoError(c.t, err)
	return beats
}

func (c *copyHere) info() metronome.Info {
	c.t.Helper()
	in, err := readInfo(deadline(c.t), c.m)
	require.NoError(c.t, err)
	return in
}

// swept waits until all memory has been looked at once more.
func (c *copyHere) swept() metronome.Info {
	c.t.Helper()
	sweeps := c.info().Sweeps
	for {
		c.beats(1)
		if in := c.info(); in.Sweeps >= sweeps+2 {
			return in
		}
	}
}

// route is how a move within this process goes. Members may be left out.
type route struct {
	o        migration.SendOptions
	disks    map[string]string                       // the destination's
	networks map[string]vmm.HostNetwork              // the destination's
	enter    func(func())                            // into the network namespace with its taps
	source   func(migration.Source) migration.Source // around the source's machine
	dialed   func(c net.Conn, index int) net.Conn    // around the source's connections, 0 being control
	accepted func(net.Conn) net.Conn                 // around the destination's
}

// move moves the guest to a new machine in this process. The old one is closed
// when that has worked. Silence is not what is tried here: while KVM makes or
// destroys one machine, which on a busy host can take seconds, it can hold up all
// of the process, the other end of the migration included.
func (c *copyHere) move(r route) (*copyHere, *migration.Report, error) {
	c.t.Helper()
	r.o.Silence = patience
	network, addr := "tcp", "127.0.0.1:0"
	if r.o.Local || r.enter != nil {
		// A file's name is the same in every namespace.
		network, addr = "unix", filepath.Join(c.t.TempDir(), "s")
	}
	l, err := net.Listen(network, addr)
	require.NoError(c.t, err)
	defer l.Close()
	next := &copyHere{t: c.t, out: newConsole(nil)}
	done := make(chan error, 1)
	go func() {
		in := vmm.Incoming{Options: vmm.Options{Serial: next.out}, Disks: r.disks, AllowPrefixes: folders(r.disks), Networks: r.networks}
		build := r.inside(vmm.BuildTarget(in, func(m *vmm.Machine) { next.m = m }))
		accept := migration.AcceptFrom(l)
		_, _, err := migration.Receive(context.Background(), func(ctx context.Context) (net.Conn, error) {
			conn, err := accept(ctx)
			if err == nil && r.accepted != nil {
				conn = r.accepted(conn)
			}
			return conn, err
		}, build, migration.ReceiveOptions{Silence: r.o.Silence})
		done <- err
	}()
	src := c.m.Source()
	if r.source != nil {
		src = r.source(src)
	}
	rep, err := migration.Send(context.Background(), src, r.dialer(l.Addr()), r.o)
	if err != nil {
		l.Close() // a destination that nobody has called waits for good
		<-done
		return nil, rep, err
	}
	require.NoError(c.t, <-done)
	c.m.MigratedTo()
	require.NoError(c.t, c.m.Close())
	c.t.Cleanup(func() { require.NoError(c.t, next.m.Close()) })
	return next, rep, nil
}

// inside makes a builder work in the route's namespace.
func (r *route) inside(build migration.Builder) migration.Builder {
	if r.enter == nil {
		return build
	}
	return func(ctx context.Context, o migration.Offer) (target migration.Target, err error) {
		r.enter(func() { target, err = build(ctx, o) })
		return target, err
	}
}

// dialer numbers connections by the order in which they are asked for: the
// control connection is the first.
func (r *route) dialer(addr net.Addr) migration.Dialer {
	index := make(chan int, 1)
	index <- 0
	return func(ctx context.Context) (net.Conn, error) {
		n := <-index
		index <- n + 1
		var d net.Dialer
		conn, err := d.DialContext(ctx, addr.Network(), addr.String())
		if err == nil && r.dialed != nil {
			conn = r.dialed(conn, n)
		}
		return conn, err
	}
}
