// Package certs makes certificates for tests: authorities, and what they sign.
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// CA is an authority whose files lie in a folder of the test's.
type CA struct {
	File string // its certificate

	t    testing.TB
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

// Leaf is what a certificate is to say. The zero value is good for both sides on
// this host.
type Leaf struct {
	Names   []string // DNS names and IP addresses; nil means localhost and the loopback addresses
	Usage   []x509.ExtKeyUsage
	Expired bool
}

// NewCA makes an authority.
func NewCA(t testing.TB, name string) *CA {
	t.Helper()
	c := &CA{t: t, dir: t.TempDir()}
	c.key = newKey(t)
	c.cert = &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, c.cert, c.cert, &c.key.PublicKey, c.key)
	require.NoError(t, err)
	c.File = c.write(name+".pem", "CERTIFICATE", der)
	return c
}

// Sign makes a key and a certificate and gives their files.
func (c *CA) Sign(name string, l Leaf) (cert, key string) {
	c.t.Helper()
	if l.Names == nil {
		l.Names = []string{"localhost", "127.0.0.1", "::1"}
	}
	if l.Usage == nil {
		l.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.Usage}
	if l.Expired {
		x.NotAfter = time.Now().Add(-time.Minute)
	}
	for _, n := range l.Names {
		if ip := net.ParseIP(n); ip != nil {
			x.IPAddresses = append(x.IPAddresses, ip)
		} else {
			x.DNSNames = append(x.DNSNames, n)
		}
	}
	k := newKey(c.t)
	der, err := x509.CreateCertificate(rand.Reader, x, c.cert, &k.PublicKey, c.key)
	require.NoError(c.t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	require.NoError(c.t, err)
	file := url.PathEscape(name) // a name may be anything
	return c.write(file+".pem", "CERTIFICATE", der), c.write(file+".key", "PRIVATE KEY", secret)
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	return k
}

func (c *CA) write(name, kind string, der []byte) string {
	path := filepath.Join(c.dir, name)
	require.NoError(c.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return path
}
