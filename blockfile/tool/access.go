package tool

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"godwit/blockfile"
)

// access is who may read and write a file.
type access struct {
	mode     uint32 // permission bits
	uid, gid uint32
}

func accessOf(st *unix.Stat_t) access { return access{st.Mode & 0o777, st.Uid, st.Gid} }

// below gives no more to anybody than other does. Where the groups differ, a
// group gets only what other gives to all.
func (a access) below(other access) access {
	allowed := other.mode
	if other.gid != a.gid {
		allowed = allowed&^0o070 | allowed&0o007<<3
	}
	a.mode &= allowed | 0o600 // its owner made it
	return a
}

// permit gives a new, empty file its owner and mode: those of the image that it
// replaces, or else the usual ones, and never more than those of the images
// whose contents it gets.
func permit(f *blockfile.HostFile, replaced *access, sources []access) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	a := accessOf(&st)
	a.mode = 0o644 &^ umask()
	if replaced != nil {
		a.mode = replaced.mode
		if a.uid != replaced.uid || a.gid != replaced.gid {
			// A group that cannot be given costs the group its access, no more.
			if err := f.Chown(replaced.uid, replaced.gid); err == nil {
				a.uid, a.gid = replaced.uid, replaced.gid
			} else if a.uid != replaced.uid {
				return fmt.Errorf("the file of that name belongs to user %d, to whom the new image cannot be given: %w; remove it first, or give the image another name", replaced.uid, err)
			}
		}
		a = a.below(*replaced)
	}
	for _, s := range sources {
		a = a.below(s)
	}
	return f.Chmod(a.mode)
}

// umask reads this process's, which can be asked for by no call that leaves it
// as it is (proc(5), /proc/PID/status).
func umask() uint32 {
	f, err := os.Open("/proc/self/status")
	if err != nil {
		return 0o077
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		if v, ok := strings.CutPrefix(s.Text(), "Umask:"); ok {
			if n, err := strconv.ParseUint(strings.TrimSpace(v), 8, 32); err == nil {
				return uint32(n)
			}
		}
	}
	return 0o077
}
