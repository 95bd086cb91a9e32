package api

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
	"godwit/migration/sim"
	"godwit/vmm"
)

func TestSaveAndResume(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "saved")
	var phases []migration.Phase
	st, err := r.c.Migrate(ctx, MigrationRequest{To: "file:" + path, Keep: true, Verify: true}, func(s MigrationStatus) {
		if n := len(phases); n == 0 || phases[n-1] != s.Progress.Phase {
			phases = append(phases, s.Progress.Phase)
		}
	})
	require.NoError(t, err)
	require.Equal(t, migration.Completed, st.Report.Status, st.Report.Error)
	require.True(t, st.Progress.Done)
	require.Equal(t, migration.PhasePrepare, phases[len(phases)-1])
	require.False(t, r.vm.hasMoved())
	info, err := r.c.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, GuestFile, info.LastMigration.Guest)
	_, err = r.c.Migrate(ctx, MigrationRequest{To: "file:" + path}, nil)
	refused(t, err, 409, "resume it first")
	refused(t, r.c.CancelMigration(ctx), 409, "no migration is running")

	// The file is whole, and its disk free.
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	require.NoError(t, r.c.Resume(ctx, false))
	require.NoError(t, r.vm.sim.Resume())
	info, err = r.c.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, GuestHere, info.LastMigration.Guest)
	require.Contains(t, info.LastMigration.Text, "does not fit its disks")
	require.NoError(t, r.vm.sim.Unharmed())
	world := sim.NewWorld() // another host, later
	target, rep, err := migration.Restore(ctx, f, sim.NewHost(world).Build, migration.ReceiveOptions{})
	require.NoError(t, err)
	require.Equal(t, st.Report.Verify.Source, rep.Verify.Destination)
	require.NoError(t, target.(*sim.Target).Close())
}

func TestSaveMovesAway(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	path := filepath.Join(t.TempDir(), "saved")
	require.NoError(t, os.WriteFile(path, nil, 0o600), "an empty file may be replaced")
	_, err := r.c.Migrate(context.Background(), MigrationRequest{To: "file:" + path}, nil)
	require.NoError(t, err)
	require.True(t, r.vm.hasMoved())
	require.NoError(t, checkSavePath(path), "as may a saved machine")
}

func TestSaveIsCancelled(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	r.gate = make(chan struct{})
	dir := t.TempDir()
	ctx := context.Background()
	require.NoError(t, r.inst.StartMigration(MigrationRequest{To: "file:" + filepath.Join(dir, "saved")}))
	rate := int64(1e6)
	refused(t, r.c.UpdateMigration(ctx, MigrationUpdate{Bandwidth: &rate}), 409, "cannot be retuned")
	cancelled := make(chan error)
	go func() { cancelled <- r.c.CancelMigration(ctx) }()
	mv, err := r.inst.last()
	require.NoError(t, err)
	<-mv.session.(*save).ctx.Done()
	close(r.gate)
	require.NoError(t, <-cancelled)
	st, err := r.c.Migration(ctx)
	require.NoError(t, err)
	require.Equal(t, migration.Cancelled, st.Report.Status)
	require.NoError(t, r.vm.sim.Unharmed())
	require.Equal(t, vmm.StateRunning, r.vm.State())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
}

// Each way to end is told once, to whoever runs the machine and to whoever asks.
func TestNotes(t *testing.T) {
	broken := errors.New("it broke")
	after := time.Now().Add(time.Hour)
	file, peer := Address{"file", "/x"}, Address{"tcp", "h:1"}
	for _, c := range []struct {
		name  string
		to    Address
		keep  bool
		err   error
		guest string
		says  string
	}{
		{"moved", peer, false, nil, GuestDestination, "the guest runs at tcp:h:1 now"},
		{"moved, kept", peer, true, nil, GuestDestination, "until godwit stop"},
		{"saved", file, false, nil, GuestFile, "godwit receive --listen file:/x"},
		{"saved, kept", file, true, nil, GuestFile, "godwit resume"},
		{"failed", peer, false, broken, GuestHere, "the guest runs on here: it broke"},
		{"disk lost", peer, false, migration.ErrStaysPaused, GuestPaused, "godwit resume"},
		{"not taken", peer, false, &migration.OutcomeError{Known: true, Err: broken}, GuestPaused, "at once"},
		{"unknown", peer, false, &migration.OutcomeError{ForceAfter: after, Err: broken}, GuestUnknown, "--force"},
	} {
		var told []Note
		v := &move{to: c.to, keep: c.keep, err: c.err, report: &migration.Report{Status: migration.Failed}, onNote: func(n Note) { told = append(told, n) }}
		v.tellNote()
		require.Len(t, told, 1, c.name)
		require.Equal(t, c.guest, told[0].Guest, c.name)
		require.Contains(t, told[0].Text, c.says, c.name)
		require.Equal(t, c.guest == GuestUnknown, told[0].ForceAfter != nil, c.name)
	}
}

// A machine that is stopped does not wait for a resume that waits for a lease.
func TestStopEndsAForcedResume(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	r.vm.set(vmm.StatePaused)
	done := make(chan struct{})
	close(done)
	r.inst.move = &move{to: Address{"tcp", "h:1"}, machine: r.vm, done: done,
		err: &migration.OutcomeError{ForceAfter: time.Now().Add(time.Hour), Err: errors.New("silence")}}
	resumed := make(chan error)
	go func() { resumed <- r.c.Resume(context.Background(), true) }()
	r.vm.sim.End(errors.New("stopped"))
	refused(t, <-resumed, 409, "no machine")
	r.inst.move = nil
}

// Close waits neither for who has not asked anything nor for who waits long.
func TestCloseIsPrompt(t *testing.T) {
	r := newRig(t)
	path := r.path + "2"
	inst := NewInstance("vm", nil)
	s, err := Listen(path, inst)
	require.NoError(t, err)
	inst.Set("vm", r.vm)
	r.vm.set(vmm.StatePaused)
	done := make(chan struct{})
	close(done)
	inst.move = &move{to: Address{"tcp", "h:1"}, machine: r.vm, done: done,
		err: &migration.OutcomeError{ForceAfter: time.Now().Add(time.Hour), Err: errors.New("silence")}}
	silent, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer silent.Close()
	var clients sync.WaitGroup
	clients.Go(func() {
		if NewClient(path).Resume(context.Background(), true) == nil {
			t.Error("it was resumed")
		}
	})
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.busy) > 0
	}, time.Minute, time.Millisecond)
	require.NoError(t, s.Close(time.Hour))
	select {
	case <-s.idle: // it ended by itself, not with its time
	default:
		t.Error("a request is still under way")
	}
	clients.Wait()
}

// A source whose disks cannot be had again stays paused and says so; when they
// can, resume does it.
func TestStaysPausedUntilTheDiskIsFree(t *testing.T) {
	r := newRig(t)
	r.inst.Set("vm", r.vm)
	ctx := context.Background()
	busy := errors.New("somebody has the disk")
	r.vm.sim.Fail("Release", busy)
	r.vm.sim.Fail("Reclaim", busy)
	st, err := r.c.Migrate(ctx, MigrationRequest{To: "file:" + filepath.Join(t.TempDir(), "saved")}, nil)
	require.NoError(t, err)
	require.Equal(t, migration.Failed, st.Report.Status)
	require.Contains(t, st.Report.Error, migration.ErrStaysPaused.Error())
	info, err := r.c.Info(ctx)
	require.NoError(t, err)
	require.Equal(t, GuestPaused, info.LastMigration.Guest)
	refused(t, r.c.Resume(ctx, false), 409, "take the disks back")
	require.Equal(t, vmm.StatePaused, r.vm.State())
	r.vm.sim.Fail("Reclaim", nil)
	require.NoError(t, r.c.Resume(ctx, false))
	require.Equal(t, vmm.StateRunning, r.vm.State())
	require.NoError(t, r.vm.sim.Resume())
	require.NoError(t, r.vm.sim.Unharmed())
}

// What is said of the guest follows its machine's state.
func TestWhereTheGuestIsLeft(t *testing.T) {
	for name, c := range map[string]struct {
		err         error
		left        vmm.State
		paused      bool
		guest, says string
	}{
		"moved running":          {nil, vmm.StatePaused, false, GuestDestination, "the guest runs at tcp:h:1 now"},
		"moved paused":           {nil, vmm.StatePaused, true, GuestDestination, "the guest is at tcp:h:1 now, paused as it was here"},
		"failed, runs":           {io.EOF, vmm.StateRunning, false, GuestHere, "the guest runs on here: EOF"},
		"failed, was paused":     {io.EOF, vmm.StatePaused, true, GuestHere, "the guest is here, paused as before: EOF"},
		"failed, disk is full":   {io.EOF, vmm.StatePaused, false, GuestHere, "paused; godwit resume"},
		"failed, guest ended":    {io.EOF, vmm.StateEnded, false, GuestEnded, "the guest has ended here: EOF"},
		"failed, machine closed": {io.EOF, vmm.StateClosed, true, GuestEnded, "the guest has ended here: EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			v := &move{to: Address{"tcp", "h:1"}, err: c.err, left: c.left, paused: c.paused, report: &migration.Report{Status: migration.Failed}}
			n := v.note()
			require.Equal(t, c.guest, n.Guest)
			require.Contains(t, n.Text, c.says)
			require.Equal(t, c.guest == GuestHere && c.left == vmm.StateRunning, strings.Contains(n.Text, "runs on here"))
		})
	}
}
