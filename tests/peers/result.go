package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
)

// Result is one run: a raw line.
type Result struct {
	Kind    string `json:"kind"` // "run"
	Case    string `json:"case"`
	Setting string `json:"setting"`
	Side    Side   `json:"side"`
	Run     int    `json:"run"` // from 1
	At      string `json:"at"`
	Error   string `json:"error,omitempty"` // then the figures are those up to there

	TotalMS    float64 `json:"total_ms"`    // as the program says
	DowntimeMS float64 `json:"downtime_ms"` // as the program defines it
	WallMS     float64 `json:"wall_ms"`     // from the command to its answer, starting a process for godwit's included

	// The guest's own longest gap: in a quiet second before the move, while it was
	// copied, and in the second after it. The last starts at its last beat before
	// the move, so that the pause is in it.
	GapBeforeMS float64 `json:"gap_before_ms"`
	GapCopyMS   float64 `json:"gap_copy_ms"`
	GapMS       float64 `json:"gap_ms"`

	WireBytes       uint64 `json:"wire_bytes"`
	Rounds          int    `json:"rounds"`
	ThrottleMax     int    `json:"throttle_max"`
	FirstRoundPages uint64 `json:"first_round_pages,omitempty"` // godwit: sent and not zero
	Sweeps          uint64 `json:"sweeps"`                      // of all its memory by the guest, after the move; every page was right

	// Operations per second before the move and during the first pass, of cases that measure throughput.
	UndisturbedPerS float64   `json:"undisturbed_per_s,omitempty"`
	DuringPerS      float64   `json:"during_per_s,omitempty"`
	BySecond        []float64 `json:"by_second,omitempty"`

	// What a load got done, and how long its requests took.
	OpsPerS   float64 `json:"ops_per_s,omitempty"`
	BytesPerS float64 `json:"bytes_per_s,omitempty"`
	P50US     float64 `json:"p50_us,omitempty"`
	P99US     float64 `json:"p99_us,omitempty"`

	Report json.RawMessage `json:"report,omitempty"` // of the program, whole
}

// skipped is a setting that was left out.
type skipped struct {
	Kind    string `json:"kind"` // "skipped"
	Case    string `json:"case"`
	Setting string `json:"setting"`
	Reason  string `json:"reason"`
}

// session is what one invocation measured.
type session struct {
	Host    Host
	Skipped []skipped
	Results []Result
	raw     io.Writer // raw lines go here as they come; may be nil
}

// note writes one raw line.
func (s *session) note(v any) error {
	if s.raw == nil {
		return nil
	}
	text, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write raw line: %w", err)
	}
	if _, err := s.raw.Write(append(text, '\n')); err != nil {
		return fmt.Errorf("write raw line: %w", err)
	}
	return nil
}

var errNoSession = errors.New("no line of kind host: not a file of peers -out")

// readSession reads the last invocation in a file of raw lines.
func readSession(path string) (*session, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, err := parseSession(f)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return s, nil
}

func parseSession(r io.Reader) (*session, error) {
	var s *session
	in := bufio.NewScanner(r)
	in.Buffer(nil, 16<<20) // reports are long
	for n := 1; in.Scan(); n++ {
		if err := s.take(in.Bytes(), &s); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	if s == nil {
		return nil, errNoSession
	}
	return s, nil
}

// take adds one raw line to s; a host begins a new session.
func (s *session) take(raw []byte, current **session) error {
	var kind struct {
		Kind string `json:"kind"`
	}
	if err := json.Unmarshal(raw, &kind); err != nil {
		return err
	}
	if kind.Kind == "host" {
		*current = &session{}
		return json.Unmarshal(raw, &(*current).Host)
	}
	if s == nil {
		return errNoSession
	}
	switch kind.Kind {
	case "run":
		var r Result
		err := json.Unmarshal(raw, &r)
		s.Results = append(s.Results, r)
		return err
	case "skipped":
		var k skipped
		err := json.Unmarshal(raw, &k)
		s.Skipped = append(s.Skipped, k)
		return err
	}
	return fmt.Errorf("kind %.40q is not known", kind.Kind)
}
