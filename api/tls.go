package api

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// ErrTLS marks certificates that cannot be used, or an address that has no use
// for them.
var ErrTLS = errors.New("bad TLS setup")

// maxPEM is the most that one file of TLSFiles may hold, bytes.
const maxPEM = 1 << 20

// TLSFiles names the files, in PEM, that make a migration's connections TLS 1.3
// with certificates on both sides. All three are given or none.
type TLSFiles struct {
	Cert string `json:"tls_cert,omitempty"` // our certificate, and intermediate ones behind it
	Key  string `json:"tls_key,omitempty"`  // its private key
	CA   string `json:"tls_ca,omitempty"`   // the only authorities whose certificates the peer may have
}

// Given tells whether any of them is.
func (f TLSFiles) Given() bool { return f != TLSFiles{} }

// Check refuses a set that is not whole, and TLS where to cannot use it. It
// opens nothing.
func (f TLSFiles) Check(to Address) error {
	if !f.Given() {
		return nil
	}
	if to.Network != "tcp" {
		return fmt.Errorf("%w: TLS is for tcp:HOST:PORT, and %s is none; leave --tls-cert, --tls-key and --tls-ca away: who may open the path guards it", ErrTLS, to)
	}
	var missing []string
	for _, x := range f.each() {
		if *x.path == "" {
			missing = append(missing, x.flag)
		}
	}
	if missing != nil {
		return fmt.Errorf("%w: %s missing; --tls-cert, --tls-key and --tls-ca go together", ErrTLS, strings.Join(missing, " and "))
	}
	return nil
}

type tlsFile struct {
	flag string
	path *string
}

func (f *TLSFiles) each() [3]tlsFile {
	return [3]tlsFile{{"--tls-cert", &f.Cert}, {"--tls-key", &f.Key}, {"--tls-ca", &f.CA}}
}

// Absolute gives paths that mean the same in a process with another working
// directory.
func (f TLSFiles) Absolute() (TLSFiles, error) {
	for _, x := range f.each() {
		if *x.path == "" {
			continue
		}
		path, err := filepath.Abs(*x.path)
		if err != nil {
			return f, fmt.Errorf("%w: %s %q: %w", ErrTLS, x.flag, *x.path, err)
		}
		*x.path = path
	}
	return f, nil
}

// TLS is what a set of TLSFiles held when it was loaded. Any number of
// connections may use it.
type TLS struct {
	files TLSFiles
	cert  tls.Certificate
	cas   *x509.CertPool
}

// Load reads the files, for connections from or to address a. No files give nil.
func (f TLSFiles) Load(a Address) (*TLS, error) {
	if err := f.Check(a); err != nil || !f.Given() {
		return nil, err
	}
	var text [3][]byte
	for i, x := range f.each() {
		var err error
		read := readPEM
		if x.path == &f.Key {
			read = readKey
		}
		if text[i], err = read(*x.path); err != nil {
			return nil, fmt.Errorf("%w: %s: %w", ErrTLS, x.flag, err)
		}
	}
	t := &TLS{files: f}
	var err error
	if t.cert, err = f.pair(text[0], text[1]); err != nil {
		return nil, err
	}
	if t.cas, err = f.authorities(text[2]); err != nil {
		return nil, err
	}
	return t, nil
}

func readPEM(path string) ([]byte, error) {
	return readPEMIf(path, func(os.FileInfo) error { return nil })
}

// readKey reads a private key that is one: not everybody's to read, nor anybody
// else's to write.
func readKey(path string) ([]byte, error) {
	return readPEMIf(path, func(st os.FileInfo) error {
		if mode := st.Mode(); mode.IsRegular() && mode.Perm()&0o026 != 0 {
			return fmt.Errorf("%q has mode %04o, so that others can read or change this private key; chmod 600 it, and have a new one made if anybody may have read it", path, mode.Perm())
		}
		return nil
	})
}

// readPEMIf reads a file that check, asked once it is open, allows.
func readPEMIf(path string, check func(os.FileInfo) error) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	st, err := file.Stat()
	if err == nil {
		err = check(st)
	}
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(file, maxPEM+1))
	if err == nil && len(text) > maxPEM {
		err = fmt.Errorf("%q has more than %d bytes, which certificates and keys do not", path, maxPEM)
	}
	return text, err
}

// pair reads our certificate with its key, and refuses one that no peer can
// take now.
func (f TLSFiles) pair(cert, key []byte) (tls.Certificate, error) {
	if bytes.Contains(key, []byte("ENCRYPTED")) {
		return tls.Certificate{}, fmt.Errorf("%w: --tls-key %q is encrypted; write it out without a passphrase (openssl pkey), readable by you alone", ErrTLS, f.Key)
	}
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return pair, fmt.Errorf("%w: --tls-cert %q with --tls-key %q: %w; give a certificate and the key that it was made for, both in PEM", ErrTLS, f.Cert, f.Key, err)
	}
	now := time.Now()
	switch leaf := pair.Leaf; {
	case now.After(leaf.NotAfter):
		err = fmt.Errorf("%w: --tls-cert %q expired on %s; have a new one signed", ErrTLS, f.Cert, leaf.NotAfter.Format(time.DateTime))
	case now.Before(leaf.NotBefore):
		err = fmt.Errorf("%w: --tls-cert %q is valid from %s on; is this host's clock right?", ErrTLS, f.Cert, leaf.NotBefore.Format(time.DateTime))
	}
	return pair, err
}

// authorities reads the certificates of the CA file. A broken one is an error:
// dropping it would show as a peer that is refused for no reason.
func (f TLSFiles) authorities(text []byte) (*x509.CertPool, error) {
	cas, n := x509.NewCertPool(), 0
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		n++
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: --tls-ca %q: certificate %d: %w", ErrTLS, f.CA, n, err)
		}
		cas.AddCert(cert)
	}
	if n == 0 {
		return nil, fmt.Errorf("%w: --tls-ca %q has no certificate in PEM; give the certificate of the authority that signs those of both sides", ErrTLS, f.CA)
	}
	return cas, nil
}

func (t *TLS) config() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{t.cert},
		RootCAs:      t.cas,
		ClientCAs:    t.cas,
		ClientAuth:   tls.RequireAndVerifyClientCert,
		// A client that is left to choose offers nothing when its certificate is
		// from an authority that the server has not named. Then neither side would
		// hear what is wrong with it.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &t.cert, nil },
		// Every connection shows its certificate anew.
		SessionTicketsDisabled:      true,
		DynamicRecordSizingDisabled: true,
	}
}

// client makes conn the source's end. host is what --to names.
func (t *TLS) client(conn net.Conn, host string) net.Conn {
	c := t.config()
	c.ServerName, _, _ = strings.Cut(host, "%") // certificates know no IPv6 zones
	s := newSecured(conn, t.files)
	s.to, s.Conn = host, tls.Client(s.low, c)
	return s
}

// server makes conn the destination's end.
func (t *TLS) server(conn net.Conn) net.Conn {
	s := newSecured(conn, t.files)
	s.Conn = tls.Server(s.low, t.config())
	return s
}

// tlsListener makes each connection TLS. The handshake is left to whoever reads
// from the connection first: a silent peer does not hold Accept up.
type tlsListener struct {
	*net.TCPListener
	tls *TLS
}

func (l *tlsListener) Accept() (net.Conn, error) {
	conn, err := l.TCPListener.Accept()
	if err != nil {
		return nil, err
	}
	return l.tls.server(conn), nil
}
