package sim_test

import (
	"encoding/binary"
	"net"
	"os"
	"sync"
	"time"

	"godwit/migration/wire"
)

// A fault strikes one frame of one direction of one connection of the source.
type fault struct {
	conn  int    // 0 is control, data streams from 1
	out   bool   // source to destination
	nth   int    // among the frames of this direction, signs of life not counted
	when  string // before, inside, after
	what  string // close, kill, silence
	frame wire.Type
}

// network is every connection of a source, and the fault that will strike them.
type network struct {
	mu     sync.Mutex
	conns  []*faultConn
	fault  *fault
	struck bool
	silent bool
	goOut  bool // a byte of GO was about to leave
	seen   []fault
	hold   func(wire.Type) // called before a frame leaves
}

func (n *network) wrap(c net.Conn, index int) net.Conn {
	n.mu.Lock()
	defer n.mu.Unlock()
	f := &faultConn{Conn: c, net: n, index: index, closed: make(chan struct{})}
	n.conns = append(n.conns, f)
	return f
}

// shutdown really closes what silence kept open.
func (n *network) shutdown() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.conns {
		c.Conn.Close()
	}
}

func (n *network) isSilent() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.silent
}

// at says whether the fault strikes here, and lets it.
func (n *network) at(c *faultConn, out bool, nth int, typ wire.Type, when string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if when == "before" {
		n.seen = append(n.seen, fault{conn: c.index, out: out, nth: nth, frame: typ})
		if typ == wire.TypeGo {
			n.goOut = true
		}
	}
	f := n.fault
	if f == nil || n.struck || f.conn != c.index || f.out != out || f.nth != nth || f.when != when {
		return false
	}
	n.struck = true
	switch f.what {
	case "close":
		c.Conn.Close()
	case "kill":
		for _, c := range n.conns {
			c.Conn.Close()
		}
	case "silence":
		n.silent = true
	}
	return true
}

// track follows the frames of one direction.
type track struct {
	pre  int // bytes of the preamble seen
	head []byte
	left int // bytes of the frame after the header
	nth  int
}

func counted(t wire.Type) bool { return t != wire.TypeKeepalive && t != wire.TypeAck }

// feed gives p to emit piece by piece and stops where the fault strikes.
func (t *track) feed(c *faultConn, out bool, p []byte, emit func([]byte) error) error {
	give := func(n int) error {
		err := emit(p[:n])
		p = p[n:]
		return err
	}
	for len(p) > 0 {
		if t.pre < len(wire.Preamble) {
			n := min(len(wire.Preamble)-t.pre, len(p))
			t.pre += n
			if err := give(n); err != nil {
				return err
			}
			continue
		}
		if len(t.head) < wire.HeaderSize {
			if len(t.head) == 0 {
				if out && c.net.hold != nil {
					c.net.hold(wire.Type(p[0]))
				}
				if counted(wire.Type(p[0])) && c.net.at(c, out, t.nth, wire.Type(p[0]), "before") {
					return net.ErrClosed
				}
			}
			half := wire.HeaderSize / 2
			if len(t.head) >= half {
				half = wire.HeaderSize
			}
			n := min(half-len(t.head), len(p))
			t.head = append(t.head, p[:n]...)
			if err := give(n); err != nil {
				return err
			}
			typ := wire.Type(t.head[0])
			if len(t.head) == wire.HeaderSize/2 && counted(typ) && c.net.at(c, out, t.nth, typ, "inside") {
				return net.ErrClosed
			}
			if len(t.head) < wire.HeaderSize {
				continue
			}
			t.left = int(binary.LittleEndian.Uint32(t.head[4:]) + binary.LittleEndian.Uint32(t.head[8:]))
		} else {
			n := min(t.left, len(p))
			t.left -= n
			if err := give(n); err != nil {
				return err
			}
		}
		if t.left == 0 {
			typ := wire.Type(t.head[0])
			t.head = t.head[:0]
			if counted(typ) {
				t.nth++
				if c.net.at(c, out, t.nth-1, typ, "after") {
					return net.ErrClosed
				}
			}
		}
	}
	return nil
}

// faultConn is one connection of the source.
type faultConn struct {
	net.Conn
	net   *network
	index int

	wmu, rmu sync.Mutex
	out, in  track

	dmu      sync.Mutex
	deadline time.Time
	once     sync.Once
	closed   chan struct{}
}

func (c *faultConn) CloseWrite() error {
	if c.net.isSilent() {
		return nil
	}
	if c, ok := c.Conn.(interface{ CloseWrite() error }); ok { // a pipe of a bubble is none
		return c.CloseWrite()
	}
	return nil
}

func (c *faultConn) Write(p []byte) (int, error) { return c.write(p, c.Conn.Write) }

// WriteMsgUnix makes it a connection that can carry a file, which goes with the
// first bytes that get through.
func (c *faultConn) WriteMsgUnix(p, oob []byte, _ *net.UnixAddr) (int, int, error) {
	carried := 0
	n, err := c.write(p, func(b []byte) (int, error) {
		n, oobn, err := c.Conn.(*net.UnixConn).WriteMsgUnix(b, oob, nil)
		oob, carried = nil, carried+oobn
		return n, err
	})
	return n, carried, err
}

func (c *faultConn) write(p []byte, emit func([]byte) (int, error)) (int, error) {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	if c.net.isSilent() {
		if c.index == 0 && wire.Type(p[0]) == wire.TypeGo {
			c.net.mu.Lock()
			c.net.goOut = true
			c.net.mu.Unlock()
		}
		return len(p), nil
	}
	sent := 0
	err := c.out.feed(c, true, p, func(b []byte) error {
		n, err := emit(b)
		sent += n
		return err
	})
	if c.net.isSilent() {
		return len(p), nil
	}
	return sent, err
}

func (c *faultConn) Read(p []byte) (int, error) {
	c.rmu.Lock()
	defer c.rmu.Unlock()
	if c.net.isSilent() {
		return c.silence()
	}
	n, err := c.Conn.Read(p)
	if c.net.isSilent() {
		return c.silence()
	}
	if err != nil {
		return n, err
	}
	got := 0
	_ = c.in.feed(c, false, p[:n], func(b []byte) error { got += len(b); return nil })
	if got == 0 {
		if c.net.isSilent() {
			return c.silence()
		}
		return 0, net.ErrClosed
	}
	return got, nil
}

// silence blocks as a dead network does.
func (c *faultConn) silence() (int, error) {
	c.dmu.Lock()
	d := c.deadline
	c.dmu.Unlock()
	t := time.NewTimer(time.Until(d))
	defer t.Stop()
	select {
	case <-t.C:
		return 0, os.ErrDeadlineExceeded
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c *faultConn) SetReadDeadline(t time.Time) error {
	c.dmu.Lock()
	defer c.dmu.Unlock()
	c.deadline = t
	return c.Conn.SetReadDeadline(t)
}

// Close in a dead network reaches nobody.
func (c *faultConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	if c.net.isSilent() {
		return c.Conn.SetReadDeadline(time.Unix(1, 0))
	}
	return c.Conn.Close()
}
