package api

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"godwit/migration/wire"
)

const (
	// lingerTime and lingerBytes bound the wait for a peer that failed the
	// handshake to read why.
	lingerTime  = time.Second
	lingerBytes = 1 << 20

	// maxForeign is how much is printed of what a certificate says, bytes.
	maxForeign = 300

	// tlsWays is what to do at the side that lacks it.
	tlsWays = "--tls-cert, --tls-key and --tls-ca"
)

// secured is one end of a TLS connection of a migration. The handshake happens
// at the first Read or Write, under their deadlines. Its errors say what to do.
type secured struct {
	*tls.Conn
	low    *batch // under Conn
	files  TLSFiles
	to     string // host of the destination; "" at the destination
	gather        // of WriteBuffers

	failed sync.Once
	err    error // of the handshake
}

func newSecured(conn net.Conn, files TLSFiles) *secured {
	return &secured{low: &batch{Conn: conn}, files: files}
}

func (s *secured) Read(b []byte) (int, error) {
	if err := s.shake(); err != nil {
		return 0, err
	}
	n, err := s.Conn.Read(b)
	return n, s.late(err)
}

func (s *secured) Write(b []byte) (int, error) {
	if err := s.shake(); err != nil {
		return 0, err
	}
	n, err := s.Conn.Write(b)
	return n, s.late(err)
}

// CloseWrite tells the peer that nothing follows, on both layers.
func (s *secured) CloseWrite() error {
	if err := s.Conn.CloseWrite(); err != nil {
		return err
	}
	return s.low.closeWrite()
}

// Close never waits: tls.Conn's own would, for a peer that does not read. The end
// of a connection that was not announced tells the engine nothing that an
// announced one would not.
func (s *secured) Close() error { return s.low.Close() }

// shake does the handshake if it is not done.
func (s *secured) shake() error {
	err := s.Conn.Handshake()
	if err == nil {
		return nil
	}
	s.failed.Do(func() {
		s.err = err
		if !errors.Is(err, os.ErrDeadlineExceeded) && !errors.Is(err, net.ErrClosed) {
			s.err = fmt.Errorf("TLS handshake: %w", s.explain(err))
			s.linger(err)
		}
	})
	return s.err
}

// late explains an error after the handshake. In TLS 1.3 the client's is over
// before the server has looked at its certificate.
func (s *secured) late(err error) error {
	if err == nil {
		return nil // without the allocation below
	}
	if e := new(net.OpError); errors.As(err, &e) && e.Op == "remote error" {
		return fmt.Errorf("TLS: %w", s.explain(err))
	}
	return err
}

// linger lets the peer read why the handshake failed: closing with unread bytes
// would reset the connection and lose that. One who came without TLS is told in
// words that it knows.
func (s *secured) linger(err error) {
	if s.to == "" && withoutTLS(err) {
		_ = s.low.SetWriteDeadline(time.Now().Add(lingerTime)) // Open fails if this did
		text := "this destination takes TLS only; migrate with " + tlsWays
		_ = wire.NewWriter(s.low).Open(wire.TypeError, wire.AppendText(nil, text)) // err is the failure to report
	}
	if s.low.closeWrite() != nil || s.low.SetReadDeadline(time.Now().Add(lingerTime)) != nil {
		return
	}
	_, _ = io.CopyN(io.Discard, s.low, lingerBytes) // whatever it is, it comes too late
}

// withoutTLS tells whether the peer opened as a godwit that uses no TLS.
func withoutTLS(err error) bool {
	h := tls.RecordHeaderError{}
	return errors.As(err, &h) && strings.HasPrefix(wire.Preamble, string(h.RecordHeader[:]))
}

// explain says what err means and what to do about it.
func (s *secured) explain(err error) error {
	if s.to == "" {
		return s.explainToDestination(err)
	}
	return s.explainToSource(err)
}

func (s *secured) explainToDestination(err error) error {
	header, remote, verify := tls.RecordHeaderError{}, new(net.OpError), new(tls.CertificateVerificationError)
	switch {
	case withoutTLS(err):
		return fmt.Errorf("the source came without TLS (%w); migrate with %s, or listen without them", err, tlsWays)
	case errors.As(err, &header):
		return fmt.Errorf("the peer does not speak TLS (%w)", err)
	case errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Errorf("the source refused our certificate %q (%w): it must name this host as migrate's --to does, be for servers, not be expired, and be signed by an authority in migrate's --tls-ca", s.files.Cert, err)
	case errors.As(err, &verify):
		return fmt.Errorf("the source's certificate%s is refused: %w; %s", subject(verify), foreign{verify.Err}, s.remedy(verify.Err, "for clients"))
	case strings.Contains(err.Error(), "didn't provide a certificate"):
		return fmt.Errorf("the peer offered no certificate (%w); migrate with %s", err, tlsWays)
	}
	return err
}

func (s *secured) explainToSource(err error) error {
	header, remote, verify := tls.RecordHeaderError{}, new(net.OpError), new(tls.CertificateVerificationError)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE):
		return fmt.Errorf("the destination hung up instead of answering (%w); does it listen with %s? If it does not, let it, or migrate without them", err, tlsWays)
	case errors.As(err, &header):
		return fmt.Errorf("the destination answers without TLS (%w); let it listen with %s, or migrate without them", err, tlsWays)
	case errors.As(err, &remote) && remote.Op == "remote error":
		return fmt.Errorf("the destination refused our certificate %q (%w): it must be for clients, not be expired, and be signed by an authority in receive's --tls-ca", s.files.Cert, err)
	case errors.As(err, &verify):
		return fmt.Errorf("the certificate%s of the destination %q is refused: %w; %s", subject(verify), s.to, foreign{verify.Err}, s.remedy(verify.Err, "for servers"))
	}
	return err
}

// foreign is an error that quotes a stranger's certificate: names in it may be
// long, and anything.
type foreign struct{ error }

func (e foreign) Error() string {
	text := e.error.Error()
	if len(text) > maxForeign {
		text = text[:maxForeign] + "..."
	}
	return wire.DecodeText([]byte(strings.ReplaceAll(text, "\n", " ")))
}

func (e foreign) Unwrap() error { return e.error }

// subject names the certificate that a stranger has shown.
func subject(e *tls.CertificateVerificationError) string {
	if len(e.UnverifiedCertificates) == 0 {
		return ""
	}
	return fmt.Sprintf(" %.200q", e.UnverifiedCertificates[0].Subject.String())
}

// remedy says what to do about a peer's certificate. use is what it must be for.
func (s *secured) remedy(err error, use string) string {
	unknown, name, invalid := x509.UnknownAuthorityError{}, x509.HostnameError{}, x509.CertificateInvalidError{}
	switch {
	case errors.As(err, &unknown):
		return fmt.Sprintf("add the authority that signed it to --tls-ca %q if you trust it", s.files.CA)
	case errors.As(err, &name):
		return "name the destination in --to as its certificate does, or have one signed for that name"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "have a new one signed, if both clocks are right"
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		return "have one signed that is " + use + " (extended key usage)"
	}
	return "have one signed by an authority in --tls-ca"
}
