package vmm

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// madeFile is a file that was not there before.
type madeFile struct {
	path     string
	dev, ino uint64
}

// openOutput opens a file that a console's output is appended to, and says if it
// had to be made.
func openOutput(path string) (fd int, made *madeFile, err error) {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_APPEND | unix.O_CLOEXEC | unix.O_NONBLOCK
	if fd, err = unix.Open(path, flags|unix.O_EXCL, 0o600); err == nil {
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			made = &madeFile{path: path, dev: st.Dev, ino: st.Ino}
		}
		return fd, made, nil
	}
	if fd, err = unix.Open(path, flags, 0o600); err != nil {
		return -1, nil, fmt.Errorf("open %q for output: %w", path, err)
	}
	return fd, nil, nil
}

// remove takes the file away if it is still the one that was made, and empty.
func (f madeFile) remove() error {
	var st unix.Stat_t
	err := unix.Lstat(f.path, &st)
	if err == nil && st.Dev == f.dev && st.Ino == f.ino && st.Size == 0 {
		err = os.Remove(f.path)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
