package lab

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// kvm loaded while the kernel's rate is more than 250 ppm below the final one
// gives vCPUs whose clock stands.
func TestSickClockIsFound(t *testing.T) {
	cfg := labConfig(t, "probe", "args", "the command ran")
	cfg.rateOff, cfg.earlyKVM = -600, true
	var out bytes.Buffer
	cfg.Stdout = &out
	_, err := Run(t.Context(), cfg)
	require.ErrorIs(t, err, ErrMachine)
	for _, say := range []string{"the clock of the lab's vCPUs is wrong", "TSC went on by 0 ticks", "vcpu0/tsc-offset 0", "TSC rate below hardware speed"} {
		require.ErrorContains(t, err, say)
	}
	require.Empty(t, out.String())
}

// The same wrong rate does no harm when kvm waits; so the wait is what helps, and a
// good rate only comes on top.
func TestKVMWaitsForTheFinalRate(t *testing.T) {
	cfg := labConfig(t, "sh", "-ec", `cat `+clockSourcePath+` /sys/kernel/debug/kvm/*/vcpu0/tsc-offset 2>/dev/null || true; dmesg | grep -i "below hardware" || true`)
	cfg.rateOff = -600
	var boot Boot
	cfg.Started = func(b Boot) { boot = b }
	code, stdout, stderr := run(t, cfg)
	require.Zero(t, code, stderr)
	require.Equal(t, "tsc\n", stdout)
	require.Positive(t, boot.Clock)
}

func TestRateOfTheCounter(t *testing.T) {
	first := readPair()
	long := tscRate(first)
	require.Positive(t, long)
	require.InEpsilon(t, long, tscRate(readPair()), 2*rateError)
	for name, first := range map[string]tscPair{
		"counter went back": {ticks: 1 << 63, at: time.Now()},
		"loose reading":     {ticks: 1, at: time.Now(), slack: time.Second},
	} {
		require.Zero(t, tscRate(first), name)
	}
	require.Equal(t, kernelArgs, kernelLine(0, &Config{}))
	require.Equal(t, fmt.Sprintf("%s tsc_early_khz=%d", kernelArgs, long), kernelLine(long, &Config{}))
}
