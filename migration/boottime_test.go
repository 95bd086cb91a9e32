package migration

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// uptime is what the kernel calls the time since boot, suspension included.
func uptime(t *testing.T) time.Duration {
	b, err := os.ReadFile("/proc/uptime")
	require.NoError(t, err)
	d, err := time.ParseDuration(strings.Fields(string(b))[0] + "s")
	require.NoError(t, err)
	return d
}

func TestBootTime(t *testing.T) {
	before, now, after := uptime(t), BootTime(), uptime(t)
	require.GreaterOrEqual(t, now, before)
	require.Less(t, now, after+10*time.Millisecond, "uptime counts in hundredths of a second, rounded down")
}
