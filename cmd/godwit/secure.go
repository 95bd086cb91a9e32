package main

import (
	"context"
	"fmt"
	"net"

	"github.com/spf13/pflag"

	"godwit/api"
)

// addTLS adds the flags of one end of a TLS migration. peer is the other.
func addTLS(f *pflag.FlagSet, files *api.TLSFiles, peer string) {
	f.StringVar(&files.Cert, "tls-cert", "", "use TLS 1.3 and show the "+peer+" this certificate, a PEM `FILE`, as in --tls-cert this.pem --tls-key this.key --tls-ca ca.pem")
	f.StringVar(&files.Key, "tls-key", "", "private key of --tls-cert, a PEM `FILE`, as in --tls-key this.key")
	f.StringVar(&files.CA, "tls-ca", "", "the authorities, and no others, that may have signed the "+peer+"'s certificate, a PEM `FILE`, as in --tls-ca ca.pem")
}

// guard is what keeps strangers from sending a machine.
type guard struct {
	files    api.TLSFiles
	insecure bool
}

func (g *guard) add(f *pflag.FlagSet) {
	addTLS(f, &g.files, "source")
	f.BoolVar(&g.insecure, "insecure", false, "listen beyond this host without TLS: whoever can connect can send a machine, whoever sees the network sees its memory; as in --listen tcp:0.0.0.0:7000 --insecure")
}

// check refuses an address where strangers could connect, before anything
// listens there, and reads the certificates.
func (g *guard) check(ctx context.Context, addr api.Address) (*api.TLS, error) {
	if g.insecure && g.files.Given() {
		return nil, usage("both --insecure and --tls-*; one says how to listen")
	}
	t, err := g.files.Load(addr)
	if err != nil || t != nil || g.insecure {
		return t, err
	}
	here, err := addr.Loopback(ctx)
	if err == nil && !here {
		err = g.refuse(addr)
	}
	return nil, err
}

func (g *guard) refuse(addr api.Address) error {
	return usage("%s can be reached from other hosts, and without TLS anybody there could send a machine or read one: give --tls-cert, --tls-key and --tls-ca, or --insecure if only trusted machines can connect, or listen on tcp:127.0.0.1:PORT", addr)
}

// listen listens at addr as check allowed. A name may have come to stand for
// another address meanwhile.
func (g *guard) listen(addr api.Address, t *api.TLS) (net.Listener, error) {
	l, err := addr.Listen(t)
	if err != nil || t != nil || g.insecure {
		return l, err
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		if err := l.Close(); err != nil {
			return nil, fmt.Errorf("close %s: %w", a, err)
		}
		return nil, g.refuse(addr)
	}
	return l, nil
}
