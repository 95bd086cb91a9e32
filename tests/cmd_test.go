package tests

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
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
			return strings.HasSuffix(strings.TrimSpace(s), "listening on "+addr)
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
		failures := strings.Count(q.err.String(), "a migration failed: ")
		conn, err := net.Dial("tcp", target)
		require.NoError(t, err)
		_, err = conn.Write(data)
		require.NoError(t, err)
		require.NoError(t, conn.(*net.TCPConn).CloseWrite())
		q.awaitThat(name+" is refused", q.err, func(s string) bool { return strings.Count(s, "a migration failed: ") > failures })
		require.NoError(t, conn.Close())
	}
	require.Contains(t, q.err.String(), "migration protocol")
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
	require.Eventually(t, func() bool { return exits() > first+100 }, patience, 10*time.Millisecond)
	require.NoError(t, c.Stop(context.Background()))
	require.NoError(t, cmd.Wait())
}

// savedMachine saves a metronome, with a disk, in a file.
func savedMachine(t *testing.T, flags ...string) (source *process, sock, disk, saved string) {
	t.Helper()
	dir := t.TempDir()
	sock, disk, saved = filepath.Join(dir, "a"), filepath.Join(dir, "disk"), filepath.Join(dir, "saved")
	require.NoError(t, os.WriteFile(disk, make([]byte, 1<<20), 0o600))
	source = start(t, append(metronomeArgs(sock, "fill=32 ws=8 rate=1000"), "--disk", "id=d,path="+disk)...)
	source.awaitBeats(3)
	code, out, errs := godwit(t, append([]string{"migrate", "--api-sock", sock, "--to", "file:" + saved, "--verify", "--json"}, flags...)...)
	require.Zero(t, code, errs)
	var r migration.Report
	lastJSON(t, out, &r)
	require.Equal(t, migration.Completed, r.Status)
	require.NotEmpty(t, r.Verify.Source)
	source.await(source.err, "godwit: the guest is saved in "+saved)
	left, err := filepath.Glob(saved + "*")
	require.NoError(t, err)
	require.Equal(t, []string{saved}, left, "nothing is left beside it")
	return source, sock, disk, saved
}

func TestSaveAndRestore(t *testing.T) {
	needKVM(t)
	p, sock, disk, saved := savedMachine(t)
	p.ends(0)
	noVM(t, sock)
	restore := func() *process {
		q := start(t, "receive", "--listen", "file:"+saved, "--disk", "d="+disk, "--api-sock", sock)
		q.awaitBeats(20)
		require.NotContains(t, q.out.String(), "metronome bad")
		require.NotContains(t, q.out.String(), "metronome up", "it goes on, it does not boot")
		code, _, errs := godwit(t, "stop", "--api-sock", sock)
		require.Zero(t, code, errs)
		q.ends(0)
		require.Contains(t, q.err.String(), "is restored from")
		return q
	}
	require.NotContains(t, restore().err.String(), "warning")
	require.Contains(t, restore().err.String(), "was restored before")

	// Saved anew under the same name, it has not been restored yet.
	_, _, disk2, saved2 := savedMachine(t)
	require.NoError(t, os.Rename(saved2, saved))
	require.NoError(t, os.Rename(disk2, disk))
	require.NotContains(t, restore().err.String(), "warning")
}

// What is kept after a save may run on, once its disks are free.
func TestSavedAndKept(t *testing.T) {
	needKVM(t)
	p, sock, disk, saved := savedMachine(t, "--keep")
	_, out, _ := godwit(t, "info", "--api-sock", sock)
	require.Contains(t, out, "paused")
	require.Contains(t, out, "is saved in")
	code, _, errs := godwit(t, "migrate", "--api-sock", sock, "--to", "file:"+saved)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "resume it first")
	q := start(t, "receive", "--listen", "file:"+saved, "--disk", "d="+disk)
	q.awaitBeats(3)
	code, _, errs = godwit(t, "resume", "--api-sock", sock)
	require.Equal(t, 1, code, "the restored copy has the disk")
	require.Contains(t, errs, "take the disks back")
	code, _, errs = godwit(t, "receive", "--listen", "file:"+saved, "--disk", "d="+disk)
	require.Equal(t, 1, code)
	require.Contains(t, errs, "another process holds the lock")
	q.signal(unix.SIGTERM)
	q.ends(0)
	before := beats(p.out.String())
	code, _, errs = godwit(t, "resume", "--api-sock", sock)
	require.Zero(t, code, errs)
	p.awaitBeats(10)
	require.Greater(t, beats(p.out.String()), before)
	require.NotContains(t, p.out.String(), "metronome bad")
	p.await(p.err, "does not fit its disks any more")
	code, _, errs = godwit(t, "migrate", "--api-sock", sock, "--to", "file:"+saved)
	require.Zero(t, code, errs)
	p.ends(0)
}

func TestBadSavedMachine(t *testing.T) {
	needKVM(t)
	p, _, disk, saved := savedMachine(t)
	p.ends(0)
	whole, err := os.ReadFile(saved)
	require.NoError(t, err)
	changed := func(at int) []byte {
		c := append([]byte(nil), whole...)
		c[at] ^= 0x40
		return c
	}
	h := wire.Hello{MinVersion: wire.Version + 1, MaxVersion: wire.Version + 9, Role: wire.RoleFile, PageSize: 4096, Streams: 1}
	var newer bytes.Buffer
	require.NoError(t, wire.NewWriter(&newer).Open(wire.TypeHello, h.Append(nil)))
	control := new(bytes.Buffer)
	h.MinVersion, h.Role = wire.Version, wire.RoleControl
	require.NoError(t, wire.NewWriter(control).Open(wire.TypeHello, h.Append(nil)))
	bad := filepath.Join(t.TempDir(), "bad")
	for name, c := range map[string]struct {
		data []byte
		says string
	}{
		"empty":               {nil, "cut short"},
		"garbage":             {[]byte("#!/bin/sh\necho hello\n"), "is no file that godwit migrate"},
		"newer":               {newer.Bytes(), "migration protocol"},
		"not a file's stream": {control.Bytes(), "role"},
		"cut in HELLO":        {whole[:20], "cut short"},
		"cut in CONFIG":       {whole[:200], "cut short"},
		"cut in its pages":    {whole[:len(whole)/2], "cut short"},
		"cut at its end":      {whole[:len(whole)-1], "cut short"},
		"changed CONFIG":      {changed(150), "damaged"},
		"changed page":        {changed(len(whole) / 2), "damaged"},
		"changed end":         {changed(len(whole) - 2), "damaged"},
	} {
		require.NoError(t, os.WriteFile(bad, c.data, 0o600))
		code, _, errs := godwit(t, "receive", "--listen", "file:"+bad, "--disk", "d="+disk)
		require.Equal(t, 1, code, "%s: %s", name, errs)
		require.Contains(t, errs, bad, name)
		require.Contains(t, errs, c.says, name)
		require.NotContains(t, errs, "goroutine ")
		_, err := os.Lstat(bad + ".restored")
		require.ErrorIs(t, err, os.ErrNotExist, "%s: it was not restored", name)
	}
	for _, path := range []string{t.TempDir(), bad + ".none"} {
		code, _, errs := godwit(t, "receive", "--listen", "file:"+path)
		require.Equal(t, 1, code)
		require.Contains(t, errs, path)
	}
}

func TestSaveCancelledOrRefused(t *testing.T) {
	needKVM(t)
	dir := t.TempDir()
	sock, saved := filepath.Join(dir, "a"), filepath.Join(dir, "saved")
	p := start(t, metronomeArgs(sock, "fill=64")...)
	p.awaitBeats(3)
	code, _, errs := godwit(t, "migrate", "--api-sock", sock, "--to", "file:"+saved, "--bandwidth", "1MB/s", "--timeout", "200ms")
	require.Equal(t, 1, code)
	require.Contains(t, errs, "timed out")
	m := start(t, "migrate", "--api-sock", sock, "--to", "file:"+saved, "--bandwidth", "1MB/s", "--json")
	m.await(m.err, "last-pages")
	m.signal(unix.SIGINT)
	m.ends(1)
	var r migration.Report
	lastJSON(t, m.out.String(), &r)
	require.Equal(t, migration.Cancelled, r.Status)
	precious := filepath.Join(dir, "root.img")
	require.NoError(t, os.WriteFile(precious, []byte("somebody's disk"), 0o600))
	for path, says := range map[string]string{precious: "will not be replaced", dir: "is no file", filepath.Join(dir, "no", "where"): "no such file"} {
		code, _, errs := godwit(t, "migrate", "--api-sock", sock, "--to", "file:"+path)
		require.Equal(t, 1, code, errs)
		require.Contains(t, errs, says)
	}
	p.awaitBeats(3)
	left, err := filepath.Glob(saved + "*")
	require.NoError(t, err)
	require.Empty(t, left)
}

// losingTarget takes everything and then does not run.
type losingTarget struct {
	memory []migration.Region
	run    func() error
}

func (l *losingTarget) Memory() []migration.Region        { return l.memory }
func (l *losingTarget) Populate([]migration.Extent) error { return nil }
func (l *losingTarget) LoadState(r io.Reader) error       { _, err := io.Copy(io.Discard, r); return err }
func (l *losingTarget) Acquire() error                    { return nil }
func (l *losingTarget) Run() error                        { return l.run() }
func (l *losingTarget) Abort() error                      { return nil }

// After GO the source never runs the guest by itself: what it knows is said by
// run and info, and resume does what is safe.
func TestOutcomeAfterGO(t *testing.T) {
	needKVM(t)
	for _, known := range []bool{true, false} {
		dir := t.TempDir()
		sock := filepath.Join(dir, "a")
		p := start(t, metronomeArgs(sock, "fill=8")...)
		p.awaitBeats(2)
		to := api.Address{Network: "unix", Target: filepath.Join(dir, "in")}
		l, err := to.Listen()
		require.NoError(t, err)
		defer l.Close()
		var mu sync.Mutex
		var conns []net.Conn
		accept := func(ctx context.Context) (net.Conn, error) {
			c, err := migration.AcceptFrom(l)(ctx)
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				conns = append(conns, c)
			}
			return c, err
		}
		target := &losingTarget{memory: []migration.Region{{Bytes: make([]byte, 256<<20)}}, run: func() error {
			mu.Lock()
			defer mu.Unlock()
			for _, c := range conns {
				if !known {
					_ = c.Close()
				}
			}
			return errors.New("it will not run")
		}}
		received := make(chan error, 1)
		go func() {
			_, _, err := migration.Receive(context.Background(), accept,
				func(context.Context, []byte) (migration.Target, error) { return target, nil }, migration.ReceiveOptions{Lease: time.Second})
			received <- err
		}()
		code, _, errs := godwit(t, "migrate", "--api-sock", sock, "--to", to.String())
		require.Equal(t, 1, code)
		require.Error(t, <-received)
		_, info, _ := godwit(t, "info", "--api-sock", sock)
		require.Contains(t, info, "paused")
		want := "nobody can know which side has the guest"
		if known {
			want = "godwit resume lets it run on at once"
		} else {
			require.Contains(t, errs, want)
			code, _, errs = godwit(t, "resume", "--api-sock", sock)
			require.Equal(t, 1, code)
			require.Contains(t, errs, "--force")
		}
		p.await(p.err, want)
		require.Contains(t, info, want)
		before := beats(p.out.String())
		resume := []string{"resume", "--api-sock", sock}
		if !known {
			resume = append(resume, "--force")
		}
		code, _, errs = godwit(t, resume...)
		require.Zero(t, code, errs)
		p.awaitBeats(3)
		require.Greater(t, beats(p.out.String()), before)
		p.await(p.err, "was resumed here")
	}
}

// A process whose machine was stopped ends, whoever is connected with its
// socket: here one who says nothing, and one who watches and hears the reason.
// That it waits for neither is shown in package api.
func TestStopWithClients(t *testing.T) {
	needKVM(t)
	sock := filepath.Join(t.TempDir(), "s")
	q, addr := receiver(t, "--api-sock", sock)
	p := start(t, metronomeArgs(sock+"2", "fill=8")...)
	p.awaitBeats(1)
	code, _, errs := godwit(t, "migrate", "--api-sock", sock+"2", "--to", addr)
	require.Zero(t, code, errs)
	q.awaitBeats(1)
	silent, err := net.Dial("unix", sock)
	require.NoError(t, err)
	defer silent.Close()
	deaf, err := net.Listen("unix", sock+"3")
	require.NoError(t, err)
	defer deaf.Close()
	m := start(t, "migrate", "--api-sock", sock, "--to", "unix:"+sock+"3", "--json")
	m.await(m.err, "connect")
	code, _, errs = godwit(t, "stop", "--api-sock", sock)
	require.Zero(t, code, errs)
	q.ends(0)
	m.ends(1)
	require.Contains(t, m.out.String(), "the guest ended")
}
