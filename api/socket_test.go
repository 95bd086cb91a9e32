package api

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestSocketIsPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := listenUnix(path)
	require.NoError(t, err)
	defer l.Close()
	st, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode().Perm())
}

func TestSocketLeftBehindIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	old.SetUnlinkOnClose(false) // as a process that was killed
	require.NoError(t, old.Close())
	l, err := listenUnix(path)
	require.NoError(t, err)
	defer l.Close()

	_, err = listenUnix(path)
	require.ErrorContains(t, err, "another process listens there", "a live one is left alone")
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

func TestSocketNeverReplacesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o644))
	_, err := listenUnix(path)
	require.ErrorContains(t, err, "no socket")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "precious", string(text))
}

func TestClientSaysWhatIsMissing(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "s"))
	_, err := c.Describe(context.Background())
	require.ErrorContains(t, err, "--api-sock")
	require.ErrorIs(t, err, os.ErrNotExist)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.Error(t, c.WaitReady(ctx))
}
