package console

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"godwit/virtio/internal/hostpoll"
)

// TestAcceptsAFewAtATime: one call of the poller takes a few of the clients that
// wait, asks to be called again, and holds the port's lock for one at a time.
func TestAcceptsAFewAtATime(t *testing.T) {
	dev, err := New(Config{Ports: []Port{{}}})
	require.NoError(t, err)
	defer dev.Close()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	require.NoError(t, err)
	raw, err := l.SyscallConn()
	require.NoError(t, err)
	h, called := &dev.ports[0].host, make(chan struct{}, 100)
	h.listener = l
	require.NoError(t, raw.Control(func(fd uintptr) {
		h.knock, err = dev.poll.Add(int(fd), func(uint32) { called <- struct{}{} })
	}))
	require.NoError(t, err)
	const clients = 5*hostpoll.Burst + 1
	for range clients {
		c, err := net.Dial("unix", l.Addr().String())
		require.NoError(t, err)
		defer c.Close()
	}
	taken := func() int {
		s := dev.Port(0).Stats
		return int(s.Connects + s.Refused)
	}
	for n := range 5 {
		h.accept(raw)
		require.Equal(t, (n+1)*hostpoll.Burst, taken())
		select {
		case <-called:
		case <-time.After(time.Minute):
			require.FailNow(t, "the others are forgotten")
		}
	}
	h.accept(raw)
	require.Equal(t, clients, taken())
	require.Empty(t, called)
}
