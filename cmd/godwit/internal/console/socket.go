package console

import (
	"net"
	"sync"
	"time"
)

const (
	// backlog is how much output is kept for the next client, bytes.
	backlog = 64 << 10
	// socketPatience is how long a client may take no output before it is sent
	// away: the guest must not wait for it.
	socketPatience = time.Second
)

// socket is a console on a unix socket: one client at a time, and a newer one
// takes over. Output without a client is kept, the latest of it.
type socket struct {
	l    net.Listener
	done chan struct{}

	mu   sync.Mutex
	conn net.Conn
	kept []byte
}

func newSocket(l net.Listener, c *Console) *socket {
	s := &socket{l: l, done: make(chan struct{})}
	go s.accept(c)
	return s
}

func (s *socket) accept(c *Console) {
	defer close(s.done)
	var readers sync.WaitGroup
	defer readers.Wait()
	for {
		conn, err := s.l.Accept()
		if err != nil {
			s.drop(nil)
			return
		}
		s.take(conn)
		readers.Go(func() {
			buf := make([]byte, 4096)
			for {
				n, err := conn.Read(buf)
				if n > 0 && !c.forward(buf[:n]) || err != nil {
					s.drop(conn)
					return
				}
			}
		})
	}
}

// take makes conn the client and gives it what was kept.
func (s *socket) take(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		_ = s.conn.Close() // its reader notices
	}
	s.conn = conn
	kept := s.kept
	s.kept = nil
	s.send(kept)
}

// drop forgets conn, or whoever is there.
func (s *socket) drop(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil && (conn == nil || conn == s.conn) {
		_ = s.conn.Close() // nothing more is to be said
		s.conn = nil
	}
}

// send writes to the client, or keeps p. mu is held.
func (s *socket) send(p []byte) {
	if s.conn != nil {
		_ = s.conn.SetWriteDeadline(time.Now().Add(socketPatience))
		n, err := s.conn.Write(p)
		if err == nil {
			return
		}
		_ = s.conn.Close() // its reader notices
		s.conn = nil
		p = p[n:]
	}
	s.kept = append(s.kept, p...)
	if extra := len(s.kept) - backlog; extra > 0 {
		s.kept = append(s.kept[:0], s.kept[extra:]...)
	}
}

// Write never fails: a guest's output has no one to complain to.
func (s *socket) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.send(p)
	return len(p), nil
}

func (s *socket) close() error {
	err := s.l.Close()
	s.drop(nil)
	<-s.done
	return err
}
