package vmm

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/blockfile"
	"godwit/migration"
)

// withDisk is a paused machine with a writable disk that it has released.
func withDisk(t *testing.T) (m *Machine, path string) {
	path = filepath.Join(t.TempDir(), "d.img")
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	m, err := New(Config{ID: "web", Machine: MachineConfig{MemSizeMiB: 64}, BootSource: BootSource{Guest: GuestMetronome},
		Drives: []Drive{{ID: "d0", PathOnHost: path}}}, Options{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	require.NoError(t, m.Start())
	src := m.Source()
	require.NoError(t, src.Pause(context.Background()))
	require.NoError(t, src.Release())
	return m, path
}

// A guest whose disk others took or wrote since it left does not run over it,
// unless that is said aloud.
func TestStaleMemory(t *testing.T) {
	open := func(t *testing.T, path string) blockfile.Historian {
		f, err := blockfile.Open(path, blockfile.Options{})
		require.NoError(t, err)
		t.Cleanup(func() { _ = f.Close() })
		return f.(blockfile.Historian)
	}
	for name, c := range map[string]struct {
		meanwhile func(t *testing.T, path string)
		says      string
	}{
		"nobody came": {func(*testing.T, string) {}, ""},
		"it was read": {func(t *testing.T, path string) {
			f := open(t, path)
			_, err := f.Preadv([][]byte{make([]byte, 512)}, 0)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}, ""},
		"it was taken": {func(t *testing.T, path string) {
			f := open(t, path)
			require.NoError(t, f.SetMark(`{"machine":"b","host":"h2","pid":7,"time":"2026-12-01T00:00:00Z","take":"x"}`))
			require.NoError(t, f.Close())
		}, `the machine "b" (process 7 on host "h2") took it at 2026-12-01`},
		"it has a mark of another kind": {func(t *testing.T, path string) {
			f := open(t, path)
			require.NoError(t, f.SetMark("\x1b[31m"))
			require.NoError(t, f.Close())
		}, `is "\x1b[31m" now`},
		"it was written": {func(t *testing.T, path string) {
			f := open(t, path)
			require.Eventually(t, func() bool { // the clock of a file system ticks slowly
				before, err := f.History()
				require.NoError(t, err)
				_, err = f.Pwritev([][]byte{make([]byte, 512)}, 0)
				require.NoError(t, err)
				after, err := f.History()
				require.NoError(t, err)
				return after.Modified != before.Modified
			}, time.Minute, time.Millisecond)
			require.NoError(t, f.Close())
		}, "it was written at"},
	} {
		t.Run(name, func(t *testing.T) {
			m, path := withDisk(t)
			c.meanwhile(t, path)
			if c.says != "" {
				for range 2 { // however often one tries
					err := m.TakeBack(false, false)
					require.ErrorIs(t, err, ErrStaleMemory)
					require.ErrorContains(t, err, c.says)
					require.ErrorContains(t, err, "--force-stale")
					require.Error(t, m.Resume(), "it has not got its disks")
				}
				require.NoError(t, open(t, path).Close(), "the lock is free again")
			}
			require.NoError(t, m.TakeBack(true, c.says != ""))
			require.NoError(t, m.Resume())
		})
	}
}

// Where nobody can tell, a resume that must be certain is refused.
func TestUnknownHistory(t *testing.T) {
	var was departure
	require.NoError(t, was.unchanged(blockfile.History{}, false))
	require.ErrorContains(t, was.unchanged(blockfile.History{}, true), "--force-stale")
}

// A guest that ran at a destination is not resumed at its source after that has
// ended, whether or not it wrote there.
func TestDestinationMarksItsDisks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "d.img")
	require.NoError(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	m, err := New(Config{ID: "web", Machine: MachineConfig{MemSizeMiB: 64}, BootSource: BootSource{Guest: GuestMetronome},
		Drives: []Drive{{ID: "d0", PathOnHost: path}}}, Options{})
	require.NoError(t, err)
	defer m.Close()
	require.NoError(t, m.Start())
	arrived, err := arriveWithDisk(t, m, path)
	require.NoError(t, err)
	require.NoError(t, arrived.Close())
	require.ErrorIs(t, m.TakeBack(true, false), ErrStaleMemory)
	require.NoError(t, m.TakeBack(true, true))
}

func arriveWithDisk(t *testing.T, m *Machine, path string) (arrived *Machine, err error) {
	l, err := netListen(t)
	require.NoError(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		build := BuildTarget(Incoming{Disks: map[string]string{"d0": path}}, func(m *Machine) { arrived = m })
		_, _, err := migration.Receive(context.Background(), migration.AcceptFrom(l), build, migration.ReceiveOptions{Silence: time.Minute})
		done <- err
	}()
	_, err = migration.Send(context.Background(), m.Source(), dialer(l), migration.SendOptions{Silence: time.Minute})
	require.NoError(t, err)
	return arrived, <-done
}

func netListen(t *testing.T) (net.Listener, error) {
	return net.Listen("unix", filepath.Join(t.TempDir(), "s"))
}

func dialer(l net.Listener) migration.Dialer {
	return func(ctx context.Context) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, l.Addr().Network(), l.Addr().String())
	}
}
