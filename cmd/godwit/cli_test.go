package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/api"
	"godwit/cmd/godwit/internal/units"
	"godwit/migration"
	"godwit/vmm"
)

// The test binary is godwit where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv("GODWIT_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

func godwit(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), "GODWIT_TEST_MAIN=1", "XDG_RUNTIME_DIR="+t.TempDir())
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	err := cmd.Run()
	if err != nil {
		require.IsType(t, &exec.ExitError{}, err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), diag.String()
}

// Nothing here reaches KVM: bad usage is found before.
func TestExitCodesAndMessages(t *testing.T) {
	dir := t.TempDir()
	config := filepath.Join(dir, "c.json")
	require.NoError(t, os.WriteFile(config, []byte(`{"machine-confg":{}}`), 0o600))
	absent := filepath.Join(dir, "absent.sock")
	for _, c := range []struct {
		args string
		code int
		says string
	}{
		{"", 2, "no command given"},
		{"fly", 2, `unknown command "fly"`},
		{"run --colour red", 2, "unknown flag: --colour"},
		{"run extra", 2, "extra"},
		{"run", 2, "give --kernel FILE or --guest metronome"},
		{"run --guest tetris", 2, "there is metronome"},
		{"run --guest metronome --kernel x", 2, "give one"},
		{"run --guest metronome --memory lots", 2, "512M"},
		{"run --guest metronome --memory 1M", 2, "MiB"},
		{"run --guest metronome --cpus 0", 2, "a whole number from 1 to"},
		{"run --guest metronome --cpus 1000000", 2, "a whole number from 1 to"},
		{"run --guest metronome --disk root.img", 2, "path=FILE"},
		{"run --guest metronome --disk path=a,format=vmdk", 2, "use raw or qcow2"},
		{"run --guest metronome --disk path=a,readonly,snapshot", 2, "give one"},
		{"run --guest metronome --disk path=a,id=x --disk path=b,id=x", 2, "two drives"},
		{"run --guest metronome --memory-backing tape", 2, "tape"},
		{"run --guest metronome --serial modem", 2, "write stdio, none"},
		{"run --guest metronome --name a/b", 2, "name"},
		{"run --config " + config, 2, "machine-confg"},
		{"run --config " + absent, 1, "no such file"},
		{"run --guest metronome --serial file:/no/x", 1, "no such file"},
		{"run --guest metronome --api-sock /no/x", 1, "no such file"},
		{"run --kernel /no", 1, "no such file"},
		{"receive", 2, "--listen"},
		{"receive --listen udp:x", 2, "tcp:HOST:PORT"},
		{"receive --listen file:x", 1, "no such file"},
		{"receive --listen file:", 2, "file:PATH"},
		{"receive --listen file:x --stall 5m", 2, "--stall has nothing to act on with --listen file:x"},
		{"receive --listen file:x --timeout 1m", 2, "--timeout has nothing to act on"},
		{"receive --listen file:x --once", 2, "--once has nothing to act on"},
		{"receive --listen unix:x --disk vda", 2, "ID=PATH"},
		{"receive --listen tcp:0.0.0.0:0", 2, "--insecure if only trusted machines can connect"},
		{"receive --listen tcp::0", 2, "--tls-cert, --tls-key and --tls-ca"},
		{"receive --listen tcp:[::]:0", 2, "can be reached from other hosts"},
		{"receive --listen tcp:192.0.2.1:0", 2, "can be reached from other hosts"},
		{"receive --listen tcp:0.0.0.0:0 --tls-cert x", 2, "--tls-key and --tls-ca missing"},
		{"receive --listen tcp:0.0.0.0:0 --tls-cert x --tls-key x --tls-ca x --insecure", 2, "both --insecure and --tls-*"},
		{"receive --listen tcp:0.0.0.0:0 --tls-cert no.pem --tls-key no.key --tls-ca ca.pem", 1, "--tls-cert: open no.pem"},
		{"receive --listen unix:x --tls-cert x --tls-key x --tls-ca x", 2, "unix:x is none"},
		{"receive --listen file:x --tls-cert x --tls-key x --tls-ca x", 2, "file:x is none"},
		{"migrate --name a", 2, "--to"},
		{"migrate --to tcp:h:1", 2, "which machine"},
		{"migrate --to tcp:h:1 --name a --tls-ca x", 2, "--tls-cert and --tls-key missing"},
		{"migrate --to unix:x --name a --tls-cert x --tls-key x --tls-ca x", 2, "is for tcp:HOST:PORT"},
		{"migrate --to file:x --name a --tls-cert x --tls-key x --tls-ca x", 2, "is for tcp:HOST:PORT"},
		{"migrate --to tcp:h:1 --name a --api-sock b", 2, "both"},
		{"migrate --to tcp:h:1 --name a --bandwidth 5", 2, "125MB/s"},
		{"migrate --to tcp:h:1 --name a --downtime-limit soon", 2, "30ms"},
		{"migrate --to tcp:h:1 --name a --downtime-limit 0", 2, "cannot be met"},
		{"migrate --to tcp:h:1 --name a --timeout -1s", 2, "2s"},
		{"migrate --to tcp:h:1 --api-sock " + absent, 1, "does the machine run"},
		{"pause", 2, "which machine"},
		{"info --api-sock " + absent, 1, "connect to"},
		{"migration", 2, "status, cancel or set"},
		{"migration set speed=3 --name a", 2, "no setting"},
		{"balloon set lots --name a", 2, "write for example 512M"},
		{"run --guest metronome --balloon size=1G", 2, "balloon of 1024 MiB in a machine of 512 MiB"},
		{"image", 2, "info, create, convert, check"},
		{"image info", 2, "accepts 1 arg"},
		{"image info " + absent, 1, "no such file"},
		{"image info x --format vmdk", 2, "raw and qcow2"},
		{"image create x", 2, "how large"},
		{"image create x 10Q", 2, "512M"},
		{"image create x 100", 2, "multiple of 512"},
		{"image create x 1G --format raw --cluster-size 64K", 2, "use --format qcow2"},
		{"image create x 1G --cluster-size 3K", 2, "power of two"},
		{"image create x 1G --compat v4", 2, "v2 or v3"},
		{"image create x 1G --compat v2 --compression zstd", 2, "zlib only"},
		{"image create x 1G --compression lzma", 2, "zlib or zstd"},
		{"image create x 1G --refcount-bits 3", 2, "1, 2, 4"},
		{"image create x 1G --preallocate full", 2, "off or metadata"},
		{"image create x --backing " + config, 2, "say the format"},
		{"image create x --backing " + absent + " --backing-format raw", 1, "no such file"},
		{"image create " + config + " 1G", 1, "pass --force"},
		{"image convert x", 2, "accepts 2 arg"},
		{"image convert " + absent + " y", 1, "no such file"},
		{"image convert " + config + " y --to raw --compress", 2, "only qcow2 images can be compressed"},
		{"image convert " + config + " y --workers -1", 2, "a whole number from 0 to"},
		{"image check " + absent, 1, "no such file"},
		{"image check " + config, 1, "only qcow2 images have something to check"},
		{"image check x --repair some", 2, "leaks or all"},
		{"image check x --findings -1", 2, "a whole number from 0 to"},
		{"demo --linux", 2, "--kernel FILE"},
		{"demo --disk path=x", 2, "--linux"},
		{"lab", 2, "which command"},
		{"lab --prepare -- run", 2, "runs no command"},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			code, stdout, stderr := godwit(t, strings.Fields(c.args)...)
			require.Equal(t, c.code, code, stderr)
			require.Contains(t, stderr, c.says)
			require.Contains(t, stderr, "godwit: ")
			if c.args != "" && c.args != "migration" && c.args != "image" {
				require.Empty(t, stdout)
			}
		})
	}
}

func TestOneLine(t *testing.T) {
	joined := errors.Join(errors.New("first"), fmt.Errorf("second: %w", errors.Join(errors.New("third"), errors.New("fourth\n"))))
	require.Equal(t, "first; second: third; fourth", oneLine(joined.Error()))
	require.Equal(t, "as it is", oneLine("as it is"))
	require.Empty(t, oneLine(" \n\n"))
}

func TestLabCPUs(t *testing.T) {
	for host, want := range map[int]int{1: 1, 2: 2, 64: 2} {
		require.Equal(t, want, labCPUs(host))
	}
}

func TestLabModules(t *testing.T) {
	require.Empty(t, labModules([]string{"run", "--disk", "path=a"}))
	for _, flag := range []string{"--net", "--net=tap=t0", "--config"} {
		require.Equal(t, []string{"tun"}, labModules([]string{"run", flag}), flag)
	}
}

// A script's & has SIGINT ignored; SIGTERM ends a command however it was
// started.
func TestSignalsIgnoredFromTheStart(t *testing.T) {
	for _, ignored := range []string{"", "INT", "INT HUP TERM"} {
		sock := filepath.Join(t.TempDir(), "in")
		cmd := exec.Command("sh", "-c", `trap "" $1; shift; exec "$@"`, "sh", ignored+" PIPE", os.Args[0], "receive", "--listen", "unix:"+sock, "--serial", "none")
		cmd.Env = append(os.Environ(), "GODWIT_TEST_MAIN=1")
		stderr, err := cmd.StderrPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill() }) // left over only where the test fails
		lines := bufio.NewScanner(stderr)
		require.True(t, lines.Scan())
		require.Contains(t, lines.Text(), "listening on")
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
		require.NoError(t, err)
		m := regexp.MustCompile(`SigIgn:\s*(\w+)`).FindSubmatch(status)
		require.NotNil(t, m)
		mask, err := strconv.ParseUint(string(m[1]), 16, 64)
		require.NoError(t, err)
		has := func(s unix.Signal) bool { return mask>>(s-1)&1 == 1 }
		// What nohup, say, had this process ignore its children ignore, too.
		require.Equal(t, strings.Contains(ignored, "INT") || signal.Ignored(unix.SIGINT), has(unix.SIGINT), ignored)
		require.Equal(t, strings.Contains(ignored, "HUP") || signal.Ignored(unix.SIGHUP), has(unix.SIGHUP), ignored)
		require.False(t, has(unix.SIGTERM), ignored)
		require.NoError(t, cmd.Process.Signal(unix.SIGTERM))
		require.True(t, lines.Scan())
		require.Equal(t, "godwit: ended before a machine came", lines.Text())
		require.Error(t, cmd.Wait())
		require.Equal(t, 1, cmd.ProcessState.ExitCode())
	}
}

// Every flag of every command explains itself, and every command has an example.
func TestHelp(t *testing.T) {
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if !c.HasSubCommands() {
			require.NotEmpty(t, c.Example, c.CommandPath())
		}
		require.NotEmpty(t, c.Short, c.CommandPath())
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && f.Name != "version" {
				require.Contains(t, f.Usage, " as ", "%s --%s has an example", c.CommandPath(), f.Name)
				require.Contains(t, f.Usage, "--"+f.Name, "%s --%s: the example shows it", c.CommandPath(), f.Name)
			}
		})
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(newRoot())
	code, out, _ := godwit(t, "help", "run")
	require.Zero(t, code)
	require.Contains(t, out, "--memory")
	code, out, _ = godwit(t, "--version")
	require.Zero(t, code)
	require.Contains(t, out, api.Version())
}

func TestParseDrive(t *testing.T) {
	d, err := parseDrive("path=/a=b.img,id=root,format=raw,readonly,cache=none")
	require.NoError(t, err)
	require.Equal(t, vmm.Drive{ID: "root", PathOnHost: "/a=b.img", IsReadOnly: true, Format: "raw", Cache: "none"}, d)
	d, err = parseDrive("path=a,,b,,,,c,,,readonly")
	require.NoError(t, err)
	require.Equal(t, vmm.Drive{PathOnHost: "a,b,,c,", IsReadOnly: true}, d, "a comma is written twice")
	d, err = parseDrive("path=a,on-full=report")
	require.NoError(t, err)
	require.Equal(t, vmm.Drive{PathOnHost: "a", OnFull: vmm.OnFullReport}, d)
	d, err = parseDrive("path=a,format=qcow2,snapshot")
	require.NoError(t, err)
	require.Equal(t, vmm.Drive{PathOnHost: "a", Format: "qcow2", Snapshot: true}, d)
	for _, s := range []string{"", "a.img", "path=", "id=x", "path=a,ro", "path=a,readonly=yes", "path=a,snapshot=on", "path=a,path=b", "path"} {
		_, err := parseDrive(s)
		require.ErrorIs(t, err, units.ErrSyntax, s)
	}
}

func TestDiskMap(t *testing.T) {
	v := diskMapValue{}
	require.NoError(t, v.Set("vda=/srv/a=b.img"))
	require.Equal(t, diskMapValue{"vda": "/srv/a=b.img"}, v)
	for _, s := range []string{"", "vda", "=x", "vdb=", "vda=/other"} {
		require.ErrorIs(t, v.Set(s), units.ErrSyntax, s)
	}
}

func TestParseUpdate(t *testing.T) {
	u, err := parseUpdate("bandwidth=1MB/s,downtime-limit=50ms,throttle=step,by=10")
	require.NoError(t, err)
	require.Equal(t, int64(1e6), *u.Bandwidth)
	require.Equal(t, 50., *u.DowntimeLimitMS)
	require.Equal(t, "step,by=10", *u.Throttle)
	u, err = parseUpdate("throttle=none")
	require.NoError(t, err)
	require.Nil(t, u.Bandwidth)
	for _, s := range []string{"", "throttle=", "bandwidth", "bandwidth=1", "bandwidth=0,bandwidth=0", "downtime-limit=-1s", "x=1"} {
		_, err := parseUpdate(s)
		require.ErrorIs(t, err, units.ErrSyntax, s)
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"path=a,id=b", "throttle=none", "bandwidth=1MB/s,downtime-limit=1s", "30ms"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if d, err := parseDrive(s); err == nil && d.PathOnHost == "" {
			t.Fatalf("drive %q has no path", s)
		}
		if d, err := parseTime(s); err == nil && d < 0 {
			t.Fatalf("time %q is %v", s, d)
		}
		_, _ = parseUpdate(s)
		parseBeat(s)
		parseCount(s)
	})
}

func TestFlagsWinOverTheFile(t *testing.T) {
	config := filepath.Join(t.TempDir(), "c.json")
	require.NoError(t, os.WriteFile(config, []byte(`{"id":"file","boot-source":{"kernel_image_path":"k","append_args":"x"},
		"machine-config":{"vcpu_count":2,"mem_size_mib":256},"drives":[{"drive_id":"a","path_on_host":"p"}]}`), 0o600))
	build := func(args ...string) vmm.Config {
		var m machineFlags
		f := pflag.NewFlagSet("run", pflag.ContinueOnError)
		m.add(f)
		require.NoError(t, f.Parse(append([]string{"--config", config}, args...)))
		cfg, err := m.build(f)
		require.NoError(t, err)
		return cfg
	}
	plain := build()
	require.Equal(t, "file", plain.ID)
	require.Equal(t, 256, plain.Machine.MemSizeMiB)
	over := build("--guest", "metronome", "--memory", "1G", "--name", "flag", "--disk", "path=q", "--disk", "path=r")
	require.Equal(t, vmm.BootSource{Guest: "metronome", AppendArgs: "x"}, over.BootSource)
	require.Equal(t, vmm.MachineConfig{VCPUCount: 2, MemSizeMiB: 1024}, over.Machine)
	require.Equal(t, "flag", over.ID)
	require.Len(t, over.Drives, 2)
}

func TestSocketOf(t *testing.T) {
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	path, err := socketOf("web")
	require.NoError(t, err)
	require.Equal(t, "/run/user/7/godwit/web.sock", path)
	t.Setenv("XDG_RUNTIME_DIR", "")
	path, err = socketOf("web")
	require.NoError(t, err)
	require.True(t, filepath.IsAbs(path))
	for _, name := range []string{"", "../x", "a/b", ".x", strings.Repeat("x", 65)} {
		_, err := socketOf(name)
		require.Equal(t, exitUsage, codeOf(err), name)
	}
}

func TestMakeSocketDir(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "godwit")
	require.NoError(t, makeSocketDir(filepath.Join(dir, "a.sock")))
	require.NoError(t, makeSocketDir(filepath.Join(dir, "b.sock")), "it is there already")
	require.NoError(t, os.Chmod(dir, 0o777))
	require.ErrorContains(t, makeSocketDir(filepath.Join(dir, "c.sock")), "not this user's alone")
}

func TestLineLogJoinsATornLine(t *testing.T) {
	a, b := newLineLog(), newLineLog()
	a.read(strings.NewReader("count 1 t=1\r\ncou"))
	b.read(strings.NewReader("nt 2 t=2\ncount 3 t=3\n"))
	require.Equal(t, []string{"count 1 t=1", "count 2 t=2", "count 3 t=3"}, a.joined(0, b))
	var m demoMove
	g := &linuxGuest{}
	require.NoError(t, g.after(&m, a.joined(0, b)))
	require.Equal(t, [2]uint64{1, 3}, m.Counts)
	require.ErrorContains(t, g.after(&m, []string{"count 4 t=1", "count 6 t=1"}), "from 4 to 6")
	require.ErrorContains(t, g.after(&m, []string{"count 4 t=1", "count 4 t=1"}), "from 4 to 4")
}

func TestTimeValue(t *testing.T) {
	var v timeValue
	require.NoError(t, v.Set("1.5ms"))
	require.Equal(t, 1.5, v.ms())
	require.Equal(t, 1500*time.Microsecond, time.Duration(v))
}

func TestSummarySaysHowFarTheGuestWasSlowed(t *testing.T) {
	for want, r := range map[string]migration.Report{
		"": {},
		"  slowed    to 40% of its processors' time\n":                                           {ThrottleMax: 60},
		"  slowed    to 20 MB/s of new dirty pages per vCPU\n":                                   {DirtyLimit: 4883},
		"  slowed    to 1% of its processors' time, and to 1 MB/s of new dirty pages per vCPU\n": {ThrottleMax: 99, DirtyLimit: 245},
	} {
		text := summary(api.MigrationStatus{To: "tcp:h:1", Report: &r})
		require.Equal(t, want != "", strings.Contains(text, "slowed"), text)
		require.Contains(t, text, want)
	}
}

// TestUnwrittenIsAResult: a disk that could not be written to its end is no mere
// warning.
func TestUnwrittenIsAResult(t *testing.T) {
	unwritten := fmt.Errorf("%w: disk full", vmm.ErrUnwritten)
	for _, kind := range []vmm.ExitKind{vmm.ExitPowerOff, vmm.ExitReset, vmm.ExitStopped, vmm.ExitMigrated} {
		lost, other := judgeClose(vmm.Exit{Kind: kind}, errors.Join(errors.New("console"), unwritten))
		require.ErrorIs(t, lost, vmm.ErrUnwritten)
		require.NoError(t, other)
		require.Equal(t, exitFailed, codeOf(action(func(*cobra.Command, []string) error { return lost })(&cobra.Command{}, nil)))
	}
	lost, other := judgeClose(vmm.Exit{Kind: vmm.ExitFault}, unwritten)
	require.NoError(t, lost)
	require.ErrorIs(t, other, vmm.ErrUnwritten)
	lost, other = judgeClose(vmm.Exit{}, errors.New("console"))
	require.NoError(t, lost)
	require.Error(t, other)
}
