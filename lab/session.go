package lab

import (
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// session is the host's side of the port.
type session struct {
	cfg   *Config
	start time.Time
	conn  net.Conn
	hello chan struct{} // closed when the command starts
	pulse pulse

	code     int
	exited   bool
	writeErr error // first failure of the caller's Stdout or Stderr
	outputs  *outputReceiver
	outErr   error // outputs that could not be stored
}

// serve runs until the exit frame, a broken port or a refusal.
func (s *session) serve() error {
	frames := &frameReader{r: s.conn}
	s.outputs = newOutputReceiver(s.cfg.Outputs)
	defer func() { s.outErr = s.outputs.close(s.exited) }()
	greeted := false
	for {
		s.pulse.wait()
		k, p, err := frames.next()
		s.pulse.beat()
		if err != nil {
			return err
		}
		if !greeted && k != kindHello && k != kindFail && k != kindSick {
			return fmt.Errorf("%w: kind %q before hello", errFrame, k)
		}
		switch k {
		case kindHello:
			if greeted {
				return fmt.Errorf("%w: second hello", errFrame)
			}
			greeted = true
			if err := s.greet(p); err != nil {
				return err
			}
		case kindStdout:
			s.forward(s.cfg.Stdout, p)
		case kindStderr:
			s.forward(s.cfg.Stderr, p)
		case kindAlive:
		case kindOutput:
			s.outputs.write(p)
		case kindFail:
			return fmt.Errorf("%w: %q", ErrCommand, p)
		case kindSick:
			return fmt.Errorf("%w: %q", ErrMachine, p)
		case kindExit:
			s.code, err = decodeExit(p)
			s.exited = err == nil
			return err
		default:
			return fmt.Errorf("%w: unknown kind %q", errFrame, k)
		}
	}
}

func (s *session) greet(p []byte) error {
	h, err := decodeHello(p)
	if err != nil {
		return err
	}
	close(s.hello)
	if s.cfg.Started != nil {
		s.cfg.Started(Boot{
			Total:   time.Since(s.start),
			Modules: time.Duration(h.ModulesMicros) * time.Microsecond,
			Clock:   time.Duration(h.ClockMicros) * time.Microsecond,
		})
	}
	go s.pumpStdin()
	return nil
}

// pumpStdin ends when the input does or, at its next read, when the port is
// closed. Run does not wait for it: a Read on a terminal cannot be broken off.
func (s *session) pumpStdin() {
	out := &frameWriter{w: s.conn}
	if s.cfg.Stdin != nil {
		buf := make([]byte, 4096)
		if _, err := io.CopyBuffer(out.stream(kindStdin), struct{ io.Reader }{s.cfg.Stdin}, buf); err != nil {
			var opErr *net.OpError
			if errors.As(err, &opErr) {
				return
			}
		}
	}
	_ = out.send(kindStdinEnd, nil) // a closed port means that nobody reads any more
}

// forward keeps reading after the caller's writer failed, so that the command
// can end; the failure is reported with the result.
func (s *session) forward(w io.Writer, p []byte) {
	if s.writeErr != nil {
		return
	}
	if _, err := w.Write(p); err != nil {
		s.writeErr = err
	}
}

// finish turns the end of serve into Run's result and stops the machine.
func (s *session) finish(m *machine, err error) (int, error) {
	if s.exited {
		m.stop()
		if s.writeErr != nil {
			return s.code, fmt.Errorf("lab: pass the command's output on: %w", s.writeErr)
		}
		if s.outErr != nil {
			return s.code, fmt.Errorf("lab: bring outputs back: %w", s.outErr)
		}
		return s.code, nil
	}
	if errors.Is(err, ErrCommand) || errors.Is(err, ErrMachine) || errors.Is(err, errFrame) {
		m.kill()
		return 0, err
	}
	// The port broke: QEMU is ending by itself, and says why.
	select {
	case <-m.done:
	case <-time.After(stopGrace):
		m.kill()
	}
	return 0, m.failure("ended before the command did", nil)
}
