package console

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"godwit/virtio/internal/hostpoll"
)

// patience is how long a console's output waits for a client that takes
// nothing: as long as that of a serial port (package serial), for the same
// reason. Linux's hvc driver spins until its buffer comes back, so a client
// that connects and never reads would hold a vCPU for ever.
const patience = time.Second

// errStalled says that the client takes nothing, and that output is lost rather
// than kept waiting.
var errStalled = errors.New("the client does not read")

// stall is what a console's host side knows of a client that does not read.
//
//	EAGAIN ──> waiting ──patience, and EAGAIN again──> given up: output is lost
//	              └─ it takes something ─> no stall <─ room ─┘
//
// A channel's output waits as long as it takes: its driver sleeps meanwhile, and
// its bytes are a program's. host.mu guards it.
type stall struct {
	since   time.Time // when waiting began; zero if nothing waits
	givenUp bool
	missing uint64 // bytes lost that no line in the output tells of yet
	timer   *time.Timer
}

// late notes that output could not be written, and reports whether that has
// lasted too long. mu is held.
func (h *host) late() bool {
	s := &h.stall
	switch {
	case s.since.IsZero():
		s.since = time.Now()
		if s.timer == nil {
			s.timer = time.AfterFunc(patience, h.port.wake) // to try again
		} else {
			s.timer.Reset(patience)
		}
	case time.Since(s.since) >= patience:
		s.givenUp = true
	}
	return s.givenUp
}

// polled ends a stall when the client has made room, or is gone. Where nobody
// tries to write, nobody else asks again. A client that had shut its sending side
// is not read any more, so this is where its end is seen.
func (h *host) polled(events uint32) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.quiet && h.hungUp() {
		h.drop()
	}
	if h.quiet {
		h.watch.Arm(hostpoll.Gone)
	}
	switch {
	case events&(hostpoll.Out|hostpoll.Gone) != 0:
		h.stall.end()
	case h.stall.givenUp:
		h.watch.Arm(hostpoll.Out)
	}
}

// end is for a client that takes something again.
func (s *stall) end() {
	if s.timer != nil {
		s.timer.Stop()
	}
	s.since, s.givenUp = time.Time{}, false
}

// forget is for a client that is gone: the next has missed nothing.
func (s *stall) forget() {
	s.end()
	s.missing = 0
}

// lose is for output that is not kept for the client. mu is held.
func (h *host) lose(n uint64) (int, error) {
	h.port.stats.lost.Add(n)
	h.stall.missing += n
	return 0, errStalled
}

// confess tells the client in a line of its own how many bytes it has missed. mu
// is held.
func (h *host) confess() {
	if h.stall.missing == 0 {
		return
	}
	line := fmt.Appendf(nil, "\r\n[godwit: %d bytes of console output lost]\r\n", h.stall.missing)
	if n, _ := unix.Write(h.fd, line); n > 0 {
		h.stall.missing = 0
	}
}
