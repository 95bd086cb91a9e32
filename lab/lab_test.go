package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var probeDir string // made by buildProbe, removed by TestMain

// buildProbe gives a static program, which the test binary under -race is not.
var buildProbe = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lab-probe-")
	if err != nil {
		return "", err
	}
	probeDir = dir
	out := filepath.Join(dir, "probe")
	cmd := exec.Command("go", "build", "-o", out, "./internal/probe")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(string(text))
	}
	return out, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if probeDir != "" {
		os.RemoveAll(probeDir)
	}
	os.Exit(code)
}

// labConfig is a run of the probe with the kernel cache of make.
func labConfig(t testing.TB, command ...string) Config {
	t.Helper()
	if s, ok := t.(*testing.T); ok && testing.Short() {
		s.Skip("boots an emulated machine")
	}
	probe, err := buildProbe()
	require.NoError(t, err)
	cache := "../.cache"
	if c := os.Getenv("CACHE"); c != "" {
		cache = c
	}
	return Config{CacheDir: cache, Init: probe, Command: command, MemoryMiB: 512}
}

func run(t testing.TB, cfg Config) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cfg.Stdout, cfg.Stderr = &out, &errs
	code, err := Run(t.Context(), cfg)
	require.NoError(t, err)
	return code, out.String(), errs.String()
}

func TestStreamsAndExitCode(t *testing.T) {
	cfg := labConfig(t, "probe", "upper")
	text := strings.Repeat("some text\x00\r\n\xff", 20_000)
	cfg.Stdin = strings.NewReader(text)
	code, stdout, stderr := run(t, cfg)
	require.Equal(t, 7, code)
	require.True(t, strings.ToUpper(text) == stdout, "stdout differs: %d bytes", len(stdout))
	require.Equal(t, "read 260000 bytes\n", stderr)
}

func TestNestedKVMAnswers(t *testing.T) {
	cfg := labConfig(t, "probe", "kvm")
	var boot Boot
	cfg.Started = func(b Boot) { boot = b }
	code, stdout, stderr := run(t, cfg)
	require.Zero(t, code, stderr)
	require.Equal(t, "kvm 12\n", stdout)
	require.Positive(t, boot.Modules)
	require.Greater(t, boot.Total, boot.Modules)
}

func TestArgumentsArriveUnchanged(t *testing.T) {
	args := []string{"", "a b", "line\nline", `"'$HOME\`, "žluťoučký \U0001F426", "*", "--x=-y", "\xff"}
	cfg := labConfig(t, append([]string{"probe", "args"}, args...)...)
	_, stdout, _ := run(t, cfg)
	local := exec.Command(cfg.Init, append([]string{"args"}, args...)...)
	want, err := local.Output()
	require.NoError(t, err)
	require.Equal(t, string(want), stdout)
}

func TestDisksFilesOutputsAndModules(t *testing.T) {
	host := t.TempDir()
	write := func(name, text string, size int64) string {
		p := filepath.Join(host, name)
		require.NoError(t, os.WriteFile(p, []byte(text), 0o644))
		if size > 0 {
			require.NoError(t, os.Truncate(p, size))
		}
		return p
	}
	rw, ro := write("rw,comma.img", "old", 1<<20), write("ro.img", "fixed", 4096)
	file := write("in put.txt", "carried", 0)
	cfg := labConfig(t, "sh", "-ec", `
		printf new > "$RW"
		head -c 5 "$RO"
		! printf x > "$RO" 2>/dev/null
		cat "$IN"; pwd; uname -n
		test -d /sys/module/tun && test -d /sys/module/bridge
		echo one > out/file; mkdir -p "$TREE/sub"; echo two > "$TREE/sub/file"
		sleep 1000 & kill -TERM $$`)
	cfg.Env = []string{"RW=" + rw, "RO=" + ro, "IN=" + file, "TREE=/results"}
	cfg.Dir = "/work"
	cfg.CPUs = 2
	cfg.Files = []File{{Host: file}}
	cfg.Disks = []Disk{{Host: rw}, {Host: ro, ReadOnly: true}}
	cfg.Modules = []string{"tun", "bridge"}
	cfg.Outputs = []Output{
		{Host: filepath.Join(host, "file"), Path: "/work/out/file"},
		{Host: filepath.Join(host, "tree"), Path: "/results"},
		{Host: filepath.Join(host, "absent"), Path: "/never"},
	}
	code, stdout, stderr := run(t, cfg)
	require.Equal(t, 128+15, code, stderr)
	require.Equal(t, "fixedcarried/work\nlab\n", stdout)
	for name, want := range map[string]string{"file": "one\n", "tree/sub/file": "two\n"} {
		got, err := os.ReadFile(filepath.Join(host, name))
		require.NoError(t, err)
		require.Equal(t, want, string(got))
	}
	require.NoFileExists(t, filepath.Join(host, "absent"))
	image, err := os.ReadFile(rw)
	require.NoError(t, err)
	require.Equal(t, "new", string(image[:3]))
	require.Len(t, image, 1<<20)
}

func TestTerminal(t *testing.T) {
	cfg := labConfig(t, "sh", "-c", `stty size; test -t 0 && test -t 2 && read -r line && echo "got $line" && exit 3`)
	cfg.Terminal = &Size{Rows: 33, Cols: 99}
	cfg.Stdin = strings.NewReader("typed\r")
	code, stdout, _ := run(t, cfg)
	require.Equal(t, 3, code, stdout)
	require.Contains(t, stdout, "33 99\r\n")
	require.Contains(t, stdout, "got typed\r\n")
}

func TestFailures(t *testing.T) {
	t.Run("no such command", func(t *testing.T) {
		_, err := Run(t.Context(), labConfig(t, "nonesuch"))
		require.ErrorIs(t, err, ErrCommand)
		require.ErrorContains(t, err, "nonesuch")
	})
	t.Run("no such module", func(t *testing.T) {
		cfg := labConfig(t, "true")
		cfg.Modules = []string{"nonesuch"}
		_, err := Run(t.Context(), cfg)
		require.ErrorIs(t, err, ErrConfig)
	})
	t.Run("panic", func(t *testing.T) {
		_, err := Run(t.Context(), labConfig(t, "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 100"))
		require.ErrorIs(t, err, ErrMachine)
		require.ErrorContains(t, err, "sysrq triggered crash")
	})
	t.Run("does not come up", func(t *testing.T) {
		cfg := labConfig(t, "true")
		cfg.BootTimeout = time.Nanosecond
		_, err := Run(t.Context(), cfg)
		require.ErrorIs(t, err, ErrMachine)
		require.ErrorContains(t, err, "did not come up in 1ns")
	})
	t.Run("output refused", func(t *testing.T) {
		cfg := labConfig(t, "echo", "text")
		cfg.Stdout = failingWriter{}
		_, err := Run(t.Context(), cfg)
		require.ErrorIs(t, err, io.ErrClosedPipe)
	})
}

type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestCancelLeavesNoProcess(t *testing.T) {
	cfg := labConfig(t, "sleep", "1000")
	ctx, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("the user changed their mind")
	var children []string
	cfg.Started = func(Boot) {
		children = ownQEMUs(t)
		cancel(reason)
	}
	_, err := Run(ctx, cfg)
	require.ErrorIs(t, err, ErrMachine)
	require.ErrorIs(t, err, reason)
	require.Len(t, children, 1)
	require.Empty(t, ownQEMUs(t))
}

// ownQEMUs lists the QEMU processes whose parent is this process.
func ownQEMUs(t *testing.T) []string {
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	require.NoError(t, err)
	var found []string
	for _, task := range tasks {
		list, _ := os.ReadFile(task)
		for _, pid := range strings.Fields(string(list)) {
			name, _ := os.ReadFile("/proc/" + pid + "/comm")
			if strings.HasPrefix(string(name), "qemu") {
				found = append(found, pid)
			}
		}
	}
	return found
}

// BenchmarkBoot is the time from nothing to the command running.
func BenchmarkBoot(b *testing.B) {
	cfg := labConfig(b, "probe", "args")
	var total, modules time.Duration
	cfg.Started = func(boot Boot) { total += boot.Total; modules += boot.Modules }
	for b.Loop() {
		run(b, cfg)
	}
	b.ReportMetric(total.Seconds()/float64(b.N), "boot-s/op")
	b.ReportMetric(modules.Seconds()/float64(b.N), "modules-s/op")
}
