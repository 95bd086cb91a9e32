package migration

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// uptime is what the kernel calls the time since boot, suspension included, in
// seconds that were begun. Not /proc/uptime: a container may have one of its own.
func uptime(t *testing.T) time.Duration {
	var i unix.Sysinfo_t
	require.NoError(t, unix.Sysinfo(&i))
	return time.Duration(i.Uptime) * time.Second
}

func TestBootTime(t *testing.T) {
	before, now, after := uptime(t), BootTime(), uptime(t)
	require.GreaterOrEqual(t, now, before-time.Second)
	require.LessOrEqual(t, now, after)
}
