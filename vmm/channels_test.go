package vmm

import (
	"bytes"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// logged keeps what is logged.
type logged struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// TestGuestRunsOnWithoutChannels: after a migration that failed, paths that
// somebody else has taken keep no guest from running; Info and the log say what
// is missing, and once the paths are free they are the guest's again.
func TestGuestRunsOnWithoutChannels(t *testing.T) {
	dir := t.TempDir()
	cfg := metronomeConfig("beat=50")
	cfg.Consoles = []Console{{Path: "unix:" + filepath.Join(dir, "a")}, {Name: "n", Path: "unix:" + filepath.Join(dir, "b")}}
	cfg.Vsock = &Vsock{GuestCID: 3, UDSPath: filepath.Join(dir, "v")}
	out, log := newConsole(), &logged{}
	m, err := New(cfg, Options{Serial: out, Log: slog.New(slog.NewTextHandler(log, nil))})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	require.NoError(t, m.Start())
	lastBeat(t, out, 2)
	require.NoError(t, m.ResizeConsole("con0", 132, 50))
	require.ErrorIs(t, m.ResizeConsole("con1", 132, 50), ErrConfig)
	require.ErrorIs(t, m.ResizeConsole("con2", 132, 50), ErrNoConsole)

	s := m.Source()
	standStill(t, s)
	require.NoError(t, s.Release())
	var others []net.Listener
	for _, name := range []string{"a", "v"} {
		l, err := net.Listen("unix", filepath.Join(dir, name))
		require.NoError(t, err)
		others = append(others, l)
	}
	require.NoError(t, s.Reclaim())
	require.NoError(t, s.Resume())
	lastBeat(t, out, 2)
	i, err := m.Info()
	require.NoError(t, err)
	require.EqualValues(t, 132, i.Console.Ports[0].Columns)
	require.EqualValues(t, 50, i.Console.Ports[0].Rows)
	require.Contains(t, i.Console.Ports[0].Fault, "another process listens there")
	require.Empty(t, i.Console.Ports[1].Fault, "the second is not the first's hostage")
	require.Contains(t, i.Vsock.Fault, "another process listens there")
	require.Contains(t, log.String(), "the guest runs on without a channel")

	// A timer whose callback was waiting when another took its place changes nothing.
	m.op.Lock()
	old := m.channelTimer
	require.NotNil(t, old)
	m.reclaimChannels(channelTries)
	now := m.channelTimer
	m.retryChannels(old, 0)
	after := m.channelTimer
	m.op.Unlock()
	require.NotSame(t, old, now)
	require.Same(t, now, after)
	require.NotContains(t, log.String(), "stays closed")

	for _, l := range others {
		require.NoError(t, l.Close())
	}
	require.Eventually(t, func() bool {
		i, err := m.Info()
		return err == nil && i.Console.Ports[0].Fault == "" && i.Vsock.Fault == ""
	}, time.Minute, 10*time.Millisecond)
	for _, name := range []string{"a", "b", "v"} {
		c, err := net.Dial("unix", filepath.Join(dir, name))
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	require.Contains(t, log.String(), "can be connected to again")
}
