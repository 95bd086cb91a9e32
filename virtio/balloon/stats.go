package balloon

import "sync/atomic"

// Status is where the balloon stands, in pages of PageSize.
type Status struct {
	TargetPages uint32 // what the host asks for
	ActualPages uint32 // what the guest says it has given
}

// Status may be called at any time, from any goroutine.
func (d *Device) Status() Status {
	return Status{TargetPages: d.target.Load(), ActualPages: d.actual.Load()}
}

// Stats counts what a device has done since New. Resets do not clear it, and it
// does not move with the guest.
type Stats struct {
	InflatedPages uint64 `json:"inflated_pages"` // of 4 KiB, put into the balloon
	DeflatedPages uint64 `json:"deflated_pages"` // of 4 KiB, taken out again
	ReportedBytes uint64 `json:"reported_bytes"` // told as free by free page reporting
	HintedBytes   uint64 `json:"hinted_bytes"`   // told as free to a migration that asked
	// PoisonedBytes are those of ReportedBytes that stayed, since the guest's free
	// pages hold a pattern.
	PoisonedBytes uint64 `json:"poisoned_bytes"`
	// DiscardedBytes were given back to the host, some more than once.
	DiscardedBytes uint64 `json:"discarded_bytes"`
	// StrayPages are page numbers that are not RAM.
	StrayPages uint64 `json:"stray_pages"`
	// GuestErrors are chains that made no sense, or too long ones.
	GuestErrors uint64 `json:"guest_errors"`
	// HostErrors are discards that failed; LastHostError is the latest of them.
	HostErrors    uint64 `json:"host_errors"`
	LastHostError string `json:"last_host_error,omitempty"`
}

type counters struct {
	inflatedPages, deflatedPages              atomic.Uint64
	reportedBytes, hintedBytes, poisonedBytes atomic.Uint64
	discardedBytes, strayPages                atomic.Uint64
	guestErrors, hostErrors                   atomic.Uint64
}

// Stats may be called at any time, from any goroutine.
func (d *Device) Stats() Stats {
	c := &d.stats
	s := Stats{
		InflatedPages: c.inflatedPages.Load(), DeflatedPages: c.deflatedPages.Load(),
		ReportedBytes: c.reportedBytes.Load(), HintedBytes: c.hintedBytes.Load(), PoisonedBytes: c.poisonedBytes.Load(),
		DiscardedBytes: c.discardedBytes.Load(), StrayPages: c.strayPages.Load(),
		GuestErrors: c.guestErrors.Load(), HostErrors: c.hostErrors.Load(),
	}
	d.errMu.Lock()
	defer d.errMu.Unlock()
	if d.lastErr != nil {
		s.LastHostError = d.lastErr.Error()
	}
	return s
}

func (d *Device) hostError(err error) {
	d.stats.hostErrors.Add(1)
	d.errMu.Lock()
	defer d.errMu.Unlock()
	d.lastErr = err
}
