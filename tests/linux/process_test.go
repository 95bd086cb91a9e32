package linux

import (
	"bytes"
	"encoding/json"
	"io"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// process is a godwit command under test, or another program.
type process struct {
	cmd      *exec.Cmd
	out, err *console
	in       io.WriteCloser
	done     chan struct{} // closed once it has ended
}

// godwit starts a command. It is killed with the test.
func godwit(t testing.TB, args ...string) *process {
	t.Helper()
	return start(t, exec.Command(godwitPath, args...))
}

func start(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, out: newConsole(), err: newConsole(), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	in, err := p.cmd.StdinPipe()
	require.NoError(t, err)
	p.in = in
	require.NoError(t, p.cmd.Start())
	go func() {
		defer close(p.done)
		_ = p.cmd.Wait() // the exit code is asked for below
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
	})
	examineOnFailure(t, strings.Join(cmd.Args, " "), p.info)
	return p
}

// exit waits for the end and gives the exit code.
func (p *process) exit(t testing.TB) int {
	t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Fatalf("godwit %v did not end within %v\nstdout: %s\nstderr: %s", p.cmd.Args[1:], patience, p.out, p.err)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) typeLine(t testing.TB, line string) {
	t.Helper()
	_, err := io.WriteString(p.in, line+"\n")
	require.NoError(t, err)
}

func (p *process) waitFor(t testing.TB, what string, n int) {
	t.Helper()
	p.out.until(t, what, func(text string) bool {
		select {
		case <-p.done:
			if strings.Count(p.out.String(), what) < n {
				t.Fatalf("godwit %v ended without %q\nstdout: %s\nstderr: %s", p.cmd.Args[1:], what, text, p.err)
			}
		default:
		}
		return strings.Count(text, what) >= n
	})
}

const up = "godwit init: reached"

func TestPowerOffAndReboot(t *testing.T) {
	disk := diskCopy(t)
	p := godwit(t, "run", "--kernel", bzImagePath, "--disk", "path="+disk, "--memory", "256M")
	p.waitFor(t, up, 1)
	p.typeLine(t, "reboot")
	p.waitFor(t, up, 2) // it has started again by itself
	p.typeLine(t, "poweroff")
	require.Equal(t, 0, p.exit(t), p.err)
	requireClean(t, disk)
}

func TestNoReboot(t *testing.T) {
	p := godwit(t, "run", "--kernel", bzImagePath, "--disk", "path="+diskCopy(t), "--no-reboot", "--append", `godwit.exec="reboot; sleep 60"`)
	require.Equal(t, 0, p.exit(t), p.err)
	require.Equal(t, 1, strings.Count(p.out.String(), up))
}

func TestPanicIsAGuestFault(t *testing.T) {
	p := godwit(t, "run", "--kernel", bzImagePath, "--disk", "path="+diskCopy(t))
	p.waitFor(t, up, 1)
	p.typeLine(t, "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
	require.Equal(t, 3, p.exit(t), p.err)
	require.Contains(t, p.out.String(), "Kernel panic")
	require.Contains(t, p.err.String(), "triple fault")
}

func TestInitrdAndReadOnlyDisk(t *testing.T) {
	for _, kernel := range []string{bzImagePath, vmlinuxPath} {
		p := godwit(t, "run", "--kernel", kernel, "--initrd", initrdPath, "--cmdline", "console=ttyS0 reboot=t panic=-1 quiet godwit.exec=\"! test -e /dev/vda\"")
		require.Equal(t, 0, p.exit(t), "%s %s", p.out, p.err)
	}
	disk := diskCopy(t)
	p := godwit(t, "run", "--kernel", bzImagePath, "--disk", "path="+disk+",readonly,cache=writethrough", "--append", `godwit.exec="! touch /etc/x"`)
	require.Equal(t, 0, p.exit(t), "%s %s", p.out, p.err)
	requireClean(t, disk)
}

// TestMoveBetweenProcesses moves Linux under load from one godwit process to
// another, as a user would.
func TestMoveBetweenProcesses(t *testing.T) {
	disk, dir := diskCopy(t), t.TempDir()
	from, to := filepath.Join(dir, "from.sock"), filepath.Join(dir, "to.sock")
	src := godwit(t, "run", "--kernel", bzImagePath, "--disk", "path="+disk+",id=root", "--cpus", "2", "--api-sock", from,
		"--append", "godwit.run=witness,pace=20,mem=16,touch=64")
	src.out.until(t, "ten counts", func(text string) bool { return len(countLine.FindAllString(text, -1)) >= 10 })
	dst := godwit(t, "receive", "--listen", "tcp:127.0.0.1:0", "--disk", "root="+disk, "--api-sock", to, "--once")
	addr := regexp.MustCompile(`listening on (\S+)`)
	dst.err.until(t, "listening", addr.MatchString)
	listen := addr.FindStringSubmatch(dst.err.String())[1]

	move := godwit(t, "migrate", "--api-sock", from, "--to", listen, "--verify", "--streams", "2", "--json")
	require.Equal(t, 0, move.exit(t), move.err)
	lines := bytes.Split(bytes.TrimSpace([]byte(move.out.String())), []byte("\n"))
	var report struct {
		Status string
		Verify struct{ Source, Destination string }
	}
	require.NoError(t, json.Unmarshal(lines[len(lines)-1], &report), move.out)
	require.Equal(t, "completed", report.Status)
	require.Equal(t, report.Verify.Source, report.Verify.Destination)
	require.Equal(t, 0, src.exit(t), "the source ends with 0: %s", src.err)
	require.Contains(t, src.err.String(), "127.0.0.1", "and says where the guest went")

	have := len(countLine.FindAllString(src.out.String()+dst.out.String(), -1))
	dst.out.until(t, "twenty counts more", func(string) bool {
		return len(countLine.FindAllString(src.out.String()+dst.out.String(), -1)) >= have+20
	})
	dst.typeLine(t, "poweroff")
	require.Equal(t, 0, dst.exit(t), dst.err)
	text := src.out.String() + dst.out.String()
	n := counts(t, text)
	require.NotContains(t, text, "witness ERROR")
	require.Contains(t, text, "witness done count="+strconv.Itoa(n)+" errors=0 file_lines="+strconv.Itoa(n))
	requireClean(t, disk)
	var st unix.Stat_t
	require.ErrorIs(t, unix.Stat(from, &st), unix.ENOENT, "the API socket is gone with its process")
}
