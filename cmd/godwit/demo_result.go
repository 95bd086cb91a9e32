package main

import (
	"fmt"
	"strings"

	"godwit/cmd/godwit/internal/units"
	"godwit/migration"
)

// demoResult is what `demo --json` prints.
type demoResult struct {
	OK    bool   `json:"ok"`
	Guest string `json:"guest"`
	// BootMS is from starting the process to the guest's first line, milliseconds.
	BootMS float64    `json:"boot_ms"`
	Moves  []demoMove `json:"moves"`
	// BadPages is what metronome found wrong with its memory.
	BadPages *uint64 `json:"bad_pages,omitempty"`
	Sweeps   *uint64 `json:"sweeps,omitempty"` // how often it looked at all of it
	// Witness is what Linux's workload said at its end.
	Witness string `json:"witness,omitempty"`
	Detail  string `json:"detail,omitempty"` // what is wrong
}

// demoMove is one migration of the demo.
type demoMove struct {
	Verified bool              `json:"verified"`
	Report   *migration.Report `json:"report"`
	// GuestGapUS is the longest that the guest was away during the move, in its
	// own eyes, microseconds.
	GuestGapUS uint64 `json:"guest_gap_us,omitempty"`
	// Counts are the first and last number that the witness counted from the start
	// of the move until a while after it.
	Counts [2]uint64 `json:"counts,omitzero"`
}

func (r *demoResult) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "guest      %s\n", r.Guest)
	fmt.Fprintf(&b, "boot       %.0f ms from starting the process to the guest's first line\n", r.BootMS)
	for i, m := range r.Moves {
		how := ""
		if m.Verified {
			how = ", with hashing, which the guest's gap includes"
		}
		fmt.Fprintf(&b, "move %d     %.0f ms in all, downtime %.2f ms", i+1, m.Report.TotalMS, m.Report.DowntimeMS)
		if m.GuestGapUS > 0 {
			fmt.Fprintf(&b, ", longest gap the guest saw %.2f ms", float64(m.GuestGapUS)/1000)
		}
		fmt.Fprintf(&b, "%s\n", how)
		fmt.Fprintf(&b, "           %s on the wire in %d rounds; pages: %s\n",
			units.FormatBytes(float64(m.Report.WireBytes)), len(m.Report.Rounds), pageCounts(m.Report.Pages))
		if m.Counts != [2]uint64{} {
			fmt.Fprintf(&b, "           the witness counted from %d to %d meanwhile, no gap, no repeat\n", m.Counts[0], m.Counts[1])
		}
		if v := m.Report.Verify; v != nil {
			fmt.Fprintf(&b, "           memory hashes equal: %.32s\n", v.Source)
		}
	}
	if r.BadPages != nil {
		fmt.Fprintf(&b, "guest says %d bad pages in %d sweeps of its memory\n", *r.BadPages, *r.Sweeps)
	}
	if r.Witness != "" {
		fmt.Fprintf(&b, "guest says %s\n", r.Witness)
	}
	if !r.OK {
		fmt.Fprintf(&b, "WRONG      %s\n", r.Detail)
	}
	return b.String()
}
