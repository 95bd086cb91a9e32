package progress

import (
	"fmt"
	"io"
	"strings"
	"time"

	"godwit/cmd/godwit/internal/units"
	"godwit/migration"
)

// barWidth is the bar's length in characters.
const barWidth = 24

// Printer shows progress. It is for one goroutine.
type Printer struct {
	w        io.Writer
	terminal bool
	width    func() int // columns; nil for 80

	drawn     bool // a line stands that must be cleared
	lastLine  time.Time
	lastPhase migration.Phase
	lastRound int
}

// New makes a Printer. width gives the terminal's columns, and is nil where w
// is no terminal.
func New(w io.Writer, width func() int) *Printer {
	return &Printer{w: w, terminal: width != nil, width: width}
}

// Show tells how the migration stands.
func (p *Printer) Show(s migration.Progress) {
	if s.Done {
		p.Clear()
		return
	}
	if p.terminal {
		line := Line(s, true)
		if most := p.width() - 1; most > 0 && len([]rune(line)) > most {
			line = string([]rune(line)[:most])
		}
		fmt.Fprintf(p.w, "\r%s\x1b[K", line)
		p.drawn = true
		return
	}
	news := s.Phase != p.lastPhase || s.Round != p.lastRound
	if now := time.Now(); news || now.Sub(p.lastLine) >= time.Second {
		p.lastPhase, p.lastRound, p.lastLine = s.Phase, s.Round, now
		fmt.Fprintln(p.w, Line(s, false))
	}
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
	var b strings.Builder
	if s.Phase != migration.PhaseCopy || s.Round == 0 {
		fmt.Fprintf(&b, "%-10s %6.1f s", s.Phase, s.Elapsed.Seconds())
		return b.String()
	}
	part := share(s)
	fmt.Fprintf(&b, "round %-3d ", s.Round)
	if bar {
		full := int(part * barWidth)
		fmt.Fprintf(&b, "[%s%s] ", strings.Repeat("#", full), strings.Repeat(".", barWidth-full))
	}
	fmt.Fprintf(&b, "%3.0f%%  %s", part*100, units.FormatBytes(float64(s.WireBytes)))
	if s.Bandwidth > 0 {
		fmt.Fprintf(&b, "  %s", units.FormatRate(s.Bandwidth))
	}
	if s.EstDowntime > 0 {
		fmt.Fprintf(&b, "  downtime %s, limit %s", short(s.EstDowntime), short(s.DowntimeLimit))
	}
	if s.Duty < 100 {
		fmt.Fprintf(&b, "  guest at %d%%", s.Duty)
	}
	return b.String()
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
