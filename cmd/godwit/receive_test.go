package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/migration"
	"godwit/migration/wire"
	"godwit/vmm"
)

func TestReceiverAllowsNoWayOut(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	for _, d := range []string{in, out} {
		require.NoError(t, os.Mkdir(d, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(d, "f"), nil, 0o600))
	}
	require.NoError(t, os.Symlink(filepath.Join(out, "f"), filepath.Join(in, "link")))
	require.NoError(t, os.Symlink(filepath.Join(in, "f"), filepath.Join(in, "alias")))
	r := receiver{allow: []string{"/no/such", in}, disks: diskMapValue{"mapped": "x.img"}}
	set := map[string]func(*vmm.Config, string){
		"kernel": func(c *vmm.Config, p string) { c.BootSource.KernelImagePath = p },
		"initrd": func(c *vmm.Config, p string) { c.BootSource.InitrdPath = p },
		"disk":   func(c *vmm.Config, p string) { c.Drives = []vmm.Drive{{ID: "vda", PathOnHost: p}} },
	}
	for name, set := range set {
		var its, want vmm.Config
		set(&its, filepath.Join(in, "alias"))
		set(&want, filepath.Join(in, "f"))
		got, err := r.here(its)
		require.NoError(t, err, name)
		require.Equal(t, want, got, "%s: what was checked is what is opened", name)
		for _, p := range []string{filepath.Join(out, "f"), filepath.Join(in, "link"), in + "/../out/f", "in/f", filepath.Join(in, "g")} {
			set(&its, p)
			_, err := r.here(its)
			require.ErrorContains(t, err, "--allow-path", "%s %s", name, p)
		}
	}
	its := vmm.Config{Drives: []vmm.Drive{{ID: "mapped", PathOnHost: "/its/own"}}}
	got, err := r.here(its)
	require.NoError(t, err)
	require.Equal(t, "x.img", got.Drives[0].PathOnHost, "the operator's own word")
	require.Equal(t, "/its/own", its.Drives[0].PathOnHost, "the machine's is not changed")
}

// TestVsockAfterAReset is where it was when the machine arrived: a path that is
// too long for a socket was not used then, and does not end the guest now.
func TestVsockAfterAReset(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	r := receiver{allow: []string{dir}}
	long := filepath.Join(dir, strings.Repeat("v", 100))
	for its, want := range map[string]string{filepath.Join(dir, "v"): filepath.Join(dir, "v"), long: "", "/elsewhere/v": ""} {
		got, err := r.here(vmm.Config{Vsock: &vmm.Vsock{GuestCID: 3, UDSPath: its}})
		require.NoError(t, err)
		require.Equal(t, want, got.Vsock.UDSPath)
	}
	r.vsock = "mine"
	got, err := r.here(vmm.Config{Vsock: &vmm.Vsock{GuestCID: 3, UDSPath: long}})
	require.NoError(t, err)
	require.Equal(t, "mine", got.Vsock.UDSPath)
}

func TestReceiverPatience(t *testing.T) {
	for args, want := range map[string]migration.ReceiveOptions{
		"":                         {Stall: migration.DefaultStall, Describe: describeTime},
		"--stall 90s":              {Stall: 90 * time.Second, Describe: describeTime},
		"--stall 0":                {Stall: -1, Describe: describeTime},
		"--stall 1s --timeout 10m": {Stall: time.Second, Timeout: 10 * time.Minute, Describe: describeTime},
	} {
		r, f := new(receiver), pflag.NewFlagSet("receive", pflag.ContinueOnError)
		r.addPatience(f)
		require.NoError(t, f.Parse(strings.Fields(args)))
		require.Equal(t, want, r.options(), args)
	}
}

func TestAcceptPatiently(t *testing.T) {
	var told []error
	tell := func(err error) { told = append(told, err) }
	conn, peer := net.Pipe()
	defer conn.Close()
	defer peer.Close()
	results := []error{unix.EMFILE, unix.EMFILE, unix.ENFILE, nil, unix.ENOBUFS, net.ErrClosed}
	accept := acceptPatiently(func(context.Context) (net.Conn, error) {
		err := results[0]
		results = results[1:]
		if err != nil {
			return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
		}
		return conn, nil
	}, tell)
	got, err := accept(context.Background())
	require.NoError(t, err)
	require.Equal(t, conn, got)
	require.Len(t, told, 1, "once, however often it fails")
	require.ErrorIs(t, told[0], unix.EMFILE)
	_, err = accept(context.Background())
	require.ErrorIs(t, err, errDeaf)
	require.ErrorIs(t, err, net.ErrClosed)
	require.Len(t, told, 2)

	ctx, cancel := context.WithCancel(context.Background())
	lacking := acceptPatiently(func(context.Context) (net.Conn, error) { return nil, unix.EMFILE }, func(error) { cancel() })
	_, err = lacking(ctx)
	require.ErrorIs(t, err, context.Canceled, "the wait between attempts ends, too")
}

// A receiver whose listener has failed ends, with --once and without.
func TestDeafReceiverEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	h, err := newHost(hostFlags{serial: "none"}, "", "")
	require.NoError(t, err)
	defer h.close()
	_, err = new(receiver).wait(context.Background(), h, l)
	require.ErrorIs(t, err, errDeaf)
}

// One who only shows that it lives does not keep others out for ever.
func TestStrangerHasLimitedTime(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer conn.Close()
		go func() { _, _ = io.Copy(io.Discard, conn) }() // ends with conn
		w := wire.NewWriter(conn)
		h := wire.Hello{MinVersion: wire.Version, MaxVersion: wire.Version, Role: wire.RoleControl, PageSize: 4096, Streams: 1}
		err := w.Open(wire.TypeHello, h.Append(nil))
		for err == nil {
			time.Sleep(20 * time.Millisecond) // not for luck: this is its trickle
			err = w.Frame(wire.TypeKeepalive, 0, nil)
		}
	}()
	build := func(context.Context, migration.Offer) (migration.Target, error) {
		return nil, errors.New("it never comes to that")
	}
	_, rep, err := migration.Receive(context.Background(), migration.AcceptFrom(l), build, migration.ReceiveOptions{Describe: 200 * time.Millisecond})
	require.ErrorContains(t, err, "within 200ms what machine")
	require.Equal(t, migration.Failed, rep.Status)
	<-gone
}
