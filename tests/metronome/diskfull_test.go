package metronome_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/migration"
	"godwit/vmm"
)

// smallFS is a folder with room for so many MiB.
func smallFS(t *testing.T, mib int) string {
	t.Helper()
	dir := t.TempDir()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm", mib)))
	t.Cleanup(func() { require.NoError(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	return dir
}

func enlarge(t *testing.T, dir string, mib int) {
	t.Helper()
	require.NoError(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%dm", mib)))
}

// fullGuest boots a guest that writes more to its disk than the host has room
// for, and returns when that has paused it.
func fullGuest(t *testing.T, d vmm.Drive) (*copyHere, chan error) {
	t.Helper()
	cfg := guest(1, 128, "beat=50 io=blk,4k,depth=8,write,flush=50,span=4,queues=1")
	cfg.Drives = []vmm.Drive{d}
	full := make(chan error, 64)
	c := &copyHere{t: t, out: newConsole(nil)}
	var err error
	c.m, err = vmm.New(cfg, vmm.Options{Serial: c.out, OnFull: func(err error) { full <- err }})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.m.Close()) })
	require.NoError(t, c.m.Start())
	isFull(t, c.m, full)
	return c, full
}

// isFull waits until a machine is paused for a full disk, and looks at what it
// says of that.
func isFull(t *testing.T, m *vmm.Machine, full chan error) {
	t.Helper()
	select {
	case err := <-full:
		require.ErrorIs(t, err, unix.ENOSPC)
		require.ErrorContains(t, err, `disk "data": no room for`)
	case <-deadline(t).Done():
		require.FailNow(t, "nothing was said of a full disk")
	}
	require.Equal(t, vmm.StatePaused, m.State())
	info, err := m.Info()
	require.NoError(t, err)
	require.Contains(t, info.PausedFor, "no space left on device")
	require.NotZero(t, info.Drives[0].Stats.Parked)
	require.Zero(t, info.Drives[0].Stats.HostErrors)
}

// pausedFor waits until a machine stands still for a full disk.
func pausedFor(t *testing.T, m *vmm.Machine) {
	t.Helper()
	for until := deadline(t); ; time.Sleep(time.Millisecond) {
		require.NoError(t, until.Err(), "it did not pause")
		info, err := m.Info()
		require.NoError(t, err)
		if strings.Contains(info.PausedFor, "no space left on device") {
			return
		}
	}
}

// restored is the guest of a file.
func restored(t *testing.T, path string, disks map[string]string) *copyHere {
	t.Helper()
	file, err := os.Open(path)
	require.NoError(t, err)
	defer file.Close()
	c := &copyHere{t: t, out: newConsole(nil)}
	in := vmm.Incoming{Options: vmm.Options{Serial: c.out}, Disks: disks, AllowPrefixes: folders(disks), Saved: true}
	_, _, err = migration.Restore(t.Context(), file, vmm.BuildTarget(in, func(m *vmm.Machine) { c.m = m }), migration.ReceiveOptions{})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.m.Close()) })
	return c
}

// goesOn waits until a guest for which there is room now has written more, ends
// it, and gives how far it was flushed.
func (c *copyHere) goesOn(t *testing.T) uint64 {
	t.Helper()
	l, err := c.out.load(deadline(t), "blk", flushedPast(0))
	require.NoError(t, err)
	l, err = c.out.load(deadline(t), "blk", flushedPast(l.Flushed+100))
	require.NoError(t, err)
	require.Zero(t, l.Bad)
	info, err := c.m.Info()
	require.NoError(t, err)
	require.Empty(t, info.PausedFor)
	require.Zero(t, info.Drives[0].Stats.Parked+int(info.Drives[0].Stats.HostErrors))
	c.m.Stop()
	require.NoError(t, c.m.Close())
	return l.Flushed
}

// TestDiskFull: a machine whose disk finds no room pauses, pauses again while
// there is none, goes on when there is some, and has lost nothing.
func TestDiskFull(t *testing.T) {
	for _, f := range diskFormats {
		for _, how := range []string{"here", "moved", "saved"} {
			t.Run(f.name+" "+how, func(t *testing.T) {
				dir := smallFS(t, 2)
				if f.name == "qcow2 with backing" {
					enlarge(t, dir, 6) // the base has 4
				}
				d := f.drive(t, dir)
				c, full := fullGuest(t, d)
				require.NoError(t, c.m.Resume())
				isFull(t, c.m, full)
				disks := map[string]string{"data": d.PathOnHost}
				switch how {
				case "moved":
					next, _, err := c.move(route{disks: disks})
					require.NoError(t, err)
					c = next
				case "saved":
					path := filepath.Join(t.TempDir(), "saved")
					_, err := migration.SaveFile(t.Context(), c.m.Source(), path, migration.SendOptions{})
					require.NoError(t, err)
					c.m.MigratedTo()
					require.NoError(t, c.m.Close())
					c = restored(t, path, disks)
				}
				pausedFor(t, c.m) // one that arrives tries at once
				enlarge(t, dir, 64)
				require.NoError(t, c.m.Resume())
				f.check(t, d.PathOnHost, c.goesOn(t), false)
			})
		}
	}
}

// TestDiskFullReported: with on-full=report the guest hears of it and runs on.
func TestDiskFullReported(t *testing.T) {
	dir := smallFS(t, 2)
	d := diskFormats[1].drive(t, dir)
	d.OnFull = vmm.OnFullReport
	cfg := guest(1, 128, "beat=50 io=blk,4k,depth=8,write,flush=50,span=4,queues=1")
	cfg.Drives = []vmm.Drive{d}
	c := bootHere(t, cfg)
	for until := deadline(t); ; time.Sleep(time.Millisecond) {
		require.NoError(t, until.Err(), "no error was reported")
		info, err := c.m.Info()
		require.NoError(t, err)
		if info.Drives[0].Stats.HostErrors > 0 {
			break
		}
	}
	require.Equal(t, vmm.StateRunning, c.m.State())
	require.NoError(t, c.m.Close())
	qemuImg(t, "check", "-q", d.PathOnHost)
}

// TestDiskFullStop: a machine that waits for room can be ended, and what it was
// told is on its disk.
func TestDiskFullStop(t *testing.T) {
	dir := smallFS(t, 2)
	d := diskFormats[1].drive(t, dir)
	c, _ := fullGuest(t, d)
	c.m.Stop()
	require.NoError(t, c.m.Close())
	qemuImg(t, "check", "-q", d.PathOnHost)
}

// TestSnapshotFull: what has no room is the folder for temporary files.
func TestSnapshotFull(t *testing.T) {
	dir := smallFS(t, 2)
	d := diskFormats[0].drive(t, t.TempDir())
	d.Snapshot = true
	t.Setenv("TMPDIR", dir)
	c, full := fullGuest(t, d)
	require.NoError(t, c.m.Resume())
	select {
	case err := <-full:
		require.ErrorContains(t, err, "TMPDIR")
	case <-deadline(t).Done():
		require.FailNow(t, "it did not pause again")
	}
	enlarge(t, dir, 64)
	require.NoError(t, c.m.Resume())
	c.goesOn(t)
}

// TestSaveWithoutRoom: a machine that finds no room for its file says so, leaves
// nothing behind, and the guest runs on.
func TestSaveWithoutRoom(t *testing.T) {
	dir := smallFS(t, 1)
	c := bootHere(t, guest(1, 128, "fill=8 ws=4 rate=1000 beat=50"))
	_, err := migration.SaveFile(t.Context(), c.m.Source(), filepath.Join(dir, "saved"), migration.SendOptions{})
	require.ErrorIs(t, err, unix.ENOSPC)
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, left)
	require.Equal(t, vmm.StateRunning, c.m.State())
	require.Zero(t, c.swept().Bad)
}

// TestDiskFullWhileMoving has the disk run full at whatever moment of a move. The
// guest arrives, pauses there, and has lost nothing.
func TestDiskFullWhileMoving(t *testing.T) {
	for i, f := range []diskFormat{diskFormats[0], diskFormats[1], diskFormats[1]} {
		t.Run(fmt.Sprint(f.name, i), func(t *testing.T) {
			dir := smallFS(t, 2)
			d := f.drive(t, dir)
			cfg := guest(1, 128, "fill=8 ws=4 rate=1000 beat=20 io=blk,4k,depth=8,write,flush=50,span=4,queues=1")
			cfg.Drives = []vmm.Drive{d}
			c := &copyHere{t: t, out: newConsole(nil)}
			var err error
			c.m, err = vmm.New(cfg, vmm.Options{Serial: c.out})
			require.NoError(t, err)
			t.Cleanup(func() { require.NoError(t, c.m.Close()) })
			require.NoError(t, c.m.Start())
			next, _, err := c.move(route{disks: map[string]string{"data": d.PathOnHost}, o: migration.SendOptions{Bandwidth: int64(4<<i) << 20}})
			require.NoError(t, err)
			pausedFor(t, next.m)
			enlarge(t, dir, 64)
			require.NoError(t, next.m.Resume())
			f.check(t, d.PathOnHost, next.goesOn(t), false)
		})
	}
}
