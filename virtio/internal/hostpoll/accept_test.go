package hostpoll

import (
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestAcceptWithoutDescriptors: a client that cannot be taken for want of
// descriptors is taken once there are some, and the time until then is slept.
func TestAcceptWithoutDescriptors(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	defer l.Close()
	raw, err := l.SyscallConn()
	require.NoError(t, err)
	client, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(client)

	p := newPoller(t)
	var calls atomic.Int32
	var w *Watch
	taken, begun := make(chan int, 1), make(chan struct{})
	require.NoError(t, raw.Control(func(fd uintptr) {
		w, err = p.Add(int(fd), func(uint32) {
			<-begun
			calls.Add(1)
			for {
				fd, ok := w.Accept(raw)
				if !ok {
					return
				}
				taken <- fd
			}
		})
	}))
	require.NoError(t, err)

	// No number is below this limit any more.
	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	defer func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old)) }()
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 0, Max: old.Max}))
	require.NoError(t, unix.Connect(client, &unix.SockaddrUnix{Name: path}))
	began := time.Now()
	w.Arm(In)
	close(begun)
	time.Sleep(3 * retryAccept / 2)
	n := calls.Load()
	require.LessOrEqual(t, int64(n), 1+int64(time.Since(began)/retryAccept), "it spins")
	require.Empty(t, taken)

	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	select {
	case fd := <-taken:
		require.NoError(t, unix.Close(fd))
	case <-time.After(time.Minute):
		require.FailNow(t, "the client was forgotten")
	}
}
