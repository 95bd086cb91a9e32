package progress

import (
	"bytes"
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
