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

func TestClientSaysWhatIsMissing(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "s"))
	_, err := c.Describe(context.Background())
	require.ErrorContains(t, err, "--api-sock")
	require.ErrorIs(t, err, os.ErrNotExist)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	require.Error(t, c.WaitReady(ctx))
}

// Requests that never end hold the end of the server up as little as they hold
// descriptors for ever: those with half a header, and those with half a body.
func TestUnendingRequestsHoldNothingUp(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	s, err := Listen(path, NewInstance("vm", nil))
	require.NoError(t, err)
	for i := range 300 {
		conn, err := net.Dial("unix", path)
		require.NoError(t, err)
		defer conn.Close()
		text := "PATCH /vm HTTP/1.1\r\nHost: x\r\nContent-Length: 40\r\n\r\n{"
		switch i % 3 {
		case 1:
			text = "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
		case 2:
			text = "GET / HTTP/1.1\r\nHos"
		}
		_, err = conn.Write([]byte(text))
		require.NoError(t, err)
	}
	info, err := NewClient(path).Describe(context.Background())
	require.NoError(t, err, "others are served")
	require.Equal(t, "vm", info.ID)
	ended := make(chan error, 1)
	go func() { ended <- s.Close(time.Hour) }()
	select {
	case err := <-ended:
		require.NoError(t, err)
	case <-time.After(time.Minute):
		require.Fail(t, "requests under way hold the end up")
	}
}
