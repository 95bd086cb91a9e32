package unixsocket

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long another process may look at the same path. It takes
// milliseconds, or a second where what listens there does not answer.
const lockPatience = 5 * time.Second

// lockPath keeps other starters away from path: between the look at a socket left
// behind and its removal another could have made a new one. The lock is a file
// beside it that exists only meanwhile; the lock of a process that dies is free.
func lockPath(path string) (unlock func(), err error) {
	name := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".lock")
	for late := time.Now().Add(lockPatience); ; time.Sleep(time.Millisecond) {
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && isAt(f, name) {
			return func() {
				_ = os.Remove(name) // while it is locked: whoever opened it sees that it is gone
				_ = f.Close()
			}, nil
		}
		_ = f.Close() // nothing was written
		if err != nil && !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("lock %q: %w", name, err)
		}
		if time.Now().After(late) {
			return nil, fmt.Errorf("another process has been starting there for %v, by its lock %q; end it or choose another path", lockPatience, name)
		}
	}
}

// isAt tells whether f is still the file of that name.
func isAt(f *os.File, name string) bool {
	opened, err := f.Stat()
	if err != nil {
		return false
	}
	named, err := os.Lstat(name)
	return err == nil && os.SameFile(opened, named)
}
