package vmm

import (
	"bytes"
	"context"
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/devices/state"
	"godwit/kvm"
	"godwit/migration"
	"godwit/migration/policy"
)

// snapshot is what KVM holds of a machine, but for the values of its clocks.
func snapshot(t *testing.T, m *Machine) []byte {
	var b bytes.Buffer
	w := state.NewWriter(&b)
	var vcpus []state.Saver
	for _, v := range m.vcpus {
		s, err := v.readState()
		require.NoError(t, err)
		s.MSRs = slices.DeleteFunc(s.MSRs, func(e kvm.MSREntry) bool { return e.Index == msrTSC })
		vcpus = append(vcpus, &vcpuSaver{v: v, s: s})
	}
	for _, p := range m.savers(vcpus) {
		switch p.(type) {
		case *vcpuSaver, chipSaver:
			require.NoError(t, w.WriteSaver(p))
		}
	}
	require.NoError(t, w.Close())
	return b.Bytes()
}

// A machine that has rehearsed is as fresh as before, its TSC's offset included,
// and says how long that took.
func TestRehearseLeavesTheTargetFresh(t *testing.T) {
	for _, cpus := range []int{1, 4} {
		cfg := metronomeConfig("fill=16 ws=8 rate=1000 beat=50")
		cfg.Machine.VCPUCount = cpus
		m, _ := start(t, cfg)
		config, err := m.Source().Config()
		require.NoError(t, err)
		built, err := BuildTarget(Incoming{}, nil)(t.Context(), migration.Offer{Config: config})
		require.NoError(t, err)
		tg := built.(*target)
		t.Cleanup(func() { require.NoError(t, tg.Abort()) })
		before := snapshot(t, tg.m)
		clock, err := tg.m.vm.Clock()
		require.NoError(t, err)
		took, err := tg.Rehearse()
		require.NoError(t, err)
		require.Positive(t, took)
		t.Logf("%d vCPUs in %v", cpus, took)
		require.Equal(t, before, snapshot(t, tg.m))
		later, err := tg.m.vm.Clock()
		require.NoError(t, err)
		require.GreaterOrEqual(t, later.Clock, clock.Clock)
		require.Equal(t, StateBuilt, tg.m.State())
		require.False(t, tg.m.tscAligned)
	}
}

// A machine that has run is past rehearsing.
func TestRehearseOnlyWhenFresh(t *testing.T) {
	m, _ := start(t, metronomeConfig("fill=16 ws=8 rate=1000 beat=50"))
	_, err := (&target{m}).Rehearse()
	require.ErrorIs(t, err, ErrState)
}

// The rule "measured" moves a real guest: it stands still once more for the
// rehearsal, and the report has the promise beside what happened.
func TestMeasuredMove(t *testing.T) {
	for cpus, tracker := range map[int]string{1: TrackerLog, 2: TrackerRing} {
		cfg := metronomeConfig("fill=64 ws=16 rate=5000 beat=50")
		cfg.Machine.VCPUCount, cfg.Machine.Tracker = cpus, tracker
		m, out := start(t, cfg)
		before := lastBeat(t, out, 2)
		stop, err := policy.Stops.Parse("measured")
		require.NoError(t, err)
		_, rep := move(t, m, migration.SendOptions{Verify: true, Policies: policy.Set{Stop: stop}}, out)
		js, err := json.Marshal(rep)
		require.NoError(t, err)
		t.Logf("%s", js)
		p := rep.Promise
		require.NotNil(t, p)
		for _, part := range []float64{p.PauseMS, p.PagesMS, p.StateMS, p.ResumeMS} {
			require.Positive(t, part)
		}
		require.InDelta(t, p.DowntimeMS, p.PauseMS+p.PagesMS+p.StateMS+p.ResumeMS, 1e-3)
		decided := rep.Rounds[len(rep.Rounds)-2]
		require.True(t, p.DowntimeMS <= 30 || decided.DirtyPages == 0 || decided.N == policy.DefaultMaxRounds,
			"paused after round %d with a promise of %v ms", decided.N, p.DowntimeMS)
		require.Equal(t, rep.Verify.Source, rep.Verify.Destination)
		after := lastBeat(t, out, 3)
		require.Greater(t, after.Writes, before.Writes)
		require.Zero(t, after.Bad)
	}
}

// A machine that its operator has paused stays paused through the rehearsal, and
// arrives paused.
func TestMeasuredMoveOfAPausedMachine(t *testing.T) {
	m, out := start(t, metronomeConfig("fill=16 ws=8 rate=1000 beat=50"))
	lastBeat(t, out, 2)
	require.NoError(t, m.Pause(context.Background()))
	before, err := m.Info()
	require.NoError(t, err)
	next, rep := move(t, m, migration.SendOptions{Verify: true, Policies: policy.Set{Stop: policy.Measured{MaxRounds: 3, Watch: time.Millisecond}}}, out)
	require.NotNil(t, rep.Promise)
	require.Zero(t, rep.Promise.PagesPerSecond)
	require.Equal(t, StatePaused, next.State())
	after, err := m.Info()
	require.NoError(t, err)
	require.Equal(t, before.Exits, after.Exits, "no vCPU ran meanwhile")
	require.NoError(t, next.Resume())
	lastBeat(t, out, 3)
}
