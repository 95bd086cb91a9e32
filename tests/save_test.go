package tests

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/api"
	"godwit/migration"
	"godwit/migration/wire"
)

// savedMachine saves a metronome, with a disk, in a file.
func savedMachine(t *testing.T, flags ...string) (source *process, sock, disk, saved string) {
	t.Helper()
	dir := t.TempDir()
	sock, disk, saved = filepath.Join(dir, "a"), filepath.Join(dir, "disk"), filepath.Join(dir, "saved")
	require.NoError(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	source = start(t, append(metronomeArgs(sock, "fill=32 ws=8 rate=1000"), "--disk", "id=d,path="+disk)...)
	source.awaitBeats(3)
	code, out, errs := godwit(t, append([]string{"migrate", "--api-sock", sock, "--to", "file:" + saved, "--verify", "--json"}, flags...)...)
	require.Zero(t, code, errs)
	var r migration.Report
	lastJSON(t, out, &r)
	require.Equal(t, migration.Completed, r.Status)
	require.NotEmpty(t, r.Verify.Source)
	source.await(source.err, "godwit: the guest is saved in "+saved)
	left, err := filepath.Glob(saved + "*")
	require.NoError(t, err)
	require.Equal(t, []string{saved}, left, "nothing is left beside it")
	return source, sock, disk, saved
}

func TestSaveAndRestore(t *testing.T) {
	needKVM(t)
	p, sock, disk, saved := savedMachine(t)
	p.ends(0)
	noVM(t, sock)
	restore := func() *process {
		q := start(t, "receive", "--listen", "file:"+saved, "--disk", "d="+disk, "--api-sock", sock)
		q.awaitBeats(20)
		require.NotContains(t, q.out.String(), "metronome bad")
		require.NotContains(t, q.out.String(), "metronome up", "it goes on, it does not boot")
		code, _, errs := godwit(t, "stop", "--api-sock", sock)
		require.Zero(t, code, errs)
		q.ends(0)
		require.Contains(t, q.err.String(), "is restored from")
		return q
	}
	require.NotContains(t, restore().err.String(), "warning")
	require.Contains(t, restore().err.String(), "was restored before")

	// Saved anew under the same name, it has not been restored yet.
	_, _, disk2, saved2 := savedMachine(t)
	require.NoError(t, os.Rename(saved2, saved))
	require.NoError(t, os.Rename(disk2, disk))
	require.NotContains(t, restore().err.String(), "warning")
}

// What is kept after a save may run on, once its disks are free.
func TestSavedAndKept(t *testing.T) {
	needKVM(t)
	p, sock, disk, saved := savedMachine(t, "--keep")
	_, out, _ := godwit(t, "info", "--api-sock", sock)
	require.Contains(t, out, "paused")
	require.Contains(t, out, "is saved in")
	code, _, errs := godwit(t, "migrate", "--api-sock", sock, "--to", "file:"+saved)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "resume it first")
	q := start(t, "receive", "--listen", "file:"+saved, "--disk", "d="+disk)
	q.awaitBeats(3)
	code, _, errs = godwit(t, "resume", "--api-sock", sock)
	require.Equal(t, 1, code, "the restored copy has the disk")
	require.Contains(t, errs, "take the disks back")
	code, _, errs = godwit(t, "receive", "--listen", "file:"+saved, "--disk", "d="+disk)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "another process holds the lock")
	q.signal(unix.SIGTERM)
	q.ends(0)
	before := beats(p.out.String())
	code, _, errs = godwit(t, "resume", "--api-sock", sock)
	require.Equal(t, 1, code, "the copy had the disk since")
	require.Contains(t, errs, "older than its disk")
	code, _, errs = godwit(t, "resume", "--api-sock", sock, "--force-stale")
	require.Zero(t, code, errs)
	p.awaitBeats(10)
	require.Greater(t, beats(p.out.String()), before)
	require.NotContains(t, p.out.String(), "metronome bad")
	p.await(p.err, "does not fit its disks any more")
	code, _, errs = godwit(t, "migrate", "--api-sock", sock, "--to", "file:"+saved)
	require.Zero(t, code, errs)
	p.ends(0)
}

func TestBadSavedMachine(t *testing.T) {
	needKVM(t)
	p, _, disk, saved := savedMachine(t)
	p.ends(0)
	whole, err := os.ReadFile(saved)
	require.NoError(t, err)
	changed := func(at int) []byte {
		c := append([]byte(nil), whole...)
		c[at] ^= 0x40
		return c
	}
	h := wire.Hello{MinVersion: wire.Version + 1, MaxVersion: wire.Version + 9, Role: wire.RoleFile, PageSize: 4096, Streams: 1}
	var newer bytes.Buffer
	require.NoError(t, wire.NewWriter(&newer).Open(wire.TypeHello, h.Append(nil)))
	control := new(bytes.Buffer)
	h.MinVersion, h.Role = wire.Version, wire.RoleControl
	require.NoError(t, wire.NewWriter(control).Open(wire.TypeHello, h.Append(nil)))
	bad := filepath.Join(t.TempDir(), "bad")
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"empty":               {nil, "cut short"},
		"garbage":             {[]byte("#!/bin/sh\necho hello\n"), "is no file that godwit migrate"},
		"newer":               {newer.Bytes(), "migration protocol"},
		"not a file's stream": {control.Bytes(), "role"},
		"cut in HELLO":        {whole[:20], "cut short"},
		"cut in CONFIG":       {whole[:200], "cut short"},
		"cut in its pages":    {whole[:len(whole)/2], "cut short"},
		"cut at its end":      {whole[:len(whole)-1], "cut short"},
		"changed CONFIG":      {changed(150), "damaged"},
		"changed page":        {changed(len(whole) / 2), "damaged"},
		"changed end":         {changed(len(whole) - 2), "damaged"},
	} {
		require.NoError(t, os.WriteFile(bad, c.data, 0o600))
		code, _, errs := godwit(t, "receive", "--listen", "file:"+bad, "--disk", "d="+disk)
		require.Equal(t, 1, code, "%s: %s", name, errs)
		require.Contains(t, errs, bad, name)
		require.Contains(t, errs, c.says, name)
		require.NotContains(t, errs, "goroutine ")
		_, err := os.Lstat(bad + ".restored")
		require.ErrorIs(t, err, os.ErrNotExist, "%s: it was not restored", name)
	}
	for _, path := range []string{t.TempDir(), bad + ".none"} {
		code, _, errs := godwit(t, "receive", "--listen", "file:"+path)
		require.Equal(t, 1, code)
		require.Contains(t, errs, path)
	}
}

func TestSaveCancelledOrRefused(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	sock, saved := filepath.Join(dir, "a"), filepath.Join(dir, "saved")
	p := start(t, metronomeArgs(sock, "fill=64")...)
	p.awaitBeats(3)
	code, _, errs := godwit(t, "migrate", "--api-sock", sock, "--to", "file:"+saved, "--bandwidth", "1MB/s", "--timeout", "200ms")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "timed out")
	m := start(t, "migrate", "--api-sock", sock, "--to", "file:"+saved, "--bandwidth", "1MB/s", "--json")
	m.await(m.err, "last-pages")
	m.signal(unix.SIGINT)
	m.ends(1)
	var r migration.Report
	lastJSON(t, m.out.String(), &r)
	require.Equal(t, migration.Cancelled, r.Status)
	precious := filepath.Join(dir, "root.img")
	require.NoError(t, os.WriteFile(precious, []byte("somebody's disk"), 0o600))
	for path, says := range map[string]string{precious: "will not be replaced", dir: "is no file", filepath.Join(dir, "no", "where"): "no such file"} {
		code, _, errs := godwit(t, "migrate", "--api-sock", sock, "--to", "file:"+path)
		require.Equal(t, 1, code, errs)
		require.Contains(t, errs, says)
	}
	p.awaitBeats(3)
	left, err := filepath.Glob(saved + "*")
	require.NoError(t, err)
	require.Empty(t, left)
}

// losingTarget takes everything and then does not run.
type losingTarget struct {
	memory []migration.Region
	run    func() error
}

func (l *losingTarget) Memory() []migration.Region        { return l.memory }
func (l *losingTarget) Populate([]migration.Extent) error { return nil }
func (l *losingTarget) LoadState(r io.Reader) error       { _, err := io.Copy(io.Discard, r); return err }
func (l *losingTarget) Acquire() error                    { return nil }
func (l *losingTarget) Run() error                        { return l.run() }
func (l *losingTarget) Abort() error                      { return nil }

// After GO the source never runs the guest by itself: what it knows is said by
// run and info, and resume does what is safe.
func TestOutcomeAfterGO(t *testing.T) {
	needKVM(t)
	for _, known := range []bool{true, false} {
		dir := t.TempDir()
		sock := filepath.Join(dir, "a")
		p := start(t, metronomeArgs(sock, "fill=8")...)
		p.awaitBeats(2)
		to := api.Address{Network: "unix", Target: filepath.Join(dir, "in")}
		l, err := to.Listen(nil)
		require.NoError(t, err)
		defer l.Close()
		var mu sync.Mutex
		var conns []net.Conn
		accept := func(ctx context.Context) (net.Conn, error) {
			c, err := migration.AcceptFrom(l)(ctx)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				conns = append(conns, c)
			}
			return c, err
		}
		target := &losingTarget{memory: []migration.Region{{Bytes: make([]byte, 256<<20)}}, run: func() error {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range conns {
				if !known {
					_ = c.Close()
				}
			}
			return errors.New("it will not run")
		}}
		received := make(chan error, 1)
		go func() {
			_, _, err := migration.Receive(context.Background(), accept,
				func(context.Context, migration.Offer) (migration.Target, error) { return target, nil }, migration.ReceiveOptions{Lease: 4 * time.Second})
			received <- err
		}()
		code, _, errs := godwit(t, "migrate", "--api-sock", sock, "--to", to.String())
		require.Equal(t, 1, code)
		require.Error(t, <-received)
		_, info, _ := godwit(t, "info", "--api-sock", sock)
		require.Contains(t, info, "paused")
		want := "nobody can know which side has the guest"
		if known {
			want = "godwit resume lets it run on at once"
		} else {
			require.Contains(t, errs, want)
			code, _, errs = godwit(t, "resume", "--api-sock", sock)
			require.Equal(t, 1, code)
			require.Contains(t, errs, "--force")
		}
		p.await(p.err, want)
		require.Contains(t, info, want)
		before := beats(p.out.String())
		resume := []string{"resume", "--api-sock", sock}
		if !known {
			resume = append(resume, "--force")
		}
		code, _, errs = godwit(t, resume...)
		require.Zero(t, code, errs)
		p.awaitBeats(3)
		require.Greater(t, beats(p.out.String()), before)
		p.await(p.err, "was resumed here")
	}
}

// A process whose machine was stopped ends, whoever is connected with its
// socket: here one who says nothing, and one who watches and hears the reason.
// That it waits for neither is shown in package api.
func TestStopWithClients(t *testing.T) {
	needKVM(t)
	sock := filepath.Join(t.TempDir(), "s")
	q, addr := receiver(t, "--api-sock", sock)
	p := start(t, metronomeArgs(sock+"2", "fill=8")...)
	p.awaitBeats(1)
	code, _, errs := godwit(t, "migrate", "--api-sock", sock+"2", "--to", addr)
	require.Zero(t, code, errs)
	q.awaitBeats(1)
	silent, err := net.Dial("unix", sock)
	require.NoError(t, err)
	defer silent.Close()
	deaf, err := net.Listen("unix", sock+"3")
	require.NoError(t, err)
	defer deaf.Close()
	m := start(t, "migrate", "--api-sock", sock, "--to", "unix:"+sock+"3", "--json")
	m.await(m.err, "connect")
	code, _, errs = godwit(t, "stop", "--api-sock", sock)
	require.Zero(t, code, errs)
	q.ends(0)
	m.ends(1)
	require.Contains(t, m.out.String(), "the guest ended")
}
