package lab

import (
	"bytes"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// slowClock tells the kernel a TSC rate that is 600 ppm too low. In this machine
// time goes on with the instructions, one a nanosecond, so that the kernel refines the
// rate at the same point of its start however busy the host is.
func slowClock(cfg Config) Config {
	cfg.extraArgs = []string{"-icount", "shift=0,sleep=off"}
	cfg.tscKHz = 999_400
	return cfg
}

// kvm loaded while the kernel's rate is more than 250 ppm below the final one
// gives vCPUs whose clock stands.
func TestSickClockIsFound(t *testing.T) {
	cfg := slowClock(labConfig(t, "probe", "args", "the command ran"))
	cfg.earlyKVM = true
	var out bytes.Buffer
	cfg.Stdout = &out
	_, err := Run(t.Context(), cfg)
	require.ErrorIs(t, err, ErrMachine)
	for _, say := range []string{"the clock of the lab's vCPUs is wrong", "TSC went on by 0 ticks", "vcpu0/tsc-offset 0", "TSC rate below hardware speed"} {
		require.ErrorContains(t, err, say)
	}
	require.Empty(t, out.String())

	// Whoever looks later sees it as well.
	cfg.unproven, cfg.Command = true, []string{"probe", "clock"}
	code, stdout, stderr := run(t, cfg)
	require.Equal(t, 1, code)
	require.Contains(t, stdout, "debugfs has no machine of kvm; the kernel said: ")
	require.Contains(t, stderr, "the clock of the lab's vCPUs is wrong")
}

func TestSilentMachineIsEnded(t *testing.T) {
	cfg := labConfig(t, "sleep", "1000")
	cfg.silence = 3 * time.Second
	cfg.Started = func(Boot) {
		for _, pid := range ownQEMUs(t) {
			n, err := strconv.Atoi(pid)
			require.NoError(t, err)
			require.NoError(t, unix.Kill(n, unix.SIGSTOP))
		}
	}
	_, err := Run(t.Context(), cfg)
	require.ErrorIs(t, err, ErrMachine)
	require.ErrorContains(t, err, "gave no sign of life for 3s")
	require.Empty(t, ownQEMUs(t))
}

// A caller that takes its time, and a command that says nothing, are no silence.
func TestQuietIsNotSilence(t *testing.T) {
	cfg := labConfig(t, "sh", "-c", "echo text; sleep 8")
	cfg.silence = 5 * time.Second
	cfg.Stdout = writerFunc(func(p []byte) (int, error) { time.Sleep(6 * time.Second); return len(p), nil })
	code, err := Run(t.Context(), cfg)
	require.NoError(t, err)
	require.Zero(t, code)
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// The same wrong rate does no harm when kvm waits; so the wait is what helps, and a
// good rate only comes on top.
func TestKVMWaitsForTheFinalRate(t *testing.T) {
	cfg := labConfig(t, "sh", "-ec", `cat `+clockSourcePath+` /sys/kernel/debug/kvm/*/vcpu0/tsc-offset 2>/dev/null || true; dmesg | grep -i "below hardware" || true`)
	cfg = slowClock(cfg)
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
