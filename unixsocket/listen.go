package unixsocket

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is what sockaddr_un holds, with its terminating zero.
const maxSocketPath = 107

// CheckPath says why path cannot be a socket's.
func CheckPath(path string) error {
	switch {
	case path == "":
		return errors.New("socket path is empty")
	case len(path) > maxSocketPath:
		return fmt.Errorf("socket path of %d bytes, the system takes at most %d; use a shorter one", len(path), maxSocketPath)
	case strings.ContainsRune(path, 0) || path[0] == '@':
		return fmt.Errorf("socket path %.120q is not a file's", path)
	}
	return nil
}

// Listen makes a socket that only its user can connect to. Where one is left
// behind by a process that is gone, it is replaced. Of several that start at once
// one listens, and the others hear that it does.
func Listen(path string) (*net.UnixListener, error) {
	if err := CheckPath(path); err != nil {
		return nil, err
	}
	unlock, err := lockPath(path)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	defer unlock()
	if err := removeLeftBehind(path); err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	lc := net.ListenConfig{Control: ownerOnly}
	l, err := lc.Listen(context.Background(), "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", path, err)
	}
	return l.(*net.UnixListener), nil
}

// ownerOnly gives a socket mode 0600 before it is bound: the file takes its mode
// from the socket (Linux, net/unix/af_unix.c, unix_bind_bsd), so that at no time
// others can connect, whatever the umask says.
func ownerOnly(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = os.NewSyscallError("fchmod", unix.Fchmod(int(fd), 0o600)) }); e != nil {
		return e
	}
	return err
}

// removeLeftBehind removes the socket of a process that is gone. Only a refusal
// says so: a listener with a full backlog fails a connection, too.
func removeLeftBehind(path string) error {
	st, err := os.Lstat(path)
	if err != nil {
		return nil // nothing is there, or bind will say what is wrong
	}
	if st.Mode()&fs.ModeSocket == 0 {
		return errors.New("a file that is no socket is there; choose another path")
	}
	conn, err := net.DialTimeout("unix", path, time.Second)
	switch {
	case err == nil:
		_ = conn.Close() // it served its purpose
		return errors.New("another process listens there; stop it or choose another path")
	case errors.Is(err, unix.EAGAIN):
		return errors.New("another process listens there and is too busy to answer; stop it or choose another path")
	case errors.Is(err, fs.ErrNotExist):
		return nil // its owner has removed it meanwhile
	case !errors.Is(err, unix.ECONNREFUSED):
		return fmt.Errorf("a socket is there and it cannot be found out whose: %w; choose another path, or remove it if nobody uses it", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the socket left behind: %w", err)
	}
	return nil
}
