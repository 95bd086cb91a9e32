package tests

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"godwit/api"
)

// patience is how long a test waits for what must come. It is far above what a
// busy machine needs, and only a failing test takes it.
const patience = time.Minute

// program is the godwit that the tests run, built once.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "godwit-tests-")
		if err != nil {
			fmt.Fprintln(os.Stderr, "tests:", err)
			return 1
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "godwit")
		build := exec.Command("go", "build", "-o", program, "godwit/cmd/godwit")
		build.Env = append(os.Environ(), "CGO_ENABLED=0") // static: the lab runs it without a C library
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "tests: build godwit: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// needKVM fails the test where no guest can run: a silent skip would hide that.
func needKVM(t *testing.T) {
	t.Helper()
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	require.NoError(t, err, "this test runs guests and needs /dev/kvm; see godwit doctor")
	require.NoError(t, f.Close())
}

// watched is output that a test waits in.
type watched struct {
	mu   sync.Mutex
	text bytes.Buffer
	more chan struct{}
}

func newWatched() *watched { return &watched{more: make(chan struct{})} }

func (w *watched) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.text.Write(p)
	close(w.more)
	w.more = make(chan struct{})
	return len(p), nil
}

func (w *watched) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.text.String()
}

// process is a godwit that runs beside the test. It is gone when the test ends.
type process struct {
	t        *testing.T
	cmd      *exec.Cmd
	stdin    io.WriteCloser
	out, err *watched
	done     chan struct{}
}

// start starts godwit with args.
func start(t *testing.T, args ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(program, args...), out: newWatched(), err: newWatched(), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p.out, p.err
	var err error
	p.stdin, err = p.cmd.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, p.cmd.Start())
	go func() { defer close(p.done); _ = p.cmd.Wait() }() // the tests look at the exit code
	t.Cleanup(func() {
		select {
		case <-p.done:
		default:
			_ = p.cmd.Process.Kill()
			<-p.done
		}
		if t.Failed() {
			t.Logf("godwit %s\nstdout: %s\nstderr: %s", strings.Join(args, " "), tail(p.out.String()), tail(p.err.String()))
		}
	})
	return p
}

func tail(s string) string { return s[max(len(s)-4000, 0):] }

// await waits until w, stdout or stderr of p, has text.
func (p *process) await(w *watched, text string) {
	p.t.Helper()
	p.awaitThat(text, w, func(s string) bool { return strings.Contains(s, text) })
}

func (p *process) awaitThat(what string, w *watched, is func(string) bool) {
	p.t.Helper()
	late := time.After(patience)
	for {
		w.mu.Lock()
		text, more := w.text.String(), w.more
		w.mu.Unlock()
		if is(text) {
			return
		}
		select {
		case <-more:
		case <-p.done:
			require.True(p.t, is(w.String()), "godwit ended with %d before %q; stderr: %s", p.cmd.ProcessState.ExitCode(), what, tail(p.err.String()))
			return
		case <-late:
			require.FailNow(p.t, "waited in vain", "for %q", what)
		}
	}
}

// ends waits for the end and checks the exit code.
func (p *process) ends(code int) {
	p.t.Helper()
	select {
	case <-p.done:
	case <-time.After(patience):
		require.FailNow(p.t, "godwit has not ended")
	}
	require.Equal(p.t, code, p.cmd.ProcessState.ExitCode(), "stderr: %s", tail(p.err.String()))
}

func (p *process) signal(s unix.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(s))
}

// godwit runs one command to its end.
func godwit(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, diag bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &diag
	if err := cmd.Run(); err != nil {
		require.IsType(t, &exec.ExitError{}, err)
	}
	require.NoError(t, ctx.Err(), "godwit %s", strings.Join(args, " "))
	return cmd.ProcessState.ExitCode(), out.String(), diag.String()
}

// metronomeArgs boot the built-in guest with an API socket.
func metronomeArgs(socket, options string) []string {
	return []string{"run", "--guest", "metronome", "--memory", "256M", "--append", "beat=50 " + options, "--api-sock", socket}
}

// beats counts the guest's beat lines.
func beats(s string) int { return strings.Count(s, "metronome beat ") }

// awaitBeats waits for n more beats than there are.
func (p *process) awaitBeats(n int) {
	p.t.Helper()
	want := beats(p.out.String()) + n
	p.awaitThat("beats", p.out, func(s string) bool { return beats(s) >= want })
}

// noVM checks that no machine is left behind a socket.
func noVM(t *testing.T, socket string) {
	t.Helper()
	_, err := api.NewClient(socket).Describe(context.Background())
	require.Error(t, err, "nobody answers any more")
	_, err = os.Lstat(socket)
	require.ErrorIs(t, err, os.ErrNotExist, "the socket is removed")
}
