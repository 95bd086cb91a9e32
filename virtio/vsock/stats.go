package vsock

import "sync/atomic"

// Stats counts what a device has done since New. Resets do not clear it, and it
// does not move with the guest.
type Stats struct {
	Open int `json:"open"` // connections now
	// Draining are connections that have ended for the guest, and whose last bytes
	// the host's program has not taken.
	Draining     int    `json:"draining"`
	Clients      uint64 `json:"clients"` // programs of the host that came to the socket
	FromGuest    uint64 `json:"from_guest"`
	FromHost     uint64 `json:"from_host"`
	BytesToGuest uint64 `json:"bytes_to_guest"`
	BytesToHost  uint64 `json:"bytes_to_host"`
	ResetsSent   uint64 `json:"resets_sent"`
	ResetsSeen   uint64 `json:"resets_seen"`
	// TransportResets are the times that the guest was told that all connections
	// are gone.
	TransportResets uint64 `json:"transport_resets"`

	// Refused are requests of the guest that nobody on the host listens for,
	// BadClients clients whose first line was wrong or came too early,
	// OverLimit connections beyond the most that there may be.
	Refused    uint64 `json:"refused"`
	BadClients uint64 `json:"bad_clients"`
	OverLimit  uint64 `json:"over_limit"`
	// Timeouts are connections that one side did not open or close in time.
	Timeouts uint64 `json:"timeouts"`
	// BadPackets break the rules, OverCredit among them send more than they may;
	// Unknown belong to no connection.
	BadPackets uint64 `json:"bad_packets"`
	OverCredit uint64 `json:"over_credit"`
	Unknown    uint64 `json:"unknown"`

	// CreditWaits are waits for the guest's credit, WriteWaits for the host's
	// reader, ResetWaits of the tx queue for the rx queue.
	CreditWaits uint64 `json:"credit_waits"`
	WriteWaits  uint64 `json:"write_waits"`
	ResetWaits  uint64 `json:"reset_waits"`

	// BytesLost were taken from the guest and reached nobody: the host's program
	// had closed its side, or did not read when the device was closed.
	BytesLost uint64 `json:"bytes_lost"`
	// BytesUnread came from the host's programs for a guest that had said that it
	// takes no more.
	BytesUnread uint64 `json:"bytes_unread"`
}

type counters struct {
	open, draining                                                                          atomic.Int64
	clients, bytesLost, bytesUnread                                                         atomic.Uint64
	fromGuest, fromHost, bytesToGuest, bytesToHost, resetsSent, resetsSeen, transportResets atomic.Uint64
	refused, badClients, overLimit, timeouts, badPackets, overCredit, unknown               atomic.Uint64
	creditWaits, writeWaits, resetWaits                                                     atomic.Uint64
}

// Stats may be called at any time, from any goroutine. It waits for nobody.
func (d *Device) Stats() Stats {
	c := &d.stats
	return Stats{
		Open: int(c.open.Load()), Draining: int(c.draining.Load()), Clients: c.clients.Load(), BytesLost: c.bytesLost.Load(), BytesUnread: c.bytesUnread.Load(),
		FromGuest: c.fromGuest.Load(), FromHost: c.fromHost.Load(),
		BytesToGuest: c.bytesToGuest.Load(), BytesToHost: c.bytesToHost.Load(),
		ResetsSent: c.resetsSent.Load(), ResetsSeen: c.resetsSeen.Load(), TransportResets: c.transportResets.Load(),
		Refused: c.refused.Load(), BadClients: c.badClients.Load(), OverLimit: c.overLimit.Load(), Timeouts: c.timeouts.Load(),
		BadPackets: c.badPackets.Load(), OverCredit: c.overCredit.Load(), Unknown: c.unknown.Load(),
		CreditWaits: c.creditWaits.Load(), WriteWaits: c.writeWaits.Load(), ResetWaits: c.resetWaits.Load(),
	}
}
