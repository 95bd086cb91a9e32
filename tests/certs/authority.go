// Package certs makes certificates for tests and for tests/peers: authorities,
// and what they sign.
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// Authority signs certificates. All files lie in one folder.
type Authority struct {
	File string // its certificate

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

// New makes an authority, good for a day, with its files in dir.
func New(dir, name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority %q: %w", name, err)
	}
	a := &Authority{dir: dir, key: key, cert: &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}}
	der, err := x509.CreateCertificate(rand.Reader, a.cert, a.cert, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("make authority %q: %w", name, err)
	}
	a.File, err = a.write(name+".pem", "CERTIFICATE", der)
	return a, err
}

// Sign makes a key and a certificate and gives their files.
func (a *Authority) Sign(name string, l Leaf) (cert, key string, err error) {
	if l.Names == nil {
		l.Names = []string{"localhost", "127.0.0.1", "::1"}
	}
	if l.Usage == nil {
		l.Usage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	}
	x := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: a.cert.NotBefore, NotAfter: a.cert.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: l.Usage}
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
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", "", fmt.Errorf("make certificate %q: %w", name, err)
	}
	der, err := x509.CreateCertificate(rand.Reader, x, a.cert, &k.PublicKey, a.key)
	if err != nil {
		return "", "", fmt.Errorf("make certificate %q: %w", name, err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", "", fmt.Errorf("make certificate %q: %w", name, err)
	}
	file := url.PathEscape(name) // a name may be anything
	if cert, err = a.write(file+".pem", "CERTIFICATE", der); err != nil {
		return "", "", err
	}
	key, err = a.write(file+".key", "PRIVATE KEY", secret)
	return cert, key, err
}

func (a *Authority) write(name, kind string, der []byte) (string, error) {
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		return "", fmt.Errorf("write certificate: %w", err)
	}
	return path, nil
}
