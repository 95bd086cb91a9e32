package metronome_test

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/boot/metronome"
	"godwit/migration"
	"godwit/vmm"
)

// host is a process with mounts and a network of its own, in which the shared
// folder is somewhere else than in the other's.
type host struct {
	*process
	folder string
}

func (s *scene) host(shared string) *host {
	s.t.Helper()
	h := &host{process: s.spawnIn(&syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET}), folder: s.t.TempDir()}
	h.tell("Mount", [2]string{shared, h.folder}, nil)
	return h
}

func (h *host) at(path string) string { return filepath.Join(h.folder, filepath.Base(path)) }

// TestSharedFolder moves a guest with a disk back and forth between two hosts that
// share a folder. Whoever tries to lock the disk, at any phase, finds it locked;
// only while it changes hands nobody has it. (A kernel with NFS would make the
// folder more real; the lock is the same F_OFD_SETLK.)
func TestSharedFolder(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can make mount namespaces")
	}
	for _, f := range diskFormats {
		t.Run(f.name, func(t *testing.T) {
			s, shared := newScene(t), t.TempDir()
			cfg := guest(2, 128, diskLoad)
			d := f.drive(t, shared)
			path := d.PathOnHost
			here, there := s.host(shared), s.host(shared)
			_, err := os.Stat(here.at(path))
			require.ErrorIs(t, err, os.ErrNotExist, "only that host sees it there")
			d.PathOnHost = here.at(path)
			cfg.Drives = []vmm.Drive{d}
			here.boot(cfg)
			var l metronome.IOLine
			for range shortOr(4, 20) {
				here.tell("Load", l.Flushed+50, &l)
				require.Zero(t, l.Bad)
				here.refuses(there, path)
				here.handOver(there, path)
				here, there = there, here
			}
			here.tell("Load", l.Flushed+50, &l)
			here.healthy()
			require.Zero(t, here.info().IOBad)
			here.tell("Drop", 0, nil)
			f.check(t, path, l.Flushed, false)
		})
	}
}

// handOver moves the guest, with a third party that tries at each phase.
func (h *host) handOver(to *host, path string) {
	t := h.s.t
	t.Helper()
	addr, arrival := to.receive(ReceiveArgs{Disks: map[string]string{"data": to.at(path)}, Probe: to.at(path), Silence: patience})
	sent, received := <-h.start("Send", SendArgs{Addr: addr, Probe: h.at(path), Silence: patience}), <-arrival
	require.NotNil(t, sent)
	require.NotNil(t, received)
	require.Empty(t, sent.Err)
	require.Empty(t, received.Err)
	for _, phase := range []migration.Phase{
		migration.PhaseConnect, migration.PhaseConfigure, migration.PhaseCopy, migration.PhasePause, migration.PhaseLastPages,
		migration.PhaseState, migration.PhaseCommitted, migration.PhaseCleanUp, migration.PhaseCompleted,
	} {
		require.Equal(t, probeLocked, sent.Probes[phase], "at the source, %s", phase)
	}
	require.Equal(t, probeFree, sent.Probes[migration.PhasePrepare], "the source has given it up")
	for _, phase := range []migration.Phase{
		migration.PhaseConnect, migration.PhaseConfigure, migration.PhaseCopy,
		migration.PhaseReady, migration.PhaseCommitted, migration.PhaseCompleted,
	} {
		require.Equal(t, probeLocked, received.Probes[phase], "at the destination, %s", phase)
	}
	h.tell("Drop", 0, nil)
}

// refuses shows that a destination does not take a disk that only looks like the
// source's.
func (h *host) refuses(to *host, path string) {
	t := h.s.t
	t.Helper()
	other := copyImage(t, path)
	a := h.s.attempt(h.process, to.process, SendArgs{}, ReceiveArgs{Disks: map[string]string{"data": other}}, nil)
	sent := <-a.sent
	require.NotNil(t, sent)
	require.Contains(t, sent.Err, "does not hold the lock")
	to.tell("Hangup", 0, nil)
	received := <-a.received
	require.NotNil(t, received)
	require.Contains(t, received.Err, "does not hold the lock")
	require.Equal(t, vmm.StateRunning.String(), h.state())
}

// thief takes the lock at the moment in which nobody has it, and gives it back
// after the source has asked for it once.
type thief struct {
	migration.Source
	path            string
	file            blockfile.File
	refused, locked error
	meanwhile       func()
}

func (s *thief) Release() error {
	err := s.Source.Release()
	// Opened only now: a lock is refused to who opened an image that grew since.
	if s.file, s.locked = blockfile.Open(s.path, blockfile.Options{NoLock: true}); s.locked == nil {
		s.locked = s.file.Lock()
	}
	return err
}

func (s *thief) Reclaim() error {
	err := s.Source.Reclaim()
	if s.refused == nil && err != nil {
		s.refused = err
		s.meanwhile()
		return errors.Join(err, s.file.Unlock())
	}
	return err
}

// TestLockTakenByAThird: while somebody else has the disk the guest runs nowhere,
// neither at the destination nor, again, at the source. When he is gone it runs on
// at the source.
func TestLockTakenByAThird(t *testing.T) {
	t.Parallel()
	for _, f := range diskFormats {
		t.Run(f.name, func(t *testing.T) {
			cfg := guest(1, 128, diskLoad)
			cfg.Drives = []vmm.Drive{f.drive(t, t.TempDir())}
			path := cfg.Drives[0].PathOnHost
			c := bootHere(t, cfg)
			l, err := c.out.load(deadline(t), "blk", flushedPast(50))
			require.NoError(t, err)
			state := vmm.StateRunning
			th := &thief{path: path, meanwhile: func() {
				state = c.m.State()
				require.NoError(t, verifyDisk(t, f.raw(t, path), l.Flushed).Err(), "the third party has a whole disk")
			}}
			_, _, err = c.move(route{
				disks: map[string]string{"data": path},
				source: func(s migration.Source) migration.Source {
					th.Source = s
					return th
				},
			})
			require.NoError(t, th.locked)
			require.NoError(t, th.file.Close())
			require.ErrorContains(t, err, "take over disks")
			require.ErrorIs(t, th.refused, blockfile.ErrLocked)
			require.Equal(t, vmm.StatePaused, state)
			require.Equal(t, vmm.StateRunning, c.m.State())
			_, err = c.out.load(deadline(t), "blk", flushedPast(l.Flushed+200))
			require.NoError(t, err)
			require.Zero(t, c.info().IOBad)
		})
	}
}
