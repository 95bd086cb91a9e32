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
	require.Equal(t, "round 2    25% of 400 pages  1.5 GB  2 GB/s  downtime 41 ms, limit 30 ms", Line(copying, false))
	require.Equal(t, "round 2   [######..................]  25% of 400 pages  1.5 GB  2 GB/s  downtime 41 ms, limit 30 ms", Line(copying, true))
	slow := copying
	slow.Duty, slow.SentPages, slow.EstDowntime = 40, 9999, 2*time.Second
	require.Equal(t, "round 2   100% of 400 pages  1.5 GB  2 GB/s  downtime 2 s, limit 30 ms  guest at 40%", Line(slow, false))
	held := copying
	held.DirtyLimit = 4882
	require.Equal(t, "round 2    25% of 400 pages  1.5 GB  2 GB/s  downtime 41 ms, limit 30 ms  each vCPU dirties at most 20 MB/s", Line(held, false))
	require.Equal(t, "connect       0.5 s", Line(migration.Progress{Phase: migration.PhaseConnect, Elapsed: time.Second / 2}, true))
	require.Equal(t, "round 1     0% of 0 pages  0 B", Line(migration.Progress{Phase: migration.PhaseCopy, Round: 1, Duty: 100}, false))
}

func TestPlainLines(t *testing.T) {
	var out bytes.Buffer
	p := New(&out, nil)
	var now time.Time
	p.now = func() time.Time { return now }
	show := func(after time.Duration, s migration.Progress, want string) {
		t.Helper()
		now = now.Add(after)
		out.Reset()
		p.Show(s)
		require.Equal(t, want, out.String())
	}
	at := func(phase migration.Phase) migration.Progress { return migration.Progress{Phase: phase} }
	now = time.Unix(0, 0)
	for _, quick := range []migration.Phase{migration.PhaseIdle, migration.PhaseConnect, migration.PhaseConfigure, migration.PhaseCopy} {
		show(time.Millisecond, at(quick), "")
	}
	show(time.Millisecond, copying, Line(copying, false)+"\n")
	show(time.Millisecond, copying, "")
	next := copying
	next.Round = 3
	show(time.Millisecond, next, Line(next, false)+"\n")
	show(900*time.Millisecond, next, "")
	show(200*time.Millisecond, next, Line(next, false)+"\n")
	show(time.Millisecond, at(migration.PhasePause), "")
	show(400*time.Millisecond, at(migration.PhasePause), "")
	show(time.Second, at(migration.PhasePause), "pause         0.0 s\n")
	show(time.Second, migration.Progress{Done: true}, "")
}

func TestTimeLeft(t *testing.T) {
	for text, left := range map[string]time.Duration{
		"": 0, "1 s left": time.Millisecond, "12 s left": 12 * time.Second, "1m30s left": 90 * time.Second,
		"rounds get no shorter": migration.NeverLeft,
	} {
		s := copying
		s.EstLeft = left
		want := "round 2    25% of 400 pages  1.5 GB  2 GB/s  downtime"
		if text != "" {
			want = "round 2    25% of 400 pages  1.5 GB  2 GB/s  " + text + "  downtime"
		}
		require.True(t, strings.HasPrefix(Line(s, false), want), Line(s, false))
	}
}

// A line never wraps, whatever the width, and what is shown is whole.
func TestTerminalLineFitsAndGoes(t *testing.T) {
	slow := copying
	slow.EstLeft, slow.Duty, slow.DirtyLimit = 12*time.Second, 40, 4882
	for columns, want := range map[int]string{
		200: "round 2   [######..................]  25% of 400 pages  1.5 GB  2 GB/s  12 s left  downtime 41 ms, limit 30 ms  guest at 40%  each vCPU dirties at most 20 MB/s",
		140: "round 2    25% of 400 pages  1.5 GB  2 GB/s  12 s left  downtime 41 ms, limit 30 ms  guest at 40%  each vCPU dirties at most 20 MB/s",
		80:  "round 2 [###.........] 25%  12 s left",
		32:  "round 2 [#.....] 25%  12 s left",
		30:  "round 2 25%  12 s left",
		22:  "round 2 [#.....] 25%",
		24:  "round 2 25%  12 s left",
		12:  "round 2 25%",
		6:   "round",
		1:   "",
		0:   "",
	} {
		var out bytes.Buffer
		p := New(&out, func() int { return columns })
		p.Show(slow)
		require.Equal(t, "\r"+want+"\x1b[K", out.String(), "%d columns", columns)
		out.Reset()
		p.Show(migration.Progress{Done: true})
		p.Clear()
		require.Equal(t, "\r\x1b[K", out.String())
	}
}
