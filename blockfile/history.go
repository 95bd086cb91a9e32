package blockfile

import (
	"bytes"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

const (
	// markName is the extended attribute in which an image says who took it last.
	markName = "user.godwit.owner"
	// maxMark is the longest mark, bytes: file systems keep short ones in the inode.
	maxMark = 512
)

// History tells whether others took or changed an image: it differs then from
// what it was.
type History struct {
	// Mark is what SetMark wrote last, by whatever process; "" where nobody did, or
	// where the file system keeps none.
	Mark string
	// Modified is when the file was last written, nanoseconds since 1970; 0 for a
	// device, which keeps no such time.
	Modified int64
}

// Known says whether there is anything to compare.
func (h History) Known() bool { return h != History{} }

// Historian is a File that has a History: all that Open gives without an overlay.
type Historian interface {
	File
	// SetMark leaves a mark on the image. It does not change the contents or the time
	// of the last write. An image that can have none is no error.
	SetMark(mark string) error
	History() (History, error)
}

var (
	_ Historian = (*raw)(nil)
	_ Historian = (*qcow)(nil)
)

// SetMark implements Historian.
func (r *raw) SetMark(mark string) error {
	if len(mark) > maxMark {
		return fmt.Errorf("mark disk %q: %d bytes, at most %d", r.path, len(mark), maxMark)
	}
	if err := unix.Fsetxattr(r.fd, markName, []byte(mark), 0); err != nil && !unmarkable(err) {
		return fmt.Errorf("mark disk %q: %w", r.path, err)
	}
	return nil
}

// unmarkable tells whether there can be no mark: a file system without extended
// attributes, or a device, whose node takes none of users (xattr(7)).
func unmarkable(err error) bool {
	return errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.ENODATA)
}

// History implements Historian.
func (r *raw) History() (h History, err error) {
	var mark [maxMark]byte
	n, err := unix.Fgetxattr(r.fd, markName, mark[:])
	switch {
	case errors.Is(err, unix.ERANGE):
		n = copy(mark[:], "a mark of another kind")
	case err != nil && !unmarkable(err):
		return h, fmt.Errorf("read the mark of disk %q: %w", r.path, err)
	}
	h.Mark = string(bytes.ToValidUTF8(mark[:max(n, 0)], []byte("?")))
	if r.geo.device {
		return h, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(r.fd, &st); err != nil {
		return h, fmt.Errorf("stat disk %q: %w", r.path, err)
	}
	h.Modified = st.Mtim.Nano()
	return h, nil
}

// SetMark implements Historian.
func (q *qcow) SetMark(mark string) error { return q.host.r.SetMark(mark) }

// History implements Historian.
func (q *qcow) History() (History, error) { return q.host.r.History() }
