package tests

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/api"
	"godwit/migration"
	"godwit/migration/wire"
	"godwit/vmm"
)

// lastJSON reads the last line of stdout.
func lastJSON(t *testing.T, stdout string, to any) {
	t.Helper()
	lines := strings.Split(strings.TrimSpace(stdout), "\n")
	require.NoError(t, json.Unmarshal([]byte(lines[len(lines)-1]), to), stdout)
}

func TestRunPauseResumeStop(t *testing.T) {
	needKVM(t)
	sock := filepath.Join(t.TempDir(), "s")
	p := start(t, metronomeArgs(sock, "fill=16 ws=4 rate=500")...)
	p.awaitBeats(2)
	info := func() (i vmm.Info) {
		code, out, errs := godwit(t, "info", "--api-sock", sock, "--json")
		require.Zero(t, code, errs)
		lastJSON(t, out, &i)
		return i
	}
	require.Equal(t, "running", info().State)
	code, _, errs := godwit(t, "pause", "--api-sock", sock)
	require.Zero(t, code, errs)
	paused := info()
	require.Equal(t, "paused", paused.State)
	require.Equal(t, paused.Exits, info().Exits, "no vCPU runs")
	before := beats(p.out.String())
	code, _, errs = godwit(t, "resume", "--api-sock", sock)
	require.Zero(t, code, errs)
	p.awaitBeats(2)
	require.Greater(t, beats(p.out.String()), before)
	code, _, errs = godwit(t, "stop", "--api-sock", sock)
	require.Zero(t, code, errs)
	p.ends(0)
	noVM(t, sock)
	require.NotContains(t, p.out.String(), "metronome bad")
}

func TestNameFindsTheSocket(t *testing.T) {
	needKVM(t)
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	p := start(t, "run", "--guest", "metronome", "--memory", "64M", "--name", "by.name")
	p.await(p.out, "metronome up")
	code, out, errs := godwit(t, "info", "--name", "by.name")
	require.Zero(t, code, errs)
	require.Contains(t, out, "by.name  running")
	second := start(t, "run", "--guest", "metronome", "--memory", "64M", "--name", "by.name")
	second.ends(1)
	require.Contains(t, second.err.String(), "another process listens there")
	p.signal(unix.SIGTERM)
	p.ends(0)
}

func TestGuestFaultIsReported(t *testing.T) {
	needKVM(t)
	p := start(t, "run", "--guest", "metronome", "--memory", "64M", "--append", "plant=fault beat=50")
	p.ends(3)
	require.Contains(t, p.out.String(), "metronome fault")
	require.Contains(t, p.err.String(), "godwit: guest fault")
}

// receiver starts one on a free port and gives its address.
func receiver(t *testing.T, args ...string) (*process, string) {
	t.Helper()
	p := start(t, append([]string{"receive", "--listen", "tcp:127.0.0.1:0"}, args...)...)
	p.await(p.err, "listening on tcp:")
	m := regexp.MustCompile(`listening on (tcp:\S+)`).FindStringSubmatch(p.err.String())
	require.NotNil(t, m)
	return p, m[1]
}

func TestMigrateBetweenProcesses(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	src, dst := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	p := start(t, metronomeArgs(src, "fill=64 ws=16 rate=2000")...)
	p.awaitBeats(3)
	q, addr := receiver(t, "--api-sock", dst, "--once")
	code, out, errs := godwit(t, "migrate", "--api-sock", src, "--to", addr, "--verify", "--streams", "2", "--json")
	require.Zero(t, code, errs)
	var r migration.Report
	lastJSON(t, out, &r)
	require.Equal(t, migration.Completed, r.Status)
	require.NotNil(t, r.Verify)
	require.Equal(t, r.Verify.Source, r.Verify.Destination)
	require.Equal(t, 2, r.Streams)
	require.NotZero(t, r.Pages.Skipped, "memory that was never touched stays here")
	p.ends(0)
	require.Contains(t, p.err.String(), "the guest runs at "+addr)
	noVM(t, src)
	q.awaitBeats(20)
	require.NotContains(t, q.out.String(), "metronome bad")
	require.NotContains(t, q.out.String(), "metronome up", "it goes on, it does not boot")
	require.Regexp(t, `metronome beat .* bad=0 `, q.out.String())
	q.signal(unix.SIGTERM)
	q.ends(0)
}

func TestKeptSourceStaysPaused(t *testing.T) {
	needKVM(t)
	src := filepath.Join(t.TempDir(), "a")
	p := start(t, metronomeArgs(src, "fill=8")...)
	p.awaitBeats(2)
	q, addr := receiver(t)
	code, _, errs := godwit(t, "migrate", "--api-sock", src, "--to", addr, "--keep")
	require.Zero(t, code, errs)
	q.awaitBeats(2)
	_, out, _ := godwit(t, "info", "--api-sock", src)
	require.Contains(t, out, "paused")
	for _, args := range [][]string{{"resume"}, {"resume", "--force"}} {
		code, _, errs = godwit(t, append(args, "--api-sock", src)...)
		require.Equal(t, 1, code)
		require.Contains(t, errs, "runs elsewhere")
	}
	code, _, errs = godwit(t, "stop", "--api-sock", src)
	require.Zero(t, code, errs)
	p.ends(0)
}

// A bandwidth limit makes the migration long enough to be cancelled in its
// first round; by Ctrl-C on the command and by the command of its own.
func TestCancelLeavesTheSourceRunning(t *testing.T) {
	needKVM(t)
	src := filepath.Join(t.TempDir(), "a")
	p := start(t, metronomeArgs(src, "fill=64 ws=16 rate=1000")...)
	p.awaitBeats(3)
	q, addr := receiver(t)
	cancels := map[string]func(*process){
		"Ctrl-C": func(m *process) { m.signal(unix.SIGINT) },
		"command": func(*process) {
			code, _, errs := godwit(t, "migration", "cancel", "--api-sock", src)
			require.Zero(t, code, errs)
		},
	}
	for name, cancel := range cancels {
		waits := strings.Count(q.err.String(), "listening on "+addr)
		m := start(t, "migrate", "--api-sock", src, "--to", addr, "--bandwidth", "1MB/s", "--json")
		m.await(m.err, "round 1")
		code, out, errs := godwit(t, "migration", "set", "--api-sock", src, "bandwidth=2MB/s,downtime-limit=50ms")
		require.Zero(t, code, "%s %s", out, errs)
		code, out, _ = godwit(t, "migration", "status", "--api-sock", src, "--json")
		require.Zero(t, code)
		var st api.MigrationStatus
		lastJSON(t, out, &st)
		require.EqualValues(t, 2e6, st.Progress.Limit)
		cancel(m)
		m.ends(1)
		var r migration.Report
		lastJSON(t, m.out.String(), &r)
		require.Equal(t, migration.Cancelled, r.Status, name)
		p.awaitBeats(3)
		q.awaitThat("the receiver waits again", q.err, func(s string) bool {
			return strings.Count(s, "listening on "+addr) > waits
		})
	}
	// Nothing of it is in the way of one that succeeds.
	code, _, errs := godwit(t, "migrate", "--api-sock", src, "--to", addr, "--verify")
	require.Zero(t, code, errs)
	p.ends(0)
	q.awaitBeats(3)
	require.NotContains(t, q.out.String(), "metronome bad")
}

// Issue 2: bad input gets an error that helps, exit code 1 or 2, and no VM is
// left half-made.
func TestBadInput(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	file := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		return path
	}
	// A bzImage's header (Linux x86 boot protocol) with nothing behind it.
	bz := make([]byte, 0x268)
	bz[0x1f1] = 4
	binary.LittleEndian.PutUint16(bz[0x1fe:], 0xaa55)
	copy(bz[0x202-1:], "\x00HdrS")
	binary.LittleEndian.PutUint16(bz[0x206:], 0x020f)
	elf := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 57)...)
	good := []string{"--guest", "metronome", "--memory", "64M"}
	for _, c := range []struct {
		name string
		args []string
		says string
	}{
		{"truncated bzImage", []string{"--kernel", file("bz", bz)}, "kernel"},
		{"truncated ELF", []string{"--kernel", file("elf", elf)}, "kernel"},
		{"empty kernel", []string{"--kernel", file("empty", nil)}, "kernel"},
		{"not a kernel", []string{"--kernel", file("text", []byte("#!/bin/sh\necho hello\n"))}, "kernel"},
		{"kernel is a folder", []string{"--kernel", dir}, "kernel"},
		{"no such kernel", []string{"--kernel", filepath.Join(dir, "none")}, "no such file"},
		{"too little memory", []string{"--guest", "metronome", "--memory", "4M"}, "MiB"},
		{"more memory than there can be", []string{"--guest", "metronome", "--memory", "2000000G"}, ""},
		{"missing disk", append([]string{"--disk", "path=" + filepath.Join(dir, "none")}, good...), "no such file"},
		{"disk is a folder", append([]string{"--disk", "path=" + dir}, good...), ""},
		{"missing initrd", []string{"--kernel", file("k", bz), "--initrd", filepath.Join(dir, "none")}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			sock := filepath.Join(t.TempDir(), "s")
			code, _, errs := godwit(t, append([]string{"run", "--api-sock", sock}, c.args...)...)
			require.Contains(t, []int{1, 2}, code, errs)
			require.True(t, strings.HasPrefix(errs, "godwit: "), errs)
			require.Contains(t, errs, c.says)
			require.NotContains(t, errs, "goroutine ")
			noVM(t, sock)
		})
	}
}

// A locked image is in use: a second machine on it would destroy it.
func TestDiskInUse(t *testing.T) {
	needKVM(t)
	disk := filepath.Join(t.TempDir(), "disk")
	require.NoError(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	p := start(t, "run", "--guest", "metronome", "--memory", "64M", "--disk", "path="+disk)
	p.await(p.out, "metronome up")
	code, _, errs := godwit(t, "run", "--guest", "metronome", "--memory", "64M", "--disk", "path="+disk)
	require.Equal(t, 1, code)
	require.Contains(t, errs, disk)
}

func TestGarbageOnTheMigrationPort(t *testing.T) {
	needKVM(t)
	q, addr := receiver(t)
	target := strings.TrimPrefix(addr, "tcp:")
	h := wire.Hello{MinVersion: wire.Version + 1, MaxVersion: wire.Version + 9, Role: wire.RoleControl, PageSize: 4096, Streams: 1}
	var hello net.Buffers
	w := writerFunc(func(p []byte) (int, error) { hello = append(hello, append([]byte(nil), p...)); return len(p), nil })
	require.NoError(t, wire.NewWriter(w).Open(wire.TypeHello, h.Append(nil)))
	var newer []byte
	for _, b := range hello {
		newer = append(newer, b...)
	}
	for name, data := range map[string][]byte{
		"http":         []byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		"zeros":        make([]byte, 4096),
		"ones":         []byte(strings.Repeat("\xff", 4096)),
		"nothing":      nil,
		"newer":        newer,
		"cut in HELLO": newer[:len(newer)/2],
	} {
		conn, err := net.Dial("tcp", target)
		require.NoError(t, err)
		_, err = conn.Write(data)
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		require.NoError(t, conn.SetReadDeadline(time.Now().Add(time.Minute)))
		_, err = io.Copy(io.Discard, conn) // until the receiver hangs up, perhaps with a reset
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded, name)
		require.NoError(t, conn.Close())
	}
	q.await(q.err, "turned a connection away")
	q.await(q.err, "migration protocol") // a newer godwit is a source, and hears why it is refused
	require.NotContains(t, q.err.String(), "goroutine ")

	// It still takes a machine.
	src := filepath.Join(t.TempDir(), "a")
	p := start(t, metronomeArgs(src, "fill=8")...)
	p.awaitBeats(2)
	code, _, errs := godwit(t, "migrate", "--api-sock", src, "--to", addr)
	require.Zero(t, code, errs)
	q.awaitBeats(2)

	once, addr := receiver(t, "--once")
	conn, err := net.Dial("tcp", strings.TrimPrefix(addr, "tcp:"))
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	once.await(once.err, "turned a connection away") // and that was no migration
	once.signal(unix.SIGTERM)
	once.ends(1)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// A source whose destination is not there, or does not answer, runs on.
func TestMigrateToNowhere(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	src := filepath.Join(dir, "a")
	p := start(t, metronomeArgs(src, "fill=8")...)
	p.awaitBeats(2)
	code, _, errs := godwit(t, "migrate", "--api-sock", src, "--to", "unix:"+filepath.Join(dir, "none"))
	require.Equal(t, 1, code)
	require.Contains(t, errs, "no such file")
	l, err := net.Listen("unix", filepath.Join(dir, "deaf"))
	require.NoError(t, err)
	defer l.Close()
	code, _, errs = godwit(t, "migrate", "--api-sock", src, "--to", "unix:"+l.Addr().String(), "--timeout", "300ms")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "timed out")
	p.awaitBeats(2)
	d, err := api.NewClient(src).Describe(context.Background())
	require.NoError(t, err)
	require.Equal(t, api.StateRunning, d.State)
}

func TestDemo(t *testing.T) {
	needKVM(t)
	code, out, errs := godwit(t, "demo", "--memory", "256M", "--fill", "32", "--ws", "8", "--rate", "1000", "--json")
	require.Zero(t, code, errs)
	var r struct {
		OK       bool   `json:"ok"`
		BadPages uint64 `json:"bad_pages"`
		Moves    []struct {
			Report migration.Report `json:"report"`
		} `json:"moves"`
	}
	lastJSON(t, out, &r)
	require.True(t, r.OK)
	require.Zero(t, r.BadPages)
	require.Len(t, r.Moves, 2)
	require.Equal(t, 1, strings.Count(out, "\n"), "one JSON object and nothing else")
}

func TestDoctor(t *testing.T) {
	needKVM(t)
	code, out, errs := godwit(t, "doctor", "--json")
	require.Zero(t, code, errs)
	var x struct {
		Metronome bool     `json:"metronome_runs"`
		Verdict   []string `json:"verdict"`
	}
	lastJSON(t, out, &x)
	require.True(t, x.Metronome, errs)
	require.NotEmpty(t, x.Verdict)
	code, out, errs = godwit(t, "doctor")
	require.Zero(t, code, errs)
	require.Contains(t, out, "Linux guests: ")
}

// Whoever reads the console may go away; the guest stays.
func TestConsoleReaderGoes(t *testing.T) {
	needKVM(t)
	sock := filepath.Join(t.TempDir(), "s")
	r, w, err := os.Pipe()
	require.NoError(t, err)
	cmd := exec.Command(program, metronomeArgs(sock, "fill=8")...)
	cmd.Stdout = w
	require.NoError(t, cmd.Start())
	require.NoError(t, w.Close())
	_, err = r.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, r.Close())
	c := api.NewClient(sock)
	exits := func() uint64 {
		i, err := c.Info(context.Background())
		require.NoError(t, err)
		return i.Serial.WrittenBytes + i.Serial.LostBytes
	}
	first := exits()
	require.Eventually(t, func() bool { return exits() > first+100 }, time.Minute, 10*time.Millisecond)
	require.NoError(t, c.Stop(context.Background()))
	require.NoError(t, cmd.Wait())
}

// How the guest ended is told by the exit code, even where nobody reads its
// console and its last words are lost.
func TestBlockedConsoleHidesNothing(t *testing.T) {
	needKVM(t)
	for _, c := range []struct {
		options string
		code    int
		says    string
	}{
		{"plant=fault", 3, "godwit: guest fault"},
		{"fill=8", 0, "godwit: warning: "},
	} {
		r, w, err := os.Pipe()
		require.NoError(t, err)
		defer r.Close()
		fill(t, w)
		sock := filepath.Join(t.TempDir(), "s")
		cmd := exec.Command(program, metronomeArgs(sock, c.options)...)
		diag := newWatched()
		cmd.Stdout, cmd.Stderr = w, diag
		require.NoError(t, cmd.Start())
		require.NoError(t, w.Close())
		p := &process{t: t, cmd: cmd, err: diag, done: make(chan struct{})}
		go func() { defer close(p.done); _ = cmd.Wait() }()
		t.Cleanup(func() { _ = cmd.Process.Kill(); <-p.done })
		if c.code == 0 {
			client := api.NewClient(sock)
			require.Eventually(t, func() bool {
				i, err := client.Info(context.Background())
				return err == nil && i.State == "running" && i.Exits[0] > 10
			}, time.Minute, 10*time.Millisecond)
			require.NoError(t, client.Stop(context.Background()))
		}
		p.ends(c.code)
		require.Contains(t, diag.String(), c.says)
		require.Contains(t, diag.String(), "godwit: warning: ")
		for line := range strings.Lines(diag.String()) {
			if strings.Contains(line, "warning") {
				require.True(t, strings.HasPrefix(line, "godwit: "), line)
			}
		}
	}
}

// fill writes to a pipe until it takes no more.
func fill(t *testing.T, w *os.File) {
	t.Helper()
	raw, err := w.SyscallConn()
	require.NoError(t, err)
	page := make([]byte, os.Getpagesize())
	require.NoError(t, raw.Write(func(fd uintptr) bool {
		for err == nil {
			_, err = unix.Write(int(fd), page) // Go's pipes do not block
		}
		return true
	}))
	require.ErrorIs(t, err, unix.EAGAIN)
}
