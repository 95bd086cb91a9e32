package net

import (
	"sync"
	"sync/atomic"
)

// Stats counts what a device has done since New. Resets do not clear it, and it
// does not move with the guest. Bytes are those of frames, without header.
type Stats struct {
	RxFrames uint64 `json:"rx_frames"`
	RxBytes  uint64 `json:"rx_bytes"`
	TxFrames uint64 `json:"tx_frames"`
	TxBytes  uint64 `json:"tx_bytes"`
	// RxFiltered are frames that the driver's filter refused; RxTooLarge those for
	// which the driver's buffers were too small; RxMalformed came without a whole
	// Ethernet header.
	RxFiltered  uint64 `json:"rx_filtered"`
	RxTooLarge  uint64 `json:"rx_too_large"`
	RxMalformed uint64 `json:"rx_malformed"`
	// TxMalformed are packets too short or too long; TxRefused those that the host
	// would not take, LastHostError says why.
	TxMalformed uint64 `json:"tx_malformed"`
	TxRefused   uint64 `json:"tx_refused"`
	// RxLinkDown and TxLinkDown are frames dropped while the cable was out.
	RxLinkDown uint64 `json:"rx_link_down"`
	TxLinkDown uint64 `json:"tx_link_down"`
	// RxWaits and TxWaits count sleeps for the driver's buffers and for the host's
	// room: packets waited, and were not lost here.
	RxWaits uint64 `json:"rx_waits"`
	TxWaits uint64 `json:"tx_waits"`
	// Kicks are wake-ups of workers by the driver.
	Kicks         uint64 `json:"kicks"`
	Announcements uint64 `json:"announcements"`
	GuestErrors   uint64 `json:"guest_errors"` // control commands refused
	HostErrors    uint64 `json:"host_errors"`
	LastHostError string `json:"last_host_error,omitempty"`
}

// Dropped is the number of frames that were lost here, either way. Those that the
// driver's filter refused are not, nor those that a pulled cable did not carry.
func (s Stats) Dropped() uint64 { return s.RxTooLarge + s.RxMalformed + s.TxMalformed + s.TxRefused }

type counters struct {
	rx, tx                  traffic
	rxWaits, txWaits, kicks atomic.Uint64
	announcements           atomic.Uint64
	guestErrors, hostErrors atomic.Uint64

	mu      sync.Mutex
	lastErr error
}

// Stats may be called at any time, from any goroutine.
func (d *Device) Stats() Stats {
	c := &d.stats
	s := Stats{
		RxFrames: c.rx.frames.Load(), RxBytes: c.rx.bytes.Load(),
		TxFrames: c.tx.frames.Load(), TxBytes: c.tx.bytes.Load(),
		RxFiltered: c.rx.filtered.Load(), RxTooLarge: c.rx.tooLarge.Load(), RxMalformed: c.rx.malformed.Load(),
		TxMalformed: c.tx.malformed.Load(), TxRefused: c.tx.refused.Load(),
		RxLinkDown: c.rx.unplugged.Load(), TxLinkDown: c.tx.unplugged.Load(),
		RxWaits: c.rxWaits.Load(), TxWaits: c.txWaits.Load(), Kicks: c.kicks.Load(),
		Announcements: c.announcements.Load(),
		GuestErrors:   c.guestErrors.Load(), HostErrors: c.hostErrors.Load(),
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lastErr != nil {
		s.LastHostError = c.lastErr.Error()
	}
	return s
}

// fail counts an error of the host's.
func (d *Device) fail(err error) {
	c := &d.stats
	c.hostErrors.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastErr = err
}
