package main

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
	"os"
	"path/filepath"
	"time"
)

// certify makes an authority and a certificate that both ends show, and returns
// the flags that name them.
func certify(dir string) ([]string, error) {
	authority, err := newCertificate(&x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "peers authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign,
	}, nil)
	if err != nil {
		return nil, err
	}
	leaf, err := newCertificate(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, authority)
	if err != nil {
		return nil, err
	}
	key, err := x509.MarshalPKCS8PrivateKey(leaf.key)
	if err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	var flags []string
	for _, f := range []struct {
		flag, name, kind string
		der              []byte
	}{
		{"--tls-cert", "cert.pem", "CERTIFICATE", leaf.der},
		{"--tls-key", "key.pem", "PRIVATE KEY", key},
		{"--tls-ca", "ca.pem", "CERTIFICATE", authority.der},
	} {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			return nil, fmt.Errorf("write certificates: %w", err)
		}
		flags = append(flags, f.flag, path)
	}
	return flags, nil
}

type certificate struct {
	template *x509.Certificate
	key      *ecdsa.PrivateKey
	der      []byte
}

// newCertificate signs with the authority, or by itself where that is nil.
func newCertificate(t *x509.Certificate, authority *certificate) (*certificate, error) {
	// A day: a bench takes hours at most. An hour back: clocks.
	t.NotBefore, t.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	c := &certificate{template: t}
	var err error
	if c.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	if authority == nil {
		authority = c
	}
	c.der, err = x509.CreateCertificate(rand.Reader, t, authority.template, &c.key.PublicKey, authority.key)
	if err != nil {
		return nil, fmt.Errorf("make certificates: %w", err)
	}
	return c, nil
}
