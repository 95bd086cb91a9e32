package vmm

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestConsolePathsGoToTheDestination: released, the path is free; claimed again,
// or after a move, clients connect there.
func TestConsolePathsGoToTheDestination(t *testing.T) {
	dir := t.TempDir()
	sock, out := filepath.Join(dir, "c.sock"), filepath.Join(dir, "out")
	specs := withConsoleDefaults([]Console{{Path: "unix:" + sock}, {Name: "org.example.0", Path: "file:" + out}, {Name: "n"}})
	p, err := newConsoles(specs, assembly{})
	require.NoError(t, err)
	defer p.close()
	connect := func() {
		t.Helper()
		c, err := net.Dial("unix", sock)
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
	connect()
	require.FileExists(t, out)
	_, err = newConsoles(specs, assembly{})
	require.ErrorContains(t, err, "another process listens there")

	dest, err := newConsoles(specs, assembly{incoming: true, consoles: map[string]string{"con0": "unix:" + sock}})
	require.NoError(t, err)
	defer dest.close()
	require.Error(t, dest.claim(), "while the source has it")
	require.NoError(t, p.release())
	_, err = os.Lstat(sock)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, p.claim(), "a migration that failed")
	require.NoError(t, p.claim())
	connect()
	require.NoError(t, p.release())
	require.NoError(t, dest.claim())
	connect()

	var i Info
	require.Eventually(t, func() bool {
		i = Info{}
		dest.info(&i)
		return i.Console.Ports[0].Stats.Connects == 1
	}, time.Minute, time.Millisecond)
	require.Equal(t, "unix:"+sock, i.Console.Ports[0].Path)
	require.Empty(t, i.Console.Ports[1].Path, "what is not mapped is not opened")
	require.NoError(t, dest.release())
	_, err = os.Lstat(sock)
	require.ErrorIs(t, err, os.ErrNotExist)
}

// TestRefusedGuestLeavesNoFile: what claim made for a guest that did not come is
// taken back, and nothing else is.
func TestRefusedGuestLeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.WriteFile(path("old"), nil, 0o600))
	names := []string{"new", "old", "written", "other", "gone"}
	specs := make([]Console, len(names))
	paths := map[string]string{}
	specs = withConsoleDefaults(specs)
	for i, n := range names {
		paths[specs[i].ID] = "file:" + path(n)
	}
	arrive := func() part {
		p, err := newConsoles(specs, assembly{incoming: true, consoles: paths})
		require.NoError(t, err)
		require.NoFileExists(t, path("new"))
		require.NoError(t, p.claim())
		require.FileExists(t, path("new"))
		return p
	}
	p := arrive()
	require.NoError(t, os.WriteFile(path("written"), []byte("x"), 0o600))
	require.NoError(t, os.Rename(path("old"), path("other")))
	require.NoError(t, os.WriteFile(path("old"), nil, 0o600))
	require.NoError(t, os.Remove(path("gone")))
	require.NoError(t, p.close())
	require.NoFileExists(t, path("new"))
	for _, n := range []string{"old", "written", "other"} {
		require.FileExists(t, path(n))
	}

	p = arrive()
	p.follow() // the guest runs here
	require.NoError(t, p.close())
	require.FileExists(t, path("new"))
}

func TestConsoleMapIsChecked(t *testing.T) {
	list := []Console{{ID: "con0"}}
	require.NoError(t, Incoming{Consoles: map[string]string{"con0": "unix:a"}}.checkConsoles(list))
	require.ErrorIs(t, Incoming{Consoles: map[string]string{"con1": "unix:a"}}.checkConsoles(list), ErrIncompatible)
	require.ErrorIs(t, Incoming{Consoles: map[string]string{"con0": "x"}}.checkConsoles(list), ErrConfig)
}

func TestStdioConsoleNeedsStdio(t *testing.T) {
	_, err := newConsoles([]Console{{ID: "con0", Path: PathStdio}}, assembly{})
	require.ErrorContains(t, err, "not this machine's")
}

func TestConsolesAreChecked(t *testing.T) {
	for says, list := range map[string][]Console{
		"two consoles":      {{ID: "x"}, {ID: "x"}},
		"with name \"n\"":   {{Name: "n"}, {Name: "n"}},
		"name \"a b\"":      {{Name: "a b"}},
		"write unix:PATH":   {{Path: "tcp:x"}},
		"socket path":       {{Path: "unix:"}},
		"another console's": {{Path: "unix:a"}, {Path: "unix:a"}},
		"id \"a b\"":        {{ID: "a b"}},
		"17 consoles":       make([]Console, 17),
	} {
		err := validateConsoles(withConsoleDefaults(list), false)
		require.ErrorIs(t, err, ErrConfig, says)
		require.ErrorContains(t, err, says)
	}
}
