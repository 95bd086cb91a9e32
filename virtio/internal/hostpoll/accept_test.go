package hostpoll

import (
	"net"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// listen makes a listener.
func listen(t *testing.T) (path string, raw syscall.RawConn) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	raw, err = l.SyscallConn()
	require.NoError(t, err)
	return path, raw
}

// TestAcceptLetsOthersGo: a crowd at a listener is taken a few at a time, its
// handler returns in between, and another descriptor has its turn before the
// next few.
func TestAcceptLetsOthersGo(t *testing.T) {
	const crowd = 10*Burst + 3
	path, raw := listen(t)
	for range crowd {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		require.NoError(t, err)
		defer unix.Close(fd)
		require.NoError(t, unix.Connect(fd, &unix.SockaddrUnix{Name: path}))
	}
	p := newPoller(t)
	readable, writer := pair(t)
	_, err := unix.Write(writer, []byte("x"))
	require.NoError(t, err)

	// Both handlers run on the Poller's goroutine: no lock.
	var listener, other *Watch
	var taken []int // clients of each turn
	var turns int   // of the other
	done := make(chan struct{})
	require.NoError(t, raw.Control(func(fd uintptr) {
		listener, err = p.Add(int(fd), func(uint32) {
			n := 0
			for {
				fd, ok := listener.Accept(raw)
				if !ok {
					break
				}
				_ = unix.Close(fd)
				n++
			}
			taken = append(taken, n)
			if sum(taken) == crowd {
				close(done)
			}
		})
	}))
	require.NoError(t, err)
	other, err = p.Add(readable, func(uint32) {
		if turns++; sum(taken) < crowd {
			other.Arm(In)
		}
	})
	require.NoError(t, err)
	other.Arm(In)
	listener.Arm(In)
	select {
	case <-done:
	case <-time.After(time.Minute):
		require.FailNow(t, "clients were forgotten")
	}
	require.NoError(t, p.Close())
	for _, n := range taken {
		require.LessOrEqual(t, n, Burst)
	}
	require.GreaterOrEqual(t, turns, crowd/Burst)
}

func sum(ns []int) (total int) {
	for _, n := range ns {
		total += n
	}
	return total
}

// TestAcceptWithoutDescriptors: a client that cannot be taken for want of
// descriptors is taken once there are some, and the time until then is slept.
func TestAcceptWithoutDescriptors(t *testing.T) {
	path, raw := listen(t)
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
	time.Sleep(3 * restFailed / 2)
	n := calls.Load()
	require.LessOrEqual(t, int64(n), 1+int64(time.Since(began)/restFailed), "it spins")
	require.Empty(t, taken)

	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	select {
	case fd := <-taken:
		require.NoError(t, unix.Close(fd))
	case <-time.After(time.Minute):
		require.FailNow(t, "the client was forgotten")
	}
}
