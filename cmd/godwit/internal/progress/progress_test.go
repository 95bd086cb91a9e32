package progress

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
)

var copying = migration.Progress{Phase: migration.PhaseCopy, Round: 2, RoundPages: 400, SentPages: 100, WireBytes: 1.5e9,
	Bandwidth: 2e9, EstDowntime: 41 * time.Millisecond, DowntimeLimit: 30 * time.Millisecond, Duty: 100}

func TestLine(t *testing.T) {
	require.Equal(t, "round 2    25%  1.5 GB  2 GB/s  downtime 41 ms, limit 30 ms", Line(copying, false))
	require.Equal(t, "round 2   [######..................]  25%  1.5 GB  2 GB/s  downtime 41 ms, limit 30 ms", Line(copying, true))
	slow := copying
	slow.Duty, slow.SentPages, slow.EstDowntime = 40, 9999, 2*time.Second
	require.Equal(t, "round 2   100%  1.5 GB  2 GB/s  downtime 2 s, limit 30 ms  guest at 40%", Line(slow, false))
	require.Equal(t, "connect       0.5 s", Line(migration.Progress{Phase: migration.PhaseConnect, Elapsed: time.Second / 2}, true))
	require.Equal(t, "round 1     0%  0 B", Line(migration.Progress{Phase: migration.PhaseCopy, Round: 1, Duty: 100}, false))
}

func TestPlainLinesOncePerRound(t *testing.T) {
	var out bytes.Buffer
	p := New(&out, nil)
	for range 10 {
		p.Show(copying)
	}
	next := copying
	next.Round = 3
	p.Show(next)
	p.Show(migration.Progress{Done: true})
	require.LessOrEqual(t, strings.Count(out.String(), "\n"), 3, "two, and one more if the test was held for a second")
	require.NotContains(t, out.String(), "\x1b")
}

func TestTerminalLineFitsAndGoes(t *testing.T) {
	var out bytes.Buffer
	p := New(&out, func() int { return 20 })
	p.Show(copying)
	require.Equal(t, "\rround 2   [######..\x1b[K", out.String())
	out.Reset()
	p.Show(migration.Progress{Done: true})
	p.Clear()
	require.Equal(t, "\r\x1b[K", out.String())
}
