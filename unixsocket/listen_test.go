package unixsocket

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Nothing changes the mode after bind, so what is seen here was so from the
// beginning.
func TestSocketIsPrivate(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077} {
		path := filepath.Join(t.TempDir(), "s")
		before := unix.Umask(umask) // the whole process's: no test here runs in parallel
		l, err := Listen(path)
		unix.Umask(before)
		require.NoError(t, err)
		st, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm(), "umask %#o", umask)
		require.NoError(t, l.Close())
		_, err = os.Lstat(path)
		require.ErrorIs(t, err, os.ErrNotExist, "Close removes it")
	}
}

// A connection that fails is no proof that nobody is there.
func TestSocketOfALiveProcessIsKept(t *testing.T) {
	t.Run("full backlog", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		fd := newSocket(t)
		require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
		require.NoError(t, unix.Listen(fd, 0))
		for range 100 {
			if err := unix.Connect(newSocket(t), &unix.SockaddrUnix{Name: path}); err != nil {
				require.ErrorIs(t, err, unix.EAGAIN)
				break
			}
		}
		_, err := Listen(path)
		require.ErrorContains(t, err, "too busy to answer")
		require.FileExists(t, path)
	})
	t.Run("of another kind", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
		require.NoError(t, err)
		defer l.Close()
		_, err = Listen(path)
		require.ErrorIs(t, err, unix.EPROTOTYPE)
		require.FileExists(t, path)
	})
}

// newSocket makes a unix stream socket that does not block.
func newSocket(t *testing.T) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = unix.Close(fd) })
	return fd
}

func TestSocketLeftBehindIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	old.SetUnlinkOnClose(false) // as a process that was killed
	require.NoError(t, old.Close())
	l, err := Listen(path)
	require.NoError(t, err)
	defer l.Close()

	_, err = Listen(path)
	require.ErrorContains(t, err, "another process listens there", "a live one is left alone")
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
}

func TestSocketNeverReplacesAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o644))
	_, err := Listen(path)
	require.ErrorContains(t, err, "no socket")
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "precious", string(text))
}
