package migration

import (
	"net"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// stalledConn is a connection whose reads meet their deadline some times, each
// after standing still for so long, before data comes.
type stalledConn struct {
	net.Conn
	misses    int
	still     time.Duration
	deadlines []time.Duration // asked for, from the moment of asking
}

func (c *stalledConn) SetReadDeadline(t time.Time) error {
	c.deadlines = append(c.deadlines, time.Until(t))
	return nil
}

func (c *stalledConn) Read(b []byte) (int, error) {
	if c.misses--; c.misses >= 0 {
		<-time.After(c.still)
		return 0, os.ErrDeadlineExceeded
	}
	return copy(b, "x"), nil
}

// TestDeadlineAfterStandingStill: what came while this process was stopped is
// read, and only a second silence counts. The time is the bubble's: that of the
// machine goes on while the test itself is not served.
func TestDeadlineAfterStandingStill(t *testing.T) {
	synctest.Test(t, deadlineAfterStandingStill)
}

func deadlineAfterStandingStill(t *testing.T) {
	const silence = 50 * time.Millisecond
	for name, tc := range map[string]struct {
		conn  stalledConn
		again time.Duration // at most, for the second look
		err   error
	}{
		"data was waiting":        {stalledConn{misses: 1, still: time.Millisecond}, silence / 10, nil},
		"we stood still":          {stalledConn{misses: 1, still: 2 * silence}, silence, nil},
		"the peer really is gone": {stalledConn{misses: 2, still: time.Millisecond}, silence / 10, os.ErrDeadlineExceeded},
	} {
		n, err := readWithin(&tc.conn, make([]byte, 1), silence)
		require.ErrorIs(t, err, tc.err, name)
		if tc.err == nil {
			require.Equal(t, 1, n, name)
		}
		require.Len(t, tc.conn.deadlines, 2, name)
		require.LessOrEqual(t, tc.conn.deadlines[1], tc.again, name)
	}
	c := stalledConn{misses: 1, still: 2 * silence}
	_, err := readWithin(&c, make([]byte, 1), silence)
	require.NoError(t, err)
	require.Greater(t, c.deadlines[1], silence/2, "a peer that stood still with us gets its time again")
}
