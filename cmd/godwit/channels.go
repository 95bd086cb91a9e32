package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"net"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"godwit/cmd/godwit/internal/units"
	"godwit/vmm"
)

// entropyValue is --rng.
type entropyValue struct{ spec *vmm.Entropy }

func (v *entropyValue) Set(s string) (err error) {
	v.spec, err = parseEntropy(s)
	return err
}

func (v *entropyValue) Type() string   { return "rate=N[,burst=N]|unlimited" }
func (v *entropyValue) String() string { return "" }

// parseEntropy reads rate=SIZE[,burst=SIZE], both in bytes, or unlimited. The
// burst is what the bucket holds: a second's worth where it is left out.
func parseEntropy(s string) (*vmm.Entropy, error) {
	if s == "unlimited" {
		return &vmm.Entropy{}, nil
	}
	bad := fmt.Errorf("rng %.80q: %w; write rate=BYTES[,burst=BYTES], for example rate=64K, or unlimited", s, units.ErrSyntax)
	pairs, err := units.ParsePairs(s)
	if err != nil {
		return nil, bad
	}
	var rate, burst uint64
	for _, p := range pairs {
		n, err := units.ParseSize(p.Value)
		switch {
		case err != nil || n == 0:
			return nil, bad
		case p.Key == "rate":
			rate = n
		case p.Key == "burst":
			burst = n
		default:
			return nil, bad
		}
	}
	if rate == 0 {
		return nil, bad
	}
	if burst == 0 {
		burst = rate
	}
	hi, lo := bits.Mul64(burst, 1000)
	if hi != 0 {
		return nil, bad
	}
	// Whole milliseconds: the time is rounded up, so the rate is never exceeded.
	refill := (lo-1)/rate + 1
	return &vmm.Entropy{RateLimiter: &vmm.RateLimiter{Bandwidth: &vmm.TokenBucket{Size: burst, RefillTime: refill}}}, nil
}

// consolesValue collects --console.
type consolesValue []vmm.Console

func (v *consolesValue) Set(s string) error {
	c, err := parseConsole(s)
	if err == nil {
		*v = append(*v, c)
	}
	return err
}

func (v *consolesValue) Type() string   { return "path=WHERE[,..]" }
func (v *consolesValue) String() string { return "" }

// parseConsole reads path=unix:P|file:P|stdio[,name=S][,id=S].
func parseConsole(s string) (vmm.Console, error) {
	var c vmm.Console
	pairs, err := units.ParsePairs(s)
	if err != nil {
		return c, err
	}
	for _, p := range pairs {
		switch {
		case p.Key == "path" && p.Value != "":
			c.Path = p.Value
		case p.Key == "name" && p.Value != "":
			c.Name = p.Value
		case p.Key == "id" && p.Value != "":
			c.ID = p.Value
		default:
			return c, fmt.Errorf("console %.200q: %w: %.40q; write path=unix:PATH|file:PATH|stdio[,name=NAME][,id=NAME]", s, units.ErrSyntax, p.Key)
		}
	}
	if _, _, err := vmm.ParseConsolePath(c.Path); err != nil {
		return c, fmt.Errorf("console %.200q: %w: %w", s, units.ErrSyntax, err)
	}
	return c, nil
}

// consoleMapValue collects `receive --console ID=WHERE`.
type consoleMapValue map[string]string

func (v consoleMapValue) Set(s string) error {
	id, where, ok := strings.Cut(s, "=")
	if !ok || id == "" {
		return fmt.Errorf("console %.200q: %w; write ID=unix:PATH, for example con0=unix:console.sock", s, units.ErrSyntax)
	}
	if _, _, err := vmm.ParseConsolePath(where); err != nil {
		return fmt.Errorf("console %.200q: %w: %w", s, units.ErrSyntax, err)
	}
	if id == "path" || id == "name" {
		return fmt.Errorf("console %.200q: %w: here the source's name for the console comes first; write ID=unix:PATH, for example con0=%s", s, units.ErrSyntax, where)
	}
	if _, twice := v[id]; twice {
		return fmt.Errorf("console %.200q: %w: %s given twice", s, units.ErrSyntax, id)
	}
	v[id] = where
	return nil
}

func (v consoleMapValue) Type() string   { return "ID=WHERE" }
func (v consoleMapValue) String() string { return "" }

// vsockValue is --vsock.
type vsockValue struct{ spec *vmm.Vsock }

func (v *vsockValue) Set(s string) (err error) {
	v.spec, err = parseVsock(s)
	return err
}

func (v *vsockValue) Type() string   { return "cid=N,path=PATH" }
func (v *vsockValue) String() string { return "" }

// parseVsock reads cid=N,path=P. What they may be is vmm's to say.
func parseVsock(s string) (*vmm.Vsock, error) {
	bad := fmt.Errorf("vsock %.200q: %w; write cid=NUMBER,path=PATH, for example cid=3,path=v.sock", s, units.ErrSyntax)
	pairs, err := units.ParsePairs(s)
	if err != nil {
		return nil, bad
	}
	var v vmm.Vsock
	for _, p := range pairs {
		switch {
		case p.Key == "path" && p.Value != "":
			v.UDSPath = p.Value
		case p.Key == "cid":
			if v.GuestCID, err = strconv.ParseUint(p.Value, 10, 64); err != nil {
				return nil, bad
			}
		default:
			return nil, bad
		}
	}
	if v.UDSPath == "" || v.GuestCID == 0 {
		return nil, bad
	}
	return &v, nil
}

// vsockPathValue is `receive --vsock path=PATH`.
type vsockPathValue string

func (v *vsockPathValue) Set(s string) error {
	path, ok := strings.CutPrefix(s, "path=")
	if !ok || path == "" {
		return fmt.Errorf("vsock %.200q: %w; write path=PATH, for example path=v.sock", s, units.ErrSyntax)
	}
	*v = vsockPathValue(path)
	return nil
}

func (v *vsockPathValue) Type() string   { return "path=PATH" }
func (v *vsockPathValue) String() string { return string(*v) }

// stdioConsole is the id of the console that is to have this process' standard
// input and output, or "".
func stdioConsole(list []vmm.Console) string {
	i := slices.IndexFunc(list, func(c vmm.Console) bool { return c.Path == vmm.PathStdio })
	if i < 0 {
		return ""
	}
	if list[i].ID != "" {
		return list[i].ID
	}
	return fmt.Sprintf("con%d", i) // as vmm calls it
}

// lendStdio implements vmm.Options.Stdio: one end of a socket pair whose other
// end this process joins to its own input and output.
func (h *host) lendStdio() (int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("make a socket pair for a console: %w", err)
	}
	f := os.NewFile(uintptr(fds[1]), "console")
	conn, err := net.FileConn(f)
	if err = errors.Join(err, f.Close()); err != nil {
		return -1, errors.Join(fmt.Errorf("console on stdio: %w", err), unix.Close(fds[0]))
	}
	h.copies.Go(func() {
		_, _ = io.Copy(h.console, conn) // it ends with the machine
		_ = conn.Close()
	})
	h.console.Attach(func(ctx context.Context, p []byte) (int, error) {
		if err := conn.SetWriteDeadline(time.Time{}); err != nil {
			return 0, err
		}
		stop := context.AfterFunc(ctx, func() { _ = conn.SetWriteDeadline(time.Now()) })
		defer stop()
		return conn.Write(p)
	})
	return fds[0], nil
}

// followSize tells a console how large this process' terminal is, now and when
// it changes, until ctx ends.
func followSize(ctx context.Context, m *vmm.Machine, id string) {
	if !term.IsTerminal(int(os.Stdout.Fd())) {
		return
	}
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, unix.SIGWINCH)
	defer signal.Stop(changed)
	for {
		if columns, rows, err := term.GetSize(int(os.Stdout.Fd())); err == nil {
			// It may have ended meanwhile.
			_ = m.ResizeConsole(id, uint16(min(columns, 1<<16-1)), uint16(min(rows, 1<<16-1)))
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}
