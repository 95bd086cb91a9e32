package migration

import (
	"errors"
	"fmt"
	"time"
)

// Status is how a migration ended.
type Status string

const (
	Completed Status = "completed"
	Failed    Status = "failed"
	Cancelled Status = "cancelled"
)

// Report is what a migration did, at either end: the JSON object that `godwit
// migrate --json` prints. All times are milliseconds with fractions.
type Report struct {
	Status Status `json:"status"`
	// Error says why it failed. At a destination whose guest runs it can say that
	// the source could not be told.
	Error string `json:"error,omitempty"`
	Mode  Mode   `json:"mode"`
	// Local says that memory changed hands without a copy: streams, wire_bytes and
	// rounds are then empty, and all pages are skipped ones.
	Local bool `json:"local,omitempty"`
	// TotalMS is from the start to RUNNING: at the source from connecting to
	// RUNNING received, at the destination from the first HELLO to Run returned.
	TotalMS float64 `json:"total_ms"`
	// DowntimeMS is from the moment the source began to pause its vCPUs to RUNNING
	// received: never understated, as the last vCPU stops a little later. Hashing
	// under verify is not in it. 0 at the destination.
	DowntimeMS float64 `json:"downtime_ms"`
	// SetupMS is from the start to the first page, in a local hand-over to the
	// pause: connect, CONFIG, build, dirty log, finding what was touched.
	SetupMS        float64        `json:"setup_ms"`
	DowntimePhases DowntimePhases `json:"downtime_phases"`
	// WireBytes is what the destination acknowledged on the data streams, or what
	// was written to a file.
	WireBytes uint64 `json:"wire_bytes"`
	Streams   int    `json:"streams"`
	// ThrottleMax is the most that was taken from the guest's processors, percent
	// of their time.
	ThrottleMax int           `json:"throttle_max"`
	Pages       PageCounts    `json:"pages"`
	Rounds      []RoundReport `json:"rounds"`
	// Promise is what a stop rule that measures expected of the pause; DowntimeMS,
	// DowntimePhases and the last of Rounds say what came of it.
	Promise  *Promise  `json:"promise,omitempty"`
	PostCopy *PostCopy `json:"postcopy,omitempty"`
	Verify   *Verified `json:"verify,omitempty"`
	// Hint is there where the guest was asked for its free pages.
	Hint *HintReport `json:"free_page_hint,omitempty"`
	// DirtyLimit is the least that a vCPU was held to, new dirty pages per second.
	DirtyLimit uint64 `json:"dirty_limit_pages_s,omitempty"`
}

// DowntimePhases are the parts of the downtime; their sum is DowntimeMS.
type DowntimePhases struct {
	PauseMS  float64 `json:"pause_ms"`  // stopping vCPUs, draining devices
	PagesMS  float64 `json:"pages_ms"`  // the last dirty pages
	StateMS  float64 `json:"state_ms"`  // saving and sending device state, releasing disks
	ResumeMS float64 `json:"resume_ms"` // PREPARE to RUNNING: loading state, taking disks, GO, run
}

// Promise is what the pause was expected to take when it was decided on, from a
// sample of the guest's writes and measured costs. DowntimeMS is the sum of the
// four parts, which are those of DowntimePhases; flushing disks and
// taking their locks is in neither PauseMS nor StateMS nor ResumeMS.
type Promise struct {
	DowntimeMS     float64 `json:"downtime_ms"`
	Pages          uint64  `json:"pages"`   // to be sent in the last round
	PagesPerSecond float64 `json:"pages_s"` // by how much the dirty set grew in the sample
	PauseMS        float64 `json:"pause_ms"`
	PagesMS        float64 `json:"pages_ms"`
	StateMS        float64 `json:"state_ms"`
	ResumeMS       float64 `json:"resume_ms"`
}

// PageCounts counts pages sent or received, each time they went.
type PageCounts struct {
	Zero       uint64 `json:"zero"`       // as runs of zero pages
	Raw        uint64 `json:"raw"`        // as they are
	Delta      uint64 `json:"delta"`      // as a difference to what was sent before
	Compressed uint64 `json:"compressed"` // compressed
	Unchanged  uint64 `json:"unchanged"`  // logged as dirty, but found as they had been sent: not sent again
	Skipped    uint64 `json:"skipped"`    // of guest RAM, never read nor sent: never touched, or handed over in place
	Free       uint64 `json:"free"`       // touched, but never sent: the guest did not need them, and has not written to them since
}

// data is the pages that went by content.
func (c PageCounts) data() uint64 { return c.Raw + c.Delta + c.Compressed }

// sent is all pages that went.
func (c PageCounts) sent() uint64 { return c.Zero + c.data() }

// RoundReport is one round of copying.
type RoundReport struct {
	N             int     `json:"n"`                 // from 1
	MS            float64 `json:"ms"`                // first page to last acknowledgement
	DirtyPages    uint64  `json:"dirty_pages"`       // found dirty after the round; 0 for the last
	SentPages     uint64  `json:"sent_pages"`        // those found unchanged are not among them
	WireBytes     uint64  `json:"wire_bytes"`        // acknowledged in this round
	Bandwidth     uint64  `json:"bandwidth_bytes_s"` // acknowledged bytes per second
	EstDowntimeMS float64 `json:"est_downtime_ms"`   // if the guest had been paused after it
}

// PostCopy is about memory fetched after the guest moved.
type PostCopy struct {
	Faults      uint64  `json:"faults"`
	P50US       float64 `json:"p50_us"` // microseconds
	P99US       float64 `json:"p99_us"` // microseconds
	PushedPages uint64  `json:"pushed_pages"`
}

// Verified holds the hashes of guest memory at both ends, hexadecimal.
type Verified struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	// Differing are the first pages that differ, where the hashes do.
	Differing []Difference `json:"differing,omitempty"`
	// SourceChanged and DestinationChanged say that memory which nobody may write
	// after the pause had another hash when it was looked at again.
	SourceChanged      bool `json:"source_changed,omitempty"`
	DestinationChanged bool `json:"destination_changed,omitempty"`
}

// Difference is a page that is not the same at both ends after all was sent.
type Difference struct {
	GPA             uint64 `json:"gpa"`
	Round           int    `json:"round"`       // the last round in which it was to be sent; 0 is none
	DirtyAgain      bool   `json:"dirty_again"` // the log of the paused guest names it again
	ZeroSource      bool   `json:"zero_source"` // all zero there
	ZeroDestination bool   `json:"zero_destination"`
}

// String names a page and what is known about it.
func (d Difference) String() string {
	s := fmt.Sprintf("%#x (round %d", d.GPA, d.Round)
	for _, also := range []struct {
		is   bool
		what string
	}{
		{d.DirtyAgain, "dirty again"},
		{d.ZeroSource, "zero at the source"},
		{d.ZeroDestination, "zero at the destination"},
	} {
		if also.is {
			s += ", " + also.what
		}
	}
	return s + ")"
}

// Progress is a snapshot of a migration under way.
type Progress struct {
	Phase         Phase         `json:"phase"`
	Elapsed       time.Duration `json:"elapsed_ns"`
	Round         int           `json:"round"`             // from 1, 0 before the first
	RoundPages    uint64        `json:"round_pages"`       // pages that this round has to send
	SentPages     uint64        `json:"sent_pages"`        // of them, taken by a stream so far
	TotalPages    uint64        `json:"total_pages"`       // pages of guest RAM
	WireBytes     uint64        `json:"wire_bytes"`        // acknowledged (source) or received (destination)
	Bandwidth     float64       `json:"bandwidth_bytes_s"` // acknowledged bytes per second: of the last round, in the first one so far
	EstDowntime   time.Duration `json:"est_downtime_ns"`   // last estimate
	DowntimeLimit time.Duration `json:"downtime_limit_ns"`
	Limit         int64         `json:"bandwidth_limit"` // bytes per second, 0 for none
	Duty          int           `json:"duty"`            // percent of the time the vCPUs may run
	Done          bool          `json:"done"`
	// DirtyLimit is what each vCPU is held to, new dirty pages per second; 0 for none.
	DirtyLimit uint64 `json:"dirty_limit_pages_s,omitempty"`
	// EstLeft is about how long copying goes on until the pause, from the rates of this
	// round and the one before: in round 1 for that round alone. 0 is not known, NeverLeft
	// that rounds do not get shorter.
	EstLeft time.Duration `json:"est_left_ns"`
}

// ms converts to the unit of reports.
func ms(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// statusOf says how a migration ended that ended with err.
func statusOf(err error) Status {
	switch {
	case err == nil:
		return Completed
	case errors.Is(err, ErrCancelled):
		return Cancelled
	}
	return Failed
}
