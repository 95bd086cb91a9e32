package tool

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// users says whether somebody holds a lock on the image at path, and whether to
// write. It takes none.
func users(path string) (some, writer bool, err error) {
	// O_NONBLOCK keeps a FIFO from hanging the open; images ignore it.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return false, false, err
	}
	defer f.Close()
	for _, ask := range []struct {
		kind int16
		says *bool
	}{{unix.F_WRLCK, &some}, {unix.F_RDLCK, &writer}} {
		lk := unix.Flock_t{Type: ask.kind, Whence: io.SeekStart}
		if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
			return false, false, fmt.Errorf("ask who locks %q: %w", path, err)
		}
		*ask.says = lk.Type != unix.F_UNLCK
	}
	return some, writer, nil
}
