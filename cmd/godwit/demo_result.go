package main

import (
	"fmt"
	"strings"

	"godwit/cmd/godwit/internal/plain"
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
	// WitnessGapMS is the longest time between two of its counts, milliseconds,
	// from its start to its end: over all moves, hashing included.
	WitnessGapMS *float64 `json:"witness_gap_ms,omitempty"`
	Detail       string   `json:"detail,omitempty"` // what is wrong
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

// text is the result for people: what was measured, and what it means.
func (r *demoResult) text() string {
	var b strings.Builder
	line := func(name, value, meaning string) {
		b.WriteString(strings.TrimRight(plain.Line(fmt.Sprintf("  %-18s %-13s  %s", name, value, meaning)), " ") + "\n")
	}
	ms := func(v float64) string { return fmt.Sprintf("%.*f ms", decimals(v), v) }
	fmt.Fprintf(&b, "%s\n", r.Guest)
	line("boot", ms(r.BootMS), "from starting its process to the guest's first line")
	for i, m := range r.Moves {
		fmt.Fprintf(&b, "move %d: live to a new process%s\n", i+1, m.ifVerified(", both ends hashing its memory"))
		line("total", ms(m.Report.TotalMS), "the guest ran on for all of it but the downtime"+m.ifVerified(" and the hashing"))
		line("downtime", ms(m.Report.DowntimeMS), "from stopping its vCPUs here to its running there"+m.ifVerified(", hashing not counted"))
		if m.GuestGapUS > 0 {
			line("guest's own gap", ms(float64(m.GuestGapUS)/1000), "the longest that the guest missed on its own clock"+m.ifVerified(", hashing included"))
		}
		line("sent", units.FormatBytes(float64(m.Report.WireBytes)), fmt.Sprintf("in %d rounds; pages: %s", len(m.Report.Rounds), pageCounts(m.Report.Pages)))
		if m.Counts != [2]uint64{} {
			line("witness counted", fmt.Sprintf("%d to %d", m.Counts[0], m.Counts[1]), "over the move with no gap and no repeat: its console came along whole")
		}
		if v := m.Report.Verify; v != nil {
			line("memory hash", fmt.Sprintf("%.12s", v.Source), "equal at both ends")
		}
	}
	fmt.Fprintf(&b, "the guest's verdict\n")
	if r.BadPages != nil {
		line("bad pages", fmt.Sprint(*r.BadPages), fmt.Sprintf("after looking at all of its memory %d times: lost, torn or stale ones would show", *r.Sweeps))
	}
	if r.WitnessGapMS != nil {
		line("guest's own gap", ms(*r.WitnessGapMS), "the longest between two of its counts, over both moves, hashing included")
	}
	if r.Witness != "" {
		line("in its words", r.Witness, "")
	}
	if !r.OK {
		line("WRONG", r.Detail, "")
	}
	return b.String()
}

// ifVerified gives text for a move whose ends hashed memory.
func (m *demoMove) ifVerified(text string) string {
	if m.Verified {
		return text
	}
	return ""
}

// decimals are those worth showing of a time in milliseconds.
func decimals(ms float64) int {
	if ms < 100 {
		return 2
	}
	return 0
}
