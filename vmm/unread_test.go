package vmm

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/migration"
)

// unread is a console that nobody reads until it is opened.
type unread struct {
	*console
	open    chan struct{}
	blocked chan struct{} // closed at the first write
	first   sync.Once
}

func newUnread() *unread {
	return &unread{console: newConsole(), open: make(chan struct{}), blocked: make(chan struct{})}
}

func (u *unread) Write(p []byte) (int, error) {
	u.first.Do(func() { close(u.blocked) })
	<-u.open
	return u.console.Write(p)
}

func startUnread(t *testing.T) (*Machine, *unread) {
	out := newUnread()
	m, err := New(metronomeConfig("fill=16 ws=8 rate=1000 beat=50"), Options{Serial: out})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, m.Close()) })
	require.NoError(t, m.Start())
	<-out.blocked
	return m, out
}

// An operator's pause does not wait for a reader, and costs no output.
func TestPauseWithoutAReader(t *testing.T) {
	m, out := startUnread(t)
	require.NoError(t, m.Pause(t.Context())) // the reader comes later
	require.Equal(t, StatePaused, m.State())

	s := m.Source()
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errors.New("enough"))
	defer cancel()
	require.ErrorContains(t, s.Pause(ctx), "enough", "what it wrote has to leave before it does")
	require.NoError(t, s.Resume())
	require.Equal(t, StatePaused, m.State(), "by its operator")

	close(out.open)
	out.waitFor(t, "m", 1) // it may have been paused in the middle of a word
	require.NoError(t, s.Pause(t.Context()))
	require.NoError(t, m.Resume())
	text := out.waitFor(t, "beat", 3)
	require.NotContains(t, text, "lost")
	require.True(t, strings.HasPrefix(text, "metronome up"), text)
}

// standStill pauses a machine as the engine does.
func standStill(t *testing.T, s migration.Source) {
	for {
		require.NoError(t, s.(migration.Settler).Settle(t.Context()))
		if err := s.Pause(t.Context()); !errors.Is(err, migration.ErrUnsettled) {
			require.NoError(t, err)
			return
		}
	}
}

// A guest that is to leave does not stand still while nobody reads its console.
func TestMoveWithoutAReader(t *testing.T) {
	m, out := startUnread(t)
	s := m.Source()
	ctx, cancel := context.WithCancelCause(t.Context())
	gave := make(chan error, 1)
	go func() { gave <- s.(migration.Settler).Settle(ctx) }()
	exits := func() uint64 { return m.vcpus[0].exits.Load() }
	for range 5 {
		was := exits()
		require.Eventually(t, func() bool { return exits() > was }, time.Minute, time.Millisecond, "the guest stands still")
	}
	cancel(errors.New("enough"))
	require.Error(t, <-gave)
	require.Equal(t, StateRunning, m.State())

	require.ErrorIs(t, s.Pause(t.Context()), migration.ErrUnsettled)
	require.Equal(t, StateRunning, m.State(), "it stood still only for a moment")
	require.NoError(t, s.Resume())

	close(out.open)
	next, rep := move(t, m, migration.SendOptions{Verify: true}, out.console)
	require.Equal(t, migration.Completed, rep.Status)
	require.Equal(t, StateRunning, next.State())
	out.waitFor(t, "beat", 3)
}

// A reader that is slow keeps no guest from leaving: it stands still for longer and
// longer, and at last as long as one may wait for a reader at all.
func TestMoveWithASlowReader(t *testing.T) {
	require.Equal(t, consolePatience, consoleHolds[len(consoleHolds)-1])
	m, out := startUnread(t)
	s := m.Source().(*source)
	for i := range 2 {
		began := time.Now()
		require.ErrorIs(t, s.Pause(t.Context()), migration.ErrUnsettled)
		require.GreaterOrEqual(t, time.Since(began), consoleHolds[i])
		require.NoError(t, s.Resume())
	}
	s.holds = len(consoleHolds) - 1
	timer := time.AfterFunc(consoleHold*5/2, func() { close(out.open) })
	defer timer.Stop()
	require.NoError(t, s.Pause(t.Context()))
	require.Equal(t, StatePaused, m.State())
	require.Zero(t, s.holds, "the next migration begins anew")
	require.NoError(t, s.Resume())
	out.waitFor(t, "beat", 3)
	require.NotContains(t, errSlow.Error(), "nobody")
}
