package tests

import (
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/migration"
	"godwit/tests/certs"
)

// tlsArgs are the flags of one end.
func tlsArgs(ca, cert, key string) []string {
	return []string{"--tls-ca", ca, "--tls-cert", cert, "--tls-key", key}
}

func signedArgs(ca *certs.CA, name string, l certs.Leaf) []string {
	cert, key := ca.Sign(name, l)
	return tlsArgs(ca.File, cert, key)
}

// A receiver with TLS turns away who has no good certificate and goes on
// listening; the source of such a migration runs on. One with a certificate moves.
func TestMigrateWithTLS(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	ca, other := certs.NewCA(t, "own"), certs.NewCA(t, "other")
	good := signedArgs(ca, "host1", certs.Leaf{})
	cert, key := other.Sign("stranger", certs.Leaf{})
	src, dst := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	p := start(t, metronomeArgs(src, "fill=64 ws=16 rate=2000")...)
	p.awaitBeats(3)
	q, addr := receiver(t, append(signedArgs(ca, "host2", certs.Leaf{}), "--api-sock", dst)...)
	migrate := func(args ...string) (int, string, string) {
		return godwit(t, append([]string{"migrate", "--api-sock", src, "--to", addr, "--verify", "--streams", "2", "--json"}, args...)...)
	}
	for _, c := range []struct {
		name           string
		args           []string
		here, receiver string
	}{
		{"no certificate", nil, "this destination takes TLS only; migrate with --tls-cert", "the source came without TLS"},
		{"another authority's", tlsArgs(ca.File, cert, key), "the destination refused our certificate", "certificate signed by unknown authority"},
		{"for servers", signedArgs(ca, "server", certs.Leaf{Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}), "the destination refused our certificate", "that is for clients"},
		{"destination is a stranger's", tlsArgs(other.File, cert, key), "signed by unknown authority", "the source refused our certificate"},
	} {
		code, out, errs := migrate(c.args...)
		require.Equal(t, 1, code, c.name)
		require.Contains(t, errs, c.here, c.name)
		var r migration.Report
		lastJSON(t, out, &r)
		require.Equal(t, migration.Failed, r.Status, c.name)
		for until := time.Now().Add(time.Minute); !strings.Contains(q.err.String(), c.receiver); { // it tells of one a second
			require.True(t, time.Now().Before(until), "%s: the receiver does not say %q", c.name, c.receiver)
			code, _, _ = migrate(c.args...)
			require.Equal(t, 1, code, c.name)
		}
		p.awaitBeats(2)
	}
	for says, args := range map[string][]string{
		"no such file":     tlsArgs(ca.File, cert, filepath.Join(dir, "none")),
		"--tls-ca missing": {"--tls-cert", cert, "--tls-key", key},
	} {
		code, _, errs := migrate(args...)
		require.Equal(t, 2, code)
		require.Contains(t, errs, says)
	}
	code, out, errs := migrate(good...)
	require.Zero(t, code, errs)
	var r migration.Report
	lastJSON(t, out, &r)
	require.Equal(t, migration.Completed, r.Status)
	require.Equal(t, r.Verify.Source, r.Verify.Destination)
	p.ends(0)
	q.awaitBeats(10)
	require.NotContains(t, q.out.String(), "metronome bad")
	require.Regexp(t, `metronome beat .* bad=0 `, q.out.String())
	q.signal(unix.SIGTERM)
	q.ends(0)
}

// A source with TLS and a receiver without find out about each other.
func TestTLSOnOneSideOnly(t *testing.T) {
	needKVM(t)
	src := filepath.Join(t.TempDir(), "a")
	p := start(t, metronomeArgs(src, "fill=8")...)
	p.awaitBeats(2)
	q, addr := receiver(t)
	code, _, errs := godwit(t, append([]string{"migrate", "--api-sock", src, "--to", addr}, signedArgs(certs.NewCA(t, "own"), "x", certs.Leaf{})...)...)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "does it listen with --tls-cert")
	q.await(q.err, "the other side speaks TLS and this one does not")
	p.awaitBeats(2)
}

// Beyond this host a receiver listens with TLS or by an express wish.
func TestListenBeyondThisHost(t *testing.T) {
	needKVM(t)
	code, _, errs := godwit(t, "receive", "--listen", "tcp:0.0.0.0:0", "--serial", "none")
	require.Equal(t, 2, code)
	require.NotContains(t, errs, "listening on")
	for _, args := range [][]string{{"--insecure"}, signedArgs(certs.NewCA(t, "own"), "x", certs.Leaf{})} {
		q := start(t, append([]string{"receive", "--listen", "tcp:0.0.0.0:0", "--serial", "none"}, args...)...)
		q.await(q.err, "listening on tcp:")
		q.signal(unix.SIGTERM)
		q.ends(1)
	}
}

// The commands of docs/migrate.md make certificates that work.
func TestDocumentedCertificates(t *testing.T) {
	needKVM(t)
	if _, err := exec.LookPath("openssl"); err != nil {
		t.Skip("openssl is not installed")
	}
	text, err := os.ReadFile("../docs/migrate.md")
	require.NoError(t, err)
	m := regexp.MustCompile("(?s)```sh\n(.*?)```").FindSubmatch(text)
	require.NotNil(t, m, "the commands")
	dir := t.TempDir()
	sh := exec.Command("sh", "-eu", "-c", strings.ReplaceAll(string(m[1]), "DNS:host2", "DNS:localhost"))
	sh.Dir = dir
	out, err := sh.CombinedOutput()
	require.NoError(t, err, "%s", out)
	keys, err := filepath.Glob(filepath.Join(dir, "*.key"))
	require.NoError(t, err)
	require.Len(t, keys, 3)
	for _, k := range keys {
		st, err := os.Stat(k)
		require.NoError(t, err)
		require.Zero(t, st.Mode().Perm()&0o077, "%s is for its owner only", k)
	}
	at := func(name string) []string {
		return tlsArgs(filepath.Join(dir, "ca.pem"), filepath.Join(dir, name+".pem"), filepath.Join(dir, name+".key"))
	}
	src := filepath.Join(dir, "a")
	p := start(t, metronomeArgs(src, "fill=8")...)
	p.awaitBeats(2)
	q, addr := receiver(t, at("host2")...)
	addr = strings.Replace(addr, "127.0.0.1", "localhost", 1)
	code, _, errs := godwit(t, append([]string{"migrate", "--api-sock", src, "--to", addr}, at("host1")...)...)
	require.Zero(t, code, errs)
	q.awaitBeats(2)
	p.ends(0)
}
