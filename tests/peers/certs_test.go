package main

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// Both ends show the same certificate, and both are content with it.
func TestCertificatesServeBothEnds(t *testing.T) {
	flags, err := certify(t.TempDir())
	require.NoError(t, err)
	require.Equal(t, []string{"--tls-cert", "--tls-key", "--tls-ca"}, []string{flags[0], flags[2], flags[4]})
	pair, err := tls.LoadX509KeyPair(flags[1], flags[3])
	require.NoError(t, err)
	ca, err := os.ReadFile(flags[5])
	require.NoError(t, err)
	pool := x509.NewCertPool()
	require.True(t, pool.AppendCertsFromPEM(ca))
	c := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "127.0.0.1"}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	served := make(chan error)
	go func() { served <- tls.Server(a, c).HandshakeContext(t.Context()) }()
	require.NoError(t, tls.Client(b, c).HandshakeContext(t.Context()))
	require.NoError(t, <-served)
}
