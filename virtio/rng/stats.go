package rng

import (
	"sync"
	"sync/atomic"
)

// Stats counts what a device has done since New. Resets do not clear it, and it
// does not move with the guest.
type Stats struct {
	Requests uint64 `json:"requests"`
	Bytes    uint64 `json:"bytes"`
	// Waits is how often a request found the budget empty.
	Waits uint64 `json:"waits"`
	// HostErrors are requests that the host's source failed; LastHostError is
	// the latest of them.
	HostErrors    uint64 `json:"host_errors"`
	LastHostError string `json:"last_host_error,omitempty"`
	// GuestErrors are requests with no room.
	GuestErrors uint64 `json:"guest_errors"`
}

type counters struct {
	requests, bytes, waits, hostErrors, guestErrors atomic.Uint64

	mu      sync.Mutex
	lastErr error
}

// Stats may be called at any time, from any goroutine.
func (d *Device) Stats() Stats {
	c := &d.stats
	s := Stats{
		Requests: c.requests.Load(), Bytes: c.bytes.Load(), Waits: c.waits.Load(),
		HostErrors: c.hostErrors.Load(), GuestErrors: c.guestErrors.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastErr != nil {
		s.LastHostError = c.lastErr.Error()
	}
	return s
}

func (c *counters) failed(err error) {
	c.hostErrors.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastErr = err
}
