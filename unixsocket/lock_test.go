package unixsocket

import (
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// Of those that start at once on a socket left behind exactly one listens, and can
// be connected to.
func TestOneStarterListens(t *testing.T) {
	for range 300 {
		path := filepath.Join(t.TempDir(), "s")
		old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		require.NoError(t, err)
		old.SetUnlinkOnClose(false)
		require.NoError(t, old.Close())
		const starters = 4
		var got [starters]*net.UnixListener
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for i := range got {
			wg.Go(func() {
				<-begin
				got[i], _ = Listen(path) // the others' errors are theirs
			})
		}
		close(begin)
		wg.Wait()
		n := 0
		for _, l := range got {
			if l != nil {
				n++
				defer l.Close()
			}
		}
		require.Equal(t, 1, n, "of %d starters", starters)
		conn, err := net.Dial("unix", path)
		require.NoError(t, err)
		require.NoError(t, conn.Close())
		names, err := os.ReadDir(filepath.Dir(path))
		require.NoError(t, err)
		require.Len(t, names, 1, "no lock stays behind")
	}
}

// A lock that a dead process left is no lock.
func TestLockLeftBehind(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(path), ".s.lock"), nil, 0o600))
	l, err := Listen(path)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}
