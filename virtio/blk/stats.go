package blk

import (
	"errors"
	"sync/atomic"
)

// Stats counts what a device has done since New. Resets do not clear it, and it
// does not move with the guest.
type Stats struct {
	Reads        uint64 `json:"reads"`
	Writes       uint64 `json:"writes"`
	Flushes      uint64 `json:"flushes"`
	Discards     uint64 `json:"discards"`
	WriteZeroes  uint64 `json:"write_zeroes"`
	BytesRead    uint64 `json:"bytes_read"`
	BytesWritten uint64 `json:"bytes_written"`
	// Deferred are the requests that were not answered at once by the queue's
	// worker, but waited for the host's storage among others.
	Deferred uint64 `json:"deferred"`
	// Parked are the requests that wait now for room on the host.
	Parked int `json:"parked"`
	// HostErrors are requests that the backend failed; LastHostError is the
	// latest of them.
	HostErrors    uint64 `json:"host_errors"`
	LastHostError string `json:"last_host_error,omitempty"`
	// GuestErrors are requests that made no sense, or that the device lacks.
	GuestErrors uint64 `json:"guest_errors"`
}

type counters struct {
	reads, writes, flushes, discards, writeZeroes atomic.Uint64
	bytesRead, bytesWritten, deferred             atomic.Uint64
	hostErrors, guestErrors                       atomic.Uint64
}

// Stats may be called at any time, from any goroutine.
func (d *Device) Stats() Stats {
	c := &d.stats
	s := Stats{
		Reads: c.reads.Load(), Writes: c.writes.Load(), Flushes: c.flushes.Load(),
		Discards: c.discards.Load(), WriteZeroes: c.writeZeroes.Load(),
		BytesRead: c.bytesRead.Load(), BytesWritten: c.bytesWritten.Load(),
		Deferred: c.deferred.Load(), Parked: d.Parked(),
		HostErrors: c.hostErrors.Load(), GuestErrors: c.guestErrors.Load(),
	}
	d.errMu.Lock()
	defer d.errMu.Unlock()
	if d.lastErr != nil {
		s.LastHostError = d.lastErr.Error()
	}
	return s
}

// account counts an outcome and gives the status that the guest sees.
func (d *Device) account(err error) uint8 {
	switch {
	case err == nil:
		return statusOK
	case errors.Is(err, errUnsupported):
		d.stats.guestErrors.Add(1)
		return statusUnsupp
	case errors.Is(err, errRequest):
		d.stats.guestErrors.Add(1)
		return statusIOErr
	}
	d.stats.hostErrors.Add(1)
	d.errMu.Lock()
	d.lastErr = err
	d.errMu.Unlock()
	return statusIOErr
}
