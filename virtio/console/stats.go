package console

import (
	"errors"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Stats counts what a port has done since New. Resets do not clear it, and it
// does not move with the guest.
type Stats struct {
	BytesToGuest uint64 `json:"bytes_to_guest"`
	BytesToHost  uint64 `json:"bytes_to_host"`
	// DiscardedBytes are output that nobody was there to take.
	DiscardedBytes uint64 `json:"discarded_bytes"`
	// LostBytes are output of a console whose client did not read for too long.
	LostBytes uint64 `json:"lost_bytes"`
	// LostInputBytes are input of clients that had left, beyond what is kept.
	LostInputBytes uint64 `json:"lost_input_bytes"`
	// Waits is how often output waited for a slow reader.
	Waits uint64 `json:"waits"`
	// Connects are clients that were taken, Refused those turned away because
	// another was there.
	Connects uint64 `json:"connects"`
	Refused  uint64 `json:"refused"`
	// HostErrors are writes that the host failed; LastHostError is the latest.
	HostErrors    uint64 `json:"host_errors"`
	LastHostError string `json:"last_host_error,omitempty"`
}

type counters struct {
	bytesToGuest, bytesToHost, discarded, lost, lostInput, waits, connects, refused, hostErrors atomic.Uint64

	mu      sync.Mutex
	lastErr error
}

// PortInfo is what a port is and has done.
type PortInfo struct {
	Connected  bool   // somebody is behind it
	GuestOpen  bool   // the guest's side is open
	Cols, Rows uint16 // the host's side, if known
	Stats      Stats
}

// Port may be called at any time, from any goroutine.
func (d *Device) Port(i int) PortInfo {
	p := d.ports[i]
	info := PortInfo{Connected: p.host.connected(), Stats: p.stats.read()}
	d.mu.Lock()
	defer d.mu.Unlock()
	info.GuestOpen = d.kicks != nil && (!d.multi || p.guest.open)
	info.Cols, info.Rows = p.cols, p.rows
	return info
}

// GuestErrors is the number of messages and buffers of the guest that made no
// sense.
func (d *Device) GuestErrors() uint64 { return d.guestErrors.Load() }

func (c *counters) read() Stats {
	s := Stats{
		BytesToGuest: c.bytesToGuest.Load(), BytesToHost: c.bytesToHost.Load(), DiscardedBytes: c.discarded.Load(), LostBytes: c.lost.Load(),
		LostInputBytes: c.lostInput.Load(), Waits: c.waits.Load(), Connects: c.connects.Load(), Refused: c.refused.Load(), HostErrors: c.hostErrors.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastErr != nil {
		s.LastHostError = c.lastErr.Error()
	}
	return s
}

// failed counts a write that the host failed. That a client is gone is no
// failure.
func (p *port) failed(err error) {
	if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
		return
	}
	p.stats.hostErrors.Add(1)
	p.stats.mu.Lock()
	defer p.stats.mu.Unlock()
	p.stats.lastErr = err
}
