package blockfile

import (
	"errors"

	"golang.org/x/sys/unix"
)

// ErrUnstable says that a flush failed in the kernel, which may have dropped
// writes that were answered: doing it again would succeed and prove nothing.
var ErrUnstable = errors.New("what was written since the last flush may be lost")

// Full says that a request failed because the host's file system, or its
// owner's quota, had no room. Nothing that was answered is lost, and the same
// request succeeds once there is room.
func Full(err error) bool {
	return (errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)) && !errors.Is(err, ErrUnstable)
}
