package api

import (
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// sink takes everything.
type sink struct{ net.Conn }

func (sink) Write(p []byte) (int, error) { return len(p), nil }

func TestTLSWritesWithoutAllocating(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	client, _ := pairOf(t, func(c net.Conn) net.Conn { return c })
	client.low.Conn = sink{client.low.Conn}
	var v net.Buffers
	for range 256 {
		v = append(v, make([]byte, 4096))
	}
	require.Zero(t, int(testing.AllocsPerRun(100, func() {
		_, err := client.WriteBuffers(v)
		require.NoError(t, err)
	})))
}
