package vmm

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"godwit/kvm"
)

func TestExamine(t *testing.T) {
	x, err := Examine(context.Background())
	require.NoError(t, err)
	require.True(t, x.KVM.Usable, x.KVM.Error)
	require.Empty(t, x.MissingCapabilities())
	require.Len(t, x.Instructions, len(instructions))
	for _, i := range x.Instructions {
		require.NotEmpty(t, i.Result, i.Name)
	}
	require.Positive(t, x.Speed.KernelMIPS)
	require.Positive(t, x.Speed.ExitMicros)
	require.Equal(t, x.DirtyLog.Written, x.DirtyLog.Seen)
	require.Positive(t, x.TSC.KHz)
	require.Contains(t, []string{"settable", "ignored", "absent"}, x.TSC.Offset)
	require.Greater(t, x.Memory.TotalMiB, x.Memory.AvailableMiB)
	require.True(t, x.Metronome)
	if x.KVM.Kind == "PVM" {
		require.False(t, x.Linux, "PVM cannot run a stock kernel")
	}
	require.Len(t, x.Verdict(), 2)
	_, err = json.Marshal(x)
	require.NoError(t, err)
}

func TestExamineEnds(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_, err := Examine(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

// A guest that never ends is ended.
func TestProbeThatHangs(t *testing.T) {
	sys, err := kvm.Open()
	require.NoError(t, err)
	defer sys.Close()
	require.NoError(t, withProbe(sys, []byte{0xeb, 0xfe}, func(l *pilot, p *probe) error { // jmp to itself
		o, err := l.enter(context.Background(), p)
		require.Equal(t, resultHung, o.result(0))
		return err
	}))
}

func TestOutcomes(t *testing.T) {
	for want, o := range map[string]outcome{
		resultOK:            {reason: kvm.ExitIO, port: probeDone},
		"exception 13":      {reason: kvm.ExitIO, port: probeTrap + 13},
		"no exception":      {reason: kvm.ExitIO, port: 0x10},
		resultGaveUp:        {reason: kvm.ExitInternalError},
		resultHung:          {hung: true},
		"KVM_EXIT_SHUTDOWN": {reason: kvm.ExitShutdown},
	} {
		require.Equal(t, want, o.result(0))
	}
	require.Equal(t, resultOK, outcome{reason: kvm.ExitIO, port: probeTrap + 3}.result(probeTrap+3))
	require.Equal(t, "no exception", outcome{reason: kvm.ExitIO, port: probeDone}.result(probeTrap+3))
}

func TestVerdicts(t *testing.T) {
	good := func() *Examination {
		return &Examination{Speed: &SpeedFacts{KernelMIPS: 2000}, DirtyLog: &DirtyLogFact{Written: 4, Seen: 4},
			Instructions: []InstructionFact{{"cpuid", resultOK}, {"popcnt", "exception 6"}}}
	}
	for _, c := range []struct {
		name             string
		change           func(*Examination)
		metronome, linux bool
		why              string
	}{
		{"good", func(*Examination) {}, true, true, ""},
		{"slow", func(x *Examination) { x.Speed.KernelMIPS = 1.4 }, true, false, "1.4 million"},
		{"gives up", func(x *Examination) { x.Instructions[0].Result = resultGaveUp }, true, false, "cpuid"},
		{"loses writes", func(x *Examination) { x.DirtyLog.Seen = 3 }, false, false, "3 of 4"},
		{"lacks a capability", func(x *Examination) { x.Reasons = []string{"lacks it"} }, false, false, "lacks it"},
	} {
		x := good()
		c.change(x)
		x.judge()
		require.Equal(t, c.metronome, x.Metronome, c.name)
		require.Equal(t, c.linux, x.Linux, c.name)
		require.Contains(t, strings.Join(x.Reasons, " "), c.why, c.name)
		text := strings.Join(x.Verdict(), "\n")
		require.Equal(t, c.linux, strings.Contains(text, "Linux guests: run directly"), c.name)
		require.Equal(t, !c.linux, strings.Contains(text, "Linux guests: use godwit lab, because "), c.name)
	}
}

func TestKVMKind(t *testing.T) {
	dir := t.TempDir()
	require.Equal(t, "unknown", kvmKind(dir))
	for _, c := range [][2]string{{"kvm_amd", "SVM"}, {"kvm_intel", "VMX"}, {"kvm_pvm", "PVM"}} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, c[0]), 0o700))
		require.Equal(t, c[1], kvmKind(dir))
	}
}

func TestHostTexts(t *testing.T) {
	require.Equal(t, "madvise", chosen("always [madvise] never\n"))
	require.Equal(t, "", chosen("always"))
	require.EqualValues(t, 123, meminfo("A: 1 kB\nMemTotal:      123 kB\n", "MemTotal"))
	require.Zero(t, meminfo("MemTotal: lots", "MemTotal"))
}
