package api

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/migration"
	"godwit/migration/sim"
	"godwit/migration/wire"
	"godwit/tests/certs"
)

// tlsPatience ends a test that hangs. Only a failing one takes it.
const tlsPatience = time.Minute

func files(ca, cert, key string) TLSFiles { return TLSFiles{Cert: cert, Key: key, CA: ca} }

func signed(ca *certs.CA, name string, l certs.Leaf) TLSFiles {
	cert, key := ca.Sign(name, l)
	return files(ca.File, cert, key)
}

// held is what a leak would show in.
func held(t *testing.T) (goroutines, fds int) {
	es, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	return runtime.NumGoroutine(), len(es)
}

// oneMove migrates a small simulated machine to a listener of its own and gives
// how both ends see it. Nil files mean no TLS.
func oneMove(t *testing.T, host string, source, destination *TLS, streams int, around ...func(addr string)) (send, recv error) {
	t.Helper()
	world := sim.NewWorld()
	src, err := sim.NewMachine(world, migration.Extent{GPA: 0, Len: 4 << 20})
	require.NoError(t, err)
	defer func() { require.NoError(t, src.Close()) }()
	for gpa := uint64(0); gpa < 2<<20; gpa += 4096 * (1 + gpa>>12%3) { // runs and single pages
		src.Write(gpa, func(p []byte) { p[gpa>>12%4096] = byte(gpa>>12) | 1 })
	}
	ctx, cancel := context.WithTimeout(context.Background(), tlsPatience)
	defer cancel()
	l, err := Address{"tcp", "127.0.0.1:0"}.Listen(destination)
	require.NoError(t, err)
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	require.NoError(t, err)
	to := Address{"tcp", net.JoinHostPort(host, port)}
	done, turnedAway := make(chan struct{}), make(chan error, 1)
	target := sim.NewHost(world)
	go func() {
		defer close(done)
		var m migration.Target
		m, _, recv = migration.Receive(ctx, migration.AcceptFrom(l), target.Build, migration.ReceiveOptions{OnTurnedAway: offer(turnedAway)})
		if m != nil {
			for gpa := uint64(0); gpa < 4<<20; gpa += 4096 {
				if !bytes.Equal(src.Page(gpa), target.Target().Page(gpa)) {
					recv = errors.Join(recv, errors.New("memory differs"))
				}
			}
			recv = errors.Join(recv, m.(*sim.Target).Close())
		}
	}()
	dial := func(ctx context.Context) (net.Conn, error) {
		for _, f := range around {
			f(l.Addr().String())
		}
		return to.Dial(ctx, source)
	}
	_, send = migration.Send(ctx, src, dial, migration.SendOptions{Streams: streams, Verify: true})
	select {
	case <-done:
	case err := <-turnedAway:
		if send != nil {
			cancel() // no session has begun
		}
		if <-done; send != nil {
			recv = err
		}
	}
	require.NoError(t, world.Check())
	running := []string{"source"}
	if send == nil {
		running = []string{"target"}
	}
	require.Equal(t, running, world.Running())
	return send, recv
}

// offer gives what keeps the first error for c.
func offer(c chan<- error) func(error) {
	return func(err error) {
		select {
		case c <- err:
		default:
		}
	}
}

func TestTLSMoves(t *testing.T) {
	ca, other := certs.NewCA(t, "own"), certs.NewCA(t, "other")
	good := signed(ca, "good", certs.Leaf{})
	foreign := signed(other, "foreign", certs.Leaf{})
	serverOnly := signed(ca, "server-only", certs.Leaf{Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	clientOnly := signed(ca, "client-only", certs.Leaf{Usage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	elsewhere := signed(ca, "elsewhere", certs.Leaf{Names: []string{"host2.example"}})
	nameOnly := signed(ca, "name-only", certs.Leaf{Names: []string{"localhost"}})
	with := func(f TLSFiles, ca string) TLSFiles { f.CA = ca; return f }
	tlsOf := func(f TLSFiles) *TLS {
		x, err := f.Load(Address{"tcp", "127.0.0.1:1"})
		require.NoError(t, err)
		return x
	}
	var none TLSFiles
	goroutines, fds := held(t)
	for name, c := range map[string]struct {
		source, destination TLSFiles
		host                string
		streams             int
		sent, received      string // what the errors say; "" for a migration that works
	}{
		"certificates for both":       {good, good, "127.0.0.1", 4, "", ""},
		"no TLS":                      {none, none, "127.0.0.1", 2, "", ""},
		"by name":                     {good, nameOnly, "localhost", 1, "", ""},
		"each its own purpose":        {clientOnly, serverOnly, "127.0.0.1", 1, "", ""},
		"two authorities":             {with(foreign, ca.File), with(good, other.File), "127.0.0.1", 1, "", ""},
		"source unknown":              {with(foreign, ca.File), good, "127.0.0.1", 1, "unknown certificate authority): it must be for clients", `certificate "CN=foreign" is refused: x509: certificate signed by unknown authority`},
		"destination unknown":         {good, with(foreign, ca.File), "127.0.0.1", 1, `certificate "CN=foreign" of the destination "127.0.0.1" is refused: x509: certificate signed by unknown authority`, "the source refused our certificate"},
		"neither knows the other":     {good, foreign, "127.0.0.1", 1, "signed by unknown authority", "the source refused our certificate"},
		"not for this name":           {good, elsewhere, "127.0.0.1", 1, "name the destination in --to as its certificate does", "the source refused our certificate"},
		"a name and not this address": {good, nameOnly, "127.0.0.1", 1, "name the destination in --to as its certificate does", "the source refused our certificate"},
		"source's is for servers":     {serverOnly, good, "127.0.0.1", 1, "tls: bad certificate): it must be for clients", "incompatible key usage; have one signed that is for clients"},
		"destination's for clients":   {good, clientOnly, "127.0.0.1", 1, "incompatible key usage; have one signed that is for servers", "the source refused our certificate"},
		"source without TLS":          {none, good, "127.0.0.1", 1, "the other side gave up: this destination takes TLS only; migrate with --tls-cert", "the source came without TLS"},
		"destination without TLS":     {good, none, "127.0.0.1", 1, "does it listen with --tls-cert", "the other side speaks TLS and this one does not"},
	} {
		t.Run(name, func(t *testing.T) {
			send, recv := oneMove(t, c.host, tlsOf(c.source), tlsOf(c.destination), max(c.streams, 1))
			if c.sent == "" {
				require.NoError(t, send)
				require.NoError(t, recv)
				return
			}
			require.ErrorContains(t, send, c.sent)
			require.ErrorContains(t, recv, c.received)
			require.ErrorIs(t, send, migration.ErrHandshake)
			require.ErrorIs(t, recv, migration.ErrHandshake)
		})
	}
	for late := time.Now().Add(tlsPatience); ; runtime.Gosched() {
		g, f := held(t)
		if g <= goroutines && f <= fds {
			break
		}
		require.True(t, time.Now().Before(late), "left behind: %d goroutines, were %d; %d descriptors, were %d", g, goroutines, f, fds)
	}
}

// A stranger's certificate is checked for its name before anybody asks who signed
// it: what it says must not get at the terminal.
func TestTLSHostileNames(t *testing.T) {
	ca := certs.NewCA(t, "own")
	names := []string{"a\x1b[31m\nb"}
	for range 50 {
		names = append(names, strings.Repeat("x", 200))
	}
	to := Address{"tcp", "127.0.0.1:1"}
	good, err := signed(ca, "good", certs.Leaf{}).Load(to)
	require.NoError(t, err)
	hostile, err := signed(certs.NewCA(t, "other"), "x\x1b[31m\ny", certs.Leaf{Names: names}).Load(to)
	require.NoError(t, err)
	for _, host := range []string{"127.0.0.1", "localhost"} {
		send, recv := oneMove(t, host, good, hostile, 1)
		for _, err := range []error{send, recv} {
			require.Error(t, err)
			require.NotContains(t, err.Error(), "\x1b")
			require.NotContains(t, err.Error(), "\n")
			require.Less(t, len(err.Error()), 2000)
		}
	}
	hostile.cas = good.cas
	send, recv := oneMove(t, "127.0.0.1", hostile, good, 1)
	require.ErrorContains(t, send, "refused our certificate")
	require.NotContains(t, recv.Error(), "\x1b")
}

// What a certificate says is checked when it is shown, too: one may have expired
// since it was loaded.
func TestTLSExpiredMeanwhile(t *testing.T) {
	ca := certs.NewCA(t, "own")
	to := Address{"tcp", "127.0.0.1:1"}
	good, err := signed(ca, "good", certs.Leaf{}).Load(to)
	require.NoError(t, err)
	f := signed(ca, "old", certs.Leaf{Expired: true})
	_, err = f.Load(to)
	require.ErrorIs(t, err, ErrTLS)
	old := &TLS{files: f, cas: good.cas}
	old.cert, err = tls.LoadX509KeyPair(f.Cert, f.Key)
	require.NoError(t, err)
	send, recv := oneMove(t, "127.0.0.1", old, good, 1)
	require.ErrorContains(t, send, "tls: expired certificate")
	require.ErrorContains(t, recv, "has expired or is not yet valid")
	require.ErrorContains(t, recv, "if both clocks are right")
	send, recv = oneMove(t, "127.0.0.1", good, old, 1)
	require.ErrorContains(t, send, "has expired or is not yet valid")
	require.ErrorContains(t, recv, "the source refused our certificate")
}

// Whenever the source connects there are more strangers than there is room for,
// silent before the handshake, in it, or gone again: it gets in, and so do its
// streams.
func TestTLSCrowd(t *testing.T) {
	secure, err := signed(certs.NewCA(t, "own"), "good", certs.Leaf{}).Load(Address{"tcp", "h:1"})
	require.NoError(t, err)
	goroutines, fds := held(t)
	var crowd []net.Conn
	var mu sync.Mutex
	leave := func() {
		for _, conn := range crowd {
			_ = conn.Close()
		}
	}
	send, recv := oneMove(t, "127.0.0.1", secure, secure, 4, func(addr string) {
		for i := range 150 {
			conn, err := net.Dial("tcp", addr)
			if !assert.NoError(t, err) {
				return
			}
			switch i % 3 {
			case 0:
				_, _ = conn.Write([]byte{22, 3, 1, 2, 0, 1}) // it may have been turned away
			case 1:
				_ = conn.Close()
				continue
			}
			mu.Lock()
			crowd = append(crowd, conn)
			mu.Unlock()
		}
	})
	leave()
	require.NoError(t, send)
	require.NoError(t, recv)
	require.Eventually(t, func() bool { n, f := held(t); return n <= goroutines+2 && f <= fds }, tlsPatience, 10*time.Millisecond, "what the crowd held is given back (Eventually itself has a goroutine or two)")
}

// withMode is a copy of a file that has a mode.
func withMode(t *testing.T, path string, mode os.FileMode) string {
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	path = filepath.Join(t.TempDir(), "copy")
	require.NoError(t, os.WriteFile(path, text, 0o600))
	require.NoError(t, os.Chmod(path, mode))
	return path
}

// A key that a group may read is one of those that it is for.
func TestTLSKeyOfAGroup(t *testing.T) {
	good := signed(certs.NewCA(t, "own"), "good", certs.Leaf{})
	_, err := files(good.CA, good.Cert, withMode(t, good.Key, 0o640)).Load(Address{"tcp", "h:1"})
	require.NoError(t, err)
}

func TestTLSFiles(t *testing.T) {
	ca := certs.NewCA(t, "own")
	good, old, second := signed(ca, "good", certs.Leaf{}), signed(ca, "old", certs.Leaf{Expired: true}), signed(ca, "second", certs.Leaf{})
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	whole, err := os.ReadFile(ca.File)
	require.NoError(t, err)
	broken := "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
	tcp := Address{"tcp", "h:1"}
	for name, c := range map[string]struct {
		files TLSFiles
		at    Address
		says  string
	}{
		"no key":               {files(good.CA, good.Cert, ""), tcp, "--tls-key missing"},
		"no CA":                {files("", good.Cert, good.Key), tcp, "--tls-ca missing"},
		"CA alone":             {files(good.CA, "", ""), tcp, "--tls-cert and --tls-key missing"},
		"unix":                 {good, Address{"unix", "x"}, "unix:x is none"},
		"file":                 {good, Address{"file", "x"}, "file:x is none"},
		"certificate is away":  {files(good.CA, filepath.Join(dir, "none"), good.Key), tcp, "--tls-cert: open"},
		"key is away":          {files(good.CA, good.Cert, filepath.Join(dir, "none")), tcp, "--tls-key: open"},
		"CA is away":           {files(filepath.Join(dir, "none"), good.Cert, good.Key), tcp, "--tls-ca: open"},
		"a folder":             {files(dir, good.Cert, good.Key), tcp, "is a directory"},
		"another's key":        {files(good.CA, good.Cert, second.Key), tcp, "the key that it was made for"},
		"key and cert swapped": {files(good.CA, good.Key, good.Cert), tcp, "both in PEM"},
		"encrypted key":        {files(good.CA, good.Cert, file("enc", "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")), tcp, "without a passphrase"},
		"empty CA":             {files(file("empty", ""), good.Cert, good.Key), tcp, "has no certificate"},
		"CA is a key":          {files(good.Key, good.Cert, good.Key), tcp, "has no certificate"},
		"second CA is broken":  {files(file("half", string(whole)+broken), good.Cert, good.Key), tcp, "certificate 2"},
		"huge CA":              {files(file("huge", strings.Repeat("x", maxPEM+1)), good.Cert, good.Key), tcp, "more than"},
		"expired":              {old, tcp, "expired on"},
		"everybody's key":      {files(good.CA, good.Cert, withMode(t, good.Key, 0o644)), tcp, "has mode 0644"},
		"a key others write":   {files(good.CA, good.Cert, withMode(t, good.Key, 0o620)), tcp, "has mode 0620"},
	} {
		t.Run(name, func(t *testing.T) {
			x, err := c.files.Load(c.at)
			require.ErrorIs(t, err, ErrTLS)
			require.ErrorContains(t, err, c.says)
			require.Nil(t, x)
		})
	}
	x, err := TLSFiles{}.Load(Address{"unix", "x"})
	require.NoError(t, err)
	require.Nil(t, x, "none are no TLS")
	rel, err := TLSFiles{Cert: "a", Key: "/b", CA: "../c"}.Absolute()
	require.NoError(t, err)
	wd, err := os.Getwd()
	require.NoError(t, err)
	require.Equal(t, TLSFiles{Cert: filepath.Join(wd, "a"), Key: "/b", CA: filepath.Join(filepath.Dir(wd), "c")}, rel)
	rel, err = TLSFiles{}.Absolute()
	require.NoError(t, err)
	require.False(t, rel.Given())
}

// Over the API: bad files are the request's fault, good ones move the machine.
func TestTLSRequests(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	ca := certs.NewCA(t, "own")
	good := signed(ca, "good", certs.Leaf{})
	ctx := context.Background()
	start := func(q MigrationRequest) error {
		_, err := r.c.Migrate(ctx, q, func(MigrationStatus) {})
		return err
	}
	for says, q := range map[string]MigrationRequest{
		"--tls-key missing": {To: "tcp:h:1", TLSFiles: files(good.CA, good.Cert, "")},
		"is none":           {To: r.to, TLSFiles: good},
		"names no host":     {To: "tcp::1", TLSFiles: good},
		"no such file":      {To: "tcp:h:1", TLSFiles: files("/no/such", good.Cert, good.Key)},
	} {
		refused(t, start(q), 400, says)
	}
	secure, err := good.Load(Address{"tcp", "h:1"})
	require.NoError(t, err)
	l, err := Address{"tcp", "127.0.0.1:0"}.Listen(secure)
	require.NoError(t, err)
	defer l.Close()
	go func() {
		target, _, err := migration.Receive(ctx, migration.AcceptFrom(l), r.host.Build, migration.ReceiveOptions{})
		if target != nil {
			err = target.(*sim.Target).Close()
		}
		r.received <- err
	}()
	require.NoError(t, start(MigrationRequest{To: "tcp:" + l.Addr().String(), Streams: 2, TLSFiles: good}))
	require.NoError(t, <-r.received)
	require.True(t, r.vm.hasMoved())
}

// Strangers at a TLS listener: each is refused within the time for HELLO, with
// the reason.
func TestTLSStrangers(t *testing.T) {
	ca := certs.NewCA(t, "own")
	secure, err := signed(ca, "good", certs.Leaf{}).Load(Address{"tcp", "h:1"})
	require.NoError(t, err)
	for name, c := range map[string]struct {
		come func(t *testing.T, conn net.Conn)
		says string
	}{
		// These two are waited for, as long as a stranger may be silent.
		"silent": {func(*testing.T, net.Conn) {}, "silent"},
		"slow": {func(t *testing.T, conn net.Conn) {
			_, err := conn.Write([]byte{22, 3, 1, 2, 0, 1})
			require.NoError(t, err)
		}, "silent"},
		"web browser": {func(t *testing.T, conn net.Conn) {
			_, err := conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
			require.NoError(t, err)
		}, "does not speak TLS"},
		"gone": {func(t *testing.T, conn net.Conn) { require.NoError(t, conn.Close()) }, "closed by the other side"},
		"no certificate": {func(t *testing.T, conn net.Conn) {
			x := tls.Client(conn, &tls.Config{RootCAs: secure.cas, ServerName: "localhost"})
			require.NoError(t, x.Handshake())
			_, err := x.Write(make([]byte, 100)) // unread at the other end when it closes
			require.NoError(t, err)
			_, err = x.Read(make([]byte, 1))
			require.ErrorContains(t, err, "certificate required", "the reason arrives")
		}, "the peer offered no certificate"},
		"old TLS": {func(t *testing.T, conn net.Conn) {
			x := tls.Client(conn, &tls.Config{RootCAs: secure.cas, ServerName: "localhost", MaxVersion: tls.VersionTLS12, Certificates: []tls.Certificate{secure.cert}})
			require.ErrorContains(t, x.Handshake(), "protocol version not supported")
		}, "unsupported versions"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // they take their time
			l, err := Address{"tcp", "127.0.0.1:0"}.Listen(secure)
			require.NoError(t, err)
			defer l.Close()
			silence := tlsPatience
			if c.says == "silent" {
				silence = 4 * lingerTime
			}
			ctx, cancel := context.WithCancel(context.Background())
			turnedAway, end := make(chan error, 1), make(chan error, 1)
			go func() {
				_, _, err := migration.Receive(ctx, migration.AcceptFrom(l),
					func(context.Context, migration.Offer) (migration.Target, error) {
						return nil, errors.New("it never comes to that")
					},
					migration.ReceiveOptions{Silence: silence, OnTurnedAway: offer(turnedAway)})
				end <- err
			}()
			defer func() {
				cancel()
				require.ErrorIs(t, <-end, migration.ErrCancelled, "a stranger ends nothing")
			}()
			conn, err := net.Dial("tcp", l.Addr().String())
			require.NoError(t, err)
			defer conn.Close()
			c.come(t, conn)
			select {
			case err := <-turnedAway:
				require.ErrorContains(t, err, c.says)
			case <-time.After(tlsPatience):
				require.Fail(t, "it is still there")
			}
		})
	}
}

// pairOf is both ends of a TLS connection over loopback.
func pairOf(t testing.TB, wrap func(net.Conn) net.Conn) (client, server *secured) {
	ca := certs.NewCA(t, "own")
	cert, key := ca.Sign("both", certs.Leaf{})
	x, err := files(ca.File, cert, key).Load(Address{"tcp", "h:1"})
	require.NoError(t, err)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	out, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	in, err := l.Accept()
	require.NoError(t, err)
	client, server = x.client(wrap(out), "127.0.0.1").(*secured), x.server(in).(*secured)
	t.Cleanup(func() { _ = client.Close(); _ = server.Close() })
	shaken := make(chan error, 1)
	go func() { shaken <- server.shake() }()
	require.NoError(t, client.shake())
	require.NoError(t, <-shaken)
	return client, server
}

// counted counts the system calls of a connection.
type counted struct {
	*net.TCPConn
	writes, bytes int
}

func (c *counted) Write(p []byte) (int, error) {
	c.writes, c.bytes = c.writes+1, c.bytes+len(p)
	return c.TCPConn.Write(p)
}

// Pieces of any size arrive whole, in full records and few system calls.
func TestTLSGathers(t *testing.T) {
	var low *counted
	client, server := pairOf(t, func(c net.Conn) net.Conn { low = &counted{TCPConn: c.(*net.TCPConn)}; return low })
	for name, sizes := range map[string][]int{
		"scattered pages": repeat(256, 4096),
		"one run":         {40, 1 << 20},
		"odd pieces":      {1, recordSize - 1, recordSize, recordSize + 1, 0, 3*recordSize + 5, 7, 7, 4096, batchSize, 3},
		"small":           {24},
		"nothing":         {},
	} {
		t.Run(name, func(t *testing.T) {
			var v net.Buffers
			var want []byte
			for i, n := range sizes {
				piece := make([]byte, n)
				for k := range piece {
					piece[k] = byte(i*31 + k)
				}
				v, want = append(v, piece), append(want, piece...)
			}
			got := make(chan []byte, 1)
			go func() {
				b := make([]byte, len(want))
				_, _ = io.ReadFull(server, b) // a short read shows below
				got <- b
			}()
			low.writes, low.bytes = 0, 0
			n, err := client.WriteBuffers(v)
			require.NoError(t, err)
			require.EqualValues(t, len(want), n)
			require.True(t, bytes.Equal(want, <-got))
			require.Len(t, v, len(sizes), "the caller's stays")
			records := (len(want)+recordSize-1)/recordSize + 1
			require.LessOrEqual(t, low.bytes, len(want)+records*(5+1+16), "header, type and tag of full records (RFC 8446, 5.2)")
			require.LessOrEqual(t, low.writes, len(want)/(batchSize-recordSize-64)+1)
		})
	}
}

func repeat(n, v int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = v
	}
	return out
}

// Last words arrive, also where the other end has sent what nobody reads.
func TestTLSLastWords(t *testing.T) {
	client, server := pairOf(t, func(c net.Conn) net.Conn { return c })
	_, err := client.Write(make([]byte, 1000))
	require.NoError(t, err)
	_, err = server.Write([]byte("because"))
	require.NoError(t, err)
	require.NoError(t, server.CloseWrite())
	_, err = server.Write([]byte("more"))
	require.Error(t, err)
	words, err := io.ReadAll(client)
	require.NoError(t, err)
	require.Equal(t, "because", string(words))
	_, err = client.Write([]byte("heard")) // the way back is open
	require.NoError(t, err)
	b := make([]byte, 1005)
	_, err = io.ReadFull(server, b)
	require.NoError(t, err)
	require.Equal(t, "heard", string(b[1000:]))
}

// A read that met its deadline loses nothing: the engine looks a second time.
func TestTLSReadsOnAfterADeadline(t *testing.T) {
	client, server := pairOf(t, func(c net.Conn) net.Conn { return c })
	b := make([]byte, 5)
	for range 3 {
		require.NoError(t, server.SetReadDeadline(time.Now().Add(time.Millisecond)))
		_, err := server.Read(b)
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	require.NoError(t, server.SetReadDeadline(time.Now().Add(tlsPatience)))
	_, err := client.Write([]byte("later"))
	require.NoError(t, err)
	_, err = io.ReadFull(server, b)
	require.NoError(t, err)
	require.Equal(t, "later", string(b))
}

// Close wakes a Write that nobody reads, at once.
func TestTLSCloseDoesNotWait(t *testing.T) {
	client, _ := pairOf(t, func(c net.Conn) net.Conn { return c })
	full := make(chan error, 1)
	go func() {
		var err error
		for err == nil {
			_, err = client.WriteBuffers(net.Buffers{make([]byte, 1<<20)})
		}
		full <- err
	}()
	require.NoError(t, client.Close())
	select {
	case err := <-full:
		require.Error(t, err)
	case <-time.After(tlsPatience):
		require.Fail(t, "the write is still blocked")
	}
}

func TestLoopback(t *testing.T) {
	for text, want := range map[string]bool{
		"tcp:127.0.0.1:0": true, "tcp:127.9.8.7:1": true, "tcp:[::1]:0": true, "tcp:localhost:1": true, "unix:x": true, "file:x": true, "tcp:[::ffff:127.0.0.1]:1": true,
		"tcp::7000": false, "tcp:0.0.0.0:7000": false, "tcp:[::]:7000": false, "tcp:192.0.2.1:1": false, "tcp:[2001:db8::1]:1": false,
	} {
		a, err := ParseAddress(text)
		require.NoError(t, err)
		got, err := a.Loopback(context.Background())
		require.NoError(t, err, text)
		require.Equal(t, want, got, text)
	}
	_, err := Address{"tcp", "no such host:1"}.Loopback(context.Background())
	require.ErrorIs(t, err, ErrAddress)
}

// BenchmarkTLS writes frames of 256 pages, scattered as single pages or in one
// run: by WriteBuffers, and by tls.Conn alone, which has a record and a system
// call for each piece. cpu-ns/op is of both ends, and says more than the rate
// where the machine has other work.
func BenchmarkTLS(b *testing.B) {
	mem := make([]byte, 4<<20)
	scattered := net.Buffers{make([]byte, wire.HeaderSize)}
	for i := range 256 {
		scattered = append(scattered, mem[i*2*4096:][:4096])
	}
	run := net.Buffers{make([]byte, wire.HeaderSize), mem[:1<<20]}
	for _, c := range []struct {
		name   string
		pieces net.Buffers
		alone  bool
	}{
		{"pages=scattered/by=gather", scattered, false}, {"pages=scattered/by=conn", scattered, true},
		{"pages=run/by=gather", run, false}, {"pages=run/by=conn", run, true},
	} {
		b.Run(c.name, func(b *testing.B) { benchmarkTLS(b, c.pieces, c.alone) })
	}
}

func benchmarkTLS(b *testing.B, pieces net.Buffers, alone bool) {
	client, server := pairOf(b, func(c net.Conn) net.Conn { return c })
	write := func() error { _, err := client.WriteBuffers(pieces); return err }
	if alone {
		write = func() error {
			for _, p := range pieces {
				if _, err := client.Conn.Write(p); err != nil {
					return err
				}
			}
			return nil
		}
	}
	size := wire.HeaderSize + 1<<20
	b.SetBytes(int64(size))
	b.ReportAllocs()
	done := make(chan error, 1)
	go func() {
		buf := make([]byte, 1<<20)
		for {
			if _, err := server.Read(buf); err != nil {
				done <- err
				return
			}
		}
	}()
	before := cpuTime(b)
	for b.Loop() {
		if err := write(); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
	if err := client.CloseWrite(); err != nil {
		b.Fatal(err)
	}
	<-done
}

// cpuTime is what this process has used, in nanoseconds.
func cpuTime(b *testing.B) int64 {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return u.Utime.Nano() + u.Stime.Nano()
}
