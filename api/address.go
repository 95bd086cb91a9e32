package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"godwit/unixsocket"
)

// ErrAddress marks a text that is no address of a migration.
var ErrAddress = errors.New("bad address")

// dialTimeout bounds one attempt to connect. A host that is away answers
// nothing at all.
const dialTimeout = 10 * time.Second

// Address is an end of a migration: tcp:HOST:PORT, unix:PATH, or file:PATH for
// a machine that is saved.
type Address struct {
	Network string // "tcp", "unix" or "file"
	Target  string // HOST:PORT or PATH
}

// ParseAddress reads an address as `--to` and `--listen` take it.
func ParseAddress(text string) (Address, error) {
	network, target, ok := strings.Cut(text, ":")
	bad := func(why string) (Address, error) {
		return Address{}, fmt.Errorf("%w %.200q: %s; write tcp:HOST:PORT, unix:PATH or file:PATH", ErrAddress, text, why)
	}
	if !ok || target == "" {
		return bad("no transport")
	}
	switch network {
	case "tcp":
		_, port, err := net.SplitHostPort(target)
		if err != nil || port == "" {
			return bad("no HOST:PORT")
		}
		if _, err := net.LookupPort("tcp", port); err != nil {
			return bad(fmt.Sprintf("port %.20q", port))
		}
	case "unix":
		if err := unixsocket.CheckPath(target); err != nil {
			return Address{}, fmt.Errorf("%w: %w", ErrAddress, err)
		}
	case "file":
		if strings.ContainsRune(target, 0) {
			return bad("a zero byte in the path")
		}
	default:
		return bad(fmt.Sprintf("unknown transport %.20q", network))
	}
	return Address{Network: network, Target: target}, nil
}

func (a Address) String() string { return a.Network + ":" + a.Target }

// IsFile tells whether it names a file, where nobody answers.
func (a Address) IsFile() bool { return a.Network == "file" }

// Absolute gives an address that means the same in a process with another
// working directory.
func (a Address) Absolute() (Address, error) {
	if a.Network == "tcp" {
		return a, nil
	}
	path, err := filepath.Abs(a.Target)
	if err != nil {
		return Address{}, fmt.Errorf("%w %q: %w", ErrAddress, a, err)
	}
	return ParseAddress(a.Network + ":" + path)
}

// Dial opens a connection; a file has none. With t, which was loaded for this
// address, it is TLS: the handshake comes with the first Read or Write.
func (a Address) Dial(ctx context.Context, t *TLS) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	conn, err := d.DialContext(ctx, a.Network, a.Target)
	if err != nil || t == nil {
		return conn, err
	}
	return t.client(conn, a.host()), nil
}

// host is the HOST of a tcp address.
func (a Address) host() string {
	host, _, _ := net.SplitHostPort(a.Target) // ParseAddress has seen that it is one
	return host
}

// Loopback tells whether only this host can connect: to a path always, to a TCP
// port if every address that its HOST stands for is a loopback one. No HOST, or
// an unspecified one, stands for all addresses.
func (a Address) Loopback(ctx context.Context) (bool, error) {
	if a.Network != "tcp" {
		return true, nil
	}
	host := a.host()
	if host == "" {
		return false, nil
	}
	ips, err := net.DefaultResolver.LookupIPAddr(ctx, host)
	if err != nil {
		return false, fmt.Errorf("%w %q: %w; give an address of this host", ErrAddress, a, err)
	}
	return !slices.ContainsFunc(ips, func(ip net.IPAddr) bool { return !ip.IP.IsLoopback() }), nil
}

// Listen waits for connections there. A unix socket that nobody listens on any
// more is replaced; it is never anybody else's to connect to, and removed by
// Close.
// A file has no listener. With t, which was loaded for this address, connections
// are TLS: the handshake comes with the first Read or Write of each.
func (a Address) Listen(t *TLS) (net.Listener, error) {
	if a.Network == "unix" {
		l, err := unixsocket.Listen(a.Target)
		if err != nil {
			return nil, err
		}
		return l, nil
	}
	l, err := net.Listen(a.Network, a.Target)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", a, err)
	}
	if tcp, ok := l.(*net.TCPListener); ok && t != nil {
		return &tlsListener{tcp, t}, nil
	}
	return l, nil
}
