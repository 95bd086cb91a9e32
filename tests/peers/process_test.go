package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestAProcessIsGoneOnceItIsEnded(t *testing.T) {
	p, err := newStarter().launch(nil, "/bin/sh", "-c", "exec sleep 1000")
	require.NoError(t, err)
	pid := p.cmd.Process.Pid
	pgid, err := unix.Getpgid(pid)
	require.NoError(t, err)
	require.Equal(t, pid, pgid, "Ctrl-C must not reach it")
	p.end()
	require.ErrorIs(t, unix.Kill(pid, 0), unix.ESRCH)
	p.end() // again is nothing
}

func TestAwaitSaysHowAProcessEnded(t *testing.T) {
	ctx := deadline(t)
	s := newStarter()
	p, err := s.launch(nil, "/bin/sh", "-c", "echo no memory >&2; exit 3")
	require.NoError(t, err)
	defer p.end()
	never := func() (bool, error) { return false, nil }
	err = await(ctx, "the guest to beat", &p.diag.watch, []*process{p}, never)
	require.ErrorContains(t, err, "wait for the guest to beat: sh -c ended: exit status 3; it said: no memory")
	require.ErrorContains(t, p.ended(ctx), "exit status 3")

	q, err := s.launch(nil, "/bin/sh", "-c", "exec sleep 1000")
	require.NoError(t, err)
	defer q.end()
	late, cancel := context.WithCancelCause(ctx)
	cancel(errors.New("too late"))
	require.ErrorContains(t, await(late, "godot", &q.diag.watch, []*process{q}, never), "wait for godot: too late")
	require.ErrorContains(t, q.ended(late), "too late")
	_, err = s.launch(nil, "/no/such/program")
	require.ErrorIs(t, err, os.ErrNotExist)
}

// Whatever a process says before it ends counts.
func TestAwaitSeesTheLastWords(t *testing.T) {
	p, err := newStarter().launch(nil, "/bin/sh", "-c", "echo ready >&2")
	require.NoError(t, err)
	require.NoError(t, await(deadline(t), "it", &p.diag.watch, []*process{p}, func() (bool, error) {
		return strings.Contains(p.diag.String(), "ready"), nil
	}))
	p.end()
}

func TestLimitedKeepsTheEnd(t *testing.T) {
	l := &limited{}
	for i := range 10000 {
		fmt.Fprintf(l, "line %d\n", i)
	}
	require.Equal(t, "line 9997 | line 9998 | line 9999", l.tail())
	require.LessOrEqual(t, len(l.String()), keepText)
	require.Equal(t, "nothing", (&limited{}).tail())
}

func TestWarmMemory(t *testing.T) {
	require.NoError(t, warmMain("3"))
	require.ErrorContains(t, warmMain("0"), "not a number of MiB")
	require.ErrorContains(t, warmMain("x"), "not a number of MiB")
	free, err := availableMiB()
	require.NoError(t, err)
	require.Positive(t, free)
	k := Case{}
	k.Guest.Fill = 1 << 30
	require.ErrorContains(t, k.enoughMemory(), "leave this case out")
}

func TestUnfitAsksTheProgram(t *testing.T) {
	program := filepath.Join(t.TempDir(), "godwit")
	require.NoError(t, os.WriteFile(program, []byte("#!/bin/sh\necho ' --tls-cert FILE   use --localhost'\n"), 0o700))
	b := &bench{godwit: program}
	for need, reason := range map[string]string{"": "", "--tls-cert": "", "--local": program + " migrate has no flag --local"} {
		got, err := b.unfit(deadline(t), &Case{}, &Setting{Needs: need})
		require.NoError(t, err)
		require.Equal(t, reason, got)
	}
}
