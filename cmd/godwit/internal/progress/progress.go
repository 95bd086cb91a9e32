package progress

import (
	"fmt"
	"io"
	"strings"
	"time"

	"godwit/cmd/godwit/internal/plain"
	"godwit/cmd/godwit/internal/units"
	"godwit/migration"
	"godwit/migration/policy"
)

// barWidth is the bar's length in characters.
const barWidth = 24

// What a plain log gets: every round as it begins, phases that take long, and a
// sign of life.
const (
	longPhase  = 500 * time.Millisecond
	plainEvery = time.Second
)

// Printer shows progress. It is for one goroutine.
type Printer struct {
	w        io.Writer
	terminal bool
	width    func() int // columns; nil for 80
	now      func() time.Time

	drawn bool // a line stands that must be cleared
	// For plain lines:
	phase     migration.Phase
	phaseAt   time.Time // when phase was first seen
	lastLine  time.Time
	lastRound int
}

// New makes a Printer. width gives the terminal's columns, and is nil where w
// is no terminal.
func New(w io.Writer, width func() int) *Printer {
	return &Printer{w: w, terminal: width != nil, width: width, now: time.Now}
}

// Show tells how the migration stands.
func (p *Printer) Show(s migration.Progress) {
	switch {
	case s.Done:
		p.Clear()
	case p.terminal:
		// The last column stays free: a character there would wrap the line.
		fmt.Fprintf(p.w, "\r%s\x1b[K", fit(s, p.width()-1))
		p.drawn = true
	case p.due(s):
		fmt.Fprintln(p.w, Line(s, false))
	}
}

// due tells whether s is worth a plain line.
func (p *Printer) due(s migration.Progress) bool {
	now := p.now()
	if s.Phase != p.phase {
		p.phase, p.phaseAt = s.Phase, now
	}
	switch {
	case s.Phase == migration.PhaseCopy && s.Round != p.lastRound:
	case p.lastLine.Before(p.phaseAt) && now.Sub(p.phaseAt) < longPhase:
		return false
	case now.Sub(p.lastLine) < plainEvery:
		return false
	}
	p.lastLine, p.lastRound = now, s.Round
	return true
}

// Clear takes the rewritten line away, so that other text can follow.
func (p *Printer) Clear() {
	if p.drawn {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.drawn = false
	}
}

// Line is one line of text about s; bar adds a drawing of the round.
func Line(s migration.Progress, bar bool) string {
	if s.Phase != migration.PhaseCopy || s.Round == 0 {
		return fmt.Sprintf("%-10s %6.1f s", plain.Line(string(s.Phase)), s.Elapsed.Seconds())
	}
	var b strings.Builder
	part := share(s)
	fmt.Fprintf(&b, "round %-3d ", s.Round)
	if bar {
		b.WriteString(drawing(part, barWidth))
	}
	fmt.Fprintf(&b, "%3.0f%% of %d pages  %s", part*100, s.RoundPages, units.FormatBytes(float64(s.WireBytes)))
	if s.Bandwidth > 0 {
		fmt.Fprintf(&b, "  %s", units.FormatRate(s.Bandwidth))
	}
	if text := left(s); text != "" {
		fmt.Fprintf(&b, "  %s", text)
	}
	if s.EstDowntime > 0 {
		fmt.Fprintf(&b, "  downtime %s, limit %s", short(s.EstDowntime), short(s.DowntimeLimit))
	}
	if s.Duty < 100 {
		fmt.Fprintf(&b, "  guest at %d%%", s.Duty)
	}
	if s.DirtyLimit > 0 {
		fmt.Fprintf(&b, "  each vCPU dirties at most %s", units.FormatRate(float64(s.DirtyLimit)*policy.PageSize))
	}
	return b.String()
}

// fit is the most of Line that a terminal of so many columns shows whole. What
// changes most stays longest.
func fit(s migration.Progress, columns int) string {
	lines := []string{Line(s, true), Line(s, false)}
	if s.Phase == migration.PhaseCopy && s.Round > 0 {
		part, time := share(s), left(s)
		if time != "" {
			time = "  " + time
		}
		for _, time := range []string{time, ""} {
			for _, bar := range []string{drawing(part, barWidth/2), drawing(part, barWidth/4), ""} {
				lines = append(lines, fmt.Sprintf("round %d %s%.0f%%%s", s.Round, bar, part*100, time))
			}
		}
	}
	for _, line := range lines {
		if len([]rune(line)) <= columns {
			return line
		}
	}
	last := []rune(lines[len(lines)-1])
	return string(last[:max(columns, 0)])
}

// drawing is a bar of so many characters, and a space.
func drawing(part float64, width int) string {
	full := int(part * float64(width))
	return "[" + strings.Repeat("#", full) + strings.Repeat(".", width-full) + "] "
}

// left says about how long copying goes on, "" where that is not known.
func left(s migration.Progress) string {
	switch {
	case s.EstLeft == migration.NeverLeft:
		return "rounds get no shorter"
	case s.EstLeft <= 0:
		return ""
	case s.EstLeft < time.Minute:
		return fmt.Sprintf("%.0f s left", max(s.EstLeft.Seconds(), 1))
	}
	return s.EstLeft.Round(time.Second).String() + " left"
}

// share is how much of the round has been sent, 0 to 1.
func share(s migration.Progress) float64 {
	if s.RoundPages == 0 {
		return 0
	}
	return min(float64(s.SentPages)/float64(s.RoundPages), 1)
}

func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%.3g ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}
