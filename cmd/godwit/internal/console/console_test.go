package console

import (
	"bytes"
	"context"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// The test binary stands in for godwit: as the guard, and as a program that
// dies with a raw terminal.
func TestMain(m *testing.M) {
	Guard()
	if how := os.Getenv("CONSOLE_TEST_DIE"); how != "" {
		die(how)
	}
	os.Exit(m.Run())
}

func die(how string) {
	raw, restore, err := Raw(os.Stdin)
	if err != nil || !raw {
		os.Exit(9)
	}
	_, _ = os.Stdout.WriteString("raw")
	_, _ = os.Stdin.Read(make([]byte, 1)) // until the test has looked
	switch how {
	case "restore":
		if restore() != nil {
			os.Exit(8)
		}
		os.Exit(0)
	case "panic":
		go panic("in another goroutine")
	case "kill":
		_ = unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	select {}
}

// openPTY makes a pseudo-terminal (pty(7)).
func openPTY(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

func TestTerminalIsAlwaysRestored(t *testing.T) {
	for _, how := range []string{"restore", "panic", "kill"} {
		t.Run(how, func(t *testing.T) {
			master, slave := openPTY(t)
			before, err := term.GetState(int(slave.Fd()))
			require.NoError(t, err)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), "CONSOLE_TEST_DIE="+how)
			cmd.Stdin = slave
			out, err := cmd.StdoutPipe()
			require.NoError(t, err)
			cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Setctty: true} // the terminal is its own
			require.NoError(t, cmd.Start())
			_, err = io.ReadFull(out, make([]byte, 3))
			require.NoError(t, err)
			raw, err := term.GetState(int(slave.Fd()))
			require.NoError(t, err)
			require.NotEqual(t, before, raw)
			_, err = master.Write([]byte("g"))
			require.NoError(t, err)
			err = cmd.Wait()
			if how == "restore" {
				require.NoError(t, err)
			} else {
				require.Error(t, err)
			}
			require.Eventually(t, func() bool {
				after, err := term.GetState(int(slave.Fd()))
				return err == nil && *after == *before
			}, time.Minute, 5*time.Millisecond)
		})
	}
}

func TestRawLeavesOtherFilesAlone(t *testing.T) {
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	raw, restore, err := Raw(r)
	require.NoError(t, err)
	require.False(t, raw)
	require.NoError(t, restore())
	_, slave := openPTY(t) // a terminal, but another session's
	raw, restore, err = Raw(slave)
	require.NoError(t, err)
	require.False(t, raw)
	require.NoError(t, restore())
}

func TestParseSpec(t *testing.T) {
	for text, want := range map[string]Spec{
		"stdio": {Kind: "stdio"}, "none": {Kind: "none"}, "file:a:b": {Kind: "file", Path: "a:b"}, "unix:/x": {Kind: "unix", Path: "/x"},
	} {
		got, err := ParseSpec(text)
		require.NoError(t, err)
		require.Equal(t, want, got)
	}
	for _, text := range []string{"", "stdio:", "none:x", "file", "file:", "unix:", "tty:x", "pty"} {
		_, err := ParseSpec(text)
		require.ErrorIs(t, err, ErrSpec, text)
	}
}

func TestFileConsoleAppends(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	for _, text := range []string{"one\n", "two\n"} {
		c, err := Open(Spec{Kind: "file", Path: path})
		require.NoError(t, err)
		_, err = c.Write([]byte(text))
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.NoError(t, c.Close())
	}
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "one\ntwo\n", string(text))
}

func TestSocketConsole(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	c, err := Open(Spec{Kind: "unix", Path: path})
	require.NoError(t, err)
	write := func(text string) {
		_, err := c.Write([]byte(text))
		require.NoError(t, err)
	}
	write("lost" + string(bytes.Repeat([]byte("x"), backlog-5)) + "kept.")
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	got := make([]byte, backlog)
	_, err = io.ReadFull(conn, got)
	require.NoError(t, err)
	require.Equal(t, byte('x'), got[0], "the oldest went")
	require.Equal(t, "kept.", string(got[backlog-5:]))
	write("live")
	_, err = io.ReadFull(conn, got[:4])
	require.NoError(t, err)
	require.Equal(t, "live", string(got[:4]))

	// What is typed before there is a guest waits for it.
	_, err = conn.Write([]byte("typed"))
	require.NoError(t, err)
	typed := make(chan string, 1)
	c.Attach(func(_ context.Context, p []byte) (int, error) { typed <- string(p); return len(p), nil })
	require.Equal(t, "typed", <-typed)

	// A guest that takes nothing is not waited for once it is detached.
	blocked := make(chan struct{})
	c.Attach(func(ctx context.Context, _ []byte) (int, error) {
		close(blocked)
		<-ctx.Done()
		return 0, ctx.Err()
	})
	_, err = conn.Write([]byte("more"))
	require.NoError(t, err)
	<-blocked
	c.Attach(nil)
	require.NoError(t, c.Close())
	_, err = io.Copy(io.Discard, conn)
	require.NoError(t, err, "the client hears the end")
	_, err = os.Lstat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
}
