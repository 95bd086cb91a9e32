package metronome_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm/guestmem"
	"godwit/migration"
	"godwit/vmm"
)

// onFile is cfg with memory that can be handed over.
func onFile(cfg vmm.Config) vmm.Config {
	cfg.Machine.MemoryBacking = guestmem.Memfd.String()
	return cfg
}

// A guest under load is handed back and forth between two processes: its memory
// is one file from the first to the last, and the guest finds no page wrong.
func TestHandedBackAndForth(t *testing.T) {
	s := newScene(t)
	here, there := s.spawn(), s.spawn()
	here.boot(onFile(guest(2, 1<<10, "fill=128 ws=64 rate=20000 beat=20 reads=20")))
	var table strings.Builder
	fmt.Fprintf(&table, "\n%4s %8s %6s %6s %6s %6s %6s %8s\n", "move", "total ms", "setup", "down", "pause", "state", "resume", "verified")
	for i := range shortOr(50, 500) {
		before := here.info()
		sent, received := here.move(there, SendArgs{Local: true, Verify: i%5 == 0})
		here, there = there, here
		require.True(t, sent.Report.Local)
		require.True(t, received.Report.Local)
		require.Zero(t, sent.Report.WireBytes)
		here.first(3)
		after := here.info()
		require.Greater(t, writes(after), writes(before))
		require.Zero(t, after.Bad, "%+v", after.Kinds)
		r := sent.Report
		fmt.Fprintf(&table, "%4d %8.1f %6.1f %6.1f %6.1f %6.1f %6.1f %8v\n", i+1, r.TotalMS, r.SetupMS, r.DowntimeMS,
			r.DowntimePhases.PauseMS, r.DowntimePhases.StateMS, r.DowntimePhases.ResumeMS, r.Verify != nil)
	}
	t.Log(table.String())
	sweeps := here.info().Sweeps
	for here.info().Sweeps < sweeps+2 {
		here.beats(1)
	}
	here.healthy()
}

// As TestKilledAtEveryPhase. That the two processes share the memory changes
// nothing: who dies takes his mapping with him, and the other one's stays.
func TestKilledAtEveryPhaseOfAHandOver(t *testing.T) {
	t.Parallel()
	sources := []killed{
		{Moment{migration.PhaseConnect, 0}, []end{lost}}, {Moment{migration.PhaseConfigure, 0}, []end{lost}},
		{Moment{migration.PhasePause, 0}, []end{lost}}, {Moment{migration.PhaseState, 0}, []end{lost}},
		{Moment{migration.PhasePrepare, 0}, []end{lost}}, {Moment{migration.PhaseCommitted, 0}, []end{moved, lost}},
		{Moment{migration.PhaseCleanUp, 0}, []end{moved}},
	}
	destinations := []killed{
		{Moment{migration.PhaseConnect, 0}, []end{runsOn}}, {Moment{migration.PhaseConfigure, 0}, []end{runsOn}},
		{Moment{migration.PhaseState, 0}, []end{runsOn}}, {Moment{migration.PhasePrepare, 0}, []end{runsOn}},
		{Moment{migration.PhaseReady, 0}, []end{runsOn}}, {Moment{migration.PhaseCommitted, 0}, []end{forced}},
		{Moment{migration.PhaseCompleted, 0}, []end{lost}},
	}
	how := SendArgs{Local: true}
	c := couple{s: newScene(t), cfg: onFile(victim), how: SendArgs{Local: true, Verify: true}}
	c.killAt(sources, destinations, how)
}
