package api

import (
	"net"
	"sync"
)

const (
	// recordSize is the most that one TLS record carries (RFC 8446, 5.1).
	recordSize = 16 << 10
	// batchSize is what goes to the system at once, bytes. tls.Conn alone has one
	// system call for each record.
	batchSize = 128 << 10
)

// batch is the TCP connection under TLS. Writes may be held until there is a
// batch of them. Reads are the connection's own: taking many records at once was
// measured and gains nothing.
type batch struct {
	net.Conn

	mu   sync.Mutex // guards what follows, and the order of writes
	hold bool
	out  []byte
}

// Write is called by TLS, also for its own messages, while it holds its lock for
// writing.
func (b *batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.hold {
		return b.Conn.Write(p)
	}
	if len(b.out)+len(p) > cap(b.out) {
		if err := b.flush(); err != nil {
			return 0, err
		}
	}
	b.out = append(b.out, p...)
	return len(p), nil
}

// begin holds writes back from now on, until end.
func (b *batch) begin() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.out == nil {
		b.out = make([]byte, 0, batchSize)
	}
	b.hold = true
}

func (b *batch) end() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hold = false
	return b.flush()
}

// flush writes what is held. mu is held.
func (b *batch) flush() error {
	if len(b.out) == 0 {
		return nil
	}
	_, err := b.Conn.Write(b.out)
	b.out = b.out[:0]
	return err
}

func (b *batch) closeWrite() error {
	c, ok := b.Conn.(interface{ CloseWrite() error })
	if !ok {
		return nil
	}
	return c.CloseWrite()
}

// gather makes whole records of pieces of any size.
type gather struct{ part []byte }

// WriteBuffers writes pieces as one: in whole records, and as few system calls as
// they take. One caller at a time; it keeps nothing.
func (s *secured) WriteBuffers(v net.Buffers) (int64, error) {
	if err := s.shake(); err != nil {
		return 0, err
	}
	if s.part == nil {
		s.part = make([]byte, 0, recordSize)
	}
	s.low.begin()
	n, err := s.pieces(v)
	if e := s.low.end(); err == nil {
		err = e
	}
	return n, s.late(err)
}

func (s *secured) pieces(v net.Buffers) (int64, error) {
	var sent int64
	write := func(p []byte) error {
		n, err := s.Conn.Write(p)
		sent += int64(n)
		return err
	}
	part := s.part[:0]
	for _, piece := range v {
		for len(piece) > 0 {
			if whole := len(piece) &^ (recordSize - 1); len(part) == 0 && whole > 0 {
				if err := write(piece[:whole]); err != nil {
					return sent, err
				}
				piece = piece[whole:]
				continue
			}
			n := min(len(piece), cap(part)-len(part))
			part, piece = append(part, piece[:n]...), piece[n:]
			if len(part) == cap(part) {
				if err := write(part); err != nil {
					return sent, err
				}
				part = part[:0]
			}
		}
	}
	if len(part) == 0 {
		return sent, nil
	}
	return sent, write(part)
}
